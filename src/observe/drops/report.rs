//! Drops with names, for people and programs.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::model::protocol_name;
use crate::packet::{Packet, Transport};
use crate::policy::DropReason;

/// A drop with names, as people and programs read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DropReport {
    /// Why.
    pub reason: DropReason,
    /// Packets dropped for the same reason that are not told of one by one.
    pub more: u64,
    /// One of them, unless all went unlogged.
    #[serde(flatten)]
    pub packet: Option<PacketReport>,
}

/// A dropped packet with names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PacketReport {
    /// When: milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// The name of the interface at which it was dropped.
    pub interface: String,
    /// `ingress` or `egress`, seen from that interface.
    pub direction: &'static str,
    /// The interface's security groups, where it was they who had no rule for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<String>,
    /// How many packets of the wire it stands for: one, but for segmentation offload.
    pub packets: u64,
    /// What its headers say; nothing if they can't be read.
    #[serde(flatten)]
    pub headers: Option<Headers>,
}

/// The headers of a dropped packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Headers {
    /// `tcp`, `udp`, …
    pub protocol: String,
    /// Source address.
    pub source: IpAddr,
    /// Source port, of TCP and UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port, of TCP and UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Type, of ICMP and ICMPv6.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// Code, of ICMP and ICMPv6.
    #[serde(rename = "code", skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// Whether it is a part of a datagram other than the first, which shows no ports.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fragment: bool,
}

impl From<&Packet> for Headers {
    fn from(packet: &Packet) -> Self {
        let mut headers = Self {
            protocol: protocol_name(packet.protocol),
            source: packet.source,
            source_port: None,
            destination: packet.destination,
            destination_port: None,
            icmp_type: None,
            icmp_code: None,
            fragment: false,
        };
        match packet.transport {
            Transport::Tcp {
                source,
                destination,
                ..
            }
            | Transport::Udp {
                source,
                destination,
            } => {
                headers.source_port = Some(source);
                headers.destination_port = Some(destination);
            }
            Transport::IcmpQuery { kind, code, .. } | Transport::Icmp { kind, code } => {
                headers.icmp_type = Some(kind);
                headers.icmp_code = Some(code);
            }
            Transport::Other => {}
            Transport::Fragment => headers.fragment = true,
        }
        headers
    }
}

impl fmt::Display for DropReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            reason,
            more,
            packet,
        } = self;
        match packet {
            None => write!(f, "dropped {more} packets: {reason}"),
            Some(packet) => {
                write!(f, "dropped {packet}: {reason}")?;
                if !packet.security_groups.is_empty() {
                    write!(f, " of {}", packet.security_groups.join(", "))?;
                }
                match more {
                    0 => Ok(()),
                    more => write!(f, " (and {more} more like it)"),
                }
            }
        }
    }
}

impl fmt::Display for PacketReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.packets > 1 {
            write!(f, "{} packets of ", self.packets)?;
        }
        match &self.headers {
            Some(headers) => headers.fmt(f)?,
            None => f.write_str("what can't be read")?,
        }
        write!(f, " {} at {}", self.direction, self.interface)
    }
}

impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fragment {
            f.write_str("a fragment of ")?;
        }
        f.write_str(&self.protocol)?;
        if let (Some(kind), Some(code)) = (self.icmp_type, self.icmp_code) {
            write!(f, " type {kind} code {code}")?;
        }
        let end = |f: &mut fmt::Formatter<'_>, address, port| match port {
            Some(port) => write!(f, "{}", SocketAddr::new(address, port)),
            None => write!(f, "{address}"),
        };
        f.write_str(" ")?;
        end(f, self.source, self.source_port)?;
        f.write_str(" -> ")?;
        end(f, self.destination, self.destination_port)
    }
}
