//! Load and answers for measuring: what `scripts/bench` and `scripts/soak` run
//! inside the ends of a lab.
//!
//! Each subcommand does one thing and says what came of it as a line of JSON.
//! Servers run until they are ended and say `{"ready":true}` once they listen.
//!
//! ```text
//! cargo run --release --example bench_load -- pingpong 10.77.0.11:5210 --seconds 2
//! ```
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it talks to whoever measures"
)]

use std::error::Error;
use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt};
use serde_json::{Value, json};

/// Bytes of the number of a run and of a datagram's number in it.
const NUMBERED: usize = 16;
/// Datagrams taken by one call.
const BATCH: usize = 64;
/// After so much silence a run of datagrams is over.
const SILENCE: Duration = Duration::from_millis(200);
/// How long an answer is waited for before it counts as lost.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a paced sender wakes.
const TICK: Duration = Duration::from_micros(500);
/// A paced sender that was kept from running forgives itself what is older
/// than this: a burst of all of it would measure the machine, not the road.
const FORGIVEN: Duration = Duration::from_millis(10);
/// Room for some thousands of datagrams at the receiver: enough for a moment in
/// which it isn't let run, far too little for a whole run to wait in.
const RECEIVE_BUFFER: usize = 2 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Makes load and answers it; results are lines of JSON.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Sends numbered datagrams, as fast as it goes or at a rate.
    UdpSend {
        to: SocketAddr,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Datagrams a second; without it, as fast as it goes.
        #[arg(long)]
        rate: Option<f64>,
        /// Bytes of UDP payload: 36 make an IPv4 packet of 64 bytes.
        #[arg(long, default_value_t = 36)]
        payload: usize,
        /// Tells this run from others.
        #[arg(long, default_value_t = 1)]
        run: u64,
    },
    /// Counts the datagrams of each run, and says so when it is over.
    UdpCount { at: SocketAddr },
    /// Sends datagrams from many sockets by turns, each a flow that is answered.
    UdpFlows {
        to: SocketAddr,
        /// Don't wait for the answers: a flood.
        #[arg(long)]
        flood: bool,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// New flows a second.
        #[arg(long, default_value_t = 100.0)]
        rate: f64,
    },
    /// Answers each datagram with itself.
    Echo { at: SocketAddr },
    /// One datagram there and back after the other: quantiles of the round trip.
    Pingpong {
        to: SocketAddr,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Bytes of UDP payload.
        #[arg(long, default_value_t = 36)]
        payload: usize,
    },
    /// Connects, sends a byte, awaits one, closes; again and again.
    Conns {
        to: SocketAddrV4,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Threads; each has a port of the server to itself, from that of `to` on.
        #[arg(long, default_value_t = 16)]
        threads: u16,
        /// Connections a second, all threads together; without it, as fast as it goes.
        #[arg(long)]
        rate: Option<f64>,
    },
    /// Accepts connections, answers a byte with a byte, awaits the end.
    ConnServer {
        at: SocketAddrV4,
        /// Ports, from that of `at` on; each has a thread.
        #[arg(long, default_value_t = 16)]
        ports: u16,
    },
    /// Opens connections and keeps them, with a byte there and back now and then.
    Hold {
        to: SocketAddr,
        #[arg(long, default_value_t = 100)]
        connections: usize,
        #[arg(long, default_value_t = 60.0)]
        seconds: f64,
        /// Seconds between two bytes of a connection.
        #[arg(long, default_value_t = 2.0)]
        every: f64,
    },
    /// Answers what any number of long-lived connections say.
    HoldServer { at: SocketAddr },
}

fn main() -> ExitCode {
    let done = match Args::parse().what {
        What::UdpSend {
            to,
            seconds,
            rate,
            payload,
            run,
        } => udp_send(to, seconds, rate, payload, run),
        What::UdpCount { at } => udp_count(at),
        What::UdpFlows {
            to,
            flood,
            seconds,
            rate,
        } => udp_flows(to, flood, seconds, rate),
        What::Echo { at } => echo(at),
        What::Pingpong {
            to,
            seconds,
            payload,
        } => pingpong(to, seconds, payload),
        What::Conns {
            to,
            seconds,
            threads,
            rate,
        } => conns(to, seconds, threads, rate),
        What::ConnServer { at, ports } => conn_server(at, ports),
        What::Hold {
            to,
            connections,
            seconds,
            every,
        } => hold(to, connections, seconds, every),
        What::HoldServer { at } => hold_server(at),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench_load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn udp_send(
    to: SocketAddr,
    seconds: f64,
    rate: Option<f64>,
    payload: usize,
    run: u64,
) -> Result<()> {
    let socket = UdpSocket::bind(any(to))?;
    socket.connect(to)?;
    let mut datagram = vec![0; payload.max(NUMBERED)];
    datagram[..8].copy_from_slice(&run.to_be_bytes());
    let mut pace = Pace::new(seconds, rate);
    let (mut sent, mut refused) = (0_u64, 0_u64);
    // Asking for the time with each datagram would cost a sender at full speed.
    let most = if rate.is_some() {
        u64::MAX
    } else {
        BATCH as u64
    };
    while let Some(due) = pace.due() {
        for _ in 0..due.min(most) {
            datagram[8..NUMBERED].copy_from_slice(&sent.to_be_bytes());
            match socket.send(&datagram) {
                Ok(_) => sent += 1,
                // A full queue on the way, or nobody there yet.
                Err(_) => refused += 1,
            }
        }
    }
    let seconds = pace.elapsed();
    say(&json!({
        "run": run, "sent": sent, "refused": refused, "seconds": seconds,
        "per_second": per_second(sent, seconds),
    }))
}

fn udp_count(at: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(at)?;
    // Loss is to happen on the road, not at the end of it.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    socket.set_read_timeout(Some(SILENCE))?;
    ready()?;
    let mut buffers = vec![[0_u8; 2048]; BATCH];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH, None);
    let mut counted: Option<Count> = None;
    loop {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        let taken = match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, flags, None) {
            Ok(results) => results.count(),
            Err(Errno::EAGAIN) => {
                if let Some(over) = counted.take() {
                    over.tell()?;
                }
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let now = Instant::now();
        for buffer in &buffers[..taken] {
            let (run, number) = (number_at(buffer, 0), number_at(buffer, 8));
            if counted.as_ref().is_some_and(|count| count.run != run)
                && let Some(over) = counted.take()
            {
                over.tell()?;
            }
            counted
                .get_or_insert_with(|| Count::new(run, now))
                .add(number, now);
        }
    }
}

/// What came of one run.
struct Count {
    run: u64,
    received: u64,
    /// Those that came after one that was sent later.
    late: u64,
    newest: u64,
    first: Instant,
    last: Instant,
}

impl Count {
    fn new(run: u64, now: Instant) -> Self {
        Self {
            run,
            received: 0,
            late: 0,
            newest: 0,
            first: now,
            last: now,
        }
    }

    fn add(&mut self, number: u64, now: Instant) {
        self.received += 1;
        self.late += u64::from(number < self.newest);
        self.newest = self.newest.max(number);
        self.last = now;
    }

    fn tell(&self) -> Result<()> {
        let seconds = (self.last - self.first).as_secs_f64();
        say(&json!({
            "run": self.run, "received": self.received, "late": self.late,
            "seconds": seconds, "per_second": per_second(self.received, seconds),
        }))
    }
}

fn udp_flows(to: SocketAddr, flood: bool, seconds: f64, rate: f64) -> Result<()> {
    let mut pace = Pace::new(seconds, Some(rate));
    let (mut flows, mut answered) = (0_u64, 0_u64);
    while let Some(due) = pace.due() {
        for _ in 0..due {
            let socket = UdpSocket::bind(any(to))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            flows += 1;
            let sent = socket.send(b"?");
            if !flood {
                let came = sent.and_then(|_| socket.recv(&mut [0; 16]));
                answered += u64::from(came.is_ok());
            }
        }
    }
    let seconds = pace.elapsed();
    say(&json!({ "flows": flows, "answered": answered, "seconds": seconds }))
}

fn echo(at: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(at)?;
    ready()?;
    let mut buffer = [0; 1 << 16];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(came) => came,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        // A lost answer is the asker's to count.
        let _ = socket.send_to(&buffer[..length], from);
    }
}

fn pingpong(to: SocketAddr, seconds: f64, payload: usize) -> Result<()> {
    let socket = UdpSocket::bind(any(to))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut datagram = vec![0; payload.max(NUMBERED)];
    let mut answer = vec![0; 2048];
    let (mut number, mut lost) = (0_u64, 0_u64);
    let mut nanos: Vec<u64> = Vec::with_capacity(1 << 20);
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        number += 1;
        datagram[8..NUMBERED].copy_from_slice(&number.to_be_bytes());
        let asked = Instant::now();
        let mut came = socket
            .send(&datagram)
            .and_then(|_| socket.recv(&mut answer));
        // The late answer to one that was given up.
        while came.is_ok() && number_at(&answer, 8) < number {
            came = socket.recv(&mut answer);
        }
        match came {
            Ok(_) => nanos.push(u64::try_from(asked.elapsed().as_nanos())?),
            Err(_) => lost += 1,
        }
    }
    nanos.sort_unstable();
    let micros = |per_thousand: usize| {
        let at = (nanos.len() * per_thousand / 1000).min(nanos.len().saturating_sub(1));
        nanos.get(at).map(|nanos| *nanos as f64 / 1000.0)
    };
    say(&json!({
        "round_trips": nanos.len(), "lost": lost, "p50_us": micros(500), "p99_us": micros(990),
        "p999_us": micros(999), "max_us": micros(1000),
    }))
}

fn conns(to: SocketAddrV4, seconds: f64, threads: u16, rate: Option<f64>) -> Result<()> {
    let (made, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    thread::scope(|scope| {
        for thread in 0..threads {
            let to = SocketAddrV4::new(*to.ip(), to.port() + thread);
            let mut pace = Pace::new(seconds, rate.map(|rate| rate / f64::from(threads)));
            let (made, failed) = (&made, &failed);
            scope.spawn(move || {
                let (mut good, mut bad) = (0, 0);
                while let Some(due) = pace.due() {
                    for _ in 0..due.min(BATCH as u64) {
                        match exchange(to.into()) {
                            Ok(()) => good += 1,
                            Err(_) => bad += 1,
                        }
                        if pace.elapsed() >= seconds {
                            break;
                        }
                    }
                }
                made.fetch_add(good, Ordering::Relaxed);
                failed.fetch_add(bad, Ordering::Relaxed);
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    let made = made.into_inner();
    say(&json!({
        "connections": made, "failed": failed.into_inner(), "seconds": seconds,
        "per_second": per_second(made, seconds),
    }))
}

/// A whole connection. The side that connects closes first, and has the wait
/// for late segments.
fn exchange(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

fn conn_server(at: SocketAddrV4, ports: u16) -> Result<()> {
    let listeners = (0..ports)
        .map(|port| TcpListener::bind(SocketAddrV4::new(*at.ip(), at.port() + port)))
        .collect::<io::Result<Vec<_>>>()?;
    ready()?;
    thread::scope(|scope| {
        for listener in listeners {
            scope.spawn(move || {
                loop {
                    // Who goes away early is counted where it was.
                    let _ = listener.accept().and_then(|(stream, _)| answer(stream));
                }
            });
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    stream.read(&mut byte).map(drop)
}

fn hold(to: SocketAddr, connections: usize, seconds: f64, every: f64) -> Result<()> {
    let mut held = Vec::with_capacity(connections);
    for _ in 0..connections {
        let stream = TcpStream::connect_timeout(&to, 10 * PATIENCE)?;
        stream.set_nodelay(true)?;
        // Far longer than a segment sent again takes: what exceeds it is broken.
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        held.push(stream);
    }
    let opened = held.len();
    say(&json!({ "held": opened, "broken": 0, "bytes": 0 }))?;
    let (mut bytes, mut broken) = (0_u64, 0_usize);
    let began = Instant::now();
    let mut round = 0_u32;
    while began.elapsed().as_secs_f64() < seconds {
        let share = Duration::from_secs_f64(every) / u32::try_from(connections.max(1))?;
        held.retain_mut(|stream| {
            thread::sleep(share);
            let mut byte = [0];
            let sent = u8::try_from(round % 256).unwrap_or(0);
            let came = stream
                .write_all(&[sent])
                .and_then(|()| stream.read_exact(&mut byte));
            let whole = came.is_ok() && byte[0] == sent;
            if !whole {
                eprintln!("bench_load: a connection broke: {came:?}, sent {sent}, got {byte:?}");
            }
            broken += usize::from(!whole);
            bytes += u64::from(whole);
            whole
        });
        round += 1;
        say(&json!({ "held": held.len(), "broken": broken, "bytes": bytes }))?;
        if held.is_empty() {
            break;
        }
    }
    say(
        &json!({ "over": true, "opened": opened, "held": held.len(), "broken": broken, "bytes": bytes }),
    )
}

fn hold_server(at: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at)?;
    ready()?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        stream.set_nodelay(true)?;
        thread::spawn(move || {
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
        });
    }
    Ok(())
}

/// How much is due, by the clock.
struct Pace {
    began: Instant,
    seconds: f64,
    rate: Option<f64>,
    /// Of `rate`: what was given out or forgiven.
    given: f64,
}

impl Pace {
    fn new(seconds: f64, rate: Option<f64>) -> Self {
        Self {
            began: Instant::now(),
            seconds,
            rate,
            given: 0.0,
        }
    }

    fn elapsed(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Sleeps until something is due, and says how much; `None` when the time
    /// is over.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small number that isn't negative"
    )]
    fn due(&mut self) -> Option<u64> {
        loop {
            let elapsed = self.elapsed();
            if elapsed >= self.seconds {
                return None;
            }
            let Some(rate) = self.rate else {
                return Some(u64::MAX);
            };
            let behind = elapsed * rate - self.given;
            let forgiven = (behind - (rate * FORGIVEN.as_secs_f64()).max(1.0)).max(0.0);
            let due = (behind - forgiven).floor();
            self.given += forgiven;
            if due >= 1.0 {
                self.given += due;
                return Some(due as u64);
            }
            thread::sleep(TICK);
        }
    }
}

/// Any local address of the family of `to`.
fn any(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    }
}

/// The number in eight bytes of a datagram.
fn number_at(datagram: &[u8], at: usize) -> u64 {
    datagram
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

fn ready() -> Result<()> {
    say(&json!({ "ready": true }))
}

/// A line that is read at once.
fn say(value: &Value) -> Result<()> {
    println!("{value}");
    io::stdout().flush()?;
    Ok(())
}
