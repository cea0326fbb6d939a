//! Notices that files were saved, by looking at them several times a second.
//! That is dull, costs next to nothing, and sees through everything that a
//! watch on directories misses: links into other directories, directories that
//! are moved away, file systems that send no events.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time between two looks.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// A file that is written all the time is read after this many looks, though
/// it never rests.
const MOST_LOOKS: u32 = 5;

/// The files that a policy is read from, and how they were when they were last read.
#[derive(Debug)]
pub(super) struct Watch {
    files: Vec<PathBuf>,
    read: Stamps,
    last_look: Stamps,
    restless: u32,
}

impl Watch {
    /// Files that are about to be read for the first time.
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        let read = Stamps::of(&files);
        Self {
            files,
            last_look: read.clone(),
            read,
            restless: 0,
        }
    }

    /// Looks at the files: whether they should be read again, being others
    /// than those read and, as editors write in several steps, at rest.
    pub(super) fn look(&mut self) -> bool {
        let now = Stamps::of(&self.files);
        let at_rest = now == self.last_look;
        self.last_look = now;
        if self.last_look == self.read {
            self.restless = 0;
            return false;
        }
        self.restless += 1;
        at_rest || self.restless >= MOST_LOOKS
    }

    /// Takes note that the files are read now: called before, so that a change
    /// during the reading is seen afterwards.
    pub(super) fn reading(&mut self) {
        self.read = Stamps::of(&self.files);
        self.restless = 0;
    }

    /// What to say of such a file ([`Self::pipe`]).
    pub(super) fn cannot_reread(file: &Path) -> String {
        format!(
            "{} is a pipe: sgwall reads it again whenever it is saved; write it to a file",
            file.display()
        )
    }

    /// A file that can be read once and not again. (What can't be read at all, as a
    /// directory, whoever reads it will say.)
    pub(super) fn pipe(&self) -> Option<&PathBuf> {
        self.files
            .iter()
            .find(|file| std::fs::metadata(file).is_ok_and(|found| found.file_type().is_fifo()))
    }
}

/// What changes when a file is saved. Cheaper than the contents, and reading it
/// never waits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamps(Vec<Option<Stamp>>);

/// Device, inode, size, and the times of the last change.
type Stamp = (u64, u64, u64, [i64; 4]);

impl Stamps {
    fn of(files: &[PathBuf]) -> Self {
        let stamp = |file: &PathBuf| {
            let found = std::fs::metadata(file).ok()?;
            let times = [
                found.mtime(),
                found.mtime_nsec(),
                found.ctime(),
                found.ctime_nsec(),
            ];
            Some((found.dev(), found.ino(), found.size(), times))
        };
        Self(files.iter().map(stamp).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn watched() -> (tempfile::TempDir, PathBuf, Watch) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lab.yaml");
        fs::write(&file, "one").unwrap();
        let watch = Watch::new(vec![file.clone()]);
        (dir, file, watch)
    }

    #[test]
    fn a_saved_file_is_noticed_once_it_rests_and_once_only() {
        let (_dir, file, mut watch) = watched();
        assert!(!watch.look());
        fs::write(&file, "three").unwrap();
        assert!(!watch.look(), "it may still be written to");
        assert!(watch.look());
        watch.reading();
        assert!(!watch.look());
        assert!(!watch.look());
    }

    #[test]
    fn a_file_that_never_rests_is_read_all_the_same() {
        let (_dir, file, mut watch) = watched();
        let noticed = (0..MOST_LOOKS).any(|n| {
            fs::write(&file, "x".repeat(10 + n as usize)).unwrap();
            watch.look()
        });
        assert!(noticed);
    }

    #[test]
    fn a_file_put_in_its_place_or_behind_a_link_is_noticed() {
        let (dir, file, mut watch) = watched();
        let other = dir.path().join("other");
        fs::write(&other, "one").unwrap();
        fs::rename(&other, &file).unwrap();
        assert!(!watch.look() && watch.look(), "replaced");

        let link = dir.path().join("link.yaml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut watch = Watch::new(vec![link]);
        fs::write(&file, "three").unwrap();
        assert!(!watch.look() && watch.look(), "behind a link");
        watch.reading();
        fs::remove_file(&file).unwrap();
        assert!(!watch.look() && watch.look(), "gone");
    }

    #[test]
    fn a_pipe_is_told_apart_from_what_can_be_read_again() {
        let (dir, _, watch) = watched();
        assert_eq!(watch.pipe(), None);
        assert_eq!(Watch::new(vec![dir.path().to_path_buf()]).pipe(), None);
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(Watch::new(vec![pipe.clone()]).pipe(), Some(&pipe));
    }
}
