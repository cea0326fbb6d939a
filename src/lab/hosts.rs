//! The hosts file of each entity: who is reachable from there, by name.

use std::fmt::Write;
use std::net::IpAddr;

use crate::model::{Address, EntityIx, EntityKind, Interface, Model, Via};

/// Writes the hosts file that `viewer` sees. `machine` is the machine's own
/// file, of which the loopback lines stay.
///
/// Over the internet gateway only public IPv4 addresses are reachable; IPv6
/// is not translated. Everybody else goes by private addresses.
pub(super) fn file(model: &Model, viewer: EntityIx, machine: &str) -> String {
    let is_entity = |name: &str| model.entity(name).is_some();
    let mut text = loopback_lines(machine, &is_entity);
    let from_internet = model.entities[viewer.ix()].kind == EntityKind::External(Via::Igw);
    for interface in &model.interfaces {
        let name = &model.entities[interface.entity.ix()].name;
        let own = interface.entity == viewer;
        let private = own || !from_internet || reached_privately(interface);
        for address in &interface.addresses {
            if let Some(seen) = seen_address(address, private) {
                // Writing to a String can't fail.
                let _ = writeln!(text, "{seen}\t{name}");
            }
        }
    }
    text
}

/// Hosts of the internet reach each other without any translation.
fn reached_privately(interface: &Interface) -> bool {
    matches!(
        interface.attachment,
        crate::model::Attachment::External(Via::Igw)
    )
}

fn seen_address(address: &Address, private: bool) -> Option<IpAddr> {
    match (address.private, private) {
        (IpAddr::V4(_), false) => address.public.map(IpAddr::V4),
        (seen, _) => Some(seen),
    }
}

/// The machine's loopback lines without the names that entities have: a
/// machine that is itself called `web-1` must not shadow the lab's.
fn loopback_lines(machine: &str, is_entity: &dyn Fn(&str) -> bool) -> String {
    let mut text = String::new();
    for line in machine.lines() {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else {
            continue;
        };
        let names: Vec<&str> = words.filter(|name| !is_entity(name)).collect();
        if address.is_loopback() && !names.is_empty() {
            let _ = writeln!(text, "{address}\t{}", names.join(" "));
        }
    }
    let has_localhost = text.split_whitespace().any(|word| word == "localhost");
    if !has_localhost && !is_entity("localhost") {
        text.insert_str(0, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n");
    }
    text
}
