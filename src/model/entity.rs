//! Entities and their network interfaces.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::{EntityIx, GroupIx, Place, SubnetIx};

/// Largest MTU inside a VPC, and the default (aws-semantics §7: jumbo frames).
pub const MAX_MTU: u16 = 9001;
/// Smallest MTU that IPv6 allows on a link (RFC 8200 §5).
pub const MIN_MTU: u16 = 1280;

/// Largest packet on a path through the internet gateway or a VPN
/// (aws-semantics §7), whatever the MTUs of its ends; the default of hosts
/// outside the VPC.
pub const GATEWAY_MTU: u16 = 1500;

/// How an external host reaches the VPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Via {
    /// Over the internet gateway: reaches public addresses only.
    Igw,
    /// Over the virtual private gateway (a VPN): reaches private addresses.
    Vgw,
    /// On the network that the interface itself is attached to, as in a sidecar:
    /// everybody else, under every address that no interface here has.
    Wire,
}

/// Which kind of load balancer (ELBv2 `Type`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum LoadBalancer {
    /// An application load balancer.
    #[default]
    Application,
    /// A network load balancer, whose flows are always tracked (aws-semantics
    /// §3.3).
    Network,
}

/// What an entity stands in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntityKind {
    /// A virtual machine.
    Ec2,
    /// A database instance.
    Rds,
    /// A load balancer.
    Elb(LoadBalancer),
    /// A task in awsvpc mode.
    Ecs,
    /// A host outside the VPC; no security groups guard it.
    External(Via),
}

impl EntityKind {
    /// `ec2`, `rds`, `elb`, `ecs` or `external`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Rds => "rds",
            Self::Elb(_) => "elb",
            Self::Ecs => "ecs",
            Self::External(_) => "external",
        }
    }
}

impl fmt::Display for EntityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something with its own network interfaces and, in a lab, its own namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entity {
    /// Lower-case letters, digits and inner hyphens; at most 63 (a DNS label).
    pub name: String,
    /// What it stands in for.
    pub kind: EntityKind,
    /// For `rds`: which database; for people only.
    pub engine: Option<String>,
    /// A shell command to run in the namespace while the lab is up.
    pub run: Option<String>,
    /// Most flows tracked at a time on all its interfaces together: the
    /// connection allowance of an instance (aws-semantics §3.6), whose size AWS
    /// doesn't publish. `None`: no limit of its own.
    pub max_flows: Option<u32>,
    /// Where it is declared.
    pub place: Place,
}

/// Idle timeouts of one interface (aws-semantics §3.5 has ranges and defaults).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracking {
    /// An established TCP connection: 60 s to 432,000 s.
    pub tcp_established: Duration,
    /// UDP one way or with a single exchange: 30 s to 60 s.
    pub udp_timeout: Duration,
    /// UDP with more than one exchange: 60 s to 180 s.
    pub udp_stream: Duration,
}

impl Default for Tracking {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(432_000),
            udp_timeout: Duration::from_secs(30),
            udp_stream: Duration::from_secs(180),
        }
    }
}

/// One address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address that the interface itself has.
    pub private: IpAddr,
    /// The public IPv4 address that the internet gateway translates to it.
    pub public: Option<Ipv4Addr>,
}

/// Where an interface is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// In a subnet, guarded by security groups.
    Subnet {
        /// The subnet.
        subnet: SubnetIx,
        /// Its groups in the order declared, without repeats; never empty.
        groups: Vec<GroupIx>,
    },
    /// Outside the VPC.
    External(Via),
}

/// A network interface: an ENI, or the attachment of an external host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// `eni-…`; for external hosts an id of the same shape that names no ENI.
    pub id: String,
    /// Its owner.
    pub entity: EntityIx,
    /// 0 for `eth0`, 1 for `eth1`, …
    pub device: u8,
    /// Subnet and groups, or the gateway that an external host is behind.
    pub attachment: Attachment,
    /// Its addresses, at least one.
    pub addresses: Vec<Address>,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Whether packets must carry one of its own addresses.
    pub source_dest_check: bool,
    /// Idle timeouts.
    pub tracking: Tracking,
    /// Where it is declared.
    pub place: Place,
}

impl Interface {
    /// `eth0`, `eth1`, …
    pub fn device_name(&self) -> String {
        format!("eth{}", self.device)
    }

    /// Whether it lies outside the VPC.
    pub fn is_external(&self) -> bool {
        matches!(self.attachment, Attachment::External(_))
    }

    /// Its groups; none for external hosts.
    pub fn groups(&self) -> &[GroupIx] {
        match &self.attachment {
            Attachment::Subnet { groups, .. } => groups,
            Attachment::External(_) => &[],
        }
    }

    /// Its first address of the family of `like`.
    pub fn address_like(&self, like: IpAddr) -> Option<Address> {
        self.addresses
            .iter()
            .copied()
            .find(|address| address.private.is_ipv4() == like.is_ipv4())
    }
}
