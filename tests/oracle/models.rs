//! Random VPCs.
//!
//! What is drawn is a [`Blueprint`] of plain bytes, each a pick from a list
//! that is only known while the model is built. So every blueprint is a valid
//! model, and a smaller one is still a valid model when a failure is shrunk.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use sgwall::model::{
    AclIx, Address, Attachment, Entity, EntityIx, EntityKind, GroupIx, IcmpErrors, Interface,
    LoadBalancer, MAIN_ROUTE_TABLE, Model, Place, RouteTableIx, Subnet, SubnetIx, Tracking, Via,
    Vpc, derive_id,
};

use crate::rules::{
    AclPlan, GroupPlan, ListPlan, TablePlan, Universe, acl_plan, group_plan, list_plan, table_plan,
};

/// One of `list`, by a byte that any list accepts; 0 picks the first.
pub fn pick<T>(list: &[T], by: u8) -> &T {
    &list[usize::from(by) % list.len()]
}

/// What a model is built from.
#[derive(Debug, Clone)]
pub struct Blueprint {
    second_cidr: bool,
    ipv6: bool,
    related: bool,
    subnets: Vec<SubnetPlan>,
    prefix_lists: Vec<ListPlan>,
    groups: Vec<GroupPlan>,
    acls: Vec<AclPlan>,
    /// The main route table, if AWS's is not the one.
    main: Option<TablePlan>,
    tables: Vec<TablePlan>,
    entities: Vec<EntityPlan>,
}

/// Which network ACL and which route table a subnet has: the VPC's own for
/// small numbers.
#[derive(Debug, Clone, Copy)]
struct SubnetPlan {
    acl: u8,
    table: u8,
}

#[derive(Debug, Clone)]
struct EntityPlan {
    kind: u8,
    allowance: u8,
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

/// A change of what may change while traffic runs; the interfaces and their
/// addresses stay.
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
    /// One network ACL gets other entries.
    Acl(u8, AclPlan),
    /// One subnet gets another network ACL.
    SubnetAcl(u8, u8),
    /// One route table gets other routes.
    Table(u8, TablePlan),
    /// One subnet gets another route table.
    SubnetTable(u8, u8),
    /// ICMP errors are let in otherwise.
    IcmpErrors,
}

/// Any model that this file can draw.
pub fn blueprint() -> impl Strategy<Value = Blueprint> {
    let subnet = any::<(u8, u8)>().prop_map(|(acl, table)| SubnetPlan { acl, table });
    (
        any::<(bool, bool, bool)>(),
        vec(subnet, 1..=4),
        vec(list_plan(), 0..=2),
        vec(group_plan(), 1..=6),
        vec(acl_plan(), 0..=2),
        proptest::option::weighted(0.3, table_plan()),
        vec(table_plan(), 0..=2),
        vec(entity_plan(), 2..=7),
    )
        .prop_map(
            |(
                (second_cidr, ipv6, related),
                subnets,
                prefix_lists,
                groups,
                acls,
                main,
                tables,
                entities,
            )| Blueprint {
                second_cidr,
                ipv6,
                related,
                subnets,
                prefix_lists,
                groups,
                acls,
                main,
                tables,
                entities,
            },
        )
}

/// Any change that this file can draw.
pub fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        1 => Just(Change::Clear),
        6 => (any::<u8>(), group_plan()).prop_map(|(group, plan)| Change::Group(group, plan)),
        2 => vec(group_plan(), 1..=6).prop_map(Change::Groups),
        6 => (any::<u8>(), memberships())
            .prop_map(|(interface, groups)| Change::Membership(interface, groups)),
        2 => (any::<u8>(), list_plan()).prop_map(|(list, plan)| Change::PrefixList(list, plan)),
        3 => (any::<u8>(), acl_plan()).prop_map(|(acl, plan)| Change::Acl(acl, plan)),
        2 => any::<(u8, u8)>().prop_map(|(subnet, acl)| Change::SubnetAcl(subnet, acl)),
        2 => (any::<u8>(), table_plan()).prop_map(|(table, plan)| Change::Table(table, plan)),
        2 => any::<(u8, u8)>().prop_map(|(subnet, table)| Change::SubnetTable(subnet, table)),
        1 => Just(Change::IcmpErrors),
    ]
}

impl Blueprint {
    /// The blueprint after `change`.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Clear => self.groups.iter_mut().for_each(GroupPlan::clear),
            Change::Group(group, plan) => replace(&mut self.groups, *group, plan),
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
            Change::PrefixList(list, plan) => replace(&mut self.prefix_lists, *list, plan),
            Change::Acl(acl, plan) => replace(&mut self.acls, *acl, plan),
            Change::SubnetAcl(subnet, acl) => {
                let at = usize::from(*subnet) % self.subnets.len();
                self.subnets[at].acl = *acl;
            }
            Change::Table(table, plan) if *table < 64 => self.main = Some(plan.clone()),
            Change::Table(table, plan) => replace(&mut self.tables, *table, plan),
            Change::SubnetTable(subnet, table) => {
                let at = usize::from(*subnet) % self.subnets.len();
                self.subnets[at].table = *table;
            }
            Change::IcmpErrors => self.related = !self.related,
        }
    }

    /// The model drawn here; it holds every invariant of `Model`, and a lab
    /// file can say all of it.
    pub fn build(&self) -> Model {
        let mut model = Model {
            vpc: self.vpc(),
            subnets: self.subnets(),
            ..Model::default()
        };
        for (ix, plan) in self.entities.iter().enumerate() {
            self.add_entity(&mut model, EntityIx::new(ix), plan);
        }
        // AWS's own network ACL and main route table come first.
        let mut model = model.with_implied_tables();
        let addresses = addresses(&model);
        let universe = Universe {
            model: &model,
            addresses: &addresses,
            groups: self.groups.len(),
            prefix_lists: self.prefix_lists.len(),
        };
        let numbered = || 0usize..;
        let prefix_lists = numbered()
            .zip(&self.prefix_lists)
            .map(|(ix, plan)| universe.prefix_list(ix, plan))
            .collect();
        let security_groups = numbered()
            .zip(&self.groups)
            .map(|(ix, plan)| Arc::new(universe.group(ix, plan)))
            .collect();
        let acls: Vec<_> = numbered()
            .zip(&self.acls)
            .map(|(ix, plan)| universe.acl(ix, plan))
            .collect();
        let main = self
            .main
            .as_ref()
            .map(|plan| universe.table(MAIN_ROUTE_TABLE, plan));
        let tables: Vec<_> = numbered()
            .zip(&self.tables)
            .map(|(ix, plan)| universe.table(&format!("t{ix}"), plan))
            .collect();
        model.prefix_lists = prefix_lists;
        model.security_groups = security_groups;
        model.network_acls.extend(acls);
        if let Some(main) = main {
            model.route_tables[0] = main;
        }
        model.route_tables.extend(tables);
        model
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
            icmp_errors: if self.related {
                IcmpErrors::Related
            } else {
                IcmpErrors::ByRule
            },
        }
    }

    fn subnets(&self) -> Vec<Subnet> {
        let last = if self.second_cidr {
            "10.1.0.0/24"
        } else {
            "10.0.4.0/24"
        };
        // Half of the bytes mean the VPC's own.
        let of = |by: u8, own: usize| match usize::from(by) {
            by if by < 128 || own == 0 => 0,
            by => 1 + by % own,
        };
        ["10.0.1.0/25", "10.0.1.128/25", "10.0.3.0/24", last]
            .into_iter()
            .zip(&self.subnets)
            .enumerate()
            .map(|(ix, (cidr, plan))| {
                let mut cidrs = vec![net(cidr)];
                if self.ipv6 {
                    cidrs.push(net(&format!("2001:db8:1:{ix}::/64")));
                }
                Subnet {
                    id: format!("subnet-{ix:017x}"),
                    name: format!("subnet{ix}"),
                    cidrs,
                    network_acl: AclIx::new(of(plan.acl, self.acls.len())),
                    route_table: RouteTableIx::new(of(plan.table, self.tables.len())),
                    place: place(),
                }
            })
            .collect()
    }

    fn add_entity(&self, model: &mut Model, entity: EntityIx, plan: &EntityPlan) {
        // The first is inside the VPC, so that there is something to guard.
        let kind = match (entity.ix(), plan.kind % 16) {
            (0, _) | (_, 0..=3) => EntityKind::Ec2,
            (_, 4) => EntityKind::Rds,
            (_, 5) => EntityKind::Elb(LoadBalancer::Application),
            (_, 6) => EntityKind::Elb(LoadBalancer::Network),
            (_, 7 | 8) => EntityKind::Ecs,
            (_, 9..=12) => EntityKind::External(Via::Igw),
            _ => EntityKind::External(Via::Vgw),
        };
        let name = format!("e{}", entity.ix());
        let outside = matches!(kind, EntityKind::External(_));
        // An allowance that is large is like none.
        let max_flows = match plan.allowance {
            few @ 1..=40 if !outside => Some(u32::from(few.div_ceil(10))),
            _ => None,
        };
        model.entities.push(Entity {
            name: name.clone(),
            kind,
            engine: None,
            run: None,
            max_flows,
            place: place(),
        });
        let interfaces = if outside {
            &plan.interfaces[..1]
        } else {
            &plan.interfaces[..]
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
                // What a lab file gives it.
                id: derive_id("eni", &[&name, &format!("eth{device}")]),
                entity,
                device: u8::try_from(device).expect("few devices"),
                attachment,
                addresses,
                mtu: *pick(&[9001, 9001, 9001, 1500, 1400, 1280], plan.mtu),
                source_dest_check: outside || !plan.check_off,
                tracking: if outside {
                    Tracking::default()
                } else {
                    tracking(plan.timeouts)
                },
                place: place(),
            });
        }
    }

    fn inside(&self, model: &Model, plan: &InterfacePlan) -> (Attachment, Vec<Address>) {
        let subnet = usize::from(plan.subnet) % self.subnets.len();
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
        // A lab file pairs public addresses with the first private ones.
        let public_ones = match plan.public % 4 {
            0 => 0,
            1 | 2 => 1,
            _ => 2,
        };
        let mut addresses = Vec::new();
        if families != 5 {
            for nth in 0..1 + usize::from(plan.second_address) {
                let public = u8::try_from(10 + taken + nth).expect("few addresses");
                addresses.push(Address {
                    private: nth_of(cidrs[0], 8 + taken + nth),
                    public: (nth < public_ones).then_some(Ipv4Addr::new(203, 0, 113, public)),
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
            Via::Vgw | Via::Wire => ("192.168.7.0/24", "2001:db8:e::/64"),
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

/// Where everything random is declared.
pub fn place() -> Place {
    Place::implied(Arc::from("random"))
}

fn replace<T: Clone>(list: &mut [T], at: u8, plan: &T) {
    if !list.is_empty() {
        let at = usize::from(at) % list.len();
        list[at] = plan.clone();
    }
}

fn memberships() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..=3)
}

fn entity_plan() -> impl Strategy<Value = EntityPlan> {
    let interfaces = prop_oneof![
        3 => vec(interface_plan(), 1),
        1 => vec(interface_plan(), 2),
    ];
    (any::<u8>(), any::<u8>(), interfaces).prop_map(|(kind, allowance, interfaces)| EntityPlan {
        kind,
        allowance,
        interfaces,
    })
}

fn interface_plan() -> impl Strategy<Value = InterfacePlan> {
    (
        any::<u8>(),
        memberships(),
        any::<u8>(),
        proptest::bool::weighted(0.25),
        any::<u8>(),
        proptest::bool::weighted(0.25),
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
