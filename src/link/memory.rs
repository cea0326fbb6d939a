//! A link in memory: for tests, and for the appliance's own packets.

use std::io;
use std::sync::{Arc, OnceLock};

use crossbeam::queue::ArrayQueue;
use mio::Waker;

use super::{Link, Readiness};

/// Two bounded queues of packets. What is put in with [`MemoryLink::inject`]
/// the engine reads; what the engine sends comes out of [`MemoryLink::take`].
#[derive(Debug)]
pub struct MemoryLink {
    towards_engine: ArrayQueue<Vec<u8>>,
    from_engine: ArrayQueue<Vec<u8>>,
    waker: OnceLock<Arc<Waker>>,
}

impl MemoryLink {
    /// A link with room for `capacity` packets each way.
    pub fn new(capacity: usize) -> Self {
        Self {
            towards_engine: ArrayQueue::new(capacity.max(1)),
            from_engine: ArrayQueue::new(capacity.max(1)),
            waker: OnceLock::new(),
        }
    }

    /// Gives the engine a packet to read.
    ///
    /// # Errors
    /// `WouldBlock` when the queue is full; whatever the waker says.
    pub fn inject(&self, packet: Vec<u8>) -> io::Result<()> {
        self.towards_engine
            .push(packet)
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        self.waker.get().map_or(Ok(()), |waker| waker.wake())
    }

    /// The next packet that the engine sent.
    pub fn take(&self) -> Option<Vec<u8>> {
        self.from_engine.pop()
    }
}

impl Link for MemoryLink {
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let packet = self.towards_engine.pop().ok_or(io::ErrorKind::WouldBlock)?;
        let room = buffer
            .get_mut(..packet.len())
            .ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(&packet);
        Ok(packet.len())
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.from_engine
            .push(packet.to_vec())
            .map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    fn readiness(&self) -> Readiness<'_> {
        Readiness::Wakes
    }

    fn wake_with(&self, waker: Arc<Waker>) {
        // A link is read by one engine; a second would find it taken.
        let _ = self.waker.set(waker);
    }
}
