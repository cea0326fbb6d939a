//! Interfaces that are taken, with the appliance that guards them.
//!
//! The order matters. All that takes privileges comes first, while the process has one
//! thread; one thread keeps what is needed to undo it; then privileges are dropped, and
//! only after that the first packet is read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::BindToDevice;
use serde_json::json;

use super::guard::SharedNames;
use crate::cli::standing::{answer, chain};
use crate::cli::{CliError, signals};
use crate::engine::{Appliance, Options, prover_addresses};
use crate::lab::Session;
use crate::lab::control::{Server, Serving};
use crate::link::{
    self, EtherIdentity, InnerLink, Link, Offload, OuterLink, PacketSocket, Secret, Tap,
};
use crate::model::{InterfaceIx, Model};
use crate::sidecar::confine::{self, Reach};
use crate::sidecar::keeper::{Detour, Keeper};
use crate::sidecar::world::Guarded;
use crate::sidecar::{self, Taken, TakenInterface};

/// What is to be taken, and how.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// Of the session.
    pub(super) name: &'a str,
    /// Which interfaces; all if there are none.
    pub(super) interfaces: &'a [String],
    /// Whether they are given back in the end.
    pub(super) give_back: bool,
    pub(super) offload: Offload,
}

/// Interfaces that are taken and closed; nothing is forwarded yet.
#[derive(Debug)]
pub(super) struct Closed {
    session: Session,
    links: Vec<(Arc<InnerLink>, Arc<OuterLink>)>,
    taken: Taken<()>,
    give_back: bool,
    guarded: Vec<Guarded>,
    taken_in: Duration,
}

/// Interfaces that are taken and closed, in a process that has given its privileges up.
#[derive(Debug)]
pub(super) struct Unprivileged {
    closed: Closed,
    keeper: Keeper,
    detour: Detour,
}

/// Interfaces that are guarded. Dropping it stops forwarding; they stay closed.
#[derive(Debug)]
pub(super) struct Standing {
    _serving: Serving,
    pub(super) appliance: Arc<Appliance>,
    links: Vec<(Arc<InnerLink>, Arc<OuterLink>)>,
    /// Where the interfaces are given back in the end.
    keeper: Option<Keeper>,
    _session: Session,
    /// The interfaces, in the order of the model.
    pub(super) guarded: Vec<Guarded>,
    pub(super) left_open: Vec<String>,
    /// How long taking them took.
    pub(super) taken_in: Duration,
    /// How long the proof took.
    pub(super) proven_in: Duration,
    /// The namespace's devices when they were last looked at.
    known: RefCell<BTreeSet<String>>,
}

impl Closed {
    /// Takes the interfaces and drops the privileges that this took. Call it before any
    /// thread starts.
    pub(super) fn take(wanted: &Wanted<'_>) -> Result<Self, CliError> {
        let began = Instant::now();
        confine::check().map_err(system)?;
        confine::shut_out_others().map_err(system)?;
        let session = Session::start(wanted.name)?;
        let secret = secret();
        let asked = sidecar::Wanted {
            only: wanted.interfaces.to_vec(),
        };
        let taken = sidecar::take(&asked, secret, |name| Tap::open(name, wanted.offload))
            .map_err(system)?;
        let mut links = Vec::new();
        let mut guarded = Vec::new();
        let mut interfaces = Vec::new();
        for this in taken.interfaces {
            let socket = PacketSocket::open(this.raw_index, secret, wanted.offload)
                .map_err(|error| CliError::System(format!("{}: {error}", this.raw_name)))?;
            let addresses: Vec<IpAddr> = this.addresses.iter().map(|net| net.addr()).collect();
            let identity = EtherIdentity {
                mac: this.mac,
                addresses: addresses.clone(),
            };
            links.push(link::wire(this.tap, socket, identity));
            guarded.push(Guarded {
                name: this.name.clone(),
                addresses,
                mtu: this.mtu,
            });
            interfaces.push(TakenInterface {
                tap: (),
                name: this.name,
                index: this.index,
                raw_name: this.raw_name,
                raw_index: this.raw_index,
                mac: this.mac,
                mtu: this.mtu,
                addresses: this.addresses,
            });
        }
        let taken = Taken {
            interfaces,
            left_open: taken.left_open,
            closes_frames_of_later_interfaces: taken.closes_frames_of_later_interfaces,
        };
        sidecar::verify(&taken, secret).map_err(system)?;
        Ok(Self {
            session,
            links,
            taken,
            give_back: wanted.give_back,
            guarded,
            taken_in: began.elapsed(),
        })
    }

    /// The interfaces, in the order of the model.
    pub(super) fn guarded(&self) -> &[Guarded] {
        &self.guarded
    }

    /// Makes the last things that take privileges, and gives those up. `model` is that
    /// of [`Self::guarded`].
    pub(super) fn prepare(self, model: &Model) -> Result<Unprivileged, CliError> {
        let devices = self.taken.interfaces.iter().map(|it| it.index).collect();
        let detour = Detour::make(devices, prover_addresses(model)).map_err(system)?;
        let keeper = Keeper::start().map_err(signals::failed)?;
        confine::drop_capabilities(&[]).map_err(system)?;
        Ok(Unprivileged {
            closed: self,
            keeper,
            detour,
        })
    }
}

impl Unprivileged {
    /// Starts the appliance and proves it.
    pub(super) fn up(
        self,
        model: &Model,
        options: Options,
        names: Arc<SharedNames>,
    ) -> Result<Standing, CliError> {
        let Self {
            closed,
            keeper,
            detour,
        } = self;
        let began = Instant::now();
        let mut links: Vec<Arc<dyn Link>> = Vec::new();
        for (inner, outer) in &closed.links {
            links.push(Arc::clone(inner) as Arc<dyn Link>);
            links.push(Arc::clone(outer) as Arc<dyn Link>);
        }
        let taken = &closed.taken.interfaces;
        let appliance = Appliance::start(model.clone(), links, options, |at, address| {
            // Interfaces stand at the even places, each before its wire.
            let this = &taken[at.ix() / 2];
            bound_to(&this.name, this.index, address)
        })
        .map_err(system)?;
        let proven_in = began.elapsed();
        keeper.end_detour(detour).map_err(system)?;

        let appliance = Arc::new(appliance);
        let server = Server::bind(&closed.session)?;
        let asked = Arc::clone(&appliance);
        let name = closed.session.name().to_owned();
        let serving = server.serve(move |request| {
            let mut response = answer(&request, &name, &asked, None);
            if request.op == "status"
                && let Some(fields) = response.body.as_object_mut()
            {
                fields.insert("members".to_owned(), json!(names.status()));
            }
            response
        })?;
        Ok(Standing {
            _serving: serving,
            appliance,
            keeper: closed.give_back.then_some(keeper),
            links: closed.links,
            _session: closed.session,
            known: RefCell::new(devices_of_the_namespace()),
            guarded: closed.guarded,
            left_open: closed.taken.left_open,
            taken_in: closed.taken_in,
            proven_in,
        })
    }
}

impl Standing {
    /// Confines all threads to what they need from now on.
    pub(super) fn confine(&self) -> Result<(), CliError> {
        let reach = match self.keeper {
            Some(_) => Reach::GivingBack,
            None => Reach::Packets,
        };
        confine::seccomp(reach).map_err(system)
    }

    /// An interface whose device is gone.
    pub(super) fn gone(&self) -> Option<&str> {
        let gone = |(number, (_, outer)): (usize, &(_, Arc<OuterLink>))| {
            let ends = [2 * number, 2 * number + 1];
            let broken = ends.map(|at| self.appliance.engine().is_broken(InterfaceIx::new(at)));
            (outer.is_gone() || broken[0] || broken[1]).then_some(number)
        };
        let number = self.links.iter().enumerate().find_map(gone)?;
        Some(&self.guarded[number].name)
    }

    /// Interfaces that have appeared since this was asked for the last time.
    pub(super) fn appeared(&self) -> Vec<String> {
        let now = devices_of_the_namespace();
        let before = self.known.replace(now.clone());
        now.difference(&before).cloned().collect()
    }

    /// Stops forwarding, and gives the interfaces back if that was asked for.
    pub(super) fn down(self) -> Result<(), CliError> {
        let Self {
            _serving: serving,
            appliance,
            links,
            keeper,
            ..
        } = self;
        drop(serving);
        drop(appliance);
        // The TAP devices go with their last descriptors.
        drop(links);
        if let Some(keeper) = keeper {
            keeper.give_back().map_err(system)?;
        }
        Ok(())
    }
}

fn system(error: impl std::error::Error) -> CliError {
    CliError::System(chain(&error))
}

/// What nobody guesses.
fn secret() -> Secret {
    use std::hash::{BuildHasher, RandomState};
    // Seeded by the system's random numbers.
    Secret::from(RandomState::new().hash_one(std::process::id()))
}

/// A socket of the workload's, as it were: bound to an address of the interface.
fn bound_to(name: &str, index: u32, address: SocketAddr) -> io::Result<UdpSocket> {
    // Who is bound to an address of a link is bound to the link.
    if let SocketAddr::V6(v6) = address
        && v6.ip().is_unicast_link_local()
    {
        return UdpSocket::bind(SocketAddrV6::new(*v6.ip(), v6.port(), 0, index));
    }
    let socket = UdpSocket::bind(address)?;
    setsockopt(&socket, BindToDevice, &name.into())?;
    Ok(socket)
}

/// The names of all network devices but `lo`.
fn devices_of_the_namespace() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    text.lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .filter(|name| name != "lo")
        .collect()
}
