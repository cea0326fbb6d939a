//! `sgwall demo`

use super::{CliError, Outcome};

/// Arguments of `sgwall demo`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Demo.
pub fn run(_args: &Args) -> Result<Outcome, CliError> {
    Ok(Outcome::No)
}
