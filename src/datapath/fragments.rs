//! Datagrams that come in fragments: which bytes of each were seen, what became
//! of its first fragment, and the fragments that wait for that.
//!
//! Only a first fragment shows ports, so it alone is judged, and the others
//! share its fate. A datagram whose fragments overlap is not followed any more:
//! whoever puts it together might read other bytes than were judged (RFC 5722).
//!
//! Everything here is bounded, for each sender by itself, so that no sender
//! takes the room of all others. Fragments are off the fast path: one lock is
//! enough, and memory is allocated only where there are fragments.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;

use crate::conntrack::Millis;
use crate::model::InterfaceIx;
use crate::packet::{Fragment, Packet};
use crate::policy::DropReason;

/// How long a datagram is remembered after its first-seen fragment, in
/// milliseconds (decision; Linux's time to put one together).
pub const LIFETIME: u64 = 30_000;
/// Most datagrams of one sender that are followed at a time.
pub const MAX_DATAGRAMS_OF_SENDER: usize = 256;
/// Most datagrams that are followed at a time.
pub const MAX_DATAGRAMS: usize = 4096;
/// Most fragments of a datagram that wait for their first.
pub const MAX_WAITING: usize = 64;
/// Most bytes of fragments of one sender that wait, those that are due but were
/// not taken yet included.
pub const MAX_WAITING_BYTES: usize = 256 << 10;
/// Most gaps, and one, between the bytes seen of a datagram.
pub const MAX_RANGES: usize = 64;

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
pub enum Later<T> {
    /// What became of its first.
    Follow(T),
    /// It waits for its first; the table has a copy.
    Hold,
    /// It is dropped at its sender.
    Drop(Refused),
}

/// The datagrams in fragments of all senders; `T` is what became of a first
/// fragment.
///
/// A first fragment is admitted ([`admit_first`](Self::admit_first)), judged,
/// and what became of it, a drop too, is told
/// ([`decide`](Self::decide)). The others are asked about
/// ([`later`](Self::later)); those that waited are taken with
/// [`next_released`](Self::next_released). A datagram is forgotten once all of
/// its bytes were seen, or after [`LIFETIME`], when
/// [`sweep`](Self::sweep) counts those that still waited.
#[derive(Debug)]
pub struct Fragments<T> {
    table: Mutex<Table<T>>,
}

impl<T: Copy> Default for Fragments<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Copy> Fragments<T> {
    /// An empty table, which allocates nothing yet.
    pub fn new() -> Self {
        Self {
            table: Mutex::new(Table {
                datagrams: HashMap::default(),
                ages: BTreeMap::new(),
                born: 0,
                senders: BTreeMap::new(),
            }),
        }
    }

    /// Takes note that a first fragment has come. Unless it is refused it is to
    /// be judged and then [`decide`](Self::decide)d, whatever the judgement.
    ///
    /// # Errors
    /// [`Refused`] if it overlaps what was seen of its datagram, its own
    /// duplicate included, or there is no room to follow the datagram.
    pub fn admit_first(
        &self,
        key: DatagramKey,
        part: Fragment,
        now: Millis,
    ) -> Result<(), Refused> {
        let mut table = self.lock();
        table.expire(now);
        let place = table.place(&key, part)?;
        table.follow(key, now)?.record(place);
        Ok(())
    }

    /// Tells what became of the first fragment, which all others will share.
    /// True if some have waited for it: they are to be taken with
    /// [`next_released`](Self::next_released).
    pub fn decide(&self, key: DatagramKey, fate: T) -> bool {
        let mut table = self.lock();
        let Some(datagram) = table.datagrams.get_mut(&key) else {
            return false;
        };
        let State::Waiting(waiting) = &mut datagram.state else {
            return false;
        };
        let due = std::mem::take(waiting);
        datagram.state = State::Decided(fate);
        if datagram.is_complete() {
            table.forget(&key);
        }
        if due.is_empty() {
            return false;
        }
        let sender = table.senders.entry(key.sender).or_default();
        sender
            .released
            .extend(due.into_iter().map(|frame| (frame, fate)));
        true
    }

    /// What becomes of a fragment other than the first, which is `bytes`.
    pub fn later(&self, key: DatagramKey, part: Fragment, bytes: &[u8], now: Millis) -> Later<T> {
        let mut table = self.lock();
        table.expire(now);
        match table.later(key, part, bytes, now) {
            Ok(outcome) => outcome,
            Err(refused) => Later::Drop(refused),
        }
    }

    /// The next fragment from `sender` whose first has come, in the order in
    /// which they came, and what became of the first.
    pub fn next_released(&self, sender: InterfaceIx) -> Option<(Vec<u8>, T)> {
        let mut table = self.lock();
        let sender = table.senders.get_mut(&sender)?;
        let (frame, fate) = sender.released.pop_front()?;
        sender.give_back(frame.len());
        Some((frame, fate))
    }

    /// Forgets the datagrams whose time is over. Gives the fragments that died
    /// waiting since the last time, for each sender that had any.
    pub fn sweep(&self, now: Millis) -> Vec<(InterfaceIx, u64)> {
        let mut table = self.lock();
        table.expire(now);
        table
            .senders
            .iter_mut()
            .filter(|(_, sender)| sender.orphans > 0)
            .map(|(ix, sender)| (*ix, std::mem::take(&mut sender.orphans)))
            .collect()
    }

    /// How many datagrams are followed, those not yet swept included.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().datagrams.len()
    }

    /// Whether none is followed.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets everything; what waited is counted nowhere.
    pub fn clear(&self) {
        let mut table = self.lock();
        table.datagrams.clear();
        table.ages.clear();
        table.senders.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Table<T>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Table<T> {
    datagrams: HashMap<DatagramKey, Datagram<T>, RandomState>,
    /// The same in the order in which they end.
    ages: BTreeMap<Age, DatagramKey>,
    /// How many datagrams were ever followed.
    born: u64,
    senders: BTreeMap<InterfaceIx, Sender<T>>,
}

/// When a datagram is forgotten at the latest, and a number that no other has.
type Age = (Millis, u64);

#[derive(Debug)]
struct Sender<T> {
    /// Datagrams that are followed.
    datagrams: usize,
    /// Bytes of fragments that wait or are due.
    bytes: usize,
    /// Fragments that died waiting, not yet told.
    orphans: u64,
    /// Fragments that are due.
    released: VecDeque<(Vec<u8>, T)>,
}

impl<T> Default for Sender<T> {
    fn default() -> Self {
        Self {
            datagrams: 0,
            bytes: 0,
            orphans: 0,
            released: VecDeque::new(),
        }
    }
}

impl<T> Sender<T> {
    fn give_back(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

impl<T: Copy> Table<T> {
    fn later(
        &mut self,
        key: DatagramKey,
        part: Fragment,
        bytes: &[u8],
        now: Millis,
    ) -> Result<Later<T>, Refused> {
        let place = self.place(&key, part)?;
        if let Some(datagram) = self.datagrams.get_mut(&key)
            && let State::Decided(fate) = datagram.state
        {
            datagram.record(place);
            if datagram.is_complete() {
                self.forget(&key);
            }
            return Ok(Later::Follow(fate));
        }

        // What finds no room leaves no trace: neither its bytes nor, if it would
        // be the first that is seen of it, its datagram.
        let full = Refused::alone(DropReason::FragmentTableFull);
        let sender = self.senders.entry(key.sender).or_default();
        if sender.bytes + bytes.len() > MAX_WAITING_BYTES {
            return Err(full);
        }
        let datagram = self.follow(key, now)?;
        let State::Waiting(waiting) = &mut datagram.state else {
            return Err(full);
        };
        if waiting.len() >= MAX_WAITING {
            return Err(full);
        }
        waiting.push(bytes.to_vec());
        datagram.record(place);
        self.senders.entry(key.sender).or_default().bytes += bytes.len();
        Ok(Later::Hold)
    }

    /// Where `part` belongs in its datagram, known or not. A part that overlaps
    /// poisons the datagram.
    fn place(&mut self, key: &DatagramKey, part: Fragment) -> Result<Place, Refused> {
        let none = [];
        let (seen, end) = match self.datagrams.get(key) {
            None => (&none[..], None),
            Some(datagram) => match datagram.state {
                State::Poisoned => {
                    return Err(Refused::alone(DropReason::OverlappingFragment));
                }
                State::Waiting(_) | State::Decided(_) => (&datagram.seen[..], datagram.end),
            },
        };
        place(seen, end, part).map_err(|reason| Refused {
            reason,
            lost: match reason {
                DropReason::OverlappingFragment => self.poison(key),
                _ => 0,
            },
        })
    }

    /// The datagram, followed from now on if it wasn't yet.
    fn follow(&mut self, key: DatagramKey, now: Millis) -> Result<&mut Datagram<T>, Refused> {
        if !self.datagrams.contains_key(&key) {
            let sender = self.senders.entry(key.sender).or_default();
            if sender.datagrams >= MAX_DATAGRAMS_OF_SENDER || self.datagrams.len() >= MAX_DATAGRAMS
            {
                return Err(Refused::alone(DropReason::FragmentTableFull));
            }
            sender.datagrams += 1;
            self.born += 1;
            let age = (Millis(now.0.saturating_add(LIFETIME)), self.born);
            self.ages.insert(age, key);
            self.datagrams.insert(key, Datagram::new(age));
        }
        self.datagrams
            .get_mut(&key)
            .ok_or(Refused::alone(DropReason::FragmentTableFull))
    }

    /// Drops what waits of the datagram, and whatever comes of it. Gives the
    /// number of those that waited.
    fn poison(&mut self, key: &DatagramKey) -> u16 {
        let Some(datagram) = self.datagrams.get_mut(key) else {
            return 0;
        };
        datagram.seen = Vec::new();
        match std::mem::replace(&mut datagram.state, State::Poisoned) {
            State::Waiting(waiting) => self.drop_waiting(key.sender, &waiting),
            State::Decided(_) | State::Poisoned => 0,
        }
    }

    /// Forgets the datagrams whose time is over; what waited is an orphan.
    fn expire(&mut self, now: Millis) {
        while let Some(oldest) = self.ages.first_entry() {
            if oldest.key().0 > now {
                break;
            }
            let key = *oldest.get();
            let Some(State::Waiting(waiting)) = self.forget(&key) else {
                continue;
            };
            let orphans = self.drop_waiting(key.sender, &waiting);
            if let Some(sender) = self.senders.get_mut(&key.sender) {
                sender.orphans += u64::from(orphans);
            }
        }
    }

    fn forget(&mut self, key: &DatagramKey) -> Option<State<T>> {
        let datagram = self.datagrams.remove(key)?;
        self.ages.remove(&datagram.age);
        if let Some(sender) = self.senders.get_mut(&key.sender) {
            sender.datagrams = sender.datagrams.saturating_sub(1);
        }
        Some(datagram.state)
    }

    /// Gives back the room of fragments that are gone, and their number.
    fn drop_waiting(&mut self, sender: InterfaceIx, waiting: &[Vec<u8>]) -> u16 {
        if let Some(sender) = self.senders.get_mut(&sender) {
            sender.give_back(waiting.iter().map(Vec::len).sum());
        }
        u16::try_from(waiting.len()).unwrap_or(u16::MAX)
    }
}

#[derive(Debug)]
struct Datagram<T> {
    age: Age,
    /// The bytes seen: ranges without their ends, in order, apart.
    seen: Vec<Range>,
    /// Where the datagram ends, once its last fragment was seen.
    end: Option<u16>,
    state: State<T>,
}

type Range = (u16, u16);

#[derive(Debug)]
enum State<T> {
    /// Nothing is known of the first fragment; these wait, in the order in
    /// which they came.
    Waiting(Vec<Vec<u8>>),
    /// What became of the first fragment.
    Decided(T),
    /// Fragments overlapped.
    Poisoned,
}

impl<T> Datagram<T> {
    fn new(age: Age) -> Self {
        Self {
            age,
            seen: Vec::new(),
            end: None,
            state: State::Waiting(Vec::new()),
        }
    }

    fn record(&mut self, place: Place) {
        self.seen.splice(place.joins, [place.range]);
        if place.last {
            self.end = Some(place.range.1);
        }
    }

    /// Whether all bytes were seen.
    fn is_complete(&self) -> bool {
        self.end.is_some_and(|end| self.seen[..] == [(0, end)])
    }
}

/// Where a part belongs.
#[derive(Debug)]
struct Place {
    /// The ranges seen that it touches, which become one with it: none, one or
    /// two.
    joins: std::ops::Range<usize>,
    /// What they become together.
    range: Range,
    /// Whether it is the last part. Nothing comes behind it then.
    last: bool,
}

/// Where `part` belongs among the ranges `seen` of a datagram, whose `end` may
/// be known.
fn place(seen: &[Range], end: Option<u16>, part: Fragment) -> Result<Place, DropReason> {
    let start = part.offset;
    let stop = start
        .checked_add(part.length)
        .filter(|stop| *stop > start)
        .ok_or(DropReason::Malformed)?;
    let last = !part.more;

    // The first range that ends behind the start.
    let at = seen.partition_point(|range| range.1 <= start);
    let overlaps = seen.get(at).is_some_and(|range| range.0 < stop);
    let outside = match end {
        Some(end) => last || stop > end,
        None => last && at < seen.len(),
    };
    if overlaps || outside {
        return Err(DropReason::OverlappingFragment);
    }

    let mut place = Place {
        joins: at..at,
        range: (start, stop),
        last,
    };
    if let Some(before) = at.checked_sub(1)
        && seen[before].1 == start
    {
        place.joins.start = before;
        place.range.0 = seen[before].0;
    }
    if let Some(behind) = seen.get(at)
        && behind.0 == stop
    {
        place.joins.end = at + 1;
        place.range.1 = behind.1;
    }
    if place.joins.is_empty() && seen.len() >= MAX_RANGES {
        return Err(DropReason::FragmentTableFull);
    }
    Ok(place)
}

#[cfg(test)]
mod tests;
