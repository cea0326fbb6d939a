//! Streams whose segmentation and checksums are left to devices that the appliance
//! stands in for: what is sent arrives, whatever its way and size.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::iter;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::sockopt::{OobInline, SetOsString};
use nix::sys::socket::{MsgFlags, SockProtocol, send, setsockopt};

use crate::bulk::{
    Still, digest, exchange, kernel_counts, nothing_was_damaged, payload, receive_all, send_all,
    traffic, without_super_packets,
};
use crate::net::checksum;
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, Start, wait_until};
use crate::talk::connect;
use crate::wire::{Heard, hear, raw};

/// `a` and `b` share a subnet and take jumbo frames, so does `c`, behind an ACL;
/// `small` doesn't. `a` has a public address. Both hosts on the internet are
/// behind a gateway that takes 1500 bytes, and `jumbo` doesn't know.
pub const LAB: &str = "
vpc: { cidr: [10.28.0.0/16, '2001:db8:28::/56'] }
subnets:
  one: { cidr: [10.28.1.0/24, '2001:db8:28:1::/64'] }
  two: { cidr: [10.28.2.0/24, '2001:db8:28:2::/64'], network_acl: two }
network_acls:
  two:
    ingress:
      - { rule: 100, action: allow, protocol: tcp, ports: 9000-65535, from: 10.28.1.0/24 }
      - { rule: 101, action: allow, protocol: tcp, ports: 9000-65535, from: '2001:db8:28:1::/64' }
      - { rule: 102, action: allow, protocol: udp, ports: 9000-9099, from: 10.28.1.0/24 }
      - { rule: 103, action: allow, protocol: udp, ports: 9000-9099, from: '2001:db8:28:1::/64' }
    egress:
      - { rule: 100, action: allow, protocol: tcp, ports: 1024-65535, to: 10.28.1.0/24 }
      - { rule: 101, action: allow, protocol: tcp, ports: 1024-65535, to: '2001:db8:28:1::/64' }
security_groups:
  host:
    ingress:
      - { protocol: tcp, ports: 9000-9099, from: [10.28.0.0/16, 203.0.113.0/24] }
      - { protocol: tcp, ports: 9000-9099, from: ['2001:db8:28::/56', '2001:db8:ffff::/64'] }
      - { protocol: udp, ports: 9000-9199, from: [10.28.0.0/16, 203.0.113.0/24] }
      - { protocol: udp, ports: 9000-9199, from: ['2001:db8:28::/56', '2001:db8:ffff::/64'] }
      - { protocol: icmp, type: 3, code: 4, from: 203.0.113.0/24, description: PMTUD }
      - { protocol: icmpv6, type: 2, from: '::/0', description: PMTUD over IPv6 }
    egress:
      - { protocol: tcp, ports: 0-65535, to: [0.0.0.0/0, '::/0'] }
      - { protocol: udp, ports: 9000-9299, to: [0.0.0.0/0, '::/0'] }
entities:
  a:
    kind: ec2
    subnet: one
    addresses: [10.28.1.10, '2001:db8:28:1::10']
    public_addresses: [198.51.100.10]
    security_groups: [host]
  b:
    kind: ec2
    subnet: one
    addresses: [10.28.1.11, '2001:db8:28:1::11']
    security_groups: [host]
  small:
    kind: ec2
    subnet: one
    mtu: 1500
    addresses: [10.28.1.12, '2001:db8:28:1::12']
    security_groups: [host]
  c:
    kind: ec2
    subnet: two
    addresses: [10.28.2.10, '2001:db8:28:2::10']
    security_groups: [host]
  far: { kind: external, via: igw, addresses: [203.0.113.7, '2001:db8:ffff::7'], mtu: 1500 }
  jumbo: { kind: external, via: igw, addresses: [203.0.113.8, '2001:db8:ffff::8'], mtu: 9001 }
";

/// Who talks to whom, and by which addresses: within a subnet, with the MTU of the
/// smaller one, across subnets, to the internet and from it.
pub const WAYS: [(&str, &str, [&str; 2]); 5] = [
    ("a", "b", ["10.28.1.11", "2001:db8:28:1::11"]),
    ("a", "small", ["10.28.1.12", "2001:db8:28:1::12"]),
    ("a", "c", ["10.28.2.10", "2001:db8:28:2::10"]),
    ("a", "far", ["203.0.113.7", "2001:db8:ffff::7"]),
    ("far", "a", ["198.51.100.10", "2001:db8:28:1::10"]),
];

/// Nothing to leave to a device, a segment and a byte more or less (with 12 bytes of
/// options: of 1500 over IPv6 and IPv4, and of 9001), and many segments.
const SIZES: [usize; 15] = [
    1,
    1427,
    1428,
    1429,
    1447,
    1448,
    1449,
    8928,
    8929,
    8930,
    8948,
    8949,
    8950,
    65_535,
    (1 << 20) + 7,
];

/// The options of a socket's IPv4 headers (ip(7)).
#[derive(Debug, Clone, Copy)]
struct IpOptions;
nix::setsockopt_impl!(
    IpOptions,
    libc::IPPROTO_IP,
    libc::IP_OPTIONS,
    OsString,
    SetOsString<'_>
);
/// One that does nothing, often enough to fill a word (RFC 791).
const NO_OPERATION: [u8; 4] = [1, 1, 1, 1];

/// How the appliance may be run: as it does by itself, and without offloads.
pub const MODES: [&[&str]; 2] = [&[], &["--no-offload"]];

/// Runs the lab with further arguments.
pub fn up(arguments: &[&str]) -> Lab {
    let mut start = Start::new(LAB);
    start.arguments = arguments.iter().map(|&it| it.to_owned()).collect();
    let lab = Lab::start(&start);
    lab.event("enforcing");
    lab
}

/// An address of an entity with a port.
pub fn socket(address: &str, port: u16) -> SocketAddr {
    (address.parse::<IpAddr>().unwrap(), port).into()
}

#[test]
fn streams_of_all_sizes_arrive_as_they_were_sent_both_ways_at_once() {
    if !namespaces!() {
        return;
    }
    let lab = up(&[]);
    streams_arrive(&lab);
    lab.down();
}

#[test]
fn streams_of_all_sizes_arrive_as_they_were_sent_over_links_without_offloads() {
    if !namespaces!() {
        return;
    }
    let lab = up(&["--no-offload"]);
    streams_arrive(&lab);
    lab.down();
}

#[test]
fn streams_from_a_sender_without_segmentation_offload_arrive_as_they_were_sent() {
    if !namespaces!() {
        return;
    }
    let lab = up(&[]);
    without_super_packets(&lab, "a");
    streams_arrive(&lab);
    lab.down();
}

#[test]
fn streams_find_their_way_from_jumbo_frames_through_a_gateway_of_1500() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        for (from, to, address, port) in [
            ("a", "jumbo", "203.0.113.8", 9000),
            ("a", "jumbo", "2001:db8:ffff::8", 9001),
            ("jumbo", "b", "2001:db8:28:1::11", 9000),
        ] {
            let before = traffic(&lab, to).into;
            let (client, server) = connect(&lab, from, to, socket(address, port));
            exchange(&client, &server, 1, (1 << 20) + 7);
            let after = traffic(&lab, to).into;
            // What arrived fits the gateway: jumbo frames would be six times as long.
            assert!((after.1 - before.1) <= 1500 * (after.0 - before.0));
        }
        for name in ["a", "b", "jumbo"] {
            assert!(lab.drops(name, "too_big") > 0, "{name} was never told");
        }
        nothing_was_damaged(&lab);
        lab.down();
    }
}

#[test]
fn counters_tell_the_segments_of_the_wire_and_not_what_devices_are_handed() {
    if !namespaces!() {
        return;
    }
    const LENGTH: usize = 1 << 20;
    /// An IPv4 and a TCP header with a timestamp; what a SYN has besides.
    const HEADERS: u64 = 20 + 20 + 12;
    const SYN: u64 = 8;
    for arguments in MODES {
        let lab = up(arguments);
        let (client, server) = connect(&lab, "a", "b", socket("10.28.1.11", 9000));
        thread::scope(|scope| {
            let got = scope.spawn(|| receive_all(&server));
            assert_eq!(send_all(&client, 1, LENGTH), got.join().unwrap());
        });
        drop((client, server));
        // The kernel counts segments whoever makes them. It is asked last: whoever
        // answers a packet has done so once that packet is counted.
        let mut a = traffic(&lab, "a");
        wait_until("the appliance and the kernels agree", || {
            a = traffic(&lab, "a");
            let b = traffic(&lab, "b");
            let sent = (segments_sent(&lab, "a"), segments_sent(&lab, "b"));
            (a.out, a.into) == (b.into, b.out) && (a.out.0, b.out.0) == sent
        });
        let resent = kernel_counts(&lab, "a")["TcpRetransSegs"];
        let once = LENGTH as u64 + a.out.0 * HEADERS + SYN;
        let (least, most) = (once, once + resent * 9001);
        assert!(
            (least..=most).contains(&a.out.1),
            "{arguments:?}: {a:?}, {least}"
        );
        assert!(a.out.1 <= a.out.0 * 9001, "{arguments:?}: {a:?}");
        lab.down();
    }
}

#[test]
fn each_segment_of_what_is_dropped_counts() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        let (client, server) = connect(&lab, "a", "jumbo", socket("203.0.113.8", 9000));
        thread::scope(|scope| {
            let got = scope.spawn(|| receive_all(&server));
            assert_eq!(send_all(&client, 1, 200_000), got.join().unwrap());
        });
        drop((client, server));
        wait_until("what a sent either arrived or was dropped", || {
            let sent = segments_sent(&lab, "a");
            let arrived = traffic(&lab, "a").out.0;
            let dropped = lab.drops("jumbo", "too_big");
            dropped > 1 && arrived + dropped == sent
        });
        lab.down();
    }
}

#[test]
fn what_is_translated_has_the_checksums_of_its_new_addresses() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        for (from, to, address) in [("a", "far", "203.0.113.7"), ("far", "a", "198.51.100.10")] {
            let ear = lab.inside(to, || raw([0; 4].into(), SockProtocol::Tcp));
            let (client, server) = connect(&lab, from, to, socket(address, 9000));
            exchange(&client, &server, 1, 100_000);
            let heard = all_heard(&ear);
            let supers = heard.iter().filter(|it| it.packet.len() > 1500).count();
            let left = heard.iter().filter(|it| is_left_to_the_device(it)).count();
            if arguments.is_empty() {
                assert!(supers > 0 && left >= supers, "{supers} {left}");
            } else {
                assert_eq!((supers, left), (0, 0));
            }
        }
        nothing_was_damaged(&lab);
        lab.down();
    }
}

#[test]
fn segments_that_come_one_by_one_are_joined_and_the_stream_is_the_same() {
    if !namespaces!() {
        return;
    }
    let lab = up(&[]);
    without_super_packets(&lab, "a");
    let ear = lab.inside("far", || raw([0; 4].into(), SockProtocol::Tcp));
    let (mut client, mut server) = connect(&lab, "a", "far", socket("203.0.113.7", 9000));
    // As much as may be sent before anything is acknowledged (RFC 6928).
    let sent = payload(1, 10 * 1448);
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    let still = Still::stand(&lab);
    client.write_all(&sent).unwrap();
    drop(still);
    let mut got = vec![0; sent.len()];
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.read_exact(&mut got).unwrap();
    assert!(got == sent, "another stream arrived");
    let heard = all_heard(&ear);
    let joined = heard.iter().filter(|it| it.packet.len() > 1500);
    assert!(joined.filter(|it| is_left_to_the_device(it)).count() > 0);
    nothing_was_damaged(&lab);
    lab.down();
}

/// Segments of TCP that the kernel in an entity has sent, those sent again included.
fn segments_sent(lab: &Lab, entity: &str) -> u64 {
    let counts = kernel_counts(lab, entity);
    counts["TcpOutSegs"] + counts["TcpRetransSegs"]
}

/// What a raw socket has heard so far.
pub fn all_heard(ear: &OwnedFd) -> Vec<Heard> {
    let next = || hear(ear, Duration::from_millis(1), |_| true);
    iter::from_fn(next).collect()
}

/// Whether the transport checksum of an IPv4 packet is left to be computed by a
/// device. Panics unless the sums that there are are right.
pub fn is_left_to_the_device(heard: &Heard) -> bool {
    let (header, message) = heard
        .packet
        .split_at(heard.packet.len() - heard.message().len());
    assert_eq!(
        checksum(header),
        0,
        "the header's checksum is wrong: {header:?}"
    );
    let protocol = header[9];
    let field = if protocol == 6 { 16 } else { 6 };
    let mut summed = header[12..20].to_vec();
    summed.extend([0, protocol]);
    summed.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    let pseudo = !checksum(&summed);
    summed.extend(message);
    let found = u16::from_be_bytes([message[field], message[field + 1]]);
    // Zero has two spellings.
    let is_left = found % 0xffff == pseudo % 0xffff;
    let is_right = checksum(&summed) == 0;
    assert!(
        is_left || is_right,
        "the checksum is wrong: {header:?}, {found}"
    );
    !is_right
}

#[test]
fn streams_with_options_urgent_bytes_and_congestion_notification_arrive_as_they_were_sent() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        for (port, (from, to, [address, _])) in (9000..).zip(WAYS) {
            for end in [from, to] {
                lab.inside(end, || {
                    fs::write("/proc/sys/net/ipv4/tcp_ecn", "1").unwrap()
                });
            }
            let ear = lab.inside(to, || raw([0; 4].into(), SockProtocol::Tcp));
            let (client, server) = connect(&lab, from, to, socket(address, port));
            client.set_nodelay(true).unwrap();
            setsockopt(&client, IpOptions, &OsString::from_vec(NO_OPERATION.into())).unwrap();
            setsockopt(&server, OobInline, &true).unwrap();
            let sent = payload(port.into(), 200_000);
            thread::scope(|scope| {
                let got = scope.spawn(|| receive_all(&server));
                send_oddly(&client, &sent);
                assert_eq!(got.join().unwrap(), digest(&sent), "{from} to {to}");
            });
            let heard = all_heard(&ear);
            let have = |what: fn(&Heard) -> bool| heard.iter().any(what);
            assert!(have(|it| it.packet[1] & 3 == 2), "none is marked");
            assert!(have(|it| it.packet[0] == 0x46), "none has an option");
            assert!(have(|it| it.message()[13] & 0x20 != 0), "none is urgent");
            for heard in &heard {
                // What is left to the device is right, too.
                is_left_to_the_device(heard);
            }
        }
        nothing_was_damaged(&lab);
        lab.down();
    }
}

/// Sends in pieces of many sizes, of which some end with an urgent byte, and closes.
fn send_oddly(to: &TcpStream, mut bytes: &[u8]) {
    to.set_write_timeout(Some(PATIENCE)).unwrap();
    for size in [1, 2, 30_000, 700, 64, 1448, 9000, 1449, 3]
        .into_iter()
        .cycle()
    {
        let (piece, rest) = bytes.split_at(bytes.len().min(size));
        let (last, others) = piece.split_last().unwrap();
        (&*to).write_all(others).unwrap();
        let urgent = if size == 30_000 {
            MsgFlags::MSG_OOB
        } else {
            MsgFlags::empty()
        };
        assert_eq!(send(to.as_raw_fd(), &[*last], urgent), Ok(1));
        bytes = rest;
        if bytes.is_empty() {
            break;
        }
    }
    to.shutdown(Shutdown::Write).unwrap();
}

/// Each way with all sizes and both families at once.
fn streams_arrive(lab: &Lab) {
    for (from, to, addresses) in WAYS {
        let mut connections = Vec::new();
        for (address, first) in addresses.into_iter().zip([9000, 9050]) {
            for (port, size) in (first..).zip(SIZES) {
                let (client, server) = connect(lab, from, to, socket(address, port));
                connections.push((client, server, size));
            }
        }
        thread::scope(|scope| {
            for (seed, (client, server, size)) in (1..).zip(&connections) {
                scope.spawn(move || exchange(client, server, seed, *size));
            }
        });
    }
    nothing_was_damaged(lab);
}
