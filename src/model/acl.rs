//! Network ACLs: stateless, ordered, evaluated where traffic crosses a
//! subnet's boundary (aws-semantics §6).

use std::fmt;

use ipnet::IpNet;

use super::{Direction, Place, Traffic};

/// Name of the network ACL that every VPC has and that a subnet without one gets.
pub const DEFAULT_ACL: &str = "default";
/// Largest number of an entry (aws-semantics §6).
pub const MAX_ACL_RULE: u16 = 32_766;
/// The number under which AWS stores the `*` entry for IPv4; IPv6's is the next.
pub const ACL_DENY_REST: u16 = 32_767;

/// What an entry does with the traffic that it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AclAction {
    /// Lets it pass.
    Allow,
    /// Drops it.
    Deny,
}

impl AclAction {
    /// `allow` or `deny`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

impl fmt::Display for AclAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One numbered entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclEntry {
    /// 1 to [`MAX_ACL_RULE`]; unique in its direction.
    pub number: u16,
    /// What it does.
    pub action: AclAction,
    /// What it covers; ports are destination ports.
    pub traffic: Traffic,
    /// The far side: the source of what enters the subnet, the destination of
    /// what leaves it. Canonical; covers its own family only.
    pub cidr: IpNet,
    /// Where it is declared.
    pub place: Place,
}

/// A network ACL. What no entry covers is denied by the `*` entries, which
/// aren't among [`Self::ingress`] and [`Self::egress`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkAcl {
    /// `acl-…`, given or derived.
    pub id: String,
    /// The name in the lab file; `default` for the VPC's own.
    pub name: String,
    /// Entries for what enters a subnet, by number.
    pub ingress: Vec<AclEntry>,
    /// Entries for what leaves a subnet, by number.
    pub egress: Vec<AclEntry>,
    /// Where it is declared.
    pub place: Place,
}

impl NetworkAcl {
    /// The entries of one direction, in the order of evaluation.
    pub fn entries(&self, direction: Direction) -> &[AclEntry] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// The ACL that AWS gives every VPC: 100 allows all IPv4 and, where the VPC
    /// has IPv6, 101 all IPv6, both ways.
    pub fn implied(id: String, has_ipv6: bool, place: &Place) -> Self {
        let allow = |number, cidr| AclEntry {
            number,
            action: AclAction::Allow,
            traffic: Traffic::All,
            cidr,
            place: place.clone(),
        };
        let mut entries = vec![allow(100, IpNet::V4(ipnet::Ipv4Net::default()))];
        if has_ipv6 {
            entries.push(allow(101, IpNet::V6(ipnet::Ipv6Net::default())));
        }
        Self {
            id,
            name: DEFAULT_ACL.to_owned(),
            ingress: entries.clone(),
            egress: entries,
            place: place.clone(),
        }
    }
}
