//! What nix doesn't ask of a packet socket.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc::{
    AF_PACKET, ETH_P_ALL, PACKET_ADD_MEMBERSHIP, PACKET_IGNORE_OUTGOING, PACKET_MR_ALLMULTI,
    PACKET_VNET_HDR, SKF_AD_OFF, SKF_AD_PKTTYPE, SKF_AD_VLAN_TAG_PRESENT, SO_ATTACH_FILTER,
    SOL_PACKET, SOL_SOCKET, c_int, packet_mreq, setsockopt, sock_filter, sock_fprog, sockaddr,
    sockaddr_ll, socklen_t,
};

/// Options that are on or off.
#[derive(Clone, Copy)]
pub(super) enum Switch {
    /// `PACKET_VNET_HDR`: ten bytes before each frame.
    OffloadHeader,
    /// `PACKET_IGNORE_OUTGOING`.
    IgnoreOutgoing,
}

/// `PACKET_MULTICAST` (uapi/linux/if_packet.h), the last of the kinds of frames that are for this
/// station: before it are its own, 0, and broadcast, 1.
const TO_GROUP: u32 = 2;

/// Classic BPF (uapi/linux/bpf_common.h): load a byte, compare with a constant, return one.
const LOAD: u16 = 0x30;
const JUMP_GREATER: u16 = 0x25;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

pub(super) fn turn_on(fd: &impl AsFd, switch: Switch) -> io::Result<()> {
    let option = match switch {
        Switch::OffloadHeader => PACKET_VNET_HDR,
        Switch::IgnoreOutgoing => PACKET_IGNORE_OUTGOING,
    };
    let on: c_int = 1;
    set(fd, SOL_PACKET, option, &on)
}

/// Attaches a filter that only frames for this station or for groups pass, and of those
/// only what came without an 802.1Q tag: taken off, a tagged frame would look like any other.
pub(super) fn take_untagged_for_us(fd: &impl AsFd) -> io::Result<()> {
    let load = |what: c_int| instruction(LOAD, 0, 0, (SKF_AD_OFF + what).cast_unsigned());
    let mut program = [
        load(SKF_AD_PKTTYPE),
        instruction(JUMP_GREATER, 3, 0, TO_GROUP),
        load(SKF_AD_VLAN_TAG_PRESENT),
        instruction(JUMP_EQUAL, 0, 1, 0),
        instruction(RETURN, 0, 0, u32::MAX),
        instruction(RETURN, 0, 0, 0),
    ];
    let filter = sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    set(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter)
}

/// Has the device hear multicast frames of all groups while the socket lives.
pub(super) fn hear_all_groups(fd: &impl AsFd, index: u32) -> io::Result<()> {
    let request = packet_mreq {
        mr_ifindex: c_int::try_from(index).map_err(io::Error::other)?,
        mr_type: PACKET_MR_ALLMULTI.try_into().map_err(io::Error::other)?,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &request)
}

/// Binds the socket to all frames of a device.
#[expect(
    unsafe_code,
    reason = "a system call that nix can't make for this family"
)]
pub(super) fn bind(fd: &impl AsFd, index: u32) -> io::Result<()> {
    let mut address = no_address();
    address.sll_family = u16::try_from(AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = u16::try_from(ETH_P_ALL).map_err(io::Error::other)?.to_be();
    address.sll_ifindex = c_int::try_from(index).map_err(io::Error::other)?;
    let fd = fd.as_fd().as_raw_fd();
    let at = (&raw const address).cast::<sockaddr>();
    // SAFETY: the descriptor is open, and the kernel reads as many bytes as are there.
    let answer = unsafe { nix::libc::bind(fd, at, length_of::<sockaddr_ll>()) };
    Errno::result(answer)?;
    Ok(())
}

/// The index of the device that the socket is bound to, unless that is gone.
#[expect(
    unsafe_code,
    reason = "a system call that nix can't make for this family"
)]
pub(super) fn bound_to(fd: &impl AsFd) -> Option<u32> {
    let mut address = no_address();
    let mut length = length_of::<sockaddr_ll>();
    let fd = fd.as_fd().as_raw_fd();
    let at = (&raw mut address).cast::<sockaddr>();
    // SAFETY: the descriptor is open, and the kernel writes no more bytes to `address` than
    // `length` says, which is how many are there.
    let answer = unsafe { nix::libc::getsockname(fd, at, &raw mut length) };
    if answer != 0 {
        return None;
    }
    // -1 when the device went; 0 would be all devices.
    u32::try_from(address.sll_ifindex)
        .ok()
        .filter(|index| *index != 0)
}

#[expect(unsafe_code, reason = "a C structure without values of its own")]
fn no_address() -> sockaddr_ll {
    // SAFETY: it has integers and arrays of such only, which zero is a value of.
    unsafe { zeroed() }
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Sets an option to `value`, which is what the kernel reads for it.
#[expect(
    unsafe_code,
    reason = "a system call for options that nix doesn't know"
)]
fn set<T>(fd: &impl AsFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    let at = ptr::from_ref(value).cast();
    // SAFETY: the descriptor is open, and the kernel reads as many bytes as `value` has. What
    // pointers are in it (a filter's, above) lead to memory that outlives the call.
    let answer = unsafe { setsockopt(fd, level, option, at, length_of::<T>()) };
    Errno::result(answer)?;
    Ok(())
}

fn length_of<T>() -> socklen_t {
    // Structures here have a few bytes.
    socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
