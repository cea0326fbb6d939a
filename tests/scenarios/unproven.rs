//! Interfaces that don't enforce are found out and named.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use sgwall::config;
use sgwall::engine::{Appliance, Options};
use sgwall::lab::{self, Session};
use sgwall::link::{Envelope, Link, Offload, Offloads, Readiness, Received, TunLink};
use sgwall::model::Model;
use sgwall::observe::{Check, Proof};
use sgwall::packet::Shape;

use crate::net::checksum;
use crate::privilege::namespaces;
use crate::support::{Lab, Start, at, bound, leftovers, need, unique_name, wait_until, words};

/// Where the proof's packets go; see `sgwall::engine::proof`.
const ALLOWED: u16 = 61_001;
const FORBIDDEN: u16 = 61_002;

/// What is wrong with a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sabotage {
    /// Nothing.
    None,
    /// What the engine sends gets lost.
    LosesIn,
    /// Beside an allowed packet a forbidden one gets in, past the engine.
    LeaksIn,
    /// What the namespace sends gets lost.
    LosesOut,
    /// Forbidden packets leave under an allowed port: no rule meets them.
    LeaksOut,
    /// Forbidden packets vanish before any rule has met them.
    HidesOut,
    /// Nothing can be bound to the interface's address.
    CannotBind,
}

#[derive(Debug)]
struct Saboteur {
    link: Arc<TunLink>,
    sabotage: Sabotage,
}

impl Link for Saboteur {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        loop {
            let received = self.link.recv(buffer)?;
            let frame = received.frame(buffer);
            let port = udp_port(frame);
            match (self.sabotage, port) {
                (Sabotage::LosesOut, Some(ALLOWED)) | (Sabotage::HidesOut, Some(FORBIDDEN)) => {}
                (Sabotage::LeaksOut, Some(FORBIDDEN)) => {
                    set_udp_port(frame, ALLOWED);
                    return Ok(received);
                }
                _ => return Ok(received),
            }
        }
    }

    fn send(&self, envelope: Envelope, packet: &[u8], shape: Shape) -> io::Result<()> {
        match self.sabotage {
            Sabotage::LosesIn => return Ok(()),
            Sabotage::LeaksIn if udp_port(packet) == Some(ALLOWED) => {
                let mut forged = packet.to_vec();
                set_udp_port(&mut forged, FORBIDDEN);
                self.link.send(envelope, &forged, shape)?;
            }
            _ => {}
        }
        self.link.send(envelope, packet, shape)
    }

    fn offloads(&self) -> Offloads {
        self.link.offloads()
    }

    fn readiness(&self) -> Readiness<'_> {
        self.link.readiness()
    }
}

#[test]
fn every_way_of_not_enforcing_is_found_out_and_named() {
    if !namespaces!() {
        return;
    }
    let sabotages = [
        ("sound-1", Sabotage::None, None),
        ("loses-in", Sabotage::LosesIn, Some(Check::AllowedIn)),
        ("leaks-in", Sabotage::LeaksIn, Some(Check::ForbiddenIn)),
        ("sound-2", Sabotage::None, None),
        ("loses-out", Sabotage::LosesOut, Some(Check::AllowedOut)),
        ("leaks-out", Sabotage::LeaksOut, Some(Check::ForbiddenOut)),
        ("hides-out", Sabotage::HidesOut, Some(Check::ForbiddenOut)),
        ("cannot-bind", Sabotage::CannotBind, None),
        ("sound-3", Sabotage::None, None),
    ];
    let names: Vec<&str> = sabotages.iter().map(|(name, ..)| *name).collect();
    let text = lab_of(&names);
    let model = config::load_str("lab.yaml", &text).unwrap().model;
    let name = unique_name();
    lab::prepare().unwrap();
    // Ports are changed in packets that have their checksums.
    let session = Session::start(&name).unwrap();
    let lab = lab::Lab::up_with(session, &model, Offload::Off).unwrap();
    let links = lab
        .links()
        .into_iter()
        .zip(&sabotages)
        .map(|(link, &(_, sabotage, _))| Arc::new(Saboteur { link, sabotage }) as Arc<dyn Link>)
        .collect();
    let appliance = start(&lab, &model, links, &sabotages);

    let unproven = appliance.unproven();
    println!("{unproven:#?}");
    let status = appliance.status();
    assert!(!status.enforcing);
    for (name, sabotage, check) in sabotages {
        let found = unproven.iter().find(|(unproven, _)| unproven == name);
        let why = found.map(|(_, why)| why.as_str());
        let shown = &status
            .interfaces
            .iter()
            .find(|it| it.name == name)
            .unwrap()
            .proof;
        match (sabotage, check) {
            (Sabotage::None, _) => {
                assert_eq!(why, None);
                assert_eq!(*shown, Proof::Proven);
            }
            (Sabotage::CannotBind, _) => {
                assert!(
                    why.is_some_and(|why| why.contains("opening a socket on")
                        && why.contains("no address for you")),
                    "{why:?}"
                );
            }
            (_, check) => {
                let check = check.unwrap().to_string();
                assert!(
                    why.is_some_and(|why| why.contains(&check)),
                    "{name}: {why:?}"
                );
                assert!(matches!(shown, Proof::Unproven { .. }), "{shown:?}");
            }
        }
    }
    drop(appliance);
    lab.down();
    assert!(bound(&name).is_empty());
}

#[test]
fn run_ends_with_3_where_interfaces_cannot_be_proven_unless_told_otherwise() {
    if !namespaces!() {
        return;
    }
    // The packets of the proof open flows. The table has too little room for all interfaces, so
    // the first is proven and the last is not.
    const ENTITIES: usize = 60;
    let text = lab_of(&names_of(ENTITIES));
    let mut start = Start::new(&text);
    start.arguments = vec!["--max-flows".into(), (2 * ENTITIES).to_string()];
    let mut lab = Lab::start(&start);
    let event = lab.event("unproven");
    let (proven, unproven) = (
        event["proven"].as_u64().unwrap(),
        event["unproven"].as_array().unwrap(),
    );
    assert!(proven > 0 && !unproven.is_empty(), "{event}");
    assert_eq!(usize::try_from(proven).unwrap() + unproven.len(), ENTITIES);
    for one in unproven {
        let why = one["why"].as_str().unwrap();
        assert!(
            why.contains("UNENFORCED") && why.contains("the flow table was full"),
            "{one}"
        );
    }
    assert_eq!(
        lab.process.wait().code(),
        Some(3),
        "{}",
        lab.process.stderr.text()
    );
    assert_eq!(leftovers(&lab.name, &lab.state), Vec::<String>::new());

    start.arguments.push("--allow-unproven".into());
    lab.start_again(&start);
    let event = lab.event("unproven");
    let unproven = event["unproven"][0]["interface"]
        .as_str()
        .unwrap()
        .to_owned();
    wait_until("it answers", || {
        lab.sgwall("status").output().unwrap().status.code() != Some(3)
    });
    let shown = lab.sgwall("status").output().unwrap();
    assert_eq!(shown.status.code(), Some(1), "{}", words(&shown));
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        text.contains("NOT ENFORCING") && text.contains("UNENFORCED"),
        "{text}"
    );
    let status = lab.status();
    assert_eq!(status["enforcing"], false);
    assert_eq!(at(&status, &unproven)["proof"]["state"], "unproven");
    assert_eq!(at(&status, "host-0")["proof"]["state"], "proven");
    lab.down();
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_named_wherever_it_is_met() {
    if !namespaces!() {
        return;
    }
    need("prlimit", "util-linux");
    let text = lab_of(&["a", "b", "c"]);
    // At a limit of 20 the proof reaches it; with one more descriptor each interface is proven
    // separately.
    for limit in (12..=20).step_by(2) {
        let mut start = Start::new(&text);
        start.json = false;
        start.through = vec!["prlimit".to_owned(), format!("--nofile={limit}:{limit}")];
        let mut lab = Lab::start(&start);
        assert_eq!(lab.process.wait().code(), Some(3), "{limit}");
        let named = |line: &str| line.contains("ulimit -n");
        lab.process.stderr.wait("the limit's remedy", named);
    }
}

/// The proof opens two sockets for each address. Each interface has ten addresses, and the limit
/// on open files is between what the lab itself needs (about two for each entity) and what all
/// sockets together would need.
#[test]
fn all_interfaces_are_proven_whatever_the_limit_on_open_files_that_the_lab_came_up_with() {
    if !namespaces!() {
        return;
    }
    need("prlimit", "util-linux");
    const ENTITIES: usize = 60;
    let mut text = lab_of::<&str>(&[]);
    for number in 0..ENTITIES {
        let addresses: Vec<String> = (0..5)
            .flat_map(|i| {
                let host = 4 + number * 5 + i;
                [
                    format!("10.6.{}.{}", host / 250, host % 250 + 4),
                    format!("'fd00:6::{host:x}'"),
                ]
            })
            .collect();
        let addresses = addresses.join(", ");
        text += &format!(
            "  host-{number}: {{ kind: ec2, subnet: all, security_groups: [open], \
             addresses: [{addresses}] }}\n"
        );
    }
    let text = text.replace("10.6.0.0/24", "10.6.0.0/22");
    let mut start = Start::new(&text);
    start.through = vec!["prlimit".into(), format!("--nofile={0}:{0}", ENTITIES * 4)];
    let lab = Lab::start(&start);
    assert_eq!(lab.event("enforcing")["proven"], ENTITIES);
    lab.down();
}

fn names_of(entities: usize) -> Vec<String> {
    (0..entities)
        .map(|number| format!("host-{number}"))
        .collect()
}

fn start(
    lab: &lab::Lab,
    model: &Model,
    links: Vec<Arc<dyn Link>>,
    sabotages: &[(&str, Sabotage, Option<Check>)],
) -> Appliance {
    let options = Options::default();
    Appliance::start(model.clone(), links, options, |at, address| {
        if sabotages[at.ix()].1 == Sabotage::CannotBind {
            return Err(io::Error::other("no address for you"));
        }
        let entity = model.interfaces[at.ix()].entity;
        let bind = || UdpSocket::bind(address);
        lab.namespace(entity).run(bind).map_err(io::Error::other)?
    })
    .unwrap()
}

/// Entities that let everything in and out, in one subnet.
fn lab_of<T: std::fmt::Display>(names: &[T]) -> String {
    let entities: String = names
        .iter()
        .map(|name| format!("  {name}: {{ kind: ec2, subnet: all, security_groups: [open] }}\n"))
        .collect();
    format!(
        "
vpc: {{ cidr: [10.6.0.0/16, 'fd00:6::/56'] }}
subnets: {{ all: {{ cidr: [10.6.0.0/24, 'fd00:6::/64'] }} }}
security_groups: {{ open: {{ ingress: [ {{ protocol: all, from: 0.0.0.0/0 }} ] }} }}
entities:
{entities}"
    )
}

/// The destination port of a UDP packet over either family.
fn udp_port(packet: &[u8]) -> Option<u16> {
    let start = udp_start(packet)?;
    let port = packet.get(start + 2..start + 4)?;
    Some(u16::from_be_bytes([port[0], port[1]]))
}

fn udp_start(packet: &[u8]) -> Option<usize> {
    match (packet.first()? >> 4, packet.get(9)?, packet.get(6)?) {
        (4, 17, _) => Some(20),
        (6, _, 17) => Some(40),
        _ => None,
    }
}

fn set_udp_port(packet: &mut [u8], port: u16) {
    let start = udp_start(packet).unwrap();
    packet[start + 2..start + 4].copy_from_slice(&port.to_be_bytes());
    packet[start + 6..start + 8].fill(0);
    // The pseudo-header: addresses, protocol and length (RFC 768, RFC 8200).
    let addresses = if start == 20 { 12..20 } else { 8..40 };
    let mut summed = packet[addresses].to_vec();
    let length = u16::try_from(packet.len() - start).unwrap();
    summed.extend([0, 17]);
    summed.extend(length.to_be_bytes());
    summed.extend(&packet[start..]);
    let sum = checksum(&summed);
    packet[start + 6..start + 8].copy_from_slice(&sum.to_be_bytes());
}
