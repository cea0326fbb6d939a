//! Resolves one name: decides which queries go to which server and when, and interprets the
//! responses. It has no sockets and no clock; the [resolver](super::resolver) has them.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use resolv_conf::{Config, ScopedIp};

use super::dns::{self, Family, Meaning};
use super::members::Answer;

/// The port of DNS (RFC 1035 §4.2).
pub(super) const PORT: u16 = 53;
/// Maximum number of servers that are queried, as in glibc (`MAXNS`, resolv.conf(5)).
const MAX_SERVERS: usize = 3;
/// Maximum number of search domains. A decision: Kubernetes writes up to 32.
const MAX_SEARCH: usize = 32;
/// Upper bounds of the options `ndots` and `attempts` (resolv.conf(5)).
const MAX_NDOTS: u32 = 15;
const MAX_ATTEMPTS: u32 = 5;
/// Upper bound of the option `timeout`: its default (resolv.conf(5)).
const MAX_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which an unanswered query is first repeated. It grows by the same amount with each
/// round through all servers. A decision, less than the option `timeout`: responses to earlier
/// queries still count.
const REPEAT: Duration = Duration::from_secs(1);
/// Time limit for a lookup, search domains included. A decision.
const MAX_LOOKUP: Duration = Duration::from_secs(10);
/// Maximum wait for the addresses of the other family. A decision.
const OTHER_FAMILY: Duration = Duration::from_secs(2);

/// The contents of `/etc/resolv.conf` and `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    timeout: Duration,
    attempts: u32,
    rotate: bool,
    no_aaaa: bool,
    hosts: BTreeMap<String, Vec<IpAddr>>,
}

impl Settings {
    /// Parses both texts; invalid parts are skipped. `scope` returns the index of an interface.
    pub(super) fn parse(
        resolv_conf: &[u8],
        hosts: &[u8],
        scope: impl Fn(&str) -> Option<u32>,
    ) -> Self {
        let (config, _) = Config::parse_with_errors(resolv_conf);
        let server = |server: &ScopedIp| match server {
            ScopedIp::V4(v4) => Some(SocketAddr::from((*v4, PORT))),
            ScopedIp::V6(v6, None) => Some(SocketAddr::from((*v6, PORT))),
            ScopedIp::V6(v6, Some(zone)) => {
                let scope = zone.parse().ok().or_else(|| scope(zone))?;
                Some(SocketAddrV6::new(*v6, PORT, 0, scope).into())
            }
        };
        let mut servers: Vec<_> = config.nameservers.iter().filter_map(server).collect();
        if config.nameservers.is_empty() {
            // resolv.conf(5): "the name server on the local machine".
            servers.push(SocketAddr::from(([127, 0, 0, 1], PORT)));
        }
        servers.truncate(MAX_SERVERS);
        let domain = |domain: &String| domain.trim_matches('.').to_ascii_lowercase();
        Self {
            servers,
            search: config
                .get_last_search_or_domain()
                .map(domain)
                .filter(|domain| !domain.is_empty())
                .take(MAX_SEARCH)
                .collect(),
            ndots: usize::try_from(config.ndots.min(MAX_NDOTS)).unwrap_or(1),
            timeout: Duration::from_secs(config.timeout.max(1).into()).min(MAX_TIMEOUT),
            attempts: config.attempts.clamp(1, MAX_ATTEMPTS),
            rotate: config.rotate,
            no_aaaa: config.no_aaaa,
            hosts: parse_hosts(hosts),
        }
    }

    /// Returns the addresses of a name in `/etc/hosts`.
    pub(super) fn in_hosts(&self, name: &str) -> Option<Answer> {
        let found = self.hosts.get(name)?;
        // These entries have no TTL.
        let lasting = |address: &IpAddr| (*address, Duration::ZERO);
        Some(Answer::Found(found.iter().map(lasting).collect()))
    }

    /// Returns the names to query for a name, in order (resolv.conf(5), `search` and `ndots`).
    fn candidates(&self, name: &str) -> VecDeque<String> {
        let mut candidates: VecDeque<String> = self
            .search
            .iter()
            .map(|domain| format!("{name}.{domain}"))
            .collect();
        if name.matches('.').count() >= self.ndots {
            candidates.push_front(name.to_owned());
        } else {
            candidates.push_back(name.to_owned());
        }
        candidates
    }
}

fn parse_hosts(text: &[u8]) -> BTreeMap<String, Vec<IpAddr>> {
    let mut hosts: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for line in String::from_utf8_lossy(text).lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else {
            continue;
        };
        for name in words {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            hosts.entry(name).or_default().push(address);
        }
    }
    hosts
}

/// A message to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    /// The position of the server.
    pub(super) server: usize,
    pub(super) message: Vec<u8>,
    pub(super) over_tcp: bool,
}

/// The lookup of one name.
#[derive(Debug)]
pub(super) struct Lookup {
    settings: Arc<Settings>,
    /// In the order in which they are queried.
    servers: Vec<SocketAddr>,
    families: Vec<Family>,
    /// Names that are still to be queried; the current one is at the front.
    candidates: VecDeque<String>,
    questions: Vec<Question>,
    /// The number of rounds so far for the candidate at the front.
    rounds: usize,
    next_round: Duration,
    /// For the candidate at the front.
    deadline: Duration,
    /// For all candidates.
    last_deadline: Duration,
    outgoing: Vec<Outgoing>,
    found: Vec<(IpAddr, Duration)>,
    /// The shortest TTL of all addresses found.
    shortest: Option<Duration>,
    /// The first refusal for a candidate that was given up.
    refusal: Option<String>,
    /// The reason why the name has no address.
    nothing: &'static str,
    ended: Option<End>,
}

/// The outcome of a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// Addresses were found, with this shortest TTL.
    Found(Duration),
    /// The name has no address.
    Nothing(String),
    /// No server answered.
    Failed(String),
}

#[derive(Debug)]
struct Question {
    family: Family,
    id: u16,
    message: Vec<u8>,
    is_done: bool,
    refusal: Option<String>,
    /// The servers that refused to answer.
    refused: Vec<usize>,
    /// The servers that are queried over TCP.
    over_tcp: Vec<usize>,
}

impl Lookup {
    /// Starts a lookup. `number` counts lookups, for the option `rotate`.
    pub(super) fn new(
        name: &str,
        settings: Arc<Settings>,
        families: &[Family],
        number: usize,
        now: Duration,
    ) -> Self {
        let mut servers = settings.servers.clone();
        if settings.rotate && !servers.is_empty() {
            let first = number % servers.len();
            servers.rotate_left(first);
        }
        let mut families = families.to_vec();
        if settings.no_aaaa && families.contains(&Family::V4) {
            families.retain(|family| *family == Family::V4);
        }
        let mut lookup = Self {
            candidates: settings.candidates(name),
            settings,
            servers,
            families,
            questions: Vec::new(),
            rounds: 0,
            next_round: now,
            deadline: now,
            last_deadline: now + MAX_LOOKUP,
            outgoing: Vec::new(),
            found: Vec::new(),
            shortest: None,
            refusal: None,
            nothing: "it is no name",
            ended: None,
        };
        lookup.ask(now);
        lookup
    }

    /// Returns the servers; messages refer to them by position.
    pub(super) fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Returns the time at which [`Self::act`] must be called.
    pub(super) fn due(&self) -> Duration {
        self.next_round.min(self.deadline)
    }

    /// Performs the actions that are due.
    pub(super) fn act(&mut self, now: Duration) {
        if self.ended.is_some() || now < self.due() {
            return;
        }
        if now >= self.deadline {
            let why = || match &self.servers[..] {
                [] => "no name server has a usable address".to_owned(),
                servers => {
                    let servers: Vec<_> = servers.iter().map(|it| it.ip().to_string()).collect();
                    format!("no answer from {}", servers.join(", "))
                }
            };
            let refusal = self.questions.iter_mut().find_map(|it| it.refusal.take());
            self.ended = Some(match self.shortest {
                Some(shortest) => End::Found(shortest),
                None => End::Failed(refusal.unwrap_or_else(why)),
            });
            return;
        }
        let server = self.rounds % self.servers.len();
        for question in self.questions.iter().filter(|it| !it.is_done) {
            self.outgoing.push(Outgoing {
                server,
                message: question.message.clone(),
                over_tcp: false,
            });
        }
        self.rounds += 1;
        let passes = u32::try_from(self.rounds.div_ceil(self.servers.len())).unwrap_or(u32::MAX);
        self.next_round = now + REPEAT.saturating_mul(passes).min(self.settings.timeout);
    }

    /// Handles a message from a server.
    pub(super) fn hear(&mut self, server: usize, message: &[u8], over_tcp: bool, now: Duration) {
        let Some(name) = self.candidates.front() else {
            return;
        };
        let heard = self.questions.iter_mut().find_map(|it| {
            let meaning = (!it.is_done).then(|| dns::answer(message, it.id, name, it.family));
            Some((it, meaning??))
        });
        let Some((question, meaning)) = heard else {
            return;
        };
        let id = Some(question.id);
        match meaning {
            Meaning::Addresses(found) => {
                question.is_done = true;
                let shortest = found.iter().map(|(_, ttl)| *ttl).chain(self.shortest).min();
                self.shortest = shortest;
                self.found.extend(found);
                self.deadline = self.deadline.min(now + OTHER_FAMILY);
            }
            Meaning::Nothing(why) => {
                question.is_done = true;
                self.nothing = why;
            }
            Meaning::Truncated if !over_tcp => {
                if !question.over_tcp.contains(&server) {
                    question.over_tcp.push(server);
                    self.outgoing.push(Outgoing {
                        server,
                        message: question.message.clone(),
                        over_tcp: true,
                    });
                }
                return;
            }
            Meaning::Truncated => {
                let why = "the answer is truncated over TCP, too".to_owned();
                return self.refuse(server, &why, id, now);
            }
            Meaning::Refused(why) => return self.refuse(server, &why, id, now),
        }
        self.go_on(now);
    }

    /// Handles a socket error for a server.
    pub(super) fn fail(&mut self, server: usize, why: &str, now: Duration) {
        self.refuse(server, why, None, now);
    }

    /// Returns the addresses found since the last call.
    pub(super) fn take_found(&mut self) -> Vec<(IpAddr, Duration)> {
        std::mem::take(&mut self.found)
    }

    /// Returns the messages to be sent.
    pub(super) fn take_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.outgoing)
    }

    /// Returns the outcome, once the lookup has ended.
    pub(super) fn ended(&self) -> Option<&End> {
        self.ended.as_ref()
    }

    /// Creates the queries for the candidate at the front, or ends if there is none.
    fn ask(&mut self, now: Duration) {
        self.questions.clear();
        while let Some(name) = self.candidates.front() {
            let question = |family: &Family| {
                let id = random_id();
                Some(Question {
                    family: *family,
                    id,
                    message: dns::question(id, name, *family)?,
                    is_done: false,
                    refusal: None,
                    refused: Vec::new(),
                    over_tcp: Vec::new(),
                })
            };
            // A search domain may make a name too long.
            if let Some(questions) = self.families.iter().map(question).collect() {
                self.questions = questions;
                self.rounds = 0;
                self.next_round = now;
                let servers = u32::try_from(self.servers.len()).unwrap_or(0);
                let time = self.settings.timeout * self.settings.attempts * servers;
                self.deadline = self.last_deadline.min(now + time);
                return;
            }
            self.candidates.pop_front();
        }
        self.ended = Some(match self.refusal.take() {
            Some(why) => End::Failed(why),
            None => End::Nothing(self.nothing.to_owned()),
        });
    }

    /// Handles a server's refusal to answer one query, or all.
    fn refuse(&mut self, server: usize, why: &str, id: Option<u16>, now: Duration) {
        let concerned = |it: &&mut Question| !it.is_done && id.is_none_or(|id| it.id == id);
        for question in self.questions.iter_mut().filter(concerned) {
            if question.refused.contains(&server) {
                continue;
            }
            question.refused.push(server);
            let address = self.servers.get(server).map(SocketAddr::ip);
            let text = address.map(|address| format!("{address}: {why}"));
            question.refusal = question.refusal.take().or(text);
            question.is_done = question.refused.len() >= self.servers.len();
            // The next server is queried at once.
            self.next_round = now;
        }
        self.go_on(now);
    }

    /// Continues with the next candidate, or ends, once all queries are done.
    fn go_on(&mut self, now: Duration) {
        if self.ended.is_some() || self.questions.iter().any(|it| !it.is_done) {
            return;
        }
        if let Some(shortest) = self.shortest {
            self.ended = Some(End::Found(shortest));
            return;
        }
        let refusal = self.questions.iter_mut().find_map(|it| it.refusal.take());
        self.refusal = self.refusal.take().or(refusal);
        self.candidates.pop_front();
        self.ask(now);
    }
}

/// Returns an unpredictable message ID.
fn random_id() -> u16 {
    // Seeded by the system's random numbers.
    let [low, high, ..] = RandomState::new().hash_one(0).to_ne_bytes();
    u16::from_ne_bytes([low, high])
}

#[cfg(test)]
mod tests;
