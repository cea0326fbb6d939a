//! How frames reach the appliance and leave it.
//!
//! A [`Link`] carries whole IP packets or, where it has offloads, super-packets,
//! one a call, and never blocks. This is the only floor, beside the namespace
//! calls of `lab`, where `unsafe` may be.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::errno::Errno;

use crate::packet::Shape;
use crate::packet::ethernet::HEADER;
use crate::policy::DropReason;

mod coalesce;
mod device;
mod ethernet;
mod memory;
mod offloads;
mod packet;
mod tun;
pub mod virtio;

pub use self::coalesce::{Coalescer, Ends};
pub use self::ethernet::{EtherIdentity, InnerLink, OuterLink, wire};
pub use self::memory::MemoryLink;
pub use self::offloads::{Offload, Offloads};
pub use self::packet::{PacketSocket, Secret};
pub use self::tun::{Tap, TunLink};

/// Room for the longest frame, IPv6's header before the most that its length
/// field can say, and before it Ethernet's and a device's own header.
pub const FRAME: usize = virtio::HEADER + HEADER + 40 + 65_535;

/// How a worker learns that a link has frames to read.
#[derive(Debug)]
pub enum Readiness<'a> {
    /// Poll this descriptor (edge-triggered: read until `WouldBlock`).
    Fd(BorrowedFd<'a>),
    /// The link calls the waker given to [`Link::wake_with`] for each frame.
    Wakes,
}

/// The Ethernet addresses that a frame came with: its destination's, then its
/// source's. Links of layer 3 have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Envelope(Option<[u8; 12]>);

/// A frame that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Where in the buffer it starts: the IP packet, behind whatever the link has
    /// before it.
    pub start: usize,
    /// Its bytes.
    pub length: usize,
    /// What they stand for, or why they are no packet that can be judged: as when
    /// whoever sent it contradicts himself.
    pub shape: Result<Shape, DropReason>,
    /// Between which stations it travels.
    pub envelope: Envelope,
}

/// One attachment of the appliance to the world. Any thread may call any
/// method; frames sent from several threads are not torn or mixed.
pub trait Link: Send + Sync + fmt::Debug {
    /// Reads one frame into `buffer`, which has room for [`FRAME`] bytes;
    /// [`Received::frame`] is where it is.
    ///
    /// # Errors
    /// `WouldBlock` when there is none now; anything else means that the link
    /// is broken, until it can be read again, or gone.
    fn recv(&self, buffer: &mut [u8]) -> io::Result<Received>;

    /// Writes one frame of a shape that [`Link::offloads`] takes, whole or not at
    /// all. Where frames have Ethernet addresses, they are those of the `envelope`.
    ///
    /// # Errors
    /// `InvalidInput` if the device refuses the shape, for now or from now on: the
    /// frame can be sent as the packets of the wire that it stands for
    /// ([`crate::packet::segment`]). Otherwise whatever the device said; the frame
    /// is lost then.
    fn send(&self, envelope: Envelope, frame: &[u8], shape: Shape) -> io::Result<()>;

    /// What may be sent beside whole packets. A link may give an offload up.
    fn offloads(&self) -> Offloads {
        Offloads::NONE
    }

    /// How to wait for [`recv`](Self::recv).
    fn readiness(&self) -> Readiness<'_>;

    /// Hands over the waker of the worker that reads this link. Links with a
    /// descriptor need none.
    fn wake_with(&self, _waker: Arc<mio::Waker>) {}
}

impl Envelope {
    /// That of a link which has no Ethernet addresses.
    pub const NONE: Self = Self(None);

    /// From the station `source` to the station `destination`.
    pub fn new(destination: [u8; 6], source: [u8; 6]) -> Self {
        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&destination);
        addresses[6..].copy_from_slice(&source);
        Self(Some(addresses))
    }

    /// That of an answer.
    #[must_use]
    pub fn back(self) -> Self {
        Self(self.0.map(|mut addresses| {
            addresses.rotate_left(6);
            addresses
        }))
    }

    /// Destination and source, as they stand in a frame.
    #[inline]
    pub fn addresses(&self) -> Option<&[u8; 12]> {
        self.0.as_ref()
    }
}

impl Received {
    /// An ordinary packet at the start of the buffer.
    pub fn whole(length: usize) -> Self {
        Self {
            start: 0,
            length,
            shape: Ok(Shape::Whole),
            envelope: Envelope::NONE,
        }
    }

    /// A frame that is not a packet to be judged.
    pub(crate) fn unreadable(start: usize, length: usize, reason: DropReason) -> Self {
        Self {
            start,
            length,
            shape: Err(reason),
            envelope: Envelope::NONE,
        }
    }

    /// Returns the meaning of a read `error`. `EINVAL` concerns one frame, a super-packet that
    /// the offload header can't describe: it is lost, and others may follow. Any other error
    /// concerns the device.
    ///
    /// # Errors
    ///
    /// Any error that concerns the device.
    #[cold]
    pub(crate) fn lost(error: io::Error) -> io::Result<Self> {
        if error.raw_os_error() == Some(Errno::EINVAL as i32) {
            return Ok(Self::unreadable(0, 0, DropReason::Malformed));
        }
        Err(error)
    }

    /// The frame, in the buffer that it was read into.
    #[inline]
    pub fn frame<'b>(&self, buffer: &'b mut [u8]) -> &'b mut [u8] {
        &mut buffer[self.start..][..self.length]
    }
}
