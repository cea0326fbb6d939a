//! Network ACLs: stateless, ordered, judged where traffic crosses a subnet's
//! boundary (aws-semantics §6).

use super::groups::{Seen, covers_traffic};
use crate::model::{AclAction, Attachment, Direction, InterfaceIx, Model};

/// Whether the network ACL of the subnet of `at` lets the packet pass: into
/// the subnet (`Ingress`) or out of it (`Egress`).
pub(super) fn allows(model: &Model, at: InterfaceIx, direction: Direction, seen: Seen) -> bool {
    let Attachment::Subnet { subnet, .. } = model.interfaces[at.ix()].attachment else {
        // Hosts outside the VPC are in no subnet.
        return true;
    };
    let acl = &model.network_acls[model.subnets[subnet.ix()].network_acl.ix()];
    // The lowest number that covers the packet decides. An entry covers its
    // own family only, since no block holds addresses of the other.
    let decisive = acl
        .entries(direction)
        .iter()
        .filter(|entry| {
            covers_traffic(entry.traffic, seen) && entry.cidr.contains(&seen.peer(direction))
        })
        .min_by_key(|entry| entry.number);
    // The `*` entries at the end deny the rest.
    decisive.is_some_and(|entry| entry.action == AclAction::Allow)
}
