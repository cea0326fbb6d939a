//! Real namespaces, real devices: what the lab floor promises.
//!
//! Runs as root, and as an ordinary user who may open `/dev/net/tun`. Where
//! neither is to be had it fails, unless `SGWALL_TESTS_WITHOUT_NAMESPACES=1`.
//!
//! It has a `main` of its own because [`prepare`] must run before any thread;
//! and it starts itself again, in a role, where a test needs a process that
//! can be killed or belongs to another user.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use sgwall::lab::control::{Server, Serving};
use sgwall::lab::{
    CommandEvent, Lab, LabError, Privilege, STATE_DIR_VARIABLE, Session, Stream, prepare,
};
use sgwall::link::{Link, TunLink};
use sgwall::model::{EntityIx, EntityKind, Model};

#[path = "common/lab.rs"]
mod common;

use common::{
    add_entity, add_interface, empty_model, many_entities, three_entities, udp4, unique_name,
};

const ROLE: &str = "SGWALL_TEST_ROLE";
const NAME: &str = "SGWALL_TEST_LAB";
const SGWALL: &str = "SGWALL_TEST_PROGRAM";
const NOBODY: u32 = 65534;

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    (
        "each_entity_has_its_namespace_device_and_routes",
        each_entity_has_its_namespace_device_and_routes,
    ),
    (
        "a_frame_from_a_socket_reaches_the_link",
        a_frame_from_a_socket_reaches_the_link,
    ),
    (
        "a_packet_on_the_link_reaches_a_socket",
        a_packet_on_the_link_reaches_a_socket,
    ),
    ("an_idle_lab_sends_nothing", an_idle_lab_sends_nothing),
    (
        "replies_leave_by_the_interface_that_has_their_source",
        replies_leave_by_the_interface_that_has_their_source,
    ),
    ("down_leaves_nothing", down_leaves_nothing),
    (
        "down_ends_the_processes_inside_and_no_others",
        down_ends_the_processes_inside_and_no_others,
    ),
    (
        "a_failure_half_way_leaves_nothing",
        a_failure_half_way_leaves_nothing,
    ),
    ("a_panic_leaves_nothing", a_panic_leaves_nothing),
    ("a_lab_has_one_owner", a_lab_has_one_owner),
    (
        "two_labs_whose_names_run_together_do_not_mix",
        two_labs_whose_names_run_together_do_not_mix,
    ),
    (
        "a_panic_in_a_namespace_is_an_error",
        a_panic_in_a_namespace_is_an_error,
    ),
    (
        "what_a_killed_lab_left_is_cleaned_by_the_next",
        what_a_killed_lab_left_is_cleaned_by_the_next,
    ),
    ("exec_runs_a_command_inside", exec_runs_a_command_inside),
    ("exec_says_what_is_wrong", exec_says_what_is_wrong),
    (
        "run_commands_are_heard_and_end_with_the_lab",
        run_commands_are_heard_and_end_with_the_lab,
    ),
    (
        "an_ordinary_user_has_labs_too",
        an_ordinary_user_has_labs_too,
    ),
    (
        "two_hundred_entities_come_up_quickly",
        two_hundred_entities_come_up_quickly,
    ),
];

fn main() -> ExitCode {
    match std::env::var(ROLE).as_deref() {
        Ok("keeper") => return keep_a_lab(),
        Ok("other-user") => return be_another_user(),
        _ => {}
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = TESTS.iter().filter(|(name, _)| {
        let matches = |filter: &&String| {
            if exact {
                name == filter
            } else {
                name.contains(filter.as_str())
            }
        };
        filters.is_empty() || filters.iter().any(matches)
    });
    if arguments.iter().any(|argument| argument == "--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Err(error) = prepare() {
        eprintln!("NO NAMESPACES HERE, so no test of real packets can run: {error}");
        if std::env::var("SGWALL_TESTS_WITHOUT_NAMESPACES").as_deref() == Ok("1") {
            eprintln!("SKIPPED ALL of tests/lab.rs, as SGWALL_TESTS_WITHOUT_NAMESPACES=1 asks");
            return ExitCode::SUCCESS;
        }
        eprintln!("set SGWALL_TESTS_WITHOUT_NAMESPACES=1 to go without these tests");
        return ExitCode::FAILURE;
    }
    let failed: Vec<&str> = chosen
        .filter(|(_, test)| catch_unwind(test).is_err())
        .map(|(name, _)| *name)
        .collect();
    // Names are printed by `passed` as the tests go; here the sum.
    if failed.is_empty() {
        println!("test result: ok");
        ExitCode::SUCCESS
    } else {
        println!("test result: FAILED: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}

fn each_entity_has_its_namespace_device_and_routes() {
    let model = three_entities();
    let lab = up(&model);
    for (i, entity) in model.entities.iter().enumerate() {
        let namespace = lab.namespace(EntityIx::new(i));
        assert_eq!(namespace.entity(), entity.name);
        assert_eq!(
            namespace.path().is_some(),
            lab.privilege() == Privilege::Root
        );
        if let Some(path) = namespace.path() {
            let expected = format!("/run/netns/sgwall-{}-{}", lab.session().name(), entity.name);
            assert_eq!(path, Path::new(&expected));
            assert!(path.exists());
        }
    }
    let web = look(&lab, "web");
    assert_eq!(web.devices, ["eth0", "lo"]);
    assert_eq!(web.mtu, "9001");
    assert!(web.local4.contains("10.0.1.10"), "{}", web.local4);
    // Its subnet's prefix, /20, and a default route.
    assert!(
        web.route4.contains("eth0\t00000000\t00000000"),
        "{}",
        web.route4
    );
    assert!(
        web.route4
            .contains("eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00F0FFFF"),
        "{}",
        web.route4
    );
    // Global scope, permanent, no duplicate address detection; no link-local.
    let v6: Vec<&str> = web
        .if_inet6
        .lines()
        .filter(|line| line.contains("eth0"))
        .collect();
    assert_eq!(v6.len(), 1, "{}", web.if_inet6);
    assert!(
        v6[0].starts_with("fd000000000000010000000000000010 "),
        "{}",
        v6[0]
    );
    assert!(v6[0].contains(" 40 00 82 "), "{}", v6[0]);
    let default6 = format!("{0} 00 {0} 00 {0} 00000400", "0".repeat(32));
    assert!(
        web.route6
            .lines()
            .any(|line| line.starts_with(&default6) && line.ends_with("eth0")),
        "{}",
        web.route6
    );

    let db = look(&lab, "db");
    assert!(!db.if_inet6.contains("eth0"), "{}", db.if_inet6);
    assert!(
        !db.route6
            .lines()
            .any(|line| line.starts_with(&default6) && line.ends_with("eth0")),
        "{}",
        db.route6
    );

    // Hosts outside have no subnet: /32 and /128.
    let laptop = look(&lab, "laptop");
    assert_eq!(laptop.route4.lines().count(), 2, "{}", laptop.route4);
    assert!(
        laptop
            .if_inet6
            .lines()
            .any(|line| line.contains("20010db8") && line.contains(" 80 00 82 ")),
        "{}",
        laptop.if_inet6
    );

    // The caller itself is in none of them.
    let inodes: Vec<String> = lab
        .namespaces()
        .iter()
        .map(|n| format!("net:[{}]", n.inode()))
        .collect();
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert!(!inodes.iter().any(|inode| Path::new(inode) == own));
    passed("each_entity_has_its_namespace_device_and_routes");
}

fn a_frame_from_a_socket_reaches_the_link() {
    let model = three_entities();
    let lab = up(&model);
    let socket = socket_in(&lab, &model, "web");
    socket.send_to(b"to db", "10.0.16.20:5432").unwrap();
    let port = socket.local_addr().unwrap().port();
    let packet = receive(&lab.links()[0]).expect("no packet");
    let expected = udp4((ip("10.0.1.10"), port), (ip("10.0.16.20"), 5432), b"to db");
    // The kernel chooses identification and flags of its own.
    assert_eq!(packet.len(), expected.len());
    assert_eq!(packet[12..24], expected[12..24]);
    assert_eq!(packet[28..], *b"to db");

    // IPv6 leaves by the default route too, and as large as the MTU allows.
    let (web, _) = model.entity("web").unwrap();
    let socket = lab
        .namespace(web)
        .run(|| UdpSocket::bind("[::]:0"))
        .unwrap()
        .unwrap();
    socket.send_to(&[7; 8953], "[2001:db8::7]:9").unwrap();
    let packet = receive(&lab.links()[0]).expect("no packet");
    assert_eq!((packet.len(), packet[0] >> 4), (9001, 6));
    assert!(
        receive(&lab.links()[1]).is_none(),
        "a link has another entity's packets"
    );
    passed("a_frame_from_a_socket_reaches_the_link");
}

fn a_packet_on_the_link_reaches_a_socket() {
    let model = three_entities();
    let lab = up(&model);
    let socket = socket_in(&lab, &model, "db");
    let port = socket.local_addr().unwrap().port();
    let packet = udp4(
        (ip("10.0.1.10"), 4000),
        (ip("10.0.16.20"), port),
        b"from web",
    );
    lab.links()[1].send(&packet).unwrap();
    let mut buffer = [0; 64];
    let (count, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"from web");
    assert_eq!(from.to_string(), "10.0.1.10:4000");
    passed("a_packet_on_the_link_reaches_a_socket");
}

fn an_idle_lab_sends_nothing() {
    let lab = up(&three_entities());
    // Router solicitations and group reports come within the first second.
    thread::sleep(Duration::from_millis(1500));
    for link in lab.links() {
        let heard = receive_now(&link);
        assert!(heard.is_none(), "the kernel sent {heard:02x?}");
    }
    passed("an_idle_lab_sends_nothing");
}

fn replies_leave_by_the_interface_that_has_their_source() {
    let mut model = empty_model();
    add_entity(&mut model, "proxy", EntityKind::Ec2);
    add_interface(&mut model, Some(0), &["10.0.0.10", "fd00:0:0:1::10"]);
    add_interface(&mut model, Some(1), &["10.0.16.10", "fd00:0:0:2::10"]);
    add_interface(&mut model, Some(1), &["10.0.16.11", "fd00:0:0:2::11"]);
    let lab = up(&model);
    let links = lab.links();
    let targets4 = ["198.51.100.7:9", "10.0.0.99:9", "10.0.16.99:9"];
    let targets6 = [
        "[2001:db8::1]:9",
        "[fd00:0:0:1::99]:9",
        "[fd00:0:0:2::99]:9",
    ];
    for (device, interface) in model.interfaces.iter().enumerate() {
        for (address, targets) in interface.addresses.iter().zip([targets4, targets6]) {
            let source = address.private;
            let socket = lab.namespaces()[0]
                .run(|| UdpSocket::bind((source, 0)))
                .unwrap()
                .unwrap();
            for target in targets {
                socket.send_to(b"x", target).unwrap();
                let heard: Vec<bool> = links
                    .iter()
                    .map(|link| receive_now(link).is_some())
                    .collect();
                let expected: Vec<bool> = (0..3).map(|other| other == device).collect();
                assert_eq!(heard, expected, "{source} to {target}");
            }
        }
    }
    // Without a source of its own choosing: the subnet's device, or eth0.
    let socket = lab.namespaces()[0]
        .run(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    for (target, device) in targets4.into_iter().zip([0, 0, 1]) {
        socket.send_to(b"x", target).unwrap();
        assert!(receive_now(&links[device]).is_some(), "{target}");
    }
    passed("replies_leave_by_the_interface_that_has_their_source");
}

fn down_leaves_nothing() {
    let lab = up(&three_entities());
    let name = lab.session().name().to_owned();
    let dir = lab.session().dir().to_owned();
    let serving = serve(&lab);
    assert!(dir.join("control.sock").exists());
    drop(serving);
    lab.down();
    assert!(!dir.exists());
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
    assert!(!Session::list().unwrap().iter().any(|lab| lab.name == name));
    passed("down_leaves_nothing");
}

fn down_ends_the_processes_inside_and_no_others() {
    let model = three_entities();
    let lab = up(&model);
    let spawn = |script: &str| Command::new("sh").args(["-c", script]).spawn().unwrap();
    let (web, _) = model.entity("web").unwrap();
    let namespace = lab.namespace(web);
    let mut obedient = namespace.run(|| spawn("sleep 1000")).unwrap();
    let mut stubborn = namespace
        .run(|| spawn("trap '' TERM; while :; do sleep 1; done"))
        .unwrap();
    let mut outside = spawn("sleep 1000");
    // Threads of this very process inside don't make it a victim.
    let (tell, told) = mpsc::channel::<()>();
    let (entered, ready) = mpsc::channel();
    let inside = thread::scope(|scope| {
        let inside = scope.spawn(|| {
            namespace.enter_thread().unwrap();
            entered.send(()).unwrap();
        });
        ready.recv().unwrap();
        inside.join()
    });
    inside.unwrap();
    drop((tell, told));
    let begun = Instant::now();
    // Zombies of ours count as gone: they are in no namespace any more.
    lab.down();
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "took {:?}",
        begun.elapsed()
    );
    assert!(obedient.try_wait().unwrap().is_some());
    assert!(stubborn.try_wait().unwrap().is_some());
    assert!(
        outside.try_wait().unwrap().is_none(),
        "a process outside was ended"
    );
    outside.kill().unwrap();
    outside.wait().unwrap();
    passed("down_ends_the_processes_inside_and_no_others");
}

fn a_failure_half_way_leaves_nothing() {
    for spoil in [
        // The kernel refuses an MTU below 68.
        (|model: &mut Model| model.interfaces[2].mtu = 10) as fn(&mut Model),
        // And an address twice.
        |model: &mut Model| {
            let again = model.interfaces[1].addresses[0];
            model.interfaces[1].addresses.push(again);
        },
        // A name that would leave /run/netns.
        |model: &mut Model| model.entities[2].name = "../x".into(),
        // A device name that no device can have twice.
        |model: &mut Model| add_interface(model, None, &["198.51.100.9"]),
    ] {
        let mut model = three_entities();
        spoil(&mut model);
        if model.interfaces.len() == 4 {
            model.interfaces[3].device = 0;
        }
        let name = unique_name();
        let session = Session::start(&name).unwrap();
        let dir = session.dir().to_owned();
        let error = Lab::up(session, &model).expect_err("the model is spoilt");
        println!("  {error}");
        assert!(!dir.exists());
        assert_eq!(bound(&name), Vec::<PathBuf>::new());
    }
    passed("a_failure_half_way_leaves_nothing");
}

fn a_panic_leaves_nothing() {
    let name = unique_name();
    let answer = catch_unwind(AssertUnwindSafe(|| {
        let _lab = Lab::up(Session::start(&name).unwrap(), &three_entities()).unwrap();
        std::panic::resume_unwind(Box::new("as if a worker had panicked"));
    }));
    assert!(answer.is_err());
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
    assert!(!Session::list().unwrap().iter().any(|lab| lab.name == name));
    passed("a_panic_leaves_nothing");
}

fn a_lab_has_one_owner() {
    let name = unique_name();
    let session = Session::start(&name).unwrap();
    let error = Session::start(&name)
        .expect_err("a second owner")
        .to_string();
    let pid = std::process::id();
    assert_eq!(
        error,
        format!("lab '{name}' is already running as pid {pid}; stop it or choose --name")
    );
    let found = Session::find(Some(&name)).unwrap();
    assert_eq!((found.pid, &*found.dir), (pid, session.dir()));
    drop(session);
    assert!(matches!(
        Session::find(Some(&name)),
        Err(LabError::NoneRunning { .. } | LabError::NotRunning { .. })
    ));
    Session::start(&name).unwrap();
    passed("a_lab_has_one_owner");
}

fn two_labs_whose_names_run_together_do_not_mix() {
    if prepare().unwrap() != Privilege::Root {
        return passed("two_labs_whose_names_run_together_do_not_mix (root only: nothing to do)");
    }
    let with = |name: &str| {
        let mut model = empty_model();
        add_entity(&mut model, name, EntityKind::Ec2);
        add_interface(&mut model, Some(0), &["10.0.0.10"]);
        model
    };
    let name = unique_name();
    let first = Lab::up(Session::start(&name).unwrap(), &with("a-b")).unwrap();
    let second = Session::start(&format!("{name}-a")).unwrap();
    let error = Lab::up(second, &with("b")).expect_err("the same name twice");
    assert!(matches!(error, LabError::NamespaceTaken { .. }), "{error}");
    assert!(
        first.namespaces()[0].path().unwrap().exists(),
        "the first lab lost its namespace"
    );
    drop(first);
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
    passed("two_labs_whose_names_run_together_do_not_mix");
}

fn a_panic_in_a_namespace_is_an_error() {
    let lab = up(&three_entities());
    let answer: Result<(), _> = lab.namespaces()[0].run(|| std::panic::resume_unwind(Box::new(())));
    assert!(matches!(answer, Err(LabError::Panicked { .. })));
    passed("a_panic_in_a_namespace_is_an_error");
}

fn what_a_killed_lab_left_is_cleaned_by_the_next() {
    let name = unique_name();
    let mut keeper = Keeper::start(own_program().env(ROLE, "keeper").env(NAME, &name));
    let running = Session::find(Some(&name)).unwrap();
    // Somebody works in an entity when the appliance is killed.
    let mut inside = sgwall()
        .args(["exec", "--lab", &name, "web", "--", "sleep", "1000"])
        .spawn()
        .unwrap();
    wait_until("the command runs", || {
        fs::read(format!("/proc/{}/cmdline", inside.id()))
            .is_ok_and(|line| line.starts_with(b"sleep"))
    });
    keeper.child.kill().unwrap();
    keeper.child.wait().unwrap();

    assert!(running.dir.exists(), "a killed lab can't clean up");
    let root = prepare().unwrap() == Privilege::Root;
    assert_eq!(bound(&name).len(), if root { 3 } else { 0 });
    if root {
        // Fail closed: the namespace is there, its device is not.
        let path = format!("/run/netns/sgwall-{name}-web");
        let devices = Command::new("nsenter")
            .arg(format!("--net={path}"))
            .args(["cat", "/proc/net/dev"])
            .output()
            .unwrap();
        let devices = String::from_utf8(devices.stdout).unwrap();
        assert!(
            devices.contains("lo:") && !devices.contains("eth0"),
            "{devices}"
        );
    }
    assert!(
        Session::find(Some(&name)).is_err(),
        "a dead lab counts as running"
    );

    let lab = Lab::up(Session::start(&name).unwrap(), &three_entities()).unwrap();
    wait_until("the leftover process has ended", || {
        inside.try_wait().unwrap().is_some()
    });
    assert_eq!(look(&lab, "web").devices, ["eth0", "lo"]);
    lab.down();
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
    assert!(!running.dir.exists());
    passed("what_a_killed_lab_left_is_cleaned_by_the_next");
}

fn exec_runs_a_command_inside() {
    let lab = up(&three_entities());
    let _serving = serve(&lab);
    let name = lab.session().name();
    let before = fs::read("/etc/hosts").unwrap_or_default();

    let output = exec(
        &lab,
        "web",
        "cat /proc/net/dev; echo $SGWALL_LAB $SGWALL_ENTITY; cat /etc/hosts; ls /sys/class/net",
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("eth0:"), "{text}");
    assert!(text.contains(&format!("{name} web\n")), "{text}");
    for line in [
        "10.0.1.10\tweb",
        "fd00:0:0:1::10\tweb",
        "10.0.16.20\tdb",
        "198.51.100.7\tlaptop",
        "2001:db8::7\tlaptop",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in {text}"
        );
    }
    assert!(
        text.lines()
            .any(|line| line.starts_with("127.0.0.1") && line.contains("localhost")),
        "{text}"
    );
    assert!(text.ends_with("eth0\nlo\n"), "{text}");

    let output = exec(&lab, "laptop", "cat /etc/hosts");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("203.0.113.10\tweb"), "{text}");
    assert!(
        !text.contains("10.0.1.10") && !text.contains("10.0.16.20"),
        "{text}"
    );

    // Names resolve by the system's resolver, in a command of a command too.
    let output = exec(&lab, "db", "getent ahostsv4 web");
    assert!(output.stdout.starts_with(b"10.0.1.10"), "{output:?}");
    let nested = format!(
        "{} exec laptop -- sh -c 'echo $SGWALL_ENTITY; grep -c eth0 /proc/net/dev'",
        sgwall_path().display()
    );
    let output = exec(&lab, "db", &nested);
    assert_eq!(output.stdout, b"laptop\n1\n", "{output:?}");

    assert_eq!(exec(&lab, "web", "exit 42").status.code(), Some(42));
    let output = exec(&lab, "web", "kill -9 $$");
    assert_eq!(output.status.code(), None, "{output:?}");
    assert_eq!(
        fs::read("/etc/hosts").unwrap_or_default(),
        before,
        "the machine's hosts file changed"
    );
    let left: Vec<_> = fs::read_dir(lab.session().dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(!left.iter().any(|file| file == "hosts"), "{left:?}");
    passed("exec_runs_a_command_inside");
}

fn exec_says_what_is_wrong() {
    let lab = up(&three_entities());
    let name = lab.session().name().to_owned();
    let run = |arguments: &[&str]| {
        let output = sgwall().arg("exec").args(arguments).output().unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    // Nobody serves the control socket yet.
    let (code, text) = run(&["--lab", &name, "web", "--", "true"]);
    assert_eq!(code, Some(3), "{text}");
    let _serving = serve(&lab);

    let (code, text) = run(&["--lab", &name, "wev", "--", "true"]);
    assert_eq!(code, Some(2), "{text}");
    assert_eq!(
        text,
        format!(
            "sgwall: no entity 'wev' in lab '{name}'; did you mean 'web'?; it has: web, db, laptop\n"
        )
    );
    let (code, text) = run(&["--lab", &name, "web", "--", "no-such-command"]);
    assert_eq!(
        (code, &*text),
        (Some(127), "sgwall: no-such-command: command not found\n")
    );
    let (code, text) = run(&["--lab", &name, "web", "--", "/etc/passwd"]);
    assert_eq!(code, Some(126), "{text}");
    let (code, text) = run(&["--lab", "no-such-lab", "web", "--", "true"]);
    assert_eq!(code, Some(3), "{text}");
    assert!(
        text.contains("no lab 'no-such-lab' is running; running: "),
        "{text}"
    );
    let empty = tempfile::tempdir().unwrap();
    let output = sgwall()
        .env(STATE_DIR_VARIABLE, empty.path())
        .args(["exec", "web", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with("sgwall: no lab is running; start one with 'sgwall run LAB'"),
        "{text}"
    );
    passed("exec_says_what_is_wrong");
}

fn run_commands_are_heard_and_end_with_the_lab() {
    let mut model = three_entities();
    model.entities[0].run = Some("echo out of $SGWALL_ENTITY; echo err >&2; exit 3".into());
    model.entities[1].run = Some("echo begun; sleep 1000; echo never".into());
    let lab = up(&model);
    let _serving = serve(&lab);
    let (tell, heard) = mpsc::channel();
    let commands = lab
        .spawn_run_commands_with(&sgwall_path(), &model, move |_, entity, event| {
            let text = match event {
                CommandEvent::Line(Stream::Stdout, line) => format!("{entity}: {line}"),
                CommandEvent::Line(Stream::Stderr, line) => format!("{entity}! {line}"),
                CommandEvent::Exited(status) => format!("{entity} ended: {:?}", status.code()),
                CommandEvent::Failed(error) => format!("{entity} failed: {error}"),
            };
            tell.send(text).unwrap();
        })
        .unwrap();
    let mut texts: Vec<String> = (0..4)
        .map(|_| heard.recv_timeout(Duration::from_secs(5)).unwrap())
        .collect();
    texts.sort();
    assert_eq!(
        texts,
        [
            "db: begun",
            "web ended: Some(3)",
            "web! err",
            "web: out of web"
        ]
    );
    assert_eq!(commands.running(), 1);
    let begun = Instant::now();
    drop(commands);
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "took {:?}",
        begun.elapsed()
    );
    assert_eq!(
        heard.recv_timeout(Duration::from_secs(1)).unwrap(),
        "db ended: None"
    );
    passed("run_commands_are_heard_and_end_with_the_lab");
}

/// As root: becomes `nobody` in a mount namespace where `/dev/net/tun` is
/// open to all, runs a lab there and looks into it from outside.
fn an_ordinary_user_has_labs_too() {
    if prepare().unwrap() != Privilege::Root {
        return passed("an_ordinary_user_has_labs_too (all of these tests ran as one)");
    }
    let status = own_program().env(ROLE, "other-user").status().unwrap();
    assert!(status.success());
    passed("an_ordinary_user_has_labs_too");
}

fn two_hundred_entities_come_up_quickly() {
    let model = many_entities(200);
    let name = unique_name();
    let begun = Instant::now();
    let lab = Lab::up(Session::start(&name).unwrap(), &model).unwrap();
    let up = begun.elapsed();
    assert_eq!(lab.links().len(), 200);
    let last = look(&lab, "host-199");
    assert!(last.local4.contains("10.0.1.199"), "{}", last.local4);
    let begun = Instant::now();
    lab.down();
    let down = begun.elapsed();
    println!("  200 entities: up in {up:?}, down in {down:?}");
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
    assert!(up < Duration::from_secs(10) && down < Duration::from_secs(10));
    passed("two_hundred_entities_come_up_quickly");
}

// Roles.

/// Keeps a lab up and served until standard input ends.
fn keep_a_lab() -> ExitCode {
    prepare().unwrap();
    let name = std::env::var(NAME).unwrap();
    let lab = Lab::up(Session::start(&name).unwrap(), &three_entities()).unwrap();
    let serving = serve(&lab);
    println!("ready {:?}", lab.privilege());
    let _ = io::stdin().read_to_end(&mut Vec::new());
    drop(serving);
    lab.down();
    ExitCode::SUCCESS
}

fn be_another_user() -> ExitCode {
    // Programs where that user can reach them.
    let programs = tempfile::tempdir().unwrap();
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &Path, name: &str| {
        let to = programs.path().join(name);
        fs::copy(from, &to).unwrap();
        to
    };
    let tests = copy(&std::env::current_exe().unwrap(), "tests");
    let program = copy(&sgwall_path(), "sgwall");

    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
    mount(
        Some("tmpfs"),
        "/dev/net",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )
    .unwrap();
    let device = makedev(10, 200);
    mknod(
        "/dev/net/tun",
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o600),
        device,
    )
    .unwrap();

    let name = unique_name();
    let as_nobody = |program: &Path| {
        let mut command = Command::new(program);
        command
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/")
            .env_remove(STATE_DIR_VARIABLE)
            .env_remove("XDG_RUNTIME_DIR")
            .env(ROLE, "keeper")
            .env(NAME, &name);
        command
    };
    // The device is closed to them: refused, and told how to mend it.
    let output = as_nobody(&tests).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(text.contains("chmod 666 /dev/net/tun"), "{text}");

    fs::set_permissions("/dev/net/tun", fs::Permissions::from_mode(0o666)).unwrap();
    let mut keeper = Keeper::start(&mut as_nobody(&tests));
    assert_eq!(keeper.greeting, "ready UserNamespace");
    let dir = PathBuf::from(format!("/tmp/sgwall-{NOBODY}/{name}"));
    assert!(dir.join("control.sock").exists());

    let exec = |entity: &str, script: &str| {
        as_nobody(&program)
            .args(["exec", "--lab", &name, entity, "--", "sh", "-c", script])
            .output()
            .unwrap()
    };
    let output = exec("web", "cat /proc/net/dev /etc/hosts; exit 7");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert!(
        text.contains("eth0:") && text.contains("10.0.16.20\tdb"),
        "{text}"
    );
    let nested = format!(
        "{} exec db -- sh -c 'echo $SGWALL_ENTITY'",
        program.display()
    );
    let output = exec("web", &nested);
    assert_eq!(output.stdout, b"db\n", "{output:?}");
    let output = exec("nobody", "true");
    assert_eq!(output.status.code(), Some(2), "{output:?}");

    // Killed, with somebody inside: the next run cleans up after it.
    let mut inside = as_nobody(&program)
        .args(["exec", "--lab", &name, "web", "--", "sleep", "1000"])
        .spawn()
        .unwrap();
    wait_until("the command runs", || {
        fs::read(format!("/proc/{}/cmdline", inside.id()))
            .is_ok_and(|line| line.starts_with(b"sleep"))
    });
    keeper.child.kill().unwrap();
    keeper.child.wait().unwrap();
    assert!(inside.try_wait().unwrap().is_none());
    let keeper = Keeper::start(&mut as_nobody(&tests));
    wait_until("the leftover process has ended", || {
        inside.try_wait().unwrap().is_some()
    });

    // The whole set of tests once more, as that user.
    if std::env::var_os("SGWALL_TEST_INNER").is_none() {
        let mut all = as_nobody(&tests);
        all.env_remove(ROLE)
            .env("SGWALL_TEST_INNER", "1")
            .env(SGWALL, &program);
        assert!(
            all.status().unwrap().success(),
            "tests failed as an ordinary user"
        );
    }

    drop(keeper);
    wait_until("the lab is gone", || !dir.exists());
    ExitCode::SUCCESS
}

// Helpers.

fn passed(name: &str) {
    println!("test {name} ... ok");
}

fn up(model: &Model) -> Lab {
    Lab::up(Session::start(&unique_name()).unwrap(), model).unwrap()
}

fn serve(lab: &Lab) -> Serving {
    let gate = lab.gate();
    Server::bind(lab.session())
        .unwrap()
        .serve(move |request| gate.enter(&request))
        .unwrap()
}

/// What an entity sees of itself.
struct Look {
    devices: Vec<String>,
    mtu: String,
    local4: String,
    route4: String,
    if_inet6: String,
    route6: String,
}

fn look(lab: &Lab, entity: &str) -> Look {
    let namespace = lab
        .namespaces()
        .iter()
        .find(|n| n.entity() == entity)
        .unwrap();
    // `/proc/net` is the main thread's; this thread's own has the namespace's.
    let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    namespace
        .run(|| {
            let mut devices: Vec<String> = read("dev")
                .lines()
                .skip(2)
                .map(|line| line.split(':').next().unwrap().trim().to_owned())
                .collect();
            devices.sort();
            Look {
                devices,
                mtu: fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/mtu")
                    .unwrap()
                    .trim()
                    .into(),
                local4: read("fib_trie"),
                route4: read("route"),
                if_inet6: read("if_inet6"),
                route6: read("ipv6_route"),
            }
        })
        .unwrap()
}

fn socket_in(lab: &Lab, model: &Model, entity: &str) -> UdpSocket {
    let (entity, _) = model.entity(entity).unwrap();
    let bind = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0));
    let socket = lab.namespace(entity).run(bind).unwrap().unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket
}

fn receive_now(link: &TunLink) -> Option<Vec<u8>> {
    let mut buffer = [0; 65536];
    match link.recv(&mut buffer) {
        Ok(count) => Some(buffer[..count].to_vec()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

fn receive(link: &TunLink) -> Option<Vec<u8>> {
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        if let Some(packet) = receive_now(link) {
            return Some(packet);
        }
        thread::sleep(Duration::from_millis(1));
    }
    None
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What is left of a lab under `/run/netns`.
fn bound(lab: &str) -> Vec<PathBuf> {
    let prefix = format!("sgwall-{lab}-");
    fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(&prefix)
        })
        .collect()
}

fn own_program() -> Command {
    Command::new(std::env::current_exe().unwrap())
}

fn sgwall_path() -> PathBuf {
    std::env::var_os(SGWALL).map_or_else(|| env!("CARGO_BIN_EXE_sgwall").into(), PathBuf::from)
}

fn sgwall() -> Command {
    let mut command = Command::new(sgwall_path());
    // Inside a user namespace the user looks like root; see `Entry::environment`.
    if prepare().unwrap() == Privilege::UserNamespace {
        let probe = Session::start(&unique_name()).unwrap();
        command.env(STATE_DIR_VARIABLE, probe.base());
    }
    command
}

fn exec(lab: &Lab, entity: &str, script: &str) -> Output {
    let mut command = sgwall();
    command.args([
        "exec",
        "--lab",
        lab.session().name(),
        entity,
        "--",
        "sh",
        "-c",
        script,
    ]);
    command.output().unwrap()
}

/// A process that keeps a lab; it ends with this value.
struct Keeper {
    child: Child,
    greeting: String,
}

impl Keeper {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut greeting = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut greeting)
            .unwrap();
        let greeting = greeting.trim().to_owned();
        assert!(greeting.starts_with("ready"), "the lab did not come up");
        Self { child, greeting }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    let mut is_so = is_so;
    let until = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < until, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
