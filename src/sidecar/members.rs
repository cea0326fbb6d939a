//! Who carries which group elsewhere: addresses from rule files, and names that are
//! resolved again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::{DeclaredMember, MemberName};
use crate::model::GroupIx;

/// How long a name keeps its last addresses while it can't be resolved. Short, as an
/// address may be somebody else's soon; a resolver that is asked again may miss once.
pub const KEEP: Duration = Duration::from_secs(10);
/// Most addresses of one name; those beyond it are left out.
const MOST: usize = 1024;

/// Names with their addresses.
#[derive(Debug, Default)]
pub struct Names {
    known: BTreeMap<String, Known>,
}

#[derive(Debug, Default)]
struct Known {
    addresses: BTreeSet<IpAddr>,
    /// When it was resolved for the last time.
    since: Option<Duration>,
    /// What went wrong when it was asked for the last time.
    trouble: Option<String>,
}

/// What became of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It has these addresses now.
    Resolved {
        /// The name.
        name: String,
        /// Its addresses.
        addresses: Vec<IpAddr>,
    },
    /// It can't be resolved any more.
    Failed {
        /// The name.
        name: String,
        /// Why.
        why: String,
        /// Whether its last addresses still count.
        keeps: bool,
    },
}

impl Names {
    /// The names that `members` mention; what was known of them stays, all else is
    /// forgotten.
    pub fn watch(&mut self, members: &[DeclaredMember]) {
        let mut before = std::mem::take(&mut self.known);
        for member in members {
            if let MemberName::Name(name) = &member.who {
                let known = before.remove(name);
                self.known
                    .entry(name.clone())
                    .or_insert_with(|| known.unwrap_or_default());
            }
        }
    }

    /// The names, to be resolved.
    pub fn names(&self) -> Vec<String> {
        self.known.keys().cloned().collect()
    }

    /// Takes what resolving `name` gave at `now`; what changed, if anything did.
    pub fn learn(
        &mut self,
        name: &str,
        answer: io::Result<Vec<IpAddr>>,
        now: Duration,
    ) -> Option<Change> {
        let known = self.known.get_mut(name)?;
        match answer {
            Ok(addresses) => {
                let addresses: BTreeSet<IpAddr> = addresses.into_iter().take(MOST).collect();
                let same = addresses == known.addresses && known.trouble.is_none();
                let first = known.since.is_none();
                known.addresses = addresses;
                known.since = Some(now);
                known.trouble = None;
                (!same || first).then(|| Change::Resolved {
                    name: name.to_owned(),
                    addresses: known.addresses.iter().copied().collect(),
                })
            }
            Err(error) => {
                let fresh = known.since.is_some_and(|since| now < since + KEEP);
                let keeps = fresh && !known.addresses.is_empty();
                let lost = !keeps && !known.addresses.is_empty();
                if lost {
                    known.addresses.clear();
                }
                let first = known.trouble.is_none();
                let why = error.to_string();
                known.trouble = Some(why.clone());
                (first || lost).then(|| Change::Failed {
                    name: name.to_owned(),
                    why,
                    keeps,
                })
            }
        }
    }

    /// Names that have no addresses, with the reason where one is known.
    pub fn unresolved(&self) -> Vec<(String, String)> {
        let empty = |(name, known): (&String, &Known)| {
            let why = || known.trouble.clone().unwrap_or_default();
            known.addresses.is_empty().then(|| (name.clone(), why()))
        };
        self.known.iter().filter_map(empty).collect()
    }

    /// The groups of every address, as far as it is known.
    pub fn groups(&self, members: &[DeclaredMember]) -> BTreeMap<IpAddr, Vec<GroupIx>> {
        let mut groups: BTreeMap<IpAddr, Vec<GroupIx>> = BTreeMap::new();
        let mut add = |address: IpAddr, group| {
            let of = groups.entry(address).or_default();
            if !of.contains(&group) {
                of.push(group);
            }
        };
        for member in members {
            match &member.who {
                MemberName::Address(address) => add(*address, member.group),
                MemberName::Name(name) => {
                    let addresses = self.known.get(name).map(|known| &known.addresses);
                    for address in addresses.into_iter().flatten() {
                        add(*address, member.group);
                    }
                }
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn member(group: usize, name: &str) -> DeclaredMember {
        DeclaredMember {
            group: GroupIx::new(group),
            who: match name.parse() {
                Ok(address) => MemberName::Address(address),
                Err(_) => MemberName::Name(name.to_owned()),
            },
        }
    }

    fn failed() -> io::Result<Vec<IpAddr>> {
        Err(io::Error::other("no answer"))
    }

    #[test]
    fn a_name_carries_its_groups_under_every_address() {
        let members = [member(0, "web"), member(1, "web"), member(1, "10.0.0.9")];
        let mut names = Names::default();
        names.watch(&members);
        assert_eq!(names.names(), ["web"]);
        let both = vec![ip("10.0.0.1"), ip("fd00::1")];
        let change = names.learn("web", Ok(both.clone()), at(0));
        assert_eq!(
            change,
            Some(Change::Resolved {
                name: "web".into(),
                addresses: both.clone()
            })
        );
        assert_eq!(names.learn("web", Ok(both), at(1)), None, "no news");
        let groups = names.groups(&members);
        let two = vec![GroupIx::new(0), GroupIx::new(1)];
        assert_eq!(groups[&ip("10.0.0.1")], two);
        assert_eq!(groups[&ip("fd00::1")], two);
        assert_eq!(groups[&ip("10.0.0.9")], [GroupIx::new(1)]);
    }

    #[test]
    fn a_name_that_can_not_be_resolved_loses_its_addresses_after_a_while() {
        let members = [member(0, "web")];
        let mut names = Names::default();
        names.watch(&members);
        names.learn("web", Ok(vec![ip("10.0.0.1")]), at(0));
        let keeps = |change| matches!(change, Some(Change::Failed { keeps: true, .. }));
        assert!(keeps(names.learn("web", failed(), at(5))));
        assert_eq!(names.groups(&members).len(), 1);
        assert!(names.learn("web", failed(), at(8)).is_none(), "said once");
        let lost = names.learn("web", failed(), at(10));
        assert!(matches!(lost, Some(Change::Failed { keeps: false, .. })));
        assert!(names.groups(&members).is_empty());
        assert_eq!(names.unresolved(), [("web".into(), "no answer".into())]);
        let back = names.learn("web", Ok(vec![ip("10.0.0.2")]), at(11));
        assert!(matches!(back, Some(Change::Resolved { .. })));
    }

    #[test]
    fn a_name_that_moves_leaves_its_old_address_at_once() {
        let members = [member(0, "web")];
        let mut names = Names::default();
        names.watch(&members);
        names.learn("web", Ok(vec![ip("10.0.0.1")]), at(0));
        names.learn("web", Ok(vec![ip("10.0.0.2")]), at(1));
        let groups = names.groups(&members);
        assert_eq!(groups.keys().copied().collect::<Vec<_>>(), [ip("10.0.0.2")]);
    }

    #[test]
    fn names_that_files_no_longer_mention_are_forgotten_and_others_kept() {
        let mut names = Names::default();
        names.watch(&[member(0, "web"), member(0, "db")]);
        names.learn("web", Ok(vec![ip("10.0.0.1")]), at(0));
        names.watch(&[member(1, "web")]);
        assert_eq!(names.names(), ["web"]);
        assert_eq!(names.groups(&[member(1, "web")]).len(), 1);
        assert_eq!(names.learn("db", Ok(vec![ip("10.0.0.3")]), at(1)), None);
    }
}
