use std::collections::HashMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::model::protocol;
use crate::packet::{TcpFlags, Transport, build, segment};

const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// What distinguishes a packet from the one before it in its flow.
#[derive(Debug, Clone)]
struct Plan {
    flow: u8,
    length: usize,
    /// Whether its checksum is left to be computed.
    partial: bool,
    oddity: Oddity,
    to: usize,
}

/// From A to an interface.
fn to(to: usize) -> Ends {
    Ends {
        original: Original::Unchanged,
        from: Some(InterfaceIx::new(A)),
        to: InterfaceIx::new(to),
        envelope: Envelope::NONE,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Oddity {
    None,
    SkippedId,
    SameId,
    OtherTos,
    OtherTtl,
    Fragmentable,
    Push,
    Fin,
    Syn,
    Gap,
    OtherWindow,
    OtherAcknowledgement,
    NoChecksum,
    CorruptPayload,
    CorruptHeader,
    Behind,
    Fragment,
}

const ODDITIES: [Oddity; 17] = [
    Oddity::None,
    Oddity::SkippedId,
    Oddity::SameId,
    Oddity::OtherTos,
    Oddity::OtherTtl,
    Oddity::Fragmentable,
    Oddity::Push,
    Oddity::Fin,
    Oddity::Syn,
    Oddity::Gap,
    Oddity::OtherWindow,
    Oddity::OtherAcknowledgement,
    Oddity::NoChecksum,
    Oddity::CorruptPayload,
    Oddity::CorruptHeader,
    Oddity::Behind,
    Oddity::Fragment,
];

/// Where a flow is.
#[derive(Debug, Clone, Copy, Default)]
struct Next {
    id: u16,
    sequence: u32,
}

impl Next {
    /// The frame of a plan, with the flow going on behind it.
    fn frame(&mut self, plan: &Plan) -> (Vec<u8>, Shape) {
        let v6 = plan.flow & 1 == 1;
        let tcp = plan.flow & 2 == 2;
        let [a, b]: [IpAddr; 2] = if v6 {
            ["fd00::1", "fd00::2"].map(|text| text.parse().unwrap())
        } else {
            ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap())
        };
        if plan.oddity == Oddity::Gap {
            self.sequence = self.sequence.wrapping_add(1);
        }
        let ports = (40_000 + u16::from(plan.flow >> 2), 443);
        let end = self
            .sequence
            .wrapping_add(u32::try_from(plan.length).unwrap());
        let (number, transport) = if tcp {
            let flags = TcpFlags {
                ack: true,
                syn: plan.oddity == Oddity::Syn,
                fin: plan.oddity == Oddity::Fin,
                rst: false,
            };
            let end = end.wrapping_add(u32::from(flags.syn) + u32::from(flags.fin));
            let (source, destination) = ports;
            let acknowledgement = u32::from(plan.oddity == Oddity::OtherAcknowledgement);
            let tcp = Transport::Tcp {
                source,
                destination,
                flags,
                end,
                acknowledgement,
            };
            (protocol::TCP, tcp)
        } else {
            let (source, destination) = ports;
            let udp = Transport::Udp {
                source,
                destination,
            };
            (protocol::UDP, udp)
        };
        let first = usize::try_from(self.sequence % 251).unwrap();
        let payload: Vec<u8> = (first..first + plan.length)
            .map(|i| u8::try_from(i % 251).unwrap())
            .collect();
        self.sequence = end;
        let mut frame = build(a, b, number, transport, &payload).unwrap();
        let at = if v6 { 40 } else { 20 };
        let field = at + if tcp { 16 } else { 6 };
        match plan.oddity {
            Oddity::Push if tcp => frame[at + 13] |= 0x08,
            Oddity::OtherWindow if tcp => frame[at + 14] ^= 1,
            Oddity::OtherTos => frame[1] ^= 0x10,
            Oddity::OtherTtl => frame[if v6 { 7 } else { 8 }] -= 1,
            _ => {}
        }
        if !v6 {
            match plan.oddity {
                Oddity::SkippedId => self.id = self.id.wrapping_add(2),
                Oddity::SameId => {}
                _ => self.id = self.id.wrapping_add(1),
            }
            frame[4..6].copy_from_slice(&self.id.to_be_bytes());
            frame[6] = match plan.oddity {
                Oddity::Fragmentable => 0,
                Oddity::Fragment => 0x20,
                _ => 0x40,
            };
            frame[10..12].copy_from_slice(&[0, 0]);
            let sum = !sum(&frame[..20]);
            frame[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        let partial = plan.partial && plan.oddity != Oddity::Fragment;
        // The pseudo header alone, or all.
        let addresses = if v6 { 8 } else { 12 };
        let length = u16::try_from(frame.len() - at).unwrap().to_be_bytes();
        let mut covered = frame[addresses..at].to_vec();
        covered.extend([0, number]);
        covered.extend(length);
        frame[field..field + 2].copy_from_slice(&[0, 0]);
        let value = if partial {
            sum(&covered)
        } else {
            covered.extend(&frame[at..]);
            !sum(&covered)
        };
        frame[field..field + 2].copy_from_slice(&value.to_be_bytes());
        let mut shape = Shape::Whole;
        if partial {
            shape = Shape::partial(&frame).unwrap();
        }
        match plan.oddity {
            Oddity::NoChecksum if !tcp && !partial => frame[field..field + 2].fill(0),
            Oddity::CorruptPayload => *frame.last_mut().unwrap() ^= 1,
            Oddity::CorruptHeader if !v6 => frame[10] ^= 1,
            // Bytes of the IP packet that aren't the datagram's.
            Oddity::Behind if !tcp && !partial => frame[at + 5] -= 1,
            _ => {}
        }
        (frame, shape)
    }
}

fn sum(bytes: &[u8]) -> u16 {
    let complement = etherparse::checksum::Sum16BitWords::new()
        .add_slice(bytes)
        .ones_complement();
    !u16::from_be(complement)
}

/// The packets of the wire that a frame stands for.
fn on_the_wire(frame: &[u8], shape: Shape) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut scratch = vec![0; 1 << 16];
    segment(frame, shape, &mut scratch, |packet| {
        packets.push(packet.to_vec())
    })
    .unwrap();
    packets
}

/// A packet without the identification that means nothing, in all that may not be
/// fragmented.
fn but_for_the_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        // A wrong header checksum stays wrong by as much.
        let off = sum(&packet[..20]).to_be_bytes();
        packet[4..6].fill(0);
        packet[10..12].copy_from_slice(&off);
    }
    packet
}

/// A flow's packets, by addresses, ports and protocol, to one receiver.
type Flows = HashMap<(InterfaceIx, Vec<u8>), Vec<Vec<u8>>>;

fn note(flows: &mut Flows, to: InterfaceIx, frame: &[u8], shape: Shape) {
    for packet in on_the_wire(frame, shape) {
        let v6 = packet[0] >> 4 == 6;
        let flow = if v6 { &packet[6..44] } else { &packet[9..24] };
        let mut flow = flow.to_vec();
        // Hop limit and checksum lie between.
        if v6 {
            flow[1] = 0
        } else {
            flow[1..3].fill(0)
        }
        flows
            .entry((to, flow))
            .or_default()
            .push(but_for_the_id(packet));
    }
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let plan = |(usual, lengths): (u8, Vec<usize>)| {
        let oddity = prop_oneof![
            12 => Just(Oddity::None),
            1 => prop::sample::select(&ODDITIES[..]),
        ];
        (
            prop_oneof![6 => Just(usual), 1 => 0..48_u8],
            prop::sample::select(lengths),
            prop::bool::weighted(0.7),
            oddity,
            prop_oneof![5 => Just(B), 1 => Just(C)],
        )
            .prop_map(|(flow, length, partial, oddity, to)| Plan {
                flow,
                length,
                partial,
                oddity,
                to,
            })
    };
    let lengths = prop_oneof![
        Just(vec![8, 8, 8, 8, 8, 8, 7, 9]),
        Just(vec![1400, 1400, 1400, 1400, 700]),
        Just(vec![1, 2, 3]),
        Just(vec![8900, 8900, 8900, 300]),
    ];
    // Most packets are of one flow, of either family and protocol.
    (0..4_u8, lengths).prop_flat_map(move |usual| prop::collection::vec(plan(usual), 1..150))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// What was joined is taken apart to the same packets, flow by flow in the same order:
    /// corrupt ones are as corrupt as before.
    #[test]
    fn on_the_wire_nothing_changes(plans in plans(), all in any::<bool>(), every in 1..40_usize) {
        let offloads = if all { Offloads::ALL } else { Offloads::UDP };
        let mut coalescer = Coalescer::new();
        let mut flows: HashMap<u8, Next> = HashMap::new();
        let (mut given, mut sent) = (Flows::new(), Flows::new());
        let mut send = |ends: Ends, frame: &[u8], shape| {
            assert!(offloads.take(shape) || matches!(shape, Shape::Partial(_)));
            assert_eq!(ends, to(ends.to.ix()));
            note(&mut sent, ends.to, frame, shape);
        };
        for (i, plan) in plans.iter().enumerate() {
            let (frame, shape) = flows.entry(plan.flow).or_default().frame(plan);
            note(&mut given, to(plan.to).to, &frame, shape);
            let ends = to(plan.to);
            coalescer.add(ends, &frame, shape, offloads, &mut send);
            if i % every == 0 {
                coalescer.flush(&mut send);
            }
        }
        coalescer.flush(&mut send);
        prop_assert_eq!(coalescer.waiting, 0);
        prop_assert_eq!(given, sent);
    }
}

/// What is sent of `count` packets of a flow that all have `length` bytes of payload
/// but for the `odd` one.
fn sent(flow: u8, count: usize, length: usize, odd: usize, oddity: Oddity) -> Vec<usize> {
    let mut coalescer = Coalescer::new();
    let mut next = Next::default();
    let mut sent = Vec::new();
    let mut send = |_: Ends, frame: &[u8], shape: Shape| sent.push(shape.packets(frame.len()));
    for number in 0..count {
        let oddity = if number == odd { oddity } else { Oddity::None };
        let plan = Plan {
            flow,
            length,
            partial: true,
            oddity,
            to: B,
        };
        let (frame, shape) = next.frame(&plan);
        let ends = to(B);
        coalescer.add(ends, &frame, shape, Offloads::ALL, &mut send);
    }
    coalescer.flush(&mut send);
    sent
}

#[test]
fn a_flow_s_packets_become_one_up_to_64_of_them_or_64_kib() {
    for flow in 0..4 {
        assert_eq!(sent(flow, 1, 100, 0, Oddity::None), [1]);
        assert_eq!(sent(flow, 64, 100, 0, Oddity::None), [64]);
        assert_eq!(sent(flow, 100, 100, 0, Oddity::None), [64, 36]);
        assert_eq!(sent(flow, 100, 1400, 0, Oddity::None), [46, 46, 8]);
    }
}

#[test]
fn what_differs_begins_anew_behind_the_others() {
    let udp_v4 = 0;
    for oddity in [Oddity::SkippedId, Oddity::OtherTtl, Oddity::OtherTos] {
        let runs = sent(udp_v4, 20, 100, 10, oddity);
        assert!(
            runs == [10, 10] || runs == [10, 1, 9],
            "{oddity:?}: {runs:?}"
        );
    }
    let (tcp_v4, tcp_v6) = (2, 3);
    for flow in [tcp_v4, tcp_v6] {
        assert_eq!(sent(flow, 20, 100, 10, Oddity::Push), [11, 9]);
        assert_eq!(sent(flow, 20, 100, 10, Oddity::Fin), [11, 9]);
        assert_eq!(sent(flow, 20, 100, 10, Oddity::Gap), [10, 10]);
        assert_eq!(sent(flow, 20, 100, 10, Oddity::Syn), [10, 1, 9]);
        for oddity in [Oddity::OtherWindow, Oddity::OtherAcknowledgement] {
            assert_eq!(sent(flow, 20, 100, 10, oddity), [10, 1, 9]);
        }
    }
}

/// Even where the sum of all words is what it is for datagrams with a right one.
#[test]
fn datagrams_without_a_checksum_stay_without() {
    let mut coalescer = Coalescer::new();
    let mut next = Next::default();
    let mut given = Vec::new();
    let mut sent = Vec::new();
    let mut send = |_: Ends, frame: &[u8], _: Shape| sent.push(frame.to_vec());
    for _ in 0..3 {
        let plan = Plan {
            flow: 0,
            length: 64,
            partial: false,
            oddity: Oddity::None,
            to: B,
        };
        let (mut frame, shape) = next.frame(&plan);
        // What the checksum said the payload says now.
        let checksum = [frame[26], frame[27]];
        let first = [frame[28], frame[29]];
        let said = sum(&[checksum, first].concat());
        frame[28..30].copy_from_slice(&said.to_be_bytes());
        frame[26..28].fill(0);
        given.push(frame.clone());
        coalescer.add(to(B), &frame, shape, Offloads::ALL, &mut send);
    }
    coalescer.flush(&mut send);
    assert_eq!(sent, given);
}

#[test]
fn nothing_waits_while_a_super_packet_is_written() {
    let mut coalescer = Coalescer::new();
    let mut sent = Vec::new();
    let mut send = |_: Ends, frame: &[u8], shape: Shape| sent.push(shape.packets(frame.len()));
    let frame = |flow, length| {
        let plan = Plan {
            flow,
            length,
            partial: true,
            oddity: Oddity::None,
            to: B,
        };
        Next::default().frame(&plan)
    };
    let (small, shape) = frame(0, 100);
    coalescer.add(to(B), &small, shape, Offloads::ALL, &mut send);
    let (large, _) = frame(2, 10_000);
    let shape = Shape::segments(&large, 1000, false).unwrap();
    coalescer.add(to(C), &large, shape, Offloads::ALL, &mut send);
    assert_eq!(sent, [1, 10]);
}

#[test]
fn packets_of_several_flows_are_joined_though_they_come_by_turns() {
    let mut coalescer = Coalescer::new();
    let mut flows = [Next::default(); 4];
    let mut sent = Vec::new();
    let mut send = |_: Ends, frame: &[u8], shape: Shape| sent.push(shape.packets(frame.len()));
    for _ in 0..30 {
        for (flow, next) in (0..).zip(&mut flows) {
            let plan = Plan {
                flow,
                length: 200,
                partial: false,
                oddity: Oddity::None,
                to: B,
            };
            let (frame, shape) = next.frame(&plan);
            let ends = to(B);
            coalescer.add(ends, &frame, shape, Offloads::ALL, &mut send);
        }
    }
    coalescer.flush(&mut send);
    assert_eq!(sent, [30; 4]);
}
