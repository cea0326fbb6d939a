//! Root's powers for the tests: the machine's root has them, and whoever else
//! runs the tests gets them in a user namespace, one for each test.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::unistd::{AccessFlags, access};

use crate::support::words;

/// Set in a process that runs one test in a user namespace.
const INSIDE: &str = "SGWALL_TEST_INSIDE";
/// Makes the caller root of new namespaces.
const UNSHARE: [&str; 4] = ["--user", "--map-root-user", "--mount", "--net"];
/// `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` (capabilities(7)).
const CAPABILITIES: u64 = 1 << 12 | 1 << 21;

/// Whether the calling test goes on in this process. If not, it was run in
/// another one, where it has the powers it needs, or need not run.
macro_rules! namespaces {
    () => {{
        fn here() {}
        $crate::privilege::goes_on(std::any::type_name_of_val(&here))
    }};
}
pub(crate) use namespaces;

/// What [`namespaces!`] says inside the function `CRATE::TEST::here`.
pub fn goes_on(place: &str) -> bool {
    if env::var_os(INSIDE).is_some() && !is_root() {
        // The lab's namespaces appear under /run, which is another's here.
        let tmpfs = Some("tmpfs");
        mount(tmpfs, "/run", tmpfs, MsFlags::empty(), Some("mode=0755"))
            .unwrap_or_else(|error| panic!("can't mount a tmpfs on /run: {error}"));
        assert!(is_root(), "a user namespace grants no powers over /run");
    }
    if !possible() {
        return false;
    }
    if is_root() {
        return true;
    }
    let test = place
        .split_once("::")
        .and_then(|(_, path)| path.strip_suffix("::here"))
        .unwrap_or_else(|| panic!("{place} is not in a test"));
    run_in_namespaces(test);
    false
}

/// Whether there are powers, or a way to get them. Panics if not, unless the
/// environment says that the tests need not run.
pub fn possible() -> bool {
    let Some(obstacle) = obstacle() else {
        return true;
    };
    if env::var_os("SGWALL_TESTS_WITHOUT_NAMESPACES").is_some_and(|value| value == "1") {
        // Not by `eprintln`: nobody sees what a test says that passes.
        let _ = writeln!(
            io::stderr(),
            "NOT RUN, as SGWALL_TESTS_WITHOUT_NAMESPACES=1 asks: {obstacle}"
        );
        return false;
    }
    panic!(
        "this test needs real namespaces and devices: {obstacle} (set SGWALL_TESTS_WITHOUT_NAMESPACES=1 to go without such tests)"
    );
}

/// Whether sgwall takes this process for root: see `sgwall::lab::prepare`.
pub fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let capable = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & CAPABILITIES == CAPABILITIES);
    capable && nix::unistd::geteuid().is_root() && access("/run", AccessFlags::W_OK).is_ok()
}

fn obstacle() -> Option<String> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!(
            "/dev/net/tun: {error}; run as root, or open it to everybody: chmod 666 /dev/net/tun"
        ));
    }
    if is_root() {
        return None;
    }
    let tried = Command::new("unshare").args(UNSHARE).arg("true").output();
    match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "not root, and no user namespace can be made: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Some(format!("not root, and `unshare` (util-linux): {error}")),
    }
}

fn run_in_namespaces(test: &str) {
    let output = Command::new("unshare")
        .args(UNSHARE)
        .arg(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = words(&output);
    // A name that fits no test would be a success too.
    let passed = output.status.success() && said.contains("test result: ok. 1 passed");
    assert!(passed, "in a user namespace: {said}");
    println!("{said}");
}
