//! What the road promises beyond what random cases reach.

use std::net::IpAddr;

use super::*;
use crate::config::load_str;
use crate::model::protocol;
use crate::packet::{Shape, TcpFlags, Transport, build};

const LAB: &str = "
vpc: { cidr: [10.0.0.0/16] }
subnets: { s: { cidr: [10.0.0.0/24] } }
security_groups:
  a: {}
  b:
    ingress:
      - { protocol: icmp, type: 8, code: 0, from: sg/a }
      - { protocol: udp, ports: 53, from: sg/a }
      - { protocol: udp, ports: 54, from: 10.0.0.10/32 }
entities:
  a: { kind: ec2, subnet: s, addresses: [10.0.0.10], security_groups: [a] }
  b: { kind: ec2, subnet: s, addresses: [10.0.0.11], security_groups: [b] }
  nat: { kind: ec2, subnet: s, addresses: [10.0.0.12], security_groups: [b], source_dest_check: false }
";
const A: usize = 0;
const B: usize = 1;
const NAT: usize = 2;

struct Road {
    policy: Policy,
    datapath: Datapath,
}

fn road() -> Road {
    let model = load_str("lab.yaml", LAB).unwrap().model;
    Road {
        policy: Policy::compile(&model, None),
        datapath: Datapath::new(100),
    }
}

impl Road {
    /// Sends from `from`, under the last octets `source` and `destination`.
    fn send(&self, from: usize, source: u8, destination: u8, what: Transport) -> Fate {
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let number = match what {
            Transport::Tcp { .. } => protocol::TCP,
            Transport::Udp { .. } => protocol::UDP,
            _ => protocol::ICMP,
        };
        let mut frame = build(address(source), address(destination), number, what, &[]).unwrap();
        let from = InterfaceIx::new(from);
        let verdict = self.datapath.judge(
            &self.policy,
            from,
            &mut frame,
            Shape::Whole,
            Millis(0),
            &mut Silent,
        );
        verdict.fate
    }
}

fn question(kind: u8, code: u8) -> Transport {
    Transport::IcmpQuery {
        kind,
        code,
        id: 7,
        request: true,
    }
}

fn udp(port: u16) -> Transport {
    Transport::Udp {
        source: 4000,
        destination: port,
    }
}

fn refused_at(at: usize) -> Fate {
    Fate::Drop {
        reason: DropReason::NoIngressRule,
        at: InterfaceIx::new(at),
    }
}

#[test]
fn a_ping_opens_the_way_for_no_other_question() {
    let road = road();
    assert!(matches!(
        road.send(A, 10, 11, question(8, 0)),
        Fate::Forward { .. }
    ));
    for other in [question(13, 0), question(15, 0), question(8, 77)] {
        assert_eq!(road.send(A, 10, 11, other), refused_at(B), "{other:?}");
    }
}

#[test]
fn what_a_middlebox_forwards_has_lost_its_sender_s_groups_but_not_its_address() {
    let road = road();
    assert_eq!(road.send(NAT, 10, 11, udp(53)), refused_at(B));
    assert!(matches!(
        road.send(NAT, 10, 11, udp(54)),
        Fate::Forward { .. }
    ));
    assert!(matches!(
        road.send(A, 10, 11, udp(53)),
        Fate::Forward { .. }
    ));
}

#[test]
fn strays_that_nobody_answers_make_room_within_a_minute() {
    let road = road();
    for source in 1..=50 {
        let flags = TcpFlags {
            ack: true,
            ..TcpFlags::default()
        };
        let stray = Transport::Tcp {
            source,
            destination: 80,
            flags,
            end: 0,
            acknowledgement: 0,
        };
        assert_eq!(road.send(A, 10, 11, stray), refused_at(B));
    }
    assert_eq!(road.datapath.flows().len(), 50, "the sender's own state");
    assert_eq!(road.datapath.flows().sweep(Millis(60_000)), 50);
}

/// Returns the packets of 1,500 bytes in which a datagram of 4,000 bytes leaves `from`.
fn fragments(source: u8, id: u16) -> Vec<Vec<u8>> {
    let (source, destination) = (
        IpAddr::from([10, 0, 0, source]),
        IpAddr::from([10, 0, 0, 11]),
    );
    let mut whole = build(source, destination, protocol::UDP, udp(54), &[0; 4000]).unwrap();
    whole[4..6].copy_from_slice(&id.to_be_bytes());
    whole[6..8].fill(0);
    packet::repair(&mut whole);
    let mut fragments = Vec::new();
    packet::split(&whole, 1500, &mut [0; 1500], |part| {
        fragments.push(part.to_vec());
    })
    .unwrap();
    fragments
}

impl Road {
    fn send_frame(&self, from: usize, frame: &mut [u8], now: Millis) -> Verdict {
        let (policy, from) = (&self.policy, InterfaceIx::new(from));
        self.datapath
            .judge(policy, from, frame, Shape::Whole, now, &mut Silent)
    }
}

/// Fragments at 64 Mbit/s, of which every hundredth is lost on the way.
#[test]
fn lost_fragments_cost_no_others() {
    let road = road();
    let mut sent = 0;
    for nth in 0..20_000_u64 {
        let now = Millis(nth / 2);
        let mut first_came = false;
        for (at, mut frame) in fragments(10, u16::try_from(nth % 60_000).unwrap())
            .into_iter()
            .enumerate()
        {
            sent += 1;
            if sent % 100 == 0 {
                continue;
            }
            first_came |= at == 0;
            let fate = road.send_frame(A, &mut frame, now).fate;
            let passed = matches!(fate, Fate::Forward { .. });
            assert_eq!(passed, first_came, "{nth}: {fate:?}");
        }
    }
}

#[test]
fn a_source_that_no_rule_admits_takes_no_room_from_others() {
    let road = road();
    for id in 0..5_000 {
        let mut frames = fragments(77, id);
        let fate = road.send_frame(NAT, &mut frames[0], Millis(0)).fate;
        assert_eq!(fate, refused_at(B));
        road.send_frame(NAT, &mut frames[2], Millis(0));
    }
    for (at, mut frame) in fragments(10, 1).into_iter().enumerate() {
        let fate = road.send_frame(NAT, &mut frame, Millis(0)).fate;
        assert!(matches!(fate, Fate::Forward { .. }), "{at}: {fate:?}");
    }
}

const PUBLIC: &str = "
vpc: { cidr: [10.0.0.0/16] }
subnets: { s: { cidr: [10.0.0.0/24] } }
security_groups:
  open:
    egress: [ { protocol: '-1', to: 0.0.0.0/0 } ]
    ingress: [ { protocol: udp, ports: 53, from: 0.0.0.0/0 } ]
entities:
  a: { kind: ec2, subnet: s, addresses: [10.0.0.10], public_addresses: [203.0.113.10], security_groups: [open] }
  b: { kind: ec2, subnet: s, addresses: [10.0.0.11], public_addresses: [203.0.113.11], security_groups: [open] }
  host: { kind: external, via: igw, addresses: [198.51.100.7] }
";

/// The report of a drop shows the packet as its sender sent it, however the frame was changed.
#[test]
fn a_verdict_knows_the_packet_as_it_came_in() {
    let model = load_str("lab.yaml", PUBLIC).unwrap().model;
    let road = Road {
        policy: Policy::compile(&model, None),
        datapath: Datapath::new(100),
    };
    let addresses = ([10, 0, 0, 10], [203, 0, 113, 11], [198, 51, 100, 7]);
    let (a, b, host) = (
        IpAddr::from(addresses.0),
        IpAddr::from(addresses.1),
        IpAddr::from(addresses.2),
    );
    let icmp = Transport::Icmp { kind: 40, code: 0 };
    let question = question(8, 0);
    for (from, source, destination, what, size) in [
        // Refused behind the gateway, from either side.
        (0, a, b, udp(54), 0),
        (2, host, b, udp(54), 0),
        // Accepted on the slow path and on the fast path: a link may still refuse it.
        (0, a, b, udp(53), 0),
        (0, a, b, udp(53), 0),
        (2, host, b, udp(53), 0),
        // Too big, with and without an answer that reaches the sender.
        (2, host, b, udp(53), 1600),
        (0, a, b, udp(53), 1600),
        (0, a, b, question, 1600),
        (0, a, b, icmp, 1600),
    ] {
        let payload = vec![0; size];
        let number = match what {
            Transport::Udp { .. } => protocol::UDP,
            _ => protocol::ICMP,
        };
        let mut frame = build(source, destination, number, what, &payload).unwrap();
        frame[6] |= 0x40;
        packet::repair(&mut frame);
        let sent = packet::parse(&frame).unwrap();
        let verdict = road.send_frame(from, &mut frame, Millis(0));
        let told = verdict.original.read(&frame).unwrap();
        assert_eq!(
            (told.source, told.destination, told.protocol, told.transport),
            (sent.source, sent.destination, sent.protocol, sent.transport),
            "{verdict:?}"
        );
        assert_ne!(verdict.original, Original::Unchanged);
    }
}

/// A server whose port 80 is open to everyone, and whose egress is open to everyone: untracked
/// there.
const OPEN: &str = "
vpc: { cidr: [10.0.0.0/16] }
subnets: { s: { cidr: [10.0.0.0/24] } }
security_groups:
  client: {}
  web: { ingress: [ { protocol: tcp, ports: 80, from: 0.0.0.0/0 } ] }
entities:
  client: { kind: ec2, subnet: s, addresses: [10.0.0.10], security_groups: [client] }
  web: { kind: ec2, subnet: s, addresses: [10.0.0.11], security_groups: [web] }
";

#[test]
fn however_full_the_table_an_answer_lets_nobody_back_in_whose_rule_was_revoked() {
    const WEB: usize = 1;
    let model = |text: &str| load_str("lab.yaml", text).unwrap().model;
    let tcp = |source, destination, syn, ack| Transport::Tcp {
        source,
        destination,
        flags: TcpFlags {
            syn,
            ack,
            ..TcpFlags::default()
        },
        end: 0,
        acknowledgement: 0,
    };
    let mut answered = 0;
    for capacity in 0..40 {
        let open = Policy::compile(&model(OPEN), None);
        let revoked = OPEN.replace(
            "web: { ingress: [ { protocol: tcp, ports: 80, from: 0.0.0.0/0 } ] }",
            "web: {}",
        );
        let revoked = Policy::compile(&model(&revoked), Some(&open));
        let mut road = Road {
            policy: open,
            datapath: Datapath::new(capacity),
        };
        let passes = |fate| matches!(fate, Fate::Forward { .. });
        let asked: Vec<u16> = (1000..1020)
            .filter(|port| passes(road.send(A, 10, 11, tcp(*port, 80, true, false))))
            .filter(|port| passes(road.send(WEB, 11, 10, tcp(80, *port, true, true))))
            .collect();
        answered += asked.len();
        road.policy = revoked;
        for port in asked {
            for flags in [(false, true), (true, false)] {
                let again = tcp(port, 80, flags.0, flags.1);
                let fate = road.send(A, 10, 11, again);
                assert!(!passes(fate), "{port} of a table of {capacity}: {fate:?}");
            }
        }
    }
    assert!(answered > 0);
}

/// Entities that may all send to each other.
const PEERS: &str = "
vpc: { cidr: [10.0.0.0/16] }
subnets: { s: { cidr: [10.0.0.0/24] } }
security_groups:
  all: { ingress: [ { protocol: udp, ports: 53, from: 10.0.0.0/16 } ] }
entities:
  a: { kind: ec2, subnet: s, addresses: [10.0.0.10], security_groups: [all] }
  b: { kind: ec2, subnet: s, addresses: [10.0.0.11], security_groups: [all] }
  c: { kind: ec2, subnet: s, addresses: [10.0.0.12], security_groups: [all] }
  d: { kind: ec2, subnet: s, addresses: [10.0.0.13], security_groups: [all] }
";

#[test]
fn an_entity_s_flood_leaves_as_much_room_to_others_as_it_takes() {
    let model = load_str("lab.yaml", PEERS).unwrap().model;
    let road = Road {
        policy: Policy::compile(&model, None),
        datapath: Datapath::new(100),
    };
    // Returns how many flows of a flood pass. Each takes an entry at either end.
    let flood = |from: usize, source, destination| {
        let fates = (0..200).map(|port| {
            let datagram = Transport::Udp {
                source: port,
                destination: 53,
            };
            road.send(from, source, destination, datagram)
        });
        let refused = |fate: &Fate| match fate {
            Fate::Drop { reason, .. } => {
                assert_eq!(*reason, DropReason::FlowTableFull);
                true
            }
            _ => false,
        };
        fates.filter(|fate| !refused(fate)).count()
    };
    assert_eq!(flood(0, 10, 11), 25, "half of the table");
    // The target has room for other flows, which may take half of the rest.
    assert_eq!(flood(2, 12, 11), 12);
    // The target itself has room too, and so has an entity that is not involved.
    assert!(flood(1, 11, 13) > 5);
    assert!(flood(3, 13, 12) > 2);
    // An entity that holds as many entries as are free gets no more.
    assert_eq!(flood(0, 10, 12), 0);
}
