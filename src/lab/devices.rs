//! Watches the devices inside a lab's namespaces. When a device is set down, the kernel removes
//! its routes, and with IPv6 its addresses. Setting it up again restores only the routes to its
//! own subnets.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{self, Receiver, Sender};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkFlags;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

use super::attach::DevicePlan;
use super::netlink::Batch;
use super::{LabError, Namespace};
use crate::model::InterfaceIx;

/// The multicast group for link notifications (`RTMGRP_LINK`, linux/rtnetlink.h).
const LINK_GROUP: u32 = 1;

/// A change to a device inside its namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceState {
    /// It was set down and passes no packets.
    Down,
    /// It is up again, and its addresses and routes were restored.
    Up,
    /// It is up again, but its addresses or routes can't be restored, for this reason.
    Unrestored(String),
}

/// The watching thread, which stops when this is dropped.
#[derive(Debug)]
pub(super) struct Devices {
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
    changes: Receiver<(InterfaceIx, DeviceState)>,
}

/// The devices of one namespace.
#[derive(Debug)]
pub(super) struct Watched {
    news: Socket,
    devices: Vec<Device>,
}

#[derive(Debug)]
struct Device {
    plan: DevicePlan,
    index: u32,
    up: bool,
}

impl Watched {
    /// Watches the devices of the calling thread's namespace, given with their indices. All are
    /// up.
    pub fn here(devices: Vec<(DevicePlan, u32)>) -> io::Result<Self> {
        let mut news = Socket::new(NETLINK_ROUTE)?;
        news.bind(&SocketAddr::new(0, LINK_GROUP))?;
        news.set_non_blocking(true)?;
        let devices = devices.into_iter().map(|(plan, index)| Device {
            plan,
            index,
            up: true,
        });
        Ok(Self {
            news,
            devices: devices.collect(),
        })
    }

    /// Reads the notifications, and reports devices that were set down or up.
    fn hear(&mut self, namespace: &OwnedFd, tell: &Sender<(InterfaceIx, DeviceState)>) {
        loop {
            match self.news.recv_from_full() {
                Ok((messages, _)) => {
                    for (index, up) in flags(&messages) {
                        self.change(index, up, namespace, tell);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    // Notifications were lost (ENOBUFS): any device may have been down meanwhile.
                    tracing::debug!(%error, "news of devices was lost");
                    for at in 0..self.devices.len() {
                        let index = self.devices[at].index;
                        self.change(index, false, namespace, tell);
                        self.change(index, true, namespace, tell);
                    }
                    return;
                }
            }
        }
    }

    fn change(
        &mut self,
        index: u32,
        up: bool,
        namespace: &OwnedFd,
        tell: &Sender<(InterfaceIx, DeviceState)>,
    ) {
        let several = self.devices.len() > 1;
        let found = self.devices.iter_mut().find(|it| it.index == index);
        let Some(device) = found.filter(|it| it.up != up) else {
            return;
        };
        device.up = up;
        let state = match up {
            false => DeviceState::Down,
            true => match device.restore(namespace, several) {
                Ok(()) => DeviceState::Up,
                Err(why) => DeviceState::Unrestored(why),
            },
        };
        let _ = tell.send((device.plan.interface, state));
    }
}

impl Device {
    /// Restores addresses and routes. The calling thread is in the namespace afterwards.
    fn restore(&self, namespace: &OwnedFd, several: bool) -> Result<(), String> {
        setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("enter the network namespace: {errno}"))?;
        let mut batch = Batch::default();
        self.plan.queue_addresses(&mut batch, self.index, several);
        batch
            .send_anew()
            .map_err(|(operation, error)| format!("{operation}: {error}"))
    }
}

impl Devices {
    /// Watches the devices of these namespaces on a separate thread.
    ///
    /// # Errors
    ///
    /// The system refused to start the thread.
    pub fn watch(namespaces: &[Namespace], mut watched: Vec<Watched>) -> Result<Self, LabError> {
        let failed = |error| LabError::system("watch the devices", error);
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let (tell, changes) = channel::unbounded();
        let namespaces: Vec<Arc<OwnedFd>> = namespaces.iter().map(Namespace::share).collect();
        let thread = thread::Builder::new()
            .name("sgwall-devices".into())
            .spawn(move || {
                while let Some(ready) = wait(&woken, &watched) {
                    for at in ready {
                        watched[at].hear(&namespaces[at], &tell);
                    }
                }
            })
            .map_err(failed)?;
        Ok(Self {
            wake,
            thread: Some(thread),
            changes,
        })
    }

    /// Returns the changes to devices since the last call.
    pub fn changes(&self) -> Vec<(InterfaceIx, DeviceState)> {
        self.changes.try_iter().collect()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let _ = self.wake.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits for notifications. Returns the positions of the namespaces that have some, or `None` at
/// the end.
fn wait(woken: &UnixStream, watched: &[Watched]) -> Option<Vec<usize>> {
    let news = watched.iter().map(|it| it.news.as_fd());
    let mut fds: Vec<PollFd<'_>> = std::iter::once(woken.as_fd())
        .chain(news)
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    while let Err(errno) = poll(&mut fds, PollTimeout::NONE) {
        if errno != nix::errno::Errno::EINTR {
            tracing::warn!(%errno, "devices are no longer watched");
            return None;
        }
    }
    let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
    if ready(&fds[0]) {
        return None;
    }
    let news = fds[1..].iter().enumerate();
    Some(news.filter(|(_, fd)| ready(fd)).map(|(at, _)| at).collect())
}

/// Returns the index of each device in the messages, and true if it is up.
fn flags(messages: &[u8]) -> Vec<(u32, bool)> {
    let mut found = Vec::new();
    let mut rest = messages;
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
        let length = (message.header.length as usize).next_multiple_of(4);
        if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload {
            found.push((link.header.index, link.header.flags.contains(LinkFlags::Up)));
        }
        rest = rest.get(length.max(4)..).unwrap_or_default();
        if rest.is_empty() {
            break;
        }
    }
    found
}
