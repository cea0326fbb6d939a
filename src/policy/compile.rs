//! From a model to a policy, taking over from the one before what is the same.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnet::IpNet;

use crate::model::{
    Attachment, Direction, EntityKind, GroupIx, Interface, InterfaceIx, LoadBalancer, Model, Peer,
    PrefixListIx, RuleId, SecurityGroup, SecurityGroupRule,
};

use super::acl::AclTable;
use super::directory::Directory;
use super::routes::RouteIndex;
use super::table::{GroupKey, GroupTable, PeerSet, RuleTable, Source, TableIndex};
use super::{Allowance, Guard, Policy, PolicyInterface, PolicySubnet};

/// In the order of [`way`].
const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

fn way(direction: Direction) -> usize {
    usize::from(direction == Direction::Egress)
}

/// Number of unused group keys that are tolerated before everything is recompiled.
const SPARE_KEYS: usize = 64;

/// What a policy keeps for the next one to take over.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    names: Arc<GroupNames>,
    /// Of each group, by position in the model.
    keys: Vec<GroupKey>,
    /// By key; of groups that an interface carries.
    groups: Vec<Option<CompiledGroup>>,
    /// For groups in the order in which an interface carries them.
    tables: HashMap<Arc<[GroupKey]>, [RuleTable; 2], RandomState>,
    /// Id and entries of each prefix list, by position in the model.
    lists: Vec<(String, Arc<[IpNet]>)>,
}

/// A group, and what finds its rules.
#[derive(Debug, Clone)]
struct CompiledGroup {
    declared: Arc<SecurityGroup>,
    /// By [`way`].
    indices: [Arc<TableIndex>; 2],
}

impl Compiled {
    pub(super) fn group_name(&self, key: GroupKey) -> &str {
        self.names.name(key)
    }
}

pub(super) fn compile(model: &Model, previous: Option<&Policy>) -> Policy {
    let nothing = Compiled::default();
    // The keys of removed groups are not reused, because tables taken from the previous policy
    // may still refer to them. Once most keys are unused, everything is recompiled with new keys.
    // (Interfaces keep their slots, which flows and links refer to. The interfaces of a running
    // appliance don't change, so there are no more slots than interfaces.)
    let groups = model.security_groups.len();
    let before = (previous.map(|old| &old.compiled))
        .filter(|before| before.names.names.len() <= 2 * groups + SPARE_KEYS)
        .unwrap_or(&nothing);
    let placement = placement(model, previous);
    let mut tables = Tables::new(model, before, &placement);
    let slots: Vec<Option<PolicyInterface>> = placement
        .iter()
        .map(|at| Some(tables.interface((*at)?)))
        .collect();
    let (vpc, subnets) = (&model.vpc.cidrs, &model.subnets);
    let directory = match previous {
        Some(old) if old.directory.holds_for(vpc, subnets, &old.slots, &slots) => {
            Arc::clone(&old.directory)
        }
        _ => Arc::new(Directory::new(vpc, subnets, &slots)),
    };
    let members = (model.members.iter())
        .map(|member| (member.address, tables.keys_of(&member.groups)))
        .collect();
    Policy {
        members,
        generation: previous.map_or(1, |old| old.generation + 1),
        slots,
        directory,
        icmp_errors: model.vpc.icmp_errors,
        compiled: tables.compiled,
    }
}

/// Which interface of `model` takes which slot: known ones keep theirs, a
/// vanished one leaves its slot empty, new ones come last.
fn placement(model: &Model, previous: Option<&Policy>) -> Vec<Option<InterfaceIx>> {
    let mut new: Vec<Option<InterfaceIx>> = model.interfaces().map(|(at, _)| Some(at)).collect();
    let Some(previous) = previous else {
        return new;
    };
    let before = (previous.slots.iter()).map(|slot| Some(slot.as_ref()?.id.as_str()));
    if before.eq(model.interfaces.iter().map(|it| Some(it.id.as_str()))) {
        return new;
    }
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
    keys: HashMap<String, GroupKey, RandomState>,
    names: Vec<String>,
}

impl GroupNames {
    /// The key of each group; names are taken over, or made anew where one is
    /// new or called otherwise.
    fn keys(this: &mut Arc<Self>, groups: &[Arc<SecurityGroup>]) -> Vec<GroupKey> {
        let known = |group: &Arc<SecurityGroup>| {
            let key = this.keys.get(&group.id).copied();
            key.filter(|key| this.name(*key) == group.name)
        };
        if let Some(keys) = groups.iter().map(known).collect() {
            return keys;
        }
        let names = Arc::make_mut(this);
        groups.iter().map(|group| names.key(group)).collect()
    }

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

/// Makes the tables of one policy, each once.
struct Tables<'m> {
    model: &'m Model,
    before: &'m Compiled,
    compiled: Compiled,
    /// By position in the model.
    subnets: Vec<Arc<PolicySubnet>>,
    /// Of each group, by key, whether it is what it was in the previous policy.
    stays: Vec<bool>,
    /// The slot of each entity's first interface.
    hosts: Vec<InterfaceIx>,
}

impl<'m> Tables<'m> {
    fn new(model: &'m Model, before: &'m Compiled, placement: &[Option<InterfaceIx>]) -> Self {
        let mut slots = vec![None; model.interfaces.len()];
        for (slot, at) in placement.iter().enumerate() {
            if let Some(at) = at {
                slots[at.ix()] = Some(InterfaceIx::new(slot));
            }
        }
        let mut names = Arc::clone(&before.names);
        let keys = GroupNames::keys(&mut names, &model.security_groups);
        let known: HashMap<&str, &Arc<[IpNet]>> = (before.lists.iter())
            .map(|(id, entries)| (id.as_str(), entries))
            .collect();
        let lists = (model.prefix_lists.iter())
            .map(|list| {
                let entries = match known.get(list.id.as_str()) {
                    Some(entries) if ***entries == *list.entries => Arc::clone(entries),
                    _ => list.entries.as_slice().into(),
                };
                (list.id.clone(), entries)
            })
            .collect();
        let mut this = Self {
            stays: vec![false; names.names.len()],
            model,
            before,
            compiled: Compiled {
                groups: vec![None; names.names.len()],
                names,
                keys,
                tables: HashMap::default(),
                lists,
            },
            subnets: subnets(model, &slots),
            hosts: hosts(model, &slots),
        };
        this.groups();
        this
    }

    fn interface(&mut self, at: InterfaceIx) -> PolicyInterface {
        let interface = &self.model.interfaces[at.ix()];
        let guard = match &interface.attachment {
            Attachment::External(via) => Guard::Outside(*via),
            Attachment::Subnet { groups, subnet } => {
                let (member_of, [ingress, egress]) = self.tables(groups);
                Guard::Groups {
                    member_of,
                    ingress,
                    egress,
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

    /// The keys of groups.
    fn keys_of(&self, groups: &[GroupIx]) -> Arc<[GroupKey]> {
        groups.iter().map(|group| self.key(*group)).collect()
    }

    fn key(&self, group: GroupIx) -> GroupKey {
        self.compiled.keys[group.ix()]
    }

    /// What interfaces with these groups are members of, and their rules.
    fn tables(&mut self, groups: &[GroupIx]) -> (Arc<[GroupKey]>, [RuleTable; 2]) {
        let member_of: Vec<GroupKey> = groups.iter().map(|group| self.key(*group)).collect();
        let groups = member_of.as_slice();
        if let Some((groups, tables)) = self.compiled.tables.get_key_value(groups) {
            return (Arc::clone(groups), tables.clone());
        }
        let (member_of, tables) = match self.before.tables.get_key_value(groups) {
            Some((same, tables)) if groups.iter().all(|key| self.stays[key.ix()]) => {
                (Arc::clone(same), tables.clone())
            }
            _ => (groups.into(), self.new_tables(groups)),
        };
        let made = (Arc::clone(&member_of), tables.clone());
        self.compiled.tables.insert(made.0, made.1);
        (member_of, tables)
    }

    fn new_tables(&self, groups: &[GroupKey]) -> [RuleTable; 2] {
        DIRECTIONS.map(|direction| {
            let compiled = |key: &GroupKey| self.compiled.groups[key.ix()].as_ref();
            let groups = groups.iter().filter_map(compiled);
            let table = |group: &CompiledGroup| GroupTable {
                index: Arc::clone(&group.indices[way(direction)]),
                declared: Arc::clone(&group.declared),
            };
            RuleTable::new(direction, groups.map(table).collect())
        })
    }

    /// Compiles every group that an interface carries, in the order in which they
    /// are declared: so they lie in memory, which is what comparing a large model
    /// with what was compiled of the last one takes its time for.
    fn groups(&mut self) {
        let mut carried = vec![false; self.compiled.keys.len()];
        for group in self.model.interfaces.iter().flat_map(Interface::groups) {
            carried[group.ix()] = true;
        }
        let peers_stand = self.peers_stand();
        for (at, group) in self.model.security_groups.iter().enumerate() {
            if !carried[at] {
                continue;
            }
            let key = self.compiled.keys[at].ix();
            let before = self.before.groups.get(key).and_then(Option::as_ref);
            let indices = match before {
                Some(old) if peers_stand && Arc::ptr_eq(&old.declared, group) => {
                    self.stays[key] = true;
                    old.indices.clone()
                }
                _ => DIRECTIONS.map(|direction| {
                    let before = before.map(|old| &old.indices[way(direction)]);
                    self.index(group.rules(direction), before)
                }),
            };
            self.compiled.groups[key] = Some(CompiledGroup {
                declared: Arc::clone(group),
                indices,
            });
        }
    }

    /// Whether the positions by which rules refer to groups and prefix lists still mean
    /// the same: then the very same rules have the same index.
    fn peers_stand(&self) -> bool {
        let (old, new) = (&self.before.lists, &self.compiled.lists);
        self.compiled.keys.starts_with(&self.before.keys)
            && old.len() <= new.len()
            && old
                .iter()
                .zip(new)
                .all(|((_, old), (_, new))| Arc::ptr_eq(old, new))
    }

    fn index(
        &self,
        rules: &[SecurityGroupRule],
        before: Option<&Arc<TableIndex>>,
    ) -> Arc<TableIndex> {
        match before {
            Some(old) if self.are_sources(old.sources(), rules) => Arc::clone(old),
            _ => Arc::new(TableIndex::new(
                rules.iter().map(|rule| self.source(rule)).collect(),
                rules.iter().map(|rule| rule.id).collect(),
            )),
        }
    }

    /// Whether these are what a table of the rules would be made from.
    fn are_sources(
        &self,
        (sources, ids): (&[Source], &[RuleId]),
        rules: &[SecurityGroupRule],
    ) -> bool {
        let same = |(((traffic, peers), id), rule): ((&Source, &RuleId), &SecurityGroupRule)| {
            *id == rule.id
                && *traffic == rule.traffic
                && match (peers, rule.peer) {
                    (PeerSet::Net(IpNet::V4(own)), Peer::Ipv4(net)) => *own == net,
                    (PeerSet::Net(IpNet::V6(own)), Peer::Ipv6(net)) => *own == net,
                    (PeerSet::List(own), Peer::PrefixList(list)) => {
                        let entries = self.entries(list);
                        Arc::ptr_eq(own, entries) || own == entries
                    }
                    (PeerSet::Group(own), Peer::Group(group)) => *own == self.key(group),
                    _ => false,
                }
        };
        sources.len() == rules.len() && sources.iter().zip(ids).zip(rules).all(same)
    }

    fn source(&self, rule: &SecurityGroupRule) -> Source {
        let peers = match rule.peer {
            Peer::Ipv4(net) => PeerSet::Net(net.into()),
            Peer::Ipv6(net) => PeerSet::Net(net.into()),
            Peer::PrefixList(list) => PeerSet::List(Arc::clone(self.entries(list))),
            Peer::Group(group) => PeerSet::Group(self.key(group)),
        };
        (rule.traffic, peers)
    }

    fn entries(&self, list: PrefixListIx) -> &Arc<[IpNet]> {
        &self.compiled.lists[list.ix()].1
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
        .map(|acl| DIRECTIONS.map(|direction| Arc::new(AclTable::new(acl, direction))))
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
