//! Traffic that AWS never filters (aws-semantics §4).

use std::net::IpAddr;

use ipnet::IpNet;

use super::packet::{Packet, Payload};
use crate::model::Model;

/// Services at fixed link-local addresses: the resolver, instance metadata,
/// the credentials of ECS tasks, licence activation (two), time; over IPv6 the
/// resolver, instance metadata and time.
const FIXED: [&str; 9] = [
    "169.254.169.253",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.169.250",
    "169.254.169.251",
    "169.254.169.123",
    "fd00:ec2::253",
    "fd00:ec2::254",
    "fd00:ec2::123",
];

/// Whether a service of the VPC lives at `address`.
pub(super) fn lives_at(model: &Model, address: IpAddr) -> bool {
    if FIXED.iter().any(|fixed| fixed.parse() == Ok(address)) {
        return true;
    }
    // The resolver: the base of each IPv4 block of the VPC plus two.
    let resolver = model
        .vpc
        .cidrs
        .iter()
        .any(|block| block.network().is_ipv4() && nth(*block, 2) == Some(address));
    // The router: the base of each block of each subnet plus one.
    let router = model
        .subnets
        .iter()
        .flat_map(|subnet| &subnet.cidrs)
        .any(|block| nth(*block, 1) == Some(address));
    resolver || router
}

/// Whether the packet is a DHCP client's: from port 68 to 67 over IPv4, from
/// 546 to 547 over IPv6. (AWS's text doesn't name the ports; they are IANA's.)
pub(super) fn is_dhcp(packet: &Packet) -> bool {
    let ports = if packet.source.is_ipv4() {
        (68, 67)
    } else {
        (546, 547)
    };
    matches!(
        packet.payload,
        Payload::Udp { source_port, destination_port } if (source_port, destination_port) == ports
    )
}

/// The address `n` after the base of `block`, if it is still in it.
fn nth(block: IpNet, n: u8) -> Option<IpAddr> {
    let address = match block.network() {
        IpAddr::V4(base) => IpAddr::V4((base.to_bits().checked_add(n.into())?).into()),
        IpAddr::V6(base) => IpAddr::V6((base.to_bits().checked_add(n.into())?).into()),
    };
    block.contains(&address).then_some(address)
}
