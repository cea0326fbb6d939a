//! What becomes of judged frames: runs of one flow are joined, then they are written
//! to their receivers, in shapes that these take, and counted.

use std::io::ErrorKind;

use super::Shared;
use crate::conntrack::Millis;
use crate::datapath::{Answer, Fate, Verdict};
use crate::link::{Coalescer, Ends, Envelope, FRAME, Link, Offloads};
use crate::model::InterfaceIx;
use crate::observe::drops::Sampler;
use crate::observe::{Tally, Wire};
use crate::packet::{self, Original, Shape};
use crate::policy::DropReason;

/// A worker's hand at writing.
pub(super) struct Delivery<'a> {
    waiting: Coalescer,
    output: Output<'a>,
}

/// What writes and counts.
struct Output<'a> {
    shared: &'a Shared,
    ledger: Ledger<'a>,
    /// For the segments of a super-packet, one at a time.
    segment: Box<[u8]>,
    /// For the fragments of what is too big for a path, one at a time.
    fragment: Box<[u8]>,
}

/// What counts, and takes samples of what is dropped.
struct Ledger<'a> {
    tally: Tally<'a>,
    sampler: Sampler<'a>,
}

impl<'a> Delivery<'a> {
    /// That of a worker.
    pub(super) fn new(shared: &'a Shared, worker: usize) -> Self {
        Self {
            waiting: Coalescer::new(),
            output: Output {
                shared,
                ledger: Ledger {
                    tally: shared.counters.tally(worker),
                    sampler: Sampler::new(shared.drop_log.as_ref(), worker),
                },
                segment: vec![0; FRAME].into(),
                fragment: vec![0; FRAME].into(),
            },
        }
    }

    /// What follows happens now.
    #[inline]
    pub(super) fn at_time(&self, now: Millis) {
        self.output.ledger.sampler.at_time(now);
    }

    /// Does with a frame what was decided. What could be joined by others waits for
    /// [`Delivery::flush`], at the end of a batch.
    #[inline]
    pub(super) fn carry_out(
        &mut self,
        from: InterfaceIx,
        envelope: Envelope,
        frame: &[u8],
        shape: Shape,
        verdict: &Verdict,
    ) {
        let ends = |to| Ends {
            from: Some(from),
            to,
            envelope,
            original: verdict.original,
        };
        match verdict.fate {
            Fate::Drop { reason, at } => {
                let ledger = &self.output.ledger;
                ledger.dropped(reason, Some(from), at, frame, shape, verdict.original);
            }
            Fate::Hold { .. } => {}
            Fate::Forward {
                to,
                length,
                split: None,
            } => self.add(ends(to), &frame[..length], shape),
            Fate::Forward {
                to,
                length,
                split: Some(mtu),
            } => {
                let output = &mut self.output;
                self.waiting.flush_to(to, |ends, frame, shape| {
                    output.send(ends, frame, shape);
                });
                output.fragment(ends(to), &frame[..length], shape, mtu);
            }
        }
        match verdict.answer {
            Some(Answer::Sent { length }) => {
                let ends = Ends {
                    from: None,
                    to: from,
                    envelope: envelope.back(),
                    original: Original::Unchanged,
                };
                self.add(ends, &frame[..length], Shape::Whole);
            }
            Some(Answer::Dropped { reason, at }) => {
                // The answer was never made: there is no frame of it to show.
                self.output.ledger.counted(reason, at, 1);
            }
            None => {}
        }
        if verdict.lost > 0 {
            let lost = verdict.lost.into();
            let ledger = &self.output.ledger;
            ledger.counted(DropReason::OverlappingFragment, from, lost);
        }
    }

    /// A frame that was no packet, and why.
    pub(super) fn unreadable(&self, from: InterfaceIx, reason: DropReason, frame: &[u8]) {
        let (ledger, whole) = (&self.output.ledger, Shape::Whole);
        ledger.dropped(reason, Some(from), from, frame, whole, Original::Unchanged);
    }

    /// Sends what has waited for others to join it.
    #[inline]
    pub(super) fn flush(&mut self) {
        let output = &mut self.output;
        self.waiting
            .flush(|ends, frame, shape| output.send(ends, frame, shape));
    }

    #[inline]
    fn add(&mut self, ends: Ends, frame: &[u8], shape: Shape) {
        let output = &mut self.output;
        let receiver = output.shared.links.get(ends.to.ix());
        let offloads = receiver.map_or(Offloads::NONE, |receiver| receiver.offloads());
        self.waiting
            .add(ends, frame, shape, offloads, |ends, frame, shape| {
                output.send(ends, frame, shape);
            });
    }
}

impl Ledger<'_> {
    #[inline]
    fn delivered(&self, ends: Ends, wire: Wire) {
        self.tally.delivered(ends.from, ends.to, wire);
    }

    /// A frame from `from`, if not the router's own, was dropped at `at`.
    #[inline]
    fn dropped(
        &self,
        reason: DropReason,
        from: Option<InterfaceIx>,
        at: InterfaceIx,
        frame: &[u8],
        shape: Shape,
        original: Original,
    ) {
        let packets = Wire::of(shape, frame.len()).packets;
        self.tally.dropped(reason, at, packets);
        self.sampler
            .dropped(reason, from, at, frame, shape, original);
    }

    /// Packets were dropped at `at` of which no frame is at hand.
    #[inline]
    fn counted(&self, reason: DropReason, at: InterfaceIx, packets: u64) {
        self.tally.dropped(reason, at, packets);
        self.sampler.counted(reason, packets);
    }

    fn link_failed(&self, ends: Ends, frame: &[u8], shape: Shape) {
        let Ends {
            from, to, original, ..
        } = ends;
        self.dropped(DropReason::LinkFailed, from, to, frame, shape, original);
    }
}

impl Output<'_> {
    /// Writes a frame to a link and counts it. What the link doesn't take goes to it as the packets
    /// that the frame stands for.
    #[inline]
    fn send(&mut self, ends: Ends, frame: &[u8], shape: Shape) {
        let ledger = &self.ledger;
        let Some(receiver) = self.shared.links.get(ends.to.ix()) else {
            return ledger.link_failed(ends, frame, shape);
        };
        if receiver.offloads().take(shape) {
            match receiver.send(ends.envelope, frame, shape) {
                Ok(()) => return ledger.delivered(ends, Wire::of(shape, frame.len())),
                Err(error) if shape != Shape::Whole && error.kind() == ErrorKind::InvalidInput => {}
                Err(_) => return ledger.link_failed(ends, frame, shape),
            }
        }
        let send = |packet: &[u8]| write(&**receiver, ledger, ends, packet, packet);
        if packet::segment(frame, shape, &mut self.segment, send).is_err() {
            ledger.link_failed(ends, frame, shape);
        }
    }

    /// Writes packets to a link in fragments of at most `mtu` bytes.
    #[cold]
    fn fragment(&mut self, ends: Ends, frame: &[u8], shape: Shape, mtu: u16) {
        let ledger = &self.ledger;
        let Ends {
            from, to, original, ..
        } = ends;
        let Some(receiver) = self.shared.links.get(to.ix()) else {
            return ledger.link_failed(ends, frame, shape);
        };
        let scratch = &mut self.fragment;
        let split = |packet: &[u8]| {
            // One packet left the sender, however many arrive.
            let ends = Ends { from: None, ..ends };
            let send = |fragment: &[u8]| write(&**receiver, ledger, ends, fragment, packet);
            match packet::split(packet, mtu, scratch, send) {
                Ok(()) => {
                    if let Some(from) = from {
                        let wire = Wire::of(Shape::Whole, packet.len());
                        ledger.tally.sent(from, wire);
                    }
                }
                Err(_) => {
                    let (reason, whole) = (DropReason::TooBig, Shape::Whole);
                    ledger.dropped(reason, from, to, packet, whole, original);
                }
            }
        };
        if packet::segment(frame, shape, &mut self.segment, split).is_err() {
            ledger.link_failed(ends, frame, shape);
        }
    }
}

/// Writes one wire packet to a link and counts it. The packet is `whole` or a fragment of it.
fn write(receiver: &dyn Link, ledger: &Ledger<'_>, ends: Ends, packet: &[u8], whole: &[u8]) {
    match receiver.send(ends.envelope, packet, Shape::Whole) {
        Ok(()) => ledger.delivered(ends, Wire::of(Shape::Whole, packet.len())),
        Err(_) => ledger.link_failed(ends, whole, Shape::Whole),
    }
}
