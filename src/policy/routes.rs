//! A route table compiled: the longest prefix that covers a destination wins
//! (aws-semantics §7).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{InterfaceIx, Place, RouteTable, RouteTarget};

use super::matcher::index;
use super::trie::PrefixMap;

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
    /// The network that the sender is attached to.
    Wire(Option<InterfaceIx>),
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
    routes: Vec<CompiledRoute>,
    /// Positions in `routes`.
    v4: PrefixMap<u32, u32>,
    v6: PrefixMap<u128, u32>,
}

impl RouteIndex {
    /// `slot` translates interfaces of the model into the policy's.
    pub(super) fn new(
        table: &RouteTable,
        vpc: &[IpNet],
        slot: impl Fn(InterfaceIx) -> Option<InterfaceIx>,
    ) -> Self {
        // In order as the map of prefixes wants them.
        let mut by_block: BTreeMap<IpNet, CompiledRoute> = BTreeMap::new();
        let mut add = |route: CompiledRoute| {
            by_block.insert(route.destination.trunc(), route);
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
                    RouteTarget::Wire(at) => Target::Wire(slot(at)),
                    RouteTarget::Blackhole => Target::Blackhole,
                },
                target_text: route.target_text.clone(),
                place: route.place.clone(),
            });
        }
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for (position, block) in by_block.keys().enumerate() {
            match block {
                IpNet::V4(block) => v4.push(((*block).into(), index(position))),
                IpNet::V6(block) => v6.push(((*block).into(), index(position))),
            }
        }
        Self {
            id: table.id.clone(),
            name: table.name.clone(),
            place: table.place.clone(),
            routes: by_block.into_values().collect(),
            v4: PrefixMap::new(&v4),
            v6: PrefixMap::new(&v6),
        }
    }

    /// The route of the longest prefix that covers `destination`.
    pub fn find(&self, destination: IpAddr) -> Option<&CompiledRoute> {
        let longest = match destination {
            IpAddr::V4(v4) => self.v4.covering(v4.to_bits()).next(),
            IpAddr::V6(v6) => self.v6.covering(v6.to_bits()).next(),
        };
        self.routes.get(*longest? as usize)
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
