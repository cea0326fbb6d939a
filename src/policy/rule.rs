//! What verdicts say of a rule: whose it is, what it says, where it stands.

use std::fmt;
use std::sync::Arc;

use crate::model::{Direction, Place, RuleId, SecurityGroup, SecurityGroupRule, Traffic};

use super::matcher::index;

/// A rule as verdicts name it.
#[derive(Clone)]
pub struct CompiledRule {
    /// `sgr-…`.
    pub id: RuleId,
    number: u32,
    group: Arc<DeclaredGroup>,
}

/// A group's rules in one direction, apart from what they let pass: that may
/// stay while these change, and the other way round. The texts of all rules are
/// one allocation, as there may be a hundred thousand of them.
struct DeclaredGroup {
    id: String,
    name: String,
    direction: Direction,
    rules: Box<[DeclaredRule]>,
    texts: Box<str>,
}

struct DeclaredRule {
    traffic: Traffic,
    place: Place,
    /// Where in the texts its peer begins, and its description begins and ends.
    peer: u32,
    description: u32,
    end: u32,
}

impl CompiledRule {
    /// All rules of a group in one direction.
    pub(super) fn all_of(group: &SecurityGroup, direction: Direction) -> Arc<[Self]> {
        let rules = group.rules(direction);
        let mut end = 0;
        let mut after = |text: &str| {
            end += text.len();
            index(end)
        };
        let declared = rules
            .iter()
            .map(|rule| DeclaredRule {
                traffic: rule.traffic,
                place: rule.place.clone(),
                peer: after(""),
                description: after(&rule.peer_text),
                end: after(&rule.description),
            })
            .collect();
        let declared = Arc::new(DeclaredGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            direction,
            rules: declared,
            texts: texts(rules).into_boxed_str(),
        });
        rules
            .iter()
            .enumerate()
            .map(|(number, rule)| Self {
                id: rule.id,
                number: index(number),
                group: Arc::clone(&declared),
            })
            .collect()
    }

    /// Whether `rules` are those of the group in that direction, word by word.
    pub(super) fn are_all_of(rules: &[Self], group: &SecurityGroup, direction: Direction) -> bool {
        let declared = group.rules(direction);
        let Some(first) = rules.first() else {
            return declared.is_empty();
        };
        let same = |(own, declared): (&Self, &SecurityGroupRule)| {
            own.id == declared.id
                && own.traffic() == declared.traffic
                && *own.place() == declared.place
                && own.peer().len() == declared.peer_text.len()
                && own.description().len() == declared.description.len()
        };
        first.group.id == group.id
            && first.group.name == group.name
            && rules.len() == declared.len()
            && rules.iter().zip(declared).all(same)
            // All at once: short texts lie all over the heap, and are sooner
            // copied than compared one by one.
            && *first.group.texts == *texts(declared)
    }

    /// `sg-…` of its group.
    pub fn group_id(&self) -> &str {
        &self.group.id
    }

    /// Name of its group.
    pub fn group_name(&self) -> &str {
        &self.group.name
    }

    /// The direction that it guards.
    pub fn direction(&self) -> Direction {
        self.group.direction
    }

    /// What it covers.
    pub fn traffic(&self) -> Traffic {
        self.declared().traffic
    }

    /// Its peer, as the user wrote it.
    pub fn peer(&self) -> &str {
        let declared = self.declared();
        self.text(declared.peer, declared.description)
    }

    /// The user's description; may be empty.
    pub fn description(&self) -> &str {
        let declared = self.declared();
        self.text(declared.description, declared.end)
    }

    /// Where it is declared.
    pub fn place(&self) -> &Place {
        &self.declared().place
    }

    fn declared(&self) -> &DeclaredRule {
        &self.group.rules[self.number as usize]
    }

    fn text(&self, begin: u32, end: u32) -> &str {
        &self.group.texts[begin as usize..end as usize]
    }
}

/// What the rules say in words, one after the other.
fn texts(rules: &[SecurityGroupRule]) -> String {
    let length = |rule: &SecurityGroupRule| rule.peer_text.len() + rule.description.len();
    let mut texts = String::with_capacity(rules.iter().map(length).sum());
    for rule in rules {
        texts.push_str(&rule.peer_text);
        texts.push_str(&rule.description);
    }
    texts
}

impl fmt::Debug for CompiledRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledRule")
            .field("id", &self.id)
            .field("group", &self.group.name)
            .field("direction", &self.group.direction)
            .field("traffic", &self.traffic())
            .field("peer", &self.peer())
            .finish_non_exhaustive()
    }
}
