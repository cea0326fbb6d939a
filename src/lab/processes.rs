//! The processes inside a lab's namespaces.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;

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
                // A stopped process takes the request only once it goes on.
                signal(pid, chosen, &[Signal::SIGTERM, Signal::SIGCONT]);
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
            signal(pid, chosen, &[Signal::SIGKILL]);
        }
        thread::sleep(PAUSE);
    }
}

/// Signals a process if `chosen` still selects it. A pidfd is held during the check, so a signal
/// never reaches another process that was given the same number meanwhile.
fn signal(pid: i32, chosen: &dyn Fn(i32) -> bool, signals: &[Signal]) {
    let process = match open(pid) {
        Ok(process) => process,
        Err(error) => {
            if error.raw_os_error() != Some(nix::libc::ESRCH) {
                tracing::warn!(pid, %error, "can't open a process to end it");
            }
            return;
        }
    };
    if !chosen(pid) {
        return;
    }
    for &signal in signals {
        if let Err(error) = send(&process, signal) {
            tracing::debug!(pid, %signal, %error, "a process can't be signalled");
        }
    }
}

/// Opens a pidfd for the process that has the number now (pidfd_open(2), Linux 5.3).
#[expect(unsafe_code, reason = "neither std nor nix opens processes")]
fn open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Signals the process behind a pidfd (pidfd_send_signal(2)).
#[expect(unsafe_code, reason = "neither std nor nix signals by descriptor")]
fn send(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the descriptor is open, and without a `siginfo_t` no memory is read.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal as libc::c_int,
            none,
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
    fn a_number_that_is_another_process_s_by_now_is_not_signalled() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        // Selected when it is found, but no longer when it is checked before the signal.
        let looks = std::cell::Cell::new(0);
        end_all(&|found| {
            found == pid && {
                looks.set(looks.get() + 1);
                looks.get() == 1
            }
        });
        assert!(child.try_wait().unwrap().is_none(), "it was signalled");
        assert!(looks.get() > 1);
        // The selected process ends.
        end_all(&|found| found == pid && child_runs(pid));
        assert!(!child.wait().unwrap().success());
    }

    /// Returns true while the child runs. A child that has ended keeps its number until it is
    /// waited for.
    fn child_runs(pid: i32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    }

    #[test]
    fn this_process_is_never_chosen() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!select(&|pid| pid == me).contains(&me));
    }
}
