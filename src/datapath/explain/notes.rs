//! The recorder that puts each step of a packet's road into words.

use std::net::IpAddr;

use super::views::{AclView, NearMiss, RouteView, RuleView, preposition};
use super::{LegStep, label};
use crate::datapath::{Recorder, Step};
use crate::model::{Direction, InterfaceIx, Via, protocol, protocol_name};
use crate::packet::{Packet, ParseError};
use crate::policy::{
    AclDecision, AclTable, CompiledRoute, CompiledRule, DropReason, Guard, Hop, Owner, Path,
    Policy, PolicyInterface, Query, RuleTable, Stranded, Target, is_forwardable,
};

/// The ports from which clients ask, as one range for all systems
/// (aws-semantics §6).
const FIRST_EPHEMERAL: u16 = 1024;
const EPHEMERAL_PORTS: &str = "1024-65535";

/// The recorder: each step in words.
pub(super) struct Notes<'p> {
    policy: &'p Policy,
    /// Who sends the packet on its present hop.
    pub(super) sender: InterfaceIx,
    /// Whether it is the reply to another packet.
    is_reply: bool,
    pub(super) steps: Vec<LegStep>,
    /// The packet as it was sent first.
    pub(super) packet: Option<Packet>,
    /// Whether the sender of the present hop forwards it for another, whose
    /// groups it has lost so.
    forwarded: bool,
    /// Where it is, and as what.
    pub(super) arrived: Option<(InterfaceIx, Packet)>,
}

impl<'p> Notes<'p> {
    pub(super) fn new(policy: &'p Policy, sender: InterfaceIx, is_reply: bool) -> Self {
        Self {
            policy,
            sender,
            is_reply,
            steps: Vec::new(),
            packet: None,
            forwarded: false,
            arrived: None,
        }
    }

    pub(super) fn add(&mut self, layer: &'static str, at: InterfaceIx, passed: bool, what: String) {
        self.steps.push(LegStep {
            layer,
            interface: label(self.policy, at),
            decision: if passed { "pass" } else { "drop" },
            what,
            rule: None,
            acl: None,
            route: None,
            missing: None,
            near_misses: Vec::new(),
        });
    }

    fn parsed(&mut self, parsed: Result<&Packet, ParseError>) {
        match parsed {
            Ok(packet) => {
                self.packet.get_or_insert(*packet);
                let sender = self.policy.interface(self.sender);
                self.forwarded = sender.is_some_and(|sender| !sender.has(packet.source));
            }
            Err(error) => self.add("headers", self.sender, false, error.to_string()),
        }
    }

    fn judged(
        &mut self,
        at: InterfaceIx,
        direction: Direction,
        peer: IpAddr,
        query: Query,
        rule: Option<CompiledRule<'_>>,
        opens: Option<bool>,
    ) {
        let what = match rule {
            Some(rule) => {
                let untracked = match opens {
                    Some(false) => "; the flow is not tracked, as all addresses are let both ways",
                    _ => "",
                };
                format!("allowed by {}{untracked}", RuleView::from(rule))
            }
            None => format!(
                "no {direction} rule allows {} {} {}",
                traffic(query),
                preposition(direction),
                self.describe(peer, self.lost_groups(direction)),
            ),
        };
        self.add(layer(direction), at, rule.is_some(), what);
        let denial = (rule.is_none())
            .then(|| self.denial(at, direction, peer, query))
            .flatten();
        if let Some(step) = self.steps.last_mut() {
            step.rule = rule.map(RuleView::from);
            if let Some((missing, near_misses)) = denial {
                step.missing = Some(missing);
                step.near_misses = near_misses;
            }
        }
    }

    /// What would have allowed it, and why each rule that is there doesn't.
    fn denial(
        &self,
        at: InterfaceIx,
        direction: Direction,
        peer: IpAddr,
        query: Query,
    ) -> Option<(String, Vec<NearMiss>)> {
        let interface = self.policy.interface(at)?;
        let Guard::Groups { member_of, .. } = &interface.guard else {
            return None;
        };
        let table: &RuleTable = interface.rules(direction)?;
        let groups = member_of
            .iter()
            .map(|group| self.policy.group_name(*group))
            .collect::<Vec<_>>()
            .join(", ");
        let missing = format!(
            "an {direction} rule in {} ({groups}) for {} {} {}",
            if member_of.len() == 1 {
                "its group"
            } else {
                "one of its groups"
            },
            traffic(query),
            preposition(direction),
            self.peer_suggestion(peer, self.lost_groups(direction)),
        );
        let peer_groups = if self.lost_groups(direction) {
            &[]
        } else {
            self.policy.groups_of(peer)
        };
        let near_misses = table
            .rules()
            .enumerate()
            .filter_map(|(number, rule)| {
                let coverage = table.coverage(number, peer, peer_groups, query)?;
                Some(NearMiss {
                    rule: RuleView::from(rule),
                    peer_covers: coverage.peer,
                    traffic_covers: coverage.traffic,
                })
            })
            .collect();
        Some((missing, near_misses))
    }

    fn acl(
        &mut self,
        at: InterfaceIx,
        acl: &AclTable,
        peer: IpAddr,
        query: Query,
        decision: AclDecision<'_>,
    ) {
        let view = AclView::new(acl, decision.entry, peer.is_ipv4());
        let direction = acl.direction();
        let what = match decision.entry {
            Some(_) if decision.allowed => format!("allowed by {view}"),
            Some(_) => format!("denied by {view}"),
            None => format!(
                "no entry of acl/{} covers {} {} {}, so * denies it",
                acl.name(),
                traffic(query),
                preposition(direction),
                self.describe(peer, false)
            ),
        };
        let layer = match direction {
            Direction::Egress => "network acl out",
            Direction::Ingress => "network acl in",
        };
        self.add(layer, at, decision.allowed, what);
        let missing = (!decision.allowed).then(|| {
            let before = match decision.entry {
                Some(entry) => format!(" numbered below {}", entry.number),
                None => String::new(),
            };
            // What most people meet first (aws-semantics §13).
            let (wanted, stateless) = match (self.is_reply, query.protocol) {
                (true, protocol::TCP | protocol::UDP) if query.selector >= FIRST_EPHEMERAL => (
                    format!("{} {EPHEMERAL_PORTS}", protocol_name(query.protocol)),
                    ": an ACL keeps no state, and replies go to the ephemeral port of who asked",
                ),
                (true, _) => (
                    traffic(query),
                    ": an ACL keeps no state, and replies need an entry of their own",
                ),
                (false, _) => (traffic(query), ""),
            };
            format!(
                "an {direction} entry in acl/{}{before} that allows {wanted} {} {}{stateless}",
                acl.name(),
                preposition(direction),
                host(peer)
            )
        });
        if let Some(step) = self.steps.last_mut() {
            step.acl = Some(view);
            step.missing = missing;
        }
    }

    fn routed(&mut self, at: InterfaceIx, hop: &Hop<'_>) {
        let to = label(self.policy, hop.to);
        let mut what = match hop.path {
            Path::Subnet => format!("to {to}, in the same subnet"),
            Path::Route(route) if route.target == Target::Local => {
                format!("to {to} by the local route {}", route.destination)
            }
            Path::Route(route) => format!("to {to} by the route {}", self.name_route(at, route)),
            Path::From(Via::Igw) => format!("to {to} from the internet gateway"),
            Path::From(Via::Vgw) => format!("to {to} from the virtual private gateway"),
            Path::From(Via::Wire) => format!("to {to} from the network around"),
        };
        what += &match (hop.new_source, hop.new_destination) {
            (Some(public), Some(private)) => format!(
                "; the internet gateway makes the source {public} and the destination {private}"
            ),
            (Some(public), None) => format!("; the internet gateway makes the source {public}"),
            (None, Some(private)) => {
                format!("; the internet gateway makes the destination {private}")
            }
            (None, None) => String::new(),
        };
        self.add("route", at, true, what);
        if let Path::Route(route) = hop.path {
            self.show_route(at, route);
        }
    }

    fn stranded(&mut self, at: InterfaceIx, stranded: &Stranded<'_>) {
        let sender = self.policy.interface(at);
        let table = sender
            .and_then(PolicyInterface::subnet)
            .map(|it| &it.routes);
        let route = stranded.route.map(|route| self.name_route(at, route));
        let destination = self.packet.map(|packet| packet.destination);
        let forwardable = destination.is_some_and(is_forwardable);
        let what = match (stranded.reason, sender.map(|sender| &sender.guard)) {
            (DropReason::NoRoute, Some(Guard::Outside(Via::Igw))) => {
                "the internet reaches the VPC's public addresses only".to_owned()
            }
            (DropReason::NoRoute, Some(Guard::Outside(Via::Vgw))) => {
                "the VPN reaches the VPC's private addresses only".to_owned()
            }
            (DropReason::NoRoute, _) => match (&route, table, destination) {
                _ if !forwardable => {
                    "no router forwards to that block, whatever route covers it".to_owned()
                }
                (Some(route), ..) => format!("the route {route} leads back to where it comes from"),
                (None, Some(table), Some(destination)) => {
                    format!("rtb/{} has no route to {destination}", table.name())
                }
                _ => "no route leads there".to_owned(),
            },
            (DropReason::Blackhole, _) => match &route {
                Some(route) => format!("the route {route} leads nowhere"),
                None => "the route leads nowhere".to_owned(),
            },
            (DropReason::NoPublicAddress, _) => "the internet gateway translates only interfaces that have a public address (public_addresses)".to_owned(),
            _ => match (&route, destination) {
                (Some(route), Some(destination)) => {
                    format!("the route {route} leads on, but nobody there has {destination}")
                }
                _ => "nobody has the destination address".to_owned(),
            },
        };
        self.add("route", at, false, what);
        if let Some(route) = stranded.route {
            self.show_route(at, route);
        }
        if let (DropReason::NoRoute | DropReason::Blackhole, Some(table), Some(destination)) =
            (stranded.reason, table, destination)
            // Inside the VPC only a whole subnet may have a route of its own.
            && forwardable
            && !self.policy.directory().in_vpc(destination)
            && let Some(step) = self.steps.last_mut()
        {
            let via = match self.policy.directory().owner(destination) {
                Some(Owner::Outside(_, Via::Vgw)) => " via vgw",
                Some(Owner::Outside(_, Via::Igw) | Owner::Public(..)) => " via igw",
                _ => "",
            };
            step.missing = Some(format!(
                "a route to {}{via} in rtb/{} ({})",
                host(destination),
                table.name(),
                table.place()
            ));
        }
    }

    /// `0.0.0.0/0 via igw in rtb/main`.
    fn name_route(&self, at: InterfaceIx, route: &CompiledRoute) -> String {
        let subnet = self.policy.interface(at).and_then(PolicyInterface::subnet);
        match subnet {
            Some(subnet) => RouteView::new(&subnet.routes, route).to_string(),
            None => route.destination.to_string(),
        }
    }

    fn show_route(&mut self, at: InterfaceIx, route: &CompiledRoute) {
        let subnet = self.policy.interface(at).and_then(PolicyInterface::subnet);
        if let (Some(subnet), Some(step)) = (subnet, self.steps.last_mut()) {
            step.route = Some(RouteView::new(&subnet.routes, route));
        }
    }

    /// Whether the other side's groups don't count: at the receiver of what was
    /// forwarded (aws-semantics §2, middlebox routing).
    fn lost_groups(&self, direction: Direction) -> bool {
        self.forwarded && direction == Direction::Ingress
    }

    /// `10.0.1.10 (lb, in lb)` or just the address; `lost`: whether it comes by
    /// way of another, and without its groups.
    fn describe(&self, address: IpAddr, lost: bool) -> String {
        let owner = self.policy.directory().owner(address);
        let Some(owner) = owner.and_then(|owner| owner.interface()) else {
            return address.to_string();
        };
        let name = label(self.policy, owner);
        match self.group_names(address).as_slice() {
            [] => format!("{address} ({name})"),
            _ if lost => format!(
                "{address} ({name}, whose groups don't count: {} forwards it)",
                label(self.policy, self.sender)
            ),
            names => format!("{address} ({name}, in {})", names.join(", ")),
        }
    }

    fn peer_suggestion(&self, address: IpAddr, lost: bool) -> String {
        let host = host(address);
        match self.group_names(address).first() {
            Some(name) if !lost => format!("sg/{name} or {host}"),
            _ => host,
        }
    }

    fn group_names(&self, address: IpAddr) -> Vec<&str> {
        self.policy
            .groups_of(address)
            .iter()
            .map(|group| self.policy.group_name(*group))
            .collect()
    }
}

impl Recorder for Notes<'_> {
    fn step(&mut self, step: Step<'_>) {
        match step {
            Step::Parsed(parsed) => self.parsed(parsed),
            Step::SourceCheck { at, passed } => {
                let what = match (passed, self.forwarded) {
                    (true, false) => "the source address is its own",
                    (true, true) => {
                        "off (source_dest_check: false): it may send from others' addresses"
                    }
                    (false, _) => "the source address is not its own",
                };
                self.add("source check", at, passed, what.to_owned());
            }
            Step::Unfiltered { at, service } => {
                let what = format!("{service}: no rule filters it, and none answers here");
                self.add("service", at, false, what);
            }
            Step::NotUnicast { at } => self.add(
                "destination",
                at,
                false,
                "a VPC carries no multicast, broadcast or loopback traffic".to_owned(),
            ),
            Step::Unguarded { at, direction } => self.add(
                layer(direction),
                at,
                true,
                "outside the VPC: no security groups".to_owned(),
            ),
            Step::Tracked {
                at,
                direction,
                rule,
            } => {
                let what = format!("tracked: part of the flow that {rule} admitted");
                self.add(layer(direction), at, true, what);
            }
            Step::Closed { at, direction } => self.add(
                layer(direction),
                at,
                false,
                "part of a connection that is closed".to_owned(),
            ),
            Step::Judged {
                at,
                direction,
                peer,
                query,
                rule,
                opens,
            } => self.judged(at, direction, peer, query, rule, opens),
            Step::NoRoom { at, reason } => {
                let what = match reason {
                    DropReason::ConntrackAllowance => {
                        "the flow is new and the entity's allowance of tracked flows is used up"
                    }
                    _ => "the flow is new and the flow table is full",
                };
                self.add("tracking", at, false, what.to_owned());
            }
            Step::Acl {
                at,
                acl,
                peer,
                query,
                decision,
            } => self.acl(at, acl, peer, query, decision),
            Step::Routed { at, hop } => match hop {
                Ok(hop) => self.routed(at, &hop),
                Err(stranded) => self.stranded(at, &stranded),
            },
            Step::TooBig { at, mtu } => {
                let what = format!("larger than the path's MTU of {mtu}");
                self.add("mtu", at, false, what);
            }
            Step::DestinationCheck { at } => self.add(
                "destination check",
                at,
                false,
                "the destination is not its own, and its source/destination check is on (source_dest_check)"
                    .to_owned(),
            ),
            Step::Delivered { at, packet } => {
                self.arrived = Some((at, *packet));
                let what = format!("as {} to {}", packet.source, packet.destination);
                self.add("delivery", at, true, what);
            }
        }
    }
}

fn layer(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "egress groups",
        Direction::Ingress => "ingress groups",
    }
}

/// The block that holds the address alone.
fn host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(_) => format!("{address}/32"),
        IpAddr::V6(_) => format!("{address}/128"),
    }
}

/// `tcp 5432`, `icmp type 8 code 0`, `gre`.
pub(super) fn traffic(query: Query) -> String {
    let name = protocol_name(query.protocol);
    match query.protocol {
        protocol::TCP | protocol::UDP => format!("{name} {}", query.selector),
        protocol::ICMP | protocol::ICMPV6 => format!(
            "{name} type {} code {}",
            query.selector >> 8,
            query.selector & 0xff
        ),
        _ => name,
    }
}
