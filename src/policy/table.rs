//! The rules of one set of groups in one direction.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{
    Direction, Place, PortRange, RuleId, SecurityGroup, SecurityGroupRule, Traffic, protocol,
};

use super::matcher::{Arena, Matcher, NO_RULE, Query, RuleNumber, index};
use super::trie::{NONE, Prefix, Trie};

/// Number of a security group, stable across the policies of one appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupKey(u32);

impl GroupKey {
    pub(super) fn new(i: usize) -> Self {
        Self(index(i))
    }

    pub(super) fn ix(self) -> usize {
        self.0 as usize
    }
}

/// A rule as verdicts name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledRule {
    /// `sgr-…`.
    pub id: RuleId,
    /// `sg-…` of its group.
    pub group_id: String,
    /// Name of its group.
    pub group_name: String,
    /// The direction that it guards.
    pub direction: Direction,
    /// What it covers.
    pub traffic: Traffic,
    /// Its peer, as the user wrote it.
    pub peer: String,
    /// The user's description; may be empty.
    pub description: String,
    /// Where it is declared.
    pub place: Place,
}

impl CompiledRule {
    pub(super) fn new(
        group: &SecurityGroup,
        direction: Direction,
        rule: &SecurityGroupRule,
    ) -> Self {
        Self {
            id: rule.id,
            group_id: group.id.clone(),
            group_name: group.name.clone(),
            direction,
            traffic: rule.traffic,
            peer: rule.peer_text.clone(),
            description: rule.description.clone(),
            place: rule.place.clone(),
        }
    }
}

/// The peer of a rule, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PeerSet {
    /// A CIDR.
    Net(IpNet),
    /// The entries of a prefix list.
    List(Vec<IpNet>),
    /// Members of a group.
    Group(GroupKey),
}

/// Which of a rule's conditions are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coverage {
    /// Its peer covers the other side.
    pub peer: bool,
    /// It covers the protocol and port.
    pub traffic: bool,
}

/// What a table is made from; equal sources make equal tables.
pub(super) type Source = (Traffic, PeerSet);

/// Finds the rule that lets traffic to or from a peer pass. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RuleTable {
    index: Arc<TableIndex>,
    /// By number: groups in the order of the interface, rules as declared.
    rules: Arc<[CompiledRule]>,
}

impl RuleTable {
    pub(super) fn new(index: Arc<TableIndex>, rules: Vec<CompiledRule>) -> Self {
        Self {
            index,
            rules: rules.into(),
        }
    }

    /// The first rule, in the order declared, that covers `query` and whose
    /// peer covers `peer`, an address whose owner carries `peer_groups`.
    pub fn find(
        &self,
        peer: IpAddr,
        peer_groups: &[GroupKey],
        query: Query,
    ) -> Option<&CompiledRule> {
        self.rules
            .get(self.index.find(peer, peer_groups, query) as usize)
    }

    /// Every rule, in the order declared.
    pub fn rules(&self) -> &[CompiledRule] {
        &self.rules
    }

    /// Which of its two conditions the `number`-th rule alone would meet. Asked
    /// of tables with that one rule, so that the answer is the data path's own.
    pub fn coverage(
        &self,
        number: usize,
        peer: IpAddr,
        peer_groups: &[GroupKey],
        query: Query,
    ) -> Option<Coverage> {
        let (traffic, peers) = self.index.sources.get(number)?;
        let meets = |traffic: Traffic, peers: PeerSet| {
            TableIndex::build(vec![(traffic, peers)]).find(peer, peer_groups, query) != NO_RULE
        };
        let everybody = PeerSet::List(vec![
            IpNet::V4(ipnet::Ipv4Net::default()),
            IpNet::V6(ipnet::Ipv6Net::default()),
        ]);
        Some(Coverage {
            peer: meets(Traffic::All, peers.clone()),
            traffic: meets(*traffic, everybody),
        })
    }

    /// Whether some rule, not only the first, covers `query` and has all
    /// addresses of that family as its peer, written as a CIDR.
    pub fn is_open_to_all(&self, v4: bool, query: Query) -> bool {
        self.index.open[usize::from(!v4)].first(&self.index.arena, query) != NO_RULE
    }

    /// Whether one rule covers every port of that protocol, TCP or UDP, and has
    /// all addresses of that family as its peer, written as a CIDR.
    pub fn is_open_on_all_ports(&self, v4: bool, protocol: u8) -> bool {
        let tcp_or_udp = usize::from(protocol != protocol::TCP);
        self.index.open_on_all_ports[usize::from(!v4)][tcp_or_udp]
    }

    /// Whether both look rules up in the very same index.
    pub fn shares_index_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.index, &other.index)
    }

    pub(super) fn index(&self) -> &Arc<TableIndex> {
        &self.index
    }
}

/// The lookup structure, apart from what rules are called and where they stand:
/// moving a rule to another line doesn't touch it.
#[derive(Debug)]
pub(super) struct TableIndex {
    v4: Trie,
    v6: Trie,
    v4_peers: Vec<PeerNode>,
    v6_peers: Vec<PeerNode>,
    groups: HashMap<GroupKey, Matcher, foldhash::fast::RandomState>,
    /// The rules whose peer is 0.0.0.0/0, and those whose peer is ::/0.
    open: [Matcher; 2],
    /// Whether one of those covers all ports of TCP, of UDP.
    open_on_all_ports: [[bool; 2]; 2],
    arena: Arena,
    sources: Vec<Source>,
}

/// A prefix that some rules name as their peer.
#[derive(Debug)]
struct PeerNode {
    prefix: Prefix,
    /// The longest other prefix that covers this one, or [`NONE`].
    parent: u32,
    matcher: Matcher,
}

impl TableIndex {
    pub(super) fn build(sources: Vec<Source>) -> Self {
        let mut v4: BTreeMap<Prefix, Vec<(Traffic, RuleNumber)>> = BTreeMap::new();
        let mut v6 = BTreeMap::new();
        let mut groups: BTreeMap<GroupKey, Vec<(Traffic, RuleNumber)>> = BTreeMap::new();
        let mut open: [Vec<(Traffic, RuleNumber)>; 2] = Default::default();
        let mut open_on_all_ports = [[false; 2]; 2];
        for (number, (traffic, peers)) in sources.iter().enumerate() {
            let rule = (*traffic, index(number));
            let mut admit = |net: &IpNet| {
                let family = if net.addr().is_ipv4() {
                    &mut v4
                } else {
                    &mut v6
                };
                family.entry(prefix(*net)).or_default().push(rule);
            };
            match peers {
                PeerSet::Net(net) => {
                    admit(net);
                    if net.prefix_len() == 0 {
                        let family = usize::from(net.addr().is_ipv6());
                        open[family].push(rule);
                        for (slot, number) in [protocol::TCP, protocol::UDP].into_iter().enumerate()
                        {
                            open_on_all_ports[family][slot] |= covers_all_ports(*traffic, number);
                        }
                    }
                }
                PeerSet::List(nets) => nets.iter().for_each(admit),
                PeerSet::Group(group) => groups.entry(*group).or_default().push(rule),
            }
        }
        let mut arena = Arena::default();
        let (v4, v4_peers) = family(&v4, &mut arena);
        let (v6, v6_peers) = family(&v6, &mut arena);
        let groups = groups
            .into_iter()
            .map(|(group, rules)| (group, arena.matcher(&rules)))
            .collect();
        let open = open.map(|rules| arena.matcher(&rules));
        Self {
            v4,
            v6,
            v4_peers,
            v6_peers,
            groups,
            open,
            open_on_all_ports,
            arena,
            sources,
        }
    }

    pub(super) fn is_made_from(&self, sources: &[Source]) -> bool {
        self.sources == sources
    }

    fn find(&self, peer: IpAddr, peer_groups: &[GroupKey], query: Query) -> RuleNumber {
        let (trie, nodes) = match peer {
            IpAddr::V4(_) => (&self.v4, &self.v4_peers),
            IpAddr::V6(_) => (&self.v6, &self.v6_peers),
        };
        let address = address_bits(peer);
        let mut first = NO_RULE;
        let mut at = trie.find(address);
        while at != NONE {
            let node = &nodes[at as usize];
            if node.prefix.covers(address) {
                first = first.min(node.matcher.first(&self.arena, query));
            }
            at = node.parent;
        }
        for group in peer_groups {
            if let Some(matcher) = self.groups.get(group) {
                first = first.min(matcher.first(&self.arena, query));
            }
        }
        first
    }
}

/// The trie over the prefixes of one family, and what each prefix admits.
fn family(
    rules: &BTreeMap<Prefix, Vec<(Traffic, RuleNumber)>>,
    arena: &mut Arena,
) -> (Trie, Vec<PeerNode>) {
    let prefixes: Vec<Prefix> = rules.keys().copied().collect();
    let mut nodes: Vec<PeerNode> = Vec::with_capacity(prefixes.len());
    // In sorted order whatever covers a prefix comes before it, and what still
    // covers is a chain: the previous prefix, its parent, and so on.
    let mut parent = NONE;
    for (position, (prefix, rules)) in rules.iter().enumerate() {
        while parent != NONE && !nodes[parent as usize].prefix.covers(prefix.bits) {
            parent = nodes[parent as usize].parent;
        }
        nodes.push(PeerNode {
            prefix: *prefix,
            parent,
            matcher: arena.matcher(rules),
        });
        parent = index(position);
    }
    (Trie::build(&prefixes), nodes)
}

/// Whether `traffic` covers every port of `protocol`, TCP or UDP.
fn covers_all_ports(traffic: Traffic, protocol: u8) -> bool {
    match traffic {
        Traffic::All => true,
        Traffic::Tcp(PortRange::ALL) => protocol == protocol::TCP,
        Traffic::Udp(PortRange::ALL) => protocol == protocol::UDP,
        _ => false,
    }
}

pub(super) fn prefix(net: IpNet) -> Prefix {
    Prefix {
        bits: address_bits(net.network()),
        length: net.prefix_len(),
    }
}

pub(super) fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}
