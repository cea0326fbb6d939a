//! What tracking promises, over virtual time.

use std::net::IpAddr;
use std::sync::LazyLock;

use super::*;
use crate::model::protocol;
use crate::packet::{Segment, TcpFlags, Transport};

const RULE: RuleId = RuleId(7);
static SENDER: LazyLock<InterfaceIx> = LazyLock::new(|| InterfaceIx::new(0));
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
    segment(flags, 0, 0)
}

fn segment(flags: TcpFlags, end: u32, acknowledgement: u32) -> Packet {
    let transport = Transport::Tcp {
        source: 40_000,
        destination: 443,
        flags,
        end,
        acknowledgement,
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
        this.open(first, true, false).unwrap();
        this
    }

    fn open(&self, packet: &Packet, tracked: bool, replace: bool) -> Result<(), NoRoom> {
        self.table.open(
            self.key,
            &Opening {
                packet,
                direction: Direction::Egress,
                tracking: &Tracking::default(),
                now: Millis(self.now),
                rule: RULE,
                tracked,
                sender: *SENDER,
                allowance: None,
                replace,
            },
        )
    }

    fn out(&self, packet: &Packet) -> bool {
        self.pass(packet, Direction::Egress)
    }

    fn back(&self, packet: &Packet) -> bool {
        self.pass(packet, Direction::Ingress)
    }

    /// Whether there is a flow that the packet may be part of.
    fn pass(&self, packet: &Packet, direction: Direction) -> bool {
        let Some(flow) = self.table.find(&self.key, Millis(self.now)) else {
            return false;
        };
        if flow.is_closed() {
            return false;
        }
        flow.take_note(
            &packet.segment(),
            direction,
            &Tracking::default(),
            Millis(self.now),
        )
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
    for first in [ACK, SYN_ACK, FIN, RST] {
        let mut stray = Interface::opened_by(&tcp(first));
        assert!(stray.out(&tcp(ACK)));
        assert!(!stray.wait(60).back(&tcp(ACK)), "nobody answered it");
    }
}

#[test]
fn a_half_closed_connection_has_the_idle_time_of_an_established_one() {
    let mut eni = Interface::opened_by(&segment(SYN, 101, 0));
    eni.establish();
    assert!(eni.out(&segment(FIN, 200, 900)));
    assert!(eni.wait(100_000).back(&segment(ACK, 950, 200)), "its end");
    assert!(eni.wait(431_999).back(&segment(FIN, 1000, 200)));
    assert!(
        eni.out(&segment(ACK, 200, 950)),
        "data sent again, and not the last word"
    );
    assert!(eni.wait(59).back(&segment(FIN, 1000, 200)), "sent again");
    assert!(
        eni.wait(59).out(&segment(ACK, 200, 1000)),
        "the last acknowledgement"
    );
    assert!(!eni.out(&segment(ACK, 200, 1000)));
    assert!(eni.table.find(&eni.key, Millis(eni.now + 9_999)).is_some());
    assert!(eni.table.find(&eni.key, Millis(eni.now + 10_000)).is_none());

    let mut unacknowledged = Interface::opened_by(&segment(SYN, 101, 0));
    unacknowledged.establish();
    assert!(unacknowledged.out(&segment(FIN, 200, 900)));
    assert!(unacknowledged.back(&segment(FIN, 1000, 200)));
    assert!(!unacknowledged.wait(60).out(&segment(ACK, 200, 1000)));
}

#[test]
fn a_fin_without_its_acknowledgement_changes_nothing() {
    let mut eni = Interface::opened_by(&segment(SYN, 101, 0));
    eni.establish();
    // Forged FINs on both sides, including the reply to them.
    assert!(eni.back(&segment(FIN, 77, 88)) && eni.out(&segment(FIN, 99, 88)));
    assert!(eni.back(&segment(ACK, 901, 150)));
    assert!(eni.wait(431_999).back(&segment(ACK, 901, 150)));
    // The genuine FINs cross.
    assert!(eni.out(&segment(FIN, 200, 901)) && eni.back(&segment(FIN, 1000, 150)));
    assert!(eni.wait(431_999).out(&segment(ACK, 200, 1000)));
    assert!(eni.back(&segment(ACK, 1000, 200)));
    assert!(!eni.out(&segment(ACK, 200, 1000)), "closed");
}

#[test]
fn data_beyond_a_fin_shows_that_it_was_forged() {
    let eni = Interface::opened_by(&segment(SYN, u32::MAX - 10, 0));
    eni.establish();
    assert!(eni.out(&segment(FIN, u32::MAX, 7)));
    assert!(eni.out(&segment(ACK, 3, 7)), "past u32::MAX");
    assert!(eni.back(&segment(ACK, 7, u32::MAX)));
    assert!(eni.back(&segment(FIN, 8, 3)));
    assert!(eni.out(&segment(ACK, 3, 8)));
    assert!(eni.out(&segment(FIN, 4, 8)), "half closed");
    assert!(eni.back(&segment(ACK, 8, 4)));
    assert!(!eni.out(&segment(ACK, 4, 8)), "closed");
}

#[test]
fn a_refused_connection_is_closed_for_ten_seconds() {
    let eni = Interface::opened_by(&segment(SYN, 101, 0));
    assert!(eni.out(&segment(SYN, 501, 0)), "another attempt");
    assert!(eni.back(&segment(RST, 0, 501)));
    assert!(!eni.out(&tcp(ACK)));
    assert!(eni.table.find(&eni.key, Millis(eni.now + 9_999)).is_some());
    assert!(eni.table.find(&eni.key, Millis(eni.now + 10_000)).is_none());
}

#[test]
fn a_forged_reset_ends_only_a_connection_without_packets_from_both_sides_for_a_minute() {
    let eni = || {
        let eni = Interface::opened_by(&segment(SYN, 101, 0));
        eni.establish();
        assert!(eni.back(&segment(RST, 77, 88)));
        eni
    };
    let mut over = eni();
    assert!(over.wait(30).out(&tcp(ACK)) && over.out(&tcp(ACK)));
    assert!(over.wait(29).back(&segment(RST, 77, 88)) && over.out(&tcp(ACK)));
    assert!(!over.wait(1).out(&tcp(ACK)), "put off by nothing");
    let mut goes_on = eni();
    assert!(goes_on.wait(59).out(&tcp(ACK)));
    assert!(goes_on.back(&tcp(RST)) && goes_on.back(&tcp(ACK)));
    assert!(goes_on.wait(431_999).back(&tcp(ACK)));
    let mut silent = eni();
    assert!(!silent.wait(60).out(&tcp(ACK)));
}

#[test]
fn what_was_judged_counts_for_its_direction_and_generation_only() {
    let eni = Interface::opened_by(&udp());
    let flow = eni.table.find(&eni.key, Millis(eni.now)).unwrap();
    let (out, back) = (Direction::Egress, Direction::Ingress);
    flow.set_passed(Judged::Acl, out, 7);
    flow.set_passed(Judged::Rules, out, 7);
    assert!(flow.passed(Judged::Acl, out, 7) && flow.passed(Judged::Rules, out, 7));
    assert!(!flow.passed(Judged::Acl, back, 7) && !flow.passed(Judged::Acl, out, 8));
    flow.set_passed(Judged::Acl, out, 8);
    assert!(flow.passed(Judged::Acl, out, 8) && !flow.passed(Judged::Rules, out, 8));
}

#[test]
fn an_allowance_counts_tracked_flows_and_gets_their_places_back() {
    let table = FlowTable::new(100);
    let allowance = Allowance {
        owner: InterfaceIx::new(3),
        limit: 2,
    };
    let open = |port, tracked, now| {
        let transport = Transport::Udp {
            source: port,
            destination: 53,
        };
        let first = packet(transport, protocol::UDP);
        let key = first
            .flow_key(InterfaceIx::new(3), Direction::Egress)
            .unwrap();
        let opening = Opening {
            packet: &first,
            direction: Direction::Egress,
            tracking: &Tracking::default(),
            now: Millis(now),
            rule: RULE,
            tracked,
            sender: *SENDER,
            allowance: Some(allowance),
            replace: true,
        };
        table.open(key, &opening)
    };
    assert_eq!(open(1, true, 0), Ok(()));
    assert_eq!(open(2, false, 0), Ok(()), "untracked ones don't count");
    assert_eq!(table.available(allowance), 1);
    assert_eq!(open(3, true, 0), Ok(()));
    assert_eq!(open(4, true, 0), Err(NoRoom::Allowance));
    assert_eq!(open(2, true, 0), Err(NoRoom::Allowance));
    assert_eq!(table.len(), 3, "what was there stays");
    assert_eq!(open(1, true, 0), Ok(()), "in its own place");
    assert_eq!(open(1, false, 0), Ok(()), "its place is free again");
    assert_eq!(open(4, true, 0), Ok(()));
    table.sweep(Millis(30_000));
    assert_eq!(table.available(allowance), 2);
    assert_eq!(table.share(*SENDER), (0, 50));
}

#[test]
fn a_place_taken_over_is_its_new_entity_s() {
    let table = FlowTable::new(8);
    let (key, first) = nth(0);
    let by = |sender, now| Opening {
        sender: InterfaceIx::new(sender),
        replace: true,
        ..opening_nth(&first, 0, now)
    };
    table.open(key, &by(1, 0)).unwrap();
    table.open(key, &by(2, 0)).unwrap();
    let held = |table: &FlowTable| [1, 2].map(|entity| table.share(InterfaceIx::new(entity)));
    assert_eq!(held(&table), [(0, 3), (1, 3)]);
    // An entity that has its share doesn't take over an expired entry of another.
    for number in 1..5 {
        let (key, first) = nth(number);
        let sender = InterfaceIx::new(1);
        let opening = Opening {
            sender,
            ..opening_nth(&first, number, 0)
        };
        let opened = table.open(key, &opening);
        assert_eq!(opened.is_ok(), number < 4, "{number}: {opened:?}");
    }
    assert_eq!(held(&table), [(3, 0), (1, 1)]);
    assert_eq!(
        table.open(key, &by(1, 40_000)),
        Ok(()),
        "4 are free, and 4 its own"
    );
    assert_eq!(table.open(key, &by(2, 40_000)), Ok(()));
    table.sweep(Millis(100_000));
    assert_eq!(held(&table), [(0, 4), (0, 4)]);
}

#[test]
fn a_flow_without_room_is_refused_tracked_or_not() {
    let eni = Interface {
        table: FlowTable::new(0),
        ..Interface::opened_by(&udp())
    };
    assert_eq!(eni.open(&udp(), false, false), Err(NoRoom::Table));
    assert_eq!(eni.open(&udp(), true, false), Err(NoRoom::Table));
    assert!(eni.table.is_empty());
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
    // One sender gets half of the table.
    let table = FlowTable::new(4);
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
        table.open(
            key,
            &Opening {
                packet: &first,
                direction: Direction::Egress,
                tracking: &Tracking::default(),
                now: Millis(0),
                rule: RULE,
                tracked: true,
                sender: *SENDER,
                allowance: None,
                replace: false,
            },
        )
    };
    assert_eq!(
        (open(1), open(2), open(3)),
        (Ok(()), Ok(()), Err(NoRoom::Table))
    );
    assert_eq!(open(1), Ok(()), "a known flow needs no room");
    assert_eq!(table.len(), 2);
    assert_eq!(table.sweep(Millis(29_999)), 0);
    assert_eq!(table.sweep(Millis(30_000)), 2);
    assert_eq!(open(3), Ok(()));
}

#[test]
fn states_survive_being_packed_into_a_byte() {
    let segments = [SYN, SYN_ACK, ACK, FIN, RST].map(|flags| Segment {
        flags,
        end: 5,
        acknowledgement: 5,
    });
    for number in [protocol::TCP, protocol::UDP, protocol::ICMP, 47] {
        for first in &segments {
            let mut states = vec![State::opened_by(number, &first.flags)];
            for _ in 0..4 {
                let next: Vec<State> = states
                    .iter()
                    .flat_map(|state| {
                        segments.iter().flat_map(|next| {
                            [
                                state.after(next, true, [5, 5]),
                                state.after(next, false, [5, 5]),
                                state.after(next, true, [6, 6]),
                                state.after(next, false, [6, 6]),
                            ]
                        })
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

/// The key and first packet of the `nth` of many flows.
fn nth(nth: u32) -> (FlowKey, Packet) {
    let [a, b, c, d] = nth.to_be_bytes();
    let first = Packet {
        source: IpAddr::from([10, a, b, c]),
        ..packet(
            Transport::Udp {
                source: 1_000 + u16::from(d),
                destination: 53,
            },
            protocol::UDP,
        )
    };
    let key = first.flow_key(InterfaceIx::new(0), Direction::Egress);
    (key.unwrap(), first)
}

fn open_nth(table: &FlowTable, number: u32, now: u64) -> Result<(), NoRoom> {
    let (key, first) = nth(number);
    table.open(key, &opening_nth(&first, number, now))
}

fn opening_nth(first: &Packet, number: u32, now: u64) -> Opening<'_> {
    static TRACKING: LazyLock<Tracking> = LazyLock::new(Tracking::default);
    Opening {
        packet: first,
        direction: Direction::Egress,
        tracking: &TRACKING,
        now: Millis(now),
        rule: RuleId(number.into()),
        tracked: true,
        // Several senders: one gets at most half of a table.
        sender: InterfaceIx::new(number as usize % 64),
        allowance: None,
        replace: false,
    }
}

#[test]
fn flows_come_and_go_and_the_table_finds_what_is_there_and_nothing_else() {
    let table = FlowTable::new(60_000);
    // Batches of flows whose time runs out while others come, through every size
    // of the index and back.
    for round in 0..12u32 {
        let now = u64::from(round) * 20_000;
        let batch = |round: u32| round * 20_000..round * 20_000 + 10_000 + round * 700;
        for number in batch(round) {
            open_nth(&table, number, now).unwrap();
        }
        for number in batch(round) {
            let flow = table.find(&nth(number).0, Millis(now)).unwrap();
            assert_eq!(flow.admitted_by(), RuleId(number.into()));
        }
        if let Some(before) = round.checked_sub(1) {
            assert!(batch(before).all(|n| table.find(&nth(n).0, Millis(now)).is_some()));
        }
        if let Some(gone) = round.checked_sub(2) {
            assert!(batch(gone).all(|n| table.find(&nth(n).0, Millis(now)).is_none()));
        }
        table.sweep(Millis(now));
        let live: usize = (round.saturating_sub(1)..=round)
            .map(|r| batch(r).len())
            .sum();
        assert_eq!(table.len(), live);
    }
    table.clear();
    assert!(table.is_empty());
}

#[test]
fn a_live_flow_is_found_at_any_time_while_others_come_and_go() {
    const STAY: u32 = 500;
    const ROUNDS: u32 = 60;
    let table = FlowTable::new(100_000);
    for number in 0..STAY {
        open_nth(&table, number, 0).unwrap();
    }
    let long = Tracking {
        udp_timeout: std::time::Duration::from_secs(1_000_000),
        ..Tracking::default()
    };
    let put_off = |number: u32, now: u64| {
        let (key, packet) = nth(number);
        let flow = table.find(&key, Millis(now)).expect("it is live");
        assert_eq!(flow.admitted_by(), RuleId(number.into()));
        assert!(flow.take_note(&packet.segment(), Direction::Egress, &long, Millis(now)));
    };
    for number in 0..STAY {
        put_off(number, 0);
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2u64 {
            let (done, put_off) = (&done, &put_off);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for number in 0..STAY {
                        put_off(number, reader);
                    }
                }
            });
        }
        // Others' records are opened, run out, are removed and given to the next.
        for round in 0..ROUNDS {
            let now = u64::from(round) * 40_000;
            let first = 1_000_000 + round * 10_000;
            for number in first..first + 3_000 + round % 7 * 1_000 {
                open_nth(&table, number, now).unwrap();
            }
            for part in 0..table.shards() {
                table.sweep_shards(part..part + 1, Millis(now + 30_000));
            }
            assert_eq!(table.len(), STAY as usize, "round {round}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn clearing_forgets_flows_that_packets_keep_alive_too() {
    let table = FlowTable::new(1_000);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut now = 0;
            while !done.load(Ordering::Relaxed) {
                now += 1;
                for number in 0..50 {
                    let (key, packet) = nth(number);
                    if let Some(flow) = table.find(&key, Millis(now)) {
                        let _ = flow.take_note(
                            &packet.segment(),
                            Direction::Egress,
                            &Tracking::default(),
                            Millis(now),
                        );
                    }
                }
            }
        });
        for _ in 0..2_000 {
            for number in 0..50 {
                open_nth(&table, number, 1 << 40).unwrap();
            }
            table.clear();
            assert_eq!(table.len(), 0);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn several_workers_open_a_flow_once() {
    let table = FlowTable::new(1_000);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for number in 0..900 {
                    open_nth(&table, number, 0).unwrap();
                }
            });
        }
    });
    assert_eq!(table.len(), 900);
}

#[test]
fn a_flow_that_gave_its_record_to_another_takes_no_note_any_more() {
    let table = FlowTable::new(2);
    open_nth(&table, 1, 0).unwrap();
    let (key, packet) = nth(1);
    let flow = table.find(&key, Millis(0)).unwrap();
    assert_eq!(table.sweep(Millis(30_000)), 1);
    open_nth(&table, 2, 30_000).unwrap();
    assert!(!flow.take_note(
        &packet.segment(),
        Direction::Egress,
        &Tracking::default(),
        Millis(30_000)
    ));
    flow.set_passed(Judged::Acl, Direction::Egress, 7);
    assert!(!flow.passed(Judged::Acl, Direction::Egress, 7));
    let other = table.find(&nth(2).0, Millis(59_999)).unwrap();
    assert!(!other.passed(Judged::Acl, Direction::Egress, 7));
    assert!(
        table.find(&nth(2).0, Millis(60_000)).is_none(),
        "its own time"
    );
}

#[test]
fn a_million_flows_take_less_than_128_bytes_each() {
    let table = FlowTable::new(DEFAULT_CAPACITY);
    let empty = table.bytes();
    assert!(empty < 1 << 20, "an empty table takes {empty} bytes");
    for number in 0..1_000_000 {
        open_nth(&table, number, 0).unwrap();
    }
    let each = table.bytes() as f64 / 1e6;
    assert!(each <= 128.0, "{each} bytes");
}

#[test]
fn a_reference_is_not_honoured_however_often_its_record_was_given_away() {
    let table = FlowTable::new(2);
    open_nth(&table, 1, 0).unwrap();
    let (key, packet) = nth(1);
    let stale = table.find(&key, Millis(0)).unwrap();
    let next = Opening {
        replace: true,
        ..opening_nth(&packet, 1, 0)
    };
    // Released and occupied again, and replaced in place.
    for round in 0..10_000 {
        if round % 3 == 0 {
            table.clear();
        }
        table.open(key, &next).unwrap();
        let still = stale.take_note(
            &packet.segment(),
            Direction::Egress,
            &Tracking::default(),
            Millis(0),
        );
        assert!(!still, "honoured after {round} others");
    }
}
