//! What sgwall promises its users, tried with the real program, real
//! namespaces and real packets: `sgwall` is started as users start it, its
//! events are read from standard output, and clients and servers run inside
//! the entities.
//!
//! The tests run as root. Where that can't be had they fail, unless
//! `SGWALL_TESTS_WITHOUT_NAMESPACES=1` says that they need not run. Some need
//! programs of other people (PostgreSQL, iperf3, ping, curl, ip); a missing
//! one is a failure that names its Debian package.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests report by printing and fail by panicking"
)]

#[path = "scenarios/large.rs"]
mod large;
#[path = "scenarios/lifecycle.rs"]
mod lifecycle;
#[path = "scenarios/net.rs"]
mod net;
#[path = "scenarios/ordinary_user.rs"]
mod ordinary_user;
#[path = "scenarios/pairs.rs"]
mod pairs;
#[path = "scenarios/postgres.rs"]
mod postgres;
#[path = "scenarios/reload.rs"]
mod reload;
#[path = "scenarios/robustness.rs"]
mod robustness;
#[path = "scenarios/support.rs"]
mod support;
#[path = "scenarios/three_tier.rs"]
mod three_tier;
#[path = "scenarios/unproven.rs"]
mod unproven;
