//! AWS's quotas, as far as a lab can meet them: their sizes, and how what is
//! declared counts against them.
//!
//! The sizes are the defaults of "Amazon VPC quotas" (aws-semantics §5). Most
//! can be raised on request, so whoever has them raised may have them as
//! warnings ([`Quotas::Warn`](super::Quotas)).

use super::acl::AclDecl;
use super::diagnostic::{Report, quoted};
use super::entities::InterfaceDecl;
use super::groups::{GroupDecl, ListDecl};
use super::names::Family;
use super::route::TableDecl;
use super::source::Span;
use crate::model::{AclEntry, Direction, Peer, SecurityGroupRule};

/// Security groups in a Region, `default` among them.
const GROUPS: usize = 2500;
/// Rules of a group in one direction, for each family. Whether a rule that
/// references a group counts for one family or both AWS doesn't say; here it
/// counts for both. One that references a prefix list counts as many as the
/// list may hold.
const RULES_PER_GROUP: usize = 60;
/// Security groups on one interface.
pub const GROUPS_PER_INTERFACE: usize = 5;
/// What AWS raises that to at most. More are refused elsewhere, as no quota admits them.
pub const MOST_GROUPS_PER_INTERFACE: usize = 16;
/// Rules per group times groups per interface: AWS raises neither quota past
/// this.
const RULES_TIMES_GROUPS: usize = 1000;
/// Prefix lists in a Region.
const LISTS: usize = 100;
/// Entries that a prefix list may hold.
pub(super) const ENTRIES_PER_LIST: usize = 1000;
/// References to one prefix list from security group rules.
const REFERENCES_PER_LIST: usize = 10_000;
/// Network ACLs of a VPC, `default` among them.
const ACLS: usize = 200;
/// Entries of a network ACL in one direction, for each family, the `*` entry
/// among them (as AWS's text of 2023 has it; later ones don't say). Can be
/// raised to 40.
const ENTRIES_PER_ACL: usize = 20;
/// Route tables of a VPC, `main` among them.
const TABLES: usize = 200;
/// Routes of a table besides the local ones, for each family.
const ROUTES_PER_TABLE: usize = 500;
/// Network interfaces in a Region.
const INTERFACES: usize = 5000;

/// Everything that counts.
#[derive(Debug)]
pub(super) struct Declared<'a, 'n> {
    pub(super) groups: &'a [GroupDecl<'n>],
    pub(super) lists: &'a [ListDecl],
    pub(super) acls: &'a [AclDecl],
    pub(super) tables: &'a [TableDecl<'n>],
    pub(super) interfaces: &'a [InterfaceDecl],
}

/// Holds what is declared to the quotas, but for those that are checked where
/// a list is read: the groups of an interface and the entries of a prefix list.
pub(super) fn check(report: &mut Report, declared: &Declared<'_, '_>) {
    let groups = declared.groups.iter().map(|decl| decl.key);
    check_count(report, groups, GROUPS, "security groups", "a Region");
    let lists = declared.lists.iter().map(|decl| Some(decl.key));
    check_count(report, lists, LISTS, "prefix lists", "a Region");
    let acls = declared.acls.iter().map(|decl| decl.key);
    check_count(report, acls, ACLS, "network ACLs", "a VPC");
    let tables = declared.tables.iter().map(|decl| decl.key);
    check_count(report, tables, TABLES, "route tables", "a VPC");
    let interfaces = declared
        .interfaces
        .iter()
        .filter(|decl| !decl.interface.is_external())
        .map(|decl| Some(decl.span));
    check_count(
        report,
        interfaces,
        INTERFACES,
        "network interfaces",
        "a Region",
    );

    check_rules(report, declared);
    check_references(report, declared);
    check_entries(report, declared.acls);
    check_routes(report, declared.tables);
}

/// Blames the first thing too many; what AWS adds by itself has no place, and
/// comes last.
fn check_count(
    report: &mut Report,
    things: impl Iterator<Item = Option<Span>> + Clone,
    quota: usize,
    what: &str,
    whose: &str,
) {
    let count = things.clone().count();
    if count <= quota {
        return;
    }
    let Some(extra) = things.flatten().take(quota + 1).last() else {
        return;
    };
    report.quota(
        extra,
        format!("the lab has {count} {what}; AWS's quota for {whose} is {quota}"),
        "remove some, or split the lab",
    );
}

/// How many of each family.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    v4: usize,
    v6: usize,
}

impl Count {
    /// `None` counts for both families.
    fn add(&mut self, family: Option<Family>, count: usize) {
        if family != Some(Family::V6) {
            self.v4 += count;
        }
        if family != Some(Family::V4) {
            self.v6 += count;
        }
    }

    /// What exceeds the quota, by family.
    fn over(self, quota: usize) -> impl Iterator<Item = (Family, usize)> {
        [(Family::V4, self.v4), (Family::V6, self.v6)]
            .into_iter()
            .filter(move |(_, count)| *count > quota)
    }
}

fn count_rules(rules: &[SecurityGroupRule], lists: &[ListDecl]) -> Count {
    let mut count = Count::default();
    for rule in rules {
        match rule.peer {
            Peer::Ipv4(_) => count.add(Some(Family::V4), 1),
            Peer::Ipv6(_) => count.add(Some(Family::V6), 1),
            Peer::Group(_) => count.add(None, 1),
            Peer::PrefixList(ix) => {
                let list = &lists[ix.ix()];
                count.add(list.family, list.size);
            }
        }
    }
    count
}

fn check_rules(report: &mut Report, declared: &Declared<'_, '_>) {
    let mut most: Option<(usize, Span)> = None;
    for decl in declared.groups {
        for direction in [Direction::Ingress, Direction::Egress] {
            let Some(key) = decl.direction(direction) else {
                continue;
            };
            let count = count_rules(decl.group.rules(direction), declared.lists);
            let larger = count.v4.max(count.v6);
            if most.is_none_or(|(most, _)| larger > most) {
                most = Some((larger, key));
            }
            for (family, count) in count.over(RULES_PER_GROUP) {
                report.quota(
                    key,
                    format!(
                        "`{direction}` of security group {} has {count} {} rules; AWS's quota is {RULES_PER_GROUP}",
                        quoted(&decl.group.name),
                        family.as_str()
                    ),
                    "spread them over several groups; a rule that references a group counts for both families, one with a prefix list as many as the list may hold",
                );
            }
        }
    }
    let widest = declared
        .interfaces
        .iter()
        .max_by_key(|decl| decl.interface.groups().len());
    let (Some((rules, key)), Some(widest)) = (most, widest) else {
        return;
    };
    let groups = widest.interface.groups().len();
    if rules * groups > RULES_TIMES_GROUPS {
        report
            .quota(
                key,
                format!(
                    "{rules} rules in a group and {groups} groups on an interface make {}; AWS raises the two quotas to a product of {RULES_TIMES_GROUPS} at most",
                    rules * groups
                ),
                "have fewer rules in this group, or fewer groups on each interface",
            )
            .also(widest.span, "has the most groups");
    }
}

fn check_references(report: &mut Report, declared: &Declared<'_, '_>) {
    let mut references = vec![0_usize; declared.lists.len()];
    for decl in declared.groups {
        for rule in decl.group.ingress.iter().chain(&decl.group.egress) {
            if let Peer::PrefixList(ix) = rule.peer {
                references[ix.ix()] += 1;
            }
        }
    }
    for (decl, count) in declared.lists.iter().zip(references) {
        if count > REFERENCES_PER_LIST {
            report.quota(
                decl.key,
                format!(
                    "{count} rules reference prefix list {}; AWS's quota is {REFERENCES_PER_LIST}",
                    quoted(&decl.list.name)
                ),
                "have several groups share the rules that reference it",
            );
        }
    }
}

fn check_entries(report: &mut Report, acls: &[AclDecl]) {
    let directions = [Direction::Ingress, Direction::Egress];
    for decl in acls {
        for (direction, key) in directions.into_iter().zip(decl.lists) {
            let Some(key) = key else { continue };
            // The `*` entry of each family.
            let mut count = Count { v4: 1, v6: 1 };
            for AclEntry { cidr, .. } in decl.acl.entries(direction) {
                count.add(Some(Family::of(cidr)), 1);
            }
            for (family, count) in count.over(ENTRIES_PER_ACL) {
                report.quota(
                    key,
                    format!(
                        "`{direction}` of network ACL {} has {count} {} entries with the `*` one; AWS's quota is {ENTRIES_PER_ACL}",
                        quoted(&decl.acl.name),
                        family.as_str()
                    ),
                    "join neighbouring blocks or port ranges; AWS raises this quota to 40 at most",
                );
            }
        }
    }
}

fn check_routes(report: &mut Report, tables: &[TableDecl<'_>]) {
    for decl in tables {
        let Some(key) = decl.key else { continue };
        let mut count = Count::default();
        for route in &decl.table.routes {
            count.add(Some(Family::of(&route.destination)), 1);
        }
        for (family, count) in count.over(ROUTES_PER_TABLE) {
            report.quota(
                key,
                format!(
                    "route table {} has {count} {} routes; AWS's quota is {ROUTES_PER_TABLE}",
                    quoted(&decl.table.name),
                    family.as_str()
                ),
                "join neighbouring blocks; AWS raises this quota to 1000 at most",
            );
        }
    }
}
