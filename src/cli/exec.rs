//! `sgwall exec`: run a command inside an entity of a running lab.

use super::{CliError, Outcome};

/// Arguments of `sgwall exec`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Enters the namespace and becomes the command.
pub fn run(_args: &Args) -> Result<Outcome, CliError> {
    Ok(Outcome::No)
}
