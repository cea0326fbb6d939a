//! AWS's example of connection tracking with curl and ping.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::net::MOMENT;
use crate::privilege::namespaces;
use crate::support::{Lab, Process, need, wait_until, without_rules};

const WORKED_EXAMPLE: &str = include_str!("../data/worked-example.yaml");

/// Pause between two lines that a server sends.
const TICK: Duration = Duration::from_millis(50);

#[test]
fn curl_from_everywhere_stops_with_its_rule_and_curl_from_one_address_and_ping_go_on() {
    if !namespaces!() {
        return;
    }
    need("curl", "curl");
    need("ping", "iputils-ping");
    let lab = Lab::up(WORKED_EXAMPLE);
    let stop = Arc::new(AtomicBool::new(false));
    let servers: Vec<_> = [22, 80]
        .map(|port| {
            let listener = lab.inside("instance", || TcpListener::bind(("0.0.0.0", port)).unwrap());
            let stop = Arc::clone(&stop);
            thread::spawn(move || tick(&listener, &stop))
        })
        .into();
    let curl = |port: u16| {
        let url = format!("http://198.51.100.10:{port}/");
        let process = Process::spawn(&mut lab.exec("client", &["curl", "-sSN", "-m", "60", &url]));
        process
            .stdout
            .wait("a line of the page", |line| line == "tick");
        process
    };
    let (tracked, untracked) = (curl(22), curl(80));
    let ping = ["ping", "-n", "-i", "0.2", "198.51.100.10"];
    let ping = Process::spawn(&mut lab.exec("client", &ping));
    ping.stdout
        .wait("a reply", |line| line.contains("bytes from"));

    let rules = [
        "SSH from one address",
        "HTTP from everywhere",
        "HTTP over IPv6",
        "ICMP from everywhere",
        "ICMPv6 from everywhere",
    ];
    let revoked = without_rules(WORKED_EXAMPLE, &rules);
    lab.save(&revoked);
    lab.event("reloaded");
    falls_silent(&untracked);
    goes_on(&tracked);
    goes_on(&ping);

    lab.save(&revoked.replace("allow, protocol: all, from", "deny, protocol: all, from"));
    lab.event("reloaded");
    falls_silent(&ping);
    falls_silent(&tracked);
    drop((tracked, untracked, ping));
    lab.down();
    stop.store(true, Ordering::Relaxed);
    for server in servers {
        server.join().unwrap();
    }
}

/// Serves one request with a page that ends when told to.
fn tick(listener: &TcpListener, stop: &AtomicBool) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_write_timeout(Some(TICK)).unwrap();
    let mut request = [0; 1024];
    let _ = stream.read(&mut request).unwrap();
    stream
        .write_all(b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n")
        .unwrap();
    while !stop.load(Ordering::Relaxed) && stream.write_all(b"tick\n").is_ok() {
        thread::sleep(TICK);
    }
}

/// More lines come.
fn goes_on(process: &Process) {
    let before = process.stdout.count();
    wait_until("more lines come", || process.stdout.count() > before + 3);
}

/// No more lines come, though the last may still be on its way.
fn falls_silent(process: &Process) {
    let (mut before, mut since) = (process.stdout.count(), Instant::now());
    wait_until("no more lines come", || {
        let now = process.stdout.count();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        since.elapsed() > 2 * MOMENT
    });
}
