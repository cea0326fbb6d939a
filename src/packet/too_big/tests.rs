use super::*;
use crate::packet::{build, embedded, parse};
use etherparse::{Icmpv4Slice, Icmpv6Slice, Ipv4HeaderSlice};

const A: &str = "10.0.0.1";
const B: &str = "198.51.100.7";
const A_V6: &str = "fd00::1";
const B_V6: &str = "2001:db8::7";

const DATAGRAM: Transport = Transport::Udp {
    source: 50_000,
    destination: 53,
};

/// A UDP packet from A to B of `length` bytes.
fn packet(length: usize, v6: bool) -> Vec<u8> {
    let (from, to, headers) = if v6 { (A_V6, B_V6, 48) } else { (A, B, 28) };
    let payload: Vec<u8> = (0..length - headers)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    build(from, to, protocol::UDP, DATAGRAM, &payload).unwrap()
}

/// The answer to `frame`, whose checksums are found to be right.
fn answer(frame: &[u8], mtu: u16) -> Vec<u8> {
    let packet = parse(frame).unwrap();
    let mut answer = frame.to_vec();
    let length = too_big(&mut answer, &packet, mtu).unwrap();
    assert!(length <= packet.length);
    answer.truncate(length);
    let read = parse(&answer).unwrap();
    assert_eq!(read.length, length);
    assert_eq!(read.source, packet.destination);
    assert_eq!(read.destination, packet.source);
    match (read.source, read.destination) {
        (IpAddr::V4(_), _) => {
            let header = Ipv4HeaderSlice::from_slice(&answer).unwrap().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let sum = Sum16BitWords::new().add_slice(&answer[20..]);
            assert_eq!(sum.ones_complement(), 0);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let icmp = Icmpv6Slice::from_slice(&answer[40..]).unwrap();
            assert!(icmp.is_checksum_valid(from.octets(), to.octets()));
        }
        _ => panic!("families differ"),
    }
    answer
}

#[test]
fn ipv4_is_told_the_mtu_and_which_packet_it_was() {
    let frame = packet(9001, false);
    let answer = answer(&frame, 1500);
    assert_eq!(answer.len(), 576);
    let icmp = Icmpv4Slice::from_slice(&answer[20..]).unwrap();
    assert_eq!((icmp.type_u8(), icmp.code_u8()), (3, 4));
    assert_eq!(icmp.bytes5to8(), [0, 0, 0x05, 0xdc]);
    assert_eq!(&answer[28..], &frame[..548]);
    let read = parse(&answer).unwrap();
    assert_eq!(embedded(&answer, &read).unwrap(), parse(&frame).unwrap());
}

#[test]
fn ipv6_is_told_the_mtu_and_which_packet_it_was() {
    let frame = packet(9001, true);
    let answer = answer(&frame, 1500);
    assert_eq!(answer.len(), 1280);
    let icmp = Icmpv6Slice::from_slice(&answer[40..]).unwrap();
    assert_eq!((icmp.type_u8(), icmp.code_u8()), (2, 0));
    assert_eq!(icmp.bytes5to8(), [0, 0, 0x05, 0xdc]);
    assert_eq!(&answer[48..], &frame[..1232]);
    let read = parse(&answer).unwrap();
    assert_eq!(embedded(&answer, &read).unwrap(), parse(&frame).unwrap());
}

#[test]
fn answers_to_packets_of_any_length_are_right() {
    for length in [56, 57, 100, 575, 576, 577, 1281, 1501] {
        assert_eq!(answer(&packet(length, false), 68).len(), length.min(576));
    }
    for length in [96, 97, 576, 1279, 1280, 1281, 1501] {
        assert_eq!(answer(&packet(length, true), 68).len(), length.min(1280));
    }
}

#[test]
fn what_follows_the_packet_in_the_frame_stays() {
    let mut frame = packet(1600, false);
    let packet = parse(&frame).unwrap();
    frame.extend([0xaa; 32]);
    too_big(&mut frame, &packet, 1500).unwrap();
    assert_eq!(&frame[1600..], &[0xaa; 32]);
}

#[test]
fn errors_and_later_fragments_are_not_answered() {
    let (a, b) = (A.parse().unwrap(), B.parse().unwrap());
    let (a_v6, b_v6) = (A_V6.parse().unwrap(), B_V6.parse().unwrap());
    let icmp = |kind, v6: bool| {
        let (from, to) = if v6 { (a_v6, b_v6) } else { (a, b) };
        let transport = Transport::Icmp { kind, code: 0 };
        build(from, to, 0, transport, &[0; 1600]).unwrap()
    };
    let unanswered = |frame: &[u8]| {
        let packet = parse(frame).unwrap();
        let mut after = frame.to_vec();
        assert_eq!(too_big(&mut after, &packet, 1500), None);
        assert_eq!(after, frame, "left as it was");
    };
    for kind in [3, 11, 12] {
        unanswered(&icmp(kind, false));
    }
    for kind in [1, 2, 3, 4] {
        unanswered(&icmp(kind, true));
    }
    let mut later = packet(1600, false);
    later[7] = 1; // offset 8
    crate::packet::repair(&mut later);
    unanswered(&later);

    let ping = Transport::IcmpQuery {
        kind: 8,
        code: 0,
        id: 1,
        request: true,
    };
    answer(&build(a, b, 0, ping, &[0; 1600]).unwrap(), 1500);
    let mut first = packet(1604, false);
    first[6] = 0x60; // not to be split, more to come
    crate::packet::repair(&mut first);
    answer(&first, 1500);
}

#[test]
fn a_frame_shorter_than_its_packet_gets_no_answer() {
    let frame = packet(1600, false);
    let packet = parse(&frame).unwrap();
    assert_eq!(too_big(&mut frame[..500].to_vec(), &packet, 1500), None);
    assert_eq!(too_big(&mut [], &packet, 1500), None);
}

#[test]
fn a_packet_too_short_to_be_quoted_gets_no_answer() {
    for length in 28..56 {
        let mut frame = packet(length, false);
        let packet = parse(&frame).unwrap();
        assert_eq!(too_big(&mut frame, &packet, 20), None, "{length}");
    }
}
