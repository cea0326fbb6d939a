//! The `run:` commands of a lab: started with it, heard, and ended with it.

use std::fmt;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::LabError;
use super::session::STATE_DIR_VARIABLE;
use crate::model::EntityIx;

/// Longest line handed over in one piece, in bytes.
const MAX_LINE: usize = 8 << 10;
/// How long a command has between being asked and being made to end.
const GRACE: Duration = Duration::from_secs(1);
/// How long the last words of an ended command are waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Where a command wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What there is to hear of a command.
#[derive(Debug)]
pub enum CommandEvent<'a> {
    /// It wrote a line, here without its end; overlong ones come in pieces.
    Line(Stream, &'a str),
    /// It ended.
    Exited(ExitStatus),
    /// It could not be started, or watched.
    Failed(LabError),
}

/// The commands that run; dropping this ends them.
pub struct RunCommands {
    commands: Vec<Watched>,
}

/// A command to start.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub entity: EntityIx,
    pub name: String,
    pub command: String,
}

/// How to start one.
#[derive(Debug, Clone)]
pub(super) struct Start {
    /// The `sgwall` program.
    pub program: PathBuf,
    pub lab: String,
    /// Where it finds the lab's state.
    pub base: PathBuf,
}

struct Watched {
    group: Arc<Mutex<Option<Pid>>>,
    thread: Option<JoinHandle<()>>,
}

type Sink = Arc<dyn Fn(EntityIx, &str, CommandEvent<'_>) + Send + Sync>;

impl RunCommands {
    pub(super) fn spawn(start: &Start, orders: Vec<Order>, sink: &Sink) -> Result<Self, LabError> {
        // A failure half-way drops, and so ends, those that run already.
        let mut this = Self {
            commands: Vec::with_capacity(orders.len()),
        };
        for order in orders {
            let group = Arc::new(Mutex::new(None));
            let (start, sink) = (start.clone(), Arc::clone(sink));
            let theirs = Arc::clone(&group);
            let (started, begin) = mpsc::channel();
            // The kernel ends the command when the *thread* that started it
            // ends; so this one waits for it.
            let thread = thread::Builder::new()
                .name("sgwall-run".into())
                .spawn(move || watch(&start, &order, &theirs, &sink, &started))
                .map_err(|error| LabError::system("start a thread", error))?;
            let _ = begin.recv();
            this.commands.push(Watched {
                group,
                thread: Some(thread),
            });
        }
        Ok(this)
    }

    /// How many have not ended.
    pub fn running(&self) -> usize {
        self.commands
            .iter()
            .filter(|command| lock(&command.group).is_some())
            .count()
    }

    fn signal(&self, signal: Signal) {
        for command in &self.commands {
            // Under the lock, so that the number is not another's by now.
            if let Some(group) = *lock(&command.group) {
                let _ = killpg(group, signal);
            }
        }
    }
}

impl Drop for RunCommands {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        let until = Instant::now() + GRACE;
        while self.running() > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        self.signal(Signal::SIGKILL);
        for command in &mut self.commands {
            if let Some(thread) = command.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

impl fmt::Debug for RunCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunCommands")
            .field("started", &self.commands.len())
            .field("running", &self.running())
            .finish()
    }
}

fn lock(group: &Mutex<Option<Pid>>) -> MutexGuard<'_, Option<Pid>> {
    group.lock().unwrap_or_else(PoisonError::into_inner)
}

fn watch(
    start: &Start,
    order: &Order,
    group: &Mutex<Option<Pid>>,
    sink: &Sink,
    started: &Sender<()>,
) {
    let tell = |event| sink(order.entity, &order.name, event);
    let failed = |operation: &str, error| {
        CommandEvent::Failed(LabError::entity(&order.name, operation, error))
    };
    let mut child = match spawn(start, order) {
        Ok(child) => child,
        Err(error) => return tell(failed("start the command", error)),
    };
    let Ok(number) = i32::try_from(child.id()) else {
        return;
    };
    let pid = Pid::from_raw(number);
    *lock(group) = Some(pid);
    let _ = started.send(());

    let (done, silence) = mpsc::channel::<()>();
    let readers = [
        child
            .stdout
            .take()
            .map(|pipe| (Stream::Stdout, Box::new(pipe) as Box<dyn Read + Send>)),
        child
            .stderr
            .take()
            .map(|pipe| (Stream::Stderr, Box::new(pipe) as Box<dyn Read + Send>)),
    ];
    for (stream, pipe) in readers.into_iter().flatten() {
        let (sink, done, order) = (Arc::clone(sink), done.clone(), order.clone());
        let reader = thread::Builder::new()
            .name("sgwall-output".into())
            .spawn(move || {
                lines(pipe, &|line| {
                    sink(order.entity, &order.name, CommandEvent::Line(stream, line))
                });
                drop(done);
            });
        if let Err(error) = reader {
            tell(failed("read the command's output", error));
        }
    }
    drop(done);

    // Wait first and collect after: as long as it is not collected its number
    // is nobody else's, and signals can't go astray.
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    while waitid(Id::Pid(pid), flags) == Err(nix::errno::Errno::EINTR) {}
    let status = {
        let mut group = lock(group);
        // What it left in its group ends with it, as with the lab.
        let _ = killpg(pid, Signal::SIGKILL);
        *group = None;
        child.wait()
    };
    // A daemon of its own may hold the pipes for longer; it is not waited for.
    let _ = silence.recv_timeout(LAST_WORDS);
    match status {
        Ok(status) => tell(CommandEvent::Exited(status)),
        Err(error) => tell(failed("wait for the command", error)),
    }
}

fn spawn(start: &Start, order: &Order) -> std::io::Result<Child> {
    let parent = std::process::id().to_string();
    Command::new(&start.program)
        .arg0("sgwall")
        .args(["exec", "--lab", &start.lab, "--die-with", &parent])
        .args([&order.name, "--", "sh", "-c", &order.command])
        .env(STATE_DIR_VARIABLE, &start.base)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

/// Hands over the lines of `pipe` until it ends.
fn lines(mut pipe: impl Read, tell: &dyn Fn(&str)) {
    let tell_bytes = |line: &[u8]| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        tell(&String::from_utf8_lossy(line));
    };
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = match pipe.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        for &byte in &chunk[..count] {
            if byte == b'\n' {
                tell_bytes(&line);
                line.clear();
            } else {
                line.push(byte);
                if line.len() == MAX_LINE {
                    tell_bytes(&line);
                    line.clear();
                }
            }
        }
    }
    if !line.is_empty() {
        tell_bytes(&line);
    }
}

/// The program to start commands with: this one, even if its file has been
/// replaced since.
pub(super) fn own_program() -> PathBuf {
    Path::new("/proc/self/exe").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_comes_in_bounded_lines_of_valid_text() {
        let mut input = b"one\r\n\xffsecond\n\n".to_vec();
        input.extend(vec![b'x'; MAX_LINE + 3]);
        let heard = Mutex::new(Vec::new());
        lines(input.as_slice(), &|line| {
            heard.lock().unwrap().push(line.to_owned())
        });
        let heard = heard.into_inner().unwrap();
        assert_eq!(heard[..3], ["one", "\u{fffd}second", ""]);
        assert_eq!(heard[3].len(), MAX_LINE);
        assert_eq!(heard[4], "xxx");
    }
}
