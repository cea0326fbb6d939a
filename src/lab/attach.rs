//! One entity's namespace with its devices, addresses and routes.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use nix::net::if_::if_nametoindex;

use super::devices::Watched;
use super::netlink::Batch;
use super::{LabError, Namespace};
use crate::link::{Offload, TunLink};
use crate::model::{Attachment, EntityIx, Interface, InterfaceIx, Model};

/// Packets that a device queues towards the appliance. The kernel's 500 for
/// TUN are gone in one burst of a TCP window at a 9001 byte MTU.
const QUEUE: u32 = 4096;
/// The main routing table (`RT_TABLE_MAIN`).
const MAIN_TABLE: u32 = 254;
/// The table of `ethN` is this and N; the kernel's own end at 255.
const FIRST_TABLE: u32 = 1000;
/// Rules for sources come before the kernel's for the main table at 32766.
const RULE_PRIORITY: u32 = 1000;
/// The metric that the kernel gives an IPv6 route that has none.
const IPV6_METRIC: u32 = 1024;
/// The same for the route to an address's own subnet.
const IPV6_SUBNET_METRIC: u32 = 256;

/// What to make for one entity.
#[derive(Debug)]
pub(super) struct Plan {
    entity: String,
    bound: Option<PathBuf>,
    devices: Vec<DevicePlan>,
}

#[derive(Debug, Clone)]
pub(super) struct DevicePlan {
    pub interface: InterfaceIx,
    name: String,
    number: u32,
    mtu: u32,
    addresses: Vec<(IpAddr, u8)>,
}

/// What was made for one entity.
#[derive(Debug)]
pub(super) struct Attached {
    pub namespace: Namespace,
    pub links: Vec<(InterfaceIx, Arc<TunLink>)>,
    pub watched: Watched,
}

impl Plan {
    /// Plans the entity's namespace; `bound` is its file for `ip netns`.
    pub fn new(model: &Model, entity: EntityIx, bound: Option<PathBuf>) -> Result<Self, LabError> {
        let name = &model.entities[entity.ix()].name;
        check_entity_name(name)?;
        let devices = model
            .interfaces_of(entity)
            .map(|(interface, this)| DevicePlan {
                interface,
                name: this.device_name(),
                number: u32::from(this.device),
                mtu: u32::from(this.mtu),
                addresses: this
                    .addresses
                    .iter()
                    .map(|address| (address.private, prefix(model, this, address.private)))
                    .collect(),
            })
            .collect();
        Ok(Self {
            entity: name.clone(),
            bound,
            devices,
        })
    }

    /// How many devices it has.
    pub fn device_count(&self) -> usize {
        self.devices.len()
    }

    /// Makes it all. The calling thread is inside the namespace afterwards.
    pub fn carry_out(&self, offload: Offload) -> Result<Attached, LabError> {
        let namespace = Namespace::make_here(&self.entity, self.bound.clone())?;
        let ipv6 = fs::exists("/proc/sys/net/ipv6").unwrap_or(false);
        let failed = |(operation, error)| LabError::entity(&self.entity, operation, error);

        quieten("all", ipv6);
        quieten("default", ipv6);
        let mut batch = Batch::default();
        // The loopback device is always the first.
        batch.up(1);
        let mut links = Vec::with_capacity(self.devices.len());
        let mut watched = Vec::with_capacity(self.devices.len());
        for device in &self.devices {
            let link = TunLink::open(&device.name, offload).map_err(|error| {
                LabError::entity(&self.entity, format!("make device {}", device.name), error)
            })?;
            let index = if_nametoindex(device.name.as_str()).map_err(|errno| {
                LabError::entity(&self.entity, format!("find device {}", device.name), errno)
            })?;
            device.queue(&mut batch, index, ipv6, self.devices.len() > 1);
            links.push((device.interface, Arc::new(link)));
            watched.push((device.clone(), index));
        }
        batch.send().map_err(failed)?;
        // Nobody else can be in the namespace yet and set a device down.
        let watched = Watched::here(watched)
            .map_err(|error| LabError::entity(&self.entity, "watch the devices", error))?;

        Ok(Attached {
            namespace,
            links,
            watched,
        })
    }
}

impl DevicePlan {
    /// Asks for the device's settings, addresses, routes and rules.
    fn queue(&self, batch: &mut Batch, index: u32, ipv6: bool, several: bool) {
        batch.configure(index, self.mtu, QUEUE, ipv6);
        batch.up(index);
        self.queue_addresses(batch, index, several);
    }

    /// Queues requests for the device's addresses, routes and rules.
    pub fn queue_addresses(&self, batch: &mut Batch, index: u32, several: bool) {
        let table = FIRST_TABLE + self.number;
        for &(address, prefix) in &self.addresses {
            // Where two devices are in one subnet the first leads there.
            let metric = match (self.number, address) {
                (0, _) => 0,
                (number, IpAddr::V4(_)) => number,
                (number, IpAddr::V6(_)) => IPV6_SUBNET_METRIC + number,
            };
            batch.address(index, address, prefix, metric);
            if several {
                // Replies leave by the interface that has their source.
                batch.source_rule(address, table, RULE_PRIORITY + self.number);
            }
        }
        for v4 in [true, false] {
            let family = self.addresses.iter().find(|(this, _)| this.is_ipv4() == v4);
            let Some(&(like, _)) = family else {
                continue;
            };
            let metric = if v4 { 0 } else { IPV6_METRIC } + self.number;
            batch.default_route(index, like, MAIN_TABLE, metric);
            if several {
                batch.default_route(index, like, table, 0);
            }
        }
    }
}

/// Whether `name` may name an entity: a DNS label in lower case.
fn check_entity_name(name: &str) -> Result<(), LabError> {
    let valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    if (1..=63).contains(&name.len())
        && name.bytes().all(valid)
        && !name.starts_with('-')
        && !name.ends_with('-')
    {
        Ok(())
    } else {
        Err(LabError::BadEntityName(name.to_owned()))
    }
}

/// The prefix length of an interface's address: its subnet's, or the host's
/// alone outside the VPC.
fn prefix(model: &Model, interface: &Interface, address: IpAddr) -> u8 {
    let host = if address.is_ipv4() { 32 } else { 128 };
    match interface.attachment {
        Attachment::Subnet { subnet, .. } => model.subnets[subnet.ix()]
            .cidr_of(address)
            .map_or(host, |cidr| cidr.prefix_len()),
        Attachment::External(_) => host,
    }
}

/// Takes back what the machine's own settings may have made of a new
/// namespace. Only the appliance filters, so the kernel must not (reverse
/// paths), nor take addresses and routes from the wire. Best effort: where
/// `/proc/sys` is read-only, as in many containers, the defaults are these.
fn quieten(device: &str, ipv6: bool) {
    let _ = fs::write(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "0");
    if ipv6 {
        let conf = format!("/proc/sys/net/ipv6/conf/{device}");
        for (setting, value) in [
            ("disable_ipv6", "0"),
            ("accept_ra", "0"),
            ("autoconf", "0"),
            ("router_solicitations", "0"),
        ] {
            let _ = fs::write(format!("{conf}/{setting}"), value);
        }
    }
}
