//! What it costs to compile a policy, whole or after a change.
//!
//! `cargo bench --bench rules`.
#![allow(missing_docs, reason = "criterion's macros make items without")]

use std::cell::LazyCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use sgwall::engine::{Appliance, Options};
use sgwall::link::{Link, MemoryLink};
use sgwall::model::Model;
use sgwall::policy::Policy;

use self::fleet::Fleet;

#[allow(
    clippy::cast_possible_truncation,
    reason = "random bits, as many as are needed"
)]
#[path = "common/fleet.rs"]
mod fleet;
#[path = "common/world.rs"]
mod world;

/// Rules in the table that is compiled.
const RULES: [usize; 3] = [10, 1_000, 100_000];

/// A thousand interfaces with five groups each, and in each group the sixty rules
/// of AWS's default quota. In the first VPC all have the same five groups, in the
/// second each has five of a thousand, in the third the quota is used up both ways.
const FLEETS: [(&str, Fleet); 3] = [
    ("5 groups x 60 rules", fleet(5, 0)),
    ("1,000 groups x 60 rules", fleet(1_000, 0)),
    ("1,000 groups x 120 rules", fleet(1_000, 60)),
];

const fn fleet(groups: usize, egress: usize) -> Fleet {
    Fleet {
        interfaces: 1_000,
        groups,
        carried: 5,
        ingress: 60,
        egress,
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(10);
    targets = memory, compile, recompile, compile_fleet, recompile_fleet,
        read_fleet, enforce_fleet
}
criterion_main!(benches);

/// Not a time: what the process grows by when the fleet's policy is compiled.
/// Measured first, while nothing that was freed can be taken again.
#[expect(clippy::print_stdout, reason = "it is what the bench is for")]
fn memory(_: &mut Criterion) {
    for (name, fleet) in FLEETS {
        let model = fleet::model(fleet);
        let before = resident();
        let policy = Policy::compile(&model, None);
        let grown = resident().saturating_sub(before);
        println!("memory/{name}: {} KiB", grown / 1024);
        drop(policy);
    }
}

/// Bytes of memory that the process has.
fn resident() -> u64 {
    let said = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = said
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse::<u64>().ok());
    pages.expect("a number") * 4096
}

fn compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    for rules in RULES {
        let model = world::model(rules);
        group.bench_function(BenchmarkId::from_parameter(rules), |bencher| {
            bencher.iter_with_large_drop(|| Policy::compile(&model, None));
        });
    }
}

/// A reload after one rule changed: in the table with so many rules, which is
/// made anew; and in another, so that it is shared with the previous policy.
fn recompile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recompile");
    for rules in RULES {
        let model = world::model(rules);
        let previous = Policy::compile(&model, None);
        for (name, changed) in [
            ("one of the rules", world::with_one_rule_changed(&model)),
            (
                "a rule of another group",
                world::with_a_small_group_changed(&model),
            ),
        ] {
            group.bench_function(BenchmarkId::new(name, rules), |bencher| {
                bencher.iter_batched(
                    || (),
                    |()| Policy::compile(&changed, Some(&previous)),
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

fn compile_fleet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile fleet");
    for (name, fleet) in FLEETS {
        let model = fleet::model(fleet);
        group.bench_function(name, |bencher| {
            bencher.iter_with_large_drop(|| Policy::compile(&model, None));
        });
    }
}

fn recompile_fleet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recompile fleet");
    for (name, fleet) in FLEETS {
        let model = fleet::model(fleet);
        let previous = Policy::compile(&model, None);
        // As a program changes what is declared, which stays: in a clone of it.
        group.bench_function(BenchmarkId::new("one rule", name), |bencher| {
            bencher.iter_batched(
                || (),
                |()| {
                    let changed = fleet::with_one_rule_changed(&model);
                    let policy = Policy::compile(&changed, Some(&previous));
                    (changed, policy)
                },
                BatchSize::PerIteration,
            );
        });
        // As who saves a file: read anew, the model shares nothing with the one before.
        let read = |model: &Model| fleet::read(&fleet::files(model));
        let previous = LazyCell::new(|| Policy::compile(&read(&model), None));
        for (change, changed) in [
            ("nothing", model.clone()),
            ("one rule", fleet::with_one_rule_changed(&model)),
            (
                "one rule more, all others moved",
                fleet::with_one_rule_added(&model),
            ),
        ] {
            let changed = LazyCell::new(|| read(&changed));
            let change = format!("{change}, all read anew");
            group.bench_function(BenchmarkId::new(change, name), |bencher| {
                let (changed, previous) = (&*changed, &*previous);
                bencher.iter_batched(
                    || (),
                    |()| Policy::compile(changed, Some(previous)),
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

/// Reading and checking the files of the largest fleet.
fn read_fleet(criterion: &mut Criterion) {
    let (name, fleet) = FLEETS[2];
    let files = fleet::files(&fleet::model(fleet));
    let mut group = criterion.benchmark_group("read fleet");
    group.bench_function(name, |bencher| {
        bencher.iter_with_large_drop(|| fleet::read(&files));
    });
}

/// The whole way of one rule that changed, until every worker judges by it.
fn enforce_fleet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("enforce fleet");
    for (name, fleet) in FLEETS {
        let model = fleet::model(fleet);
        let clones = [fleet::with_one_rule_changed(&model), model];
        let read = |model: &Model| fleet::read(&fleet::files(model));
        for (change, is_read_anew) in [("one rule", false), ("one rule, all read anew", true)] {
            // These are kept, and so is the policy before: freeing them comes after.
            let models = LazyCell::new(|| match is_read_anew {
                true => clones.each_ref().map(read),
                false => clones.clone(),
            });
            let appliance = LazyCell::new(|| appliance(&models[1]));
            let mut turn = 0;
            group.bench_function(BenchmarkId::new(change, name), |bencher| {
                let (models, appliance) = (&*models, &*appliance);
                bencher.iter_batched(
                    // Who changes a model clones it first; one that was read is there.
                    || {
                        turn += 1;
                        let next = &models[turn % 2];
                        (next, is_read_anew.then(|| next.clone()))
                    },
                    |(next, read)| {
                        let before = appliance.engine().policy();
                        let declared = read.unwrap_or_else(|| next.clone());
                        let replaced = appliance.replace(declared);
                        replaced.expect("the same topology");
                        before
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
}

/// An appliance between links that are silent.
fn appliance(model: &Model) -> Appliance {
    let silent = |_| Arc::new(MemoryLink::new(1)) as Arc<dyn Link>;
    let links = model.interfaces.iter().map(silent).collect();
    let options = Options {
        workers: 2,
        max_flows: 1_000,
        ..Options::default()
    };
    // Nobody is there to prove anything to.
    let no_socket = |_, _| Err(io::ErrorKind::Unsupported.into());
    Appliance::start(model.clone(), links, options, no_socket).expect("threads")
}
