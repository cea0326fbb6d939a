//! Packets of our own: for `explain`, for the proof at start, for tests.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep};

use super::{TcpFlags, Transport};
use crate::model::protocol;

/// Hop limit of the packets built here (RFC 1700's recommended default).
pub(super) const HOP_LIMIT: u8 = 64;
/// TCP window of the packets built here; any value would do.
const WINDOW: u16 = 64_240;

/// The bytes of an IP packet with right lengths and checksums. `number`, the
/// protocol's, matters for [`Transport::Other`] only. `None` if the addresses' families
/// differ, the ICMP is of the wrong family, `number` is an IPv6 extension header in
/// a packet of IPv6, or the payload is too long.
pub fn build(
    source: IpAddr,
    destination: IpAddr,
    number: u8,
    transport: Transport,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let ip = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), HOP_LIMIT)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), HOP_LIMIT)
        }
        _ => return None,
    };
    let mut bytes = Vec::with_capacity(payload.len() + 60);
    match transport {
        Transport::Tcp {
            source,
            destination,
            flags,
            end,
            acknowledgement,
        } => {
            let carried = u32::try_from(payload.len()).ok()?;
            let first = end
                .wrapping_sub(carried)
                .wrapping_sub(u32::from(flags.syn) + u32::from(flags.fin));
            tcp(ip, source, destination, flags, first, acknowledgement).write(&mut bytes, payload)
        }
        Transport::Udp {
            source,
            destination,
        } => ip.udp(source, destination).write(&mut bytes, payload),
        Transport::IcmpQuery { kind, code, id, .. } => {
            let [high, low] = id.to_be_bytes();
            return icmp(ip, source, kind, code, [high, low, 0, 1], payload);
        }
        Transport::Icmp { kind, code } => return icmp(ip, source, kind, code, [0; 4], payload),
        Transport::Fragment => return None,
        // The builder would look for that extension header, and panic without it.
        Transport::Other if source.is_ipv6() && protocol::is_ipv6_extension(number) => {
            return None;
        }
        Transport::Other => ip.write(&mut bytes, IpNumber(number), payload),
    }
    .ok()?;
    Some(bytes)
}

/// The protocol number of an ICMP message between addresses like `address`.
pub fn icmp_protocol(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => protocol::ICMP,
        IpAddr::V6(_) => protocol::ICMPV6,
    }
}

fn tcp(
    ip: PacketBuilderStep<etherparse::IpHeaders>,
    source: u16,
    destination: u16,
    flags: TcpFlags,
    sequence: u32,
    acknowledgement: u32,
) -> PacketBuilderStep<etherparse::TcpHeader> {
    let mut step = ip.tcp(source, destination, sequence, WINDOW);
    if flags.syn {
        step = step.syn();
    }
    if flags.ack {
        step = step.ack(acknowledgement);
    }
    if flags.fin {
        step = step.fin();
    }
    if flags.rst {
        step = step.rst();
    }
    step
}

fn icmp(
    ip: PacketBuilderStep<etherparse::IpHeaders>,
    source: IpAddr,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    payload: &[u8],
) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(payload.len() + 60);
    match source {
        IpAddr::V4(_) => ip.icmpv4_raw(kind, code, rest).write(&mut bytes, payload),
        IpAddr::V6(_) => ip.icmpv6_raw(kind, code, rest).write(&mut bytes, payload),
    }
    .ok()?;
    Some(bytes)
}
