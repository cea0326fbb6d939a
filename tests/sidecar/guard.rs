//! The real program beside a workload, and services and peers to try it with.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::processes::{Process, program, words};
use super::support::{MOMENT, PORT, Space};

/// The port of the workload's TCP service.
pub const DATABASE: u16 = 5432;

/// `sgwall sidecar` in a container's namespace, whose workload carries one group. Dropping it
/// kills it.
#[derive(Debug)]
pub struct Guard {
    space: Space,
    dir: tempfile::TempDir,
    arguments: Vec<String>,
    pub process: Process,
    heard: Mutex<usize>,
}

/// A TCP service that sends back what it hears, until dropped.
#[derive(Debug)]
pub struct Service {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Somebody who asks a UDP service all the time, and knows when answers came.
#[derive(Debug)]
pub struct Asker {
    answers: Arc<Mutex<Vec<Instant>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Guard {
    /// One that enforces.
    pub fn start(space: &Space, rules: &str, group: &str, more: &[&str]) -> Self {
        let guard = Self::begin(space, rules, group, more);
        guard.event("enforcing");
        guard
    }

    /// One that was started a moment ago.
    pub fn begin(space: &Space, rules: &str, group: &str, more: &[&str]) -> Self {
        Self::begin_with(space, rules, group, more, || {})
    }

    /// The same, with a change to the thread that starts it.
    pub fn begin_with(
        space: &Space,
        rules: &str,
        group: &str,
        more: &[&str],
        prepare: impl FnOnce() + Send,
    ) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("sgwall-sidecar-")
            .tempdir()
            .unwrap();
        let file = dir.path().join("rules.yaml");
        fs::write(&file, rules).unwrap();
        let always = [
            "--resolver",
            "none",
            "--max-flows",
            "4096",
            "--format",
            "json",
        ];
        let mut arguments = vec!["sidecar", "--rules", file.to_str().unwrap()];
        arguments.extend(["--group", group]);
        arguments.extend(always.iter().chain(more));
        let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let process = space.run(|| {
            prepare();
            Process::spawn(&mut command(&dir, &arguments))
        });
        Self {
            space: space.clone(),
            dir,
            arguments,
            process,
            heard: Mutex::new(0),
        }
    }

    /// Starts it again as it was, after it ended.
    pub fn begin_again(&mut self) {
        assert!(self.process.try_wait().is_some(), "it still runs");
        let started = self
            .space
            .run(|| Process::spawn(&mut command(&self.dir, &self.arguments)));
        self.process = started;
        self.heard = Mutex::new(0);
    }

    /// The next event of that name; those before it are skipped.
    pub fn event(&self, name: &str) -> Value {
        let mut heard = self.heard.lock().unwrap();
        let is_it = |line: &str| {
            serde_json::from_str::<Value>(line).is_ok_and(|event| event["event"] == name)
        };
        let Some((at, line)) = self.process.stdout.wait_from(*heard, is_it) else {
            panic!(
                "no event '{name}' came\nstdout:\n{}\nstderr:\n{}",
                self.process.stdout.text(),
                self.process.stderr.text()
            );
        };
        *heard = at + 1;
        serde_json::from_str(&line).unwrap()
    }

    /// Saves the rule file as editors do: a new file in the old one's place.
    pub fn save(&self, rules: &str) {
        let fresh = self.dir.path().join("rules.yaml.new");
        fs::write(&fresh, rules).unwrap();
        fs::rename(fresh, self.dir.path().join("rules.yaml")).unwrap();
    }

    /// What `sgwall status` prints.
    pub fn status(&self) -> String {
        let output = self.ask_status(&[]);
        assert!(output.status.success(), "{}", words(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The exit code of the health check.
    pub fn probe(&self) -> Option<i32> {
        self.ask_status(&["--probe"]).status.code()
    }

    fn ask_status(&self, more: &[&str]) -> Output {
        let mut arguments = vec!["status".to_owned()];
        arguments.extend(more.iter().map(ToString::to_string));
        command(&self.dir, &arguments).output().unwrap()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.wait();
    }

    /// Ends it in order; how long that took.
    pub fn end(&mut self) -> Duration {
        let began = Instant::now();
        self.process.signal(Signal::SIGTERM);
        let status = self.process.wait();
        let took = began.elapsed();
        assert_eq!(status.code(), Some(0), "{}", self.process.stderr.text());
        took
    }
}

/// The program with its run-state in a directory of its own.
fn command(dir: &tempfile::TempDir, arguments: &[String]) -> Command {
    let mut command = Command::new(program());
    command
        .args(arguments)
        .env("SGWALL_STATE_DIR", dir.path().join("state"))
        .env_remove("SGWALL_LAB")
        .stdin(Stdio::null());
    command
}

impl Service {
    /// Serves in a namespace at port [`DATABASE`] of all addresses.
    pub fn start(space: &Space) -> Self {
        let listener = space.run(|| TcpListener::bind(("::", DATABASE)).unwrap());
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((connection, _)) => {
                        connection.set_nonblocking(false).unwrap();
                        thread::spawn(move || send_back(connection));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

/// Ends with the connection.
fn send_back(mut connection: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = connection.read(&mut buffer) {
        if connection.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Asker {
    /// Asks from a namespace, some hundred times a second.
    pub fn start(space: &Space, to: IpAddr) -> Self {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = space.run(|| UdpSocket::bind(any).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(5)))
            .unwrap();
        let answers = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (heard, stopped) = (Arc::clone(&answers), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut buffer = [0; 16];
            while !stopped.load(Ordering::Relaxed) {
                if socket.send_to(b"anybody?", (to, PORT)).is_err() {
                    thread::sleep(Duration::from_millis(5));
                }
                if socket.recv_from(&mut buffer).is_ok() {
                    heard.lock().unwrap().push(Instant::now());
                    thread::sleep(Duration::from_millis(2));
                }
            }
        });
        Self {
            answers,
            stop,
            thread: Some(thread),
        }
    }

    /// Number of answers that came after a moment.
    pub fn answers_since(&self, since: Instant) -> usize {
        let answers = self.answers.lock().unwrap();
        answers.iter().filter(|at| **at > since).count()
    }

    /// Waits for an answer from now on.
    pub fn is_answered(&self) {
        let now = Instant::now();
        super::processes::wait_until("there is an answer", || self.answers_since(now) > 0);
    }

    /// Number of answers in a while from now on.
    pub fn answers_for(&self, time: Duration) -> usize {
        let now = Instant::now();
        thread::sleep(time);
        self.answers_since(now)
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A TCP connection from a namespace to a service.
pub fn connect(space: &Space, to: IpAddr) -> io::Result<TcpStream> {
    let to = SocketAddr::new(to, DATABASE);
    space.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))
}

/// Whether a connection is neither taken nor refused.
pub fn is_ignored(space: &Space, to: IpAddr) -> bool {
    let to = SocketAddr::new(to, DATABASE);
    let answer = space.run(|| TcpStream::connect_timeout(&to, 2 * MOMENT));
    answer.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// Sends a word and waits until it comes back.
pub fn says(connection: &mut TcpStream, word: &[u8]) -> bool {
    connection
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut back = vec![0; word.len()];
    connection.write_all(word).is_ok() && connection.read_exact(&mut back).is_ok() && back == word
}
