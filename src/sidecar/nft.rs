//! The few requests to nf_tables that the sidecar makes, and what it reads back.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`. A crate has typed messages for
//! these (`netlink-packet-netfilter`); it would bring five more crates for what is here.

use nix::libc::{NFPROTO_INET, NFPROTO_NETDEV};

use super::netlink::{Attribute, Message, find};

/// Both tables' name.
pub(super) const TABLE: &str = "sgwall";
/// Most bytes of userdata on a rule (`NFT_USERDATA_MAXLEN`), less the header of the
/// one record that is in it.
pub(super) const CHUNK: usize = 256 - 2;
/// The kind of our record in userdata, which programs that list rules skip: they know
/// small numbers, such as 0 for a comment.
const RECORD: u8 = 0x53;

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const DEVICE_NAME: u16 = 1;
const DEVICE_PREFIX: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NF_DROP` and `NF_ACCEPT`.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// `NFT_REG_VERDICT` and `NFT_REG_1`.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

/// A table's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Frames at a device.
    Netdev,
    /// IPv4 and IPv6 packets.
    Inet,
}

/// Where a chain looks at packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// Frames that a device receives, before anybody but packet sockets sees them.
    Ingress,
    /// Frames that a device is to send, however they got there. Kernel 5.16.
    Egress,
    /// Packets that were received, before it is known for whom they are.
    Prerouting,
    /// Packets that are about to leave, wherever they come from.
    Postrouting,
}

/// Which devices a chain of the netdev family is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Devices<'a> {
    /// The hook is not a device's.
    Any,
    /// The one of a name.
    Named(&'a str),
    /// All that there are and will be. Kernel 6.18.
    All,
}

/// What a rule asks of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Match {
    /// Its mark.
    Mark(u32),
    /// Its priority.
    Priority(u32),
    /// The index of the interface that it came in by.
    In(u32),
    /// The index of the interface that it leaves by.
    Out(u32),
}

/// A chain as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub name: String,
    /// None: a chain without a hook.
    pub hook: Option<u32>,
    /// Whether packets that no rule takes are dropped.
    pub drops: bool,
    /// The devices that it is for, by name.
    pub devices: Vec<String>,
}

/// A rule as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub chain: String,
    /// The rule's expressions, to be compared with [`expressions`].
    pub expressions: Option<Attribute>,
    /// Our record in its userdata.
    pub record: Vec<u8>,
}

impl Hook {
    /// The kernel's number: that of the netdev family for devices.
    pub fn number(self) -> u32 {
        match self {
            Self::Ingress | Self::Prerouting => 0,
            Self::Egress => 1,
            Self::Postrouting => 4,
        }
    }
}

/// Opens a transaction.
pub(super) fn begin() -> Message {
    Message::new(BATCH_BEGIN, &head(0, 10))
}

/// Closes a transaction: all before it happens, or nothing.
pub(super) fn end() -> Message {
    Message::new(BATCH_END, &head(0, 10))
}

/// Makes our table, or leaves it as it is.
pub(super) fn new_table(family: Family) -> Message {
    request(NEW_TABLE, family).with(Attribute::text(TABLE_NAME, TABLE))
}

/// Removes our table with all that is in it.
pub(super) fn delete_table(family: Family) -> Message {
    request(DELETE_TABLE, family).with(Attribute::text(TABLE_NAME, TABLE))
}

/// Makes a chain that drops what no rule of it accepts.
pub(super) fn new_base_chain(
    family: Family,
    name: &str,
    hook: Hook,
    priority: i32,
    devices: Devices<'_>,
) -> Message {
    let mut place = vec![
        Attribute::be32(HOOK_NUMBER, hook.number()),
        Attribute::new(HOOK_PRIORITY, priority.to_be_bytes()),
    ];
    match devices {
        Devices::Any => {}
        Devices::Named(device) => place.push(Attribute::nest(
            HOOK_DEVICES,
            &[Attribute::text(DEVICE_NAME, device)],
        )),
        Devices::All => place.push(Attribute::nest(
            HOOK_DEVICES,
            &[Attribute::text(DEVICE_PREFIX, "")],
        )),
    }
    new_chain(family, name)
        .with(Attribute::nest(CHAIN_HOOK, &place))
        .with(Attribute::be32(CHAIN_POLICY, DROP))
        .with(Attribute::text(CHAIN_TYPE, "filter"))
}

/// Makes a chain that no packet goes through.
pub(super) fn new_chain(family: Family, name: &str) -> Message {
    request(NEW_CHAIN, family)
        .with(Attribute::text(CHAIN_TABLE, TABLE))
        .with(Attribute::text(CHAIN_NAME, name))
}

/// Makes a rule that accepts what meets all of `matches`.
pub(super) fn accept(family: Family, chain: &str, matches: &[Match]) -> Message {
    new_rule(family, chain).with(expressions(matches))
}

/// Makes a rule that does nothing and keeps up to [`CHUNK`] bytes.
pub(super) fn keep(family: Family, chain: &str, bytes: &[u8]) -> Message {
    let bytes = &bytes[..bytes.len().min(CHUNK)];
    // CHUNK is less than 256.
    let mut record = vec![RECORD, u8::try_from(bytes.len()).unwrap_or(0)];
    record.extend(bytes);
    new_rule(family, chain).with(Attribute::new(RULE_USERDATA, record))
}

/// What a rule made by [`accept`] consists of.
pub(super) fn expressions(matches: &[Match]) -> Attribute {
    let mut list = Vec::new();
    for this in matches {
        // `nft_meta_keys`.
        let (key, value) = match *this {
            Match::Priority(value) => (2, value),
            Match::Mark(value) => (3, value),
            Match::In(value) => (4, value),
            Match::Out(value) => (5, value),
        };
        list.push(expression(
            "meta",
            &[Attribute::be32(1, REGISTER), Attribute::be32(2, key)],
        ));
        let data = Attribute::nest(3, &[Attribute::u32(1, value)]);
        list.push(expression(
            "cmp",
            &[Attribute::be32(1, REGISTER), Attribute::be32(2, 0), data],
        ));
    }
    let verdict = Attribute::nest(2, &[Attribute::be32(1, ACCEPT)]);
    let data = Attribute::nest(2, &[verdict]);
    list.push(expression(
        "immediate",
        &[Attribute::be32(1, VERDICT), data],
    ));
    Attribute::nest(RULE_EXPRESSIONS, &list)
}

/// Asks for all chains of a family.
pub(super) fn get_chains(family: Family) -> Message {
    request(GET_CHAIN, family)
}

/// Asks for all rules of our table.
pub(super) fn get_rules(family: Family) -> Message {
    request(GET_RULE, family).with(Attribute::text(RULE_TABLE, TABLE))
}

impl Chain {
    /// Reads one of our table's chains; none for others' chains and messages.
    pub fn read(message: &Message, family: Family) -> Option<Self> {
        if !ours(message, NEW_CHAIN, family, CHAIN_TABLE) {
            return None;
        }
        let hook = message.get(CHAIN_HOOK).map(Attribute::inner);
        let inner = hook.unwrap_or_default();
        let named = |this: &Attribute| this.kind() == DEVICE_NAME;
        let several = find(&inner, HOOK_DEVICES).map(Attribute::inner);
        let mut devices: Vec<String> = several
            .unwrap_or_default()
            .iter()
            .filter(|this| named(this))
            .map(Attribute::to_text)
            .collect();
        if devices.is_empty() {
            devices.extend(find(&inner, HOOK_DEVICE).map(Attribute::to_text));
        }
        Some(Self {
            name: message.get(CHAIN_NAME)?.to_text(),
            hook: find(&inner, HOOK_NUMBER).and_then(Attribute::to_be32),
            drops: message.get(CHAIN_POLICY).and_then(Attribute::to_be32) == Some(DROP),
            devices,
        })
    }
}

impl Rule {
    /// Reads one of our table's rules; none for others' rules and messages.
    pub fn read(message: &Message, family: Family) -> Option<Self> {
        if !ours(message, NEW_RULE, family, RULE_TABLE) {
            return None;
        }
        let userdata = message.get(RULE_USERDATA).map(|this| this.value.as_slice());
        let record = match userdata {
            Some([RECORD, length, bytes @ ..]) => bytes.get(..usize::from(*length)),
            _ => None,
        };
        Some(Self {
            chain: message.get(RULE_CHAIN)?.to_text(),
            expressions: message.get(RULE_EXPRESSIONS).cloned(),
            record: record.unwrap_or_default().to_vec(),
        })
    }

    /// Whether it is what [`accept`] makes of `matches`.
    pub fn accepts(&self, matches: &[Match]) -> bool {
        self.expressions
            .as_ref()
            .is_some_and(|these| same(these, &expressions(matches)))
    }
}

/// Whether the kernel's description has all that was asked for. The kernel gives
/// more, such as the length of what is compared, and leaves out flags.
fn same(found: &Attribute, asked: &Attribute) -> bool {
    if found.value == asked.value {
        return true;
    }
    let (found, asked) = (found.inner(), asked.inner());
    if found.is_empty() || asked.is_empty() {
        return false;
    }
    let list = |these: &[Attribute]| these.iter().all(|this| this.kind() == LIST_ELEMENT);
    if list(&asked) && list(&found) && asked.len() > 1 {
        return found.len() == asked.len() && found.iter().zip(&asked).all(|(a, b)| same(a, b));
    }
    asked
        .iter()
        .all(|this| find(&found, this.kind()).is_some_and(|that| same(that, this)))
}

fn ours(message: &Message, kind: u16, family: Family, table: u16) -> bool {
    message.kind == kind
        && message.head_u8(0) == family.number()
        && message
            .get(table)
            .is_some_and(|name| name.to_text() == TABLE)
}

fn new_rule(family: Family, chain: &str) -> Message {
    request(NEW_RULE, family)
        .with(Attribute::text(RULE_TABLE, TABLE))
        .with(Attribute::text(RULE_CHAIN, chain))
}

fn expression(name: &str, data: &[Attribute]) -> Attribute {
    Attribute::nest(
        LIST_ELEMENT,
        &[
            Attribute::text(EXPRESSION_NAME, name),
            Attribute::nest(EXPRESSION_DATA, data),
        ],
    )
}

fn request(kind: u16, family: Family) -> Message {
    Message::new(kind, &head(family.number(), 0))
}

/// `nfgenmsg`; the version is 0.
fn head(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

impl Family {
    fn number(self) -> u8 {
        let number = match self {
            Self::Netdev => NFPROTO_NETDEV,
            Self::Inet => NFPROTO_INET,
        };
        u8::try_from(number).unwrap_or(0)
    }
}
