//! The header before each frame of a link with offloads: `struct virtio_net_hdr`
//! (virtio 1.2, §5.1.6; Linux's `uapi/linux/virtio_net.h`), ten bytes in the
//! machine's own order, without the buffer count of mergeable buffers.
//!
//! The kernel writes it, but whoever has a raw socket with `PACKET_VNET_HDR` in a
//! namespace says what: nothing in it is believed unless the frame bears it out.

use crate::packet::{Segments, Shape, Summed, payload_start, sum};

/// Bytes of the header.
pub const HEADER: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the transport checksum isn't computed yet.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: it is, and was found to be right.
const DATA_VALID: u8 = 2;

/// `VIRTIO_NET_HDR_GSO_*`: what kind of segments there are.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Beside a kind of TCP: with congestion notification.
const GSO_ECN: u8 = 0x80;
/// Linux's `GSO_BY_FRAGS`: a size that says that there is none.
const BY_FRAGS: u16 = 0xffff;

/// Minimum bytes of TCP options and payload in a segment: Linux's `TCP_MIN_SND_MSS` (net/tcp.h).
const LEAST_SEGMENT: u16 = 48;
/// Maximum number of segments in a TCP super-packet. A decision: 64 KiB in Linux's smallest
/// segments with timestamps, which have 36 bytes of payload, are 1,820 segments.
const MOST_SEGMENTS: usize = 2048;
/// The same for UDP: Linux's `UDP_MAX_SEGMENTS` (linux/udp.h), 64 before Linux 6.10.
const MOST_DATAGRAMS: usize = 128;

/// A header that its frame doesn't bear out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the offload header contradicts the frame")]
pub struct OddHeader;

/// What `header` says of `frame`, the packet behind it. How long the
/// headers in the frame are is never taken from it.
///
/// # Errors
/// [`OddHeader`] for segments or a checksum that the frame can't have, or of a kind
/// that was never agreed on; and for more or smaller segments than a kernel makes: each
/// would cost a receiver without offloads a write.
#[inline]
pub fn decode(header: [u8; HEADER], frame: &[u8]) -> Result<Shape, OddHeader> {
    decode_behind(0, header, frame)
}

/// Likewise, where the device has `before` bytes of a header of its own between the two,
/// from whose beginning it counts.
///
/// # Errors
/// As [`decode`].
#[inline]
pub fn decode_behind(before: u16, header: [u8; HEADER], frame: &[u8]) -> Result<Shape, OddHeader> {
    let [
        flags,
        gso_type,
        _,
        _,
        size @ ..,
        start_0,
        start_1,
        at_0,
        at_1,
    ] = header;
    if flags & !DATA_VALID == 0 && gso_type == GSO_NONE {
        return Ok(Shape::Whole);
    }
    let size = u16::from_ne_bytes(size);
    let start = u16::from_ne_bytes([start_0, start_1]);
    let start = start.checked_sub(before).ok_or(OddHeader)?;
    let offset = u16::from_ne_bytes([at_0, at_1]);
    decode_unsummed(flags, gso_type, size, start, offset, frame)
}

/// Like [`decode_behind`], but the header may also describe a packet inside a tunnel, in the
/// payload of `frame`. A missing inner checksum is computed here, as a device would do, so that
/// the packet is complete. Super-packets become [`Shape::Tunnel`]. The headers that rules look at
/// are never written to.
///
/// # Errors
/// [`OddHeader`] as for [`decode_behind`], and if the header describes neither the frame's own
/// transport nor a packet entirely in its payload.
#[inline]
pub fn settle(before: u16, header: [u8; HEADER], frame: &mut [u8]) -> Result<Shape, OddHeader> {
    decode_behind(before, header, frame)
        .or_else(|odd| settle_inside(before, header, frame).ok_or(odd))
}

/// Returns the shape that `header` describes for a packet inside `frame`. Computes its checksum,
/// unless it is a super-packet.
#[cold]
fn settle_inside(before: u16, header: [u8; HEADER], frame: &mut [u8]) -> Option<Shape> {
    let [
        flags,
        gso_type,
        _,
        _,
        size_0,
        size_1,
        start_0,
        start_1,
        at_0,
        at_1,
    ] = header;
    let start = u16::from_ne_bytes([start_0, start_1]).checked_sub(before)?;
    let offset = u16::from_ne_bytes([at_0, at_1]);
    if flags & !DATA_VALID != NEEDS_CSUM {
        return None;
    }
    if gso_type != GSO_NONE {
        let size = u16::from_ne_bytes([size_0, size_1]);
        let shape = Shape::tunnel(frame, start, size, gso_type & GSO_ECN != 0)?;
        let (Shape::Tunnel(tunnel), segments) = (shape, shape.in_segments()?) else {
            return None;
        };
        let inside = frame.get(usize::from(tunnel.inside)..)?;
        let agrees = size != BY_FRAGS
            && is_kind(gso_type, segments.unsummed.protocol, is_v6(inside))
            && usize::from(offset) == segments.unsummed.protocol.field()
            && is_of_a_kernel(segments, shape.packets(frame.len()));
        return agrees.then_some(shape);
    }
    if usize::from(start) < payload_start(frame)? {
        return None;
    }
    let covered = frame.get_mut(usize::from(start)..)?;
    let offset = usize::from(offset);
    // Zero would say that there is none, in UDP (RFC 768).
    let checksum = match !sum(covered) {
        0 => 0xffff,
        checksum => checksum,
    };
    let field = covered.get_mut(offset..offset + 2)?;
    field.copy_from_slice(&checksum.to_be_bytes());
    Some(Shape::Whole)
}

/// Returns true if segments of that type are packets of `protocol` over this IP version.
fn is_kind(gso_type: u8, protocol: Summed, v6: bool) -> bool {
    match protocol {
        Summed::Tcp => gso_type & !GSO_ECN == tcp_kind(v6),
        Summed::Udp => gso_type == GSO_UDP_L4,
    }
}

/// Returns true if a kernel would make `many` segments of that size.
fn is_of_a_kernel(segments: Segments, many: usize) -> bool {
    match segments.unsummed.protocol {
        Summed::Tcp => {
            // After the 20 bytes that every TCP header has.
            let options = segments.headers - segments.unsummed.transport - 20;
            many <= MOST_SEGMENTS && segments.size >= LEAST_SEGMENT.saturating_sub(options)
        }
        Summed::Udp => many <= MOST_DATAGRAMS,
    }
}

fn decode_unsummed(
    flags: u8,
    gso_type: u8,
    size: u16,
    start: u16,
    offset: u16,
    frame: &[u8],
) -> Result<Shape, OddHeader> {
    // Segments without a checksum that is left to be computed for each can't be.
    if flags & !DATA_VALID != NEEDS_CSUM {
        return Err(OddHeader);
    }
    let shape = if gso_type == GSO_NONE {
        Shape::partial(frame)
    } else if size == BY_FRAGS {
        None
    } else {
        Shape::segments(frame, size, gso_type & GSO_ECN != 0)
    }
    .ok_or(OddHeader)?;
    let unsummed = shape.unsummed().ok_or(OddHeader)?;
    let kind = gso_type == GSO_NONE || is_kind(gso_type, unsummed.protocol, is_v6(frame));
    let many = shape.packets(frame.len());
    let plausible = shape
        .in_segments()
        .is_none_or(|it| is_of_a_kernel(it, many));
    let agrees = kind
        && plausible
        && start == unsummed.transport
        && usize::from(offset) == unsummed.protocol.field();
    agrees.then_some(shape).ok_or(OddHeader)
}

/// The header for `frame`, the packet of that shape.
#[inline]
pub fn encode(shape: Shape, frame: &[u8]) -> [u8; HEADER] {
    encode_behind(0, shape, frame)
}

/// Likewise, for a device that has `before` bytes of a header of its own between the two
/// and counts from its beginning.
#[inline]
pub fn encode_behind(before: u16, shape: Shape, frame: &[u8]) -> [u8; HEADER] {
    let Some(unsummed) = shape.unsummed() else {
        return [0; HEADER];
    };
    let (gso_type, headers, size) = match shape {
        Shape::Segments(segments) => {
            let kind = match unsummed.protocol {
                Summed::Tcp => tcp_kind(is_v6(frame)) | if segments.ecn { GSO_ECN } else { 0 },
                Summed::Udp => GSO_UDP_L4,
            };
            (kind, segments.headers.saturating_add(before), segments.size)
        }
        // Linux makes of it as much as it needs.
        Shape::Whole | Shape::Partial(_) | Shape::Tunnel(_) => (GSO_NONE, 0, 0),
    };
    // Fields of TCP and UDP are within the first 20 bytes.
    let offset = u16::try_from(unsummed.protocol.field()).unwrap_or(0);
    let mut header = [0; HEADER];
    header[0] = NEEDS_CSUM;
    header[1] = gso_type;
    header[2..4].copy_from_slice(&headers.to_ne_bytes());
    header[4..6].copy_from_slice(&size.to_ne_bytes());
    let start = unsummed.transport.saturating_add(before);
    header[6..8].copy_from_slice(&start.to_ne_bytes());
    header[8..10].copy_from_slice(&offset.to_ne_bytes());
    header
}

fn tcp_kind(v6: bool) -> u8 {
    if v6 { GSO_TCPV6 } else { GSO_TCPV4 }
}

fn is_v6(frame: &[u8]) -> bool {
    frame.first().is_some_and(|byte| byte >> 4 == 6)
}

#[cfg(test)]
mod tests;
