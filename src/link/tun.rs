//! TUN devices: the appliance's end of an entity's `eth0`.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio;
use nix::unistd;
use tun::{AbstractDevice, Configuration, Device, Layer};

use super::offloads::Granted;
use super::{Link, Offload, Offloads, Readiness, Received, virtio};
use crate::packet::Shape;

mod ioctl;

/// Longest name of a network device: `IFNAMSIZ` less its closing zero.
const MAX_NAME: usize = 15;

/// A TUN device, open and non-blocking. It is not persistent: when the last
/// descriptor closes, however the process ended, the device is gone and with
/// it every route through it. That is what makes the lab fail closed.
pub struct TunLink {
    name: String,
    fd: OwnedFd,
    /// Whether each frame has a [`virtio`] header before it.
    has_header: bool,
    /// What may be written.
    granted: Granted,
}

impl TunLink {
    /// Makes a device called `name` in the network namespace of the calling
    /// thread, with the most offloads that the kernel grants or none. From then on
    /// any thread may use it.
    ///
    /// # Errors
    /// A name that no device can have, or the kernel's refusal.
    #[expect(unsafe_code, reason = "takes the descriptor out of the tun crate")]
    pub fn open(name: &str, offload: Offload) -> io::Result<Self> {
        // Checked here because the kernel would take `eth%d` as a pattern and
        // the tun crate copies what it is given.
        let valid = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        if name.is_empty()
            || name.len() > MAX_NAME
            || name.starts_with('.')
            || !name.bytes().all(valid)
        {
            let text = format!("'{name}' can't name a network device");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }

        let mut configuration = Configuration::default();
        configuration.tun_name(name).layer(Layer::L3);
        // Address, MTU and state are set over netlink, which knows IPv6 too.
        configuration.platform_config(|platform| {
            platform.ensure_root_privileges(false);
            platform.vnet_hdr(offload == Offload::Granted);
        });
        let device = Device::new(&configuration).map_err(into_io)?;
        let name = device.tun_name().map_err(into_io)?;
        // SAFETY: `into_raw_fd` gives up ownership of an open descriptor that
        // nothing else closes or uses.
        let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };

        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;

        let offloads = match offload {
            Offload::Granted => ioctl::most_offloads(&fd)?,
            Offload::Off => Offloads::NONE,
        };
        Ok(Self {
            name,
            fd,
            has_header: offload == Offload::Granted,
            granted: Granted::new(offloads),
        })
    }

    /// The device's name inside its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the device said to a frame that needs an offload.
    fn note(&self, shape: Shape, written: &nix::Result<usize>) {
        match written {
            Ok(_) => self.granted.taken(),
            Err(nix::Error::EINVAL) if self.granted.refused(shape) => {
                tracing::warn!(device = %self.name, ?shape, "the kernel refuses what it \
                    offered to take: packets go to it one by one");
            }
            Err(_) => {}
        }
    }
}

impl Link for TunLink {
    #[inline]
    fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        if !self.has_header {
            return Ok(Received::whole(unistd::read(&self.fd, buffer)?));
        }
        // Header and frame in one piece: apart they would cost the kernel more to read.
        let length = unistd::read(&self.fd, buffer)?;
        let (header, frame) = buffer
            .get(..length)
            .and_then(<[u8]>::split_first_chunk)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Received {
            start: virtio::HEADER,
            length: frame.len(),
            shape: virtio::decode(*header, frame),
        })
    }

    #[inline]
    fn send(&self, frame: &[u8], shape: Shape) -> io::Result<()> {
        let written = if self.has_header {
            let header = virtio::encode(shape, frame);
            let written = uio::writev(&self.fd, &[IoSlice::new(&header), IoSlice::new(frame)]);
            if shape != Shape::Whole {
                self.note(shape, &written);
            }
            written?.saturating_sub(virtio::HEADER)
        } else if shape == Shape::Whole {
            unistd::write(&self.fd, frame)?
        } else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if written == frame.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    #[inline]
    fn offloads(&self) -> Offloads {
        self.granted.now()
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Fd(self.fd.as_fd())
    }
}

impl fmt::Debug for TunLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunLink")
            .field("name", &self.name)
            .field("fd", &self.fd)
            .field("offloads", &self.offloads())
            .finish()
    }
}

fn into_io(error: tun::Error) -> io::Error {
    match error {
        tun::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_device_can_have_are_refused_before_the_kernel_sees_them() {
        for name in [
            "",
            "eth%d",
            "a/b",
            "..",
            "sixteen-letters!",
            "abcdefghijklmnop",
        ] {
            let error = TunLink::open(name, Offload::Granted).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
