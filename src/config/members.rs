//! `members:` of security groups: interfaces elsewhere that carry them, for
//! appliances that have no interfaces of others. See [`load_rules`](super::load_rules).

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::diagnostic::{Report, quoted};
use super::groups::GroupDecl;
use super::source::Span;
use super::yaml::Node;
use crate::model::GroupIx;

/// Longest name (RFC 1035 §2.3.4, without the dot at its end).
const MAX_NAME: usize = 253;
/// Maximum number of names in all groups together. A decision: each name is looked up repeatedly.
const MAX_NAMES: usize = 1024;
const HELP: &str = "write addresses and names, for example `[10.0.1.21, web, api.internal]`";

/// Who carries a group, as a file says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemberName {
    /// The private address of an interface.
    Address(IpAddr),
    /// A host name, for all of its addresses.
    Name(String),
}

/// A member of a security group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredMember {
    /// The group.
    pub group: GroupIx,
    /// Who carries it.
    pub who: MemberName,
}

/// Reads the members of all groups.
pub(super) fn read(report: &mut Report, groups: &[GroupDecl<'_>]) -> Vec<DeclaredMember> {
    let mut members = Vec::new();
    let mut names: HashSet<String> = HashSet::new();
    for (i, group) in groups.iter().enumerate() {
        let Some(node) = group.members() else {
            continue;
        };
        let what = format!("`members` of security group {}", quoted(&group.group.name));
        let Some(items) = report.list(node, &what, HELP) else {
            continue;
        };
        let mut seen: HashMap<MemberName, Span> = HashMap::new();
        for item in items {
            let Some(who) = read_member(report, item, &what) else {
                continue;
            };
            if let Some(first) = seen.insert(who.clone(), item.span) {
                report
                    .error(item.span, format!("{what} name somebody twice"))
                    .also(first, "first named here")
                    .help("remove one of the two");
                continue;
            }
            if let MemberName::Name(name) = &who
                && names.insert(name.clone())
                && names.len() == MAX_NAMES + 1
            {
                report
                    .error(
                        item.span,
                        format!("members have more than {MAX_NAMES} names in all"),
                    )
                    .help("each is looked up again and again: write addresses, or give several hosts one name");
            }
            members.push(DeclaredMember {
                group: GroupIx::new(i),
                who,
            });
        }
    }
    members
}

/// Says of members in a lab's files that they count for nothing there.
pub(super) fn are_of_no_use(report: &mut Report, groups: &[GroupDecl<'_>]) {
    for group in groups {
        if let Some(node) = group.members() {
            report
                .warning(
                    node.span,
                    "`members` count for nothing in a lab, whose entities carry the groups",
                )
                .help("they are for `sgwall sidecar`; write `security_groups` at the entities");
        }
    }
}

fn read_member(report: &mut Report, item: &Node, what: &str) -> Option<MemberName> {
    let text = report.text(item, what, "`10.0.1.21` or `web`")?;
    let looks_numeric = text.contains(':')
        || text.contains('/')
        || text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if looks_numeric {
        return report.address(item, what).map(MemberName::Address);
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if name.len() <= MAX_NAME && name.split('.').all(label) {
        return Some(MemberName::Name(name.to_ascii_lowercase()));
    }
    report
        .error(
            item.span,
            format!(
                "{what}: {} is neither an address nor a host name",
                quoted(text)
            ),
        )
        .help(HELP);
    None
}
