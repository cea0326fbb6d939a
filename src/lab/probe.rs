//! Real sockets to try a lab with: services that echo, connections and pings.
//! Everything here runs on a thread that is inside the namespace it probes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::packet::{self, Transport};

/// How often a service looks whether it should stop.
const LOOK: Duration = Duration::from_millis(20);

/// What a probe saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// An answer: the connection stands, or the echo came back.
    Answered,
    /// Nothing within the time.
    Nothing,
}

/// Answers TCP connections on `address` by sending back what comes in, until
/// `stop` is set. Comes back once the service listens.
///
/// # Errors
/// The address can't be bound.
pub fn serve_echo<'scope>(
    scope: &'scope Scope<'scope, '_>,
    address: SocketAddr,
    stop: &'scope AtomicBool,
) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    // A thread starts in the network namespace of the one that made it.
    scope.spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(move || echo(stream, stop));
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    });
    Ok(())
}

/// Tries to open a TCP connection.
///
/// # Errors
/// Anything but an answer, a refusal to answer, or silence: a refused
/// connection is an error, as a security group never refuses, it drops.
pub fn connect(to: SocketAddr, patience: Duration) -> io::Result<Seen> {
    match TcpStream::connect_timeout(&to, patience) {
        Ok(_) => Ok(Seen::Answered),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(Seen::Nothing),
        Err(error) => Err(error),
    }
}

/// Sends one echo request with `id` and waits for its reply.
///
/// # Errors
/// The system refused a raw socket or the route.
pub fn ping(to: IpAddr, id: u16, patience: Duration) -> io::Result<Seen> {
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    // The standard library's datagram calls serve a raw socket just as well.
    let raw = UdpSocket::from(raw);
    let whole = packet::build(
        to,
        to,
        packet::icmp_protocol(to),
        Transport::IcmpQuery {
            kind: request,
            code: 0,
            id,
            request: true,
        },
        b"sgwall probe",
    )
    .ok_or(ErrorKind::InvalidInput)?;
    // The kernel writes the IP header, and for IPv6 the checksum.
    let header = if to.is_ipv4() { 20 } else { 40 };
    raw.send_to(&whole[header..], SocketAddr::new(to, 0))?;
    let until = Instant::now() + patience;
    let mut buffer = [0; 2048];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Seen::Nothing);
        }
        raw.set_read_timeout(Some(left))?;
        match raw.recv_from(&mut buffer) {
            Ok((length, _)) => {
                // Raw IPv4 sockets give the IP header too, IPv6's don't.
                let header = match to {
                    IpAddr::V4(_) => usize::from(buffer[0] & 0x0f) * 4,
                    IpAddr::V6(_) => 0,
                };
                if let Some([kind, _, _, _, high, low]) = buffer[..length].get(header..header + 6)
                    && *kind == reply
                    && u16::from_be_bytes([*high, *low]) == id
                {
                    return Ok(Seen::Answered);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(Seen::Nothing);
            }
            Err(error) => return Err(error),
        }
    }
}

/// A connection that is used again and again.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    said: u64,
}

impl Conversation {
    /// Opens a connection to an echo service.
    ///
    /// # Errors
    /// It can't be opened within `patience`.
    pub fn open(to: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Self { stream, said: 0 })
    }

    /// Says something new and waits for its echo.
    ///
    /// # Errors
    /// The connection broke.
    pub fn exchange(&mut self) -> io::Result<Seen> {
        self.said += 1;
        let words = self.said.to_be_bytes();
        self.stream.write_all(&words)?;
        let mut heard = [0; 8];
        match self.stream.read_exact(&mut heard) {
            Ok(()) if heard == words => Ok(Seen::Answered),
            Ok(()) => Err(ErrorKind::InvalidData.into()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(Seen::Nothing)
            }
            Err(error) => Err(error),
        }
    }
}

fn echo(mut stream: TcpStream, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    // Without the timeout the service could not be stopped while a peer is silent.
    if stream.set_nonblocking(false).is_err() || stream.set_read_timeout(Some(LOOK)).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}
