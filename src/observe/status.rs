//! The state of a running appliance as one value: what `sgwall status` gets
//! over the control socket and prints.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Proof;
use super::drops::DropReport;

/// A running appliance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Milliseconds since it started.
    pub uptime_ms: u64,
    /// Whether every interface was proven to enforce.
    pub enforcing: bool,
    /// Whether it can be relied on now; see [`is_ready`].
    pub ready: bool,
    /// Worker threads.
    pub workers: usize,
    /// The policy in force.
    pub policy: PolicyStatus,
    /// The flow table.
    pub flows: FlowStatus,
    /// Every interface.
    pub interfaces: Vec<InterfaceStatus>,
    /// The member names that a sidecar resolves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
    /// What was dropped last, the latest at the end, where drops are logged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent_drops: Vec<RecentDrop>,
}

/// A name that is a member of groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<MemberAddress>,
    /// The error of the latest lookup, if it failed.
    pub trouble: Option<String>,
}

/// An address of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAddress {
    /// The address.
    pub address: IpAddr,
    /// Milliseconds for which it still counts, unless another answer contains it.
    pub counts_for_ms: u64,
}

/// A drop, for the status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecentDrop {
    /// In words.
    pub text: String,
    /// The same, field by field: a [`DropReport`].
    #[serde(flatten)]
    pub report: serde_json::Value,
}

impl From<&DropReport> for RecentDrop {
    fn from(report: &DropReport) -> Self {
        Self {
            text: report.to_string(),
            report: serde_json::to_value(report).unwrap_or_default(),
        }
    }
}

/// Whether an appliance with these interfaces can be relied on: at least one enforces,
/// and nothing speaks against any: each was proven at the start, unless it is outside,
/// and no link has broken since.
pub fn is_ready(interfaces: &[InterfaceStatus]) -> bool {
    interfaces.iter().all(|it| it.proof.holds())
        && interfaces.iter().any(|it| it.proof == Proof::Proven)
}

/// The policy in force and what became of attempts to change it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Counts the policies since the start.
    pub generation: u64,
    /// Changes that were put in force since the start.
    pub reloads: u64,
    /// Changes that were refused since the start.
    pub refused: u64,
    /// Why the latest change was refused; `None` once one was put in force.
    pub last_refusal: Option<String>,
    /// The reason why a changed file is not read; `None` if all watched files were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unread: Option<String>,
}

/// How full the flow table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// Flows in it: those that are tracked, and untracked ones that are
    /// remembered.
    pub remembered: usize,
    /// Most it holds.
    pub capacity: usize,
}

/// One interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// `eni-…`.
    pub id: String,
    /// The entity, and the device where it has several.
    pub name: String,
    /// `ec2`, `rds`, `elb`, `ecs` or `external`.
    pub kind: String,
    /// Its own addresses.
    pub addresses: Vec<String>,
    /// Names of its security groups.
    pub security_groups: Vec<String>,
    /// Whether it was shown to enforce.
    pub proof: Proof,
    /// Packets delivered to it.
    pub packets_in: u64,
    /// Bytes delivered to it.
    pub bytes_in: u64,
    /// Packets from it that were delivered.
    pub packets_out: u64,
    /// Bytes from it that were delivered.
    pub bytes_out: u64,
    /// How many more flows its entity may track, on all its interfaces together;
    /// `None` where nothing limits that (aws-semantics §3.6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conntrack_allowance_available: Option<u32>,
    /// How many that are at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conntrack_allowance: Option<u32>,
    /// The number of flow table entries that the interface's entity has begun, at this and at
    /// other interfaces.
    #[serde(default)]
    pub flow_entries: usize,
    /// The number of entries that the entity may still begin, while no other entity does: an
    /// entity may hold as many as remain free.
    #[serde(default)]
    pub flow_entries_available: usize,
    /// Packets dropped at it, by reason.
    pub drops: BTreeMap<String, u64>,
}
