//! A lab of 200 entities.

use std::fmt::Write as _;
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::net::{self, SILENCE, Seen};
use crate::privilege::namespaces;
use crate::support::{Lab, Start, bound};

const ENTITIES: usize = 200;

#[test]
fn a_lab_of_200_entities_comes_up_is_proven_and_goes_down() {
    if !namespaces!() {
        return;
    }
    let text = lab_of(ENTITIES);
    let mut lab = Lab::start(&Start::new(&text));
    let event = lab.event("enforcing");
    assert_eq!(event["proven"], ENTITIES);
    assert_eq!(bound(&lab.name).len(), ENTITIES);
    let status = lab.status();
    assert_eq!(status["enforcing"], true);
    assert_eq!(status["interfaces"].as_array().unwrap().len(), ENTITIES);

    // From the first to the last, by the one port that is open.
    let last = "10.8.0.203".parse().unwrap();
    let patience = std::time::Duration::from_secs(20);
    let open = lab.inside("host-0", || net::tcp(last, 8080, patience));
    assert_eq!(open, Seen::Refused, "nobody listens, and packets pass");
    let closed = lab.inside("host-0", || net::tcp(last, 22, SILENCE));
    assert_eq!(closed, Seen::Silent);

    let began = Instant::now();
    lab.end(Signal::SIGTERM);
    println!(
        "{ENTITIES} entities: made {:.0} ms, proven {:.0} ms, down {:.0} ms",
        event["made_ms"].as_f64().unwrap(),
        event["proven_ms"].as_f64().unwrap(),
        began.elapsed().as_secs_f64() * 1e3
    );
}

fn lab_of(entities: usize) -> String {
    let mut text = "
vpc: { cidr: [10.8.0.0/16] }
subnets: { all: { cidr: [10.8.0.0/20] } }
security_groups:
  host: { ingress: [ { protocol: tcp, ports: 8080, from: sg/host } ] }
entities:
"
    .to_owned();
    for number in 0..entities {
        let _ = writeln!(
            text,
            "  host-{number}: {{ kind: ec2, subnet: all, security_groups: [host] }}"
        );
    }
    text
}
