//! Devices, addresses and routes for the tests, in the namespace of the calling thread.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

/// A route to be added.
#[derive(Debug, Clone, Default)]
pub struct Way {
    pub to: Option<(IpAddr, u8)>,
    pub via: Vec<(Option<IpAddr>, u32)>,
    pub table: Option<u32>,
    pub metric: Option<u32>,
    pub onlink: bool,
}

pub fn make_bridge(name: &str) {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    ask(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    );
}

/// Makes a pair: `name` here, a port of `bridge`, and `other` in another namespace.
pub fn make_pair(name: &str, bridge: u32, other: &str, space: BorrowedFd<'_>) {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(other.into()),
        LinkAttribute::NetNsFd(space.as_raw_fd()),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    ask(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    );
    set_up(index(name), true);
}

/// One end of a VXLAN tunnel (RFC 7348).
#[derive(Debug)]
pub struct Vxlan<'a> {
    pub name: &'a str,
    pub id: u32,
    /// The device that carries the tunnel's packets.
    pub device: &'a str,
    pub local: IpAddr,
    pub remote: IpAddr,
    pub port: u16,
    /// True if those packets have UDP checksums.
    pub checksums: bool,
}

/// Creates the end of a tunnel, with the MTU that its device allows.
pub fn make_vxlan(end: &Vxlan<'_>) {
    let mut data = vec![
        InfoVxlan::Id(end.id),
        InfoVxlan::Link(index(end.device)),
        InfoVxlan::Port(end.port),
        InfoVxlan::UDPCsum(end.checksums),
        InfoVxlan::UDPZeroCsumTX(!end.checksums),
        InfoVxlan::UDPZeroCsumRX(!end.checksums),
    ];
    data.push(match end.local {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    });
    data.push(match end.remote {
        IpAddr::V4(address) => InfoVxlan::Group(address),
        IpAddr::V6(address) => InfoVxlan::Group6(address),
    });
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(end.name.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(data)),
        ]),
    ];
    ask(
        RouteNetlinkMessage::NewLink(message),
        NLM_F_CREATE | NLM_F_EXCL,
    );
}

pub fn delete(index: u32) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    ask(RouteNetlinkMessage::DelLink(message), 0);
}

pub fn set_up(index: u32, up: bool) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = if up {
        LinkFlags::Up
    } else {
        LinkFlags::empty()
    };
    message.header.change_mask = LinkFlags::Up;
    ask(RouteNetlinkMessage::SetLink(message), 0);
}

pub fn set_mtu(index: u32, mtu: u32) {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    ask(RouteNetlinkMessage::SetLink(message), 0);
}

/// Adds an address; IPv6 ones are not asked for whether somebody has them.
pub fn add_address(index: u32, address: IpAddr, prefix: u8, label: Option<&str>) {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    if address.is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
        .attributes
        .extend(label.map(|label| AddressAttribute::Label(label.into())));
    ask(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    );
}

pub fn add_route(way: &Way) {
    let like = way
        .to
        .map(|(to, _)| to)
        .or_else(|| way.via.iter().find_map(|(via, _)| *via))
        .unwrap();
    let mut message = RouteMessage::default();
    message.header.address_family = family(like);
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    let gateway = way.via.iter().any(|(via, _)| via.is_some());
    message.header.scope = if gateway || like.is_ipv6() {
        RouteScope::Universe
    } else {
        RouteScope::Link
    };
    let attributes = &mut message.attributes;
    if let Some((to, prefix)) = way.to {
        message.header.destination_prefix_length = prefix;
        attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
    }
    attributes.push(RouteAttribute::Table(way.table.unwrap_or(254)));
    attributes.extend(way.metric.map(RouteAttribute::Priority));
    if let [(via, index)] = way.via[..] {
        if way.onlink {
            message.header.flags = RouteFlags::Onlink;
        }
        attributes.push(RouteAttribute::Oif(index));
        attributes.extend(via.map(|via| RouteAttribute::Gateway(RouteAddress::from(via))));
    } else {
        let hop = |&(via, index): &(Option<IpAddr>, u32)| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.flags = RouteNextHopFlags::empty();
            let via = via.map(|via| RouteAttribute::Gateway(RouteAddress::from(via)));
            hop.attributes = via.into_iter().collect();
            hop
        };
        attributes.push(RouteAttribute::MultiPath(way.via.iter().map(hop).collect()));
    }
    ask(
        RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_APPEND,
    );
}

/// Removes the route to a subnet that the kernel made with an address.
pub fn delete_connected(to: (IpAddr, u8), index: u32) {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.0);
    message.header.destination_prefix_length = to.1;
    message.header.scope = RouteScope::NoWhere;
    message.attributes = vec![
        RouteAttribute::Destination(RouteAddress::from(to.0)),
        RouteAttribute::Table(254),
        RouteAttribute::Oif(index),
    ];
    ask(RouteNetlinkMessage::DelRoute(message), 0);
}

pub fn add_neighbour(index: u32, address: IpAddr, mac: [u8; 6]) {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    ask(
        RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_EXCL,
    );
}

pub fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Waits until the kernel is done with the namespace's IPv6 addresses: it makes their local
/// routes a moment after it has taken them.
fn settle() {
    let read = |file: &str| {
        std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
    };
    let is_done = || {
        let routes = read("ipv6_route");
        read("if_inet6").lines().all(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [address, _, _, _, flags, device] = words[..] else {
                return true;
            };
            let is_tentative = u32::from_str_radix(flags, 16).is_ok_and(|bits| bits & 0x40 != 0);
            let own = format!("{address} 80 ");
            let has_route = |route: &str| route.starts_with(&own) && route.ends_with(device);
            device == "lo" || (!is_tentative && routes.lines().any(has_route))
        })
    };
    for _ in 0..200 {
        if is_done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// All that a workload could see of an interface called `name`: in the kernel's order, and
/// without what differs from device to device.
pub fn look(names: &[&str]) -> Vec<String> {
    settle();
    let mut seen = Vec::new();
    let own = |wanted: u32| names.iter().position(|&name| index(name) == wanted);
    let named = |wanted: u32| own(wanted).map_or_else(|| format!("#{wanted}"), |i| names[i].into());
    for message in dump(RouteNetlinkMessage::GetLink(LinkMessage::default())) {
        if let RouteNetlinkMessage::NewLink(link) = message
            && own(link.header.index).is_some()
        {
            let kept = link.attributes.iter().filter(|this| {
                matches!(
                    this,
                    LinkAttribute::IfName(_) | LinkAttribute::Address(_) | LinkAttribute::Mtu(_)
                )
            });
            let up = link.header.flags.contains(LinkFlags::Up);
            seen.push(format!("link up={up} {:?}", kept.collect::<Vec<_>>()));
        }
    }
    // Links come in the order of their indices, which a TAP device has a new one of.
    seen.sort();
    let mut addresses = Vec::new();
    for message in dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())) {
        if let RouteNetlinkMessage::NewAddress(mut this) = message
            && let Some(at) = own(this.header.index)
        {
            this.header.index = 0;
            this.header.flags = AddressHeaderFlags::empty();
            this.attributes
                .retain(|attribute| !matches!(attribute, AddressAttribute::CacheInfo(_)));
            for attribute in &mut this.attributes {
                if let AddressAttribute::Flags(flags) = attribute {
                    flags.remove(AddressFlags::Nodad);
                }
            }
            addresses.push((at, format!("{} {this:?}", names[at])));
        }
    }
    addresses.sort_by_key(|(at, _)| *at);
    seen.extend(addresses.into_iter().map(|(_, text)| text));
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let mut routes = Vec::new();
        for message in dump(RouteNetlinkMessage::GetRoute(request)) {
            if let RouteNetlinkMessage::NewRoute(mut this) = message {
                let mut through = String::new();
                this.attributes.retain(|attribute| match attribute {
                    RouteAttribute::Oif(index) => {
                        through = named(*index);
                        false
                    }
                    RouteAttribute::MultiPath(hops) => {
                        for hop in hops {
                            through +=
                                &format!("{} {:?}; ", named(hop.interface_index), hop.attributes);
                        }
                        false
                    }
                    RouteAttribute::CacheInfo(_) => false,
                    _ => true,
                });
                if !through.is_empty() && !through.starts_with('#') {
                    this.header.flags.remove(RouteFlags::Linkdown);
                    routes.push(format!("{through}: {this:?}"));
                }
            }
        }
        routes.sort();
        seen.append(&mut routes);
    }
    for message in dump(RouteNetlinkMessage::GetNeighbour(
        NeighbourMessage::default(),
    )) {
        if let RouteNetlinkMessage::NewNeighbour(this) = message
            && let Some(at) = own(this.header.ifindex)
            && this.header.state == NeighbourState::Permanent
        {
            let kept = this.attributes.iter().filter(|this| {
                matches!(
                    this,
                    NeighbourAttribute::Destination(_) | NeighbourAttribute::LinkLayerAddress(_)
                )
            });
            seen.push(format!(
                "{} neighbour {:?}",
                names[at],
                kept.collect::<Vec<_>>()
            ));
        }
    }
    seen
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn ask(message: RouteNetlinkMessage, flags: u16) {
    let what = format!("{message:?}");
    for answer in talk(message, NLM_F_ACK | flags) {
        if let NetlinkPayload::Error(error) = answer {
            assert!(error.code.is_none(), "{}: {what}", error.to_io());
            return;
        }
    }
}

fn dump(message: RouteNetlinkMessage) -> Vec<RouteNetlinkMessage> {
    talk(message, NLM_F_DUMP)
        .into_iter()
        .filter_map(|answer| match answer {
            NetlinkPayload::InnerMessage(message) => Some(message),
            _ => None,
        })
        .collect()
}

fn talk(message: RouteNetlinkMessage, flags: u16) -> Vec<NetlinkPayload<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut whole = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    whole.finalize();
    let mut bytes = vec![0; whole.buffer_len()];
    whole.serialize(&mut bytes);
    socket.send(&bytes, 0).unwrap();
    let mut answers = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full().unwrap();
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).unwrap();
            rest = &rest[(answer.header.length as usize)
                .next_multiple_of(4)
                .min(rest.len())..];
            let last = matches!(
                answer.payload,
                NetlinkPayload::Done(_) | NetlinkPayload::Error(_)
            );
            answers.push(answer.payload);
            if last {
                return answers;
            }
        }
    }
}
