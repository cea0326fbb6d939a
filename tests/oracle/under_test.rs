//! The compiled policy and the data path, fed with real bytes. What comes out
//! is read back by `decode`, which checks every checksum that translation has
//! to mend, and put together where it comes in fragments.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use sgwall::conntrack::Millis;
use sgwall::datapath::{self, Datapath, Fate, Silent};
use sgwall::model::{InterfaceIx, Model};
use sgwall::packet;
use sgwall::policy::Policy;
use sgwall::policy::oracle::{Admission, Judgement, Packet, Refusal};

use crate::decode::{decode, reassemble, short};
use crate::harness::{Engine, Verdict};
use crate::wire::Frame;

/// The engine that the oracle judges.
pub struct UnderTest {
    policy: Policy,
    datapath: Datapath,
    arrived: HashMap<Name, Vec<Vec<u8>>>,
}

/// What fragments of a datagram share where they arrive.
type Name = (InterfaceIx, IpAddr, IpAddr, u8, u32);

impl UnderTest {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self {
            policy: Policy::compile(model, None),
            datapath: Datapath::new(capacity),
            arrived: HashMap::new(),
        })
    }

    /// The judgement of a packet that `from` sent, of which `bytes` are left.
    fn judgement(
        &mut self,
        from: InterfaceIx,
        verdict: &datapath::Verdict,
        bytes: &[u8],
    ) -> Judgement {
        let (to, length, split) = match verdict.fate {
            Fate::Drop { reason, at } => return Judgement::Dropped { reason, at },
            Fate::Hold { at } => return Judgement::Held { at },
            Fate::Forward { to, length, split } => (to, length, split),
        };
        let packet = decode(from, &bytes[..length])
            .unwrap_or_else(|why| panic!("{why} in what is forwarded: {:02x?}", &bytes[..length]));
        if let Some(mtu) = split {
            check_split(&bytes[..length], mtu);
        }
        self.collect(&packet, &bytes[..length]);
        let (egress, ingress) = if packet.is_later_fragment() {
            // Whatever let the first one pass.
            (None, None)
        } else {
            (
                verdict.egress.map(admission),
                verdict.ingress.map(admission),
            )
        };
        Judgement::Delivered {
            to,
            packet,
            split,
            egress,
            ingress,
        }
    }

    /// Puts together what arrives in fragments: the whole must have right
    /// checksums too, though no fragment shows them.
    fn collect(&mut self, packet: &Packet, bytes: &[u8]) {
        let Some(fragment) = packet.fragment else {
            return;
        };
        let name = (
            packet.from,
            packet.source,
            packet.destination,
            fragment.protocol,
            fragment.id,
        );
        let parts = self.arrived.entry(name).or_default();
        if fragment.offset == 0 {
            parts.clear();
        }
        parts.push(bytes.to_vec());
        if let Ok(whole) = reassemble(parts) {
            decode(packet.from, &whole)
                .unwrap_or_else(|why| panic!("{why} in what was put together: {whole:02x?}"));
            self.arrived.remove(&name);
        }
    }
}

impl Engine for UnderTest {
    fn replace_model(&mut self, model: &Model) {
        self.policy = Policy::compile(model, Some(&self.policy));
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let from = frame.packet.from;
        let now = Millis::from(now);
        self.datapath.flows().sweep(now);
        let mut bytes = frame.bytes.clone();
        let verdict = self
            .datapath
            .judge(&self.policy, from, &mut bytes, now, &mut Silent);
        Verdict {
            judgement: self.judgement(from, &verdict, &bytes),
            answer: answer(frame, &verdict, &bytes),
            released: Vec::new(),
            lost: usize::from(verdict.lost),
            orphans: Vec::new(),
        }
    }
}

fn admission(admission: datapath::Admission) -> Admission {
    if admission.tracked {
        Admission::Flow
    } else {
        Admission::Rule(admission.rule)
    }
}

/// The router's answer to `frame`, read from the bytes that stand in its place.
fn answer(
    frame: &Frame,
    verdict: &datapath::Verdict,
    bytes: &[u8],
) -> Option<Result<(Packet, u16), Refusal>> {
    let length = match verdict.answer? {
        datapath::Answer::Sent { length } => length,
        datapath::Answer::Dropped { reason, at } => return Some(Err((reason, at))),
    };
    let mut message = decode(frame.packet.from, &bytes[..length])
        .unwrap_or_else(|why| panic!("{why} in the answer: {:02x?}", &bytes[..length]));
    // Nobody cares.
    message.dont_fragment = false;
    let icmp = if message.source.is_ipv4() { 20 } else { 40 };
    let quote = &bytes[icmp + 8..length];
    let sent = frame.bytes.get(..quote.len());
    assert_eq!(Some(quote), sent, "the answer quotes what was sent");
    let mtu = u16::from_be_bytes([bytes[icmp + 6], bytes[icmp + 7]]);
    Some(Ok((message, mtu)))
}

/// Splits what is forwarded, and puts it together again.
fn check_split(bytes: &[u8], mtu: u16) {
    let mut scratch = vec![0; usize::from(mtu)];
    let mut parts: Vec<Vec<u8>> = Vec::new();
    packet::split(bytes, mtu, &mut scratch, |part| parts.push(part.to_vec()))
        .expect("what is to be split can be");
    assert!(parts.iter().all(|part| part.len() <= usize::from(mtu)));
    let was = decode(InterfaceIx::new(0), bytes).expect("read before");
    let mut payload: Vec<u8> = Vec::new();
    for (nth, part) in parts.iter().enumerate() {
        let read = decode(InterfaceIx::new(0), part).expect("a fragment");
        let fragment = read.fragment.expect("a fragment");
        let start = part.len() - fragment.length as usize;
        let more = was.fragment.is_some_and(|fragment| fragment.more);
        let offset = was.fragment.map_or(0, |fragment| fragment.offset);
        assert_eq!(fragment.offset, offset + short(payload.len()));
        assert_eq!(fragment.more, more || nth + 1 < parts.len());
        assert_eq!(part[4..6], bytes[4..6], "the identification");
        assert_eq!(
            (read.source, read.destination),
            (was.source, was.destination)
        );
        payload.extend(&part[start..]);
    }
    assert_eq!(payload, bytes[20..], "nothing is lost");
}
