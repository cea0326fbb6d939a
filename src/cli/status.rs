//! `sgwall status`: ask a running appliance how it is.

use std::fmt::Write as _;
use std::time::Duration;

use clap_complete::ArgValueCandidates;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::Value;

use super::output::{Paint, print, print_json};
use super::{CliError, Format, Outcome, complete};
use crate::lab::control::{Client, Request};
use crate::lab::{LAB_VARIABLE, Session};
use crate::observe::{InterfaceStatus, MemberStatus, Proof, Status};

mod probe;

/// Arguments of `sgwall status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: 0 every interface is proven to enforce, 1 one is not, 3 no lab is
running or it does not answer; with --probe within 2 seconds.

As a health check (the image has no shell, so `docker run --health-cmd` can't work;
the image's own health check needs no option):
  Compose:    healthcheck: { test: [CMD, /sgwall, status, --probe] }
  Kubernetes: startupProbe: { exec: { command: [/sgwall, status, --probe] } }")]
pub struct Args {
    /// The lab, where several are running.
    #[arg(long, value_name = "NAME", env = LAB_VARIABLE, add = ArgValueCandidates::new(complete::labs))]
    lab: Option<String>,
    /// Answer in one line, within 2 seconds, for health checks.
    #[arg(long)]
    probe: bool,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Asks and prints.
///
/// # Errors
/// [`CliError::System`] if no lab answers.
pub fn run(args: &Args) -> Result<Outcome, CliError> {
    if args.probe {
        return probe::probe(args.lab.clone(), args.format);
    }
    let (name, status, body) = ask(args.lab.as_deref())?;
    match args.format {
        Format::Text => print(&text(&name, &status, Paint::stdout()))?,
        Format::Json => print_json(&body)?,
    }
    Ok(if status.enforcing {
        Outcome::Yes
    } else {
        Outcome::No
    })
}

/// Asks the lab of that name, or the only one, for its status: its name, the status, and
/// that as it came.
fn ask(lab: Option<&str>) -> Result<(String, Status, Value), CliError> {
    let lab = Session::find(lab)?;
    let name = lab.name.clone();
    let mut client = Client::connect(&lab)?;
    let (body, _) = client.call(&Request::new("status"))?;
    let status = serde_json::from_value(body.clone()).map_err(|error| {
        CliError::System(format!(
            "lab {name} answers in a way that this version doesn't understand: {error}"
        ))
    })?;
    Ok((name, status, body))
}

fn text(name: &str, status: &Status, paint: Paint) -> String {
    let mut out = String::new();
    let state = if status.enforcing {
        paint.good("enforcing")
    } else {
        paint.bad("NOT ENFORCING")
    };
    let up = Duration::from_secs(status.uptime_ms / 1000);
    let _ = writeln!(
        out,
        "lab {name} (pid {}, up {}): {state}",
        status.pid,
        for_people(up)
    );
    let policy = &status.policy;
    let _ = writeln!(
        out,
        "policy generation {}, {} reloads, {} refused; {} of {} flows remembered; {} worker{}",
        policy.generation,
        policy.reloads,
        policy.refused,
        status.flows.remembered,
        status.flows.capacity,
        status.workers,
        if status.workers == 1 { "" } else { "s" },
    );
    if let Some(why) = &policy.unread {
        let _ = writeln!(out, "{} {why}", paint.bad("not read:"));
    }
    if let Some(why) = &policy.last_refusal {
        let _ = writeln!(out, "{} {why}", paint.bad("the latest change was refused:"));
    }
    for interface in &status.interfaces {
        if interface.flow_entries_available == 0 {
            let _ = writeln!(
                out,
                "{}: holds {} flow table entries, as many as are free; its new flows are dropped (flow_table_full)",
                interface.name, interface.flow_entries
            );
        }
    }
    out.push('\n');
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // Few labs limit what an entity may track.
    let limited = status
        .interfaces
        .iter()
        .any(|interface| interface.conntrack_allowance.is_some());
    let mut header = vec![
        "INTERFACE",
        "KIND",
        "ADDRESS",
        "GROUPS",
        "PROOF",
        "IN",
        "OUT",
    ];
    header.extend(limited.then_some("ALLOWANCE"));
    header.push("DROPS");
    table.set_header(header);
    for interface in &status.interfaces {
        table.add_row(row(interface, limited));
    }
    for column in [5, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in table.lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
    if !status.members.is_empty() {
        out.push_str("\nmembers by name, and how long their addresses count unless renewed:\n");
        for member in &status.members {
            let _ = writeln!(out, "  {}", described(member));
        }
    }
    if !status.recent_drops.is_empty() {
        out.push_str("\nlast dropped, the latest at the end:\n");
        for drop in &status.recent_drops {
            let _ = writeln!(out, "  {}", drop.text);
        }
    }
    out
}

/// Returns a line that describes a member and its addresses.
fn described(member: &MemberStatus) -> String {
    let mut parts = Vec::new();
    for it in &member.addresses {
        let time = for_people(Duration::from_millis(it.counts_for_ms));
        parts.push(format!("{} ({time})", it.address));
    }
    if parts.is_empty() {
        parts.push("no addresses".to_owned());
    }
    if let Some(trouble) = &member.trouble {
        parts.push(format!("can't be resolved: {trouble}"));
    }
    format!("{}: {}", member.name, parts.join(", "))
}

/// `limited`: whether there is a column for the allowance.
fn row(interface: &InterfaceStatus, limited: bool) -> Vec<String> {
    let amount = |packets: u64, bytes: u64| format!("{packets} ({})", for_people_bytes(bytes));
    let drops: Vec<String> = interface
        .drops
        .iter()
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    let mut row = vec![
        interface.name.clone(),
        interface.kind.clone(),
        interface.addresses.join(" "),
        interface.security_groups.join(" "),
        match &interface.proof {
            Proof::Outside => "-".to_owned(),
            proof => proof.to_string(),
        },
        amount(interface.packets_in, interface.bytes_in),
        amount(interface.packets_out, interface.bytes_out),
    ];
    row.extend(limited.then(|| allowance(interface)));
    row.push(if drops.is_empty() {
        "-".to_owned()
    } else {
        drops.join(", ")
    });
    row
}

/// How much is left of the connection allowance.
fn allowance(interface: &InterfaceStatus) -> String {
    match (
        interface.conntrack_allowance_available,
        interface.conntrack_allowance,
    ) {
        (Some(available), Some(limit)) => format!("{available} of {limit} left"),
        _ => "-".to_owned(),
    }
}

fn for_people(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// Binary units, three digits at most.
fn for_people_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = bytes;
    let mut unit = 0;
    while scaled >= 10_000 && unit + 1 < UNITS.len() {
        scaled /= 1024;
        unit += 1;
    }
    format!("{scaled} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_short() {
        assert_eq!(for_people_bytes(0), "0 B");
        assert_eq!(for_people_bytes(9_999), "9999 B");
        assert_eq!(for_people_bytes(10_240), "10 KiB");
        assert_eq!(for_people_bytes(u64::MAX), "16777215 TiB");
        assert_eq!(for_people(Duration::from_secs(3_725)), "1 h 2 min");
    }
}
