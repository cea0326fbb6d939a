//! The yardstick: a relay between two TUN devices without any policy.
//!
//! It makes the namespaces and devices of a lab file with two interfaces, as
//! `sgwall run` does, and then copies every packet from one device to the
//! other, super-packets unsplit: the same polling, the same budget of packets
//! between two polls, the same devices with the same offloads, read and written
//! one frame at a time, and nothing else. What `sgwall run` takes longer than
//! this is the price of security groups.
//! `scripts/bench` measures both.
//!
//! ```text
//! cargo run --release --example bare_relay -- LAB [--name NAME] [--workers 1|2] [--no-offload]
//! ```
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it talks to whoever measures"
)]

use std::error::Error;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use sgwall::config;
use sgwall::lab::{self, Lab, Session};
use sgwall::link::{FRAME, Link, Offload, Readiness, TunLink};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// As the engine's.
const BUDGET: usize = 64;
/// What the waker's events say.
const STOP: Token = Token(2);

/// Relays between the two interfaces of a lab file, ignoring its rules.
#[derive(Debug, Parser)]
struct Args {
    /// A lab file with exactly two interfaces.
    lab: PathBuf,
    /// Name of the lab.
    #[arg(long, default_value = "bare-relay")]
    name: String,
    /// Threads: one for both devices, or one for each.
    #[arg(long, default_value_t = 1,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=2))]
    workers: usize,
    /// Without segmentation and checksum offload, as `sgwall run --no-offload`.
    #[arg(long)]
    no_offload: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let model = config::load(&args.lab, &[])?.model;
    lab::prepare()?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let offload = if args.no_offload {
        Offload::Off
    } else {
        Offload::Granted
    };
    let lab = Lab::up_with(Session::start(&args.name)?, &model, offload)?;
    let [a, b]: [Arc<TunLink>; 2] = lab
        .links()
        .try_into()
        .map_err(|_| "the lab must have exactly two interfaces")?;
    let links = [a, b];

    let stop = AtomicBool::new(false);
    let mut relays = Vec::new();
    let mut wakers = Vec::new();
    for worker in 0..args.workers {
        let own: Vec<usize> = (worker..2).step_by(args.workers).collect();
        let (relay, waker) = Relay::new(&links, &own, &stop)?;
        relays.push(relay);
        wakers.push(waker);
    }
    thread::scope(|scope| {
        for relay in relays {
            scope.spawn(move || relay.run());
        }
        println!("relaying");
        signals.forever().next();
        stop.store(true, Ordering::Release);
        wakers.iter().try_for_each(Waker::wake)
    })?;
    lab.down();
    Ok(())
}

/// One thread's part.
struct Relay<'a> {
    links: &'a [Arc<TunLink>; 2],
    stop: &'a AtomicBool,
    poll: Poll,
    /// Which links may have packets left; mio tells of a change once.
    hot: [bool; 2],
}

impl<'a> Relay<'a> {
    /// A relay that reads from the links in `own`.
    fn new(
        links: &'a [Arc<TunLink>; 2],
        own: &[usize],
        stop: &'a AtomicBool,
    ) -> Result<(Self, Waker), Box<dyn Error>> {
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), STOP)?;
        for &link in own {
            let Readiness::Fd(fd) = links[link].readiness() else {
                return Err("a TUN device has no descriptor".into());
            };
            let fd = fd.as_raw_fd();
            poll.registry()
                .register(&mut SourceFd(&fd), Token(link), Interest::READABLE)?;
        }
        let relay = Self {
            links,
            stop,
            poll,
            hot: [false; 2],
        };
        Ok((relay, waker))
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(256);
        let mut buffer = vec![0; FRAME];
        while !self.stop.load(Ordering::Acquire) {
            let timeout = self.hot.contains(&true).then_some(Duration::ZERO);
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != ErrorKind::Interrupted
            {
                eprintln!("polling failed: {error}");
                return;
            }
            for event in &events {
                if let Some(hot) = self.hot.get_mut(event.token().0) {
                    *hot = true;
                }
            }
            for link in 0..2 {
                if self.hot[link] {
                    self.hot[link] = self.copy(link, &mut buffer);
                }
            }
        }
    }

    /// Copies up to a budget of frames; whether there may be more.
    fn copy(&self, from: usize, buffer: &mut [u8]) -> bool {
        for _ in 0..BUDGET {
            match self.links[from].recv(buffer) {
                // What can't be written is lost, as on any wire.
                Ok(received) => {
                    if let Ok(shape) = received.shape {
                        drop(self.links[1 - from].send(
                            received.envelope,
                            received.frame(buffer),
                            shape,
                        ));
                    }
                }
                Err(error) => return error.kind() == ErrorKind::Interrupted,
            }
        }
        true
    }
}
