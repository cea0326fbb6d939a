//! Rules that change while packets flow.

use std::fs;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::net::{self, Seen};
use crate::postgres::{self, Postgres, Session};
use crate::support::{Lab, Process, Start, THREE_TIER, at, namespaces, need, words};

/// How long an attempt of these tests waits before it counts as refused.
const MOMENT: Duration = Duration::from_millis(300);

#[test]
fn a_deleted_rule_stops_new_connections_and_keeps_those_that_are_open() {
    if !namespaces() {
        return;
    }
    need("iperf3", "iperf3");
    let lab = Lab::up(THREE_TIER);
    let _postgres = Postgres::start(&lab, "db", "10.0.3.10");
    let mut session = Session::open(&lab, "web-1", "db");
    session.ask("begin; select 'it is ' || 1;", "it is 1");
    let (_server, mut client) = iperf3(&lab, "web-1", "db");

    // The rules that admitted both are deleted.
    let without = without_rules(
        THREE_TIER,
        &["PostgreSQL from the web", "iperf3 from the web"],
    );
    lab.save(&without);
    let saved = Instant::now();
    lab.event("reloaded");
    println!(
        "the change was in force {:?} after the save",
        saved.elapsed()
    );
    wait_for(&lab, &Seen::Silent, saved);
    println!(
        "a new connection was refused {:?} after the save",
        saved.elapsed()
    );
    let refused = postgres::query(&lab, "web-2", "db", "select 1");
    assert!(postgres::timed_out(&refused), "{}", words(&refused));
    session.ask("select 'it is ' || 2;", "it is 2");
    still_transfers(&client);

    // A file with a mistake changes nothing.
    let before = lab.status();
    lab.save(&without.replace("entities:", "entities: ]"));
    let refusal = lab.event("refused");
    assert!(
        !refusal["diagnostics"].as_array().unwrap().is_empty(),
        "{refusal}"
    );
    let after = lab.status();
    assert_eq!(
        after["policy"]["generation"],
        before["policy"]["generation"]
    );
    assert_eq!(after["policy"]["refused"], 1, "{after}");
    assert!(after["policy"]["last_refusal"].is_string(), "{after}");
    session.ask("select 'it is ' || 3;", "it is 3");
    still_transfers(&client);
    assert_eq!(attempt(&lab), Seen::Silent);

    // The rules come back; another mistake leaves them in force.
    lab.save(THREE_TIER);
    let saved = Instant::now();
    lab.event("reloaded");
    wait_for(&lab, &Seen::Reached(String::new()), saved);
    let answer = postgres::query(&lab, "web-2", "db", "select 40 + 2");
    assert_eq!(answer.stdout, b"42\n", "{}", words(&answer));
    let generation = lab.status()["policy"]["generation"].clone();
    lab.save(&THREE_TIER.replace("security_groups:\n  lb:", "security_groups:\n  lb"));
    lab.event("refused");
    let answer = postgres::query(&lab, "web-2", "db", "select 40 + 3");
    assert_eq!(answer.stdout, b"43\n", "{}", words(&answer));
    assert_eq!(lab.status()["policy"]["generation"], generation);

    session.ask("commit; select 'it is ' || 4;", "it is 4");
    session.close();
    let status = client.wait();
    assert!(status.success(), "{status}: {}", client.stdout.text());
    drop(_postgres);
    lab.down();
}

#[test]
fn rules_of_a_file_beside_the_lab_file_are_watched_too() {
    if !namespaces() {
        return;
    }
    let (lab_text, rules) = split(THREE_TIER);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.yaml");
    fs::write(&path, &rules).unwrap();
    let mut start = Start::new(&lab_text);
    start.arguments = vec!["--rules".into(), path.display().to_string()];
    let lab = Lab::start(&start);
    lab.event("enforcing");
    assert_eq!(
        attempt(&lab),
        Seen::Refused,
        "nobody listens, and packets pass"
    );

    // Written in place, as `cp` and some editors do.
    fs::write(&path, without_rules(&rules, &["PostgreSQL from the web"])).unwrap();
    lab.event("reloaded");
    assert_eq!(attempt(&lab), Seen::Silent);
    fs::write(&path, "security_groups: [").unwrap();
    lab.event("refused");
    assert_eq!(attempt(&lab), Seen::Silent);
    fs::remove_file(&path).unwrap();
    lab.event("refused");
    assert_eq!(attempt(&lab), Seen::Silent);
    fs::write(&path, &rules).unwrap();
    lab.event("reloaded");
    assert_eq!(attempt(&lab), Seen::Refused);
    lab.down();
}

#[test]
fn sighup_reads_the_files_again() {
    if !namespaces() {
        return;
    }
    let mut lab = Lab::up(THREE_TIER);
    let before = lab.status()["policy"]["generation"].as_u64().unwrap();
    lab.process.signal(Signal::SIGHUP);
    let event = lab.event("reloaded");
    assert_eq!(event["generation"], before + 1);
    let policy = lab.status()["policy"].clone();
    assert_eq!(policy["generation"], before + 1);
    assert_eq!(policy["reloads"], 1);
    assert_eq!(attempt(&lab), Seen::Refused);
    lab.down();
}

#[test]
fn a_change_of_membership_takes_effect() {
    if !namespaces() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let from_lb = || lab.inside("lb", || net::tcp(db(), 5432, MOMENT));
    assert_eq!(from_lb(), Seen::Silent);
    lab.save(&THREE_TIER.replace("security_groups: [lb]", "security_groups: [lb, web]"));
    lab.event("reloaded");
    // `lb` is now one of the members that `sg/web` stands for.
    assert_eq!(from_lb(), Seen::Refused);
    let status = lab.status();
    let groups = &at(&status, "lb")["security_groups"];
    assert_eq!(groups, &serde_json::json!(["lb", "web"]));
    lab.save(THREE_TIER);
    lab.event("reloaded");
    assert_eq!(from_lb(), Seen::Silent);
    lab.down();
}

#[test]
fn a_change_of_topology_is_refused_and_changes_nothing() {
    if !namespaces() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let generation = lab.status()["policy"]["generation"].clone();
    let fewer = without_rules(THREE_TIER, &["PostgreSQL from the web"]);
    for (text, what) in [
        (
            format!("{fewer}\n  web-3: {{ kind: ecs, subnet: app, security_groups: [web] }}\n"),
            "entity 'web-3' is new",
        ),
        (
            fewer.replace("10.0.2.22", "10.0.2.23"),
            "entity 'web-2' changed",
        ),
        (
            fewer.replace("  web-2:", "  web-4:"),
            "entity 'web-2' is gone",
        ),
    ] {
        assert_ne!(text, fewer);
        lab.save(&text);
        let why = lab.event("refused")["why"].as_str().unwrap().to_owned();
        assert!(
            why.contains(what) && why.contains("stop it and start it again"),
            "{why}"
        );
        assert_eq!(attempt(&lab), Seen::Refused, "the rule is still in force");
    }
    let policy = lab.status()["policy"].clone();
    assert_eq!(policy["generation"], generation);
    assert_eq!(
        (&policy["refused"], &policy["reloads"]),
        (&3.into(), &0.into())
    );
    lab.down();
}

fn db() -> IpAddr {
    [10, 0, 3, 10].into()
}

/// A connection from a web task to the database's port.
fn attempt(lab: &Lab) -> Seen {
    lab.inside("web-2", || net::tcp(db(), 5432, MOMENT))
}

/// Tries until what is seen is as wanted. A second after a save is what users
/// are promised; a busy machine gets more.
fn wait_for(lab: &Lab, wanted: &Seen, saved: Instant) {
    loop {
        // PostgreSQL hangs up on a client that says nothing only after a
        // minute, so a connection alone has to do.
        let connected = lab.inside("web-2", || {
            std::net::TcpStream::connect_timeout(&(db(), 5432).into(), MOMENT).is_ok()
        });
        let seen = if connected {
            Seen::Reached(String::new())
        } else {
            Seen::Silent
        };
        if seen == *wanted {
            return;
        }
        assert!(saved.elapsed() < Duration::from_secs(10), "still {seen:?}");
    }
}

/// A transfer that goes on, which is reported every fifth of a second.
fn iperf3(lab: &Lab, from: &str, to: &str) -> (Process, Process) {
    let server = Process::spawn(&mut lab.exec(to, &["iperf3", "-s", "-1", "--forceflush"]));
    server
        .stdout
        .wait("Server listening", |line| line.contains("Server listening"));
    let client = Process::spawn(&mut lab.exec(
        from,
        // A modest rate, for the tests beside this one.
        &[
            "iperf3",
            "-c",
            to,
            "-t",
            "8",
            "-i",
            "0.2",
            "-b",
            "200M",
            "--forceflush",
        ],
    ));
    client.stdout.wait("a report", is_report);
    (server, client)
}

fn is_report(line: &str) -> bool {
    line.contains("bits/sec") && !line.contains(" 0.00 bits/sec")
}

/// Waits for two more reports: one of them began after now.
fn still_transfers(client: &Process) {
    let mut from = client.stdout.count();
    for _ in 0..2 {
        let found = client.stdout.wait_from(from, is_report);
        let (at, _) = found.unwrap_or_else(|| panic!("it stopped: {}", client.stdout.text()));
        from = at + 1;
    }
}

/// The file without the rules that are so described.
fn without_rules(text: &str, described: &[&str]) -> String {
    let is_deleted = |line: &str| described.iter().any(|it| line.contains(it));
    let kept: Vec<&str> = text.lines().filter(|line| !is_deleted(line)).collect();
    assert_eq!(kept.len() + described.len(), text.lines().count());
    kept.join("\n") + "\n"
}

/// The lab file without its groups, and the groups.
fn split(text: &str) -> (String, String) {
    let start = text.find("security_groups:").unwrap();
    let end = text.find("\nentities:").unwrap();
    let lab = format!("{}{}", &text[..start], &text[end..]);
    (lab, text[start..end].to_owned())
}
