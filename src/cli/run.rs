//! `sgwall run`: bring a lab up, prove it, keep it enforcing, take it down.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::ValueHint;
use clap::builder::RangedU64ValueParser;
use crossbeam::channel::{self, Receiver, RecvTimeoutError};
use serde_json::{Value, json};

use super::drops::DropReader;
use super::engine_args::EngineArgs;
use super::output::{Paint, Printer, print};
use super::signals::{self, Event};
use super::standing::Standing;
use super::teller::Teller as Plain;
use super::watch::{LOOK, Seen, Watch, tell_obstacle};
use super::{CliError, Format, Outcome, check, file_limit_advice};
use crate::config::{self, Loaded};
use crate::engine::{ReplaceError, default_workers};
use crate::lab::{self, CommandEvent, DeviceState, Privilege, RunCommands, Session, Stream};
use crate::model::{InterfaceIx, Model};
use crate::observe::drops::DropReport;

/// Arguments of `sgwall run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
While it runs:
  sgwall exec ENTITY -- COMMAND    run a command inside an entity
  sgwall status                    counters, drops by reason, what is proven
Saving a rule file, or SIGHUP, puts the new rules in force; a file with a
mistake changes nothing. Save by renaming: a file that is written in place is read
once nobody writes to it, it ends with a newline and it has rested for a second.
Ctrl-C, SIGTERM or closing the terminal takes the lab down; another signal, after
a second, ends the program without that, and the next run of the name cleans up.

Exit code: 0 ended as asked, 1 the files are invalid, 3 the system refused or
an interface could not be proven to enforce.")]
pub struct Args {
    /// The lab file.
    #[arg(value_name = "LAB", value_hint = ValueHint::FilePath)]
    lab: PathBuf,
    /// Further files with security groups (repeatable).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    rules: Vec<PathBuf>,
    /// Name of the lab; otherwise the lab file's, without its ending.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Worker threads, 64 at the most.
    #[arg(long, value_name = "N", default_value_t = default_workers(),
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    workers: usize,
    #[command(flatten)]
    engine: EngineArgs,
    /// Go on even if an interface can't be proven to enforce.
    #[arg(long)]
    allow_unproven: bool,
    /// Take what exceeds AWS's quotas for a warning, not for a mistake.
    #[arg(long)]
    ignore_quotas: bool,
    /// Say which packets are dropped, and why: at most 10 a second with the same reason
    /// and 50 in all for each worker; the others are counted.
    #[arg(long)]
    log_drops: bool,
    /// How events are written; JSON is one object a line.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Runs the lab until it is told to stop.
///
/// # Errors
/// [`CliError::System`] for whatever the system refused.
pub fn run(args: &Args) -> Result<Outcome, CliError> {
    let files = std::iter::once(&args.lab).chain(&args.rules).cloned();
    let mut watch = Watch::new(files.collect());
    if let Some(file) = watch.pipe() {
        return Err(CliError::Usage(Watch::cannot_reread(file)));
    }
    let loaded = loop {
        watch.wait()?;
        match load(args) {
            Ok(loaded) if watch.finish() => break loaded,
            Ok(_) => {}
            Err(outcome) => return Ok(outcome),
        }
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => Session::name_for(&args.lab),
    };

    // Before the first thread: a user namespace can be entered only then.
    lab::prepare()?;
    let (printer, printed) = Printer::start()?;
    let teller = Teller::new(printer, args.format, &loaded.model);
    let outcome = hold(args, &name, &loaded.model, watch, &teller);
    drop(teller);
    printed.wait();
    outcome
}

/// Brings the lab up and keeps it until it is told to stop.
fn hold(
    args: &Args,
    name: &str,
    model: &Model,
    watch: Watch,
    teller: &Teller,
) -> Result<Outcome, CliError> {
    let (tell, told) = channel::unbounded();
    let stopping = signals::watch(tell)?;
    let session = Session::start(name)?;
    for warning in watch
        .warnings()
        .into_iter()
        .chain(args.engine.warning(args.workers))
    {
        teller.say("warning", &warning, json!({ "why": warning }));
    }
    let options = args.engine.options(args.workers, args.log_drops);
    let standing = Standing::up(session, model, options, args.engine.offload())?;

    let unproven = standing.appliance.unproven();
    teller.up(&standing, model, &unproven);
    if !unproven.is_empty() && !args.allow_unproven {
        return Ok(Outcome::System);
    }
    if stopping.load(Ordering::Acquire) {
        return Ok(Outcome::Yes);
    }
    let drops = if args.log_drops {
        let teller = teller.clone();
        let tell = move |report: &DropReport| teller.dropped(report);
        Some(DropReader::start(Arc::clone(&standing.appliance), tell)?)
    } else {
        None
    };
    let commands = start_commands(&standing, model, teller)?;
    let reloader = Reloader {
        args,
        standing: &standing,
        model,
        teller,
    };
    reloader.until_stopped(&told, watch);

    teller.say("stopping", "taking the lab down", json!({}));
    drop(commands);
    // It holds a share in the appliance, which forwards for as long as somebody does.
    drop(drops);
    drop(standing);
    Ok(Outcome::Yes)
}

/// Reads the files; what is wrong with them is said in the format of all other
/// events.
fn load(args: &Args) -> Result<Loaded, Outcome> {
    let options = check::options(args.ignore_quotas);
    if args.format == Format::Text {
        return check::load_or_report(&args.lab, &args.rules, options, args.format);
    }
    match config::load_with(&args.lab, &args.rules, options) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                let line = json!({ "event": "warning", "diagnostics": [warning] });
                let _ = print(&format!("{line}\n"));
            }
            Ok(loaded)
        }
        Err(found) => {
            let line = json!({ "event": "invalid", "diagnostics": found.to_json() });
            let written = print(&format!("{line}\n"));
            Err(written.map_or_else(|error| error.report(Format::Text), |()| Outcome::No))
        }
    }
}

fn start_commands(
    standing: &Standing,
    model: &Model,
    teller: &Teller,
) -> Result<RunCommands, CliError> {
    let teller = teller.clone();
    standing
        .lab
        .spawn_run_commands(model, move |entity, name, event| {
            teller.command(entity.ix(), name, event);
        })
        .map_err(CliError::from)
}

/// Puts changed files in force.
struct Reloader<'a> {
    args: &'a Args,
    standing: &'a Standing,
    /// The model at the start: devices keep its order.
    model: &'a Model,
    teller: &'a Teller,
}

impl Reloader<'_> {
    fn until_stopped(&self, told: &Receiver<Event>, mut watch: Watch) {
        let mut gone = BTreeSet::new();
        loop {
            self.tell_devices(&mut gone);
            match told.recv_timeout(LOOK) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Event::Reload) => watch.ask(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let appliance = &self.standing.appliance;
            match watch.look() {
                Seen::Nothing => {}
                Seen::Obstacle(why) => tell_obstacle(why, &self.teller.plain, appliance),
                Seen::Changed => match watch.pipe() {
                    None => self.reload(&mut watch),
                    Some(file) => {
                        let why = Watch::cannot_reread(file);
                        watch.finish();
                        appliance.refuse(why.clone());
                        self.refused(&why, json!({ "why": why }));
                    }
                },
            }
        }
    }

    /// Reports devices that are gone, and devices that were set down or up inside their entities.
    /// `gone` holds the devices already reported as gone.
    fn tell_devices(&self, gone: &mut BTreeSet<usize>) {
        let Standing { appliance, lab, .. } = self.standing;
        let say = |event, at: InterfaceIx, text: &str, why: Option<&String>| {
            let entity = &self.model.entity_of(at).name;
            let device = self.model.interfaces[at.ix()].device_name();
            let mut details = json!({ "entity": entity, "device": device });
            if let Some(why) = why {
                details["why"] = why.as_str().into();
            }
            let text = format!("device {device} of {entity} {text}");
            self.teller.say(event, &text, details);
        };
        for (at, state) in lab.device_changes() {
            let (event, text, why) = match state {
                DeviceState::Down => {
                    let why = "its device is down, nothing passes; inside the entity, \
                               `ip link set dev DEVICE up` brings it back with its routes";
                    let device = self.model.interfaces[at.ix()].device_name();
                    let why = why.replace("DEVICE", &device);
                    (
                        "down",
                        "was set down inside: nothing passes it".to_owned(),
                        Some(why),
                    )
                }
                DeviceState::Up => {
                    let text = "is up again; its addresses and routes were put back";
                    ("up", text.to_owned(), None)
                }
                DeviceState::Unrestored(why) => {
                    let why =
                        format!("its routes could not be put back ({why}): start the lab again");
                    ("down", format!("is up again, but {why}"), Some(why))
                }
            };
            appliance.set_impaired(&self.model.interfaces[at.ix()].id, why.clone());
            say(event, at, &text, why.as_ref());
        }
        for (at, _) in self.model.interfaces() {
            let broken = appliance.engine().is_broken(at);
            if broken && gone.insert(at.ix()) {
                let text = "is gone: nothing passes it; start the lab again";
                say("gone", at, text, None);
            } else if !broken && gone.remove(&at.ix()) {
                say("back", at, "can be read again", None);
            }
        }
    }

    fn reload(&self, watch: &mut Watch) {
        let appliance = &self.standing.appliance;
        let before = appliance.engine().policy().generation();
        let options = check::options(self.args.ignore_quotas);
        let loaded = config::load_with(&self.args.lab, &self.args.rules, options);
        if !watch.finish() {
            return;
        }
        let replaced = match loaded {
            Ok(Loaded {
                model, warnings, ..
            }) => {
                for warning in &warnings {
                    self.teller.say(
                        "warning",
                        &warning.render(Paint::stderr().is_on()),
                        json!({ "diagnostics": [warning] }),
                    );
                }
                appliance.replace(model).map_err(|error| match error {
                    ReplaceError::Topology(change) => {
                        let why = change.to_string();
                        (why.clone(), json!({ "why": why }))
                    }
                    ReplaceError::Engine(error) => {
                        let why = format!(
                            "{error}; the other workers judge by the new rules: start the lab again"
                        );
                        (why.clone(), json!({ "why": why, "stuck": true }))
                    }
                })
            }
            Err(found) => {
                let text = found.render(Paint::stderr().is_on());
                appliance.refuse(found.to_string());
                Err((text, json!({ "diagnostics": found.to_json() })))
            }
        };
        match replaced {
            Ok(generation) => self.teller.plain.reloaded(before, generation),
            Err((why, details)) => self.refused(&why, details),
        }
    }

    fn refused(&self, why: &str, details: Value) {
        let text = if details.get("stuck").is_some() {
            why.to_owned()
        } else {
            format!("{why}\nnothing changed: the rules in force stay")
        };
        self.teller.say("refused", &text, details);
    }
}

/// Tells what happens to the lab and to its commands.
#[derive(Debug, Clone)]
struct Teller {
    plain: Plain,
    paint: Paint,
    /// Width of the names before the commands' output.
    names: usize,
}

impl Teller {
    fn new(printer: Printer, format: Format, model: &Model) -> Self {
        let names = model
            .entities
            .iter()
            .filter(|entity| entity.run.is_some())
            .map(|entity| entity.name.len());
        Self {
            plain: Plain::new(printer, format),
            paint: Paint::stdout(),
            names: names.max().unwrap_or(0),
        }
    }

    fn say(&self, event: &str, text: &str, details: Value) {
        self.plain.say(event, text, details);
    }

    fn up(&self, standing: &Standing, model: &Model, unproven: &[(String, String)]) {
        let status = standing.appliance.status();
        let guarded = model
            .interfaces
            .iter()
            .filter(|interface| !interface.is_external())
            .count();
        let lab = standing.lab.session().name();
        let details = json!({
            "lab": lab,
            "pid": status.pid,
            "generation": status.policy.generation,
            "interfaces": guarded,
            "proven": guarded - unproven.len(),
            "made_ms": standing.made_in.as_secs_f64() * 1e3,
            "proven_ms": standing.proven_in.as_secs_f64() * 1e3,
            "unproven": unproven.iter().map(|(name, why)| json!({ "interface": name, "why": why })).collect::<Vec<_>>(),
        });
        if unproven.is_empty() {
            let text = format!(
                "lab {lab} is enforcing: {guarded} of {guarded} interfaces proven, {} entities up{} in {:.0} ms, proven in {:.0} ms",
                model.entities.len(),
                match standing.lab.privilege() {
                    Privilege::Root => "",
                    Privilege::UserNamespace => " in a user namespace",
                },
                standing.made_in.as_secs_f64() * 1e3,
                standing.proven_in.as_secs_f64() * 1e3,
            );
            self.say("enforcing", &text, details);
            if self.plain.format() == Format::Text
                && let Some(entity) = model.entities.first()
            {
                // Where others run too, a command has to say which lab it means.
                let alone = Session::list().is_ok_and(|labs| labs.len() <= 1);
                let which = if alone {
                    String::new()
                } else {
                    format!(" --lab {lab}")
                };
                let hint = format!(
                    "  sgwall exec{which} {} -- COMMAND   sgwall status{which}   save the file to change rules   Ctrl-C ends",
                    entity.name
                );
                self.plain.line(Stream::Stderr, hint);
            }
        } else {
            let mut text = format!(
                "lab {lab} is NOT enforcing: {} of {guarded} interfaces could not be proven",
                unproven.len()
            );
            for (name, why) in unproven {
                text += &format!("\n  {name}: {why}");
            }
            text += file_limit_advice(&text);
            self.say("unproven", &text, details);
        }
    }

    fn dropped(&self, report: &DropReport) {
        let details = serde_json::to_value(report).unwrap_or_default();
        self.say("drop", &report.to_string(), details);
    }

    fn command(&self, n: usize, name: &str, event: CommandEvent<'_>) {
        let prefix = format!("{name:>width$} |", width = self.names);
        let prefix = self.paint.tag(n, &prefix);
        match (event, self.plain.format()) {
            (CommandEvent::Line(Stream::Stdout, line), Format::Text) => {
                self.plain.line(Stream::Stdout, format!("{prefix} {line}"));
            }
            (CommandEvent::Line(Stream::Stderr, line), Format::Text) => {
                self.plain.line(Stream::Stderr, format!("{prefix} {line}"));
            }
            (CommandEvent::Line(stream, line), Format::Json) => {
                let stream = match stream {
                    Stream::Stdout => "stdout",
                    Stream::Stderr => "stderr",
                };
                let details = json!({ "entity": name, "stream": stream, "line": line });
                self.say("output", "", details);
            }
            (CommandEvent::Exited(status), _) => {
                let text = format!("the command of {name} ended: {status}");
                let details = json!({ "entity": name, "code": ExitStatus::code(&status) });
                self.say("exited", &text, details);
            }
            (CommandEvent::Failed(error), _) => {
                let text = format!("the command of {name} can't be run: {error}");
                let details = json!({ "entity": name, "why": error.to_string() });
                self.say("failed", &text, details);
            }
        }
    }
}
