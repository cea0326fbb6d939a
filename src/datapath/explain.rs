//! Why a packet passes or doesn't: the data path itself, walked by a packet
//! made for the question, with a recorder. There is no second evaluator.

use std::fmt;
use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::{Datapath, Fate, Recorder, Step};
use crate::conntrack::Millis;
use crate::model::{Direction, InterfaceIx, Via, protocol_name};
use crate::packet::{self, Packet, ParseError, TcpFlags, Transport};
use crate::policy::{CompiledRule, DropReason, Guard, Policy, PolicyInterface, Query, RuleTable};

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
    /// `headers`, `source check`, `egress groups`, `route`, `ingress groups`, `delivery`.
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
    /// Of a denial by groups: what would have allowed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
    /// Of a denial by groups: every rule that was asked, and why it doesn't cover.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub near_misses: Vec<NearMiss>,
}

/// A rule for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleView {
    /// `sgr-…`.
    pub id: String,
    /// Name of its group.
    pub group: String,
    /// `sg-…` of its group.
    pub group_id: String,
    /// Which way it guards.
    #[serde(serialize_with = "as_text")]
    pub direction: Direction,
    /// `tcp 5432`.
    pub traffic: String,
    /// The peer as the user wrote it.
    pub peer: String,
    /// The user's description.
    pub description: String,
    /// `file:line:column`.
    pub place: String,
    /// The file alone.
    pub file: String,
    /// The line alone, from 1; `None` for AWS's defaults.
    pub line: Option<u32>,
}

/// A rule that didn't cover.
#[derive(Debug, Clone, Serialize)]
pub struct NearMiss {
    /// The rule.
    pub rule: RuleView,
    /// Whether its peer covers the other side.
    pub peer_covers: bool,
    /// Whether it covers protocol and port.
    pub traffic_covers: bool,
}

impl fmt::Display for RuleView {
    /// `sgr-… of web: tcp 8080 from sg/lb`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {}: {} {} {}",
            self.id,
            self.group,
            self.traffic,
            preposition(self.direction),
            self.peer
        )
    }
}

impl From<&CompiledRule> for RuleView {
    fn from(rule: &CompiledRule) -> Self {
        Self {
            id: rule.id.to_string(),
            group: rule.group_name.clone(),
            group_id: rule.group_id.clone(),
            direction: rule.direction,
            traffic: rule.traffic.to_string(),
            peer: rule.peer.clone(),
            description: rule.description.clone(),
            place: rule.place.to_string(),
            file: rule.place.file.to_string(),
            line: (!rule.place.is_implied()).then_some(rule.place.line),
        }
    }
}

/// Sends the question's packet, and then the reply to it, down the road of a
/// data path without flows.
///
/// # Errors
/// [`QuestionError`] if there is no such packet.
pub fn explain(policy: &Policy, question: &Question) -> Result<Explanation, QuestionError> {
    // Whatever is opened on the way is new to this data path, so the answer
    // does not depend on flows that happen to be open.
    let datapath = Datapath::new(16);
    let (request, arrived) = leg(policy, &datapath, question)?;
    let reply = match arrived {
        Some((to, packet)) => match reply_to(to, &packet) {
            Some(question) => Some(leg(policy, &datapath, &question)?.0),
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
    let mut notes = Notes {
        policy,
        sender: question.from,
        steps: Vec::new(),
        packet: None,
        arrived: None,
    };
    let verdict = datapath.judge(
        policy,
        question.from,
        &mut frame,
        Millis::default(),
        &mut notes,
    );
    let (at, reason) = match verdict.fate {
        Fate::Forward { to, .. } => (to, None),
        Fate::Drop { reason, at } => (at, Some(reason)),
    };
    let leg = Leg {
        from: label(policy, question.from),
        to: label(policy, at),
        source: question.source,
        destination: question.destination,
        destination_name: policy
            .directory()
            .owner(question.destination)
            .map(|owner| label(policy, owner.interface)),
        traffic: notes
            .packet
            .map_or_else(String::new, |packet| traffic(query(&packet))),
        delivered: reason.is_none(),
        reason,
        steps: notes.steps,
    };
    Ok((leg, notes.arrived))
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

/// The recorder: each step in words.
struct Notes<'p> {
    policy: &'p Policy,
    sender: InterfaceIx,
    steps: Vec<LegStep>,
    packet: Option<Packet>,
    arrived: Option<(InterfaceIx, Packet)>,
}

impl Notes<'_> {
    fn add(&mut self, layer: &'static str, at: InterfaceIx, passed: bool, what: String) {
        self.steps.push(LegStep {
            layer,
            interface: label(self.policy, at),
            decision: if passed { "pass" } else { "drop" },
            what,
            rule: None,
            missing: None,
            near_misses: Vec::new(),
        });
    }

    fn parsed(&mut self, parsed: Result<&Packet, ParseError>) {
        match parsed {
            Ok(packet) => self.packet = Some(*packet),
            Err(error) => self.add("headers", self.sender, false, error.to_string()),
        }
    }

    fn judged(
        &mut self,
        at: InterfaceIx,
        direction: Direction,
        peer: IpAddr,
        query: Query,
        rule: Option<&CompiledRule>,
    ) {
        let what = match rule {
            Some(rule) => format!("allowed by {}", RuleView::from(rule)),
            None => format!(
                "no {direction} rule allows {} {} {}",
                traffic(query),
                preposition(direction),
                self.describe(peer),
            ),
        };
        self.add(layer(direction), at, rule.is_some(), what);
        let denial = (rule.is_none())
            .then(|| self.denial(at, direction, peer, query))
            .flatten();
        if let Some(step) = self.steps.last_mut() {
            step.rule = rule.map(RuleView::from);
            if let Some((missing, near_misses)) = denial {
                step.missing = Some(missing);
                step.near_misses = near_misses;
            }
        }
    }

    /// What would have allowed it, and why each rule that is there doesn't.
    fn denial(
        &self,
        at: InterfaceIx,
        direction: Direction,
        peer: IpAddr,
        query: Query,
    ) -> Option<(String, Vec<NearMiss>)> {
        let interface = self.policy.interface(at)?;
        let Guard::Groups { member_of, .. } = &interface.guard else {
            return None;
        };
        let table: &RuleTable = interface.rules(direction)?;
        let groups = member_of
            .iter()
            .map(|group| self.policy.group_name(*group))
            .collect::<Vec<_>>()
            .join(", ");
        let missing = format!(
            "an {direction} rule in {} ({groups}) for {} {} {}",
            if member_of.len() == 1 {
                "its group"
            } else {
                "one of its groups"
            },
            traffic(query),
            preposition(direction),
            self.peer_suggestion(peer),
        );
        let peer_groups = self.policy.groups_of(peer);
        let near_misses = table
            .rules()
            .iter()
            .enumerate()
            .filter_map(|(number, rule)| {
                let coverage = table.coverage(number, peer, peer_groups, query)?;
                Some(NearMiss {
                    rule: RuleView::from(rule),
                    peer_covers: coverage.peer,
                    traffic_covers: coverage.traffic,
                })
            })
            .collect();
        Some((missing, near_misses))
    }

    /// `10.0.1.10 (lb, in lb)` or just the address.
    fn describe(&self, address: IpAddr) -> String {
        let Some(owner) = self.policy.directory().owner(address) else {
            return address.to_string();
        };
        let name = label(self.policy, owner.interface);
        match self.group_names(address).as_slice() {
            [] => format!("{address} ({name})"),
            names => format!("{address} ({name}, in {})", names.join(", ")),
        }
    }

    fn peer_suggestion(&self, address: IpAddr) -> String {
        let host = match address {
            IpAddr::V4(_) => format!("{address}/32"),
            IpAddr::V6(_) => format!("{address}/128"),
        };
        match self.group_names(address).first() {
            Some(name) => format!("sg/{name} or {host}"),
            None => host,
        }
    }

    fn group_names(&self, address: IpAddr) -> Vec<&str> {
        self.policy
            .groups_of(address)
            .iter()
            .map(|group| self.policy.group_name(*group))
            .collect()
    }
}

impl Recorder for Notes<'_> {
    fn step(&mut self, step: Step<'_>) {
        match step {
            Step::Parsed(parsed) => self.parsed(parsed),
            Step::SourceCheck { at, passed } => {
                let what = if passed {
                    "the source address is its own".to_owned()
                } else {
                    "the source address is not its own".to_owned()
                };
                self.add("source check", at, passed, what);
            }
            Step::NotUnicast { at } => self.add(
                "destination",
                at,
                false,
                "a VPC carries no multicast, broadcast or loopback traffic".to_owned(),
            ),
            Step::Unguarded { at, direction } => self.add(
                layer(direction),
                at,
                true,
                "outside the VPC: no security groups".to_owned(),
            ),
            Step::Tracked {
                at,
                direction,
                rule,
            } => {
                let what = format!("tracked: part of the flow that {rule} admitted");
                self.add(layer(direction), at, true, what);
            }
            Step::Judged {
                at,
                direction,
                peer,
                query,
                rule,
            } => self.judged(at, direction, peer, query, rule),
            Step::TableFull { at } => self.add(
                "tracking",
                at,
                false,
                "the flow is new and the flow table is full".to_owned(),
            ),
            Step::Routed { at, hop } => match hop {
                Ok(hop) => {
                    let mut what = format!(
                        "{} route to {}",
                        hop.route.as_str(),
                        label(self.policy, hop.to)
                    );
                    if let Some(public) = hop.new_source {
                        what += &format!("; the internet gateway makes the source {public}");
                    }
                    if let Some(private) = hop.new_destination {
                        what += &format!("; the internet gateway makes the destination {private}");
                    }
                    self.add("route", at, true, what);
                }
                Err(reason) => {
                    let sender = self.policy.interface(at);
                    self.add("route", at, false, no_way(reason, sender).to_owned());
                }
            },
            Step::TooBig { at, mtu } => {
                self.add("mtu", at, false, format!("larger than its MTU of {mtu}"));
            }
            Step::Delivered { at, packet } => {
                self.arrived = Some((at, *packet));
                let what = format!("as {} to {}", packet.source, packet.destination);
                self.add("delivery", at, true, what);
            }
        }
    }
}

fn no_way(reason: DropReason, sender: Option<&PolicyInterface>) -> &'static str {
    match (reason, sender.map(|sender| &sender.guard)) {
        (DropReason::NoRoute, Some(Guard::Outside(Via::Igw))) => {
            "the internet reaches the VPC's public addresses only"
        }
        (DropReason::NoRoute, Some(Guard::Outside(Via::Vgw))) => {
            "the VPN reaches the VPC's private addresses only"
        }
        (DropReason::NoRoute, _) => {
            "no route leads there: the lab has no internet gateway (no external entity via igw)"
        }
        (DropReason::NoPublicAddress, _) => {
            "the internet gateway translates only interfaces that have a public address (public_addresses)"
        }
        _ => "nobody has the destination address",
    }
}

fn as_text<S: Serializer>(direction: &Direction, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(direction.as_str())
}

fn layer(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress groups",
        Direction::Ingress => "ingress groups",
    }
}

fn preposition(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "to",
        Direction::Ingress => "from",
    }
}

fn label(policy: &Policy, at: InterfaceIx) -> String {
    policy
        .interface(at)
        .map_or_else(String::new, |interface| interface.label.clone())
}

fn query(packet: &Packet) -> Query {
    Query {
        protocol: packet.protocol,
        selector: packet.selector(),
    }
}

/// `tcp 5432`, `icmp type 8 code 0`, `gre`.
fn traffic(query: Query) -> String {
    use crate::model::protocol::{ICMP, ICMPV6, TCP, UDP};
    let name = protocol_name(query.protocol);
    match query.protocol {
        TCP | UDP => format!("{name} {}", query.selector),
        ICMP | ICMPV6 => format!(
            "{name} type {} code {}",
            query.selector >> 8,
            query.selector & 0xff
        ),
        _ => name,
    }
}
