//! What verdicts say of a rule: whose it is, what it says, where it stands.

use std::fmt;

use crate::model::{Direction, Place, RuleId, SecurityGroup, SecurityGroupRule, Traffic};

use super::matcher::RuleNumber;

/// A rule as verdicts name it. It is the declared one: a policy shares the groups of
/// the model that it was compiled from, and has no texts of its own.
#[derive(Clone, Copy)]
pub struct CompiledRule<'p> {
    /// `sgr-…`.
    pub id: RuleId,
    pub(super) group: &'p SecurityGroup,
    pub(super) direction: Direction,
    pub(super) number: RuleNumber,
}

impl<'p> CompiledRule<'p> {
    /// `sg-…` of its group.
    pub fn group_id(self) -> &'p str {
        &self.group.id
    }

    /// Name of its group.
    pub fn group_name(self) -> &'p str {
        &self.group.name
    }

    /// The direction that it guards.
    pub fn direction(self) -> Direction {
        self.direction
    }

    /// What it covers.
    pub fn traffic(self) -> Traffic {
        self.declared().traffic
    }

    /// Its peer, as the user wrote it.
    pub fn peer(self) -> &'p str {
        &self.declared().peer_text
    }

    /// The user's description; may be empty.
    pub fn description(self) -> &'p str {
        &self.declared().description
    }

    /// Where it is declared.
    pub fn place(self) -> &'p Place {
        &self.declared().place
    }

    fn declared(self) -> &'p SecurityGroupRule {
        &self.group.rules(self.direction)[self.number as usize]
    }
}

impl fmt::Debug for CompiledRule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledRule")
            .field("id", &self.id)
            .field("group", &self.group_name())
            .field("direction", &self.direction)
            .field("traffic", &self.traffic())
            .field("peer", &self.peer())
            .finish_non_exhaustive()
    }
}
