//! The connection allowance (aws-semantics §3.6): how many flows an entity may
//! track at a time, on all its interfaces together.

use std::sync::atomic::{AtomicU32, Ordering};

use dashmap::DashMap;

use crate::model::InterfaceIx;
use crate::policy::Allowance;

/// How much of each allowance is used, by the interface that stands for its entity.
#[derive(Debug, Default)]
pub(super) struct Allowances {
    used: DashMap<InterfaceIx, AtomicU32>,
}

impl Allowances {
    /// Takes a place, if one is left; [`Self::give_back`] gives it back.
    pub(super) fn charge(&self, allowance: Allowance) -> bool {
        if !self.used.contains_key(&allowance.owner) {
            self.used.entry(allowance.owner).or_default();
        }
        let Some(used) = self.used.get(&allowance.owner) else {
            return false;
        };
        used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            (used < allowance.limit).then_some(used + 1)
        })
        .is_ok()
    }

    /// Gives a place back that was taken of this owner's allowance.
    pub(super) fn give_back(&self, owner: InterfaceIx) {
        if let Some(used) = self.used.get(&owner) {
            used.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn available(&self, allowance: Allowance) -> u32 {
        let used = self
            .used
            .get(&allowance.owner)
            .map_or(0, |used| used.load(Ordering::Relaxed));
        allowance.limit.saturating_sub(used)
    }
}
