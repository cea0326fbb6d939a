//! Datagrams that are sent many at a time or joined on their way: each arrives by
//! itself, once, unaltered, and in order.

use std::collections::HashSet;
use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{RcvBuf, SetBool, UdpGroSegment};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockProtocol, recvmsg, sendmsg, setsockopt,
};

use crate::bulk::{Still, digest, nothing_was_damaged, payload, traffic, without_super_packets};
use crate::offload::{MODES, WAYS, all_heard, is_left_to_the_device, socket, up};
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, wait_until};
use crate::wire::{DONT_FRAGMENT, IpMtuDiscover, Ipv6MtuDiscover, MAY_FRAGMENT, raw};

/// Whether datagrams are sent without a checksum (socket(7)).
#[derive(Debug, Clone, Copy)]
struct NoChecksum;
nix::setsockopt_impl!(
    NoChecksum,
    libc::SOL_SOCKET,
    libc::SO_NO_CHECK,
    bool,
    SetBool
);

/// Sizes of datagrams that go through any path: bytes that are hardly there, odd
/// ones, and what fills 1500 bytes over IPv4 and IPv6.
const SIZES: [u16; 6] = [1, 7, 500, 1200, 1452, 1472];
/// One that takes a jumbo frame.
const JUMBO: u16 = 8000;
/// Most datagrams of one send: fewer than any kernel's `UDP_MAX_SEGMENTS`.
const AT_A_TIME: usize = 60;

/// A flow from one entity to another.
#[derive(Debug)]
struct Flow {
    from: UdpSocket,
    to: UdpSocket,
}

/// What one call of the receiver's got.
#[derive(Debug)]
struct Got {
    datagrams: Vec<Vec<u8>>,
    /// Whether the kernel handed over several as one.
    joined: bool,
}

impl Flow {
    /// Opens one to a port of `to`, which `from` reaches by `address`.
    fn open(lab: &Lab, (from, to, address): (&str, &str, &str), port: u16) -> Self {
        let address = socket(address, port);
        let any: IpAddr = match address {
            SocketAddr::V4(_) => [0, 0, 0, 0].into(),
            SocketAddr::V6(_) => [0_u16; 8].into(),
        };
        let to = lab.inside(to, || UdpSocket::bind((any, port)).unwrap());
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        setsockopt(&to, RcvBuf, &(1 << 20)).unwrap();
        let from = lab.inside(from, || UdpSocket::bind((any, 0)).unwrap());
        from.connect(address).unwrap();
        Self { from, to }
    }

    /// Takes what arrives from now on several at a time.
    fn take_joined(&self) {
        setsockopt(&self.to, UdpGroSegment, &true).unwrap();
    }

    fn send(&self, datagrams: &[Vec<u8>]) {
        for datagram in datagrams {
            self.from.send(datagram).unwrap();
        }
    }

    /// Sends datagrams of `size` bytes with one call, the last of which may be
    /// shorter.
    fn send_at_once(&self, datagrams: &[Vec<u8>], size: u16) -> nix::Result<usize> {
        let bytes = datagrams.concat();
        let parts = [IoSlice::new(&bytes)];
        let size = [ControlMessage::UdpGsoSegments(&size)];
        let flags = MsgFlags::empty();
        sendmsg(self.from.as_raw_fd(), &parts, &size, flags, None::<&()>)
    }

    /// The next ones, whether they arrive by themselves or joined.
    fn receive(&self) -> Got {
        let mut buffer = vec![0; 1 << 16];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut control = nix::cmsg_space!(i32);
        let fd = self.to.as_raw_fd();
        let received = recvmsg::<()>(fd, &mut parts, Some(&mut control), MsgFlags::empty());
        let received = received.unwrap_or_else(|error| panic!("nothing arrives: {error}"));
        let size = received.cmsgs().unwrap().find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
            _ => None,
        });
        let length = received.bytes;
        let bytes = &buffer[..length];
        match size {
            Some(size) if size < bytes.len() => Got {
                datagrams: bytes.chunks(size).map(<[u8]>::to_vec).collect(),
                joined: true,
            },
            _ => Got {
                datagrams: vec![bytes.to_vec()],
                joined: false,
            },
        }
    }

    /// The next datagrams must be these; whether some were handed over as one.
    fn expect(&self, sent: &[Vec<u8>]) -> bool {
        let mut next = sent.iter();
        let mut joined = false;
        while next.len() > 0 {
            let got = self.receive();
            joined |= got.joined;
            for datagram in got.datagrams {
                let place = sent.len() - next.len();
                let expected = next.next().map(|it| digest(it));
                assert_eq!(Some(digest(&datagram)), expected, "datagram {place}");
            }
        }
        joined
    }

    /// Nothing more has arrived, neither altered nor a second time: what is sent
    /// last comes next.
    fn ends(&self) {
        let last = vec![b"the last".to_vec()];
        self.send(&last);
        self.expect(&last);
        self.to.set_nonblocking(true).unwrap();
        let error = self.to.recv(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn datagrams_of_one_send_arrive_each_by_itself_and_in_order() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        one_send_arrives(&lab, arguments.is_empty());
        lab.down();
    }
}

#[test]
fn datagrams_of_one_send_that_the_kernel_splits_arrive_likewise() {
    if !namespaces!() {
        return;
    }
    let lab = up(&[]);
    without_super_packets(&lab, "a");
    one_send_arrives(&lab, false);
    lab.down();
}

/// Each way with all sizes, to receivers that take datagrams one by one and to
/// those that take them joined.
fn one_send_arrives(lab: &Lab, stay_together: bool) {
    for (way, port) in ways() {
        let flow = Flow::open(lab, way, port);
        for takes_joined in [false, true] {
            if takes_joined {
                flow.take_joined();
            }
            for size in sizes(way) {
                let sent = run(size, size / 2);
                flow.send_at_once(&sent, size).unwrap();
                let joined = flow.expect(&sent);
                // What comes in many packets is joined or not, as it happens.
                let may_be = [takes_joined, takes_joined && stay_together];
                assert!(may_be.contains(&joined), "{way:?}, {size} bytes: {joined}");
            }
        }
        flow.ends();
    }
    nothing_was_damaged(lab);
}

#[test]
fn a_flood_of_equal_datagrams_is_joined_on_its_way_and_nobody_can_tell() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        for (way, port) in ways() {
            let flow = Flow::open(&lab, way, port);
            let sent: Vec<_> = (0..100).map(|number| payload(number, 64)).collect();
            let ear = is_v4(&way).then(|| ear(&lab, way));
            for takes_joined in [false, true] {
                if takes_joined {
                    flow.take_joined();
                }
                let still = Still::stand(&lab);
                flow.send(&sent);
                drop(still);
                let joined = flow.expect(&sent);
                assert_eq!(joined, takes_joined && arguments.is_empty(), "{way:?}");
            }
            for heard in ear.iter().flat_map(all_heard) {
                // What is left to the device is right, too.
                is_left_to_the_device(&heard);
            }
            flow.ends();
        }
        nothing_was_damaged(&lab);
        lab.down();
    }
}

#[test]
fn flows_of_mixed_sizes_that_take_turns_keep_their_order() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        for (way, port) in ways() {
            let flows = [port, port + 1].map(|port| Flow::open(&lab, way, port));
            flows[1].take_joined();
            // Equal ones, shorter ones that end a run, longer ones that can't join it,
            // empty ones.
            let lengths = [
                64, 64, 65, 64, 64, 64, 9, 64, 0, 0, 64, 1200, 1200, 1199, 1200, 1, 1, 0, 1452,
            ];
            let lengths = lengths.iter().cycle().take(100);
            let sent: Vec<_> = (0..).zip(lengths).map(|(i, &it)| payload(i, it)).collect();
            let still = Still::stand(&lab);
            for datagram in sent.chunks(1) {
                flows.iter().for_each(|flow| flow.send(datagram));
            }
            drop(still);
            for flow in &flows {
                flow.expect(&sent);
                flow.ends();
            }
        }
        nothing_was_damaged(&lab);
        lab.down();
    }
}

#[test]
fn datagrams_without_a_checksum_arrive_by_themselves_and_without_one() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        for (way, port) in ways().filter(|(way, _)| is_v4(way)) {
            let flow = Flow::open(&lab, way, port);
            flow.take_joined();
            setsockopt(&flow.from, NoChecksum, &true).unwrap();
            let ear = ear(&lab, way);
            let sent: Vec<_> = (0..20).map(|number| payload(number, 64)).collect();
            let still = Still::stand(&lab);
            flow.send(&sent);
            drop(still);
            assert!(!flow.expect(&sent), "{way:?}: they were joined");
            let heard = all_heard(&ear);
            assert_eq!(heard.len(), sent.len());
            for heard in &heard {
                assert_eq!(heard.message()[6..8], [0, 0], "{way:?}: a checksum");
            }
            flow.ends();
        }
        nothing_was_damaged(&lab);
        lab.down();
    }
}

#[test]
fn datagrams_that_are_translated_have_the_checksums_of_their_new_addresses() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        for (way, port) in ways().filter(|(way, _)| is_v4(way) && crosses_gateway(way)) {
            let flow = Flow::open(&lab, way, port);
            let ear = ear(&lab, way);
            let sent = run(500, 3);
            flow.send(&sent[..1]);
            flow.send_at_once(&sent[1..], 500).unwrap();
            flow.expect(&sent);
            let left: Vec<_> = all_heard(&ear).iter().map(is_left_to_the_device).collect();
            if arguments.is_empty() {
                // The one alone, and the rest as one.
                assert_eq!(left, [true, true]);
            } else {
                assert_eq!(left, vec![false; sent.len()]);
            }
            flow.ends();
        }
        lab.down();
    }
}

#[test]
fn datagrams_larger_than_a_packet_arrive_whole_and_in_order_among_small_ones() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        // Over IPv6 routers don't fragment.
        for (way, port) in ways().filter(|(way, _)| is_v4(way) || takes_jumbo_frames(way)) {
            let flow = Flow::open(&lab, way, port);
            setsockopt(&flow.from, IpMtuDiscover, &MAY_FRAGMENT).unwrap();
            let lengths = [64, 64, 1473, 64, 8973, 8974, 9, 20_000, 64, 64, 65_507, 1];
            let sent: Vec<_> = (0..).zip(lengths).map(|(i, it)| payload(i, it)).collect();
            let still = Still::stand(&lab);
            flow.send(&sent);
            drop(still);
            flow.expect(&sent);
            flow.ends();
        }
        nothing_was_damaged(&lab);
        lab.down();
    }
}

#[test]
fn datagrams_of_one_send_that_are_too_big_for_a_gateway_are_fragmented_or_told_of() {
    if !namespaces!() {
        return;
    }
    const SIZE: u16 = 4000;
    for arguments in MODES {
        let lab = up(arguments);
        for (address, port) in [("203.0.113.8", 9000), ("2001:db8:ffff::8", 9001)] {
            let way = ("a", "jumbo", address);
            let flow = Flow::open(&lab, way, port);
            let sent: Vec<_> = (0..5).map(|number| payload(number, SIZE.into())).collect();
            if is_v4(&way) {
                setsockopt(&flow.from, IpMtuDiscover, &MAY_FRAGMENT).unwrap();
                let ear = ear(&lab, way);
                flow.send_at_once(&sent, SIZE).unwrap();
                flow.expect(&sent);
                // Fragments are told apart by their datagram's identification.
                let ids = all_heard(&ear)
                    .into_iter()
                    .map(|it| [it.packet[4], it.packet[5]]);
                assert_eq!(ids.collect::<HashSet<_>>().len(), sent.len());
                setsockopt(&flow.from, IpMtuDiscover, &DONT_FRAGMENT).unwrap();
            } else {
                setsockopt(&flow.from, Ipv6MtuDiscover, &DONT_FRAGMENT).unwrap();
            }
            let before = lab.drops("jumbo", "too_big");
            flow.send_at_once(&sent, SIZE).unwrap();
            wait_until("each is counted", || {
                lab.drops("jumbo", "too_big") == before + sent.len() as u64
            });
            wait_until("the sender is told", || {
                flow.send_at_once(&sent, SIZE) == Err(Errno::EMSGSIZE)
            });
            // What the socket has still to be told of may come first.
            let fits = run(1400, 7);
            wait_until("what fits is sent", || {
                flow.send_at_once(&fits, 1400).is_ok()
            });
            flow.expect(&fits);
        }
        nothing_was_damaged(&lab);
        lab.down();
    }
}

#[test]
fn counters_tell_each_datagram_of_one_send() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        for (way, port) in ways() {
            let (from, to, _) = way;
            let headers = if is_v4(&way) { 20 + 8 } else { 40 + 8 };
            let flow = Flow::open(&lab, way, port);
            let sent = run(1200, 7);
            let before = (traffic(&lab, from), traffic(&lab, to));
            flow.send_at_once(&sent, 1200).unwrap();
            flow.expect(&sent);
            let packets = sent.len() as u64;
            let bytes = sent.concat().len() as u64 + packets * headers;
            let grown = |(packets_then, bytes_then), now: (u64, u64)| {
                (now.0 - packets_then, now.1 - bytes_then)
            };
            // A packet is counted once it was written.
            wait_until("both ends have counted what was sent", || {
                let left = grown(before.0.out, traffic(&lab, from).out);
                let arrived = grown(before.1.into, traffic(&lab, to).into);
                assert!(left <= (packets, bytes), "{left:?}");
                (left, arrived) == ((packets, bytes), (packets, bytes))
            });
        }
        lab.down();
    }
}

#[test]
fn each_datagram_of_a_send_that_is_refused_counts() {
    if !namespaces!() {
        return;
    }
    for arguments in MODES {
        let lab = up(arguments);
        for (way, port, at, reason) in [
            // The sender's groups, the receiver's ACL, the receiver's groups.
            (WAYS[0], 9300, "a", "no_egress_rule"),
            (WAYS[2], 9100, "c", "network_acl_ingress"),
            (WAYS[0], 9200, "b", "no_ingress_rule"),
        ] {
            let (from, to, addresses) = way;
            for (address, port) in addresses.into_iter().zip(port..) {
                let flow = Flow::open(&lab, (from, to, address), port);
                let sent = run(1200, 7);
                let before = (lab.drops(at, reason), traffic(&lab, to).into);
                flow.send_at_once(&sent, 1200).unwrap();
                let refused = before.0 + sent.len() as u64;
                wait_until("each is counted", || lab.drops(at, reason) >= refused);
                assert_eq!(lab.drops(at, reason), refused, "{reason}");
                assert_eq!(traffic(&lab, to).into, before.1);
            }
        }
        lab.down();
    }
}

/// Who sends to whom, and by which address.
type Way = (&'static str, &'static str, &'static str);

/// Every way over both families, each with ports of its own, that one and the next:
/// while another test starts a process, there are copies of sockets for a moment.
fn ways() -> impl Iterator<Item = (Way, u16)> {
    let of_both = |(from, to, addresses): (_, _, [_; 2])| addresses.map(|it| (from, to, it));
    WAYS.into_iter().flat_map(of_both).zip((9000..).step_by(2))
}

/// A raw socket that hears the datagrams of IPv4 that arrive at a way's end.
fn ear(lab: &Lab, (_, to, _): Way) -> OwnedFd {
    lab.inside(to, || raw([0; 4].into(), SockProtocol::Udp))
}

fn is_v4((_, _, address): &Way) -> bool {
    !address.contains(':')
}

fn takes_jumbo_frames((_, to, _): &Way) -> bool {
    ["b", "c"].contains(to)
}

fn crosses_gateway((from, to, _): &Way) -> bool {
    [from, to].contains(&&"far")
}

/// As many datagrams of `size` bytes as one send takes, and one of `last`, unless
/// that is nothing.
fn run(size: u16, last: u16) -> Vec<Vec<u8>> {
    let size = usize::from(size);
    let count = AT_A_TIME.min(60_000 / size);
    let bytes = payload(0, count * size + usize::from(last));
    bytes.chunks(size).map(<[u8]>::to_vec).collect()
}

/// The sizes that go a way in one packet.
fn sizes(way: Way) -> impl Iterator<Item = u16> {
    let most = match (takes_jumbo_frames(&way), is_v4(&way)) {
        (true, _) => JUMBO,
        (false, true) => 1472,
        (false, false) => 1452,
    };
    let all = SIZES.into_iter().chain([JUMBO]);
    all.filter(move |size| *size <= most)
}
