//! How the bytes of a frame stand for what is on the wire.
//!
//! A kernel that leaves work to its network device hands over one packet with
//! the payload of many, and leaves the checksums to be computed later or, where
//! nothing can corrupt them on the way, never. Such a *super-packet* has the
//! headers that its segments share, and is judged once for all of them.

use super::{Packet, Transport, parse};
use crate::model::protocol;

/// Shortest TCP header.
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// IANA's numbers of the protocols that tunnels use besides UDP: GRE (RFC 2784), and an IPv4 or
/// IPv6 packet directly after the IP header (RFC 2003, RFC 4213).
pub(super) const GRE: u8 = 47;
const IPV4_INSIDE: u8 = 4;
const IPV6_INSIDE: u8 = 41;
/// Bits in the first byte of the GRE header: a checksum, a key, a sequence number follow (RFC
/// 2784, RFC 2890).
pub(super) const GRE_CHECKSUM: u8 = 0x80;
const GRE_KEY: u8 = 0x20;
const GRE_SEQUENCE: u8 = 0x10;
/// Bits in its second byte: the version, which is 0 for tunnels.
const GRE_VERSION: u8 = 0x07;

/// How the bytes of a frame stand for what is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// One packet as it is on the wire.
    #[default]
    Whole,
    /// One packet whose transport checksum isn't computed yet.
    Partial(Unsummed),
    /// Several packets whose payloads follow one another behind the headers
    /// that they share.
    Segments(Segments),
    /// Several packets of a tunnel, each with an inner packet. Their payloads follow one another
    /// after the headers that they share.
    Tunnel(Tunnel),
}

/// Where a transport checksum is that isn't computed yet. Its field holds the sum of
/// the pseudo header, folded and not complemented (Linux's `CHECKSUM_PARTIAL`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsummed {
    /// Where the transport header starts.
    pub transport: u16,
    /// Whose header it is.
    pub protocol: Summed,
}

/// The protocols whose checksums may be left to be computed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Summed {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a super-packet is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// Its transport checksum; the pseudo header is that of the whole.
    pub unsummed: Unsummed,
    /// Bytes of the headers that each segment has, IP's and the transport's.
    pub headers: u16,
    /// Bytes of payload in each segment but the last, which may have less.
    pub size: u16,
    /// Whether it is marked as taking part in congestion notification, so that
    /// TCP's CWR belongs to the first segment alone (RFC 3168 §6.1.2).
    pub ecn: bool,
}

/// A super-packet whose segments are packets inside a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// The segments of the inner packets. Positions and lengths count from the start of the
    /// frame, and the headers include those of the tunnel.
    pub segments: Segments,
    /// Start of the inner IP header.
    pub inside: u16,
}

impl Summed {
    /// Bytes of the shortest header.
    pub(super) fn least_header(self) -> usize {
        match self {
            Self::Tcp => TCP_HEADER,
            Self::Udp => UDP_HEADER,
        }
    }

    /// Where in the transport header the checksum is.
    pub fn field(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

impl Shape {
    /// The shape of the packet `frame` when its checksum isn't computed yet. `None`
    /// unless it is a TCP or UDP packet, no fragment, whose lengths agree with the
    /// frame's to the byte.
    pub fn partial(frame: &[u8]) -> Option<Self> {
        let (unsummed, _) = unsummed(frame, &parse(frame).ok()?)?;
        Some(Self::Partial(unsummed))
    }

    /// The shape of the super-packet `frame` with `size` bytes of payload in each
    /// segment; that of an ordinary packet whose checksum isn't
    /// computed yet if there is only one. `None` if [`Shape::partial`] gives none,
    /// and for a TCP packet that opens or resets a connection, of which there
    /// can't be several in a row.
    pub fn segments(frame: &[u8], size: u16, ecn: bool) -> Option<Self> {
        let packet = parse(frame).ok()?;
        let (unsummed, headers) = unsummed(frame, &packet)?;
        if let Transport::Tcp { flags, .. } = packet.transport
            && (flags.syn || flags.rst)
        {
            return None;
        }
        if size == 0 || packet.length - headers <= usize::from(size) {
            return (size > 0).then_some(Self::Partial(unsummed));
        }
        Some(Self::Segments(Segments {
            unsummed,
            headers: u16::try_from(headers).ok()?,
            size,
            ecn,
        }))
    }

    /// Returns the shape of `frame`, a super-packet of a tunnel. The inner packets have their
    /// transport header at `start` and `size` bytes of payload each. The inner IP header is the
    /// one whose length extends exactly to the end of the frame. Returns `None` if there is none,
    /// if the inner packet is not entirely in the payload of the frame's own UDP, GRE or IP-in-IP
    /// header, or if it is a single packet.
    pub fn tunnel(frame: &[u8], start: u16, size: u16, ecn: bool) -> Option<Self> {
        let packet = parse(frame).ok()?;
        let least = match packet.protocol {
            protocol::UDP => unsummed(frame, &packet)?.1,
            GRE => packet.transport_offset + gre_header(frame.get(packet.transport_offset..)?)?,
            IPV4_INSIDE | IPV6_INSIDE => packet.transport_offset,
            _ => return None,
        };
        // The frame's own checksum covers only the addresses of its first header.
        let plain = packet.transport_offset == if packet.source.is_ipv4() { 20 } else { 40 };
        if packet.fragment.is_some()
            || packet.length != frame.len()
            || packet.protocol == protocol::UDP && !plain
        {
            return None;
        }
        // With at most IPv4's options, or as many bytes of IPv6 extension headers.
        (20..=100_u16).step_by(4).find_map(|header| {
            let inside = start.checked_sub(header)?;
            let from = usize::from(inside);
            if from < least {
                return None;
            }
            let Self::Segments(own) = Self::segments(frame.get(from..)?, size, ecn)? else {
                return None;
            };
            let segments = Segments {
                unsummed: Unsummed {
                    transport: start,
                    ..own.unsummed
                },
                headers: own.headers.checked_add(inside)?,
                ..own
            };
            (own.unsummed.transport == header).then_some(Self::Tunnel(Tunnel { segments, inside }))
        })
    }

    /// Returns the segments of a super-packet.
    pub fn in_segments(self) -> Option<Segments> {
        match self {
            Self::Whole | Self::Partial(_) => None,
            Self::Segments(segments) | Self::Tunnel(Tunnel { segments, .. }) => Some(segments),
        }
    }

    /// The checksum of the frame's own transport that isn't computed yet.
    pub fn unsummed(self) -> Option<Unsummed> {
        match self {
            Self::Whole | Self::Tunnel(_) => None,
            Self::Partial(unsummed) => Some(unsummed),
            Self::Segments(segments) => Some(segments.unsummed),
        }
    }

    /// How many packets of the wire a frame of `length` bytes stands for.
    #[inline]
    pub fn packets(self, length: usize) -> usize {
        match self {
            Self::Whole | Self::Partial(_) => 1,
            Self::Segments(segments) | Self::Tunnel(Tunnel { segments, .. }) => {
                segments.count(length)
            }
        }
    }

    /// How many bytes of the wire a frame of `length` bytes stands for, the
    /// headers of each packet among them.
    #[inline]
    pub fn bytes(self, length: usize) -> usize {
        match self {
            Self::Whole | Self::Partial(_) => length,
            Self::Segments(segments) | Self::Tunnel(Tunnel { segments, .. }) => {
                length + (segments.count(length) - 1) * usize::from(segments.headers)
            }
        }
    }

    /// Bytes of the longest packet of the wire that a frame of `length` bytes
    /// stands for: what a path has to take.
    #[inline]
    pub fn longest(self, length: usize) -> usize {
        match self {
            Self::Whole | Self::Partial(_) => length,
            Self::Segments(Segments { headers, size, .. })
            | Self::Tunnel(Tunnel {
                segments: Segments { headers, size, .. },
                ..
            }) => length.min(usize::from(headers) + usize::from(size)),
        }
    }
}

impl Segments {
    fn count(self, length: usize) -> usize {
        length
            .saturating_sub(usize::from(self.headers))
            .div_ceil(usize::from(self.size).max(1))
            .max(1)
    }
}

/// Returns the start of the payload of packet `frame`, after the headers that rules look at.
/// Returns `None` for fragments, for inconsistent lengths, and for SCTP, whose checksum is a CRC
/// (RFC 9260 §6.8).
pub fn payload_start(frame: &[u8]) -> Option<usize> {
    const SCTP: u8 = 132;
    let packet = parse(frame).ok()?;
    let at = packet.transport_offset;
    if packet.fragment.is_some() || packet.length != frame.len() {
        return None;
    }
    match packet.protocol {
        protocol::TCP => Some(at + usize::from(frame.get(at + 12)? >> 4) * 4),
        protocol::UDP | protocol::ICMP | protocol::ICMPV6 => Some(at + UDP_HEADER),
        SCTP => None,
        _ => Some(at),
    }
}

/// Returns the length of the GRE header at the start of `bytes`; `None` if it is not one for
/// tunnels.
fn gre_header(bytes: &[u8]) -> Option<usize> {
    let [flags, version, ..] = bytes else {
        return None;
    };
    let words = [GRE_CHECKSUM, GRE_KEY, GRE_SEQUENCE]
        .into_iter()
        .filter(|flag| flags & flag != 0)
        .count();
    (version & GRE_VERSION == 0).then_some(4 + 4 * words)
}

/// Where the checksum of `packet`, read from `frame`, is, and how long its headers
/// are together.
fn unsummed(frame: &[u8], packet: &Packet) -> Option<(Unsummed, usize)> {
    let at = packet.transport_offset;
    let payload = frame.get(at..packet.length)?;
    if packet.fragment.is_some() || packet.length != frame.len() {
        return None;
    }
    let (summed, header) = match packet.protocol {
        protocol::TCP => {
            let header = usize::from(payload.get(12)? >> 4) * 4;
            (Summed::Tcp, header)
        }
        protocol::UDP => {
            // What is behind the datagram in the IP packet, a checksum over all
            // of it would count in.
            let length = u16::from_be_bytes([*payload.get(4)?, *payload.get(5)?]);
            if usize::from(length) != payload.len() {
                return None;
            }
            (Summed::Udp, UDP_HEADER)
        }
        _ => return None,
    };
    let unsummed = Unsummed {
        transport: u16::try_from(at).ok()?,
        protocol: summed,
    };
    Some((unsummed, at + header))
}
