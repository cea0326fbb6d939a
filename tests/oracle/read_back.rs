//! An engine that is right beyond doubt: the oracle itself, told what stands in
//! the bytes. It shows that they say what was meant, and where cases get.

use std::time::Duration;

use sgwall::model::Model;
use sgwall::policy::oracle::Oracle;

use crate::decode::lenient;
use crate::harness::{Engine, Verdict};
use crate::wire::Frame;

/// The oracle, reading bytes.
pub struct ReadBack(Oracle);

impl ReadBack {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(Oracle::with_capacity(model.clone(), capacity)))
    }
}

impl Engine for ReadBack {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let read = lenient(frame.packet.from, &frame.bytes).expect("bytes of our own");
        assert_eq!(read, frame.packet);
        self.0.judge(&read, now).into()
    }
}
