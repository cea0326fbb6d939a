//! `--from` and `--to` to an interface and two addresses.

use std::net::IpAddr;

use crate::cli::CliError;
use crate::config::nearest;
use crate::model::{Attachment, Interface, InterfaceIx, Model, Via};

/// Which families the protocol leaves open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Family {
    V4,
    V6,
    Either,
}

/// The two ends of a question.
#[derive(Debug)]
pub(in crate::cli) struct Ends {
    pub(in crate::cli) from: InterfaceIx,
    pub(in crate::cli) source: IpAddr,
    pub(in crate::cli) destination: IpAddr,
}

/// What a peer's text named.
enum Peer {
    /// Interfaces, in order of preference.
    Named(Vec<InterfaceIx>),
    /// An address and who has it.
    Address(IpAddr, Option<InterfaceIx>),
}

impl Family {
    fn admits(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Either => true,
        }
    }

    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}

/// Finds the sender and both addresses. An address picks the family; where
/// none is given and both ends have both, it is IPv4. Seen from the internet
/// an entity's IPv4 address is its public one.
pub(in crate::cli) fn resolve(
    model: &Model,
    from: &str,
    to: &str,
    family: Family,
) -> Result<Ends, CliError> {
    let sender = parse(model, from)?;
    let receiver = parse(model, to)?;
    let (sources, fixed_source): (Vec<InterfaceIx>, Option<IpAddr>) = match sender {
        Peer::Named(interfaces) => (interfaces, None),
        Peer::Address(address, Some(owner)) => (vec![owner], Some(address)),
        Peer::Address(address, None) => {
            return Err(CliError::Usage(format!(
                "--from {address}: nobody in the lab has this address; declare an external entity with it to ask for a host outside"
            )));
        }
    };
    for from in nearest_first(model, sources, &receiver) {
        let interface = &model.interfaces[from.ix()];
        for address in &interface.addresses {
            // A public address names its owner, which sends from the private one.
            let named = fixed_source.is_none_or(|fixed| {
                address.private == fixed || address.public.map(IpAddr::V4) == Some(fixed)
            });
            if !named || !family.admits(address.private) {
                continue;
            }
            let destination = match &receiver {
                Peer::Address(address, _) => Some(*address),
                Peer::Named(to) => address_seen(model, interface, to, Family::of(address.private)),
            };
            if let Some(destination) = destination
                && destination.is_ipv4() == address.private.is_ipv4()
            {
                refuse_self(model, from, destination)?;
                return Ok(Ends {
                    from,
                    source: address.private,
                    destination,
                });
            }
        }
    }
    Err(CliError::Usage(format!(
        "{from} and {to} have no addresses of the same family{}",
        match family {
            Family::V4 => " that fits icmp (IPv4)",
            Family::V6 => " that fits icmpv6 (IPv6)",
            Family::Either => "",
        }
    )))
}

/// The sender's interfaces as its own routes would choose among them: one whose
/// subnet holds an address of the receiver's first.
fn nearest_first(
    model: &Model,
    mut sources: Vec<InterfaceIx>,
    receiver: &Peer,
) -> Vec<InterfaceIx> {
    let targets: Vec<IpAddr> = match receiver {
        Peer::Address(address, _) => vec![*address],
        Peer::Named(interfaces) => interfaces
            .iter()
            .flat_map(|at| &model.interfaces[at.ix()].addresses)
            .map(|address| address.private)
            .collect(),
    };
    let is_far = |at: &InterfaceIx| match &model.interfaces[at.ix()].attachment {
        Attachment::Subnet { subnet, .. } => {
            let subnet = &model.subnets[subnet.ix()];
            !targets
                .iter()
                .any(|target| subnet.cidr_of(*target).is_some())
        }
        Attachment::External(_) => true,
    };
    sources.sort_by_key(is_far);
    sources
}

/// What never leaves the entity never meets a security group.
fn refuse_self(model: &Model, from: InterfaceIx, destination: IpAddr) -> Result<(), CliError> {
    let entity = model.interfaces[from.ix()].entity;
    let own = model.interfaces_of(entity).any(|(_, interface)| {
        interface
            .addresses
            .iter()
            .any(|own| own.private == destination)
    });
    if own {
        return Err(CliError::Usage(format!(
            "{} sends to its own address {destination}: that never leaves it, and no security group sees it",
            model.interface_label(from)
        )));
    }
    Ok(())
}

fn address_seen(
    model: &Model,
    sender: &Interface,
    receivers: &[InterfaceIx],
    family: Family,
) -> Option<IpAddr> {
    let from_internet = matches!(sender.attachment, Attachment::External(Via::Igw));
    let addresses = receivers
        .iter()
        .flat_map(|to| &model.interfaces[to.ix()].addresses)
        .filter(|address| family.admits(address.private));
    let mut private = None;
    for address in addresses {
        match address.public {
            Some(public) if from_internet => return Some(public.into()),
            _ => private = private.or(Some(address.private)),
        }
    }
    private
}

fn parse(model: &Model, text: &str) -> Result<Peer, CliError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let owner = model.interfaces().find(|(_, interface)| {
            interface
                .addresses
                .iter()
                .any(|own| own.private == address || own.public.map(IpAddr::V4) == Some(address))
        });
        return Ok(Peer::Address(address, owner.map(|(at, _)| at)));
    }
    if let Some((entity, _)) = model.entity(text) {
        let interfaces = model.interfaces_of(entity).map(|(at, _)| at).collect();
        return Ok(Peer::Named(interfaces));
    }
    let named = model.interfaces().find(|(_, interface)| {
        let entity = &model.entities[interface.entity.ix()].name;
        interface.id == text || format!("{entity}/{}", interface.device_name()) == text
    });
    match named {
        Some((at, _)) => Ok(Peer::Named(vec![at])),
        None => {
            let names: Vec<&str> = model
                .entities
                .iter()
                .map(|entity| entity.name.as_str())
                .collect();
            let help = match nearest(text, names.iter().copied()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("the entities are {}", names.join(", ")),
            };
            Err(CliError::Usage(format!(
                "'{text}' is neither an entity, an interface nor an address; {help}"
            )))
        }
    }
}
