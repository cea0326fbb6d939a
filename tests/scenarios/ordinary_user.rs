//! The whole lab without root: all that is needed is `/dev/net/tun`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::privilege::{is_root, possible};
use crate::support::{
    Process, THREE_TIER, need, processes_of, program, succeed, unique_name, wait_until, words,
};

/// Nobody in particular.
const USER: u32 = 65534;

/// Lets everybody open the TUN driver, in a mount namespace of its own so that
/// the machine's device stays as it is.
const OPEN: &str = "set -e
mount -t tmpfs tmpfs \"$1\"
mknod \"$1/tun\" c 10 200
chmod 666 \"$1/tun\"
mount --bind \"$1/tun\" /dev/net/tun
shift
exec \"$@\"";

/// Becomes [`USER`].
const BECOME: [&str; 6] = [
    "setpriv",
    "--reuid",
    "65534",
    "--regid",
    "65534",
    "--clear-groups",
];

/// Connects to a host's port, by bash alone. Where packets pass the connection
/// is refused, as nobody listens.
const CONNECT: &str = "exec 3<>/dev/tcp/$0/$1";

#[test]
fn an_ordinary_user_runs_a_lab() {
    if !possible() {
        return;
    }
    for (program, package) in [
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
        ("mount", "mount"),
        ("bash", "bash"),
    ] {
        need(program, package);
    }
    // Whoever isn't root is an ordinary user already.
    let root = is_root();
    let dir = tempfile::Builder::new()
        .prefix("sgwall-scenario-")
        .tempdir()
        .unwrap();
    // The build directory may be closed to others.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let sgwall = dir.path().join("sgwall");
    fs::copy(program(), &sgwall).unwrap();
    fs::set_permissions(&sgwall, fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.path().join("lab.yaml");
    fs::write(&config, THREE_TIER).unwrap();
    let device = dir.path().join("device");
    fs::create_dir(&device).unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    if root {
        chown(&state, Some(USER), Some(USER)).unwrap();
    }

    let name = unique_name();
    let as_user = |before: &[&str], arguments: &[&str]| {
        let become_user: &[&str] = if root { &BECOME } else { &[] };
        let mut words = [before, become_user, &[sgwall.to_str().unwrap()], arguments].concat();
        let mut command = Command::new(words.remove(0));
        command
            .args(words)
            .current_dir("/")
            .env("SGWALL_STATE_DIR", &state)
            .env_remove("XDG_RUNTIME_DIR")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    };
    let open = [
        "unshare",
        "--mount",
        "--",
        "sh",
        "-c",
        OPEN,
        "sh",
        device.to_str().unwrap(),
    ];
    let mut run = as_user(
        if root { &open } else { &[] },
        &[
            "run",
            config.to_str().unwrap(),
            "--name",
            &name,
            "--format",
            "json",
        ],
    );
    let mut run = Process::spawn(&mut run);
    run.stdout.wait(
        "enforcing; user namespaces may be switched off here",
        |line| line.contains("\"event\":\"enforcing\""),
    );

    let sgwall = |arguments: &[&str]| {
        let mut command = as_user(&[], arguments);
        command.env("SGWALL_LAB", &name);
        command
    };
    let status = succeed(&mut sgwall(&["status"]));
    assert!(
        status.contains("enforcing") && status.contains("web-1"),
        "{status}"
    );
    let attempt = |seconds, from, to, port| {
        let connect = ["timeout", seconds, "bash", "-c", CONNECT, to, port];
        sgwall(&[&["exec", from, "--"], connect.as_slice()].concat())
            .output()
            .unwrap()
    };
    for (from, to, port) in [("lb", "web-1", "8080"), ("client", "lb", "443")] {
        let passes = attempt("20", from, to, port);
        let text = String::from_utf8_lossy(&passes.stderr);
        assert!(text.contains("Connection refused"), "{}", words(&passes));
    }
    let denied = attempt("1", "lb", "db", "5432");
    assert_eq!(denied.status.code(), Some(124), "{}", words(&denied));
    let status = succeed(&mut sgwall(&["status"]));
    assert!(status.contains("no_ingress_rule"), "{status}");

    let inside = sgwall(&["exec", "db", "--", "sh", "-c", "echo in; exec sleep 1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("it is inside", || !processes_of(&name).is_empty());
    run.signal(Signal::SIGTERM);
    let ended = run.wait();
    assert_eq!(ended.code(), Some(0), "{}", run.stderr.text());
    let inside = inside.wait_with_output().unwrap();
    assert!(
        inside.status.code().is_none(),
        "it was ended: {}",
        words(&inside)
    );
    assert!(processes_of(&name).is_empty(), "{:?}", processes_of(&name));
    assert!(!state.join(&name).exists());
}
