//! Where run-state is kept, and where it is looked for.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat, geteuid};

use super::super::identity::identity;
use super::super::{LabError, Privilege};
use super::STATE_DIR_VARIABLE;

/// Memory that runtimes mount in every container.
const SHARED_MEMORY: &str = "/dev/shm";

/// The directory to keep new state in: the first usual one that can be written.
///
/// # Errors
/// None can, as in a container with a read-only root and nothing mounted into it.
pub(super) fn usual_base() -> Result<PathBuf, LabError> {
    if let Some(base) = overridden() {
        return Ok(base);
    }
    let bases = usual_bases();
    let found = bases.iter().find(|base| can_make(base)).cloned();
    found.ok_or_else(|| LabError::StateDir {
        path: bases[0].clone(),
        problem: format!(
            "it can't be written, nor can {}; mount a tmpfs (docker run --tmpfs /run), \
             or set {STATE_DIR_VARIABLE}",
            bases[1..]
                .iter()
                .map(|base| base.display().to_string())
                .collect::<Vec<_>>()
                .join(" or ")
        ),
    })
}

/// Where new state may be, best first. Never empty.
fn usual_bases() -> Vec<PathBuf> {
    let identity = identity();
    let mut bases = Vec::new();
    if identity.uid == 0 {
        bases.push(PathBuf::from("/run/sgwall"));
    }
    if identity.privilege != Privilege::Root {
        bases.extend(runtime_dir().map(|dir| dir.join("sgwall")));
        bases.push(format!("/tmp/sgwall-{}", identity.uid).into());
    }
    bases.push(shared_memory_base(identity.uid));
    bases
}

/// Every directory where a lab of this user may have its state: the one that
/// started it may have had another environment than the one that looks.
pub(super) fn search_bases() -> Vec<PathBuf> {
    if let Some(base) = overridden() {
        return vec![base];
    }
    let uid = identity().uid;
    let mut bases = Vec::new();
    if uid == 0 {
        bases.push(PathBuf::from("/run/sgwall"));
    }
    bases.extend(runtime_dir().map(|dir| dir.join("sgwall")));
    bases.push(format!("/run/user/{uid}/sgwall").into());
    bases.push(format!("/tmp/sgwall-{uid}").into());
    bases.push(shared_memory_base(uid));
    bases.dedup();
    bases
}

/// Where state goes in a container whose root is read-only: runtimes mount `/dev/shm` in
/// every one, and it can be written.
///
/// Everybody may write there, as in `/tmp`, and in a pod it is the same for all
/// containers, whose roots are the same user as well. So who answers at a socket in
/// there is looked at more closely: see [`is_shared`].
fn shared_memory_base(uid: u32) -> PathBuf {
    let dir = Path::new(SHARED_MEMORY);
    match uid {
        0 => dir.join("sgwall"),
        uid => dir.join(format!("sgwall-{uid}")),
    }
}

/// Whether processes of other containers may reach what is at `path` as the same user.
pub(in crate::lab) fn is_shared(path: &Path) -> bool {
    path.starts_with(SHARED_MEMORY)
}

/// Whether state can be kept in `base`, which need not exist yet.
fn can_make(base: &Path) -> bool {
    if is_shared(base) {
        // What doesn't let others alone what they have made is no place for it.
        const STICKY: u32 = 0o1000;
        let safe = |mode: u32| mode & 0o022 == 0 || mode & STICKY != 0;
        let found = fs::symlink_metadata(SHARED_MEMORY);
        if !found.is_ok_and(|dir| dir.is_dir() && safe(dir.mode())) {
            return false;
        }
    }
    let mut nearest = Some(base);
    while let Some(dir) = nearest {
        let access = AccessFlags::W_OK | AccessFlags::X_OK;
        match faccessat(AT_FDCWD, dir, access, AtFlags::AT_EACCESS) {
            Ok(()) => return true,
            Err(Errno::ENOENT) => nearest = dir.parent(),
            // What is in the way there is told of when it is used.
            Err(_) => return false,
        }
    }
    false
}

fn overridden() -> Option<PathBuf> {
    std::env::var_os(STATE_DIR_VARIABLE)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// `$XDG_RUNTIME_DIR`, unless it is another user's, as after `su`.
fn runtime_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR")?);
    let metadata = fs::symlink_metadata(&dir).ok()?;
    (dir.is_absolute() && metadata.is_dir() && metadata.uid() == geteuid().as_raw()).then_some(dir)
}
