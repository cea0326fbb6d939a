//! `vpc:` and `subnets:`.

use ipnet::IpNet;

use super::diagnostic::{Report, quoted};
use super::names::Lookup;
use super::net::{may_be_vpc, overlap};
use super::reader::{Entry, list_of};
use super::source::Span;
use super::suggest::nearest;
use super::yaml::Node;
use crate::model::{
    AclIx, DEFAULT_ACL, IcmpErrors, MAIN_ROUTE_TABLE, RouteTableIx, Subnet, Vpc, derive_id,
};

/// The VPC, with the places of its blocks.
#[derive(Debug, Default)]
pub(super) struct VpcDecl {
    pub(super) vpc: Vpc,
    /// Whether every block could be read; without that nothing can be held
    /// against them.
    pub(super) whole: bool,
}

/// A subnet, with the places needed to complain about it later.
#[derive(Debug)]
pub(super) struct SubnetDecl {
    pub(super) subnet: Subnet,
    pub(super) key: Span,
    pub(super) id: Span,
    /// Whether every block could be read.
    pub(super) whole: bool,
}

/// Most blocks of a VPC, and of all its subnets; AWS admits 50 and, by
/// default, 200 (VPC quotas).
const MAX_VPC_BLOCKS: usize = 50;
const MAX_SUBNET_BLOCKS: usize = 5000;

const VPC_HELP: &str = "write for example `vpc: { cidr: [10.0.0.0/16] }`";

/// Reads `vpc:`.
pub(super) fn read_vpc(report: &mut Report, node: &Node) -> VpcDecl {
    let mut decl = VpcDecl::default();
    decl.vpc.id = derive_id("vpc", &["vpc"]);
    let Some(fields) = report.fields(node, "`vpc`", &["id", "cidr", "icmp_errors"]) else {
        return decl;
    };
    if let Some(node) = fields.get("icmp_errors") {
        decl.vpc.icmp_errors = read_icmp_errors(report, node);
    }
    if let Some(node) = fields.get("id")
        && let Some(id) = report.id(node, "the VPC", "vpc")
    {
        decl.vpc.id = id;
    }
    let Some(cidr) = fields.get("cidr") else {
        report
            .error(fields.span, "`vpc` has no `cidr`")
            .help(VPC_HELP);
        return decl;
    };
    let Some(items) = report.one_or_list(cidr, "`cidr` of the VPC", VPC_HELP) else {
        return decl;
    };
    decl.whole = true;
    let mut seen: Vec<(IpNet, Span)> = Vec::new();
    if let Some(extra) = items.get(MAX_VPC_BLOCKS) {
        report
            .error(
                extra.span,
                format!("the VPC has more than {MAX_VPC_BLOCKS} blocks"),
            )
            .help("join neighbouring blocks");
        decl.whole = false;
    }
    for item in items.iter().take(MAX_VPC_BLOCKS) {
        let Some(net) = read_block(report, item, "`cidr` of the VPC", (16, 28), (32, 64)) else {
            decl.whole = false;
            continue;
        };
        if !may_be_vpc(&net) {
            report
                .error(item.span, format!("`{net}` holds loopback, link-local, multicast or reserved addresses, which a VPC never carries"))
                .help("use a private block, for example `10.0.0.0/16`");
            decl.whole = false;
            continue;
        }
        if let Some((other, first)) = seen.iter().find(|(other, _)| overlap(other, &net)) {
            report
                .error(
                    item.span,
                    format!("`{net}` overlaps `{other}`, another block of the VPC"),
                )
                .also(*first, "the other block")
                .help("the blocks of a VPC must not share addresses");
            decl.whole = false;
            continue;
        }
        seen.push((net, item.span));
    }
    if decl.whole && seen.iter().all(|(net, _)| matches!(net, IpNet::V6(_))) {
        // CreateVpc always requires an IPv4 block: its CidrBlock, or one from a pool.
        report
            .error(cidr.span, "the VPC has no IPv4 block")
            .help("add one, for example `10.0.0.0/16`: on AWS every VPC has an IPv4 block; a subnet may have IPv6 alone");
    }
    decl.vpc.cidrs = seen.into_iter().map(|(net, _)| net).collect();
    decl
}

fn read_icmp_errors(report: &mut Report, node: &Node) -> IcmpErrors {
    let known = ["rule", "related"];
    let what = "`icmp_errors` of the VPC";
    let help = match report.text(node, what, "`icmp_errors: related`") {
        None => return IcmpErrors::default(),
        Some("rule") => return IcmpErrors::ByRule,
        Some("related") => return IcmpErrors::Related,
        Some(other) => match nearest(other, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "write `rule`, AWS's newest text: an ICMP error needs a rule; or `related`, which lets in those about a tracked flow too".to_owned(),
        },
    };
    report
        .error(node.span, format!("{what} is one of {}", list_of(&known)))
        .help(help);
    IcmpErrors::default()
}

/// What subnets are read against.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    pub(super) vpc: &'a VpcDecl,
    pub(super) acls: &'a Lookup<AclIx>,
    pub(super) tables: &'a Lookup<RouteTableIx>,
    /// Something is missing from the files, so a missing name proves nothing.
    pub(super) incomplete: bool,
}

/// Reads `subnets:`.
pub(super) fn read_subnets(
    report: &mut Report,
    entries: &[Entry<'_>],
    scope: &Scope<'_>,
) -> Vec<SubnetDecl> {
    let mut decls = Vec::with_capacity(entries.len());
    let mut seen: Vec<(IpNet, Span)> = Vec::new();
    for entry in entries {
        check_name(report, entry, "a subnet", "subnet-");
        decls.push(read_subnet(report, entry, scope, &mut seen));
    }
    decls
}

/// Refuses names that can't be told from ids or don't fit a line.
pub(super) fn check_name(report: &mut Report, entry: &Entry<'_>, what: &str, id_prefix: &str) {
    let name = entry.name;
    let problem = if name.trim().is_empty() {
        "is empty"
    } else if name.chars().count() > 255 {
        "is longer than 255 characters"
    } else if name.starts_with(id_prefix) {
        "looks like an id"
    } else if name.chars().any(char::is_control) {
        "holds a control character"
    } else {
        return;
    };
    report
        .error(
            entry.key,
            format!("the name {} of {what} {problem}", quoted(name)),
        )
        .help(format!(
            "choose a name of 1 to 255 printable characters that does not start with `{id_prefix}`"
        ));
}

fn read_subnet(
    report: &mut Report,
    entry: &Entry<'_>,
    scope: &Scope<'_>,
    seen: &mut Vec<(IpNet, Span)>,
) -> SubnetDecl {
    let name = entry.name;
    let mut decl = SubnetDecl {
        subnet: Subnet {
            id: derive_id("subnet", &[name]),
            name: name.to_owned(),
            cidrs: Vec::new(),
            network_acl: scope.acls.get(DEFAULT_ACL).unwrap_or_default(),
            route_table: scope.tables.get(MAIN_ROUTE_TABLE).unwrap_or_default(),
            place: report.place(entry.key),
        },
        key: entry.key,
        id: entry.key,
        whole: false,
    };
    let what = format!("subnet {}", quoted(name));
    let known = ["id", "cidr", "network_acl", "route_table"];
    let Some(fields) = report.fields(entry.value, &what, &known) else {
        return decl;
    };
    if let Some(node) = fields.get("network_acl") {
        let kind = ("network ACL", "network_acls");
        let found = scope.acls.find(report, node, kind, scope.incomplete);
        decl.subnet.network_acl = found.unwrap_or_default();
    }
    if let Some(node) = fields.get("route_table") {
        let kind = ("route table", "route_tables");
        let found = scope.tables.find(report, node, kind, scope.incomplete);
        decl.subnet.route_table = found.unwrap_or_default();
    }
    if let Some(node) = fields.get("id")
        && let Some(id) = report.id(node, &what, "subnet")
    {
        decl.subnet.id = id;
        decl.id = node.span;
    }
    let help = "write for example `cidr: 10.0.1.0/24`, a block within the VPC's";
    let Some(cidr) = fields.get("cidr") else {
        report
            .error(entry.key, format!("{what} has no `cidr`"))
            .help(help);
        return decl;
    };
    let Some(items) = report.one_or_list(cidr, &format!("`cidr` of {what}"), help) else {
        return decl;
    };
    decl.whole = true;
    for item in items {
        if seen.len() == MAX_SUBNET_BLOCKS {
            report
                .error(
                    item.span,
                    format!("more than {MAX_SUBNET_BLOCKS} blocks in subnets"),
                )
                .help("split the lab");
            decl.whole = false;
            break;
        }
        match read_subnet_block(report, item, &what, scope.vpc, seen) {
            Some(net) => {
                let first = decl
                    .subnet
                    .cidrs
                    .iter()
                    .any(|cidr| matches!(cidr, IpNet::V4(_)));
                if first && matches!(net, IpNet::V4(_)) {
                    report
                        .error(item.span, format!("{what} has two IPv4 blocks"))
                        .help("on AWS a subnet has one IPv4 block; make a subnet for the other");
                }
                seen.push((net, item.span));
                decl.subnet.cidrs.push(net);
            }
            None => decl.whole = false,
        }
    }
    decl
}

fn read_subnet_block(
    report: &mut Report,
    item: &Node,
    what: &str,
    vpc: &VpcDecl,
    seen: &[(IpNet, Span)],
) -> Option<IpNet> {
    let net = read_block(
        report,
        item,
        &format!("`cidr` of {what}"),
        (16, 28),
        (44, 64),
    )?;
    if vpc.whole && !vpc.vpc.cidrs.iter().any(|block| block.contains(&net)) {
        let blocks: Vec<String> = vpc.vpc.cidrs.iter().map(ToString::to_string).collect();
        report
            .error(item.span, format!("`{net}` of {what} lies outside the VPC"))
            .help(format!(
                "choose a block within {}, or add one to `cidr` of the VPC",
                blocks.join(", ")
            ));
        return None;
    }
    if let Some((other, first)) = seen.iter().find(|(other, _)| overlap(other, &net)) {
        report
            .error(item.span, format!("`{net}` of {what} overlaps `{other}`"))
            .also(*first, "the other block")
            .help("subnets must not share addresses; choose a block of its own");
        return None;
    }
    Some(net)
}

/// A block whose prefix length AWS admits.
fn read_block(
    report: &mut Report,
    item: &Node,
    what: &str,
    v4: (u8, u8),
    v6: (u8, u8),
) -> Option<IpNet> {
    let net = report.cidr(item, what)?;
    let (family, (least, most)) = match net {
        IpNet::V4(_) => ("IPv4", v4),
        IpNet::V6(_) => ("IPv6", v6),
    };
    if (least..=most).contains(&net.prefix_len()) {
        return Some(net);
    }
    report
        .error(
            item.span,
            format!(
                "{what}: an {family} block must be from /{least} to /{most}, not /{}",
                net.prefix_len()
            ),
        )
        .help(format!("choose a prefix length from {least} to {most}"));
    None
}
