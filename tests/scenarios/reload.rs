//! Rules that change while packets flow.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::net::{self, Seen};
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, Start, THREE_TIER, at, without_rules};

/// How long an attempt of these tests waits before it counts as refused.
const MOMENT: Duration = Duration::from_millis(300);

#[test]
fn a_deleted_rule_stops_new_connections_and_keeps_those_that_are_open() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let server = lab.inside("db", || TcpListener::bind((db(), 5432)).unwrap());
    let client = lab.inside("web-1", || TcpStream::connect((db(), 5432)).unwrap());
    let (served, _) = server.accept().unwrap();
    drop(server);
    still_talk(&client, &served);
    assert_eq!(
        attempt(&lab),
        Seen::Refused,
        "nobody listens any more, and packets pass"
    );

    let without = without_rules(THREE_TIER, &["PostgreSQL from the web"]);
    lab.save(&without);
    lab.event("reloaded");
    assert_eq!(attempt(&lab), Seen::Silent);
    still_talk(&client, &served);

    // A file with a mistake changes nothing.
    let before = lab.status();
    lab.save(&without.replace("entities:", "entities: ]"));
    let refusal = lab.event("refused");
    let mistakes = refusal["diagnostics"].as_array().unwrap();
    assert!(!mistakes.is_empty(), "{refusal}");
    let policy = &lab.status()["policy"];
    assert_eq!(policy["generation"], before["policy"]["generation"]);
    assert_eq!(policy["refused"], 1, "{policy}");
    assert!(policy["last_refusal"].is_string(), "{policy}");
    assert_eq!(attempt(&lab), Seen::Silent);
    still_talk(&client, &served);

    lab.save(THREE_TIER);
    lab.event("reloaded");
    assert_eq!(attempt(&lab), Seen::Refused);
    still_talk(&client, &served);
    lab.down();
}

#[test]
fn rules_of_a_file_beside_the_lab_file_are_watched_too() {
    if !namespaces!() {
        return;
    }
    let (lab_text, rules) = split(THREE_TIER);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.yaml");
    fs::write(&path, &rules).unwrap();
    let mut start = Start::new(&lab_text);
    start.arguments = vec!["--rules".into(), path.display().to_string()];
    let lab = Lab::start(&start);
    lab.event("enforcing");
    assert_eq!(
        attempt(&lab),
        Seen::Refused,
        "nobody listens, and packets pass"
    );

    // Written in place, as `cp` and some editors do.
    fs::write(&path, without_rules(&rules, &["PostgreSQL from the web"])).unwrap();
    lab.event("reloaded");
    assert_eq!(attempt(&lab), Seen::Silent);
    fs::write(&path, "security_groups: [\n").unwrap();
    lab.event("refused");
    assert_eq!(attempt(&lab), Seen::Silent);
    fs::remove_file(&path).unwrap();
    lab.event("refused");
    assert_eq!(attempt(&lab), Seen::Silent);
    fs::write(&path, &rules).unwrap();
    lab.event("reloaded");
    assert_eq!(attempt(&lab), Seen::Refused);
    lab.down();
}

#[test]
fn sighup_reads_the_files_again() {
    if !namespaces!() {
        return;
    }
    let mut lab = Lab::up(THREE_TIER);
    let before = lab.status()["policy"]["generation"].as_u64().unwrap();
    lab.process.signal(Signal::SIGHUP);
    // The event names the rules in force.
    let event = lab.event("unchanged");
    assert_eq!(event["generation"], before);
    let policy = lab.status()["policy"].clone();
    assert_eq!(policy["generation"], before);
    assert_eq!(policy["reloads"], 0);
    assert_eq!(attempt(&lab), Seen::Refused);
    lab.down();
}

#[test]
fn a_file_that_is_written_with_a_pause_is_not_obeyed_half_written() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let before = lab.status()["policy"]["generation"].clone();
    // The file lacks only the last rules, and is a valid lab.
    let mut writer = fs::File::create(&lab.config).unwrap();
    let half = without_rules(THREE_TIER, &["PostgreSQL from the web"]);
    writer.write_all(half.as_bytes()).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(lab.status()["policy"]["generation"], before);
    writer.write_all(b"# the rest\n").unwrap();
    drop(writer);
    lab.event("reloaded");
    assert_eq!(attempt(&lab), Seen::Silent);
    lab.down();
}

/// Runs the program in a mount namespace in which the lab file is a mount of the file beside it
/// whose name ends in `.real`.
const MOUNTED: &str = r#"cp "$3" "$3.real" && mount --bind "$3.real" "$3" && exec "$@""#;

#[test]
fn a_file_that_is_replaced_under_its_mount_is_told_of() {
    if !namespaces!() {
        return;
    }
    let mut start = Start::new(THREE_TIER);
    start.through = ["unshare", "-m", "sh", "-c", MOUNTED, "sh"]
        .map(String::from)
        .to_vec();
    for by_backup in [false, true] {
        let mut lab = Lab::start(&start);
        lab.event_where("warning", |event| {
            let why = event["why"].as_str();
            why.is_some_and(|why| why.contains("is mounted by itself"))
        });
        lab.event("enforcing");
        let generation = lab.status()["policy"]["generation"].clone();

        let real = lab.config.with_extension("yaml.real");
        let fresh = lab.config.with_extension("new");
        fs::write(
            &fresh,
            without_rules(THREE_TIER, &["PostgreSQL from the web"]),
        )
        .unwrap();
        if by_backup {
            fs::rename(&real, real.with_extension("bak")).unwrap();
        }
        fs::rename(&fresh, &real).unwrap();
        let why = lab.event("unread")["why"].as_str().unwrap().to_owned();
        assert!(why.contains("mount its folder"), "{why}");
        let policy = lab.status()["policy"].clone();
        assert_eq!(policy["generation"], generation);
        assert_eq!(policy["unread"], why.as_str(), "{policy}");
        let probe = lab.sgwall("status").arg("--probe").output().unwrap();
        let probe = String::from_utf8_lossy(&probe.stdout).into_owned();
        assert!(probe.contains("mount its folder"), "{probe}");
        // An explicit reload reports the obstacle again, and no new rules.
        lab.process.signal(Signal::SIGHUP);
        lab.event("unread");
        lab.event("unchanged");
        lab.down();
    }
}

/// Runs the program in the directory `$0`, with a relative path to the lab file.
const RELATIVE: &str =
    r#"cp "$3" "$0" && cd "$0" && p=$1 && shift 3 && exec "$p" run lab.yaml "$@""#;

#[test]
fn files_in_a_directory_that_is_made_again_are_watched_on() {
    if !namespaces!() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("checkout");
    fs::create_dir(&dir).unwrap();
    let mut start = Start::new(THREE_TIER);
    let through = ["sh", "-c", RELATIVE, dir.to_str().unwrap()];
    start.through = through.map(String::from).to_vec();
    let lab = Lab::start(&start);
    lab.event("enforcing");
    fs::remove_dir_all(&dir).unwrap();
    lab.event("refused");
    fs::create_dir(&dir).unwrap();
    let without = without_rules(THREE_TIER, &["PostgreSQL from the web"]);
    fs::write(dir.join("lab.yaml"), without).unwrap();
    lab.event("reloaded");
    assert_eq!(attempt(&lab), Seen::Silent);
    lab.down();
}

#[test]
fn a_change_of_membership_takes_effect() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let from_lb = || lab.inside("lb", || net::tcp(db(), 5432, MOMENT));
    assert_eq!(from_lb(), Seen::Silent);
    lab.save(&THREE_TIER.replace("security_groups: [lb]", "security_groups: [lb, web]"));
    lab.event("reloaded");
    // `lb` is now one of the members that `sg/web` stands for.
    assert_eq!(from_lb(), Seen::Refused);
    let status = lab.status();
    let groups = &at(&status, "lb")["security_groups"];
    assert_eq!(groups, &serde_json::json!(["lb", "web"]));
    lab.save(THREE_TIER);
    lab.event("reloaded");
    assert_eq!(from_lb(), Seen::Silent);
    lab.down();
}

#[test]
fn a_change_of_topology_is_refused_and_changes_nothing() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let generation = lab.status()["policy"]["generation"].clone();
    let fewer = without_rules(THREE_TIER, &["PostgreSQL from the web"]);
    for (text, what) in [
        (
            fewer.replace(
                "\nentities:\n",
                "\nentities:\n  web-3: { kind: ecs, subnet: app, security_groups: [web] }\n",
            ),
            "entity 'web-3' is new",
        ),
        (
            fewer.replace("10.0.2.22", "10.0.2.23"),
            "entity 'web-2' changed",
        ),
        (
            fewer.replace("  web-2:", "  web-4:"),
            "entity 'web-2' is gone",
        ),
    ] {
        assert_ne!(text, fewer);
        lab.save(&text);
        let why = lab.event("refused")["why"].as_str().unwrap().to_owned();
        assert!(
            why.contains(what) && why.contains("stop it and start it again"),
            "{why}"
        );
        assert_eq!(attempt(&lab), Seen::Refused, "the rule is still in force");
    }
    let policy = lab.status()["policy"].clone();
    assert_eq!(policy["generation"], generation);
    assert_eq!(
        (&policy["refused"], &policy["reloads"]),
        (&3.into(), &0.into())
    );
    lab.down();
}

fn db() -> IpAddr {
    [10, 0, 3, 10].into()
}

/// A connection from a web task to the database's port.
fn attempt(lab: &Lab) -> Seen {
    lab.inside("web-2", || net::tcp(db(), 5432, MOMENT))
}

/// Says something in each direction of an open connection.
fn still_talk(one: &TcpStream, other: &TcpStream) {
    for (mut from, mut to) in [(one, other), (other, one)] {
        to.set_read_timeout(Some(PATIENCE)).unwrap();
        from.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        to.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}

/// The lab file without its groups, and the groups.
fn split(text: &str) -> (String, String) {
    let start = text.find("security_groups:").unwrap();
    let end = text.find("\nnetwork_acls:").unwrap();
    let lab = format!("{}{}", &text[..start], &text[end..]);
    (lab, text[start..=end].to_owned())
}
