//! Bytes to [`Packet`], with `etherparse`'s zero-copy header views.

use std::net::IpAddr;

use etherparse::{
    IpNumber, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice,
    TcpHeaderSlice, UdpHeaderSlice,
};

use super::{Packet, TcpFlags, Transport};
use crate::model::protocol;

/// Longest chain of IPv6 extension headers that is followed. RFC 8200 §4.1
/// lists six kinds that may precede the payload, one of them twice; a longer
/// chain only serves to make the reader work.
const MAX_EXTENSIONS: usize = 8;

/// Why bytes are not a packet that can be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A header is cut short, contradicts the length, or is no IP header.
    #[error("not a whole IP packet with consistent headers")]
    Malformed,
    /// A first fragment that doesn't hold the whole transport header.
    #[error("a first fragment too short to show its ports")]
    TinyFragment,
}

/// Reads the headers of the IP packet at the start of `frame`.
///
/// # Errors
/// [`ParseError::Malformed`] unless every header is whole and every length
/// agrees; [`ParseError::TinyFragment`] for every fragment, the first included.
pub fn parse(frame: &[u8]) -> Result<Packet, ParseError> {
    match frame.first().map(|byte| byte >> 4) {
        Some(4) => parse_v4(frame),
        Some(6) => parse_v6(frame),
        _ => Err(ParseError::Malformed),
    }
}

fn parse_v4(frame: &[u8]) -> Result<Packet, ParseError> {
    let header = Ipv4HeaderSlice::from_slice(frame).map_err(|_| ParseError::Malformed)?;
    let length = usize::from(header.total_len());
    let transport_offset = header.slice().len();
    let payload = frame
        .get(transport_offset..length)
        .ok_or(ParseError::Malformed)?;
    if header.is_fragmenting_payload() {
        return Err(ParseError::TinyFragment);
    }
    let protocol = header.protocol().0;
    Ok(Packet {
        source: IpAddr::V4(header.source_addr()),
        destination: IpAddr::V4(header.destination_addr()),
        protocol,
        transport: transport(protocol, payload)?,
        length,
        transport_offset,
        fragment: None,
        dont_fragment: true,
    })
}

fn parse_v6(frame: &[u8]) -> Result<Packet, ParseError> {
    let header = Ipv6HeaderSlice::from_slice(frame).map_err(|_| ParseError::Malformed)?;
    let length = header.slice().len() + usize::from(header.payload_length());
    let packet = frame.get(..length).ok_or(ParseError::Malformed)?;
    let (next, transport_offset) =
        skip_extensions(packet, header.next_header(), header.slice().len())?;
    Ok(Packet {
        source: IpAddr::V6(header.source_addr()),
        destination: IpAddr::V6(header.destination_addr()),
        protocol: next.0,
        transport: transport(next.0, &packet[transport_offset..])?,
        length,
        transport_offset,
        fragment: None,
        dont_fragment: true,
    })
}

/// The protocol after the extension headers, and where it starts. AH and ESP
/// count as protocols of their own, as they do over IPv4.
fn skip_extensions(
    packet: &[u8],
    mut next: IpNumber,
    mut offset: usize,
) -> Result<(IpNumber, usize), ParseError> {
    for _ in 0..=MAX_EXTENSIONS {
        let rest = packet.get(offset..).ok_or(ParseError::Malformed)?;
        match next {
            IpNumber::IPV6_HEADER_HOP_BY_HOP
            | IpNumber::IPV6_ROUTE_HEADER
            | IpNumber::IPV6_DESTINATION_OPTIONS => {
                let extension =
                    Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| ParseError::Malformed)?;
                next = extension.next_header();
                offset += extension.slice().len();
            }
            IpNumber::IPV6_FRAGMENTATION_HEADER => {
                let fragment =
                    Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| ParseError::Malformed)?;
                if fragment.is_fragmenting_payload() {
                    return Err(ParseError::TinyFragment);
                }
                next = fragment.next_header();
                offset += fragment.slice().len();
            }
            _ => return Ok((next, offset)),
        }
    }
    Err(ParseError::Malformed)
}

fn transport(number: u8, payload: &[u8]) -> Result<Transport, ParseError> {
    match number {
        protocol::TCP => {
            let tcp = TcpHeaderSlice::from_slice(payload).map_err(|_| ParseError::Malformed)?;
            Ok(Transport::Tcp {
                source: tcp.source_port(),
                destination: tcp.destination_port(),
                flags: TcpFlags {
                    syn: tcp.syn(),
                    ack: tcp.ack(),
                    fin: tcp.fin(),
                    rst: tcp.rst(),
                },
                end: 0,
                acknowledgement: tcp.acknowledgment_number(),
            })
        }
        protocol::UDP => {
            let udp = UdpHeaderSlice::from_slice(payload).map_err(|_| ParseError::Malformed)?;
            let length = usize::from(udp.length());
            if length < udp.slice().len() || length > payload.len() {
                return Err(ParseError::Malformed);
            }
            Ok(Transport::Udp {
                source: udp.source_port(),
                destination: udp.destination_port(),
            })
        }
        protocol::ICMP => icmp(payload, &[(8, 0), (13, 14), (15, 16), (17, 18)]),
        protocol::ICMPV6 => icmp(payload, &[(128, 129)]),
        _ => Ok(Transport::Other),
    }
}

/// ICMP and ICMPv6 share their first eight bytes; `pairs` are the types that
/// ask and answer with an identifier (RFC 792, RFC 950, RFC 4443 §4).
fn icmp(payload: &[u8], pairs: &[(u8, u8)]) -> Result<Transport, ParseError> {
    let &[kind, code, _, _, id_high, id_low, _, _, ..] = payload else {
        return Err(ParseError::Malformed);
    };
    let pair = pairs
        .iter()
        .find(|(request, reply)| kind == *request || kind == *reply);
    Ok(match pair {
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
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn udp_v4(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1000, 53)
            .write(&mut bytes, payload)
            .unwrap();
        bytes
    }

    #[test]
    fn a_udp_packet_shows_addresses_ports_and_length() {
        let frame = udp_v4(b"hello");
        let packet = parse(&frame).unwrap();
        assert_eq!(packet.source.to_string(), "10.0.0.1");
        assert_eq!(packet.destination.to_string(), "10.0.0.2");
        assert_eq!(packet.length, 33);
        assert_eq!(
            packet.transport,
            Transport::Udp {
                source: 1000,
                destination: 53
            }
        );
    }

    #[test]
    fn bytes_after_the_packet_are_not_part_of_it() {
        let mut frame = udp_v4(b"hello");
        frame.extend([0; 9]);
        assert_eq!(parse(&frame).unwrap().length, 33);
    }

    #[test]
    fn every_cut_of_a_packet_is_malformed() {
        let frame = udp_v4(b"hello");
        for end in 0..frame.len() {
            assert_eq!(parse(&frame[..end]), Err(ParseError::Malformed), "{end}");
        }
    }

    #[test]
    fn lengths_that_contradict_each_other_are_malformed() {
        let mut frame = udp_v4(b"hello");
        frame[25] = 14; // UDP length beyond the IP payload
        assert_eq!(parse(&frame), Err(ParseError::Malformed));
        let mut frame = udp_v4(b"hello");
        frame[25] = 7; // shorter than its own header
        assert_eq!(parse(&frame), Err(ParseError::Malformed));
    }

    #[test]
    fn fragments_are_told_apart_even_the_first() {
        let mut frame = udp_v4(b"hello");
        frame[6] = 0x20; // more fragments
        assert_eq!(parse(&frame), Err(ParseError::TinyFragment));
        let mut frame = udp_v4(b"hello");
        frame[7] = 1; // offset 8
        assert_eq!(parse(&frame), Err(ParseError::TinyFragment));
    }

    #[test]
    fn ipv6_extension_headers_are_skipped_up_to_the_transport() {
        let mut frame = vec![
            0x60, 0, 0, 0, 0, 16, 60, 64, // next: destination options
        ];
        frame.extend([0xfd; 32]);
        frame.extend([17, 0, 1, 4, 0, 0, 0, 0]); // next: UDP
        frame.extend([0x03, 0xe8, 0, 53, 0, 8, 0, 0]);
        let packet = parse(&frame).unwrap();
        assert_eq!(packet.protocol, protocol::UDP);
        assert_eq!(packet.transport_offset, 48);
    }

    #[test]
    fn an_endless_chain_of_extension_headers_is_malformed() {
        let mut frame = vec![0x60, 0, 0, 0, 0, 240, 60, 64];
        frame.extend([0xfd; 32]);
        for _ in 0..30 {
            frame.extend([60, 0, 1, 4, 0, 0, 0, 0]);
        }
        assert_eq!(parse(&frame), Err(ParseError::Malformed));
    }

    #[test]
    fn echo_shows_who_asks_and_the_identifier() {
        let mut frame = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .icmpv4_echo_request(77, 1)
            .write(&mut frame, &[])
            .unwrap();
        assert_eq!(
            parse(&frame).unwrap().transport,
            Transport::IcmpQuery {
                kind: 8,
                code: 0,
                id: 77,
                request: true
            }
        );
    }
}
