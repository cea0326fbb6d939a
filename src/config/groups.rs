//! `security_groups:` and `prefix_lists:`, from the lab file and rule files.

use std::collections::HashMap;

use ipnet::IpNet;

use super::diagnostic::{Report, quoted};
use super::reader::{Entry, Fields, is_id};
use super::rules::{self, RuleSpan};
use super::source::Span;
use super::vpc::check_name;
use super::yaml::{Node, Value};
use crate::model::{
    DEFAULT_GROUP, Direction, GroupIx, Peer, Place, PrefixList, PrefixListIx, RuleId,
    SecurityGroup, SecurityGroupRule, Traffic, derive_id,
};

/// Longest group name and description (aws-semantics §1.1, §1.5).
const MAX_TEXT: usize = 255;

/// A security group's head; its rules are read when all names are known.
#[derive(Debug)]
pub(super) struct GroupDecl<'n> {
    pub(super) group: SecurityGroup,
    pub(super) key: Option<Span>,
    pub(super) id: Option<Span>,
    fields: Option<Fields<'n>>,
}

/// A prefix list and where its parts are.
#[derive(Debug)]
pub(super) struct ListDecl {
    pub(super) list: PrefixList,
    pub(super) key: Span,
    pub(super) id: Span,
    /// The family of its entries, if it has any that could be read.
    pub(super) family: Option<Family>,
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Every name and id that a rule or an entity may refer to.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) groups: HashMap<String, GroupIx>,
    pub(super) group_ids: HashMap<String, GroupIx>,
    pub(super) lists: HashMap<String, PrefixListIx>,
    pub(super) list_ids: HashMap<String, PrefixListIx>,
    /// The id of each group, by position.
    pub(super) id_of_group: Vec<String>,
    /// The id and family of each prefix list, by position.
    pub(super) id_of_list: Vec<(String, Option<Family>)>,
    /// A file could not be read, so a missing name proves nothing.
    pub(super) incomplete: bool,
}

/// Reads the heads of all groups; `default` is there in the end, declared or not.
pub(super) fn read_groups<'n>(
    report: &mut Report,
    entries: &[Entry<'n>],
    lab: &std::sync::Arc<str>,
    names: &mut Names,
) -> Vec<GroupDecl<'n>> {
    let mut decls: Vec<GroupDecl<'n>> = Vec::with_capacity(entries.len() + 1);
    let mut folded: HashMap<String, Span> = HashMap::new();
    for entry in entries {
        // AWS trims trailing spaces when it saves the name (§1.5).
        let name = entry.name.trim_end();
        if let Some(first) = folded.insert(name.to_lowercase(), entry.key) {
            folded.insert(name.to_lowercase(), first);
            report
                .error(entry.key, format!("security group {} is defined twice", quoted(name)))
                .also(first, "first defined here")
                .help("group names are unique in the VPC, without regard to case: remove or rename one of the two");
            continue;
        }
        check_group_name(report, entry, name);
        decls.push(read_head(report, entry, name));
    }
    if !folded.contains_key(DEFAULT_GROUP) {
        decls.push(GroupDecl {
            group: SecurityGroup {
                id: derive_id("sg", &[DEFAULT_GROUP]),
                name: DEFAULT_GROUP.to_owned(),
                description: "AWS default: the group of interfaces without any".to_owned(),
                ingress: Vec::new(),
                egress: Vec::new(),
                place: Place::implied(std::sync::Arc::clone(lab)),
            },
            key: None,
            id: None,
            fields: None,
        });
    }
    for (i, decl) in decls.iter().enumerate() {
        names
            .groups
            .insert(decl.group.name.clone(), GroupIx::new(i));
        names
            .group_ids
            .entry(decl.group.id.clone())
            .or_insert(GroupIx::new(i));
        names.id_of_group.push(decl.group.id.clone());
    }
    decls
}

/// Reads all prefix lists.
pub(super) fn read_lists(
    report: &mut Report,
    entries: &[Entry<'_>],
    names: &mut Names,
) -> Vec<ListDecl> {
    let mut decls: Vec<ListDecl> = Vec::with_capacity(entries.len());
    let mut seen: HashMap<&str, Span> = HashMap::new();
    for entry in entries {
        if let Some(first) = seen.get(entry.name) {
            report
                .error(
                    entry.key,
                    format!("prefix list {} is defined twice", quoted(entry.name)),
                )
                .also(*first, "first defined here")
                .help("remove or rename one of the two");
            continue;
        }
        seen.insert(entry.name, entry.key);
        check_name(report, entry, "a prefix list", "pl-");
        let decl = read_list(report, entry);
        let ix = PrefixListIx::new(decls.len());
        names.lists.insert(decl.list.name.clone(), ix);
        names.list_ids.entry(decl.list.id.clone()).or_insert(ix);
        names.id_of_list.push((decl.list.id.clone(), decl.family));
        decls.push(decl);
    }
    decls
}

/// Reads the rules of all groups, or gives AWS's for what is left out.
pub(super) fn read_rules(
    report: &mut Report,
    decls: &mut [GroupDecl<'_>],
    names: &Names,
    ipv6: bool,
) -> Vec<RuleSpan> {
    let mut spans = Vec::new();
    for (i, decl) in decls.iter_mut().enumerate() {
        let ix = GroupIx::new(i);
        for direction in [Direction::Ingress, Direction::Egress] {
            let declared = decl
                .fields
                .as_ref()
                .and_then(|fields| fields.get(direction.as_str()));
            let list = match declared {
                Some(node) => rules::read(report, node, direction, &decl.group, names, &mut spans),
                None => {
                    let rules = implied(&decl.group, ix, direction, ipv6);
                    spans.extend(rules.iter().map(|rule| RuleSpan {
                        id: rule.id,
                        span: None,
                        written: false,
                    }));
                    rules
                }
            };
            match direction {
                Direction::Ingress => decl.group.ingress = list,
                Direction::Egress => decl.group.egress = list,
            }
        }
    }
    spans
}

/// Characters that AWS admits in names and descriptions (§1.1, §1.5).
pub(super) fn is_admitted(c: char) -> bool {
    c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c)
}

/// A description of at most 255 characters of AWS's set.
pub(super) fn read_description(
    report: &mut Report,
    node: &Node,
    what: &str,
    ampersand: bool,
) -> String {
    let Value::Scalar { text, .. } = &node.value else {
        report
            .wrong_type(node, &format!("`description` of {what}"), "a string")
            .help("for example `description: HTTPS from anywhere`");
        return String::new();
    };
    if node.is_null() {
        return String::new();
    }
    let length = text.chars().count();
    let bad = text
        .chars()
        .find(|&c| !is_admitted(c) || (c == '&' && !ampersand));
    if length > MAX_TEXT {
        report
            .error(
                node.span,
                format!("`description` of {what} has {length} characters"),
            )
            .help(format!("AWS admits at most {MAX_TEXT}"));
    } else if let Some(c) = bad {
        let help = if c == '&' {
            "AWS does not admit `&` where the peer is a group or a prefix list; write `and`"
        } else {
            "AWS admits a-z, A-Z, 0-9, spaces and ._-:/()#,@[]+=&;{}!$*"
        };
        report
            .error(
                node.span,
                format!(
                    "`description` of {what} holds {}, which AWS refuses",
                    quoted(&c.to_string())
                ),
            )
            .help(help);
    }
    text.to_string()
}

fn check_group_name(report: &mut Report, entry: &Entry<'_>, name: &str) {
    let help = if name != DEFAULT_GROUP && name.eq_ignore_ascii_case(DEFAULT_GROUP) {
        report
            .error(
                entry.key,
                format!("the group name {} is reserved", quoted(name)),
            )
            .help("write `default` for the VPC's default group, or choose another name");
        return;
    } else if name.trim().is_empty() {
        "give the group a name"
    } else if name.chars().count() > MAX_TEXT {
        "AWS admits at most 255 characters"
    } else if name.starts_with("sg-") {
        "a name must not start with `sg-`; write the id as `id:` in the group, and a name here"
    } else if !name.chars().all(is_admitted) {
        "AWS admits a-z, A-Z, 0-9, spaces and ._-:/()#,@[]+=&;{}!$*"
    } else {
        return;
    };
    report
        .error(
            entry.key,
            format!("{} can't be the name of a security group", quoted(name)),
        )
        .help(help);
}

fn read_head<'n>(report: &mut Report, entry: &Entry<'n>, name: &str) -> GroupDecl<'n> {
    let what = format!("security group {}", quoted(name));
    let known = ["id", "description", "ingress", "egress"];
    let fields = report.fields(entry.value, &what, &known);
    let mut decl = GroupDecl {
        group: SecurityGroup {
            id: derive_id("sg", &[name]),
            name: name.to_owned(),
            description: String::new(),
            ingress: Vec::new(),
            egress: Vec::new(),
            place: report.place(entry.key),
        },
        key: Some(entry.key),
        id: Some(entry.key),
        fields: None,
    };
    if let Some(fields) = &fields {
        if let Some(node) = fields.get("id")
            && let Some(id) = report.id(node, &what, "sg")
        {
            decl.group.id = id;
            decl.id = Some(node.span);
        }
        if let Some(node) = fields.get("description") {
            decl.group.description = read_description(report, node, &what, true);
        }
    }
    decl.fields = fields;
    decl
}

/// The rules that AWS gives a group for a direction that nobody wrote
/// (aws-semantics §1.4).
fn implied(
    group: &SecurityGroup,
    ix: GroupIx,
    direction: Direction,
    ipv6: bool,
) -> Vec<SecurityGroupRule> {
    let rule = |peer: Peer, text: String, resolved: &str, description: &str| SecurityGroupRule {
        id: RuleId::derive(&[
            &group.id,
            direction.as_str(),
            &Traffic::All.to_string(),
            resolved,
        ]),
        traffic: Traffic::All,
        peer,
        peer_text: text,
        description: description.to_owned(),
        place: Place::implied(std::sync::Arc::clone(&group.place.file)),
    };
    let outbound = "AWS default: all outbound traffic";
    match direction {
        Direction::Ingress if group.name == DEFAULT_GROUP => vec![rule(
            Peer::Group(ix),
            format!("sg/{DEFAULT_GROUP}"),
            &group.id,
            "AWS default: all traffic from the group itself",
        )],
        Direction::Ingress => Vec::new(),
        Direction::Egress => {
            let v4 = Peer::Ipv4(ipnet::Ipv4Net::default());
            let v6 = Peer::Ipv6(ipnet::Ipv6Net::default());
            let mut rules = vec![rule(v4, "0.0.0.0/0".into(), "0.0.0.0/0", outbound)];
            if ipv6 {
                rules.push(rule(v6, "::/0".into(), "::/0", outbound));
            }
            rules
        }
    }
}

fn read_list(report: &mut Report, entry: &Entry<'_>) -> ListDecl {
    let name = entry.name;
    let what = format!("prefix list {}", quoted(name));
    let help = "write a list of CIDR blocks, for example `[198.51.100.0/24]`, or `{ id: pl-…, entries: [...] }`";
    let mut decl = ListDecl {
        list: PrefixList {
            id: derive_id("pl", &[name]),
            name: name.to_owned(),
            entries: Vec::new(),
            place: report.place(entry.key),
        },
        key: entry.key,
        id: entry.key,
        family: None,
    };
    let items = match &entry.value.value {
        Value::Map(_) => {
            let Some(fields) = report.fields(entry.value, &what, &["id", "entries"]) else {
                return decl;
            };
            if let Some(node) = fields.get("id")
                && let Some(id) = report.id(node, &what, "pl")
            {
                decl.list.id = id;
                decl.id = node.span;
            }
            match fields.get("entries") {
                Some(node) => report.list(node, &format!("`entries` of {what}"), help),
                None => {
                    report
                        .error(entry.key, format!("{what} has no `entries`"))
                        .help(help);
                    None
                }
            }
        }
        _ => report.list(entry.value, &what, help),
    };
    let mut seen: HashMap<IpNet, Span> = HashMap::new();
    for item in items.unwrap_or_default() {
        let Some((net, span)) = read_entry(report, item, &what) else {
            continue;
        };
        let family = Family::of(&net);
        if let Some(first) = seen.get(&net) {
            report
                .error(span, format!("`{net}` is in {what} twice"))
                .also(*first, "first given here")
                .help("remove one of the two");
            continue;
        }
        if decl.family.is_some_and(|first| first != family) {
            report
                .error(span, format!("{what} mixes IPv4 and IPv6"))
                .help("on AWS a prefix list holds one family; make a list for the other");
            continue;
        }
        decl.family = Some(family);
        seen.insert(net, span);
        decl.list.entries.push(net);
    }
    decl
}

fn read_entry(report: &mut Report, item: &Node, what: &str) -> Option<(IpNet, Span)> {
    let what = format!("an entry of {what}");
    if !matches!(item.value, Value::Map(_)) {
        return Some((report.cidr(item, &what)?, item.span));
    }
    let fields = report.fields(item, &what, &["cidr", "description"])?;
    if let Some(node) = fields.get("description") {
        read_description(report, node, &what, true);
    }
    let Some(node) = fields.get("cidr") else {
        report
            .error(item.span, format!("{what} has no `cidr`"))
            .help("write for example `{ cidr: 198.51.100.0/24 }`");
        return None;
    };
    Some((report.cidr(node, &what)?, node.span))
}

/// Resolves a group by name or id, or says why not. `None` without a
/// diagnostic where names are missing anyway. `sigil` is what stands before
/// the name in the file: `sg/` or nothing.
pub(super) fn find_group(
    report: &mut Report,
    names: &Names,
    span: Span,
    sigil: &str,
    name: &str,
) -> Option<GroupIx> {
    if let Some(ix) = names.groups.get(name).or_else(|| names.group_ids.get(name)) {
        return Some(*ix);
    }
    if names.incomplete {
        return None;
    }
    let near = report.nearest(name, names.groups.keys().map(String::as_str));
    let help = if let Some(bare) = name.strip_prefix("sg/")
        && (names.groups.contains_key(bare) || names.group_ids.contains_key(bare))
    {
        format!("write `{bare}`; `sg/` is for `from` and `to`")
    } else if is_id(name, "sg") || name.starts_with("sg-") {
        "write a group's name, or give the group this `id:` under `security_groups`".into()
    } else {
        unknown_help(sigil, near, "security_groups")
    };
    report
        .error(span, format!("there is no security group {}", quoted(name)))
        .help(help);
    None
}

/// Resolves a prefix list by name or id, or says why not.
pub(super) fn find_list(
    report: &mut Report,
    names: &Names,
    span: Span,
    name: &str,
) -> Option<PrefixListIx> {
    if let Some(ix) = names.lists.get(name).or_else(|| names.list_ids.get(name)) {
        return Some(*ix);
    }
    if names.incomplete {
        return None;
    }
    let near = report.nearest(name, names.lists.keys().map(String::as_str));
    let help = unknown_help("pl/", near, "prefix_lists");
    report
        .error(span, format!("there is no prefix list {}", quoted(name)))
        .help(help);
    None
}

fn unknown_help(sigil: &str, near: Option<&str>, section: &str) -> String {
    match near {
        Some(near) => format!("did you mean {}?", quoted(&format!("{sigil}{near}"))),
        None => format!("define it under `{section}`, or use the name of one that is there"),
    }
}
