//! What the running lab and `explain` say of `configs/three-tier.yaml`.

use std::process::Command;

use crate::net;
use crate::privilege::namespaces;
use crate::support::{Lab, THREE_TIER, program, wait_until, words};

#[test]
fn explain_and_the_running_lab_name_the_same_reason() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    for (from, to, at, reason) in [
        ("lb", "10.0.3.10", "db", "no_ingress_rule"),
        ("client", "10.0.3.10", "client", "no_route"),
        ("db", "10.0.2.21", "db", "no_egress_rule"),
        ("web-1", "198.51.100.7", "web-1", "no_public_address"),
    ] {
        let output = Command::new(program())
            .arg("explain")
            .arg(&lab.config)
            .args([
                "--from",
                from,
                "--to",
                to,
                "--protocol",
                "tcp",
                "--port",
                "5432",
            ])
            .args(["--format", "json"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", words(&output));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["request"]["reason"], reason, "{answer}");
        assert_eq!(answer["request"]["to"], at, "{answer}");

        let before = lab.drops(at, reason);
        let seen = lab.inside(from, || {
            net::tcp(
                to.parse().unwrap(),
                5432,
                std::time::Duration::from_millis(200),
            )
        });
        assert_eq!(seen, net::Seen::Silent);
        wait_until("the drop is counted", || lab.drops(at, reason) > before);
    }
    lab.down();
}
