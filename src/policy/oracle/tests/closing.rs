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
fn an_acknowledgement_short_of_the_fin_or_beyond_does_not_close() {
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 2);
    // 5000 acknowledges all data but not the FIN, 5002 would be past the end, and without the ACK
    // flag the number means nothing.
    pair.passes(&pair.forth(ACK, 1001, 5000, 0), 3);
    pair.passes(&pair.forth(ACK, 1001, 5002, 0), 4);
    pair.passes(&pair.forth(TcpFlags::default(), 1001, 5001, 0), 5);
    pair.passes(&pair.forth(ACK, 1001, 5001, 0), 6);
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
    pair.passes(&pair.back(ACK, 5001, 0, 0), 5);
    pair.is_rejected(&pair.back(ACK, 5001, 0, 0), 6);

    // A number that is half of the number space away is behind; one less is beyond.
    for (sequence, beyond) in [(1000 + (1 << 31), true), (1001 + (1 << 31), false)] {
        let mut pair = established();
        pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
        pair.passes(&pair.forth(ACK, sequence, 5000, 0), 2);
        pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 3);
        pair.passes(&pair.forth(ACK, 1001, 5001, 0), 4);
        if beyond {
            pair.passes(&pair.back(ACK, 5001, 1001, 0), 5);
        } else {
            pair.is_rejected(&pair.back(ACK, 5001, 1001, 0), 5);
        }
    }
}

#[test]
fn a_fin_counts_once_it_is_acknowledged() {
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
    // A forged FIN comes between; the genuine one is sent again.
    pair.passes(&pair.forth(FIN_ACK, 77_000, 5000, 0), 2);
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 3);
    pair.passes(&pair.back(ACK, 5000, 1001, 0), 4);
    // A confirmed FIN stays, and so does the FIN that acknowledges it.
    pair.passes(&pair.forth(FIN_ACK, 88_000, 5000, 0), 5);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 6);
    pair.passes(&pair.back(FIN_ACK, 99_000, 0, 0), 7);
    pair.passes(&pair.forth(ACK, 1001, 5001, 0), 8);
    pair.is_rejected(&pair.back(ACK, 5001, 1001, 0), 9);
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
fn a_reset_with_the_number_of_an_end_closes_at_once() {
    // The number of the SYN, when the reset refuses it.
    for (acknowledgement, refuses) in [(999, false), (1000, true), (1001, false)] {
        let mut pair = established();
        pair.oracle = pair.lab.oracle();
        pair.passes(&pair.forth(SYN, 999, 0, 0), 1);
        pair.passes(&pair.back(RST_ACK, 0, acknowledgement, 0), 2);
        let next = pair.forth(ACK, 1000, 1, 0);
        if refuses {
            pair.is_rejected(&next, 3);
        } else {
            pair.passes(&next, 3);
        }
    }
    // The number of the other side's FIN; the reset's own FIN flag doesn't count.
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
    pair.passes(&pair.back(flags(false, true, true, true), 5000, 1001, 0), 2);
    pair.is_rejected(&pair.forth(ACK, 1001, 5000, 0), 3);
    // The number of its own FIN, once acknowledged; before that, the FIN may be forged.
    for (acknowledgement, knows) in [(1000, false), (1001, true)] {
        let mut pair = established();
        pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 1);
        pair.passes(&pair.back(ACK, 5000, acknowledgement, 10), 2);
        pair.passes(&pair.forth(RST, 1001, 0, 0), 3);
        let next = pair.back(ACK, 5010, 1001, 0);
        if knows {
            pair.is_rejected(&next, 4);
        } else {
            pair.passes(&next, 4);
        }
    }
}

#[test]
fn any_other_reset_starts_a_minute_that_packets_from_both_sides_end() {
    let mut pair = established();
    pair.passes(&pair.back(RST, 77, 0, 0), 0);
    pair.passes(&pair.back(RST_ACK, 5000, 1000, 0), 20_000);
    pair.passes(&pair.forth(ACK, 1000, 5000, 0), 59_999);
    assert_eq!(
        pair.oracle
            .verdict(&pair.back(ACK, 5000, 1000, 0), at(60_000)),
        dropped(DropReason::NoEgressRule, pair.b)
    );

    let mut pair = established();
    pair.passes(&pair.back(RST, 77, 0, 0), 0);
    pair.passes(&pair.forth(ACK, 1000, 5000, 0), 30_000);
    pair.passes(&pair.back(RST, 77, 0, 0), 40_000);
    pair.passes(&pair.back(ACK, 5000, 1000, 0), 59_999);
    pair.passes(&pair.back(ACK, 5000, 1000, 0), 59_999 + 431_999_999);
}

#[test]
fn the_idle_times_of_an_ending_connection() {
    // One FIN: the idle timeout of an established connection (RFC 5382 REQ-5), extended by
    // packets.
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 0);
    pair.passes(&pair.back(ACK, 5000, 1001, 0), 431_999_999);
    pair.passes(&pair.back(ACK, 5000, 1001, 0), 863_999_998);
    assert_eq!(
        pair.oracle
            .verdict(&pair.back(ACK, 5000, 1001, 0), at(1_295_999_998)),
        dropped(DropReason::NoEgressRule, pair.b)
    );

    // A FIN from both sides, not both acknowledged: 60 s, extended by packets.
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 0);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 0);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 59_999);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 119_998);
    assert_eq!(
        pair.oracle
            .verdict(&pair.back(FIN_ACK, 5000, 1001, 0), at(179_998)),
        dropped(DropReason::NoEgressRule, pair.b)
    );

    // Closed: 10 s, put off by nothing; then there is no flow, and the rules
    // judge (a connection met in its middle).
    let mut pair = closed();
    pair.is_rejected(&pair.forth(ACK, 1001, 5001, 0), 9_999);
    pair.passes(&pair.forth(ACK, 1001, 5001, 0), 10_000);
}

/// A connection that both sides have ended at time 0.
fn closed() -> Pair {
    let mut pair = established();
    pair.passes(&pair.forth(FIN_ACK, 1000, 5000, 0), 0);
    pair.passes(&pair.back(FIN_ACK, 5000, 1001, 0), 0);
    pair.passes(&pair.forth(ACK, 1001, 5001, 0), 0);
    pair
}

#[test]
fn a_syn_on_a_closed_connection_is_a_new_one_for_the_rules_to_judge() {
    let mut pair = closed();
    pair.passes(&pair.forth(SYN, 7000, 0, 0), 2);
    pair.passes(&pair.back(SYN_ACK, 9000, 7001, 0), 3);

    let mut pair = closed();
    pair.lab.0.group_mut(GroupIx::new(1)).ingress.clear();
    pair.oracle.replace_model(pair.lab.model());
    assert_eq!(
        pair.oracle.verdict(&pair.forth(SYN, 8000, 0, 0), at(5)),
        dropped(DropReason::NoIngressRule, pair.b)
    );
    // The closed flow is still remembered there. Otherwise a late packet of the server would open
    // a flow that lets the client back in.
    for late in [
        pair.forth(ACK, 8001, 0, 0),
        pair.back(ACK, 9000, 7001, 0),
        pair.forth(ACK, 8001, 0, 0),
    ] {
        assert_eq!(
            pair.oracle.verdict(&late, at(6)),
            dropped(DropReason::ConnectionClosed, pair.b)
        );
    }
}

#[test]
fn a_syn_after_a_reset_is_judged_by_the_rules() {
    let mut pair = established();
    pair.passes(&pair.forth(RST, 1000, 0, 0), 1);
    pair.passes(&pair.forth(SYN, 7000, 0, 0), 2);
    pair.passes(&pair.back(SYN_ACK, 9000, 7001, 0), 3);
    pair.passes(&pair.forth(ACK, 7001, 9001, 0), 4);
    pair.passes(&pair.back(ACK, 9001, 7001, 0), 400_000_000);

    pair.passes(&pair.forth(RST, 1000, 0, 0), 400_000_000);
    pair.lab.0.group_mut(GroupIx::new(1)).ingress.clear();
    pair.oracle.replace_model(pair.lab.model());
    assert_eq!(
        pair.oracle
            .verdict(&pair.forth(SYN, 8000, 0, 0), at(400_000_001)),
        dropped(DropReason::NoIngressRule, pair.b)
    );
    pair.passes(&pair.forth(ACK, 7001, 9001, 0), 400_000_002);
    pair.passes(&pair.back(ACK, 9001, 7001, 0), 400_000_003);
    // At the sender, whose own rules admit the SYN, the connection began anew.
    pair.passes(&pair.forth(ACK, 7001, 9001, 0), 400_000_004);
    pair.passes(&pair.back(ACK, 9001, 7001, 0), 800_000_000);
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
    pair.passes(&pair.back(ACK, 5000, 1000, 0), 59_999);
    assert_eq!(
        pair.oracle
            .verdict(&pair.back(ACK, 5000, 1000, 0), at(60_000)),
        dropped(DropReason::NoEgressRule, pair.b)
    );
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
