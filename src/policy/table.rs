//! The rules of the groups that an interface carries, in one direction.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::{Direction, PortRange, RuleId, SecurityGroup, Traffic, protocol};

use super::matcher::{Arena, Matcher, NO_RULE, Query, RuleNumber, index};
use super::rule::CompiledRule;
use super::trie::{Bits, Prefix, PrefixMap};

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

/// The peer of a rule, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PeerSet {
    /// A CIDR.
    Net(IpNet),
    /// The entries of a prefix list.
    List(Arc<[IpNet]>),
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
    direction: Direction,
    /// In the order in which the interface carries the groups.
    groups: Arc<[GroupTable]>,
}

/// The rules of one group in one direction, which all interfaces that carry it
/// share.
#[derive(Debug, Clone)]
pub(super) struct GroupTable {
    pub(super) index: Arc<TableIndex>,
    /// What verdicts say of the rules that the index numbers.
    pub(super) declared: Arc<SecurityGroup>,
}

impl RuleTable {
    pub(super) fn new(direction: Direction, groups: Arc<[GroupTable]>) -> Self {
        Self { direction, groups }
    }

    /// The first rule, in the order declared, that covers `query` and whose
    /// peer covers `peer`, an address whose owner carries `peer_groups`.
    pub fn find(
        &self,
        peer: IpAddr,
        peer_groups: &[GroupKey],
        query: Query,
    ) -> Option<CompiledRule<'_>> {
        let bits = GroupBits::of(peer_groups);
        self.groups.iter().find_map(|group| {
            let number = group.index.find(peer, peer_groups, bits, query);
            self.rule(group, number)
        })
    }

    /// Every rule, in the order declared.
    pub fn rules(&self) -> impl Iterator<Item = CompiledRule<'_>> {
        self.groups.iter().flat_map(move |group| {
            let numbers = 0..index(group.index.ids.len());
            numbers.filter_map(move |number| self.rule(group, number))
        })
    }

    fn rule<'t>(&self, group: &'t GroupTable, number: RuleNumber) -> Option<CompiledRule<'t>> {
        Some(CompiledRule {
            id: *group.index.ids.get(number as usize)?,
            group: &group.declared,
            direction: self.direction,
            number,
        })
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
        let sources = self.groups.iter().flat_map(|group| &group.index.sources);
        let (traffic, peers) = sources.into_iter().nth(number)?;
        let meets = |traffic: Traffic, peers: PeerSet| {
            let index = TableIndex::new([(traffic, peers)].into(), Box::default());
            let bits = GroupBits::of(peer_groups);
            index.find(peer, peer_groups, bits, query) != NO_RULE
        };
        let everybody: Arc<[IpNet]> = [Ipv4Net::default().into(), Ipv6Net::default().into()].into();
        Some(Coverage {
            peer: meets(Traffic::All, peers.clone()),
            traffic: meets(*traffic, PeerSet::List(everybody)),
        })
    }

    /// Whether some rule, not only the first, covers `query` and has all
    /// addresses of that family as its peer, written as a CIDR.
    pub fn is_open_to_all(&self, v4: bool, query: Query) -> bool {
        self.groups.iter().any(|GroupTable { index, .. }| {
            index.open[usize::from(!v4)].first(&index.arena, query) != NO_RULE
        })
    }

    /// Whether one rule covers every port of that protocol, TCP or UDP, and has
    /// all addresses of that family as its peer, written as a CIDR.
    pub fn is_open_on_all_ports(&self, v4: bool, protocol: u8) -> bool {
        let tcp_or_udp = usize::from(protocol != protocol::TCP);
        self.groups
            .iter()
            .any(|group| group.index.open_on_all_ports[usize::from(!v4)][tcp_or_udp])
    }

    /// Whether both look rules up in the very same indices.
    pub fn shares_index_with(&self, other: &Self) -> bool {
        self.groups.len() == other.groups.len()
            && self
                .groups
                .iter()
                .zip(&*other.groups)
                .all(|(own, other)| Arc::ptr_eq(&own.index, &other.index))
    }
}

/// The lookup structure, apart from what rules say in words and where they stand:
/// moving a rule to another line doesn't touch it. Ids are here, side by side, as
/// every flow that a rule lets pass asks for one.
#[derive(Debug)]
pub(super) struct TableIndex {
    v4: PrefixMap<u32, Matcher>,
    v6: PrefixMap<u128, Matcher>,
    /// The referenced groups.
    referenced: GroupBits,
    groups: HashMap<GroupKey, Matcher, RandomState>,
    /// The rules whose peer is 0.0.0.0/0, and those whose peer is ::/0.
    open: [Matcher; 2],
    /// Whether one of those covers all ports of TCP, of UDP.
    open_on_all_ports: [[bool; 2]; 2],
    arena: Arena,
    sources: Box<[Source]>,
    /// Of the rules, by number.
    ids: Box<[RuleId]>,
}

impl TableIndex {
    pub(super) fn new(sources: Box<[Source]>, ids: Box<[RuleId]>) -> Self {
        let mut parts = Parts::default();
        let mut open: [Vec<RuleNumber>; 2] = Default::default();
        let mut open_on_all_ports = [[false; 2]; 2];
        for (number, (traffic, peers)) in sources.iter().enumerate() {
            let rule = index(number);
            match peers {
                PeerSet::Net(net) => {
                    parts.add(*net, rule);
                    if net.prefix_len() == 0 {
                        let family = usize::from(net.addr().is_ipv6());
                        open[family].push(rule);
                        for (slot, number) in [protocol::TCP, protocol::UDP].into_iter().enumerate()
                        {
                            open_on_all_ports[family][slot] |= covers_all_ports(*traffic, number);
                        }
                    }
                }
                PeerSet::List(list) => parts.lists.push((list, rule)),
                PeerSet::Group(group) => parts.groups.push((*group, rule)),
            }
        }
        let mut matchers = Matchers::new(&sources);
        let groups = matchers.groups(&mut parts.groups);
        matchers.lists(&mut parts);
        Self {
            v4: matchers.family(&mut parts.v4),
            v6: matchers.family(&mut parts.v6),
            referenced: GroupBits::of(groups.keys()),
            groups,
            open: open.map(|rules| matchers.of(&rules)),
            open_on_all_ports,
            arena: matchers.arena,
            sources,
            ids,
        }
    }

    /// What it was made from.
    pub(super) fn sources(&self) -> (&[Source], &[RuleId]) {
        (&self.sources, &self.ids)
    }

    /// `bits` are those of `peer_groups`.
    fn find(
        &self,
        peer: IpAddr,
        peer_groups: &[GroupKey],
        bits: GroupBits,
        query: Query,
    ) -> RuleNumber {
        let first = match peer {
            IpAddr::V4(v4) => self.first_around(&self.v4, v4.to_bits(), query),
            IpAddr::V6(v6) => self.first_around(&self.v6, v6.to_bits(), query),
        };
        if !bits.may_meet(self.referenced) {
            return first;
        }
        peer_groups
            .iter()
            .filter(|group| self.referenced.may_have(**group))
            .filter_map(|group| self.groups.get(group))
            .map(|matcher| matcher.first(&self.arena, query))
            .fold(first, RuleNumber::min)
    }

    /// Groups have no longest match: every prefix that covers the peer counts.
    #[inline]
    fn first_around<B: Bits>(
        &self,
        map: &PrefixMap<B, Matcher>,
        address: B,
        query: Query,
    ) -> RuleNumber {
        map.covering(address)
            .map(|matcher| matcher.first(&self.arena, query))
            .fold(NO_RULE, RuleNumber::min)
    }
}

/// Of what a table is made, by kind of peer.
#[derive(Default)]
struct Parts<'s> {
    v4: Vec<(Prefix<u32>, Admits)>,
    v6: Vec<(Prefix<u128>, Admits)>,
    lists: Vec<(&'s Arc<[IpNet]>, RuleNumber)>,
    groups: Vec<(GroupKey, RuleNumber)>,
}

/// What stands at a prefix: a rule, or all rules that name one prefix list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Admits {
    Rule(RuleNumber),
    List(u32),
}

impl Parts<'_> {
    fn add(&mut self, net: IpNet, rule: RuleNumber) {
        self.admit(net, Admits::Rule(rule));
    }

    fn admit(&mut self, net: IpNet, what: Admits) {
        match net {
            IpNet::V4(net) => self.v4.push((net.into(), what)),
            IpNet::V6(net) => self.v6.push((net.into(), what)),
        }
    }
}

/// Makes the matchers of one table. Where many peers are let in by the same
/// rules, as those of a prefix list are, they share one.
struct Matchers<'s> {
    sources: &'s [Source],
    arena: Arena,
    /// The rules that name each prefix list.
    lists: Vec<Vec<RuleNumber>>,
    /// For what stands together at a prefix, lists among it.
    made: HashMap<Box<[Admits]>, Matcher, RandomState>,
}

impl<'s> Matchers<'s> {
    fn new(sources: &'s [Source]) -> Self {
        Self {
            sources,
            arena: Arena::default(),
            lists: Vec::new(),
            made: HashMap::default(),
        }
    }

    fn of(&mut self, rules: &[RuleNumber]) -> Matcher {
        let rule = |number: &RuleNumber| (self.sources[*number as usize].0, *number);
        match rules {
            [only] => self.arena.matcher(&[rule(only)]),
            _ => {
                let rules: Vec<(Traffic, RuleNumber)> = rules.iter().map(rule).collect();
                self.arena.matcher(&rules)
            }
        }
    }

    fn groups(
        &mut self,
        rules: &mut [(GroupKey, RuleNumber)],
    ) -> HashMap<GroupKey, Matcher, RandomState> {
        rules.sort_unstable();
        rules
            .chunk_by(|(one, _), (other, _)| one == other)
            .map(|rules| {
                let numbers: Vec<RuleNumber> = rules.iter().map(|(_, rule)| *rule).collect();
                (rules[0].0, self.of(&numbers))
            })
            .collect()
    }

    /// Puts each list among the prefixes once, whatever the number of rules that
    /// name it.
    fn lists(&mut self, parts: &mut Parts<'_>) {
        let mut rules = std::mem::take(&mut parts.lists);
        rules.sort_unstable_by_key(|(list, rule)| (Arc::as_ptr(list).cast::<IpNet>(), *rule));
        for rules in rules.chunk_by(|(one, _), (other, _)| Arc::ptr_eq(one, other)) {
            let list = Admits::List(index(self.lists.len()));
            self.lists
                .push(rules.iter().map(|(_, rule)| *rule).collect());
            for net in rules[0].0.iter() {
                parts.admit(*net, list);
            }
        }
    }

    fn family<B: Bits>(&mut self, parts: &mut Vec<(Prefix<B>, Admits)>) -> PrefixMap<B, Matcher> {
        parts.sort_unstable();
        parts.dedup();
        let mut prefixes: Vec<(Prefix<B>, Matcher)> = Vec::with_capacity(parts.len());
        for together in parts.chunk_by(|(one, _), (other, _)| one == other) {
            prefixes.push((together[0].0, self.at_one_prefix(together)));
        }
        PrefixMap::new(&prefixes)
    }

    fn at_one_prefix<B>(&mut self, together: &[(Prefix<B>, Admits)]) -> Matcher {
        if let [(_, Admits::Rule(rule))] = together {
            return self.of(&[*rule]);
        }
        let lists = |(_, admits): &(_, Admits)| matches!(admits, Admits::List(_));
        if !together.iter().any(lists) {
            return self.of(&self.numbers(together));
        }
        let key: Box<[Admits]> = together.iter().map(|(_, admits)| *admits).collect();
        if let Some(made) = self.made.get(&key) {
            return *made;
        }
        let matcher = self.of(&self.numbers(together));
        self.made.insert(key, matcher);
        matcher
    }

    fn numbers<B>(&self, together: &[(Prefix<B>, Admits)]) -> Vec<RuleNumber> {
        let mut numbers = Vec::with_capacity(together.len());
        for (_, admits) in together {
            match admits {
                Admits::Rule(rule) => numbers.push(*rule),
                Admits::List(list) => numbers.extend(&self.lists[*list as usize]),
            }
        }
        numbers
    }
}

/// A set of groups as one bit of 256 for each, so that most pairs of sets that
/// have nothing in common are told so at once.
#[derive(Debug, Clone, Copy, Default)]
struct GroupBits([u64; 4]);

impl GroupBits {
    fn of<'g>(groups: impl IntoIterator<Item = &'g GroupKey>) -> Self {
        let mut bits = Self::default();
        for group in groups {
            let (word, bit) = Self::place(*group);
            bits.0[word] |= bit;
        }
        bits
    }

    #[inline]
    fn may_have(self, group: GroupKey) -> bool {
        let (word, bit) = Self::place(group);
        self.0[word] & bit != 0
    }

    /// Whether a group may be in both; if not, none is.
    #[inline]
    fn may_meet(self, other: Self) -> bool {
        self.0
            .iter()
            .zip(other.0)
            .any(|(own, other)| own & other != 0)
    }

    fn place(group: GroupKey) -> (usize, u64) {
        (group.ix() / 64 % 4, 1 << (group.ix() % 64))
    }
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

#[cfg(test)]
mod tests;
