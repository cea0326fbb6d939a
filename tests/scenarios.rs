//! What sgwall promises its users, tried with the real program, real
//! namespaces and real packets: `sgwall` is started as users start it, its
//! events are read from standard output, and clients and servers run inside
//! the entities.
//!
//! They run as root, and as an ordinary user who may open `/dev/net/tun`: each
//! test in a user namespace then. Where neither is to be had they fail, unless
//! `SGWALL_TESTS_WITHOUT_NAMESPACES=1` says that they need not run. They need
//! no program that a bare Debian lacks; those that do are in `programs.rs`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests report by printing and fail by panicking"
)]

#[path = "scenarios/allowance.rs"]
mod allowance;
#[path = "scenarios/appliance.rs"]
mod appliance;
#[path = "scenarios/bulk.rs"]
mod bulk;
#[path = "scenarios/clock.rs"]
mod clock;
#[path = "scenarios/confine.rs"]
mod confine;
#[path = "scenarios/drops.rs"]
mod drops;
#[path = "scenarios/fragments.rs"]
mod fragments;
#[path = "scenarios/idle.rs"]
mod idle;
#[path = "scenarios/large.rs"]
mod large;
#[path = "scenarios/lifecycle.rs"]
mod lifecycle;
#[path = "scenarios/mtu.rs"]
mod mtu;
#[path = "scenarios/net.rs"]
mod net;
#[path = "sidecar/netlink.rs"]
#[allow(dead_code, reason = "each test target uses a part")]
mod netlink;
#[path = "scenarios/offload.rs"]
mod offload;
#[path = "scenarios/offload_tunnels.rs"]
mod offload_tunnels;
#[path = "scenarios/offload_udp.rs"]
mod offload_udp;
#[path = "scenarios/ordinary_user.rs"]
mod ordinary_user;
#[path = "scenarios/pairs.rs"]
mod pairs;
#[path = "scenarios/ping.rs"]
mod ping;
#[path = "scenarios/privilege.rs"]
mod privilege;
#[path = "scenarios/probe.rs"]
mod probe;
#[path = "scenarios/reload.rs"]
mod reload;
#[path = "scenarios/robustness.rs"]
mod robustness;
#[path = "scenarios/routes.rs"]
mod routes;
#[path = "scenarios/support.rs"]
mod support;
#[path = "scenarios/talk.rs"]
mod talk;
#[path = "scenarios/three_tier.rs"]
mod three_tier;
#[path = "scenarios/traceroute.rs"]
mod traceroute;
#[path = "scenarios/tracking.rs"]
mod tracking;
#[path = "scenarios/traps.rs"]
mod traps;
#[path = "scenarios/unproven.rs"]
mod unproven;
#[path = "scenarios/wire.rs"]
mod wire;
