//! The headers of a packet as its sender sent it.

use std::net::{IpAddr, Ipv4Addr};

use super::embedded::quoted;
use super::{Packet, parse};

/// The difference between what a frame holds and the packet that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Original {
    /// There is none.
    #[default]
    Unchanged,
    /// The internet gateway has translated addresses; these were in the header.
    Translated {
        /// The source address.
        source: Ipv4Addr,
        /// The destination address.
        destination: Ipv4Addr,
    },
    /// The router's ICMP error, which quotes the packet, is in its place.
    Quoted,
}

impl Original {
    /// The addresses in `frame`, a packet that is about to be translated.
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

    /// Returns the headers of the packet that came in, of which `frame` is left.
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
