//! A link in memory: for tests, and for the appliance's own packets.

use std::io;
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use mio::Waker;

use super::{Envelope, Link, Offloads, Readiness, Received};
use crate::packet::Shape;

/// Two bounded queues of frames. What is put in with [`MemoryLink::inject`]
/// the engine reads; what the engine sends comes out of [`MemoryLink::take`].
#[derive(Debug)]
pub struct MemoryLink {
    towards_engine: ArrayQueue<(Vec<u8>, Shape)>,
    from_engine: ArrayQueue<(Vec<u8>, Shape)>,
    offloads: Offloads,
    waker: OnceLock<Arc<Waker>>,
}

impl MemoryLink {
    /// A link with room for `capacity` frames each way, which takes whole packets
    /// only.
    pub fn new(capacity: usize) -> Self {
        Self::with_offloads(capacity, Offloads::NONE)
    }

    /// Likewise, with `offloads`.
    pub fn with_offloads(capacity: usize, offloads: Offloads) -> Self {
        Self {
            towards_engine: ArrayQueue::new(capacity.max(1)),
            from_engine: ArrayQueue::new(capacity.max(1)),
            offloads,
            waker: OnceLock::new(),
        }
    }

    /// Gives the engine a whole packet to read.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is full; whatever the waker says.
    pub fn inject(&self, packet: Vec<u8>) -> io::Result<()> {
        self.inject_shaped(packet, Shape::Whole)
    }

    /// Gives the engine a frame of any shape to read, whatever the link takes.
    ///
    /// # Errors
    /// As [`MemoryLink::inject`].
    pub fn inject_shaped(&self, frame: Vec<u8>, shape: Shape) -> io::Result<()> {
        self.towards_engine
            .push((frame, shape))
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        self.waker.get().map_or(Ok(()), |waker| waker.wake())
    }

    /// The next frame that the engine sent.
    pub fn take(&self) -> Option<Vec<u8>> {
        self.take_shaped().map(|(frame, _)| frame)
    }

    /// Likewise, with its shape.
    pub fn take_shaped(&self) -> Option<(Vec<u8>, Shape)> {
        self.from_engine.pop()
    }
}

impl Link for MemoryLink {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let (frame, shape) = self.towards_engine.pop().ok_or(io::ErrorKind::WouldBlock)?;
        let room = buffer
            .get_mut(..frame.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(&frame);
        Ok(Received {
            start: 0,
            length: frame.len(),
            shape: Ok(shape),
            envelope: Envelope::NONE,
        })
    }

    fn send(&self, _: Envelope, frame: &[u8], shape: Shape) -> io::Result<()> {
        if !self.offloads.take(shape) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.from_engine
            .push((frame.to_vec(), shape))
            .map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Wakes
    }

    fn wake_with(&self, waker: Arc<Waker>) {
        // A link is read by one engine; a second would find it taken.
        let _ = self.waker.set(waker);
    }
}
