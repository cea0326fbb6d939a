//! Ctrl-C, SIGTERM and SIGHUP, for the commands that hold something up.

use std::ffi::c_int;
use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{self, Sender};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::CliError;

/// What comes so soon after the first signal to stop is the same once more: `timeout`
/// signals its command and then the command's group. Few labs take longer to take down.
const THE_SAME: Duration = Duration::from_secs(1);

/// A flag that the first signal to stop sets, so that the lab can be taken down in order;
/// another one, after a second, ends the process at once, and the devices with it. Starts
/// a thread.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let (tell, _) = channel::unbounded();
    let hangup = match Hangup::at_start() {
        Hangup::Ignored => Hangup::Ignored,
        _ => Hangup::Ends,
    };
    listen(hangup, tell)
}

/// Has a signal to stop end the process at once, with exit code 0, for as long as the flag
/// is set: while nothing stands that is to be taken down in order. A container's first
/// process would never hear of a signal that it has no handler for.
pub(super) fn stop_at_once() -> Result<Arc<AtomicBool>, CliError> {
    let at_once = Arc::new(AtomicBool::new(true));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 0, Arc::clone(&at_once))
            .map_err(failed)?;
    }
    Ok(at_once)
}

/// What wakes the main thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// Take down what stands.
    Stop,
    /// Read the files again, changed or not.
    Reload,
}

/// Turns signals into events. The flag says that a first signal to stop has come; see
/// [`stop_flag`]. SIGHUP requests that the files be read again, unless the terminal that the
/// program was started on is gone. It is then a request to stop.
pub(super) fn watch(tell: Sender<Event>) -> Result<Arc<AtomicBool>, CliError> {
    let hangup = match Hangup::at_start() {
        // `nohup` means that the program should outlive the terminal.
        Hangup::Ignored => Hangup::Reloads,
        other => other,
    };
    listen(hangup, tell)
}

/// The effect of SIGHUP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hangup {
    Ignored,
    Reloads,
    Ends,
    /// Ends the program if the terminal is gone when the signal arrives, and reloads otherwise.
    EndsWithTerminal,
}

impl Hangup {
    /// The effect that follows from how the program was started: with SIGHUP ignored, on a
    /// terminal, or without one.
    fn at_start() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status
            .lines()
            .find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok())
            .is_some_and(|signals| signals & (1 << (SIGHUP - 1)) != 0);
        match (ignored, has_terminal()) {
            (true, _) => Self::Ignored,
            (false, true) => Self::EndsWithTerminal,
            (false, false) => Self::Reloads,
        }
    }

    fn ends(self) -> bool {
        self == Self::Ends || (self == Self::EndsWithTerminal && !has_terminal())
    }
}

/// Returns true if the process has a controlling terminal. When a terminal hangs up, the kernel
/// detaches it before it sends the signal.
fn has_terminal() -> bool {
    File::open("/dev/tty").is_ok()
}

fn listen(hangup: Hangup, tell: Sender<Event>) -> Result<Arc<AtomicBool>, CliError> {
    let stopping = Arc::new(AtomicBool::new(false));
    let at_once = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            128 + signal,
            Arc::clone(&at_once),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stopping)))
        .map_err(failed)?;
    }
    let to: &[c_int] = match hangup {
        Hangup::Ignored => &[SIGINT, SIGTERM],
        _ => &[SIGINT, SIGTERM, SIGHUP],
    };
    let mut signals = Signals::new(to).map_err(failed)?;
    let hung_up = Arc::clone(&stopping);
    std::thread::Builder::new()
        .name("sgwall-signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                // Who doesn't listen any more, or never did, is told in vain.
                if signal == SIGHUP && !hangup.ends() {
                    let _ = tell.send(Event::Reload);
                } else {
                    hung_up.store(true, Ordering::Release);
                    let _ = tell.send(Event::Stop);
                    std::thread::sleep(THE_SAME);
                    at_once.store(true, Ordering::Release);
                }
            }
        })
        .map_err(failed)?;
    Ok(stopping)
}

/// What to say when signals can't be handled.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
pub(super) fn failed(error: std::io::Error) -> CliError {
    CliError::System(format!("handling signals: {error}"))
}
