//! Resolves the names of members repeatedly, on a separate thread.
//!
//! All names are looked up concurrently. Each lookup has its own sockets, each connected to one
//! server, so that the kernel chooses a random port and accepts responses from that server only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, Sender, TryRecvError};
use mio::net::{TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::dns::Family;
use super::lookup::{End, Lookup, Settings};
use super::members::{Answer, COUNTS_AT_LEAST, COUNTS_AT_MOST};

/// Maximum number of concurrent lookups. Each has a socket for each server.
const MAX_LOOKUPS: usize = 128;
/// Minimum time between two lookups of a name that was found.
const SHORTEST: Duration = Duration::from_secs(1);
/// Time after which a name that was not found is looked up again. It doubles each time up to
/// [`SHORTEST`]; after [`QUICK_RETRIES`] it is the refresh time.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const QUICK_RETRIES: u32 = 64;
/// Age at which `/etc/resolv.conf` and `/etc/hosts` are read again.
const SETTINGS_AGE: Duration = Duration::from_millis(100);
/// Maximum number of bytes read of these files; the rest is ignored.
const MAX_FILE: u64 = 1 << 20;
/// Maximum number of datagrams read from a socket at a time. An honest server sends one or two.
const MAX_DATAGRAMS: usize = 64;
const WAKE: Token = Token(usize::MAX);

/// A name with its answer and the time at which it arrived.
pub type Heard = (String, Answer, Instant);

/// The resolver thread. Dropping this value ends it.
#[derive(Debug)]
pub struct Resolver {
    names: Option<Sender<Vec<String>>>,
    waker: Waker,
    /// The results of the lookups.
    pub answers: Receiver<Heard>,
}

impl Resolver {
    /// Starts the thread. It looks up the addresses of `families` for each name, at least once in
    /// `refresh`.
    ///
    /// # Errors
    ///
    /// The system refused a thread or a descriptor.
    pub fn start(refresh: Duration, families: Vec<Family>, names: Vec<String>) -> io::Result<Self> {
        let (sender, wanted) = channel::unbounded();
        let (tell, answers) = channel::unbounded();
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKE)?;
        let began = Instant::now();
        let mut lookups = Lookups {
            families,
            refresh,
            began,
            names: BTreeMap::new(),
            active: BTreeMap::new(),
            started: 0,
            settings: None,
            tell,
        };
        lookups.watch(names);
        std::thread::Builder::new()
            .name("sgwall-names".to_owned())
            .spawn(move || lookups.run(poll, &wanted))?;
        Ok(Self {
            names: Some(sender),
            waker,
            answers,
        })
    }

    /// Replaces the list of names to look up. New names are looked up at once.
    pub fn watch(&self, names: Vec<String>) {
        if let Some(sender) = &self.names {
            let _ = sender.send(names);
        }
        let _ = self.waker.wake();
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.names = None;
        let _ = self.waker.wake();
    }
}

struct Lookups {
    families: Vec<Family>,
    refresh: Duration,
    began: Instant,
    names: BTreeMap<String, Schedule>,
    active: BTreeMap<usize, Active>,
    /// The number of lookups so far.
    started: usize,
    /// The settings with the time at which they were read.
    settings: Option<(Duration, Arc<Settings>)>,
    tell: Sender<Heard>,
}

/// The time at which a name is looked up next.
#[derive(Debug, Default)]
struct Schedule {
    due: Duration,
    /// The number of lookups in a row that found nothing.
    misses: u32,
    is_active: bool,
}

impl Schedule {
    /// Handles the end of a lookup.
    fn ended(&mut self, end: &End, refresh: Duration, now: Duration) {
        self.is_active = false;
        let wait = match end {
            End::Found(ttl) => {
                self.misses = 0;
                // Well before the addresses expire.
                let counts = (*ttl).clamp(COUNTS_AT_LEAST, COUNTS_AT_MOST);
                refresh
                    .min(*ttl)
                    .min(counts - COUNTS_AT_LEAST / 2)
                    .max(SHORTEST)
            }
            End::Nothing(_) | End::Failed(_) => {
                self.misses += 1;
                if self.misses <= QUICK_RETRIES {
                    (FIRST_RETRY * (1 << (self.misses - 1).min(8))).min(SHORTEST)
                } else {
                    self.misses = QUICK_RETRIES;
                    refresh
                }
            }
        };
        self.due = now + wait;
    }
}

impl Lookups {
    fn watch(&mut self, names: Vec<String>) {
        let mut before = std::mem::take(&mut self.names);
        for name in names {
            let schedule = before.remove(&name).unwrap_or_default();
            self.names.insert(name, schedule);
        }
        self.active
            .retain(|_, active| self.names.contains_key(&active.name));
    }

    /// Runs until the receiver is gone.
    fn run(mut self, mut poll: Poll, wanted: &Receiver<Vec<String>>) {
        let mut events = Events::with_capacity(MAX_LOOKUPS);
        loop {
            loop {
                match wanted.try_recv() {
                    Ok(names) => self.watch(names),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let Some(due) = self.go_on(poll.registry()) else {
                return;
            };
            let wait = due.map(|due| due.saturating_sub(self.began.elapsed()));
            // An error is an interruption, or it persists; in that case polling is retried
            // slowly.
            if let Err(error) = poll.poll(&mut events, wait)
                && error.kind() != ErrorKind::Interrupted
            {
                std::thread::sleep(FIRST_RETRY);
            }
            let now = self.began.elapsed();
            for event in &events {
                if let Some(active) = self.active.get_mut(&event.token().0) {
                    active.receive(now);
                }
            }
        }
    }

    /// Performs all actions that are due, and returns when the next one will be. Returns `None`
    /// if the receiver is gone.
    fn go_on(&mut self, registry: &Registry) -> Option<Option<Duration>> {
        let now = self.began.elapsed();
        self.start(now)?;
        let mut ended = Vec::new();
        for (number, active) in &mut self.active {
            active.lookup.act(now);
            active.send(registry, *number, now);
            let found = active.lookup.take_found();
            if !found.is_empty() {
                tell(&self.tell, &active.name, Answer::Found(found))?;
            }
            if active.lookup.ended().is_some() {
                ended.push(*number);
            }
        }
        for number in ended {
            let Some(active) = self.active.remove(&number) else {
                continue;
            };
            let Some(end) = active.lookup.ended() else {
                continue;
            };
            match end {
                End::Found(_) => {}
                End::Nothing(why) => tell(&self.tell, &active.name, Answer::Nothing(why.clone()))?,
                End::Failed(why) => tell(&self.tell, &active.name, Answer::Failed(why.clone()))?,
            }
            if let Some(schedule) = self.names.get_mut(&active.name) {
                schedule.ended(end, self.refresh, now);
            }
        }
        let has_room = self.active.len() < MAX_LOOKUPS;
        let waiting = self.names.values().filter(|it| has_room && !it.is_active);
        let starts = waiting.map(|it| it.due);
        Some(
            self.active
                .values()
                .map(|it| it.lookup.due())
                .chain(starts)
                .min(),
        )
    }

    /// Starts the lookups that are due, as many as the limit allows, those due longest first.
    fn start(&mut self, now: Duration) -> Option<()> {
        let mut due: Vec<_> = (self.names.iter_mut())
            .filter(|(_, it)| !it.is_active && it.due <= now)
            .collect();
        due.sort_by_key(|(_, it)| it.due);
        for (name, schedule) in due {
            if self.active.len() >= MAX_LOOKUPS {
                break;
            }
            let settings = match &self.settings {
                Some((read, settings)) if now < *read + SETTINGS_AGE => Arc::clone(settings),
                _ => {
                    let settings = Arc::new(read_settings());
                    self.settings = Some((now, Arc::clone(&settings)));
                    settings
                }
            };
            if let Some(answer) = settings.in_hosts(name) {
                tell(&self.tell, name, answer)?;
                schedule.ended(&End::Found(COUNTS_AT_LEAST), self.refresh, now);
                continue;
            }
            schedule.is_active = true;
            self.started = self.started.wrapping_add(1) % WAKE.0;
            let lookup = Lookup::new(name, settings, &self.families, self.started, now);
            let active = Active {
                name: name.clone(),
                udp: lookup.servers().iter().map(|_| None).collect(),
                tcp: Vec::new(),
                lookup,
            };
            self.active.insert(self.started, active);
        }
        Some(())
    }
}

/// Returns `None` if the receiver is gone.
fn tell(to: &Sender<Heard>, name: &str, answer: Answer) -> Option<()> {
    to.send((name.to_owned(), answer, Instant::now())).ok()
}

/// A lookup with its sockets.
struct Active {
    name: String,
    lookup: Lookup,
    /// A socket for each server.
    udp: Vec<Option<UdpSocket>>,
    tcp: Vec<Connection>,
}

impl Active {
    /// Sends the messages that are to be sent.
    fn send(&mut self, registry: &Registry, number: usize, now: Duration) {
        loop {
            let outgoing = self.lookup.take_outgoing();
            if outgoing.is_empty() {
                return;
            }
            for it in outgoing {
                let address = self.lookup.servers()[it.server];
                let sent = if it.over_tcp {
                    Connection::open(registry, number, it.server, address, &it.message)
                        .map(|connection| self.tcp.push(connection))
                } else {
                    let socket = &mut self.udp[it.server];
                    send_datagram(registry, number, socket, address, &it.message)
                };
                if let Err(error) = sent {
                    self.lookup.fail(it.server, &error.to_string(), now);
                }
            }
            self.lookup.act(now);
        }
    }

    /// Reads the messages that have arrived.
    fn receive(&mut self, now: Duration) {
        let mut buffer = [0; 4096];
        for (server, socket) in self.udp.iter_mut().enumerate() {
            let Some(socket) = socket else { continue };
            for _ in 0..MAX_DATAGRAMS {
                match socket.recv(&mut buffer) {
                    Ok(length) => self.lookup.hear(server, &buffer[..length], false, now),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => {
                        self.lookup.fail(server, &error.to_string(), now);
                        break;
                    }
                }
            }
        }
        let lookup = &mut self.lookup;
        self.tcp.retain_mut(|connection| match connection.go_on() {
            Ok(None) => true,
            Ok(Some(message)) => {
                lookup.hear(connection.server, &message, true, now);
                false
            }
            Err(error) => {
                lookup.fail(connection.server, &format!("TCP: {error}"), now);
                false
            }
        });
    }
}

/// Sends a message from the socket for a server, which is created if there is none.
fn send_datagram(
    registry: &Registry,
    number: usize,
    socket: &mut Option<UdpSocket>,
    server: SocketAddr,
    message: &[u8],
) -> io::Result<()> {
    let socket = match socket {
        Some(socket) => socket,
        None => {
            let any: IpAddr = match server {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let mut made = UdpSocket::bind(SocketAddr::new(any, 0))?;
            made.connect(server)?;
            registry.register(&mut made, Token(number), Interest::READABLE)?;
            socket.insert(made)
        }
    };
    match socket.send(message) {
        // The query is repeated later.
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        other => other.map(|_| ()),
    }
}

/// A query over TCP.
struct Connection {
    server: usize,
    stream: TcpStream,
    /// The bytes still to be written.
    unwritten: Vec<u8>,
    read: Vec<u8>,
}

impl Connection {
    fn open(
        registry: &Registry,
        number: usize,
        server: usize,
        address: SocketAddr,
        message: &[u8],
    ) -> io::Result<Self> {
        let length = u16::try_from(message.len()).map_err(io::Error::other)?;
        let mut stream = TcpStream::connect(address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut stream, Token(number), interest)?;
        Ok(Self {
            server,
            stream,
            unwritten: [&length.to_be_bytes(), message].concat(),
            read: Vec::new(),
        })
    }

    /// Writes and reads as much as possible. Returns the response once it is complete.
    fn go_on(&mut self) -> io::Result<Option<Vec<u8>>> {
        let waits = |error: &io::Error| {
            matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::NotConnected
            )
        };
        while !self.unwritten.is_empty() {
            match self.stream.write(&self.unwritten) {
                Ok(length) => drop(self.unwritten.drain(..length)),
                Err(error) if waits(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let mut buffer = [0; 4096];
        loop {
            if let [high, low, message @ ..] = &self.read[..] {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if message.len() >= length {
                    return Ok(Some(message[..length].to_vec()));
                }
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(length) => self.read.extend(&buffer[..length]),
                Err(error) if waits(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

fn read_settings() -> Settings {
    let read = |path: &str| {
        let mut bytes = Vec::new();
        // A file that can't be read is treated as empty.
        if let Ok(file) = File::open(path) {
            let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
        }
        bytes
    };
    Settings::parse(&read("/etc/resolv.conf"), &read("/etc/hosts"), |name| {
        index_of(&read("/proc/net/if_inet6"), name)
    })
}

/// Returns the index of an interface in `/proc/net/if_inet6`. Each line has the address, index,
/// prefix length, scope, flags and name. The sidecar may not use the ioctl for this.
fn index_of(table: &[u8], name: &str) -> Option<u32> {
    let text = String::from_utf8_lossy(table);
    let mut lines = text.lines().map(|line| line.split_whitespace());
    lines.find_map(|mut words| {
        let index = words.nth(1)?;
        (words.last()? == name).then(|| u32::from_str_radix(index, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_name_that_is_not_found_is_looked_up_again_soon() {
        let refresh = ms(3_600_000);
        let mut schedule = Schedule::default();
        let mut times = Vec::new();
        for _ in 0..=QUICK_RETRIES {
            let end = End::Nothing("there is no such name".to_owned());
            schedule.ended(&end, refresh, schedule.due);
            times.push(schedule.due);
        }
        assert_eq!(times[..5], [100, 300, 700, 1500, 2500].map(ms));
        assert!(schedule.due > refresh, "not for ever");
        schedule.ended(&End::Found(ms(0)), refresh, ms(0));
        schedule.ended(&End::Failed(String::new()), refresh, ms(0));
        assert_eq!(schedule.due, FIRST_RETRY);
    }

    #[test]
    fn a_name_is_looked_up_again_when_its_ttl_has_passed_and_before_its_addresses_are_lost() {
        // The TTL, the refresh time and the wait, in seconds.
        for (ttl, refresh, wait) in [
            (0, 5, 1),
            (3, 5, 3),
            (600, 5, 5),
            (10, 3600, 5),
            (30, 3600, 25),
            (600, 3600, 55),
            (60, 1, 1),
        ] {
            let mut schedule = Schedule::default();
            let end = End::Found(Duration::from_secs(ttl));
            schedule.ended(&end, Duration::from_secs(refresh), ms(0));
            assert_eq!(schedule.due, Duration::from_secs(wait), "{ttl} {refresh}");
        }
    }

    #[test]
    fn the_index_of_an_interface_is_found() {
        let table = b"fe80000000000000 02 40 20 80     eth0\n00000001 1f 80 10 80 lo\nx\n\xff";
        assert_eq!(index_of(table, "eth0"), Some(2));
        assert_eq!(index_of(table, "lo"), Some(31));
        assert_eq!(index_of(table, "eth1"), None);
    }
}
