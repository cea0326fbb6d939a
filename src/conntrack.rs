//! Flows: a sharded table of bounded size, one entry for each flow at each
//! interface (AWS keeps state per interface: sender's and receiver's are
//! separate).
//!
//! A tracked flow passes whatever the rules say later. An untracked one
//! (aws-semantics §3.2) is remembered too, but only so that its packets aren't
//! taken for the start of something else: the rules judge each of them, or did
//! so already under the policy in force.
//!
//! Sans-IO: `now` is an argument. A flow is found, and takes note of a packet,
//! without a lock and without allocating; opening one may allocate. Expired entries
//! count as absent at once and are removed by [`FlowTable::sweep`], off the packet
//! path. The hash is seeded at random, so nobody can aim at one bucket.

mod allowance;
mod shard;
mod slot;
mod state;

use std::collections::hash_map;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use crossbeam::utils::CachePadded;

use crate::model::{Direction, InterfaceIx, RuleId, Tracking, protocol};
use crate::packet::{FlowKey, Packet};
use crate::policy::Allowance;
use allowance::Allowances;
use shard::{Found, Home, Shard};
use slot::{Nature, Slot, Tenant};
use state::{Segment, State};

pub use slot::Way;

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

/// Flows of a shard, about: enough shards that who opens flows seldom waits for
/// another, and few enough that what leads to their records stays in the cache.
const SHARD: usize = 1 << 14;

/// Flows that are touched at a time.
const BATCH: usize = 64;

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
    shards: Box<[CachePadded<Shard>]>,
    seeds: [u64; 3],
    allowances: Allowances,
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
    /// The allowance of the interface's entity, if it has one.
    pub allowance: Option<Allowance>,
    /// Whether a live flow with that key gives way. Otherwise it stays, and
    /// takes note of the packet: another worker opened it in this moment.
    pub replace: bool,
}

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

/// The hash of a flow's key, less what tells its two ends apart.
#[derive(Debug, Clone, Copy)]
pub struct Hash(u64);

impl FlowTable {
    /// An empty table for at most `capacity` flows. It takes memory as it fills.
    pub fn new(capacity: usize) -> Self {
        let shards = (capacity / SHARD).next_power_of_two();
        // The hash spreads flows so evenly that no shard has half as many more than
        // the others; 64 is for those that are few.
        let average = capacity.div_ceil(shards);
        let most = capacity.min(average + average / 2 + 64);
        let random = hash_map::RandomState::new();
        Self {
            shards: (0..shards)
                .map(|_| CachePadded::new(Shard::new(most)))
                .collect(),
            seeds: [1u8, 2, 3].map(|nth| random.hash_one(nth)),
            allowances: Allowances::default(),
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
        self.find_hashed(key, self.hash(key), now)
    }

    /// The live flow with that key, which has that [`Self::hash`].
    #[inline(always)]
    pub fn find_hashed(&self, key: &FlowKey, hash: Hash, now: Millis) -> Option<FlowRef<'_>> {
        let shard = self.shard(hash);
        let found = shard.find(key, home(hash, key.interface()))?;
        found.life.is_live(now).then_some(FlowRef {
            shard,
            found,
            protocol: key.protocol(),
        })
    }

    /// Reads what the flows with these keys, `None` for none, are kept in, so that it
    /// is at hand when they are asked for. One flow after the other would wait for the
    /// memory each time; together they wait once.
    pub fn touch(&self, keys: &[Option<FlowKey>]) {
        let mut hashes = [None; BATCH];
        let mut records = [None; BATCH];
        let mut read = 0_u64;
        for keys in keys.chunks(BATCH) {
            for (hash, key) in hashes.iter_mut().zip(keys) {
                *hash = key.as_ref().map(|key| self.hash(key));
                if let (Some(hash), Some(key)) = (*hash, key) {
                    read ^= self.shard(hash).touch_index(home(hash, key.interface()));
                }
            }
            for ((record, hash), key) in records.iter_mut().zip(hashes).zip(keys) {
                *record = hash
                    .zip(*key)
                    .and_then(|(hash, key)| self.shard(hash).likely(home(hash, key.interface())));
                read ^= record.map_or(0, Slot::touch);
            }
            // Where nobody translates, the other end's is found with the same hash.
            for (record, hash) in records.iter().zip(hashes).take(keys.len()) {
                if let Some((record, hash)) = record.zip(hash) {
                    let other = self.shard(hash).likely(home(hash, record.way().to));
                    read ^= other.map_or(0, Slot::touch);
                }
            }
        }
        // Or the compiler would see that nobody wants it.
        std::hint::black_box(read);
    }

    /// Remembers the flow that a packet opens. Untracked ones have half of the
    /// table: AWS needs no entry for them, so they must not take the room of
    /// those that it tracks. One for which there is no room is not remembered,
    /// and that is no error; the rules let its packets pass or don't.
    ///
    /// # Errors
    /// [`NoRoom`] if a tracked one can't be had.
    pub fn open(&self, key: FlowKey, opening: &Opening<'_>) -> Result<(), NoRoom> {
        let hash = self.hash(&key);
        let home = home(hash, key.interface());
        let shard = self.shard(hash);
        let mut free = shard.lock();
        // Whatever is decided is decided under the shard's lock, so two workers
        // neither open a flow twice nor both take the last place.
        if let Some(found) = shard.find(&key, home) {
            if found.life.is_live(opening.now) && !opening.replace {
                drop(free);
                let flow = FlowRef {
                    shard,
                    found,
                    protocol: key.protocol(),
                };
                // Should it end in this very moment, it was there for the packet.
                let _ = flow.take_note(
                    opening.packet,
                    opening.direction,
                    opening.tracking,
                    opening.now,
                );
                return Ok(());
            }
            // The predecessor's place in the allowance is the new one's.
            let charge = match (found.slot.take_charge(), opening.tracked) {
                (Some(owner), true) => Some(owner),
                (Some(owner), false) => {
                    self.allowances.give_back(owner);
                    None
                }
                (None, _) => self.charge(opening)?,
            };
            found.slot.let_to(&tenant(&key, opening, charge));
            return Ok(());
        }
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
        let fill = |slot: &Slot| slot.let_to(&tenant(&key, opening, charge));
        if reserved && shard.insert(&mut free, home, fill).is_some() {
            return Ok(());
        }
        if reserved {
            self.entries.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(owner) = charge {
            self.allowances.give_back(owner);
        }
        if opening.tracked {
            Err(NoRoom::Table)
        } else {
            Ok(())
        }
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

    /// Forgets a flow that is closed (another worker may have opened the next
    /// one in its place meanwhile; that stays).
    pub fn forget_closed(&self, key: &FlowKey) {
        let hash = self.hash(key);
        let home = home(hash, key.interface());
        let shard = self.shard(hash);
        let mut free = shard.lock();
        if let Some(found) = shard.find(key, home)
            && State::is_closed_in(key.protocol(), found.life.state())
        {
            self.remove(shard, &mut free, home, &found);
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
        let expired = |shard| self.remove_if(shard, |life| !life.is_live(now));
        shards.iter().map(|shard| expired(&**shard)).sum()
    }

    /// Forgets every flow.
    pub fn clear(&self) {
        for shard in &self.shards {
            self.remove_if(shard, |_| true);
        }
    }

    fn remove_if(&self, shard: &Shard, goes: impl Fn(slot::Life) -> bool) -> usize {
        let mut removed = 0;
        for (slot, life) in shard.tenants() {
            if !goes(life) {
                continue;
            }
            let mut free = shard.lock();
            // Under the lock nobody else gives the record away; its life may have
            // been put off meanwhile, though.
            let life = slot.life();
            if life.is_vacant() || !goes(life) {
                continue;
            }
            let words = slot.key_words();
            let found = Found {
                slot,
                life,
                nature: Nature::new(Direction::Egress, true),
            };
            removed += usize::from(self.remove(shard, &mut free, self.home_of(&words), &found));
        }
        removed
    }

    fn remove(&self, shard: &Shard, free: &mut shard::Free, home: Home, found: &Found<'_>) -> bool {
        let removed = shard.remove(free, home, found);
        if removed {
            if let Some(owner) = found.slot.take_charge() {
                self.allowances.give_back(owner);
            }
            self.entries.fetch_sub(1, Ordering::Relaxed);
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

impl<'t> FlowRef<'t> {
    /// Whether it passes whatever the rules say.
    #[inline]
    pub fn is_tracked(&self) -> bool {
        self.found.nature.is_tracked()
    }

    /// Whether it is a TCP connection that was reset or closed from both sides.
    #[inline]
    pub fn is_closed(&self) -> bool {
        State::is_closed_in(self.protocol, self.found.life.state())
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
        RuleId(self.found.slot.rules[direction as usize].load(Ordering::Relaxed))
    }

    /// Moves the state on and puts the expiry off, as the packet asks. `false` if
    /// the flow has ended since it was found.
    #[inline(always)]
    #[must_use]
    pub fn take_note(
        &self,
        packet: &Packet,
        direction: Direction,
        tracking: &Tracking,
        now: Millis,
    ) -> bool {
        let slot = self.found.slot;
        let segment = Segment::of(packet);
        let mut life = self.found.life;
        // What most packets are: nothing changes but the expiry.
        if packet.protocol == protocol::TCP
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
        self.move_on(life, &segment, direction, tracking, now)
    }

    /// Two workers may do so at once for the two directions of a flow, so the
    /// life changes by compare and exchange.
    #[inline(never)]
    fn move_on(
        &self,
        mut life: slot::Life,
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
            // A side's first FIN counts. It is stored before the state tells
            // of it, and only this side's packets store it.
            if segment.flags.fin && !state.has_finished(from_initiator) {
                self.change(|| {
                    let mine = &slot.fins[usize::from(!from_initiator)];
                    mine.store(segment.end, Ordering::Relaxed);
                });
            }
            let fins = [0, 1].map(|side: usize| slot.fins[side].load(Ordering::Relaxed));
            let next = state.after(segment, from_initiator, fins);
            let expires = now.0.saturating_add(next.timeout(tracking));
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
        let judged = self.found.slot.judged[direction as usize].load(Ordering::Acquire);
        says(judged, by, generation) && self.found.slot.is_still(self.found.life)
    }

    /// Notes that `by` lets that direction pass under policy `generation`.
    pub fn set_passed(&self, by: Judged, direction: Direction, generation: u64) {
        self.change(|| self.note(by, direction, generation));
    }

    /// Notes which rule let that direction pass under policy `generation`.
    pub fn set_rule(&self, direction: Direction, rule: RuleId, generation: u64) {
        self.change(|| {
            self.found.slot.rules[direction as usize].store(rule.0, Ordering::Relaxed);
            self.note(Judged::Rules, direction, generation);
        });
    }

    /// The way of what leaves the interface in this flow, if all of the road lets
    /// it pass under policy `generation`: the check of its source, the network
    /// ACLs on both sides, the route, and the check of its destination.
    #[inline(always)]
    pub fn way(&self, generation: u64) -> Option<Way> {
        let slot = self.found.slot;
        let note = &slot.judged[Direction::Egress as usize];
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
            let note = &self.found.slot.judged[Direction::Egress as usize];
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
        let note = &self.found.slot.judged[direction as usize];
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

fn tenant<'a>(key: &'a FlowKey, opening: &Opening<'_>, charge: Option<InterfaceIx>) -> Tenant<'a> {
    let segment = Segment::of(opening.packet);
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

/// Whether the packet asks for a new TCP connection.
pub fn opens_connection(packet: &Packet) -> bool {
    Segment::of(packet).opens()
}

#[cfg(test)]
mod tests;
