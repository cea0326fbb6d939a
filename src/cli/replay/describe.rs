//! A packet in a few words.

use std::net::SocketAddr;

use crate::model::protocol_name;
use crate::packet::{Packet, ParseError, TcpFlags, Transport};

/// What a frame of `length` bytes is, as far as it could be read.
pub(super) fn packet(parsed: Result<Packet, ParseError>, length: usize) -> String {
    match parsed {
        Ok(packet) => read(&packet),
        Err(error) => format!("{length} bytes: {error}"),
    }
}

/// `tcp 10.0.0.1:4000 > 10.0.0.2:443 [S], 40 bytes`.
fn read(packet: &Packet) -> String {
    let name = protocol_name(packet.protocol);
    let ends = |source, destination| {
        format!(
            "{} > {}",
            SocketAddr::new(packet.source, source),
            SocketAddr::new(packet.destination, destination)
        )
    };
    let hosts = format!("{} > {}", packet.source, packet.destination);
    let said = match packet.transport {
        Transport::Tcp {
            source,
            destination,
            flags: set,
            ..
        } => format!("{name} {} [{}]", ends(source, destination), flags(set)),
        Transport::Udp {
            source,
            destination,
        } => format!("{name} {}", ends(source, destination)),
        Transport::IcmpQuery { kind, code, id, .. } => {
            format!("{name} {hosts} type {kind} code {code} id {id}")
        }
        Transport::Icmp { kind, code } => format!("{name} {hosts} type {kind} code {code}"),
        Transport::Other | Transport::Fragment => format!("{name} {hosts}"),
    };
    let part = packet.fragment.map_or_else(String::new, |part| {
        let end = u32::from(part.offset) + u32::from(part.length);
        let more = if part.more { " and more" } else { "" };
        format!(", fragment {}-{end}{more} of {}", part.offset, part.id)
    });
    format!("{said}{part}, {} bytes", packet.length)
}

/// The flags as tcpdump writes them: `S.` for SYN and ACK, nothing for none.
fn flags(flags: TcpFlags) -> String {
    let TcpFlags { syn, ack, fin, rst } = flags;
    [(syn, 'S'), (fin, 'F'), (rst, 'R'), (ack, '.')]
        .into_iter()
        .filter_map(|(set, letter)| set.then_some(letter))
        .collect()
}
