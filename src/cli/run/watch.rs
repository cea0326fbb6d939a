//! Notices that files were saved. Directories are watched, not files: editors
//! and Kubernetes put a new file in the old one's place.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

/// Watches some files until it is dropped.
pub(super) struct Watch {
    /// Whether the system lets us watch; if not, nothing is ever noticed.
    pub(super) started: Result<(), notify::Error>,
    files: Vec<PathBuf>,
    contents: Vec<Option<Vec<u8>>>,
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Calls `touched` whenever something happens beside one of `files`.
    pub(super) fn new(files: Vec<PathBuf>, touched: impl Fn() + Send + 'static) -> Self {
        let contents = files.iter().map(|file| std::fs::read(file).ok()).collect();
        let (started, watcher) = match watch(&files, touched) {
            Ok(watcher) => (Ok(()), Some(watcher)),
            Err(error) => (Err(error), None),
        };
        Self {
            started,
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
