//! Who has which address, and where a packet goes: a subnet's route table, the
//! virtual private gateway, the internet gateway with its translation.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use foldhash::fast::RandomState;
use ipnet::IpNet;

use crate::model::{InterfaceIx, Subnet, Via};

use super::routes::{CompiledRoute, Target};
use super::service::{self, Service};
use super::{DropReason, Guard, PolicyInterface};

/// Every address that somebody has.
#[derive(Debug)]
pub struct Directory {
    /// Whether an interface stands for the network around.
    is_wired: bool,
    vpc: Vec<IpNet>,
    subnets: Vec<IpNet>,
    /// Apart by family: a number hashes faster than an `IpAddr`, and this is
    /// asked for every packet.
    v4: HashMap<u32, Owner, RandomState>,
    v6: HashMap<u128, Owner, RandomState>,
}

/// Who has an address, and in what sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// An interface of the VPC has it as its own, private address.
    Private(InterfaceIx),
    /// It is a public address that the internet gateway translates to this
    /// private one of the interface.
    Public(InterfaceIx, Ipv4Addr),
    /// A host outside, behind that gateway.
    Outside(InterfaceIx, Via),
    /// A service of the VPC, which nothing filters.
    Service(Service),
}

impl Owner {
    /// The interface that has it.
    pub fn interface(self) -> Option<InterfaceIx> {
        match self {
            Self::Private(at) | Self::Public(at, _) | Self::Outside(at, _) => Some(at),
            Self::Service(_) => None,
        }
    }
}

/// By which way a packet goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path<'p> {
    /// From host to host inside one subnet: no route is asked.
    Subnet,
    /// By a route of the sender's subnet.
    Route(&'p CompiledRoute),
    /// From outside, through this gateway.
    From(Via),
}

/// Where a packet goes next, and what the internet gateway makes of its
/// addresses on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop<'p> {
    /// The receiving interface.
    pub to: InterfaceIx,
    /// Which way led there.
    pub path: Path<'p>,
    /// The new source address, if it is translated.
    pub new_source: Option<Ipv4Addr>,
    /// The new destination address, if it is translated.
    pub new_destination: Option<Ipv4Addr>,
}

impl<'p> Hop<'p> {
    fn plain(to: InterfaceIx, path: Path<'p>) -> Self {
        Self {
            to,
            path,
            new_source: None,
            new_destination: None,
        }
    }

    /// Whether it leads through a gateway to or from the world outside.
    pub fn crosses_gateway(&self) -> bool {
        match self.path {
            Path::Subnet => false,
            Path::Route(route) => matches!(route.target, Target::Igw | Target::Vgw),
            Path::From(via) => via != Via::Wire,
        }
    }
}

/// Why a packet goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranded<'p> {
    /// Why.
    pub reason: DropReason,
    /// The route that it would have taken, if there is one.
    pub route: Option<&'p CompiledRoute>,
}

impl Stranded<'_> {
    fn without_route(reason: DropReason) -> Self {
        Self {
            reason,
            route: None,
        }
    }
}

impl Directory {
    pub(super) fn new(
        vpc: &[IpNet],
        subnets: &[Subnet],
        slots: &[Option<PolicyInterface>],
    ) -> Self {
        let is_wired = |slot: &Option<PolicyInterface>| slot.as_ref().is_some_and(on_wire);
        let mut this = Self {
            is_wired: slots.iter().any(is_wired),
            vpc: vpc.to_vec(),
            subnets: blocks(subnets).collect(),
            v4: HashMap::default(),
            v6: HashMap::default(),
        };
        for (i, slot) in slots.iter().enumerate() {
            let Some(interface) = slot else { continue };
            let at = InterfaceIx::new(i);
            let owner = match interface.guard {
                Guard::Groups { .. } => Owner::Private(at),
                Guard::Outside(via) => Owner::Outside(at, via),
            };
            for address in &interface.addresses {
                this.insert(address.private, owner);
                if let (Some(public), IpAddr::V4(private)) = (address.public, address.private) {
                    this.insert(IpAddr::V4(public), Owner::Public(at, private));
                }
            }
        }
        // On a wire, services are hosts like others.
        if !this.is_wired {
            for (address, service) in service::addresses(vpc, subnets) {
                this.insert(address, Owner::Service(service));
            }
        }
        this
    }

    /// Whether it, made of the slots `old`, is that of these as well.
    pub(super) fn holds_for(
        &self,
        vpc: &[IpNet],
        subnets: &[Subnet],
        old: &[Option<PolicyInterface>],
        new: &[Option<PolicyInterface>],
    ) -> bool {
        let place = |interface: &PolicyInterface| match interface.guard {
            Guard::Groups { .. } => None,
            Guard::Outside(via) => Some(via),
        };
        let same =
            |(old, new): (&Option<PolicyInterface>, &Option<PolicyInterface>)| match (old, new) {
                (Some(old), Some(new)) => {
                    old.addresses == new.addresses && place(old) == place(new)
                }
                (None, None) => true,
                _ => false,
            };
        self.vpc == vpc
            && blocks(subnets).eq(self.subnets.iter().copied())
            && old.len() == new.len()
            && old.iter().zip(new).all(same)
    }

    fn insert(&mut self, address: IpAddr, owner: Owner) {
        match address {
            IpAddr::V4(v4) => self.v4.insert(v4.to_bits(), owner),
            IpAddr::V6(v6) => self.v6.insert(v6.to_bits(), owner),
        };
    }

    /// Who has `address`.
    #[inline]
    pub fn owner(&self, address: IpAddr) -> Option<Owner> {
        match address {
            IpAddr::V4(v4) => self.v4.get(&v4.to_bits()).copied(),
            IpAddr::V6(v6) => self.v6.get(&v6.to_bits()).copied(),
        }
    }

    /// Where a packet goes that is for an address in its sender's own subnet:
    /// to whom has it.
    ///
    /// # Errors
    /// `UnknownDestination`.
    #[inline]
    pub fn inside_subnet<'p>(&self, owner: Option<Owner>) -> Result<Hop<'p>, Stranded<'p>> {
        local(owner)
            .map(|to| Hop::plain(to, Path::Subnet))
            .map_err(Stranded::without_route)
    }

    /// Where a packet goes that the interface `at`, which is `from`, sends to
    /// `destination`, outside of its own subnet; `owner` is who has that address.
    ///
    /// # Errors
    /// `NoRoute`, `Blackhole`, `NoPublicAddress` or `UnknownDestination`.
    pub fn route<'p>(
        &self,
        at: InterfaceIx,
        from: &'p PolicyInterface,
        source: IpAddr,
        destination: IpAddr,
        owner: Option<Owner>,
    ) -> Result<Hop<'p>, Stranded<'p>> {
        match &from.guard {
            Guard::Groups { subnet, .. } => {
                let Some(route) = subnet.routes.find(destination) else {
                    return Err(Stranded::without_route(DropReason::NoRoute));
                };
                // Neighbours on a wire need nobody who forwards.
                let beside = matches!(route.target, Target::Wire(_));
                if !beside && !service::is_forwardable(destination) {
                    return Err(Stranded::without_route(DropReason::NoRoute));
                }
                self.follow(at, from, source, destination, owner, route)
                    .map_err(|reason| Stranded {
                        reason,
                        route: Some(route),
                    })
            }
            Guard::Outside(via) => match via {
                Via::Igw => self.entering_from_internet(destination, owner),
                Via::Vgw => self.entering_from_vpn(destination, owner),
                Via::Wire => local(owner).map(|to| Hop::plain(to, Path::From(Via::Wire))),
            }
            .map_err(Stranded::without_route),
        }
    }

    fn follow<'p>(
        &self,
        at: InterfaceIx,
        from: &PolicyInterface,
        source: IpAddr,
        destination: IpAddr,
        owner: Option<Owner>,
        route: &'p CompiledRoute,
    ) -> Result<Hop<'p>, DropReason> {
        let path = Path::Route(route);
        match route.target {
            Target::Blackhole => Err(DropReason::Blackhole),
            Target::Local => local(owner).map(|to| Hop::plain(to, path)),
            Target::Interface(Some(to)) if to != at => Ok(Hop::plain(to, path)),
            Target::Interface(_) | Target::Wire(None) => Err(DropReason::NoRoute),
            Target::Wire(Some(to)) => Ok(Hop::plain(to, path)),
            Target::Vgw => match owner {
                Some(Owner::Outside(to, Via::Vgw)) => Ok(Hop::plain(to, path)),
                _ => Err(DropReason::UnknownDestination),
            },
            Target::Igw => {
                // IPv6 addresses are public as they are; IPv4's are translated.
                let new_source = match source {
                    IpAddr::V6(_) => None,
                    IpAddr::V4(_) => {
                        Some(from.public_of(source).ok_or(DropReason::NoPublicAddress)?)
                    }
                };
                // What lies in the VPC isn't found on the internet.
                let (to, new_destination) = match owner {
                    Some(Owner::Outside(to, Via::Igw)) => (to, None),
                    Some(Owner::Public(to, private)) if !self.in_vpc(destination) => {
                        (to, Some(private))
                    }
                    _ => return Err(DropReason::UnknownDestination),
                };
                Ok(Hop {
                    new_source,
                    new_destination,
                    ..Hop::plain(to, path)
                })
            }
        }
    }

    fn entering_from_internet<'p>(
        &self,
        destination: IpAddr,
        owner: Option<Owner>,
    ) -> Result<Hop<'p>, DropReason> {
        let path = Path::From(Via::Igw);
        match owner {
            Some(Owner::Public(to, private)) => Ok(Hop {
                new_destination: Some(private),
                ..Hop::plain(to, path)
            }),
            // Nobody on the internet reaches a private IPv4 address, and what
            // goes from one outside host to another doesn't cross the VPC.
            _ if destination.is_ipv4() && self.in_vpc(destination) => Err(DropReason::NoRoute),
            Some(Owner::Outside(..)) => Err(DropReason::NoRoute),
            Some(Owner::Private(to)) => Ok(Hop::plain(to, path)),
            Some(Owner::Service(_)) | None => Err(DropReason::UnknownDestination),
        }
    }

    fn entering_from_vpn<'p>(
        &self,
        destination: IpAddr,
        owner: Option<Owner>,
    ) -> Result<Hop<'p>, DropReason> {
        if !self.in_vpc(destination) {
            return Err(DropReason::NoRoute);
        }
        local(owner).map(|to| Hop::plain(to, Path::From(Via::Vgw)))
    }

    /// Whether an interface stands for the network around ([`Via::Wire`]), which has
    /// services of its own.
    #[inline]
    pub fn is_wired(&self) -> bool {
        self.is_wired
    }

    /// Whether the address lies in one of the VPC's blocks.
    pub fn in_vpc(&self, address: IpAddr) -> bool {
        self.vpc.iter().any(|cidr| cidr.contains(&address))
    }
}

fn blocks(subnets: &[Subnet]) -> impl Iterator<Item = IpNet> {
    subnets.iter().flat_map(|subnet| &subnet.cidrs).copied()
}

fn on_wire(interface: &PolicyInterface) -> bool {
    matches!(interface.guard, Guard::Outside(Via::Wire))
}

fn local(owner: Option<Owner>) -> Result<InterfaceIx, DropReason> {
    match owner {
        Some(Owner::Private(to)) => Ok(to),
        _ => Err(DropReason::UnknownDestination),
    }
}
