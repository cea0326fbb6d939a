//! What is known about the appliance while it runs: counters, what was proven
//! of each interface, the status that sums both up, and samples of what was dropped.
//! Formatting is for the floors above.

mod counters;
pub mod drops;
mod proof;
mod status;

pub use counters::{Counters, Tally, Traffic, Wire};
pub use proof::{Check, Proof};
pub use status::{
    FlowStatus, InterfaceStatus, MemberAddress, MemberStatus, PolicyStatus, RecentDrop, Status,
    is_ready,
};
