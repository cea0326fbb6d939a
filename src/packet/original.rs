//! The headers of a packet as its sender sent it.

use std::net::{IpAddr, Ipv4Addr};

use super::embedded::quoted;
use super::{Packet, parse};

/// How a frame differs from the packet that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Original {
    /// It doesn't differ.
    #[default]
    Unchanged,
    /// The internet gateway has translated addresses. These were in the header before:
    Translated {
        /// The source address.
        source: Ipv4Addr,
        /// The destination address.
        destination: Ipv4Addr,
    },
    /// The router's ICMP error, which quotes the packet, has replaced it.
    Quoted,
}

impl Original {
    /// Takes the addresses from `frame`, a packet that is about to be translated.
    #[inline]
    pub fn of_translated(frame: &[u8]) -> Self {
        match frame {
            [
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                s0,
                s1,
                s2,
                s3,
                d0,
                d1,
                d2,
                d3,
                ..,
            ] => Self::Translated {
                source: Ipv4Addr::new(*s0, *s1, *s2, *s3),
                destination: Ipv4Addr::new(*d0, *d1, *d2, *d3),
            },
            _ => Self::Unchanged,
        }
    }

    /// Returns the headers of the packet that arrived; `frame` is its current form.
    pub fn read(self, frame: &[u8]) -> Option<Packet> {
        let packet = parse(frame).ok()?;
        match self {
            Self::Unchanged => Some(packet),
            Self::Translated {
                source,
                destination,
            } => Some(Packet {
                source: IpAddr::V4(source),
                destination: IpAddr::V4(destination),
                ..packet
            }),
            Self::Quoted => quoted(frame, &packet),
        }
    }
}
