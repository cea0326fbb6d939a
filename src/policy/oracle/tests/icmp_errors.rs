//! ICMP errors: by a rule, or related to a tracked flow (aws-semantics §3.7).

use super::*;

/// A client and a server whose groups admit HTTP and nothing else, and which
/// lie behind different interfaces.
fn web(icmp_errors: IcmpErrors) -> (Lab, InterfaceIx, InterfaceIx) {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(TCP_80, any4())]);
    let server = lab.group(&[(TCP_80, any4())], &[]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[server]);
    lab.0.vpc.icmp_errors = icmp_errors;
    (lab, a, b)
}

#[test]
fn an_icmp_error_needs_a_rule_and_belongs_to_no_flow() {
    let (mut lab, a, b) = web(IcmpErrors::ByRule);
    let mut oracle = lab.oracle();
    let request = syn(a, "10.0.1.10", "10.0.1.11", 80);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    let too_big = error_about(b, &request, 3, 4);
    assert_eq!(
        oracle.verdict(&too_big, at(1)),
        dropped(DropReason::NoEgressRule, b)
    );
    let unreachable = Traffic::Icmp(IcmpMatch::TypeAndCode(3, 4));
    lab.allow_out(GroupIx::new(1), unreachable, any4());
    oracle.replace_model(lab.model());
    for _ in 0..2 {
        assert_eq!(
            oracle.verdict(&too_big, at(2)),
            dropped(DropReason::NoIngressRule, a)
        );
    }
    lab.allow_in(GroupIx::new(0), unreachable, any4());
    oracle.replace_model(lab.model());
    let flows = oracle.flows();
    for _ in 0..2 {
        let judgement = oracle.verdict(&too_big, at(3));
        assert_delivered(judgement, a);
        assert_ne!(ingress(judgement), Some(Admission::Flow));
    }
    assert_eq!(oracle.flows(), flows);
}

#[test]
fn a_related_error_passes_both_ends_of_a_tracked_flow() {
    let (lab, a, b) = web(IcmpErrors::Related);
    let mut oracle = lab.oracle();
    let request = syn(a, "10.0.1.10", "10.0.1.11", 80);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    for (kind, code) in [(3, 4), (3, 1), (11, 0), (12, 0)] {
        let error = error_about(b, &request, kind, code);
        assert_eq!(
            oracle.verdict(&error, at(1)),
            delivered(&error, a, Admission::Flow, Admission::Flow),
            "{kind}/{code}"
        );
    }
    // Other messages never do.
    for kind in [4, 5, 40] {
        assert_eq!(
            oracle.verdict(&error_about(b, &request, kind, 0), at(1)),
            dropped(DropReason::NoEgressRule, b),
            "{kind}"
        );
    }
}

#[test]
fn an_error_about_another_packet_is_not_related() {
    let (lab, a, b) = web(IcmpErrors::Related);
    let mut oracle = lab.oracle();
    let request = syn(a, "10.0.1.10", "10.0.1.11", 80);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    let refused = dropped(DropReason::NoEgressRule, b);

    let quoted = |quoted: Option<Quoted>| {
        let payload = Payload::Icmp {
            kind: 3,
            code: 4,
            quoted,
        };
        packet(b, "10.0.1.11", "10.0.1.10", payload)
    };
    let right = Quoted {
        source: request.source,
        destination: request.destination,
        speech: request.payload.speech(),
    };
    assert!(is_delivered(oracle.verdict(&quoted(Some(right)), at(1))));
    for wrong in [
        None,
        Some(Quoted {
            speech: None,
            ..right
        }),
        Some(Quoted {
            speech: Some(Speech::Udp {
                source_port: 40_000,
                destination_port: 80,
            }),
            ..right
        }),
        Some(Quoted {
            speech: Some(Speech::Tcp {
                source_port: 40_000,
                destination_port: 81,
            }),
            ..right
        }),
        // A packet of the flow, and one that the error's receiver didn't send.
        Some(Quoted {
            source: right.destination,
            destination: right.source,
            speech: Some(Speech::Tcp {
                source_port: 80,
                destination_port: 40_000,
            }),
        }),
        Some(Quoted {
            source: ip("10.0.1.12"),
            ..right
        }),
    ] {
        assert_eq!(oracle.verdict(&quoted(wrong), at(1)), refused, "{wrong:?}");
    }
}

#[test]
fn an_error_may_come_from_anybody_on_the_way() {
    // As from a router in the middle: the quoted packet counts, not who sends.
    let (mut lab, a, b) = web(IcmpErrors::Related);
    let open = lab.group(&[], &[(Traffic::All, any4())]);
    let middle = lab.eni("10.0.1.12", &[open]);
    let mut oracle = lab.oracle();
    let request = syn(a, "10.0.1.10", "10.0.1.11", 80);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    let mut error = error_about(middle, &request, 11, 0);
    error.source = ip("10.0.1.12");
    let judgement = oracle.verdict(&error, at(1));
    assert_delivered(judgement, a);
    assert_eq!(ingress(judgement), Some(Admission::Flow));
}

#[test]
fn an_error_leaves_the_flow_as_it_is() {
    let (lab, a, b) = web(IcmpErrors::Related);
    let mut oracle = lab.oracle();
    let request = syn(a, "10.0.1.10", "10.0.1.11", 80);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    let error = error_about(b, &request, 3, 4);
    assert_delivered(oracle.verdict(&error, at(59_999)), a);
    assert_eq!(
        oracle.verdict(&error, at(60_000)),
        dropped(DropReason::NoEgressRule, b)
    );
}

#[test]
fn an_error_about_a_closed_connection_is_still_related() {
    let (lab, a, b) = web(IcmpErrors::Related);
    let mut oracle = lab.oracle();
    let request = syn(a, "10.0.1.10", "10.0.1.11", 80);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    let reset = tcp_packet(a, "10.0.1.10", "10.0.1.11", 40_000, 80, RST);
    assert_delivered(oracle.verdict(&reset, at(1)), b);
    assert_delivered(oracle.verdict(&error_about(b, &request, 3, 4), at(2)), a);
}

#[test]
fn an_error_about_an_untracked_flow_needs_a_rule() {
    let (mut lab, a, b) = web(IcmpErrors::Related);
    lab.allow_out(GroupIx::new(1), Traffic::Tcp(PortRange::ALL), any4());
    let mut oracle = lab.oracle();
    let request = syn(a, "10.0.1.10", "10.0.1.11", 80);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    assert_eq!(
        oracle.verdict(&error_about(b, &request, 3, 4), at(1)),
        dropped(DropReason::NoEgressRule, b)
    );
}

#[test]
fn questions_and_other_protocols_have_related_errors_too() {
    let (mut lab, a, b) = web(IcmpErrors::Related);
    for traffic in [Traffic::Icmp(IcmpMatch::Type(8)), Traffic::Other(47)] {
        lab.allow_out(GroupIx::new(0), traffic, any4());
        lab.allow_in(GroupIx::new(1), traffic, any4());
    }
    let mut oracle = lab.oracle();
    for payload in [Payload::IcmpQuery { kind: 8, id: 3 }, Payload::Other(47)] {
        let sent = packet(a, "10.0.1.10", "10.0.1.11", payload);
        assert_delivered(oracle.verdict(&sent, at(0)), b);
        assert_delivered(oracle.verdict(&error_about(b, &sent, 3, 3), at(1)), a);
    }
    let other_id = packet(
        a,
        "10.0.1.10",
        "10.0.1.11",
        Payload::IcmpQuery { kind: 8, id: 4 },
    );
    assert_eq!(
        oracle.verdict(&error_about(b, &other_id, 3, 3), at(1)),
        dropped(DropReason::NoEgressRule, b)
    );
}

#[test]
fn the_internet_gateway_translates_what_an_error_quotes() {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(TCP_80, any4())]);
    let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[client]);
    let server = lab.external(Via::Igw, "198.51.100.7");
    lab.0.vpc.icmp_errors = IcmpErrors::Related;
    let mut oracle = lab.oracle();
    let request = syn(a, "10.0.1.10", "198.51.100.7", 80);
    let Judgement::Delivered { packet: seen, .. } = oracle.verdict(&request, at(0)) else {
        panic!("not delivered");
    };
    // The server quotes what it saw; the client gets what it sent.
    let error = error_about(server, &seen, 3, 4);
    let expected = error_about(server, &request, 3, 4);
    assert_eq!(
        oracle.verdict(&error, at(1)),
        Judgement::Delivered {
            to: a,
            packet: expected,
            split: None,
            egress: None,
            ingress: Some(Admission::Flow),
        }
    );
}

#[test]
fn icmpv6_errors_are_types_1_to_4() {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(TCP_80, any6())]);
    let server = lab.group(&[(TCP_80, any6())], &[]);
    let a = lab.eni("2001:db8:1:1::10", &[client]);
    let b = lab.eni("2001:db8:1:1::11", &[server]);
    lab.0.vpc.icmp_errors = IcmpErrors::Related;
    let mut oracle = lab.oracle();
    let request = syn(a, "2001:db8:1:1::10", "2001:db8:1:1::11", 80);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    for kind in [1, 2, 3, 4] {
        assert_delivered(oracle.verdict(&error_about(b, &request, kind, 0), at(1)), a);
    }
    for kind in [5, 11, 12, 137] {
        assert_eq!(
            oracle.verdict(&error_about(b, &request, kind, 0), at(1)),
            dropped(DropReason::NoEgressRule, b),
            "{kind}"
        );
    }
}
