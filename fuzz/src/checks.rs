//! What must hold of a packet that the data path hands on.

use sgwall::packet::{self, Packet, Transport};

use super::wire::{pseudo_header, sum};

/// Which checksums of a packet are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    header: bool,
    transport: bool,
}

impl Right {
    /// Whether every checksum that is right here is right there too.
    fn kept_in(self, there: Self) -> bool {
        (!self.header || there.header) && (!self.transport || there.transport)
    }
}

/// The packet's checksums, computed from scratch.
pub fn right(bytes: &[u8], packet: &Packet) -> Right {
    let header = packet.source.is_ipv6() || sum(&bytes[..ipv4_header(bytes)], 0) == 0xffff;
    let body = &bytes[packet.transport_offset..packet.length];
    let transport = match packet.protocol {
        // What is checked is elsewhere as well.
        _ if packet.fragment.is_some() => true,
        1 if packet.source.is_ipv4() => sum(body, 0) == 0xffff,
        17 => {
            let length = usize::from(u16::from_be_bytes([body[4], body[5]]));
            let unchecked = packet.source.is_ipv4() && body[6..8] == [0, 0];
            unchecked || checked(packet, &body[..length])
        }
        6 => checked(packet, body),
        58 if packet.source.is_ipv6() => checked(packet, body),
        // ICMPv6 over IPv4 and the like: nobody says what their sums cover.
        _ => true,
    };
    Right { header, transport }
}

fn checked(packet: &Packet, body: &[u8]) -> bool {
    let start = pseudo_header(
        packet.source,
        packet.destination,
        packet.protocol,
        body.len(),
    );
    sum(body, start) == 0xffff
}

fn ipv4_header(bytes: &[u8]) -> usize {
    usize::from(bytes[0] & 0xf) * 4
}

/// Returns `frame` with a correct IPv4 header checksum, unless the field is zero. Otherwise few
/// random inputs would get past the checksum test.
pub fn with_header_checksum(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if let Some(&first) = frame.first()
        && first >> 4 == 4
        && let Some(header) = frame.get_mut(..usize::from(first & 0xf) * 4)
        && header.len() >= 20
        && header[10..12] != [0, 0]
    {
        header[10..12].fill(0);
        let sum = sum(header, 0);
        header[10..12].copy_from_slice(&(!sum).to_be_bytes());
    }
    frame
}

/// Whether every checksum of the packet is right, and there is one.
pub fn all_right(bytes: &[u8], packet: &Packet) -> bool {
    let right = right(bytes, packet);
    right.header && right.transport
}

/// Holds what arrives to what was sent: it is whole, nothing but addresses
/// (and what follows from them) differs, and a right checksum is still right.
pub fn delivered(sent: &[u8], arrived: &[u8]) -> Packet {
    let before = packet::parse(sent).expect("what can't be read is dropped");
    let after = packet::parse(arrived).expect("what is delivered can be read");
    assert_eq!(after.length, arrived.len(), "all of it, and no more");
    assert_eq!(
        Packet {
            source: before.source,
            destination: before.destination,
            ..after
        },
        before,
        "nothing but addresses changes"
    );
    let right_before = right(sent, &before);
    let right_after = right(arrived, &after);
    assert!(
        right_before.kept_in(right_after),
        "{right_before:?} became {right_after:?}: {sent:02x?} became {arrived:02x?}"
    );
    let translated = (before.source, before.destination) != (after.source, after.destination);
    if !translated || before.source.is_ipv6() {
        assert_eq!(&sent[..before.length], arrived, "untranslated, yet changed");
        return after;
    }
    // In the header nothing but the addresses and the checksum.
    let start = before.transport_offset;
    assert_eq!(sent[..10], arrived[..10]);
    assert_eq!(sent[20..start], arrived[20..start]);
    // Of the rest a checksum, and of ICMP what it quotes.
    let unchanged = match after.transport {
        Transport::Tcp { .. } => 18,
        Transport::Udp { .. } => 8,
        Transport::Icmp { .. } => return after,
        Transport::IcmpQuery { .. } | Transport::Other | Transport::Fragment => 0,
    };
    assert_eq!(
        sent[start + unchanged..before.length],
        arrived[start + unchanged..],
        "what is carried"
    );
    after
}

/// Holds a router's splitting to what it is to do: every fragment fits, can be
/// read, and together they are the packet.
pub fn splits(packet: &[u8], mtu: u16) {
    let mut scratch = vec![0; usize::from(mtu)];
    let mut carried = Vec::new();
    let whole = packet::parse(packet).expect("it was delivered");
    let start = whole.fragment.map_or(0, |part| part.offset);
    let mut more = true;
    let done = packet::split(packet, mtu, &mut scratch, |bytes| {
        assert!(bytes.len() <= usize::from(mtu));
        let part = packet::parse(bytes).expect("a fragment can be read");
        let place = part.fragment.expect("a fragment is one");
        assert_eq!(usize::from(place.offset - start), carried.len());
        assert_eq!(sum(&bytes[..ipv4_header(bytes)], 0), 0xffff);
        assert_eq!(
            (part.source, part.destination),
            (whole.source, whole.destination)
        );
        assert_eq!(part.protocol, whole.protocol);
        assert!(more, "nothing follows the last");
        more = place.more;
        carried.extend_from_slice(&bytes[ipv4_header(bytes)..]);
    });
    assert_eq!(done, Ok(()), "what is to be split can be");
    assert_eq!(more, whole.fragment.is_some_and(|part| part.more));
    assert_eq!(&packet[ipv4_header(packet)..], &carried[..]);
}

/// Holds a router's answer to what it is to be: an ICMP error with right
/// checksums, to the sender, from whom the packet was for, no longer than it,
/// that quotes it.
pub fn answers(sent: &[u8], answer: &[u8]) {
    let packet = packet::parse(sent).expect("what can't be read is not answered");
    let error = packet::parse(answer).expect("an answer can be read");
    assert_eq!(error.length, answer.len());
    assert!(error.length <= packet.length);
    assert!(error.is_icmp_error() && !packet.is_icmp_error());
    assert_eq!(
        (error.source, error.destination),
        (packet.destination, packet.source)
    );
    let all = Right {
        header: true,
        transport: true,
    };
    assert_eq!(right(answer, &error), all);
    let quote = &answer[error.transport_offset + 8..];
    assert_eq!(quote, &sent[..quote.len()], "word for word");
    match packet::embedded(answer, &error) {
        Some(quoted) => assert_eq!(
            (quoted.source, quoted.destination, quoted.protocol),
            (packet.source, packet.destination, packet.protocol)
        ),
        // Long extension headers leave no room for what follows them; messages
        // that neither ask nor answer belong to no flow, so nobody reads them.
        None => assert!(
            packet.transport_offset + 8 > quote.len()
                || matches!(packet.transport, Transport::Icmp { .. }),
            "{answer:02x?} doesn't quote {sent:02x?}"
        ),
    }
}
