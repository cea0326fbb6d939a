//! A flow that was found: what it says, and what it takes note of.

use std::sync::atomic::{Ordering, fence};

use super::shard::{Found, Shard};
use super::slot::Life;
use super::state::{self, State};
use super::{Millis, Way};
use crate::model::{Direction, RuleId, Tracking, protocol};
use crate::packet::Segment;

/// A flow that was live when it was found. It may end, or give way to another, at
/// any time after; then what it says doesn't count, and [`Self::take_note`] tells.
#[derive(Debug, Clone, Copy)]
pub struct FlowRef<'t> {
    shard: &'t Shard,
    found: Found<'t>,
    protocol: u8,
}

/// What has judged the packets of one direction of a flow under one policy
/// generation; what did need not be asked again until the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The groups' rules let them pass (asked of untracked flows only).
    Rules = 1,
    /// The network ACL lets them pass.
    Acl = 2,
    /// The whole road does, up to the receiver: see [`FlowRef::way`].
    Way = 4,
}

/// Bits of a generation that are kept beside the three of [`Judged`].
const GENERATION_SHIFT: u32 = 3;

impl<'t> FlowRef<'t> {
    #[inline(always)]
    pub(super) fn new(shard: &'t Shard, found: Found<'t>, protocol: u8) -> Self {
        Self {
            shard,
            found,
            protocol,
        }
    }

    /// Whether it passes whatever the rules say.
    #[inline]
    pub fn is_tracked(&self) -> bool {
        self.found.nature.is_tracked()
    }

    /// True if it is a closed TCP connection.
    #[inline]
    pub fn is_closed(&self) -> bool {
        State::is_closed_in(self.protocol, self.found.life.state())
    }

    /// True if it is a TCP connection whose reset timer runs.
    pub fn is_reset(&self) -> bool {
        State::is_reset_in(self.protocol, self.found.life.state())
    }

    /// Which way its first packet went.
    #[inline]
    pub fn initiator(&self) -> Direction {
        self.found.nature.initiator()
    }

    /// The rule that admitted its first packet.
    #[inline]
    pub fn admitted_by(&self) -> RuleId {
        self.rule(self.initiator())
    }

    /// The rule that let the packets of one direction pass the last time that
    /// the rules were asked.
    #[inline]
    pub fn rule(&self, direction: Direction) -> RuleId {
        RuleId(self.found.slot.rule(direction).load(Ordering::Relaxed))
    }

    /// Moves the state on and puts the expiry off, as the packet asks. `false` if
    /// the flow has ended since it was found.
    #[inline(always)]
    #[must_use]
    pub fn take_note(
        &self,
        segment: &Segment,
        direction: Direction,
        tracking: &Tracking,
        now: Millis,
    ) -> bool {
        let slot = self.found.slot;
        let mut life = self.found.life;
        // What most packets are: nothing changes but the expiry.
        if self.protocol == protocol::TCP
            && life.state() == state::ESTABLISHED
            && !(segment.flags.fin || segment.flags.rst)
        {
            let expires = now
                .0
                .saturating_add(Millis::from(tracking.tcp_established).0);
            let next = life.with(state::ESTABLISHED, expires);
            // Most packets come within the same millisecond as one before; to
            // leave the cache line clean is worth the look.
            if next == life {
                return slot.is_still(life);
            }
            match slot.change_life(life, next) {
                Ok(()) => return true,
                Err(other) => life = other,
            }
        }
        self.move_on(life, segment, direction, tracking, now)
    }

    /// Two workers may do so at once for the two directions of a flow, so the
    /// life changes by compare and exchange.
    #[inline(never)]
    fn move_on(
        &self,
        mut life: Life,
        segment: &Segment,
        direction: Direction,
        tracking: &Tracking,
        now: Millis,
    ) -> bool {
        let slot = self.found.slot;
        let from_initiator = direction == self.initiator();
        loop {
            if !life.is_of_same_tenant(self.found.life) {
                return false;
            }
            let state = State::from_bits(self.protocol, life.state());
            // What is closed stays so, and its expiry stands.
            if state.is_closed() {
                return true;
            }
            // The end must be stored before the state that refers to it. Only packets of this
            // side store it.
            if state.records_end(segment, from_initiator) {
                self.change(|| {
                    let mine = slot.end(usize::from(!from_initiator));
                    mine.store(segment.end, Ordering::Relaxed);
                });
            }
            let ends = [0, 1].map(|side| slot.end(side).load(Ordering::Relaxed));
            let next = state.after(segment, from_initiator, ends);
            // Only a return to the established state stops the reset timer.
            let expires = if state.is_reset() && next.is_reset() {
                life.expiry()
            } else {
                now.0.saturating_add(next.timeout(tracking))
            };
            let next = life.with(next.bits(), expires);
            if next == life {
                return slot.is_still(life);
            }
            match slot.change_life(life, next) {
                Ok(()) => return true,
                Err(other) => life = other,
            }
        }
    }

    /// Whether `by` has let that direction pass under policy `generation`.
    #[inline(always)]
    pub fn passed(&self, by: Judged, direction: Direction, generation: u64) -> bool {
        let judged = self.found.slot.judged(direction).load(Ordering::Acquire);
        says(judged, by, generation) && self.found.slot.is_still(self.found.life)
    }

    /// Notes that `by` lets that direction pass under policy `generation`.
    pub fn set_passed(&self, by: Judged, direction: Direction, generation: u64) {
        self.change(|| self.note(by, direction, generation));
    }

    /// Notes which rule let that direction pass under policy `generation`.
    pub fn set_rule(&self, direction: Direction, rule: RuleId, generation: u64) {
        self.change(|| {
            let mine = self.found.slot.rule(direction);
            mine.store(rule.0, Ordering::Relaxed);
            self.note(Judged::Rules, direction, generation);
        });
    }

    /// The way of what leaves the interface in this flow, if all of the road lets
    /// it pass under policy `generation`: the check of its source, the network
    /// ACLs on both sides, the route, and the check of its destination.
    #[inline(always)]
    pub fn way(&self, generation: u64) -> Option<Way> {
        let slot = self.found.slot;
        let note = slot.judged(Direction::Egress);
        let before = note.load(Ordering::Acquire);
        if !says(before, Judged::Way, generation) {
            return None;
        }
        let way = slot.way();
        fence(Ordering::Acquire);
        (note.load(Ordering::Relaxed) == before && slot.is_still(self.found.life)).then_some(way)
    }

    /// Notes the way of what leaves the interface under policy `generation`.
    pub fn set_way(&self, way: Way, generation: u64) {
        self.change(|| {
            // Who reads meanwhile finds the note gone, before or after.
            let note = self.found.slot.judged(Direction::Egress);
            note.store(
                note.load(Ordering::Relaxed) & !(Judged::Way as u32),
                Ordering::Relaxed,
            );
            fence(Ordering::Release);
            self.found.slot.set_way(way);
            self.note(Judged::Way, Direction::Egress, generation);
        });
    }

    /// Changes more than the life: under the lock, and only if the flow is still
    /// there.
    fn change(&self, change: impl FnOnce()) {
        let _held = self.shard.lock();
        if self.found.slot.is_still(self.found.life) {
            change();
        }
    }

    fn note(&self, by: Judged, direction: Direction, generation: u64) {
        let note = self.found.slot.judged(direction);
        let judged = note.load(Ordering::Relaxed);
        let others = if judged >> GENERATION_SHIFT == kept(generation) {
            judged & ((1 << GENERATION_SHIFT) - 1)
        } else {
            0
        };
        let judged = kept(generation) << GENERATION_SHIFT | others | by as u32;
        note.store(judged, Ordering::Release);
    }
}

/// Whether a note says that `by` let a direction pass under that generation.
#[inline]
fn says(judged: u32, by: Judged, generation: u64) -> bool {
    judged >> GENERATION_SHIFT == kept(generation) && judged & by as u32 != 0
}

/// As much of a generation as fits beside [`Judged`]. It would take half a billion
/// saves within the life of one flow for two to look alike.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low bits are what is kept"
)]
fn kept(generation: u64) -> u32 {
    (generation as u32) << GENERATION_SHIFT >> GENERATION_SHIFT
}
