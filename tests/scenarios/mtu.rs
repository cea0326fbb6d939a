//! Packets that are too big for the way through a gateway: senders learn of it
//! where an ICMP error may reach them, and wait for ever where it may not.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::setsockopt;

use crate::net::MOMENT;
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, at, drops, wait_until};
use crate::talk::connect;
use crate::wire::{DONT_FRAGMENT, IpMtuDiscover, Ipv6MtuDiscover, MAY_FRAGMENT};

/// Both hosts take jumbo frames, so TCP's segments are that large; between them
/// lies the internet gateway, which takes 1500 bytes.
const JUMBO: &str = "
vpc: { cidr: [10.23.0.0/16, '2001:db8:23::/56'], icmp_errors: HOW }
subnets: { public: { cidr: [10.23.1.0/24, '2001:db8:23:1::/64'], network_acl: edge } }
network_acls:
  edge:
    ingress:
      # ENTRY
      - { rule: 100, action: allow, protocol: all, from: 0.0.0.0/0 }
      - { rule: 101, action: allow, protocol: all, from: '::/0' }
    egress:
      - { rule: 100, action: allow, protocol: all, to: 0.0.0.0/0 }
      - { rule: 101, action: allow, protocol: all, to: '::/0' }
security_groups:
  host:
    ingress:
      - { protocol: udp, ports: 9001, from: 203.0.113.7/32 }
      # RULE
entities:
  host:
    kind: ec2
    subnet: public
    addresses: [10.23.1.10, '2001:db8:23:1::10']
    public_addresses: [198.51.100.10]
    security_groups: [host]
  far: { kind: external, via: igw, addresses: [203.0.113.7, '2001:db8:ffff::7'], mtu: 9001 }
";

const NEEDS_FRAGMENTING: &str =
    "- { protocol: icmp, type: 3, code: 4, from: 203.0.113.7/32, description: PMTUD }";
const PACKET_TOO_BIG: &str =
    "- { protocol: icmpv6, type: 2, from: '::/0', description: PMTUD over IPv6 }";

/// What is transferred: many times what a window holds at the start.
const TRANSFER: usize = 400_000;

fn text(how: &str, rule: &str, entry: &str) -> String {
    JUMBO
        .replace("HOW", how)
        .replace("# RULE", rule)
        .replace("# ENTRY", entry)
}

#[test]
fn path_mtu_discovery_works_by_a_rule_for_the_icmp_error() {
    if !namespaces!() {
        return;
    }
    for (address, rule) in [(far(), NEEDS_FRAGMENTING), (far6(), PACKET_TOO_BIG)] {
        let lab = Lab::up(&text("rule", rule, ""));
        uploads(&lab, address);
        lab.down();
    }
}

#[test]
fn path_mtu_discovery_works_without_a_rule_where_icmp_errors_are_related() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(&text("related", "", ""));
    uploads(&lab, far());
    uploads(&lab, far6());
    lab.down();
}

/// A transfer gets through, though its first segments were too big.
fn uploads(lab: &Lab, to: SocketAddr) {
    let before = lab.drops("far", "too_big");
    let (client, server) = connect(lab, "host", "far", to);
    assert_eq!(transfer(&client, &server, PATIENCE), TRANSFER);
    let status = lab.status();
    assert!(drops(&status, "far", "too_big") > before, "{status}");
    assert_eq!(drops(&status, "host", "no_ingress_rule"), 0);
}

#[test]
fn large_packets_vanish_where_the_icmp_error_is_kept_out() {
    if !namespaces!() {
        return;
    }
    let deny = "- { rule: 50, action: deny, protocol: icmp, type: -1, from: 0.0.0.0/0 }";
    // Open to all both ways, so nothing is tracked that an error could be about.
    let open = "- { protocol: tcp, ports: 0-65535, from: 0.0.0.0/0 }";
    thread::scope(|scope| {
        for (how, rule, entry, reason) in [
            ("rule", "", "", "no_ingress_rule"),
            ("rule", NEEDS_FRAGMENTING, deny, "network_acl_ingress"),
            ("related", "", deny, "network_acl_ingress"),
            ("related", open, "", "no_ingress_rule"),
        ] {
            scope.spawn(move || {
                let lab = Lab::up(&text(how, rule, entry));
                let (client, server) = connect(&lab, "host", "far", far());
                // The connection is there, what is small passes, what is large
                // doesn't, however often it is sent again.
                assert_eq!(
                    transfer(&client, &server, 2 * MOMENT),
                    0,
                    "{how} {rule} {entry}"
                );
                let status = lab.status();
                assert!(drops(&status, "far", "too_big") > 1, "{status}");
                assert!(drops(&status, "host", reason) > 1, "{reason}: {status}");
                lab.down();
            });
        }
    });
}

#[test]
fn what_comes_from_the_internet_learns_of_the_mtu_whatever_the_rules() {
    if !namespaces!() {
        return;
    }
    let tcp = "- { protocol: tcp, ports: 9000, from: [0.0.0.0/0, '::/0'] }";
    let lab = Lab::up(&text("rule", tcp, ""));
    for address in ["198.51.100.10:9000", "[2001:db8:23:1::10]:9000"] {
        let (client, server) = connect(&lab, "far", "host", address.parse().unwrap());
        assert_eq!(transfer(&client, &server, PATIENCE), TRANSFER);
    }
    assert!(lab.drops("host", "too_big") > 1);
    lab.down();
}

#[test]
fn a_datagram_that_may_not_be_fragmented_is_refused_after_the_first() {
    if !namespaces!() {
        return;
    }
    let rules = format!("{NEEDS_FRAGMENTING}\n      {PACKET_TOO_BIG}");
    let lab = Lab::up(&text("rule", &rules, ""));
    for (to, from, fits) in [
        (far(), "0.0.0.0:0", 1500 - 28),
        (far6(), "[::]:0", 1500 - 48),
    ] {
        let server = lab.inside("far", || UdpSocket::bind(to).unwrap());
        let client = lab.inside("host", || UdpSocket::bind(from).unwrap());
        client.connect(to).unwrap();
        match to {
            SocketAddr::V4(_) => setsockopt(&client, IpMtuDiscover, &DONT_FRAGMENT),
            SocketAddr::V6(_) => setsockopt(&client, Ipv6MtuDiscover, &DONT_FRAGMENT),
        }
        .unwrap();
        // Nobody knows better yet; the router answers the first one.
        client.send(&[1; 4000]).unwrap();
        let until = Instant::now() + PATIENCE;
        let refusal = loop {
            assert!(Instant::now() < until, "{to}: never told");
            match client.send(&[2; 4000]) {
                Ok(_) => thread::sleep(Duration::from_millis(1)),
                Err(error) => break error,
            }
        };
        assert_eq!(refusal.raw_os_error(), Some(Errno::EMSGSIZE as i32));
        assert!(client.send(&vec![3; fits + 1]).is_err());
        // The answer to another of the first may still be there to be told.
        wait_until("what fits is sent", || client.send(&vec![4; fits]).is_ok());
        assert_eq!(receive(&server, PATIENCE), Some(vec![4; fits]));
        assert_eq!(receive(&server, MOMENT), None);
    }
    lab.down();
}

#[test]
fn a_datagram_that_may_be_fragmented_arrives_in_pieces() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(&text("rule", "", ""));
    let far = lab.inside("far", || UdpSocket::bind(far()).unwrap());
    let host = lab.inside("host", || UdpSocket::bind("0.0.0.0:9001").unwrap());
    for socket in [&far, &host] {
        setsockopt(socket, IpMtuDiscover, &MAY_FRAGMENT).unwrap();
    }
    let datagram: Vec<u8> = (0..4000_u16).map(|i| i.to_be_bytes()[1]).collect();
    host.send_to(&datagram, self::far()).unwrap();
    assert_eq!(receive(&far, PATIENCE), Some(datagram.clone()));
    far.send_to(&datagram, "198.51.100.10:9001").unwrap();
    assert_eq!(receive(&host, PATIENCE), Some(datagram));

    // 4008 bytes of UDP, at most 1480 of them in a packet.
    let status = lab.status();
    for name in ["far", "host"] {
        assert_eq!(at(&status, name)["packets_in"], 3, "{status}");
    }
    assert_eq!(drops(&status, "far", "too_big"), 0);
    lab.down();
}

fn far() -> SocketAddr {
    (IpAddr::from([203, 0, 113, 7]), 9000).into()
}

fn far6() -> SocketAddr {
    "[2001:db8:ffff::7]:9000".parse().unwrap()
}

/// Sends [`TRANSFER`] bytes one way; gives how many arrived in time.
fn transfer(from: &TcpStream, mut to: &TcpStream, patience: Duration) -> usize {
    let mut sender = from.try_clone().unwrap();
    let sending = thread::spawn(move || sender.write_all(&vec![0x5a; TRANSFER]));
    let until = Instant::now() + patience;
    let mut buffer = vec![0; 1 << 16];
    let mut got = 0;
    while got < TRANSFER {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        to.set_read_timeout(Some(left)).unwrap();
        match to.read(&mut buffer) {
            Ok(length) => got += length,
            Err(error) => assert!(is_silence(&error), "{error}"),
        }
    }
    // Whoever still sends stops.
    let _ = from.shutdown(Shutdown::Both);
    let _ = sending.join().unwrap();
    got
}

fn receive(socket: &UdpSocket, wait: Duration) -> Option<Vec<u8>> {
    socket.set_read_timeout(Some(wait)).unwrap();
    let mut buffer = vec![0; 1 << 16];
    match socket.recv(&mut buffer) {
        Ok(length) => Some(buffer[..length].to_vec()),
        Err(error) if is_silence(&error) => None,
        Err(error) => panic!("{error}"),
    }
}

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}
