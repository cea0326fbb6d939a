//! What idle flows meet, from half a minute to days, on a clock of its own. The
//! rules here admit what opens a flow, in one direction; who still gets
//! through in the other does so by the flow.

use std::net::IpAddr;
use std::time::Duration;

use sgwall::packet::Transport;
use sgwall::policy::DropReason;

use crate::clock::{ACK, Clock, End, FIN, RST, SYN};

/// `a` may send to `b` whatever it likes; `b` may send replies only, and `a`
/// gets nothing else.
const ONE_WAY: &str = "
vpc: { cidr: [10.25.0.0/16] }
subnets: { all: { cidr: [10.25.1.0/24] } }
security_groups:
  a: { egress: [ { protocol: all, to: 10.25.0.0/16, description: Out of a } ] }
  b: { ingress: [ { protocol: all, from: 10.25.0.0/16, description: Into b } ], egress: [] }
entities:
  a: { kind: ec2, subnet: all, addresses: [10.25.1.10], security_groups: [a], tracking: { } }
  b: { kind: ec2, subnet: all, addresses: [10.25.1.11], security_groups: [b], tracking: { } }
";

const MILLISECOND: Duration = Duration::from_millis(1);
/// The longest that AWS lets an established connection idle, and its default.
const FIVE_DAYS: Duration = Duration::from_secs(432_000);

fn a(port: u16) -> End {
    ("a", IpAddr::from([10, 25, 1, 10]), port)
}

fn b(port: u16) -> End {
    ("b", IpAddr::from([10, 25, 1, 11]), port)
}

fn with_tracking(tracking: &str) -> String {
    ONE_WAY.replace("tracking: { }", &format!("tracking: {{ {tracking} }}"))
}

fn without(text: &str, rules: &[&str]) -> String {
    let mut text = text.to_owned();
    for rule in rules {
        let end = text.find(rule).unwrap() + rule.len() + " }".len();
        let start = text[..end].rfind("{ protocol").unwrap();
        text.replace_range(start..end, "");
    }
    text
}

fn refused(reason: DropReason, at: &str) -> Result<String, (DropReason, String)> {
    Err((reason, at.to_owned()))
}

#[test]
fn a_tcp_session_idle_past_its_timeout_is_rejected_unless_rules_allow() {
    let text = with_tracking("tcp_established: 60");
    let minute = Duration::from_secs(60);
    let revoked = without(&text, &["Into b"]);
    let mut clock = Clock::new(&text);
    clock.connect(a(40_000), b(5432));
    clock.save(&revoked);
    // As long as something is said within the minute, it goes on.
    for _ in 0..5 {
        clock.wait(minute - MILLISECOND);
        assert_eq!(clock.tcp(a(40_000), b(5432), ACK), Ok("b".into()));
        assert_eq!(clock.tcp(b(5432), a(40_000), ACK), Ok("a".into()));
    }
    clock.wait(minute);
    let rejected = refused(DropReason::NoIngressRule, "b");
    assert_eq!(clock.tcp(a(40_000), b(5432), ACK), rejected);
    let rejected = refused(DropReason::NoEgressRule, "b");
    assert_eq!(clock.tcp(b(5432), a(40_000), ACK), rejected);

    // The rules that admit it take it up again, in the middle of the stream.
    clock.save(&text);
    assert_eq!(clock.tcp(a(40_000), b(5432), ACK), Ok("b".into()));
    assert_eq!(clock.tcp(b(5432), a(40_000), ACK), Ok("a".into()));
}

#[test]
fn a_half_closed_session_gets_an_answer_that_takes_days() {
    let mut clock = Clock::new(ONE_WAY);
    clock.connect(a(40_000), b(80));
    assert_eq!(clock.tcp(a(40_000), b(80), FIN), Ok("b".into()));
    assert_eq!(clock.tcp(b(80), a(40_000), ACK), Ok("a".into()));
    for pause in [Duration::from_secs(70), FIVE_DAYS - MILLISECOND] {
        clock.wait(pause);
        assert_eq!(clock.tcp(b(80), a(40_000), ACK), Ok("a".into()));
    }
    assert_eq!(clock.tcp(b(80), a(40_000), FIN), Ok("a".into()));
    assert_eq!(clock.tcp(a(40_000), b(80), ACK), Ok("b".into()));
    let closed = refused(DropReason::ConnectionClosed, "b");
    assert_eq!(clock.tcp(b(80), a(40_000), ACK), closed);
}

#[test]
fn a_forged_reset_neither_cuts_a_session_nor_opens_the_way_for_a_syn() {
    let mut clock = Clock::new(ONE_WAY);
    clock.connect(a(40_000), b(80));
    clock.save(&without(ONE_WAY, &["Into b"]));
    for _ in 0..3 {
        assert_eq!(clock.tcp(b(80), a(40_000), RST), Ok("a".into()));
        let begun = clock.tcp(a(40_000), b(80), SYN);
        assert_eq!(begun, refused(DropReason::NoIngressRule, "b"));
        clock.wait(Duration::from_secs(59));
        assert_eq!(clock.tcp(b(80), a(40_000), ACK), Ok("a".into()));
        assert_eq!(clock.tcp(a(40_000), b(80), ACK), Ok("b".into()));
        clock.wait(FIVE_DAYS - MILLISECOND);
    }
}

#[test]
fn without_keep_alives_a_database_pool_dies_after_350_seconds_on_nitro_v6() {
    let v6 = ONE_WAY.replace("kind: ec2,", "kind: ec2, nitro_v6: true,");
    for (text, idle) in [
        (v6.as_str(), Duration::from_secs(350)),
        (ONE_WAY, FIVE_DAYS),
    ] {
        let mut clock = Clock::new(text);
        clock.connect(a(40_000), b(5432));
        clock.wait(idle - MILLISECOND);
        assert_eq!(clock.tcp(b(5432), a(40_000), ACK), Ok("a".into()));
        clock.wait(idle);
        // The server's next word is lost: to the rules it is a request.
        let lost = refused(DropReason::NoEgressRule, "b");
        assert_eq!(clock.tcp(b(5432), a(40_000), ACK), lost);
    }
}

#[test]
fn connections_that_nobody_closed_use_an_allowance_up_for_five_days_unless_their_timeout_is_lower()
{
    for (timeout, idle) in [
        ("", FIVE_DAYS),
        (", tcp_established: 60", Duration::from_secs(60)),
    ] {
        let text = ONE_WAY.replacen(
            "tracking: { }",
            &format!("tracking: {{ max_flows: 3{timeout} }}"),
            1,
        );
        let mut clock = Clock::new(&text);
        for port in 0..3 {
            clock.connect(a(40_000 + port), b(5432));
        }
        // Both hosts are long gone without a word.
        let full = refused(DropReason::ConntrackAllowance, "a");
        assert_eq!(clock.udp(a(1000), b(53)), full);
        clock.wait(idle - MILLISECOND);
        assert_eq!(clock.udp(a(1000), b(53)), full);
        clock.wait(MILLISECOND);
        assert_eq!(clock.udp(a(1000), b(53)), Ok("b".into()));
    }
}

#[test]
fn a_udp_reply_slower_than_30_seconds_needs_a_rule_of_its_own() {
    let half_a_minute = Duration::from_secs(30);
    let mut clock = Clock::new(ONE_WAY);
    assert_eq!(clock.udp(a(1000), b(53)), Ok("b".into()));
    clock.wait(half_a_minute - MILLISECOND);
    assert_eq!(clock.udp(b(53), a(1000)), Ok("a".into()));

    assert_eq!(clock.udp(a(1001), b(53)), Ok("b".into()));
    clock.wait(half_a_minute);
    let late = clock.udp(b(53), a(1001));
    assert_eq!(late, refused(DropReason::NoEgressRule, "b"));
    // At most a minute may be asked for.
    let mut clock = Clock::new(&with_tracking("udp_timeout: 60"));
    assert_eq!(clock.udp(a(1001), b(53)), Ok("b".into()));
    clock.wait(Duration::from_secs(60) - MILLISECOND);
    assert_eq!(clock.udp(b(53), a(1001)), Ok("a".into()));
    // With rules for it the reply is a request.
    let both = ONE_WAY
        .replace(
            "egress: []",
            "egress: [ { protocol: udp, ports: 1001, to: 10.25.1.10/32 } ]",
        )
        .replace(
            "  a: { egress",
            "  a: { ingress: [ { protocol: udp, ports: 1001, from: sg/b } ], egress",
        );
    let mut clock = Clock::new(&both);
    assert_eq!(clock.udp(a(1001), b(53)), Ok("b".into()));
    clock.wait(half_a_minute);
    assert_eq!(clock.udp(b(53), a(1001)), Ok("a".into()));
}

#[test]
fn one_exchange_of_udp_lives_30_seconds_and_two_make_a_stream_of_180() {
    for (rounds, idle) in [(1, 30), (2, 180)] {
        let idle = Duration::from_secs(idle);
        for (after, passes) in [(idle - MILLISECOND, true), (idle, false)] {
            let mut clock = Clock::new(ONE_WAY);
            for _ in 0..rounds {
                assert_eq!(clock.udp(a(1000), b(53)), Ok("b".into()));
                clock.wait(MILLISECOND);
                assert_eq!(clock.udp(b(53), a(1000)), Ok("a".into()));
            }
            clock.wait(after);
            let seen = clock.udp(b(53), a(1000)).is_ok();
            assert_eq!(seen, passes, "{rounds} rounds, {after:?} later");
        }
    }
}

#[test]
fn gre_and_esp_are_let_in_for_600_seconds_after_the_same_was_sent_there() {
    const GRE: u8 = 47;
    const ESP: u8 = 50;
    // Nothing is let into `a` by any rule.
    let text = ONE_WAY.replace("egress: []", "");
    let idle = Duration::from_secs(600);
    for protocol in [GRE, ESP] {
        let mut clock = Clock::new(&text);
        let send = |clock: &Clock, from, to| clock.send(from, to, protocol, Transport::Other);
        let unasked = refused(DropReason::NoIngressRule, "a");
        assert_eq!(send(&clock, b(0), a(0)), unasked);
        assert_eq!(send(&clock, a(0), b(0)), Ok("b".into()));
        clock.wait(idle - MILLISECOND);
        assert_eq!(send(&clock, b(0), a(0)), Ok("a".into()));
        // Only that protocol from that host.
        let other = GRE + ESP - protocol;
        assert_eq!(clock.send(b(0), a(0), other, Transport::Other), unasked);
        assert_eq!(clock.udp(b(53), a(53)), unasked);
        clock.wait(idle);
        assert_eq!(send(&clock, b(0), a(0)), unasked);
    }
}
