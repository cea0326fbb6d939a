//! What the demonstration tried and saw, for people and programs.

use std::fmt::Write as _;

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::output::Paint;

/// Everything that was tried.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) as_expected: bool,
    pub(super) interfaces_proven: usize,
    pub(super) pairs: Vec<Trial>,
    pub(super) revoked: String,
    pub(super) live: Vec<Trial>,
    pub(super) left_behind: Vec<String>,
}

/// One attempt.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Trial {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) what: String,
    pub(super) expected: bool,
    pub(super) observed: bool,
    /// The rule, or what else decided.
    pub(super) decided_by: String,
    /// What the system said, where it said something unexpected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) trouble: Option<String>,
}

impl Trial {
    /// Whether what was seen is what the policy says.
    pub(super) fn is_as_expected(&self) -> bool {
        self.expected == self.observed && self.trouble.is_none()
    }
}

/// The lab, drawn.
pub(super) fn introduction(paint: Paint) -> String {
    format!(
        "{}\n
  client 198.51.100.7          the internet
     |  igw: 203.0.113.10 <-> 10.0.1.10
     lb  10.0.1.10             [lb]   tcp 443 and ping from anywhere
     |
   web-1 10.0.2.21             [web]  tcp 8080 from lb, ping from the VPC
   web-2 10.0.2.22
     |
     db  10.0.3.10             [db]   tcp 5432 from web; nothing out but replies\n
",
        paint.strong("A three-tier VPC, each entity in a network namespace of its own")
    )
}

/// Expected and observed side by side.
pub(super) fn table(trials: &[Trial], paint: Paint) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "",
        "FROM",
        "TO",
        "WHAT",
        "EXPECTED",
        "OBSERVED",
        "DECIDED BY",
    ]);
    for trial in trials {
        let word = |passes: bool| if passes { "passes" } else { "dropped" };
        let mark = if trial.is_as_expected() {
            "ok"
        } else {
            "WRONG"
        };
        let observed = trial.trouble.as_deref().unwrap_or(word(trial.observed));
        table.add_row([
            mark,
            &trial.from,
            &trial.to,
            &trial.what,
            word(trial.expected),
            observed,
            &trial.decided_by,
        ]);
    }
    let mut out = String::new();
    for line in table.lines() {
        let line = line.trim_end();
        let painted = if line.trim_start().starts_with("WRONG") {
            paint.bad(line)
        } else {
            line.to_owned()
        };
        let _ = writeln!(out, "{painted}");
    }
    out
}

/// How it all came out.
pub(super) fn conclusion(
    report: &Report,
    total: usize,
    wrong: usize,
    finished: bool,
    paint: Paint,
) -> String {
    let mut out = String::from("\n");
    let _ = if !finished {
        writeln!(out, "{}", paint.bad("stopped before the end"))
    } else if wrong > 0 {
        writeln!(
            out,
            "{}",
            paint.bad(&format!(
                "{wrong} of {total} attempts did not come out as expected"
            ))
        )
    } else {
        writeln!(
            out,
            "{}",
            paint.good(&format!("all {total} attempts came out as expected"))
        )
    };
    for left in &report.left_behind {
        let _ = writeln!(out, "{}", paint.bad(&format!("left behind: {left}")));
    }
    if report.left_behind.is_empty() {
        let _ = writeln!(out, "the lab is down; nothing is left behind");
    }
    out
}
