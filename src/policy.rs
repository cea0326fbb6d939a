//! Model to compiled lookups.

pub mod oracle;
mod reason;

pub use reason::DropReason;
