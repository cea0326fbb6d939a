//! Numbers of rtnetlink's attributes (`linux/if_link.h`, `if_addr.h`, `rtnetlink.h`,
//! `neighbour.h`), which not every C library has.

/// A device's MAC.
pub(super) const IFLA_ADDRESS: u16 = 1;
/// A device's name.
pub(super) const IFLA_IFNAME: u16 = 3;
/// A device's MTU.
pub(super) const IFLA_MTU: u16 = 4;
/// The index of the device that it is a port of.
pub(super) const IFLA_MASTER: u16 = 10;
/// How many packets its queue takes.
pub(super) const IFLA_TXQLEN: u16 = 13;
/// Of which kind it is.
pub(super) const IFLA_LINKINFO: u16 = 18;
/// The kind's name, within the former.
pub(super) const IFLA_INFO_KIND: u16 = 1;
/// Settings for IPv4 and IPv6, within an attribute for each family.
pub(super) const IFLA_AF_SPEC: u16 = 26;
/// Settings for IPv4, in the order of their numbers.
pub(super) const IFLA_INET_CONF: u16 = 1;
/// Settings for IPv6, in the order of their numbers.
pub(super) const IFLA_INET6_CONF: u16 = 2;
/// How link-local addresses are made.
pub(super) const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// Not at all (`IN6_ADDR_GEN_MODE_NONE`).
pub(super) const GEN_MODE_NONE: u8 = 1;

/// An interface's address, or the other end's.
pub(super) const IFA_ADDRESS: u16 = 1;
/// An interface's own address.
pub(super) const IFA_LOCAL: u16 = 2;
/// Flags; the head has room for eight of them.
pub(super) const IFA_FLAGS: u16 = 8;

/// The index of the device that a route leads through.
pub(super) const RTA_OIF: u16 = 4;
/// Several next hops.
pub(super) const RTA_MULTIPATH: u16 = 9;
/// How old a route is.
pub(super) const RTA_CACHEINFO: u16 = 12;
/// How long a route is to last, in seconds.
pub(super) const RTA_EXPIRES: u16 = 23;
/// A next hop that is an object of its own.
pub(super) const RTA_NH_ID: u16 = 30;

/// How old a neighbour's entry is.
pub(super) const NDA_CACHEINFO: u16 = 3;
/// How often a neighbour was asked for.
pub(super) const NDA_PROBES: u16 = 4;
/// A neighbour that somebody declared.
pub(super) const NUD_PERMANENT: u16 = 0x80;
