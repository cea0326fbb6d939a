//! Indices into a [`Model`](super::Model)'s lists, and AWS-shaped ids.

use std::fmt;

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u32);

        impl $name {
            /// The index of the `i`-th element.
            ///
            /// # Panics
            /// Beyond `u32::MAX` elements, which no loader admits.
            pub fn new(i: usize) -> Self {
                Self(u32::try_from(i).expect("invariant: lists are shorter than u32::MAX"))
            }

            /// The position in the list.
            pub fn ix(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index!(
    /// Position of a subnet in `Model::subnets`.
    SubnetIx
);
index!(
    /// Position of a security group in `Model::security_groups`.
    GroupIx
);
index!(
    /// Position of a prefix list in `Model::prefix_lists`.
    PrefixListIx
);
index!(
    /// Position of a network ACL in `Model::network_acls`.
    AclIx
);
index!(
    /// Position of a route table in `Model::route_tables`.
    RouteTableIx
);
index!(
    /// Position of an entity in `Model::entities`.
    EntityIx
);
index!(
    /// Position of a network interface in `Model::interfaces`.
    InterfaceIx
);

/// Id of a security group rule: `sgr-` and 17 hex digits, the first of which
/// is 0 in every id AWS gives out, so 64 bits hold it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(pub u64);

impl RuleId {
    /// Reads `sgr-0…` with 16 hex digits after the 0; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sgr-0")?;
        let lower_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if digits.len() != 16 || !digits.chars().all(lower_hex) {
            return None;
        }
        u64::from_str_radix(digits, 16).ok().map(Self)
    }

    /// The id of a rule that its author gave none: the same rule in the same
    /// group always has the same id, wherever in the file it stands.
    pub fn derive(parts: &[&str]) -> Self {
        Self(fnv1a(parts))
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sgr-0{:016x}", self.0)
    }
}

impl fmt::Debug for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An AWS-shaped id, `PREFIX-0` and 16 hex digits, that depends on `parts` only.
pub fn derive_id(prefix: &str, parts: &[&str]) -> String {
    format!("{prefix}-0{:016x}", fnv1a(parts))
}

/// FNV-1a, 64 bits, over the parts with a separator that no name contains.
fn fnv1a(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut eat = |byte: u8| {
        hash ^= u64::from(byte);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    };
    for part in parts {
        part.bytes().for_each(&mut eat);
        eat(0x1f);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_ids_read_back_as_they_are_written() {
        let id = RuleId::derive(&["sg-1", "ingress", "tcp 22"]);
        assert_eq!(RuleId::parse(&id.to_string()), Some(id));
    }

    #[test]
    fn malformed_rule_ids_are_refused() {
        for text in [
            "",
            "sgr-",
            "sgr-0",
            "sgr-1234567890abcdef0",
            "sg-00123456789abcdef",
            "sgr-0+123456789abcdef",
            "sgr-00123456789ABCDEF",
        ] {
            assert_eq!(RuleId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(derive_id("sg", &["ab", "c"]), derive_id("sg", &["a", "bc"]));
    }
}
