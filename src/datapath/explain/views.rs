//! Rules, ACL entries and routes as explanations show them.

use std::fmt;

use ipnet::IpNet;
use serde::{Serialize, Serializer};

use crate::model::{AclEntry, Direction, Place};
use crate::policy::{AclTable, CompiledRoute, CompiledRule, RouteIndex, Target};

/// A rule for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleView {
    /// `sgr-…`.
    pub id: String,
    /// Name of its group.
    pub group: String,
    /// `sg-…` of its group.
    pub group_id: String,
    /// Which way it guards.
    #[serde(serialize_with = "as_text")]
    pub direction: Direction,
    /// `tcp 5432`.
    pub traffic: String,
    /// The peer as the user wrote it.
    pub peer: String,
    /// The user's description.
    pub description: String,
    /// `file:line:column`.
    pub place: String,
    /// The file alone.
    pub file: String,
    /// The line alone, from 1; `None` for AWS's defaults.
    pub line: Option<u32>,
}

/// A rule that didn't cover.
#[derive(Debug, Clone, Serialize)]
pub struct NearMiss {
    /// The rule.
    pub rule: RuleView,
    /// Whether its peer covers the other side.
    pub peer_covers: bool,
    /// Whether it covers protocol and port.
    pub traffic_covers: bool,
}

/// An entry of a network ACL for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AclView {
    /// Name of the ACL.
    pub acl: String,
    /// `acl-…`.
    pub acl_id: String,
    /// Number of the entry; of the `*` at the end, the number under which AWS
    /// stores it.
    pub rule: u16,
    /// `allow` or `deny`.
    pub action: &'static str,
    /// `tcp 5432`.
    pub traffic: String,
    /// The other side.
    pub cidr: String,
    /// Which way it guards, seen from the subnet.
    #[serde(serialize_with = "as_text")]
    pub direction: Direction,
    /// `file:line:column`.
    pub place: String,
    /// The file alone.
    pub file: String,
    /// The line alone, from 1; `None` for AWS's defaults.
    pub line: Option<u32>,
}

/// A route for people and programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteView {
    /// Name of the route table.
    pub table: String,
    /// `rtb-…`.
    pub table_id: String,
    /// What it covers.
    pub destination: String,
    /// Where it leads, as the user wrote it.
    pub target: String,
    /// `file:line:column`.
    pub place: String,
    /// The file alone.
    pub file: String,
    /// The line alone, from 1; `None` for the routes that AWS adds.
    pub line: Option<u32>,
}

impl AclView {
    /// `entry` is `None` for the `*` at the end, of the family that `v4` says.
    pub(super) fn new(acl: &AclTable, entry: Option<&AclEntry>, v4: bool) -> Self {
        let (rule, action, traffic, cidr, place) = match entry {
            Some(entry) => (
                entry.number,
                entry.action.as_str(),
                entry.traffic.to_string(),
                entry.cidr,
                &entry.place,
            ),
            None => (
                AclTable::rest_number(v4),
                "deny",
                "all traffic".to_owned(),
                if v4 {
                    IpNet::V4(ipnet::Ipv4Net::default())
                } else {
                    IpNet::V6(ipnet::Ipv6Net::default())
                },
                acl.place(),
            ),
        };
        Self {
            acl: acl.name().to_owned(),
            acl_id: acl.id().to_owned(),
            rule,
            action,
            traffic,
            cidr: cidr.to_string(),
            direction: acl.direction(),
            place: place.to_string(),
            file: place.file.to_string(),
            line: line(place),
        }
    }
}

impl fmt::Display for AclView {
    /// `entry 100 of acl/data: allow tcp 5432 from 10.0.1.0/24`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = match self.rule {
            number if number > crate::model::MAX_ACL_RULE => "*".to_owned(),
            number => number.to_string(),
        };
        write!(
            f,
            "entry {number} of acl/{}: {} {} {} {}",
            self.acl,
            self.action,
            self.traffic,
            preposition(self.direction),
            self.cidr
        )
    }
}

impl RouteView {
    pub(super) fn new(table: &RouteIndex, route: &CompiledRoute) -> Self {
        Self {
            table: table.name().to_owned(),
            table_id: table.id().to_owned(),
            destination: route.destination.to_string(),
            target: route.target_text.clone(),
            place: route.place.to_string(),
            file: route.place.file.to_string(),
            // AWS adds the local routes, whoever declares the table.
            line: line(&route.place).filter(|_| route.target != Target::Local),
        }
    }
}

impl fmt::Display for RouteView {
    /// `0.0.0.0/0 via igw in rtb/main`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} via {} in rtb/{}",
            self.destination, self.target, self.table
        )
    }
}

impl fmt::Display for RuleView {
    /// `sgr-… of web: tcp 8080 from sg/lb`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {}: {} {} {}",
            self.id,
            self.group,
            self.traffic,
            preposition(self.direction),
            self.peer
        )
    }
}

impl From<CompiledRule<'_>> for RuleView {
    fn from(rule: CompiledRule<'_>) -> Self {
        let place = rule.place();
        Self {
            id: rule.id.to_string(),
            group: rule.group_name().to_owned(),
            group_id: rule.group_id().to_owned(),
            direction: rule.direction(),
            traffic: rule.traffic().to_string(),
            peer: rule.peer().to_owned(),
            description: rule.description().to_owned(),
            place: place.to_string(),
            file: place.file.to_string(),
            line: line(place),
        }
    }
}

fn as_text<S: Serializer>(direction: &Direction, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(direction.as_str())
}

pub(super) fn preposition(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => "to",
        Direction::Ingress => "from",
    }
}

fn line(place: &Place) -> Option<u32> {
    (!place.is_implied()).then_some(place.line)
}
