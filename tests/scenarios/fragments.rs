//! Datagrams in fragments, on real packets: each follows the first of its
//! datagram, which alone has the ports.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use sgwall::model::protocol;
use sgwall::packet::{self, Transport};

use crate::net::{MOMENT, raw_ipv4, send_raw};
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, at, drops, wait_until};

/// Bytes of a datagram that is far larger than a packet.
const LENGTH: usize = 20_000;
/// Packets that carry it with an MTU of 1500: 20,008 bytes of UDP, 1480 of them
/// in each over IPv4 and 1448 over IPv6.
const PIECES: u64 = 14;

/// The flag in the seventh byte of an IPv4 header (RFC 791).
const MORE_FRAGMENTS: u8 = 0x20;

const PAIR: &str = "
vpc: { cidr: [10.26.0.0/16, '2001:db8:26::/56'] }
subnets:
  one: { cidr: [10.26.1.0/24, '2001:db8:26:1::/64'] }
  two: { cidr: [10.26.2.0/24, '2001:db8:26:2::/64'], network_acl: two }
network_acls:
  two:
    ingress:
      - { rule: 100, action: allow, protocol: udp, ports: 9000-9001, from: 0.0.0.0/0 }
      - { rule: 101, action: allow, protocol: udp, ports: 9000-9001, from: '::/0' }
    egress:
      - { rule: 100, action: allow, protocol: udp, ports: 1024-65535, to: 0.0.0.0/0 }
      - { rule: 101, action: allow, protocol: udp, ports: 1024-65535, to: '::/0' }
security_groups:
  asks: { egress: [ { protocol: udp, ports: 9000-9002, to: [0.0.0.0/0, '::/0'] } ] }
  answers:
    ingress: [ { protocol: udp, ports: 9000, from: sg/asks }, { protocol: udp, ports: 9002, from: sg/asks } ]
    egress: []
entities:
  asker:
    kind: ec2
    subnet: one
    mtu: 1500
    addresses: [10.26.1.10, '2001:db8:26:1::10']
    public_addresses: [198.51.100.10]
    security_groups: [asks]
  server:
    kind: ec2
    subnet: two
    mtu: 1500
    addresses: [10.26.2.10, '2001:db8:26:2::10']
    security_groups: [answers]
  far: { kind: external, via: igw, addresses: [203.0.113.7] }
";

#[test]
fn a_datagram_in_fragments_passes_both_ways_by_the_rule_for_its_port() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(PAIR);
    for (server, to, from) in [
        ("server", "10.26.2.10:9000", "10.26.1.10:0"),
        (
            "server",
            "[2001:db8:26:2::10]:9000",
            "[2001:db8:26:1::10]:0",
        ),
        // Every fragment is translated, though only the first has ports.
        ("far", "203.0.113.7:9000", "10.26.1.10:0"),
    ] {
        let before = lab.status();
        let server_end = bind(&lab, server, to);
        let client_end = bind(&lab, "asker", from);
        let request: Vec<u8> = (0..LENGTH).map(|i| (i / 7).to_le_bytes()[0]).collect();
        client_end.send_to(&request, to).unwrap();
        let (got, asker) = receive(&server_end, PATIENCE).unwrap();
        assert!(got == request, "{to}: another datagram arrived");
        let reply: Vec<u8> = request.iter().map(|byte| !byte).collect();
        server_end.send_to(&reply, asker).unwrap();
        let (got, _) = receive(&client_end, PATIENCE).unwrap();
        assert!(got == reply, "{to}: another datagram came back");
        for name in [server, "asker"] {
            wait_until("every fragment is counted", || {
                let counted = |status| at(status, name)["packets_in"].as_u64().unwrap();
                counted(&lab.status()) - counted(&before) >= PIECES
            });
        }
    }
    lab.down();
}

#[test]
fn every_fragment_of_a_datagram_that_is_refused_is_dropped_with_its_first() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(PAIR);
    for (port, dropped_at, reason) in [
        // The sender's groups, the receiver's ACL, the receiver's groups.
        (9003, "asker", "no_egress_rule"),
        (9002, "server", "network_acl_ingress"),
        (9001, "server", "no_ingress_rule"),
    ] {
        for (to, from) in [
            (address("10.26.2.10"), "10.26.1.10:0"),
            (address("2001:db8:26:2::10"), "[2001:db8:26:1::10]:0"),
        ] {
            let to: SocketAddr = (to, port).into();
            let before = lab.drops(dropped_at, reason);
            let server_end = bind(&lab, "server", &to.to_string());
            let client_end = bind(&lab, "asker", from);
            client_end.send_to(&[0x5a; LENGTH], to).unwrap();
            assert!(receive(&server_end, MOMENT).is_none(), "{to}");
            let counted = lab.drops(dropped_at, reason) - before;
            assert_eq!(counted, PIECES, "{to}: {reason}");
        }
    }
    assert_eq!(at(&lab.status(), "server")["packets_in"], 0);
    lab.down();
}

#[test]
fn fragments_in_any_order_make_up_a_datagram() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(PAIR);
    let server_end = bind(&lab, "server", "10.26.2.10:9000");
    let raw = lab.inside("asker", raw_ipv4);
    let mut fragments = fragments(1, 9000);
    fragments.reverse();
    for fragment in &fragments {
        send_raw(&raw, address("10.26.2.10"), fragment).unwrap();
    }
    let (got, _) = receive(&server_end, PATIENCE).unwrap();
    assert_eq!(got, vec![0x5a; 6000]);
    lab.down();
}

#[test]
fn what_comes_before_its_first_shares_the_fate_that_the_first_meets() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(PAIR);
    let raw = lab.inside("asker", raw_ipv4);
    let mut fragments = fragments(2, 9001);
    let count = fragments.len() as u64;
    fragments.rotate_left(1);
    let (first, later) = fragments.split_last().unwrap();
    for fragment in later {
        send_raw(&raw, address("10.26.2.10"), fragment).unwrap();
    }
    std::thread::sleep(MOMENT);
    let status = lab.status();
    assert_eq!(at(&status, "server")["packets_in"], 0);
    assert_eq!(drops(&status, "server", "no_ingress_rule"), 0);
    send_raw(&raw, address("10.26.2.10"), first).unwrap();
    wait_until("all are dropped", || {
        lab.drops("server", "no_ingress_rule") == count
    });
    lab.down();
}

#[test]
fn overlapping_and_tiny_fragments_never_arrive() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(PAIR);
    let server_end = bind(&lab, "server", "10.26.2.10:9000");
    let raw = lab.inside("asker", raw_ipv4);
    let send = |fragment: &[u8]| send_raw(&raw, address("10.26.2.10"), fragment).unwrap();

    // The second one twice: whoever reassembles may take either.
    let twice = fragments(3, 9000);
    send(&twice[0]);
    send(&twice[1]);
    let mut other = twice[1].clone();
    other[100] ^= 0xff;
    send(&other);
    for rest in &twice[2..] {
        send(rest);
    }
    let poisoned = twice.len() as u64 - 1;
    wait_until("the datagram is given up", || {
        lab.drops("asker", "overlapping_fragment") == poisoned
    });

    // A first one that has TCP's ports and not its flags (RFC 1858).
    let mut tiny = build(4, 9000)[..20 + 8].to_vec();
    tiny[2..4].copy_from_slice(&28_u16.to_be_bytes());
    tiny[6] = MORE_FRAGMENTS;
    tiny[9] = protocol::TCP;
    send(&tiny);
    wait_until("the tiny one is dropped", || {
        lab.drops("asker", "tiny_fragment") == 1
    });
    assert!(receive(&server_end, MOMENT).is_none());
    lab.down();
}

fn bind(lab: &Lab, entity: &str, to: &str) -> UdpSocket {
    lab.inside(entity, || UdpSocket::bind(to))
        .unwrap_or_else(|error| panic!("{to}: {error}"))
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A datagram of 6000 bytes from the asker to that port of the server.
fn build(id: u8, port: u16) -> Vec<u8> {
    let transport = Transport::Udp {
        source: 40_000,
        destination: port,
    };
    let (from, to) = (address("10.26.1.10"), address("10.26.2.10"));
    let mut packet = packet::build(from, to, protocol::UDP, transport, &[0x5a; 6000]).unwrap();
    // Its own number, and it may be fragmented. The kernel does the checksum.
    packet[4..8].copy_from_slice(&[0, id, 0, 0]);
    packet
}

fn fragments(id: u8, port: u16) -> Vec<Vec<u8>> {
    let mut fragments = Vec::new();
    let mut piece = [0; 1500];
    packet::split(&build(id, port), 1500, &mut piece, |fragment| {
        fragments.push(fragment.to_vec());
    })
    .unwrap();
    assert_eq!(fragments.len(), 5);
    fragments
}

fn receive(socket: &UdpSocket, wait: Duration) -> Option<(Vec<u8>, SocketAddr)> {
    socket.set_read_timeout(Some(wait)).unwrap();
    let mut buffer = vec![0; 1 << 16];
    match socket.recv_from(&mut buffer) {
        Ok((length, from)) => Some((buffer[..length].to_vec(), from)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    }
}
