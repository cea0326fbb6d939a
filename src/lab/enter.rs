//! Moving a whole process into an entity: what `sgwall exec` does between
//! asking the running lab and becoming the command.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid, sethostname};
use serde_json::Value;

use super::control::{Client, Request};
use super::session::STATE_DIR_VARIABLE;
use super::{LabError, RunningLab};

/// Environment variable that names the lab a process was started in.
pub const LAB_VARIABLE: &str = "SGWALL_LAB";
/// Environment variable that names the entity a process was started in.
pub const ENTITY_VARIABLE: &str = "SGWALL_ENTITY";

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The machine's resolver can't be reached from an entity, and a lookup would wait 10 s for it.
/// The entity's own loopback refuses at once, until somebody starts a resolver there. The short
/// timeouts are for programs that ignore the refusal.
const NO_RESOLVER: &str = "# Written by sgwall: a lab has no resolver. Entities resolve by /etc/hosts.\n\
                           nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";

/// The permission to enter an entity, given by its running lab.
#[derive(Debug)]
pub struct Entry {
    lab: RunningLab,
    entity: String,
    user_namespace: Option<OwnedFd>,
    namespace: OwnedFd,
    hosts: String,
}

impl Entry {
    /// Asks `lab` to let this process into `entity`.
    ///
    /// # Errors
    /// The lab can't be reached, or has no such entity.
    pub fn request(lab: RunningLab, entity: &str) -> Result<Self, LabError> {
        let (body, mut fds) = Client::connect(&lab)?.call(&Request::enter(entity))?;
        let in_user_namespace = body["user_namespace"].as_bool().unwrap_or(false);
        let hosts = body["hosts"].as_str();
        let (Some(hosts), Some(namespace)) = (hosts, fds.pop()) else {
            return Err(LabError::Protocol("namespace or hosts file missing".into()));
        };
        let user_namespace = fds.pop();
        if user_namespace.is_some() != in_user_namespace {
            return Err(LabError::Protocol("user namespace missing".into()));
        }
        Ok(Self {
            hosts: hosts.to_owned(),
            entity: body
                .get("entity")
                .and_then(Value::as_str)
                .unwrap_or(entity)
                .to_owned(),
            lab,
            user_namespace,
            namespace,
        })
    }

    /// Moves the process in: its user and network namespaces are the
    /// entity's, the host name is the entity's, in a mount namespace of its own
    /// `/etc/hosts` names every entity, `/etc/resolv.conf` no server that can't be
    /// reached, and `/sys` shows the entity's devices. The process must have
    /// one thread only. Gives warnings: what is missing and not essential.
    ///
    /// # Errors
    /// The kernel's refusal; the process is partly moved then, and should end.
    pub fn enter(&self) -> Result<Vec<String>, LabError> {
        let failed =
            |operation: &str, error: io::Error| LabError::entity(&self.entity, operation, error);
        if let Some(fd) = &self.user_namespace
            && !is_current_user_namespace(fd)
        {
            setns(fd, CloneFlags::CLONE_NEWUSER)
                .map_err(|errno| failed("enter the user namespace", errno.into()))?;
        }
        setns(&self.namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| failed("enter the network namespace", errno.into()))?;
        let mut warnings = Vec::new();
        let named = unshare(CloneFlags::CLONE_NEWUTS).and_then(|()| sethostname(&self.entity));
        if let Err(errno) = named {
            warnings.push(format!(
                "can't set the host name ({errno}); it is the machine's"
            ));
        }
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|errno| failed("make a mount namespace", errno.into()))?;
        let none: Option<&str> = None;
        // Mounts made from here on stay here; the machine's still arrive.
        let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
        mount(none, "/", none, slave, none)
            .map_err(|errno| failed("make the mount namespace private", errno.into()))?;

        if let Err(error) = self.mount_over(HOSTS, &self.hosts) {
            warnings.push(format!(
                "can't put a hosts file over {HOSTS} ({error}); entity names won't resolve"
            ));
        }
        // Without this file, the C library's resolver asks the loopback anyway.
        if Path::new(RESOLV_CONF).exists()
            && let Err(error) = self.mount_over(RESOLV_CONF, NO_RESOLVER)
        {
            warnings.push(format!(
                "can't put a file over {RESOLV_CONF} ({error}); names that don't exist take 10 s"
            ));
        }
        refresh_sys(self.user_namespace.is_some());
        Ok(warnings)
    }

    /// The environment of processes in the entity. The state directory is
    /// among it because inside a user namespace the user looks like root, and
    /// would be looked for in root's.
    pub fn environment(&self) -> [(&'static str, &OsStr); 3] {
        let base = self.lab.dir.parent().unwrap_or(Path::new("/"));
        [
            (LAB_VARIABLE, OsStr::new(&self.lab.name)),
            (ENTITY_VARIABLE, OsStr::new(&self.entity)),
            (STATE_DIR_VARIABLE, base.as_os_str()),
        ]
    }

    /// Puts a file of this text over `target` without leaving it on any disk: it is
    /// written to a memory file system that only this mount namespace sees
    /// and that nothing but the bind mount keeps alive.
    fn mount_over(&self, target: &str, text: &str) -> io::Result<()> {
        // A missing target would be made on the machine's own disk.
        fs::metadata(target)?;
        let none: Option<&str> = None;
        let scratch: &PathBuf = &self.lab.dir;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some("sgwall"),
            scratch,
            Some("tmpfs"),
            flags,
            Some("mode=0755"),
        )?;
        let file = scratch.join("file");
        let result = fs::write(&file, text).and_then(|()| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
            mount(Some(&file), target, none, MsFlags::MS_BIND, none)?;
            Ok(())
        });
        umount2(scratch, MntFlags::MNT_DETACH)?;
        result
    }
}

/// Ends this process when the one that started it ends, `parent` by number.
///
/// # Errors
/// The parent is gone already, or the kernel's refusal.
pub fn die_with_parent(parent: i32) -> Result<(), LabError> {
    let failed = |error| LabError::system("follow the parent process", error);
    set_pdeathsig(Signal::SIGKILL).map_err(|errno| failed(io::Error::from(errno)))?;
    // It may have ended before the kernel knew that this process cares.
    if getppid() != Pid::from_raw(parent) {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    Ok(())
}

/// The kernel refuses to enter the user namespace one is in: commands that
/// the appliance itself starts are in it from the beginning.
fn is_current_user_namespace(fd: &OwnedFd) -> bool {
    let number = |path: String| {
        fs::metadata(path)
            .map(|found| (found.dev(), found.ino()))
            .ok()
    };
    let theirs = number(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    theirs.is_some() && theirs == number("/proc/self/ns/user".into())
}

/// Shows the entity's devices under `/sys/class/net`. Best effort: few
/// programs look there, and containers may forbid it. Control groups, which a
/// fresh `/sys` would hide, are carried over.
fn refresh_sys(read_only: bool) {
    let none: Option<&str> = None;
    let groups = fs::File::open("/sys/fs/cgroup");
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    flags.set(MsFlags::MS_RDONLY, read_only);
    if mount(Some("sysfs"), "/sys", Some("sysfs"), flags, none).is_err() {
        return;
    }
    if let Ok(groups) = groups {
        let from = format!("/proc/self/fd/{}", groups.as_raw_fd());
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        let _ = mount(Some(from.as_str()), "/sys/fs/cgroup", none, bind, none);
    }
}
