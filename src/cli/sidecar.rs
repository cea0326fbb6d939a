//! `sgwall sidecar`: take the interfaces of the namespace that it is in, prove that they
//! are guarded, keep them so.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::RangedU64ValueParser;
use clap::{ValueEnum, ValueHint};
use crossbeam::channel;
use serde_json::json;

use super::drops::DropReader;
use super::engine_args::EngineArgs;
use super::output::{Paint, Printer, print, to_stderr};
use super::signals;
use super::teller::Teller;
use super::watch::Watch;
use super::{CliError, Format, Outcome, check, file_limit_advice};
use crate::config::{self, LoadedRules};
use crate::lab::Session;
use crate::model::{EntityKind, LoadBalancer, Model};
use crate::sidecar::members::Names;
use crate::sidecar::world::{self, Asked};

mod guard;
mod standing;

use guard::{Guard, SharedNames};
use standing::{Closed, Standing, Unprivileged};

/// Shortest time between two times that names are resolved.
const MOST_OFTEN: u64 = 1;
/// Longest.
const LEAST_OFTEN: u64 = 3600;

/// Arguments of `sgwall sidecar`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
It takes every interface of its network namespace but lo, guards it by the groups,
and says so once that is proven. Before that, and after it was killed, nothing passes.

It needs the capabilities NET_ADMIN and NET_RAW, and /dev/net/tun:
  docker run --network container:APP --cap-drop ALL --cap-add NET_ADMIN --cap-add NET_RAW \\
    --device /dev/net/tun --read-only --security-opt no-new-privileges \\
    -v ./rules:/rules:ro IMAGE sidecar --rules /rules/rules.yaml --group web
Mount the folder of the rules: a file that is mounted by itself stays the old one when
an editor saves it by renaming.

Saving a rule file, or SIGHUP, puts the new rules in force; a file with a mistake
changes nothing. Save by renaming: a file that is written in place is read once nobody
writes to it, it ends with a newline and it has rested for a second. `sgwall status --probe` is the health check.

Exit code: 0 ended as asked, 1 the files are invalid, 2 wrong usage, 3 the system
refused, an interface could not be proven to be guarded, or its device went away.")]
pub struct Args {
    /// A file with `security_groups` and `prefix_lists` (repeatable, or by commas).
    #[arg(long, value_name = "FILE", required = true, value_hint = ValueHint::FilePath,
        env = "SGWALL_RULES", value_delimiter = ',')]
    rules: Vec<PathBuf>,
    /// A security group that the interfaces carry, by name or id (repeatable, or by commas).
    #[arg(
        long = "group",
        value_name = "NAME",
        required = true,
        env = "SGWALL_GROUPS",
        value_delimiter = ',',
        value_parser = item
    )]
    groups: Vec<String>,
    /// An interface to take (repeatable); otherwise all but lo. Those that are not named
    /// stay open.
    #[arg(long = "interface", value_name = "NAME", value_parser = item)]
    interfaces: Vec<String>,
    /// What becomes of the interfaces when the sidecar is told to end. A sidecar that is
    /// killed leaves them closed, always.
    #[arg(long, value_enum, value_name = "STATE", default_value_t)]
    on_exit: OnExit,
    /// Seconds after which the names of members are resolved again at the latest; where
    /// their TTL is shorter, when that has passed.
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(MOST_OFTEN..=LEAST_OFTEN))]
    refresh: u64,
    /// The resolver that the workload may always ask, as AWS's own (repeatable); otherwise
    /// those of /etc/resolv.conf. `none` for none.
    #[arg(long = "resolver", value_name = "ADDRESS", value_parser = item)]
    resolvers: Vec<String>,
    /// What the workload stands in for. Flows of a network load balancer are always tracked.
    #[arg(long, value_enum, default_value_t)]
    kind: Kind,
    /// Name under which `sgwall status` finds it.
    #[arg(long, value_name = "NAME", default_value = "sidecar")]
    name: String,
    /// Worker threads.
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=64))]
    workers: usize,
    #[command(flatten)]
    engine: EngineArgs,
    /// Take what exceeds AWS's quotas for a warning, not for a mistake.
    #[arg(long)]
    ignore_quotas: bool,
    /// Don't say which packets are dropped. `sgwall status` shows the last ones anyway.
    #[arg(long)]
    no_log_drops: bool,
    /// Check files and groups, and end; nothing is touched.
    #[arg(long)]
    check: bool,
    /// How events are written; JSON is one object a line.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What becomes of the interfaces in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum OnExit {
    /// Nothing passes.
    #[default]
    Closed,
    /// They are the workload's own again, unguarded.
    Open,
}

/// What the workload stands in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Kind {
    /// A virtual machine.
    Ec2,
    /// A database instance.
    Rds,
    /// An application load balancer.
    Elb,
    /// A network load balancer.
    Nlb,
    /// A task.
    #[default]
    Ecs,
}

impl From<Kind> for EntityKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Ec2 => Self::Ec2,
            Kind::Rds => Self::Rds,
            Kind::Elb => Self::Elb(LoadBalancer::Application),
            Kind::Nlb => Self::Elb(LoadBalancer::Network),
            Kind::Ecs => Self::Ecs,
        }
    }
}

/// Guards the workload until it is told to stop.
///
/// # Errors
/// [`CliError::System`] for whatever the system refused.
pub fn run(args: &Args) -> Result<Outcome, CliError> {
    // Until there is something to take down: what was taken by then stays closed.
    let at_once = signals::stop_at_once()?;
    let mut watch = Watch::new(args.rules.clone());
    if !args.check
        && let Some(file) = watch.pipe()
    {
        return Err(CliError::Usage(Watch::cannot_reread(file)));
    }
    check_groups(args)?;
    Session::check_name(&args.name)?;
    let asked = Asked {
        groups: args.groups.clone(),
        resolvers: resolvers(&args.resolvers)?,
        kind: Some(args.kind.into()),
    };
    let rules = loop {
        if !args.check {
            watch.wait()?;
        }
        match load(args) {
            Ok(rules) if args.check || watch.finish() => break rules,
            Ok(_) => {}
            Err(outcome) => return Ok(outcome),
        }
    };
    // A wrong group is wrong usage, not a state of the system.
    world::model(&rules, &asked, &[], BTreeMap::new())
        .map_err(|unknown| CliError::Usage(unknown.to_string()))?;
    if args.check {
        print(&format!(
            "valid: {}, {} in all; guarded by {}\n",
            check::counted(rules.members.len(), "member", "members"),
            check::counted(
                rules.security_groups.len(),
                "security group",
                "security groups"
            ),
            args.groups.join(", "),
        ))?;
        return Ok(Outcome::Yes);
    }
    let closed = Closed::take(&standing::Wanted {
        name: &args.name,
        interfaces: &args.interfaces,
        give_back: args.on_exit == OnExit::Open,
        offload: args.engine.offload(),
    })?;
    let mut names = Names::default();
    names.watch(&rules.members);
    let members = names.groups(&rules.members);
    let model = world::model(&rules, &asked, closed.guarded(), members)
        .map_err(|unknown| CliError::Usage(unknown.to_string()))?;
    let started = closed.prepare(&model)?;
    // Only now: threads keep the capabilities that they are started with.
    let (printer, printed) = Printer::start()?;
    let teller = Teller::new(printer, args.format);
    let outcome = hold(
        args, asked, rules, names, &model, started, watch, &teller, &at_once,
    );
    drop(teller);
    printed.wait();
    outcome
}

/// Guards what was taken until it is told to stop.
#[expect(clippy::too_many_arguments, reason = "all that the sidecar knows")]
fn hold(
    args: &Args,
    asked: Asked,
    rules: LoadedRules,
    names: Names,
    model: &Model,
    closed: Unprivileged,
    watch: Watch,
    teller: &Teller,
    at_once: &AtomicBool,
) -> Result<Outcome, CliError> {
    let (tell, told) = channel::unbounded();
    let stopping = signals::watch(tell)?;
    at_once.store(false, Ordering::Release);
    for warning in watch
        .warnings()
        .into_iter()
        .chain(args.engine.warning(args.workers))
    {
        teller.say("warning", &warning, json!({ "why": warning }));
    }
    let names = Arc::new(SharedNames::new(names));
    let options = args.engine.options(args.workers, true);
    let standing = closed.up(model, options, Arc::clone(&names))?;
    let unproven = standing.appliance.unproven();
    let mut guard = Guard::new(args, &standing, teller, asked, rules, names)?;
    let drops = {
        let (teller, silent) = (teller.clone(), args.no_log_drops);
        DropReader::start(Arc::clone(&standing.appliance), move |report| {
            if !silent {
                let details = serde_json::to_value(report).unwrap_or_default();
                teller.say("drop", &report.to_string(), details);
            }
        })?
    };
    standing.confine()?;
    tell_up(teller, &standing, &unproven);
    if !unproven.is_empty() {
        return Ok(Outcome::System);
    }
    let ended = if stopping.load(Ordering::Acquire) {
        Outcome::Yes
    } else {
        guard.until_stopped(&told, watch)
    };
    drop(guard);
    drop(drops);
    let after = if args.on_exit == OnExit::Open {
        "the interfaces are given back: nothing is guarded any more"
    } else {
        "the interfaces stay closed: nothing passes until a sidecar is back"
    };
    teller.say(
        "stopping",
        after,
        json!({ "on_exit": match args.on_exit {
        OnExit::Open => "open",
        OnExit::Closed => "closed",
    } }),
    );
    standing.down()?;
    Ok(ended)
}

fn load(args: &Args) -> Result<LoadedRules, Outcome> {
    match config::load_rules(&args.rules, check::options(args.ignore_quotas)) {
        Ok(rules) => {
            warn(&rules, args.format);
            Ok(rules)
        }
        Err(found) => {
            let files: Vec<String> = args
                .rules
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            Err(check::report(&files, &found, args.format))
        }
    }
}

fn warn(rules: &LoadedRules, format: Format) {
    for warning in &rules.warnings {
        match format {
            Format::Text => to_stderr(warning.render(Paint::stderr().is_on()).trim_end()),
            Format::Json => {
                let line = json!({ "event": "warning", "diagnostics": [warning] });
                let _ = print(&format!("{line}\n"));
            }
        }
    }
}

/// What one of several is called, as people write lists: `web, db`.
fn item(text: &str) -> Result<String, &'static str> {
    match text.trim() {
        "" => Err("it is empty: leave it out, or the comma before or after it"),
        item => Ok(item.to_owned()),
    }
}

/// As many groups as AWS would put on an interface, and each once.
fn check_groups(args: &Args) -> Result<(), CliError> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = args.groups.iter().find(|group| !seen.insert(*group)) {
        return Err(CliError::Usage(format!(
            "--group {twice} is given twice; an interface carries a group once: leave one out"
        )));
    }
    let count = args.groups.len();
    let most = if args.ignore_quotas {
        config::MOST_GROUPS_PER_INTERFACE
    } else {
        config::GROUPS_PER_INTERFACE
    };
    if count <= most {
        return Ok(());
    }
    let help = if args.ignore_quotas {
        "AWS admits no more: merge some of the groups"
    } else {
        "merge some of the groups, or add --ignore-quotas where AWS has raised yours (to 16 at most)"
    };
    Err(CliError::Usage(format!(
        "--group is given {count} times; AWS puts {most} groups on an interface: {help}"
    )))
}

/// The resolvers that stand for AWS's own.
fn resolvers(asked: &[String]) -> Result<Vec<IpAddr>, CliError> {
    if asked.iter().any(|text| text == "none") {
        return match asked.len() {
            1 => Ok(Vec::new()),
            _ => Err(CliError::Usage(
                "--resolver none stands alone: name resolvers or none".to_owned(),
            )),
        };
    }
    if asked.is_empty() {
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        return Ok(in_resolv_conf(&text));
    }
    let parse = |text: &String| {
        text.parse().map_err(|_| {
            CliError::Usage(format!("--resolver {text}: write an IP address, or `none`"))
        })
    };
    asked.iter().map(parse).collect()
}

/// The name servers that a resolv.conf names, but for the host itself: that is asked
/// over lo.
fn in_resolv_conf(text: &str) -> Vec<IpAddr> {
    // A zone only selects the interface; the address is the same.
    let (config, _) = resolv_conf::Config::parse_with_errors(text.as_bytes());
    config
        .nameservers
        .into_iter()
        .map(IpAddr::from)
        .filter(|address| !address.is_loopback())
        .collect()
}

fn tell_up(teller: &Teller, standing: &Standing, unproven: &[(String, String)]) {
    let interfaces: Vec<String> = standing
        .guarded
        .iter()
        .map(|interface| {
            let addresses: Vec<String> =
                interface.addresses.iter().map(IpAddr::to_string).collect();
            format!("{} ({})", interface.name, addresses.join(" "))
        })
        .collect();
    for name in &standing.left_open {
        teller.say(
            "left_open",
            &format!("{name} is left open, as it isn't among --interface: nothing guards it"),
            json!({ "interface": name }),
        );
    }
    let details = json!({
        "interfaces": standing.guarded.iter().map(|it| json!({
            "name": it.name,
            "addresses": it.addresses,
            "mtu": it.mtu,
        })).collect::<Vec<_>>(),
        "left_open": standing.left_open,
        "taken_ms": standing.taken_in.as_secs_f64() * 1e3,
        "proven_ms": standing.proven_in.as_secs_f64() * 1e3,
        "unproven": unproven.iter().map(|(name, why)| json!({ "interface": name, "why": why })).collect::<Vec<_>>(),
    });
    if unproven.is_empty() {
        let text = format!(
            "enforcing on {}: taken in {:.0} ms, proven in {:.0} ms",
            interfaces.join(", "),
            standing.taken_in.as_secs_f64() * 1e3,
            standing.proven_in.as_secs_f64() * 1e3,
        );
        teller.say("enforcing", &text, details);
    } else {
        let mut text = "NOT enforcing: an interface could not be proven; nothing passes".to_owned();
        for (name, why) in unproven {
            text += &format!("\n  {name}: {why}");
        }
        text += file_limit_advice(&text);
        teller.say("unproven", &text, details);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Alone {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn resolvers_are_read_as_the_workload_reads_them() {
        let text = "# comment\nnameserver 127.0.0.11\nsearch x\n nameserver 10.0.0.2 # x\n\
                    nameserver fe80::1%eth0\nnameserver nonsense\nnameservers 10.0.0.3\n";
        let found: Vec<String> = in_resolv_conf(text).iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["10.0.0.2", "fe80::1"]);
    }

    #[test]
    fn no_more_groups_than_aws_would_put_on_an_interface() {
        let given = |count: usize, more: &[&str]| {
            let mut words = vec!["sidecar", "--rules", "rules.yaml"];
            let groups: Vec<String> = (0..count).map(|n| format!("--group=web-{n}")).collect();
            words.extend(groups.iter().map(String::as_str));
            words.extend(more);
            check_groups(&Alone::parse_from(words).args)
        };
        assert!(given(5, &[]).is_ok());
        let refused = given(6, &[]).unwrap_err().to_string();
        assert!(refused.contains("--ignore-quotas"), "{refused}");
        assert!(given(16, &["--ignore-quotas"]).is_ok());
        assert!(given(17, &["--ignore-quotas"]).is_err());
        let twice = given(2, &["--group", "web-1"]).unwrap_err().to_string();
        assert!(twice.contains("--group web-1 is given twice"), "{twice}");
    }

    #[test]
    fn lists_are_read_as_people_write_them() {
        let parse = |groups: &str| {
            Alone::try_parse_from(["sidecar", "--rules", "rules.yaml", "--group", groups])
                .map(|alone| alone.args.groups)
        };
        assert_eq!(parse("web, db").unwrap(), ["web", "db"]);
        for empty in ["", "web,", ",", " "] {
            let refused = parse(empty).unwrap_err().to_string();
            assert!(refused.contains("it is empty"), "{empty:?}: {refused}");
        }
    }

    #[test]
    fn workers_that_poll_on_every_core_are_warned_of() {
        let warned = |more: &[&str], workers: usize| {
            let mut words = vec!["sidecar", "--rules", "rules.yaml", "--group", "web"];
            words.extend(more);
            let args = Alone::parse_from(words).args;
            args.engine.warning(workers).is_some()
        };
        assert!(warned(&["--busy-poll"], 1 << 16));
        assert!(!warned(&[], 1 << 16));
        assert!(!warned(&["--busy-poll"], 0));
    }

    #[test]
    fn none_means_none() {
        assert_eq!(resolvers(&["none".to_owned()]).unwrap(), [] as [IpAddr; 0]);
        assert!(resolvers(&["none".to_owned(), "10.0.0.2".to_owned()]).is_err());
        assert!(resolvers(&["ten".to_owned()]).is_err());
    }
}
