//! How frames reach the appliance and leave it.
//!
//! A [`Link`] carries whole IP packets, one a call, and never blocks. This is
//! the only floor, beside the namespace calls of `lab`, where `unsafe` may be.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

mod memory;
mod tun;

pub use self::memory::MemoryLink;
pub use self::tun::TunLink;

/// How a worker learns that a link has frames to read.
#[derive(Debug)]
pub enum Readiness<'a> {
    /// Poll this descriptor (edge-triggered: read until `WouldBlock`).
    Fd(BorrowedFd<'a>),
    /// The link calls the waker given to [`Link::wake_with`] for each frame.
    Wakes,
}

/// One attachment of the appliance to the world. Any thread may call any
/// method; frames sent from several threads are not torn or mixed.
pub trait Link: Send + Sync + fmt::Debug {
    /// Reads one packet into `buffer` and gives its length.
    ///
    /// # Errors
    /// `WouldBlock` when there is none now; anything else means that the link
    /// is broken or gone.
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes one packet, whole or not at all.
    ///
    /// # Errors
    /// Whatever the device said; the packet is lost then.
    fn send(&self, packet: &[u8]) -> io::Result<()>;

    /// How to wait for [`recv`](Self::recv).
    fn readiness(&self) -> Readiness<'_>;

    /// Hands over the waker of the worker that reads this link. Links with a
    /// descriptor need none.
    fn wake_with(&self, _waker: Arc<mio::Waker>) {}
}
