//! `entities:` and their network interfaces, addresses apart.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use super::diagnostic::{Report, quoted};
use super::kind;
use super::names::{Names, check_entity_name, find_group};
use super::quotas::{GROUPS_PER_INTERFACE, MOST_GROUPS_PER_INTERFACE};
use super::reader::{Entry, Fields};
use super::source::Span;
use super::tracking::{self, At};
use super::vpc::SubnetDecl;
use super::yaml::Node;
use crate::model::{
    Attachment, DEFAULT_GROUP, Entity, EntityIx, EntityKind, GATEWAY_MTU, GroupIx, Interface,
    MAX_MTU, MIN_MTU, SubnetIx, Tracking, Via, derive_id,
};

/// Most entities in a lab; each has a namespace and a device.
const MAX_ENTITIES: usize = 5000;
/// Most interfaces of one entity: the largest instance types have 15.
const MAX_INTERFACES: usize = 15;

/// Keys of an entity as a whole.
const ENTITY_KEYS: [&str; 7] = [
    "kind",
    "type",
    "via",
    "engine",
    "run",
    "nitro_v6",
    "interfaces",
];
/// Keys that describe one interface of the VPC.
const INTERFACE_KEYS: [&str; 8] = [
    "id",
    "subnet",
    "addresses",
    "public_addresses",
    "security_groups",
    "source_dest_check",
    "mtu",
    "tracking",
];
/// Of those, what a host outside the VPC has as well.
const EXTERNAL_KEYS: [&str; 2] = ["addresses", "mtu"];

/// What entities are read against.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    pub(super) subnets: &'a [SubnetDecl],
    pub(super) names: &'a Names,
    /// Subnets by name and by id.
    pub(super) subnet_names: HashMap<&'a str, SubnetIx>,
}

impl<'a> Scope<'a> {
    pub(super) fn new(subnets: &'a [SubnetDecl], names: &'a Names) -> Self {
        let mut subnet_names = HashMap::new();
        for (i, decl) in subnets.iter().enumerate() {
            subnet_names.insert(decl.subnet.name.as_str(), SubnetIx::new(i));
        }
        for (i, decl) in subnets.iter().enumerate() {
            subnet_names
                .entry(decl.subnet.id.as_str())
                .or_insert(SubnetIx::new(i));
        }
        Self {
            subnets,
            names,
            subnet_names,
        }
    }
}

/// An interface whose addresses are still to be given and checked.
#[derive(Debug)]
pub(super) struct InterfaceDecl {
    pub(super) interface: Interface,
    /// Its entity's name, for messages.
    pub(super) label: String,
    /// To blame for the interface as a whole.
    pub(super) span: Span,
    /// To blame for its id.
    pub(super) id: Span,
    /// The subnet, if it is known and the interface has one.
    pub(super) subnet: Option<SubnetIx>,
    /// Written addresses; `None` to have them given.
    pub(super) addresses: Option<Vec<(IpAddr, Span)>>,
    /// Written public addresses.
    pub(super) public: Vec<(Ipv4Addr, Span)>,
}

/// Reads all entities.
pub(super) fn read(
    report: &mut Report,
    entries: &[Entry<'_>],
    scope: &Scope<'_>,
) -> (Vec<Entity>, Vec<InterfaceDecl>) {
    if let Some(extra) = entries.get(MAX_ENTITIES) {
        report
            .error(extra.key, format!("more than {MAX_ENTITIES} entities"))
            .help("split the lab");
    }
    let mut entities = Vec::with_capacity(entries.len());
    let mut interfaces = Vec::with_capacity(entries.len());
    for entry in entries.iter().take(MAX_ENTITIES) {
        let ix = EntityIx::new(entities.len());
        if let Some(entity) = read_entity(report, entry, ix, scope, &mut interfaces) {
            entities.push(entity);
        }
    }
    (entities, interfaces)
}

fn read_entity(
    report: &mut Report,
    entry: &Entry<'_>,
    ix: EntityIx,
    scope: &Scope<'_>,
    interfaces: &mut Vec<InterfaceDecl>,
) -> Option<Entity> {
    let name = entry.name;
    check_entity_name(report, entry);
    let what = format!("entity {}", quoted(name));
    let mut known = ENTITY_KEYS.to_vec();
    known.extend(INTERFACE_KEYS);
    let fields = report.fields(entry.value, &what, &known)?;
    let kind = kind::read(report, entry, &fields, &what)?;
    let in_vpc = !matches!(kind, EntityKind::External(_));
    let (nitro_v6, max_flows) = if in_vpc {
        (
            fields
                .get("nitro_v6")
                .and_then(|node| report.boolean(node, "`nitro_v6`"))
                .unwrap_or(false),
            tracking::read_max_flows(report, &fields),
        )
    } else {
        (false, None)
    };
    let engine = fields.entry("engine").and_then(|engine| {
        if kind != EntityKind::Rds {
            report
                .error(
                    engine.key,
                    format!("{what} is of kind `{kind}`; only `rds` has an `engine`"),
                )
                .help("remove `engine`, or write `kind: rds`");
        }
        report.text(engine.value, "`engine`", "`engine: postgres`")
    });
    let run = fields
        .get("run")
        .and_then(|node| report.text(node, "`run`", "`run: \"python3 -m http.server 8080\"`"));
    let owner = Owner {
        name,
        what: &what,
        kind,
        ix,
        key: entry.key,
        timeouts: tracking::defaults(nitro_v6),
    };
    match kind {
        EntityKind::External(via) => {
            interfaces.push(read_external(report, &owner, &fields, via)?);
        }
        _ => match fields.entry("interfaces") {
            Some(list) => read_interfaces(report, &owner, &fields, list, scope, interfaces),
            None => {
                let at = (0, entry.key, At::Entity);
                interfaces.extend(read_interface(report, &owner, &fields, at, scope));
            }
        },
    }
    Some(Entity {
        name: name.to_owned(),
        kind,
        engine: engine.map(str::to_owned),
        run: run.map(str::to_owned),
        max_flows,
        place: report.place(entry.key),
    })
}

/// The entity that an interface belongs to.
struct Owner<'a> {
    name: &'a str,
    what: &'a str,
    kind: EntityKind,
    ix: EntityIx,
    key: Span,
    /// Idle timeouts where the file says nothing else.
    timeouts: Tracking,
}

fn read_external(
    report: &mut Report,
    owner: &Owner<'_>,
    fields: &Fields<'_>,
    via: Via,
) -> Option<InterfaceDecl> {
    let others = INTERFACE_KEYS
        .iter()
        .chain(&["interfaces", "nitro_v6", "type"]);
    for key in others.filter(|key| !EXTERNAL_KEYS.contains(key)) {
        if let Some(entry) = fields.entry(key) {
            report
                .error(
                    entry.key,
                    format!("{} is outside the VPC, so it takes no `{key}`", owner.what),
                )
                .help(format!(
                    "remove `{key}`: security groups and tracking are for interfaces in the VPC"
                ));
        }
    }
    let mtu = read_mtu(report, fields, GATEWAY_MTU);
    let help = "write for example `addresses: [198.51.100.7]`, outside the VPC";
    let Some(node) = fields.get("addresses") else {
        report
            .error(
                owner.key,
                format!("{} is external and has no `addresses`", owner.what),
            )
            .help(help);
        return None;
    };
    let addresses = read_addresses(report, node, owner.what, help);
    Some(InterfaceDecl {
        interface: Interface {
            id: derive_id("eni", &[owner.name, "eth0"]),
            entity: owner.ix,
            device: 0,
            attachment: Attachment::External(via),
            addresses: Vec::new(),
            mtu,
            source_dest_check: true,
            tracking: Tracking::default(),
            place: report.place(owner.key),
        },
        label: owner.name.to_owned(),
        span: owner.key,
        id: owner.key,
        subnet: None,
        addresses: Some(addresses),
        public: Vec::new(),
    })
}

fn read_interfaces(
    report: &mut Report,
    owner: &Owner<'_>,
    fields: &Fields<'_>,
    list: Entry<'_>,
    scope: &Scope<'_>,
    interfaces: &mut Vec<InterfaceDecl>,
) {
    if let Some(node) = fields.get("tracking") {
        // The allowance is the whole entity's; the timeouts aren't.
        tracking::refuse_timeouts(report, node, owner.what, list.key);
    }
    for key in INTERFACE_KEYS {
        if let Some(entry) = fields.entry(key).filter(|_| key != "tracking") {
            report
                .error(
                    entry.key,
                    format!("{} has both `interfaces` and `{key}`", owner.what),
                )
                .also(list.key, "the interfaces")
                .help(format!("move `{key}` into the entries of `interfaces`"));
        }
    }
    let help = "write `interfaces: [ { subnet: NAME }, … ]`";
    let Some(items) = report.list(list.value, "`interfaces`", help) else {
        return;
    };
    if items.is_empty() {
        report
            .error(list.value.span, format!("{} has no interface", owner.what))
            .help(help);
    }
    if let Some(extra) = items.get(MAX_INTERFACES) {
        report
            .error(
                extra.span,
                format!("{} has more than {MAX_INTERFACES} interfaces", owner.what),
            )
            .help("no AWS instance has more; make another entity");
    }
    for (device, item) in (0..).zip(items.iter().take(MAX_INTERFACES)) {
        if let Some(fields) = report.fields(item, "an interface", &INTERFACE_KEYS) {
            let at = (device, item.span, At::Interface);
            interfaces.extend(read_interface(report, owner, &fields, at, scope));
        }
    }
}

fn read_interface(
    report: &mut Report,
    owner: &Owner<'_>,
    fields: &Fields<'_>,
    (device, span, at): (u8, Span, At),
    scope: &Scope<'_>,
) -> Option<InterfaceDecl> {
    let what = owner.what;
    let mut id = derive_id("eni", &[owner.name, &format!("eth{device}")]);
    let mut id_span = span;
    if let Some(node) = fields.get("id")
        && let Some(given) = report.id(node, "an interface", "eni")
    {
        id = given;
        id_span = node.span;
    }
    let subnet = read_subnet_name(report, owner, fields, span, scope);
    let groups = read_group_names(report, fields, what, scope.names);
    let addresses = fields.get("addresses").map(|node| {
        let help = "list addresses of the subnet, or remove the key to have them given";
        read_addresses(report, node, what, help)
    });
    let public = fields
        .get("public_addresses")
        .map_or_else(Vec::new, |node| read_public(report, node, what));
    let source_dest_check = fields
        .get("source_dest_check")
        .and_then(|node| report.boolean(node, "`source_dest_check`"))
        .unwrap_or(true);
    let mtu = read_mtu(report, fields, MAX_MTU);
    let tracking = match fields.get("tracking") {
        Some(node) => tracking::read(report, node, at, owner.timeouts),
        None => owner.timeouts,
    };
    Some(InterfaceDecl {
        interface: Interface {
            id,
            entity: owner.ix,
            device,
            attachment: Attachment::Subnet {
                // Without a subnet there is an error, and no model comes of this.
                subnet: subnet.unwrap_or(SubnetIx::new(0)),
                groups,
            },
            addresses: Vec::new(),
            mtu,
            source_dest_check,
            tracking,
            place: report.place(span),
        },
        label: owner.name.to_owned(),
        span,
        id: id_span,
        subnet,
        addresses,
        public,
    })
}

fn read_subnet_name(
    report: &mut Report,
    owner: &Owner<'_>,
    fields: &Fields<'_>,
    span: Span,
    scope: &Scope<'_>,
) -> Option<SubnetIx> {
    let known = scope.subnets.iter().map(|decl| decl.subnet.name.as_str());
    let some = known.clone().next().unwrap_or("public");
    let Some(node) = fields.get("subnet") else {
        report
            .error(
                span,
                format!(
                    "{} is of kind `{}` and has no `subnet`",
                    owner.what, owner.kind
                ),
            )
            .help(format!("write for example `subnet: {some}`"));
        return None;
    };
    let name = report.text(node, "`subnet`", &format!("`subnet: {some}`"))?;
    if let Some(ix) = scope.subnet_names.get(name) {
        return Some(*ix);
    }
    if scope.names.incomplete {
        return None;
    }
    let help = match report.nearest(name, known) {
        Some(near) => format!("did you mean {}?", quoted(near)),
        None => "define it under `subnets`, or use the name of one that is there".into(),
    };
    report
        .error(node.span, format!("there is no subnet {}", quoted(name)))
        .help(help);
    None
}

fn read_group_names(
    report: &mut Report,
    fields: &Fields<'_>,
    what: &str,
    names: &Names,
) -> Vec<GroupIx> {
    let Some(node) = fields.get("security_groups") else {
        return names
            .groups
            .get(DEFAULT_GROUP)
            .copied()
            .into_iter()
            .collect();
    };
    let help = "list at least one group, or remove the key to have the VPC's `default` group";
    let Some(items) = report.one_or_list(node, &format!("`security_groups` of {what}"), help)
    else {
        return Vec::new();
    };
    if let Some(extra) = items.get(MOST_GROUPS_PER_INTERFACE) {
        report
            .error(
                extra.span,
                format!("{what} has more than {MOST_GROUPS_PER_INTERFACE} groups on one interface"),
            )
            .help("AWS admits at most 16; merge some of the groups");
    } else if let Some(extra) = items.get(GROUPS_PER_INTERFACE) {
        report.quota(
            extra.span,
            format!(
                "{what} has {} groups on one interface; AWS's quota is {GROUPS_PER_INTERFACE}",
                items.len()
            ),
            "merge some of the groups; AWS raises this quota to 16 at most",
        );
    }
    let mut seen: HashMap<GroupIx, Span> = HashMap::new();
    let mut groups = Vec::with_capacity(items.len());
    for item in items {
        let Some(name) = report.text(item, "a security group", "`web`") else {
            continue;
        };
        let Some(ix) = find_group(report, names, item.span, "", name) else {
            continue;
        };
        if let Some(first) = seen.get(&ix) {
            report
                .error(
                    item.span,
                    format!("{what} lists the group {} twice", quoted(name)),
                )
                .also(*first, "first listed here")
                .help("remove one of the two");
            continue;
        }
        seen.insert(ix, item.span);
        groups.push(ix);
    }
    groups
}

fn read_addresses(report: &mut Report, node: &Node, what: &str, help: &str) -> Vec<(IpAddr, Span)> {
    let what = format!("`addresses` of {what}");
    let items = report.one_or_list(node, &what, help).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| Some((report.address(item, &what)?, item.span)))
        .collect()
}

fn read_public(report: &mut Report, node: &Node, what: &str) -> Vec<(Ipv4Addr, Span)> {
    let what = format!("`public_addresses` of {what}");
    let help = "write for example `public_addresses: [203.0.113.10]`, or remove the key";
    let items = report.one_or_list(node, &what, help).unwrap_or_default();
    let mut addresses = Vec::with_capacity(items.len());
    for item in items {
        match report.address(item, &what) {
            Some(IpAddr::V4(address)) => addresses.push((address, item.span)),
            Some(IpAddr::V6(address)) => {
                report
                    .error(item.span, format!("{what}: `{address}` is an IPv6 address"))
                    .help("the internet gateway translates IPv4 only; an IPv6 address goes into `addresses`");
            }
            None => {}
        }
    }
    addresses
}

fn read_mtu(report: &mut Report, fields: &Fields<'_>, default: u16) -> u16 {
    fields
        .get("mtu")
        .and_then(|node| report.number(node, "`mtu`", MIN_MTU.into()..=MAX_MTU.into()))
        .and_then(|mtu| u16::try_from(mtu).ok())
        .unwrap_or(default)
}
