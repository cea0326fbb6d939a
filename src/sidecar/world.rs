//! The model that a sidecar enforces: the interfaces of one namespace, each with the
//! network around it behind a wire, guarded by groups from rule files.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::LoadedRules;
use crate::model::{
    AclIx, Address, Attachment, Entity, EntityIx, EntityKind, GroupIx, Interface, InterfaceIx,
    MAX_MTU, Member, Model, NetworkAcl, Peer, Place, PortRange, Route, RouteTable, RouteTableIx,
    RouteTarget, RuleId, SecurityGroup, SecurityGroupRule, Subnet, SubnetIx, Tracking, Traffic,
    Via, Vpc, derive_id,
};
use crate::policy;

/// Port of DNS (RFC 1035 §4.2).
const DNS: u16 = 53;
/// Name of the group that stands for what AWS never filters.
const SERVICES: &str = "aws-services";

/// An interface that is to be guarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// `eth0`.
    pub name: String,
    /// Its addresses, link-local ones included.
    pub addresses: Vec<IpAddr>,
    /// Largest packet in bytes.
    pub mtu: u32,
}

/// What a sidecar was asked to enforce.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Names or ids of the groups that its interfaces carry.
    pub groups: Vec<String>,
    /// Addresses of the resolvers, which stand for the one that AWS provides.
    pub resolvers: Vec<IpAddr>,
    /// What the workload stands in for.
    pub kind: Option<EntityKind>,
}

/// A group that no rule file declares.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no rule file has a security group '{asked}'; there are {}", declared.join(", "))]
pub struct UnknownGroup {
    /// The name as asked.
    pub asked: String,
    /// The names that exist.
    pub declared: Vec<String>,
}

/// Makes the model. Interfaces stand at the even positions in the order given, the
/// wire of each behind it. `members` are addresses elsewhere with their groups, each
/// once.
///
/// # Errors
/// A group that isn't declared.
pub fn model(
    rules: &LoadedRules,
    asked: &Asked,
    interfaces: &[Guarded],
    members: BTreeMap<IpAddr, Vec<GroupIx>>,
) -> Result<Model, UnknownGroup> {
    let place = Place::implied("sidecar".into());
    let mut groups = find_groups(rules, &asked.groups)?;
    let mut security_groups = rules.security_groups.clone();
    groups.push(GroupIx::new(security_groups.len()));
    security_groups.push(Arc::new(services(rules, &asked.resolvers, &place)));

    let mut model = Model {
        vpc: Vpc {
            id: derive_id("vpc", &["sidecar"]),
            // What is here; all else is on the wire.
            cidrs: interfaces
                .iter()
                .flat_map(|interface| &interface.addresses)
                .map(|address| IpNet::from(*address))
                .collect(),
            ..Vpc::default()
        },
        security_groups,
        prefix_lists: rules.prefix_lists.clone(),
        network_acls: vec![NetworkAcl::implied(
            derive_id("acl", &["sidecar"]),
            true,
            &place,
        )],
        members: members
            .into_iter()
            .map(|(address, groups)| Member { address, groups })
            .collect(),
        ..Model::default()
    };
    for (i, interface) in interfaces.iter().enumerate() {
        attach(&mut model, i, interface, &groups, asked.kind, &place);
    }
    Ok(model)
}

/// Puts an interface and its wire into the model.
fn attach(
    model: &mut Model,
    i: usize,
    interface: &Guarded,
    groups: &[GroupIx],
    kind: Option<EntityKind>,
    place: &Place,
) {
    let name = &interface.name;
    let wire = InterfaceIx::new(2 * i + 1);
    let route = |destination: IpNet| Route {
        destination,
        target: RouteTarget::Wire(wire),
        target_text: format!("the network of {name}"),
        place: place.clone(),
    };
    model.route_tables.push(RouteTable {
        id: derive_id("rtb", &["sidecar", name]),
        name: name.clone(),
        routes: vec![
            route(Ipv4Net::default().into()),
            route(Ipv6Net::default().into()),
        ],
        place: place.clone(),
    });
    model.subnets.push(Subnet {
        id: derive_id("subnet", &["sidecar", name]),
        name: name.clone(),
        // Nobody else is in it: every packet takes the wire.
        cidrs: Vec::new(),
        network_acl: AclIx::new(0),
        route_table: RouteTableIx::new(i),
        place: place.clone(),
    });
    let mtu = u16::try_from(interface.mtu).unwrap_or(u16::MAX);
    let own = interface.addresses.iter().map(|address| Address {
        private: *address,
        public: None,
    });
    let ends = [
        (
            name.clone(),
            kind.unwrap_or(EntityKind::Ecs),
            Attachment::Subnet {
                subnet: SubnetIx::new(i),
                groups: groups.to_vec(),
            },
            own.collect(),
            mtu,
        ),
        (
            format!("{name}-wire"),
            EntityKind::External(Via::Wire),
            Attachment::External(Via::Wire),
            Vec::new(),
            mtu.max(MAX_MTU),
        ),
    ];
    for (name, kind, attachment, addresses, mtu) in ends {
        let entity = EntityIx::new(model.entities.len());
        model.interfaces.push(Interface {
            id: derive_id("eni", &["sidecar", &name]),
            entity,
            device: 0,
            attachment,
            addresses,
            mtu,
            source_dest_check: true,
            tracking: Tracking::default(),
            place: place.clone(),
        });
        model.entities.push(Entity {
            name,
            kind,
            engine: None,
            run: None,
            max_flows: None,
            place: place.clone(),
        });
    }
}

fn find_groups(rules: &LoadedRules, asked: &[String]) -> Result<Vec<GroupIx>, UnknownGroup> {
    let mut found = Vec::new();
    for name in asked {
        let plain = name.strip_prefix("sg/").unwrap_or(name);
        let is_it = |group: &Arc<SecurityGroup>| group.name == plain || group.id == plain;
        let at = rules.security_groups.iter().position(is_it);
        let at = GroupIx::new(at.ok_or_else(|| {
            UnknownGroup {
                asked: name.clone(),
                declared: (rules.security_groups.iter())
                    .map(|group| group.name.clone())
                    .collect(),
            }
        })?);
        if !found.contains(&at) {
            found.push(at);
        }
    }
    Ok(found)
}

/// What a workload on AWS reaches whatever its groups say (aws-semantics §4), as rules
/// of a group that every interface carries: instance and task metadata, the time, and
/// the resolver's port at the resolvers that the workload is told to use.
fn services(rules: &LoadedRules, resolvers: &[IpAddr], place: &Place) -> SecurityGroup {
    let taken = |name: &str| {
        let same = |group: &Arc<SecurityGroup>| group.name.eq_ignore_ascii_case(name);
        rules.security_groups.iter().any(same)
    };
    let mut name = SERVICES.to_owned();
    while taken(&name) {
        name.push('+');
    }
    let id = derive_id("sg", &["sidecar", SERVICES]);
    let rule = |address: IpAddr, traffic: Traffic, what: String| SecurityGroupRule {
        id: RuleId::derive(&[&id, &address.to_string(), &traffic.to_string()]),
        traffic,
        peer: match address {
            IpAddr::V4(v4) => Peer::Ipv4(v4.into()),
            IpAddr::V6(v6) => Peer::Ipv6(v6.into()),
        },
        peer_text: address.to_string(),
        description: format!("AWS never filters {what}"),
        place: place.clone(),
    };
    let mut egress: Vec<SecurityGroupRule> = policy::everywhere()
        .map(|(address, service)| rule(address, Traffic::All, service.to_string()))
        .collect();
    let port = PortRange { from: DNS, to: DNS };
    for resolver in resolvers {
        for traffic in [Traffic::Udp(port), Traffic::Tcp(port)] {
            egress.push(rule(*resolver, traffic, "the resolver".to_owned()));
        }
    }
    SecurityGroup {
        name,
        description: "What AWS never filters".to_owned(),
        ingress: Vec::new(),
        egress,
        place: place.clone(),
        id,
    }
}

#[cfg(test)]
mod tests;
