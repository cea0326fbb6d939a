//! What labs promise about route tables.

use super::*;
use crate::model::{InterfaceIx, RouteTable, RouteTarget};

/// Two subnets, hosts behind both gateways, and a firewall with an interface
/// in each subnet.
const LAB: &str = "\
vpc: { cidr: [10.0.0.0/16, 10.1.0.0/16, 2001:db8::/56] }
subnets:
  app: { cidr: [10.0.1.0/24, \"2001:db8::/64\"] }
  data: { cidr: 10.0.2.0/24 }
entities:
  web: { kind: ec2, subnet: app }
  nat: { kind: ec2, subnet: app, source_dest_check: false, addresses: [10.0.1.9] }
  client: { kind: external, via: igw, addresses: [198.51.100.7] }
  office: { kind: external, via: vgw, addresses: [192.168.7.20] }
  fw:
    kind: ec2
    interfaces:
      - { subnet: app, source_dest_check: false, id: eni-0123456789abcdef0 }
      - { subnet: data, source_dest_check: false }
";

fn load_with(routes: &str) -> Result<Loaded, Diagnostics> {
    load_str(
        "lab.yaml",
        &format!("{LAB}route_tables: {{ x: [ {routes} ] }}\n"),
    )
}

fn table<'a>(loaded: &'a Loaded, name: &str) -> &'a RouteTable {
    let tables = &loaded.model.route_tables;
    tables.iter().find(|table| table.name == name).unwrap()
}

/// Each route as `destination target`.
fn routes(table: &RouteTable) -> Vec<String> {
    let routes = table.routes.iter();
    routes
        .map(|route| format!("{} {}", route.destination, route.target_text))
        .collect()
}

#[track_caller]
fn wrong(routes: &str, words: &[&str]) {
    match load_with(routes) {
        Ok(_) => panic!("accepted: {routes}"),
        Err(found) => only(&lines(found.iter()), words),
    }
}

#[track_caller]
fn right(routes: &str) -> Loaded {
    let loaded = load_with(routes).unwrap_or_else(|found| panic!("{found}"));
    assert_eq!(lines(&loaded.warnings), [""; 0]);
    loaded
}

#[test]
fn a_subnet_has_the_table_that_it_names_and_else_the_main_one() {
    let loaded = valid(
        "  b: { cidr: 10.0.2.0/24, route_table: isolated }
  c: { cidr: 10.0.3.0/24, route_table: rtb-0123456789abcdef0 }
  d: { cidr: 10.0.4.0/24, route_table: main }
route_tables:
  isolated: []
  bare:
  other: { id: rtb-0123456789abcdef0, routes: [ { to: 192.0.2.0/24, via: blackhole } ] }
",
    );
    let of_subnet: Vec<&str> = loaded
        .model
        .subnets
        .iter()
        .map(|subnet| &*loaded.model.route_tables[subnet.route_table.ix()].name)
        .collect();
    assert_eq!(of_subnet, ["main", "isolated", "other", "main"]);
    assert!(table(&loaded, "main").place.is_implied());
    assert_eq!(
        table(&loaded, "isolated").id,
        derive_id("rtb", &["isolated"])
    );
    assert_eq!(table(&loaded, "bare").routes, []);
    assert_eq!(routes(table(&loaded, "other")), ["192.0.2.0/24 blackhole"]);
    only(
        &refused(
            "  b: { cidr: 10.0.2.0/24, route_table: isolatd }\nroute_tables: { isolated: [] }\n",
        ),
        &[
            "4:40 isolatd",
            "no route table `isolatd`",
            "did you mean `isolated`?",
        ],
    );
}

#[test]
fn the_main_table_leads_where_the_hosts_outside_are_unless_it_is_declared() {
    let loaded = load_str("l", LAB).unwrap();
    assert_eq!(
        routes(table(&loaded, "main")),
        ["192.168.7.20/32 vgw", "0.0.0.0/0 igw", "::/0 igw"]
    );
    let loaded = load_str("l", &format!("{LAB}route_tables: {{ main: [] }}\n")).unwrap();
    assert_eq!(loaded.model.route_tables.len(), 1);
    assert_eq!(table(&loaded, "main").routes, []);
    assert_eq!(loaded.model.subnets[0].route_table.ix(), 0);
}

#[test]
fn routes_lead_to_gateways_interfaces_and_nowhere() {
    let loaded = right(
        "{ to: 0.0.0.0/0, via: igw }, { to: 192.168.0.0/16, via: vgw }, { to: 203.0.113.0/24, via: blackhole },
         { to: 172.16.0.0/12, via: eni/nat }, { to: 10.0.0.0/8, via: eni/fw/eth1 },
         { to: \"::/0\", via: eni-0123456789abcdef0 }, { to: 1.0.0.0/8, via: eni/eni-0123456789abcdef0 }",
    );
    let targets: Vec<(RouteTarget, &str)> = table(&loaded, "x")
        .routes
        .iter()
        .map(|route| (route.target, route.target_text.as_str()))
        .collect();
    let interface = |i| RouteTarget::Interface(InterfaceIx::new(i));
    assert_eq!(
        targets,
        [
            (RouteTarget::Igw, "igw"),
            (RouteTarget::Vgw, "vgw"),
            (RouteTarget::Blackhole, "blackhole"),
            (interface(1), "eni/nat"),
            (interface(5), "eni/fw/eth1"),
            (interface(4), "eni-0123456789abcdef0"),
            (interface(4), "eni/eni-0123456789abcdef0"),
        ]
    );
    // Ids that nobody wrote are ids as well.
    let derived = &load_str("l", LAB).unwrap().model.interfaces[1].id.clone();
    right(&format!("{{ to: 0.0.0.0/0, via: {derived} }}"));
}

#[test]
fn targets_that_do_not_exist_are_refused_with_a_remedy() {
    for (via, words) in [
        ("eni/fw", ["2 interfaces", "`eni/fw/eth0` or `eni/fw/eth1`"]),
        ("eni/fw/eth2", ["no interface `eth2`", "`eni/fw/eth0`"]),
        ("eni/nta", ["no entity `nta`", "did you mean `eni/nat`?"]),
        ("eni/nothing-like", ["no entity", "`entities`"]),
        ("eni-aaaaaaaaaaaaaaaaa", ["no interface", "`id:`"]),
        ("nat", ["can't lead to `nat`", "`eni/nat`"]),
        ("fw/eth0", ["can't lead to", "`eni/fw/eth0`"]),
        ("local", ["can't lead to `local`", "always there"]),
        ("igw-0123456789abcdef0", ["can't lead to", "write `igw`"]),
        ("blackhol", ["can't lead to", "did you mean `blackhole`?"]),
        (
            "tgw-0123456789abcdef0",
            ["can't lead to", "not enforced yet"],
        ),
        ("eni/client", ["outside the VPC", "`via: igw`"]),
    ] {
        wrong(&format!("{{ to: 192.0.2.0/24, via: {via} }}"), &words);
    }
    wrong("{ to: 192.0.2.0/24 }", &["no `via`", "`via: igw`"]);
    wrong("{ via: igw }", &["no `to`", "0.0.0.0/0"]);
    wrong(
        "{ to: [0.0.0.0/0], via: igw }",
        &["one destination", "each block"],
    );
    wrong(
        "{ to: pl/office, via: igw }",
        &["no CIDR block", "each of its entries"],
    );
    wrong(
        "{ to: default, via: igw }",
        &["no CIDR block", "10.0.0.0/16"],
    );
    wrong("{ to: 0.0.0.0/0, via: igw, cost: 1 }", &["no key `cost`"]);
    only(
        &refused("route_tables: { x: igw }\n"),
        &["expected a list", "`[]` for the local route alone"],
    );
    only(
        &refused("route_tables: { x: { id: rtb-1, routes: [] } }\n"),
        &["no id of route table `x`", "8 or 17"],
    );
}

#[test]
fn what_is_wrong_with_an_entity_is_not_said_again_at_its_routes() {
    let found = refused(
        "entities: { fw: { kind: ec3, subnet: app } }
route_tables: { x: [ { to: 0.0.0.0/0, via: eni/fw } ] }
",
    );
    only(&found, &["no kind `ec3`"]);
}

#[test]
fn a_destination_has_one_route() {
    let found = load_with("{ to: 192.0.2.0/24, via: igw }, { to: 192.0.2.9/24, via: vgw }");
    let found = found.unwrap_err();
    let error = found
        .iter()
        .find(|one| one.severity == Severity::Error)
        .unwrap();
    assert_eq!(error.text, "192.0.2.9/24");
    assert_eq!(error.related[0].text, "192.0.2.0/24");
    assert!(error.message.contains("two routes to `192.0.2.0/24`"));
    assert_eq!((found.errors(), found.warnings()), (1, 1));
}

#[test]
fn the_local_route_gives_way_to_interfaces_only() {
    right("{ to: 10.0.0.0/16, via: eni/nat }, { to: 2001:db8::/56, via: eni/nat }");
    right("{ to: 10.0.2.0/24, via: eni/nat }, { to: \"2001:db8::/64\", via: eni/nat }");
    // Wider than the VPC's blocks is no matter of theirs.
    right("{ to: 10.0.0.0/8, via: vgw }, { to: 10.2.0.0/16, via: blackhole }");
    for via in ["igw", "vgw", "blackhole"] {
        wrong(
            &format!("{{ to: 10.1.0.0/16, via: {via} }}"),
            &["10.1.0.0/16", "VPC's own block", "eni/NAME"],
        );
        wrong(
            &format!("{{ to: 10.0.2.0/24, via: {via} }}"),
            &["10.0.2.0/24", "is a subnet of the VPC", "eni/NAME"],
        );
    }
    wrong(
        "{ to: 10.0.2.0/25, via: eni/nat }",
        &["10.0.2.0/25", "whole subnet's block", "write `10.0.2.0/24`"],
    );
    wrong(
        "{ to: 10.0.0.0/22, via: eni/nat }",
        &["whole subnet's block", "for example `10.0.1.0/24`"],
    );
    wrong("{ to: 10.1.7.0/24, via: igw }", &["no subnet", "remove"]);
}

#[test]
fn nothing_is_routed_to_awss_own_services() {
    for to in [
        "169.254.168.0/22",
        "169.254.169.254/32",
        "fd00:ec2::/32",
        "fd00:ec2::254/128",
    ] {
        wrong(
            &format!("{{ to: \"{to}\", via: eni/nat }}"),
            &["AWS admits no route", "169.254.168.0/22"],
        );
    }
    for to in ["169.254.0.0/16", "224.0.0.0/4", "fe80::/10"] {
        let loaded = load_with(&format!("{{ to: \"{to}\", via: blackhole }}")).unwrap();
        only(&lines(&loaded.warnings), &["never taken", "remove"]);
    }
}

#[test]
fn routes_that_reach_nobody_are_pointed_out() {
    let loaded = load_with("{ to: 0.0.0.0/0, via: eni/web }").unwrap();
    let found = lines(&loaded.warnings);
    only(
        &found,
        &["`web` drops", "check is on", "`source_dest_check: false`"],
    );
    for via in ["igw", "vgw"] {
        let loaded = valid(&format!(
            "route_tables: {{ x: [ {{ to: 0.0.0.0/0, via: {via} }} ] }}\n"
        ));
        only(
            &lines(&loaded.warnings),
            &["nobody is behind", &format!("via: {via}")],
        );
    }
    // Public addresses reach each other through the internet gateway.
    let loaded = valid(
        "entities: { a: { kind: ec2, subnet: app, public_addresses: [203.0.113.1] } }
route_tables: { x: [ { to: 0.0.0.0/0, via: igw } ] }
",
    );
    assert!(loaded.warnings.is_empty());
}
