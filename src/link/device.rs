//! What devices that carry frames over a descriptor have in common.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::uio;
use nix::unistd;

use super::{Offloads, virtio};
use crate::model::protocol;
use crate::packet::{self, Shape, TcpFlags, Transport, ethernet};

/// An open, non-blocking descriptor that gives or takes a frame with each call.
pub(super) struct Device {
    name: String,
    fd: OwnedFd,
    /// Whether each frame has a [`virtio`] header before it.
    has_header: bool,
    /// What may be written.
    offloads: Offloads,
}

/// Something that was read, as the device gave it.
pub(super) struct Arrival {
    /// Where the frame starts, behind the header.
    pub start: usize,
    pub length: usize,
    pub header: Option<[u8; virtio::HEADER]>,
}

impl Device {
    /// One whose frames have a header, and which was granted these offloads.
    pub fn with_header(name: String, fd: OwnedFd, offloads: Offloads) -> Self {
        Self {
            name,
            fd,
            has_header: true,
            offloads,
        }
    }

    /// One that takes and gives whole packets.
    pub fn bare(name: String, fd: OwnedFd) -> Self {
        Self {
            name,
            fd,
            has_header: false,
            offloads: Offloads::NONE,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    #[inline]
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Reads one frame.
    #[inline]
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        // Header and frame in one piece: apart they would cost the kernel more to read.
        let length = unistd::read(&self.fd, buffer)?;
        if !self.has_header {
            return Ok(Arrival {
                start: 0,
                length,
                header: None,
            });
        }
        let (header, frame) = buffer
            .get(..length)
            .and_then(<[u8]>::split_first_chunk)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Arrival {
            start: virtio::HEADER,
            length: frame.len(),
            header: Some(*header),
        })
    }

    /// Writes one packet of that shape behind the header of the layer below, which is
    /// Ethernet's or nothing.
    ///
    /// # Errors
    /// As [`super::Link::send`].
    #[inline]
    pub fn write(&self, below: &[u8], packet: &[u8], shape: Shape) -> io::Result<()> {
        const MOST: usize = virtio::HEADER + ethernet::HEADER;
        let mut head = [0; MOST];
        let mut used = 0;
        if self.has_header {
            let before = u16::try_from(below.len()).map_err(io::Error::other)?;
            let header = virtio::encode_behind(before, shape, packet);
            head[..virtio::HEADER].copy_from_slice(&header);
            used = virtio::HEADER;
        } else if shape != Shape::Whole {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        head.get_mut(used..used + below.len())
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(below);
        let head = &head[..used + below.len()];
        let written = if head.is_empty() {
            unistd::write(&self.fd, packet)
        } else {
            uio::writev(&self.fd, &[IoSlice::new(head), IoSlice::new(packet)])
        };
        if written? == head.len() + packet.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Returns the device without the offloads that the kernel refuses although it granted them
    /// (some kernels of 6.1 to 6.10 did). This is tested with our own frames, never with received
    /// ones, whose sender could provoke a refusal. The device must not be up yet: the kernel then
    /// reads the headers of the test frames and goes no further.
    pub fn tried_out(mut self, below: &[u8]) -> Self {
        for (frame, shape) in trials() {
            let refused = |error: &io::Error| error.kind() == io::ErrorKind::InvalidInput;
            let taken = self.offloads.take(shape);
            if taken
                && self
                    .write(below, &frame, shape)
                    .is_err_and(|it| refused(&it))
            {
                self.offloads = self.offloads.without(shape);
                tracing::warn!(device = %self.name, ?shape, "the kernel refuses what it \
                    offered to take: packets go to it one by one");
            }
        }
        self
    }
}

/// Returns a frame of each shape that needs an offload.
fn trials() -> impl Iterator<Item = (Vec<u8>, Shape)> {
    const PAYLOAD: [u8; 200] = [0; 200];
    let tcp = Transport::Tcp {
        source: 1,
        destination: 1,
        flags: TcpFlags::default(),
        end: 0,
        acknowledgement: 0,
    };
    let udp = Transport::Udp {
        source: 1,
        destination: 1,
    };
    let [v4, v6] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let frames = [
        (v4, protocol::TCP, tcp),
        (v6, protocol::TCP, tcp),
        (v4, protocol::UDP, udp),
        (v6, protocol::UDP, udp),
    ];
    frames.into_iter().flat_map(|(address, number, transport)| {
        let frame = packet::build(address, address, number, transport, &PAYLOAD);
        let frame = frame.unwrap_or_default();
        [Shape::partial(&frame), Shape::segments(&frame, 100, false)]
            .into_iter()
            .flatten()
            .map(move |shape| (frame.clone(), shape))
    })
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.name)
            .field("fd", &self.fd)
            .field("offloads", &self.offloads)
            .finish()
    }
}
