//! Arguments, tracing, exit code; nothing else.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    sgwall::cli::run(&sgwall::cli::Cli::parse())
}
