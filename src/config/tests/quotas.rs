//! What `check` promises about AWS's quotas: errors, or warnings where they
//! are ignored.

use super::*;

const IGNORE: Options = Options {
    quotas: Quotas::Warn,
};

/// Holds a lab that exceeds one quota to the given words.
#[track_caller]
fn over(rest: &str, words: &[&str]) {
    let found = refused(rest);
    only(&found, words);
    only(&found, &["`--ignore-quotas`"]);
    let text = format!("{BASE}{rest}");
    let loaded =
        load_sources_with(&[("lab.yaml", &text)], IGNORE).unwrap_or_else(|found| panic!("{found}"));
    let found = lines(&loaded.warnings);
    only(&found, words);
    assert!(!found[0].contains("--ignore-quotas"), "{found:#?}");
}

#[track_caller]
fn within(rest: &str) {
    assert_eq!(lines(&valid(rest).warnings), [""; 0]);
}

fn joined(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(", ")
}

/// Rules with IPv4 peers.
fn v4(count: usize) -> String {
    joined(count, |i| {
        format!("{{ protocol: tcp, ports: {}, from: 10.0.0.0/8 }}", i + 1)
    })
}

fn v6(count: usize) -> String {
    joined(count, |i| {
        format!("{{ protocol: tcp, ports: {}, from: \"::/0\" }}", i + 1)
    })
}

fn referring(count: usize) -> String {
    joined(count, |i| {
        format!("{{ protocol: udp, ports: {}, from: sg/g }}", i + 1)
    })
}

fn group(rules: &[String]) -> String {
    format!(
        "security_groups: {{ g: {{ ingress: [ {} ] }} }}\n",
        rules.join(", ")
    )
}

#[test]
fn a_group_has_60_rules_of_each_family_in_each_direction() {
    within(&group(&[v4(60), v6(60)]));
    over(
        &group(&[v4(61), v6(60)]),
        &[
            "4:25 ingress",
            "`ingress` of security group `g` has 61 IPv4 rules",
            "quota is 60",
        ],
    );
    over(&group(&[v4(60), v6(61)]), &["has 61 IPv6 rules"]);
    let both = format!(
        "security_groups: {{ g: {{ ingress: [ {} ], egress: [ {} ] }} }}\n",
        v4(60),
        v4(61).replace("from", "to")
    );
    over(&both, &["`egress` of security group `g`"]);
}

#[test]
fn a_referenced_group_counts_for_both_families() {
    within(&group(&[v4(50), v6(50), referring(10)]));
    over(&group(&[v4(51), v6(50), referring(10)]), &["61 IPv4 rules"]);
    over(&group(&[v4(50), v6(51), referring(10)]), &["61 IPv6 rules"]);
    let found = refused(&group(&[referring(61)]));
    assert_eq!(found.len(), 2, "{found:#?}");
}

#[test]
fn a_prefix_list_counts_what_it_may_hold() {
    let lab = |list: &str, rules: usize| {
        format!(
            "prefix_lists: {{ p: {list} }}\nsecurity_groups: {{ g: {{ ingress: [ {}, {{ protocol: all, from: pl/p }} ] }} }}\n",
            v4(rules)
        )
    };
    within(&lab("[192.0.2.0/24, 198.51.100.0/24]", 58));
    over(
        &lab("[192.0.2.0/24, 198.51.100.0/24]", 59),
        &["61 IPv4 rules"],
    );
    let room = "{ entries: [192.0.2.0/24], max_entries: 55 }";
    within(&lab(room, 5));
    over(
        &lab(room, 6),
        &["61 IPv4 rules", "as many as the list may hold"],
    );
    within(&lab(
        "{ entries: [\"2001:db8::/32\"], max_entries: 55 }",
        60,
    ));
}

#[test]
fn a_prefix_list_holds_1000_entries_and_no_more_than_it_may() {
    let list = |count: usize| {
        let entries = joined(count, |i| format!("10.{}.{}.0/24", i / 256, i % 256));
        format!("prefix_lists: {{ p: [{entries}] }}\n")
    };
    within(&list(1000));
    over(
        &list(1001),
        &["10.3.232.0/24", "up to 1001 entries", "quota is 1000"],
    );
    over(
        "prefix_lists: { p: { entries: [10.0.0.0/8], max_entries: 1001 } }\n",
        &["4:58 1001", "up to 1001 entries"],
    );
    only(
        &refused("prefix_lists: { p: { entries: [10.0.0.0/8, 11.0.0.0/8], max_entries: 1 } }\n"),
        &[
            "has 2 entries, more than its `max_entries`",
            "write 2 or more",
        ],
    );
    only(
        &refused("prefix_lists: { p: { entries: [], max_entries: 0 } }\n"),
        &["`max_entries` of prefix list `p` must be from 1"],
    );
}

fn carrying(groups: usize) -> String {
    format!(
        "security_groups: {{ {} }}\nentities: {{ a: {{ kind: ec2, subnet: app, security_groups: [{}] }} }}\n",
        joined(groups, |i| format!("g{i}: {{}}")),
        joined(groups, |i| format!("g{i}"))
    )
}

#[test]
fn an_interface_has_5_groups_and_never_more_than_16() {
    within(&carrying(5));
    over(
        &carrying(6),
        &[" g5 ", "6 groups on one interface", "quota is 5", "16"],
    );
    let text = format!("{BASE}{}", carrying(17));
    let found = load_sources_with(&[("lab.yaml", &text)], IGNORE).unwrap_err();
    only(&lines(found.iter()), &[" g16 ", "more than 16 groups"]);
}

#[test]
fn rules_times_groups_are_1000_whatever_quota_is_raised() {
    let lab = |rules: usize| {
        format!(
            "{BASE}security_groups: {{ g: {{ ingress: [ {} ] }}, a: {{}}, b: {{}}, c: {{}} }}
entities: {{ a: {{ kind: ec2, subnet: app, security_groups: [a, b, c, default] }} }}\n",
            v4(rules)
        )
    };
    let messages = |rules: usize| {
        let text = lab(rules);
        lines(
            &load_sources_with(&[("lab.yaml", &text)], IGNORE)
                .unwrap()
                .warnings,
        )
    };
    only(&messages(250), &["has 250 IPv4 rules"]);
    let found = messages(251);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(
        found[1].contains("251 rules in a group and 4 groups on an interface make 1004"),
        "{found:#?}"
    );
    assert_eq!(load_str("lab.yaml", &lab(251)).unwrap_err().errors(), 2);
}

#[test]
fn an_acl_has_20_entries_of_each_family_in_each_direction_with_the_last_one() {
    let entries = |count: usize, first: usize, cidr: &str| {
        joined(count, |i| {
            format!(
                "{{ rule: {}, action: allow, protocol: tcp, ports: {}, from: \"{cidr}\" }}",
                first + i,
                i + 1
            )
        })
    };
    let acl = |v4: usize, v6: usize| {
        let lists = [entries(v4, 1, "0.0.0.0/0"), entries(v6, 1000, "::/0")].join(", ");
        let out = entries(19, 1, "0.0.0.0/0").replace("from", "to");
        format!("network_acls: {{ x: {{ ingress: [ {lists} ], egress: [ {out} ] }} }}\n")
    };
    within(&acl(19, 19));
    over(
        &acl(20, 19),
        &[
            "4:22 ingress",
            "`ingress` of network ACL `x` has 21 IPv4 entries with the `*` one",
            "quota is 20",
            "40",
        ],
    );
    over(&acl(19, 20), &["21 IPv6 entries"]);
}

#[test]
fn a_route_table_has_500_routes_of_each_family() {
    let table = |count: usize| {
        let v4 = joined(count, |i| {
            format!(
                "{{ to: 172.{}.{}.0/24, via: blackhole }}",
                16 + i / 256,
                i % 256
            )
        });
        let v6 = joined(500, |i| {
            format!("{{ to: \"2001:db8:{i:x}::/48\", via: blackhole }}")
        });
        format!("route_tables: {{ x: [ {v4}, {v6} ] }}\n")
    };
    within(&table(500));
    over(
        &table(501),
        &[
            "4:17 x",
            "route table `x` has 501 IPv4 routes",
            "1000 at most",
        ],
    );
}

#[test]
fn a_lab_has_as_many_of_everything_as_aws_admits() {
    // AWS's own `default` and `main` count too.
    for (section, count, value, words) in [
        ("security_groups", 2499, "{}", "2501 security groups"),
        ("prefix_lists", 100, "[]", "101 prefix lists"),
        (
            "network_acls",
            199,
            "{ ingress: [], egress: [] }",
            "201 network ACLs",
        ),
        ("route_tables", 199, "[]", "201 route tables"),
    ] {
        let lab = |count: usize| {
            let things = joined(count, |i| format!("x{i}: {value}"));
            format!("{section}: {{ {things} }}\n")
        };
        within(&lab(count));
        over(
            &lab(count + 1),
            &[words, "AWS's quota for", "split the lab"],
        );
    }
}
