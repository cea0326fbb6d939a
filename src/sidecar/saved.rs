//! What it takes to give an interface back, as the messages of the kernel's that
//! describe it.

use std::io;

use ipnet::IpNet;
use nix::libc;

use super::kernel::{self, Kernel, Link, settings};
use super::netlink::{Attribute, Message, from_bytes, to_bytes};
use super::{SidecarError, rt};

/// `struct rtnexthop`: length, flags, hops, interface index.
const NEXT_HOP: usize = 8;
/// The flag of a route or next hop that a user may set; others tell of its state.
const ONLINK: u8 = 4;

/// A taken interface as it was.
#[derive(Debug, Clone)]
pub(super) struct Saved {
    /// Name, MAC, MTU, queue and settings.
    pub link: Link,
    /// In the kernel's order.
    pub addresses: Vec<Message>,
    /// All routes that lead through it.
    pub routes: Vec<Message>,
    /// Permanent ones.
    pub neighbours: Vec<Message>,
}

impl Saved {
    /// Looks at an interface; changes nothing.
    pub fn collect(kernel: &mut Kernel<'_>, link: &Link) -> Result<Self, SidecarError> {
        let mut routes = kernel.routes()?;
        routes.retain(|route| leads_through(route, link.index));
        if routes
            .iter()
            .any(|route| route.get(rt::RTA_NH_ID).is_some())
        {
            return Err(SidecarError::Unsuitable {
                name: link.name.clone(),
                problem: "has routes through nexthop objects, which sgwall can't carry over"
                    .to_owned(),
                rest: Vec::new(),
            });
        }
        Ok(Self {
            addresses: kernel.addresses(link.index)?,
            routes: routes.into_iter().map(without_age).collect(),
            neighbours: kernel.neighbours(link.index)?,
            link: Link::read(essence(link)),
        })
    }

    /// The messages one after the other.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut all = vec![self.link.message.clone()];
        for these in [&self.addresses, &self.routes, &self.neighbours] {
            all.extend_from_slice(these);
        }
        to_bytes(&all)
    }

    /// The contrary of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let mut messages = from_bytes(bytes)?.into_iter();
        let link = messages
            .next()
            .filter(|first| first.kind == libc::RTM_NEWLINK)
            .ok_or(io::ErrorKind::InvalidData)?;
        let mut this = Self {
            link: Link::read(link),
            addresses: Vec::new(),
            routes: Vec::new(),
            neighbours: Vec::new(),
        };
        if this.link.name.is_empty() || this.link.mac.len() != 6 || this.link.index == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        for message in messages {
            match message.kind {
                libc::RTM_NEWADDR => this.addresses.push(message),
                libc::RTM_NEWROUTE => this.routes.push(message),
                libc::RTM_NEWNEIGH => this.neighbours.push(message),
                _ => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(this)
    }

    /// Its MAC.
    pub fn mac(&self) -> [u8; 6] {
        self.link.mac.first_chunk().copied().unwrap_or_default()
    }

    /// Its addresses with their prefixes.
    pub fn nets(&self) -> Vec<IpNet> {
        self.addresses.iter().filter_map(kernel::address).collect()
    }

    /// What the raw device is called while it is taken: derived from its own name, and
    /// short enough for a device (`IFNAMSIZ` less the closing zero).
    pub fn raw_name(&self) -> String {
        let name = format!("sgw-{}", self.link.name);
        if name.len() <= 15 {
            name
        } else {
            format!("sgw-{}", self.link.index)
        }
    }
}

/// Whether a route leads through a device, alone or beside others.
pub(super) fn leads_through(route: &Message, index: u32) -> bool {
    let alone = route.get(rt::RTA_OIF).and_then(Attribute::to_u32);
    alone == Some(index) || next_hops(route).contains(&index)
}

/// The same route through other devices.
pub(super) fn moved(route: &Message, new_index: impl Fn(u32) -> u32) -> Message {
    let mut route = route.clone();
    for attribute in &mut route.attributes {
        match attribute.kind() {
            rt::RTA_OIF => {
                if let Some(index) = attribute.to_u32() {
                    attribute.value = new_index(index).to_ne_bytes().to_vec();
                }
            }
            rt::RTA_MULTIPATH => each_hop(&mut attribute.value, |hop| {
                if let Some(place) = hop.get_mut(4..NEXT_HOP)
                    && let Some(index) = place.first_chunk().copied()
                {
                    let index = new_index(u32::from_ne_bytes(index));
                    place.copy_from_slice(&index.to_ne_bytes());
                }
            }),
            _ => {}
        }
    }
    route
}

/// A route without what changes by itself: its state, and how often it was used. What is
/// left of the time that it has is made the attribute that a request has for it.
pub(super) fn without_age(mut route: Message) -> Message {
    let flags = route.head_u32(8) & u32::from(ONLINK);
    route.set_head(8, &flags.to_ne_bytes());
    let mut left = None;
    route.attributes.retain(|this| match this.kind() {
        rt::RTA_CACHEINFO => {
            let expires = this.value.get(8..).and_then(<[u8]>::first_chunk);
            let expires = expires.map_or(0, |bytes| i32::from_ne_bytes(*bytes));
            left = u32::try_from(expires / 100).ok().filter(|&left| left > 0);
            false
        }
        _ => true,
    });
    for attribute in &mut route.attributes {
        if attribute.kind() == rt::RTA_MULTIPATH {
            each_hop(&mut attribute.value, |hop| {
                if let Some(flags) = hop.get_mut(2) {
                    *flags &= ONLINK;
                }
            });
        }
    }
    if let Some(left) = left {
        route.attributes.push(Attribute::u32(rt::RTA_EXPIRES, left));
    }
    route
}

/// Whether two routes are the same but for the time that they have left.
pub(super) fn same_route(a: &Message, b: &Message) -> bool {
    let lasting = |route: &Message| {
        let mut route = route.clone();
        route
            .attributes
            .retain(|this| this.kind() != rt::RTA_EXPIRES);
        route
    };
    lasting(a) == lasting(b)
}

fn next_hops(route: &Message) -> Vec<u32> {
    let mut found = Vec::new();
    if let Some(hops) = route.get(rt::RTA_MULTIPATH) {
        let mut bytes = hops.value.clone();
        each_hop(&mut bytes, |hop| {
            if let Some(index) = hop.get(4..).and_then(<[u8]>::first_chunk) {
                found.push(u32::from_ne_bytes(*index));
            }
        });
    }
    found
}

/// Shows each next hop of several; what is cut off is left alone.
fn each_hop(mut bytes: &mut [u8], mut show: impl FnMut(&mut [u8])) {
    while let Some(length) = bytes.first_chunk().copied() {
        let length = usize::from(u16::from_ne_bytes(length));
        if length < NEXT_HOP {
            return;
        }
        let Some(hop) = bytes.get_mut(..length) else {
            return;
        };
        show(hop);
        let next = length.next_multiple_of(4).min(bytes.len());
        bytes = &mut bytes[next..];
    }
}

/// The part of a device's description that is needed again.
fn essence(link: &Link) -> Message {
    let mut message = Message::new(libc::RTM_NEWLINK, &link.message.head);
    for kind in [
        rt::IFLA_IFNAME,
        rt::IFLA_ADDRESS,
        rt::IFLA_MTU,
        rt::IFLA_TXQLEN,
    ] {
        message.attributes.extend(link.message.get(kind).cloned());
    }
    let part = |ipv6, kinds: &[u16]| {
        let these: Vec<_> = kinds
            .iter()
            .filter_map(|&kind| link.setting(ipv6, kind))
            .collect();
        settings(ipv6, &these).inner()
    };
    let mut both = part(false, &[rt::IFLA_INET_CONF]);
    both.append(&mut part(
        true,
        &[rt::IFLA_INET6_CONF, rt::IFLA_INET6_ADDR_GEN_MODE],
    ));
    message.with(Attribute::nest(rt::IFLA_AF_SPEC, &both))
}
