//! From nodes to Rust values: each step checks the type it needs and says what
//! it found instead.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use super::diagnostic::{Report, quoted};
use super::foreign;
use super::source::Span;
use super::suggest::nearest;
use super::yaml::{Node, Value};

/// One `key: value` of a mapping.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'n> {
    pub(super) name: &'n str,
    pub(super) key: Span,
    pub(super) value: &'n Node,
}

/// A mapping whose keys are known beforehand.
#[derive(Debug, Clone)]
pub(super) struct Fields<'n> {
    /// The whole mapping.
    pub(super) span: Span,
    entries: Vec<Entry<'n>>,
}

impl<'n> Fields<'n> {
    pub(super) fn entry(&self, name: &str) -> Option<Entry<'n>> {
        self.entries
            .iter()
            .copied()
            .find(|entry| entry.name == name)
    }

    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.entry(name).map(|entry| entry.value)
    }
}

impl Report {
    /// The entries of a mapping; repeated keys are errors and left out.
    pub(super) fn entries<'n>(&mut self, node: &'n Node, what: &str) -> Option<Vec<Entry<'n>>> {
        let Value::Map(pairs) = &node.value else {
            self.wrong_type(node, what, "a mapping")
                .help("write `key: value` lines below it, or `{ key: value }`");
            return None;
        };
        let mut seen: HashMap<&str, Span> = HashMap::with_capacity(pairs.len());
        let mut entries = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let Value::Scalar { text, .. } = &key.value else {
                self.error(
                    key.span,
                    format!("a key must be a word, but this is {}", key.kind()),
                )
                .help("write one word before the colon");
                continue;
            };
            let name = &**text;
            if name == "<<" {
                self.error(key.span, "YAML merge keys are not supported")
                    .help("write the merged keys out");
                continue;
            }
            if let Some(first) = seen.get(name) {
                let first = *first;
                self.error(key.span, format!("{} is given twice", quoted(name)))
                    .also(first, "first given here")
                    .help("keep one of the two, or rename one");
                continue;
            }
            seen.insert(name, key.span);
            entries.push(Entry {
                name,
                key: key.span,
                value,
            });
        }
        Some(entries)
    }

    /// A mapping with known keys; the others are errors.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        known: &[&str],
    ) -> Option<Fields<'n>> {
        let mut entries = self.entries(node, what)?;
        for at in 0..entries.len() {
            let entry = entries[at];
            if !known.contains(&entry.name) {
                let own = foreign::own_key(entry.name).filter(|own| known.contains(own));
                let help = match (own, nearest(entry.name, known.iter().copied())) {
                    (Some(own), _) => format!("write `{own}`"),
                    (None, Some(near)) => format!("did you mean `{near}`?"),
                    (None, None) => format!("the keys of {what} are {}", list_of(known)),
                };
                if let Some(own) = own
                    && entries.iter().all(|entry| entry.name != own)
                {
                    // Read under its correct name, so that it isn't reported as missing as well.
                    entries[at].name = own;
                }
                self.error(
                    entry.key,
                    format!("{what} has no key {}", quoted(entry.name)),
                )
                .help(help);
            }
        }
        Some(Fields {
            span: node.span,
            entries,
        })
    }

    /// A word or text that is not empty.
    pub(super) fn text<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        example: &str,
    ) -> Option<&'n str> {
        match &node.value {
            Value::Scalar { text, .. } if !node.is_null() && !text.trim().is_empty() => Some(text),
            _ => {
                self.wrong_type(node, what, "a string")
                    .help(format!("for example {example}"));
                None
            }
        }
    }

    /// The items of a list.
    pub(super) fn list<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        help: &str,
    ) -> Option<&'n [Node]> {
        let Value::List(items) = &node.value else {
            self.wrong_type(node, what, "a list").help(help);
            return None;
        };
        Some(items)
    }

    /// One value, or a list of them with at least one item.
    pub(super) fn one_or_list<'n>(
        &mut self,
        node: &'n Node,
        what: &str,
        help: &str,
    ) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(items) if items.is_empty() => {
                self.error(node.span, format!("{what} is an empty list"))
                    .help(help);
                None
            }
            Value::List(items) => Some(items),
            Value::Scalar { .. } if !node.is_null() => Some(std::slice::from_ref(node)),
            _ => {
                self.wrong_type(node, what, "a value or a list of values")
                    .help(help);
                None
            }
        }
    }

    /// A whole number in decimal within `range`.
    pub(super) fn number(
        &mut self,
        node: &Node,
        what: &str,
        range: RangeInclusive<i64>,
    ) -> Option<i64> {
        let remedy = format!("write a number from {} to {}", range.start(), range.end());
        let text = match &node.value {
            Value::Scalar { text, .. } if !node.is_null() => text,
            _ => {
                self.wrong_type(node, what, "a number").help(remedy);
                return None;
            }
        };
        let Some(number) = decimal(text) else {
            self.error(
                node.span,
                format!("{what} must be a number, not {}", quoted(text)),
            )
            .help(remedy);
            return None;
        };
        if !range.contains(&number) {
            self.error(
                node.span,
                format!(
                    "{what} must be from {} to {}, not {}",
                    range.start(),
                    range.end(),
                    quoted(text)
                ),
            )
            .help(remedy);
            return None;
        }
        Some(number)
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, node: &Node, what: &str) -> Option<bool> {
        match &node.value {
            Value::Scalar { text, plain: true } if matches!(&**text, "true" | "True" | "TRUE") => {
                Some(true)
            }
            Value::Scalar { text, plain: true }
                if matches!(&**text, "false" | "False" | "FALSE") =>
            {
                Some(false)
            }
            _ => {
                self.wrong_type(node, what, "true or false")
                    .help("write `true` or `false`, without quotes");
                None
            }
        }
    }

    /// An id as AWS writes them: prefix, hyphen, 8 or 17 lower-case hex digits.
    pub(super) fn id(&mut self, node: &Node, what: &str, prefix: &str) -> Option<String> {
        let example = format!("{prefix}-0123456789abcdef0");
        let text = self.text(node, &format!("`id` of {what}"), &format!("`{example}`"))?;
        if is_id(text, prefix) {
            return Some(text.to_owned());
        }
        self.error(node.span, format!("{} is no id of {what}", quoted(text)))
            .help(format!(
                "write `{prefix}-` and 8 or 17 hex digits as in `{example}`, or remove `id` to have one derived"
            ));
        None
    }

    /// Says what was needed and what is there.
    pub(super) fn wrong_type(
        &mut self,
        node: &Node,
        what: &str,
        needed: &str,
    ) -> &mut super::diagnostic::Draft {
        self.error(
            node.span,
            format!("{what}: expected {needed}, found {}", node.kind()),
        )
    }
}

/// Whether `text` is an id with this prefix.
pub(super) fn is_id(text: &str, prefix: &str) -> bool {
    let digits = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('-'));
    digits.is_some_and(|digits| {
        matches!(digits.len(), 8 | 17)
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A decimal number without tricks: YAML 1.1 readers take `010` for 8.
pub(super) fn decimal(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if !plain || (digits.len() > 1 && digits.starts_with('0')) {
        return None;
    }
    text.parse().ok()
}

/// `` `a`, `b` and `c` ``.
pub(super) fn list_of(words: &[&str]) -> String {
    let mut text = String::new();
    for (i, word) in words.iter().enumerate() {
        let joint = match i {
            0 => "",
            _ if i + 1 == words.len() => " and ",
            _ => ", ",
        };
        // Writing to a string can't fail.
        let _ = write!(text, "{joint}`{word}`");
    }
    text
}
