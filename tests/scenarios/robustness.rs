//! Hostile neighbours: on the control socket, and inside the entities.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crate::net::{self, Seen, checksum, raw_ipv4, send_raw};
use crate::privilege::namespaces;
use crate::support::{DUAL_STACK, Lab, Start, THREE_TIER, at, drops, wait_until};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn garbage_on_the_control_socket_disturbs_nobody() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let path = lab.state.join(&lab.name).join("control.sock");
    let connect = || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let answer = |request: &[u8]| {
        let mut stream = connect();
        // The other side may hang up before it has read all of it.
        let _ = stream.write_all(request);
        let mut line = String::new();
        let _ = BufReader::new(&stream).read_line(&mut line);
        line
    };

    for request in [
        "\n",
        "{}\n",
        "[]\n",
        "null\n",
        "{\"op\":7}\n",
        "{\"op\":\"format c:\"}\n",
        "{\"op\":\"enter\"}\n",
        "{\"op\":\"enter\",\"entity\":\"../../etc\"}\n",
        "{\"op\":\"enter\",\"entity\":[\"web-1\"]}\n",
        "{\"op\":\"status\"\n",
        "\u{0}\u{0}\u{0}\n",
    ] {
        let said = answer(request.as_bytes());
        assert!(said.contains("\"error\""), "{request:?}: {said:?}");
    }
    let said = answer(
        &[b'['; 60_000]
            .iter()
            .copied()
            .chain([b'\n'])
            .collect::<Vec<_>>(),
    );
    assert!(said.contains("\"error\""), "{said:?}");
    let said = answer(&vec![b'x'; 4 << 20]);
    assert!(said.is_empty() || said.contains("\"error\""), "{said:?}");

    // Bytes without any sense, the same ones each time (xorshift64).
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..100 {
        let mut bytes = Vec::new();
        for _ in 0..64 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            bytes.extend(random.to_be_bytes());
        }
        let mut stream = connect();
        let _ = stream.write_all(&bytes);
    }
    // All of those at once may be too many; they go as they come.
    let status = b"{\"op\":\"status\"}\n";
    wait_until("the lab answers again", || {
        answer(status).contains("\"enforcing\":true")
    });
    // Two requests at once, and one in pieces.
    let mut stream = connect();
    stream
        .write_all(b"{\"op\":\"status\"}\n{\"op\":\"sta")
        .unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .contains("\"enforcing\":true")
    );
    stream.write_all(b"tus\"}\n").unwrap();
    assert!(
        lines
            .next()
            .unwrap()
            .unwrap()
            .contains("\"enforcing\":true")
    );

    // Many connections that say nothing, or half a request.
    let mut held = Vec::new();
    for number in 0..200 {
        let Ok(mut stream) = UnixStream::connect(&path) else {
            continue;
        };
        if number % 2 == 0 {
            let _ = stream.write_all(b"{\"op\":");
        }
        held.push(stream);
    }
    // They keep no other client out, and packets are not affected.
    assert!(still_forwards(&lab));
    let exec = lab.exec("client", &["true"]).output().unwrap();
    assert!(exec.status.success(), "{exec:?}");
    assert_eq!(
        lab.sgwall("status").output().unwrap().status.code(),
        Some(0)
    );
    drop(held);
    assert_eq!(lab.status()["policy"]["refused"], 0);
    assert!(still_forwards(&lab));
    lab.down();
}

#[test]
fn a_log_that_cannot_be_written_disturbs_nobody() {
    if !namespaces!() {
        return;
    }
    let full = "SGWALL_LOG=debug exec \"$@\" 2>/dev/full";
    let lab = Lab::start(&Start {
        through: ["sh", "-c", full, "sh"].map(String::from).to_vec(),
        ..Start::new(THREE_TIER)
    });
    lab.event("enforcing");
    let path = lab.state.join(&lab.name).join("control.sock");
    for _ in 0..5 {
        // The client is gone when the answer comes, which is logged.
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(b"{\"op\":\"status\"}\n").unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
    assert_eq!(lab.status()["enforcing"], true);
    lab.down();
}

#[test]
fn hostile_frames_are_dropped_and_counted_under_their_names() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    const SENT: u64 = 5;
    let web_1 = [10, 0, 2, 21];
    let web_2 = [10, 0, 2, 22];
    let [lb, nobody] = [[10, 0, 1, 10], [10, 0, 2, 99]];
    // The load balancer's egress groups allow everything, so each of these is
    // stopped by its own fault, before or after them.
    let good = udp(9);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("source_check", ipv4(web_2, web_1, 0, 17, &good)),
        ("source_check", ipv4([127, 0, 0, 1], web_1, 0, 17, &good)),
        ("source_check", ipv4([203, 0, 113, 10], web_1, 0, 17, &good)),
        ("source_check", ipv4([224, 0, 0, 1], web_1, 0, 17, &good)),
        ("not_unicast", ipv4(lb, [224, 0, 0, 251], 0, 17, &good)),
        ("not_unicast", ipv4(lb, [239, 1, 2, 3], 0, 17, &good)),
        // More fragments follow, and this one ends in the midst of eight bytes,
        // or before TCP's flags.
        ("malformed", ipv4(lb, web_1, 0x2000, 17, &good)),
        (
            "tiny_fragment",
            ipv4(lb, web_1, 0x2000, 6, &tcp_with_offset(5)[..8]),
        ),
        // A later fragment, which waits for its first until others arrive at the same place.
        ("duplicate_fragment", ipv4(lb, web_1, 0x0010, 17, &good)),
        (
            "overlapping_fragment",
            ipv4(lb, web_1, 0x0010, 17, &udp(10)),
        ),
        // Headers that end early or lie about their length.
        ("malformed", ipv4(lb, web_1, 0, 17, &good[..4])),
        (
            "malformed",
            ipv4(lb, web_1, 0, 6, &tcp_with_offset(5)[..12]),
        ),
        ("malformed", ipv4(lb, web_1, 0, 6, &tcp_with_offset(4))),
        ("malformed", ipv4(lb, web_1, 0, 6, &tcp_with_offset(15))),
        ("malformed", ipv4(lb, web_1, 0, 1, &[8, 0])),
        (
            "malformed",
            ipv4(lb, web_1, 0, 17, &{
                let mut long = udp(9);
                long[4..6].copy_from_slice(&4000_u16.to_be_bytes());
                long
            }),
        ),
        ("unknown_destination", ipv4(lb, nobody, 0, 17, &good)),
        ("no_ingress_rule", ipv4(lb, web_1, 0, 132, &[0; 64])),
    ];
    let sent_as = |reason| SENT * cases.iter().filter(|(it, _)| *it == reason).count() as u64;

    let before = lab.status();
    let socket = lab.inside("lb", raw_ipv4);
    for (reason, packet) in &cases {
        let to = IpAddr::from([packet[16], packet[17], packet[18], packet[19]]);
        for _ in 0..SENT {
            send_raw(&socket, to, packet).unwrap_or_else(|error| panic!("{reason}: {error}"));
        }
    }
    for (at, reason) in [
        ("lb", "source_check"),
        ("lb", "not_unicast"),
        ("lb", "tiny_fragment"),
        ("lb", "overlapping_fragment"),
        ("lb", "malformed"),
        ("lb", "unknown_destination"),
        ("web-1", "no_ingress_rule"),
    ] {
        // The waiting fragment is lost with those that overlap it.
        let lost = u64::from(reason == "overlapping_fragment");
        let wanted = drops(&before, at, reason) + sent_as(reason) + lost;
        wait_until(&format!("{wanted} {reason} at {at}"), || {
            lab.drops(at, reason) >= wanted
        });
        assert_eq!(
            lab.drops(at, reason),
            wanted,
            "{reason} at {at}: {}",
            lab.status()
        );
    }
    let status = lab.status();
    assert_eq!(at(&status, "web-1")["packets_in"], 0, "{status}");
    assert!(still_forwards(&lab));
    lab.down();
}

#[test]
fn ipv6_multicast_is_dropped_and_counted() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(DUAL_STACK);
    let before = lab.drops("edge", "not_unicast");
    lab.inside("edge", || {
        let socket = UdpSocket::bind("[::]:0").unwrap();
        // The device's number in a fresh namespace: the one after loopback.
        for group in ["ff02::1", "ff05::2"] {
            let to = SocketAddrV6::new(group.parse().unwrap(), 5353, 0, 2);
            socket.send_to(b"?", SocketAddr::V6(to)).unwrap();
        }
    });
    wait_until("both are counted", || {
        lab.drops("edge", "not_unicast") >= before + 2
    });
    lab.down();
}

#[test]
fn a_flood_of_forbidden_packets_does_not_stop_allowed_ones() {
    if !namespaces!() {
        return;
    }
    let lab = Lab::up(THREE_TIER);
    let socket = lab.inside("lb", raw_ipv4);
    let to: IpAddr = [10, 0, 2, 21].into();
    let flood = ipv4([10, 0, 1, 10], [10, 0, 2, 21], 0, 17, &udp(9));
    thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            for _ in 0..50_000 {
                // A full queue is not the flood's trouble.
                let _ = send_raw(&socket, to, &flood);
            }
        });
        while !flooding.is_finished() {
            assert!(still_forwards(&lab));
        }
    });
    assert!(lab.drops("web-1", "no_ingress_rule") > 1000);
    assert!(still_forwards(&lab));
    lab.down();
}

/// Whether an allowed connection can be made: nobody listens, but who says so
/// is the other host.
fn still_forwards(lab: &Lab) -> bool {
    let seen = lab.inside("web-1", || net::tcp([10, 0, 2, 22].into(), 5201, PATIENCE));
    seen == Seen::Refused
}

/// A packet with a header of our own making.
fn ipv4(from: [u8; 4], to: [u8; 4], fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let [flags, offset] = fragment.to_be_bytes();
    let mut packet = vec![
        0x45, 0, length[0], length[1], 0x12, 0x34, flags, offset, 64, protocol, 0, 0,
    ];
    packet.extend(from);
    packet.extend(to);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// A datagram without checksum, as IPv4 permits.
fn udp(to: u16) -> Vec<u8> {
    let [high, low] = to.to_be_bytes();
    let mut datagram = vec![0x80, 1, high, low, 0, 12, 0, 0];
    datagram.extend(*b"boo!");
    datagram
}

/// A TCP segment of 20 bytes that claims a header of that many words.
fn tcp_with_offset(words: u8) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[..4].copy_from_slice(&[0x80, 1, 0x1f, 0x90]);
    segment[12] = words << 4;
    segment[13] = 2;
    segment
}
