//! What it costs to compile a policy, whole or after a change.
//!
//! `cargo bench --bench rules`.
#![allow(missing_docs, reason = "criterion's macros make items without")]

use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use sgwall::policy::Policy;

#[path = "common/world.rs"]
mod world;

/// Rules in the table that is compiled.
const RULES: [usize; 3] = [10, 1_000, 100_000];

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(10);
    targets = compile, recompile
}
criterion_main!(benches);

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
