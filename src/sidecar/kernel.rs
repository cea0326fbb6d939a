//! The kernel of the calling thread's network namespace: what there is, and one change at a
//! time.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use nix::libc;

use super::netlink::{Attribute, Message, Socket, find};
use super::{SidecarError, rt};

/// The loopback device's index, the same in every namespace (`LOOPBACK_IFINDEX`).
pub(super) const LOOPBACK: u32 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Sockets to the kernel, and who is told of each change that was made.
pub(super) struct Kernel<'a> {
    route: Socket,
    /// For nf_tables.
    pub filter: Socket,
    /// Whether hooks for all devices are to be had: known once they were refused.
    pub catches_all: bool,
    watch: &'a mut dyn FnMut(),
}

/// A device as the kernel describes it.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    /// `ARPHRD_…`.
    pub hardware: u16,
    pub up: bool,
    pub mac: Vec<u8>,
    pub mtu: u32,
    /// The index of the bridge or bond that it is a port of.
    pub master: Option<u32>,
    /// What made it, `veth` or `tun`; empty for hardware.
    pub driver: String,
    /// All that the kernel says.
    pub message: Message,
}

impl<'a> Kernel<'a> {
    /// Opens sockets in the namespace of the calling thread.
    pub fn open(watch: &'a mut dyn FnMut()) -> Result<Self, SidecarError> {
        let route = Socket::open(NETLINK_ROUTE)
            .map_err(|error| SidecarError::refused("open a socket to the kernel", error))?;
        let filter = Socket::open(NETLINK_NETFILTER).map_err(|source| SidecarError::OldKernel {
            operation: "open a socket to nf_tables".to_owned(),
            remedy: "the kernel has no nf_tables: modprobe nf_tables on the host \
                     (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_NETDEV)",
            source,
        })?;
        Ok(Self {
            route,
            filter,
            catches_all: true,
            watch,
        })
    }

    /// Tells whoever watches that something was changed.
    pub fn changed(&mut self) {
        (self.watch)();
    }

    /// Asks for a change and waits until it is made.
    pub fn ask(
        &mut self,
        operation: impl Into<String>,
        message: Message,
        flags: u16,
    ) -> Result<(), SidecarError> {
        self.ask_unless(&[], operation, message, flags)
    }

    /// The same, where some refusals mean that there is nothing to do.
    pub fn ask_unless(
        &mut self,
        fine: &[i32],
        operation: impl Into<String>,
        message: Message,
        flags: u16,
    ) -> Result<(), SidecarError> {
        match self.route.send(&[(message, flags)], 0) {
            Ok(()) => {}
            Err(refusal)
                if refusal.message.is_some()
                    && refusal
                        .source
                        .raw_os_error()
                        .is_some_and(|code| fine.contains(&code)) => {}
            Err(refusal) => return Err(SidecarError::refused(operation, refusal.source)),
        }
        self.changed();
        Ok(())
    }

    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>, SidecarError> {
        let request = Message::new(libc::RTM_GETLINK, &[0; 16]);
        let found = self.dump("list the interfaces", &request)?;
        Ok(found.into_iter().map(Link::read).collect())
    }

    /// A device's addresses, in the kernel's order.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<Message>, SidecarError> {
        let request = Message::new(libc::RTM_GETADDR, &[0; 8]);
        let mut found = self.dump("list the addresses", &request)?;
        found.retain(|this| this.kind == libc::RTM_NEWADDR && this.head_u32(4) == index);
        Ok(found)
    }

    /// All routes of both families, but not those that the kernel makes with addresses:
    /// to the machine itself, and for broadcasts and groups.
    pub fn routes(&mut self) -> Result<Vec<Message>, SidecarError> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let mut head = [0; 12];
            head[0] = family.to_le_bytes()[0];
            let request = Message::new(libc::RTM_GETROUTE, &head);
            let mut these = self.dump("list the routes", &request)?;
            // A kernel without IPv6 answers with IPv4's.
            these.retain(|this| {
                this.kind == libc::RTM_NEWROUTE
                    && this.head_u8(0) == head[0]
                    && !is_kernels_own(this)
            });
            found.append(&mut these);
        }
        Ok(found)
    }

    /// A device's permanent neighbours.
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<Message>, SidecarError> {
        let request = Message::new(libc::RTM_GETNEIGH, &[0; 12]);
        let mut found = self.dump("list the neighbours", &request)?;
        found.retain(|this| {
            let state = this.head.get(8..).and_then(<[u8]>::first_chunk);
            let state = state.map_or(0, |bytes| u16::from_ne_bytes(*bytes));
            this.kind == libc::RTM_NEWNEIGH
                && this.head_u32(4) == index
                && state & rt::NUD_PERMANENT != 0
                && [2, 10].contains(&this.head_u8(0))
        });
        Ok(found)
    }

    fn dump(&mut self, operation: &str, request: &Message) -> Result<Vec<Message>, SidecarError> {
        self.route
            .dump(request)
            .map_err(|error| SidecarError::refused(operation, error))
    }
}

impl Link {
    /// Reads a description.
    pub fn read(message: Message) -> Self {
        let number = |kind| message.get(kind).and_then(Attribute::to_u32);
        let info = message.get(rt::IFLA_LINKINFO).map(Attribute::inner);
        let driver = find(&info.unwrap_or_default(), rt::IFLA_INFO_KIND)
            .map(Attribute::to_text)
            .unwrap_or_default();
        let hardware = [message.head_u8(2), message.head_u8(3)];
        Self {
            index: message.head_u32(4),
            name: message
                .get(rt::IFLA_IFNAME)
                .map(Attribute::to_text)
                .unwrap_or_default(),
            hardware: u16::from_ne_bytes(hardware),
            up: message.head_u32(8) & libc::IFF_UP.unsigned_abs() != 0,
            mac: message
                .get(rt::IFLA_ADDRESS)
                .map(|this| this.value.clone())
                .unwrap_or_default(),
            mtu: number(rt::IFLA_MTU).unwrap_or(0),
            master: number(rt::IFLA_MASTER),
            driver,
            message,
        }
    }

    /// An attribute of the part for IPv4 or IPv6.
    pub fn setting(&self, ipv6: bool, kind: u16) -> Option<Attribute> {
        let family = if ipv6 { AF_INET6 } else { AF_INET };
        let spec = self.message.get(rt::IFLA_AF_SPEC)?.inner();
        find(&find(&spec, family)?.inner(), kind).cloned()
    }

    /// How link-local addresses are made; none where the device has no IPv6.
    pub fn gen_mode(&self) -> Option<u8> {
        let mode = self.setting(true, rt::IFLA_INET6_ADDR_GEN_MODE)?;
        mode.value.first().copied()
    }
}

/// A request to change a device: its flags, and more by attributes.
pub(super) fn set_link(index: u32, flags: u32, mask: u32) -> Message {
    let mut message = Message::new(libc::RTM_SETLINK, &[0; 16]);
    message.set_head(4, &index.to_ne_bytes());
    message.set_head(8, &flags.to_ne_bytes());
    message.set_head(12, &mask.to_ne_bytes());
    message
}

/// The attribute that holds settings for IPv4 or IPv6.
pub(super) fn settings(ipv6: bool, these: &[Attribute]) -> Attribute {
    let family = if ipv6 { AF_INET6 } else { AF_INET };
    Attribute::nest(rt::IFLA_AF_SPEC, &[Attribute::nest(family, these)])
}

/// The address in a message about one, with its prefix.
pub(super) fn address(message: &Message) -> Option<IpNet> {
    let bytes = message
        .get(rt::IFA_LOCAL)
        .or_else(|| message.get(rt::IFA_ADDRESS))?;
    let address = match bytes.value.len() {
        4 => IpAddr::V4(Ipv4Addr::from(*bytes.value.first_chunk::<4>()?)),
        16 => IpAddr::V6(Ipv6Addr::from(*bytes.value.first_chunk::<16>()?)),
        _ => return None,
    };
    IpNet::new(address, message.head_u8(1)).ok()
}

/// Whether the kernel makes and removes a route along with an address or a device.
fn is_kernels_own(route: &Message) -> bool {
    let (protocol, kind) = (route.head_u8(5), route.head_u8(7));
    protocol == libc::RTPROT_KERNEL
        && [
            libc::RTN_LOCAL,
            libc::RTN_BROADCAST,
            libc::RTN_ANYCAST,
            libc::RTN_MULTICAST,
        ]
        .contains(&kind)
}
