//! A large VPC, built in code: thousands of rules of all kinds in as many groups
//! as are asked for, and interfaces that carry them in different combinations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sgwall::config::{Options, Quotas, load_sources_with};
use sgwall::model::{
    Address, Attachment, Entity, EntityIx, EntityKind, GroupIx, IcmpMatch, Interface, MAX_MTU,
    Model, Peer, Place, PortRange, PrefixList, PrefixListIx, RuleId, SecurityGroup,
    SecurityGroupRule, Subnet, SubnetIx, Tracking, Traffic, Vpc,
};

/// How large the VPC is.
#[derive(Debug, Clone, Copy)]
pub struct Fleet {
    /// Network interfaces, each of an entity of its own.
    pub interfaces: usize,
    /// Security groups.
    pub groups: usize,
    /// Groups that each interface carries.
    pub carried: usize,
    /// Rules of each group for what comes in.
    pub ingress: usize,
    /// Rules of each group for what goes out.
    pub egress: usize,
}

/// Prefix lists, and entries of each.
const LISTS: usize = 50;
const ENTRIES: usize = 20;

static FILE: LazyLock<Arc<str>> = LazyLock::new(|| "fleet.yaml".into());

/// The VPC.
pub fn model(fleet: Fleet) -> Model {
    let place = place(0);
    let cidrs: Vec<IpNet> = ["10.0.0.0/16", "2001:db8::/56"]
        .map(|text| text.parse().expect("a network"))
        .to_vec();
    Model {
        vpc: Vpc {
            id: "vpc-1".to_owned(),
            cidrs: cidrs.clone(),
            icmp_errors: Default::default(),
        },
        subnets: vec![Subnet {
            id: "subnet-1".to_owned(),
            name: "one".to_owned(),
            cidrs,
            network_acl: Default::default(),
            route_table: Default::default(),
            place: place.clone(),
        }],
        prefix_lists: (0..LISTS).map(prefix_list).collect(),
        security_groups: (0..fleet.groups)
            .map(|at| Arc::new(group(fleet, at)))
            .collect(),
        entities: (0..fleet.interfaces)
            .map(|at| Entity {
                name: format!("e{at}"),
                kind: EntityKind::Ec2,
                engine: None,
                run: None,
                max_flows: None,
                place: place.clone(),
            })
            .collect(),
        interfaces: (0..fleet.interfaces)
            .map(|at| Interface {
                id: format!("eni-{at:017x}"),
                entity: EntityIx::new(at),
                device: 0,
                attachment: Attachment::Subnet {
                    subnet: SubnetIx::new(0),
                    groups: carried(fleet, at),
                },
                addresses: vec![Address {
                    private: address(at),
                    public: None,
                }],
                mtu: MAX_MTU,
                source_dest_check: true,
                tracking: Tracking::default(),
                place: place.clone(),
            })
            .collect(),
        ..Model::default()
    }
    .with_implied_tables()
}

/// The address of the `at`-th interface.
pub fn address(at: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0100 + number(at)).into()
}

/// The same VPC after somebody moved the port of one rule.
pub fn with_one_rule_changed(model: &Model) -> Model {
    let mut model = model.clone();
    let group = GroupIx::new(model.security_groups.len() / 2);
    let rules = &mut model.group_mut(group).ingress;
    let middle = rules.len() / 2;
    rules[middle].traffic = Traffic::Tcp(PortRange { from: 9, to: 9 });
    model
}

/// The same VPC after somebody wrote another rule into the first group, which
/// moves every rule after it to another line.
pub fn with_one_rule_added(model: &Model) -> Model {
    let mut model = model.clone();
    for group in model.groups_mut() {
        for rule in group.ingress.iter_mut().chain(&mut group.egress) {
            rule.place.line += 1;
        }
    }
    let rules = &mut model.group_mut(GroupIx::new(0)).ingress;
    let mut added = rules[0].clone();
    added.id = RuleId::derive(&["added"]);
    added.traffic = Traffic::Tcp(PortRange { from: 9, to: 9 });
    rules.insert(0, added);
    model
}

/// The VPC as a lab file and files of rules, none larger than is read.
pub fn files(model: &Model) -> Vec<(String, String)> {
    let mut lab = "vpc: { cidr: [10.0.0.0/16, 2001:db8::/56] }\n\
                   subnets: { one: { cidr: [10.0.0.0/16, 2001:db8::/64] } }\n\
                   entities:\n"
        .to_owned();
    for (at, interface) in model.interfaces.iter().enumerate() {
        let name = |group: &GroupIx| model.security_groups[group.ix()].name.as_str();
        let groups: Vec<&str> = interface.groups().iter().map(name).collect();
        let (address, groups) = (address(at), groups.join(", "));
        lab += &format!(
            "  e{at}: {{ kind: ec2, subnet: one, addresses: [{address}], security_groups: [{groups}] }}\n"
        );
    }
    lab += "prefix_lists:\n";
    for list in &model.prefix_lists {
        lab += &format!("  {}: {:?}\n", list.name, list.entries);
    }
    let mut files = vec![("fleet.yaml".to_owned(), lab)];
    for (number, groups) in model.security_groups.chunks(250).enumerate() {
        let mut text = "security_groups:\n".to_owned();
        for group in groups {
            text += &format!("  {}:\n", group.name);
            rules(&mut text, ("ingress", "from"), &group.ingress);
            rules(&mut text, ("egress", "to"), &group.egress);
        }
        files.push((format!("rules-{number}.yaml"), text));
    }
    files
}

fn rules(text: &mut String, (direction, peer): (&str, &str), rules: &[SecurityGroupRule]) {
    *text += &format!(
        "    {direction}:{}\n",
        if rules.is_empty() { " []" } else { "" }
    );
    for rule in rules {
        let what = match rule.traffic {
            Traffic::Tcp(ports) => format!("tcp, ports: {ports}"),
            Traffic::Udp(ports) => format!("udp, ports: {ports}"),
            // Of which there are such that say a type.
            other => other.to_string().replace(" type ", ", code: -1, type: "),
        };
        *text += &format!(
            "      - {{ protocol: {what}, {peer}: '{}', description: {} }}\n",
            rule.peer_text, rule.description
        );
    }
}

/// What reading `files` gives.
pub fn read(files: &[(String, String)]) -> Model {
    let files: Vec<(&str, &str)> = (files.iter())
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    // Its prefix lists take its groups beyond a quota.
    let options = Options {
        quotas: Quotas::Warn,
    };
    let loaded = load_sources_with(&files, options);
    match loaded {
        Ok(loaded) => loaded.model,
        Err(wrong) => panic!("{wrong}"),
    }
}

fn group(fleet: Fleet, at: usize) -> SecurityGroup {
    let rules = |direction: &str, count: usize| {
        (0..count)
            .map(|number| {
                let peer = peer(fleet, at, number);
                let name = format!("g{at} {direction} {number}");
                SecurityGroupRule {
                    id: RuleId::derive(&[&name]),
                    traffic: traffic(at, number, peer),
                    peer,
                    peer_text: match peer {
                        Peer::Ipv4(net) => net.to_string(),
                        Peer::Ipv6(net) => net.to_string(),
                        Peer::PrefixList(list) => format!("pl/list-{}", list.ix()),
                        Peer::Group(group) => format!("sg/group-{}", group.ix()),
                    },
                    description: format!("what {name} is for"),
                    place: place(at * (fleet.ingress + fleet.egress) + number),
                }
            })
            .collect()
    };
    SecurityGroup {
        id: format!("sg-{at:017x}"),
        name: format!("group-{at}"),
        description: String::new(),
        ingress: rules("ingress", fleet.ingress),
        egress: rules("egress", fleet.egress),
        place: place(0),
    }
}

/// Every kind of peer, blocks of every size, most of them inside the VPC.
fn peer(fleet: Fleet, group: usize, rule: usize) -> Peer {
    let random = scramble(group * 1_000 + rule);
    match rule % 10 {
        0..4 => Peer::Ipv4(v4_block(0x0a00_0000 | random >> 8, 16 + random % 17)),
        4 => Peer::Ipv4(v4_block(random, 8 + random % 25)),
        5 | 6 => Peer::Ipv6(v6_block(random, 48 + random % 81)),
        7 => Peer::Group(GroupIx::new((group * 7 + rule) % fleet.groups)),
        8 => Peer::PrefixList(PrefixListIx::new((group + rule) % LISTS)),
        _ => Peer::Ipv4(Ipv4Net::default()),
    }
}

fn traffic(group: usize, rule: usize, peer: Peer) -> Traffic {
    let port = 1024 + (scramble(group + rule * 31) % 60_000) as u16;
    let ports = |width| PortRange {
        from: port,
        to: port + width,
    };
    match rule % 7 {
        0..3 => Traffic::Tcp(ports(0)),
        3 => Traffic::Tcp(ports(100)),
        4 => Traffic::Udp(ports(0)),
        5 => Traffic::Udp(ports(1_000)),
        _ => {
            let what = IcmpMatch::Type(rule as u8);
            match peer {
                Peer::Ipv6(_) => Traffic::Icmpv6(what),
                _ => Traffic::Icmp(what),
            }
        }
    }
}

fn prefix_list(at: usize) -> PrefixList {
    let entry = |number: usize| {
        let random = scramble(at * 10_007 + number);
        IpNet::V4(v4_block(random, 12 + random % 21))
    };
    let mut entries: Vec<IpNet> = (0..ENTRIES).map(entry).collect();
    entries.sort_unstable();
    entries.dedup();
    PrefixList {
        id: format!("pl-{at:017x}"),
        name: format!("list-{at}"),
        entries,
        place: place(0),
    }
}

/// Different groups for each interface, as far as there are enough.
fn carried(fleet: Fleet, at: usize) -> Vec<GroupIx> {
    let mut groups: Vec<usize> = Vec::new();
    let mut next = at;
    while groups.len() < fleet.carried {
        let group = next % fleet.groups;
        if groups.contains(&group) {
            next += 1;
        } else {
            groups.push(group);
            next = scramble(next + 1) as usize;
        }
    }
    if fleet.carried == fleet.groups {
        groups.sort_unstable();
    }
    groups.into_iter().map(GroupIx::new).collect()
}

fn v4_block(bits: u32, length: u32) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::from_bits(bits), length as u8).trunc()
}

fn v6_block(bits: u32, length: u32) -> Ipv6Net {
    let bits = 0x2001_0db8_u128 << 96 | u128::from(bits) << 48 | u128::from(bits);
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length as u8).trunc()
}

fn place(line: usize) -> Place {
    Place {
        file: Arc::clone(&FILE),
        line: number(line) + 1,
        column: 9,
    }
}

/// A number that looks random, always the same for the same one.
fn scramble(from: usize) -> u32 {
    let mixed = (from as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
}

fn number(i: usize) -> u32 {
    u32::try_from(i).expect("few of them")
}
