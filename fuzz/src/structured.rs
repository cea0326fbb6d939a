//! Bytes as choices of a packet builder, so that most packets are good ones
//! and reach deep.

use std::net::IpAddr;
use std::sync::LazyLock;

use sgwall::model::InterfaceIx;
use sgwall::packet;

use super::bytes::Bytes;
use super::wire::{self, Header, Ports};
use super::world::{MODELS, World};

/// Most things that happen in one input.
const MOST: usize = 96;
const PORTS: [u16; 10] = [80, 81, 53, 443, 54, 79, 1024, 65535, 0, 4000];
const FLAGS: [u8; 12] = [2, 18, 16, 17, 1, 4, 20, 0, 3, 19, 6, 24];
const PROTOCOLS: [u8; 8] = [6, 17, 1, 58, 6, 17, 47, 50];
/// Around every idle time and life span that there is.
const WAITS: [u64; 16] = [
    1,
    999,
    1000,
    9_999,
    10_000,
    10_001,
    29_999,
    30_000,
    59_999,
    60_000,
    179_999,
    180_000,
    350_000,
    599_999,
    600_000,
    432_000_000,
];
/// Payloads around the MTUs that the lab has.
const LENGTHS: [usize; 12] = [0, 1, 8, 16, 24, 1232, 1260, 1440, 1460, 1480, 1500, 8961];

/// Every address that means something in the lab, and some that don't.
static ADDRESSES: LazyLock<Vec<IpAddr>> = LazyLock::new(|| {
    let mut all: Vec<IpAddr> = Vec::new();
    for interface in &MODELS[0].interfaces {
        for address in &interface.addresses {
            all.push(address.private);
            all.extend(address.public.map(IpAddr::V4));
        }
    }
    let more = [
        // Services of the VPC, the routers of subnets.
        "10.0.0.2",
        "10.0.1.1",
        "2001:db8:0:1::1",
        "169.254.169.253",
        "169.254.169.254",
        "fd00:ec2::253",
        // Nobody's.
        "10.0.1.99",
        "10.9.9.9",
        "8.8.8.8",
        "2001:db8:0:2::99",
        "2001:db8:1::1",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "0.0.0.0",
        "127.0.0.1",
    ];
    all.extend(more.iter().filter_map(|text| text.parse::<IpAddr>().ok()));
    all
});

/// A packet that was sent, and who got it.
struct Sent {
    from: InterfaceIx,
    bytes: Vec<u8>,
    arrived: Option<(InterfaceIx, Vec<u8>)>,
}

/// Packets, answers, repeats, fragments, ICMP errors, waits and changes of the
/// rules, as the bytes choose.
pub fn structured_frames(data: &[u8]) {
    play(data).end();
}

/// The same packets as input of the target `frames`.
pub fn as_frames(data: &[u8]) -> Vec<u8> {
    play(data).end()
}

fn play(data: &[u8]) -> World {
    let mut bytes = Bytes::new(data);
    let mut world = World::new();
    let mut sent: Vec<Sent> = Vec::new();
    for _ in 0..MOST {
        if bytes.is_empty() {
            break;
        }
        let packet = match bytes.byte() % 16 {
            0..=4 => fresh(&mut bytes),
            5..=8 => earlier(&mut bytes, &sent).and_then(|one| reply(one, &mut bytes)),
            9 | 10 => earlier(&mut bytes, &sent).and_then(|one| again(one, &mut bytes)),
            11 => earlier(&mut bytes, &sent).and_then(|one| complaint(one, &mut bytes)),
            12 => earlier(&mut bytes, &sent).map(|one| bent(one, &mut bytes)),
            13 => {
                let wait = bytes.pick(&WAITS);
                world.wait(wait);
                None
            }
            14 => {
                world.change(bytes.byte());
                None
            }
            _ => {
                world.sweep();
                None
            }
        };
        if let Some((from, packet)) = packet {
            let arrived = world.send(from, &packet);
            sent.push(Sent {
                from,
                bytes: packet,
                arrived,
            });
        }
    }
    world
}

fn earlier<'s>(bytes: &mut Bytes<'_>, sent: &'s [Sent]) -> Option<&'s Sent> {
    let back = usize::from(bytes.byte()) % sent.len().max(1);
    sent.iter().rev().nth(back)
}

/// A packet of somebody's, mostly with an address of its own.
fn fresh(bytes: &mut Bytes<'_>) -> Option<(InterfaceIx, Vec<u8>)> {
    let from = World::interface(bytes.byte());
    let destination = bytes.pick(&ADDRESSES);
    let own = MODELS[0].interfaces.get(from.ix()).and_then(|interface| {
        let mut own = interface.addresses.iter().map(|address| address.private);
        own.find(|address| address.is_ipv4() == destination.is_ipv4())
    });
    let source = match own {
        Some(own) if !bytes.once_in(16) => own,
        _ => bytes.pick(&ADDRESSES),
    };
    let mut header = Header {
        source,
        destination,
        protocol: bytes.pick(&PROTOCOLS),
        id: 0,
        offset: 0,
        more: false,
        dont_fragment: false,
        extension: false,
    };
    let shape = bytes.byte();
    header.dont_fragment = shape & 1 == 1;
    header.extension = shape & 2 == 2;
    if shape & 0x1c == 0x1c {
        header.id = u32::from(bytes.byte() % 3);
        header.offset = u16::from(bytes.byte() % 8) * 8;
        header.more = shape & 0x20 == 0x20;
        header.dont_fragment = false;
    }
    let length = bytes.pick(&LENGTHS);
    let ports = Ports {
        source: bytes.pick(&PORTS),
        destination: bytes.pick(&PORTS),
    };
    let data = vec![0x5a; length];
    let body = if header.offset > 0 {
        data
    } else {
        transport(&header, ports, bytes, &data)
    };
    Some((from, wire::ip(&header, &body)?))
}

/// What follows the IP header, as the header's protocol has it.
fn transport(header: &Header, ports: Ports, bytes: &mut Bytes<'_>, data: &[u8]) -> Vec<u8> {
    match header.protocol {
        6 => {
            let flags = bytes.pick(&FLAGS);
            let numbers = (u32::from(bytes.byte()), u32::from(bytes.byte()));
            wire::tcp(header, ports, flags, numbers, data)
        }
        17 => wire::udp(header, ports, data),
        1 => {
            let kind = bytes.pick(&[8, 0, 13, 14, 3, 11, 5]);
            let code = bytes.pick(&[0, 4, 1]);
            wire::icmp(header, kind, code, u32::from(bytes.byte() % 4) << 16, data)
        }
        58 => {
            let kind = bytes.pick(&[128, 129, 1, 2, 3, 135]);
            let code = bytes.pick(&[0, 1]);
            wire::icmp(header, kind, code, u32::from(bytes.byte() % 4) << 16, data)
        }
        _ => data.to_vec(),
    }
}

/// What the receiver of a packet answers; if nobody got it, whoever it was for
/// claims to.
fn reply(one: &Sent, bytes: &mut Bytes<'_>) -> Option<(InterfaceIx, Vec<u8>)> {
    let (from, got) = match &one.arrived {
        Some((to, got)) => (*to, got),
        None => (World::interface(bytes.byte()), &one.bytes),
    };
    let packet = packet::parse(got).ok()?;
    let header = Header {
        source: packet.destination,
        destination: packet.source,
        protocol: packet.protocol,
        id: 0,
        offset: 0,
        more: false,
        dont_fragment: bytes.once_in(2),
        extension: false,
    };
    let data = vec![0xa5; bytes.pick(&LENGTHS)];
    let start = got.get(packet.transport_offset..packet.length)?;
    let body = match (packet.protocol, start) {
        (6, [a, b, c, d, e, f, g, h, ..]) => {
            let ports = Ports {
                source: u16::from_be_bytes([*c, *d]),
                destination: u16::from_be_bytes([*a, *b]),
            };
            // Mostly it acknowledges just what was sent.
            let seen = u32::from_be_bytes([*e, *f, *g, *h]);
            let ack = seen.wrapping_add(u32::from(bytes.byte() % 4));
            let flags = bytes.pick(&FLAGS);
            wire::tcp(&header, ports, flags, (u32::from(bytes.byte()), ack), &data)
        }
        (17, [a, b, c, d, ..]) => {
            let ports = Ports {
                source: u16::from_be_bytes([*c, *d]),
                destination: u16::from_be_bytes([*a, *b]),
            };
            wire::udp(&header, ports, &data)
        }
        (1 | 58, [kind, _, _, _, a, b, c, d, ..]) => {
            let rest = u32::from_be_bytes([*a, *b, *c, *d]);
            let kind = match kind {
                8 => 0,
                128 => 129,
                13 => 14,
                other => *other,
            };
            wire::icmp(&header, kind, 0, rest, &data)
        }
        _ => data,
    };
    Some((from, wire::ip(&header, &body)?))
}

/// The same packet again, of TCP with other flags and numbers.
fn again(one: &Sent, bytes: &mut Bytes<'_>) -> Option<(InterfaceIx, Vec<u8>)> {
    let packet = packet::parse(&one.bytes).ok()?;
    if packet.protocol != 6 || packet.fragment.is_some() {
        return Some((one.from, one.bytes.clone()));
    }
    let header = Header {
        source: packet.source,
        destination: packet.destination,
        protocol: 6,
        id: 0,
        offset: 0,
        more: false,
        dont_fragment: packet.dont_fragment,
        extension: false,
    };
    let [a, b, c, d, ..] = one.bytes.get(packet.transport_offset..packet.length)? else {
        return None;
    };
    let ports = Ports {
        source: u16::from_be_bytes([*a, *b]),
        destination: u16::from_be_bytes([*c, *d]),
    };
    let flags = bytes.pick(&FLAGS);
    let numbers = (u32::from(bytes.byte()), u32::from(bytes.byte()));
    let body = wire::tcp(&header, ports, flags, numbers, &[]);
    Some((one.from, wire::ip(&header, &body)?))
}

/// An ICMP error about a packet, from whoever got it or from a router.
fn complaint(one: &Sent, bytes: &mut Bytes<'_>) -> Option<(InterfaceIx, Vec<u8>)> {
    let (from, got) = match &one.arrived {
        Some((to, got)) => (*to, got),
        None => (World::interface(bytes.byte()), &one.bytes),
    };
    let packet = packet::parse(got).ok()?;
    let source = match bytes.byte() % 4 {
        0 => bytes.pick(&ADDRESSES),
        _ => packet.destination,
    };
    let v4 = packet.source.is_ipv4();
    let header = Header {
        source,
        destination: packet.source,
        protocol: if v4 { 1 } else { 58 },
        id: 0,
        offset: 0,
        more: false,
        dont_fragment: true,
        extension: false,
    };
    let (kind, code) = if v4 {
        bytes.pick(&[(3, 4), (3, 1), (11, 0), (12, 0), (5, 0)])
    } else {
        bytes.pick(&[(2, 0), (1, 0), (3, 0), (4, 0), (137, 0)])
    };
    let quoted = bytes
        .pick(&[28, 60, 20, 40, 48, 8, 548, 1232])
        .min(got.len());
    let rest = u32::from(bytes.pick(&[1500_u16, 1280, 0, 68]));
    let body = wire::icmp(&header, kind, code, rest, &got[..quoted]);
    Some((from, wire::ip(&header, &body)?))
}

/// The same packet with some of its bytes changed.
fn bent(one: &Sent, bytes: &mut Bytes<'_>) -> (InterfaceIx, Vec<u8>) {
    let mut packet = one.bytes.clone();
    for _ in 0..=bytes.byte() % 3 {
        let at = usize::from(bytes.byte()) % packet.len().max(1);
        let to = bytes.byte();
        if let Some(byte) = packet.get_mut(at) {
            *byte = to;
        }
    }
    if bytes.once_in(8) {
        packet.truncate(usize::from(bytes.byte()));
    }
    (one.from, packet)
}
