//! A lab that stands, with its appliance: what `run` and `demo` have in common.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::CliError;
use crate::engine::{Appliance, Options};
use crate::lab::control::{Request, Response, Server, Serving};
use crate::lab::{Gate, Lab, Session};
use crate::link::{Link, Offload};
use crate::model::Model;

/// Namespaces, devices and the appliance between them. Dropping it takes all
/// of it down: first nobody is let in any more, then nothing is forwarded,
/// then namespaces and what runs in them go.
#[derive(Debug)]
pub(super) struct Standing {
    _serving: Serving,
    pub(super) appliance: Arc<Appliance>,
    pub(super) lab: Lab,
    /// How long the namespaces and devices took.
    pub(super) made_in: Duration,
    /// How long the proof took.
    pub(super) proven_in: Duration,
}

impl Standing {
    /// Brings `model` up under the name of `session` and proves it.
    /// [`lab::prepare`](crate::lab::prepare) has been called by now.
    pub(super) fn up(
        session: Session,
        model: &Model,
        options: Options,
        offload: Offload,
    ) -> Result<Self, CliError> {
        let began = Instant::now();
        let lab = Lab::up_with(session, model, offload)?;
        let made_in = began.elapsed();

        let began = Instant::now();
        let links = lab
            .links()
            .into_iter()
            .map(|link| link as Arc<dyn Link>)
            .collect();
        let appliance = Appliance::start(model.clone(), links, options, |at, address| {
            let namespace = lab.namespace(model.interfaces[at.ix()].entity);
            namespace
                .run(move || UdpSocket::bind(address))
                .map_err(std::io::Error::other)?
        })
        .map_err(|error| CliError::System(chain(&error)))?;
        let appliance = Arc::new(appliance);
        let proven_in = began.elapsed();

        let server = Server::bind(lab.session())?;
        let gate = lab.gate();
        let asked = Arc::clone(&appliance);
        let name = lab.session().name().to_owned();
        let serving = server.serve(move |request| answer(&request, &name, &asked, Some(&gate)))?;
        Ok(Self {
            _serving: serving,
            appliance,
            lab,
            made_in,
            proven_in,
        })
    }
}

/// Answers what comes in over the control socket. A sidecar has no `gate`: who wants to
/// be in its namespace is there.
pub(super) fn answer(
    request: &Request,
    name: &str,
    appliance: &Appliance,
    gate: Option<&Gate>,
) -> Response {
    match (request.op.as_str(), gate) {
        ("status", _) => match serde_json::to_value(appliance.status()) {
            Ok(mut body) => {
                if let Some(fields) = body.as_object_mut() {
                    fields.insert("lab".to_owned(), name.into());
                }
                body.into()
            }
            Err(error) => Response::error(format!("writing the status: {error}")),
        },
        ("enter", Some(gate)) => gate.enter(request),
        ("enter", None) => Response::error(
            "this is a sidecar, whose namespace is its container's: enter that".to_owned(),
        ),
        (other, _) => Response::error(format!(
            "unknown operation '{other}': there are status and enter"
        )),
    }
}

/// An error with its causes, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}
