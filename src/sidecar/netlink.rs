//! Netlink as the sidecar needs it: whole messages, kept as the kernel sent
//! them, so that what is not understood is not lost when it is sent back.
//!
//! Typed messages would refuse or forget an attribute that a newer kernel
//! adds. Here a message is a fixed head and a list of attributes; the few that
//! matter are looked up by number.

use std::io;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, Nla, NlasIterator,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

/// `nfgenmsg`: family, version, resource (`linux/netfilter/nfnetlink.h`).
const NETFILTER_HEAD: usize = 4;
/// How often a dump that was overtaken by a change is asked for again.
const DUMP_ATTEMPTS: usize = 10;
/// The kernel answers before `send` returns; this bounds what must not happen.
const PATIENCE: i64 = 5;
/// Longest datagram of a dump: the kernel takes up to 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// One attribute; nested ones hold attributes in their value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attribute {
    /// Its number, which depends on the message, with the flag of nested ones.
    number: u16,
    /// Its value, without padding.
    pub value: Vec<u8>,
}

/// A message: a head of fixed length, which depends on the kind, and attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// `nlmsg_type`.
    pub kind: u16,
    /// The structure that every message of the kind begins with.
    pub head: Vec<u8>,
    /// What follows it.
    pub attributes: Vec<Attribute>,
}

/// A message that was refused, or a conversation that failed.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Which of the messages sent, counted from 0; none where all failed.
    pub message: Option<usize>,
    /// What the system answered.
    pub source: io::Error,
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    socket: netlink_sys::Socket,
    sequence: u32,
}

impl Attribute {
    /// An attribute of any bytes.
    pub fn new(kind: u16, value: impl Into<Vec<u8>>) -> Self {
        Self {
            number: kind,
            value: value.into(),
        }
    }

    /// A number in the machine's own byte order, as rtnetlink has them.
    pub fn u32(kind: u16, value: u32) -> Self {
        Self::new(kind, value.to_ne_bytes())
    }

    /// A number in network byte order, as nf_tables has them.
    pub fn be32(kind: u16, value: u32) -> Self {
        Self::new(kind, value.to_be_bytes())
    }

    /// A text with its closing zero.
    pub fn text(kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        Self::new(kind, bytes)
    }

    /// Attributes within an attribute.
    pub fn nest(kind: u16, inner: &[Self]) -> Self {
        let mut value = vec![0; inner.buffer_len()];
        inner.emit(&mut value);
        Self::new(kind | netlink_packet_core::NLA_F_NESTED, value)
    }

    /// The number, without flags.
    pub fn kind(&self) -> u16 {
        self.number & netlink_packet_core::NLA_TYPE_MASK
    }

    /// The attributes within; what can't be read is left out.
    pub fn inner(&self) -> Vec<Self> {
        attributes(&self.value).unwrap_or_default()
    }

    /// A number in the machine's byte order.
    pub fn to_u32(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.value.first_chunk()?))
    }

    /// A number in network byte order.
    pub fn to_be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.value.first_chunk()?))
    }

    /// A text up to its closing zero.
    pub fn to_text(&self) -> String {
        let text = self.value.split(|&byte| byte == 0).next();
        String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
    }
}

impl Nla for Attribute {
    fn value_len(&self) -> usize {
        self.value.len()
    }

    fn kind(&self) -> u16 {
        self.number
    }

    fn emit_value(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.value);
    }
}

impl Message {
    /// A message without attributes.
    pub fn new(kind: u16, head: &[u8]) -> Self {
        Self {
            kind,
            head: head.to_vec(),
            attributes: Vec::new(),
        }
    }

    /// The same with one more attribute.
    pub fn with(mut self, attribute: Attribute) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// The first attribute of a number.
    pub fn get(&self, kind: u16) -> Option<&Attribute> {
        find(&self.attributes, kind)
    }

    /// A byte of the head; 0 where the head is too short.
    pub fn head_u8(&self, at: usize) -> u8 {
        self.head.get(at).copied().unwrap_or(0)
    }

    /// Four bytes of the head in the machine's order; 0 where it is too short.
    pub fn head_u32(&self, at: usize) -> u32 {
        self.head
            .get(at..)
            .and_then(<[u8]>::first_chunk)
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// Changes bytes of the head; does nothing where the head is too short.
    pub fn set_head(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.head.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.head.len().next_multiple_of(4) + self.attributes.as_slice().buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..self.head.len()].copy_from_slice(&self.head);
        let start = self.head.len().next_multiple_of(4);
        self.attributes.as_slice().emit(&mut buffer[start..]);
    }
}

impl NetlinkDeserializable for Message {
    type Error = io::Error;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> io::Result<Self> {
        let head = head_length(header.message_type);
        let (head, rest) = payload
            .split_at_checked(head)
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            kind: header.message_type,
            head: head.to_vec(),
            attributes: attributes(rest)?,
        })
    }
}

impl Socket {
    /// Opens a socket of a netlink protocol (`NETLINK_ROUTE`, …).
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        socket.bind_auto()?;
        setsockopt(
            &socket,
            sockopt::ReceiveTimeout,
            &TimeVal::seconds(PATIENCE),
        )?;
        if protocol == NETLINK_NETFILTER {
            // A batch is one message to the socket: it must fit whole. The limit
            // may be passed with CAP_NET_ADMIN; without it nothing works anyway.
            let _ = setsockopt(&socket, sockopt::SndBufForce, &(4 << 20));
            let _ = setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20));
        }
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends messages in one piece, with their flags beside `NLM_F_REQUEST`, and
    /// waits until the kernel has acknowledged the one that is `last`. Where it
    /// refuses one, that is the answer.
    pub fn send(&mut self, messages: &[(Message, u16)], last: usize) -> Result<(), Refusal> {
        let talk = |source| Refusal {
            message: None,
            source,
        };
        let first = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        for (i, (message, flags)) in messages.iter().enumerate() {
            let ack = if i == last { NLM_F_ACK } else { 0 };
            self.sequence = self.sequence.wrapping_add(1);
            append(&mut buffer, self.sequence, flags | ack, message.clone());
        }
        self.socket.send(&buffer, 0).map_err(talk)?;
        let wanted = first.wrapping_add(u32::try_from(last).unwrap_or(0));
        let mut refusal = None;
        // Refusals come in the order of the messages and before the
        // acknowledgement, unless the whole was refused.
        loop {
            for answer in self.receive().map_err(talk)? {
                let NetlinkPayload::Error(error) = answer.payload else {
                    continue;
                };
                let sequence = answer.header.sequence_number;
                let asked = sequence.wrapping_sub(first) as usize;
                if asked >= messages.len() {
                    continue;
                }
                if error.code.is_some() && refusal.is_none() {
                    refusal = Some(Refusal {
                        message: Some(asked),
                        source: error.to_io(),
                    });
                }
                if sequence == wanted || refusal.is_some() {
                    self.drain();
                    return refusal.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// All that the kernel has of a kind.
    pub fn dump(&mut self, request: &Message) -> io::Result<Vec<Message>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(request)? {
                return Ok(found);
            }
        }
        Err(Errno::EINTR.into())
    }

    /// None: something changed meanwhile, and what was found may be half of each.
    fn dump_once(&mut self, request: &Message) -> io::Result<Option<Vec<Message>>> {
        const NLM_F_DUMP_INTR: u16 = netlink_packet_core::NLM_F_DUMP_INTR;
        self.sequence = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        append(&mut buffer, self.sequence, NLM_F_DUMP, request.clone());
        self.socket.send(&buffer, 0)?;
        let mut found = Vec::new();
        let mut whole = true;
        loop {
            for answer in self.receive()? {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(whole.then_some(found)),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    _ => {}
                }
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<NetlinkMessage<Message>>> {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        let length = self.socket.recv(&mut buffer, libc::MSG_TRUNC)?;
        if length > buffer.len() {
            return Err(Errno::EMSGSIZE.into());
        }
        messages(&buffer)
    }

    /// Throws away what is still to be read, so that the next answer is the next's.
    fn drain(&self) {
        let mut buffer = Vec::with_capacity(DATAGRAM);
        while self
            .socket
            .recv(&mut buffer, libc::MSG_DONTWAIT | libc::MSG_TRUNC)
            .is_ok()
        {
            buffer.clear();
        }
    }
}

/// Messages one after the other, as they go over a socket; the state is kept so.
pub(super) fn to_bytes(messages: &[Message]) -> Vec<u8> {
    let mut buffer = Vec::new();
    for message in messages {
        append(&mut buffer, 0, 0, message.clone());
    }
    buffer
}

/// The contrary of [`to_bytes`].
pub(super) fn from_bytes(bytes: &[u8]) -> io::Result<Vec<Message>> {
    let messages = messages(bytes)?.into_iter();
    messages
        .map(|message| match message.payload {
            NetlinkPayload::InnerMessage(message) => Ok(message),
            _ => Err(io::ErrorKind::InvalidData.into()),
        })
        .collect()
}

/// The first attribute of a number.
pub(super) fn find(attributes: &[Attribute], kind: u16) -> Option<&Attribute> {
    attributes.iter().find(|this| this.kind() == kind)
}

fn append(buffer: &mut Vec<u8>, sequence: u32, flags: u16, message: Message) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut whole = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    whole.finalize();
    let start = buffer.len();
    buffer.resize(start + whole.buffer_len().next_multiple_of(4), 0);
    whole.serialize(&mut buffer[start..]);
}

fn messages(bytes: &[u8]) -> io::Result<Vec<NetlinkMessage<Message>>> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length.max(4)..).unwrap_or_default();
        found.push(message);
    }
    Ok(found)
}

fn attributes(bytes: &[u8]) -> io::Result<Vec<Attribute>> {
    NlasIterator::new(bytes)
        .map(|found| {
            let found = found.map_err(io::Error::other)?;
            let nested = if found.nested_flag() {
                netlink_packet_core::NLA_F_NESTED
            } else {
                0
            };
            Ok(Attribute::new(found.kind() | nested, found.value()))
        })
        .collect()
}

/// How long the fixed part of a message is: `ifinfomsg`, `ifaddrmsg`, `rtmsg`,
/// `ndmsg` (`linux/rtnetlink.h`) by their groups of four kinds, and `nfgenmsg`.
fn head_length(kind: u16) -> usize {
    match kind {
        16..=19 => 16,
        20..=23 => 8,
        24..=31 => 12,
        _ => NETFILTER_HEAD,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message::new(24, &[2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0])
            .with(Attribute::new(1, [10, 0, 0, 1]))
            .with(Attribute::nest(8, &[Attribute::u32(2, 1400)]))
            .with(Attribute::text(900, "unknown to us"))
    }

    #[test]
    fn what_is_kept_comes_back_as_it_was_with_what_is_not_understood() {
        let kept = vec![message(), message()];
        assert_eq!(from_bytes(&to_bytes(&kept)).unwrap(), kept);
    }

    #[test]
    fn bytes_that_are_no_messages_are_an_error_and_never_a_panic() {
        let bytes = to_bytes(&[message(), message()]);
        for length in 0..bytes.len() {
            let _ = from_bytes(&bytes[..length]);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 3, 4, 15, 16, 0x7f, 0x80, 0xff] {
                let mut bent = bytes.clone();
                bent[at] = value;
                let _ = from_bytes(&bent);
            }
        }
    }
}
