//! What lab files promise.

use super::*;
use crate::model::{
    Direction, IcmpMatch, Peer, PortRange, RuleId, SecurityGroup, Traffic, derive_id,
};

mod acl;
mod entities;
mod quotas;
mod route;

const BASE: &str = "\
vpc: { cidr: [10.0.0.0/16] }
subnets:
  app: { cidr: [10.0.1.0/28] }
";

fn valid(rest: &str) -> Loaded {
    load_str("lab.yaml", &format!("{BASE}{rest}")).unwrap_or_else(|found| panic!("{found}"))
}

/// The diagnostics of a lab that is refused, as `line:column text | message | help`.
fn refused(rest: &str) -> Vec<String> {
    match load_str("lab.yaml", &format!("{BASE}{rest}")) {
        Ok(_) => panic!("accepted: {rest}"),
        Err(found) => lines(found.iter()),
    }
}

fn lines<'a>(found: impl IntoIterator<Item = &'a Diagnostic>) -> Vec<String> {
    found
        .into_iter()
        .map(|one| {
            let help = one.help.as_deref().expect("every diagnostic has a remedy");
            format!(
                "{}:{} {} | {} | {help}",
                one.line, one.column, one.text, one.message
            )
        })
        .collect()
}

/// Holds one diagnostic to the given words.
#[track_caller]
fn only(found: &[String], words: &[&str]) {
    assert_eq!(found.len(), 1, "{found:#?}");
    for word in words {
        assert!(found[0].contains(word), "{word} in {found:#?}");
    }
}

fn group<'a>(loaded: &'a Loaded, name: &str) -> &'a SecurityGroup {
    let groups = &loaded.model.security_groups;
    groups.iter().find(|group| group.name == name).unwrap()
}

#[test]
fn a_group_without_egress_allows_all_of_it_and_without_ingress_none() {
    let loaded = valid("security_groups: { web: {}, shut: { egress: [] } }\n");
    let web = group(&loaded, "web");
    assert!(web.ingress.is_empty());
    assert_eq!(web.egress.len(), 1);
    assert_eq!(web.egress[0].traffic, Traffic::All);
    assert_eq!(web.egress[0].peer_text, "0.0.0.0/0");
    assert!(web.egress[0].place.is_implied());
    assert_eq!(
        web.egress[0].description,
        "AWS default: all outbound traffic"
    );
    assert!(group(&loaded, "shut").egress.is_empty());
}

#[test]
fn a_vpc_with_ipv6_lets_it_out_as_well() {
    let loaded = load_str("l", "vpc: { cidr: [10.0.0.0/16, 2001:db8::/56] }").unwrap();
    let texts: Vec<&str> = group(&loaded, "default")
        .egress
        .iter()
        .map(|rule| rule.peer_text.as_str())
        .collect();
    assert_eq!(texts, ["0.0.0.0/0", "::/0"]);
}

#[test]
fn the_default_group_is_always_there_and_refers_to_itself() {
    let loaded = valid("entities: { a: { kind: ec2, subnet: app } }\n");
    let ix = loaded.model.interfaces[0].groups()[0];
    let default = &loaded.model.security_groups[ix.ix()];
    assert_eq!(default.name, "default");
    assert_eq!(default.ingress[0].peer, Peer::Group(ix));
    assert!(default.place.is_implied());
    let loaded = valid("security_groups: { default: { egress: [] } }\n");
    let default = group(&loaded, "default");
    assert_eq!((default.ingress.len(), default.egress.len()), (1, 0));
    assert!(!default.place.is_implied());
}

#[test]
fn traffic_is_understood_as_aws_understands_it() {
    let loaded = valid(
        "security_groups:
  g:
    ingress:
      - { protocol: tcp, ports: 443, from: 0.0.0.0/0 }
      - { protocol: \"17\", ports: \"8080-8090\", from: 0.0.0.0/0 }
      - { protocol: 6, ports: all, from: 10.0.0.0/8 }
      - { protocol: icmp, type: 8, from: 0.0.0.0/0 }
      - { protocol: icmp, type: 3, code: 4, from: 0.0.0.0/0 }
      - { protocol: 1, type: -1, from: 0.0.0.0/0 }
      - { protocol: icmpv6, from: ::/0 }
      - { protocol: 47, from: 0.0.0.0/0 }
      - { protocol: -1, from: sg/g }
",
    );
    let traffic: Vec<Traffic> = group(&loaded, "g")
        .ingress
        .iter()
        .map(|rule| rule.traffic)
        .collect();
    let range = |from, to| PortRange { from, to };
    assert_eq!(
        traffic,
        [
            Traffic::Tcp(range(443, 443)),
            Traffic::Udp(range(8080, 8090)),
            Traffic::Tcp(PortRange::ALL),
            Traffic::Icmp(IcmpMatch::Type(8)),
            Traffic::Icmp(IcmpMatch::TypeAndCode(3, 4)),
            Traffic::Icmp(IcmpMatch::Any),
            Traffic::Icmpv6(IcmpMatch::Any),
            Traffic::Other(47),
            Traffic::All,
        ]
    );
    assert!(loaded.warnings.is_empty());
}

fn ingress(rule: &str) -> String {
    format!("security_groups: {{ g: {{ ingress: [ {{ {rule} }} ] }} }}\n")
}

#[test]
fn rules_that_aws_refuses_are_refused_with_a_remedy() {
    for (rule, words) in [
        ("protocol: tcp, from: sg/g", ["no `ports`", "0-65535"]),
        (
            "protocol: tcp, ports: 9-1, from: sg/g",
            ["ends before it begins", "`1-9`"],
        ),
        (
            "protocol: tcp, ports: -1, from: sg/g",
            ["outside 0-65535", "0-65535"],
        ),
        (
            "protocol: tcp, ports: http, from: sg/g",
            ["no port or range", "443"],
        ),
        (
            "protocol: tcp, ports: [80, 443], from: sg/g",
            ["found a list", "a rule for each"],
        ),
        (
            "protocol: tcp, ports: 010, from: sg/g",
            ["no port or range", "443"],
        ),
        ("protocol: icmp, from: sg/g", ["no `type`", "type: 8"]),
        (
            "protocol: icmp, type: 256, from: sg/g",
            ["from -1 to 255", "255"],
        ),
        (
            "protocol: icmpv6, code: 0, from: ::/0",
            ["no `type`", "128"],
        ),
        (
            "protocol: icmp, ports: 8, type: 8, from: sg/g",
            ["icmp has no ports", "remove `ports`"],
        ),
        (
            "protocol: tcp, ports: 1, type: 8, from: sg/g",
            ["no `type`", "remove `type`"],
        ),
        (
            "protocol: tpc, ports: 1, from: sg/g",
            ["no protocol `tpc`", "`tcp`"],
        ),
        (
            "protocol: 256, from: sg/g",
            ["no protocol `256`", "0 to 255"],
        ),
        ("protocol: gre, from: sg/g", ["no protocol `gre`", "`47`"]),
        ("ports: 1, from: sg/g", ["no `protocol`", "protocol: tcp"]),
        ("protocol: all", ["no `from`", "sg/NAME"]),
        ("protocol: all, from: []", ["empty list", "sg/NAME"]),
        (
            "protocol: all, from: 10.0.0.0/33",
            ["no CIDR block", "0 to 32"],
        ),
        (
            "protocol: all, from: anywhere",
            ["no CIDR block", "`0.0.0.0/0`"],
        ),
        ("protocol: all, from: g", ["no CIDR block", "`sg/g`"]),
        ("protocol: all, from: self", ["no CIDR block", "`sg/g`"]),
        (
            "protocol: all, from: pl/none",
            ["no prefix list `none`", "prefix_lists"],
        ),
        (
            "protocol: all, from: sg-0123456789abcdef0",
            ["no security group", "`id:`"],
        ),
        (
            "protocol: all, to: sg/g",
            ["takes `from`, not `to`", "`egress`"],
        ),
        (
            "protocol: all, from: [sg/g, sg/g]",
            ["already exists", "remove one"],
        ),
        (
            "protocol: all, from: [sg/g, ::/0], id: sgr-00123456789abcdef",
            ["2 rules", "remove `id`"],
        ),
        (
            "protocol: all, from: sg/g, id: sgr-1",
            ["no id of a rule", "sgr-0"],
        ),
        (
            "protocol: all, from: sg/g, description: a & b",
            ["`&`", "`and`"],
        ),
        (
            "protocol: all, from: 10.0.0.0/8, description: it's",
            ["`'`", "AWS admits"],
        ),
    ] {
        only(&refused(&ingress(rule)), &words);
    }
    only(
        &refused("security_groups: { g: { egress: } }\n"),
        &["found nothing", "write `[]`"],
    );
}

#[test]
fn deleting_the_last_ingress_rule_may_leave_the_bare_key() {
    let model = valid("security_groups: { g: { ingress: } }\n").model;
    let group = model.security_groups.iter().find(|group| group.name == "g");
    assert!(group.is_some_and(|group| group.ingress.is_empty() && group.egress.len() == 1));
}

#[test]
fn what_aws_ignores_or_rewrites_is_a_warning() {
    for (rule, words) in [
        (
            "protocol: all, ports: 443, from: sg/g",
            ["`ports` is ignored", "remove `ports`"],
        ),
        (
            "protocol: 47, ports: 443, from: sg/g",
            ["`ports` is ignored", "remove `ports`"],
        ),
        (
            "protocol: icmp, type: -1, code: 3, from: sg/g",
            ["`code` is ignored", "remove `code`"],
        ),
        (
            "protocol: icmp, type: 8, from: ::/0",
            ["never matches", "icmpv6"],
        ),
        (
            "protocol: icmpv6, from: 0.0.0.0/0",
            ["never matches", "`protocol: icmp`"],
        ),
        (
            "protocol: 0, from: ::/0",
            ["never matches an IPv6 packet", "write `protocol: all`"],
        ),
        (
            "protocol: 60, from: 10.0.0.0/8",
            ["never matches an IPv6 packet", "that follows the header"],
        ),
        (
            "protocol: tcp, ports: 0, from: sg/g",
            ["port 0 alone", "`ports: 0-65535`"],
        ),
        (
            "protocol: udp, ports: 0-0, from: sg/g",
            ["port 0 alone", "`ports: 0-65535`"],
        ),
        (
            "protocol: all, from: 10.0.0.7/16",
            ["stored as `10.0.0.0/16`", "write"],
        ),
    ] {
        only(&lines(&valid(&ingress(rule)).warnings), &words);
    }
}

#[test]
fn rules_in_the_words_of_terraform_or_the_api_get_one_error_with_the_rule_translated() {
    for (rule, written) in [
        (
            "from_port: 443, to_port: 443, protocol: tcp, cidr_blocks: [10.0.0.0/8, 192.168.0.0/16]",
            "{ protocol: tcp, ports: 443, from: [10.0.0.0/8, 192.168.0.0/16] }",
        ),
        (
            "from_port: 0, to_port: 0, protocol: \"-1\", cidr_blocks: [0.0.0.0/0], ipv6_cidr_blocks: [\"::/0\"]",
            "{ protocol: all, from: [0.0.0.0/0, \"::/0\"] }",
        ),
        (
            "from_port: 8, to_port: -1, ip_protocol: icmp, self: true, description: ping",
            "{ protocol: icmp, type: 8, code: -1, from: sg/g, description: \"ping\" }",
        ),
        (
            "from_port: 5432, to_port: 5433, protocol: tcp, security_groups: [aws_security_group.web.id]",
            "{ protocol: tcp, ports: 5432-5433, from: sg/web }",
        ),
        (
            "IpProtocol: tcp, FromPort: 80, ToPort: 90, IpRanges: [{ CidrIp: 10.0.0.0/8, Description: x }], UserIdGroupPairs: [{ GroupId: sg-12345678 }]",
            "{ protocol: tcp, ports: 80-90, from: [10.0.0.0/8, sg-12345678], description: \"x\" }",
        ),
        (
            "protocol: tcp, port: 443, from: sg/g",
            "{ protocol: tcp, ports: 443, from: sg/g }",
        ),
        (
            "protocol: tcp, port: 443",
            "{ protocol: tcp, ports: 443, from: … }",
        ),
    ] {
        only(
            &refused(&ingress(rule)),
            &["has no key", &format!("write `{written}`")],
        );
    }
    only(
        &refused(
            "network_acls: { a: { egress: [], ingress: [ { rule_no: 100, action: Allow, protocol: \"-1\", cidr_block: 10.0.0.0/8 } ] } }\n",
        ),
        &[
            "has no key",
            "write `{ rule: 100, action: allow, protocol: all, from: 10.0.0.0/8 }`",
        ],
    );
    only(
        &refused("entities: { a: { kind: ec2, subnet_id: app } }\n"),
        &["has no key `subnet_id`", "write `subnet`"],
    );
    let found = load_str("lab.yaml", "vpc: { cidr_block: 10.0.0.0/16 }\n").unwrap_err();
    only(&lines(&found), &["has no key `cidr_block`", "write `cidr`"]);
}

#[test]
fn a_vpc_has_an_ipv4_block_and_a_subnet_may_do_without() {
    let found = load_str("lab.yaml", "vpc: { cidr: [\"fd00:1::/56\"] }\n").unwrap_err();
    only(&lines(&found), &["has no IPv4 block", "add one"]);
    let both = "vpc: { cidr: [10.0.0.0/16, \"fd00:1::/56\"] }\nsubnets: { six: { cidr: \"fd00:1::/64\" } }\n";
    assert!(load_str("lab.yaml", both).is_ok());
}

#[test]
fn the_same_rule_in_two_spellings_is_a_duplicate_with_both_places() {
    let text = format!(
        "{BASE}security_groups:
  g:
    ingress:
      - {{ protocol: tcp, ports: 22, from: 10.0.0.0/8 }}
      - {{ protocol: 6, ports: 22-22, from: 10.1.2.3/8 }}
"
    );
    let found = load_str("lab.yaml", &text).unwrap_err();
    let error = found
        .iter()
        .find(|one| one.severity == Severity::Error)
        .unwrap();
    assert_eq!((error.line, error.related[0].line), (8, 7));
    assert_eq!((found.errors(), found.warnings()), (1, 1));
}

#[test]
fn ids_are_given_or_derived_and_do_not_depend_on_the_place() {
    let rules = |first: &str, second: &str| {
        let loaded = valid(&format!(
            "security_groups:\n  g:\n    ingress:\n      - {first}\n      - {second}\n"
        ));
        let mut ids: Vec<RuleId> = group(&loaded, "g")
            .ingress
            .iter()
            .map(|rule| rule.id)
            .collect();
        ids.sort_unstable();
        ids
    };
    let (a, b) = (
        "{ protocol: tcp, ports: 22, from: 10.0.0.0/8 }",
        "{ protocol: udp, ports: 53, from: sg/g }",
    );
    assert_eq!(rules(a, b), rules(b, a));
    let id = derive_id("sg", &["g"]);
    assert!(rules(a, b).contains(&RuleId::derive(&[&id, "ingress", "tcp 22", "10.0.0.0/8"])));
    assert!(rules(a, b).contains(&RuleId::derive(&[&id, "ingress", "udp 53", &id])));
}

#[test]
fn names_and_ids_mean_the_same() {
    let loaded = valid(
        "security_groups:
  web: { id: sg-0123456789abcdef0 }
  db:
    ingress:
      - { protocol: tcp, ports: 1, from: sg-0123456789abcdef0, id: sgr-00123456789abcdef }
      - { protocol: tcp, ports: 2, from: [sg/sg-0123456789abcdef0, pl-12345678] }
      - { protocol: tcp, ports: 3, from: [sg/web, pl/office] }
      - { protocol: tcp, ports: 4, from: pl/pl-12345678 }
prefix_lists: { office: { id: pl-12345678, entries: [198.51.100.0/24] } }
entities:
  a: { kind: ec2, subnet: app, security_groups: [sg-0123456789abcdef0, db] }
",
    );
    let db = group(&loaded, "db");
    assert_eq!(db.ingress[0].peer, db.ingress[1].peer);
    assert_eq!(db.ingress[0].peer, db.ingress[3].peer);
    assert_eq!(db.ingress[2].peer, db.ingress[4].peer);
    assert_eq!(db.ingress[2].peer, db.ingress[5].peer);
    assert_eq!(db.ingress[0].id.to_string(), "sgr-00123456789abcdef");
    assert_eq!(loaded.model.interfaces[0].groups().len(), 2);
}

#[test]
fn an_id_used_twice_is_blamed_where_it_is_written() {
    let found = refused(
        "security_groups:
  web: { id: sg-0123456789abcdef0 }
  db: { id: sg-0123456789abcdef0 }
",
    );
    only(&found, &["6:13 sg-0123456789abcdef0", "used twice"]);
    let copied = derive_id("sg", &["default"]);
    only(
        &refused(&format!("security_groups: {{ web: {{ id: {copied} }} }}\n")),
        &["used twice"],
    );
    only(
        &refused("security_groups: { web: { id: sg-1 } }\n"),
        &["no id of", "8 or 17"],
    );
}

#[test]
fn group_names_are_aws_names() {
    let long = "x".repeat(256);
    for name in ["sg-web", "é", &long, "Default"] {
        assert_eq!(
            refused(&format!("security_groups: {{ {name}: {{}} }}\n")).len(),
            1,
            "{name}"
        );
    }
    let loaded = valid("security_groups: { \"Web servers (all) \": {} }\n");
    assert_eq!(loaded.model.security_groups[0].name, "Web servers (all)");
}

#[test]
fn descriptions_and_tags_are_what_aws_admits() {
    let long = "x".repeat(255);
    let loaded = valid(&format!(
        "security_groups:
  g:
    description: {:x<255}
    tags: {{ team: web, \"\u{e9}\": \"\", empty: , number: 7 }}
    ingress: [ {{ protocol: all, from: 10.0.0.0/8, description: a & b, tags: {{ Name: x }} }} ]
",
        "a & b (c), d = "
    ));
    assert_eq!(group(&loaded, "g").description.len(), 255);
    assert!(loaded.warnings.is_empty());

    let group = |text: &str| refused(&format!("security_groups: {{ g: {{ {text} }} }}\n"));
    only(
        &group(&format!("description: {long}x")),
        &["256 characters", "at most 255"],
    );
    only(
        &group("description: caf\u{e9}"),
        &["which AWS refuses", "AWS admits"],
    );
    let tags = |text: &str| group(&format!("tags: {{ {text} }}"));
    only(&tags("aws:x: y"), &["keeps for itself", "`aws:`"]);
    only(&tags("AWS:x: y"), &["keeps for itself"]);
    only(&tags("\"\": y"), &["no key of 1 to 127", "shorten"]);
    only(
        &tags(&format!("{}: y", &long[..128])),
        &["no key of 1 to 127"],
    );
    only(
        &tags(&format!("x: {long}yz")),
        &["more than 256", "shorten"],
    );
    only(
        &tags("x: [y]"),
        &["tag `x`", "expected a string", "team: web"],
    );
    only(&tags("x: y, x: z"), &["`x` is given twice"]);
    only(&group("tags: [x]"), &["expected a mapping"]);
    valid(&format!(
        "security_groups: {{ g: {{ tags: {{ {}: {long}y }} }} }}\n",
        &long[..127]
    ));
}

#[test]
fn a_trailing_space_is_no_part_of_a_groups_name() {
    let loaded =
        valid("security_groups: { \"web  \": { ingress: [ { protocol: all, from: sg/web } ] } }\n");
    assert_eq!(loaded.model.security_groups[0].name, "web");
    only(
        &refused("security_groups: { \"web \": {}, WEB: {} }\n"),
        &["`WEB` is defined twice", "without regard to case"],
    );
    only(
        &refused("security_groups: { \"web\\t\": {} }\n"),
        &["can't be the name"],
    );
    only(
        &refused("security_groups: { \"  \": {} }\n"),
        &["give the group a name"],
    );
}

#[test]
fn prefix_lists_hold_one_family_without_repeats() {
    only(
        &refused("prefix_lists: { a: [10.0.0.0/8, ::/0] }\n"),
        &["mixes IPv4 and IPv6"],
    );
    only(
        &refused("prefix_lists: { a: [10.0.0.0/8, 10.0.0.0/8] }\n"),
        &["twice"],
    );
    only(
        &refused("prefix_lists: { a: 10.0.0.0/8 }\n"),
        &["expected a list"],
    );
    only(
        &refused("prefix_lists: { a: { id: pl-12345678 } }\n"),
        &["no `entries`"],
    );
}

#[test]
fn rule_files_bring_groups_and_lists_and_nothing_else() {
    let lab =
        format!("{BASE}entities: {{ a: {{ kind: ec2, subnet: app, security_groups: [web] }} }}\n");
    let rules = "security_groups: { web: { ingress: [ { protocol: all, from: pl/x } ] } }\nprefix_lists: { x: [192.0.2.0/24] }\n";
    let loaded = load_sources(&[("lab.yaml", &lab), ("rules.yaml", rules)]).unwrap();
    assert_eq!(&*group(&loaded, "web").place.file, "rules.yaml");
    let found = load_sources(&[
        ("lab.yaml", &lab),
        ("r.yaml", rules),
        ("s.yaml", "entities: {}"),
    ]);
    only(
        &lines(found.unwrap_err().iter()),
        &["a rule file has no `entities`", "to the lab file"],
    );
    for section in ["network_acls", "route_tables"] {
        let found = load_sources(&[("lab.yaml", BASE), ("r.yaml", &format!("{section}: {{}}"))]);
        only(
            &lines(found.unwrap_err().iter()),
            &["a rule file has no", section, "to the lab file"],
        );
    }
    // What the broken file may declare is not held against the others.
    let found = load_sources(&[("lab.yaml", &lab), ("r.yaml", "security_groups: [")]);
    only(&lines(found.unwrap_err().iter()), &["not valid YAML"]);
}

#[test]
fn json_is_read_like_yaml() {
    let text = r#"{"vpc": {"cidr": ["10.0.0.0/16"]}, "security_groups":
        {"web": {"ingress": [{"protocol": "tcp", "ports": 443, "from": "0.0.0.0/0"}]}}}"#;
    let loaded = load_str("lab.json", text).unwrap();
    let rule = &group(&loaded, "web").rules(Direction::Ingress)[0];
    assert_eq!((rule.place.line, rule.place.column), (2, 30));
}

#[test]
fn aliases_are_expanded_and_merge_keys_refused() {
    let loaded = valid(
        "security_groups:
  a: { ingress: &rules [ { protocol: tcp, ports: 1, from: 10.0.0.0/8 } ] }
  b: { ingress: *rules }
",
    );
    assert_eq!(group(&loaded, "b").ingress.len(), 1);
    only(
        &refused("security_groups: { a: { <<: {} } }\n"),
        &["merge keys are not supported"],
    );
}

#[test]
fn places_hold_behind_wide_characters_and_other_line_breaks() {
    let text = "# café \u{1f600}\r\nvpc: { cidr: 10.0.0.0/16 } # ü\r\nentities: { \"ü\": { kind: ec2 }, b: {} }\r\n";
    let found = load_str("l", text).unwrap_err();
    let places: Vec<_> = found
        .iter()
        .map(|one| (one.line, one.column, one.text.as_str()))
        .collect();
    assert_eq!(places, [(3, 13, "\"ü\""), (3, 13, "\"ü\""), (3, 33, "b")]);
}

#[test]
fn more_mistakes_than_anybody_reads_are_counted_off() {
    let keys: String = (0..2000).map(|i| format!("zzzz{i}: 1\n")).collect();
    let found = load_str("l", &keys).unwrap_err();
    assert_eq!(found.errors(), 1001);
    assert!(found.to_string().contains("more than 1000 mistakes"));
}
