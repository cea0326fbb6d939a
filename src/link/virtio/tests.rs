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
                // The smallest segments that a kernel makes, and the largest number of them.
                let least = if transport == TCP { 48 } else { 469 };
                for size in [least, 1400, 8949] {
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
                let least = if transport == TCP { 48 } else { 24 };
                assert_eq!(size.is_ok(), place >= least && place != 0xffff, "{place}");
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
fn segments_that_no_kernel_makes_so_small_or_so_many_are_refused() {
    let taken = |size, header, frame: &[u8]| {
        let shape = Shape::segments(frame, size, false).unwrap();
        assert_eq!(usize::from(shape.in_segments().unwrap().headers), header);
        decode(encode(shape, frame), frame) == Ok(shape)
    };
    for v6 in [false, true] {
        let ip = if v6 { 40 } else { 20 };
        // 48 bytes of options and payload. With timestamps, this gives some 1,800 packets.
        for (options, least) in [(0, 48), (12, 36), (40, 8)] {
            let payload = 60_000.min(2048 * usize::from(least));
            let mut tcp = frame(v6, TCP, payload + options);
            let data_offset = u8::try_from((20 + options) / 4).unwrap() << 4;
            tcp[ip + 12] = data_offset;
            let headers = ip + 20 + options;
            assert!(taken(least, headers, &tcp[..]), "{options}");
            assert!(!taken(least - 1, headers, &tcp[..]), "{options}");
        }
        let mut many = frame(v6, TCP, 60_000);
        many[ip + 12] = 0xf0;
        assert!(!taken(20, ip + 60, &many), "more than 2,048");
        let udp = frame(v6, UDP, 12_800);
        assert!(taken(100, ip + 8, &udp) && !taken(99, ip + 8, &udp));
    }
}

/// Packets that carry `inner` through each kind of tunnel: VXLAN and GRE with and without a
/// checksum, and IPv4 or IPv6 directly after the IP header. Each has its name.
fn carriers(inner: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let inside_v6 = is_v6(inner);
    let number = if inside_v6 { 41 } else { 4 };
    let kind: [u8; 2] = if inside_v6 { [0x86, 0xdd] } else { [8, 0] };
    let behind = |header: &[u8]| [header, inner].concat();
    let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &[2; 12], &kind].concat();
    let gre = [&[0, 0][..], &kind].concat();
    let gre_of_all = [&[0xa0, 0][..], &kind, &[0; 8]].concat();
    let bridged = [&[0, 0, 0x65, 0x58][..], &[2; 12], &kind].concat();
    let mut all = Vec::new();
    for ends in [["10.9.0.1", "10.9.0.2"], ["fd00::1", "fd00::2"]] {
        let [a, b]: [IpAddr; 2] = ends.map(|text| text.parse().unwrap());
        let ip = if a.is_ipv6() { 40 } else { 20 };
        let of =
            |number, transport, payload: &[u8]| build(a, b, number, transport, payload).unwrap();
        let with = of(protocol::UDP, UDP, &behind(&vxlan));
        let mut without = with.clone();
        without[ip + 6..ip + 8].fill(0);
        all.push(("vxlan", with));
        all.push(("vxlan without a checksum", without));
        all.push(("gre", of(47, Transport::Other, &behind(&gre))));
        all.push(("gre bridged", of(47, Transport::Other, &behind(&bridged))));
        let mut summed = of(47, Transport::Other, &behind(&gre_of_all));
        let checksum = !sum(&summed[ip..]);
        summed[ip + 4..ip + 6].copy_from_slice(&checksum.to_be_bytes());
        all.push(("gre with a checksum", summed));
        all.push(("ip in ip", of(number, Transport::Other, inner)));
    }
    all
}

/// Returns `whole` with the partial checksum that a kernel leaves in the inner packet (the sum of
/// its pseudo header), the position of its transport header, and the position of the checksum in
/// it.
fn left(whole: &[u8], inner: &[u8], transport: Transport) -> (Vec<u8>, u16, u16) {
    let (ip, addresses) = if is_v6(inner) {
        (40, 8..40)
    } else {
        (20, 12..20)
    };
    let (number, field) = match transport {
        TCP => (protocol::TCP, 16),
        _ => (protocol::UDP, 6),
    };
    let length = u16::try_from(inner.len() - ip).unwrap().to_be_bytes();
    let pseudo = [&inner[addresses], &[0, number], &length].concat();
    let start = whole.len() - inner.len() + ip;
    let mut frame = whole.to_vec();
    let at = start + usize::from(field);
    frame[at..at + 2].copy_from_slice(&sum(&pseudo).to_be_bytes());
    (frame, u16::try_from(start).unwrap(), field)
}

#[test]
fn a_checksum_inside_a_tunnel_is_computed_at_once() {
    for (v6, transport) in [(false, TCP), (true, TCP), (false, UDP), (true, UDP)] {
        let inner = frame(v6, transport, 333);
        for (name, whole) in carriers(&inner) {
            let (frame, start, field) = left(&whole, &inner, transport);
            for before in [0, 14] {
                let said = header(1, 0, 0, before + start, field);
                assert_eq!(decode_behind(before, said, &frame), Err(OddHeader));
                let mut settled = frame.clone();
                let shape = settle(before, said, &mut settled);
                assert_eq!((shape, &settled), (Ok(Shape::Whole), &whole), "{name}");
            }
        }
    }
}

#[test]
fn what_is_left_inside_a_tunnel_never_reaches_the_headers_that_rules_look_at() {
    let inner = frame(false, UDP, 333);
    let refused = |said, frame: &[u8]| {
        let mut copy = frame.to_vec();
        assert_eq!(settle(14, said, &mut copy), Err(OddHeader));
        assert_eq!(copy, frame);
    };
    for (name, whole) in carriers(&inner) {
        let ip = if is_v6(&whole) { 40 } else { 20 };
        let own = if name.starts_with("vxlan") { 8 } else { 0 };
        for start in 0..14 + ip + own {
            // The frame's own checksum, and nothing else in its headers.
            if (start, own) != (14 + ip, 8) {
                refused(header(1, 0, 0, start, 6), &whole);
            }
            refused(header(1, 0, 0, start, 5), &whole);
        }
        refused(header(1, 0, 0, 14 + ip + own, u16::MAX), &whole);
        let last = u16::try_from(14 + whole.len() - 1).unwrap();
        refused(header(1, 0, 0, last, 0), &whole);
        refused(header(1, 0, 0, 14 + ip + own, 6), &whole[..whole.len() - 1]);
        let start = u16::try_from(14 + whole.len() - inner.len() + 20).unwrap();
        let segments = |kind, size, start, field| header(1, kind, size, start, field);
        refused(segments(5, 2, start, 6), &whole);
        refused(segments(1, 100, start, 16), &whole);
        refused(segments(5, 100, start, 16), &whole);
        refused(segments(5, 100, start + 1, 6), &whole);
        refused(segments(5, 400, start, 6), &whole);
        refused(segments(5, 0, start, 6), &whole);
    }
    // TCP and ICMP carry nothing that a kernel would segment, and the SCTP checksum is not an
    // Internet checksum.
    let [a, b]: [IpAddr; 2] = ["fd00::1", "fd00::2"].map(|text| text.parse().unwrap());
    let tcp = build(a, b, protocol::TCP, TCP, &inner).unwrap();
    refused(header(1, 5, 100, 14 + 40 + 20 + 20, 6), &tcp);
    let sctp = build(a, b, 132, Transport::Other, &inner).unwrap();
    refused(header(1, 0, 0, 14 + 40, 8), &sctp);
    refused(header(1, 0, 0, 14 + 40, 6), &[]);
    let mut fragment = carriers(&inner).swap_remove(2).1;
    fragment[6] |= 0x20;
    refused(header(1, 0, 0, 14 + 44, 6), &fragment);
}

#[test]
fn super_packets_inside_a_tunnel_are_the_tunnel_s_packets() {
    for (v6, transport) in [(false, TCP), (true, TCP), (false, UDP), (true, UDP)] {
        let inner = frame(v6, transport, 3500);
        let kind = if transport == UDP { 5 } else { tcp_kind(v6) };
        for (name, whole) in carriers(&inner) {
            let (mut frame, start, field) = left(&whole, &inner, transport);
            let said = header(1, kind, 1000, 14 + start, field);
            let shape = settle(14, said, &mut frame).expect(name);
            assert!(matches!(shape, Shape::Tunnel(_)), "{name}: {shape:?}");
            let headers = frame.len() - 3500;
            assert_eq!(shape.packets(frame.len()), 4);
            assert_eq!(shape.longest(frame.len()), headers + 1000);
            let (mut carried, mut bytes) = (Vec::new(), 0);
            let mut scratch = vec![0; headers + 1000];
            let before = frame.len() - inner.len();
            crate::packet::segment(&frame, shape, &mut scratch, |packet| {
                carried.extend_from_slice(&packet[headers..]);
                bytes += packet.len();
                if name == "gre with a checksum" {
                    let ip = if is_v6(packet) { 40 } else { 20 };
                    assert_eq!(sum(&packet[ip..]), 0xffff, "{name}");
                }
                is_sound(name, packet);
                is_sound(name, &packet[before..]);
            })
            .unwrap();
            assert_eq!(carried, inner[inner.len() - 3500..], "{name}");
            assert_eq!(bytes, shape.bytes(frame.len()));
            let mut first = frame.clone();
            let length = crate::packet::first_segment(&mut first, shape).unwrap();
            is_sound(name, &first[..length]);
        }
    }
}

/// Checks that a packet's lengths and checksums are correct.
fn is_sound(name: &str, packet: &[u8]) {
    let read = crate::packet::parse(packet).expect(name);
    assert_eq!(read.length, packet.len(), "{name}");
    let (addresses, transport) = if is_v6(packet) {
        (8..40, 40)
    } else {
        assert_eq!(sum(&packet[..20]), 0xffff, "{name}");
        (12..20, 20)
    };
    if matches!(read.protocol, protocol::TCP | protocol::UDP) {
        let message = &packet[transport..];
        if read.protocol == protocol::UDP && message[6..8] == [0, 0] {
            return;
        }
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        let all = [&packet[addresses], &[0, read.protocol], &length, message].concat();
        assert_eq!(sum(&all), 0xffff, "{name}");
    }
}
