//! A ping from the internet as AWS's documentation of flow logs tells of it:
//! which layer lets the request in, and which the reply out.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::net::{MOMENT, Pinger};
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, at, wait_until};

/// The addresses are those of the documentation. No group lets ICMP out.
const PINGED: &str = "
vpc: { cidr: [172.31.0.0/16, '2001:db8:31::/56'] }
subnets: { public: { cidr: [172.31.16.0/20, '2001:db8:31:1::/64'], network_acl: edge } }
network_acls:
  edge:
    ingress:
      - { rule: 100, action: INTO, protocol: all, from: 0.0.0.0/0 }
      - { rule: 101, action: INTO, protocol: all, from: '::/0' }
    egress:
      - { rule: 100, action: OUT, protocol: icmp, type: -1, to: 0.0.0.0/0 }
      - { rule: 101, action: OUT, protocol: icmpv6, type: -1, code: -1, to: '::/0' }
security_groups:
  instance: { ingress: [ RULES ], egress: [] }
entities:
  instance:
    kind: ec2
    subnet: public
    addresses: [172.31.16.139, '2001:db8:31:1::139']
    public_addresses: [198.51.100.139]
    security_groups: [instance]
  client: { kind: external, via: igw, addresses: [203.0.113.12, '2001:db8:ffff::12'] }
";

const ICMP_IN: &str =
    "{ protocol: icmp, type: -1, from: 0.0.0.0/0 }, { protocol: icmpv6, type: -1, from: '::/0' }";

fn text(rules: &str, into: &str, out: &str) -> String {
    PINGED
        .replace("RULES", rules)
        .replace("INTO", into)
        .replace("OUT", out)
}

/// What became of pings over IPv4 and IPv6, by an entry of the status.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    answered: bool,
    /// Requests that the instance got.
    requests: u64,
    /// Replies that the client got.
    replies: u64,
    /// Why packets were dropped at the instance, and how many.
    drops: Value,
    /// Of each drop, the exit code of `explain` and the line that tells of it.
    explained: (Option<i32>, String),
}

fn ping(text: &str) -> [Seen; 2] {
    [
        (
            IpAddr::from([198, 51, 100, 139]),
            "client --to instance --protocol icmp",
        ),
        (
            "2001:db8:31:1::139".parse().unwrap(),
            "client --to instance --protocol icmpv6",
        ),
    ]
    .map(|(address, question)| {
        let lab = Lab::up(text);
        let pinger = lab.inside("client", || Pinger::new(address)).unwrap();
        let (code, words) = lab.explain(question);
        let patience = if code == Some(0) { PATIENCE } else { MOMENT };
        let answered = pinger.ping(patience).is_ok();
        let mut status = lab.status();
        // A packet is counted when it has been sent; it may be here first.
        wait_until("all is counted", || {
            status = lab.status();
            !answered || at(&status, "client")["packets_in"] != 0
        });
        let dropped = words.lines().find(|line| line.starts_with("  drop"));
        let seen = Seen {
            answered,
            requests: at(&status, "instance")["packets_in"].as_u64().unwrap(),
            replies: at(&status, "client")["packets_in"].as_u64().unwrap(),
            drops: at(&status, "instance")["drops"].clone(),
            explained: (code, dropped.unwrap_or_default().trim().to_owned()),
        };
        lab.down();
        seen
    })
}

#[test]
fn where_the_group_lets_a_ping_in_and_the_acl_no_reply_out_the_request_arrives() {
    if !namespaces!() {
        return;
    }
    for seen in ping(&text(ICMP_IN, "allow", "deny")) {
        assert!(
            !seen.answered && seen.requests > 0 && seen.replies == 0,
            "{seen:?}"
        );
        // Each request was answered, and each answer met the ACL: the group let
        // it out, though no rule of it lets anything out.
        assert_eq!(seen.drops, json!({ "network_acl_egress": seen.requests }));
        let (code, line) = seen.explained;
        assert_eq!(code, Some(1));
        assert!(
            line.contains("network acl out  instance  denied by entry 10"),
            "{line}"
        );
    }
}

#[test]
fn where_the_acl_lets_the_reply_out_no_group_need_do_so() {
    if !namespaces!() {
        return;
    }
    for seen in ping(&text(ICMP_IN, "allow", "allow")) {
        assert!(seen.answered && seen.replies > 0, "{seen:?}");
        assert_eq!(seen.requests, seen.replies);
        assert_eq!(seen.drops, json!({}));
        assert_eq!(seen.explained, (Some(0), String::new()));
    }
}

#[test]
fn where_no_group_lets_the_ping_in_the_acls_consent_does_not_help() {
    if !namespaces!() {
        return;
    }
    for seen in ping(&text("", "allow", "allow")) {
        assert!(
            !seen.answered && seen.requests == 0 && seen.replies == 0,
            "{seen:?}"
        );
        let counted = seen.drops["no_ingress_rule"].as_u64();
        assert!(counted > Some(0), "{seen:?}");
        assert_eq!(seen.drops, json!({ "no_ingress_rule": counted }));
        let (code, line) = seen.explained;
        assert_eq!(code, Some(1));
        assert!(
            line.contains("ingress groups  instance  no ingress rule allows icmp"),
            "{line}"
        );
    }
}

#[test]
fn where_the_acl_lets_nothing_in_no_group_is_asked() {
    if !namespaces!() {
        return;
    }
    for seen in ping(&text(ICMP_IN, "deny", "allow")) {
        assert!(!seen.answered && seen.requests == 0, "{seen:?}");
        let counted = seen.drops["network_acl_ingress"].as_u64();
        assert!(counted > Some(0), "{seen:?}");
        assert_eq!(seen.drops, json!({ "network_acl_ingress": counted }));
        let (code, line) = seen.explained;
        assert_eq!(code, Some(1));
        assert!(
            line.contains("network acl in  instance  denied by entry 10"),
            "{line}"
        );
    }
}
