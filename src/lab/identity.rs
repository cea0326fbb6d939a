//! Who runs this process and what they may do.

use std::fs;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat, geteuid};

/// Where the lab's namespaces get their powers from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Root: namespaces appear under `/run/netns`.
    Root,
    /// The whole lab lives in an unprivileged user namespace; its network
    /// namespaces exist as descriptors of the appliance only.
    UserNamespace,
}

/// Who runs this process, seen from outside of any namespace it made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    /// The user's own number; inside the user namespace `geteuid` says 0.
    pub uid: u32,
    /// What they may do.
    pub privilege: Privilege,
}

pub(super) static IDENTITY: OnceLock<Identity> = OnceLock::new();

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` (capabilities(7)).
const CAPABILITIES: u64 = 1 << 12 | 1 << 21;

/// Who this process is; the answer from before [`prepare`] lasts.
pub(super) fn identity() -> Identity {
    IDENTITY.get().copied().unwrap_or_else(|| {
        let uid = geteuid().as_raw();
        let privilege = if uid == 0 && has_capabilities() && run_is_writable() {
            Privilege::Root
        } else {
            Privilege::UserNamespace
        };
        Identity { uid, privilege }
    })
}

pub(super) fn has_capabilities() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & CAPABILITIES == CAPABILITIES)
}

/// Root of a mere user namespace (`unshare -r`) has the capabilities, but not
/// over the machine's mounts; that it may not write to `/run` tells.
fn run_is_writable() -> bool {
    let writable = |path: &str| faccessat(AT_FDCWD, path, AccessFlags::W_OK, AtFlags::AT_EACCESS);
    match writable("/run") {
        Err(Errno::ENOENT) => writable("/").is_ok(),
        answer => answer.is_ok(),
    }
}
