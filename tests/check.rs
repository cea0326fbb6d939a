//! `sgwall check` from outside: the binary, its files, its answers.
#![allow(clippy::unwrap_used, reason = "a test that can't set up has failed")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use proptest::prelude::*;
use serde_json::Value;
use sgwall::model::{MAX_ACL_RULE, RouteTarget};

#[test]
fn a_file_with_ten_mistakes_names_each_with_place_text_and_remedy() {
    let file = "tests/data/check/ten-mistakes.yaml";
    let expected = [
        (
            4,
            18,
            "10.9.2.0/24",
            "outside the VPC",
            "choose a block within 10.0.0.0/16",
        ),
        (
            7,
            5,
            "ingres",
            "has no key `ingres`",
            "did you mean `ingress`?",
        ),
        (
            10,
            33,
            "70000",
            "is outside 0-65535",
            "ports are from 0 to 65535",
        ),
        (
            11,
            45,
            "sg/wbe",
            "there is no security group `wbe`",
            "did you mean `sg/web`?",
        ),
        (
            12,
            9,
            "{ protocol: tcp, from: 10.0.1.0/24 }",
            "the tcp rule has no `ports`",
            "`ports: 0-65535` for every port",
        ),
        (
            13,
            43,
            "10.0.0.5",
            "`10.0.0.5` is no CIDR block",
            "write `10.0.0.5/32`",
        ),
        (
            14,
            37,
            "to",
            "an ingress rule takes `from`, not `to`",
            "write `from`",
        ),
        (
            17,
            18,
            "ec3",
            "there is no kind `ec3`",
            "did you mean `ec2`?",
        ),
        (
            18,
            48,
            "10.0.1.20",
            "`10.0.1.20` is used twice",
            "an address of its own",
        ),
        (
            19,
            41,
            "jumbo",
            "`mtu` must be a number",
            "write a number from 1280 to 9001",
        ),
    ];

    let list = hold_mistakes(file, &expected);
    // The address that is used twice shows the first use as well.
    assert_eq!(list[8]["related"][0]["line"], 16);
    assert_eq!(list[8]["related"][0]["column"], 48);
    assert_eq!(list[8]["related"][0]["text"], "10.0.1.20");
}

#[test]
fn mistakes_in_acls_and_route_tables_are_named_likewise() {
    let file = "tests/data/check/network-mistakes.yaml";
    let expected = [
        (
            3,
            43,
            "dta",
            "there is no network ACL `dta`",
            "did you mean `data`?",
        ),
        (
            4,
            43,
            "isolatd",
            "there is no route table `isolatd`",
            "did you mean `isolated`?",
        ),
        (
            8,
            17,
            "32767",
            "the entry `32767` is AWS's own",
            "remove the entry",
        ),
        (
            9,
            69,
            "sg/web",
            "a network ACL knows no security groups",
            "write a block that holds the addresses",
        ),
        (
            11,
            9,
            "{ rule: 120, action: allow, protocol: tcp, from: 10.0.1.0/24 }",
            "the tcp entry has no `ports`",
            "`ports: 0-65535` for every port",
        ),
        (
            12,
            9,
            "{ rule: 130, action: allow, protocol: icmpv6, type: 128, from: \"::/0\" }",
            "the icmpv6 entry has no `code`",
            "write `code: -1`",
        ),
        (
            13,
            63,
            "to",
            "an ingress entry takes `from`, not `to`",
            "write `from`",
        ),
        (
            14,
            17,
            "110",
            "has two entries number 110",
            "give each its own",
        ),
        (
            19,
            13,
            "10.0.2.0/25",
            "more specific than the local one must have a whole subnet's block",
            "write `10.0.2.0/24`",
        ),
        (
            20,
            13,
            "10.0.0.0/16",
            "is the VPC's own block",
            "write `via: eni/NAME`",
        ),
        (
            21,
            13,
            "169.254.169.0/24",
            "AWS admits no route",
            "remove the route",
        ),
        (
            22,
            32,
            "eni/fw",
            "`fw` has 2 interfaces",
            "write `eni/fw/eth0` or `eni/fw/eth1`",
        ),
        (
            24,
            13,
            "198.51.100.0/24",
            "has two routes to `198.51.100.0/24`",
            "remove one of the two",
        ),
        (
            31,
            39,
            "web",
            "there is no type `web` of load balancer",
            "the types are `application` and `network`",
        ),
        (
            32,
            58,
            "400",
            "`udp_stream` must be from 60 to 180",
            "write a number from 60 to 180",
        ),
    ];
    let list = hold_mistakes(file, &expected);
    assert_eq!(list[7]["related"][0]["line"], 10);
    assert_eq!(list[12]["related"][0]["line"], 23);
}

#[test]
fn quotas_are_errors_until_they_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let rules: String = (0..61)
        .map(|port| format!("      - {{ protocol: tcp, ports: {port}, from: 10.0.0.0/8 }}\n"))
        .collect();
    let lab = write(
        &dir,
        "lab.yaml",
        &format!(
            "vpc: {{ cidr: 10.0.0.0/16 }}
subnets: {{ app: {{ cidr: 10.0.1.0/24 }} }}
entities: {{ a: {{ kind: ec2, subnet: app }}, b: {{ kind: ec2, subnet: app }} }}
security_groups:
  web:
    ingress:
{rules}"
        ),
    );
    let output = check(&[&lab]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&format!("{lab}:6:5\n")), "{text}");
    assert!(
        text.contains("has 61 IPv4 rules; AWS's quota is 60"),
        "{text}"
    );
    assert!(text.contains("`--ignore-quotas`"), "{text}");

    let output = check(&[&lab, "--ignore-quotas"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("warning: "), "{text}");
    assert!(
        text.contains("has 61 IPv4 rules; AWS's quota is 60"),
        "{text}"
    );

    let explain = [
        "explain",
        &lab,
        "--from",
        "a",
        "--to",
        "b",
        "--protocol",
        "tcp",
        "--port",
        "1",
    ];
    let output = sgwall(&explain);
    assert!(output.stdout.is_empty(), "{output:?}");
    let output = sgwall(&[&explain[..], &["--ignore-quotas"]].concat());
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .starts_with("ALLOWED"),
        "the two share the default group"
    );
}

#[test]
fn an_ipv6_extension_header_is_no_protocol_to_ask_about() {
    let explain = |to, number| {
        let question = ["--from", "client", "--to", to, "--protocol", number];
        sgwall(&[&["explain", "configs/dual-stack.yaml"], &question[..]].concat())
    };
    for number in ["0", "43", "44", "60"] {
        let output = explain("2001:db8:2:1::10", number);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("is an IPv6 extension header"), "{text}");
        assert!(text.contains("that follows"), "{text}");
    }
    // Over IPv4 these numbers are ordinary protocols, and so are ESP, AH and the headers that may
    // follow them over both versions.
    for (to, number) in [
        ("203.0.113.20", "0"),
        ("203.0.113.20", "60"),
        ("2001:db8:2:1::10", "ah"),
        ("2001:db8:2:1::10", "135"),
    ] {
        let output = explain(to, number);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("no ingress rule allows"), "{text}");
    }
}

#[test]
fn a_valid_lab_is_counted() {
    let output = check(&["configs/three-tier.yaml"]);
    let text = String::from_utf8(output.stdout).unwrap();
    for count in [
        "3 subnets",
        "4 security groups",
        "2 network ACLs, 2 route tables, 5 entities",
    ] {
        assert!(text.contains(count), "{text}");
    }
    let output = check(&["configs/three-tier.yaml", "--format", "json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["summary"]["network_acls"], 2);
    assert_eq!(answer["summary"]["route_tables"], 2);
}

#[test]
fn a_group_defined_in_two_files_shows_both_places() {
    let dir = tempfile::tempdir().unwrap();
    let lab = write(
        &dir,
        "lab.yaml",
        "vpc: { cidr: 10.0.0.0/16 }\nsecurity_groups:\n  web: {}\n",
    );
    let one = write(&dir, "one.yaml", "security_groups:\n  db: {}\n");
    let two = write(
        &dir,
        "two.yaml",
        "# later\nsecurity_groups:\n  db: {}\n  Web: {}\n",
    );
    let args = [
        &*lab, "--rules", &*one, "--rules", &*two, "--format", "json",
    ];
    let answer: Value = serde_json::from_slice(&check(&args).stdout).unwrap();
    let list = answer["diagnostics"].as_array().unwrap();
    assert_eq!(list.len(), 2, "{answer:#}");
    let places = |i: usize| {
        let related = &list[i]["related"][0];
        (
            list[i]["file"].clone(),
            list[i]["line"].clone(),
            related["file"].clone(),
            related["line"].clone(),
        )
    };
    assert_eq!(
        places(0),
        ((*two).into(), 3.into(), (*one).into(), 2.into())
    );
    assert_eq!(
        places(1),
        ((*two).into(), 4.into(), (*lab).into(), 3.into())
    );
    let text = String::from_utf8(check(&args[..5]).stderr).unwrap();
    assert!(text.contains(&format!("{two}:3:3")), "{text}");
    assert!(text.contains(&format!("{one}:2:3")), "{text}");
    assert!(text.contains("first defined here"), "{text}");
}

#[test]
fn every_lab_that_comes_with_the_project_is_valid_without_a_warning() {
    let mut labs = 0;
    for entry in std::fs::read_dir("configs").unwrap() {
        let path = entry.unwrap().path();
        let name = path.to_str().unwrap();
        let output = check(&[name]);
        assert_eq!(output.status.code(), Some(0), "{name}: {output:?}");
        assert!(output.stderr.is_empty(), "{name}: {output:?}");
        let summary = String::from_utf8(output.stdout).unwrap();
        assert!(
            summary.starts_with(&format!("{name}: valid: ")),
            "{summary}"
        );
        let answer: Value =
            serde_json::from_slice(&check(&[name, "--format", "json"]).stdout).unwrap();
        assert_eq!(answer["valid"], true);
        assert_eq!(answer["diagnostics"], serde_json::json!([]));
        labs += 1;
    }
    assert!(labs >= 6);
}

#[test]
fn files_that_are_no_files_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let latin = dir.path().join("latin.yaml");
    std::fs::write(&latin, b"vpc: { cidr: 10.0.0.0/16 }\n# caf\xe9\n").unwrap();
    let huge = dir.path().join("huge.yaml");
    std::fs::File::create(&huge)
        .unwrap()
        .set_len(9 << 20)
        .unwrap();
    let empty = write(&dir, "empty.yaml", "# nothing\n");
    for (path, message) in [
        (dir.path().to_str().unwrap(), "directory"),
        ("/nonexistent/lab.yaml", "No such file"),
        ("/dev/zero", "device"),
        (latin.to_str().unwrap(), "line 2"),
        (huge.to_str().unwrap(), "larger than 8 MiB"),
        (&empty, "empty"),
    ] {
        let output = check(&[path]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{path}: {text}");
        assert!(
            text.contains(message) && text.contains(path),
            "{path}: {text}"
        );
        assert!(text.contains("= help: "), "{path}: {text}");
    }
}

#[test]
fn wrong_arguments_are_wrong_usage() {
    assert_eq!(check(&[]).status.code(), Some(2));
    assert_eq!(check(&["a", "--format", "xml"]).status.code(), Some(2));
}

#[test]
fn several_files_are_several_labs_and_a_dash_is_standard_input() {
    let (good, bad) = (
        "configs/three-tier.yaml",
        "tests/data/check/ten-mistakes.yaml",
    );
    let output = check(&[good, bad, "configs/dual-stack.yaml"]);
    assert_eq!(output.status.code(), Some(1));
    let valid = String::from_utf8(output.stdout).unwrap();
    assert_eq!(valid.matches(": valid: ").count(), 2, "{valid}");
    let output = check(&[good, bad, "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["valid"], false);
    assert_eq!(answer["labs"][0]["valid"], true);
    assert_eq!(answer["labs"][1]["files"][0], bad);

    for (file, code, words) in [(good, 0, "<stdin>: valid: "), (bad, 1, "--> <stdin>:4:18")] {
        let output = Command::new(env!("CARGO_BIN_EXE_sgwall"))
            .args(["check", "-"])
            .stdin(std::fs::File::open(file).unwrap())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(said.contains(words), "{said}");
    }
    // Standard input can be read only once, so it can't be watched for changes.
    let output = sgwall(&["run", "-"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_question_that_makes_no_sense_says_how_to_mend_it() {
    let lab = "configs/three-tier.yaml";
    for (from, protocol, words) in [
        ("wbe-1", "icmp", "did you mean 'web-1'?"),
        ("mainframe", "icmp", "the entities are client, lb"),
        ("web-1", "tpc", "did you mean 'tcp'?"),
        (
            "web-1",
            "-1",
            "'-1' means every protocol, and a packet has one: give tcp",
        ),
        ("web-1", "all", "a packet has one"),
    ] {
        let output = sgwall(&[
            "explain",
            lab,
            "--from",
            from,
            "--to",
            "db",
            "--protocol",
            protocol,
        ]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn errors_are_json_where_the_answer_would_be() {
    let lab = "configs/three-tier.yaml";
    let peers = [
        "explain",
        lab,
        "--from",
        "wbe-1",
        "--to",
        "db",
        "--protocol",
        "icmp",
    ];
    let cases: [(&[&str], i32, &str); 5] = [
        (&["status", "--lab", "no-such-lab"], 3, "running"),
        (&peers, 2, "did you mean 'web-1'?"),
        (&["explain", lab], 2, "--from"),
        (&["check", lab, "--no-such-option"], 2, "--no-such-option"),
        (&["run", "-"], 2, "<stdin> is a pipe"),
    ];
    for (args, code, words) in cases {
        let text = sgwall(args);
        let output = sgwall(&[args, &["--format", "json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(text.status.code(), Some(code), "{text:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["event"], "error", "{answer}");
        assert_eq!(answer["code"], code, "{answer}");
        assert!(
            answer["error"].as_str().unwrap().contains(words),
            "{answer}"
        );
    }
}

#[test]
fn hostile_files_end_in_a_diagnostic() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
    }
    let mut chain = String::from("a0: &a0 [x]\n");
    for i in 1..3000 {
        chain.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
    }
    let texts = [
        bomb,
        chain,
        "- ".repeat(100_000),
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "? ".repeat(100_000),
        "a: &x [*x]".into(),
        "a: \0".into(),
        "\u{feff}\u{feff}".into(),
        "vpc:\n\tcidr: 10.0.0.0/16\n".into(),
        "vpc: {cidr: ".to_owned() + &"9".repeat(1_000_000) + "}",
        "\u{1b}[31m: \u{202e}".into(),
        "vpc: !!python/object:os.system x".into(),
        "<<: {a: b}".into(),
        "? [a]\n: b".into(),
        "a: 1\n".repeat(10_000),
        "---\na: 1\n---\nb: 2\n".into(),
        "%YAML 9.9\n---\n".into(),
    ];
    for text in texts {
        let start: String = text.chars().take(30).collect();
        let found = sgwall::config::load_str("hostile.yaml", &text).unwrap_err();
        assert!(found.errors() > 0, "{start}");
        let plain = found.to_string();
        assert!(!plain.contains(['\u{1b}', '\u{202e}', '\0']), "{start}");
        assert!(plain.len() < 1_000_000, "{start}: {}", plain.len());
        assert!(found.iter().all(|one| one.help.is_some()), "{start}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bytes changed, lines moved, pieces repeated: an answer, never a panic.
    #[test]
    fn mutated_labs_get_an_answer(
        which in 0_usize..6,
        edits in prop::collection::vec((0_usize..10_000, 0_usize..200, 0_u8..4, any::<char>()), 1..8),
    ) {
        let names = [
            "three-tier", "self-reference", "dual-stack", "prefix-lists", "network-acl", "appliance",
        ];
        let path = format!("configs/{}.yaml", names[which]);
        let mut text: Vec<char> = std::fs::read_to_string(path).unwrap().chars().collect();
        for (at, length, kind, letter) in edits {
            let at = at % (text.len() + 1);
            let end = (at + length).min(text.len());
            match kind {
                0 => drop(text.drain(at..end)),
                1 => text.insert(at, letter),
                2 => {
                    let piece: Vec<char> = text[at..end].to_vec();
                    text.splice(at..at, piece);
                }
                _ => {
                    let marks = ['{', '}', '[', ']', ':', '-', '"', '\'', '&', '*', '!', '\t', '\n', '#', '0', '~'];
                    text.insert(at, marks[length % marks.len()]);
                }
            }
        }
        let text: String = text.into_iter().collect();
        match sgwall::config::load_str("mutated.yaml", &text) {
            Ok(loaded) => hold_invariants(&loaded.model),
            Err(found) => {
                prop_assert!(found.errors() > 0);
                let _ = found.render(true);
                let _ = found.to_json().to_string();
            }
        }
    }

    #[test]
    fn arbitrary_text_gets_an_answer(text in "(?s).{0,200}") {
        let _ = sgwall::config::load_str("any.yaml", &text).map_err(|found| found.render(false));
    }
}

/// What readers of a model rely on.
fn hold_invariants(model: &sgwall::model::Model) {
    use std::collections::HashSet;
    let mut addresses = HashSet::new();
    for interface in &model.interfaces {
        assert!(interface.entity.ix() < model.entities.len());
        assert!(!interface.addresses.is_empty());
        assert!(interface.is_external() || !interface.groups().is_empty());
        for group in interface.groups() {
            assert!(group.ix() < model.security_groups.len());
        }
        for address in &interface.addresses {
            assert!(addresses.insert(address.private));
            assert_eq!(
                model.vpc.contains(address.private),
                !interface.is_external()
            );
            assert!(
                address
                    .public
                    .is_none_or(|public| addresses.insert(public.into()))
            );
        }
    }
    assert!(
        model
            .security_groups
            .iter()
            .any(|group| group.name == "default")
    );
    assert!(model.network_acls.iter().any(|acl| acl.name == "default"));
    for acl in &model.network_acls {
        for entries in [&acl.ingress, &acl.egress] {
            assert!(entries.is_sorted_by(|a, b| a.number < b.number));
            for entry in entries {
                assert!((1..=MAX_ACL_RULE).contains(&entry.number));
                assert_eq!(entry.cidr, entry.cidr.trunc());
            }
        }
    }
    assert!(model.route_tables.iter().any(|table| table.name == "main"));
    for table in &model.route_tables {
        let mut destinations = HashSet::new();
        for route in &table.routes {
            assert!(destinations.insert(route.destination));
            assert_eq!(route.destination, route.destination.trunc());
            if let RouteTarget::Interface(ix) = route.target {
                assert!(!model.interfaces[ix.ix()].is_external());
            }
        }
    }
    for subnet in &model.subnets {
        assert!(subnet.network_acl.ix() < model.network_acls.len());
        assert!(subnet.route_table.ix() < model.route_tables.len());
    }
}

/// Line, column, offending text, what the message says, what to do.
type Mistake = (u32, u32, &'static str, &'static str, &'static str);

/// Holds the answer about `file`, as text and as JSON, to these mistakes and no
/// others; gives the JSON's diagnostics.
fn hold_mistakes(file: &str, expected: &[Mistake]) -> Vec<Value> {
    let output = check(&[file]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains('\u{1b}'), "colour without a terminal");
    let blocks: Vec<&str> = text.split("\n\n").collect();
    assert_eq!(blocks.len(), expected.len() + 1, "{text}");
    for (block, &(line, column, offending, message, help)) in blocks.iter().zip(expected) {
        assert!(block.starts_with("error: "), "{block}");
        assert!(
            block.contains(&format!("--> {file}:{line}:{column}\n")),
            "{block}"
        );
        assert!(block.contains(offending), "{block}");
        let carets = "^".repeat(offending.chars().count());
        assert!(block.contains(&carets), "{block}");
        assert!(block.lines().next().unwrap().contains(message), "{block}");
        assert!(
            block.contains("= help: ") && block.contains(help),
            "{block}"
        );
    }
    assert!(
        text.ends_with(&format!("{file}: invalid: {} errors\n", expected.len())),
        "{text}"
    );

    let output = check(&[file, "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["valid"], false);
    let list = answer["diagnostics"].as_array().unwrap();
    assert_eq!(list.len(), expected.len());
    for (one, &(line, column, offending, message, help)) in list.iter().zip(expected) {
        assert_eq!(one["severity"], "error");
        assert_eq!(one["file"], file);
        assert_eq!(one["line"], line, "{one}");
        assert_eq!(one["column"], column, "{one}");
        assert_eq!(one["text"], offending, "{one}");
        assert!(one["message"].as_str().unwrap().contains(message), "{one}");
        assert!(one["help"].as_str().unwrap().contains(help), "{one}");
    }
    list.clone()
}

fn check(args: &[&str]) -> Output {
    sgwall(&[&["check"], args].concat())
}

fn sgwall(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sgwall"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap()
}

fn write(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path: PathBuf = Path::new(dir.path()).join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
