use super::*;
use crate::model::protocol;
use proptest::prelude::{Strategy, any};

/// What became of a first fragment, as far as these tests go.
type Table = Fragments<u32, DropReason>;

const FORWARDED: u32 = 1;
const OVERLAP: DropReason = DropReason::OverlappingFragment;
const FULL: DropReason = DropReason::FragmentTableFull;
const START: Millis = Millis(1_000);

fn eni(ix: usize) -> InterfaceIx {
    InterfaceIx::new(ix)
}

fn key_of(sender: usize, id: u32) -> DatagramKey {
    DatagramKey {
        sender: eni(sender),
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        next: protocol::UDP,
        id,
    }
}

fn part(offset: u16, length: u16, more: bool) -> Fragment {
    Fragment {
        id: 0,
        offset,
        length,
        more,
        next: protocol::UDP,
    }
}

/// The same for an IPv6 datagram. IPv6 identifications are not used twice.
fn key_v6() -> DatagramKey {
    DatagramKey {
        source: [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
        destination: [0xfd00, 0, 0, 0, 0, 0, 0, 2].into(),
        ..key_of(0, 1)
    }
}

fn refused(reason: DropReason, lost: u16) -> Later<u32, DropReason> {
    Later::Drop(Refused { reason, lost })
}

/// Handles a first fragment with that payload at that time, and gives it this outcome.
fn judged(
    table: &Table,
    key: DatagramKey,
    payload: &[u8],
    fate: Result<u32, DropReason>,
    now: Millis,
) -> Result<bool, Refused> {
    let part = part(0, u16::try_from(payload.len()).unwrap(), true);
    let first = table.admit_first(key, part, payload, now)?;
    Ok(table.decide(key, first, fate, now))
}

/// A first fragment comes and is forwarded.
fn first(table: &Table, key: DatagramKey, length: u16) -> bool {
    judged(table, key, &vec![0; length.into()], Ok(FORWARDED), START).unwrap()
}

fn released(table: &Table, sender: usize) -> Vec<(Vec<u8>, Result<u32, DropReason>)> {
    std::iter::from_fn(|| table.next_released(eni(sender))).collect()
}

#[test]
fn later_fragments_follow_their_first() {
    let table = Table::new();
    let key = key_of(0, 1);
    assert!(!first(&table, key, 16));
    let at = |offset, more| table.later(key, part(offset, 16, more), &[0; 36], START);
    assert_eq!(at(16, true), Later::Follow(Ok(FORWARDED)));
    assert_eq!(at(48, false), Later::Follow(Ok(FORWARDED)));
    assert_eq!(table.len(), 1);
    assert_eq!(at(32, true), Later::Follow(Ok(FORWARDED)));
    assert!(table.is_empty(), "forgotten as soon as all was seen");
    assert_eq!(released(&table, 0), []);
}

#[test]
fn the_fate_of_a_dropped_first_is_shared() {
    let table = Table::new();
    let key = key_of(0, 1);
    let fate = Err(DropReason::NoIngressRule);
    let held = table.later(key, part(32, 8, true), b"waited", START);
    assert_eq!(held, Later::Hold);
    assert_eq!(judged(&table, key, &[0; 16], fate, START), Ok(true));
    assert_eq!(released(&table, 0), [(b"waited".to_vec(), fate)]);
    for offset in [16, 32, 8] {
        let follows = table.later(key, part(offset, 16, true), b"", START);
        assert_eq!(follows, Later::Follow(fate));
    }
    // Sent again, it is judged again.
    assert_eq!(judged(&table, key, &[0; 16], Ok(5), START), Ok(false));
    let follows = table.later(key, part(16, 16, true), b"", START);
    assert_eq!(follows, Later::Follow(Ok(5)));
}

#[test]
fn an_exact_duplicate_changes_nothing() {
    for key in [key_of(0, 1), key_v6()] {
        let table = Table::new();
        let duplicate = refused(DropReason::DuplicateFragment, 0);
        let at = |offset, more| table.later(key, part(offset, 16, more), &[7; 36], START);
        assert_eq!(at(32, false), Later::Hold);
        assert_eq!(at(32, false), duplicate);
        assert!(first(&table, key, 16));
        assert_eq!(released(&table, 0).len(), 1);
        let again = judged(&table, key, &[0; 16], Ok(5), START);
        assert_eq!(again, Err(Refused::alone(DropReason::DuplicateFragment)));
        assert_eq!(at(32, false), duplicate);
        assert_eq!(at(16, true), Later::Follow(Ok(FORWARDED)));
        assert!(table.is_empty());
    }
    // Other bytes at the same place are not a duplicate.
    let table = Table::new();
    first(&table, key_of(0, 1), 16);
    let at = |byte| table.later(key_of(0, 1), part(16, 16, true), &[byte; 36], START);
    assert_eq!(at(1), Later::Follow(Ok(FORWARDED)));
    assert_eq!(at(2), refused(OVERLAP, 0));
}

#[test]
fn a_first_fragment_with_other_bytes_begins_a_new_datagram_over_ipv4() {
    let table = Table::new();
    let key = key_of(0, 1);
    let middle = |table: &Table| table.later(key, part(24, 8, true), b"", START);
    first(&table, key, 24);
    assert_eq!(middle(&table), Later::Follow(Ok(FORWARDED)));
    assert_eq!(judged(&table, key, &[1; 16], Ok(5), START), Ok(false));
    assert_eq!(middle(&table), Later::Follow(Ok(5)), "nothing seen yet");
    // Nothing passes of a datagram that is dropped, whatever passed before it.
    let fate = Err(DropReason::NoEgressRule);
    assert_eq!(judged(&table, key, &[2; 16], fate, START), Ok(false));
    assert_eq!(middle(&table), Later::Follow(fate));
    assert_eq!(table.len(), 1);

    // A broken datagram's ID may be used again, but the datagram itself stays broken.
    let table = Table::new();
    first(&table, key, 16);
    table.later(key, part(16, 16, true), b"", START);
    assert_eq!(middle(&table), refused(OVERLAP, 0));
    let same = judged(&table, key, &[0; 16], Ok(5), START);
    assert_eq!(same, Err(Refused::alone(OVERLAP)));
    assert_eq!(judged(&table, key, &[1; 16], Ok(5), START), Ok(false));
    assert_eq!(middle(&table), Later::Follow(Ok(5)));

    // IPv6 has enough IDs.
    let table = Table::new();
    first(&table, key_v6(), 16);
    let other = judged(&table, key_v6(), &[1; 16], Ok(5), START);
    assert_eq!(other, Err(Refused::alone(OVERLAP)));
}

#[test]
fn what_came_before_its_first_is_released_in_the_order_it_came() {
    let table = Table::new();
    let key = key_of(3, 1);
    for (offset, more, bytes) in [(32, false, b"c"), (16, true, b"b"), (24, true, b"d")] {
        let held = table.later(key, part(offset, 8, more), bytes, START);
        assert_eq!(held, Later::Hold);
    }
    assert_eq!(table.next_released(eni(3)), None, "not yet");
    assert!(first(&table, key, 16));
    assert!(table.is_empty(), "all was seen, and none waits");
    assert_eq!(table.next_released(eni(2)), None, "somebody else's");
    let frames = released(&table, 3);
    let expected = [b"c", b"b", b"d"].map(|frame| (frame.to_vec(), Ok(FORWARDED)));
    assert_eq!(frames, expected);
}

#[test]
fn an_id_may_be_used_again_once_all_was_seen() {
    let table = Table::new();
    let key = key_of(0, 1);
    for _ in 0..3 {
        first(&table, key, 8);
        let last = table.later(key, part(8, 3, false), b"", START);
        assert_eq!(last, Later::Follow(Ok(FORWARDED)));
        assert!(table.is_empty());
        let held = table.later(key, part(8, 3, false), b"x", START);
        assert_eq!(held, Later::Hold);
        assert!(first(&table, key, 8));
        assert!(table.is_empty());
        assert_eq!(released(&table, 0).len(), 1);
    }
}

#[test]
fn every_part_of_the_key_tells_datagrams_apart() {
    let table = Table::new();
    let key = key_of(0, 1);
    first(&table, key, 8);
    let others = [
        DatagramKey {
            sender: eni(1),
            ..key
        },
        DatagramKey {
            source: [10, 0, 0, 9].into(),
            ..key
        },
        DatagramKey {
            destination: [10, 0, 0, 9].into(),
            ..key
        },
        DatagramKey {
            next: protocol::TCP,
            ..key
        },
        DatagramKey { id: 2, ..key },
    ];
    for other in others {
        let held = table.later(other, part(8, 8, true), b"", START);
        assert_eq!(held, Later::Hold, "{other:?}");
    }
    let follows = table.later(key, part(8, 8, true), b"", START);
    assert_eq!(follows, Later::Follow(Ok(FORWARDED)));
}

#[test]
fn the_key_is_what_the_fragment_header_says() {
    let part = Fragment {
        id: 77,
        offset: 0,
        length: 8,
        more: true,
        next: 60,
    };
    let packet = Packet {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        protocol: protocol::UDP,
        transport: crate::packet::Transport::Other,
        length: 28,
        transport_offset: 20,
        fragment: Some(part),
        dont_fragment: false,
    };
    let expected = DatagramKey {
        next: 60,
        ..key_of(4, 77)
    };
    assert_eq!(DatagramKey::new(eni(4), &packet, part), expected);
}

/// Overlaps of a datagram whose bytes 0..16, 32..48 and 64..72 were seen.
const OVERLAPS: [(u16, u16, bool); 11] = [
    (0, 24, true),   // the first and more
    (0, 8, true),    // a part of it
    (8, 8, true),    // its end
    (8, 16, true),   // across its end
    (16, 24, true),  // across a start
    (40, 8, true),   // within
    (24, 32, true),  // around
    (16, 100, true), // around several
    (40, 24, true),  // from within to the next
    (16, 8, false),  // ends before something seen
    (64, 3, false),  // ends within something seen
];

#[test]
fn every_form_of_overlap_poisons_the_datagram() {
    for (offset, length, more) in OVERLAPS {
        let overlap = part(offset, length, more);
        let table = Table::new();
        let key = key_v6();
        first(&table, key, 16);
        for seen in [part(32, 16, true), part(64, 8, true)] {
            let follows = table.later(key, seen, b"", START);
            assert_eq!(follows, Later::Follow(Ok(FORWARDED)));
        }
        let outcome = if offset == 0 {
            Later::Drop(table.admit_first(key, overlap, b"", START).unwrap_err())
        } else {
            table.later(key, overlap, b"", START)
        };
        assert_eq!(outcome, refused(OVERLAP, 0), "{overlap:?}");

        let harmless = part(16, 8, true);
        assert_eq!(table.later(key, harmless, b"", START), refused(OVERLAP, 0));
        let again = judged(&table, key, &[0; 16], Ok(5), START);
        assert_eq!(again, Err(Refused::alone(OVERLAP)));
        assert_eq!(table.later(key, harmless, b"", START), refused(OVERLAP, 0));
        assert_eq!(table.len(), 1);
    }
}

#[test]
fn nothing_comes_behind_the_last_fragment() {
    for behind in [
        part(24, 8, true),
        part(32, 8, true),
        part(16, 16, true),
        part(24, 8, false),
        part(8, 8, false), // a second last one, in a gap
        part(65_528, 7, false),
    ] {
        let table = Table::new();
        let key = key_of(0, 1);
        first(&table, key, 8);
        let last = table.later(key, part(16, 8, false), b"", START);
        assert_eq!(last, Later::Follow(Ok(FORWARDED)));
        let outcome = table.later(key, behind, b"", START);
        assert_eq!(outcome, refused(OVERLAP, 0), "{behind:?}");
    }
}

#[test]
fn those_that_waited_die_with_a_poisoned_datagram() {
    let table = Table::new();
    let key = key_of(0, 1);
    for offset in [16, 24, 32] {
        let held = table.later(key, part(offset, 8, true), &[0; 1000], START);
        assert_eq!(held, Later::Hold);
    }
    let overlap = table.later(key, part(24, 16, true), b"", START);
    assert_eq!(overlap, refused(OVERLAP, 3));
    let more = table.later(key, part(40, 8, true), b"", START);
    assert_eq!(more, refused(OVERLAP, 0), "counted once");
    assert_eq!(table.sweep(Millis(u64::MAX)), [], "no orphans");
    assert_eq!(released(&table, 0), []);

    // Likewise if it is the first that overlaps what waits.
    let key = key_of(0, 2);
    table.later(key, part(8, 8, true), b"", START);
    assert_eq!(
        judged(&table, key, &[0; 16], Ok(5), START),
        Err(Refused {
            reason: OVERLAP,
            lost: 1
        })
    );
}

#[test]
fn a_broken_datagram_ends_with_its_time() {
    let table = Table::new();
    let key = key_of(0, 1);
    first(&table, key, 16);
    let later = |offset, after| {
        let now = Millis(START.0 + after);
        table.later(key, part(offset, 8, true), b"", now)
    };
    assert_eq!(later(8, 0), refused(OVERLAP, 0));
    assert_eq!(later(16, LIFETIME - 1), refused(OVERLAP, 0));
    assert_eq!(later(16, LIFETIME), Later::Hold);
}

#[test]
fn a_datagram_lives_for_its_time_from_its_first_fragment() {
    let table = Table::new();
    let key = key_of(0, 1);
    let at = |offset, after| {
        let now = Millis(START.0 + after);
        table.later(key, part(offset, 8, true), b"", now)
    };
    assert_eq!(at(8, 0), Later::Hold);
    let late = Millis(START.0 + LIFETIME - 1);
    assert_eq!(judged(&table, key, &[0; 8], Ok(FORWARDED), late), Ok(true));
    let end = 2 * LIFETIME - 1;
    assert_eq!(at(16, end - 1), Later::Follow(Ok(FORWARDED)));
    assert_eq!(at(24, end), Later::Hold, "not put off");
}

#[test]
fn those_that_waited_in_vain_are_orphans() {
    let table = Table::new();
    for (sender, id, offset) in [(0, 1, 8), (0, 1, 16), (0, 2, 8), (5, 1, 8)] {
        let waits = part(offset, 8, true);
        let held = table.later(key_of(sender, id), waits, &[0; 100], START);
        assert_eq!(held, Later::Hold);
    }
    let end = Millis(START.0 + LIFETIME);
    assert_eq!(table.sweep(Millis(end.0 - 1)), []);
    // One is found gone by a fragment, before the sweep.
    let held = table.later(key_of(0, 1), part(8, 8, true), b"", end);
    assert_eq!(held, Later::Hold);
    assert_eq!(table.sweep(end), [(eni(0), 3), (eni(5), 1)]);
    assert_eq!(table.sweep(end), [], "told once");
    assert_eq!(table.len(), 1);
}

#[test]
fn those_whose_first_came_are_no_orphans() {
    let table = Table::new();
    table.later(key_of(0, 1), part(8, 8, true), b"", START);
    first(&table, key_of(0, 1), 8);
    assert_eq!(table.sweep(Millis(u64::MAX)), []);
    assert!(table.is_empty());
    assert_eq!(released(&table, 0).len(), 1, "and are still released");
}

/// Returns a key of the same interface with another source address.
fn key_from(source: u16, id: u32) -> DatagramKey {
    let [high, low] = source.to_be_bytes();
    DatagramKey {
        source: [10, 1, high, low].into(),
        ..key_of(0, id)
    }
}

fn follows(table: &Table, key: DatagramKey) -> bool {
    let later = table.later(key, part(8, 8, true), b"", START);
    later == Later::Follow(Ok(FORWARDED))
}

#[test]
fn the_oldest_unfinished_datagram_of_a_source_makes_room_for_its_newest() {
    let table = Table::new();
    first(&table, key_from(1, 0), 8);
    let share = u32::try_from(MAX_DATAGRAMS_OF_SOURCE).unwrap();
    for id in 0..share + 2 {
        first(&table, key_from(0, id), 8);
    }
    assert_eq!(table.len(), MAX_DATAGRAMS_OF_SOURCE + 1);
    assert!(!follows(&table, key_from(0, 1)));
    assert!(follows(&table, key_from(0, 2)));
    assert!(follows(&table, key_from(0, share + 1)));
    assert!(follows(&table, key_from(1, 0)), "another source's");
    // A complete datagram frees its place.
    table.later(key_from(0, 3), part(8, 8, false), b"", START);
    first(&table, key_from(0, share + 2), 8);
    assert!(follows(&table, key_from(0, 4)));
}

#[test]
fn an_interface_is_bounded_whatever_addresses_it_sends_from() {
    let table = Table::new();
    first(&table, key_of(1, 0), 8);
    for source in 0..9 {
        for id in 0..1024 {
            first(&table, key_from(source, id), 8);
        }
    }
    assert_eq!(table.len(), MAX_DATAGRAMS + 1);
    assert!(
        !follows(&table, key_from(0, 1023)),
        "the oldest are given up"
    );
    assert!(follows(&table, key_from(1, 0)));
    assert!(follows(&table, key_of(1, 0)), "another interface's");
}

/// A datagram that no rule admits takes no room from one that a rule admits.
#[test]
fn refused_first_fragments_take_no_room_of_those_that_passed() {
    let table = Table::new();
    first(&table, key_from(0, 0), 8);
    for id in 0..100_000 {
        let fate = Err(DropReason::NoIngressRule);
        let source = u16::try_from(id % 1000).unwrap();
        judged(&table, key_from(source, 1 + id), &[0; 8], fate, START).unwrap();
    }
    assert_eq!(table.len(), 1 + MAX_WAITING_BYTES / OVERHEAD);
    assert!(follows(&table, key_from(0, 0)));
    // The oldest is forgotten: further fragments of it wait and never pass.
    let held = table.later(key_from(0, 1), part(8, 8, true), b"", START);
    assert_eq!(held, Later::Hold);
}

#[test]
fn so_many_fragments_of_a_datagram_wait_and_no_more() {
    let table = Table::new();
    let key = key_of(0, 1);
    for i in 1..=64 {
        let held = table.later(key, part(i * 8, 8, true), b"f", START);
        assert_eq!(held, Later::Hold);
    }
    let refusal = table.later(key, part(520, 8, true), b"f", START);
    assert_eq!(refusal, refused(FULL, 0));
    assert!(first(&table, key, 8));
    assert_eq!(released(&table, 0).len(), 64);
    // What was refused wasn't seen: it may still come.
    let follows = table.later(key, part(520, 8, false), b"f", START);
    assert_eq!(follows, Later::Follow(Ok(FORWARDED)));
    assert!(table.is_empty());
}

#[test]
fn the_oldest_that_wait_make_room_for_the_newest() {
    let table = Table::new();
    let frame = vec![0; (64 << 10) - OVERHEAD];
    let hold = |key| table.later(key, part(8, 8, true), &frame, START);
    let orphans = || table.sweep(START);
    assert_eq!(hold(key_from(1, 0)), Later::Hold);
    for id in 0..4 {
        assert_eq!(hold(key_from(0, id)), Later::Hold);
    }
    assert_eq!(orphans(), []);
    assert_eq!(hold(key_from(0, 4)), Later::Hold);
    assert_eq!(orphans(), [(eni(0), 1)], "given up for it");
    assert!(!first(&table, key_from(0, 0), 8));
    assert!(first(&table, key_from(0, 1), 8));
    assert!(first(&table, key_from(1, 0), 8), "another source's");
    assert_eq!(hold(key_from(0, 5)), Later::Hold);
    assert_eq!(orphans(), [], "the place of one whose first came");
    // A single datagram can't exceed the share.
    let long = |offset| table.later(key_from(0, 5), part(offset, 8, true), &frame, START);
    for offset in [16, 24, 32] {
        assert_eq!(long(offset), Later::Hold);
    }
    assert_eq!(orphans(), [(eni(0), 3)]);
    assert_eq!(long(40), refused(FULL, 0));

    // All sources of an interface together have four times as much room.
    for source in 2..20 {
        assert_eq!(hold(key_from(source, 0)), Later::Hold);
    }
    assert_eq!(table.len(), 16 + 3, "and three whose first passed");
}

#[test]
fn the_fragments_of_a_datagram_are_bounded() {
    let table = Table::new();
    let key = key_of(0, 1);
    first(&table, key, 8);
    for i in 1..128 {
        let follows = table.later(key, part(i * 8, 8, true), b"", START);
        assert_eq!(follows, Later::Follow(Ok(FORWARDED)));
    }
    let one_more = part(128 * 8, 8, false);
    assert_eq!(table.later(key, one_more, b"", START), refused(FULL, 0));
}

#[test]
fn the_longest_datagram_passes_in_packets_of_576_bytes() {
    let table = Table::new();
    let key = key_of(0, 1);
    first(&table, key, 552);
    for i in 1..118 {
        let follows = table.later(key, part(i * 552, 552, true), b"", START);
        assert_eq!(follows, Later::Follow(Ok(FORWARDED)));
    }
    let last = table.later(key, part(118 * 552, 399, false), b"", START);
    assert_eq!(last, Later::Follow(Ok(FORWARDED)));
    assert!(table.is_empty());
}

#[test]
fn parts_that_no_datagram_has_are_malformed_here_too() {
    let table = Table::new();
    for broken in [part(8, 0, false), part(65_528, 8, false)] {
        let refusal = table.later(key_of(0, 1), broken, b"", START);
        assert_eq!(refusal, refused(DropReason::Malformed, 0));
    }
    assert!(table.is_empty());
}

#[test]
fn clearing_forgets_what_waits_and_what_is_due() {
    let table = Table::new();
    table.later(key_of(0, 1), part(8, 8, true), b"", START);
    table.later(key_of(0, 2), part(8, 8, true), b"", START);
    first(&table, key_of(0, 2), 8);
    table.clear();
    assert!(table.is_empty());
    assert_eq!(released(&table, 0), []);
    assert_eq!(table.sweep(Millis(u64::MAX)), []);
}

/// A datagram as the text tells it: byte by byte, without ranges.
#[derive(Default)]
struct Plain {
    seen: std::collections::BTreeSet<u16>,
    parts: Vec<Fragment>,
    end: Option<u16>,
    poisoned: bool,
    first: bool,
    waiting: Vec<Vec<u8>>,
}

impl Plain {
    /// Adds `part`, or returns the reason why it can't be added.
    fn take(&mut self, part: Fragment) -> Result<(), DropReason> {
        let stop = part.offset + part.length;
        let overlaps = (part.offset..stop).any(|byte| self.seen.contains(&byte));
        let behind = self.end.is_some_and(|end| stop > end || !part.more);
        let before = !part.more && self.seen.last().is_some_and(|last| *last >= stop);
        if !self.poisoned && self.parts.contains(&part) {
            return Err(DropReason::DuplicateFragment);
        }
        if self.poisoned || overlaps || behind || before {
            self.poisoned = true;
            return Err(OVERLAP);
        }
        self.parts.push(part);
        self.seen.extend(part.offset..stop);
        if !part.more {
            self.end = Some(stop);
        }
        Ok(())
    }

    fn is_complete(&self) -> bool {
        let seen = self.seen.len();
        self.first && !self.poisoned && self.end.is_some_and(|end| usize::from(end) == seen)
    }
}

/// Parts within 160 bytes, so that they meet often.
fn parts() -> impl Strategy<Value = Vec<(usize, u32, Fragment)>> {
    let part = (0..2usize, 0..2u32, 0..20u16, 1..5u16, any::<u8>()).prop_map(
        |(sender, id, at, units, kind)| {
            let last = kind < 50;
            let length = units * 8 - if last { u16::from(kind % 8) } else { 0 };
            (sender, id, part(at / 2 * 8, length, !last))
        },
    );
    proptest::collection::vec(part, 1..60)
}

/// Returns the same bytes for the same part.
fn bytes_of(part: Fragment) -> Vec<u8> {
    [part.offset.to_be_bytes(), part.length.to_be_bytes()].concat()
}

proptest::proptest! {
    #[test]
    fn the_table_does_what_the_text_says(parts in parts()) {
        let table = Table::new();
        let mut datagrams: HashMap<(usize, u32), Plain> = HashMap::new();
        for (sender, id, part) in parts {
            let key = DatagramKey { sender: eni(sender), id, ..key_v6() };
            let bytes = bytes_of(part);
            let plain = datagrams.entry((sender, id)).or_default();
            // A first fragment that is the last as well is no fragment.
            if part.offset == 0 && !part.more {
                continue;
            }
            let waited = u16::try_from(plain.waiting.len()).unwrap();
            if let Err(reason) = plain.take(part) {
                let lost = if reason == OVERLAP { waited } else { 0 };
                if reason == OVERLAP {
                    plain.waiting.clear();
                }
                let refusal = Refused { reason, lost };
                if part.offset == 0 {
                    assert_eq!(table.admit_first(key, part, &bytes, START), Err(refusal));
                } else {
                    assert_eq!(table.later(key, part, &bytes, START), Later::Drop(refusal));
                }
            } else if part.offset == 0 {
                plain.first = true;
                let first = table.admit_first(key, part, &bytes, START).unwrap();
                assert_eq!(table.decide(key, first, Ok(id), START), waited > 0);
                let due = std::mem::take(&mut plain.waiting);
                let due: Vec<_> = due.into_iter().map(|frame| (frame, Ok(id))).collect();
                assert_eq!(released(&table, sender), due);
            } else if plain.first {
                assert_eq!(table.later(key, part, &bytes, START), Later::Follow(Ok(id)));
            } else {
                plain.waiting.push(bytes);
                assert_eq!(table.later(key, part, &bytes_of(part), START), Later::Hold);
            }
            if plain.is_complete() {
                datagrams.remove(&(sender, id));
            }
            let followed = datagrams.values().filter(|plain| !plain.seen.is_empty());
            assert_eq!(table.len(), followed.count());
        }
        let waiting: usize = datagrams.values().map(|plain| plain.waiting.len()).sum();
        let orphans: u64 = table.sweep(Millis(u64::MAX)).iter().map(|(_, n)| n).sum();
        assert_eq!(orphans, waiting as u64);
        assert!(table.is_empty());
        assert!(table.locks.iter().all(|lock| lock.lock().unwrap().is_empty()));
    }
}
