//! What can go wrong with a lab.

use std::io;
use std::path::{Path, PathBuf};

/// Why a lab could not be made, found, entered or taken down.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The kernel, or whoever configured it, refused a privilege.
    #[error("{operation}: {source}\n  {remedy}")]
    Privilege {
        /// What was tried.
        operation: &'static str,
        /// What to do about it.
        remedy: String,
        /// What the system answered.
        source: io::Error,
    },
    /// `/dev/net/tun` is missing or may not be opened.
    #[error("can't open /dev/net/tun: {source}\n  {remedy}")]
    Tun {
        /// What to do about it.
        remedy: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// A name that no lab can have.
    #[error("'{0}' can't name a lab: use 1 to 40 lower-case letters, digits and hyphens")]
    BadLabName(String),
    /// A name that no entity can have.
    #[error("'{0}' can't name an entity: use 1 to 63 lower-case letters, digits and inner hyphens")]
    BadEntityName(String),
    /// Another process runs a lab of this name.
    #[error("lab '{name}' is already running as pid {pid}; stop it or choose --name")]
    AlreadyRunning {
        /// The lab.
        name: String,
        /// Who runs it.
        pid: u32,
    },
    /// No lab of yours is running.
    #[error("no lab is running; start one with 'sgwall run LAB'{0}", hint(*.elsewhere))]
    NoneRunning {
        /// Whether root runs labs that this user can't look into.
        elsewhere: bool,
    },
    /// Labs are running, but not the one asked for.
    #[error("no lab '{name}' is running; running: {}", running.join(", "))]
    NotRunning {
        /// The lab asked for.
        name: String,
        /// Those that run.
        running: Vec<String>,
    },
    /// Several labs are running and none was named.
    #[error("several labs are running; choose one with --lab: {}", running.join(", "))]
    WhichLab {
        /// Those that run.
        running: Vec<String>,
    },
    /// The state directory can't be trusted.
    #[error("won't keep state in {}: {problem}", path.display())]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it and how to mend it.
        problem: String,
    },
    /// The name of a namespace is in use by something else.
    #[error("namespace {} exists already{}", path.display(), taken_by(path, owner.as_deref()))]
    NamespaceTaken {
        /// Its file.
        path: PathBuf,
        /// The running lab that it belongs to.
        owner: Option<String>,
    },
    /// The kernel refused a step of making an entity's namespace or device.
    #[error("{entity}: {operation}: {source}{}", network_remedy(source))]
    Entity {
        /// The entity.
        entity: String,
        /// What was tried.
        operation: String,
        /// What the system answered.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{operation}: {source}")]
    System {
        /// What was tried.
        operation: String,
        /// What the system answered.
        source: io::Error,
    },
    /// Code run inside a namespace panicked.
    #[error("{entity}: the code run in its namespace panicked")]
    Panicked {
        /// The entity.
        entity: String,
    },
    /// The running lab answered something that makes no sense.
    #[error("the running lab gave an answer that makes no sense: {0}")]
    Protocol(String),
    /// The running lab refused the request.
    #[error("{0}")]
    Refused(String),
    /// The lab has no such entity.
    #[error("no entity '{name}' in lab '{lab}'{}; it has: {}", suggestion(near.as_deref()), known.join(", "))]
    UnknownEntity {
        /// The lab.
        lab: String,
        /// The entity asked for.
        name: String,
        /// A known name that looks like it.
        near: Option<String>,
        /// The lab's entities.
        known: Vec<String>,
    },
}

impl LabError {
    /// Wraps a refusal of the system with what was tried.
    pub(crate) fn system(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System {
            operation: operation.into(),
            source: source.into(),
        }
    }

    /// Wraps a refusal of the system that concerns one entity.
    pub(crate) fn entity(
        entity: &str,
        operation: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Entity {
            entity: entity.to_owned(),
            operation: operation.into(),
            source: source.into(),
        }
    }
}

fn hint(elsewhere: bool) -> &'static str {
    if elsewhere {
        " (labs started by root are seen by root only: try sudo)"
    } else {
        ""
    }
}

fn taken_by(path: &Path, owner: Option<&str>) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match owner {
        Some(lab) => format!(
            ": it belongs to lab '{lab}', which is running\n  \
             choose another --name, or rename the entity"
        ),
        None => format!(
            " and belongs to no lab that runs\n  \
             choose another --name; or, if 'ip netns pids {name}' lists no process of \
             interest, remove it with 'ip netns delete {name}'"
        ),
    }
}

fn network_remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(nix::libc::ENOSPC) => {
            "\n  too many namespaces: raise the sysctl user.max_net_namespaces"
        }
        Some(nix::libc::EAFNOSUPPORT | nix::libc::EOPNOTSUPP) => {
            "\n  this kernel has no IPv6: boot without ipv6.disable=1, \
             or leave the IPv6 addresses out of the lab file"
        }
        _ => "",
    }
}

fn suggestion(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!("; did you mean '{near}'?"))
}
