//! Messages of ICMPv6 that never leave a link: neighbour discovery (RFC 4861), and the
//! membership of multicast groups (RFC 2710, RFC 3810), without which a switch that
//! listens to it would keep neighbour solicitations away.

use std::net::{IpAddr, Ipv6Addr};

use super::{Mac, Side, is_group};
use crate::model::protocol;
use crate::packet::{Transport, parse};
use crate::policy::DropReason;

const IPV6_HEADER: usize = 40;
/// Hop-by-hop options, routing, fragment, destination options.
const EXTENSIONS: [u8; 4] = [0, 43, 44, 60];
/// Longest message that is handed on, IPv6's header included: Ethernet's usual MTU.
/// Linux's own have a tenth of that.
const LONGEST: usize = 1500;

const MEMBERSHIP_QUERY: u8 = 130;
const MEMBERSHIP_REPORT: u8 = 131;
const MEMBERSHIP_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const MEMBERSHIP_REPORT_2: u8 = 143;

/// A hop-by-hop header with router alert (RFC 2711) and padding, in either order.
const ROUTER_ALERT: [[u8; 8]; 2] = [
    [protocol::ICMPV6, 0, 5, 2, 0, 0, 1, 0],
    [protocol::ICMPV6, 0, 1, 0, 5, 2, 0, 0],
];

/// Options that carry an Ethernet address: the source's and the target's.
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;

/// Multicast addresses for the neighbours whose address ends in the same 24 bits
/// (RFC 4291 §2.7.1).
const SOLICITED_NODE: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];

/// A well-formed message.
pub(super) struct Message<'p> {
    kind: u8,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    /// The ICMPv6 message.
    body: &'p [u8],
}

/// Whether a message may follow on an IPv6 header that announces `next`.
#[inline]
pub(super) fn may_follow(next: u8) -> bool {
    next == protocol::ICMPV6 || EXTENSIONS.contains(&next)
}

/// The message that an IPv6 packet is; `None` if it is any other packet, or none at all, which
/// is for others to say. Whatever headers or fragments it hides behind, it is
/// found: the receiver would find it too.
///
/// # Errors
/// [`DropReason::Malformed`] for one that a receiver has to ignore.
#[cold]
pub(super) fn read(packet: &[u8]) -> Result<Option<Message<'_>>, DropReason> {
    let Ok(read) = parse(packet) else {
        return Ok(None);
    };
    let (Transport::Icmp { kind, code }, IpAddr::V6(source), IpAddr::V6(destination)) =
        (read.transport, read.source, read.destination)
    else {
        return Ok(None);
    };
    let membership = is_membership(kind);
    let discovery = matches!(kind, ROUTER_SOLICITATION..=REDIRECT);
    if read.protocol != protocol::ICMPV6 || !(membership || discovery) {
        return Ok(None);
    }
    let headers = packet
        .get(IPV6_HEADER..read.transport_offset)
        .unwrap_or_default();
    let body = packet
        .get(read.transport_offset..read.length)
        .ok_or(DropReason::Malformed)?;
    let hop_limit = packet.get(7).copied();
    // RFC 4861 §6.1, §7.1, §8.1; RFC 6980 for fragments; RFC 3810 §5.
    let framed = if membership {
        hop_limit == Some(1) && ROUTER_ALERT.iter().any(|alert| headers == alert)
    } else {
        hop_limit == Some(255) && headers.is_empty()
    };
    let message = Message {
        kind,
        source,
        destination,
        body,
    };
    let sound = framed
        && code == 0
        && read.fragment.is_none()
        && read.length <= LONGEST
        && !source.is_multicast()
        && if membership {
            message.is_sound_membership()
        } else {
            message.is_sound_discovery()
        };
    if sound {
        Ok(Some(message))
    } else {
        Err(DropReason::Malformed)
    }
}

fn is_membership(kind: u8) -> bool {
    matches!(
        kind,
        MEMBERSHIP_QUERY | MEMBERSHIP_REPORT | MEMBERSHIP_DONE | MEMBERSHIP_REPORT_2
    )
}

impl Message<'_> {
    /// Whether it is to be handed on; what only concerns others is not.
    ///
    /// # Errors
    /// [`DropReason::NeighbourSpoof`], as [`super::classify`] says.
    pub(super) fn check(
        &self,
        side: Side,
        mac: &Mac,
        owns: impl Fn(IpAddr) -> bool,
    ) -> Result<bool, DropReason> {
        let owns = |address: Ipv6Addr| owns(address.into());
        let honest = match side {
            Side::Workload => {
                self.is_a_host_s() && self.is_under(owns) && self.macs().all(|named| named == *mac)
            }
            Side::Wire => {
                let claims =
                    self.kind == NEIGHBOUR_ADVERTISEMENT && self.target().is_some_and(&owns);
                self.kind != REDIRECT
                    && !claims
                    && !owns(self.source)
                    && self.macs().all(|named| named != *mac)
            }
        };
        if !honest {
            return Err(DropReason::NeighbourSpoof);
        }
        // Reports are for routers and switches.
        let is_report = is_membership(self.kind) && self.kind != MEMBERSHIP_QUERY;
        Ok(side == Side::Workload || !is_report)
    }

    /// Whether hosts send such.
    fn is_a_host_s(&self) -> bool {
        !matches!(
            self.kind,
            MEMBERSHIP_QUERY | ROUTER_ADVERTISEMENT | REDIRECT
        )
    }

    /// Whether all that it says of its sender is of an address that it `owns`.
    fn is_under(&self, owns: impl Fn(Ipv6Addr) -> bool) -> bool {
        let unspecified = self.source.is_unspecified();
        let speaks_of = match self.kind {
            NEIGHBOUR_ADVERTISEMENT => self.target(),
            // Asks whether anybody else has the address that it is about to use.
            NEIGHBOUR_SOLICITATION if unspecified => self.target(),
            _ => None,
        };
        (unspecified || owns(self.source)) && speaks_of.is_none_or(owns)
    }

    /// Membership: the lengths, to a group, from where it may be (RFC 3590 for reports
    /// from nowhere).
    fn is_sound_membership(&self) -> bool {
        let least = match self.kind {
            MEMBERSHIP_REPORT_2 => 8,
            _ => 24,
        };
        let from = self.source.is_unicast_link_local()
            || self.source.is_unspecified() && self.kind != MEMBERSHIP_QUERY;
        from && self.destination.is_multicast() && self.body.len() >= least
    }

    /// Neighbour discovery: RFC 4861 §6.1.1, §6.1.2, §7.1.1, §7.1.2, §8.1.
    fn is_sound_discovery(&self) -> bool {
        let Some(options) = self.options() else {
            return false;
        };
        let mut names_source = false;
        for option in options {
            // Behind type and length, both of which are there, an address of Ethernet's
            // fills the eight bytes.
            match option {
                None => return false,
                Some((OPTION_SOURCE | OPTION_TARGET, value)) => {
                    if <Mac>::try_from(value).map_or(true, is_group) {
                        return false;
                    }
                    names_source |= matches!(option, Some((OPTION_SOURCE, _)));
                }
                Some(_) => {}
            }
        }
        let unspecified = self.source.is_unspecified();
        let to_group = self.destination.is_multicast();
        let target = self.target();
        if target.is_some_and(|target| target.is_multicast() || target.is_unspecified()) {
            return false;
        }
        match self.kind {
            ROUTER_SOLICITATION => !(unspecified && names_source),
            ROUTER_ADVERTISEMENT | REDIRECT => self.source.is_unicast_link_local(),
            NEIGHBOUR_SOLICITATION => {
                let to_solicited = self.destination.octets().starts_with(&SOLICITED_NODE);
                !unspecified || to_solicited && !names_source
            }
            // Solicited by somebody, so for him alone.
            NEIGHBOUR_ADVERTISEMENT => {
                let solicited = self.body.get(4).is_some_and(|flags| flags & 0x40 != 0);
                !(unspecified || to_group && solicited)
            }
            _ => false,
        }
    }

    /// Whom it asks for or tells about.
    fn target(&self) -> Option<Ipv6Addr> {
        if !matches!(
            self.kind,
            NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT | REDIRECT
        ) {
            return None;
        }
        let target: [u8; 16] = self.body.get(8..24)?.try_into().ok()?;
        Some(target.into())
    }

    /// The Ethernet addresses that its options name; membership has none.
    fn macs(&self) -> impl Iterator<Item = Mac> {
        let options = if is_membership(self.kind) {
            None
        } else {
            self.options()
        };
        options
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|(kind, value)| match kind {
                OPTION_SOURCE | OPTION_TARGET => value.try_into().ok(),
                _ => None,
            })
    }

    /// Its options, a type and what follows the length; `None` in the place of one that
    /// contradicts itself, which is the last. `None` if not even what comes before
    /// the options is whole.
    fn options(&self) -> Option<impl Iterator<Item = Option<(u8, &[u8])>>> {
        let fixed = match self.kind {
            ROUTER_SOLICITATION => 8,
            ROUTER_ADVERTISEMENT => 16,
            REDIRECT => 40,
            _ => 24,
        };
        let mut rest = self.body.get(fixed..)?;
        Some(std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let option = split_option(rest);
            rest = option.map_or(&[], |(_, _, rest)| rest);
            Some(option.map(|(kind, value, _)| (kind, value)))
        }))
    }
}

/// The first of some options, what it holds, and those behind it (RFC 4861 §4.6: lengths
/// count eight bytes each).
fn split_option(options: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let &[kind, units, ..] = options else {
        return None;
    };
    let (option, rest) = options.split_at_checked(usize::from(units) * 8)?;
    Some((kind, option.get(2..)?, rest))
}
