//! Cases worth keeping: `tests/regressions/NAME/` with a lab file and a list of
//! packets, as a failure leaves them behind and `sgwall replay` takes them.

use std::path::{Path, PathBuf};

use sgwall::cli::replay::script::{self, By, Event, Expected, What};
use sgwall::config::{self, Options, Quotas};
use sgwall::model::{InterfaceIx, Model};
use sgwall::policy::oracle::{Admission, Judgement, Oracle};

use crate::decode::lenient;
use crate::harness::Verdict;
use crate::under_test::UnderTest;
use crate::wire::Frame;

/// Replays every case to the oracle and to the engine; gives what comes out
/// otherwise than expected.
pub fn replay_all() -> Vec<String> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/regressions");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(kept)
        .expect("there are some")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.join("packets.txt").exists())
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "there are some");
    cases.iter().flat_map(|case| replay(case)).collect()
}

fn replay(case: &Path) -> Vec<String> {
    let load = |file: &str| {
        let options = Options {
            quotas: Quotas::Warn,
        };
        config::load_with(&case.join(file), &[], options).map(|loaded| loaded.model)
    };
    let mut model = load("lab.yaml").unwrap_or_else(|why| panic!("{why}"));
    let events = script::read(&case.join("packets.txt"), &model, load)
        .unwrap_or_else(|why| panic!("{}: {why:?}", case.display()));

    let mut oracle = Oracle::new(model.clone());
    let mut engine = UnderTest::make(&model, 1 << 20);
    let mut wrong = Vec::new();
    for Event { line, at, what } in events {
        let (from, bytes, expected) = match what {
            What::Change { model: new, .. } => {
                model = (*new).clone();
                oracle.replace_model(model.clone());
                engine.replace_model(&model);
                continue;
            }
            What::Packet {
                from,
                bytes,
                expected,
            } => (interface(&model, &from), bytes, expected),
        };
        // What can't be read at all is the parser's own business.
        let Ok(packet) = lenient(from, &bytes) else {
            continue;
        };
        let frame = Frame { packet, bytes };
        let by_oracle = Verdict::from(oracle.judge(&packet, at));
        let by_engine = engine.judge(&frame, at);
        let place = format!("{}/packets.txt:{line}", case.display());
        if by_oracle != by_engine {
            wrong.push(format!(
                "{place}: {packet}\n  oracle: {by_oracle:?}\n  engine: {by_engine:?}"
            ));
        }
        if let Some(expected) = expected
            && !meets(&model, &by_oracle.judgement, &expected)
        {
            wrong.push(format!(
                "{place}: {packet}\n  expected: {expected:?}\n  oracle: {by_oracle:?}"
            ));
        }
    }
    wrong
}

fn meets(model: &Model, judgement: &Judgement, expected: &Expected) -> bool {
    let by = |admission: Option<Admission>| match admission {
        None => By::None,
        Some(Admission::Rule(_)) => By::Rule,
        Some(Admission::Flow) => By::Flow,
    };
    match (judgement, expected) {
        (
            Judgement::Delivered {
                to,
                egress,
                ingress,
                ..
            },
            Expected::Delivered {
                to: wanted,
                by: ways,
            },
        ) => {
            *to == interface(model, wanted)
                && ways.is_none_or(|ways| ways == (by(*egress), by(*ingress)))
        }
        (
            Judgement::Dropped { reason, at },
            Expected::Dropped {
                reason: wanted,
                at: wanted_at,
            },
        ) => reason == wanted && *at == interface(model, wanted_at),
        (Judgement::Held { .. }, Expected::Held) => true,
        _ => false,
    }
}

/// The interface with this id.
fn interface(model: &Model, id: &str) -> InterfaceIx {
    model
        .interfaces()
        .find(|(_, interface)| interface.id == id)
        .map(|(ix, _)| ix)
        .expect("whoever read the list has found it")
}
