//! The oracle in disguise: what `broken.rs` makes its engines from.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
use sgwall::model::{Direction, InterfaceIx, Model, Peer, PortRange, Traffic};
use sgwall::policy::DropReason;
use sgwall::policy::oracle::{Admission, Judgement, Oracle, Outcome, Packet, Payload, TcpFlags};

use crate::bends;
use crate::harness::{Engine, Verdict};
use crate::wire::Frame;

fn oracle(model: &Model, capacity: usize) -> Oracle {
    Oracle::with_capacity(model.clone(), capacity)
}

/// The oracle over a bent model.
struct Bent {
    oracle: Oracle,
    bend: fn(&mut Model),
}

/// The oracle over a bent model.
pub fn bent(model: &Model, capacity: usize, bend: fn(&mut Model)) -> Box<dyn Engine> {
    let mut engine = Bent {
        oracle: oracle(model, capacity),
        bend,
    };
    engine.replace_model(model);
    Box::new(engine)
}

impl Engine for Bent {
    fn replace_model(&mut self, model: &Model) {
        let mut model = model.clone();
        (self.bend)(&mut model);
        self.oracle.replace_model(model);
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        self.oracle.judge(&frame.packet, now).into()
    }
}

/// The oracle over bent packets; where they go they look as they did.
struct Disguised {
    oracle: Oracle,
    bend: fn(&mut Packet),
}

/// The oracle over bent packets.
pub fn disguised(model: &Model, capacity: usize, bend: fn(&mut Packet)) -> Box<dyn Engine> {
    Box::new(Disguised {
        oracle: oracle(model, capacity),
        bend,
    })
}

impl Engine for Disguised {
    fn replace_model(&mut self, model: &Model) {
        self.oracle.replace_model(model.clone());
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let mut packet = frame.packet;
        (self.bend)(&mut packet);
        let mut outcome = self.oracle.judge(&packet, now);
        let undone = |its: &mut Packet, was: &Packet| {
            *its = Packet {
                source: its.source,
                destination: its.destination,
                ..*was
            };
        };
        if let Judgement::Delivered { packet, .. } = &mut outcome.judgement {
            // What an error quotes was translated.
            if !matches!(packet.payload, Payload::Icmp { .. }) {
                undone(packet, &frame.packet);
            }
        }
        outcome.into()
    }
}

/// The oracle with its outcome bent.
struct After {
    oracle: Oracle,
    bend: fn(&Packet, &mut Outcome),
}

/// The oracle with its outcome bent.
pub fn after(model: &Model, capacity: usize, bend: fn(&Packet, &mut Outcome)) -> Box<dyn Engine> {
    Box::new(After {
        oracle: oracle(model, capacity),
        bend,
    })
}

impl Engine for After {
    fn replace_model(&mut self, model: &Model) {
        self.oracle.replace_model(model.clone());
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let mut outcome = self.oracle.judge(&frame.packet, now);
        (self.bend)(&frame.packet, &mut outcome);
        outcome.into()
    }
}

/// Which of the oracle and its shadow to believe: whether the latter.
pub type Choice = fn(&Packet, &Outcome, &Outcome) -> bool;

/// The oracle, and sometimes another over a bent model.
struct Shadowed {
    oracle: Oracle,
    shadow: Oracle,
    bend: fn(&mut Model),
    choose: Choice,
}

/// The oracle, and where `choose` says so another over a bent model.
pub fn shadowed(
    model: &Model,
    capacity: usize,
    bend: fn(&mut Model),
    choose: Choice,
) -> Box<dyn Engine> {
    let mut engine = Shadowed {
        oracle: oracle(model, capacity),
        shadow: oracle(model, capacity),
        bend,
        choose,
    };
    engine.replace_model(model);
    Box::new(engine)
}

impl Engine for Shadowed {
    fn replace_model(&mut self, model: &Model) {
        let mut bent = model.clone();
        (self.bend)(&mut bent);
        self.oracle.replace_model(model.clone());
        self.shadow.replace_model(bent);
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let seen = self.oracle.judge(&frame.packet, now);
        let shadow = self.shadow.judge(&frame.packet, now);
        if (self.choose)(&frame.packet, &seen, &shadow) {
            shadow.into()
        } else {
            seen.into()
        }
    }
}

/// Doesn't ask network ACLs about packets that are part of flows everywhere.
pub struct Forgiving(Oracle, Model);

impl Forgiving {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(oracle(model, capacity), model.clone()))
    }
}

impl Engine for Forgiving {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
        self.1.clone_from(model);
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let mut open = self.1.clone();
        bends::acls_open(&mut open);
        let mut forgiving = self.0.clone();
        forgiving.replace_model(open);
        let outcome = forgiving.judge(&frame.packet, now);
        let by_flow = |admission| !matches!(admission, Some(Admission::Rule(_)));
        if let Judgement::Delivered {
            egress, ingress, ..
        } = outcome.judgement
            && by_flow(egress)
            && by_flow(ingress)
        {
            forgiving.replace_model(self.1.clone());
            self.0 = forgiving;
            return outcome.into();
        }
        self.0.judge(&frame.packet, now).into()
    }
}

/// Takes flows for untracked though no rule of the other direction that names
/// everybody covers every port, or it is one of the other family.
pub struct Eager(Oracle, Model, fn(Traffic, Traffic) -> bool);

impl Eager {
    /// One for `model`.
    pub fn make(
        model: &Model,
        capacity: usize,
        enough: fn(Traffic, Traffic) -> bool,
    ) -> Box<dyn Engine> {
        Box::new(Self(oracle(model, capacity), model.clone(), enough))
    }
}

impl Engine for Eager {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
        self.1.clone_from(model);
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let mut outcome = self.0.judge(&frame.packet, now);
        if let Judgement::Delivered {
            to,
            packet,
            egress,
            ingress,
            ..
        } = &mut outcome.judgement
        {
            let from = frame.packet.from;
            self.demote(egress, from, Direction::Egress, &frame.packet);
            self.demote(ingress, *to, Direction::Ingress, packet);
        }
        outcome.into()
    }
}

impl Eager {
    fn demote(
        &self,
        admission: &mut Option<Admission>,
        at: InterfaceIx,
        direction: Direction,
        packet: &Packet,
    ) {
        let (port, every_port) = match packet.payload {
            Payload::Tcp {
                destination_port, ..
            } => (destination_port, Traffic::Tcp(PortRange::ALL)),
            Payload::Udp {
                destination_port, ..
            } => (destination_port, Traffic::Udp(PortRange::ALL)),
            _ => return,
        };
        let rules = |direction| {
            let groups = self.1.interfaces[at.ix()].groups().iter();
            groups.flat_map(move |group| self.1.security_groups[group.ix()].rules(direction))
        };
        let everybody = [
            Peer::Ipv4(Ipv4Net::default()),
            Peer::Ipv6(Ipv6Net::default()),
        ];
        let own = everybody[usize::from(!packet.source.is_ipv4())];
        let covers = |traffic| match (traffic, every_port) {
            (Traffic::All, _) => true,
            (Traffic::Tcp(ports), Traffic::Tcp(_)) | (Traffic::Udp(ports), Traffic::Udp(_)) => {
                ports.contains(port)
            }
            _ => false,
        };
        let open = rules(direction).find(|rule| rule.peer == own && covers(rule.traffic));
        let open_back = rules(direction.reverse())
            .any(|rule| everybody.contains(&rule.peer) && (self.2)(rule.traffic, every_port));
        if let (Some(Admission::Flow), Some(rule)) = (&*admission, open)
            && open_back
        {
            *admission = Some(Admission::Rule(rule.id));
        }
    }
}

/// Counts all flows against the allowance.
pub struct Stingy(Oracle, Model);

impl Stingy {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(oracle(model, capacity), model.clone()))
    }
}

impl Engine for Stingy {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
        self.1.clone_from(model);
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let before = self.0.clone();
        let outcome = self.0.judge(&frame.packet, now);
        let from = frame.packet.from;
        let least = self.1.entity_of(from).max_flows;
        let opened = self.0.flows() > before.flows();
        // With a single entity that has an allowance its flows are all there
        // are; that is often enough.
        if opened && least.is_some_and(|most| before.flows() >= most as usize) {
            let mut outcome = outcome;
            outcome.judgement = Judgement::Dropped {
                reason: DropReason::ConntrackAllowance,
                at: from,
            };
            return outcome.into();
        }
        outcome.into()
    }
}

/// Lets pass whatever belongs to a 5-tuple that passed anywhere before.
pub struct OneTable(Oracle, HashSet<[(IpAddr, u16); 2]>);

impl OneTable {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(oracle(model, capacity), HashSet::new()))
    }
}

impl Engine for OneTable {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let packet = &frame.packet;
        let mut outcome = self.0.judge(packet, now);
        let (Payload::Tcp {
            source_port,
            destination_port,
            ..
        }
        | Payload::Udp {
            source_port,
            destination_port,
        }) = packet.payload
        else {
            return outcome.into();
        };
        let mut ends = [
            (packet.source, source_port),
            (packet.destination, destination_port),
        ];
        ends.sort();
        match outcome.judgement {
            Judgement::Dropped {
                reason: DropReason::NoIngressRule,
                at,
            } if !self.1.insert(ends) => {
                outcome.judgement = Judgement::Delivered {
                    to: at,
                    packet: *packet,
                    split: None,
                    egress: Some(Admission::Flow),
                    ingress: Some(Admission::Flow),
                };
            }
            Judgement::Delivered { .. } => {
                self.1.insert(ends);
            }
            _ => {}
        }
        outcome.into()
    }
}

/// Judges what comes after the end of a connection as if it hadn't ended.
pub struct Strays(Oracle, Oracle);

impl Strays {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(oracle(model, capacity), oracle(model, capacity)))
    }
}

impl Engine for Strays {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
        self.1.replace_model(model.clone());
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let mut endless = frame.packet;
        with_tcp(&mut endless, |flags| {
            (flags.fin, flags.rst) = (false, false)
        });
        let outcome = self.0.judge(&frame.packet, now);
        let without_end = self.1.judge(&endless, now);
        let closed = matches!(
            outcome.judgement,
            Judgement::Dropped {
                reason: DropReason::ConnectionClosed,
                ..
            }
        );
        if closed { without_end } else { outcome }.into()
    }
}

/// Lets fragments that overlap others follow the first of their datagram.
pub struct Overlapping(Oracle, HashMap<(InterfaceIx, u32), Judgement>);

impl Overlapping {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(oracle(model, capacity), HashMap::new()))
    }
}

impl Engine for Overlapping {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let before = self.0.clone();
        let mut outcome = self.0.judge(&frame.packet, now);
        let Some(fragment) = frame.packet.fragment else {
            return outcome.into();
        };
        let name = (frame.packet.from, fragment.id);
        let overlaps = Judgement::Dropped {
            reason: DropReason::OverlappingFragment,
            at: frame.packet.from,
        };
        if outcome.judgement == overlaps {
            // As if it had never been there.
            self.0 = before;
            outcome.lost = 0;
            if let Some(first) = self.1.get(&name) {
                outcome.judgement = *first;
            }
        } else if fragment.offset == 0 {
            self.1.insert(name, outcome.judgement);
        }
        outcome.into()
    }
}

/// Forgets flows when the model changes.
pub struct Forgetful(Oracle, usize);

impl Forgetful {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(oracle(model, capacity), capacity))
    }
}

impl Engine for Forgetful {
    fn replace_model(&mut self, model: &Model) {
        self.0 = oracle(model, self.1);
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        self.0.judge(&frame.packet, now).into()
    }
}

/// Hears of no change.
pub struct Deaf(Oracle);

impl Deaf {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(oracle(model, capacity)))
    }
}

impl Engine for Deaf {
    fn replace_model(&mut self, _model: &Model) {}

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        self.0.judge(&frame.packet, now).into()
    }
}

/// Knows no time.
pub struct Timeless(Oracle);

impl Timeless {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(oracle(model, capacity)))
    }
}

impl Engine for Timeless {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
    }

    fn judge(&mut self, frame: &Frame, _now: Duration) -> Verdict {
        self.0.judge(&frame.packet, Duration::ZERO).into()
    }
}

/// Changes the flags of a TCP packet.
pub fn with_tcp(packet: &mut Packet, change: impl Fn(&mut TcpFlags)) {
    if let Payload::Tcp { flags, .. } = &mut packet.payload {
        change(flags);
    }
}
