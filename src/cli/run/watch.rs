//! Notices that files were saved. Directories are watched, not files: editors
//! and Kubernetes put a new file in the old one's place.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Watches some files until it is dropped.
pub(super) struct Watch {
    /// Whether the system lets us watch; if not, nothing is ever noticed.
    pub(super) started: Result<(), notify::Error>,
    /// Whether a file was changed before the watch began.
    pub(super) missed: bool,
    files: Vec<PathBuf>,
    contents: Vec<Option<Vec<u8>>>,
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Calls `touched` whenever something happens beside one of `files`,
    /// which had the stamps `read` before they were read.
    pub(super) fn new(
        files: Vec<PathBuf>,
        read: &Stamps,
        touched: impl Fn() + Send + 'static,
    ) -> Self {
        let (started, watcher) = match watch(&files, touched) {
            Ok(watcher) => (Ok(()), Some(watcher)),
            Err(error) => (Err(error), None),
        };
        // In this order: a change before the contents are taken shows in the
        // stamps, and one after that is heard of and differs from the contents.
        let contents = files.iter().map(|file| std::fs::read(file).ok()).collect();
        let missed = Stamps::of(&files) != *read;
        Self {
            started,
            missed,
            files,
            contents,
            _watcher: watcher,
        }
    }

    /// Reads the files; whether one differs from the last time.
    pub(super) fn note_contents(&mut self) -> bool {
        let now: Vec<_> = self
            .files
            .iter()
            .map(|file| std::fs::read(file).ok())
            .collect();
        let changed = now != self.contents;
        self.contents = now;
        changed
    }
}

/// What changes when a file is saved. Cheaper than the contents, and harmless
/// to files that can be read only once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stamps(Vec<Option<Stamp>>);

/// Device, inode, size, and the times of the last change.
type Stamp = (u64, u64, u64, [i64; 4]);

impl Stamps {
    pub(super) fn of<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Self {
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
        Self(files.into_iter().map(stamp).collect())
    }
}

fn watch(
    files: &[PathBuf],
    touched: impl Fn() + Send + 'static,
) -> Result<RecommendedWatcher, notify::Error> {
    let mut watcher =
        notify::recommended_watcher(move |event: Result<notify::Event, notify::Error>| {
            // Reading a file is an event too; it must not lead to reading again.
            if event.map_or(true, |event| !event.kind.is_access()) {
                touched();
            }
        })?;
    let directories: BTreeSet<&Path> = files
        .iter()
        .map(|file| match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        })
        .collect();
    for directory in directories {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_between_reading_and_watching_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lab.yaml");
        std::fs::write(&file, "one").unwrap();
        let before = Stamps::of([&file]);
        let watch = |before| Watch::new(vec![file.clone()], before, || {});
        assert!(!watch(&before).missed);
        std::fs::write(&file, "three").unwrap();
        assert!(watch(&before).missed);
        std::fs::remove_file(&file).unwrap();
        assert!(watch(&before).missed);
    }
}
