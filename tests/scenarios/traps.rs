//! The traps that most people who use security groups and network ACLs meet
//! sooner or later, on real packets: what happens, what is counted, and what
//! `explain` says to it. Those that take time are in `idle.rs`, those about
//! large packets in `mtu.rs`, those about appliances in `appliance.rs`.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;

use nix::sys::socket::{setsockopt, sockopt};
use sgwall::model::protocol;
use sgwall::packet::{self, Transport};

use crate::net::{MOMENT, Seen, Servers, raw_ipv4, send_raw, tcp, udp};
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, at, program, wait_until, words};

#[test]
fn an_acl_that_lets_443_in_but_no_ephemeral_ports_out_drops_the_replies() {
    if !namespaces!() {
        return;
    }
    let text = "
vpc: { cidr: [10.30.0.0/16] }
subnets: { web: { cidr: [10.30.1.0/24], network_acl: web } }
network_acls:
  web:
    ingress: [ { rule: 100, action: allow, protocol: tcp, ports: 443, from: 0.0.0.0/0 } ]
    egress: [ { rule: 100, action: allow, protocol: tcp, ports: 443, to: 0.0.0.0/0 } ]
security_groups:
  web: { ingress: [ { protocol: tcp, ports: 443, from: 0.0.0.0/0 } ] }
entities:
  web: { kind: ec2, subnet: web, addresses: [10.30.1.10], public_addresses: [198.51.100.10], security_groups: [web] }
  client: { kind: external, via: igw, addresses: [203.0.113.7] }
";
    let lab = Lab::up(text);
    let _servers = lab.inside("web", || Servers::start("web", &[443], &[]));
    let from_client =
        |patience| lab.inside("client", || tcp([198, 51, 100, 10].into(), 443, patience));
    assert_eq!(from_client(MOMENT), Seen::Silent);
    let status = lab.status();
    // The requests arrived; it is the replies that the ACL drops.
    assert!(at(&status, "web")["packets_in"].as_u64() > Some(0));
    assert!(lab.drops("web", "network_acl_egress") > 0);
    let question = "client --to web --protocol tcp --port 443";
    let (code, words) = lab.explain(question);
    assert_eq!(code, Some(1));
    for said in [
        "it arrives, but the reply doesn't",
        "network acl out  web  no entry of acl/web covers",
        "missing: an egress entry in acl/web that allows tcp 1024-65535 to 203.0.113.7/32",
    ] {
        assert!(words.contains(said), "{said}: {words}");
    }

    // With the entry that it names the replies come.
    lab.save(&text.replace(
        "egress: [",
        "egress: [ { rule: 200, action: allow, protocol: tcp, ports: 1024-65535, to: 203.0.113.7/32 },",
    ));
    lab.event("reloaded");
    assert_eq!(from_client(PATIENCE), Seen::Reached("web".into()));
    assert_eq!(lab.explain(question).0, Some(0));
    lab.down();
}

#[test]
fn an_acl_deny_after_a_wide_allow_is_never_reached() {
    if !namespaces!() {
        return;
    }
    let text = "
vpc: { cidr: [10.31.0.0/16] }
subnets: { web: { cidr: [10.31.1.0/24] } }
network_acls:
  default:
    ingress:
      - { rule: 100, action: allow, protocol: all, from: 0.0.0.0/0 }
      - { rule: 200, action: deny, protocol: all, from: 203.0.113.66/32 }
    egress: [ { rule: 100, action: allow, protocol: all, to: 0.0.0.0/0 } ]
security_groups:
  web: { ingress: [ { protocol: tcp, ports: 80, from: 0.0.0.0/0 } ] }
entities:
  web: { kind: ec2, subnet: web, addresses: [10.31.1.10], public_addresses: [198.51.100.10], security_groups: [web] }
  banned: { kind: external, via: igw, addresses: [203.0.113.66] }
";
    let lab = Lab::up(text);
    let _servers = lab.inside("web", || Servers::start("web", &[80], &[]));
    let from_banned =
        |patience| lab.inside("banned", || tcp([198, 51, 100, 10].into(), 80, patience));
    assert_eq!(from_banned(PATIENCE), Seen::Reached("web".into()));
    let (code, words) = lab.explain("banned --to web --protocol tcp --port 80");
    assert_eq!(code, Some(0));
    assert!(
        words.contains("allowed by entry 100 of acl/default"),
        "{words}"
    );
    // Whoever wrote that is told.
    let check = Command::new(program())
        .arg("check")
        .arg(&lab.config)
        .output()
        .unwrap();
    let told = self::words(&check);
    assert!(told.contains("entry 200 is never reached"), "{told}");

    lab.save(&text.replace("rule: 200", "rule: 50"));
    lab.event("reloaded");
    assert_eq!(from_banned(MOMENT), Seen::Silent);
    assert!(lab.drops("web", "network_acl_ingress") > 0);
    let (code, words) = lab.explain("banned --to web --protocol tcp --port 80");
    assert_eq!(code, Some(1));
    assert!(
        words.contains("denied by entry 50 of acl/default"),
        "{words}"
    );
    lab.down();
}

#[test]
fn acls_are_not_asked_between_hosts_of_one_subnet() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(
        "
vpc: { cidr: [10.32.0.0/16, '2001:db8:32::/56'] }
subnets:
  app: { cidr: [10.32.1.0/24, '2001:db8:32:1::/64'], network_acl: shut }
  data: { cidr: [10.32.2.0/24, '2001:db8:32:2::/64'] }
network_acls: { shut: { ingress: [], egress: [] } }
security_groups:
  all: { ingress: [ { protocol: tcp, ports: 80, from: [0.0.0.0/0, '::/0'] } ] }
entities:
  one: { kind: ec2, subnet: app, addresses: [10.32.1.10, '2001:db8:32:1::10'], security_groups: [all] }
  two: { kind: ec2, subnet: app, addresses: [10.32.1.11, '2001:db8:32:1::11'], security_groups: [all] }
  far: { kind: ec2, subnet: data, addresses: [10.32.2.10, '2001:db8:32:2::10'], security_groups: [all] }
",
    );
    let _two = lab.inside("two", || Servers::start("two", &[80], &[]));
    let _far = lab.inside("far", || Servers::start("far", &[80], &[]));
    for (two, far) in [
        ("10.32.1.11", "10.32.2.10"),
        ("2001:db8:32:1::11", "2001:db8:32:2::10"),
    ] {
        let beside = lab.inside("one", || tcp(address(two), 80, PATIENCE));
        assert_eq!(beside, Seen::Reached("two".into()));
        let before = lab.drops("one", "network_acl_egress");
        let beyond = lab.inside("one", || tcp(address(far), 80, MOMENT));
        assert_eq!(beyond, Seen::Silent);
        assert!(lab.drops("one", "network_acl_egress") > before);
        let before = lab.drops("two", "network_acl_ingress");
        let back = lab.inside("far", || tcp(address(two), 80, MOMENT));
        assert_eq!(back, Seen::Silent);
        assert!(lab.drops("two", "network_acl_ingress") > before);
    }
    lab.down();
}

#[test]
fn a_group_reference_never_matches_a_public_address() {
    if !namespaces!() {
        return;
    }
    let text = "
vpc: { cidr: [10.33.0.0/16] }
subnets: { one: { cidr: [10.33.1.0/24] }, two: { cidr: [10.33.2.0/24] } }
security_groups:
  site: {}
  api: { ingress: [ { protocol: tcp, ports: 80, from: PEER } ] }
entities:
  site: { kind: ec2, subnet: one, addresses: [10.33.1.10], public_addresses: [198.51.100.1], security_groups: [site] }
  api: { kind: ec2, subnet: two, addresses: [10.33.2.10], public_addresses: [198.51.100.2], security_groups: [api] }
  outside: { kind: external, via: igw, addresses: [203.0.113.7] }
";
    let by_group = text.replace("PEER", "sg/site");
    let lab = Lab::up(&by_group);
    let _servers = lab.inside("api", || Servers::start("api", &[80], &[]));
    let from_site = |to: &str, patience| lab.inside("site", || tcp(address(to), 80, patience));
    assert_eq!(
        from_site("10.33.2.10", PATIENCE),
        Seen::Reached("api".into())
    );
    assert_eq!(from_site("198.51.100.2", MOMENT), Seen::Silent);
    assert!(lab.drops("api", "no_ingress_rule") > 0);
    let question = "site --to 198.51.100.2 --protocol tcp --port 80";
    let (code, words) = lab.explain(question);
    assert_eq!(code, Some(1));
    assert!(
        words.contains("no ingress rule allows tcp 80 from 198.51.100.1 (site)"),
        "{words}"
    );

    lab.save(&text.replace("PEER", "198.51.100.1/32"));
    lab.event("reloaded");
    assert_eq!(
        from_site("198.51.100.2", PATIENCE),
        Seen::Reached("api".into())
    );
    assert_eq!(lab.explain(question).0, Some(0));
    lab.down();
}

#[test]
fn two_members_of_a_group_cannot_talk_unless_a_rule_says_so() {
    if !namespaces!() {
        return;
    }
    let text = "
vpc: { cidr: [10.34.0.0/16] }
subnets: { all: { cidr: [10.34.1.0/24] } }
security_groups:
  nodes: { ingress: [ ] }
entities:
  one: { kind: ec2, subnet: all, addresses: [10.34.1.10], security_groups: [nodes] }
  two: { kind: ec2, subnet: all, addresses: [10.34.1.11], security_groups: [nodes] }
";
    let lab = Lab::up(text);
    let _servers = lab.inside("two", || Servers::start("two", &[80], &[]));
    let from_one = |patience| lab.inside("one", || tcp([10, 34, 1, 11].into(), 80, patience));
    assert_eq!(from_one(MOMENT), Seen::Silent);
    assert!(lab.drops("two", "no_ingress_rule") > 0);
    let (code, words) = lab.explain("one --to two --protocol tcp --port 80");
    assert_eq!(code, Some(1));
    assert!(
        words.contains("for tcp 80 from sg/nodes or 10.34.1.10/32"),
        "{words}"
    );

    lab.save(&text.replace("[ ]", "[ { protocol: tcp, ports: 80, from: sg/nodes } ]"));
    lab.event("reloaded");
    assert_eq!(from_one(PATIENCE), Seen::Reached("two".into()));
    lab.down();
}

#[test]
fn dns_dhcp_and_instance_metadata_cannot_be_blocked_so_no_rule_is_blamed() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(
        "
vpc: { cidr: [10.35.0.0/16, '2001:db8:35::/56'] }
subnets: { all: { cidr: [10.35.1.0/24, '2001:db8:35:1::/64'], network_acl: shut, route_table: none } }
network_acls: { shut: { ingress: [], egress: [] } }
route_tables: { none: [] }
security_groups: { shut: { egress: [] } }
entities:
  host: { kind: ec2, subnet: all, addresses: [10.35.1.10, '2001:db8:35:1::10'], security_groups: [shut] }
",
    );
    for (from, to, port) in [
        ("10.35.1.10", "10.35.0.2", 53),
        ("10.35.1.10", "169.254.169.253", 53),
        ("10.35.1.10", "169.254.169.254", 80),
        ("10.35.1.10", "169.254.169.123", 123),
        ("10.35.1.10", "169.254.170.2", 80),
        ("2001:db8:35:1::10", "fd00:ec2::253", 53),
        ("2001:db8:35:1::10", "fd00:ec2::254", 80),
    ] {
        let before = lab.drops("host", "no_service");
        let seen = lab.inside("host", || udp(address(from), address(to), port, MOMENT));
        assert_eq!(seen, Seen::Silent, "{to}");
        assert!(lab.drops("host", "no_service") > before, "{to}");
        let (code, words) = lab.explain(&format!("{from} --to {to} --protocol udp --port {port}"));
        assert_eq!(code, Some(1));
        assert!(
            words.contains("no rule filters it, and none answers here"),
            "{words}"
        );
    }
    let before = lab.drops("host", "no_service");
    lab.inside("host", || {
        let discover = build("0.0.0.0", "255.255.255.255", 68, 67);
        let socket = raw_ipv4();
        setsockopt(&socket, sockopt::Broadcast, &true).unwrap();
        send_raw(&socket, address("255.255.255.255"), &discover).unwrap();
    });
    wait_until("DHCP is for a service", || {
        lab.drops("host", "no_service") > before
    });
    let status = lab.status();
    assert_eq!(at(&status, "host")["packets_out"], 0);
    for reason in ["no_egress_rule", "network_acl_egress", "no_route"] {
        assert_eq!(lab.drops("host", reason), 0, "{status}");
    }
    lab.down();
}

#[test]
fn a_reply_that_leaves_by_another_interface_finds_no_flow_there() {
    if !namespaces!() {
        return;
    }
    let text = "
vpc: { cidr: [10.36.0.0/16] }
subnets: { one: { cidr: [10.36.1.0/24] }, two: { cidr: [10.36.2.0/24] } }
security_groups:
  asks: {}
  answers: { ingress: [ { protocol: udp, ports: 53, from: 10.36.0.0/16 } ], egress: [] }
entities:
  client: { kind: ec2, subnet: two, addresses: [10.36.2.10], security_groups: [asks] }
  server:
    kind: ec2
    interfaces:
      - { subnet: one, addresses: [10.36.1.5], security_groups: [answers] }
      - { subnet: two, addresses: [10.36.2.5], security_groups: [answers], source_dest_check: CHECK }
";
    for (check, reason) in [("true", "source_check"), ("false", "no_egress_rule")] {
        let lab = Lab::up(&text.replace("CHECK", check));
        let server = lab.inside("server", || UdpSocket::bind("10.36.1.5:53").unwrap());
        let client = lab.inside("client", || UdpSocket::bind("10.36.2.10:1000").unwrap());
        client.send_to(b"?", "10.36.1.5:53").unwrap();
        let mut buffer = [0; 16];
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, asker) = server.recv_from(&mut buffer).unwrap();
        // By the interface that is in the client's own subnet it is short, and
        // nothing was asked there.
        lab.inside("server", || {
            let short = raw_ipv4();
            setsockopt(&short, sockopt::BindToDevice, &"eth1".into()).unwrap();
            let reply = build("10.36.1.5", "10.36.2.10", 53, 1000);
            send_raw(&short, asker.ip(), &reply).unwrap();
        });
        client.set_read_timeout(Some(MOMENT)).unwrap();
        assert!(client.recv(&mut buffer).is_err());
        assert_eq!(lab.drops("server/eth1", reason), 1);
        // By the one that it came to, the same reply passes.
        server.send_to(b"!", asker).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 1);
        assert_eq!(lab.drops("server/eth0", "no_egress_rule"), 0);
        lab.down();
    }
}

#[test]
fn a_host_that_asks_its_own_public_address_needs_a_rule_for_that_address() {
    if !namespaces!() {
        return;
    }
    let text = "
vpc: { cidr: [10.37.0.0/16] }
subnets: { all: { cidr: [10.37.1.0/24] } }
security_groups:
  web: { ingress: [ { protocol: tcp, ports: 80, from: PEER } ] }
entities:
  web: { kind: ec2, subnet: all, addresses: [10.37.1.10], public_addresses: [198.51.100.10], security_groups: [web] }
  outside: { kind: external, via: igw, addresses: [203.0.113.7] }
";
    let lab = Lab::up(&text.replace("PEER", "sg/web"));
    let _servers = lab.inside("web", || Servers::start("web", &[80], &[]));
    let to_itself = |patience| lab.inside("web", || tcp([198, 51, 100, 10].into(), 80, patience));
    assert_eq!(to_itself(MOMENT), Seen::Silent);
    assert!(lab.drops("web", "no_ingress_rule") > 0);
    let question = "web --to 198.51.100.10 --protocol tcp --port 80";
    let (code, words) = lab.explain(question);
    assert_eq!(code, Some(1));
    assert!(
        words.contains("for tcp 80 from 198.51.100.10/32"),
        "{words}"
    );

    lab.save(&text.replace("PEER", "198.51.100.10/32"));
    lab.event("reloaded");
    assert_eq!(to_itself(PATIENCE), Seen::Reached("web".into()));
    assert_eq!(lab.explain(question).0, Some(0));
    lab.down();
}

#[test]
fn what_a_host_says_to_itself_meets_no_group() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(
        "
vpc: { cidr: [10.38.0.0/16] }
subnets: { all: { cidr: [10.38.1.0/24] } }
security_groups: { shut: { egress: [] } }
entities:
  task: { kind: ecs, subnet: all, addresses: [10.38.1.10], security_groups: [shut] }
",
    );
    let _servers = lab.inside("task", || Servers::start("task", &[80], &[]));
    for own in ["127.0.0.1", "10.38.1.10"] {
        let own: SocketAddr = (address(own), 80).into();
        let seen = lab.inside("task", || tcp(own.ip(), own.port(), PATIENCE));
        assert_eq!(seen, Seen::Reached("task".into()));
    }
    let status = lab.status();
    assert_eq!(lab.drops("task", "no_egress_rule"), 0, "{status}");
    assert_eq!(at(&status, "task")["packets_out"], 0);
    lab.down();
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A datagram with an IP header of its own.
fn build(from: &str, to: &str, source: u16, destination: u16) -> Vec<u8> {
    let transport = Transport::Udp {
        source,
        destination,
    };
    packet::build(address(from), address(to), protocol::UDP, transport, b"!").unwrap()
}
