//! Models bent so that an evaluator that is right goes wrong in one way.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sgwall::model::{
    AclAction, AclEntry, AclIx, Attachment, EntityIx, EntityKind, GroupIx, IcmpErrors, IcmpMatch,
    LoadBalancer, MAX_ACL_RULE, Model, Peer, PortRange, PrefixList, PrefixListIx, RouteTableIx,
    RouteTarget, RuleId, SecurityGroup, SecurityGroupRule, SubnetIx, Traffic,
};

use crate::models::place;

pub fn ports_end_early(model: &mut Model) {
    each_range(model, |range| {
        if range.from < range.to {
            range.to -= 1;
        }
    });
}

pub fn ports_begin_early(model: &mut Model) {
    each_range(model, |range| range.from = range.from.saturating_sub(1));
}

pub fn ingress_open(model: &mut Model) {
    for group in model.groups_mut() {
        for peer in [
            Peer::Ipv4(Ipv4Net::default()),
            Peer::Ipv6(Ipv6Net::default()),
        ] {
            group.ingress.push(SecurityGroupRule {
                id: RuleId(1),
                traffic: Traffic::All,
                peer,
                peer_text: String::new(),
                description: String::new(),
                place: place(),
            });
        }
    }
}

pub fn first_group_only(model: &mut Model) {
    each_membership(model, |groups| groups.truncate(1));
}

pub fn groups_reversed(model: &mut Model) {
    each_membership(model, |groups| groups.reverse());
}

pub fn groups_cover_public(model: &mut Model) {
    replace_group_peers(model, |model, group| {
        let mut entries = Vec::new();
        for interface in &model.interfaces {
            if interface.groups().contains(&group) {
                for address in &interface.addresses {
                    entries.push(address.private);
                    entries.extend(address.public.map(IpAddr::V4));
                }
            }
        }
        entries
    });
}

pub fn no_self_reference(model: &mut Model) {
    for (ix, group) in model.groups_mut().enumerate() {
        let other = |rule: &SecurityGroupRule| !matches!(rule.peer, Peer::Group(g) if g.ix() == ix);
        group.ingress.retain(other);
        group.egress.retain(other);
    }
}

/// Forgets second addresses where groups are resolved, nowhere else.
pub fn primary_only(model: &mut Model) {
    replace_group_peers(model, |model, group| {
        model
            .interfaces
            .iter()
            .filter(|interface| interface.groups().contains(&group))
            .filter_map(|interface| Some(interface.addresses.first()?.private))
            .collect()
    });
}

/// Knows members by their addresses alone, whoever sends under them.
pub fn membership_by_address(model: &mut Model) {
    replace_group_peers(model, |model, group| {
        model
            .interfaces
            .iter()
            .filter(|interface| interface.groups().contains(&group))
            .flat_map(|interface| interface.addresses.iter().map(|a| a.private))
            .collect()
    });
}

pub fn first_entry_only(model: &mut Model) {
    for list in &mut model.prefix_lists {
        list.entries.truncate(1);
    }
}

pub fn pairs_as_hosts(model: &mut Model) {
    each_rule(model, |rule| {
        if let Peer::Ipv4(block) = &mut rule.peer
            && block.prefix_len() == 31
        {
            *block = Ipv4Net::from(block.network());
        }
    });
}

pub fn codes_ignored(model: &mut Model) {
    each_rule(model, |rule| {
        if let Traffic::Icmp(icmp) | Traffic::Icmpv6(icmp) = &mut rule.traffic
            && let IcmpMatch::TypeAndCode(kind, _) = *icmp
        {
            *icmp = IcmpMatch::Type(kind);
        }
    });
}

pub fn acls_reversed(model: &mut Model) {
    each_acl(model, |entries| {
        for entry in entries {
            entry.number = MAX_ACL_RULE + 1 - entry.number;
        }
    });
}

pub fn acls_allow_rest(model: &mut Model) {
    each_acl(model, |entries| {
        entries.extend(everything(u16::MAX));
    });
}

/// All entries allow everything.
pub fn acls_open(model: &mut Model) {
    each_acl(model, |entries| *entries = everything(1).to_vec());
}

/// Entries that allow count for nothing; the rest passes.
pub fn acls_deny_all(model: &mut Model) {
    each_acl(model, |entries| {
        entries.retain(|entry| entry.action == AclAction::Deny);
        entries.extend(everything(u16::MAX));
    });
}

pub fn default_acl_only(model: &mut Model) {
    for subnet in &mut model.subnets {
        subnet.network_acl = AclIx::new(0);
    }
}

/// Gives each interface a subnet of its own that holds no addresses, so that
/// all it sends leaves it.
pub fn routers_inside_subnets(model: &mut Model) {
    for interface in &mut model.interfaces {
        if let Attachment::Subnet { subnet, .. } = &mut interface.attachment {
            let mut own = model.subnets[subnet.ix()].clone();
            own.cidrs.clear();
            *subnet = SubnetIx::new(model.subnets.len());
            model.subnets.push(own);
        }
    }
}

/// Takes every route that a wider one before it covers; what is left is found
/// in order as well as by length. The local routes come first.
pub fn first_route_wins(model: &mut Model) {
    let local = model.vpc.cidrs.clone();
    for table in &mut model.route_tables {
        let mut before = local.clone();
        table.routes.retain(|route| {
            let hidden = before
                .iter()
                .any(|wider| wider.contains(&route.destination) && *wider != route.destination);
            before.push(route.destination);
            !hidden
        });
    }
}

pub fn no_blackholes(model: &mut Model) {
    for table in &mut model.route_tables {
        table
            .routes
            .retain(|route| route.target != RouteTarget::Blackhole);
    }
}

pub fn local_stays(model: &mut Model) {
    let local = model.vpc.cidrs.clone();
    for table in &mut model.route_tables {
        table
            .routes
            .retain(|route| !local.contains(&route.destination));
    }
}

pub fn main_table_only(model: &mut Model) {
    for subnet in &mut model.subnets {
        subnet.route_table = RouteTableIx::new(0);
    }
}

pub fn check_always_on(model: &mut Model) {
    for interface in &mut model.interfaces {
        interface.source_dest_check = true;
    }
}

pub fn mtu_one_more(model: &mut Model) {
    for interface in &mut model.interfaces {
        interface.mtu += 1;
    }
}

pub fn established_longer(model: &mut Model) {
    for interface in &mut model.interfaces {
        interface.tracking.tcp_established += Duration::from_millis(1);
    }
}

pub fn stream_longer(model: &mut Model) {
    for interface in &mut model.interfaces {
        interface.tracking.udp_stream += Duration::from_millis(1);
    }
}

/// Everybody in the VPC is a network load balancer, whose flows are tracked.
pub fn balancers_only(model: &mut Model) {
    for entity in &mut model.entities {
        if !matches!(entity.kind, EntityKind::External(_)) {
            entity.kind = EntityKind::Elb(LoadBalancer::Network);
        }
    }
}

pub fn no_network_balancers(model: &mut Model) {
    for entity in &mut model.entities {
        if entity.kind == EntityKind::Elb(LoadBalancer::Network) {
            entity.kind = EntityKind::Elb(LoadBalancer::Application);
        }
    }
}

pub fn always_related(model: &mut Model) {
    model.vpc.icmp_errors = IcmpErrors::Related;
}

pub fn never_related(model: &mut Model) {
    model.vpc.icmp_errors = IcmpErrors::ByRule;
}

pub fn allowance_one_more(model: &mut Model) {
    for entity in &mut model.entities {
        entity.max_flows = entity.max_flows.map(|most| most + 1);
    }
}

pub fn entity_per_interface(model: &mut Model) {
    for interface in &mut model.interfaces {
        let own = model.entities[interface.entity.ix()].clone();
        interface.entity = EntityIx::new(model.entities.len());
        model.entities.push(own);
    }
}

/// Turns every reference to a group into a prefix list of its members, as
/// `members` sees them.
fn replace_group_peers(model: &mut Model, members: impl Fn(&Model, GroupIx) -> Vec<IpAddr>) {
    let first = model.prefix_lists.len();
    for ix in 0..model.security_groups.len() {
        let entries = members(model, GroupIx::new(ix));
        model.prefix_lists.push(PrefixList {
            id: format!("pl-members-{ix}"),
            name: format!("members{ix}"),
            entries: entries.into_iter().map(IpNet::from).collect(),
            place: place(),
        });
    }
    each_rule(model, |rule| {
        if let Peer::Group(group) = rule.peer {
            rule.peer = Peer::PrefixList(PrefixListIx::new(first + group.ix()));
        }
    });
}

fn everything(number: u16) -> [AclEntry; 2] {
    [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())].map(|cidr| AclEntry {
        number,
        action: AclAction::Allow,
        traffic: Traffic::All,
        cidr,
        place: place(),
    })
}

fn each_acl(model: &mut Model, change: impl Fn(&mut Vec<AclEntry>)) {
    for acl in &mut model.network_acls {
        change(&mut acl.ingress);
        change(&mut acl.egress);
    }
}

fn each_rule(model: &mut Model, mut change: impl FnMut(&mut SecurityGroupRule)) {
    for SecurityGroup {
        ingress, egress, ..
    } in model.groups_mut()
    {
        ingress.iter_mut().chain(egress).for_each(&mut change);
    }
}

fn each_range(model: &mut Model, change: impl Fn(&mut PortRange)) {
    each_rule(model, |rule| {
        if let Traffic::Tcp(range) | Traffic::Udp(range) = &mut rule.traffic
            && *range != PortRange::ALL
        {
            change(range);
        }
    });
}

fn each_membership(model: &mut Model, change: impl Fn(&mut Vec<GroupIx>)) {
    for interface in &mut model.interfaces {
        if let Attachment::Subnet { groups, .. } = &mut interface.attachment {
            change(groups);
        }
    }
}
