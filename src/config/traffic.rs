//! What a rule of a group or an entry of a network ACL covers: `protocol`, then
//! `ports`, or `type` and `code`.

use super::diagnostic::{Report, quoted};
use super::names::Family;
use super::reader::{Fields, decimal};
use super::source::Span;
use super::suggest::nearest;
use super::yaml::{Node, Value};
use crate::model::{IcmpMatch, PortRange, Traffic, protocol};

/// What the traffic is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// A rule of a security group.
    Rule,
    /// An entry of a network ACL with a block of this family, if it has one.
    Entry(Option<Family>),
}

impl Holder {
    fn noun(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Entry(_) => "entry",
        }
    }
}

/// What ICMP traffic must say about its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Type,
    TypeAndCode,
}

/// Reads the keys that say which traffic is meant.
pub(super) fn read(report: &mut Report, fields: &Fields<'_>, holder: Holder) -> Option<Traffic> {
    let noun = holder.noun();
    let Some(node) = fields.get("protocol") else {
        report
            .error(fields.span, format!("the {noun} has no `protocol`"))
            .help(
                "write `protocol: tcp`, `udp`, `icmp`, `icmpv6`, `all` or a number from 0 to 255",
            );
        return None;
    };
    let number = read_protocol(report, node)?;
    warn_of_extension(report, node.span, &number, noun);
    // Which of type and code AWS requires: aws-semantics §1.1 for groups, §6
    // for network ACLs.
    match (number, holder) {
        (Protocol::Number(6), _) => Some(Traffic::Tcp(read_ports(report, fields, noun, "tcp")?)),
        (Protocol::Number(17), _) => Some(Traffic::Udp(read_ports(report, fields, noun, "udp")?)),
        (Protocol::Number(1), _) => {
            read_icmp(report, fields, noun, "icmp", Needs::Type).map(Traffic::Icmp)
        }
        (Protocol::Number(58), Holder::Rule) => {
            read_icmp(report, fields, noun, "icmpv6", Needs::Nothing).map(Traffic::Icmpv6)
        }
        (Protocol::Number(58), Holder::Entry(None | Some(Family::V6))) => {
            read_icmp(report, fields, noun, "icmpv6", Needs::TypeAndCode).map(Traffic::Icmpv6)
        }
        (Protocol::Number(58), Holder::Entry(Some(Family::V4))) => {
            warn_of_ignored(
                report,
                fields,
                "with an IPv4 block icmpv6 covers all types and codes",
                "remove `KEY`, or write an IPv6 block",
            );
            Some(Traffic::Icmpv6(IcmpMatch::Any))
        }
        (Protocol::Number(number), _) => {
            warn_of_no_ports(report, fields, noun);
            Some(Traffic::Other(number))
        }
        (Protocol::All, _) => {
            warn_of_no_ports(report, fields, noun);
            Some(Traffic::All)
        }
    }
}

/// Warns where ICMP of one family is to come from the other, which it never
/// does. `peer` is the far side as written, `family` its family.
pub(super) fn warn_of_family(
    report: &mut Report,
    traffic: Traffic,
    holder: Holder,
    span: Span,
    peer: &str,
    family: Option<Family>,
) {
    let (name, carrier, other) = match traffic {
        Traffic::Icmp(_) => ("icmp", Family::V4, "icmpv6"),
        Traffic::Icmpv6(_) => ("icmpv6", Family::V6, "icmp"),
        _ => return,
    };
    let Some(found) = family.filter(|found| *found != carrier) else {
        return;
    };
    let far_side = match holder {
        Holder::Rule => "a peer",
        Holder::Entry(_) => "a block",
    };
    report
        .warning(
            span,
            format!(
                "this {} never matches: {name} is carried by {} only, and {} is {}",
                holder.noun(),
                carrier.as_str(),
                quoted(peer),
                found.as_str()
            ),
        )
        .help(format!(
            "use `protocol: {other}`, or {far_side} of the other family"
        ));
}

/// Warns of a protocol number that is an extension header in IPv6, so that no IPv6 packet has it
/// as its protocol. An IPv4 packet with this number still matches the rule.
fn warn_of_extension(report: &mut Report, span: Span, protocol: &Protocol, noun: &str) {
    let Protocol::Number(number) = *protocol else {
        return;
    };
    if !protocol::is_ipv6_extension(number) {
        return;
    }
    let remedy = match number {
        0 => "write `protocol: all` for every protocol, or name the one that follows the header",
        _ => "name the protocol that follows the header, for example `tcp`",
    };
    report
        .warning(
            span,
            format!(
                "this {noun} never matches an IPv6 packet: {number} is an IPv6 extension header, not a protocol"
            ),
        )
        .help(format!(
            "{remedy}; all that can match is an IPv4 packet with this number, which hosts don't send"
        ));
}

enum Protocol {
    All,
    Number(u8),
}

fn read_protocol(report: &mut Report, node: &Node) -> Option<Protocol> {
    let text = report.text(node, "`protocol`", "`tcp`")?;
    let help = match text.to_lowercase().as_str() {
        "tcp" if text == "tcp" => return Some(Protocol::Number(6)),
        "udp" if text == "udp" => return Some(Protocol::Number(17)),
        "icmp" if text == "icmp" => return Some(Protocol::Number(1)),
        "icmpv6" if text == "icmpv6" => return Some(Protocol::Number(58)),
        "all" if text == "all" => return Some(Protocol::All),
        "any" | "*" => "write `all`".to_owned(),
        "icmp6" | "ipv6-icmp" | "icmp-v6" => "write `icmpv6`".to_owned(),
        "gre" => "write its number, `47`".to_owned(),
        "esp" => "write its number, `50`".to_owned(),
        "ah" => "write its number, `51`".to_owned(),
        "sctp" => "write its number, `132`".to_owned(),
        lower => match (
            decimal(lower),
            nearest(lower, ["tcp", "udp", "icmp", "icmpv6", "all"]),
        ) {
            (Some(-1), _) => return Some(Protocol::All),
            (Some(number), _) => match u8::try_from(number) {
                Ok(number) => return Some(Protocol::Number(number)),
                Err(_) => "protocol numbers are from 0 to 255; -1 means all".to_owned(),
            },
            (None, Some(near)) => format!("did you mean `{near}`?"),
            (None, None) => {
                "write `tcp`, `udp`, `icmp`, `icmpv6`, `all` or a number from 0 to 255".to_owned()
            }
        },
    };
    report
        .error(node.span, format!("there is no protocol {}", quoted(text)))
        .help(help);
    None
}

fn read_ports(
    report: &mut Report,
    fields: &Fields<'_>,
    noun: &str,
    protocol: &str,
) -> Option<PortRange> {
    for key in ["type", "code"] {
        if let Some(entry) = fields.entry(key) {
            report
                .error(
                    entry.key,
                    format!("a {protocol} {noun} has ports, and no `{key}`"),
                )
                .help(format!("remove `{key}`, or write `protocol: icmp`"));
        }
    }
    let help = "write `ports: 443`, `ports: 8080-8090`, or `ports: 0-65535` for every port";
    let Some(node) = fields.get("ports") else {
        report
            .error(fields.span, format!("the {protocol} {noun} has no `ports`"))
            .help(help);
        return None;
    };
    let text = match &node.value {
        Value::Scalar { text, .. } if !node.is_null() => text.trim(),
        _ => {
            let help = match node.value {
                Value::List(_) => {
                    let each = if noun == "rule" { "a rule" } else { "an entry" };
                    format!("{each} has one port or one range; write {each} for each")
                }
                _ => help.to_owned(),
            };
            report
                .wrong_type(node, "`ports`", "a port or a range")
                .help(help);
            return None;
        }
    };
    if text == "all" {
        return Some(PortRange::ALL);
    }
    let range = match text.split_once('-') {
        Some((from, to)) if !from.is_empty() => (decimal(from.trim()), decimal(to.trim())),
        _ => (decimal(text), decimal(text)),
    };
    let (Some(from), Some(to)) = range else {
        report
            .error(
                node.span,
                format!("`ports`: {} is no port or range", quoted(text)),
            )
            .help(help);
        return None;
    };
    let (Ok(from), Ok(to)) = (u16::try_from(from), u16::try_from(to)) else {
        report
            .error(
                node.span,
                format!("`ports`: {} is outside 0-65535", quoted(text)),
            )
            .help("ports are from 0 to 65535; write `0-65535` for every port");
        return None;
    };
    if from > to {
        report
            .error(
                node.span,
                format!("`ports`: {} ends before it begins", quoted(text)),
            )
            .help(format!("write `{to}-{from}`"));
        return None;
    }
    if to == 0 {
        report
            .warning(
                node.span,
                format!("`ports: 0` is port 0 alone, which no {protocol} client connects to"),
            )
            .help("write `ports: 0-65535` for every port, or the port that is meant");
    }
    Some(PortRange { from, to })
}

fn read_icmp(
    report: &mut Report,
    fields: &Fields<'_>,
    noun: &str,
    name: &str,
    needs: Needs,
) -> Option<IcmpMatch> {
    let echo = if name == "icmp" { 8 } else { 128 };
    if let Some(entry) = fields.entry("ports") {
        report
            .error(entry.key, format!("{name} has no ports"))
            .help(format!(
                "remove `ports`; write `type: {echo}` for ping, `type: -1` for every message"
            ));
    }
    let Some(node) = fields.get("type") else {
        if needs == Needs::Nothing && fields.get("code").is_none() {
            return Some(IcmpMatch::Any);
        }
        let code = match needs {
            Needs::TypeAndCode if fields.get("code").is_none() => ", code: -1",
            _ => "",
        };
        report
            .error(fields.span, format!("the {name} {noun} has no `type`"))
            .help(format!(
                "write `type: {echo}{code}` for ping, `type: -1{code}` for every message"
            ));
        return None;
    };
    if needs == Needs::TypeAndCode && fields.get("code").is_none() {
        report
            .error(fields.span, format!("the {name} {noun} has no `code`"))
            .help(format!(
                "write `code: -1` for every code; AWS requires type and code of an {name} {noun} with an IPv6 block"
            ));
        return None;
    }
    let kind = report.number(node, "`type`", -1..=255);
    let code = match fields.get("code") {
        Some(node) => report.number(node, "`code`", -1..=255),
        None => Some(-1),
    };
    let (kind, code) = (kind?, code?);
    let Ok(kind) = u8::try_from(kind) else {
        if code != -1
            && let Some(entry) = fields.entry("code")
        {
            report
                .warning(
                    entry.value.span,
                    "`code` is ignored: type -1 covers every code, as on AWS",
                )
                .help("remove `code`, or name a type");
        }
        return Some(IcmpMatch::Any);
    };
    Some(match u8::try_from(code) {
        Ok(code) => IcmpMatch::TypeAndCode(kind, code),
        Err(_) => IcmpMatch::Type(kind),
    })
}

/// AWS ignores ports where the protocol has none, and so do we, audibly.
fn warn_of_no_ports(report: &mut Report, fields: &Fields<'_>, noun: &str) {
    warn_of_ignored(
        report,
        fields,
        "only tcp and udp have ports, only icmp and icmpv6 types",
        &format!("remove `KEY`: the {noun} covers all of this protocol"),
    );
}

/// `KEY` in the remedy stands for the key.
fn warn_of_ignored(report: &mut Report, fields: &Fields<'_>, why: &str, remedy: &str) {
    for key in ["ports", "type", "code"] {
        if let Some(entry) = fields.entry(key) {
            report
                .warning(entry.key, format!("`{key}` is ignored, as on AWS: {why}"))
                .help(remedy.replace("KEY", key));
        }
    }
}
