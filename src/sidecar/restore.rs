//! Puts what was saved of an interface onto a device: the TAP that takes its place, or the
//! device itself when it is given back.

use std::fs;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use nix::libc;

use super::kernel::{self, Kernel, Link, set_link, settings};
use super::netlink::{Attribute, Message};
use super::saved::{Saved, leads_through, moved, same_route, without_age};
use super::{SidecarError, rt};

const IFA_F_NODAD: u32 = 0x02;
/// Flags of an address that its owner chooses: OPTIMISTIC, HOMEADDRESS, MANAGETEMPADDR,
/// NOPREFIXROUTE, MCAUTOJOIN (`linux/if_addr.h`). The others tell of its state.
const CHOSEN: u32 = 0x04 | 0x10 | 0x100 | 0x200 | 0x400;
/// Settings for IPv6 that matter to a workload, by their place in the kernel's list
/// (`DEVCONF_…` in `linux/ipv6.h`) and their name under `/proc/sys`.
const IPV6_SETTINGS: [(usize, &str); 7] = [
    (0, "forwarding"),
    (1, "hop_limit"),
    (3, "accept_ra"),
    (4, "accept_redirects"),
    (5, "autoconf"),
    (6, "dad_transmits"),
    (11, "use_tempaddr"),
];
/// Passes over the routes: each adds those whose gateways the one before made reachable.
const PASSES: usize = 8;

/// A device, and what it is to become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    /// The device's index.
    pub index: u32,
    /// What was saved.
    pub saved: &'a Saved,
}

impl Target<'_> {
    /// MAC, MTU and settings for IPv4: what is set while the device is down. No link-local
    /// address is made when it comes up: it is among those that were saved.
    pub fn prepare(
        self,
        kernel: &mut Kernel<'_>,
        now: &Link,
        queue: Option<u32>,
    ) -> Result<(), SidecarError> {
        let saved = &self.saved.link;
        if now.mac != saved.mac {
            let message = set_link(self.index, 0, 0)
                .with(Attribute::new(rt::IFLA_ADDRESS, saved.mac.clone()));
            kernel.ask(format!("set the MAC of {}", saved.name), message, 0)?;
        }
        if now.mtu != saved.mtu {
            let message = set_link(self.index, 0, 0).with(Attribute::u32(rt::IFLA_MTU, saved.mtu));
            let operation = format!("set the MTU of {} to {}", saved.name, saved.mtu);
            kernel.ask(operation, message, 0)?;
        }
        if let Some(queue) = queue {
            let message = set_link(self.index, 0, 0).with(Attribute::u32(rt::IFLA_TXQLEN, queue));
            kernel.ask(format!("set the queue of {}", saved.name), message, 0)?;
        }
        self.set_ipv4(kernel, now)?;
        set_gen_mode(kernel, now, rt::GEN_MODE_NONE)
    }

    /// Addresses, in an order that leaves them in the one that they had. The device is up.
    pub fn address(self, kernel: &mut Kernel<'_>, now: &Link) -> Result<(), SidecarError> {
        self.set_ipv6(now);
        let is_ipv4 = |message: &&Message| message.head_u8(0) == 2;
        let (ipv4, ipv6): (Vec<_>, Vec<_>) = self.saved.addresses.iter().partition(is_ipv4);
        // The kernel puts a new IPv6 address before those that there are.
        for message in ipv4.into_iter().chain(ipv6.into_iter().rev()) {
            self.add_address(kernel, message)?;
        }
        match self.saved.link.gen_mode() {
            Some(mode) if now.gen_mode().is_some() => set_gen_mode(kernel, now, mode),
            _ => Ok(()),
        }
    }

    fn add_address(self, kernel: &mut Kernel<'_>, saved: &Message) -> Result<(), SidecarError> {
        let name = &self.saved.link.name;
        let text = kernel::address(saved).map_or_else(String::new, |this| this.to_string());
        let ipv6 = saved.head_u8(0) != 2;
        let operation = format!("give {name} the address {text}");
        let message = to_be_added(saved, self.index);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let fine = [libc::EEXIST];
        match kernel.ask_unless(&fine, operation.clone(), message.clone(), flags) {
            Err(SidecarError::System { source, .. })
                if ipv6 && source.raw_os_error() == Some(libc::EACCES) =>
            {
                // IPv6 is off on this device, though it was on at the other. That is a
                // default of the namespace's.
                let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
                if fs::write(path, "0").is_ok() {
                    return kernel.ask_unless(&fine, operation, message, flags);
                }
                if saved.head_u8(3) == libc::RT_SCOPE_LINK {
                    // Nobody gave it this address, and nobody will miss it.
                    tracing::warn!(interface = %name, address = %text, "IPv6 is off for new \
                        interfaces here: the link-local address is gone");
                    return Ok(());
                }
                Err(SidecarError::NoIpv6 {
                    name: name.clone(),
                    address: text,
                    source,
                })
            }
            answer => answer,
        }
    }

    /// Permanent neighbours.
    pub fn introduce(self, kernel: &mut Kernel<'_>) -> Result<(), SidecarError> {
        for saved in &self.saved.neighbours {
            let mut message = saved.clone();
            message.set_head(4, &self.index.to_ne_bytes());
            message
                .attributes
                .retain(|this| ![rt::NDA_CACHEINFO, rt::NDA_PROBES].contains(&this.kind()));
            let operation = format!("add a neighbour of {}", self.saved.link.name);
            kernel.ask(operation, message, NLM_F_CREATE | NLM_F_REPLACE)?;
        }
        Ok(())
    }

    fn set_ipv4(self, kernel: &mut Kernel<'_>, now: &Link) -> Result<(), SidecarError> {
        let list = |link: &Link| {
            link.setting(false, rt::IFLA_INET_CONF)
                .map(|this| this.value)
        };
        let (Some(saved), Some(now)) = (list(&self.saved.link), list(now)) else {
            return Ok(());
        };
        let mut changes = Vec::new();
        // Numbers of settings begin with 1.
        for ((number, saved), now) in (1_u16..).zip(saved.chunks(4)).zip(now.chunks(4)) {
            if saved != now {
                changes.push(Attribute::new(number, saved));
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        let these = settings(false, &[Attribute::nest(rt::IFLA_INET_CONF, &changes)]);
        let message = set_link(self.index, 0, 0).with(these);
        let operation = format!("set {}'s settings for IPv4", self.saved.link.name);
        kernel.ask(operation, message, 0)
    }

    /// Best effort: the kernel takes these from `/proc/sys` only, which containers
    /// usually have read-only.
    fn set_ipv6(self, now: &Link) {
        let list = |link: &Link| {
            link.setting(true, rt::IFLA_INET6_CONF)
                .map(|this| this.value)
        };
        let (Some(saved), Some(now)) = (list(&self.saved.link), list(now)) else {
            return;
        };
        let name = &self.saved.link.name;
        for (place, setting) in IPV6_SETTINGS {
            let at = |list: &[u8]| {
                let bytes = list.get(place * 4..)?.first_chunk()?;
                Some(i32::from_ne_bytes(*bytes))
            };
            let (Some(saved), Some(now)) = (at(&saved), at(&now)) else {
                continue;
            };
            let path = format!("/proc/sys/net/ipv6/conf/{name}/{setting}");
            if saved != now
                && let Err(error) = fs::write(&path, saved.to_string())
            {
                tracing::warn!(interface = %name, setting, saved, now, %error,
                    "a setting for IPv6 is the namespace's default now: /proc/sys can't be written");
            }
        }
    }
}

/// Adds the routes that led through the interfaces, and removes those that the kernel made
/// of itself and that were not there.
pub(super) fn routes(kernel: &mut Kernel<'_>, targets: &[Target<'_>]) -> Result<(), SidecarError> {
    let new_index = |index| {
        let target = targets.iter().find(|this| this.saved.link.index == index);
        target.map_or(index, |this| this.index)
    };
    let mut wanted: Vec<Message> = Vec::new();
    for route in targets.iter().flat_map(|this| &this.saved.routes) {
        let route = moved(route, new_index);
        if !wanted.iter().any(|this| same_route(this, &route)) {
            wanted.push(route);
        }
    }
    let mut there: Vec<Message> = kernel.routes()?.into_iter().map(without_age).collect();
    there.retain(|route| targets.iter().any(|this| leads_through(route, this.index)));
    for route in &there {
        if !wanted.iter().any(|this| same_route(this, route)) {
            let mut message = route.clone();
            message.kind = libc::RTM_DELROUTE;
            kernel.ask_unless(&[libc::ESRCH], "remove a route", message, 0)?;
        }
    }
    wanted.retain(|route| !there.iter().any(|this| same_route(this, route)));
    add_routes(kernel, wanted)
}

/// A gateway must be reachable before a route through it is taken, and the kernel lists them in
/// another order.
fn add_routes(kernel: &mut Kernel<'_>, mut wanted: Vec<Message>) -> Result<(), SidecarError> {
    for pass in 1..=PASSES {
        let mut refused = Vec::new();
        let mut reason = None;
        let before = wanted.len();
        for route in wanted {
            // For IPv4 several may differ by their gateway alone and have an order; for
            // IPv6 to append would make one route of them.
            let order = if route.head_u8(0) == 2 {
                NLM_F_APPEND
            } else {
                0
            };
            let flags = NLM_F_CREATE | order;
            match kernel.ask_unless(&[libc::EEXIST], "add a route", route.clone(), flags) {
                Ok(()) => {}
                Err(error @ SidecarError::System { .. }) => {
                    reason.get_or_insert(error);
                    refused.push(route);
                }
                Err(error) => return Err(error),
            }
        }
        match reason {
            None => return Ok(()),
            Some(error) if pass == PASSES || refused.len() == before => return Err(error),
            Some(_) => wanted = refused,
        }
    }
    Ok(())
}

/// How the kernel makes a link-local address when the device comes up.
pub(super) fn set_gen_mode(
    kernel: &mut Kernel<'_>,
    now: &Link,
    mode: u8,
) -> Result<(), SidecarError> {
    if now.gen_mode().is_none() {
        // No IPv6 on this device.
        return Ok(());
    }
    let these = settings(
        true,
        &[Attribute::new(rt::IFLA_INET6_ADDR_GEN_MODE, [mode])],
    );
    let message = set_link(now.index, 0, 0).with(these);
    let operation = format!("set how {} makes its link-local address", now.name);
    kernel.ask(operation, message, 0)
}

fn to_be_added(saved: &Message, index: u32) -> Message {
    let mut message = saved.clone();
    message.kind = libc::RTM_NEWADDR;
    message.set_head(4, &index.to_ne_bytes());
    let flags = message.get(rt::IFA_FLAGS).and_then(Attribute::to_u32);
    let mut flags = flags.unwrap_or_else(|| u32::from(message.head_u8(2))) & CHOSEN;
    if message.head_u8(0) != 2 {
        // It was this host's all the time.
        flags |= IFA_F_NODAD;
    }
    message.set_head(2, &[flags.to_le_bytes()[0]]);
    message
        .attributes
        .retain(|this| this.kind() != rt::IFA_FLAGS);
    message
        .attributes
        .push(Attribute::u32(rt::IFA_FLAGS, flags));
    message
}
