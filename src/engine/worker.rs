//! One worker: wait until links have packets, then read, judge and write each.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use arc_swap::Cache;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use super::delivery::Delivery;
use super::{EngineError, Shared};
use crate::datapath::Unasked;
use crate::link::{FRAME, Link, Readiness, Received};
use crate::model::InterfaceIx;
use crate::packet::{FlowKey, Shape};
use crate::policy::Policy;

/// Frames read from one link before the others get their turn.
const BUDGET: usize = 64;
/// Frames that are read before the first is judged, where that pays.
const BATCH: usize = 32;
/// Room for each of them, in bytes; what is longer ends a batch.
const SMALL: usize = 2048;
/// Longest time for which a worker stays awake without packets: two processes that
/// answer each other at once take less.
const LINGER: Duration = Duration::from_micros(50);
/// Who gives way for so long has kept somebody else from the core. Longer than it takes a
/// neighbour on the same core to answer what this worker has just handed on: that is the
/// very packet waited for.
const UNWELCOME: Duration = Duration::from_micros(60);
/// Most times that a worker falls asleep at once, after it has been unwelcome.
const MOST_SLEEPS: u32 = 1 << 10;
/// Milliseconds after a super-packet for which no worker lingers: who moves so much at
/// once doesn't wait for answers, and wants the cores.
const BULK: u64 = 2;
/// Events taken from one poll.
const EVENTS: usize = 256;

pub(super) struct Worker {
    number: usize,
    shared: Arc<Shared>,
    poll: Poll,
    /// Links that may have packets left, by index: mio tells of a change once.
    hot: VecDeque<usize>,
    is_hot: Vec<bool>,
    linger: Linger,
    /// Links without a descriptor; looked at whenever the waker fires.
    waking: Vec<usize>,
}

impl Worker {
    /// The worker that owns every `of`-th link from `number` on.
    pub(super) fn new(
        number: usize,
        of: usize,
        shared: Arc<Shared>,
    ) -> Result<(Self, Arc<Waker>), EngineError> {
        let failed = |source| EngineError::Poll {
            worker: number,
            source,
        };
        let poll = Poll::new().map_err(failed)?;
        let wake = Token(shared.links.len());
        let waker = Arc::new(Waker::new(poll.registry(), wake).map_err(failed)?);
        let mut waking = Vec::new();
        for (index, link) in shared.links.iter().enumerate().skip(number).step_by(of) {
            match link.readiness() {
                Readiness::Fd(fd) => poll
                    .registry()
                    .register(
                        &mut SourceFd(&fd.as_raw_fd()),
                        Token(index),
                        Interest::READABLE,
                    )
                    .map_err(|source| EngineError::Register {
                        worker: number,
                        link: index,
                        source,
                    })?,
                Readiness::Wakes => {
                    link.wake_with(Arc::clone(&waker));
                    waking.push(index);
                }
            }
        }
        let links = shared.links.len();
        let worker = Self {
            number,
            shared,
            poll,
            hot: VecDeque::with_capacity(links),
            is_hot: vec![false; links],
            linger: Linger::default(),
            waking,
        };
        Ok((worker, waker))
    }

    /// Forwards until the engine stops.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut policy = Cache::new(Arc::clone(&shared.policy));
        let mut events = Events::with_capacity(EVENTS);
        let mut batch = Batch::new();
        let mut delivery = Delivery::new(&shared, self.number);
        while !shared.stop.load(Ordering::Acquire) {
            self.wait(&mut events);
            // What may have packets now is drained once, a budget each; what
            // has more stays hot, and the next wait doesn't sleep.
            for _ in 0..self.hot.len() {
                let Some(link) = self.hot.pop_front() else {
                    break;
                };
                self.is_hot[link] = false;
                // The policy is taken up before the first packet is read, and
                // told to `Engine::swap`, which waits for it.
                let policy = policy.load();
                shared.seen[self.number].store(policy.generation(), Ordering::Release);
                let left = self.drain(link, policy, &mut batch, &mut delivery);
                delivery.flush();
                if left == Left::More {
                    self.mark_hot(link);
                }
            }
            let generation = policy.load().generation();
            shared.seen[self.number].store(generation, Ordering::Release);
        }
    }

    /// Waits until links have packets.
    fn wait(&mut self, events: &mut Events) {
        if !self.hot.is_empty() || self.shared.busy_poll {
            return self.poll(events, Some(Duration::ZERO));
        }
        let began = Instant::now();
        let mut last = began;
        let bulk = self.shared.bulk.load(Ordering::Relaxed) + BULK;
        while self.shared.now().0 > bulk && self.linger.is_worth_it(last - began) {
            self.poll(events, Some(Duration::ZERO));
            if !self.hot.is_empty() {
                return self.linger.worked();
            }
            // The waker, of which epoll tells once: a new policy, or the end.
            if !events.is_empty() {
                return;
            }
            let before = Instant::now();
            std::thread::yield_now();
            last = Instant::now();
            if last - before > UNWELCOME {
                self.linger.is_unwelcome();
            }
        }
        self.poll(events, None);
        self.linger.slept(began.elapsed());
    }

    fn poll(&mut self, events: &mut Events, timeout: Option<Duration>) {
        if let Err(error) = self.poll.poll(events, timeout) {
            if error.kind() != ErrorKind::Interrupted {
                tracing::error!(worker = self.number, %error, "polling failed");
                // Nothing is forwarded meanwhile; don't spin on a lasting fault.
                std::thread::sleep(Duration::from_millis(10));
            }
            return;
        }
        for event in &*events {
            let Token(index) = event.token();
            if index < self.is_hot.len() {
                self.mark_hot(index);
            } else {
                for i in 0..self.waking.len() {
                    self.mark_hot(self.waking[i]);
                }
            }
        }
    }

    fn mark_hot(&mut self, link: usize) {
        if !self.is_hot[link] {
            self.is_hot[link] = true;
            self.hot.push_back(link);
        }
    }

    /// Reads up to a budget of packets from one link and sends each on.
    fn drain(
        &self,
        link: usize,
        policy: &Policy,
        batch: &mut Batch,
        delivery: &mut Delivery<'_>,
    ) -> Left {
        let datapath = &self.shared.datapath;
        let from = InterfaceIx::new(link);
        let now = self.shared.now();
        delivery.at_time(now);
        let mut budget = BUDGET;
        let mut bulk = false;
        // One by one, unless it pays to know several in advance.
        let most = if datapath.anticipates() { BATCH } else { 1 };
        while budget > 0 {
            let read = batch.read(&*self.shared.links[link], most.min(budget));
            budget -= batch.arrivals.len();
            if batch.arrivals.len() > 1 {
                let Batch {
                    buffer,
                    arrivals,
                    keys,
                } = batch;
                let frames = arrivals.iter().map(|it| &buffer[it.start..][..it.length]);
                datapath.anticipate(from, frames, keys);
            }
            for received in batch.arrivals.drain(..) {
                let frame = received.frame(&mut batch.buffer);
                let envelope = received.envelope;
                let shape = match received.shape {
                    Ok(shape) => {
                        bulk |= shape.in_segments().is_some();
                        shape
                    }
                    Err(reason) => {
                        delivery.unreadable(from, reason, frame);
                        continue;
                    }
                };
                let verdict = datapath.judge(policy, from, frame, shape, now, &mut Unasked);
                delivery.carry_out(from, envelope, frame, shape, &verdict);
                if verdict.released {
                    // All of a datagram's fragments go the same way.
                    while let Some((fragment, verdict)) = datapath.next_released(from) {
                        delivery.carry_out(from, envelope, &fragment, Shape::Whole, &verdict);
                    }
                }
            }
            // Once in a millisecond at the most.
            if bulk && self.shared.bulk.load(Ordering::Relaxed) < now.0 {
                self.shared.bulk.store(now.0, Ordering::Relaxed);
            }
            if let Err(error) = read {
                return self.cannot_read(link, &error);
            }
        }
        self.works(link);
        Left::More
    }

    /// Records that a link can be read (again).
    #[inline]
    fn works(&self, link: usize) {
        let broken = &self.shared.broken[link];
        if broken.load(Ordering::Relaxed) {
            broken.store(false, Ordering::Relaxed);
            tracing::info!(link, "a link can be read again");
        }
    }

    fn cannot_read(&self, link: usize, error: &io::Error) -> Left {
        match error.kind() {
            ErrorKind::WouldBlock => {
                self.works(link);
                Left::Nothing
            }
            ErrorKind::Interrupted => Left::More,
            _ => {
                // The device is down or gone. Packets neither enter nor leave through it until it
                // can be read again, and the status reports it.
                self.shared.broken[link].store(true, Ordering::Relaxed);
                // The caller that started the engine knows the link's name and reports it.
                tracing::debug!(link, %error, "reading from a link failed");
                Left::Nothing
            }
        }
    }
}

/// Frames that were read from a link and wait to be judged.
struct Batch {
    buffer: Box<[u8]>,
    arrivals: Vec<Received>,
    /// Of the flows that they belong to.
    keys: Vec<Option<FlowKey>>,
}

impl Batch {
    fn new() -> Self {
        Self {
            buffer: vec![0; FRAME + BATCH * SMALL].into(),
            arrivals: Vec::with_capacity(BATCH),
            keys: Vec::with_capacity(BATCH),
        }
    }

    /// Reads up to `most` frames; a large one is the last.
    ///
    /// # Errors
    /// What the link says when it has no more, or is gone.
    fn read(&mut self, link: &dyn Link, most: usize) -> io::Result<()> {
        let mut used = 0;
        while self.arrivals.len() < most {
            let mut received = link.recv(&mut self.buffer[used..])?;
            received.start += used;
            self.arrivals.push(received);
            used += SMALL;
            if received.start + received.length > used {
                break;
            }
        }
        Ok(())
    }
}

/// Whether a worker without packets stays awake for a while. What has just had packets
/// often has more soon, and to fall asleep and be woken takes longer than that; but
/// where others want the core it is theirs.
#[derive(Debug, Default)]
struct Linger {
    time: Duration,
    /// How many times the worker falls asleep at once before it tries again.
    sleeps: u32,
    /// How many times it will the next time that it is unwelcome.
    next_sleeps: u32,
}

impl Linger {
    /// Whether to stay awake, having done so for that long.
    fn is_worth_it(&self, awake: Duration) -> bool {
        self.sleeps == 0 && awake < self.time
    }

    /// There were packets.
    fn worked(&mut self) {
        self.next_sleeps /= 2;
    }

    /// Somebody else wanted the core.
    fn is_unwelcome(&mut self) {
        self.next_sleeps = (self.next_sleeps * 2).clamp(8, MOST_SLEEPS);
        self.sleeps = self.next_sleeps;
    }

    /// The worker was without packets for that long, asleep in the end.
    fn slept(&mut self, idle: Duration) {
        self.sleeps = self.sleeps.saturating_sub(1);
        // For so short a time, it had better been awake.
        self.time = if idle < LINGER * 2 {
            LINGER
        } else {
            self.time / 2
        };
    }
}

#[derive(PartialEq, Eq)]
enum Left {
    Nothing,
    More,
}
