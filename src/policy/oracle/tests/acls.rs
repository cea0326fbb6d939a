//! Network ACLs (aws-semantics §6, §13).

use super::*;

const SUBNETS: [&[&str]; 2] = [
    &["10.0.1.0/24", "2001:db8:1:1::/64"],
    &["10.0.2.0/24", "2001:db8:1:2::/64"],
];

/// Two subnets, each with an interface whose groups let everything pass.
fn two_subnets() -> (Lab, InterfaceIx, InterfaceIx) {
    let mut lab = Lab::of_subnets(&SUBNETS);
    let all = [(Traffic::All, any4()), (Traffic::All, any6())];
    let open = lab.group(&all, &all);
    let a = lab.eni("10.0.1.10", &[open]);
    let b = lab.eni("10.0.2.10", &[open]);
    (lab, a, b)
}

fn from_a(a: InterfaceIx) -> Packet {
    syn(a, "10.0.1.10", "10.0.2.10", 80)
}

#[test]
fn the_default_acl_lets_everything_pass_and_an_empty_one_nothing() {
    let (mut lab, a, b) = two_subnets();
    assert_delivered(lab.oracle().verdict(&from_a(a), at(0)), b);

    let everything = [allow(100, Traffic::All, "0.0.0.0/0")];
    lab.acl(0, &everything, &[]);
    assert_eq!(
        lab.oracle().verdict(&from_a(a), at(0)),
        dropped(DropReason::NetworkAclEgress, a)
    );
    lab.acl(0, &[], &everything);
    lab.acl(1, &[], &everything);
    assert_eq!(
        lab.oracle().verdict(&from_a(a), at(0)),
        dropped(DropReason::NetworkAclIngress, b)
    );
}

#[test]
fn the_lowest_number_that_covers_decides() {
    let (mut lab, a, b) = two_subnets();
    let wide = Traffic::Tcp(PortRange { from: 1, to: 1000 });
    for (entries, passes) in [
        (
            [
                deny(100, TCP_80, "10.0.1.0/24"),
                allow(200, wide, "0.0.0.0/0"),
            ],
            false,
        ),
        (
            [
                allow(100, wide, "0.0.0.0/0"),
                deny(200, TCP_80, "10.0.1.0/24"),
            ],
            true,
        ),
        // An entry that doesn't cover the packet decides nothing.
        (
            [
                deny(100, TCP_80, "10.0.3.0/24"),
                allow(200, wide, "0.0.0.0/0"),
            ],
            true,
        ),
        (
            [deny(100, tcp(81), "0.0.0.0/0"), deny(200, wide, "::/0")],
            false,
        ),
    ] {
        lab.acl(1, &entries, &[]);
        let judgement = lab.oracle().verdict(&from_a(a), at(0));
        if passes {
            assert_delivered(judgement, b);
        } else {
            assert_eq!(judgement, dropped(DropReason::NetworkAclIngress, b));
        }
    }
}

#[test]
fn acls_are_not_consulted_inside_a_subnet() {
    let (mut lab, a, _) = two_subnets();
    let groups = lab.0.interfaces[a.ix()].groups().to_vec();
    let neighbour = lab.eni("10.0.1.11", &groups);
    lab.acl(0, &[], &[]);
    let packet = syn(a, "10.0.1.10", "10.0.1.11", 80);
    assert_delivered(lab.oracle().verdict(&packet, at(0)), neighbour);
}

#[test]
fn acls_keep_no_state_so_a_reply_needs_entries_of_its_own() {
    let (mut lab, a, b) = two_subnets();
    lab.acl(
        1,
        &[allow(100, TCP_80, "0.0.0.0/0")],
        &[allow(100, TCP_80, "0.0.0.0/0")],
    );
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&from_a(a), at(0)), b);
    let reply = tcp_packet(b, "10.0.2.10", "10.0.1.10", 80, 40_000, SYN_ACK);
    assert_eq!(
        oracle.verdict(&reply, at(1)),
        dropped(DropReason::NetworkAclEgress, b)
    );
    // With the ephemeral ports open it passes.
    let ephemeral = Traffic::Tcp(PortRange {
        from: 1024,
        to: 65_535,
    });
    lab.acl(
        1,
        &[allow(100, TCP_80, "0.0.0.0/0")],
        &[allow(100, ephemeral, "0.0.0.0/0")],
    );
    oracle.replace_model(lab.model());
    assert_delivered(oracle.verdict(&reply, at(2)), a);
}

#[test]
fn an_acl_deny_cuts_a_tracked_flow_at_once_in_either_direction() {
    for inbound in [true, false] {
        let mut lab = Lab::of_subnets(&SUBNETS);
        let client = lab.group(&[], &[(TCP_80, any4())]);
        let server = lab.group(&[(TCP_80, any4())], &[]);
        let a = lab.eni("10.0.1.10", &[client]);
        let b = lab.eni("10.0.2.10", &[server]);
        let mut oracle = lab.oracle();
        assert_delivered(oracle.verdict(&from_a(a), at(0)), b);
        let reply = tcp_packet(b, "10.0.2.10", "10.0.1.10", 80, 40_000, SYN_ACK);
        assert_delivered(oracle.verdict(&reply, at(1)), a);

        let open = [allow(100, Traffic::All, "0.0.0.0/0")];
        let closed = [deny(1, Traffic::All, "10.0.1.0/24"), open[0].clone()];
        if inbound {
            lab.acl(1, &closed, &open);
        } else {
            lab.acl(1, &open, &closed);
        }
        oracle.replace_model(lab.model());
        let more = tcp_packet(a, "10.0.1.10", "10.0.2.10", 40_000, 80, ACK);
        let back = tcp_packet(b, "10.0.2.10", "10.0.1.10", 80, 40_000, ACK);
        if inbound {
            assert_eq!(
                oracle.verdict(&more, at(2)),
                dropped(DropReason::NetworkAclIngress, b)
            );
            assert_delivered(oracle.verdict(&back, at(3)), a);
        } else {
            assert_delivered(oracle.verdict(&more, at(2)), b);
            assert_eq!(
                oracle.verdict(&back, at(3)),
                dropped(DropReason::NetworkAclEgress, b)
            );
        }
    }
}

#[test]
fn entries_of_one_family_say_nothing_of_the_other() {
    let mut lab = Lab::of_subnets(&SUBNETS);
    let all6 = [(Traffic::All, any6())];
    let open = lab.group(&all6, &all6);
    let a = lab.eni("2001:db8:1:1::10", &[open]);
    let b = lab.eni("2001:db8:1:2::10", &[open]);
    let packet = syn(a, "2001:db8:1:1::10", "2001:db8:1:2::10", 80);
    lab.acl(0, &[], &[allow(100, Traffic::All, "0.0.0.0/0")]);
    assert_eq!(
        lab.oracle().verdict(&packet, at(0)),
        dropped(DropReason::NetworkAclEgress, a)
    );
    lab.acl(
        0,
        &[],
        &[
            deny(100, Traffic::All, "0.0.0.0/0"),
            allow(101, Traffic::All, "::/0"),
        ],
    );
    assert_delivered(lab.oracle().verdict(&packet, at(0)), b);
}

#[test]
fn entries_match_icmp_types_and_other_protocols() {
    let (mut lab, a, b) = two_subnets();
    lab.acl(
        1,
        &[
            allow(
                100,
                Traffic::Icmp(IcmpMatch::TypeAndCode(8, 0)),
                "10.0.1.0/24",
            ),
            allow(110, Traffic::Other(47), "10.0.1.0/24"),
        ],
        &[],
    );
    let mut oracle = lab.oracle();
    let send = |payload| packet(a, "10.0.1.10", "10.0.2.10", payload);
    let query = |kind| Payload::IcmpQuery { kind, id: 1 };
    assert_delivered(oracle.verdict(&send(query(8)), at(0)), b);
    assert_delivered(oracle.verdict(&send(Payload::Other(47)), at(0)), b);
    for payload in [query(0), query(13), Payload::Other(50)] {
        assert_eq!(
            oracle.verdict(&send(payload), at(0)),
            dropped(DropReason::NetworkAclIngress, b),
            "{payload}"
        );
    }
}

#[test]
fn acls_see_private_addresses_on_both_sides_of_the_internet_gateway() {
    let mut lab = Lab::of_subnets(&SUBNETS);
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[open]);
    let b = lab.eni_with_public("10.0.2.10", "203.0.113.20", &[open]);
    let laptop = lab.external(Via::Igw, "198.51.100.7");
    // Out: the destination as the sender wrote it. In: the source as the
    // receiver sees it, which is the sender's public address.
    lab.acl(0, &[], &[allow(100, TCP_80, "203.0.113.20/32")]);
    lab.acl(1, &[allow(100, TCP_80, "203.0.113.10/32")], &[]);
    let hairpin = syn(a, "10.0.1.10", "203.0.113.20", 80);
    assert_delivered(lab.oracle().verdict(&hairpin, at(0)), b);
    // What comes from the internet is judged by the receiver's ACL alone.
    let request = syn(laptop, "198.51.100.7", "203.0.113.20", 80);
    assert_eq!(
        lab.oracle().verdict(&request, at(0)),
        dropped(DropReason::NetworkAclIngress, b)
    );
    lab.acl(1, &[allow(100, TCP_80, "198.51.100.7/32")], &[]);
    assert_delivered(lab.oracle().verdict(&request, at(0)), b);
}

#[test]
fn the_flow_stays_though_the_acl_drops_its_first_packet() {
    let (mut lab, a, b) = two_subnets();
    let quiet = lab.group(&[], &[(TCP_80, any4())]);
    lab.0.interfaces[a.ix()].attachment = Attachment::Subnet {
        subnet: SubnetIx::new(0),
        groups: vec![quiet],
    };
    let open = allow(100, Traffic::All, "0.0.0.0/0");
    lab.acl(0, std::slice::from_ref(&open), &[]);
    let mut oracle = lab.oracle();
    assert_eq!(
        oracle.verdict(&from_a(a), at(0)),
        dropped(DropReason::NetworkAclEgress, a)
    );
    // The sender's group has admitted it, so what looks like the reply passes.
    let back = tcp_packet(b, "10.0.2.10", "10.0.1.10", 80, 40_000, SYN_ACK);
    let judgement = oracle.verdict(&back, at(1));
    assert_delivered(judgement, a);
    assert_eq!(ingress(judgement), Some(Admission::Flow));
}
