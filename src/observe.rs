//! What is known about the appliance while it runs: counters, and what was
//! proven of each interface. Formatting is for the floors above.

mod counters;
mod proof;

pub use counters::{Counters, Tally, Traffic};
pub use proof::{Check, Proof};
