//! The one thread of a sidecar that keeps a privilege, for what is left to do with it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::thread::JoinHandle;

use crossbeam::channel::{self, Receiver, Sender};
use nix::libc;

use super::confine::{self, Capability};
use super::kernel::Kernel;
use super::netlink::{Attribute, Message};
use super::{SidecarError, give_back};

/// Who has the proof's addresses. Locally administered; no frame with it reaches a wire.
const PROVER: [u8; 6] = [0x02, b's', b'g', b'w', b'a', b'l'];
/// `RTA_DST`, `RTA_OIF`, `RTA_PRIORITY` (linux/rtnetlink.h).
const DESTINATION: u16 = 1;
const DEVICE: u16 = 4;
const PRIORITY: u16 = 6;
/// `NDA_DST`, `NDA_LLADDR`, `NUD_PERMANENT` (linux/neighbour.h).
const NEIGHBOUR: u16 = 1;
const LINK_ADDRESS: u16 = 2;
const PERMANENT: u16 = 0x80;

/// Routes to the addresses from which the proof at start speaks, through every taken
/// interface. They are nobody's, so the namespace may have no route there, and
/// nobody answers who asks for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detour {
    devices: Vec<u32>,
    prover: (Ipv4Addr, Ipv6Addr),
}

/// The thread. Dropping it ends it.
#[derive(Debug)]
pub struct Keeper {
    errands: Option<Sender<Errand>>,
    thread: Option<JoinHandle<()>>,
}

/// Where an errand's outcome goes.
type Outcome<T> = Sender<Result<T, SidecarError>>;

#[derive(Debug)]
enum Errand {
    EndDetour(Detour, Outcome<()>),
    GiveBack(Outcome<Vec<String>>),
}

impl Detour {
    /// Makes the routes, through the devices with those indices, in the namespace of the
    /// calling thread.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn make(devices: Vec<u32>, prover: (Ipv4Addr, Ipv6Addr)) -> Result<Self, SidecarError> {
        let detour = Self { devices, prover };
        detour.ask(libc::RTM_NEWNEIGH, libc::RTM_NEWROUTE, |flags| flags)?;
        Ok(detour)
    }

    fn end(&self) -> Result<(), SidecarError> {
        self.ask(libc::RTM_DELNEIGH, libc::RTM_DELROUTE, |_| 0)
    }

    fn ask(
        &self,
        neighbour: u16,
        route: u16,
        flags: impl Fn(u16) -> u16,
    ) -> Result<(), SidecarError> {
        let mut watch = || {};
        let mut kernel = Kernel::open(&mut watch)?;
        let create = u16::try_from(libc::NLM_F_CREATE | libc::NLM_F_REPLACE).unwrap_or(0);
        for (number, device) in self.devices.iter().enumerate() {
            for address in [IpAddr::V4(self.prover.0), IpAddr::V6(self.prover.1)] {
                // A kernel or a namespace without IPv6 has nothing to prove there.
                let fine: &[i32] = match address {
                    IpAddr::V4(_) => &[libc::ESRCH, libc::ENOENT],
                    IpAddr::V6(_) => &[
                        libc::ESRCH,
                        libc::ENOENT,
                        libc::EAFNOSUPPORT,
                        libc::EOPNOTSUPP,
                        libc::EACCES,
                        libc::EINVAL,
                        libc::ENODEV,
                    ],
                };
                let ask = [
                    (route, self.route(route, *device, number, address)),
                    (neighbour, neighbour_message(neighbour, *device, address)),
                ];
                for (_, message) in ask {
                    let operation = format!("route the proof's {address}");
                    kernel.ask_unless(fine, operation, message, flags(create))?;
                }
            }
        }
        Ok(())
    }

    /// `struct rtmsg` and its attributes.
    fn route(&self, kind: u16, device: u32, number: usize, address: IpAddr) -> Message {
        let (family, bits, scope) = match address {
            IpAddr::V4(_) => (libc::AF_INET, 32, libc::RT_SCOPE_LINK),
            IpAddr::V6(_) => (libc::AF_INET6, 128, libc::RT_SCOPE_UNIVERSE),
        };
        let mut head = [0; 12];
        head[0] = family.to_le_bytes()[0];
        head[1] = bits;
        head[4] = libc::RT_TABLE_MAIN;
        head[5] = libc::RTPROT_STATIC;
        head[6] = scope;
        head[7] = libc::RTN_UNICAST;
        // Of routes to one place, sockets that are bound to a device take its own.
        let priority = u32::try_from(number + 1).unwrap_or(u32::MAX);
        Message::new(kind, &head)
            .with(Attribute::new(DESTINATION, octets(address)))
            .with(Attribute::u32(DEVICE, device))
            .with(Attribute::u32(PRIORITY, priority))
    }
}

/// `struct ndmsg` and its attributes.
fn neighbour_message(kind: u16, device: u32, address: IpAddr) -> Message {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    let mut head = [0; 12];
    head[0] = family.to_le_bytes()[0];
    head[4..8].copy_from_slice(&device.to_ne_bytes());
    head[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    Message::new(kind, &head)
        .with(Attribute::new(NEIGHBOUR, octets(address)))
        .with(Attribute::new(LINK_ADDRESS, PROVER.to_vec()))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

impl Keeper {
    /// Starts the thread, which keeps `NET_ADMIN` alone. Call it before the calling
    /// thread gives its capabilities up.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start() -> io::Result<Self> {
        let (errands, received) = channel::unbounded();
        let thread = std::thread::Builder::new()
            .name("sgwall-keeper".to_owned())
            .spawn(move || run(&received))?;
        Ok(Self {
            errands: Some(errands),
            thread: Some(thread),
        })
    }

    /// Removes the proof's routes.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn end_detour(&self, detour: Detour) -> Result<(), SidecarError> {
        self.ask(|tell| Errand::EndDetour(detour, tell))
    }

    /// Gives the interfaces back ([`give_back`]).
    ///
    /// # Errors
    /// As [`give_back`].
    pub fn give_back(&self) -> Result<Vec<String>, SidecarError> {
        self.ask(Errand::GiveBack)
    }

    fn ask<T>(&self, errand: impl FnOnce(Outcome<T>) -> Errand) -> Result<T, SidecarError> {
        let gone = || {
            SidecarError::refused(
                "ask the thread that keeps NET_ADMIN",
                io::ErrorKind::BrokenPipe.into(),
            )
        };
        let (tell, told) = channel::bounded(1);
        let errands = self.errands.as_ref().ok_or_else(gone)?;
        errands.send(errand(tell)).map_err(|_| gone())?;
        told.recv().map_err(|_| gone())?
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.errands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps NET_ADMIN had panicked");
        }
    }
}

fn run(errands: &Receiver<Errand>) {
    if let Err(error) = confine::drop_capabilities(&[Capability::CAP_NET_ADMIN]) {
        // It has more than it needs, and does no more than it is asked.
        tracing::warn!(%error, "the thread that keeps NET_ADMIN keeps more");
    }
    for errand in errands {
        // Who asked may have given up.
        match errand {
            Errand::EndDetour(detour, tell) => drop(tell.send(detour.end())),
            Errand::GiveBack(tell) => drop(tell.send(give_back())),
        }
    }
}
