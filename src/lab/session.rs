//! The run-state of one lab on disk: a directory with a lock, a record of what
//! a successor would have to clean, and the control socket.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::{LabError, netns, processes};

mod base;

pub(super) use base::is_shared;
use base::{search_bases, usual_base};

/// Environment variable that overrides where run-state is kept.
pub const STATE_DIR_VARIABLE: &str = "SGWALL_STATE_DIR";

const LOCK: &str = "lock";
const STATE: &str = "state.json";
const CONTROL: &str = "control.sock";

/// A directory entry of the lock may vanish between opening and locking it,
/// when its owner ends just then; more tries than this mean something else.
const LOCK_TRIES: u32 = 50;

/// The run-state of the lab that this process runs. Dropping it removes the
/// directory and frees the name.
#[derive(Debug)]
pub struct Session {
    name: String,
    base: PathBuf,
    dir: PathBuf,
    _lock: File,
}

/// A lab that some process runs now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningLab {
    /// Its name.
    pub name: String,
    /// Its state directory.
    pub dir: PathBuf,
    /// Who runs it.
    pub pid: u32,
}

/// What a successor must clean after a `kill -9`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Leftovers {
    /// Files under `/run/netns`; root's labs only.
    #[serde(default)]
    pub bound: Vec<PathBuf>,
    /// Inodes of the network namespaces; none if the run was killed before all
    /// of them were made.
    #[serde(default)]
    pub inodes: Vec<u64>,
}

impl Session {
    /// The name of a lab that was given none: the file's stem, with what a
    /// name can't have made hyphens.
    pub fn name_for(lab_file: &Path) -> String {
        let stem = lab_file.file_stem().unwrap_or_default().to_string_lossy();
        let name: String = stem
            .to_lowercase()
            .chars()
            .map(|c| if is_name_char(c) { c } else { '-' })
            .take(40)
            .collect();
        match name.trim_matches('-') {
            "" => "lab".into(),
            name => name.into(),
        }
    }

    /// Claims `name` for this process and cleans what a killed run of that
    /// name left behind.
    ///
    /// # Errors
    /// A bad name, a lab of that name that runs, or a state directory that
    /// can't be made or trusted.
    pub fn start(name: &str) -> Result<Self, LabError> {
        Self::check_name(name)?;
        let base = usual_base()?;
        let dir = base.join(name);
        let lock = claim(name, &base, &dir).map_err(|error| match error {
            LabError::System { .. } => LabError::StateDir {
                path: base.clone(),
                problem: format!(
                    "{error}; set {STATE_DIR_VARIABLE} to a directory that can be written"
                ),
            },
            other => other,
        })?;
        let session = Self {
            name: name.to_owned(),
            base,
            dir,
            _lock: lock,
        };
        session.clean()?;
        Ok(session)
    }

    /// Whether `name` may name a lab.
    ///
    /// # Errors
    /// [`LabError::BadLabName`].
    pub fn check_name(name: &str) -> Result<(), LabError> {
        if (1..=40).contains(&name.len()) && name.chars().all(is_name_char) {
            Ok(())
        } else {
            Err(LabError::BadLabName(name.to_owned()))
        }
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory above it, shared by all labs of this user.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Where the control socket is.
    pub fn control_path(&self) -> PathBuf {
        self.dir.join(CONTROL)
    }

    /// What a client would find.
    pub fn as_running(&self) -> RunningLab {
        RunningLab {
            name: self.name.clone(),
            dir: self.dir.clone(),
            pid: std::process::id(),
        }
    }

    /// Every lab that runs now and whose state this user may see, by name.
    ///
    /// # Errors
    /// A state directory that can't be read for a reason other than privilege.
    pub fn list() -> Result<Vec<RunningLab>, LabError> {
        let mut found: Vec<RunningLab> = Vec::new();
        for base in search_bases() {
            let entries = match fs::read_dir(&base) {
                Ok(entries) => entries,
                Err(error) if is_absence(&error) => continue,
                Err(error) => {
                    return Err(LabError::system(format!("read {}", base.display()), error));
                }
            };
            // A directory that others could write to may lie about what runs.
            if check_dir(&base).is_err() {
                continue;
            }
            for entry in entries.flatten() {
                let Ok(name) = entry.file_name().into_string() else {
                    continue;
                };
                if Self::check_name(&name).is_err() || found.iter().any(|lab| lab.name == name) {
                    continue;
                }
                if let Some(pid) = holder(&entry.path().join(LOCK)) {
                    let dir = entry.path();
                    found.push(RunningLab { name, dir, pid });
                }
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The lab called `name`, or the only one that runs.
    ///
    /// # Errors
    /// None runs, not that one, or several and none was named.
    pub fn find(name: Option<&str>) -> Result<RunningLab, LabError> {
        let mut labs = Self::list()?;
        let names = |labs: &[RunningLab]| labs.iter().map(|lab| lab.name.clone()).collect();
        if labs.is_empty() {
            let elsewhere = !geteuid().is_root() && Path::new("/run/sgwall").exists();
            return Err(LabError::NoneRunning { elsewhere });
        }
        // A variable that is set to nothing says nothing.
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            if labs.len() > 1 {
                let running = names(&labs);
                return Err(LabError::WhichLab { running });
            }
            return Ok(labs.swap_remove(0));
        };
        match labs.iter().position(|lab| lab.name == name) {
            Some(position) => Ok(labs.swap_remove(position)),
            None => Err(LabError::NotRunning {
                name: name.to_owned(),
                running: names(&labs),
            }),
        }
    }

    /// Records what a successor must clean, before or while it is made.
    pub(super) fn record(&self, leftovers: &Leftovers) -> Result<(), LabError> {
        let path = self.dir.join(STATE);
        let failed =
            |error: io::Error| LabError::system(format!("write {}", path.display()), error);
        let text = serde_json::to_vec(leftovers).map_err(|error| failed(error.into()))?;
        let fresh = self.dir.join("state.new");
        fs::write(&fresh, text).map_err(failed)?;
        fs::rename(&fresh, &path).map_err(failed)
    }

    /// Returns the other running lab whose namespace is bound at `path`.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub(super) fn owner_of(&self, path: &Path) -> Result<Option<String>, LabError> {
        let owner = Self::list()?.into_iter().find(|lab| {
            let leftovers = Leftovers::read(&lab.dir);
            lab.name != self.name
                && leftovers.made(path)
                && leftovers.bound.iter().any(|bound| bound == path)
        });
        Ok(owner.map(|lab| lab.name))
    }

    /// Ends and removes what an earlier run of this name left behind. A file
    /// that has meanwhile become another lab's is none of it.
    fn clean(&self) -> Result<(), LabError> {
        let leftovers = Leftovers::read(&self.dir);
        let others: Vec<PathBuf> = Self::list()?
            .iter()
            .filter(|lab| lab.name != self.name)
            .flat_map(|lab| Leftovers::read(&lab.dir).bound)
            .collect();
        let bound: Vec<&PathBuf> = leftovers
            .bound
            .iter()
            .filter(|path| netns::is_ours(path))
            .filter(|path| leftovers.made(path) && !others.contains(path))
            .collect();
        if !bound.is_empty() {
            // The mounts keep these namespaces alive, so their inodes are theirs.
            let inodes: Vec<u64> = bound.iter().filter_map(|path| netns::inode(path)).collect();
            processes::end_all(&|pid| processes::is_in(pid, &inodes));
            for path in bound {
                netns::unbind(path);
            }
        }
        leftovers.end_strays(&self.name);
        remove_files(&self.dir, false);
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The lock goes last: until then nobody else can claim the name.
        remove_files(&self.dir, false);
        remove_files(&self.dir, true);
        let _ = fs::remove_dir(&self.dir);
        // Other labs may live there; then it stays.
        if std::env::var_os(STATE_DIR_VARIABLE).is_none() {
            let _ = fs::remove_dir(&self.base);
        }
    }
}

impl Leftovers {
    /// Whether the namespace bound at `path` is one that this lab made, as far
    /// as it came to write that down.
    fn made(&self, path: &Path) -> bool {
        self.inodes.is_empty()
            || netns::inode(path).is_none_or(|inode| self.inodes.contains(&inode))
    }

    /// What the directory of a lab records; nothing if that makes no sense.
    fn read(dir: &Path) -> Self {
        let state = fs::read(dir.join(STATE)).unwrap_or_default();
        serde_json::from_slice(&state).unwrap_or_default()
    }

    /// Ends the processes left in namespaces that nothing but they kept
    /// alive. If they have ended the kernel may have given the numbers to
    /// others since, so only processes that say they are the lab's count.
    fn end_strays(&self, lab: &str) {
        if !self.inodes.is_empty() {
            processes::end_all(&|pid| {
                processes::is_in(pid, &self.inodes) && processes::says_lab(pid, lab)
            });
        }
    }
}

impl RunningLab {
    /// Where the control socket is.
    pub fn control_path(&self) -> PathBuf {
        self.dir.join(CONTROL)
    }
}

/// Ends the processes that killed labs of this user left behind. Processes of
/// a user namespace can be looked into from outside of it only, so this must
/// come before this process enters one of its own.
pub(super) fn end_all_strays() {
    for base in search_bases() {
        if check_dir(&base).is_err() {
            continue;
        }
        for entry in fs::read_dir(&base).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if Session::check_name(&name).is_ok() && holder(&entry.path().join(LOCK)).is_none() {
                Leftovers::read(&entry.path()).end_strays(&name);
            }
        }
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
}

fn make_dir(path: &Path) -> Result<(), LabError> {
    let failed = |error| LabError::system(format!("make {}", path.display()), error);
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    check_dir(path)
}

/// Refuses a directory that somebody else could have prepared.
fn check_dir(path: &Path) -> Result<(), LabError> {
    let refused = |problem: String| LabError::StateDir {
        path: path.to_owned(),
        problem,
    };
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| LabError::system(format!("look at {}", path.display()), error))?;
    if !metadata.is_dir() {
        return Err(refused(format!(
            "it is not a directory; set {STATE_DIR_VARIABLE} to one"
        )));
    }
    if metadata.uid() != geteuid().as_raw() {
        return Err(refused(
            "it belongs to another user; remove it, or set SGWALL_STATE_DIR".into(),
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        let problem = format!("others may write to it; chmod 700 {}", path.display());
        return Err(refused(problem));
    }
    Ok(())
}

/// Locks the directory's lock file for this process.
fn claim(name: &str, base: &Path, dir: &Path) -> Result<File, LabError> {
    let path = dir.join(LOCK);
    let failed = |error| LabError::system(format!("lock {}", path.display()), error);
    if let Some(parent) = base.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut last = io::ErrorKind::TimedOut.into();
    for _ in 0..LOCK_TRIES {
        make_dir(base)?;
        match make_dir(dir) {
            // The previous owner has just removed a directory, unless this is a file system such
            // as /proc, where no directory can be created.
            Err(LabError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                last = source;
                continue;
            }
            answer => answer?,
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        let mut lock = match opened {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        match fcntl(&lock, FcntlArg::F_OFD_SETLK(&whole_file())) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => {
                // The owner writes its pid just after it has the lock.
                let pid = read_pid(&mut lock);
                if pid == 0 {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                }
                let name = name.to_owned();
                return Err(LabError::AlreadyRunning { name, pid });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        let locked = lock.metadata().map_err(failed)?;
        let same = fs::symlink_metadata(&path)
            .is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino()));
        if !same {
            continue;
        }
        lock.set_len(0).map_err(failed)?;
        lock.rewind().map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        return Ok(lock);
    }
    Err(failed(last))
}

/// Who holds the lock, without touching it: a mere look must never make a
/// `run` that starts in the same moment believe the name is taken.
fn holder(path: &Path) -> Option<u32> {
    let mut lock = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .ok()?;
    let mut query = whole_file();
    fcntl(&lock, FcntlArg::F_OFD_GETLK(&mut query)).ok()?;
    (i32::from(query.l_type) != libc::F_UNLCK).then(|| read_pid(&mut lock))
}

fn read_pid(lock: &mut File) -> u32 {
    let mut text = String::new();
    let _ = lock.take(16).read_to_string(&mut text);
    text.trim().parse().unwrap_or(0)
}

fn whole_file() -> libc::flock {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "F_WRLCK and SEEK_SET are 1 and 0"
    )]
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn remove_files(dir: &Path, lock_too: bool) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if lock_too || entry.file_name() != LOCK {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_named_after_its_file() {
        for (file, name) in [
            ("configs/three-tier.yaml", "three-tier"),
            ("My Lab_2.yml", "my-lab-2"),
            ("/x/.yaml", "yaml"),
            ("äöü.yaml", "lab"),
            ("..", "lab"),
        ] {
            assert_eq!(Session::name_for(Path::new(file)), name, "{file}");
        }
        let long = Session::name_for(Path::new(&format!("{}.yaml", "a".repeat(90))));
        assert_eq!(long.len(), 40);
    }

    #[test]
    fn names_that_could_leave_the_state_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "A", "a b", &"a".repeat(41)] {
            assert!(Session::check_name(name).is_err(), "{name}");
        }
        assert!(Session::check_name("a-1").is_ok());
    }

    #[test]
    fn a_state_directory_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(
            check_dir(dir.path()),
            Err(LabError::StateDir { .. })
        ));
    }

    #[test]
    fn a_place_where_no_directory_can_be_made_is_reported_with_its_error() {
        let base = Path::new("/proc");
        let error = claim("x", base, &base.join("x")).unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
    }

    #[test]
    fn a_symlink_is_no_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(make_dir(&link).is_err());
    }

    #[test]
    fn a_name_has_one_owner_at_a_time() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("x");
        let lock = claim("x", base.path(), &dir).unwrap();
        // Locks of open file descriptions exclude each other in one process too.
        let Err(LabError::AlreadyRunning { pid, .. }) = claim("x", base.path(), &dir) else {
            panic!("a second owner");
        };
        assert_eq!(pid, std::process::id());
        assert_eq!(holder(&dir.join(LOCK)), Some(pid));
        drop(lock);
        assert_eq!(holder(&dir.join(LOCK)), None);
        claim("x", base.path(), &dir).unwrap();
    }
}
