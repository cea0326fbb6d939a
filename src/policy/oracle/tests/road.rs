//! Source check, gateways and their translation (aws-semantics §7).

use super::*;

#[test]
fn a_foreign_source_is_dropped_unless_the_check_is_off() {
    let mut lab = Lab::new();
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni("10.0.1.10", &[open]);
    let b = lab.eni("10.0.1.11", &[open]);
    let office = lab.external(Via::Vgw, "192.168.7.20");
    let spoofed = syn(a, "10.0.1.99", "10.0.1.11", 80);
    assert_eq!(
        lab.oracle().verdict(&spoofed, at(0)),
        dropped(DropReason::SourceCheck, a)
    );

    lab.0.interfaces[a.ix()].source_dest_check = false;
    lab.0.interfaces[office.ix()].source_dest_check = false;
    let mut oracle = lab.oracle();
    assert_delivered(oracle.verdict(&spoofed, at(0)), b);
    for source in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        assert_eq!(
            oracle.verdict(&syn(a, source, "10.0.1.11", 80), at(0)),
            dropped(DropReason::SourceCheck, a),
            "{source}"
        );
    }
    // An external host is never let off.
    assert_eq!(
        oracle.verdict(&syn(office, "192.168.7.21", "10.0.1.11", 80), at(0)),
        dropped(DropReason::SourceCheck, office)
    );
}

#[test]
fn what_is_not_unicast_is_told_from_what_nobody_has() {
    let mut lab = Lab::new();
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni("10.0.1.10", &[open]);
    lab.external(Via::Igw, "198.51.100.7");
    let mut oracle = lab.oracle();
    for (destination, reason) in [
        ("224.0.0.1", DropReason::NotUnicast),
        ("239.255.255.255", DropReason::NotUnicast),
        ("255.255.255.255", DropReason::NotUnicast),
        ("0.0.0.0", DropReason::NotUnicast),
        ("127.0.0.1", DropReason::NotUnicast),
        ("10.0.1.255", DropReason::UnknownDestination),
        ("10.0.1.99", DropReason::UnknownDestination),
        // Outside the VPC the sender's lack of a public address comes first.
        ("198.51.100.9", DropReason::NoPublicAddress),
        ("198.51.100.7", DropReason::NoPublicAddress),
    ] {
        assert_eq!(
            oracle.verdict(&syn(a, "10.0.1.10", destination, 80), at(0)),
            dropped(reason, a),
            "{destination}"
        );
    }
}

#[test]
fn the_internet_gateway_translates_both_ways() {
    let mut lab = Lab::new();
    let web = lab.group(&[(TCP_80, cidr("198.51.100.7/32"))], &[]);
    let b = lab.eni_with_public("10.0.1.11", "203.0.113.11", &[web]);
    let client = lab.external(Via::Igw, "198.51.100.7");
    let mut oracle = lab.oracle();

    let request = syn(client, "198.51.100.7", "203.0.113.11", 80);
    let Judgement::Delivered {
        to, packet, egress, ..
    } = oracle.verdict(&request, at(0))
    else {
        panic!("not delivered");
    };
    assert_eq!((to, egress), (b, None));
    let translated = Packet {
        destination: ip("10.0.1.11"),
        ..request
    };
    assert_eq!(packet, translated);

    let reply = tcp_packet(b, "10.0.1.11", "198.51.100.7", 80, 40_000, SYN_ACK);
    assert_eq!(
        oracle.verdict(&reply, at(1)),
        Judgement::Delivered {
            to: client,
            packet: Packet {
                source: ip("203.0.113.11"),
                ..reply
            },
            split: None,
            egress: Some(Admission::Flow),
            ingress: None,
        }
    );
    // The private address is not on the internet.
    assert_eq!(
        oracle.verdict(&syn(client, "198.51.100.7", "10.0.1.11", 80), at(2)),
        dropped(DropReason::NoRoute, client)
    );
    assert_eq!(
        oracle.verdict(&syn(client, "198.51.100.7", "203.0.113.99", 80), at(2)),
        dropped(DropReason::UnknownDestination, client)
    );
}

#[test]
fn between_public_addresses_the_receiver_sees_the_senders_public_one() {
    let mut lab = Lab::new();
    let open = lab.group(
        &[(TCP_80, cidr("203.0.113.10/32"))],
        &[(TCP_80, cidr("203.0.113.11/32"))],
    );
    let a = lab.eni_with_public("10.0.1.10", "203.0.113.10", &[open]);
    let b = lab.eni_with_public("10.0.1.11", "203.0.113.11", &[open]);
    let packet = syn(a, "10.0.1.10", "203.0.113.11", 80);
    // Without anything on the internet there is no gateway to go through.
    assert_eq!(
        lab.oracle().verdict(&packet, at(0)),
        dropped(DropReason::NoRoute, a)
    );

    lab.external(Via::Igw, "198.51.100.7");
    let mut oracle = lab.oracle();
    let Judgement::Delivered {
        to, packet: seen, ..
    } = oracle.verdict(&packet, at(0))
    else {
        panic!("not delivered");
    };
    assert_eq!(to, b);
    let translated = Packet {
        source: ip("203.0.113.10"),
        destination: ip("10.0.1.11"),
        ..packet
    };
    assert_eq!(seen, translated);
    let reply = tcp_packet(b, "10.0.1.11", "203.0.113.10", 80, 40_000, SYN_ACK);
    assert_eq!(
        oracle.verdict(&reply, at(1)),
        Judgement::Delivered {
            to: a,
            packet: Packet {
                source: ip("203.0.113.11"),
                destination: ip("10.0.1.10"),
                ..reply
            },
            split: None,
            egress: Some(Admission::Flow),
            ingress: Some(Admission::Flow),
        }
    );
}

#[test]
fn ipv6_crosses_the_internet_gateway_untranslated() {
    let mut lab = Lab::new();
    let open = lab.group(&[(TCP_80, any6())], &[(TCP_80, any6())]);
    let b = lab.eni("2001:db8:1:1::11", &[open]);
    let client = lab.external(Via::Igw, "2001:db8:f::7");
    let mut oracle = lab.oracle();

    let request = syn(client, "2001:db8:f::7", "2001:db8:1:1::11", 80);
    assert_delivered(oracle.verdict(&request, at(0)), b);
    let out = syn(b, "2001:db8:1:1::11", "2001:db8:f::7", 80);
    assert_delivered(oracle.verdict(&out, at(0)), client);
    let nobody = syn(b, "2001:db8:1:1::11", "2001:db8:f::8", 80);
    assert_eq!(
        oracle.verdict(&nobody, at(0)),
        dropped(DropReason::UnknownDestination, b)
    );
}

#[test]
fn a_vpn_reaches_private_addresses_and_only_those() {
    let mut lab = Lab::new();
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let b = lab.eni_with_public("10.0.1.11", "203.0.113.11", &[open]);
    let office = lab.external(Via::Vgw, "192.168.7.20");
    let laptop = lab.external(Via::Igw, "198.51.100.7");
    let mut oracle = lab.oracle();

    let from_office = |to| syn(office, "192.168.7.20", to, 80);
    assert_delivered(oracle.verdict(&from_office("10.0.1.11"), at(0)), b);
    for (destination, reason) in [
        ("10.0.1.12", DropReason::UnknownDestination),
        ("203.0.113.11", DropReason::NoRoute),
        ("198.51.100.7", DropReason::NoRoute),
        ("8.8.8.8", DropReason::NoRoute),
    ] {
        assert_eq!(
            oracle.verdict(&from_office(destination), at(0)),
            dropped(reason, office),
            "{destination}"
        );
    }
    // To the office the private source stays: no translation on the VPN.
    let back = syn(b, "10.0.1.11", "192.168.7.20", 443);
    assert_delivered(oracle.verdict(&back, at(0)), office);
    // Two external hosts don't meet here.
    assert_eq!(
        oracle.verdict(&syn(laptop, "198.51.100.7", "192.168.7.20", 80), at(0)),
        dropped(DropReason::NoRoute, laptop)
    );
}

#[test]
fn what_cannot_be_is_dropped_not_believed() {
    let mut lab = Lab::new();
    let open = lab.group(&[(Traffic::All, any4())], &[(Traffic::All, any4())]);
    let a = lab.eni("10.0.1.10", &[open]);
    let mut oracle = lab.oracle();
    assert_eq!(
        oracle.verdict(&syn(a, "10.0.1.10", "2001:db8:1:1::11", 80), at(0)),
        dropped(DropReason::Malformed, a)
    );
    let nobody = InterfaceIx::new(7);
    assert_eq!(
        oracle.verdict(&syn(nobody, "10.0.1.10", "10.0.1.10", 80), at(0)),
        dropped(DropReason::UnknownInterface, nobody)
    );
}
