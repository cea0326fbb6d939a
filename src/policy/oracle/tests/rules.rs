//! Which packets rules cover (aws-semantics §1, §2).

use super::*;

#[test]
fn a_group_without_rules_lets_nothing_in_or_out() {
    let mut lab = Lab::new();
    let closed = lab.group(&[], &[]);
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni("10.0.1.10", &[closed]);
    let b = lab.eni("10.0.1.11", &[open]);
    let mut oracle = lab.oracle();

    let out = oracle.verdict(&syn(a, "10.0.1.10", "10.0.1.11", 80), at(0));
    assert_eq!(out, dropped(DropReason::NoEgressRule, a));
    let into = oracle.verdict(&syn(b, "10.0.1.11", "10.0.1.10", 80), at(0));
    assert_eq!(into, dropped(DropReason::NoIngressRule, a));
}

#[test]
fn members_of_one_group_cannot_talk_unless_a_rule_says_so() {
    let mut lab = Lab::new();
    let group = lab.group(&[], &[(Traffic::All, any4())]);
    let a = lab.eni("10.0.1.10", &[group]);
    let b = lab.eni("10.0.1.11", &[group]);
    let packet = syn(a, "10.0.1.10", "10.0.1.11", 80);

    let without = lab.oracle().verdict(&packet, at(0));
    assert_eq!(without, dropped(DropReason::NoIngressRule, b));

    lab.allow_in(group, Traffic::All, Peer::Group(group));
    assert_delivered(lab.oracle().verdict(&packet, at(0)), b);
}

#[test]
fn a_group_reference_matches_private_addresses_of_its_members_only() {
    let mut lab = Lab::new();
    let clients = lab.group(&[], &[(Traffic::All, any4())]);
    let servers = lab.group(&[(TCP_80, Peer::Group(clients))], &[]);
    let member = lab.eni("10.0.1.10", &[clients]);
    let stranger_group = lab.group(&[], &[(Traffic::All, any4())]);
    let stranger = lab.eni("10.0.1.11", &[stranger_group]);
    let server = lab.eni("10.0.1.20", &[servers]);
    let mut oracle = lab.oracle();

    let from_member = oracle.verdict(&syn(member, "10.0.1.10", "10.0.1.20", 80), at(0));
    assert_delivered(from_member, server);
    let from_stranger = oracle.verdict(&syn(stranger, "10.0.1.11", "10.0.1.20", 80), at(0));
    assert_eq!(from_stranger, dropped(DropReason::NoIngressRule, server));
}

#[test]
fn a_group_reference_never_matches_a_public_address() {
    let mut lab = Lab::new();
    let group = lab.group(&[], &[(Traffic::All, any4())]);
    lab.allow_in(group, Traffic::All, Peer::Group(group));
    let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[group]);
    let b = lab.eni_with_public("10.0.1.11", "203.0.113.11", &[group]);
    lab.external(Via::Igw, "198.51.100.7");
    let mut oracle = lab.oracle();

    // The same two hosts, the same rule: by private address it matches …
    assert_delivered(
        oracle.verdict(&syn(a, "10.0.1.10", "10.0.1.11", 80), at(0)),
        b,
    );
    // … by public address the sender is no member any more.
    assert_eq!(
        oracle.verdict(&syn(a, "10.0.1.10", "203.0.113.11", 80), at(0)),
        dropped(DropReason::NoIngressRule, b)
    );

    // In an egress rule the public address of a member is no member either.
    let mut lab = Lab::new();
    let group = lab.group(&[(Traffic::All, any4())], &[]);
    lab.allow_out(group, Traffic::All, Peer::Group(group));
    let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[group]);
    lab.eni_with_public("10.0.1.11", "203.0.113.11", &[group]);
    lab.external(Via::Igw, "198.51.100.7");
    assert_eq!(
        lab.oracle()
            .verdict(&syn(a, "10.0.1.10", "203.0.113.11", 80), at(0)),
        dropped(DropReason::NoEgressRule, a)
    );
}

#[test]
fn the_rules_of_all_groups_of_an_interface_count_together() {
    let mut lab = Lab::new();
    let out = lab.group(&[], &[(Traffic::All, any4())]);
    let ssh = lab.group(&[(tcp(22), any4())], &[]);
    let http = lab.group(&[(TCP_80, any4())], &[]);
    let a = lab.eni("10.0.1.10", &[out]);
    let b = lab.eni("10.0.1.11", &[ssh, http]);
    let mut oracle = lab.oracle();

    for port in [22, 80] {
        let judgement = oracle.verdict(&syn(a, "10.0.1.10", "10.0.1.11", port), at(0));
        assert_delivered(judgement, b);
    }
    let judgement = oracle.verdict(&syn(a, "10.0.1.10", "10.0.1.11", 443), at(0));
    assert_eq!(judgement, dropped(DropReason::NoIngressRule, b));
}

#[test]
fn the_rule_named_is_the_first_in_the_order_of_the_interfaces_groups() {
    let mut lab = Lab::new();
    let out = lab.group(&[], &[(Traffic::All, any4())]);
    let one = lab.group(&[(tcp(22), any4()), (TCP_80, any4())], &[]);
    let two = lab.group(&[(Traffic::All, any4())], &[]);
    let a = lab.eni("10.0.1.10", &[out]);
    lab.eni("10.0.1.11", &[two, one]);
    lab.eni("10.0.1.12", &[one, two]);
    let named = |group: GroupIx, rule: usize| {
        Some(Admission::Rule(
            lab.0.security_groups[group.ix()].ingress[rule].id,
        ))
    };
    let mut oracle = lab.oracle();

    let to_11 = oracle.verdict(&syn(a, "10.0.1.10", "10.0.1.11", 80), at(0));
    assert_eq!(ingress(to_11), named(two, 0));
    let to_12 = oracle.verdict(&syn(a, "10.0.1.10", "10.0.1.12", 80), at(0));
    assert_eq!(ingress(to_12), named(one, 1));
}

#[test]
fn a_prefix_list_matches_by_any_of_its_entries() {
    let mut lab = Lab::new();
    let list = lab.prefix_list(&["10.0.1.10/32", "10.0.1.64/26"]);
    let out = lab.group(&[], &[(Traffic::All, any4())]);
    let guarded = lab.group(&[(TCP_80, list)], &[]);
    let b = lab.eni("10.0.1.20", &[guarded]);
    for (address, allowed) in [
        ("10.0.1.9", false),
        ("10.0.1.10", true),
        ("10.0.1.11", false),
        ("10.0.1.63", false),
        ("10.0.1.64", true),
        ("10.0.1.127", true),
        ("10.0.1.128", false),
    ] {
        let a = lab.eni(address, &[out]);
        let judgement = lab
            .oracle()
            .verdict(&syn(a, address, "10.0.1.20", 80), at(0));
        if allowed {
            assert_delivered(judgement, b);
        } else {
            assert_eq!(
                judgement,
                dropped(DropReason::NoIngressRule, b),
                "{address}"
            );
        }
    }
}

#[test]
fn port_ranges_include_both_ends_and_mean_the_destination_port() {
    let mut lab = Lab::new();
    let out = lab.group(&[], &[(Traffic::All, any4())]);
    let range = Traffic::Tcp(PortRange {
        from: 8080,
        to: 8090,
    });
    let guarded = lab.group(&[(range, any4())], &[]);
    let a = lab.eni("10.0.1.10", &[out]);
    lab.eni("10.0.1.11", &[guarded]);
    let mut oracle = lab.oracle();

    for (port, allowed) in [(8079, false), (8080, true), (8090, true), (8091, false)] {
        let judgement = oracle.verdict(&syn(a, "10.0.1.10", "10.0.1.11", port), at(0));
        assert_eq!(is_delivered(judgement), allowed, "{port}");
    }
    let source_in_range = tcp_packet(a, "10.0.1.10", "10.0.1.11", 8085, 80, SYN);
    assert!(!is_delivered(oracle.verdict(&source_in_range, at(0))));
    let other_protocol = udp(a, "10.0.1.10", "10.0.1.11", 40_000, 8085);
    assert!(!is_delivered(oracle.verdict(&other_protocol, at(0))));
}

#[test]
fn icmp_rules_match_type_and_code() {
    let cases: [(IcmpMatch, &[(u8, u8)]); 3] = [
        (IcmpMatch::Any, &[(3, 1), (3, 4), (11, 0)]),
        (IcmpMatch::Type(3), &[(3, 1), (3, 4)]),
        (IcmpMatch::TypeAndCode(3, 4), &[(3, 4)]),
    ];
    for (icmp, allowed) in cases {
        let mut lab = Lab::new();
        let out = lab.group(&[], &[(Traffic::All, any4())]);
        let guarded = lab.group(&[(Traffic::Icmp(icmp), any4())], &[]);
        let a = lab.eni("10.0.1.10", &[out]);
        lab.eni("10.0.1.11", &[guarded]);
        let mut oracle = lab.oracle();
        for (kind, code) in [(3, 1), (3, 4), (11, 0)] {
            let payload = Payload::Icmp {
                kind,
                code,
                quoted: None,
            };
            let message = packet(a, "10.0.1.10", "10.0.1.11", payload);
            assert_eq!(
                is_delivered(oracle.verdict(&message, at(0))),
                allowed.contains(&(kind, code)),
                "{icmp}: {kind}/{code}"
            );
        }
    }
}

#[test]
fn rules_of_one_family_never_match_the_other() {
    let mut lab = Lab::new();
    let only4 = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let both = lab.group(
        &[(Traffic::All, any4()), (Traffic::All, any6())],
        &[(Traffic::All, any4()), (Traffic::All, any6())],
    );
    let a = lab.eni("2001:db8:1:1::10", &[both]);
    let b = lab.eni("2001:db8:1:1::11", &[only4]);
    let mut oracle = lab.oracle();

    let into = syn(a, "2001:db8:1:1::10", "2001:db8:1:1::11", 80);
    assert_eq!(
        oracle.verdict(&into, at(0)),
        dropped(DropReason::NoIngressRule, b)
    );
    let out = syn(b, "2001:db8:1:1::11", "2001:db8:1:1::10", 80);
    assert_eq!(
        oracle.verdict(&out, at(0)),
        dropped(DropReason::NoEgressRule, b)
    );
}

#[test]
fn icmp_of_the_other_family_is_malformed_whatever_the_rules() {
    let mut lab = Lab::new();
    let group = lab.group(
        &[(Traffic::All, any6()), (Traffic::All, any4())],
        &[(Traffic::All, any6()), (Traffic::All, any4())],
    );
    let a = lab.eni("2001:db8:1:1::10", &[group]);
    let _b = lab.eni("2001:db8:1:1::11", &[group]);
    let c = lab.eni("10.0.1.10", &[group]);
    let _d = lab.eni("10.0.1.11", &[group]);
    for (from, source, destination, number) in [
        (a, "2001:db8:1:1::10", "2001:db8:1:1::11", protocol::ICMP),
        (c, "10.0.1.10", "10.0.1.11", protocol::ICMPV6),
    ] {
        let packet = Packet::whole(
            from,
            ip(source),
            ip(destination),
            Payload::Other(number),
            100,
        );
        assert_eq!(
            lab.oracle().verdict(&packet, at(0)),
            dropped(DropReason::Malformed, from)
        );
    }
}

#[test]
fn icmp_and_icmpv6_are_different_protocols() {
    let mut lab = Lab::new();
    let v4 = lab.group(
        &[(Traffic::Icmp(IcmpMatch::Any), any6())],
        &[(Traffic::Icmpv6(IcmpMatch::Any), any6())],
    );
    let a = lab.eni("2001:db8:1:1::10", &[v4]);
    let b = lab.eni("2001:db8:1:1::11", &[v4]);
    let request = echo(a, "2001:db8:1:1::10", "2001:db8:1:1::11", true, 1);
    assert_eq!(
        lab.oracle().verdict(&request, at(0)),
        dropped(DropReason::NoIngressRule, b)
    );
}
