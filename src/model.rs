//! What a user declares, validated: one VPC with its subnets, security groups,
//! prefix lists, network ACLs, route tables, entities and their network
//! interfaces.
//!
//! A [`Model`] is plain data. It is made by `config` (and later by importers),
//! read by `policy` (which compiles it) and by the test oracle (which
//! evaluates it slowly). Nothing here opens a file or knows a packet.
//!
//! Invariants, checked by whoever builds a `Model` and relied on by its readers:
//! * every index (`SubnetIx`, `GroupIx`, …) is within its list;
//! * networks in peers, ACL entries, routes and subnets are canonical (host
//!   bits cleared);
//! * ACL entries are sorted by number, which is unique in its direction; the
//!   destinations of a route table are unique;
//! * a private address belongs to one interface only, likewise a public one;
//! * entity and group names are unique (groups without regard to case).

use std::sync::Arc;

mod acl;
mod entity;
mod group;
mod id;
mod place;
mod route;
mod topology;
mod vpc;

pub use acl::{ACL_DENY_REST, AclAction, AclEntry, DEFAULT_ACL, MAX_ACL_RULE, NetworkAcl};
pub use entity::{
    Address, Attachment, Entity, EntityKind, GATEWAY_MTU, Interface, LoadBalancer, MAX_MTU,
    MIN_MTU, Tracking, Via,
};
pub use group::{
    DEFAULT_GROUP, Direction, IcmpMatch, Member, Peer, PortRange, PrefixList, SecurityGroup,
    SecurityGroupRule, Traffic, protocol, protocol_name,
};
pub use id::{
    AclIx, EntityIx, GroupIx, InterfaceIx, PrefixListIx, RouteTableIx, RuleId, SubnetIx, derive_id,
};
pub use place::Place;
pub use route::{MAIN_ROUTE_TABLE, Route, RouteTable, RouteTarget};
pub use topology::TopologyChange;
pub use vpc::{IcmpErrors, Subnet, Vpc};

/// One VPC as declared, with everything that lives in it or reaches it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model {
    /// The VPC itself.
    pub vpc: Vpc,
    /// Subnets, in the order declared.
    pub subnets: Vec<Subnet>,
    /// Prefix lists, in the order declared.
    pub prefix_lists: Vec<PrefixList>,
    /// Security groups, in the order declared; the VPC's `default` group is
    /// always among them. Each behind an `Arc`: who clones a model to change one group
    /// shares all others, and a policy shares them with the model.
    pub security_groups: Vec<Arc<SecurityGroup>>,
    /// Network ACLs, in the order declared; the VPC's `default` ACL is always
    /// among them.
    pub network_acls: Vec<NetworkAcl>,
    /// Route tables, in the order declared; the VPC's `main` table is always
    /// among them.
    pub route_tables: Vec<RouteTable>,
    /// Entities, in the order declared.
    pub entities: Vec<Entity>,
    /// Every network interface of every entity, grouped by entity in order.
    pub interfaces: Vec<Interface>,
    /// Interfaces elsewhere, each address once; the groups of an interface among
    /// [`Self::interfaces`] are those that it carries.
    pub members: Vec<Member>,
}

impl Model {
    /// The same with AWS's default network ACL and main route table, unless it
    /// has tables of its own.
    #[must_use]
    pub fn with_implied_tables(mut self) -> Self {
        let place = Place::implied("AWS".into());
        if self.network_acls.is_empty() {
            let id = derive_id("acl", &[DEFAULT_ACL]);
            self.network_acls = vec![NetworkAcl::implied(id, self.vpc.has_ipv6(), &place)];
        }
        if self.route_tables.is_empty() {
            let id = derive_id("rtb", &[MAIN_ROUTE_TABLE]);
            self.route_tables = vec![RouteTable::implied(id, self.interfaces.iter(), &place)];
        }
        self
    }

    /// A group to change; whoever shares it keeps it as it is.
    pub fn group_mut(&mut self, group: GroupIx) -> &mut SecurityGroup {
        Arc::make_mut(&mut self.security_groups[group.ix()])
    }

    /// All groups to change, likewise.
    pub fn groups_mut(&mut self) -> impl Iterator<Item = &mut SecurityGroup> {
        self.security_groups.iter_mut().map(Arc::make_mut)
    }

    /// The entity that owns `interface`.
    pub fn entity_of(&self, interface: InterfaceIx) -> &Entity {
        &self.entities[self.interfaces[interface.ix()].entity.ix()]
    }

    /// Interfaces with their indices.
    pub fn interfaces(&self) -> impl Iterator<Item = (InterfaceIx, &Interface)> {
        self.interfaces
            .iter()
            .enumerate()
            .map(|(i, interface)| (InterfaceIx::new(i), interface))
    }

    /// The entity called `name`, if there is one.
    pub fn entity(&self, name: &str) -> Option<(EntityIx, &Entity)> {
        self.entities
            .iter()
            .enumerate()
            .find(|(_, entity)| entity.name == name)
            .map(|(i, entity)| (EntityIx::new(i), entity))
    }

    /// The interfaces of one entity, `eth0` first.
    pub fn interfaces_of(
        &self,
        entity: EntityIx,
    ) -> impl Iterator<Item = (InterfaceIx, &Interface)> {
        self.interfaces()
            .filter(move |(_, interface)| interface.entity == entity)
    }

    /// A name for people: the entity, and the device where it has several.
    pub fn interface_label(&self, interface: InterfaceIx) -> String {
        let this = &self.interfaces[interface.ix()];
        let entity = &self.entities[this.entity.ix()];
        // An entity's interfaces stand side by side.
        let beside = [interface.ix().checked_sub(1), Some(interface.ix() + 1)];
        let mut beside = beside.into_iter().flatten();
        if beside.any(|at| (self.interfaces.get(at)).is_some_and(|it| it.entity == this.entity)) {
            format!("{}/{}", entity.name, this.device_name())
        } else {
            entity.name.clone()
        }
    }
}
