//! Traffic that AWS never filters (aws-semantics §4): neither security groups
//! nor network ACLs see it. The services themselves are not here; their
//! addresses are, so that no rule is ever blamed for what it can't decide.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::Subnet;

/// A service of the VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// The Amazon-provided DNS resolver.
    Resolver,
    /// DHCP.
    Dhcp,
    /// Instance metadata (IMDS).
    InstanceMetadata,
    /// Metadata and credentials of ECS tasks.
    TaskMetadata,
    /// Windows licence activation (KMS).
    LicenceActivation,
    /// The Amazon Time Sync Service.
    TimeSync,
    /// The VPC's own router.
    Router,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resolver => "the VPC's DNS resolver",
            Self::Dhcp => "DHCP",
            Self::InstanceMetadata => "the instance metadata service",
            Self::TaskMetadata => "the task metadata service",
            Self::LicenceActivation => "licence activation",
            Self::TimeSync => "the time service",
            Self::Router => "the VPC's router",
        })
    }
}

/// Services at the same address in every VPC. Those of licence activation are
/// unconfirmed (aws-semantics §4).
const EVERYWHERE: [(IpAddr, Service); 9] = [
    (link_local(169, 253), Service::Resolver),
    (link_local(169, 254), Service::InstanceMetadata),
    (link_local(170, 2), Service::TaskMetadata),
    (link_local(169, 250), Service::LicenceActivation),
    (link_local(169, 251), Service::LicenceActivation),
    (link_local(169, 123), Service::TimeSync),
    (amazon(0x253), Service::Resolver),
    (amazon(0x254), Service::InstanceMetadata),
    (amazon(0x123), Service::TimeSync),
];

/// Addresses of services that every VPC has, with what they are.
pub fn everywhere() -> impl Iterator<Item = (IpAddr, Service)> {
    EVERYWHERE.into_iter()
}

/// Every address of a service in a VPC: those above, the resolver at the second
/// address of each IPv4 block of the VPC, the router at the first of each
/// subnet's blocks.
pub(super) fn addresses<'a>(
    vpc: &'a [IpNet],
    subnets: &'a [Subnet],
) -> impl Iterator<Item = (IpAddr, Service)> + 'a {
    let resolvers = vpc
        .iter()
        .filter(|block| block.addr().is_ipv4())
        .map(|block| (nth(block, 2), Service::Resolver));
    let routers = subnets
        .iter()
        .flat_map(|subnet| &subnet.cidrs)
        .map(|block| (nth(block, 1), Service::Router));
    routers.chain(resolvers).chain(EVERYWHERE)
}

/// Whether a route can lead there: not to link-local blocks, nor to the one from
/// which AWS's IPv6 services have their addresses, however wide it is
/// (aws-semantics §7).
pub fn is_forwardable(destination: IpAddr) -> bool {
    !match destination {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments()[..2] == [0xfd00, 0x0ec2],
    }
}

const fn link_local(third: u8, fourth: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(169, 254, third, fourth))
}

const fn amazon(host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, host))
}

/// The `n`-th address of a block, from 0.
fn nth(block: &IpNet, n: u8) -> IpAddr {
    match block.network() {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits().wrapping_add(n.into())).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits().wrapping_add(n.into())).into(),
    }
}
