//! A table says what a walk over its rules would say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::model::{Direction, IcmpMatch, Peer, Place, RuleId, SecurityGroup, SecurityGroupRule};
use crate::policy::matcher::covers;

/// Few distinct bytes, so that blocks nest and queries meet them.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![Just(0), Just(10), Just(11), Just(128), Just(255)]
}

fn v4() -> impl Strategy<Value = IpAddr> {
    prop::array::uniform4(byte()).prop_map(|bytes| Ipv4Addr::from(bytes).into())
}

fn v6() -> impl Strategy<Value = IpAddr> {
    prop::array::uniform16(byte()).prop_map(|bytes| Ipv6Addr::from(bytes).into())
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![3 => v4(), 1 => v6()]
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), any::<u8>()).prop_map(|(address, length)| {
        let width = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, length % (width + 1)).unwrap().trunc()
    })
}

/// Everybody oftener than chance would have it.
fn block() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        6 => net(),
        1 => Just(IpNet::V4(Ipv4Net::default())),
        1 => Just(IpNet::V6(Ipv6Net::default())),
    ]
}

/// Keys of which some share a bit.
fn key() -> impl Strategy<Value = GroupKey> {
    (0u32..3, prop_oneof![Just(0u32), Just(256)]).prop_map(|(key, more)| GroupKey(key + more))
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..6, Just(u16::MAX - 1), Just(u16::MAX), any::<u16>()]
}

fn traffic() -> impl Strategy<Value = Traffic> {
    let ports = || {
        let any = (port(), port()).prop_map(|(one, other)| PortRange {
            from: one.min(other),
            to: one.max(other),
        });
        prop_oneof![4 => any, 1 => Just(PortRange::ALL)]
    };
    let icmp = || {
        prop_oneof![
            Just(IcmpMatch::Any),
            (0u8..3).prop_map(IcmpMatch::Type),
            (0u8..3, 0u8..3).prop_map(|(kind, code)| IcmpMatch::TypeAndCode(kind, code)),
        ]
    };
    prop_oneof![
        1 => Just(Traffic::All),
        4 => ports().prop_map(Traffic::Tcp),
        4 => ports().prop_map(Traffic::Udp),
        1 => icmp().prop_map(Traffic::Icmp),
        1 => icmp().prop_map(Traffic::Icmpv6),
        1 => (47u8..50).prop_map(Traffic::Other),
    ]
}

fn query() -> impl Strategy<Value = Query> {
    let with_ports = (prop_oneof![Just(6), Just(17)], port());
    let icmp = (prop_oneof![Just(1), Just(58)], (0u16..3, 0u16..3))
        .prop_map(|(protocol, (kind, code))| (protocol, kind << 8 | code));
    let other = (46u8..51).prop_map(|protocol| (protocol, 0));
    prop_oneof![4 => with_ports, 1 => icmp, 1 => other]
        .prop_map(|(protocol, selector)| Query { protocol, selector })
}

/// Rules of one group; a list is one of a few, which many of them name.
fn sources() -> impl Strategy<Value = Vec<Vec<Source>>> {
    let lists = prop::collection::vec(prop::collection::vec(block(), 0..20), 3);
    let peer = prop_oneof![
        5 => block().prop_map(|net| Ok(PeerSet::Net(net))),
        1 => key().prop_map(|key| Ok(PeerSet::Group(key))),
        2 => any::<Index>().prop_map(Err),
    ];
    let group = prop::collection::vec((traffic(), peer), 0..40);
    (lists, prop::collection::vec(group, 1..4)).prop_map(|(lists, groups)| {
        let lists: Vec<Arc<[IpNet]>> = lists.into_iter().map(Into::into).collect();
        let resolved = |(traffic, peer): (Traffic, Result<PeerSet, Index>)| {
            let named = |list: Index| PeerSet::List(Arc::clone(list.get(&lists)));
            (traffic, peer.unwrap_or_else(named))
        };
        let groups = groups.into_iter();
        groups
            .map(|rules| rules.into_iter().map(resolved).collect())
            .collect()
    })
}

/// The table of these groups; a rule's id is its position in it.
fn table(groups: &[Vec<Source>]) -> RuleTable {
    let mut ids = 0..;
    let place = Place::implied("test".into());
    let rule = |(traffic, _): &Source, id| SecurityGroupRule {
        id: RuleId(id),
        traffic: *traffic,
        peer: Peer::Ipv4(Ipv4Net::default()),
        peer_text: String::new(),
        description: String::new(),
        place: place.clone(),
    };
    let mut group = |sources: &Vec<Source>| {
        let rules = sources.iter().zip(&mut ids);
        let ingress: Vec<SecurityGroupRule> = rules.map(|(it, id)| rule(it, id)).collect();
        GroupTable {
            index: Arc::new(TableIndex::new(
                sources.clone().into(),
                ingress.iter().map(|rule| rule.id).collect(),
            )),
            declared: Arc::new(SecurityGroup {
                id: String::new(),
                name: String::new(),
                description: String::new(),
                ingress,
                egress: Vec::new(),
                place: place.clone(),
            }),
        }
    };
    RuleTable::new(Direction::Ingress, groups.iter().map(&mut group).collect())
}

fn is_peer(peers: &PeerSet, peer: IpAddr, groups: &[GroupKey]) -> bool {
    match peers {
        PeerSet::Net(net) => net.contains(&peer),
        PeerSet::List(list) => list.iter().any(|net| net.contains(&peer)),
        PeerSet::Group(group) => groups.contains(group),
    }
}

fn is_everybody(peers: &PeerSet, v4: bool) -> bool {
    matches!(peers, PeerSet::Net(net) if net.prefix_len() == 0 && net.addr().is_ipv4() == v4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn a_table_says_what_a_walk_over_its_rules_would(
        groups in sources(),
        questions in prop::collection::vec(
            (address(), prop::collection::vec(key(), 0..3), query()), 1..40),
    ) {
        let table = table(&groups);
        let rules: Vec<&Source> = groups.iter().flatten().collect();
        prop_assert_eq!(table.rules().count(), rules.len());
        for (peer, keys, query) in &questions {
            let (peer, query, v4) = (*peer, *query, peer.is_ipv4());
            let first = rules.iter().position(|(traffic, peers)| {
                covers(*traffic, query) && is_peer(peers, peer, keys)
            });
            let found = table.find(peer, keys, query).map(|rule| rule.id.0);
            prop_assert_eq!(found, first.map(|at| at as u64), "{} {:?} {:?}", peer, keys, query);

            let open = rules.iter().any(|(traffic, peers)| {
                covers(*traffic, query) && is_everybody(peers, v4)
            });
            prop_assert_eq!(table.is_open_to_all(v4, query), open);

            for protocol in [protocol::TCP, protocol::UDP] {
                // A range that has the first port and the last has all.
                let ends = [0, u16::MAX].map(|selector| Query { protocol, selector });
                let open = rules.iter().any(|(traffic, peers)| {
                    ends.iter().all(|end| covers(*traffic, *end)) && is_everybody(peers, v4)
                });
                prop_assert_eq!(table.is_open_on_all_ports(v4, protocol), open);
            }
        }
        let (peer, keys, query) = &questions[0];
        for (number, (traffic, peers)) in rules.iter().enumerate() {
            let expected = Coverage {
                peer: is_peer(peers, *peer, keys),
                traffic: covers(*traffic, *query),
            };
            prop_assert_eq!(table.coverage(number, *peer, keys, *query), Some(expected));
        }
        prop_assert_eq!(table.coverage(rules.len(), *peer, keys, *query), None);
    }
}

#[test]
fn a_list_that_many_rules_name_is_in_the_table_once() {
    let entries = |first: u8| -> Arc<[IpNet]> {
        (0..=255)
            .map(|block| IpNet::V4(Ipv4Net::new_assert([first, block, 0, 0].into(), 16)))
            .collect()
    };
    let (one, other) = (entries(10), entries(11));
    let rules: Vec<Source> = (0..1_000)
        .map(|port| {
            let list = if port % 2 == 0 { &one } else { &other };
            let ports = PortRange {
                from: port,
                to: port,
            };
            (Traffic::Tcp(ports), PeerSet::List(Arc::clone(list)))
        })
        .collect();
    let index = TableIndex::new(rules.into(), Box::default());
    assert_eq!(index.v4.len(), 512);
    // Each port and the gap after it, twice.
    assert!(index.arena.size() <= 2 * 1_001, "{}", index.arena.size());
}
