//! `security_groups:` and `prefix_lists:`, from the lab file and rule files.

use std::collections::HashMap;

use ipnet::IpNet;

use super::diagnostic::{Report, quoted};
use super::names::{Family, MAX_TEXT, Names, check_tags, is_admitted, read_description};
use super::quotas::ENTRIES_PER_LIST;
use super::reader::{Entry, Fields};
use super::rules::{self, RuleSpan};
use super::source::Span;
use super::vpc::check_name;
use super::yaml::{Node, Value};
use crate::model::{
    DEFAULT_GROUP, Direction, GroupIx, Peer, Place, PrefixList, PrefixListIx, RuleId,
    SecurityGroup, SecurityGroupRule, Traffic, derive_id,
};

/// A security group's head; its rules are read when all names are known.
#[derive(Debug)]
pub(super) struct GroupDecl<'n> {
    pub(super) group: SecurityGroup,
    pub(super) key: Option<Span>,
    pub(super) id: Option<Span>,
    fields: Option<Fields<'n>>,
}

impl<'n> GroupDecl<'n> {
    /// Who carries it elsewhere, where that is declared.
    pub(super) fn members(&self) -> Option<&'n Node> {
        self.fields.as_ref()?.get("members")
    }

    /// The key of one direction's rules, where they are declared.
    pub(super) fn direction(&self, direction: Direction) -> Option<Span> {
        let fields = self.fields.as_ref()?;
        fields.entry(direction.as_str()).map(|entry| entry.key)
    }
}

/// A prefix list and where its parts are.
#[derive(Debug)]
pub(super) struct ListDecl {
    pub(super) list: PrefixList,
    pub(super) key: Span,
    pub(super) id: Span,
    /// The family of its entries, if it has any that could be read.
    pub(super) family: Option<Family>,
    /// How many entries it may hold, which is what a reference counts.
    pub(super) size: usize,
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
        let name = entry.name.trim_end_matches(' ');
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
    let known = ["id", "description", "tags", "members", "ingress", "egress"];
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
        check_tags(report, fields, &what);
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
        size: 0,
    };
    let mut room = None;
    let items = match &entry.value.value {
        Value::Map(_) => {
            let known = ["id", "entries", "max_entries"];
            let Some(fields) = report.fields(entry.value, &what, &known) else {
                return decl;
            };
            room = fields.get("max_entries");
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
    let items = items.unwrap_or_default();
    decl.size = match room {
        Some(node) => read_room(report, node, items.len(), &what),
        None => {
            if let Some(extra) = items.get(ENTRIES_PER_LIST) {
                too_long(report, extra.span, items.len(), &what);
            }
            items.len()
        }
    };
    let mut seen: HashMap<IpNet, Span> = HashMap::new();
    for item in items {
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

/// `max_entries`, or as many as there are where it makes no sense.
fn read_room(report: &mut Report, node: &Node, entries: usize, what: &str) -> usize {
    let key = format!("`max_entries` of {what}");
    let room = report.number(node, &key, 1..=i32::MAX.into());
    let Some(room) = room.and_then(|room| usize::try_from(room).ok()) else {
        return entries;
    };
    if room < entries {
        report
            .error(
                node.span,
                format!("{what} has {entries} entries, more than its `max_entries`"),
            )
            .help(format!("write {entries} or more, or remove `max_entries`"));
        return entries;
    }
    if room > ENTRIES_PER_LIST {
        too_long(report, node.span, room, what);
    }
    room
}

fn too_long(report: &mut Report, span: Span, count: usize, what: &str) {
    report.quota(
        span,
        format!("{what} holds up to {count} entries; AWS's quota is {ENTRIES_PER_LIST}"),
        "make several lists of it",
    );
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
