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

/// RFC 1812 §5.2.2, with and without options, for whole packets and for fragments.
#[test]
fn a_damaged_ipv4_header_is_malformed() {
    let plain = udp_v4(b"payload");
    let mut optional = plain.clone();
    optional[0] = 0x46;
    optional.splice(20..20, [1, 1, 1, 0]);
    let length = u16::try_from(optional.len()).unwrap();
    optional[2..4].copy_from_slice(&length.to_be_bytes());
    checksum::repair(&mut optional);
    for frame in [plain, optional, part_v4(MORE, protocol::UDP, &udp(8, b""))] {
        assert!(parse(&frame).is_ok());
        let header = usize::from(frame[0] & 0xf) * 4;
        for bit in 0..header * 8 {
            let mut damaged = frame.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&damaged), Err(ParseError::Malformed), "bit {bit}");
        }
        // Neither the payload nor bytes after the packet are checked.
        let mut other = frame.clone();
        *other.last_mut().unwrap() ^= 1;
        other.push(0xff);
        assert!(parse(&other).is_ok());
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
    for number in [50, 51, 135, 139, 140] {
        frame[40] = number;
        let packet = parse(&frame).unwrap();
        assert_eq!((packet.protocol, packet.transport_offset), (number, 48));
    }
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

const LATER: u16 = 0x0001; // offset 8
const MORE: u16 = 0x2000;
const DONT_FRAGMENT: u16 = 0x4000;

/// An IPv4 packet with these bytes 6 and 7 and identification 0x1234.
fn part_v4(flags_and_offset: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45, 0];
    bytes.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
    bytes.extend([0x12, 0x34]);
    bytes.extend(flags_and_offset.to_be_bytes());
    bytes.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend(payload);
    checksum::repair(&mut bytes);
    bytes
}

/// An IPv6 packet whose payload begins with the header `next`.
fn packet_v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    bytes.extend([next, 64]);
    bytes.extend([0xfd; 32]);
    bytes.extend(payload);
    bytes
}

/// A fragment header with identification 0xdead_beef, and what follows it.
fn part_v6(next: u8, units: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![next, 0];
    bytes.extend((units << 3 | u16::from(more)).to_be_bytes());
    bytes.extend(0xdead_beef_u32.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A TCP header of 20 bytes and `payload`: ports 1000 and 443, sequence
/// 0xffff_fff0, acknowledgement 77.
fn tcp(flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x03, 0xe8, 0x01, 0xbb, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 77];
    bytes.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

/// A UDP header of a datagram with `length` bytes, and `payload`.
fn udp(length: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x03, 0xe8, 0, 53];
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

#[test]
fn a_segment_shows_where_it_ends_and_what_it_acknowledges() {
    let end_of = |flags: u8, payload: &[u8]| {
        let frame = part_v4(DONT_FRAGMENT, protocol::TCP, &tcp(flags, payload));
        match parse(&frame).unwrap().transport {
            Transport::Tcp {
                end,
                acknowledgement: 77,
                ..
            } => end,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end_of(0x10, b""), 0xffff_fff0);
    assert_eq!(end_of(0x10, &[1; 15]), 0xffff_ffff);
    assert_eq!(end_of(0x02, b""), 0xffff_fff1, "SYN counts");
    assert_eq!(end_of(0x11, &[1; 15]), 0, "FIN counts, modulo 2^32");
    assert_eq!(end_of(0x03, &[1; 20]), 6, "both count");
}

#[test]
fn tcp_options_are_not_payload() {
    let mut segment = tcp(0x10, &[1, 1, 1, 1, 9, 9]);
    segment[12] = 0x60;
    let packet = parse(&part_v4(0, protocol::TCP, &segment)).unwrap();
    assert!(matches!(
        packet.transport,
        Transport::Tcp {
            end: 0xffff_fff2,
            ..
        }
    ));
}

#[test]
fn only_ipv4_without_its_flag_may_be_split() {
    let segment = tcp(0x10, b"");
    let may_not = |frame: &[u8]| parse(frame).unwrap().dont_fragment;
    assert!(!may_not(&part_v4(0, protocol::TCP, &segment)));
    assert!(may_not(&part_v4(DONT_FRAGMENT, protocol::TCP, &segment)));
    assert!(may_not(&packet_v6(protocol::TCP, &segment)));
}

#[test]
fn a_first_fragment_shows_its_transport() {
    // UDP's length is the whole datagram's, of which this is a part.
    let packet = parse(&part_v4(MORE, protocol::UDP, &udp(4000, &[7; 16]))).unwrap();
    assert_eq!(
        packet.fragment,
        Some(Fragment {
            id: 0x1234,
            offset: 0,
            length: 24,
            more: true,
            next: protocol::UDP
        })
    );
    assert_eq!(
        packet.transport,
        Transport::Udp {
            source: 1000,
            destination: 53
        }
    );
    let packet = parse(&packet_v6(
        44,
        &part_v6(protocol::TCP, 0, true, &tcp(0x02, &[0; 4])),
    ))
    .unwrap();
    assert_eq!(packet.transport_offset, 48);
    assert!(matches!(packet.transport, Transport::Tcp { .. }));
    assert_eq!(packet.fragment.unwrap().id, 0xdead_beef);
    assert_eq!(packet.fragment.unwrap().length, 24);
}

#[test]
fn a_later_fragment_shows_which_part_it_is_and_no_ports() {
    let packet = parse(&part_v4(0x0003, protocol::TCP, &[9; 5])).unwrap();
    assert_eq!(packet.transport, Transport::Fragment);
    assert_eq!(packet.protocol, protocol::TCP);
    assert_eq!(packet.transport_offset, 20);
    assert_eq!(
        packet.fragment,
        Some(Fragment {
            id: 0x1234,
            offset: 24,
            length: 5,
            more: false,
            next: protocol::TCP
        })
    );
    // Whatever the bytes look like: here the next header is said to be
    // destination options, and they are not followed.
    let packet = parse(&packet_v6(44, &part_v6(60, 3, true, &[0xff; 16]))).unwrap();
    assert_eq!(packet.transport, Transport::Fragment);
    assert_eq!(packet.protocol, 60);
    assert_eq!(packet.transport_offset, 48);
    let fragment = packet.fragment.unwrap();
    assert_eq!((fragment.offset, fragment.length), (24, 16));
    assert!(fragment.more);
}

#[test]
fn a_fragment_shows_the_header_that_all_its_datagrams_parts_name() {
    let mut rest = vec![17, 0, 1, 4, 0, 0, 0, 0];
    rest.extend(udp(4000, &[]));
    let packet = parse(&packet_v6(44, &part_v6(60, 0, true, &rest))).unwrap();
    assert_eq!(packet.protocol, protocol::UDP);
    assert_eq!(packet.transport_offset, 56);
    let fragment = packet.fragment.unwrap();
    assert_eq!(fragment.next, 60);
    assert_eq!(fragment.length, 16, "the extension header counts");
}

#[test]
fn headers_before_the_fragment_header_belong_to_each_fragment() {
    let mut payload = vec![44, 0, 1, 4, 0, 0, 0, 0];
    payload.extend(part_v6(protocol::UDP, 2, false, &[1; 9]));
    let packet = parse(&packet_v6(60, &payload)).unwrap();
    assert_eq!(packet.transport_offset, 56);
    let fragment = packet.fragment.unwrap();
    assert_eq!((fragment.offset, fragment.length), (16, 9));
}

#[test]
fn a_fragment_header_around_a_whole_datagram_makes_no_fragment() {
    let packet = parse(&packet_v6(
        44,
        &part_v6(protocol::UDP, 0, false, &udp(11, b"abc")),
    ))
    .unwrap();
    assert_eq!(packet.fragment, None);
    assert_eq!(packet.protocol, protocol::UDP);
    let too_long = part_v6(protocol::UDP, 0, false, &udp(12, b"abc"));
    assert_eq!(
        parse(&packet_v6(44, &too_long)),
        Err(ParseError::Malformed),
        "and is checked like one"
    );
}

#[test]
fn a_first_fragment_without_its_whole_transport_header_is_tiny() {
    let headers = [
        (protocol::TCP, tcp(0x02, &[])),
        (protocol::UDP, udp(4000, &[])),
        (protocol::ICMP, vec![8, 0, 0, 0, 0, 7, 0, 1]),
    ];
    for (protocol, header) in headers {
        // Room for a fragment's multiple of 8.
        let mut payload = header.clone();
        payload.resize(24, 0);
        for length in [8, 16, 24] {
            let frame = part_v4(MORE, protocol, &payload[..length]);
            let parsed = parse(&frame);
            if length < header.len() {
                assert_eq!(parsed, Err(ParseError::TinyFragment), "{protocol} {length}");
            } else {
                assert!(parsed.is_ok(), "{protocol} {length}");
            }
        }
    }
    // TCP's options are part of its header.
    let mut segment = tcp(0x02, &[1; 12]);
    segment[12] = 0x80;
    assert!(parse(&part_v4(MORE, protocol::TCP, &segment)).is_ok());
    assert_eq!(
        parse(&part_v4(MORE, protocol::TCP, &segment[..24])),
        Err(ParseError::TinyFragment)
    );
    segment[12] = 0x40;
    assert_eq!(
        parse(&part_v4(MORE, protocol::TCP, &segment)),
        Err(ParseError::Malformed),
        "a data offset of 16 bytes is not cut but wrong"
    );
}

#[test]
fn a_first_fragment_holds_the_whole_chain_of_headers() {
    // Destination options of 16 bytes, then UDP.
    let mut rest = vec![17, 1, 1, 12];
    rest.extend([0; 12]);
    rest.extend(udp(4000, &[]));
    for length in [8, 16, 24] {
        let parsed = parse(&packet_v6(44, &part_v6(60, 0, true, &rest[..length])));
        match length {
            24 => assert!(parsed.is_ok()),
            _ => assert_eq!(parsed, Err(ParseError::TinyFragment), "{length}"),
        }
    }
}

#[test]
fn parts_that_no_datagram_has_are_malformed() {
    let malformed_v4 = |flags_and_offset: u16, length: usize| {
        let frame = part_v4(flags_and_offset, 99, &vec![0; length]);
        assert_eq!(
            parse(&frame),
            Err(ParseError::Malformed),
            "{flags_and_offset:#x} {length}"
        );
    };
    malformed_v4(MORE | LATER, 12); // neither the last nor a multiple of 8
    malformed_v4(MORE, 12);
    malformed_v4(LATER, 0); // empty
    malformed_v4(MORE, 0);
    malformed_v4(0x1fff, 8); // ends at 65,536
    malformed_v4(MORE | 0x1fff, 8);
    assert!(parse(&part_v4(0x1fff, 99, &[0; 7])).is_ok());

    let malformed_v6 = |units: u16, more: bool, length: usize| {
        let frame = packet_v6(44, &part_v6(99, units, more, &vec![0; length]));
        assert_eq!(
            parse(&frame),
            Err(ParseError::Malformed),
            "{units} {more} {length}"
        );
    };
    malformed_v6(1, true, 12);
    malformed_v6(0, true, 12);
    malformed_v6(1, false, 0);
    malformed_v6(0, true, 0);
    malformed_v6(0x1fff, false, 8);
}

#[test]
fn a_fragment_of_a_fragment_is_malformed() {
    let inner = part_v6(protocol::UDP, 0, false, &udp(8, &[]));
    for (units, more) in [(0, true), (0, false)] {
        let frame = packet_v6(44, &part_v6(44, units, more, &inner));
        assert_eq!(parse(&frame), Err(ParseError::Malformed));
    }
}

#[test]
fn every_cut_of_a_fragment_is_malformed() {
    for frame in [
        part_v4(MORE, protocol::UDP, &udp(4000, &[7; 16])),
        part_v4(LATER, protocol::UDP, &[7; 16]),
        packet_v6(44, &part_v6(protocol::TCP, 0, true, &tcp(2, &[0; 4]))),
        packet_v6(44, &part_v6(protocol::TCP, 5, false, &[1; 3])),
    ] {
        assert!(parse(&frame).is_ok());
        for end in 0..frame.len() {
            assert_eq!(parse(&frame[..end]), Err(ParseError::Malformed), "{end}");
        }
    }
}

proptest::proptest! {
    #[test]
    fn whatever_is_read_lies_within_the_frame(
        version in proptest::sample::select(vec![0x45u8, 0x46, 0x4f, 0x60]),
        next in proptest::sample::select(vec![0u8, 1, 6, 17, 43, 44, 58, 60, 99]),
        mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
    ) {
        // Random bytes are hardly ever packets; these get past the first checks.
        let length = bytes.len();
        if length >= 40 {
            bytes[0] = version;
            let total = u16::try_from(length).unwrap();
            if version == 0x60 {
                bytes[4..6].copy_from_slice(&(total - 40).to_be_bytes());
                bytes[6] = next;
            } else {
                bytes[2..4].copy_from_slice(&total.to_be_bytes());
                bytes[9] = next;
                checksum::repair(&mut bytes);
            }
        }
        if let Ok(packet) = parse(&bytes) {
            assert!(packet.length <= length);
            assert!(packet.transport_offset <= packet.length);
            let later = packet.fragment.is_some_and(|fragment| fragment.offset > 0);
            assert_eq!(later, packet.transport == Transport::Fragment);
        }
    }
}
