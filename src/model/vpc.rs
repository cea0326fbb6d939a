//! The VPC and its subnets.

use ipnet::IpNet;

use super::Place;

/// A virtual private cloud: the address blocks that its local route covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vpc {
    /// `vpc-…`, given or derived.
    pub id: String,
    /// IPv4 and IPv6 blocks, canonical.
    pub cidrs: Vec<IpNet>,
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
