//! What closes the devices: two nf_tables tables, replaced as a whole in one transaction.
//!
//! `netdev sgwall`, frames of every protocol:
//! - for each closed device a chain at its ingress, which drops all, and one at its egress, which
//!   drops all but, where it is taken, frames that bear the secret;
//! - where the kernel knows hooks for all devices (6.18), the same for those that will appear
//!   later, with exceptions for `lo`, the TAP devices and those left open;
//! - for each taken device a chain without a hook, whose rules keep what it takes to give it back.
//!
//! `inet sgwall`, IPv4 and IPv6 packets: one chain as they arrive and one as they leave, before
//! and after all others, which drop what comes in by or leaves by another device than `lo`, the TAP
//! devices and those left open. So a device that appears later passes no packet, on older kernels
//! too. A chain at `output` would see the device from before a redirection; this one sees the one
//! that counts. To accept here ends nothing: other tables, such as Docker's for its resolver at
//! 127.0.0.11, are asked as before.
//!
//! Devices are told by index, not by name: an index is never given again, so what is let
//! through can't be somebody else's under the same name.

use std::collections::BTreeMap;

use nix::libc;

use super::SidecarError;
use super::kernel::{Kernel, LOOPBACK};
use super::netlink::Message;
use super::nft::{self, CHUNK, Chain, Devices, Family, Hook, Match, Rule};
use super::saved::Saved;
use crate::link::Secret;

/// Before connection tracking and whatever others hook in there.
const FIRST: i32 = -1000;
/// After address translation.
const LAST: i32 = 1000;
/// The chains of devices that are not there yet.
const LATER: &str = "later";
const ARRIVING: &str = "arriving";
const LEAVING: &str = "leaving";

/// All that the two tables say.
#[derive(Debug, Default)]
pub(super) struct Tables<'a> {
    /// Taken devices with what they are called now.
    pub taken: Vec<(&'a Saved, String)>,
    /// Interfaces that are being given back: what is written down about them stays.
    pub returning: Vec<&'a Saved>,
    /// Closed devices that aren't taken: index and name.
    pub closed: Vec<(u32, String)>,
    /// Indices of devices that packets may use: TAP devices, and those left open.
    pub open: Vec<u32>,
    /// What frames must bear to leave by a taken device; none: nothing leaves.
    pub secret: Option<Secret>,
}

/// What a list of requests does, in words, beside each request.
type Requests = Vec<(String, Message)>;

impl Tables<'_> {
    /// Replaces whatever tables of ours there are, in one transaction.
    pub fn put(&self, kernel: &mut Kernel<'_>) -> Result<(), SidecarError> {
        if kernel.catches_all {
            match transact(kernel, self.requests(true)) {
                // The kernel knows no hooks for all devices, or there is another reason, which
                // the second attempt will tell.
                Err(SidecarError::System { .. } | SidecarError::OldKernel { .. }) => {
                    kernel.catches_all = false;
                }
                answer => return answer,
            }
        }
        transact(kernel, self.requests(false))
    }

    fn requests(&self, catch_all: bool) -> Requests {
        let mut requests = Requests::new();
        for family in [Family::Netdev, Family::Inet] {
            let operation = "make a table in nf_tables";
            // To delete one it must be there.
            for message in [
                nft::new_table(family),
                nft::delete_table(family),
                nft::new_table(family),
            ] {
                requests.push((operation.to_owned(), message));
            }
        }
        let taken = self
            .taken
            .iter()
            .map(|(saved, name)| (saved.link.index, name, self.secret));
        let closed = self.closed.iter().map(|(index, name)| (*index, name, None));
        for (index, name, secret) in taken.chain(closed) {
            requests.push((
                format!("close {name} to what arrives"),
                base(
                    Hook::Ingress,
                    &of(index, Hook::Ingress),
                    Devices::Named(name),
                ),
            ));
            requests.push((
                egress_operation(name),
                base(Hook::Egress, &of(index, Hook::Egress), Devices::Named(name)),
            ));
            if let Some(secret) = secret {
                let chain = of(index, Hook::Egress);
                let rule = nft::accept(Family::Netdev, &chain, &bears(secret));
                requests.push((format!("let marked frames leave by {name}"), rule));
            }
        }
        let taken = self.taken.iter().map(|(saved, _)| *saved);
        for saved in taken.chain(self.returning.iter().copied()) {
            let chain = state_of(saved.link.index);
            let operation = format!("write down what {} was", saved.link.name);
            let message = nft::new_chain(Family::Netdev, &chain);
            requests.push((operation.clone(), message));
            for chunk in saved.to_bytes().chunks(CHUNK) {
                let message = nft::keep(Family::Netdev, &chain, chunk);
                requests.push((operation.clone(), message));
            }
        }
        if catch_all {
            self.push_later(&mut requests);
        }
        self.push_packets(&mut requests);
        requests
    }

    /// Closes devices that will appear.
    fn push_later(&self, requests: &mut Requests) {
        for hook in [Hook::Ingress, Hook::Egress] {
            let chain = format!("{LATER}-{}", name_of(hook));
            requests.push((
                "close the interfaces to come".to_owned(),
                base(hook, &chain, Devices::All),
            ));
            for index in self.open_and_loopback() {
                let this = match hook {
                    Hook::Egress => Match::Out(index),
                    _ => Match::In(index),
                };
                requests.push((
                    "leave an interface open".to_owned(),
                    nft::accept(Family::Netdev, &chain, &[this]),
                ));
            }
            let Some(secret) = self.secret.filter(|_| hook == Hook::Egress) else {
                continue;
            };
            for (saved, name) in &self.taken {
                let [mark, priority] = bears(secret);
                let these = [Match::Out(saved.link.index), mark, priority];
                requests.push((
                    format!("let marked frames leave by {name}"),
                    nft::accept(Family::Netdev, &chain, &these),
                ));
            }
        }
    }

    fn push_packets(&self, requests: &mut Requests) {
        for (chain, hook, priority) in [
            (ARRIVING, Hook::Prerouting, FIRST),
            (LEAVING, Hook::Postrouting, LAST),
        ] {
            let message = nft::new_base_chain(Family::Inet, chain, hook, priority, Devices::Any);
            requests.push(("close the network namespace".to_owned(), message));
            for index in self.open_and_loopback() {
                let this = match hook {
                    Hook::Postrouting => Match::Out(index),
                    _ => Match::In(index),
                };
                requests.push((
                    "leave an interface open".to_owned(),
                    nft::accept(Family::Inet, chain, &[this]),
                ));
            }
        }
    }

    fn open_and_loopback(&self) -> impl Iterator<Item = u32> {
        std::iter::once(LOOPBACK).chain(self.open.iter().copied())
    }
}

/// What earlier runs wrote down; empty where no table of ours is.
pub(super) fn read_saved(kernel: &mut Kernel<'_>) -> Result<Vec<Saved>, SidecarError> {
    let mut kept: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    for rule in rules(kernel, Family::Netdev)? {
        if let Some(index) = is_state(&rule.chain) {
            kept.entry(index).or_default().extend(rule.record);
        }
    }
    kept.into_iter()
        .map(|(index, bytes)| {
            Saved::from_bytes(&bytes).map_err(|source| SidecarError::Damaged { index, source })
        })
        .collect()
}

/// Whether a table of ours closes the namespace.
pub(super) fn is_closed(kernel: &mut Kernel<'_>) -> Result<bool, SidecarError> {
    let chains = chains(kernel, Family::Inet)?;
    let there = |name| chains.iter().any(|chain| chain.name == name && chain.drops);
    Ok(there(ARRIVING) && there(LEAVING))
}

/// Removes both tables, so that everything is open; nothing where there are none.
pub(super) fn remove(kernel: &mut Kernel<'_>) -> Result<(), SidecarError> {
    let mut requests = Requests::new();
    for family in [Family::Netdev, Family::Inet] {
        let operation = "remove a table from nf_tables";
        requests.push((operation.to_owned(), nft::new_table(family)));
        requests.push((operation.to_owned(), nft::delete_table(family)));
    }
    transact(kernel, requests)
}

/// Reads back that a taken device is closed by its present name, and the namespace around it.
pub(super) fn verify(
    kernel: &mut Kernel<'_>,
    raw: (u32, &str),
    tap: u32,
    secret: Secret,
) -> Result<(), SidecarError> {
    let (index, name) = raw;
    let wrong = |problem: String| SidecarError::NotClosed {
        name: name.to_owned(),
        problem,
    };
    let found = chains(kernel, Family::Netdev)?;
    for hook in [Hook::Ingress, Hook::Egress] {
        let chain = found
            .iter()
            .find(|chain| chain.name == of(index, hook))
            .ok_or_else(|| wrong(format!("there is no chain at its {}", name_of(hook))))?;
        if !chain.drops {
            return Err(wrong(format!(
                "the chain at its {} lets pass",
                name_of(hook)
            )));
        }
        if chain.hook != Some(hook.number()) || chain.devices != [name] {
            return Err(wrong(format!(
                "the chain at its {} is elsewhere",
                name_of(hook)
            )));
        }
    }
    let rules = rules(kernel, Family::Netdev)?;
    let at = |hook| {
        let chain = of(index, hook);
        rules.iter().filter(move |rule| rule.chain == chain)
    };
    if at(Hook::Ingress).next().is_some() {
        return Err(wrong("a rule lets frames in".to_owned()));
    }
    let leaving: Vec<_> = at(Hook::Egress).collect();
    if leaving.len() != 1 || !leaving[0].accepts(&bears(secret)) {
        return Err(wrong(
            "other frames than the marked ones may leave".to_owned(),
        ));
    }
    verify_packets(kernel, index, tap).map_err(wrong)
}

fn verify_packets(kernel: &mut Kernel<'_>, raw: u32, tap: u32) -> Result<(), String> {
    if !is_closed(kernel).map_err(|error| error.to_string())? {
        return Err("the namespace is open for packets".to_owned());
    }
    let rules = rules(kernel, Family::Inet).map_err(|error| error.to_string())?;
    for (chain, to_match) in [
        (ARRIVING, Match::In as fn(u32) -> Match),
        (LEAVING, Match::Out),
    ] {
        let accepts = |index| {
            let these = [to_match(index)];
            rules
                .iter()
                .any(|rule| rule.chain == chain && rule.accepts(&these))
        };
        if accepts(raw) {
            return Err("packets may pass beside the TAP device".to_owned());
        }
        if !accepts(tap) {
            return Err("no packet may pass by the TAP device".to_owned());
        }
    }
    Ok(())
}

fn chains(kernel: &mut Kernel<'_>, family: Family) -> Result<Vec<Chain>, SidecarError> {
    let found = dump(kernel, &nft::get_chains(family))?;
    Ok(found
        .iter()
        .filter_map(|message| Chain::read(message, family))
        .collect())
}

fn rules(kernel: &mut Kernel<'_>, family: Family) -> Result<Vec<Rule>, SidecarError> {
    let found = dump(kernel, &nft::get_rules(family))?;
    Ok(found
        .iter()
        .filter_map(|message| Rule::read(message, family))
        .collect())
}

fn dump(kernel: &mut Kernel<'_>, request: &Message) -> Result<Vec<Message>, SidecarError> {
    match kernel.filter.dump(request) {
        // There is no such table.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        answer => answer.map_err(|error| refused("read the tables of nf_tables", error)),
    }
}

/// All of it happens, or nothing.
fn transact(kernel: &mut Kernel<'_>, requests: Requests) -> Result<(), SidecarError> {
    let (operations, messages): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
    let last = messages.len();
    let mut batch = vec![(nft::begin(), 0)];
    for message in messages {
        // Rules are to be in the order in which they are asked for.
        let flags = netlink_packet_core::NLM_F_CREATE | netlink_packet_core::NLM_F_APPEND;
        batch.push((message, flags));
    }
    batch.push((nft::end(), 0));
    kernel.filter.send(&batch, last).map_err(|refusal| {
        let operation = refusal
            .message
            .and_then(|i| operations.get(i.wrapping_sub(1)))
            .map_or("change the tables of nf_tables", String::as_str);
        refused(operation, refusal.source)
    })?;
    kernel.changed();
    Ok(())
}

fn refused(operation: &str, source: std::io::Error) -> SidecarError {
    let missing = matches!(
        source.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOENT | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)
    );
    if !missing {
        return SidecarError::refused(operation, source);
    }
    let remedy = if operation.ends_with(LEAVES) {
        "the kernel can't filter what leaves a device: that takes Linux 5.16 or newer with \
         CONFIG_NETFILTER_EGRESS"
    } else {
        "the kernel lacks a part of nf_tables: modprobe nf_tables on the host (CONFIG_NF_TABLES, \
         CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_NETDEV, CONFIG_NETFILTER_INGRESS)"
    };
    SidecarError::OldKernel {
        operation: operation.to_owned(),
        remedy,
        source,
    }
}

const LEAVES: &str = "to what leaves";

fn egress_operation(name: &str) -> String {
    format!("close {name} {LEAVES}")
}

/// What tells our frames from all others.
fn bears(secret: Secret) -> [Match; 2] {
    [Match::Mark(secret.mark), Match::Priority(secret.priority)]
}

fn base(hook: Hook, chain: &str, devices: Devices<'_>) -> Message {
    nft::new_base_chain(Family::Netdev, chain, hook, FIRST, devices)
}

fn name_of(hook: Hook) -> &'static str {
    match hook {
        Hook::Ingress => "ingress",
        Hook::Egress => "egress",
        Hook::Prerouting => "prerouting",
        Hook::Postrouting => "postrouting",
    }
}

fn of(index: u32, hook: Hook) -> String {
    format!("{}-{index}", name_of(hook))
}

fn state_of(index: u32) -> String {
    format!("state-{index}")
}

fn is_state(chain: &str) -> Option<u32> {
    chain.strip_prefix("state-")?.parse().ok()
}
