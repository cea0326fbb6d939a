//! What the process may do: root's own powers, or a user namespace's.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{AccessFlags, faccessat, getegid, geteuid};

use super::{LabError, session};

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

static IDENTITY: OnceLock<Identity> = OnceLock::new();

/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` (capabilities(7)).
const CAPABILITIES: u64 = 1 << 12 | 1 << 21;

/// Takes what a lab needs: nothing more for root, a user namespace (and in it
/// a mount and a network namespace) for anybody else. Call it from `main`
/// before the first thread starts; the kernel refuses it later. A second call
/// gives the first one's answer. Processes that this user's killed labs left
/// behind are ended on the way: later they could not be seen any more.
///
/// # Errors
/// What refused, and what to do about it. The process is as it was then,
/// except when the mapping of user ids failed.
pub fn prepare() -> Result<Privilege, LabError> {
    if let Some(identity) = IDENTITY.get() {
        return Ok(identity.privilege);
    }
    check_tun()?;
    let identity = identity();
    if identity.privilege == Privilege::UserNamespace {
        session::end_all_strays();
        enter_user_namespace()?;
    }
    Ok(IDENTITY.get_or_init(|| identity).privilege)
}

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

fn check_tun() -> Result<(), LabError> {
    let Err(source) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
    else {
        return Ok(());
    };
    let remedy = match source.raw_os_error() {
        Some(nix::libc::ENOENT) => {
            "make it: modprobe tun; mkdir -p /dev/net && mknod /dev/net/tun c 10 200 \
             (in a container: docker run --device /dev/net/tun)"
        }
        Some(nix::libc::ENODEV | nix::libc::ENXIO) => {
            "the kernel has no TUN driver: modprobe tun, or build it with CONFIG_TUN"
        }
        Some(nix::libc::EACCES | nix::libc::EPERM) => {
            "run as root, or let everybody use it: chmod 666 /dev/net/tun \
             (in a container: docker run --device /dev/net/tun)"
        }
        _ => "sgwall needs read and write access to the TUN driver",
    };
    Err(LabError::Tun { remedy, source })
}

fn has_capabilities() -> bool {
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

fn enter_user_namespace() -> Result<(), LabError> {
    let (uid, gid) = (geteuid(), getegid());
    let refused = |operation: &'static str, source: io::Error| LabError::Privilege {
        operation,
        remedy: user_namespace_remedy(&source),
        source,
    };

    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .map_err(|errno| refused("can't make an unprivileged user namespace", errno.into()))?;
    // Kernels before 3.19 have no setgroups file and ask for none.
    match fs::write("/proc/self/setgroups", "deny") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(refused("can't set up the user namespace", error));
        }
        _ => {}
    }
    for (path, id) in [
        ("/proc/self/uid_map", uid.as_raw()),
        ("/proc/self/gid_map", gid.as_raw()),
    ] {
        fs::write(path, format!("0 {id} 1"))
            .map_err(|error| refused("can't map ids in the user namespace", error))?;
    }
    if !has_capabilities() {
        let error = Errno::EPERM.into();
        return Err(refused("the user namespace grants no capabilities", error));
    }
    Ok(())
}

fn user_namespace_remedy(source: &io::Error) -> String {
    let is = |path: &str, value: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(path)).is_ok_and(|now| now.trim() == value)
    };
    let switch = if is("kernel/unprivileged_userns_clone", "0") {
        Some("sysctl kernel.unprivileged_userns_clone=1")
    } else if is("user/max_user_namespaces", "0") {
        Some("sysctl user.max_user_namespaces=10000")
    } else if is("user/max_net_namespaces", "0") {
        Some("sysctl user.max_net_namespaces=10000")
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        Some("sysctl kernel.apparmor_restrict_unprivileged_userns=0")
    } else {
        None
    };
    match (switch, source.raw_os_error()) {
        (Some(switch), _) => {
            format!("unprivileged user namespaces are switched off: {switch}, or run as root")
        }
        (None, Some(nix::libc::EINVAL)) => {
            "the kernel has no user namespaces, or the process has threads already; run as root"
                .into()
        }
        (None, Some(nix::libc::ENOSPC | nix::libc::EUSERS)) => {
            "too many user namespaces, or nested too deep: \
             raise the sysctl user.max_user_namespaces, or run as root"
                .into()
        }
        _ => "a seccomp filter or security module forbids user namespaces here: run as root \
              (in a container: docker run --cap-add NET_ADMIN --cap-add SYS_ADMIN \
              --security-opt apparmor=unconfined --device /dev/net/tun)"
            .into(),
    }
}
