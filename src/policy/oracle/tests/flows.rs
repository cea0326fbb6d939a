//! What tracked flows let pass, and for how long (aws-semantics §3).

use super::*;

#[test]
fn ping_needs_type_8_and_its_reply_no_rule() {
    let mut lab = Lab::new();
    let out = lab.group(&[], &[(Traffic::All, any4())]);
    let pingable = lab.group(&[(Traffic::Icmp(IcmpMatch::Type(8)), any4())], &[]);
    let a = lab.eni("10.0.1.10", &[out]);
    let b = lab.eni("10.0.1.11", &[pingable]);
    let mut oracle = lab.oracle();

    let request = echo(a, "10.0.1.10", "10.0.1.11", true, 7);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    let reply = echo(b, "10.0.1.11", "10.0.1.10", false, 7);
    assert_eq!(
        oracle.verdict(&reply, at(1)),
        delivered(&reply, a, Admission::Flow, Admission::Flow)
    );
    // Another identifier is another conversation …
    let stray = echo(b, "10.0.1.11", "10.0.1.10", false, 8);
    assert_eq!(
        oracle.verdict(&stray, at(2)),
        dropped(DropReason::NoEgressRule, b)
    );
    // … and so is a request the other way.
    let back = echo(b, "10.0.1.11", "10.0.1.10", true, 7);
    assert_eq!(
        oracle.verdict(&back, at(3)),
        dropped(DropReason::NoEgressRule, b)
    );
}

#[test]
fn a_reply_passes_without_a_rule_of_its_direction() {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(TCP_80, any4())]);
    let server = lab.group(&[(TCP_80, any4())], &[]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[server]);
    let mut oracle = lab.oracle();

    assert_delivered(
        oracle.verdict(&syn(a, "10.0.1.10", "10.0.1.11", 80), at(0)),
        b,
    );
    let reply = tcp_packet(b, "10.0.1.11", "10.0.1.10", 80, 40_000, SYN_ACK);
    assert_eq!(
        oracle.verdict(&reply, at(1)),
        delivered(&reply, a, Admission::Flow, Admission::Flow)
    );
}

#[test]
fn each_interface_keeps_its_own_state() {
    let mut lab = Lab::new();
    let a_group = lab.group(&[], &[(Traffic::All, any4())]);
    let b_group = lab.group(&[], &[(Traffic::All, any4())]);
    let a = lab.eni("10.0.1.10", &[a_group]);
    let b = lab.eni("10.0.1.11", &[b_group]);
    let mut oracle = lab.oracle();

    // The sender has opened its flow although the receiver refuses …
    let request = udp(a, "10.0.1.10", "10.0.1.11", 40_000, 53);
    assert_eq!(
        oracle.verdict(&request, at(0)),
        dropped(DropReason::NoIngressRule, b)
    );
    // … so a packet back, which the receiver's own rules let out, is a reply
    // to the sender and news to the receiver.
    let back = udp(b, "10.0.1.11", "10.0.1.10", 53, 40_000);
    let judgement = oracle.verdict(&back, at(1));
    assert_delivered(judgement, a);
    assert_eq!(ingress(judgement), Some(Admission::Flow));
    assert_ne!(egress(judgement), Some(Admission::Flow));
}

#[test]
fn a_tracked_flow_outlives_the_rule_that_admitted_it() {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(TCP_80, any4())]);
    let server = lab.group(&[(TCP_80, any4())], &[]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[server]);
    let mut oracle = lab.oracle();
    let open = tcp_packet(a, "10.0.1.10", "10.0.1.11", 40_000, 80, SYN);
    assert_delivered(oracle.verdict(&open, at(0)), b);

    lab.0.group_mut(server).ingress.clear();
    lab.0.group_mut(client).egress.clear();
    oracle.replace_model(lab.model());

    let more = tcp_packet(a, "10.0.1.10", "10.0.1.11", 40_000, 80, ACK);
    assert_eq!(
        oracle.verdict(&more, at(10)),
        delivered(&more, b, Admission::Flow, Admission::Flow)
    );
    let anew = tcp_packet(a, "10.0.1.10", "10.0.1.11", 40_001, 80, SYN);
    assert_eq!(
        oracle.verdict(&anew, at(11)),
        dropped(DropReason::NoEgressRule, a)
    );
}

#[test]
fn an_established_connection_idles_as_long_as_its_interface_says() {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(TCP_80, any4())]);
    let server = lab.group(&[(TCP_80, any4())], &[]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[server]);
    lab.0.interfaces[b.ix()].tracking.tcp_established = Duration::from_secs(90);
    let mut oracle = lab.oracle();
    let forth = |flags| tcp_packet(a, "10.0.1.10", "10.0.1.11", 40_000, 80, flags);
    let back = |flags| tcp_packet(b, "10.0.1.11", "10.0.1.10", 80, 40_000, flags);

    assert_delivered(oracle.verdict(&forth(SYN), at(0)), b);
    assert_delivered(oracle.verdict(&back(SYN_ACK), at(0)), a);
    assert_delivered(oracle.verdict(&forth(ACK), at(0)), b);
    // Still there just before, refreshed; gone at the very millisecond.
    assert_delivered(oracle.verdict(&back(ACK), at(89_999)), a);
    assert_eq!(
        oracle.verdict(&back(ACK), at(89_999 + 90_000)),
        dropped(DropReason::NoEgressRule, b)
    );
}

#[test]
fn a_handshake_that_never_completes_is_forgotten_after_a_minute() {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(TCP_80, any4())]);
    let server = lab.group(&[(TCP_80, any4())], &[]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[server]);
    let mut oracle = lab.oracle();
    assert_delivered(
        oracle.verdict(&syn(a, "10.0.1.10", "10.0.1.11", 80), at(0)),
        b,
    );
    let late = tcp_packet(b, "10.0.1.11", "10.0.1.10", 80, 40_000, SYN_ACK);
    assert_eq!(
        oracle.verdict(&late, at(60_000)),
        dropped(DropReason::NoEgressRule, b)
    );
}

#[test]
fn udp_lasts_longer_after_the_second_exchange() {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(Traffic::Udp(PortRange::ALL), any4())]);
    let server = lab.group(&[(Traffic::Udp(PortRange::ALL), any4())], &[]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[server]);
    let ask = udp(a, "10.0.1.10", "10.0.1.11", 40_000, 53);
    let answer = udp(b, "10.0.1.11", "10.0.1.10", 53, 40_000);

    // One exchange, however many answers: 30 s.
    let mut oracle = lab.oracle();
    for packet in [&ask, &answer, &answer, &answer] {
        assert!(is_delivered(oracle.verdict(packet, at(0))));
    }
    assert!(is_delivered(oracle.verdict(&answer, at(29_999))));
    assert!(!is_delivered(oracle.verdict(&answer, at(59_999))));

    // Two: 180 s.
    let mut oracle = lab.oracle();
    for packet in [&ask, &answer, &ask, &answer] {
        assert!(is_delivered(oracle.verdict(packet, at(0))));
    }
    assert!(is_delivered(oracle.verdict(&answer, at(179_999))));
    assert!(!is_delivered(oracle.verdict(&answer, at(359_999))));
}

#[test]
fn protocols_without_ports_are_accepted_back_for_ten_minutes() {
    let mut lab = Lab::new();
    let sender = lab.group(&[], &[(Traffic::Other(47), any4())]);
    let receiver = lab.group(&[(Traffic::Other(47), any4())], &[]);
    let a = lab.eni("10.0.1.10", &[sender]);
    let b = lab.eni("10.0.1.11", &[receiver]);
    let mut oracle = lab.oracle();
    let forth = packet(a, "10.0.1.10", "10.0.1.11", Payload::Other(47));
    let back = packet(b, "10.0.1.11", "10.0.1.10", Payload::Other(47));
    let esp = packet(b, "10.0.1.11", "10.0.1.10", Payload::Other(50));

    assert_delivered(oracle.verdict(&forth, at(0)), b);
    assert_delivered(oracle.verdict(&back, at(599_999)), a);
    assert_eq!(
        oracle.verdict(&esp, at(599_999)),
        dropped(DropReason::NoEgressRule, b)
    );
    assert_eq!(
        oracle.verdict(&back, at(1_199_999)),
        dropped(DropReason::NoEgressRule, b)
    );
}
