//! Flows: a sharded table of bounded size, one entry for each flow at each
//! interface (AWS keeps state per interface: sender's and receiver's are
//! separate).
//!
//! A tracked flow passes whatever the rules say later. An untracked one
//! (aws-semantics §3.2) is remembered too, but only so that its packets aren't
//! taken for the start of something else: the rules judge each of them, or did
//! so already under the policy in force.
//!
//! Sans-IO: `now` is an argument. A flow is found, and takes note of most packets,
//! without a lock and without allocating; a FIN, and what judged a flow, are
//! noted under a shard's lock, and opening one may allocate. Expired entries
//! count as absent at once and are removed by [`FlowTable::sweep`], off the packet
//! path. The hash is seeded at random, so nobody can aim at one bucket.

mod allowance;
mod flow;
mod shard;
mod share;
mod slot;
mod state;

use std::collections::hash_map;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

use crate::model::{Direction, InterfaceIx, RuleId, Tracking};
use crate::packet::{FlowKey, Packet};
use crate::policy::Allowance;
use allowance::Allowances;
use shard::{Home, Shard};
use share::Shares;
use slot::{Life, Nature, Slot, Tenant};
use state::State;

pub use flow::{FlowRef, Judged};
pub use slot::Way;

/// Milliseconds since the appliance started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millis(pub u64);

impl From<Millis> for std::time::Duration {
    fn from(millis: Millis) -> Self {
        Self::from_millis(millis.0)
    }
}

impl From<std::time::Duration> for Millis {
    fn from(duration: std::time::Duration) -> Self {
        Self(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Most flows a table holds unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 1 << 20;
/// Most flows that a table can be asked to hold: they take 30 GB.
pub const MAX_CAPACITY: usize = 1 << 28;

/// Flows of a shard, about: enough shards that who opens flows seldom waits for
/// another, and few enough that what leads to their records stays in the cache.
const SHARD: usize = 1 << 15;

/// Minimum time before a record that has used up its generations is used again. This is far
/// longer than a packet takes, even on a worker that the kernel doesn't schedule for seconds. A
/// decision.
const REST: Millis = Millis(10_000);

/// Flows that are touched at a time.
const BATCH: usize = 64;

/// Why a flow can't be tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// Its entity tracks as many as its allowance admits.
    #[error("the entity's connection allowance is used up")]
    Allowance,
    /// The table is full, or the entity that sent the packet already holds as many entries as are
    /// free.
    #[error("the flow table is full")]
    Table,
}

/// The flows of all interfaces.
#[derive(Debug)]
pub struct FlowTable {
    shards: Box<[CachePadded<Shard>]>,
    seeds: [u64; 3],
    allowances: Allowances,
    shares: Shares,
    /// Entries, live or not yet swept.
    entries: AtomicUsize,
    capacity: usize,
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
    /// The entity that sent the packet, identified by its first interface.
    pub sender: InterfaceIx,
    /// The allowance of the interface's entity, if it has one.
    pub allowance: Option<Allowance>,
    /// Whether a live flow with that key gives way. Otherwise it stays, and
    /// takes note of the packet: another worker opened it in this moment.
    pub replace: bool,
}

/// The hash of a flow's key, less what tells its two ends apart.
#[derive(Debug, Clone, Copy)]
pub struct Hash(u64);

/// Where one end of a flow is likely to be, having found the other.
#[derive(Debug, Clone, Copy)]
pub struct Beside<'t>(Option<Slot<'t>>);

impl FlowTable {
    /// An empty table for at most `capacity` flows, and never more than
    /// [`MAX_CAPACITY`]. It takes memory as it fills.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(MAX_CAPACITY);
        let shards = (capacity / SHARD).next_power_of_two();
        // The hash spreads flows so evenly that no shard has half as many more than
        // the others; 64 is for those that are few. Records that rest need room too.
        let average = capacity.div_ceil(shards);
        let most = average + average / 2 + 64;
        let random = hash_map::RandomState::new();
        Self {
            shards: (0..shards)
                .map(|_| CachePadded::new(Shard::new(most)))
                .collect(),
            seeds: [1u8, 2, 3].map(|nth| random.hash_one(nth)),
            allowances: Allowances::default(),
            shares: Shares::default(),
            entries: AtomicUsize::new(0),
            capacity,
        }
    }

    /// The hash under which flows with that key are found. Both ends of a flow
    /// whose addresses nobody translates have the same.
    #[inline(always)]
    pub fn hash(&self, key: &FlowKey) -> Hash {
        self.hash_of(key.ends(), u64::from(key.protocol()))
    }

    /// The live flow with that key.
    #[inline(always)]
    pub fn find(&self, key: &FlowKey, now: Millis) -> Option<FlowRef<'_>> {
        self.find_beside(Beside(None), key, self.hash(key), now)
    }

    /// The live flow with that key, which has that [`Self::hash`], and where its other
    /// end is likely to be.
    #[inline(always)]
    pub fn find_pair(
        &self,
        key: &FlowKey,
        hash: Hash,
        now: Millis,
    ) -> Option<(FlowRef<'_>, Beside<'_>)> {
        let shard = self.shard(hash);
        let (found, other) = shard.find_pair(key, home(hash, key.interface()))?;
        Some((live(shard, found, key, now)?, Beside(other)))
    }

    /// The live flow with that key, which has that [`Self::hash`] and most likely is
    /// there.
    #[inline(always)]
    pub fn find_beside<'t>(
        &'t self,
        beside: Beside<'t>,
        key: &FlowKey,
        hash: Hash,
        now: Millis,
    ) -> Option<FlowRef<'t>> {
        let shard = self.shard(hash);
        let found = match beside.0.and_then(|slot| shard::found(slot, key, &mut true)) {
            Some(found) => found,
            None => shard.find(key, home(hash, key.interface()))?,
        };
        live(shard, found, key, now)
    }

    /// Reads what the flows with these keys, `None` for none, are kept in at both ends,
    /// so that it is at hand when they are asked for. One flow after the other would
    /// wait for the memory each time; together they wait once.
    pub fn touch(&self, keys: &[Option<FlowKey>]) {
        let mut homes = [None; BATCH];
        let mut records = [None; 2 * BATCH];
        for keys in keys.chunks(BATCH) {
            for (at, key) in homes.iter_mut().zip(keys) {
                *at = key.as_ref().map(|key| {
                    let hash = self.hash(key);
                    (self.shard(hash), home(hash, key.interface()))
                });
            }
            let homes = homes[..keys.len()].iter().flatten();
            // Loops of their own, with little else in them: so the processor waits for
            // as many lines at once as it can.
            touch(
                homes
                    .clone()
                    .flat_map(|(shard, home)| shard.searched(*home)),
            );
            let pairs = records.chunks_exact_mut(2);
            let mut found = 0;
            for ((shard, home), pair) in homes.zip(pairs) {
                pair.copy_from_slice(&shard.likely_pair(*home));
                found += 2;
            }
            let records = records[..found].iter().flatten();
            touch(records.map(|record| record.word()));
        }
    }

    /// Records the flow that a packet opens, tracked or not. If an untracked flow were not
    /// recorded, its reply would look like the start of another flow.
    ///
    /// An entity may hold as many entries as remain free. All flows that it began count, at any
    /// interface. A flood therefore takes at most half of what others leave, and its target keeps
    /// its own share (dynamic thresholds after Choudhury and Hahne, 1998, with α = 1). With
    /// several workers, the count may exceed the threshold by the number of workers.
    ///
    /// # Errors
    /// [`NoRoom`] if there is no room for it. Existing flows stay.
    pub fn open(&self, key: FlowKey, opening: &Opening<'_>) -> Result<(), NoRoom> {
        let hash = self.hash(&key);
        let home = home(hash, key.interface());
        let shard = self.shard(hash);
        let mut free = shard.lock();
        // Whatever is decided is decided under the shard's lock, so two workers
        // neither open a flow twice nor both take the last place.
        if let Some(found) = shard.find_locked(&key, home) {
            if found.life.is_live(opening.now) && !opening.replace {
                drop(free);
                let flow = FlowRef::new(shard, found, key.protocol());
                // Should it end in this very moment, it was there for the packet.
                let _ = flow.take_note(
                    &opening.packet.segment(),
                    opening.direction,
                    opening.tracking,
                    opening.now,
                );
                return Ok(());
            }
            return self.replace(shard, &mut free, home, found, key, opening);
        }
        let charge = self.charge(opening)?;
        let fill = |slot: Slot<'_>| slot.let_to(&tenant(&key, opening, charge));
        if self.take_place(opening.sender, 1) {
            if shard.insert(&mut free, home, fill).is_some() {
                return Ok(());
            }
            self.give_place_back(opening.sender, 1);
        }
        if let Some(owner) = charge {
            self.allowances.give_back(owner);
        }
        Err(NoRoom::Table)
    }

    /// Opens a flow in place of the one found under its key.
    fn replace(
        &self,
        shard: &Shard,
        free: &mut shard::Free,
        home: Home,
        found: shard::Found<'_>,
        key: FlowKey,
        opening: &Opening<'_>,
    ) -> Result<(), NoRoom> {
        let slot = found.slot;
        let worn = found.life.is_worn();
        // The new flow inherits its predecessor's place in the allowance.
        let charge = if opening.tracked && slot.has_charge() {
            None
        } else {
            self.charge(opening)?
        };
        let before = slot.sender();
        let moves = before != opening.sender;
        if worn && !shard.has_record(free) || moves && !self.take_place(opening.sender, 0) {
            if let Some(owner) = charge {
                self.allowances.give_back(owner);
            }
            return Err(NoRoom::Table);
        }
        if moves {
            self.give_place_back(before, 0);
        }
        let charge = match (slot.take_charge(), opening.tracked) {
            (Some(owner), true) => Some(owner),
            (Some(owner), false) => {
                self.allowances.give_back(owner);
                None
            }
            (None, _) => charge,
        };
        let tenant = tenant(&key, opening, charge);
        if worn {
            // A concurrent search finds one of the two at any time.
            let _ = shard.insert(free, home, |slot| slot.let_to(&tenant));
            while !shard.remove(free, home, slot, slot.life()) {}
        } else {
            slot.let_to(&tenant);
        }
        Ok(())
    }

    /// Counts another entry for the entity, and `more` entries of the table. Returns true if
    /// there is room.
    fn take_place(&self, sender: InterfaceIx, more: usize) -> bool {
        let share = self.shares.of(sender);
        let held = share.fetch_add(1, Ordering::Relaxed) + 1;
        let reserve = |entries| {
            let taken = entries + more;
            (taken + held <= self.capacity).then_some(taken)
        };
        let reserved = self
            .entries
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve)
            .is_ok();
        if !reserved {
            share.fetch_sub(1, Ordering::Relaxed);
        }
        reserved
    }

    fn give_place_back(&self, sender: InterfaceIx, fewer: usize) {
        self.shares.of(sender).fetch_sub(1, Ordering::Relaxed);
        self.entries.fetch_sub(fewer, Ordering::Relaxed);
    }

    fn charge(&self, opening: &Opening<'_>) -> Result<Option<InterfaceIx>, NoRoom> {
        match opening.allowance {
            Some(allowance) if opening.tracked => {
                if self.allowances.charge(allowance) {
                    Ok(Some(allowance.owner))
                } else {
                    Err(NoRoom::Allowance)
                }
            }
            _ => Ok(None),
        }
    }

    /// Removes what has expired; gives how many.
    pub fn sweep(&self, now: Millis) -> usize {
        self.sweep_shards(0..self.shards(), now)
    }

    /// Into how many parts the table is divided.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Removes what has expired in those parts; gives how many. Nobody who looks a
    /// flow up waits for it, and who opens one waits for one removal at the most.
    pub fn sweep_shards(&self, shards: Range<usize>, now: Millis) -> usize {
        let shards = self.shards.get(shards).unwrap_or_default();
        let expired = |shard: &Shard| {
            shard.end_rests(now);
            self.remove_if(shard, |life| !life.is_live(now))
        };
        shards.iter().map(|shard| expired(shard)).sum()
    }

    /// Forgets every flow.
    pub fn clear(&self) {
        for shard in &self.shards {
            self.remove_if(shard, |_| true);
        }
    }

    fn remove_if(&self, shard: &Shard, goes: impl Fn(Life) -> bool) -> usize {
        let mut removed = 0;
        for (slot, life) in shard.tenants() {
            if !goes(life) {
                continue;
            }
            let mut free = shard.lock();
            // Under the lock nobody else gives the record away; a packet may change its
            // life at any moment, though.
            loop {
                let life = slot.life();
                if life.is_vacant() || !goes(life) {
                    break;
                }
                let home = self.home_of(&slot.key_words());
                if self.remove(shard, &mut free, home, slot, life) {
                    removed += 1;
                    break;
                }
            }
        }
        removed
    }

    fn remove(
        &self,
        shard: &Shard,
        free: &mut shard::Free,
        home: Home,
        slot: Slot<'_>,
        seen: Life,
    ) -> bool {
        let removed = shard.remove(free, home, slot, seen);
        if removed {
            if let Some(owner) = slot.take_charge() {
                self.allowances.give_back(owner);
            }
            self.give_place_back(slot.sender(), 1);
        }
        removed
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

    /// Bytes that it takes: records, index and all.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.shards.iter().map(|shard| shard.bytes()).sum::<usize>()
    }

    /// Returns the number of entries that the entity holds, at any interface, and the number that
    /// it can still add while no other entity does.
    pub fn share(&self, entity: InterfaceIx) -> (usize, usize) {
        let held = self.shares.of(entity).load(Ordering::Relaxed);
        // Each new entry adds one to the count and leaves one fewer free.
        let available = self.capacity.saturating_sub(self.len() + held) / 2;
        (held, available)
    }

    /// How many more flows the entity of that allowance may track.
    pub fn available(&self, allowance: Allowance) -> u32 {
        self.allowances.available(allowance)
    }

    #[inline(always)]
    fn shard(&self, hash: Hash) -> &Shard {
        // The upper bits; the lower ones are the bucket's.
        let number = (hash.0 >> 48) as usize & (self.shards.len() - 1);
        &self.shards[number]
    }

    fn home_of(&self, words: &[u64; 6]) -> Home {
        let key = FlowKey::from_words(*words);
        home(self.hash(&key), key.interface())
    }

    /// Multiplications that are folded upon themselves, with secrets that nobody
    /// can learn from outside, in the manner of wyhash. Adding the two ends makes
    /// it the same from both sides.
    #[inline(always)]
    fn hash_of(&self, ends: [[u64; 3]; 2], protocol: u64) -> Hash {
        let [first, second, third] = self.seeds;
        let [local, remote] = ends.map(|[high, low, port]| {
            let address = fold(high ^ first, low ^ second);
            fold(address ^ third, port ^ first)
        });
        Hash(fold(local.wrapping_add(remote) ^ second, protocol ^ third))
    }
}

/// A flow that was found, unless it has expired.
#[inline(always)]
fn live<'t>(
    shard: &'t Shard,
    found: shard::Found<'t>,
    key: &FlowKey,
    now: Millis,
) -> Option<FlowRef<'t>> {
    let live = found.life.is_live(now);
    live.then_some(FlowRef::new(shard, found, key.protocol()))
}

/// Reads words that nobody wants, so that they are at hand afterwards.
#[inline(always)]
fn touch<'t>(words: impl Iterator<Item = &'t AtomicU64>) {
    let read = words.fold(0, |read, word| read ^ word.load(Ordering::Relaxed));
    // Or the compiler would see that nobody wants it.
    std::hint::black_box(read);
}

fn tenant<'a>(key: &'a FlowKey, opening: &Opening<'_>, charge: Option<InterfaceIx>) -> Tenant<'a> {
    let segment = opening.packet.segment();
    let state = State::opened_by(opening.packet.protocol, &segment.flags);
    Tenant {
        key,
        nature: Nature::new(opening.direction, opening.tracked),
        state: state.bits(),
        expires: opening
            .now
            .0
            .saturating_add(state.timeout(opening.tracking)),
        rule: opening.rule,
        end: segment.end,
        sender: opening.sender,
        charge,
    }
}

/// Where a shard keeps the flow with that hash at that interface. Both ends begin
/// at one bucket, so that what finds one has the other at hand.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes the hash apart")]
fn home(hash: Hash, interface: InterfaceIx) -> Home {
    Home {
        bucket: hash.0 as u32,
        tag: (hash.0 >> 32) as u16 ^ interface.ix() as u16,
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes the product apart")]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests;
