//! What the tun crate doesn't ask of a device.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc::{c_int, c_uint};

use super::super::{Offloads, virtio};

/// Linux's `TUN_F_*` (uapi/linux/if_tun.h): what whoever reads a device takes.
const CSUM: c_int = 0x01;
const TSO4: c_int = 0x02;
const TSO6: c_int = 0x04;
const TSO_ECN: c_int = 0x08;
const USO4: c_int = 0x20;
const USO6: c_int = 0x40;

const TSO: c_int = CSUM | TSO4 | TSO6 | TSO_ECN;
/// Since Linux 6.2.
const USO: c_int = USO4 | USO6;

/// From most to least, with what may be written to a device that grants it.
const OFFERS: [(c_int, Offloads); 4] = [
    (TSO | USO, Offloads::ALL),
    (TSO, Offloads::TCP),
    (CSUM, Offloads::CHECKSUM),
    (0, Offloads::NONE),
];

/// Takes on the most that the kernel grants.
pub(super) fn most_offloads(fd: &OwnedFd) -> io::Result<Offloads> {
    set_header_size(fd)?;
    let mut refused = io::ErrorKind::Unsupported.into();
    for (flags, offloads) in OFFERS {
        match set_offload(fd, flags) {
            Ok(()) => return Ok(offloads),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

#[expect(unsafe_code, reason = "an ioctl")]
fn set_offload(fd: &OwnedFd, flags: c_int) -> io::Result<()> {
    mod sys {
        use super::c_uint;
        nix::ioctl_write_int_bad!(
            /// `TUNSETOFFLOAD`, whose argument is the flags themselves.
            tun_set_offload,
            nix::request_code_write!(b'T', 208, size_of::<c_uint>())
        );
    }
    // SAFETY: the descriptor is open, and the argument is no pointer.
    unsafe { sys::tun_set_offload(fd.as_raw_fd(), flags) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "an ioctl")]
fn set_header_size(fd: &OwnedFd) -> io::Result<()> {
    mod sys {
        use super::c_int;
        nix::ioctl_write_ptr!(
            /// `TUNSETVNETHDRSZ`.
            tun_set_header_size,
            b'T',
            216,
            c_int
        );
    }
    let size = c_int::try_from(virtio::HEADER).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the kernel reads one integer from where
    // `size` is.
    unsafe { sys::tun_set_header_size(fd.as_raw_fd(), &raw const size) }?;
    Ok(())
}
