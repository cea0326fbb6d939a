//! Ethernet frames between a workload and the wire: which carry IP, which belong to
//! the protocols that find neighbours, and which have no business there.
//!
//! ARP, neighbour discovery and the multicast membership that switches listen to don't
//! pass security groups, as in a VPC; what keeps a workload from speaking for others
//! is here. A VPC gives an interface its addresses, and nobody else gets them by saying
//! so. Hence, besides frames under a foreign Ethernet address, these are refused:
//!
//! - from the workload: whatever claims an address that is not the interface's own, probes
//!   for one, and what only routers say (advertisements, redirects, membership queries);
//! - from the wire: whatever claims an address of the interface's, Ethernet or IP. Probes for
//!   one are questions and pass, so that the workload defends its addresses and
//!   others notice a duplicate; it is not told of one itself. Redirects are refused as well:
//!   anybody could send them under the router's name, and a VPC's router has no
//!   reason to. Router advertisements pass: without them there are no IPv6 routes.

use std::net::{IpAddr, Ipv4Addr};

use crate::policy::DropReason;

mod discovery;

/// Bytes of the header: destination, source, type (IEEE 802.3, "Ethernet II").
pub const HEADER: usize = 14;
/// Types of what is carried (IANA, "IEEE 802 Numbers").
pub const TYPE_IPV4: u16 = 0x0800;
/// IPv6's.
pub const TYPE_IPV6: u16 = 0x86dd;
const TYPE_ARP: u16 = 0x0806;

/// An ARP packet for IPv4 over Ethernet (RFC 826): its kinds and lengths of addresses.
const ARP_PREFIX: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const ARP_LENGTH: usize = 28;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Which end a frame comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Whom the security groups guard.
    Workload,
    /// Everybody else.
    Wire,
}

/// What a frame is, if it may pass so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An IP packet behind the header, to be judged. Not read any further than this.
    Ip {
        /// Its bytes, without what only fills the frame up.
        length: usize,
    },
    /// A message between neighbours, for the other end as it is.
    Neighbour {
        /// Bytes of the frame with its header, without what fills it up.
        length: usize,
    },
    /// For other stations. No reason to say anything.
    NotForUs,
}

/// What `frame` is, which comes from that `side` of the interface with the Ethernet
/// address `mac` and the IP addresses, link-local ones among them, that it `owns`.
///
/// # Errors
/// [`DropReason::NotIp`] for what a VPC doesn't carry: tagged frames, LLC and all types
/// but IPv4, IPv6 and ARP; [`DropReason::NeighbourSpoof`] for what is said under somebody
/// else's address, as above; [`DropReason::NotUnicast`] for a packet to one host in a frame
/// to many (RFC 1122 §3.3.6); [`DropReason::Malformed`] for a header cut short, a source
/// that is no station, or a message between neighbours that its RFC doesn't allow.
#[inline]
pub fn classify(
    frame: &[u8],
    side: Side,
    mac: &Mac,
    owns: impl Fn(IpAddr) -> bool,
) -> Result<Content, DropReason> {
    let (header, packet) = frame
        .split_first_chunk::<HEADER>()
        .ok_or(DropReason::Malformed)?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, kind @ ..] = *header;
    let (destination, source) = ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]);
    let is_own = source == *mac;
    match side {
        Side::Workload if !is_own => return Err(DropReason::NeighbourSpoof),
        Side::Wire if !is_group(destination) && destination != *mac => {
            return Ok(Content::NotForUs);
        }
        // Sent back to where it came from, or somebody takes our name.
        Side::Wire if is_own => return Err(DropReason::NeighbourSpoof),
        Side::Wire if is_group(source) => return Err(DropReason::Malformed),
        Side::Workload | Side::Wire => {}
    }
    let to_many = is_group(destination);
    match u16::from_be_bytes(kind) {
        TYPE_IPV4 => ipv4(packet, to_many),
        TYPE_IPV6 => ipv6(packet, to_many, side, mac, owns),
        TYPE_ARP => arp(packet, side, mac, owns),
        _ => Err(DropReason::NotIp),
    }
}

/// Whether an address is a group's, broadcast among them (IEEE 802, the I/G bit).
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

#[inline]
fn ipv4(packet: &[u8], to_many: bool) -> Result<Content, DropReason> {
    let header = packet
        .first_chunk::<IPV4_HEADER>()
        .filter(|header| header[0] >> 4 == 4)
        .ok_or(DropReason::Malformed)?;
    // Class D, and above it the broadcast address and what was never given out.
    if to_many && header[16] < 224 {
        return Err(DropReason::NotUnicast);
    }
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    Ok(Content::Ip {
        length: without_padding(packet, length, IPV4_HEADER),
    })
}

#[inline]
fn ipv6(
    packet: &[u8],
    to_many: bool,
    side: Side,
    mac: &Mac,
    owns: impl Fn(IpAddr) -> bool,
) -> Result<Content, DropReason> {
    let header = packet
        .first_chunk::<IPV6_HEADER>()
        .filter(|header| header[0] >> 4 == 6)
        .ok_or(DropReason::Malformed)?;
    if to_many && header[24] != 0xff {
        return Err(DropReason::NotUnicast);
    }
    let length = IPV6_HEADER + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let length = without_padding(packet, length, IPV6_HEADER);
    if discovery::may_follow(header[6])
        && let Some(message) = discovery::read(&packet[..length])?
    {
        return Ok(if message.check(side, mac, owns)? {
            Content::Neighbour {
                length: HEADER + length,
            }
        } else {
            Content::NotForUs
        });
    }
    Ok(Content::Ip { length })
}

/// How much of `packet` is one of `length` bytes, if it can be; frames shorter than 60
/// bytes are filled up. What contradicts itself is left for whoever reads it all to
/// refuse.
#[inline]
fn without_padding(packet: &[u8], length: usize, header: usize) -> usize {
    if (header..packet.len()).contains(&length) {
        length
    } else {
        packet.len()
    }
}

#[cold]
fn arp(
    packet: &[u8],
    side: Side,
    mac: &Mac,
    owns: impl Fn(IpAddr) -> bool,
) -> Result<Content, DropReason> {
    let packet: &[u8; ARP_LENGTH] = packet.first_chunk().ok_or(DropReason::Malformed)?;
    if !packet.starts_with(&ARP_PREFIX) {
        return Err(DropReason::Malformed);
    }
    let operation = u16::from_be_bytes([packet[6], packet[7]]);
    let owns = |at: usize| {
        let address = [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]];
        (
            Ipv4Addr::from(address),
            owns(Ipv4Addr::from(address).into()),
        )
    };
    let sender_mac: Mac = [
        packet[8], packet[9], packet[10], packet[11], packet[12], packet[13],
    ];
    let (sender, is_own) = owns(14);
    let (_, asks_for_own) = owns(24);
    if !matches!(operation, ARP_REQUEST | ARP_REPLY) || is_group(sender_mac) {
        return Err(DropReason::Malformed);
    }
    let honest = match side {
        // RFC 5227: who probes for an address doesn't use it yet.
        Side::Workload if sender.is_unspecified() => {
            sender_mac == *mac && operation == ARP_REQUEST && asks_for_own
        }
        Side::Workload => sender_mac == *mac && is_own,
        Side::Wire => sender_mac != *mac && !is_own,
    };
    if !honest {
        return Err(DropReason::NeighbourSpoof);
    }
    Ok(Content::Neighbour {
        length: HEADER + ARP_LENGTH,
    })
}

#[cfg(test)]
mod tests;
