//! The command line: one file per subcommand, each of which makes a value and
//! prints it as text or JSON. Exit codes are the same everywhere: 0 allowed,
//! valid, as expected; 1 denied, invalid, not as expected; 2 wrong usage; 3 the
//! system refused.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this floor talks to people"
)]

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

pub mod check;
pub mod exec;
pub mod explain;
mod output;

/// AWS security groups that filter real packets on your own machine.
#[derive(Debug, Parser)]
#[command(name = "sgwall", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a lab file and its rule files without starting anything.
    Check(check::Args),
    /// Explain whether a packet passes, and which rule decides.
    Explain(explain::Args),
    /// Run a command inside an entity of a running lab.
    Exec(exec::Args),
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// How a command ended; the number is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Allowed, valid, as expected.
    Yes = 0,
    /// Denied, invalid, not as expected.
    No = 1,
    /// The arguments make no sense.
    Usage = 2,
    /// The system refused: privilege, device, namespace.
    System = 3,
}

/// Why a command could not answer.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments make no sense; the text says how to mend them.
    #[error("{0}")]
    Usage(String),
    /// The system refused; the text says what to do about it.
    #[error("{0}")]
    System(String),
}

impl CliError {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Usage(_) => Outcome::Usage,
            Self::System(_) => Outcome::System,
        }
    }
}

/// Runs the command and gives the process's exit code.
pub fn run(cli: &Cli) -> ExitCode {
    let outcome = match &cli.command {
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Exec(args) => exec::run(args),
    };
    let outcome = outcome.unwrap_or_else(|error| {
        eprintln!("sgwall: {error}");
        error.outcome()
    });
    ExitCode::from(outcome as u8)
}
