//! Fragmentation by a router (RFC 791).

use etherparse::Ipv4HeaderSlice;
use etherparse::checksum::Sum16BitWords;

/// The header without options.
const FIXED_HEADER: usize = 20;
/// More fragments, in the field of flags and offset.
const MORE: u16 = 0x2000;
/// Where in a header the fields are that differ from fragment to fragment.
const TOTAL_LENGTH: usize = 2;
const FLAGS_AND_OFFSET: usize = 6;
const CHECKSUM: usize = 10;

/// Options without a length (RFC 791 §3.1).
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
/// The bit of an option's type that says that all fragments carry it.
const COPIED: u8 = 0x80;

/// A packet that can't be sent in fragments of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an IPv4 packet that may be split into fragments of that size")]
pub struct NotSplit;

/// Sends the IPv4 packet `frame`, itself perhaps a fragment, in fragments of at
/// most `mtu` bytes, each handed to `send` in order; `scratch` has room for one.
/// A packet that is no longer than that is sent as it is. What follows the
/// packet in `frame` is not part of it.
///
/// The first fragment carries all options, the others those to be copied.
///
/// # Errors
/// [`NotSplit`], with nothing sent, for what is no such packet, may not be
/// fragmented, or doesn't fit `scratch`.
pub fn split(
    frame: &[u8],
    mtu: u16,
    scratch: &mut [u8],
    mut send: impl FnMut(&[u8]),
) -> Result<(), NotSplit> {
    let header = Ipv4HeaderSlice::from_slice(frame).map_err(|_| NotSplit)?;
    let length = usize::from(header.total_len());
    let payload = frame.get(header.slice().len()..length).ok_or(NotSplit)?;
    let mtu = usize::from(mtu);
    if length <= mtu {
        send(&frame[..length]);
        return Ok(());
    }
    if header.dont_fragment() || scratch.len() < mtu {
        return Err(NotSplit);
    }

    let first = Header::of_first(&header);
    let later = Header::of_later(&header);
    let (head, rest) = payload.split_at_checked(first.room(mtu)?).ok_or(NotSplit)?;
    let room = later.room(mtu)?;
    let offset = usize::from(header.fragments_offset().byte_offset());
    let more = header.more_fragments();
    // Parts are multiples of 8 bytes, and offsets of 13 bits count these.
    let beyond = offset + payload.len() > usize::from(u16::MAX);
    if beyond || (more && !payload.len().is_multiple_of(8)) {
        return Err(NotSplit);
    }

    send(first.write(scratch, head, offset, true));
    let mut offset = offset + head.len();
    let mut rest = rest;
    while !rest.is_empty() {
        // Only what is followed by more has to be a multiple of 8 bytes.
        let fits = later.length + rest.len() <= mtu;
        let (part, left) = rest.split_at(if fits { rest.len() } else { room });
        send(later.write(scratch, part, offset, more || !fits));
        offset += part.len();
        rest = left;
    }
    Ok(())
}

/// A fragment's header, but for the fields that differ from one to the next.
struct Header {
    bytes: [u8; 60],
    length: usize,
}

impl Header {
    fn of_first(header: &Ipv4HeaderSlice<'_>) -> Self {
        let length = header.slice().len();
        let mut bytes = [0; 60];
        bytes[..length].copy_from_slice(header.slice());
        Self { bytes, length }
    }

    /// That of the fragments after the first, with the options to be copied.
    /// Options that contradict themselves end the list: whatever was judged to
    /// pass can be sent.
    fn of_later(header: &Ipv4HeaderSlice<'_>) -> Self {
        let mut bytes = [0; 60];
        bytes[..FIXED_HEADER].copy_from_slice(&header.slice()[..FIXED_HEADER]);
        let mut end = FIXED_HEADER;
        let mut options = header.options();
        while let Some(&kind) = options.first() {
            if kind == END_OF_OPTIONS {
                break;
            }
            let length = match (kind, options.get(1)) {
                (NO_OPERATION, _) => 1,
                // A length counts itself and the type.
                (_, Some(length @ 2..)) => usize::from(*length),
                _ => break,
            };
            let Some((option, rest)) = options.split_at_checked(length) else {
                break;
            };
            if kind & COPIED != 0 {
                bytes[end..end + length].copy_from_slice(option);
                end += length;
            }
            options = rest;
        }
        // What fills up the last word are ends of options, which are zero.
        let length = end.next_multiple_of(4);
        // No more than there were, so the field's four bits hold them.
        let words = u8::try_from(length / 4).unwrap_or(0xf);
        bytes[0] = 4 << 4 | words;
        Self { bytes, length }
    }

    /// Bytes of payload that fit behind it, in fragments that others follow.
    fn room(&self, mtu: usize) -> Result<usize, NotSplit> {
        let room = mtu.saturating_sub(self.length) & !7;
        if room == 0 { Err(NotSplit) } else { Ok(room) }
    }

    /// The fragment that carries `payload`, made in `scratch`, which has room.
    fn write<'s>(
        &self,
        scratch: &'s mut [u8],
        payload: &[u8],
        offset: usize,
        more: bool,
    ) -> &'s [u8] {
        let length = self.length + payload.len();
        let fragment = &mut scratch[..length];
        fragment[..self.length].copy_from_slice(&self.bytes[..self.length]);
        fragment[self.length..].copy_from_slice(payload);
        let flags = if more { MORE } else { 0 };
        put(fragment, TOTAL_LENGTH, field(length).to_be_bytes());
        put(
            fragment,
            FLAGS_AND_OFFSET,
            (field(offset / 8) | flags).to_be_bytes(),
        );
        put(fragment, CHECKSUM, [0, 0]);
        let sum = Sum16BitWords::new()
            .add_slice(&fragment[..self.length])
            .ones_complement();
        put(fragment, CHECKSUM, sum.to_ne_bytes());
        fragment
    }
}

fn put(header: &mut [u8], at: usize, value: [u8; 2]) {
    header[at..at + 2].copy_from_slice(&value);
}

/// A length or offset within one IPv4 packet, which 16 bits hold.
fn field(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
