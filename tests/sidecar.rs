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

#[path = "sidecar/bypass.rs"]
mod bypass;
#[path = "sidecar/guard.rs"]
mod guard;
#[path = "common/harness.rs"]
mod harness;
#[path = "sidecar/killed.rs"]
mod killed;
#[path = "sidecar/life.rs"]
mod life;
#[path = "sidecar/names.rs"]
mod names;
#[path = "sidecar/netlink.rs"]
mod netlink;
#[path = "scenarios/support.rs"]
mod processes;
#[path = "sidecar/story.rs"]
mod story;
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
    story::only_whom_the_rules_name_reaches_the_workload_and_status_says_why,
    story::a_saved_rule_counts_within_a_second_and_an_open_session_goes_on,
    story::an_open_session_goes_on_after_the_sidecar_was_killed_and_started_again,
    story::what_is_sent_arrives_as_it_was,
    story::what_is_sent_through_a_tunnel_arrives_as_it_was,
    story::six_sidecars_on_one_bridge_enforce_each_for_itself,
    story::the_workload_keeps_its_name_address_and_mac,
    bypass::nothing_forbidden_leaves_a_guarded_workload_however_it_is_sent,
    bypass::nothing_forbidden_enters,
    bypass::an_interface_that_appears_beside_a_guarded_one_is_closed_and_taken_by_the_next_run,
    bypass::only_named_interfaces_are_guarded_and_the_others_are_told_of,
    life::nothing_passes_from_a_kill_until_the_next_run_enforces,
    life::a_sidecar_that_is_told_to_end_leaves_its_interface_closed_within_a_second,
    life::a_sidecar_that_is_asked_to_gives_the_interface_back,
    life::a_bridge_that_goes_down_and_up_changes_nothing,
    life::a_sidecar_whose_device_went_away_says_so_and_ends,
    life::a_workload_of_the_same_user_can_not_look_into_the_sidecar,
    names::a_name_is_whom_dns_and_hosts_say_and_nobody_once_it_is_gone,
    names::addresses_of_rotating_answers_stay_members,
    names::a_silent_resolver_makes_members_of_nobody_however_many_names_there_are,
    life::a_missing_privilege_is_named_with_its_flag_and_nothing_is_touched,
];

fn main() -> ExitCode {
    harness::run("tests/sidecar.rs", TESTS)
}
