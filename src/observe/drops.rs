//! Samples of dropped packets, for people who ask why: what was dropped, where and for
//! which reason, at a bounded rate. Workers write them into a bounded queue; formatting
//! is for whoever reads it.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::utils::CachePadded;

use crate::conntrack::Millis;
use crate::model::{Direction, InterfaceIx};
use crate::packet::{Original, Packet, Shape};
use crate::policy::DropReason;

mod report;

pub use report::{DropReport, Headers, PacketReport};

/// Most samples that one worker writes in a second (decision): enough to see who is
/// refused, and few enough to be read.
pub const SAMPLES_A_SECOND: u16 = 50;
/// Most of them with the same reason (decision): a flood of one kind doesn't hide others.
pub const SAMPLES_A_SECOND_OF_A_REASON: u16 = 10;
/// Seconds of samples that wait for a reader.
const SECONDS: usize = 4;
/// A second, in the data path's time.
const SECOND: u64 = 1000;

/// Where workers leave samples of what they drop, and count what they left out.
#[derive(Debug)]
pub struct DropLog {
    samples: ArrayQueue<Sample>,
    /// Packets that were dropped without a sample, by writer and reason.
    unlogged: Vec<CachePadded<[AtomicU64; DropReason::COUNT]>>,
    /// How many times it was cleared: writers may then spend anew.
    cleared: AtomicU64,
}

/// A dropped packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Why.
    pub reason: DropReason,
    /// The interface at which it was dropped.
    pub at: InterfaceIx,
    /// On its way out of that interface, or in.
    pub direction: Direction,
    /// When, in time since the engine's start.
    pub when: Millis,
    /// How many packets of the wire it stands for.
    pub packets: u64,
    /// The headers as the sender sent them, unless they can't be read.
    pub packet: Option<Packet>,
}

/// What was dropped: a sample with how many like it went unlogged, or these alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// Why.
    pub reason: DropReason,
    /// One of them; `None` if all went unlogged.
    pub sample: Option<Sample>,
    /// Packets dropped for the same reason, at any interface, without a sample.
    pub more: u64,
}

/// A worker's hand at the log. Without a log it costs a branch.
#[derive(Debug)]
pub struct Sampler<'a> {
    log: Option<&'a DropLog>,
    writer: usize,
    now: Cell<Millis>,
    spent: Cell<Spent>,
}

/// What a worker has written in one second.
#[derive(Debug, Clone, Copy)]
struct Spent {
    /// Which second, and how many times the log had been cleared.
    second: (u64, u64),
    all: u16,
    of: [u16; DropReason::COUNT],
}

impl DropLog {
    /// A log of `writers` writers, of which each is one thread.
    pub fn new(writers: usize) -> Self {
        let capacity = writers.max(1) * usize::from(SAMPLES_A_SECOND) * SECONDS;
        let zeroes = || CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0)));
        Self {
            samples: ArrayQueue::new(capacity),
            unlogged: (0..writers).map(|_| zeroes()).collect(),
            cleared: AtomicU64::new(0),
        }
    }

    /// Takes out what has been dropped since the last time, oldest first. The last
    /// sample of a reason says how many more there were.
    pub fn take(&self) -> Vec<Dropped> {
        // Not more than are there now: workers may write as fast as this reads.
        let mut taken: Vec<Dropped> = (0..self.samples.len())
            .map_while(|_| self.samples.pop())
            .map(|sample| Dropped {
                reason: sample.reason,
                sample: Some(sample),
                more: 0,
            })
            .collect();
        for reason in DropReason::ALL {
            let slot = reason as usize;
            let more = self.unlogged.iter();
            let more = more.map(|of| of[slot].swap(0, Ordering::Relaxed)).sum();
            if more == 0 {
                continue;
            }
            match taken.iter_mut().rfind(|it| it.reason == reason) {
                Some(last) => last.more = more,
                None => taken.push(Dropped {
                    reason,
                    sample: None,
                    more,
                }),
            }
        }
        taken
    }

    /// Forgets all that was dropped so far, as if nothing had been.
    pub fn clear(&self) {
        self.cleared.fetch_add(1, Ordering::Relaxed);
        self.take();
    }

    /// Counts packets that nothing is known of but the reason.
    pub fn count(&self, writer: usize, reason: DropReason, packets: u64) {
        if let Some(of) = self.unlogged.get(writer) {
            of[reason as usize].fetch_add(packets, Ordering::Relaxed);
        }
    }
}

impl<'a> Sampler<'a> {
    /// That of one writer; it does nothing without a log.
    pub fn new(log: Option<&'a DropLog>, writer: usize) -> Self {
        Self {
            log,
            writer,
            now: Cell::new(Millis::default()),
            spent: Cell::new(Spent::in_second((0, 0))),
        }
    }

    /// Takes note of the time, once a batch.
    #[inline]
    pub fn at_time(&self, now: Millis) {
        self.now.set(now);
    }

    /// Records that a packet from `from` was dropped at `at`. `frame` is the packet in its
    /// current form.
    #[inline]
    pub fn dropped(
        &self,
        reason: DropReason,
        from: Option<InterfaceIx>,
        at: InterfaceIx,
        frame: &[u8],
        shape: Shape,
        original: Original,
    ) {
        if let Some(log) = self.log {
            self.log(log, reason, from, at, frame, shape, original);
        }
    }

    /// Packets were dropped of which no frame is at hand.
    #[inline]
    pub fn counted(&self, reason: DropReason, packets: u64) {
        if let Some(log) = self.log {
            log.count(self.writer, reason, packets);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what is known of the drop")]
    #[cold]
    fn log(
        &self,
        log: &DropLog,
        reason: DropReason,
        from: Option<InterfaceIx>,
        at: InterfaceIx,
        frame: &[u8],
        shape: Shape,
        original: Original,
    ) {
        let when = self.now.get();
        let packets = shape.packets(frame.len()) as u64;
        let mut spent = self.spent.get();
        let second = (when.0 / SECOND, log.cleared.load(Ordering::Relaxed));
        let admits = spent.admit(reason, second);
        self.spent.set(spent);
        let written = admits && {
            let sample = Sample {
                reason,
                at,
                direction: direction(reason, from, at),
                when,
                packets,
                packet: original.read(frame),
            };
            log.samples.push(sample).is_ok()
        };
        if !written {
            log.count(self.writer, reason, packets);
        }
    }
}

impl Spent {
    fn in_second(second: (u64, u64)) -> Self {
        Self {
            second,
            all: 0,
            of: [0; DropReason::COUNT],
        }
    }

    /// Whether one more may be written, which counts at once.
    fn admit(&mut self, reason: DropReason, second: (u64, u64)) -> bool {
        if second != self.second {
            *self = Self::in_second(second);
        }
        let of = &mut self.of[reason as usize];
        let admits = self.all < SAMPLES_A_SECOND && *of < SAMPLES_A_SECOND_OF_A_REASON;
        if admits {
            self.all += 1;
            *of += 1;
        }
        admits
    }
}

/// Which way a packet went when it was dropped.
fn direction(reason: DropReason, from: Option<InterfaceIx>, at: InterfaceIx) -> Direction {
    match reason {
        // The router's answers reach their own packet's sender.
        DropReason::NoIngressRule
        | DropReason::NetworkAclIngress
        | DropReason::DestinationCheck => Direction::Ingress,
        _ if from == Some(at) => Direction::Egress,
        _ => Direction::Ingress,
    }
}

#[cfg(test)]
mod tests;
