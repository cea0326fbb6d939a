//! `sgwall sidecar`: take the interfaces of the namespace that it is in, prove that they
//! are guarded, keep them so.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::builder::RangedU64ValueParser;
use clap::{ValueEnum, ValueHint};
use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
use serde_json::json;

use super::drops::DropReader;
use super::output::{Paint, Printer, print};
use super::signals::{self, Event};
use super::teller::Teller;
use super::watch::{LOOK, Watch};
use super::{CliError, Format, Outcome, check};
use crate::config::{self, DeclaredMember, LoadedRules};
use crate::engine::{Options, ReplaceError};
use crate::link::Offload;
use crate::model::{EntityKind, LoadBalancer, Model};
use crate::sidecar::members::{Change, Names};
use crate::sidecar::world::{self, Asked};

mod standing;

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
    -v ./rules.yaml:/rules.yaml:ro IMAGE sidecar --rules /rules.yaml --group web

Saving a rule file, or SIGHUP, puts the new rules in force; a file with a mistake
changes nothing. `sgwall status --probe` is the health check.

Exit code: 0 ended as asked, 1 the files are invalid, 2 wrong usage, 3 the system
refused, an interface could not be proven to be guarded, or its device went away.")]
pub struct Args {
    /// A file with `security_groups` and `prefix_lists` (repeatable).
    #[arg(long, value_name = "FILE", required = true, value_hint = ValueHint::FilePath,
        env = "SGWALL_RULES", value_delimiter = ',')]
    rules: Vec<PathBuf>,
    /// A security group that the interfaces carry, by name or id (repeatable).
    #[arg(
        long = "group",
        value_name = "NAME",
        required = true,
        env = "SGWALL_GROUPS",
        value_delimiter = ','
    )]
    groups: Vec<String>,
    /// An interface to take (repeatable); otherwise all but lo. Those that are not named
    /// stay open.
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// What becomes of the interfaces when the sidecar is told to end. A sidecar that is
    /// killed leaves them closed, always.
    #[arg(long, value_enum, value_name = "STATE", default_value_t)]
    on_exit: OnExit,
    /// Seconds after which the names of members are resolved again.
    #[arg(long, value_name = "SECONDS", default_value_t = 5,
        value_parser = clap::value_parser!(u64).range(MOST_OFTEN..=LEAST_OFTEN))]
    refresh: u64,
    /// The resolver that the workload may always ask, as AWS's own (repeatable); otherwise
    /// those of /etc/resolv.conf. `none` for none.
    #[arg(long = "resolver", value_name = "ADDRESS")]
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
    /// Most flows remembered at a time; untracked ones have half of it. What is full
    /// admits no new flow until others end or idle out.
    #[arg(long, value_name = "N", default_value_t = crate::conntrack::DEFAULT_CAPACITY,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=crate::conntrack::MAX_CAPACITY as u64))]
    max_flows: usize,
    /// Poll without ever sleeping: packets wait less, and every worker keeps a core busy.
    #[arg(long)]
    busy_poll: bool,
    /// Do without segmentation and checksum offload.
    #[arg(long)]
    no_offload: bool,
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
    let watch = Watch::new(args.rules.clone());
    if let Some(file) = watch.irregular() {
        return Err(CliError::Usage(Watch::cannot_reread(file)));
    }
    check_count(args)?;
    let asked = Asked {
        groups: args.groups.clone(),
        resolvers: resolvers(&args.resolvers)?,
        kind: Some(args.kind.into()),
    };
    let rules = match load(args) {
        Ok(rules) => rules,
        Err(outcome) => return Ok(outcome),
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
        offload: if args.no_offload {
            Offload::Off
        } else {
            Offload::Granted
        },
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
    let options = Options {
        workers: args.workers,
        max_flows: args.max_flows,
        busy_poll: args.busy_poll,
        log_drops: true,
    };
    let standing = closed.up(model, options)?;
    let unproven = standing.appliance.unproven();
    let resolver = Resolver::start(Duration::from_secs(args.refresh), names.names())?;
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
    let mut guard = Guard {
        args,
        standing: &standing,
        teller,
        asked,
        rules,
        names,
        resolver,
        began: Instant::now(),
    };
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
            check::report(&files, &found, args.format);
            Err(Outcome::No)
        }
    }
}

fn warn(rules: &LoadedRules, format: Format) {
    for warning in &rules.warnings {
        match format {
            Format::Text => eprint!("{}", warning.render(Paint::stderr().is_on())),
            Format::Json => {
                let line = json!({ "event": "warning", "diagnostics": [warning] });
                let _ = print(&format!("{line}\n"));
            }
        }
    }
}

/// As many groups as AWS would put on an interface.
fn check_count(args: &Args) -> Result<(), CliError> {
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
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next())??;
        // A zone says which interface; the address is the same.
        address.split('%').next()?.parse().ok()
    };
    text.lines()
        .filter_map(server)
        .filter(|address: &IpAddr| !address.is_loopback())
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
        teller.say("unproven", &text, details);
    }
}

/// Keeps the policy what files and names say.
struct Guard<'a> {
    args: &'a Args,
    standing: &'a Standing,
    teller: &'a Teller,
    asked: Asked,
    rules: LoadedRules,
    names: Names,
    resolver: Resolver,
    began: Instant,
}

impl Guard<'_> {
    fn until_stopped(&mut self, told: &Receiver<Event>, mut watch: Watch) -> Outcome {
        loop {
            let wanted = match told.recv_timeout(LOOK) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Outcome::Yes,
                Ok(Event::Reload) => true,
                Err(RecvTimeoutError::Timeout) => watch.look(),
            };
            if wanted {
                watch.reading();
                self.reload(&watch);
            }
            self.learn();
            for name in self.standing.appeared() {
                self.teller.say(
                    "closed",
                    &format!(
                        "{name} has appeared: it is closed; start the sidecar again to take it"
                    ),
                    json!({ "interface": name }),
                );
            }
            if let Some(name) = self.standing.gone() {
                self.teller.say(
                    "gone",
                    &format!(
                        "the device behind {name} is gone, as when the workload was started again \
                         in another namespace: ending, to be started again"
                    ),
                    json!({ "interface": name }),
                );
                return Outcome::System;
            }
        }
    }

    fn reload(&mut self, watch: &Watch) {
        if let Some(file) = watch.irregular() {
            let why = Watch::cannot_reread(file);
            self.standing.appliance.refuse(why.clone());
            return self.refused(&why, json!({ "why": why }));
        }
        let options = check::options(self.args.ignore_quotas);
        let rules = match config::load_rules(&self.args.rules, options) {
            Ok(rules) => rules,
            Err(found) => {
                self.standing.appliance.refuse(found.to_string());
                let text = found.render(Paint::stderr().is_on());
                return self.refused(&text, json!({ "diagnostics": found.to_json() }));
            }
        };
        for warning in &rules.warnings {
            self.teller.say(
                "warning",
                &warning.render(Paint::stderr().is_on()),
                json!({ "diagnostics": [warning] }),
            );
        }
        let mut names = Names::default();
        std::mem::swap(&mut names, &mut self.names);
        names.watch(&rules.members);
        self.names = names;
        let model = match self.model(&rules) {
            Ok(model) => model,
            Err(why) => {
                self.names.watch(&self.rules.members);
                self.standing.appliance.refuse(why.clone());
                return self.refused(&why, json!({ "why": why }));
            }
        };
        match self.standing.appliance.replace(model) {
            Ok(generation) => {
                self.rules = rules;
                self.resolver.ask(self.names.names());
                self.teller.say(
                    "reloaded",
                    &format!("new rules in force (generation {generation})"),
                    json!({ "generation": generation }),
                );
            }
            Err(error) => {
                self.names.watch(&self.rules.members);
                self.not_replaced(&error);
            }
        }
    }

    /// Takes in what names have turned out to be.
    fn learn(&mut self) {
        let mut changed = false;
        while let Ok((name, answer)) = self.resolver.answers.try_recv() {
            let Some(change) = self.names.learn(&name, answer, self.began.elapsed()) else {
                continue;
            };
            changed = true;
            match change {
                Change::Resolved { name, addresses } => {
                    let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                    self.teller.say(
                        "resolved",
                        &format!("member {name} is {}", list.join(" ")),
                        json!({ "name": name, "addresses": addresses }),
                    );
                }
                Change::Failed { name, why, keeps } => {
                    let then = if keeps {
                        "its last addresses count for a while"
                    } else {
                        "nobody counts as this member"
                    };
                    self.teller.say(
                        "unresolved",
                        &format!("member {name} can't be resolved: {why}; {then}"),
                        json!({ "name": name, "why": why, "keeps": keeps }),
                    );
                }
            }
        }
        if !changed {
            return;
        }
        let model = match self.model(&self.rules) {
            Ok(model) => model,
            // The rules in force had these groups.
            Err(why) => return self.refused(&why, json!({ "why": why })),
        };
        if let Err(error) = self.standing.appliance.replace(model) {
            self.not_replaced(&error);
        }
    }

    fn model(&self, rules: &LoadedRules) -> Result<Model, String> {
        let members: &[DeclaredMember] = &rules.members;
        let groups = self.names.groups(members);
        world::model(rules, &self.asked, &self.standing.guarded, groups)
            .map_err(|unknown| unknown.to_string())
    }

    fn not_replaced(&self, error: &ReplaceError) {
        match error {
            ReplaceError::Topology(change) => {
                let why = change.to_string();
                self.refused(&why, json!({ "why": why }));
            }
            ReplaceError::Engine(error) => {
                let text = format!(
                    "{error}; the other workers judge by the new rules: start the sidecar again"
                );
                let details = json!({ "why": text, "stuck": true });
                self.teller.say("refused", &text, details);
            }
        }
    }

    fn refused(&self, why: &str, details: serde_json::Value) {
        let text = format!("{why}\nnothing changed: the rules in force stay");
        self.teller.say("refused", &text, details);
    }
}

/// Resolves names, again and again, on a thread of its own: an answer may take long.
struct Resolver {
    asked: Sender<Vec<String>>,
    answers: Receiver<Answer>,
}

/// A name and its addresses.
type Answer = (String, std::io::Result<Vec<IpAddr>>);

impl Resolver {
    fn start(every: Duration, names: Vec<String>) -> Result<Self, CliError> {
        let (asked, wanted) = channel::unbounded::<Vec<String>>();
        let (tell, answers) = channel::unbounded();
        std::thread::Builder::new()
            .name("sgwall-names".to_owned())
            .spawn(move || resolve(every, names, &wanted, &tell))
            .map_err(signals::failed)?;
        Ok(Self { asked, answers })
    }

    /// Resolves these names from now on, at once for the first time.
    fn ask(&self, names: Vec<String>) {
        let _ = self.asked.send(names);
    }
}

fn resolve(
    every: Duration,
    mut names: Vec<String>,
    wanted: &Receiver<Vec<String>>,
    tell: &Sender<Answer>,
) {
    loop {
        for name in &names {
            let answer = (name.as_str(), 0)
                .to_socket_addrs()
                .map(|found| found.map(|address| address.ip()).collect::<Vec<_>>());
            if tell.send((name.clone(), answer)).is_err() {
                return;
            }
        }
        match wanted.recv_timeout(every) {
            Ok(others) => names = others,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
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
            words.extend(std::iter::repeat_n(["--group", "web"], count).flatten());
            words.extend(more);
            check_count(&Alone::parse_from(words).args)
        };
        assert!(given(5, &[]).is_ok());
        let refused = given(6, &[]).unwrap_err().to_string();
        assert!(refused.contains("--ignore-quotas"), "{refused}");
        assert!(given(16, &["--ignore-quotas"]).is_ok());
        assert!(given(17, &["--ignore-quotas"]).is_err());
    }

    #[test]
    fn none_means_none() {
        assert_eq!(resolvers(&["none".to_owned()]).unwrap(), [] as [IpAddr; 0]);
        assert!(resolvers(&["none".to_owned(), "10.0.0.2".to_owned()]).is_err());
        assert!(resolvers(&["ten".to_owned()]).is_err());
    }
}
