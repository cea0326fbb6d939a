//! Fragments. Security groups and network ACLs judge a datagram by its first
//! fragment, which alone has ports; the others follow it. AWS says nothing
//! about them (aws-semantics §3.8): all of it is chosen here.

use std::net::IpAddr;
use std::time::Duration;

use super::packet::{Fragment, Packet, Payload};
use super::routes::Path;
use super::{Judgement, Oracle, Outcome, Refusal};
use crate::model::InterfaceIx;
use crate::policy::DropReason;

/// How long a datagram is remembered after its first-seen fragment.
const LIFE: Duration = Duration::from_secs(30);
/// Unfinished datagrams of one sending interface.
const DATAGRAMS_OF_ONE: usize = 256;
/// Unfinished datagrams of all interfaces together.
const DATAGRAMS: usize = 4096;
/// Fragments of one datagram that wait for its first.
const WAITING: usize = 64;
/// Stretches of a datagram that were seen, with gaps between them.
const STRETCHES: usize = 64;
/// Bytes that wait for first fragments at one sending interface.
const WAITING_BYTES: usize = 256 * 1024;
/// Longest datagram without its header.
const LONGEST: u32 = 65_535;

impl Fragment {
    /// Whether there can be a datagram that it is a part of.
    pub(super) fn is_possible(&self) -> bool {
        // Offsets are counted in units of 8 bytes, so only the last part may
        // end elsewhere (RFC 791, RFC 8200 §4.5).
        let whole_units = self.length.is_multiple_of(8);
        self.length > 0 && (whole_units || !self.more) && self.end() <= LONGEST
    }
}

/// What makes two fragments parts of the same datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    from: InterfaceIx,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

/// A datagram of which not all fragments were seen.
#[derive(Debug, Clone)]
pub(super) struct Datagram {
    name: Name,
    born: Duration,
    /// The bytes seen, from and up to, in the order of arrival.
    seen: Vec<(u32, u32)>,
    /// Where the last fragment ends, if it was seen.
    end: Option<u32>,
    /// What became of the first fragment, if it was seen.
    fate: Option<Result<Path, Refusal>>,
    /// Fragments that came before the first, in the order of arrival.
    waiting: Vec<Packet>,
    /// Some fragment covered bytes that another had covered.
    poisoned: bool,
}

impl Oracle {
    /// Judges a fragment that passed every check of its addresses.
    pub(super) fn judge_fragment(
        &mut self,
        packet: &Packet,
        fragment: Fragment,
        now: Duration,
        outcome: &mut Outcome,
    ) {
        let from = packet.from;
        let refuse = |reason| Judgement::Dropped { reason, at: from };

        // 1. Whether it fits to what was seen of its datagram. One that
        //    doesn't makes the datagram worthless (RFC 5722 §4).
        let name = Name {
            from,
            source: packet.source,
            destination: packet.destination,
            protocol: fragment.protocol,
            id: fragment.id,
        };
        let mut known = self.datagrams.iter().position(|its| its.name == name);
        if let Some(position) = known {
            let datagram = &mut self.datagrams[position];
            if datagram.poisoned || !datagram.has_room_for(fragment) {
                datagram.poisoned = true;
                outcome.lost = datagram.waiting.len();
                datagram.waiting.clear();
                outcome.judgement = refuse(DropReason::OverlappingFragment);
                return;
            }
        }

        // 2. Whether there is room: nothing is evicted, and what finds no room
        //    leaves no trace.
        let is_first = fragment.offset == 0;
        let in_pieces = known
            .is_some_and(|position| self.datagrams[position].stretches_with(fragment) > STRETCHES);
        if in_pieces
            || known.is_none() && !self.has_room_for_datagram(from)
            || !is_first && !self.has_room_for_waiting(packet, known)
        {
            outcome.judgement = refuse(DropReason::FragmentTableFull);
            return;
        }
        let position = *known.get_or_insert_with(|| {
            self.datagrams.push(Datagram::new(name, now));
            self.datagrams.len() - 1
        });
        self.datagrams[position].note(fragment);

        if is_first {
            // 3. The first fragment walks the whole road, as a packet does, and
            //    those that waited for it follow in the order they came.
            let fate = self.judge_whole(packet, now, outcome);
            let datagram = &mut self.datagrams[position];
            datagram.fate = Some(fate);
            for waited in std::mem::take(&mut datagram.waiting) {
                outcome.released.push((waited, follow(&waited, fate)));
            }
        } else if let Some(fate) = self.datagrams[position].fate {
            // 4. A later one follows the first …
            outcome.judgement = follow(packet, fate);
        } else {
            // 5. … or waits for it.
            self.datagrams[position].waiting.push(*packet);
            outcome.judgement = Judgement::Held { at: from };
        }

        // 6. A datagram that is complete is forgotten, and its id is free.
        if self.datagrams[position].is_complete() {
            self.datagrams.remove(position);
        }
    }

    /// Forgets datagrams whose time is up; gives the number of fragments that
    /// waited in vain, by sending interface.
    pub(super) fn expire_datagrams(&mut self, now: Duration) -> Vec<(InterfaceIx, u64)> {
        let mut orphans: Vec<(InterfaceIx, u64)> = Vec::new();
        for datagram in &self.datagrams {
            if datagram.is_live(now) || datagram.waiting.is_empty() {
                continue;
            }
            let number = datagram.waiting.len() as u64;
            match orphans.iter_mut().find(|(at, _)| *at == datagram.name.from) {
                Some((_, sum)) => *sum += number,
                None => orphans.push((datagram.name.from, number)),
            }
        }
        orphans.sort_unstable();
        self.datagrams.retain(|datagram| datagram.is_live(now));
        orphans
    }

    fn has_room_for_datagram(&self, from: InterfaceIx) -> bool {
        let of_one = self
            .datagrams
            .iter()
            .filter(|datagram| datagram.name.from == from)
            .count();
        of_one < DATAGRAMS_OF_ONE && self.datagrams.len() < DATAGRAMS
    }

    /// Whether a later fragment of the datagram at `known` may wait, or needn't.
    fn has_room_for_waiting(&self, packet: &Packet, known: Option<usize>) -> bool {
        let datagram = known.map(|position| &self.datagrams[position]);
        if datagram.is_some_and(|datagram| datagram.fate.is_some()) {
            return true;
        }
        let waiting_bytes: usize = self
            .datagrams
            .iter()
            .filter(|datagram| datagram.name.from == packet.from)
            .flat_map(|datagram| &datagram.waiting)
            .map(|waiting| waiting.length)
            .sum();
        datagram.map_or(0, |datagram| datagram.waiting.len()) < WAITING
            && waiting_bytes + packet.length <= WAITING_BYTES
    }
}

impl Datagram {
    fn new(name: Name, now: Duration) -> Self {
        Self {
            name,
            born: now,
            seen: Vec::new(),
            end: None,
            fate: None,
            waiting: Vec::new(),
            poisoned: false,
        }
    }

    fn is_live(&self, now: Duration) -> bool {
        now.saturating_sub(self.born) < LIFE
    }

    /// Whether the fragment covers bytes that none has covered, within what the
    /// last one says the length is.
    fn has_room_for(&self, fragment: Fragment) -> bool {
        let (from, to) = (fragment.offset, fragment.end());
        let overlaps = self
            .seen
            .iter()
            .any(|&(its_from, its_to)| from < its_to && its_from < to);
        let beyond_the_end = self.end.is_some_and(|end| to > end);
        let second_last = self.end.is_some() && !fragment.more;
        let too_short_a_last = !fragment.more && self.seen.iter().any(|&(_, its_to)| its_to > to);
        !overlaps && !beyond_the_end && !second_last && !too_short_a_last
    }

    /// How many stretches without gaps would be seen with the fragment.
    fn stretches_with(&self, fragment: Fragment) -> usize {
        let mut seen = self.seen.clone();
        seen.push((fragment.offset, fragment.end()));
        seen.sort_unstable();
        let gaps = seen.windows(2).filter(|pair| pair[0].1 < pair[1].0);
        1 + gaps.count()
    }

    fn note(&mut self, fragment: Fragment) {
        self.seen.push((fragment.offset, fragment.end()));
        if !fragment.more {
            self.end = Some(fragment.end());
        }
    }

    /// Whether every byte up to the end was seen. No two fragments overlap, so
    /// it is enough to count.
    fn is_complete(&self) -> bool {
        let bytes: u32 = self.seen.iter().map(|(from, to)| to - from).sum();
        !self.poisoned && self.end == Some(bytes)
    }
}

/// What becomes of a fragment other than the first: what became of the first,
/// as far as its own length allows. No rule, entry or flow has a say.
fn follow(packet: &Packet, fate: Result<Path, Refusal>) -> Judgement {
    debug_assert!(matches!(packet.payload, Payload::Headless(_)));
    match fate {
        Err((reason, at)) => Judgement::Dropped { reason, at },
        Ok(path) => match path.split(packet) {
            Err(reason) => Judgement::Dropped {
                reason,
                at: path.to,
            },
            Ok(split) => Judgement::Delivered {
                to: path.to,
                packet: path.translate(packet),
                split,
                egress: None,
                ingress: None,
            },
        },
    }
}
