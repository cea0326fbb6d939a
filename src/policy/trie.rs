//! A prefix trie in the manner of a poptrie: six bits a step, children and
//! leaves packed behind two bitmaps. Where only one prefix is left in a cell
//! the path stops, so the depth grows with how much prefixes share, not with
//! their length; whoever looks up compares the prefix found and, where it
//! doesn't cover, goes on with its parent.

use super::matcher::index;

/// Bits that one step decides.
const STRIDE: u8 = 6;
/// Stands for "no prefix".
pub(super) const NONE: u32 = u32::MAX;

/// An address prefix, bits left-aligned; IPv4 in the top 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Prefix {
    pub(super) bits: u128,
    pub(super) length: u8,
}

impl Prefix {
    pub(super) fn covers(self, address: u128) -> bool {
        // A shift by the whole width is not defined, hence the first case.
        self.length == 0 || (address ^ self.bits) >> (128 - u32::from(self.length)) == 0
    }
}

/// Finds the longest of a set of prefixes that may cover an address.
#[derive(Debug)]
pub(super) struct Trie {
    root: Cell,
    nodes: Vec<Node>,
    leaves: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Cell {
    Leaf(u32),
    Node(u32),
}

#[derive(Debug, Clone, Copy, Default)]
struct Node {
    /// Bit set: that slot goes on in a child.
    children: u64,
    /// Bit set: that slot starts a new run of equal leaves.
    runs: u64,
    first_child: u32,
    first_leaf: u32,
}

impl Trie {
    /// A trie over `prefixes`, sorted and without repeats; their positions are
    /// what lookups give.
    pub(super) fn build(prefixes: &[Prefix]) -> Self {
        let mut trie = Self {
            root: Cell::Leaf(NONE),
            nodes: Vec::new(),
            leaves: Vec::new(),
        };
        // A prefix of length 0 is there before the first step.
        let start = usize::from(prefixes.first().is_some_and(|prefix| prefix.length == 0));
        let inherited = if start == 1 { 0 } else { NONE };
        let all: Vec<u32> = (start..prefixes.len()).map(index).collect();
        trie.root = match all.as_slice() {
            [] => Cell::Leaf(inherited),
            [only] => Cell::Leaf(*only),
            _ => {
                trie.nodes.push(Node::default());
                trie.fill(0, prefixes, &all, 0, inherited);
                Cell::Node(0)
            }
        };
        trie
    }

    /// The position of a prefix such that the longest prefix covering
    /// `address` is that one or, if it doesn't cover, the nearest of its
    /// ancestors that does. [`NONE`] if nothing covers.
    pub(super) fn find(&self, address: u128) -> u32 {
        let mut cell = self.root;
        let mut depth = 0;
        loop {
            let node = match cell {
                Cell::Leaf(found) => return found,
                Cell::Node(at) => &self.nodes[at as usize],
            };
            let slot = slot(address, depth);
            let up_to_slot = u64::MAX >> (63 - slot);
            if node.children >> slot & 1 == 1 {
                let before = (node.children & up_to_slot).count_ones() - 1;
                cell = Cell::Node(node.first_child + before);
                depth += STRIDE;
            } else {
                let before = (node.runs & up_to_slot).count_ones() - 1;
                cell = Cell::Leaf(self.leaves[(node.first_leaf + before) as usize]);
            }
        }
    }

    /// Fills node `at`, which decides the bits after `depth` for `here`: the
    /// prefixes longer than `depth` in its cell, sorted. `inherited` is the
    /// longest shorter prefix that covers the cell.
    fn fill(&mut self, at: usize, prefixes: &[Prefix], here: &[u32], depth: u8, inherited: u32) {
        let mut slots: [(u32, Vec<u32>); 64] = std::array::from_fn(|_| (inherited, Vec::new()));
        for &position in here {
            let prefix = prefixes[position as usize];
            let first = slot(prefix.bits, depth);
            if prefix.length > depth + STRIDE {
                slots[first].1.push(position);
            } else {
                // Ends within this step and covers several slots. Sorted order
                // brings the longer of two nested ones later, so it wins.
                let width = 1 << (depth + STRIDE - prefix.length);
                for (covering, _) in &mut slots[first..first + width] {
                    *covering = position;
                }
            }
        }
        let mut node = Node {
            first_child: index(self.nodes.len()),
            first_leaf: index(self.leaves.len()),
            ..Node::default()
        };
        let mut deeper = Vec::new();
        let mut run = None;
        for (i, (covering, longer)) in slots.into_iter().enumerate() {
            let leaf = match longer.as_slice() {
                [] => covering,
                [only] => *only,
                _ => {
                    node.children |= 1 << i;
                    deeper.push((covering, longer));
                    continue;
                }
            };
            if run != Some(leaf) {
                run = Some(leaf);
                node.runs |= 1 << i;
                self.leaves.push(leaf);
            }
        }
        self.nodes[at] = node;
        let first_child = self.nodes.len();
        self.nodes
            .resize(first_child + deeper.len(), Node::default());
        for (i, (covering, longer)) in deeper.into_iter().enumerate() {
            self.fill(first_child + i, prefixes, &longer, depth + STRIDE, covering);
        }
    }
}

/// The six bits after `depth`; past the 128th they count as 0.
fn slot(bits: u128, depth: u8) -> usize {
    ((bits << depth) >> (128 - u32::from(STRIDE))) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mask(bits: u128, length: u8) -> Prefix {
        let bits = if length == 0 {
            0
        } else {
            bits >> (128 - u32::from(length)) << (128 - u32::from(length))
        };
        Prefix { bits, length }
    }

    fn longest(prefixes: &[Prefix], address: u128) -> Option<Prefix> {
        prefixes
            .iter()
            .copied()
            .filter(|prefix| prefix.covers(address))
            .max_by_key(|prefix| prefix.length)
    }

    fn found(prefixes: &[Prefix], trie: &Trie, address: u128) -> Option<Prefix> {
        match trie.find(address) {
            NONE => None,
            position => {
                // What `TableIndex` does with parents, by search.
                let candidate = prefixes[position as usize];
                prefixes
                    .iter()
                    .copied()
                    .filter(|prefix| prefix.length <= candidate.length)
                    .filter(|prefix| prefix.covers(candidate.bits) && prefix.covers(address))
                    .max_by_key(|prefix| prefix.length)
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn finds_the_longest_prefix(
            // Few distinct bytes, so that prefixes nest and share paths.
            raw in prop::collection::vec((prop::collection::vec(0u8..4, 16), 0u8..=128), 0..40),
            addresses in prop::collection::vec(prop::collection::vec(0u8..4, 16), 1..20),
        ) {
            let word = |bytes: &Vec<u8>| u128::from_be_bytes(bytes.clone().try_into().unwrap());
            let mut prefixes: Vec<Prefix> = raw.iter().map(|(bytes, length)| mask(word(bytes), *length)).collect();
            prefixes.sort_unstable();
            prefixes.dedup();
            let trie = Trie::build(&prefixes);
            let own = prefixes.iter().map(|prefix| prefix.bits);
            for address in addresses.iter().map(word).chain(own) {
                prop_assert_eq!(found(&prefixes, &trie, address), longest(&prefixes, address));
            }
        }
    }
}
