//! One flow's record: words that are all atomic, so that packets read it without a
//! lock. What every packet looks at lies in one line of the cache, the rest elsewhere.
//!
//! What most packets change, the state and the expiry, lies in one word, [`Life`],
//! with a number that tells a record's tenants apart; it changes by compare and
//! exchange, so nobody writes into the record of another flow that has taken the
//! place of theirs. All else is written under the shard's lock, and read between
//! two looks at that word: what was read counts if the tenant is still the same.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use super::Millis;
use crate::model::{Direction, InterfaceIx, RuleId};
use crate::packet::FlowKey;

/// A flow's record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot<'s> {
    hot: &'s Hot,
    cold: &'s Cold,
}

/// What packets of a known flow look at: a line of the cache.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Hot {
    life: AtomicU64,
    /// The key's words; the last one has [`INITIATED`] and [`TRACKED`] beside, the
    /// entity that began the flow ([`SENDER_SHIFT`]), and the one whose allowance the
    /// flow takes a place of ([`CHARGE_SHIFT`]).
    key: [AtomicU64; 6],
    /// What has judged the packets that leave the interface, and under which generation.
    judged: AtomicU32,
    /// The way of what leaves the interface: [`Way`].
    way: AtomicU32,
}

/// What fewer want.
#[derive(Debug, Default)]
#[repr(C, align(32))]
pub(super) struct Cold {
    /// What has judged the packets that reach the interface, and under which generation.
    judged: AtomicU32,
    /// The destination that the internet gateway gives what leaves it.
    new_destination: AtomicU32,
    /// The rule that lets each direction pass. Of a tracked flow only the
    /// initiator's counts.
    rules: [AtomicU64; 2],
    /// The sequence numbers after the last SYN or FIN of the initiator and of the responder.
    ends: [AtomicU32; 2],
}

/// Beside the key: the interface sent the first packet.
const INITIATED: u64 = 1 << 16;
/// Beside the key: the flow is tracked.
const TRACKED: u64 = 1 << 17;
/// Position of a 23-bit field beside the key: the first interface of the entity that sent the
/// first packet.
const SENDER_SHIFT: u32 = 18;
/// Position of a 23-bit field beside the key: the interface that identifies the owner of the
/// allowance, plus 1; or 0.
const CHARGE_SHIFT: u32 = 41;
/// What of that word is the key's.
const KEY: u64 = 0xffff;

/// In a way, beside the receiver: through a gateway.
const THROUGH_GATEWAY: u32 = 1 << 31;
/// Likewise: the gateway gives it another source.
const NEW_SOURCE: u32 = 1 << 30;
/// Likewise: the gateway gives it another destination.
const NEW_DESTINATION: u32 = 1 << 29;

/// What is fixed once a flow is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nature(u64);

impl Nature {
    pub(super) fn new(initiator: Direction, tracked: bool) -> Self {
        let initiated = match initiator {
            Direction::Egress => INITIATED,
            Direction::Ingress => 0,
        };
        Self(initiated | if tracked { TRACKED } else { 0 })
    }

    #[inline]
    pub(super) fn is_tracked(self) -> bool {
        self.0 & TRACKED != 0
    }

    #[inline]
    pub(super) fn initiator(self) -> Direction {
        if self.0 & INITIATED != 0 {
            Direction::Egress
        } else {
            Direction::Ingress
        }
    }
}

/// When a flow ends, its state, and which tenant of the record it is: 44, 8 and
/// 12 bits. 44 bits of milliseconds are 557 years.
///
/// The tenant's number, its generation, wraps around. A reference to an earlier tenant would then
/// appear valid again. A record that has used up its generations ([`Self::is_worn`]) therefore
/// stays unused for at least [`super::REST`], far longer than a packet keeps a reference. Between
/// two such pauses a record has each generation once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life(u64);

const EXPIRY_BITS: u32 = 44;
const LAST_EXPIRY: u64 = (1 << EXPIRY_BITS) - 1;
const TENANT_SHIFT: u32 = EXPIRY_BITS + 8;
/// The first generation after which a record is retired. A removal and the next opening take one
/// generation each, so a record can't skip all that are left.
const WORN: u64 = (1 << (u64::BITS - TENANT_SHIFT)) - 4;

impl Life {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "takes the word apart")]
    pub(super) fn state(self) -> u8 {
        (self.0 >> EXPIRY_BITS) as u8
    }

    pub(super) fn expiry(self) -> u64 {
        self.0 & LAST_EXPIRY
    }

    /// Whether it hasn't expired. What has no tenant has expired.
    #[inline]
    pub(super) fn is_live(self, now: Millis) -> bool {
        self.expiry() > now.0
    }

    /// Whether the record is between two tenants.
    #[inline]
    pub(super) fn is_vacant(self) -> bool {
        self.expiry() == 0
    }

    /// Returns true if the record must be retired before it is used again.
    pub(super) fn is_worn(self) -> bool {
        self.0 >> TENANT_SHIFT >= WORN
    }

    #[inline]
    pub(super) fn is_of_same_tenant(self, other: Self) -> bool {
        self.0 >> TENANT_SHIFT == other.0 >> TENANT_SHIFT
    }

    /// The same tenant in another state, until another time.
    #[inline]
    pub(super) fn with(self, state: u8, expires: u64) -> Self {
        let tenant = self.0 >> TENANT_SHIFT << TENANT_SHIFT;
        // 0 stands for a vacant record.
        let expires = expires.clamp(1, LAST_EXPIRY);
        Self(tenant | u64::from(state) << EXPIRY_BITS | expires)
    }

    /// No tenant, after this one.
    fn vacated(self) -> Self {
        Self(((self.0 >> TENANT_SHIFT) + 1) << TENANT_SHIFT)
    }
}

/// By which way what leaves an interface in a flow is forwarded, as far as the flow
/// remembers; the policy knows the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The receiver.
    pub to: InterfaceIx,
    /// Whether it leads through a gateway to or from the world outside.
    pub through_gateway: bool,
    /// Whether the internet gateway gives it the source's public address.
    pub new_source: bool,
    /// The destination address that the internet gateway gives it.
    pub new_destination: Option<Ipv4Addr>,
}

/// What a new tenant brings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tenant<'a> {
    pub(super) key: &'a FlowKey,
    pub(super) nature: Nature,
    pub(super) state: u8,
    pub(super) expires: u64,
    /// The rule that let its first packet pass.
    pub(super) rule: RuleId,
    /// The sequence number after its first packet.
    pub(super) end: u32,
    /// The entity that sent the flow's first packet.
    pub(super) sender: InterfaceIx,
    /// Whose allowance it takes a place of.
    pub(super) charge: Option<InterfaceIx>,
}

impl<'s> Slot<'s> {
    #[inline(always)]
    pub(super) fn new(hot: &'s Hot, cold: &'s Cold) -> Self {
        Self { hot, cold }
    }

    /// Whether both are the same record.
    pub(super) fn is(self, other: Self) -> bool {
        std::ptr::eq(self.hot, other.hot)
    }

    #[inline(always)]
    pub(super) fn life(self) -> Life {
        Life(self.hot.life.load(Ordering::Acquire))
    }

    /// A word of what packets look at.
    #[inline(always)]
    pub(super) fn word(self) -> &'s AtomicU64 {
        &self.hot.life
    }

    /// What has judged the packets of one direction.
    #[inline(always)]
    pub(super) fn judged(self, direction: Direction) -> &'s AtomicU32 {
        match direction {
            Direction::Egress => &self.hot.judged,
            Direction::Ingress => &self.cold.judged,
        }
    }

    /// The rule that lets one direction pass.
    #[inline(always)]
    pub(super) fn rule(self, direction: Direction) -> &'s AtomicU64 {
        &self.cold.rules[direction as usize]
    }

    /// Returns the sequence number after the last SYN or FIN of one side: 0 is the initiator's.
    pub(super) fn end(self, side: usize) -> &'s AtomicU32 {
        &self.cold.ends[side & 1]
    }

    /// Whether what was read since `life` was is that tenant's.
    #[inline(always)]
    pub(super) fn is_still(self, life: Life) -> bool {
        fence(Ordering::Acquire);
        Life(self.hot.life.load(Ordering::Relaxed)).is_of_same_tenant(life)
    }

    /// Changes `seen` into `next`.
    ///
    /// # Errors
    /// What is there instead, if it is not `seen` any more.
    #[inline(always)]
    pub(super) fn change_life(self, seen: Life, next: Life) -> Result<(), Life> {
        self.hot
            .life
            .compare_exchange(seen.0, next.0, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
            .map_err(Life)
    }

    /// What its tenant is, if that is the flow with this key. To be followed by
    /// [`Self::is_still`].
    #[inline(always)]
    pub(super) fn nature_of(self, key: &FlowKey) -> Option<Nature> {
        let words = key.words();
        let mut differs = 0;
        for (mine, word) in self.hot.key[..5].iter().zip(words) {
            differs |= mine.load(Ordering::Relaxed) ^ word;
        }
        let last = self.hot.key[5].load(Ordering::Relaxed);
        differs |= (last & KEY) ^ words[5];
        (differs == 0).then_some(Nature(last))
    }

    /// The words of its tenant's key, under the lock.
    pub(super) fn key_words(self) -> [u64; 6] {
        let mut words = [0; 6];
        for (word, mine) in words.iter_mut().zip(&self.hot.key) {
            *word = mine.load(Ordering::Relaxed);
        }
        words[5] &= KEY;
        words
    }

    /// Gives the record to a flow, under the lock.
    pub(super) fn let_to(self, tenant: &Tenant<'_>) {
        // Readers that meet the first of these stores among the others see that
        // the tenant has changed.
        let vacant = Life(self.hot.life.load(Ordering::Relaxed)).vacated();
        self.hot.life.store(vacant.0, Ordering::Relaxed);
        fence(Ordering::Release);
        let mut words = tenant.key.words();
        let charge = tenant.charge.map_or(0, |owner| u64::from(index(owner)) + 1);
        let sender = u64::from(index(tenant.sender));
        words[5] |= tenant.nature.0 | sender << SENDER_SHIFT | charge << CHARGE_SHIFT;
        for (mine, word) in self.hot.key.iter().zip(words) {
            mine.store(word, Ordering::Relaxed);
        }
        let by_direction = |initiators: u64| match tenant.nature.initiator() {
            Direction::Ingress => [initiators, 0],
            Direction::Egress => [0, initiators],
        };
        for (mine, rule) in self.cold.rules.iter().zip(by_direction(tenant.rule.0)) {
            mine.store(rule, Ordering::Relaxed);
        }
        for (mine, end) in self.cold.ends.iter().zip([tenant.end, 0]) {
            mine.store(end, Ordering::Relaxed);
        }
        for judged in [&self.hot.judged, &self.cold.judged] {
            judged.store(0, Ordering::Relaxed);
        }
        let life = vacant.with(tenant.state, tenant.expires);
        self.hot.life.store(life.0, Ordering::Release);
    }

    /// Ends the tenancy, under the lock, unless the life isn't `seen` any more.
    pub(super) fn vacate(self, seen: Life) -> bool {
        self.change_life(seen, seen.vacated()).is_ok()
    }

    /// Starts the record's generations again. The caller holds the lock, the record has no
    /// tenant, and nobody refers to an earlier one.
    pub(super) fn renew(self) {
        self.hot.life.store(0, Ordering::Release);
    }

    /// Takes the place in an allowance away from the record, under the lock.
    pub(super) fn take_charge(self) -> Option<InterfaceIx> {
        let rest = (1 << CHARGE_SHIFT) - 1;
        let charge = self.hot.key[5].fetch_and(rest, Ordering::Relaxed) >> CHARGE_SHIFT;
        let owner = usize::try_from(charge.checked_sub(1)?).ok()?;
        Some(InterfaceIx::new(owner))
    }

    /// Returns true if the flow takes a place of an allowance. The caller holds the lock.
    pub(super) fn has_charge(self) -> bool {
        self.hot.key[5].load(Ordering::Relaxed) >> CHARGE_SHIFT != 0
    }

    /// Returns the entity that sent the first packet. The caller holds the lock.
    pub(super) fn sender(self) -> InterfaceIx {
        let last = self.hot.key[5].load(Ordering::Relaxed);
        let bits = CHARGE_SHIFT - SENDER_SHIFT;
        InterfaceIx::new((last >> SENDER_SHIFT) as usize & ((1 << bits) - 1))
    }

    /// The way that was noted last. To be followed by another look at the note
    /// that says under which generation.
    #[inline(always)]
    pub(super) fn way(self) -> Way {
        let way = self.hot.way.load(Ordering::Relaxed);
        let new_destination = (way & NEW_DESTINATION != 0)
            .then(|| Ipv4Addr::from_bits(self.cold.new_destination.load(Ordering::Relaxed)));
        Way {
            to: InterfaceIx::new((way & (NEW_DESTINATION - 1)) as usize),
            through_gateway: way & THROUGH_GATEWAY != 0,
            new_source: way & NEW_SOURCE != 0,
            new_destination,
        }
    }

    /// Notes a way, under the lock.
    pub(super) fn set_way(self, way: Way) {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let word = index(way.to)
            | flag(way.through_gateway, THROUGH_GATEWAY)
            | flag(way.new_source, NEW_SOURCE)
            | flag(way.new_destination.is_some(), NEW_DESTINATION);
        if let Some(address) = way.new_destination {
            self.cold
                .new_destination
                .store(address.to_bits(), Ordering::Relaxed);
        }
        self.hot.way.store(word, Ordering::Relaxed);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "no lab has 2^22 interfaces"
)]
fn index(interface: InterfaceIx) -> u32 {
    interface.ix() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_large_as_the_documentation_says() {
        assert_eq!((size_of::<Hot>(), align_of::<Hot>()), (64, 64));
        assert_eq!((size_of::<Cold>(), align_of::<Cold>()), (32, 32));
    }

    #[test]
    fn a_life_keeps_its_state_its_end_and_its_tenant_apart() {
        let first = Life(0).vacated().with(0xff, u64::MAX);
        assert_eq!(first.state(), 0xff);
        assert!(first.is_live(Millis(LAST_EXPIRY - 1)) && !first.is_live(Millis(LAST_EXPIRY)));
        let changed = first.with(1, 5);
        assert!(changed.is_of_same_tenant(first) && changed.is_live(Millis(4)));
        let next = changed.vacated();
        assert!(next.is_vacant() && !next.is_live(Millis(0)));
        assert!(!next.is_of_same_tenant(first));
        let mut tenant = next;
        for _ in 0..10_000 {
            tenant = tenant.vacated().with(3, 9);
            assert_eq!((tenant.state(), tenant.expiry()), (3, 9));
        }
    }

    #[test]
    fn a_way_reads_back_as_it_was_noted() {
        let (hot, cold) = (Hot::default(), Cold::default());
        let slot = Slot::new(&hot, &cold);
        for way in [
            Way {
                to: InterfaceIx::new(0),
                through_gateway: false,
                new_source: false,
                new_destination: None,
            },
            Way {
                to: InterfaceIx::new(70_000),
                through_gateway: true,
                new_source: true,
                new_destination: Some(Ipv4Addr::new(10, 0, 0, 1)),
            },
        ] {
            slot.set_way(way);
            assert_eq!(slot.way(), way);
        }
    }
}
