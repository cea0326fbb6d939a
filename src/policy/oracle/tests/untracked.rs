//! Tracked and untracked flows (aws-semantics §3.2–3.4).

use super::*;

/// The worked example of §3.2: SSH from one address, HTTP and ICMP from
/// anywhere, everything out; and a client that is let to do all of it.
struct Example {
    lab: Lab,
    web: GroupIx,
    a: InterfaceIx,
    b: InterfaceIx,
}

fn example() -> Example {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(Traffic::All, any4()), (Traffic::All, any6())]);
    let web = lab.group(
        &[
            (tcp(22), cidr("10.0.1.10/32")),
            (TCP_80, any4()),
            (TCP_80, any6()),
            (Traffic::Icmp(IcmpMatch::Any), any4()),
        ],
        &[(Traffic::All, any4()), (Traffic::All, any6())],
    );
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[web]);
    for (eni, address) in [(a, "2001:db8:1:1::10"), (b, "2001:db8:1:1::11")] {
        lab.0.interfaces[eni.ix()].addresses.push(Address {
            private: ip(address),
            public: None,
        });
    }
    Example { lab, web, a, b }
}

impl Example {
    fn http(&self, flags: TcpFlags) -> Packet {
        tcp_packet(self.a, "10.0.1.10", "10.0.1.11", 40_000, 80, flags)
    }

    fn http_back(&self, flags: TcpFlags) -> Packet {
        tcp_packet(self.b, "10.0.1.11", "10.0.1.10", 80, 40_000, flags)
    }

    fn web(&mut self) -> &mut SecurityGroup {
        self.lab.0.group_mut(self.web)
    }

    fn rule(&self, direction: Direction, nth: usize) -> Admission {
        Admission::Rule(self.lab.0.security_groups[self.web.ix()].rules(direction)[nth].id)
    }
}

#[test]
fn revoking_all_rules_cuts_http_at_once_and_leaves_ssh_and_ping_alive() {
    let mut example = example();
    let (a, b) = (example.a, example.b);
    let ssh = |flags| tcp_packet(a, "10.0.1.10", "10.0.1.11", 40_001, 22, flags);
    let ping = echo(a, "10.0.1.10", "10.0.1.11", true, 1);
    let mut oracle = example.lab.oracle();
    for packet in [&ssh(SYN), &example.http(SYN), &ping] {
        assert_delivered(oracle.verdict(packet, at(0)), b);
    }
    example.web().ingress.clear();
    oracle.replace_model(example.lab.model());
    let by_flow = |packet: &Packet| delivered(packet, b, Admission::Flow, Admission::Flow);
    assert_eq!(oracle.verdict(&ssh(ACK), at(1)), by_flow(&ssh(ACK)));
    assert_eq!(oracle.verdict(&ping, at(1)), by_flow(&ping));
    assert_eq!(
        oracle.verdict(&example.http(ACK), at(1)),
        dropped(DropReason::NoIngressRule, b)
    );
}

#[test]
fn every_packet_of_an_untracked_flow_is_admitted_by_a_rule_replies_too() {
    let example = example();
    let mut oracle = example.lab.oracle();
    for packet in [example.http(SYN), example.http(ACK)] {
        assert_eq!(
            ingress(oracle.verdict(&packet, at(0))),
            Some(example.rule(Direction::Ingress, 1))
        );
        let reply = example.http_back(SYN_ACK);
        assert_eq!(
            egress(oracle.verdict(&reply, at(0))),
            Some(example.rule(Direction::Egress, 0))
        );
    }
}

#[test]
fn a_narrowed_rule_of_the_reply_direction_cuts_the_replies_of_an_untracked_flow() {
    let mut example = example();
    let mut oracle = example.lab.oracle();
    assert!(is_delivered(oracle.verdict(&example.http(SYN), at(0))));
    example.web().egress.clear();
    oracle.replace_model(example.lab.model());
    assert_eq!(
        oracle.verdict(&example.http_back(SYN_ACK), at(1)),
        dropped(DropReason::NoEgressRule, example.b)
    );
    // The client's next packet opens a tracked flow in its place: the rules in
    // force make it one. Now the reply passes.
    assert!(is_delivered(oracle.verdict(&example.http(ACK), at(2))));
    assert_eq!(
        egress(oracle.verdict(&example.http_back(ACK), at(3))),
        Some(Admission::Flow)
    );
}

#[test]
fn a_flow_that_was_tracked_stays_so_when_the_rules_open() {
    let mut example = example();
    let all_out = std::mem::take(&mut example.web().egress);
    let mut oracle = example.lab.oracle();
    assert!(is_delivered(oracle.verdict(&example.http(SYN), at(0))));
    example.web().egress = all_out;
    oracle.replace_model(example.lab.model());
    assert_eq!(
        ingress(oracle.verdict(&example.http(ACK), at(1))),
        Some(Admission::Flow)
    );
}

#[test]
fn families_are_judged_apart() {
    // Without the IPv4 rule for everything out, IPv4 is tracked and IPv6 isn't.
    let mut example = example();
    example.web().egress.remove(0);
    let mut oracle = example.lab.oracle();
    let http6 = |flags| {
        tcp_packet(
            example.a,
            "2001:db8:1:1::10",
            "2001:db8:1:1::11",
            40_000,
            80,
            flags,
        )
    };
    for packet in [example.http(SYN), http6(SYN)] {
        assert!(is_delivered(oracle.verdict(&packet, at(0))));
    }
    assert_eq!(
        ingress(oracle.verdict(&example.http(ACK), at(1))),
        Some(Admission::Flow)
    );
    assert_eq!(
        ingress(oracle.verdict(&http6(ACK), at(1))),
        Some(example.rule(Direction::Ingress, 2))
    );
}

/// Whether a TCP flow to port 80 of an interface with these rules is tracked.
fn is_tracked(ingress_rules: &[(Traffic, Peer)], egress_rules: &[(Traffic, Peer)]) -> bool {
    let mut lab = Lab::new();
    let list = lab.prefix_list(&["0.0.0.0/0"]);
    assert_eq!(list, Peer::PrefixList(PrefixListIx::new(0)));
    let client = lab.group(&[], &[(Traffic::All, any4())]);
    let server = lab.group(ingress_rules, egress_rules);
    let a = lab.eni("10.0.1.10", &[client]);
    lab.eni("10.0.1.11", &[server]);
    let mut oracle = lab.oracle();
    let segment = |flags| tcp_packet(a, "10.0.1.10", "10.0.1.11", 40_000, 80, flags);
    assert!(is_delivered(oracle.verdict(&segment(SYN), at(0))));
    ingress(oracle.verdict(&segment(ACK), at(1))) == Some(Admission::Flow)
}

#[test]
fn the_other_direction_must_open_every_port_of_the_protocol_to_everybody() {
    let http = [(TCP_80, any4())];
    let ports = |from, to| PortRange { from, to };
    for (out, tracked) in [
        (vec![(Traffic::All, any4())], false),
        (vec![(Traffic::Tcp(PortRange::ALL), any4())], false),
        (vec![(Traffic::Udp(PortRange::ALL), any4())], true),
        (vec![(Traffic::Tcp(ports(1, 65_535)), any4())], true),
        (vec![(Traffic::Tcp(ports(0, 65_534)), any4())], true),
        // Two rules that do it together are not one that does.
        (
            vec![
                (Traffic::Tcp(ports(0, 999)), any4()),
                (Traffic::Tcp(ports(1000, 65_535)), any4()),
            ],
            true,
        ),
        (vec![(Traffic::All, cidr("10.0.0.0/8"))], true),
        (vec![(Traffic::All, any6())], true),
        (
            vec![
                (Traffic::All, cidr("0.0.0.0/1")),
                (Traffic::All, cidr("128.0.0.0/1")),
            ],
            true,
        ),
        (
            vec![(Traffic::All, Peer::PrefixList(PrefixListIx::new(0)))],
            true,
        ),
        (vec![], true),
    ] {
        assert_eq!(is_tracked(&http, &out), tracked, "{out:?}");
    }
}

#[test]
fn the_packets_direction_must_be_open_to_everybody_if_only_for_its_port() {
    let out = [(Traffic::All, any4())];
    for (into, tracked) in [
        (vec![(TCP_80, any4())], false),
        (vec![(Traffic::All, any4())], false),
        (vec![(TCP_80, cidr("10.0.1.10/32"))], true),
        (
            vec![(TCP_80, cidr("0.0.0.0/1")), (TCP_80, cidr("128.0.0.0/1"))],
            true,
        ),
        (vec![(TCP_80, Peer::PrefixList(PrefixListIx::new(0)))], true),
        // It need not be the first rule that covers the packet …
        (
            vec![(TCP_80, cidr("10.0.1.10/32")), (TCP_80, any4())],
            false,
        ),
        // … but one that does cover it.
        (
            vec![(TCP_80, cidr("10.0.1.10/32")), (tcp(81), any4())],
            true,
        ),
    ] {
        assert_eq!(is_tracked(&into, &out), tracked, "{into:?}");
    }
}

#[test]
fn icmp_and_other_protocols_are_always_tracked() {
    let mut lab = Lab::new();
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni("10.0.1.10", &[open]);
    let b = lab.eni("10.0.1.11", &[open]);
    let mut oracle = lab.oracle();
    for payload in [Payload::IcmpQuery { kind: 8, id: 1 }, Payload::Other(47)] {
        let packet = packet(a, "10.0.1.10", "10.0.1.11", payload);
        assert_delivered(oracle.verdict(&packet, at(0)), b);
        assert_eq!(
            oracle.verdict(&packet, at(1)),
            delivered(&packet, b, Admission::Flow, Admission::Flow)
        );
    }
}

#[test]
fn flows_of_a_network_load_balancer_are_tracked_at_both_ends() {
    for (kind, tracked) in [
        (EntityKind::Elb(LoadBalancer::Network), true),
        (EntityKind::Elb(LoadBalancer::Application), false),
    ] {
        let mut lab = Lab::new();
        let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
        let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[open]);
        let balancer = lab.eni_with_public("10.0.1.11", "203.0.113.11", &[open]);
        lab.external(Via::Igw, "198.51.100.7");
        lab.0.entities[balancer.ix()].kind = kind;
        let mut oracle = lab.oracle();
        let mut flow_at = |destination: &str, source_port: u16| {
            let packet = udp(a, "10.0.1.10", destination, source_port, 53);
            assert_delivered(oracle.verdict(&packet, at(0)), balancer);
            let again = oracle.verdict(&packet, at(1));
            (
                egress(again) == Some(Admission::Flow),
                ingress(again) == Some(Admission::Flow),
            )
        };
        assert_eq!(flow_at("10.0.1.11", 1), (tracked, tracked), "{kind:?}");
        // By its public address it is not a balancer's to the other end.
        assert_eq!(flow_at("203.0.113.11", 2), (false, tracked), "{kind:?}");
    }
}

#[test]
fn a_refused_packet_does_not_touch_the_untracked_flow() {
    let mut example = example();
    let rules = example.web().ingress.clone();
    let mut oracle = example.lab.oracle();
    assert!(is_delivered(oracle.verdict(&example.http(SYN), at(0))));
    example.web().ingress.clear();
    oracle.replace_model(example.lab.model());
    // Neither a part of it nor a fresh start puts its end off: 60 s after the
    // first packet the flow at the receiver is gone, that of the sender too.
    for packet in [example.http(ACK), example.http(SYN)] {
        assert!(!is_delivered(oracle.verdict(&packet, at(59_000))));
    }
    example.web().ingress = rules;
    oracle.replace_model(example.lab.model());
    let flows = oracle.flows();
    oracle.expire(at(60_000));
    assert_eq!(oracle.flows(), flows - 1);
}

#[test]
fn no_packet_of_a_closed_untracked_connection_is_rejected_for_that() {
    let example = example();
    let mut oracle = example.lab.oracle();
    // At the sender, whose flow is tracked, the connection is closed …
    assert!(is_delivered(oracle.verdict(&example.http(SYN), at(0))));
    let mut refusal = example.http_back(RST_ACK);
    number(&mut refusal, 0, 1, 0);
    assert!(is_delivered(oracle.verdict(&refusal, at(1))));
    assert_eq!(
        oracle.verdict(&example.http(ACK), at(2)),
        dropped(DropReason::ConnectionClosed, example.a)
    );
    // … at the receiver the rules judge, and let its packets out.
    assert_eq!(
        oracle.verdict(&example.http_back(ACK), at(3)),
        dropped(DropReason::ConnectionClosed, example.a)
    );
    let flows = oracle.flows();
    oracle.expire(at(10_001));
    assert_eq!((flows, oracle.flows()), (2, 0));
}

#[test]
fn a_syn_on_an_untracked_flow_opens_a_new_one_from_its_own_side() {
    let mut example = example();
    example.lab.allow_in(example.web, Traffic::All, any4());
    let mut oracle = example.lab.oracle();
    assert!(is_delivered(oracle.verdict(&example.http(SYN), at(0))));
    // From port 80 back to the client's: the web server initiates now.
    example.lab.allow_in(GroupIx::new(0), Traffic::All, any4());
    oracle.replace_model(example.lab.model());
    assert!(is_delivered(oracle.verdict(&example.http_back(SYN), at(1))));
    // What comes from the client is the answering side's, so a revoked egress
    // rule does not make it open a tracked flow in its place.
    example.web().egress.clear();
    oracle.replace_model(example.lab.model());
    assert!(is_delivered(oracle.verdict(&example.http(ACK), at(2))));
    assert_eq!(
        oracle.verdict(&example.http_back(ACK), at(3)),
        dropped(DropReason::NoEgressRule, example.b)
    );
}
