//! The sidecar on real packets: containers' namespaces on a bridge, without a container engine.
//!
//! Runs as root, and as an ordinary user who may open `/dev/net/tun`. Where
//! neither is to be had it fails, unless `SGWALL_TESTS_WITHOUT_NAMESPACES=1`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests report by printing and fail by panicking"
)]

use std::process::ExitCode;

#[path = "common/harness.rs"]
mod harness;
#[path = "sidecar/killed.rs"]
mod killed;
#[path = "sidecar/netlink.rs"]
mod netlink;
#[path = "sidecar/support.rs"]
mod support;
#[path = "sidecar/take.rs"]
mod take;

const TESTS: &[(&str, fn())] = harness::tests![
    take::a_taken_interface_is_as_it_was,
    take::an_interface_given_back_is_as_it_was,
    take::nothing_is_answered_while_an_interface_is_only_taken,
    take::only_frames_that_bear_the_secret_leave,
    take::a_socket_bound_to_the_raw_device_leaks_nothing,
    take::the_raw_device_has_no_address_of_its_own,
    take::sockets_that_listen_before_go_on,
    take::an_interface_that_appears_later_passes_nothing,
    take::interfaces_that_are_not_named_stay_open,
    take::what_cannot_be_taken_is_said,
    take::a_closed_namespace_passes_nothing_until_it_is_taken_and_given_back,
    take::other_tables_are_left_alone,
    killed::nothing_passes_at_any_moment_of_being_taken,
    killed::an_interface_is_taken_again_whenever_the_run_before_was_killed,
    killed::an_interface_is_given_back_whenever_the_run_before_was_killed,
    killed::giving_back_may_be_killed_too,
    killed::a_device_that_is_gone_is_forgotten,
];

fn main() -> ExitCode {
    harness::run("tests/sidecar.rs", TESTS)
}
