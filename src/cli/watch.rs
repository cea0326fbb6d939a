//! Notices that files were saved, by looking at them several times a second.
//! That is dull, costs next to nothing, and sees through everything that a
//! watch on directories misses: links into other directories, directories that
//! are moved away, file systems that send no events.
//!
//! Half-written files must not be applied. A file that was renamed into place is complete and is
//! read at once. A file that was written in place is read once nobody has it open for writing, it
//! ends with a newline, and it has not changed for `REST`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::CliError;
use super::teller::Teller;
use crate::engine::Appliance;
use crate::lab::{Writers, writers};

use crate::config::{is_stdin, shown};

/// Time between two looks.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// How long a file that was written in place must stay unchanged before it is read. A decision.
const REST: Duration = Duration::from_secs(1);
/// After this time the user is told why a changed file is not read. At the start, a file that
/// stays open for writing is waited for no longer than this. A decision.
const OVERDUE: Duration = Duration::from_secs(5);

/// The files that a policy is read from, and how they were when they were last read.
#[derive(Debug)]
pub(super) struct Watch {
    files: Vec<Watched>,
    /// The directory in which the process was started, if a path depends on it.
    home: Option<PathBuf>,
    /// The time at which a file was last seen to differ from the previous look.
    restless: Instant,
    /// The time since which changed files have been waiting to be read.
    waiting: Option<Instant>,
    /// True if the files are to be read although they have not changed.
    asked: bool,
    /// True if the obstacle is to be reported again.
    tell_again: bool,
    /// The last reported reason why a changed file is not read.
    obstacle: Option<String>,
}

/// A watched file.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    mount: Option<Mount>,
    /// Its stamp when it was last read, and at the last look.
    read: Option<Stamp>,
    seen: Option<Stamp>,
    /// True if it was renamed into place since the last read, and not written to since.
    replaced: bool,
}

/// A file that is a mount point itself.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    /// The mount point, as the kernel writes it.
    point: String,
    /// The file on its file system. The kernel changes this path when the file is renamed or
    /// deleted.
    source: String,
}

/// The action to take after a look at the files.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Do nothing.
    Nothing,
    /// Read the files.
    Changed,
    /// Report why a changed file is not read, or (`None`) that nothing prevents it any more.
    Obstacle(Option<String>),
}

impl Watch {
    /// Files that are about to be read for the first time.
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        let relative = files.iter().any(|file| file.is_relative());
        let files = files.into_iter().map(|path| {
            let read = Stamp::of(&path);
            Watched {
                mount: Mount::of(&path),
                path,
                seen: read.clone(),
                read,
                replaced: false,
            }
        });
        Self {
            files: files.collect(),
            home: relative.then(|| std::env::current_dir().ok()).flatten(),
            restless: Instant::now(),
            waiting: None,
            asked: false,
            tell_again: false,
            obstacle: None,
        }
    }

    /// Waits until the files are complete, before they are read for the first time: until nobody
    /// has them open for writing, and each ends with a newline or has stayed unchanged for
    /// `REST`.
    ///
    /// # Errors
    ///
    /// A file stays open for writing.
    pub(super) fn wait(&mut self) -> Result<(), CliError> {
        let began = Instant::now();
        for file in &mut self.files {
            loop {
                file.seen = Stamp::of(&file.path);
                let writers = file.writers();
                let age = |stamp: &Stamp| SystemTime::now().duration_since(stamp.modified).ok();
                let rested = file.seen.as_ref().is_none_or(|stamp| {
                    // A time in the future tells nothing about the age.
                    !stamp.regular || age(stamp).is_none_or(|age| age >= REST)
                });
                let whole = writers == Writers::None && file.ends_with_newline();
                if writers != Writers::Some && (whole || rested) {
                    break;
                }
                if began.elapsed() >= OVERDUE {
                    return Err(CliError::System(format!(
                        "{} is open for writing and may be incomplete: end the program that \
                         writes it, and start again",
                        file.path.display()
                    )));
                }
                std::thread::sleep(LOOK / 2);
            }
        }
        Ok(())
    }

    /// Requests that the files be read at the next look, changed or not, unless a file is open
    /// for writing.
    pub(super) fn ask(&mut self) {
        self.asked = true;
        self.tell_again = true;
    }

    /// Looks at the files and decides if they should be read again: if they differ from the files
    /// last read, and are complete.
    pub(super) fn look(&mut self) -> Seen {
        self.look_at(Instant::now())
    }

    fn look_at(&mut self, now: Instant) -> Seen {
        self.follow();
        for file in &mut self.files {
            let seen = Stamp::of(&file.path);
            if seen != file.seen {
                let identity = |stamp: &Option<Stamp>| {
                    let stamp = stamp.as_ref()?;
                    Some((stamp.device, stamp.inode))
                };
                file.replaced = identity(&seen) != identity(&file.seen);
                file.seen = seen;
                // After a rest it is another save, which has its own time to end.
                if now.saturating_duration_since(self.restless) >= REST {
                    self.waiting = None;
                }
                self.restless = now;
            }
        }
        let rested = now.saturating_duration_since(self.restless) >= REST;
        let stale = self.files.iter().find_map(Watched::stale);
        let changed = |file: &&Watched| file.seen != file.read && file.stale().is_none();
        let mut wanted = self.files.iter().filter(changed).peekable();
        let (obstacle, ready) = if self.asked || wanted.peek().is_some() {
            let since = *self.waiting.get_or_insert(now);
            let waits = match self.asked {
                true => self
                    .files
                    .iter()
                    .find_map(|file| file.waits_for(true, true)),
                false => wanted.find_map(|file| file.waits_for(false, rested)),
            };
            let overdue = now.saturating_duration_since(since) >= OVERDUE;
            let ready = waits.is_none();
            (waits.filter(|_| overdue).or(stale), ready)
        } else {
            self.waiting = None;
            (stale, false)
        };
        let again = std::mem::take(&mut self.tell_again) && obstacle.is_some();
        if again || obstacle != self.obstacle {
            self.obstacle = obstacle;
            return Seen::Obstacle(self.obstacle.clone());
        }
        if ready { Seen::Changed } else { Seen::Nothing }
    }

    /// Records that the files were read. Returns true if they have not changed since the last
    /// look, so that what was read is complete. Otherwise the caller must discard it, and the
    /// files are looked at again.
    pub(super) fn finish(&mut self) -> bool {
        let same = |file: &Watched| file.seen == Stamp::of(&file.path);
        if !self.files.iter().all(same) {
            return false;
        }
        for file in &mut self.files {
            file.read = file.seen.clone();
            file.replaced = false;
        }
        self.asked = false;
        self.waiting = None;
        true
    }

    /// Returns the warnings for files whose replacement by renaming can't be seen.
    pub(super) fn warnings(&self) -> Vec<String> {
        let mounted = self.files.iter().filter(|file| file.mount.is_some());
        let warning = |file: &Watched| {
            format!(
                "{0} is mounted by itself: a save that renames, as `sed -i` and most editors do, \
                 puts a new file in place outside, which is never seen here; mount the folder \
                 that has {0} instead",
                file.path.display()
            )
        };
        mounted.map(warning).collect()
    }

    /// What to say of such a file ([`Self::pipe`]).
    pub(super) fn cannot_reread(file: &Path) -> String {
        format!(
            "{} is a pipe: sgwall reads it again whenever it is saved; write it to a file",
            shown(file)
        )
    }

    /// A file that can be read once and not again. (What can't be read at all, as a
    /// directory, whoever reads it will say.)
    pub(super) fn pipe(&self) -> Option<&PathBuf> {
        self.files.iter().map(|file| &file.path).find(|path| {
            is_stdin(path) || fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
        })
    }

    /// Changes to the directory that now has the path of the start directory: after a directory
    /// is removed and created again, the new one is meant.
    fn follow(&self) {
        let Some(home) = &self.home else { return };
        let identity = |path: &Path| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino()))
        };
        let there = identity(home);
        if there.is_some()
            && there != identity(Path::new("."))
            && let Err(error) = std::env::set_current_dir(home)
        {
            tracing::debug!(home = %home.display(), %error, "can't go to the directory");
        }
    }
}

/// Reports why a changed file is not read, or records that nothing prevents it.
pub(super) fn tell_obstacle(why: Option<String>, teller: &Teller, appliance: &Appliance) {
    appliance.set_unread(why.clone());
    if let Some(why) = why {
        let text = format!("{why}\nthe rules in force stay");
        teller.say("unread", &text, json!({ "why": why }));
    }
}

impl Watched {
    /// Returns the reason why the changed file can't be read yet.
    fn waits_for(&self, asked: bool, rested: bool) -> Option<String> {
        let why = self.incomplete(asked, rested)?;
        Some(format!(
            "{} has changed and is not read: {why}",
            self.path.display()
        ))
    }

    fn incomplete(&self, asked: bool, rested: bool) -> Option<&'static str> {
        let Some(seen) = &self.seen else {
            return (!rested).then_some("it does not exist at the moment");
        };
        // Reading it reports what is wrong with it.
        if !seen.regular {
            return None;
        }
        let writers = self.writers();
        if writers == Writers::Some {
            return Some("a program has it open for writing; close it there, or save by renaming");
        }
        // Renaming changes the inode after the contents. This shows a renamed file even where the
        // kernel doesn't report writers.
        let whole = writers == Writers::None || seen.changed != seen.modified;
        if asked || (self.replaced && whole && seen.size > 0) {
            return None;
        }
        if !self.ends_with_newline() {
            return Some(
                "it doesn't end with a newline and may be incomplete; add one, or save by \
                 renaming (SIGHUP reads it anyway)",
            );
        }
        (!rested).then_some("it keeps changing; save by renaming")
    }

    /// Returns a message if the file is the old file of a mount whose source was replaced.
    fn stale(&self) -> Option<String> {
        let deleted = self.seen.as_ref().is_some_and(|seen| seen.links == 0);
        let moved = self.mount.as_ref().is_some_and(|mount| {
            let now = Mount::at(&mount.point);
            now.as_ref() != Some(mount)
        });
        (deleted || moved).then(|| {
            format!(
                "{} was replaced or deleted where it is mounted from; this is the old file, so \
                 changes are no longer seen: mount its folder and start again",
                self.path.display()
            )
        })
    }

    fn writers(&self) -> Writers {
        match Stamp::of(&self.path) {
            Some(stamp) if stamp.regular => writers(&self.path),
            _ => Writers::Unknown,
        }
    }

    fn ends_with_newline(&self) -> bool {
        let last = |path: &Path| {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last).map(|()| last)
        };
        // An empty file has no last byte.
        last(&self.path).is_ok_and(|last| last == *b"\n")
    }
}

impl Mount {
    fn of(file: &Path) -> Option<Self> {
        let path = file.canonicalize().ok()?;
        // Escaped as in /proc/PID/mountinfo (proc(5)).
        let point = path.to_str()?.replace('\\', "\\134").replace(' ', "\\040");
        Self::at(&point.replace('\t', "\\011").replace('\n', "\\012"))
    }

    /// Returns the topmost mount at `point`, which is listed last.
    fn at(point: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let found = mounts.lines().rev().find_map(|line| {
            let mut fields = line.split(' ').skip(3);
            let source = fields.next()?;
            (fields.next()? == point).then(|| source.to_owned())
        });
        Some(Self {
            point: point.to_owned(),
            source: found?,
        })
    }
}

/// What changes when a file is saved. Cheaper than the contents, and reading it
/// never waits.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    links: u64,
    size: u64,
    regular: bool,
    /// The modification time; `changed` is the change time of the inode.
    modified: SystemTime,
    changed: SystemTime,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let time = |seconds: i64, nanoseconds: i64| {
            let since = Duration::new(
                u64::try_from(seconds).unwrap_or(0),
                u32::try_from(nanoseconds).unwrap_or(0),
            );
            SystemTime::UNIX_EPOCH + since
        };
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            links: found.nlink(),
            size: found.size(),
            regular: found.is_file(),
            modified: time(found.mtime(), found.mtime_nsec()),
            changed: time(found.ctime(), found.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// A watched file with its own clock.
    struct Trial {
        dir: tempfile::TempDir,
        file: PathBuf,
        watch: Watch,
        now: Instant,
    }

    impl Trial {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("lab.yaml");
            fs::write(&file, "one\n").unwrap();
            Self {
                watch: Watch::new(vec![file.clone()]),
                now: Instant::now(),
                dir,
                file,
            }
        }

        /// Looks at the file. If it is to be read, marks it as read and returns true.
        fn reads(&mut self) -> bool {
            self.now += TICK;
            let seen = self.watch.look_at(self.now);
            let reads = seen == Seen::Changed;
            if reads {
                assert!(self.watch.finish());
            }
            reads
        }

        /// Returns the number of looks until the file is to be read.
        fn looks(&mut self) -> usize {
            let looks = (1..100).find(|_| self.reads());
            looks.expect("the file is never read")
        }

        /// Returns the obstacle that a look reports.
        fn obstacle(&mut self, after: Duration) -> Option<String> {
            self.now += after;
            match self.watch.look_at(self.now) {
                Seen::Obstacle(why) => why,
                other => panic!("{other:?}"),
            }
        }

        fn rename(&self, text: &str) {
            let other = self.dir.path().join("other");
            fs::write(&other, text).unwrap();
            // The inode must change later than the contents, as if the file had been written
            // earlier.
            std::thread::sleep(Duration::from_millis(20));
            fs::rename(&other, &self.file).unwrap();
        }
    }

    #[test]
    fn a_file_written_in_place_is_read_once_it_is_complete_and_rests_and_once_only() {
        let mut trial = Trial::new();
        assert!(!trial.reads());
        // The writer pauses after half of the file.
        let mut writer = File::create(&trial.file).unwrap();
        writer.write_all(b"thr").unwrap();
        assert!((0..30).all(|_| !trial.reads()), "half-written");
        writer.write_all(b"ee\n").unwrap();
        if writers(&trial.file) != Writers::Unknown {
            assert!((0..30).all(|_| !trial.reads()), "somebody writes");
        }
        drop(writer);
        fs::write(&trial.file, "three\nfour\n").unwrap();
        assert!(trial.looks() > 10, "it has not rested");
        assert!((0..30).all(|_| !trial.reads()));
    }

    #[test]
    fn an_unfinished_file_is_never_read_and_that_is_said() {
        let mut trial = Trial::new();
        for half in ["", "three"] {
            fs::write(&trial.file, half).unwrap();
            assert!(!trial.reads());
            let why = trial.obstacle(OVERDUE).unwrap();
            assert!(why.contains("doesn't end with a newline"), "{why}");
            assert!((0..100).all(|_| !trial.reads()), "{half:?}");
            // An explicit request reads it anyway.
            trial.watch.ask();
            assert!(trial.looks() <= 2);
        }
        fs::write(&trial.file, "three\n").unwrap();
        trial.looks();
        for n in 0..40 {
            fs::write(&trial.file, format!("{}\n", "x".repeat(n))).unwrap();
            assert!(!trial.reads(), "it never rests");
        }
        let why = (40..80).find_map(|n| {
            fs::write(&trial.file, format!("{}\n", "x".repeat(n))).unwrap();
            trial.now += TICK;
            match trial.watch.look_at(trial.now) {
                Seen::Obstacle(why) => why,
                _ => None,
            }
        });
        let why = why.unwrap();
        assert!(why.contains("keeps changing"), "{why}");
        // A save after a rest has its own time.
        trial.looks();
        fs::write(&trial.file, "half").unwrap();
        assert!(!trial.reads());
        trial.obstacle(OVERDUE).unwrap();
        fs::write(&trial.file, "the last\n").unwrap();
        assert_eq!(trial.obstacle(TICK), None);
        trial.looks();
    }

    #[test]
    fn a_file_put_in_its_place_or_behind_a_link_is_read_at_once() {
        let mut trial = Trial::new();
        trial.rename("one");
        assert_eq!(trial.looks(), 1, "replaced");

        let link = trial.dir.path().join("link.yaml");
        std::os::unix::fs::symlink(&trial.file, &link).unwrap();
        trial.watch = Watch::new(vec![link]);
        trial.rename("three\n");
        assert_eq!(trial.looks(), 1, "behind a link");
        fs::remove_file(&trial.file).unwrap();
        assert!(trial.looks() > 10, "gone");
        trial.rename("back");
        assert_eq!(trial.looks(), 1, "back");
    }

    #[test]
    fn what_changes_while_it_is_read_is_read_again() {
        let mut trial = Trial::new();
        trial.rename("three\n");
        trial.now += TICK;
        assert_eq!(trial.watch.look_at(trial.now), Seen::Changed);
        fs::write(&trial.file, "security_gr").unwrap();
        assert!(!trial.watch.finish());
        assert!((0..30).all(|_| !trial.reads()), "half-written");
        trial.rename("four\n");
        assert_eq!(trial.looks(), 1);
    }

    #[test]
    fn the_first_reading_waits_for_whoever_writes() {
        let mut trial = Trial::new();
        trial.watch.wait().unwrap();
        let writer = File::options().append(true).open(&trial.file).unwrap();
        if writers(&trial.file) == Writers::Unknown {
            return;
        }
        let ends = std::thread::spawn(move || {
            std::thread::sleep(TICK);
            let mut writer = writer;
            writer.write_all(b"two\n").unwrap();
        });
        trial.watch.wait().unwrap();
        assert!(fs::read_to_string(&trial.file).unwrap().ends_with("two\n"));
        ends.join().unwrap();
        let _writer = File::options().append(true).open(&trial.file).unwrap();
        let refused = trial.watch.wait().unwrap_err().to_string();
        assert!(refused.contains("open for writing"), "{refused}");
    }

    #[test]
    fn a_file_that_was_replaced_under_its_mount_is_told_of_and_not_read() {
        let mut trial = Trial::new();
        // As under a mount: the inode exists, but has no name any more.
        let held = File::open(&trial.file).unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        trial.watch = Watch::new(vec![path.into()]);
        trial.rename("two\n");
        let why = trial.obstacle(TICK).unwrap();
        assert!(why.contains("mount its folder"), "{why}");
        assert!((0..30).all(|_| !trial.reads()));
        // An explicit request reports it again.
        trial.watch.ask();
        assert!(trial.obstacle(TICK).is_some());
    }

    #[test]
    fn a_pipe_is_told_apart_from_what_can_be_read_again() {
        let Trial { dir, watch, .. } = Trial::new();
        assert_eq!(watch.pipe(), None);
        assert_eq!(Watch::new(vec![dir.path().to_path_buf()]).pipe(), None);
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(Watch::new(vec![pipe.clone()]).pipe(), Some(&pipe));
    }
}
