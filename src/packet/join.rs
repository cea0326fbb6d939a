//! Packets of one flow that follow one another, to one super-packet.
//!
//! The rules are those of Linux's generic receive offload (`inet_gro_receive`,
//! `ipv6_gro_receive`, `tcp_gro_receive`, `udp_gro_receive`): what is joined is what
//! [`segment`](super::segment) takes apart again, byte for byte, but for the
//! identification of IPv4 packets that aren't to be fragmented, which means
//! nothing (RFC 6864 §4.1).

use super::checksum;
use super::field::{half, low, put_half, word};
use super::shape::{Segments, Shape, Summed, Unsummed};
use crate::model::protocol;

/// Most packets in one super-packet: the least that Linux's `UDP_MAX_SEGMENTS` has
/// been.
const MOST_PACKETS: usize = 64;
/// Most bytes in one: a length field's.
const MOST_BYTES: usize = 65_535;

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

/// Fields of IPv4's header.
const LENGTH: usize = 2;
const ID: usize = 4;
const FLAGS: usize = 6;
const CHECKSUM: usize = 10;
const DONT_FRAGMENT: u8 = 0x40;
/// And of IPv6's.
const PAYLOAD_LENGTH: usize = 4;

/// Fields of TCP's header.
const SEQUENCE: usize = 4;
const ACKNOWLEDGEMENT: usize = 8;
const TCP_FLAGS: usize = 13;
const WINDOW: usize = 14;
const URGENT: usize = 18;
const OPTIONS: usize = 20;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
/// And of UDP's.
const UDP_LENGTH: usize = 4;

/// Where things are in a TCP or UDP packet whose flow can be told from fixed places:
/// without IPv4 options or IPv6 extension headers, and no fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    v4: bool,
    protocol: Summed,
    /// Where the transport header starts.
    transport: usize,
    /// Where the payload starts.
    headers: usize,
}

impl Head {
    /// That of `frame`, a packet that has been judged.
    #[inline]
    pub fn of(frame: &[u8]) -> Option<Self> {
        let (v4, number, transport) = match frame {
            [0x45, _, _, _, _, _, flags, offset, _, number, ..]
                if flags & 0x3f == 0 && *offset == 0 =>
            {
                (true, *number, IPV4_HEADER)
            }
            [version, _, _, _, _, _, number, ..] if version >> 4 == 6 => {
                (false, *number, IPV6_HEADER)
            }
            _ => return None,
        };
        let (protocol, header) = match number {
            protocol::TCP => (
                Summed::Tcp,
                usize::from(frame.get(transport + 12)? >> 4) * 4,
            ),
            protocol::UDP => (Summed::Udp, UDP_HEADER),
            _ => return None,
        };
        let headers = transport + header;
        let whole = header >= protocol.least_header() && frame.len() >= headers;
        whole.then_some(Self {
            v4,
            protocol,
            transport,
            headers,
        })
    }

    /// Whose segments a super-packet of such packets has.
    pub fn protocol(&self) -> Summed {
        self.protocol
    }

    /// Whether others may join `frame`.
    #[inline]
    pub fn may_begin(&self, frame: &[u8], shape: Shape) -> bool {
        self.may_join(frame, shape) && !self.ends(frame) && frame.len() <= MOST_BYTES
    }

    /// Whether such packets of `a` and `b` are of one flow, in one direction.
    fn same_flow(&self, a: &[u8], b: &[u8]) -> bool {
        // Addresses, and behind them the ports.
        let from = if self.v4 { 12 } else { 8 };
        let to = self.transport + 4;
        a[from..to] == b[from..to]
    }

    /// Whether `frame`, an only packet, may be part of a super-packet at all.
    fn may_join(&self, frame: &[u8], shape: Shape) -> bool {
        if shape.in_segments().is_some() || frame.len() <= self.headers {
            return false;
        }
        let length = if self.v4 {
            usize::from(half(frame, LENGTH))
        } else {
            IPV6_HEADER + usize::from(half(frame, PAYLOAD_LENGTH))
        };
        let transport = &frame[self.transport..];
        let fits = match self.protocol {
            Summed::Tcp => {
                let flags = u16::from(transport[TCP_FLAGS - 1] & 0xf) << 8
                    | u16::from(transport[TCP_FLAGS]);
                flags & !u16::from(PSH | FIN) == u16::from(ACK) && half(transport, URGENT) == 0
            }
            // Without a checksum, whoever takes the datagrams could tell.
            Summed::Udp => {
                usize::from(half(transport, UDP_LENGTH)) == transport.len()
                    && (shape != Shape::Whole || half(transport, Summed::Udp.field()) != 0)
            }
        };
        fits && length == frame.len()
    }

    /// Whether nothing may follow `frame` in a super-packet: TCP was told to hand
    /// over what there is, or has no more.
    fn ends(&self, frame: &[u8]) -> bool {
        self.protocol == Summed::Tcp && frame[self.transport + TCP_FLAGS] & (PSH | FIN) != 0
    }

    /// The sum of `frame`'s pseudo header without its length; `None` if one of its
    /// checksums is wrong, which joining would hide.
    fn pseudo(&self, frame: &[u8], shape: Shape) -> Option<u16> {
        if self.v4 && checksum::sum(&frame[..IPV4_HEADER]) != 0xffff {
            return None;
        }
        let transport = &frame[self.transport..];
        let length = low(transport.len());
        if shape != Shape::Whole {
            let sum = half(transport, self.protocol.field());
            return Some(checksum::less(sum, length));
        }
        let addresses = if self.v4 { 12 } else { 8 };
        let number = match self.protocol {
            Summed::Tcp => protocol::TCP,
            Summed::Udp => protocol::UDP,
        };
        let addresses = checksum::sum(&frame[addresses..self.transport]);
        let pseudo = checksum::add(addresses, number.into());
        let all = checksum::add(checksum::add(pseudo, length), checksum::sum(transport));
        (all == 0xffff).then_some(pseudo)
    }
}

/// A super-packet in the making. Its buffer is made once.
#[derive(Debug)]
pub struct Run {
    buffer: Box<[u8]>,
    length: usize,
    /// Of the first packet.
    shape: Shape,
    head: Head,
    /// Bytes of payload in each but the last.
    size: usize,
    packets: usize,
    /// The sum of the pseudo header without its length, once it matters.
    pseudo: u16,
    /// Whether nothing more may follow.
    ended: bool,
}

impl Default for Run {
    fn default() -> Self {
        Self::new()
    }
}

impl Run {
    /// An empty one, which must be begun before anything else.
    pub fn new() -> Self {
        Self {
            buffer: vec![0; MOST_BYTES].into(),
            length: 0,
            shape: Shape::Whole,
            head: Head {
                v4: true,
                protocol: Summed::Udp,
                transport: IPV4_HEADER,
                headers: IPV4_HEADER + UDP_HEADER,
            },
            size: 0,
            packets: 0,
            pseudo: 0,
            ended: true,
        }
    }

    /// Begins anew with `frame`, which [`Head::may_begin`] a run.
    #[inline]
    pub fn begin(&mut self, frame: &[u8], shape: Shape, head: Head) {
        self.buffer[..frame.len()].copy_from_slice(frame);
        self.length = frame.len();
        self.shape = shape;
        self.head = head;
        self.size = frame.len() - head.headers;
        self.packets = 1;
        self.ended = false;
    }

    /// Whether `frame` is of the same flow, in the same direction.
    #[inline]
    pub fn is_of_flow(&self, frame: &[u8], head: Head) -> bool {
        head.v4 == self.head.v4
            && head.protocol == self.head.protocol
            && head.same_flow(&self.buffer, frame)
    }

    /// Joins `frame`, of the same flow, to what is there; whether it could be.
    pub fn join(&mut self, frame: &[u8], shape: Shape, head: Head) -> bool {
        let first = &self.buffer[..self.length];
        let payload = frame.len() - head.headers;
        let fits = !self.ended
            && head == self.head
            && head.may_join(frame, shape)
            && payload <= self.size
            && self.length + payload <= MOST_BYTES;
        if !fits || !self.goes_on(frame) {
            return false;
        }
        if self.packets == 1 {
            let Some(pseudo) = head.pseudo(first, self.shape) else {
                return false;
            };
            self.pseudo = pseudo;
        }
        // Zero has two spellings.
        let same = |pseudo: u16| pseudo % 0xffff == self.pseudo % 0xffff;
        if !head.pseudo(frame, shape).is_some_and(same) {
            return false;
        }
        self.buffer[self.length..][..payload].copy_from_slice(&frame[head.headers..]);
        self.length += payload;
        self.packets += 1;
        self.ended = payload < self.size || self.packets == MOST_PACKETS || head.ends(frame);
        if head.protocol == Summed::Tcp {
            let at = head.transport + TCP_FLAGS;
            self.buffer[at] |= frame[at];
        }
        true
    }

    /// Whether nothing more may follow.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The super-packet, or what it began with if nothing joined it.
    pub fn finish(&mut self) -> (&[u8], Shape) {
        self.ended = true;
        let frame = &mut self.buffer[..self.length];
        if self.packets == 1 {
            return (frame, self.shape);
        }
        let head = self.head;
        if head.v4 {
            let old = half(frame, LENGTH);
            let new = low(frame.len());
            put_half(frame, LENGTH, new);
            checksum::replace(frame, CHECKSUM, &[old], &[new]);
        } else {
            put_half(frame, PAYLOAD_LENGTH, low(frame.len() - IPV6_HEADER));
        }
        let transport = &mut frame[head.transport..];
        let length = low(transport.len());
        if head.protocol == Summed::Udp {
            put_half(transport, UDP_LENGTH, length);
        }
        let sum = checksum::add(self.pseudo, length);
        put_half(transport, head.protocol.field(), sum);
        let shape = Shape::Segments(Segments {
            unsummed: Unsummed {
                transport: low(head.transport),
                protocol: head.protocol,
            },
            headers: low(head.headers),
            size: low(self.size),
            ecn: false,
        });
        (frame, shape)
    }

    /// Whether `frame`'s headers are those of the next packet.
    fn goes_on(&self, frame: &[u8]) -> bool {
        let Head {
            v4,
            protocol,
            transport,
            headers,
        } = self.head;
        let first = &self.buffer[..];
        let same = |from: usize, to: usize| first[from..to] == frame[from..to];
        let ip = if v4 {
            // Type of service; flags; time to live and protocol.
            let counted = half(first, ID).wrapping_add(low(self.packets));
            let id = half(frame, ID);
            let atomic = frame[FLAGS] & DONT_FRAGMENT != 0;
            let follows = id == counted || atomic && id == half(first, ID);
            follows && same(0, 2) && same(FLAGS, CHECKSUM)
        } else {
            // Traffic class and flow label; next header and hop limit.
            same(0, 4) && same(6, 8)
        };
        ip && match protocol {
            Summed::Udp => true,
            Summed::Tcp => {
                let at = |field: usize| transport + field;
                let sequence = |frame: &[u8]| word(frame, at(SEQUENCE));
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "a frame is shorter than 2^17 bytes"
                )]
                let next = sequence(first).wrapping_add((self.length - headers) as u32);
                sequence(frame) == next
                    && same(at(ACKNOWLEDGEMENT), at(ACKNOWLEDGEMENT) + 4)
                    && same(at(WINDOW), at(WINDOW) + 2)
                    && same(at(OPTIONS), headers)
            }
        }
    }
}
