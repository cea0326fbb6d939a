//! The oracle: what AWS would do with a packet, worked out slowly from the
//! declared model and nothing else. **For tests only.**
//!
//! It never sees a compiled form. Every question is a walk over plain lists in
//! the order in which AWS's documentation tells the story, so that each line
//! can be checked against that text (`aws-semantics` names the digest of it).
//! Where AWS is silent the comment says so and names the choice.
//!
//! * `packet`: what a packet says; `services`: traffic that is never filtered;
//! * `groups`: rules, tracked and untracked flows; `flows`: the life of a flow;
//! * `acl`: network ACLs; `routes`: route tables and gateways;
//! * `fragments`: what follows a first fragment; `router`: answers to packets
//!   that are too long.
//!
//! Time is an argument, in whole milliseconds, and never runs backwards.

use std::net::IpAddr;
use std::time::Duration;

use self::flows::{Flow, Identity};
use self::fragments::Datagram;
use self::groups::Seen;
use self::routes::Path;
use super::DropReason;
use crate::model::{Direction, Interface, InterfaceIx, Model, RuleId, protocol};

mod acl;
mod flows;
mod fragments;
mod groups;
mod packet;
mod router;
mod routes;
mod services;
#[cfg(test)]
mod tests;

pub use packet::{Fragment, Packet, Payload, Quoted, Speech, TcpFlags};
pub use router::Answer;

/// Why a packet is dropped, and the interface to which that is attributed.
pub type Refusal = (DropReason, InterfaceIx);

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It arrives.
    Delivered {
        /// The receiving interface.
        to: InterfaceIx,
        /// The packet as the receiver sees it, before it is split.
        packet: Packet,
        /// The size of the fragments in which it arrives, if it doesn't arrive
        /// whole: it is longer than the path takes, and routers may split it.
        split: Option<u16>,
        /// Why the sender's groups let it out; `None` for an external sender,
        /// and for a fragment other than the first.
        egress: Option<Admission>,
        /// Why the receiver's groups let it in; `None` for an external
        /// receiver, and for a fragment other than the first.
        ingress: Option<Admission>,
    },
    /// It does not.
    Dropped {
        /// Why.
        reason: DropReason,
        /// The interface to which the drop is attributed.
        at: InterfaceIx,
    },
    /// A fragment that waits for the first of its datagram.
    Held {
        /// The interface that sent it.
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

/// Everything that a packet sets off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What becomes of the packet itself.
    pub judgement: Judgement,
    /// What the router answers it.
    pub answer: Option<Answer>,
    /// Fragments that waited for this one, each as it was sent and what
    /// becomes of it, in the order they came.
    pub released: Vec<(Packet, Judgement)>,
    /// Fragments that waited, and died of this one: it overlapped another.
    pub lost: usize,
    /// The number of fragments that waited in vain, by sending interface: their first fragment
    /// didn't come in time, or this packet takes their room.
    pub orphans: Vec<(InterfaceIx, u64)>,
}

/// The evaluator: a model, and the flows and datagrams seen so far.
#[derive(Debug, Clone)]
pub struct Oracle {
    model: Model,
    /// Most flows at a time, on all interfaces together.
    capacity: usize,
    flows: Vec<Flow>,
    datagrams: Vec<Datagram>,
}

impl Oracle {
    /// An evaluator without flows, and with room for any number of them.
    pub fn new(model: Model) -> Self {
        Self::with_capacity(model, usize::MAX)
    }

    /// An evaluator that remembers at most `capacity` flows at a time.
    pub fn with_capacity(model: Model, capacity: usize) -> Self {
        Self {
            model,
            capacity,
            flows: Vec::new(),
            datagrams: Vec::new(),
        }
    }

    /// Changes rules, memberships, network ACLs and routes; an interface keeps
    /// its index. Tracked flows survive: they go on until they close or time
    /// out (aws-semantics §3.4; for a change of an interface's groups AWS is
    /// silent, and the same is done). So do the verdicts of first fragments.
    pub fn replace_model(&mut self, model: Model) {
        self.model = model;
    }

    /// Judges one packet, and remembers the flows that it opens or continues.
    pub fn judge(&mut self, packet: &Packet, now: Duration) -> Outcome {
        let from = packet.from;
        // Whatever's time is up is gone.
        let orphans = self.expire(now);
        let mut outcome = Outcome {
            judgement: Judgement::Held { at: from },
            answer: None,
            released: Vec::new(),
            lost: 0,
            orphans,
        };
        if let Err(reason) = self.check_headers(packet) {
            outcome.judgement = Judgement::Dropped { reason, at: from };
            return outcome;
        }
        match packet.fragment {
            Some(fragment) => self.judge_fragment(packet, fragment, now, &mut outcome),
            None => {
                // Nothing follows a whole packet's fate.
                let _ = self.judge_whole(packet, now, &mut outcome);
            }
        }
        outcome
    }

    /// Forgets flows and datagrams whose time is up; gives the number of
    /// fragments that waited in vain, by sending interface. ([`Self::judge`]
    /// begins with it.)
    pub fn expire(&mut self, now: Duration) -> Vec<(InterfaceIx, u64)> {
        let Self { model, flows, .. } = self;
        flows.retain(|flow| flow.is_live(model, now));
        self.expire_datagrams(now)
    }

    /// How many flows are remembered, tracked and untracked.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// The first steps of the road, for which every packet is one by itself.
    fn check_headers(&self, packet: &Packet) -> Result<(), DropReason> {
        let Some(sender) = self.model.interfaces.get(packet.from.ix()) else {
            return Err(DropReason::UnknownInterface);
        };
        // No IP packet mixes families; one that claims to is not believed.
        if packet.source.is_ipv4() != packet.destination.is_ipv4() {
            return Err(DropReason::Malformed);
        }
        // A router verifies the header checksum and discards packets that fail (RFC 1812 §5.2.2).
        if packet.damaged {
            return Err(DropReason::Malformed);
        }
        // Nor is a part of a datagram that cannot be.
        if packet.fragment.is_some_and(|part| !part.is_possible()) {
            return Err(DropReason::Malformed);
        }
        // Nor the ICMP of the other family, which no host understands and no rule means
        // (RFC 4443 §1). Of a later fragment it doesn't show.
        if matches!(
            (packet.payload, packet.source),
            (Payload::Other(protocol::ICMP), IpAddr::V6(_))
                | (Payload::Other(protocol::ICMPV6), IpAddr::V4(_))
        ) {
            return Err(DropReason::Malformed);
        }
        // Without a whole transport header nobody can say where it belongs
        // (RFC 1858, RFC 7112).
        if matches!(packet.payload, Payload::Headless(_)) && !packet.is_later_fragment() {
            return Err(match packet.fragment {
                Some(_) => DropReason::TinyFragment,
                None => DropReason::Malformed,
            });
        }
        // A DHCP client has no address yet and knows none: it speaks to all.
        // Neither groups nor network ACLs judge it (§4), and no server answers
        // here.
        let served = !sender.is_external() && !routes::has_wire(&self.model);
        if served && services::is_dhcp(packet) {
            return Err(DropReason::NoService);
        }
        // The source (aws-semantics §7, source/destination check).
        if !may_send_from(&self.model, sender, packet.source) {
            return Err(DropReason::SourceCheck);
        }
        // Neither does anything judge what is for a service of the VPC (§4).
        if served && services::lives_at(&self.model, packet.destination) {
            return Err(DropReason::NoService);
        }
        // A VPC carries unicast only.
        if is_never_unicast(packet.destination) {
            return Err(DropReason::NotUnicast);
        }
        Ok(())
    }

    /// Judges a whole packet, or a first fragment, that passed the first steps.
    /// Gives the way that later fragments follow.
    fn judge_whole(
        &mut self,
        packet: &Packet,
        now: Duration,
        outcome: &mut Outcome,
    ) -> Result<Path, Refusal> {
        let walked = self.walk(packet, now, &mut outcome.answer);
        outcome.judgement = match &walked {
            Ok((judgement, _)) => *judgement,
            Err((reason, at)) => Judgement::Dropped {
                reason: *reason,
                at: *at,
            },
        };
        walked.map(|(_, path)| path)
    }

    /// The road of a packet (§8). The first step that refuses ends it; what
    /// earlier steps remembered stays remembered, since each interface keeps
    /// its own state and knows nothing of what happens to the packet further on.
    fn walk(
        &mut self,
        packet: &Packet,
        now: Duration,
        answer: &mut Option<Answer>,
    ) -> Result<(Judgement, Path), Refusal> {
        let from = packet.from;
        let sender = &self.model.interfaces[from.ix()];
        let from_outside = sender.is_external();
        // Nobody on the wire has an address that isn't his own but ours.
        let source_is_own = routes::is_wire(sender) || has(sender, packet.source);

        // The sender's groups, on the addresses as the sender wrote them: they
        // stand before the route and the internet gateway.
        let sent = Seen::new(packet, source_is_own);
        let mut egress = None;
        if !from_outside {
            let admitted = self.admit(from, Direction::Egress, from, sent, now);
            egress = Some(admitted.map_err(|reason| (reason, from))?);
        }

        // Inside one subnet there is no router, hence no network ACL and no
        // route. Everything else leaves the subnet by its ACL and its routes.
        let inside = routes::inside_subnet(&self.model, packet);
        let crosses_boundary = inside.is_none();
        let path = match inside {
            Some(path) => path.map_err(|reason| (reason, from))?,
            None => {
                if !acl::allows(&self.model, from, Direction::Egress, sent) {
                    return Err((DropReason::NetworkAclEgress, from));
                }
                routes::find(&self.model, packet).map_err(|reason| (reason, from))?
            }
        };
        let to = path.to;

        // The path's MTU. What may not be split is answered by the router.
        let split = match path.split(packet) {
            Ok(split) => split,
            Err(reason) => {
                *answer = self.answer(packet, path.mtu, now);
                return Err((reason, to));
            }
        };

        // The receiver's subnet and groups, on the addresses as the receiver
        // sees them.
        let arrives = path.translate(packet);
        let mut seen = Seen::new(&arrives, source_is_own);
        seen.meets_own_flow = Identity::of_packet(from, Direction::Egress, sent)
            == Identity::of_packet(to, Direction::Ingress, seen);
        let receiver_outside = self.model.interfaces[to.ix()].is_external();
        if crosses_boundary && !acl::allows(&self.model, to, Direction::Ingress, seen) {
            return Err((DropReason::NetworkAclIngress, to));
        }
        let mut ingress = None;
        if !receiver_outside {
            let admitted = self.admit(to, Direction::Ingress, from, seen, now);
            ingress = Some(admitted.map_err(|reason| (reason, to))?);
        }

        // The receiver's own source/destination check. AWS doesn't say where it
        // stands; it matters for what a route sends to an interface only, and
        // here the flow is remembered although the packet ends.
        let receiver = &self.model.interfaces[to.ix()];
        let is_its_own = receiver
            .addresses
            .iter()
            .any(|address| address.private == arrives.destination);
        if !receiver_outside && receiver.source_dest_check && !is_its_own {
            return Err((DropReason::DestinationCheck, to));
        }

        let delivered = Judgement::Delivered {
            to,
            packet: arrives,
            split,
            egress,
            ingress,
        };
        Ok((delivered, path))
    }
}

/// Whether `sender` may send from `source`.
fn may_send_from(model: &Model, sender: &Interface, source: IpAddr) -> bool {
    // No host may have these as its source, check or no check. (A source that
    // is the limited broadcast address belongs here too.)
    if is_never_unicast(source) {
        return false;
    }
    // On the wire is everybody but those who are here.
    if routes::is_wire(sender) {
        return !model.interfaces.iter().any(|it| has(it, source));
    }
    // With the check on, the source must be one of the interface's own
    // addresses (§7). An external host is held to that always: what a gateway
    // lets in under a foreign name is not for a security group to sort out.
    if sender.source_dest_check || sender.is_external() {
        return has(sender, source);
    }
    true
}

/// Whether the address is one of the interface's own.
fn has(interface: &Interface, address: IpAddr) -> bool {
    interface.addresses.iter().any(|own| own.private == address)
}

/// Unspecified, loopback, multicast (224.0.0.0/4, ff00::/8) or 255.255.255.255.
/// Link-local unicast isn't among them: no route leads to such a destination.
fn is_never_unicast(address: IpAddr) -> bool {
    let broadcast = match address {
        IpAddr::V4(address) => address.is_broadcast(),
        IpAddr::V6(_) => false,
    };
    broadcast || address.is_unspecified() || address.is_loopback() || address.is_multicast()
}
