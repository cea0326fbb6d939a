//! How labs start and end, well and badly, and what `exec` and `run:` do
//! meanwhile.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::net::{self, Pinger, SILENCE, Seen};
use crate::privilege::namespaces;
use crate::support::{
    DUAL_STACK, Lab, Process, Start, THREE_TIER, bound, leftovers, processes_of, program, succeed,
    unique_name, wait_until, words,
};

/// Two hosts that may ping each other, one of which runs a command.
const PAIR: &str = "
vpc: { cidr: [10.5.0.0/16] }
subnets: { all: { cidr: [10.5.1.0/24] } }
security_groups:
  host: { ingress: [ { protocol: icmp, type: 8, from: sg/host }, { protocol: tcp, ports: 80, from: sg/host } ] }
entities:
  one: { kind: ec2, subnet: all, addresses: [10.5.1.10], security_groups: [host], run: \"RUN\" }
  two: { kind: ec2, subnet: all, addresses: [10.5.1.11], security_groups: [host] }
";

#[test]
fn ctrl_c_and_sigterm_take_everything_down() {
    if !namespaces!() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let text = PAIR.replace("RUN", "echo started; sleep 1000 & sleep 1000");
        let mut lab = Lab::up(&text);
        lab.event_where("output", |event| event["line"] == "started");
        // Also what hangs on after its parent, and what won't listen.
        let stubborn = "trap '' TERM INT HUP; echo ready; while :; do sleep 1; done";
        let inside = Process::spawn(&mut lab.exec("two", &["sh", "-c", stubborn]));
        inside.stdout.wait("ready", |line| line == "ready");
        assert!(
            processes_of(&lab.name).len() >= 3,
            "{:?}",
            processes_of(&lab.name)
        );
        assert_eq!(bound(&lab.name).len(), 2);

        lab.end(signal);
        lab.event("stopping");
        assert_eq!(leftovers(&lab.name, &lab.state), Vec::<String>::new());
    }
}

#[test]
fn a_signal_that_comes_twice_at_once_is_one() {
    if !namespaces!() {
        return;
    }
    // As `timeout` sends it, to its command and then to the command's group.
    for pause in [1, 3, 10, 30] {
        let mut lab = Lab::up(&PAIR.replace("RUN", "exec sleep 1000"));
        lab.process.signal(Signal::SIGINT);
        std::thread::sleep(Duration::from_millis(pause));
        lab.process.signal(Signal::SIGINT);
        let status = lab.process.wait();
        assert_eq!(
            status.code(),
            Some(0),
            "{pause} ms: {}",
            lab.process.stderr.text()
        );
        assert_eq!(leftovers(&lab.name, &lab.state), Vec::<String>::new());
    }
}

#[test]
fn a_lab_ends_with_the_terminal_that_it_was_started_on() {
    if !namespaces!() {
        return;
    }
    let mut start = Start::new(THREE_TIER);
    // `script` creates a terminal, which is gone once `script` is killed. The tests may run
    // under `nohup`, the lab must not.
    let script = "exec script -qfc \"exec $*\" /dev/null";
    let through = ["env", "--default-signal=HUP", "sh", "-c", script, "sh"];
    start.through = through.map(String::from).to_vec();
    let mut lab = Lab::start(&start);
    lab.event("enforcing");
    let pid = lab.status()["pid"].as_i64().unwrap();
    // While the terminal exists, SIGHUP reloads the files.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    lab.event("unchanged");
    lab.process.signal(Signal::SIGKILL);
    lab.process.wait();
    wait_until("the lab is down", || {
        leftovers(&lab.name, &lab.state).is_empty()
    });
}

#[test]
fn after_kill_9_nothing_forwards_and_the_next_run_cleans_up() {
    if !namespaces!() {
        return;
    }
    let text = PAIR.replace("RUN", "echo started; exec sleep 1000");
    let mut lab = Lab::up(&text);
    lab.event_where("output", |event| event["line"] == "started");
    let to: IpAddr = [10, 5, 1, 11].into();
    let pinger = lab.inside("one", || Pinger::new(to)).unwrap();
    pinger.ping(Duration::from_secs(20)).unwrap();
    let left_inside =
        Process::spawn(&mut lab.exec("two", &["sh", "-c", "echo in; exec sleep 1000"]));
    left_inside.stdout.wait("in", |line| line == "in");

    lab.process.signal(Signal::SIGKILL);
    lab.process.wait();
    let answer = pinger.ping(SILENCE).unwrap_err();
    // With the device its routes are gone, if not at once.
    assert!(
        matches!(
            answer.kind(),
            ErrorKind::TimedOut | ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable
        ),
        "{answer}"
    );
    let seen = lab.inside("one", || net::tcp(to, 80, SILENCE));
    assert!(!seen.passes(), "{seen:?}");
    // The kernel ends `run:` commands with who started them.
    wait_until("the command of `one` ended", || {
        !processes_of(&lab.name)
            .iter()
            .any(|(pid, _)| entity_of(*pid).as_deref() == Some("one"))
    });
    let status = lab.sgwall("status").output().unwrap();
    assert_eq!(status.status.code(), Some(3), "{}", words(&status));

    let old: Vec<_> = processes_of(&lab.name)
        .iter()
        .map(|(pid, _)| *pid)
        .collect();
    assert!(!old.is_empty(), "the other command outlives the appliance");
    lab.start_again(&Start::new(&text));
    lab.event("enforcing");
    for pid in old {
        assert!(
            entity_of(pid).is_none(),
            "process {pid} of the killed run is still there"
        );
    }
    let again = lab.inside("one", || net::echo(to, Duration::from_secs(20)));
    assert!(again.passes(), "{again:?}");
    assert_eq!(bound(&lab.name).len(), 2);
    lab.down();
}

#[test]
fn a_name_can_run_only_once() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let second = lab
        .sgwall("run")
        .arg(&lab.config)
        .args(["--name", &lab.name])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(3), "{}", words(&second));
    let why = String::from_utf8_lossy(&second.stderr);
    let pid = lab.process.pid().to_string();
    assert!(why.contains(&lab.name) && why.contains(&pid), "{why}");
    // The first is none the worse.
    let seen = lab.inside("lb", || {
        net::tcp([10, 0, 2, 21].into(), 8080, Duration::from_secs(20))
    });
    assert_eq!(seen, Seen::Refused);
    assert_eq!(lab.status()["enforcing"], true);
    lab.down();
}

#[test]
fn output_of_run_commands_bears_the_entity_s_name() {
    if !namespaces!() {
        return;
    }
    let text = PAIR.replace("RUN", "echo hello; echo trouble >&2; exit 7");
    let text = text.replace(
        "addresses: [10.5.1.11]",
        "addresses: [10.5.1.11], run: \\\"/no/such/program\\\"",
    );
    let text = text.replace("\\\"", "\"");
    let mut start = Start::new(&text);
    start.json = false;
    let lab = Lab::start(&start);
    let (out, err) = (&lab.process.stdout, &lab.process.stderr);
    err.wait("enforcing", |line| {
        line.contains("is enforcing: 2 of 2 interfaces proven")
    });
    out.wait("hello", |line| line == "one | hello");
    err.wait("trouble", |line| line == "one | trouble");
    err.wait("one's end", |line| {
        line.contains("the command of one ended") && line.contains('7')
    });
    err.wait("two's end", |line| {
        line.contains("the command of two ended") && line.contains("127")
    });
    // A command that ends takes nothing with it.
    assert_eq!(lab.status()["enforcing"], true);
    lab.down();
}

#[test]
fn events_of_run_commands_are_json_for_programs() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(&PAIR.replace("RUN", "echo out; echo err >&2; exit 3"));
    let mut streams: Vec<String> = Vec::new();
    for _ in 0..2 {
        let event = lab.event("output");
        assert_eq!(event["entity"], "one");
        assert_eq!(
            event["line"],
            if event["stream"] == "stdout" {
                "out"
            } else {
                "err"
            }
        );
        streams.push(event["stream"].to_string());
    }
    streams.sort();
    assert_eq!(streams, ["\"stderr\"", "\"stdout\""]);
    let event = lab.event("exited");
    assert_eq!(
        (&event["entity"], &event["code"]),
        (&"one".into(), &3.into())
    );
    lab.down();
}

#[test]
fn exec_passes_exit_codes_and_refuses_what_it_cannot_do() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let exit = |entity: &str, command: &[&str]| {
        let output = lab.exec(entity, command).output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(exit("db", &["true"]).0, Some(0));
    assert_eq!(exit("db", &["sh", "-c", "exit 42"]).0, Some(42));
    assert_eq!(exit("db", &["no-such-program"]).0, Some(127));
    assert_eq!(exit("db", &["/etc"]).0, Some(126));
    let (code, why) = exit("bd", &["true"]);
    assert_eq!(code, Some(2), "{why}");
    assert!(why.contains("bd") && why.contains("web-1"), "{why}");

    let nowhere = Command::new(program())
        .args(["exec", "--lab", &unique_name(), "db", "--", "true"])
        .env("SGWALL_STATE_DIR", &lab.state)
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(3), "{}", words(&nowhere));
    let empty = tempfile::tempdir().unwrap();
    let nowhere = Command::new(program())
        .args(["exec", "db", "--", "true"])
        .env("SGWALL_STATE_DIR", empty.path())
        .env_remove("SGWALL_LAB")
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(3), "{}", words(&nowhere));
    // The only lab that runs need not be named.
    succeed(
        Command::new(program())
            .args(["exec", "db", "--", "true"])
            .env("SGWALL_STATE_DIR", &lab.state)
            .env_remove("SGWALL_LAB"),
    );
    lab.down();
}

#[test]
fn names_and_environment_are_there_in_every_entity() {
    if !namespaces!() {
        return;
    }
    for (text, internet, hidden) in [
        (THREE_TIER, "client", vec!["web-1", "web-2", "db"]),
        (DUAL_STACK, "client", vec![]),
    ] {
        let lab = Lab::up(text);
        let model = sgwall::config::load(&lab.config, &[]).unwrap().model;
        for viewer in &model.entities {
            let script = "echo $SGWALL_ENTITY $SGWALL_LAB $(cat /proc/sys/kernel/hostname); for name; do getent ahosts $name >/dev/null && echo $name; done; :";
            let names: Vec<&str> = model.entities.iter().map(|entity| &*entity.name).collect();
            let command = [&["sh", "-c", script, "sh"], names.as_slice()].concat();
            let said = succeed(&mut lab.exec(&viewer.name, &command));
            let visible: Vec<&str> = names
                .iter()
                .copied()
                .filter(|name| viewer.name != internet || !hidden.contains(name))
                .collect();
            let name = &viewer.name;
            let expected = format!("{name} {} {name}\n{}\n", lab.name, visible.join("\n"));
            assert_eq!(said, expected, "seen from {}", viewer.name);
        }
        lab.down();
    }
}

#[test]
fn a_name_that_does_not_exist_is_refused_by_the_entity_itself() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let script = "grep -v '^#' /etc/resolv.conf || echo nameserver 127.0.0.1";
    let said = succeed(&mut lab.exec("db", &["sh", "-c", script]));
    assert_eq!(said.lines().next(), Some("nameserver 127.0.0.1"), "{said}");
    let refused = lab.inside("db", || {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket.connect("127.0.0.1:53").unwrap();
        socket.send(b"?").unwrap();
        socket.recv(&mut [0; 1]).unwrap_err().kind()
    });
    assert_eq!(refused, ErrorKind::ConnectionRefused);
    let output = lab
        .exec("db", &["getent", "hosts", "no-such-host.example"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    lab.down();
}

#[test]
fn exec_without_a_command_starts_the_users_shell() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    // First a "shell" whose output identifies it, then one that doesn't exist.
    let said = succeed(lab.sgwall("exec").arg("web-1").env("SHELL", "/usr/bin/env"));
    assert!(
        said.lines().any(|line| line == "SGWALL_ENTITY=web-1"),
        "{said}"
    );
    let input = lab.dir.path().join("input");
    std::fs::write(&input, "echo $SGWALL_ENTITY\n").unwrap();
    let said = succeed(
        lab.sgwall("exec")
            .arg("web-1")
            .env("SHELL", "/no/such/shell")
            .stdin(std::fs::File::open(&input).unwrap()),
    );
    assert_eq!(said, "web-1\n");
    lab.down();
}

/// Completes as bash does, with the script that `sgwall completions` prints.
#[test]
fn completions_know_labs_and_entities() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let bin = lab.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(program(), bin.join("sgwall")).unwrap();
    let script = "PATH=$0:$PATH; source <(sgwall completions bash); COMP_WORDS=(sgwall \"$@\"); \
                  COMP_CWORD=$#; _clap_complete_sgwall sgwall \"${!#}\" x; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let config = lab.config.to_str().unwrap();
    let (part, whole) = (&lab.name[..lab.name.len() - 1], format!("{}\n", lab.name));
    let cases: [(&[&str], &str); 5] = [
        (&["exec", "we"], "web-1\nweb-2\n"),
        (&["exec", "--lab", "no-such-lab", "we"], "\n"),
        (&["status", "--lab", part], &whole),
        (&["explain", config, "--from", "c"], "client\n"),
        (
            &["explain", config, "--from", "client", "--to", "d"],
            "db\n",
        ),
    ];
    for (typed, expected) in cases {
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).arg(&bin).args(typed);
        bash.env("SGWALL_STATE_DIR", &lab.state)
            .env("SGWALL_LAB", &lab.name);
        assert_eq!(succeed(&mut bash), expected, "{typed:?}");
    }
    lab.down();
}

#[test]
fn many_labs_run_beside_each_other() {
    if !namespaces!() {
        return;
    }
    // The same addresses in each: nothing of one is seen in the other.
    let labs: Vec<Lab> = thread::scope(|scope| {
        let starting: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| Lab::up(THREE_TIER)))
            .collect();
        starting
            .into_iter()
            .map(|lab| lab.join().unwrap())
            .collect()
    });
    let to = [10, 0, 2, 21].into();
    let _server = labs[0].inside("web-1", || net::Servers::start("first", &[8080], &[]));
    let patience = Duration::from_secs(20);
    let seen: Vec<Seen> = labs
        .iter()
        .map(|lab| lab.inside("lb", || net::tcp(to, 8080, patience)))
        .collect();
    assert_eq!(
        seen,
        [Seen::Reached("first".into()), Seen::Refused, Seen::Refused]
    );
    for lab in labs {
        lab.down();
    }
}

/// The entity that a process says it is in.
fn entity_of(pid: i32) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(b"SGWALL_ENTITY=")?;
        Some(String::from_utf8_lossy(value).into_owned())
    })
}
