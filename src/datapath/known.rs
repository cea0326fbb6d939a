//! The short road: a packet of a flow whose way is known.
//!
//! Once a packet has walked all of the road, the sender's entry keeps the way for
//! as long as the policy is the same ([`FlowRef::way`]). What comes after it in the
//! same direction meets the same source check, ACLs, route and destination check,
//! as all of them depend on the flow's key and on the policy; what is left to ask is
//! whether both ends still know the flow. Plain packets aren't even parsed for it
//! ([`Brief::plain`]). What finds no way here, and every fragment, walks the whole road.

use super::{Admission, Datapath, Recorder, Verdict, Way};
use crate::conntrack::{self, FlowRef, Judged, Millis};
use crate::model::{Direction, InterfaceIx};
use crate::packet::{Brief, FlowKey, Packet, Shape};
use crate::policy::{Policy, PolicyInterface};

/// Flows above which their records aren't all in the processor's cache.
const MANY: usize = 1 << 16;

impl Datapath {
    /// Whether there are so many flows that it pays to [`Self::anticipate`].
    #[inline]
    pub fn anticipates(&self) -> bool {
        self.flows.len() >= MANY
    }

    /// Has the flows of a batch of frames from `from` at hand before they are judged
    /// one by one. `keys` is for scratch.
    pub fn anticipate<'f>(
        &self,
        from: InterfaceIx,
        frames: impl Iterator<Item = &'f [u8]>,
        keys: &mut Vec<Option<FlowKey>>,
    ) {
        keys.clear();
        keys.extend(frames.map(|frame| FlowKey::guess(from, frame)));
        self.flows.touch(keys);
    }

    /// The verdict on a packet from a host of the VPC whose way is known and that both
    /// ends let pass. Otherwise nothing has happened, but that one of them may have
    /// taken note of the packet when the other's flow ended in that very moment; then
    /// the long road may find that the packet has closed its own connection, and drops
    /// it.
    #[inline(always)]
    pub(super) fn known_way<R: Recorder>(
        &self,
        policy: &Policy,
        sender: &PolicyInterface,
        frame: &mut [u8],
        brief: &Brief,
        shape: Shape,
        now: Millis,
    ) -> Option<Verdict> {
        let generation = policy.generation();
        let Brief {
            key,
            segment,
            length,
            ..
        } = *brief;
        let hash = self.flows.hash(&key);
        let (sent, beside) = self.flows.find_pair(&key, hash, now)?;
        let noted = sent.way(generation)?;
        let receiver = policy.interface(noted.to)?;
        let way = Way::of(noted, sender, receiver, &key)?;
        if shape.longest(length) > usize::from(way.mtu) {
            return None;
        }
        let egress = admission::<R>(&sent, Direction::Egress, generation)?;

        let mut ingress = None;
        if receiver.subnet().is_some() {
            let other = key.at_other_end(way.to, way.new_source, way.new_destination);
            // Sent to its own sender, between equal ports: this flow doesn't let it in.
            if other == key {
                return None;
            }
            let received = if way.is_plain() {
                self.flows.find_beside(beside, &other, hash, now)?
            } else {
                self.flows.find(&other, now)?
            };
            let admission = admission::<R>(&received, Direction::Ingress, generation)?;
            if !received.take_note(&segment, Direction::Ingress, &receiver.tracking, now) {
                return None;
            }
            ingress = admission;
        }
        if !sent.take_note(&segment, Direction::Egress, &sender.tracking, now) {
            return None;
        }
        let original = way.original(frame);
        if !way.is_plain() {
            brief.translate(frame, shape, way.new_source, way.new_destination);
        }
        Some(Verdict {
            egress,
            ingress,
            original,
            ..Verdict::of(Ok(way.fate(length, shape)))
        })
    }

    /// [`Self::known_way`] of a packet that isn't plain. Apart, so that what most packets
    /// need stays small.
    #[expect(clippy::too_many_arguments, reason = "the road's luggage")]
    #[inline(never)]
    pub(super) fn known_way_of_any<R: Recorder>(
        &self,
        policy: &Policy,
        from: InterfaceIx,
        sender: &PolicyInterface,
        frame: &mut [u8],
        packet: &Packet,
        shape: Shape,
        now: Millis,
    ) -> Option<Verdict> {
        // Fragments have their own table, and a SYN may begin another flow.
        if packet.fragment.is_some() || packet.opens_connection() {
            return None;
        }
        let brief = Brief::of(from, packet)?;
        self.known_way::<R>(policy, sender, frame, &brief, shape, now)
    }

    /// Notes the way that a packet of a known flow has gone, for those that follow.
    pub(super) fn remember_way(
        &self,
        flow: &FlowRef<'_>,
        way: Way,
        through_gateway: bool,
        generation: u64,
    ) {
        let noted = conntrack::Way {
            to: way.to,
            through_gateway,
            new_source: way.new_source.is_some(),
            new_destination: way.new_destination,
        };
        if flow.way(generation) != Some(noted) {
            flow.set_way(noted, generation);
        }
    }
}

impl Way {
    /// The way that a flow remembers, from `sender` to `receiver`.
    #[inline(always)]
    fn of(
        noted: conntrack::Way,
        sender: &PolicyInterface,
        receiver: &PolicyInterface,
        key: &FlowKey,
    ) -> Option<Self> {
        let new_source = if noted.new_source {
            Some(sender.public_of(key.local())?)
        } else {
            None
        };
        Some(Self {
            to: noted.to,
            new_source,
            new_destination: noted.new_destination,
            mtu: receiver.mtu_through(noted.through_gateway),
        })
    }
}

/// By what the flow lets the packet pass without asking a rule, if it does; nothing
/// where nobody wants to know.
#[inline(always)]
#[expect(clippy::option_option, reason = "whether it passes, and by what")]
fn admission<R: Recorder>(
    flow: &FlowRef<'_>,
    direction: Direction,
    generation: u64,
) -> Option<Option<Admission>> {
    let tracked = flow.is_tracked();
    let passes = if tracked {
        !flow.is_closed()
    } else {
        flow.passed(Judged::Rules, direction, generation)
    };
    let by = || Admission {
        rule: if tracked {
            flow.admitted_by()
        } else {
            flow.rule(direction)
        },
        tracked,
    };
    passes.then(|| R::PROVENANCE.then(by))
}
