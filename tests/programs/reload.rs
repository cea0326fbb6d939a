//! Rules that change while PostgreSQL and iperf3 use them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::net::{self, Seen};
use crate::postgres::{self, Postgres, Session};
use crate::privilege::namespaces;
use crate::support::{Lab, Process, THREE_TIER, need, without_rules, words};

/// How long an attempt of these tests waits before it counts as refused.
const MOMENT: Duration = Duration::from_millis(300);

#[test]
fn a_session_and_a_transfer_go_on_when_their_rules_are_deleted() {
    if !namespaces!() {
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
