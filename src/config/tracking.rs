//! `tracking:` of entities and interfaces: idle timeouts and the allowance.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::diagnostic::Report;
use super::reader::{Fields, decimal};
use super::source::Span;
use super::yaml::{Node, Value};
use crate::model::Tracking;

/// Idle timeouts with their ranges in seconds (aws-semantics §3.5).
const TIMEOUTS: [(&str, RangeInclusive<i64>); 3] = [
    ("tcp_established", 60..=432_000),
    ("udp_timeout", 30..=60),
    ("udp_stream", 60..=180),
];
/// `tcp_established` of Nitro v6 instance types where nobody sets it
/// (aws-semantics §3.5).
const NITRO_V6_TCP_ESTABLISHED: Duration = Duration::from_secs(350);
/// The allowance of an entity.
const MAX_FLOWS: &str = "max_flows";

/// Where `tracking:` stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// In an entity, for its only interface and for the entity as a whole.
    Entity,
    /// In an entry of `interfaces:`.
    Interface,
}

/// The timeouts of an interface that sets none.
pub(super) fn defaults(nitro_v6: bool) -> Tracking {
    let mut tracking = Tracking::default();
    if nitro_v6 {
        tracking.tcp_established = NITRO_V6_TCP_ESTABLISHED;
    }
    tracking
}

/// Reads the timeouts.
pub(super) fn read(report: &mut Report, node: &Node, at: At, defaults: Tracking) -> Tracking {
    let mut tracking = defaults;
    let Some(fields) = report.fields(node, "`tracking`", &keys()) else {
        return tracking;
    };
    if let Some(entry) = fields.entry(MAX_FLOWS)
        && at == At::Interface
    {
        report
            .error(
                entry.key,
                "`max_flows` is the allowance of an entity, all its interfaces together",
            )
            .help("move it to `tracking: { max_flows: … }` of the entity, beside `interfaces`");
    }
    let slots = [
        &mut tracking.tcp_established,
        &mut tracking.udp_timeout,
        &mut tracking.udp_stream,
    ];
    for ((key, range), slot) in TIMEOUTS.into_iter().zip(slots) {
        if let Some(node) = fields.get(key)
            && let Some(seconds) = read_seconds(report, node, key, range)
        {
            *slot = Duration::from_secs(seconds);
        }
    }
    tracking
}

/// The allowance of the entity with these fields. What else is wrong with its
/// `tracking` is left to [`read`] and [`refuse_timeouts`].
pub(super) fn read_max_flows(report: &mut Report, fields: &Fields<'_>) -> Option<u32> {
    let Value::Map(pairs) = &fields.get("tracking")?.value else {
        return None;
    };
    let is_key =
        |key: &Node| matches!(&key.value, Value::Scalar { text, .. } if **text == *MAX_FLOWS);
    let (_, node) = pairs.iter().find(|(key, _)| is_key(key))?;
    let count = report.number(node, "`max_flows`", 1..=u32::MAX.into())?;
    u32::try_from(count).ok()
}

/// Of an entity that lists its interfaces (at `list`): `tracking` may say its
/// allowance and no timeouts, which are each interface's own.
pub(super) fn refuse_timeouts(report: &mut Report, node: &Node, what: &str, list: Span) {
    let Some(fields) = report.fields(node, "`tracking`", &keys()) else {
        return;
    };
    for (key, _) in TIMEOUTS {
        if let Some(entry) = fields.entry(key) {
            report
                .error(
                    entry.key,
                    format!("{what} has both `interfaces` and a `{key}` of its own"),
                )
                .also(list, "the interfaces")
                .help(format!(
                    "move `{key}` into `tracking` of the entries of `interfaces`"
                ));
        }
    }
}

fn keys() -> [&'static str; 4] {
    let [(tcp, _), (udp, _), (stream, _)] = TIMEOUTS;
    [tcp, udp, stream, MAX_FLOWS]
}

/// Seconds, as `350` or `350s`.
fn read_seconds(
    report: &mut Report,
    node: &Node,
    key: &str,
    range: RangeInclusive<i64>,
) -> Option<u64> {
    let what = format!("`{key}`");
    let bare = match &node.value {
        Value::Scalar { text, .. } => text.strip_suffix('s').and_then(decimal),
        _ => None,
    };
    let seconds = match bare {
        None => report.number(node, &what, range)?,
        Some(seconds) if range.contains(&seconds) => seconds,
        Some(seconds) => {
            let (least, most) = (range.start(), range.end());
            report
                .error(
                    node.span,
                    format!("{what} must be from {least} to {most} seconds, not {seconds}"),
                )
                .help(format!("write a number from {least} to {most}"));
            return None;
        }
    };
    u64::try_from(seconds).ok()
}
