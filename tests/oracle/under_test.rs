//! The compiled policy and the data path, fed with real bytes. What comes out
//! is read back by `decode`, which checks every checksum that translation has
//! to mend, and put together where it comes in fragments.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use sgwall::conntrack::Millis;
use sgwall::datapath::{self, Datapath, Fate, Recorder, Silent, Step};
use sgwall::model::{InterfaceIx, Model};
use sgwall::packet::{self, Shape};
use sgwall::policy::Policy;
use sgwall::policy::oracle::{Admission, Judgement, Packet};

use crate::decode::{decode, lenient, reassemble, short};
use crate::harness::{Answered, Engine, Verdict, by_nobody};
use crate::wire::Frame;

/// The engine that the oracle judges.
pub struct UnderTest {
    policy: Policy,
    datapath: Datapath,
    /// Whether what has expired must give its place back before the next
    /// packet, as the oracle has it. Where places don't matter the sweep comes
    /// after it, so that expired entries are there to be looked up.
    places_matter: bool,
    /// Packets until now.
    judged: u32,
    /// Fragments that waited, as they were sent.
    held: Vec<Frame>,
    /// Fragments that arrived, and as they were sent.
    arrived: HashMap<Name, Vec<Pair>>,
}

/// Is told of each step of the road, and keeps it to itself.
struct Witness;

impl Recorder for Witness {
    fn step(&mut self, _: Step<'_>) {}
}

/// What fragments of a datagram share where they arrive.
type Name = (InterfaceIx, IpAddr, IpAddr, u8, u32);

/// The same packet as it arrived, and as it was sent.
#[derive(Debug)]
struct Pair {
    arrived: Vec<u8>,
    sent: Vec<u8>,
}

impl UnderTest {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self::new(model, capacity))
    }

    /// One for `model`.
    pub fn new(model: &Model, capacity: usize) -> Self {
        Self {
            policy: Policy::compile(model, None),
            datapath: Datapath::new(capacity),
            places_matter: capacity < 1 << 16
                || model
                    .entities
                    .iter()
                    .any(|entity| entity.max_flows.is_some()),
            judged: 0,
            held: Vec::new(),
            arrived: HashMap::new(),
        }
    }

    /// Judges `bytes`, which stand for the packets of `wire`.
    pub fn try_to_judge(
        &mut self,
        wire: &[Frame],
        mut bytes: Vec<u8>,
        shape: Shape,
        now: Duration,
    ) -> Result<Verdict, String> {
        let frame = &wire[0];
        let from = frame.packet.from;
        let now = Millis::from(now);
        let mut orphans = Vec::new();
        if self.places_matter {
            orphans = self.datapath.sweep(now).orphans;
        }
        // Now and then by the long road, which a recorder takes: what the short one
        // noted must suit it, and the other way round.
        self.judged += 1;
        let (datapath, policy) = (&self.datapath, &self.policy);
        let verdict = if self.judged.is_multiple_of(4) {
            datapath.judge(policy, from, &mut bytes, shape, now, &mut Witness)
        } else {
            datapath.judge(policy, from, &mut bytes, shape, now, &mut Silent)
        };
        let mut judgements = self.judgements(wire, &verdict, &bytes, shape)?.into_iter();
        let judgement = judgements.next().ok_or("nothing is judged")?;
        if let Judgement::Held { .. } = judgement {
            self.held.push(frame.clone());
        }
        let mut released = Vec::new();
        while let Some((bytes, verdict)) = self.datapath.next_released(from) {
            let sent = self.sent_as(from, &bytes)?;
            released.push(self.judgement(&sent, from, &verdict, &bytes)?);
        }
        // Orphans include fragments that were given up to make room for this one.
        for (at, number) in self.datapath.sweep(now).orphans {
            match orphans.iter_mut().find(|(its, _)| *its == at) {
                Some((_, sum)) => *sum += number,
                None => orphans.push((at, number)),
            }
        }
        orphans.sort_unstable();
        if verdict.released == released.is_empty() {
            return Err("`released` is wrong".into());
        }
        Ok(Verdict {
            judgement,
            answer: answer(frame, &verdict, &bytes)?,
            released,
            lost: usize::from(verdict.lost),
            orphans,
            others: judgements.map(by_nobody).collect(),
            wrong: None,
        })
    }

    /// The judgement of each packet of the wire.
    fn judgements(
        &mut self,
        wire: &[Frame],
        verdict: &datapath::Verdict,
        bytes: &[u8],
        shape: Shape,
    ) -> Result<Vec<Judgement>, String> {
        let mut judgements = Vec::new();
        let Fate::Forward { to, length, split } = verdict.fate else {
            for frame in wire {
                let from = frame.packet.from;
                judgements.push(self.judgement(&frame.bytes, from, verdict, bytes)?);
            }
            return Ok(judgements);
        };
        let mut packets = Vec::new();
        let mut scratch = vec![0; bytes.len()];
        packet::segment(&bytes[..length], shape, &mut scratch, |packet| {
            packets.push(packet.to_vec());
        })
        .map_err(|error| error.to_string())?;
        if packets.len() != wire.len() || packets.len() != shape.packets(length) {
            return Err(format!("{} packets of {}", packets.len(), wire.len()));
        }
        for (packet, frame) in packets.iter().zip(wire) {
            let verdict = datapath::Verdict {
                fate: Fate::Forward {
                    to,
                    length: packet.len(),
                    split,
                },
                ..*verdict
            };
            let from = frame.packet.from;
            judgements.push(self.judgement(&frame.bytes, from, &verdict, packet)?);
            // Translation leaves all before the header checksum alone, and what it
            // carries.
            if packet[..10] != frame.bytes[..10] {
                return Err("the header is another".into());
            }
            let unsummed = shape.unsummed().map(|unsummed| unsummed.transport.into());
            let payload = unsummed.map_or(packet.len(), |start: usize| start + 20);
            if packet.get(payload..) != frame.bytes.get(payload..packet.len()) {
                return Err("the payload is another".into());
            }
        }
        Ok(judgements)
    }

    /// The judgement of a packet that `from` sent, of which `bytes` are left.
    fn judgement(
        &mut self,
        sent: &[u8],
        from: InterfaceIx,
        verdict: &datapath::Verdict,
        bytes: &[u8],
    ) -> Result<Judgement, String> {
        let (to, length, split) = match verdict.fate {
            Fate::Drop { reason, at } => return Ok(Judgement::Dropped { reason, at }),
            Fate::Hold { at } => return Ok(Judgement::Held { at }),
            Fate::Forward { to, length, split } => (to, length, split),
        };
        let bytes = &bytes[..length];
        // Who sends nonsense has it forwarded.
        let mut packet = match decode(from, sent) {
            Ok(_) => decode(from, bytes)?,
            Err(_) => lenient(from, bytes)?,
        };
        // Translation updates the checksum that a first fragment carries.
        if let (Some(arrived), Some(sent)) = (&mut packet.fragment, lenient(from, sent)?.fragment) {
            arrived.content = sent.content;
        }
        if let Some(mtu) = split {
            check_split(bytes, mtu)?;
        }
        self.collect(&packet, sent, bytes)?;
        let (egress, ingress) = if packet.is_later_fragment() {
            // Whatever let the first one pass.
            (None, None)
        } else {
            (
                verdict.egress.map(admission),
                verdict.ingress.map(admission),
            )
        };
        Ok(Judgement::Delivered {
            to,
            packet,
            split,
            egress,
            ingress,
        })
    }

    /// A fragment that waited, as it was sent: its addresses may be others now.
    fn sent_as(&self, from: InterfaceIx, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let released = lenient(from, bytes)?.fragment;
        self.held
            .iter()
            .rev()
            .find(|held| held.packet.from == from && held.packet.fragment == released)
            .map(|held| held.bytes.clone())
            .ok_or_else(|| "a fragment is released that never waited".into())
    }

    /// Puts together what arrives in fragments: where what was sent has right
    /// checksums as a whole, what arrives must too, though no fragment shows it.
    fn collect(&mut self, packet: &Packet, sent: &[u8], arrived: &[u8]) -> Result<(), String> {
        let Some(fragment) = packet.fragment else {
            return Ok(());
        };
        let name = (
            packet.from,
            packet.source,
            packet.destination,
            fragment.protocol,
            fragment.id,
        );
        let pairs = self.arrived.entry(name).or_default();
        if fragment.offset == 0 {
            pairs.clear();
        }
        pairs.push(Pair {
            arrived: arrived.to_vec(),
            sent: sent.to_vec(),
        });
        let sent = reassemble(pairs.iter().map(|pair| &pair.sent));
        let is_right = |whole: &Vec<u8>| decode(packet.from, whole).is_ok();
        if sent.is_ok_and(|whole| is_right(&whole)) {
            let whole = reassemble(pairs.iter().map(|pair| &pair.arrived))?;
            decode(packet.from, &whole).map_err(|why| format!("{why} in what was put together"))?;
        }
        Ok(())
    }
}

impl Engine for UnderTest {
    fn replace_model(&mut self, model: &Model) {
        self.policy = Policy::compile(model, Some(&self.policy));
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        let wire = std::slice::from_ref(frame);
        self.try_to_judge(wire, frame.bytes.clone(), Shape::Whole, now)
            .unwrap_or_else(|why| Verdict::of_wrong(frame, why))
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
) -> Result<Option<Answered>, String> {
    let length = match verdict.answer {
        None => return Ok(None),
        Some(datapath::Answer::Dropped { reason, at }) => return Ok(Some(Err((reason, at)))),
        Some(datapath::Answer::Sent { length }) => length,
    };
    let mut message = decode(frame.packet.from, &bytes[..length])?;
    // Nobody cares.
    message.dont_fragment = false;
    let icmp = if message.source.is_ipv4() { 20 } else { 40 };
    let quote = &bytes[icmp + 8..length];
    if frame.bytes.get(..quote.len()) != Some(quote) {
        return Err("the answer doesn't quote what was sent".into());
    }
    let mtu = u16::from_be_bytes([bytes[icmp + 6], bytes[icmp + 7]]);
    Ok(Some(Ok((message, mtu))))
}

/// Splits what is forwarded, and puts it together again.
fn check_split(bytes: &[u8], mtu: u16) -> Result<(), String> {
    let mut scratch = vec![0; usize::from(mtu)];
    let mut parts: Vec<Vec<u8>> = Vec::new();
    packet::split(bytes, mtu, &mut scratch, |part| parts.push(part.to_vec()))
        .map_err(|error| error.to_string())?;
    let was = lenient(InterfaceIx::new(0), bytes)?;
    let (start, last) = match was.fragment {
        Some(fragment) => (fragment.offset, !fragment.more),
        None => (0, true),
    };
    let mut payload: Vec<u8> = Vec::new();
    for (nth, part) in parts.iter().enumerate() {
        let read = decode(InterfaceIx::new(0), part)?;
        let fragment = read.fragment.ok_or("a part that is none")?;
        let more = !last || nth + 1 < parts.len();
        let right = part.len() <= usize::from(mtu)
            && part[4..6] == bytes[4..6]
            && (read.source, read.destination) == (was.source, was.destination)
            && fragment.offset == start + short(payload.len())
            && fragment.more == more;
        if !right {
            return Err(format!("part {nth} is wrong: {read}"));
        }
        payload.extend(&part[part.len() - fragment.length as usize..]);
    }
    if payload == bytes[20..] {
        Ok(())
    } else {
        Err("splitting loses bytes".into())
    }
}
