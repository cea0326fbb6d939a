use std::net::Ipv6Addr;

use super::Side::{Wire, Workload};
use super::*;
use crate::model::protocol;
use crate::packet::{Transport, build};

const OWN: Mac = [2, 0, 0, 0, 0, 1];
const OTHER: Mac = [2, 0, 0, 0, 0, 9];
const BROADCAST: Mac = [0xff; 6];
const OWN_V4: [u8; 4] = [172, 18, 0, 3];
const OTHER_V4: [u8; 4] = [172, 18, 0, 9];
const OWN_V6: &str = "fd00::3";
const OWN_LOCAL: &str = "fe80::3";
const OTHER_LOCAL: &str = "fe80::9";
const SOLICITED_OWN: &str = "ff02::1:ff00:3";
const ALL_NODES: &str = "ff02::1";

const NEIGHBOUR: Result<(), DropReason> = Ok(());
const SPOOF: Result<(), DropReason> = Err(DropReason::NeighbourSpoof);
const MALFORMED: Result<(), DropReason> = Err(DropReason::Malformed);

fn look(frame: &[u8], side: Side) -> Result<Content, DropReason> {
    let own = [
        IpAddr::from(OWN_V4),
        OWN_V6.parse().unwrap(),
        OWN_LOCAL.parse().unwrap(),
    ];
    classify(frame, side, &OWN, |address| own.contains(&address))
}

/// Whether a frame is handed on to the other end, all of it.
fn handed_on(frame: &[u8], side: Side) -> Result<(), DropReason> {
    let length = frame.len();
    match look(frame, side)? {
        content if content == Content::Neighbour { length } => Ok(()),
        other => panic!("{other:?}"),
    }
}

fn frame(destination: Mac, source: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &kind.to_be_bytes(), payload].concat()
}

fn ip(from: &str, to: &str) -> Vec<u8> {
    let transport = Transport::Udp {
        source: 5000,
        destination: 53,
    };
    let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
    build(from, to, protocol::UDP, transport, b"question").unwrap()
}

fn arp(operation: u16, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    let mut bytes = ARP_PREFIX.to_vec();
    bytes.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        bytes.extend(mac);
        bytes.extend(address);
    }
    bytes
}

/// An ARP packet in a frame from its sender.
fn arp_frame(to: Mac, operation: u16, sender: (Mac, [u8; 4]), target: [u8; 4]) -> Vec<u8> {
    let packet = arp(operation, sender, ([0; 6], target));
    frame(to, sender.0, TYPE_ARP, &packet)
}

/// An ICMPv6 message behind the headers that are given.
fn icmpv6(from: &str, to: &str, hops: u8, headers: &[u8], first: u8, body: &[u8]) -> Vec<u8> {
    let (from, to): (Ipv6Addr, Ipv6Addr) = (from.parse().unwrap(), to.parse().unwrap());
    let length = u16::try_from(headers.len() + body.len()).unwrap();
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([first, hops]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(headers);
    bytes.extend(body);
    bytes
}

fn discovery(from: &str, to: &str, body: &[u8]) -> Vec<u8> {
    icmpv6(from, to, 255, &[], protocol::ICMPV6, body)
}

/// Type, code, checksum (nobody looks), four bytes, the rest.
fn body(kind: u8, flags: u8, rest: &[&[u8]]) -> Vec<u8> {
    [&[kind, 0, 0, 0, flags, 0, 0, 0], &rest.concat()[..]].concat()
}

fn address(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn named(kind: u8, mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac;
    [kind, 1, a, b, c, d, e, f]
}

fn solicitation(from: &str, to: &str, target: &str, source: Option<Mac>) -> Vec<u8> {
    let option = source.map(|mac| named(1, mac));
    let option = option.as_ref().map_or(&[][..], |option| option);
    discovery(from, to, &body(135, 0, &[&address(target), option]))
}

fn advertisement(from: &str, to: &str, target: &str, mac: Mac, flags: u8) -> Vec<u8> {
    let body = body(136, flags, &[&address(target), &named(2, mac)]);
    discovery(from, to, &body)
}

/// An IPv6 packet from the workload, or to it.
fn framed(side: Side, packet: &[u8]) -> Vec<u8> {
    let mut to_group = [0x33, 0x33, 0, 0, 0, 0];
    to_group[2..].copy_from_slice(&packet[36..40]);
    let (to, from) = match side {
        Workload => (OTHER, OWN),
        Wire => (OWN, OTHER),
    };
    let to = if packet[24] == 0xff { to_group } else { to };
    frame(to, from, TYPE_IPV6, packet)
}

/// What becomes of an IPv6 packet that comes from a side.
fn from(side: Side, packet: &[u8]) -> Result<(), DropReason> {
    handed_on(&framed(side, packet), side)
}

#[test]
fn ip_packets_go_on_without_what_fills_the_frame_up() {
    for (kind, packet) in [
        (TYPE_IPV4, ip("172.18.0.3", "172.18.0.9")),
        (TYPE_IPV6, ip(OWN_V6, "fd00::9")),
    ] {
        let length = packet.len();
        for padding in [0, 1, 18, 500] {
            let padded = [&packet[..], &vec![0; padding]].concat();
            let out = frame(OTHER, OWN, kind, &padded);
            assert_eq!(look(&out, Workload), Ok(Content::Ip { length }));
            let back = frame(OWN, OTHER, kind, &padded);
            assert_eq!(look(&back, Wire), Ok(Content::Ip { length }));
        }
        // What lacks a part is for the parser to refuse.
        let short = frame(OTHER, OWN, kind, &packet[..length - 1]);
        let length = length - 1;
        assert_eq!(look(&short, Workload), Ok(Content::Ip { length }));
    }
    // A length that can't be: not to be cut.
    let mut odd = ip("172.18.0.3", "172.18.0.9");
    odd[2..4].fill(0);
    let length = odd.len();
    let odd = frame(OTHER, OWN, TYPE_IPV4, &odd);
    assert_eq!(look(&odd, Workload), Ok(Content::Ip { length }));
}

#[test]
fn what_is_neither_ip_nor_arp_is_refused_both_ways() {
    let packet = ip("172.18.0.3", "172.18.0.9");
    // 802.1Q, 802.1ad, PPPoE, MPLS, RARP, LLDP, and lengths of LLC.
    for kind in [
        0x8100, 0x88a8, 0x8863, 0x8847, 0x8035, 0x88cc, 0, 38, 0x05ff,
    ] {
        let refused = Err(DropReason::NotIp);
        assert_eq!(look(&frame(OTHER, OWN, kind, &packet), Workload), refused);
        assert_eq!(look(&frame(OWN, OTHER, kind, &packet), Wire), refused);
        assert_eq!(look(&frame(BROADCAST, OTHER, kind, &packet), Wire), refused);
    }
    let mismatch = frame(OTHER, OWN, TYPE_IPV6, &packet);
    assert_eq!(look(&mismatch, Workload), Err(DropReason::Malformed));
    let other = frame(OTHER, OWN, TYPE_IPV4, &ip(OWN_V6, "fd00::9"));
    assert_eq!(look(&other, Workload), Err(DropReason::Malformed));
}

#[test]
fn a_foreign_ethernet_address_is_no_source() {
    let packet = ip("172.18.0.3", "172.18.0.9");
    let spoof = Err(DropReason::NeighbourSpoof);
    let malformed = Err(DropReason::Malformed);
    let look = |to, from, side| look(&frame(to, from, TYPE_IPV4, &packet), side);
    assert_eq!(look(OTHER, OTHER, Workload), spoof);
    assert_eq!(look(OTHER, BROADCAST, Workload), spoof);
    // Or the own one, come back.
    assert_eq!(look(OWN, OWN, Wire), spoof);
    assert_eq!(look(OWN, [3, 0, 0, 0, 0, 9], Wire), malformed);
}

#[test]
fn frames_for_other_stations_are_passed_over() {
    let packet = ip("172.18.0.9", "172.18.0.8");
    for kind in [TYPE_IPV4, TYPE_ARP, 0x8100] {
        let other = frame([2, 0, 0, 0, 0, 8], OTHER, kind, &packet);
        assert_eq!(look(&other, Wire), Ok(Content::NotForUs));
    }
}

#[test]
fn a_packet_for_one_host_in_a_frame_for_many_is_refused() {
    let refused = Err(DropReason::NotUnicast);
    let group = [0x01, 0, 0x5e, 0, 0, 1];
    for to in [BROADCAST, group] {
        for (kind, packet) in [
            (TYPE_IPV4, ip("172.18.0.3", "172.18.0.9")),
            (TYPE_IPV6, ip(OWN_V6, "fd00::9")),
        ] {
            assert_eq!(look(&frame(to, OWN, kind, &packet), Workload), refused);
            assert_eq!(look(&frame(to, OTHER, kind, &packet), Wire), refused);
        }
        // What is for many by its own address is the data path's to refuse.
        for (kind, to_many) in [
            (TYPE_IPV4, "224.0.0.251"),
            (TYPE_IPV4, "255.255.255.255"),
            (TYPE_IPV6, "ff02::fb"),
        ] {
            let from = if kind == TYPE_IPV4 {
                "172.18.0.3"
            } else {
                OWN_V6
            };
            let packet = ip(from, to_many);
            let length = packet.len();
            let frame = frame(to, OWN, kind, &packet);
            assert_eq!(look(&frame, Workload), Ok(Content::Ip { length }));
        }
    }
}

#[test]
fn the_workload_s_arp_is_under_its_own_addresses() {
    let out = |operation, sender, target| {
        handed_on(&arp_frame(BROADCAST, operation, sender, target), Workload)
    };
    assert_eq!(out(1, (OWN, OWN_V4), OTHER_V4), NEIGHBOUR);
    assert_eq!(out(2, (OWN, OWN_V4), OTHER_V4), NEIGHBOUR);
    // An announcement, and a probe for its own.
    assert_eq!(out(1, (OWN, OWN_V4), OWN_V4), NEIGHBOUR);
    assert_eq!(out(1, (OWN, [0; 4]), OWN_V4), NEIGHBOUR);
    // For another's address, or in another's name.
    assert_eq!(out(1, (OWN, [0; 4]), OTHER_V4), SPOOF);
    assert_eq!(out(2, (OWN, [0; 4]), OWN_V4), SPOOF);
    for operation in [1, 2] {
        assert_eq!(out(operation, (OWN, OTHER_V4), OWN_V4), SPOOF);
        assert_eq!(out(operation, (OTHER, OWN_V4), OTHER_V4), SPOOF);
        // The frame is right, what it says is not.
        let lie = arp(operation, (OTHER, OWN_V4), (OTHER, OTHER_V4));
        let lie = frame(OTHER, OWN, TYPE_ARP, &lie);
        assert_eq!(handed_on(&lie, Workload), SPOOF);
    }
}

#[test]
fn nobody_on_the_wire_gets_the_interface_s_addresses_by_arp() {
    let arrives =
        |to, operation, sender, target| handed_on(&arp_frame(to, operation, sender, target), Wire);
    for to in [BROADCAST, OWN] {
        assert_eq!(arrives(to, 1, (OTHER, OTHER_V4), OWN_V4), NEIGHBOUR);
        assert_eq!(arrives(to, 2, (OTHER, OTHER_V4), OWN_V4), NEIGHBOUR);
        // A probe is a question: the workload will answer that it has the address.
        assert_eq!(arrives(to, 1, (OTHER, [0; 4]), OWN_V4), NEIGHBOUR);
        assert_eq!(arrives(to, 1, (OTHER, OWN_V4), OWN_V4), SPOOF);
        assert_eq!(arrives(to, 2, (OTHER, OWN_V4), OTHER_V4), SPOOF);
        // Another's address at the interface's own station, or at a group.
        for (mac, expected) in [(OWN, SPOOF), (BROADCAST, MALFORMED)] {
            let lie = arp(2, (mac, OTHER_V4), (OWN, OWN_V4));
            assert_eq!(handed_on(&frame(to, OTHER, TYPE_ARP, &lie), Wire), expected);
        }
    }
}

#[test]
fn arp_of_other_kinds_is_refused_and_padding_is_not_handed_on() {
    let good = arp(1, (OWN, OWN_V4), (OTHER, OTHER_V4));
    for at in 0..8 {
        let mut odd = good.clone();
        odd[at] ^= 0x10;
        let odd = frame(BROADCAST, OWN, TYPE_ARP, &odd);
        assert_eq!(handed_on(&odd, Workload), MALFORMED, "{at}");
    }
    for operation in [0, 3, 4, 8, 9] {
        let odd = arp_frame(BROADCAST, operation, (OWN, OWN_V4), OTHER_V4);
        assert_eq!(handed_on(&odd, Workload), MALFORMED, "{operation}");
    }
    let padded = frame(BROADCAST, OWN, TYPE_ARP, &[&good[..], &[7; 18]].concat());
    let length = HEADER + ARP_LENGTH;
    assert_eq!(look(&padded, Workload), Ok(Content::Neighbour { length }));
    let short = frame(BROADCAST, OWN, TYPE_ARP, &good[..27]);
    assert_eq!(look(&short, Workload), Err(DropReason::Malformed));
}

#[test]
fn the_workload_s_neighbour_discovery_is_under_its_own_addresses() {
    let other = "fd00::9";
    let asked = "ff02::1:ff00:9";
    for own in [OWN_V6, OWN_LOCAL] {
        let asks = |mac| from(Workload, &solicitation(own, asked, other, mac));
        assert_eq!(asks(Some(OWN)), NEIGHBOUR);
        assert_eq!(asks(None), NEIGHBOUR);
        assert_eq!(asks(Some(OTHER)), SPOOF);
        let says = |target, mac| from(Workload, &advertisement(own, other, target, mac, 0x60));
        assert_eq!(says(own, OWN), NEIGHBOUR);
        assert_eq!(says(other, OWN), SPOOF);
        assert_eq!(says(own, OTHER), SPOOF);
        // It looks for a router, and is none.
        let all_routers = "ff02::2";
        let seeks = discovery(own, all_routers, &body(133, 0, &[&named(1, OWN)]));
        assert_eq!(from(Workload, &seeks), NEIGHBOUR);
        let seeks = discovery(own, all_routers, &body(133, 0, &[&named(1, OTHER)]));
        assert_eq!(from(Workload, &seeks), SPOOF);
    }
    let foreign = solicitation(other, asked, other, Some(OWN));
    assert_eq!(from(Workload, &foreign), SPOOF);
    let foreign = advertisement(OTHER_LOCAL, ALL_NODES, OWN_V6, OWN, 0x20);
    assert_eq!(from(Workload, &foreign), SPOOF);
    let route = discovery(OWN_LOCAL, ALL_NODES, &body(134, 0, &[&[0; 8]]));
    assert_eq!(from(Workload, &route), SPOOF);
    let elsewhere = body(137, 0, &[&address(OTHER_LOCAL), &address(other)]);
    let elsewhere = discovery(OWN_LOCAL, other, &elsewhere);
    assert_eq!(from(Workload, &elsewhere), SPOOF);
}

#[test]
fn duplicate_address_detection_asks_for_own_addresses_alone() {
    let probe = |target, solicited| solicitation("::", solicited, target, None);
    assert_eq!(from(Workload, &probe(OWN_V6, SOLICITED_OWN)), NEIGHBOUR);
    assert_eq!(from(Workload, &probe(OWN_LOCAL, SOLICITED_OWN)), NEIGHBOUR);
    assert_eq!(from(Workload, &probe("fd00::9", "ff02::1:ff00:9")), SPOOF);
    // Others may ask for whatever they like, and hear that it is taken.
    assert_eq!(from(Wire, &probe(OWN_V6, SOLICITED_OWN)), NEIGHBOUR);
    assert_eq!(from(Wire, &probe("fd00::9", "ff02::1:ff00:9")), NEIGHBOUR);
    for side in [Workload, Wire] {
        // RFC 4861 §7.1.1.
        assert_eq!(from(side, &probe(OWN_V6, OTHER_LOCAL)), MALFORMED);
        assert_eq!(from(side, &probe(OWN_V6, ALL_NODES)), MALFORMED);
        let named = solicitation("::", SOLICITED_OWN, OWN_V6, Some(OWN));
        assert_eq!(from(side, &named), MALFORMED);
    }
}

#[test]
fn nobody_on_the_wire_gets_the_interface_s_addresses_by_discovery() {
    let asks = |source, mac| solicitation(source, SOLICITED_OWN, OWN_V6, mac);
    assert_eq!(from(Wire, &asks(OTHER_LOCAL, Some(OTHER))), NEIGHBOUR);
    assert_eq!(from(Wire, &asks(OTHER_LOCAL, None)), NEIGHBOUR);
    assert_eq!(from(Wire, &asks(OTHER_LOCAL, Some(OWN))), SPOOF);
    assert_eq!(from(Wire, &asks(OWN_LOCAL, Some(OTHER))), SPOOF);
    let says = |target, mac| advertisement(OTHER_LOCAL, ALL_NODES, target, mac, 0x20);
    assert_eq!(from(Wire, &says(OTHER_LOCAL, OTHER)), NEIGHBOUR);
    assert_eq!(from(Wire, &says(OWN_V6, OTHER)), SPOOF);
    assert_eq!(from(Wire, &says(OWN_LOCAL, OTHER)), SPOOF);
    assert_eq!(from(Wire, &says(OTHER_LOCAL, OWN)), SPOOF);
    assert_eq!(from(Wire, &says(OTHER_LOCAL, BROADCAST)), MALFORMED);
}

#[test]
fn routers_may_announce_themselves_and_send_nobody_elsewhere() {
    let prefix = [3; 32];
    let mut prefix_option = prefix;
    prefix_option[1] = 4;
    let says = |source| {
        let rest: [&[u8]; 3] = [&[0; 8], &named(1, OTHER), &prefix_option];
        discovery(source, ALL_NODES, &body(134, 0, &rest))
    };
    assert_eq!(from(Wire, &says(OTHER_LOCAL)), NEIGHBOUR);
    assert_eq!(from(Wire, &says("fd00::9")), MALFORMED);
    let rest = [address("fe80::8"), address("fd00::7")];
    let elsewhere = discovery(OTHER_LOCAL, OWN_V6, &body(137, 0, &[&rest[0], &rest[1]]));
    assert_eq!(from(Wire, &elsewhere), SPOOF);
}

#[test]
fn discovery_that_a_receiver_must_ignore_is_refused() {
    let good = solicitation(OTHER_LOCAL, SOLICITED_OWN, OWN_V6, Some(OTHER));
    assert_eq!(from(Wire, &good), NEIGHBOUR);
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut odd = good.clone();
        change(&mut odd);
        let length = u16::try_from(odd.len() - 40).unwrap();
        odd[4..6].copy_from_slice(&length.to_be_bytes());
        assert_eq!(from(Wire, &odd), MALFORMED);
    };
    // It crossed a router, or has a code.
    refused(&|packet| packet[7] = 254);
    refused(&|packet| packet[41] = 1);
    // A target, or a source, that is no host.
    refused(&|packet| packet[48] = 0xff);
    refused(&|packet| packet[48..64].fill(0));
    refused(&|packet| packet[8] = 0xff);
    // Options without a length, cut short, of another length than addresses have.
    refused(&|packet| packet[65] = 0);
    refused(&|packet| packet[65] = 2);
    refused(&|packet| packet.truncate(71));
    refused(&|packet| packet.truncate(65));
    refused(&|packet| packet.extend([1, 2].into_iter().chain([0; 14])));
    refused(&|packet| packet.truncate(63));
    refused(&|packet| packet.extend([14, 200].into_iter().chain([0; 1598])));
    // Answered to everybody as if everybody had asked.
    let odd = advertisement(OTHER_LOCAL, ALL_NODES, OTHER_LOCAL, OTHER, 0x60);
    assert_eq!(from(Wire, &odd), MALFORMED);
    let odd = advertisement("::", ALL_NODES, OTHER_LOCAL, OTHER, 0x20);
    assert_eq!(from(Wire, &odd), MALFORMED);
}

#[test]
fn discovery_cannot_hide_behind_headers_or_in_fragments() {
    let lie = body(136, 0x20, &[&address("fd00::9"), &named(2, OWN)]);
    let options = [protocol::ICMPV6, 0, 1, 4, 0, 0, 0, 0];
    let whole = [protocol::ICMPV6, 0, 0, 0, 0, 0, 0, 7];
    let first = [protocol::ICMPV6, 0, 0, 1, 0, 0, 0, 7];
    let twice = [&[60, 0, 1, 4, 0, 0, 0, 0][..], &options].concat();
    let headers: [(u8, &[u8]); 6] = [
        (0, &options),
        (60, &options),
        (43, &options),
        (44, &whole),
        (44, &first),
        (0, &twice),
    ];
    for (next, headers) in headers {
        let hidden = icmpv6(OWN_V6, "fd00::9", 255, headers, next, &lie);
        for side in [Workload, Wire] {
            let frame = framed(side, &hidden);
            assert_eq!(look(&frame, side), Err(DropReason::Malformed), "{next}");
        }
    }
    // The same with an echo is a packet like others.
    let echo = body(128, 0, &[]);
    let packet = icmpv6(OWN_V6, "fd00::9", 64, &options, 60, &echo);
    let length = packet.len();
    let frame = framed(Workload, &packet);
    assert_eq!(look(&frame, Workload), Ok(Content::Ip { length }));
}

#[test]
fn switches_hear_the_workload_s_membership_and_it_hears_their_queries() {
    let alert = [protocol::ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    let member = |source, kind, rest: &[u8], alert: &[u8], hops| {
        icmpv6(source, "ff02::16", hops, alert, 0, &body(kind, 0, &[rest]))
    };
    let group = address("ff02::1:ff00:3");
    for source in [OWN_LOCAL, "::"] {
        for (kind, rest) in [(143, &[][..]), (131, &group), (132, &group)] {
            let report = |alert, hops| from(Workload, &member(source, kind, rest, alert, hops));
            assert_eq!(report(&alert, 1), NEIGHBOUR);
            assert_eq!(report(&alert, 255), MALFORMED);
            let no_alert = [protocol::ICMPV6, 0, 1, 4, 0, 0, 0, 0];
            assert_eq!(report(&no_alert, 1), MALFORMED);
        }
    }
    let foreign = member(OTHER_LOCAL, 143, &[], &alert, 1);
    assert_eq!(from(Workload, &foreign), SPOOF);
    // Others' reports are none of its business.
    assert_eq!(look(&framed(Wire, &foreign), Wire), Ok(Content::NotForUs));
    // Queries are for those who are asked.
    let query = |source| member(source, 130, &group, &alert, 1);
    assert_eq!(from(Wire, &query(OTHER_LOCAL)), NEIGHBOUR);
    assert_eq!(from(Wire, &query("::")), MALFORMED);
    assert_eq!(from(Wire, &query(OWN_LOCAL)), SPOOF);
    assert_eq!(from(Workload, &query(OWN_LOCAL)), SPOOF);
    let short = member(OWN_LOCAL, 131, &[], &alert, 1);
    assert_eq!(from(Workload, &short), MALFORMED);
    let to_one = icmpv6(OWN_LOCAL, OTHER_LOCAL, 1, &alert, 0, &body(143, 0, &[]));
    assert_eq!(from(Workload, &to_one), MALFORMED);
}

#[test]
fn frames_cut_short_or_changed_anywhere_do_no_harm() {
    let alert = [protocol::ICMPV6, 0, 5, 2, 0, 0, 1, 0];
    let rest: [&[u8]; 2] = [&[0; 8], &named(1, OTHER)];
    let seeds = [
        arp_frame(BROADCAST, 1, (OTHER, OTHER_V4), OWN_V4),
        frame(OWN, OTHER, TYPE_IPV4, &ip("172.18.0.9", "172.18.0.3")),
        framed(Wire, &ip("fd00::9", OWN_V6)),
        framed(
            Wire,
            &solicitation(OTHER_LOCAL, SOLICITED_OWN, OWN_V6, Some(OTHER)),
        ),
        framed(
            Wire,
            &discovery(OTHER_LOCAL, ALL_NODES, &body(134, 0, &rest)),
        ),
        framed(
            Workload,
            &icmpv6(OWN_LOCAL, "ff02::16", 1, &alert, 0, &body(143, 0, &[])),
        ),
    ];
    for seed in &seeds {
        for side in [Workload, Wire] {
            for length in 0..seed.len() {
                hold(&seed[..length], side);
            }
            for at in 0..seed.len() {
                for value in 0..=255 {
                    let mut odd = seed.clone();
                    odd[at] = value;
                    hold(&odd, side);
                }
            }
        }
    }
}

/// Whatever the frame: what is handed on is in it.
fn hold(frame: &[u8], side: Side) {
    match look(frame, side) {
        Ok(Content::Ip { length }) => assert!(HEADER + length <= frame.len()),
        Ok(Content::Neighbour { length }) => assert!((HEADER..=frame.len()).contains(&length)),
        Ok(Content::NotForUs) | Err(_) => {}
    }
}
