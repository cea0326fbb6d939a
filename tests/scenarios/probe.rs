//! `sgwall status --probe`, as container runtimes ask it; and where it finds the state of
//! a container that has nothing to write to but shared memory.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;

use crate::net::{self, Seen};
use crate::privilege::namespaces;
use crate::support::{DUAL_STACK, Lab, THREE_TIER, at, need, program, wait_until, words};

#[test]
fn a_probe_says_ready_while_every_interface_is_proven_and_not_once_one_is_gone() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let (code, line) = probe(&lab, &[]);
    assert_eq!(code, Some(0), "{line}");
    assert!(
        line.starts_with("ready: ") && line.contains("interfaces proven"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
    let (code, line) = probe(&lab, &["--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((code, &json["ready"]), (Some(0), &true.into()), "{line}");
    assert_eq!(json["interfaces"], json["proven"], "{line}");
    assert_eq!(lab.status()["ready"], true);

    // A device goes; its link breaks.
    lab.inside("db", || {
        let mut message = LinkMessage::default();
        message.header.index = if_nametoindex("eth0").unwrap();
        ask(RouteNetlinkMessage::DelLink(message));
    });
    let gone = lab.event("gone");
    assert_eq!(
        (&gone["entity"], &gone["device"]),
        (&"db".into(), &"eth0".into())
    );
    wait_until("the link is noticed to be gone", || {
        probe(&lab, &[]).0 == Some(1)
    });
    let (_, line) = probe(&lab, &[]);
    assert!(
        line.starts_with("not ready: ") && line.contains("db: UNENFORCED"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
    let (code, line) = probe(&lab, &["--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((code, &json["ready"]), (Some(1), &false.into()), "{line}");
    assert_eq!(lab.status()["ready"], false);
    lab.down();
}

#[test]
fn a_device_that_is_set_down_and_up_inside_has_its_routes_back() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(DUAL_STACK);
    let app: [IpAddr; 2] = {
        let status = lab.status();
        let addresses = at(&status, "app")["addresses"].clone();
        [0, 1].map(|n| addresses[n].as_str().unwrap().parse().unwrap())
    };
    let reaches = |to| lab.inside("edge", || net::tcp(to, 8080, Duration::from_secs(5)));
    assert_eq!(app.map(reaches), [Seen::Refused, Seen::Refused]);
    let set = |up: bool| {
        lab.inside("edge", || {
            let mut message = LinkMessage::default();
            message.header.index = if_nametoindex("eth0").unwrap();
            message.header.change_mask = LinkFlags::Up;
            message.header.flags.set(LinkFlags::Up, up);
            ask(RouteNetlinkMessage::SetLink(message));
        });
    };
    set(false);
    let event = lab.event("down");
    assert_eq!(
        (&event["entity"], &event["device"]),
        (&"edge".into(), &"eth0".into())
    );
    wait_until("the probe says so", || probe(&lab, &[]).0 == Some(1));
    let (_, line) = probe(&lab, &[]);
    assert!(line.contains("ip link set dev eth0 up"), "{line}");
    set(true);
    assert_eq!(lab.event("up")["entity"], "edge");
    wait_until("the probe says so", || probe(&lab, &[]).0 == Some(0));
    assert_eq!(app.map(reaches), [Seen::Refused, Seen::Refused]);
    lab.down();
}

/// Sends a netlink request in the namespace of the calling thread.
fn ask(message: RouteNetlinkMessage) {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.send(&bytes, 0).unwrap();
    // The kernel answers when the change is done.
    socket.recv_from_full().unwrap();
}

#[test]
fn a_probe_of_what_does_not_run_or_hangs_says_so_within_two_seconds() {
    if !namespaces!() {
        return;
    }
    let mut lab = Lab::up(THREE_TIER);
    lab.process.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let (code, line) = probe(&lab, &[]);
    let took = began.elapsed();
    lab.process.signal(Signal::SIGCONT);
    assert_eq!(code, Some(3), "{line}");
    assert!(line.contains("does not answer within 2 s"), "{line}");
    assert!(took >= Duration::from_secs(2), "{took:?}");
    assert!(took < Duration::from_secs(4), "{took:?}");

    lab.end(Signal::SIGTERM);
    let (code, line) = probe(&lab, &[]);
    assert_eq!(code, Some(3), "{line}");
    assert!(line.starts_with("not ready: no lab"), "{line}");
    let (code, line) = probe(&lab, &["--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((code, &json["ready"]), (Some(3), &false.into()), "{line}");
}

/// Runs in a mount namespace whose `/run` and `/tmp` are read-only. `$1` is the program;
/// the lab file comes from standard input.
const READ_ONLY: &str = r#"
set -e
# It may be in a directory that is about to be hidden.
exec 9< "$1"
sgwall=/proc/self/fd/9
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for dir in /run /tmp; do
    mount -t tmpfs -o ro tmpfs $dir
done
unset XDG_RUNTIME_DIR SGWALL_STATE_DIR SGWALL_LAB
cat > /dev/shm/lab.yaml

$sgwall run /dev/shm/lab.yaml &
run=$!
trap 'kill $run 2>/dev/null' EXIT
tries=0
until $sgwall status --probe > /dev/shm/said 2>&1; do
    tries=$((tries + 1))
    test $tries -lt 300 || { cat /dev/shm/said; exit 1; }
    sleep 0.1
done
cat /dev/shm/said
test -S /dev/shm/sgwall/lab/control.sock
test "$(stat -c %a /dev/shm/sgwall)" = 700

# As from another container of a pod: the same user, and another PID namespace.
if unshare --pid --fork $sgwall status --probe > /dev/shm/said; then exit 1; fi
cat /dev/shm/said
grep -q 'not in this container' /dev/shm/said

kill $run
wait $run
trap - EXIT
test ! -e /dev/shm/sgwall

refused() {
    if $sgwall run /dev/shm/lab.yaml > /dev/shm/said 2>&1; then exit 1; fi
    cat /dev/shm/said
    grep -q "$1" /dev/shm/said
}
# What somebody has prepared there is not used.
mkdir /dev/shm/elsewhere
ln -s elsewhere /dev/shm/sgwall
refused 'it is not a directory'
rm /dev/shm/sgwall
mkdir -m 777 /dev/shm/sgwall
refused 'others may write to it'
rmdir /dev/shm/sgwall
# Nor is a place where others may take away what is somebody else's.
chmod 777 /dev/shm
refused 'mount a tmpfs'
echo all is well
"#;

#[test]
fn with_nothing_else_to_write_to_state_is_kept_in_shared_memory_and_only_where_that_is_safe() {
    if !namespaces!() {
        return;
    }
    need("unshare", "util-linux");
    need("mount", "mount");
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", READ_ONLY, "sh"])
        .arg(program())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), THREE_TIER.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = words(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("all is well"), "{said}");
}

fn probe(lab: &Lab, arguments: &[&str]) -> (Option<i32>, String) {
    let output = lab.sgwall("status").arg("--probe").args(arguments).output();
    let output = output.unwrap();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.stderr.is_empty(), "{}", words(&output));
    (output.status.code(), line)
}
