//! Below the level of TCP and UDP: raw sockets that hear packets, and options
//! that say how a socket's packets are sent.
#![allow(dead_code, reason = "each test target uses a part")]

use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{ReceiveTimeout, SetUsize};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Whether datagrams may be fragmented (ip(7)): one of the values below.
#[derive(Debug, Clone, Copy)]
pub struct IpMtuDiscover;
nix::setsockopt_impl!(
    IpMtuDiscover,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    usize,
    SetUsize
);

/// The same for IPv6 (ipv6(7)).
#[derive(Debug, Clone, Copy)]
pub struct Ipv6MtuDiscover;
nix::setsockopt_impl!(
    Ipv6MtuDiscover,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    usize,
    SetUsize
);

/// Datagrams may be fragmented on their way (`IP_PMTUDISC_DONT`).
pub const MAY_FRAGMENT: usize = 0;
/// They may not, and what is known to be too big isn't sent (`IP_PMTUDISC_DO`).
pub const DONT_FRAGMENT: usize = 2;

/// A socket that gets every packet of a protocol that arrives in the
/// namespace: over IPv4 with its header, over IPv6 without.
pub fn raw(family: IpAddr, protocol: SockProtocol) -> OwnedFd {
    let family = match family {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap()
}

/// What a raw socket heard.
#[derive(Debug, Clone)]
pub struct Heard {
    pub from: IpAddr,
    /// Over IPv4 with its header, over IPv6 without.
    pub packet: Vec<u8>,
}

impl Heard {
    /// What comes after the IP header.
    pub fn message(&self) -> &[u8] {
        match self.from {
            IpAddr::V4(_) => &self.packet[usize::from(self.packet[0] & 0xf) * 4..],
            IpAddr::V6(_) => &self.packet,
        }
    }
}

/// The first packet that is as wanted, if it comes in time.
pub fn hear(socket: &OwnedFd, wait: Duration, wanted: impl Fn(&Heard) -> bool) -> Option<Heard> {
    let until = Instant::now() + wait;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let left = TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap().max(1));
        setsockopt(socket, ReceiveTimeout, &left).unwrap();
        let (length, from) = match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => panic!("a raw socket: {error}"),
        };
        let from = from.and_then(|from| match from.as_sockaddr_in() {
            Some(v4) => Some(IpAddr::V4(v4.ip())),
            None => Some(IpAddr::V6(from.as_sockaddr_in6()?.ip())),
        });
        let Some(from) = from else { continue };
        let heard = Heard {
            from,
            packet: buffer[..length].to_vec(),
        };
        if wanted(&heard) {
            return Some(heard);
        }
    }
}
