//! Much at a time between entities: bytes that can be told from any others, both
//! ends of their transfer, and what kernels count of it.
#![allow(dead_code, reason = "each test target uses a part")]

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;
use nix::sys::signal::{Signal, kill};

use crate::support::{Lab, PATIENCE, at, wait_until};

/// Reasons for which nothing may be dropped that the appliance should carry.
const FAULTS: [&str; 2] = ["link_failed", "malformed"];

/// Bytes that no other seed gives.
pub fn payload(seed: u64, length: usize) -> Vec<u8> {
    // Marsaglia's xorshift: without a period that lengths of segments share.
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// What tells bytes apart, and how many they are.
pub fn digest(bytes: &[u8]) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    (bytes.len(), hasher.finish())
}

/// Both ends of a connection send `length` bytes at once, in one piece, and close;
/// each must hear what the other sent.
pub fn exchange(client: &TcpStream, server: &TcpStream, seed: u64, length: usize) {
    thread::scope(|scope| {
        let up = scope.spawn(move || send_all(client, 2 * seed, length));
        let down = scope.spawn(move || send_all(server, 2 * seed + 1, length));
        let at_client = scope.spawn(|| receive_all(client));
        let at_server = scope.spawn(|| receive_all(server));
        assert_eq!(
            at_server.join().unwrap(),
            up.join().unwrap(),
            "up, {length} bytes"
        );
        assert_eq!(
            at_client.join().unwrap(),
            down.join().unwrap(),
            "down, {length} bytes"
        );
    });
}

/// Sends in one piece and closes; gives the digest of what was sent.
pub fn send_all(mut to: &TcpStream, seed: u64, length: usize) -> (usize, u64) {
    let bytes = payload(seed, length);
    to.set_write_timeout(Some(PATIENCE)).unwrap();
    to.write_all(&bytes).unwrap();
    to.shutdown(Shutdown::Write).unwrap();
    digest(&bytes)
}

/// Receives until the other end closes; gives the digest of what came.
pub fn receive_all(mut from: &TcpStream) -> (usize, u64) {
    let mut bytes = Vec::new();
    from.set_read_timeout(Some(PATIENCE)).unwrap();
    from.read_to_end(&mut bytes).unwrap();
    digest(&bytes)
}

/// What the kernel has counted in an entity: the numbers of `/proc/net/snmp` and
/// `snmp6`, such as `TcpOutSegs` and `Udp6InErrors`.
pub fn kernel_counts(lab: &Lab, entity: &str) -> HashMap<String, u64> {
    let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let (snmp, snmp6) = lab.inside(entity, || (read("snmp"), read("snmp6")));
    let mut counts = HashMap::new();
    // A line of names and one of numbers, for each protocol.
    let lines: Vec<&str> = snmp.lines().collect();
    for pair in lines.chunks(2) {
        let mut names = pair[0].split_whitespace();
        let protocol = names.next().unwrap().trim_end_matches(':');
        for (name, number) in names.zip(pair[1].split_whitespace().skip(1)) {
            // Some are signed, and none of those is asked for.
            counts.insert(format!("{protocol}{name}"), number.parse().unwrap_or(0));
        }
    }
    for line in snmp6.lines() {
        let (name, number) = line.split_once(char::is_whitespace).unwrap();
        counts.insert(name.into(), number.trim().parse().unwrap());
    }
    counts
}

/// No kernel has found fault with a packet that reached it, and the appliance has
/// dropped none that it should have carried.
pub fn nothing_was_damaged(lab: &Lab) {
    let status = lab.status();
    for interface in status["interfaces"].as_array().unwrap() {
        let name = interface["name"].as_str().unwrap();
        for reason in FAULTS {
            assert_eq!(
                interface["drops"][reason],
                serde_json::Value::Null,
                "{name}: {status}"
            );
        }
        let counts = kernel_counts(lab, name);
        for counter in [
            "IpInHdrErrors",
            "Ip6InHdrErrors",
            "TcpInErrs",
            "TcpInCsumErrors",
            "UdpInErrors",
            "UdpInCsumErrors",
            "Udp6InErrors",
            "Udp6InCsumErrors",
        ] {
            assert_eq!(counts[counter], 0, "{counter} at {name}");
        }
    }
}

/// The packets and bytes that came from an interface and were delivered, and those
/// that were delivered to it.
pub fn traffic(lab: &Lab, interface: &str) -> Traffic {
    let status = lab.status();
    let of = |key: &str| at(&status, interface)[key].as_u64().unwrap();
    Traffic {
        out: (of("packets_out"), of("bytes_out")),
        into: (of("packets_in"), of("bytes_in")),
    }
}

/// See [`traffic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    pub out: (u64, u64),
    pub into: (u64, u64),
}

/// Makes the kernel in an entity hand over packets one by one, as from a device
/// that has no segmentation of its own.
pub fn without_super_packets(lab: &Lab, entity: &str) {
    lab.inside(entity, || {
        let mut message = LinkMessage::default();
        message.header.index = if_nametoindex("eth0").unwrap();
        message.attributes = vec![LinkAttribute::GsoMaxSegs(1)];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::SetLink(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);

        let socket = Socket::new(NETLINK_ROUTE).unwrap();
        socket.send(&bytes, 0).unwrap();
        let (answer, _) = socket.recv_from_full().unwrap();
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).unwrap();
        match answer.payload {
            NetlinkPayload::Error(answer) => assert_eq!(answer.code, None, "{answer:?}"),
            other => panic!("not an answer: {other:?}"),
        }
    });
}

/// An appliance that stands still, until dropped: what is sent meanwhile, it finds
/// all at once.
#[derive(Debug)]
pub struct Still<'a>(&'a Lab);

impl<'a> Still<'a> {
    pub fn stand(lab: &'a Lab) -> Self {
        kill(lab.process.pid(), Signal::SIGSTOP).unwrap();
        let this = Self(lab);
        let tasks = format!("/proc/{}/task", lab.process.pid());
        wait_until("every thread stands still", || {
            fs::read_dir(&tasks).unwrap().flatten().all(|task| {
                // The state follows the name, which ends with the last bracket.
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit(')')
                    .next()
                    .is_some_and(|it| it.starts_with(" T"))
            })
        });
        this
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        let _ = kill(self.0.process.pid(), Signal::SIGCONT);
    }
}
