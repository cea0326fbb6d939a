//! AWS security groups that filter real packets on your own machine.
//!
//! The house, top floor first; imports only point down this list.
//!
//! | module | what it owns |
//! |---|---|
//! | [`cli`] | one file per subcommand; text and JSON from the same value |
//! | [`lab`] | namespaces: make, enter, run a command in, take down |
//! | [`sidecar`] | one container's namespace: take its interfaces, give them back |
//! | [`engine`] | worker threads: poll links, run the data path, write; policy swap |
//! | [`link`] | how frames reach the appliance: TUN and TAP devices, packet sockets, memory |
//! | [`observe`] | counters, drop reasons, what was proven |
//! | [`datapath`] | sans-IO: policy, flows, interface, bytes, now → verdict with provenance |
//! | [`conntrack`] | the sharded table of flows, TCP states, idle timeouts |
//! | [`policy`] | model → compiled lookups; and the oracle that tests hold them to |
//! | [`packet`] | header view, flow key, address translation |
//! | [`config`] | files → model, with diagnostics |
//! | [`model`] | what a user declares, validated |

pub mod cli;
pub mod config;
pub mod conntrack;
pub mod datapath;
pub mod engine;
pub mod lab;
pub mod link;
pub mod model;
pub mod observe;
pub mod packet;
pub mod policy;
pub mod sidecar;
