//! Datagrams that come in fragments: which bytes of each were seen, what became
//! of its first fragment, and the fragments that wait for that.
//!
//! Only a first fragment shows ports, so it alone is judged, and the others
//! share its fate. A datagram whose fragments overlap is not followed any more:
//! whoever puts it together might read other bytes than were judged (RFC 5722).
//! An exact duplicate of a fragment, the same bytes at the same place, is dropped
//! and changes nothing (RFC 8200 §4.5).
//!
//! Each sending interface has two limits. One applies to datagrams whose first fragment passed.
//! The other, smaller one applies to fragments that came before their first fragment, and to
//! records of refused and broken datagrams. Within both, each source address has a share. When a
//! share or a limit is reached, the oldest datagram in it is given up. Lost fragments therefore
//! don't block other datagrams, and a host that no rule admits takes no room from hosts that
//! rules admit.
//!
//! Fragments are off the fast path. Interfaces share a few locks, each held for a bounded time,
//! and memory is allocated only where there are fragments.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;

use crate::conntrack::Millis;
use crate::model::InterfaceIx;
use crate::packet::{Fragment, Packet};
use crate::policy::DropReason;

/// How long an unfinished datagram is remembered after its first fragment was judged, and how
/// long fragments wait for the first, in milliseconds. A decision: senders emit the fragments of
/// a datagram at once.
pub const LIFETIME: u64 = 5_000;
/// Maximum number of datagrams that one source address may have in progress, for each sending
/// interface. A decision: at 5 Gbit/s in datagrams of two packets, of which 1 % are lost, the
/// oldest is given up a quarter of a second after it came.
pub const MAX_DATAGRAMS_OF_SOURCE: usize = 1 << 10;
/// Maximum number of datagrams in progress for one sending interface.
pub const MAX_DATAGRAMS: usize = 8 << 10;
/// Most fragments of a datagram that wait for their first.
pub const MAX_WAITING: usize = 64;
/// Maximum number of bytes of waiting fragments of one source address, for each sending
/// interface.
pub const MAX_WAITING_BYTES_OF_SOURCE: usize = 256 << 10;
/// Maximum number of bytes of waiting fragments of one sending interface.
pub const MAX_WAITING_BYTES: usize = 1 << 20;
/// Bytes added to the size of each waiting fragment, and counted for each record of a refused or
/// broken datagram, because small fragments take memory too.
pub const OVERHEAD: usize = 256;
/// Maximum number of fragments of a datagram. A decision: the longest datagram in packets of 576
/// bytes, which every IPv4 path supports, has 119.
pub const MAX_PARTS: usize = 128;

/// Number of locks, which the interfaces share.
const LOCKS: usize = 16;
/// Maximum number of datagrams that a sweep removes before it releases the lock.
const SWEPT_AT_ONCE: usize = 64;

/// What the fragments of a datagram have in common (RFC 791, RFC 8200 §4.5),
/// and who sent them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatagramKey {
    sender: InterfaceIx,
    source: IpAddr,
    destination: IpAddr,
    next: u8,
    id: u32,
}

impl DatagramKey {
    /// The key of the datagram that `packet` is `part` of, as `sender` wrote it
    /// (addresses not translated).
    pub fn new(sender: InterfaceIx, packet: &Packet, part: Fragment) -> Self {
        Self {
            sender,
            source: packet.source,
            destination: packet.destination,
            next: part.next,
            id: part.id,
        }
    }

    /// Who sends it.
    pub fn sender(&self) -> InterfaceIx {
        self.sender
    }
}

/// Why a fragment is dropped at its sender, and what goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The fragment's own reason.
    pub reason: DropReason,
    /// Fragments of its datagram that waited and die with it, each as
    /// `overlapping_fragment`.
    pub lost: u16,
}

impl Refused {
    fn alone(reason: DropReason) -> Self {
        Self { reason, lost: 0 }
    }
}

/// What becomes of a fragment other than the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Later<P, R> {
    /// What became of its first.
    Follow(Result<P, R>),
    /// It waits for its first; the table has a copy.
    Hold,
    /// It is dropped at its sender.
    Drop(Refused),
}

/// A first fragment that was admitted and is to be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct First(Part);

/// The fragmented datagrams of all senders. The outcome of a first fragment is a `P` if it
/// passed, and an `R` otherwise.
///
/// A first fragment is admitted ([`admit_first`](Self::admit_first)), judged,
/// and what became of it, a drop too, is told
/// ([`decide`](Self::decide)). The others are asked about
/// ([`later`](Self::later)); those that waited are taken with
/// [`next_released`](Self::next_released). A datagram is forgotten once all of
/// its bytes were seen, when room is needed, or after [`LIFETIME`]; those that still
/// waited [`sweep`](Self::sweep) counts.
#[derive(Debug)]
pub struct Fragments<P, R> {
    locks: [Mutex<Senders<P, R>>; LOCKS],
    hasher: RandomState,
}

type Senders<P, R> = BTreeMap<InterfaceIx, Sender<P, R>>;

impl<P: Copy, R: Copy> Default for Fragments<P, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Copy, R: Copy> Fragments<P, R> {
    /// An empty table, which allocates nothing yet.
    pub fn new() -> Self {
        Self {
            locks: std::array::from_fn(|_| Mutex::new(BTreeMap::new())),
            hasher: RandomState::default(),
        }
    }

    /// Registers a first fragment with `payload` behind the headers that all fragments share.
    /// Unless this refuses it, the caller must judge it and then report the outcome to
    /// [`decide`](Self::decide), whatever it is.
    ///
    /// IPv4 identifications wrap around after 65,535, which soon happens with much traffic. A
    /// first fragment with other bytes than the one already seen therefore begins a new datagram,
    /// and the unfinished one is given up. With the same bytes it is a duplicate. IPv6
    /// identifications are not reused by accident (RFC 8200 §4.5), so there it overlaps.
    ///
    /// # Errors
    /// [`Refused`] if it is a duplicate, if it overlaps a part of its datagram that was already
    /// seen, or if the datagram has too many fragments.
    pub fn admit_first(
        &self,
        key: DatagramKey,
        part: Fragment,
        payload: &[u8],
        now: Millis,
    ) -> Result<First, Refused> {
        let part = self.part(part, payload).map_err(Refused::alone)?;
        let mut senders = self.lock(key.sender);
        let sender = senders.entry(key.sender).or_default();
        let Some(datagram) = sender.live(&key, now) else {
            return Ok(First(part));
        };
        let seen = match &datagram.state {
            State::Refused(_) => return Ok(First(part)),
            State::Early(_) => {
                let fits = datagram.parts.fit(part);
                return match fits {
                    Ok(_) => Ok(First(part)),
                    Err(reason) => Err(sender.refuse(&key, reason)),
                };
            }
            State::Passed(_) => datagram.parts.first(),
            State::Broken(first) => *first,
        };
        let reused = key.source.is_ipv4() && seen.is_some_and(|seen| seen != part);
        match &datagram.state {
            _ if reused => Ok(First(part)),
            State::Passed(_) if seen == Some(part) => {
                Err(Refused::alone(DropReason::DuplicateFragment))
            }
            _ => Err(sender.refuse(&key, DropReason::OverlappingFragment)),
        }
    }

    /// Tells what became of the first fragment, which all others will share.
    /// True if some have waited for it: they are to be taken with
    /// [`next_released`](Self::next_released).
    pub fn decide(
        &self,
        key: DatagramKey,
        First(part): First,
        fate: Result<P, R>,
        now: Millis,
    ) -> bool {
        let mut senders = self.lock(key.sender);
        let sender = senders.entry(key.sender).or_default();
        let (mut parts, due) = match sender.forget(&key) {
            Some(Datagram {
                parts,
                state: State::Early(due),
                ..
            }) => (parts, due),
            _ => (Parts::default(), Vec::new()),
        };
        if let Ok(at) = parts.fit(part) {
            parts.insert(at, part);
        }
        if !parts.is_complete() {
            match fate {
                Ok(passed) => sender.follow(key, parts, State::Passed(passed), now),
                Err(refused) => {
                    sender.follow(key, Parts::default(), State::Refused(refused), now);
                }
            }
        }
        let released = !due.is_empty();
        sender
            .released
            .extend(due.into_iter().map(|frame| (frame, fate)));
        released
    }

    /// Decides on a fragment other than the first. `bytes` is the packet, which ends with its
    /// part of the datagram.
    pub fn later(
        &self,
        key: DatagramKey,
        part: Fragment,
        bytes: &[u8],
        now: Millis,
    ) -> Later<P, R> {
        let payload = bytes.len().saturating_sub(part.length.into());
        let part = match self.part(part, &bytes[payload..]) {
            Ok(part) => part,
            Err(reason) => return Later::Drop(Refused::alone(reason)),
        };
        let mut senders = self.lock(key.sender);
        let sender = senders.entry(key.sender).or_default();
        match sender.later(key, part, bytes, now) {
            Ok(outcome) => outcome,
            Err(reason) => Later::Drop(sender.refuse(&key, reason)),
        }
    }

    /// The next fragment from `sender` whose first has come, in the order in
    /// which they came, and what became of the first.
    pub fn next_released(&self, sender: InterfaceIx) -> Option<(Vec<u8>, Result<P, R>)> {
        let mut senders = self.lock(sender);
        senders.get_mut(&sender)?.released.pop_front()
    }

    /// Forgets the datagrams whose time is over. Gives the fragments that died
    /// waiting since the last time, for each sender that had any.
    pub fn sweep(&self, now: Millis) -> Vec<(InterfaceIx, u64)> {
        let mut orphans = Vec::new();
        for lock in &self.locks {
            loop {
                let mut senders = lock.lock().unwrap_or_else(PoisonError::into_inner);
                let mut budget = SWEPT_AT_ONCE;
                for sender in senders.values_mut() {
                    sender.expire(now, &mut budget);
                }
                if budget == 0 {
                    continue;
                }
                for (ix, sender) in &mut *senders {
                    if sender.orphans > 0 {
                        orphans.push((*ix, std::mem::take(&mut sender.orphans)));
                    }
                }
                senders.retain(|_, sender| !sender.is_idle());
                break;
            }
        }
        orphans.sort_unstable();
        orphans
    }

    /// Returns the number of datagrams in progress or on record, including those not yet swept.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        let of = |lock: &Mutex<Senders<P, R>>| -> usize {
            let senders = lock.lock().unwrap_or_else(PoisonError::into_inner);
            senders.values().map(|sender| sender.datagrams.len()).sum()
        };
        self.locks.iter().map(of).sum()
    }

    /// Whether none is followed.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything; what waited is counted nowhere.
    pub fn clear(&self) {
        for lock in &self.locks {
            lock.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    fn lock(&self, sender: InterfaceIx) -> MutexGuard<'_, Senders<P, R>> {
        let lock = &self.locks[sender.ix() % LOCKS];
        lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the part of a datagram with these bytes.
    #[expect(clippy::cast_possible_truncation, reason = "a digest of 32 bits")]
    fn part(&self, part: Fragment, payload: &[u8]) -> Result<Part, DropReason> {
        let start = part.offset;
        let stop = start
            .checked_add(part.length)
            .filter(|stop| *stop > start)
            .ok_or(DropReason::Malformed)?;
        Ok(Part {
            start,
            stop,
            last: !part.more,
            digest: self.hasher.hash_one(payload) as u32,
        })
    }
}

/// The datagrams that one interface sends.
#[derive(Debug)]
struct Sender<P, R> {
    datagrams: HashMap<DatagramKey, Datagram<P, R>, RandomState>,
    /// The number of datagrams ever added.
    born: u64,
    /// Datagrams whose first fragment passed.
    passed: Room,
    /// All other datagrams.
    early: Room,
    /// Fragments that died waiting, not yet told.
    orphans: u64,
    /// Fragments that are ready to be sent on. The worker that reads from the interface takes
    /// them at once.
    released: VecDeque<(Vec<u8>, Result<P, R>)>,
}

impl<P, R> Default for Sender<P, R> {
    fn default() -> Self {
        Self {
            datagrams: HashMap::default(),
            born: 0,
            passed: Room::new(MAX_DATAGRAMS_OF_SOURCE, MAX_DATAGRAMS),
            early: Room::new(MAX_WAITING_BYTES_OF_SOURCE, MAX_WAITING_BYTES),
            orphans: 0,
            released: VecDeque::new(),
        }
    }
}

impl<P: Copy, R: Copy> Sender<P, R> {
    /// What becomes of a later fragment; `Err` if it is dropped.
    fn later(
        &mut self,
        key: DatagramKey,
        part: Part,
        bytes: &[u8],
        now: Millis,
    ) -> Result<Later<P, R>, DropReason> {
        let weight = OVERHEAD + bytes.len();
        let Some(datagram) = self.live(&key, now) else {
            let mut parts = Parts::default();
            parts.insert(0, part);
            self.follow(key, parts, State::Early(vec![bytes.to_vec()]), now);
            return Ok(Later::Hold);
        };
        match &datagram.state {
            State::Broken(_) => return Err(DropReason::OverlappingFragment),
            State::Refused(refused) => return Ok(Later::Follow(Err(*refused))),
            State::Passed(_) | State::Early(_) => {}
        }
        let at = datagram.parts.fit(part)?;
        let (age, waiting) = match &mut datagram.state {
            State::Early(waiting) => (datagram.age, waiting),
            State::Passed(passed) => {
                let passed = *passed;
                datagram.parts.insert(at, part);
                if datagram.parts.is_complete() {
                    self.forget(&key);
                }
                return Ok(Later::Follow(Ok(passed)));
            }
            // Handled above.
            State::Broken(_) | State::Refused(_) => return Err(DropReason::OverlappingFragment),
        };
        // A fragment without room leaves no trace.
        let own: usize = waiting.iter().map(|frame| OVERHEAD + frame.len()).sum();
        if waiting.len() >= MAX_WAITING || own + weight > MAX_WAITING_BYTES_OF_SOURCE {
            return Err(DropReason::FragmentTableFull);
        }
        waiting.push(bytes.to_vec());
        datagram.parts.insert(at, part);
        self.make_room(&key, weight, false, Some(age));
        self.early.grow(key.source, weight);
        Ok(Later::Hold)
    }

    /// Returns the datagram, unless its lifetime is over.
    fn live(&mut self, key: &DatagramKey, now: Millis) -> Option<&mut Datagram<P, R>> {
        if self.datagrams.get(key)?.is_over(now) {
            self.give_up(key);
        }
        self.datagrams.get_mut(key)
    }

    /// Adds a datagram that isn't known yet, or records its outcome.
    fn follow(&mut self, key: DatagramKey, parts: Parts, state: State<P, R>, now: Millis) {
        let passed = matches!(state, State::Passed(_));
        let datagram = Datagram {
            age: self.born,
            born: now,
            passed,
            parts,
            state,
        };
        self.born += 1;
        let weight = datagram.weight();
        self.make_room(&key, weight, passed, None);
        self.room(passed).insert(key, datagram.age, weight);
        self.datagrams.insert(key, datagram);
    }

    /// Gives up the oldest datagrams until there is room for `weight` more of the source in
    /// `key`. The datagram of age `kept` stays.
    fn make_room(&mut self, key: &DatagramKey, weight: usize, passed: bool, kept: Option<u64>) {
        while let Some(old) = self.room(passed).in_the_way(key.source, weight, kept) {
            self.give_up(&old);
        }
    }

    fn room(&mut self, passed: bool) -> &mut Room {
        if passed {
            &mut self.passed
        } else {
            &mut self.early
        }
    }

    /// Handles a dropped fragment. A fragment that overlaps breaks the datagram: its waiting
    /// fragments are lost, and all later ones are dropped.
    fn refuse(&mut self, key: &DatagramKey, reason: DropReason) -> Refused {
        let mut refused = Refused::alone(reason);
        if reason != DropReason::OverlappingFragment {
            return refused;
        }
        let Some(datagram) = self.datagrams.get_mut(key) else {
            return refused;
        };
        let first = match &datagram.state {
            State::Broken(first) => *first,
            State::Early(_) | State::Passed(_) | State::Refused(_) => datagram.parts.first(),
        };
        let weight = datagram.weight();
        if let State::Early(waiting) = &datagram.state {
            refused.lost = u16::try_from(waiting.len()).unwrap_or(u16::MAX);
        }
        datagram.state = State::Broken(first);
        datagram.parts = Parts::default();
        let (less, passed) = (weight - datagram.weight(), datagram.passed);
        self.room(passed).shrink(key.source, less);
        refused
    }

    /// Forgets datagrams whose lifetime is over, at most `budget` of them.
    fn expire(&mut self, now: Millis, budget: &mut usize) {
        for passed in [true, false] {
            while *budget > 0
                && let Some(key) = self.room(passed).oldest()
                && self.datagrams.get(&key).is_some_and(|it| it.is_over(now))
            {
                self.give_up(&key);
                *budget -= 1;
            }
        }
    }

    /// Forgets a datagram. Its waiting fragments become orphans.
    fn give_up(&mut self, key: &DatagramKey) {
        if let Some(Datagram {
            state: State::Early(waiting),
            ..
        }) = self.forget(key)
        {
            self.orphans += waiting.len() as u64;
        }
    }

    fn forget(&mut self, key: &DatagramKey) -> Option<Datagram<P, R>> {
        let datagram = self.datagrams.remove(key)?;
        let weight = datagram.weight();
        self.room(datagram.passed)
            .remove(key.source, datagram.age, weight);
        Some(datagram)
    }

    fn is_idle(&self) -> bool {
        self.datagrams.is_empty() && self.released.is_empty()
    }
}

/// A limit that source addresses share.
#[derive(Debug)]
struct Room {
    most_of_source: usize,
    most: usize,
    /// The amount in use.
    taken: usize,
    /// The datagrams that count towards it, by age.
    ages: BTreeMap<u64, DatagramKey>,
    shares: HashMap<IpAddr, Share, RandomState>,
}

/// The part of a limit that one source address uses.
#[derive(Debug, Default)]
struct Share {
    taken: usize,
    ages: BTreeSet<u64>,
}

impl Room {
    fn new(most_of_source: usize, most: usize) -> Self {
        Self {
            most_of_source,
            most,
            taken: 0,
            ages: BTreeMap::new(),
            shares: HashMap::default(),
        }
    }

    fn oldest(&self) -> Option<DatagramKey> {
        self.ages.first_key_value().map(|(_, key)| *key)
    }

    /// Returns the datagram to give up next to make room for `weight` more of that source; `None`
    /// if there is room.
    fn in_the_way(&self, source: IpAddr, weight: usize, kept: Option<u64>) -> Option<DatagramKey> {
        let share = self.shares.get(&source);
        let other = |age: &&u64| Some(**age) != kept;
        let age = if share.is_some_and(|share| share.taken + weight > self.most_of_source) {
            share?.ages.iter().find(other)
        } else if self.taken + weight > self.most {
            self.ages.keys().find(other)
        } else {
            None
        }?;
        self.ages.get(age).copied()
    }

    fn insert(&mut self, key: DatagramKey, age: u64, weight: usize) {
        self.ages.insert(age, key);
        self.shares.entry(key.source).or_default().ages.insert(age);
        self.grow(key.source, weight);
    }

    fn remove(&mut self, source: IpAddr, age: u64, weight: usize) {
        self.shrink(source, weight);
        self.ages.remove(&age);
        if let Some(share) = self.shares.get_mut(&source) {
            share.ages.remove(&age);
            if share.ages.is_empty() {
                self.shares.remove(&source);
            }
        }
    }

    fn grow(&mut self, source: IpAddr, weight: usize) {
        self.taken += weight;
        self.shares.entry(source).or_default().taken += weight;
    }

    fn shrink(&mut self, source: IpAddr, weight: usize) {
        self.taken -= weight;
        if let Some(share) = self.shares.get_mut(&source) {
            share.taken -= weight;
        }
    }
}

#[derive(Debug)]
struct Datagram<P, R> {
    /// Smaller than that of each later datagram.
    age: u64,
    born: Millis,
    /// True if its first fragment passed.
    passed: bool,
    parts: Parts,
    state: State<P, R>,
}

#[derive(Debug)]
enum State<P, R> {
    /// The first fragment hasn't come; these fragments wait, in order of arrival.
    Early(Vec<Vec<u8>>),
    /// The first fragment passed.
    Passed(P),
    /// The first fragment was dropped.
    Refused(R),
    /// Fragments overlapped. Holds the first fragment if it was seen.
    Broken(Option<Part>),
}

impl<P, R> Datagram<P, R> {
    fn is_over(&self, now: Millis) -> bool {
        self.born.0.saturating_add(LIFETIME) <= now.0
    }

    /// Returns what it counts towards its limit: one if its first fragment passed, and bytes
    /// otherwise.
    fn weight(&self) -> usize {
        match &self.state {
            _ if self.passed => 1,
            State::Early(waiting) => waiting.iter().map(|frame| OVERHEAD + frame.len()).sum(),
            State::Passed(_) | State::Refused(_) | State::Broken(_) => OVERHEAD,
        }
    }
}

/// A part of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: u16,
    stop: u16,
    last: bool,
    /// Equal for equal bytes.
    digest: u32,
}

/// The parts of a datagram seen so far, in order and without overlap.
#[derive(Debug, Default)]
struct Parts {
    parts: Vec<Part>,
    /// The number of bytes in all parts.
    bytes: u32,
}

impl Parts {
    fn first(&self) -> Option<Part> {
        self.parts.first().copied().filter(|part| part.start == 0)
    }

    /// Returns the position at which `part` belongs.
    fn fit(&self, part: Part) -> Result<usize, DropReason> {
        // The first part that ends after the start.
        let at = self.parts.partition_point(|seen| seen.stop <= part.start);
        let behind = self.parts.get(at);
        if behind == Some(&part) {
            return Err(DropReason::DuplicateFragment);
        }
        let overlaps = behind.is_some_and(|seen| seen.start < part.stop);
        let after_last = at > 0 && self.parts[at - 1].last;
        let before_end = part.last && behind.is_some();
        if overlaps || after_last || before_end {
            return Err(DropReason::OverlappingFragment);
        }
        if self.parts.len() >= MAX_PARTS {
            return Err(DropReason::FragmentTableFull);
        }
        Ok(at)
    }

    fn insert(&mut self, at: usize, part: Part) {
        self.bytes += u32::from(part.stop - part.start);
        self.parts.insert(at, part);
    }

    /// Returns true if all bytes were seen.
    fn is_complete(&self) -> bool {
        self.parts
            .last()
            .is_some_and(|part| part.last && u32::from(part.stop) == self.bytes)
    }
}

#[cfg(test)]
mod tests;
