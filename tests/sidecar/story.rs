//! A web service, its database and a stranger on one bridge, with the real program beside the
//! first two.

use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::guard::{Guard, Service, connect, is_ignored, says};
use super::netlink::{self, Vxlan};
use super::support::{Network, Space, address, address6, ip, mac};

/// The database takes connections from the web service.
const RULES: &str = "
security_groups:
  web:
    members: [172.28.0.20, 'fd28::20']
  db:
    ingress: [ { protocol: tcp, ports: 5432, from: sg/web, description: PostgreSQL } ]
    egress: []
  stranger:
    members: [172.28.0.30, 'fd28::30']
";
/// Tunnels between the two.
const TUNNELS: &str = "
security_groups:
  web:
    members: [172.28.0.20, 'fd28::20']
  db:
    ingress: [ { protocol: udp, ports: 4790-4799, from: sg/web } ]
    egress: [ { protocol: udp, ports: 4790-4799, to: sg/web } ]
";
const DB: u8 = 10;
const WEB: u8 = 20;
const STRANGER: u8 = 30;

fn for_strangers() -> String {
    RULES.replace("from: sg/web", "from: sg/stranger")
}

pub fn only_whom_the_rules_name_reaches_the_workload_and_status_says_why() {
    let network = Network::new();
    let [db, web, stranger] = [DB, WEB, STRANGER].map(|number| network.container(number));
    let _service = Service::start(&db);
    let at_db = Guard::start(&db, RULES, "db", &[]);
    let _at_web = Guard::start(&web, RULES, "web", &[]);
    for to in [address(DB), address6(DB)] {
        assert!(says(&mut connect(&web, to).unwrap(), b"select 42"));
        assert!(is_ignored(&stranger, to));
    }
    // The network's host announces its multicast groups at any time.
    let mut drops = std::iter::repeat_with(|| at_db.event("drop"));
    let drop = drops.find(|drop| drop["reason"] != "not_unicast").unwrap();
    assert_eq!(drop["reason"], "no_ingress_rule", "{drop}");
    let status = at_db.status();
    let reason = |from: &str| {
        let is_it = |line: &&str| line.contains(from) && line.contains("no_ingress_rule of db");
        assert!(
            status.lines().any(|line| is_it(&line)),
            "{from} in {status}"
        );
    };
    reason("172.28.0.30");
    reason("fd28::30");
    assert_eq!(at_db.probe(), Some(0));
}

pub fn a_saved_rule_counts_within_a_second_and_an_open_session_goes_on() {
    let network = Network::new();
    let [db, web, stranger] = [DB, WEB, STRANGER].map(|number| network.container(number));
    let _service = Service::start(&db);
    let mut guard = Guard::start(&db, RULES, "db", &[]);
    let mut session = connect(&web, address(DB)).unwrap();
    assert!(says(&mut session, b"begin"));

    let began = Instant::now();
    guard.save(&for_strangers());
    guard.event("reloaded");
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert!(says(
        &mut connect(&stranger, address(DB)).unwrap(),
        b"select 43"
    ));
    assert!(is_ignored(&web, address(DB)));
    assert!(says(&mut session, b"commit"), "the session goes on");

    // A mistake changes nothing, and is told of with its place.
    guard.save(&for_strangers().replace("sg/stranger", "sg/nobody"));
    let refused = guard.event("refused").to_string();
    assert!(refused.contains("nobody"), "{refused}");
    assert!(connect(&stranger, address(DB)).is_ok());
    // Nor does a file without the group that the workload carries.
    guard.save("security_groups: { web: {} }");
    let refused = guard.event("refused").to_string();
    assert!(refused.contains("no rule file has"), "{refused}");
    assert!(connect(&stranger, address(DB)).is_ok());
    guard.save(RULES);
    guard.event("reloaded");
    guard.process.signal(Signal::SIGHUP);
    guard.event("unchanged");
    assert!(connect(&web, address(DB)).is_ok());
    assert!(is_ignored(&stranger, address(DB)));
}

/// Whoever the rules allow to begin may go on, though nothing is remembered.
pub fn an_open_session_goes_on_after_the_sidecar_was_killed_and_started_again() {
    let network = Network::new();
    let [db, web] = [DB, WEB].map(|number| network.container(number));
    let _service = Service::start(&db);
    let mut guard = Guard::start(&db, RULES, "db", &[]);
    let mut session = connect(&web, address(DB)).unwrap();
    assert!(says(&mut session, b"begin"));
    guard.kill();
    guard.begin_again();
    guard.event("enforcing");
    assert!(says(&mut session, b"commit"));
}

/// Both families, through the sidecars of both ends, in super-packets and without.
pub fn what_is_sent_arrives_as_it_was() {
    const BYTES: usize = 24 << 20;
    let network = Network::new();
    let [db, web] = [DB, WEB].map(|number| network.container(number));
    let _service = Service::start(&db);
    let _at_db = Guard::start(&db, RULES, "db", &[]);
    let mut at_web = Guard::start(&web, RULES, "web", &[]);
    send_and_compare(&web, BYTES, [address(DB), address6(DB)]);
    assert!(at_web.end() < Duration::from_secs(1));
    let _at_web = Guard::start(&web, RULES, "web", &["--no-offload"]);
    send_and_compare(&web, BYTES / 8, [address(DB), address6(DB)]);
}

/// A tunnel's end in the workload's namespace. Packets from the bridge are still super-packets,
/// because the device that would split them comes last.
/// for the device that would take the tunnel's packets apart is the last one of all.
pub fn what_is_sent_through_a_tunnel_arrives_as_it_was() {
    let network = Network::new();
    let [db, web] = [DB, WEB].map(|number| network.container(number));
    let mut inside = Vec::new();
    for (number, outside) in [(1, address as fn(u8) -> IpAddr), (2, address6)] {
        for checksums in [true, false] {
            let id = number + if checksums { 0 } else { 2 };
            let name = format!("vx{id}");
            for (space, own, other) in [(&db, DB, WEB), (&web, WEB, DB)] {
                space.run(|| {
                    netlink::make_vxlan(&Vxlan {
                        name: &name,
                        id,
                        device: "eth0",
                        local: outside(own),
                        remote: outside(other),
                        port: 4789 + u16::try_from(id).unwrap(),
                        checksums,
                    });
                    let index = netlink::index(&name);
                    netlink::add_address(index, ip(&format!("10.77.{id}.{own}")), 24, None);
                    netlink::add_address(index, ip(&format!("fd77:{id}::{own}")), 64, None);
                    netlink::set_up(index, true);
                });
            }
            inside.push(ip(&format!("10.77.{id}.{DB}")));
            inside.push(ip(&format!("fd77:{id}::{DB}")));
        }
    }
    let _service = Service::start(&db);
    for more in [&[][..], &["--no-offload"]] {
        let more = [&["--interface", "eth0"], more].concat();
        let mut guard = Guard::start(&db, TUNNELS, "db", &more);
        send_and_compare(&web, 2 << 20, inside.clone());
        guard.end();
    }
}

fn send_and_compare(web: &Space, bytes: usize, to: impl IntoIterator<Item = IpAddr>) {
    for to in to {
        let mut sender = connect(web, to).unwrap();
        let mut receiver = sender.try_clone().unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let sent = std::thread::spawn(move || {
            let (mut hash, mut state, mut left) = (DefaultHasher::new(), 1_u64, bytes);
            while left > 0 {
                let chunk: Vec<u8> = (0..left.min(30_011))
                    .map(|_| {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        state.to_be_bytes()[0]
                    })
                    .collect();
                hash.write(&chunk);
                sender.write_all(&chunk).unwrap();
                left -= chunk.len();
            }
            sender.shutdown(Shutdown::Write).unwrap();
            hash.finish()
        });
        let (mut hash, mut count) = (DefaultHasher::new(), 0);
        let mut buffer = vec![0; 1 << 16];
        while let length @ 1.. = receiver.read(&mut buffer).unwrap() {
            hash.write(&buffer[..length]);
            count += length;
        }
        assert_eq!(count, bytes, "to {to}");
        assert_eq!(sent.join().unwrap(), hash.finish(), "to {to}");
    }
}

pub fn six_sidecars_on_one_bridge_enforce_each_for_itself() {
    let network = Network::new();
    let spaces: Vec<_> = (10..16).map(|number| network.container(number)).collect();
    let web = network.container(WEB);
    let _services: Vec<_> = spaces.iter().map(Service::start).collect();
    let mut guards: Vec<_> = (spaces.iter().enumerate())
        .map(|(i, space)| {
            let rules = if i % 2 == 0 {
                RULES.to_owned()
            } else {
                for_strangers()
            };
            Guard::begin(space, &rules, "db", &[])
        })
        .collect();
    for guard in &guards {
        guard.event("enforcing");
    }
    for (i, number) in (10..16).enumerate() {
        if i % 2 == 0 {
            assert!(says(
                &mut connect(&web, address(number)).unwrap(),
                b"select"
            ));
        } else {
            assert!(is_ignored(&web, address(number)));
        }
    }
    for guard in &mut guards {
        let took = guard.end();
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    assert!(is_ignored(&web, address(10)));
}

pub fn the_workload_keeps_its_name_address_and_mac() {
    let network = Network::new();
    let db = network.container(DB);
    let (before, own) = db.run(|| (netlink::look(&["eth0"]), mac("eth0")));
    let mut guard = Guard::start(&db, RULES, "db", &["--on-exit", "open"]);
    db.run(|| {
        assert_eq!(netlink::look(&["eth0"]), before);
        assert_eq!(mac("eth0"), own);
    });
    guard.end();
    db.run(|| assert_eq!(netlink::look(&["eth0"]), before));
}
