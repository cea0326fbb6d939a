//! The Internet checksum (RFC 1071): sums over bytes, and sums that follow a change.

/// The ones' complement sum of `bytes` as 16-bit words in network order: 0 only for
/// bytes that are all zero. An odd byte at the end counts as followed by a zero.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    // Words of the machine's own order add up to the same sum with its bytes swapped
    // (RFC 1071 §2 B). Four bytes at a time into eight leave the carries for the
    // end, and the compiler room to take several at once: no frame fills them.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(sum))
}

/// Returns true if the checksum of an IPv4 header is correct (RFC 1812 §5.2.2): the one's
/// complement sum, checksum included, is then all ones, so the plain sum is a multiple of 0xffff,
/// as no header is all zero. The compiler turns the remainder into one multiplication, which
/// costs less than folding for most headers, which have 20 bytes.
#[inline(always)]
pub(super) fn is_right(header: &[u8]) -> bool {
    let (words, _) = header.as_chunks::<4>();
    let sum: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum();
    sum.is_multiple_of(0xffff)
}

/// Corrects the header checksum of an IPv4 packet; leaves IPv6 packets as they are.
#[cfg(test)]
pub(crate) fn repair(packet: &mut [u8]) {
    let header = usize::from(packet[0] & 0xf) * 4;
    if packet[0] >> 4 == 4 && (20..=packet.len()).contains(&header) {
        packet[10..12].fill(0);
        let checksum = !sum(&packet[..header]);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// The sum of two sums.
pub(crate) fn add(a: u16, b: u16) -> u16 {
    fold(u64::from(a) + u64::from(b))
}

/// A sum less one of its words (RFC 1624 §2: the sum with its complement).
pub(crate) fn less(sum: u16, word: u16) -> u16 {
    add(sum, !word)
}

/// RFC 1624 equation 3: the checksum at `at`, which covered the words `old`, now
/// covers `new` instead. A wrong one stays wrong.
pub(crate) fn replace(bytes: &mut [u8], at: usize, old: &[u16], new: &[u16]) {
    let Some(field) = bytes.get_mut(at..at + 2) else {
        return;
    };
    let mut sum = u64::from(!u16::from_be_bytes([field[0], field[1]]));
    sum += old.iter().map(|word| u64::from(!word)).sum::<u64>();
    sum += new.iter().copied().map(u64::from).sum::<u64>();
    field.copy_from_slice(&(!fold(sum)).to_be_bytes());
}

/// `sum` in 16 bits, the carries added in.
#[expect(clippy::cast_possible_truncation, reason = "folded before")]
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::checksum::Sum16BitWords;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sums_are_those_of_etherparse(bytes in prop::collection::vec(any::<u8>(), 0..2000), from in 0..9_usize) {
            let bytes = &bytes[from.min(bytes.len())..];
            let theirs = Sum16BitWords::new().add_slice(bytes).ones_complement();
            prop_assert_eq!(sum(bytes), !u16::from_be(theirs));
        }

        #[test]
        fn a_sum_less_a_word_is_the_sum_of_the_others(
            words in prop::collection::vec(any::<u16>(), 1..20), which in any::<prop::sample::Index>()
        ) {
            let which = which.index(words.len());
            let of = |words: &[u16]| words.iter().fold(0, |sum, word| add(sum, *word));
            let mut others = words.clone();
            others.remove(which);
            let less = less(of(&words), words[which]);
            // Zero has two spellings.
            prop_assert_eq!(less % 0xffff, of(&others) % 0xffff);
        }
    }

    #[test]
    fn the_longest_frame_of_ones_does_not_overflow() {
        assert_eq!(sum(&[0xff; 1 << 16]), 0xffff);
        assert_eq!(sum(&[0xff; 65_535]), 0xff00);
    }
}
