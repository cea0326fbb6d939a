//! `sgwall status --probe`: the answer of a health check, in one line and in time.

use std::time::Duration;

use crossbeam::channel;
use serde::Serialize;

use super::super::output::print;
use super::super::{CliError, Format, Outcome};
use super::ask;
use crate::observe::{Proof, Status};

/// How long the appliance may take: container runtimes start a check every few
/// seconds, and what takes longer doesn't work.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most interfaces named in the line.
const NAMED: usize = 3;

/// What is told of it.
#[derive(Debug, Serialize)]
struct Probed {
    ready: bool,
    /// The lab, if one answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    lab: Option<String>,
    /// Interfaces that are to enforce, and those of them that are proven to.
    #[serde(skip_serializing_if = "Option::is_none")]
    interfaces: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proven: Option<usize>,
    /// The reason why a changed file is not read, so that older rules are in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    unread: Option<String>,
    /// What speaks against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Asks, for two seconds at most, and prints one line.
///
/// # Errors
/// As [`super::run`], and that nothing answered in time.
pub(super) fn probe(lab: Option<String>, format: Format) -> Result<Outcome, CliError> {
    let (tell, told) = channel::bounded(1);
    // On a thread that is left behind: connecting and reading may each hang for longer.
    std::thread::Builder::new()
        .name("sgwall-probe".to_owned())
        .spawn(move || {
            let answer = ask(lab.as_deref()).map(|(name, status, _)| (name, status));
            // Nobody waits for it any more.
            let _ = tell.send(answer);
        })
        .map_err(|error| CliError::System(format!("starting a thread: {error}")))?;
    let answer = told.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let why = format!("it does not answer within {} s", PATIENCE.as_secs());
        Err(CliError::System(why))
    });
    let (probed, outcome) = match answer {
        Ok((name, status)) => {
            let probed = Probed::of(name, &status);
            let outcome = if probed.ready {
                Outcome::Yes
            } else {
                Outcome::No
            };
            (probed, outcome)
        }
        Err(error) => (Probed::silent(&error), error.outcome()),
    };
    let line = match format {
        Format::Text => probed.line(),
        Format::Json => serde_json::to_string(&probed)
            .map_err(|error| CliError::System(format!("writing JSON: {error}")))?,
    };
    print(&format!("{line}\n"))?;
    Ok(outcome)
}

impl Probed {
    fn of(name: String, status: &Status) -> Self {
        let guarded = || {
            let all = status.interfaces.iter();
            all.filter(|it| it.proof != Proof::Outside)
        };
        let failing: Vec<String> = status
            .interfaces
            .iter()
            .filter(|it| !it.proof.holds())
            .map(|it| format!("{}: {}", it.name, it.proof))
            .collect();
        let why = (!status.ready).then(|| {
            if failing.is_empty() {
                return "no interface enforces".to_owned();
            }
            let mut why = failing[..failing.len().min(NAMED)].join("; ");
            if failing.len() > NAMED {
                why += &format!("; and {} more", failing.len() - NAMED);
            }
            why
        });
        Self {
            ready: status.ready,
            lab: Some(name),
            interfaces: Some(guarded().count()),
            proven: Some(guarded().filter(|it| it.proof == Proof::Proven).count()),
            unread: status.policy.unread.clone(),
            why,
        }
    }

    fn silent(error: &CliError) -> Self {
        Self {
            ready: false,
            lab: None,
            interfaces: None,
            proven: None,
            unread: None,
            why: Some(
                error
                    .to_string()
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
        }
    }

    fn line(&self) -> String {
        let mut line = if self.ready { "ready" } else { "not ready" }.to_owned();
        if let (Some(lab), Some(of), Some(proven)) = (&self.lab, self.interfaces, self.proven) {
            line += &format!(": {lab}: {proven} of {of} interfaces proven");
        }
        for why in self.why.iter().chain(&self.unread) {
            line += &format!(": {why}");
        }
        line
    }
}
