//! `sgwall exec`: run a command inside an entity of a running lab.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use clap::ValueHint;
use clap_complete::ArgValueCandidates;

use super::output::to_stderr;
use super::{CliError, Outcome, complete};
use crate::lab::{self, Entry, LAB_VARIABLE, Session};

/// What shells exit with for a command that does not exist.
const NOT_FOUND: i32 = 127;
/// What shells exit with for a command that can't be run.
const NOT_EXECUTABLE: i32 = 126;

/// Arguments of `sgwall exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Inside, every entity of the lab resolves by its name, the host name is the \
entity's, and SGWALL_LAB and SGWALL_ENTITY say where the command is. The exit code is the command's; 127 \
and 126 mean that it was not found or can't be run, 2 that it is unclear which \
lab or that there is no such entity, 3 that no lab could be entered.

Examples:
  sgwall exec web-1 -- curl http://db:5432
  sgwall exec --lab three-tier db")]
pub struct Args {
    /// The lab, where several are running.
    #[arg(long, value_name = "NAME", env = LAB_VARIABLE, add = ArgValueCandidates::new(complete::labs))]
    lab: Option<String>,
    /// End when the process of this number, the parent, ends.
    #[arg(long, value_name = "PID", hide = true)]
    die_with: Option<i32>,
    /// The entity to run the command in.
    #[arg(value_name = "ENTITY", add = ArgValueCandidates::new(complete::entities_of_lab))]
    entity: String,
    /// The command and its arguments; otherwise $SHELL, or /bin/sh.
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_hint = ValueHint::CommandWithArguments
    )]
    command: Vec<OsString>,
}

/// Enters the namespace and becomes the command; comes back only to say why
/// it could not.
pub fn run(args: &Args) -> Result<Outcome, CliError> {
    let shell = shell();
    let (program, arguments) = args.command.split_first().unwrap_or((&shell, &[]));
    let lab = Session::find(args.lab.as_deref())?;
    let entry = Entry::request(lab, &args.entity)?;
    for warning in entry.enter()? {
        to_stderr(&format!("sgwall: {warning}"));
    }
    if let Some(parent) = args.die_with {
        // Only now: changing one's user namespace may undo it.
        lab::die_with_parent(parent)?;
    }

    let error = Command::new(program)
        .args(arguments)
        .envs(entry.environment())
        .exec();
    // The codes are the ones that a shell in the entity would give, which is
    // what scripts around `sgwall exec` look at; they are no `Outcome`.
    let name = program.to_string_lossy();
    let code = if error.kind() == io::ErrorKind::NotFound || !is_on_path(program) {
        to_stderr(&format!("sgwall: {name}: command not found"));
        NOT_FOUND
    } else {
        to_stderr(&format!("sgwall: {name}: {error}"));
        NOT_EXECUTABLE
    };
    std::process::exit(code)
}

/// Returns the user's shell if it exists here: `$SHELL` may come from outside a container.
fn shell() -> OsString {
    std::env::var_os("SHELL")
        .filter(|shell| Path::new(shell).is_file())
        .unwrap_or_else(|| "/bin/sh".into())
}

/// Whether a program exists that the name can stand for. One directory of the
/// path that this user may not look into makes the system call every command
/// that is missing one that is forbidden.
fn is_on_path(program: &OsStr) -> bool {
    if Path::new(program).components().count() > 1 || Path::new(program).has_root() {
        return true;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}
