//! `sgwall check`: is this lab file valid, and if not, where and why.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use serde::Serialize;
use serde_json::{Value, json};

use super::output::{Paint, print, print_json, to_stderr};
use super::{CliError, Format, Outcome};
use crate::config::{self, Diagnostic, Diagnostics, Loaded, Quotas};
use crate::model::Model;

/// Arguments of `sgwall check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 valid, 1 invalid or unreadable, 2 wrong usage.

Examples:
  sgwall check configs/three-tier.yaml
  sgwall check lab.yaml --rules web.yaml --rules db.yaml
  sgwall check lab.yaml --ignore-quotas
  sgwall check labs/*.yaml
  generate-lab | sgwall check -
  sgwall check lab.yaml --format json | jq '.diagnostics[].message'")]
pub struct Args {
    /// The lab file: VPC, subnets, security groups, network ACLs, route tables, entities.
    /// `-` is standard input. Of several files each is a lab of its own.
    #[arg(value_name = "LAB", value_hint = ValueHint::FilePath, required = true)]
    pub labs: Vec<PathBuf>,
    /// A further file with `security_groups` and `prefix_lists`, for each lab; repeatable.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub rules: Vec<PathBuf>,
    /// Take what exceeds AWS's quotas for a warning, not for a mistake.
    #[arg(long)]
    pub ignore_quotas: bool,
    /// How to write the answer.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Checks the files and prints what is wrong with them.
///
/// # Errors
/// [`CliError::System`] if the answer can't be written.
pub fn run(args: &Args) -> Result<Outcome, CliError> {
    let options = options(args.ignore_quotas);
    let mut answers: Vec<Value> = Vec::new();
    let mut all_valid = true;
    for lab in &args.labs {
        let loaded = config::load_with(lab, &args.rules, options);
        all_valid &= loaded.is_ok();
        let files = names(lab, &args.rules);
        match (loaded, args.format) {
            (Ok(loaded), Format::Text) => {
                print_text(&loaded.warnings);
                let summary = Summary::of(&loaded.model);
                print(&format!("{}: valid: {summary}\n", files[0]))?;
            }
            (Ok(loaded), Format::Json) => answers.push(json!({
                "valid": true,
                "files": files,
                "summary": Summary::of(&loaded.model),
                "diagnostics": loaded.warnings,
            })),
            (Err(found), Format::Text) => report_text(&files, &found),
            (Err(found), Format::Json) => answers.push(invalid(&files, &found)),
        }
    }
    if args.format == Format::Json {
        match &answers[..] {
            [answer] => print_json(answer)?,
            labs => print_json(&json!({ "valid": all_valid, "labs": labs }))?,
        }
    }
    Ok(if all_valid { Outcome::Yes } else { Outcome::No })
}

/// How a command reads files.
pub(super) fn options(ignore_quotas: bool) -> config::Options {
    let quotas = if ignore_quotas {
        Quotas::Warn
    } else {
        Quotas::Enforce
    };
    config::Options { quotas }
}

/// Reads the files for any command that needs them. What is wrong is printed,
/// as text to stderr or as one JSON object to stdout, and gives the outcome to
/// end with. Warnings of valid files go to stderr as text; with JSON they are
/// left to the command, in [`Loaded::warnings`].
pub(super) fn load_or_report(
    lab: &Path,
    rules: &[PathBuf],
    options: config::Options,
    format: Format,
) -> Result<Loaded, Outcome> {
    let loaded = config::load_with(lab, rules, options)
        .map_err(|found| report(&names(lab, rules), &found, format))?;
    if format == Format::Text {
        print_text(&loaded.warnings);
    }
    Ok(loaded)
}

/// Prints what is wrong with `files`, as text to stderr or as one JSON object
/// to stdout, and returns the outcome to end with.
pub(super) fn report(files: &[String], found: &Diagnostics, format: Format) -> Outcome {
    let written = match format {
        Format::Text => {
            report_text(files, found);
            Ok(())
        }
        Format::Json => print_json(&invalid(files, found)),
    };
    written.map_or_else(|error| error.report(Format::Text), |()| Outcome::No)
}

fn report_text(files: &[String], found: &Diagnostics) {
    print_text(found);
    to_stderr(&format!(
        "\n{}: invalid: {}",
        files.join(" + "),
        count(found)
    ));
}

fn invalid(files: &[String], found: &Diagnostics) -> Value {
    json!({
        "valid": false,
        "files": files,
        "summary": null,
        "diagnostics": found.to_json(),
    })
}

/// What a valid lab holds.
#[derive(Debug, Serialize)]
struct Summary {
    subnets: usize,
    prefix_lists: usize,
    security_groups: usize,
    rules: usize,
    network_acls: usize,
    route_tables: usize,
    entities: usize,
    interfaces: usize,
}

impl Summary {
    fn of(model: &Model) -> Self {
        let groups = &model.security_groups;
        Self {
            subnets: model.subnets.len(),
            prefix_lists: model.prefix_lists.len(),
            security_groups: groups.len(),
            rules: groups
                .iter()
                .map(|group| group.ingress.len() + group.egress.len())
                .sum(),
            network_acls: model.network_acls.len(),
            route_tables: model.route_tables.len(),
            entities: model.entities.len(),
            interfaces: model.interfaces.len(),
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}, {}, {}, {}, {}, {}, {}, {}",
            counted(self.subnets, "subnet", "subnets"),
            counted(self.prefix_lists, "prefix list", "prefix lists"),
            counted(self.security_groups, "security group", "security groups"),
            counted(self.rules, "rule", "rules"),
            counted(self.network_acls, "network ACL", "network ACLs"),
            counted(self.route_tables, "route table", "route tables"),
            counted(self.entities, "entity", "entities"),
            counted(self.interfaces, "interface", "interfaces"),
        )
    }
}

fn names(lab: &Path, rules: &[PathBuf]) -> Vec<String> {
    let files = std::iter::once(lab).chain(rules.iter().map(PathBuf::as_path));
    files.map(config::shown).collect()
}

fn count(found: &Diagnostics) -> String {
    let errors = counted(found.errors(), "error", "errors");
    match found.warnings() {
        0 => errors,
        warnings => format!("{errors}, {}", counted(warnings, "warning", "warnings")),
    }
}

/// `1 rule`, `2 rules`.
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    let noun = if count == 1 { one } else { many };
    format!("{count} {noun}")
}

fn print_text<'a>(diagnostics: impl IntoIterator<Item = &'a Diagnostic>) {
    let colour = Paint::stderr().is_on();
    let texts: Vec<String> = diagnostics
        .into_iter()
        .map(|diagnostic| diagnostic.render(colour))
        .collect();
    if !texts.is_empty() {
        to_stderr(texts.join("\n").trim_end());
    }
}
