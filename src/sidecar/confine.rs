//! Least privilege: what a sidecar must be allowed to do at its start, and giving up all
//! that it needs no more once its interfaces are taken.
//!
//! The order of things: [`check`] first, so that whatever is missing is named at once;
//! then descriptors are opened and the interfaces taken; then [`drop_capabilities`],
//! **before the first thread starts**, because capabilities belong to a thread and are
//! inherited by those that it starts, not by those that run already; at last, with all
//! threads running, [`seccomp`], which reaches every one of them.

use std::fmt::{self, Write as _};
use std::fs;
use std::io;

use caps::{CapSet, errors::CapsError};
use nix::libc;
use nix::unistd::geteuid;

mod filter;

pub use caps::Capability;
pub use filter::{Reach, seccomp};

/// Where TAP devices come from.
const TUN: &str = "/dev/net/tun";

/// What taking an interface over needs: `NET_ADMIN` for the device, its addresses and
/// the nf_tables hooks, `NET_RAW` for the packet socket (capabilities(7)).
const NEEDED: [(Capability, &str); 2] = [
    (Capability::CAP_NET_ADMIN, "NET_ADMIN"),
    (Capability::CAP_NET_RAW, "NET_RAW"),
];

/// Why a sidecar can't start, or could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The container was not given what it takes.
    #[error(transparent)]
    Missing(#[from] MissingPrivileges),
    /// The thread's capabilities could not be read or changed.
    #[error("{operation}: {source}")]
    Capabilities {
        /// What was tried.
        operation: String,
        /// What the system answered.
        source: CapsError,
    },
    /// The process could not renounce gaining privileges by starting programs.
    #[error("set no_new_privs: {0}")]
    NoNewPrivileges(#[source] io::Error),
    /// The process could not be shut from others.
    #[error("shut the process's memory from others: {0}")]
    Open(#[source] io::Error),
    /// The filter could not be put together or installed.
    #[error("install the seccomp filter: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

/// Everything that is missing, each with how to grant it.
#[derive(Debug, thiserror::Error)]
pub struct MissingPrivileges {
    /// What is missing, in the order in which it is needed.
    pub missing: Vec<Missing>,
}

/// One thing that is missing.
#[derive(Debug)]
pub enum Missing {
    /// A capability is not in effect.
    Capability {
        /// Its name as container runtimes write it: `NET_ADMIN`.
        name: &'static str,
        /// Whether the container has it, but not for the user that the process runs as.
        for_root_only: bool,
    },
    /// `/dev/net/tun` can't be opened.
    Tun(io::Error),
}

/// Looks for everything that taking interfaces over needs: `NET_ADMIN` and `NET_RAW` in
/// effect, and `/dev/net/tun`.
///
/// # Errors
/// [`ConfineError::Missing`] names all that is missing at once, with the flag of
/// `docker run` and the field of Kubernetes' that grants it;
/// [`ConfineError::Capabilities`] if the kernel doesn't tell.
pub fn check() -> Result<(), ConfineError> {
    let mut missing = Vec::new();
    for (capability, name) in NEEDED {
        let has = |set| {
            caps::has_cap(None, set, capability).map_err(|source| ConfineError::Capabilities {
                operation: format!("look for {name}"),
                source,
            })
        };
        if !has(CapSet::Effective)? {
            let for_root_only = !geteuid().is_root() && has(CapSet::Bounding)?;
            missing.push(Missing::Capability {
                name,
                for_root_only,
            });
        }
    }
    let tun = fs::OpenOptions::new().read(true).write(true).open(TUN);
    missing.extend(tun.err().map(Missing::Tun));
    if missing.is_empty() {
        Ok(())
    } else {
        Err(MissingPrivileges { missing }.into())
    }
}

/// Takes every capability but those of `keep` from the calling thread, in all five sets
/// (the bounding set where the thread may change it: `SETPCAP`), and sets `no_new_privs`,
/// by which no program that it starts can have more than it has. What it hasn't got
/// already isn't gained by being kept.
///
/// Threads started from now on inherit that. **Those that run already keep what they
/// have**: call it before the first one starts.
///
/// # Errors
/// The system's refusal; the thread may have lost some of its capabilities then.
pub fn drop_capabilities(keep: &[Capability]) -> Result<(), ConfineError> {
    nix::sys::prctl::set_no_new_privs()
        .map_err(|errno| ConfineError::NoNewPrivileges(errno.into()))?;
    let failed = |set: CapSet| {
        move |source| ConfineError::Capabilities {
            operation: format!("drop capabilities from the {set:?} set"),
            source,
        }
    };
    caps::clear(None, CapSet::Ambient).map_err(failed(CapSet::Ambient))?;
    let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)
        .map_err(failed(CapSet::Bounding))?;
    if may {
        let bounding = caps::read(None, CapSet::Bounding).map_err(failed(CapSet::Bounding))?;
        for capability in bounding.into_iter().filter(|it| !keep.contains(it)) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed(CapSet::Bounding))?;
        }
    }
    // Nothing is inherited by programs: none is ever started.
    caps::clear(None, CapSet::Inheritable).map_err(failed(CapSet::Inheritable))?;
    // The effective set goes first: it can't be more than what is permitted.
    for set in [CapSet::Effective, CapSet::Permitted] {
        let mut kept = caps::read(None, set).map_err(failed(set))?;
        kept.retain(|capability| keep.contains(capability));
        caps::set(None, set, &kept).map_err(failed(set))?;
    }
    Ok(())
}

/// Shuts memory and descriptors of the process from others that run as the same user without
/// `SYS_PTRACE`, as a workload may in a pod that shares its processes: a TAP device's
/// descriptor, or the secret of the hooks, would be a way round.
///
/// # Errors
/// The system's refusal.
pub fn shut_out_others() -> Result<(), ConfineError> {
    nix::sys::prctl::set_dumpable(false).map_err(|errno| ConfineError::Open(errno.into()))
}

impl fmt::Display for MissingPrivileges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sidecar lacks what it takes to stand before an interface:")?;
        for one in &self.missing {
            f.write_char('\n')?;
            one.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capability {
                name,
                for_root_only: false,
            } => write!(
                f,
                "  the capability {name}\n    \
                 docker run: --cap-add {name}\n    \
                 Kubernetes: securityContext: {{ capabilities: {{ add: [{name}] }} }}"
            ),
            Self::Capability {
                name,
                for_root_only: true,
            } => write!(
                f,
                "  the capability {name}, which the container has, but root only\n    \
                 docker run: --user 0\n    \
                 Kubernetes: securityContext: {{ runAsUser: 0 }}"
            ),
            Self::Tun(error) => write!(f, "  {TUN} ({error})\n    {}", tun_remedy(error)),
        }
    }
}

fn tun_remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => {
            "the kernel of the machine has no TUN driver: modprobe tun, there"
        }
        Some(libc::EACCES) => {
            "the user may not open it: run as root (docker run: --user 0; \
             Kubernetes: securityContext: { runAsUser: 0 })"
        }
        _ => {
            "docker run: --device /dev/net/tun\n    \
             Kubernetes: a volume { hostPath: { path: /dev/net/tun, type: CharDevice } } mounted \
             at /dev/net/tun,\n                or a device plugin that gives it"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_privilege_is_named_with_the_flag_that_grants_it() {
        let missing = MissingPrivileges {
            missing: vec![
                Missing::Capability {
                    name: "NET_ADMIN",
                    for_root_only: false,
                },
                Missing::Capability {
                    name: "NET_RAW",
                    for_root_only: true,
                },
                Missing::Tun(io::Error::from_raw_os_error(libc::ENOENT)),
            ],
        };
        let text = ConfineError::from(missing).to_string();
        for part in [
            "--cap-add NET_ADMIN",
            "add: [NET_ADMIN]",
            "NET_RAW, which the container has, but root only",
            "--user 0",
            "--device /dev/net/tun",
            "type: CharDevice",
        ] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn dropping_all_but_some_leaves_no_other_to_the_thread_or_to_those_it_starts() {
        // Capabilities are a thread's own: the harness's others keep theirs.
        let sets = [
            CapSet::Effective,
            CapSet::Permitted,
            CapSet::Inheritable,
            CapSet::Ambient,
        ];
        std::thread::spawn(move || {
            let had = caps::read(None, CapSet::Effective).unwrap();
            drop_capabilities(&[Capability::CAP_NET_RAW]).unwrap();
            let now = caps::read(None, CapSet::Effective).unwrap();
            assert_eq!(
                now.contains(&Capability::CAP_NET_RAW),
                had.contains(&Capability::CAP_NET_RAW)
            );
            assert!(now.iter().all(|it| *it == Capability::CAP_NET_RAW));
            assert!(nix::sys::prctl::get_no_new_privs().unwrap());

            drop_capabilities(&[]).unwrap();
            let left = move || sets.map(|set| caps::read(None, set).unwrap().len());
            assert_eq!(left(), [0; 4]);
            assert_eq!(std::thread::spawn(left).join().unwrap(), [0; 4]);
            // Nor do they come back.
            drop_capabilities(&[Capability::CAP_NET_RAW]).unwrap();
            assert_eq!(left(), [0; 4]);
        })
        .join()
        .unwrap();
    }
}
