//! The scenarios with the programs that people use: PostgreSQL, iperf3, ping,
//! curl, ip. A missing one is a failure that names its Debian package; cargo
//! builds these tests with `--features real-programs` only.
//!
//! Who may run them is as in `scenarios.rs`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests report by printing and fail by panicking"
)]

#[path = "scenarios/net.rs"]
mod net;
#[path = "programs/postgres.rs"]
mod postgres;
#[path = "scenarios/privilege.rs"]
mod privilege;
#[path = "programs/reload.rs"]
mod reload;
#[path = "scenarios/support.rs"]
mod support;
#[path = "programs/three_tier.rs"]
mod three_tier;
#[path = "programs/tracking.rs"]
mod tracking;
