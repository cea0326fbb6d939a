//! What was proven of an interface, and what was not.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One probe of the proof at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// A forbidden packet towards the interface must not arrive.
    ForbiddenIn,
    /// An allowed packet towards the interface must arrive.
    AllowedIn,
    /// A forbidden packet from the interface must not leave.
    ForbiddenOut,
    /// An allowed packet from the interface must leave.
    AllowedOut,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ForbiddenIn => {
                "a forbidden packet towards it arrived or was not counted as dropped"
            }
            Self::AllowedIn => "an allowed packet towards it did not arrive",
            Self::ForbiddenOut => "a forbidden packet from it left or was not counted as dropped",
            Self::AllowedOut => "an allowed packet from it did not leave",
        })
    }
}

/// Whether an interface has been shown to enforce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Proof {
    /// Not tried yet.
    Pending,
    /// Outside the VPC: there is nothing to enforce.
    Outside,
    /// Forbidden packets were dropped and allowed ones arrived, both ways, for
    /// each of its addresses.
    Proven,
    /// It could not be shown; traffic may be filtered or not.
    Unproven {
        /// Why, for people.
        why: String,
    },
}

impl Proof {
    /// Whether nothing speaks against relying on the interface.
    pub fn holds(&self) -> bool {
        matches!(self, Self::Proven | Self::Outside)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pending => f.write_str("not proven yet"),
            Self::Outside => f.write_str("outside"),
            Self::Proven => f.write_str("proven"),
            Self::Unproven { why } => write!(f, "UNENFORCED: {why}"),
        }
    }
}
