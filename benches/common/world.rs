//! The VPC that benches and the allocation test send packets through, built in
//! code: no file is read.
#![allow(dead_code, reason = "each of those who include it uses a part")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use sgwall::model::{
    Address, Attachment, Entity, EntityIx, EntityKind, GroupIx, IcmpMatch, Interface, InterfaceIx,
    MAX_MTU, Model, Peer, Place, PortRange, RuleId, SecurityGroup, SecurityGroupRule, Subnet,
    SubnetIx, Tracking, Traffic, Via, Vpc, protocol,
};
use sgwall::packet::{self, TcpFlags, Transport};

/// In the VPC, under the group `members`, with a public IPv4 address.
pub fn a() -> InterfaceIx {
    InterfaceIx::new(0)
}

/// Likewise; its other group, `rules`, has as many rules as were asked for.
pub fn b() -> InterfaceIx {
    InterfaceIx::new(1)
}

/// In the VPC, under `members`, with the source check off: it sends from any
/// address, so that lookups don't find everything in the cache.
pub fn router() -> InterfaceIx {
    InterfaceIx::new(2)
}

/// A host on the internet.
pub fn client() -> InterfaceIx {
    InterfaceIx::new(3)
}

/// Address of [`a`].
pub const A_V4: &str = "10.0.0.10";
/// Public address of [`a`].
pub const A_PUBLIC: &str = "203.0.113.10";
/// Address of [`a`].
pub const A_V6: &str = "2001:db8::10";
/// Address of [`b`].
pub const B_V4: &str = "10.0.0.11";
/// Address of [`b`].
pub const B_V6: &str = "2001:db8::11";
/// Public address of [`b`].
pub const B_PUBLIC: &str = "203.0.113.11";
/// Address of [`client`].
pub const CLIENT_V4: &str = "198.51.100.7";

/// First address of the /7 that the rules of `rules` speak of, and that
/// [`stranger`] gives addresses from.
const STRANGERS: u32 = 0x6400_0000;

/// The VPC, with `rules` rules for what reaches [`b`] besides a few that let
/// the others' TCP, UDP and ICMP in.
pub fn model(rules: usize) -> Model {
    let place = Place::implied("world".into());
    let interface = |entity: usize, attachment: Attachment, addresses: &[(&str, Option<&str>)]| {
        let address = |(private, public): &(&str, Option<&str>)| Address {
            private: ip(private),
            public: public.map(|text| text.parse().expect("an address")),
        };
        Interface {
            id: format!("eni-{entity}"),
            entity: EntityIx::new(entity),
            device: 0,
            attachment,
            addresses: addresses.iter().map(address).collect(),
            mtu: MAX_MTU,
            source_dest_check: true,
            tracking: Tracking::default(),
            place: place.clone(),
        }
    };
    let inside = |groups: &[usize]| Attachment::Subnet {
        subnet: SubnetIx::new(0),
        groups: groups.iter().map(|group| GroupIx::new(*group)).collect(),
    };
    let entity = |name: &str, kind| Entity {
        name: name.to_owned(),
        kind,
        engine: None,
        run: None,
        max_flows: None,
        place: place.clone(),
    };
    let cidrs: Vec<IpNet> = ["10.0.0.0/16", "2001:db8::/56"]
        .map(|text| text.parse().expect("a network"))
        .to_vec();
    Model {
        vpc: Vpc {
            id: "vpc-1".to_owned(),
            cidrs: cidrs.clone(),
            icmp_errors: Default::default(),
        },
        subnets: vec![Subnet {
            id: "subnet-1".to_owned(),
            name: "one".to_owned(),
            cidrs,
            network_acl: Default::default(),
            route_table: Default::default(),
            place: place.clone(),
        }],
        prefix_lists: Vec::new(),
        security_groups: vec![
            Arc::new(group("members", members())),
            Arc::new(group("rules", (0..rules).map(nth_rule).collect())),
        ],
        entities: vec![
            entity("a", EntityKind::Ec2),
            entity("b", EntityKind::Ec2),
            entity("router", EntityKind::Ec2),
            entity("client", EntityKind::External(Via::Igw)),
        ],
        interfaces: vec![
            interface(0, inside(&[0]), &[(A_V4, Some(A_PUBLIC)), (A_V6, None)]),
            interface(1, inside(&[0, 1]), &[(B_V4, Some(B_PUBLIC)), (B_V6, None)]),
            Interface {
                source_dest_check: false,
                ..interface(2, inside(&[0]), &[("10.0.0.12", None)])
            },
            interface(3, Attachment::External(Via::Igw), &[(CLIENT_V4, None)]),
        ],
        ..Model::default()
    }
    .with_implied_tables()
}

/// The same VPC after somebody moved the port of one rule in the middle of
/// the group `rules`.
pub fn with_one_rule_changed(model: &Model) -> Model {
    let mut model = model.clone();
    let rules = &mut model.group_mut(GroupIx::new(1)).ingress;
    let middle = rules.len() / 2;
    rules[middle].traffic = Traffic::Tcp(PortRange {
        from: 9999,
        to: 9999,
    });
    model
}

/// The same VPC after somebody changed a rule of `members`, which
/// every interface in it carries, besides `rules` or alone.
pub fn with_a_small_group_changed(model: &Model) -> Model {
    let mut model = model.clone();
    model.group_mut(GroupIx::new(0)).egress[0].traffic = Traffic::Tcp(PortRange { from: 1, to: 2 });
    model
}

/// An address that the `number`-th rule of `rules` lets in.
pub fn stranger(number: usize) -> IpAddr {
    block(number).network().into()
}

/// The TCP port that the `number`-th rule of `rules` lets in.
pub fn port_for_stranger(number: usize) -> u16 {
    ports(number).from
}

/// A TCP segment, acknowledging and with 1000 bytes unless it opens.
pub fn tcp(from: (&str, u16), to: (&str, u16), syn: bool) -> Vec<u8> {
    let flags = TcpFlags {
        syn,
        ack: !syn,
        ..TcpFlags::default()
    };
    let payload: &[u8] = if syn { &[] } else { &[7; 1000] };
    tcp_with(from, to, flags, payload)
}

/// A TCP segment without payload.
pub fn segment(from: (&str, u16), to: (&str, u16), flags: TcpFlags) -> Vec<u8> {
    tcp_with(from, to, flags, &[])
}

fn tcp_with(from: (&str, u16), to: (&str, u16), flags: TcpFlags, payload: &[u8]) -> Vec<u8> {
    let transport = Transport::Tcp {
        source: from.1,
        destination: to.1,
        flags,
        end: 0,
        acknowledgement: 0,
    };
    build(ip(from.0), ip(to.0), protocol::TCP, transport, payload)
}

/// A UDP datagram of 1000 bytes.
pub fn udp(from: (&str, u16), to: (&str, u16)) -> Vec<u8> {
    let transport = Transport::Udp {
        source: from.1,
        destination: to.1,
    };
    build(ip(from.0), ip(to.0), protocol::UDP, transport, &[7; 1000])
}

/// An ICMP or ICMPv6 echo request, or the answer to one.
pub fn echo(from: &str, to: &str, request: bool) -> Vec<u8> {
    let (from, to) = (ip(from), ip(to));
    let kind = match (from, request) {
        (IpAddr::V4(_), true) => 8,
        (IpAddr::V4(_), false) => 0,
        (IpAddr::V6(_), true) => 128,
        (IpAddr::V6(_), false) => 129,
    };
    let transport = Transport::IcmpQuery {
        kind,
        code: 0,
        id: 77,
        request,
    };
    build(from, to, packet::icmp_protocol(from), transport, &[7; 56])
}

/// A packet with right lengths and checksums.
pub fn build(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    transport: Transport,
    payload: &[u8],
) -> Vec<u8> {
    packet::build(from, to, protocol, transport, payload).expect("addresses of one family")
}

/// Reads an address.
pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The group's rules in, and a rule that lets everything out.
fn group(name: &str, ingress: Vec<(Traffic, Peer)>) -> SecurityGroup {
    let place = Place::implied("world".into());
    let rules = |direction: &str, rules: Vec<(Traffic, Peer)>| {
        let rule = |(number, (traffic, peer)): (usize, (Traffic, Peer))| SecurityGroupRule {
            id: RuleId::derive(&[name, direction, &number.to_string()]),
            traffic,
            peer,
            peer_text: format!("{peer:?}"),
            description: String::new(),
            place: place.clone(),
        };
        rules.into_iter().enumerate().map(rule).collect()
    };
    SecurityGroup {
        id: format!("sg-{name}"),
        name: name.to_owned(),
        description: String::new(),
        ingress: rules("ingress", ingress),
        egress: rules(
            "egress",
            everybody_in_halves()
                .into_iter()
                .map(|peer| (Traffic::All, peer))
                .collect(),
        ),
        place: place.clone(),
    }
}

/// All addresses, but not as the one block that would leave flows untracked.
fn everybody_in_halves() -> Vec<Peer> {
    let halves = ["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"];
    halves
        .map(|half| match half.parse().expect("a network") {
            IpNet::V4(net) => Peer::Ipv4(net),
            IpNet::V6(net) => Peer::Ipv6(net),
        })
        .to_vec()
}

/// The same VPC with everything let out to all addresses as one block: what
/// reaches its members from anybody isn't tracked there.
pub fn untracked(model: &Model) -> Model {
    let mut model = model.clone();
    for group in model.groups_mut() {
        for rule in &mut group.egress {
            rule.peer = match rule.peer {
                Peer::Ipv6(_) => Peer::Ipv6(ipnet::Ipv6Net::default()),
                _ => Peer::Ipv4(Ipv4Net::default()),
            };
        }
    }
    model
}

/// The same VPC, whose members accept TCP on every port from each other.
pub fn open(model: &Model) -> Model {
    let mut model = model.clone();
    let group = model.group_mut(GroupIx::new(0));
    let rule = &mut group.ingress[0];
    rule.traffic = Traffic::Tcp(PortRange::ALL);
    rule.peer = Peer::Group(GroupIx::new(0));
    model
}

/// What members accept: HTTPS and UDP 53 from everybody, echo.
fn members() -> Vec<(Traffic, Peer)> {
    let ports = |port| PortRange {
        from: port,
        to: port,
    };
    let everybody = [
        Peer::Ipv4(Ipv4Net::default()),
        Peer::Ipv6(ipnet::Ipv6Net::default()),
    ];
    everybody
        .into_iter()
        .flat_map(|peer| {
            [
                (Traffic::Tcp(ports(443)), peer),
                (Traffic::Udp(ports(53)), peer),
                (Traffic::Icmp(IcmpMatch::Type(8)), peer),
                (Traffic::Icmpv6(IcmpMatch::Type(128)), peer),
            ]
        })
        .collect()
}

/// Blocks of 8 to 256 addresses, each with a rule for TCP on some ports.
fn nth_rule(number: usize) -> (Traffic, Peer) {
    (Traffic::Tcp(ports(number)), Peer::Ipv4(block(number)))
}

/// Spread by a multiplier without common divisor, so that neighbours in the
/// list aren't neighbours in the trie.
fn block(number: usize) -> Ipv4Net {
    let number = u32::try_from(number).expect("few rules");
    let place = number.wrapping_mul(40_503) & 0xffff | number & 0x1_0000;
    let length = 24 + u8::try_from(number % 6).expect("below 6");
    Ipv4Net::new_assert(Ipv4Addr::from_bits(STRANGERS + (place << 8)), length)
}

fn ports(number: usize) -> PortRange {
    let from = u16::try_from(1024 + number % 30_000).expect("a port");
    PortRange {
        from,
        to: from + 100,
    }
}
