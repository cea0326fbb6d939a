//! Bytes back to packets, by hand and with every checksum, so that what is
//! forwarded can be told from what should be. Whole packets from fragments.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use sgwall::model::InterfaceIx;
use sgwall::policy::oracle::{Fragment, Packet, Payload, Quoted, Speech, TcpFlags};

/// What a receiver reads from `bytes`; `from` is only handed through.
///
/// # Errors
/// What is wrong with the bytes: lengths, checksums. (A fragment's transport
/// checksum covers what isn't there: see [`reassemble`].)
pub fn decode(from: InterfaceIx, bytes: &[u8]) -> Result<Packet, String> {
    read(from, bytes, true)
}

/// The same, whatever the checksums say: the packet records a wrong IPv4 header checksum, and the
/// data path doesn't check the others. A packet that should have a transport header but has none
/// is headless.
///
/// # Errors
/// If there is no whole IP header that agrees with the length.
pub fn lenient(from: InterfaceIx, bytes: &[u8]) -> Result<Packet, String> {
    read(from, bytes, false)
}

/// An IP header with its extensions.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    /// What follows the headers.
    protocol: u8,
    /// Where it starts.
    offset: usize,
    fragment: Option<Fragment>,
    dont_fragment: bool,
    /// True if the checksum of the IPv4 header is wrong.
    damaged: bool,
    /// The chain of headers ends before a transport header.
    cut_short: bool,
}

fn read(from: InterfaceIx, bytes: &[u8], strict: bool) -> Result<Packet, String> {
    let ip = match bytes.first().map(|byte| byte >> 4) {
        Some(4) => ipv4(bytes, bytes.len(), strict)?,
        Some(6) => ipv6(bytes, bytes.len())?,
        version => return Err(format!("IP version {version:?}")),
    };
    let later = ip.fragment.is_some_and(|fragment| fragment.offset > 0);
    let payload = if later || ip.cut_short {
        None
    } else {
        let strict = strict && ip.fragment.is_none();
        transport(&ip, &bytes[ip.offset..], strict)?
    };
    let payload = match (payload, ip.fragment) {
        (Some(payload), _) => payload,
        (None, Some(fragment)) => Payload::Headless(fragment.protocol),
        (None, None) if strict => return Err("no whole transport header".into()),
        (None, None) => Payload::Headless(ip.protocol),
    };
    Ok(Packet {
        from,
        source: ip.source,
        destination: ip.destination,
        payload,
        length: bytes.len(),
        fragment: ip.fragment,
        dont_fragment: ip.dont_fragment,
        damaged: ip.damaged,
    })
}

/// Reads an IPv4 header; the packet has `length` bytes, though `bytes` may have
/// fewer.
fn ipv4(bytes: &[u8], length: usize, strict: bool) -> Result<Ip, String> {
    need(bytes, 20)?;
    let offset = usize::from(bytes[0] & 0x0f) * 4;
    need(bytes, offset.max(20))?;
    if be16(bytes, 2) != length || offset < 20 {
        return Err("IPv4 lengths disagree".into());
    }
    let damaged = sum(&bytes[..offset], 0) != 0xffff;
    if strict && damaged {
        return Err("IPv4 header checksum is wrong".into());
    }
    let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("4"));
    let field = be16(bytes, 6);
    let (more, units) = (field & 0x2000 != 0, field & 0x1fff);
    let fragment = (more || units > 0).then(|| Fragment {
        id: short(be16(bytes, 4)),
        protocol: bytes[9],
        offset: short(8 * units),
        length: short(length - offset),
        more,
        content: content(&bytes[offset..]),
    });
    Ok(Ip {
        source: address(12),
        destination: address(16),
        protocol: bytes[9],
        offset,
        fragment,
        dont_fragment: field & 0x4000 != 0,
        damaged,
        cut_short: false,
    })
}

/// Reads an IPv6 header and its extensions, up to the transport header or, in a
/// fragment other than the first, up to the fragment header.
fn ipv6(bytes: &[u8], length: usize) -> Result<Ip, String> {
    need(bytes, 40)?;
    if be16(bytes, 4) + 40 != length {
        return Err("IPv6 lengths disagree".into());
    }
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("16"));
    let mut ip = Ip {
        source: address(8),
        destination: address(24),
        protocol: bytes[6],
        offset: 40,
        fragment: None,
        dont_fragment: false,
        damaged: false,
        cut_short: false,
    };
    while matches!(ip.protocol, 0 | 43 | 44 | 60) {
        let rest = &bytes[ip.offset..];
        let size = match rest.get(1) {
            Some(_) if ip.protocol == 44 => 8,
            Some(words) => 8 + 8 * usize::from(*words),
            None => 8,
        };
        if rest.len() < size {
            if ip.fragment.is_some() {
                ip.cut_short = true;
                return Ok(ip);
            }
            return Err("an extension header is cut short".into());
        }
        let is_fragment = ip.protocol == 44;
        ip.protocol = rest[0];
        ip.offset += size;
        if !is_fragment {
            continue;
        }
        let field = be16(rest, 2);
        let (more, units) = (field & 1 != 0, field >> 3);
        if more || units > 0 {
            ip.fragment = Some(Fragment {
                id: u32::from_be_bytes(rest[4..8].try_into().expect("4")),
                protocol: rest[0],
                offset: short(8 * units),
                length: short(length - ip.offset),
                more,
                content: content(&bytes[ip.offset..]),
            });
        }
        if units > 0 {
            break;
        }
    }
    Ok(ip)
}

/// Returns a number that represents the bytes of a part of a datagram.
fn content(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// The transport header at the start of `rest`; `None` if it isn't whole.
fn transport(ip: &Ip, rest: &[u8], strict: bool) -> Result<Option<Payload>, String> {
    let ipv4 = ip.source.is_ipv4();
    let verify = |over_addresses| match strict {
        true => verify(ip, rest, over_addresses),
        false => Ok(()),
    };
    Ok(match (ip.protocol, ipv4) {
        (6, _) if rest.len() < 20 => None,
        (6, _) => {
            let header = usize::from(rest[12] >> 4) * 4;
            if header < 20 || rest.len() < header {
                return Ok(None);
            }
            verify(true)?;
            let flags = rest[13];
            Some(Payload::Tcp {
                source_port: port(rest, 0),
                destination_port: port(rest, 2),
                flags: TcpFlags {
                    fin: flags & 1 != 0,
                    syn: flags & 2 != 0,
                    rst: flags & 4 != 0,
                    ack: flags & 16 != 0,
                },
                sequence: be32(rest, 4),
                acknowledgement: be32(rest, 8),
                data: short(rest.len() - header),
            })
        }
        (17, _) if rest.len() < 8 => None,
        (17, _) => {
            let claimed = be16(rest, 4);
            let whole = ip.fragment.is_none();
            if strict && claimed != rest.len() {
                return Err("UDP lengths disagree".into());
            }
            if claimed < 8 || (whole && claimed > rest.len()) {
                return Ok(None);
            }
            verify(true)?;
            Some(Payload::Udp {
                source_port: port(rest, 0),
                destination_port: port(rest, 2),
            })
        }
        (1, true) | (58, false) if rest.len() < 8 => None,
        (1, true) | (58, false) => {
            verify(!ipv4)?;
            Some(icmp(ipv4, rest, strict)?)
        }
        (number, _) => Some(Payload::Other(number)),
    })
}

fn icmp(ipv4: bool, message: &[u8], strict: bool) -> Result<Payload, String> {
    let (kind, code) = (message[0], message[1]);
    if code == 0 && is_query(ipv4, kind) {
        let id = port(message, 4);
        return Ok(Payload::IcmpQuery { kind, id });
    }
    let is_error = if ipv4 {
        matches!(kind, 3 | 11 | 12)
    } else {
        matches!(kind, 1..=4)
    };
    let quoted = if is_error {
        quoted(ipv4, &message[8..], strict)?
    } else {
        None
    };
    Ok(Payload::Icmp { kind, code, quoted })
}

/// Types with an identifier (RFC 792, RFC 950, RFC 4443 §4).
fn is_query(ipv4: bool, kind: u8) -> bool {
    if ipv4 {
        matches!(kind, 0 | 8 | 13..=18)
    } else {
        matches!(kind, 128 | 129)
    }
}

/// The packet that an ICMP error quotes. What isn't a packet of the error's own
/// family is not quoted; that its transport is cut off is usual.
fn quoted(ipv4: bool, quote: &[u8], strict: bool) -> Result<Option<Quoted>, String> {
    let version = if ipv4 { 4 } else { 6 };
    let header = if ipv4 { 20 } else { 40 };
    if quote.len() < header || quote[0] >> 4 != version {
        return Ok(None);
    }
    let ip = if ipv4 {
        self::ipv4(quote, be16(quote, 2), strict)
    } else {
        ipv6(quote, be16(quote, 4) + 40)
    };
    let ip = match ip {
        Ok(ip) => ip,
        Err(wrong) if strict => return Err(wrong),
        // An error that is itself sent in fragments: the first may end anywhere.
        Err(_) => return Ok(None),
    };
    let rest = quote.get(ip.offset..).unwrap_or(&[]);
    let later = ip.fragment.is_some_and(|fragment| fragment.offset > 0);
    let speech = match (ip.protocol, rest.len()) {
        _ if later || ip.cut_short => None,
        (6, 8..) => Some(Speech::Tcp {
            source_port: port(rest, 0),
            destination_port: port(rest, 2),
        }),
        (17, 8..) => Some(Speech::Udp {
            source_port: port(rest, 0),
            destination_port: port(rest, 2),
        }),
        (1, 8..) if ipv4 && rest[1] == 0 && is_query(ipv4, rest[0]) => Some(Speech::Query {
            kind: rest[0],
            id: port(rest, 4),
        }),
        (58, 8..) if !ipv4 && rest[1] == 0 && is_query(ipv4, rest[0]) => Some(Speech::Query {
            kind: rest[0],
            id: port(rest, 4),
        }),
        (1, _) if ipv4 => None,
        (58, _) if !ipv4 => None,
        (6 | 17, _) => None,
        (number, _) => Some(Speech::Other(number)),
    };
    Ok(Some(Quoted {
        source: ip.source,
        destination: ip.destination,
        speech,
    }))
}

/// The whole packet that fragments make, in any order.
///
/// # Errors
/// If they leave gaps or overlap, or disagree about the end.
pub fn reassemble<'f>(fragments: impl Iterator<Item = &'f Vec<u8>>) -> Result<Vec<u8>, String> {
    let mut parts: Vec<(usize, usize, bool, &Vec<u8>)> = Vec::new();
    for bytes in fragments {
        let packet = lenient(InterfaceIx::new(0), bytes)?;
        let Some(fragment) = packet.fragment else {
            return Err("a whole packet among fragments".into());
        };
        let start = bytes.len() - fragment.length as usize;
        parts.push((fragment.offset as usize, start, fragment.more, bytes));
    }
    parts.sort_by_key(|part| part.0);
    let mut datagram: Vec<u8> = Vec::new();
    for (nth, (offset, start, more, bytes)) in parts.iter().enumerate() {
        if *offset != datagram.len() || *more != (nth + 1 < parts.len()) {
            return Err(format!("gap, overlap or wrong end at {offset}"));
        }
        datagram.extend(&bytes[*start..]);
    }
    let Some((0, start, _, first)) = parts.first() else {
        return Err("no fragments".into());
    };
    let mut whole = first[..*start].to_vec();
    if whole[0] >> 4 == 4 {
        whole[6..8].copy_from_slice(&[0, 0]);
        whole.extend(datagram);
        finish_v4(&mut whole);
    } else {
        let header = whole.split_off(start - 8);
        let at = if whole.len() == 40 { 6 } else { 40 };
        whole[at] = header[0];
        whole.extend(datagram);
        finish_v6(&mut whole);
    }
    Ok(whole)
}

/// Makes length and header checksum of an IPv4 packet right.
pub fn finish_v4(packet: &mut [u8]) {
    let length = u16::try_from(packet.len()).expect("a packet is short");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[10..12].copy_from_slice(&[0, 0]);
    let header = usize::from(packet[0] & 0x0f) * 4;
    let checksum = !u16::try_from(sum(&packet[..header], 0)).expect("folded");
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// Makes the length of an IPv6 packet right.
pub fn finish_v6(packet: &mut [u8]) {
    let length = u16::try_from(packet.len() - 40).expect("a packet is short");
    packet[4..6].copy_from_slice(&length.to_be_bytes());
}

/// Takes the ACK flag off the whole TCP packet `bytes`, leaving the number.
pub fn clear_tcp_ack(bytes: &mut [u8]) {
    let ip = match bytes[0] >> 4 {
        4 => ipv4(bytes, bytes.len(), false),
        _ => ipv6(bytes, bytes.len()),
    };
    let at = ip.expect("a packet of our own").offset;
    bytes[at + 13] &= !16;
    // Clearing a bit of a sum's word adds it to the checksum (RFC 1624).
    let checksum = u32::from(port(bytes, at + 16)) + 16;
    let folded = (checksum & 0xffff) + (checksum >> 16);
    let folded = u16::try_from(folded).expect("folded");
    bytes[at + 16..at + 18].copy_from_slice(&folded.to_be_bytes());
}

/// Checks a checksum over a segment, with the pseudo header if it covers the
/// addresses (RFC 9293 §3.1, RFC 8200 §8.1). UDP over IPv4 may do without.
fn verify(ip: &Ip, segment: &[u8], over_addresses: bool) -> Result<(), String> {
    if ip.protocol == 17 && ip.source.is_ipv4() && segment[6..8] == [0, 0] {
        return Ok(());
    }
    let mut pseudo = Vec::new();
    if over_addresses {
        for address in [ip.source, ip.destination] {
            match address {
                IpAddr::V4(address) => pseudo.extend(address.octets()),
                IpAddr::V6(address) => pseudo.extend(address.octets()),
            }
        }
        pseudo.extend(short(segment.len()).to_be_bytes());
        pseudo.extend([0, 0, 0, ip.protocol]);
    }
    if sum(segment, sum(&pseudo, 0)) == 0xffff {
        Ok(())
    } else {
        Err(format!("checksum of protocol {} is wrong", ip.protocol))
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

/// A length within one packet.
pub fn short(length: usize) -> u32 {
    u32::try_from(length).expect("a packet is short")
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

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4"))
}
