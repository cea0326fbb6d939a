//! Packets as bytes: built with etherparse, read back by hand (`decode.rs`), so
//! that the two check each other.

use std::net::IpAddr;

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FlowLabel, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep,
};
use sgwall::model::InterfaceIx;
use sgwall::policy::oracle::{Packet, Payload, Quoted, Speech};

use crate::decode;

/// A packet, read and as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the oracle reads.
    pub packet: Packet,
    /// What an engine reads.
    pub bytes: Vec<u8>,
}

/// An extension header of an IPv6 packet; it makes no difference to anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// There is none.
    Absent,
    /// Read by everybody on the way: it stands before a fragment header.
    HopByHop,
    /// Read by the receiver: it stands in the datagram, behind one.
    Destination,
}

/// Bytes of an extension header.
const EXTENSION: usize = 8;
/// Bytes of a quoted packet's payload, as its header says; most are cut off.
const QUOTED_BODY: usize = 64;
/// What whole packets have as identification.
const IDENTIFICATION: u16 = 0x5347;
const HOP_LIMIT: u8 = 64;

impl Frame {
    /// A whole packet.
    pub fn new(packet: Packet, extension: Extension) -> Self {
        Self {
            packet,
            bytes: encode(&packet, extension),
        }
    }

    /// What `from` sends as `bytes`.
    ///
    /// # Panics
    /// If nobody could read them.
    pub fn read(from: InterfaceIx, bytes: Vec<u8>) -> Self {
        let packet = decode::lenient(from, &bytes).expect("bytes of our own");
        Self { packet, bytes }
    }

    /// The same, sent by another.
    pub fn sent_by(&self, from: InterfaceIx) -> Self {
        let mut frame = self.clone();
        frame.packet.from = from;
        frame
    }
}

/// Bytes of the headers of a whole packet, up to what it carries.
pub fn header_length(ipv4: bool, payload: Payload, extension: Extension) -> usize {
    let ip = match (ipv4, extension) {
        (true, _) => 20,
        (false, Extension::Absent) => 40,
        (false, _) => 40 + EXTENSION,
    };
    ip + match payload {
        Payload::Tcp { .. } => 20,
        Payload::Udp { .. } | Payload::IcmpQuery { .. } | Payload::Icmp { .. } => 8,
        Payload::Other(_) | Payload::Headless(_) => 0,
    }
}

/// The bytes of a whole `packet`: checksums right, padded to `packet.length`.
///
/// # Panics
/// If it isn't whole, is shorter than its headers, or mixes families.
pub fn encode(packet: &Packet, extension: Extension) -> Vec<u8> {
    assert_eq!(packet.fragment, None, "{packet}");
    let ipv4 = packet.source.is_ipv4();
    let room = packet.length - header_length(ipv4, packet.payload, extension);
    let body = match packet.payload {
        Payload::Icmp {
            quoted: Some(quoted),
            ..
        } => quote(&quoted, room),
        _ => (0..=u8::MAX).cycle().take(room).collect(),
    };
    let ip = PacketBuilder::ip(ip_headers(packet, extension));
    let mut bytes = Vec::with_capacity(packet.length);
    write(ip, packet, &body, &mut bytes);
    assert_eq!(bytes.len(), packet.length, "{packet}");
    if packet.damaged {
        damage(&mut bytes);
    }
    bytes
}

/// A part of a datagram, as a fragment's header says it.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// The identification.
    pub id: u16,
    /// Bytes of the datagram before it; only multiples of 8 can be said.
    pub offset: usize,
    /// Bytes of the datagram in it.
    pub length: usize,
    /// Whether it claims that more follows.
    pub more: bool,
    /// IPv4's DF.
    pub dont_fragment: bool,
}

/// The fragment of the whole packet `bytes` that carries `part`; past the
/// datagram's end it is filled up with zeros.
pub fn cut(bytes: &[u8], part: Part) -> Vec<u8> {
    let (header, datagram) = bytes.split_at(datagram_start(bytes));
    let payload: Vec<u8> = datagram
        .iter()
        .copied()
        .skip(part.offset)
        .chain(std::iter::repeat(0))
        .take(part.length)
        .collect();
    let units = u16::try_from(part.offset / 8).expect("an offset has 13 bits");
    let mut fragment = header.to_vec();
    if bytes[0] >> 4 == 4 {
        let flags = u16::from(part.dont_fragment) << 14 | u16::from(part.more) << 13;
        fragment[4..6].copy_from_slice(&part.id.to_be_bytes());
        fragment[6..8].copy_from_slice(&(flags | units).to_be_bytes());
        fragment.extend(payload);
        decode::finish_v4(&mut fragment);
    } else {
        // The last header before the datagram names the fragment header now,
        // which names what the datagram begins with.
        let at = if header.len() == 40 { 6 } else { 40 };
        let next = std::mem::replace(&mut fragment[at], 44);
        let field = units << 3 | u16::from(part.more);
        fragment.extend([next, 0]);
        fragment.extend(field.to_be_bytes());
        fragment.extend(u32::from(part.id).to_be_bytes());
        fragment.extend(payload);
        decode::finish_v6(&mut fragment);
    }
    fragment
}

/// Corrupts the header checksum of an IPv4 packet; leaves IPv6 packets as they are.
pub fn damage(bytes: &mut [u8]) {
    if bytes[0] >> 4 == 4 {
        bytes[10] ^= 0x10;
    }
}

/// Where the datagram starts in a whole packet: what its fragments share
/// stands before.
pub fn datagram_start(bytes: &[u8]) -> usize {
    match (bytes[0] >> 4, bytes[6]) {
        (4, _) => 20,
        (_, 0) => 40 + EXTENSION,
        _ => 40,
    }
}

fn ip_headers(packet: &Packet, extension: Extension) -> IpHeaders {
    match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header {
                identification: IDENTIFICATION,
                dont_fragment: packet.dont_fragment,
                time_to_live: HOP_LIMIT,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                traffic_class: 0,
                flow_label: Ipv6FlowLabel::ZERO,
                payload_length: 0,
                next_header: IpNumber(0),
                hop_limit: HOP_LIMIT,
                source: source.octets(),
                destination: destination.octets(),
            };
            // An option of four zeros, of a kind that may be skipped.
            let options = Ipv6RawExtHeader::new_raw(IpNumber(0), &[0x1e, 4, 0, 0, 0, 0])
                .expect("six bytes fill the smallest");
            let mut extensions = Ipv6Extensions::default();
            match extension {
                Extension::Absent => {}
                Extension::HopByHop => extensions.hop_by_hop_options = Some(options),
                Extension::Destination => extensions.destination_options = Some(options),
            }
            IpHeaders::Ipv6(header, extensions)
        }
        _ => panic!("one packet has one family: {packet}"),
    }
}

fn write(ip: PacketBuilderStep<IpHeaders>, packet: &Packet, body: &[u8], bytes: &mut Vec<u8>) {
    let ipv4 = packet.source.is_ipv4();
    let icmp = |ip: PacketBuilderStep<IpHeaders>, kind, code, rest, bytes: &mut Vec<u8>| {
        if ipv4 {
            ip.icmpv4_raw(kind, code, rest).write_to_vec(bytes, body)
        } else {
            ip.icmpv6_raw(kind, code, rest).write_to_vec(bytes, body)
        }
    };
    let written = match packet.payload {
        Payload::Tcp {
            source_port,
            destination_port,
            flags,
            sequence,
            acknowledgement,
            data,
        } => {
            assert_eq!(data as usize, body.len(), "{packet}");
            let mut tcp = ip.tcp(source_port, destination_port, sequence, 65_000);
            // The number is there without the flag too, and means nothing.
            tcp = tcp.ack(acknowledgement);
            if flags.syn {
                tcp = tcp.syn();
            }
            if flags.fin {
                tcp = tcp.fin();
            }
            if flags.rst {
                tcp = tcp.rst();
            }
            let written = tcp.write_to_vec(bytes, body);
            if !flags.ack {
                decode::clear_tcp_ack(bytes);
            }
            written
        }
        Payload::Udp {
            source_port,
            destination_port,
        } => ip
            .udp(source_port, destination_port)
            .write_to_vec(bytes, body),
        Payload::IcmpQuery { kind, id } => {
            let [high, low] = id.to_be_bytes();
            icmp(ip, kind, 0, [high, low, 0, 1], bytes)
        }
        Payload::Icmp { kind, code, .. } => icmp(ip, kind, code, [0; 4], bytes),
        Payload::Other(number) => ip.write_to_vec(bytes, IpNumber(number), body),
        Payload::Headless(_) => panic!("a whole packet has its headers: {packet}"),
    };
    written.expect("the packet fits its headers");
}

/// What an ICMP error quotes of a packet: `room` bytes. Less than 8 bytes past
/// the IP header say nothing of the conversation, so what has none is cut off
/// there, or is a fragment other than the first if there is room for more.
fn quote(quoted: &Quoted, room: usize) -> Vec<u8> {
    let about = Packet::whole(
        InterfaceIx::new(0),
        quoted.source,
        quoted.destination,
        Payload::Udp {
            source_port: 40_000,
            destination_port: 53,
        },
        0,
    );
    let payload = match quoted.speech {
        None => about.payload,
        Some(Speech::Tcp {
            source_port,
            destination_port,
        }) => Payload::Tcp {
            source_port,
            destination_port,
            flags: Default::default(),
            sequence: 1,
            acknowledgement: 0,
            data: decode::short(QUOTED_BODY),
        },
        Some(Speech::Udp {
            source_port,
            destination_port,
        }) => Payload::Udp {
            source_port,
            destination_port,
        },
        Some(Speech::Query { kind, id }) => Payload::IcmpQuery { kind, id },
        Some(Speech::Other(number)) => Payload::Other(number),
    };
    let headers = header_length(quoted.source.is_ipv4(), payload, Extension::Absent);
    let about = Packet {
        payload,
        length: headers + QUOTED_BODY,
        ..about
    };
    let mut bytes = encode(&about, Extension::Absent);
    if quoted.speech.is_none() && room >= datagram_start(&bytes) + 8 {
        let later = Part {
            id: 1,
            offset: 16,
            length: QUOTED_BODY,
            more: true,
            dont_fragment: false,
        };
        bytes = cut(&bytes, later);
    }
    bytes.resize(room, 0);
    bytes
}
