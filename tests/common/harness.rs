//! A harness for tests that need a `main` of their own: [`prepare`] must run before the first
//! thread starts, and the usual harness has threads.

use std::panic::catch_unwind;
use std::process::ExitCode;

use sgwall::lab::prepare;

/// Names the tests by their functions.
macro_rules! tests {
    ($($module:ident::$name:ident,)*) => { &[$((stringify!($name), $module::$name)),*] };
}
pub(crate) use tests;

/// What the command line chooses, in the manner of the usual harness.
#[derive(Default)]
struct Choice {
    list: bool,
    exact: bool,
    ignored: bool,
    filters: Vec<String>,
    skip: Vec<String>,
}

/// Runs those of `tests` that the command line chooses. `target` is their file.
pub fn run(target: &str, tests: &[(&str, fn())]) -> ExitCode {
    let choice = Choice::read();
    let chosen: Vec<_> = tests
        .iter()
        .filter(|(name, _)| choice.takes(name))
        .collect();
    if choice.list {
        for (name, _) in chosen {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        return ExitCode::SUCCESS;
    }
    if let Err(error) = prepare() {
        eprintln!("NO NAMESPACES HERE, so no test of real packets can run: {error}");
        if std::env::var("SGWALL_TESTS_WITHOUT_NAMESPACES").as_deref() == Ok("1") {
            eprintln!("SKIPPED ALL of {target}, as SGWALL_TESTS_WITHOUT_NAMESPACES=1 asks");
            return ExitCode::SUCCESS;
        }
        eprintln!("set SGWALL_TESTS_WITHOUT_NAMESPACES=1 to go without these tests");
        return ExitCode::FAILURE;
    }
    let mut failed = Vec::new();
    for (name, test) in &chosen {
        let verdict = match catch_unwind(test) {
            Ok(()) => "ok",
            Err(_) => {
                failed.push(*name);
                "FAILED"
            }
        };
        println!("test {name} ... {verdict}");
    }
    if failed.is_empty() {
        println!("test result: ok. {} passed", chosen.len());
        ExitCode::SUCCESS
    } else {
        println!("test result: FAILED: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}

impl Choice {
    fn read() -> Self {
        let mut choice = Self::default();
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--list" => choice.list = true,
                "--exact" => choice.exact = true,
                "--ignored" => choice.ignored = true,
                "--skip" => choice.skip.extend(arguments.next()),
                "--test-threads" | "--format" | "--color" | "--logfile" => {
                    arguments.next();
                }
                flag if flag.starts_with('-') => {}
                filter => choice.filters.push(filter.to_owned()),
            }
        }
        choice
    }

    fn takes(&self, name: &str) -> bool {
        let fits = |filter: &String| {
            if self.exact {
                name == filter
            } else {
                name.contains(filter.as_str())
            }
        };
        // None of these tests is ever ignored.
        !self.ignored
            && (self.filters.is_empty() || self.filters.iter().any(fits))
            && !self.skip.iter().any(fits)
    }
}
