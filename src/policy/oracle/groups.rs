//! Security groups: which packets rules cover (aws-semantics §1, §2), and what
//! flows let pass whatever the rules say (§3).

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::flows::{Flow, Identity};
use super::packet::{Packet, Payload};
use super::{Admission, Oracle};
use crate::model::{
    Direction, EntityIx, EntityKind, GroupIx, IcmpErrors, IcmpMatch, InterfaceIx, LoadBalancer,
    Model, Peer, PortRange, SecurityGroupRule, Traffic,
};
use crate::policy::DropReason;

/// A packet as the guards of one interface or subnet see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) payload: Payload,
    /// Whether the packet comes from an interface that has its source address.
    /// What a middlebox forwards under another's address has lost that one's
    /// groups (§2, middlebox routing).
    pub(super) source_is_own: bool,
    /// True if the packet comes in by the same flow of the same interface by which it went out,
    /// so that it can't be told apart from its own reply.
    pub(super) meets_own_flow: bool,
}

impl Seen {
    pub(super) fn new(packet: &Packet, source_is_own: bool) -> Self {
        Self {
            source: packet.source,
            destination: packet.destination,
            payload: packet.payload,
            source_is_own,
            meets_own_flow: false,
        }
    }

    /// The address of the far side, to which a rule's peer applies.
    pub(super) fn peer(&self, direction: Direction) -> IpAddr {
        match direction {
            Direction::Ingress => self.source,
            Direction::Egress => self.destination,
        }
    }
}

impl Oracle {
    /// Decides if the groups of interface `at` admit the packet from `sender`, and why.
    /// Remembers the flow that it opens, or how far its flow has come.
    pub(super) fn admit(
        &mut self,
        at: InterfaceIx,
        direction: Direction,
        sender: InterfaceIx,
        seen: Seen,
        now: Duration,
    ) -> Result<Admission, DropReason> {
        // A packet is not a reply to itself (AWS doesn't say): no flow lets it in, and it opens
        // none. The rules judge each packet.
        let identity = if seen.meets_own_flow {
            None
        } else {
            Identity::of_packet(at, direction, seen)
        };
        let known = identity.and_then(|identity| self.position(identity));

        // A tracked flow first: a reply, or more of the same, passes whatever
        // the rules of its direction say (§1.3, §3.4).
        if let Some(position) = known
            && self.flows[position].tracked
        {
            // A connection that was reset may have ended. The rules judge the start of the next
            // one, which replaces it if they admit it.
            let begins_next = self.flows[position].is_reset() && seen.payload.starts_connection();
            if !self.flows[position].is_closed() && !begins_next {
                self.flows[position].continue_with(seen.payload, direction, now);
                return Ok(Admission::Flow);
            }
            // "A packet after the connection closed is rejected" (§3.5),
            // unless it starts a new connection on the same ports. That one is
            // judged like any first packet, and takes the old one's place if it passes.
            if !seen.payload.starts_connection() {
                return Err(DropReason::ConnectionClosed);
            }
        }

        // ICMP errors belong to no flow. By AWS's newest text they need a rule;
        // where the VPC is set to AWS's older one, those about a packet of a
        // tracked flow pass without (§3.7).
        if self.model.vpc.icmp_errors == IcmpErrors::Related && self.is_related(at, direction, seen)
        {
            return Ok(Admission::Flow);
        }

        // Then every rule of every group of the interface (§1.3).
        let Some(rule) = first_rule(&self.model, at, direction, seen) else {
            return Err(match direction {
                Direction::Egress => DropReason::NoEgressRule,
                Direction::Ingress => DropReason::NoIngressRule,
            });
        };
        let admission = Admission::Rule(rule.id);
        let Some(identity) = identity else {
            return Ok(admission);
        };

        // An untracked flow goes on as one, as long as the rules say so: those
        // of the initiator's direction are asked each time. A SYN without ACK
        // opens a new flow.
        let tracked = !self.is_untracked(at, direction, seen);
        if let Some(position) = known
            && !seen.payload.starts_connection()
            && !(tracked && direction == self.flows[position].opened)
        {
            self.flows[position].continue_with(seen.payload, direction, now);
            return Ok(admission);
        }
        let began = self.model.interfaces[sender.ix()].entity;
        let flow = Flow::open(identity, tracked, seen.payload, direction, began, now);
        self.remember(flow, known)?;
        Ok(admission)
    }

    /// Records a new flow, in place of the untracked or closed one at `old`, if any. Without room
    /// the packet is dropped, and existing flows stay. This also applies to untracked flows, for
    /// which AWS needs no room: if such a flow were not recorded, its reply would open another
    /// flow in the opposite direction.
    ///
    /// The table is shared among senders: an entity may have begun no more flows than there are
    /// places left. (AWS has an allowance for each instance, of unpublished size, §3.6.)
    fn remember(&mut self, flow: Flow, old: Option<usize>) -> Result<(), DropReason> {
        let entity = self.model.interfaces[flow.identity.interface.ix()].entity;
        let allowance = self.model.entities[entity.ix()].max_flows;
        let others =
            self.tracked(entity) - usize::from(old.is_some_and(|old| self.flows[old].tracked));
        if flow.tracked && allowance.is_some_and(|most| others >= most as usize) {
            return Err(DropReason::ConntrackAllowance);
        }
        let place_is_its_own = old.is_some_and(|old| self.flows[old].began == flow.began);
        let begun = self.flows.iter().filter(|other| other.began == flow.began);
        let begun = begun.count() + 1;
        let taken = self.flows.len() + usize::from(old.is_none());
        if !place_is_its_own && begun > self.capacity.saturating_sub(taken) {
            return Err(DropReason::FlowTableFull);
        }
        match old {
            Some(old) => self.flows[old] = flow,
            None => self.flows.push(flow),
        }
        Ok(())
    }

    /// How many flows are tracked on all interfaces of `entity`: what counts
    /// against its allowance (§3.6).
    pub fn tracked(&self, entity: EntityIx) -> usize {
        self.flows
            .iter()
            .filter(|flow| flow.tracked)
            .filter(|flow| self.model.interfaces[flow.identity.interface.ix()].entity == entity)
            .count()
    }

    fn position(&self, identity: Identity) -> Option<usize> {
        self.flows.iter().position(|flow| flow.identity == identity)
    }

    /// Whether the flow that the packet opens is untracked (§3.2, §3.3).
    fn is_untracked(&self, at: InterfaceIx, direction: Direction, seen: Seen) -> bool {
        let model = &self.model;
        // 1. Only TCP and UDP ever are.
        let every_port = |traffic| match seen.payload {
            Payload::Tcp { .. } => traffic == Traffic::Tcp(PortRange::ALL),
            Payload::Udp { .. } => traffic == Traffic::Udp(PortRange::ALL),
            _ => false,
        };
        if !matches!(seen.payload, Payload::Tcp { .. } | Payload::Udp { .. }) {
            return false;
        }
        // 2. A rule of the packet's direction covers it and names everybody.
        //    AWS doesn't say which counts where several cover it: any does.
        let everybody = if seen.source.is_ipv4() {
            Peer::Ipv4(Ipv4Net::default())
        } else {
            Peer::Ipv6(Ipv6Net::default())
        };
        let open = rules(model, at, direction)
            .any(|rule| rule.peer == everybody && covers_traffic(rule.traffic, seen));
        // 3. One rule of the other direction names everybody and every port.
        //    AWS is silent on whether it must be of all protocols: it needn't.
        let open_back = rules(model, at, direction.reverse()).any(|rule| {
            rule.peer == everybody && (rule.traffic == Traffic::All || every_port(rule.traffic))
        });
        // 4. Not one of those that are tracked always.
        let peer = seen.peer(direction);
        let far_balancer = model.interfaces().any(|(ix, interface)| {
            is_network_balancer(model, ix)
                && interface.addresses.iter().any(|its| its.private == peer)
        });
        open && open_back && !is_network_balancer(model, at) && !far_balancer
    }

    /// Whether the packet is an ICMP error about a packet of a tracked flow of
    /// `at`, closed or not, which passed `at` the other way and was sent by
    /// whom the error is for.
    fn is_related(&self, at: InterfaceIx, direction: Direction, seen: Seen) -> bool {
        let Payload::Icmp {
            quoted: Some(quoted),
            ..
        } = seen.payload
        else {
            return false;
        };
        seen.payload.is_icmp_error(seen.source.is_ipv4())
            && quoted.source == seen.destination
            && Identity::of_quoted(at, direction.reverse(), quoted)
                .and_then(|identity| self.position(identity))
                .is_some_and(|position| self.flows[position].tracked)
    }
}

/// The rules of all groups of an interface, in the order of the groups on it
/// and of the rules in each group.
fn rules(
    model: &Model,
    at: InterfaceIx,
    direction: Direction,
) -> impl Iterator<Item = &SecurityGroupRule> {
    model.interfaces[at.ix()]
        .groups()
        .iter()
        .flat_map(move |group| model.security_groups[group.ix()].rules(direction))
}

/// The first rule that covers the packet. There are only rules that allow, so
/// the first settles it.
fn first_rule(
    model: &Model,
    at: InterfaceIx,
    direction: Direction,
    seen: Seen,
) -> Option<&SecurityGroupRule> {
    rules(model, at, direction).find(|rule| {
        let lost_its_groups = direction == Direction::Ingress && !seen.source_is_own;
        covers_traffic(rule.traffic, seen)
            && covers_peer(model, rule.peer, seen.peer(direction))
            && !(matches!(rule.peer, Peer::Group(_)) && lost_its_groups)
    })
}

fn is_network_balancer(model: &Model, at: InterfaceIx) -> bool {
    model.entity_of(at).kind == EntityKind::Elb(LoadBalancer::Network)
}

/// Whether a rule's or an entry's protocol, ports or ICMP type and code cover
/// the packet (§1.1, §6). Ports are the destination's in both directions.
pub(super) fn covers_traffic(traffic: Traffic, seen: Seen) -> bool {
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
        (Traffic::Icmp(icmp), payload) if ipv4 => covers_icmp(icmp, payload),
        (Traffic::Icmpv6(icmp), payload) if !ipv4 => covers_icmp(icmp, payload),
        (Traffic::Other(number), Payload::Other(protocol)) => number == protocol,
        _ => false,
    }
}

fn covers_icmp(icmp: IcmpMatch, payload: Payload) -> bool {
    let (kind, code) = match payload {
        Payload::IcmpQuery { kind, .. } => (kind, 0),
        Payload::Icmp { kind, code, .. } => (kind, code),
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
    let mut owners = model
        .interfaces
        .iter()
        .filter(|interface| interface.addresses.iter().any(|its| its.private == address))
        .peekable();
    // What is declared of interfaces elsewhere says nothing about those here.
    if owners.peek().is_none() {
        return model
            .members
            .iter()
            .any(|member| member.address == address && member.groups.contains(&group));
    }
    owners.any(|interface| interface.groups().contains(&group))
}
