//! What a workload may try to get round the real program. `scripts/containers` tries the same,
//! and more, with the capabilities that Docker gives.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt,
    socket, sockopt,
};

use super::guard::{Asker, Guard};
use super::netlink;
use super::processes::wait_until;
use super::support::{
    Ear, Echo, GATEWAY, GATEWAY6, Network, Secret, Space, address, address6, arp_request, ip, mac,
    send_frame,
};

/// Port 7 of the gateway and nothing else.
const RULES: &str = "
security_groups:
  app:
    ingress: [ { protocol: udp, ports: 7, from: sg/gateway } ]
    egress: [ { protocol: udp, ports: 7, to: sg/gateway } ]
  gateway: { members: [172.28.0.1, 'fd28::1'] }
";
const APP: u8 = 10;
const ALLOWED: u16 = 7;
const FORBIDDEN: u16 = 9;
/// How long a frame that should not come is waited for.
const SHORT: Duration = Duration::from_millis(60);

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Type of local experiments (IEEE 802).
const EXPERIMENT: u16 = 0x88b5;
const VLAN: u16 = 0x8100;
const UDP: u8 = 17;

/// Frames and packets of one workload's, for the gateway.
struct Forger {
    mac: [u8; 6],
    gateway: [u8; 6],
}

impl Forger {
    fn frame(&self, kind: u16, rest: &[u8]) -> Vec<u8> {
        Self::frame_from(self.mac, self.gateway, kind, rest)
    }

    fn frame_from(from: [u8; 6], to: [u8; 6], kind: u16, rest: &[u8]) -> Vec<u8> {
        [&to[..], &from, &kind.to_be_bytes(), rest].concat()
    }
}

fn udp(port: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap();
    let head = [4444_u16, port, length, 0].map(u16::to_be_bytes).concat();
    [&head[..], data].concat()
}

/// An IPv4 packet to the gateway. `place` holds flags and offset of a fragment.
fn ipv4(from: IpAddr, place: u16, data: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, ip(GATEWAY)) else {
        panic!("IPv4 alone");
    };
    let mut head = vec![0x45, 0];
    head.extend(u16::try_from(20 + data.len()).unwrap().to_be_bytes());
    head.extend([0, 77]);
    head.extend(place.to_be_bytes());
    head.extend([64, UDP, 0, 0]);
    head.extend(from.octets());
    head.extend(to.octets());
    let sum: u32 = head
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    head[10..12].copy_from_slice(&(!sum).to_be_bytes());
    [head, data.to_vec()].concat()
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, data: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
    packet.extend([UDP, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(data);
    packet
}

/// The link-local address that the kernel makes of a MAC (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let octets = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    octets.into()
}

fn send_udp(device: Option<&str>, to: SocketAddr, data: &[u8]) {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    if let Some(device) = device {
        setsockopt(&socket, sockopt::BindToDevice, &device.into()).unwrap();
    }
    let _ = setsockopt(&socket, sockopt::Broadcast, &true);
    let _ = socket.send_to(data, to);
}

/// Sends a packet with its header, as `IPPROTO_RAW` lets.
fn send_packet(packet: &[u8]) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let raw = SockProtocol::Raw;
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, raw).unwrap();
    let to = SockaddrIn::new(172, 28, 0, 1, 0);
    let _ = sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty());
}

pub fn nothing_forbidden_leaves_a_guarded_workload_however_it_is_sent() {
    let network = Network::new();
    let app = network.container(APP);
    let own = app.run(|| mac("eth0"));
    let gateway = network.space.run(|| mac("br0"));
    let _echo = Echo::start(&network.space);
    let guard = Guard::start(&app, RULES, "app", &[]);
    let ear = Ear::new(&network.space);
    let forger = Forger { mac: own, gateway };
    let hears = |mark: &[u8], patience| {
        let is_there = |frame: &[u8]| frame.windows(mark.len()).any(|part| part == mark);
        ear.hears(patience, is_there).is_some()
    };
    // Beside what is forbidden: the gateway hears what is allowed, and answers.
    let control = |what: &str| {
        let mark = format!("allowed {what}");
        app.run(|| send_udp(None, (ip(GATEWAY), ALLOWED).into(), mark.as_bytes()));
        assert!(hears(mark.as_bytes(), Duration::from_secs(5)), "{what}");
    };
    control("before");
    for (what, send) in attempts() {
        let mark = format!("forbidden {what}");
        app.run(|| send(&forger, mark.as_bytes()));
        assert!(!hears(mark.as_bytes(), SHORT), "{what} got round");
    }
    control("afterwards");
    let status = guard.status();
    for reason in [
        "no_egress_rule",
        "source_check",
        "neighbour_spoof",
        "not_ip",
        "overlapping_fragment",
    ] {
        assert!(status.contains(reason), "{reason} is not in {status}");
    }
}

type Attempt = (&'static str, fn(&Forger, &[u8]));

fn attempts() -> Vec<Attempt> {
    vec![
        ("by a socket", |_, data| {
            send_udp(None, (ip(GATEWAY), FORBIDDEN).into(), data);
        }),
        ("by IPv6", |_, data| {
            send_udp(None, (ip(GATEWAY6), FORBIDDEN).into(), data);
        }),
        ("bound to the raw device", |_, data| {
            send_udp(Some("sgw-eth0"), (ip(GATEWAY), ALLOWED).into(), data);
            send_udp(Some("sgw-eth0"), (ip(GATEWAY6), ALLOWED).into(), data);
        }),
        ("broadcast by the raw device", |_, data| {
            let to = ip("255.255.255.255");
            send_udp(Some("sgw-eth0"), (to, ALLOWED).into(), data);
        }),
        ("to all nodes of the link", |_, data| {
            for device in ["eth0", "sgw-eth0"] {
                let to = "ff02::1".parse().unwrap();
                let to = SocketAddrV6::new(to, ALLOWED, 0, netlink::index(device));
                send_udp(None, to.into(), data);
            }
        }),
        ("to a link-local address", |forger, data| {
            for device in ["eth0", "sgw-eth0"] {
                let to = link_local(forger.gateway);
                let to = SocketAddrV6::new(to, ALLOWED, 0, netlink::index(device));
                send_udp(None, to.into(), data);
            }
        }),
        ("under another address, by a raw socket", |_, data| {
            send_packet(&ipv4(ip("1.2.3.4"), 0, &udp(ALLOWED, data)));
        }),
        ("by a raw socket", |_, data| {
            send_packet(&ipv4(address(APP), 0, &udp(FORBIDDEN, data)));
        }),
        ("in fragments", |_, data| {
            let whole = udp(FORBIDDEN, data);
            send_packet(&ipv4(address(APP), 1 << 13, &whole[..16]));
            send_packet(&ipv4(address(APP), 2, &whole[16..]));
        }),
        ("in a later fragment alone", |_, data| {
            send_packet(&ipv4(address(APP), 100, data));
        }),
        ("in fragments that overlap", |_, data| {
            let first = udp(ALLOWED, &[b'x'; 40]);
            send_packet(&ipv4(address(APP), 1 << 13, &first));
            // Of eights of bytes, as all but the last are.
            let mut second = udp(FORBIDDEN, data);
            second.resize(second.len().next_multiple_of(8), 0);
            send_packet(&ipv4(address(APP), 1 << 13 | 1, &second));
            send_packet(&ipv4(address(APP), 1 << 13, &second));
        }),
        ("by a packet socket on the raw device", |forger, data| {
            let frame = forger.frame(IPV4, &ipv4(address(APP), 0, &udp(ALLOWED, data)));
            let guesses = (0..64).map(|bit| 1_u64 << bit).chain([0, u64::MAX, 7]);
            for guess in guesses {
                let _ = send_frame("sgw-eth0", &frame, Some(Secret::from(guess)));
            }
            let _ = send_frame("sgw-eth0", &frame, None);
        }),
        ("by a packet socket on eth0", |forger, data| {
            let frame = forger.frame(IPV4, &ipv4(address(APP), 0, &udp(FORBIDDEN, data)));
            let _ = send_frame("eth0", &frame, None);
        }),
        ("under another MAC", |forger, data| {
            let packet = ipv4(address(APP), 0, &udp(ALLOWED, data));
            let mac = [2, 1, 2, 3, 4, 5];
            let frame = Forger::frame_from(mac, forger.gateway, IPV4, &packet);
            let _ = send_frame("eth0", &frame, None);
        }),
        ("under another address, in a frame", |forger, data| {
            let frame = forger.frame(IPV4, &ipv4(ip("1.2.3.4"), 0, &udp(ALLOWED, data)));
            let _ = send_frame("eth0", &frame, None);
        }),
        ("under another IPv6 address, in a frame", |forger, data| {
            let (IpAddr::V6(from), IpAddr::V6(to)) = (address6(99), ip(GATEWAY6)) else {
                return;
            };
            let frame = forger.frame(IPV6, &ipv6(from, to, &udp(ALLOWED, data)));
            let _ = send_frame("eth0", &frame, None);
        }),
        ("in a frame that is no IP", |forger, data| {
            let _ = send_frame("eth0", &forger.frame(EXPERIMENT, data), None);
        }),
        ("in a tagged frame", |forger, data| {
            let inner = ipv4(address(APP), 0, &udp(ALLOWED, data));
            let tagged = [&[0, 1, 8, 0][..], &inner].concat();
            let _ = send_frame("eth0", &forger.frame(VLAN, &tagged), None);
        }),
        ("behind ARP for somebody else", |forger, data| {
            let mut frame = arp_request(forger.mac, ip("172.28.0.99"), ip(GATEWAY));
            frame.extend(data);
            let _ = send_frame("eth0", &frame, None);
        }),
        ("behind ARP of its own", |forger, data| {
            let mut frame = arp_request(forger.mac, address(APP), ip(GATEWAY));
            frame.extend(data);
            let _ = send_frame("eth0", &frame, None);
        }),
    ]
}

pub fn an_interface_that_appears_beside_a_guarded_one_is_closed_and_taken_by_the_next_run() {
    let network = Network::new();
    let app = network.container(APP);
    let _echo = Echo::start(&app);
    let mut guard = Guard::start(&app, RULES, "app", &[]);
    let friend = Asker::start(&network.space, address(APP));
    friend.is_answered();

    network.connect(&app, "eth1");
    app.run(|| netlink::add_address(netlink::index("eth1"), ip("10.88.0.5"), 24, None));
    network
        .space
        .run(|| netlink::add_address(netlink::index("br0"), ip("10.88.0.1"), 24, None));
    let said = guard.event("closed");
    assert_eq!(said["interface"], "eth1");
    let second = Asker::start(&network.space, ip("10.88.0.5"));
    assert_eq!(second.answers_for(Duration::from_millis(300)), 0);
    app.run(|| send_udp(None, (ip("10.88.0.1"), ALLOWED).into(), b"by the second"));
    friend.is_answered();

    guard.end();
    guard.begin_again();
    let taken = guard.event("enforcing")["interfaces"].to_string();
    assert!(taken.contains("eth0") && taken.contains("eth1"), "{taken}");
    // Who asks from 10.88.0.1 is no member of the group.
    assert_eq!(second.answers_for(Duration::from_millis(300)), 0);
    guard.save(&RULES.replace("members: [", "members: [10.88.0.1, "));
    second.is_answered();
}

pub fn only_named_interfaces_are_guarded_and_the_others_are_told_of() {
    let network = Network::new();
    let app = network.container(APP);
    network.connect(&app, "eth1");
    app.run(|| netlink::add_address(netlink::index("eth1"), ip("10.88.0.5"), 24, None));
    network
        .space
        .run(|| netlink::add_address(netlink::index("br0"), ip("10.88.0.1"), 24, None));
    let _echo = Echo::start(&app);
    let stranger = network.container(30);
    let guard = Guard::begin(&app, RULES, "app", &["--interface", "eth0"]);
    assert_eq!(guard.event("left_open")["interface"], "eth1");
    guard.event("enforcing");
    Asker::start(&network.space, ip("10.88.0.5")).is_answered();
    let asker = Asker::start(&stranger, address(APP));
    assert_eq!(asker.answers_for(Duration::from_millis(300)), 0);
    wait_until("the probe is content", || guard.probe() == Some(0));
}

/// From outside: neither a port that no rule names, nor by an address that is the link's alone.
pub fn nothing_forbidden_enters() {
    let network = Network::new();
    let app = network.container(APP);
    let own = app.run(|| mac("eth0"));
    let forbidden = listener(&app, FORBIDDEN);
    let allowed = listener(&app, ALLOWED);
    let guard = Guard::start(&app, RULES, "app", &[]);
    let to = |address: IpAddr, port| SocketAddr::new(address, port);
    network.space.run(|| {
        send_udp(None, to(address(APP), FORBIDDEN), b"no");
        send_udp(None, to(address6(APP), FORBIDDEN), b"no");
        let local = SocketAddrV6::new(link_local(own), FORBIDDEN, 0, netlink::index("br0"));
        send_udp(None, local.into(), b"no");
        // Its link-local address is nobody's in a rule, so not even the port helps.
        let local = SocketAddrV6::new(link_local(own), ALLOWED, 0, netlink::index("br0"));
        send_udp(None, local.into(), b"no");
        // Under the workload's own address.
        let packet = ipv4(address(APP), 0, &udp(ALLOWED, b"no"));
        let frame = Forger::frame_from([2, 9, 9, 9, 9, 9], own, IPV4, &packet);
        let _ = send_frame("br0", &frame, None);
        send_udp(None, to(address(APP), ALLOWED), b"yes");
    });
    let mut buffer = [0; 16];
    let length = allowed.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"yes");
    allowed.set_read_timeout(Some(SHORT)).unwrap();
    forbidden.set_read_timeout(Some(SHORT)).unwrap();
    assert!(allowed.recv(&mut buffer).is_err() && forbidden.recv(&mut buffer).is_err());
    assert!(guard.status().contains("no_ingress_rule"));
}

fn listener(space: &Space, port: u16) -> UdpSocket {
    let any = Ipv6Addr::UNSPECIFIED;
    let socket = space.run(|| UdpSocket::bind((any, port)).unwrap());
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}
