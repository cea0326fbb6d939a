//! Ctrl-C, SIGTERM and SIGHUP, for the commands that hold something up.

use std::ffi::c_int;
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
    listen(&[SIGINT, SIGTERM], tell)
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
/// [`stop_flag`].
pub(super) fn watch(tell: Sender<Event>) -> Result<Arc<AtomicBool>, CliError> {
    listen(&[SIGINT, SIGTERM, SIGHUP], tell)
}

fn listen(to: &[c_int], tell: Sender<Event>) -> Result<Arc<AtomicBool>, CliError> {
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
    let mut signals = Signals::new(to).map_err(failed)?;
    std::thread::Builder::new()
        .name("sgwall-signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                // Who doesn't listen any more, or never did, is told in vain.
                if signal == SIGHUP {
                    let _ = tell.send(Event::Reload);
                } else {
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
