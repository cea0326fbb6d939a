//! TUN devices.

/// A TUN device.
#[derive(Debug)]
pub struct TunLink {}
