//! Packets of our own: for `explain`, for the proof at start, for tests.

use std::net::IpAddr;

use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep};

use super::{Packet, TcpFlags, Transport};
use crate::model::protocol;

/// Hop limit of the packets built here (RFC 1700's recommended default).
const HOP_LIMIT: u8 = 64;
/// TCP window of the packets built here; any value would do.
const WINDOW: u16 = 64_240;

/// The bytes of an IP packet with right lengths and checksums. `protocol`
/// matters for [`Transport::Other`] only. `None` if the addresses' families
/// differ, the ICMP is of the wrong family, or the payload is too long.
pub fn build(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
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
        Transport::Other => ip.write(&mut bytes, IpNumber(protocol), payload),
    }
    .ok()?;
    Some(bytes)
}

/// Turns the packet at the start of `frame`, which was read into `packet`, into
/// the error that a router with a smaller `mtu` answers it with: ICMP 3/4
/// (RFC 1191) or ICMPv6 2/0 (RFC 4443 §3.2). The error comes from the address
/// that the packet was for. Gives its length, which is never greater than the
/// packet's; `None` for what is not answered: ICMP errors, and fragments other
/// than the first (RFC 1122 §3.2.2, RFC 4443 §2.4).
pub fn too_big(_frame: &mut [u8], _packet: &Packet, _mtu: u16) -> Option<usize> {
    None
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
