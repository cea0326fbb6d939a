//! Random policies and packet sequences, judged by an engine and by the oracle
//! alike, across waits and changes of the rules.
//!
//! `cargo test` draws the same 10,000 cases every time, from the seed in `.cargo/config.toml`;
//! `scripts/properties` draws new ones, and more. A failure leaves a lab file and a list of
//! packets, and prints how to replay them. Cases worth keeping are in `tests/regressions/` and
//! are run first.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use sgwall::config::{self, Options, Quotas};

use self::harness::{Failed, Tally, check};
use self::read_back::ReadBack;
use self::super_packets::SuperPackets;
use self::under_test::UnderTest;

#[path = "oracle/bends.rs"]
mod bends;
#[path = "oracle/broken.rs"]
mod broken;
#[path = "oracle/datagrams.rs"]
mod datagrams;
#[path = "oracle/decode.rs"]
mod decode;
#[path = "oracle/disguises.rs"]
mod disguises;
#[path = "oracle/harness.rs"]
mod harness;
#[path = "oracle/models.rs"]
mod models;
#[path = "oracle/read_back.rs"]
mod read_back;
#[path = "oracle/regressions.rs"]
mod regressions;
#[path = "oracle/render.rs"]
mod render;
#[path = "oracle/rules.rs"]
mod rules;
#[path = "oracle/story.rs"]
mod story;
#[path = "oracle/super_packets.rs"]
mod super_packets;
#[path = "oracle/talk.rs"]
mod talk;
#[path = "oracle/traffic.rs"]
mod traffic;
#[path = "oracle/under_test.rs"]
mod under_test;
#[path = "oracle/wire.rs"]
mod wire;

#[test]
fn engine_and_oracle_agree_on_every_packet() {
    let config = Config {
        cases: cases(),
        failure_persistence: None,
        ..Config::default()
    };
    if let Err(failed) = check(config, traffic::case(), UnderTest::make) {
        panic!("{}", story::tell(&failed));
    }
}

#[test]
fn engine_and_oracle_agree_on_super_packets_and_what_they_stand_for() {
    let config = Config {
        cases: cases() / 4,
        failure_persistence: None,
        ..Config::default()
    };
    let tally = match check(config, traffic::case(), SuperPackets::make) {
        Ok(tally) => tally,
        Err(failed) => panic!("{}", story::tell(&failed)),
    };
    assert_often(&tally, &["several delivered", "several dropped"]);
}

#[test]
fn engine_and_oracle_agree_on_floods_of_fragments() {
    let config = Config {
        cases: cases() / 10,
        failure_persistence: None,
        ..Config::default()
    };
    let tally = match check(config, traffic::flooded_case(), UnderTest::make) {
        Ok(tally) => tally,
        Err(failed) => panic!("{}", story::tell(&failed)),
    };
    assert_often(&tally, &["dropped fragment_table_full"]);
}

#[test]
fn what_is_drawn_is_the_same_every_time() {
    let drawn = || {
        let mut runner = TestRunner::default();
        let mut case = || traffic::case().new_tree(&mut runner).unwrap().current();
        format!("{:?}", [case(), case()])
    };
    assert!(
        drawn() == drawn(),
        "cargo sets PROPTEST_RNG_SEED as .cargo/config.toml says; set it where cargo doesn't run the tests"
    );
}

#[test]
fn both_come_to_what_kept_cases_expect() {
    let failures = regressions::replay_all();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn broken_engines_are_caught() {
    let mut escaped = Vec::new();
    for (fault, make) in broken::all() {
        match check(unshrunk(3000), traffic::case(), make) {
            Err(Failed::Parted(_)) => {}
            // A fault that makes the engine panic would prove nothing.
            Err(Failed::Otherwise(why)) => panic!("{fault}: {why}"),
            Ok(_) => escaped.push(fault),
        }
    }
    assert!(escaped.is_empty(), "not caught: {escaped:?}");
}

#[test]
fn random_cases_reach_every_decision() {
    let tally = match check(unshrunk(1000), traffic::case(), ReadBack::make) {
        Ok(tally) => tally,
        Err(failed) => panic!("{}", story::tell(&failed)),
    };
    assert_often(
        &tally,
        &[
            "dropped malformed",
            "dropped tiny_fragment",
            "dropped overlapping_fragment",
            "dropped duplicate_fragment",
            "dropped source_check",
            "dropped not_unicast",
            "dropped no_service",
            "dropped no_egress_rule",
            "dropped connection_closed",
            "dropped flow_table_full",
            "dropped conntrack_allowance_exceeded",
            "dropped network_acl_egress",
            "dropped no_route",
            "dropped blackhole",
            "dropped no_public_address",
            "dropped unknown_destination",
            "dropped too_big",
            "dropped network_acl_ingress",
            "dropped no_ingress_rule",
            "dropped destination_check",
            "delivered ipv4 tcp",
            "delivered ipv4 udp",
            "delivered ipv4 query",
            "delivered ipv4 icmp",
            "delivered ipv4 other",
            "delivered ipv6 tcp",
            "delivered ipv6 udp",
            "delivered ipv6 query",
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
            "goes on by rule",
            "goes on after a reset",
            "goes on half closed after a pause",
            "cut in the middle",
            "related",
            "translated at the source",
            "translated at the destination",
            "translated at both ends",
            "split",
            "answered",
            "answer dropped network_acl_ingress",
            "answer dropped no_ingress_rule",
            "held",
            "delivered later fragment",
            "released delivered",
            "released dropped",
            "lost",
            "orphans",
        ],
    );
}

#[test]
fn a_lab_file_says_all_of_a_random_model() {
    let read = |text: &str| {
        let options = Options {
            quotas: Quotas::Warn,
        };
        config::load_sources_with(&[("lab.yaml", text)], options)
    };
    let result = TestRunner::new(unshrunk(500)).run(&models::blueprint(), |blueprint| {
        let model = blueprint.build();
        let text = render::render(&model);
        let loaded = read(&text).map_err(|why| TestCaseError::fail(format!("{why}\n{text}")))?;
        proptest::prop_assert_eq!(
            render::without_places(loaded.model),
            render::without_places(model)
        );
        Ok(())
    });
    if let Err(failed) = result {
        panic!("{failed}");
    }
}

/// How many cases to look at.
fn cases() -> u32 {
    match std::env::var("SGWALL_CASES") {
        Ok(text) => text.parse().expect("SGWALL_CASES is a number"),
        Err(_) => 10_000,
    }
}

/// A configuration that spends no time on shrinking.
fn unshrunk(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    }
}

#[track_caller]
fn assert_often(tally: &Tally, wanted: &[&str]) {
    let rare: Vec<&&str> = wanted
        .iter()
        .filter(|what| tally.get(**what).is_none_or(|times| *times < 20))
        .collect();
    assert!(rare.is_empty(), "hardly ever: {rare:?} in {tally:#?}");
}
