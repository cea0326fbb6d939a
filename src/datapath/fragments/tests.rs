use super::*;
use crate::model::protocol;
use proptest::prelude::{Strategy, any};

/// What became of a first fragment, as far as these tests go.
type Table = Fragments<u32>;

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

fn refused<T>(reason: DropReason, lost: u16) -> Later<T> {
    Later::Drop(Refused { reason, lost })
}

/// A first fragment comes and is forwarded.
fn first(table: &Table, key: DatagramKey, length: u16) -> bool {
    assert_eq!(table.admit_first(key, part(0, length, true), START), Ok(()));
    table.decide(key, FORWARDED)
}

fn released(table: &Table, sender: usize) -> Vec<(Vec<u8>, u32)> {
    std::iter::from_fn(|| table.next_released(eni(sender))).collect()
}

#[test]
fn later_fragments_follow_their_first() {
    let table = Table::new();
    let key = key_of(0, 1);
    assert!(!first(&table, key, 16));
    let at = |offset, more| table.later(key, part(offset, 16, more), &[0; 36], START);
    assert_eq!(at(16, true), Later::Follow(FORWARDED));
    assert_eq!(at(48, false), Later::Follow(FORWARDED));
    assert_eq!(table.len(), 1);
    assert_eq!(at(32, true), Later::Follow(FORWARDED));
    assert!(table.is_empty(), "forgotten as soon as all was seen");
    assert_eq!(released(&table, 0), []);
}

#[test]
fn the_fate_of_a_dropped_first_is_shared() {
    let table: Fragments<(DropReason, InterfaceIx)> = Fragments::new();
    let key = key_of(0, 1);
    let fate = (DropReason::NoIngressRule, eni(7));
    let held = table.later(key, part(32, 8, true), b"waited", START);
    assert_eq!(held, Later::Hold);
    assert_eq!(table.admit_first(key, part(0, 16, true), START), Ok(()));
    assert!(table.decide(key, fate));
    assert_eq!(
        table.next_released(eni(0)),
        Some((b"waited".to_vec(), fate))
    );
    let follows = table.later(key, part(16, 16, true), b"", START);
    assert_eq!(follows, Later::Follow(fate));
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
    let expected = [b"c", b"b", b"d"].map(|frame| (frame.to_vec(), FORWARDED));
    assert_eq!(frames, expected);
}

#[test]
fn an_id_may_be_used_again_once_all_was_seen() {
    let table = Table::new();
    let key = key_of(0, 1);
    for _ in 0..3 {
        first(&table, key, 8);
        let last = table.later(key, part(8, 3, false), b"", START);
        assert_eq!(last, Later::Follow(FORWARDED));
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
    assert_eq!(follows, Later::Follow(FORWARDED));
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
const OVERLAPS: [(u16, u16, bool); 12] = [
    (0, 16, true),   // the first once more
    (0, 8, true),    // a part of it
    (8, 8, true),    // its end
    (8, 16, true),   // across its end
    (16, 24, true),  // across a start
    (32, 16, true),  // a later one once more
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
        let key = key_of(0, 1);
        first(&table, key, 16);
        for seen in [part(32, 16, true), part(64, 8, true)] {
            let follows = table.later(key, seen, b"", START);
            assert_eq!(follows, Later::Follow(FORWARDED));
        }
        let outcome = if offset == 0 {
            Later::Drop(table.admit_first(key, overlap, START).unwrap_err())
        } else {
            table.later(key, overlap, b"", START)
        };
        assert_eq!(outcome, refused(OVERLAP, 0), "{overlap:?}");

        let harmless = part(16, 8, true);
        assert_eq!(table.later(key, harmless, b"", START), refused(OVERLAP, 0));
        let again = table.admit_first(key, part(0, 16, true), START);
        assert_eq!(again, Err(Refused::alone(OVERLAP)));
        assert!(!table.decide(key, 5), "the poison stays");
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
        assert_eq!(last, Later::Follow(FORWARDED));
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
    let tiny_overlap = table.admit_first(key, part(0, 16, true), START);
    assert_eq!(
        tiny_overlap,
        Err(Refused {
            reason: OVERLAP,
            lost: 1
        })
    );
}

#[test]
fn a_poisoned_datagram_ends_with_its_time() {
    let table = Table::new();
    let key = key_of(0, 1);
    first(&table, key, 8);
    let early = Millis(START.0 + LIFETIME - 1);
    let twice = table.admit_first(key, part(0, 8, true), early);
    assert_eq!(twice, Err(Refused::alone(OVERLAP)));
    let end = Millis(START.0 + LIFETIME);
    assert_eq!(table.admit_first(key, part(0, 8, true), end), Ok(()));
}

#[test]
fn a_datagram_lives_for_its_time_from_the_first_seen_fragment() {
    let table = Table::new();
    let key = key_of(0, 1);
    first(&table, key, 8);
    let at = |offset, after| {
        let now = Millis(START.0 + after);
        table.later(key, part(offset, 8, true), b"", now)
    };
    assert_eq!(at(8, LIFETIME - 1), Later::Follow(FORWARDED));
    assert_eq!(at(16, LIFETIME), Later::Hold, "not put off");
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

#[test]
fn a_sender_at_its_limit_leaves_the_others_room() {
    let table = Table::new();
    for id in 0..256 {
        first(&table, key_of(0, id), 8);
    }
    let refusal = table.admit_first(key_of(0, 256), part(0, 8, true), START);
    assert_eq!(refusal, Err(Refused::alone(FULL)));
    let refusal = table.later(key_of(0, 256), part(8, 8, true), b"", START);
    assert_eq!(refusal, refused(FULL, 0));
    assert!(!table.decide(key_of(0, 256), FORWARDED));

    first(&table, key_of(1, 0), 8);
    let follows = table.later(key_of(0, 9), part(8, 8, true), b"", START);
    assert_eq!(
        follows,
        Later::Follow(FORWARDED),
        "what is followed goes on"
    );
    table.later(key_of(0, 3), part(8, 8, false), b"", START);
    first(&table, key_of(0, 256), 8);
    assert_eq!(table.len(), 257);

    let end = Millis(START.0 + LIFETIME);
    let anew = table.admit_first(key_of(0, 300), part(0, 8, true), end);
    assert_eq!(anew, Ok(()), "those whose time is over take no room");
}

#[test]
fn the_table_as_a_whole_is_bounded() {
    let table = Table::new();
    for sender in 0..16 {
        for id in 0..256 {
            first(&table, key_of(sender, id), 8);
        }
    }
    assert_eq!(table.len(), MAX_DATAGRAMS);
    let refusal = table.admit_first(key_of(16, 0), part(0, 8, true), START);
    assert_eq!(refusal, Err(Refused::alone(FULL)));
    table.later(key_of(3, 7), part(8, 8, false), b"", START);
    first(&table, key_of(16, 0), 8);
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
    assert_eq!(follows, Later::Follow(FORWARDED));
    assert!(table.is_empty());
}

#[test]
fn so_many_bytes_of_a_sender_wait_and_no_more() {
    let table = Table::new();
    let frame = vec![0; 64 << 10];
    let hold = |sender, id| table.later(key_of(sender, id), part(8, 8, true), &frame, START);
    for id in 0..4 {
        assert_eq!(hold(0, id), Later::Hold);
    }
    assert_eq!(hold(0, 4), refused(FULL, 0));
    assert_eq!(table.len(), 4, "what finds no room leaves no trace");
    assert_eq!(hold(1, 4), Later::Hold, "others have their own");

    // Due ones take room until they are taken.
    first(&table, key_of(0, 0), 8);
    assert_eq!(hold(0, 4), refused(FULL, 0));
    assert_eq!(released(&table, 0).len(), 1);
    assert_eq!(hold(0, 4), Later::Hold);
    // Poisoned and expired ones give it back.
    assert_eq!(hold(0, 1), refused(OVERLAP, 1));
    assert_eq!(hold(0, 5), Later::Hold);
    assert_eq!(hold(0, 6), refused(FULL, 0));
    table.sweep(Millis(START.0 + LIFETIME));
    for id in 0..4 {
        assert_eq!(hold(0, id), Later::Hold);
    }
}

#[test]
fn the_gaps_of_a_datagram_are_bounded() {
    let table = Table::new();
    let key = key_of(0, 1);
    first(&table, key, 8);
    for i in 1..64 {
        let follows = table.later(key, part(i * 16, 8, true), b"", START);
        assert_eq!(follows, Later::Follow(FORWARDED));
    }
    let apart = part(64 * 16, 8, true);
    assert_eq!(table.later(key, apart, b"", START), refused(FULL, 0));
    let fills = table.later(key, part(8, 8, true), b"", START);
    assert_eq!(
        fills,
        Later::Follow(FORWARDED),
        "what touches needs no room"
    );
    let follows = table.later(key, apart, b"", START);
    assert_eq!(follows, Later::Follow(FORWARDED), "and made some");
}

#[test]
fn a_long_datagram_in_order_takes_one_range() {
    let table = Table::new();
    let key = key_of(0, 1);
    first(&table, key, 8);
    for i in 1..8191 {
        let follows = table.later(key, part(i * 8, 8, true), b"", START);
        assert_eq!(follows, Later::Follow(FORWARDED));
    }
    let last = table.later(key, part(65_528, 7, false), b"", START);
    assert_eq!(last, Later::Follow(FORWARDED));
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
    end: Option<u16>,
    poisoned: bool,
    first: bool,
    waiting: Vec<Vec<u8>>,
}

impl Plain {
    /// Whether `part` may be added; adds it.
    fn take(&mut self, part: Fragment) -> bool {
        let stop = part.offset + part.length;
        let overlaps = (part.offset..stop).any(|byte| self.seen.contains(&byte));
        let behind = self.end.is_some_and(|end| stop > end || !part.more);
        let before = !part.more && self.seen.last().is_some_and(|last| *last >= stop);
        if self.poisoned || overlaps || behind || before {
            self.poisoned = true;
            return false;
        }
        self.seen.extend(part.offset..stop);
        if !part.more {
            self.end = Some(stop);
        }
        true
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

proptest::proptest! {
    #[test]
    fn the_table_does_what_the_text_says(parts in parts()) {
        let table = Table::new();
        let mut datagrams: HashMap<(usize, u32), Plain> = HashMap::new();
        for (i, (sender, id, part)) in parts.into_iter().enumerate() {
            let key = key_of(sender, id);
            let bytes = i.to_be_bytes();
            let plain = datagrams.entry((sender, id)).or_default();
            // A first fragment that is the last as well is no fragment.
            if part.offset == 0 && !part.more {
                continue;
            }
            let lost = u16::try_from(plain.waiting.len()).unwrap();
            if !plain.take(part) {
                plain.waiting.clear();
                let refusal = Refused { reason: OVERLAP, lost };
                if part.offset == 0 {
                    assert_eq!(table.admit_first(key, part, START), Err(refusal));
                } else {
                    assert_eq!(table.later(key, part, &bytes, START), Later::Drop(refusal));
                }
            } else if part.offset == 0 {
                plain.first = true;
                assert_eq!(table.admit_first(key, part, START), Ok(()));
                assert_eq!(table.decide(key, id), !plain.waiting.is_empty());
                let due = std::mem::take(&mut plain.waiting);
                let due: Vec<_> = due.into_iter().map(|frame| (frame, id)).collect();
                assert_eq!(released(&table, sender), due);
            } else if plain.first {
                assert_eq!(table.later(key, part, &bytes, START), Later::Follow(id));
            } else {
                plain.waiting.push(bytes.to_vec());
                assert_eq!(table.later(key, part, &bytes, START), Later::Hold);
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
        let table = table.lock();
        assert!(table.ages.is_empty());
        for sender in table.senders.values() {
            assert_eq!((sender.bytes, sender.datagrams), (0, 0));
        }
    }

    #[test]
    fn random_parts_do_no_harm(
        parts in proptest::collection::vec(
            (0..3usize, 0..3u32, any::<u16>(), any::<u16>(), any::<bool>(), 0..2_000u64),
            0..200,
        ),
    ) {
        let table = Table::new();
        let mut now = START;
        for (sender, id, offset, length, more, later) in parts {
            now.0 += later;
            let (key, part) = (key_of(sender, id), part(offset, length, more));
            if offset % 5 == 0 {
                if table.admit_first(key, part, now).is_ok() {
                    table.decide(key, id);
                }
            } else {
                table.later(key, part, &[0; 60], now);
            }
            let table = table.lock();
            assert_eq!(table.ages.len(), table.datagrams.len());
            for datagram in table.datagrams.values() {
                assert!(datagram.seen.windows(2).all(|pair| pair[0].1 < pair[1].0));
            }
        }
        table.sweep(Millis(u64::MAX));
        assert!(table.is_empty());
    }
}
