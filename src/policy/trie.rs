//! What address prefixes stand for, found by address: every prefix that covers
//! it, the longest first.
//!
//! A trie in the manner of Linux's `fib_trie`, compressed by path and by level.
//! A node looks at as many bits as it has prefixes to tell apart, so the path to
//! one of 100,000 is two steps or three, and leaves out the bits that all of its
//! prefixes share. What was left out isn't compared on the way: whoever arrives
//! at a prefix compares the whole of it and, where it doesn't cover, goes on with
//! the next shorter one around it.

use std::ops::{BitAnd, BitXor};

use ipnet::{Ipv4Net, Ipv6Net};

use super::matcher::index;

/// Stands for "no prefix".
const NONE: u32 = u32::MAX;
/// As many are sooner compared one after the other than told apart. Few enough
/// that random labs have more: the properties are to see both ways.
const FEW: usize = 4;

/// An address as a number: `u32` or `u128`.
pub(super) trait Bits: Copy + Ord + BitAnd<Output = Self> + BitXor<Output = Self> {
    /// How many there are.
    const WIDTH: u8;

    /// The first `length` of them set.
    fn mask(length: u8) -> Self;

    /// How many bits both begin with.
    fn shared(self, other: Self) -> u8;

    /// The `stride` bits after the first `depth`; at least one, and no more than
    /// there are.
    fn slot(self, depth: u8, stride: u8) -> usize;
}

macro_rules! bits {
    ($bits:ty, $width:literal) => {
        impl Bits for $bits {
            const WIDTH: u8 = $width;

            fn mask(length: u8) -> Self {
                // A shift by the whole width is not defined.
                <$bits>::MAX
                    .checked_shl($width - u32::from(length))
                    .unwrap_or(0)
            }

            #[expect(clippy::cast_possible_truncation, reason = "128 at most")]
            fn shared(self, other: Self) -> u8 {
                (self ^ other).leading_zeros() as u8
            }

            #[inline]
            fn slot(self, depth: u8, stride: u8) -> usize {
                ((self << depth) >> ($width - stride)) as usize
            }
        }
    };
}

bits!(u32, 32);
bits!(u128, 128);

/// An address prefix. In order, whatever covers a prefix comes before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix<B> {
    bits: B,
    length: u8,
}

impl From<Ipv4Net> for Prefix<u32> {
    fn from(net: Ipv4Net) -> Self {
        Self {
            bits: net.network().to_bits(),
            length: net.prefix_len(),
        }
    }
}

impl From<Ipv6Net> for Prefix<u128> {
    fn from(net: Ipv6Net) -> Self {
        Self {
            bits: net.network().to_bits(),
            length: net.prefix_len(),
        }
    }
}

/// Prefixes of one family, each with a value.
#[derive(Debug)]
pub(super) struct PrefixMap<B, T> {
    root: Cell,
    cells: Box<[Cell]>,
    /// In order.
    entries: Box<[Entry<B, T>]>,
}

#[derive(Debug)]
struct Entry<B, T> {
    bits: B,
    mask: B,
    /// The longest other prefix that covers this one, or [`NONE`]; among few
    /// prefixes, the one before it.
    parent: u32,
    value: T,
}

/// Where a path goes on, in eight bytes.
#[derive(Debug, Clone, Copy)]
struct Cell {
    /// First of the node's cells, or at the end of the path an entry or [`NONE`].
    at: u32,
    /// Bits before those that choose among the node's cells.
    depth: u8,
    /// How many bits choose, 0 at the end of the path.
    stride: u8,
}

impl<B: Bits, T: Copy> PrefixMap<B, T> {
    /// Of prefixes in order, without repeats.
    pub(super) fn new(prefixes: &[(Prefix<B>, T)]) -> Self {
        let few = prefixes.len() <= FEW;
        let mut entries: Vec<Entry<B, T>> = Vec::with_capacity(prefixes.len());
        // What covers a prefix is a chain: the one before it, that one's parent,
        // and so on, from the first that covers.
        let mut parent = NONE;
        for &(Prefix { bits, length }, value) in prefixes {
            while !few
                && entries
                    .get(parent as usize)
                    .is_some_and(|it| !it.covers(bits))
            {
                parent = entries[parent as usize].parent;
            }
            entries.push(Entry {
                bits,
                mask: B::mask(length),
                parent,
                value,
            });
            parent = index(entries.len() - 1);
        }
        let mut cells = Vec::new();
        let root = if few {
            Cell::end(parent)
        } else {
            cells.reserve(2 * prefixes.len());
            branch(prefixes, 0..prefixes.len(), NONE, &mut cells)
        };
        Self {
            root,
            cells: cells.into_boxed_slice(),
            entries: entries.into_boxed_slice(),
        }
    }
}

impl<B: Bits, T> PrefixMap<B, T> {
    /// How many prefixes there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The values of all prefixes that cover `address`, the longest first.
    #[inline]
    pub(super) fn covering(&self, address: B) -> impl Iterator<Item = &T> {
        let mut cell = self.root;
        while cell.stride != 0 {
            let slot = address.slot(cell.depth, cell.stride);
            cell = self.cells[cell.at as usize + slot];
        }
        let mut at = cell.at;
        std::iter::from_fn(move || {
            loop {
                let entry = self.entries.get(at as usize)?;
                at = entry.parent;
                if entry.covers(address) {
                    return Some(&entry.value);
                }
            }
        })
    }
}

impl<B: Bits, T> Entry<B, T> {
    #[inline]
    fn covers(&self, address: B) -> bool {
        address & self.mask == self.bits
    }
}

impl Cell {
    fn end(entry: u32) -> Self {
        Self {
            at: entry,
            depth: 0,
            stride: 0,
        }
    }
}

/// The cell of those prefixes in `range`, at least one, which share the bits
/// that led here; `around` is the longest that covers all that is here.
fn branch<B: Bits, T>(
    prefixes: &[(Prefix<B>, T)],
    mut range: std::ops::Range<usize>,
    mut around: u32,
    cells: &mut Vec<Cell>,
) -> Cell {
    let last = prefixes[range.end - 1].0.bits;
    let depth = loop {
        let first = prefixes[range.start].0;
        if range.len() == 1 {
            return Cell::end(index(range.start));
        }
        let depth = first.bits.shared(last);
        if first.length > depth {
            break depth;
        }
        // It covers all the others, who find it by their parents.
        around = index(range.start);
        range.start += 1;
    };
    let stride = stride(range.len(), B::WIDTH - depth);
    let below = depth + stride;
    let base = cells.len();
    cells.resize(base + (1 << stride), Cell::end(around));
    let mut at = range.start;
    while at < range.end {
        let Prefix { bits, length } = prefixes[at].0;
        let slot = bits.slot(depth, stride);
        let first = base + slot;
        if length <= below {
            // Ends at this node and covers several cells. The longer of two
            // nested ones comes later, and wins.
            let width = 1 << (below - length);
            cells[first..first + width].fill(Cell::end(index(at)));
            at += 1;
        } else {
            let longer = prefixes[at..range.end]
                .iter()
                .take_while(|(prefix, _)| prefix.bits.slot(depth, stride) == slot)
                .count();
            cells[first] = branch(prefixes, at..at + longer, cells[first].at, cells);
            at += longer;
        }
    }
    Cell {
        at: index(base),
        depth,
        stride,
    }
}

/// How many bits tell so many prefixes apart if they are spread evenly: two cells
/// for each at most, and no more bits than are left.
fn stride(prefixes: usize, left: u8) -> u8 {
    let bits = u8::try_from(prefixes.ilog2() + 1).unwrap_or(u8::MAX);
    bits.min(left)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    /// The values of the prefixes that cover, the longest first, by comparing
    /// each.
    fn covering(prefixes: &[(Prefix<u128>, usize)], address: u128) -> Vec<usize> {
        let covers = |prefix: &Prefix<u128>| prefix.bits.shared(address) >= prefix.length;
        let mut found: Vec<_> = prefixes.iter().filter(|(it, _)| covers(it)).collect();
        found.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.length));
        found.into_iter().map(|(_, value)| *value).collect()
    }

    /// Few distinct bytes, so that prefixes nest and share paths.
    fn words() -> impl Strategy<Value = u128> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(128), any::<u8>()], 16).prop_map(
            |bytes| {
                bytes
                    .into_iter()
                    .fold(0, |word, byte| word << 8 | u128::from(byte))
            },
        )
    }

    fn map_of(raw: &[(u128, u8)]) -> Vec<(Prefix<u128>, usize)> {
        let unique: BTreeMap<Prefix<u128>, usize> = raw
            .iter()
            .enumerate()
            .map(|(value, &(word, length))| {
                let bits = word & u128::mask(length);
                (Prefix { bits, length }, value)
            })
            .collect();
        unique.into_iter().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn every_prefix_that_covers_is_found_and_the_longest_first(
            raw in prop::collection::vec((words(), 0u8..=128), 0..60),
            addresses in prop::collection::vec(words(), 1..20),
        ) {
            let prefixes = map_of(&raw);
            let map = PrefixMap::new(&prefixes);
            // At both ends of each prefix, too.
            let ends = prefixes.iter().flat_map(|(prefix, _)| {
                [prefix.bits, prefix.bits | !u128::mask(prefix.length)]
            });
            for address in addresses.into_iter().chain(ends) {
                let found: Vec<usize> = map.covering(address).copied().collect();
                prop_assert_eq!(found, covering(&prefixes, address));
            }
        }

        #[test]
        fn both_families_find_the_same(
            raw in prop::collection::vec((any::<u16>(), 0u8..=32), 0..60),
            addresses in prop::collection::vec(any::<u16>(), 1..20),
        ) {
            // The same half of an address twice, so that prefixes nest.
            let word = |half: u16| u32::from(half & 0x303) << 16 | u32::from(half);
            let long: Vec<(u128, u8)> =
                raw.iter().map(|&(half, length)| (u128::from(word(half)) << 96, length)).collect();
            let v6 = map_of(&long);
            let v4: Vec<(Prefix<u32>, usize)> = v6
                .iter()
                .map(|&(Prefix { bits, length }, value)| {
                    (Prefix { bits: u32::try_from(bits >> 96).unwrap(), length }, value)
                })
                .collect();
            let (v4, v6) = (PrefixMap::new(&v4), PrefixMap::new(&v6));
            for address in addresses.into_iter().map(word) {
                let short: Vec<usize> = v4.covering(address).copied().collect();
                let long: Vec<usize> = v6.covering(u128::from(address) << 96).copied().collect();
                prop_assert_eq!(short, long);
            }
        }
    }

    #[test]
    fn a_trie_of_many_is_flat_and_small() {
        // 65,536 blocks side by side, and one far away from them.
        let mut prefixes: Vec<(Prefix<u32>, ())> = (0..1 << 16)
            .map(|block| {
                let bits = 0x6400_0000 | block << 8;
                (Prefix { bits, length: 24 }, ())
            })
            .collect();
        prefixes.push((
            Prefix {
                bits: u32::MAX,
                length: 32,
            },
            (),
        ));
        let map = PrefixMap::new(&prefixes);
        assert!(map.cells.len() <= 4 * prefixes.len(), "{}", map.cells.len());
        for (prefix, ()) in &prefixes {
            let mut steps = 0;
            let mut cell = map.root;
            while cell.stride != 0 {
                steps += 1;
                cell = map.cells[cell.at as usize + prefix.bits.slot(cell.depth, cell.stride)];
            }
            assert!(steps <= 2, "{steps} steps to {prefix:?}");
            assert_eq!(map.covering(prefix.bits).count(), 1);
        }
    }
}
