//! The lab that packets are sent through, and what must hold of every verdict.

use std::sync::LazyLock;

use sgwall::conntrack::Millis;
use sgwall::datapath::{Datapath, Fate, Silent};
use sgwall::model::{InterfaceIx, Model};
use sgwall::policy::{DropReason, Guard, Policy};

use super::checks;
use super::frames;

/// Flows that the data path has room for: few, so that it gets full.
const CAPACITY: usize = 24;

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
    /// Everything that happened, as input of the target `frames`.
    story: Vec<u8>,
    /// What happened since the last packet, as that target has it.
    before: u8,
}

impl World {
    pub fn new() -> Self {
        Self {
            datapath: Datapath::new(CAPACITY),
            policy: &POLICIES[0],
            now: Millis(0),
            story: Vec::new(),
            before: frames::NOTHING,
        }
    }

    /// Everything that happened, as input of the target `frames`, which goes
    /// through the same as nearly as its format admits.
    pub fn story(self) -> Vec<u8> {
        self.story
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
        self.datapath.flows().sweep(self.now);
        self.before = frames::SWEEP;
    }

    /// Sends a packet. Gives who gets it, and as what.
    pub fn send(&mut self, from: InterfaceIx, sent: &[u8]) -> Option<(InterfaceIx, Vec<u8>)> {
        frames::write(&mut self.story, from, self.before, sent);
        self.before = frames::NOTHING;
        let mut frame = sent.to_vec();
        let verdict = self
            .datapath
            .judge(self.policy, from, &mut frame, self.now, &mut Silent);
        assert!(self.datapath.flows().len() <= CAPACITY);
        match verdict.fate {
            Fate::Drop { reason, at } => {
                let known = self.policy.interface(at).is_some();
                assert_eq!(
                    known,
                    reason != DropReason::UnknownInterface,
                    "{reason} at {at:?}"
                );
                None
            }
            Fate::Forward { to, length } => {
                let sender = self.policy.interface(from).expect("strangers send nothing");
                let receiver = self.policy.interface(to).expect("a receiver exists");
                assert!(length <= sent.len());
                assert!(length <= usize::from(receiver.mtu));
                // Nothing passes groups that nobody admitted it through.
                let guarded = |guard: &Guard| matches!(guard, Guard::Groups { .. });
                assert_eq!(verdict.egress.is_some(), guarded(&sender.guard));
                assert_eq!(verdict.ingress.is_some(), guarded(&receiver.guard));
                frame.truncate(length);
                checks::delivered(sent, &frame);
                Some((to, frame))
            }
        }
    }
}
