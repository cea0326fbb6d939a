//! The road of a packet: policy, flows, interface, bytes and `now` in, a
//! verdict with its provenance out.
//!
//! Everything that judges packets goes through [`Datapath::judge`]: the
//! engine's workers, `explain` (with a [`Recorder`] that writes down each
//! step), the proof at start and the tests. Sans-IO; a packet of a known flow
//! allocates nothing.

mod explain;

use std::net::IpAddr;

use crate::conntrack::{FlowTable, Millis};
use crate::model::{Direction, InterfaceIx, RuleId};
use crate::packet::{self, Packet, ParseError};
use crate::policy::{CompiledRule, DropReason, Guard, Hop, Policy, PolicyInterface, Query};

pub use explain::{
    EPHEMERAL, Explanation, Leg, LegStep, NearMiss, Question, QuestionError, RuleView, explain,
};

/// The tracked flows, and the road on which policies are applied to packets.
#[derive(Debug)]
pub struct Datapath {
    flows: FlowTable,
}

/// What becomes of a packet, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Where it goes.
    pub fate: Fate,
    /// What let it leave the sender; `None` outside the VPC or if nothing did.
    pub egress: Option<Admission>,
    /// What let it reach the receiver; `None` outside the VPC or if nothing did.
    pub ingress: Option<Admission>,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// To an interface: the first `length` bytes of the frame.
    Forward {
        /// The receiver.
        to: InterfaceIx,
        /// Bytes of the packet.
        length: usize,
    },
    /// Nowhere.
    Drop {
        /// Why.
        reason: DropReason,
        /// The interface at which it was dropped.
        at: InterfaceIx,
    },
}

/// What let a packet pass a set of security groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The rule; for a tracked flow the one that admitted its first packet.
    pub rule: RuleId,
    /// Whether the packet belongs to a flow that was tracked already.
    pub tracked: bool,
}

/// One station of the road, as a [`Recorder`] sees it.
#[derive(Debug, Clone, Copy)]
pub enum Step<'p> {
    /// The headers were read, or were not.
    Parsed(Result<&'p Packet, ParseError>),
    /// The source address was compared with the interface's own.
    SourceCheck {
        /// The sender.
        at: InterfaceIx,
        /// Whether it may use the address.
        passed: bool,
    },
    /// The destination turned out not to be one host's address.
    NotUnicast {
        /// The sender.
        at: InterfaceIx,
    },
    /// No security groups stand here: the interface is outside the VPC.
    Unguarded {
        /// The interface.
        at: InterfaceIx,
        /// Which way the packet passes it.
        direction: Direction,
    },
    /// The packet belongs to a flow that the interface tracks.
    Tracked {
        /// The interface.
        at: InterfaceIx,
        /// Which way the packet passes it.
        direction: Direction,
        /// What admitted the flow's first packet.
        rule: RuleId,
    },
    /// The rules were asked.
    Judged {
        /// The interface.
        at: InterfaceIx,
        /// Which way the packet passes it.
        direction: Direction,
        /// The address on the other side.
        peer: IpAddr,
        /// Protocol and port.
        query: Query,
        /// The rule that lets it pass.
        rule: Option<&'p CompiledRule>,
    },
    /// The rules allowed it, but there is no room to track the flow.
    TableFull {
        /// The interface.
        at: InterfaceIx,
    },
    /// The way was looked up.
    Routed {
        /// The sender.
        at: InterfaceIx,
        /// The next hop, or why there is none.
        hop: Result<Hop, DropReason>,
    },
    /// The packet is larger than the receiver takes.
    TooBig {
        /// The receiver.
        at: InterfaceIx,
        /// Its MTU.
        mtu: u16,
    },
    /// The packet was handed to the receiver.
    Delivered {
        /// The receiver.
        at: InterfaceIx,
        /// The packet as the receiver gets it.
        packet: &'p Packet,
    },
}

/// Writes down the road of a packet. The engine's is [`Silent`], which the
/// compiler removes.
pub trait Recorder {
    /// Takes note of a step.
    fn step(&mut self, step: Step<'_>);
}

/// Records nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Recorder for Silent {
    #[inline]
    fn step(&mut self, _: Step<'_>) {}
}

/// Why and where a packet ends.
type Dropped = (DropReason, InterfaceIx);

impl Datapath {
    /// A data path that tracks at most `capacity` flows.
    pub fn new(capacity: usize) -> Self {
        Self {
            flows: FlowTable::new(capacity),
        }
    }

    /// The flows that it tracks.
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// Judges the packet at the start of `frame`, which came from the
    /// interface `from`. On [`Fate::Forward`] the frame holds the packet as
    /// the receiver is to get it: the internet gateway may have translated
    /// addresses.
    pub fn judge<R: Recorder>(
        &self,
        policy: &Policy,
        from: InterfaceIx,
        frame: &mut [u8],
        now: Millis,
        recorder: &mut R,
    ) -> Verdict {
        let mut verdict = Verdict {
            fate: Fate::Drop {
                reason: DropReason::UnknownInterface,
                at: from,
            },
            egress: None,
            ingress: None,
        };
        verdict.fate = match self.walk(policy, from, frame, now, recorder, &mut verdict) {
            Ok((to, length)) => Fate::Forward { to, length },
            Err((reason, at)) => Fate::Drop { reason, at },
        };
        verdict
    }

    /// The road itself, station by station.
    fn walk<R: Recorder>(
        &self,
        policy: &Policy,
        from: InterfaceIx,
        frame: &mut [u8],
        now: Millis,
        recorder: &mut R,
        verdict: &mut Verdict,
    ) -> Result<(InterfaceIx, usize), Dropped> {
        let sender = policy
            .interface(from)
            .ok_or((DropReason::UnknownInterface, from))?;

        // 1. Headers.
        let parsed = packet::parse(frame);
        recorder.step(Step::Parsed(parsed.as_ref().map_err(|error| *error)));
        let mut packet = parsed.map_err(|error| match error {
            ParseError::Malformed => (DropReason::Malformed, from),
            ParseError::TinyFragment => (DropReason::TinyFragment, from),
        })?;

        // 2. The sender may use the source address.
        let passed = may_send_as(sender, packet.source);
        recorder.step(Step::SourceCheck { at: from, passed });
        if !passed {
            return Err((DropReason::SourceCheck, from));
        }
        if !is_unicast(packet.destination) {
            recorder.step(Step::NotUnicast { at: from });
            return Err((DropReason::NotUnicast, from));
        }

        // 3. The sender's egress groups. Its flow is tracked from here on, even
        // if the packet ends later on the road: state is per interface.
        let at = Station {
            policy,
            interface: sender,
            at: from,
            direction: Direction::Egress,
            peer_is_itself: true,
        };
        verdict.egress = self.pass_groups(at, &packet, now, recorder)?;

        let source_is_own = sender.has(packet.source);

        // 4. The way, and the internet gateway's translation.
        let hop = policy
            .directory()
            .route(sender, packet.source, packet.destination);
        recorder.step(Step::Routed { at: from, hop });
        let hop = hop.map_err(|reason| (reason, from))?;
        let to = hop.to;
        let receiver = policy
            .interface(to)
            .ok_or((DropReason::UnknownDestination, from))?;
        if let Some(public) = hop.new_source {
            packet::rewrite_source(frame, &mut packet, public);
        }
        if let Some(private) = hop.new_destination {
            packet::rewrite_destination(frame, &mut packet, private);
        }
        if packet.length > usize::from(receiver.mtu) {
            recorder.step(Step::TooBig {
                at: to,
                mtu: receiver.mtu,
            });
            return Err((DropReason::TooBig, to));
        }

        // 5. The receiver's ingress groups.
        let at = Station {
            policy,
            interface: receiver,
            at: to,
            direction: Direction::Ingress,
            peer_is_itself: source_is_own,
        };
        verdict.ingress = self.pass_groups(at, &packet, now, recorder)?;

        // 6. Delivery. The VPC's router is invisible: it leaves the TTL alone.
        recorder.step(Step::Delivered {
            at: to,
            packet: &packet,
        });
        Ok((to, packet.length))
    }

    /// Tier 1: a packet of a flow that the interface tracks passes, whatever the
    /// rules say now. Tier 2: any other is judged by the rules, and the flow
    /// that it starts is tracked.
    fn pass_groups<R: Recorder>(
        &self,
        station: Station<'_>,
        packet: &Packet,
        now: Millis,
        recorder: &mut R,
    ) -> Result<Option<Admission>, Dropped> {
        let Station {
            policy,
            interface,
            at,
            direction,
            peer_is_itself,
        } = station;
        let Some(table) = interface.rules(direction) else {
            recorder.step(Step::Unguarded { at, direction });
            return Ok(None);
        };

        let key = packet.flow_key(at, direction);
        let known = key.and_then(|key| {
            self.flows
                .pass(&key, packet, direction, &interface.tracking, now)
        });
        if let Some(rule) = known {
            recorder.step(Step::Tracked {
                at,
                direction,
                rule,
            });
            return Ok(Some(Admission {
                rule,
                tracked: true,
            }));
        }

        let (peer, refusal) = match direction {
            Direction::Egress => (packet.destination, DropReason::NoEgressRule),
            Direction::Ingress => (packet.source, DropReason::NoIngressRule),
        };
        let query = Query {
            protocol: packet.protocol,
            selector: packet.selector(),
        };
        // What an interface forwards for others under their addresses has lost
        // their groups on the way (aws-semantics §2, middlebox routing).
        let groups = if peer_is_itself {
            policy.groups_of(peer)
        } else {
            &[]
        };
        let rule = table.find(peer, groups, query);
        recorder.step(Step::Judged {
            at,
            direction,
            peer,
            query,
            rule,
        });
        let rule = rule.ok_or((refusal, at))?.id;
        if let Some(key) = key {
            self.flows
                .open(key, packet, direction, &interface.tracking, now, rule)
                .map_err(|_| {
                    recorder.step(Step::TableFull { at });
                    (DropReason::FlowTableFull, at)
                })?;
        }
        Ok(Some(Admission {
            rule,
            tracked: false,
        }))
    }
}

/// One interface as a packet passes it.
#[derive(Clone, Copy)]
struct Station<'p> {
    policy: &'p Policy,
    interface: &'p PolicyInterface,
    at: InterfaceIx,
    direction: Direction,
    /// Whether the address on the other side is that of who sent the packet,
    /// or, for one that is being sent, of whom it is for.
    peer_is_itself: bool,
}

/// The source check. Addresses that no host has are refused even where the
/// check is off.
fn may_send_as(interface: &PolicyInterface, source: IpAddr) -> bool {
    let checked = interface.source_dest_check || matches!(interface.guard, Guard::Outside(_));
    if checked {
        interface.has(source)
    } else {
        is_unicast(source)
    }
}

/// Whether the address is one host's: not multicast, broadcast, loopback or
/// unspecified.
fn is_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_multicast() || address.is_loopback() || address.is_unspecified() || broadcast)
}

#[cfg(test)]
mod tests;
