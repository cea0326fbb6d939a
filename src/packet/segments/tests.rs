use std::net::IpAddr;

use etherparse::{IpSlice, TcpSlice, UdpSlice};

use super::*;
use crate::model::protocol;
use crate::packet::{Packet, TcpFlags, Transport, build, parse};

const TCP: Transport = Transport::Tcp {
    source: 40_000,
    destination: 443,
    flags: TcpFlags {
        syn: false,
        ack: true,
        fin: true,
        rst: false,
    },
    end: 0xffff_ff00,
    acknowledgement: 77,
};
const UDP: Transport = Transport::Udp {
    source: 40_000,
    destination: 443,
};

/// A packet with `length` bytes of payload and the sum of its pseudo header in
/// place of its checksum.
fn unsummed(v6: bool, transport: Transport, length: usize) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) = if v6 {
        ("fd00::1".parse().unwrap(), "2001:db8::7".parse().unwrap())
    } else {
        ("10.0.0.1".parse().unwrap(), "198.51.100.7".parse().unwrap())
    };
    let payload: Vec<u8> = (0..length)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    let mut frame = build(source, destination, number(transport), transport, &payload).unwrap();
    let at = if v6 { 40 } else { 20 };
    let field = at
        + Shape::partial(&frame)
            .unwrap()
            .unsummed()
            .unwrap()
            .protocol
            .field();
    let mut pseudo = Vec::new();
    match (source, destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => pseudo.extend([a.octets(), b.octets()].concat()),
        (IpAddr::V6(a), IpAddr::V6(b)) => pseudo.extend([a.octets(), b.octets()].concat()),
        _ => panic!("one family"),
    }
    pseudo.extend([0, number(transport)]);
    pseudo.extend(u16::try_from(frame.len() - at).unwrap().to_be_bytes());
    let sum = checksum::sum(&pseudo);
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn number(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp { .. } => protocol::TCP,
        _ => protocol::UDP,
    }
}

/// What is sent for `frame`, each with checksums that etherparse finds right.
fn sent(frame: &[u8], shape: Shape) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut scratch = vec![0xaa; 1 << 16];
    segment(frame, shape, &mut scratch, |packet| {
        packets.push(packet.to_vec())
    })
    .unwrap();
    for packet in &packets {
        assert_checksums(packet);
    }
    packets
}

fn assert_checksums(bytes: &[u8]) -> Packet {
    let packet = parse(bytes).unwrap();
    assert_eq!(packet.length, bytes.len());
    let transport = &bytes[packet.transport_offset..];
    let right = match IpSlice::from_slice(bytes).unwrap() {
        IpSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let (from, to) = (header.source, header.destination);
            match packet.protocol {
                protocol::TCP => {
                    let tcp = TcpSlice::from_slice(transport).unwrap();
                    tcp.checksum() == tcp.calc_checksum_ipv4(from, to).unwrap()
                }
                _ => {
                    let udp = UdpSlice::from_slice(transport).unwrap();
                    let header = udp.to_header();
                    let right = header.calc_checksum_ipv4_raw(from, to, udp.payload());
                    header.checksum == right.unwrap()
                }
            }
        }
        IpSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let (from, to) = (header.source, header.destination);
            match packet.protocol {
                protocol::TCP => {
                    let tcp = TcpSlice::from_slice(transport).unwrap();
                    tcp.checksum() == tcp.calc_checksum_ipv6(from, to).unwrap()
                }
                _ => {
                    let udp = UdpSlice::from_slice(transport).unwrap();
                    let header = udp.to_header();
                    let right = header.calc_checksum_ipv6_raw(from, to, udp.payload());
                    header.checksum == right.unwrap()
                }
            }
        }
    };
    assert!(right, "{packet:?}");
    packet
}

#[test]
fn segments_have_the_payload_in_order_and_right_lengths_and_checksums() {
    for v6 in [false, true] {
        for transport in [TCP, UDP] {
            for (length, size) in [
                (1, 1),
                (2, 1),
                (4000, 1400),
                (4200, 1400),
                (4201, 1400),
                (65_000, 8949),
                (65_000, 1),
                (65_000, 64_999),
            ] {
                let frame = unsummed(v6, transport, length);
                let shape = Shape::segments(&frame, size, false).unwrap();
                let packets = sent(&frame, shape);
                let headers = frame.len() - length;
                assert_eq!(packets.len(), length.div_ceil(size.into()));
                assert_eq!(packets.len(), shape.packets(frame.len()));
                let bytes: usize = packets.iter().map(Vec::len).sum();
                assert_eq!(bytes, shape.bytes(frame.len()));
                let longest = packets.iter().map(Vec::len).max();
                assert_eq!(longest, Some(shape.longest(frame.len())));
                let payloads: Vec<u8> = packets
                    .iter()
                    .flat_map(|packet| packet[headers..].to_vec())
                    .collect();
                assert_eq!(payloads, frame[headers..]);
            }
        }
    }
}

#[test]
fn a_packet_whose_checksum_was_left_gets_it_and_keeps_the_rest() {
    for v6 in [false, true] {
        for transport in [TCP, UDP] {
            for length in [0, 1, 2, 9000] {
                let frame = unsummed(v6, transport, length);
                let shape = Shape::partial(&frame).unwrap();
                let packets = sent(&frame, shape);
                let field = shape.unsummed().unwrap();
                let at = usize::from(field.transport) + field.protocol.field();
                let mut expected = frame.clone();
                expected[at..at + 2].copy_from_slice(&packets[0][at..at + 2]);
                assert_eq!(packets, [expected]);
            }
        }
    }
}

#[test]
fn a_whole_packet_is_sent_as_it_is() {
    let frame = unsummed(false, UDP, 100);
    let mut packets = Vec::new();
    segment(&frame, Shape::Whole, &mut [], |packet| {
        packets.push(packet.to_vec())
    })
    .unwrap();
    assert_eq!(packets, [frame]);
}

#[test]
fn sequence_numbers_go_on_and_flags_are_their_segment_s() {
    let mut frame = unsummed(false, TCP, 3000);
    frame[20 + TCP_FLAGS] |= PSH | CWR;
    let shape = Shape::segments(&frame, 1000, true).unwrap();
    let packets = sent(&frame, shape);
    let flags: Vec<u8> = packets
        .iter()
        .map(|packet| packet[20 + TCP_FLAGS])
        .collect();
    let ack = 0x10;
    assert_eq!(flags, [ack | CWR, ack, ack | FIN | PSH]);
    let ends: Vec<u32> = packets
        .iter()
        .map(|packet| match parse(packet).unwrap().transport {
            Transport::Tcp { end, .. } => end,
            _ => panic!("it is TCP"),
        })
        .collect();
    let end = 0xffff_ff00_u32;
    assert_eq!(ends, [end - 2001, end - 1001, end]);
}

#[test]
fn identifications_count_up_beyond_the_last() {
    let mut frame = unsummed(false, UDP, 30);
    let old = [half(&frame, IPV4_ID)];
    put_half(&mut frame, IPV4_ID, 0xffff);
    checksum::replace(&mut frame, IPV4_CHECKSUM, &old, &[0xffff]);
    let shape = Shape::segments(&frame, 10, false).unwrap();
    let ids: Vec<u16> = sent(&frame, shape)
        .iter()
        .map(|packet| half(packet, IPV4_ID))
        .collect();
    assert_eq!(ids, [0xffff, 0, 1]);
}

#[test]
fn what_was_corrupt_before_stays_so() {
    for at in [IPV4_CHECKSUM, 26] {
        let mut frame = unsummed(false, UDP, 30);
        let shape = Shape::segments(&frame, 10, false).unwrap();
        frame[at] ^= 0x10;
        let mut scratch = [0; 100];
        segment(&frame, shape, &mut scratch, |packet| {
            let header = checksum::sum(&packet[..20]);
            let pseudo = [&packet[12..20], &[0, protocol::UDP], &packet[24..26]].concat();
            let datagram = checksum::add(checksum::sum(&pseudo), checksum::sum(&packet[20..]));
            assert!(header != 0xffff || datagram != 0xffff);
        })
        .unwrap();
    }
}

#[test]
fn a_super_packet_with_a_damaged_header_has_no_shape() {
    let mut frame = unsummed(false, UDP, 30);
    frame[IPV4_CHECKSUM] ^= 0x10;
    assert_eq!(Shape::segments(&frame, 10, false), None);
    assert_eq!(Shape::partial(&frame), None);
}

#[test]
fn the_first_segment_is_made_in_its_place() {
    for v6 in [false, true] {
        for transport in [TCP, UDP] {
            for size in [1, 999, 3000] {
                let mut frame = unsummed(v6, transport, 3000);
                let shape = Shape::segments(&frame, size, false).unwrap();
                let packets = sent(&frame, shape);
                let length = first_segment(&mut frame, shape).unwrap();
                assert_eq!(frame[..length], packets[0]);
            }
        }
    }
}

#[test]
fn a_frame_that_isn_t_what_the_shape_says_is_refused() {
    let frame = unsummed(false, TCP, 3000);
    let shape = Shape::segments(&frame, 1000, false).unwrap();
    let never = |_: &[u8]| panic!("nothing is sent");
    let mut scratch = vec![0; 4000];
    for length in 0..40 {
        let short = &frame[..length];
        assert_eq!(
            segment(short, shape, &mut scratch, never),
            Err(NotSegmented)
        );
        assert!(first_segment(&mut short.to_vec(), shape).is_err());
    }
    assert!(segment(&frame, shape, &mut scratch[..1039], never).is_err());
}
