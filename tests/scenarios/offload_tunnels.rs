//! Tunnels between entities. Segmentation and checksums of the inner packets are also left to
//! devices, with an offload header that describes the inner packets.

use std::net::{IpAddr, UdpSocket};
use std::thread;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;

use crate::bulk::{digest, exchange, nothing_was_damaged, payload};
use crate::netlink::{self, Vxlan};
use crate::offload::{MODES, up};
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE};
use crate::talk::connect;

/// The ends of the tunnels: with the same MTU, and with a smaller one at the other end.
const WAYS: [(&str, &str, [[&str; 2]; 2]); 2] = [
    (
        "a",
        "b",
        [
            ["10.28.1.10", "10.28.1.11"],
            ["2001:db8:28:1::10", "2001:db8:28:1::11"],
        ],
    ),
    (
        "small",
        "b",
        [
            ["10.28.1.12", "10.28.1.11"],
            ["2001:db8:28:1::12", "2001:db8:28:1::11"],
        ],
    ),
];

/// VXLAN, with IPv4 and IPv6 outside and inside. Other tunnels look the same to a link: see
/// `src/link/virtio/tests.rs`.
#[test]
fn streams_and_datagrams_through_tunnels_arrive_as_they_were_sent() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        let mut number = 0;
        for (near, far, families) in WAYS {
            for outside in families {
                for checksums in [true, false] {
                    number += 1;
                    through_a_tunnel(&lab, [near, far], outside, checksums, number);
                }
            }
        }
        nothing_was_damaged(&lab);
        lab.down();
    }
}

/// Creates a tunnel between two entities and sends through it, in both directions and over both
/// IP versions.
fn through_a_tunnel(lab: &Lab, ends: [&str; 2], outside: [&str; 2], checksums: bool, number: u8) {
    let outside = outside.map(|text| text.parse::<IpAddr>().unwrap());
    let inside = |end: u8| -> [IpAddr; 2] {
        [
            [10, 77, number, end].into(),
            [0xfd77, number.into(), 0, 0, 0, 0, 0, end.into()].into(),
        ]
    };
    let name = format!("vx{number}");
    for (end, own, other) in [(0, 0, 1), (1, 1, 0)] {
        lab.inside(ends[end], || {
            netlink::make_vxlan(&Vxlan {
                name: &name,
                id: number.into(),
                device: "eth0",
                local: outside[own],
                remote: outside[other],
                port: 9100 + u16::from(number),
                checksums,
            });
            let index = netlink::index(&name);
            for address in inside(u8::try_from(end).unwrap() + 1) {
                let prefix = if address.is_ipv4() { 24 } else { 64 };
                netlink::add_address(index, address, prefix, None);
            }
            netlink::set_up(index, true);
        });
    }
    for to in inside(2) {
        let (client, server) = connect(lab, ends[0], ends[1], (to, 9000).into());
        exchange(&client, &server, number.into(), (1 << 20) + 7);
        datagrams_arrive(lab, ends, to);
    }
}

/// Sends datagrams of 1,000 bytes with one call; the last one is shorter.
fn datagrams_arrive(lab: &Lab, [from, to]: [&str; 2], address: IpAddr) {
    let sent = payload(1, 20_500);
    let receiver = lab.inside(to, || UdpSocket::bind((address, 9001)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let sender = lab.inside(from, || UdpSocket::bind(any).unwrap());
    setsockopt(&sender, UdpGsoSegment, &1000).unwrap();
    thread::scope(|scope| {
        let got = scope.spawn(|| {
            let (mut bytes, mut buffer) = (Vec::new(), [0; 2000]);
            while bytes.len() < sent.len() {
                let length = receiver.recv(&mut buffer).unwrap();
                bytes.extend(&buffer[..length]);
            }
            digest(&bytes)
        });
        sender.send_to(&sent, (address, 9001)).unwrap();
        assert_eq!(got.join().unwrap(), digest(&sent), "{from} to {address}");
    });
}
