//! `configs/three-tier.yaml` with the programs that people use.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use crate::postgres::{self, Postgres};
use crate::privilege::namespaces;
use crate::support::{Lab, Process, THREE_TIER, drops, need, succeed, words};

#[test]
fn postgres_answers_the_web_tasks_and_nobody_else() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let _postgres = Postgres::start(&lab, "db", "10.0.3.10");

    let answer = postgres::query(&lab, "web-1", "db", "select 40 + 2");
    assert_eq!(
        String::from_utf8_lossy(&answer.stdout).trim(),
        "42",
        "{}",
        words(&answer)
    );
    let before = lab.status();
    for (interface, reason) in [("db", "no_ingress_rule"), ("client", "no_route")] {
        assert_eq!(drops(&before, interface, reason), 0, "{before}");
    }

    thread::scope(|scope| {
        for from in ["lb", "client"] {
            let lab = &lab;
            scope.spawn(move || {
                // By address: on the internet nobody knows the database's name.
                let answer = postgres::query(lab, from, "10.0.3.10", "select 1");
                assert!(postgres::timed_out(&answer), "{from}: {}", words(&answer));
            });
        }
    });
    let after = lab.status();
    println!(
        "drops: {}",
        serde_json::json!(
            after["interfaces"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| (i["name"].as_str().unwrap(), &i["drops"]))
                .collect::<std::collections::BTreeMap<_, _>>()
        )
    );
    // The load balancer's packets got as far as the database's groups; over
    // the internet gateway private addresses don't exist.
    assert!(drops(&after, "db", "no_ingress_rule") > 0);
    assert!(drops(&after, "client", "no_route") > 0);
    let text = succeed(&mut lab.sgwall("status"));
    assert!(
        text.lines()
            .any(|line| line.trim_start().starts_with("db ") && line.contains("no_ingress_rule")),
        "{text}"
    );
    drop(_postgres);
    lab.down();
}

#[test]
fn ping_obeys_icmp_rules() {
    if !namespaces!() {
        return;
    }
    need("ping", "iputils-ping");
    let lab = Lab::up(THREE_TIER);
    thread::scope(|scope| {
        for (from, to, passes) in [
            ("client", "lb", true),
            ("client", "10.0.2.21", false),
            ("lb", "web-1", true),
            ("web-1", "web-2", true),
            ("web-1", "db", false),
            ("db", "web-1", false),
            ("web-1", "client", false),
        ] {
            let lab = &lab;
            scope.spawn(move || {
                let (count, wait) = if passes { ("1", "20") } else { ("2", "1") };
                let output = lab
                    .exec(
                        from,
                        &["ping", "-n", "-i", "0.2", "-c", count, "-W", wait, to],
                    )
                    .output()
                    .unwrap();
                // ping says 1 for no reply, 2 for anything else.
                let expected = if passes { 0 } else { 1 };
                assert_eq!(
                    output.status.code(),
                    Some(expected),
                    "{from} to {to}: {}",
                    words(&output)
                );
            });
        }
    });
    let status = lab.status();
    assert_eq!(drops(&status, "client", "no_route"), 2);
    assert_eq!(drops(&status, "db", "no_ingress_rule"), 2);
    assert_eq!(drops(&status, "db", "no_egress_rule"), 2);
    assert_eq!(drops(&status, "web-1", "no_public_address"), 2);
    lab.down();
}

#[test]
fn curl_reaches_a_web_task_by_name() {
    if !namespaces!() {
        return;
    }
    need("curl", "curl");
    let lab = Lab::up(THREE_TIER);
    let server = lab.inside("web-1", || TcpListener::bind("10.0.2.21:8080").unwrap());
    let serving = thread::spawn(move || {
        let (mut stream, peer) = server.accept().unwrap();
        let mut request = [0; 1024];
        let length = stream.read(&mut request).unwrap();
        stream
            .write_all(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nhello from web-1\n")
            .unwrap();
        (
            peer.ip(),
            String::from_utf8_lossy(&request[..length]).into_owned(),
        )
    });

    let curl = ["curl", "-sS", "-m", "2", "http://web-1:8080/"];
    let denied = lab.exec("db", &curl).output().unwrap();
    assert_eq!(denied.status.code(), Some(28), "{}", words(&denied));
    assert!(lab.drops("db", "no_egress_rule") > 0);

    let curl = ["curl", "-sS", "-m", "20", "http://web-1:8080/"];
    assert_eq!(succeed(&mut lab.exec("lb", &curl)), "hello from web-1\n");
    let (peer, request) = serving.join().unwrap();
    assert_eq!(peer.to_string(), "10.0.1.10");
    assert!(request.contains("Host: web-1:8080"), "{request}");
    lab.down();
}

#[test]
fn iperf3_runs_between_tasks_and_to_the_database() {
    if !namespaces!() {
        return;
    }
    need("iperf3", "iperf3");
    let lab = Lab::up(THREE_TIER);
    for to in ["db", "web-2"] {
        let mut server = Process::spawn(&mut lab.exec(to, &["iperf3", "-s", "-1", "--forceflush"]));
        server
            .stdout
            .wait("Server listening", |line| line.contains("Server listening"));
        let client = ["iperf3", "-c", to, "-t", "1", "--json"];
        let report = succeed(&mut lab.exec("web-1", &client));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let rate = report["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .unwrap_or(0.0);
        println!("iperf3 web-1 to {to}: {:.2} Gbit/s", rate / 1e9);
        assert!(rate > 0.0, "{report}");
        assert!(server.wait().success());
    }
    lab.down();
}

#[test]
fn ip_netns_knows_the_namespaces() {
    if !namespaces!() {
        return;
    }
    need("ip", "iproute2");
    let lab = Lab::up(THREE_TIER);
    for entity in ["client", "lb", "web-1", "web-2", "db"] {
        let name = format!("sgwall-{}-{entity}", lab.name);
        succeed(Command::new("ip").args(["netns", "exec", &name, "true"]));
    }
    let name = format!("sgwall-{}-db", lab.name);
    let shown = succeed(Command::new("ip").args(["-n", &name, "-o", "addr", "show", "eth0"]));
    assert!(shown.contains("10.0.3.10/24"), "{shown}");
    lab.down();
}
