//! An engine with the model that it enforces: proven at start, changed while
//! it runs, asked for its status.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::proof::{Prover, take_over};
use super::{Engine, EngineError, Options};
use crate::link::Link;
use crate::model::{InterfaceIx, Model, TopologyChange};
use crate::observe::drops::{DropReport, Headers, PacketReport, Sample};
use crate::observe::{
    FlowStatus, InterfaceStatus, PolicyStatus, Proof, RecentDrop, Status, is_ready,
};
use crate::policy::{DropReason, Policy};

/// Drops that the status tells of one by one.
const MOST_RECENT: usize = 10;

/// A running appliance. Dropping it stops all forwarding.
#[derive(Debug)]
pub struct Appliance {
    engine: Engine,
    proofs: Vec<Proof>,
    /// What was dropped last, as far as it was told one by one.
    recent: Mutex<VecDeque<DropReport>>,
    /// Held while a model is put in force, so that changes happen one at a time.
    changing: Mutex<()>,
    /// Locked only for a moment, so that a status request never waits for a change.
    declared: Mutex<Declared>,
}

/// The state of what is declared now.
#[derive(Debug, Clone)]
struct Declared {
    model: Arc<Model>,
    /// True if a worker did not pick up the latest policy, which then differs from the model's.
    stuck: bool,
    reloads: u64,
    refused: u64,
    last_refusal: Option<String>,
    unread: Option<String>,
    /// The reasons why interfaces pass nothing, by their `eni-…`.
    impaired: BTreeMap<String, String>,
}

/// Why a changed model was not put in force.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// It changes what only a restart can change.
    #[error(transparent)]
    Topology(#[from] TopologyChange),
    /// The workers did not take it up.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Appliance {
    /// Starts forwarding between `links`, which stand for the interfaces of
    /// `model` in order, proves each interface, then puts the model's policy
    /// in force. `open` opens a UDP socket bound to an address of an
    /// interface, inside its namespace.
    ///
    /// # Errors
    /// [`EngineError`] if the threads can't be had. An interface that could
    /// not be proven is no error here: see [`Self::unproven`].
    pub fn start(
        model: Model,
        mut links: Vec<Arc<dyn Link>>,
        options: Options,
        open: impl FnMut(InterfaceIx, SocketAddr) -> io::Result<UdpSocket>,
    ) -> Result<Self, EngineError> {
        let prover = Prover::new(&model);
        links.push(prover.link());
        let engine = Engine::start(links, prover.policy(), options)?;
        let proofs = prover.prove(&engine, open);
        take_over(&engine, &model)?;
        Ok(Self {
            engine,
            proofs,
            recent: Mutex::default(),
            changing: Mutex::default(),
            declared: Mutex::new(Declared {
                model: Arc::new(model),
                stuck: false,
                reloads: 0,
                refused: 0,
                last_refusal: None,
                unread: None,
                impaired: BTreeMap::new(),
            }),
        })
    }

    /// The threads and their counters.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The interfaces that were not proven to enforce, by name, with the reason.
    pub fn unproven(&self) -> Vec<(String, String)> {
        // The links, and with them the proofs, keep the order of the policy's interfaces. A
        // changed model may have another order.
        let policy = self.engine.policy();
        policy
            .interfaces()
            .filter_map(|(at, interface)| Some((interface, self.proofs.get(at.ix())?)))
            .filter(|(_, proof)| !proof.holds())
            .map(|(interface, proof)| (interface.label.clone(), proof.to_string()))
            .collect()
    }

    /// Compiles `model` without blocking packets and puts it in force. Returns the new
    /// generation, or the current one if `model` is in force already. Tracked flows survive.
    ///
    /// # Errors
    /// [`ReplaceError`]; unless the engine is stuck, what was in force stays.
    pub fn replace(&self, model: Model) -> Result<u64, ReplaceError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, stuck) = {
            let declared = self.declared();
            (Arc::clone(&declared.model), declared.stuck)
        };
        if !stuck && *before == model {
            self.declared().last_refusal = None;
            return Ok(self.engine.policy().generation());
        }
        let replaced = before
            .same_topology(&model)
            .map_err(ReplaceError::from)
            .and_then(|()| {
                let policy = Policy::compile(&model, Some(&self.engine.policy()));
                let generation = policy.generation();
                self.engine.swap(policy)?;
                Ok(generation)
            });
        let mut declared = self.declared();
        match &replaced {
            Ok(_) => {
                declared.model = Arc::new(model);
                declared.stuck = false;
                declared.reloads += 1;
                declared.last_refusal = None;
            }
            Err(error) => {
                declared.stuck |= matches!(error, ReplaceError::Engine(_));
                declared.refuse(error.to_string());
            }
        }
        replaced
    }

    /// Takes note that a change did not even become a model.
    pub fn refuse(&self, why: String) {
        self.declared().refuse(why);
    }

    /// Records why a changed file is not read, or `None` once nothing is left unread.
    pub fn set_unread(&self, why: Option<String>) {
        self.declared().unread = why;
    }

    /// Records why an interface passes nothing, or `None` once it passes packets again.
    pub fn set_impaired(&self, interface: &str, why: Option<String>) {
        let mut declared = self.declared();
        match why {
            Some(why) => declared.impaired.insert(interface.to_owned(), why),
            None => declared.impaired.remove(interface),
        };
    }

    /// Its state now.
    pub fn status(&self) -> Status {
        let declared = self.declared().clone();
        let by_id = declared.by_id();
        let policy = self.engine.policy();
        let interfaces: Vec<InterfaceStatus> = policy
            .interfaces()
            .map(|(at, interface)| {
                let traffic = self.engine.counters().traffic(at);
                let own = by_id.get(interface.id.as_str()).copied();
                let (flow_entries, flow_entries_available) =
                    self.engine.flows().share(interface.entity);
                InterfaceStatus {
                    id: interface.id.clone(),
                    name: interface.label.clone(),
                    kind: own.map_or_else(String::new, |at| {
                        declared.model.entity_of(at).kind.to_string()
                    }),
                    addresses: interface
                        .addresses
                        .iter()
                        .map(|address| address.private.to_string())
                        .collect(),
                    security_groups: declared.groups_of(own),
                    proof: match declared.impaired.get(&interface.id) {
                        Some(why) if !self.engine.is_broken(at) => {
                            Proof::Unproven { why: why.clone() }
                        }
                        _ => self.proof(at),
                    },
                    packets_in: traffic.packets_in,
                    bytes_in: traffic.bytes_in,
                    packets_out: traffic.packets_out,
                    bytes_out: traffic.bytes_out,
                    conntrack_allowance_available: interface
                        .allowance
                        .map(|allowance| self.engine.flows().available(allowance)),
                    conntrack_allowance: interface.allowance.map(|allowance| allowance.limit),
                    flow_entries,
                    flow_entries_available,
                    drops: traffic
                        .drops_by_reason()
                        .map(|(reason, count)| (reason.as_str().to_owned(), count))
                        .collect(),
                }
            })
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.engine.uptime().as_millis()).unwrap_or(u64::MAX),
            ready: is_ready(&interfaces),
            enforcing: interfaces.iter().all(|it| it.proof.holds()),
            workers: self.engine.workers(),
            policy: PolicyStatus {
                generation: policy.generation(),
                reloads: declared.reloads,
                refused: declared.refused,
                last_refusal: declared.last_refusal.clone(),
                unread: declared.unread.clone(),
            },
            flows: FlowStatus {
                remembered: self.engine.flows().len(),
                capacity: self.engine.flows().capacity(),
            },
            interfaces,
            members: Vec::new(),
            recent_drops: self.recent_drops(),
        }
    }

    /// What was dropped since this was asked last, if [`Options::log_drops`] asked to keep
    /// that; a bounded part of it one by one, the rest as numbers.
    pub fn take_drops(&self) -> Vec<DropReport> {
        let Some(log) = self.engine.drop_log() else {
            return Vec::new();
        };
        let taken = log.take();
        if taken.is_empty() {
            return Vec::new();
        }
        let (now, uptime) = (SystemTime::now(), self.engine.uptime());
        let declared = self.declared().clone();
        let by_id = declared.by_id();
        let policy = self.engine.policy();
        let named = |sample: Sample| {
            let interface = policy.interface(sample.at);
            let no_rule = matches!(
                sample.reason,
                DropReason::NoIngressRule | DropReason::NoEgressRule
            );
            PacketReport {
                time_ms: unix_ms(now, uptime.saturating_sub(sample.when.into())),
                // The proof's own interface is gone from the policy by now.
                interface: interface.map_or_else(|| "?".to_owned(), |it| it.label.clone()),
                direction: sample.direction.as_str(),
                security_groups: interface.filter(|_| no_rule).map_or_else(Vec::new, |it| {
                    declared.groups_of(by_id.get(it.id.as_str()).copied())
                }),
                packets: sample.packets,
                headers: sample.packet.as_ref().map(Headers::from),
            }
        };
        let reports: Vec<DropReport> = taken
            .into_iter()
            .map(|dropped| DropReport {
                reason: dropped.reason,
                more: dropped.more,
                packet: dropped.sample.map(named),
            })
            .collect();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.extend(reports.iter().filter(|it| it.packet.is_some()).cloned());
        let surplus = recent.len().saturating_sub(MOST_RECENT);
        recent.drain(..surplus);
        reports
    }

    /// What was dropped last, the latest at the end.
    fn recent_drops(&self) -> Vec<RecentDrop> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().map(RecentDrop::from).collect()
    }

    /// What was proven of an interface, unless its device has gone since.
    fn proof(&self, at: InterfaceIx) -> Proof {
        if self.engine.is_broken(at) {
            return Proof::Unproven {
                why: "its device is down or gone, nothing passes".to_owned(),
            };
        }
        self.proofs.get(at.ix()).cloned().unwrap_or(Proof::Pending)
    }

    fn declared(&self) -> MutexGuard<'_, Declared> {
        self.declared
            .lock()
            .unwrap_or_else(|broken| broken.into_inner())
    }
}

impl Declared {
    /// Returns the interfaces by ID, for repeated lookups.
    fn by_id(&self) -> HashMap<&str, InterfaceIx> {
        let ids = self.model.interfaces();
        ids.map(|(at, it)| (it.id.as_str(), at)).collect()
    }

    /// The names of the security groups of an interface.
    fn groups_of(&self, interface: Option<InterfaceIx>) -> Vec<String> {
        let name = |group: &crate::model::GroupIx| &self.model.security_groups[group.ix()].name;
        interface.map_or_else(Vec::new, |at| {
            let groups = self.model.interfaces[at.ix()].groups();
            groups.iter().map(name).cloned().collect()
        })
    }

    fn refuse(&mut self, why: String) {
        self.refused += 1;
        self.last_refusal = Some(why);
    }
}

/// The time so long before `now`, in milliseconds since 1970-01-01 UTC.
fn unix_ms(now: SystemTime, ago: Duration) -> u64 {
    let then = now.checked_sub(ago).unwrap_or(UNIX_EPOCH);
    let since = then.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
