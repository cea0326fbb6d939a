//! Labs of network namespaces: one for each entity, with a TUN device for
//! each of its interfaces. Make them, enter them, run commands in them, take
//! them down.
//!
//! The order of things: [`prepare`] first, in `main` and before any thread;
//! then [`Session::start`] claims the lab's name, [`Lab::up`] makes the
//! namespaces and devices, and [`control::Server`] answers `sgwall exec` and
//! `sgwall status`. Taking down is dropping in the reverse order. Devices are
//! not persistent: whatever ends the process ends every path between entities.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::link::{Offload, TunLink};
use crate::model::{EntityIx, InterfaceIx, Model};

mod attach;
mod commands;
pub mod control;
mod devices;
mod enter;
mod error;
mod gate;
mod hosts;
mod identity;
mod lease;
mod namespace;
mod netlink;
mod netns;
mod privilege;
pub mod probe;
mod processes;
mod session;

pub use commands::{CommandEvent, RunCommands, Stream};
pub use devices::DeviceState;
pub use enter::{ENTITY_VARIABLE, Entry, LAB_VARIABLE, die_with_parent};
pub use error::LabError;
pub use gate::Gate;
pub use identity::Privilege;
pub use lease::{Writers, writers};
pub use namespace::Namespace;
pub use privilege::prepare;
pub use session::{RunningLab, STATE_DIR_VARIABLE, Session};

use attach::{Attached, Plan};
use devices::Devices;
use session::Leftovers;

/// How many threads make namespaces. The kernel serialises much of it; more
/// threads gain nothing.
const BUILDERS: usize = 2;
/// How many threads remove devices; see [`close_all`].
const CLOSERS: usize = 16;

/// A lab that is up: every namespace and device of one model. Dropping it
/// takes all of it down.
#[derive(Debug)]
pub struct Lab {
    links: Vec<Arc<TunLink>>,
    gate: Option<Arc<Gate>>,
    devices: Option<Devices>,
    namespaces: Vec<Namespace>,
    privilege: Privilege,
    session: Session,
}

impl Lab {
    /// Makes the namespaces and devices of `model`: all of them, or none.
    ///
    /// # Errors
    /// The first refusal of the system, after everything made so far is gone.
    pub fn up(session: Session, model: &Model) -> Result<Self, LabError> {
        Self::up_with(session, model, Offload::Granted)
    }

    /// [`Lab::up`] with devices that have offloads or don't.
    ///
    /// # Errors
    /// As [`Lab::up`].
    pub fn up_with(session: Session, model: &Model, offload: Offload) -> Result<Self, LabError> {
        let privilege = identity::identity().privilege;
        let mut leftovers = Leftovers::default();
        let mut plans = Vec::with_capacity(model.entities.len());
        for (i, entity) in model.entities.iter().enumerate() {
            let bound =
                (privilege == Privilege::Root).then(|| netns::path(session.name(), &entity.name));
            leftovers.bound.extend(bound.clone());
            plans.push(Plan::new(model, EntityIx::new(i), bound)?);
        }
        raise_file_limit(&plans);
        if privilege == Privilege::Root {
            netns::prepare_dir()?;
        }
        // Written down before anything exists: a kill in between leaves no
        // namespace that the next run does not know of.
        let foreign = leftovers.bound.iter().find(|path| path.exists()).cloned();
        if let Some(path) = foreign {
            let owner = session.owner_of(&path)?;
            return Err(LabError::NamespaceTaken { path, owner });
        }
        session.record(&leftovers)?;

        let (attached, error) = carry_out_all(&plans, offload);
        let mut lab = Self {
            links: Vec::with_capacity(model.interfaces.len()),
            gate: None,
            devices: None,
            namespaces: Vec::with_capacity(attached.len()),
            privilege,
            session,
        };
        let mut links = Vec::with_capacity(model.interfaces.len());
        let mut watched = Vec::with_capacity(attached.len());
        for one in attached {
            lab.namespaces.push(one.namespace);
            links.extend(one.links);
            watched.push(one.watched);
        }
        if let Some(error) = error {
            return Err(error);
        }
        links.sort_by_key(|(interface, _)| *interface);
        lab.links.extend(links.into_iter().map(|(_, link)| link));

        leftovers.inodes = lab.namespaces.iter().map(Namespace::inode).collect();
        lab.session.record(&leftovers)?;
        let gate = Gate::new(lab.session.name(), privilege, model, &lab.namespaces)?;
        lab.gate = Some(Arc::new(gate));
        lab.devices = Some(Devices::watch(&lab.namespaces, watched)?);
        Ok(lab)
    }

    /// The lab's run-state.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Where its powers come from.
    pub fn privilege(&self) -> Privilege {
        self.privilege
    }

    /// The appliance's end of every interface, in the model's order. A device
    /// lasts until the last of these is dropped.
    pub fn links(&self) -> Vec<Arc<TunLink>> {
        self.links.clone()
    }

    /// Returns the changes to devices inside their namespaces since the last call.
    pub fn device_changes(&self) -> Vec<(InterfaceIx, DeviceState)> {
        self.devices
            .as_ref()
            .map_or_else(Vec::new, Devices::changes)
    }

    /// The namespace of an entity.
    pub fn namespace(&self, entity: EntityIx) -> &Namespace {
        &self.namespaces[entity.ix()]
    }

    /// Every namespace, in the order of the model's entities.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.namespaces
    }

    /// What lets others in: for the control socket's handler, which must not
    /// keep the lab itself from being taken down.
    pub fn gate(&self) -> Arc<Gate> {
        let gate = self.gate.as_ref();
        Arc::clone(gate.expect("invariant: a lab that is up has its gate"))
    }

    /// Starts the `run:` commands of the model's entities by way of `sgwall
    /// exec`; so the control socket must be served already. `sink` hears of
    /// them, from several threads.
    ///
    /// # Errors
    /// The system refused a thread. A command that can't be started is told
    /// to `sink`.
    pub fn spawn_run_commands(
        &self,
        model: &Model,
        sink: impl Fn(EntityIx, &str, CommandEvent<'_>) + Send + Sync + 'static,
    ) -> Result<RunCommands, LabError> {
        self.spawn_run_commands_with(&commands::own_program(), model, sink)
    }

    /// The same, with the `sgwall` program at `program` instead of this one.
    ///
    /// # Errors
    /// As [`spawn_run_commands`](Self::spawn_run_commands).
    pub fn spawn_run_commands_with(
        &self,
        program: &Path,
        model: &Model,
        sink: impl Fn(EntityIx, &str, CommandEvent<'_>) + Send + Sync + 'static,
    ) -> Result<RunCommands, LabError> {
        let start = commands::Start {
            program: program.to_owned(),
            lab: self.session.name().to_owned(),
            base: self.session.base().to_owned(),
        };
        let orders = model
            .entities
            .iter()
            .enumerate()
            .filter_map(|(i, entity)| {
                Some(commands::Order {
                    entity: EntityIx::new(i),
                    name: entity.name.clone(),
                    command: entity.run.clone()?,
                })
            })
            .collect();
        RunCommands::spawn(&start, orders, &(Arc::new(sink) as _))
    }

    /// Takes the lab down: ends the processes in its namespaces, removes
    /// devices, namespaces and run-state. The same as dropping it. Drop other
    /// holders of [`links`](Self::links) first: a device lasts as long as they.
    pub fn down(self) {
        drop(self);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.devices = None;
        let inodes: Vec<u64> = self.namespaces.iter().map(Namespace::inode).collect();
        if !inodes.is_empty() {
            processes::end_all(&|pid| processes::is_in(pid, &inodes));
        }
        close_all(std::mem::take(&mut self.links));
    }
}

/// Carries out the plans on a few threads; what was made comes in their
/// order, and all of it comes with the first error if there was one.
fn carry_out_all(plans: &[Plan], offload: Offload) -> (Vec<Attached>, Option<LabError>) {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let made: Mutex<Vec<(usize, Attached)>> = Mutex::new(Vec::with_capacity(plans.len()));
    let failure: Mutex<Option<LabError>> = Mutex::new(None);
    let fail = |error| {
        stop.store(true, Ordering::Relaxed);
        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    };
    // The threads end up inside the namespaces they make, so the caller's own
    // is never one of them.
    let build = || {
        while !stop.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(plan) = plans.get(i) else {
                break;
            };
            match plan.carry_out(offload) {
                Ok(one) => made
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((i, one)),
                Err(error) => fail(error),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..BUILDERS {
            let builder = thread::Builder::new().name("sgwall-up".into());
            if let Err(error) = builder.spawn_scoped(scope, build) {
                fail(LabError::system("start a thread", error));
            }
        }
    });
    let mut made = made.into_inner().unwrap_or_else(PoisonError::into_inner);
    made.sort_by_key(|(i, _)| *i);
    let made = made.into_iter().map(|(_, one)| one).collect();
    let failure = failure.into_inner().unwrap_or_else(PoisonError::into_inner);
    (made, failure)
}

/// Drops the links. The kernel takes some 20 ms to remove a device, most of
/// it waiting; on several threads it waits for many at once.
fn close_all(links: Vec<Arc<TunLink>>) {
    let closers = links.len().min(CLOSERS);
    let links = Mutex::new(links);
    let close = || {
        let next = || links.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(link) = next() {
            drop(link);
        }
    };
    thread::scope(|scope| {
        for _ in 1..closers {
            // Without them it merely takes longer.
            let _ = thread::Builder::new().spawn_scoped(scope, close);
        }
        close();
    });
}

/// A namespace, its netlink socket and a device take one file descriptor each, and 1024 is a
/// common limit. The limit is raised no more than needed, because commands inherit it.
fn raise_file_limit(plans: &[Plan]) {
    let devices: usize = plans.iter().map(Plan::device_count).sum();
    let wanted = 512 + 3 * plans.len() as u64 + 4 * devices as u64;
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard);
    }
}
