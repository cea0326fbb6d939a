//! Packets as bytes: built with etherparse, read back by hand, so that the two
//! check each other.

use std::net::IpAddr;

use etherparse::{IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
use sgwall::policy::oracle::{Packet, Payload, TcpFlags};

/// The bytes of `packet`: checksums right, padded to `packet.length`.
///
/// # Panics
/// Below [`min_length`], or when the families of the addresses differ.
pub fn encode(packet: &Packet) -> Vec<u8> {
    let room = packet.length - header_length(packet);
    let body = match packet.payload {
        Payload::Icmp { kind, .. } if is_icmp_error(packet, kind) => embedded(packet, room),
        _ => (0..=u8::MAX).cycle().take(room).collect(),
    };
    let ip = match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            PacketBuilder::ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("one packet has one family: {packet}"),
    };
    let mut bytes = Vec::with_capacity(packet.length);
    write(ip, packet, &body, &mut bytes);
    assert_eq!(bytes.len(), packet.length, "{packet}");
    bytes
}

/// The shortest that a packet with this payload can be.
pub fn min_length(ipv4: bool, payload: Payload) -> usize {
    let ip = if ipv4 { 20 } else { 40 };
    ip + match payload {
        Payload::Tcp { .. } => 20,
        Payload::Udp { .. } | Payload::IcmpEcho { .. } => 8,
        // Room for the packet that an error is about: header and eight bytes.
        Payload::Icmp { .. } => 8 + ip + 8,
        Payload::Other(_) => 0,
    }
}

/// What a receiver reads from `bytes`; `packet.from` is only handed through.
///
/// # Errors
/// What is wrong with the bytes: lengths, checksums.
pub fn decode(from: sgwall::model::InterfaceIx, bytes: &[u8]) -> Result<Packet, String> {
    let version = bytes.first().ok_or("empty")? >> 4;
    let (source, destination, protocol, rest) = match version {
        4 => {
            need(bytes, 20)?;
            if bytes[0] != 0x45 || be16(bytes, 2) != bytes.len() {
                return Err("IPv4 lengths disagree".into());
            }
            if sum(&bytes[..20], 0) != 0xffff {
                return Err("IPv4 header checksum is wrong".into());
            }
            let address =
                |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("4"));
            (address(12), address(16), bytes[9], &bytes[20..])
        }
        6 => {
            need(bytes, 40)?;
            if be16(bytes, 4) + 40 != bytes.len() {
                return Err("IPv6 lengths disagree".into());
            }
            let address =
                |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("16"));
            (address(8), address(24), bytes[6], &bytes[40..])
        }
        other => return Err(format!("IP version {other}")),
    };
    let payload = match (protocol, version) {
        (6, _) => {
            need(rest, 20)?;
            verify(source, destination, protocol, rest)?;
            let flags = rest[13];
            Payload::Tcp {
                source_port: port(rest, 0),
                destination_port: port(rest, 2),
                flags: TcpFlags {
                    fin: flags & 1 != 0,
                    syn: flags & 2 != 0,
                    rst: flags & 4 != 0,
                    ack: flags & 16 != 0,
                },
            }
        }
        (17, _) => {
            need(rest, 8)?;
            if be16(rest, 4) != rest.len() {
                return Err("UDP lengths disagree".into());
            }
            verify(source, destination, protocol, rest)?;
            Payload::Udp {
                source_port: port(rest, 0),
                destination_port: port(rest, 2),
            }
        }
        (1, 4) => {
            need(rest, 8)?;
            if sum(rest, 0) != 0xffff {
                return Err("ICMP checksum is wrong".into());
            }
            icmp(rest, [8, 0])
        }
        (58, 6) => {
            need(rest, 8)?;
            verify(source, destination, protocol, rest)?;
            icmp(rest, [128, 129])
        }
        (number, _) => Payload::Other(number),
    };
    Ok(Packet {
        from,
        source,
        destination,
        payload,
        length: bytes.len(),
    })
}

fn write(ip: PacketBuilderStep<IpHeaders>, packet: &Packet, body: &[u8], bytes: &mut Vec<u8>) {
    let written = match packet.payload {
        Payload::Tcp {
            source_port,
            destination_port,
            flags,
        } => {
            let mut tcp = ip.tcp(source_port, destination_port, 1, 65_000);
            if flags.syn {
                tcp = tcp.syn();
            }
            if flags.ack {
                tcp = tcp.ack(1);
            }
            if flags.fin {
                tcp = tcp.fin();
            }
            if flags.rst {
                tcp = tcp.rst();
            }
            tcp.write_to_vec(bytes, body)
        }
        Payload::Udp {
            source_port,
            destination_port,
        } => ip
            .udp(source_port, destination_port)
            .write_to_vec(bytes, body),
        Payload::IcmpEcho { request, id } => match (packet.source.is_ipv4(), request) {
            (true, true) => ip.icmpv4_echo_request(id, 1).write_to_vec(bytes, body),
            (true, false) => ip.icmpv4_echo_reply(id, 1).write_to_vec(bytes, body),
            (false, true) => ip.icmpv6_echo_request(id, 1).write_to_vec(bytes, body),
            (false, false) => ip.icmpv6_echo_reply(id, 1).write_to_vec(bytes, body),
        },
        Payload::Icmp { kind, code } => {
            if packet.source.is_ipv4() {
                ip.icmpv4_raw(kind, code, [0; 4]).write_to_vec(bytes, body)
            } else {
                ip.icmpv6_raw(kind, code, [0; 4]).write_to_vec(bytes, body)
            }
        }
        Payload::Other(number) => ip.write_to_vec(bytes, IpNumber(number), body),
    };
    written.expect("the packet fits its headers");
}

fn header_length(packet: &Packet) -> usize {
    let ip = if packet.source.is_ipv4() { 20 } else { 40 };
    ip + match packet.payload {
        Payload::Tcp { .. } => 20,
        Payload::Udp { .. } | Payload::IcmpEcho { .. } | Payload::Icmp { .. } => 8,
        Payload::Other(_) => 0,
    }
}

/// ICMP types that carry the packet they are about (RFC 792, RFC 4443 §2.1).
fn is_icmp_error(packet: &Packet, kind: u8) -> bool {
    if packet.source.is_ipv4() {
        matches!(kind, 3 | 4 | 5 | 11 | 12)
    } else {
        kind < 128
    }
}

/// The packet that an ICMP error is about: from the error's receiver to its
/// sender, cut off where the room ends.
fn embedded(packet: &Packet, room: usize) -> Vec<u8> {
    let about = Packet {
        source: packet.destination,
        destination: packet.source,
        payload: Payload::Udp {
            source_port: 40_000,
            destination_port: 53,
        },
        length: room,
        ..*packet
    };
    encode(&about)
}

fn icmp(message: &[u8], [request, reply]: [u8; 2]) -> Payload {
    let (kind, code) = (message[0], message[1]);
    let id = port(message, 4);
    match (kind, code) {
        (kind, 0) if kind == request => Payload::IcmpEcho { request: true, id },
        (kind, 0) if kind == reply => Payload::IcmpEcho { request: false, id },
        _ => Payload::Icmp { kind, code },
    }
}

/// Checks a checksum over pseudo-header and segment (RFC 9293 §3.1, RFC 8200 §8.1).
fn verify(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> Result<(), String> {
    let mut pseudo = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    let length = u32::try_from(segment.len()).expect("a packet is short");
    pseudo.extend(length.to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    let start = sum(&pseudo, 0);
    if sum(segment, start) == 0xffff {
        Ok(())
    } else {
        Err(format!("checksum of protocol {protocol} is wrong"))
    }
}

/// The ones' complement sum of 16-bit words (RFC 1071), continued from `start`.
fn sum(bytes: &[u8], start: u32) -> u32 {
    let mut total = start;
    for word in bytes.chunks(2) {
        let low = word.get(1).copied().unwrap_or(0);
        total += u32::from(u16::from_be_bytes([word[0], low]));
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

fn need(bytes: &[u8], length: usize) -> Result<(), String> {
    if bytes.len() < length {
        return Err(format!("{} bytes where {length} are needed", bytes.len()));
    }
    Ok(())
}

fn port(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be16(bytes: &[u8], at: usize) -> usize {
    usize::from(port(bytes, at))
}
