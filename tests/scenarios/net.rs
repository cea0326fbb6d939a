//! Clients and servers of the tests' own. They act in the namespace of the
//! thread that calls them.
#![allow(dead_code, reason = "each test target uses a part")]

use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
    SockaddrStorage, recvmsg, sendmsg, setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long a packet that should not arrive is waited for.
pub const SILENCE: Duration = Duration::from_secs(2);
/// The same where a counter tells of it too.
pub const MOMENT: Duration = Duration::from_millis(600);

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Somebody answered: a server of ours with its name, others with nothing.
    Reached(String),
    /// The other host said that nobody listens; so packets pass.
    Refused,
    /// Nothing came back.
    Silent,
    /// The attempt failed in another way.
    Failed(String),
}

/// Servers that answer with a name, until dropped.
#[derive(Debug)]
pub struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Seen {
    /// Whether packets went there and back.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Reached(_) | Self::Refused)
    }
}

impl Servers {
    /// Listens on all addresses of both families and answers with `name`.
    pub fn start(name: &str, tcp: &[u16], udp: &[u16]) -> Self {
        let mut this = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for &port in tcp {
            for listener in both_families(port, TcpListener::bind) {
                this.spawn(name, move |stop, name| answer_tcp(&listener, stop, name));
            }
        }
        for &port in udp {
            for socket in both_families(port, UdpSocket::bind) {
                this.spawn(name, move |stop, name| answer_udp(&socket, stop, name));
            }
        }
        this
    }

    fn spawn(&mut self, name: &str, serve: impl FnOnce(&AtomicBool, &[u8]) + Send + 'static) {
        let (stop, name) = (Arc::clone(&self.stop), name.as_bytes().to_vec());
        self.threads
            .push(thread::spawn(move || serve(&stop, &name)));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Connects over TCP and reads what a server of ours says.
pub fn tcp(to: IpAddr, port: u16, patience: Duration) -> Seen {
    let connected = TcpStream::connect_timeout(&SocketAddr::new(to, port), patience);
    let mut text = String::new();
    match connected.and_then(|mut stream| {
        stream.set_read_timeout(Some(patience))?;
        stream.read_to_string(&mut text)
    }) {
        Ok(_) => Seen::Reached(text),
        Err(error) => failure(&error),
    }
}

/// Sends a few datagrams and waits for one to be answered.
pub fn udp(from: IpAddr, to: IpAddr, port: u16, patience: Duration) -> Seen {
    let ask = || {
        let socket = UdpSocket::bind((from, 0))?;
        socket.connect((to, port))?;
        let mut buffer = [0; 64];
        let length = repeat(patience, |wait| {
            socket.set_read_timeout(Some(wait))?;
            socket.send(b"who?")?;
            socket.recv(&mut buffer)
        })?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    match ask() {
        Ok(name) => Seen::Reached(name),
        Err(error) => failure(&error),
    }
}

/// Sends a few echo requests of ICMP or ICMPv6 and waits for a reply.
pub fn echo(to: IpAddr, patience: Duration) -> Seen {
    match Pinger::new(to).and_then(|pinger| pinger.ping(patience)) {
        Ok(()) => Seen::Reached(String::new()),
        Err(error) => failure(&error),
    }
}

/// A raw socket that pings one address.
#[derive(Debug)]
pub struct Pinger {
    socket: OwnedFd,
    to: IpAddr,
    id: u16,
}

impl Pinger {
    pub fn new(to: IpAddr) -> std::io::Result<Self> {
        static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(1);
        let (family, protocol) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
        };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Self {
            socket,
            to,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        })
    }

    /// Its socket, for options.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Asks again and again until a reply comes.
    pub fn ping(&self, patience: Duration) -> std::io::Result<()> {
        let mut sequence = 0;
        repeat(patience, |wait| {
            sequence += 1;
            self.ask(sequence)?;
            self.hear(wait)
        })
    }

    fn ask(&self, sequence: u16) -> std::io::Result<()> {
        let kind = if self.to.is_ipv4() { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.id.to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.extend([0x5a; 48]);
        if self.to.is_ipv4() {
            // Over IPv6 the kernel does it.
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        send_raw(&self.socket, self.to, &message)
    }

    fn hear(&self, wait: Duration) -> std::io::Result<()> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            let left = TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap().max(1));
            setsockopt(&self.socket, ReceiveTimeout, &left)?;
            let mut buffer = [0; 2048];
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let received = recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut parts,
                None,
                MsgFlags::empty(),
            )?;
            let (length, source) = (received.bytes, received.address);
            let from = source.and_then(|source| match self.to {
                IpAddr::V4(_) => Some(IpAddr::V4(source.as_sockaddr_in()?.ip())),
                IpAddr::V6(_) => Some(IpAddr::V6(source.as_sockaddr_in6()?.ip())),
            });
            // Over IPv4 the packet comes with its header.
            let (start, kind) = match self.to {
                IpAddr::V4(_) => (usize::from(buffer[0] & 0xf) * 4, 0),
                IpAddr::V6(_) => (0, 129),
            };
            let message = buffer.get(start..length).unwrap_or_default();
            let is_reply = message.first() == Some(&kind)
                && message.get(4..6) == Some(&self.id.to_be_bytes()[..]);
            if is_reply && from == Some(self.to) {
                return Ok(());
            }
        }
    }
}

/// A socket whose packets have their own IPv4 header.
pub fn raw_ipv4() -> OwnedFd {
    socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )
    .unwrap()
}

/// Sends over a raw socket.
pub fn send_raw(socket: &OwnedFd, to: IpAddr, packet: &[u8]) -> std::io::Result<()> {
    let parts = [IoSlice::new(packet)];
    let flags = MsgFlags::empty();
    let fd = socket.as_raw_fd();
    match SocketAddr::new(to, 0) {
        SocketAddr::V4(to) => sendmsg(fd, &parts, &[], flags, Some(&SockaddrIn::from(to)))?,
        SocketAddr::V6(to) => sendmsg(fd, &parts, &[], flags, Some(&SockaddrIn6::from(to)))?,
    };
    Ok(())
}

/// The internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Tries again every half second, for packets may get lost, until it works or
/// patience ends.
fn repeat<T>(
    patience: Duration,
    mut attempt: impl FnMut(Duration) -> std::io::Result<T>,
) -> std::io::Result<T> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match attempt(left.min(Duration::from_millis(500))) {
            Err(error) if is_silence(&error) => {}
            answer => return answer,
        }
    }
}

fn failure(error: &std::io::Error) -> Seen {
    match error.kind() {
        ErrorKind::ConnectionRefused => Seen::Refused,
        _ if is_silence(error) => Seen::Silent,
        _ => Seen::Failed(error.to_string()),
    }
}

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

fn both_families<T>(port: u16, bind: impl Fn(SocketAddr) -> std::io::Result<T>) -> Vec<T> {
    // Unless told otherwise a socket of IPv6 serves IPv4 as well.
    let dual = bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port));
    let socket = dual.or_else(|_| bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)));
    vec![socket.unwrap_or_else(|error| panic!("port {port}: {error}"))]
}

fn answer_tcp(listener: &TcpListener, stop: &AtomicBool, name: &[u8]) {
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                let _ = stream.write_all(name);
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn answer_udp(socket: &UdpSocket, stop: &AtomicBool, name: &[u8]) {
    let pause = Some(Duration::from_millis(50));
    socket.set_read_timeout(pause).unwrap();
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name, from);
        }
    }
}
