//! What the process may do: root's own powers, or a user namespace's.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

use super::identity::{IDENTITY, Privilege, has_capabilities, identity};
use super::{LabError, session};

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
