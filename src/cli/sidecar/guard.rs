//! The policy of a sidecar, kept what files and names say for as long as it runs.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use serde_json::json;

use super::Args;
use super::standing::Standing;
use crate::cli::output::Paint;
use crate::cli::signals::{self, Event};
use crate::cli::teller::Teller;
use crate::cli::watch::{LOOK, Seen, Watch, tell_obstacle};
use crate::cli::{CliError, Outcome, check};
use crate::config::{self, DeclaredMember, LoadedRules};
use crate::engine::ReplaceError;
use crate::model::Model;
use crate::observe::MemberStatus;
use crate::sidecar::dns::Family;
use crate::sidecar::members::{Change, Names};
use crate::sidecar::resolver::Resolver;
use crate::sidecar::world::{self, Asked, Guarded};

/// The names of members, for the guard and for the status.
#[derive(Debug)]
pub(super) struct SharedNames {
    names: Mutex<Names>,
    began: Instant,
}

impl SharedNames {
    pub(super) fn new(names: Names) -> Self {
        Self {
            names: Mutex::new(names),
            began: Instant::now(),
        }
    }

    pub(super) fn status(&self) -> Vec<MemberStatus> {
        self.lock().status(self.began.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the policy what files and names say.
pub(super) struct Guard<'a> {
    args: &'a Args,
    standing: &'a Standing,
    teller: &'a Teller,
    asked: Asked,
    rules: LoadedRules,
    names: Arc<SharedNames>,
    resolver: Resolver,
    /// True if the latest answers for names are not in force yet.
    is_behind: bool,
}

impl<'a> Guard<'a> {
    /// A guard by `rules`, of which those are in force.
    pub(super) fn new(
        args: &'a Args,
        standing: &'a Standing,
        teller: &'a Teller,
        asked: Asked,
        rules: LoadedRules,
        names: Arc<SharedNames>,
    ) -> Result<Self, CliError> {
        let resolver = Resolver::start(
            Duration::from_secs(args.refresh),
            families(&standing.guarded),
            names.lock().names(),
        )
        .map_err(signals::failed)?;
        Ok(Self {
            args,
            standing,
            teller,
            asked,
            rules,
            names,
            resolver,
            is_behind: false,
        })
    }

    /// Does so until it is told to stop, or there is nothing left to guard.
    pub(super) fn until_stopped(&mut self, told: &Receiver<Event>, mut watch: Watch) -> Outcome {
        loop {
            match told.recv_timeout(LOOK) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Outcome::Yes,
                Ok(Event::Reload) => watch.ask(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            match watch.look() {
                Seen::Nothing => {}
                Seen::Obstacle(why) => {
                    tell_obstacle(why, self.teller, &self.standing.appliance);
                }
                Seen::Changed => self.reload(&mut watch),
            }
            self.learn();
            for name in self.standing.appeared() {
                self.teller.say(
                    "closed",
                    &format!(
                        "{name} has appeared: it is closed; start the sidecar again to take it"
                    ),
                    json!({ "interface": name }),
                );
            }
            if let Some(name) = self.standing.gone() {
                self.teller.say(
                    "gone",
                    &format!(
                        "the device behind {name} is gone, as when the workload was started again \
                         in another namespace: ending, to be started again"
                    ),
                    json!({ "interface": name }),
                );
                return Outcome::System;
            }
        }
    }

    fn reload(&mut self, watch: &mut Watch) {
        if let Some(file) = watch.pipe() {
            let why = Watch::cannot_reread(file);
            watch.finish();
            self.standing.appliance.refuse(why.clone());
            return self.refused(&why, json!({ "why": why }));
        }
        let options = check::options(self.args.ignore_quotas);
        let loaded = config::load_rules(&self.args.rules, options);
        if !watch.finish() {
            return;
        }
        let rules = match loaded {
            Ok(rules) => rules,
            Err(found) => {
                self.standing.appliance.refuse(found.to_string());
                let text = found.render(Paint::stderr().is_on());
                return self.refused(&text, json!({ "diagnostics": found.to_json() }));
            }
        };
        for warning in &rules.warnings {
            self.teller.say(
                "warning",
                &warning.render(Paint::stderr().is_on()),
                json!({ "diagnostics": [warning] }),
            );
        }
        let kept = self.names.lock().clone();
        self.names.lock().watch(&rules.members);
        let model = match self.model(&rules) {
            Ok(model) => model,
            Err(why) => {
                *self.names.lock() = kept;
                self.standing.appliance.refuse(why.clone());
                return self.refused(&why, json!({ "why": why }));
            }
        };
        let before = self.standing.appliance.engine().policy().generation();
        match self.standing.appliance.replace(model) {
            Ok(generation) => {
                self.rules = rules;
                self.resolver.watch(self.names.lock().names());
                self.is_behind = false;
                self.teller.reloaded(before, generation);
            }
            Err(error) => {
                *self.names.lock() = kept;
                self.not_replaced(&error);
            }
        }
    }

    /// Applies new answers for names, and removes expired addresses.
    fn learn(&mut self) {
        let mut changes = Vec::new();
        let mut names = self.names.lock();
        while let Ok((name, answer, at)) = self.resolver.answers.try_recv() {
            let at = at.saturating_duration_since(self.names.began);
            changes.extend(names.learn(&name, answer, at));
        }
        changes.extend(names.expire(self.names.began.elapsed()));
        drop(names);
        let was_behind = self.is_behind;
        self.is_behind |= !changes.is_empty();
        for change in changes {
            match change {
                Change::Resolved { name, addresses } => {
                    let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
                    self.teller.say(
                        "resolved",
                        &format!("member {name} is {}", list.join(" ")),
                        json!({ "name": name, "addresses": addresses }),
                    );
                }
                Change::Failed { name, why, keeps } => {
                    let then = if keeps {
                        "its last addresses count for a while"
                    } else {
                        "this member has no addresses"
                    };
                    self.teller.say(
                        "unresolved",
                        &format!("member {name} can't be resolved: {why}; {then}"),
                        json!({ "name": name, "why": why, "keeps": keeps }),
                    );
                }
            }
        }
        if !self.is_behind {
            return;
        }
        let model = match self.model(&self.rules) {
            Ok(model) => model,
            // The rules in force had these groups.
            Err(why) => return self.refused(&why, json!({ "why": why })),
        };
        match self.standing.appliance.replace(model) {
            Ok(_) => self.is_behind = false,
            // Retried later, but reported only once.
            Err(error) if !was_behind => self.not_replaced(&error),
            Err(_) => {}
        }
    }

    fn model(&self, rules: &LoadedRules) -> Result<Model, String> {
        let members: &[DeclaredMember] = &rules.members;
        let groups = self.names.lock().groups(members);
        world::model(rules, &self.asked, &self.standing.guarded, groups)
            .map_err(|unknown| unknown.to_string())
    }

    fn not_replaced(&self, error: &ReplaceError) {
        match error {
            ReplaceError::Topology(change) => {
                let why = change.to_string();
                self.refused(&why, json!({ "why": why }));
            }
            ReplaceError::Engine(error) => {
                let text = format!(
                    "{error}; the other workers judge by the new rules: start the sidecar again"
                );
                let details = json!({ "why": text, "stuck": true });
                self.teller.say("refused", &text, details);
            }
        }
    }

    fn refused(&self, why: &str, details: serde_json::Value) {
        let text = format!("{why}\nnothing changed: the rules in force stay");
        self.teller.say("refused", &text, details);
    }
}

/// Returns the address families of the guarded interfaces; both if they have none.
fn families(guarded: &[Guarded]) -> Vec<Family> {
    let addresses = || guarded.iter().flat_map(|it| &it.addresses);
    let of_link = Ipv6Addr::is_unicast_link_local;
    let v4 = addresses().any(IpAddr::is_ipv4);
    let v6 = addresses().any(|it| matches!(it, IpAddr::V6(v6) if !of_link(v6)));
    let mut families = vec![Family::V4, Family::V6];
    families.retain(|family| match family {
        Family::V4 => v4 || !v6,
        Family::V6 => v6 || !v4,
    });
    families
}
