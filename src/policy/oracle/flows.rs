//! Flows, each the property of one interface: what identifies them, how
//! packets move them along, when they are gone (aws-semantics §3).

use std::net::IpAddr;
use std::time::Duration;

use super::groups::Seen;
use super::packet::{Payload, Quoted, Speech, TcpFlags};
use crate::model::{Direction, EntityIx, InterfaceIx, Model};

/// Idle timeout of a TCP connection that isn't established yet or that both sides have ended, and
/// the time after a reset within which both sides must send a packet. AWS documents no value
/// (§14, 1); a minute is what stateful firewalls
/// commonly give a half-open connection.
const TCP_TRANSIENT: Duration = Duration::from_secs(60);
/// How long a closed TCP connection is remembered. Chosen.
const TCP_CLOSED: Duration = Duration::from_secs(10);
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
    /// The entity that sent that packet.
    pub(super) began: EntityIx,
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
    /// The sequence number after its last SYN or FIN.
    end: u32,
    /// True if a FIN was seen. Until the other side acknowledges it, it may be forged.
    finished: bool,
    /// The other side has acknowledged its FIN: exactly, as nothing follows it.
    acknowledged: bool,
}

/// The life of a TCP connection as a bystander can tell it from headers. AWS
/// documents only that "established" has its own timeout (§3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TcpState {
    SynSent,
    SynReceived,
    /// Includes half-closed connections (RFC 5382 REQ-5).
    Established,
    /// Met in its middle; the other side has not been heard yet.
    PickedUp,
    /// Reset by a segment that may be forged, with the sides that have sent a packet since (RFC
    /// 6146 §3.5.2.2).
    Reset {
        initiator: bool,
        responder: bool,
    },
    /// Both sides have sent a FIN, the later of which acknowledges the earlier.
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
        began: EntityIx,
        now: Duration,
    ) -> Self {
        let progress = match payload {
            Payload::Tcp { flags, .. } => Progress::Tcp {
                state: first_state(flags),
                initiator: Side {
                    end: end_of(payload),
                    finished: flags.fin && !flags.rst,
                    acknowledged: false,
                },
                responder: Side::default(),
            },
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
            began,
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
                | TcpState::Reset { .. }
                | TcpState::LastAck => TCP_TRANSIENT,
                TcpState::Established => interface.tracking.tcp_established,
                TcpState::Closed => TCP_CLOSED,
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

    /// True if it is a TCP connection that is closed.
    pub(super) fn is_closed(&self) -> bool {
        matches!(
            self.progress,
            Progress::Tcp {
                state: TcpState::Closed,
                ..
            }
        )
    }

    /// True if it is a TCP connection that was reset and is not established again.
    pub(super) fn is_reset(&self) -> bool {
        matches!(
            self.progress,
            Progress::Tcp {
                state: TcpState::Reset { .. },
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
        let was_reset = self.is_reset();
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
        // Packets of one side don't extend the 60 s after a reset.
        if !(was_reset && self.is_reset()) {
            self.last_seen = now;
        }
    }
}

/// The state in which a connection's first packet leaves it. One that starts
/// in the middle is taken up, and counts as established once the other side
/// was heard (AWS is silent, §14, 1).
fn first_state(flags: TcpFlags) -> TcpState {
    if flags.rst {
        RESET
    } else if flags.syn && !flags.ack {
        TcpState::SynSent
    } else {
        TcpState::PickedUp
    }
}

/// The state directly after a reset.
const RESET: TcpState = TcpState::Reset {
    initiator: false,
    responder: false,
};

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
    let end = end_of(payload);
    let acknowledges_end = flags.ack && acknowledgement == listener.end;
    if flags.rst {
        // An attacker can't guess the end of the refused SYN or of a side's FIN.
        let refuses_syn = state == TcpState::SynSent && !from_initiator;
        let knows = (refuses_syn || listener.finished) && acknowledges_end
            || speaker.acknowledged && end == speaker.end;
        return match state {
            _ if knows => TcpState::Closed,
            TcpState::Reset { .. } => state,
            _ => RESET,
        };
    }

    if listener.finished && acknowledges_end {
        listener.acknowledged = true;
    }
    // The last FIN of a side counts, until one is confirmed.
    let confirmed = speaker.acknowledged || state == TcpState::LastAck;
    if flags.fin && !confirmed {
        speaker.finished = true;
        speaker.end = end;
    } else if flags.syn && !flags.ack && from_initiator && state == TcpState::SynSent {
        speaker.end = end;
    } else if !flags.fin && !flags.syn && !confirmed && is_past(end, speaker.end) {
        // Data follows, so the FIN was forged.
        speaker.finished = false;
    }

    if speaker.acknowledged && listener.acknowledged {
        return TcpState::Closed;
    }
    if flags.fin && listener.acknowledged && acknowledges_end {
        return TcpState::LastAck;
    }
    match state {
        TcpState::SynSent if flags.ack && !from_initiator => TcpState::SynReceived,
        TcpState::SynReceived if flags.ack && !flags.syn && from_initiator => TcpState::Established,
        TcpState::PickedUp if !from_initiator => TcpState::Established,
        TcpState::Reset {
            initiator,
            responder,
        } if !flags.syn => {
            let initiator = initiator || from_initiator;
            let responder = responder || !from_initiator;
            if initiator && responder {
                TcpState::Established
            } else {
                TcpState::Reset {
                    initiator,
                    responder,
                }
            }
        }
        unchanged => unchanged,
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

/// Returns true if one sequence number comes after another: by less than half of the number space
/// (RFC 9293 §3.4).
fn is_past(number: u32, other: u32) -> bool {
    (1..1 << 31).contains(&number.wrapping_sub(other))
}
