//! Packets, bytes and drops. Each worker writes its own counters, on cache
//! lines of its own, without locked instructions; whoever reads adds them up.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::model::InterfaceIx;
use crate::packet::Shape;
use crate::policy::DropReason;

/// The counters of every interface, a set for each worker.
#[derive(Debug)]
pub struct Counters {
    workers: Vec<CachePadded<Vec<Slots>>>,
    /// What [`Counters::rebase`] declared to be zero.
    base: Mutex<Vec<Traffic>>,
}

/// The counters that one worker writes.
#[derive(Debug, Clone, Copy)]
pub struct Tally<'a> {
    slots: &'a [Slots],
}

/// What a frame is on the wire: the segments of a super-packet count each, with
/// the headers that each would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// Packets.
    pub packets: u64,
    /// Their bytes, headers and all.
    pub bytes: u64,
}

/// What one interface has seen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Packets delivered to it.
    pub packets_in: u64,
    /// Bytes delivered to it.
    pub bytes_in: u64,
    /// Packets from it that were delivered.
    pub packets_out: u64,
    /// Bytes from it that were delivered.
    pub bytes_out: u64,
    /// Packets dropped at it, by reason.
    pub drops: [u64; DropReason::COUNT],
}

#[derive(Debug, Default)]
struct Slots {
    packets_in: AtomicU64,
    bytes_in: AtomicU64,
    packets_out: AtomicU64,
    bytes_out: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

impl Counters {
    /// Counters for `workers` workers and `interfaces` interfaces, at zero.
    pub fn new(workers: usize, interfaces: usize) -> Self {
        let slots = || (0..interfaces).map(|_| Slots::default()).collect();
        Self {
            workers: (0..workers).map(|_| CachePadded::new(slots())).collect(),
            base: Mutex::new(vec![Traffic::default(); interfaces]),
        }
    }

    /// The set of one worker, which must be its only writer.
    pub fn tally(&self, worker: usize) -> Tally<'_> {
        Tally {
            slots: &self.workers[worker],
        }
    }

    /// What the interface has seen since the last [`Self::rebase`].
    pub fn traffic(&self, at: InterfaceIx) -> Traffic {
        let base = self
            .base
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let mut sum = self.sum(at);
        if let Some(base) = base.get(at.ix()) {
            sum.subtract(base);
        }
        sum
    }

    /// Counts from now on from zero. The workers' counters only ever grow, so
    /// nothing that they count meanwhile is lost.
    pub fn rebase(&self) {
        let mut base = self
            .base
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        for (i, slot) in base.iter_mut().enumerate() {
            *slot = self.sum(InterfaceIx::new(i));
        }
    }

    fn sum(&self, at: InterfaceIx) -> Traffic {
        let mut sum = Traffic::default();
        for worker in &self.workers {
            if let Some(slots) = worker.get(at.ix()) {
                sum.add(slots);
            }
        }
        sum
    }
}

impl Traffic {
    /// Packets dropped at the interface for any reason.
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// The reasons that occurred, with their counts.
    pub fn drops_by_reason(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .into_iter()
            .map(|reason| (reason, self.drops[reason as usize]))
            .filter(|(_, count)| *count > 0)
    }

    fn add(&mut self, slots: &Slots) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.packets_in += read(&slots.packets_in);
        self.bytes_in += read(&slots.bytes_in);
        self.packets_out += read(&slots.packets_out);
        self.bytes_out += read(&slots.bytes_out);
        for (sum, counter) in self.drops.iter_mut().zip(&slots.drops) {
            *sum += read(counter);
        }
    }

    fn subtract(&mut self, base: &Self) {
        self.packets_in -= base.packets_in;
        self.bytes_in -= base.bytes_in;
        self.packets_out -= base.packets_out;
        self.bytes_out -= base.bytes_out;
        for (sum, base) in self.drops.iter_mut().zip(&base.drops) {
            *sum -= base;
        }
    }
}

impl Wire {
    /// What a frame of `length` bytes and that shape is.
    #[inline]
    pub fn of(shape: Shape, length: usize) -> Self {
        Self {
            packets: shape.packets(length) as u64,
            bytes: shape.bytes(length) as u64,
        }
    }
}

impl Tally<'_> {
    /// Packets of the wire went from one interface to another; `None` for what
    /// the VPC's router sends or has split.
    pub fn delivered(&self, from: Option<InterfaceIx>, to: InterfaceIx, wire: Wire) {
        if let Some(from) = from {
            self.sent(from, wire);
        }
        if let Some(slots) = self.slots.get(to.ix()) {
            bump(&slots.packets_in, wire.packets);
            bump(&slots.bytes_in, wire.bytes);
        }
    }

    /// Packets of the wire left an interface and were delivered, whole or in
    /// fragments.
    pub fn sent(&self, from: InterfaceIx, wire: Wire) {
        if let Some(slots) = self.slots.get(from.ix()) {
            bump(&slots.packets_out, wire.packets);
            bump(&slots.bytes_out, wire.bytes);
        }
    }

    /// So many packets were dropped.
    pub fn dropped(&self, reason: DropReason, at: InterfaceIx, packets: u64) {
        if let Some(slots) = self.slots.get(at.ix()) {
            bump(&slots.drops[reason as usize], packets);
        }
    }
}

/// One writer, so a load and a store do; a locked add would cost each packet
/// some twenty cycles.
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed) + by, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{self, Transport};

    #[test]
    fn workers_add_up_and_drops_keep_their_reason() {
        let counters = Counters::new(2, 2);
        let (a, b) = (InterfaceIx::new(0), InterfaceIx::new(1));
        counters
            .tally(0)
            .delivered(Some(a), b, Wire::of(Shape::Whole, 100));
        counters
            .tally(1)
            .delivered(Some(a), b, Wire::of(Shape::Whole, 50));
        counters.tally(1).dropped(DropReason::NoIngressRule, b, 1);
        let seen = counters.traffic(b);
        assert_eq!((seen.packets_in, seen.bytes_in), (2, 150));
        assert_eq!(
            seen.drops_by_reason().collect::<Vec<_>>(),
            [(DropReason::NoIngressRule, 1)]
        );
        assert_eq!(counters.traffic(a).packets_out, 2);
    }

    #[test]
    fn segments_count_each_with_their_headers() {
        let frame = packet::build(
            [10, 0, 0, 1].into(),
            [10, 0, 0, 2].into(),
            17,
            Transport::Udp {
                source: 1,
                destination: 2,
            },
            &[0; 2500],
        )
        .unwrap();
        let shape = Shape::segments(&frame, 1000, false).unwrap();
        let (packets, bytes) = (3, 2500 + 3 * 28);
        assert_eq!(Wire::of(shape, frame.len()), Wire { packets, bytes });
    }

    #[test]
    fn after_a_rebase_counting_starts_from_zero() {
        let counters = Counters::new(1, 1);
        let a = InterfaceIx::new(0);
        counters.tally(0).dropped(DropReason::Malformed, a, 1);
        counters.rebase();
        assert_eq!(counters.traffic(a), Traffic::default());
        counters.tally(0).dropped(DropReason::Malformed, a, 1);
        assert_eq!(counters.traffic(a).dropped(), 1);
    }
}
