//! Fragmentation by a router (RFC 791).

/// A packet that can't be sent in fragments of that size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an IPv4 packet that may be split into fragments of that size")]
pub struct NotSplit;

/// Sends the IPv4 packet `frame`, itself perhaps a fragment, in fragments of at
/// most `mtu` bytes, each handed to `send` in order; `scratch` has room for one.
///
/// # Errors
/// [`NotSplit`], with nothing sent, for what is no such packet, may not be
/// fragmented, or doesn't fit `scratch`.
pub fn split(
    _frame: &[u8],
    _mtu: u16,
    _scratch: &mut [u8],
    _send: impl FnMut(&[u8]),
) -> Result<(), NotSplit> {
    Err(NotSplit)
}
