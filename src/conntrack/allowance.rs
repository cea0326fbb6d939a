//! The connection allowance (aws-semantics §3.6): how many flows an entity may
//! track at a time, on all its interfaces together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::DashMap;

use crate::model::InterfaceIx;
use crate::policy::Allowance;

/// How much of each allowance is used.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    used: DashMap<InterfaceIx, Arc<AtomicU32>>,
}

/// A place in an allowance; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Charge(Arc<AtomicU32>);

impl Allowances {
    /// Takes a place, if one is left.
    pub(super) fn charge(&self, allowance: Allowance) -> Option<Charge> {
        let used = Arc::clone(&self.used.entry(allowance.owner).or_default());
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            (used < allowance.limit).then_some(used + 1)
        })
        .ok()?;
        Some(Charge(used))
    }

    pub(super) fn available(&self, allowance: Allowance) -> u32 {
        let used = self
            .used
            .get(&allowance.owner)
            .map_or(0, |used| used.load(Ordering::Relaxed));
        allowance.limit.saturating_sub(used)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
