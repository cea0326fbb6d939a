//! Protocol and port (or ICMP type and code) to the first rule that covers
//! them, in time that doesn't depend on how many rules there are.

use std::collections::BTreeSet;

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

/// From `start` to the next segment's start, `rule` is the first that covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: u16,
    rule: RuleNumber,
}

/// A run of segments in the arena.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u32,
    length: u32,
}

/// The rules for one peer: a first rule for every protocol and selector.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matcher {
    /// First rule of protocol -1.
    all: RuleNumber,
    tcp: Span,
    udp: Span,
    icmp: Span,
    icmpv6: Span,
    /// Segments over the protocol number.
    other: Span,
}

/// The segments of every matcher of a table, side by side.
#[derive(Debug, Default)]
pub(super) struct Arena {
    segments: Vec<Segment>,
}

impl Matcher {
    /// The first rule that covers `query`, or [`NO_RULE`].
    pub(super) fn first(&self, arena: &Arena, query: Query) -> RuleNumber {
        let (span, selector) = match query.protocol {
            protocol::TCP => (self.tcp, query.selector),
            protocol::UDP => (self.udp, query.selector),
            protocol::ICMP => (self.icmp, query.selector),
            protocol::ICMPV6 => (self.icmpv6, query.selector),
            number => (self.other, u16::from(number)),
        };
        self.all.min(arena.first(span, selector))
    }
}

impl Arena {
    /// Compiles the rules for one peer.
    pub(super) fn matcher(&mut self, rules: &[(Traffic, RuleNumber)]) -> Matcher {
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
        Matcher {
            all,
            tcp,
            udp,
            icmp,
            icmpv6,
            other,
        }
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
        let mut edges: Vec<(u32, bool, RuleNumber)> = Vec::with_capacity(ranges.len() * 2);
        for range in ranges {
            edges.push((u32::from(range.from), true, range.rule));
            edges.push((u32::from(range.to) + 1, false, range.rule));
        }
        edges.sort_unstable();
        let mut covering = BTreeSet::new();
        self.segments.push(Segment {
            start: 0,
            rule: NO_RULE,
        });
        let mut edges = edges.into_iter().peekable();
        while let Some((at, opens, rule)) = edges.next() {
            if opens {
                covering.insert(rule);
            } else {
                covering.remove(&rule);
            }
            let more_here = edges.peek().is_some_and(|(next, _, _)| *next == at);
            let Ok(at) = u16::try_from(at) else { break };
            if !more_here {
                let first = covering.first().copied().unwrap_or(NO_RULE);
                self.change(start, at, first);
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
    match icmp {
        IcmpMatch::Any => (slot, 0, u16::MAX),
        IcmpMatch::Type(kind) => {
            let first = u16::from(kind) << 8;
            (slot, first, first | 0xff)
        }
        IcmpMatch::TypeAndCode(kind, code) => {
            let only = u16::from(kind) << 8 | u16::from(code);
            (slot, only, only)
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
