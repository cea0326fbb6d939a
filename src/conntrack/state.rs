//! What is remembered of a flow besides its rule, in one byte, and how long a
//! flow in that state may be idle.
//!
//! AWS documents only the timeouts of established TCP, of UDP and of other
//! protocols (aws-semantics §3.1, §3.5). The others are decisions: a
//! connection that is opening or closing has 60 s, one that both sides have
//! ended 10 s, a closed one is remembered for 10 s, an ICMP question for 30 s.

use crate::model::{Tracking, protocol};
use crate::packet::{Segment, TcpFlags};

/// Idle time of a TCP connection that is opening or closing. A decision.
const TCP_TRANSIENT: u64 = 60_000;
/// Idle time of a TCP connection whose last acknowledgements are under way, and
/// time for which a closed one is remembered. A decision.
const TCP_CLOSED: u64 = 10_000;
/// Idle time of an ICMP question. A decision.
const ICMP: u64 = 30_000;
/// Idle time of protocols without ports (aws-semantics §3.1: 600 s).
const OTHER: u64 = 600_000;

/// A flow's state, by protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Tcp(TcpPhase, Finished),
    Udp(Exchanges),
    Icmp,
    Other,
}

/// How far a TCP connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum TcpPhase {
    SynSent = 0,
    SynReceived = 1,
    Established = 2,
    /// One side has sent a FIN.
    Closing = 3,
    /// Reset, or ended by both sides and acknowledged by both.
    Closed = 4,
    /// Met in its middle, and only one side heard so far.
    PickedUp = 5,
    /// Both sides have sent a FIN, not both are acknowledged.
    LastAck = 6,
}

/// Which sides of a TCP connection have sent a FIN, and whether it was
/// acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Finished {
    initiator: bool,
    responder: bool,
    initiator_acknowledged: bool,
    responder_acknowledged: bool,
}

/// How many times a UDP request was answered, up to the two that make a
/// stream, and whether a request is waiting now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exchanges {
    complete: u8,
    waiting: bool,
}

/// Completed exchanges that make a UDP stream (aws-semantics §3.5: more than
/// one request and response).
const STREAM: u8 = 2;

const PHASE: u8 = 0x0f;
const INITIATOR_FINISHED: u8 = 0x10;
const RESPONDER_FINISHED: u8 = 0x20;
const INITIATOR_ACKNOWLEDGED: u8 = 0x40;
const RESPONDER_ACKNOWLEDGED: u8 = 0x80;
const WAITING: u8 = 0x80;

/// The byte of an established TCP connection that no side has ended.
pub(super) const ESTABLISHED: u8 = TcpPhase::Established as u8;

impl State {
    /// The state after a flow's first packet. A connection may be met in its
    /// middle (the appliance was restarted, a rule came later): then it counts
    /// as established once the other side was heard too. Until then it has no
    /// more time than one that is opening, or stray packets that nobody answers
    /// would fill the table for days.
    pub(super) fn opened_by(protocol_number: u8, flags: &TcpFlags) -> Self {
        match protocol_number {
            protocol::TCP => {
                let finished = Finished {
                    initiator: flags.fin && !flags.rst,
                    ..Finished::default()
                };
                let phase = match flags {
                    TcpFlags { rst: true, .. } => TcpPhase::Closed,
                    TcpFlags { fin: true, .. } => TcpPhase::Closing,
                    TcpFlags {
                        syn: true,
                        ack: false,
                        ..
                    } => TcpPhase::SynSent,
                    TcpFlags { syn: true, .. } => TcpPhase::SynReceived,
                    _ => TcpPhase::PickedUp,
                };
                Self::Tcp(phase, finished)
            }
            protocol::UDP => Self::Udp(Exchanges {
                complete: 0,
                waiting: true,
            }),
            protocol::ICMP | protocol::ICMPV6 => Self::Icmp,
            _ => Self::Other,
        }
    }

    /// The state after another packet of the flow; `fins` are the sequence
    /// numbers after the initiator's and the responder's FIN, as far as they
    /// have sent one.
    pub(super) fn after(self, segment: &Segment, from_initiator: bool, fins: [u32; 2]) -> Self {
        match self {
            Self::Tcp(phase, finished) => {
                let finished = finished.after(segment, from_initiator, fins);
                Self::Tcp(
                    next_phase(phase, finished, segment.flags, from_initiator),
                    finished,
                )
            }
            Self::Udp(exchanges) => Self::Udp(match (from_initiator, exchanges.waiting) {
                (true, _) => Exchanges {
                    waiting: true,
                    ..exchanges
                },
                (false, true) => Exchanges {
                    complete: STREAM.min(exchanges.complete + 1),
                    waiting: false,
                },
                (false, false) => exchanges,
            }),
            Self::Icmp | Self::Other => self,
        }
    }

    /// How long the flow may be idle, in milliseconds.
    pub(super) fn timeout(self, tracking: &Tracking) -> u64 {
        let millis = |duration: std::time::Duration| super::Millis::from(duration).0;
        match self {
            Self::Tcp(TcpPhase::Established, _) => millis(tracking.tcp_established),
            Self::Tcp(TcpPhase::Closed | TcpPhase::LastAck, _) => TCP_CLOSED,
            Self::Tcp(_, _) => TCP_TRANSIENT,
            Self::Udp(exchanges) if exchanges.complete >= STREAM => millis(tracking.udp_stream),
            Self::Udp(_) => millis(tracking.udp_timeout),
            Self::Icmp => ICMP,
            Self::Other => OTHER,
        }
    }

    /// Whether the state in `bits` is that of a closed connection; without
    /// taking it apart, as it is asked for every packet.
    #[inline]
    pub(super) fn is_closed_in(protocol_number: u8, bits: u8) -> bool {
        protocol_number == protocol::TCP && bits & PHASE == TcpPhase::Closed as u8
    }

    /// Whether it is a TCP connection that was reset or closed from both sides.
    pub(super) fn is_closed(self) -> bool {
        matches!(self, Self::Tcp(TcpPhase::Closed, _))
    }

    /// Whether the FIN of that side has been seen.
    pub(super) fn has_finished(self, initiator: bool) -> bool {
        matches!(self, Self::Tcp(_, finished) if finished.of(initiator))
    }

    pub(super) fn bits(self) -> u8 {
        match self {
            Self::Tcp(phase, finished) => {
                phase as u8
                    | flag(finished.initiator, INITIATOR_FINISHED)
                    | flag(finished.responder, RESPONDER_FINISHED)
                    | flag(finished.initiator_acknowledged, INITIATOR_ACKNOWLEDGED)
                    | flag(finished.responder_acknowledged, RESPONDER_ACKNOWLEDGED)
            }
            Self::Udp(exchanges) => exchanges.complete | flag(exchanges.waiting, WAITING),
            Self::Icmp | Self::Other => 0,
        }
    }

    pub(super) fn from_bits(protocol_number: u8, bits: u8) -> Self {
        match protocol_number {
            protocol::TCP => {
                let phase = match bits & PHASE {
                    0 => TcpPhase::SynSent,
                    1 => TcpPhase::SynReceived,
                    2 => TcpPhase::Established,
                    3 => TcpPhase::Closing,
                    5 => TcpPhase::PickedUp,
                    6 => TcpPhase::LastAck,
                    _ => TcpPhase::Closed,
                };
                let finished = Finished {
                    initiator: bits & INITIATOR_FINISHED != 0,
                    responder: bits & RESPONDER_FINISHED != 0,
                    initiator_acknowledged: bits & INITIATOR_ACKNOWLEDGED != 0,
                    responder_acknowledged: bits & RESPONDER_ACKNOWLEDGED != 0,
                };
                Self::Tcp(phase, finished)
            }
            protocol::UDP => Self::Udp(Exchanges {
                complete: bits & !WAITING,
                waiting: bits & WAITING != 0,
            }),
            protocol::ICMP | protocol::ICMPV6 => Self::Icmp,
            _ => Self::Other,
        }
    }
}

fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

impl Finished {
    fn of(self, initiator: bool) -> bool {
        if initiator {
            self.initiator
        } else {
            self.responder
        }
    }

    fn after(mut self, segment: &Segment, from_initiator: bool, fins: [u32; 2]) -> Self {
        if segment.flags.rst {
            return self;
        }
        // Either side acknowledges the other's.
        let [initiators, responders] = fins;
        if from_initiator {
            self.responder_acknowledged |= self.responder && segment.acknowledges(responders);
            self.initiator |= segment.flags.fin;
        } else {
            self.initiator_acknowledged |= self.initiator && segment.acknowledges(initiators);
            self.responder |= segment.flags.fin;
        }
        self
    }
}

fn next_phase(
    phase: TcpPhase,
    finished: Finished,
    flags: TcpFlags,
    from_initiator: bool,
) -> TcpPhase {
    if flags.rst || phase == TcpPhase::Closed {
        return TcpPhase::Closed;
    }
    match finished {
        Finished {
            initiator_acknowledged: true,
            responder_acknowledged: true,
            ..
        } => return TcpPhase::Closed,
        Finished {
            initiator: true,
            responder: true,
            ..
        } => return TcpPhase::LastAck,
        Finished {
            initiator: false,
            responder: false,
            ..
        } => {}
        _ => return TcpPhase::Closing,
    }
    match phase {
        TcpPhase::SynSent if flags.syn && flags.ack && !from_initiator => TcpPhase::SynReceived,
        TcpPhase::SynReceived if flags.ack && !flags.syn && from_initiator => TcpPhase::Established,
        TcpPhase::PickedUp if !from_initiator => TcpPhase::Established,
        other => other,
    }
}
