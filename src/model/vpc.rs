//! The VPC and its subnets.

use ipnet::IpNet;

use super::{AclIx, Place, RouteTableIx};

/// What lets an ICMP error (unreachable, time exceeded, parameter problem, too
/// big) reach who sent the packet that it is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum IcmpErrors {
    /// A rule, like anything else: AWS's newest text (aws-semantics §3.7).
    #[default]
    ByRule,
    /// A rule, or that the packet quoted in the error belongs to a tracked
    /// flow: what AWS's text said from 2020 to 2021.
    Related,
}

/// A virtual private cloud: the address blocks that its local route covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vpc {
    /// `vpc-…`, given or derived.
    pub id: String,
    /// IPv4 and IPv6 blocks, canonical.
    pub cidrs: Vec<IpNet>,
    /// How ICMP errors are let in and out.
    pub icmp_errors: IcmpErrors,
}

impl Vpc {
    /// Whether `address` lies in one of the VPC's blocks.
    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        self.cidrs.iter().any(|cidr| cidr.contains(&address))
    }

    /// Whether the VPC has an IPv6 block.
    pub fn has_ipv6(&self) -> bool {
        self.cidrs.iter().any(|cidr| matches!(cidr, IpNet::V6(_)))
    }
}

/// A subnet of the VPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    /// `subnet-…`, given or derived.
    pub id: String,
    /// The name in the lab file.
    pub name: String,
    /// IPv4 and IPv6 blocks, canonical, each within one of the VPC's.
    pub cidrs: Vec<IpNet>,
    /// Its network ACL.
    pub network_acl: AclIx,
    /// Its route table.
    pub route_table: RouteTableIx,
    /// Where it is declared.
    pub place: Place,
}

impl Subnet {
    /// The block that holds `address`, if one does.
    pub fn cidr_of(&self, address: std::net::IpAddr) -> Option<IpNet> {
        self.cidrs
            .iter()
            .copied()
            .find(|cidr| cidr.contains(&address))
    }
}
