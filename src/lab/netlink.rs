//! A small blocking netlink helper: devices, addresses, routes and rules in
//! the network namespace of the calling thread, without any external program.

use std::io::{self, ErrorKind};
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

/// Requests that go to the kernel together: one send, one answer each.
#[derive(Debug, Default)]
pub(super) struct Batch {
    requests: Vec<(String, NetlinkMessage<RouteNetlinkMessage>)>,
}

impl Batch {
    /// Brings a device up.
    pub fn up(&mut self, index: u32) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.push(
            "bring the device up".into(),
            RouteNetlinkMessage::SetLink(message),
            0,
        );
    }

    /// Sets what must be set before a device comes up. Without a generated
    /// link-local address the kernel has no address to solicit routers from.
    pub fn configure(&mut self, index: u32, mtu: u32, queue: u32, ipv6: bool) {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::TxQueueLen(queue)];
        if ipv6 {
            let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            message
                .attributes
                .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                    vec![mode],
                )]));
        }
        self.push(
            format!("set MTU {mtu}"),
            RouteNetlinkMessage::SetLink(message),
            0,
        );
    }

    /// Gives a device an address; `metric` ranks the route to its subnet.
    pub fn address(&mut self, index: u32, address: IpAddr, prefix: u8, metric: u32) {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
            // Nobody else can have it, and the question would be noise.
            AddressAttribute::Flags(AddressFlags::Nodad),
        ];
        if metric != 0 {
            message
                .attributes
                .push(AddressAttribute::RoutePriority(metric));
        }
        self.push(
            format!("add address {address}/{prefix}"),
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
    }

    /// Routes everything of a family through a device.
    pub fn default_route(&mut self, index: u32, like: IpAddr, table: u32, metric: u32) {
        let mut message = RouteMessage::default();
        message.header.address_family = family(like);
        message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = match like {
            IpAddr::V4(_) => RouteScope::Link,
            IpAddr::V6(_) => RouteScope::Universe,
        };
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Oif(index), RouteAttribute::Table(table)];
        if metric != 0 {
            message.attributes.push(RouteAttribute::Priority(metric));
        }
        self.push(
            "add the default route".into(),
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
    }

    /// Sends what comes from `source` by the routes of `table`.
    pub fn source_rule(&mut self, source: IpAddr, table: u32, priority: u32) {
        let mut message = RuleMessage::default();
        message.header.family = family(source);
        message.header.src_len = if source.is_ipv4() { 32 } else { 128 };
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
        message.attributes = vec![
            RuleAttribute::Source(source),
            RuleAttribute::Table(table),
            RuleAttribute::Priority(priority),
        ];
        self.push(
            format!("add a routing rule for {source}"),
            RouteNetlinkMessage::NewRule(message),
            NLM_F_CREATE | NLM_F_EXCL,
        );
    }

    /// Sends the batch and waits for every answer. The first refusal counts;
    /// it comes with what was asked.
    pub fn send(self) -> Result<(), (String, io::Error)> {
        self.send_unless(&[])
    }

    /// Sends the requests like `send`, but ignores errors for objects that exist already.
    pub fn send_anew(self) -> Result<(), (String, io::Error)> {
        self.send_unless(&[ErrorKind::AlreadyExists])
    }

    fn send_unless(self, fine: &[ErrorKind]) -> Result<(), (String, io::Error)> {
        let talk = |error| ("talk to the kernel over netlink".to_owned(), error);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(talk)?;
        socket.bind_auto().map_err(talk)?;

        let mut operations = Vec::with_capacity(self.requests.len());
        let mut buffer = Vec::new();
        for (sequence, (operation, mut message)) in (1_u32..).zip(self.requests) {
            operations.push(operation);
            message.header.sequence_number = sequence;
            message.finalize();
            let start = buffer.len();
            buffer.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut buffer[start..]);
        }
        socket.send(&buffer, 0).map_err(talk)?;

        let mut refusal: Option<(String, io::Error)> = None;
        let mut waiting = operations.len();
        while waiting > 0 {
            let (answers, _) = socket.recv_from_full().map_err(talk)?;
            let mut rest = answers.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| talk(io::Error::other(error)))?;
                let length = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(length.max(4)..).unwrap_or_default();
                let NetlinkPayload::Error(error) = answer.payload else {
                    continue;
                };
                waiting = waiting.saturating_sub(1);
                let refused = error.code.is_some() && !fine.contains(&error.to_io().kind());
                if refused && refusal.is_none() {
                    let asked = (answer.header.sequence_number as usize).wrapping_sub(1);
                    let operation = operations.get(asked).cloned().unwrap_or_default();
                    refusal = Some((operation, error.to_io()));
                }
            }
        }
        refusal.map_or(Ok(()), Err)
    }

    fn push(&mut self, operation: String, message: RouteNetlinkMessage, flags: u16) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let payload = NetlinkPayload::InnerMessage(message);
        self.requests
            .push((operation, NetlinkMessage::new(header, payload)));
    }
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
