//! The hosts file of each entity: who is reachable from there, by name.

use std::fmt::Write;
use std::net::IpAddr;

use crate::model::{Address, Attachment, EntityIx, EntityKind, Interface, Model, Via};

/// Writes the hosts file that `viewer` sees. `machine` is the machine's own
/// file, of which the loopback lines stay.
///
/// Over the internet gateway the VPC's IPv4 addresses are the public ones; IPv6
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

/// Hosts of the internet are named by the address that they have. That nothing
/// goes from one to another is for the appliance to say, by its `no_route`.
fn reached_privately(interface: &Interface) -> bool {
    interface.attachment == Attachment::External(Via::Igw)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Entity, LoadBalancer, Place, SubnetIx, Tracking};

    fn model() -> Model {
        let mut model = Model::default();
        let mut add = |name: &str, kind: EntityKind, addresses: &[(&str, Option<&str>)]| {
            let place = Place::implied("test".into());
            let entity = EntityIx::new(model.entities.len());
            model.entities.push(Entity {
                name: name.into(),
                kind,
                engine: None,
                run: None,
                max_flows: None,
                place: place.clone(),
            });
            model.interfaces.push(Interface {
                id: format!("eni-{name}"),
                entity,
                device: 0,
                attachment: match kind {
                    EntityKind::External(via) => Attachment::External(via),
                    _ => Attachment::Subnet {
                        subnet: SubnetIx::new(0),
                        groups: Vec::new(),
                    },
                },
                addresses: addresses
                    .iter()
                    .map(|(private, public)| Address {
                        private: private.parse().unwrap(),
                        public: public.map(|public| public.parse().unwrap()),
                    })
                    .collect(),
                mtu: 9001,
                source_dest_check: true,
                tracking: Tracking::default(),
                place,
            });
        };
        let igw = EntityKind::External(Via::Igw);
        let vgw = EntityKind::External(Via::Vgw);
        add(
            "lb",
            EntityKind::Elb(LoadBalancer::Application),
            &[("10.0.0.5", Some("203.0.113.5"))],
        );
        add(
            "db",
            EntityKind::Rds,
            &[("10.0.0.9", None), ("fd00::9", None)],
        );
        add("laptop", igw, &[("198.51.100.7", None)]);
        add("phone", igw, &[("198.51.100.8", None)]);
        add("office", vgw, &[("192.168.7.20", None)]);
        model
    }

    fn seen_by(viewer: &str, machine: &str) -> Vec<String> {
        let model = model();
        let (viewer, _) = model.entity(viewer).unwrap();
        file(&model, viewer, machine)
            .lines()
            .map(|line| line.replace('\t', " "))
            .collect()
    }

    #[test]
    fn inside_the_vpc_and_over_the_vpn_private_addresses_count() {
        for viewer in ["db", "office"] {
            let lines = seen_by(viewer, "127.0.0.1 localhost\n");
            assert_eq!(
                lines,
                [
                    "127.0.0.1 localhost",
                    "10.0.0.5 lb",
                    "10.0.0.9 db",
                    "fd00::9 db",
                    "198.51.100.7 laptop",
                    "198.51.100.8 phone",
                    "192.168.7.20 office"
                ]
            );
        }
    }

    #[test]
    fn the_internet_sees_public_addresses_only_and_ipv6_as_it_is() {
        let lines = seen_by("laptop", "127.0.0.1 localhost\n");
        assert_eq!(
            lines,
            [
                "127.0.0.1 localhost",
                "203.0.113.5 lb",
                "fd00::9 db",
                "198.51.100.7 laptop",
                "198.51.100.8 phone"
            ]
        );
    }

    #[test]
    fn the_machines_own_name_does_not_shadow_an_entity() {
        let machine = "# mine\n127.0.0.1 localhost # loop\n127.0.1.1 db db.example\n\
                       ::1 localhost ip6-localhost\n192.0.2.1 elsewhere\nnonsense\n";
        let lines = seen_by("db", machine);
        assert_eq!(
            lines[..4],
            [
                "127.0.0.1 localhost",
                "127.0.1.1 db.example",
                "::1 localhost ip6-localhost",
                "10.0.0.5 lb"
            ]
        );
    }

    #[test]
    fn localhost_resolves_where_the_machine_has_no_hosts_file() {
        assert_eq!(seen_by("db", "")[0], "127.0.0.1 localhost");
    }
}
