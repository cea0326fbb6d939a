//! A part of the table: records in chunks, and an index of them by hash. Found
//! without a lock, changed under one.
//!
//! The index is an array of words, probed from a hash's home on. A word has sixteen
//! bits of the hash and the record's number, so that a record is hardly ever read in
//! vain. What is removed leaves a mark behind, which the next one that comes by
//! takes; marks at the end of a run are cleared. So words keep their places, and
//! whoever looks finds what is there, but for the seldom moment when many marks make
//! it worth to put all in order anew: who finds nothing then looks again.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock};

use super::slot::{Life, Nature, Slot};
use crate::packet::FlowKey;

/// Records that are allocated at a time.
const CHUNK: usize = 128;
/// Most records of a shard: their numbers are 16 bits wide, and count from 1.
const MAX_RECORDS: usize = u16::MAX as usize;
/// How often a reader looks again at a record that is being given to another.
const PATIENCE: usize = 1 << 10;

/// Index word: nothing has been here, so a search ends.
const EMPTY: u32 = 0;
/// Index word: something was here; its record number, 0, is nobody's.
const REMOVED: u32 = 1 << 16;

/// Where a hash belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Home {
    /// The position in the index at which a search begins.
    pub(super) bucket: usize,
    /// Tells most of those apart that are found there.
    pub(super) tag: u16,
}

/// A part of the table.
#[derive(Debug)]
pub(super) struct Shard {
    /// Odd while the index is being put in order, and another number afterwards.
    order: AtomicU32,
    index: OnceLock<Box<[AtomicU32]>>,
    chunks: Box<[OnceLock<Box<[Slot]>>]>,
    index_length: usize,
    most: usize,
    /// Whoever changes the index, or of a record more than its life, holds this.
    free: Mutex<Free>,
}

/// The records without a tenant: those that were given back, and all from `fresh` on.
#[derive(Debug, Default)]
pub(super) struct Free {
    back: Vec<u16>,
    fresh: usize,
    /// Marks in the index.
    marks: usize,
}

/// A record that was found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'s> {
    pub(super) slot: &'s Slot,
    pub(super) life: Life,
    pub(super) nature: Nature,
}

impl Shard {
    /// A shard for about `records` of them, and half as many more at the most. It
    /// takes memory once it holds some.
    pub(super) fn new(records: usize, capacity: usize) -> Self {
        // Half full when all is well spread, three quarters at the most.
        let index_length = (records.clamp(4, MAX_RECORDS / 2) * 2).next_power_of_two();
        let most = capacity.min(index_length / 4 * 3).min(MAX_RECORDS);
        Self {
            order: AtomicU32::new(0),
            index: OnceLock::new(),
            chunks: (0..most.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect(),
            index_length,
            most,
            free: Mutex::default(),
        }
    }

    /// The record of the flow with that key, whether it has expired or not.
    #[inline]
    pub(super) fn find(&self, key: &FlowKey, home: Home) -> Option<Found<'_>> {
        let index = self.index.get()?;
        let mask = index.len() - 1;
        loop {
            let order = self.order.load(Ordering::Acquire);
            let mut at = home.bucket & mask;
            for _ in 0..index.len() {
                let word = index.get(at)?.load(Ordering::Acquire);
                if word == EMPTY {
                    break;
                }
                if word >> 16 == u32::from(home.tag)
                    && let Some(slot) = self.slot(word)
                    && let Some(found) = found(slot, key)
                {
                    return Some(found);
                }
                at = (at + 1) & mask;
            }
            fence(Ordering::Acquire);
            if order.is_multiple_of(2) && self.order.load(Ordering::Relaxed) == order {
                return None;
            }
            std::hint::spin_loop();
        }
    }

    /// Locks the shard for changes.
    pub(super) fn lock(&self) -> MutexGuard<'_, Free> {
        self.free
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A record for the flow with that key, which has none; `fill` lets it to the
    /// flow. `None` if there is no room.
    pub(super) fn insert(
        &self,
        free: &mut Free,
        home: Home,
        fill: impl FnOnce(&Slot),
    ) -> Option<()> {
        let index = self.index.get_or_init(|| {
            (0..self.index_length)
                .map(|_| AtomicU32::new(EMPTY))
                .collect()
        });
        let mask = index.len() - 1;
        let mut at = home.bucket & mask;
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
        let chunk = self.chunks[number / CHUNK]
            .get_or_init(|| (0..CHUNK).map(|_| Slot::default()).collect());
        fill(&chunk[number % CHUNK]);
        free.marks -= usize::from(index[at].load(Ordering::Relaxed) == REMOVED);
        index[at].store(word(home.tag, number), Ordering::Release);
        Some(())
    }

    /// Removes a record that was found, under the lock; `home` is its key's. Not if its life
    /// has changed since.
    pub(super) fn remove(&self, free: &mut Free, home: Home, found: &Found<'_>) -> bool {
        let Some(index) = self.index.get() else {
            return false;
        };
        let mask = index.len() - 1;
        let mut at = home.bucket & mask;
        for _ in 0..index.len() {
            let word = index[at].load(Ordering::Relaxed);
            if word == EMPTY {
                return false;
            }
            if let Some(number) = number(word)
                && self
                    .slot(word)
                    .is_some_and(|slot| std::ptr::eq(slot, found.slot))
            {
                if !found.slot.vacate(found.life) {
                    return false;
                }
                free.back.push(number);
                free.clear(index, at);
                return true;
            }
            at = (at + 1) & mask;
        }
        false
    }

    /// Puts the index in order if marks take up too much of it; `home` gives a
    /// key's.
    pub(super) fn tidy(&self, free: &mut Free, home: impl Fn(&[u64; 6]) -> Home) {
        let Some(index) = self
            .index
            .get()
            .filter(|_| free.marks > self.index_length / 4)
        else {
            return;
        };
        let there: Vec<(usize, u32)> = index
            .iter()
            .map(|word| word.load(Ordering::Relaxed))
            .filter_map(|word| Some((home(&self.slot(word)?.key_words()).bucket, word)))
            .collect();
        self.order.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::Release);
        for word in index {
            word.store(EMPTY, Ordering::Relaxed);
        }
        let mask = index.len() - 1;
        for (bucket, word) in there {
            let mut at = bucket & mask;
            while index[at].load(Ordering::Relaxed) != EMPTY {
                at = (at + 1) & mask;
            }
            index[at].store(word, Ordering::Release);
        }
        free.marks = 0;
        self.order.fetch_add(1, Ordering::AcqRel);
    }

    /// Every record that has a tenant, those that have expired included.
    pub(super) fn tenants(&self) -> impl Iterator<Item = (&Slot, Life)> {
        self.chunks
            .iter()
            .map_while(|chunk| chunk.get())
            .flat_map(|chunk| chunk.iter())
            .map(|slot| (slot, slot.life()))
            .filter(|(_, life)| !life.is_vacant())
    }

    /// What it takes of memory.
    pub(super) fn bytes(&self) -> usize {
        let index = self.index.get().map_or(0, |index| size_of_val(&**index));
        let chunks = self.chunks.iter().filter_map(|chunk| chunk.get());
        let records: usize = chunks.map(|chunk| size_of_val(&**chunk)).sum();
        let free = self.lock().back.capacity() * size_of::<u16>();
        size_of::<Self>() + size_of_val(&*self.chunks) + index + records + free
    }

    /// The record that an index word speaks of.
    #[inline]
    fn slot(&self, word: u32) -> Option<&Slot> {
        let number = usize::from(number(word)?);
        self.chunks.get(number / CHUNK)?.get()?.get(number % CHUNK)
    }
}

/// The record number in an index word.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "takes the word apart")]
fn number(word: u32) -> Option<u16> {
    (word as u16).checked_sub(1)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a shard has fewer than 2^16 - 1 records"
)]
fn word(tag: u16, number: usize) -> u32 {
    u32::from(tag) << 16 | (number as u32 + 1)
}

impl Free {
    /// Clears a word of the index. Where no search goes on after it, the marks
    /// before it are of no use any more either.
    fn clear(&mut self, index: &[AtomicU32], mut at: usize) {
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

/// The flow with that key, if the record is its own.
#[inline]
fn found<'s>(slot: &'s Slot, key: &FlowKey) -> Option<Found<'s>> {
    for _ in 0..PATIENCE {
        let life = slot.life();
        let nature = slot.nature_of(key)?;
        if slot.is_still(life) && !life.is_vacant() {
            return Some(Found { slot, life, nature });
        }
        // It is being given away, maybe to the same flow anew.
        std::hint::spin_loop();
    }
    None
}
