//! The command line: one file per subcommand, each of which makes a value and
//! prints it as text or JSON. Exit codes are the same everywhere: 0 allowed,
//! valid, as expected; 1 denied, invalid, not as expected; 2 wrong usage; 3 the
//! system refused.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use clap_complete::{CompleteEnv, Shell};
use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::lab::LabError;

pub mod check;
mod complete;
pub mod demo;
mod drops;
mod engine_args;
pub mod exec;
pub mod explain;
mod output;
pub mod pause;
pub mod replay;
pub mod run;
pub mod sidecar;
mod signals;
mod standing;
pub mod status;
mod teller;
mod watch;

/// AWS security groups that filter real packets on your own machine.
#[derive(Debug, Parser)]
#[command(
    name = "sgwall",
    version,
    propagate_version = true,
    after_help = "\
Start here:
  sgwall demo                          a lab that explains itself, in seconds
  sgwall run configs/three-tier.yaml   a lab to work with

Exit codes: 0 allowed, valid, as expected; 1 denied, invalid, not as expected;
2 wrong usage; 3 the system refused."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What to log to standard error: error, warn, info, debug, or a filter
    /// such as sgwall::engine=debug.
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "SGWALL_LOG",
        default_value = "warn"
    )]
    pub log: String,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring up a small lab, try every pair, revoke a rule live, take it down.
    Demo(demo::Args),
    /// Bring up a lab and keep it enforcing until Ctrl-C.
    Run(run::Args),
    /// Run a command inside an entity of a running lab.
    Exec(exec::Args),
    /// Guard the interfaces of the namespace that this runs in: a container's sidecar.
    Sidecar(sidecar::Args),
    /// Close the namespace that this runs in, and hold it for a workload and its sidecar.
    Pause(pause::Args),
    /// Ask a running lab or sidecar for its counters, drops and proofs.
    Status(status::Args),
    /// Check a lab file and its rule files without starting anything.
    Check(check::Args),
    /// Explain whether a packet passes, and which rule decides.
    Explain(explain::Args),
    /// Replay a list of packets through a lab's rules, on a clock of its own.
    Replay(replay::Args),
    /// Print a completion script for a shell.
    #[command(after_help = "\
The script asks sgwall, so that it knows running labs and their entities. Print it
again after an update of sgwall.

Example:
  mkdir -p ~/.local/share/bash-completion/completions
  sgwall completions bash > ~/.local/share/bash-completion/completions/sgwall")]
    Completions {
        /// The shell.
        shell: Shell,
    },
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
    #[error("{text}{advice}", text = .0, advice = file_limit_advice(.0))]
    System(String),
}

/// Returns advice on the limit of open files if `text` reports that the limit was reached.
fn file_limit_advice(text: &str) -> &'static str {
    // The text that `io::Error` and `Errno` use for EMFILE.
    if text.contains("Too many open files") {
        "\n  raise the limit of open files: ulimit -n 4096"
    } else {
        ""
    }
}

impl From<LabError> for CliError {
    fn from(error: LabError) -> Self {
        let text = error.to_string();
        match error {
            LabError::UnknownEntity { .. }
            | LabError::BadLabName(_)
            | LabError::WhichLab { .. } => Self::Usage(text),
            _ => Self::System(text),
        }
    }
}

impl CliError {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Usage(_) => Outcome::Usage,
            Self::System(_) => Outcome::System,
        }
    }

    /// Writes the error, as text to standard error or as one JSON object to
    /// standard output, and returns the outcome to end with.
    fn report(&self, format: Format) -> Outcome {
        let text = self.to_string();
        let outcome = self.outcome();
        if format == Format::Json {
            let error = json!({ "event": "error", "code": outcome as u8, "error": text });
            match output::print(&format!("{error}\n")) {
                Ok(()) => return outcome,
                Err(error) if error.to_string() == text => {}
                Err(error) => output::to_stderr(&format!("sgwall: {error}")),
            }
        }
        output::to_stderr(&format!("sgwall: {text}"));
        outcome
    }
}

/// Reads the arguments, runs the command and returns the process's exit code.
pub fn main() -> ExitCode {
    // If a shell asks for completions, prints them and ends the process.
    CompleteEnv::with_factory(Cli::command)
        .var(complete::VARIABLE)
        .complete();
    let parsed = Cli::command().try_get_matches().and_then(|matches| {
        // Commands without `--format` write text only.
        let format = matches
            .subcommand()
            .and_then(|(_, matches)| matches.try_get_one::<Format>("format").ok().flatten())
            .copied()
            .unwrap_or_default();
        Cli::from_arg_matches(&matches).map(|cli| (cli, format))
    });
    match parsed {
        Ok((cli, format)) => {
            let outcome = run(&cli).unwrap_or_else(|error| error.report(format));
            ExitCode::from(outcome as u8)
        }
        Err(error) => answer_without_command(&error),
    }
}

/// Writes the help, the version, or an argument error.
fn answer_without_command(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        if json_is_wanted() {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            let outcome = CliError::Usage(text.to_owned()).report(Format::Json);
            return ExitCode::from(outcome as u8);
        }
        // If this fails too, there is nowhere left to report it.
        let _ = error.print();
    } else {
        let written = error.print().and_then(|()| std::io::stdout().flush());
        if let Err(error) = output::written(written) {
            return ExitCode::from(error.report(Format::Text) as u8);
        }
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Outcome::Usage as u8))
}

/// Returns true if arguments that can't be parsed ask for JSON.
fn json_is_wanted() -> bool {
    let arguments: Vec<_> = std::env::args_os()
        .take_while(|argument| argument != "--")
        .collect();
    arguments.iter().any(|argument| argument == "--format=json")
        || arguments
            .windows(2)
            .any(|pair| pair[0] == "--format" && pair[1] == "json")
}

fn run(cli: &Cli) -> Result<Outcome, CliError> {
    start_logging(&cli.log).and_then(|()| match &cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Run(args) => run::run(args),
        Command::Exec(args) => exec::run(args),
        Command::Sidecar(args) => sidecar::run(args),
        Command::Pause(args) => pause::run(args),
        Command::Status(args) => status::run(args),
        Command::Check(args) => check::run(args),
        Command::Explain(args) => explain::run(args),
        Command::Replay(args) => replay::run(args),
        Command::Completions { shell } => completions(*shell),
    })
}

fn start_logging(filter: &str) -> Result<(), CliError> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| CliError::Usage(format!("--log {filter}: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // tracing would report the failure on standard error, and panic if that fails too.
        .log_internal_errors(false)
        .init();
    Ok(())
}

fn completions(shell: Shell) -> Result<Outcome, CliError> {
    output::print(&complete::script(shell)?)?;
    Ok(Outcome::Yes)
}
