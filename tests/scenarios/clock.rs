//! A lab on a clock of its own: the data path without devices, for what takes
//! minutes or days. The engine's sweep comes before each packet, as it comes
//! every second.

use std::net::IpAddr;
use std::time::Duration;

use sgwall::config;
use sgwall::conntrack::Millis;
use sgwall::datapath::{Datapath, Fate, Silent};
use sgwall::model::protocol;
use sgwall::packet::{self, Shape, TcpFlags, Transport};
use sgwall::policy::{DropReason, Policy};

/// A lab and its clock.
#[derive(Debug)]
pub struct Clock {
    policy: Policy,
    datapath: Datapath,
    now: Duration,
}

/// One end: an interface's name and the address and port that it sends from.
pub type End = (&'static str, IpAddr, u16);

pub const SYN: TcpFlags = TcpFlags {
    syn: true,
    ack: false,
    fin: false,
    rst: false,
};
pub const ACK: TcpFlags = TcpFlags {
    syn: false,
    ack: true,
    ..SYN
};
pub const SYN_ACK: TcpFlags = TcpFlags { ack: true, ..SYN };
pub const FIN: TcpFlags = TcpFlags { fin: true, ..ACK };
pub const RST: TcpFlags = TcpFlags {
    ack: false,
    rst: true,
    ..ACK
};

impl Clock {
    pub fn new(text: &str) -> Self {
        let model = config::load_str("lab.yaml", text).unwrap().model;
        Self {
            policy: Policy::compile(&model, None),
            datapath: Datapath::new(1024),
            now: Duration::ZERO,
        }
    }

    /// Another file is in force from now on.
    pub fn save(&mut self, text: &str) {
        let model = config::load_str("lab.yaml", text).unwrap().model;
        self.policy = Policy::compile(&model, Some(&self.policy));
    }

    /// Time passes.
    pub fn wait(&mut self, time: Duration) {
        self.now += time;
    }

    /// Sends a packet; gives who got it, or why nobody did.
    pub fn send(
        &self,
        from: End,
        to: End,
        protocol: u8,
        transport: Transport,
    ) -> Result<String, (DropReason, String)> {
        let label = |at| self.policy.interface(at).unwrap().label.clone();
        let now = Millis::from(self.now);
        self.datapath.sweep(now);
        let mut frame = packet::build(from.1, to.1, protocol, transport, b"data").unwrap();
        let (sender, _) = self
            .policy
            .interfaces()
            .find(|(_, interface)| interface.label == from.0)
            .unwrap();
        let verdict = self.datapath.judge(
            &self.policy,
            sender,
            &mut frame,
            Shape::Whole,
            now,
            &mut Silent,
        );
        match verdict.fate {
            Fate::Forward { to, .. } => Ok(label(to)),
            Fate::Drop { reason, at } => Err((reason, label(at))),
            Fate::Hold { .. } => panic!("not a fragment"),
        }
    }

    /// Sends a datagram.
    pub fn udp(&self, from: End, to: End) -> Result<String, (DropReason, String)> {
        let transport = Transport::Udp {
            source: from.2,
            destination: to.2,
        };
        self.send(from, to, protocol::UDP, transport)
    }

    /// Sends a segment.
    pub fn tcp(&self, from: End, to: End, flags: TcpFlags) -> Result<String, (DropReason, String)> {
        let transport = Transport::Tcp {
            source: from.2,
            destination: to.2,
            flags,
            end: 100,
            acknowledgement: 100,
        };
        self.send(from, to, protocol::TCP, transport)
    }

    /// Opens a TCP connection.
    pub fn connect(&self, from: End, to: End) {
        for (from, to, flags) in [(from, to, SYN), (to, from, SYN_ACK), (from, to, ACK)] {
            assert_eq!(self.tcp(from, to, flags), Ok(to.0.to_owned()), "{flags:?}");
        }
    }
}
