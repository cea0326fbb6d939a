//! Members by name: DNS responses, and how long their addresses count.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use super::guard::Guard;
use super::processes::wait_until;
use super::support::{Echo, GATEWAY, Network, Space, address, asks, ip};

const DB: u8 = 10;
const WEB: u8 = 20;
const OTHER: u8 = 30;

/// The server's behaviour when asked for a name. Names without an entry don't exist.
#[derive(Debug, Clone)]
enum Entry {
    /// Answers with one of the addresses in turn, and a TTL in seconds.
    Rotates(Vec<IpAddr>, u32),
    /// Answers over TCP only.
    OverTcp(IpAddr),
    /// Doesn't answer.
    Silent,
}

/// A DNS server at the network's gateway.
#[derive(Debug)]
struct Server {
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Zone {
    entries: BTreeMap<String, Entry>,
    /// The number of queries for A records of each name.
    asked: BTreeMap<String, usize>,
}

impl Server {
    fn start(network: &Network) -> Self {
        let at = (ip(GATEWAY), 53);
        let (udp, tcp) =
            (network.space).run(|| (UdpSocket::bind(at).unwrap(), TcpListener::bind(at).unwrap()));
        udp.set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        tcp.set_nonblocking(true).unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let on_udp = {
            let (zone, stop) = (Arc::clone(&zone), Arc::clone(&stop));
            thread::spawn(move || {
                let mut buffer = [0; 512];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((length, from)) = udp.recv_from(&mut buffer)
                        && let Some(answer) = zone.lock().unwrap().answer(&buffer[..length], false)
                    {
                        let _ = udp.send_to(&answer, from);
                    }
                }
            })
        };
        let on_tcp = {
            let (zone, stop) = (Arc::clone(&zone), Arc::clone(&stop));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let Ok((mut connection, _)) = tcp.accept() else {
                        thread::sleep(Duration::from_millis(5));
                        continue;
                    };
                    connection.set_nonblocking(false).unwrap();
                    let mut length = [0; 2];
                    connection.read_exact(&mut length).unwrap();
                    let mut question = vec![0; u16::from_be_bytes(length).into()];
                    connection.read_exact(&mut question).unwrap();
                    if let Some(answer) = zone.lock().unwrap().answer(&question, true) {
                        let length = u16::try_from(answer.len()).unwrap();
                        let _ =
                            connection.write_all(&[&length.to_be_bytes(), &answer[..]].concat());
                    }
                }
            })
        };
        Self {
            zone,
            stop,
            threads: vec![on_udp, on_tcp],
        }
    }

    /// Changes the behaviour for a name; with `None` the name doesn't exist.
    fn set(&self, name: &str, entry: Option<Entry>) {
        let mut zone = self.zone.lock().unwrap();
        zone.entries.remove(name);
        zone.entries
            .extend(entry.map(|entry| (name.to_owned(), entry)));
    }

    /// Returns the number of queries for a name.
    fn asked(&self, name: &str) -> usize {
        self.zone
            .lock()
            .unwrap()
            .asked
            .get(name)
            .copied()
            .unwrap_or(0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Zone {
    fn answer(&mut self, question: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let question = Packet::parse(question).ok()?;
        let asked = question.questions.first()?.clone();
        let name = asked.qname.to_string();
        let mut answer = question.into_reply();
        answer.set_flags(PacketFlag::RECURSION_AVAILABLE);
        let is_a = asked.qtype == QTYPE::TYPE(TYPE::A);
        let count = self.asked.entry(name.clone()).or_default();
        *count += usize::from(is_a);
        let found = match self.entries.get(&name) {
            None => {
                *answer.rcode_mut() = RCODE::NameError;
                None
            }
            Some(Entry::Silent) => return None,
            Some(Entry::OverTcp(_)) if !over_tcp => {
                answer.set_flags(PacketFlag::TRUNCATION);
                None
            }
            Some(Entry::OverTcp(address)) => Some((*address, 60)),
            Some(Entry::Rotates(addresses, ttl)) => {
                Some((addresses[*count % addresses.len()], *ttl))
            }
        };
        if let Some((IpAddr::V4(v4), ttl)) = found
            && is_a
        {
            let data = RData::A(A { address: v4.into() });
            let record = ResourceRecord::new(asked.qname, CLASS::IN, ttl, data);
            answer.answers.push(record);
        }
        answer.build_bytes_vec_compressed().ok()
    }
}

/// A network with a workload that answers members of the group `web` on port 7, and that may
/// query the gateway for names.
struct Scene {
    _network: Network,
    db: Space,
    web: Space,
    other: Space,
    server: Server,
    _echo: Echo,
    etc: tempfile::TempDir,
}

impl Scene {
    fn new(resolv_conf: &str, hosts: &str) -> Self {
        let network = Network::new();
        let [db, web, other] = [DB, WEB, OTHER].map(|number| network.container(number));
        let etc = tempfile::tempdir().unwrap();
        fs::write(
            etc.path().join("resolv.conf"),
            format!("nameserver {GATEWAY}\n{resolv_conf}"),
        )
        .unwrap();
        fs::write(etc.path().join("hosts"), hosts).unwrap();
        Self {
            server: Server::start(&network),
            _network: network,
            _echo: Echo::start(&db),
            db,
            web,
            other,
            etc,
        }
    }

    /// Starts a sidecar in front of the workload.
    fn guard(&self, members: &str, more: &[&str]) -> Guard {
        let rules = format!(
            "security_groups:
  web: {{ members: [{members}] }}
  db:
    ingress: [ {{ protocol: udp, ports: 7, from: sg/web }} ]
    egress:
      - {{ protocol: udp, ports: 53, to: {GATEWAY}/32 }}
      - {{ protocol: tcp, ports: 53, to: {GATEWAY}/32 }}
"
        );
        let guard = Guard::begin_with(&self.db, &rules, "db", more, || {
            mount_over_etc(self.etc.path())
        });
        guard.event("enforcing");
        guard
    }

    fn passes(&self, from: &Space) -> bool {
        from.run(|| asks(address(DB), Duration::from_secs(1)))
    }
}

/// Mounts the files of a directory over those in `/etc`, for the calling thread and its children.
fn mount_over_etc(folder: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    for name in ["resolv.conf", "hosts"] {
        let (from, to) = (folder.join(name), Path::new("/etc").join(name));
        mount(Some(&from), &to, none, MsFlags::MS_BIND, none).unwrap();
    }
}

pub fn a_name_is_whom_dns_and_hosts_say_and_nobody_once_it_is_gone() {
    let scene = Scene::new(
        "search x.test\noptions ndots:1",
        &format!("{} local\n", address(OTHER)),
    );
    // The refresh time is an hour, but a name that is not found is looked up again at once.
    let guard = scene.guard("web, local", &["--refresh", "3600"]);
    let event = guard.event("resolved");
    assert_eq!(event["name"], "local", "{event}");
    wait_until("hosts counts", || scene.passes(&scene.other));
    wait_until("it was asked for", || {
        scene.server.asked("web.x.test") > 1 && scene.server.asked("web") > 1
    });
    assert!(!scene.passes(&scene.web));
    scene
        .server
        .set("web.x.test", Some(Entry::OverTcp(address(WEB))));
    assert_eq!(guard.event("resolved")["name"], "web");
    wait_until("it is a member", || scene.passes(&scene.web));
    let status = guard.status();
    assert!(
        status.contains(&format!("web: {} (", address(WEB))),
        "{status}"
    );
    drop(guard);

    scene
        .server
        .set("web", Some(Entry::Rotates(vec![address(WEB)], 600)));
    scene.server.set("web.x.test", None);
    let guard = scene.guard("web", &["--refresh", "1"]);
    guard.event("resolved");
    wait_until("it is a member", || scene.passes(&scene.web));
    scene.server.set("web", None);
    let event = guard.event("unresolved");
    assert_eq!(event["keeps"], false, "{event}");
    wait_until("it is nobody", || !scene.passes(&scene.web));
}

pub fn addresses_of_rotating_answers_stay_members() {
    let scene = Scene::new("", "");
    let both = vec![address(WEB), address(OTHER)];
    scene.server.set("web", Some(Entry::Rotates(both, 1)));
    let guard = scene.guard("web", &["--refresh", "1"]);
    let both_count = || {
        guard.event("resolved")["addresses"]
            .as_array()
            .unwrap()
            .len()
            == 2
    };
    assert!((0..10).any(|_| both_count()), "never both");
    let changes = || guard.process.stdout.text().matches("resolved").count();
    let (before, asked) = (changes(), scene.server.asked("web"));
    wait_until("it was asked for some times", || {
        scene.server.asked("web") > asked + 4
    });
    assert_eq!(changes(), before, "{}", guard.process.stdout.text());
    // A new flow each time.
    assert!(scene.passes(&scene.web) && scene.passes(&scene.other));
}

pub fn a_silent_resolver_makes_members_of_nobody_however_many_names_there_are() {
    let scene = Scene::new("", "");
    let names: Vec<String> = (0..50).map(|number| format!("web-{number}")).collect();
    let all = |entry: &Entry| {
        for name in &names {
            scene.server.set(name, Some(entry.clone()));
        }
    };
    all(&Entry::Rotates(vec![address(WEB)], 1));
    let guard = scene.guard(&names.join(", "), &["--refresh", "1"]);
    wait_until("they are members", || scene.passes(&scene.web));
    all(&Entry::Silent);
    let silent = Instant::now();
    wait_until("nobody is a member any more", || !scene.passes(&scene.web));
    // And not before its time: a resolver may fail for a moment.
    assert!(
        silent.elapsed() > Duration::from_secs(5),
        "{}",
        guard.process.stdout.text()
    );
    all(&Entry::Rotates(vec![address(WEB)], 1));
    wait_until("they are members again", || scene.passes(&scene.web));
}
