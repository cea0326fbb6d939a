//! Fragments. AWS says nothing about them (aws-semantics §3.8); these are the
//! choices.

use super::*;

/// Two interfaces of one subnet between which UDP passes.
fn pair() -> (Lab, InterfaceIx, InterfaceIx) {
    let mut lab = Lab::new();
    let dns = Traffic::Udp(PortRange { from: 53, to: 53 });
    let client = lab.group(&[], &[(dns, any4()), (dns, any6())]);
    let server = lab.group(&[(dns, any4()), (dns, any6())], &[]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[server]);
    (lab, a, b)
}

/// `length` bytes at `offset` of the datagram `id`.
fn part(a: InterfaceIx, id: u32, offset: u32, length: u32, more: bool) -> Packet {
    let fragment = Fragment {
        id,
        protocol: 17,
        offset,
        length,
        more,
        content: 0,
    };
    let mut packet = udp(a, "10.0.1.10", "10.0.1.11", 40_000, 53);
    if offset > 0 {
        packet.payload = Payload::Headless(17);
    }
    packet.length = 20 + length as usize;
    packet.fragment = Some(fragment);
    packet
}

fn followed(packet: &Packet, to: InterfaceIx) -> Judgement {
    Judgement::Delivered {
        to,
        packet: *packet,
        split: None,
        egress: None,
        ingress: None,
    }
}

#[test]
fn later_fragments_follow_the_first_without_rules_or_flows() {
    let (mut lab, a, b) = pair();
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&part(a, 1, 0, 16, true), at(0)), b);
    // Neither the rules' end nor the flow's stops them.
    for group in lab.0.groups_mut() {
        group.ingress.clear();
        group.egress.clear();
    }
    oracle.replace_model(lab.model());
    let middle = part(a, 1, 16, 8, true);
    assert_eq!(oracle.verdict(&middle, at(4_998)), followed(&middle, b));
    // They don't extend the flow's lifetime either: it idles out at 30 s.
    let last = part(a, 1, 24, 3, false);
    assert_eq!(oracle.verdict(&last, at(4_999)), followed(&last, b));
    oracle.expire(at(30_000));
    assert_eq!(oracle.flows(), 0);
}

#[test]
fn later_fragments_are_dropped_where_and_as_the_first() {
    let (mut lab, a, b) = pair();
    lab.0.group_mut(GroupIx::new(1)).ingress.clear();
    let mut oracle = lab.oracle();
    let refused = dropped(DropReason::NoIngressRule, b);
    assert_eq!(oracle.verdict(&part(a, 1, 0, 16, true), at(0)), refused);
    // A rule that comes too late.
    let (open, ..) = pair();
    oracle.replace_model(open.model());
    assert_eq!(oracle.verdict(&part(a, 1, 16, 8, true), at(1)), refused);
    assert_eq!(oracle.verdict(&part(a, 1, 24, 8, false), at(1)), refused);
}

#[test]
fn what_comes_before_the_first_waits_and_follows_in_order() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    let last = part(a, 1, 24, 3, false);
    let middle = part(a, 1, 16, 8, true);
    for packet in [last, middle] {
        let outcome = oracle.judge(&packet, at(0));
        assert_eq!(outcome.judgement, Judgement::Held { at: a });
        assert_eq!(outcome.released, []);
    }
    let outcome = oracle.judge(&part(a, 1, 0, 16, true), at(1));
    assert_delivered(outcome.judgement, b);
    assert_eq!(
        outcome.released,
        [(last, followed(&last, b)), (middle, followed(&middle, b))]
    );
    // Complete, so forgotten: the same id begins anew.
    assert_eq!(oracle.verdict(&last, at(2)), Judgement::Held { at: a });
}

#[test]
fn those_that_waited_share_a_refused_firsts_fate() {
    let (mut lab, a, _) = pair();
    lab.0.group_mut(GroupIx::new(0)).egress.clear();
    let mut oracle = lab.oracle();
    let last = part(a, 1, 16, 3, false);
    assert_eq!(oracle.verdict(&last, at(0)), Judgement::Held { at: a });
    let outcome = oracle.judge(&part(a, 1, 0, 16, true), at(0));
    let refused = dropped(DropReason::NoEgressRule, a);
    assert_eq!(outcome.judgement, refused);
    assert_eq!(outcome.released, [(last, refused)]);
}

#[test]
fn a_datagram_is_forgotten_5_seconds_after_its_first_fragment() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    let early = part(a, 1, 24, 8, true);
    assert_eq!(oracle.verdict(&early, at(0)), Judgement::Held { at: a });
    assert_delivered(oracle.verdict(&part(a, 1, 0, 16, true), at(4_999)), b);
    let middle = part(a, 1, 16, 8, true);
    assert_eq!(oracle.verdict(&middle, at(9_998)), followed(&middle, b));
    // That didn't put it off.
    let late = part(a, 1, 32, 8, true);
    assert_eq!(oracle.verdict(&late, at(9_999)), Judgement::Held { at: a });
    let outcome = oracle.judge(&part(a, 2, 8, 8, true), at(14_999));
    assert_eq!(outcome.orphans, [(a, 1)]);
    assert_eq!(oracle.expire(at(19_999)), [(a, 1)]);
    assert_eq!(oracle.expire(at(19_999)), []);
}

#[test]
fn an_overlap_poisons_the_datagram() {
    let (lab, a, b) = pair();
    let overlapping = dropped(DropReason::OverlappingFragment, a);
    let mut other_bytes = part(a, 1, 16, 8, true);
    other_bytes.fragment = other_bytes
        .fragment
        .map(|its| Fragment { content: 1, ..its });
    for again in [
        other_bytes,
        part(a, 1, 8, 16, true),
        part(a, 1, 23, 8, false),
    ] {
        let mut oracle = lab.oracle();
        assert_delivered(oracle.verdict(&part(a, 1, 0, 16, true), at(0)), b);
        assert!(is_delivered(
            oracle.verdict(&part(a, 1, 16, 8, true), at(0))
        ));
        assert_eq!(oracle.verdict(&again, at(1)), overlapping, "{again}");
        // All later fragments are dropped, including those that fit and those that came before …
        let fitting = part(a, 1, 24, 8, false);
        for packet in [fitting, part(a, 1, 0, 16, true), part(a, 1, 16, 8, true)] {
            assert_eq!(oracle.verdict(&packet, at(4_999)), overlapping);
        }
        // … until the 5 s are over.
        assert_eq!(
            oracle.verdict(&fitting, at(5_000)),
            Judgement::Held { at: a }
        );
    }
}

#[test]
fn an_exact_duplicate_is_dropped_and_changes_nothing() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    let duplicate = dropped(DropReason::DuplicateFragment, a);
    let (first, last) = (part(a, 1, 0, 16, true), part(a, 1, 24, 8, false));
    assert_eq!(oracle.verdict(&last, at(0)), Judgement::Held { at: a });
    assert_eq!(oracle.verdict(&last, at(0)), duplicate);
    let outcome = oracle.judge(&first, at(0));
    assert_eq!(outcome.released, [(last, followed(&last, b))]);
    for packet in [first, last] {
        assert_eq!(oracle.verdict(&packet, at(1)), duplicate);
    }
    let middle = part(a, 1, 16, 8, true);
    assert_eq!(oracle.verdict(&middle, at(1)), followed(&middle, b));
}

#[test]
fn a_first_fragment_with_other_bytes_begins_a_new_datagram() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    let with = |content| {
        let mut packet = part(a, 1, 0, 16, true);
        packet.fragment = packet.fragment.map(|its| Fragment { content, ..its });
        packet
    };
    let middle = part(a, 1, 16, 8, true);
    for content in 1..4 {
        assert_delivered(oracle.verdict(&with(content), at(0)), b);
        assert_eq!(oracle.verdict(&middle, at(0)), followed(&middle, b));
    }
    // A refused first fragment ends the datagram that passed before.
    let mut refused = with(4);
    refused.payload = Payload::Udp {
        source_port: 40_000,
        destination_port: 54,
    };
    let no_rule = dropped(DropReason::NoEgressRule, a);
    assert_eq!(oracle.verdict(&refused, at(0)), no_rule);
    assert_eq!(oracle.verdict(&part(a, 1, 24, 8, true), at(0)), no_rule);
    // The next first fragment is judged independently.
    assert_delivered(oracle.verdict(&with(5), at(0)), b);
    assert_eq!(oracle.verdict(&middle, at(0)), followed(&middle, b));
}

#[test]
fn a_first_fragment_with_other_bytes_overlaps_over_ipv6() {
    let (mut lab, a, b) = pair();
    for (eni, address) in [(a, "2001:db8:1::10"), (b, "2001:db8:1::11")] {
        lab.0.interfaces[eni.ix()].addresses.push(Address {
            private: ip(address),
            public: None,
        });
    }
    let mut oracle = lab.oracle();
    let with = |content| {
        let mut packet = part(a, 1, 0, 16, true);
        (packet.source, packet.destination) = (ip("2001:db8:1::10"), ip("2001:db8:1::11"));
        packet.fragment = packet.fragment.map(|its| Fragment { content, ..its });
        packet
    };
    assert_delivered(oracle.verdict(&with(1), at(0)), b);
    let overlapping = dropped(DropReason::OverlappingFragment, a);
    for content in [2, 1] {
        assert_eq!(oracle.verdict(&with(content), at(0)), overlapping);
    }
}

#[test]
fn a_damaged_header_is_malformed() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    let mut packet = part(a, 1, 0, 16, true);
    packet.damaged = true;
    assert_eq!(
        oracle.verdict(&packet, at(0)),
        dropped(DropReason::Malformed, a)
    );
    assert_delivered(oracle.verdict(&part(a, 1, 0, 16, true), at(0)), b);
}

#[test]
fn the_end_of_a_datagram_is_said_once() {
    let (lab, a, _) = pair();
    let overlapping = dropped(DropReason::OverlappingFragment, a);
    let held = Judgement::Held { at: a };
    for (first, then) in [
        // Beyond the last one's end; a second last; a last before what is seen.
        (part(a, 1, 32, 8, false), part(a, 1, 40, 8, true)),
        (part(a, 1, 32, 8, false), part(a, 1, 24, 8, false)),
        (part(a, 1, 32, 8, true), part(a, 1, 16, 8, false)),
    ] {
        let mut oracle = lab.oracle();
        assert_eq!(oracle.verdict(&first, at(0)), held);
        let outcome = oracle.judge(&then, at(0));
        assert_eq!(outcome.judgement, overlapping, "{first} then {then}");
        assert_eq!(outcome.lost, 1);
        assert_eq!(oracle.judge(&then, at(0)).lost, 0);
    }
}

#[test]
fn what_cannot_be_a_fragment_is_malformed() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    for impossible in [
        part(a, 1, 8, 0, true),
        part(a, 1, 8, 0, false),
        part(a, 1, 8, 15, true),
        part(a, 1, 65_528, 8, false),
    ] {
        assert_eq!(
            oracle.verdict(&impossible, at(0)),
            dropped(DropReason::Malformed, a),
            "{impossible}"
        );
    }
    // That comes first, whoever claims to send it.
    let mut impossible = part(a, 1, 0, 15, true);
    impossible.payload = Payload::Headless(6);
    impossible.source = ip("10.0.1.99");
    assert_eq!(
        oracle.verdict(&impossible, at(0)),
        dropped(DropReason::Malformed, a)
    );
    assert_eq!(
        oracle.verdict(&part(a, 1, 65_528, 7, false), at(0)),
        Judgement::Held { at: a }
    );
    // None of them left a trace: the datagram goes on.
    assert_delivered(oracle.verdict(&part(a, 1, 0, 16, true), at(0)), b);
    assert!(is_delivered(
        oracle.verdict(&part(a, 1, 16, 8, true), at(0))
    ));
}

#[test]
fn a_first_fragment_without_its_whole_header_is_tiny_before_all_else() {
    let (lab, a, _) = pair();
    let mut tiny = part(a, 1, 0, 8, true);
    tiny.payload = Payload::Headless(6);
    // A foreign source doesn't matter any more.
    tiny.source = ip("10.0.1.99");
    let mut oracle = lab.oracle();
    assert_eq!(
        oracle.verdict(&tiny, at(0)),
        dropped(DropReason::TinyFragment, a)
    );
    let mut later = part(a, 1, 8, 8, false);
    later.fragment = later.fragment.map(|fragment| Fragment {
        protocol: 6,
        ..fragment
    });
    assert_eq!(oracle.verdict(&later, at(0)), Judgement::Held { at: a });
}

#[test]
fn datagrams_are_told_apart_by_addresses_protocol_id_and_sender() {
    let (mut lab, a, b) = pair();
    let groups = lab.0.interfaces[a.ix()].groups().to_vec();
    let c = lab.eni("10.0.1.12", &groups);
    for eni in [a, c] {
        lab.0.interfaces[eni.ix()].source_dest_check = false;
    }
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&part(a, 1, 0, 16, true), at(0)), b);
    let mut protocol = part(a, 1, 16, 8, true);
    protocol.fragment = protocol.fragment.map(|fragment| Fragment {
        protocol: 6,
        ..fragment
    });
    let mut source = part(a, 1, 16, 8, true);
    source.source = ip("10.0.1.13");
    let mut destination = part(a, 1, 16, 8, true);
    destination.destination = ip("10.0.1.12");
    for other in [
        part(a, 2, 16, 8, true),
        part(c, 1, 16, 8, true),
        protocol,
        source,
        destination,
    ] {
        assert_eq!(
            oracle.verdict(&other, at(1)),
            Judgement::Held { at: other.from },
            "{other}"
        );
    }
    assert!(is_delivered(
        oracle.verdict(&part(a, 1, 16, 8, true), at(1))
    ));
}

#[test]
fn checks_of_addresses_come_before_and_dhcp_is_told_by_the_first() {
    let (lab, a, _) = pair();
    let mut oracle = lab.oracle();
    let towards = |mut packet: Packet, source: &str, destination: &str| {
        packet.source = ip(source);
        packet.destination = ip(destination);
        packet
    };
    let later = part(a, 1, 16, 8, true);
    for (packet, reason) in [
        (
            towards(later, "10.0.1.99", "10.0.1.11"),
            DropReason::SourceCheck,
        ),
        (
            towards(later, "10.0.1.10", "169.254.169.254"),
            DropReason::NoService,
        ),
        (
            towards(later, "10.0.1.10", "224.0.0.1"),
            DropReason::NotUnicast,
        ),
        (
            towards(part(a, 1, 0, 8, true), "10.0.1.10", "10.0.0.2"),
            DropReason::NoService,
        ),
    ] {
        assert_eq!(
            oracle.verdict(&packet, at(0)),
            dropped(reason, a),
            "{packet}"
        );
    }
    let mut dhcp = part(a, 2, 0, 16, true);
    dhcp.payload = Payload::Udp {
        source_port: 68,
        destination_port: 67,
    };
    assert_eq!(
        oracle.verdict(&dhcp, at(0)),
        dropped(DropReason::NoService, a)
    );
    // Its others have no first to follow.
    assert_eq!(
        oracle.verdict(&part(a, 2, 16, 8, false), at(0)),
        Judgement::Held { at: a }
    );
}

#[test]
fn each_fragment_must_fit_the_path_by_itself() {
    let (mut lab, a, b) = pair();
    lab.0.interfaces[b.ix()].mtu = 1500;
    let mut oracle = lab.oracle();
    let first = part(a, 1, 0, 1600, true);
    assert!(matches!(
        oracle.verdict(&first, at(0)),
        Judgement::Delivered {
            split: Some(1500),
            ..
        }
    ));
    let fits = part(a, 1, 1600, 800, true);
    assert_eq!(oracle.verdict(&fits, at(0)), followed(&fits, b));
    let too_long = part(a, 1, 2400, 1600, true);
    assert!(matches!(
        oracle.verdict(&too_long, at(0)),
        Judgement::Delivered {
            split: Some(1500),
            ..
        }
    ));
    // With DF it is dropped and not answered; the datagram's fate stays.
    let mut marked = part(a, 1, 4000, 1600, true);
    marked.dont_fragment = true;
    let outcome = oracle.judge(&marked, at(0));
    assert_eq!(outcome.judgement, dropped(DropReason::TooBig, b));
    assert_eq!(outcome.answer, None);
    let last = part(a, 1, 5600, 8, false);
    assert_eq!(oracle.verdict(&last, at(0)), followed(&last, b));

    // A first fragment with DF that is too long is answered, and the others
    // share its fate, short as they are.
    let mut marked = part(a, 2, 0, 1600, true);
    marked.dont_fragment = true;
    let outcome = oracle.judge(&marked, at(0));
    assert_eq!(outcome.judgement, dropped(DropReason::TooBig, b));
    assert!(outcome.answer.is_some());
    assert_eq!(
        oracle.verdict(&part(a, 2, 1600, 8, false), at(0)),
        dropped(DropReason::TooBig, b)
    );
}

#[test]
fn later_fragments_are_translated_like_the_first() {
    let mut lab = Lab::new();
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[open]);
    let b = lab.eni_with_public("10.0.1.11", "203.0.113.11", &[open]);
    lab.external(Via::Igw, "198.51.100.7");
    let mut oracle = lab.oracle();
    for offset in [0, 8, 16] {
        let mut packet = part(a, 1, offset, 8, true);
        packet.destination = ip("203.0.113.11");
        let Judgement::Delivered {
            to,
            packet: arrived,
            ..
        } = oracle.verdict(&packet, at(0))
        else {
            panic!("{packet}");
        };
        assert_eq!(to, b);
        let translated = Packet {
            source: ip("203.0.113.10"),
            destination: ip("10.0.1.11"),
            ..packet
        };
        assert_eq!(arrived, translated);
    }
}

#[test]
fn a_first_fragment_moves_its_flow_along() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&part(a, 1, 0, 16, true), at(0)), b);
    let judgement = oracle.verdict(&part(a, 2, 0, 16, true), at(29_999));
    assert_eq!(ingress(judgement), Some(Admission::Flow));
    let judgement = oracle.verdict(&part(a, 3, 0, 16, true), at(59_998));
    assert_eq!(ingress(judgement), Some(Admission::Flow));
}

#[test]
fn at_most_64_fragments_of_a_datagram_wait() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    for nth in 1..=64 {
        let packet = part(a, 1, nth * 8, 8, true);
        assert_eq!(oracle.verdict(&packet, at(0)), Judgement::Held { at: a });
    }
    let no_room = part(a, 1, 65 * 8, 8, true);
    assert_eq!(
        oracle.verdict(&no_room, at(0)),
        dropped(DropReason::FragmentTableFull, a)
    );
    let outcome = oracle.judge(&part(a, 1, 0, 8, true), at(0));
    assert_eq!(outcome.released.len(), 64);
    // It left no trace, so sent again it fits.
    assert_eq!(oracle.verdict(&no_room, at(0)), followed(&no_room, b));
}

#[test]
fn a_datagram_has_at_most_128_fragments() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&part(a, 1, 0, 8, true), at(0)), b);
    for nth in 1..128 {
        let apart = part(a, 1, nth * 16, 8, true);
        assert_eq!(oracle.verdict(&apart, at(0)), followed(&apart, b));
    }
    assert_eq!(
        oracle.verdict(&part(a, 1, 8, 8, true), at(0)),
        dropped(DropReason::FragmentTableFull, a)
    );
}

#[test]
fn at_most_256_kib_of_one_source_wait_and_the_oldest_are_given_up() {
    let (lab, a, b) = pair();
    let mut oracle = lab.oracle();
    let long = |id, offset| Packet {
        length: 8192 - 256,
        ..part(a, id, offset, 8192 - 256 - 24, true)
    };
    let held = Judgement::Held { at: a };
    for id in 0..32 {
        assert_eq!(oracle.verdict(&long(id, 8), at(0)), held);
    }
    let outcome = oracle.judge(&long(32, 8), at(0));
    assert_eq!(outcome.judgement, held);
    assert_eq!(outcome.orphans, [(a, 1)]);
    let outcome = oracle.judge(&part(a, 0, 0, 8, true), at(0));
    assert_eq!(outcome.released, [], "it was given up");
    let outcome = oracle.judge(&part(a, 1, 0, 8, true), at(0));
    assert_delivered(outcome.judgement, b);
    assert_eq!(outcome.released.len(), 1);
    // No datagram can exceed the whole amount.
    for nth in 0..32 {
        assert_eq!(oracle.verdict(&long(99, 8 + nth * 8192), at(0)), held);
        if nth == 6 {
            break;
        }
    }
}

#[test]
fn those_that_wait_are_bounded_for_each_interface() {
    let (mut lab, a, _) = pair();
    lab.0.interfaces[a.ix()].source_dest_check = false;
    let mut oracle = lab.oracle();
    let mut orphans = 0;
    for source in 0..40_u8 {
        for id in 0..4 {
            let mut packet = Packet {
                length: 8192 - 256,
                ..part(a, id, 8, 8192 - 256 - 24, true)
            };
            packet.source = IpAddr::from([10, 9, 9, source]);
            let outcome = oracle.judge(&packet, at(0));
            orphans += outcome
                .orphans
                .iter()
                .map(|(_, number)| number)
                .sum::<u64>();
        }
    }
    assert_eq!(orphans, 160 - 128);
}

#[test]
fn at_most_1024_datagrams_of_one_source_and_8192_of_an_interface_are_followed() {
    let (mut lab, a, b) = pair();
    lab.0.interfaces[a.ix()].source_dest_check = false;
    let mut oracle = lab.oracle();
    let fragment = |source, id, offset| Packet {
        source: IpAddr::from([10, 9, 9, source]),
        ..part(a, id, offset, 8, true)
    };
    let held = Judgement::Held { at: a };
    for id in 0..=1024 {
        assert_delivered(oracle.verdict(&fragment(0, id, 0), at(0)), b);
    }
    assert_eq!(oracle.verdict(&fragment(0, 0, 8), at(0)), held);
    assert!(is_delivered(oracle.verdict(&fragment(0, 1, 8), at(0))));
    for source in 1..8 {
        for id in 0..1024 {
            assert_delivered(oracle.verdict(&fragment(source, id, 0), at(0)), b);
        }
    }
    assert!(is_delivered(oracle.verdict(&fragment(0, 1, 16), at(0))));
    assert_delivered(oracle.verdict(&fragment(8, 0, 0), at(0)), b);
    assert_eq!(oracle.verdict(&fragment(0, 1, 24), at(0)), held);
    assert!(is_delivered(oracle.verdict(&fragment(0, 2, 8), at(0))));
}
