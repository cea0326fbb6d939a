//! Numbers in headers, as they stand on the wire: big-endian, wherever they start.
//! Who asks has made sure that the bytes are there.

/// The 16 bits at `at`.
#[inline(always)]
pub(super) fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The 32 bits at `at`.
#[inline(always)]
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) << 16 | u32::from(half(bytes, at + 2))
}

/// Writes 16 bits at `at`.
#[inline(always)]
pub(super) fn put_half(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes 32 bits at `at`.
#[inline(always)]
pub(super) fn put_word(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// The low 16 bits of a length or a number within one frame, which have it all: the
/// fields of IP and of transports reach no further.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most 2^16 - 1")]
pub(super) fn low(value: usize) -> u16 {
    value as u16
}
