//! The policy of a sidecar, kept what files and names say for as long as it runs.

use std::net::{IpAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};
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
use crate::sidecar::members::{Change, Names};
use crate::sidecar::world::{self, Asked};

/// Keeps the policy what files and names say.
pub(super) struct Guard<'a> {
    args: &'a Args,
    standing: &'a Standing,
    teller: &'a Teller,
    asked: Asked,
    rules: LoadedRules,
    names: Names,
    resolver: Resolver,
    began: Instant,
}

impl<'a> Guard<'a> {
    /// A guard by `rules`, of which those are in force.
    pub(super) fn new(
        args: &'a Args,
        standing: &'a Standing,
        teller: &'a Teller,
        asked: Asked,
        rules: LoadedRules,
        names: Names,
    ) -> Result<Self, CliError> {
        let resolver = Resolver::start(Duration::from_secs(args.refresh), names.names())?;
        Ok(Self {
            args,
            standing,
            teller,
            asked,
            rules,
            names,
            resolver,
            began: Instant::now(),
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
        let mut names = Names::default();
        std::mem::swap(&mut names, &mut self.names);
        names.watch(&rules.members);
        self.names = names;
        let model = match self.model(&rules) {
            Ok(model) => model,
            Err(why) => {
                self.names.watch(&self.rules.members);
                self.standing.appliance.refuse(why.clone());
                return self.refused(&why, json!({ "why": why }));
            }
        };
        let before = self.standing.appliance.engine().policy().generation();
        match self.standing.appliance.replace(model) {
            Ok(generation) => {
                self.rules = rules;
                self.resolver.ask(self.names.names());
                self.teller.reloaded(before, generation);
            }
            Err(error) => {
                self.names.watch(&self.rules.members);
                self.not_replaced(&error);
            }
        }
    }

    /// Takes in what names have turned out to be.
    fn learn(&mut self) {
        let mut changed = false;
        while let Ok((name, answer)) = self.resolver.answers.try_recv() {
            let Some(change) = self.names.learn(&name, answer, self.began.elapsed()) else {
                continue;
            };
            changed = true;
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
                        "nobody counts as this member"
                    };
                    self.teller.say(
                        "unresolved",
                        &format!("member {name} can't be resolved: {why}; {then}"),
                        json!({ "name": name, "why": why, "keeps": keeps }),
                    );
                }
            }
        }
        if !changed {
            return;
        }
        let model = match self.model(&self.rules) {
            Ok(model) => model,
            // The rules in force had these groups.
            Err(why) => return self.refused(&why, json!({ "why": why })),
        };
        if let Err(error) = self.standing.appliance.replace(model) {
            self.not_replaced(&error);
        }
    }

    fn model(&self, rules: &LoadedRules) -> Result<Model, String> {
        let members: &[DeclaredMember] = &rules.members;
        let groups = self.names.groups(members);
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

/// Resolves names, again and again, on a thread of its own: an answer may take long.
struct Resolver {
    asked: Sender<Vec<String>>,
    answers: Receiver<Answer>,
}

/// A name and its addresses.
type Answer = (String, std::io::Result<Vec<IpAddr>>);

impl Resolver {
    fn start(every: Duration, names: Vec<String>) -> Result<Self, CliError> {
        let (asked, wanted) = channel::unbounded::<Vec<String>>();
        let (tell, answers) = channel::unbounded();
        std::thread::Builder::new()
            .name("sgwall-names".to_owned())
            .spawn(move || resolve(every, names, &wanted, &tell))
            .map_err(signals::failed)?;
        Ok(Self { asked, answers })
    }

    /// Resolves these names from now on, at once for the first time.
    fn ask(&self, names: Vec<String>) {
        let _ = self.asked.send(names);
    }
}

fn resolve(
    every: Duration,
    mut names: Vec<String>,
    wanted: &Receiver<Vec<String>>,
    tell: &Sender<Answer>,
) {
    loop {
        for name in &names {
            let answer = (name.as_str(), 0)
                .to_socket_addrs()
                .map(|found| found.map(|address| address.ip()).collect::<Vec<_>>());
            if tell.send((name.clone(), answer)).is_err() {
                return;
            }
        }
        match wanted.recv_timeout(every) {
            Ok(others) => names = others,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
