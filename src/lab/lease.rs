//! Detects whether a file is open for writing.

use std::ffi::c_int;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// `F_SETSIG` (asm-generic/fcntl.h), which libc lacks.
const F_SETSIG: c_int = 10;

/// The kernel's answer about writers of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writers {
    /// Nobody has the file open for writing.
    None,
    /// Somebody has the file open for writing.
    Some,
    /// Unknown: the file can't be opened, its file system has no leases, or it belongs to another
    /// user and this process lacks `CAP_LEASE`.
    Unknown,
}

/// Asks the kernel for a read lease (fcntl(2), `F_SETLEASE`), which it grants only while nobody
/// has the file open for writing. The lease is released at once.
pub fn writers(path: &Path) -> Writers {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let Ok(file) = opened else {
        return Writers::Unknown;
    };
    let fd = file.as_raw_fd();
    // A writer that opens the file meanwhile causes a signal to this process. The default, SIGIO,
    // would end it; SIGURG is ignored.
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
    // SAFETY: the caller's file is open, and these requests take only numbers.
    match unsafe { libc::fcntl(fd, what, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
