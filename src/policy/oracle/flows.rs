//! Tracked flows, each the property of one interface: what identifies them,
//! how packets move them along, when they are gone (aws-semantics §3).

use std::net::IpAddr;
use std::time::Duration;

use super::{Payload, Seen, TcpFlags};
use crate::model::{Direction, InterfaceIx, Model};

/// A TCP connection that isn't established yet, or is closing, idles out after
/// this. AWS documents no value (§14, 1); a minute is what stateful firewalls
/// commonly give a half-open connection.
const TCP_TRANSIENT: Duration = Duration::from_secs(60);
/// How long a closed TCP connection still lets stray packets pass; chosen.
const TCP_CLOSED: Duration = Duration::from_secs(10);
/// An ICMP query; AWS documents no value (§14, 2).
const ICMP_QUERY: Duration = Duration::from_secs(30);
/// Protocols without ports: documented (§3.1).
const OTHER: Duration = Duration::from_secs(600);

/// What makes two packets parts of the same flow at one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    interface: InterfaceIx,
    /// The address on this interface's side.
    local: IpAddr,
    /// The address on the far side.
    remote: IpAddr,
    conversation: Conversation,
}

/// The part of the identity that the protocol adds. TCP and UDP are told apart
/// by ports, ICMP queries by their identifier, all else by protocol alone (§3.1).
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
    /// `local_asks`: a request from the far side is another conversation than
    /// the reply to ours, though both carry the same identifier.
    Echo {
        id: u16,
        local_asks: bool,
    },
    Other(u8),
}

impl Identity {
    /// The flow that a packet would belong to; none for ICMP messages that are
    /// no queries.
    pub(super) fn of(interface: InterfaceIx, direction: Direction, seen: Seen) -> Option<Self> {
        let outbound = direction == Direction::Egress;
        // Seen from the interface, the source of an outbound packet is local.
        let (local, remote) = if outbound {
            (seen.source, seen.destination)
        } else {
            (seen.destination, seen.source)
        };
        let conversation = match seen.payload {
            Payload::Tcp {
                source_port,
                destination_port,
                ..
            } => {
                let (local, remote) = if outbound {
                    (source_port, destination_port)
                } else {
                    (destination_port, source_port)
                };
                Conversation::Tcp { local, remote }
            }
            Payload::Udp {
                source_port,
                destination_port,
            } => {
                let (local, remote) = if outbound {
                    (source_port, destination_port)
                } else {
                    (destination_port, source_port)
                };
                Conversation::Udp { local, remote }
            }
            // An outbound request and an inbound reply belong to a question of
            // this side's; an inbound request and an outbound reply do not.
            Payload::IcmpEcho { request, id } => Conversation::Echo {
                id,
                local_asks: request == outbound,
            },
            Payload::Icmp { .. } => return None,
            Payload::Other(protocol) => Conversation::Other(protocol),
        };
        Some(Self {
            interface,
            local,
            remote,
            conversation,
        })
    }
}

/// A tracked flow of one interface.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) identity: Identity,
    /// The direction of the packet that opened it: that side is the initiator.
    opened: Direction,
    last_seen: Duration,
    progress: Progress,
}

/// How far a flow has come, which decides how long it may idle.
#[derive(Debug)]
enum Progress {
    Tcp {
        state: TcpState,
        initiator_finished: bool,
        responder_finished: bool,
    },
    Udp {
        /// Completed exchanges: the initiator spoke, then the responder.
        exchanges: u32,
        /// The initiator has spoken since the last completed exchange.
        asked: bool,
    },
    Echo,
    Other,
}

/// The life of a TCP connection as a bystander can tell it from flags. AWS
/// documents only that "established" has its own timeout (§3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TcpState {
    SynSent,
    SynReceived,
    Established,
    /// Met in its middle; the other side has not been heard yet.
    PickedUp,
    Closing,
    Closed,
}

impl Flow {
    /// The flow that a packet opens which a rule let pass.
    pub(super) fn open(
        identity: Identity,
        payload: Payload,
        direction: Direction,
        now: Duration,
    ) -> Self {
        let progress = match payload {
            Payload::Tcp { flags, .. } => Progress::Tcp {
                state: first_state(flags),
                initiator_finished: flags.fin && !flags.rst,
                responder_finished: false,
            },
            Payload::Udp { .. } => Progress::Udp {
                exchanges: 0,
                asked: true,
            },
            Payload::IcmpEcho { .. } => Progress::Echo,
            Payload::Icmp { .. } | Payload::Other(_) => Progress::Other,
        };
        Self {
            identity,
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
                TcpState::Closed => TCP_CLOSED,
            },
            // §3.5: one direction only or a single request and response has
            // the short timeout, more than one the long.
            Progress::Udp {
                exchanges: 0 | 1, ..
            } => interface.tracking.udp_timeout,
            Progress::Udp { .. } => interface.tracking.udp_stream,
            Progress::Echo => ICMP_QUERY,
            Progress::Other => OTHER,
        };
        now.saturating_sub(self.last_seen) < timeout
    }

    /// Whether the packet starts a new connection where this one has closed.
    pub(super) fn is_reopened_by(&self, payload: Payload) -> bool {
        let closed = matches!(
            self.progress,
            Progress::Tcp {
                state: TcpState::Closed,
                ..
            }
        );
        closed && matches!(payload, Payload::Tcp { flags, .. } if flags.syn && !flags.ack)
    }

    /// Takes note of a further packet of this flow.
    pub(super) fn continue_with(&mut self, payload: Payload, direction: Direction, now: Duration) {
        let from_initiator = direction == self.opened;
        match &mut self.progress {
            Progress::Tcp {
                state,
                initiator_finished,
                responder_finished,
            } => {
                // Once closed it stays closed, and strays do not keep it alive.
                if *state == TcpState::Closed {
                    return;
                }
                let Payload::Tcp { flags, .. } = payload else {
                    return;
                };
                if flags.rst {
                    *state = TcpState::Closed;
                } else if flags.fin {
                    if from_initiator {
                        *initiator_finished = true;
                    } else {
                        *responder_finished = true;
                    }
                    *state = if *initiator_finished && *responder_finished {
                        TcpState::Closed
                    } else {
                        TcpState::Closing
                    };
                } else if flags.syn && flags.ack && !from_initiator && *state == TcpState::SynSent {
                    *state = TcpState::SynReceived;
                } else {
                    let confirmed = flags.ack
                        && !flags.syn
                        && from_initiator
                        && *state == TcpState::SynReceived;
                    let answered = !from_initiator && *state == TcpState::PickedUp;
                    if confirmed || answered {
                        *state = TcpState::Established;
                    }
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
            Progress::Echo | Progress::Other => {}
        }
        self.last_seen = now;
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
