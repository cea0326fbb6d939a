//! `sgwall explain`: would this packet pass, and which rule decides.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::ValueHint;
use clap_complete::ArgValueCandidates;

use super::output::{Paint, pad, print, print_json};
use super::{CliError, Format, Outcome, check, complete};
use crate::config::nearest;
use crate::datapath::{EPHEMERAL, Explanation, Leg, LegStep, Question, explain};
use crate::model::{Model, protocol};
use crate::packet::{TcpFlags, Transport};
use crate::policy::Policy;

pub(super) mod peer;

use peer::{Family, resolve};

/// Arguments of `sgwall explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sgwall explain lab.yaml --from web-1 --to db --protocol tcp --port 5432
  sgwall explain lab.yaml --from client --to 203.0.113.10 --protocol icmp
  sgwall explain lab.yaml --from lb --to web-1 --protocol udp --port 53 --format json

Exit code: 0 request and reply pass, 1 one of them doesn't, 2 wrong usage.")]
pub struct Args {
    /// The lab file; `-` is standard input.
    #[arg(value_name = "LAB", value_hint = ValueHint::FilePath)]
    lab: PathBuf,
    /// Further files with security groups (repeatable).
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    rules: Vec<PathBuf>,
    /// Who sends: an entity, ENTITY/ethN, an ENI id, or an address.
    #[arg(long, value_name = "PEER", add = ArgValueCandidates::new(complete::peers_of_file))]
    from: String,
    /// To whom: the same, or any address.
    #[arg(long, value_name = "PEER", add = ArgValueCandidates::new(complete::peers_of_file))]
    to: String,
    /// tcp, udp, icmp, icmpv6, gre, esp, ah, sctp or a protocol number.
    #[arg(long, value_name = "PROTOCOL", allow_negative_numbers = true)]
    protocol: String,
    /// Destination port (tcp and udp).
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    port: Option<u16>,
    /// Source port (tcp and udp); an ephemeral one otherwise.
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    source_port: Option<u16>,
    /// ICMP type; an echo request otherwise.
    #[arg(long = "type", value_name = "TYPE", allow_negative_numbers = true)]
    kind: Option<u8>,
    /// ICMP code; 0 otherwise.
    #[arg(
        long,
        value_name = "CODE",
        requires = "kind",
        allow_negative_numbers = true
    )]
    code: Option<u8>,
    /// Take what exceeds AWS's quotas for a warning, not for a mistake.
    #[arg(long)]
    ignore_quotas: bool,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Explains and prints.
///
/// # Errors
/// [`CliError::Usage`] if the question makes no sense.
pub fn run(args: &Args) -> Result<Outcome, CliError> {
    let options = check::options(args.ignore_quotas);
    let model = match check::load_or_report(&args.lab, &args.rules, options, args.format) {
        Ok(loaded) => loaded.model,
        Err(outcome) => return Ok(outcome),
    };
    let policy = Policy::compile(&model, None);
    let question = question(args, &model)?;
    let answer = explain(&policy, &question).map_err(|error| CliError::Usage(error.to_string()))?;
    match args.format {
        Format::Text => print(&text(&answer, Paint::stdout()))?,
        Format::Json => print_json(&answer)?,
    }
    Ok(if answer.allowed {
        Outcome::Yes
    } else {
        Outcome::No
    })
}

fn question(args: &Args, model: &Model) -> Result<Question, CliError> {
    let protocol = protocol_number(&args.protocol)?;
    let ports = matches!(protocol, protocol::TCP | protocol::UDP);
    let icmp = matches!(protocol, protocol::ICMP | protocol::ICMPV6);
    if !ports && (args.port.is_some() || args.source_port.is_some()) {
        return Err(CliError::Usage(format!(
            "--port and --source-port are for tcp and udp, not {}",
            args.protocol
        )));
    }
    if !icmp && args.kind.is_some() {
        return Err(CliError::Usage(format!(
            "--type and --code are for icmp and icmpv6, not {}",
            args.protocol
        )));
    }
    let family = match protocol {
        protocol::ICMP => Family::V4,
        protocol::ICMPV6 => Family::V6,
        _ => Family::Either,
    };
    let ends = resolve(model, &args.from, &args.to, family)?;
    Ok(Question {
        from: ends.from,
        source: ends.source,
        destination: ends.destination,
        protocol,
        transport: transport(args, protocol)?,
    })
}

fn transport(args: &Args, number: u8) -> Result<Transport, CliError> {
    let source = args.source_port.unwrap_or(EPHEMERAL);
    let port = || {
        args.port
            .ok_or_else(|| CliError::Usage(format!("--protocol {} needs --port", args.protocol)))
    };
    Ok(match number {
        protocol::TCP => Transport::Tcp {
            source,
            destination: port()?,
            flags: TcpFlags {
                syn: true,
                ..TcpFlags::default()
            },
            end: 1,
            acknowledgement: 0,
        },
        protocol::UDP => Transport::Udp {
            source,
            destination: port()?,
        },
        protocol::ICMP => icmp(args, 8, &[8, 13, 15, 17], &[0, 14, 16, 18]),
        protocol::ICMPV6 => icmp(args, 128, &[128], &[129]),
        _ => Transport::Other,
    })
}

fn icmp(args: &Args, echo: u8, requests: &[u8], replies: &[u8]) -> Transport {
    let kind = args.kind.unwrap_or(echo);
    let code = args.code.unwrap_or(0);
    if requests.contains(&kind) || replies.contains(&kind) {
        Transport::IcmpQuery {
            kind,
            code,
            id: 1,
            request: requests.contains(&kind),
        }
    } else {
        Transport::Icmp { kind, code }
    }
}

const PROTOCOLS: [&str; 8] = ["tcp", "udp", "icmp", "icmpv6", "gre", "esp", "ah", "sctp"];

fn protocol_number(text: &str) -> Result<u8, CliError> {
    let number = match text.to_ascii_lowercase().as_str() {
        "tcp" => protocol::TCP,
        "udp" => protocol::UDP,
        "icmp" => protocol::ICMP,
        "icmpv6" => protocol::ICMPV6,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "sctp" => 132,
        "all" | "-1" => {
            return Err(CliError::Usage(format!(
                "'{text}' means every protocol, and a packet has one: give tcp, udp, icmp, icmpv6 or a number"
            )));
        }
        other => other.parse().map_err(|_| {
            let help = match nearest(other, PROTOCOLS) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("give {} or a number from 0 to 255", PROTOCOLS.join(", ")),
            };
            CliError::Usage(format!("unknown protocol '{text}': {help}"))
        })?,
    };
    Ok(number)
}

fn text(answer: &Explanation, paint: Paint) -> String {
    let mut out = String::new();
    let verdict = if answer.allowed {
        paint.good("ALLOWED")
    } else {
        paint.bad("DENIED")
    };
    let request = &answer.request;
    // The trap that most people meet first.
    let half = if request.delivered && !answer.allowed {
        ": it arrives, but the reply doesn't"
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "{verdict}  {} from {} ({}) to {}{half}",
        request.traffic,
        request.from,
        request.source,
        match &request.destination_name {
            Some(name) => format!("{name} ({})", request.destination),
            None => request.destination.to_string(),
        },
    );
    leg(&mut out, "request", request, paint);
    match &answer.reply {
        Some(reply) => leg(&mut out, "reply", reply, paint),
        None if answer.allowed => {
            let _ = writeln!(
                out,
                "\n{}",
                paint.faint("this kind of message has no reply")
            );
        }
        None => {}
    }
    out
}

fn leg(out: &mut String, name: &str, leg: &Leg, paint: Paint) {
    let _ = writeln!(
        out,
        "\n{}  {} to {}",
        paint.strong(name),
        leg.source,
        leg.destination
    );
    let layers = width(leg, |step| step.layer);
    let interfaces = width(leg, |step| &step.interface);
    for step in &leg.steps {
        let decision = match step.decision {
            "pass" => paint.good("pass"),
            other => paint.bad(other),
        };
        let _ = writeln!(
            out,
            "  {decision}  {}  {}  {}",
            pad(step.layer, layers),
            pad(&step.interface, interfaces),
            step.what
        );
        details(out, step, paint);
    }
}

fn details(out: &mut String, step: &LegStep, paint: Paint) {
    let indent = "        ";
    if let Some(rule) = &step.rule {
        let described = if rule.description.is_empty() {
            String::new()
        } else {
            format!("\"{}\", ", rule.description)
        };
        let _ = writeln!(
            out,
            "{indent}{}",
            paint.faint(&format!("{described}{}", rule.place))
        );
    }
    // Of what AWS adds by itself there is no place worth showing.
    let acl = step.acl.as_ref().map(|acl| (&acl.place, acl.line));
    let route = step.route.as_ref().map(|route| (&route.place, route.line));
    if let Some((place, Some(_))) = acl.or(route) {
        let _ = writeln!(out, "{indent}{}", paint.faint(place));
    }
    if let Some(missing) = &step.missing {
        let _ = writeln!(out, "{indent}missing: {missing}");
    }
    let mut others = 0;
    for near in &step.near_misses {
        let why = match (near.peer_covers, near.traffic_covers) {
            (true, false) => "covers the peer, not the traffic",
            (false, true) => "covers the traffic, not the peer",
            _ => {
                others += 1;
                continue;
            }
        };
        let rule = &near.rule;
        let _ = writeln!(out, "{indent}near:    {rule} {why} ({})", rule.place);
    }
    if others > 0 {
        let _ = writeln!(
            out,
            "{indent}{}",
            paint.faint(&format!(
                "{others} more {} neither",
                if others == 1 {
                    "rule covers"
                } else {
                    "rules cover"
                }
            ))
        );
    }
}

fn width<'a>(leg: &'a Leg, of: impl Fn(&'a LegStep) -> &'a str) -> usize {
    leg.steps
        .iter()
        .map(|step| of(step).chars().count())
        .max()
        .unwrap_or(0)
}
