//! What became of the packets, for people.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::{Happened, Line, Report};
use crate::cli::check::counted;
use crate::cli::output::{Paint, pad};

/// Every line of the list with what became of it, then how many.
pub(super) fn text(packets: &Path, answer: &Report, paint: Paint) -> String {
    let decimals = answer
        .events
        .iter()
        .map(|line| decimals_of(line.time))
        .max()
        .unwrap_or(0);
    let rows: Vec<Row> = answer
        .events
        .iter()
        .map(|line| Row::of(line, decimals, paint))
        .collect();
    let widest = |of: fn(&Row) -> &str| rows.iter().map(|row| of(row).chars().count()).max();
    let time = widest(|row| &row.time).unwrap_or(0);
    let who = widest(|row| &row.who).unwrap_or(0);
    let what = widest(|row| &row.what).unwrap_or(0);
    let mut out = String::new();
    for row in &rows {
        let _ = writeln!(
            out,
            "{}  {:>time$}  {}  {}  {}",
            row.mark,
            row.time,
            pad(&row.who, who),
            pad(&row.what, what),
            row.outcome
        );
        for line in &row.besides {
            let indent = " ".repeat(4 + 2 + time + 2 + who + 2 + what + 2);
            let _ = writeln!(out, "{indent}{line}");
        }
    }
    let _ = writeln!(out, "{}: {}", packets.display(), summary(answer, paint));
    out
}

/// What is written of one line.
struct Row {
    mark: String,
    time: String,
    who: String,
    what: String,
    outcome: String,
    besides: Vec<String>,
}

impl Row {
    fn of(line: &Line, decimals: usize, paint: Paint) -> Self {
        let mut lines = Vec::new();
        let (mark, who, what, outcome) = match &line.what {
            Happened::Change { file, generation } => (
                "    ".to_owned(),
                "@".to_owned(),
                file.clone(),
                paint.faint(&format!("takes over as generation {generation}")),
            ),
            Happened::Packet {
                from,
                packet,
                verdict,
                expected,
                met,
                besides,
            } => {
                lines.extend(besides.iter().map(|one| paint.faint(&one.to_string())));
                let (mark, outcome) = match (met, expected) {
                    (Some(false), Some(expected)) => (
                        paint.bad("FAIL"),
                        format!("{verdict}, {}", paint.bad(&format!("expected {expected}"))),
                    ),
                    (Some(true), _) => (paint.good(" ok "), verdict.to_string()),
                    _ => ("    ".to_owned(), verdict.to_string()),
                };
                (mark, from.clone(), packet.clone(), outcome)
            }
        };
        Self {
            mark,
            time: seconds(line.time, decimals),
            who,
            what,
            outcome,
            besides: lines,
        }
    }
}

/// `time` in seconds with so many decimals.
fn seconds(time: Duration, decimals: usize) -> String {
    let mut text = format!("{}.{:09}", time.as_secs(), time.subsec_nanos());
    text.truncate(text.len() - 9 + decimals);
    text
}

/// Decimals, by threes, that `time` in seconds needs: at least milliseconds.
fn decimals_of(time: Duration) -> usize {
    match time.subsec_nanos() {
        nanos if nanos % 1_000_000 == 0 => 3,
        nanos if nanos % 1_000 == 0 => 6,
        _ => 9,
    }
}

fn summary(answer: &Report, paint: Paint) -> String {
    let held = match answer.held {
        0 => String::new(),
        held => format!(", {held} held"),
    };
    let counts = format!(
        "{}: {} delivered, {} dropped{held}",
        counted(answer.packets, "packet", "packets"),
        answer.delivered,
        answer.dropped,
    );
    let met = answer.expectations - answer.unmet;
    match (answer.expectations, answer.unmet) {
        (0, _) => format!("{counts}; nothing was expected"),
        (_, 0) => format!(
            "{counts}; {}",
            paint.good(&format!("all {met} as expected"))
        ),
        (_, unmet) => format!(
            "{counts}; {met} as expected, {}",
            paint.bad(&format!("{unmet} not"))
        ),
    }
}
