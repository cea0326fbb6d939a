//! What a user declares, validated: one VPC with its subnets, security groups,
//! prefix lists, entities and their network interfaces.
//!
//! A [`Model`] is plain data. It is made by `config` (and later by importers),
//! read by `policy` (which compiles it) and by the test oracle (which
//! evaluates it slowly). Nothing here opens a file or knows a packet.
//!
//! Invariants, checked by whoever builds a `Model` and relied on by its readers:
//! * every index (`SubnetIx`, `GroupIx`, …) is within its list;
//! * networks in peers and subnets are canonical (host bits cleared);
//! * a private address belongs to one interface only, likewise a public one;
//! * entity and group names are unique (groups without regard to case).

mod entity;
mod group;
mod id;
mod place;
mod topology;
mod vpc;

pub use entity::{
    Address, Attachment, Entity, EntityKind, Interface, MAX_MTU, MIN_MTU, Tracking, Via,
};
pub use group::{
    DEFAULT_GROUP, Direction, IcmpMatch, Peer, PortRange, PrefixList, SecurityGroup,
    SecurityGroupRule, Traffic, protocol, protocol_name,
};
pub use id::{EntityIx, GroupIx, InterfaceIx, PrefixListIx, RuleId, SubnetIx, derive_id};
pub use place::Place;
pub use topology::TopologyChange;
pub use vpc::{Subnet, Vpc};

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
    /// always among them.
    pub security_groups: Vec<SecurityGroup>,
    /// Entities, in the order declared.
    pub entities: Vec<Entity>,
    /// Every network interface of every entity, grouped by entity in order.
    pub interfaces: Vec<Interface>,
}

impl Model {
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
        if self.interfaces_of(this.entity).count() > 1 {
            format!("{}/{}", entity.name, this.device_name())
        } else {
            entity.name.clone()
        }
    }
}
