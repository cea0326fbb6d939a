//! Route tables and appliances (aws-semantics §7).

use super::*;

const SUBNETS: [&[&str]; 3] = [&["10.0.1.0/24"], &["10.0.2.0/24"], &["10.0.3.0/24"]];

struct Net {
    lab: Lab,
    a: InterfaceIx,
    b: InterfaceIx,
    appliance: InterfaceIx,
    laptop: InterfaceIx,
    office: InterfaceIx,
}

/// An interface in each of three subnets, the third an appliance's, and a host
/// behind each gateway. The groups let everything pass.
fn net() -> Net {
    let mut lab = Lab::of_subnets(&SUBNETS);
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[open]);
    let b = lab.eni_with_public("10.0.2.10", "203.0.113.20", &[open]);
    let appliance = lab.eni("10.0.3.10", &[open]);
    lab.0.interfaces[appliance.ix()].source_dest_check = false;
    let laptop = lab.external(Via::Igw, "198.51.100.7");
    let office = lab.external(Via::Vgw, "192.168.7.20");
    Net {
        lab,
        a,
        b,
        appliance,
        laptop,
        office,
    }
}

impl Net {
    fn ask(&self, destination: &str) -> Judgement {
        self.lab
            .oracle()
            .verdict(&syn(self.a, "10.0.1.10", destination, 80), at(0))
    }
}

#[test]
fn the_implied_main_table_leads_to_both_gateways() {
    let net = net();
    assert_delivered(net.ask("10.0.2.10"), net.b);
    assert_delivered(net.ask("198.51.100.7"), net.laptop);
    assert_delivered(net.ask("192.168.7.20"), net.office);
    for nowhere in ["10.0.2.99", "192.168.7.21", "198.51.100.8"] {
        let expected = dropped(DropReason::UnknownDestination, net.a);
        assert_eq!(net.ask(nowhere), expected, "{nowhere}");
    }
}

#[test]
fn without_a_route_there_is_none_but_the_local() {
    let mut net = net();
    net.lab.routes(0, &[]);
    assert_delivered(net.ask("10.0.2.10"), net.b);
    for far in ["198.51.100.7", "192.168.7.20", "203.0.113.20"] {
        assert_eq!(net.ask(far), dropped(DropReason::NoRoute, net.a), "{far}");
    }
}

#[test]
fn the_longest_prefix_wins_whatever_the_order() {
    let mut net = net();
    let mut routes = [
        ("0.0.0.0/0", RouteTarget::Igw),
        ("198.51.100.0/24", RouteTarget::Blackhole),
        ("198.51.100.7/32", RouteTarget::Igw),
        ("192.168.0.0/16", RouteTarget::Vgw),
    ];
    for _ in 0..2 {
        net.lab.routes(0, &routes);
        assert_delivered(net.ask("198.51.100.7"), net.laptop);
        assert_eq!(
            net.ask("198.51.100.8"),
            dropped(DropReason::Blackhole, net.a)
        );
        assert_delivered(net.ask("192.168.7.20"), net.office);
        routes.reverse();
    }
}

#[test]
fn each_target_knows_its_own_hosts_only() {
    let mut net = net();
    let routes = [
        ("198.51.100.0/24", RouteTarget::Vgw),
        ("192.168.7.0/24", RouteTarget::Igw),
    ];
    net.lab.routes(0, &routes);
    for far in ["198.51.100.7", "192.168.7.20"] {
        assert_eq!(
            net.ask(far),
            dropped(DropReason::UnknownDestination, net.a),
            "{far}"
        );
    }
}

#[test]
fn link_local_and_service_addresses_are_never_forwarded() {
    let mut net = net();
    net.lab.routes(0, &[("0.0.0.0/0", RouteTarget::Igw)]);
    assert_eq!(net.ask("169.254.1.1"), dropped(DropReason::NoRoute, net.a));

    let mut lab = Lab::new();
    let open = lab.group(&[(Traffic::All, any6())], &[(Traffic::All, any6())]);
    let a = lab.eni("2001:db8:1:1::10", &[open]);
    lab.external(Via::Igw, "2001:db8:f::7");
    let mut oracle = lab.oracle();
    for (destination, reason) in [
        ("fe80::1", DropReason::NoRoute),
        ("febf::1", DropReason::NoRoute),
        ("fec0::1", DropReason::UnknownDestination),
        ("fd00:ec2::1", DropReason::NoRoute),
        ("fd00:ec3::1", DropReason::UnknownDestination),
    ] {
        assert_eq!(
            oracle.verdict(&syn(a, "2001:db8:1:1::10", destination, 80), at(0)),
            dropped(reason, a),
            "{destination}"
        );
    }
}

#[test]
fn a_route_with_the_block_of_the_local_one_takes_its_place() {
    let mut net = net();
    let to_appliance = RouteTarget::Interface(net.appliance);
    net.lab.routes(0, &[("10.0.0.0/16", to_appliance)]);
    assert_delivered(net.ask("10.0.2.10"), net.appliance);
    net.lab
        .routes(0, &[("10.0.0.0/16", RouteTarget::Blackhole)]);
    assert_eq!(net.ask("10.0.2.10"), dropped(DropReason::Blackhole, net.a));
    // A wider route takes no place.
    net.lab.routes(0, &[("10.0.0.0/8", RouteTarget::Blackhole)]);
    assert_delivered(net.ask("10.0.2.10"), net.b);
    // The other subnets have the main table still.
    let mut oracle = net.lab.oracle();
    let from_b = syn(net.b, "10.0.2.10", "10.0.1.10", 80);
    assert_delivered(oracle.verdict(&from_b, at(0)), net.a);
}

#[test]
fn a_route_may_send_a_whole_other_subnet_through_an_appliance() {
    let mut net = net();
    let to_appliance = RouteTarget::Interface(net.appliance);
    net.lab.routes(0, &[("10.0.2.0/24", to_appliance)]);
    let mut oracle = net.lab.oracle();
    let packet = syn(net.a, "10.0.1.10", "10.0.2.10", 80);
    assert_delivered(oracle.verdict(&packet, at(0)), net.appliance);
    // The appliance forwards it under its author's address.
    let forwarded = Packet {
        from: net.appliance,
        ..packet
    };
    assert_delivered(oracle.verdict(&forwarded, at(0)), net.b);
}

#[test]
fn routes_say_nothing_of_the_inside_of_a_subnet() {
    let mut net = net();
    let groups = net.lab.0.interfaces[net.a.ix()].groups().to_vec();
    let neighbour = net.lab.eni("10.0.1.11", &groups);
    let to_appliance = RouteTarget::Interface(net.appliance);
    net.lab.routes(0, &[("10.0.0.0/16", to_appliance)]);
    assert_delivered(net.ask("10.0.1.11"), neighbour);
    assert_eq!(
        net.ask("10.0.1.99"),
        dropped(DropReason::UnknownDestination, net.a)
    );
}

#[test]
fn an_interface_with_the_check_refuses_what_is_for_others() {
    let mut net = net();
    let to_appliance = RouteTarget::Interface(net.appliance);
    net.lab.routes(0, &[("0.0.0.0/0", to_appliance)]);
    assert_delivered(net.ask("8.8.8.8"), net.appliance);
    net.lab.0.interfaces[net.appliance.ix()].source_dest_check = true;
    assert_eq!(
        net.ask("8.8.8.8"),
        dropped(DropReason::DestinationCheck, net.appliance)
    );
    // The check stands after the groups: the flow is there, and without a rule
    // the groups are named.
    let mut oracle = net.lab.oracle();
    oracle.verdict(&syn(net.a, "10.0.1.10", "8.8.8.8", 80), at(0));
    assert_eq!(oracle.flows(), 2);
    net.lab.0.group_mut(GroupIx::new(0)).ingress.clear();
    assert_eq!(
        net.ask("8.8.8.8"),
        dropped(DropReason::NoIngressRule, net.appliance)
    );
}

#[test]
fn a_route_back_to_the_sender_leads_nowhere() {
    let mut net = net();
    let to_appliance = RouteTarget::Interface(net.appliance);
    net.lab.routes(2, &[("0.0.0.0/0", to_appliance)]);
    let packet = syn(net.appliance, "10.0.3.10", "8.8.8.8", 80);
    assert_eq!(
        net.lab.oracle().verdict(&packet, at(0)),
        dropped(DropReason::NoRoute, net.appliance)
    );
}

#[test]
fn group_references_do_not_match_through_an_appliance() {
    let mut net = net();
    let clients = net.lab.group(&[], &[(Traffic::All, any4())]);
    let servers = net.lab.group(&[(TCP_80, Peer::Group(clients))], &[]);
    let join = |lab: &mut Lab, eni: InterfaceIx, subnet, group| {
        lab.0.interfaces[eni.ix()].attachment = Attachment::Subnet {
            subnet: SubnetIx::new(subnet),
            groups: vec![group],
        };
    };
    join(&mut net.lab, net.a, 0, clients);
    join(&mut net.lab, net.b, 1, servers);
    assert_delivered(net.ask("10.0.2.10"), net.b);

    let packet = syn(net.appliance, "10.0.1.10", "10.0.2.10", 80);
    assert_eq!(
        net.lab.oracle().verdict(&packet, at(0)),
        dropped(DropReason::NoIngressRule, net.b)
    );
    // By CIDR the source matches wherever it comes through.
    net.lab.allow_in(servers, TCP_80, cidr("10.0.1.0/24"));
    assert_delivered(net.lab.oracle().verdict(&packet, at(0)), net.b);
}

#[test]
fn acls_count_for_each_hop_through_an_appliance() {
    let mut net = net();
    let to_appliance = RouteTarget::Interface(net.appliance);
    net.lab.routes(0, &[("10.0.2.0/24", to_appliance)]);
    let everything = allow(100, Traffic::All, "0.0.0.0/0");
    net.lab.acl(
        2,
        &[allow(100, TCP_80, "10.0.1.10/32")],
        std::slice::from_ref(&everything),
    );
    assert_delivered(net.ask("10.0.2.10"), net.appliance);
    net.lab.acl(2, &[everything], &[]);
    let forwarded = syn(net.appliance, "10.0.1.10", "10.0.2.10", 80);
    assert_eq!(
        net.lab.oracle().verdict(&forwarded, at(0)),
        dropped(DropReason::NetworkAclEgress, net.appliance)
    );
    // To an address of its own subnet the appliance needs neither.
    let groups = net.lab.0.interfaces[net.a.ix()].groups().to_vec();
    let neighbour = net.lab.eni("10.0.3.11", &groups);
    let inside = syn(net.appliance, "10.0.1.10", "10.0.3.11", 80);
    assert_delivered(net.lab.oracle().verdict(&inside, at(0)), neighbour);
}

#[test]
fn an_appliance_next_door_is_behind_the_router_all_the_same() {
    // The route leads into the sender's own subnet, but its destination lies
    // outside: both ACLs of the one subnet are asked.
    let mut net = net();
    let groups = net.lab.0.interfaces[net.a.ix()].groups().to_vec();
    let next_door = net.lab.eni("10.0.1.20", &groups);
    net.lab.0.interfaces[next_door.ix()].source_dest_check = false;
    net.lab
        .routes(0, &[("0.0.0.0/0", RouteTarget::Interface(next_door))]);
    assert_delivered(net.ask("8.8.8.8"), next_door);
    let everything = allow(100, Traffic::All, "0.0.0.0/0");
    net.lab.acl(0, &[], &[everything]);
    assert_eq!(
        net.ask("8.8.8.8"),
        dropped(DropReason::NetworkAclIngress, next_door)
    );
}

#[test]
fn the_vpcs_own_addresses_are_unknown_to_the_internet_gateway() {
    let mut net = net();
    net.lab.routes(0, &[("10.0.0.0/16", RouteTarget::Igw)]);
    assert_eq!(
        net.ask("10.0.2.10"),
        dropped(DropReason::UnknownDestination, net.a)
    );
}
