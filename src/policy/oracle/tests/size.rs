//! MTU, splitting, and what the router answers (aws-semantics §7).

use super::*;

/// Two interfaces in two subnets; the groups admit UDP 53 from one to the
/// other, and nothing back.
fn pair(mtu: u16) -> (Lab, InterfaceIx, InterfaceIx) {
    let mut lab = Lab::of_subnets(&[
        &["10.0.1.0/24", "2001:db8:1:1::/64"],
        &["10.0.2.0/24", "2001:db8:1:2::/64"],
    ]);
    let dns = Traffic::Udp(PortRange { from: 53, to: 53 });
    let client = lab.group(&[], &[(dns, any4()), (dns, any6())]);
    let server = lab.group(&[(dns, any4()), (dns, any6())], &[]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.2.10", &[server]);
    for (eni, address) in [(a, "2001:db8:1:1::10"), (b, "2001:db8:1:2::10")] {
        lab.0.interfaces[eni.ix()].addresses.push(Address {
            private: ip(address),
            public: None,
        });
    }
    lab.0.interfaces[b.ix()].mtu = mtu;
    (lab, a, b)
}

fn long(a: InterfaceIx, length: usize, dont_fragment: bool) -> Packet {
    Packet {
        length,
        dont_fragment,
        ..udp(a, "10.0.1.10", "10.0.2.10", 40_000, 53)
    }
}

fn long6(a: InterfaceIx, length: usize) -> Packet {
    Packet {
        length,
        ..udp(a, "2001:db8:1:1::10", "2001:db8:1:2::10", 40_000, 53)
    }
}

fn split(judgement: Judgement) -> Option<u16> {
    match judgement {
        Judgement::Delivered { split, .. } => split,
        other => panic!("not delivered: {other:?}"),
    }
}

#[test]
fn what_is_too_long_is_split_without_df_and_dropped_with_it() {
    let (lab, a, b) = pair(1500);
    let mut oracle = lab.oracle();
    for dont_fragment in [true, false] {
        let fits = oracle.verdict(&long(a, 1500, dont_fragment), at(0));
        assert_eq!(split(fits), None);
    }
    assert_eq!(
        split(oracle.verdict(&long(a, 1501, false), at(0))),
        Some(1500)
    );
    assert_eq!(
        oracle.verdict(&long(a, 1501, true), at(0)),
        dropped(DropReason::TooBig, b)
    );
    assert_eq!(split(oracle.verdict(&long6(a, 1500), at(0))), None);
    assert_eq!(
        oracle.verdict(&long6(a, 1501), at(0)),
        dropped(DropReason::TooBig, b)
    );
}

#[test]
fn the_path_through_a_gateway_takes_1500_bytes_and_no_more() {
    let mut lab = Lab::new();
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[open]);
    let b = lab.eni_with_public("10.0.1.11", "203.0.113.11", &[open]);
    let laptop = lab.external(Via::Igw, "198.51.100.7");
    let office = lab.external(Via::Vgw, "192.168.7.20");
    let mut oracle = lab.oracle();
    for (from, source, destination, mtu) in [
        (a, "10.0.1.10", "10.0.1.11", 9001),
        (a, "10.0.1.10", "198.51.100.7", 1500),
        (a, "10.0.1.10", "203.0.113.11", 1500),
        (a, "10.0.1.10", "192.168.7.20", 1500),
        (laptop, "198.51.100.7", "203.0.113.10", 1500),
        (office, "192.168.7.20", "10.0.1.10", 1500),
    ] {
        let mut packet = udp(from, source, destination, 40_000, 53);
        packet.length = usize::from(mtu);
        let fits = oracle.verdict(&packet, at(0));
        assert_eq!(split(fits), None, "{packet}");
        packet.length += 1;
        let too_long = oracle.verdict(&packet, at(0));
        assert_eq!(split(too_long), Some(mtu), "{packet}");
    }
    // A receiver that takes less still takes less.
    lab.0.interfaces[b.ix()].mtu = 1400;
    let mut packet = udp(a, "10.0.1.10", "203.0.113.11", 40_000, 53);
    packet.length = 1401;
    assert_eq!(split(lab.oracle().verdict(&packet, at(0))), Some(1400));
}

#[test]
fn the_size_comes_after_the_route_and_before_the_receivers_guards() {
    let (mut lab, a, b) = pair(1500);
    lab.0.group_mut(GroupIx::new(1)).ingress.clear();
    lab.acl(1, &[], &[]);
    assert_eq!(
        lab.oracle().verdict(&long(a, 1501, true), at(0)),
        dropped(DropReason::TooBig, b)
    );
    assert_eq!(
        lab.oracle().verdict(&long(a, 1501, false), at(0)),
        dropped(DropReason::NetworkAclIngress, b)
    );
}

#[test]
fn the_router_answers_with_the_mtu_and_the_packet_as_it_was_sent() {
    let (mut lab, a, b) = pair(1500);
    lab.0.vpc.icmp_errors = IcmpErrors::Related;
    let mut oracle = lab.oracle();
    let packet = long(a, 1501, true);
    let outcome = oracle.judge(&packet, at(0));
    assert_eq!(outcome.judgement, dropped(DropReason::TooBig, b));
    let mut message = error_about(a, &packet, 3, 4);
    message.length = 576;
    assert_eq!(
        outcome.answer,
        Some(Answer {
            message,
            mtu: 1500,
            refused: None,
        })
    );

    let packet = long6(a, 1501);
    let mut message = error_about(a, &packet, 2, 0);
    message.length = 1280;
    assert_eq!(
        oracle.judge(&packet, at(0)).answer,
        Some(Answer {
            message,
            mtu: 1500,
            refused: None,
        })
    );
    // What fits gets no answer.
    assert_eq!(oracle.judge(&long(a, 1500, true), at(0)).answer, None);
    assert_eq!(oracle.judge(&long(a, 1501, false), at(0)).answer, None);
}

/// Why the router's answer doesn't reach its receiver.
#[track_caller]
fn refusal(oracle: &mut Oracle, packet: &Packet) -> Option<Refusal> {
    oracle
        .judge(packet, at(0))
        .answer
        .expect("an answer")
        .refused
}

#[test]
fn the_answer_must_pass_the_senders_groups() {
    let (mut lab, a, _) = pair(1500);
    let packet = long(a, 1501, true);
    assert_eq!(
        refusal(&mut lab.oracle(), &packet),
        Some((DropReason::NoIngressRule, a))
    );
    // It comes from where the packet was for, but from none of its groups.
    let needed = Traffic::Icmp(IcmpMatch::TypeAndCode(3, 4));
    lab.allow_in(GroupIx::new(0), needed, Peer::Group(GroupIx::new(1)));
    assert_eq!(
        refusal(&mut lab.oracle(), &packet),
        Some((DropReason::NoIngressRule, a))
    );
    lab.allow_in(GroupIx::new(0), needed, cidr("10.0.2.10/32"));
    assert_eq!(refusal(&mut lab.oracle(), &packet), None);
}

#[test]
fn the_answer_must_pass_the_senders_acl_even_from_inside_the_subnet() {
    let (mut lab, a, _) = pair(1500);
    let needed = Traffic::Icmp(IcmpMatch::TypeAndCode(3, 4));
    lab.allow_in(GroupIx::new(0), needed, any4());
    let everything = [allow(100, Traffic::All, "0.0.0.0/0")];
    lab.acl(0, &[], &everything);
    assert_eq!(
        refusal(&mut lab.oracle(), &long(a, 1501, true)),
        Some((DropReason::NetworkAclIngress, a))
    );
    let neighbour = lab.eni("10.0.1.11", &[GroupIx::new(1)]);
    lab.0.interfaces[neighbour.ix()].mtu = 1500;
    let inside = Packet {
        destination: ip("10.0.1.11"),
        ..long(a, 1501, true)
    };
    assert_eq!(
        refusal(&mut lab.oracle(), &inside),
        Some((DropReason::NetworkAclIngress, a))
    );
    lab.acl(0, &[allow(100, needed, "10.0.1.11/32")], &everything);
    assert_eq!(refusal(&mut lab.oracle(), &inside), None);
}

#[test]
fn the_answer_speaks_of_private_addresses_on_the_near_side_of_the_gateway() {
    let mut lab = Lab::new();
    let dns = Traffic::Udp(PortRange { from: 53, to: 53 });
    let client = lab.group(
        &[(Traffic::Icmp(IcmpMatch::Any), cidr("198.51.100.7/32"))],
        &[(dns, any4())],
    );
    let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[client]);
    let laptop = lab.external(Via::Igw, "198.51.100.7");
    let mut oracle = lab.oracle();
    let mut out = udp(a, "10.0.1.10", "198.51.100.7", 40_000, 53);
    out.length = 1501;
    out.dont_fragment = true;
    let outcome = oracle.judge(&out, at(0));
    assert_eq!(outcome.judgement, dropped(DropReason::TooBig, laptop));
    let answer = outcome.answer.unwrap();
    let mut message = error_about(a, &out, 3, 4);
    message.length = 576;
    assert_eq!((answer.message, answer.refused), (message, None));

    // Nothing guards a host outside.
    let mut into = udp(laptop, "198.51.100.7", "203.0.113.10", 53, 40_000);
    into.length = 1501;
    into.dont_fragment = true;
    let answer = oracle.judge(&into, at(0)).answer.unwrap();
    let mut message = error_about(laptop, &into, 3, 4);
    message.length = 576;
    assert_eq!((answer.message, answer.refused), (message, None));
}

#[test]
fn an_icmp_error_is_not_answered() {
    let (mut lab, a, b) = pair(1500);
    for group in [0, 1] {
        let group = GroupIx::new(group);
        lab.allow_in(group, Traffic::All, any4());
        lab.allow_out(group, Traffic::All, any4());
    }
    let about = udp(b, "10.0.2.10", "10.0.1.10", 53, 40_000);
    let mut error = error_about(a, &about, 3, 4);
    error.length = 1501;
    error.dont_fragment = true;
    let outcome = lab.oracle().judge(&error, at(0));
    assert_eq!(outcome.judgement, dropped(DropReason::TooBig, b));
    assert_eq!(outcome.answer, None);
    // Questions are.
    let mut ping = echo(a, "10.0.1.10", "10.0.2.10", true, 1);
    ping.length = 1501;
    ping.dont_fragment = true;
    assert!(lab.oracle().judge(&ping, at(0)).answer.is_some());
}
