//! Random sequences of packets, waits and changes against a random model.
//!
//! Like a blueprint, a step is drawn as plain bytes; what they mean depends on
//! the model and on what was sent before, and is settled while the case runs.

use std::net::IpAddr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sgwall::model::{
    Attachment, Direction, Interface, InterfaceIx, Model, PortRange, Traffic, Via,
};
use sgwall::policy::oracle::{Judgement, Packet, Payload, TcpFlags};

use crate::models::{self, Blueprint, Change, PORTS, PROTOCOLS, pick};
use crate::wire::min_length;

/// A model and what happens to it.
#[derive(Debug, Clone)]
pub struct Case {
    /// The model at the start.
    pub blueprint: Blueprint,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub enum Step {
    /// Somebody sends a packet.
    Send(PacketPlan),
    /// An earlier packet is sent again, perhaps with other flags.
    Again {
        /// How many packets back.
        back: u8,
        /// Its flags.
        flags: u8,
    },
    /// Whoever got (or would have got) an earlier packet answers it.
    Reply {
        /// How many packets back.
        back: u8,
        /// The answer's flags.
        flags: u8,
    },
    /// Time passes.
    Wait(u8),
    /// Rules or memberships change.
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
}

/// A packet that was sent, and the answer that its receiver would give.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    packet: Packet,
    answer: Option<Packet>,
}

/// Any case that these files can draw.
pub fn case() -> impl Strategy<Value = Case> {
    (models::blueprint(), vec(step(), 1..=60))
        .prop_map(|(blueprint, steps)| Case { blueprint, steps })
}

impl PacketPlan {
    /// The packet that is meant in `model`.
    pub fn build(&self, model: &Model) -> Packet {
        let from = InterfaceIx::new(usize::from(self.from) % model.interfaces.len());
        let sender = &model.interfaces[from.ix()];
        let spoofs = match self.spoof % 32 {
            0..=15 => false,
            // An interface without the check is there to send as others.
            16..=25 => !sender.source_dest_check,
            26..=28 => false,
            _ => true,
        };
        let destination = self.destination(model, sender, spoofs);
        let source = self.source(model, sender, spoofs, destination.is_ipv4());
        let payload = self.payload(model, sender, destination);
        Packet {
            from,
            source,
            destination,
            payload,
            length: self.length(destination.is_ipv4(), payload),
        }
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
            0..=7 => private(),
            8..=10 => public_addresses(model),
            11..=13 => addresses_of(model, Interface::is_external),
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
        // Half of the packets are shaped after a rule that they may meet.
        let traffic = match self.aim % 2 {
            0 => {
                let rules = rules_on_the_way(model, sender, destination);
                (!rules.is_empty()).then(|| *pick(&rules, self.aim / 2))
            }
            _ => None,
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
            Some(Traffic::Tcp(range)) => self.tcp(port(range)),
            Some(Traffic::Udp(range)) => self.udp(port(range)),
            Some(Traffic::Icmp(_) | Traffic::Icmpv6(_)) if self.flags.is_multiple_of(2) => {
                self.echo()
            }
            Some(Traffic::Icmp(_) | Traffic::Icmpv6(_)) => self.icmp(ipv4),
            Some(Traffic::Other(number)) => Payload::Other(number),
            Some(Traffic::All) | None => match self.protocol % 16 {
                0..=6 => self.tcp(*pick(&PORTS, self.destination_port)),
                7..=10 => self.udp(*pick(&PORTS, self.destination_port)),
                11 | 12 => self.echo(),
                13 => self.icmp(ipv4),
                _ => Payload::Other(*pick(&PROTOCOLS, self.source_port)),
            },
        }
    }

    fn tcp(&self, destination_port: u16) -> Payload {
        Payload::Tcp {
            source_port: self.source_port(destination_port),
            destination_port,
            flags: first_flags(self.flags),
        }
    }

    fn udp(&self, destination_port: u16) -> Payload {
        Payload::Udp {
            source_port: self.source_port(destination_port),
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

    fn echo(&self) -> Payload {
        Payload::IcmpEcho {
            request: self.protocol % 4 != 3,
            id: u16::from(self.source_port % 2),
        }
    }

    fn icmp(&self, ipv4: bool) -> Payload {
        let kinds: &[(u8, u8)] = if ipv4 {
            &[(3, 0), (3, 1), (3, 4), (11, 0), (11, 4), (12, 0), (40, 0)]
        } else {
            &[(1, 0), (1, 4), (2, 0), (3, 0), (3, 4), (4, 1), (200, 0)]
        };
        let (kind, code) = *pick(kinds, self.source_port);
        Payload::Icmp { kind, code }
    }

    fn length(&self, ipv4: bool, payload: Payload) -> usize {
        match self.length {
            250 => 1280,
            251 => 1281,
            252 => 1500,
            253 => 1501,
            254 => 9001,
            255 => 9002,
            little => min_length(ipv4, payload) + usize::from(little % 8),
        }
    }
}

impl Sent {
    /// Notes what was sent and what became of it.
    pub fn new(model: &Model, packet: Packet, judgement: Judgement) -> Self {
        let seen = match judgement {
            Judgement::Delivered {
                to,
                source,
                destination,
                ..
            } => Some((to, source, destination)),
            // A dropped packet may be "answered" all the same: its receiver
            // must find no state that the packet never made.
            Judgement::Dropped { .. } => would_be_seen(model, &packet),
        };
        let answer = seen.map(|(to, source, destination)| Packet {
            from: to,
            source: destination,
            destination: source,
            payload: turned(packet.payload),
            length: packet.length,
        });
        Self { packet, answer }
    }

    /// The same packet once more.
    pub fn again(&self, flags: u8) -> Packet {
        let mut packet = self.packet;
        if let Payload::Tcp { flags: set, .. } = &mut packet.payload {
            *set = match flags % 4 {
                0 => *set,
                1 => ACK,
                _ => first_flags(flags / 4),
            };
        }
        packet
    }

    /// The answer to it, if anybody could give one.
    pub fn reply(&self, flags: u8) -> Option<Packet> {
        let mut answer = self.answer?;
        if let Payload::Tcp { flags: set, .. } = &mut answer.payload {
            let natural = match *set {
                TcpFlags {
                    syn: true,
                    ack: false,
                    ..
                } => SYN_ACK,
                TcpFlags { fin: true, .. } => FIN_ACK,
                _ => ACK,
            };
            *set = match flags % 8 {
                0..=4 => natural,
                5 => FIN_ACK,
                _ => first_flags(flags / 8),
            };
        }
        Some(answer)
    }
}

/// How long a [`Step::Wait`] lasts: around every timeout there is, a
/// millisecond short, exact, and a millisecond past; and halves, so that it
/// shows what refreshes a flow and what does not.
pub fn wait(by: u8) -> Duration {
    const SECONDS: [u64; 14] = [10, 5, 30, 45, 60, 60, 120, 180, 350, 600, 432_000, 0, 5, 10];
    let millisecond = Duration::from_millis(1);
    let timeout = Duration::from_secs(*pick(&SECONDS, by / 4));
    match by % 4 {
        0 => millisecond * u32::from(by),
        1 => timeout.saturating_sub(millisecond),
        2 => timeout,
        _ => timeout + millisecond,
    }
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => packet_plan().prop_map(Step::Send),
        5 => (back(), any::<u8>()).prop_map(|(back, flags)| Step::Again { back, flags }),
        10 => (back(), any::<u8>()).prop_map(|(back, flags)| Step::Reply { back, flags }),
        4 => any::<u8>().prop_map(Step::Wait),
        2 => models::change().prop_map(Step::Change),
    ]
}

/// Mostly the packet just sent: that is how conversations come about.
fn back() -> impl Strategy<Value = u8> {
    prop_oneof![
        6 => Just(0u8),
        2 => 1..=3u8,
        1 => any::<u8>(),
    ]
}

fn packet_plan() -> impl Strategy<Value = PacketPlan> {
    (
        any::<(u8, u8, u8, u8, u8)>(),
        any::<(u8, u8, u8, u8, u8, u8)>(),
    )
        .prop_map(
            |(
                (from, spoof, source, destination_kind, destination),
                (protocol, source_port, destination_port, flags, aim, length),
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
            },
        )
}

const ACK: TcpFlags = flags(false, true, false, false);
const SYN_ACK: TcpFlags = flags(true, true, false, false);
const FIN_ACK: TcpFlags = flags(false, true, true, false);

const fn flags(syn: bool, ack: bool, fin: bool, rst: bool) -> TcpFlags {
    TcpFlags { syn, ack, fin, rst }
}

/// Mostly a SYN, else anything, sense or nonsense.
fn first_flags(by: u8) -> TcpFlags {
    match by % 32 {
        0..=15 => flags(true, false, false, false),
        bits => flags(bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0),
    }
}

/// The payload as the other side would send it back.
fn turned(payload: Payload) -> Payload {
    match payload {
        Payload::Tcp {
            source_port,
            destination_port,
            flags,
        } => Payload::Tcp {
            source_port: destination_port,
            destination_port: source_port,
            flags,
        },
        Payload::Udp {
            source_port,
            destination_port,
        } => Payload::Udp {
            source_port: destination_port,
            destination_port: source_port,
        },
        Payload::IcmpEcho { request, id } => Payload::IcmpEcho {
            request: !request,
            id,
        },
        Payload::Icmp { .. } | Payload::Other(_) => payload,
    }
}

/// Who would receive the packet if every group let it pass, and how: good
/// enough to make up a plausible answer.
fn would_be_seen(model: &Model, packet: &Packet) -> Option<(InterfaceIx, IpAddr, IpAddr)> {
    for (ix, interface) in model.interfaces() {
        for address in &interface.addresses {
            if address.private == packet.destination {
                return Some((ix, packet.source, packet.destination));
            }
            if address.public.map(IpAddr::V4) == Some(packet.destination) {
                let source = model.interfaces[packet.from.ix()]
                    .addresses
                    .iter()
                    .find(|its| its.private == packet.source)
                    .and_then(|its| its.public)
                    .map_or(packet.source, IpAddr::V4);
                return Some((ix, source, address.private));
            }
        }
    }
    None
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

fn odd_addresses() -> Vec<IpAddr> {
    [
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
    ]
    .iter()
    .map(|text| text.parse().expect("an address"))
    .collect()
}
