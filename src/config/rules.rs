//! The entries of `ingress:` and `egress:`: one entry, one rule for each peer.

use std::collections::HashMap;

use ipnet::IpNet;

use super::diagnostic::{Report, quoted};
use super::names::{Family, Names, find_group, find_list, read_description};
use super::net::{cidr_help, parse_net};
use super::reader::{Fields, decimal, is_id};
use super::source::Span;
use super::suggest::nearest;
use super::yaml::{Node, Value};
use crate::model::{
    Direction, IcmpMatch, Peer, PortRange, RuleId, SecurityGroup, SecurityGroupRule, Traffic,
};

/// A rule's id and the place to blame for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RuleSpan {
    pub(super) id: RuleId,
    /// `None` for AWS's defaults.
    pub(super) span: Option<Span>,
    /// Whether the id stands in the file.
    pub(super) written: bool,
}

/// Reads one direction of one group.
pub(super) fn read(
    report: &mut Report,
    node: &Node,
    direction: Direction,
    group: &SecurityGroup,
    names: &Names,
    spans: &mut Vec<RuleSpan>,
) -> Vec<SecurityGroupRule> {
    // Whoever deletes the last rule leaves the bare key behind. For ingress an
    // empty list and AWS's default are the same; for egress they are opposites.
    if node.is_null() && direction == Direction::Ingress {
        return Vec::new();
    }
    let what = format!("`{direction}` of security group {}", quoted(&group.name));
    let help = if node.is_null() {
        "write `[]` for no rules at all, or remove the key to have AWS's default"
    } else {
        "write one `- { protocol: …, ports: …, from: … }` for each entry"
    };
    let Some(items) = report.list(node, &what, help) else {
        return Vec::new();
    };
    let mut reader = RuleReader {
        direction,
        group,
        names,
        seen: HashMap::new(),
        rules: Vec::with_capacity(items.len()),
    };
    for item in items {
        reader.entry(report, item, spans);
    }
    reader.rules
}

struct RuleReader<'a> {
    direction: Direction,
    group: &'a SecurityGroup,
    names: &'a Names,
    seen: HashMap<(Traffic, Peer), Span>,
    rules: Vec<SecurityGroupRule>,
}

/// A peer as written and as understood.
struct PeerRead {
    peer: Peer,
    /// For people.
    text: String,
    /// For the derived id: canonical block, or the id of group or list.
    resolved: String,
    family: Option<Family>,
    span: Span,
}

const PEER_HELP: &str =
    "write a CIDR block as `10.0.0.0/16`, a group as `sg/NAME` or a prefix list as `pl/NAME`";

impl RuleReader<'_> {
    fn entry(&mut self, report: &mut Report, item: &Node, spans: &mut Vec<RuleSpan>) {
        let known = [
            "protocol",
            "ports",
            "type",
            "code",
            "from",
            "to",
            "description",
            "id",
        ];
        let Some(fields) = report.fields(item, "a rule", &known) else {
            return;
        };
        let traffic = read_traffic(report, &fields);
        let peers = self.peers(report, &fields);
        let count = peers.as_ref().map_or(0, |(listed, _)| *listed);
        let id = self.id(report, &fields, count);
        let peers = peers.map(|(_, peers)| peers).unwrap_or_default();
        let by_reference = peers
            .iter()
            .any(|peer| matches!(peer.peer, Peer::Group(_) | Peer::PrefixList(_)));
        let description = fields.get("description").map_or_else(String::new, |node| {
            read_description(report, node, "a rule", !by_reference)
        });
        let Some(traffic) = traffic else { return };
        for peer in peers {
            warn_of_family(report, traffic, &peer);
            if let Some(first) = self.seen.get(&(traffic, peer.peer)) {
                report
                    .error(
                        peer.span,
                        format!(
                            "the {} rule \"{traffic}, peer {}\" of group {} already exists",
                            self.direction,
                            peer.text,
                            quoted(&self.group.name)
                        ),
                    )
                    .also(*first, "first written here")
                    .help("remove one of the two; AWS refuses it as InvalidPermission.Duplicate");
                continue;
            }
            self.seen.insert((traffic, peer.peer), peer.span);
            let id = id.unwrap_or_else(|| {
                RuleId::derive(&[
                    &self.group.id,
                    self.direction.as_str(),
                    &traffic.to_string(),
                    &peer.resolved,
                ])
            });
            let written = fields.get("id").map(|node| node.span);
            spans.push(RuleSpan {
                id,
                span: Some(written.unwrap_or(peer.span)),
                written: written.is_some(),
            });
            self.rules.push(SecurityGroupRule {
                id,
                traffic,
                peer: peer.peer,
                peer_text: peer.text,
                description: description.clone(),
                place: report.place(item.span),
            });
        }
    }

    fn id(&self, report: &mut Report, fields: &Fields<'_>, peers: usize) -> Option<RuleId> {
        let node = fields.get("id")?;
        let text = report.text(node, "`id` of a rule", "`sgr-00123456789abcdef`")?;
        let Some(id) = RuleId::parse(text) else {
            report
                .error(node.span, format!("{} is no id of a rule", quoted(text)))
                .help("write `sgr-0` and 16 hex digits as in `sgr-00123456789abcdef`, or remove `id` to have one derived");
            return None;
        };
        if peers > 1 {
            report
                .error(
                    node.span,
                    format!("this entry yields {peers} rules, which can't share one id"),
                )
                .help("remove `id`, or write one entry for each peer");
            return None;
        }
        Some(id)
    }

    /// How many peers are listed, and those that could be read.
    fn peers(&self, report: &mut Report, fields: &Fields<'_>) -> Option<(usize, Vec<PeerRead>)> {
        let (right, wrong) = match self.direction {
            Direction::Ingress => ("from", "to"),
            Direction::Egress => ("to", "from"),
        };
        if let Some(entry) = fields.entry(wrong) {
            report
                .error(
                    entry.key,
                    format!("an {} rule takes `{right}`, not `{wrong}`", self.direction),
                )
                .help(format!(
                    "write `{right}`, or move the rule to `{}`",
                    self.direction.reverse()
                ));
        }
        let Some(node) = fields.get(right) else {
            if fields.get(wrong).is_none() {
                report
                    .error(fields.span, format!("the rule has no `{right}`"))
                    .help(PEER_HELP);
            }
            return None;
        };
        let items = report.one_or_list(node, &format!("`{right}`"), PEER_HELP)?;
        let peers = items
            .iter()
            .filter_map(|item| self.peer(report, item, right))
            .collect();
        Some((items.len(), peers))
    }

    fn peer(&self, report: &mut Report, node: &Node, key: &str) -> Option<PeerRead> {
        let text = report.text(node, &format!("`{key}`"), "`10.0.0.0/16` or `sg/web`")?;
        let group = match text.strip_prefix("sg/") {
            Some(name) => Some(name),
            None => is_id(text, "sg").then_some(text),
        };
        if let Some(name) = group {
            let ix = find_group(report, self.names, node.span, "sg/", name)?;
            return Some(PeerRead {
                peer: Peer::Group(ix),
                text: text.to_owned(),
                resolved: self.names.id_of_group[ix.ix()].clone(),
                family: None,
                span: node.span,
            });
        }
        let list = match text.strip_prefix("pl/") {
            Some(name) => Some(name),
            None => is_id(text, "pl").then_some(text),
        };
        if let Some(name) = list {
            let ix = find_list(report, self.names, node.span, name)?;
            let (id, family) = &self.names.id_of_list[ix.ix()];
            return Some(PeerRead {
                peer: Peer::PrefixList(ix),
                text: text.to_owned(),
                resolved: id.clone(),
                family: *family,
                span: node.span,
            });
        }
        let Some(net) = parse_net(text) else {
            let help = self.peer_help(text);
            report
                .error(
                    node.span,
                    format!(
                        "`{key}`: {} is no CIDR block, group or prefix list",
                        quoted(text)
                    ),
                )
                .help(help);
            return None;
        };
        let net = report.canonical(node, net);
        let peer = match net {
            IpNet::V4(net) => Peer::Ipv4(net),
            IpNet::V6(net) => Peer::Ipv6(net),
        };
        Some(PeerRead {
            peer,
            text: net.to_string(),
            resolved: net.to_string(),
            family: Some(Family::of(&net)),
            span: node.span,
        })
    }

    fn peer_help(&self, text: &str) -> String {
        if text == "self" {
            return format!("write `sg/{}` for the group itself", self.group.name);
        }
        if self.names.groups.contains_key(text) {
            return format!("write `sg/{text}` for the security group");
        }
        if self.names.lists.contains_key(text) {
            return format!("write `pl/{text}` for the prefix list");
        }
        if text.starts_with(|c: char| c.is_ascii_digit()) || text.contains([':', '*']) {
            return cidr_help(text);
        }
        match cidr_help(text) {
            help if help.contains("every") => help,
            _ => PEER_HELP.to_owned(),
        }
    }
}

/// ICMP of one family never comes from the other.
fn warn_of_family(report: &mut Report, traffic: Traffic, peer: &PeerRead) {
    let (name, family, other) = match traffic {
        Traffic::Icmp(_) => ("icmp", Family::V4, "icmpv6"),
        Traffic::Icmpv6(_) => ("icmpv6", Family::V6, "icmp"),
        _ => return,
    };
    let Some(found) = peer.family.filter(|found| *found != family) else {
        return;
    };
    report
        .warning(
            peer.span,
            format!(
                "this rule never matches: {name} is carried by {} only, and {} is {}",
                family.as_str(),
                quoted(&peer.text),
                found.as_str()
            ),
        )
        .help(format!(
            "use `protocol: {other}`, or a peer of the other family"
        ));
}

fn read_traffic(report: &mut Report, fields: &Fields<'_>) -> Option<Traffic> {
    let Some(node) = fields.get("protocol") else {
        report
            .error(fields.span, "the rule has no `protocol`")
            .help(
                "write `protocol: tcp`, `udp`, `icmp`, `icmpv6`, `all` or a number from 0 to 255",
            );
        return None;
    };
    match read_protocol(report, node)? {
        Protocol::Number(6) => Some(Traffic::Tcp(read_ports(report, fields, "tcp")?)),
        Protocol::Number(17) => Some(Traffic::Udp(read_ports(report, fields, "udp")?)),
        Protocol::Number(1) => Some(Traffic::Icmp(read_icmp(report, fields, true)?)),
        Protocol::Number(58) => Some(Traffic::Icmpv6(read_icmp(report, fields, false)?)),
        Protocol::Number(number) => {
            warn_of_ports(report, fields);
            Some(Traffic::Other(number))
        }
        Protocol::All => {
            warn_of_ports(report, fields);
            Some(Traffic::All)
        }
    }
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

fn read_ports(report: &mut Report, fields: &Fields<'_>, protocol: &str) -> Option<PortRange> {
    for key in ["type", "code"] {
        if let Some(entry) = fields.entry(key) {
            report
                .error(
                    entry.key,
                    format!("a {protocol} rule has ports, and no `{key}`"),
                )
                .help(format!("remove `{key}`, or write `protocol: icmp`"));
        }
    }
    let help = "write `ports: 443`, `ports: 8080-8090`, or `ports: 0-65535` for every port";
    let Some(node) = fields.get("ports") else {
        report
            .error(fields.span, format!("the {protocol} rule has no `ports`"))
            .help(help);
        return None;
    };
    let text = match &node.value {
        Value::Scalar { text, .. } if !node.is_null() => text.trim(),
        _ => {
            let help = match node.value {
                Value::List(_) => "a rule has one port or one range; write a rule for each",
                _ => help,
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
    Some(PortRange { from, to })
}

/// ICMP needs a type, ICMPv6 does not (aws-semantics §1.1).
fn read_icmp(report: &mut Report, fields: &Fields<'_>, required: bool) -> Option<IcmpMatch> {
    let name = if required { "icmp" } else { "icmpv6" };
    let echo = if required { 8 } else { 128 };
    if let Some(entry) = fields.entry("ports") {
        report
            .error(entry.key, format!("{name} has no ports"))
            .help(format!(
                "remove `ports`; write `type: {echo}` for ping, `type: -1` for every message"
            ));
    }
    let Some(node) = fields.get("type") else {
        if required || fields.get("code").is_some() {
            report
                .error(fields.span, format!("the {name} rule has no `type`"))
                .help(format!(
                    "write `type: {echo}` for ping, `type: -1` for every message"
                ));
            return None;
        }
        return Some(IcmpMatch::Any);
    };
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
fn warn_of_ports(report: &mut Report, fields: &Fields<'_>) {
    for key in ["ports", "type", "code"] {
        if let Some(entry) = fields.entry(key) {
            report
                .warning(
                    entry.key,
                    format!("`{key}` is ignored, as on AWS: only tcp and udp have ports, only icmp and icmpv6 types"),
                )
                .help(format!("remove `{key}`: the rule covers all of this protocol"));
        }
    }
}
