//! Flows: a sharded table of bounded size, one entry for each flow at each
//! interface (AWS keeps state per interface: sender's and receiver's are
//! separate).
//!
//! A tracked flow passes whatever the rules say later. An untracked one
//! (aws-semantics §3.2) is remembered too, but only so that its packets aren't
//! taken for the start of something else: the rules judge each of them, or did
//! so already under the policy in force.
//!
//! Sans-IO: `now` is an argument. Looking a flow up allocates nothing; opening
//! one may. Expired entries count as absent at once and are removed by
//! [`FlowTable::sweep`], off the packet path. The hash is seeded at random, so
//! nobody can aim at one bucket.

mod allowance;
mod state;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use dashmap::mapref::one::Ref;
use foldhash::quality::RandomState;

use crate::model::{Direction, RuleId, Tracking, protocol};
use crate::packet::{FlowKey, Packet};
use crate::policy::Allowance;
use allowance::{Allowances, Charge};
use state::{Segment, State};

/// Milliseconds since the appliance started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millis(pub u64);

impl From<std::time::Duration> for Millis {
    fn from(duration: std::time::Duration) -> Self {
        Self(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Most flows a table holds unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 1 << 20;

/// Shards of the table: enough that workers seldom meet, and that a sweep
/// holds each only briefly.
const SHARDS: usize = 256;

/// Why a flow can't be tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// Its entity tracks as many as its allowance admits.
    #[error("the entity's connection allowance is used up")]
    Allowance,
    /// The table is full.
    #[error("the flow table is full")]
    Table,
}

/// The flows of all interfaces.
#[derive(Debug)]
pub struct FlowTable {
    flows: DashMap<FlowKey, Flow, RandomState>,
    allowances: Allowances,
    /// Entries, live or not yet swept. Kept beside the map, whose own count
    /// locks every shard.
    entries: AtomicUsize,
    capacity: usize,
}

#[derive(Debug)]
struct Flow {
    state: AtomicU8,
    /// Which way its first packet went, seen from the interface.
    initiator: Direction,
    tracked: bool,
    /// Millisecond at which the flow counts as gone.
    expires: AtomicU64,
    /// For each direction, what has judged its packets: see [`Judged`].
    judged: [AtomicU32; 2],
    /// The sequence numbers after the initiator's and the responder's FIN.
    fins: [AtomicU32; 2],
    /// The rule that lets each direction pass. Of a tracked flow only the
    /// initiator's counts.
    rules: [AtomicU64; 2],
    /// Its place in the entity's allowance, if that is limited; given back when
    /// the flow is dropped.
    charge: Option<Charge>,
}

/// The packet that opens a flow, and how it is to be kept.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The first packet.
    pub packet: &'a Packet,
    /// Which way it goes at the key's interface.
    pub direction: Direction,
    /// The interface's idle times.
    pub tracking: &'a Tracking,
    /// The time.
    pub now: Millis,
    /// The rule that let the packet through.
    pub rule: RuleId,
    /// Whether the flow is tracked.
    pub tracked: bool,
    /// The allowance of the interface's entity, if it has one.
    pub allowance: Option<Allowance>,
    /// Whether a live flow with that key gives way. Otherwise it stays, and
    /// takes note of the packet: another worker opened it in this moment.
    pub replace: bool,
}

/// A live flow, held for the time of one packet. The table must not be written
/// to meanwhile.
#[derive(Debug)]
pub struct FlowRef<'t>(Ref<'t, FlowKey, Flow>);

/// What has judged the packets of one direction of a flow under one policy
/// generation; what did need not be asked again until the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The groups' rules let them pass (asked of untracked flows only).
    Rules = 1,
    /// The network ACL lets them pass.
    Acl = 2,
}

/// Bits of a generation that are kept beside the two of [`Judged`].
const GENERATION_SHIFT: u32 = 2;

impl FlowTable {
    /// An empty table for at most `capacity` flows.
    pub fn new(capacity: usize) -> Self {
        Self {
            flows: DashMap::with_capacity_and_hasher_and_shard_amount(
                0,
                RandomState::default(),
                SHARDS,
            ),
            allowances: Allowances::default(),
            entries: AtomicUsize::new(0),
            capacity,
        }
    }

    /// The live flow with that key.
    #[inline]
    pub fn find(&self, key: &FlowKey, now: Millis) -> Option<FlowRef<'_>> {
        let flow = self.flows.get(key)?;
        (flow.expires.load(Ordering::Relaxed) > now.0).then_some(FlowRef(flow))
    }

    /// Remembers the flow that a packet opens. Untracked ones have half of the
    /// table: AWS needs no entry for them, so they must not take the room of
    /// those that it tracks. One for which there is no room is not remembered,
    /// and that is no error; the rules let its packets pass or don't.
    ///
    /// # Errors
    /// [`NoRoom`] if a tracked one can't be had.
    pub fn open(&self, key: FlowKey, opening: &Opening<'_>) -> Result<(), NoRoom> {
        // Whatever is decided is decided under the shard's lock, so two workers
        // neither open a flow twice nor both take the last place.
        match self.flows.entry(key) {
            Entry::Occupied(mut occupied) => {
                let live = occupied.get().expires.load(Ordering::Relaxed) > opening.now.0;
                if live && !opening.replace {
                    let Opening {
                        packet,
                        direction,
                        tracking,
                        now,
                        ..
                    } = *opening;
                    occupied.get().take_note(packet, direction, tracking, now);
                    return Ok(());
                }
                // The predecessor's place in the allowance is the new one's.
                let charge = match occupied.get_mut().charge.take() {
                    Some(charge) if opening.tracked => Some(charge),
                    _ => self.charge(opening)?,
                };
                occupied.insert(Flow::opened(opening, charge));
                Ok(())
            }
            Entry::Vacant(vacant) => {
                let charge = self.charge(opening)?;
                let room = if opening.tracked {
                    self.capacity
                } else {
                    self.capacity / 2
                };
                let reserved = self
                    .entries
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |entries| {
                        (entries < room).then_some(entries + 1)
                    })
                    .is_ok();
                if reserved {
                    vacant.insert(Flow::opened(opening, charge));
                    Ok(())
                } else if opening.tracked {
                    Err(NoRoom::Table)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn charge(&self, opening: &Opening<'_>) -> Result<Option<Charge>, NoRoom> {
        match opening.allowance {
            Some(allowance) if opening.tracked => match self.allowances.charge(allowance) {
                Some(charge) => Ok(Some(charge)),
                None => Err(NoRoom::Allowance),
            },
            _ => Ok(None),
        }
    }

    /// Forgets a flow that is closed (another worker may have opened the next
    /// one in its place meanwhile; that stays).
    pub fn forget_closed(&self, key: &FlowKey) {
        let closed = |_: &FlowKey, flow: &Flow| flow.state(key.protocol).is_closed();
        if self.flows.remove_if(key, closed).is_some() {
            self.entries.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Removes what has expired, one shard at a time; gives how many.
    pub fn sweep(&self, now: Millis) -> usize {
        let mut swept = 0;
        self.flows.retain(|_, flow| {
            let live = flow.expires.load(Ordering::Relaxed) > now.0;
            swept += usize::from(!live);
            live
        });
        self.entries.fetch_sub(swept, Ordering::Relaxed);
        swept
    }

    /// Forgets every flow.
    pub fn clear(&self) {
        let mut cleared = 0;
        self.flows.retain(|_, _| {
            cleared += 1;
            false
        });
        self.entries.fetch_sub(cleared, Ordering::Relaxed);
    }

    /// Entries now, the ones that have expired since the last sweep included.
    pub fn len(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most entries it holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many more flows the entity of that allowance may track.
    pub fn available(&self, allowance: Allowance) -> u32 {
        self.allowances.available(allowance)
    }
}

impl FlowRef<'_> {
    /// Whether it passes whatever the rules say.
    #[inline]
    pub fn is_tracked(&self) -> bool {
        self.0.tracked
    }

    /// Whether it is a TCP connection that was reset or closed from both sides.
    #[inline]
    pub fn is_closed(&self) -> bool {
        State::is_closed_in(self.0.key().protocol, self.0.state.load(Ordering::Relaxed))
    }

    /// Which way its first packet went.
    pub fn initiator(&self) -> Direction {
        self.0.initiator
    }

    /// The rule that admitted its first packet.
    #[inline]
    pub fn admitted_by(&self) -> RuleId {
        self.rule(self.0.initiator)
    }

    /// The rule that let the packets of one direction pass the last time that
    /// the rules were asked.
    pub fn rule(&self, direction: Direction) -> RuleId {
        RuleId(self.0.rules[direction as usize].load(Ordering::Relaxed))
    }

    /// Moves the state on and puts the expiry off, as the packet asks.
    #[inline]
    pub fn take_note(
        &self,
        packet: &Packet,
        direction: Direction,
        tracking: &Tracking,
        now: Millis,
    ) {
        self.0.take_note(packet, direction, tracking, now);
    }

    /// Whether `by` has let that direction pass under policy `generation`.
    #[inline]
    pub fn passed(&self, by: Judged, direction: Direction, generation: u64) -> bool {
        let judged = self.0.judged[direction as usize].load(Ordering::Relaxed);
        judged >> GENERATION_SHIFT == kept(generation) && judged & by as u32 != 0
    }

    /// Notes that `by` lets that direction pass under policy `generation`.
    pub fn set_passed(&self, by: Judged, direction: Direction, generation: u64) {
        let slot = &self.0.judged[direction as usize];
        let judged = slot.load(Ordering::Relaxed);
        let others = if judged >> GENERATION_SHIFT == kept(generation) {
            judged & ((1 << GENERATION_SHIFT) - 1)
        } else {
            0
        };
        let judged = kept(generation) << GENERATION_SHIFT | others | by as u32;
        slot.store(judged, Ordering::Relaxed);
    }

    /// Notes which rule let that direction pass.
    pub fn set_rule(&self, direction: Direction, rule: RuleId) {
        self.0.rules[direction as usize].store(rule.0, Ordering::Relaxed);
    }
}

/// As much of a generation as fits beside [`Judged`]. It would take a billion
/// saves within the life of one flow for two to look alike.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low bits are what is kept"
)]
fn kept(generation: u64) -> u32 {
    (generation as u32) << GENERATION_SHIFT >> GENERATION_SHIFT
}

impl Flow {
    fn opened(opening: &Opening<'_>, charge: Option<Charge>) -> Self {
        let segment = Segment::of(opening.packet);
        let state = State::opened_by(opening.packet.protocol, &segment.flags);
        let mut rules = [0; 2];
        rules[opening.direction as usize] = opening.rule.0;
        Self {
            state: AtomicU8::new(state.bits()),
            initiator: opening.direction,
            tracked: opening.tracked,
            expires: AtomicU64::new(
                opening
                    .now
                    .0
                    .saturating_add(state.timeout(opening.tracking)),
            ),
            judged: Default::default(),
            fins: [AtomicU32::new(segment.end), AtomicU32::new(0)],
            rules: rules.map(AtomicU64::new),
            charge,
        }
    }

    fn state(&self, protocol: u8) -> State {
        State::from_bits(protocol, self.state.load(Ordering::Relaxed))
    }

    /// Two workers may do so at once for the two directions of a flow, so the
    /// state changes by compare and exchange.
    fn take_note(&self, packet: &Packet, direction: Direction, tracking: &Tracking, now: Millis) {
        let segment = Segment::of(packet);
        let from_initiator = direction == self.initiator;
        let mut bits = self.state.load(Ordering::Acquire);
        // What most packets are: nothing changes but the expiry.
        if packet.protocol == protocol::TCP
            && bits == state::ESTABLISHED
            && !(segment.flags.fin || segment.flags.rst)
        {
            let expires = now
                .0
                .saturating_add(Millis::from(tracking.tcp_established).0);
            self.put_off(bits, expires, packet.protocol, tracking, now);
            return;
        }
        loop {
            let state = State::from_bits(packet.protocol, bits);
            // What is closed stays so, and its expiry stands.
            if state.is_closed() {
                return;
            }
            // A side's first FIN counts. It is stored before the state tells
            // of it, and only this side's packets store it.
            if segment.flags.fin && !state.has_finished(from_initiator) {
                self.fins[usize::from(!from_initiator)].store(segment.end, Ordering::Relaxed);
            }
            let fins = [0, 1].map(|side: usize| self.fins[side].load(Ordering::Relaxed));
            let next = state.after(&segment, from_initiator, fins);
            let moved = next.bits() == bits
                || self
                    .state
                    .compare_exchange_weak(bits, next.bits(), Ordering::Release, Ordering::Acquire)
                    .map_err(|seen| bits = seen)
                    .is_ok();
            if !moved {
                continue;
            }
            let expires = now.0.saturating_add(next.timeout(tracking));
            self.put_off(next.bits(), expires, packet.protocol, tracking, now);
            return;
        }
    }

    /// Lets the flow, whose state is `assumed`, live until `expires`.
    #[inline]
    fn put_off(&self, assumed: u8, expires: u64, protocol: u8, tracking: &Tracking, now: Millis) {
        // Most packets come within the same millisecond as one before; to
        // leave the cache line clean is worth the look.
        if self.expires.load(Ordering::Relaxed) == expires {
            return;
        }
        self.expires.store(expires, Ordering::Relaxed);
        // Another worker may have moved the state on since it was looked at, and
        // stored its expiry before ours: then the newer state's counts. Whoever
        // comes second sees the other's state, as both look after they stored.
        fence(Ordering::SeqCst);
        let seen = self.state.load(Ordering::Acquire);
        if seen != assumed {
            let state = State::from_bits(protocol, seen);
            let end = now.0.saturating_add(state.timeout(tracking));
            if state.is_closed() {
                self.expires.fetch_min(end, Ordering::Relaxed);
            } else {
                self.expires.store(end, Ordering::Relaxed);
            }
        }
    }
}

/// Whether the packet asks for a new TCP connection.
pub fn opens_connection(packet: &Packet) -> bool {
    Segment::of(packet).opens()
}

#[cfg(test)]
mod tests;
