//! One container's interfaces: taken over, so that all that enters or leaves its
//! network namespace goes through the data path, and given back.
//!
//! [`take`] changes the namespace of the calling thread, over netlink only. For each
//! interface:
//!
//! | before | after |
//! |---|---|
//! | `eth0`, the device | `sgw-eth0`, up, without addresses; closed by hooks in the kernel to all but frames that bear a secret |
//! | | `eth0`, a TAP device with the same MAC, MTU, addresses, routes and settings |
//!
//! **What closes a device** are two nf_tables tables called `sgwall` (see `hooks`). They
//! outlive the process, and no step opens a device before the hooks are in force: on kernels up
//! to 6.15 hooks stay with the device when it is renamed, on newer ones they stay with the name, so
//! a device is renamed while it is down, and comes up only when it is hooked by its new name.
//!
//! **What it takes to give an interface back** is kept in the same tables, written in the
//! transaction that closes the device and before anything else is changed. So whatever step a run is
//! killed at, the next one finds all that it needs; no file is written.

pub mod confine;
pub mod dns;
mod error;
mod hooks;
pub mod keeper;
mod kernel;
mod lookup;
pub mod members;
mod netlink;
mod nft;
pub mod resolver;
mod restore;
mod rt;
mod saved;
mod take;
pub mod world;

pub use error::SidecarError;
pub use take::{Taken, TakenInterface, Wanted, close, give_back, take, verify};
#[doc(hidden)]
pub use take::{give_back_watched, take_watched};
