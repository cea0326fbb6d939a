//! What the VPC's router answers to a packet that is too long for the path and
//! may not be split: ICMP 3/4 (RFC 1191), ICMPv6 2/0 (RFC 4443 §3.2).

use std::time::Duration;

use super::groups::Seen;
use super::packet::{Packet, Payload, Quoted};
use super::{Oracle, Refusal, acl};
use crate::model::Direction;
use crate::policy::DropReason;

/// Longest error over IPv4 (RFC 1812 §4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest error over IPv6: the smallest MTU there is (RFC 4443 §2.4, c).
const LONGEST_V6: usize = 1280;

/// The router's answer, and whether it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The ICMP error, as the sender of the packet gets it; [`Packet::from`]
    /// is that sender.
    pub message: Packet,
    /// The MTU that it tells.
    pub mtu: u16,
    /// Why and where it is dropped on its way to the sender, if it is.
    pub refused: Option<Refusal>,
}

impl Oracle {
    /// The answer to `packet`, as its sender wrote it, which is too long for a
    /// path of that `mtu`. ICMP errors get none, nor do fragments other than the
    /// first, which don't come here (RFC 1122 §3.2.2, RFC 4443 §2.4).
    pub(super) fn answer(&mut self, packet: &Packet, mtu: u16, now: Duration) -> Option<Answer> {
        let ipv4 = packet.source.is_ipv4();
        if packet.payload.is_icmp_error(ipv4) {
            return None;
        }
        let (kind, code, longest, headers) = if ipv4 {
            (3, 4, LONGEST_V4, 20 + 8)
        } else {
            (2, 0, LONGEST_V6, 40 + 8)
        };
        // It quotes the packet as its sender wrote it, and comes from where
        // that one was for.
        let message = Packet {
            from: packet.from,
            source: packet.destination,
            destination: packet.source,
            payload: Payload::Icmp {
                kind,
                code,
                quoted: Some(Quoted {
                    source: packet.source,
                    destination: packet.destination,
                    speech: packet.payload.speech(),
                }),
            },
            length: longest.min(headers + packet.length),
            fragment: None,
            dont_fragment: false,
            damaged: false,
        };
        Some(Answer {
            message,
            mtu,
            refused: self.refuse_answer(&message, now),
        })
    }

    /// What keeps the answer from its receiver. It is judged as what comes into
    /// the subnet from outside, by the network ACL and the groups; nobody's
    /// groups stand behind its source.
    fn refuse_answer(&mut self, message: &Packet, now: Duration) -> Option<Refusal> {
        let to = message.from;
        if self.model.interfaces[to.ix()].is_external() {
            return None;
        }
        let seen = Seen::new(message, false);
        if !acl::allows(&self.model, to, Direction::Ingress, seen) {
            return Some((DropReason::NetworkAclIngress, to));
        }
        match self.admit(to, Direction::Ingress, to, seen, now) {
            Ok(_) => None,
            Err(reason) => Some((reason, to)),
        }
    }
}
