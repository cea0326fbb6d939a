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
    /// Not an IP packet whose headers are whole and agree with its length.
    Malformed,
    /// A fragment; its ports can't be known.
    Fragment,
    /// The source address is not the interface's own (source/destination
    /// check), or no host may use it as a source.
    SourceCheck,
    /// Multicast, broadcast, loopback or unspecified destination: a VPC
    /// carries none of them.
    NotUnicast,
    /// No egress rule of the sender's security groups allows it.
    NoEgressRule,
    /// The flow is new and the table that tracks flows is full.
    FlowTableFull,
    /// No route leads to the destination from here.
    NoRoute,
    /// Towards the internet from an address without a public one: the
    /// internet gateway has nothing to translate it to.
    NoPublicAddress,
    /// The route is there, but nobody has the destination address.
    UnknownDestination,
    /// Larger than the receiving interface's MTU.
    TooBig,
    /// No ingress rule of the receiver's security groups allows it.
    NoIngressRule,
    /// The receiving device refused the packet.
    LinkFailed,
}

impl DropReason {
    /// How many reasons there are; `reason as usize` is below it.
    pub const COUNT: usize = Self::ALL.len();

    /// Every reason, in order.
    pub const ALL: [Self; 13] = [
        Self::UnknownInterface,
        Self::Malformed,
        Self::Fragment,
        Self::SourceCheck,
        Self::NotUnicast,
        Self::NoEgressRule,
        Self::FlowTableFull,
        Self::NoRoute,
        Self::NoPublicAddress,
        Self::UnknownDestination,
        Self::TooBig,
        Self::NoIngressRule,
        Self::LinkFailed,
    ];

    /// A name for programs: `no_ingress_rule`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownInterface => "unknown_interface",
            Self::Malformed => "malformed",
            Self::Fragment => "fragment",
            Self::SourceCheck => "source_check",
            Self::NotUnicast => "not_unicast",
            Self::NoEgressRule => "no_egress_rule",
            Self::FlowTableFull => "flow_table_full",
            Self::NoRoute => "no_route",
            Self::NoPublicAddress => "no_public_address",
            Self::UnknownDestination => "unknown_destination",
            Self::TooBig => "too_big",
            Self::NoIngressRule => "no_ingress_rule",
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
