//! Random VPCs, drawn small: few addresses, few ports, blocks that nest, so
//! that packets often meet a rule or miss it by one.
//!
//! What is drawn is a [`Blueprint`] of plain bytes, each a pick from a list
//! that is only known while the model is built. So every blueprint is a valid
//! model, and a smaller one is still a valid model when a failure is shrunk.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;
use sgwall::model::{
    Address, Attachment, DEFAULT_GROUP, Entity, EntityIx, EntityKind, GroupIx, IcmpMatch,
    Interface, Model, Peer, Place, PortRange, PrefixList, PrefixListIx, RuleId, SecurityGroup,
    SecurityGroupRule, Subnet, SubnetIx, Tracking, Traffic, Via, Vpc,
};

/// Ports that rules begin and end at, with their neighbours.
pub const PORTS: [u16; 14] = [
    80, 79, 81, 22, 23, 443, 8079, 8080, 8085, 8090, 8091, 0, 65_534, 65_535,
];
/// Protocols without ports that rules and packets name.
pub const PROTOCOLS: [u8; 3] = [47, 50, 132];

/// One of `list`, by a byte that any list accepts; 0 picks the first.
pub fn pick<T>(list: &[T], by: u8) -> &T {
    &list[usize::from(by) % list.len()]
}

/// What a model is built from.
#[derive(Debug, Clone)]
pub struct Blueprint {
    second_cidr: bool,
    ipv6: bool,
    subnets: usize,
    prefix_lists: Vec<ListPlan>,
    groups: Vec<GroupPlan>,
    entities: Vec<EntityPlan>,
}

/// A prefix list: its family and entries (an address and a length each).
#[derive(Debug, Clone)]
pub struct ListPlan {
    ipv4: bool,
    entries: Vec<(u8, u8)>,
}

/// A group's rules. `open`, below 8: above 2 it adds rules for all traffic to
/// anywhere, as AWS gives every new group, and at 7 from anywhere as well.
#[derive(Debug, Clone)]
pub struct GroupPlan {
    open: u8,
    ingress: Vec<RulePlan>,
    egress: Vec<RulePlan>,
}

/// Kind of traffic and two details; kind of peer and two details.
type RulePlan = (u8, u8, u8, u8, u8, u8);

#[derive(Debug, Clone)]
struct EntityPlan {
    kind: u8,
    interfaces: Vec<InterfacePlan>,
}

#[derive(Debug, Clone)]
struct InterfacePlan {
    subnet: u8,
    groups: Vec<u8>,
    families: u8,
    second_address: bool,
    public: u8,
    check_off: bool,
    mtu: u8,
    timeouts: (u8, u8, u8),
}

/// A change of the rules or memberships while traffic runs; the interfaces and
/// their addresses stay.
#[derive(Debug, Clone)]
pub enum Change {
    /// Every rule of every group goes.
    Clear,
    /// One group gets other rules.
    Group(u8, GroupPlan),
    /// Every group gets other rules, and there may be more or fewer groups.
    Groups(Vec<GroupPlan>),
    /// One interface gets other groups.
    Membership(u8, Vec<u8>),
    /// One prefix list gets other entries.
    PrefixList(u8, ListPlan),
}

/// Any model that this file can draw.
pub fn blueprint() -> impl Strategy<Value = Blueprint> {
    (
        any::<bool>(),
        any::<bool>(),
        1..=4usize,
        vec(list_plan(), 0..=2),
        vec(group_plan(), 1..=6),
        vec(entity_plan(), 2..=7),
    )
        .prop_map(
            |(second_cidr, ipv6, subnets, prefix_lists, groups, entities)| Blueprint {
                second_cidr,
                ipv6,
                subnets,
                prefix_lists,
                groups,
                entities,
            },
        )
}

/// Any change that this file can draw.
pub fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => Just(Change::Clear),
        3 => (any::<u8>(), group_plan()).prop_map(|(group, plan)| Change::Group(group, plan)),
        1 => vec(group_plan(), 1..=6).prop_map(Change::Groups),
        3 => (any::<u8>(), memberships())
            .prop_map(|(interface, groups)| Change::Membership(interface, groups)),
        1 => (any::<u8>(), list_plan()).prop_map(|(list, plan)| Change::PrefixList(list, plan)),
    ]
}

impl Blueprint {
    /// The blueprint after `change`.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Clear => {
                for group in &mut self.groups {
                    group.open = 0;
                    group.ingress.clear();
                    group.egress.clear();
                }
            }
            Change::Group(group, plan) => {
                let at = usize::from(*group) % self.groups.len();
                self.groups[at] = plan.clone();
            }
            Change::Groups(plans) => self.groups.clone_from(plans),
            Change::Membership(interface, groups) => {
                let mut interfaces: Vec<&mut InterfacePlan> = self
                    .entities
                    .iter_mut()
                    .flat_map(|entity| &mut entity.interfaces)
                    .collect();
                let at = usize::from(*interface) % interfaces.len();
                interfaces[at].groups.clone_from(groups);
            }
            Change::PrefixList(list, plan) => {
                if !self.prefix_lists.is_empty() {
                    let at = usize::from(*list) % self.prefix_lists.len();
                    self.prefix_lists[at] = plan.clone();
                }
            }
        }
    }

    /// The model drawn here; it holds every invariant of `Model`.
    pub fn build(&self) -> Model {
        let mut model = Model {
            vpc: self.vpc(),
            subnets: self.subnets(),
            ..Model::default()
        };
        for (ix, plan) in self.entities.iter().enumerate() {
            self.add_entity(&mut model, EntityIx::new(ix), plan);
        }
        let addresses = addresses(&model);
        for (ix, plan) in self.prefix_lists.iter().enumerate() {
            model.prefix_lists.push(prefix_list(ix, plan, &addresses));
        }
        let universe = Universe {
            addresses: &addresses,
            groups: self.groups.len(),
            prefix_lists: self.prefix_lists.len(),
        };
        for (ix, plan) in self.groups.iter().enumerate() {
            model.security_groups.push(universe.group(ix, plan));
        }
        model.with_implied_tables()
    }

    fn vpc(&self) -> Vpc {
        let mut cidrs = vec![net("10.0.0.0/16")];
        if self.second_cidr {
            cidrs.push(net("10.1.0.0/24"));
        }
        if self.ipv6 {
            cidrs.push(net("2001:db8:1::/56"));
        }
        Vpc {
            id: "vpc-00000000000000001".into(),
            cidrs,
            icmp_errors: Default::default(),
        }
    }

    fn subnets(&self) -> Vec<Subnet> {
        let last = if self.second_cidr {
            "10.1.0.0/24"
        } else {
            "10.0.4.0/24"
        };
        ["10.0.1.0/25", "10.0.1.128/25", "10.0.3.0/24", last]
            .into_iter()
            .take(self.subnets)
            .enumerate()
            .map(|(ix, cidr)| {
                let mut cidrs = vec![net(cidr)];
                if self.ipv6 {
                    cidrs.push(net(&format!("2001:db8:1:{ix}::/64")));
                }
                Subnet {
                    id: format!("subnet-{ix:017x}"),
                    name: format!("subnet{ix}"),
                    cidrs,
                    network_acl: Default::default(),
                    route_table: Default::default(),
                    place: place(),
                }
            })
            .collect()
    }

    fn add_entity(&self, model: &mut Model, entity: EntityIx, plan: &EntityPlan) {
        // The first is inside the VPC, so that there is something to guard.
        let kind = match (entity.ix(), plan.kind % 8) {
            (0, _) | (_, 0 | 1) => EntityKind::Ec2,
            (_, 2) => EntityKind::Rds,
            (_, 3) => EntityKind::Elb(sgwall::model::LoadBalancer::Application),
            (_, 4) => EntityKind::Ecs,
            (_, 5 | 6) => EntityKind::External(Via::Igw),
            _ => EntityKind::External(Via::Vgw),
        };
        model.entities.push(Entity {
            name: format!("e{}", entity.ix()),
            kind,
            engine: None,
            run: None,
            max_flows: None,
            place: place(),
        });
        let interfaces = match kind {
            EntityKind::External(_) => &plan.interfaces[..1],
            _ => &plan.interfaces[..],
        };
        for (device, plan) in interfaces.iter().enumerate() {
            let (attachment, addresses) = match kind {
                EntityKind::External(via) => (
                    Attachment::External(via),
                    self.external_addresses(via, entity.ix(), plan),
                ),
                _ => self.inside(model, plan),
            };
            model.interfaces.push(Interface {
                id: format!("eni-{:017x}", model.interfaces.len()),
                entity,
                device: u8::try_from(device).expect("few devices"),
                attachment,
                addresses,
                mtu: *pick(&[9001, 9001, 9001, 1500, 1280], plan.mtu),
                source_dest_check: !plan.check_off,
                tracking: tracking(plan.timeouts),
                place: place(),
            });
        }
    }

    fn inside(&self, model: &Model, plan: &InterfacePlan) -> (Attachment, Vec<Address>) {
        let subnet = usize::from(plan.subnet) % self.subnets;
        // Groups in the order picked, each once.
        let mut groups: Vec<GroupIx> = Vec::new();
        for group in &plan.groups {
            let group = GroupIx::new(usize::from(*group) % self.groups.len());
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let attachment = Attachment::Subnet {
            subnet: SubnetIx::new(subnet),
            groups,
        };

        let families = if self.ipv6 { plan.families % 6 } else { 0 };
        let taken: usize = model.interfaces.iter().map(|i| i.addresses.len()).sum();
        let cidrs = &model.subnets[subnet].cidrs;
        let mut addresses = Vec::new();
        if families != 5 {
            for nth in 0..1 + usize::from(plan.second_address) {
                let public = u8::try_from(10 + taken + nth).expect("few addresses");
                let wants_public = plan.public >> nth & 1 == 1;
                addresses.push(Address {
                    private: nth_of(cidrs[0], 8 + taken + nth),
                    public: wants_public.then_some(Ipv4Addr::new(203, 0, 113, public)),
                });
            }
        }
        if families >= 2 {
            addresses.push(Address {
                private: nth_of(cidrs[1], 8 + taken),
                public: None,
            });
        }
        (attachment, addresses)
    }

    fn external_addresses(&self, via: Via, nth: usize, plan: &InterfacePlan) -> Vec<Address> {
        let (block4, block6) = match via {
            Via::Igw => ("198.51.100.0/24", "2001:db8:f::/64"),
            Via::Vgw => ("192.168.7.0/24", "2001:db8:e::/64"),
        };
        let families = if self.ipv6 { plan.families % 6 } else { 0 };
        let mut addresses = Vec::new();
        if families != 5 {
            addresses.push(nth_of(net(block4), 2 * nth));
            if plan.second_address {
                addresses.push(nth_of(net(block4), 2 * nth + 1));
            }
        }
        if families >= 2 {
            addresses.push(nth_of(net(block6), 2 * nth));
        }
        addresses
            .into_iter()
            .map(|private| Address {
                private,
                public: None,
            })
            .collect()
    }
}

/// Every address that somebody has in `model`, their neighbours, and some that
/// nobody has.
pub fn addresses(model: &Model) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for interface in &model.interfaces {
        for address in &interface.addresses {
            addresses.push(address.private);
            addresses.extend(address.public.map(IpAddr::V4));
        }
    }
    addresses.extend(addresses.clone().into_iter().map(neighbour));
    for stranger in ["10.0.200.1", "8.8.8.8", "2001:db8:1:99::1", "2001:4860::8"] {
        addresses.push(stranger.parse().expect("an address"));
    }
    addresses
}

fn list_plan() -> impl Strategy<Value = ListPlan> {
    (any::<bool>(), vec(any::<(u8, u8)>(), 0..=3)).prop_map(|(ipv6, entries)| ListPlan {
        ipv4: !ipv6,
        entries,
    })
}

fn group_plan() -> impl Strategy<Value = GroupPlan> {
    let rules = || vec(any::<RulePlan>(), 0..=8);
    (0..8u8, rules(), rules()).prop_map(|(open, ingress, egress)| GroupPlan {
        open,
        ingress,
        egress,
    })
}

fn memberships() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..=3)
}

fn entity_plan() -> impl Strategy<Value = EntityPlan> {
    let interfaces = prop_oneof![
        3 => vec(interface_plan(), 1),
        1 => vec(interface_plan(), 2),
    ];
    (any::<u8>(), interfaces).prop_map(|(kind, interfaces)| EntityPlan { kind, interfaces })
}

fn interface_plan() -> impl Strategy<Value = InterfacePlan> {
    (
        any::<u8>(),
        memberships(),
        any::<u8>(),
        proptest::bool::weighted(0.25),
        any::<u8>(),
        proptest::bool::weighted(0.2),
        any::<u8>(),
        any::<(u8, u8, u8)>(),
    )
        .prop_map(
            |(subnet, groups, families, second_address, public, check_off, mtu, timeouts)| {
                InterfacePlan {
                    subnet,
                    groups,
                    families,
                    second_address,
                    public,
                    check_off,
                    mtu,
                    timeouts,
                }
            },
        )
}

/// What rules may refer to.
struct Universe<'a> {
    addresses: &'a [IpAddr],
    groups: usize,
    prefix_lists: usize,
}

impl Universe<'_> {
    fn group(&self, ix: usize, plan: &GroupPlan) -> SecurityGroup {
        let name = if ix == 0 {
            DEFAULT_GROUP.to_owned()
        } else {
            format!("g{ix}")
        };
        SecurityGroup {
            id: format!("sg-{ix:017x}"),
            ingress: self.rules(&name, "ingress", &plan.ingress, plan.open == 7),
            egress: self.rules(&name, "egress", &plan.egress, plan.open > 2),
            name,
            description: String::new(),
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
        open: bool,
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
        if open {
            wanted.push((Traffic::All, Peer::Ipv4(Ipv4Net::default())));
            wanted.push((Traffic::All, Peer::Ipv6(Ipv6Net::default())));
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
            0 | 1 => Peer::Ipv4(Ipv4Net::default()),
            2 => Peer::Ipv6(Ipv6Net::default()),
            3..=6 => Peer::Group(GroupIx::new(usize::from(detail) % self.groups)),
            7 | 8 if self.prefix_lists > 0 => {
                Peer::PrefixList(PrefixListIx::new(usize::from(detail) % self.prefix_lists))
            }
            _ => match block(*pick(self.addresses, detail), length) {
                IpNet::V4(block) => Peer::Ipv4(block),
                IpNet::V6(block) => Peer::Ipv6(block),
            },
        }
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
        10 | 11 => Traffic::Icmp(icmp(&[8, 0, 3, 11], detail, more)),
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

fn prefix_list(ix: usize, plan: &ListPlan, addresses: &[IpAddr]) -> PrefixList {
    let family: Vec<IpAddr> = addresses
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

fn tracking((established, udp, stream): (u8, u8, u8)) -> Tracking {
    Tracking {
        tcp_established: Duration::from_secs(*pick(&[350, 60, 432_000], established)),
        udp_timeout: Duration::from_secs(*pick(&[30, 45, 60], udp)),
        udp_stream: Duration::from_secs(*pick(&[180, 60, 120], stream)),
    }
}

fn neighbour(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() ^ 1).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() ^ 1).into(),
    }
}

fn nth_of(block: IpNet, nth: usize) -> IpAddr {
    let nth = u32::try_from(nth).expect("few addresses");
    match block {
        IpNet::V4(block) => Ipv4Addr::from_bits(block.network().to_bits() + nth).into(),
        IpNet::V6(block) => Ipv6Addr::from_bits(block.network().to_bits() + u128::from(nth)).into(),
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a block")
}

fn place() -> Place {
    Place::implied(Arc::from("random"))
}
