//! A model as the lab file that declares it, every id written out.

use std::fmt::Write as _;

use crate::models::place;
use ipnet::IpNet;
use sgwall::model::{
    AclEntry, Attachment, Direction, Entity, EntityIx, EntityKind, IcmpErrors, IcmpMatch,
    Interface, LoadBalancer, Model, SecurityGroupRule, Traffic, Via,
};

/// The lab file of `model`. Reading it gives the same model, but for the places
/// where things are declared.
pub fn render(model: &Model) -> String {
    let mut out = String::new();
    let line = &mut |indent: usize, text: String| {
        let _ = writeln!(out, "{:indent$}{text}", "");
    };
    let errors = match model.vpc.icmp_errors {
        IcmpErrors::ByRule => "rule",
        IcmpErrors::Related => "related",
    };
    let vpc = &model.vpc;
    line(
        0,
        format!(
            "vpc: {{ id: {}, cidr: {}, icmp_errors: {errors} }}",
            vpc.id,
            nets(&vpc.cidrs)
        ),
    );
    line(0, "subnets:".into());
    for subnet in &model.subnets {
        line(
            2,
            format!(
                "{}: {{ id: {}, cidr: {}, network_acl: {}, route_table: {} }}",
                subnet.name,
                subnet.id,
                nets(&subnet.cidrs),
                model.network_acls[subnet.network_acl.ix()].name,
                model.route_tables[subnet.route_table.ix()].name,
            ),
        );
    }
    if !model.prefix_lists.is_empty() {
        line(0, "prefix_lists:".into());
    }
    for list in &model.prefix_lists {
        let entries = nets(&list.entries);
        line(
            2,
            format!("{}: {{ id: {}, entries: {entries} }}", list.name, list.id),
        );
    }
    line(0, "security_groups:".into());
    for group in &model.security_groups {
        line(2, format!("{}:", group.name));
        line(4, format!("id: {}", group.id));
        for direction in [Direction::Ingress, Direction::Egress] {
            let rules = group.rules(direction);
            let items = rules.iter().map(|rule| rule_line(rule, direction));
            block(line, direction.as_str(), items);
        }
    }
    line(0, "network_acls:".into());
    for acl in &model.network_acls {
        line(2, format!("{}:", acl.name));
        line(4, format!("id: {}", acl.id));
        for direction in [Direction::Ingress, Direction::Egress] {
            let entries = acl.entries(direction);
            let items = entries.iter().map(|entry| entry_line(entry, direction));
            block(line, direction.as_str(), items);
        }
    }
    line(0, "route_tables:".into());
    for table in &model.route_tables {
        line(2, format!("{}:", table.name));
        line(4, format!("id: {}", table.id));
        let items = table
            .routes
            .iter()
            .map(|route| format!("to: \"{}\", via: {}", route.destination, route.target_text));
        block(line, "routes", items);
    }
    line(0, "entities:".into());
    for (ix, entity) in model.entities.iter().enumerate() {
        line(2, format!("{}:", entity.name));
        line(4, format!("kind: {}", kind(entity)));
        if let Some(most) = entity.max_flows {
            line(4, format!("tracking: {{ max_flows: {most} }}"));
        }
        let interfaces = model.interfaces_of(EntityIx::new(ix));
        if let EntityKind::External(_) = entity.kind {
            for (_, interface) in interfaces {
                line(4, format!("mtu: {}", interface.mtu));
                line(4, format!("addresses: {}", privates(interface)));
            }
        } else {
            let items = interfaces.map(|(_, interface)| interface_line(model, interface));
            block(line, "interfaces", items);
        }
    }
    out
}

/// A list under a key, an item a line.
fn block(line: &mut impl FnMut(usize, String), key: &str, items: impl Iterator<Item = String>) {
    let mut items = items.peekable();
    if items.peek().is_none() {
        line(4, format!("{key}: []"));
        return;
    }
    line(4, format!("{key}:"));
    for item in items {
        line(6, format!("- {{ {item} }}"));
    }
}

fn rule_line(rule: &SecurityGroupRule, direction: Direction) -> String {
    format!(
        "id: {}, {}, {}: \"{}\"",
        rule.id,
        traffic(rule.traffic),
        side(direction),
        rule.peer_text
    )
}

fn entry_line(entry: &AclEntry, direction: Direction) -> String {
    // AWS ignores types of ICMPv6 with an IPv4 block, and warns of them.
    let traffic = match (entry.traffic, entry.cidr) {
        (Traffic::Icmpv6(_), IpNet::V4(_)) => "protocol: icmpv6".to_owned(),
        (other, _) => traffic(other),
    };
    format!(
        "rule: {}, action: {}, {traffic}, {}: \"{}\"",
        entry.number,
        entry.action,
        side(direction),
        entry.cidr
    )
}

fn traffic(traffic: Traffic) -> String {
    match traffic {
        Traffic::All => "protocol: all".into(),
        Traffic::Tcp(ports) => format!("protocol: tcp, ports: {ports}"),
        Traffic::Udp(ports) => format!("protocol: udp, ports: {ports}"),
        Traffic::Icmp(icmp) => format!("protocol: icmp, {}", messages(icmp)),
        Traffic::Icmpv6(icmp) => format!("protocol: icmpv6, {}", messages(icmp)),
        Traffic::Other(number) => format!("protocol: {number}"),
    }
}

fn messages(icmp: IcmpMatch) -> String {
    match icmp {
        IcmpMatch::Any => "type: -1, code: -1".into(),
        IcmpMatch::Type(kind) => format!("type: {kind}, code: -1"),
        IcmpMatch::TypeAndCode(kind, code) => format!("type: {kind}, code: {code}"),
    }
}

fn side(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    }
}

fn kind(entity: &Entity) -> String {
    match entity.kind {
        EntityKind::External(Via::Igw) => "external\n    via: igw".into(),
        EntityKind::External(Via::Vgw) => "external\n    via: vgw".into(),
        EntityKind::Elb(LoadBalancer::Network) => "elb\n    type: network".into(),
        EntityKind::Elb(LoadBalancer::Application) => "elb\n    type: application".into(),
        kind => kind.to_string(),
    }
}

fn interface_line(model: &Model, interface: &Interface) -> String {
    let Attachment::Subnet { subnet, groups } = &interface.attachment else {
        unreachable!("hosts outside are written otherwise");
    };
    let groups: Vec<&str> = groups
        .iter()
        .map(|group| model.security_groups[group.ix()].name.as_str())
        .collect();
    let public: Vec<String> = interface
        .addresses
        .iter()
        .filter_map(|address| address.public)
        .map(|address| address.to_string())
        .collect();
    let public = match public.as_slice() {
        [] => String::new(),
        some => format!("public_addresses: [{}], ", some.join(", ")),
    };
    let tracking = interface.tracking;
    format!(
        "id: {}, subnet: {}, addresses: {}, {public}security_groups: [{}], \
         source_dest_check: {}, mtu: {}, \
         tracking: {{ tcp_established: {}, udp_timeout: {}, udp_stream: {} }}",
        interface.id,
        model.subnets[subnet.ix()].name,
        privates(interface),
        groups.join(", "),
        interface.source_dest_check,
        interface.mtu,
        tracking.tcp_established.as_secs(),
        tracking.udp_timeout.as_secs(),
        tracking.udp_stream.as_secs(),
    )
}

fn privates(interface: &Interface) -> String {
    let addresses: Vec<String> = interface
        .addresses
        .iter()
        .map(|address| format!("\"{}\"", address.private))
        .collect();
    format!("[{}]", addresses.join(", "))
}

fn nets(nets: &[IpNet]) -> String {
    let quoted: Vec<String> = nets.iter().map(|net| format!("\"{net}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// The model as if everything were declared in one place.
pub fn without_places(mut model: Model) -> Model {
    for subnet in &mut model.subnets {
        subnet.place = place();
    }
    for list in &mut model.prefix_lists {
        list.place = place();
    }
    for group in model.groups_mut() {
        group.place = place();
        for rule in group.ingress.iter_mut().chain(&mut group.egress) {
            rule.place = place();
        }
    }
    for acl in &mut model.network_acls {
        acl.place = place();
        for entry in acl.ingress.iter_mut().chain(&mut acl.egress) {
            entry.place = place();
        }
    }
    for table in &mut model.route_tables {
        table.place = place();
        for route in &mut table.routes {
            route.place = place();
        }
    }
    for entity in &mut model.entities {
        entity.place = place();
    }
    for interface in &mut model.interfaces {
        interface.place = place();
    }
    model
}
