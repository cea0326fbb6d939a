//! The oracle: what AWS would do with a packet, worked out slowly from the
//! declared model and nothing else. **For tests only.**
//!
//! It never sees a compiled form. Every question is a walk over plain lists in
//! the order in which AWS's documentation tells the story, so that each line
//! can be checked against that text (`aws-semantics` names the digest of it).
//! Where AWS is silent the comment says so and names the choice.
//!
//! Time is an argument, in whole milliseconds, and never runs backwards.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use self::flows::{Flow, Identity};
use super::DropReason;
use crate::model::{
    Attachment, Direction, GroupIx, IcmpMatch, Interface, InterfaceIx, Model, Peer, RuleId,
    Traffic, Via,
};

mod flows;
#[cfg(test)]
mod tests;

/// A packet as the sender's interface hands it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packet {
    /// The interface that sends it.
    pub from: InterfaceIx,
    /// The source address in its header.
    pub source: IpAddr,
    /// The destination address in its header; of the same family.
    pub destination: IpAddr,
    /// What it carries.
    pub payload: Payload,
    /// Bytes of the whole IP packet.
    pub length: usize,
}

/// What a packet carries, as far as security groups care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payload {
    /// Protocol 6.
    Tcp {
        /// The sender's port.
        source_port: u16,
        /// The receiver's port.
        destination_port: u16,
        /// The flags that move a connection along.
        flags: TcpFlags,
    },
    /// Protocol 17.
    Udp {
        /// The sender's port.
        source_port: u16,
        /// The receiver's port.
        destination_port: u16,
    },
    /// An echo request or reply with code 0: ICMP types 8 and 0 over IPv4,
    /// ICMPv6 types 128 and 129 over IPv6.
    IcmpEcho {
        /// A request; otherwise a reply.
        request: bool,
        /// The identifier that a reply repeats.
        id: u16,
    },
    /// Any ICMP message that is no query: ICMP over IPv4, ICMPv6 over IPv6.
    Icmp {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
    },
    /// Any other protocol number.
    Other(u8),
}

/// The TCP flags that move a connection along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags {
    /// Synchronise.
    pub syn: bool,
    /// Acknowledge.
    pub ack: bool,
    /// No more from the sender.
    pub fin: bool,
    /// Reset.
    pub rst: bool,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It arrives.
    Delivered {
        /// The receiving interface.
        to: InterfaceIx,
        /// The source as the receiver sees it.
        source: IpAddr,
        /// The destination as the receiver sees it.
        destination: IpAddr,
        /// Why the sender's groups let it out; `None` for an external sender.
        egress: Option<Admission>,
        /// Why the receiver's groups let it in; `None` for an external receiver.
        ingress: Option<Admission>,
    },
    /// It does not.
    Dropped {
        /// Why.
        reason: DropReason,
        /// The interface to which the drop is attributed.
        at: InterfaceIx,
    },
}

/// Why the groups of one interface let a packet pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// By a rule: the first that covers the packet, in the order of the groups
    /// on the interface and of the rules in each group. (AWS merges all rules
    /// into one set, so which of them is named makes no difference to traffic.)
    Rule(RuleId),
    /// By a tracked flow, whatever the rules say now.
    Flow,
}

/// The evaluator: a model and the flows seen so far.
#[derive(Debug)]
pub struct Oracle {
    model: Model,
    flows: Vec<Flow>,
}

impl Oracle {
    /// An evaluator without flows.
    pub fn new(model: Model) -> Self {
        Self {
            model,
            flows: Vec::new(),
        }
    }

    /// Changes rules and memberships; an interface keeps its index. Tracked
    /// flows survive: they go on until they close or time out (aws-semantics
    /// §3.4; for a change of an interface's groups AWS is silent, and the
    /// same is done).
    pub fn replace_model(&mut self, model: Model) {
        self.model = model;
    }

    /// Judges one packet, and remembers the flows that it opens or continues.
    pub fn judge(&mut self, packet: &Packet, now: Duration) -> Judgement {
        match self.walk(packet, now) {
            Ok(delivered) => delivered,
            Err((reason, at)) => Judgement::Dropped { reason, at },
        }
    }

    /// The road of a packet. The first step that refuses ends it; what earlier
    /// steps remembered stays remembered, since each interface keeps its own
    /// state and knows nothing of what happens to the packet further on.
    fn walk(
        &mut self,
        packet: &Packet,
        now: Duration,
    ) -> Result<Judgement, (DropReason, InterfaceIx)> {
        let Self { model, flows } = self;
        let from = packet.from;
        let Some(sender) = model.interfaces.get(from.ix()) else {
            return Err((DropReason::UnknownInterface, from));
        };
        // No IP packet mixes families; one that claims to is not believed.
        if packet.source.is_ipv4() != packet.destination.is_ipv4() {
            return Err((DropReason::Malformed, from));
        }

        // 1. The source (aws-semantics §7, source/destination check).
        if !may_send_from(sender, packet.source) {
            return Err((DropReason::SourceCheck, from));
        }
        // 2. A VPC carries unicast only.
        if is_never_unicast(packet.destination) {
            return Err((DropReason::NotUnicast, from));
        }

        let source_is_own = sender
            .addresses
            .iter()
            .any(|address| address.private == packet.source);

        // Flows whose time is up are gone for both interfaces alike.
        flows.retain(|flow| flow.is_live(model, now));

        // 3. The sender's groups, on the addresses as the sender wrote them:
        //    they stand before the route and the internet gateway (§8).
        let egress = if sender.is_external() {
            None
        } else {
            let sent = Seen {
                source: packet.source,
                destination: packet.destination,
                payload: packet.payload,
                source_is_own,
            };
            let admission = admit(model, flows, from, Direction::Egress, sent, now);
            Some(admission.ok_or((DropReason::NoEgressRule, from))?)
        };

        // 4. The route, and the internet gateway's translation.
        let (to, source, destination) =
            route(model, sender, packet.source, packet.destination).map_err(|why| (why, from))?;
        let receiver = &model.interfaces[to.ix()];

        // 5. The receiver's MTU. Nothing on the way splits a packet.
        if packet.length > usize::from(receiver.mtu) {
            return Err((DropReason::TooBig, to));
        }

        // 6. The receiver's groups, on the addresses as the receiver sees them.
        //    (Its own source/destination check has nothing to add: the
        //    destination is one of its addresses, or it would not be here.)
        let ingress = if receiver.is_external() {
            None
        } else {
            let seen = Seen {
                source,
                destination,
                payload: packet.payload,
                source_is_own,
            };
            let admission = admit(model, flows, to, Direction::Ingress, seen, now);
            Some(admission.ok_or((DropReason::NoIngressRule, to))?)
        };

        Ok(Judgement::Delivered {
            to,
            source,
            destination,
            egress,
            ingress,
        })
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "from #{}: {} -> {} {}, {} bytes",
            self.from.ix(),
            self.source,
            self.destination,
            self.payload,
            self.length
        )
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Tcp {
                source_port,
                destination_port,
                flags,
            } => write!(f, "tcp {source_port} -> {destination_port} [{flags}]"),
            Self::Udp {
                source_port,
                destination_port,
            } => write!(f, "udp {source_port} -> {destination_port}"),
            Self::IcmpEcho { request: true, id } => write!(f, "echo request id {id}"),
            Self::IcmpEcho { request: false, id } => write!(f, "echo reply id {id}"),
            Self::Icmp { kind, code } => write!(f, "icmp type {kind} code {code}"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = [
            (self.syn, 'S'),
            (self.fin, 'F'),
            (self.rst, 'R'),
            (self.ack, '.'),
        ];
        for (_, letter) in set.iter().filter(|(on, _)| *on) {
            write!(f, "{letter}")?;
        }
        Ok(())
    }
}

/// A packet as the groups of one interface see it.
#[derive(Debug, Clone, Copy)]
struct Seen {
    source: IpAddr,
    destination: IpAddr,
    payload: Payload,
    /// Whether the packet comes from an interface that has its source address.
    /// What a middlebox forwards under another's address has lost that one's
    /// groups (§2, middlebox routing).
    source_is_own: bool,
}

impl Seen {
    /// The address of the far side, to which a rule's peer applies.
    fn peer(&self, direction: Direction) -> IpAddr {
        match direction {
            Direction::Ingress => self.source,
            Direction::Egress => self.destination,
        }
    }
}

/// Whether `sender` may send from `source`.
fn may_send_from(sender: &Interface, source: IpAddr) -> bool {
    // No host may have these as its source, check or no check. (A source that
    // is the limited broadcast address belongs here too.)
    if is_never_unicast(source) {
        return false;
    }
    // With the check on, the source must be one of the interface's own
    // addresses (§7). An external host is held to that always: what a gateway
    // lets in under a foreign name is not for a security group to sort out.
    if sender.source_dest_check || sender.is_external() {
        return sender
            .addresses
            .iter()
            .any(|address| address.private == source);
    }
    true
}

/// Unspecified, loopback, multicast (224.0.0.0/4, ff00::/8) or 255.255.255.255.
/// Link-local unicast isn't among them: such a destination is merely unknown.
fn is_never_unicast(address: IpAddr) -> bool {
    let broadcast = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    broadcast || address.is_unspecified() || address.is_loopback() || address.is_multicast()
}

/// Whether the groups of interface `at` let the packet pass, and why.
fn admit(
    model: &Model,
    flows: &mut Vec<Flow>,
    at: InterfaceIx,
    direction: Direction,
    seen: Seen,
    now: Duration,
) -> Option<Admission> {
    // Tracked flows first: a reply, or more of the same, passes whatever the
    // rules of its direction say (§1.3, §3.4). ICMP errors and the like belong
    // to no flow: by AWS's newest text they need a rule of their own (§3.7).
    let identity = Identity::of(at, direction, seen);
    if let Some(identity) = identity
        && let Some(position) = flows.iter().position(|flow| flow.identity == identity)
    {
        if flows[position].is_reopened_by(seen.payload) {
            // A new connection on the ports of a closed one: not a part of
            // the old flow, and judged like any first packet.
            flows.remove(position);
        } else {
            flows[position].continue_with(seen.payload, direction, now);
            return Some(Admission::Flow);
        }
    }

    // Then every rule of every group of the interface (§1.3): allow only, so
    // the first that covers the packet settles it.
    let rule = model.interfaces[at.ix()]
        .groups()
        .iter()
        .flat_map(|group| model.security_groups[group.ix()].rules(direction))
        .find(|rule| {
            covers_traffic(rule.traffic, seen)
                && !(matches!(rule.peer, Peer::Group(_))
                    && direction == Direction::Ingress
                    && !seen.source_is_own)
                && covers_peer(model, rule.peer, seen.peer(direction))
        })?;
    if let Some(identity) = identity {
        flows.push(Flow::open(identity, seen.payload, direction, now));
    }
    Some(Admission::Rule(rule.id))
}

/// Whether a rule's protocol, ports or ICMP type and code cover the packet
/// (§1.1). Ports are the destination's in both directions.
fn covers_traffic(traffic: Traffic, seen: Seen) -> bool {
    let ipv4 = seen.destination.is_ipv4();
    match (traffic, seen.payload) {
        (Traffic::All, _) => true,
        (
            Traffic::Tcp(ports),
            Payload::Tcp {
                destination_port, ..
            },
        )
        | (
            Traffic::Udp(ports),
            Payload::Udp {
                destination_port, ..
            },
        ) => ports.from <= destination_port && destination_port <= ports.to,
        (Traffic::Icmp(icmp), payload) if ipv4 => covers_icmp(icmp, payload, [8, 0]),
        (Traffic::Icmpv6(icmp), payload) if !ipv4 => covers_icmp(icmp, payload, [128, 129]),
        (Traffic::Other(number), Payload::Other(protocol)) => number == protocol,
        _ => false,
    }
}

/// Whether an ICMP rule covers the message; `echo` has the types of an echo
/// request and reply in the packet's family.
fn covers_icmp(icmp: IcmpMatch, payload: Payload, echo: [u8; 2]) -> bool {
    let (kind, code) = match payload {
        Payload::IcmpEcho { request: true, .. } => (echo[0], 0),
        Payload::IcmpEcho { request: false, .. } => (echo[1], 0),
        Payload::Icmp { kind, code } => (kind, code),
        _ => return false,
    };
    match icmp {
        IcmpMatch::Any => true,
        IcmpMatch::Type(wanted) => kind == wanted,
        IcmpMatch::TypeAndCode(wanted_kind, wanted_code) => {
            (kind, code) == (wanted_kind, wanted_code)
        }
    }
}

/// Whether a rule's peer covers `address` (§1.2, §2). An address of one family
/// is in no block of the other.
fn covers_peer(model: &Model, peer: Peer, address: IpAddr) -> bool {
    match peer {
        Peer::Ipv4(block) => IpNet::V4(block).contains(&address),
        Peer::Ipv6(block) => IpNet::V6(block).contains(&address),
        Peer::PrefixList(list) => model.prefix_lists[list.ix()]
            .entries
            .iter()
            .any(|entry| entry.contains(&address)),
        Peer::Group(group) => is_member(model, group, address),
    }
}

/// Whether `address` is a private address of an interface that carries `group`.
/// Public and Elastic IP addresses never count (§2), and external hosts carry
/// no groups.
fn is_member(model: &Model, group: GroupIx, address: IpAddr) -> bool {
    model.interfaces.iter().any(|interface| {
        interface.groups().contains(&group)
            && interface.addresses.iter().any(|its| its.private == address)
    })
}

/// Where a packet goes and how the receiver sees it: (receiver, source,
/// destination).
type Arrival = (InterfaceIx, IpAddr, IpAddr);

/// The route from `sender`, by where it is attached.
fn route(
    model: &Model,
    sender: &Interface,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Arrival, DropReason> {
    match sender.attachment {
        Attachment::Subnet { .. } => route_from_vpc(model, sender, source, destination),
        Attachment::External(Via::Igw) => route_from_internet(model, source, destination),
        Attachment::External(Via::Vgw) => route_from_vpn(model, source, destination),
    }
}

/// The main route table: the local route; the addresses of hosts behind the
/// virtual private gateway; and, where there is an internet gateway,
/// 0.0.0.0/0 and ::/0 through it. The longest prefix wins (§7), and nothing
/// declared here is more specific than the local route.
fn route_from_vpc(
    model: &Model,
    sender: &Interface,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Arrival, DropReason> {
    if model.vpc.contains(destination) {
        let to = owner_in_vpc(model, destination).ok_or(DropReason::UnknownDestination)?;
        return Ok((to, source, destination));
    }
    if let Some(to) = owner_behind(model, Via::Vgw, destination) {
        return Ok((to, source, destination));
    }
    let igw_exists = model
        .interfaces
        .iter()
        .any(|interface| matches!(interface.attachment, Attachment::External(Via::Igw)));
    if !igw_exists {
        return Err(DropReason::NoRoute);
    }

    // The internet gateway translates IPv4 one to one, and IPv6 not at all.
    let source = if source.is_ipv4() {
        let public = sender
            .addresses
            .iter()
            .find(|address| address.private == source)
            .and_then(|address| address.public)
            .ok_or(DropReason::NoPublicAddress)?;
        IpAddr::V4(public)
    } else {
        source
    };
    if let Some(to) = owner_behind(model, Via::Igw, destination) {
        return Ok((to, source, destination));
    }
    // Out and straight back in: to the public address of an interface of the
    // VPC. The receiver sees the sender's public address (§2, §13 hairpin).
    let (to, private) =
        owner_of_public(model, destination).ok_or(DropReason::UnknownDestination)?;
    Ok((to, source, private))
}

/// From the internet: public IPv4 addresses, and IPv6 addresses of the VPC.
fn route_from_internet(
    model: &Model,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Arrival, DropReason> {
    if let Some((to, private)) = owner_of_public(model, destination) {
        return Ok((to, source, private));
    }
    if model.vpc.contains(destination) {
        // IPv6 addresses are reachable as they are; private IPv4 addresses
        // are not routed on the internet.
        if destination.is_ipv4() {
            return Err(DropReason::NoRoute);
        }
        let to = owner_in_vpc(model, destination).ok_or(DropReason::UnknownDestination)?;
        return Ok((to, source, destination));
    }
    // Traffic between two external hosts is not the VPC's to carry.
    let other_external = owner_behind(model, Via::Igw, destination)
        .or_else(|| owner_behind(model, Via::Vgw, destination));
    match other_external {
        Some(_) => Err(DropReason::NoRoute),
        None => Err(DropReason::UnknownDestination),
    }
}

/// From behind the virtual private gateway: the VPC's blocks and nothing else.
fn route_from_vpn(
    model: &Model,
    source: IpAddr,
    destination: IpAddr,
) -> Result<Arrival, DropReason> {
    if !model.vpc.contains(destination) {
        return Err(DropReason::NoRoute);
    }
    let to = owner_in_vpc(model, destination).ok_or(DropReason::UnknownDestination)?;
    Ok((to, source, destination))
}

/// The interface inside the VPC with this private address.
fn owner_in_vpc(model: &Model, address: IpAddr) -> Option<InterfaceIx> {
    model
        .interfaces()
        .filter(|(_, interface)| !interface.is_external())
        .find(|(_, interface)| interface.addresses.iter().any(|a| a.private == address))
        .map(|(ix, _)| ix)
}

/// The external interface behind gateway `via` with this address.
fn owner_behind(model: &Model, via: Via, address: IpAddr) -> Option<InterfaceIx> {
    model
        .interfaces()
        .filter(|(_, interface)| interface.attachment == Attachment::External(via))
        .find(|(_, interface)| interface.addresses.iter().any(|a| a.private == address))
        .map(|(ix, _)| ix)
}

/// The interface inside the VPC with this public address, and the private
/// address that it stands for.
fn owner_of_public(model: &Model, address: IpAddr) -> Option<(InterfaceIx, IpAddr)> {
    let IpAddr::V4(address) = address else {
        return None;
    };
    for (ix, interface) in model.interfaces() {
        if interface.is_external() {
            continue;
        }
        for its in &interface.addresses {
            if its.public == Some(address) {
                return Some((ix, its.private));
            }
        }
    }
    None
}
