//! Packets as bytes, put together by hand: nothing of the code under test, so
//! that a mistake there isn't made here too.

use std::net::IpAddr;

/// The IP header, and the part of a datagram that follows it.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub id: u32,
    /// In bytes; only its multiples of 8 can be written.
    pub offset: u16,
    pub more: bool,
    pub dont_fragment: bool,
    /// An IPv6 extension header before all else.
    pub extension: bool,
}

/// The packet: right lengths, right header checksum. IPv6 gets a fragment
/// header where it is one. `None` if the addresses' families differ or it is
/// too long.
pub fn ip(header: &Header, payload: &[u8]) -> Option<Vec<u8>> {
    match (header.source, header.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = u16::try_from(20 + payload.len()).ok()?;
            let flags = u16::from(header.dont_fragment) << 14 | u16::from(header.more) << 13;
            let mut bytes = vec![0x45, 0];
            bytes.extend(length.to_be_bytes());
            bytes.extend(&header.id.to_be_bytes()[2..]);
            bytes.extend((flags | (header.offset / 8)).to_be_bytes());
            bytes.extend([64, header.protocol, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            let sum = !sum(&bytes, 0);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes.extend(payload);
            Some(bytes)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let is_fragment = header.offset > 0 || header.more;
            let mut next = header.protocol;
            let mut extensions: Vec<u8> = Vec::new();
            if is_fragment {
                let place = (header.offset & !7) | u16::from(header.more);
                extensions.extend([next, 0]);
                extensions.extend(place.to_be_bytes());
                extensions.extend(header.id.to_be_bytes());
                next = 44;
            }
            if header.extension {
                // Hop-by-hop options: one PadN of four bytes.
                extensions.splice(0..0, [next, 0, 1, 4, 0, 0, 0, 0]);
                next = 0;
            }
            let length = u16::try_from(extensions.len() + payload.len()).ok()?;
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend(length.to_be_bytes());
            bytes.extend([next, 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend(extensions);
            bytes.extend(payload);
            Some(bytes)
        }
        _ => None,
    }
}

/// Ports of a TCP or UDP packet.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub source: u16,
    pub destination: u16,
}

/// A TCP segment with a right checksum between the addresses of `header`.
/// `flags` are the header's own bits: FIN 1, SYN 2, RST 4, ACK 16.
pub fn tcp(header: &Header, ports: Ports, flags: u8, numbers: (u32, u32), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(ports.source.to_be_bytes());
    bytes.extend(ports.destination.to_be_bytes());
    bytes.extend(numbers.0.to_be_bytes());
    bytes.extend(numbers.1.to_be_bytes());
    bytes.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    bytes.extend(data);
    put_checksum(header, &mut bytes, 16);
    bytes
}

/// A UDP datagram with a right checksum.
pub fn udp(header: &Header, ports: Ports, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + data.len()).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(8 + data.len());
    bytes.extend(ports.source.to_be_bytes());
    bytes.extend(ports.destination.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    put_checksum(header, &mut bytes, 6);
    if bytes[6..8] == [0, 0] {
        bytes[6..8].copy_from_slice(&[0xff, 0xff]);
    }
    bytes
}

/// An ICMP or ICMPv6 message with a right checksum; `rest` is what its second
/// word says.
pub fn icmp(header: &Header, kind: u8, code: u8, rest: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest.to_be_bytes());
    bytes.extend(data);
    put_checksum(header, &mut bytes, 2);
    bytes
}

fn put_checksum(header: &Header, bytes: &mut [u8], at: usize) {
    let start = match header.protocol {
        1 => 0,
        _ => pseudo_header(
            header.source,
            header.destination,
            header.protocol,
            bytes.len(),
        ),
    };
    let sum = !sum(bytes, start);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Sum of the words that checksums count in besides the packet's own (RFC 9293
/// §3.1, RFC 8200 §8.1).
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u16 {
    let mut bytes = Vec::with_capacity(40);
    for address in [source, destination] {
        match address {
            IpAddr::V4(v4) => bytes.extend(v4.octets()),
            IpAddr::V6(v6) => bytes.extend(v6.octets()),
        }
    }
    bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend([0, protocol]);
    sum(&bytes, 0)
}

/// One's complement sum of 16-bit words (RFC 1071).
pub fn sum(bytes: &[u8], start: u16) -> u16 {
    let mut total = u64::from(start);
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        total += u64::from(u16::from_be_bytes([pair[0], low]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap_or(u16::MAX)
}
