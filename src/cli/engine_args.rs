//! What `run` and `sidecar` let one say about the engine.

use std::thread::available_parallelism;

use clap::builder::RangedU64ValueParser;

use crate::conntrack::{DEFAULT_CAPACITY, MAX_CAPACITY};
use crate::engine::Options;
use crate::link::Offload;

/// Arguments about the engine, but for the number of its workers, whose default differs.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Maximum number of flows; a connection within a lab is two, one at each end. An
    /// entity may begin as many as remain free: at most half. When the table is full, new
    /// flows are dropped until others end or time out.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=MAX_CAPACITY as u64))]
    max_flows: usize,
    /// Poll without ever sleeping: packets wait less, and every worker keeps a core
    /// busy. For machines that have cores to spare.
    #[arg(long)]
    busy_poll: bool,
    /// Do without segmentation and checksum offload: every packet crosses by
    /// itself, as long as its interface's MTU at most.
    #[arg(long)]
    no_offload: bool,
}

impl EngineArgs {
    /// The engine's options.
    pub(super) fn options(&self, workers: usize, log_drops: bool) -> Options {
        Options {
            workers,
            max_flows: self.max_flows,
            busy_poll: self.busy_poll,
            log_drops,
        }
    }

    /// What the devices are asked for.
    pub(super) fn offload(&self) -> Offload {
        if self.no_offload {
            Offload::Off
        } else {
            Offload::Granted
        }
    }

    /// What is allowed, and hardly meant: workers that leave no core to anybody.
    pub(super) fn warning(&self, workers: usize) -> Option<String> {
        let cores = available_parallelism().map_or(1, usize::from);
        (self.busy_poll && workers >= cores).then(|| {
            format!(
                "--busy-poll keeps a core busy for each of {workers} workers, and there are \
                 {cores}: whoever sends and receives has to wait for them; ask for fewer --workers"
            )
        })
    }
}
