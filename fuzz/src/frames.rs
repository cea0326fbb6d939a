//! Bytes as frames: for each one byte for the sender, one for what happens
//! before, two for its length, then the frame.

use sgwall::model::InterfaceIx;

use super::bytes::Bytes;
use super::checks::with_header_checksum;
use super::world::World;

/// Most frames of one input.
const MOST: usize = 64;

// What happens before a frame.
pub const NOTHING: u8 = 0;
const CHANGE: u8 = 128;
const WAIT: u8 = 136;
pub const SWEEP: u8 = 255;
/// The shortest wait, in milliseconds; each further one is twice as long.
const SHORTEST: u64 = 100;
/// So many waits there are: up to some days.
const WAITS: u8 = 23;

/// A sequence of frames through the whole data path.
pub fn frames(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mut world = World::new();
    for _ in 0..MOST {
        if bytes.is_empty() {
            break;
        }
        let from = World::interface(bytes.byte());
        match bytes.byte() {
            NOTHING..CHANGE => {}
            change @ CHANGE..WAIT => world.change(change - CHANGE),
            SWEEP => world.sweep(),
            wait => world.wait(SHORTEST << ((wait - WAIT) % WAITS)),
        }
        let length = usize::from(bytes.short());
        world.send(from, &with_header_checksum(bytes.take(length)));
    }
    world.end();
}

/// What says that so many milliseconds pass, at least.
pub fn wait(millis: u64) -> u8 {
    let long_enough = (0..WAITS).find(|&step| SHORTEST << step >= millis);
    WAIT + long_enough.unwrap_or(WAITS - 1)
}

/// What says that rules change to those of lab `which`.
pub fn change(which: usize) -> u8 {
    CHANGE + u8::try_from(which).unwrap_or(0)
}

/// Adds a frame to an input.
pub fn write(input: &mut Vec<u8>, from: InterfaceIx, before: u8, frame: &[u8]) {
    input.push(u8::try_from(from.ix()).unwrap_or(0));
    input.push(before);
    input.extend(u16::try_from(frame.len()).unwrap_or(0).to_be_bytes());
    input.extend(frame);
}
