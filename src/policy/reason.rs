//! Why a packet was dropped: one closed list, spoken by counters, `explain`,
//! the oracle and the tests alike.

use std::fmt;

/// Every reason for which the data path drops a packet, in the order of the
/// road that a packet takes. A reason is attributed to one interface: the
/// sender's up to and including the route, the receiver's after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DropReason {
    /// The sending interface is not part of the policy in force.
    UnknownInterface,
    /// A frame of neither IPv4, IPv6 nor their neighbour protocols: a VPC carries
    /// nothing else.
    NotIp,
    /// ARP or neighbour discovery under an address that isn't the interface's own.
    NeighbourSpoof,
    /// Not an IP packet whose headers are whole and agree with its length.
    Malformed,
    /// A first fragment too short to hold the transport header, so that its
    /// ports can't be known (RFC 1858, RFC 7112).
    TinyFragment,
    /// A fragment that covers bytes which an earlier one of its datagram
    /// covered, or one of a datagram that had such (RFC 5722).
    OverlappingFragment,
    /// An exact duplicate of a fragment of an unfinished datagram: the same bytes at the same
    /// place (RFC 8200 §4.5). The datagram continues without it.
    DuplicateFragment,
    /// A fragment whose datagram's first fragment never came, or came after the fragment
    /// had made room for others.
    OrphanFragment,
    /// One fragment more than a datagram may have, or than may wait for its first.
    FragmentTableFull,
    /// The source address is not the interface's own (source/destination
    /// check), or no host may use it as a source.
    SourceCheck,
    /// Multicast, broadcast, loopback or unspecified destination: a VPC
    /// carries none of them.
    NotUnicast,
    /// For a service of the VPC that no rule ever filters (resolver, instance
    /// metadata, time, …), and no such service answers here.
    NoService,
    /// No egress rule of the sender's security groups allows it.
    NoEgressRule,
    /// Part of a TCP connection that was reset or closed from both sides, and
    /// not the start of a new one.
    ConnectionClosed,
    /// The flow is new and the table that tracks flows is full.
    FlowTableFull,
    /// The flow is new and the entity tracks as many as its allowance admits.
    ConntrackAllowance,
    /// The network ACL of the sender's subnet denies it on its way out.
    NetworkAclEgress,
    /// No route leads to the destination from here.
    NoRoute,
    /// The route to the destination is a blackhole.
    Blackhole,
    /// Towards the internet from an address without a public one: the
    /// internet gateway has nothing to translate it to.
    NoPublicAddress,
    /// The route is there, but nobody has the destination address.
    UnknownDestination,
    /// Larger than the path to the receiver takes, and not to be fragmented on
    /// the way.
    TooBig,
    /// The network ACL of the receiver's subnet denies it on its way in.
    NetworkAclIngress,
    /// No ingress rule of the receiver's security groups allows it.
    NoIngressRule,
    /// The destination address is not the receiving interface's own
    /// (source/destination check).
    DestinationCheck,
    /// The receiving device refused the packet.
    LinkFailed,
}

impl DropReason {
    /// How many reasons there are; `reason as usize` is below it.
    pub const COUNT: usize = Self::ALL.len();

    /// Every reason, in order.
    pub const ALL: [Self; 26] = [
        Self::UnknownInterface,
        Self::NotIp,
        Self::NeighbourSpoof,
        Self::Malformed,
        Self::TinyFragment,
        Self::OverlappingFragment,
        Self::DuplicateFragment,
        Self::OrphanFragment,
        Self::FragmentTableFull,
        Self::SourceCheck,
        Self::NotUnicast,
        Self::NoService,
        Self::NoEgressRule,
        Self::ConnectionClosed,
        Self::FlowTableFull,
        Self::ConntrackAllowance,
        Self::NetworkAclEgress,
        Self::NoRoute,
        Self::Blackhole,
        Self::NoPublicAddress,
        Self::UnknownDestination,
        Self::TooBig,
        Self::NetworkAclIngress,
        Self::NoIngressRule,
        Self::DestinationCheck,
        Self::LinkFailed,
    ];

    /// A name for programs: `no_ingress_rule`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownInterface => "unknown_interface",
            Self::NotIp => "not_ip",
            Self::NeighbourSpoof => "neighbour_spoof",
            Self::Malformed => "malformed",
            Self::TinyFragment => "tiny_fragment",
            Self::OverlappingFragment => "overlapping_fragment",
            Self::DuplicateFragment => "duplicate_fragment",
            Self::OrphanFragment => "orphan_fragment",
            Self::FragmentTableFull => "fragment_table_full",
            Self::SourceCheck => "source_check",
            Self::NotUnicast => "not_unicast",
            Self::NoService => "no_service",
            Self::NoEgressRule => "no_egress_rule",
            Self::ConnectionClosed => "connection_closed",
            Self::FlowTableFull => "flow_table_full",
            Self::ConntrackAllowance => "conntrack_allowance_exceeded",
            Self::NetworkAclEgress => "network_acl_egress",
            Self::NoRoute => "no_route",
            Self::Blackhole => "blackhole",
            Self::NoPublicAddress => "no_public_address",
            Self::UnknownDestination => "unknown_destination",
            Self::TooBig => "too_big",
            Self::NetworkAclIngress => "network_acl_ingress",
            Self::NoIngressRule => "no_ingress_rule",
            Self::DestinationCheck => "destination_check",
            Self::LinkFailed => "link_failed",
        }
    }
}

impl serde::Serialize for DropReason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_counts_in_its_own_slot() {
        for (slot, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, slot);
        }
    }
}
