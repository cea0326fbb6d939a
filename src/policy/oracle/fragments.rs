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

/// How long an unfinished datagram is remembered after its first fragment was judged, and how
/// long fragments wait for the first.
const LIFE: Duration = Duration::from_secs(5);
/// Maximum number of unfinished datagrams of one source address whose first fragment passed, for
/// each sending interface.
const DATAGRAMS_OF_ONE_SOURCE: usize = 1024;
/// The same for all source addresses together.
const DATAGRAMS: usize = 8192;
/// Fragments of one datagram that wait for its first.
const WAITING: usize = 64;
/// Maximum number of bytes of waiting fragments of one source address, for each sending
/// interface.
const WAITING_BYTES_OF_ONE_SOURCE: usize = 256 * 1024;
/// The same for all source addresses together.
const WAITING_BYTES: usize = 1024 * 1024;
/// Bytes added to the size of each waiting fragment, and counted for each refused or broken
/// datagram.
const OVERHEAD: usize = 256;
/// Maximum number of fragments of one datagram.
const PARTS: usize = 128;
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
    /// The fragments seen so far, in order of arrival.
    seen: Vec<Fragment>,
    standing: Standing,
}

#[derive(Debug, Clone)]
enum Standing {
    /// The first fragment hasn't come; these wait for it, in order of arrival.
    Early(Vec<Packet>),
    /// The first fragment passed.
    Passed(Path),
    /// The first fragment was dropped.
    Refused(Refusal),
    /// Fragments overlapped after the first fragment had passed.
    BrokenLate,
    /// Fragments overlapped before the first fragment came.
    BrokenEarly,
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
        let name = Name {
            from,
            source: packet.source,
            destination: packet.destination,
            protocol: fragment.protocol,
            id: fragment.id,
        };
        let is_first = fragment.offset == 0;
        let mut known = self.datagrams.iter().position(|its| its.name == name);

        // 1. IPv4 has few identifications, and a host uses them again while an old datagram
        //    is unfinished. A first fragment with other bytes than the one seen begins a
        //    new datagram, whatever became of the old one. So does any first fragment after
        //    one that was refused: nothing of that datagram arrived.
        if is_first && let Some(position) = known {
            let old = &self.datagrams[position];
            let first = old.seen.iter().find(|seen| seen.offset == 0);
            let is_another = first.is_some_and(|first| *first != fragment);
            let reused = match old.standing {
                Standing::Passed(_) | Standing::BrokenLate => is_another && packet.source.is_ipv4(),
                Standing::Refused(_) => true,
                Standing::Early(_) | Standing::BrokenEarly => false,
            };
            if reused {
                self.datagrams.remove(position);
                known = None;
            }
        }

        // 2. The fragment must fit what was seen of its datagram.
        if let Some(position) = known
            && let Err(reason) = self.datagrams[position].fits(fragment)
        {
            if reason == DropReason::OverlappingFragment {
                outcome.lost = self.datagrams[position].break_up();
            }
            outcome.judgement = Judgement::Dropped { reason, at: from };
            return;
        }

        if is_first {
            self.judge_first(packet, fragment, name, known, now, outcome);
        } else {
            outcome.judgement = self.judge_later(packet, fragment, name, known, now, outcome);
        }
    }

    /// Judges the first fragment like a whole packet. Fragments that waited for it follow in
    /// order of arrival. The datagram at `known`, if any, is one that waits.
    fn judge_first(
        &mut self,
        packet: &Packet,
        fragment: Fragment,
        name: Name,
        known: Option<usize>,
        now: Duration,
        outcome: &mut Outcome,
    ) {
        let fate = self.judge_whole(packet, now, outcome);
        let mut datagram = Datagram {
            name,
            born: now,
            seen: Vec::new(),
            standing: match fate {
                Ok(path) => Standing::Passed(path),
                Err(refusal) => Standing::Refused(refusal),
            },
        };
        if let Some(position) = known {
            let early = self.datagrams.remove(position);
            datagram.seen = early.seen;
            if let Standing::Early(waiting) = early.standing {
                for waited in waiting {
                    outcome.released.push((waited, follow(&waited, fate)));
                }
            }
        }
        datagram.seen.push(fragment);
        // A complete datagram is forgotten, and its ID can be used again.
        if !datagram.is_complete() {
            self.make_room(&datagram, datagram.weight(), outcome);
            self.datagrams.push(datagram);
        }
    }

    /// Lets a later fragment follow the first, or wait for it.
    fn judge_later(
        &mut self,
        packet: &Packet,
        fragment: Fragment,
        name: Name,
        known: Option<usize>,
        now: Duration,
        outcome: &mut Outcome,
    ) -> Judgement {
        let at = packet.from;
        let held = Judgement::Held { at };
        let weight = OVERHEAD + packet.length;
        let Some(position) = known else {
            let datagram = Datagram {
                name,
                born: now,
                seen: vec![fragment],
                standing: Standing::Early(vec![*packet]),
            };
            self.make_room(&datagram, weight, outcome);
            self.datagrams.push(datagram);
            return held;
        };
        let datagram = &mut self.datagrams[position];
        match &mut datagram.standing {
            Standing::Refused(refusal) => follow(packet, Err(*refusal)),
            Standing::Passed(path) => {
                let judgement = follow(packet, Ok(*path));
                datagram.seen.push(fragment);
                if datagram.is_complete() {
                    self.datagrams.remove(position);
                }
                judgement
            }
            Standing::Early(waiting) => {
                let many = waiting.len() >= WAITING;
                if many || datagram.weight() + weight > WAITING_BYTES_OF_ONE_SOURCE {
                    // A fragment without room leaves no trace.
                    let reason = DropReason::FragmentTableFull;
                    return Judgement::Dropped { reason, at };
                }
                let before = datagram.clone();
                if let Standing::Early(waiting) = &mut datagram.standing {
                    waiting.push(*packet);
                    datagram.seen.push(fragment);
                }
                self.make_room(&before, weight, outcome);
                held
            }
            Standing::BrokenLate | Standing::BrokenEarly => held,
        }
    }

    /// Gives up the oldest unfinished datagrams of the same source address, or else of the same
    /// interface, until there is room for `weight` more of `of`, which itself stays. Datagrams
    /// whose first fragment passed have a separate limit.
    fn make_room(&mut self, of: &Datagram, weight: usize, outcome: &mut Outcome) {
        let (most_of_source, most) = if of.is_late() {
            (DATAGRAMS_OF_ONE_SOURCE, DATAGRAMS)
        } else {
            (WAITING_BYTES_OF_ONE_SOURCE, WAITING_BYTES)
        };
        loop {
            let same_room =
                |its: &&Datagram| its.name.from == of.name.from && its.is_late() == of.is_late();
            let same_source = |its: &&Datagram| its.name.source == of.name.source;
            // `of` already contains its new fragment, which `weight` counts.
            let taken = |of_one: bool| -> usize {
                let all = self.datagrams.iter().filter(same_room);
                let all = all.filter(|its| !of_one || same_source(its));
                all.filter(|its| its.name != of.name)
                    .map(Datagram::weight)
                    .sum::<usize>()
            };
            let own = if self.datagrams.iter().any(|its| its.name == of.name) {
                of.weight()
            } else {
                0
            };
            let of_one = taken(true) + own + weight > most_of_source;
            if !of_one && taken(false) + own + weight <= most {
                return;
            }
            let oldest = self.datagrams.iter().position(|its| {
                same_room(&its) && its.name != of.name && (!of_one || same_source(&its))
            });
            let Some(oldest) = oldest else { return };
            if let Standing::Early(waiting) = self.datagrams.remove(oldest).standing {
                add_orphans(&mut outcome.orphans, of.name.from, waiting.len());
            }
        }
    }

    /// Forgets datagrams whose time is up; gives the number of fragments that
    /// waited in vain, by sending interface.
    pub(super) fn expire_datagrams(&mut self, now: Duration) -> Vec<(InterfaceIx, u64)> {
        let mut orphans: Vec<(InterfaceIx, u64)> = Vec::new();
        self.datagrams.retain(|datagram| {
            let is_live = now.saturating_sub(datagram.born) < LIFE;
            if !is_live && let Standing::Early(waiting) = &datagram.standing {
                add_orphans(&mut orphans, datagram.name.from, waiting.len());
            }
            is_live
        });
        orphans
    }
}

/// Counts fragments that waited in vain. The list stays in order.
fn add_orphans(orphans: &mut Vec<(InterfaceIx, u64)>, from: InterfaceIx, waiting: usize) {
    let number = waiting as u64;
    match orphans.iter_mut().find(|(at, _)| *at == from) {
        Some((_, sum)) => *sum += number,
        None => orphans.push((from, number)),
    }
    orphans.sort_unstable();
}

impl Datagram {
    /// Returns true if its first fragment passed.
    fn is_late(&self) -> bool {
        matches!(self.standing, Standing::Passed(_) | Standing::BrokenLate)
    }

    /// Returns what it counts towards its limit: one if its first fragment passed, and bytes
    /// otherwise.
    fn weight(&self) -> usize {
        match &self.standing {
            Standing::Passed(_) | Standing::BrokenLate => 1,
            Standing::Refused(_) | Standing::BrokenEarly => OVERHEAD,
            Standing::Early(waiting) => waiting.iter().map(|packet| OVERHEAD + packet.length).sum(),
        }
    }

    /// Returns an error unless the fragment may be added to the datagram.
    fn fits(&self, fragment: Fragment) -> Result<(), DropReason> {
        match self.standing {
            // RFC 5722 §4: the whole datagram is dropped, including later fragments.
            Standing::BrokenLate | Standing::BrokenEarly => {
                return Err(DropReason::OverlappingFragment);
            }
            // Nothing of it arrives.
            Standing::Refused(_) => return Ok(()),
            Standing::Early(_) | Standing::Passed(_) => {}
        }
        // RFC 8200 §4.5: an exact duplicate is ignored.
        if self.seen.contains(&fragment) {
            return Err(DropReason::DuplicateFragment);
        }
        // It must cover only new bytes, within the length that the last fragment gives.
        let (from, to) = (fragment.offset, fragment.end());
        let overlaps = self
            .seen
            .iter()
            .any(|seen| from < seen.end() && seen.offset < to);
        let last = self.seen.iter().find(|seen| !seen.more);
        let beyond_the_end = last.is_some_and(|last| to > last.end() || !fragment.more);
        let too_short_a_last = !fragment.more && self.seen.iter().any(|seen| seen.end() > to);
        if overlaps || beyond_the_end || too_short_a_last {
            return Err(DropReason::OverlappingFragment);
        }
        if self.seen.len() >= PARTS {
            return Err(DropReason::FragmentTableFull);
        }
        Ok(())
    }

    /// Drops the whole datagram. Returns the number of fragments that waited.
    fn break_up(&mut self) -> usize {
        let (standing, lost) = match &self.standing {
            Standing::Early(waiting) => (Standing::BrokenEarly, waiting.len()),
            Standing::BrokenEarly => (Standing::BrokenEarly, 0),
            _ => (Standing::BrokenLate, 0),
        };
        self.standing = standing;
        lost
    }

    /// Whether every byte up to the end was seen. No two fragments overlap, so
    /// it is enough to count.
    fn is_complete(&self) -> bool {
        let bytes: u32 = self.seen.iter().map(|seen| seen.length).sum();
        let last = self.seen.iter().find(|seen| !seen.more);
        last.is_some_and(|last| last.end() == bytes)
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
