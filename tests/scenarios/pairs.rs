//! Every pair of entities, every address, several protocols and ports: the
//! oracle, `explain` and real sockets must agree.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sgwall::config;
use sgwall::datapath::{EPHEMERAL, Question, explain};
use sgwall::model::{InterfaceIx, Model, protocol};
use sgwall::packet::{TcpFlags, Transport};
use sgwall::policy::oracle::{self, Judgement, Oracle, Payload};
use sgwall::policy::{DropReason, Policy};

use crate::net::{self, SILENCE, Seen, Servers};
use crate::privilege::namespaces;
use crate::support::{DUAL_STACK, Lab, THREE_TIER, drops, program};

const TCP_PORTS: [u16; 5] = [22, 443, 5201, 5432, 8080];
const UDP_PORTS: [u16; 2] = [53, 5201];

/// Two hosts with public addresses, whose rules name each other's group: what
/// goes by the public address meets them in vain.
const HAIRPIN: &str = "
vpc: { cidr: [10.4.0.0/16] }
subnets: { one: { cidr: [10.4.1.0/24] }, two: { cidr: [10.4.2.0/24] } }
security_groups:
  api:
    ingress:
      - { protocol: tcp, ports: 8080, from: sg/site }
      - { protocol: tcp, ports: 443, from: 203.0.113.0/24 }
      - { protocol: udp, ports: 53, from: sg/site }
      - { protocol: icmp, type: 8, from: sg/site }
  site:
    ingress:
      - { protocol: tcp, ports: 22, from: 10.4.0.0/16 }
      - { protocol: udp, ports: 5201, from: 203.0.113.0/24 }
    egress:
      - { protocol: all, to: sg/api }
      - { protocol: tcp, ports: 443, to: 203.0.113.0/24 }
      - { protocol: udp, ports: 53, to: 203.0.113.0/24 }
entities:
  site: { kind: ec2, subnet: one, addresses: [10.4.1.10], public_addresses: [203.0.113.1], security_groups: [site] }
  api:  { kind: ec2, subnet: two, addresses: [10.4.2.10], public_addresses: [203.0.113.2], security_groups: [api] }
  both: { kind: ec2, subnet: two, addresses: [10.4.2.11], public_addresses: [203.0.113.3], security_groups: [site, api] }
  host: { kind: external, via: igw, addresses: [198.51.100.7] }
  office: { kind: external, via: vgw, addresses: [192.168.7.20] }
";

/// One attempt from one entity.
#[derive(Debug, Clone)]
struct Probe {
    from: InterfaceIx,
    sender: String,
    source: IpAddr,
    destination: IpAddr,
    traffic: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Tcp(u16),
    Udp(u16),
    Echo,
}

/// What becomes of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// It arrives at that entity, and the reply comes back.
    Passes(String),
    /// Request or reply ends there.
    Dropped(DropReason, String),
}

#[test]
fn oracle_explain_and_real_sockets_agree_on_three_tier() {
    if namespaces!() {
        agree(THREE_TIER);
    }
}

#[test]
fn oracle_explain_and_real_sockets_agree_on_dual_stack() {
    if namespaces!() {
        agree(DUAL_STACK);
    }
}

#[test]
fn oracle_explain_and_real_sockets_agree_on_public_addresses_inside_the_vpc() {
    if namespaces!() {
        agree(HAIRPIN);
    }
}

fn agree(text: &str) {
    let lab = Lab::up(text);
    let model = config::load(&lab.config, &[]).unwrap().model;
    let policy = Policy::compile(&model, None);
    let probes = probes(&model);
    let mut wrong = Vec::new();

    // The two evaluators, and what they expect.
    let mut expected = Vec::new();
    for probe in &probes {
        let (by_oracle, by_explain) = (ask_oracle(&model, probe), ask_explain(&policy, probe));
        if by_oracle != by_explain {
            wrong.push(format!(
                "{probe:?}: oracle {by_oracle:?}, explain {by_explain:?}"
            ));
        }
        expected.push(by_oracle);
    }
    let passing = expected
        .iter()
        .filter(|fate| matches!(fate, Fate::Passes(_)));
    let (all, passing) = (probes.len(), passing.count());
    assert!(0 < passing && passing < all, "{passing} of {all} pass");

    // Real sockets, all at once.
    let began = Instant::now();
    let servers: Vec<Servers> = model
        .entities
        .iter()
        .map(|entity| {
            lab.inside(&entity.name, || {
                Servers::start(&entity.name, &TCP_PORTS, &UDP_PORTS)
            })
        })
        .collect();
    let seen: Vec<Seen> = thread::scope(|scope| {
        let attempts: Vec<_> = probes
            .iter()
            .zip(&expected)
            .map(|(probe, fate)| {
                let lab = &lab;
                scope.spawn(move || {
                    lab.enter(&probe.sender);
                    attempt(probe, fate)
                })
            })
            .collect();
        attempts
            .into_iter()
            .map(|attempt| attempt.join().unwrap())
            .collect()
    });
    drop(servers);
    for ((probe, fate), seen) in probes.iter().zip(&expected).zip(&seen) {
        let as_expected = match (fate, seen) {
            (Fate::Passes(_), Seen::Reached(name)) if name.is_empty() => true,
            (Fate::Passes(to), Seen::Reached(name)) => to == name,
            (Fate::Dropped(..), Seen::Silent) => true,
            _ => false,
        };
        if !as_expected {
            wrong.push(format!(
                "{probe:?}: expected {fate:?}, sockets saw {seen:?}"
            ));
        }
    }
    let real = began.elapsed();

    // Every drop is counted where and why the evaluators say.
    let status = lab.status();
    let reasons: BTreeSet<(String, &str)> = expected
        .iter()
        .filter_map(|fate| match fate {
            Fate::Dropped(reason, at) => Some((at.clone(), reason.as_str())),
            Fate::Passes(_) => None,
        })
        .collect();
    for (at, reason) in &reasons {
        if drops(&status, at, reason) == 0 {
            wrong.push(format!("no {reason} was counted at {at}"));
        }
    }

    // The command line, for a sample.
    let sample: Vec<_> = probes.iter().zip(&expected).step_by(7).collect();
    for (probe, fate) in &sample {
        let code = explain_exit_code(&lab, probe);
        let expected = i32::from(!matches!(fate, Fate::Passes(_)));
        if code != Some(expected) {
            wrong.push(format!(
                "{probe:?}: expected {fate:?}, `sgwall explain` exited {code:?}"
            ));
        }
    }

    println!(
        "{all} probes, {passing} pass, real sockets took {real:?}, {} asked of the command line; drops: {reasons:?}",
        sample.len()
    );
    assert!(
        wrong.is_empty(),
        "{} disagreements:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    lab.down();
}

/// Every ordered pair of entities, by every address that they might use.
fn probes(model: &Model) -> Vec<Probe> {
    let kinds = TCP_PORTS.map(Kind::Tcp).into_iter();
    let kinds: Vec<Kind> = kinds
        .chain(UDP_PORTS.map(Kind::Udp))
        .chain([Kind::Echo])
        .collect();
    let mut probes = Vec::new();
    for (from, sender) in model.interfaces() {
        for (_, receiver) in model.interfaces().filter(|(to, _)| *to != from) {
            for own in &sender.addresses {
                for theirs in &receiver.addresses {
                    let public = theirs.public.map(IpAddr::V4);
                    for destination in [theirs.private].into_iter().chain(public) {
                        if own.private.is_ipv4() != destination.is_ipv4() {
                            continue;
                        }
                        probes.extend(kinds.iter().map(|traffic| Probe {
                            from,
                            sender: model.entity_of(from).name.clone(),
                            source: own.private,
                            destination,
                            traffic: *traffic,
                        }));
                    }
                }
            }
        }
    }
    probes
}

fn ask_oracle(model: &Model, probe: &Probe) -> Fate {
    let mut oracle = Oracle::new(model.clone());
    let (request, reply) = match probe.traffic {
        Kind::Tcp(port) => {
            let syn = oracle::TcpFlags {
                syn: true,
                ..oracle::TcpFlags::default()
            };
            let of = |source_port, destination_port, flags| Payload::Tcp {
                source_port,
                destination_port,
                flags,
                sequence: 0,
                acknowledgement: 0,
                data: 0,
            };
            (
                of(EPHEMERAL, port, syn),
                of(port, EPHEMERAL, oracle::TcpFlags { ack: true, ..syn }),
            )
        }
        Kind::Udp(port) => {
            let of = |source_port, destination_port| Payload::Udp {
                source_port,
                destination_port,
            };
            (of(EPHEMERAL, port), of(port, EPHEMERAL))
        }
        Kind::Echo => {
            let of = |kind| Payload::IcmpQuery { kind, id: 1 };
            if probe.source.is_ipv4() {
                (of(8), of(0))
            } else {
                (of(128), of(129))
            }
        }
    };
    let label = |at| model.interface_label(at);
    let packet = oracle::Packet::whole;
    let request = packet(probe.from, probe.source, probe.destination, request, 60);
    let whole = "a whole packet doesn't wait";
    match oracle.judge(&request, Duration::ZERO).judgement {
        Judgement::Dropped { reason, at } => Fate::Dropped(reason, label(at)),
        Judgement::Held { .. } => unreachable!("{whole}"),
        Judgement::Delivered {
            to, packet: seen, ..
        } => {
            let back = packet(to, seen.destination, seen.source, reply, 60);
            match oracle.judge(&back, Duration::ZERO).judgement {
                Judgement::Dropped { reason, at } => Fate::Dropped(reason, label(at)),
                Judgement::Held { .. } => unreachable!("{whole}"),
                Judgement::Delivered {
                    to: home,
                    packet: seen,
                    ..
                } => {
                    assert_eq!(
                        (home, seen.source),
                        (probe.from, probe.destination),
                        "{probe:?}"
                    );
                    Fate::Passes(label(to))
                }
            }
        }
    }
}

fn ask_explain(policy: &Policy, probe: &Probe) -> Fate {
    let (number, transport) = match probe.traffic {
        Kind::Tcp(destination) => {
            let flags = TcpFlags {
                syn: true,
                ..TcpFlags::default()
            };
            (
                protocol::TCP,
                Transport::Tcp {
                    source: EPHEMERAL,
                    destination,
                    flags,
                    end: 1,
                    acknowledgement: 0,
                },
            )
        }
        Kind::Udp(destination) => (
            protocol::UDP,
            Transport::Udp {
                source: EPHEMERAL,
                destination,
            },
        ),
        Kind::Echo => {
            let of = |kind| Transport::IcmpQuery {
                kind,
                code: 0,
                id: 1,
                request: true,
            };
            if probe.source.is_ipv4() {
                (protocol::ICMP, of(8))
            } else {
                (protocol::ICMPV6, of(128))
            }
        }
    };
    let question = Question {
        from: probe.from,
        source: probe.source,
        destination: probe.destination,
        protocol: number,
        transport,
    };
    let answer = explain(policy, &question).unwrap();
    let dropped = [Some(&answer.request), answer.reply.as_ref()]
        .into_iter()
        .flatten()
        .find_map(|leg| Some(Fate::Dropped(leg.reason?, leg.to.clone())));
    assert_eq!(answer.allowed, dropped.is_none(), "{answer:?}");
    dropped.unwrap_or(Fate::Passes(answer.request.to))
}

/// Real packets. What should pass gets much more time than it needs; what
/// should not is heard for long enough to be retransmitted once.
fn attempt(probe: &Probe, expected: &Fate) -> Seen {
    let patience = match expected {
        Fate::Passes(_) => Duration::from_secs(20),
        Fate::Dropped(..) => SILENCE,
    };
    match probe.traffic {
        Kind::Tcp(port) => net::tcp(probe.destination, port, patience),
        Kind::Udp(port) => net::udp(probe.source, probe.destination, port, patience),
        Kind::Echo => net::echo(probe.destination, patience),
    }
}

fn explain_exit_code(lab: &Lab, probe: &Probe) -> Option<i32> {
    let (name, port) = match probe.traffic {
        Kind::Tcp(port) => ("tcp", Some(port)),
        Kind::Udp(port) => ("udp", Some(port)),
        Kind::Echo if probe.source.is_ipv4() => ("icmp", None),
        Kind::Echo => ("icmpv6", None),
    };
    let mut command = Command::new(program());
    command
        .arg("explain")
        .arg(&lab.config)
        .args([
            "--from",
            &probe.sender,
            "--to",
            &probe.destination.to_string(),
        ])
        .args(["--protocol", name])
        .args(port.map(|port| format!("--port={port}")))
        .stdout(Stdio::null());
    command.status().unwrap().code()
}
