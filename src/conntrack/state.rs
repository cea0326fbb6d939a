//! What is remembered of a flow besides its rule, in one byte, and how long a
//! flow in that state may be idle.
//!
//! AWS documents only the timeouts of established TCP, of UDP and of other
//! protocols (aws-semantics §3.1, §3.5). The others are decisions: a
//! connection that is opening or closing has 60 s, one that was reset or
//! closed from both sides 10 s, an ICMP question 30 s.

use crate::model::{Tracking, protocol};
use crate::packet::TcpFlags;

/// Idle time of a TCP connection that is opening or closing. A decision.
const TCP_TRANSIENT: u64 = 60_000;
/// Time for which a closed TCP connection is remembered. A decision.
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
    Closing = 3,
    Closed = 4,
    /// Met in its middle, and only one side heard so far.
    PickedUp = 5,
}

/// Which sides of a TCP connection have sent a FIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Finished {
    initiator: bool,
    responder: bool,
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

const INITIATOR_FINISHED: u8 = 0x10;
const RESPONDER_FINISHED: u8 = 0x20;
const WAITING: u8 = 0x80;

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
                    initiator: flags.fin,
                    responder: false,
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

    /// The state after another packet of the flow.
    pub(super) fn after(self, flags: &TcpFlags, from_initiator: bool) -> Self {
        match self {
            Self::Tcp(phase, finished) => {
                let finished = Finished {
                    initiator: finished.initiator || flags.fin && from_initiator,
                    responder: finished.responder || flags.fin && !from_initiator,
                };
                Self::Tcp(
                    next_phase(phase, finished, *flags, from_initiator),
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
            Self::Tcp(TcpPhase::Closed, _) => TCP_CLOSED,
            Self::Tcp(_, _) => TCP_TRANSIENT,
            Self::Udp(exchanges) if exchanges.complete >= STREAM => millis(tracking.udp_stream),
            Self::Udp(_) => millis(tracking.udp_timeout),
            Self::Icmp => ICMP,
            Self::Other => OTHER,
        }
    }

    /// Whether it is a TCP connection that was reset or closed from both sides.
    pub(super) fn is_closed(self) -> bool {
        matches!(self, Self::Tcp(TcpPhase::Closed, _))
    }

    pub(super) fn bits(self) -> u8 {
        match self {
            Self::Tcp(phase, finished) => {
                phase as u8
                    | flag(finished.initiator, INITIATOR_FINISHED)
                    | flag(finished.responder, RESPONDER_FINISHED)
            }
            Self::Udp(exchanges) => exchanges.complete | flag(exchanges.waiting, WAITING),
            Self::Icmp | Self::Other => 0,
        }
    }

    pub(super) fn from_bits(protocol_number: u8, bits: u8) -> Self {
        match protocol_number {
            protocol::TCP => {
                let phase = match bits & 0x0f {
                    0 => TcpPhase::SynSent,
                    1 => TcpPhase::SynReceived,
                    2 => TcpPhase::Established,
                    3 => TcpPhase::Closing,
                    5 => TcpPhase::PickedUp,
                    _ => TcpPhase::Closed,
                };
                let finished = Finished {
                    initiator: bits & INITIATOR_FINISHED != 0,
                    responder: bits & RESPONDER_FINISHED != 0,
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
            initiator: true,
            responder: true,
        } => return TcpPhase::Closed,
        Finished {
            initiator: false,
            responder: false,
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
