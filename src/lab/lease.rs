//! Whether somebody is writing to a file.

use std::ffi::c_int;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// `F_SETSIG` (asm-generic/fcntl.h), which libc lacks.
const F_SETSIG: c_int = 10;

/// What the kernel says of those who write to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Nobody has it open for writing.
    None,
    /// Somebody has.
    Some,
    /// It can't be told: the file can't be opened, its file system has no leases, or it
    /// is another user's and this process lacks `CAP_LEASE`.
    Unknown,
}

/// Asks the kernel by a lease for reading (fcntl(2), `F_SETLEASE`), which it grants only
/// while nobody has the file open for writing. It is given back at once.
pub fn writers(path: &Path) -> Writers {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let Ok(file) = opened else {
        return Writers::Unknown;
    };
    let fd = file.as_raw_fd();
    // Who opens the file for writing meanwhile has this process signalled. By default with
    // SIGIO, which would end it; SIGURG is ignored.
    let asked =
        set(fd, F_SETSIG, libc::SIGURG).and_then(|()| set(fd, libc::F_SETLEASE, libc::F_RDLCK));
    match asked {
        Ok(()) => {
            let _ = set(fd, libc::F_SETLEASE, libc::F_UNLCK);
            Writers::None
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Writers::Some,
        Err(_) => Writers::Unknown,
    }
}

#[expect(unsafe_code, reason = "nix has no leases")]
fn set(fd: RawFd, what: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the caller's file is open, and these requests take numbers only.
    match unsafe { libc::fcntl(fd, what, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
