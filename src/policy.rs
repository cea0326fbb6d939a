//! A [`Model`] compiled into lookups whose cost doesn't
//! grow with the number of rules, groups or members.
//!
//! A [`Policy`] is immutable. A change compiles a new one beside it, which
//! takes over (by reference) every rule table that the change doesn't touch,
//! and is swapped in whole. Sans-IO.
//!
//! * [`RuleTable`]: the rules of one set of groups in one direction, found by
//!   peer (a prefix trie for CIDRs and prefix lists, a map for groups), then by
//!   protocol and port range. Interfaces with the same groups share one.
//! * [`PolicySubnet`]: a subnet's network ACL ([`AclTable`], both ways) and its
//!   route table ([`RouteIndex`]).
//! * [`Directory`]: who has which address, and where packets go.
//!
//! Referenced groups are not expanded into addresses: a table says "members of
//! `sg-web`", and the directory says which groups the owner of an address
//! carries. So a change of membership rebuilds the directory and the member's
//! own tables, nothing else.

mod acl;
mod directory;
mod matcher;

pub mod oracle;
mod reason;
mod routes;
mod service;
mod table;
mod trie;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{
    Address, Attachment, Direction, EntityKind, GroupIx, IcmpErrors, InterfaceIx, LoadBalancer,
    Model, Peer, SecurityGroup, Tracking, Via,
};

pub use acl::{AclDecision, AclTable};
pub use directory::{Directory, Hop, Owner, Path, Stranded};
pub use matcher::Query;
pub use reason::DropReason;
pub use routes::{CompiledRoute, RouteIndex, Target};
pub use service::{Service, is_forwardable};
pub use table::{CompiledRule, Coverage, GroupKey, RuleTable};

use table::{PeerSet, TableIndex};

/// The policy in force, or about to be.
#[derive(Debug)]
pub struct Policy {
    generation: u64,
    slots: Vec<Option<PolicyInterface>>,
    directory: Directory,
    groups: GroupNames,
    icmp_errors: IcmpErrors,
}

/// An interface as the data path needs it.
#[derive(Debug)]
pub struct PolicyInterface {
    /// `eni-…`.
    pub id: String,
    /// For people: the entity, and the device where it has several.
    pub label: String,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Largest packet it takes, in bytes.
    pub mtu: u16,
    /// Whether packets from it must carry one of its own addresses.
    pub source_dest_check: bool,
    /// Idle timeouts of its flows.
    pub tracking: Tracking,
    /// The first interface of its entity, which stands for the entity.
    pub entity: InterfaceIx,
    /// How many flows its entity may track, if that is limited.
    pub allowance: Option<Allowance>,
    /// Whether it belongs to a network load balancer, whose flows are always
    /// tracked (aws-semantics §3.3).
    pub always_tracked: bool,
    /// What guards it.
    pub guard: Guard,
}

/// How many flows an entity may track at a time, on all its interfaces together
/// (aws-semantics §3.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// The entity's first interface, which stands for it.
    pub owner: InterfaceIx,
    /// Most tracked flows at a time.
    pub limit: u32,
}

/// What stands between an interface and the rest.
#[derive(Debug)]
pub enum Guard {
    /// Security groups, both ways.
    Groups {
        /// The groups that it carries, for rules that reference them.
        member_of: Arc<[GroupKey]>,
        /// Rules for what reaches it.
        ingress: RuleTable,
        /// Rules for what leaves it.
        egress: RuleTable,
        /// The subnet that it is in.
        subnet: Arc<PolicySubnet>,
    },
    /// Nothing: a host outside the VPC, behind this gateway.
    Outside(Via),
}

/// A subnet as the data path needs it.
#[derive(Debug)]
pub struct PolicySubnet {
    /// Its name in the lab file.
    pub name: String,
    /// Its blocks, each as its first address and its mask.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
    /// Its network ACL for what enters it.
    pub acl_ingress: Arc<AclTable>,
    /// Its network ACL for what leaves it.
    pub acl_egress: Arc<AclTable>,
    /// Its route table.
    pub routes: Arc<RouteIndex>,
}

impl PolicySubnet {
    /// Whether the address lies in it.
    #[inline]
    pub fn holds(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let bits = address.to_bits();
                self.v4.iter().any(|(first, mask)| bits & mask == *first)
            }
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                self.v6.iter().any(|(first, mask)| bits & mask == *first)
            }
        }
    }

    /// Its network ACL for packets that go that way, seen from the subnet.
    pub fn acl(&self, direction: Direction) -> &AclTable {
        match direction {
            Direction::Ingress => &self.acl_ingress,
            Direction::Egress => &self.acl_egress,
        }
    }
}

impl PolicyInterface {
    /// The subnet that it is in; `None` outside the VPC.
    #[inline]
    pub fn subnet(&self) -> Option<&PolicySubnet> {
        match &self.guard {
            Guard::Groups { subnet, .. } => Some(subnet),
            Guard::Outside(_) => None,
        }
    }

    /// Whether `address` is one of its own (private) addresses.
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.private == address)
    }

    /// The rules that guard it in one direction; `None` outside the VPC.
    pub fn rules(&self, direction: Direction) -> Option<&RuleTable> {
        match (&self.guard, direction) {
            (Guard::Groups { ingress, .. }, Direction::Ingress) => Some(ingress),
            (Guard::Groups { egress, .. }, Direction::Egress) => Some(egress),
            (Guard::Outside(_), _) => None,
        }
    }
}

impl Policy {
    /// Compiles `model`. With the `previous` policy of the same appliance,
    /// unchanged rule tables are shared with it, interfaces keep their indices
    /// whatever their order in the files, and the generation goes on from it.
    pub fn compile(model: &Model, previous: Option<&Self>) -> Self {
        let mut groups = previous.map_or_else(GroupNames::default, |old| old.groups.clone());
        let placement = placement(model, previous);
        let mut tables = Tables::new(model, &mut groups, previous, &placement);
        let slots: Vec<Option<PolicyInterface>> = placement
            .iter()
            .map(|at| Some(tables.interface((*at)?)))
            .collect();
        Self {
            generation: previous.map_or(1, |old| old.generation + 1),
            directory: Directory::new(&model.vpc.cidrs, &model.subnets, &slots),
            slots,
            groups,
            icmp_errors: model.vpc.icmp_errors,
        }
    }

    /// The same policy as the next generation after `other`, with which it
    /// shares nothing.
    #[must_use]
    pub fn following(self, other: &Self) -> Self {
        Self {
            generation: other.generation + 1,
            ..self
        }
    }

    /// Counts the policies of one appliance, from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Every interface with its index.
    pub fn interfaces(&self) -> impl Iterator<Item = (InterfaceIx, &PolicyInterface)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(i, slot)| Some((InterfaceIx::new(i), slot.as_ref()?)))
    }

    /// One interface; `None` for an index that this policy doesn't know.
    pub fn interface(&self, at: InterfaceIx) -> Option<&PolicyInterface> {
        self.slots.get(at.ix())?.as_ref()
    }

    /// Who has which address.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The groups that rules see `address` in: those of the interface whose
    /// private address it is (aws-semantics §2: never by public address).
    pub fn groups_of(&self, address: IpAddr) -> &[GroupKey] {
        let Some(Owner::Private(interface)) = self.directory.owner(address) else {
            return &[];
        };
        match self.interface(interface).map(|owner| &owner.guard) {
            Some(Guard::Groups { member_of, .. }) => member_of,
            Some(Guard::Outside(_)) | None => &[],
        }
    }

    /// Whether `address` is the private address of a network load balancer.
    pub fn is_always_tracked(&self, address: IpAddr) -> bool {
        match self.directory.owner(address) {
            Some(Owner::Private(at)) => self.interface(at).is_some_and(|it| it.always_tracked),
            _ => false,
        }
    }

    /// How ICMP errors are let in and out.
    pub fn icmp_errors(&self) -> IcmpErrors {
        self.icmp_errors
    }

    /// The name of a group, for people.
    pub fn group_name(&self, key: GroupKey) -> &str {
        self.groups.name(key)
    }
}

/// Which interface of `model` takes which slot: known ones keep theirs, a
/// vanished one leaves its slot empty, new ones come last.
fn placement(model: &Model, previous: Option<&Policy>) -> Vec<Option<InterfaceIx>> {
    let mut new: Vec<Option<InterfaceIx>> = model.interfaces().map(|(at, _)| Some(at)).collect();
    let Some(previous) = previous else {
        return new;
    };
    let by_id: HashMap<&str, usize> = model
        .interfaces()
        .map(|(at, interface)| (interface.id.as_str(), at.ix()))
        .collect();
    let mut slots: Vec<Option<InterfaceIx>> = previous
        .slots
        .iter()
        .map(|slot| {
            let known = by_id.get(slot.as_ref()?.id.as_str())?;
            new[*known].take()
        })
        .collect();
    slots.extend(new.into_iter().filter(Option::is_some));
    slots
}

/// Keys of groups, stable across the policies of one appliance, so that tables
/// of the previous policy stay right where groups come and go.
#[derive(Debug, Clone, Default)]
struct GroupNames {
    keys: HashMap<String, GroupKey>,
    names: Vec<String>,
}

impl GroupNames {
    fn key(&mut self, group: &SecurityGroup) -> GroupKey {
        if let Some(key) = self.keys.get(&group.id) {
            self.names[key.ix()].clone_from(&group.name);
            return *key;
        }
        let key = GroupKey::new(self.names.len());
        self.keys.insert(group.id.clone(), key);
        self.names.push(group.name.clone());
        key
    }

    fn name(&self, key: GroupKey) -> &str {
        self.names.get(key.ix()).map_or("", String::as_str)
    }
}

/// Groups in the order in which an interface carries them, and a direction:
/// what one rule table answers for.
type TableKey = (Arc<[GroupKey]>, Direction);

/// Makes the tables of one policy, each once.
struct Tables<'m> {
    model: &'m Model,
    keys: Vec<GroupKey>,
    made: HashMap<TableKey, RuleTable>,
    previous: HashMap<TableKey, Arc<TableIndex>>,
    /// By position in the model.
    subnets: Vec<Arc<PolicySubnet>>,
    /// The slot of each entity's first interface.
    hosts: Vec<InterfaceIx>,
}

impl<'m> Tables<'m> {
    fn new(
        model: &'m Model,
        groups: &mut GroupNames,
        previous: Option<&Policy>,
        placement: &[Option<InterfaceIx>],
    ) -> Self {
        let mut slots = vec![None; model.interfaces.len()];
        for (slot, at) in placement.iter().enumerate() {
            if let Some(at) = at {
                slots[at.ix()] = Some(InterfaceIx::new(slot));
            }
        }
        let mut reusable = HashMap::new();
        for (_, interface) in previous.into_iter().flat_map(Policy::interfaces) {
            if let Guard::Groups {
                member_of,
                ingress,
                egress,
                ..
            } = &interface.guard
            {
                for (direction, table) in
                    [(Direction::Ingress, ingress), (Direction::Egress, egress)]
                {
                    reusable
                        .entry((Arc::clone(member_of), direction))
                        .or_insert_with(|| Arc::clone(table.index()));
                }
            }
        }
        Self {
            model,
            keys: model
                .security_groups
                .iter()
                .map(|group| groups.key(group))
                .collect(),
            made: HashMap::new(),
            previous: reusable,
            subnets: subnets(model, &slots),
            hosts: hosts(model, &slots),
        }
    }

    fn interface(&mut self, at: InterfaceIx) -> PolicyInterface {
        let interface = &self.model.interfaces[at.ix()];
        let guard = match &interface.attachment {
            Attachment::External(via) => Guard::Outside(*via),
            Attachment::Subnet { groups, subnet } => {
                let member_of: Arc<[GroupKey]> =
                    groups.iter().map(|group| self.keys[group.ix()]).collect();
                Guard::Groups {
                    ingress: self.table(groups, &member_of, Direction::Ingress),
                    egress: self.table(groups, &member_of, Direction::Egress),
                    member_of,
                    subnet: Arc::clone(&self.subnets[subnet.ix()]),
                }
            }
        };
        let entity = &self.model.entities[interface.entity.ix()];
        let host = self.hosts[interface.entity.ix()];
        PolicyInterface {
            id: interface.id.clone(),
            label: self.model.interface_label(at),
            addresses: interface.addresses.clone(),
            mtu: interface.mtu,
            source_dest_check: interface.source_dest_check,
            tracking: interface.tracking,
            entity: host,
            allowance: entity
                .max_flows
                .map(|limit| Allowance { owner: host, limit }),
            always_tracked: entity.kind == EntityKind::Elb(LoadBalancer::Network),
            guard,
        }
    }

    fn table(
        &mut self,
        groups: &[GroupIx],
        member_of: &Arc<[GroupKey]>,
        direction: Direction,
    ) -> RuleTable {
        let key = (Arc::clone(member_of), direction);
        if let Some(table) = self.made.get(&key) {
            return table.clone();
        }
        let mut sources = Vec::new();
        let mut rules = Vec::new();
        for group in groups {
            let group = &self.model.security_groups[group.ix()];
            for rule in group.rules(direction) {
                sources.push((rule.traffic, self.peer_set(rule.peer)));
                rules.push(CompiledRule::new(group, direction, rule));
            }
        }
        let index = match self.previous.get(&key) {
            Some(index) if index.is_made_from(&sources) => Arc::clone(index),
            _ => Arc::new(TableIndex::build(sources)),
        };
        let table = RuleTable::new(index, rules);
        self.made.insert(key, table.clone());
        table
    }

    fn peer_set(&self, peer: Peer) -> PeerSet {
        match peer {
            Peer::Ipv4(net) => PeerSet::Net(net.into()),
            Peer::Ipv6(net) => PeerSet::Net(net.into()),
            Peer::PrefixList(list) => {
                PeerSet::List(self.model.prefix_lists[list.ix()].entries.clone())
            }
            Peer::Group(group) => PeerSet::Group(self.keys[group.ix()]),
        }
    }
}

/// The slot of each entity's first interface, which stands for it.
fn hosts(model: &Model, slots: &[Option<InterfaceIx>]) -> Vec<InterfaceIx> {
    let mut hosts = vec![None; model.entities.len()];
    for (interface, slot) in model.interfaces.iter().zip(slots) {
        let host = &mut hosts[interface.entity.ix()];
        *host = host.or(*slot);
    }
    hosts.into_iter().map(Option::unwrap_or_default).collect()
}

/// The subnets with their ACLs and route tables, each compiled once.
fn subnets(model: &Model, slots: &[Option<InterfaceIx>]) -> Vec<Arc<PolicySubnet>> {
    let acls: Vec<[Arc<AclTable>; 2]> = model
        .network_acls
        .iter()
        .map(|acl| {
            [Direction::Ingress, Direction::Egress]
                .map(|direction| Arc::new(AclTable::new(acl, direction)))
        })
        .collect();
    let slot = |at: InterfaceIx| slots.get(at.ix()).copied().flatten();
    let routes: Vec<Arc<RouteIndex>> = model
        .route_tables
        .iter()
        .map(|table| Arc::new(RouteIndex::new(table, &model.vpc.cidrs, slot)))
        .collect();
    model
        .subnets
        .iter()
        .map(|subnet| {
            let [acl_ingress, acl_egress] = acls[subnet.network_acl.ix()].clone();
            Arc::new(PolicySubnet {
                name: subnet.name.clone(),
                v4: subnet.cidrs.iter().filter_map(v4_block).collect(),
                v6: subnet.cidrs.iter().filter_map(v6_block).collect(),
                acl_ingress,
                acl_egress,
                routes: Arc::clone(&routes[subnet.route_table.ix()]),
            })
        })
        .collect()
}

fn v4_block(block: &IpNet) -> Option<(u32, u32)> {
    match block {
        IpNet::V4(block) => Some((block.network().to_bits(), block.netmask().to_bits())),
        IpNet::V6(_) => None,
    }
}

fn v6_block(block: &IpNet) -> Option<(u128, u128)> {
    match block {
        IpNet::V6(block) => Some((block.network().to_bits(), block.netmask().to_bits())),
        IpNet::V4(_) => None,
    }
}

#[cfg(test)]
mod tests;
