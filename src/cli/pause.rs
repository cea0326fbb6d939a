//! `sgwall pause`: close the namespace that this runs in, and hold it.
//!
//! A container's namespace lives as long as the container that it was made for. Where that
//! is one that does nothing else, workload and sidecar may each be started again while the
//! namespace, and what closes it, stays.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::output::Printer;
use super::signals::{self, Event};
use super::standing::chain;
use super::teller::Teller;
use super::{CliError, Format, Outcome};
use crate::sidecar::{self, confine};
use crossbeam::channel;
use serde_json::json;

/// Arguments of `sgwall pause`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Start it first, then the sidecar, then the workload, all in its namespace:
  docker run -d --name web-net --network front --cap-drop ALL --cap-add NET_ADMIN IMAGE pause
  docker run -d --network container:web-net … IMAGE sidecar --rules /rules/rules.yaml --group web
  docker run -d --network container:web-net APP
Nothing but lo passes until the sidecar guards it.

Exit code: 0 ended as asked, 3 the namespace can't be closed.")]
pub struct Args {
    /// How events are written; JSON is one object a line.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Closes the namespace, and waits until it is told to end.
///
/// # Errors
/// [`CliError::System`] if it can't be closed.
pub fn run(args: &Args) -> Result<Outcome, CliError> {
    let at_once = signals::stop_at_once()?;
    let system = |error: &dyn std::error::Error| CliError::System(chain(error));
    sidecar::close().map_err(|error| system(&error))?;
    confine::drop_capabilities(&[]).map_err(|error| system(&error))?;
    let (tell, told) = channel::unbounded();
    let _stopping = signals::watch(tell)?;
    at_once.store(false, Ordering::Release);
    let (printer, printed) = Printer::start()?;
    let teller = Teller::new(printer, args.format);
    let text = "the namespace is closed: nothing but lo passes until a sidecar guards it";
    teller.say("closed", text, json!({}));
    while let Ok(event) = told.recv_timeout(Duration::MAX) {
        if event == Event::Stop {
            break;
        }
    }
    drop(teller);
    printed.wait();
    Ok(Outcome::Yes)
}
