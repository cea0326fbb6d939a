//! Runs a case past the oracle and an engine side by side, and tells where
//! they part.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use sgwall::model::{InterfaceIx, Model};
use sgwall::policy::DropReason;
use sgwall::policy::oracle::{Admission, Judgement, Oracle, Outcome, Packet, Payload, Refusal};

use crate::datagrams::Datagrams;
use crate::story::Event;
use crate::talk::{History, Place};
use crate::traffic::{self, Case, Step};
use crate::wire::Frame;

/// Whatever claims to judge packets as the oracle does.
pub trait Engine {
    /// Changes what may change at run time; flows survive.
    fn replace_model(&mut self, model: &Model);

    /// The packets of the wire that it can take `frame` for; the oracle sees them one
    /// by one.
    fn on_the_wire(&self, frame: &Frame) -> Vec<Frame> {
        vec![frame.clone()]
    }

    /// Judges the packets of `wire`, which come as the one `frame`.
    fn judge_together(&mut self, frame: &Frame, _wire: &[Frame], now: Duration) -> Verdict {
        self.judge(frame, now)
    }

    /// Judges one packet. Whatever's time is up by then is gone.
    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict;
}

/// The router's answer and the MTU that it tells; or why and where that answer
/// is dropped.
pub type Answered = Result<(Packet, u16), Refusal>;

/// What a packet sets off, as far as it can be seen from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of the packet itself.
    pub judgement: Judgement,
    /// What the router answers it.
    pub answer: Option<Answered>,
    /// What becomes of fragments that waited for it, in order.
    pub released: Vec<Judgement>,
    /// Fragments that waited, and died of it.
    pub lost: usize,
    /// Fragments that waited in vain and died before it.
    pub orphans: Vec<(InterfaceIx, u64)>,
    /// What becomes of the packets of the wire that came with it. By which rule or
    /// flow is not said: the first may have opened a flow.
    pub others: Vec<Judgement>,
    /// What is wrong with the bytes that came out.
    pub wrong: Option<String>,
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        Self {
            judgement: outcome.judgement,
            answer: outcome.answer.map(|answer| match answer.refused {
                None => Ok((answer.message, answer.mtu)),
                Some(refusal) => Err(refusal),
            }),
            released: outcome
                .released
                .into_iter()
                .map(|(_, judgement)| judgement)
                .collect(),
            lost: outcome.lost,
            orphans: outcome.orphans,
            others: Vec::new(),
            wrong: None,
        }
    }
}

impl Verdict {
    /// The oracle's of packets that come together: all that the first sets off, and
    /// what becomes of the others.
    fn by(oracle: &mut Oracle, wire: &[Frame], now: Duration) -> Self {
        let mut outcomes = wire.iter().map(|frame| oracle.judge(&frame.packet, now));
        let first = outcomes.next().expect("a frame is a packet at least");
        let mut verdict = Self::from(first);
        verdict.others = outcomes
            .map(|outcome| by_nobody(outcome.judgement))
            .collect();
        verdict
    }

    /// That of an engine whose output is wrong.
    pub fn of_wrong(frame: &Frame, why: String) -> Self {
        Self {
            judgement: Judgement::Held {
                at: frame.packet.from,
            },
            answer: None,
            released: Vec::new(),
            lost: 0,
            orphans: Vec::new(),
            others: Vec::new(),
            wrong: Some(why),
        }
    }
}

/// What `frame` is on the wire. One verdict is for all that comes together, so what
/// follows the packet that closes its connection comes by itself: it is behind its
/// sender's own FIN, where no host has anything to send.
fn on_the_wire(engine: &dyn Engine, oracle: &Oracle, frame: &Frame, now: Duration) -> Vec<Frame> {
    let wire = engine.on_the_wire(frame);
    if wire.len() > 1 {
        let closed = |judgement: &Judgement| {
            let reason = DropReason::ConnectionClosed;
            matches!(judgement, Judgement::Dropped { reason: seen, .. } if *seen == reason)
        };
        let verdict = Verdict::by(&mut oracle.clone(), &wire, now);
        let behind = |other: &Judgement| closed(other) && *other != verdict.judgement;
        if verdict.others.iter().any(behind) {
            return vec![frame.clone()];
        }
    }
    wire
}

/// The judgement without what let the packet pass.
pub fn by_nobody(judgement: Judgement) -> Judgement {
    match judgement {
        Judgement::Delivered {
            to, packet, split, ..
        } => Judgement::Delivered {
            to,
            packet,
            split,
            egress: None,
            ingress: None,
        },
        other => other,
    }
}

/// Makes an engine for a model that remembers at most so many flows.
pub type Maker = fn(&Model, usize) -> Box<dyn Engine>;

/// How often something happened, by name.
pub type Tally = BTreeMap<String, u64>;

/// Where an engine went astray.
#[derive(Debug)]
pub struct Failure {
    /// How many flows were remembered at most.
    pub capacity: usize,
    /// What happened before, and the packet at last.
    pub events: Vec<Event>,
    /// What the oracle made of it.
    pub expected: Verdict,
    /// What the engine made of it.
    pub judged: Verdict,
}

/// Runs one case.
pub fn run(case: &Case, make: Maker, tally: &mut Tally) -> Result<(), Box<Failure>> {
    let mut blueprint = case.blueprint.clone();
    let mut model = blueprint.build();
    let mut oracle = Oracle::with_capacity(model.clone(), case.capacity());
    let mut engine = make(&model, case.capacity());
    let mut now = Duration::ZERO;
    let mut world = World::default();
    let mut events = vec![Event::Model(model.clone(), now)];

    for step in case.steps.iter().flat_map(Step::unrolled) {
        match &step {
            Step::Wait(by) => now += traffic::wait(*by),
            Step::Idle(back, by, _) => now += world.history.idle(&model, *back, *by),
            Step::Change(change) => {
                blueprint.apply(change);
                model = blueprint.build();
                oracle.replace_model(model.clone());
                engine.replace_model(&model);
                events.push(Event::Model(model.clone(), now));
            }
            _ => {}
        }
        for (frame, place) in world.frames(&model, &step) {
            let wire = on_the_wire(&*engine, &oracle, &frame, now);
            let expected = Verdict::by(&mut oracle, &wire, now);
            let judged = engine.judge_together(&frame, &wire, now);
            let part = expected != judged;
            events.push(Event::Packet(frame.clone(), now, expected.judgement));
            if part {
                return Err(Box::new(Failure {
                    capacity: case.capacity(),
                    events,
                    expected,
                    judged,
                }));
            }
            world.count(tally, &frame, place, &expected, now);
            world
                .history
                .note(&model, frame, place, &expected.judgement);
        }
    }
    Ok(())
}

/// Why a check failed.
#[derive(Debug)]
pub enum Failed {
    /// The engine went astray; this is the smallest case found.
    Parted(Box<Failure>),
    /// Something else: most likely a panic.
    Otherwise(String),
}

/// Holds engines to the oracle over random cases.
pub fn check(
    config: Config,
    cases: impl Strategy<Value = Case>,
    make: Maker,
) -> Result<Tally, Failed> {
    let tally = RefCell::new(Tally::new());
    let failed = TestRunner::new(config).run(&cases, |case| {
        run(&case, make, &mut tally.borrow_mut()).map_err(|_| TestCaseError::fail(PARTED))
    });
    match failed {
        Ok(()) => Ok(tally.into_inner()),
        // The case itself is bytes; run again it tells what they mean.
        Err(TestError::Fail(why, case)) if why.message() == PARTED => {
            Err(match run(&case, make, &mut Tally::new()) {
                Err(failure) => Failed::Parted(failure),
                Ok(()) => Failed::Otherwise(format!("it failed once: {case:?}")),
            })
        }
        Err(TestError::Fail(why, case)) => Err(Failed::Otherwise(format!("{why}: {case:?}"))),
        Err(TestError::Abort(why)) => Err(Failed::Otherwise(why.to_string())),
    }
}

const PARTED: &str = "the engine and the oracle part";

/// What steps may refer to.
#[derive(Debug, Default)]
struct World {
    history: History,
    datagrams: Datagrams,
    /// Places in conversations from which a packet was delivered.
    delivered: Vec<Place>,
    /// TCP connections, by conversation number.
    connections: BTreeMap<usize, Connection>,
}

/// The packets of a TCP conversation that were delivered.
#[derive(Debug, Default)]
struct Connection {
    /// True if a reset was delivered.
    reset: bool,
    /// True if a FIN was delivered.
    half_closed: bool,
    /// The time of the last packet.
    last: Duration,
}

impl World {
    /// The frames that a step sends.
    fn frames(&mut self, model: &Model, step: &Step) -> Vec<(Frame, Place)> {
        let one = match step {
            Step::Send(plan) => Some((plan.build(model), self.history.new_talk())),
            Step::Turn(back, plan) => self.history.turn(*back, *plan, plan.payload()),
            Step::Error(back, plan) => self.history.error(model, *back, *plan),
            Step::Forward(back, by) => self.history.forward(model, *back, *by),
            Step::Datagram(plan) => {
                let place = self.history.new_talk();
                self.datagrams.begin(&plan.build(model), plan, place);
                None
            }
            Step::Pieces(back, turn, plan) => {
                if let Some((whole, place)) = self.history.turn(*back, *turn, plan.payload()) {
                    self.datagrams.begin(&whole, plan, place);
                }
                None
            }
            Step::Part(back, plan) => self.datagrams.part(*back, *plan),
            Step::Flood(plan) => {
                let place = self.history.new_talk();
                let frames = plan.frames(model);
                return frames.into_iter().map(|frame| (frame, place)).collect();
            }
            Step::Talk(..)
            | Step::HalfClose(..)
            | Step::Wait(_)
            | Step::Idle(..)
            | Step::Change(_) => None,
        };
        one.into_iter().collect()
    }

    /// Notes by which decision a packet passed or failed, so that a test can
    /// see whether random cases get everywhere.
    fn count(
        &mut self,
        tally: &mut Tally,
        frame: &Frame,
        place: Place,
        verdict: &Verdict,
        now: Duration,
    ) {
        let mut add = |what: String, times: u64| *tally.entry(what).or_default() += times;
        let packet = &frame.packet;
        let known = self.delivered.contains(&place);
        if !verdict.others.is_empty() {
            let delivered = matches!(verdict.judgement, Judgement::Delivered { .. });
            add(
                format!(
                    "several {}",
                    if delivered { "delivered" } else { "dropped" }
                ),
                1,
            );
        }
        match verdict.judgement {
            Judgement::Dropped { reason, .. } => {
                add(format!("dropped {reason}"), 1);
                let by_rule = [DropReason::NoEgressRule, DropReason::NoIngressRule];
                if known && by_rule.contains(&reason) {
                    add("cut in the middle".into(), 1);
                }
            }
            Judgement::Held { .. } => add("held".into(), 1),
            Judgement::Delivered { split: Some(_), .. } => add("split".into(), 1),
            Judgement::Delivered { .. } if packet.is_later_fragment() => {
                add("delivered later fragment".into(), 1);
            }
            Judgement::Delivered {
                packet: seen,
                egress,
                ingress,
                ..
            } => {
                let protocol = match packet.payload {
                    Payload::Tcp { .. } => "tcp",
                    Payload::Udp { .. } => "udp",
                    Payload::IcmpQuery { .. } => "query",
                    Payload::Icmp { .. } => "icmp",
                    Payload::Other(_) | Payload::Headless(_) => "other",
                };
                let family = if packet.source.is_ipv4() {
                    "ipv4"
                } else {
                    "ipv6"
                };
                let by = |admission| match admission {
                    None => "none",
                    Some(Admission::Rule(_)) => "rule",
                    Some(Admission::Flow) => "flow",
                };
                let (out, into) = (by(egress), by(ingress));
                add(format!("delivered {family} {protocol}"), 1);
                add(format!("admitted out by {out}, in by {into}"), 1);
                if protocol == "icmp" && [out, into].contains(&"flow") {
                    add("related".into(), 1);
                }
                if known && ["tcp", "udp"].contains(&protocol) && [out, into].contains(&"rule") {
                    add("goes on by rule".into(), 1);
                }
                if seen.source != packet.source && seen.destination != packet.destination {
                    add("translated at both ends".into(), 1);
                } else if seen.source != packet.source {
                    add("translated at the source".into(), 1);
                } else if seen.destination != packet.destination {
                    add("translated at the destination".into(), 1);
                }
                if let Payload::Tcp { flags, .. } = packet.payload {
                    let connection = self.connections.entry(place.talk()).or_default();
                    let pause = now - connection.last;
                    if out == "flow" && into == "flow" && !flags.syn && !flags.rst {
                        if connection.reset {
                            add("goes on after a reset".into(), 1);
                        }
                        if connection.half_closed && pause > Duration::from_secs(60) {
                            add("goes on half closed after a pause".into(), 1);
                        }
                    }
                    connection.reset |= flags.rst;
                    connection.half_closed |= flags.fin;
                    connection.last = now;
                }
                self.delivered.push(place);
            }
        }
        match verdict.answer {
            None => {}
            Some(Ok(_)) => add("answered".into(), 1),
            Some(Err((reason, _))) => add(format!("answer dropped {reason}"), 1),
        }
        for judgement in &verdict.released {
            let fate = match judgement {
                Judgement::Delivered { .. } => "delivered",
                _ => "dropped",
            };
            add(format!("released {fate}"), 1);
        }
        add("lost".into(), verdict.lost as u64);
        let orphans = verdict.orphans.iter().map(|(_, number)| number).sum();
        add("orphans".into(), orphans);
    }
}
