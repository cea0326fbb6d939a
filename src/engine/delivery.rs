//! What becomes of judged frames: runs of one flow are joined, then they are written
//! to their receivers, in shapes that these take, and counted.

use std::io::ErrorKind;

use super::Shared;
use crate::datapath::{Answer, Fate, Verdict};
use crate::link::{Coalescer, Ends, FRAME, Link, Offloads};
use crate::model::InterfaceIx;
use crate::observe::{Tally, Wire};
use crate::packet::{self, Shape};
use crate::policy::DropReason;

/// A worker's hand at writing.
pub(super) struct Delivery<'a> {
    waiting: Coalescer,
    output: Output<'a>,
}

/// What writes and counts.
struct Output<'a> {
    shared: &'a Shared,
    tally: Tally<'a>,
    /// For the segments of a super-packet, one at a time.
    segment: Box<[u8]>,
    /// For the fragments of what is too big for a path, one at a time.
    fragment: Box<[u8]>,
}

impl<'a> Delivery<'a> {
    /// That of a worker.
    pub(super) fn new(shared: &'a Shared, worker: usize) -> Self {
        Self {
            waiting: Coalescer::new(),
            output: Output {
                shared,
                tally: shared.counters.tally(worker),
                segment: vec![0; FRAME].into(),
                fragment: vec![0; FRAME].into(),
            },
        }
    }

    /// Does with a frame what was decided. What could be joined by others waits for
    /// [`Delivery::flush`], at the end of a batch.
    #[inline]
    pub(super) fn carry_out(
        &mut self,
        from: InterfaceIx,
        frame: &[u8],
        shape: Shape,
        verdict: &Verdict,
    ) {
        match verdict.fate {
            Fate::Drop { reason, at } => {
                let packets = Wire::of(shape, frame.len()).packets;
                self.output.tally.dropped(reason, at, packets);
            }
            Fate::Hold { .. } => {}
            Fate::Forward {
                to,
                length,
                split: None,
            } => self.add(Some(from), to, &frame[..length], shape),
            Fate::Forward {
                to,
                length,
                split: Some(mtu),
            } => {
                let output = &mut self.output;
                self.waiting.flush_to(to, |ends, frame, shape| {
                    output.send(ends, frame, shape);
                });
                output.fragment(from, to, &frame[..length], shape, mtu);
            }
        }
        match verdict.answer {
            Some(Answer::Sent { length }) => {
                self.add(None, from, &frame[..length], Shape::Whole);
            }
            Some(Answer::Dropped { reason, at }) => self.output.tally.dropped(reason, at, 1),
            None => {}
        }
        if verdict.lost > 0 {
            let lost = verdict.lost.into();
            self.output
                .tally
                .dropped(DropReason::OverlappingFragment, from, lost);
        }
    }

    /// A frame that was no packet.
    pub(super) fn malformed(&self, from: InterfaceIx) {
        self.output.tally.dropped(DropReason::Malformed, from, 1);
    }

    /// Sends what has waited for others to join it.
    #[inline]
    pub(super) fn flush(&mut self) {
        let output = &mut self.output;
        self.waiting
            .flush(|ends, frame, shape| output.send(ends, frame, shape));
    }

    #[inline]
    fn add(&mut self, from: Option<InterfaceIx>, to: InterfaceIx, frame: &[u8], shape: Shape) {
        let output = &mut self.output;
        let receiver = output.shared.links.get(to.ix());
        let offloads = receiver.map_or(Offloads::NONE, |receiver| receiver.offloads());
        let ends = Ends { from, to };
        self.waiting
            .add(ends, frame, shape, offloads, |ends, frame, shape| {
                output.send(ends, frame, shape);
            });
    }
}

impl Output<'_> {
    /// Writes a frame to a link and counts it. What the link doesn't take goes to it as the packets
    /// that the frame stands for.
    #[inline]
    fn send(&mut self, Ends { from, to }: Ends, frame: &[u8], shape: Shape) {
        let wire = Wire::of(shape, frame.len());
        let Some(receiver) = self.shared.links.get(to.ix()) else {
            self.tally.dropped(DropReason::LinkFailed, to, wire.packets);
            return;
        };
        if receiver.offloads().take(shape) {
            match receiver.send(frame, shape) {
                Ok(()) => return self.tally.delivered(from, to, wire),
                Err(error) if shape != Shape::Whole && error.kind() == ErrorKind::InvalidInput => {}
                Err(_) => return self.tally.dropped(DropReason::LinkFailed, to, wire.packets),
            }
        }
        let tally = self.tally;
        let send = |packet: &[u8]| write(&**receiver, tally, from, to, packet);
        if packet::segment(frame, shape, &mut self.segment, send).is_err() {
            self.tally.dropped(DropReason::LinkFailed, to, wire.packets);
        }
    }

    /// Writes packets to a link in fragments of at most `mtu` bytes.
    #[cold]
    fn fragment(
        &mut self,
        from: InterfaceIx,
        to: InterfaceIx,
        frame: &[u8],
        shape: Shape,
        mtu: u16,
    ) {
        let tally = self.tally;
        let packets = Wire::of(shape, frame.len()).packets;
        let Some(receiver) = self.shared.links.get(to.ix()) else {
            return tally.dropped(DropReason::LinkFailed, to, packets);
        };
        let scratch = &mut self.fragment;
        let split = |packet: &[u8]| {
            let send = |fragment: &[u8]| write(&**receiver, tally, None, to, fragment);
            match packet::split(packet, mtu, scratch, send) {
                // One packet left the sender, however many arrive.
                Ok(()) => tally.sent(from, Wire::of(Shape::Whole, packet.len())),
                Err(_) => tally.dropped(DropReason::TooBig, to, 1),
            }
        };
        if packet::segment(frame, shape, &mut self.segment, split).is_err() {
            tally.dropped(DropReason::LinkFailed, to, packets);
        }
    }
}

/// Writes one packet of the wire to a link and counts it.
fn write(
    receiver: &dyn Link,
    tally: Tally<'_>,
    from: Option<InterfaceIx>,
    to: InterfaceIx,
    packet: &[u8],
) {
    match receiver.send(packet, Shape::Whole) {
        Ok(()) => tally.delivered(from, to, Wire::of(Shape::Whole, packet.len())),
        Err(_) => tally.dropped(DropReason::LinkFailed, to, 1),
    }
}
