//! `--log-drops`: who asks why sees his own packet beside the reason.

use std::net::{IpAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::net::{MOMENT, Seen, tcp};
use crate::privilege::namespaces;
use crate::support::{Lab, Start, THREE_TIER, at, wait_until};

const FLOOD: u64 = 500;

#[test]
fn a_refused_connection_is_logged_with_its_ends_the_reason_and_the_groups_that_lack_a_rule() {
    if !namespaces!() {
        return;
    }
    let lab = up(THREE_TIER, true);
    let db = address(&lab, "db");
    let refused = lab.inside("lb", || tcp(db, 5432, MOMENT));
    assert_eq!(refused, Seen::Silent);
    let drop = lab.event_where("drop", |it| it["destination_port"] == 5432);
    assert_eq!(drop["reason"], "no_ingress_rule", "{drop}");
    assert_eq!(drop["interface"], "db", "{drop}");
    assert_eq!(drop["direction"], "ingress", "{drop}");
    assert_eq!(drop["protocol"], "tcp", "{drop}");
    assert_eq!(drop["destination"], db.to_string(), "{drop}");
    assert_eq!(drop["security_groups"][0], "db", "{drop}");
    assert!(drop["source_port"].as_u64() > Some(0), "{drop}");
    assert!(drop["time_ms"].as_u64() > Some(1_600_000_000_000), "{drop}");
    // What the proof dropped at the start is not for people.
    assert!(!lab.process.stdout.text().contains("61002"));
    lab.down();
}

#[test]
fn a_flood_is_logged_at_a_bounded_rate_and_every_packet_of_it_is_counted() {
    if !namespaces!() {
        return;
    }
    let lab = up(THREE_TIER, true);
    let web = address(&lab, "web-1");
    lab.inside("lb", || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..FLOOD {
            let _ = socket.send_to(b"x", (web, 9));
            thread::sleep(Duration::from_micros(100));
        }
    });
    let told = || {
        let text = lab.process.stdout.text();
        let drops: Vec<serde_json::Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|it: &serde_json::Value| {
                it["event"] == "drop" && it["reason"] == "no_ingress_rule"
            })
            .collect();
        let of = |it: &serde_json::Value, key: &str| it[key].as_u64().unwrap_or(0);
        let lines = drops.iter().filter(|it| it["source"].is_string()).count();
        let sum: u64 = drops
            .iter()
            .map(|it| of(it, "packets") + of(it, "more"))
            .sum();
        (lines, sum)
    };
    wait_until("every dropped packet is told of", || told().1 >= FLOOD);
    let (lines, sum) = told();
    assert_eq!(sum, FLOOD);
    assert_eq!(lab.drops("web-1", "no_ingress_rule"), FLOOD);
    // Ten a second; the flood may take some, on a busy machine.
    assert!((10..100).contains(&lines), "{lines} lines");
    lab.down();
}

#[test]
fn drops_are_lines_for_people_and_nothing_is_said_unless_asked() {
    if !namespaces!() {
        return;
    }
    let lab = up(THREE_TIER, false);
    let web = address(&lab, "web-1");
    let send = |lab: &Lab| {
        lab.inside("lb", || {
            let socket = UdpSocket::bind("0.0.0.0:7777").unwrap();
            socket.send_to(b"x", (web, 9)).unwrap();
        });
    };
    send(&lab);
    let line = lab
        .process
        .stderr
        .wait("a line for the drop", |line| line.contains("dropped udp"));
    assert!(
        line.contains(&format!(
            ":7777 -> {web}:9 ingress at web-1: no_ingress_rule of web"
        )),
        "{line}"
    );
    lab.down();

    let lab = Lab::up(THREE_TIER);
    send(&lab);
    wait_until("it is dropped", || {
        lab.drops("web-1", "no_ingress_rule") == 1
    });
    thread::sleep(Duration::from_millis(400));
    assert!(!lab.process.stdout.text().contains("\"drop\""));
    lab.down();
}

fn up(text: &str, json: bool) -> Lab {
    let mut start = Start::new(text);
    start.arguments = vec!["--log-drops".into()];
    start.json = json;
    let lab = Lab::start(&start);
    if json {
        lab.event("enforcing");
    } else {
        lab.process
            .stderr
            .wait("it enforces", |line| line.contains("is enforcing"));
    }
    lab
}

fn address(lab: &Lab, interface: &str) -> IpAddr {
    let status = lab.status();
    let text = at(&status, interface)["addresses"][0].as_str().unwrap();
    text.parse().unwrap()
}
