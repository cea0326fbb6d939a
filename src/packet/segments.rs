//! What a network device would have done: super-packets to packets of the wire,
//! checksums computed.

use super::checksum;
use super::field::{half, low, put_half, put_word, word};
use super::parse;
use super::shape::{GRE, GRE_CHECKSUM, Segments, Shape, Summed, Unsummed};
use crate::model::protocol;

/// Where in an IP header the fields are that differ from segment to segment.
const IPV4_LENGTH: usize = 2;
const IPV4_ID: usize = 4;
const IPV4_CHECKSUM: usize = 10;
const IPV6_LENGTH: usize = 4;
/// Shortest IP header.
const IPV4_HEADER: usize = 20;
/// Likewise in TCP's and UDP's.
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
/// Position of the checksum in a GRE header that has one (RFC 2784).
const GRE_SUM: usize = 4;

/// TCP's flags that one segment alone has: the last, and (RFC 3168 §6.1.2) the first.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A frame that isn't what its shape says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a frame of that shape")]
pub struct NotSegmented;

/// Hands each packet of the wire that `frame` stands for to `send`, in order and
/// with its checksums computed; `scratch` has room for one. Packets of IPv4 count
/// their identifications up.
///
/// What is wrong with a header's checksum or a pseudo header's sum stays wrong: both
/// follow what changes, and are never made anew. A checksum of a tunnel's own over what it
/// carries is computed for each packet where there is one: of a super-packet it can't be.
///
/// # Errors
/// [`NotSegmented`], with nothing sent, for a frame that `shape` was not read from,
/// or if `scratch` is too small.
pub fn segment(
    frame: &[u8],
    shape: Shape,
    scratch: &mut [u8],
    mut send: impl FnMut(&[u8]),
) -> Result<(), NotSegmented> {
    let Some(cut) = Cut::new(frame, shape)? else {
        send(frame);
        return Ok(());
    };
    if scratch.len() < shape.longest(frame.len()) {
        return Err(NotSegmented);
    }
    let (headers, payload) = frame.split_at(cut.headers);
    let mut offset = 0;
    let mut number = 0;
    loop {
        let part = &payload[offset..payload.len().min(offset + cut.size)];
        let packet = &mut scratch[..headers.len() + part.len()];
        packet[..headers.len()].copy_from_slice(headers);
        packet[headers.len()..].copy_from_slice(part);
        cut.mend(packet, offset, number);
        send(packet);
        offset += part.len();
        number += 1;
        if offset == payload.len() {
            return Ok(());
        }
    }
}

/// Makes `frame` the first packet of the wire that it stands for, as
/// [`segment`] would send it, and gives its length. What follows in `frame` is
/// not part of it.
///
/// # Errors
/// [`NotSegmented`], with nothing changed, for a frame that `shape` was not read
/// from.
pub fn first_segment(frame: &mut [u8], shape: Shape) -> Result<usize, NotSegmented> {
    let Some(cut) = Cut::new(frame, shape)? else {
        return Ok(frame.len());
    };
    let length = shape.longest(frame.len());
    cut.mend(&mut frame[..length], 0, 0);
    Ok(length)
}

/// How a frame is cut into packets.
#[derive(Clone, Copy)]
struct Cut {
    unsummed: Unsummed,
    /// Bytes of the frame.
    length: usize,
    /// Bytes of the headers that every packet has.
    headers: usize,
    /// Bytes of payload in a packet.
    size: usize,
    /// Start of the IP header; in a tunnel, other headers come before it.
    inside: usize,
    /// The tunnel's transport header.
    tunnel: Option<Carrier>,
}

/// The tunnel header whose payload contains the inner packets.
#[derive(Clone, Copy)]
struct Carrier {
    protocol: u8,
    /// Start of the header.
    at: usize,
}

impl Cut {
    /// `None` for an ordinary packet.
    fn new(frame: &[u8], shape: Shape) -> Result<Option<Self>, NotSegmented> {
        let (unsummed, inside) = match shape {
            Shape::Whole => return Ok(None),
            Shape::Partial(unsummed) => (unsummed, 0),
            Shape::Segments(segments) => (segments.unsummed, 0),
            Shape::Tunnel(tunnel) => (tunnel.segments.unsummed, usize::from(tunnel.inside)),
        };
        let tunnel = if inside == 0 {
            None
        } else {
            let packet = parse(frame).map_err(|_| NotSegmented)?;
            let (protocol, at) = (packet.protocol, packet.transport_offset);
            Some(Carrier { protocol, at })
        };
        let transport = usize::from(unsummed.transport);
        let least = transport + unsummed.protocol.least_header();
        let (headers, size) = match shape.in_segments() {
            Some(Segments { headers, size, .. }) => (headers.into(), size.into()),
            None => (least, frame.len()),
        };
        let fits = transport >= inside + IPV4_HEADER
            && tunnel.is_none_or(|carrier| carrier.at <= inside)
            && least <= headers
            && headers <= frame.len()
            && frame.len() - transport <= usize::from(u16::MAX)
            && size > 0;
        let length = frame.len();
        fits.then_some(Some(Self {
            unsummed,
            length,
            headers,
            size,
            inside,
            tunnel,
        }))
        .ok_or(NotSegmented)
    }

    /// Gives `packet`, which has the headers of the whole before its own part of
    /// the payload, from `offset` on, what is its own of them.
    fn mend(&self, packet: &mut [u8], offset: usize, number: usize) {
        let length = packet.len();
        let last = self.headers + offset + (length - self.headers) == self.length;
        let missing = low(self.length - length);
        mend_ip(&mut packet[self.inside..], missing, number);
        self.mend_transport(packet, offset, number, last);
        if let Some(carrier) = self.tunnel {
            mend_ip(packet, missing, number);
            carrier.mend(packet, missing);
        }
    }

    fn mend_transport(&self, packet: &mut [u8], offset: usize, number: usize, last: bool) {
        let length = packet.len();
        let transport = usize::from(self.unsummed.transport);
        let whole = low(self.length - transport);
        let part = low(length - transport);
        let transport = &mut packet[transport..];
        match self.unsummed.protocol {
            Summed::Tcp => {
                let at = TCP_SEQUENCE;
                let first = word(transport, at);
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a frame is shorter than 2^17 bytes"
                )]
                let sequence = first.wrapping_add(offset as u32);
                put_word(transport, at, sequence);
                let not_its_own = if last { 0 } else { FIN | PSH };
                let not_its_own = not_its_own | if number == 0 { 0 } else { CWR };
                transport[TCP_FLAGS] &= !not_its_own;
            }
            Summed::Udp => put_half(transport, UDP_LENGTH, part),
        }
        let field = self.unsummed.protocol.field();
        let pseudo = checksum::less(half(transport, field), whole);
        put_half(transport, field, checksum::add(pseudo, part));
        let checksum = match (!checksum::sum(transport), self.unsummed.protocol) {
            // Zero says that there is none (RFC 768).
            (0, Summed::Udp) => 0xffff,
            (checksum, _) => checksum,
        };
        put_half(transport, field, checksum);
    }
}

impl Carrier {
    /// Updates the length and checksum of this header in `packet`, which is `missing` bytes
    /// shorter. A zero checksum, which means that there is none, stays zero.
    fn mend(self, packet: &mut [u8], missing: u16) {
        let addresses = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
        let addresses = checksum::sum(&packet[addresses]);
        let header = &mut packet[self.at..];
        match self.protocol {
            protocol::UDP => {
                let length = half(header, UDP_LENGTH).wrapping_sub(missing);
                put_half(header, UDP_LENGTH, length);
                if half(header, UDP_CHECKSUM) == 0 {
                    return;
                }
                put_half(header, UDP_CHECKSUM, 0);
                let pseudo = checksum::add(addresses, protocol::UDP.into());
                let pseudo = checksum::add(pseudo, length);
                let checksum = match !checksum::add(pseudo, checksum::sum(header)) {
                    0 => 0xffff,
                    checksum => checksum,
                };
                put_half(header, UDP_CHECKSUM, checksum);
            }
            GRE if header[0] & GRE_CHECKSUM != 0 => {
                put_half(header, GRE_SUM, 0);
                let checksum = !checksum::sum(header);
                put_half(header, GRE_SUM, checksum);
            }
            _ => {}
        }
    }
}

/// Updates the length and identification of the IP header at the start of `packet`, which is
/// `missing` bytes shorter.
fn mend_ip(packet: &mut [u8], missing: u16, number: usize) {
    if packet[0] >> 4 == 4 {
        let old = [half(packet, IPV4_LENGTH), half(packet, IPV4_ID)];
        let new = [
            old[0].wrapping_sub(missing),
            old[1].wrapping_add(low(number)),
        ];
        put_half(packet, IPV4_LENGTH, new[0]);
        put_half(packet, IPV4_ID, new[1]);
        checksum::replace(packet, IPV4_CHECKSUM, &old, &new);
    } else {
        let payload = half(packet, IPV6_LENGTH).wrapping_sub(missing);
        put_half(packet, IPV6_LENGTH, payload);
    }
}

#[cfg(test)]
mod tests;
