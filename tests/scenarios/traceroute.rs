//! A traceroute through an appliance: whether the answers of the hops on the
//! way come back is up to the rules, or to how the VPC treats ICMP errors.

use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{SockProtocol, setsockopt, sockopt};

use crate::appliance::{THROUGH_APPLIANCE, up};
use crate::net::MOMENT;
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE};
use crate::wire;

/// Ports that nobody listens on, as traceroute uses them.
const FIRST_PORT: u16 = 33_434;
/// Types and codes of the answers: time exceeded, port unreachable.
const EXCEEDED: (u8, u8) = (11, 0);
const UNREACHABLE: (u8, u8) = (3, 3);
const EXCEEDED_V6: (u8, u8) = (3, 0);
const UNREACHABLE_V6: (u8, u8) = (1, 4);

/// Rules by which the answers come in.
const BY_RULE: &str = "
      { protocol: icmp, type: 11, code: 0, from: 10.22.0.0/16 },
      { protocol: icmp, type: 3, code: 3, from: 10.22.0.0/16 },
      { protocol: icmpv6, type: 3, code: 0, from: '2001:db8:22::/56' },
      { protocol: icmpv6, type: 1, code: 4, from: '2001:db8:22::/56' }";

#[test]
fn the_hops_of_a_traceroute_answer_by_a_rule_for_their_icmp_errors() {
    if !namespaces!() {
        return;
    }
    let lab = up(&THROUGH_APPLIANCE.replace("ERRORS", BY_RULE));
    answers_of_both_hops(&lab);
    lab.down();
}

#[test]
fn the_hops_of_a_traceroute_answer_without_a_rule_where_icmp_errors_are_related() {
    if !namespaces!() {
        return;
    }
    let lab = up(&THROUGH_APPLIANCE
        .replace("ERRORS", "")
        .replace("'] }\nroute", "'], icmp_errors: related }\nroute"));
    answers_of_both_hops(&lab);
    assert_eq!(lab.drops("left", "no_ingress_rule"), 0);
    lab.down();
}

#[test]
fn without_rule_and_relation_a_traceroute_sees_stars() {
    if !namespaces!() {
        return;
    }
    let lab = up(&THROUGH_APPLIANCE.replace("ERRORS", ""));
    for to in [right(), right6()] {
        let before = lab.drops("left", "no_ingress_rule");
        let ear = ear(&lab, to);
        for ttl in [1, 2] {
            probe(&lab, to, ttl);
            let heard = answer(&ear, MOMENT);
            assert_eq!(heard, None, "hop {ttl} towards {to}");
        }
        // Both answered, and neither answer was let in.
        assert!(lab.drops("left", "no_ingress_rule") >= before + 2);
    }
    lab.down();
}

fn answers_of_both_hops(lab: &Lab) {
    for (to, first, exceeded, unreachable) in [
        (right(), "10.22.1.5", EXCEEDED, UNREACHABLE),
        (right6(), "2001:db8:22:1::5", EXCEEDED_V6, UNREACHABLE_V6),
    ] {
        let ear = ear(lab, to);
        // The VPC's router is no hop: the appliance is the first.
        for (ttl, from, kind) in [(1, first.parse().unwrap(), exceeded), (2, to, unreachable)] {
            probe(lab, to, ttl);
            let heard = answer(&ear, PATIENCE);
            let (kind, code) = kind;
            assert_eq!(heard, Some((from, kind, code)), "hop {ttl} towards {to}");
        }
    }
}

/// Sends one datagram that lives for so many hops.
fn probe(lab: &Lab, to: IpAddr, ttl: u8) {
    lab.inside("left", || {
        let any: IpAddr = match to {
            IpAddr::V4(_) => [0, 0, 0, 0].into(),
            IpAddr::V6(_) => [0_u16; 8].into(),
        };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        match to {
            IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4Ttl, &ttl.into()),
            IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6Ttl, &ttl.into()),
        }
        .unwrap();
        let port = FIRST_PORT + u16::from(ttl);
        socket.send_to(b"traceroute", (to, port)).unwrap();
    });
}

fn ear(lab: &Lab, to: IpAddr) -> OwnedFd {
    let protocol = match to {
        IpAddr::V4(_) => SockProtocol::Icmp,
        IpAddr::V6(_) => SockProtocol::IcmpV6,
    };
    lab.inside("left", || wire::raw(to, protocol))
}

/// Who answers, with what type and code.
fn answer(ear: &OwnedFd, wait: Duration) -> Option<(IpAddr, u8, u8)> {
    let heard = wire::hear(ear, wait, |heard| {
        // An error quotes what it is about.
        heard
            .message()
            .windows(10)
            .any(|part| part == b"traceroute")
    })?;
    let message = heard.message();
    Some((heard.from, message[0], message[1]))
}

fn right() -> IpAddr {
    [10, 22, 2, 10].into()
}

fn right6() -> IpAddr {
    "2001:db8:22:2::10".parse().unwrap()
}
