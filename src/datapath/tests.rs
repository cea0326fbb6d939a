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
