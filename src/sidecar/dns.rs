//! DNS messages: queries for the addresses of a name, and the meaning of responses.

use std::net::IpAddr;
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, Question, RCODE, TYPE};

/// Maximum number of CNAME records that are followed. A decision; resolvers follow 11 to 16.
const MAX_ALIASES: usize = 16;
/// Length of a message's header (RFC 1035 §4.1.1).
const HEADER: usize = 12;
/// Length of the shortest question: the root, a type and a class (RFC 1035 §4.1.2).
const SHORTEST_QUESTION: usize = 5;
/// Length of the shortest record: a pointer or the root, and ten bytes (RFC 1035 §4.1.3).
const SHORTEST_RECORD: usize = 11;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4, in A records.
    V4,
    /// IPv6, in AAAA records.
    V6,
}

impl Family {
    fn record(self) -> TYPE {
        match self {
            Self::V4 => TYPE::A,
            Self::V6 => TYPE::AAAA,
        }
    }
}

/// The meaning of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The name has these addresses, each with its TTL.
    Addresses(Vec<(IpAddr, Duration)>),
    /// The name doesn't exist (NXDOMAIN), or has no address of this family (NODATA).
    Nothing(&'static str),
    /// The server can't or won't answer.
    Refused(String),
    /// The response doesn't fit in a datagram: ask over TCP.
    Truncated,
}

/// Returns a query for a name's addresses; `None` if the name is invalid.
pub(super) fn question(id: u16, name: &str, family: Family) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = Name::new(name).ok()?;
    let question = Question::new(name, family.record().into(), CLASS::IN.into(), false);
    packet.questions.push(question);
    packet.build_bytes_vec().ok()
}

/// Returns the meaning of a message as a response to a query; `None` if it isn't a response to
/// that query, or is malformed.
pub(super) fn answer(bytes: &[u8], id: u16, name: &str, family: Family) -> Option<Meaning> {
    let mut bytes = bytes.to_vec();
    // Only questions and answers are read, so errors in the other sections do no harm.
    bytes.get_mut(8..HEADER)?.fill(0);
    let count = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    // The parser allocates memory for the announced number of records, so that number must fit.
    if HEADER + count(4) * SHORTEST_QUESTION + count(6) * SHORTEST_RECORD > bytes.len() {
        return None;
    }
    let packet = Packet::parse(&bytes).ok()?;
    let name = Name::new(name).ok()?;
    let [asked] = packet.questions.as_slice() else {
        return None;
    };
    let is_answer = packet.has_flags(PacketFlag::RESPONSE)
        && packet.opcode() == OPCODE::StandardQuery
        && packet.id() == id
        && asked.qname == name
        && asked.qtype == family.record().into()
        && asked.qclass == CLASS::IN.into();
    if !is_answer {
        return None;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Some(Meaning::Truncated);
    }
    Some(match packet.rcode() {
        RCODE::NoError => addresses(&packet, &name, family),
        RCODE::NameError => Meaning::Nothing("there is no such name"),
        RCODE::ServerFailure => Meaning::Refused("the server failed (SERVFAIL)".to_owned()),
        RCODE::Refused => Meaning::Refused("the server refused (REFUSED)".to_owned()),
        other => Meaning::Refused(format!("the server answered {other:?}")),
    })
}

fn addresses(packet: &Packet<'_>, name: &Name<'_>, family: Family) -> Meaning {
    let mut owner = name;
    let mut ttl = u32::MAX;
    for _ in 0..=MAX_ALIASES {
        let mut found = Vec::new();
        let mut alias = None;
        for record in &packet.answers {
            if record.name != *owner || record.class != CLASS::IN {
                continue;
            }
            // RFC 2181 §8: a TTL with the highest bit set is zero.
            let own = u32::try_from(record.ttl.cast_signed()).unwrap_or(0);
            let address = match (&record.rdata, family) {
                (RData::A(a), Family::V4) => IpAddr::V4(a.address.into()),
                (RData::AAAA(a), Family::V6) => IpAddr::V6(a.address.into()),
                (RData::CNAME(target), _) => {
                    alias.get_or_insert((&target.0, own));
                    continue;
                }
                _ => continue,
            };
            found.push((address, Duration::from_secs(ttl.min(own).into())));
        }
        if !found.is_empty() {
            return Meaning::Addresses(found);
        }
        let Some((target, own)) = alias else {
            return nothing(packet);
        };
        owner = target;
        ttl = ttl.min(own);
    }
    Meaning::Refused(format!("more than {MAX_ALIASES} aliases (CNAME)"))
}

/// Returns the meaning of a response without addresses. A server that is neither authoritative
/// nor recursive, and returns no alias either, doesn't know.
fn nothing(packet: &Packet<'_>) -> Meaning {
    let knows = [
        PacketFlag::AUTHORITATIVE_ANSWER,
        PacketFlag::RECURSION_AVAILABLE,
    ];
    if packet.answers.is_empty() && !knows.into_iter().any(|flag| packet.has_flags(flag)) {
        return Meaning::Refused("the server resolves no names for others".to_owned());
    }
    Meaning::Nothing("it has no address")
}
