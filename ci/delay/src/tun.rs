//! TUN devices: a network interface of which this program is the other end.
//!
//! Packets are read and written with the kernel's virtio-net header in front, and the kernel may put up
//! to 64 KiB of one TCP stream into one packet and leave out its checksum (that is what the header
//! tells). The link passes both on as they are, so it costs little and segments stay whole.

use crate::space::Space;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl, opcode};
use std::ffi::c_int;
use std::os::fd::OwnedFd;

/// The largest packet with its header: an IP packet has at most 65535 bytes, the header 10.
pub(crate) const PACKET_BYTES_MAX: usize = 65_535 + VNET_HEADER_BYTES;
/// `struct virtio_net_hdr`, which is in front of every packet and takes no time on the wire.
pub(crate) const VNET_HEADER_BYTES: usize = 10;

// linux/if_tun.h
const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETOFFLOAD: Opcode = opcode::write::<c_int>(b'T', 208);
const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: usize = 0x01;
const TUN_F_TSO4: usize = 0x02;
const TUN_F_TSO6: usize = 0x04;

/// `struct ifreq` as far as `TUNSETIFF` looks at it; the rest of its 40 bytes is not used.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    unused: [u8; 22],
}
const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// Makes interface `name` in the calling thread's namespace; it exists as long as this is open.
///
/// # Errors
/// Of the kernel: no TUN driver, not root, the name is taken.
fn open_here(name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = open("/dev/net/tun", flags, Mode::empty())?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR,
        unused: [0; 22],
    };
    // One byte less than there is: the name ends with a zero.
    let room = request.name.len() - 1;
    if name.len() > room {
        return Err(Errno::NAMETOOLONG);
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq` at its argument, which this has the size
    // and layout of; it is borrowed for the call alone.
    unsafe {
        ioctl(
            &fd,
            Updater::<TUNSETIFF, InterfaceRequest>::new(&mut request),
        )
    }?;
    let offload = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    // SAFETY: the argument of TUNSETOFFLOAD is a number, no address.
    unsafe { ioctl(&fd, IntegerSetter::<TUNSETOFFLOAD>::new_usize(offload)) }?;
    Ok(fd)
}

/// The same in `space`, which this thread does not enter: another does.
///
/// # Errors
/// Text that says what was tried.
pub(crate) fn open_in(space: &Space, name: &str) -> Result<OwnedFd, String> {
    space.run(|| open_here(name).map_err(|e| format!("make interface {name} in {space}: {e}")))?
}
