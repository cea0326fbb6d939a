//! What tracking promises, over virtual time.

use std::net::IpAddr;

use super::*;
use crate::model::{InterfaceIx, protocol};

const RULE: RuleId = RuleId(7);
const SYN: TcpFlags = TcpFlags {
    syn: true,
    ack: false,
    fin: false,
    rst: false,
};
const SYN_ACK: TcpFlags = TcpFlags { ack: true, ..SYN };
const ACK: TcpFlags = TcpFlags {
    syn: false,
    ..SYN_ACK
};
const FIN: TcpFlags = TcpFlags { fin: true, ..ACK };
const RST: TcpFlags = TcpFlags { rst: true, ..ACK };

fn packet(transport: Transport, protocol: u8) -> Packet {
    Packet {
        source: IpAddr::from([10, 0, 0, 1]),
        destination: IpAddr::from([10, 0, 0, 2]),
        protocol,
        transport,
        length: 60,
        transport_offset: 20,
        fragment: None,
        dont_fragment: true,
    }
}

fn tcp(flags: TcpFlags) -> Packet {
    let transport = Transport::Tcp {
        source: 40_000,
        destination: 443,
        flags,
        end: 0,
        acknowledgement: 0,
    };
    packet(transport, protocol::TCP)
}

fn udp() -> Packet {
    let transport = Transport::Udp {
        source: 40_000,
        destination: 53,
    };
    packet(transport, protocol::UDP)
}

/// One interface, on which flows go out and answers come in.
struct Interface {
    table: FlowTable,
    key: FlowKey,
    now: u64,
}

impl Interface {
    fn opened_by(first: &Packet) -> Self {
        let key = first
            .flow_key(InterfaceIx::new(0), Direction::Egress)
            .unwrap();
        let this = Self {
            table: FlowTable::new(10),
            key,
            now: 1_000,
        };
        this.table
            .open(
                key,
                first,
                Direction::Egress,
                &Tracking::default(),
                Millis(this.now),
                RULE,
            )
            .unwrap();
        this
    }

    fn out(&self, packet: &Packet) -> bool {
        self.pass(packet, Direction::Egress)
    }

    fn back(&self, packet: &Packet) -> bool {
        self.pass(packet, Direction::Ingress)
    }

    fn pass(&self, packet: &Packet, direction: Direction) -> bool {
        self.table
            .pass(
                &self.key,
                packet,
                direction,
                &Tracking::default(),
                Millis(self.now),
            )
            .is_some()
    }

    fn wait(&mut self, seconds: u64) -> &Self {
        self.now += seconds * 1000;
        self
    }

    fn establish(&self) {
        assert!(self.back(&tcp(SYN_ACK)) && self.out(&tcp(ACK)));
    }
}

#[test]
fn a_connection_that_is_opening_has_sixty_seconds() {
    let mut eni = Interface::opened_by(&tcp(SYN));
    assert!(eni.wait(59).back(&tcp(SYN_ACK)));
    assert!(!eni.wait(60).back(&tcp(ACK)));
}

#[test]
fn an_established_connection_may_be_idle_for_five_days() {
    let mut eni = Interface::opened_by(&tcp(SYN));
    eni.establish();
    assert!(eni.wait(431_999).back(&tcp(ACK)));
    assert!(!eni.wait(432_000).back(&tcp(ACK)));
}

#[test]
fn a_connection_met_in_its_middle_counts_as_established_once_both_sides_were_heard() {
    let mut eni = Interface::opened_by(&tcp(ACK));
    assert!(eni.wait(59).out(&tcp(ACK)));
    assert!(eni.wait(59).back(&tcp(ACK)));
    assert!(eni.wait(100_000).back(&tcp(ACK)));
    let mut stray = Interface::opened_by(&tcp(ACK));
    assert!(!stray.wait(60).back(&tcp(ACK)), "nobody answered it");
}

#[test]
fn a_connection_closed_from_both_sides_is_gone_after_ten_seconds() {
    let mut eni = Interface::opened_by(&tcp(SYN));
    eni.establish();
    assert!(eni.out(&tcp(FIN)));
    assert!(eni.wait(59).back(&tcp(ACK)), "half closed");
    assert!(eni.back(&tcp(FIN)));
    assert!(eni.wait(9).out(&tcp(ACK)), "the last acknowledgement");
    assert!(!eni.wait(1).out(&tcp(ACK)), "it didn't put the end off");
}

#[test]
fn a_reset_ends_a_connection_after_ten_seconds() {
    let mut eni = Interface::opened_by(&tcp(SYN));
    eni.establish();
    assert!(eni.back(&tcp(RST)));
    assert!(!eni.wait(10).out(&tcp(ACK)));
}

#[test]
fn a_new_connection_on_the_ports_of_a_closed_one_is_judged_anew() {
    let eni = Interface::opened_by(&tcp(SYN));
    eni.establish();
    assert!(eni.back(&tcp(RST)));
    assert!(!eni.out(&tcp(SYN)));
    assert!(eni.table.is_empty(), "the closed one is forgotten");
}

#[test]
fn a_syn_within_a_live_connection_belongs_to_it() {
    let eni = Interface::opened_by(&tcp(SYN));
    eni.establish();
    assert!(eni.out(&tcp(SYN)));
}

#[test]
fn udp_has_thirty_seconds_until_its_second_answer_and_then_180() {
    let mut eni = Interface::opened_by(&udp());
    assert!(eni.back(&udp()));
    assert!(eni.back(&udp()), "two packets of one answer");
    assert!(eni.wait(29).out(&udp()));
    let one_exchange = Interface::opened_by(&udp());
    assert!(one_exchange.back(&udp()));
    assert!(
        !Interface {
            now: 31_000,
            ..one_exchange
        }
        .back(&udp())
    );
    assert!(eni.back(&udp()), "the second exchange");
    assert!(eni.wait(179).out(&udp()));
    assert!(!eni.wait(180).out(&udp()));
}

#[test]
fn protocols_without_ports_have_six_hundred_seconds() {
    let gre = packet(Transport::Other, 47);
    let mut eni = Interface::opened_by(&gre);
    assert!(eni.wait(599).back(&gre));
    assert!(!eni.wait(600).back(&gre));
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_the_old() {
    let table = FlowTable::new(2);
    let open = |port| {
        let first = packet(
            Transport::Udp {
                source: port,
                destination: 53,
            },
            protocol::UDP,
        );
        let key = first
            .flow_key(InterfaceIx::new(0), Direction::Egress)
            .unwrap();
        let tracking = Tracking::default();
        table.open(key, &first, Direction::Egress, &tracking, Millis(0), RULE)
    };
    assert_eq!(
        (open(1), open(2), open(3)),
        (Ok(()), Ok(()), Err(TableFull))
    );
    assert_eq!(open(1), Ok(()), "a known flow needs no room");
    assert_eq!(table.len(), 2);
    assert_eq!(table.sweep(Millis(29_999)), 0);
    assert_eq!(table.sweep(Millis(30_000)), 2);
    assert_eq!(open(3), Ok(()));
}

#[test]
fn states_survive_being_packed_into_a_byte() {
    let flags = [SYN, SYN_ACK, ACK, FIN, RST];
    for number in [protocol::TCP, protocol::UDP, protocol::ICMP, 47] {
        for first in flags {
            let mut states = vec![State::opened_by(number, &first)];
            for _ in 0..4 {
                let next: Vec<State> = states
                    .iter()
                    .flat_map(|state| {
                        flags
                            .iter()
                            .flat_map(|next| [state.after(next, true), state.after(next, false)])
                    })
                    .collect();
                for state in &next {
                    assert_eq!(State::from_bits(number, state.bits()), *state);
                }
                states = next;
                states.dedup();
                states.truncate(500);
            }
        }
    }
}
