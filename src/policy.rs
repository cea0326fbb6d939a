//! Model to compiled lookups.

mod reason;

pub use reason::DropReason;
