//! The engine fed with super-packets, and with packets whose checksums are left to
//! be computed: what leaves it must be what the oracle, which sees packets of
//! the wire alone, makes of each of them.

use std::time::Duration;

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use sgwall::model::Model;
use sgwall::packet::Shape;

use crate::decode::decode;
use crate::harness::{Engine, Verdict};
use crate::under_test::UnderTest;
use crate::wire::Frame;

/// Most segments of a super-packet.
const MOST: usize = 5;

/// The engine behind a kernel with offloads.
pub struct SuperPackets(UnderTest);

impl SuperPackets {
    /// One for `model`.
    pub fn make(model: &Model, capacity: usize) -> Box<dyn Engine> {
        Box::new(Self(UnderTest::new(model, capacity)))
    }
}

impl Engine for SuperPackets {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model);
    }

    fn on_the_wire(&self, frame: &Frame) -> Vec<Frame> {
        cut(frame).unwrap_or_else(|| vec![frame.clone()])
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Verdict {
        self.judge_together(frame, std::slice::from_ref(frame), now)
    }

    fn judge_together(&mut self, frame: &Frame, wire: &[Frame], now: Duration) -> Verdict {
        let (bytes, shape) =
            unsummed(frame, wire.len()).unwrap_or_else(|| (frame.bytes.clone(), Shape::Whole));
        self.0
            .try_to_judge(wire, bytes, shape, now)
            .unwrap_or_else(|why| Verdict::of_wrong(frame, why))
    }
}

/// The packets of the wire that `frame` may stand for, made without the help of what is
/// tested: parts of one size, as the last one shares the others' fate though it were
/// short enough for a path that they don't fit. `None` for what can't be several.
fn cut(frame: &Frame) -> Option<Vec<Frame>> {
    unsummed(frame, 1)?;
    // What somebody sends himself goes both ways of its flow, so that two datagrams are
    // two exchanges and one super-packet is one. No host asks a network to do that.
    if frame.packet.source == frame.packet.destination {
        return None;
    }
    let headers = PacketHeaders::from_ip_slice(&frame.bytes).ok()?;
    let payload = headers.payload.slice();
    if let Some(TransportHeader::Tcp(tcp)) = &headers.transport
        && (tcp.syn || tcp.rst)
    {
        return None;
    }
    let count = (2..=MOST).rev().find(|count| payload.len() % count == 0)?;
    let size = payload.len() / count;
    if size == 0 {
        return None;
    }
    let parts = payload.chunks(size).enumerate();
    parts
        .map(|(number, part)| {
            let bytes = segment(headers.clone(), number, number + 1 == count, part)?;
            Some(Frame::read(frame.packet.from, bytes))
        })
        .collect()
}

fn segment(headers: PacketHeaders<'_>, number: usize, last: bool, part: &[u8]) -> Option<Vec<u8>> {
    let mut transport = headers.transport?;
    let offset = u32::try_from(number * part.len()).ok()?;
    match &mut transport {
        TransportHeader::Tcp(tcp) => {
            tcp.sequence_number = tcp.sequence_number.wrapping_add(offset);
            tcp.fin &= last;
            tcp.psh &= last;
            tcp.cwr &= number == 0;
        }
        TransportHeader::Udp(udp) => udp.length = u16::try_from(8 + part.len()).ok()?,
        _ => return None,
    }
    let mut bytes = Vec::new();
    let length = transport.header_len() + part.len();
    match headers.net? {
        NetHeaders::Ipv4(mut ip, extensions) => {
            let number = u16::try_from(number).ok()?;
            ip.identification = ip.identification.wrapping_add(number);
            ip.set_payload_len(extensions.header_len() + length).ok()?;
            ip.header_checksum = ip.calc_header_checksum();
            transport.update_checksum_ipv4(&ip, part).ok()?;
            ip.write(&mut bytes).ok()?;
            extensions.write(&mut bytes, ip.protocol).ok()?;
        }
        NetHeaders::Ipv6(mut ip, extensions) => {
            ip.set_payload_length(extensions.header_len() + length)
                .ok()?;
            transport.update_checksum_ipv6(&ip, part).ok()?;
            ip.write(&mut bytes).ok()?;
            extensions.write(&mut bytes, ip.next_header).ok()?;
        }
        NetHeaders::Arp(_) => return None,
    }
    transport.write(&mut bytes).ok()?;
    bytes.extend(part);
    Some(bytes)
}

/// The same frame as a kernel with offloads hands it over: the sum of the pseudo header
/// in place of the checksum, and `count` segments in it. `None` for what has no
/// checksum, or a wrong one.
fn unsummed(frame: &Frame, count: usize) -> Option<(Vec<u8>, Shape)> {
    decode(frame.packet.from, &frame.bytes).ok()?;
    let shape = Shape::partial(&frame.bytes)?;
    let unsummed = shape.unsummed()?;
    let at = usize::from(unsummed.transport);
    let field = at + unsummed.protocol.field();
    if frame.bytes[field..field + 2] == [0, 0] {
        return None;
    }
    let mut bytes = frame.bytes.clone();
    // Whatever the checksum covers besides sums up to its complement less the
    // pseudo header's: what is left of all ones is the latter.
    bytes[field..field + 2].fill(0);
    let rest = sum(&bytes[at..]);
    let checksum = u16::from_be_bytes([frame.bytes[field], frame.bytes[field + 1]]);
    let pseudo = sum(&[(!checksum).to_be_bytes(), (!rest).to_be_bytes()].concat());
    bytes[field..field + 2].copy_from_slice(&pseudo.to_be_bytes());
    let shape = match count {
        1 => shape,
        count => {
            let payload = PacketHeaders::from_ip_slice(&bytes).ok()?.payload;
            let size = u16::try_from(payload.slice().len() / count).ok()?;
            Shape::segments(&bytes, size, false)?
        }
    };
    Some((bytes, shape))
}

fn sum(bytes: &[u8]) -> u16 {
    let complement = etherparse::checksum::Sum16BitWords::new()
        .add_slice(bytes)
        .ones_complement();
    !u16::from_be(complement)
}
