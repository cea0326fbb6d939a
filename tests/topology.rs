//! What may change while a lab runs, and what takes a restart.

use sgwall::config::load_str;
use sgwall::model::Model;

const LAB: &str = "
vpc: { cidr: [10.0.0.0/16] }
subnets: { s: { cidr: [10.0.0.0/24] }, t: { cidr: [10.0.1.0/24] } }
security_groups:
  web: { ingress: [ { protocol: tcp, ports: 80, from: 0.0.0.0/0 } ] }
  db: { ingress: [ { protocol: tcp, ports: 5432, from: sg/web } ] }
entities:
  web: { kind: ec2, subnet: s, addresses: [10.0.0.10], security_groups: [web] }
  db: { kind: rds, subnet: s, addresses: [10.0.0.11], security_groups: [db] }
";

fn model(text: &str) -> Model {
    load_str("lab.yaml", text).expect("a valid lab").model
}

/// What is said of the lab after `from` became `to` in its text.
fn change(from: &str, to: &str) -> Result<(), String> {
    let changed = LAB.replace(from, to);
    assert_ne!(changed, LAB, "{from} is in the lab");
    model(LAB)
        .same_topology(&model(&changed))
        .map_err(|change| change.to_string())
}

#[test]
fn rules_groups_and_memberships_may_change() {
    for (from, to) in [
        ("ports: 5432", "ports: 5433"),
        ("ports: 80, from: 0.0.0.0/0", "ports: 81, from: sg/db"),
        ("security_groups: [db]", "security_groups: [db, web]"),
        ("  db: { ingress", "  new: {}\n  db: { ingress"),
    ] {
        assert_eq!(change(from, to), Ok(()), "{from}");
    }
}

#[test]
fn the_order_in_the_file_does_not_matter() {
    let swapped = LAB.replace("  web: { kind", "  zzz: { kind").replace(
        "  db: { kind: rds, subnet: s, addresses: [10.0.0.11], security_groups: [db] }",
        "",
    );
    let swapped = swapped.replace(
        "  zzz: { kind",
        "  db: { kind: rds, subnet: s, addresses: [10.0.0.11], security_groups: [db] }\n  web: { kind",
    );
    assert_eq!(model(LAB).same_topology(&model(&swapped)), Ok(()));
}

#[test]
fn what_takes_a_restart_is_named() {
    for (from, to, named) in [
        ("10.0.0.11", "10.0.0.12", "entity 'db' changed"),
        (
            "kind: rds, subnet: s, addresses: [10.0.0.11]",
            "kind: rds, subnet: t",
            "entity 'db' changed",
        ),
        ("kind: ec2", "kind: ecs", "entity 'web' changed"),
        ("kind: rds,", "kind: rds, mtu: 1500,", "entity 'db' changed"),
        (
            "kind: rds,",
            "kind: rds, run: sleep 1,",
            "entity 'db' changed",
        ),
        (
            "  db: { kind: rds",
            "  data: { kind: rds",
            "entity 'db' is gone",
        ),
        (
            "entities:\n",
            "entities:\n  new: { kind: ec2, subnet: s }\n",
            "entity 'new' is new",
        ),
        ("10.0.0.0/16", "10.0.0.0/17", "the VPC changed"),
    ] {
        let said = change(from, to).expect_err(named);
        assert!(said.contains(named), "{said}");
        assert!(said.contains("stop it and start it again"), "{said}");
    }
}
