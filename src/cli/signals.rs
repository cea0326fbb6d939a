//! Ctrl-C and SIGTERM, for the commands that have a lab to take down.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};

use super::CliError;

/// A flag that the first signal to stop sets, so that the lab can be taken
/// down in order; a second signal ends the process at once, and the devices
/// with it.
pub(super) fn stop_flag() -> Result<Arc<AtomicBool>, CliError> {
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            128 + signal,
            Arc::clone(&stopping),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stopping)))
        .map_err(failed)?;
    }
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
