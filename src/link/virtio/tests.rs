use std::net::IpAddr;

use super::*;
use crate::model::protocol;
use crate::packet::{TcpFlags, Transport, build};

const TCP: Transport = Transport::Tcp {
    source: 40_000,
    destination: 443,
    flags: TcpFlags {
        syn: false,
        ack: true,
        fin: false,
        rst: false,
    },
    end: 1000,
    acknowledgement: 1,
};
const UDP: Transport = Transport::Udp {
    source: 40_000,
    destination: 443,
};

fn frame(v6: bool, transport: Transport, payload: usize) -> Vec<u8> {
    let [a, b]: [IpAddr; 2] = if v6 {
        ["fd00::1", "fd00::2"].map(|text| text.parse().unwrap())
    } else {
        ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap())
    };
    let number = match transport {
        Transport::Tcp { .. } => protocol::TCP,
        Transport::Udp { .. } => protocol::UDP,
        _ => protocol::ICMP,
    };
    build(a, b, number, transport, &vec![7; payload]).unwrap()
}

/// Every frame and shape that there is a header for.
fn shaped() -> Vec<(Vec<u8>, Shape)> {
    let mut all = Vec::new();
    for v6 in [false, true] {
        for transport in [TCP, UDP] {
            for payload in [0, 1, 2, 3000, 60_000] {
                let frame = frame(v6, transport, payload);
                all.push((frame.clone(), Shape::Whole));
                all.push((frame.clone(), Shape::partial(&frame).unwrap()));
                for size in [1, 1400, 8949] {
                    for ecn in [false, transport == TCP] {
                        let shape = Shape::segments(&frame, size, ecn).unwrap();
                        all.push((frame.clone(), shape));
                    }
                }
            }
        }
    }
    all
}

fn header(flags: u8, gso_type: u8, size: u16, start: u16, offset: u16) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = flags;
    header[1] = gso_type;
    // What says how long the headers are is never believed.
    header[2..4].copy_from_slice(&[0xff, 0xff]);
    header[4..6].copy_from_slice(&size.to_ne_bytes());
    header[6..8].copy_from_slice(&start.to_ne_bytes());
    header[8..10].copy_from_slice(&offset.to_ne_bytes());
    header
}

#[test]
fn what_is_written_is_what_is_read() {
    for (frame, shape) in shaped() {
        assert_eq!(decode(encode(shape, &frame), &frame), Ok(shape));
    }
}

#[test]
fn the_headers_are_those_of_the_kernel() {
    let tcp = frame(false, TCP, 3000);
    let shape = decode(header(1, 0x81, 1400, 20, 16), &tcp).unwrap();
    assert_eq!(shape, Shape::segments(&tcp, 1400, true).unwrap());
    let mut expected = header(1, 0x81, 1400, 20, 16);
    expected[2..4].copy_from_slice(&40_u16.to_ne_bytes());
    assert_eq!(encode(shape, &tcp), expected);

    let udp = frame(true, UDP, 3000);
    let shape = decode(header(3, 5, 1000, 40, 6), &udp).unwrap();
    assert_eq!(shape, Shape::segments(&udp, 1000, false).unwrap());
    // Checksums that were found to be right are computed.
    assert_eq!(decode(header(2, 0, 0, 0, 0), &udp), Ok(Shape::Whole));
    assert_eq!(decode([0; HEADER], &[]), Ok(Shape::Whole));
}

#[test]
fn segments_that_are_one_packet_are_no_segments() {
    let tcp = frame(false, TCP, 1400);
    let shape = decode(header(1, 1, 1400, 20, 16), &tcp);
    assert_eq!(shape, Ok(Shape::partial(&tcp).unwrap()));
}

#[test]
fn only_the_one_right_header_of_all_is_accepted() {
    for v6 in [false, true] {
        for transport in [TCP, UDP] {
            let frame = frame(v6, transport, 3000);
            let (kind, at, field) = match transport {
                TCP if v6 => (4, 40, 16),
                TCP => (1, 20, 16),
                _ => (5, if v6 { 40 } else { 20 }, 6),
            };
            let mut accepted = Vec::new();
            for flags in 0..=255 {
                for gso_type in 0..=255 {
                    if decode(header(flags, gso_type, 1000, at, field), &frame).is_ok() {
                        accepted.push((flags, gso_type));
                    }
                }
            }
            let mut expected = vec![(0, 0), (2, 0)];
            for flags in [1, 3] {
                expected.extend([(flags, 0), (flags, kind)]);
                if transport == TCP {
                    expected.push((flags, kind | GSO_ECN));
                }
            }
            expected.sort_unstable();
            assert_eq!(accepted, expected);
            for place in 0..=0xffff {
                let start = decode(header(1, kind, 1000, place, field), &frame);
                assert_eq!(start.is_ok(), place == at);
                let offset = decode(header(1, kind, 1000, at, place), &frame);
                assert_eq!(offset.is_ok(), place == field);
                let size = decode(header(1, kind, place, at, field), &frame);
                assert_eq!(size.is_ok(), place != 0 && place != 0xffff, "{place}");
            }
        }
    }
}

#[test]
fn a_frame_that_can_t_be_segments_is_none() {
    let of_tcp = header(1, 1, 1000, 20, 16);
    let of_udp = header(1, 5, 1000, 20, 6);
    let tcp = frame(false, TCP, 3000);
    let udp = frame(false, UDP, 3000);
    assert!(decode(of_tcp, &tcp).is_ok() && decode(of_udp, &udp).is_ok());
    let odd = |header, change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = if header == of_tcp { &tcp } else { &udp }.clone();
        change(&mut frame);
        assert_eq!(decode(header, &frame), Err(OddHeader));
    };
    for header in [of_tcp, of_udp] {
        odd(header, &|frame| frame.clear());
        odd(header, &|frame| frame[0] = 0x65);
        odd(header, &|frame| frame[0] = 0x46);
        odd(header, &|frame| frame[6] = 0x20);
        odd(header, &|frame| frame[9] = protocol::ICMP);
        odd(header, &|frame| frame.push(0));
        odd(header, &|frame| frame.truncate(frame.len() - 1));
        for length in 0..40 {
            odd(header, &|frame| frame.truncate(length));
        }
    }
    // Connections don't begin nor end in a row.
    odd(of_tcp, &|frame| frame[33] |= 0x02);
    odd(of_tcp, &|frame| frame[33] |= 0x04);
    odd(of_tcp, &|frame| frame[32] = 0x40);
    // Bytes behind the datagram.
    odd(of_udp, &|frame| frame[25] -= 1);
}

#[test]
fn random_headers_and_frames_do_no_harm() {
    let mut state = 1_u64;
    let mut random = || {
        // Knuth's MMIX generator; the high bits are the good ones.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for (mut frame, shape) in shaped().into_iter().filter(|(frame, _)| frame.len() < 4000) {
        let good = encode(shape, &frame);
        for _ in 0..2000 {
            let mut header = good;
            header[usize::from(random()) % HEADER] = random();
            let at = usize::from(random()) % frame.len().min(60);
            let was = std::mem::replace(&mut frame[at], random());
            if let Ok(shape) = decode(header, &frame) {
                assert_eq!(decode(encode(shape, &frame), &frame), Ok(shape));
                let mut scratch = [0; 4096];
                let mut packets = 0;
                crate::packet::segment(&frame, shape, &mut scratch, |_| packets += 1).unwrap();
                assert_eq!(packets, shape.packets(frame.len()));
            }
            frame[at] = was;
        }
    }
}

#[test]
fn behind_a_header_of_its_own_a_device_counts_from_there() {
    for (frame, shape) in shaped() {
        let header = encode_behind(14, shape, &frame);
        assert_eq!(decode_behind(14, header, &frame), Ok(shape));
        if shape == Shape::Whole {
            continue;
        }
        assert_eq!(decode(header, &frame), Err(OddHeader));
        let at = |header: [u8; HEADER], i| u16::from_ne_bytes([header[i], header[i + 1]]);
        let plain = encode(shape, &frame);
        assert_eq!(at(header, 6), at(plain, 6) + 14);
        let headers = at(plain, 2);
        assert_eq!(at(header, 2), if headers == 0 { 0 } else { headers + 14 });
    }
    let tcp = frame(false, TCP, 100);
    assert_eq!(
        decode_behind(14, header(1, 0, 0, 13, 16), &tcp),
        Err(OddHeader)
    );
}

#[test]
fn a_checksum_inside_a_tunnel_is_computed_at_once() {
    let inner = frame(false, UDP, 333);
    let [a, b]: [IpAddr; 2] = ["fd00::1", "fd00::2"].map(|text| text.parse().unwrap());
    let whole = build(a, b, 4, Transport::Other, &inner).unwrap();
    let mut left = whole.clone();
    // The sum of the pseudo header: all that is known of it before.
    let pseudo = [&inner[12..20], &[0, protocol::UDP], &inner[24..26]].concat();
    left[40 + 26..40 + 28].copy_from_slice(&sum(&pseudo).to_be_bytes());
    let said = header(1, 0, 0, 14 + 40 + 20, 6);
    assert_eq!(decode_behind(14, said, &left), Err(OddHeader));
    assert_eq!(settle(14, said, &mut left), Ok(Shape::Whole));
    assert_eq!(left, whole);
    // Neither segments nor SCTP, nor anything in the IP header or past the end.
    let refused = |said, frame: &[u8]| {
        let mut copy = frame.to_vec();
        assert_eq!(settle(14, said, &mut copy), Err(OddHeader));
        assert_eq!(copy, frame);
    };
    refused(header(1, 5, 100, 14 + 60, 6), &whole);
    refused(header(1, 0, 0, 14 + 39, 6), &whole);
    refused(header(1, 0, 0, 14 + 40, u16::MAX), &whole);
    refused(header(1, 0, 0, 0, 6), &whole);
    let length = u16::try_from(14 + whole.len() - 1).unwrap();
    refused(header(1, 0, 0, length, 0), &whole);
    refused(header(1, 0, 0, 14 + 40, 6), &[]);
    let sctp = build(a, b, 132, Transport::Other, &inner).unwrap();
    refused(header(1, 0, 0, 14 + 40, 8), &sctp);
}
