//! What the tests of labs share.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sgwall::lab::control::{Server, Serving};
use sgwall::lab::{Lab, Privilege, STATE_DIR_VARIABLE, Session, prepare};
use sgwall::link::{FRAME, Link, TunLink};
use sgwall::model::Model;

use super::common::unique_name;

/// Which role to play instead of running the tests.
pub const ROLE: &str = "SGWALL_TEST_ROLE";
/// The lab that a role is about.
pub const NAME: &str = "SGWALL_TEST_LAB";
/// The `sgwall` program, where it is not the one that cargo built.
pub const SGWALL: &str = "SGWALL_TEST_PROGRAM";

pub fn up(model: &Model) -> Lab {
    Lab::up(Session::start(&unique_name()).unwrap(), model).unwrap()
}

pub fn serve(lab: &Lab) -> Serving {
    let gate = lab.gate();
    Server::bind(lab.session())
        .unwrap()
        .serve(move |request| gate.enter(&request))
        .unwrap()
}

/// What an entity sees of itself.
pub struct Look {
    pub devices: Vec<String>,
    pub mtu: String,
    pub local4: String,
    pub route4: String,
    pub if_inet6: String,
    pub route6: String,
}

pub fn look(lab: &Lab, entity: &str) -> Look {
    let namespace = lab
        .namespaces()
        .iter()
        .find(|n| n.entity() == entity)
        .unwrap();
    // `/proc/net` is the main thread's; this thread's own has the namespace's.
    let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    namespace
        .run(|| {
            let mut devices: Vec<String> = read("dev")
                .lines()
                .skip(2)
                .map(|line| line.split(':').next().unwrap().trim().to_owned())
                .collect();
            devices.sort();
            Look {
                devices,
                mtu: fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu")
                    .unwrap()
                    .trim()
                    .into(),
                local4: read("fib_trie"),
                route4: read("route"),
                if_inet6: read("if_inet6"),
                route6: read("ipv6_route"),
            }
        })
        .unwrap()
}

pub fn socket_in(lab: &Lab, model: &Model, entity: &str) -> UdpSocket {
    let (entity, _) = model.entity(entity).unwrap();
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let socket = lab.namespace(entity).run(bind).unwrap().unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

pub fn receive_now(link: &TunLink) -> Option<Vec<u8>> {
    let mut buffer = vec![0; FRAME];
    match link.recv(&mut buffer) {
        Ok(received) => Some(received.frame(&mut buffer).to_vec()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

pub fn receive(link: &TunLink) -> Option<Vec<u8>> {
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        if let Some(packet) = receive_now(link) {
            return Some(packet);
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What is left of a lab under `/run/netns`.
pub fn bound(lab: &str) -> Vec<PathBuf> {
    let prefix = format!("sgwall-{lab}-");
    fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(&prefix)
        })
        .collect()
}

pub fn own_program() -> Command {
    // Not `current_exe`: in a mount namespace made since, its path is cut short
    // where the program's file system is not the root's.
    command(Path::new("/proc/self/exe"))
}

pub fn sgwall_path() -> PathBuf {
    std::env::var_os(SGWALL).map_or_else(|| env!("CARGO_BIN_EXE_sgwall").into(), PathBuf::from)
}

pub fn sgwall() -> Command {
    command(&sgwall_path())
}

/// A command that looks for labs where this process keeps its own.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    // Inside a user namespace the user looks like root; see `Entry::environment`.
    if prepare().unwrap() == Privilege::UserNamespace {
        let probe = Session::start(&unique_name()).unwrap();
        command.env(STATE_DIR_VARIABLE, probe.base());
    }
    command
}

pub fn exec(lab: &Lab, entity: &str, script: &str) -> Output {
    let mut command = sgwall();
    command.args([
        "exec",
        "--lab",
        lab.session().name(),
        entity,
        "--",
        "sh",
        "-c",
        script,
    ]);
    command.output().unwrap()
}

/// A process that keeps a lab; it ends with this value.
pub struct Keeper {
    pub child: Child,
    pub greeting: String,
}

impl Keeper {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut greeting = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut greeting)
            .unwrap();
        let greeting = greeting.trim().to_owned();
        assert!(greeting.starts_with("ready"), "the lab did not come up");
        Self { child, greeting }
    }

    /// Waits until the `run:` command of the keeper's lab has ended.
    pub fn wait_for_command_to_end(&self) {
        let pid = self.greeting.split(' ').nth(2).unwrap();
        let path = PathBuf::from(format!("/proc/{pid}"));
        wait_until("the lab's command has ended with it", || !path.exists());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// A command that runs on its own; it never outlives its test.
pub struct Background(pub Child);

impl Background {
    pub fn start(command: &mut Command) -> Self {
        Self(
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits until `sgwall exec` has become the program.
    pub fn wait_to_become(&self, program: &str) {
        wait_until("the command runs", || {
            fs::read(format!("/proc/{}/cmdline", self.0.id()))
                .is_ok_and(|line| line.starts_with(program.as_bytes()))
        });
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    let mut is_so = is_so;
    let until = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
