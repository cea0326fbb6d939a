//! What verdicts say of a rule: whose it is, what it says, where it stands.

use std::fmt;

use crate::model::{Direction, Place, RuleId, SecurityGroup, SecurityGroupRule, Traffic};

/// A rule as verdicts name it. It is the declared one: a policy shares the groups of
/// the model that it was compiled from, and has no texts of its own.
#[derive(Clone, Copy)]
pub struct CompiledRule<'p> {
    group: &'p SecurityGroup,
    direction: Direction,
    rule: &'p SecurityGroupRule,
}

impl<'p> CompiledRule<'p> {
    /// The rules of a group in one direction, in the order declared.
    pub(super) fn all_of(
        group: &'p SecurityGroup,
        direction: Direction,
    ) -> impl Iterator<Item = Self> {
        group.rules(direction).iter().map(move |rule| Self {
            group,
            direction,
            rule,
        })
    }

    /// The `number`-th of them.
    pub(super) fn of(
        group: &'p SecurityGroup,
        direction: Direction,
        number: usize,
    ) -> Option<Self> {
        Some(Self {
            group,
            direction,
            rule: group.rules(direction).get(number)?,
        })
    }

    /// `sgr-…`.
    pub fn id(self) -> RuleId {
        self.rule.id
    }

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
        self.rule.traffic
    }

    /// Its peer, as the user wrote it.
    pub fn peer(self) -> &'p str {
        &self.rule.peer_text
    }

    /// The user's description; may be empty.
    pub fn description(self) -> &'p str {
        &self.rule.description
    }

    /// Where it is declared.
    pub fn place(self) -> &'p Place {
        &self.rule.place
    }
}

impl fmt::Debug for CompiledRule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledRule")
            .field("id", &self.id())
            .field("group", &self.group_name())
            .field("direction", &self.direction)
            .field("traffic", &self.traffic())
            .field("peer", &self.peer())
            .finish_non_exhaustive()
    }
}
