//! What a sidecar confines itself to: what it does goes on, all else is refused. Tried in
//! processes of their own, because a filter stays for good.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use sgwall::config;
use sgwall::engine::{Appliance, Options};
use sgwall::lab::control::{Client, Request, Response, Server};
use sgwall::lab::{self, Session};
use sgwall::link::Link;
use sgwall::model::{InterfaceIx, Model};
use sgwall::sidecar::confine::{Reach, check, drop_capabilities, seccomp};
use sgwall::sidecar::dns::Family;
use sgwall::sidecar::members::Answer;
use sgwall::sidecar::resolver::Resolver;

use crate::privilege::namespaces;
use crate::support::{PATIENCE, unique_name, words};

/// Which of the roles below a process plays.
const ROLE: &str = "SGWALL_TEST_CONFINED";
/// The lab that a role makes.
const LAB: &str = "SGWALL_TEST_CONFINED_LAB";

/// Two hosts, of which one is a resolver.
const TEXT: &str = "
vpc: { cidr: [10.31.0.0/16] }
subnets: { all: { cidr: [10.31.0.0/24] } }
security_groups:
  open: { ingress: [ { protocol: udp, ports: 53-99, from: 10.31.0.0/16 } ] }
entities:
  asks: { kind: ec2, subnet: all, addresses: [10.31.0.10], security_groups: [open] }
  answers: { kind: ec2, subnet: all, addresses: [10.31.0.20], security_groups: [open] }
";

#[test]
fn a_confined_process_moves_packets_answers_reloads_and_resolves_names() {
    if !namespaces!() {
        return;
    }
    let name = unique_name();
    play("works", &name);
    // It could not take its lab down; the next of that name does.
    lab::prepare().unwrap();
    drop(Session::start(&name).unwrap());
}

#[test]
fn a_confined_process_gets_no_programs_raw_sockets_namespaces_mounts_or_executable_memory() {
    if !namespaces!() {
        return;
    }
    play("is-refused", "");
}

#[test]
fn who_lacks_privileges_is_told_all_of_them_and_the_flags_that_grant_them() {
    if !namespaces!() {
        return;
    }
    // In this process nothing is missing.
    check().unwrap();
    play("lacks", "");
}

fn lacks() {
    drop_capabilities(&[]).unwrap();
    let said = check().unwrap_err().to_string();
    for flag in ["--cap-add NET_ADMIN", "--cap-add NET_RAW"] {
        assert!(said.contains(flag), "{flag} is not in: {said}");
    }
}

/// Runs a role in a process of its own.
fn play(role: &str, lab: &str) {
    let output = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            "confine::plays_a_role",
            "--ignored",
            "--nocapture",
        ])
        .env(ROLE, role)
        .env(LAB, lab)
        .output()
        .unwrap();
    let passed = output.status.success() && words(&output).contains("1 passed");
    assert!(passed, "{role}: {}", words(&output));
}

#[test]
#[ignore = "the other tests start it in a process of its own"]
fn plays_a_role() {
    match env::var(ROLE).as_deref() {
        Ok("works") => works(&env::var(LAB).unwrap()),
        Ok("is-refused") => is_refused(),
        Ok("lacks") => lacks(),
        _ => {}
    }
}

fn works(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lab.yaml");
    fs::write(&file, TEXT).unwrap();
    let load = || config::load_with(&file, &[], config::Options::default()).unwrap();
    let model = load().model;
    lab::prepare().unwrap();
    let lab = lab::Lab::up(Session::start(name).unwrap(), &model).unwrap();
    let resolver = lab.namespaces()[1]
        .run(|| UdpSocket::bind("10.31.0.20:53"))
        .unwrap()
        .unwrap();
    thread::spawn(move || answer_questions(&resolver));

    // These have what they need from before the capabilities go: the proof's sockets are
    // in namespaces that only a lab has, and names are looked up where the resolver is.
    let (ask, asked) = mpsc::channel();
    let (confined, resolv_conf) = (Barrier::new(2), dir.path().join("resolv.conf"));
    thread::scope(|scope| {
        scope.spawn(|| open_sockets(&lab, &model, asked));
        let asks = scope.spawn(|| {
            lab.namespaces()[0].enter_thread().unwrap();
            look_up(&resolv_conf, &confined);
        });
        // The looker-up is where it has to be.
        confined.wait();
        drop_capabilities(&[]).unwrap();
        let links = lab.links().into_iter().map(|link| link as Arc<dyn Link>);
        let options = Options::default();
        let appliance = Appliance::start(model.clone(), links.collect(), options, |at, address| {
            let (reply, answer) = mpsc::channel();
            ask.send((at, address, reply)).unwrap();
            answer.recv().unwrap()
        });
        drop(ask);
        let appliance = Arc::new(appliance.unwrap());
        let shown = Arc::clone(&appliance);
        let _serving = Server::bind(lab.session())
            .unwrap()
            .serve(move |_| Response::from(serde_json::to_value(shown.status()).unwrap()))
            .unwrap();
        seccomp(Reach::Packets).unwrap();
        confined.wait();
        asks.join().unwrap();

        // Its control socket answers, from a thread that is started for it.
        let mut client = Client::connect(&lab.session().as_running()).unwrap();
        let (status, _) = client.call(&Request::new("status")).unwrap();
        assert!(status["interfaces"][1]["packets_in"].as_u64() > Some(0));
        assert_eq!(status["ready"], true, "{status}");

        // Saved rules are read and put in force.
        let before = appliance.status().policy.generation;
        let mut changed = load().model;
        changed
            .group_mut(sgwall::model::GroupIx::new(0))
            .description = "changed".into();
        let replaced = appliance.replace(changed).unwrap();
        assert_eq!(replaced, before + 1);
    });
    // What it can't do under the filter is to take the lab down.
    std::mem::forget(lab);
}

type Wanted = (InterfaceIx, SocketAddr, mpsc::Sender<io::Result<UdpSocket>>);

/// Opens sockets in namespaces for a thread that may not enter them.
fn open_sockets(lab: &lab::Lab, model: &Model, asked: mpsc::Receiver<Wanted>) {
    for (at, address, reply) in asked {
        let namespace = lab.namespace(model.interfaces[at.ix()].entity);
        let opened = namespace.run(move || UdpSocket::bind(address)).unwrap();
        reply.send(opened).unwrap();
    }
}

/// Looks a name up over the network, and listens to a packet socket, once the process is
/// confined.
fn look_up(resolv_conf: &Path, confined: &Barrier) {
    fs::write(resolv_conf, "nameserver 10.31.0.20\n").unwrap();
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let (none, flags) = (None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC);
    mount(none, "/", none, flags, none).unwrap();
    let onto = fs::canonicalize("/etc/resolv.conf").unwrap();
    mount(Some(resolv_conf), &onto, none, MsFlags::MS_BIND, none).unwrap();
    let wire = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .unwrap();
    setsockopt(&wire, sockopt::ReceiveTimeout, &TimeVal::new(30, 0)).unwrap();
    confined.wait();
    drop_capabilities(&[]).unwrap();
    confined.wait();

    // One name from the resolver, and one from /etc/hosts.
    let names = ["db.example", "localhost"].map(str::to_owned).to_vec();
    let resolver = Resolver::start(PATIENCE, vec![Family::V4], names).unwrap();
    let found: BTreeMap<String, Vec<IpAddr>> = (0..2)
        .map(|_| match resolver.answers.recv_timeout(PATIENCE).unwrap() {
            (name, Answer::Found(found), _) => (name, found.iter().map(|it| it.0).collect()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(found["db.example"], [IpAddr::from([192, 0, 2, 7])]);
    assert!(found["localhost"].contains(&Ipv4Addr::LOCALHOST.into()));
    let socket = UdpSocket::bind("10.31.0.10:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&question(), "10.31.0.20:53").unwrap();
    assert_eq!(socket.recv(&mut [0; 512]).unwrap(), question().len() + 16);
    // A packet socket that was there before heard all that.
    assert!(recv(wire.as_raw_fd(), &mut [0; 512], MsgFlags::empty()).unwrap() > 0);
}

fn is_refused() {
    let pid = std::process::id() as usize;
    let exec = (libc::PROT_READ | libc::PROT_EXEC) as usize;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    let none = usize::MAX;
    // Made so that without a filter none of them fails by EPERM, nor does any harm.
    let calls: &[(&str, c_long, [usize; 4])] = &[
        ("execve", libc::SYS_execve, [0, 0, 0, 0]),
        ("execveat", libc::SYS_execveat, [none, 0, 0, 0]),
        (
            "fork",
            libc::SYS_clone,
            [flags(libc::CLONE_SIGHAND), 0, 0, 0],
        ),
        (
            "a thread in another network namespace",
            libc::SYS_clone,
            [flags(libc::CLONE_THREAD | libc::CLONE_NEWNET), 0, 0, 0],
        ),
        ("unshare", libc::SYS_unshare, [none, 0, 0, 0]),
        ("setns", libc::SYS_setns, [none, 0, 0, 0]),
        ("mount", libc::SYS_mount, [0, 0, 0, 0]),
        ("move_mount", libc::SYS_move_mount, [none, 0, none, 0]),
        ("umount2", libc::SYS_umount2, [0, 0, 0, 0]),
        ("chroot", libc::SYS_chroot, [0, 0, 0, 0]),
        ("ptrace", libc::SYS_ptrace, [none, none, 0, 0]),
        (
            "process_vm_readv",
            libc::SYS_process_vm_readv,
            [none, 0, 0, 0],
        ),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [none, 0, 0, 0]),
        ("kill", libc::SYS_kill, [pid, 0, 0, 0]),
        ("tgkill of others", libc::SYS_tgkill, [1, none, 0, 0]),
        ("bpf", libc::SYS_bpf, [none, 0, 0, 0]),
        ("init_module", libc::SYS_init_module, [0, 0, 0, 0]),
        ("mknodat", libc::SYS_mknodat, [none, 0, 0, 0]),
        ("capset", libc::SYS_capset, [0, 0, 0, 0]),
        ("setresuid", libc::SYS_setresuid, [none, none, none, 0]),
        ("personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0]),
        (
            "prctl",
            libc::SYS_prctl,
            [flags(libc::PR_CAPBSET_READ), 0, 0, 0],
        ),
        ("prlimit64", libc::SYS_prlimit64, [0, 7, 1, 0]),
        ("listen", libc::SYS_listen, [none, 0, 0, 0]),
        (
            "mmap of executable memory",
            libc::SYS_mmap,
            [0, 4096, exec, anonymous],
        ),
        (
            "mprotect to executable",
            libc::SYS_mprotect,
            [0, 0, exec, 0],
        ),
        (
            "a packet socket",
            libc::SYS_socket,
            [flags(libc::AF_PACKET), flags(libc::SOCK_RAW), 0, 0],
        ),
        (
            "a packet socket without Ethernet headers",
            libc::SYS_socket,
            [flags(libc::AF_PACKET), flags(libc::SOCK_DGRAM), 0, 0],
        ),
        (
            "a raw socket",
            libc::SYS_socket,
            [flags(libc::AF_INET), flags(libc::SOCK_RAW), 1, 0],
        ),
        (
            "a raw IPv6 socket",
            libc::SYS_socket,
            [flags(libc::AF_INET6), flags(libc::SOCK_RAW), 58, 0],
        ),
        (
            "nf_tables",
            libc::SYS_socket,
            [
                flags(libc::AF_NETLINK),
                flags(libc::SOCK_RAW),
                flags(libc::NETLINK_NETFILTER),
                0,
            ],
        ),
        (
            "SO_MARK",
            libc::SYS_setsockopt,
            [none, flags(libc::SOL_SOCKET), flags(libc::SO_MARK), 0],
        ),
        // TUNSETIFF (uapi/linux/if_tun.h).
        ("a TAP device", libc::SYS_ioctl, [none, 0x4004_54ca, 0, 0]),
    ];
    for (name, call, arguments) in calls {
        assert_ne!(result(*call, arguments), Err(Errno::EPERM), "{name}");
    }
    seccomp(Reach::Packets).unwrap();
    for (name, call, arguments) in calls {
        assert_eq!(result(*call, arguments), Err(Errno::EPERM), "{name}");
    }
    // On threads that are started now as well, which can be.
    let (name, call, arguments) = calls[0];
    let there = thread::spawn(move || result(call, &arguments));
    assert_eq!(there.join().unwrap(), Err(Errno::EPERM), "{name}");
    let program = Command::new("/bin/true").spawn().map(|_| ());
    assert_eq!(
        program.map_err(|error| error.raw_os_error()),
        Err(Some(libc::EPERM))
    );
    assert_eq!(
        result(libc::SYS_clone3, &[0; 4]),
        Err(Errno::ENOSYS),
        "clone3, whose flags can't be seen"
    );
}

/// Makes a call with these arguments; the fifth and sixth are 0.
#[expect(unsafe_code, reason = "calls that no library makes so")]
fn result(call: c_long, [a, b, c, d]: &[usize; 4]) -> Result<c_long, Errno> {
    // SAFETY: the calls above have no effect on memory that anybody uses: their pointers
    // are null or invalid, which the kernel refuses, or they make memory of their own.
    Errno::result(unsafe { libc::syscall(call, *a, *b, *c, *d, 0usize, 0usize) })
}

fn flags(value: c_int) -> usize {
    value.try_into().unwrap()
}

/// A DNS question (RFC 1035 §4) for the address of `db.example`.
fn question() -> Vec<u8> {
    let mut message = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    message.extend(b"\x02db\x07example\x00");
    message.extend([0, 1, 0, 1]);
    message
}

/// Answers every question for an IPv4 address with 192.0.2.7, and others with nothing.
fn answer_questions(socket: &UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((length, asker)) = socket.recv_from(&mut buffer) {
        // The name is followed by type and class.
        let name = 12 + buffer[12..length].iter().position(|&b| b == 0).unwrap();
        let end = name + 5;
        let of_v4 = buffer[name + 1..end] == [0, 1, 0, 1];
        let mut answer = buffer[..end].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(of_v4), 0, 0, 0, 0]);
        if of_v4 {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 4, 0, 4, 192, 0, 2, 7]);
        }
        socket.send_to(&answer, asker).unwrap();
    }
}
