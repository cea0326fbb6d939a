//! What refers to packets sent before: answers and more of the same, ICMP
//! errors about them, and their forwarding by who got them for others.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use sgwall::model::{InterfaceIx, Model};
use sgwall::policy::oracle::{Judgement, Packet, Payload, Quoted, Speech, TcpFlags};

use crate::decode::short;
use crate::models::pick;
use crate::traffic::{first_flags, flags};
use crate::wire::{Extension, Frame, header_length};

/// How a conversation goes on.
#[derive(Debug, Clone, Copy)]
pub struct TurnPlan {
    /// Whether the other end speaks.
    reply: bool,
    flags: u8,
    number: u8,
    data: u8,
}

/// An ICMP error about an earlier packet.
#[derive(Debug, Clone, Copy)]
pub struct ErrorPlan {
    by: u8,
    kind: u8,
    bend: u8,
    length: u8,
}

/// Any turn of a conversation.
pub fn turn_plan() -> impl Strategy<Value = TurnPlan> {
    (proptest::bool::weighted(0.6), any::<(u8, u8, u8)>()).prop_map(
        |(reply, (flags, number, data))| TurnPlan {
            reply,
            flags,
            number,
            data,
        },
    )
}

/// The packets after a SYN in a connection that one side half-closes: the handshake, a FIN, its
/// acknowledgement, and more data from the other side.
pub fn half_close() -> [TurnPlan; 5] {
    [
        (true, 0),
        (true, 0),
        (false, FIN_TURN),
        (true, 0),
        (false, 0),
    ]
    .map(|(reply, flags)| TurnPlan {
        reply,
        flags,
        number: 0,
        data: 0,
    })
}

impl TurnPlan {
    /// True if it is sent by an attacker who knows only addresses and ports.
    fn is_forged(&self) -> bool {
        self.number % 16 >= 14 && self.flags % 20 >= 10
    }

    /// How many bytes it carries: mostly next to none, and now and then more than some
    /// path takes, in the middle of a conversation whose packets were small.
    pub fn payload(&self) -> usize {
        let data = self.data;
        match data % 16 {
            15 => *pick(&[1232, 1240, 1241, 1460, 1461, 1461, 8961, 8962], data / 16),
            _ => usize::from(data / 64),
        }
    }
}

/// Any ICMP error.
pub fn error_plan() -> impl Strategy<Value = ErrorPlan> {
    any::<(u8, u8, u8, u8)>().prop_map(|(by, kind, bend, length)| ErrorPlan {
        by,
        kind,
        bend,
        length,
    })
}

/// Which conversation a packet is a part of, and from which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    talk: usize,
    by_initiator: bool,
    /// True if it is sent by an attacker who guesses the sequence numbers.
    forged: bool,
}

impl Place {
    /// The number of the conversation.
    pub fn talk(self) -> usize {
        self.talk
    }
}

/// A packet that was sent.
#[derive(Debug, Clone)]
struct Sent {
    frame: Frame,
    place: Place,
    /// Who got it, or would have got it, and how it looked there.
    seen: Option<(InterfaceIx, Packet)>,
    delivered: bool,
}

/// Everything that was sent so far.
#[derive(Debug, Default)]
pub struct History {
    sent: Vec<Sent>,
    talks: usize,
}

impl History {
    /// The place of a packet that begins a conversation.
    pub fn new_talk(&mut self) -> Place {
        self.talks += 1;
        Place {
            talk: self.talks,
            by_initiator: true,
            forged: false,
        }
    }

    /// Notes what was sent and what became of it.
    pub fn note(&mut self, model: &Model, frame: Frame, place: Place, judgement: &Judgement) {
        let (seen, delivered) = match judgement {
            Judgement::Delivered { to, packet, .. } => (Some((*to, *packet)), true),
            // A dropped packet may be "answered" all the same: its receiver
            // must find no state that the packet never made.
            Judgement::Dropped { .. } | Judgement::Held { .. } => {
                (would_be_seen(model, &frame.packet), false)
            }
        };
        self.sent.push(Sent {
            frame,
            place,
            seen,
            delivered,
        });
    }

    /// The next packet of the conversation that the packet `back` before the
    /// last is a part of, if it is a part of one; of all but ICMP with so many bytes of
    /// payload.
    pub fn turn(&self, back: u8, plan: TurnPlan, carried: usize) -> Option<(Frame, Place)> {
        let earlier = self.earlier(back)?;
        let (mut packet, place) = if plan.reply {
            let (to, seen) = earlier.seen?;
            let place = Place {
                by_initiator: !earlier.place.by_initiator,
                ..earlier.place
            };
            (answer(to, &seen), place)
        } else {
            (earlier.frame.packet, earlier.place)
        };
        if matches!(packet.payload, Payload::Headless(_)) {
            return None;
        }
        let place = Place {
            forged: plan.is_forged(),
            ..place
        };
        packet.damaged = false;
        let headers = header_length(packet.source.is_ipv4(), packet.payload, Extension::Absent);
        if packet.fragment.take().is_some() || packet.length < headers {
            packet.length = headers;
        }
        if let Payload::Tcp { data, .. } = &mut packet.payload {
            *data = short(carried);
            packet.length = headers + carried;
            self.number(&mut packet.payload, place, plan);
        } else if let Payload::Icmp {
            quoted: Some(_), ..
        } = packet.payload
        {
            // Quotes stay as they are, and need their room.
            packet.length = earlier.frame.packet.length;
            if earlier.frame.packet.fragment.is_some() {
                return None;
            }
        }
        let headers = header_length(packet.source.is_ipv4(), packet.payload, Extension::Absent);
        if let Payload::Udp { .. } | Payload::Other(_) = packet.payload {
            packet.length = headers + carried;
        }
        packet.length = packet.length.max(headers);
        Some((Frame::new(packet, Extension::Absent), place))
    }

    /// An ICMP error about the packet `back` before the last.
    pub fn error(&mut self, model: &Model, back: u8, plan: ErrorPlan) -> Option<(Frame, Place)> {
        let (to, seen) = self.earlier(back)?.seen?;
        let ipv4 = seen.source.is_ipv4();
        let (from, source) = match plan.by % 8 {
            0..=5 => (to, seen.destination),
            _ => {
                let from = InterfaceIx::new(usize::from(plan.by / 8) % model.interfaces.len());
                let own = model.interfaces[from.ix()].address_like(seen.source)?;
                (from, own.private)
            }
        };
        let kinds: &[(u8, u8)] = if ipv4 {
            &[
                (3, 4),
                (3, 1),
                (11, 0),
                (12, 0),
                (3, 3),
                (3, 4),
                (5, 1),
                (4, 0),
                (40, 0),
            ]
        } else {
            &[
                (2, 0),
                (1, 4),
                (3, 0),
                (4, 1),
                (2, 0),
                (1, 3),
                (5, 0),
                (200, 0),
            ]
        };
        let (kind, code) = *pick(kinds, plan.kind);
        let is_error = if ipv4 {
            matches!(kind, 3 | 11 | 12)
        } else {
            kind <= 4
        };
        let right = Quoted {
            source: seen.source,
            destination: seen.destination,
            speech: seen.payload.speech(),
        };
        let quoted = if is_error {
            bent(model, right, plan.bend)
        } else {
            None
        };
        let payload = Payload::Icmp { kind, code, quoted };
        let headers = header_length(ipv4, payload, Extension::Absent);
        let ip = if ipv4 { 20 } else { 40 };
        let room = match quoted {
            None => usize::from(plan.length) % ip,
            Some(Quoted { speech: None, .. }) if plan.length.is_multiple_of(2) => {
                ip + usize::from(plan.length) % 8
            }
            Some(Quoted { speech: None, .. }) => ip + 16,
            Some(_) => match plan.length {
                little @ 0..=239 => ip + 8 + usize::from(little),
                _ => 9000,
            },
        };
        let packet = Packet {
            dont_fragment: ipv4 && plan.length >= 128,
            ..Packet::whole(from, source, seen.source, payload, headers + room)
        };
        let place = self.new_talk();
        Some((Frame::new(packet, Extension::Absent), place))
    }

    /// A packet sent on by who got it for others; or else the packet `back`
    /// before the last, sent in its author's name by somebody who may.
    pub fn forward(&self, model: &Model, back: u8, by: u8) -> Option<(Frame, Place)> {
        let forwards = |ix: InterfaceIx| !model.interfaces[ix.ix()].source_dest_check;
        let is_for_others = |sent: &&Sent| {
            let Some((to, seen)) = sent.seen.filter(|_| sent.delivered) else {
                return false;
            };
            let own = &model.interfaces[to.ix()].addresses;
            // What the gateway translated would have to be written anew.
            let untouched = (seen.source, seen.destination)
                == (sent.frame.packet.source, sent.frame.packet.destination);
            untouched && forwards(to) && !own.iter().any(|a| a.private == seen.destination)
        };
        let earlier = self.earlier(back)?;
        if let Some(sent) = self.sent.iter().rev().take(8).find(is_for_others) {
            let (to, _) = sent.seen?;
            return Some((sent.frame.sent_by(to), sent.place));
        }
        let others: Vec<InterfaceIx> = model
            .interfaces()
            .map(|(ix, _)| ix)
            .filter(|ix| forwards(*ix) && *ix != earlier.frame.packet.from)
            .collect();
        if others.is_empty() {
            return None;
        }
        Some((earlier.frame.sent_by(*pick(&others, by)), earlier.place))
    }

    /// How long it takes until the flow of the packet `back` before the last
    /// idles out, at its sender or its receiver: a millisecond short, exactly,
    /// or a millisecond past.
    pub fn idle(&self, model: &Model, back: u8, by: u8) -> Duration {
        let Some(sent) = self.earlier(back) else {
            return Duration::ZERO;
        };
        let packet = &sent.frame.packet;
        let at = match sent.seen {
            Some((to, _)) if by >= 128 => to,
            _ => packet.from,
        };
        let tracking = model.interfaces[at.ix()].tracking;
        let seconds = Duration::from_secs;
        let timeouts = match packet.payload {
            Payload::Tcp { .. } => vec![tracking.tcp_established, seconds(60), seconds(10)],
            Payload::Udp { .. } => vec![tracking.udp_timeout, tracking.udp_stream],
            Payload::Other(_) => vec![seconds(600)],
            Payload::IcmpQuery { .. } | Payload::Icmp { .. } | Payload::Headless(_) => {
                vec![seconds(30)]
            }
        };
        let timeout = *pick(&timeouts, by / 4);
        let millisecond = Duration::from_millis(1);
        match by % 4 {
            0 | 1 => timeout - millisecond,
            2 => timeout,
            _ => timeout + millisecond,
        }
    }

    fn earlier(&self, back: u8) -> Option<&Sent> {
        let back = usize::from(back) % self.sent.len().max(1);
        self.sent.iter().rev().nth(back)
    }

    /// Gives a segment flags and numbers: mostly those that its place in the
    /// conversation asks for.
    fn number(&self, payload: &mut Payload, place: Place, plan: TurnPlan) {
        let segments_of = |by_initiator| {
            let place = Place {
                by_initiator,
                forged: false,
                ..place
            };
            self.sent
                .iter()
                .rev()
                .filter(move |sent| sent.place == place)
                .filter_map(|sent| Segment::of(sent.frame.packet.payload))
        };
        let own_fin = segments_of(place.by_initiator).find(|own| own.flags.fin);
        let own = segments_of(place.by_initiator).next();
        let other = segments_of(!place.by_initiator).next();
        let Payload::Tcp {
            flags: set,
            sequence,
            acknowledgement,
            data,
            ..
        } = payload
        else {
            return;
        };
        let natural = match other {
            Some(Segment {
                flags:
                    TcpFlags {
                        syn: true,
                        ack: false,
                        ..
                    },
                ..
            }) if own.is_none() => SYN_ACK,
            _ => ACK,
        };
        *set = match plan.flags % 20 {
            0..=9 => natural,
            FIN_TURN..=13 => FIN_ACK,
            14 => flags(true, false, false, false),
            15 => SYN_ACK,
            16 => flags(false, false, false, true),
            17 => flags(false, true, false, true),
            _ => first_flags(plan.flags / 8),
        };
        *sequence = own.map_or(5000, |own| own.end);
        *acknowledgement = other.map_or(0, |other| other.end);
        if let Some(fin) = own_fin.filter(|_| set.fin) {
            // Retransmitted.
            *sequence = fin.end.wrapping_sub(1).wrapping_sub(*data);
        }
        if place.forged {
            // Inside the receiver's window, and outside.
            let off = |by| *pick(&[1, 0, u32::MAX, 1000, 1 << 30, 3 << 30], by);
            *sequence = sequence.wrapping_add(off(plan.number / 16));
            *acknowledgement = acknowledgement.wrapping_add(off(plan.data));
            return;
        }
        match plan.number % 16 {
            0..=10 => {}
            // Sent again, from before; acknowledging too little, too much, or
            // so much that it is too little again.
            11 => *sequence = own.map_or(5000, |own| own.sequence),
            12 | 13 => *acknowledgement = acknowledgement.wrapping_sub(1),
            14 => *acknowledgement = acknowledgement.wrapping_add(1),
            _ => {
                let far = *pick(&[1 << 31, (1 << 31) - 1, (1 << 31) + 1], plan.number / 16);
                *acknowledgement = acknowledgement.wrapping_add(far);
            }
        }
    }
}

const ACK: TcpFlags = flags(false, true, false, false);
const SYN_ACK: TcpFlags = flags(true, true, false, false);
const FIN_ACK: TcpFlags = flags(false, true, true, false);
/// The number for which a FIN is planned.
const FIN_TURN: u8 = 10;

/// The numbers of a TCP segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    flags: TcpFlags,
    sequence: u32,
    end: u32,
}

impl Segment {
    fn of(payload: Payload) -> Option<Self> {
        match payload {
            Payload::Tcp {
                flags,
                sequence,
                data,
                ..
            } => Some(Self {
                flags,
                sequence,
                end: sequence
                    .wrapping_add(data)
                    .wrapping_add(u32::from(flags.syn) + u32::from(flags.fin)),
            }),
            _ => None,
        }
    }
}

/// The packet `seen` sent back by who got it.
fn answer(by: InterfaceIx, seen: &Packet) -> Packet {
    let payload = match seen.payload {
        Payload::Tcp {
            source_port,
            destination_port,
            flags,
            sequence,
            acknowledgement,
            data,
        } => Payload::Tcp {
            source_port: destination_port,
            destination_port: source_port,
            flags,
            sequence,
            acknowledgement,
            data,
        },
        Payload::Udp {
            source_port,
            destination_port,
        } => Payload::Udp {
            source_port: destination_port,
            destination_port: source_port,
        },
        Payload::IcmpQuery { kind, id } => Payload::IcmpQuery {
            kind: counterpart(kind),
            id,
        },
        Payload::Icmp { .. } | Payload::Other(_) | Payload::Headless(_) => seen.payload,
    };
    Packet {
        from: by,
        source: seen.destination,
        destination: seen.source,
        payload,
        ..*seen
    }
}

/// The type of the answer to a question, and the other way round.
fn counterpart(kind: u8) -> u8 {
    match kind {
        8 => 0,
        0 => 8,
        13 | 15 | 17 | 128 => kind + 1,
        14 | 16 | 18 | 129 => kind - 1,
        other => other,
    }
}

/// What an error quotes: mostly what it should, else something close to it.
fn bent(model: &Model, right: Quoted, by: u8) -> Option<Quoted> {
    let other = |address: IpAddr| {
        let others: Vec<IpAddr> = crate::models::addresses(model)
            .into_iter()
            .filter(|other| other.is_ipv4() == address.is_ipv4())
            .collect();
        *pick(&others, by)
    };
    let mut quoted = right;
    match by % 16 {
        0..=8 => {}
        9 => quoted.speech = quoted.speech.map(one_off),
        10 => {
            (quoted.source, quoted.destination) = (right.destination, right.source);
            quoted.speech = quoted.speech.map(turned);
        }
        11 => quoted.speech = None,
        12 => return None,
        13 => quoted.source = other(right.source),
        14 => quoted.destination = other(right.destination),
        _ => quoted.speech = quoted.speech.map(of_another_protocol),
    }
    Some(quoted)
}

fn one_off(speech: Speech) -> Speech {
    match speech {
        Speech::Tcp {
            source_port,
            destination_port,
        } => Speech::Tcp {
            source_port: source_port ^ 1,
            destination_port,
        },
        Speech::Udp {
            source_port,
            destination_port,
        } => Speech::Udp {
            source_port,
            destination_port: destination_port ^ 1,
        },
        Speech::Query { kind, id } => Speech::Query { kind, id: id ^ 1 },
        // Makes sure that no drawn number is an IPv6 extension header.
        Speech::Other(number) => Speech::Other(number ^ 0x80),
    }
}

fn turned(speech: Speech) -> Speech {
    match speech {
        Speech::Tcp {
            source_port,
            destination_port,
        } => Speech::Tcp {
            source_port: destination_port,
            destination_port: source_port,
        },
        Speech::Udp {
            source_port,
            destination_port,
        } => Speech::Udp {
            source_port: destination_port,
            destination_port: source_port,
        },
        Speech::Query { kind, id } => Speech::Query {
            kind: counterpart(kind),
            id,
        },
        other => other,
    }
}

fn of_another_protocol(speech: Speech) -> Speech {
    match speech {
        Speech::Tcp {
            source_port,
            destination_port,
        } => Speech::Udp {
            source_port,
            destination_port,
        },
        Speech::Udp {
            source_port,
            destination_port,
        } => Speech::Tcp {
            source_port,
            destination_port,
        },
        Speech::Query { .. } => Speech::Other(47),
        Speech::Other(_) => Speech::Udp {
            source_port: 40_000,
            destination_port: 80,
        },
    }
}

/// Who would receive the packet if every guard let it pass, and how: good
/// enough to make up a plausible answer.
fn would_be_seen(model: &Model, packet: &Packet) -> Option<(InterfaceIx, Packet)> {
    for (ix, interface) in model.interfaces() {
        for address in &interface.addresses {
            if address.private == packet.destination {
                return Some((ix, *packet));
            }
            if address.public.map(IpAddr::V4) == Some(packet.destination) {
                let source = model.interfaces[packet.from.ix()]
                    .addresses
                    .iter()
                    .find(|its| its.private == packet.source)
                    .and_then(|its| its.public)
                    .map_or(packet.source, IpAddr::V4);
                let seen = Packet {
                    source,
                    destination: address.private,
                    ..*packet
                };
                return Some((ix, seen));
            }
        }
    }
    None
}

#[test]
fn no_protocol_that_is_drawn_becomes_an_ipv6_extension_header() {
    use sgwall::model::protocol::{ICMP, ICMPV6, is_ipv6_extension};
    for number in crate::rules::PROTOCOLS.into_iter().chain([ICMP, ICMPV6]) {
        match one_off(Speech::Other(number)) {
            Speech::Other(other) => assert!(!is_ipv6_extension(other), "{number} to {other}"),
            other => panic!("{number} to {other:?}"),
        }
    }
}
