//! AWS security groups that filter real packets on your own machine.
//!
//! The house, top floor first; imports only point down this list.
//!
//! | module | what it owns |
//! |---|---|
//! | [`cli`] | one file per subcommand; text and JSON from the same value |
//! | [`lab`] | namespaces: make, enter, run a command in, take down |
//! | [`link`] | how frames reach the appliance: TUN devices, memory |
#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::cast_sign_loss))]

pub mod cli;
pub mod config;
pub mod lab;
pub mod link;
pub mod model;
pub mod policy;
