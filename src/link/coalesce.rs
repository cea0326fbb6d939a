//! Packets on their way to links, of which runs of one flow are joined.
//!
//! The order within a flow follows from the structure: of a flow there is at most one
//! run that waits, and a packet either joins its end or is sent after it. Super-packets
//! go by without being copied, after all that waits.

use super::{Envelope, Offloads};
use crate::model::InterfaceIx;
use crate::packet::{Head, Original, Run, Shape};

/// Flows whose packets are joined at a time: a sender's bursts are of one flow or a
/// few.
const RUNS: usize = 8;

/// From whom to whom a frame goes; the VPC's router is nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The sender.
    pub from: Option<InterfaceIx>,
    /// The receiver.
    pub to: InterfaceIx,
    /// Between which stations, on links that have such.
    pub envelope: Envelope,
    /// How `frame` differs from the packet as it arrived. It is the same for all packets of a
    /// flow.
    pub original: Original,
}

impl Ends {
    /// Returns true if the frames have the same sender, receiver and addressing.
    #[inline]
    fn are_those_of(&self, other: &Self) -> bool {
        (self.from, self.to, self.envelope) == (other.from, other.to, other.envelope)
    }
}

/// Runs that wait for more.
#[derive(Debug)]
pub struct Coalescer {
    runs: Vec<Waiting>,
    /// How many of them wait.
    waiting: usize,
    /// The next to make room.
    next: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Whose; `None` if it doesn't wait.
    ends: Option<Ends>,
    run: Run,
}

impl Default for Coalescer {
    fn default() -> Self {
        Self::new()
    }
}

impl Coalescer {
    /// One with nothing in it. All the memory that it ever takes is taken here.
    pub fn new() -> Self {
        Self {
            runs: (0..RUNS).map(|_| Waiting::default()).collect(),
            waiting: 0,
            next: 0,
        }
    }

    /// Takes a frame for a link with those `offloads`. Whatever is ready goes to
    /// `send`, this frame or others that waited; the rest waits.
    #[inline]
    pub fn add(
        &mut self,
        ends: Ends,
        frame: &[u8],
        shape: Shape,
        offloads: Offloads,
        mut send: impl FnMut(Ends, &[u8], Shape),
    ) {
        if shape.in_segments().is_some() {
            // Writing it takes as long as many packets: nothing waits for that.
            self.flush(&mut send);
            return send(ends, frame, shape);
        }
        let Some(head) = Head::of(frame) else {
            // A fragment, or an ICMP error, may be about any flow.
            self.flush_to(ends.to, &mut send);
            return send(ends, frame, shape);
        };
        let joins = offloads.join(head.protocol());
        if self.waiting > 0 {
            let same = |run: &&mut Waiting| {
                run.ends.is_some_and(|its| its.are_those_of(&ends))
                    && run.run.is_of_flow(frame, head)
            };
            if let Some(waiting) = self.runs.iter_mut().find(same) {
                let joined = joins && waiting.run.join(frame, shape, head);
                if !joined || waiting.run.has_ended() {
                    self.waiting -= 1;
                    waiting.send(&mut send);
                }
                if joined {
                    return;
                }
            }
        }
        if !(joins && self.begin(ends, frame, shape, head, &mut send)) {
            send(ends, frame, shape);
        }
    }

    /// Sends all that waits for a link.
    pub fn flush_to(&mut self, to: InterfaceIx, mut send: impl FnMut(Ends, &[u8], Shape)) {
        self.flush_those(|ends| ends.to == to, &mut send);
    }

    /// Sends all that waits.
    #[inline]
    pub fn flush(&mut self, mut send: impl FnMut(Ends, &[u8], Shape)) {
        self.flush_those(|_| true, &mut send);
    }

    fn flush_those(
        &mut self,
        which: impl Fn(Ends) -> bool,
        send: &mut impl FnMut(Ends, &[u8], Shape),
    ) {
        if self.waiting == 0 {
            return;
        }
        for waiting in &mut self.runs {
            if waiting.ends.is_some_and(&which) {
                self.waiting -= 1;
                waiting.send(send);
            }
        }
    }

    /// Begins a run, in the place of another if there is no room; whether it did.
    fn begin(
        &mut self,
        ends: Ends,
        frame: &[u8],
        shape: Shape,
        head: Head,
        send: &mut impl FnMut(Ends, &[u8], Shape),
    ) -> bool {
        let free = self.runs.iter().position(|run| run.ends.is_none());
        let place = free.unwrap_or(self.next);
        let waiting = &mut self.runs[place];
        if !head.may_begin(frame, shape) {
            return false;
        }
        if waiting.ends.is_some() {
            self.next = (place + 1) % RUNS;
            self.waiting -= 1;
            waiting.send(send);
        }
        waiting.run.begin(frame, shape, head);
        waiting.ends = Some(ends);
        self.waiting += 1;
        true
    }
}

impl Waiting {
    /// Sends it; its place is free then.
    fn send(&mut self, send: &mut impl FnMut(Ends, &[u8], Shape)) {
        if let Some(ends) = self.ends.take() {
            let (frame, shape) = self.run.finish();
            send(ends, frame, shape);
        }
    }
}

#[cfg(test)]
mod tests;
