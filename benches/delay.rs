//! By how much a packet is held up, at the worst, while the table of a million flows is
//! swept and while one policy takes the place of another.
//!
//! One thread judges packets as a worker does, segments of known flows and now and
//! then one that opens a flow, and looks at the clock after each; another sweeps, or
//! compiles and swaps, all the time. Beside it the same without: what a busy machine
//! itself holds packets up by.
//!
//! ```text
//! cargo bench --bench delay [-- SECONDS]
//! ```
#![expect(clippy::print_stdout, reason = "it talks to whoever measures")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use sgwall::conntrack::Millis;
use sgwall::datapath::{Datapath, Fate, Unasked};
use sgwall::model::Model;
use sgwall::packet::{Shape, TcpFlags};
use sgwall::policy::Policy;

use self::world::{A_V4, B_V4};

#[path = "common/world.rs"]
mod world;

/// Connections that stay; each is a flow at both ends.
const STAY: u32 = 450_000;
/// Connections of which each sweep finds some that have run out.
const COME_AND_GO: u32 = 50_000;
/// Rules of the policy that is compiled and swapped.
const RULES: usize = 1_000;
/// Packets between two looks at the policy in force: a worker's budget.
const BATCH: u32 = 64;

/// What the second thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Sweeps,
    Swaps,
}

fn main() {
    let seconds = std::env::args().find_map(|argument| argument.parse().ok());
    let lasting = Duration::from_secs(seconds.unwrap_or(4));
    let model = world::open(&world::model(RULES));
    let datapath = Datapath::new(1 << 20);
    let policy = Policy::compile(&model, None);
    for number in 0..STAY {
        establish(&datapath, &policy, number);
    }
    let worst = |beside| {
        let mut delays = measure(&datapath, &model, beside, lasting);
        delays.sort_unstable();
        // Of so many in a hundred thousand packets.
        let at = |share: usize| {
            let place = delays.len() * share / 100_000;
            delays[place.min(delays.len() - 1)].as_nanos() as f64 / 1e6
        };
        println!(
            "{beside:?}: {} packets, p50 {:.5} ms, p99.99 {:.4} ms, p99.999 {:.4} ms, worst {:.3} ms",
            delays.len(),
            at(50_000),
            at(99_990),
            at(99_999),
            at(100_000),
        );
        at(100_000)
    };
    let alone = worst(Beside::Nothing);
    let sweeps = worst(Beside::Sweeps);
    let swaps = worst(Beside::Swaps);
    println!("worst delay without either: {alone:.3} ms");
    println!("worst delay by a sweep: {sweeps:.3} ms");
    println!("worst delay by a swap: {swaps:.3} ms");
}

/// How long each packet took.
fn measure(datapath: &Datapath, model: &Model, beside: Beside, lasting: Duration) -> Vec<Duration> {
    let first = Policy::compile(model, None);
    let policies = ArcSwap::from_pointee(first);
    let done = AtomicBool::new(false);
    let began = Instant::now();
    let now = || Millis(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut part = 0;
            while !done.load(Ordering::Relaxed) {
                match beside {
                    Beside::Nothing => thread::sleep(Duration::from_millis(1)),
                    // The time is ahead, so that what was opened and not answered
                    // has run out.
                    Beside::Sweeps => {
                        datapath.sweep_part(part, 16, Millis(now().0 + 60_000));
                        part = (part + 1) % 16;
                        // As the engine does.
                        thread::sleep(Duration::from_secs(1) / 16);
                    }
                    Beside::Swaps => {
                        let next = Policy::compile(model, Some(&policies.load()));
                        let previous = policies.swap(Arc::new(next));
                        // As the engine does, which waits for its workers.
                        thread::sleep(Duration::from_millis(1));
                        drop(previous);
                    }
                }
            }
        });
        let judging = scope.spawn(|| judge(datapath, &policies, lasting, now));
        let delays = judging.join().unwrap_or_default();
        done.store(true, Ordering::Relaxed);
        delays
    })
}

fn judge(
    datapath: &Datapath,
    policies: &ArcSwap<Policy>,
    lasting: Duration,
    now: impl Fn() -> Millis,
) -> Vec<Duration> {
    let mut cache = Cache::new(policies);
    let mut delays = Vec::with_capacity(20_000_000);
    let known = world::segment((A_V4, 0), (B_V4, 0), flags(false, true));
    let opening = world::segment((A_V4, 0), (B_V4, 0), flags(true, false));
    let mut frame = known.clone();
    let mut number = 0_u32;
    let began = Instant::now();
    let mut before = began;
    while before - began < lasting && delays.len() < delays.capacity() {
        let policy = cache.load();
        let now = now();
        for _ in 0..BATCH {
            number = number.wrapping_add(1);
            let (packet, connection) = if number.is_multiple_of(16) {
                (&opening, STAY + number / 16 % COME_AND_GO)
            } else {
                (&known, number.wrapping_mul(2_654_435_761) % STAY)
            };
            frame.copy_from_slice(packet);
            let (port, service) = ports(connection);
            frame[20..22].copy_from_slice(&port.to_be_bytes());
            frame[22..24].copy_from_slice(&service.to_be_bytes());
            before = Instant::now();
            let verdict = datapath.judge(
                policy,
                world::a(),
                &mut frame,
                Shape::Whole,
                now,
                &mut Unasked,
            );
            let after = Instant::now();
            std::hint::black_box(verdict);
            delays.push(after - before);
            before = after;
        }
    }
    delays
}

fn ports(connection: u32) -> (u16, u16) {
    let port = |number: u32| u16::try_from(number).expect("below 65,536");
    (
        port(1_024 + connection % 50_000),
        port(1_000 + connection / 50_000),
    )
}

fn flags(syn: bool, ack: bool) -> TcpFlags {
    TcpFlags {
        syn,
        ack,
        ..TcpFlags::default()
    }
}

/// Opens a connection, and has it acknowledged.
fn establish(datapath: &Datapath, policy: &Policy, number: u32) {
    let (port, service) = ports(number);
    let (a, b) = ((A_V4, port), (B_V4, service));
    for (at, from, to, flags) in [
        (world::a(), a, b, flags(true, false)),
        (world::b(), b, a, flags(true, true)),
        (world::a(), a, b, flags(false, true)),
    ] {
        let mut frame = world::segment(from, to, flags);
        let verdict = datapath.judge(
            policy,
            at,
            &mut frame,
            Shape::Whole,
            Millis(0),
            &mut Unasked,
        );
        assert!(matches!(verdict.fate, Fate::Forward { .. }), "{verdict:?}");
    }
}
