//! What is done with arbitrary bytes, and what must hold then. `targets/`
//! drives these with libFuzzer; `tests/fuzz.rs` of the main package includes
//! this very file and runs them over the kept corpora and some mutations of
//! those.
//!
//! Nothing here may be random, read a clock or keep state from one input to
//! the next: an input that fails must fail again.

mod bytes;
mod checks;
mod ethernet;
mod files;
mod frames;
mod structured;
mod vnet;
mod wire;
mod world;

pub use ethernet::ethernet;
pub use files::{lab_files, packets_txt};
pub use frames::frames;
pub use structured::{as_frames, structured_frames};
pub use vnet::vnet;

/// Does something with the bytes, and panics if what must hold doesn't.
pub type Body = fn(&[u8]);

/// Every target by name; its corpus is in `fuzz/corpus/NAME`.
pub const TARGETS: [(&str, Body); 6] = [
    ("frames", frames),
    ("structured_frames", structured_frames),
    ("lab_files", lab_files),
    ("packets_txt", packets_txt),
    ("vnet", vnet),
    ("ethernet", ethernet),
];
