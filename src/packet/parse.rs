//! Bytes to [`Packet`], with `etherparse`'s zero-copy header views.

use std::net::IpAddr;

use etherparse::err::tcp::HeaderSliceError;
use etherparse::{
    IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice,
    TcpHeaderSlice, UdpHeaderSlice,
};

use super::{Fragment, Packet, TcpFlags, Transport, checksum};
use crate::model::protocol;

/// Longest chain of IPv6 extension headers that is followed. RFC 8200 §4.1
/// lists six kinds that may precede the payload, one of them twice; a longer
/// chain only serves to make the reader work.
const MAX_EXTENSIONS: usize = 8;

/// Of which IP a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Why bytes are not a packet that can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A header is truncated, contradicts the length, or is not an IP header; the checksum of an
    /// IPv4 header is wrong (RFC 1812 §5.2.2); or ICMP of the other IP version follows it.
    #[error("not a whole IP packet with consistent headers and a right header checksum")]
    Malformed,
    /// A first fragment that doesn't hold the whole transport header.
    #[error("a first fragment too short to show its ports")]
    TinyFragment,
}

/// Reads the headers of the IP packet at the start of `frame`. Of a fragment
/// other than the first there is only the IP header to read.
///
/// # Errors
/// [`ParseError::Malformed`] unless every header is whole, every length agrees and the
/// checksum of an IPv4 header is right; [`ParseError::TinyFragment`] for a first fragment that lacks a part
/// of the headers up to and including the transport's (RFC 1858, RFC 7112).
#[inline(always)]
pub fn parse(frame: &[u8]) -> Result<Packet, ParseError> {
    match frame.first().map(|byte| byte >> 4) {
        Some(4) => parse_v4(frame),
        Some(6) => parse_v6(frame),
        _ => Err(ParseError::Malformed),
    }
}

#[inline(always)]
fn parse_v4(frame: &[u8]) -> Result<Packet, ParseError> {
    let header = Ipv4HeaderSlice::from_slice(frame).map_err(|_| ParseError::Malformed)?;
    if !checksum::is_right(header.slice()) {
        return Err(ParseError::Malformed);
    }
    let length = usize::from(header.total_len());
    let transport_offset = header.slice().len();
    let payload = frame
        .get(transport_offset..length)
        .ok_or(ParseError::Malformed)?;
    let protocol = header.protocol().0;
    let (fragment, transport) = if header.is_fragmenting_payload() {
        let fragment = fragment_v4(&header, payload.len())?;
        let transport = transport_of(fragment, Family::V4, protocol, payload)?;
        (Some(fragment), transport)
    } else {
        (
            None,
            transport(Family::V4, protocol, payload, Extent::Whole)?,
        )
    };
    Ok(Packet {
        source: IpAddr::V4(header.source_addr()),
        destination: IpAddr::V4(header.destination_addr()),
        protocol,
        transport,
        length,
        transport_offset,
        fragment,
        dont_fragment: header.dont_fragment(),
    })
}

#[inline(always)]
fn parse_v6(frame: &[u8]) -> Result<Packet, ParseError> {
    let header = Ipv6HeaderSlice::from_slice(frame).map_err(|_| ParseError::Malformed)?;
    let header_length = header.slice().len();
    let length = header_length + usize::from(header.payload_length());
    let packet = frame.get(..length).ok_or(ParseError::Malformed)?;
    let chain = if protocol::is_ipv6_extension(header.next_header().0) {
        skip_extensions(packet, header.next_header(), header_length, length)?
    } else {
        Chain {
            next: header.next_header().0,
            offset: header_length,
            fragment: None,
        }
    };
    let payload = packet.get(chain.offset..).ok_or(ParseError::Malformed)?;
    let transport = match chain.fragment {
        None => transport(Family::V6, chain.next, payload, Extent::Whole)?,
        Some(fragment) => transport_of(fragment, Family::V6, chain.next, payload)?,
    };
    Ok(Packet {
        source: IpAddr::V6(header.source_addr()),
        destination: IpAddr::V6(header.destination_addr()),
        protocol: chain.next,
        transport,
        length,
        transport_offset: chain.offset,
        fragment: chain.fragment,
        dont_fragment: true,
    })
}

/// What an IPv4 header says of the `length` bytes of payload, a part of a
/// datagram's.
pub(super) fn fragment_v4(
    header: &Ipv4HeaderSlice<'_>,
    length: usize,
) -> Result<Fragment, ParseError> {
    part_of_datagram(Fragment {
        id: u32::from(header.identification()),
        offset: header.fragments_offset().byte_offset(),
        length: u16::try_from(length).map_err(|_| ParseError::Malformed)?,
        more: header.more_fragments(),
        next: header.protocol().0,
    })
}

/// `fragment`, if there can be a datagram that it is a part of.
fn part_of_datagram(fragment: Fragment) -> Result<Fragment, ParseError> {
    let empty = fragment.length == 0;
    let broken = fragment.more && !fragment.length.is_multiple_of(8);
    let beyond = fragment.offset.checked_add(fragment.length).is_none();
    if empty || broken || beyond {
        return Err(ParseError::Malformed);
    }
    Ok(fragment)
}

/// Where a chain of IPv6 headers leads.
pub(super) struct Chain {
    /// The protocol after the headers; after the fragment header of a fragment
    /// other than the first what that header says.
    pub(super) next: u8,
    /// Where it starts.
    pub(super) offset: usize,
    /// What the fragment header says, unless the datagram is whole.
    pub(super) fragment: Option<Fragment>,
}

/// Follows the extension headers of `packet` from `offset` on, to the transport
/// header or, in a fragment other than the first, to the fragment header. AH
/// and ESP count as protocols of their own, as they do over IPv4. The packet
/// has `length` bytes, though not all of them may be here.
pub(super) fn skip_extensions(
    packet: &[u8],
    next: IpNumber,
    offset: usize,
    length: usize,
) -> Result<Chain, ParseError> {
    let mut chain = Chain {
        next: next.0,
        offset,
        fragment: None,
    };
    let mut seen_fragment_header = false;
    for _ in 0..=MAX_EXTENSIONS {
        if !protocol::is_ipv6_extension(chain.next) {
            return Ok(chain);
        }
        let next = IpNumber(chain.next);
        // RFC 7112 §5: a first fragment holds the whole chain.
        let cut = match chain.fragment {
            Some(_) => ParseError::TinyFragment,
            None => ParseError::Malformed,
        };
        let rest = packet.get(chain.offset..).ok_or(cut)?;
        if next != IpNumber::IPV6_FRAGMENTATION_HEADER {
            let extension = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| cut)?;
            chain.next = extension.next_header().0;
            chain.offset += extension.slice().len();
            continue;
        }
        let header = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| cut)?;
        // A fragment of a fragment: nobody sends it but to be read in two ways.
        if std::mem::replace(&mut seen_fragment_header, true) {
            return Err(ParseError::Malformed);
        }
        chain.next = header.next_header().0;
        chain.offset += header.slice().len();
        // RFC 6946: offset 0 and no more to come is a whole datagram.
        if header.is_fragmenting_payload() {
            let length = length
                .checked_sub(chain.offset)
                .and_then(|length| u16::try_from(length).ok())
                .ok_or(ParseError::Malformed)?;
            let fragment = part_of_datagram(Fragment {
                id: header.identification(),
                offset: header.fragment_offset().byte_offset(),
                length,
                more: header.more_fragments(),
                next: chain.next,
            })?;
            chain.fragment = Some(fragment);
            if fragment.offset > 0 {
                return Ok(chain);
            }
        }
    }
    Err(ParseError::Malformed)
}

/// How much of its datagram's payload a payload is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All of it.
    Whole,
    /// Its beginning.
    First,
}

/// The transport of a datagram's part; off the fast path.
#[cold]
#[inline(never)]
fn transport_of(
    fragment: Fragment,
    family: Family,
    number: u8,
    payload: &[u8],
) -> Result<Transport, ParseError> {
    match fragment.offset {
        0 => transport(family, number, payload, Extent::First),
        _ => Ok(Transport::Fragment),
    }
}

/// What the payload of protocol `number` shows. Inlined by force: as a call it
/// makes reading a packet half as dear again, since its result, and then the
/// packet, go through memory.
#[inline(always)]
fn transport(
    family: Family,
    number: u8,
    payload: &[u8],
    extent: Extent,
) -> Result<Transport, ParseError> {
    let cut = match extent {
        Extent::Whole => ParseError::Malformed,
        Extent::First => ParseError::TinyFragment,
    };
    match number {
        protocol::TCP => {
            let header = TcpHeaderSlice::from_slice(payload).map_err(|error| match error {
                HeaderSliceError::Len(_) => cut,
                HeaderSliceError::Content(_) => ParseError::Malformed,
            })?;
            Ok(tcp(&header, payload.len()))
        }
        protocol::UDP => {
            let udp = UdpHeaderSlice::from_slice(payload).map_err(|_| cut)?;
            let length = usize::from(udp.length());
            // A fragment's is the length of the whole datagram.
            let beyond = extent == Extent::Whole && length > payload.len();
            if length < udp.slice().len() || beyond {
                return Err(ParseError::Malformed);
            }
            Ok(Transport::Udp {
                source: udp.source_port(),
                destination: udp.destination_port(),
            })
        }
        protocol::ICMP | protocol::ICMPV6 => match icmp_queries(family, number) {
            Some(pairs) => icmp(payload, pairs).ok_or(cut),
            None => Err(ParseError::Malformed),
        },
        _ => Ok(Transport::Other),
    }
}

/// A TCP header, with what the IP packet carries after it: `payload_length`
/// bytes together, of which the header is a part.
#[inline(always)]
pub(super) fn tcp(header: &TcpHeaderSlice<'_>, payload_length: usize) -> Transport {
    let flags = TcpFlags {
        syn: header.syn(),
        ack: header.ack(),
        fin: header.fin(),
        rst: header.rst(),
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an IP packet is shorter than 2^17 bytes"
    )]
    let carried = payload_length.wrapping_sub(header.slice().len()) as u32;
    let end = header
        .sequence_number()
        .wrapping_add(carried)
        .wrapping_add(u32::from(flags.syn) + u32::from(flags.fin));
    Transport::Tcp {
        source: header.source_port(),
        destination: header.destination_port(),
        flags,
        end,
        acknowledgement: header.acknowledgment_number(),
    }
}

/// The types of ICMP that ask and answer with an identifier (RFC 792, RFC 950).
const ICMP_QUERIES: [(u8, u8); 4] = [(8, 0), (13, 14), (15, 16), (17, 18)];
/// Likewise of ICMPv6 (RFC 4443 §4).
const ICMPV6_QUERIES: [(u8, u8); 1] = [(128, 129)];

/// Those of the ICMP with that protocol number, if it is that of the family. The other
/// one's no host understands, and no rule means (RFC 4443 §1).
#[inline(always)]
pub(super) fn icmp_queries(family: Family, number: u8) -> Option<&'static [(u8, u8)]> {
    match (family, number) {
        (Family::V4, protocol::ICMP) => Some(&ICMP_QUERIES),
        (Family::V6, protocol::ICMPV6) => Some(&ICMPV6_QUERIES),
        _ => None,
    }
}

/// ICMP and ICMPv6 share their first eight bytes; `pairs` are the types that
/// ask and answer. `None` without these bytes.
pub(super) fn icmp(payload: &[u8], pairs: &[(u8, u8)]) -> Option<Transport> {
    let &[kind, code, _, _, id_high, id_low, _, _, ..] = payload else {
        return None;
    };
    let pair = pairs
        .iter()
        .find(|(request, reply)| kind == *request || kind == *reply);
    Some(match pair {
        // These have code 0 and no other; what has one is a message by itself.
        Some((request, _)) if code == 0 => Transport::IcmpQuery {
            kind,
            code,
            id: u16::from_be_bytes([id_high, id_low]),
            request: kind == *request,
        },
        _ => Transport::Icmp { kind, code },
    })
}

#[cfg(test)]
mod tests;
