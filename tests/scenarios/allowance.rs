//! How many connections an entity may track.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::net::{self, Seen, Servers};
use crate::privilege::namespaces;
use crate::support::{Lab, at, succeed, wait_until};
use crate::talk::Session;

/// `web` may track two connections; from `peer` everything is tracked.
const TWO_CONNECTIONS: &str = "
vpc: { cidr: [10.21.0.0/16] }
subnets: { app: { cidr: [10.21.1.0/24] } }
security_groups:
  web: { ingress: [ { protocol: tcp, ports: 8000-8999, from: 10.21.0.0/16 } ] }
  peer: {}
entities:
  web:
    kind: ec2
    subnet: app
    addresses: [10.21.1.10]
    security_groups: [web]
    tracking: { max_flows: 2 }
  peer: { kind: ec2, subnet: app, addresses: [10.21.1.11], security_groups: [peer] }
";

/// How long an attempt of these tests waits before it counts as refused: one
/// retransmission.
const MOMENT: Duration = Duration::from_millis(1500);

#[test]
fn at_its_allowance_a_lab_drops_the_next_connection_and_the_open_ones_live() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(TWO_CONNECTIONS);
    let _servers = lab.inside("web", || Servers::start("web", &[8100], &[]));
    let status = lab.status();
    assert_eq!(at(&status, "web")["conntrack_allowance"], 2);
    assert_eq!(at(&status, "web")["conntrack_allowance_available"], 2);
    assert!(at(&status, "peer")["conntrack_allowance_available"].is_null());

    let mut first = Session::open(&lab, "peer", "web", web(8001));
    assert_eq!(available(&lab), 1);
    let mut second = Session::open(&lab, "peer", "web", web(8002));
    assert_eq!(available(&lab), 0);
    assert_eq!(exceeded(&lab), 0);

    let third = || lab.inside("peer", || net::tcp(web(0).ip(), 8100, MOMENT));
    assert_eq!(third(), Seen::Silent);
    let counted = exceeded(&lab);
    assert!(counted > 0);
    assert_eq!(lab.drops("web", "no_ingress_rule"), 0);
    assert_eq!(available(&lab), 0);
    let text = succeed(&mut lab.sgwall("status"));
    assert!(
        text.contains("0 of 2 left")
            && text.contains(&format!("conntrack_allowance_exceeded {counted}")),
        "{text}"
    );
    // Nothing that lives makes room.
    first.still_talks();
    second.still_talks();

    // A closed connection is remembered for ten seconds more, then its place
    // is free.
    first.close();
    assert_eq!(third(), Seen::Silent);
    wait_until("the place is free", || available(&lab) == 1);
    assert_eq!(third(), Seen::Reached("web".into()));
    second.still_talks();
    lab.down();
}

#[test]
fn a_connection_that_web_opens_itself_takes_a_place_too() {
    if !namespaces!() {
        return;
    }
    let text = TWO_CONNECTIONS.replace(
        "peer: {}",
        "peer: { ingress: [ { protocol: all, from: 0.0.0.0/0 } ] }",
    );
    let lab = Lab::up(&text);
    let peer: SocketAddr = (IpAddr::from([10, 21, 1, 11]), 9000).into();
    let mut out = Session::open(&lab, "web", "peer", peer);
    let mut back = Session::open(&lab, "peer", "web", web(8001));
    let _servers = lab.inside("web", || Servers::start("web", &[8100], &[]));
    let refused = lab.inside("peer", || net::tcp(web(0).ip(), 8100, MOMENT));
    assert_eq!(refused, Seen::Silent);
    assert!(exceeded(&lab) > 0);
    out.still_talks();
    back.still_talks();
    lab.down();
}

fn web(port: u16) -> SocketAddr {
    (IpAddr::from([10, 21, 1, 10]), port).into()
}

fn available(lab: &Lab) -> u64 {
    at(&lab.status(), "web")["conntrack_allowance_available"]
        .as_u64()
        .unwrap()
}

fn exceeded(lab: &Lab) -> u64 {
    lab.drops("web", "conntrack_allowance_exceeded")
}
