//! The entries of `ingress:` and `egress:`: one entry, one rule for each peer.

use std::collections::HashMap;

use ipnet::IpNet;

use super::diagnostic::{Report, quoted};
use super::foreign;
use super::names::{Family, Names, check_tags, find_group, find_list, read_description};
use super::net::{cidr_help, parse_net};
use super::reader::{Fields, is_id};
use super::source::Span;
use super::traffic::{self, Holder};
use super::yaml::Node;
use crate::model::{Direction, Peer, RuleId, SecurityGroup, SecurityGroupRule, Traffic};

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
            "tags",
            "id",
        ];
        if foreign::translate(report, item, self.direction, Some(&self.group.name)) {
            return;
        }
        let Some(fields) = report.fields(item, "a rule", &known) else {
            return;
        };
        let traffic = traffic::read(report, &fields, Holder::Rule);
        check_tags(report, &fields, "a rule");
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
            traffic::warn_of_family(
                report,
                traffic,
                Holder::Rule,
                peer.span,
                &peer.text,
                peer.family,
            );
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
