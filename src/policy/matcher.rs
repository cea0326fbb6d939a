//! Protocol and port (or ICMP type and code) to the first rule that covers
//! them, in time that doesn't depend on how many rules there are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::model::{IcmpMatch, PortRange, Traffic, protocol};

/// What rules compare besides the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query {
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; ICMP `type << 8 | code`; 0 for other protocols.
    pub selector: u16,
}

/// Whether `traffic` covers `query`.
pub(super) fn covers(traffic: Traffic, query: Query) -> bool {
    let [kind, code] = query.selector.to_be_bytes();
    let icmp = |wanted: IcmpMatch| match wanted {
        IcmpMatch::Any => true,
        IcmpMatch::Type(wanted) => kind == wanted,
        IcmpMatch::TypeAndCode(wanted, exactly) => (kind, code) == (wanted, exactly),
    };
    match traffic {
        Traffic::All => true,
        Traffic::Tcp(ports) => query.protocol == protocol::TCP && ports.contains(query.selector),
        Traffic::Udp(ports) => query.protocol == protocol::UDP && ports.contains(query.selector),
        Traffic::Icmp(wanted) => query.protocol == protocol::ICMP && icmp(wanted),
        Traffic::Icmpv6(wanted) => query.protocol == protocol::ICMPV6 && icmp(wanted),
        Traffic::Other(number) => query.protocol == number,
    }
}

/// Number of a rule within its table: the lower, the earlier it is declared.
pub(super) type RuleNumber = u32;

/// Stands for "no rule", and compares greater than every rule.
pub(super) const NO_RULE: RuleNumber = RuleNumber::MAX;

/// The rules for one peer: a first rule for every protocol and selector. Most
/// peers have one rule, which stands here; where there are several, `rule` says
/// where in the arena they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matcher {
    /// A protocol's number, [`EVERY_PROTOCOL`] or [`SEVERAL_RULES`].
    protocol: u16,
    /// The selectors that the rule covers.
    from: u16,
    to: u16,
    rule: RuleNumber,
}

const EVERY_PROTOCOL: u16 = 256;
const SEVERAL_RULES: u16 = 257;

/// Several rules for one peer.
#[derive(Debug, Clone, Copy)]
struct Several {
    /// First rule of protocol -1.
    all: RuleNumber,
    tcp: Span,
    udp: Span,
    icmp: Span,
    icmpv6: Span,
    /// Segments over the protocol number.
    other: Span,
}

/// A run of segments in the arena.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u32,
    length: u32,
}

/// From `start` to the next segment's start, `rule` is the first that covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: u16,
    rule: RuleNumber,
}

/// What the matchers of one table share.
#[derive(Debug, Default)]
pub(super) struct Arena {
    several: Vec<Several>,
    /// Side by side.
    segments: Vec<Segment>,
}

impl Matcher {
    /// Covers nothing.
    pub(super) const NONE: Self = Self {
        protocol: EVERY_PROTOCOL,
        from: 0,
        to: u16::MAX,
        rule: NO_RULE,
    };

    fn one(traffic: Traffic, rule: RuleNumber) -> Self {
        let (protocol, from, to) = match traffic {
            Traffic::All => (EVERY_PROTOCOL, 0, u16::MAX),
            Traffic::Tcp(PortRange { from, to }) => (protocol::TCP.into(), from, to),
            Traffic::Udp(PortRange { from, to }) => (protocol::UDP.into(), from, to),
            Traffic::Icmp(icmp) => {
                let (from, to) = selectors(icmp);
                (protocol::ICMP.into(), from, to)
            }
            Traffic::Icmpv6(icmp) => {
                let (from, to) = selectors(icmp);
                (protocol::ICMPV6.into(), from, to)
            }
            Traffic::Other(number) => (number.into(), 0, u16::MAX),
        };
        Self {
            protocol,
            from,
            to,
            rule,
        }
    }

    /// The first rule that covers `query`, or [`NO_RULE`].
    #[inline]
    pub(super) fn first(&self, arena: &Arena, query: Query) -> RuleNumber {
        if self.protocol == SEVERAL_RULES {
            return arena.first_of_several(self.rule, query);
        }
        let covers = (self.protocol == EVERY_PROTOCOL
            || self.protocol == u16::from(query.protocol))
            && (self.from..=self.to).contains(&query.selector);
        if covers { self.rule } else { NO_RULE }
    }
}

impl Arena {
    /// Compiles the rules for one peer.
    pub(super) fn matcher(&mut self, rules: &[(Traffic, RuleNumber)]) -> Matcher {
        match rules {
            [] => return Matcher::NONE,
            [(traffic, rule)] => return Matcher::one(*traffic, *rule),
            _ => {}
        }
        let mut all = NO_RULE;
        let mut ranges: [Vec<Range>; 5] = Default::default();
        for &(traffic, rule) in rules {
            let (slot, from, to) = match traffic {
                Traffic::All => {
                    all = all.min(rule);
                    continue;
                }
                Traffic::Tcp(PortRange { from, to }) => (0, from, to),
                Traffic::Udp(PortRange { from, to }) => (1, from, to),
                Traffic::Icmp(icmp) => icmp_range(2, icmp),
                Traffic::Icmpv6(icmp) => icmp_range(3, icmp),
                Traffic::Other(number) => (4, u16::from(number), u16::from(number)),
            };
            ranges[slot].push(Range { from, to, rule });
        }
        let [tcp, udp, icmp, icmpv6, other] = ranges.map(|ranges| self.span(&ranges));
        self.several.push(Several {
            all,
            tcp,
            udp,
            icmp,
            icmpv6,
            other,
        });
        Matcher {
            protocol: SEVERAL_RULES,
            rule: index(self.several.len() - 1),
            ..Matcher::NONE
        }
    }

    /// Segments of all matchers together.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.segments.len()
    }

    fn first_of_several(&self, at: u32, query: Query) -> RuleNumber {
        let several = &self.several[at as usize];
        let (span, selector) = match query.protocol {
            protocol::TCP => (several.tcp, query.selector),
            protocol::UDP => (several.udp, query.selector),
            protocol::ICMP => (several.icmp, query.selector),
            protocol::ICMPV6 => (several.icmpv6, query.selector),
            number => (several.other, u16::from(number)),
        };
        several.all.min(self.first(span, selector))
    }

    fn first(&self, span: Span, selector: u16) -> RuleNumber {
        let start = span.start as usize;
        let segments = &self.segments[start..start + span.length as usize];
        // The first segment of a span starts at 0, so one always precedes.
        match segments.partition_point(|segment| segment.start <= selector) {
            0 => NO_RULE,
            after => segments[after - 1].rule,
        }
    }

    /// Sweeps over the ranges from 0 up, keeping those that cover the current
    /// selector; a segment starts wherever the first of them changes.
    fn span(&mut self, ranges: &[Range]) -> Span {
        let start = self.segments.len();
        if ranges.is_empty() {
            return Span::default();
        }
        // Where ranges open and, with nothing, where others come to bear.
        let mut edges: Vec<(u32, Option<Range>)> = Vec::with_capacity(ranges.len() * 2);
        for range in ranges {
            edges.push((u32::from(range.from), Some(*range)));
            edges.push((u32::from(range.to) + 1, None));
        }
        edges.sort_unstable_by_key(|(at, _)| *at);
        // The first rule on top. One that has ended goes when it gets there.
        let mut covering: BinaryHeap<Reverse<(RuleNumber, u32)>> = BinaryHeap::new();
        self.segments.push(Segment {
            start: 0,
            rule: NO_RULE,
        });
        let mut edges = edges.into_iter().peekable();
        while let Some((at, opens)) = edges.next() {
            if let Some(range) = opens {
                covering.push(Reverse((range.rule, u32::from(range.to))));
            }
            let more_here = edges.peek().is_some_and(|(next, _)| *next == at);
            let Ok(selector) = u16::try_from(at) else {
                break;
            };
            if !more_here {
                while covering.peek().is_some_and(|Reverse((_, to))| *to < at) {
                    covering.pop();
                }
                let first = covering.peek().map_or(NO_RULE, |Reverse((rule, _))| *rule);
                self.change(start, selector, first);
            }
        }
        Span {
            start: index(start),
            length: index(self.segments.len() - start),
        }
    }

    fn change(&mut self, span_start: usize, at: u16, rule: RuleNumber) {
        match self.segments[span_start..].last_mut() {
            Some(last) if last.rule == rule => {}
            Some(last) if last.start == at => last.rule = rule,
            _ => self.segments.push(Segment { start: at, rule }),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Range {
    from: u16,
    to: u16,
    rule: RuleNumber,
}

fn icmp_range(slot: usize, icmp: IcmpMatch) -> (usize, u16, u16) {
    let (from, to) = selectors(icmp);
    (slot, from, to)
}

fn selectors(icmp: IcmpMatch) -> (u16, u16) {
    match icmp {
        IcmpMatch::Any => (0, u16::MAX),
        IcmpMatch::Type(kind) => {
            let first = u16::from(kind) << 8;
            (first, first | 0xff)
        }
        IcmpMatch::TypeAndCode(kind, code) => {
            let only = u16::from(kind) << 8 | u16::from(code);
            (only, only)
        }
    }
}

pub(super) fn index(i: usize) -> u32 {
    u32::try_from(i).expect("invariant: config bounds files far below u32::MAX segments")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(from: u16, to: u16) -> Traffic {
        Traffic::Tcp(PortRange { from, to })
    }

    fn first(rules: &[(Traffic, RuleNumber)], protocol: u8, selector: u16) -> Option<RuleNumber> {
        let mut arena = Arena::default();
        // An earlier matcher in the arena must not leak into the next.
        arena.matcher(&[(tcp(0, 65535), 999)]);
        let matcher = arena.matcher(rules);
        let found = matcher.first(&arena, Query { protocol, selector });
        (found != NO_RULE).then_some(found)
    }

    #[test]
    fn ranges_are_inclusive_at_both_ends() {
        let rules = [(tcp(10, 20), 0)];
        for (port, expected) in [(9, None), (10, Some(0)), (20, Some(0)), (21, None)] {
            assert_eq!(first(&rules, protocol::TCP, port), expected, "{port}");
        }
        assert_eq!(first(&rules, protocol::UDP, 15), None);
    }

    #[test]
    fn the_lowest_and_highest_ports_count() {
        assert_eq!(first(&[(tcp(0, 0), 0)], protocol::TCP, 0), Some(0));
        assert_eq!(first(&[(tcp(0, 0), 0)], protocol::TCP, 1), None);
        assert_eq!(
            first(&[(tcp(65535, 65535), 0)], protocol::TCP, 65535),
            Some(0)
        );
        assert_eq!(first(&[(tcp(65535, 65535), 0)], protocol::TCP, 65534), None);
        assert_eq!(first(&[(tcp(0, 65535), 0)], protocol::TCP, 65535), Some(0));
    }

    #[test]
    fn of_overlapping_rules_the_first_declared_is_named() {
        let rules = [(tcp(10, 30), 2), (tcp(20, 40), 1), (Traffic::All, 3)];
        for (port, expected) in [(10, 2), (19, 2), (20, 1), (30, 1), (40, 1), (41, 3), (0, 3)] {
            assert_eq!(first(&rules, protocol::TCP, port), Some(expected), "{port}");
        }
        assert_eq!(first(&rules, 47, 0), Some(3));
    }

    #[test]
    fn adjacent_ranges_leave_no_gap() {
        let rules = [(tcp(10, 19), 0), (tcp(20, 29), 1)];
        assert_eq!(first(&rules, protocol::TCP, 19), Some(0));
        assert_eq!(first(&rules, protocol::TCP, 20), Some(1));
        assert_eq!(first(&rules, protocol::TCP, 30), None);
    }

    #[test]
    fn icmp_types_and_codes_are_told_apart() {
        let rules = [
            (Traffic::Icmp(IcmpMatch::Type(8)), 0),
            (Traffic::Icmp(IcmpMatch::TypeAndCode(3, 4)), 1),
        ];
        assert_eq!(first(&rules, protocol::ICMP, 8 << 8), Some(0));
        assert_eq!(first(&rules, protocol::ICMP, 8 << 8 | 255), Some(0));
        assert_eq!(first(&rules, protocol::ICMP, 9 << 8), None);
        assert_eq!(first(&rules, protocol::ICMP, 3 << 8 | 4), Some(1));
        assert_eq!(first(&rules, protocol::ICMP, 3 << 8 | 3), None);
        assert_eq!(first(&rules, protocol::ICMPV6, 8 << 8), None);
        let any = [(Traffic::Icmpv6(IcmpMatch::Any), 0)];
        assert_eq!(first(&any, protocol::ICMPV6, u16::MAX), Some(0));
    }

    #[test]
    fn other_protocols_match_by_number() {
        let rules = [(Traffic::Other(47), 0)];
        assert_eq!(first(&rules, 47, 0), Some(0));
        assert_eq!(first(&rules, 46, 0), None);
        assert_eq!(first(&rules, 48, 0), None);
    }
}
