//! What the test program does when it starts itself again.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use sgwall::lab::{CommandEvent, Lab, STATE_DIR_VARIABLE, Session, Stream, prepare};

use super::common::{three_entities, unique_name};
use super::support::{Background, Keeper, NAME, ROLE, SGWALL, serve, sgwall_path, wait_until};

/// The user without any power over the machine.
const NOBODY: u32 = 65534;
/// Set where the tests run as [`NOBODY`] already.
const INNER: &str = "SGWALL_TEST_INNER";

/// Plays the role that the environment asks for, if it does.
pub fn play() -> Option<ExitCode> {
    match std::env::var(ROLE).ok()?.as_str() {
        "keeper" => Some(keep_a_lab()),
        "other-user" => Some(be_another_user()),
        _ => None,
    }
}

/// Keeps a lab up and served, with a command in `db`, until standard input ends.
fn keep_a_lab() -> ExitCode {
    prepare().unwrap();
    let name = std::env::var(NAME).unwrap();
    let mut model = three_entities();
    model.entities[1].run = Some("echo $$; exec sleep 1000".into());
    let lab = Lab::up(Session::start(&name).unwrap(), &model).unwrap();
    let serving = serve(&lab);
    let (tell, heard) = mpsc::channel();
    let commands = lab
        .spawn_run_commands_with(&sgwall_path(), &model, move |_, _, event| {
            if let CommandEvent::Line(Stream::Stdout, line) = event {
                let _ = tell.send(line.to_owned());
            }
        })
        .unwrap();
    let pid = heard.recv_timeout(Duration::from_secs(10)).unwrap();
    println!("ready {:?} {pid}", lab.privilege());
    let _ = io::stdin().read_to_end(&mut Vec::new());
    drop(commands);
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
    let as_nobody = |this: &Path| {
        let mut command = Command::new(this);
        command
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/")
            .env_remove(STATE_DIR_VARIABLE)
            .env_remove("XDG_RUNTIME_DIR")
            .env(ROLE, "keeper")
            .env(SGWALL, &program)
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
    assert!(keeper.greeting.starts_with("ready UserNamespace "));
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
    let mut inside = Background::start(
        as_nobody(&program).args(["exec", "--lab", &name, "web", "--", "sleep", "1000"]),
    );
    inside.wait_to_become("sleep");
    keeper.child.kill().unwrap();
    keeper.child.wait().unwrap();
    assert!(!inside.has_ended());
    keeper.wait_for_command_to_end();
    let keeper = Keeper::start(&mut as_nobody(&tests));
    wait_until("the leftover process has ended", || inside.has_ended());

    // The whole set of tests once more, as that user.
    if std::env::var_os(INNER).is_none() {
        let mut all = as_nobody(&tests);
        all.env_remove(ROLE).env(INNER, "1").env(SGWALL, &program);
        assert!(
            all.status().unwrap().success(),
            "tests failed as an ordinary user"
        );
    }

    drop(keeper);
    wait_until("the lab is gone", || !dir.exists());
    ExitCode::SUCCESS
}
