//! What is remembered of a flow besides its rule, in one byte, and how long a
//! flow in that state may be idle.
//!
//! AWS documents only the timeouts of established TCP, of UDP and of other
//! protocols (aws-semantics §3.1, §3.5). The others are decisions: a TCP
//! connection that is opening, or that both sides have ended, has 60 s; one side's
//! end changes nothing (RFC 5382 REQ-5); a closed one is remembered for 10 s, an
//! ICMP question for 30 s.
//!
//! An attacker who knows addresses and ports, but no sequence numbers, can forge a
//! FIN or a reset. So a FIN counts once the other side acknowledges exactly its end,
//! and a reset closes a connection at once only if it contains such a number. Any
//! other reset starts a timer of 60 s, which packets from both sides stop (RFC 6146
//! §3.5.2.2).

use crate::model::{Tracking, protocol};
use crate::packet::{Segment, TcpFlags};

/// Idle timeout of a TCP connection that is opening or that both sides have ended, and the time
/// after a reset within which both sides must send a packet. A decision; RFC 5382 and RFC 6146
/// §3.5.2.2 have 4 minutes.
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
    /// The responder has answered.
    SynReceived = 1,
    Established = 2,
    /// Reset by a segment that may be forged; no packet since.
    Reset = 3,
    /// Reset by a segment with a known sequence number, or ended and acknowledged by both sides.
    Closed = 4,
    /// Met in its middle, and only one side heard so far.
    PickedUp = 5,
    /// Both sides have sent a FIN, and the later one acknowledges the earlier.
    LastAck = 6,
    /// Like [`Self::Reset`], with a packet of the initiator since.
    ResetInitiatorHeard = 7,
    /// Like [`Self::Reset`], with a packet of the responder since.
    ResetResponderHeard = 8,
}

/// Which sides of a TCP connection have sent a FIN, and whether it was
/// acknowledged. A FIN that wasn't acknowledged may be forged.
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
                    TcpFlags { rst: true, .. } => TcpPhase::Reset,
                    TcpFlags {
                        syn: true,
                        ack: false,
                        ..
                    } => TcpPhase::SynSent,
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

    /// The state after another packet of the flow; `ends` are the sequence
    /// numbers after the initiator's and the responder's last SYN or FIN, this
    /// packet's included: [`Self::records_end`].
    pub(super) fn after(self, segment: &Segment, from_initiator: bool, ends: [u32; 2]) -> Self {
        match self {
            Self::Tcp(TcpPhase::Closed, _) => self,
            Self::Tcp(phase, finished) if segment.flags.rst => Self::Tcp(
                phase_after_reset(phase, finished, segment, from_initiator, ends),
                finished,
            ),
            Self::Tcp(phase, finished) => {
                let finished = finished.after(phase, segment, from_initiator, ends);
                Self::Tcp(
                    next_phase(phase, finished, segment, from_initiator, ends),
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

    /// Whether the state in `bits` is that of a closed connection; without
    /// taking it apart, as it is asked for every packet.
    #[inline]
    pub(super) fn is_closed_in(protocol_number: u8, bits: u8) -> bool {
        protocol_number == protocol::TCP && bits & PHASE == TcpPhase::Closed as u8
    }

    /// True if the state in `bits` is that of a connection whose reset timer runs.
    pub(super) fn is_reset_in(protocol_number: u8, bits: u8) -> bool {
        protocol_number == protocol::TCP && Self::from_bits(protocol_number, bits).is_reset()
    }

    /// True if it is a closed TCP connection.
    pub(super) fn is_closed(self) -> bool {
        matches!(self, Self::Tcp(TcpPhase::Closed, _))
    }

    /// True if it is a TCP connection whose reset timer runs.
    pub(super) fn is_reset(self) -> bool {
        matches!(
            self,
            Self::Tcp(
                TcpPhase::Reset | TcpPhase::ResetInitiatorHeard | TcpPhase::ResetResponderHeard,
                _
            )
        )
    }

    /// True if the segment's end is to be recorded for its side: the segment has a FIN
    /// and none of that side is confirmed yet, or it is a SYN sent again.
    pub(super) fn records_end(self, segment: &Segment, from_initiator: bool) -> bool {
        let Self::Tcp(phase, finished) = self else {
            return false;
        };
        let confirmed = phase == TcpPhase::LastAck || finished.is_acknowledged(from_initiator);
        !segment.flags.rst
            && (segment.flags.fin && !confirmed
                || segment.opens() && from_initiator && phase == TcpPhase::SynSent)
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
                    3 => TcpPhase::Reset,
                    5 => TcpPhase::PickedUp,
                    6 => TcpPhase::LastAck,
                    7 => TcpPhase::ResetInitiatorHeard,
                    8 => TcpPhase::ResetResponderHeard,
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

    fn is_acknowledged(self, initiator: bool) -> bool {
        if initiator {
            self.initiator_acknowledged
        } else {
            self.responder_acknowledged
        }
    }

    /// The FINs after another segment. An acknowledgement confirms the other side's
    /// FIN; data beyond an unconfirmed FIN shows that it was forged.
    fn after(
        mut self,
        phase: TcpPhase,
        segment: &Segment,
        from_initiator: bool,
        ends: [u32; 2],
    ) -> Self {
        let (own, others) = own_and_peer_ends(ends, from_initiator);
        let (mine, acknowledged, other, others_acknowledged) = if from_initiator {
            (
                &mut self.initiator,
                self.initiator_acknowledged,
                self.responder,
                &mut self.responder_acknowledged,
            )
        } else {
            (
                &mut self.responder,
                self.responder_acknowledged,
                self.initiator,
                &mut self.initiator_acknowledged,
            )
        };
        *others_acknowledged |= other && segment.acknowledges(others);
        if segment.flags.fin {
            *mine = true;
        } else if !(acknowledged || segment.flags.syn || phase == TcpPhase::LastAck) {
            *mine &= !segment.is_past(own);
        }
        self
    }
}

/// Returns the end of the sending side and the end of the other side.
fn own_and_peer_ends([initiators, responders]: [u32; 2], from_initiator: bool) -> (u32, u32) {
    if from_initiator {
        (initiators, responders)
    } else {
        (responders, initiators)
    }
}

/// Returns the phase after a reset. The reset closes the connection if its sender knows where a
/// side has ended: it acknowledges the SYN that it refuses, it acknowledges a FIN, or its
/// sequence number is the end of its sender's own acknowledged FIN.
fn phase_after_reset(
    phase: TcpPhase,
    finished: Finished,
    segment: &Segment,
    from_initiator: bool,
    ends: [u32; 2],
) -> TcpPhase {
    let (own, others) = own_and_peer_ends(ends, from_initiator);
    let refuses = phase == TcpPhase::SynSent && !from_initiator;
    let knows_others = (refuses || finished.of(!from_initiator)) && segment.acknowledges(others);
    let knows_own = finished.is_acknowledged(from_initiator) && segment.end == own;
    match phase {
        _ if knows_others || knows_own => TcpPhase::Closed,
        TcpPhase::ResetInitiatorHeard | TcpPhase::ResetResponderHeard => phase,
        _ => TcpPhase::Reset,
    }
}

/// Returns the phase after any other segment.
fn next_phase(
    phase: TcpPhase,
    finished: Finished,
    segment: &Segment,
    from_initiator: bool,
    ends: [u32; 2],
) -> TcpPhase {
    let (_, others) = own_and_peer_ends(ends, from_initiator);
    if finished.initiator_acknowledged && finished.responder_acknowledged {
        return TcpPhase::Closed;
    }
    // An attacker can't guess the number that acknowledges the other side's FIN.
    if segment.flags.fin
        && finished.is_acknowledged(!from_initiator)
        && segment.acknowledges(others)
    {
        return TcpPhase::LastAck;
    }
    let TcpFlags { syn, ack, .. } = segment.flags;
    match (phase, from_initiator) {
        (TcpPhase::SynSent, false) if ack => TcpPhase::SynReceived,
        (TcpPhase::SynReceived, true) if ack && !syn => TcpPhase::Established,
        (TcpPhase::PickedUp, false) => TcpPhase::Established,
        (TcpPhase::Reset, true) if !syn => TcpPhase::ResetInitiatorHeard,
        (TcpPhase::Reset, false) if !syn => TcpPhase::ResetResponderHeard,
        (TcpPhase::ResetInitiatorHeard, false) if !syn => TcpPhase::Established,
        (TcpPhase::ResetResponderHeard, true) if !syn => TcpPhase::Established,
        (other, _) => other,
    }
}
