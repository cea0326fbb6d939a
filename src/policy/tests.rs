//! What compiling promises: the rules mean what they say, and a change
//! rebuilds only what it touches.

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::model::{
    Address, Attachment, Entity, EntityIx, EntityKind, GroupIx, Interface, Peer, Place, PortRange,
    PrefixList, PrefixListIx, RuleId, SecurityGroup, SecurityGroupRule, Subnet, SubnetIx, Traffic,
    Vpc, protocol,
};

fn place() -> Place {
    Place::implied("test".into())
}

fn rule(name: &str, traffic: Traffic, peer: Peer) -> SecurityGroupRule {
    SecurityGroupRule {
        id: RuleId::derive(&[name]),
        traffic,
        peer,
        peer_text: String::new(),
        description: name.to_owned(),
        place: place(),
    }
}

fn group(name: &str, ingress: Vec<SecurityGroupRule>) -> SecurityGroup {
    SecurityGroup {
        id: format!("sg-{name}"),
        name: name.to_owned(),
        description: String::new(),
        ingress,
        egress: Vec::new(),
        place: place(),
    }
}

fn tcp(port: u16) -> Traffic {
    Traffic::Tcp(PortRange {
        from: port,
        to: port,
    })
}

/// Interfaces `10.0.0.10`, `10.0.0.11`, … with the groups given for each.
fn model(groups: Vec<SecurityGroup>, members: &[&[usize]]) -> Model {
    Model {
        vpc: Vpc {
            id: "vpc-1".into(),
            cidrs: vec!["10.0.0.0/16".parse().unwrap()],
            icmp_errors: Default::default(),
        },
        subnets: vec![Subnet {
            id: "subnet-1".into(),
            name: "a".into(),
            cidrs: vec!["10.0.0.0/24".parse().unwrap()],
            network_acl: Default::default(),
            route_table: Default::default(),
            place: place(),
        }],
        security_groups: groups.into_iter().map(Arc::new).collect(),
        entities: (0..members.len())
            .map(|i| Entity {
                name: format!("e{i}"),
                kind: EntityKind::Ec2,
                engine: None,
                run: None,
                max_flows: None,
                place: place(),
            })
            .collect(),
        interfaces: members
            .iter()
            .enumerate()
            .map(|(i, groups)| Interface {
                id: format!("eni-{i}"),
                entity: EntityIx::new(i),
                device: 0,
                attachment: Attachment::Subnet {
                    subnet: SubnetIx::new(0),
                    groups: groups.iter().map(|g| GroupIx::new(*g)).collect(),
                },
                addresses: vec![Address {
                    private: IpAddr::from([10, 0, 0, u8::try_from(10 + i).unwrap()]),
                    public: None,
                }],
                mtu: 9001,
                source_dest_check: true,
                tracking: Tracking::default(),
                place: place(),
            })
            .collect(),
        ..Model::default()
    }
    .with_implied_tables()
}

fn admitted(policy: &Policy, at: usize, peer: &str, port: u16) -> Option<String> {
    let peer: IpAddr = peer.parse().unwrap();
    let query = Query {
        protocol: protocol::TCP,
        selector: port,
    };
    policy
        .interface(InterfaceIx::new(at))?
        .rules(Direction::Ingress)?
        .find(peer, policy.groups_of(peer), query)
        .map(|rule| rule.description().to_owned())
}

fn ingress(policy: &Policy, at: usize) -> &RuleTable {
    policy
        .interface(InterfaceIx::new(at))
        .unwrap()
        .rules(Direction::Ingress)
        .unwrap()
}

#[test]
fn every_rule_of_every_group_counts_and_the_first_declared_is_named() {
    let everyone = Peer::Ipv4("0.0.0.0/0".parse().unwrap());
    let narrow = Peer::Ipv4("10.0.0.11/32".parse().unwrap());
    let policy = Policy::compile(
        &model(
            vec![
                group("a", vec![rule("wide", tcp(80), everyone)]),
                group(
                    "b",
                    vec![
                        rule("narrow", tcp(80), narrow),
                        rule("ssh", tcp(22), narrow),
                    ],
                ),
            ],
            &[&[0, 1], &[1]],
        ),
        None,
    );
    assert_eq!(
        admitted(&policy, 0, "10.0.0.11", 80).as_deref(),
        Some("wide")
    );
    assert_eq!(
        admitted(&policy, 0, "10.0.0.11", 22).as_deref(),
        Some("ssh")
    );
    assert_eq!(admitted(&policy, 0, "10.0.0.12", 22), None);
    assert_eq!(
        admitted(&policy, 1, "10.0.0.11", 80).as_deref(),
        Some("narrow")
    );
}

#[test]
fn members_of_one_group_do_not_reach_each_other_without_a_rule() {
    let groups = vec![
        group("silent", vec![]),
        group(
            "chatty",
            vec![rule("self", tcp(80), Peer::Group(GroupIx::new(1)))],
        ),
    ];
    let policy = Policy::compile(&model(groups, &[&[0], &[0], &[1], &[1]]), None);
    assert_eq!(admitted(&policy, 0, "10.0.0.11", 80), None);
    assert_eq!(
        admitted(&policy, 2, "10.0.0.13", 80).as_deref(),
        Some("self")
    );
    assert_eq!(admitted(&policy, 2, "10.0.0.10", 80), None);
}

#[test]
fn interfaces_with_the_same_groups_share_one_table() {
    let policy = Policy::compile(
        &model(
            vec![group("a", vec![]), group("b", vec![])],
            &[&[0, 1], &[0, 1], &[1]],
        ),
        None,
    );
    assert!(ingress(&policy, 0).shares_index_with(ingress(&policy, 1)));
    assert!(!ingress(&policy, 0).shares_index_with(ingress(&policy, 2)));
}

#[test]
fn a_change_of_membership_rebuilds_only_the_member() {
    let groups = || {
        vec![
            group("web", vec![]),
            group(
                "db",
                vec![rule("from-web", tcp(5432), Peer::Group(GroupIx::new(0)))],
            ),
            group("other", vec![]),
        ]
    };
    let before = Policy::compile(&model(groups(), &[&[0], &[1], &[2]]), None);
    assert_eq!(admitted(&before, 1, "10.0.0.12", 5432), None);
    let after = Policy::compile(&model(groups(), &[&[0], &[1], &[2, 0]]), Some(&before));
    assert_eq!(
        admitted(&after, 1, "10.0.0.12", 5432).as_deref(),
        Some("from-web")
    );
    assert!(ingress(&after, 1).shares_index_with(ingress(&before, 1)));
    assert!(ingress(&after, 0).shares_index_with(ingress(&before, 0)));
    assert_eq!(after.generation(), before.generation() + 1);
}

#[test]
fn a_changed_rule_rebuilds_only_its_group_and_moves_no_other() {
    let with_port = |port| {
        vec![
            group(
                "a",
                vec![rule("a", tcp(port), Peer::Group(GroupIx::new(1)))],
            ),
            group("b", vec![rule("b", tcp(1), Peer::Group(GroupIx::new(0)))]),
        ]
    };
    let before = Policy::compile(&model(with_port(80), &[&[0], &[1]]), None);
    let after = Policy::compile(&model(with_port(81), &[&[0], &[1]]), Some(&before));
    assert!(!ingress(&after, 0).shares_index_with(ingress(&before, 0)));
    assert!(ingress(&after, 1).shares_index_with(ingress(&before, 1)));
    assert_eq!(admitted(&after, 0, "10.0.0.11", 80), None);
    assert!(admitted(&after, 0, "10.0.0.11", 81).is_some());
}

#[test]
fn shared_tables_stay_right_when_a_group_is_declared_before_the_others() {
    let before = Policy::compile(
        &model(
            vec![
                group("web", vec![]),
                group(
                    "db",
                    vec![rule("from-web", tcp(5432), Peer::Group(GroupIx::new(0)))],
                ),
            ],
            &[&[0], &[1]],
        ),
        None,
    );
    let after = Policy::compile(
        &model(
            vec![
                group("new", vec![]),
                group("web", vec![]),
                group(
                    "db",
                    vec![rule("from-web", tcp(5432), Peer::Group(GroupIx::new(1)))],
                ),
            ],
            &[&[1], &[2]],
        ),
        Some(&before),
    );
    assert!(ingress(&after, 1).shares_index_with(ingress(&before, 1)));
    assert!(admitted(&after, 1, "10.0.0.10", 5432).is_some());
}

#[test]
fn a_clone_shares_what_it_does_not_change() {
    let peer = |group| Peer::Group(GroupIx::new(group));
    let groups = vec![
        group("a", vec![rule("a", tcp(1), peer(1))]),
        group("b", vec![rule("b", tcp(1), peer(0))]),
    ];
    let model = model(groups, &[&[0], &[1]]);
    let before = Policy::compile(&model, None);
    let mut changed = model.clone();
    changed.group_mut(GroupIx::new(0)).ingress[0].description = "other".to_owned();
    assert!(Arc::ptr_eq(
        &changed.security_groups[1],
        &model.security_groups[1]
    ));
    let after = Policy::compile(&changed, Some(&before));
    for at in [0, 1] {
        assert!(ingress(&after, at).shares_index_with(ingress(&before, at)));
    }
    let named = |policy: &Policy| admitted(policy, 0, "10.0.0.11", 1);
    assert_eq!(named(&after).as_deref(), Some("other"));
    assert_eq!(named(&before).as_deref(), Some("a"));
}

/// The very same rules, whose references by position mean something else.
#[test]
fn a_shared_group_is_made_anew_where_its_peers_are_others() {
    let list = |entry: &str| PrefixList {
        id: "pl-1".into(),
        name: "list".into(),
        entries: vec![entry.parse().unwrap()],
        place: place(),
    };
    let web = Peer::Group(GroupIx::new(0));
    let listed = Peer::PrefixList(PrefixListIx::new(0));
    let rules = vec![rule("web", tcp(80), web), rule("list", tcp(22), listed)];
    let groups = vec![
        group("web", vec![]),
        group("lb", vec![]),
        group("db", rules),
    ];
    let mut model = model(groups, &[&[0], &[1], &[2]]);
    model.prefix_lists = vec![list("10.9.0.0/16")];
    let before = Policy::compile(&model, None);
    assert!(admitted(&before, 2, "10.0.0.10", 80).is_some());
    assert!(admitted(&before, 2, "10.9.0.1", 22).is_some());

    model.prefix_lists = vec![list("10.8.0.0/16")];
    let after = Policy::compile(&model, Some(&before));
    assert_eq!(admitted(&after, 2, "10.9.0.1", 22), None);
    assert!(admitted(&after, 2, "10.8.0.1", 22).is_some());

    // Who was in `web` is in `lb` now, and so the rule means.
    model.security_groups.swap(0, 1);
    let after = Policy::compile(&model, Some(&after));
    assert!(admitted(&after, 2, "10.0.0.10", 80).is_some());
    assert!(admitted(&after, 2, "10.0.0.11", 80).is_none());
}

#[test]
fn interfaces_keep_their_slots_whatever_their_order_in_the_file() {
    let before = Policy::compile(&model(vec![group("a", vec![])], &[&[0], &[0], &[0]]), None);
    let mut reordered = model(vec![group("a", vec![])], &[&[0], &[0], &[0]]);
    reordered.interfaces.reverse();
    let after = Policy::compile(&reordered, Some(&before));
    let ids = |policy: &Policy| {
        policy
            .interfaces()
            .map(|(_, interface)| interface.id.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(&after), ids(&before));

    reordered.interfaces.remove(1);
    let without = Policy::compile(&reordered, Some(&before));
    assert!(without.interface(InterfaceIx::new(1)).is_none());
    assert_eq!(without.interface(InterfaceIx::new(2)).unwrap().id, "eni-2");
}

#[test]
fn a_near_miss_says_which_condition_failed() {
    let groups = vec![
        group("web", vec![]),
        group(
            "db",
            vec![rule("from-web", tcp(5432), Peer::Group(GroupIx::new(0)))],
        ),
        group("lb", vec![]),
    ];
    let policy = Policy::compile(&model(groups, &[&[0], &[1], &[2]]), None);
    let coverage = |peer: &str, port| {
        let peer: IpAddr = peer.parse().unwrap();
        let query = Query {
            protocol: protocol::TCP,
            selector: port,
        };
        let found = ingress(&policy, 1)
            .coverage(0, peer, policy.groups_of(peer), query)
            .unwrap();
        (found.peer, found.traffic)
    };
    assert_eq!(coverage("10.0.0.12", 5432), (false, true));
    assert_eq!(coverage("10.0.0.10", 5433), (true, false));
    assert_eq!(coverage("10.0.0.10", 5432), (true, true));
}

#[test]
fn ten_thousand_reloads_that_rename_groups_leave_no_group_behind() {
    let named = |reload: u32| {
        let name = format!("db-{reload}");
        let groups = vec![
            group("web", vec![]),
            group(
                &name,
                vec![rule("from-web", tcp(5432), Peer::Group(GroupIx::new(0)))],
            ),
        ];
        model(groups, &[&[0], &[1]])
    };
    let mut policy = Policy::compile(&named(0), None);
    for reload in 1..=10_000 {
        policy = Policy::compile(&named(reload), Some(&policy));
        let [key] = policy.groups_of("10.0.0.11".parse().unwrap()) else {
            panic!("one group");
        };
        assert!(key.ix() < 100, "{key:?} after {reload} reloads");
        assert_eq!(policy.group_name(*key), format!("db-{reload}"));
        assert!(admitted(&policy, 1, "10.0.0.10", 5432).is_some());
        assert!(admitted(&policy, 0, "10.0.0.11", 5432).is_none());
    }
}
