//! Security groups, their rules, and prefix lists.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{GroupIx, Place, PrefixListIx, RuleId};

/// Name of the group that every VPC has and that an interface without groups gets.
pub const DEFAULT_GROUP: &str = "default";

/// Which way traffic goes, seen from the interface that the rule guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Towards the interface.
    Ingress,
    /// Away from the interface.
    Egress,
}

impl Direction {
    /// The other way.
    pub fn reverse(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// `ingress` or `egress`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An inclusive range of TCP or UDP ports, `from <= to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// First port.
    pub from: u16,
    /// Last port.
    pub to: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self {
        from: 0,
        to: u16::MAX,
    };

    /// Whether `port` is in the range.
    pub fn contains(self, port: u16) -> bool {
        self.from <= port && port <= self.to
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self, self.from == self.to) {
            (Self::ALL, _) => f.write_str("0-65535"),
            (_, true) => write!(f, "{}", self.from),
            (_, false) => write!(f, "{}-{}", self.from, self.to),
        }
    }
}

/// Which ICMP or ICMPv6 messages a rule covers (aws-semantics §1.1: a fixed
/// type with code -1 means any code of that type; type -1 forces code -1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IcmpMatch {
    /// Type -1: every message.
    Any,
    /// One type, any code.
    Type(u8),
    /// One type and code.
    TypeAndCode(u8, u8),
}

impl fmt::Display for IcmpMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("all types"),
            Self::Type(kind) => write!(f, "type {kind}"),
            Self::TypeAndCode(kind, code) => write!(f, "type {kind} code {code}"),
        }
    }
}

/// What traffic a rule covers, peers apart (EC2 `IpPermission`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Traffic {
    /// Protocol -1.
    All,
    /// Protocol 6 with destination ports.
    Tcp(PortRange),
    /// Protocol 17 with destination ports.
    Udp(PortRange),
    /// Protocol 1.
    Icmp(IcmpMatch),
    /// Protocol 58.
    Icmpv6(IcmpMatch),
    /// Any other IANA protocol number; such rules have no ports.
    Other(u8),
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all traffic"),
            Self::Tcp(ports) => write!(f, "tcp {ports}"),
            Self::Udp(ports) => write!(f, "udp {ports}"),
            Self::Icmp(icmp) => write!(f, "icmp {icmp}"),
            Self::Icmpv6(icmp) => write!(f, "icmpv6 {icmp}"),
            Self::Other(number) => f.write_str(&protocol_name(*number)),
        }
    }
}

/// IANA protocol numbers that have a meaning of their own in rules.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;

    /// True if `number` is an IPv6 extension header that is skipped on the way to the protocol:
    /// Hop-by-Hop Options, Routing, Fragment, Destination Options (RFC 8200 §4). A decision: the
    /// other types on IANA's list (ESP 50, AH 51, Mobility 135, HIP 139, Shim6 140, experiments
    /// 253 and 254) count as protocols, because rules name them as such.
    #[inline]
    pub fn is_ipv6_extension(number: u8) -> bool {
        matches!(number, 0 | 43 | 44 | 60)
    }
}

/// The name people use for an IANA protocol number.
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        47 => "gre".into(),
        50 => "esp".into(),
        51 => "ah".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => format!("protocol {other}"),
    }
}

/// Whom a rule lets in or lets out to: exactly one of these (aws-semantics §1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An IPv4 block, canonical.
    Ipv4(Ipv4Net),
    /// An IPv6 block, canonical.
    Ipv6(Ipv6Net),
    /// Every entry of a prefix list.
    PrefixList(PrefixListIx),
    /// The private addresses of every interface that carries the group.
    Group(GroupIx),
}

/// One stored rule: one direction, one kind of traffic, one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroupRule {
    /// `sgr-…`, given or derived; unique in the model.
    pub id: RuleId,
    /// What it covers.
    pub traffic: Traffic,
    /// From whom (ingress) or to whom (egress).
    pub peer: Peer,
    /// The peer as the user wrote it, for people: `sg/web`, `10.0.0.0/16`.
    pub peer_text: String,
    /// The user's description; may be empty.
    pub description: String,
    /// Where it is declared.
    pub place: Place,
}

/// A security group: allow rules only, each direction its own list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    /// `sg-…`, given or derived.
    pub id: String,
    /// Unique in the VPC without regard to case.
    pub name: String,
    /// The user's description; may be empty.
    pub description: String,
    /// Rules for traffic towards members.
    pub ingress: Vec<SecurityGroupRule>,
    /// Rules for traffic from members.
    pub egress: Vec<SecurityGroupRule>,
    /// Where it is declared.
    pub place: Place,
}

impl SecurityGroup {
    /// The rules of one direction.
    pub fn rules(&self, direction: Direction) -> &[SecurityGroupRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// An address of an interface elsewhere, with the groups that it carries: rules that
/// reference these cover it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its private address.
    pub address: IpAddr,
    /// Its groups.
    pub groups: Vec<GroupIx>,
}

/// A managed prefix list: IPv4 only or IPv6 only (aws-semantics §1.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixList {
    /// `pl-…`, given or derived.
    pub id: String,
    /// The name in the lab file.
    pub name: String,
    /// Entries, canonical, all of one family.
    pub entries: Vec<IpNet>,
    /// Where it is declared.
    pub place: Place,
}
