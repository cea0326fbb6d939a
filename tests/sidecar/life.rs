//! The real program killed, started again and ended: what passes then, and what doesn't.

use std::time::{Duration, Instant};

use caps::{CapSet, Capability};

use super::guard::{Asker, Guard};
use super::netlink;
use super::support::{Echo, Network, address};

/// The gateway may ask.
const RULES: &str = "
security_groups:
  app:
    ingress: [ { protocol: udp, ports: 7, from: sg/friend } ]
    egress: []
  friend: { members: [172.28.0.1] }
";
const APP: u8 = 10;
/// How long answers that should not come are waited for.
const WHILE: Duration = Duration::from_millis(300);

/// Kills it at several moments, while it starts too.
pub fn nothing_passes_from_a_kill_until_the_next_run_enforces() {
    let network = Network::new();
    let app = network.container(APP);
    let stranger = network.container(30);
    let _echo = Echo::start(&app);
    let mut guard = Guard::start(&app, RULES, "app", &["--on-exit", "open"]);
    let friend = Asker::start(&network.space, address(APP));
    let stranger = Asker::start(&stranger, address(APP));
    let began = Instant::now();
    friend.is_answered();
    guard.kill();
    assert_eq!(friend.answers_for(WHILE), 0, "after the kill");
    for after in [1, 3, 6, 10, 15] {
        let started = Instant::now();
        guard.begin_again();
        std::thread::sleep(Duration::from_millis(after));
        guard.kill();
        if !guard.process.stdout.text().contains("enforcing") {
            assert_eq!(friend.answers_since(started), 0, "killed after {after} ms");
        }
    }
    assert_eq!(friend.answers_for(WHILE), 0, "after the last kill");
    assert_ne!(guard.probe(), Some(0));
    guard.begin_again();
    guard.event("enforcing");
    friend.is_answered();
    assert_eq!(guard.probe(), Some(0));
    assert_eq!(
        stranger.answers_since(began),
        0,
        "the stranger, all the time"
    );
}

pub fn a_sidecar_that_is_told_to_end_leaves_its_interface_closed_within_a_second() {
    let network = Network::new();
    let app = network.container(APP);
    let _echo = Echo::start(&app);
    let mut guard = Guard::start(&app, RULES, "app", &[]);
    let friend = Asker::start(&network.space, address(APP));
    friend.is_answered();
    let took = guard.end();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(friend.answers_for(WHILE), 0);
    assert_ne!(guard.probe(), Some(0));
    guard.begin_again();
    guard.event("enforcing");
    friend.is_answered();
}

pub fn a_sidecar_that_is_asked_to_gives_the_interface_back() {
    let network = Network::new();
    let app = network.container(APP);
    let stranger = network.container(30);
    let _echo = Echo::start(&app);
    let mut guard = Guard::start(&app, RULES, "app", &["--on-exit", "open"]);
    let stranger = Asker::start(&stranger, address(APP));
    assert_eq!(stranger.answers_for(WHILE), 0);
    let took = guard.end();
    assert!(took < Duration::from_secs(1), "{took:?}");
    stranger.is_answered();
}

pub fn a_bridge_that_goes_down_and_up_changes_nothing() {
    let network = Network::new();
    let app = network.container(APP);
    let stranger = network.container(30);
    let _echo = Echo::start(&app);
    let guard = Guard::start(&app, RULES, "app", &[]);
    let friend = Asker::start(&network.space, address(APP));
    let stranger = Asker::start(&stranger, address(APP));
    let began = Instant::now();
    friend.is_answered();
    let bridge = |up| {
        network
            .space
            .run(|| netlink::set_up(netlink::index("br0"), up))
    };
    bridge(false);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(friend.answers_for(WHILE), 0);
    bridge(true);
    friend.is_answered();
    assert_eq!(guard.probe(), Some(0));
    // And the interface itself, by the workload's own administrator.
    let own = |up| app.run(|| netlink::set_up(netlink::index("eth0"), up));
    own(false);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(friend.answers_for(WHILE), 0);
    own(true);
    friend.is_answered();
    assert_eq!(
        stranger.answers_since(began),
        0,
        "the stranger, all the time"
    );
}

pub fn a_sidecar_whose_device_went_away_says_so_and_ends() {
    let network = Network::new();
    let app = network.container(APP);
    let mut guard = Guard::start(&app, RULES, "app", &[]);
    app.run(|| netlink::delete(netlink::index("sgw-eth0")));
    assert_eq!(guard.event("gone")["interface"], "eth0");
    assert_eq!(guard.process.wait().code(), Some(3));
}

/// A pod may share its processes: whoever could read the sidecar's memory or take its descriptors
/// would have a way round.
pub fn a_workload_of_the_same_user_can_not_look_into_the_sidecar() {
    let network = Network::new();
    let app = network.container(APP);
    let guard = Guard::start(&app, RULES, "app", &[]);
    let path = format!("/proc/{}/mem", guard.process.pid());
    let look = move || {
        caps::drop(None, CapSet::Effective, Capability::CAP_SYS_PTRACE).unwrap();
        std::fs::File::open(path).map_err(|error| error.kind())
    };
    let seen = std::thread::spawn(look).join().unwrap();
    assert_eq!(
        seen.err(),
        Some(std::io::ErrorKind::PermissionDenied),
        "its memory can be read"
    );
}

pub fn a_missing_privilege_is_named_with_its_flag_and_nothing_is_touched() {
    let network = Network::new();
    let app = network.container(APP);
    let _echo = Echo::start(&app);
    for (capability, flag) in [
        (Capability::CAP_NET_ADMIN, "--cap-add NET_ADMIN"),
        (Capability::CAP_NET_RAW, "--cap-add NET_RAW"),
    ] {
        // Programs that this thread starts go without it.
        let mut guard = std::thread::scope(|scope| {
            let start = || {
                caps::drop(None, CapSet::Bounding, capability).unwrap();
                Guard::begin(&app, RULES, "app", &[])
            };
            scope.spawn(start).join().unwrap()
        });
        assert_eq!(guard.process.wait().code(), Some(3));
        guard.process.stdout.wait(flag, |line| line.contains(flag));
    }
    assert!(network.reaches(address(APP)));
}
