//! Bytes as what a device with offloads hands over: one byte for the sender, the
//! header, the frame. What the header says is believed where the frame bears it out;
//! then one verdict for all must be the verdict on each of its segments, and what is
//! handed on must be what they would have become one by one.

use sgwall::datapath::{Fate, Verdict};
use sgwall::link::virtio;
use sgwall::packet::{self, Packet, Shape};
use sgwall::policy::DropReason;

use super::bytes::Bytes;
use super::checks;
use super::world::World;

/// A super-packet through the data path, and its segments one by one.
pub fn vnet(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let from = World::interface(bytes.byte());
    let Ok(header) = <[u8; virtio::HEADER]>::try_from(bytes.take(virtio::HEADER)) else {
        return;
    };
    let mut frame = checks::with_header_checksum(bytes.take(usize::MAX)).to_vec();
    let Ok(shape) = virtio::settle(0, header, &mut frame) else {
        return;
    };
    let frame = &frame[..];
    // Super-packets inside a tunnel are never written.
    if !matches!(shape, Shape::Tunnel(_)) {
        let written = virtio::encode(shape, frame);
        assert_eq!(virtio::decode(written, frame), Ok(shape), "{written:?}");
    }

    let wire = on_the_wire(frame, shape);
    let Ok(whole) = packet::parse(frame) else {
        assert_eq!(shape, Shape::Whole, "what can't be read is no super-packet");
        return;
    };
    let sound = hold_to_the_frame(frame, &whole, shape, &wire);

    let mut handed_over = frame.to_vec();
    let together = World::new().judge(from, &mut handed_over, shape);
    // What somebody sends himself goes both ways of a flow at once.
    if whole.source == whole.destination {
        return;
    }
    let world = World::new();
    let one_by_one: Vec<(Verdict, Vec<u8>)> = wire
        .iter()
        .map(|packet| {
            let mut bytes = packet.clone();
            (world.judge(from, &mut bytes, Shape::Whole), bytes)
        })
        .collect();
    // The last may be short enough for a path that the others don't fit.
    let full = wire
        .iter()
        .filter(|packet| packet.len() == wire[0].len())
        .count();
    for (verdict, _) in &one_by_one[..full] {
        assert_eq!(one_fate(verdict.fate), one_fate(together.fate));
    }
    assert_eq!(one_by_one[0].0.answer, together.answer);
    if let Some(sgwall::datapath::Answer::Sent { length }) = together.answer {
        assert_eq!(handed_over[..length], one_by_one[0].1[..length]);
    }
    if let Fate::Forward { length, .. } = together.fate {
        let arrived = on_the_wire(&handed_over[..length], shape);
        assert_eq!(arrived.len(), wire.len());
        for (together, (verdict, alone)) in arrived.iter().zip(&one_by_one) {
            let Fate::Forward { length, .. } = verdict.fate else {
                panic!("{verdict:?} of a part of what is delivered");
            };
            // The sum of a wrong sum may be written in two ways.
            if sound {
                assert_eq!(*together, alone[..length]);
            }
        }
    }
}

/// The packets that a frame stands for.
fn on_the_wire(frame: &[u8], shape: Shape) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut scratch = vec![0; frame.len()];
    let done = packet::segment(frame, shape, &mut scratch, |packet| {
        packets.push(packet.to_vec());
    });
    assert_eq!(done, Ok(()), "{shape:?}");
    packets
}

/// What must hold of the segments: they can be read, carry the frame's payload, add up
/// to what is counted, and have right checksums if the frame's were. Whether they have.
fn hold_to_the_frame(frame: &[u8], whole: &Packet, shape: Shape, wire: &[Vec<u8>]) -> bool {
    assert_eq!(wire.len(), shape.packets(frame.len()));
    let bytes: usize = wire.iter().map(Vec::len).sum();
    assert_eq!(bytes, shape.bytes(frame.len()));
    let longest = wire.iter().map(Vec::len).max();
    assert_eq!(longest, Some(shape.longest(frame.len())));
    let Some(segments) = shape.in_segments() else {
        return match shape {
            Shape::Whole => false,
            _ => is_sound(&wire[0]),
        };
    };
    let headers = usize::from(segments.headers);
    let mut carried = Vec::new();
    for packet in wire {
        let read = packet::parse(packet).expect("a segment can be read");
        assert_eq!(read.length, packet.len());
        assert_eq!(
            (read.source, read.destination, read.protocol, read.fragment),
            (
                whole.source,
                whole.destination,
                whole.protocol,
                whole.fragment
            )
        );
        carried.extend_from_slice(&packet[headers..]);
    }
    assert_eq!(carried, frame[headers..]);
    let sound = is_sound(&wire[0]);
    assert!(wire.iter().all(|packet| is_sound(packet) == sound));
    sound
}

fn is_sound(packet: &[u8]) -> bool {
    packet::parse(packet).is_ok_and(|read| checks::all_right(packet, &read))
}

/// A fate without what is the frame's alone: how long it is.
fn one_fate(fate: Fate) -> Fate {
    match fate {
        Fate::Forward { to, split, .. } => Fate::Forward {
            to,
            length: 0,
            split,
        },
        Fate::Drop {
            reason: DropReason::ConnectionClosed,
            ..
        } => panic!("nothing is known of the connection"),
        other => other,
    }
}
