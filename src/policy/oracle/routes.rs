//! Where packets go: route tables, gateways and their translation
//! (aws-semantics §7).

use std::net::IpAddr;

use ipnet::IpNet;

use super::packet::{Packet, Payload, Quoted};
use crate::model::{
    Attachment, GATEWAY_MTU, Interface, InterfaceIx, Model, RouteTarget, SubnetIx, Via,
};
use crate::policy::DropReason;

/// Destinations that no route leads to, however wide: link-local ones of both
/// families, and the VPC's services (aws-semantics §4: wider routes exist, but
/// such packets are not forwarded).
const NEVER_FORWARDED: [&str; 3] = ["169.254.0.0/16", "fe80::/10", "fd00:ec2::/32"];

/// The way to a receiver, and what becomes of a packet's addresses on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path {
    /// The receiver.
    pub(super) to: InterfaceIx,
    /// The source as the receiver sees it.
    pub(super) source: IpAddr,
    /// The destination as the receiver sees it.
    pub(super) destination: IpAddr,
    /// The longest packet that arrives whole.
    pub(super) mtu: u16,
}

impl Path {
    fn new(
        model: &Model,
        to: InterfaceIx,
        (source, destination): (IpAddr, IpAddr),
        through_gateway: bool,
    ) -> Self {
        let mtu = model.interfaces[to.ix()].mtu;
        Self {
            to,
            source,
            destination,
            mtu: if through_gateway {
                mtu.min(GATEWAY_MTU)
            } else {
                mtu
            },
        }
    }

    /// The packet as the receiver sees it.
    pub(super) fn translate(&self, packet: &Packet) -> Packet {
        let mut arrives = *packet;
        arrives.source = self.source;
        arrives.destination = self.destination;
        // An error that crosses the internet gateway quotes a packet that
        // crossed it the other way: the gateway translates there what it
        // translates here, at the opposite end.
        if let Payload::Icmp {
            quoted: Some(quoted),
            ..
        } = &mut arrives.payload
        {
            let Quoted {
                source,
                destination,
                ..
            } = quoted;
            if *destination == packet.source {
                *destination = self.source;
            }
            if *source == packet.destination {
                *source = self.destination;
            }
        }
        arrives
    }

    /// In fragments of which size the packet arrives, if it is too long to
    /// arrive whole.
    ///
    /// # Errors
    /// If it is too long and may not be split.
    pub(super) fn split(&self, packet: &Packet) -> Result<Option<u16>, DropReason> {
        if packet.length <= usize::from(self.mtu) {
            Ok(None)
        } else if packet.may_be_split() {
            Ok(Some(self.mtu))
        } else {
            Err(DropReason::TooBig)
        }
    }
}

/// The way to an address of the sender's own subnet, which leads through no
/// router: no network ACL, no route. `None` for any other address.
pub(super) fn inside_subnet(model: &Model, packet: &Packet) -> Option<Result<Path, DropReason>> {
    let Attachment::Subnet { subnet, .. } = model.interfaces[packet.from.ix()].attachment else {
        return None;
    };
    model.subnets[subnet.ix()].cidr_of(packet.destination)?;
    Some(local(model, packet))
}

/// The route of a packet that leaves its subnet, or comes from outside.
pub(super) fn find(model: &Model, packet: &Packet) -> Result<Path, DropReason> {
    let sender = &model.interfaces[packet.from.ix()];
    match sender.attachment {
        Attachment::Subnet { subnet, .. } => from_vpc(model, subnet, packet),
        Attachment::External(Via::Igw) => from_internet(model, packet),
        Attachment::External(Via::Vgw) => from_vpn(model, packet),
        Attachment::External(Via::Wire) => {
            let to =
                owner_in_vpc(model, packet.destination).ok_or(DropReason::UnknownDestination)?;
            Ok(Path::new(model, to, addresses(packet), false))
        }
    }
}

/// Whether the interface stands for the network around.
pub(super) fn is_wire(interface: &Interface) -> bool {
    interface.attachment == Attachment::External(Via::Wire)
}

/// Whether one of the interfaces does.
pub(super) fn has_wire(model: &Model) -> bool {
    model.interfaces.iter().any(is_wire)
}

/// What a line of a route table says, the local routes included.
#[derive(Debug, Clone, Copy)]
enum Target {
    Local,
    Declared(RouteTarget),
}

fn from_vpc(model: &Model, subnet: SubnetIx, packet: &Packet) -> Result<Path, DropReason> {
    let never = NEVER_FORWARDED
        .iter()
        .filter_map(|text| text.parse::<IpNet>().ok())
        .any(|block| block.contains(&packet.destination));
    let target = lookup(model, subnet, packet.destination).ok_or(DropReason::NoRoute)?;
    // A neighbour is reached without anybody who forwards.
    if let Target::Declared(RouteTarget::Wire(to)) = target {
        return Ok(Path::new(model, to, addresses(packet), false));
    }
    if never {
        return Err(DropReason::NoRoute);
    }
    match target {
        Target::Local => local(model, packet),
        Target::Declared(RouteTarget::Blackhole) => Err(DropReason::Blackhole),
        Target::Declared(RouteTarget::Vgw) => {
            let to = owner_behind(model, Via::Vgw, packet.destination)
                .ok_or(DropReason::UnknownDestination)?;
            Ok(Path::new(model, to, addresses(packet), true))
        }
        Target::Declared(RouteTarget::Igw) => through_igw(model, packet),
        // An interface gets whatever the route covers; it is to forward it.
        // What it sends itself doesn't come back to it.
        Target::Declared(RouteTarget::Interface(to)) if to == packet.from => {
            Err(DropReason::NoRoute)
        }
        Target::Declared(RouteTarget::Interface(to) | RouteTarget::Wire(to)) => {
            Ok(Path::new(model, to, addresses(packet), false))
        }
    }
}

/// The longest prefix that covers the destination wins (§7), among the routes
/// of the subnet's table and a local route for each block of the VPC. A route
/// with the very block of a local one takes its place.
fn lookup(model: &Model, subnet: SubnetIx, destination: IpAddr) -> Option<Target> {
    let table = &model.route_tables[model.subnets[subnet.ix()].route_table.ix()];
    let mut lines: Vec<(IpNet, Target)> = Vec::new();
    for block in &model.vpc.cidrs {
        if !table.routes.iter().any(|route| route.destination == *block) {
            lines.push((*block, Target::Local));
        }
    }
    for route in &table.routes {
        lines.push((route.destination, Target::Declared(route.target)));
    }
    lines
        .into_iter()
        .filter(|(block, _)| block.contains(&destination))
        .max_by_key(|(block, _)| block.prefix_len())
        .map(|(_, target)| target)
}

fn local(model: &Model, packet: &Packet) -> Result<Path, DropReason> {
    let to = owner_in_vpc(model, packet.destination).ok_or(DropReason::UnknownDestination)?;
    Ok(Path::new(model, to, addresses(packet), false))
}

/// The internet gateway translates IPv4 one to one, and IPv6 not at all.
fn through_igw(model: &Model, packet: &Packet) -> Result<Path, DropReason> {
    let sender = &model.interfaces[packet.from.ix()];
    let source = if packet.source.is_ipv4() {
        public_of(sender, packet.source).ok_or(DropReason::NoPublicAddress)?
    } else {
        packet.source
    };
    let destination = packet.destination;
    if let Some(to) = owner_behind(model, Via::Igw, destination) {
        return Ok(Path::new(model, to, (source, destination), true));
    }
    // Out and straight back in: to the public address of an interface of the
    // VPC. The receiver sees the sender's public address (§2, §13 hairpin).
    let (to, private) =
        owner_of_public(model, destination).ok_or(DropReason::UnknownDestination)?;
    Ok(Path::new(model, to, (source, private), true))
}

/// From the internet: public IPv4 addresses, and IPv6 addresses of the VPC.
fn from_internet(model: &Model, packet: &Packet) -> Result<Path, DropReason> {
    let (source, destination) = addresses(packet);
    if let Some((to, private)) = owner_of_public(model, destination) {
        return Ok(Path::new(model, to, (source, private), true));
    }
    if model.vpc.contains(destination) {
        // IPv6 addresses are reachable as they are; private IPv4 addresses
        // are not routed on the internet.
        if destination.is_ipv4() {
            return Err(DropReason::NoRoute);
        }
        let to = owner_in_vpc(model, destination).ok_or(DropReason::UnknownDestination)?;
        return Ok(Path::new(model, to, (source, destination), true));
    }
    // Traffic between two external hosts is not the VPC's to carry.
    let other_external = owner_behind(model, Via::Igw, destination)
        .or_else(|| owner_behind(model, Via::Vgw, destination));
    match other_external {
        Some(_) => Err(DropReason::NoRoute),
        None => Err(DropReason::UnknownDestination),
    }
}

/// From behind the virtual private gateway: the VPC's blocks and nothing else.
fn from_vpn(model: &Model, packet: &Packet) -> Result<Path, DropReason> {
    if !model.vpc.contains(packet.destination) {
        return Err(DropReason::NoRoute);
    }
    let to = owner_in_vpc(model, packet.destination).ok_or(DropReason::UnknownDestination)?;
    Ok(Path::new(model, to, addresses(packet), true))
}

fn addresses(packet: &Packet) -> (IpAddr, IpAddr) {
    (packet.source, packet.destination)
}

/// The interface inside the VPC with this private address.
fn owner_in_vpc(model: &Model, address: IpAddr) -> Option<InterfaceIx> {
    model
        .interfaces()
        .filter(|(_, interface)| !interface.is_external())
        .find(|(_, interface)| interface.addresses.iter().any(|a| a.private == address))
        .map(|(ix, _)| ix)
}

/// The external interface behind gateway `via` with this address.
fn owner_behind(model: &Model, via: Via, address: IpAddr) -> Option<InterfaceIx> {
    model
        .interfaces()
        .filter(|(_, interface)| interface.attachment == Attachment::External(via))
        .find(|(_, interface)| interface.addresses.iter().any(|a| a.private == address))
        .map(|(ix, _)| ix)
}

/// The public address that stands for a private one of `sender`.
fn public_of(sender: &Interface, private: IpAddr) -> Option<IpAddr> {
    sender
        .addresses
        .iter()
        .find(|address| address.private == private)?
        .public
        .map(IpAddr::V4)
}

/// The interface inside the VPC with this public address, and the private
/// address that it stands for.
fn owner_of_public(model: &Model, address: IpAddr) -> Option<(InterfaceIx, IpAddr)> {
    let IpAddr::V4(address) = address else {
        return None;
    };
    for (ix, interface) in model.interfaces() {
        if interface.is_external() {
            continue;
        }
        for its in &interface.addresses {
            if its.public == Some(address) {
                return Some((ix, its.private));
            }
        }
    }
    None
}
