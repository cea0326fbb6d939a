//! An Ethernet interface's two ends: a TAP device that the workload has as its own, and a
//! packet socket on the real one. Both are links of the engine, which sees IP packets;
//! what neighbours say to each other crosses by itself, so far as it may.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::device::{Arrival, Device};
use super::{Envelope, Link, Offloads, PacketSocket, Readiness, Received, Tap, virtio};
use crate::packet::Shape;
use crate::packet::ethernet::{self, Content, HEADER, Mac, Side};
use crate::policy::DropReason;

/// Frames that one call looks at until it finds a packet: then other links get
/// their turn.
const BUDGET: usize = 64;
/// Who sends what nobody sent: packets of the appliance's own. Locally administered, and not
/// one that a switch would ever see.
const APPLIANCE: Mac = [0x02, b's', b'g', b'w', b'a', b'l'];
/// Bytes of Ethernet's header, as [`virtio`] counts them.
const BEFORE: u16 = 14;

/// Who the interface is on its wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtherIdentity {
    /// Its Ethernet address, the same at both ends.
    pub mac: [u8; 6],
    /// Its IP addresses, link-local ones among them.
    pub addresses: Vec<IpAddr>,
}

/// The workload's end: what is read from it leaves the interface.
#[derive(Debug, Clone)]
pub struct InnerLink(Arc<Wire>);

/// The end towards the wire: what is read from it is for the workload.
#[derive(Debug, Clone)]
pub struct OuterLink(Arc<Wire>);

struct Wire {
    tap: Tap,
    socket: PacketSocket,
    mac: Mac,
    addresses: ArcSwap<Vec<IpAddr>>,
}

/// Makes the two ends of an interface. What [`ethernet::classify`] lets pass between
/// neighbours goes straight from one to the other as long as both are read; what it
/// refuses is read as a frame with a reason.
pub fn wire(
    tap: Tap,
    socket: PacketSocket,
    identity: EtherIdentity,
) -> (Arc<InnerLink>, Arc<OuterLink>) {
    let wire = Arc::new(Wire {
        tap,
        socket,
        mac: identity.mac,
        addresses: ArcSwap::from_pointee(identity.addresses),
    });
    let inner = InnerLink(Arc::clone(&wire));
    (Arc::new(inner), Arc::new(OuterLink(wire)))
}

impl InnerLink {
    /// The name of the TAP device inside its namespace.
    pub fn name(&self) -> &str {
        self.0.tap.name()
    }

    /// Sets which IP addresses the interface has, from the next frame on.
    pub fn set_addresses(&self, addresses: Vec<IpAddr>) {
        self.0.addresses.store(Arc::new(addresses));
    }
}

impl OuterLink {
    /// Whether the real device is gone for good. Reading says so too, unless the device
    /// was down before it went.
    pub fn is_gone(&self) -> bool {
        self.0.socket.is_gone()
    }
}

impl Link for InnerLink {
    #[inline]
    fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.0.recv(Side::Workload, buffer)
    }

    #[inline]
    fn send(&self, envelope: Envelope, frame: &[u8], shape: Shape) -> io::Result<()> {
        let source = match envelope.addresses() {
            Some(&[_, _, _, _, _, _, source @ ..]) => source,
            None => APPLIANCE,
        };
        // Only packets to one host are carried, and here that is one station.
        let header = header(self.0.mac, source, frame)?;
        self.0.tap.0.write(&header, frame, shape)
    }

    #[inline]
    fn offloads(&self) -> Offloads {
        self.0.tap.0.offloads()
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Fd(self.0.tap.0.as_fd())
    }
}

impl Link for OuterLink {
    #[inline]
    fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.0.recv(Side::Wire, buffer)
    }

    /// Also `InvalidInput` without an envelope: the station to send it to is not known.
    #[inline]
    fn send(&self, envelope: Envelope, frame: &[u8], shape: Shape) -> io::Result<()> {
        let Some(&[d0, d1, d2, d3, d4, d5, ..]) = envelope.addresses() else {
            let text = "nothing says which station a packet for the wire is for";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        let header = header([d0, d1, d2, d3, d4, d5], self.0.mac, frame)?;
        self.0.socket.device().write(&header, frame, shape)
    }

    #[inline]
    fn offloads(&self) -> Offloads {
        // Both ends request the same offloads from the kernel, and the TAP device was tested.
        let tried = self.0.tap.0.offloads();
        self.0.socket.device().offloads().in_common(tried)
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Fd(self.0.socket.device().as_fd())
    }
}

impl Wire {
    /// Reads frames from a side until there is one for the engine.
    #[inline]
    fn recv(&self, side: Side, buffer: &mut [u8]) -> io::Result<Received> {
        for _ in 0..BUDGET {
            let arrival = match self.read(side, buffer) {
                Ok(arrival) => arrival,
                Err(error) => return Received::lost(error),
            };
            if let Some(received) = self.look(side, &arrival, buffer) {
                return Ok(received);
            }
        }
        // There may be more.
        Err(io::ErrorKind::Interrupted.into())
    }

    #[inline]
    fn read(&self, side: Side, buffer: &mut [u8]) -> io::Result<Arrival> {
        match side {
            Side::Workload => self.tap.0.read(buffer),
            Side::Wire => self.socket.read(buffer),
        }
    }

    /// What the engine gets of a frame, if anything.
    #[inline]
    fn look(&self, side: Side, arrival: &Arrival, buffer: &mut [u8]) -> Option<Received> {
        let frame = &buffer[arrival.start..][..arrival.length];
        let owns = |address| self.addresses.load().contains(&address);
        let (start, rest) = (
            arrival.start + HEADER.min(arrival.length),
            arrival.length.saturating_sub(HEADER),
        );
        let length = match ethernet::classify(frame, side, &self.mac, owns) {
            Ok(Content::Ip { length }) => length,
            Ok(Content::Neighbour { length }) => {
                return self.hand_over(side, arrival, &frame[..length]);
            }
            Ok(Content::NotForUs) => return None,
            Err(reason) => return Some(Received::unreadable(start, rest, reason)),
        };
        let &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = frame else {
            return None;
        };
        let packet = &mut buffer[start..][..length];
        let shape = match arrival.header {
            Some(header) => virtio::settle(BEFORE, header, packet),
            None => Ok(Shape::Whole),
        };
        Some(Received {
            start,
            length,
            shape: shape.map_err(|_| DropReason::Malformed),
            envelope: Envelope::new([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]),
        })
    }

    /// Hands a message between neighbours over to the other end. Nobody waits for it, and
    /// like any frame it may get lost.
    #[cold]
    fn hand_over(&self, side: Side, arrival: &Arrival, frame: &[u8]) -> Option<Received> {
        // Checksums of such are never left to a device.
        if arrival
            .header
            .is_some_and(|header| virtio::decode(header, frame) != Ok(Shape::Whole))
        {
            let (start, length) = (arrival.start + HEADER, frame.len() - HEADER);
            return Some(Received::unreadable(start, length, DropReason::Malformed));
        }
        let (below, message) = frame.split_at(HEADER);
        if let Err(error) = self.other(side).write(below, message, Shape::Whole) {
            tracing::trace!(?side, %error, "a message between neighbours is lost");
        }
        None
    }

    fn other(&self, side: Side) -> &Device {
        match side {
            Side::Workload => self.socket.device(),
            Side::Wire => &self.tap.0,
        }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire")
            .field("tap", &self.tap)
            .field("socket", &self.socket)
            .field("mac", &self.mac)
            .field("addresses", &self.addresses.load())
            .finish()
    }
}

/// Ethernet's header before an IP packet.
#[inline]
fn header(destination: Mac, source: Mac, packet: &[u8]) -> io::Result<[u8; HEADER]> {
    let kind = match packet.first().map(|byte| byte >> 4) {
        Some(4) => ethernet::TYPE_IPV4,
        Some(6) => ethernet::TYPE_IPV6,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut header = [0; HEADER];
    header[..6].copy_from_slice(&destination);
    header[6..12].copy_from_slice(&source);
    header[12..].copy_from_slice(&kind.to_be_bytes());
    Ok(header)
}
