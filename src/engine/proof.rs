//! The proof at start: before anything is called enforced, a forbidden and an
//! allowed packet go through each interface's real path, both ways, and what
//! arrives is compared with what should.
//!
//! The user's rules may forbid nothing, or allow nothing, at an interface; so
//! the proof runs under a policy of its own, in which each interface carries
//! one group that lets a single UDP port pass to and from a prover. The prover
//! is a memory link of the engine with an address outside the VPC. Everything
//! else is real: the namespace's sockets and routes, the device, the worker,
//! the data path, the counters. The user's policy takes over afterwards, with
//! an empty flow table; [`Engine::swap`](super::Engine::swap) returns once
//! every worker judges by it.
//!
//! On each path the forbidden packet goes first. Devices and workers keep the
//! order, so when the allowed packet has arrived and the forbidden one hasn't,
//! it was dropped; that it was dropped by the rules, its counter tells.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;

use crate::engine::{Engine, EngineError};
use crate::link::MemoryLink;
use crate::model::{
    AclIx, Address, Attachment, Direction, Entity, EntityIx, EntityKind, GroupIx, Interface,
    InterfaceIx, MAIN_ROUTE_TABLE, MAX_MTU, Model, NetworkAcl, Peer, Place, PortRange, Route,
    RouteTable, RouteTableIx, RouteTarget, RuleId, SecurityGroup, SecurityGroupRule, Tracking,
    Traffic, Via, protocol,
};
use crate::observe::{Check, Proof};
use crate::packet::{self, Transport};
use crate::policy::{DropReason, Policy};

/// The port that the proof's policy lets pass. Above Linux's ephemeral range,
/// so that no other socket of the namespace has it by chance.
const ALLOWED: u16 = 61_001;
/// A port that it doesn't.
const FORBIDDEN: u16 = 61_002;
/// The port that the prover sends from. Another than it receives at, or what
/// goes one way would pass as the answer to what came the other way.
const SOURCE: u16 = 61_003;
/// Number of addresses that are proven together, with two sockets each, unless one interface has
/// more. This stays within the file descriptors that a lab reserves beside those of its devices.
/// A decision.
const AT_A_TIME: usize = 192;
/// Time limit for probes that were sent together to arrive.
const PATIENCE: Duration = Duration::from_secs(3);
/// When probes are sent again. The kernel adds the route by which a new IPv6
/// address receives from a queue of its own, and on a busy machine the first
/// packets may come before it.
const AGAIN: Duration = Duration::from_millis(200);
/// Name of the prover's entity; no lab file can declare it.
const PROVER: &str = "(prover)";

/// The proof's policy and prover, ready to be handed to an [`Engine`].
#[derive(Debug)]
pub struct Prover {
    model: Model,
    link: Arc<MemoryLink>,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    nonce: [u8; 16],
}

impl Prover {
    /// A prover for the interfaces of `model`.
    pub fn new(model: &Model) -> Self {
        let (v4, v6) = prover_addresses(model);
        // Two packets each way for every address, and some for chatter.
        let addresses: usize = model.interfaces.iter().map(|i| i.addresses.len()).sum();
        let mut nonce = [0; 16];
        let random =
            std::hash::BuildHasher::hash_one(&foldhash::quality::RandomState::default(), 0);
        nonce[..8].copy_from_slice(&random.to_be_bytes());
        nonce[8..12].copy_from_slice(&std::process::id().to_be_bytes());
        Self {
            model: proof_model(model, v4, v6),
            link: Arc::new(MemoryLink::new(addresses * 8 + 64)),
            v4,
            v6,
            nonce,
        }
    }

    /// The link that the engine needs after those of the interfaces.
    pub fn link(&self) -> Arc<MemoryLink> {
        Arc::clone(&self.link)
    }

    /// The policy under which the proof runs.
    pub fn policy(&self) -> Policy {
        Policy::compile(&self.model, None)
    }

    /// Sends the probes and judges what arrives; one [`Proof`] for each
    /// interface of the model. `open` opens a UDP socket bound to an address
    /// of an interface, inside its namespace.
    pub fn prove(
        &self,
        engine: &Engine,
        mut open: impl FnMut(InterfaceIx, SocketAddr) -> io::Result<UdpSocket>,
    ) -> Vec<Proof> {
        let mut probes: Vec<Probe> = Vec::new();
        let mut proofs = Vec::new();
        let prover = self.model.interfaces.len() - 1;
        for (at, interface) in self.model.interfaces().take(prover) {
            if interface.is_external() {
                proofs.push(Proof::Outside);
                continue;
            }
            proofs.push(Proof::Pending);
            if probes.len() + interface.addresses.len() > AT_A_TIME {
                self.prove_those(engine, &mut probes, &mut proofs);
            }
            let mut opened = probes_of(at, interface, &mut open);
            if matches!(&opened, Err((_, error)) if are_too_many(error)) && !probes.is_empty() {
                // The sockets of earlier probes use up the limit.
                self.prove_those(engine, &mut probes, &mut proofs);
                opened = probes_of(at, interface, &mut open);
            }
            match opened {
                Ok(opened) => probes.extend(opened),
                Err((address, error)) => {
                    proofs[at.ix()] = Proof::Unproven {
                        why: format!("opening a socket on {address}: {error}"),
                    };
                }
            }
        }
        self.prove_those(engine, &mut probes, &mut proofs);
        proofs
    }

    /// Sends the probes, judges what arrives, and closes their sockets. All probes of an
    /// interface must be included, because drops are counted per interface.
    fn prove_those(&self, engine: &Engine, probes: &mut Vec<Probe>, proofs: &mut [Proof]) {
        for probe in probes.iter() {
            if let Err(error) = self.send(probe) {
                proofs[probe.at.ix()] = Proof::Unproven {
                    why: format!("sending a probe from {}: {error}", probe.address),
                };
            }
        }
        self.collect(engine, probes);
        for probe in probes.iter() {
            if let Some(failed) = probe.failed_check(engine) {
                let drops = engine.counters().traffic(probe.at).drops;
                let full = if drops[DropReason::FlowTableFull as usize] > 0 {
                    "; the flow table was full, allow more flows"
                } else {
                    ""
                };
                proofs[probe.at.ix()] = Proof::Unproven {
                    why: format!("{failed} ({}{full})", probe.address),
                };
            } else if proofs[probe.at.ix()] == Proof::Pending {
                proofs[probe.at.ix()] = Proof::Proven;
            }
        }
        probes.clear();
    }

    fn send(&self, probe: &Probe) -> io::Result<()> {
        let prover = self.address_like(probe.address);
        for port in [FORBIDDEN, ALLOWED] {
            let transport = Transport::Udp {
                source: SOURCE,
                destination: port,
            };
            let packet =
                packet::build(prover, probe.address, protocol::UDP, transport, &self.nonce)
                    .ok_or(io::ErrorKind::InvalidInput)?;
            self.link.inject(packet)?;
        }
        // The rules look at the destination port; either socket would do.
        for port in [FORBIDDEN, ALLOWED] {
            probe
                .allowed
                .send_to(&self.nonce, SocketAddr::new(prover, port))?;
        }
        Ok(())
    }

    /// Waits until everything allowed has arrived and everything forbidden was
    /// counted, or patience ends.
    fn collect(&self, engine: &Engine, probes: &mut [Probe]) {
        let began = Instant::now();
        let mut sent = began;
        loop {
            while let Some(frame) = self.link.take() {
                self.sort(&frame, probes);
            }
            let again = sent.elapsed() > AGAIN;
            if again {
                sent = Instant::now();
            }
            let mut waiting = false;
            for probe in probes.iter_mut() {
                probe.receive(&self.nonce);
                if probe.failed_check(engine).is_none() || probe.has_leaked() {
                    continue;
                }
                waiting = true;
                if again {
                    // What can't be sent now shows as not arrived in the end.
                    let _ = self.send(probe);
                }
            }
            if !waiting || began.elapsed() > PATIENCE {
                return;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Notes a packet that reached the prover.
    fn sort(&self, frame: &[u8], probes: &mut [Probe]) {
        let Ok(packet) = packet::parse(frame) else {
            return;
        };
        let Transport::Udp { destination, .. } = packet.transport else {
            return;
        };
        if !frame.ends_with(&self.nonce) {
            return;
        }
        for probe in probes {
            if probe.address == packet.source {
                match destination {
                    ALLOWED => probe.left.allowed_out = true,
                    FORBIDDEN => probe.left.forbidden_out = true,
                    _ => {}
                }
            }
        }
    }

    fn address_like(&self, like: IpAddr) -> IpAddr {
        match like {
            IpAddr::V4(_) => self.v4.into(),
            IpAddr::V6(_) => self.v6.into(),
        }
    }
}

/// Opens the sockets of an interface: returns probes of all its addresses, or the address on
/// which opening failed and the reason.
fn probes_of(
    at: InterfaceIx,
    interface: &Interface,
    open: &mut impl FnMut(InterfaceIx, SocketAddr) -> io::Result<UdpSocket>,
) -> Result<Vec<Probe>, (IpAddr, io::Error)> {
    let of = interface.addresses.len() as u64;
    let probe = |address: &Address| {
        let address = address.private;
        let mut open =
            |port| open(at, SocketAddr::new(address, port)).map_err(|error| (address, error));
        Ok(Probe {
            at,
            address,
            allowed: open(ALLOWED)?,
            forbidden: open(FORBIDDEN)?,
            of,
            left: Seen::default(),
        })
    };
    interface.addresses.iter().map(probe).collect()
}

/// Returns true if the process or the system has too many open files.
fn are_too_many(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE)
    )
}

/// Puts the model's own policy in force after a proof: with no flows and with
/// counters at zero.
///
/// # Errors
/// [`EngineError::Stuck`] if a worker does not take it up.
pub fn take_over(engine: &Engine, model: &Model) -> Result<(), EngineError> {
    let policy = Policy::compile(model, None).following(&engine.policy());
    engine.swap(policy)?;
    engine.forget();
    engine.counters().rebase();
    if let Some(log) = engine.drop_log() {
        log.clear();
    }
    Ok(())
}

/// The probes of one address.
#[derive(Debug)]
struct Probe {
    at: InterfaceIx,
    address: IpAddr,
    allowed: UdpSocket,
    forbidden: UdpSocket,
    /// How many addresses its interface has; each has its own packets dropped.
    of: u64,
    left: Seen,
}

/// What has arrived.
#[derive(Debug, Default)]
struct Seen {
    allowed_in: bool,
    forbidden_in: bool,
    allowed_out: bool,
    forbidden_out: bool,
}

impl Probe {
    fn receive(&mut self, nonce: &[u8]) {
        let mut buffer = [0; 64];
        let mut arrived = |socket: &UdpSocket| {
            // A socket that can't be made non-blocking would hang the proof;
            // then the packet counts as not arrived.
            socket.set_nonblocking(true).is_ok()
                && matches!(socket.recv(&mut buffer), Ok(length) if &buffer[..length] == nonce)
        };
        // In this order: the forbidden packet was sent first, so if it got
        // through it lies there by the time the allowed one does.
        self.left.allowed_in |= arrived(&self.allowed);
        self.left.forbidden_in |= arrived(&self.forbidden);
    }

    fn has_leaked(&self) -> bool {
        self.left.forbidden_in || self.left.forbidden_out
    }

    /// The first check that doesn't hold.
    fn failed_check(&self, engine: &Engine) -> Option<Check> {
        let drops = engine.counters().traffic(self.at).drops;
        let dropped = |reason: DropReason| drops[reason as usize] >= self.of;
        let seen = &self.left;
        if seen.forbidden_in || !dropped(DropReason::NoIngressRule) {
            Some(Check::ForbiddenIn)
        } else if !seen.allowed_in {
            Some(Check::AllowedIn)
        } else if seen.forbidden_out || !dropped(DropReason::NoEgressRule) {
            Some(Check::ForbiddenOut)
        } else if !seen.allowed_out {
            Some(Check::AllowedOut)
        } else {
            None
        }
    }
}

/// The model with each interface's groups replaced by the proof's, and the
/// prover as its last interface.
fn proof_model(model: &Model, v4: Ipv4Addr, v6: Ipv6Addr) -> Model {
    let mut model = model.clone();
    let place = Place::implied("proof at start".into());
    let rule = |direction: Direction, peer: Peer, text: IpAddr| SecurityGroupRule {
        id: RuleId::derive(&["proof", direction.as_str(), &text.to_string()]),
        traffic: Traffic::Udp(PortRange {
            from: ALLOWED,
            to: ALLOWED,
        }),
        peer,
        peer_text: text.to_string(),
        description: "proof at start".to_owned(),
        place: place.clone(),
    };
    let rules = |direction| {
        vec![
            rule(direction, Peer::Ipv4(v4.into()), v4.into()),
            rule(direction, Peer::Ipv6(v6.into()), v6.into()),
        ]
    };
    model.security_groups = vec![Arc::new(SecurityGroup {
        id: "sg-proof".to_owned(),
        name: "proof at start".to_owned(),
        description: String::new(),
        ingress: rules(Direction::Ingress),
        egress: rules(Direction::Egress),
        place: place.clone(),
    })];
    // They are members of groups that the proof doesn't know.
    model.members.clear();
    for interface in &mut model.interfaces {
        if let Attachment::Subnet { groups, .. } = &mut interface.attachment {
            *groups = vec![GroupIx::new(0)];
        }
    }
    let entity = EntityIx::new(model.entities.len());
    model.entities.push(Entity {
        name: PROVER.to_owned(),
        kind: EntityKind::External(Via::Vgw),
        engine: None,
        run: None,
        max_flows: None,
        place: place.clone(),
    });
    for entity in &mut model.entities {
        entity.max_flows = None;
    }
    // The prover is behind the VPN, so every subnet needs a way there and back.
    model.network_acls = vec![NetworkAcl::implied("acl-proof".to_owned(), true, &place)];
    let to_prover = |destination: IpNet| Route {
        destination,
        target: RouteTarget::Vgw,
        target_text: "vgw".to_owned(),
        place: place.clone(),
    };
    model.route_tables = vec![RouteTable {
        id: "rtb-proof".to_owned(),
        name: MAIN_ROUTE_TABLE.to_owned(),
        routes: vec![
            to_prover(IpAddr::V4(v4).into()),
            to_prover(IpAddr::V6(v6).into()),
        ],
        place: place.clone(),
    }];
    for subnet in &mut model.subnets {
        subnet.network_acl = AclIx::new(0);
        subnet.route_table = RouteTableIx::new(0);
    }
    model.interfaces.push(Interface {
        id: "eni-prover".to_owned(),
        entity,
        device: 0,
        attachment: Attachment::External(Via::Vgw),
        addresses: [IpAddr::V4(v4), IpAddr::V6(v6)]
            .map(|private| Address {
                private,
                public: None,
            })
            .to_vec(),
        mtu: MAX_MTU,
        source_dest_check: true,
        tracking: Tracking::default(),
        place,
    });
    model
}

/// The addresses that the prover has: of documentation blocks (RFC 5737, RFC 3849) and, should the model
/// use those, of the benchmarking block (RFC 2544), that nobody in it has.
pub fn prover_addresses(model: &Model) -> (Ipv4Addr, Ipv6Addr) {
    let taken = |address: IpAddr| {
        model.vpc.contains(address)
            || model.interfaces.iter().any(|interface| {
                interface.addresses.iter().any(|own| {
                    own.private == address || own.public.map(IpAddr::V4) == Some(address)
                })
            })
    };
    let blocks_v4 = [
        Ipv4Addr::new(192, 0, 2, 1),
        Ipv4Addr::new(198, 18, 0, 1),
        Ipv4Addr::new(198, 19, 255, 1),
    ];
    let v4 = blocks_v4
        .into_iter()
        .flat_map(|first| (0..200).map(move |i| Ipv4Addr::from_bits(first.to_bits() + i)))
        .find(|address| !taken(IpAddr::V4(*address)))
        .unwrap_or(blocks_v4[0]);
    let first_v6 = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 1);
    let second_v6 = Ipv6Addr::new(0xfdff, 0xffff, 0xffff, 0xffff, 0, 0, 0, 1);
    let v6 = [first_v6, second_v6]
        .into_iter()
        .flat_map(|first| (0..200).map(move |i| Ipv6Addr::from_bits(first.to_bits() + i)))
        .find(|address| !taken(IpAddr::V6(*address)))
        .unwrap_or(first_v6);
    (v4, v6)
}
