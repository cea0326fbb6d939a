//! Traffic that is never filtered (aws-semantics §4).

use super::*;

fn lab() -> (Lab, InterfaceIx) {
    let mut lab = Lab::of_subnets(&[
        &["10.0.1.0/24", "2001:db8:1:1::/64"],
        &["10.0.2.0/24", "2001:db8:1:2::/64"],
    ]);
    // Nothing may leave, by any layer.
    let closed = lab.group(&[], &[]);
    let a = lab.eni("10.0.1.10", &[closed]);
    lab.0.interfaces[a.ix()].addresses.push(Address {
        private: ip("2001:db8:1:1::10"),
        public: None,
    });
    lab.acl(0, &[], &[]);
    (lab, a)
}

#[test]
fn what_is_for_a_service_is_dropped_as_having_none_never_by_a_rule() {
    let (lab, a) = lab();
    let mut oracle = lab.oracle();
    for service in [
        "10.0.0.2",
        "10.0.1.1",
        "10.0.2.1",
        "169.254.169.253",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.169.250",
        "169.254.169.251",
        "169.254.169.123",
    ] {
        for port in [53, 80, 1688] {
            assert_eq!(
                oracle.verdict(&syn(a, "10.0.1.10", service, port), at(0)),
                dropped(DropReason::NoService, a),
                "{service}"
            );
        }
    }
    for service in [
        "fd00:ec2::253",
        "fd00:ec2::254",
        "fd00:ec2::123",
        "2001:db8:1:1::1",
        "2001:db8:1:2::1",
    ] {
        assert_eq!(
            oracle.verdict(&syn(a, "2001:db8:1:1::10", service, 53), at(0)),
            dropped(DropReason::NoService, a),
            "{service}"
        );
    }
    for (source, neighbour) in [
        ("10.0.1.10", "10.0.0.1"),
        ("10.0.1.10", "10.0.1.2"),
        ("10.0.1.10", "169.254.169.252"),
        ("2001:db8:1:1::10", "2001:db8:1::2"),
        ("2001:db8:1:1::10", "fd00:ec2::1"),
    ] {
        assert_eq!(
            oracle.verdict(&syn(a, source, neighbour, 53), at(0)),
            dropped(DropReason::NoEgressRule, a),
            "{neighbour}"
        );
    }
    assert_eq!(oracle.flows(), 0);
}

#[test]
fn the_source_check_comes_before_the_services() {
    let (lab, a) = lab();
    assert_eq!(
        lab.oracle()
            .verdict(&syn(a, "10.0.1.11", "169.254.169.254", 80), at(0)),
        dropped(DropReason::SourceCheck, a)
    );
}

#[test]
fn dhcp_is_told_by_its_ports_whatever_its_addresses() {
    let (lab, a) = lab();
    let mut oracle = lab.oracle();
    for (source, destination) in [
        ("0.0.0.0", "255.255.255.255"),
        ("10.0.1.10", "10.0.1.1"),
        ("10.0.1.10", "10.0.2.99"),
        ("10.0.1.99", "224.0.0.1"),
    ] {
        assert_eq!(
            oracle.verdict(&udp(a, source, destination, 68, 67), at(0)),
            dropped(DropReason::NoService, a),
            "{source} -> {destination}"
        );
    }
    for (source, destination) in [
        ("fe80::1", "ff02::1:2"),
        ("2001:db8:1:1::10", "2001:db8:1:2::9"),
    ] {
        assert_eq!(
            oracle.verdict(&udp(a, source, destination, 546, 547), at(0)),
            dropped(DropReason::NoService, a),
            "{source} -> {destination}"
        );
    }
    for (packet, reason) in [
        (
            udp(a, "0.0.0.0", "255.255.255.255", 67, 68),
            DropReason::SourceCheck,
        ),
        (
            udp(a, "10.0.1.10", "255.255.255.255", 68, 68),
            DropReason::NotUnicast,
        ),
        (
            udp(a, "10.0.1.10", "255.255.255.255", 546, 547),
            DropReason::NotUnicast,
        ),
        (
            udp(a, "fe80::1", "ff02::1:2", 68, 67),
            DropReason::SourceCheck,
        ),
        (
            tcp_packet(a, "10.0.1.10", "255.255.255.255", 68, 67, SYN),
            DropReason::NotUnicast,
        ),
    ] {
        assert_eq!(
            oracle.verdict(&packet, at(0)),
            dropped(reason, a),
            "{packet}"
        );
    }
}

#[test]
fn hosts_outside_have_no_services_here() {
    let (mut lab, _) = lab();
    let office = lab.external(Via::Vgw, "192.168.7.20");
    let laptop = lab.external(Via::Igw, "198.51.100.7");
    let mut oracle = lab.oracle();
    for (packet, reason) in [
        (
            syn(office, "192.168.7.20", "10.0.0.2", 53),
            DropReason::UnknownDestination,
        ),
        (
            syn(laptop, "198.51.100.7", "169.254.169.254", 80),
            DropReason::UnknownDestination,
        ),
        (
            udp(office, "0.0.0.0", "255.255.255.255", 68, 67),
            DropReason::SourceCheck,
        ),
    ] {
        assert_eq!(
            oracle.verdict(&packet, at(0)),
            dropped(reason, packet.from),
            "{packet}"
        );
    }
}
