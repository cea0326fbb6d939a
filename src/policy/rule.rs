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
        let length = |rule: &SecurityGroupRule| rule.peer_text.len() + rule.description.len();
        let mut texts = String::with_capacity(rules.iter().map(length).sum());
        let mut add = |text: &str| {
            let begin = index(texts.len());
            texts.push_str(text);
            begin
        };
        let declared = rules
            .iter()
            .map(|rule| {
                let peer = add(&rule.peer_text);
                let description = add(&rule.description);
                DeclaredRule {
                    traffic: rule.traffic,
                    place: rule.place.clone(),
                    peer,
                    description,
                    end: add(""),
                }
            })
            .collect();
        let declared = Arc::new(DeclaredGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            direction,
            rules: declared,
            texts: texts.into_boxed_str(),
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
        first.group.id == group.id
            && first.group.name == group.name
            && rules.len() == declared.len()
            && rules.iter().zip(declared).all(|(own, declared)| {
                own.id == declared.id
                    && own.traffic() == declared.traffic
                    && *own.place() == declared.place
                    && own.peer() == declared.peer_text
                    && own.description() == declared.description
            })
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
