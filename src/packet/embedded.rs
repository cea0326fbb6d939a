//! The packet that an ICMP error is about.

use std::net::IpAddr;

use etherparse::err::tcp::HeaderSliceError;
use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeader, TcpHeaderSlice};

use super::parse::{self, Family};
use super::{Packet, TcpFlags, Transport};
use crate::model::protocol;

/// The header of an ICMP error, before the packet that it quotes.
const ERROR_HEADER: usize = 8;

/// The headers of the packet that the ICMP error `packet`, read from `frame`,
/// quotes, as far as a flow key needs them. `None` unless it is an error
/// (RFC 792: 3, 11, 12; RFC 4443: 1 to 4) that quotes addresses and, of TCP,
/// UDP and ICMP questions, the first 8 bytes of the transport header.
///
/// `None` as well if the quoted packet contradicts itself, is a fragment other
/// than the first, or an ICMP message that neither asks nor answers: such
/// belong to no flow.
///
/// Most of the quoted packet is usually missing. `length` is what its header
/// says, `transport_offset` counts from the start of the quote, and of a TCP
/// header that is cut short flags and numbers are empty.
pub fn embedded(frame: &[u8], packet: &Packet) -> Option<Packet> {
    let quoted = quoted(frame, packet)?;
    match quoted.transport {
        Transport::Icmp { .. } | Transport::Fragment => None,
        _ => Some(quoted),
    }
}

/// Like [`embedded`], but includes packets that belong to no flow.
pub(super) fn quoted(frame: &[u8], packet: &Packet) -> Option<Packet> {
    if !packet.is_icmp_error() {
        return None;
    }
    let quote = frame.get(packet.transport_offset.checked_add(ERROR_HEADER)?..packet.length)?;
    match packet.source {
        IpAddr::V4(_) => quoted_v4(quote),
        IpAddr::V6(_) => quoted_v6(quote),
    }
}

fn quoted_v4(quote: &[u8]) -> Option<Packet> {
    let header = Ipv4HeaderSlice::from_slice(quote).ok()?;
    let length = usize::from(header.total_len());
    let transport_offset = header.slice().len();
    let payload_length = length.checked_sub(transport_offset)?;
    // What follows the quoted packet is padding and extensions (RFC 4884).
    let here = &quote[..quote.len().min(length)];
    let fragment = if header.is_fragmenting_payload() {
        Some(parse::fragment_v4(&header, payload_length).ok()?)
    } else {
        None
    };
    let protocol = header.protocol().0;
    let transport = if fragment.is_some_and(|fragment| fragment.offset > 0) {
        Transport::Fragment
    } else {
        let payload = here.get(transport_offset..)?;
        quoted_transport(
            Family::V4,
            protocol,
            payload,
            payload_length,
            fragment.is_none(),
        )?
    };
    Some(Packet {
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

fn quoted_v6(quote: &[u8]) -> Option<Packet> {
    let header = Ipv6HeaderSlice::from_slice(quote).ok()?;
    let header_length = header.slice().len();
    let length = header_length + usize::from(header.payload_length());
    let here = &quote[..quote.len().min(length)];
    let chain = parse::skip_extensions(here, header.next_header(), header_length, length).ok()?;
    let fragment = chain.fragment;
    let transport = if fragment.is_some_and(|fragment| fragment.offset > 0) {
        Transport::Fragment
    } else {
        let payload = here.get(chain.offset..)?;
        let payload_length = length.checked_sub(chain.offset)?;
        quoted_transport(
            Family::V6,
            chain.next,
            payload,
            payload_length,
            fragment.is_none(),
        )?
    };
    Some(Packet {
        source: IpAddr::V6(header.source_addr()),
        destination: IpAddr::V6(header.destination_addr()),
        protocol: chain.next,
        transport,
        length,
        transport_offset: chain.offset,
        fragment,
        dont_fragment: true,
    })
}

/// The transport whose header begins with `payload`, what is left of
/// `payload_length` bytes; `whole` if these were the whole datagram.
fn quoted_transport(
    family: Family,
    number: u8,
    payload: &[u8],
    payload_length: usize,
    whole: bool,
) -> Option<Transport> {
    match number {
        protocol::TCP => {
            match TcpHeaderSlice::from_slice(payload) {
                Ok(header) => return Some(parse::tcp(&header, payload_length)),
                Err(HeaderSliceError::Content(_)) => return None,
                Err(HeaderSliceError::Len(_)) => {}
            }
            // What had less than a header was no segment, nor a first fragment
            // that any firewall lets pass.
            let (source, destination, _) = first_eight(payload)?;
            (payload_length >= TcpHeader::MIN_LEN).then_some(Transport::Tcp {
                source,
                destination,
                flags: TcpFlags::default(),
                end: 0,
                acknowledgement: 0,
            })
        }
        protocol::UDP => {
            let (source, destination, length) = first_eight(payload)?;
            let length = usize::from(length);
            let consistent = length >= 8 && (length <= payload_length || !whole);
            consistent.then_some(Transport::Udp {
                source,
                destination,
            })
        }
        protocol::ICMP | protocol::ICMPV6 => {
            parse::icmp(payload, parse::icmp_queries(family, number)?)
        }
        _ => Some(Transport::Other),
    }
}

/// Source port, destination port and the next two bytes, of at least 8.
fn first_eight(payload: &[u8]) -> Option<(u16, u16, u16)> {
    let &[s0, s1, d0, d1, l0, l1, _, _, ..] = payload else {
        return None;
    };
    Some((
        u16::from_be_bytes([s0, s1]),
        u16::from_be_bytes([d0, d1]),
        u16::from_be_bytes([l0, l1]),
    ))
}

#[cfg(test)]
mod tests;
