//! What a link does so that nobody else has to.

use crate::packet::{Shape, Summed};

/// Whether a link is to have offloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// All that the kernel grants.
    #[default]
    Granted,
    /// None: every packet crosses by itself, with its checksums.
    Off,
}

/// The shapes that a link takes beside whole packets. What splits super-packets
/// computes their checksums too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offloads(u8);

impl Offloads {
    /// None.
    pub const NONE: Self = Self(0);
    /// Checksums.
    pub const CHECKSUM: Self = Self(1);
    /// Super-packets of TCP, and checksums.
    pub const TCP: Self = Self(1 | 2);
    /// Super-packets of UDP, and checksums.
    pub const UDP: Self = Self(1 | 4);
    /// All of them.
    pub const ALL: Self = Self(1 | 2 | 4);

    /// These and those.
    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// Returns the offloads that both have.
    #[must_use]
    pub const fn in_common(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    /// What is left without the one that frames of `shape` need.
    #[must_use]
    pub fn without(self, shape: Shape) -> Self {
        match shape {
            // No link takes super-packets inside a tunnel.
            Shape::Whole | Shape::Tunnel(_) => self,
            // All of them leave checksums to be computed.
            Shape::Partial(_) => Self::NONE,
            Shape::Segments(segments) => match segments.unsummed.protocol {
                Summed::Tcp => Self(self.0 & !2),
                Summed::Udp => Self(self.0 & !4),
            },
        }
    }

    /// Whether frames of `shape` are taken.
    #[inline]
    pub fn take(self, shape: Shape) -> bool {
        match shape {
            Shape::Whole => true,
            Shape::Partial(_) => self.0 & Self::CHECKSUM.0 != 0,
            Shape::Segments(segments) => self.join(segments.unsummed.protocol),
            Shape::Tunnel(_) => false,
        }
    }

    /// Whether super-packets of `protocol` are taken.
    #[inline]
    pub fn join(self, protocol: Summed) -> bool {
        let needed = match protocol {
            Summed::Tcp => Self::TCP,
            Summed::Udp => Self::UDP,
        };
        self.0 & needed.0 == needed.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Segments, Unsummed};

    fn of(protocol: Summed) -> Unsummed {
        Unsummed {
            transport: 20,
            protocol,
        }
    }

    fn segments(protocol: Summed) -> Shape {
        Shape::Segments(Segments {
            unsummed: of(protocol),
            headers: 40,
            size: 1,
            ecn: false,
        })
    }

    #[test]
    fn what_is_given_up_is_not_taken_and_the_rest_is() {
        let shapes = [
            Shape::Whole,
            Shape::Partial(of(Summed::Tcp)),
            segments(Summed::Tcp),
            segments(Summed::Udp),
        ];
        let taken = |offloads: Offloads| shapes.map(|shape| offloads.take(shape));
        assert_eq!(taken(Offloads::NONE), [true, false, false, false]);
        assert_eq!(taken(Offloads::CHECKSUM), [true, true, false, false]);
        assert_eq!(taken(Offloads::ALL), [true; 4]);
        let all = |shape| taken(Offloads::ALL.without(shape));
        assert_eq!(all(shapes[0]), [true; 4]);
        assert_eq!(all(shapes[1]), [true, false, false, false]);
        assert_eq!(all(shapes[2]), [true, true, false, true]);
        assert_eq!(all(shapes[3]), [true, true, true, false]);
    }
}
