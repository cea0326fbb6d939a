//! A firewall of the user's own between two subnets: an entity with two
//! interfaces whose source/destination check is off, and whose kernel forwards.

use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{SockProtocol, setsockopt, sockopt};

use crate::net::{MOMENT, Pinger, Seen, Servers, tcp};
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, at};
use crate::talk::Session;
use crate::wire;

/// `left` and `right` reach each other through `fw` only, both ways. `ERRORS`
/// stands for the rules by which ICMP errors reach `left`.
pub const THROUGH_APPLIANCE: &str = "
vpc: { cidr: [10.22.0.0/16, '2001:db8:22::/56'] }
route_tables:
  left:
    - { to: 10.22.2.0/24, via: eni/fw/eth0 }
    - { to: '2001:db8:22:2::/64', via: eni/fw/eth0 }
  right:
    - { to: 10.22.1.0/24, via: eni/fw/eth1 }
    - { to: '2001:db8:22:1::/64', via: eni/fw/eth1 }
subnets:
  left: { cidr: [10.22.1.0/24, '2001:db8:22:1::/64'], route_table: left }
  right: { cidr: [10.22.2.0/24, '2001:db8:22:2::/64'], route_table: right }
security_groups:
  left: { ingress: [ ERRORS ] }
  right:
    ingress:
      - { protocol: tcp, ports: 8001, from: 10.22.1.0/24 }
      - { protocol: tcp, ports: 8001, from: '2001:db8:22:1::/64' }
      - { protocol: tcp, ports: 8002, from: sg/left }
      - { protocol: icmp, type: 8, from: 10.22.0.0/16 }
      - { protocol: udp, ports: 33434-33534, from: 10.22.0.0/16 }
      - { protocol: udp, ports: 33434-33534, from: '2001:db8:22::/56' }
  fw: { ingress: [ { protocol: all, from: 10.22.0.0/16 }, { protocol: all, from: '2001:db8:22::/56' } ] }
entities:
  left:
    kind: ec2
    subnet: left
    addresses: [10.22.1.10, '2001:db8:22:1::10']
    security_groups: [left]
  right:
    kind: ec2
    subnet: right
    addresses: [10.22.2.10, '2001:db8:22:2::10']
    security_groups: [right]
  # In left's own subnet, to compare with.
  near: { kind: ec2, subnet: left, addresses: [10.22.1.11], security_groups: [right] }
  fw:
    kind: ec2
    interfaces:
      - { subnet: left, addresses: [10.22.1.5, '2001:db8:22:1::5'], security_groups: [fw], source_dest_check: false }
      - { subnet: right, addresses: [10.22.2.5, '2001:db8:22:2::5'], security_groups: [fw], source_dest_check: false }
    run: >-
      echo 1 > /proc/sys/net/ipv4/ip_forward &&
      echo 1 > /proc/sys/net/ipv6/conf/all/forwarding &&
      echo forwarding
";

/// Brings that lab up and waits until the appliance forwards.
pub fn up(text: &str) -> Lab {
    let lab = Lab::up(text);
    lab.event_where("output", |event| event["line"] == "forwarding");
    lab
}

fn text() -> String {
    THROUGH_APPLIANCE.replace("ERRORS", "")
}

#[test]
fn through_an_appliance_cidr_rules_match_and_group_references_do_not() {
    if !namespaces!() {
        return;
    }
    let lab = up(&text());
    for address in [right(8001), right6(8001)] {
        let mut session = Session::open(&lab, "left", "right", address);
        session.still_talks();
    }
    // It was the appliance that forwarded: both of its interfaces saw it.
    let status = lab.status();
    for interface in ["fw/eth0", "fw/eth1"] {
        let interface = at(&status, interface);
        assert!(interface["packets_in"].as_u64() > Some(3), "{interface}");
        assert!(interface["packets_out"].as_u64() > Some(3), "{interface}");
    }

    // `left` is in the referenced group, but what comes is no longer its own.
    let _servers = lab.inside("right", || Servers::start("right", &[8002], &[]));
    let refused = lab.inside("left", || tcp(right(0).ip(), 8002, MOMENT));
    assert_eq!(refused, Seen::Silent);
    assert!(lab.drops("right", "no_ingress_rule") > 0);
    let (code, text) = lab.explain("left --to right --protocol tcp --port 8002");
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("whose groups don't count: fw/eth1 forwards it"),
        "{text}"
    );
    assert!(!text.contains("sg/left or"), "that wouldn't help: {text}");
    let (code, text) = lab.explain("left --to right --protocol tcp --port 8001");
    assert_eq!(code, Some(0), "{text}");

    // In its own subnet nothing can be put in between, and there it matches.
    let _servers = lab.inside("near", || Servers::start("near", &[8002], &[]));
    let near = lab.inside("left", || tcp([10, 22, 1, 11].into(), 8002, PATIENCE));
    assert_eq!(near, Seen::Reached("near".into()));
    lab.down();
}

#[test]
fn with_its_source_destination_check_on_an_appliance_gets_and_sends_nothing_for_others() {
    if !namespaces!() {
        return;
    }
    // It gets nothing that is for others …
    let checked = text().replacen("source_dest_check: false", "source_dest_check: true", 1);
    let lab = up(&checked);
    let refused = lab.inside("left", || tcp(right(0).ip(), 8001, MOMENT));
    assert_eq!(refused, Seen::Silent);
    assert!(lab.drops("fw/eth0", "destination_check") > 0);
    lab.down();

    // … and sends nothing from others' addresses.
    let text = text();
    let (head, tail) = text.rsplit_once("source_dest_check: false").unwrap();
    let lab = up(&format!("{head}source_dest_check: true{tail}"));
    let refused = lab.inside("left", || tcp(right(0).ip(), 8001, MOMENT));
    assert_eq!(refused, Seen::Silent);
    assert!(lab.drops("fw/eth1", "source_check") > 0);
    assert_eq!(lab.drops("fw/eth0", "destination_check"), 0);
    lab.down();
}

#[test]
fn the_vpcs_router_leaves_the_ttl_alone_and_an_appliance_lowers_it() {
    if !namespaces!() {
        return;
    }
    // `aside` is in a subnet of its own without routes but the local ones.
    let text = text()
        .replace("subnets:\n", "subnets:\n  aside: { cidr: [10.22.3.0/24] }\n")
        .replace(
            "entities:\n",
            "entities:\n  aside: { kind: ec2, subnet: aside, addresses: [10.22.3.10], security_groups: [right] }\n",
        );
    let lab = up(&text);
    for (to, address, expected) in [
        ("right", [10, 22, 2, 10], 41),
        ("aside", [10, 22, 3, 10], 42),
        ("near", [10, 22, 1, 11], 42),
    ] {
        // The receiver's raw socket sees the request with its IP header.
        let ear = lab.inside(to, || wire::raw(address.into(), SockProtocol::Icmp));
        let pinger = lab.inside("left", || Pinger::new(address.into())).unwrap();
        setsockopt(pinger.socket(), sockopt::Ipv4Ttl, &42).unwrap();
        pinger.ping(PATIENCE).unwrap();
        let request = wire::hear(&ear, PATIENCE, |heard| heard.message().first() == Some(&8));
        let request = request.unwrap_or_else(|| panic!("{to} saw no echo request"));
        assert_eq!(request.packet[8], expected, "TTL at {to}");
    }
    lab.down();
}

fn right(port: u16) -> SocketAddr {
    (IpAddr::from([10, 22, 2, 10]), port).into()
}

fn right6(port: u16) -> SocketAddr {
    let address: IpAddr = "2001:db8:22:2::10".parse().unwrap();
    (address, port).into()
}
