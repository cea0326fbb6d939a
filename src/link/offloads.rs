//! What a link does so that nobody else has to.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::packet::{Shape, Summed};

/// How many frames in a row a device may refuse until an offload is given up. One
/// could be of an oddity that whoever sent it meant to be refused; some kernels
/// (6.1 to 6.10 had such in their stable series) refuse all.
const REFUSALS: u8 = 8;

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

    /// What is left without the one that frames of `shape` need.
    #[must_use]
    pub fn without(self, shape: Shape) -> Self {
        match shape {
            Shape::Whole => self,
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

/// The offloads that a device was granted, less those that it turned out not to have.
#[derive(Debug)]
pub(super) struct Granted {
    /// [`Offloads`] as bits.
    offloads: AtomicU8,
    /// Frames that were refused since one was taken.
    refused: AtomicU8,
}

impl Granted {
    pub(super) fn new(offloads: Offloads) -> Self {
        Self {
            offloads: AtomicU8::new(offloads.0),
            refused: AtomicU8::new(0),
        }
    }

    /// What is left of them.
    #[inline]
    pub(super) fn now(&self) -> Offloads {
        Offloads(self.offloads.load(Ordering::Relaxed))
    }

    /// A frame that needs an offload was taken.
    #[inline]
    pub(super) fn taken(&self) {
        // Looked at first: nothing that workers share is written for each packet.
        if self.refused.load(Ordering::Relaxed) > 0 {
            self.refused.store(0, Ordering::Relaxed);
        }
    }

    /// A frame of that shape was refused; whether its offload is given up now.
    pub(super) fn refused(&self, shape: Shape) -> bool {
        // Of what several workers count at once some may be lost; others follow.
        let refused = self.refused.load(Ordering::Relaxed).saturating_add(1);
        self.refused.store(refused, Ordering::Relaxed);
        let now = self.now();
        let gives_up = refused >= REFUSALS && now.take(shape);
        if gives_up {
            let left = now.without(shape).0;
            self.offloads.store(left, Ordering::Relaxed);
            self.refused.store(0, Ordering::Relaxed);
        }
        gives_up
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
    fn an_offload_is_given_up_once_frames_are_refused_in_a_row() {
        let granted = Granted::new(Offloads::ALL);
        let refuse = |times| {
            (0..times)
                .filter(|_| granted.refused(segments(Summed::Udp)))
                .count()
        };
        assert_eq!(refuse(REFUSALS - 1), 0);
        granted.taken();
        assert_eq!(refuse(REFUSALS - 1), 0);
        assert_eq!(granted.now(), Offloads::ALL);
        // Said once, for whoever logs it.
        assert_eq!(refuse(3 * REFUSALS), 1);
        assert_eq!(granted.now(), Offloads::TCP);
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
