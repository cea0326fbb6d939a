//! What things may be called, and how references find them.

use std::collections::HashMap;

use ipnet::IpNet;

use super::diagnostic::{Report, quoted};
use super::reader::{Entry, Fields, is_id};
use super::source::Span;
use super::yaml::{Node, Value};
use crate::model::{GroupIx, PrefixListIx};

/// Longest group name and description (aws-semantics §1.1, §1.5).
pub(super) const MAX_TEXT: usize = 255;
/// Longest key and value of a tag (aws-semantics §1.1).
const MAX_TAG_KEY: usize = 127;
const MAX_TAG_VALUE: usize = 256;
/// Longest DNS label (RFC 1035 §2.3.4).
const MAX_NAME: usize = 63;

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Every name and id that a rule or an entity may refer to.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) groups: HashMap<String, GroupIx>,
    pub(super) group_ids: HashMap<String, GroupIx>,
    pub(super) lists: HashMap<String, PrefixListIx>,
    pub(super) list_ids: HashMap<String, PrefixListIx>,
    /// The id of each group, by position.
    pub(super) id_of_group: Vec<String>,
    /// The id and family of each prefix list, by position.
    pub(super) id_of_list: Vec<(String, Option<Family>)>,
    /// A file could not be read, so a missing name proves nothing.
    pub(super) incomplete: bool,
}

/// Characters that AWS admits in names and descriptions (§1.1, §1.5).
pub(super) fn is_admitted(c: char) -> bool {
    c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c)
}

/// A description of at most 255 characters of AWS's set.
pub(super) fn read_description(
    report: &mut Report,
    node: &Node,
    what: &str,
    ampersand: bool,
) -> String {
    let Value::Scalar { text, .. } = &node.value else {
        report
            .wrong_type(node, &format!("`description` of {what}"), "a string")
            .help("for example `description: HTTPS from anywhere`");
        return String::new();
    };
    if node.is_null() {
        return String::new();
    }
    let length = text.chars().count();
    let bad = text
        .chars()
        .find(|&c| !is_admitted(c) || (c == '&' && !ampersand));
    if length > MAX_TEXT {
        report
            .error(
                node.span,
                format!("`description` of {what} has {length} characters"),
            )
            .help(format!("AWS admits at most {MAX_TEXT}"));
    } else if let Some(c) = bad {
        let help = if c == '&' {
            "AWS does not admit `&` where the peer is a group or a prefix list; write `and`"
        } else {
            "AWS admits a-z, A-Z, 0-9, spaces and ._-:/()#,@[]+=&;{}!$*"
        };
        report
            .error(
                node.span,
                format!(
                    "`description` of {what} holds {}, which AWS refuses",
                    quoted(&c.to_string())
                ),
            )
            .help(help);
    }
    text.to_string()
}

/// Holds `tags:` to what AWS admits. Nothing here has a use for them; whoever
/// copies a group from AWS has them.
pub(super) fn check_tags(report: &mut Report, fields: &Fields<'_>, what: &str) {
    let Some(node) = fields.get("tags").filter(|node| !node.is_null()) else {
        return;
    };
    let tags = report.entries(node, &format!("`tags` of {what}"));
    for tag in tags.unwrap_or_default() {
        let length = tag.name.chars().count();
        let reserved = tag
            .name
            .get(..4)
            .is_some_and(|start| start.eq_ignore_ascii_case("aws:"));
        let (message, help) = if length == 0 || length > MAX_TAG_KEY {
            ("has no key of 1 to 127 characters", "shorten the key")
        } else if reserved {
            (
                "has a key that AWS keeps for itself",
                "choose a key that does not start with `aws:`",
            )
        } else {
            let Value::Scalar { text, .. } = &tag.value.value else {
                report
                    .wrong_type(
                        tag.value,
                        &format!("tag {} of {what}", quoted(tag.name)),
                        "a string",
                    )
                    .help("for example `tags: { team: web }`");
                continue;
            };
            if text.chars().count() <= MAX_TAG_VALUE {
                continue;
            }
            (
                "has a value of more than 256 characters",
                "shorten the value",
            )
        };
        report
            .error(
                tag.key,
                format!("tag {} of {what} {message}", quoted(tag.name)),
            )
            .help(help);
    }
}

/// Resolves a group by name or id, or says why not. `None` without a
/// diagnostic where names are missing anyway. `sigil` is what stands before
/// the name in the file: `sg/` or nothing.
pub(super) fn find_group(
    report: &mut Report,
    names: &Names,
    span: Span,
    sigil: &str,
    name: &str,
) -> Option<GroupIx> {
    if let Some(ix) = names.groups.get(name).or_else(|| names.group_ids.get(name)) {
        return Some(*ix);
    }
    if names.incomplete {
        return None;
    }
    let near = report.nearest(name, names.groups.keys().map(String::as_str));
    let help = if let Some(bare) = name.strip_prefix("sg/")
        && (names.groups.contains_key(bare) || names.group_ids.contains_key(bare))
    {
        format!("write `{bare}`; `sg/` is for `from` and `to`")
    } else if is_id(name, "sg") || name.starts_with("sg-") {
        "write a group's name, or give the group this `id:` under `security_groups`".into()
    } else {
        unknown_help(sigil, near, "security_groups")
    };
    report
        .error(span, format!("there is no security group {}", quoted(name)))
        .help(help);
    None
}

/// Resolves a prefix list by name or id, or says why not.
pub(super) fn find_list(
    report: &mut Report,
    names: &Names,
    span: Span,
    name: &str,
) -> Option<PrefixListIx> {
    if let Some(ix) = names.lists.get(name).or_else(|| names.list_ids.get(name)) {
        return Some(*ix);
    }
    if names.incomplete {
        return None;
    }
    let near = report.nearest(name, names.lists.keys().map(String::as_str));
    let help = unknown_help("pl/", near, "prefix_lists");
    report
        .error(span, format!("there is no prefix list {}", quoted(name)))
        .help(help);
    None
}

fn unknown_help(sigil: &str, near: Option<&str>, section: &str) -> String {
    match near {
        Some(near) => format!("did you mean {}?", quoted(&format!("{sigil}{near}"))),
        None => format!("define it under `{section}`, or use the name of one that is there"),
    }
}

/// Whether an entity may have this name, or what to do about it.
pub(super) fn check_entity_name(report: &mut Report, entry: &Entry<'_>) {
    let name = entry.name;
    let label = !name.is_empty()
        && name.len() <= MAX_NAME
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-');
    let help = if !label {
        "use lower-case letters, digits and inner hyphens, at most 63: the name is the entity's host name"
    } else if name == "localhost" {
        "every host calls itself `localhost`; choose another name"
    } else if name.starts_with("eni-") {
        "`eni-…` is the id of an interface; choose another name"
    } else if reads_as_number(name) {
        "programs take a number for an address (`ping 123` pings 0.0.0.123); begin with a letter"
    } else {
        return;
    };
    report
        .error(
            entry.key,
            format!("{} can't be the name of an entity", quoted(name)),
        )
        .help(help);
}

/// Whether `inet_aton` would read it as an address in one number: decimal,
/// octal or hexadecimal.
fn reads_as_number(name: &str) -> bool {
    match name.strip_prefix("0x") {
        Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
        None => name.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// Things of one kind, by name and by id.
#[derive(Debug)]
pub(super) struct Lookup<Ix>(HashMap<String, Ix>);

impl<Ix: Copy> Lookup<Ix> {
    /// From each thing's name and id, by position. A name wins against an id
    /// that reads the same.
    pub(super) fn new<'a>(
        things: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        index: fn(usize) -> Ix,
    ) -> Self {
        let mut found = HashMap::new();
        for (i, (name, _)) in things.clone().enumerate() {
            found.insert(name.to_owned(), index(i));
        }
        for (i, (_, id)) in things.enumerate() {
            found.entry(id.to_owned()).or_insert(index(i));
        }
        Self(found)
    }

    /// Where the thing called `name` is.
    pub(super) fn get(&self, name: &str) -> Option<Ix> {
        self.0.get(name).copied()
    }

    /// Resolves what `node` names, or says why not: `what` is the kind of
    /// thing, `section` where such things are defined. Where something is
    /// missing from the files anyway (`incomplete`) nothing is said.
    pub(super) fn find(
        &self,
        report: &mut Report,
        node: &Node,
        (what, section): (&str, &str),
        incomplete: bool,
    ) -> Option<Ix> {
        let name = report.text(node, &format!("a {what}"), "`data`")?;
        let found = self.get(name);
        if found.is_some() || incomplete {
            return found;
        }
        let near = report.nearest(name, self.0.keys().map(String::as_str));
        let help = unknown_help("", near, section);
        report
            .error(node.span, format!("there is no {what} {}", quoted(name)))
            .help(help);
        None
    }
}
