//! One interface as a packet passes it: its subnet's network ACL and its
//! security groups, with the flows that it remembers.
//!
//! The order is AWS's (aws-semantics §8): on the way out the groups, then the
//! ACL; on the way in the ACL, then the groups.

use std::net::IpAddr;

use super::{Admission, Datapath, Dropped, Recorder, Step};
use crate::conntrack::{FlowRef, Judged, Millis, NoRoom, Opening};
use crate::model::{Direction, IcmpErrors, InterfaceIx, protocol};
use crate::packet::{self, FlowKey, Packet, Transport};
use crate::policy::{CompiledRule, DropReason, Policy, PolicyInterface, Query, RuleTable};

/// One interface as a packet passes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Station<'p> {
    pub(super) policy: &'p Policy,
    pub(super) interface: &'p PolicyInterface,
    pub(super) at: InterfaceIx,
    pub(super) direction: Direction,
    /// Whether the packet leaves or enters the subnet here.
    pub(super) crosses_boundary: bool,
    /// Whether the address on the other side is that of who sent the packet,
    /// or, for one that is being sent, of whom it is for.
    pub(super) peer_is_itself: bool,
    /// True if the packet arrives at the interface that sent it, under the key of the flow by
    /// which it left: its destination is the sender's own private or public address, and its
    /// ports are equal or its protocol has none. Such a packet can't be told apart from its own
    /// reply, so no flow lets it in.
    pub(super) meets_own_flow: bool,
    pub(super) now: Millis,
    /// The entity that sent the packet, identified by its first interface.
    pub(super) sender: InterfaceIx,
}

/// How a packet passed an interface.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Passed<'t> {
    /// By what the groups let it pass; `None` outside the VPC.
    pub(super) admission: Option<Admission>,
    /// The flow that it belongs to, if it was known before.
    pub(super) flow: Option<FlowRef<'t>>,
}

/// What the flow that a packet belongs to says about it.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// It passes, whatever the rules say.
    Tracked(Admission),
    /// It passes: the rules let this direction pass under this very policy.
    Judged(Admission),
    /// The rules decide; the flow goes on untracked if they let it.
    Untracked,
    /// There is no flow, or one that gives way to the packet's.
    Unknown {
        /// Whether a live one gives way.
        replace: bool,
    },
}

impl Datapath {
    /// Passes the ACL and the groups of one interface; gives what the groups
    /// let the packet pass by.
    #[inline]
    pub(super) fn pass_station<R: Recorder>(
        &self,
        station: Station<'_>,
        packet: &Packet,
        frame: &[u8],
        recorder: &mut R,
    ) -> Result<Passed<'_>, Dropped> {
        let Station { at, direction, .. } = station;
        let Some(table) = station.interface.rules(direction) else {
            recorder.step(Step::Unguarded { at, direction });
            return Ok(Passed::default());
        };
        let key = packet
            .flow_key(at, direction)
            .filter(|_| !station.meets_own_flow);
        let flow = key
            .as_ref()
            .and_then(|key| self.flows.find(key, station.now));
        if direction == Direction::Ingress {
            station.pass_acl(packet, flow.as_ref(), recorder)?;
        }
        let known = match &flow {
            Some(flow) => station.ask(flow, packet, recorder)?,
            None => Known::Unknown { replace: false },
        };
        let admission = match known {
            Known::Tracked(admission) | Known::Judged(admission) => admission,
            Known::Untracked | Known::Unknown { .. } => {
                if let Some(admission) = self.related(station, packet, frame, recorder) {
                    return self.leave(station, packet, flow, admission, recorder);
                }
                return self.ask_rules(station, table, packet, key, flow, known, recorder);
            }
        };
        self.leave(station, packet, flow, admission, recorder)
    }

    /// The ACL on the way out, once the groups let the packet pass.
    #[inline]
    fn leave<'t, R: Recorder>(
        &'t self,
        station: Station<'_>,
        packet: &Packet,
        flow: Option<FlowRef<'t>>,
        admission: Admission,
        recorder: &mut R,
    ) -> Result<Passed<'t>, Dropped> {
        if station.direction == Direction::Egress {
            station.pass_acl(packet, flow.as_ref(), recorder)?;
        }
        Ok(Passed {
            admission: Some(admission),
            flow,
        })
    }

    /// Whether the packet is an ICMP error about a tracked flow and the VPC lets
    /// such pass.
    fn related<R: Recorder>(
        &self,
        station: Station<'_>,
        packet: &Packet,
        frame: &[u8],
        recorder: &mut R,
    ) -> Option<Admission> {
        if station.policy.icmp_errors() != IcmpErrors::Related
            || !matches!(packet.transport, Transport::Icmp { .. })
        {
            return None;
        }
        let quoted = packet::embedded(frame, packet)?;
        // The quoted packet went the other way, and its sender is told.
        if quoted.source != packet.destination {
            return None;
        }
        let Station { at, direction, .. } = station;
        let key = quoted.flow_key(at, direction.reverse())?;
        let flow = self.flows.find(&key, station.now)?;
        if !flow.is_tracked() {
            return None;
        }
        let rule = flow.admitted_by();
        recorder.step(Step::Tracked {
            at,
            direction,
            rule,
        });
        Some(Admission {
            rule,
            tracked: true,
        })
    }

    /// No flow settles it: the rules decide, and the packet may open a flow.
    #[expect(clippy::too_many_arguments, reason = "the road's luggage")]
    fn ask_rules<'t, R: Recorder>(
        &'t self,
        station: Station<'_>,
        table: &RuleTable,
        packet: &Packet,
        key: Option<FlowKey>,
        flow: Option<FlowRef<'t>>,
        known: Known,
        recorder: &mut R,
    ) -> Result<Passed<'t>, Dropped> {
        let Station {
            policy,
            interface,
            at,
            direction,
            now,
            ..
        } = station;
        let (peer, refusal) = match direction {
            Direction::Egress => (packet.destination, DropReason::NoEgressRule),
            Direction::Ingress => (packet.source, DropReason::NoIngressRule),
        };
        let query = query(packet);
        let rule = station.rule_for(table, peer, query);
        let tracked = || !station.is_untracked(table, peer, query);
        // A known untracked flow is judged again in its initiator's direction,
        // and becomes a tracked one where the rules say so now.
        let opens = match (&known, &flow) {
            (Known::Untracked, Some(flow)) => {
                (flow.initiator() == direction && tracked()).then_some(true)
            }
            _ => key.map(|_| tracked()),
        }
        .filter(|_| rule.is_some());
        recorder.step(Step::Judged {
            at,
            direction,
            peer,
            query,
            rule,
            opens,
        });
        let rule = rule.ok_or((refusal, at))?.id;
        let admission = Admission {
            rule,
            tracked: false,
        };
        let (Some(key), Some(tracked)) = (key, opens) else {
            if let Some(flow) = &flow {
                // If it has ended in this moment, nothing is left to note.
                let _ = flow.take_note(&packet.segment(), direction, &interface.tracking, now);
                if station.peer_is_itself {
                    flow.set_rule(direction, rule, policy.generation());
                }
            }
            return self.leave(station, packet, flow, admission, recorder);
        };
        let opening = Opening {
            packet,
            direction,
            tracking: &interface.tracking,
            now,
            rule,
            tracked,
            sender: station.sender,
            allowance: interface.allowance,
            replace: !matches!(known, Known::Unknown { replace: false }),
        };
        self.flows.open(key, &opening).map_err(|no_room| {
            let reason = match no_room {
                NoRoom::Allowance => DropReason::ConntrackAllowance,
                NoRoom::Table => DropReason::FlowTableFull,
            };
            recorder.step(Step::NoRoom { at, reason });
            (reason, at)
        })?;
        self.leave(station, packet, None, admission, recorder)
    }
}

impl Station<'_> {
    /// The network ACL, where the packet crosses the subnet's boundary. A flow
    /// that it let pass under this policy isn't judged again.
    #[inline]
    fn pass_acl<R: Recorder>(
        &self,
        packet: &Packet,
        flow: Option<&FlowRef<'_>>,
        recorder: &mut R,
    ) -> Result<(), Dropped> {
        let Some(subnet) = self.interface.subnet().filter(|_| self.crosses_boundary) else {
            return Ok(());
        };
        let acl = subnet.acl(self.direction);
        // The default ACL allows everything, which is sooner seen than noted.
        let v4 = packet.source.is_ipv4();
        if R::SILENT && acl.allows_all(v4) {
            return Ok(());
        }
        let generation = self.policy.generation();
        let passed = |flow: &&FlowRef<'_>| flow.passed(Judged::Acl, self.direction, generation);
        if flow.filter(passed).is_some() {
            return Ok(());
        }
        let (peer, refusal) = match self.direction {
            Direction::Egress => (packet.destination, DropReason::NetworkAclEgress),
            Direction::Ingress => (packet.source, DropReason::NetworkAclIngress),
        };
        let query = query(packet);
        let decision = acl.decide(peer, query);
        recorder.step(Step::Acl {
            at: self.at,
            acl,
            peer,
            query,
            decision,
        });
        if !decision.allowed {
            return Err((refusal, self.at));
        }
        if let Some(flow) = flow {
            flow.set_passed(Judged::Acl, self.direction, generation);
        }
        Ok(())
    }

    /// What the flow that the packet belongs to says.
    #[inline]
    fn ask<R: Recorder>(
        &self,
        flow: &FlowRef<'_>,
        packet: &Packet,
        recorder: &mut R,
    ) -> Result<Known, Dropped> {
        let Self { at, direction, .. } = *self;
        if flow.is_tracked() {
            if flow.is_closed() {
                // A connection attempt on the same ports is a new flow, which replaces this one
                // once the rules admit it.
                if packet.opens_connection() {
                    return Ok(Known::Unknown { replace: true });
                }
                recorder.step(Step::Closed { at, direction });
                return Err((DropReason::ConnectionClosed, at));
            }
            // The connection may have ended, so the rules judge the start of the next one.
            if packet.opens_connection() && flow.is_reset() {
                return Ok(Known::Unknown { replace: true });
            }
            let rule = flow.admitted_by();
            if !flow.take_note(
                &packet.segment(),
                direction,
                &self.interface.tracking,
                self.now,
            ) {
                return Ok(Known::Unknown { replace: false });
            }
            recorder.step(Step::Tracked {
                at,
                direction,
                rule,
            });
            return Ok(Known::Tracked(Admission {
                rule,
                tracked: true,
            }));
        }
        if packet.opens_connection() {
            return Ok(Known::Unknown { replace: true });
        }
        if self.peer_is_itself && flow.passed(Judged::Rules, direction, self.policy.generation()) {
            let rule = flow.rule(direction);
            if !flow.take_note(
                &packet.segment(),
                direction,
                &self.interface.tracking,
                self.now,
            ) {
                return Ok(Known::Unknown { replace: false });
            }
            return Ok(Known::Judged(Admission {
                rule,
                tracked: false,
            }));
        }
        Ok(Known::Untracked)
    }

    /// The first rule that lets the packet pass. Inlined by force: a call apart, it makes
    /// a first packet a tenth dearer.
    #[inline(always)]
    fn rule_for<'t>(
        &self,
        table: &'t RuleTable,
        peer: IpAddr,
        query: Query,
    ) -> Option<CompiledRule<'t>> {
        // What an interface forwards for others under their addresses has lost
        // their groups on the way (aws-semantics §2, middlebox routing).
        let groups = if self.peer_is_itself {
            self.policy.groups_of(peer)
        } else {
            &[]
        };
        table.find(peer, groups, query)
    }

    /// Whether AWS doesn't track the flow that the packet opens (aws-semantics
    /// §3.2): open to everybody both ways, and not tracked for other reasons.
    fn is_untracked(&self, table: &RuleTable, peer: IpAddr, query: Query) -> bool {
        let v4 = peer.is_ipv4();
        matches!(query.protocol, protocol::TCP | protocol::UDP)
            && table.is_open_to_all(v4, query)
            && self
                .interface
                .rules(self.direction.reverse())
                .is_some_and(|back| back.is_open_on_all_ports(v4, query.protocol))
            && !self.interface.always_tracked
            && !self.policy.is_always_tracked(peer)
    }
}

pub(super) fn query(packet: &Packet) -> Query {
    Query {
        protocol: packet.protocol,
        selector: packet.selector(),
    }
}
