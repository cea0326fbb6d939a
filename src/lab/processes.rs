//! The processes inside a lab's namespaces.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a process has between being asked and being made to end.
const GRACE: Duration = Duration::from_secs(1);
/// How long to wait for killed processes to be gone.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often to look again.
const PAUSE: Duration = Duration::from_millis(10);

/// Ends every process that `chosen` picks, this one never: first they are
/// asked to, then made to. Looks again until none is left, for they may start
/// others meanwhile.
pub(super) fn end_all(chosen: &dyn Fn(i32) -> bool) {
    let asked = Instant::now();
    let mut told: Vec<i32> = Vec::new();
    loop {
        let found = select(chosen);
        if found.is_empty() {
            return;
        }
        if asked.elapsed() >= GRACE {
            break;
        }
        for &pid in &found {
            if !told.contains(&pid) {
                told.push(pid);
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                // A stopped process takes the request only once it goes on.
                let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            }
        }
        thread::sleep(PAUSE);
    }
    let forced = Instant::now();
    loop {
        let found = select(chosen);
        if found.is_empty() {
            return;
        }
        if forced.elapsed() >= PATIENCE {
            tracing::warn!(pids = ?found, "processes in the lab's namespaces won't end");
            return;
        }
        for &pid in &found {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(PAUSE);
    }
}

/// Whether the process is in one of the network namespaces.
pub(super) fn is_in(pid: i32, inodes: &[u64]) -> bool {
    fs::read_link(format!("/proc/{pid}/ns/net"))
        .ok()
        .and_then(|link| parse_namespace(link.to_str()?))
        .is_some_and(|inode| inodes.contains(&inode))
}

/// Whether the process was started by `sgwall exec` for this lab.
pub(super) fn says_lab(pid: i32, lab: &str) -> bool {
    let wanted = format!("{}={lab}", super::LAB_VARIABLE);
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
        environ
            .split(|&byte| byte == 0)
            .any(|entry| entry == wanted.as_bytes())
    })
}

fn select(chosen: &dyn Fn(i32) -> bool) -> Vec<i32> {
    let me = std::process::id();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &i32| u32::try_from(pid).is_ok_and(|pid| pid != me) && chosen(pid))
        .collect()
}

/// `net:[4026531840]`.
fn parse_namespace(link: &str) -> Option<u64> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_links_are_read() {
        assert_eq!(parse_namespace("net:[4026531840]"), Some(4_026_531_840));
        assert_eq!(parse_namespace("mnt:[4026531840]"), None);
        assert_eq!(parse_namespace("net:[]"), None);
    }

    #[test]
    fn this_process_is_never_chosen() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!select(&|pid| pid == me).contains(&me));
    }
}
