//! `sgwall replay`: send a list of packets down the road of a lab, on a clock
//! of its own, and compare what becomes of them with what is expected.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueHint;
use serde::Serialize;

use super::check::{self, counted};
use super::output::{Paint, print, print_json};
use super::{CliError, Format, Outcome};
use crate::config;
use crate::conntrack::{DEFAULT_CAPACITY, Millis};
use crate::datapath::{self, Admission, Answer, Datapath, Fate, Silent};
use crate::model::{InterfaceIx, Model};
use crate::packet::{self, Shape};
use crate::policy::{DropReason, Policy};

mod describe;
pub mod script;
mod text;

use script::{By, Event, Expected, What};
use text::text;

/// Arguments of `sgwall replay`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
PACKETS is a text file, a line each; # starts a comment:
  TIME INTERFACE HEX [= EXPECTED]   a packet: seconds since the start, who sends
                                    it (web-1, fw/eth1, eni-…), its bytes
  TIME @ FILE                       this lab file takes over, as one saved while
                                    a lab runs; FILE is looked for beside PACKETS
EXPECTED is one of
  delivered to INTERFACE            perhaps with (out by rule|flow|none, in by …)
  dropped REASON at INTERFACE       such as: dropped no_ingress_rule at db
  held                              a fragment that waits for its first
Quotas are not held against the lab files.

Exit code: 0 everything came out as expected, 1 something didn't or a file is
invalid, 2 wrong usage.

Examples:
  sgwall replay lab.yaml packets.txt
  sgwall replay lab.yaml packets.txt --format json | jq '.events[] | select(.met == false)'")]
pub struct Args {
    /// The lab file.
    #[arg(value_name = "LAB", value_hint = ValueHint::FilePath)]
    lab: PathBuf,
    /// The list of packets.
    #[arg(value_name = "PACKETS", value_hint = ValueHint::FilePath)]
    packets: PathBuf,
    /// Further files with security groups (repeatable); they stay when another
    /// lab file takes over.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    rules: Vec<PathBuf>,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Replays and prints.
///
/// # Errors
/// [`CliError::System`] if the answer can't be written.
pub fn run(args: &Args) -> Result<Outcome, CliError> {
    let model =
        match check::load_or_report(&args.lab, &args.rules, check::options(true), args.format) {
            Ok(loaded) => loaded.model,
            Err(outcome) => return Ok(outcome),
        };
    let beside = args.packets.parent().unwrap_or(Path::new(""));
    let load = |file: &str| {
        let lab = beside.join(file);
        config::load_with(&lab, &args.rules, check::options(true)).map(|loaded| loaded.model)
    };
    let events = match script::read(&args.packets, &model, load) {
        Ok(events) => events,
        Err(found) => {
            let files = [args.packets.display().to_string()];
            return Ok(check::report(&files, &found, args.format));
        }
    };
    let answer = Replay::new(&model).all(&events);
    match args.format {
        Format::Text => print(&text(&args.packets, &answer, Paint::stdout()))?,
        Format::Json => print_json(&answer)?,
    }
    Ok(if answer.as_expected {
        Outcome::Yes
    } else {
        Outcome::No
    })
}

/// What became of all packets.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether every expectation holds.
    as_expected: bool,
    packets: usize,
    delivered: usize,
    dropped: usize,
    /// Fragments that waited for their first.
    held: usize,
    /// Packets that say what is expected.
    expectations: usize,
    /// Of those, how many came out otherwise.
    unmet: usize,
    events: Vec<Line>,
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Line {
    line: u32,
    #[serde(serialize_with = "as_seconds")]
    time: Duration,
    #[serde(flatten)]
    what: Happened,
}

#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Happened {
    /// A packet was sent.
    Packet {
        from: String,
        packet: String,
        #[serde(flatten)]
        verdict: Verdict,
        #[serde(skip_serializing_if = "Option::is_none")]
        expected: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        met: Option<bool>,
        /// What else it set off.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        besides: Vec<Besides>,
    },
    /// A lab file took over.
    Change { file: String, generation: u64 },
}

/// What became of a packet, for people and programs.
#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
enum Verdict {
    Delivered {
        to: String,
        out: Let,
        r#in: Let,
    },
    Dropped {
        reason: DropReason,
        at: String,
    },
    /// A fragment that waits for its datagram's first.
    Held,
}

/// What else a packet set off, or was found when it came.
#[derive(Debug, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
enum Besides {
    /// Fragments of this sender waited for a first that didn't come in time.
    Orphaned { from: String, fragments: u64 },
    /// It is longer than the path takes, and sent in fragments.
    Split { mtu: u16 },
    /// The VPC's router tells the sender that it is too big.
    Answered { packet: String },
    /// The router's answer doesn't reach the sender.
    Unanswered { reason: DropReason, at: String },
    /// A fragment that waited for this one follows it.
    Released {
        packet: String,
        #[serde(flatten)]
        verdict: Verdict,
    },
    /// Fragments of its datagram waited, and are dropped with it.
    Lost { fragments: u16 },
}

impl std::fmt::Display for Besides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Orphaned { from, fragments } => {
                let many = counted(
                    usize::try_from(*fragments).unwrap_or(usize::MAX),
                    "fragment",
                    "fragments",
                );
                write!(f, "before: dropped orphan_fragment at {from}, {many}")
            }
            Self::Split { mtu } => write!(f, "in fragments of at most {mtu} bytes"),
            Self::Answered { packet } => write!(f, "answered: {packet}"),
            Self::Unanswered { reason, at } => write!(f, "its answer: dropped {reason} at {at}"),
            Self::Released { packet, verdict } => write!(f, "follows: {packet}  {verdict}"),
            Self::Lost { fragments } => {
                let many = counted(usize::from(*fragments), "fragment", "fragments");
                write!(
                    f,
                    "with it: dropped overlapping_fragment, {many} that waited"
                )
            }
        }
    }
}

/// What let a packet pass one interface's groups.
#[derive(Debug, Serialize)]
struct Let {
    by: By,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
}

impl From<Option<Admission>> for Let {
    fn from(admission: Option<Admission>) -> Self {
        Self {
            by: match admission {
                None => By::None,
                Some(Admission { tracked: true, .. }) => By::Flow,
                Some(Admission { tracked: false, .. }) => By::Rule,
            },
            rule: admission.map(|admission| admission.rule.to_string()),
        }
    }
}

impl std::fmt::Display for Verdict {
    /// As expectations are written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Delivered { to, out, r#in } => {
                write!(
                    f,
                    "delivered to {to} (out by {}, in by {})",
                    out.by, r#in.by
                )
            }
            Self::Dropped { reason, at } => write!(f, "dropped {reason} at {at}"),
            Self::Held => f.write_str("held"),
        }
    }
}

/// A lab without devices, where time is what the list says.
#[derive(Debug)]
struct Replay {
    policy: Policy,
    datapath: Datapath,
    /// Interfaces by id; they are the same in every lab file that takes over.
    interfaces: HashMap<String, InterfaceIx>,
}

impl Replay {
    fn new(model: &Model) -> Self {
        let policy = Policy::compile(model, None);
        let interfaces = policy
            .interfaces()
            .map(|(at, interface)| (interface.id.clone(), at))
            .collect();
        Self {
            policy,
            datapath: Datapath::new(DEFAULT_CAPACITY),
            interfaces,
        }
    }

    fn all(mut self, events: &[Event]) -> Report {
        let events: Vec<Line> = events.iter().map(|event| self.event(event)).collect();
        let count = |which: fn(&Happened) -> bool| {
            let happened = events.iter().map(|line| &line.what);
            happened.filter(|what| which(what)).count()
        };
        let unmet = count(|what| {
            matches!(
                what,
                Happened::Packet {
                    met: Some(false),
                    ..
                }
            )
        });
        let came_to = |which: fn(&Verdict) -> bool| {
            let happened = events.iter().map(|line| &line.what);
            happened
                .filter(|what| matches!(what, Happened::Packet { verdict, .. } if which(verdict)))
                .count()
        };
        Report {
            as_expected: unmet == 0,
            packets: came_to(|_| true),
            delivered: came_to(|verdict| matches!(verdict, Verdict::Delivered { .. })),
            dropped: came_to(|verdict| matches!(verdict, Verdict::Dropped { .. })),
            held: came_to(|verdict| matches!(verdict, Verdict::Held)),
            expectations: count(|what| matches!(what, Happened::Packet { met: Some(_), .. })),
            unmet,
            events,
        }
    }

    fn event(&mut self, event: &Event) -> Line {
        let what = match &event.what {
            What::Change { file, model } => {
                self.policy = Policy::compile(model, Some(&self.policy));
                Happened::Change {
                    file: file.clone(),
                    generation: self.policy.generation(),
                }
            }
            What::Packet {
                from,
                bytes,
                expected,
            } => self.packet(from, bytes.clone(), expected.as_ref(), event.at.into()),
        };
        Line {
            line: event.line,
            time: event.at,
            what,
        }
    }

    fn packet(
        &self,
        from: &str,
        mut frame: Vec<u8>,
        expected: Option<&Expected>,
        now: Millis,
    ) -> Happened {
        let mut besides = Vec::new();
        // As an appliance does every second: what has expired gives its place
        // back.
        for (from, fragments) in self.datapath.sweep(now).orphans {
            let from = self.label(from);
            besides.push(Besides::Orphaned { from, fragments });
        }
        let packet = describe::packet(packet::parse(&frame), frame.len());
        let sender = self.interfaces[from];
        let verdict = self.datapath.judge(
            &self.policy,
            sender,
            &mut frame,
            Shape::Whole,
            now,
            &mut Silent,
        );
        let met = expected.map(|expected| self.meets(&verdict, expected));
        self.add_besides(sender, &frame, &verdict, &mut besides);
        Happened::Packet {
            from: self.label(sender),
            packet,
            verdict: self.verdict(&verdict),
            expected: expected.map(|expected| self.expectation(expected)),
            met,
            besides,
        }
    }

    /// What else a packet from `sender` set off; `frame` is as judging left it.
    fn add_besides(
        &self,
        sender: InterfaceIx,
        frame: &[u8],
        verdict: &datapath::Verdict,
        besides: &mut Vec<Besides>,
    ) {
        if verdict.lost > 0 {
            let fragments = verdict.lost;
            besides.push(Besides::Lost { fragments });
        }
        match verdict.answer {
            None => {}
            Some(Answer::Sent { length }) => besides.push(Besides::Answered {
                packet: describe::packet(packet::parse(&frame[..length]), length),
            }),
            Some(Answer::Dropped { reason, at }) => besides.push(Besides::Unanswered {
                reason,
                at: self.label(at),
            }),
        }
        besides.extend(split(verdict.fate));
        while let Some((frame, verdict)) = self.datapath.next_released(sender) {
            besides.push(Besides::Released {
                packet: describe::packet(packet::parse(&frame), frame.len()),
                verdict: self.verdict(&verdict),
            });
            besides.extend(split(verdict.fate));
        }
    }

    fn meets(&self, verdict: &datapath::Verdict, expected: &Expected) -> bool {
        match (expected, verdict.fate) {
            (Expected::Delivered { to, by }, Fate::Forward { to: arrived, .. }) => {
                let met = (Let::from(verdict.egress).by, Let::from(verdict.ingress).by);
                self.is(arrived, to) && by.is_none_or(|by| by == met)
            }
            (
                Expected::Dropped { reason, at },
                Fate::Drop {
                    reason: why,
                    at: here,
                },
            ) => *reason == why && self.is(here, at),
            (Expected::Held, Fate::Hold { .. }) => true,
            _ => false,
        }
    }

    fn verdict(&self, verdict: &datapath::Verdict) -> Verdict {
        match verdict.fate {
            Fate::Forward { to, .. } => Verdict::Delivered {
                to: self.label(to),
                out: verdict.egress.into(),
                r#in: verdict.ingress.into(),
            },
            Fate::Hold { .. } => Verdict::Held,
            Fate::Drop { reason, at } => Verdict::Dropped {
                reason,
                at: self.label(at),
            },
        }
    }

    fn is(&self, at: InterfaceIx, id: &str) -> bool {
        self.interfaces.get(id) == Some(&at)
    }

    fn label(&self, at: InterfaceIx) -> String {
        match self.policy.interface(at) {
            Some(interface) => interface.label.clone(),
            None => format!("interface {}", at.ix()),
        }
    }

    /// The expectation as it may be written.
    fn expectation(&self, expected: &Expected) -> String {
        let label = |id: &str| self.label(self.interfaces[id]);
        match expected {
            Expected::Delivered { to, by: None } => format!("delivered to {}", label(to)),
            Expected::Delivered {
                to,
                by: Some((out, into)),
            } => format!("delivered to {} (out by {out}, in by {into})", label(to)),
            Expected::Dropped { reason, at } => format!("dropped {reason} at {}", label(at)),
            Expected::Held => "held".to_owned(),
        }
    }
}

fn split(fate: Fate) -> Option<Besides> {
    match fate {
        Fate::Forward {
            split: Some(mtu), ..
        } => Some(Besides::Split { mtu }),
        _ => None,
    }
}

fn as_seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}
