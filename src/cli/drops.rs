//! Tells of dropped packets, apart from the threads that drop them.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{self, RecvTimeoutError, Sender};

use super::CliError;
use crate::engine::Appliance;
use crate::observe::drops::DropReport;

/// How often the log is read: its queues have room for seconds, and whoever watches sees
/// a drop at once.
const EVERY: Duration = Duration::from_millis(200);

/// A thread that reads an appliance's log of drops. Dropping it tells of what is left and
/// ends it.
#[derive(Debug)]
pub(super) struct DropReader {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DropReader {
    /// Starts it; `tell` hears of each drop.
    pub(super) fn start(
        appliance: Arc<Appliance>,
        tell: impl Fn(&DropReport) + Send + 'static,
    ) -> Result<Self, CliError> {
        let (stop, stopped) = channel::bounded::<()>(0);
        let thread = std::thread::Builder::new()
            .name("sgwall-drops".to_owned())
            .spawn(move || {
                loop {
                    let ended = stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout);
                    appliance.take_drops().iter().for_each(&tell);
                    if ended {
                        return;
                    }
                }
            })
            .map_err(|error| CliError::System(format!("starting a thread: {error}")))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for DropReader {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of it has been told of by the thread itself.
            let _ = thread.join();
        }
    }
}
