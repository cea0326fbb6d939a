//! The internet gateway's one-to-one translation: an IPv4 address changes, and
//! with it every checksum that covers it (incrementally, RFC 1624).

use std::net::{IpAddr, Ipv4Addr};

use super::field::half;
use super::{Brief, Packet, Shape, Transport, checksum};
use crate::model::protocol;

const SOURCE: usize = 12;
const DESTINATION: usize = 16;
const HEADER_CHECKSUM: usize = 10;

/// Which of a header's two addresses.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

impl Side {
    fn offset(self) -> usize {
        match self {
            Self::Source => SOURCE,
            Self::Destination => DESTINATION,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// Gives the IPv4 packet in `frame`, which `packet` was read from, the source
/// address `new`. Packets of IPv6 are left as they are.
pub fn rewrite_source(frame: &mut [u8], packet: &mut Packet, shape: Shape, new: Ipv4Addr) {
    if let IpAddr::V4(old) = packet.source {
        Inside::of(packet).rewrite(frame, shape, Side::Source, old, new);
        packet.source = IpAddr::V4(new);
    }
}

/// Likewise for the destination address.
pub fn rewrite_destination(frame: &mut [u8], packet: &mut Packet, shape: Shape, new: Ipv4Addr) {
    if let IpAddr::V4(old) = packet.destination {
        Inside::of(packet).rewrite(frame, shape, Side::Destination, old, new);
        packet.destination = IpAddr::V4(new);
    }
}

impl Brief {
    /// Gives the IPv4 packet in `frame`, which this was read from, new addresses as it
    /// leaves its interface. Packets of IPv6 are left as they are.
    #[inline]
    pub fn translate(
        &self,
        frame: &mut [u8],
        shape: Shape,
        new_source: Option<Ipv4Addr>,
        new_destination: Option<Ipv4Addr>,
    ) {
        // Errors and later fragments belong to no flow.
        let inside = Inside {
            from: self.transport_offset,
            to: self.length,
            contents: Contents::Transport(self.key.protocol()),
        };
        if let (IpAddr::V4(old), Some(new)) = (self.key.local(), new_source) {
            inside.rewrite(frame, shape, Side::Source, old, new);
        }
        if let (IpAddr::V4(old), Some(new)) = (self.key.remote(), new_destination) {
            inside.rewrite(frame, shape, Side::Destination, old, new);
        }
    }
}

/// What follows a packet's IP header, as far as its checksums go.
#[derive(Clone, Copy)]
struct Inside {
    /// Where it starts in the frame.
    from: usize,
    /// Where the packet ends.
    to: usize,
    contents: Contents,
}

#[derive(Clone, Copy)]
enum Contents {
    /// The header of this protocol, and what it carries.
    Transport(u8),
    /// An ICMP error, which quotes a packet.
    Error,
    /// Part of a datagram, without its transport header.
    LaterFragment,
}

impl Inside {
    fn of(packet: &Packet) -> Self {
        let contents = match packet.transport {
            Transport::Fragment => Contents::LaterFragment,
            Transport::Icmp { kind, .. }
                if packet.protocol == protocol::ICMP && quotes_a_packet(kind) =>
            {
                Contents::Error
            }
            _ => Contents::Transport(packet.protocol),
        };
        Self {
            from: packet.transport_offset,
            to: packet.length,
            contents,
        }
    }

    fn rewrite(&self, frame: &mut [u8], shape: Shape, side: Side, old: Ipv4Addr, new: Ipv4Addr) {
        let Some((header, payload)) = frame.split_at_mut_checked(self.from) else {
            return;
        };
        let Some(payload) = payload.get_mut(..self.to.saturating_sub(self.from)) else {
            return;
        };
        replace_address(header, side, new);
        match (self.contents, shape.unsummed()) {
            // The datagram's checksum is in its first fragment, and covers nothing that
            // the translation changes but the addresses: adjusting it needs no more.
            (Contents::LaterFragment, _) => {}
            (_, Some(unsummed)) => adjust_sum(payload, unsummed.protocol.field(), old, new),
            (Contents::Transport(protocol), None) => adjust_transport(payload, protocol, old, new),
            (Contents::Error, None) => rewrite_embedded(payload, side.other(), old, new),
        }
    }
}

/// The pseudo header of TCP and UDP covers the addresses too. UDP's zero means
/// "no checksum" and stays; a sum that comes out as zero is sent as its other
/// spelling (RFC 768).
fn adjust_transport(bytes: &mut [u8], protocol: u8, old: Ipv4Addr, new: Ipv4Addr) {
    match protocol {
        protocol::TCP => adjust(bytes, 16, old, new),
        protocol::UDP if bytes.get(6..8).is_some_and(|sum| sum != [0, 0]) => {
            adjust(bytes, 6, old, new);
            if bytes[6..8] == [0, 0] {
                bytes[6..8].copy_from_slice(&[0xff, 0xff]);
            }
        }
        _ => {}
    }
}

/// The packet that an ICMP error quotes went the other way, so its opposite
/// address is the one that the gateway translates. The quoted transport
/// checksum is mended too where it was quoted, as hosts may compare it.
fn rewrite_embedded(icmp: &mut [u8], side: Side, old: Ipv4Addr, new: Ipv4Addr) {
    let Some(quoted) = icmp.get_mut(8..) else {
        return;
    };
    let header_length = usize::from(quoted.first().map_or(0, |byte| byte & 0x0f)) * 4;
    let version = quoted.first().map_or(0, |byte| byte >> 4);
    if version != 4 || header_length < 20 || quoted.len() < header_length {
        return;
    }
    let at = side.offset();
    if quoted[at..at + 4] != old.octets() {
        return;
    }
    let before = checksum::sum(quoted);
    let (header, rest) = quoted.split_at_mut(header_length);
    replace_address(header, side, new);
    let offset = half(header, 6) & 0x1fff;
    if offset == 0 {
        adjust_transport(rest, header[9], old, new);
    }
    let after = checksum::sum(quoted);
    // Everything from the ICMP header on is covered by the ICMP checksum; what
    // of it isn't here, in a first fragment, hasn't changed.
    checksum::replace(icmp, 2, &[before], &[after]);
}

fn replace_address(header: &mut [u8], side: Side, new: Ipv4Addr) {
    let at = side.offset();
    let Some(field) = header.get_mut(at..at + 4) else {
        return;
    };
    let old = Ipv4Addr::new(field[0], field[1], field[2], field[3]);
    field.copy_from_slice(&new.octets());
    adjust(header, HEADER_CHECKSUM, old, new);
}

/// The checksum at `at` after an address that it covers has changed.
fn adjust(bytes: &mut [u8], at: usize, old: Ipv4Addr, new: Ipv4Addr) {
    checksum::replace(bytes, at, &words(old), &words(new));
}

/// The sum of a pseudo header at `at`, which isn't complemented, after an address
/// that it covers has changed: the same as for a checksum, which is its complement.
fn adjust_sum(bytes: &mut [u8], at: usize, old: Ipv4Addr, new: Ipv4Addr) {
    complement(bytes, at);
    adjust(bytes, at, old, new);
    complement(bytes, at);
}

fn complement(bytes: &mut [u8], at: usize) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&[!field[0], !field[1]]);
    }
}

fn words(address: Ipv4Addr) -> [u16; 2] {
    let [a, b, c, d] = address.octets();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// Whether an ICMP message of this type quotes one: unreachable, source quench,
/// redirect, time exceeded, parameter problem (RFC 792).
fn quotes_a_packet(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::parse;
    use etherparse::{Ipv4HeaderSlice, PacketBuilder, TcpSlice, UdpSlice};

    const PRIVATE: [u8; 4] = [10, 0, 1, 10];
    const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    const CLIENT: [u8; 4] = [198, 51, 100, 7];

    fn assert_header_checksum(frame: &[u8]) {
        let header = Ipv4HeaderSlice::from_slice(frame).unwrap().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }

    #[test]
    fn tcp_and_udp_checksums_stay_right_for_any_address() {
        for last in 0..=255u8 {
            let new = Ipv4Addr::new(203, 0, last, last.wrapping_mul(31));
            let mut frame = Vec::new();
            PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
                .tcp(443, 50000, 7, 64000)
                .ack(9)
                .write(&mut frame, &[last; 33])
                .unwrap();
            let mut packet = parse(&frame).unwrap();
            rewrite_source(&mut frame, &mut packet, Shape::Whole, new);
            assert_header_checksum(&frame);
            let tcp = TcpSlice::from_slice(&frame[20..]).unwrap();
            assert_eq!(
                tcp.checksum(),
                tcp.calc_checksum_ipv4(new.octets(), CLIENT).unwrap()
            );

            let mut frame = Vec::new();
            PacketBuilder::ipv4(CLIENT, PRIVATE, 64)
                .udp(50000, 53)
                .write(&mut frame, &[last; 8])
                .unwrap();
            let mut packet = parse(&frame).unwrap();
            rewrite_destination(&mut frame, &mut packet, Shape::Whole, new);
            assert_header_checksum(&frame);
            let udp = UdpSlice::from_slice(&frame[20..]).unwrap();
            let expected = etherparse::UdpHeader::with_ipv4_checksum(
                50000,
                53,
                &etherparse::Ipv4Header::new(
                    16,
                    64,
                    etherparse::IpNumber::UDP,
                    CLIENT,
                    new.octets(),
                )
                .unwrap(),
                udp.payload(),
            )
            .unwrap();
            assert_eq!(udp.checksum(), expected.checksum);
        }
    }

    #[test]
    fn a_checksum_that_is_left_to_be_computed_comes_out_right_for_any_address() {
        for last in 0..=255u8 {
            let new = Ipv4Addr::new(203, 0, last, last.wrapping_mul(31));
            let transport = [last; 29];
            let mut tcp = Vec::new();
            PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
                .tcp(443, 50000, 7, 64000)
                .write(&mut tcp, &transport)
                .unwrap();
            let mut udp = Vec::new();
            PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
                .udp(443, 50000)
                .write(&mut udp, &transport)
                .unwrap();
            for mut frame in [tcp, udp] {
                let mut packet = parse(&frame).unwrap();
                let shape = Shape::partial(&frame).unwrap();
                let field = 20 + shape.unsummed().unwrap().protocol.field();
                let pseudo = |source: [u8; 4]| {
                    let length = u16::try_from(packet.length - 20).unwrap();
                    let [high, low] = length.to_be_bytes();
                    let tail = [0, packet.protocol, high, low];
                    checksum::sum(&[&source[..], &CLIENT, &tail].concat()).to_be_bytes()
                };
                let after = pseudo(new.octets());
                frame[field..field + 2].copy_from_slice(&pseudo(PRIVATE));
                rewrite_source(&mut frame, &mut packet, shape, new);
                assert_header_checksum(&frame);
                assert_eq!(frame[field..field + 2], after);
            }
        }
    }

    #[test]
    fn a_udp_packet_without_checksum_stays_without() {
        let mut frame = Vec::new();
        PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
            .udp(1, 2)
            .write(&mut frame, b"x")
            .unwrap();
        frame[26..28].copy_from_slice(&[0, 0]);
        let mut packet = parse(&frame).unwrap();
        rewrite_source(&mut frame, &mut packet, Shape::Whole, PUBLIC);
        assert_eq!(&frame[26..28], &[0, 0]);
    }

    #[test]
    fn an_icmp_error_names_the_public_address_inside_too() {
        let mut quoted = Vec::new();
        PacketBuilder::ipv4(CLIENT, PRIVATE, 60)
            .udp(50000, 99)
            .write(&mut quoted, b"probe")
            .unwrap();
        let mut frame = Vec::new();
        PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
            .icmpv4_raw(3, 3, [0; 4])
            .write(&mut frame, &quoted)
            .unwrap();
        let mut packet = parse(&frame).unwrap();
        rewrite_source(&mut frame, &mut packet, Shape::Whole, PUBLIC);
        assert_header_checksum(&frame);
        assert_header_checksum(&frame[28..]);
        assert_eq!(&frame[28 + 16..28 + 20], &PUBLIC.octets());
        let sum = etherparse::checksum::Sum16BitWords::new()
            .add_slice(&frame[20..])
            .ones_complement();
        assert_eq!(sum, 0, "the ICMP checksum covers what was changed");
    }

    #[test]
    fn hostile_quotes_are_left_alone() {
        for quoted in [&[][..], &[0x45], &[0x4f; 20], &[0x65; 40]] {
            let mut frame = Vec::new();
            PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
                .icmpv4_raw(3, 3, [0; 4])
                .write(&mut frame, quoted)
                .unwrap();
            let mut packet = parse(&frame).unwrap();
            rewrite_source(&mut frame, &mut packet, Shape::Whole, PUBLIC);
            assert_eq!(&frame[28..], quoted);
        }
    }

    /// `frame`, an IPv4 packet, as fragments of its first `at` bytes of payload
    /// and the rest.
    fn in_two(frame: &[u8], at: usize) -> [Vec<u8>; 2] {
        let part = |range: std::ops::Range<usize>, flags_and_offset: usize| {
            let mut part = frame[..20].to_vec();
            part.extend(&frame[20..][range]);
            let length = u16::try_from(part.len()).unwrap();
            part[2..4].copy_from_slice(&length.to_be_bytes());
            let field = u16::try_from(flags_and_offset).unwrap();
            part[6..8].copy_from_slice(&field.to_be_bytes());
            let header = Ipv4HeaderSlice::from_slice(&part).unwrap().to_header();
            part[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
            part
        };
        let end = frame.len() - 20;
        [part(0..at, 0x2000), part(at..end, at / 8)]
    }

    #[test]
    fn a_datagram_in_fragments_is_translated_like_a_whole_one() {
        let mut tcp = Vec::new();
        PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
            .tcp(443, 50000, 7, 64000)
            .write(&mut tcp, &[0x5a; 77])
            .unwrap();
        let mut udp = Vec::new();
        PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
            .udp(53, 50000)
            .write(&mut udp, &[0x5a; 77])
            .unwrap();
        let mut quoted = Vec::new();
        PacketBuilder::ipv4(CLIENT, PRIVATE, 60)
            .udp(50000, 99)
            .write(&mut quoted, &[3; 60])
            .unwrap();
        let mut error = Vec::new();
        PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
            .icmpv4_raw(3, 3, [0; 4])
            .write(&mut error, &quoted)
            .unwrap();
        for mut whole in [tcp, udp, error] {
            let parts = in_two(&whole, 40).map(|mut part| {
                let mut packet = parse(&part).unwrap();
                assert!(packet.fragment.is_some());
                rewrite_source(&mut part, &mut packet, Shape::Whole, PUBLIC);
                assert_eq!(packet.source, IpAddr::V4(PUBLIC));
                assert_header_checksum(&part);
                part
            });
            let mut packet = parse(&whole).unwrap();
            rewrite_source(&mut whole, &mut packet, Shape::Whole, PUBLIC);
            let payload = [&parts[0][20..], &parts[1][20..]].concat();
            assert_eq!(payload, &whole[20..]);
        }
    }

    #[test]
    fn a_later_fragment_s_payload_is_nobody_s_header() {
        for protocol in [protocol::TCP, protocol::UDP, protocol::ICMP] {
            // Begins like an ICMP error that quotes the address.
            let mut payload = vec![3, 3, 1, 1, 1, 1, 1, 1];
            payload.extend([0x45; 12]);
            payload.extend([CLIENT, PRIVATE].concat());
            let mut frame = vec![0x45, 0, 0, 48, 0, 1, 0, 5, 64, protocol, 0, 0];
            frame.extend([PRIVATE, CLIENT].concat());
            frame.extend(&payload);
            checksum::repair(&mut frame);
            let mut packet = parse(&frame).unwrap();
            rewrite_source(&mut frame, &mut packet, Shape::Whole, PUBLIC);
            assert_eq!(&frame[12..16], &PUBLIC.octets());
            assert_eq!(&frame[20..], &payload);
        }
    }

    #[test]
    fn a_quoted_later_fragment_s_payload_is_left_alone() {
        let mut quoted = vec![0x45, 0, 0, 48, 0, 1, 0, 5, 64, protocol::UDP, 0, 0];
        quoted.extend([CLIENT, PRIVATE].concat());
        quoted.extend([7; 28]);
        let mut frame = Vec::new();
        PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
            .icmpv4_raw(11, 1, [0; 4])
            .write(&mut frame, &quoted)
            .unwrap();
        let mut packet = parse(&frame).unwrap();
        rewrite_source(&mut frame, &mut packet, Shape::Whole, PUBLIC);
        assert_eq!(&frame[28 + 16..28 + 20], &PUBLIC.octets());
        assert_eq!(&frame[28 + 20..], &[7; 28]);
        assert_eq!(checksum::sum(&frame[20..]), 0xffff);
    }

    #[test]
    fn a_wrong_icmp_checksum_is_not_mended() {
        let mut quoted = Vec::new();
        PacketBuilder::ipv4(CLIENT, PRIVATE, 60)
            .udp(50000, 99)
            .write(&mut quoted, b"probe")
            .unwrap();
        let mut frame = Vec::new();
        PacketBuilder::ipv4(PRIVATE, CLIENT, 64)
            .icmpv4_raw(3, 3, [0; 4])
            .write(&mut frame, &quoted)
            .unwrap();
        frame[22] ^= 0x40;
        let mut packet = parse(&frame).unwrap();
        rewrite_source(&mut frame, &mut packet, Shape::Whole, PUBLIC);
        assert_ne!(checksum::sum(&frame[20..]), 0xffff);
    }
}
