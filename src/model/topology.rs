//! What may change while an appliance runs: rules, prefix lists, network ACLs,
//! route tables, which of them a subnet uses, which groups an interface
//! carries, and how ICMP errors are let in. Entities, interfaces and addresses
//! may not.

use std::collections::HashMap;

use super::{Attachment, Entity, Interface, Model};

/// A difference that takes a restart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what}; only security groups, prefix lists, network ACLs, route tables and an entity's security_groups change while the lab runs: stop it and start it again"
)]
pub struct TopologyChange {
    what: String,
}

impl Model {
    /// Whether `new` differs only in what may change at run time.
    ///
    /// # Errors
    /// The first difference that may not.
    pub fn same_topology(&self, new: &Self) -> Result<(), TopologyChange> {
        if self.vpc.id != new.vpc.id || self.vpc.cidrs != new.vpc.cidrs {
            return changed("the VPC changed".to_owned());
        }
        if is_same_in_order(self, new) {
            return Ok(());
        }
        // Something differs, or only stands elsewhere in the file.
        let before = entities(self);
        let after = entities(new);
        for name in before.keys() {
            if !after.contains_key(name) {
                return changed(format!("entity '{name}' is gone"));
            }
        }
        for (name, entity) in &after {
            let Some(old) = before.get(name) else {
                return changed(format!("entity '{name}' is new"));
            };
            if !same_entity(old.0, entity.0) || !same_interfaces(self, new, &old.1, &entity.1) {
                return changed(format!(
                    "entity '{name}' changed in more than its security groups"
                ));
            }
        }
        Ok(())
    }
}

fn changed(what: String) -> Result<(), TopologyChange> {
    Err(TopologyChange { what })
}

/// Whether both have the same entities and interfaces, one after the other: so it is
/// with most changes, and told without a map.
fn is_same_in_order(old: &Model, new: &Model) -> bool {
    let same = |(old, new): (&Entity, &Entity)| old.name == new.name && same_entity(old, new);
    let same_owner = |(old, new): (&Interface, &Interface)| old.entity == new.entity;
    let interfaces = |model| Vec::from_iter(Model::interfaces(model).map(|(_, it)| it));
    old.entities.len() == new.entities.len()
        && old.entities.iter().zip(&new.entities).all(same)
        && old.interfaces.iter().zip(&new.interfaces).all(same_owner)
        && same_interfaces(old, new, &interfaces(old), &interfaces(new))
}

fn entities(model: &Model) -> HashMap<&str, (&Entity, Vec<&Interface>)> {
    let mut found: HashMap<&str, (&Entity, Vec<&Interface>)> = model
        .entities
        .iter()
        .map(|entity| (entity.name.as_str(), (entity, Vec::new())))
        .collect();
    for interface in &model.interfaces {
        let owner = &model.entities[interface.entity.ix()];
        if let Some((_, interfaces)) = found.get_mut(owner.name.as_str()) {
            interfaces.push(interface);
        }
    }
    found
}

fn same_entity(old: &Entity, new: &Entity) -> bool {
    old.kind == new.kind
        && old.engine == new.engine
        && old.run == new.run
        && old.max_flows == new.max_flows
}

fn same_interfaces(
    old_model: &Model,
    new_model: &Model,
    old: &[&Interface],
    new: &[&Interface],
) -> bool {
    let same_place = |old: &Interface, new: &Interface| match (&old.attachment, &new.attachment) {
        (Attachment::Subnet { subnet: old, .. }, Attachment::Subnet { subnet: new, .. }) => {
            let (old, new) = (&old_model.subnets[old.ix()], &new_model.subnets[new.ix()]);
            old.id == new.id && old.cidrs == new.cidrs
        }
        (Attachment::External(old), Attachment::External(new)) => old == new,
        _ => false,
    };
    old.len() == new.len()
        && old.iter().zip(new).all(|(old, new)| {
            old.id == new.id
                && old.addresses == new.addresses
                && old.mtu == new.mtu
                && old.source_dest_check == new.source_dest_check
                && old.tracking == new.tracking
                && same_place(old, new)
        })
}
