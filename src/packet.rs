//! What the appliance needs to know of a packet: read once, validated once,
//! then a small `Copy` value. Sans-IO; allocates nothing; never panics.

mod brief;
mod build;
mod checksum;
mod embedded;
pub mod ethernet;
mod field;
mod join;
mod key;
mod nat;
mod original;
mod parse;
mod segments;
mod shape;
mod split;
mod too_big;

use std::net::IpAddr;

use crate::model::{Direction, InterfaceIx, protocol};

pub use brief::Brief;
pub use build::{build, icmp_protocol};
#[cfg(test)]
pub(crate) use checksum::repair;
pub(crate) use checksum::sum;
pub use embedded::embedded;
pub use join::{Head, Run};
pub use key::FlowKey;
pub use nat::{rewrite_destination, rewrite_source};
pub use original::Original;
pub use parse::{ParseError, parse};
pub use segments::{NotSegmented, first_segment, segment};
pub use shape::{Segments, Shape, Summed, Tunnel, Unsummed, payload_start};
pub use split::{NotSplit, split};
pub use too_big::too_big;

/// The TCP flags that tracking looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TcpFlags {
    /// Synchronise sequence numbers.
    pub syn: bool,
    /// Acknowledgement.
    pub ack: bool,
    /// No more data from the sender.
    pub fin: bool,
    /// Reset the connection.
    pub rst: bool,
}

/// What a packet tells of the TCP connection that it belongs to; nothing of other
/// protocols' exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Segment {
    /// Flags.
    pub flags: TcpFlags,
    /// The sequence number after it: [`Transport::Tcp::end`].
    pub end: u32,
    /// The acknowledgement number; means something with [`TcpFlags::ack`].
    pub acknowledgement: u32,
}

impl Segment {
    /// Whether it asks for a new connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.flags.syn && !self.flags.ack
    }

    /// True if it acknowledges everything before `end` and nothing after, as after
    /// the end of a side there is nothing.
    pub fn acknowledges(&self, end: u32) -> bool {
        self.flags.ack && self.acknowledgement == end
    }

    /// True if it ends after `end`, in sequence number arithmetic (RFC 9293 §3.4).
    pub fn is_past(&self, end: u32) -> bool {
        self.end != end && self.end.wrapping_sub(end) < 1 << 31
    }
}

/// What follows the IP header and its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Flags.
        flags: TcpFlags,
        /// The sequence number that follows the segment: its own plus what it
        /// carries (RFC 9293, SEG.SEQ + SEG.LEN), modulo 2^32. Of a first
        /// fragment, which doesn't tell how long the segment is: what follows
        /// the part that is there.
        end: u32,
        /// The acknowledgement number; means something with [`TcpFlags::ack`].
        acknowledgement: u32,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// An ICMP or ICMPv6 message that asks or answers, with an identifier.
    IcmpQuery {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier, the same in question and answer.
        id: u16,
        /// Whether it asks.
        request: bool,
    },
    /// Any other ICMP or ICMPv6 message.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// Any other protocol.
    Other,
    /// A fragment other than the first: its transport header is elsewhere.
    Fragment,
}

/// Which part of a fragmented datagram a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// Identification, the same in all fragments of a datagram; 16 bits in IPv4.
    pub id: u32,
    /// Bytes of the datagram's payload before this part; a multiple of 8.
    pub offset: u16,
    /// Bytes of the datagram's payload in this part. (Of IPv6, extension headers
    /// after the fragment header count.)
    pub length: u16,
    /// Whether more follow.
    pub more: bool,
    /// IPv4's protocol, and the next header after IPv6's fragment header, which
    /// of a first fragment may be an extension header and then differs from
    /// [`Packet::protocol`].
    pub next: u8,
}

/// One packet, as far as verdicts go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// IANA number of what follows the IP header and its extensions; of an IPv6
    /// fragment other than the first [`Fragment::next`], as more isn't known.
    pub protocol: u8,
    /// Ports, types and flags.
    pub transport: Transport,
    /// Bytes of the whole IP packet; what follows in the frame is not part of it.
    pub length: usize,
    /// Where the transport header starts; of a fragment other than the first,
    /// its part of the datagram's payload.
    pub transport_offset: usize,
    /// Which part of a datagram it is, if it is not whole.
    pub fragment: Option<Fragment>,
    /// Whether routers may not split it: IPv4's DF, and always in IPv6.
    pub dont_fragment: bool,
}

impl Packet {
    /// What security group rules compare besides the peer: the destination
    /// port, or ICMP type and code as `type << 8 | code`, or 0.
    pub fn selector(&self) -> u16 {
        match self.transport {
            Transport::Tcp { destination, .. } | Transport::Udp { destination, .. } => destination,
            Transport::IcmpQuery { kind, code, .. } | Transport::Icmp { kind, code } => {
                u16::from(kind) << 8 | u16::from(code)
            }
            Transport::Other | Transport::Fragment => 0,
        }
    }

    /// Whether it asks for a new TCP connection.
    #[inline]
    pub fn opens_connection(&self) -> bool {
        self.segment().opens()
    }

    /// What it tells of its TCP connection.
    #[inline]
    pub fn segment(&self) -> Segment {
        match self.transport {
            Transport::Tcp {
                flags,
                end,
                acknowledgement,
                ..
            } => Segment {
                flags,
                end,
                acknowledgement,
            },
            Transport::Udp { .. }
            | Transport::IcmpQuery { .. }
            | Transport::Icmp { .. }
            | Transport::Other
            | Transport::Fragment => Segment::default(),
        }
    }

    /// Whether it is an ICMP message that says what became of another packet:
    /// unreachable, time exceeded, parameter problem (RFC 792: 3, 11, 12), and of
    /// ICMPv6 too big as well (RFC 4443: 1 to 4).
    pub fn is_icmp_error(&self) -> bool {
        let Transport::Icmp { kind, .. } = self.transport else {
            return false;
        };
        match self.source {
            IpAddr::V4(_) => self.protocol == protocol::ICMP && matches!(kind, 3 | 11 | 12),
            IpAddr::V6(_) => self.protocol == protocol::ICMPV6 && matches!(kind, 1..=4),
        }
    }

    /// The key of the flow that this packet belongs to, at `interface`, which
    /// it leaves (`Egress`) or reaches (`Ingress`). The same for both
    /// directions of a flow. `None` for messages that belong to none: ICMP
    /// errors and announcements, fragments other than the first.
    #[inline(always)]
    pub fn flow_key(&self, interface: InterfaceIx, direction: Direction) -> Option<FlowKey> {
        let egress = direction == Direction::Egress;
        let (local_port, remote_port) = match self.transport {
            Transport::Tcp {
                source,
                destination,
                ..
            }
            | Transport::Udp {
                source,
                destination,
            } => {
                if egress {
                    (source, destination)
                } else {
                    (destination, source)
                }
            }
            // Who asked and what is part of the key, so that a question never
            // passes as the answer to one in the other direction, nor as a
            // question of another kind that a rule let pass.
            Transport::IcmpQuery {
                kind, id, request, ..
            } => {
                let role = if request == egress {
                    key::ASKED
                } else {
                    key::ANSWERS
                };
                (id, u16::from(question(kind)) << 8 | role)
            }
            Transport::Icmp { .. } | Transport::Fragment => return None,
            Transport::Other => (0, 0),
        };
        let (local, remote) = match direction {
            Direction::Egress => (self.source, self.destination),
            Direction::Ingress => (self.destination, self.source),
        };
        Some(FlowKey::new(
            interface,
            (local, local_port),
            (remote, remote_port),
            self.protocol,
        ))
    }
}

/// The type of the ICMP question that a question or answer of type `kind`
/// belongs to: echo 8 is answered by 0, ICMPv6's 128 by 129, and the others
/// (13, 15, 17) by the next type.
fn question(kind: u8) -> u8 {
    match kind {
        0 => 8,
        14 | 16 | 18 | 129 => kind - 1,
        asked => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(source: &str, source_port: u16, destination: &str, destination_port: u16) -> Packet {
        Packet {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol: protocol::TCP,
            transport: Transport::Tcp {
                source: source_port,
                destination: destination_port,
                flags: TcpFlags::default(),
                end: 0,
                acknowledgement: 0,
            },
            length: 40,
            transport_offset: 20,
            fragment: None,
            dont_fragment: true,
        }
    }

    #[test]
    fn a_flow_has_one_key_whichever_way_its_packets_go() {
        let eni = InterfaceIx::new(3);
        let out = tcp("10.0.0.1", 40000, "10.0.0.2", 443);
        let back = tcp("10.0.0.2", 443, "10.0.0.1", 40000);
        assert_eq!(
            out.flow_key(eni, Direction::Egress),
            back.flow_key(eni, Direction::Ingress)
        );
        assert_ne!(
            out.flow_key(eni, Direction::Egress),
            out.flow_key(eni, Direction::Ingress)
        );
    }

    #[test]
    fn an_answer_belongs_to_its_question_and_a_counter_question_does_not() {
        let eni = InterfaceIx::new(0);
        // Identifier 0 is the one that shows a key without the asker.
        let echo = |source: &str, destination: &str, request| Packet {
            transport: Transport::IcmpQuery {
                kind: if request { 8 } else { 0 },
                code: 0,
                id: 0,
                request,
            },
            protocol: protocol::ICMP,
            ..tcp(source, 0, destination, 0)
        };
        let question = echo("10.0.0.1", "10.0.0.2", true).flow_key(eni, Direction::Egress);
        let answer = echo("10.0.0.2", "10.0.0.1", false).flow_key(eni, Direction::Ingress);
        let counter = echo("10.0.0.2", "10.0.0.1", true).flow_key(eni, Direction::Ingress);
        assert_eq!(question, answer);
        assert_ne!(question, counter);
        let timestamp = Packet {
            transport: Transport::IcmpQuery {
                kind: 13,
                code: 0,
                id: 0,
                request: true,
            },
            ..echo("10.0.0.1", "10.0.0.2", true)
        };
        assert_ne!(question, timestamp.flow_key(eni, Direction::Egress));
    }
}
