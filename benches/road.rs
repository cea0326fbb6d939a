//! What the stations of a packet's road cost, and what it costs to compile a
//! policy.
//!
//! `cargo bench` prints all of it in a minute or two; `cargo bench -- hit`
//! only what has `hit` in its name. A packet's headers are written into the
//! frame just before it is judged, as reading it from a device would.
#![allow(missing_docs, reason = "criterion's macros make items without")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use sgwall::conntrack::Millis;
use sgwall::datapath::{Datapath, Fate, Silent};
use sgwall::model::{InterfaceIx, protocol};
use sgwall::packet::{self, Shape, TcpFlags, Transport};
use sgwall::policy::Policy;

use self::world::{A_V4, A_V6, B_V4, B_V6, CLIENT_V4};

#[path = "common/world.rs"]
mod world;

/// Rules in the table that is asked, or compiled.
const RULES: [usize; 3] = [10, 1_000, 100_000];
/// Live flows among which a packet's is found.
const FLOWS: [u16; 2] = [1, 10_000];
/// Bytes that hold the headers of every packet here.
const HEADERS: usize = 64;
/// New flows between two clearings of the table.
const NEW_FLOWS: usize = 4096;
/// Every packet comes at the same time; no flow ends meanwhile.
const NOW: Millis = Millis(1_000);

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(30);
    targets = parse, tracked_hit, miss, compile, recompile
}
criterion_main!(benches);

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, frame) in [
        ("tcp v4", world::tcp((A_V4, 40_000), (B_V4, 443), false)),
        ("udp v4", world::udp((A_V4, 40_000), (B_V4, 53))),
        ("tcp v6", world::tcp((A_V6, 40_000), (B_V6, 443), false)),
    ] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| packet::parse(black_box(&frame)));
        });
    }
}

/// A segment of a known connection: the whole road between two interfaces, both
/// of which track it; and from an interface to the internet, where one side
/// tracks it and the internet gateway translates. With many flows each packet
/// belongs to another, in random order.
fn tracked_hit(criterion: &mut Criterion) {
    let tracked = world::model(10);
    let untracked = world::untracked(&tracked);
    let from = world::a();
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
            let mut ports: Vec<u16> = (10_000..10_000 + flows).collect();
            for port in &ports {
                let mut opening = world::tcp((source, *port), (destination, 443), true);
                deliver(&datapath, &policy, from, &mut opening);
            }
            shuffle(&mut ports);
            let mut ports = ports.iter().cycle();
            let packet = world::tcp((source, 0), (destination, 443), false);
            let mut frame = packet.clone();
            let id = BenchmarkId::new(name, format!("{flows} flows"));
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    // The headers as the sender wrote them: translation has
                    // changed those of the packet before.
                    frame[..HEADERS].copy_from_slice(&packet[..HEADERS]);
                    let port = ports.next().map_or(0, |port| *port);
                    frame[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
                    datapath.judge(&policy, from, &mut frame, Shape::Whole, NOW, &mut Silent)
                });
            });
            let flows_now = datapath.flows().len();
            assert_eq!(flows_now % usize::from(flows), 0, "each was a hit");
        }
    }
}

/// The first packet of a flow: read, judged by the sender's and the receiver's
/// rules, tracked at both. The receiver's table has so many rules, and every
/// packet comes from an address that another of them lets in.
fn miss(criterion: &mut Criterion) {
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
                    let began = Instant::now();
                    for packet in &packets[..now] {
                        let frame = &mut frame[..packet.len()];
                        frame.copy_from_slice(packet);
                        black_box(datapath.judge(
                            &policy,
                            world::router(),
                            frame,
                            Shape::Whole,
                            NOW,
                            &mut Silent,
                        ));
                    }
                    spent += began.elapsed();
                    assert_eq!(datapath.flows().len(), 2 * now, "each was a miss");
                    left -= now as u64;
                }
                spent
            });
        });
    }
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for rules in RULES {
        let model = world::model(rules);
        group.bench_function(BenchmarkId::from_parameter(rules), |bencher| {
            bencher.iter_with_large_drop(|| Policy::compile(&model, None));
        });
    }
}

/// A reload after one rule changed: in the table with so many rules, which is
/// made anew; and in another, so that it is shared with the previous policy.
fn recompile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recompile");
    group.sample_size(10);
    for rules in RULES {
        let model = world::model(rules);
        let previous = Policy::compile(&model, None);
        for (name, changed) in [
            ("one of the rules", world::with_one_rule_changed(&model)),
            (
                "a rule of another group",
                world::with_a_small_group_changed(&model),
            ),
        ] {
            group.bench_function(BenchmarkId::new(name, rules), |bencher| {
                bencher.iter_batched(
                    || (),
                    |()| Policy::compile(&changed, Some(&previous)),
                    BatchSize::PerIteration,
                );
            });
        }
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
