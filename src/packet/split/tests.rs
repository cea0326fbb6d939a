use super::*;
use crate::packet::parse;
use proptest::prelude::{Just, any, prop_oneof};

/// An IPv4 packet that may be split, with `options` (a multiple of 4 bytes)
/// and `length` bytes of payload, flags and offset as given.
fn packet(options: &[u8], length: usize, flags_and_offset: u16) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    let mut frame = vec![4 << 4 | words, 0x28, 0, 0, 0x12, 0x34, 0, 0];
    frame.extend([63, 99, 0, 0, 10, 0, 0, 1, 198, 51, 100, 7]);
    frame.extend(options);
    frame.extend((0..length).map(|i| u8::try_from(i % 251).unwrap()));
    let total = u16::try_from(frame.len()).unwrap();
    frame[2..4].copy_from_slice(&total.to_be_bytes());
    frame[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
    let header = Ipv4HeaderSlice::from_slice(&frame).unwrap().to_header();
    frame[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
    frame
}

fn fragments(frame: &[u8], mtu: u16) -> Result<Vec<Vec<u8>>, NotSplit> {
    let mut sent = Vec::new();
    let result = split(frame, mtu, &mut vec![0; usize::from(mtu)], |fragment| {
        sent.push(fragment.to_vec());
    });
    if result.is_err() {
        assert!(sent.is_empty(), "nothing sent");
    }
    result.map(|()| sent)
}

/// The payload of the datagram's part that was split, put together again by
/// the fragments' own offsets, after every header was found right.
fn reassembled(sent: &[Vec<u8>], mtu: u16, whole: &[u8]) -> Vec<u8> {
    let whole = Ipv4HeaderSlice::from_slice(whole).unwrap();
    let mut payload = Vec::new();
    let start = whole.fragments_offset().byte_offset();
    for (i, fragment) in sent.iter().enumerate() {
        let last = i + 1 == sent.len();
        assert!(fragment.len() <= usize::from(mtu));
        let header = Ipv4HeaderSlice::from_slice(fragment).unwrap();
        let owned = header.to_header();
        assert_eq!(owned.header_checksum, owned.calc_header_checksum());
        assert_eq!(usize::from(header.total_len()), fragment.len());
        assert_eq!(header.identification(), whole.identification());
        assert_eq!(header.ttl(), whole.ttl());
        assert_eq!(header.protocol(), whole.protocol());
        assert_eq!(header.source(), whole.source());
        assert_eq!(header.destination(), whole.destination());
        assert_eq!(header.dcp(), whole.dcp());
        assert!(!header.dont_fragment());
        assert_eq!(header.more_fragments(), !last || whole.more_fragments());
        let offset = usize::from(header.fragments_offset().byte_offset());
        assert_eq!(offset, usize::from(start) + payload.len(), "in order");
        payload.extend(&fragment[header.slice().len()..]);
        assert!(last || payload.len() % 8 == 0);
    }
    payload
}

#[test]
fn the_parts_make_up_the_whole() {
    for (length, mtu, parts) in [
        (1481, 1500, 2),
        (2960, 1500, 2),
        (2961, 1500, 3),
        (8981, 1500, 7),
        (65_515, 1500, 45),
        (65_515, 1280, 53),
    ] {
        let frame = packet(&[], length, 0);
        let sent = fragments(&frame, mtu).unwrap();
        assert_eq!(reassembled(&sent, mtu, &frame), &frame[20..]);
        assert_eq!(sent.len(), parts, "{length} {mtu}");
    }
}

#[test]
fn the_last_part_may_fill_the_mtu() {
    // 1,481 bytes fit a packet of 1,501 bytes, and aren't a multiple of 8.
    let frame = packet(&[], 1480 + 1481, 0);
    let sent = fragments(&frame, 1501).unwrap();
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[1].len(), 1501);
}

#[test]
fn what_fits_is_sent_as_it_is() {
    for flags in [0, 0x4000, 0x2000, 0x0007] {
        let frame = packet(&[], 1480, flags);
        assert_eq!(fragments(&frame, 1500).unwrap(), [frame]);
    }
    let mut frame = packet(&[], 100, 0);
    frame.extend([0; 30]);
    assert_eq!(fragments(&frame, 120).unwrap(), [&frame[..120]]);
}

#[test]
fn a_fragment_is_split_into_fragments_of_its_datagram() {
    let middle = packet(&[], 4000, 0x2000 | 500);
    let sent = fragments(&middle, 1500).unwrap();
    assert_eq!(reassembled(&sent, 1500, &middle), &middle[20..]);
    let last = packet(&[], 4001, 500);
    let sent = fragments(&last, 1500).unwrap();
    assert_eq!(reassembled(&sent, 1500, &last), &last[20..]);
    let parsed = parse(sent.last().unwrap()).unwrap().fragment.unwrap();
    assert!(!parsed.more);
    assert_eq!(parsed.offset + parsed.length, 8001);
}

#[test]
fn options_go_where_their_copied_flag_says() {
    // Record route (not copied), no-operation, loose source route (copied),
    // router alert (copied), end.
    let mut options = vec![7, 7, 4, 0, 0, 0, 0, 1];
    options.extend([131, 7, 4, 10, 0, 0, 9]);
    options.extend([148, 4, 0, 0, 0]);
    assert_eq!(options.len(), 20);
    let frame = packet(&options, 3000, 0);
    let sent = fragments(&frame, 1500).unwrap();
    assert_eq!(reassembled(&sent, 1500, &frame), &frame[40..]);
    assert_eq!(&sent[0][20..40], &options[..]);
    for fragment in &sent[1..] {
        let header = Ipv4HeaderSlice::from_slice(fragment).unwrap();
        let copied = [131, 7, 4, 10, 0, 0, 9, 148, 4, 0, 0, 0];
        assert_eq!(header.options(), copied);
    }
}

#[test]
fn options_to_copy_are_padded_to_whole_words() {
    let frame = packet(&[131, 3, 4, 0], 3000, 0);
    for fragment in fragments(&frame, 1500).unwrap() {
        let header = Ipv4HeaderSlice::from_slice(&fragment).unwrap();
        assert_eq!(header.options(), [131, 3, 4, 0]);
    }
    // What stands after the end is no option.
    let frame = packet(&[0, 131, 3, 4], 3000, 0);
    let sent = fragments(&frame, 1500).unwrap();
    assert_eq!(sent[1][0], 0x45);
}

#[test]
fn what_may_not_be_split_is_not() {
    let long = packet(&[], 3000, 0);
    assert_eq!(fragments(&packet(&[], 3000, 0x4000), 1500), Err(NotSplit));
    assert_eq!(fragments(&[], 1500), Err(NotSplit));
    let mut v6 = vec![0x60, 0, 0, 0, 0x0b, 0xb8, 17, 64];
    v6.resize(3040, 0);
    assert_eq!(fragments(&v6, 1500), Err(NotSplit));
    for end in 0..long.len() {
        assert_eq!(fragments(&long[..end], 1500), Err(NotSplit), "{end}");
    }
    for mtu in 0..28 {
        assert_eq!(fragments(&long, mtu), Err(NotSplit), "{mtu}");
    }
    assert!(fragments(&long, 28).is_ok());
    let nothing = split(&long, 1500, &mut [0; 1499], |_| panic!("sent"));
    assert_eq!(nothing, Err(NotSplit));
}

#[test]
fn options_that_contradict_themselves_are_not_copied_nor_any_after_them() {
    for wrong in [
        [7, 0, 131, 2],
        [7, 1, 131, 2],
        [7, 5, 131, 2],
        [1, 1, 1, 7],
        [131, 255, 0, 0],
    ] {
        let frame = packet(&[[148, 4, 0, 0], wrong].concat(), 3000, 0);
        let sent = fragments(&frame, 1500).unwrap();
        assert_eq!(reassembled(&sent, 1500, &frame), &frame[28..]);
        for fragment in &sent[1..] {
            let header = Ipv4HeaderSlice::from_slice(fragment).unwrap();
            assert_eq!(header.options(), [148, 4, 0, 0], "{wrong:?}");
        }
    }
}

#[test]
fn impossible_fragments_are_not_split() {
    // Ends beyond the longest datagram; not the last and no multiple of 8.
    assert_eq!(fragments(&packet(&[], 3000, 0x1f40), 1500), Err(NotSplit));
    assert_eq!(fragments(&packet(&[], 3001, 0x2000), 1500), Err(NotSplit));
}

proptest::proptest! {
    #[test]
    fn any_split_is_right_or_none(
        words in proptest::collection::vec(any::<[u8; 4]>(), 0..=10),
        length in 1usize..4000,
        flags in prop_oneof![Just(0u16), Just(0x2000), any::<u16>()],
        mtu in 0u16..2000,
    ) {
        let frame = packet(&words.concat(), length, flags);
        if let Ok(sent) = fragments(&frame, mtu) {
            let header = 20 + words.len() * 4;
            if sent.len() > 1 {
                assert_eq!(reassembled(&sent, mtu, &frame), &frame[header..]);
            } else {
                assert_eq!(sent, [frame]);
            }
        }
    }

    #[test]
    fn random_bytes_do_no_harm(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
        mtu in 20u16..200,
    ) {
        if let Some(first) = bytes.first_mut() {
            *first = 4 << 4 | *first & 0x0f;
        }
        if bytes.len() > 7 {
            bytes[2] = 0;
            bytes[6] &= 0x3f;
        }
        let _ = fragments(&bytes, mtu);
    }
}
