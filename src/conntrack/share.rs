//! The number of entries that each entity holds.

use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use crossbeam::utils::CachePadded;

use crate::model::InterfaceIx;

/// A counter for each entity, each on its own cache line, indexed by the entity's first
/// interface. Lookups take no lock, because counters never move.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// Block `n` has the counters from `2^n - 1` on, twice as many as the block before it.
    blocks: [OnceLock<Box<[CachePadded<AtomicUsize>]>>; 23],
}

impl Shares {
    /// Returns the entity's counter.
    pub(super) fn of(&self, entity: InterfaceIx) -> &AtomicUsize {
        let number = entity.ix() + 1;
        let block = number.ilog2();
        let counters = self.blocks[block as usize]
            .get_or_init(|| (0..1 << block).map(|_| CachePadded::default()).collect());
        &counters[number - (1 << block)]
    }
}
