//! Terraform and EC2 API syntax, from which many rules are copied. Each such rule is one error,
//! which shows the rule in lab file syntax.

use super::diagnostic::{Report, quoted};
use super::net::parse_net;
use super::reader::is_id;
use super::source::Span;
use super::yaml::{Node, Value};
use crate::model::Direction;

/// Keys for peers, in lower case, without `_` and `-`.
const PEERS: [&str; 24] = [
    "cidr",
    "cidrblock",
    "cidrblocks",
    "cidrip",
    "cidripv4",
    "cidripv6",
    "destination",
    "destinationprefixlistid",
    "destinationsecuritygroupid",
    "groupid",
    "groupname",
    "ipranges",
    "ipv6cidrblock",
    "ipv6cidrblocks",
    "ipv6ranges",
    "prefixlistid",
    "prefixlistids",
    "referencedsecuritygroupid",
    "securitygroup",
    "securitygroups",
    "source",
    "sourceprefixlistid",
    "sourcesecuritygroupid",
    "useridgrouppairs",
];

/// Other keys that rules and entries don't have in a lab file.
const OTHERS: [&str; 11] = [
    "fromport",
    "icmpcode",
    "icmptype",
    "ipprotocol",
    "port",
    "portrange",
    "ruleaction",
    "ruleno",
    "rulenumber",
    "self",
    "toport",
];

/// Returns the lab file's key for a foreign key, outside of rules and entries.
pub(super) fn own_key(key: &str) -> Option<&'static str> {
    Some(match folded(key).as_str() {
        "cidrblock" | "cidrblocks" | "ipv6cidrblock" => "cidr",
        "ippermissions" | "securitygroupingress" | "ingressrules" => "ingress",
        "ippermissionsegress" | "securitygroupegress" | "egressrules" => "egress",
        "groupdescription" => "description",
        "subnetid" => "subnet",
        "vpcsecuritygroupids" | "securitygroupids" => "security_groups",
        "privateip" | "privateips" | "privateipaddress" | "privateipaddresses" => "addresses",
        "publicip" | "publicipaddress" => "public_addresses",
        "networkaclid" => "network_acl",
        "routetableid" => "route_table",
        "entry" => "entries",
        "maxentries" => "max_entries",
        "sourcedestcheck" => "source_dest_check",
        _ => return None,
    })
}

/// Adds an error if `item` is a rule (of `group`) or an entry in foreign syntax. Such an item is
/// not to be read any further.
pub(super) fn translate(
    report: &mut Report,
    item: &Node,
    direction: Direction,
    group: Option<&str>,
) -> bool {
    let mut found = Found::default();
    found.read(item);
    let Some(first) = found.first else {
        return false;
    };
    let (noun, side) = match (group, direction) {
        (Some(_), Direction::Ingress) => ("a rule", "from"),
        (Some(_), Direction::Egress) => ("a rule", "to"),
        (None, Direction::Ingress) => ("an entry", "from"),
        (None, Direction::Egress) => ("an entry", "to"),
    };
    let help = format!("write `{}`", found.written(side, group));
    let keys: Vec<String> = found.keys.iter().map(|key| quoted(key)).collect();
    let message = format!(
        "{noun} has no key {}: that is Terraform or EC2 API syntax",
        keys.join(", ")
    );
    report.error(first, message).help(help);
    true
}

/// The contents of a rule, in any syntax.
#[derive(Default)]
struct Found<'n> {
    first: Option<Span>,
    keys: Vec<&'n str>,
    number: Option<&'n str>,
    action: Option<&'n str>,
    protocol: Option<&'n str>,
    ports: Option<&'n str>,
    from: Option<&'n str>,
    to: Option<&'n str>,
    to_itself: bool,
    peers: Vec<&'n str>,
    description: Option<&'n str>,
}

impl<'n> Found<'n> {
    fn read(&mut self, item: &'n Node) {
        for (key, value) in pairs(item) {
            let Some(name) = scalar(key) else { continue };
            let word = folded(name);
            let is_peer = PEERS.contains(&word.as_str());
            if is_peer || OTHERS.contains(&word.as_str()) {
                self.first = self.first.or(Some(key.span));
                self.keys.push(name);
            }
            if is_peer {
                self.read_peers(value);
                continue;
            }
            match word.as_str() {
                // The lab file's own keys for a peer.
                "from" | "to" => self.read_peers(value),
                "protocol" | "ipprotocol" => self.protocol = scalar(value),
                "port" | "ports" => self.ports = scalar(value),
                "fromport" | "type" | "icmptype" => self.from = scalar(value),
                "toport" | "code" | "icmpcode" => self.to = scalar(value),
                "portrange" => {
                    for (key, value) in pairs(value) {
                        match scalar(key).map(folded).as_deref() {
                            Some("from") => self.from = scalar(value),
                            Some("to") => self.to = scalar(value),
                            _ => {}
                        }
                    }
                }
                "self" => self.to_itself = scalar(value) == Some("true"),
                "rule" | "ruleno" | "rulenumber" => self.number = scalar(value),
                "action" | "ruleaction" => self.action = scalar(value),
                "description" => self.description = scalar(value),
                _ => {}
            }
        }
    }

    fn read_peers(&mut self, node: &'n Node) {
        match &node.value {
            Value::List(items) => items.iter().for_each(|item| self.read_peers(item)),
            Value::Map(_) => {
                for (key, value) in pairs(node) {
                    let word = scalar(key).map(folded).unwrap_or_default();
                    if PEERS.contains(&word.as_str()) {
                        self.read_peers(value);
                    }
                    if word == "description" {
                        self.description = scalar(value);
                    }
                }
            }
            Value::Scalar { .. } => self.peers.extend(scalar(node)),
        }
    }

    /// Returns the rule in lab file syntax; `…` stands for what is missing.
    fn written(&self, side: &str, group: Option<&str>) -> String {
        let mut words = Vec::new();
        if group.is_none() {
            words.push(format!("rule: {}", self.number.unwrap_or("…")));
            let action = self.action.unwrap_or("…").to_lowercase();
            words.push(format!("action: {action}"));
        }
        let protocol = match self.protocol.unwrap_or("…").to_lowercase().as_str() {
            "-1" => "all".to_owned(),
            other => other.to_owned(),
        };
        words.push(format!("protocol: {protocol}"));
        match protocol.as_str() {
            "icmp" | "1" | "icmpv6" | "58" => {
                let kind = self.from.unwrap_or("-1");
                words.push(format!("type: {kind}"));
                let code = self.to.filter(|_| kind != "-1");
                words.extend(code.map(|code| format!("code: {code}")));
            }
            "tcp" | "6" | "udp" | "17" | "…" => {
                words.push(match (self.ports, self.from, self.to) {
                    (None, Some(from), Some(to)) if from != to => format!("ports: {from}-{to}"),
                    (ports, from, to) => format!("ports: {}", ports.or(from).or(to).unwrap_or("…")),
                })
            }
            _ => {}
        }
        let itself = group
            .filter(|_| self.to_itself)
            .map(|name| format!("sg/{name}"));
        let peers: Vec<String> = self.peers.iter().copied().map(peer).chain(itself).collect();
        words.push(match &peers[..] {
            [] => format!("{side}: …"),
            [one] => format!("{side}: {one}"),
            many => format!("{side}: [{}]", many.join(", ")),
        });
        if let Some(description) = self.description.filter(|_| group.is_some()) {
            words.push(format!("description: {description:?}"));
        }
        format!("{{ {} }}", words.join(", "))
    }
}

/// Returns a peer in lab file syntax. Text that is neither a CIDR block nor an ID is a name or a
/// Terraform reference such as `aws_security_group.web.id`.
fn peer(text: &str) -> String {
    let known = parse_net(text).is_some() || text.contains('/');
    if known || is_id(text, "sg") || is_id(text, "pl") {
        return match text.strip_prefix(':') {
            Some(_) => format!("\"{text}\""),
            None => text.to_owned(),
        };
    }
    let (kind, name) = match text.split_once("prefix_list.") {
        Some((_, name)) => ("pl", name),
        None => (
            "sg",
            text.split_once("security_group.")
                .map_or(text, |(_, name)| name),
        ),
    };
    let end = name.find(['.', '[', '}']).unwrap_or(name.len());
    format!("{kind}/{}", &name[..end])
}

fn pairs(node: &Node) -> &[(Node, Node)] {
    match &node.value {
        Value::Map(pairs) => pairs,
        _ => &[],
    }
}

fn scalar(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } if !node.is_null() => Some(text),
        _ => None,
    }
}

/// Returns a key without the differences between Terraform, the API and the AWS CLI.
fn folded(key: &str) -> String {
    let letters = key.chars().filter(|letter| !matches!(letter, '_' | '-'));
    letters.flat_map(char::to_lowercase).collect()
}
