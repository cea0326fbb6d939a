//! The whole lab without root: all that is needed is `/dev/net/tun`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::{
    Process, SGWALL, THREE_TIER, namespaces, need, processes_of, succeed, unique_name, words,
};

/// Nobody in particular.
const USER: u32 = 65534;

/// Lets user 65534 open the TUN driver, in a mount namespace of its own so
/// that the machine's device stays as it is, and becomes that user.
const BECOME: &str = "set -e
mount -t tmpfs tmpfs \"$1\"
mknod \"$1/tun\" c 10 200
chmod 666 \"$1/tun\"
mount --bind \"$1/tun\" /dev/net/tun
shift
exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";

#[test]
fn an_ordinary_user_runs_a_lab() {
    if !namespaces() {
        return;
    }
    for program in ["unshare", "setpriv", "mount"] {
        need(program, "util-linux");
    }
    need("ping", "iputils-ping");
    let dir = tempfile::Builder::new()
        .prefix("sgwall-scenario-")
        .tempdir()
        .unwrap();
    // The build directory may be closed to others.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("sgwall");
    fs::copy(SGWALL, &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.path().join("lab.yaml");
    fs::write(&config, THREE_TIER).unwrap();
    let device = dir.path().join("device");
    fs::create_dir(&device).unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&state, Some(USER), Some(USER)).unwrap();

    let name = unique_name();
    let as_user = |command: &mut Command| {
        command
            .current_dir("/")
            .env("SGWALL_STATE_DIR", &state)
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null());
    };
    let mut run = Command::new("unshare");
    run.args(["-m", "--", "sh", "-c", BECOME, "sh"])
        .arg(&device)
        .arg(&program)
        .arg("run")
        .arg(&config)
        .args(["--name", &name, "--format", "json"]);
    as_user(&mut run);
    let mut run = Process::spawn(&mut run);
    run.stdout.wait(
        "enforcing; user namespaces may be switched off here",
        |line| line.contains("\"event\":\"enforcing\""),
    );

    let sgwall = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&program)
            .args(arguments)
            .env("SGWALL_LAB", &name);
        as_user(&mut command);
        command
    };
    let status = succeed(&mut sgwall(&["status"]));
    assert!(
        status.contains("enforcing") && status.contains("web-1"),
        "{status}"
    );
    let ping = |from, to| ["exec", from, "--", "ping", "-n", "-c", "1", "-W", "2", to];
    succeed(&mut sgwall(&ping("lb", "web-1")));
    succeed(&mut sgwall(&ping("client", "lb")));
    let denied = sgwall(&ping("web-1", "db")).output().unwrap();
    assert_eq!(denied.status.code(), Some(1), "{}", words(&denied));
    let status = succeed(&mut sgwall(&["status"]));
    assert!(status.contains("no_ingress_rule"), "{status}");

    let inside = sgwall(&["exec", "db", "--", "sh", "-c", "echo in; exec sleep 1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    crate::support::wait_until("it is inside", || !processes_of(&name).is_empty());
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
