//! Random sequences of packets, waits and changes against a random model.
//!
//! Like a blueprint, a step is drawn as plain bytes; what they mean depends on
//! the model and on what was sent before, and is settled while the case runs:
//! here for a fresh packet, in `talk.rs` for what refers to an earlier one, in
//! `datagrams.rs` for fragments.

use std::net::IpAddr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sgwall::model::{
    Attachment, Direction, Interface, InterfaceIx, Model, PortRange, Traffic, Via, protocol,
};
use sgwall::policy::oracle::{Packet, Payload, TcpFlags};

use crate::datagrams::{self, DatagramPlan, FloodPlan, PartPlan};
use crate::decode::short;
use crate::models::{self, Blueprint, Change, pick};
use crate::rules::{PORTS, PROTOCOLS};
use crate::talk::{self, ErrorPlan, TurnPlan};
use crate::wire::{Extension, Frame, header_length};

/// A model and what happens to it.
#[derive(Debug, Clone)]
pub struct Case {
    /// The model at the start.
    pub blueprint: Blueprint,
    /// Small numbers say how many flows are remembered at most; others: any
    /// number.
    pub capacity: u8,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// Somebody sends a packet.
    Send(PacketPlan),
    /// Somebody sends a packet, and the two ends go on from there.
    Talk(PacketPlan, Vec<TurnPlan>),
    /// A connection is opened, one side ends it, and after a long pause it continues.
    HalfClose(PacketPlan, u8),
    /// The conversation of an earlier packet goes on.
    Turn(u8, TurnPlan),
    /// Somebody sends an ICMP error about an earlier packet.
    Error(u8, ErrorPlan),
    /// Who got an earlier packet for others sends it on; or somebody sends it
    /// once more in its author's name.
    Forward(u8, u8),
    /// Somebody begins to send a datagram in fragments.
    Datagram(DatagramPlan),
    /// The conversation of an earlier packet goes on, with a datagram in fragments.
    Pieces(u8, TurnPlan, DatagramPlan),
    /// Another fragment of an earlier datagram is sent.
    Part(u8, PartPlan),
    /// Somebody sends many fragments at once.
    Flood(FloodPlan),
    /// Time passes.
    Wait(u8),
    /// Time passes until the flow of an earlier packet is about to idle out,
    /// or just has; then it goes on.
    Idle(u8, u8, TurnPlan),
    /// Something changes in the model.
    Change(Change),
}

/// What a fresh packet is made from.
#[derive(Debug, Clone)]
pub struct PacketPlan {
    from: u8,
    spoof: u8,
    source: u8,
    destination_kind: u8,
    destination: u8,
    protocol: u8,
    source_port: u8,
    destination_port: u8,
    flags: u8,
    aim: u8,
    length: u8,
    number: u8,
    dont_fragment: bool,
    extension: u8,
}

/// Any case that these files can draw.
pub fn case() -> impl Strategy<Value = Case> {
    (models::blueprint(), any::<u8>(), vec(step(), 1..=40)).prop_map(
        |(blueprint, capacity, steps)| Case {
            blueprint,
            capacity,
            steps,
        },
    )
}

impl Case {
    /// How many flows are remembered at most.
    pub fn capacity(&self) -> usize {
        match self.capacity {
            few @ 1..=32 => usize::from(few),
            _ => 1 << 20,
        }
    }
}

impl Step {
    /// The same as steps that send a packet each, or none.
    pub fn unrolled(&self) -> Vec<Self> {
        match self {
            Self::Talk(plan, turns) => {
                let first = Self::Send(plan.clone());
                let turns = turns.iter().map(|turn| Self::Turn(0, *turn));
                std::iter::once(first).chain(turns).collect()
            }
            Self::HalfClose(plan, by) => {
                let turn = |turn| Self::Turn(0, turn);
                let [closing @ .., last] = talk::half_close();
                let opens = Self::Send(plan.clone());
                let closing = std::iter::once(opens).chain(closing.map(turn));
                closing.chain([Self::Wait(*by), turn(last)]).collect()
            }
            Self::Flood(plan) => {
                let flood = || Self::Flood(plan.clone());
                vec![flood(), Self::Wait(LIFE_OF_A_DATAGRAM), flood()]
            }
            Self::Idle(back, _, turn) => vec![self.clone(), Self::Turn(*back, *turn)],
            Self::Datagram(plan) | Self::Pieces(_, _, plan) => {
                let parts = plan.first_parts();
                let parts = parts.into_iter().map(|part| Self::Part(0, part));
                std::iter::once(self.clone()).chain(parts).collect()
            }
            other => vec![other.clone()],
        }
    }
}

impl PacketPlan {
    /// Returns the same plan, but opens a TCP connection if any protocol is allowed.
    fn opening_tcp(self) -> Self {
        Self {
            protocol: 0,
            flags: 0,
            ..self
        }
    }

    /// The frame that is meant in `model`.
    pub fn build(&self, model: &Model) -> Frame {
        let extension = self.extension();
        let mut packet = self.packet(model, extension);
        // IPv4 has no extension headers, but a header checksum.
        packet.damaged = packet.source.is_ipv4() && self.extension >= 250;
        let whole = match (packet.source.is_ipv4(), extension) {
            (true, _) => Extension::Absent,
            (false, extension) => extension,
        };
        Frame::new(packet, whole)
    }

    /// Likewise with a payload of so many bytes after the headers.
    pub fn build_long(&self, model: &Model, payload: usize) -> Frame {
        let mut packet = self.packet(model, Extension::Absent);
        let ipv4 = packet.source.is_ipv4();
        let extension = if ipv4 {
            Extension::Absent
        } else {
            self.extension()
        };
        packet.length = header_length(ipv4, packet.payload, extension) + payload;
        if let Payload::Tcp { data, .. } = &mut packet.payload {
            *data = short(payload);
        }
        Frame::new(packet, extension)
    }

    fn extension(&self) -> Extension {
        match self.extension % 8 {
            6 => Extension::HopByHop,
            7 => Extension::Destination,
            _ => Extension::Absent,
        }
    }

    fn packet(&self, model: &Model, extension: Extension) -> Packet {
        let from = InterfaceIx::new(usize::from(self.from) % model.interfaces.len());
        let sender = &model.interfaces[from.ix()];
        if self.protocol > 250 {
            return self.dhcp(from, sender);
        }
        let spoofs = match self.spoof % 32 {
            0..=15 => false,
            // An interface without the check is there to send as others.
            16..=25 => !sender.source_dest_check,
            26..=28 => false,
            _ => true,
        };
        let destination = self.destination(model, sender, spoofs);
        let source = self.source(model, sender, spoofs, destination.is_ipv4());
        let mut payload = self.payload(model, sender, destination);
        let ipv4 = destination.is_ipv4();
        let headers = header_length(ipv4, payload, extension);
        let length = self.length(headers);
        if let Payload::Tcp { data, .. } = &mut payload {
            *data = short(length - headers);
        }
        Packet {
            dont_fragment: ipv4 && self.dont_fragment,
            ..Packet::whole(from, source, destination, payload, length)
        }
    }

    /// A DHCP client that knows nothing yet, or one that renews its lease.
    fn dhcp(&self, from: InterfaceIx, sender: &Interface) -> Packet {
        let own = sender.addresses[0].private;
        let (source, destination, ports) = match (own, self.source % 4) {
            (IpAddr::V4(_), 0 | 1) => ("0.0.0.0", "255.255.255.255", (68, 67)),
            (IpAddr::V4(_), _) => ("10.0.1.9", "10.0.1.1", (68, 67)),
            (IpAddr::V6(_), 0 | 1) => ("fe80::1", "ff02::1:2", (546, 547)),
            (IpAddr::V6(_), _) => ("2001:db8:1::9", "2001:db8:1::5", (546, 547)),
        };
        let payload = match self.source_port % 8 {
            // The server's answer, and something else from the same ports.
            6 => self.udp(ports.1, ports.0),
            7 => self.tcp(ports.0, ports.1),
            _ => self.udp(ports.0, ports.1),
        };
        let parse = |text: &str| text.parse().expect("an address");
        let (source, destination): (IpAddr, IpAddr) = (parse(source), parse(destination));
        let length = header_length(source.is_ipv4(), payload, self.extension());
        Packet::whole(from, source, destination, payload, length)
    }

    fn destination(&self, model: &Model, sender: &Interface, any_family: bool) -> IpAddr {
        let speaks = |address: &IpAddr| any_family || sender.address_like(*address).is_some();
        let on_the_internet = sender.attachment == Attachment::External(Via::Igw);
        let private = || addresses_of(model, |interface| !interface.is_external());
        let candidates: Vec<IpAddr> = match self.destination_kind % 16 {
            // Hosts on the internet mostly know better than to try 10.0.0.0/8.
            0..=6 if on_the_internet => {
                let mut known = public_addresses(model);
                known.extend(private().into_iter().filter(IpAddr::is_ipv6));
                known
            }
            0..=6 => private(),
            7 => service_addresses(model),
            8..=10 => public_addresses(model),
            11..=13 => addresses_of(model, Interface::is_external),
            // The sender's own address.
            14 if self.destination.is_multiple_of(2) => sender
                .addresses
                .iter()
                .flat_map(|own| [Some(own.private), own.public.map(IpAddr::V4)])
                .flatten()
                .collect(),
            14 => models::addresses(model),
            _ => odd_addresses(),
        };
        let candidates: Vec<IpAddr> = candidates.into_iter().filter(speaks).collect();
        if candidates.is_empty() {
            let fallback: Vec<IpAddr> = private().into_iter().filter(speaks).collect();
            return if fallback.is_empty() {
                sender.addresses[0].private
            } else {
                *pick(&fallback, self.destination)
            };
        }
        *pick(&candidates, self.destination)
    }

    fn source(&self, model: &Model, sender: &Interface, spoofs: bool, ipv4: bool) -> IpAddr {
        let candidates = if spoofs {
            let mut candidates = models::addresses(model);
            candidates.extend(odd_addresses());
            candidates
        } else {
            sender.addresses.iter().map(|a| a.private).collect()
        };
        let candidates: Vec<IpAddr> = candidates
            .into_iter()
            .filter(|address| address.is_ipv4() == ipv4)
            .collect();
        *pick(&candidates, self.source)
    }

    fn payload(&self, model: &Model, sender: &Interface, destination: IpAddr) -> Payload {
        let ipv4 = destination.is_ipv4();
        // Most packets are shaped after a rule that they may meet.
        let traffic = match self.aim % 4 {
            0 => None,
            _ => {
                let rules = rules_on_the_way(model, sender, destination);
                (!rules.is_empty()).then(|| *pick(&rules, self.aim / 4))
            }
        };
        // A rule's ends and what lies just beyond them.
        let port = |range: PortRange| {
            let near = [
                range.from,
                range.to,
                range.from.saturating_sub(1),
                range.to.saturating_add(1),
            ];
            *pick(&near, self.destination_port)
        };
        match traffic {
            Some(Traffic::Tcp(range)) => self.tcp(self.source_port(port(range)), port(range)),
            Some(Traffic::Udp(range)) => self.udp(self.source_port(port(range)), port(range)),
            Some(Traffic::Icmp(_) | Traffic::Icmpv6(_)) if !self.flags.is_multiple_of(4) => {
                self.query(ipv4)
            }
            Some(Traffic::Icmp(_) | Traffic::Icmpv6(_)) => self.icmp(ipv4),
            Some(Traffic::Other(number)) => Payload::Other(number),
            Some(Traffic::All) | None => {
                let port = *pick(&PORTS, self.destination_port);
                match self.protocol % 16 {
                    0..=6 => self.tcp(self.source_port(port), port),
                    7..=10 => self.udp(self.source_port(port), port),
                    11 | 12 => self.query(ipv4),
                    13 => self.icmp(ipv4),
                    // The other family's.
                    14 if self.source_port.is_multiple_of(8) => Payload::Other(if ipv4 {
                        protocol::ICMPV6
                    } else {
                        protocol::ICMP
                    }),
                    _ => Payload::Other(*pick(&PROTOCOLS, self.source_port)),
                }
            }
        }
    }

    fn tcp(&self, source_port: u16, destination_port: u16) -> Payload {
        Payload::Tcp {
            source_port,
            destination_port,
            flags: first_flags(self.flags),
            // Some numbers wrap soon.
            sequence: *pick(&[1000, 0, u32::MAX, u32::MAX - 1, 1 << 31], self.number),
            acknowledgement: u32::from(self.number),
            data: 0,
        }
    }

    fn udp(&self, source_port: u16, destination_port: u16) -> Payload {
        Payload::Udp {
            source_port,
            destination_port,
        }
    }

    fn source_port(&self, destination_port: u16) -> u16 {
        match self.source_port % 8 {
            // Now and then both ends use the same port, or two well-known ones.
            6 => destination_port,
            7 => *pick(&PORTS, self.source_port / 8),
            nth => 40_000 + u16::from(nth % 3),
        }
    }

    fn query(&self, ipv4: bool) -> Payload {
        let kinds: &[u8] = if ipv4 {
            &[8, 8, 8, 8, 8, 0, 13, 13, 14, 15, 16, 17, 18]
        } else {
            &[128, 128, 128, 129]
        };
        Payload::IcmpQuery {
            kind: *pick(kinds, self.flags / 4),
            id: u16::from(self.source_port % 2),
        }
    }

    /// Messages of no flow that quote nothing.
    fn icmp(&self, ipv4: bool) -> Payload {
        let kinds: &[(u8, u8)] = if ipv4 {
            &[
                (3, 0),
                (3, 4),
                (11, 0),
                (12, 0),
                (40, 0),
                (8, 1),
                (5, 1),
                (13, 2),
            ]
        } else {
            &[(1, 4), (2, 0), (3, 0), (4, 1), (200, 0), (128, 1), (137, 0)]
        };
        let (kind, code) = *pick(kinds, self.source_port);
        Payload::Icmp {
            kind,
            code,
            quoted: None,
        }
    }

    fn length(&self, headers: usize) -> usize {
        match self.length {
            little @ 0..=199 => headers + usize::from(little % 8),
            big => *pick(
                &[
                    1280, 1281, 1400, 1401, 1500, 1501, 1501, 2800, 4500, 9001, 9002, 9002,
                ],
                big,
            ),
        }
    }
}

/// [`wait`]s for as long as a datagram is remembered.
const LIFE_OF_A_DATAGRAM: u8 = 4 + 2;

/// The number for which [`wait`] returns two minutes; the numbers after it give up to six.
const TWO_MINUTES: u8 = 4 * 7 + 2;

/// How long a [`Step::Wait`] lasts: around every timeout there is, a
/// millisecond short, exact, and a millisecond past; and halves, so that it
/// shows what refreshes a flow and what does not.
pub fn wait(by: u8) -> Duration {
    const SECONDS: [u64; 15] = [
        10, 5, 30, 15, 45, 60, 60, 120, 180, 350, 600, 432_000, 0, 5, 10,
    ];
    let millisecond = Duration::from_millis(1);
    let timeout = Duration::from_secs(*pick(&SECONDS, by / 4));
    match by % 4 {
        0 => millisecond * u32::from(by),
        1 => timeout.saturating_sub(millisecond),
        2 => timeout,
        _ => timeout + millisecond,
    }
}

/// Any fresh packet.
pub fn packet_plan() -> impl Strategy<Value = PacketPlan> {
    (
        any::<(u8, u8, u8, u8, u8)>(),
        any::<(u8, u8, u8, u8, u8, u8)>(),
        any::<(u8, bool, u8)>(),
    )
        .prop_map(
            |(
                (from, spoof, source, destination_kind, destination),
                (protocol, source_port, destination_port, flags, aim, length),
                (number, dont_fragment, extension),
            )| PacketPlan {
                from,
                spoof,
                source,
                destination_kind,
                destination,
                protocol,
                source_port,
                destination_port,
                flags,
                aim,
                length,
                number,
                dont_fragment,
                extension,
            },
        )
}

/// A packet that may well arrive: to somebody in the VPC, or from there, and in
/// the sender's own name.
pub fn friendly_plan() -> impl Strategy<Value = PacketPlan> {
    (packet_plan(), any::<u8>()).prop_map(|(plan, more)| PacketPlan {
        spoof: 0,
        protocol: plan.protocol % 250,
        destination_kind: if more < 150 { 0 } else { plan.destination_kind },
        aim: plan.aim | 1,
        ..plan
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => packet_plan().prop_map(Step::Send),
        14 => (friendly_plan(), vec(talk::turn_plan(), 1..=8))
            .prop_map(|(plan, turns)| Step::Talk(plan, turns)),
        5 => (friendly_plan(), TWO_MINUTES..TWO_MINUTES + 8).prop_map(|(plan, by)| {
            Step::HalfClose(plan.opening_tcp(), by)
        }),
        20 => (back(), talk::turn_plan()).prop_map(|(back, turn)| Step::Turn(back, turn)),
        8 => (back(), talk::error_plan()).prop_map(|(back, error)| Step::Error(back, error)),
        5 => (back(), any::<u8>()).prop_map(|(back, by)| Step::Forward(back, by)),
        6 => datagrams::datagram_plan().prop_map(Step::Datagram),
        8 => (back(), talk::turn_plan(), datagrams::datagram_plan())
            .prop_map(|(back, turn, plan)| Step::Pieces(back, turn, plan)),
        10 => (back(), datagrams::part_plan()).prop_map(|(back, part)| Step::Part(back, part)),
        6 => any::<u8>().prop_map(Step::Wait),
        10 => (back(), any::<u8>(), talk::turn_plan())
            .prop_map(|(back, by, turn)| Step::Idle(back, by, turn)),
        12 => models::change().prop_map(Step::Change),
    ]
}

/// Cases with many fragments, each flood followed by another once the first is
/// forgotten: whatever room that one took is there again.
pub fn flooded_case() -> impl Strategy<Value = Case> {
    let step = prop_oneof![
        1 => datagrams::flood_plan().prop_map(Step::Flood),
        1 => step(),
    ];
    (models::blueprint(), vec(step, 1..=4)).prop_map(|(blueprint, steps)| Case {
        blueprint,
        capacity: 0,
        steps,
    })
}

/// Mostly the packet just sent: that is how conversations come about.
fn back() -> impl Strategy<Value = u8> {
    prop_oneof![
        6 => Just(0u8),
        2 => 1..=3u8,
        1 => any::<u8>(),
    ]
}

/// Flags by their names.
pub const fn flags(syn: bool, ack: bool, fin: bool, rst: bool) -> TcpFlags {
    TcpFlags { syn, ack, fin, rst }
}

/// Mostly a SYN, else anything, sense or nonsense.
pub fn first_flags(by: u8) -> TcpFlags {
    match by % 32 {
        0..=15 => flags(true, false, false, false),
        bits => flags(bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0),
    }
}

/// What the rules cover that a packet from `sender` to `destination` may meet.
fn rules_on_the_way(model: &Model, sender: &Interface, destination: IpAddr) -> Vec<Traffic> {
    let of = |interface: &Interface, direction| -> Vec<Traffic> {
        interface
            .groups()
            .iter()
            .flat_map(|group| model.security_groups[group.ix()].rules(direction))
            .map(|rule| rule.traffic)
            .collect()
    };
    let mut rules = of(sender, Direction::Egress);
    for receiver in &model.interfaces {
        let owns = receiver.addresses.iter().any(|address| {
            address.private == destination || address.public.map(IpAddr::V4) == Some(destination)
        });
        if owns {
            rules.extend(of(receiver, Direction::Ingress));
        }
    }
    rules
}

fn addresses_of(model: &Model, wanted: impl Fn(&Interface) -> bool) -> Vec<IpAddr> {
    model
        .interfaces
        .iter()
        .filter(|interface| wanted(interface))
        .flat_map(|interface| interface.addresses.iter().map(|address| address.private))
        .collect()
}

fn public_addresses(model: &Model) -> Vec<IpAddr> {
    model
        .interfaces
        .iter()
        .flat_map(|interface| interface.addresses.iter().filter_map(|a| a.public))
        .map(IpAddr::V4)
        .collect()
}

/// Where the services of the VPC are, and what lies beside them.
fn service_addresses(model: &Model) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = parse(&[
        "10.0.0.2",
        "10.0.0.1",
        "10.1.0.2",
        "169.254.169.253",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.169.250",
        "169.254.169.123",
        "169.254.169.252",
        "fd00:ec2::253",
        "fd00:ec2::254",
        "fd00:ec2::123",
        "fd00:ec2::1",
        "2001:db8:1::2",
    ]);
    for block in model.subnets.iter().flat_map(|subnet| &subnet.cidrs) {
        addresses.push(match block.network() {
            IpAddr::V4(base) => IpAddr::V4((base.to_bits() + 1).into()),
            IpAddr::V6(base) => IpAddr::V6((base.to_bits() + 1).into()),
        });
    }
    addresses
}

fn odd_addresses() -> Vec<IpAddr> {
    parse(&[
        "224.0.0.1",
        "239.255.255.250",
        "255.255.255.255",
        "0.0.0.0",
        "127.0.0.1",
        "10.0.1.0",
        "10.0.1.127",
        "10.0.255.255",
        "169.254.1.1",
        "240.0.0.1",
        "203.0.113.200",
        "ff02::1",
        "ff0e::1",
        "::",
        "::1",
        "fe80::1",
        "2001:db8:1:ff::1",
        "2001:db8:f::ff",
    ])
}

fn parse(texts: &[&str]) -> Vec<IpAddr> {
    texts
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect()
}
