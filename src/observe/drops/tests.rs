use super::*;
use crate::packet;
use crate::packet::Transport;

fn datagram(source_port: u16) -> Vec<u8> {
    let transport = Transport::Udp {
        source: source_port,
        destination: 5432,
    };
    packet::build(
        [172, 18, 0, 9].into(),
        [172, 18, 0, 3].into(),
        17,
        transport,
        b"x",
    )
    .unwrap()
}

fn at() -> InterfaceIx {
    InterfaceIx::new(1)
}

fn drop_one(sampler: &Sampler<'_>, reason: DropReason, source_port: u16) {
    let from = Some(InterfaceIx::new(0));
    sampler.dropped(
        reason,
        from,
        at(),
        &datagram(source_port),
        Shape::Whole,
        Original::Unchanged,
    );
}

#[test]
fn a_flood_leaves_a_few_samples_and_the_number_of_the_others() {
    let log = DropLog::new(2);
    let sampler = Sampler::new(Some(&log), 0);
    for port in 0..1000 {
        drop_one(&sampler, DropReason::NoIngressRule, port);
    }
    let taken = log.take();
    assert_eq!(taken.len(), usize::from(SAMPLES_A_SECOND_OF_A_REASON));
    assert_eq!(taken[0].more, 0);
    assert_eq!(taken.last().unwrap().more, 990);
    let first = taken[0].sample.unwrap();
    assert_eq!((first.at, first.direction), (at(), Direction::Ingress));
    assert_eq!(first.packet.unwrap().selector(), 5432);
    // What was told of is not told of again.
    assert_eq!(log.take(), []);

    // The same second has no more to spend; then the next one has.
    drop_one(&sampler, DropReason::NoIngressRule, 1);
    let (reason, sample, more) = (DropReason::NoIngressRule, None, 1);
    let only_counted = Dropped {
        reason,
        sample,
        more,
    };
    assert_eq!(log.take(), [only_counted]);
    sampler.at_time(Millis(1000));
    drop_one(&sampler, DropReason::NoIngressRule, 1);
    assert!(log.take()[0].sample.is_some());

    // A log that was cleared owes nothing for what was dropped before.
    for port in 0..100 {
        drop_one(&sampler, DropReason::NoIngressRule, port);
    }
    log.clear();
    drop_one(&sampler, DropReason::NoIngressRule, 1);
    assert!(log.take()[0].sample.is_some());
}

#[test]
fn a_flood_of_one_reason_does_not_hide_another_and_all_together_are_bounded() {
    let log = DropLog::new(1);
    let sampler = Sampler::new(Some(&log), 0);
    for reason in DropReason::ALL {
        for port in 0..100 {
            drop_one(&sampler, reason, port);
        }
    }
    let taken = log.take();
    let samples: Vec<Sample> = taken.iter().filter_map(|it| it.sample).collect();
    assert_eq!(samples.len(), usize::from(SAMPLES_A_SECOND));
    let others = samples.iter().filter(|it| it.reason != DropReason::ALL[0]);
    assert_eq!(others.count(), 40);
    let more: u64 = taken.iter().map(|it| it.more).sum();
    assert_eq!(more + 50, 100 * DropReason::COUNT as u64);
}

#[test]
fn a_log_that_nobody_reads_stays_bounded_and_loses_no_count() {
    let log = DropLog::new(1);
    let sampler = Sampler::new(Some(&log), 0);
    for second in 0..100 {
        sampler.at_time(Millis(second * 1000));
        for port in 0..10 {
            drop_one(&sampler, DropReason::SourceCheck, port);
        }
    }
    let taken = log.take();
    assert_eq!(taken.len(), usize::from(SAMPLES_A_SECOND) * SECONDS);
    let all: u64 = taken.iter().map(|it| 1 + it.more).sum();
    assert_eq!(all, 1000);
}

#[test]
fn without_a_log_nothing_is_sampled() {
    let sampler = Sampler::new(None, 0);
    drop_one(&sampler, DropReason::NoIngressRule, 1);
    sampler.counted(DropReason::OrphanFragment, 3);
}

#[test]
fn a_drop_reads_as_a_line_and_as_an_object() {
    let packet = packet::parse(&datagram(41234)).unwrap();
    let mut report = DropReport {
        reason: DropReason::NoIngressRule,
        more: 312,
        packet: Some(PacketReport {
            time_ms: 1,
            interface: "eth0".into(),
            direction: "ingress",
            security_groups: vec!["db".into()],
            packets: 1,
            headers: Some(Headers::from(&packet)),
        }),
    };
    assert_eq!(
        report.to_string(),
        "dropped udp 172.18.0.9:41234 -> 172.18.0.3:5432 ingress at eth0: \
         no_ingress_rule of db (and 312 more like it)"
    );
    assert_eq!(
        serde_json::to_value(&report).unwrap(),
        serde_json::json!({
            "reason": "no_ingress_rule", "more": 312, "time_ms": 1, "interface": "eth0",
            "direction": "ingress", "security_groups": ["db"], "packets": 1, "protocol": "udp",
            "source": "172.18.0.9", "source_port": 41234,
            "destination": "172.18.0.3", "destination_port": 5432,
        })
    );
    report.reason = DropReason::Malformed;
    if let Some(packet) = &mut report.packet {
        packet.headers = None;
        packet.security_groups.clear();
    }
    report.more = 0;
    assert_eq!(
        report.to_string(),
        "dropped what can't be read ingress at eth0: malformed"
    );
    report.packet = None;
    report.more = 7;
    assert_eq!(report.to_string(), "dropped 7 packets: malformed");
}

#[test]
fn icmp_and_fragments_say_what_they_have_instead_of_ports() {
    let ping = Transport::IcmpQuery {
        kind: 8,
        code: 0,
        id: 1,
        request: true,
    };
    let frame = packet::build([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 1, ping, b"x").unwrap();
    let mut packet = packet::parse(&frame).unwrap();
    assert_eq!(
        Headers::from(&packet).to_string(),
        "icmp type 8 code 0 10.0.0.1 -> 10.0.0.2"
    );
    packet.transport = Transport::Fragment;
    assert_eq!(
        Headers::from(&packet).to_string(),
        "a fragment of icmp 10.0.0.1 -> 10.0.0.2"
    );
}
