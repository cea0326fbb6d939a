//! Datagrams sent in fragments: in order and out of it, some broken, some never
//! finished, ids used again.

use proptest::collection::vec;
use proptest::prelude::*;
use sgwall::model::{InterfaceIx, Model};

use crate::models::pick;
use crate::talk::Place;
use crate::traffic::{PacketPlan, friendly_plan, packet_plan};
use crate::wire::{Frame, Part, cut, damage, datagram_start};

/// Bytes after the transport header.
const SIZES: [usize; 8] = [24, 16, 40, 100, 600, 1600, 3000, 5000];

/// A datagram and how it is cut up.
#[derive(Debug, Clone)]
pub struct DatagramPlan {
    packet: PacketPlan,
    size: u8,
    cuts: Vec<u8>,
    order: u8,
    id: u8,
    at_once: u8,
    dont_fragment: bool,
}

/// A fragment of a datagram that was begun.
#[derive(Debug, Clone, Copy)]
pub struct PartPlan {
    which: u8,
    odd: u8,
}

/// Many fragments at once.
#[derive(Debug, Clone)]
pub struct FloodPlan {
    packet: PacketPlan,
    kind: u8,
    count: u16,
}

/// Any datagram.
pub fn datagram_plan() -> impl Strategy<Value = DatagramPlan> {
    (
        packet_plan(),
        any::<(u8, u8, u8, u8)>(),
        vec(any::<u8>(), 1..=4),
        proptest::bool::weighted(0.15),
    )
        .prop_map(
            |(packet, (size, order, id, at_once), cuts, dont_fragment)| DatagramPlan {
                packet,
                size,
                cuts,
                order,
                id,
                at_once,
                dont_fragment,
            },
        )
}

/// Any further fragment.
pub fn part_plan() -> impl Strategy<Value = PartPlan> {
    any::<(u8, u8)>().prop_map(|(which, odd)| PartPlan { which, odd })
}

/// Any flood.
pub fn flood_plan() -> impl Strategy<Value = FloodPlan> {
    (friendly_plan(), any::<u8>(), 0..=270u16).prop_map(|(packet, kind, count)| FloodPlan {
        packet,
        kind,
        count,
    })
}

impl DatagramPlan {
    /// The datagram as it was before it was cut up.
    pub fn build(&self, model: &Model) -> Frame {
        self.packet.build_long(model, self.payload())
    }

    /// Bytes after its transport header.
    pub fn payload(&self) -> usize {
        *pick(&SIZES, self.size)
    }

    /// The fragments that are sent at once, as they are.
    pub fn first_parts(&self) -> Vec<PartPlan> {
        let next = PartPlan { which: 24, odd: 0 };
        vec![next; usize::from(self.at_once % 6)]
    }
}

/// A datagram that was begun.
#[derive(Debug)]
struct Begun {
    from: InterfaceIx,
    place: Place,
    bytes: Vec<u8>,
    parts: Vec<Part>,
    sent: usize,
}

/// The datagrams that were begun.
#[derive(Debug, Default)]
pub struct Datagrams(Vec<Begun>);

impl Datagrams {
    /// Begins a datagram: `whole`, cut up as planned.
    pub fn begin(&mut self, whole: &Frame, plan: &DatagramPlan, place: Place) {
        let length = whole.bytes.len() - datagram_start(&whole.bytes);
        let units = length.div_ceil(8);
        let mut ends: Vec<usize> = plan
            .cuts
            .iter()
            .map(|cut| 8 * (1 + usize::from(*cut) * (units - 1) / 256))
            .filter(|end| *end < length)
            .collect();
        ends.push(length);
        ends.sort_unstable();
        ends.dedup();
        let mut offset = 0;
        let mut parts: Vec<Part> = ends
            .into_iter()
            .map(|end| {
                let part = Part {
                    // Few ids, so that they come again.
                    id: u16::from(plan.id % 3),
                    offset,
                    length: end - offset,
                    more: end < length,
                    dont_fragment: plan.dont_fragment,
                };
                offset = end;
                part
            })
            .collect();
        match plan.order % 8 {
            0..=3 => {}
            4 | 5 => parts.reverse(),
            6 => parts.rotate_right(1),
            _ => parts.rotate_left(1),
        }
        self.0.push(Begun {
            from: whole.packet.from,
            place,
            bytes: whole.bytes.clone(),
            parts,
            sent: 0,
        });
    }

    /// A fragment of the datagram `back` before the last: mostly the next that
    /// wasn't sent, and as it should be.
    pub fn part(&mut self, back: u8, plan: PartPlan) -> Option<(Frame, Place)> {
        let back = usize::from(back) % self.0.len().max(1);
        let begun = self.0.iter_mut().rev().nth(back)?;
        let next = begun.sent;
        let part = match plan.which {
            // The fragment that was sent last, once more.
            0..=23 if next > 0 => begun.parts[next - 1],
            0..=223 if next < begun.parts.len() => {
                begun.sent += 1;
                begun.parts[next]
            }
            which => *pick(&begun.parts, which),
        };
        let mut bytes = cut(&begun.bytes, bent(part, plan.odd));
        if plan.odd == 215 {
            damage(&mut bytes);
        }
        Some((Frame::read(begun.from, bytes), begun.place))
    }
}

impl FloodPlan {
    /// All of the flood: datagrams begun, fragments of one datagram, with gaps
    /// or without, or long fragments of many that wait for their first, some of
    /// them sent twice.
    pub fn frames(&self, model: &Model) -> Vec<Frame> {
        let whole = self.packet.build_long(model, 9000);
        let part = |id: u16, offset: usize, length: usize| Part {
            id,
            offset,
            length,
            more: true,
            dont_fragment: false,
        };
        // Some bursts exceed the room of one source address.
        let count = match self.kind {
            0 | 8 | 16 | 24 => self.count * 5,
            _ => self.count,
        };
        (0..count)
            .map(|nth| match self.kind % 8 {
                0..=2 => part(100 + nth, 0, 64),
                3 => part(7, 8 + 8 * usize::from(nth), 8),
                4 => part(7, 16 * usize::from(nth), 8),
                5 => part(7, 64 * usize::from(nth), 32),
                6 => part(1000 + nth / 2, 8000, 8 * 1100),
                _ => part(1000 + nth, 8000, 8 * usize::from(900 + nth)),
            })
            .map(|part| Frame::read(whole.packet.from, cut(&whole.bytes, part)))
            .collect()
    }
}

/// Sometimes a fragment that isn't as it should be.
fn bent(mut part: Part, odd: u8) -> Part {
    match odd {
        0..=215 => {}
        216..=221 => part.offset += 8,
        222..=227 => part.length += 8,
        228..=232 => part.more = !part.more,
        233..=235 => part.length = part.length.saturating_sub(1),
        236..=238 => part.length = 0,
        239..=241 => (part.offset, part.length) = (65_528, 8),
        242..=245 => part.dont_fragment = !part.dont_fragment,
        246..=248 => part.id += 1,
        249..=251 => part.length = 8,
        _ => part.length += 1600,
    }
    part
}
