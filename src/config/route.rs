//! `route_tables:` and their routes. Names are read before the subnets that
//! use them, routes after the interfaces that they lead to.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::diagnostic::{Report, quoted};
use super::entities::InterfaceDecl;
use super::names::Lookup;
use super::net::{NEVER_FORWARDED, cidr_help, is_service_block, parse_net};
use super::reader::{Entry, Fields, is_id, list_of};
use super::source::Span;
use super::vpc::{SubnetDecl, VpcDecl, check_name};
use super::yaml::{Node, Value};
use crate::model::{
    Attachment, Entity, InterfaceIx, MAIN_ROUTE_TABLE, Place, Route, RouteTable, RouteTableIx,
    RouteTarget, Via, derive_id,
};

const TABLE_HELP: &str = "write a list of `{ to: 0.0.0.0/0, via: igw }`, or `[]` for the local route alone; `{ id: rtb-…, routes: [...] }` gives the table an id";
const TARGET_HELP: &str =
    "write `via: igw`, `vgw`, `blackhole`, `eni/NAME` for an entity's interface, or its id";

/// A route table and where its parts are.
#[derive(Debug)]
pub(super) struct TableDecl<'n> {
    pub(super) table: RouteTable,
    /// `None` for the table that AWS adds.
    pub(super) key: Option<Span>,
    pub(super) id: Option<Span>,
    /// The routes as they stand in the file.
    items: &'n [Node],
}

/// Reads the heads of all route tables; `main` is there in the end, declared
/// or not.
pub(super) fn read_heads<'n>(
    report: &mut Report,
    entries: &[Entry<'n>],
    lab: &Arc<str>,
) -> (Vec<TableDecl<'n>>, Lookup<RouteTableIx>) {
    let mut decls: Vec<TableDecl<'n>> = Vec::with_capacity(entries.len() + 1);
    for entry in entries {
        check_name(report, entry, "a route table", "rtb-");
        decls.push(read_head(report, entry));
    }
    if !decls.iter().any(|decl| decl.table.name == MAIN_ROUTE_TABLE) {
        let id = derive_id("rtb", &[MAIN_ROUTE_TABLE]);
        let place = Place::implied(Arc::clone(lab));
        decls.push(TableDecl {
            // Its routes come with the interfaces, in `read_routes`.
            table: RouteTable::implied(id, std::iter::empty(), &place),
            key: None,
            id: None,
            items: &[],
        });
    }
    let names = decls
        .iter()
        .map(|decl| (decl.table.name.as_str(), decl.table.id.as_str()));
    let lookup = Lookup::new(names, RouteTableIx::new);
    (decls, lookup)
}

fn read_head<'n>(report: &mut Report, entry: &Entry<'n>) -> TableDecl<'n> {
    let name = entry.name;
    let what = format!("route table {}", quoted(name));
    let mut decl = TableDecl {
        table: RouteTable {
            id: derive_id("rtb", &[name]),
            name: name.to_owned(),
            routes: Vec::new(),
            place: report.place(entry.key),
        },
        key: Some(entry.key),
        id: Some(entry.key),
        items: &[],
    };
    let routes = match &entry.value.value {
        Value::Map(_) => {
            let Some(fields) = report.fields(entry.value, &what, &["id", "routes"]) else {
                return decl;
            };
            if let Some(node) = fields.get("id")
                && let Some(id) = report.id(node, &what, "rtb")
            {
                decl.table.id = id;
                decl.id = Some(node.span);
            }
            fields.get("routes")
        }
        _ => Some(entry.value),
    };
    // Whoever deletes the last route leaves the bare key behind, and nothing
    // else than no routes can be meant.
    if let Some(node) = routes.filter(|node| !node.is_null()) {
        decl.items = report.list(node, &what, TABLE_HELP).unwrap_or(&[]);
    }
    decl
}

/// What routes are read against.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    vpc: &'a VpcDecl,
    subnets: &'a [SubnetDecl],
    interfaces: &'a [InterfaceDecl],
    /// Each entity's interfaces; none where they couldn't be read.
    entities: HashMap<&'a str, Vec<InterfaceIx>>,
    /// Each interface by its id.
    ids: HashMap<&'a str, InterfaceIx>,
    /// Something is missing from the files, so a missing name proves nothing.
    incomplete: bool,
    /// Whether something lies behind the gateway.
    igw: bool,
    vgw: bool,
}

impl<'a> Scope<'a> {
    /// `declared` are the entities of the file, `entities` those of them that
    /// could be read.
    pub(super) fn new(
        (vpc, subnets): (&'a VpcDecl, &'a [SubnetDecl]),
        declared: &[Entry<'a>],
        entities: &'a [Entity],
        interfaces: &'a [InterfaceDecl],
        incomplete: bool,
    ) -> Self {
        let mut owned: HashMap<&str, Vec<InterfaceIx>> = declared
            .iter()
            .map(|entry| (entry.name, Vec::new()))
            .collect();
        let mut ids = HashMap::new();
        for (i, decl) in interfaces.iter().enumerate() {
            let ix = InterfaceIx::new(i);
            ids.insert(decl.interface.id.as_str(), ix);
            if let Some(owner) = entities.get(decl.interface.entity.ix()) {
                owned.entry(owner.name.as_str()).or_default().push(ix);
            }
        }
        let behind = |via| {
            let external = Attachment::External(via);
            interfaces
                .iter()
                .any(|decl| decl.interface.attachment == external)
        };
        Self {
            vpc,
            subnets,
            interfaces,
            entities: owned,
            ids,
            incomplete,
            // Public addresses reach each other through the internet gateway.
            igw: behind(Via::Igw) || interfaces.iter().any(|decl| !decl.public.is_empty()),
            vgw: behind(Via::Vgw),
        }
    }
}

/// Reads the routes of all tables, or gives the main table AWS's.
pub(super) fn read_routes(report: &mut Report, decls: &mut [TableDecl<'_>], scope: &Scope<'_>) {
    for decl in decls {
        if decl.key.is_none() {
            let interfaces = scope.interfaces.iter().map(|decl| &decl.interface);
            let id = decl.table.id.clone();
            decl.table = RouteTable::implied(id, interfaces, &decl.table.place);
            continue;
        }
        let what = format!("route table {}", quoted(&decl.table.name));
        let mut seen: HashMap<IpNet, Span> = HashMap::with_capacity(decl.items.len());
        for item in decl.items {
            let Some((route, span)) = read_route(report, item, scope) else {
                continue;
            };
            if let Some(first) = seen.get(&route.destination) {
                report
                    .error(
                        span,
                        format!("{what} has two routes to `{}`", route.destination),
                    )
                    .also(*first, "the other route")
                    .help("remove one of the two; AWS refuses it as RouteAlreadyExists");
                continue;
            }
            seen.insert(route.destination, span);
            decl.table.routes.push(route);
        }
    }
}

/// A route and the place of its destination.
fn read_route(report: &mut Report, item: &Node, scope: &Scope<'_>) -> Option<(Route, Span)> {
    let fields = report.fields(item, "a route", &["to", "via"])?;
    let destination = read_destination(report, &fields);
    let target = read_target(report, &fields, scope);
    let ((destination, span), (target, text)) = (destination?, target?);
    if !may_lead(report, destination, span, target, scope) {
        return None;
    }
    let route = Route {
        destination,
        target,
        target_text: text.to_owned(),
        place: report.place(item.span),
    };
    Some((route, span))
}

fn read_destination(report: &mut Report, fields: &Fields<'_>) -> Option<(IpNet, Span)> {
    let help = "write a CIDR block, `0.0.0.0/0` for every IPv4 address";
    let Some(node) = fields.get("to") else {
        report
            .error(fields.span, "the route has no `to`")
            .help(help);
        return None;
    };
    if matches!(node.value, Value::List(_)) {
        report
            .error(
                node.span,
                "`to`: a route has one destination, and this is a list",
            )
            .help("write a route for each block");
        return None;
    }
    let text = report.text(node, "`to`", "`0.0.0.0/0`")?;
    if let Some(net) = parse_net(text) {
        return Some((report.canonical(node, net), node.span));
    }
    let help = if text.starts_with("pl/") || is_id(text, "pl") {
        "a route to a prefix list is not supported: write a route for each of its entries".into()
    } else {
        cidr_help(text)
    };
    report
        .error(
            node.span,
            format!("`to`: {} is no CIDR block", quoted(text)),
        )
        .help(help);
    None
}

/// The target and how it is written.
fn read_target<'n>(
    report: &mut Report,
    fields: &Fields<'n>,
    scope: &Scope<'_>,
) -> Option<(RouteTarget, &'n str)> {
    let Some(node) = fields.get("via") else {
        report
            .error(fields.span, "the route has no `via`")
            .help(TARGET_HELP);
        return None;
    };
    let text = report.text(node, "`via`", "`via: igw`")?;
    let target = match text {
        "igw" => {
            if !scope.igw && !scope.incomplete {
                warn_of_nobody(report, node, "internet gateway", "igw");
            }
            RouteTarget::Igw
        }
        "vgw" => {
            if !scope.vgw && !scope.incomplete {
                warn_of_nobody(report, node, "virtual private gateway", "vgw");
            }
            RouteTarget::Vgw
        }
        "blackhole" => RouteTarget::Blackhole,
        _ => {
            let Some(name) = interface_name(text) else {
                unknown_target(report, node, text, scope);
                return None;
            };
            RouteTarget::Interface(find_interface(report, node, name, scope)?)
        }
    };
    Some((target, text))
}

fn warn_of_nobody(report: &mut Report, node: &Node, gateway: &str, via: &str) {
    report
        .warning(
            node.span,
            format!("nobody is behind the {gateway}: what takes this route reaches no one"),
        )
        .help(format!(
            "declare a host there, an entity with `kind: external, via: {via}`, or remove the route"
        ));
}

fn interface_name(text: &str) -> Option<&str> {
    match text.strip_prefix("eni/") {
        Some(name) => Some(name),
        None => is_id(text, "eni").then_some(text),
    }
}

fn unknown_target(report: &mut Report, node: &Node, text: &str, scope: &Scope<'_>) {
    let known = ["igw", "vgw", "blackhole"];
    let help = if text == "local" {
        "remove the route: the local route is always there".to_owned()
    } else if scope
        .entities
        .contains_key(text.split('/').next().unwrap_or(text))
    {
        format!(
            "write {} for the entity's interface",
            quoted(&format!("eni/{text}"))
        )
    } else if text.starts_with("igw-") || text.starts_with("vgw-") {
        format!("write `{}`: there is one, and it needs no id", &text[..3])
    } else if let Some(near) = super::suggest::nearest(text, known) {
        format!("did you mean `{near}`?")
    } else {
        format!(
            "routes lead to {} and `eni/NAME`; other gateways are not enforced yet",
            list_of(&known).replace(" and ", ", ")
        )
    };
    report
        .error(node.span, format!("a route can't lead to {}", quoted(text)))
        .help(help);
}

/// Finds `NAME`, `NAME/ethN` or an id, and sees to it that the interface can
/// be led to.
fn find_interface(
    report: &mut Report,
    node: &Node,
    name: &str,
    scope: &Scope<'_>,
) -> Option<InterfaceIx> {
    let ix = match scope.ids.get(name) {
        Some(ix) => *ix,
        None => find_by_name(report, node, name, scope)?,
    };
    let decl = &scope.interfaces[ix.ix()];
    if decl.interface.is_external() {
        report
            .error(
                node.span,
                format!(
                    "{} is outside the VPC, and routes lead to its interfaces",
                    quoted(&decl.label)
                ),
            )
            .also(decl.span, "the entity")
            .help("write `via: igw` or `via: vgw`, the gateway that it is behind");
        return None;
    }
    if decl.interface.source_dest_check {
        report
            .warning(
                node.span,
                format!(
                    "{} drops what this route brings it: its source/destination check is on",
                    quoted(&decl.label)
                ),
            )
            .also(decl.span, "the interface")
            .help("write `source_dest_check: false` there");
    }
    Some(ix)
}

fn find_by_name(
    report: &mut Report,
    node: &Node,
    name: &str,
    scope: &Scope<'_>,
) -> Option<InterfaceIx> {
    let (entity, device) = match name.split_once('/') {
        Some((entity, device)) => (entity, Some(device)),
        None => (name, None),
    };
    let Some(interfaces) = scope.entities.get(entity) else {
        if scope.incomplete {
            return None;
        }
        let (message, help) = if is_id(name, "eni") || name.starts_with("eni-") {
            (
                format!("there is no interface {}", quoted(name)),
                "write an entity's name, or give one of its interfaces this `id:`".to_owned(),
            )
        } else {
            let near = report.nearest(entity, scope.entities.keys().copied());
            let help = match near {
                Some(near) => format!("did you mean {}?", quoted(&format!("eni/{near}"))),
                None => "define it under `entities`, or use the name of one that is there".into(),
            };
            (format!("there is no entity {}", quoted(entity)), help)
        };
        report.error(node.span, message).help(help);
        return None;
    };
    let written = |ix: &InterfaceIx| {
        let device = scope.interfaces[ix.ix()].interface.device_name();
        format!("eni/{entity}/{device}")
    };
    let (message, these) = match (device, interfaces.as_slice()) {
        // It was declared, and what is wrong with it is said already.
        (_, []) => return None,
        (None, [only]) => return Some(*only),
        (None, _) => (
            format!(
                "{} has {} interfaces, and a route leads to one",
                quoted(entity),
                interfaces.len()
            ),
            "write",
        ),
        (Some(device), _) => {
            let found = interfaces
                .iter()
                .find(|ix| scope.interfaces[ix.ix()].interface.device_name() == device);
            if let Some(ix) = found {
                return Some(*ix);
            }
            (
                format!("{} has no interface {}", quoted(entity), quoted(device)),
                "there is",
            )
        }
    };
    let names: Vec<String> = interfaces.iter().map(written).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let choice = list_of(&names).replace(" and ", " or ");
    report
        .error(node.span, message)
        .help(format!("{these} {choice}"));
    None
}

/// What AWS admits as a destination, and where it may lead (aws-semantics §7).
fn may_lead(
    report: &mut Report,
    destination: IpNet,
    span: Span,
    target: RouteTarget,
    scope: &Scope<'_>,
) -> bool {
    if is_service_block(&destination) {
        report
            .error(
                span,
                format!("AWS admits no route to `{destination}`, which its own services use"),
            )
            .help("remove the route: none may lie within 169.254.168.0/22 or fd00:ec2::/32");
        return false;
    }
    if let Some(block) = NEVER_FORWARDED
        .iter()
        .filter_map(|block| parse_net(block))
        .find(|block| block.contains(&destination))
    {
        report
            .warning(
                span,
                format!("this route is never taken: no router forwards to `{block}`"),
            )
            .help("remove the route");
        return true;
    }
    let blocks = &scope.vpc.vpc.cidrs;
    let Some(block) = blocks.iter().find(|block| block.contains(&destination)) else {
        return true;
    };
    let to_interface = matches!(target, RouteTarget::Interface(_));
    if *block == destination {
        if !to_interface {
            report
                .error(
                    span,
                    format!("`{destination}` is the VPC's own block, and its local route can be replaced by one to an interface only"),
                )
                .help("write `via: eni/NAME`, or remove the route");
        }
        return to_interface;
    }
    let subnet = scope
        .subnets
        .iter()
        .find(|decl| decl.subnet.cidrs.contains(&destination));
    if subnet.is_some() && to_interface {
        return true;
    }
    if subnet.is_some() {
        report
            .error(
                span,
                format!("`{destination}` is a subnet of the VPC: a route more specific than the local one leads to an interface only"),
            )
            .help("write `via: eni/NAME`, or remove the route: the local route covers the subnet");
        return false;
    }
    if !scope.subnets.iter().all(|decl| decl.whole) || scope.incomplete {
        return false;
    }
    report
        .error(
            span,
            format!("`{destination}` lies in the VPC's block `{block}` and is no subnet: a route more specific than the local one must have a whole subnet's block"),
        )
        .help(whole_subnets(&destination, scope.subnets));
    false
}

/// The subnets' blocks that the destination touches, as what to write.
fn whole_subnets(destination: &IpNet, subnets: &[SubnetDecl]) -> String {
    let near: HashSet<IpNet> = subnets
        .iter()
        .flat_map(|decl| decl.subnet.cidrs.iter().copied())
        .filter(|cidr| super::net::overlap(cidr, destination))
        .collect();
    let mut near: Vec<IpNet> = near.into_iter().collect();
    near.sort_unstable();
    match near.as_slice() {
        [] => "remove the route, or name a subnet's whole block".to_owned(),
        [one] => format!("write `{one}`, and an interface as the target"),
        [first, ..] => {
            format!("write a route for each subnet's block, for example `{first}`")
        }
    }
}
