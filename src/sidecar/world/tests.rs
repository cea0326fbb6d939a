//! What a sidecar's data path promises, without any device.

use std::time::Duration;

use super::*;
use crate::config::{Options, load_rule_sources};
use crate::conntrack::Millis;
use crate::datapath::{Datapath, Fate, Silent};
use crate::model::protocol;
use crate::packet::{Shape, TcpFlags, Transport, build};
use crate::policy::oracle::{self, Judgement, Oracle, Packet, Payload};
use crate::policy::{DropReason, Policy};
use crate::sidecar::members::Names;

const RULES: &str = "
security_groups:
  db:
    ingress: [ { protocol: tcp, ports: 5432, from: sg/web } ]
    egress: []
  web: { members: [10.0.0.21, '2001:db8::21'] }
  open:
    ingress: [ { protocol: udp, ports: 7, from: 0.0.0.0/0 } ]
";
const OWN: &str = "10.0.0.10";
const WEB: &str = "10.0.0.21";
const STRANGER: &str = "10.0.0.99";
/// Positions of the interface and of its wire.
const INNER: usize = 0;
const WIRE: usize = 1;

struct Sidecar {
    policy: Policy,
    datapath: Datapath,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn rules() -> LoadedRules {
    load_rule_sources(&[("rules.yaml", RULES)], Options::default()).unwrap()
}

fn sidecar(groups: &[&str], resolvers: &[&str]) -> Sidecar {
    let rules = rules();
    let mut names = Names::default();
    names.watch(&rules.members);
    let asked = Asked {
        groups: groups.iter().map(|name| (*name).to_owned()).collect(),
        resolvers: resolvers.iter().map(|address| ip(address)).collect(),
        kind: None,
    };
    let eth0 = Guarded {
        name: "eth0".to_owned(),
        addresses: [OWN, "2001:db8::10", "fe80::10"].map(ip).to_vec(),
        mtu: 1500,
    };
    let members = names.groups(&rules.members);
    let model = model(&rules, &asked, &[eth0], members).unwrap();
    Sidecar {
        policy: Policy::compile(&model, None),
        datapath: Datapath::new(1000),
    }
}

impl Sidecar {
    fn send(&self, from: usize, source: &str, destination: &str, what: Transport) -> Fate {
        let number = match what {
            Transport::Tcp { .. } => protocol::TCP,
            Transport::Udp { .. } => protocol::UDP,
            _ => panic!("not used here"),
        };
        let mut frame = build(ip(source), ip(destination), number, what, &[]).unwrap();
        let verdict = self.datapath.judge(
            &self.policy,
            InterfaceIx::new(from),
            &mut frame,
            Shape::Whole,
            Millis(0),
            &mut Silent,
        );
        verdict.fate
    }
}

fn tcp(source: u16, destination: u16, syn: bool, ack: bool) -> Transport {
    Transport::Tcp {
        source,
        destination,
        flags: TcpFlags {
            syn,
            ack,
            ..TcpFlags::default()
        },
        end: u32::from(syn),
        acknowledgement: 0,
    }
}

fn udp(source: u16, destination: u16) -> Transport {
    Transport::Udp {
        source,
        destination,
    }
}

fn as_the_oracle_sees(from: usize, source: &str, destination: &str, what: Transport) -> Packet {
    let (payload, length) = match what {
        Transport::Tcp {
            source,
            destination,
            flags,
            ..
        } => (
            Payload::Tcp {
                source_port: source,
                destination_port: destination,
                flags: oracle::TcpFlags {
                    syn: flags.syn,
                    ack: flags.ack,
                    ..oracle::TcpFlags::default()
                },
                sequence: 0,
                acknowledgement: 0,
                data: 0,
            },
            40,
        ),
        Transport::Udp {
            source,
            destination,
        } => (
            Payload::Udp {
                source_port: source,
                destination_port: destination,
            },
            28,
        ),
        _ => panic!("not used here"),
    };
    let from = InterfaceIx::new(from);
    Packet::whole(from, ip(source), ip(destination), payload, length)
}

#[track_caller]
fn passes(fate: Fate, to: usize) {
    assert!(
        matches!(fate, Fate::Forward { to: at, split: None, .. } if at.ix() == to),
        "{fate:?}"
    );
}

#[track_caller]
fn dropped(fate: Fate, why: DropReason) {
    assert!(
        matches!(fate, Fate::Drop { reason, .. } if reason == why),
        "{fate:?}"
    );
}

#[test]
fn a_member_elsewhere_is_let_in_by_its_group_and_answered() {
    let db = sidecar(&["db"], &[]);
    for (web, own) in [(WEB, OWN), ("2001:db8::21", "2001:db8::10")] {
        passes(
            db.send(WIRE, web, own, tcp(40_000, 5432, true, false)),
            INNER,
        );
        passes(
            db.send(INNER, own, web, tcp(5432, 40_000, true, true)),
            WIRE,
        );
        passes(
            db.send(WIRE, web, own, tcp(40_000, 5432, false, true)),
            INNER,
        );
    }
    let other_port = db.send(WIRE, WEB, OWN, tcp(40_000, 22, true, false));
    dropped(other_port, DropReason::NoIngressRule);
}

#[test]
fn who_is_no_member_is_kept_out() {
    let db = sidecar(&["db"], &[]);
    let knocks = db.send(WIRE, STRANGER, OWN, tcp(40_000, 5432, true, false));
    dropped(knocks, DropReason::NoIngressRule);
}

#[test]
fn a_workload_sends_nothing_that_no_rule_allows() {
    let db = sidecar(&["db"], &[]);
    let calls = db.send(INNER, OWN, STRANGER, tcp(40_000, 443, true, false));
    dropped(calls, DropReason::NoEgressRule);
    let web = sidecar(&["web"], &[]);
    passes(
        web.send(INNER, OWN, STRANGER, tcp(40_000, 443, true, false)),
        WIRE,
    );
    passes(
        web.send(WIRE, STRANGER, OWN, tcp(443, 40_000, true, true)),
        INNER,
    );
    // The default egress is for both families.
    let v6 = web.send(INNER, "2001:db8::10", "2001:db8::99", udp(5, 6));
    passes(v6, WIRE);
    let neighbour = web.send(INNER, "fe80::10", "fe80::99", udp(5, 6));
    passes(neighbour, WIRE);
}

#[test]
fn nobody_speaks_under_an_address_that_is_not_his() {
    let open = sidecar(&["open"], &[]);
    let forged = open.send(INNER, STRANGER, WEB, udp(5, 6));
    dropped(forged, DropReason::SourceCheck);
    // From outside under the workload's own, or one that no host has.
    for source in [OWN, "127.0.0.1", "255.255.255.255", "224.0.0.1"] {
        let forged = open.send(WIRE, source, OWN, udp(5, 7));
        dropped(forged, DropReason::SourceCheck);
    }
}

#[test]
fn the_wire_brings_what_is_for_the_workload_and_nothing_else() {
    let open = sidecar(&["open"], &[]);
    passes(open.send(WIRE, STRANGER, OWN, udp(5, 7)), INNER);
    let for_others = open.send(WIRE, STRANGER, WEB, udp(5, 7));
    dropped(for_others, DropReason::UnknownDestination);
    let to_all = open.send(WIRE, STRANGER, "255.255.255.255", udp(5, 7));
    dropped(to_all, DropReason::NotUnicast);
}

#[test]
fn what_aws_never_filters_is_reached_without_a_rule() {
    let db = sidecar(&["db"], &["10.0.0.2"]);
    passes(db.send(INNER, OWN, "10.0.0.2", udp(40_000, 53)), WIRE);
    passes(db.send(WIRE, "10.0.0.2", OWN, udp(53, 40_000)), INNER);
    let metadata = db.send(INNER, OWN, "169.254.169.254", tcp(40_000, 80, true, false));
    passes(metadata, WIRE);
    // The resolver for DNS only, and nobody unasked.
    let other = db.send(INNER, OWN, "10.0.0.2", tcp(40_000, 22, true, false));
    dropped(other, DropReason::NoEgressRule);
    let unasked = db.send(WIRE, "169.254.169.254", OWN, tcp(80, 22, true, false));
    dropped(unasked, DropReason::NoIngressRule);
}

#[test]
fn a_group_that_no_file_declares_is_refused_with_those_that_are() {
    let asked = Asked {
        groups: vec!["dbs".to_owned()],
        ..Asked::default()
    };
    let error = model(&rules(), &asked, &[], BTreeMap::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no rule file has a security group 'dbs'; there are db, web, open, default"
    );
}

#[test]
fn engine_and_oracle_agree_on_what_passes_a_sidecar() {
    let rules = rules();
    let asked = Asked {
        groups: vec!["db".to_owned(), "open".to_owned()],
        resolvers: vec![ip("10.0.0.2")],
        kind: None,
    };
    let eth0 = Guarded {
        name: "eth0".to_owned(),
        addresses: vec![ip(OWN)],
        mtu: 1500,
    };
    let members = {
        let mut names = Names::default();
        names.watch(&rules.members);
        names.groups(&rules.members)
    };
    let model = model(&rules, &asked, &[eth0], members).unwrap();
    let sidecar = Sidecar {
        policy: Policy::compile(&model, None),
        datapath: Datapath::new(10_000),
    };
    let mut oracle = Oracle::with_capacity(model, 10_000);
    let peers = [
        WEB,
        STRANGER,
        "10.0.0.2",
        "169.254.169.254",
        OWN,
        "127.0.0.1",
    ];
    let ports = [7, 22, 53, 5432, 40_000];
    let mut compared = 0;
    for (from, other) in [(WIRE, INNER), (INNER, WIRE)] {
        for peer in peers {
            for source in ports {
                for destination in ports {
                    for what in [
                        udp(source, destination),
                        tcp(source, destination, true, false),
                    ] {
                        let (a, b) = if from == WIRE {
                            (peer, OWN)
                        } else {
                            (OWN, peer)
                        };
                        let fate = sidecar.send(from, a, b, what);
                        let packet = as_the_oracle_sees(from, a, b, what);
                        let said = oracle.judge(&packet, Duration::ZERO).judgement;
                        let agrees = match (fate, said) {
                            (Fate::Forward { to, .. }, Judgement::Delivered { .. }) => {
                                to.ix() == other || to.ix() == INNER
                            }
                            (
                                Fate::Drop { reason, at },
                                Judgement::Dropped { reason: r, at: i },
                            ) => (reason, at) == (r, i),
                            _ => false,
                        };
                        assert!(agrees, "{a} -> {b} {what:?}: {fate:?} against {said:?}");
                        compared += 1;
                    }
                }
            }
        }
    }
    assert_eq!(compared, 2 * 6 * 25 * 2);
}

#[test]
fn names_of_members_are_bounded() {
    let load = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("web-{number}")).collect();
        let text = format!(
            "security_groups: {{ web: {{ members: [{}] }} }}\n",
            names.join(", ")
        );
        load_rule_sources(&[("rules.yaml", &text)], Options::default())
    };
    assert_eq!(load(1024).unwrap().members.len(), 1024);
    let refused = load(1025).unwrap_err().to_string();
    assert!(refused.contains("more than 1024 names"), "{refused}");
}
