//! Which connections outlive their rules: AWS's tracked and untracked flows,
//! on real connections.

use std::net::{IpAddr, SocketAddr};

use crate::net::{MOMENT, Pinger, Seen, tcp};
use crate::privilege::namespaces;
use crate::support::{Lab, PATIENCE, drops, without_rules};
use crate::talk::{CLIENT, Download, SERVER, Session};

/// The example of AWS's own documentation of connection tracking: SSH from one
/// address is tracked, HTTP from everywhere isn't, ping always is.
const WORKED_EXAMPLE: &str = include_str!("../data/worked-example.yaml");

/// The descriptions of every rule that lets something in.
const INGRESS: [&str; 5] = [
    "SSH from one address",
    "HTTP from everywhere",
    "HTTP over IPv6",
    "ICMP from everywhere",
    "ICMPv6 from everywhere",
];

#[test]
fn of_three_sessions_whose_rules_are_revoked_http_stops_and_ssh_and_ping_go_on() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(WORKED_EXAMPLE);
    let mut ssh = Session::open(&lab, "client", "instance", v4(22));
    let http = Download::open(&lab, "client", "instance", v4(80));
    let http6 = Download::open(&lab, "client", "instance", v6(80));
    let ping = lab.inside("client", || Pinger::new(v4(0).ip())).unwrap();
    let ping6 = lab.inside("client", || Pinger::new(v6(0).ip())).unwrap();
    ping.ping(PATIENCE).unwrap();
    ping6.ping(PATIENCE).unwrap();
    assert_eq!(lab.drops("instance", "no_ingress_rule"), 0);

    // Until here the server has heard every byte, so what it hears after the
    // change would have come by a rule that isn't there any more.
    http.still_flows();
    http6.still_flows();
    let (heard, heard6) = (http.counts().1, http6.counts().1);
    let revoked = without_rules(WORKED_EXAMPLE, &INGRESS);
    lab.save(&revoked);
    lab.event("reloaded");
    http.has_stopped(heard);
    http6.has_stopped(heard6);
    assert!(lab.drops("instance", "no_ingress_rule") > 0);
    ssh.still_talks();
    ping.ping(PATIENCE).unwrap();
    ping6.ping(PATIENCE).unwrap();
    // What is new meets the rules.
    for port in [22, 80] {
        let new = lab.inside("client", || tcp(v4(0).ip(), port, MOMENT));
        assert_eq!(new, Seen::Silent, "port {port}");
    }
    let new = lab.inside("client", || Pinger::new(v4(0).ip())).unwrap();
    assert!(new.ping(MOMENT).is_err());

    // A network ACL keeps no state: a deny cuts what is tracked, either way.
    for (side, reason, other, deaf) in [
        ("from", "network_acl_ingress", "network_acl_egress", SERVER),
        ("to", "network_acl_egress", "network_acl_ingress", CLIENT),
    ] {
        let before = lab.status();
        lab.save(&revoked.replace(
            &format!("action: allow, protocol: all, {side}"),
            &format!("action: deny, protocol: all, {side}"),
        ));
        lab.event("reloaded");
        ssh.hears_nothing(deaf);
        assert!(ping.ping(MOMENT).is_err());
        assert!(ping6.ping(MOMENT).is_err());
        let after = lab.status();
        let counted =
            |reason| drops(&after, "instance", reason) - drops(&before, "instance", reason);
        assert!(counted(reason) > 0, "{reason}: {after}");
        assert_eq!(counted(other), 0, "{other}: {after}");

        // The flows outlived it: they were cut, not ended.
        lab.save(&revoked);
        lab.event("reloaded");
        ssh.still_talks();
        ping.ping(PATIENCE).unwrap();
        ping6.ping(PATIENCE).unwrap();
    }
    drop((http, http6));
    lab.down();
}

#[test]
fn without_the_rule_out_to_all_ipv4_addresses_http_over_ipv4_alone_is_tracked() {
    if !namespaces!() {
        return;
    }
    let text = without_rules(WORKED_EXAMPLE, &["Everything out }"]);
    let lab = Lab::up(&text);
    let http = Download::open(&lab, "client", "instance", v4(80));
    let http6 = Download::open(&lab, "client", "instance", v6(80));
    let heard6 = http6.counts().1;
    lab.save(&without_rules(&text, &INGRESS));
    lab.event("reloaded");
    http6.has_stopped(heard6);
    http.still_flows();
    drop((http, http6));
    lab.down();
}

fn v4(port: u16) -> SocketAddr {
    (IpAddr::from([198, 51, 100, 10]), port).into()
}

fn v6(port: u16) -> SocketAddr {
    let address: IpAddr = "2001:db8:20:1::10".parse().unwrap();
    (address, port).into()
}
