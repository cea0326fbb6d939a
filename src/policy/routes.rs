//! A route table compiled: the longest prefix that covers a destination wins
//! (aws-semantics §7).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{InterfaceIx, Place, RouteTable, RouteTarget};

use super::matcher::index;
use super::table::{address_bits, prefix};
use super::trie::{NONE, Prefix, Trie};

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// To whom in the VPC has the address.
    Local,
    /// The internet gateway.
    Igw,
    /// The virtual private gateway.
    Vgw,
    /// A network interface that is to forward; `None` if the policy doesn't
    /// know it.
    Interface(Option<InterfaceIx>),
    /// Nowhere.
    Blackhole,
}

/// A route as verdicts name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledRoute {
    /// What it covers.
    pub destination: IpNet,
    /// Where it leads.
    pub target: Target,
    /// The target as the user wrote it; `local` for the local routes.
    pub target_text: String,
    /// Where it is declared.
    pub place: Place,
}

/// A route table, the local routes included.
#[derive(Debug)]
pub struct RouteIndex {
    id: String,
    name: String,
    place: Place,
    /// Sorted by prefix, IPv4 and IPv6 apart.
    families: [Family; 2],
}

#[derive(Debug)]
struct Family {
    trie: Trie,
    routes: Vec<CompiledRoute>,
    /// Prefix of each route, and the longest other one that covers it or [`NONE`].
    nodes: Vec<(Prefix, u32)>,
}

impl RouteIndex {
    /// `slot` translates interfaces of the model into the policy's.
    pub(super) fn new(
        table: &RouteTable,
        vpc: &[IpNet],
        slot: impl Fn(InterfaceIx) -> Option<InterfaceIx>,
    ) -> Self {
        let mut families: [BTreeMap<Prefix, CompiledRoute>; 2] = Default::default();
        let mut add = |route: CompiledRoute| {
            let family = usize::from(route.destination.addr().is_ipv6());
            families[family].insert(prefix(route.destination), route);
        };
        for block in vpc {
            add(CompiledRoute {
                destination: *block,
                target: Target::Local,
                target_text: "local".to_owned(),
                place: table.place.clone(),
            });
        }
        // A route with the very block of a local one takes its place.
        for route in &table.routes {
            add(CompiledRoute {
                destination: route.destination,
                target: match route.target {
                    RouteTarget::Igw => Target::Igw,
                    RouteTarget::Vgw => Target::Vgw,
                    RouteTarget::Interface(at) => Target::Interface(slot(at)),
                    RouteTarget::Blackhole => Target::Blackhole,
                },
                target_text: route.target_text.clone(),
                place: route.place.clone(),
            });
        }
        Self {
            id: table.id.clone(),
            name: table.name.clone(),
            place: table.place.clone(),
            families: families.map(Family::new),
        }
    }

    /// The route of the longest prefix that covers `destination`.
    pub fn find(&self, destination: IpAddr) -> Option<&CompiledRoute> {
        let family = &self.families[usize::from(destination.is_ipv6())];
        let address = address_bits(destination);
        let mut at = family.trie.find(address);
        while at != NONE {
            let (prefix, parent) = family.nodes[at as usize];
            if prefix.covers(address) {
                return family.routes.get(at as usize);
            }
            at = parent;
        }
        None
    }

    /// `rtb-…`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its name in the lab file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is declared.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

impl Family {
    fn new(routes: BTreeMap<Prefix, CompiledRoute>) -> Self {
        let prefixes: Vec<Prefix> = routes.keys().copied().collect();
        let mut nodes: Vec<(Prefix, u32)> = Vec::with_capacity(prefixes.len());
        let mut parent = NONE;
        for (position, prefix) in prefixes.iter().enumerate() {
            while parent != NONE && !nodes[parent as usize].0.covers(prefix.bits) {
                parent = nodes[parent as usize].1;
            }
            nodes.push((*prefix, parent));
            parent = index(position);
        }
        Self {
            trie: Trie::build(&prefixes),
            routes: routes.into_values().collect(),
            nodes,
        }
    }
}
