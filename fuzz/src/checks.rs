//! What must hold of a packet that the data path hands on.

use std::net::IpAddr;

use sgwall::packet::{self, Packet};

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

/// Holds what arrives to what was sent: it is whole, nothing but addresses
/// (and what follows from them) differs, and a right checksum is still right.
pub fn delivered(sent: &[u8], arrived: &[u8]) {
    let before = packet::parse(sent).expect("what can't be read is dropped");
    let after = packet::parse(arrived).expect("what is delivered can be read");
    assert_eq!(after.length, arrived.len(), "all of it, and no more");
    assert_eq!(before.length, after.length);
    assert_eq!(before.protocol, after.protocol);
    assert_eq!(before.transport, after.transport);
    assert_eq!(before.fragment, after.fragment);
    let right_before = right(sent, &before);
    let right_after = right(arrived, &after);
    assert!(
        right_before.kept_in(right_after),
        "{right_before:?} became {right_after:?}: {sent:02x?} became {arrived:02x?}"
    );
    if (before.source, before.destination) == (after.source, after.destination) {
        assert_eq!(&sent[..before.length], arrived, "untranslated, yet changed");
    }
    if before.source.is_ipv6() {
        assert_eq!(&sent[..before.length], arrived, "IPv6 is not translated");
    }
    // Of a translated packet without a quoted one, only the addresses and the
    // checksums may differ.
    let header = match after.source {
        IpAddr::V4(_) => ipv4_header(arrived),
        IpAddr::V6(_) => 40,
    };
    assert_eq!(sent[..10], arrived[..10], "the start of the header");
    assert_eq!(
        sent[20..header.max(20)],
        arrived[20..header.max(20)],
        "its options"
    );
}
