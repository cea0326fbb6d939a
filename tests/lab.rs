//! Real namespaces, real devices: what the lab floor promises.
//!
//! Runs as root, and as an ordinary user who may open `/dev/net/tun`. Where
//! neither is to be had it fails, unless `SGWALL_TESTS_WITHOUT_NAMESPACES=1`.
//!
//! It has a `main` of its own because `prepare` must run before any thread;
//! and it starts itself again, in a role, where a test needs a process that
//! can be killed or belongs to another user.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests report by printing and fail by panicking"
)]

use std::process::ExitCode;

#[path = "lab/commands.rs"]
mod commands;
#[path = "common/lab.rs"]
mod common;
#[path = "lab/floor.rs"]
mod floor;
#[path = "common/harness.rs"]
mod harness;
#[path = "lab/offload.rs"]
mod offload;
#[path = "lab/roles.rs"]
mod roles;
#[path = "lab/support.rs"]
mod support;

const TESTS: &[(&str, fn())] = harness::tests![
    floor::each_entity_has_its_namespace_device_and_routes,
    floor::a_frame_from_a_socket_reaches_the_link,
    floor::a_packet_on_the_link_reaches_a_socket,
    offload::a_burst_crosses_a_link_as_one_frame,
    offload::without_offload_packets_cross_one_by_one,
    offload::frames_made_to_be_refused_take_no_offload_from_their_receiver,
    floor::an_idle_lab_sends_nothing,
    floor::replies_leave_by_the_interface_that_has_their_source,
    floor::down_leaves_nothing,
    floor::down_ends_the_processes_inside_and_no_others,
    floor::a_failure_half_way_leaves_nothing,
    floor::a_panic_leaves_nothing,
    floor::a_lab_has_one_owner,
    floor::two_labs_whose_names_run_together_do_not_mix,
    floor::a_panic_in_a_namespace_is_an_error,
    floor::two_hundred_entities_come_up_quickly,
    commands::what_a_killed_lab_left_is_cleaned_by_the_next,
    commands::exec_runs_a_command_inside,
    commands::exec_says_what_is_wrong,
    commands::run_commands_are_heard_and_end_with_the_lab,
    commands::an_ordinary_user_has_labs_too,
];

fn main() -> ExitCode {
    if let Some(code) = roles::play() {
        return code;
    }
    harness::run("tests/lab.rs", TESTS)
}
