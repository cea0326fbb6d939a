//! Commands inside a lab, and labs of other processes and users.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sgwall::lab::{CommandEvent, Lab, Privilege, STATE_DIR_VARIABLE, Session, Stream, prepare};

use super::common::{three_entities, unique_name};
use super::support::{
    Background, Keeper, NAME, ROLE, bound, exec, look, own_program, serve, sgwall, sgwall_path, up,
    wait_until,
};

pub fn what_a_killed_lab_left_is_cleaned_by_the_next() {
    let name = unique_name();
    let mut keeper = Keeper::start(own_program().env(ROLE, "keeper").env(NAME, &name));
    let running = Session::find(Some(&name)).unwrap();
    // Somebody works in an entity when the appliance is killed.
    let mut inside =
        Background::start(sgwall().args(["exec", "--lab", &name, "web", "--", "sleep", "1000"]));
    inside.wait_to_become("sleep");
    keeper.child.kill().unwrap();
    keeper.child.wait().unwrap();

    keeper.wait_for_command_to_end();
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
    wait_until("the leftover process has ended", || inside.has_ended());
    assert_eq!(look(&lab, "web").devices, ["eth0", "lo"]);
    lab.down();
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
    assert!(!running.dir.exists());
}

pub fn exec_runs_a_command_inside() {
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
}

pub fn exec_says_what_is_wrong() {
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
}

pub fn run_commands_are_heard_and_end_with_the_lab() {
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
}

/// As root: becomes `nobody` in a mount namespace where `/dev/net/tun` is
/// open to all, runs a lab there and looks into it from outside.
pub fn an_ordinary_user_has_labs_too() {
    if prepare().unwrap() != Privilege::Root {
        println!("  all of these tests ran as one");
        return;
    }
    let status = own_program().env(ROLE, "other-user").status().unwrap();
    assert!(status.success());
}
