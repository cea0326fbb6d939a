//! `sgwall replay` from outside: the binary, its files, its answers; and every
//! case of `tests/regressions/`.
#![allow(clippy::unwrap_used, reason = "a test that can't set up has failed")]

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use sgwall::model::protocol;
use sgwall::packet::{TcpFlags, Transport, build, split};

/// `a` may reach `b` on port 443, by one rule.
const LAB: &str = "\
vpc: { cidr: 10.0.0.0/16 }
subnets:
  one: { cidr: 10.0.1.0/24 }
security_groups:
  open: {}
  web:
    ingress: [ { protocol: tcp, ports: 443, from: 10.0.1.10/32 } ]
entities:
  a: { kind: ec2, subnet: one, addresses: [10.0.1.10], security_groups: [open] }
  b: { kind: ec2, subnet: one, addresses: [10.0.1.20], security_groups: [web] }
  two:
    kind: ec2
    interfaces:
      - { subnet: one, addresses: [10.0.1.30], security_groups: [open] }
      - { subnet: one, addresses: [10.0.1.31], security_groups: [open] }
";

const SYN: TcpFlags = TcpFlags {
    syn: true,
    ack: false,
    fin: false,
    rst: false,
};
const ACK: TcpFlags = TcpFlags {
    syn: false,
    ack: true,
    ..SYN
};
const SYN_ACK: TcpFlags = TcpFlags { ack: true, ..SYN };

#[test]
fn every_regression_comes_out_as_expected() {
    let mut cases: Vec<PathBuf> = std::fs::read_dir("tests/regressions")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("packets.txt").exists())
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    for case in cases {
        let lab = case.join("lab.yaml");
        let packets = case.join("packets.txt");
        let output = replay(&[lab.as_os_str(), packets.as_os_str()]);
        assert_eq!(output.status.code(), Some(0), "{}", both(&output));
        let text = String::from_utf8(output.stdout).unwrap();
        // A case that expects nothing shows nothing.
        assert!(text.contains(" as expected\n"), "{text}");
    }
}

#[test]
fn a_revoked_rule_stops_new_connections_and_not_the_open_one() {
    let room = Room::new();
    room.write("revoked.yaml", &LAB.replace("ports: 443", "ports: 444"));
    let list = [
        format!(
            "0 a {} = delivered to b (out by rule, in by rule)",
            tcp(A, 4000, B, 443, SYN)
        ),
        format!(
            "0.001 b {} = delivered to a (out by flow, in by flow)",
            tcp(B, 443, A, 4000, SYN_ACK)
        ),
        "# The rule goes.".to_owned(),
        "1 @ revoked.yaml".to_owned(),
        String::new(),
        format!(
            "1.5 a {} = delivered to b (out by flow, in by flow)",
            tcp(A, 4000, B, 443, ACK)
        ),
        format!(
            "2 a {} = dropped no_ingress_rule at b",
            tcp(A, 4001, B, 443, SYN)
        ),
    ];
    let output = room.replay(&list, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(!text.contains('\u{1b}'), "colour without a terminal");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        " ok   0.000  a  tcp 10.0.1.10:4000 > 10.0.1.20:443 [S], 40 bytes   delivered to b (out by rule, in by rule)"
    );
    assert!(lines[1].contains("[S.]"), "{text}");
    assert!(lines[2].contains("1.000  @  revoked.yaml"), "{text}");
    assert!(lines[2].ends_with("takes over as generation 2"), "{text}");
    assert!(lines[4].ends_with("dropped no_ingress_rule at b"), "{text}");
    assert!(
        lines[5].ends_with("packets.txt: 4 packets: 3 delivered, 1 dropped; all 4 as expected"),
        "{text}"
    );
    assert_eq!(lines.len(), 6, "{text}");
}

#[test]
fn what_is_not_as_expected_is_marked_and_ends_with_1() {
    let room = Room::new();
    let syn = tcp(A, 4000, B, 443, SYN);
    let other = tcp(A, 4000, B, 80, SYN);
    for (line, outcome) in [
        (
            format!("0 a {syn} = dropped no_ingress_rule at b"),
            "delivered to b (out by rule, in by rule)",
        ),
        (
            format!("0 a {syn} = delivered to two/eth0"),
            "delivered to b (out by rule, in by rule)",
        ),
        (
            format!("0 a {syn} = delivered to b (out by rule, in by flow)"),
            "delivered to b (out by rule, in by rule)",
        ),
        (
            format!("0 a {syn} = held"),
            "delivered to b (out by rule, in by rule)",
        ),
        (
            format!("0 a {other} = delivered to b"),
            "dropped no_ingress_rule at b",
        ),
        (
            format!("0 a {other} = dropped no_egress_rule at b"),
            "dropped no_ingress_rule at b",
        ),
        (
            format!("0 a {other} = dropped no_ingress_rule at a"),
            "dropped no_ingress_rule at b",
        ),
    ] {
        let expected = line.split(" = ").nth(1).unwrap().to_owned();
        let output = room.replay(&[line], &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let mut lines = text.lines();
        let first = lines.next().unwrap();
        assert!(first.starts_with("FAIL"), "{text}");
        assert!(
            first.ends_with(&format!("{outcome}, expected {expected}")),
            "{text}"
        );
        assert!(
            lines.next().unwrap().ends_with("0 as expected, 1 not"),
            "{text}"
        );
    }
}

#[test]
fn without_expectations_everything_is_as_expected() {
    let room = Room::new();
    let output = room.replay(&[format!("0 a {}", tcp(A, 1, B, 2, SYN))], &[]);
    let text = both(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains("1 packet: 0 delivered, 1 dropped; nothing was expected"),
        "{text}"
    );
    let output = room.replay(&[], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", both(&output));
}

#[test]
fn time_is_the_lists_own() {
    let room = Room::new();
    let question = hex(A, B, udp(4000, 53));
    let answer = hex(B, A, udp(53, 4000));
    let lab = room.write(
        "lab.yaml",
        &LAB.replace(
            "ingress: [ { protocol: tcp, ports: 443,",
            "egress: []\n    ingress: [ { protocol: udp, ports: 53,",
        ),
    );
    // One exchange has AWS's default of 30 s, a millisecond more is too long.
    let list = [
        format!("0 a {question} = delivered to b"),
        format!("29.999 b {answer} = delivered to a (out by flow, in by flow)"),
        format!("59.999 b {answer} = dropped no_egress_rule at b"),
    ];
    let packets = room.write("packets.txt", &list.join("\n"));
    let output = replay(&[lab.as_os_str(), packets.as_os_str()]);
    assert_eq!(output.status.code(), Some(0), "{}", both(&output));
}

#[test]
fn icmp_questions_are_answered_within_30_seconds() {
    let room = Room::new();
    let ping = |request, id| Transport::IcmpQuery {
        kind: if request { 8 } else { 0 },
        code: 0,
        id,
        request,
    };
    let lab = room.write(
        "lab.yaml",
        &LAB.replace("protocol: tcp, ports: 443,", "protocol: icmp, type: 8,")
            .replace("ingress: [", "egress: []\n    ingress: ["),
    );
    // As long as the next packet comes in time, it goes on.
    let list = [
        format!("0 a {} = delivered to b", hex(A, B, ping(true, 1))),
        format!(
            "29.999 b {} = delivered to a (out by flow, in by flow)",
            hex(B, A, ping(false, 1))
        ),
        format!(
            "59.998 b {} = delivered to a (out by flow, in by flow)",
            hex(B, A, ping(false, 1))
        ),
        format!(
            "89.998 b {} = dropped no_egress_rule at b",
            hex(B, A, ping(false, 1))
        ),
    ];
    let packets = room.write("packets.txt", &list.join("\n"));
    let output = replay(&[lab.as_os_str(), packets.as_os_str()]);
    assert_eq!(output.status.code(), Some(0), "{}", both(&output));
}

#[test]
fn a_tracked_flow_survives_a_change_of_groups() {
    let room = Room::new();
    room.write(
        "other.yaml",
        &LAB.replace(
            "addresses: [10.0.1.20], security_groups: [web]",
            "addresses: [10.0.1.20], security_groups: [open]",
        ),
    );
    let list = [
        format!("0 a {} = delivered to b", tcp(A, 4000, B, 443, SYN)),
        "1 @ other.yaml".to_owned(),
        format!(
            "2 a {} = delivered to b (out by flow, in by flow)",
            tcp(A, 4000, B, 443, ACK)
        ),
        format!(
            "3 a {} = dropped no_ingress_rule at b",
            tcp(A, 4001, B, 443, SYN)
        ),
    ];
    let output = room.replay(&list, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", both(&output));
}

#[test]
fn a_fragment_waits_for_its_first_and_follows_it() {
    let room = Room::new();
    let [first, later] = fragments(7);
    let [_, orphan] = fragments(8);
    let [_, twice] = fragments(9);
    let other = format!("{}1", &twice[..twice.len() - 1]);
    let list = [
        format!("0 a {later} = held"),
        format!("1 a {first} = delivered to two/eth0 (out by rule, in by rule)"),
        format!("2 a {orphan} = held"),
        format!("3 a {twice} = held"),
        format!("3 a {twice} = dropped duplicate_fragment at a"),
        format!("4 a {other} = dropped overlapping_fragment at a"),
        format!("40 a {} = delivered to b", tcp(A, 4000, B, 443, SYN)),
    ];
    let packets = room.write("packets.txt", &list.join("\n"));
    let lab = room.write(
        "lab.yaml",
        &LAB.replace(
            "  open: {}",
            "  open: { ingress: [ { protocol: udp, ports: 53, from: 10.0.1.0/24 } ] }",
        ),
    );
    let output = replay(&[lab.as_os_str(), packets.as_os_str()]);
    let text = both(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].contains("udp 10.0.1.10 > 10.0.1.30, fragment 16-32 of 7, 36 bytes"),
        "{text}"
    );
    assert!(lines[0].ends_with("held"), "{text}");
    assert!(
        lines[1]
            .contains("udp 10.0.1.10:4000 > 10.0.1.30:53, fragment 0-16 and more of 7, 36 bytes"),
        "{text}"
    );
    let follows =
        "follows: udp 10.0.1.10 > 10.0.1.30, fragment 16-32 of 7, 36 bytes  delivered to two/eth0";
    assert!(lines[2].trim_start().starts_with(follows), "{text}");
    assert!(
        lines[7]
            .trim_start()
            .starts_with("with it: dropped overlapping_fragment, 1 fragment"),
        "{text}"
    );
    assert!(
        lines[9].ends_with("before: dropped orphan_fragment at a, 1 fragment"),
        "{text}"
    );
    assert!(
        lines[10].contains("7 packets: 2 delivered, 2 dropped, 3 held; all 7"),
        "{text}"
    );

    let output = replay(&[
        lab.as_os_str(),
        packets.as_os_str(),
        "--format".as_ref(),
        "json".as_ref(),
    ]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["held"], 3);
    let events = answer["events"].as_array().unwrap();
    assert_eq!(events[0]["verdict"], "held");
    assert_eq!(events[0]["besides"], Value::Null);
    assert_eq!(events[1]["besides"][0]["what"], "released");
    assert_eq!(events[1]["besides"][0]["verdict"], "delivered");
    assert_eq!(events[1]["besides"][0]["to"], "two/eth0");
    assert_eq!(events[5]["besides"][0]["what"], "lost");
    assert_eq!(events[6]["besides"][0]["what"], "orphaned");
}

#[test]
fn what_is_too_big_shows_what_its_sender_hears() {
    let room = Room::new();
    let icmp = "{ protocol: icmp, type: 3, code: 4, from: 10.0.1.0/24 }";
    let small = LAB.replace(
        "addresses: [10.0.1.20],",
        "addresses: [10.0.1.20], mtu: 1500,",
    );
    room.write("deaf.yaml", &small);
    let lab = room.write(
        "lab.yaml",
        &small.replace("  open: {}", &format!("  open: {{ ingress: [ {icmp} ] }}")),
    );
    let transport = Transport::Tcp {
        source: 4000,
        destination: 443,
        flags: ACK,
        end: 2000,
        acknowledgement: 1,
    };
    let mut long = packet(A, B, transport, &[0; 2000]);
    let whole = as_hex(&long);
    // Without DF it goes on in fragments.
    long[6] = 0;
    let header = etherparse::Ipv4Header::from_slice(&long).unwrap().0;
    long[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    let list = [
        format!("0 a {whole} = dropped too_big at b"),
        format!("1 a {} = delivered to b", as_hex(&long)),
        "2 @ deaf.yaml".to_owned(),
        format!("3 a {whole} = dropped too_big at b"),
    ];
    let packets = room.write("packets.txt", &list.join("\n"));
    let output = replay(&[lab.as_os_str(), packets.as_os_str()]);
    let text = both(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    assert!(
        lines[1].starts_with("answered: icmp 10.0.1.20 > 10.0.1.10 type 3 code 4, 576 bytes"),
        "{text}"
    );
    assert!(
        lines[3].starts_with("in fragments of at most 1500 bytes"),
        "{text}"
    );
    assert!(
        lines[6].starts_with("its answer: dropped no_ingress_rule at a"),
        "{text}"
    );
}

#[test]
fn rules_files_stay_when_another_lab_takes_over() {
    let room = Room::new();
    let rules = room.write(
        "rules.yaml",
        "security_groups: { web: { ingress: [ { protocol: tcp, ports: 443, from: 10.0.1.10/32 } ] } }\n",
    );
    let without = LAB.replace(
        "  web:\n    ingress: [ { protocol: tcp, ports: 443, from: 10.0.1.10/32 } ]\n",
        "",
    );
    let lab = room.write("lab.yaml", &without);
    room.write("next.yaml", &without);
    let list = [
        format!("0 a {} = delivered to b", tcp(A, 1, B, 443, SYN)),
        "1 @ next.yaml".to_owned(),
        format!("2 a {} = delivered to b", tcp(A, 2, B, 443, SYN)),
    ];
    let packets = room.write("packets.txt", &list.join("\n"));
    let output = replay(&[
        lab.as_os_str(),
        packets.as_os_str(),
        "--rules".as_ref(),
        rules.as_os_str(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", both(&output));
}

#[test]
fn json_says_the_same() {
    let room = Room::new();
    room.write("same.yaml", LAB);
    let list = [
        format!("0.25 a {} = delivered to b", tcp(A, 4000, B, 443, SYN)),
        "0.5 @ same.yaml".to_owned(),
        format!(
            "1 two/eth1 {} = delivered to b",
            hex("10.0.1.31", B, udp(1, 2))
        ),
        format!("1 b {}", tcp(B, 443, A, 4000, SYN_ACK)),
    ];
    let output = room.replay(&list, &["--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["as_expected"], false);
    for (count, expected) in [
        ("packets", 3),
        ("delivered", 2),
        ("dropped", 1),
        ("expectations", 2),
        ("unmet", 1),
    ] {
        assert_eq!(answer[count], expected, "{count}");
    }
    let events = answer["events"].as_array().unwrap();
    assert_eq!(events[0]["event"], "packet");
    assert_eq!(events[0]["line"], 1);
    assert_eq!(events[0]["time"], 0.25);
    assert_eq!(events[0]["from"], "a");
    assert_eq!(events[0]["verdict"], "delivered");
    assert_eq!(events[0]["to"], "b");
    assert_eq!(events[0]["out"]["by"], "rule");
    assert!(
        events[0]["in"]["rule"]
            .as_str()
            .unwrap()
            .starts_with("sgr-")
    );
    assert_eq!(events[0]["met"], true);
    assert_eq!(events[1]["event"], "change");
    assert_eq!(events[1]["file"], "same.yaml");
    assert_eq!(events[1]["generation"], 2);
    assert_eq!(events[2]["from"], "two/eth1");
    assert_eq!(events[2]["verdict"], "dropped");
    assert_eq!(events[2]["reason"], "no_ingress_rule");
    assert_eq!(events[2]["at"], "b");
    assert_eq!(events[2]["met"], false);
    assert_eq!(events[2]["expected"], "delivered to b");
    assert_eq!(events[3]["out"]["by"], "flow");
    assert_eq!(events[3]["met"], Value::Null);
}

#[test]
fn an_interface_goes_by_its_name_its_device_and_its_id() {
    let room = Room::new();
    let lab = room.write(
        "lab.yaml",
        &LAB.replace(
            "a: { kind: ec2, subnet: one, addresses: [10.0.1.10], security_groups: [open] }",
            "a: { kind: ec2, interfaces: [ { id: eni-0123456789abcdef0, subnet: one, addresses: [10.0.1.10], security_groups: [open] } ] }",
        ),
    );
    let syn = tcp(A, 4000, B, 443, SYN);
    let list: Vec<String> = ["a", "a/eth0", "eni-0123456789abcdef0"]
        .iter()
        .map(|name| format!("0 {name} {syn} = delivered to b/eth0"))
        .collect();
    let packets = room.write("packets.txt", &list.join("\n"));
    let output = replay(&[lab.as_os_str(), packets.as_os_str()]);
    assert_eq!(output.status.code(), Some(0), "{}", both(&output));
}

#[test]
fn each_mistake_is_named_with_its_place_and_a_remedy() {
    let room = Room::new();
    room.write("broken.yaml", "vpc: { cidr: 10.0.0.0/16 }\nsubnet: {}\n");
    room.write("other.yaml", &LAB.replace("10.0.1.31", "10.0.1.32"));
    let mut packet = tcp(A, 4000, B, 443, SYN);
    packet.truncate(8);
    // The line, the column, the offending text, what is said, the remedy.
    let mistakes = [
        (
            "soon a 45",
            1,
            "soon",
            "`soon` is no time",
            "seconds since the start",
        ),
        ("1", 1, "1", "nothing happens", "TIME INTERFACE HEX"),
        ("1 a", 3, "a", "no packet follows", "TIME INTERFACE HEX"),
        ("1 aa 45", 3, "aa", "no interface `aa`", "did you mean `a`?"),
        (
            "1 zebra 45",
            3,
            "zebra",
            "no interface `zebra`",
            "the lab's interfaces are a, b, two/eth0, two/eth1",
        ),
        (
            "1 two 45",
            3,
            "two",
            "several interfaces",
            "two/eth0, two/eth1",
        ),
        (
            "1 a 4g",
            6,
            "g",
            "no hexadecimal digit",
            "two hexadecimal digits",
        ),
        ("1 a 450", 7, "0", "half a byte", "two hexadecimal digits"),
        (
            "1 a 45 46",
            8,
            "46",
            "`46` follows the packet",
            "= EXPECTED",
        ),
        (
            "1 a 45 =",
            8,
            "=",
            "nothing that can be expected",
            "delivered to INTERFACE",
        ),
        (
            "1 a 45 = gone",
            10,
            "gone",
            "nothing that can be expected",
            "held",
        ),
        (
            "1 a 45 = dropped no_egres_rule at a",
            18,
            "no_egres_rule",
            "dropped for `no_egres_rule`",
            "did you mean `no_egress_rule`?",
        ),
        (
            "1 a 45 = dropped thirst at a",
            18,
            "thirst",
            "dropped for `thirst`",
            "too_big",
        ),
        (
            "1 a 45 = delivered to bb",
            23,
            "bb",
            "no interface `bb`",
            "did you mean `b`?",
        ),
        (
            "1 a 45 = delivered to b (by luck)",
            25,
            "(by luck)",
            "what lets a packet out and in",
            "out by rule, in by flow",
        ),
        ("1 @", 3, "@", "no lab file is named", "lab-1.yaml"),
        (
            "1 @ missing.yaml",
            5,
            "missing.yaml",
            "no valid lab file",
            "beside the list",
        ),
        (
            "1 @ broken.yaml",
            5,
            "broken.yaml",
            "no valid lab file",
            "beside the list",
        ),
        (
            "1 @ other.yaml",
            5,
            "other.yaml",
            "can't take over",
            "as it is in the first lab file",
        ),
        (
            "0.5 a 45",
            1,
            "0.5",
            "is before the line above",
            "put the lines in order",
        ),
    ];
    let list: Vec<String> = mistakes
        .iter()
        .map(|(line, ..)| (*line).to_owned())
        .collect();
    let output = room.replay(&list, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    let output = room.replay(&list, &["--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["valid"], false);
    let found = answer["diagnostics"].as_array().unwrap();
    for (number, (line, column, offending, message, help)) in (1..).zip(mistakes) {
        let one = &found[number - 1];
        assert_eq!(one["line"], number, "{line}: {one}");
        assert_eq!(one["column"], column, "{line}: {one}");
        assert_eq!(one["text"], offending, "{line}: {one}");
        assert!(
            one["message"].as_str().unwrap().contains(message),
            "{line}: {one}"
        );
        assert!(
            one["help"].as_str().unwrap().contains(help),
            "{line}: {one}"
        );
        assert!(
            text.contains(&format!("packets.txt:{number}:{column}\n")),
            "{line}: {text}"
        );
    }
    // The mistakes of the files it names come after its own.
    let rest: Vec<&str> = found[mistakes.len()..]
        .iter()
        .map(|one| one["file"].as_str().unwrap())
        .collect();
    assert!(
        rest.iter().any(|file| file.ends_with("broken.yaml")),
        "{rest:?}"
    );
    assert!(
        rest.iter().any(|file| file.ends_with("missing.yaml")),
        "{rest:?}"
    );
    assert!(text.contains("broken.yaml:2:1"), "{text}");
    assert!(text.contains("packets.txt: invalid: "), "{text}");
}

#[test]
fn files_that_are_no_lists_are_refused_with_the_reason() {
    let room = Room::new();
    let lab = room.write("lab.yaml", LAB);
    let huge = room.0.path().join("huge.txt");
    std::fs::File::create(&huge)
        .unwrap()
        .set_len(9 << 20)
        .unwrap();
    let long = room.write("long.txt", &"0 a 45\n".repeat(100_001));
    let jumbo = room.write("jumbo.txt", &format!("0 a {}", "45".repeat(65_576)));
    let changes = room.write("changes.txt", &"0 @ lab.yaml\n".repeat(1001));
    for (path, message) in [
        (room.0.path(), "directory"),
        (Path::new("/nonexistent/packets.txt"), "No such file"),
        (Path::new("/dev/zero"), "device"),
        (&huge, "larger than 8 MiB"),
        (&long, "more than 100000 packets and changes"),
        (&jumbo, "65576 bytes are no IP packet"),
        (&changes, "more than 1000 changes"),
    ] {
        let output = replay(&[lab.as_os_str(), path.as_os_str()]);
        let text = both(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(message), "{text}");
        assert!(text.contains("= help: "), "{text}");
    }
    let output = replay(&[
        Path::new("/nonexistent/lab.yaml").as_os_str(),
        lab.as_os_str(),
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", both(&output));
}

#[test]
fn wrong_arguments_are_wrong_usage() {
    assert_eq!(replay(&[]).status.code(), Some(2));
    assert_eq!(replay(&["lab.yaml".as_ref()]).status.code(), Some(2));
}

const A: &str = "10.0.1.10";
const B: &str = "10.0.1.20";

/// A directory for one test's files, with [`LAB`] as its `lab.yaml`.
struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        let room = Self(tempfile::tempdir().unwrap());
        room.write("lab.yaml", LAB);
        room
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn replay(&self, list: &[String], more: &[&str]) -> Output {
        let packets = self.write("packets.txt", &(list.join("\n") + "\n"));
        let lab = self.0.path().join("lab.yaml");
        let mut arguments = vec![lab.as_os_str(), packets.as_os_str()];
        arguments.extend(more.iter().map(std::ffi::OsStr::new));
        replay(&arguments)
    }
}

fn replay(arguments: &[&std::ffi::OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sgwall"))
        .arg("replay")
        .args(arguments)
        .output()
        .unwrap()
}

fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn tcp(from: &str, source: u16, to: &str, destination: u16, flags: TcpFlags) -> String {
    let transport = Transport::Tcp {
        source,
        destination,
        flags,
        end: 1,
        acknowledgement: 0,
    };
    hex(from, to, transport)
}

fn udp(source: u16, destination: u16) -> Transport {
    Transport::Udp {
        source,
        destination,
    }
}

/// A UDP datagram from `a` to `two` in two fragments.
fn fragments(id: u8) -> [String; 2] {
    let mut whole = packet(A, "10.0.1.30", udp(4000, 53), &[0; 24]);
    whole[5] = id;
    whole[6] = 0;
    let mut parts = Vec::new();
    split(&whole, 36, &mut [0; 36], |part| parts.push(as_hex(part))).unwrap();
    parts.try_into().unwrap()
}

fn hex(from: &str, to: &str, transport: Transport) -> String {
    as_hex(&packet(from, to, transport, &[]))
}

fn packet(from: &str, to: &str, transport: Transport, payload: &[u8]) -> Vec<u8> {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    build(
        address(from),
        address(to),
        protocol::TCP,
        transport,
        payload,
    )
    .unwrap()
}

fn as_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}
