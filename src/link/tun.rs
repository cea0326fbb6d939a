//! TUN devices: the appliance's end of an entity's `eth0`.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd;
use tun::{AbstractDevice, Configuration, Device, Layer};

use super::{Link, Readiness};

/// Longest name of a network device: `IFNAMSIZ` less its closing zero.
const MAX_NAME: usize = 15;

/// A TUN device, open and non-blocking. It is not persistent: when the last
/// descriptor closes, however the process ended, the device is gone and with
/// it every route through it. That is what makes the lab fail closed.
pub struct TunLink {
    name: String,
    fd: OwnedFd,
}

impl TunLink {
    /// Makes a device called `name` in the network namespace of the calling
    /// thread. From then on any thread may use it.
    ///
    /// # Errors
    /// A name that no device can have, or the kernel's refusal.
    #[expect(unsafe_code, reason = "takes the descriptor out of the tun crate")]
    pub fn open(name: &str) -> io::Result<Self> {
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
        });
        let device = Device::new(&configuration).map_err(into_io)?;
        let name = device.tun_name().map_err(into_io)?;
        // SAFETY: `into_raw_fd` gives up ownership of an open descriptor that
        // nothing else closes or uses.
        let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };

        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;

        Ok(Self { name, fd })
    }

    /// The device's name inside its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Link for TunLink {
    #[inline]
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(unistd::read(&self.fd, buffer)?)
    }

    #[inline]
    fn send(&self, packet: &[u8]) -> io::Result<()> {
        let written = unistd::write(&self.fd, packet)?;
        if written == packet.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
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
            let error = TunLink::open(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
