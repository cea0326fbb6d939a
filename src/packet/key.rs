//! What identifies a flow at one interface.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use super::field::word;
use crate::model::{InterfaceIx, protocol};

/// In a flow key's remote port, beside the kind of question: this end asked.
pub(super) const ASKED: u16 = 1;
/// Likewise: this end answers.
pub(super) const ANSWERS: u16 = 2;

/// Beside the protocol's number: the addresses are of IPv6. Without it an IPv6
/// address whose upper half is zero would look like one of IPv4.
const IPV6: u64 = 1 << 8;

/// A flow as one interface sees it (AWS tracks per interface): the interface, its
/// own end, the other end, and the protocol. Independent of a packet's direction.
///
/// Six words, so that it is compared and hashed as it lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The interface's end; an IPv4 address leaves the upper half zero.
    local: [u64; 2],
    /// The other end.
    remote: [u64; 2],
    /// The interface, and the ports: `interface << 32 | local << 16 | remote`. Of
    /// an ICMP question the local one is its identifier, the remote one its type
    /// and which end asked.
    interface_and_ports: u64,
    /// IANA protocol number, and the family.
    protocol: u64,
}

impl FlowKey {
    /// The key of a flow of `protocol` between the interface's end and another
    /// of the same family.
    #[inline(always)]
    pub(super) fn new(
        interface: InterfaceIx,
        (local, local_port): (IpAddr, u16),
        (remote, remote_port): (IpAddr, u16),
        protocol: u8,
    ) -> Self {
        let family = if local.is_ipv6() { IPV6 } else { 0 };
        Self {
            local: words(local),
            remote: words(remote),
            interface_and_ports: (interface.ix() as u64) << 32
                | u64::from(local_port) << 16
                | u64::from(remote_port),
            protocol: family | u64::from(protocol),
        }
    }

    /// The key of the same flow at the other end, the interface `other`, for
    /// packets that leave this one and whose addresses are translated like that
    /// on the way.
    #[inline(always)]
    #[must_use]
    pub fn at_other_end(
        &self,
        other: InterfaceIx,
        new_source: Option<Ipv4Addr>,
        new_destination: Option<Ipv4Addr>,
    ) -> Self {
        let translated = |words: [u64; 2], new: Option<Ipv4Addr>| match new {
            Some(address) => [0, u64::from(address.to_bits())],
            None => words,
        };
        let (local_port, remote_port) = self.ports();
        let ports = match self.protocol() {
            // The identifier stays, the roles change.
            protocol::ICMP | protocol::ICMPV6 => {
                u64::from(local_port) << 16 | u64::from(remote_port ^ ASKED ^ ANSWERS)
            }
            _ => u64::from(remote_port) << 16 | u64::from(local_port),
        };
        Self {
            local: translated(self.remote, new_destination),
            remote: translated(self.local, new_source),
            interface_and_ports: (other.ix() as u64) << 32 | ports,
            protocol: self.protocol,
        }
    }

    /// The key of the flow that the packet in `frame`, which leaves the interface
    /// `at`, most likely belongs to: of TCP and UDP in plain packets only, and
    /// without checking any of them. Good to have a flow's record at hand early, and
    /// for nothing else.
    #[inline]
    pub fn guess(at: InterfaceIx, frame: &[u8]) -> Option<Self> {
        Some(match frame.first()? >> 4 {
            4 => Self::plain_v4(at, frame.first_chunk()?),
            _ => Self::plain_v6(at, frame.first_chunk()?),
        })
    }

    /// The key of the flow of a packet that leaves `at`: IPv4 without options, and two
    /// ports after it.
    #[inline(always)]
    pub(super) fn plain_v4(at: InterfaceIx, frame: &[u8; 24]) -> Self {
        Self {
            local: [0, word(frame, 12).into()],
            remote: [0, word(frame, 16).into()],
            interface_and_ports: (at.ix() as u64) << 32 | u64::from(word(frame, 20)),
            protocol: u64::from(frame[9]),
        }
    }

    /// Likewise of IPv6 without extension headers.
    #[inline(always)]
    pub(super) fn plain_v6(at: InterfaceIx, frame: &[u8; 44]) -> Self {
        let double = |at| u64::from(word(frame, at)) << 32 | u64::from(word(frame, at + 4));
        Self {
            local: [double(8), double(16)],
            remote: [double(24), double(32)],
            interface_and_ports: (at.ix() as u64) << 32 | u64::from(word(frame, 40)),
            protocol: IPV6 | u64::from(frame[6]),
        }
    }

    /// The interface that tracks the flow.
    pub fn interface(&self) -> InterfaceIx {
        InterfaceIx::new((self.interface_and_ports >> 32) as usize)
    }

    /// IANA protocol number.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the family is left out")]
    pub fn protocol(&self) -> u8 {
        self.protocol as u8
    }

    /// Its six words, for who keeps them: equal keys have equal ones.
    #[inline(always)]
    pub fn words(&self) -> [u64; 6] {
        [
            self.local[0],
            self.local[1],
            self.remote[0],
            self.remote[1],
            self.interface_and_ports,
            self.protocol,
        ]
    }

    /// The key with these [`Self::words`].
    pub fn from_words(words: [u64; 6]) -> Self {
        let [
            local_0,
            local_1,
            remote_0,
            remote_1,
            interface_and_ports,
            protocol,
        ] = words;
        Self {
            local: [local_0, local_1],
            remote: [remote_0, remote_1],
            interface_and_ports,
            protocol,
        }
    }

    /// Address and port of both ends, each as three words; the interface is left
    /// out, so that both ends of a flow whose addresses aren't translated have
    /// the same pair, in the other order.
    #[inline(always)]
    pub fn ends(&self) -> [[u64; 3]; 2] {
        let (local, remote) = self.ports();
        [
            [self.local[0], self.local[1], u64::from(local)],
            [self.remote[0], self.remote[1], u64::from(remote)],
        ]
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "takes the word apart")]
    fn ports(&self) -> (u16, u16) {
        let ports = self.interface_and_ports as u32;
        ((ports >> 16) as u16, ports as u16)
    }

    /// The address of the interface's end.
    #[inline]
    pub fn local(&self) -> IpAddr {
        self.address(self.local)
    }

    /// The address of the other end.
    #[inline]
    pub fn remote(&self) -> IpAddr {
        self.address(self.remote)
    }

    fn address(&self, [high, low]: [u64; 2]) -> IpAddr {
        if self.protocol & IPV6 == 0 {
            #[expect(clippy::cast_possible_truncation, reason = "the rest is zero")]
            let bits = low as u32;
            IpAddr::from(bits.to_be_bytes())
        } else {
            IpAddr::from((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
        }
    }
}

impl fmt::Debug for FlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (local, remote) = self.ports();
        f.debug_struct("FlowKey")
            .field("interface", &self.interface())
            .field("local", &(self.address(self.local), local))
            .field("remote", &(self.address(self.remote), remote))
            .field("protocol", &self.protocol())
            .finish()
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "takes the address apart")]
fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(v4) => [0, u64::from(v4.to_bits())],
        IpAddr::V6(v6) => [(v6.to_bits() >> 64) as u64, v6.to_bits() as u64],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_key_at_the_other_end_is_that_of_the_packet_as_it_arrives() {
        let (a, b) = (InterfaceIx::new(1), InterfaceIx::new(2));
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")] {
            let sent = FlowKey::new(a, (ip(source), 40_000), (ip(destination), 443), 6);
            let arrives = FlowKey::new(b, (ip(destination), 443), (ip(source), 40_000), 6);
            assert_eq!(sent.at_other_end(b, None, None), arrives);
            assert_eq!(arrives.at_other_end(a, None, None), sent);
        }
        let asks = FlowKey::new(a, (ip("10.0.0.1"), 7), (ip("10.0.0.2"), 8 << 8 | ASKED), 1);
        let answers = FlowKey::new(
            b,
            (ip("10.0.0.2"), 7),
            (ip("10.0.0.1"), 8 << 8 | ANSWERS),
            1,
        );
        assert_eq!(asks.at_other_end(b, None, None), answers);
        let (public, private) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(10, 0, 0, 9));
        let sent = FlowKey::new(a, (ip("10.0.0.1"), 1), (ip("203.0.113.9"), 2), 17);
        assert_eq!(
            sent.at_other_end(b, Some(public), Some(private)),
            FlowKey::new(b, (private.into(), 2), (public.into(), 1), 17)
        );
    }

    #[test]
    fn the_flow_of_a_plain_packet_is_guessed_right() {
        use crate::model::Direction;
        use crate::packet::{Transport, build, parse};
        let eni = InterfaceIx::new(7);
        for (source, destination) in [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")] {
            let udp = Transport::Udp {
                source: 40_000,
                destination: 53,
            };
            let frame = build(ip(source), ip(destination), 17, udp, b"question").unwrap();
            let key = parse(&frame).unwrap().flow_key(eni, Direction::Egress);
            assert_eq!(FlowKey::guess(eni, &frame), key);
            for length in 0..24 {
                assert_eq!(FlowKey::guess(eni, &frame[..length]), None);
            }
        }
    }

    #[test]
    fn addresses_of_different_families_never_share_a_key() {
        let eni = InterfaceIx::new(0);
        let v4 = FlowKey::new(eni, (ip("0.0.0.1"), 1), (ip("0.0.0.2"), 2), 6);
        let v6 = FlowKey::new(eni, (ip("::1"), 1), (ip("::2"), 2), 6);
        assert_ne!(v4, v6);
        assert!(format!("{v6:?}").contains("::2"));
    }
}
