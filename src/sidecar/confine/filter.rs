//! The seccomp filter: a list of what a running sidecar calls; all else is refused.
//!
//! What is refused fails with `EPERM`; the process goes on. To kill it would make an
//! outage of the workload out of any harmless call that some version of a C library
//! makes and that this list forgot, and would protect no better: what a taken-over sidecar may do is
//! the same. Calls that a C library only tries, and has another for, fail with `ENOSYS`,
//! which makes it take the other; `clone3` is one of them, whose flags lie in memory
//! where no filter can see them. A call by another architecture's numbers kills the process.
//!
//! Calls of the data path carry no conditions: the kernel (since 5.11) then remembers
//! that they pass and doesn't run the filter for them.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::ConfineError;

/// What a confined sidecar still has to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Packets, its control socket and its files.
    Packets,
    /// Also netlink, to give the interfaces back at the end. It takes
    /// `NET_ADMIN` too, to be kept in [`drop_capabilities`](super::drop_capabilities).
    GivingBack,
}

/// Confines every thread of the process, for good, to what a running sidecar calls.
/// Descriptors that are open already, whatever they are, keep working for reading,
/// writing and waiting; what can't be had afterwards are programs, packet and raw sockets,
/// memory that is executable, namespaces, mounts, other processes, and ioctls.
///
/// # Errors
/// [`ConfineError::Seccomp`]: the kernel lacks seccomp filters (`CONFIG_SECCOMP_FILTER`),
/// the machine is neither x86-64 nor 64-bit ARM, or a thread has a filter that the others
/// haven't.
pub fn seccomp(reach: Reach) -> Result<(), ConfineError> {
    // The strictest answer of all filters counts. The second must come last:
    // it doesn't allow to install another.
    for filter in [untried()?, allowed(reach)?] {
        apply_filter_all_threads(&filter)?;
    }
    Ok(())
}

/// Calls that pass, whatever their arguments.
const FREE: &[libc::c_long] = &[
    // Packets: TAP devices, packet sockets.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    // Waiting, and waking.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    // Time and chance; mostly read without a call.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // The control socket and the sockets for names; `socket` restricts which ones.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    // Files: rules that were saved, resolv.conf and hosts, run-state taken away in the end.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_getdents64,
    libc::SYS_unlinkat,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    // Memory; what may be executable: `mmap`, `mprotect`.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads and signals; which may be begun: `clone`.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The older forms of the above that only x86-64 has; musl still calls them.
#[cfg(target_arch = "x86_64")]
const FREE_HERE: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
];
#[cfg(not(target_arch = "x86_64"))]
const FREE_HERE: &[libc::c_long] = &[];

/// Calls that C libraries and Rust's own try and do without when the kernel has never
/// heard of them. Elsewhere they pass, so that this answer is the one that counts.
const UNTRIED: &[libc::c_long] = &[
    libc::SYS_clone3,
    libc::SYS_openat2,
    libc::SYS_close_range,
    libc::SYS_faccessat2,
    libc::SYS_epoll_pwait2,
];

/// Namespaces that a thread could be begun in (uapi/linux/sched.h).
const NEW_NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// `PR_SET_VMA`, by which glibc names its memory (uapi/linux/prctl.h).
const PR_SET_VMA: libc::c_int = 0x5356_4d41;

/// The socket options that may be set: timeouts of the control socket, and those needed to give
/// interfaces back. Not `SO_MARK`, nor filters, nor anything of packet sockets.
const OPTIONS: [(libc::c_int, libc::c_int); 3] = [
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_NETLINK, libc::NETLINK_EXT_ACK),
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn untried() -> Result<BpfProgram, ConfineError> {
    let rules = UNTRIED.iter().map(|call| (*call, Vec::new())).collect();
    compile(rules, SeccompAction::Allow, errno(libc::ENOSYS))
}

fn allowed(reach: Reach) -> Result<BpfProgram, ConfineError> {
    let mut rules: Rules = FREE
        .iter()
        .chain(FREE_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    for (call, admitted) in conditional(reach).map_err(seccompiler::Error::from)? {
        rules.insert(call, admitted);
    }
    compile(rules, errno(libc::EPERM), SeccompAction::Allow)
}

/// Calls that pass with certain arguments.
fn conditional(reach: Reach) -> Result<Vec<(i64, Vec<SeccompRule>)>, BackendError> {
    let pid = std::process::id();
    let exec = u64::from(libc::PROT_EXEC.unsigned_abs());
    let thread = libc::CLONE_THREAD;
    let options = OPTIONS
        .iter()
        .map(|(level, name)| rule(vec![int(1, *level)?, int(2, *name)?]))
        .collect::<Result<_, _>>()?;
    Ok(vec![
        // Memory is never made executable, by which code that was brought in can't run.
        (libc::SYS_mmap, vec![rule(vec![mask(2, exec, 0)?])?]),
        (libc::SYS_mprotect, vec![rule(vec![mask(2, exec, 0)?])?]),
        // Threads of this process, where it is; no further processes.
        (
            libc::SYS_clone,
            vec![rule(vec![mask(
                0,
                bits(thread | NEW_NAMESPACES),
                bits(thread),
            )?])?],
        ),
        (
            libc::SYS_prctl,
            vec![
                rule(vec![int(0, libc::PR_SET_NAME)?])?,
                rule(vec![int(0, libc::PR_GET_NAME)?])?,
                rule(vec![int(0, PR_SET_VMA)?])?,
            ],
        ),
        // Limits may be read, for the size of a stack, and are not to be set.
        (
            libc::SYS_prlimit64,
            vec![rule(vec![int(0, 0)?, equal(2, 0)?])?],
        ),
        // A panic or an abort is a signal to this very process.
        (
            libc::SYS_tgkill,
            vec![rule(vec![SeccompCondition::new(
                0,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                pid.into(),
            )?])?],
        ),
        // Non-blocking sockets, the size of a datagram, whether something is a terminal.
        (
            libc::SYS_ioctl,
            vec![
                rule(vec![request(libc::FIONBIO)?])?,
                rule(vec![request(libc::FIONREAD)?])?,
                rule(vec![request(libc::TCGETS)?])?,
                rule(vec![request(libc::TIOCGWINSZ)?])?,
            ],
        ),
        (libc::SYS_setsockopt, options),
        (libc::SYS_socket, sockets(reach)?),
        (
            libc::SYS_socketpair,
            vec![rule(vec![int(0, libc::AF_UNIX)?])?],
        ),
    ])
}

/// The sockets that may be created: TCP and UDP for names; Unix; and netlink to give the
/// interfaces back.
fn sockets(reach: Reach) -> Result<Vec<SeccompRule>, BackendError> {
    // The kind shares its argument with SOCK_CLOEXEC and SOCK_NONBLOCK; SOCK_TYPE_MASK
    // (linux/net.h).
    let kind = |kind: libc::c_int| mask(1, 0xf, bits(kind));
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (stream, protocol) in [
            (libc::SOCK_STREAM, 0),
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, 0),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        ] {
            rules.push(rule(vec![
                int(0, family)?,
                kind(stream)?,
                int(2, protocol)?,
            ])?);
        }
    }
    for stream in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
        rules.push(rule(vec![int(0, libc::AF_UNIX)?, kind(stream)?])?);
    }
    let netlink: &[libc::c_int] = match reach {
        Reach::Packets => &[],
        Reach::GivingBack => &[libc::NETLINK_ROUTE, libc::NETLINK_NETFILTER],
    };
    for protocol in netlink {
        rules.push(rule(vec![int(0, libc::AF_NETLINK)?, int(2, *protocol)?])?);
    }
    Ok(rules)
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, ConfineError> {
    let here = || {
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        SeccompFilter::new(rules, otherwise, matched, arch)?.try_into()
    };
    here().map_err(|error: BackendError| ConfineError::Seccomp(error.into()))
}

fn errno(errno: libc::c_int) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions)
}

/// An argument that the kernel takes for an `int`: what is above its 32 bits counts for
/// nothing.
fn int(argument: u8, value: libc::c_int) -> Result<SeccompCondition, BackendError> {
    let (length, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
    SeccompCondition::new(argument, length, equal, bits(value))
}

/// An argument that the kernel takes whole.
fn equal(argument: u8, value: u64) -> Result<SeccompCondition, BackendError> {
    let (length, equal) = (SeccompCmpArgLen::Qword, SeccompCmpOp::Eq);
    SeccompCondition::new(argument, length, equal, value)
}

/// Some bits of an argument.
fn mask(argument: u8, mask: u64, value: u64) -> Result<SeccompCondition, BackendError> {
    let (length, masked) = (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask));
    SeccompCondition::new(argument, length, masked, value)
}

/// The request of an ioctl, whose type the C libraries don't agree on.
fn request(request: impl TryInto<libc::c_int>) -> Result<SeccompCondition, BackendError> {
    // All are below 2^16; what isn't would match no call that anybody makes.
    int(1, request.try_into().unwrap_or(-1))
}

/// The bits of an `int`, without its sign in front.
fn bits(value: libc::c_int) -> u64 {
    u64::from(u32::from_ne_bytes(value.to_ne_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_are_put_together_and_short_enough_for_the_kernel() {
        /// `BPF_MAXINSNS` (uapi/linux/bpf_common.h).
        const MOST: usize = 4096;
        for reach in [Reach::Packets, Reach::GivingBack] {
            assert!(allowed(reach).unwrap().len() < MOST);
        }
        assert!(untried().unwrap().len() < MOST);
    }

    #[test]
    fn calls_with_conditions_are_not_free_of_them_as_well() {
        for (call, rules) in conditional(Reach::Packets).unwrap() {
            assert!(
                !FREE.contains(&call) && !FREE_HERE.contains(&call),
                "{call}"
            );
            // An empty list would let the call pass whatever its arguments.
            assert!(!rules.is_empty(), "{call}");
        }
        // What is answered by ENOSYS must pass otherwise.
        assert!(UNTRIED.iter().all(|call| FREE.contains(call)));
    }
}
