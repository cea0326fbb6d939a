//! Random policies and packet sequences, judged by an engine and by the oracle
//! alike, across waits and rule changes.
//!
//! `SGWALL_CASES=100000 cargo test --test properties` looks longer than the
//! 10,000 cases that are tried by default. The seeds of failures are kept in
//! `tests/regressions/` and tried first from then on.

use std::time::Duration;

use proptest::test_runner::{Config, FileFailurePersistence, RngSeed};
use sgwall::conntrack::Millis;
use sgwall::datapath::{self, Datapath, Fate, Silent};
use sgwall::model::Model;
use sgwall::policy::Policy;
use sgwall::policy::oracle::{Admission, Judgement, Packet};

use self::harness::Engine;

#[path = "oracle/broken.rs"]
mod broken;
#[path = "oracle/harness.rs"]
mod harness;
#[path = "oracle/models.rs"]
mod models;
#[path = "oracle/traffic.rs"]
mod traffic;
#[path = "oracle/wire.rs"]
mod wire;

/// The compiled policy and the data path, fed with real bytes. What the
/// receiver gets is read back by `wire::decode`, which checks every checksum
/// that translation has to mend.
struct UnderTest {
    policy: Policy,
    datapath: Datapath,
}

impl UnderTest {
    fn make(model: &Model) -> Box<dyn Engine> {
        Box::new(Self {
            policy: Policy::compile(model, None),
            datapath: Datapath::new(1 << 20),
        })
    }
}

impl Engine for UnderTest {
    fn replace_model(&mut self, model: &Model) {
        self.policy = Policy::compile(model, Some(&self.policy));
    }

    fn judge(&mut self, packet: &Packet, now: Duration) -> Judgement {
        let mut bytes = wire::encode(packet);
        let verdict = self.datapath.judge(
            &self.policy,
            packet.from,
            &mut bytes,
            Millis::from(now),
            &mut Silent,
        );
        let admission = |admission: datapath::Admission| {
            if admission.tracked {
                Admission::Flow
            } else {
                Admission::Rule(admission.rule)
            }
        };
        match verdict.fate {
            Fate::Drop { reason, at } => Judgement::Dropped { reason, at },
            Fate::Hold { .. } => unreachable!("no fragments are sent"),
            Fate::Forward { to, length, .. } => {
                let arrived = wire::decode(packet.from, &bytes[..length])
                    .expect("what is forwarded is a whole packet with right checksums");
                Judgement::Delivered {
                    to,
                    source: arrived.source,
                    destination: arrived.destination,
                    egress: verdict.egress.map(admission),
                    ingress: verdict.ingress.map(admission),
                }
            }
        }
    }
}

#[test]
fn engine_and_oracle_agree_on_every_packet() {
    let cases = match std::env::var("SGWALL_CASES") {
        Ok(text) => text.parse().expect("SGWALL_CASES is a number"),
        Err(_) => 10_000,
    };
    let config = Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/regressions/properties.txt"
        )))),
        source_file: Some(file!()),
        ..Config::default()
    };
    if let Err(story) = harness::check(config, UnderTest::make) {
        panic!("{story}");
    }
}

#[test]
fn broken_engines_are_caught() {
    let mut escaped = Vec::new();
    for (fault, make) in broken::all() {
        match harness::check(unpersisted(3000), make) {
            // A fault that makes the engine panic would prove nothing.
            Err(story) => assert!(story.contains(harness::PART), "{fault}: {story}"),
            Ok(_) => escaped.push(fault),
        }
    }
    assert!(escaped.is_empty(), "not caught: {escaped:?}");
}

#[test]
fn random_cases_reach_every_decision() {
    let tally = harness::check(unpersisted(1000), UnderTest::make).expect("agreement");
    let mut rare = Vec::new();
    for decision in [
        "dropped source_check",
        "dropped not_unicast",
        "dropped no_egress_rule",
        "dropped no_route",
        "dropped no_public_address",
        "dropped unknown_destination",
        "dropped too_big",
        "dropped no_ingress_rule",
        "delivered ipv4 tcp",
        "delivered ipv4 udp",
        "delivered ipv4 echo",
        "delivered ipv4 icmp",
        "delivered ipv4 other",
        "delivered ipv6 tcp",
        "delivered ipv6 udp",
        "delivered ipv6 echo",
        "delivered ipv6 icmp",
        "delivered ipv6 other",
        "admitted out by rule, in by rule",
        "admitted out by rule, in by flow",
        "admitted out by flow, in by rule",
        "admitted out by flow, in by flow",
        "admitted out by rule, in by none",
        "admitted out by flow, in by none",
        "admitted out by none, in by rule",
        "admitted out by none, in by flow",
        "translated at the source",
        "translated at the destination",
        "translated at both ends",
    ] {
        if tally.get(decision).is_none_or(|times| *times < 20) {
            rare.push(decision);
        }
    }
    assert!(rare.is_empty(), "hardly ever: {rare:?} in {tally:#?}");
}

/// The same cases every time, nothing written, no time spent on shrinking.
fn unpersisted(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 0,
        rng_seed: RngSeed::Fixed(1),
        ..Config::default()
    }
}
