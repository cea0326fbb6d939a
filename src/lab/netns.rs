//! `/run/netns`: where `ip netns` looks for namespaces.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::LabError;

const DIR: &str = "/run/netns";
const PREFIX: &str = "sgwall-";

/// Where the namespace of `entity` in `lab` is bound.
pub(super) fn path(lab: &str, entity: &str) -> PathBuf {
    Path::new(DIR).join(format!("{PREFIX}{lab}-{entity}"))
}

/// Whether `path` is one that [`path`] could have given; what a state file
/// says is not to be unmounted unseen.
pub(super) fn is_ours(path: &Path) -> bool {
    path.parent() == Some(Path::new(DIR))
        && path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// Makes `/run/netns` as `ip netns add` does: a shared mount, so that other
/// mount namespaces see namespaces come and, above all, go. Like `ip netns`,
/// sgwall leaves it in place: others may have begun to rely on it.
pub(super) fn prepare_dir() -> Result<(), LabError> {
    let failed =
        |errno: Errno| LabError::system(format!("share {DIR} among mount namespaces"), errno);
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(DIR)
        .and_then(|()| File::open(DIR))
        .map_err(|error| LabError::system(format!("make {DIR}"), error))?;
    // Two at once would stack one mount on the other; `ip netns add` locks too.
    let _lock = Flock::lock(made, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno))?;
    let none: Option<&str> = None;
    let share = || mount(none, DIR, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    match share() {
        // Not a mount point yet.
        Err(Errno::EINVAL) => {
            mount(
                Some(DIR),
                DIR,
                none,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                none,
            )
            .map_err(failed)?;
            share().map_err(failed)
        }
        answer => answer.map_err(failed),
    }
}

/// Binds the calling thread's network namespace to `path`.
pub(super) fn bind(path: &Path) -> Result<(), LabError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(path);
    match opened {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let path = path.to_owned();
            return Err(LabError::NamespaceTaken { path, owner: None });
        }
        Err(error) => return Err(LabError::system(format!("make {}", path.display()), error)),
    }
    let none: Option<&str> = None;
    let from = Some("/proc/thread-self/ns/net");
    mount(from, path, none, MsFlags::MS_BIND, none).map_err(|errno| {
        let _ = fs::remove_file(path);
        LabError::system(format!("bind a namespace to {}", path.display()), errno)
    })
}

/// Undoes [`bind`]; also what a killed run had bound.
pub(super) fn unbind(path: &Path) {
    // A file that was made and not yet bound has nothing to unmount.
    while statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC) {
        if umount2(path, MntFlags::MNT_DETACH).is_err() {
            break;
        }
    }
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "can't remove a namespace's file");
    }
}

/// The inode of the namespace bound to `path`.
pub(super) fn inode(path: &Path) -> Option<u64> {
    let bound = statfs(path).ok()?.filesystem_type() == NSFS_MAGIC;
    bound
        .then(|| fs::metadata(path).ok())
        .flatten()
        .map(|found| found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_cannot_name_files_outside_of_run_netns() {
        assert!(is_ours(&path("lab", "web-1")));
        for path in [
            "/etc/passwd",
            "/run/netns/other",
            "/run/netns/../sgwall-a",
            "sgwall-a",
        ] {
            assert!(!is_ours(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn the_longest_names_fit_into_a_file_name() {
        let path = path(&"l".repeat(40), &"e".repeat(63));
        assert!(path.file_name().is_some_and(|name| name.len() <= 255));
    }
}
