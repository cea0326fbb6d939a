//! A router's answer to a packet that doesn't fit the next link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;

use super::build::HOP_LIMIT;
use super::{Packet, Transport};
use crate::model::protocol;

/// Longest ICMP error over IPv4, its headers included: what every host takes
/// (RFC 1812 §4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest ICMPv6 error: what every link takes (RFC 4443 §2.4 c).
const LONGEST_V6: usize = 1280;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const ICMP_HEADER: usize = 8;

/// Least of the transport that an error quotes (RFC 792: 64 bits).
const LEAST_TRANSPORT: usize = 8;

/// Turns the packet at the start of `frame`, which was read into `packet`, into
/// the error that a router with a smaller `mtu` answers it with: ICMP 3/4
/// (RFC 1191) or ICMPv6 2/0 (RFC 4443 §3.2). The error comes from the address
/// that the packet was for. Gives its length, which is never greater than the
/// packet's; `None` for what is not answered: ICMP errors, and fragments other
/// than the first (RFC 1122 §3.2.2, RFC 4443 §2.4).
///
/// Without an answer `frame` is left as it is.
pub fn too_big(frame: &mut [u8], packet: &Packet, mtu: u16) -> Option<usize> {
    if packet.is_icmp_error() || packet.transport == Transport::Fragment {
        return None;
    }
    // Whoever answers is whom the packet was for.
    match (packet.destination, packet.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let least = packet.transport_offset + LEAST_TRANSPORT;
            let (length, header, icmp) = quote(frame, packet, IPV4_HEADER, LONGEST_V4, least)?;
            write_v4(header, icmp, from, to, mtu);
            Some(length)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let least = IPV6_HEADER + LEAST_TRANSPORT;
            let (length, header, icmp) = quote(frame, packet, IPV6_HEADER, LONGEST_V6, least)?;
            write_v6(header, icmp, from, to, mtu);
            Some(length)
        }
        _ => None,
    }
}

/// Moves the start of the packet behind `ip_header` bytes for an IP header and
/// those for ICMP's. Gives the length of it all, the place for the IP header
/// and the ICMP message; `None` if not `least` bytes of the packet fit in.
fn quote<'f>(
    frame: &'f mut [u8],
    packet: &Packet,
    ip_header: usize,
    longest: usize,
    least: usize,
) -> Option<(usize, &'f mut [u8], &'f mut [u8])> {
    let length = packet.length.min(longest);
    let answer = frame.get_mut(..length)?;
    let quoted = length.checked_sub(ip_header + ICMP_HEADER)?;
    if quoted < least {
        return None;
    }
    answer.copy_within(..quoted, ip_header + ICMP_HEADER);
    let (header, icmp) = answer.split_at_mut(ip_header);
    Some((length, header, icmp))
}

fn write_v4(header: &mut [u8], icmp: &mut [u8], from: Ipv4Addr, to: Ipv4Addr, mtu: u16) {
    let length = be_length(header.len() + icmp.len());
    let [high, low] = mtu.to_be_bytes();
    // Destination unreachable: fragmentation needed and DF set.
    icmp[..ICMP_HEADER].copy_from_slice(&[3, 4, 0, 0, 0, 0, high, low]);
    let sum = Sum16BitWords::new().add_slice(icmp).ones_complement();
    icmp[2..4].copy_from_slice(&sum.to_ne_bytes());

    // Precedence 6, internetwork control (RFC 1812 §4.3.2.5). With DF set the
    // identification may be anything (RFC 6864 §4.1).
    header[..4].copy_from_slice(&[0x45, 0xc0, length[0], length[1]]);
    header[4..12].copy_from_slice(&[0, 0, 0x40, 0, HOP_LIMIT, protocol::ICMP, 0, 0]);
    header[12..16].copy_from_slice(&from.octets());
    header[16..20].copy_from_slice(&to.octets());
    let sum = Sum16BitWords::new().add_slice(header).ones_complement();
    header[10..12].copy_from_slice(&sum.to_ne_bytes());
}

fn write_v6(header: &mut [u8], icmp: &mut [u8], from: Ipv6Addr, to: Ipv6Addr, mtu: u16) {
    let length = be_length(icmp.len());
    let [high, low] = mtu.to_be_bytes();
    icmp[..ICMP_HEADER].copy_from_slice(&[2, 0, 0, 0, 0, 0, high, low]);
    let sum = Sum16BitWords::new()
        .add_16bytes(from.octets())
        .add_16bytes(to.octets())
        .add_4bytes([0, 0, length[0], length[1]])
        .add_4bytes([0, 0, 0, protocol::ICMPV6])
        .add_slice(icmp)
        .ones_complement();
    icmp[2..4].copy_from_slice(&sum.to_ne_bytes());

    header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    header[4..8].copy_from_slice(&[length[0], length[1], protocol::ICMPV6, HOP_LIMIT]);
    header[8..24].copy_from_slice(&from.octets());
    header[24..40].copy_from_slice(&to.octets());
}

/// A length field's bytes; lengths here are below 1,280.
fn be_length(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests;
