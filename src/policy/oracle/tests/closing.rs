//! The end of a TCP connection. AWS says only that a packet after it is
//! rejected (aws-semantics §3.5); the rest is chosen.

use super::*;

struct Pair {
    lab: Lab,
    oracle: Oracle,
    a: InterfaceIx,
    b: InterfaceIx,
}

/// An established connection whose sides have sent up to 1000 and 5000.
fn established() -> Pair {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(TCP_80, any4())]);
    let server = lab.group(&[(TCP_80, any4())], &[]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[server]);
    let mut pair = Pair {
        oracle: lab.oracle(),
        lab,
        a,
        b,
    };
    for packet in [
        pair.forth(SYN, 999, 0, 0),
        pair.back(SYN_ACK, 4999, 1000, 0),
        pair.forth(ACK, 1000, 5000, 0),
    ] {
        pair.passes(&packet, 0);
    }
    pair
}

impl Pair {
    fn forth(&self, flags: TcpFlags, sequence: u32, acknowledgement: u32, data: u32) -> Packet {
        let mut packet = tcp_packet(self.a, "10.0.1.10", "10.0.1.11", 40_000, 80, flags);
        number(&mut packet, sequence, acknowledgement, data);
        packet
    }

    fn back(&self, flags: TcpFlags, sequence: u32, acknowledgement: u32, data: u32) -> Packet {
        let mut packet = tcp_packet(self.b, "10.0.1.11", "10.0.1.10", 80, 40_000, flags);
        number(&mut packet, sequence, acknowledgement, data);
        packet
    }

    #[track_caller]
    fn passes(&mut self, packet: &Packet, milliseconds: u64) {
        let judgement = self.oracle.verdict(packet, at(milliseconds));
        assert!(is_delivered(judgement), "{packet}: {judgement:?}");
    }

    /// Dropped at its sender as what comes after the end.
    #[track_caller]
    fn is_rejected(&mut self, packet: &Packet, milliseconds: u64) {
        assert_eq!(
            self.oracle.verdict(packet, at(milliseconds)),
            dropped(DropReason::ConnectionClosed, packet.from),
            "{packet}"
        );
    }
}

fn number(packet: &mut Packet, new_sequence: u32, new_acknowledgement: u32, new_data: u32) {
    let Payload::Tcp {
        sequence,
        acknowledgement,
        data,
        ..
    } = &mut packet.payload
    else {
        unreachable!("a TCP packet");
    };
    (*sequence, *acknowledgement, *data) = (new_sequence, new_acknowledgement, new_data);
}

#[test]
fn a_connection_is_closed_when_both_fins_are_acknowledged() {
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
    pair.passes(&pair.back(ACK, 5000, 1001, 0), 2);
    // Half closed: the other side may go on.
    pair.passes(&pair.back(ACK, 5000, 1001, 100), 3);
    pair.passes(&pair.forth(ACK, 1001, 5100, 0), 4);
    pair.passes(&pair.back(FIN_ACK, 5100, 1001, 0), 5);
    // The last acknowledgement passes; what comes after it doesn't.
    pair.passes(&pair.forth(ACK, 1001, 5101, 0), 6);
    pair.is_rejected(&pair.forth(ACK, 1001, 5101, 0), 7);
    pair.is_rejected(&pair.back(ACK, 5101, 1001, 0), 8);
    pair.is_rejected(&pair.back(SYN_ACK, 5101, 1001, 0), 9);
}

#[test]
fn a_fin_may_acknowledge_the_fin_of_the_other_side() {
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 50), 1);
    pair.passes(&pair.back(FIN_ACK, 5000, 1051, 0), 2);
    pair.passes(&pair.forth(ACK, 1051, 5001, 0), 3);
    pair.is_rejected(&pair.forth(ACK, 1051, 5001, 0), 4);
}

#[test]
fn an_acknowledgement_short_of_the_fin_does_not_close() {
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 2);
    // 5000 acknowledges all data but not the FIN; half the numbers away is
    // behind it; and without the flag the number means nothing.
    pair.passes(&pair.forth(ACK, 1001, 5000, 0), 3);
    pair.passes(&pair.forth(ACK, 1001, 5001 + (1 << 31), 0), 4);
    pair.passes(&pair.forth(TcpFlags::default(), 1001, 5001, 0), 5);
    pair.passes(&pair.forth(ACK, 1001, 5001 + (1 << 31) - 1, 0), 6);
    pair.is_rejected(&pair.forth(ACK, 1001, 5001, 0), 7);
}

#[test]
fn sequence_numbers_wrap() {
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, u32::MAX - 9, 5000, 9), 1);
    pair.passes(&pair.back(FIN_ACK, 5000, u32::MAX, 0), 2);
    pair.passes(&pair.forth(ACK, 0, 5001, 0), 3);
    // The first FIN ends at 0, and was acknowledged up to the number before.
    pair.passes(&pair.back(ACK, 5001, u32::MAX, 0), 4);
    pair.passes(&pair.back(ACK, 5001, 3, 0), 5);
    pair.is_rejected(&pair.back(ACK, 5001, 3, 0), 6);
}

#[test]
fn the_first_fin_of_a_side_says_where_it_ends() {
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
    // Sent again, and once more with data beyond: the end stays at 1001.
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 2);
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 500), 3);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 4);
    pair.passes(&pair.forth(ACK, 1001, 5001, 0), 5);
    pair.is_rejected(&pair.back(ACK, 5001, 1001, 0), 6);
}

#[test]
fn a_fin_that_is_sent_again_still_acknowledges() {
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 2);
    pair.passes(&pair.forth(FIN_ACK, 1000, 5001, 0), 3);
    pair.is_rejected(&pair.forth(ACK, 1001, 5001, 0), 4);
}

#[test]
fn a_reset_closes_at_once_and_its_fin_counts_for_nothing() {
    let mut pair = established();
    pair.passes(&pair.back(RST, 5000, 0, 0), 1);
    pair.is_rejected(&pair.forth(ACK, 1000, 5000, 0), 2);
    pair.is_rejected(&pair.back(RST, 5000, 0, 0), 3);
}

#[test]
fn the_idle_times_of_an_ending_connection() {
    // One FIN: 60 s, put off by packets.
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 0);
    pair.passes(&pair.back(ACK, 5000, 1001, 0), 59_999);
    pair.passes(&pair.back(ACK, 5000, 1001, 0), 119_998);
    assert_eq!(
        pair.oracle
            .verdict(&pair.back(ACK, 5000, 1001, 0), at(179_998)),
        dropped(DropReason::NoEgressRule, pair.b)
    );

    // Both, not both acknowledged: 10 s, put off by packets.
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 0);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 0);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 9_999);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 19_998);
    assert_eq!(
        pair.oracle
            .verdict(&pair.back(FIN_ACK, 5000, 1001, 0), at(29_998)),
        dropped(DropReason::NoEgressRule, pair.b)
    );

    // Closed: 10 s, put off by nothing; then there is no flow, and the rules
    // judge (a connection met in its middle).
    let mut pair = established();
    pair.passes(&pair.back(RST, 5000, 0, 0), 0);
    pair.is_rejected(&pair.forth(ACK, 1000, 5000, 0), 9_999);
    pair.passes(&pair.forth(ACK, 1000, 5000, 0), 10_000);
}

#[test]
fn a_syn_on_a_closed_connection_is_a_new_one_for_the_rules_to_judge() {
    let mut pair = established();
    pair.passes(&pair.forth(RST, 1000, 0, 0), 1);
    pair.passes(&pair.forth(SYN, 7000, 0, 0), 2);
    pair.passes(&pair.back(SYN_ACK, 9000, 7001, 0), 3);

    pair.passes(&pair.forth(RST, 7001, 0, 0), 4);
    pair.lab.0.group_mut(GroupIx::new(1)).ingress.clear();
    pair.oracle.replace_model(pair.lab.model());
    assert_eq!(
        pair.oracle.verdict(&pair.forth(SYN, 8000, 0, 0), at(5)),
        dropped(DropReason::NoIngressRule, pair.b)
    );
    // The closed flow was forgotten first: what follows is no part of it.
    assert_eq!(
        pair.oracle.verdict(&pair.forth(ACK, 8001, 0, 0), at(6)),
        dropped(DropReason::NoIngressRule, pair.b)
    );
}

#[test]
fn a_connection_may_begin_with_its_end() {
    // Met in its middle: the first packet seen is a FIN, or a reset.
    let mut pair = established();
    pair.oracle = pair.lab.oracle();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 20), 0);
    pair.passes(&pair.back(FIN_ACK, 5000, 1021, 0), 1);
    pair.passes(&pair.forth(ACK, 1021, 5001, 0), 2);
    pair.is_rejected(&pair.back(ACK, 5001, 1021, 0), 3);

    pair.oracle = pair.lab.oracle();
    pair.passes(&pair.forth(RST, 1000, 0, 0), 0);
    pair.is_rejected(&pair.forth(RST, 1000, 0, 0), 1);
}

#[test]
fn each_interface_closes_its_own_flow() {
    // The receiver drops the last acknowledgement, so for it the connection is
    // not closed yet, while for the sender it is.
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 2);
    let mut lost = pair.forth(ACK, 1001, 5001, 0);
    lost.length = 9002;
    lost.dont_fragment = true;
    assert_eq!(
        pair.oracle.verdict(&lost, at(3)),
        dropped(DropReason::TooBig, pair.b)
    );
    pair.is_rejected(&pair.forth(ACK, 1001, 5001, 0), 4);
    assert_eq!(
        pair.oracle.verdict(&pair.back(ACK, 5001, 1001, 0), at(5)),
        dropped(DropReason::ConnectionClosed, pair.a)
    );
}
