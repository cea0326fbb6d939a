//! The threads that move packets. Each worker owns some links: it polls them,
//! reads, judges and writes to the receiving link itself; no packet is handed
//! to another thread. A further thread sweeps expired flows.
//!
//! The policy in force is swapped atomically. A worker takes it up once a
//! batch, so a packet is judged by one policy from its first layer to its last.

mod appliance;
mod delivery;
pub mod proof;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use crossbeam::channel::{self, Sender};
use crossbeam::utils::CachePadded;

use crate::conntrack::{DEFAULT_CAPACITY, FlowTable, Millis};
use crate::datapath::Datapath;
use crate::link::Link;
use crate::model::InterfaceIx;
use crate::observe::Counters;
use crate::observe::drops::DropLog;
use crate::policy::{DropReason, Policy};
use worker::Worker;

pub use appliance::{Appliance, ReplaceError};
pub use proof::prover_addresses;

/// Time in which the whole flow table is swept, a part after the other.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Into how many parts a sweep is divided, so that with a million flows it takes a core
/// for a few milliseconds at a time and not for fifty.
const SWEEP_PARTS: u32 = 16;

/// How the engine runs.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Worker threads, at least one.
    pub workers: usize,
    /// Most flows remembered at a time; untracked ones have half of it.
    pub max_flows: usize,
    /// Whether workers poll without ever sleeping.
    pub busy_poll: bool,
    /// Whether samples of dropped packets are kept for [`Engine::drop_log`].
    pub log_drops: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: default_workers(),
            max_flows: DEFAULT_CAPACITY,
            busy_poll: false,
            log_drops: false,
        }
    }
}

/// As many workers as cores, but not more than two: on two cores a second one gave 6 to
/// 54 % more TCP throughput without offloads (`scripts/bench`). With them it was
/// some 18 % more with eight streams and 4 % less with one, by turns on a busy machine.
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2))
}

/// What may go wrong with the engine's threads.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Polling could not be set up.
    #[error("setting up polling for worker {worker}")]
    Poll {
        /// Which worker.
        worker: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A link could not be polled.
    #[error("registering link {link} with worker {worker}")]
    Register {
        /// Which worker.
        worker: usize,
        /// Which link.
        link: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("starting a thread")]
    Spawn(#[source] io::Error),
    /// A worker did not take up a new policy in time.
    #[error("worker {worker} did not take up policy generation {generation} within {waited:?}")]
    Stuck {
        /// Which worker.
        worker: usize,
        /// Which policy.
        generation: u64,
        /// How long it was given.
        waited: Duration,
    },
}

/// A running data plane. Dropping it stops its threads.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    wakers: Vec<Arc<mio::Waker>>,
    threads: Vec<JoinHandle<()>>,
    /// Dropped to end the sweeper.
    sweeping: Option<Sender<()>>,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    policy: Arc<ArcSwap<Policy>>,
    datapath: Datapath,
    links: Vec<Arc<dyn Link>>,
    counters: Counters,
    drop_log: Option<DropLog>,
    /// The generation that each worker judges by.
    seen: Vec<CachePadded<AtomicU64>>,
    /// Whether reading from each link failed the last time.
    broken: Vec<AtomicBool>,
    stop: AtomicBool,
    busy_poll: bool,
    started: Instant,
    /// The millisecond in which a super-packet came last.
    bulk: CachePadded<AtomicU64>,
}

impl Shared {
    fn now(&self) -> Millis {
        Millis::from(self.started.elapsed())
    }
}

impl Engine {
    /// Starts forwarding between `links`, whose order is that of the policy's
    /// interfaces, under `policy`.
    ///
    /// # Errors
    /// [`EngineError`] if polling or a thread can't be had; nothing runs then.
    pub fn start(
        links: Vec<Arc<dyn Link>>,
        policy: Policy,
        options: Options,
    ) -> Result<Self, EngineError> {
        let workers = options.workers.max(1);
        let shared = Arc::new(Shared {
            policy: Arc::new(ArcSwap::from_pointee(policy)),
            datapath: Datapath::new(options.max_flows),
            // The last set is the sweeper's.
            counters: Counters::new(workers + 1, links.len()),
            drop_log: options.log_drops.then(|| DropLog::new(workers + 1)),
            broken: links.iter().map(|_| AtomicBool::new(false)).collect(),
            links,
            seen: (0..workers)
                .map(|_| CachePadded::new(AtomicU64::new(0)))
                .collect(),
            stop: AtomicBool::new(false),
            bulk: CachePadded::new(AtomicU64::new(0)),
            busy_poll: options.busy_poll,
            started: Instant::now(),
        });
        let mut engine = Self {
            shared: Arc::clone(&shared),
            wakers: Vec::new(),
            threads: Vec::new(),
            sweeping: None,
        };
        for number in 0..workers {
            let (worker, waker) = Worker::new(number, workers, Arc::clone(&shared))?;
            engine.wakers.push(waker);
            engine.spawn(format!("sgwall-worker-{number}"), move || worker.run())?;
        }
        let (sweeping, stopped) = channel::bounded::<()>(0);
        engine.sweeping = Some(sweeping);
        engine.spawn("sgwall-sweeper".to_owned(), move || {
            let mut part = 0;
            while let Err(channel::RecvTimeoutError::Timeout) =
                stopped.recv_timeout(SWEEP_EVERY / SWEEP_PARTS)
            {
                let swept = shared.datapath.sweep_part(part, SWEEP_PARTS, shared.now());
                part = (part + 1) % SWEEP_PARTS;
                let tally = shared.counters.tally(workers);
                for (at, orphans) in swept.orphans {
                    tally.dropped(DropReason::OrphanFragment, at, orphans);
                    if let Some(log) = &shared.drop_log {
                        log.count(workers, DropReason::OrphanFragment, orphans);
                    }
                }
                if swept.flows > 0 {
                    tracing::debug!(flows = swept.flows, "expired flows removed");
                }
            }
        })?;
        Ok(engine)
    }

    /// Puts `policy` in force and returns once every worker judges by it:
    /// packets read from now on meet the new rules only.
    ///
    /// # Errors
    /// [`EngineError::Stuck`] if a worker doesn't within two seconds; the
    /// policy is in force for the others.
    pub fn swap(&self, policy: Policy) -> Result<(), EngineError> {
        const PATIENCE: Duration = Duration::from_secs(2);
        let generation = policy.generation();
        // Held until every worker has let go of it: a large policy takes time to free,
        // and no packet is to wait for that.
        let previous = self.shared.policy.swap(Arc::new(policy));
        for waker in &self.wakers {
            // A worker that can't be woken shows as stuck below.
            let _ = waker.wake();
        }
        let asked = Instant::now();
        for (worker, seen) in self.shared.seen.iter().enumerate() {
            while seen.load(Ordering::Acquire) < generation {
                if asked.elapsed() > PATIENCE {
                    return Err(EngineError::Stuck {
                        worker,
                        generation,
                        waited: PATIENCE,
                    });
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        drop(previous);
        Ok(())
    }

    /// The policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.shared.policy.load_full()
    }

    /// Packets, bytes and drops.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Samples of dropped packets, if [`Options::log_drops`] asked for them.
    pub fn drop_log(&self) -> Option<&DropLog> {
        self.shared.drop_log.as_ref()
    }

    /// The tracked flows.
    pub fn flows(&self) -> &FlowTable {
        self.shared.datapath.flows()
    }

    /// Forgets every flow and every datagram that came in fragments.
    pub fn forget(&self) {
        self.shared.datapath.clear();
    }

    /// True if a link can't be read, for example because its device is gone or down.
    /// Nothing that its interface sends goes anywhere then.
    pub fn is_broken(&self, link: InterfaceIx) -> bool {
        self.shared
            .broken
            .get(link.ix())
            .is_some_and(|broken| broken.load(Ordering::Relaxed))
    }

    /// Number of worker threads.
    pub fn workers(&self) -> usize {
        self.shared.seen.len()
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.shared.started.elapsed()
    }

    fn spawn(
        &mut self,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), EngineError> {
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(EngineError::Spawn)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.sweeping = None;
        for waker in &self.wakers {
            let _ = waker.wake();
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the engine had panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests;
