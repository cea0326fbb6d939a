use super::*;
use crate::packet::{ParseError, build, parse};
use proptest::prelude::any;

const CLIENT: &str = "198.51.100.7";
const SERVER: &str = "10.0.1.10";
const CLIENT_V6: &str = "2001:db8::7";
const SERVER_V6: &str = "fd00::10";

fn segment() -> Transport {
    Transport::Tcp {
        source: 50_000,
        destination: 443,
        flags: TcpFlags {
            ack: true,
            ..TcpFlags::default()
        },
        end: 1_005,
        acknowledgement: 77,
    }
}

fn datagram() -> Transport {
    Transport::Udp {
        source: 50_000,
        destination: 53,
    }
}

fn question(kind: u8) -> Transport {
    Transport::IcmpQuery {
        kind,
        code: 0,
        id: 77,
        request: true,
    }
}

/// A packet from the client to the server.
fn probe(transport: Transport, v6: bool) -> Vec<u8> {
    let (from, to) = if v6 {
        (CLIENT_V6, SERVER_V6)
    } else {
        (CLIENT, SERVER)
    };
    let protocol = match transport {
        Transport::Tcp { .. } => protocol::TCP,
        Transport::Udp { .. } => protocol::UDP,
        _ => 99,
    };
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    build(from, to, protocol, transport, b"hello").unwrap()
}

/// The error of that type, from the server, with this quote.
fn error(kind: u8, quote: &[u8], v6: bool) -> Vec<u8> {
    let (from, to) = if v6 {
        (SERVER_V6, CLIENT_V6)
    } else {
        (SERVER, CLIENT)
    };
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    build(from, to, 0, Transport::Icmp { kind, code: 0 }, quote).unwrap()
}

fn quoted_in(frame: &[u8]) -> Option<Packet> {
    embedded(frame, &parse(frame).unwrap())
}

/// What an error about `quote` says.
fn read(quote: &[u8], v6: bool) -> Option<Packet> {
    quoted_in(&error(if v6 { 1 } else { 3 }, quote, v6))
}

#[test]
fn a_whole_quoted_packet_reads_as_the_packet_itself() {
    for transport in [segment(), datagram(), question(8), Transport::Other] {
        let quote = probe(transport, false);
        assert_eq!(read(&quote, false), parse(&quote).ok(), "{transport:?}");
    }
    for transport in [segment(), datagram(), question(128), Transport::Other] {
        let quote = probe(transport, true);
        assert_eq!(read(&quote, true), parse(&quote).ok(), "{transport:?}");
    }
}

#[test]
fn eight_bytes_of_transport_are_enough() {
    for v6 in [false, true] {
        let header = if v6 { 40 } else { 20 };
        for transport in [segment(), datagram(), question(if v6 { 128 } else { 8 })] {
            let quote = probe(transport, v6);
            let whole = parse(&quote).unwrap();
            for end in 0..header + 8 {
                assert_eq!(read(&quote[..end], v6), None, "{end} {transport:?}");
            }
            for end in header + 8..quote.len() {
                let packet = read(&quote[..end], v6).unwrap();
                assert_eq!(packet.length, whole.length);
                let cut = matches!(transport, Transport::Tcp { .. }) && end < header + 20;
                let expected = if cut {
                    Transport::Tcp {
                        source: 50_000,
                        destination: 443,
                        flags: TcpFlags::default(),
                        end: 0,
                        acknowledgement: 0,
                    }
                } else {
                    whole.transport
                };
                assert_eq!(packet.transport, expected, "{end}");
                assert_eq!(packet.source, whole.source);
                assert_eq!(packet.destination, whole.destination);
                assert_eq!(packet.protocol, whole.protocol);
            }
        }
    }
}

#[test]
fn only_errors_quote_a_packet() {
    let quote = probe(datagram(), false);
    for kind in 0..=255 {
        let frame = error(kind, &quote, false);
        let expected = matches!(kind, 3 | 11 | 12);
        assert_eq!(quoted_in(&frame).is_some(), expected, "{kind}");
    }
    let quote = probe(datagram(), true);
    for kind in 0..=255 {
        let frame = error(kind, &quote, true);
        assert_eq!(quoted_in(&frame).is_some(), matches!(kind, 1..=4), "{kind}");
    }
    assert_eq!(quoted_in(&probe(datagram(), false)), None);
    // ICMP over IPv6 and the reverse are nobody's errors, and no packets.
    let (from, to) = (SERVER_V6.parse().unwrap(), CLIENT_V6.parse().unwrap());
    let mut payload = vec![3, 0, 0, 0, 0, 0, 0, 0];
    payload.extend(&quote);
    let frame = build(from, to, protocol::ICMP, Transport::Other, &payload).unwrap();
    assert_eq!(parse(&frame), Err(ParseError::Malformed));
    let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let frame = build(from, to, protocol::ICMPV6, Transport::Other, &payload).unwrap();
    assert_eq!(parse(&frame), Err(ParseError::Malformed));
}

#[test]
fn a_quote_of_the_other_family_is_none() {
    assert_eq!(read(&probe(datagram(), true), false), None);
    assert_eq!(read(&probe(datagram(), false), true), None);
}

#[test]
fn errors_about_errors_and_announcements_quote_none() {
    for kind in [3, 4, 5, 9, 11, 12] {
        let quote = error(kind, &probe(datagram(), false), false);
        assert_eq!(read(&quote, false), None, "{kind}");
    }
    for kind in [1, 2, 3, 4, 133, 135] {
        let quote = error(kind, &probe(datagram(), true), true);
        assert_eq!(read(&quote, true), None, "{kind}");
    }
}

#[test]
fn an_answer_that_was_not_wanted_is_quoted() {
    let answer = Transport::IcmpQuery {
        kind: 0,
        code: 0,
        id: 77,
        request: false,
    };
    let quote = probe(answer, false);
    assert_eq!(read(&quote, false).unwrap().transport, answer);
}

#[test]
fn of_fragments_only_the_first_is_quoted() {
    let mut first = probe(datagram(), false);
    first[6] = 0x20; // more to come
    first[25] = 200; // UDP: a part of 200 bytes
    first.truncate(28);
    first[3] = 28 + 16;
    let packet = read(&first, false).unwrap();
    assert_eq!(packet.transport, datagram());
    let fragment = packet.fragment.unwrap();
    assert_eq!((fragment.offset, fragment.length), (0, 24));

    let mut later = probe(datagram(), false);
    later[7] = 1; // offset 8
    assert_eq!(read(&later, false), None);
    let mut odd = probe(datagram(), false);
    odd[6] = 0x20; // 13 bytes and more to come: no such fragment
    assert_eq!(read(&odd, false), None);
}

#[test]
fn what_follows_the_quoted_packet_is_not_part_of_it() {
    let mut quote = probe(datagram(), false);
    quote.truncate(24);
    quote[3] = 24; // says itself that it has no more than four bytes of UDP
    quote.extend([0; 104]);
    assert_eq!(read(&quote, false), None);
}

#[test]
fn quotes_that_contradict_themselves_are_none() {
    let spoilt = |transport, at: usize, value: u8| {
        let mut quote = probe(transport, false);
        quote[at] = value;
        read(&quote, false)
    };
    assert!(spoilt(datagram(), 1, 4).is_some(), "the type of service");
    assert_eq!(spoilt(datagram(), 0, 0x44), None, "header of 16 bytes");
    assert_eq!(spoilt(datagram(), 0, 0x65), None, "version 6");
    assert_eq!(spoilt(datagram(), 3, 19), None, "shorter than its header");
    assert_eq!(spoilt(datagram(), 25, 7), None, "UDP without its header");
    assert_eq!(spoilt(datagram(), 25, 14), None, "UDP longer than IP");
    assert_eq!(spoilt(segment(), 3, 39), None, "TCP without its header");
    assert_eq!(spoilt(segment(), 32, 0x40), None, "TCP header of 16 bytes");
}

#[test]
fn extension_headers_are_followed_inside_the_quote() {
    let quote_of = |chain: &[u8], next: u8| {
        let plain = probe(datagram(), true);
        let mut quote = plain[..40].to_vec();
        quote[6] = next;
        quote[5] = u8::try_from(plain.len() - 40 + chain.len()).unwrap();
        quote.extend(chain);
        quote.extend(&plain[40..]);
        quote
    };
    let options = [protocol::UDP, 0, 1, 4, 0, 0, 0, 0];
    let quote = quote_of(&options, 60);
    let packet = read(&quote, true).unwrap();
    assert_eq!(packet.transport, datagram());
    assert_eq!(packet.transport_offset, 48);
    for end in 0..56 {
        assert_eq!(read(&quote[..end], true), None, "{end}");
    }
    assert!(read(&quote[..56], true).is_some());

    let header = |units: u8, more: u8| [protocol::UDP, 0, 0, units << 3 | more, 0, 0, 0, 9];
    let whole = read(&quote_of(&header(0, 0), 44), true).unwrap();
    assert_eq!(whole.fragment, None);
    let mut first = quote_of(&header(0, 1), 44);
    first[5] = 8 + 16;
    assert_eq!(read(&first, true).unwrap().fragment.unwrap().id, 9);
    assert_eq!(read(&quote_of(&header(1, 0), 44), true), None);
}

#[test]
fn a_packet_that_is_not_in_the_frame_quotes_none() {
    let frame = error(3, &probe(datagram(), false), false);
    let packet = parse(&frame).unwrap();
    for end in 0..frame.len() {
        assert_eq!(embedded(&frame[..end], &packet), None);
    }
}

proptest::proptest! {
    #[test]
    fn random_quotes_do_no_harm(
        kind in 1u8..13,
        v6: bool,
        quote in proptest::collection::vec(any::<u8>(), 0..120),
        first in proptest::sample::select(vec![0x45u8, 0x46, 0x60]),
        next in proptest::sample::select(vec![0u8, 1, 6, 17, 43, 44, 58, 60]),
    ) {
        let mut quote = quote;
        if quote.len() > 9 {
            quote[0] = first;
            quote[if v6 { 6 } else { 9 }] = next;
        }
        if let Some(packet) = quoted_in(&error(kind, &quote, v6)) {
            assert!(packet.transport_offset <= quote.len());
            assert_eq!(packet.source.is_ipv6(), v6);
            assert!(!packet.is_icmp_error());
        }
    }
}
