//! Flows, each the property of one interface: what identifies them, how
//! packets move them along, when they are gone (aws-semantics §3).

use std::net::IpAddr;
use std::time::Duration;

use super::groups::Seen;
use super::packet::{Payload, Quoted, Speech, TcpFlags};
use crate::model::{Direction, InterfaceIx, Model};

/// A TCP connection that isn't established yet, or is closing, idles out after
/// this. AWS documents no value (§14, 1); a minute is what stateful firewalls
/// commonly give a half-open connection.
const TCP_TRANSIENT: Duration = Duration::from_secs(60);
/// How long a TCP connection is remembered whose end both sides announced:
/// until it is acknowledged, since the last packet; then once more. Chosen.
const TCP_ENDING: Duration = Duration::from_secs(10);
/// An ICMP query; AWS documents no value (§14, 2).
const ICMP_QUERY: Duration = Duration::from_secs(30);
/// Protocols without ports: documented (§3.1).
const OTHER: Duration = Duration::from_secs(600);

/// What makes two packets parts of the same flow at one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) interface: InterfaceIx,
    /// The address on this interface's side.
    local: IpAddr,
    /// The address on the far side.
    remote: IpAddr,
    conversation: Conversation,
}

/// The part of the identity that the protocol adds. TCP and UDP are told apart
/// by ports, ICMP queries by what is asked and their identifier, all else by
/// protocol alone (§3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conversation {
    Tcp {
        local: u16,
        remote: u16,
    },
    Udp {
        local: u16,
        remote: u16,
    },
    /// `local_asks`: a question from the far side is another conversation than
    /// the answer to ours, though both carry the same identifier.
    Query {
        question: u8,
        id: u16,
        local_asks: bool,
    },
    Other(u8),
}

impl Identity {
    /// The flow that a packet would belong to, passing `interface` in
    /// `direction`; none for ICMP messages that neither ask nor answer.
    pub(super) fn of_packet(
        interface: InterfaceIx,
        direction: Direction,
        seen: Seen,
    ) -> Option<Self> {
        let ends = (seen.source, seen.destination);
        Some(Self::new(
            interface,
            direction,
            ends,
            seen.payload.speech()?,
        ))
    }

    /// Likewise for a packet that an ICMP error quotes.
    pub(super) fn of_quoted(
        interface: InterfaceIx,
        direction: Direction,
        quoted: Quoted,
    ) -> Option<Self> {
        let ends = (quoted.source, quoted.destination);
        Some(Self::new(interface, direction, ends, quoted.speech?))
    }

    fn new(
        interface: InterfaceIx,
        direction: Direction,
        (source, destination): (IpAddr, IpAddr),
        speech: Speech,
    ) -> Self {
        // Seen from the interface, the source of an outbound packet is local.
        let outbound = direction == Direction::Egress;
        let (local, remote) = if outbound {
            (source, destination)
        } else {
            (destination, source)
        };
        let sides = |source: u16, destination: u16| {
            if outbound {
                (source, destination)
            } else {
                (destination, source)
            }
        };
        let conversation = match speech {
            Speech::Tcp {
                source_port,
                destination_port,
            } => {
                let (local, remote) = sides(source_port, destination_port);
                Conversation::Tcp { local, remote }
            }
            Speech::Udp {
                source_port,
                destination_port,
            } => {
                let (local, remote) = sides(source_port, destination_port);
                Conversation::Udp { local, remote }
            }
            // An outbound question and an inbound answer belong to a question
            // of this side's; an inbound question and an outbound answer don't.
            Speech::Query { kind, id } => {
                let question = question_of(kind);
                Conversation::Query {
                    question,
                    id,
                    local_asks: (kind == question) == outbound,
                }
            }
            Speech::Other(protocol) => Conversation::Other(protocol),
        };
        Self {
            interface,
            local,
            remote,
            conversation,
        }
    }
}

/// The type of the question that a question or an answer belongs to: echo,
/// timestamp, information and address mask (RFC 792, RFC 950), ICMPv6's echo
/// (RFC 4443 §4).
fn question_of(kind: u8) -> u8 {
    match kind {
        0 => 8,
        14 => 13,
        16 => 15,
        18 => 17,
        129 => 128,
        question => question,
    }
}

/// A flow of one interface.
#[derive(Debug, Clone)]
pub(super) struct Flow {
    pub(super) identity: Identity,
    /// Tracked flows let packets pass by themselves; the packets of untracked
    /// ones are judged by the rules, each.
    pub(super) tracked: bool,
    /// The direction of the packet that opened it: that side is the initiator.
    pub(super) opened: Direction,
    last_seen: Duration,
    progress: Progress,
}

/// How far a flow has come, which decides how long it may idle.
#[derive(Debug, Clone)]
enum Progress {
    Tcp {
        state: TcpState,
        initiator: Side,
        responder: Side,
    },
    Udp {
        /// Completed exchanges: the initiator spoke, then the responder.
        exchanges: u32,
        /// The initiator has spoken since the last completed exchange.
        asked: bool,
    },
    Query,
    Other,
}

/// One side of a TCP connection, as far as its end goes.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    /// The sequence number after its FIN, if it has sent one.
    end: Option<u32>,
    /// The other side has acknowledged it.
    acknowledged: bool,
}

/// The life of a TCP connection as a bystander can tell it from headers. AWS
/// documents only that "established" has its own timeout (§3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TcpState {
    SynSent,
    SynReceived,
    Established,
    /// Met in its middle; the other side has not been heard yet.
    PickedUp,
    /// One side has sent FIN.
    Closing,
    /// Both have, and not both FINs are acknowledged.
    LastAck,
    Closed,
}

impl Flow {
    /// The flow that a packet opens which a rule let pass.
    pub(super) fn open(
        identity: Identity,
        tracked: bool,
        payload: Payload,
        direction: Direction,
        now: Duration,
    ) -> Self {
        let progress = match payload {
            Payload::Tcp { flags, .. } => {
                let mut initiator = Side::default();
                if flags.fin && !flags.rst {
                    initiator.end = Some(end_of(payload));
                }
                Progress::Tcp {
                    state: first_state(flags),
                    initiator,
                    responder: Side::default(),
                }
            }
            Payload::Udp { .. } => Progress::Udp {
                exchanges: 0,
                asked: true,
            },
            Payload::IcmpQuery { .. } => Progress::Query,
            Payload::Icmp { .. } | Payload::Other(_) | Payload::Headless(_) => Progress::Other,
        };
        Self {
            identity,
            tracked,
            opened: direction,
            last_seen: now,
            progress,
        }
    }

    /// Whether the flow has not idled out yet.
    pub(super) fn is_live(&self, model: &Model, now: Duration) -> bool {
        let Some(interface) = model.interfaces.get(self.identity.interface.ix()) else {
            return false;
        };
        let timeout = match &self.progress {
            Progress::Tcp { state, .. } => match state {
                TcpState::SynSent
                | TcpState::SynReceived
                | TcpState::PickedUp
                | TcpState::Closing => TCP_TRANSIENT,
                TcpState::Established => interface.tracking.tcp_established,
                TcpState::LastAck | TcpState::Closed => TCP_ENDING,
            },
            // §3.5: one direction only or a single request and response has
            // the short timeout, more than one the long.
            Progress::Udp {
                exchanges: 0 | 1, ..
            } => interface.tracking.udp_timeout,
            Progress::Udp { .. } => interface.tracking.udp_stream,
            Progress::Query => ICMP_QUERY,
            Progress::Other => OTHER,
        };
        now.saturating_sub(self.last_seen) < timeout
    }

    /// Whether it is a TCP connection that was reset, or ended by both sides.
    pub(super) fn is_closed(&self) -> bool {
        matches!(
            self.progress,
            Progress::Tcp {
                state: TcpState::Closed,
                ..
            }
        )
    }

    /// Takes note of a further packet of this flow.
    pub(super) fn continue_with(&mut self, payload: Payload, direction: Direction, now: Duration) {
        // Once closed it stays closed, and strays do not keep it alive.
        if self.is_closed() {
            return;
        }
        self.last_seen = now;
        let from_initiator = direction == self.opened;
        match &mut self.progress {
            Progress::Tcp {
                state,
                initiator,
                responder,
            } => {
                if from_initiator {
                    *state = next_state(*state, payload, from_initiator, initiator, responder);
                } else {
                    *state = next_state(*state, payload, from_initiator, responder, initiator);
                }
            }
            Progress::Udp { exchanges, asked } => {
                if from_initiator {
                    *asked = true;
                } else if *asked {
                    *asked = false;
                    *exchanges += 1;
                }
            }
            Progress::Query | Progress::Other => {}
        }
    }
}

/// The state in which a connection's first packet leaves it. One that starts
/// in the middle is taken up, and counts as established once the other side
/// was heard (AWS is silent, §14, 1).
fn first_state(flags: TcpFlags) -> TcpState {
    if flags.rst {
        TcpState::Closed
    } else if flags.fin {
        TcpState::Closing
    } else if flags.syn && !flags.ack {
        TcpState::SynSent
    } else if flags.syn {
        TcpState::SynReceived
    } else {
        TcpState::PickedUp
    }
}

/// The state in which a further packet leaves a connection; `speaker` sent it
/// to `listener`.
fn next_state(
    state: TcpState,
    payload: Payload,
    from_initiator: bool,
    speaker: &mut Side,
    listener: &mut Side,
) -> TcpState {
    let Payload::Tcp {
        flags,
        acknowledgement,
        ..
    } = payload
    else {
        return state;
    };
    if flags.rst {
        return TcpState::Closed;
    }
    // A FIN that is sent again ends where the first did.
    if flags.fin && speaker.end.is_none() {
        speaker.end = Some(end_of(payload));
    }
    if flags.ack
        && let Some(end) = listener.end
        && is_at_or_past(acknowledgement, end)
    {
        listener.acknowledged = true;
    }
    match (speaker.end, listener.end) {
        (Some(_), Some(_)) if speaker.acknowledged && listener.acknowledged => TcpState::Closed,
        (Some(_), Some(_)) => TcpState::LastAck,
        (Some(_), None) | (None, Some(_)) => TcpState::Closing,
        (None, None) => match state {
            TcpState::SynSent if flags.syn && flags.ack && !from_initiator => TcpState::SynReceived,
            TcpState::SynReceived if flags.ack && !flags.syn && from_initiator => {
                TcpState::Established
            }
            TcpState::PickedUp if !from_initiator => TcpState::Established,
            unchanged => unchanged,
        },
    }
}

/// The sequence number that follows a segment (RFC 9293: SYN and FIN take one
/// each), modulo 2^32.
fn end_of(payload: Payload) -> u32 {
    match payload {
        Payload::Tcp {
            flags,
            sequence,
            data,
            ..
        } => sequence
            .wrapping_add(data)
            .wrapping_add(u32::from(flags.syn))
            .wrapping_add(u32::from(flags.fin)),
        _ => 0,
    }
}

/// Whether one sequence number lies at or after another: at most half of the
/// numbers there are (RFC 9293 §3.4).
fn is_at_or_past(number: u32, other: u32) -> bool {
    number.wrapping_sub(other) < 1 << 31
}
