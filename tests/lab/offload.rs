//! What devices with offloads take and give.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use sgwall::lab::{Lab, Session};
use sgwall::link::{Envelope, FRAME, Link, Offload, Offloads};
use sgwall::model::Model;
use sgwall::packet::{self, Shape};

use super::common::{three_entities, udp4, unique_name};
use super::support::{ip, receive, receive_now, socket_in, up};

pub fn a_burst_crosses_a_link_as_one_frame() {
    let model = three_entities();
    let lab = up(&model);
    let [from, to] = [&lab.links()[0], &lab.links()[1]];
    // Linux has had all offloads for TUN devices since 6.2.
    assert_eq!(from.offloads(), Offloads::ALL);
    let text = burst(&lab, &model);
    let mut frame = vec![0; FRAME];
    let mut received = None;
    wait_until(|| {
        received = from.recv(&mut frame).ok();
        received.is_some()
    });
    let received = received.unwrap();
    let mut frame = received.frame(&mut frame).to_vec();
    let shape = received.shape.unwrap();
    assert_eq!(shape.packets(frame.len()), 5);
    assert_eq!(frame[28..], text);
    assert!(receive_now(from).is_none());

    // It goes to another host, and there is five datagrams again.
    let socket = socket_in(&lab, &model, "db");
    let port = socket.local_addr().unwrap().port();
    let old = [frame[22], frame[23]];
    frame[22..24].copy_from_slice(&port.to_be_bytes());
    assert_ne!(old, [frame[22], frame[23]]);
    to.send(Envelope::NONE, &frame, shape).unwrap();
    let mut buffer = [0; 2000];
    for datagram in text.chunks(1000) {
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], *datagram);
    }
}

pub fn without_offload_packets_cross_one_by_one() {
    let model = three_entities();
    let session = Session::start(&unique_name()).unwrap();
    let lab = Lab::up_with(session, &model, Offload::Off).unwrap();
    let link = &lab.links()[0];
    assert_eq!(link.offloads(), Offloads::NONE);
    let text = burst(&lab, &model);
    for datagram in text.chunks(1000) {
        let packet = receive(link).expect("no packet");
        assert_eq!(packet[28..], *datagram);
        let sent = packet::parse(&packet).unwrap();
        let whole = packet::build(
            sent.source,
            sent.destination,
            sent.protocol,
            sent.transport,
            datagram,
        );
        assert_eq!(packet[26..28], whole.unwrap()[26..28], "the checksum");
    }
    let refused = link.send(
        Envelope::NONE,
        &[0x45; 40],
        Shape::partial(&udp4_of(40)).unwrap(),
    );
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
}

pub fn frames_made_to_be_refused_take_no_offload_from_their_receiver() {
    let model = three_entities();
    let lab = up(&model);
    let link = &lab.links()[1];
    // More datagrams than Linux accepts at once.
    let frame = udp4_of(28 + 200 * 100);
    let shape = Shape::segments(&frame, 100, false).unwrap();
    for _ in 0..20 {
        let refused = link.send(Envelope::NONE, &frame, shape);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!(link.offloads(), Offloads::ALL);
}

/// What a socket in `web` sends with one call: five datagrams, the last one shorter.
fn burst(lab: &Lab, model: &Model) -> Vec<u8> {
    let socket = socket_in(lab, model, "web");
    setsockopt(&socket, UdpGsoSegment, &1000).unwrap();
    let text: Vec<u8> = (0..4500_u16)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    socket.send_to(&text, "10.0.16.20:5432").unwrap();
    text
}

/// A datagram of so many bytes, with its headers.
fn udp4_of(length: usize) -> Vec<u8> {
    let (from, to) = ((ip("10.0.1.10"), 4000), (ip("10.0.16.20"), 4000));
    udp4(from, to, &vec![0; length - 28])
}

/// Tries until it is so, for some seconds.
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < until, "it never is");
        thread::sleep(Duration::from_millis(1));
    }
}
