//! What is known about the appliance while it runs: counters, what was proven
//! of each interface, and the status that sums both up. Formatting is for the
//! floors above.

mod counters;
mod proof;
mod status;

pub use counters::{Counters, Tally, Traffic, Wire};
pub use proof::{Check, Proof};
pub use status::{FlowStatus, InterfaceStatus, PolicyStatus, Status};
