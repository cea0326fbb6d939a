//! A lab run by the real program, as the tests see it: started, waited for,
//! asked, taken down, and looked for leftovers of.
#![allow(dead_code, reason = "each test target uses a part")]

use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long anything that must come is waited for. Far more than it takes: a
/// busy machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The lab of most tests.
pub const THREE_TIER: &str = include_str!("../../configs/three-tier.yaml");
/// A lab of both families.
pub const DUAL_STACK: &str = include_str!("../../configs/dual-stack.yaml");

/// A lab that the program runs. Dropping it takes it down and checks that
/// nothing is left.
#[derive(Debug)]
pub struct Lab {
    pub name: String,
    /// Holds the files and, unless told otherwise, the run-state.
    pub dir: tempfile::TempDir,
    pub config: PathBuf,
    pub state: PathBuf,
    pub process: Process,
    /// Lines of standard output that were waited for already.
    heard: Mutex<usize>,
}

/// How a lab is started.
#[derive(Debug)]
pub struct Start<'a> {
    pub text: &'a str,
    /// Further arguments of `sgwall run`.
    pub arguments: Vec<String>,
    /// Programs before `sgwall`, which start it.
    pub through: Vec<String>,
    /// Events as JSON rather than text.
    pub json: bool,
}

/// A process that was started here and is ended here.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pub stdout: Lines,
    pub stderr: Lines,
}

/// What a process has written, line by line as it comes.
#[derive(Debug, Clone)]
pub struct Lines(Arc<(Mutex<Written>, Condvar)>);

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    ended: bool,
}

/// The program under test: cargo's, unless the environment names another,
/// where the user who runs the tests may not read cargo's.
pub fn program() -> PathBuf {
    env::var_os("SGWALL_TEST_PROGRAM")
        .map_or_else(|| env!("CARGO_BIN_EXE_sgwall").into(), PathBuf::from)
}

/// Panics if `program` is missing, and names the package that has it.
pub fn need(program: &str, package: &str) {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file());
    assert!(
        found,
        "this test needs `{program}`, which is not installed: apt-get install {package}"
    );
}

/// A lab name that no other test has.
pub fn unique_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("s{}-{number}", std::process::id())
}

/// Waits until `is_so`, and panics if that never comes.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never came true: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

impl<'a> Start<'a> {
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            arguments: Vec::new(),
            through: Vec::new(),
            json: true,
        }
    }
}

impl Lab {
    /// Runs a lab of this text and waits until it enforces.
    pub fn up(text: &str) -> Self {
        let lab = Self::start(&Start::new(text));
        lab.event("enforcing");
        lab
    }

    /// Runs a lab; its first event is still to be waited for.
    pub fn start(start: &Start<'_>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("sgwall-scenario-")
            .tempdir()
            .unwrap();
        let name = unique_name();
        let config = dir.path().join("lab.yaml");
        fs::write(&config, start.text).unwrap();
        let state = dir.path().join("state");
        let process = spawn(start, &name, &config, &state);
        Self {
            name,
            dir,
            config,
            state,
            process,
            heard: Mutex::new(0),
        }
    }

    /// Runs a lab of the same name and files again, after the process ended.
    pub fn start_again(&mut self, start: &Start<'_>) {
        assert!(self.process.try_wait().is_some(), "it still runs");
        self.process = spawn(start, &self.name, &self.config, &self.state);
        self.heard = Mutex::new(0);
    }

    /// The next event of that name; those before it are skipped.
    pub fn event(&self, name: &str) -> Value {
        self.event_where(name, |_| true)
    }

    /// The next event of that name that is as wanted.
    pub fn event_where(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut heard = lock(&self.heard);
        let found = self.process.stdout.wait_from(*heard, |line| {
            serde_json::from_str::<Value>(line)
                .is_ok_and(|event| event["event"] == name && wanted(&event))
        });
        let Some((at, line)) = found else {
            panic!(
                "no event '{name}' came\nstdout:\n{}\nstderr:\n{}",
                self.process.stdout.text(),
                self.process.stderr.text()
            );
        };
        *heard = at + 1;
        serde_json::from_str(&line).unwrap()
    }

    /// `sgwall SUBCOMMAND`, told where this lab is.
    pub fn sgwall(&self, subcommand: &str) -> Command {
        let mut command = Command::new(program());
        command
            .arg(subcommand)
            .env("SGWALL_STATE_DIR", &self.state)
            .env("SGWALL_LAB", &self.name)
            .stdin(Stdio::null());
        command
    }

    /// A command inside an entity, by way of `sgwall exec`.
    pub fn exec<S: AsRef<OsStr>>(&self, entity: &str, command: &[S]) -> Command {
        let mut exec = self.sgwall("exec");
        exec.args([entity, "--"]).args(command);
        exec
    }

    /// The answer of `sgwall status`.
    pub fn status(&self) -> Value {
        let output = self
            .sgwall("status")
            .args(["--format", "json"])
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("status: {error}: {}", words(&output)))
    }

    /// `sgwall explain` on the lab file as it is now, given `--from` and the rest
    /// as one text: its exit code and what it says.
    pub fn explain(&self, question: &str) -> (Option<i32>, String) {
        let output = Command::new(program())
            .arg("explain")
            .arg(&self.config)
            .arg("--from")
            .args(question.split_whitespace())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        // Places are named by the file's path, which is another each time.
        let dir = format!("{}/", self.dir.path().display());
        (output.status.code(), text.replace(&dir, ""))
    }

    /// Packets dropped at an interface for a reason.
    pub fn drops(&self, interface: &str, reason: &str) -> u64 {
        drops(&self.status(), interface, reason)
    }

    /// Runs `work` on a thread inside an entity's namespace: sockets that it
    /// opens and processes that it starts belong there.
    pub fn inside<T: Send>(&self, entity: &str, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter(entity);
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into an entity's namespace, for good.
    pub fn enter(&self, entity: &str) {
        let path = self.namespace(entity);
        let namespace =
            File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Where `ip netns` finds an entity's namespace.
    pub fn namespace(&self, entity: &str) -> PathBuf {
        format!("/run/netns/sgwall-{}-{entity}", self.name).into()
    }

    /// Saves the lab file as editors do: a new file in the old one's place.
    pub fn save(&self, text: &str) {
        let fresh = self.dir.path().join("lab.yaml.new");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, &self.config).unwrap();
    }

    /// Takes the lab down as Ctrl-C does, and checks how that went.
    pub fn down(mut self) {
        self.end(Signal::SIGTERM);
    }

    /// Ends the program with a signal; it must end well and leave nothing.
    pub fn end(&mut self, signal: Signal) {
        self.process.signal(signal);
        let status = self.process.wait();
        assert_eq!(
            status.code(),
            Some(0),
            "after {signal}: {status}\n{}",
            self.process.stderr.text()
        );
        let left = leftovers(&self.name, &self.state);
        assert!(left.is_empty(), "after {signal} there is still {left:?}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.process.try_wait().is_none() {
            self.process.signal(Signal::SIGTERM);
            if self.process.wait_for(PATIENCE).is_none() {
                self.process.signal(Signal::SIGKILL);
                self.process.wait_for(PATIENCE);
            }
        }
        // What has just ended may take a moment to vanish from /proc.
        let began = Instant::now();
        let mut left = leftovers(&self.name, &self.state);
        while !left.is_empty() && began.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(20));
            left = leftovers(&self.name, &self.state);
        }
        for path in bound(&self.name) {
            let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
            let _ = fs::remove_file(&path);
        }
        if thread::panicking() {
            eprintln!(
                "lab {} said:\n{}{}",
                self.name,
                self.process.stdout.text(),
                self.process.stderr.text()
            );
        } else {
            assert!(
                left.is_empty(),
                "lab {} is down and there is still {left:?}",
                self.name
            );
        }
    }
}

impl Process {
    /// Starts a command and listens to what it writes.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = Lines::of(child.stdout.take().unwrap());
        let stderr = Lines::of(child.stderr.take().unwrap());
        Self {
            child,
            stdout,
            stderr,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Sends a signal, unless it has been seen to end.
    pub fn signal(&mut self, signal: Signal) {
        if self.try_wait().is_none() {
            kill(self.pid(), signal).unwrap();
        }
    }

    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// How it ended. Panics if it doesn't.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.wait_for(PATIENCE);
        status.unwrap_or_else(|| panic!("it does not end; stderr:\n{}", self.stderr.text()))
    }

    fn wait_for(&mut self, patience: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        loop {
            let status = self.try_wait();
            if status.is_some() || began.elapsed() > patience {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let this = Self(Arc::default());
        let theirs = this.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                theirs.lock().lines.push(text);
                theirs.0.1.notify_all();
                line.clear();
            }
            theirs.lock().ended = true;
            theirs.0.1.notify_all();
        });
        this
    }

    /// Waits for a line; panics if it never comes.
    pub fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        match self.wait_from(0, wanted) {
            Some((_, line)) => line,
            None => panic!("never said: {what}; but:\n{}", self.text()),
        }
    }

    /// The first line from number `from` on that is as wanted, and its number.
    pub fn wait_from(&self, from: usize, wanted: impl Fn(&str) -> bool) -> Option<(usize, String)> {
        let until = Instant::now() + PATIENCE;
        let mut next = from;
        let mut written = self.lock();
        loop {
            while let Some(line) = written.lines.get(next) {
                if wanted(line) {
                    return Some((next, line.clone()));
                }
                next += 1;
            }
            let left = until.saturating_duration_since(Instant::now());
            if written.ended || left.is_zero() {
                return None;
            }
            written = self
                .0
                .1
                .wait_timeout(written, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Number of lines so far.
    pub fn count(&self) -> usize {
        self.lock().lines.len()
    }

    /// All of it so far.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.lock().lines {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        lock(&self.0.0)
    }
}

/// Packets dropped at an interface for a reason, by an answer of `sgwall status`.
pub fn drops(status: &Value, interface: &str, reason: &str) -> u64 {
    at(status, interface)["drops"][reason].as_u64().unwrap_or(0)
}

/// One interface of an answer of `sgwall status`.
pub fn at<'a>(status: &'a Value, interface: &str) -> &'a Value {
    status["interfaces"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|candidate| candidate["name"] == interface)
        .unwrap_or_else(|| panic!("no interface {interface} in {status}"))
}

/// The text of a lab file without the rules that are so described.
pub fn without_rules(text: &str, described: &[&str]) -> String {
    let is_deleted = |line: &str| described.iter().any(|it| line.contains(it));
    let kept: Vec<&str> = text.lines().filter(|line| !is_deleted(line)).collect();
    assert_eq!(kept.len() + described.len(), text.lines().count());
    kept.join("\n") + "\n"
}

/// What a command wrote, for failures.
pub fn words(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs a command that must succeed, and gives its standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", words(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What there still is of a lab that ended: namespaces, run-state, processes.
pub fn leftovers(name: &str, state: &Path) -> Vec<String> {
    let mut left: Vec<String> = bound(name)
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let dir = state.join(name);
    if dir.exists() {
        left.push(dir.display().to_string());
    }
    left.extend(
        processes_of(name)
            .iter()
            .map(|(pid, command)| format!("process {pid}: {command}")),
    );
    left
}

/// The files under `/run/netns` of a lab.
pub fn bound(name: &str) -> Vec<PathBuf> {
    let prefix = format!("sgwall-{name}-");
    fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect()
}

/// The processes that say they are in an entity of the lab, with their command
/// lines.
pub fn processes_of(name: &str) -> Vec<(i32, String)> {
    let own = std::process::id().cast_signed();
    let lab = format!("SGWALL_LAB={name}");
    let in_lab = |environment: &[u8]| {
        let mut variables = environment.split(|byte| *byte == 0);
        let mut variables_again = variables.clone();
        variables.any(|variable| variable == lab.as_bytes())
            && variables_again.any(|variable| variable.starts_with(b"SGWALL_ENTITY="))
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|it| in_lab(&it)))
        .filter_map(|pid| {
            // Zombies have no command line, and are nobody's leftovers.
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            (!command.is_empty()).then_some((pid, command))
        })
        .collect()
}

fn spawn(start: &Start<'_>, name: &str, config: &Path, state: &Path) -> Process {
    let program = program();
    let mut command = match start.through.split_first() {
        Some((first, others)) => {
            let mut command = Command::new(first);
            command.args(others).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.arg("run").arg(config);
    command.args(["--name", name]).args(&start.arguments);
    if start.json {
        command.args(["--format", "json"]);
    }
    command
        .env("SGWALL_STATE_DIR", state)
        .env_remove("SGWALL_LAB")
        .stdin(Stdio::null());
    Process::spawn(&mut command)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
