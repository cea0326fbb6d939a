//! A part of the table: records in chunks, and an index of them by hash. Found
//! without a lock, changed under one.
//!
//! The index is an array of words, probed from a hash's home on. A word has 48 bits
//! of the hash and the record's number, so that a record is hardly ever read in vain,
//! and none at all when words change places. What is removed leaves a mark behind, which the next one that comes by
//! takes; marks at the end of a run are cleared. So words keep their places, and
//! whoever looks finds what is there, but for the seldom moment when there are so many
//! marks or records that all is put in order anew: who finds nothing then looks again.
//! An index that has become too small stays, as somebody may be reading it: together
//! they take a third of what the last one does.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock};

use super::slot::{Cold, Hot, Life, Nature, Slot};
use super::{Millis, REST};
use crate::packet::FlowKey;

/// Records that are allocated at a time.
const CHUNK: usize = 512;
/// Most records of a shard: their numbers are 16 bits wide, and count from 1.
const MAX_RECORDS: usize = u16::MAX as usize;
/// Words of a shard's first index.
const FIRST_INDEX: usize = 256;
/// Each index is four times as long as the one before: two bits.
const GROWTH: usize = 2;
/// Indices that a shard may have: the last is for more than [`MAX_RECORDS`].
const INDICES: usize = 6;
/// Words of the index among which a record is looked for that is only to be touched.
const TOUCHED: usize = 8;
/// Words after its first within which most searches end.
const SEARCHED: usize = 4;
/// How often a reader retries while a record is being reused or the index is being rebuilt,
/// before it waits for the writer's lock.
const PATIENCE: usize = 1 << 6;

/// Index word: nothing has been here, so a search ends.
const EMPTY: u64 = 0;
/// Index word: something was here; its record number, 0, is nobody's.
const REMOVED: u64 = 1 << 16;

/// Where a hash belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Home {
    /// The position in the index at which a search begins: as many of the lower bits
    /// as it has.
    pub(super) bucket: u32,
    /// Tells most of those apart that are found there.
    pub(super) tag: u16,
}

impl Home {
    /// What an index word has above the record's number.
    #[inline(always)]
    fn mark(self) -> u64 {
        u64::from(self.bucket) << 16 | u64::from(self.tag)
    }

    /// An index word of that bucket, whatever the interface, or [`EMPTY`].
    #[inline(always)]
    fn kin(self, word: u64) -> u64 {
        if word >> 32 == u64::from(self.bucket) {
            word
        } else {
            EMPTY
        }
    }
}

/// A part of the table.
#[derive(Debug)]
pub(super) struct Shard {
    /// Odd while the index is being put in order, and another number afterwards or when
    /// a larger one has taken its place.
    order: AtomicU32,
    /// Which of the indices is in use.
    current: AtomicUsize,
    indices: [OnceLock<Box<[AtomicU64]>>; INDICES],
    chunks: Box<[OnceLock<Chunk>]>,
    most: usize,
    /// Whoever changes the index, or of a record more than its life, holds this.
    free: Mutex<Free>,
}

/// Records that are allocated together.
#[derive(Debug)]
struct Chunk {
    hot: Box<[Hot]>,
    cold: Box<[Cold]>,
}

impl Chunk {
    fn new() -> Self {
        Self {
            hot: (0..CHUNK).map(|_| Hot::default()).collect(),
            cold: (0..CHUNK).map(|_| Cold::default()).collect(),
        }
    }

    fn slots(&self) -> impl Iterator<Item = Slot<'_>> {
        self.hot
            .iter()
            .zip(&self.cold)
            .map(|(hot, cold)| Slot::new(hot, cold))
    }
}

/// The records without a tenant: those that were given back, and all from `fresh` on.
#[derive(Debug, Default)]
pub(super) struct Free {
    back: Vec<u16>,
    /// Records that have used up their generations ([`Life::is_worn`]): those retired before the
    /// last turn, and those retired since.
    resting: [Vec<u16>; 2],
    /// The time of the last turn.
    turned: Millis,
    fresh: usize,
    /// Marks in the index.
    marks: usize,
}

/// A record that was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'s> {
    pub(super) slot: Slot<'s>,
    pub(super) life: Life,
    pub(super) nature: Nature,
}

/// The record that was found, and the record that probably belongs to the flow's other end.
type Pair<'s> = Option<(Found<'s>, Option<Slot<'s>>)>;

impl Shard {
    /// A shard for `most` records. It takes memory as it fills.
    pub(super) fn new(most: usize) -> Self {
        let most = most.min(MAX_RECORDS);
        Self {
            order: AtomicU32::new(0),
            current: AtomicUsize::new(0),
            indices: Default::default(),
            chunks: (0..most.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect(),
            most,
            free: Mutex::default(),
        }
    }

    /// The record of the flow with that key, whether it has expired or not.
    #[inline(always)]
    pub(super) fn find(&self, key: &FlowKey, home: Home) -> Option<Found<'_>> {
        self.find_pair(key, home).map(|(found, _)| found)
    }

    /// Likewise, and the record that is most likely that of the flow's other end. It
    /// is on its way from memory while the first is read.
    #[inline(always)]
    pub(super) fn find_pair(&self, key: &FlowKey, home: Home) -> Pair<'_> {
        // Not as a `Result`, which would go through memory on the fast path.
        let mut settled = true;
        let pair = self.search(key, home, &mut settled);
        if settled {
            return pair;
        }
        // The key by value, so that the fast path can keep it in registers.
        self.search_again(*key, home)
    }

    /// The slow path of [`Self::find_pair`], for when the first search met a change in progress.
    /// A writer can be pre-empted during a change, so after a number of retries this waits for
    /// the writer's lock. The kernel then runs the writer. Under the lock only lives change, and
    /// no search depends on those, so every search ends.
    #[cold]
    #[inline(never)]
    fn search_again(&self, key: FlowKey, home: Home) -> Pair<'_> {
        for _ in 0..PATIENCE {
            std::hint::spin_loop();
            let mut settled = true;
            let pair = self.search(&key, home, &mut settled);
            if settled {
                return pair;
            }
        }
        let _held = self.lock();
        self.search_locked(&key, home)
    }

    /// Returns the record of the flow with this key, expired or not. The caller holds the lock.
    pub(super) fn find_locked(&self, key: &FlowKey, home: Home) -> Option<Found<'_>> {
        self.search_locked(key, home).map(|(found, _)| found)
    }

    fn search_locked(&self, key: &FlowKey, home: Home) -> Pair<'_> {
        // A writer that panicked may have left the order odd and a record vacant. The flow does
        // not exist then.
        self.search(key, home, &mut true)
    }

    /// Searches the index once.
    #[inline(always)]
    fn search(&self, key: &FlowKey, home: Home, settled: &mut bool) -> Pair<'_> {
        let order = self.order.load(Ordering::Acquire);
        let index = self.index()?;
        let mask = index.len() - 1;
        let mut at = home.bucket as usize & mask;
        let mut other = EMPTY;
        for _ in 0..index.len() {
            let word = index.get(at)?.load(Ordering::Acquire);
            if word == EMPTY {
                break;
            }
            at = (at + 1) & mask;
            if word >> 16 != home.mark() {
                if other == EMPTY {
                    other = home.kin(word);
                }
            } else if let Some(slot) = self.slot(word) {
                // The other end was opened after this one, or before.
                if other == EMPTY {
                    other = home.kin(index.get(at)?.load(Ordering::Acquire));
                }
                let other = self.slot(other);
                super::touch(other.into_iter().map(Slot::word));
                if let Some(found) = found(slot, key, settled) {
                    return Some((found, other));
                }
                if !*settled {
                    return None;
                }
            }
        }
        fence(Ordering::Acquire);
        *settled = order.is_multiple_of(2) && self.order.load(Ordering::Relaxed) == order;
        None
    }

    /// The word of the index at which a search begins, and one where most have ended: in
    /// the same line of the cache, or in the next.
    #[inline(always)]
    pub(super) fn searched(&self, home: Home) -> impl Iterator<Item = &AtomicU64> {
        let index = self.index().unwrap_or_default();
        let mask = index.len().wrapping_sub(1);
        let word = move |step| index.get((home.bucket as usize + step) & mask);
        [0, SEARCHED].into_iter().filter_map(word)
    }

    /// The records that most likely are those of a flow's two ends.
    #[inline(always)]
    pub(super) fn likely_pair(&self, home: Home) -> [Option<Slot<'_>>; 2] {
        let mut pair = [None; 2];
        let mut places = pair.iter_mut();
        let index = self.index().unwrap_or_default();
        for step in 0..index.len().min(TOUCHED) {
            let at = (home.bucket as usize + step) & (index.len() - 1);
            let word = index[at].load(Ordering::Relaxed);
            if word == EMPTY {
                break;
            }
            if let Some(slot) = self.slot(home.kin(word)) {
                match places.next() {
                    Some(place) => *place = Some(slot),
                    None => break,
                }
            }
        }
        pair
    }

    /// Locks the shard for changes.
    pub(super) fn lock(&self) -> MutexGuard<'_, Free> {
        self.free
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Returns true if a record is available.
    pub(super) fn has_record(&self, free: &Free) -> bool {
        !free.back.is_empty() || free.fresh < self.most
    }

    /// A record for the flow with that key, which has none; `fill` lets it to the
    /// flow. `None` if there is no room.
    pub(super) fn insert(
        &self,
        free: &mut Free,
        home: Home,
        fill: impl FnOnce(Slot<'_>),
    ) -> Option<()> {
        self.make_room(free);
        let index = self.index()?;
        let mask = index.len() - 1;
        let mut at = home.bucket as usize & mask;
        // There is room: records are fewer than words.
        while number(index[at].load(Ordering::Relaxed)).is_some() {
            at = (at + 1) & mask;
        }
        let number = match free.back.pop() {
            Some(number) => usize::from(number),
            None if free.fresh < self.most => {
                free.fresh += 1;
                free.fresh - 1
            }
            None => return None,
        };
        let chunk = self.chunks[number / CHUNK].get_or_init(Chunk::new);
        let place = number % CHUNK;
        fill(Slot::new(&chunk.hot[place], &chunk.cold[place]));
        free.marks -= usize::from(index[at].load(Ordering::Relaxed) == REMOVED);
        index[at].store(word(home, number), Ordering::Release);
        Some(())
    }

    /// Removes a record, under the lock; `home` is its key's. Not if its life isn't
    /// `seen` any more.
    pub(super) fn remove(&self, free: &mut Free, home: Home, slot: Slot<'_>, seen: Life) -> bool {
        let Some(index) = self.index() else {
            return false;
        };
        let mask = index.len() - 1;
        let mut at = home.bucket as usize & mask;
        for _ in 0..index.len() {
            let word = index[at].load(Ordering::Relaxed);
            if word == EMPTY {
                return false;
            }
            if let Some(number) = number(word)
                && self.slot(word).is_some_and(|there| there.is(slot))
            {
                if !slot.vacate(seen) {
                    return false;
                }
                // Under the lock no other flow can occupy it.
                if slot.life().is_worn() {
                    free.resting[1].push(number);
                } else {
                    free.back.push(number);
                }
                free.clear(index, at);
                return true;
            }
            at = (at + 1) & mask;
        }
        false
    }

    /// Makes those records available again that have rested for [`REST`], with all their
    /// generations: references from before have ended.
    pub(super) fn end_rests(&self, now: Millis) {
        let mut free = self.lock();
        for number in free.turn(now) {
            let number = usize::from(number);
            if let Some(chunk) = self.chunks[number / CHUNK].get() {
                let place = number % CHUNK;
                Slot::new(&chunk.hot[place], &chunk.cold[place]).renew();
            }
        }
    }

    /// Puts the index in order if marks or records take up too much of it: three
    /// quarters at the most, so that searches end soon.
    fn make_room(&self, free: &mut Free) {
        let records = free.fresh - free.without_tenant();
        let old = self.index();
        let length = old.map_or(0, <[_]>::len);
        let full = |taken: usize, length: usize| taken + 1 > length / 4 * 3;
        if !full(records + free.marks, length) {
            return;
        }
        let there: Vec<u64> = old
            .into_iter()
            .flatten()
            .map(|word| word.load(Ordering::Relaxed))
            .filter(|word| number(*word).is_some())
            .collect();
        free.marks = 0;
        // With marks gone the same may do; not if it would soon be full again.
        let current = self.current.load(Ordering::Relaxed);
        let grows = full(records + records / 4, length) && current + 1 < INDICES;
        match old.filter(|_| !grows) {
            Some(index) => {
                self.order.fetch_add(1, Ordering::AcqRel);
                fence(Ordering::Release);
                for word in index {
                    word.store(EMPTY, Ordering::Relaxed);
                }
                fill(index, &there);
                self.order.fetch_add(1, Ordering::AcqRel);
            }
            // Who is reading the old one finds all that was there until now.
            None => {
                let next = if old.is_some() { current + 1 } else { current };
                self.indices[next].get_or_init(|| {
                    let index: Box<[AtomicU64]> = (0..FIRST_INDEX << (GROWTH * next))
                        .map(|_| AtomicU64::new(EMPTY))
                        .collect();
                    fill(&index, &there);
                    index
                });
                self.current.store(next, Ordering::Release);
                self.order.fetch_add(2, Ordering::AcqRel);
            }
        }
    }

    /// The index in use.
    #[inline(always)]
    fn index(&self) -> Option<&[AtomicU64]> {
        let current = self.current.load(Ordering::Acquire);
        self.indices.get(current)?.get().map(|index| &**index)
    }

    /// Every record that has a tenant, those that have expired included.
    pub(super) fn tenants(&self) -> impl Iterator<Item = (Slot<'_>, Life)> {
        self.chunks
            .iter()
            .map_while(|chunk| chunk.get())
            .flat_map(Chunk::slots)
            .map(|slot| (slot, slot.life()))
            .filter(|(_, life)| !life.is_vacant())
    }

    /// What it takes of memory.
    pub(super) fn bytes(&self) -> usize {
        let indices = self.indices.iter().filter_map(|index| index.get());
        let indices: usize = indices.map(|index| size_of_val(&**index)).sum();
        let chunks = self.chunks.iter().filter_map(|chunk| chunk.get());
        let of = |chunk: &Chunk| size_of_val(&*chunk.hot) + size_of_val(&*chunk.cold);
        let records: usize = chunks.map(of).sum();
        let free = self.lock();
        let lists = free.resting.iter().chain([&free.back]);
        let lists = lists.map(Vec::capacity).sum::<usize>() * size_of::<u16>();
        size_of::<Self>() + size_of_val(&*self.chunks) + indices + records + lists
    }

    /// The record that an index word speaks of.
    #[inline(always)]
    fn slot(&self, word: u64) -> Option<Slot<'_>> {
        let number = usize::from(number(word)?);
        let chunk = self.chunks.get(number / CHUNK)?.get()?;
        let at = number % CHUNK;
        Some(Slot::new(chunk.hot.get(at)?, chunk.cold.get(at)?))
    }
}

/// Puts words into an empty index.
fn fill(index: &[AtomicU64], words: &[u64]) {
    let mask = index.len() - 1;
    for word in words {
        let mut at = bucket(*word) & mask;
        while index[at].load(Ordering::Relaxed) != EMPTY {
            at = (at + 1) & mask;
        }
        index[at].store(*word, Ordering::Relaxed);
    }
}

/// The record number in an index word.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "takes the word apart")]
fn number(word: u64) -> Option<u16> {
    (word as u16).checked_sub(1)
}

/// The bucket in an index word.
#[inline]
fn bucket(word: u64) -> usize {
    (word >> 32) as usize
}

/// A shard has fewer than 2^16 - 1 records.
fn word(home: Home, number: usize) -> u64 {
    home.mark() << 16 | (number as u64 + 1)
}

impl Free {
    /// Returns the number of released records.
    fn without_tenant(&self) -> usize {
        self.back.len() + self.resting.iter().map(Vec::len).sum::<usize>()
    }

    /// Ends the rest of those records that have had [`REST`], and returns them.
    fn turn(&mut self, now: Millis) -> Vec<u16> {
        if now.0 < self.turned.0 + REST.0 {
            return Vec::new();
        }
        let [rested, resting] = &mut self.resting;
        let ended = std::mem::take(rested);
        std::mem::swap(rested, resting);
        self.back.extend_from_slice(&ended);
        self.turned = now;
        ended
    }

    /// Clears a word of the index. Where no search goes on after it, the marks
    /// before it are of no use any more either.
    fn clear(&mut self, index: &[AtomicU64], mut at: usize) {
        let mask = index.len() - 1;
        if index[(at + 1) & mask].load(Ordering::Relaxed) != EMPTY {
            index[at].store(REMOVED, Ordering::Release);
            self.marks += 1;
            return;
        }
        index[at].store(EMPTY, Ordering::Release);
        loop {
            at = at.wrapping_sub(1) & mask;
            if index[at].load(Ordering::Relaxed) != REMOVED {
                return;
            }
            index[at].store(EMPTY, Ordering::Release);
            self.marks -= 1;
        }
    }
}

/// The flow with that key, if the record is its own. `settled` becomes false if the record is
/// being reused, possibly for the same flow.
#[inline(always)]
pub(super) fn found<'s>(slot: Slot<'s>, key: &FlowKey, settled: &mut bool) -> Option<Found<'s>> {
    let life = slot.life();
    let nature = slot.nature_of(key)?;
    *settled = slot.is_still(life) && !life.is_vacant();
    settled.then_some(Found { slot, life, nature })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InterfaceIx;
    use std::sync::{Arc, mpsc};
    use std::time::Duration;

    #[test]
    fn a_reader_gets_an_answer_while_a_rebuild_of_the_index_never_ends() {
        let shard = Arc::new(Shard::new(10));
        shard.make_room(&mut shard.lock());
        // The state that a writer leaves if it is pre-empted or panics during a change.
        shard.order.fetch_add(1, Ordering::AcqRel);
        let (tell, told) = mpsc::channel();
        let reader = Arc::clone(&shard);
        std::thread::spawn(move || {
            let frame = [0x45; 24];
            let key = FlowKey::guess(InterfaceIx::new(0), &frame).unwrap();
            let home = Home { bucket: 0, tag: 0 };
            tell.send(reader.find(&key, home).is_none()).unwrap();
        });
        let answer = told.recv_timeout(Duration::from_secs(30));
        assert_eq!(
            answer,
            Ok(true),
            "the reader waits for the rebuild for ever"
        );
    }
}
