//! Standard output and standard error that can't be written to. A reader that closes the pipe
//! changes no command's exit code; a full disk is an error with a message.
#![allow(clippy::unwrap_used, reason = "a test that can't set up has failed")]

use std::fs::File;
use std::io::pipe;
use std::process::{Command, Output, Stdio};

const LAB: &str = "configs/three-tier.yaml";
const BROKEN: &str = "tests/data/check/ten-mistakes.yaml";

/// One command line for each way in which commands write output.
const COMMANDS: [&[&str]; 19] = [
    &["--help"],
    &["--version"],
    &["check", "--help"],
    &["no-such-command"],
    &["check", LAB],
    &["check", LAB, "--format", "json"],
    &["check", BROKEN],
    &["check", BROKEN, "--format", "json"],
    &[
        "explain",
        LAB,
        "--from",
        "lb",
        "--to",
        "db",
        "--protocol",
        "icmp",
    ],
    &[
        "explain",
        LAB,
        "--from",
        "lb",
        "--to",
        "db",
        "--protocol",
        "icmp",
        "--format",
        "json",
    ],
    &[
        "explain",
        LAB,
        "--from",
        "nobody",
        "--to",
        "db",
        "--protocol",
        "icmp",
    ],
    &["replay", LAB, "tests/data/streams.packets"],
    &[
        "replay",
        LAB,
        "tests/data/streams.packets",
        "--format",
        "json",
    ],
    &["completions", "bash"],
    &["status", "--lab", "no-such-lab"],
    &["status", "--lab", "no-such-lab", "--probe"],
    &["exec", "--lab", "no-such-lab", "db", "--", "true"],
    &["run", BROKEN],
    &["run", BROKEN, "--format", "json"],
];

#[test]
fn a_reader_that_has_gone_away_changes_no_answer() {
    let gone = || Stdio::from(pipe().unwrap().1);
    for args in COMMANDS {
        let usual = sgwall(args).output().unwrap();
        for (stdout, stderr) in [
            (gone(), Stdio::piped()),
            (Stdio::piped(), gone()),
            (gone(), gone()),
        ] {
            let output = with(args, stdout, stderr);
            assert_eq!(
                output.status.code(),
                usual.status.code(),
                "{args:?}: {output:?}"
            );
            let quiet = output.stderr.is_empty() || output.stderr == usual.stderr;
            assert!(quiet, "{args:?}: {output:?}");
        }
    }
}

#[test]
fn a_full_disk_is_an_error_on_standard_output_and_changes_nothing_on_standard_error() {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for args in COMMANDS {
        let usual = sgwall(args).output().unwrap();
        let output = with(args, full(), Stdio::piped());
        if usual.stdout.is_empty() {
            assert_eq!(output.status.code(), usual.status.code(), "{args:?}");
        } else {
            assert_eq!(output.status.code(), Some(3), "{args:?}: {output:?}");
            let text = String::from_utf8(output.stderr).unwrap();
            let named = "sgwall: writing to standard output: No space left on device";
            assert!(text.contains(named), "{args:?}: {text}");
        }
        for stdout in [Stdio::piped(), full()] {
            let code = with(args, stdout, full()).status.code();
            let expected = [usual.status.code(), Some(3)];
            assert!(expected.contains(&code), "{args:?}: {code:?}");
        }
    }
}

fn with(args: &[&str], stdout: Stdio, stderr: Stdio) -> Output {
    let child = sgwall(args).stdout(stdout).stderr(stderr).spawn();
    child.unwrap().wait_with_output().unwrap()
}

fn sgwall(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sgwall"));
    command
        .args(args)
        .env("SGWALL_LOG", "debug")
        .stdin(Stdio::null())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}
