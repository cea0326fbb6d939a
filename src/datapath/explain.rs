//! Why a packet passes or doesn't: the data path itself, walked by a packet
//! made for the question, with a recorder. There is no second evaluator.

mod notes;
mod views;

use std::net::IpAddr;

use serde::Serialize;

use super::station::query;
use super::{Datapath, Fate};
use crate::conntrack::Millis;
use crate::model::{InterfaceIx, protocol};
use crate::packet::{self, Packet, Shape, TcpFlags, Transport};
use crate::policy::{DropReason, Policy, PolicyInterface};
use notes::{Notes, traffic};

pub use views::{AclView, NearMiss, RouteView, RuleView};

/// Most next hops that forward a packet on its way. A packet that comes to
/// more goes in a circle.
const MAX_HOPS: usize = 8;

/// Source port of the question where none is given: the first of the
/// ephemeral ports of Linux (aws-semantics §6).
pub const EPHEMERAL: u16 = 32_768;

/// An exchange to explain: a request from one address to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// The sending interface.
    pub from: InterfaceIx,
    /// The address it sends from.
    pub source: IpAddr,
    /// The address it sends to.
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Ports, type and code of the request.
    pub transport: Transport,
}

/// Why a question can't be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// One address is IPv4, the other IPv6.
    #[error("{0} and {1} are of different families")]
    Families(IpAddr, IpAddr),
    /// Between IPv6 addresses, the number is that of an extension header.
    #[error(
        "{0} is an IPv6 extension header, not a protocol: give the protocol that follows it (tcp, udp, icmpv6 or a number)"
    )]
    Extension(u8),
}

/// The answer: the request's way, and the reply's.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// Whether both pass.
    pub allowed: bool,
    /// The request on its way.
    pub request: Leg,
    /// The reply on its way back; `None` if the request doesn't arrive or the
    /// kind of message has no reply.
    pub reply: Option<Leg>,
}

/// One packet on its way.
#[derive(Debug, Clone, Serialize)]
pub struct Leg {
    /// Name of the sending interface.
    pub from: String,
    /// Name of the interface that got it, or that dropped it.
    pub to: String,
    /// Source address as sent.
    pub source: IpAddr,
    /// Destination address as sent.
    pub destination: IpAddr,
    /// Name of the interface that has that address.
    pub destination_name: Option<String>,
    /// `tcp 5432`, `icmp type 8 code 0`.
    pub traffic: String,
    /// Whether it was delivered.
    pub delivered: bool,
    /// Why not.
    pub reason: Option<DropReason>,
    /// Every layer that it met, in order.
    pub steps: Vec<LegStep>,
}

/// One layer and what it decided.
#[derive(Debug, Clone, Serialize)]
pub struct LegStep {
    /// `headers`, `source check`, `service`, `egress groups`, `network acl out`,
    /// `route`, `mtu`, `network acl in`, `ingress groups`, `destination check`,
    /// `next hop`, `delivery`.
    pub layer: &'static str,
    /// Name of the interface that the layer belongs to.
    pub interface: String,
    /// `pass` or `drop`.
    pub decision: &'static str,
    /// What happened, in words.
    pub what: String,
    /// The rule that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleView>,
    /// The network ACL's entry that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl: Option<AclView>,
    /// The route that it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteView>,
    /// Of a denial by groups, an ACL or a route table: what would have allowed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Of a denial by groups: every rule that was asked, and why it doesn't cover.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub near_misses: Vec<NearMiss>,
}

/// Sends the question's packet, and then the reply to it, down the road of a
/// data path without flows.
///
/// # Errors
/// [`QuestionError`] if there is no such packet.
pub fn explain(policy: &Policy, question: &Question) -> Result<Explanation, QuestionError> {
    if question.source.is_ipv6() && protocol::is_ipv6_extension(question.protocol) {
        return Err(QuestionError::Extension(question.protocol));
    }
    // Whatever is opened on the way is new to this data path, so the answer
    // does not depend on flows that happen to be open.
    // Each hop opens two at most, on the way there and back.
    let datapath = Datapath::new(4 * MAX_HOPS);
    let (request, arrived) = leg(policy, &datapath, question, false)?;
    let reply = match arrived {
        Some((to, packet)) => match reply_to(to, &packet) {
            Some(question) => Some(leg(policy, &datapath, &question, true)?.0),
            None => None,
        },
        None => None,
    };
    Ok(Explanation {
        allowed: request.delivered && reply.as_ref().is_none_or(|reply| reply.delivered),
        request,
        reply,
    })
}

fn leg(
    policy: &Policy,
    datapath: &Datapath,
    question: &Question,
    is_reply: bool,
) -> Result<(Leg, Option<(InterfaceIx, Packet)>), QuestionError> {
    let mut frame = packet::build(
        question.source,
        question.destination,
        question.protocol,
        question.transport,
        &[0; 8],
    )
    .ok_or(QuestionError::Families(
        question.source,
        question.destination,
    ))?;
    let mut notes = Notes::new(policy, question.from, is_reply);
    let mut delivered = false;
    let (mut at, mut reason) = (question.from, None);
    for _ in 0..MAX_HOPS {
        let sender = notes.sender;
        let verdict = datapath.judge(
            policy,
            sender,
            &mut frame,
            Shape::Whole,
            Millis::default(),
            &mut notes,
        );
        match verdict.fate {
            Fate::Forward { to, .. } => at = to,
            Fate::Hold { at: holder } => at = holder,
            Fate::Drop {
                reason: why,
                at: whose,
            } => (at, reason) = (whose, Some(why)),
        }
        let Some((to, packet)) = notes.arrived.filter(|_| reason.is_none()) else {
            break;
        };
        let Some(exit) = exit_of(policy, to, &packet) else {
            delivered = true;
            break;
        };
        let what = format!(
            "not its own address: taken to forward it out of {}",
            label(policy, exit)
        );
        notes.add("next hop", to, true, what);
        notes.sender = exit;
    }
    if !delivered && reason.is_none() {
        notes.add("next hop", at, false, "it goes in a circle".to_owned());
    }
    let leg = Leg {
        from: label(policy, question.from),
        to: label(policy, at),
        source: question.source,
        destination: question.destination,
        destination_name: policy
            .directory()
            .owner(question.destination)
            .and_then(|owner| owner.interface())
            .map(|owner| label(policy, owner)),
        traffic: notes
            .packet
            .map_or_else(String::new, |packet| traffic(query(&packet))),
        delivered,
        reason,
        steps: notes.steps,
    };
    Ok((leg, notes.arrived.filter(|_| delivered)))
}

/// The interface by which whoever got the packet at `at` sends it on, if it is
/// for somebody else: the one that is in the destination's subnet, else the one
/// that it came to. (What a next hop really does is up to its own routes.)
fn exit_of(policy: &Policy, at: InterfaceIx, packet: &Packet) -> Option<InterfaceIx> {
    let receiver = policy.interface(at)?;
    // A host takes what is for any of its interfaces, whichever it came to.
    let own = |it: &PolicyInterface| it.entity == receiver.entity && it.has(packet.destination);
    if policy.interfaces().any(|(_, interface)| own(interface)) {
        return None;
    }
    let beside = policy.interfaces().find(|(_, interface)| {
        interface.entity == receiver.entity
            && interface
                .subnet()
                .is_some_and(|subnet| subnet.holds(packet.destination))
    });
    Some(beside.map_or(at, |(exit, _)| exit))
}

/// The answer that the receiver of `packet` gives, if its kind has one.
fn reply_to(receiver: InterfaceIx, packet: &Packet) -> Option<Question> {
    let transport = match packet.transport {
        Transport::Tcp {
            source,
            destination,
            end,
            ..
        } => Transport::Tcp {
            source: destination,
            destination: source,
            flags: TcpFlags {
                syn: true,
                ack: true,
                ..TcpFlags::default()
            },
            end: 1,
            acknowledgement: end,
        },
        Transport::Udp {
            source,
            destination,
        } => Transport::Udp {
            source: destination,
            destination: source,
        },
        Transport::IcmpQuery {
            kind,
            id,
            request: true,
            ..
        } => Transport::IcmpQuery {
            // RFC 792 and RFC 950 answer 8 with 0 and other questions with the
            // next type; RFC 4443 answers 128 with 129.
            kind: if kind == 8 { 0 } else { kind + 1 },
            code: 0,
            id,
            request: false,
        },
        Transport::IcmpQuery { request: false, .. }
        | Transport::Icmp { .. }
        | Transport::Fragment => return None,
        Transport::Other => Transport::Other,
    };
    Some(Question {
        from: receiver,
        source: packet.destination,
        destination: packet.source,
        protocol: packet.protocol,
        transport,
    })
}

fn label(policy: &Policy, at: InterfaceIx) -> String {
    policy
        .interface(at)
        .map_or_else(String::new, |interface| interface.label.clone())
}
