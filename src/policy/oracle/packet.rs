//! Packets as the oracle reads them: what a header says and no bytes.

use std::fmt;
use std::net::IpAddr;

use crate::model::InterfaceIx;

/// A packet as the sender's interface hands it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Packet {
    /// The interface that sends it.
    pub from: InterfaceIx,
    /// The source address in its header.
    pub source: IpAddr,
    /// The destination address in its header; of the same family.
    pub destination: IpAddr,
    /// What it carries.
    pub payload: Payload,
    /// Bytes of the whole IP packet.
    pub length: usize,
    /// Which part of a datagram it is; `None` if it is all of it.
    pub fragment: Option<Fragment>,
    /// IPv4's DF. IPv6 has no such bit: no router splits its packets.
    pub dont_fragment: bool,
    /// True if the checksum of its IPv4 header is wrong. IPv6 has none.
    pub damaged: bool,
}

impl Packet {
    /// A whole packet, which routers may split if it is of IPv4.
    pub fn whole(
        from: InterfaceIx,
        source: IpAddr,
        destination: IpAddr,
        payload: Payload,
        length: usize,
    ) -> Self {
        Self {
            from,
            source,
            destination,
            payload,
            length,
            fragment: None,
            dont_fragment: false,
            damaged: false,
        }
    }

    /// Whether a router may send it on in fragments.
    pub(super) fn may_be_split(&self) -> bool {
        self.source.is_ipv4() && !self.dont_fragment
    }

    /// Whether it is a fragment other than the first.
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset > 0)
    }
}

/// A part of a datagram, smaller than the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// What all parts of the datagram share; 16 bits in IPv4.
    pub id: u32,
    /// The protocol that the IPv4 header names, or the IPv6 fragment header.
    pub protocol: u8,
    /// Bytes of the datagram before this part.
    pub offset: u32,
    /// Bytes of the datagram in this part.
    pub length: u32,
    /// Whether it is not the last part.
    pub more: bool,
    /// Represents its bytes: equal for equal bytes.
    pub content: u64,
}

impl Fragment {
    /// The first byte after this part.
    pub(super) fn end(&self) -> u32 {
        self.offset + self.length
    }
}

/// What a packet carries, as far as a VPC cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Payload {
    /// Protocol 6.
    Tcp {
        /// The sender's port.
        source_port: u16,
        /// The receiver's port.
        destination_port: u16,
        /// The flags that move a connection along.
        flags: TcpFlags,
        /// The sequence number.
        sequence: u32,
        /// The acknowledgement number; means something with [`TcpFlags::ack`].
        acknowledgement: u32,
        /// Bytes after the TCP header.
        data: u32,
    },
    /// Protocol 17.
    Udp {
        /// The sender's port.
        source_port: u16,
        /// The receiver's port.
        destination_port: u16,
    },
    /// A question or an answer with an identifier, and code 0. ICMP: echo 8
    /// and 0, timestamp 13 and 14, information 15 and 16, address mask 17 and
    /// 18. ICMPv6: echo 128 and 129.
    IcmpQuery {
        /// The type.
        kind: u8,
        /// The identifier that an answer repeats.
        id: u16,
    },
    /// Any other ICMP message: ICMP over IPv4, ICMPv6 over IPv6.
    Icmp {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
        /// The packet that an error is about, if it quotes its addresses.
        quoted: Option<Quoted>,
    },
    /// Any other protocol number.
    Other(u8),
    /// No whole transport header: a fragment other than the first, or a first
    /// one that is too short. The protocol number is the fragment's.
    Headless(u8),
}

impl Payload {
    /// What tells the conversation apart that the packet is a part of; `None`
    /// for what is part of none.
    pub fn speech(self) -> Option<Speech> {
        match self {
            Self::Tcp {
                source_port,
                destination_port,
                ..
            } => Some(Speech::Tcp {
                source_port,
                destination_port,
            }),
            Self::Udp {
                source_port,
                destination_port,
            } => Some(Speech::Udp {
                source_port,
                destination_port,
            }),
            Self::IcmpQuery { kind, id } => Some(Speech::Query { kind, id }),
            Self::Other(protocol) => Some(Speech::Other(protocol)),
            Self::Icmp { .. } | Self::Headless(_) => None,
        }
    }

    /// Whether it is an ICMP error in a packet of that family: unreachable,
    /// time exceeded, parameter problem; in ICMPv6 too big as well.
    pub(super) fn is_icmp_error(self, ipv4: bool) -> bool {
        match self {
            Self::Icmp { kind, .. } if ipv4 => matches!(kind, 3 | 11 | 12),
            Self::Icmp { kind, .. } => matches!(kind, 1..=4),
            _ => false,
        }
    }

    /// Whether it asks for a new connection: SYN without ACK.
    pub(super) fn starts_connection(self) -> bool {
        matches!(self, Self::Tcp { flags, .. } if flags.syn && !flags.ack)
    }
}

/// The packet that an ICMP error is about, as far as it is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quoted {
    /// Its source address.
    pub source: IpAddr,
    /// Its destination address.
    pub destination: IpAddr,
    /// Its conversation; `None` where the quote is too short to tell, for
    /// fragments other than the first and for what is part of none.
    pub speech: Option<Speech>,
}

/// What tells conversations between two addresses apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speech {
    /// TCP, by ports.
    Tcp {
        /// The port of the packet's sender.
        source_port: u16,
        /// The port of the packet's receiver.
        destination_port: u16,
    },
    /// UDP, by ports.
    Udp {
        /// The port of the packet's sender.
        source_port: u16,
        /// The port of the packet's receiver.
        destination_port: u16,
    },
    /// An ICMP question or its answer, by what is asked and the identifier.
    Query {
        /// The message's type.
        kind: u8,
        /// The identifier.
        id: u16,
    },
    /// Any other protocol, by its number alone (aws-semantics §3.1).
    Other(u8),
}

/// The TCP flags that move a connection along.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TcpFlags {
    /// Synchronise.
    pub syn: bool,
    /// Acknowledge.
    pub ack: bool,
    /// No more from the sender.
    pub fin: bool,
    /// Reset.
    pub rst: bool,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "from #{}: {} -> {} {}, {} bytes",
            self.from.ix(),
            self.source,
            self.destination,
            self.payload,
            self.length
        )?;
        if self.dont_fragment {
            f.write_str(", DF")?;
        }
        if self.damaged {
            f.write_str(", wrong header checksum")?;
        }
        match self.fragment {
            Some(Fragment {
                id,
                protocol,
                offset,
                length,
                more,
                ..
            }) => write!(
                f,
                ", fragment of protocol {protocol} id {id}: {length} at {offset}{}",
                if more { "+" } else { "" }
            ),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Tcp {
                source_port,
                destination_port,
                flags,
                sequence,
                acknowledgement,
                data,
            } => write!(
                f,
                "tcp {source_port} -> {destination_port} [{flags}] seq {sequence}+{data} ack {acknowledgement}"
            ),
            Self::Udp {
                source_port,
                destination_port,
            } => write!(f, "udp {source_port} -> {destination_port}"),
            Self::IcmpQuery { kind, id } => write!(f, "icmp query {kind} id {id}"),
            Self::Icmp { kind, code, quoted } => {
                write!(f, "icmp type {kind} code {code}")?;
                match quoted {
                    Some(quoted) => write!(
                        f,
                        " about {} -> {} {:?}",
                        quoted.source, quoted.destination, quoted.speech
                    ),
                    None => Ok(()),
                }
            }
            Self::Other(number) => write!(f, "protocol {number}"),
            Self::Headless(number) => write!(f, "headless {number}"),
        }
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = [
            (self.syn, 'S'),
            (self.fin, 'F'),
            (self.rst, 'R'),
            (self.ack, '.'),
        ];
        for (_, letter) in set.iter().filter(|(on, _)| *on) {
            write!(f, "{letter}")?;
        }
        Ok(())
    }
}
