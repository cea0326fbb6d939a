//! `network_acls:` and their numbered entries.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::diagnostic::{Report, quoted};
use super::foreign;
use super::names::{Family, Lookup};
use super::net::{cidr_help, parse_net};
use super::reader::{Entry, Fields, is_id};
use super::source::Span;
use super::suggest::nearest;
use super::traffic::{self, Holder};
use super::vpc::check_name;
use super::yaml::{Node, Value};
use crate::model::{
    ACL_DENY_REST, AclAction, AclEntry, AclIx, DEFAULT_ACL, Direction, IcmpMatch, MAX_ACL_RULE,
    NetworkAcl, Place, Traffic, derive_id,
};

/// An entry is compared with this many before it, in search of one that covers
/// it. AWS admits 40 at most; a file full of them must not take minutes.
const MAX_COMPARED: usize = 1000;

/// A network ACL and where its parts are.
#[derive(Debug)]
pub(super) struct AclDecl {
    pub(super) acl: NetworkAcl,
    /// `None` for the ACL that AWS adds.
    pub(super) key: Option<Span>,
    pub(super) id: Option<Span>,
    /// To blame for too many entries: `ingress`, then `egress`.
    pub(super) lists: [Option<Span>; 2],
}

/// Reads all network ACLs; `default` is there in the end, declared or not.
pub(super) fn read(
    report: &mut Report,
    entries: &[Entry<'_>],
    lab: &Arc<str>,
    ipv6: bool,
) -> (Vec<AclDecl>, Lookup<AclIx>) {
    let mut decls: Vec<AclDecl> = Vec::with_capacity(entries.len() + 1);
    for entry in entries {
        check_name(report, entry, "a network ACL", "acl-");
        decls.push(read_acl(report, entry));
    }
    if !decls.iter().any(|decl| decl.acl.name == DEFAULT_ACL) {
        let id = derive_id("acl", &[DEFAULT_ACL]);
        decls.push(AclDecl {
            acl: NetworkAcl::implied(id, ipv6, &Place::implied(Arc::clone(lab))),
            key: None,
            id: None,
            lists: [None, None],
        });
    }
    let names = decls
        .iter()
        .map(|decl| (decl.acl.name.as_str(), decl.acl.id.as_str()));
    let lookup = Lookup::new(names, AclIx::new);
    (decls, lookup)
}

fn read_acl(report: &mut Report, entry: &Entry<'_>) -> AclDecl {
    let name = entry.name;
    let what = format!("network ACL {}", quoted(name));
    let mut decl = AclDecl {
        acl: NetworkAcl {
            id: derive_id("acl", &[name]),
            name: name.to_owned(),
            ingress: Vec::new(),
            egress: Vec::new(),
            place: report.place(entry.key),
        },
        key: Some(entry.key),
        id: Some(entry.key),
        lists: [None, None],
    };
    let Some(fields) = report.fields(entry.value, &what, &["id", "ingress", "egress"]) else {
        return decl;
    };
    if let Some(node) = fields.get("id")
        && let Some(id) = report.id(node, &what, "acl")
    {
        decl.acl.id = id;
        decl.id = Some(node.span);
    }
    for (i, direction) in [Direction::Ingress, Direction::Egress]
        .into_iter()
        .enumerate()
    {
        let Some(list) = fields.entry(direction.as_str()) else {
            warn_of_missing(report, entry, direction, &what);
            continue;
        };
        decl.lists[i] = Some(list.key);
        let read = read_entries(report, list.value, direction, &what);
        match direction {
            Direction::Ingress => decl.acl.ingress = read,
            Direction::Egress => decl.acl.egress = read,
        }
    }
    decl
}

/// A group without `egress` lets everything out, an ACL nothing.
fn warn_of_missing(report: &mut Report, entry: &Entry<'_>, direction: Direction, what: &str) {
    let happens = match direction {
        Direction::Ingress => "enters its subnets",
        Direction::Egress => "leaves its subnets, replies included",
    };
    report
        .warning(
            entry.key,
            format!(
                "{what} has no `{direction}`, so nothing {happens}: its `*` entry denies the rest"
            ),
        )
        .help(format!(
            "write entries under `{direction}`, or `{direction}: []` if that is meant"
        ));
}

fn read_entries(
    report: &mut Report,
    node: &Node,
    direction: Direction,
    what: &str,
) -> Vec<AclEntry> {
    // Unlike a group's, an ACL's empty list means what a missing one means.
    if node.is_null() {
        return Vec::new();
    }
    let what = format!("`{direction}` of {what}");
    let (side, _) = sides(direction);
    let help = format!(
        "write one `- {{ rule: 100, action: allow, protocol: …, ports: …, {side}: … }}` for each entry"
    );
    let Some(items) = report.list(node, &what, &help) else {
        return Vec::new();
    };
    let mut numbers: HashMap<u16, Span> = HashMap::with_capacity(items.len());
    let mut entries: Vec<(AclEntry, Span)> = Vec::with_capacity(items.len());
    for item in items {
        let Some((entry, span)) = read_entry(report, item, direction) else {
            continue;
        };
        if let Some(first) = numbers.get(&entry.number) {
            report
                .error(
                    span,
                    format!("{what} has two entries number {}", entry.number),
                )
                .also(*first, "the other entry")
                .help("the number says which entry comes first: give each its own");
            continue;
        }
        numbers.insert(entry.number, span);
        entries.push((entry, span));
    }
    entries.sort_by_key(|(entry, _)| entry.number);
    warn_of_unreachable(report, &entries);
    entries.into_iter().map(|(entry, _)| entry).collect()
}

/// The key of the far side, and the one that is wrong here.
fn sides(direction: Direction) -> (&'static str, &'static str) {
    match direction {
        Direction::Ingress => ("from", "to"),
        Direction::Egress => ("to", "from"),
    }
}

/// An entry and the place of its number.
fn read_entry(report: &mut Report, item: &Node, direction: Direction) -> Option<(AclEntry, Span)> {
    let known = [
        "rule", "action", "protocol", "ports", "type", "code", "from", "to",
    ];
    if foreign::translate(report, item, direction, None) {
        return None;
    }
    let fields = report.fields(item, "an entry", &known)?;
    let number = read_number(report, &fields);
    let action = read_action(report, &fields);
    let cidr = read_cidr(report, &fields, direction);
    let holder = Holder::Entry(cidr.map(|(net, _)| Family::of(&net)));
    let traffic = traffic::read(report, &fields, holder);
    let (Some((number, at)), Some(action), Some((cidr, span)), Some(traffic)) =
        (number, action, cidr, traffic)
    else {
        return None;
    };
    let text = cidr.to_string();
    traffic::warn_of_family(
        report,
        traffic,
        holder,
        span,
        &text,
        Some(Family::of(&cidr)),
    );
    let entry = AclEntry {
        number,
        action,
        traffic,
        cidr,
        place: report.place(item.span),
    };
    Some((entry, at))
}

fn read_number(report: &mut Report, fields: &Fields<'_>) -> Option<(u16, Span)> {
    let Some(node) = fields.get("rule") else {
        report
            .error(fields.span, "the entry has no `rule`, its number")
            .help("write for example `rule: 100`; the lowest number that covers a packet decides");
        return None;
    };
    if let Value::Scalar { text, .. } = &node.value
        && (**text == *"*"
            || **text == *ACL_DENY_REST.to_string()
            || **text == *(ACL_DENY_REST + 1).to_string())
    {
        report
            .error(
                node.span,
                format!(
                    "the entry {} is AWS's own: it denies the rest",
                    quoted(text)
                ),
            )
            .help("remove the entry: what no other covers is denied anyway");
        return None;
    }
    let number = report.number(node, "`rule`", 1..=MAX_ACL_RULE.into())?;
    Some((u16::try_from(number).ok()?, node.span))
}

fn read_action(report: &mut Report, fields: &Fields<'_>) -> Option<AclAction> {
    let help = "write `action: allow` or `action: deny`";
    let Some(node) = fields.get("action") else {
        report
            .error(fields.span, "the entry has no `action`")
            .help(help);
        return None;
    };
    let text = report.text(node, "`action`", "`action: allow`")?;
    match text {
        "allow" => return Some(AclAction::Allow),
        "deny" => return Some(AclAction::Deny),
        _ => {}
    }
    let help = match nearest(text, ["allow", "deny"]) {
        Some(near) => format!("did you mean `{near}`?"),
        None => help.to_owned(),
    };
    report
        .error(node.span, format!("there is no action {}", quoted(text)))
        .help(help);
    None
}

fn read_cidr(
    report: &mut Report,
    fields: &Fields<'_>,
    direction: Direction,
) -> Option<(IpNet, Span)> {
    let (right, wrong) = sides(direction);
    if let Some(entry) = fields.entry(wrong) {
        report
            .error(
                entry.key,
                format!("an {direction} entry takes `{right}`, not `{wrong}`"),
            )
            .help(format!(
                "write `{right}`, or move the entry to `{}`",
                direction.reverse()
            ));
    }
    let help = "write a CIDR block as `10.0.1.0/24`";
    let Some(node) = fields.get(right) else {
        if fields.get(wrong).is_none() {
            report
                .error(fields.span, format!("the entry has no `{right}`"))
                .help(help);
        }
        return None;
    };
    if matches!(node.value, Value::List(_)) {
        report
            .error(
                node.span,
                format!("`{right}`: an entry has one block, and this is a list"),
            )
            .help("write an entry with a number of its own for each block");
        return None;
    }
    let text = report.text(node, &format!("`{right}`"), "`10.0.1.0/24`")?;
    if let Some(net) = parse_net(text) {
        return Some((report.canonical(node, net), node.span));
    }
    let kind = if text.starts_with("sg/") || is_id(text, "sg") {
        Some("security groups")
    } else if text.starts_with("pl/") || is_id(text, "pl") {
        Some("prefix lists")
    } else {
        None
    };
    let (message, help) = match kind {
        Some(kind) => (
            format!(
                "`{right}`: a network ACL knows no {kind}, only CIDR blocks, and {} is none",
                quoted(text)
            ),
            "write a block that holds the addresses, for example that of their subnet".to_owned(),
        ),
        None => (
            format!("`{right}`: {} is no CIDR block", quoted(text)),
            cidr_help(text),
        ),
    };
    report.error(node.span, message).help(help);
    None
}

/// The first entry that covers decides, so one that lies wholly within an
/// earlier one never does.
fn warn_of_unreachable(report: &mut Report, entries: &[(AclEntry, Span)]) {
    for (i, (entry, span)) in entries.iter().enumerate() {
        let earlier = entries[..i].iter().take(MAX_COMPARED);
        let Some((first, at)) = earlier.into_iter().find(|(first, _)| covers(first, entry)) else {
            continue;
        };
        let effect = match (first.action, entry.action) {
            (AclAction::Allow, AclAction::Deny) => ", so what it denies is allowed",
            (AclAction::Deny, AclAction::Allow) => ", so what it allows is denied",
            _ => "",
        };
        report
            .warning(
                *span,
                format!(
                    "entry {} is never reached: entry {} comes first and covers all of it{effect}",
                    entry.number, first.number
                ),
            )
            .also(*at, "covers it")
            .help(if effect.is_empty() {
                "remove it".to_owned()
            } else {
                format!("give it a number below {}, or remove it", first.number)
            });
    }
}

/// Whether every packet that `entry` covers is covered by `first`.
fn covers(first: &AclEntry, entry: &AclEntry) -> bool {
    let messages = |first: IcmpMatch, entry: IcmpMatch| match (first, entry) {
        (IcmpMatch::Any, _) => true,
        (IcmpMatch::Type(kind), IcmpMatch::Type(other) | IcmpMatch::TypeAndCode(other, _)) => {
            kind == other
        }
        _ => first == entry,
    };
    let traffic = match (first.traffic, entry.traffic) {
        (Traffic::All, _) => true,
        (Traffic::Tcp(ports), Traffic::Tcp(others))
        | (Traffic::Udp(ports), Traffic::Udp(others)) => {
            ports.from <= others.from && others.to <= ports.to
        }
        (Traffic::Icmp(kinds), Traffic::Icmp(others))
        | (Traffic::Icmpv6(kinds), Traffic::Icmpv6(others)) => messages(kinds, others),
        (first, entry) => first == entry,
    };
    traffic && first.cidr.contains(&entry.cidr)
}
