//! A network ACL in one direction: the first entry that covers decides
//! (aws-semantics §6).
//!
//! Entries are walked in order. There are few (AWS admits 20, at most 40), and
//! the data path asks once for each flow and policy, not for each packet.

use std::net::IpAddr;

use crate::model::{ACL_DENY_REST, AclAction, AclEntry, Direction, NetworkAcl, Place, Traffic};

use super::matcher::{Query, covers};

/// An ACL's entries for one direction.
#[derive(Debug)]
pub struct AclTable {
    id: String,
    name: String,
    place: Place,
    direction: Direction,
    entries: Vec<AclEntry>,
    /// Whether the first entry of a family allows everything.
    allows_all: [bool; 2],
}

/// The entry that decides on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AclDecision<'a> {
    /// Whether it passes.
    pub allowed: bool,
    /// The entry; `None` for the `*` at the end.
    pub entry: Option<&'a AclEntry>,
}

impl AclTable {
    pub(super) fn new(acl: &NetworkAcl, direction: Direction) -> Self {
        let entries = acl.entries(direction).to_vec();
        let allows_all = [true, false].map(|v4| {
            entries
                .iter()
                .find(|entry| entry.cidr.addr().is_ipv4() == v4)
                .is_some_and(|first| {
                    first.action == AclAction::Allow
                        && first.traffic == Traffic::All
                        && first.cidr.prefix_len() == 0
                })
        });
        Self {
            id: acl.id.clone(),
            name: acl.name.clone(),
            place: acl.place.clone(),
            direction,
            entries,
            allows_all,
        }
    }

    /// Whether every packet of that family passes.
    #[inline]
    pub fn allows_all(&self, v4: bool) -> bool {
        self.allows_all[usize::from(!v4)]
    }

    /// The entry that decides on a packet whose far side is `peer`.
    pub fn decide(&self, peer: IpAddr, query: Query) -> AclDecision<'_> {
        let entry = self
            .entries
            .iter()
            .find(|entry| entry.cidr.contains(&peer) && covers(entry.traffic, query));
        AclDecision {
            allowed: entry.is_some_and(|entry| entry.action == AclAction::Allow),
            entry,
        }
    }

    /// `acl-…`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its name in the lab file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is declared.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Which way the packets go that it judges, seen from the subnet.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The number under which AWS stores the `*` entry of a family.
    pub fn rest_number(v4: bool) -> u16 {
        ACL_DENY_REST + u16::from(!v4)
    }
}
