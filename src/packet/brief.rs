//! The little that a packet of a known flow is asked for, read straight from the
//! frame where that is plain.

use super::checksum;
use super::field::{half, word};
use super::key::FlowKey;
use super::{Packet, Segment, TcpFlags};
use crate::model::{Direction, InterfaceIx, protocol};

/// What the short road needs of a packet that leaves an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brief {
    /// The flow that it belongs to, at that interface.
    pub key: FlowKey,
    /// What it tells of its TCP connection.
    pub segment: Segment,
    /// Bytes of the whole IP packet.
    pub length: usize,
    /// Where the transport header starts.
    pub transport_offset: usize,
}

/// In IPv4's flags and fragment offset: of a whole datagram none is set.
const FRAGMENT: u16 = 0x3fff;
/// TCP's FIN, SYN and RST (RFC 9293 §3.1): such segments are no plain ones.
const NOT_PLAIN: u8 = 0x07;
const ACK: u8 = 0x10;

impl Brief {
    /// What [`super::parse`] would read, of frames that are plain: whole packets without
    /// IP options or extension headers, UDP's or those of TCP that neither open nor end a
    /// connection. That is what most are, and it takes less than half of the time. `None`
    /// of others, broken ones among them, for which `parse` finds the words; an IPv4 header
    /// whose checksum is wrong is one of them.
    #[inline(always)]
    pub fn plain(at: InterfaceIx, frame: &[u8]) -> Option<Self> {
        match frame.first()? {
            0x45 => {
                let (header, rest) = frame.split_first_chunk::<20>()?;
                let length = usize::from(half(header, 2));
                let payload = length.checked_sub(header.len())?;
                let whole = payload <= rest.len() && half(header, 6) & FRAGMENT == 0;
                if !whole || !checksum::is_right(header) {
                    return None;
                }
                let segment = transport(header[9], rest, payload)?;
                let key = FlowKey::plain_v4(at, frame.first_chunk()?);
                Some(Self {
                    key,
                    segment,
                    length,
                    transport_offset: header.len(),
                })
            }
            0x60..=0x6f => {
                let (header, rest) = frame.split_first_chunk::<40>()?;
                let payload = usize::from(half(header, 4));
                if payload > rest.len() {
                    return None;
                }
                let segment = transport(header[6], rest, payload)?;
                let key = FlowKey::plain_v6(at, frame.first_chunk()?);
                Some(Self {
                    key,
                    segment,
                    length: header.len() + payload,
                    transport_offset: header.len(),
                })
            }
            _ => None,
        }
    }

    /// That of a packet which was read, if it belongs to a flow.
    #[inline(always)]
    pub fn of(at: InterfaceIx, packet: &Packet) -> Option<Self> {
        Some(Self {
            key: packet.flow_key(at, Direction::Egress)?,
            segment: packet.segment(),
            length: packet.length,
            transport_offset: packet.transport_offset,
        })
    }
}

/// What the transport header at the start of `rest` tells, with `payload` bytes of
/// the packet from there on.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "an IP packet is shorter than 2^17 bytes"
)]
fn transport(number: u8, rest: &[u8], payload: usize) -> Option<Segment> {
    match number {
        protocol::TCP => {
            let header: &[u8; 20] = rest.first_chunk()?;
            let own = usize::from(header[12] >> 4) * 4;
            let flags = header[13];
            if own < header.len() || own > payload || flags & NOT_PLAIN != 0 {
                return None;
            }
            Some(Segment {
                flags: TcpFlags {
                    ack: flags & ACK != 0,
                    ..TcpFlags::default()
                },
                end: word(header, 4).wrapping_add((payload - own) as u32),
                acknowledgement: word(header, 8),
            })
        }
        protocol::UDP => {
            let header: &[u8; 8] = rest.first_chunk()?;
            let length = usize::from(half(header, 4));
            (header.len()..=payload)
                .contains(&length)
                .then_some(Segment::default())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Transport, build, parse};

    fn at() -> InterfaceIx {
        InterfaceIx::new(7)
    }

    /// Frames of both families: TCP with every set of flags, UDP, ICMP, others.
    fn frames() -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")] {
            let ends = (source.parse().unwrap(), destination.parse().unwrap());
            for bits in 0..16 {
                let flags = TcpFlags {
                    syn: bits & 1 != 0,
                    ack: bits & 2 != 0,
                    fin: bits & 4 != 0,
                    rst: bits & 8 != 0,
                };
                let transport = Transport::Tcp {
                    source: 40_000,
                    destination: 443,
                    flags,
                    end: 0xffff_fff0,
                    acknowledgement: 0x0102_0304,
                };
                for payload in [&b""[..], b"payload"] {
                    frames.extend(build(ends.0, ends.1, protocol::TCP, transport, payload));
                }
            }
            let udp = Transport::Udp {
                source: 40_000,
                destination: 53,
            };
            frames.extend(build(ends.0, ends.1, protocol::UDP, udp, b"question"));
            let echo = Transport::Icmp { kind: 8, code: 0 };
            frames.extend(build(ends.0, ends.1, protocol::ICMP, echo, b"12345678"));
            frames.extend(build(ends.0, ends.1, 47, Transport::Other, b"other"));
        }
        frames
    }

    /// Like `agrees`, after the frame's header checksum was corrected.
    fn agrees_repaired(frame: &[u8]) -> bool {
        let mut frame = frame.to_vec();
        checksum::repair(&mut frame);
        agrees(&frame)
    }

    /// What is read of a frame, if plain, is what `parse` reads; whether it was plain.
    fn agrees(frame: &[u8]) -> bool {
        let plain = Brief::plain(at(), frame);
        if let Some(plain) = plain {
            let packet = parse(frame).unwrap_or_else(|error| panic!("{frame:02x?}: {error}"));
            assert_eq!(Brief::of(at(), &packet), Some(plain), "{frame:02x?}");
            assert_eq!(packet.fragment, None);
        }
        plain.is_some()
    }

    #[test]
    fn of_a_plain_frame_the_same_is_read_as_by_parsing_it() {
        let mut plain = 0;
        for mut frame in frames() {
            plain += usize::from(agrees(&frame));
            // Links may hand over more than the packet, or less.
            for length in 0..frame.len() {
                agrees(&frame[..length]);
            }
            frame.extend([0; 9]);
            agrees(&frame);
            // Each header byte with each bit turned, and two bytes at once.
            for first in 0..frame.len().min(64) {
                for bit in 0..8 {
                    frame[first] ^= 1 << bit;
                    let damaged = agrees(&frame) && frame[0] == 0x45 && first < 20;
                    assert!(!damaged, "{frame:02x?}");
                    agrees_repaired(&frame);
                    for second in 0..frame.len().min(48) {
                        let was = frame[second];
                        for value in [0, 1, 6, 17, 0x45, 0x46, 0x50, 0xff] {
                            frame[second] = value;
                            agrees(&frame);
                            agrees_repaired(&frame);
                        }
                        frame[second] = was;
                    }
                    frame[first] ^= 1 << bit;
                }
            }
        }
        // TCP with or without ACK, with or without payload, and UDP, of either family.
        assert_eq!(plain, 2 * (2 * 2 + 1));
    }

    #[test]
    fn segments_that_open_or_end_a_connection_are_not_plain() {
        for frame in frames() {
            let packet = parse(&frame).unwrap();
            let TcpFlags { syn, fin, rst, .. } = packet.segment().flags;
            if syn || fin || rst {
                assert_eq!(Brief::plain(at(), &frame), None);
            }
        }
    }
}
