//! Random rules, network ACLs, prefix lists and route tables, drawn small: few
//! addresses, few ports, blocks that nest, so that packets often meet a rule or
//! miss it by one.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;
use sgwall::model::{
    AclAction, AclEntry, DEFAULT_GROUP, GroupIx, IcmpMatch, InterfaceIx, MAX_ACL_RULE, Model,
    NetworkAcl, Peer, PortRange, PrefixList, PrefixListIx, Route, RouteTable, RouteTarget, RuleId,
    SecurityGroup, SecurityGroupRule, Traffic, derive_id,
};

use crate::models::{pick, place};

/// Ports that rules begin and end at, with their neighbours.
pub const PORTS: [u16; 14] = [
    80, 79, 81, 22, 23, 443, 8079, 8080, 8085, 8090, 8091, 0, 65_534, 65_535,
];
/// Protocols without ports that rules and packets name.
pub const PROTOCOLS: [u8; 3] = [47, 50, 132];

/// A prefix list: its family and entries (an address and a length each).
#[derive(Debug, Clone)]
pub struct ListPlan {
    ipv4: bool,
    entries: Vec<(u8, u8)>,
}

/// A group's rules, and which of AWS's wide ones stand beside them (see
/// [`Universe::group`]).
#[derive(Debug, Clone)]
pub struct GroupPlan {
    open: u8,
    ingress: Vec<RulePlan>,
    egress: Vec<RulePlan>,
}

/// Kind of traffic and two details; kind of peer and two details.
type RulePlan = (u8, u8, u8, u8, u8, u8);

/// A network ACL's entries, and whether something allows the rest (see
/// [`Universe::acl`]).
#[derive(Debug, Clone)]
pub struct AclPlan {
    rest: u8,
    ingress: Vec<EntryPlan>,
    egress: Vec<EntryPlan>,
}

/// Number; action; kind of traffic and two details; an address and a length.
type EntryPlan = (u8, u8, (u8, u8, u8), u8, u8);

/// A route table's routes besides the local ones: kind of destination and two
/// details, kind of target and a detail each.
#[derive(Debug, Clone)]
pub struct TablePlan {
    routes: Vec<(u8, u8, u8, u8, u8)>,
}

impl GroupPlan {
    /// Takes all its rules.
    pub fn clear(&mut self) {
        self.open = 0;
        self.ingress.clear();
        self.egress.clear();
    }
}

/// Any prefix list.
pub fn list_plan() -> impl Strategy<Value = ListPlan> {
    (any::<bool>(), vec(any::<(u8, u8)>(), 0..=3)).prop_map(|(ipv6, entries)| ListPlan {
        ipv4: !ipv6,
        entries,
    })
}

/// Any group's rules.
pub fn group_plan() -> impl Strategy<Value = GroupPlan> {
    let rules = || vec(any::<RulePlan>(), 0..=6);
    (0..12u8, rules(), rules()).prop_map(|(open, ingress, egress)| GroupPlan {
        open,
        ingress,
        egress,
    })
}

/// Any network ACL.
pub fn acl_plan() -> impl Strategy<Value = AclPlan> {
    let entries = || vec(any::<EntryPlan>(), 0..=4);
    (any::<u8>(), entries(), entries()).prop_map(|(rest, ingress, egress)| AclPlan {
        rest,
        ingress,
        egress,
    })
}

/// Any route table.
pub fn table_plan() -> impl Strategy<Value = TablePlan> {
    vec(any::<(u8, u8, u8, u8, u8)>(), 0..=5).prop_map(|routes| TablePlan { routes })
}

/// What rules, entries and routes may refer to.
pub struct Universe<'a> {
    /// The model so far: VPC, subnets, entities and interfaces.
    pub model: &'a Model,
    /// Addresses worth naming, all of both families.
    pub addresses: &'a [IpAddr],
    /// How many groups there will be.
    pub groups: usize,
    /// How many prefix lists there will be.
    pub prefix_lists: usize,
}

impl Universe<'_> {
    /// A group. `open` adds rules with everybody as their peer: everything out,
    /// as AWS gives every new group (3 to 7), in as well (8), TCP and UDP both
    /// ways by rules of their own (9), everything in but nothing out (10), or
    /// all ports but one out (11).
    pub fn group(&self, ix: usize, plan: &GroupPlan) -> SecurityGroup {
        let name = match ix {
            0 => DEFAULT_GROUP.to_owned(),
            _ => format!("g{ix}"),
        };
        let all = vec![Traffic::All];
        let by_protocol = vec![Traffic::Tcp(PortRange::ALL), Traffic::Udp(PortRange::ALL)];
        let nearly = PortRange {
            from: 1,
            ..PortRange::ALL
        };
        let (open_in, open_out) = match plan.open {
            0..=2 => (vec![], vec![]),
            3..=7 => (vec![], all),
            8 => (all.clone(), all),
            9 => (by_protocol.clone(), by_protocol),
            10 => (all, vec![]),
            _ => (vec![], vec![Traffic::Tcp(nearly), Traffic::Udp(nearly)]),
        };
        SecurityGroup {
            id: format!("sg-{ix:017x}"),
            ingress: self.rules(&name, "ingress", &plan.ingress, open_in),
            egress: self.rules(&name, "egress", &plan.egress, open_out),
            name,
            description: String::new(),
            place: place(),
        }
    }

    /// A prefix list.
    pub fn prefix_list(&self, ix: usize, plan: &ListPlan) -> PrefixList {
        let family: Vec<IpAddr> = self
            .addresses
            .iter()
            .copied()
            .filter(|address| address.is_ipv4() == plan.ipv4)
            .collect();
        let mut entries: Vec<IpNet> = Vec::new();
        for &(address, length) in &plan.entries {
            let entry = block(*pick(&family, address), length);
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        PrefixList {
            id: format!("pl-{ix:017x}"),
            name: format!("list{ix}"),
            entries,
            place: place(),
        }
    }

    /// A network ACL. `rest` says what becomes of what no drawn entry covers:
    /// mostly another allows it, in one direction or both.
    pub fn acl(&self, ix: usize, plan: &AclPlan) -> NetworkAcl {
        let name = format!("c{ix}");
        let (rest_in, rest_out) = match plan.rest % 8 {
            0 | 1 => (false, true),
            2 => (true, false),
            3 => (false, false),
            _ => (true, true),
        };
        NetworkAcl {
            id: derive_id("acl", &[&name]),
            name,
            ingress: self.entries(&plan.ingress, rest_in),
            egress: self.entries(&plan.egress, rest_out),
            place: place(),
        }
    }

    /// A route table. What AWS refuses is bent until it doesn't: routes into
    /// the VPC lead to interfaces, and have a whole subnet's or VPC's block.
    pub fn table(&self, name: &str, plan: &TablePlan) -> RouteTable {
        let mut seen = HashSet::new();
        let routes = plan
            .routes
            .iter()
            .map(|&(kind, detail, length, target, more)| {
                let destination = self.destination(kind, detail, length);
                let inside = self
                    .model
                    .vpc
                    .cidrs
                    .iter()
                    .any(|block| block.contains(&destination));
                let target = self.target(target, more, inside);
                Route {
                    destination,
                    target,
                    target_text: match target {
                        RouteTarget::Interface(ix) => {
                            format!("eni/{}", self.model.interface_label(ix))
                        }
                        other => other.to_string(),
                    },
                    place: place(),
                }
            })
            .filter(|route| seen.insert(route.destination))
            .collect();
        RouteTable {
            id: derive_id("rtb", &[name]),
            name: name.to_owned(),
            routes,
            place: place(),
        }
    }

    /// The rules of one direction. A rule that repeats another is left out: AWS
    /// refuses duplicates, and so does whoever reads a lab file.
    fn rules(
        &self,
        group: &str,
        direction: &str,
        plans: &[RulePlan],
        open: Vec<Traffic>,
    ) -> Vec<SecurityGroupRule> {
        let mut wanted: Vec<(Traffic, Peer)> = plans
            .iter()
            .map(|&(kind, detail, more, peer_kind, peer, length)| {
                (
                    traffic(kind, detail, more),
                    self.peer(peer_kind, peer, length),
                )
            })
            .collect();
        for traffic in open {
            wanted.push((traffic, Peer::Ipv4(Ipv4Net::default())));
            wanted.push((traffic, Peer::Ipv6(Ipv6Net::default())));
        }
        let mut seen = HashSet::new();
        wanted.retain(|rule| seen.insert(*rule));
        wanted
            .into_iter()
            .map(|(traffic, peer)| {
                let peer_text = peer_text(peer);
                SecurityGroupRule {
                    id: RuleId::derive(&[group, direction, &traffic.to_string(), &peer_text]),
                    traffic,
                    peer,
                    peer_text,
                    description: String::new(),
                    place: place(),
                }
            })
            .collect()
    }

    fn peer(&self, kind: u8, detail: u8, length: u8) -> Peer {
        match kind % 16 {
            0..=2 => Peer::Ipv4(Ipv4Net::default()),
            3 | 4 => Peer::Ipv6(Ipv6Net::default()),
            5..=8 => Peer::Group(GroupIx::new(usize::from(detail) % self.groups)),
            9 | 10 if self.prefix_lists > 0 => {
                Peer::PrefixList(PrefixListIx::new(usize::from(detail) % self.prefix_lists))
            }
            _ => match block(*pick(self.addresses, detail), length) {
                IpNet::V4(block) => Peer::Ipv4(block),
                IpNet::V6(block) => Peer::Ipv6(block),
            },
        }
    }

    fn entries(&self, plans: &[EntryPlan], allow_rest: bool) -> Vec<AclEntry> {
        let mut entries: Vec<AclEntry> = Vec::new();
        for &(number, action, (kind, detail, more), address, length) in plans {
            // Close together, so that some are drawn twice and left out.
            let number = u16::from(number % 16) * 10 + 1;
            if entries.iter().any(|entry| entry.number == number) {
                continue;
            }
            let cidr = block(*pick(self.addresses, address), length);
            let traffic = match (traffic(kind, detail, more), cidr) {
                // AWS ignores types of ICMPv6 with an IPv4 block.
                (Traffic::Icmpv6(_), IpNet::V4(_)) => Traffic::Icmpv6(IcmpMatch::Any),
                (traffic, _) => traffic,
            };
            let action = match action % 3 {
                0 => AclAction::Allow,
                _ => AclAction::Deny,
            };
            entries.push(entry(number, action, traffic, cidr));
        }
        if allow_rest {
            for (number, cidr) in [
                (MAX_ACL_RULE - 1, IpNet::V4(Ipv4Net::default())),
                (MAX_ACL_RULE, IpNet::V6(Ipv6Net::default())),
            ] {
                entries.push(entry(number, AclAction::Allow, Traffic::All, cidr));
            }
        }
        entries.sort_by_key(|entry| entry.number);
        entries
    }

    fn destination(&self, kind: u8, detail: u8, length: u8) -> IpNet {
        let parse = |text: &str| -> IpNet { text.parse().expect("a block") };
        match kind % 16 {
            0..=4 => IpNet::V4(Ipv4Net::default()),
            5 | 6 => IpNet::V6(Ipv6Net::default()),
            7 => *pick(&self.model.vpc.cidrs, detail),
            8 | 9 => {
                let subnet = pick(&self.model.subnets, detail);
                *pick(&subnet.cidrs, length)
            }
            10 => parse(pick::<&str>(
                &["198.51.100.0/24", "192.168.7.0/24", "203.0.113.0/24"],
                detail,
            )),
            11 => parse(pick::<&str>(
                &[
                    "2001:db8:f::/64",
                    "2001:db8:e::/64",
                    "169.254.0.0/16",
                    "10.0.0.0/8",
                ],
                detail,
            )),
            _ => {
                let outside: Vec<IpAddr> = self
                    .addresses
                    .iter()
                    .copied()
                    .filter(|address| !self.model.vpc.contains(*address))
                    .collect();
                block(*pick(&outside, detail), length)
            }
        }
    }

    fn target(&self, kind: u8, detail: u8, inside: bool) -> RouteTarget {
        match kind % 16 {
            0..=6 if !inside => RouteTarget::Igw,
            7 | 8 if !inside => RouteTarget::Vgw,
            9 | 10 if !inside => RouteTarget::Blackhole,
            _ => {
                let ours = || {
                    self.model
                        .interfaces()
                        .filter(|(_, interface)| !interface.is_external())
                };
                // Mostly to one that takes what is for others.
                let takes: Vec<InterfaceIx> = ours()
                    .filter(|(_, interface)| !interface.source_dest_check)
                    .map(|(ix, _)| ix)
                    .collect();
                let all: Vec<InterfaceIx> = ours().map(|(ix, _)| ix).collect();
                let list = if takes.is_empty() || detail.is_multiple_of(3) {
                    &all
                } else {
                    &takes
                };
                RouteTarget::Interface(*pick(list, detail / 3))
            }
        }
    }
}

fn entry(number: u16, action: AclAction, traffic: Traffic, cidr: IpNet) -> AclEntry {
    AclEntry {
        number,
        action,
        traffic,
        cidr,
        place: place(),
    }
}

fn peer_text(peer: Peer) -> String {
    match peer {
        Peer::Ipv4(block) => block.to_string(),
        Peer::Ipv6(block) => block.to_string(),
        Peer::PrefixList(list) => format!("pl/list{}", list.ix()),
        Peer::Group(group) if group.ix() == 0 => format!("sg/{DEFAULT_GROUP}"),
        Peer::Group(group) => format!("sg/g{}", group.ix()),
    }
}

fn traffic(kind: u8, detail: u8, more: u8) -> Traffic {
    match kind % 16 {
        0 | 1 => Traffic::All,
        2..=6 => Traffic::Tcp(ports(detail, more)),
        7..=9 => Traffic::Udp(ports(detail, more)),
        10 | 11 => Traffic::Icmp(icmp(&[8, 0, 3, 11, 13], detail, more)),
        12 | 13 => Traffic::Icmpv6(icmp(&[128, 129, 1, 2, 3], detail, more)),
        _ => Traffic::Other(*pick(&PROTOCOLS, detail)),
    }
}

fn ports(one: u8, other: u8) -> PortRange {
    let (a, b) = (*pick(&PORTS, one), *pick(&PORTS, other));
    // The top bits are free to choose the shape: the list is short.
    match one >> 6 {
        0 => PortRange::ALL,
        1 => PortRange { from: a, to: a },
        _ => PortRange {
            from: a.min(b),
            to: a.max(b),
        },
    }
}

fn icmp(kinds: &[u8], kind: u8, code: u8) -> IcmpMatch {
    match code % 4 {
        0 => IcmpMatch::Any,
        1 => IcmpMatch::Type(*pick(kinds, kind)),
        2 => IcmpMatch::TypeAndCode(*pick(kinds, kind), 0),
        _ => IcmpMatch::TypeAndCode(*pick(kinds, kind), 4),
    }
}

/// A block around `address`: often a host, often one that nests with others.
fn block(address: IpAddr, length: u8) -> IpNet {
    let length = match address {
        IpAddr::V4(_) => *pick(
            &[32, 32, 31, 30, 29, 28, 25, 24, 24, 23, 16, 15, 8, 1, 0],
            length,
        ),
        IpAddr::V6(_) => *pick(
            &[128, 128, 127, 126, 120, 64, 64, 63, 56, 48, 33, 32, 1, 0],
            length,
        ),
    };
    IpNet::new(address, length)
        .expect("the length is in range")
        .trunc()
}
