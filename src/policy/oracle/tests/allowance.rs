//! The connection allowance and the size of the table (aws-semantics §3.6).

use super::*;

/// A client with an allowance, whose flows are tracked, and an open server.
fn limited(allowance: u32) -> (Lab, InterfaceIx, InterfaceIx) {
    let mut lab = Lab::new();
    let client = lab.group(&[], &[(Traffic::All, any4())]);
    let server = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni("10.0.1.10", &[client]);
    let b = lab.eni("10.0.1.11", &[server]);
    lab.0.entities[a.ix()].max_flows = Some(allowance);
    (lab, a, b)
}

fn ask(a: InterfaceIx, source_port: u16) -> Packet {
    udp(a, "10.0.1.10", "10.0.1.11", source_port, 53)
}

#[test]
fn at_the_allowance_new_flows_are_dropped_and_live_ones_stay() {
    let (lab, a, b) = limited(2);
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&ask(a, 1), at(0)), b);
    assert_delivered(oracle.verdict(&ask(a, 2), at(0)), b);
    assert_eq!(
        oracle.verdict(&ask(a, 3), at(0)),
        dropped(DropReason::ConntrackAllowance, a)
    );
    for port in [1, 2] {
        let judgement = oracle.verdict(&ask(a, port), at(1));
        assert_eq!(egress(judgement), Some(Admission::Flow));
    }
    assert_eq!(oracle.tracked(EntityIx::new(a.ix())), 2);
}

#[test]
fn an_expired_flow_gives_its_place_back() {
    let (lab, a, b) = limited(1);
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&ask(a, 1), at(0)), b);
    assert_eq!(
        oracle.verdict(&ask(a, 2), at(29_999)),
        dropped(DropReason::ConntrackAllowance, a)
    );
    assert_delivered(oracle.verdict(&ask(a, 2), at(30_000)), b);
}

#[test]
fn the_allowance_covers_all_interfaces_of_the_entity_and_both_directions() {
    let (mut lab, a, b) = limited(2);
    let groups = lab.0.interfaces[a.ix()].groups().to_vec();
    let second = lab.eni("10.0.1.12", &groups);
    lab.0.interfaces[second.ix()].entity = lab.0.interfaces[a.ix()].entity;
    lab.allow_in(groups[0], tcp(22), cidr("10.0.0.0/8"));
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&ask(a, 1), at(0)), b);
    let on_the_other = udp(second, "10.0.1.12", "10.0.1.11", 1, 53);
    assert_delivered(oracle.verdict(&on_the_other, at(0)), b);
    let inbound = syn(b, "10.0.1.11", "10.0.1.12", 22);
    assert_eq!(
        oracle.verdict(&inbound, at(0)),
        dropped(DropReason::ConntrackAllowance, second)
    );
}

#[test]
fn untracked_flows_do_not_count_and_need_no_allowance() {
    let (mut lab, a, b) = limited(1);
    let group = lab.0.interfaces[a.ix()].groups()[0];
    lab.allow_in(group, Traffic::All, any4());
    let mut oracle = lab.oracle();
    for port in 1..=3 {
        assert_delivered(oracle.verdict(&ask(a, port), at(0)), b);
    }
    assert_eq!(oracle.tracked(EntityIx::new(a.ix())), 0);
    let ping = |id| echo(a, "10.0.1.10", "10.0.1.11", true, id);
    assert_delivered(oracle.verdict(&ping(1), at(0)), b);
    assert_eq!(
        oracle.verdict(&ping(2), at(0)),
        dropped(DropReason::ConntrackAllowance, a)
    );
    assert_delivered(oracle.verdict(&ask(a, 4), at(0)), b);
}

#[test]
fn a_new_connection_takes_the_place_of_its_closed_predecessor() {
    let (lab, a, b) = limited(1);
    let mut oracle = lab.oracle();
    let forth = |port, flags| tcp_packet(a, "10.0.1.10", "10.0.1.11", port, 80, flags);
    assert_delivered(oracle.verdict(&forth(1, SYN), at(0)), b);
    assert_delivered(oracle.verdict(&forth(1, RST), at(1)), b);
    // A closed flow keeps its place for others …
    assert_eq!(
        oracle.verdict(&forth(2, SYN), at(2)),
        dropped(DropReason::ConntrackAllowance, a)
    );
    // … and gives it to the next on its ports.
    assert_delivered(oracle.verdict(&forth(1, SYN), at(3)), b);
}

#[test]
fn an_untracked_flow_that_is_to_be_tracked_needs_a_place() {
    let (mut lab, a, b) = limited(1);
    let group = lab.0.interfaces[a.ix()].groups()[0];
    lab.allow_in(group, Traffic::All, any4());
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&ask(a, 1), at(0)), b);
    assert_delivered(
        oracle.verdict(&echo(a, "10.0.1.10", "10.0.1.11", true, 1), at(0)),
        b,
    );
    lab.0.group_mut(group).ingress.clear();
    oracle.replace_model(lab.model());
    assert_eq!(
        oracle.verdict(&ask(a, 1), at(1)),
        dropped(DropReason::ConntrackAllowance, a)
    );
    // The ping's place is free again after 30 s; so is the flow's.
    let judgement = oracle.verdict(&ask(a, 1), at(30_000));
    assert_delivered(judgement, b);
    assert_eq!(oracle.tracked(EntityIx::new(a.ix())), 1);
}

#[test]
fn an_entity_begins_as_many_flows_as_leave_the_same_number_of_places() {
    for untracked in [false, true] {
        let (mut lab, a, b) = limited(5);
        let groups = lab.0.interfaces[a.ix()].groups().to_vec();
        if untracked {
            lab.allow_in(groups[0], Traffic::All, any4());
        }
        let c = lab.eni("10.0.1.12", &groups);
        let other = |port| udp(c, "10.0.1.12", "10.0.1.11", port, 53);
        // A flow takes an entry at either end.
        let mut oracle = Oracle::with_capacity(lab.model(), 12);
        for port in [1, 2, 3] {
            assert_delivered(oracle.verdict(&ask(a, port), at(0)), b);
        }
        assert_eq!(
            oracle.verdict(&ask(a, 4), at(0)),
            dropped(DropReason::FlowTableFull, a)
        );
        // Existing flows continue, and another sender gets half of the rest with the same server.
        assert_delivered(oracle.verdict(&ask(a, 3), at(1)), b);
        assert_delivered(oracle.verdict(&other(1), at(1)), b);
        assert_eq!(
            oracle.verdict(&other(2), at(1)),
            dropped(DropReason::FlowTableFull, b)
        );
        assert_eq!(oracle.flows(), 9);
    }
}

#[test]
fn the_allowance_is_checked_before_the_table() {
    let (lab, a, b) = limited(1);
    let mut oracle = Oracle::with_capacity(lab.model(), 4);
    assert_delivered(oracle.verdict(&ask(a, 1), at(0)), b);
    assert_eq!(
        oracle.verdict(&ask(a, 2), at(0)),
        dropped(DropReason::ConntrackAllowance, a)
    );
}
