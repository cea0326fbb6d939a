//! Whatever kernels hand over with offloads, many packets in one or without their
//! checksums, arrives byte for byte as it was sent; and so it does without.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;

use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, Start, at, wait_until};
use crate::talk::connect;
use crate::wire::{IpMtuDiscover, MAY_FRAGMENT};

/// Hosts that take jumbo frames, one that doesn't, and one behind a gateway that
/// doesn't either, though the host would; so TCP's segments are too large at first.
const LAB: &str = "
vpc: { cidr: [10.24.0.0/16, '2001:db8:24::/56'] }
subnets:
  one: { cidr: [10.24.1.0/24, '2001:db8:24:1::/64'] }
security_groups:
  host:
    ingress:
      - { protocol: tcp, ports: 9000, from: [0.0.0.0/0, '::/0'] }
      - { protocol: udp, ports: 9000, from: [0.0.0.0/0, '::/0'] }
      - { protocol: icmp, type: 3, code: 4, from: 0.0.0.0/0 }
      - { protocol: icmpv6, type: 2, from: '::/0' }
entities:
  a:
    kind: ec2
    subnet: one
    addresses: [10.24.1.10, '2001:db8:24:1::10']
    public_addresses: [198.51.100.10]
    security_groups: [host]
  b: { kind: ec2, subnet: one, addresses: [10.24.1.11, '2001:db8:24:1::11'], security_groups: [host] }
  narrow:
    kind: ec2
    subnet: one
    addresses: [10.24.1.12, '2001:db8:24:1::12']
    security_groups: [host]
    mtu: 1500
  far: { kind: external, via: igw, addresses: [203.0.113.7, '2001:db8:ffff::7'], mtu: 9001 }
";

const PORT: u16 = 9000;
/// Receivers by name, with their addresses as `a` reaches them and the longest
/// datagram of IPv4 and IPv6 that fits the way.
const RECEIVERS: [(&str, [&str; 2], [usize; 2]); 3] = [
    ("b", ["10.24.1.11", "2001:db8:24:1::11"], [8973, 8953]),
    ("narrow", ["10.24.1.12", "2001:db8:24:1::12"], [1472, 1452]),
    ("far", ["203.0.113.7", "2001:db8:ffff::7"], [1472, 1452]),
];

#[test]
fn what_kernels_with_offloads_send_arrives_as_it_was_sent() {
    if !namespaces!() {
        return;
    }
    everything_arrives(&[]);
}

#[test]
fn the_same_arrives_without_offloads() {
    if !namespaces!() {
        return;
    }
    everything_arrives(&["--no-offload"]);
}

fn everything_arrives(arguments: &[&str]) {
    let mut start = Start::new(LAB);
    start
        .arguments
        .extend(arguments.iter().map(|&argument| argument.to_owned()));
    let mut lab = Lab::start(&start);
    lab.event("enforcing");
    for (to, addresses, longest) in RECEIVERS {
        for (address, longest) in addresses.into_iter().zip(longest) {
            let address = SocketAddr::new(address.parse().unwrap(), PORT);
            streams(&lab, to, address);
            datagrams(&lab, to, address, longest);
        }
    }
    let narrow = SocketAddr::new("10.24.1.12".parse().unwrap(), PORT);
    datagrams_in_fragments(&lab, "narrow", narrow);
    lab.end(Signal::SIGTERM);
}

/// Data both ways at once over TCP, in pieces of many lengths.
fn streams(lab: &Lab, to: &str, address: SocketAddr) {
    let (client, server) = connect(lab, "a", to, address);
    let (up, down) = (noise(1, 3_000_001), noise(2, 2_000_003));
    thread::scope(|scope| {
        scope.spawn(|| say(&client, &up));
        scope.spawn(|| say(&server, &down));
        let heard_up = scope.spawn(|| hear(&server, up.len()));
        assert!(hear(&client, down.len()) == down, "a heard something else");
        assert!(
            heard_up.join().unwrap() == up,
            "{to} at {address} heard something else"
        );
    });
}

fn say(mut to: &TcpStream, text: &[u8]) {
    let mut rest = text;
    for length in [1, 2, 3, 1447, 1448, 1449, 8948, 65_535, 200_001]
        .iter()
        .cycle()
    {
        if rest.is_empty() {
            return;
        }
        let (piece, others) = rest.split_at(rest.len().min(*length));
        to.write_all(piece).unwrap();
        rest = others;
    }
}

fn hear(mut from: &TcpStream, length: usize) -> Vec<u8> {
    from.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut text = vec![0; length];
    from.read_exact(&mut text).unwrap();
    text
}

/// Datagrams one by one and many in one call, each of which counts; none gets lost
/// or out of order.
fn datagrams(lab: &Lab, to: &str, address: SocketAddr, longest: usize) {
    let (sender, receiver) = sockets(lab, to, address);
    let before = lab.status();
    let mut sent = 0;
    for (size, total) in [
        (1, 40),
        (7, 41),
        (64, 64 * 60),
        (100, 5_950),
        (1200, 30_001),
        (longest, longest * 6),
        (longest - 1, longest * 4),
        (1000, 999),
    ] {
        let text = noise(3, total);
        let expected: Vec<&[u8]> = text.chunks(size).collect();
        for at_once in [true, false] {
            if at_once {
                let size = i32::try_from(size).unwrap();
                setsockopt(&sender, UdpGsoSegment, &size).unwrap();
                // A call takes less than 64 KiB, in 64 datagrams.
                for some in text.chunks(size_of_a_call(expected[0].len())) {
                    sender.send(some).unwrap();
                }
                setsockopt(&sender, UdpGsoSegment, &0).unwrap();
            } else {
                for datagram in &expected {
                    sender.send(datagram).unwrap();
                }
            }
            all_come(&receiver, &expected);
            sent += expected.len() as u64;
        }
    }
    let counted = |what| {
        let now = at(&lab.status(), to)[what].as_u64().unwrap();
        now - at(&before, to)[what].as_u64().unwrap()
    };
    wait_until("every datagram is counted", || {
        counted("packets_in") == sent
    });
}

fn size_of_a_call(datagram: usize) -> usize {
    datagram * 60.min(60_000 / datagram)
}

/// Datagrams that are too long for the way and may be fragmented, several in one call.
fn datagrams_in_fragments(lab: &Lab, to: &str, address: SocketAddr) {
    let (sender, receiver) = sockets(lab, to, address);
    setsockopt(&sender, IpMtuDiscover, &MAY_FRAGMENT).unwrap();
    let text = noise(4, 4 * 3001 + 17);
    setsockopt(&sender, UdpGsoSegment, &3001).unwrap();
    sender.send(&text).unwrap();
    all_come(&receiver, &text.chunks(3001).collect::<Vec<_>>());
}

fn sockets(lab: &Lab, to: &str, address: SocketAddr) -> (UdpSocket, UdpSocket) {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => [0_u16; 8].into(),
    };
    let receiver = lab.inside(to, || UdpSocket::bind((any, PORT)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = lab.inside("a", || UdpSocket::bind((any, 0)).unwrap());
    sender.connect(address).unwrap();
    (sender, receiver)
}

/// The datagrams come, in their order.
fn all_come(receiver: &UdpSocket, expected: &[&[u8]]) {
    let mut buffer = vec![0; 1 << 16];
    for (number, datagram) in expected.iter().enumerate() {
        let length = receiver.recv(&mut buffer).unwrap_or_else(|error| {
            panic!("{number} of {} came: {error}", expected.len());
        });
        assert!(
            buffer[..length] == **datagram,
            "datagram {number} of {} is another, of {length} bytes",
            expected.len()
        );
    }
}

/// Bytes without a pattern (Knuth's MMIX generator).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}
