//! What route tables decide, on real packets, and how `explain` tells of it.

use std::net::{IpAddr, SocketAddr};

use crate::net::{MOMENT, Pinger, Seen, Servers, tcp, udp};
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, at};
use crate::talk::Session;

/// One host in a subnet for each kind of route table.
const ROUTES: &str = "
vpc: { cidr: [10.24.0.0/16, '2001:db8:24::/56'] }
subnets:
  main: { cidr: [10.24.1.0/24, '2001:db8:24:1::/64'] }
  isolated: { cidr: [10.24.2.0/24, '2001:db8:24:2::/64'], route_table: isolated }
  cut: { cidr: [10.24.3.0/24], route_table: cut }
route_tables:
  main:
    - { to: 0.0.0.0/0, via: igw }
    - { to: '::/0', via: igw }
    - { to: 192.168.0.0/16, via: vgw }
  isolated: []
  cut:
    - { to: 0.0.0.0/0, via: igw }
    - { to: 203.0.113.0/24, via: blackhole }
    - { to: 203.0.113.8/32, via: igw }
security_groups:
  all: { ingress: [ { protocol: all, from: [0.0.0.0/0, '::/0'] } ] }
entities:
  open: { kind: ec2, subnet: main, addresses: [10.24.1.10, '2001:db8:24:1::10'], public_addresses: [198.51.100.1], security_groups: [all] }
  shut: { kind: ec2, subnet: isolated, addresses: [10.24.2.10, '2001:db8:24:2::10'], public_addresses: [198.51.100.2], security_groups: [all] }
  half: { kind: ec2, subnet: cut, addresses: [10.24.3.10], public_addresses: [198.51.100.3], security_groups: [all] }
  seven: { kind: external, via: igw, addresses: [203.0.113.7, '2001:db8:ffff::7'] }
  eight: { kind: external, via: igw, addresses: [203.0.113.8] }
  nine: { kind: external, via: igw, addresses: [192.0.2.9] }
  office: { kind: external, via: vgw, addresses: [192.168.7.20] }
";

#[test]
fn a_request_from_the_internet_reaches_a_subnet_without_a_way_back_and_its_reply_has_no_route() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(ROUTES);
    let _servers = lab.inside("shut", || Servers::start("shut", &[80], &[53]));
    for (address, question) in [
        ("198.51.100.2", "seven --to shut --protocol tcp --port 80"),
        (
            "2001:db8:24:2::10",
            "seven --to 2001:db8:24:2::10 --protocol tcp --port 80",
        ),
    ] {
        let before = lab.status();
        let address: IpAddr = address.parse().unwrap();
        let seen = lab.inside("seven", || tcp(address, 80, MOMENT));
        assert_eq!(seen, Seen::Silent);
        let after = lab.status();
        let counted = |status, what: &str| at(status, "shut")[what].as_u64().unwrap();
        // The SYN came in, the answer to it went nowhere.
        assert!(counted(&after, "packets_in") > counted(&before, "packets_in"));
        assert_eq!(counted(&after, "packets_out"), 0);
        assert!(lab.drops("shut", "no_route") > 0);

        let (code, text) = lab.explain(question);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("rtb/isolated has no route to"), "{text}");
        assert!(text.contains("via igw in rtb/isolated"), "{text}");
        let request = text.find("\nrequest").unwrap();
        let reply = text.find("\nreply").unwrap();
        assert!(
            request < reply && reply < text.find("drop").unwrap(),
            "{text}"
        );
    }
    lab.down();
}

#[test]
fn a_subnet_with_the_local_route_alone_reaches_the_vpc_and_nothing_else() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(ROUTES);
    let _open = lab.inside("open", || Servers::start("open", &[80], &[]));
    let _seven = lab.inside("seven", || Servers::start("seven", &[80], &[]));
    let _office = lab.inside("office", || Servers::start("office", &[80], &[]));
    let from_shut = |address: &str, patience| {
        let address: IpAddr = address.parse().unwrap();
        lab.inside("shut", || tcp(address, 80, patience))
    };
    for address in ["10.24.1.10", "2001:db8:24:1::10"] {
        assert_eq!(from_shut(address, PATIENCE), Seen::Reached("open".into()));
    }
    assert_eq!(lab.drops("shut", "no_route"), 0);
    // The public address of a neighbour is on the internet too.
    for address in [
        "203.0.113.7",
        "2001:db8:ffff::7",
        "192.168.7.20",
        "198.51.100.1",
    ] {
        let before = lab.drops("shut", "no_route");
        assert_eq!(from_shut(address, MOMENT), Seen::Silent, "{address}");
        assert!(lab.drops("shut", "no_route") > before, "{address}");
    }
    // From the main table's subnet all of them are reached.
    for (address, name) in [
        ("203.0.113.7", "seven"),
        ("2001:db8:ffff::7", "seven"),
        ("192.168.7.20", "office"),
    ] {
        let address: IpAddr = address.parse().unwrap();
        let seen = lab.inside("open", || tcp(address, 80, PATIENCE));
        assert_eq!(seen, Seen::Reached(name.into()));
    }
    lab.down();
}

#[test]
fn the_longest_prefix_decides_and_a_blackhole_swallows() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(ROUTES);
    let servers: Vec<Servers> = ["seven", "eight", "nine"]
        .iter()
        .map(|name| lab.inside(name, || Servers::start(name, &[80], &[])))
        .collect();
    let from_half =
        |address: [u8; 4], patience| lab.inside("half", || tcp(address.into(), 80, patience));
    assert_eq!(
        from_half([192, 0, 2, 9], PATIENCE),
        Seen::Reached("nine".into())
    );
    assert_eq!(
        from_half([203, 0, 113, 8], PATIENCE),
        Seen::Reached("eight".into())
    );
    assert_eq!(lab.drops("half", "blackhole"), 0);
    assert_eq!(from_half([203, 0, 113, 7], MOMENT), Seen::Silent);
    assert!(lab.drops("half", "blackhole") > 0);
    drop(servers);

    let (code, text) = lab.explain("half --to seven --protocol tcp --port 80");
    assert_eq!(code, Some(1));
    let route = "the route 203.0.113.0/24 via blackhole in rtb/cut leads nowhere";
    assert!(text.contains(route), "{text}");
    // What comes from there is let in, and answered in vain.
    let pinger = lab.inside("seven", || Pinger::new([198, 51, 100, 3].into()));
    assert!(pinger.unwrap().ping(MOMENT).is_err());
    assert!(at(&lab.status(), "half")["packets_in"].as_u64() > Some(0));
    let (code, text) = lab.explain("seven --to half --protocol icmp");
    assert_eq!(code, Some(1));
    assert!(text.contains("reply") && text.contains("rtb/cut"), "{text}");
    lab.down();
}

#[test]
fn a_route_that_is_removed_cuts_a_connection_and_one_that_comes_back_heals_it() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(ROUTES);
    let seven: SocketAddr = (IpAddr::from([203, 0, 113, 7]), 80).into();
    let mut session = Session::open(&lab, "open", "seven", seven);
    lab.save(&ROUTES.replace(
        "    - { to: 0.0.0.0/0, via: igw }\n    - { to: '::/0'",
        "    - { to: '::/0'",
    ));
    lab.event("reloaded");
    session.hears_nothing(crate::talk::SERVER);
    assert!(lab.drops("open", "no_route") > 0);
    let lost = lab.inside("seven", || {
        udp(
            [203, 0, 113, 7].into(),
            [198, 51, 100, 1].into(),
            53,
            MOMENT,
        )
    });
    assert_eq!(lost, Seen::Silent);
    lab.save(ROUTES);
    lab.event("reloaded");
    session.still_talks();
    lab.down();
}
