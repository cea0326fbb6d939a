//! Shell completion of names that only a running lab or a lab file knows. The shell's script runs
//! this program with the words typed so far as arguments.

use std::path::Path;

use clap_complete::Shell;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;

use super::CliError;
use crate::config;
use crate::lab::control::{Client, Request};
use crate::lab::{LAB_VARIABLE, Session};
use crate::observe::Status;

/// Environment variable through which a shell's script requests completions. Its value is the
/// name of the shell.
pub(super) const VARIABLE: &str = "SGWALL_COMPLETE";

/// Returns the completion script for a shell.
pub(super) fn script(shell: Shell) -> Result<String, CliError> {
    let mut script = Vec::new();
    Shells::builtins()
        .completer(&shell.to_string())
        .ok_or_else(|| CliError::Usage(format!("there is no completion for {shell}")))?
        .write_registration(VARIABLE, "sgwall", "sgwall", "sgwall", &mut script)
        .map_err(|error| CliError::System(format!("writing a script: {error}")))?;
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// Returns the running labs.
pub(super) fn labs() -> Vec<CompletionCandidate> {
    let labs = Session::list().unwrap_or_default();
    candidates(labs.into_iter().map(|lab| lab.name))
}

/// Returns the entities of the lab that `--lab` or the environment names, or of the only running
/// lab.
pub(super) fn entities_of_lab() -> Vec<CompletionCandidate> {
    let words = words();
    let named = words
        .iter()
        .enumerate()
        .find_map(|(at, word)| match word.strip_prefix("--lab") {
            Some("") => words.get(at + 1).cloned(),
            Some(value) => value.strip_prefix('=').map(str::to_owned),
            None => None,
        });
    let lab = named.or_else(|| std::env::var(LAB_VARIABLE).ok());
    let ask = || {
        let lab = Session::find(lab.as_deref()).ok()?;
        let (body, _) = Client::connect(&lab)
            .ok()?
            .call(&Request::new("status"))
            .ok()?;
        serde_json::from_value::<Status>(body).ok()
    };
    let interfaces = ask().map(|status| status.interfaces).unwrap_or_default();
    let entity = |name: String| name.split('/').next().map(str::to_owned);
    candidates(
        interfaces
            .into_iter()
            .filter_map(|interface| entity(interface.name)),
    )
}

/// Returns the entities of the lab file on the command line, with their interfaces if an entity
/// has several.
pub(super) fn peers_of_file() -> Vec<CompletionCandidate> {
    let words = words();
    let files = words.iter().map(Path::new).filter(|path| path.is_file());
    // The first word is the program.
    let Some(loaded) = files
        .skip_while(|path| path.ends_with("sgwall"))
        .find_map(|path| config::load(path, &[]).ok())
    else {
        return Vec::new();
    };
    let model = loaded.model;
    let interfaces = model.interfaces().map(|(at, _)| model.interface_label(at));
    let entities = model.entities.iter().map(|entity| entity.name.clone());
    candidates(entities.chain(interfaces))
}

/// Returns the words typed so far, starting with the program. They follow `--`.
fn words() -> Vec<String> {
    let typed = std::env::args_os().skip_while(|word| word != "--").skip(1);
    typed
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// Returns each name once, sorted.
fn candidates(names: impl Iterator<Item = String>) -> Vec<CompletionCandidate> {
    let names: std::collections::BTreeSet<String> = names.collect();
    names.into_iter().map(CompletionCandidate::new).collect()
}
