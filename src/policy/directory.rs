//! Who has which address, and where a packet goes: the VPC's local route, the
//! virtual private gateway, the internet gateway with its translation.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use foldhash::fast::RandomState;
use ipnet::IpNet;

use crate::model::{InterfaceIx, Via};

use super::{DropReason, Guard, PolicyInterface};

/// Every address that somebody has.
#[derive(Debug)]
pub struct Directory {
    vpc: Vec<IpNet>,
    owners: HashMap<IpAddr, Owner, RandomState>,
    /// Whether there is an internet gateway, and so default routes to it.
    has_igw: bool,
}

/// Who has an address, and in what sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The interface.
    pub interface: InterfaceIx,
    /// What the address is to it.
    pub role: Role,
}

/// What an address is to its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The interface's own address in the VPC.
    Private,
    /// A public address that the internet gateway translates to this one.
    Public(Ipv4Addr),
    /// The address of a host outside.
    Outside(Via),
}

/// The route that a packet took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The VPC's local route.
    Local,
    /// The virtual private gateway.
    Vgw,
    /// The internet gateway.
    Igw,
}

impl Route {
    /// `local`, `vgw` or `igw`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Vgw => "vgw",
            Self::Igw => "igw",
        }
    }
}

/// Where a packet goes next, and what the internet gateway makes of its
/// addresses on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The receiving interface.
    pub to: InterfaceIx,
    /// Which route led there.
    pub route: Route,
    /// The new source address, if it is translated.
    pub new_source: Option<Ipv4Addr>,
    /// The new destination address, if it is translated.
    pub new_destination: Option<Ipv4Addr>,
}

impl Hop {
    fn plain(to: InterfaceIx, route: Route) -> Self {
        Self {
            to,
            route,
            new_source: None,
            new_destination: None,
        }
    }
}

impl Directory {
    pub(super) fn new(vpc: &[IpNet], slots: &[Option<PolicyInterface>]) -> Self {
        let mut owners = HashMap::with_hasher(RandomState::default());
        let mut has_igw = false;
        for (i, slot) in slots.iter().enumerate() {
            let Some(interface) = slot else { continue };
            let at = InterfaceIx::new(i);
            let role = match interface.guard {
                Guard::Groups { .. } => Role::Private,
                Guard::Outside(via) => {
                    has_igw |= via == Via::Igw;
                    Role::Outside(via)
                }
            };
            for address in &interface.addresses {
                let owner = |role| Owner {
                    interface: at,
                    role,
                };
                owners.insert(address.private, owner(role));
                if let (Some(public), IpAddr::V4(private)) = (address.public, address.private) {
                    owners.insert(IpAddr::V4(public), owner(Role::Public(private)));
                }
            }
        }
        Self {
            vpc: vpc.to_vec(),
            owners,
            has_igw,
        }
    }

    /// Who has `address`.
    pub fn owner(&self, address: IpAddr) -> Option<Owner> {
        self.owners.get(&address).copied()
    }

    /// Where a packet that `from` sends goes.
    ///
    /// # Errors
    /// `NoRoute`, `NoPublicAddress` or `UnknownDestination`.
    pub fn route(
        &self,
        from: &PolicyInterface,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<Hop, DropReason> {
        match from.guard {
            Guard::Groups { .. } => self.leaving_vpc(from, source, destination),
            Guard::Outside(Via::Igw) => self.entering_from_internet(destination),
            Guard::Outside(Via::Vgw) => self.entering_from_vpn(destination),
        }
    }

    fn leaving_vpc(
        &self,
        from: &PolicyInterface,
        source: IpAddr,
        destination: IpAddr,
    ) -> Result<Hop, DropReason> {
        let owner = self.owner(destination);
        if self.in_vpc(destination) {
            return local(owner);
        }
        if let Some(Owner {
            interface,
            role: Role::Outside(Via::Vgw),
        }) = owner
        {
            return Ok(Hop::plain(interface, Route::Vgw));
        }
        if !self.has_igw {
            return Err(DropReason::NoRoute);
        }
        // IPv6 addresses are public as they are; IPv4's are translated.
        let new_source = match source {
            IpAddr::V6(_) => None,
            IpAddr::V4(_) => Some(public_of(from, source).ok_or(DropReason::NoPublicAddress)?),
        };
        let Some(Owner { interface, role }) = owner else {
            return Err(DropReason::UnknownDestination);
        };
        let new_destination = match role {
            Role::Public(private) => Some(private),
            Role::Outside(_) => None,
            Role::Private => return Err(DropReason::UnknownDestination),
        };
        Ok(Hop {
            to: interface,
            route: Route::Igw,
            new_source,
            new_destination,
        })
    }

    fn entering_from_internet(&self, destination: IpAddr) -> Result<Hop, DropReason> {
        let owner = self.owner(destination);
        match (owner, destination) {
            (
                Some(Owner {
                    interface,
                    role: Role::Public(private),
                }),
                _,
            ) => Ok(Hop {
                new_destination: Some(private),
                ..Hop::plain(interface, Route::Igw)
            }),
            // Nobody on the internet reaches a private IPv4 address, and what
            // goes from one outside host to another doesn't cross the VPC.
            (_, IpAddr::V4(_)) if self.in_vpc(destination) => Err(DropReason::NoRoute),
            (
                Some(Owner {
                    role: Role::Outside(_),
                    ..
                }),
                _,
            ) => Err(DropReason::NoRoute),
            (
                Some(Owner {
                    interface,
                    role: Role::Private,
                }),
                _,
            ) => Ok(Hop::plain(interface, Route::Igw)),
            (None, _) => Err(DropReason::UnknownDestination),
        }
    }

    fn entering_from_vpn(&self, destination: IpAddr) -> Result<Hop, DropReason> {
        if !self.in_vpc(destination) {
            return Err(DropReason::NoRoute);
        }
        local(self.owner(destination)).map(|hop| Hop {
            route: Route::Vgw,
            ..hop
        })
    }

    fn in_vpc(&self, address: IpAddr) -> bool {
        self.vpc.iter().any(|cidr| cidr.contains(&address))
    }
}

fn local(owner: Option<Owner>) -> Result<Hop, DropReason> {
    match owner {
        Some(Owner {
            interface,
            role: Role::Private,
        }) => Ok(Hop::plain(interface, Route::Local)),
        _ => Err(DropReason::UnknownDestination),
    }
}

fn public_of(interface: &PolicyInterface, private: IpAddr) -> Option<Ipv4Addr> {
    interface
        .addresses
        .iter()
        .find(|address| address.private == private)?
        .public
}
