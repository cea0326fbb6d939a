//! What can go wrong when interfaces are taken over or given back.

use std::io;

use nix::libc;

/// Why an interface could not be taken over, given back or vouched for. What
/// was closed before the error stays closed.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// The process lacks a capability.
    #[error(
        "{operation}: {source}\n  the capability NET_ADMIN is missing: \
         docker run --cap-add NET_ADMIN \
         (Kubernetes: securityContext.capabilities.add: [NET_ADMIN])"
    )]
    NetAdmin {
        /// What was tried.
        operation: String,
        /// What the system answered.
        source: io::Error,
    },
    /// The TAP device can't be made.
    #[error("make the TAP device {name}: {source}{}", tap_remedy(source))]
    Tap {
        /// The interface that it was to stand for.
        name: String,
        /// What the system answered.
        source: io::Error,
    },
    /// The kernel lacks what closes a device.
    #[error("{operation}: {source}\n  {remedy}")]
    OldKernel {
        /// What was tried.
        operation: String,
        /// What the kernel needs.
        remedy: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// No interface has the name that was given.
    #[error("no interface '{name}' here; there is {}", list(existing))]
    UnknownInterface {
        /// The name.
        name: String,
        /// Those that there are, but `lo`.
        existing: Vec<String>,
    },
    /// There is nothing to take.
    #[error(
        "no interface to take in this network namespace, which has {}: share the workload's \
         (docker run --network container:NAME)",
        list(existing)
    )]
    NoInterface {
        /// Interfaces that were left aside, because they are down.
        existing: Vec<String>,
    },
    /// An interface that can't be taken.
    #[error(
        "interface {name} {problem}, so it can't be taken; to leave it open, name the others with \
         --interface{}",
        others(rest)
    )]
    Unsuitable {
        /// The interface.
        name: String,
        /// Why.
        problem: String,
        /// The interfaces that can be taken.
        rest: Vec<String>,
    },
    /// The TAP of another process stands in an interface's place.
    #[error(
        "{name} is a TAP device that another process holds: a sidecar is already running in this \
         network namespace; stop it first"
    )]
    AlreadyTaken {
        /// The interface.
        name: String,
    },
    /// A new device has the name of one that was taken.
    #[error(
        "a new device is called {name}, as the one that was taken and is now {raw}; rename one of \
         them, or start the workload's container anew"
    )]
    NameInUse {
        /// The name.
        name: String,
        /// What the taken device is called.
        raw: String,
    },
    /// The interface has IPv6 addresses, and new devices have no IPv6.
    #[error(
        "{name} has the address {address}, but IPv6 is off for new interfaces here and /proc/sys \
         can't be written: {source}\n  start the container that owns the network with \
         --sysctl net.ipv6.conf.default.disable_ipv6=0"
    )]
    NoIpv6 {
        /// The interface.
        name: String,
        /// One of its addresses.
        address: String,
        /// What the system answered.
        source: io::Error,
    },
    /// What an earlier run wrote down can't be read.
    #[error(
        "what an earlier run wrote down about interface {index} can't be read ({source}): start \
         the workload's container anew, which gives it a new network namespace"
    )]
    Damaged {
        /// The raw device's index.
        index: u32,
        /// What is wrong.
        source: io::Error,
    },
    /// The hooks that close a device are not as they should be.
    #[error("the hooks that close {name} are not in force: {problem}")]
    NotClosed {
        /// The raw device.
        name: String,
        /// What differs.
        problem: String,
    },
    /// The system refused something else.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: String,
        /// What the system answered.
        source: io::Error,
    },
}

impl SidecarError {
    /// Wraps a refusal of the kernel's.
    pub(super) fn refused(operation: impl Into<String>, source: io::Error) -> Self {
        let operation = operation.into();
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::NetAdmin { operation, source },
            _ => Self::System { operation, source },
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none but lo".to_owned()
    } else {
        names.join(", ")
    }
}

fn others(names: &[String]) -> String {
    names
        .iter()
        .fold(String::new(), |text, name| text + " " + name)
}

fn tap_remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOENT) => "\n  /dev/net/tun is missing: docker run --device /dev/net/tun",
        Some(libc::ENODEV | libc::ENXIO) => {
            "\n  the kernel has no TUN driver: modprobe tun on the host"
        }
        Some(libc::EACCES) => {
            "\n  /dev/net/tun may not be opened: docker run --device /dev/net/tun"
        }
        Some(libc::EPERM) => "\n  missing: docker run --cap-add NET_ADMIN --device /dev/net/tun",
        _ => "",
    }
}
