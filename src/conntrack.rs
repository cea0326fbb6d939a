//! Tracked flows: a sharded table of bounded size, one entry for each flow at
//! each interface (AWS tracks per interface: sender's and receiver's state are
//! separate).
//!
//! Sans-IO: `now` is an argument. Looking a flow up allocates nothing; opening
//! one may. Expired entries count as absent at once and are removed by
//! [`FlowTable::sweep`], off the packet path. The hash is seeded at random, so
//! nobody can aim at one bucket.

mod state;

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use foldhash::quality::RandomState;

use crate::model::{Direction, RuleId, Tracking};
use crate::packet::{FlowKey, Packet, TcpFlags, Transport};
use state::State;

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

/// No room for a new flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the flow table is full")]
pub struct TableFull;

/// The flows of all interfaces.
#[derive(Debug)]
pub struct FlowTable {
    flows: DashMap<FlowKey, Flow, RandomState>,
    /// Entries, live or not yet swept. Kept beside the map, whose own count
    /// locks every shard.
    entries: AtomicUsize,
    capacity: usize,
}

#[derive(Debug)]
struct Flow {
    state: AtomicU8,
    /// Millisecond at which the flow counts as gone.
    expires: AtomicU64,
    /// Which way its first packet went, seen from the interface.
    initiator: Direction,
    /// The rule that let its first packet through.
    admitted_by: RuleId,
}

impl FlowTable {
    /// An empty table for at most `capacity` flows.
    pub fn new(capacity: usize) -> Self {
        Self {
            flows: DashMap::with_capacity_and_hasher_and_shard_amount(
                0,
                RandomState::default(),
                SHARDS,
            ),
            entries: AtomicUsize::new(0),
            capacity,
        }
    }

    /// If `packet`, which goes `direction` at the key's interface, belongs to a
    /// live flow: lets the flow take note of it and gives the rule that
    /// admitted the flow.
    pub fn pass(
        &self,
        key: &FlowKey,
        packet: &Packet,
        direction: Direction,
        tracking: &Tracking,
        now: Millis,
    ) -> Option<RuleId> {
        let reopens = {
            let flow = self.flows.get(key)?;
            if flow.expires.load(Ordering::Relaxed) <= now.0 {
                return None;
            }
            let state = State::from_bits(packet.protocol, flow.state.load(Ordering::Relaxed));
            if state.is_closed() && opens(packet) {
                true
            } else {
                flow.take_note(packet, direction, tracking, now);
                return Some(flow.admitted_by);
            }
        };
        // A connection attempt on the ports of a closed connection is a new
        // flow, judged by the rules. The guard above is gone by now: removing
        // under it would deadlock.
        let closed = |_: &FlowKey, flow: &Flow| {
            State::from_bits(key.protocol, flow.state.load(Ordering::Relaxed)).is_closed()
        };
        if reopens && self.flows.remove_if(key, closed).is_some() {
            self.entries.fetch_sub(1, Ordering::Relaxed);
        }
        None
    }

    /// Starts tracking the flow of `packet`, which `rule` admitted.
    ///
    /// # Errors
    /// [`TableFull`] when there is no room for another.
    pub fn open(
        &self,
        key: FlowKey,
        packet: &Packet,
        direction: Direction,
        tracking: &Tracking,
        now: Millis,
        rule: RuleId,
    ) -> Result<(), TableFull> {
        let state = State::opened_by(packet.protocol, &segment(packet));
        let flow = Flow {
            state: AtomicU8::new(state.bits()),
            expires: AtomicU64::new(now.0.saturating_add(state.timeout(tracking))),
            initiator: direction,
            admitted_by: rule,
        };
        // The place is reserved before the shard is locked; two workers can't
        // both take the last one.
        let reserved = self
            .entries
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |entries| {
                (entries < self.capacity).then_some(entries + 1)
            })
            .is_ok();
        match self.flows.entry(key) {
            Entry::Occupied(mut occupied) => {
                if reserved {
                    self.entries.fetch_sub(1, Ordering::Relaxed);
                }
                // Either another worker opened it in this moment, then it is
                // live and stays; or it has expired and is replaced.
                if occupied.get().expires.load(Ordering::Relaxed) <= now.0 {
                    occupied.insert(flow);
                } else {
                    occupied.get().take_note(packet, direction, tracking, now);
                }
                Ok(())
            }
            Entry::Vacant(vacant) if reserved => {
                vacant.insert(flow);
                Ok(())
            }
            Entry::Vacant(_) => Err(TableFull),
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
}

impl Flow {
    /// Moves the state on and puts the expiry off, as the packet asks. Two
    /// workers may do so at once for the two directions of a flow, so the
    /// state changes by compare and exchange.
    fn take_note(&self, packet: &Packet, direction: Direction, tracking: &Tracking, now: Millis) {
        let segment = segment(packet);
        let from_initiator = direction == self.initiator;
        let mut bits = self.state.load(Ordering::Relaxed);
        loop {
            let state = State::from_bits(packet.protocol, bits);
            // What is closed stays so, and its expiry stands.
            if state.is_closed() {
                return;
            }
            let next = state.after(&segment, from_initiator);
            let moved = next.bits() == bits
                || self
                    .state
                    .compare_exchange_weak(bits, next.bits(), Ordering::Relaxed, Ordering::Relaxed)
                    .map_err(|seen| bits = seen)
                    .is_ok();
            if !moved {
                continue;
            }
            let expires = now.0.saturating_add(next.timeout(tracking));
            // Most packets come within the same millisecond as one before; to
            // leave the cache line clean is worth the look.
            if self.expires.load(Ordering::Relaxed) != expires {
                self.expires.store(expires, Ordering::Relaxed);
                // Another worker may have closed the connection between the
                // look at the state and this store; the earlier end counts.
                let state = State::from_bits(packet.protocol, self.state.load(Ordering::Relaxed));
                if state.is_closed() {
                    let end = now.0.saturating_add(state.timeout(tracking));
                    self.expires.fetch_min(end, Ordering::Relaxed);
                }
            }
            return;
        }
    }
}

fn segment(packet: &Packet) -> TcpFlags {
    match packet.transport {
        Transport::Tcp { flags, .. } => flags,
        Transport::Udp { .. }
        | Transport::IcmpQuery { .. }
        | Transport::Icmp { .. }
        | Transport::Other
        | Transport::Fragment => TcpFlags::default(),
    }
}

fn opens(packet: &Packet) -> bool {
    let flags = segment(packet);
    flags.syn && !flags.ack
}

#[cfg(test)]
mod tests;
