//! `sgwall demo`: a lab that needs nothing but this program. It tries every
//! pair of a three-tier lab with real sockets, compares what they see with
//! what the policy says, and revokes a rule under a live connection.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::explain::peer::{Family, resolve};
use super::output::{Paint, print, print_json};
use super::standing::{Standing, chain};
use super::{CliError, Format, Outcome, signals};
use crate::config;
use crate::datapath::{EPHEMERAL, Explanation, Question, explain};
use crate::engine::Options;
use crate::lab::probe::{self, Conversation, Seen};
use crate::lab::{self, Session};
use crate::link::Offload;
use crate::model::{EntityIx, Model, Peer, Traffic, protocol};
use crate::packet::{TcpFlags, Transport};
use crate::policy::Policy;

mod report;

use report::{Report, Trial, conclusion, introduction, table};

/// The lab, as it also stands in `configs/`.
const LAB: &str = include_str!("../../configs/three-tier.yaml");
const LAB_FILE: &str = "configs/three-tier.yaml";

/// The TCP port that each entity serves.
const SERVICES: [(&str, u16); 5] = [
    ("client", 8080),
    ("lb", 443),
    ("web-1", 8080),
    ("web-2", 8080),
    ("db", 5432),
];

/// How long a probe waits for an answer. Longer than the second after which
/// Linux repeats a lost SYN, so that one lost packet decides nothing.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Arguments of `sgwall demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Needs root, or a user who may open /dev/net/tun and make user namespaces.

Exit code: 0 everything came out as expected, 1 something did not, 3 the
system refused.")]
pub struct Args {
    /// Name of the lab.
    #[arg(long, value_name = "NAME", default_value = "demo")]
    name: String,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// An attempt to make.
struct Attempt {
    from: EntityIx,
    to: IpAddr,
    /// `None` for a ping.
    port: Option<u16>,
    trial: Trial,
}

/// Runs the demonstration.
///
/// # Errors
/// [`CliError::System`] for whatever the system refused.
pub fn run(args: &Args) -> Result<Outcome, CliError> {
    let model = config::load_str(LAB_FILE, LAB)
        .map_err(|found| CliError::System(found.to_string()))?
        .model;
    // Before the first thread: a user namespace can be entered only then.
    lab::prepare()?;
    let stopping = signals::stop_flag()?;
    let session = Session::start(&args.name)?;
    let state = session.dir().to_owned();
    let say = |text: &str| {
        if args.format == Format::Text {
            // Nobody reads on: the lab still comes down in order.
            let _ = print(text);
        }
    };
    let paint = Paint::stdout();

    say(&introduction(paint));
    let standing = Standing::up(session, &model, Options::default(), Offload::Granted)?;
    let unproven = standing.appliance.unproven();
    if !unproven.is_empty() {
        let list: Vec<String> = unproven
            .iter()
            .map(|(name, why)| format!("{name}: {why}"))
            .collect();
        return Err(CliError::System(format!(
            "interfaces could not be proven to enforce: {}",
            list.join("; ")
        )));
    }
    let proven = model
        .interfaces
        .iter()
        .filter(|interface| !interface.is_external())
        .count();
    say(&format!(
        "{} entities up in {:.0} ms; {proven} interfaces proven to enforce in {:.0} ms\n",
        model.entities.len(),
        standing.made_in.as_secs_f64() * 1e3,
        standing.proven_in.as_secs_f64() * 1e3,
    ));

    let mut report = Report {
        as_expected: false,
        interfaces_proven: proven,
        pairs: Vec::new(),
        revoked: String::new(),
        live: Vec::new(),
        left_behind: Vec::new(),
    };
    let paths = standing
        .lab
        .namespaces()
        .iter()
        .filter_map(|namespace| namespace.path().map(PathBuf::from))
        .chain([state])
        .collect::<Vec<_>>();
    let stop = AtomicBool::new(false);
    let tried = std::thread::scope(|scope| {
        // Whatever happens, the services must end before the scope can.
        let _ending = SetOnDrop(&stop);
        serve(scope, &standing, &model, &stop)?;
        say(&format!(
            "\n{}\n",
            paint.strong("Every pair: its service and a ping, with real sockets")
        ));
        report.pairs = try_all(&standing, attempts(&model)?);
        say(&table(&report.pairs, paint));
        if stopping.load(Ordering::Acquire) {
            return Ok(());
        }
        revoke(&standing, &model, &mut report, &say, paint)
    });
    drop(standing);
    tried?;

    report.left_behind = paths
        .iter()
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    let trials = || report.pairs.iter().chain(&report.live);
    let wrong = trials().filter(|trial| !trial.is_as_expected()).count();
    let finished = !report.live.is_empty();
    report.as_expected = wrong == 0 && finished && report.left_behind.is_empty();
    let total = trials().count();
    match args.format {
        Format::Text => print(&conclusion(&report, total, wrong, finished, paint))?,
        Format::Json => print_json(&report)?,
    }
    Ok(if report.as_expected {
        Outcome::Yes
    } else {
        Outcome::No
    })
}

/// Sets a flag when it goes out of scope, by whichever way.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Starts each entity's service.
fn serve<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    standing: &Standing,
    model: &Model,
    stop: &'scope AtomicBool,
) -> Result<(), CliError> {
    for (at, interface) in model.interfaces() {
        let Some(port) = service_of(&model.entity_of(at).name) else {
            continue;
        };
        for address in &interface.addresses {
            let address = SocketAddr::new(address.private, port);
            standing
                .lab
                .namespace(interface.entity)
                .run(move || probe::serve_echo(scope, address, stop))?
                .map_err(|error| CliError::System(format!("listening on {address}: {error}")))?;
        }
    }
    Ok(())
}

fn service_of(entity: &str) -> Option<u16> {
    SERVICES
        .iter()
        .find(|(name, _)| *name == entity)
        .map(|(_, port)| *port)
}

/// A connection to the service and a ping, for every ordered pair.
fn attempts(model: &Model) -> Result<Vec<Attempt>, CliError> {
    let policy = Policy::compile(model, None);
    let mut attempts = Vec::new();
    for from in &model.entities {
        for to in &model.entities {
            if from.name != to.name {
                for port in [service_of(&to.name), None] {
                    attempts.push(attempt(model, &policy, &from.name, &to.name, port)?);
                }
            }
        }
    }
    Ok(attempts)
}

fn attempt(
    model: &Model,
    policy: &Policy,
    from: &str,
    to: &str,
    port: Option<u16>,
) -> Result<Attempt, CliError> {
    let ends = resolve(model, from, to, Family::V4)?;
    let (protocol, transport) = match port {
        Some(destination) => (
            protocol::TCP,
            Transport::Tcp {
                source: EPHEMERAL,
                destination,
                flags: TcpFlags {
                    syn: true,
                    ..TcpFlags::default()
                },
                end: 1,
                acknowledgement: 0,
            },
        ),
        None => (
            protocol::ICMP,
            Transport::IcmpQuery {
                kind: 8,
                code: 0,
                id: 1,
                request: true,
            },
        ),
    };
    let question = Question {
        from: ends.from,
        source: ends.source,
        destination: ends.destination,
        protocol,
        transport,
    };
    let explanation =
        explain(policy, &question).map_err(|error| CliError::System(chain(&error)))?;
    Ok(Attempt {
        from: model.interfaces[ends.from.ix()].entity,
        to: ends.destination,
        port,
        trial: Trial {
            from: from.to_owned(),
            to: to.to_owned(),
            what: port.map_or_else(|| "ping".to_owned(), |port| format!("tcp {port}")),
            expected: explanation.allowed,
            observed: false,
            decided_by: decider(&explanation),
            trouble: None,
        },
    })
}

/// What decided: the rule that let it in, or the layer that dropped it.
fn decider(explanation: &Explanation) -> String {
    let legs = [Some(&explanation.request), explanation.reply.as_ref()];
    let steps = || legs.iter().flatten().flat_map(|leg| &leg.steps);
    if let Some(dropped) = steps().find(|step| step.decision == "drop") {
        return format!(
            "{} at {}: {}",
            dropped.layer, dropped.interface, dropped.what
        );
    }
    let rule = explanation
        .request
        .steps
        .iter()
        .rev()
        .find_map(|step| step.rule.as_ref());
    rule.map_or_else(String::new, |rule| format!("{rule} ({})", rule.place))
}

/// Makes all attempts at once, each on a thread inside its sender's namespace.
fn try_all(standing: &Standing, attempts: Vec<Attempt>) -> Vec<Trial> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1_u16..)
            .zip(attempts)
            .map(|(id, attempt)| {
                let lost = Trial {
                    trouble: Some("the probe itself failed".to_owned()),
                    ..attempt.trial.clone()
                };
                (lost, scope.spawn(move || try_one(standing, id, attempt)))
            })
            .collect();
        threads
            .into_iter()
            .map(|(lost, thread)| thread.join().unwrap_or(lost))
            .collect()
    })
}

fn try_one(standing: &Standing, id: u16, attempt: Attempt) -> Trial {
    let Attempt {
        from,
        to,
        port,
        mut trial,
    } = attempt;
    let seen = standing.lab.namespace(from).run(move || match port {
        Some(port) => probe::connect(SocketAddr::new(to, port), PATIENCE),
        None => probe::ping(to, id, PATIENCE),
    });
    match seen {
        Ok(Ok(seen)) => trial.observed = seen == Seen::Answered,
        Ok(Err(error)) => trial.trouble = Some(error.to_string()),
        Err(error) => trial.trouble = Some(error.to_string()),
    }
    trial
}

/// Revokes the rule that lets the web tasks reach the database, under a
/// connection that is open, and brings it back.
fn revoke(
    standing: &Standing,
    model: &Model,
    report: &mut Report,
    say: &impl Fn(&str),
    paint: Paint,
) -> Result<(), CliError> {
    const DATABASE: u16 = 5432;
    let (from, to) = ("web-1", "db");
    let ends = resolve(model, from, to, Family::V4)?;
    let web = model.interfaces[ends.from.ix()].entity;
    let service = SocketAddr::new(ends.destination, DATABASE);
    let mut conversation = standing
        .lab
        .namespace(web)
        .run(move || Conversation::open(service, PATIENCE))?
        .map_err(|error| CliError::System(format!("connecting to {service}: {error}")))?;

    let (without, revoked) = without_rule(model, DATABASE);
    report.revoked = revoked;
    say(&format!(
        "\n{}\n{}\n",
        paint.strong("A rule is revoked while a connection that it admitted is open"),
        report.revoked
    ));
    let change = |model: &Model| {
        let began = Instant::now();
        standing
            .appliance
            .replace(model.clone())
            .map_err(|error| CliError::System(chain(&error)))?;
        Ok::<_, CliError>(began.elapsed())
    };

    let took = change(&without)?;
    let mut live = vec![flows(&mut conversation, "the open connection goes on")];
    live.extend(new_connections(standing, &without, "after the revoke")?);
    change(model)?;
    live.extend(new_connections(standing, model, "after it came back")?);
    live.push(flows(
        &mut conversation,
        "the open connection still goes on",
    ));
    report.live = live;
    say(&table(&report.live, paint));
    say(&format!(
        "in force for every worker {:.1} ms after the revoke\n",
        took.as_secs_f64() * 1e3
    ));
    Ok(())
}

/// The model without the rules that let a group reach `port` at the database,
/// and what they were.
fn without_rule(model: &Model, port: u16) -> (Model, String) {
    let mut without = model.clone();
    let mut revoked = String::new();
    for group in without.groups_mut() {
        let name = group.name.clone();
        group.ingress.retain(|rule| {
            let meant = matches!(rule.peer, Peer::Group(_))
                && matches!(rule.traffic, Traffic::Tcp(ports) if ports.contains(port));
            if meant {
                let _ = write!(
                    revoked,
                    "revoked: {} of {name}: {} from {} ({})",
                    rule.id, rule.traffic, rule.peer_text, rule.place
                );
            }
            !meant
        });
    }
    (without, revoked)
}

/// A few exchanges over a connection that was opened before.
fn flows(conversation: &mut Conversation, what: &str) -> Trial {
    let mut trial = Trial {
        from: "web-1".to_owned(),
        to: "db".to_owned(),
        what: what.to_owned(),
        expected: true,
        observed: true,
        decided_by: "the flow is tracked: it outlives its rule".to_owned(),
        trouble: None,
    };
    for _ in 0..20 {
        match conversation.exchange() {
            Ok(seen) => trial.observed &= seen == Seen::Answered,
            Err(error) => {
                trial.observed = false;
                trial.trouble = Some(error.to_string());
                break;
            }
        }
    }
    trial
}

/// New connections from the web tasks to the database, and one that the
/// revoked rule has nothing to do with.
fn new_connections(standing: &Standing, model: &Model, when: &str) -> Result<Vec<Trial>, CliError> {
    let policy = Policy::compile(model, None);
    let pairs = [("web-1", "db"), ("web-2", "db"), ("lb", "web-1")];
    let attempts: Result<Vec<Attempt>, CliError> = pairs
        .into_iter()
        .map(|(from, to)| {
            let mut attempt = attempt(model, &policy, from, to, service_of(to))?;
            attempt.trial.what = format!("new {} {when}", attempt.trial.what);
            Ok(attempt)
        })
        .collect();
    Ok(try_all(standing, attempts?))
}
