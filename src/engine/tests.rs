//! What the threads promise, over links in memory.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::config::load_str;
use crate::link::{Envelope, MemoryLink, Offloads, Readiness, Received};
use crate::model::{InterfaceIx, Model, protocol};
use crate::packet::{self, Shape, Transport};
use crate::policy::DropReason;

const A: usize = 0;
const B: usize = 1;

/// Two hosts; `b` takes UDP on the given port from `a`.
fn model(port: u16) -> Model {
    let text = format!(
        "vpc: {{ cidr: [10.0.0.0/16] }}
subnets: {{ s: {{ cidr: [10.0.0.0/24] }} }}
security_groups:
  a: {{ description: sends }}
  b: {{ ingress: [ {{ protocol: udp, ports: {port}, from: sg/a }} ] }}
entities:
  a: {{ kind: ec2, subnet: s, addresses: [10.0.0.10], security_groups: [a] }}
  b: {{ kind: ec2, subnet: s, addresses: [10.0.0.11], security_groups: [b] }}
"
    );
    load_str("test.yaml", &text).unwrap().model
}

struct Bench {
    links: Vec<Arc<MemoryLink>>,
    engine: Engine,
}

fn start(port: u16, workers: usize) -> Bench {
    let links: Vec<Arc<MemoryLink>> = (0..2).map(|_| Arc::new(MemoryLink::new(4096))).collect();
    let engine = Engine::start(
        links
            .iter()
            .map(|link| Arc::clone(link) as Arc<dyn Link>)
            .collect(),
        Policy::compile(&model(port), None),
        Options {
            workers,
            max_flows: 100_000,
            busy_poll: false,
            ..Options::default()
        },
    )
    .unwrap();
    Bench { links, engine }
}

fn udp(from_port: u16, to_port: u16, payload: u32) -> Vec<u8> {
    packet::build(
        IpAddr::from([10, 0, 0, 10]),
        IpAddr::from([10, 0, 0, 11]),
        protocol::UDP,
        Transport::Udp {
            source: from_port,
            destination: to_port,
        },
        &payload.to_be_bytes(),
    )
    .unwrap()
}

/// Waits until `done` or fails; the time only bounds a broken engine.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn drops(engine: &Engine, at: usize, reason: DropReason) -> u64 {
    engine.counters().traffic(InterfaceIx::new(at)).drops[reason as usize]
}

#[test]
fn allowed_packets_arrive_in_order_and_forbidden_ones_are_counted() {
    for workers in [1, 2] {
        let bench = start(53, workers);
        for n in 0..1000 {
            bench.links[A].inject(udp(4000, 53, n)).unwrap();
            bench.links[A].inject(udp(4000, 54, n)).unwrap();
        }
        let mut arrived = Vec::new();
        wait_until("1000 packets arrive", || {
            arrived.extend(std::iter::from_fn(|| bench.links[B].take()));
            arrived.len() >= 1000
        });
        wait_until("1000 drops are counted", || {
            drops(&bench.engine, B, DropReason::NoIngressRule) == 1000
        });
        let numbers: Vec<u32> = arrived
            .iter()
            .map(|packet| u32::from_be_bytes(packet[packet.len() - 4..].try_into().unwrap()))
            .collect();
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
        let a = bench.engine.counters().traffic(InterfaceIx::new(A));
        assert_eq!((a.packets_out, a.bytes_out), (1000, 32_000));
    }
}

#[test]
fn with_many_flows_packets_of_all_lengths_still_arrive_whole_and_in_order() {
    let bench = start(53, 2);
    let mut arrived = 0;
    for port in 1000..10_000 {
        bench.links[A].inject(udp(port, 53, 0)).unwrap();
        while bench.engine.flows().len() < 2 * (usize::from(port) - 1000) {
            arrived += usize::from(bench.links[B].take().is_some());
        }
    }
    wait_until("every flow is known", || {
        arrived += usize::from(bench.links[B].take().is_some());
        arrived == 9000
    });
    let payloads: Vec<Vec<u8>> = (0..500u32)
        .map(|n| {
            let length = [1, 8, 1400, 2010, 2048, 2049, 5000, 8900][n as usize % 8];
            (0..length)
                .map(|i| n.wrapping_mul(31).wrapping_add(i).to_le_bytes()[0])
                .collect()
        })
        .collect();
    for (n, payload) in (0u16..).zip(&payloads) {
        let transport = Transport::Udp {
            source: 1000 + n % 7,
            destination: 53,
        };
        let [a, b] = [10, 11].map(|last| IpAddr::from([10, 0, 0, last]));
        let packet = packet::build(a, b, protocol::UDP, transport, payload).unwrap();
        bench.links[A].inject(packet).unwrap();
    }
    let mut heard: Vec<Vec<u8>> = Vec::new();
    wait_until("500 packets arrive", || {
        let packets = std::iter::from_fn(|| bench.links[B].take());
        heard.extend(packets.map(|packet| packet[28..].to_vec()));
        heard.len() >= 500
    });
    assert!(heard == payloads);
}

/// A link with a descriptor, as devices are: a worker is told of it by epoll, and of
/// swaps and the end by its waker alone.
#[derive(Debug)]
struct SocketLink(UnixDatagram);

impl Link for SocketLink {
    fn recv(&self, buffer: &mut [u8]) -> std::io::Result<Received> {
        self.0.recv(buffer).map(Received::whole)
    }

    fn send(&self, _: Envelope, frame: &[u8], _: Shape) -> std::io::Result<()> {
        self.0.send(frame).map(|_| ())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Fd(self.0.as_fd())
    }
}

/// A link that can't be read while its device is down.
#[derive(Debug)]
struct DownAndUp(MemoryLink, AtomicBool);

impl Link for DownAndUp {
    fn recv(&self, buffer: &mut [u8]) -> std::io::Result<Received> {
        if self.1.load(Ordering::Relaxed) {
            return Err(nix::errno::Errno::ENETDOWN.into());
        }
        self.0.recv(buffer)
    }

    fn send(&self, envelope: Envelope, frame: &[u8], shape: Shape) -> std::io::Result<()> {
        self.0.send(envelope, frame, shape)
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Wakes
    }

    fn wake_with(&self, waker: Arc<mio::Waker>) {
        self.0.wake_with(waker);
    }
}

#[test]
fn a_link_that_can_be_read_again_is_broken_no_more() {
    let flaky = Arc::new(DownAndUp(MemoryLink::new(16), AtomicBool::new(false)));
    let other = Arc::new(MemoryLink::new(16));
    let links: Vec<Arc<dyn Link>> = vec![Arc::clone(&flaky) as _, Arc::clone(&other) as _];
    let policy = Policy::compile(&model(53), None);
    let engine = Engine::start(links, policy, Options::default()).unwrap();
    let a = InterfaceIx::new(A);
    for n in 0..3 {
        flaky.1.store(true, Ordering::Relaxed);
        flaky.0.inject(udp(4000, 53, n)).unwrap();
        wait_until("it is broken", || engine.is_broken(a));
        flaky.1.store(false, Ordering::Relaxed);
        flaky.0.inject(udp(4000, 53, n)).unwrap();
        wait_until("it works again", || !engine.is_broken(a));
        let mut arrived = 0;
        wait_until("what was sent arrives", || {
            arrived += usize::from(other.take().is_some());
            arrived == 2
        });
    }
}

#[test]
fn a_worker_that_lingers_hears_of_swaps_and_of_the_end() {
    for _ in 0..5 {
        let (mut links, mut hosts) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (link, host) = UnixDatagram::pair().unwrap();
            link.set_nonblocking(true).unwrap();
            host.set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            links.push(Arc::new(SocketLink(link)) as Arc<dyn Link>);
            hosts.push(host);
        }
        let options = Options {
            workers: 2,
            ..Options::default()
        };
        let engine = Engine::start(links, Policy::compile(&model(53), None), options).unwrap();
        let exchange = || {
            for (from, to, packet) in [
                (&hosts[A], &hosts[B], udp(4000, 53, 0)),
                (&hosts[B], &hosts[A], answer(4000, 53)),
            ] {
                from.send(&packet).unwrap();
                to.recv(&mut [0; 100]).unwrap();
            }
        };
        for _ in 0..100 {
            // Exchanges in quick succession keep both workers awake for a while.
            for _ in 0..5 {
                exchange();
            }
            let next = Policy::compile(&model(53), Some(&engine.policy()));
            engine.swap(next).unwrap();
        }
        exchange();
        drop(engine);
    }
}

/// What `b` answers from the port that `a` asked.
fn answer(to_port: u16, from_port: u16) -> Vec<u8> {
    packet::build(
        IpAddr::from([10, 0, 0, 11]),
        IpAddr::from([10, 0, 0, 10]),
        protocol::UDP,
        Transport::Udp {
            source: from_port,
            destination: to_port,
        },
        b"yes",
    )
    .unwrap()
}

#[test]
fn workers_that_never_sleep_forward_swap_and_end_like_others() {
    let links: Vec<Arc<MemoryLink>> = (0..2).map(|_| Arc::new(MemoryLink::new(64))).collect();
    let engine = Engine::start(
        links
            .iter()
            .map(|link| Arc::clone(link) as Arc<dyn Link>)
            .collect(),
        Policy::compile(&model(53), None),
        Options {
            busy_poll: true,
            ..Options::default()
        },
    )
    .unwrap();
    links[A].inject(udp(4000, 53, 0)).unwrap();
    wait_until("it arrives", || links[B].take().is_some());
    let next = Policy::compile(&model(54), Some(&engine.policy()));
    engine.swap(next).unwrap();
    links[A].inject(udp(4001, 54, 0)).unwrap();
    wait_until("it arrives", || links[B].take().is_some());
    drop(engine);
}

#[test]
fn once_a_swap_returns_new_flows_meet_the_new_rules_only() {
    let bench = start(53, 2);
    for round in 0..50_u16 {
        let open = if round % 2 == 0 { 54 } else { 53 };
        let next = Policy::compile(&model(open), Some(&bench.engine.policy()));
        bench.engine.swap(next).unwrap();
        let before = drops(&bench.engine, B, DropReason::NoIngressRule);
        // A new source port each time, so that no tracked flow lets it pass.
        bench.links[A]
            .inject(udp(5000 + round, 107 - open, 0))
            .unwrap();
        wait_until("the packet is dropped", || {
            drops(&bench.engine, B, DropReason::NoIngressRule) == before + 1
        });
        bench.links[A].inject(udp(6000 + round, open, 0)).unwrap();
        wait_until("the packet arrives", || bench.links[B].take().is_some());
    }
}

#[test]
fn a_tracked_flow_survives_a_swap() {
    let bench = start(53, 1);
    bench.links[A].inject(udp(4000, 53, 0)).unwrap();
    wait_until("the flow is open", || bench.links[B].take().is_some());
    let next = Policy::compile(&model(54), Some(&bench.engine.policy()));
    bench.engine.swap(next).unwrap();
    bench.links[A].inject(udp(4000, 53, 1)).unwrap();
    wait_until("it goes on", || bench.links[B].take().is_some());
}

#[test]
fn a_packet_that_the_receiving_link_refuses_is_counted_there() {
    let links: Vec<Arc<dyn Link>> = vec![
        Arc::new(MemoryLink::new(64)),
        Arc::new(MemoryLink::new(1)), // room for one
    ];
    let sender = Arc::new(MemoryLink::new(64));
    let engine = Engine::start(
        vec![Arc::clone(&sender) as Arc<dyn Link>, Arc::clone(&links[1])],
        Policy::compile(&model(53), None),
        Options::default(),
    )
    .unwrap();
    for n in 0..3 {
        sender.inject(udp(4000, 53, n)).unwrap();
    }
    wait_until("two are counted", || {
        drops(&engine, B, DropReason::LinkFailed) == 2
    });
}

#[test]
fn garbage_is_named_and_nothing_stops() {
    let bench = start(53, 1);
    for frame in [vec![], vec![0xff; 10], vec![0x45; 20], vec![0; 1500]] {
        bench.links[A].inject(frame).unwrap();
    }
    let mut spoofed = udp(4000, 53, 0);
    spoofed[15] = 99;
    packet::repair(&mut spoofed);
    let mut damaged = udp(4000, 53, 0);
    damaged[10] ^= 1;
    bench.links[A].inject(damaged).unwrap();
    bench.links[A].inject(spoofed).unwrap();
    bench.links[A].inject(udp(4000, 53, 0)).unwrap();
    wait_until("the good packet arrives", || {
        bench.links[B].take().is_some()
    });
    assert_eq!(drops(&bench.engine, A, DropReason::Malformed), 5);
    assert_eq!(drops(&bench.engine, A, DropReason::SourceCheck), 1);
}

#[test]
fn a_full_flow_table_refuses_new_flows_by_name() {
    let links: Vec<Arc<MemoryLink>> = (0..2).map(|_| Arc::new(MemoryLink::new(64))).collect();
    let engine = Engine::start(
        links
            .iter()
            .map(|link| Arc::clone(link) as Arc<dyn Link>)
            .collect(),
        Policy::compile(&model(53), None),
        Options {
            workers: 1,
            max_flows: 7, // a flow takes an entry at either end, and its sender gets half
            busy_poll: false,
            ..Options::default()
        },
    )
    .unwrap();
    links[A].inject(udp(4000, 53, 0)).unwrap();
    links[A].inject(udp(4001, 53, 0)).unwrap();
    wait_until("the second is refused at the receiver", || {
        drops(&engine, B, DropReason::FlowTableFull) == 1
    });
    links[A].inject(udp(4000, 53, 1)).unwrap();
    wait_until("the first goes on", || {
        std::iter::from_fn(|| links[B].take()).count() > 0
    });
}

/// A super-packet of UDP: `count` datagrams of `size` bytes, the last one byte
/// short, which may be fragmented unless `df`.
fn super_packet(count: usize, size: u16, df: bool) -> (Vec<u8>, Shape) {
    let payload: Vec<u8> = (0..count * usize::from(size) - 1)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    let mut frame = packet::build(
        IpAddr::from([10, 0, 0, 10]),
        IpAddr::from([10, 0, 0, 11]),
        protocol::UDP,
        Transport::Udp {
            source: 4000,
            destination: 53,
        },
        &payload,
    )
    .unwrap();
    let shape = Shape::segments(&frame, size, false).unwrap();
    // As a kernel leaves it: the sum of the pseudo header.
    let sum: u32 = frame[12..20]
        .chunks(2)
        .chain([&[0, protocol::UDP][..], &frame[24..26]])
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[26..28].copy_from_slice(&folded.to_be_bytes());
    frame[6] = if df { 0x40 } else { 0 };
    frame[10..12].copy_from_slice(&[0, 0]);
    let header = etherparse::Ipv4HeaderSlice::from_slice(&frame).unwrap();
    let sum = header.to_header().calc_header_checksum();
    frame[10..12].copy_from_slice(&sum.to_be_bytes());
    (frame, shape)
}

/// Two links, of which the second takes what `offloads` says, and `b`'s MTU.
fn start_with(offloads: Offloads, mtu: u16) -> Bench {
    let links = vec![
        Arc::new(MemoryLink::new(64)),
        Arc::new(MemoryLink::with_offloads(4096, offloads)),
    ];
    let mut model = model(53);
    model.interfaces[B].mtu = mtu;
    let engine = Engine::start(
        links
            .iter()
            .map(|link| Arc::clone(link) as Arc<dyn Link>)
            .collect(),
        Policy::compile(&model, None),
        Options {
            workers: 1,
            max_flows: 1000,
            busy_poll: false,
            log_drops: true,
        },
    )
    .unwrap();
    Bench { links, engine }
}

#[test]
fn a_super_packet_passes_unsplit_and_counts_as_what_is_on_the_wire() {
    let bench = start_with(Offloads::ALL, 9001);
    let (frame, shape) = super_packet(40, 1000, true);
    bench.links[A].inject_shaped(frame.clone(), shape).unwrap();
    let mut arrived = None;
    wait_until("it arrives", || {
        arrived = bench.links[B].take_shaped();
        arrived.is_some()
    });
    assert_eq!(arrived, Some((frame, shape)));
    let on_the_wire = (40, 40 * 1028 - 1);
    wait_until("it is counted", || {
        let a = bench.engine.counters().traffic(InterfaceIx::new(A));
        (a.packets_out, a.bytes_out) == on_the_wire
    });
    let b = bench.engine.counters().traffic(InterfaceIx::new(B));
    assert_eq!((b.packets_in, b.bytes_in), on_the_wire);
}

#[test]
fn a_link_that_takes_no_super_packets_gets_what_they_stand_for() {
    for offloads in [Offloads::NONE, Offloads::CHECKSUM, Offloads::TCP] {
        let bench = start_with(offloads, 9001);
        let (frame, shape) = super_packet(40, 1000, true);
        let mut expected = Vec::new();
        packet::segment(&frame, shape, &mut [0; 2000], |segment| {
            expected.push(segment.to_vec());
        })
        .unwrap();
        bench.links[A].inject_shaped(frame, shape).unwrap();
        let mut arrived = Vec::new();
        wait_until("all arrive", || {
            arrived.extend(std::iter::from_fn(|| bench.links[B].take()));
            arrived.len() >= 40
        });
        assert_eq!(arrived, expected);
        wait_until("they are counted", || {
            let a = bench.engine.counters().traffic(InterfaceIx::new(A));
            (a.packets_out, a.bytes_out) == (40, 40 * 1028 - 1)
        });
    }
}

#[test]
fn segments_that_are_too_big_are_answered_once_or_fragmented_each() {
    // Each would fit but for one byte.
    let bench = start_with(Offloads::ALL, 1500);
    let (frame, shape) = super_packet(40, 1473, true);
    bench.links[A].inject_shaped(frame, shape).unwrap();
    wait_until("all are dropped", || {
        drops(&bench.engine, B, DropReason::TooBig) == 40
    });
    // The sender's group doesn't let the one answer in.
    wait_until("the answer is dropped", || {
        drops(&bench.engine, A, DropReason::NoIngressRule) == 1
    });
    // What is told of the drop is the packet that came in, though the answer is in its place.
    let told = bench.engine.drop_log().unwrap().take();
    let told = told.iter().find(|it| it.reason == DropReason::TooBig);
    let sample = told.unwrap().sample.unwrap();
    let packet = sample.packet.unwrap();
    assert_eq!((packet.protocol, sample.packets), (protocol::UDP, 40));
    assert_eq!(packet.source, IpAddr::from([10, 0, 0, 10]));

    let (frame, shape) = super_packet(40, 1472, true);
    bench.links[A].inject_shaped(frame.clone(), shape).unwrap();
    let mut arrived = None;
    wait_until("what fits arrives unsplit", || {
        arrived = bench.links[B].take_shaped();
        arrived.is_some()
    });
    assert_eq!(arrived, Some((frame, shape)));

    let (frame, shape) = super_packet(40, 1473, false);
    bench.links[A].inject_shaped(frame, shape).unwrap();
    let mut arrived = Vec::new();
    wait_until("two fragments of each arrive", || {
        arrived.extend(std::iter::from_fn(|| bench.links[B].take_shaped()));
        arrived.len() >= 79
    });
    // The last was a byte shorter.
    assert_eq!(arrived.len(), 79);
    assert!(arrived.iter().all(|(fragment, shape)| {
        fragment.len() <= 1500 && *shape == Shape::Whole && packet::parse(fragment).is_ok()
    }));
}

/// A link that refuses what it offers to take, as some kernels do.
#[derive(Debug)]
struct Promises(MemoryLink);

impl Link for Promises {
    fn recv(&self, buffer: &mut [u8]) -> std::io::Result<Received> {
        self.0.recv(buffer)
    }

    fn send(&self, envelope: Envelope, frame: &[u8], shape: Shape) -> std::io::Result<()> {
        self.0.send(envelope, frame, shape)
    }

    fn offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn readiness(&self) -> Readiness<'_> {
        self.0.readiness()
    }
}

#[test]
fn a_super_packet_that_a_device_refuses_is_not_lost() {
    let sender = Arc::new(MemoryLink::new(64));
    let receiver = Arc::new(Promises(MemoryLink::new(64)));
    let links: Vec<Arc<dyn Link>> = vec![Arc::clone(&sender) as _, Arc::clone(&receiver) as _];
    let policy = Policy::compile(&model(53), None);
    let engine = Engine::start(links, policy, Options::default()).unwrap();
    let (frame, shape) = super_packet(40, 1000, true);
    sender.inject_shaped(frame, shape).unwrap();
    let mut arrived = 0;
    wait_until("all arrive", || {
        arrived += std::iter::from_fn(|| receiver.0.take()).count();
        arrived == 40
    });
    assert_eq!(drops(&engine, B, DropReason::LinkFailed), 0);
}

#[test]
fn datagrams_keep_their_order_and_their_count_however_they_are_joined() {
    let bench = start_with(Offloads::ALL, 9001);
    let mut numbers = Vec::new();
    let count = 60;
    for n in 0..count {
        let mut datagram = udp(4000, 53, n);
        // Unlike ours, a host's packets count up.
        datagram[4..6].copy_from_slice(&u16::try_from(n).unwrap().to_be_bytes());
        datagram[10..12].copy_from_slice(&[0, 0]);
        let header = etherparse::Ipv4HeaderSlice::from_slice(&datagram).unwrap();
        let sum = header.to_header().calc_header_checksum();
        datagram[10..12].copy_from_slice(&sum.to_be_bytes());
        bench.links[A].inject(datagram).unwrap();
    }
    wait_until("all arrive", || {
        while let Some((frame, shape)) = bench.links[B].take_shaped() {
            packet::segment(&frame, shape, &mut [0; 100], |datagram| {
                let number = datagram.last_chunk::<4>().unwrap();
                numbers.push(u32::from_be_bytes(*number));
            })
            .unwrap();
        }
        numbers.len() >= 60
    });
    assert_eq!(numbers, (0..count).collect::<Vec<_>>());
    wait_until("they are counted", || {
        let b = bench.engine.counters().traffic(InterfaceIx::new(B));
        (b.packets_in, b.bytes_in) == (60, 60 * 32)
    });
}

/// A link whose reads wait for as long as the lock is held; the number of reads.
#[derive(Debug)]
struct Held(MemoryLink, std::sync::Mutex<()>, AtomicU64);

impl Link for Held {
    fn recv(&self, buffer: &mut [u8]) -> std::io::Result<Received> {
        self.2.fetch_add(1, Ordering::SeqCst);
        let _held = self.1.lock().unwrap();
        self.0.recv(buffer)
    }

    fn wake_with(&self, waker: Arc<mio::Waker>) {
        self.0.wake_with(waker);
    }

    fn send(&self, envelope: Envelope, frame: &[u8], shape: Shape) -> std::io::Result<()> {
        self.0.send(envelope, frame, shape)
    }

    fn readiness(&self) -> Readiness<'_> {
        self.0.readiness()
    }
}

/// An appliance of [`model`]'s hosts, which are not proven because sockets are missing, and the
/// link of `a`.
fn appliance(port: u16) -> (Appliance, Arc<Held>) {
    let a = Arc::new(Held(
        MemoryLink::new(64),
        Default::default(),
        Default::default(),
    ));
    let links: Vec<Arc<dyn Link>> = vec![Arc::clone(&a) as _, Arc::new(MemoryLink::new(64))];
    let open = |at: InterfaceIx, _| Err(std::io::Error::other(format!("none for {at:?}")));
    let appliance = Appliance::start(model(port), links, Options::default(), open).unwrap();
    (appliance, a)
}

#[test]
fn a_status_does_not_wait_for_a_change_of_rules() {
    let (appliance, a) = appliance(53);
    let held = a.1.lock().unwrap();
    let reads = a.2.load(Ordering::SeqCst);
    a.0.inject(udp(4000, 53, 0)).unwrap();
    wait_until("the worker reads", || a.2.load(Ordering::SeqCst) > reads);
    std::thread::scope(|scope| {
        let before = appliance.engine().policy().generation();
        let change = scope.spawn(|| appliance.replace(model(54)));
        wait_until("the change waits for the worker", || {
            appliance.engine().policy().generation() > before
        });
        let status = appliance.status();
        assert_eq!(status.policy.reloads, 0);
        drop(held);
        // It would have given up, had the status waited for it.
        change.join().unwrap().unwrap();
    });
    assert_eq!(appliance.status().policy.reloads, 1);
}

#[test]
fn interfaces_keep_their_names_when_a_file_is_put_in_another_order() {
    let (appliance, _) = appliance(53);
    let before = appliance.unproven();
    assert_eq!(before[0].0, "a");
    let mut turned = model(53);
    turned.entities.reverse();
    turned.interfaces.reverse();
    for interface in &mut turned.interfaces {
        interface.entity = crate::model::EntityIx::new(1 - interface.entity.ix());
    }
    appliance.replace(turned).unwrap();
    assert_eq!(appliance.unproven(), before);
    let status = appliance.status();
    assert_eq!(status.interfaces[0].security_groups, ["a"]);
}

#[test]
fn a_model_that_is_in_force_already_is_not_put_in_force_again() {
    let (appliance, _) = appliance(53);
    let generation = appliance.engine().policy().generation();
    assert_eq!(appliance.replace(model(53)).unwrap(), generation);
    appliance.refuse("a mistake".to_owned());
    assert_eq!(appliance.replace(model(53)).unwrap(), generation);
    let policy = appliance.status().policy;
    assert_eq!((policy.reloads, policy.last_refusal), (0, None));
    assert_eq!(appliance.replace(model(54)).unwrap(), generation + 1);
}
