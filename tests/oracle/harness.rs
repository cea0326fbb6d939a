//! Runs a case past the oracle and an engine side by side, and tells where
//! they part.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use sgwall::model::{Attachment, Model, Tracking};
use sgwall::policy::oracle::{Admission, Judgement, Oracle, Packet, Payload};

use crate::traffic::{self, Case, Sent, Step};

/// Whatever claims to judge packets as the oracle does.
pub trait Engine {
    /// Changes rules and memberships; flows survive.
    fn replace_model(&mut self, model: &Model);

    /// Judges one packet.
    fn judge(&mut self, packet: &Packet, now: Duration) -> Judgement;
}

/// How the story of a disagreement begins.
pub const PART: &str = "the engine and the oracle part";

/// Makes an engine for a model.
pub type Maker = fn(&Model) -> Box<dyn Engine>;

/// How often something happened, by name.
pub type Tally = BTreeMap<String, u64>;

/// Runs one case; `Err` has the story up to where the engine went astray.
pub fn run(case: &Case, make: Maker, tally: &mut Tally) -> Result<(), String> {
    let mut blueprint = case.blueprint.clone();
    let mut model = blueprint.build();
    let mut oracle = Oracle::new(model.clone());
    let mut engine = make(&model);
    let mut now = Duration::ZERO;
    let mut sent: Vec<Sent> = Vec::new();
    let mut story: Vec<Event> = vec![Event::Model(model.clone())];

    for step in &case.steps {
        let earlier = |back: u8| {
            let back = usize::from(back) % sent.len().max(1);
            sent.iter().rev().nth(back)
        };
        let packet = match step {
            Step::Send(plan) => Some(plan.build(&model)),
            Step::Again { back, flags } => earlier(*back).map(|packet| packet.again(*flags)),
            Step::Reply { back, flags } => earlier(*back).and_then(|packet| packet.reply(*flags)),
            Step::Wait(by) => {
                now += traffic::wait(*by);
                None
            }
            Step::Change(change) => {
                blueprint.apply(change);
                model = blueprint.build();
                oracle.replace_model(model.clone());
                engine.replace_model(&model);
                story.push(Event::Model(model.clone()));
                None
            }
        };
        let Some(packet) = packet else { continue };

        let expected = oracle.judge(&packet, now);
        let judged = engine.judge(&packet, now);
        if expected != judged {
            return Err(tell(&story, &packet, now, expected, judged));
        }
        count(tally, &packet, expected);
        story.push(Event::Packet(packet, now, expected));
        sent.push(Sent::new(&model, packet, expected));
    }
    Ok(())
}

/// Holds engines to the oracle over random cases; `Err` has the story of the
/// smallest failure found.
pub fn check(config: Config, make: Maker) -> Result<Tally, String> {
    let tally = std::cell::RefCell::new(Tally::new());
    let mut runner = TestRunner::new(config);
    runner
        .run(&traffic::case(), |case| {
            run(&case, make, &mut tally.borrow_mut()).map_err(TestCaseError::fail)
        })
        .map_err(|error| match error {
            // The case itself is bytes; the story says what they mean.
            TestError::Fail(story, _) => story.to_string(),
            TestError::Abort(why) => why.to_string(),
        })?;
    Ok(tally.into_inner())
}

enum Event {
    Model(Model),
    Packet(Packet, Duration, Judgement),
}

fn tell(
    story: &[Event],
    packet: &Packet,
    now: Duration,
    expected: Judgement,
    judged: Judgement,
) -> String {
    let mut out = format!("{PART}\n");
    for event in story {
        let _ = match event {
            Event::Model(model) => write!(out, "--- model\n{}---\n", describe(model)),
            Event::Packet(packet, now, judgement) => {
                writeln!(out, "{now:?} {packet}\n    {judgement:?}")
            }
        };
    }
    let _ = write!(
        out,
        "{now:?} {packet}\n    oracle: {expected:?}\n    engine: {judged:?}\n"
    );
    out
}

/// The model for people: what a failure prints.
fn describe(model: &Model) -> String {
    let mut out = format!("vpc {:?}\n", model.vpc.cidrs);
    for (ix, interface) in model.interfaces() {
        let entity = model.entity_of(ix);
        let groups: Vec<&str> = interface
            .groups()
            .iter()
            .map(|group| model.security_groups[group.ix()].name.as_str())
            .collect();
        let addresses: Vec<String> = interface
            .addresses
            .iter()
            .map(|address| match address.public {
                Some(public) => format!("{} (public {public})", address.private),
                None => address.private.to_string(),
            })
            .collect();
        let kind = match interface.attachment {
            Attachment::External(via) => format!("external via {via:?}"),
            Attachment::Subnet { .. } => entity.kind.to_string(),
        };
        let check = if interface.source_dest_check {
            ""
        } else {
            ", no source/dest check"
        };
        let Tracking {
            tcp_established,
            udp_timeout,
            udp_stream,
        } = interface.tracking;
        let _ = writeln!(
            out,
            "#{} {} {kind} {} groups {groups:?} mtu {}{check}, established {tcp_established:?}, udp {udp_timeout:?}/{udp_stream:?}",
            ix.ix(),
            model.interface_label(ix),
            addresses.join(" "),
            interface.mtu,
        );
    }
    for list in &model.prefix_lists {
        let _ = writeln!(out, "pl/{} {:?}", list.name, list.entries);
    }
    for group in &model.security_groups {
        let _ = writeln!(out, "sg/{}", group.name);
        for (direction, rules) in [("in ", &group.ingress), ("out", &group.egress)] {
            for rule in rules {
                let _ = writeln!(
                    out,
                    "  {direction} {} {} {}",
                    rule.id, rule.traffic, rule.peer_text
                );
            }
        }
    }
    out
}

/// Notes by which decision a packet passed or failed, so that a test can see
/// whether random cases get everywhere.
fn count(tally: &mut Tally, packet: &Packet, judgement: Judgement) {
    let mut add = |what: String| *tally.entry(what).or_default() += 1;
    match judgement {
        Judgement::Dropped { reason, .. } => add(format!("dropped {reason}")),
        Judgement::Delivered {
            source,
            destination,
            egress,
            ingress,
            ..
        } => {
            let protocol = match packet.payload {
                Payload::Tcp { .. } => "tcp",
                Payload::Udp { .. } => "udp",
                Payload::IcmpEcho { .. } => "echo",
                Payload::Icmp { .. } => "icmp",
                Payload::Other(_) => "other",
            };
            let family = if source.is_ipv4() { "ipv4" } else { "ipv6" };
            let by = |admission| match admission {
                None => "none",
                Some(Admission::Rule(_)) => "rule",
                Some(Admission::Flow) => "flow",
            };
            add(format!("delivered {family} {protocol}"));
            add(format!(
                "admitted out by {}, in by {}",
                by(egress),
                by(ingress)
            ));
            if source != packet.source && destination != packet.destination {
                add("translated at both ends".into());
            } else if source != packet.source {
                add("translated at the source".into());
            } else if destination != packet.destination {
                add("translated at the destination".into());
            }
        }
    }
}
