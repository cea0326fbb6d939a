//! The lab that packets are sent through, and what must hold of every verdict.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::LazyLock;

use sgwall::conntrack::Millis;
use sgwall::datapath::{Answer, Datapath, Fate, Silent, Verdict};
use sgwall::model::{InterfaceIx, Model};
use sgwall::packet::{self, Brief, Packet, Shape, Transport};
use sgwall::policy::{DropReason, Guard, Policy};

use super::checks;
use super::frames;

/// Flows that the data path has room for: few, so that it gets full.
const CAPACITY: usize = 24;
/// Longer than anything is remembered, in milliseconds: a year.
const FOREVER: u64 = 365 * 86_400_000;

/// The same lab under three sets of rules.
const LABS: [(&str, &str); 3] = [
    ("open.yaml", include_str!("../labs/open.yaml")),
    ("narrow.yaml", include_str!("../labs/narrow.yaml")),
    ("other.yaml", include_str!("../labs/other.yaml")),
];

/// What the labs declare.
pub static MODELS: LazyLock<Vec<Model>> = LazyLock::new(|| {
    let read = |(name, text): &(&str, &str)| match sgwall::config::load_str(name, text) {
        Ok(loaded) => loaded.model,
        Err(found) => panic!("{found}"),
    };
    LABS.iter().map(read).collect()
});

/// Their policies, each compiled as the successor of the one before.
static POLICIES: LazyLock<Vec<Policy>> = LazyLock::new(|| {
    let mut policies: Vec<Policy> = Vec::new();
    for model in MODELS.iter() {
        policies.push(Policy::compile(model, policies.last()));
    }
    policies
});

/// A running lab, without threads, devices and a clock.
#[derive(Debug)]
pub struct World {
    datapath: Datapath,
    policy: &'static Policy,
    now: Millis,
    /// Everything that happened, as input of the target `frames`, as nearly as
    /// its format admits.
    story: Vec<u8>,
    /// What happened since the last packet, as that target has it.
    before: u8,
    /// Fragments that wait for their first, or are orphans by now: which of a
    /// sender's are is not told.
    held: Vec<(InterfaceIx, Vec<u8>)>,
    /// How many were orphaned so far, by sender.
    orphans: HashMap<InterfaceIx, u64>,
}

impl World {
    pub fn new() -> Self {
        Self {
            datapath: Datapath::new(CAPACITY),
            policy: &POLICIES[0],
            now: Millis(0),
            story: Vec::new(),
            before: frames::NOTHING,
            held: Vec::new(),
            orphans: HashMap::new(),
        }
    }

    /// The interface that a byte names: one of the lab's, and at times one
    /// that it doesn't have.
    pub fn interface(byte: u8) -> InterfaceIx {
        InterfaceIx::new(usize::from(byte) % (POLICIES[0].interfaces().count() + 1))
    }

    pub fn wait(&mut self, millis: u64) {
        self.now = Millis(self.now.0 + millis);
        self.before = frames::wait(millis);
    }

    /// Puts other rules in force.
    pub fn change(&mut self, byte: u8) {
        let which = usize::from(byte) % POLICIES.len();
        self.policy = &POLICIES[which];
        self.before = frames::change(which);
    }

    /// Forgets what has expired, as an appliance does every second.
    pub fn sweep(&mut self) {
        for (from, count) in self.datapath.sweep(self.now).orphans {
            *self.orphans.entry(from).or_default() += count;
        }
        self.before = frames::SWEEP;
    }

    /// What the data path says of a frame, which nothing else is told of.
    pub fn judge(&self, from: InterfaceIx, frame: &mut [u8], shape: Shape) -> Verdict {
        self.datapath
            .judge(self.policy, from, frame, shape, self.now, &mut Silent)
    }

    /// Sends a packet. Gives who gets it, and as what.
    pub fn send(&mut self, from: InterfaceIx, sent: &[u8]) -> Option<(InterfaceIx, Vec<u8>)> {
        frames::write(&mut self.story, from, self.before, sent);
        self.before = frames::NOTHING;
        if let Some(brief) = Brief::plain(from, sent) {
            let read = packet::parse(sent).expect("what is plain can be read");
            assert_eq!(Brief::of(from, &read), Some(brief));
            assert_eq!(read.fragment, None);
        }
        let mut frame = sent.to_vec();
        let verdict = self.datapath.judge(
            self.policy,
            from,
            &mut frame,
            Shape::Whole,
            self.now,
            &mut Silent,
        );
        assert!(self.datapath.flows().len() <= CAPACITY);
        let datagram = packet::parse(sent).ok().and_then(datagram_of);
        for _ in 0..verdict.lost {
            self.forget_held(from, |held| datagram_of(held) == datagram);
        }
        let later = packet::parse(sent).is_ok_and(|packet| packet.transport == Transport::Fragment);
        let arrived = match verdict.fate {
            Fate::Hold { at } => {
                assert_eq!(at, from);
                assert!(later, "only fragments wait");
                self.held.push((from, sent.to_vec()));
                None
            }
            fate => self.settled(from, sent, frame.clone(), fate),
        };
        if let Fate::Forward { to, .. } = verdict.fate {
            // Nothing passes groups that nobody admitted it through; later
            // fragments share what their first met.
            let guarded = |at| !later && self.guarded(at);
            assert_eq!(verdict.egress.is_some(), guarded(from));
            assert_eq!(verdict.ingress.is_some(), guarded(to));
        }
        if let Some(answer) = verdict.answer {
            self.answered(from, sent, &frame, verdict.fate, answer);
        }
        let mut released = 0;
        while let Some((frame, verdict)) = self.datapath.next_released(from) {
            released += 1;
            let follower = packet::parse(&frame)
                .expect("what waited can be read")
                .fragment
                .expect("only fragments wait");
            // Other datagrams may have the same number.
            let held = self.forget_held(from, |held| {
                held.fragment == Some(follower) && datagram_of(held) == datagram
            });
            self.settled(from, &held, frame, verdict.fate);
        }
        assert_eq!(verdict.released, released > 0);
        arrived
    }

    /// Lets everything expire: what is left then has been lost count of.
    pub fn end(mut self) -> Vec<u8> {
        let story = std::mem::take(&mut self.story);
        self.wait(FOREVER);
        self.sweep();
        // What was neither released nor lost must have been told as orphaned.
        let mut waiting: HashMap<InterfaceIx, u64> = HashMap::new();
        for (from, _) in &self.held {
            *waiting.entry(*from).or_default() += 1;
        }
        assert_eq!(waiting, self.orphans);
        let flows = self.datapath.flows();
        assert!(flows.is_empty(), "{} flows stay for ever", flows.len());
        for (_, interface) in self.policy.interfaces() {
            if let Some(allowance) = interface.allowance {
                assert_eq!(flows.available(allowance), allowance.limit);
            }
        }
        story
    }

    /// What must hold of a packet that doesn't wait. Gives who gets it.
    fn settled(
        &self,
        from: InterfaceIx,
        sent: &[u8],
        mut frame: Vec<u8>,
        fate: Fate,
    ) -> Option<(InterfaceIx, Vec<u8>)> {
        match fate {
            Fate::Hold { .. } => panic!("what was released waits again"),
            Fate::Drop { reason, at } => {
                let known = self.policy.interface(at).is_some();
                assert_eq!(known, reason != DropReason::UnknownInterface, "{reason}");
                None
            }
            Fate::Forward { to, length, split } => {
                assert!(
                    self.policy.interface(from).is_some(),
                    "strangers send nothing"
                );
                let receiver = self.policy.interface(to).expect("a receiver exists");
                frame.truncate(length);
                let arrived = checks::delivered(sent, &frame);
                match split {
                    None => assert!(length <= usize::from(receiver.mtu)),
                    Some(mtu) => {
                        assert!(mtu <= receiver.mtu);
                        checks::splits(&frame, mtu);
                    }
                }
                if self.guarded(to) && receiver.source_dest_check {
                    assert!(receiver.has(arrived.destination), "not its own address");
                }
                Some((to, frame))
            }
        }
    }

    /// What must hold of the router's answer.
    fn answered(&self, from: InterfaceIx, sent: &[u8], frame: &[u8], fate: Fate, answer: Answer) {
        let too_big = matches!(
            fate,
            Fate::Drop {
                reason: DropReason::TooBig,
                ..
            }
        );
        assert!(too_big, "{answer:?} to {fate:?}");
        match answer {
            Answer::Dropped { at, .. } => assert_eq!(at, from),
            Answer::Sent { length } => checks::answers(sent, &frame[..length]),
        }
    }

    fn guarded(&self, at: InterfaceIx) -> bool {
        let interface = self.policy.interface(at).expect("an interface that exists");
        matches!(interface.guard, Guard::Groups { .. })
    }

    /// Takes a fragment of `from` that waits off the list: the latest, as an
    /// earlier one like it is an orphan.
    fn forget_held(&mut self, from: InterfaceIx, is: impl Fn(Packet) -> bool) -> Vec<u8> {
        let mut held = self.held.iter();
        let at = held
            .rposition(|(sender, bytes)| *sender == from && packet::parse(bytes).is_ok_and(&is))
            .expect("a fragment that waited");
        self.held.remove(at).1
    }
}

/// What the fragments of a datagram have in common.
fn datagram_of(packet: Packet) -> Option<(IpAddr, IpAddr, u8, u32)> {
    let part = packet.fragment?;
    Some((packet.source, packet.destination, part.next, part.id))
}
