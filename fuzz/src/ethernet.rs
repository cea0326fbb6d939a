//! Ethernet frames at both ends of a taken interface.

use std::net::IpAddr;

use sgwall::packet;
use sgwall::packet::ethernet::{self, Content, HEADER, Side};

/// The interface's own addresses.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OWN: [&str; 3] = ["10.0.0.10", "2001:db8::10", "fe80::10"];

/// The first byte says from which end the rest, a frame, comes. What is handed on
/// or judged lies within the frame, is what its header says, and never comes from the
/// workload under another station's address.
pub fn ethernet(data: &[u8]) {
    let Some((end, frame)) = data.split_first() else {
        return;
    };
    let side = if end & 1 == 0 {
        Side::Workload
    } else {
        Side::Wire
    };
    let own: Vec<IpAddr> = OWN.iter().filter_map(|text| text.parse().ok()).collect();
    let Ok(content) = ethernet::classify(frame, side, &MAC, |address| own.contains(&address))
    else {
        return;
    };
    match content {
        Content::Ip { length } => {
            assert!(HEADER + length <= frame.len());
            // Nothing is lost by leaving out what fills a frame up.
            let all = packet::parse(&frame[HEADER..]).ok();
            let part = packet::parse(&frame[HEADER..][..length]).ok();
            assert_eq!(all, part);
        }
        Content::Neighbour { length } => {
            assert!((HEADER..=frame.len()).contains(&length));
            // What is handed on is no more than what was looked at.
            let again = ethernet::classify(&frame[..length], side, &MAC, |it| own.contains(&it));
            assert_eq!(again, Ok(content));
        }
        Content::NotForUs => assert_eq!(side, Side::Wire),
    }
    if side == Side::Workload {
        assert_eq!(frame[6..12], MAC);
    }
}
