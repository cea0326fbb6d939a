//! Namespaces like those of containers on a bridge, and what tests do in them.

use std::any::Any;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendmsg, setsockopt,
    socket, sockopt,
};
pub use sgwall::link::Secret;
use sgwall::sidecar::{SidecarError, Taken, Wanted, take, take_watched};
use tun::{Configuration, Device, Layer};

use super::netlink::{self, Way};

/// The secret of the tests.
pub const SECRET: Secret = Secret {
    mark: 0x5e_c2e7,
    priority: 0x7e_115e,
};
/// The gateway of a network's containers.
pub const GATEWAY: &str = "172.28.0.1";
pub const GATEWAY6: &str = "fd28::1";
/// The port that [`Echo`] listens at.
pub const PORT: u16 = 7;
/// How long an answer that should not come is waited for.
pub const MOMENT: Duration = Duration::from_millis(150);

/// How long an answer that should come is waited for.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace; it lives as long as this.
#[derive(Debug, Clone)]
pub struct Space(Arc<OwnedFd>);

/// A bridge in a namespace of its own, with addresses, like a container engine's.
#[derive(Debug)]
pub struct Network {
    pub space: Space,
    next: AtomicU32,
}

/// A UDP service on all addresses that sends back what it hears.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Hears all frames that a namespace's devices see.
#[derive(Debug)]
pub struct Ear(OwnedFd);

impl Space {
    /// A fresh namespace with `lo` up, in which nobody asks whether others have an IPv6
    /// address.
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            netlink::set_up(1, true);
            for device in ["all", "default"] {
                let conf = format!("/proc/sys/net/ipv6/conf/{device}");
                fs::write(format!("{conf}/accept_dad"), "0").unwrap();
                fs::write(format!("{conf}/disable_ipv6"), "0").unwrap();
            }
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        Self(Arc::new(made.join().unwrap()))
    }

    /// Runs something on a thread inside. A panic is the caller's.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.try_run(work)
            .unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The same, where a panic is an answer: a run that ends at any moment.
    pub fn try_run<T: Send>(
        &self,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, Box<dyn Any + Send>> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                    catch_unwind(AssertUnwindSafe(work))
                })
                .join()
                .unwrap()
        })
    }
}

impl Network {
    pub fn new() -> Self {
        let space = Space::new();
        space.run(|| {
            netlink::make_bridge("br0");
            let index = netlink::index("br0");
            netlink::add_address(index, ip(GATEWAY), 16, None);
            netlink::add_address(index, ip(GATEWAY6), 64, None);
            netlink::set_up(index, true);
        });
        Self {
            space,
            next: AtomicU32::new(0),
        }
    }

    /// A container: a namespace with `eth0` on the bridge, addresses
    /// 172.28.0.`number`/16 and fd28::`number`/64, and default routes.
    pub fn container(&self, number: u8) -> Space {
        let space = Space::new();
        self.connect(&space, "eth0");
        space.run(|| {
            let index = netlink::index("eth0");
            netlink::add_address(index, address(number), 16, None);
            netlink::add_address(index, address6(number), 64, None);
            for gateway in [GATEWAY, GATEWAY6] {
                netlink::add_route(&Way {
                    via: vec![(Some(ip(gateway)), index)],
                    ..Way::default()
                });
            }
        });
        space
    }

    /// One more interface of a container's, up and without addresses of its own.
    pub fn connect(&self, space: &Space, name: &str) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.space.run(|| {
            let bridge = netlink::index("br0");
            netlink::make_pair(&format!("veth{number}"), bridge, name, space.0.as_fd());
        });
        space.run(|| netlink::set_up(netlink::index(name), true));
    }

    /// Whether a service at an address answers somebody on the bridge. A port whose device comes
    /// up may take a second to pass frames.
    pub fn reaches(&self, to: IpAddr) -> bool {
        self.space.run(|| asks(to, PATIENCE))
    }

    /// Whether nothing answers.
    pub fn is_cut_off_from(&self, to: IpAddr) -> bool {
        !self.space.run(|| asks(to, 3 * MOMENT))
    }
}

impl Echo {
    /// Serves in a namespace, until dropped.
    pub fn start(space: &Space) -> Self {
        Self::start_at(space, ip("::"))
    }

    /// The same at one address.
    pub fn start_at(space: &Space, address: IpAddr) -> Self {
        let socket = space.run(|| UdpSocket::bind((address, PORT)).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Ear {
    pub fn new(space: &Space) -> Self {
        Self(space.run(packet_socket))
    }

    /// The first frame of those that `wanted` describes, if one comes in time.
    pub fn hears(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let until = Instant::now() + patience;
        let mut buffer = [0; 4096];
        while Instant::now() < until {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) if wanted(&buffer[..length]) => return Some(buffer[..length].to_vec()),
                Ok(_) => {}
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    /// Forgets what was heard so far.
    pub fn clear(&self) {
        self.hears(MOMENT, |_| false);
    }

    /// The first frame of a sender's.
    pub fn hears_from(&self, mac: [u8; 6], patience: Duration) -> Option<Vec<u8>> {
        self.hears(patience, |frame| frame.get(6..12) == Some(&mac[..]))
    }
}

/// Asks a service in the calling thread's namespace, a few times.
pub fn asks(to: IpAddr, patience: Duration) -> bool {
    let any = if to.is_ipv4() { "0.0.0.0" } else { "::" };
    let socket = UdpSocket::bind((ip(any), 0)).unwrap();
    let mut buffer = [0; 16];
    let until = Instant::now() + patience;
    socket.set_read_timeout(Some(MOMENT)).unwrap();
    while Instant::now() < until {
        let sent = socket.send_to(b"anybody?", (to, PORT));
        if sent.is_ok() && socket.recv_from(&mut buffer).is_ok() {
            return true;
        }
        if sent.is_err() {
            thread::sleep(MOMENT);
        }
    }
    false
}

/// A socket for frames of every kind and device.
pub fn packet_socket() -> OwnedFd {
    socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .unwrap()
}

/// Sends a frame by a device of the calling thread's namespace.
pub fn send_frame(device: &str, frame: &[u8], secret: Option<Secret>) -> nix::Result<usize> {
    let socket = packet_socket();
    if let Some(secret) = secret {
        setsockopt(&socket, sockopt::Mark, &secret.mark).unwrap();
        setsockopt(&socket, sockopt::Priority, &secret.priority.cast_signed()).unwrap();
    }
    let parts = [IoSlice::new(frame)];
    let to = Some(link_address(device));
    sendmsg(
        socket.as_raw_fd(),
        &parts,
        &[],
        MsgFlags::empty(),
        to.as_ref(),
    )
}

/// The MAC of a device of the calling thread's namespace.
pub fn mac(device: &str) -> [u8; 6] {
    link_address(device).addr().unwrap()
}

/// A broadcast frame that asks by ARP who has an address, from a sender with a MAC.
pub fn arp_request(mac: [u8; 6], from: IpAddr, to: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (from, to) else {
        panic!("ARP is IPv4's");
    };
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(from.octets());
    frame.extend([0; 6]);
    frame.extend(to.octets());
    frame
}

/// A TAP device; it goes when it is closed.
pub struct Tap {
    _device: Device,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tap")
    }
}

/// Opens a TAP device.
pub fn open_tap(name: &str) -> io::Result<Tap> {
    let mut configuration = Configuration::default();
    configuration.tun_name(name).layer(Layer::L2);
    configuration.platform_config(|platform| {
        platform.ensure_root_privileges(false);
    });
    let device = Device::new(&configuration).map_err(|error| match error {
        tun::Error::Io(error) => error,
        other => io::Error::other(other),
    })?;
    Ok(Tap { _device: device })
}

/// Takes everything in the calling thread's namespace.
pub fn take_all() -> Result<Taken<Tap>, SidecarError> {
    take(&Wanted::default(), SECRET, open_tap)
}

/// The same, ended after so many changes, as by `kill -9`: whether it came so far.
pub fn take_until(space: &Space, changes: usize) -> bool {
    let mut left = changes;
    let ended = space.try_run(|| {
        take_watched(&Wanted::default(), SECRET, open_tap, &mut || {
            stop(&mut left)
        })
        .unwrap()
    });
    ended.is_err()
}

/// Ends the thread, without a word, when nothing is left.
pub fn stop(left: &mut usize) {
    *left = left.saturating_sub(1);
    if *left == 0 {
        resume_unwind(Box::new("ended"));
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn address(number: u8) -> IpAddr {
    ip(&format!("172.28.0.{number}"))
}

pub fn address6(number: u8) -> IpAddr {
    ip(&format!("fd28::{number}"))
}

fn link_address(device: &str) -> LinkAddr {
    getifaddrs()
        .unwrap()
        .filter(|this| this.interface_name == device)
        .find_map(|this| this.address?.as_link_addr().copied())
        .unwrap_or_else(|| panic!("no device {device}"))
}
