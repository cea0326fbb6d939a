//! Route tables (aws-semantics §7).

use std::fmt;

use ipnet::IpNet;

use super::{Attachment, Interface, InterfaceIx, Place, Via};

/// Name of the route table that every VPC has and that a subnet without one gets.
pub const MAIN_ROUTE_TABLE: &str = "main";

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteTarget {
    /// The internet gateway.
    Igw,
    /// The virtual private gateway.
    Vgw,
    /// A network interface of the VPC, which is to forward.
    Interface(InterfaceIx),
    /// The network that the interface itself is attached to ([`Via::Wire`]): who is
    /// to get the packet next is for the interface's own routes to say.
    Wire(InterfaceIx),
    /// Nowhere: the target is gone.
    Blackhole,
}

impl fmt::Display for RouteTarget {
    /// `igw`, `vgw`, `eni`, `wire` or `blackhole`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Igw => "igw",
            Self::Vgw => "vgw",
            Self::Interface(_) => "eni",
            Self::Wire(_) => "wire",
            Self::Blackhole => "blackhole",
        })
    }
}

/// One route besides the local ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What it covers; canonical, unique in its table.
    pub destination: IpNet,
    /// Where it leads.
    pub target: RouteTarget,
    /// The target as the user wrote it, for people: `igw`, `eni/firewall`.
    pub target_text: String,
    /// Where it is declared.
    pub place: Place,
}

/// A route table. The local routes, one for each block of the VPC, are always
/// there and aren't among [`Self::routes`]; a route with the very block of a
/// local one replaces its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTable {
    /// `rtb-…`, given or derived.
    pub id: String,
    /// The name in the lab file; `main` for the VPC's own.
    pub name: String,
    /// Routes in the order declared; the longest prefix that covers a
    /// destination wins.
    pub routes: Vec<Route>,
    /// Where it is declared.
    pub place: Place,
}

impl RouteTable {
    /// The main table of a VPC whose author declared none: the addresses of
    /// hosts behind the virtual private gateway and, where there are hosts
    /// behind the internet gateway, everything else through it.
    pub fn implied<'i>(
        id: String,
        interfaces: impl Iterator<Item = &'i Interface>,
        place: &Place,
    ) -> Self {
        let route = |destination, target: RouteTarget| Route {
            destination,
            target,
            target_text: target.to_string(),
            place: place.clone(),
        };
        let mut routes = Vec::new();
        let mut internet = false;
        for interface in interfaces {
            match interface.attachment {
                Attachment::External(Via::Vgw) => routes.extend(
                    interface
                        .addresses
                        .iter()
                        .map(|address| route(address.private.into(), RouteTarget::Vgw)),
                ),
                Attachment::External(Via::Igw) => internet = true,
                Attachment::External(Via::Wire) | Attachment::Subnet { .. } => {}
            }
        }
        if internet {
            for everything in [
                IpNet::V4(ipnet::Ipv4Net::default()),
                IpNet::V6(ipnet::Ipv6Net::default()),
            ] {
                routes.push(route(everything, RouteTarget::Igw));
            }
        }
        Self {
            id,
            name: MAIN_ROUTE_TABLE.to_owned(),
            routes,
            place: place.clone(),
        }
    }
}
