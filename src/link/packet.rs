//! Packet sockets (`AF_PACKET`): a network device's frames, past its stack.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Mark, Priority, RcvBuf, RcvBufForce, SndBuf, SndBufForce};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket};

use super::device::{Arrival, Device};
use super::{Offload, Offloads};

mod sys;

/// Bytes that wait to be read, and to be sent. The kernel doubles them, and counts all
/// that a frame takes in memory: some hundred super-packets, or a few thousand
/// packets. Only what waits takes memory.
const RECEIVE_BUFFER: usize = 8 << 20;
const SEND_BUFFER: usize = 4 << 20;

/// What a device's hooks ask of the frames that leave by it, and nobody else knows: the
/// mark and the priority that the kernel keeps beside each, 64 bits together. Of one alone all
/// values can be tried in an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secret {
    /// `SO_MARK`.
    pub mark: u32,
    /// `SO_PRIORITY`.
    pub priority: u32,
}

impl From<u64> for Secret {
    fn from(bits: u64) -> Self {
        let [m0, m1, m2, m3, priority @ ..] = bits.to_be_bytes();
        Self {
            mark: u32::from_be_bytes([m0, m1, m2, m3]),
            priority: u32::from_be_bytes(priority),
        }
    }
}

/// A packet socket that reads and writes all frames of one Ethernet device, open and
/// non-blocking. Frames that the device sends are not read, nor those for other stations,
/// nor those that came with an 802.1Q tag which the kernel has taken off.
///
/// The kernel segments and sums up what it is given for a device that can't, so all shapes may
/// be sent that it knows (those of UDP since Linux 6.2). What arrives comes as the device gave it,
/// super-packets unsplit, those of tunnels too.
/// Those of kinds that the offload header has no words for (of SCTP; of UDP before Linux 6.2)
/// the kernel doesn't hand over: they are lost and counted as malformed.
#[derive(Debug)]
pub struct PacketSocket(Device);

impl PacketSocket {
    /// Opens one for the device with that index in the network namespace of the calling
    /// thread. Frames that it sends carry the `secret`. From then on any thread may use it, which
    /// has to have no privilege for it. No frame is read that came before.
    ///
    /// With [`Offload::Off`] packets have to be sent one by one, with their checksums.
    /// How they arrive is up to others.
    ///
    /// # Errors
    /// The kernel's refusal, with the operation: without the capability `NET_RAW` there is no
    /// such socket, and mark and priority take `NET_ADMIN` or, since Linux 5.17, `NET_RAW`.
    pub fn open(index: u32, secret: Secret, offload: Offload) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        // Of no protocol, it hears nothing before it is bound.
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)
            .map_err(|error| failed("open a packet socket", error.into()))?;
        sys::turn_on(&fd, sys::Switch::OffloadHeader)
            .map_err(|error| failed("have offload headers", error))?;
        sys::turn_on(&fd, sys::Switch::IgnoreOutgoing)
            .map_err(|error| failed("leave out frames that are sent (Linux 4.20)", error))?;
        sys::take_untagged_for_us(&fd).map_err(|error| failed("attach a filter", error))?;
        setsockopt(&fd, Mark, &secret.mark)
            .and_then(|()| setsockopt(&fd, Priority, &secret.priority.cast_signed()))
            .map_err(|error| failed("mark frames", error.into()))?;
        // Without `NET_ADMIN` over the machine, as much as anybody may have.
        setsockopt(&fd, RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| setsockopt(&fd, RcvBuf, &RECEIVE_BUFFER))
            .and_then(|()| {
                setsockopt(&fd, SndBufForce, &SEND_BUFFER)
                    .or_else(|_| setsockopt(&fd, SndBuf, &SEND_BUFFER))
            })
            .map_err(|error| failed("have buffers", error.into()))?;
        // Which groups are wanted is known at the other end only.
        sys::hear_all_groups(&fd, index).map_err(|error| failed("hear multicast frames", error))?;
        sys::bind(&fd, index).map_err(|error| failed("bind to the device", error))?;
        let offloads = match offload {
            Offload::Granted => Offloads::ALL,
            Offload::Off => Offloads::NONE,
        };
        Ok(Self(Device::with_header(
            format!("device {index}"),
            fd,
            offloads,
        )))
    }

    /// Whether its device is gone for good. One that is down may come up again.
    pub fn is_gone(&self) -> bool {
        // The kernel forgets the index when the device goes, whatever namespace asks.
        sys::bound_to(&self.0.as_fd()).is_none()
    }

    /// Reads one frame.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; `InvalidInput` if one was lost for which the header has
    /// no words; `NotFound` if the device is gone.
    #[inline]
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Arrival> {
        self.0.read(buffer).or_else(|error| {
            if error.raw_os_error() != Some(Errno::ENETDOWN as i32) {
                return Err(error);
            }
            if self.is_gone() {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "the network device is gone",
                ));
            }
            // Said once, and what came before may still be there.
            self.0.read(buffer)
        })
    }

    /// The descriptor, and what is written to it.
    #[inline]
    pub(super) fn device(&self) -> &Device {
        &self.0
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
fn failed(operation: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("can't {operation}: {error}"))
}
