//! TCP connections between entities that stay open while rules change.
#![allow(dead_code, reason = "each test target uses a part")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::net::MOMENT;
use crate::support::{Lab, PATIENCE, wait_until};

/// What is said in one piece.
const LINE: &[u8] = b"hello, is anybody there?\n";

/// The ends of a [`Session`].
pub const CLIENT: usize = 0;
pub const SERVER: usize = 1;

/// Opens a connection from the entity `from` to a listener in `to`, which
/// `from` reaches by `address`; gives the client's end and the server's.
pub fn connect(lab: &Lab, from: &str, to: &str, address: SocketAddr) -> (TcpStream, TcpStream) {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => [0_u16; 8].into(),
    };
    let listener = lab.inside(to, || TcpListener::bind((any, address.port())).unwrap());
    let client = lab.inside(from, || TcpStream::connect_timeout(&address, PATIENCE));
    let client = client.unwrap_or_else(|error| panic!("{from} to {address}: {error}"));
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

/// A connection over which both sides say something now and then.
#[derive(Debug)]
pub struct Session {
    ends: [TcpStream; 2],
    /// Bytes that each end has sent, and got.
    sent: [usize; 2],
    got: [usize; 2],
}

impl Session {
    /// Opens a connection as [`connect`] does.
    pub fn open(lab: &Lab, from: &str, to: &str, address: SocketAddr) -> Self {
        let (client, server) = connect(lab, from, to, address);
        let mut this = Self {
            ends: [client, server],
            sent: [0; 2],
            got: [0; 2],
        };
        this.still_talks();
        this
    }

    /// Each side says something, and the other hears it, and all that was
    /// said before.
    pub fn still_talks(&mut self) {
        self.say();
        let until = Instant::now() + PATIENCE;
        for end in [0, 1] {
            let expected = self.sent[1 - end];
            while self.got[end] < expected {
                let left = until.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "the connection is silent: {self:?}");
                self.hear(end, left);
            }
            assert_eq!(self.got[end], expected);
        }
    }

    /// Each side says something, and that end ([`CLIENT`] or [`SERVER`]) hears
    /// nothing of it.
    pub fn hears_nothing(&mut self, end: usize) {
        self.say();
        let before = self.got[end];
        self.hear(end, MOMENT);
        assert_eq!(self.got[end], before, "something was heard");
    }

    /// Closes both ends, the client's first.
    pub fn close(self) {
        let [client, mut server] = self.ends;
        drop(client);
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).unwrap();
    }

    fn say(&mut self) {
        for end in [0, 1] {
            self.ends[end].write_all(LINE).unwrap();
            self.sent[end] += LINE.len();
        }
    }

    fn hear(&mut self, end: usize, wait: Duration) {
        let mut buffer = [0; 4096];
        self.ends[end].set_read_timeout(Some(wait)).unwrap();
        match self.ends[end].read(&mut buffer) {
            Ok(0) => panic!("the connection was closed"),
            Ok(length) => self.got[end] += length,
            Err(error) if is_silence(&error) => {}
            Err(error) => panic!("the connection broke: {error}"),
        }
    }
}

/// A connection over which the server sends without end, until dropped. The
/// client says something when asked to.
#[derive(Debug)]
pub struct Download {
    client: TcpStream,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Bytes that the client got.
    down: AtomicU64,
    /// Bytes that the server got.
    up: AtomicU64,
    stop: AtomicBool,
}

impl Download {
    /// Opens a connection as [`connect`] does, and waits for data both ways.
    pub fn open(lab: &Lab, from: &str, to: &str, address: SocketAddr) -> Self {
        let (client, server) = connect(lab, from, to, address);
        let counts = Arc::new(Counts::default());
        let mut this = Self {
            client,
            counts,
            threads: Vec::new(),
        };
        let (reader, writer) = (server.try_clone().unwrap(), server);
        let theirs = this.client.try_clone().unwrap();
        this.spawn(move |counts| count(&theirs, &counts.down, counts));
        this.spawn(move |counts| count(&reader, &counts.up, counts));
        this.spawn(move |counts| send(&writer, counts));
        this.still_flows();
        this
    }

    /// Bytes that the client got so far, and the server.
    pub fn counts(&self) -> (u64, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&self.counts.down), of(&self.counts.up))
    }

    /// More data comes, and the server hears the client.
    pub fn still_flows(&self) {
        let (down, up) = self.counts();
        (&self.client).write_all(LINE).unwrap();
        wait_until("data flows both ways", || {
            let now = self.counts();
            now.0 > down && now.1 >= up + LINE.len() as u64
        });
    }

    /// Waits until no more data comes, and sees to it that it stays so both
    /// ways. `heard` is what the server had got before.
    ///
    /// What the server had in its window when it stopped hearing the client
    /// may still arrive: that direction has its own rules.
    pub fn has_stopped(&self, heard: u64) {
        (&self.client).write_all(LINE).unwrap();
        let mut before = self.counts().0;
        let mut since = Instant::now();
        wait_until("no more data comes", || {
            let now = self.counts().0;
            if now != before {
                (before, since) = (now, Instant::now());
            }
            since.elapsed() > MOMENT
        });
        thread::sleep(MOMENT);
        assert_eq!(self.counts(), (before, heard), "it has not stopped");
    }

    fn spawn(&mut self, work: impl FnOnce(&Counts) + Send + 'static) {
        let counts = Arc::clone(&self.counts);
        self.threads.push(thread::spawn(move || work(&counts)));
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Counts what comes.
fn count(mut from: &TcpStream, counter: &AtomicU64, counts: &Counts) {
    let pause = Some(Duration::from_millis(50));
    from.set_read_timeout(pause).unwrap();
    let mut buffer = vec![0; 1 << 16];
    while !counts.stop.load(Ordering::Relaxed) {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                counter.fetch_add(length as u64, Ordering::Relaxed);
            }
            Err(error) if is_silence(&error) => {}
            Err(_) => return,
        }
    }
}

/// Sends at a modest rate, for the tests beside this one.
fn send(mut to: &TcpStream, counts: &Counts) {
    let pause = Some(Duration::from_millis(50));
    to.set_write_timeout(pause).unwrap();
    while !counts.stop.load(Ordering::Relaxed) {
        match to.write(&[0x5a; 8192]) {
            Ok(_) => thread::sleep(Duration::from_millis(5)),
            Err(error) if is_silence(&error) => {}
            Err(_) => return,
        }
    }
}

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}
