//! The steps of taking over and giving back, in the order that keeps everything closed.

use std::io;

use ipnet::IpNet;
use nix::libc;

use super::hooks::{self, Tables};
use super::kernel::{Kernel, LOOPBACK, Link, set_link};
use super::netlink::Attribute;
use super::restore::{self, Target, set_gen_mode};
use super::saved::Saved;
use super::{SidecarError, rt};
use crate::link::Secret;

/// Packets that a TAP device queues towards the appliance, as a lab's TUN devices do:
/// the kernel's own 500 are gone in one burst of a TCP window.
const QUEUE: u32 = 4096;
/// `IFF_UP` and `IFF_ALLMULTI` as they stand in a link's flags.
const UP: u32 = libc::IFF_UP.unsigned_abs();
const ALLMULTI: u32 = libc::IFF_ALLMULTI.unsigned_abs();

/// Which interfaces to take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Names; empty: every interface but `lo`.
    pub only: Vec<String>,
}

/// What was taken.
#[derive(Debug)]
pub struct Taken<T> {
    /// The interfaces, each with its TAP.
    pub interfaces: Vec<TakenInterface<T>>,
    /// Interfaces that are up and were not wanted. Nothing filters them.
    pub left_open: Vec<String>,
    /// Whether an interface that appears later is closed to frames of every kind
    /// (Linux 6.18 and newer), or to IPv4 and IPv6 packets alone. In the latter case ARP is
    /// answered on it, and a process with NET_RAW can use packet sockets there.
    pub closes_frames_of_later_interfaces: bool,
}

/// An interface that was taken.
#[derive(Debug)]
pub struct TakenInterface<T> {
    /// Its name, which the TAP device has now.
    pub name: String,
    /// The TAP device's index.
    pub index: u32,
    /// The TAP device, as it was opened.
    pub tap: T,
    /// What the device itself is called now.
    pub raw_name: String,
    /// The device's own index, which it always had.
    pub raw_index: u32,
    /// The MAC of both.
    pub mac: [u8; 6],
    /// The MTU of both, in bytes without the Ethernet header.
    pub mtu: u32,
    /// The addresses, link-local ones too, with their prefixes.
    pub addresses: Vec<IpNet>,
}

/// Takes the interfaces of the calling thread's network namespace. `secret` is what
/// frames must bear to leave by a raw device; `open_tap` opens a TAP device of the
/// name that it is given, which must vanish when it is closed. It may be called in whatever state an
/// earlier, killed run left the namespace. Until the data path runs, nothing passes: frames
/// from the workload wait at the TAP devices, frames from outside end at the raw ones, where
/// only packet sockets see them.
///
/// A workload's sockets go on, except where they name the device by its index: bound to it
/// (`SO_BINDTODEVICE`), or members of a multicast group on it.
///
/// # Errors
/// An interface that can't be taken, a missing privilege or kernel feature. What was closed by then
/// stays closed, and the call may be repeated.
pub fn take<T>(
    wanted: &Wanted,
    secret: Secret,
    open_tap: impl FnMut(&str) -> io::Result<T>,
) -> Result<Taken<T>, SidecarError> {
    take_watched(wanted, secret, open_tap, &mut || {})
}

/// Gives all taken interfaces back and opens the namespace, by what is written down in it. The
/// TAP devices must have been closed. Where nothing was taken, whatever [`close`] closed is opened.
///
/// # Errors
/// The kernel's refusal. The call may be repeated.
pub fn give_back() -> Result<Vec<String>, SidecarError> {
    give_back_watched(&mut || {})
}

/// Closes a whole network namespace without taking anything: nothing but `lo` passes. Where it is
/// closed already, by this or by [`take`], it stays as it is.
///
/// # Errors
/// A missing privilege or kernel feature.
pub fn close() -> Result<(), SidecarError> {
    let mut watch = || {};
    let mut kernel = Kernel::open(&mut watch)?;
    if hooks::is_closed(&mut kernel)? {
        return Ok(());
    }
    let links = kernel.links()?;
    let closed = links.into_iter().filter(|link| link.index != LOOPBACK);
    let tables = Tables {
        closed: closed.map(|link| (link.index, link.name)).collect(),
        ..Tables::default()
    };
    tables.put(&mut kernel)
}

/// Reads back from the kernel that every taken device is closed by its hooks to all but marked
/// frames, and the namespace to all but `lo`, the TAP devices and what was left open.
///
/// # Errors
/// What is not as it should be.
pub fn verify<T>(taken: &Taken<T>, secret: Secret) -> Result<(), SidecarError> {
    let mut watch = || {};
    let mut kernel = Kernel::open(&mut watch)?;
    for this in &taken.interfaces {
        let raw = (this.raw_index, this.raw_name.as_str());
        hooks::verify(&mut kernel, raw, this.index, secret)?;
    }
    Ok(())
}

/// [`take`], which tells `watch` of each change that it has made to the namespace: tests stop it
/// there.
///
/// # Errors
/// As [`take`].
pub fn take_watched<T>(
    wanted: &Wanted,
    secret: Secret,
    mut open_tap: impl FnMut(&str) -> io::Result<T>,
    watch: &mut dyn FnMut(),
) -> Result<Taken<T>, SidecarError> {
    let mut kernel = Kernel::open(watch)?;
    let plan = Plan::make(&mut kernel, wanted)?;
    let unwanted: Vec<Target<'_>> = plan.unwanted.iter().map(own).collect();
    return_devices(&mut kernel, &unwanted)?;
    let open: Vec<u32> = plan.left_open.iter().map(|link| link.index).collect();
    let mut tables = Tables {
        closed: plan.idle.clone(),
        open,
        returning: plan.unwanted.iter().collect(),
        ..Tables::default()
    };

    // Nothing has been changed so far, and from here on nothing passes.
    let names = |kernel: &mut Kernel<'_>| -> Result<Vec<String>, SidecarError> {
        let links = kernel.links()?;
        let name = |saved: &Saved| find(&links, saved.link.index).map(|link| link.name.clone());
        let these = plan.taking.iter();
        Ok(these.map(|saved| name(saved).unwrap_or_default()).collect())
    };
    tables.taken = plan.taking.iter().zip(names(&mut kernel)?).collect();
    tables.put(&mut kernel)?;
    for saved in &plan.taking {
        set_aside(&mut kernel, saved)?;
    }
    // Newer kernels' hooks have stayed with the names that the devices no longer have.
    tables.taken = plan.taking.iter().zip(names(&mut kernel)?).collect();
    tables.put(&mut kernel)?;
    for saved in &plan.taking {
        bring_up_raw(&mut kernel, saved.link.index)?;
    }

    let mut taps = Vec::with_capacity(plan.taking.len());
    for saved in &plan.taking {
        let name = &saved.link.name;
        let tap = open_tap(name).map_err(|source| tap_error(name, source))?;
        kernel.changed();
        let links = kernel.links()?;
        let link = links.into_iter().find(|link| link.name == *name);
        let link = link.ok_or_else(|| tap_error(name, io::ErrorKind::NotFound.into()))?;
        let target = Target {
            index: link.index,
            saved,
        };
        target.prepare(&mut kernel, &link, Some(QUEUE))?;
        taps.push((tap, target));
    }
    // Before they come up, so that what the kernel announces then isn't lost.
    tables.open.extend(taps.iter().map(|(_, tap)| tap.index));
    tables.secret = Some(secret);
    tables.put(&mut kernel)?;
    let targets: Vec<Target<'_>> = taps.iter().map(|(_, target)| *target).collect();
    bring_up(&mut kernel, &targets)?;
    let all: Vec<Target<'_>> = targets.into_iter().chain(unwanted).collect();
    restore::routes(&mut kernel, &all)?;
    for target in &all {
        target.introduce(&mut kernel)?;
    }
    if !plan.unwanted.is_empty() {
        tables.returning.clear();
        tables.put(&mut kernel)?;
    }

    let closes_frames_of_later_interfaces = kernel.catches_all;
    Ok(Taken {
        interfaces: taps
            .into_iter()
            .zip(&tables.taken)
            .map(|((tap, target), (saved, raw_name))| TakenInterface {
                name: saved.link.name.clone(),
                index: target.index,
                tap,
                raw_name: raw_name.clone(),
                raw_index: saved.link.index,
                mac: saved.mac(),
                mtu: saved.link.mtu,
                addresses: saved.nets(),
            })
            .collect(),
        left_open: plan
            .left_open
            .iter()
            .map(|link| link.name.clone())
            .collect(),
        closes_frames_of_later_interfaces,
    })
}

/// [`give_back`], which tells `watch` of each change that it has made.
///
/// # Errors
/// As [`give_back`].
pub fn give_back_watched(watch: &mut dyn FnMut()) -> Result<Vec<String>, SidecarError> {
    let mut kernel = Kernel::open(watch)?;
    let links = kernel.links()?;
    let mut saved = hooks::read_saved(&mut kernel)?;
    saved.retain(|saved| still_there(saved, &links));
    let targets: Vec<Target<'_>> = saved.iter().map(own).collect();
    return_devices(&mut kernel, &targets)?;
    restore::routes(&mut kernel, &targets)?;
    for target in &targets {
        target.introduce(&mut kernel)?;
    }
    hooks::remove(&mut kernel)?;
    Ok(saved.into_iter().map(|saved| saved.link.name).collect())
}

/// What to do with each interface.
#[derive(Debug, Default)]
struct Plan {
    /// Taken before, or to be taken now.
    taking: Vec<Saved>,
    /// Taken before, and not wanted any more.
    unwanted: Vec<Saved>,
    /// Up and not wanted.
    left_open: Vec<Link>,
    /// Down and not wanted: index and name.
    idle: Vec<(u32, String)>,
}

impl Plan {
    fn make(kernel: &mut Kernel<'_>, wanted: &Wanted) -> Result<Self, SidecarError> {
        let links = kernel.links()?;
        let mut earlier = hooks::read_saved(kernel)?;
        earlier.retain(|saved| still_there(saved, &links));
        for saved in &earlier {
            check_name_is_free(saved, &links)?;
        }
        let is_wanted =
            |name: &str| wanted.only.is_empty() || wanted.only.iter().any(|n| n == name);
        check_names(wanted, &earlier, &links)?;

        let mut plan = Self::default();
        let mut unsuitable = None;
        for link in links {
            if link.index == LOOPBACK {
                continue;
            }
            if let Some(at) = earlier.iter().position(|s| s.link.index == link.index) {
                let saved = earlier.swap_remove(at);
                if is_wanted(&saved.link.name) {
                    plan.taking.push(saved);
                } else {
                    plan.left_open.push(saved.link.clone());
                    plan.unwanted.push(saved);
                }
            } else if !is_wanted(&link.name) && link.up {
                plan.left_open.push(link);
            } else if !is_wanted(&link.name) || (!link.up && wanted.only.is_empty()) {
                plan.idle.push((link.index, link.name));
            } else if let Some(problem) = problem(&link) {
                unsuitable.get_or_insert((link.name, problem));
            } else {
                plan.taking.push(Saved::collect(kernel, &link)?);
            }
        }
        let names = |these: &[Saved]| these.iter().map(|saved| saved.link.name.clone()).collect();
        if let Some((name, problem)) = unsuitable {
            return Err(SidecarError::Unsuitable {
                name,
                problem,
                rest: names(&plan.taking),
            });
        }
        if plan.taking.is_empty() {
            let existing = plan.idle.into_iter().map(|(_, name)| name).collect();
            return Err(SidecarError::NoInterface { existing });
        }
        Ok(plan)
    }
}

/// Takes the device down and its name and addresses from it. It is down from the first of these
/// to the last, so it doesn't matter that on newer kernels the hooks stay with the name.
fn set_aside(kernel: &mut Kernel<'_>, saved: &Saved) -> Result<(), SidecarError> {
    let index = saved.link.index;
    let name = &saved.link.name;
    kernel.ask(format!("take {name} down"), set_link(index, 0, UP), 0)?;
    strip(kernel, index, name)?;
    let now = current(kernel, index, name)?;
    if now.name == *name {
        let raw_name = saved.raw_name();
        let message = set_link(index, 0, 0).with(Attribute::text(rt::IFLA_IFNAME, &raw_name));
        kernel.ask(format!("rename {name} to {raw_name}"), message, 0)?;
    }
    Ok(())
}

fn strip(kernel: &mut Kernel<'_>, index: u32, name: &str) -> Result<(), SidecarError> {
    // The first one last: with it the kernel may remove those that it leads.
    for mut message in kernel.addresses(index)?.into_iter().rev() {
        message.kind = libc::RTM_DELADDR;
        let fine = [libc::EADDRNOTAVAIL];
        kernel.ask_unless(&fine, format!("take the addresses of {name}"), message, 0)?;
    }
    Ok(())
}

/// Brings the raw device up, for the packet socket alone: it gets no address of its own, and
/// hears the groups that the TAP device's addresses are in.
fn bring_up_raw(kernel: &mut Kernel<'_>, index: u32) -> Result<(), SidecarError> {
    let link = current(kernel, index, "the device")?;
    set_gen_mode(kernel, &link, rt::GEN_MODE_NONE)?;
    let message = set_link(index, UP | ALLMULTI, UP | ALLMULTI);
    kernel.ask(format!("bring {} up", link.name), message, 0)
}

/// Makes devices again what they were, but for their routes: these may lead over several.
fn return_devices(kernel: &mut Kernel<'_>, targets: &[Target<'_>]) -> Result<(), SidecarError> {
    for target in targets {
        let saved = target.saved;
        let links = kernel.links()?;
        check_name_is_free(saved, &links)?;
        let index = target.index;
        let name = &saved.link.name;
        kernel.ask(format!("take {name} down"), set_link(index, 0, UP), 0)?;
        // A run that was killed early has left it its addresses; a new name changes their labels.
        strip(kernel, index, name)?;
        let now = current(kernel, index, name)?;
        if now.name != *name {
            let message = set_link(index, 0, 0).with(Attribute::text(rt::IFLA_IFNAME, name));
            kernel.ask(format!("give {name} its name back"), message, 0)?;
        }
        let flags = saved.link.message.head_u32(8) & ALLMULTI;
        let message = set_link(index, flags, ALLMULTI);
        kernel.ask(format!("set the flags of {name}"), message, 0)?;
        let now = current(kernel, index, name)?;
        target.prepare(kernel, &now, None)?;
    }
    bring_up(kernel, targets)
}

/// Up, with addresses.
fn bring_up(kernel: &mut Kernel<'_>, targets: &[Target<'_>]) -> Result<(), SidecarError> {
    for target in targets {
        let name = &target.saved.link.name;
        let message = set_link(target.index, UP, UP);
        kernel.ask(format!("bring {name} up"), message, 0)?;
        let now = current(kernel, target.index, name)?;
        target.address(kernel, &now)?;
    }
    Ok(())
}

/// The device itself, which is to become what it was.
fn own(saved: &Saved) -> Target<'_> {
    Target {
        index: saved.link.index,
        saved,
    }
}

fn find(links: &[Link], index: u32) -> Option<&Link> {
    links.iter().find(|link| link.index == index)
}

fn current(kernel: &mut Kernel<'_>, index: u32, name: &str) -> Result<Link, SidecarError> {
    let links = kernel.links()?;
    find(&links, index).cloned().ok_or_else(|| {
        let gone = io::Error::from_raw_os_error(libc::ENODEV);
        SidecarError::refused(format!("look at {name}"), gone)
    })
}

/// An index alone could be that of a device that came from another namespace since.
fn still_there(saved: &Saved, links: &[Link]) -> bool {
    find(links, saved.link.index).is_some_and(|link| link.mac == saved.link.mac)
}

fn check_name_is_free(saved: &Saved, links: &[Link]) -> Result<(), SidecarError> {
    let name = &saved.link.name;
    let holder = links.iter().find(|link| link.name == *name);
    match holder.filter(|link| link.index != saved.link.index) {
        None => Ok(()),
        Some(link) if link.driver == "tun" => {
            Err(SidecarError::AlreadyTaken { name: name.clone() })
        }
        Some(_) => Err(SidecarError::NameInUse {
            name: name.clone(),
            raw: find(links, saved.link.index).map_or_else(String::new, |link| link.name.clone()),
        }),
    }
}

fn check_names(wanted: &Wanted, earlier: &[Saved], links: &[Link]) -> Result<(), SidecarError> {
    let is_taken = |link: &&Link| earlier.iter().any(|s| s.link.index == link.index);
    let existing: Vec<String> = links
        .iter()
        .filter(|link| link.index != LOOPBACK && !is_taken(link))
        .map(|link| link.name.clone())
        .chain(earlier.iter().map(|saved| saved.link.name.clone()))
        .collect();
    match wanted.only.iter().find(|name| !existing.contains(name)) {
        None => Ok(()),
        Some(name) => Err(SidecarError::UnknownInterface {
            name: name.clone(),
            existing,
        }),
    }
}

fn problem(link: &Link) -> Option<String> {
    if link.hardware != libc::ARPHRD_ETHER || link.mac.len() != 6 {
        Some("is no Ethernet interface".to_owned())
    } else if link.master.is_some() {
        Some("is a port of a bridge or bond".to_owned())
    } else {
        None
    }
}

fn tap_error(name: &str, source: io::Error) -> SidecarError {
    SidecarError::Tap {
        name: name.to_owned(),
        source,
    }
}
