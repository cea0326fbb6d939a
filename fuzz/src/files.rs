//! Bytes as files.

use std::net::IpAddr;

use sgwall::cli::replay::script::{self, What};
use sgwall::config::{self, Diagnostics, Loaded};
use sgwall::conntrack::Millis;
use sgwall::datapath::{Datapath, Fate, Question, Silent, explain};
use sgwall::model::{InterfaceIx, Model};
use sgwall::packet::{Shape, Transport};
use sgwall::policy::Policy;

use super::wire::{self, Header, Ports};
use super::world::MODELS;

/// Most interfaces of a lab that packets are sent from.
const SENDERS: usize = 6;

/// A lab file: an answer, never a panic; and what is valid works.
pub fn lab_files(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match config::load_str("fuzz.yaml", text) {
        Ok(Loaded {
            model, warnings, ..
        }) => {
            for warning in &warnings {
                warning.render(true);
            }
            works(&model);
        }
        Err(found) => refused(&found),
    }
}

/// A list of packets, for a lab with known interfaces.
pub fn packets_txt(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let load = |file: &str| match file {
        "narrow.yaml" => Ok(MODELS[1].clone()),
        "other.yaml" => Ok(MODELS[2].clone()),
        _ => config::load_str(file, "vpc: {}").map(|loaded| loaded.model),
    };
    let events = match script::parse("packets.txt", text, &MODELS[0], load) {
        Ok(events) => events,
        Err(found) => return refused(&found),
    };
    let lines = u32::try_from(text.lines().count()).unwrap_or(u32::MAX);
    for pair in events.windows(2) {
        assert!(pair[0].at <= pair[1].at);
        assert!(pair[0].line < pair[1].line);
    }
    for event in &events {
        assert!((1..=lines).contains(&event.line));
        if let What::Packet { from, .. } = &event.what {
            assert!(MODELS[0].interfaces.iter().any(|known| *known.id == **from));
        }
    }
}

/// What a refusal owes to whoever reads it.
fn refused(found: &Diagnostics) {
    assert!(found.errors() > 0);
    for one in found {
        assert!(one.help.is_some(), "{one:?}");
    }
    let text = found.render(false);
    assert!(!text.contains(['\u{1b}', '\u{202e}', '\0']), "{text:?}");
    found.render(true);
    assert!(found.to_json().is_array());
}

/// A valid lab: it compiles, packets from everybody to everybody are judged,
/// and the questions that can be asked are answered.
fn works(model: &Model) {
    let policy = Policy::compile(model, None);
    let policy = Policy::compile(model, Some(&policy));
    assert_eq!(policy.interfaces().count(), model.interfaces.len());
    assert!(model.same_topology(model).is_ok());
    let addresses: Vec<(InterfaceIx, IpAddr)> = model
        .interfaces()
        .filter_map(|(at, interface)| Some((at, interface.addresses.first()?.private)))
        .take(SENDERS)
        .collect();
    for &(from, source) in &addresses {
        for &(_, destination) in &addresses {
            if source.is_ipv4() == destination.is_ipv4() {
                judged(&policy, from, source, destination);
            }
        }
    }
}

/// One packet: what `explain` says of it is what becomes of it.
fn judged(policy: &Policy, from: InterfaceIx, source: IpAddr, destination: IpAddr) {
    let ports = Ports {
        source: 4000,
        destination: 53,
    };
    let header = Header {
        source,
        destination,
        protocol: 17,
        id: 0,
        offset: 0,
        more: false,
        dont_fragment: true,
        extension: false,
    };
    let body = wire::udp(&header, ports, b"?");
    let mut frame = wire::ip(&header, &body).expect("one family, and short");
    let datapath = Datapath::new(16);
    let verdict = datapath.judge(
        policy,
        from,
        &mut frame,
        Shape::Whole,
        Millis(0),
        &mut Silent,
    );
    let question = Question {
        from,
        source,
        destination,
        protocol: 17,
        transport: Transport::Udp {
            source: ports.source,
            destination: ports.destination,
        },
    };
    let said = explain(policy, &question).expect("one family").request;
    let (at, reason) = match verdict.fate {
        Fate::Forward { to, .. } => (to, None),
        Fate::Drop { reason, at } => (at, Some(reason)),
        Fate::Hold { .. } => panic!("a whole packet waits for nothing"),
    };
    let at = policy.interface(at).expect("an interface that exists");
    if reason.is_none() && !at.has(destination) {
        // A next hop: what becomes of it there is another road.
        return;
    }
    assert_eq!((&said.to, said.reason), (&at.label, reason), "{said:?}");
}
