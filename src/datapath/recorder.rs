//! What is told of a packet's road, station by station, to whoever listens.

use std::net::IpAddr;

use crate::model::{Direction, InterfaceIx, RuleId};
use crate::packet::{Packet, ParseError};
use crate::policy::{
    AclDecision, AclTable, CompiledRule, DropReason, Hop, Query, Service, Stranded,
};

/// One station of the road, as a [`Recorder`] sees it.
#[derive(Debug, Clone, Copy)]
pub enum Step<'p> {
    /// The headers were read, or were not.
    Parsed(Result<&'p Packet, ParseError>),
    /// The source address was compared with the interface's own.
    SourceCheck {
        /// The sender.
        at: InterfaceIx,
        /// Whether it may use the address.
        passed: bool,
    },
    /// The packet is for a service that nothing filters.
    Unfiltered {
        /// The sender.
        at: InterfaceIx,
        /// The service.
        service: Service,
    },
    /// The destination turned out not to be one host's address.
    NotUnicast {
        /// The sender.
        at: InterfaceIx,
    },
    /// No security groups stand here: the interface is outside the VPC.
    Unguarded {
        /// The interface.
        at: InterfaceIx,
        /// Which way the packet passes it.
        direction: Direction,
    },
    /// The packet belongs to a flow that the interface tracks.
    Tracked {
        /// The interface.
        at: InterfaceIx,
        /// Which way the packet passes it.
        direction: Direction,
        /// What admitted the flow's first packet.
        rule: RuleId,
    },
    /// The packet belongs to a connection that is closed.
    Closed {
        /// The interface.
        at: InterfaceIx,
        /// Which way the packet passes it.
        direction: Direction,
    },
    /// The rules were asked.
    Judged {
        /// The interface.
        at: InterfaceIx,
        /// Which way the packet passes it.
        direction: Direction,
        /// The address on the other side.
        peer: IpAddr,
        /// Protocol and port.
        query: Query,
        /// The rule that lets it pass.
        rule: Option<CompiledRule<'p>>,
        /// Whether the flow is tracked, where the packet opened one.
        opens: Option<bool>,
    },
    /// The rules allowed it, but there is no room to track the flow.
    NoRoom {
        /// The interface.
        at: InterfaceIx,
        /// `FlowTableFull` or `ConntrackAllowance`.
        reason: DropReason,
    },
    /// A network ACL was asked.
    Acl {
        /// The interface in whose subnet it is in force.
        at: InterfaceIx,
        /// The ACL.
        acl: &'p AclTable,
        /// The address on the other side.
        peer: IpAddr,
        /// Protocol and port.
        query: Query,
        /// What it decided.
        decision: AclDecision<'p>,
    },
    /// The way was looked up.
    Routed {
        /// The sender.
        at: InterfaceIx,
        /// The next hop, or why there is none.
        hop: Result<Hop<'p>, Stranded<'p>>,
    },
    /// The packet is larger than the path takes.
    TooBig {
        /// The receiver.
        at: InterfaceIx,
        /// What the path takes.
        mtu: u16,
    },
    /// The receiver may not take what is addressed to others.
    DestinationCheck {
        /// The receiver.
        at: InterfaceIx,
    },
    /// The packet was handed to the receiver.
    Delivered {
        /// The receiver.
        at: InterfaceIx,
        /// The packet as the receiver gets it.
        packet: &'p Packet,
    },
}

/// Writes down the road of a packet. The engine's is [`Unasked`], which the
/// compiler removes.
pub trait Recorder {
    /// Whether it takes note of nothing, so that steps whose outcome is known
    /// may be left out.
    const SILENT: bool = false;

    /// Whether verdicts are to say by which rules a packet of a known flow passed. Who
    /// only forwards spares the look.
    const PROVENANCE: bool = true;

    /// Takes note of a step.
    fn step(&mut self, step: Step<'_>);
}

/// Records nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Recorder for Silent {
    const SILENT: bool = true;

    #[inline]
    fn step(&mut self, _: Step<'_>) {}
}

/// Records nothing, and doesn't want to know why:
/// [`Verdict::egress`](super::Verdict::egress) and
/// [`Verdict::ingress`](super::Verdict::ingress) may be `None` though rules let the
/// packet pass. For who forwards packets.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unasked;

impl Recorder for Unasked {
    const SILENT: bool = true;
    const PROVENANCE: bool = false;

    #[inline]
    fn step(&mut self, _: Step<'_>) {}
}
