//! The road of a packet: policy, flows, interface, bytes and `now` in, a
//! verdict with its provenance out.
//!
//! Everything that judges packets goes through [`Datapath::judge`]: the
//! engine's workers, `explain` and `replay` (with a [`Recorder`] that writes down
//! each step), the proof at start and the tests. Sans-IO; a packet of a known flow
//! allocates nothing.

mod explain;
mod fragments;
mod known;
mod recorder;
mod station;

use std::net::{IpAddr, Ipv4Addr};

use crate::conntrack::{FlowTable, Millis};
use crate::model::{Direction, InterfaceIx, RuleId, Via};
use crate::packet::{self, Brief, Fragment, Original, Packet, ParseError, Shape, Transport};
use crate::policy::{DropReason, Guard, Owner, Policy, PolicyInterface, Service};
use fragments::{DatagramKey, Fragments, Later};
use station::Station;

pub use recorder::{Recorder, Silent, Step, Unasked};

pub use explain::{
    AclView, EPHEMERAL, Explanation, Leg, LegStep, NearMiss, Question, QuestionError, RouteView,
    RuleView, explain,
};

/// The flows, and the road on which policies are applied to packets.
#[derive(Debug)]
pub struct Datapath {
    flows: FlowTable,
    fragments: Fragments<Way, Dropped>,
}

/// What a sweep removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Expired flows.
    pub flows: usize,
    /// Fragments that waited in vain for their datagram's first, by sender: each
    /// to be counted as `orphan_fragment`.
    pub orphans: Vec<(InterfaceIx, u64)>,
}

/// What becomes of a packet, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Where it goes.
    pub fate: Fate,
    /// What let it leave the sender; `None` outside the VPC or if nothing did.
    pub egress: Option<Admission>,
    /// What let it reach the receiver; `None` outside the VPC or if nothing did.
    pub ingress: Option<Admission>,
    /// What the VPC's router tells the sender of a packet that is too big.
    pub answer: Option<Answer>,
    /// The packet as it arrived, for reports of its drop.
    pub original: Original,
    /// Whether fragments that waited for this one follow it:
    /// [`Datapath::next_released`] gives them.
    pub released: bool,
    /// Fragments that waited and died with this one, each to be counted as
    /// `overlapping_fragment` at the sender.
    pub lost: u16,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// To an interface: the first `length` bytes of the frame.
    Forward {
        /// The receiver.
        to: InterfaceIx,
        /// Bytes of the packet.
        length: usize,
        /// The largest packet that the path takes, if this one is longer: it
        /// is to be sent in fragments of at most so many bytes
        /// ([`packet::split`]).
        split: Option<u16>,
    },
    /// It waits: a fragment whose datagram's first hasn't come yet.
    Hold {
        /// The sender.
        at: InterfaceIx,
    },
    /// Nowhere.
    Drop {
        /// Why.
        reason: DropReason,
        /// The interface at which it was dropped.
        at: InterfaceIx,
    },
}

/// The ICMP error that the VPC's router answers a packet with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It reaches the sender: the first `length` bytes of the frame.
    Sent {
        /// Bytes of the error.
        length: usize,
    },
    /// The sender's network ACL or groups keep it out, and the sender never
    /// learns (aws-semantics §13, black-holed large packets).
    Dropped {
        /// Why.
        reason: DropReason,
        /// The sender.
        at: InterfaceIx,
    },
}

/// What let a packet pass a set of security groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The rule; for a tracked flow the one that admitted its first packet.
    pub rule: RuleId,
    /// Whether the packet belongs to a flow that was tracked already.
    pub tracked: bool,
}

/// Why and where a packet ends.
type Dropped = (DropReason, InterfaceIx);

/// What was learnt of a packet before any rule was asked.
#[derive(Debug, Clone, Copy)]
struct Admitted {
    /// Who has the destination address.
    owner: Option<Owner>,
    /// Whether the source is the sender's own address.
    source_is_own: bool,
}

/// By which way a packet is forwarded, and what becomes of it on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    to: InterfaceIx,
    new_source: Option<Ipv4Addr>,
    new_destination: Option<Ipv4Addr>,
    /// The largest packet that it takes, in bytes.
    mtu: u16,
}

impl Datapath {
    /// A data path that remembers at most `capacity` flows.
    pub fn new(capacity: usize) -> Self {
        Self {
            flows: FlowTable::new(capacity),
            fragments: Fragments::new(),
        }
    }

    /// The flows.
    pub fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// Removes what has expired, off the packet path.
    pub fn sweep(&self, now: Millis) -> Swept {
        self.sweep_part(0, 1, now)
    }

    /// Likewise in one of `parts` parts of the table, the number `part` counted from 0;
    /// and fragments that waited in vain, wherever they are.
    pub fn sweep_part(&self, part: u32, parts: u32, now: Millis) -> Swept {
        let shards = self.flows.shards();
        let begin = |part: u32| shards * part as usize / parts.max(1) as usize;
        Swept {
            flows: self.flows.sweep_shards(begin(part)..begin(part + 1), now),
            orphans: self.fragments.sweep(now),
        }
    }

    /// Forgets every flow, and every datagram that came in fragments.
    pub fn clear(&self) {
        self.flows.clear();
        self.fragments.clear();
    }

    /// The next fragment from `from` that waited for a first one which has been
    /// judged, as its receiver is to get it, and what becomes of it. To be asked
    /// after a verdict that says `released`, until there are no more.
    pub fn next_released(&self, from: InterfaceIx) -> Option<(Vec<u8>, Verdict)> {
        let (mut frame, fate) = self.fragments.next_released(from)?;
        let mut verdict = Verdict::of(Err((DropReason::Malformed, from)));
        if let Ok(mut packet) = packet::parse(&frame) {
            verdict.fate = fate_of(follow(fate, &mut frame, &mut packet, &mut verdict.original));
        }
        Some((frame, verdict))
    }

    /// Judges the packet at the start of `frame`, which came from the
    /// interface `from` and has the given `shape`: a super-packet is judged once
    /// for all of its segments, which share their fate. On [`Fate::Forward`] the frame holds the packet as
    /// the receiver is to get it: the internet gateway may have translated
    /// addresses. With [`Answer::Sent`] it holds the answer.
    ///
    /// Inlined by force: what most packets get is then in registers, not written to
    /// memory byte by byte and read back in words, which would cost as much as
    /// finding their flow does.
    #[inline(always)]
    pub fn judge<R: Recorder>(
        &self,
        policy: &Policy,
        from: InterfaceIx,
        frame: &mut [u8],
        shape: Shape,
        now: Millis,
        recorder: &mut R,
    ) -> Verdict {
        let Some(sender) = policy.interface(from) else {
            return Verdict::of(Err((DropReason::UnknownInterface, from)));
        };

        // Most packets are plain, and go the way of one before. Hosts outside keep no flows.
        let mut may_be_known = R::SILENT && sender.subnet().is_some();
        if may_be_known && let Some(brief) = Brief::plain(from, frame) {
            if let Some(verdict) = self.known_way::<R>(policy, sender, frame, &brief, shape, now) {
                return verdict;
            }
            may_be_known = false;
        }

        self.judge_any(
            policy,
            from,
            sender,
            frame,
            shape,
            now,
            may_be_known,
            recorder,
        )
    }

    /// [`Self::judge`], of any packet.
    #[expect(clippy::too_many_arguments, reason = "the road's luggage")]
    #[inline(never)]
    fn judge_any<R: Recorder>(
        &self,
        policy: &Policy,
        from: InterfaceIx,
        sender: &PolicyInterface,
        frame: &mut [u8],
        shape: Shape,
        now: Millis,
        may_be_known: bool,
        recorder: &mut R,
    ) -> Verdict {
        // 1. Headers.
        let mut parsed = packet::parse(frame);
        recorder.step(Step::Parsed(parsed.as_ref().map_err(|error| *error)));
        // Used where it lies: moving it would cost as much as reading it did.
        let packet = match &mut parsed {
            Ok(packet) => packet,
            Err(ParseError::Malformed) => return Verdict::of(Err((DropReason::Malformed, from))),
            Err(ParseError::TinyFragment) => {
                return Verdict::of(Err((DropReason::TinyFragment, from)));
            }
        };

        // Others may go a known way too.
        if may_be_known
            && let Some(verdict) =
                self.known_way_of_any::<R>(policy, from, sender, frame, packet, shape, now)
        {
            return verdict;
        }
        let mut verdict = Verdict::of(Ok(Fate::Hold { at: from }));
        let walked = self.walk(
            policy,
            from,
            sender,
            frame,
            packet,
            shape,
            now,
            recorder,
            &mut verdict,
        );
        verdict.fate = fate_of(walked);
        verdict
    }

    /// The road itself, station by station.
    #[expect(clippy::too_many_arguments, reason = "the road's luggage")]
    #[inline(always)]
    fn walk<R: Recorder>(
        &self,
        policy: &Policy,
        from: InterfaceIx,
        sender: &PolicyInterface,
        frame: &mut [u8],
        packet: &mut Packet,
        shape: Shape,
        now: Millis,
        recorder: &mut R,
        verdict: &mut Verdict,
    ) -> Result<Fate, Dropped> {
        // 2. What nothing filters, and who may send at all.
        let admitted = self.admit(policy, from, sender, packet, recorder)?;

        // 3. The groups and ACLs on both sides, and the way between them. Of a
        // datagram in fragments only the first shows its ports and is judged.
        if let Some(part) = packet.fragment {
            let key = DatagramKey::new(from, packet, part);
            if part.offset > 0 {
                return self.follow_first(key, part, frame, packet, now, verdict);
            }
            let payload = packet.length.saturating_sub(part.length.into());
            let payload = &frame[payload..packet.length];
            let first = self
                .fragments
                .admit_first(key, part, payload, now)
                .map_err(|refused| {
                    verdict.lost = refused.lost;
                    (refused.reason, from)
                })?;
            let way = self.pass(
                policy, from, sender, admitted, frame, packet, shape, now, recorder, verdict,
            );
            verdict.released = self.fragments.decide(key, first, way, now);
            return way.map(|way| way.fate(packet.length, shape));
        }
        let way = self.pass(
            policy, from, sender, admitted, frame, packet, shape, now, recorder, verdict,
        )?;

        // 4. Delivery. The VPC's router is invisible: it leaves the TTL alone.
        recorder.step(Step::Delivered { at: way.to, packet });
        Ok(way.fate(packet.length, shape))
    }

    /// A fragment other than the first: it shares the first one's fate, or waits
    /// for it.
    #[cold]
    fn follow_first(
        &self,
        key: DatagramKey,
        part: Fragment,
        frame: &mut [u8],
        packet: &mut Packet,
        now: Millis,
        verdict: &mut Verdict,
    ) -> Result<Fate, Dropped> {
        let from = key.sender();
        match self
            .fragments
            .later(key, part, &frame[..packet.length], now)
        {
            Later::Follow(fate) => follow(fate, frame, packet, &mut verdict.original),
            Later::Hold => Ok(Fate::Hold { at: from }),
            Later::Drop(refused) => {
                verdict.lost = refused.lost;
                Err((refused.reason, from))
            }
        }
    }

    /// The checks that come before any rule.
    fn admit<R: Recorder>(
        &self,
        policy: &Policy,
        from: InterfaceIx,
        sender: &PolicyInterface,
        packet: &Packet,
        recorder: &mut R,
    ) -> Result<Admitted, Dropped> {
        let served = sender.subnet().is_some() && !policy.directory().is_wired();
        let unfiltered = |recorder: &mut R, service| {
            recorder.step(Step::Unfiltered { at: from, service });
            Err((DropReason::NoService, from))
        };
        // A client without an address yet asks for one by broadcast.
        if served && is_dhcp(packet) {
            return unfiltered(recorder, Service::Dhcp);
        }
        let source_is_own = match sender.guard {
            // Whoever is out there may be anybody but one of us.
            Guard::Outside(Via::Wire) => {
                is_unicast(packet.source) && policy.directory().owner(packet.source).is_none()
            }
            Guard::Groups { .. } | Guard::Outside(_) => sender.has(packet.source),
        };
        let passed = source_is_own || may_forward(sender, packet.source);
        recorder.step(Step::SourceCheck { at: from, passed });
        if !passed {
            return Err((DropReason::SourceCheck, from));
        }
        let owner = policy.directory().owner(packet.destination);
        if served && let Some(Owner::Service(service)) = owner {
            return unfiltered(recorder, service);
        }
        if !is_unicast(packet.destination) {
            recorder.step(Step::NotUnicast { at: from });
            return Err((DropReason::NotUnicast, from));
        }
        Ok(Admitted {
            owner,
            source_is_own,
        })
    }

    /// From the sender's groups to the receiver's. The sender's flow is
    /// remembered even if the packet ends later on the road: state is per
    /// interface.
    #[expect(clippy::too_many_arguments, reason = "the road's luggage")]
    #[inline]
    fn pass<R: Recorder>(
        &self,
        policy: &Policy,
        from: InterfaceIx,
        sender: &PolicyInterface,
        admitted: Admitted,
        frame: &mut [u8],
        packet: &mut Packet,
        shape: Shape,
        now: Millis,
        recorder: &mut R,
        verdict: &mut Verdict,
    ) -> Result<Way, Dropped> {
        // Between hosts of one subnet no ACL stands and no route is asked.
        let inside = sender
            .subnet()
            .is_some_and(|subnet| subnet.holds(packet.destination));
        let at = Station {
            policy,
            interface: sender,
            at: from,
            direction: Direction::Egress,
            crosses_boundary: !inside,
            peer_is_itself: true,
            meets_own_flow: false,
            now,
            sender: sender.entity,
        };
        let passed = self.pass_station(at, packet, frame, recorder)?;
        verdict.egress = passed.admission;
        let sent = passed.flow;

        let hop = if inside {
            policy.directory().inside_subnet(admitted.owner)
        } else {
            policy.directory().route(
                from,
                sender,
                packet.source,
                packet.destination,
                admitted.owner,
            )
        };
        recorder.step(Step::Routed { at: from, hop });
        let hop = hop.map_err(|stranded| (stranded.reason, from))?;
        let to = hop.to;
        let receiver = policy
            .interface(to)
            .ok_or((DropReason::UnknownDestination, from))?;
        let way = Way {
            to,
            new_source: hop.new_source,
            new_destination: hop.new_destination,
            mtu: receiver.mtu_through(hop.crosses_gateway()),
        };
        if shape.longest(packet.length) > usize::from(way.mtu) && packet.dont_fragment {
            recorder.step(Step::TooBig {
                at: to,
                mtu: way.mtu,
            });
            verdict.answer = self.answer(policy, from, sender, frame, packet, shape, way.mtu, now);
            if verdict.answer.is_some() {
                verdict.original = Original::Quoted;
            }
            return Err((DropReason::TooBig, to));
        }

        let left_by = (to == from).then(|| packet.flow_key(from, Direction::Egress));
        // The receiver's side sees the addresses as the gateway leaves them.
        verdict.original = way.original(frame);
        way.translate(frame, packet, shape);
        let at = Station {
            policy,
            interface: receiver,
            at: to,
            direction: Direction::Ingress,
            crosses_boundary: !inside,
            peer_is_itself: admitted.source_is_own,
            meets_own_flow: left_by
                .is_some_and(|key| key == packet.flow_key(to, Direction::Ingress)),
            now,
            sender: sender.entity,
        };
        verdict.ingress = self.pass_station(at, packet, frame, recorder)?.admission;
        if receiver.source_dest_check
            && receiver.subnet().is_some()
            && !receiver.has(packet.destination)
        {
            recorder.step(Step::DestinationCheck { at: to });
            return Err((DropReason::DestinationCheck, to));
        }
        // Only under the sender's own address does the way depend on nothing but
        // the flow and the policy.
        if let Some(flow) = sent.filter(|_| admitted.source_is_own && packet.fragment.is_none()) {
            self.remember_way(&flow, way, hop.crosses_gateway(), policy.generation());
        }
        Ok(way)
    }

    /// What the VPC's router tells the sender of a packet that is too big: it
    /// comes from outside of the sender's subnet and is judged like anything
    /// that does (aws-semantics §3.7).
    #[expect(clippy::too_many_arguments, reason = "the road's luggage")]
    #[cold]
    fn answer(
        &self,
        policy: &Policy,
        from: InterfaceIx,
        sender: &PolicyInterface,
        frame: &mut [u8],
        packet: &Packet,
        shape: Shape,
        mtu: u16,
        now: Millis,
    ) -> Option<Answer> {
        // One answer for all segments, which quotes the first as it would have been
        // on the wire. (Linux quotes the super-packet's headers as they are, with a
        // length and a checksum that no packet had.) The last segment goes with
        // the others though it may have been short enough, as in Linux.
        let first = Packet {
            length: packet::first_segment(frame.get_mut(..packet.length)?, shape).ok()?,
            ..*packet
        };
        let length = packet::too_big(frame, &first, mtu)?;
        let frame = frame.get_mut(..length)?;
        let error = packet::parse(frame).ok()?;
        let at = Station {
            policy,
            interface: sender,
            at: from,
            direction: Direction::Ingress,
            crosses_boundary: true,
            peer_is_itself: false,
            meets_own_flow: false,
            now,
            sender: sender.entity,
        };
        Some(match self.pass_station(at, &error, frame, &mut Silent) {
            Ok(_) => Answer::Sent { length },
            Err((reason, at)) => Answer::Dropped { reason, at },
        })
    }
}

impl Verdict {
    #[inline(always)]
    fn of(judged: Result<Fate, Dropped>) -> Self {
        Self {
            fate: fate_of(judged),
            egress: None,
            ingress: None,
            answer: None,
            original: Original::Unchanged,
            released: false,
            lost: 0,
        }
    }
}

#[inline(always)]
fn fate_of(judged: Result<Fate, Dropped>) -> Fate {
    judged.unwrap_or_else(|(reason, at)| Fate::Drop { reason, at })
}

/// What becomes of a fragment whose datagram's first had that fate.
fn follow(
    first: Result<Way, Dropped>,
    frame: &mut [u8],
    packet: &mut Packet,
    original: &mut Original,
) -> Result<Fate, Dropped> {
    let way = first?;
    if packet.length > usize::from(way.mtu) && packet.dont_fragment {
        return Err((DropReason::TooBig, way.to));
    }
    *original = way.original(frame);
    way.translate(frame, packet, Shape::Whole);
    Ok(way.fate(packet.length, Shape::Whole))
}

impl Way {
    /// Whether it leaves the addresses as they are.
    #[inline]
    fn is_plain(&self) -> bool {
        self.new_source.is_none() && self.new_destination.is_none()
    }

    /// Returns the packet in `frame`, before translation.
    #[inline]
    fn original(&self, frame: &[u8]) -> Original {
        if self.is_plain() {
            Original::Unchanged
        } else {
            Original::of_translated(frame)
        }
    }

    /// Gives the packet in `frame` the addresses that the gateway gives it.
    #[inline]
    fn translate(&self, frame: &mut [u8], packet: &mut Packet, shape: Shape) {
        if let Some(public) = self.new_source {
            packet::rewrite_source(frame, packet, shape, public);
        }
        if let Some(private) = self.new_destination {
            packet::rewrite_destination(frame, packet, shape, private);
        }
    }

    /// The fate of a packet that goes this way.
    #[inline]
    fn fate(&self, length: usize, shape: Shape) -> Fate {
        Fate::Forward {
            to: self.to,
            length,
            split: (shape.longest(length) > usize::from(self.mtu)).then_some(self.mtu),
        }
    }
}

/// Whether the interface may send under an address that is not its own: with
/// the source check off, and only as what a host may be.
#[cold]
fn may_forward(interface: &PolicyInterface, source: IpAddr) -> bool {
    let checked = interface.source_dest_check || matches!(interface.guard, Guard::Outside(_));
    !checked && is_unicast(source)
}

/// Whether the address is one host's: not multicast, broadcast, loopback or
/// unspecified.
fn is_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_multicast() || address.is_loopback() || address.is_unspecified() || broadcast)
}

/// Whether the packet is a DHCP client's, to whatever address. (AWS's list of
/// what is never filtered has the name alone; the ports are those of RFC 2131
/// and RFC 8415.)
#[inline]
fn is_dhcp(packet: &Packet) -> bool {
    let Transport::Udp {
        source,
        destination,
    } = packet.transport
    else {
        return false;
    };
    match packet.source {
        IpAddr::V4(_) => (source, destination) == (68, 67),
        IpAddr::V6(_) => (source, destination) == (546, 547),
    }
}

#[cfg(test)]
mod tests;
