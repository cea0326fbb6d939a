//! What labs promise about network ACLs.

use super::*;
use crate::model::{ACL_DENY_REST, AclAction, NetworkAcl};

fn acl<'a>(loaded: &'a Loaded, name: &str) -> &'a NetworkAcl {
    let acls = &loaded.model.network_acls;
    acls.iter().find(|acl| acl.name == name).unwrap()
}

/// The subnet's ACL, by name.
fn of_subnet<'a>(loaded: &'a Loaded, subnet: &str) -> &'a str {
    let subnets = &loaded.model.subnets;
    let subnet = subnets.iter().find(|found| found.name == subnet).unwrap();
    &loaded.model.network_acls[subnet.network_acl.ix()].name
}

/// An ACL with these ingress entries and an empty egress list.
fn with(entries: &str) -> String {
    format!("network_acls: {{ x: {{ egress: [], ingress: [ {entries} ] }} }}\n")
}

#[test]
fn a_subnet_has_the_acl_that_it_names_and_else_the_default_one() {
    let loaded = valid(
        "  b: { cidr: 10.0.2.0/24, network_acl: data }
  c: { cidr: 10.0.3.0/24, network_acl: acl-0123456789abcdef0 }
  d: { cidr: 10.0.4.0/24, network_acl: default }
network_acls:
  data: { ingress: [], egress: [] }
  web: { id: acl-0123456789abcdef0, ingress: [], egress: [] }
",
    );
    assert_eq!(of_subnet(&loaded, "app"), "default");
    assert_eq!(of_subnet(&loaded, "b"), "data");
    assert_eq!(of_subnet(&loaded, "c"), "web");
    assert_eq!(of_subnet(&loaded, "d"), "default");
    assert_eq!(acl(&loaded, "data").id, derive_id("acl", &["data"]));
    let default = acl(&loaded, "default");
    assert!(default.place.is_implied());
    assert_eq!((default.ingress.len(), default.egress.len()), (1, 1));
    only(
        &refused(
            "  b: { cidr: 10.0.2.0/24, network_acl: dta }\nnetwork_acls: { data: { ingress: [], egress: [] } }\n",
        ),
        &["4:40 dta", "no network ACL `dta`", "did you mean `data`?"],
    );
    only(
        &refused("  b: { cidr: 10.0.2.0/24, network_acl: acl-0123456789abcdef0 }\n"),
        &["no network ACL", "`network_acls`"],
    );
}

#[test]
fn a_vpc_with_ipv6_has_entry_101_in_its_default_acl() {
    let loaded = load_str("l", "vpc: { cidr: [10.0.0.0/16, 2001:db8::/56] }").unwrap();
    let numbers: Vec<(u16, String)> = acl(&loaded, "default")
        .ingress
        .iter()
        .map(|entry| (entry.number, entry.cidr.to_string()))
        .collect();
    let expected = [(100, "0.0.0.0/0".to_owned()), (101, "::/0".to_owned())];
    assert_eq!(numbers, expected);
}

#[test]
fn a_declared_default_acl_takes_the_place_of_awss() {
    let loaded = valid(
        "network_acls: { default: { egress: [], ingress: [ { rule: 1, action: deny, protocol: all, from: 0.0.0.0/0 } ] } }\n",
    );
    assert_eq!(loaded.model.network_acls.len(), 1);
    assert_eq!(of_subnet(&loaded, "app"), "default");
    let default = acl(&loaded, "default");
    assert_eq!(default.ingress[0].action, AclAction::Deny);
    assert!(default.egress.is_empty());
}

#[test]
fn a_direction_that_is_left_out_denies_all_with_a_warning() {
    for (text, words) in [
        (
            "{ ingress: [] }",
            ["no `egress`", "leaves its subnets", "`egress: []`"],
        ),
        (
            "{ egress: [] }",
            ["no `ingress`", "enters its subnets", "`ingress: []`"],
        ),
    ] {
        let loaded = valid(&format!("network_acls: {{ x: {text} }}\n"));
        only(&lines(&loaded.warnings), &words);
        let acl = acl(&loaded, "x");
        assert!(acl.ingress.is_empty() && acl.egress.is_empty());
    }
    let loaded = valid("network_acls: { x: { ingress: , egress: [] } }\n");
    assert!(loaded.warnings.is_empty());
}

#[test]
fn entries_stand_in_the_order_of_their_numbers() {
    let loaded = valid(
        "network_acls:
  x:
    ingress:
      - { rule: 200, action: deny, protocol: \"6\", ports: 22, from: 10.0.0.0/8 }
      - { rule: 32766, action: allow, protocol: -1, from: \"::/0\" }
      - { rule: 1, action: allow, protocol: udp, ports: 53-54, from: 10.0.1.0/28 }
    egress:
      - { rule: 1, action: allow, protocol: 47, to: 192.0.2.0/24 }
",
    );
    let entries: Vec<(u16, AclAction, Traffic, String, u32)> = acl(&loaded, "x")
        .ingress
        .iter()
        .map(|entry| {
            (
                entry.number,
                entry.action,
                entry.traffic,
                entry.cidr.to_string(),
                entry.place.line,
            )
        })
        .collect();
    let ports = |from, to| PortRange { from, to };
    assert_eq!(
        entries,
        [
            (
                1,
                AclAction::Allow,
                Traffic::Udp(ports(53, 54)),
                "10.0.1.0/28".into(),
                9
            ),
            (
                200,
                AclAction::Deny,
                Traffic::Tcp(ports(22, 22)),
                "10.0.0.0/8".into(),
                7
            ),
            (32766, AclAction::Allow, Traffic::All, "::/0".into(), 8),
        ]
    );
    assert_eq!(acl(&loaded, "x").egress[0].traffic, Traffic::Other(47));
    assert!(loaded.warnings.is_empty());
}

#[test]
fn icmp_says_what_aws_requires_of_it() {
    let loaded = valid(&with(
        "{ rule: 1, action: allow, protocol: icmp, type: 8, from: 0.0.0.0/0 },
         { rule: 2, action: allow, protocol: icmp, type: 3, code: 4, from: 0.0.0.0/0 },
         { rule: 3, action: allow, protocol: 58, type: 128, code: -1, from: \"::/0\" },
         { rule: 4, action: allow, protocol: icmpv6, type: -1, code: -1, from: \"::/0\" }",
    ));
    let traffic: Vec<Traffic> = acl(&loaded, "x")
        .ingress
        .iter()
        .map(|entry| entry.traffic)
        .collect();
    assert_eq!(
        traffic,
        [
            Traffic::Icmp(IcmpMatch::Type(8)),
            Traffic::Icmp(IcmpMatch::TypeAndCode(3, 4)),
            Traffic::Icmpv6(IcmpMatch::Type(128)),
            Traffic::Icmpv6(IcmpMatch::Any),
        ]
    );
    assert!(loaded.warnings.is_empty());
    for (entry, words) in [
        (
            "protocol: icmp, from: 0.0.0.0/0",
            ["no `type`", "`type: 8`"],
        ),
        (
            "protocol: icmpv6, from: \"::/0\"",
            ["no `type`", "`type: 128, code: -1`"],
        ),
        (
            "protocol: icmpv6, type: 128, from: \"::/0\"",
            ["no `code`", "`code: -1`"],
        ),
        (
            "protocol: icmpv6, code: 0, from: \"::/0\"",
            ["no `type`", "`type: 128`"],
        ),
    ] {
        let entry = format!("{{ rule: 1, action: allow, {entry} }}");
        only(&refused(&with(&entry)), &words);
    }
}

#[test]
fn entries_that_aws_refuses_are_refused_with_a_remedy() {
    let rest = "action: allow, protocol: all, from: 0.0.0.0/0";
    let rest_number = ACL_DENY_REST.to_string();
    let star = format!("rule: {rest_number}, {rest}");
    for (entry, words) in [
        (rest.to_owned(), ["no `rule`", "`rule: 100`"]),
        (format!("rule: 0, {rest}"), ["from 1 to 32766", "32766"]),
        (format!("rule: 40000, {rest}"), ["from 1 to 32766", "32766"]),
        (format!("rule: \"*\", {rest}"), ["AWS's own", "remove"]),
        (star, ["AWS's own", "remove"]),
        (
            "rule: 1, protocol: all, from: 0.0.0.0/0".to_owned(),
            ["no `action`", "`action: deny`"],
        ),
        (
            "rule: 1, action: alow, protocol: all, from: 0.0.0.0/0".to_owned(),
            ["no action `alow`", "`allow`"],
        ),
        (
            "rule: 1, action: drop, protocol: all, from: 0.0.0.0/0".to_owned(),
            ["no action `drop`", "`action: deny`"],
        ),
        (
            "rule: 1, action: deny, from: 0.0.0.0/0".to_owned(),
            ["entry has no `protocol`", "protocol: tcp"],
        ),
        (
            "rule: 1, action: deny, protocol: tcp, from: 0.0.0.0/0".to_owned(),
            ["tcp entry has no `ports`", "0-65535"],
        ),
        (
            "rule: 1, action: deny, protocol: udp, ports: [1, 2], from: 0.0.0.0/0".to_owned(),
            ["found a list", "an entry for each"],
        ),
        (
            "rule: 1, action: deny, protocol: tcp, ports: 1, type: 8, from: 0.0.0.0/0".to_owned(),
            ["no `type`", "remove `type`"],
        ),
        (
            "rule: 1, action: deny, protocol: icmp, ports: 1, type: 8, from: 0.0.0.0/0".to_owned(),
            ["icmp has no ports", "remove `ports`"],
        ),
        (
            "rule: 1, action: deny, protocol: all".to_owned(),
            ["no `from`", "10.0.1.0/24"],
        ),
        (
            "rule: 1, action: deny, protocol: all, to: 0.0.0.0/0".to_owned(),
            ["takes `from`, not `to`", "`egress`"],
        ),
        (
            "rule: 1, action: deny, protocol: all, from: [10.0.0.0/8, 0.0.0.0/0]".to_owned(),
            ["one block", "number of its own"],
        ),
        (
            "rule: 1, action: deny, protocol: all, from: sg/web".to_owned(),
            ["knows no security groups", "their subnet"],
        ),
        (
            "rule: 1, action: deny, protocol: all, from: sg-0123456789abcdef0".to_owned(),
            ["knows no security groups", "their subnet"],
        ),
        (
            "rule: 1, action: deny, protocol: all, from: pl/office".to_owned(),
            ["knows no prefix lists", "block"],
        ),
        (
            "rule: 1, action: deny, protocol: all, from: 10.0.1.5".to_owned(),
            ["no CIDR block", "`10.0.1.5/32`"],
        ),
        (
            "rule: 1, action: deny, protocol: all, from: 0.0.0.0/0, description: x".to_owned(),
            ["no key `description`", "keys of"],
        ),
    ] {
        only(&refused(&with(&format!("{{ {entry} }}"))), &words);
    }
    for (text, words) in [
        ("x: 1", ["expected a mapping", "key: value"]),
        (
            "x: { ingress: 1, egress: [] }",
            ["expected a list", "rule: 100"],
        ),
        (
            "acl-x: { ingress: [], egress: [] }",
            ["looks like an id", "acl-"],
        ),
        (
            "x: { id: acl-1, ingress: [], egress: [] }",
            ["no id of", "8 or 17"],
        ),
    ] {
        only(&refused(&format!("network_acls: {{ {text} }}\n")), &words);
    }
}

#[test]
fn a_number_is_given_once_in_each_direction() {
    let found = refused(
        "network_acls:
  x:
    ingress:
      - { rule: 100, action: allow, protocol: tcp, ports: 22, from: 10.0.0.0/8 }
      - { rule: 100, action: deny, protocol: tcp, ports: 23, from: 10.0.0.0/8 }
    egress:
      - { rule: 100, action: allow, protocol: all, to: 0.0.0.0/0 }
",
    );
    only(&found, &["8:17 100", "two entries number 100"]);
}

#[test]
fn what_aws_ignores_or_rewrites_in_an_entry_is_a_warning() {
    for (entry, words) in [
        (
            "protocol: all, ports: 443, from: 0.0.0.0/0",
            ["`ports` is ignored", "remove `ports`"],
        ),
        (
            "protocol: 47, type: 1, from: 0.0.0.0/0",
            ["`type` is ignored", "remove `type`"],
        ),
        (
            "protocol: icmp, type: -1, code: 2, from: 0.0.0.0/0",
            ["`code` is ignored", "remove `code`"],
        ),
        (
            "protocol: icmp, type: 8, from: \"::/0\"",
            ["entry never matches", "`protocol: icmpv6`"],
        ),
        (
            "protocol: icmpv6, from: 0.0.0.0/0",
            ["entry never matches", "`protocol: icmp`"],
        ),
        (
            "protocol: 43, from: \"::/0\"",
            [
                "entry never matches an IPv6 packet",
                "that follows the header",
            ],
        ),
        (
            "protocol: all, from: 10.0.0.7/16",
            ["stored as `10.0.0.0/16`", "write"],
        ),
    ] {
        let entry = format!("{{ rule: 1, action: allow, {entry} }}");
        only(&lines(&valid(&with(&entry)).warnings), &words);
    }
    let loaded = valid(&with(
        "{ rule: 1, action: allow, protocol: 58, type: 128, code: 0, from: 0.0.0.0/0 }",
    ));
    let traffic = acl(&loaded, "x").ingress[0].traffic;
    assert_eq!(traffic, Traffic::Icmpv6(IcmpMatch::Any));
    let found = lines(&loaded.warnings);
    assert_eq!(found.len(), 3, "{found:#?}");
}

#[test]
fn an_entry_behind_one_that_covers_it_is_pointed_out() {
    let pair = |first: &str, second: &str| {
        let loaded = valid(&with(&format!(
            "{{ rule: 20, {second} }}, {{ rule: 10, {first} }}"
        )));
        lines(&loaded.warnings)
    };
    only(
        &pair(
            "action: allow, protocol: all, from: 0.0.0.0/0",
            "action: deny, protocol: tcp, ports: 22, from: 198.51.100.0/24",
        ),
        &[
            "4:53 20",
            "entry 20 is never reached",
            "entry 10 comes first",
            "what it denies is allowed",
            "below 10",
        ],
    );
    only(
        &pair(
            "action: deny, protocol: tcp, ports: 0-1023, from: 10.0.0.0/8",
            "action: allow, protocol: tcp, ports: 22, from: 10.0.0.0/16",
        ),
        &["what it allows is denied"],
    );
    only(
        &pair(
            "action: allow, protocol: icmp, type: 3, from: 10.0.0.0/8",
            "action: allow, protocol: icmp, type: 3, code: 4, from: 10.0.0.0/8",
        ),
        &["never reached", "remove it"],
    );
    for (first, second) in [
        (
            "action: allow, protocol: all, from: 0.0.0.0/0",
            "action: deny, protocol: all, from: \"::/0\"",
        ),
        (
            "action: allow, protocol: tcp, ports: 0-1023, from: 10.0.0.0/8",
            "action: deny, protocol: tcp, ports: 1000-1024, from: 10.0.0.0/8",
        ),
        (
            "action: allow, protocol: tcp, ports: 22, from: 10.0.0.0/16",
            "action: deny, protocol: tcp, ports: 22, from: 10.0.0.0/8",
        ),
        (
            "action: allow, protocol: tcp, ports: 22, from: 10.0.0.0/8",
            "action: deny, protocol: udp, ports: 22, from: 10.0.0.0/8",
        ),
        (
            "action: allow, protocol: icmp, type: 3, code: 4, from: 10.0.0.0/8",
            "action: deny, protocol: icmp, type: 3, from: 10.0.0.0/8",
        ),
    ] {
        assert_eq!(pair(first, second), [""; 0], "{first} | {second}");
    }
}
