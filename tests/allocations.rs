//! What the hot path promises of memory: a packet of a known flow and a packet
//! that is dropped neither take nor give back any.
//!
//! The allocator counts per thread, so that whatever the test harness does on
//! others doesn't matter.
#![expect(
    unsafe_code,
    reason = "an allocator that counts is an unsafe trait's implementation"
)]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use sgwall::conntrack::Millis;
use sgwall::datapath::{Datapath, Fate, Silent, Verdict};
use sgwall::engine::{Engine, Options};
use sgwall::link::{Envelope, Link, MemoryLink, Offloads, Readiness, Received};
use sgwall::model::{InterfaceIx, Model};
use sgwall::observe::drops::{DropLog, Sampler};
use sgwall::packet::{self, Original, Shape, Transport};
use sgwall::policy::{DropReason, Policy};

use self::world::{A_V4, A_V6, B_PUBLIC, B_V4, B_V6, CLIENT_V4};

#[path = "../benches/common/world.rs"]
mod world;

/// Packets that are counted over.
const PACKETS: u64 = 10_000;

struct Counting;

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
    static GIVEN_BACK: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged. The counters are
// constants at first and have no destructor, so reaching them allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.set(TAKEN.get() + 1);
        // SAFETY: the caller keeps this function's contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        TAKEN.set(TAKEN.get() + 1);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        TAKEN.set(TAKEN.get() + 1);
        GIVEN_BACK.set(GIVEN_BACK.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        GIVEN_BACK.set(GIVEN_BACK.get() + 1);
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations and deallocations of this thread so far.
fn counts() -> (u64, u64) {
    (TAKEN.get(), GIVEN_BACK.get())
}

/// Those that `work` caused.
fn counted(work: impl FnOnce()) -> (u64, u64) {
    let (taken, given_back) = counts();
    work();
    let (taken_now, given_back_now) = counts();
    (taken_now - taken, given_back_now - given_back)
}

struct Road {
    policy: Policy,
    datapath: Datapath,
    frame: Vec<u8>,
}

impl Road {
    fn new() -> Self {
        Self::through(&world::model(100))
    }

    fn through(model: &Model) -> Self {
        Self {
            policy: Policy::compile(model, None),
            datapath: Datapath::new(1 << 20),
            frame: vec![0; 1 << 16],
        }
    }

    fn judge(&mut self, from: InterfaceIx, packet: &[u8], now: Millis) -> Verdict {
        let frame = &mut self.frame[..packet.len()];
        frame.copy_from_slice(packet);
        self.datapath
            .judge(&self.policy, from, frame, Shape::Whole, now, &mut Silent)
    }

    /// Counts over many packets, of which `packets` are sent by turns after
    /// each was sent once; all must meet with `expected`.
    fn count(
        &mut self,
        packets: &[(InterfaceIx, Vec<u8>)],
        expected: impl Fn(&Verdict) -> bool,
    ) -> (u64, u64) {
        for (from, packet) in packets {
            self.judge(*from, packet, Millis(0));
        }
        let mut unexpected = None;
        let counts = counted(|| {
            for i in 0..PACKETS {
                for (from, packet) in packets {
                    let verdict = self.judge(*from, packet, Millis(i / 10));
                    if !expected(&verdict) {
                        unexpected = Some(verdict);
                    }
                }
            }
        });
        assert_eq!(unexpected, None);
        counts
    }
}

fn passed_as_tracked(verdict: &Verdict) -> bool {
    let admissions = [verdict.egress, verdict.ingress];
    matches!(verdict.fate, Fate::Forward { .. })
        && admissions.iter().flatten().count() > 0
        && admissions.iter().flatten().all(|by| by.tracked)
}

#[test]
fn a_packet_of_a_known_flow_allocates_nothing() {
    let (a, b, client) = (world::a(), world::b(), world::client());
    let exchanges = [
        (
            "tcp",
            vec![
                (a, world::tcp((A_V4, 40_000), (B_V4, 443), true)),
                (b, world::tcp((B_V4, 443), (A_V4, 40_000), false)),
                (a, world::tcp((A_V4, 40_000), (B_V4, 443), false)),
            ],
        ),
        (
            "tcp v6",
            vec![
                (a, world::tcp((A_V6, 40_000), (B_V6, 443), true)),
                (b, world::tcp((B_V6, 443), (A_V6, 40_000), false)),
            ],
        ),
        (
            "udp",
            vec![
                (a, world::udp((A_V4, 40_000), (B_V4, 53))),
                (b, world::udp((B_V4, 53), (A_V4, 40_000))),
            ],
        ),
        (
            "udp v6",
            vec![
                (a, world::udp((A_V6, 40_000), (B_V6, 53))),
                (b, world::udp((B_V6, 53), (A_V6, 40_000))),
            ],
        ),
        (
            "echo",
            vec![
                (a, world::echo(A_V4, B_V4, true)),
                (b, world::echo(B_V4, A_V4, false)),
            ],
        ),
        (
            "echo v6",
            vec![
                (a, world::echo(A_V6, B_V6, true)),
                (b, world::echo(B_V6, A_V6, false)),
            ],
        ),
        (
            "tcp from the internet, translated",
            vec![
                (
                    client,
                    world::tcp((CLIENT_V4, 40_000), (B_PUBLIC, 443), true),
                ),
                (b, world::tcp((B_V4, 443), (CLIENT_V4, 40_000), false)),
            ],
        ),
        (
            "udp to the internet, translated",
            vec![
                (a, world::udp((A_V4, 40_000), (CLIENT_V4, 53))),
                (
                    client,
                    world::udp((CLIENT_V4, 53), ("203.0.113.10", 40_000)),
                ),
            ],
        ),
        (
            "echo from the internet, translated",
            vec![
                (client, world::echo(CLIENT_V4, B_PUBLIC, true)),
                (b, world::echo(B_V4, CLIENT_V4, false)),
            ],
        ),
    ];
    let mut road = Road::new();
    for (name, packets) in &exchanges {
        let counts = road.count(packets, passed_as_tracked);
        assert_eq!(counts, (0, 0), "{name}");
    }
    // The rules judge these, once for each policy.
    let mut road = Road::through(&world::untracked(&world::model(100)));
    for (name, packets) in &exchanges {
        let delivered = |verdict: &Verdict| matches!(verdict.fate, Fate::Forward { .. });
        // Each SYN opens a new untracked flow.
        let (opens, goes_on) = packets.split_at(usize::from(name.starts_with("tcp")));
        for (from, packet) in opens {
            road.judge(*from, packet, Millis(0));
        }
        let counts = road.count(goes_on, delivered);
        assert_eq!(counts, (0, 0), "{name}, untracked");
    }
}

#[test]
fn a_packet_that_is_dropped_allocates_nothing() {
    let a = world::a();
    let whole = world::tcp((A_V4, 40_000), (B_V4, 443), true);
    let mut fragment = whole.clone();
    fragment.truncate(36);
    fragment[3] = 36;
    fragment[6] = 0x20;
    let header = etherparse::Ipv4Header::from_slice(&fragment).unwrap().0;
    fragment[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    let mut road = Road::new();
    for (packet, reason) in [
        (
            world::tcp((A_V4, 40_000), (B_V4, 22), true),
            DropReason::NoIngressRule,
        ),
        (
            world::tcp((A_V6, 40_000), (B_V6, 22), true),
            DropReason::NoIngressRule,
        ),
        (
            world::tcp((CLIENT_V4, 40_000), (B_V4, 443), true),
            DropReason::SourceCheck,
        ),
        (whole[..39].to_vec(), DropReason::Malformed),
        (vec![], DropReason::Malformed),
        (fragment, DropReason::TinyFragment),
        (
            world::udp((A_V4, 40_000), ("224.0.0.1", 53)),
            DropReason::NotUnicast,
        ),
        (
            world::udp((A_V4, 40_000), ("10.0.0.99", 53)),
            DropReason::UnknownDestination,
        ),
    ] {
        let dropped = |verdict: &Verdict| matches!(verdict.fate, Fate::Drop { reason: seen, .. } if seen == reason);
        let counts = road.count(&[(a, packet)], dropped);
        assert_eq!(counts, (0, 0), "{reason}");
    }
}

#[test]
fn a_sample_of_a_dropped_packet_allocates_nothing_nor_does_one_too_many() {
    let log = DropLog::new(1);
    let sampler = Sampler::new(Some(&log), 0);
    let (a, b) = (world::a(), world::b());
    let packet = world::tcp((A_V4, 40_000), (B_V4, 22), true);
    let counts = counted(|| {
        for second in 0..100 {
            sampler.at_time(Millis(second * 1000));
            for reason in DropReason::ALL {
                sampler.dropped(
                    reason,
                    Some(a),
                    b,
                    &packet,
                    Shape::Whole,
                    Original::Unchanged,
                );
            }
        }
    });
    assert_eq!(counts, (0, 0));
    assert!(!log.take().is_empty());
}

/// What shows that the counts above could be others.
#[test]
fn new_flows_and_policies_are_counted() {
    assert_eq!(counted(|| drop(std::hint::black_box(Box::new(1)))), (1, 1));

    let mut road = Road::new();
    let opening: Vec<Vec<u8>> = (0..5000)
        .map(|flow| world::udp((A_V4, 10_000 + flow), (B_V4, 53)))
        .collect();
    let (taken, given_back) = counted(|| {
        for packet in &opening {
            road.judge(world::a(), packet, Millis(0));
        }
    });
    assert_eq!(road.datapath.flows().len(), 10_000);
    assert!(taken > 0 && given_back > 0, "the table grew");

    let model = world::model(10);
    assert!(counted(|| drop(Policy::compile(&model, None))).0 > 0);
}

/// A worker calls [`Link::recv`] on its own thread, where its counts are seen.
#[test]
fn a_worker_allocates_nothing_for_a_packet_of_a_known_flow() {
    let packet = world::tcp((A_V4, 40_000), (B_V4, 443), false);
    let at_once = worker_allocates_nothing_for(vec![(packet, Shape::Whole)], Offloads::ALL);
    assert_eq!(at_once, 1);
}

#[test]
fn a_worker_allocates_nothing_for_super_packets() {
    let tcp = |payload: &[u8]| bytes_of(&world::tcp((A_V4, 40_000), (B_V4, 443), false), payload);
    let frame = tcp(&[7; 60_000]);
    let shape = Shape::segments(&frame, 1448, false).unwrap();
    let passed = worker_allocates_nothing_for(vec![(frame.clone(), shape)], Offloads::ALL);
    assert_eq!(passed, 42);
    let split = worker_allocates_nothing_for(vec![(frame, shape)], Offloads::NONE);
    assert_eq!(split, 1);
}

#[test]
fn a_worker_allocates_nothing_for_packets_that_it_joins() {
    // Two flows by turns.
    let datagram = |port| bytes_of(&world::udp((A_V4, port), (B_V4, 53)), &[7; 64]);
    let frames = vec![
        (datagram(40_000), Shape::Whole),
        (datagram(40_001), Shape::Whole),
    ];
    let joined = worker_allocates_nothing_for(frames.clone(), Offloads::ALL);
    assert!(joined > 2, "{joined} at once");
    assert_eq!(worker_allocates_nothing_for(frames, Offloads::NONE), 1);
}

/// `packet`, which ends with its transport header, with a payload.
fn bytes_of(packet: &[u8], payload: &[u8]) -> Vec<u8> {
    let read = packet::parse(packet).unwrap();
    let (from, to) = (read.source, read.destination);
    let transport = match read.transport {
        Transport::Tcp {
            source,
            destination,
            flags,
            ..
        } => Transport::Tcp {
            source,
            destination,
            flags,
            end: u32::try_from(payload.len()).unwrap(),
            acknowledgement: 0,
        },
        other => other,
    };
    packet::build(from, to, read.protocol, transport, payload).unwrap()
}

/// Has a worker forward the frames again and again, to a link with those offloads.
/// Gives the most packets that it sent at once.
fn worker_allocates_nothing_for(frames: Vec<(Vec<u8>, Shape)>, offloads: Offloads) -> u64 {
    let (report, reported) = mpsc::channel();
    let sink = Arc::new(Sink {
        offloads,
        at_once: AtomicU64::new(0),
    });
    let endless = Endless {
        frames,
        progress: Mutex::new(Progress {
            sent: 0,
            before: (0, 0),
        }),
        report,
        waker: OnceLock::new(),
    };
    let endless = Arc::new(endless);
    let links: Vec<Arc<dyn Link>> = vec![
        Arc::clone(&endless) as _,
        Arc::clone(&sink) as _,
        Arc::new(MemoryLink::new(1)),
        Arc::new(MemoryLink::new(1)),
    ];
    let options = Options {
        workers: 1,
        ..Options::default()
    };
    let policy = Policy::compile(&world::model(100), None);
    let engine = Engine::start(links, policy, options).unwrap();
    endless.waker.get().unwrap().wake().unwrap();
    let counts = reported.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(counts, (0, 0));
    // The device was read once more when it reported; what waited then for others to
    // join it follows.
    let delivered = || engine.counters().traffic(world::b()).packets_in;
    let until = Instant::now() + Duration::from_secs(20);
    while delivered() < Endless::WARM_UP + PACKETS {
        assert!(Instant::now() < until, "{} delivered", delivered());
        std::thread::yield_now();
    }
    sink.at_once.load(Ordering::Relaxed)
}

/// A link that always has the same frames to read, until it has said what the
/// worker allocated meanwhile.
#[derive(Debug)]
struct Endless {
    frames: Vec<(Vec<u8>, Shape)>,
    progress: Mutex<Progress>,
    report: mpsc::Sender<(u64, u64)>,
    waker: OnceLock<Arc<mio::Waker>>,
}

#[derive(Debug)]
struct Progress {
    sent: u64,
    before: (u64, u64),
}

impl Endless {
    const WARM_UP: u64 = 1000;
}

impl Link for Endless {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut progress = self.progress.lock().expect("nobody panicked");
        if progress.sent == Self::WARM_UP {
            progress.before = counts();
        }
        if progress.sent == Self::WARM_UP + PACKETS {
            let (taken, given_back) = counts();
            let (taken_before, given_back_before) = progress.before;
            let counts = (taken - taken_before, given_back - given_back_before);
            let _ = self.report.send(counts);
        }
        if progress.sent >= Self::WARM_UP + PACKETS {
            progress.sent += 1;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        progress.sent += 1;
        let number = usize::try_from(progress.sent).unwrap() % self.frames.len();
        let (frame, shape) = &self.frames[number];
        buffer[..frame.len()].copy_from_slice(frame);
        Ok(Received {
            start: 0,
            length: frame.len(),
            shape: Ok(*shape),
            envelope: Envelope::NONE,
        })
    }

    fn send(&self, _: Envelope, _: &[u8], _: Shape) -> io::Result<()> {
        Ok(())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Wakes
    }

    fn wake_with(&self, waker: Arc<mio::Waker>) {
        let _ = self.waker.set(waker);
    }
}

/// A link that takes everything and gives nothing.
#[derive(Debug)]
struct Sink {
    offloads: Offloads,
    /// The most packets of the wire in one frame.
    at_once: AtomicU64,
}

impl Link for Sink {
    fn recv(&self, _: &mut [u8]) -> io::Result<Received> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&self, _: Envelope, frame: &[u8], shape: Shape) -> io::Result<()> {
        let packets = shape.packets(frame.len()) as u64;
        self.at_once.fetch_max(packets, Ordering::Relaxed);
        Ok(())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Wakes
    }
}
