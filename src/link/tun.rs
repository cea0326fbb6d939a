//! TUN and TAP devices: the appliance's end of an entity's `eth0`, for packets or for
//! Ethernet frames.

use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tun::{AbstractDevice, Configuration, Layer};

use super::device::Device;
use super::{Envelope, Link, Offload, Offloads, Readiness, Received, virtio};
use crate::packet::Shape;
use crate::packet::ethernet::HEADER;
use crate::policy::DropReason;

mod ioctl;

/// Longest name of a network device: `IFNAMSIZ` less its closing zero.
const MAX_NAME: usize = 15;
/// An Ethernet header before an IPv4 packet, with zero for both addresses.
const ETHERNET: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0];

/// A TUN device, open and non-blocking. It is not persistent: when the last
/// descriptor closes, however the process ended, the device is gone and with
/// it every route through it. That is what makes the lab fail closed.
#[derive(Debug)]
pub struct TunLink(Device);

/// A TAP device, open and non-blocking, which goes with its last descriptor like
/// [`TunLink`]. It carries Ethernet frames: [`super::wire`] makes a link of it.
#[derive(Debug)]
pub struct Tap(pub(super) Device);

impl TunLink {
    /// Makes a device called `name` in the network namespace of the calling
    /// thread, with the most offloads that the kernel grants or none. From then on
    /// any thread may use it.
    ///
    /// # Errors
    /// A name that no device can have, or the kernel's refusal.
    pub fn open(name: &str, offload: Offload) -> io::Result<Self> {
        open(name, Layer::L3, offload).map(Self)
    }

    /// The device's name inside its namespace.
    pub fn name(&self) -> &str {
        self.0.name()
    }
}

impl Tap {
    /// As [`TunLink::open`]. The device has a random Ethernet address until it is
    /// given another.
    ///
    /// # Errors
    /// As [`TunLink::open`].
    pub fn open(name: &str, offload: Offload) -> io::Result<Self> {
        open(name, Layer::L2, offload).map(Self)
    }

    /// The device's name inside its namespace.
    pub fn name(&self) -> &str {
        self.0.name()
    }
}

impl Link for TunLink {
    #[inline]
    fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let arrival = match self.0.read(buffer) {
            Ok(arrival) => arrival,
            Err(error) => return Received::lost(error),
        };
        let Some(header) = arrival.header else {
            return Ok(Received::whole(arrival.length));
        };
        let frame = &mut buffer[arrival.start..][..arrival.length];
        Ok(Received {
            start: arrival.start,
            length: arrival.length,
            shape: virtio::settle(0, header, frame).map_err(|_| DropReason::Malformed),
            envelope: Envelope::NONE,
        })
    }

    #[inline]
    fn send(&self, _: Envelope, frame: &[u8], shape: Shape) -> io::Result<()> {
        self.0.write(&[], frame, shape)
    }

    #[inline]
    fn offloads(&self) -> Offloads {
        self.0.offloads()
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Fd(self.0.as_fd())
    }
}

#[expect(unsafe_code, reason = "takes the descriptor out of the tun crate")]
fn open(name: &str, layer: Layer, offload: Offload) -> io::Result<Device> {
    // Checked here because the kernel would take `eth%d` as a pattern and
    // the tun crate copies what it is given.
    let valid = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.bytes().all(valid)
    {
        let text = format!("'{name}' can't name a network device");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }

    let mut configuration = Configuration::default();
    configuration.tun_name(name).layer(layer);
    // Address, MTU and state are set over netlink, which knows IPv6 too.
    configuration.platform_config(|platform| {
        platform.ensure_root_privileges(false);
        platform.vnet_hdr(offload == Offload::Granted);
    });
    let device = tun::Device::new(&configuration).map_err(into_io)?;
    let name = device.tun_name().map_err(into_io)?;
    // SAFETY: `into_raw_fd` gives up ownership of an open descriptor that
    // nothing else closes or uses.
    let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };

    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;

    Ok(match offload {
        Offload::Granted => {
            let offloads = ioctl::most_offloads(&fd)?;
            let below: &[u8] = match layer {
                Layer::L2 => &ETHERNET,
                Layer::L3 => &[],
            };
            Device::with_header(name, fd, offloads).tried_out(below)
        }
        Offload::Off => Device::bare(name, fd),
    })
}

fn into_io(error: tun::Error) -> io::Error {
    match error {
        tun::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_frame_that_the_kernel_has_no_header_for_is_lost_and_the_device_is_not() {
        // Reading from a listening socket fails with EINVAL.
        let dir = tempfile::tempdir().unwrap();
        let fd = UnixListener::bind(dir.path().join("socket")).unwrap();
        let link = TunLink(Device::bare("eth0".to_owned(), fd.into()));
        let received = link.recv(&mut [0; 4]).unwrap();
        assert_eq!(received.shape, Err(DropReason::Malformed));
    }

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
            let refused = |error: io::Error| error.kind() == io::ErrorKind::InvalidInput;
            assert!(
                TunLink::open(name, Offload::Granted).is_err_and(refused),
                "{name}"
            );
            assert!(
                Tap::open(name, Offload::Granted).is_err_and(refused),
                "{name}"
            );
        }
    }
}
