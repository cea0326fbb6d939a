//! Who carries which group elsewhere: addresses from rule files, and names that are
//! resolved again and again.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::{DeclaredMember, MemberName};
use crate::model::GroupIx;
use crate::observe::{MemberAddress, MemberStatus};

/// Minimum time that an address counts after the last answer that contained it, even if its TTL
/// is shorter. A decision: a repeated lookup may fail once, and with rotating answers, addresses
/// must not come and go with each answer.
pub const COUNTS_AT_LEAST: Duration = Duration::from_secs(10);
/// Maximum time, even if the TTL is longer, because another host may soon get the address. A
/// decision: the TTL of AWS's load balancers. Docker's resolver gives 600 s for a container that
/// may be gone in one second.
pub const COUNTS_AT_MOST: Duration = Duration::from_secs(60);
/// Maximum number of addresses of one name; those that expire first are left out.
const MAX_ADDRESSES: usize = 1024;

/// Names with their addresses.
#[derive(Debug, Clone, Default)]
pub struct Names {
    known: BTreeMap<String, Known>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    /// Each address with the time at which it expires.
    addresses: BTreeMap<IpAddr, Duration>,
    /// The error of the latest lookup, if it failed.
    trouble: Option<String>,
}

/// The result of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The name has these addresses, each with its TTL.
    Found(Vec<(IpAddr, Duration)>),
    /// The name has no address, for this reason.
    Nothing(String),
    /// The name can't be resolved now, for this reason.
    Failed(String),
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

    /// Applies the answer for `name` that arrived at `at`. Returns the change, if any.
    pub fn learn(&mut self, name: &str, answer: Answer, at: Duration) -> Option<Change> {
        let known = self.known.get_mut(name)?;
        match answer {
            Answer::Found(found) => {
                let before: Vec<_> = known.addresses.keys().copied().collect();
                for (address, ttl) in found {
                    let until = at + ttl.clamp(COUNTS_AT_LEAST, COUNTS_AT_MOST);
                    let counts = known.addresses.entry(address).or_default();
                    *counts = until.max(*counts);
                }
                known.leave_out();
                let same = known.addresses.keys().copied().eq(before);
                let was_in_trouble = known.trouble.take().is_some();
                (!same || was_in_trouble).then(|| known.resolved(name))
            }
            Answer::Nothing(why) => {
                let lost = !std::mem::take(&mut known.addresses).is_empty();
                known.fails(name, why, lost)
            }
            Answer::Failed(why) => known.fails(name, why, false),
        }
    }

    /// Removes the addresses that have expired at `now`. Returns the changes.
    pub fn expire(&mut self, now: Duration) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, known) in &mut self.known {
            let before = known.addresses.len();
            known.addresses.retain(|_, until| *until > now);
            if known.addresses.len() == before {
                continue;
            }
            if known.addresses.is_empty() {
                let why = known.trouble.take();
                let why = why.unwrap_or_else(|| "no answer for too long".to_owned());
                changes.extend(known.fails(name, why, true));
            } else {
                changes.push(known.resolved(name));
            }
        }
        changes
    }

    /// Returns the state of each name at `now`.
    pub fn status(&self, now: Duration) -> Vec<MemberStatus> {
        let status = |(name, known): (&String, &Known)| MemberStatus {
            name: name.clone(),
            addresses: (known.addresses.iter())
                .map(|(address, until)| MemberAddress {
                    address: *address,
                    counts_for_ms: u64::try_from(until.saturating_sub(now).as_millis())
                        .unwrap_or(u64::MAX),
                })
                .collect(),
            trouble: known.trouble.clone(),
        };
        self.known.iter().map(status).collect()
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
                    let addresses = self.known.get(name).map(|known| known.addresses.keys());
                    for address in addresses.into_iter().flatten() {
                        add(*address, member.group);
                    }
                }
            }
        }
        groups
    }
}

impl Known {
    /// Removes the addresses beyond the maximum.
    fn leave_out(&mut self) {
        let beyond = self.addresses.len().saturating_sub(MAX_ADDRESSES);
        if beyond == 0 {
            return;
        }
        let mut by_time: Vec<_> = self
            .addresses
            .iter()
            .map(|(it, until)| (*until, *it))
            .collect();
        by_time.sort_unstable();
        for (_, address) in &by_time[..beyond] {
            self.addresses.remove(address);
        }
    }

    fn resolved(&self, name: &str) -> Change {
        Change::Resolved {
            name: name.to_owned(),
            addresses: self.addresses.keys().copied().collect(),
        }
    }

    /// Records a failed lookup. It is reported if the reason is new, or if the last addresses are
    /// lost.
    fn fails(&mut self, name: &str, why: String, lost: bool) -> Option<Change> {
        let first = self.trouble.replace(why.clone()).is_none();
        (first || lost).then(|| Change::Failed {
            name: name.to_owned(),
            why,
            keeps: !self.addresses.is_empty(),
        })
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

    fn found(ttl: u64, addresses: &[&str]) -> Answer {
        Answer::Found(addresses.iter().map(|it| (ip(it), at(ttl))).collect())
    }

    fn failed() -> Answer {
        Answer::Failed("no answer".to_owned())
    }

    fn watched(members: &[DeclaredMember]) -> Names {
        let mut names = Names::default();
        names.watch(members);
        names
    }

    fn addresses(names: &Names) -> Vec<String> {
        let groups = names.groups(&[member(0, "web")]);
        groups.keys().map(IpAddr::to_string).collect()
    }

    #[test]
    fn a_name_carries_its_groups_under_every_address() {
        let members = [member(0, "web"), member(1, "web"), member(1, "10.0.0.9")];
        let mut names = watched(&members);
        assert_eq!(names.names(), ["web"]);
        let both = ["10.0.0.1", "fd00::1"];
        let change = names.learn("web", found(5, &both), at(0));
        assert_eq!(
            change,
            Some(Change::Resolved {
                name: "web".into(),
                addresses: both.map(ip).to_vec()
            })
        );
        assert_eq!(names.learn("web", found(5, &both), at(1)), None, "no news");
        let groups = names.groups(&members);
        let two = vec![GroupIx::new(0), GroupIx::new(1)];
        assert_eq!(groups[&ip("10.0.0.1")], two);
        assert_eq!(groups[&ip("fd00::1")], two);
        assert_eq!(groups[&ip("10.0.0.9")], [GroupIx::new(1)]);
    }

    #[test]
    fn addresses_count_by_the_clock_whether_an_answer_comes_or_not() {
        // The TTL, and the seconds that an address counts.
        for (ttl, counts) in [(0, 10), (5, 10), (30, 30), (60, 60), (600, 60)] {
            let mut names = watched(&[member(0, "web")]);
            names.learn("web", found(ttl, &["10.0.0.1"]), at(0));
            assert_eq!(names.expire(at(counts - 1)), []);
            assert_eq!(addresses(&names), ["10.0.0.1"]);
            let lost = names.expire(at(counts));
            assert!(
                matches!(lost[..], [Change::Failed { keeps: false, .. }]),
                "{ttl}: {lost:?}"
            );
            assert!(addresses(&names).is_empty());
            assert_eq!(names.expire(at(counts + 1)), []);
        }
    }

    #[test]
    fn a_failure_keeps_the_addresses_until_their_time_and_is_said_once() {
        let mut names = watched(&[member(0, "web")]);
        names.learn("web", found(5, &["10.0.0.1"]), at(0));
        let keeps = |change| matches!(change, Some(Change::Failed { keeps: true, .. }));
        assert!(keeps(names.learn("web", failed(), at(5))));
        assert!(names.learn("web", failed(), at(8)).is_none(), "said once");
        let lost = names.expire(at(10));
        assert!(matches!(lost[..], [Change::Failed { keeps: false, .. }]));
        assert!(names.learn("web", failed(), at(11)).is_none(), "said once");
        assert_eq!(
            names.status(at(11))[0].trouble.as_deref(),
            Some("no answer")
        );
        let back = names.learn("web", found(5, &["10.0.0.2"]), at(11));
        assert!(matches!(back, Some(Change::Resolved { .. })));
    }

    #[test]
    fn a_name_that_has_no_address_any_more_loses_its_addresses_at_once() {
        let mut names = watched(&[member(0, "web")]);
        names.learn("web", found(60, &["10.0.0.1"]), at(0));
        let lost = names.learn("web", Answer::Nothing("no such name".into()), at(1));
        assert!(matches!(lost, Some(Change::Failed { keeps: false, .. })));
        assert!(addresses(&names).is_empty());
    }

    #[test]
    fn addresses_of_rotating_answers_do_not_come_and_go() {
        let mut names = watched(&[member(0, "web")]);
        let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
        for second in 0..60 {
            let answer = found(5, &[all[second % 3]]);
            names.learn("web", answer, at(second as u64));
            assert!(second < 3 || names.expire(at(second as u64)).is_empty());
            assert!(second < 3 || addresses(&names) == all);
        }
        // An address that is in no more answers is removed once its time has passed.
        for second in 60..70 {
            names.learn("web", found(5, &all[..2]), at(second));
            names.expire(at(second));
        }
        assert_eq!(addresses(&names), all[..2]);
    }

    #[test]
    fn the_addresses_of_a_name_are_bounded_and_the_latest_count() {
        let mut names = watched(&[member(0, "web")]);
        for round in 0..3_u8 {
            let many = (0..2000_u32).map(|n| {
                let [.., high, low] = n.to_be_bytes();
                (IpAddr::from([10, round, high, low]), at(60))
            });
            names.learn("web", Answer::Found(many.collect()), at(round.into()));
            let kept = addresses(&names);
            assert_eq!(kept.len(), MAX_ADDRESSES);
            let latest = format!("10.{round}.");
            assert!(kept.iter().all(|address| address.starts_with(&latest)));
        }
    }

    #[test]
    fn names_that_files_no_longer_mention_are_forgotten_and_others_kept() {
        let mut names = watched(&[member(0, "web"), member(0, "db")]);
        names.learn("web", found(5, &["10.0.0.1"]), at(0));
        names.watch(&[member(1, "web")]);
        assert_eq!(names.names(), ["web"]);
        assert_eq!(names.groups(&[member(1, "web")]).len(), 1);
        assert_eq!(names.learn("db", found(5, &["10.0.0.3"]), at(1)), None);
    }
}
