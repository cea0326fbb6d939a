//! A [`Model`] compiled into lookups whose cost doesn't
//! grow with the number of rules, groups or members.
//!
//! A [`Policy`] is immutable. A change compiles a new one beside it, which
//! takes over (by reference) the rules of every group that the change doesn't
//! touch, and is swapped in whole. Sans-IO.
//!
//! * [`RuleTable`]: the rules that guard an interface in one direction, group by
//!   group, found by peer (a prefix trie for CIDRs and prefix lists, a map for
//!   groups), then by protocol and port range. Each group is compiled once, for
//!   all interfaces that carry it.
//! * [`PolicySubnet`]: a subnet's network ACL ([`AclTable`], both ways) and its
//!   route table ([`RouteIndex`]).
//! * [`Directory`]: who has which address, and where packets go.
//!
//! Referenced groups are not expanded into addresses: a table says "members of
//! `sg-web`", and the directory says which groups the owner of an address
//! carries. So a change of membership compiles no rule.

mod acl;
mod compile;
mod directory;
mod matcher;

pub mod oracle;
mod reason;
mod routes;
mod rule;
mod service;
mod table;
mod trie;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::model::{
    Address, Direction, GATEWAY_MTU, IcmpErrors, InterfaceIx, Model, Tracking, Via,
};

pub use acl::{AclDecision, AclTable};
pub use directory::{Directory, Hop, Owner, Path, Stranded};
pub use matcher::Query;
pub use reason::DropReason;
pub use routes::{CompiledRoute, RouteIndex, Target};
pub use rule::CompiledRule;
pub use service::{Service, everywhere, is_forwardable};
pub use table::{Coverage, GroupKey, RuleTable};

use compile::Compiled;

/// The policy in force, or about to be.
#[derive(Debug)]
pub struct Policy {
    generation: u64,
    slots: Vec<Option<PolicyInterface>>,
    directory: Arc<Directory>,
    icmp_errors: IcmpErrors,
    /// Groups of interfaces elsewhere, by private address.
    members: HashMap<IpAddr, Arc<[GroupKey]>, RandomState>,
    /// What the next policy may take over.
    compiled: Compiled,
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

    /// The public address that the internet gateway gives one of its own.
    #[inline]
    pub fn public_of(&self, private: IpAddr) -> Option<Ipv4Addr> {
        let own = |address: &&Address| address.private == private;
        self.addresses.iter().find(own)?.public
    }

    /// Largest packet that reaches it, in bytes, through a gateway or not.
    #[inline]
    pub fn mtu_through(&self, gateway: bool) -> u16 {
        if gateway {
            self.mtu.min(GATEWAY_MTU)
        } else {
            self.mtu
        }
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
    /// whatever is unchanged is shared with it, interfaces keep their indices
    /// whatever their order in the files, and the generation goes on from it.
    pub fn compile(model: &Model, previous: Option<&Self>) -> Self {
        compile::compile(model, previous)
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
    /// private address it is (aws-semantics §2: never by public address), here or
    /// elsewhere.
    pub fn groups_of(&self, address: IpAddr) -> &[GroupKey] {
        let owner = match self.directory.owner(address) {
            Some(Owner::Private(interface)) => self.interface(interface).map(|it| &it.guard),
            Some(_) => None,
            None => return self.members.get(&address).map_or(&[], |groups| groups),
        };
        match owner {
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
        self.compiled.group_name(key)
    }
}

#[cfg(test)]
mod tests;
