//! What the stations of a packet's road cost.
//!
//! `cargo bench` prints all of it in a minute or two; `cargo bench -- hit`
//! only what has `hit` in its name. A packet's headers are written into the
//! frame just before it is judged, as reading it from a device would.
#![allow(missing_docs, reason = "criterion's macros make items without")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Bencher, BenchmarkId, Criterion, criterion_group, criterion_main};
use dashmap::DashMap;
use sgwall::conntrack::{FlowTable, Millis, Opening};
use sgwall::datapath::{Datapath, Fate, Silent, Unasked};
use sgwall::model::{Direction, InterfaceIx, RuleId, Tracking, protocol};
use sgwall::packet::{self, Brief, FlowKey, Packet, Shape, TcpFlags, Transport};
use sgwall::policy::{Owner, Policy};

use self::cpu_time::CpuTime;
use self::world::{A_V4, A_V6, B_V4, B_V6, CLIENT_V4};

#[path = "common/cpu_time.rs"]
mod cpu_time;
#[path = "common/world.rs"]
mod world;

/// Rules in the table that is asked.
const RULES: [usize; 3] = [10, 1_000, 100_000];
/// Live flows among which a packet's are found: an end of a connection each, where an
/// interface tracks it.
const FLOWS: [u16; 3] = [2, 10_000, 20_000];
/// Packets that are at hand at a time: a single one, or what a busy link's worker reads.
const BATCHES: [(usize, &str); 2] = [(1, ""), (32, ", in batches of 32")];
/// Bytes that hold the headers of every packet here.
const HEADERS: usize = 64;
/// New flows between two clearings of the table.
const NEW_FLOWS: usize = 4096;
/// Every packet comes at the same time; no flow ends meanwhile.
const NOW: Millis = Millis(1_000);

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(30);
    targets = parse, tracked_hit, tracked_hit_among_a_million, memory, table, miss
}
criterion_main!(benches);

fn parse(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("parse");
    for (name, frame) in [
        ("tcp v4", world::tcp((A_V4, 40_000), (B_V4, 443), false)),
        ("udp v4", world::udp((A_V4, 40_000), (B_V4, 53))),
        ("tcp v6", world::tcp((A_V6, 40_000), (B_V6, 443), false)),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| packet::parse(black_box(&frame)));
        });
        // What the short road reads instead.
        group.bench_function(format!("{name}, in brief"), |bencher| {
            bencher.iter(|| Brief::plain(world::a(), black_box(&frame)));
        });
    }
}

/// A segment of an established connection: the whole road between two interfaces,
/// both of which track it; and from an interface to the internet, where one side
/// tracks it and the internet gateway translates. With many flows each packet
/// belongs to another, in random order. The clock goes on meanwhile, a
/// millisecond in a thousand packets, so idle times are put off.
fn tracked_hit(criterion: &mut Criterion<CpuTime>) {
    let tracked = world::model(10);
    let untracked = world::untracked(&tracked);
    let mut group = criterion.benchmark_group("tracked hit");
    for (name, model, source, destination, port_at) in [
        ("local", &tracked, A_V4, B_V4, 20),
        ("local v6", &tracked, A_V6, B_V6, 40),
        ("to the internet", &tracked, A_V4, CLIENT_V4, 20),
        ("local, untracked there", &untracked, A_V4, B_V4, 20),
    ] {
        let policy = Policy::compile(model, None);
        for flows in FLOWS {
            let datapath = Datapath::new(1 << 20);
            let ends = if destination == CLIENT_V4 { 1 } else { 2 };
            let mut ports: Vec<(u16, u16)> = (10_000..10_000 + flows / ends)
                .map(|port| (port, 443))
                .collect();
            for (port, service) in &ports {
                establish(&datapath, &policy, (source, *port), (destination, *service));
            }
            shuffle(&mut ports);
            let packet = world::tcp((source, 0), (destination, 443), false);
            for (batch, how) in BATCHES {
                let id = BenchmarkId::new(name, format!("{flows} flows{how}"));
                group.bench_function(id, |bencher| {
                    hits(bencher, &datapath, &policy, &packet, port_at, &ports, batch);
                });
            }
            let flows_now = datapath.flows().len();
            assert_eq!(flows_now, usize::from(flows), "each was a hit");
        }
    }
}

/// The same between two interfaces that track a million flows together: half a
/// million connections, the segments in random order; and what a flow takes of
/// memory.
fn tracked_hit_among_a_million(criterion: &mut Criterion<CpuTime>) {
    let policy = Policy::compile(&world::open(&world::model(10)), None);
    let datapath = Datapath::new(1 << 20);
    let mut ports: Vec<(u16, u16)> = (0..500_000u32)
        .map(|nth| {
            let port = |number: u32| u16::try_from(number).expect("a port");
            (port(1_024 + nth % 50_000), port(1_000 + nth / 50_000))
        })
        .collect();
    let flows = datapath.flows();
    for (nth, (port, service)) in ports.iter().enumerate() {
        let (from, to) = ((A_V4, *port), (B_V4, *service));
        let flags = TcpFlags {
            syn: true,
            ..TcpFlags::default()
        };
        let frame = world::segment(from, to, flags);
        let packet = packet::parse(&frame).expect("a packet");
        open(flows, &packet, world::a(), Direction::Egress, nth);
        open(flows, &packet, world::b(), Direction::Ingress, nth);
        establish(&datapath, &policy, from, to);
    }
    assert_eq!(flows.len(), 1_000_000);
    let each = flows.bytes() as f64 / flows.len() as f64;
    #[expect(clippy::print_stdout, reason = "a figure that criterion does not take")]
    {
        println!("memory per flow of 1,000,000: {each:.1} bytes");
    }
    shuffle(&mut ports);
    let packet = world::tcp((A_V4, 0), (B_V4, 0), false);
    let mut group = criterion.benchmark_group("tracked hit");
    for (batch, how) in BATCHES {
        let id = BenchmarkId::new("local", format!("1000000 flows{how}"));
        group.bench_function(id, |bencher| {
            hits(bencher, &datapath, &policy, &packet, 20, &ports, batch);
        });
    }
}

/// What this machine's memory alone costs: lines in random order, each of which says
/// where the next is, among as many bytes as the tables above have. A flow that nobody
/// has announced waits for two of them, one after the other: the index, the record.
fn memory(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("one line of memory");
    for (flows, bytes) in [(20_000, 2 << 20), (1_000_000, 120 << 20)] {
        let lines = bytes / size_of::<Line>();
        let mut order: Vec<usize> = (0..lines).collect();
        shuffle(&mut order);
        let mut memory: Vec<Line> = vec![Line([0; 8]); lines];
        for (here, next) in order.iter().zip(order.iter().cycle().skip(1)) {
            memory[*here].0[0] = *next;
        }
        let mut at = 0;
        group.bench_function(format!("as much as {flows} flows take"), |bencher| {
            bencher.iter(|| {
                at = memory[at].0[0];
                at
            });
        });
    }
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([usize; 8]);

/// One flow found, alone, among so many: in the flow table, and in a `DashMap` with as
/// quick a hash, which it took the place of.
fn table(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("find a flow");
    for flows in [1_000_u32, 20_000, 1_000_000] {
        let table = FlowTable::new(1 << 20);
        let map: DashMap<FlowKey, [u64; 6], foldhash::fast::RandomState> = DashMap::default();
        let mut keys: Vec<FlowKey> = (0..flows)
            .map(|number| {
                let [_, high, middle, low] = number.to_be_bytes();
                let from = format!("10.{high}.{middle}.{low}");
                let frame = world::udp((&from, 4_000), (B_V4, 53));
                let packet = packet::parse(&frame).expect("a packet");
                let key = packet
                    .flow_key(world::a(), Direction::Egress)
                    .expect("a flow");
                open(
                    &table,
                    &packet,
                    world::a(),
                    Direction::Egress,
                    number as usize,
                );
                map.insert(key, [1; 6]);
                key
            })
            .collect();
        shuffle(&mut keys);
        let mut next = keys.iter().cycle();
        group.bench_function(BenchmarkId::new("table", flows), |bencher| {
            bencher.iter(|| {
                let key = next.next().unwrap_or(&keys[0]);
                table.find(key, NOW).map(|flow| flow.admitted_by())
            });
        });
        group.bench_function(BenchmarkId::new("DashMap", flows), |bencher| {
            bencher.iter(|| {
                let key = next.next().unwrap_or(&keys[0]);
                map.get(key).map(|flow| flow[3])
            });
        });
    }
}

/// Judges packets like `packet` of connections with these ports, in batches, as a
/// worker does that has read what waits at a link.
fn hits(
    bencher: &mut Bencher<'_, CpuTime>,
    datapath: &Datapath,
    policy: &Policy,
    packet: &[u8],
    port_at: usize,
    ports: &[(u16, u16)],
    batch: usize,
) {
    let mut next = ports.iter().cycle();
    let mut frames = vec![packet.to_vec(); batch];
    let mut keys = Vec::new();
    let mut count = 0;
    bencher.iter_custom(|packets| {
        let mut spent = Duration::ZERO;
        let mut left = packets;
        let began = cpu_time::now();
        while left > 0 {
            for frame in &mut frames {
                // The headers as the sender wrote them: translation has changed those
                // of the packet before.
                frame[..HEADERS].copy_from_slice(&packet[..HEADERS]);
                let (port, service) = next.next().copied().unwrap_or_default();
                // At once: what is read in one piece and was written in two, the processor
                // waits for, as for nothing that a device's driver has written.
                let both = u32::from(port) << 16 | u32::from(service);
                frame[port_at..port_at + 4].copy_from_slice(&both.to_be_bytes());
            }
            if batch > 1 && datapath.anticipates() {
                datapath.anticipate(world::a(), frames.iter().map(Vec::as_slice), &mut keys);
            }
            count += 1;
            let now = Millis(NOW.0 + count * batch as u64 / 1_000);
            for frame in &mut frames {
                let verdict =
                    datapath.judge(policy, world::a(), frame, Shape::Whole, now, &mut Unasked);
                black_box(&verdict);
            }
            left = left.saturating_sub(batch as u64);
        }
        spent += cpu_time::now() - began;
        // Whole batches only.
        let judged = packets.div_ceil(batch as u64) * batch as u64;
        spent.mul_f64(packets as f64 / judged as f64)
    });
}

/// Opens a connection, and has it acknowledged.
fn open(table: &FlowTable, packet: &Packet, at: InterfaceIx, direction: Direction, nth: usize) {
    let key = packet.flow_key(at, direction).expect("a flow");
    let opening = Opening {
        packet,
        direction,
        tracking: &Tracking::default(),
        now: NOW,
        rule: RuleId(1),
        tracked: true,
        // Spread over many entities, because one entity may hold at most half of a table.
        sender: InterfaceIx::new(nth % 64),
        allowance: None,
        replace: false,
    };
    table.open(key, &opening).expect("room");
}

fn establish(datapath: &Datapath, policy: &Policy, from: (&str, u16), to: (&str, u16)) {
    let outside = policy
        .directory()
        .owner(world::ip(to.0))
        .and_then(Owner::interface);
    let receiver = outside.expect("somebody has it");
    // Through the internet gateway the sender is known by another address.
    let seen_as = if receiver == world::client() {
        (world::A_PUBLIC, from.1)
    } else {
        from
    };
    let flags = |syn, ack| TcpFlags {
        syn,
        ack,
        ..TcpFlags::default()
    };
    for (at, from, to, flags) in [
        (world::a(), from, to, flags(true, false)),
        (receiver, to, seen_as, flags(true, true)),
        (world::a(), from, to, flags(false, true)),
    ] {
        deliver(datapath, policy, at, &mut world::segment(from, to, flags));
    }
}

/// The first packet of a flow: read, judged by the sender's and the receiver's
/// rules, tracked at both. The receiver's table has so many rules, and every
/// packet comes from an address that another of them lets in.
fn miss(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("miss");
    for rules in RULES {
        let policy = Policy::compile(&world::model(rules), None);
        let packets: Vec<Vec<u8>> = (0..NEW_FLOWS)
            .map(|flow| opening_from_stranger(flow, rules))
            .collect();
        let datapath = Datapath::new(1 << 20);
        for packet in &packets {
            deliver(&datapath, &policy, world::router(), &mut packet.clone());
        }
        let mut frame = vec![0; 1 << 16];
        group.bench_function(BenchmarkId::from_parameter(rules), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut left = iterations;
                let mut spent = Duration::ZERO;
                while left > 0 {
                    // Grown to its size by the first round: what is measured is
                    // a table at work, not one that grows.
                    datapath.flows().clear();
                    let now = usize::try_from(left).unwrap_or(NEW_FLOWS).min(NEW_FLOWS);
                    let began = cpu_time::now();
                    for packet in &packets[..now] {
                        let frame = &mut frame[..packet.len()];
                        frame.copy_from_slice(packet);
                        black_box(datapath.judge(
                            &policy,
                            world::router(),
                            frame,
                            Shape::Whole,
                            NOW,
                            &mut Unasked,
                        ));
                    }
                    spent += cpu_time::now() - began;
                    assert_eq!(datapath.flows().len(), 2 * now, "each was a miss");
                    left -= now as u64;
                }
                spent
            });
        });
    }
}

/// Sends a packet that must arrive.
fn deliver(datapath: &Datapath, policy: &Policy, from: InterfaceIx, frame: &mut [u8]) {
    let verdict = datapath.judge(policy, from, frame, Shape::Whole, NOW, &mut Silent);
    assert!(matches!(verdict.fate, Fate::Forward { .. }), "{verdict:?}");
}

/// Opens a connection from the block of one of the rules, spread over them all.
fn opening_from_stranger(flow: usize, rules: usize) -> Vec<u8> {
    let rule = flow * 7_919 % rules;
    let source = u16::try_from(10_000 + flow).expect("few flows");
    let transport = Transport::Tcp {
        source,
        destination: world::port_for_stranger(rule),
        flags: TcpFlags {
            syn: true,
            ..TcpFlags::default()
        },
        end: 0,
        acknowledgement: 0,
    };
    let from = world::stranger(rule);
    world::build(from, world::ip(B_V4), protocol::TCP, transport, &[])
}

/// Any order but the one in which the flows were opened, the same every time.
fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for i in (1..items.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let other = usize::try_from(state % (i as u64 + 1)).unwrap_or(0);
        items.swap(i, other);
    }
}
