//! What labs promise about networks, entities and their addresses.

use std::net::IpAddr;
use std::time::Duration;

use super::*;
use crate::model::{Attachment, EntityKind, GATEWAY_MTU, IcmpErrors, LoadBalancer, Via};

#[test]
fn addresses_left_out_are_given_past_the_reserved_and_the_taken() {
    let loaded = valid(
        "entities:
  a: { kind: ec2, subnet: app }
  b: { kind: ec2, subnet: app, addresses: [10.0.1.5] }
  c: { kind: ec2, subnet: app }
",
    );
    assert_eq!(addresses(&loaded, "a"), ["10.0.1.4"]);
    assert_eq!(addresses(&loaded, "c"), ["10.0.1.6"]);
}

#[test]
fn a_full_subnet_is_an_error_at_the_entity_that_finds_it_full() {
    let entities: String = (0..12)
        .map(|i| format!("  e{i}: {{ kind: ec2, subnet: app }}\n"))
        .collect();
    only(
        &refused(&format!("entities:\n{entities}")),
        &["16:3 e11", "no address is left in `10.0.1.0/28`"],
    );
}

#[test]
fn written_addresses_are_held_to_the_subnet() {
    let entity = |address: &str| {
        refused(&format!(
            "entities: {{ a: {{ kind: ec2, subnet: app, addresses: [{address}] }} }}\n"
        ))
    };
    only(
        &entity("10.0.2.9"),
        &["10.0.2.9", "not in subnet `app`", "10.0.1.0/28"],
    );
    only(&entity("10.0.1.15"), &["reserved", "`10.0.1.4`"]);
    only(&entity("10.0.1.3"), &["reserved"]);
    only(
        &entity("10.0.1.9/28"),
        &["no IP address", "write `10.0.1.9`"],
    );
    only(&entity("127.0.0.1"), &["no address that a host may have"]);
    only(&entity(""), &["empty list"]);
}

#[test]
fn public_addresses_pair_with_ipv4_by_position() {
    let loaded = valid(
        "entities:
  a: { kind: ec2, subnet: app, addresses: [10.0.1.7, 10.0.1.8], public_addresses: [203.0.113.1] }
",
    );
    let interface = &loaded.model.interfaces[0];
    assert_eq!(interface.addresses[0].public, "203.0.113.1".parse().ok());
    assert_eq!(interface.addresses[1].public, None);
    let entity = |public: &str| {
        refused(&format!(
            "entities: {{ a: {{ kind: ec2, subnet: app, public_addresses: [{public}] }} }}\n"
        ))
    };
    only(
        &entity("203.0.113.1, 203.0.113.2"),
        &["203.0.113.2", "paired by position"],
    );
    only(&entity("10.0.9.9"), &["outside the VPC"]);
    only(&entity("\"2001:db8::1\""), &["is an IPv6 address"]);
}

#[test]
fn external_hosts_have_a_gateway_and_no_groups() {
    let loaded = valid("entities: { a: { kind: external, via: vgw, addresses: 192.168.7.20 } }\n");
    let interface = &loaded.model.interfaces[0];
    assert_eq!(interface.attachment, Attachment::External(Via::Vgw));
    assert_eq!(
        loaded.model.entities[0].kind,
        EntityKind::External(Via::Vgw)
    );
    let entity = |rest: &str| {
        refused(&format!(
            "entities: {{ a: {{ kind: external, {rest} }} }}\n"
        ))
    };
    only(&entity("addresses: [192.168.7.20]"), &["no `via`"]);
    only(&entity("via: igw"), &["no `addresses`"]);
    only(
        &entity("via: nat, addresses: [192.168.7.20]"),
        &["no gateway `nat`"],
    );
    only(
        &entity("via: igw, addresses: [10.0.1.5]"),
        &["outside the VPC"],
    );
    only(
        &entity("via: igw, addresses: [192.0.2.1], security_groups: [default]"),
        &["takes no `security_groups`"],
    );
}

#[test]
fn several_interfaces_are_numbered_in_order() {
    let loaded = valid(
        "entities:
  a:
    kind: ec2
    interfaces:
      - { subnet: app, mtu: 1500, tracking: { tcp_established: 350s, udp_timeout: 45 } }
      - { subnet: app, id: eni-0123456789abcdef0, source_dest_check: false }
",
    );
    let [first, second] = &loaded.model.interfaces[..] else {
        panic!()
    };
    assert_eq!(
        (first.device, first.mtu, first.source_dest_check),
        (0, 1500, true)
    );
    assert_eq!(first.id, derive_id("eni", &["a", "eth0"]));
    assert_eq!(first.tracking.tcp_established, Duration::from_secs(350));
    assert_eq!(first.tracking.udp_timeout, Duration::from_secs(45));
    assert_eq!(first.tracking.udp_stream, Duration::from_secs(180));
    assert_eq!(
        (second.device, second.mtu, second.source_dest_check),
        (1, 9001, false)
    );
    assert_eq!(second.id, "eni-0123456789abcdef0");
    only(
        &refused("entities: { a: { kind: ec2, mtu: 1500, interfaces: [ { subnet: app } ] } }\n"),
        &["both `interfaces` and `mtu`"],
    );
}

#[test]
fn timeouts_have_awss_ranges_and_defaults() {
    let tracking = |rest: &str| {
        let text = format!("entities: {{ a: {{ kind: ec2, subnet: app, {rest} }} }}\n");
        valid(&text).model.interfaces[0].tracking
    };
    let seconds = Duration::from_secs;
    assert_eq!(tracking("").tcp_established, seconds(432_000));
    assert_eq!(tracking("nitro_v6: true").tcp_established, seconds(350));
    assert_eq!(
        tracking("nitro_v6: false").tcp_established,
        seconds(432_000)
    );
    let explicit = tracking("nitro_v6: true, tracking: { tcp_established: 60, udp_stream: 60s }");
    assert_eq!(explicit.tcp_established, seconds(60));
    assert_eq!(explicit.udp_stream, seconds(60));
    assert_eq!(explicit.udp_timeout, seconds(30));
    let kept = tracking("nitro_v6: true, tracking: { udp_timeout: 60 }");
    assert_eq!(kept.tcp_established, seconds(350));
    for (key, value, range) in [
        ("tcp_established", "59", "from 60 to 432000"),
        ("tcp_established", "432001s", "from 60 to 432000"),
        ("udp_timeout", "29", "from 30 to 60"),
        ("udp_timeout", "61", "from 30 to 60"),
        ("udp_stream", "59s", "from 60 to 180"),
        ("udp_stream", "181", "from 60 to 180"),
    ] {
        let found = refused(&format!(
            "entities: {{ a: {{ kind: ec2, subnet: app, tracking: {{ {key}: {value} }} }} }}\n"
        ));
        only(&found, &[value, key, range]);
    }
}

#[test]
fn an_entity_of_several_interfaces_passes_its_generation_on() {
    let loaded = valid(
        "entities:
  a:
    kind: ec2
    nitro_v6: true
    tracking: { max_flows: 7 }
    interfaces: [ { subnet: app }, { subnet: app, tracking: { tcp_established: 90 } } ]
",
    );
    let timeouts: Vec<u64> = loaded
        .model
        .interfaces
        .iter()
        .map(|interface| interface.tracking.tcp_established.as_secs())
        .collect();
    assert_eq!(timeouts, [350, 90]);
    assert_eq!(loaded.model.entities[0].max_flows, Some(7));
}

#[test]
fn the_allowance_is_the_whole_entitys() {
    let loaded = valid(
        "entities: { a: { kind: ec2, subnet: app, tracking: { max_flows: 1 } }, b: { kind: ec2, subnet: app } }\n",
    );
    let allowances: Vec<Option<u32>> = loaded
        .model
        .entities
        .iter()
        .map(|entity| entity.max_flows)
        .collect();
    assert_eq!(allowances, [Some(1), None]);
    let entity = |rest: &str| refused(&format!("entities: {{ a: {{ kind: ec2, {rest} }} }}\n"));
    only(
        &entity("subnet: app, tracking: { max_flows: 0 }"),
        &["`max_flows` must be from 1", "number from 1"],
    );
    only(
        &entity("interfaces: [ { subnet: app, tracking: { max_flows: 1 } } ]"),
        &[
            "4:70 max_flows",
            "allowance of an entity",
            "beside `interfaces`",
        ],
    );
    only(
        &entity("tracking: { udp_stream: 90 }, interfaces: [ { subnet: app } ]"),
        &[
            "both `interfaces` and a `udp_stream`",
            "entries of `interfaces`",
        ],
    );
    only(
        &entity("tracking: { max_flow: 1 }, interfaces: [ { subnet: app } ]"),
        &["no key `max_flow`", "did you mean `max_flows`?"],
    );
}

#[test]
fn load_balancers_are_of_a_type() {
    let kind = |rest: &str| {
        let text = format!("entities: {{ a: {{ kind: elb, subnet: app, {rest} }} }}\n");
        valid(&text).model.entities[0].kind
    };
    assert_eq!(kind(""), EntityKind::Elb(LoadBalancer::Application));
    assert_eq!(
        kind("type: application"),
        EntityKind::Elb(LoadBalancer::Application)
    );
    assert_eq!(
        kind("type: network"),
        EntityKind::Elb(LoadBalancer::Network)
    );
    let entity = |rest: &str| refused(&format!("entities: {{ a: {{ subnet: app, {rest} }} }}\n"));
    only(
        &entity("kind: elb, type: netwrok"),
        &["no type `netwrok`", "did you mean `network`?"],
    );
    only(
        &entity("kind: elb, type: gateway"),
        &["no type `gateway`", "no security groups"],
    );
    only(
        &entity("kind: ec2, type: network"),
        &["only `elb` has a `type`", "`kind: elb`"],
    );
}

#[test]
fn hosts_outside_have_the_mtu_of_the_internet_and_no_tracking() {
    let host = |rest: &str| {
        format!("entities: {{ a: {{ kind: external, via: igw, addresses: 192.0.2.1, {rest} }} }}\n")
    };
    assert_eq!(valid(&host("")).model.interfaces[0].mtu, GATEWAY_MTU);
    assert_eq!(valid(&host("mtu: 9001")).model.interfaces[0].mtu, 9001);
    for key in ["tracking: {}", "nitro_v6: true", "type: network"] {
        let name = key.split(':').next().unwrap();
        only(
            &refused(&host(key)),
            &[&format!("takes no `{name}`"), "remove"],
        );
    }
}

#[test]
fn icmp_errors_need_a_rule_unless_the_vpc_says_otherwise() {
    let vpc = |rest: &str| load_str("l", &format!("vpc: {{ cidr: 10.0.0.0/16{rest} }}"));
    let errors = |rest: &str| vpc(rest).unwrap().model.vpc.icmp_errors;
    assert_eq!(errors(""), IcmpErrors::ByRule);
    assert_eq!(errors(", icmp_errors: rule"), IcmpErrors::ByRule);
    assert_eq!(errors(", icmp_errors: related"), IcmpErrors::Related);
    let wrong = |rest: &str| lines(vpc(rest).unwrap_err().iter());
    only(
        &wrong(", icmp_errors: relatd"),
        &["one of `rule` and `related`", "did you mean `related`?"],
    );
    only(
        &wrong(", icmp_errors: true"),
        &["one of", "AWS's newest text"],
    );
}

#[test]
fn entity_names_are_host_names() {
    let long = "x".repeat(64);
    for name in [
        "Web",
        "-a",
        "a-",
        "a_b",
        "a.b",
        "localhost",
        "eni-0123456789abcdef0",
        &long,
        "\"\"",
    ] {
        let found = refused(&format!(
            "entities: {{ {name}: {{ kind: ec2, subnet: app }} }}\n"
        ));
        only(&found, &["can't be the name of an entity"]);
    }
}

#[test]
fn entities_are_held_to_their_kind() {
    let entity = |rest: &str| refused(&format!("entities: {{ a: {{ {rest} }} }}\n"));
    only(&entity("subnet: app"), &["no `kind`"]);
    only(&entity("kind: ec2"), &["no `subnet`", "subnet: app"]);
    only(
        &entity("kind: ec2, subnet: ap"),
        &["no subnet `ap`", "did you mean `app`?"],
    );
    only(
        &entity("kind: ec2, subnet: app, engine: x"),
        &["only `rds`"],
    );
    only(
        &entity("kind: ec2, subnet: app, via: igw"),
        &["takes no `via`"],
    );
    only(
        &entity("kind: ec2, subnet: app, security_groups: []"),
        &["empty list", "at least one"],
    );
    only(
        &entity("kind: ec2, subnet: app, security_groups: [default, default]"),
        &["twice"],
    );
    only(
        &entity("kind: ec2, subnet: app, security_groups: [defualt]"),
        &["did you mean `default`?"],
    );
    only(
        &entity("kind: ec2, subnet: app, mtu: 1279"),
        &["from 1280 to 9001"],
    );
    only(
        &entity("kind: ec2, subnet: app, source_dest_check: no"),
        &["expected true or false"],
    );
    only(
        &entity("kind: ec2, subnet: app, tracking: { udp_timeout: 61s }"),
        &["from 30 to 60"],
    );
    only(
        &entity("kind: ec2, subnet: app, run: [a]"),
        &["expected a string, found a list"],
    );
    only(&entity("kind: ec2, interfaces: []"), &["no interface"]);
}

#[test]
fn networks_are_held_to_the_vpc() {
    let lab = |text: &str| lines(load_str("lab.yaml", text).unwrap_err().iter());
    only(&lab("subnets: {}"), &["no `vpc`"]);
    only(&lab("vpc: {}"), &["no `cidr`"]);
    only(&lab("vpc: { cidr: 10.0.0.0/8 }"), &["from /16 to /28"]);
    only(&lab("vpc: { cidr: 127.0.0.0/16 }"), &["loopback"]);
    only(
        &lab("vpc: { cidr: [10.0.0.0/16, 10.0.9.0/24] }"),
        &["overlaps"],
    );
    only(
        &refused("  b: { cidr: 10.0.1.8/29 }\n"),
        &["from /16 to /28"],
    );
    only(
        &refused("  b: { cidr: 10.0.0.0/23 }\n"),
        &["overlaps `10.0.1.0/28`"],
    );
    only(
        &refused("  b: { cidr: [10.0.2.0/24, 10.0.3.0/24] }\n"),
        &["two IPv4 blocks"],
    );
}

#[test]
fn addresses_of_both_families_are_given_in_file_order() {
    let text = "vpc: { cidr: [10.0.0.0/16, 2001:db8::/56] }
subnets: { a: { cidr: [2001:db8::/64, 10.0.0.0/24] } }
entities: { x: { kind: ec2, subnet: a } }";
    let loaded = load_str("l", text).unwrap();
    assert_eq!(addresses(&loaded, "x"), ["2001:db8::4", "10.0.0.4"]);
    let like: IpAddr = "10.0.0.9".parse().unwrap();
    assert!(loaded.model.interfaces[0].address_like(like).is_some());
}

fn addresses(loaded: &Loaded, entity: &str) -> Vec<String> {
    let (ix, _) = loaded.model.entity(entity).unwrap();
    let interfaces = loaded.model.interfaces_of(ix);
    interfaces
        .flat_map(|(_, interface)| &interface.addresses)
        .map(|address| address.private.to_string())
        .collect()
}
