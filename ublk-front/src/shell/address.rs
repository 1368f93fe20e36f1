//! Addresses of node shards, and sockets that connect to them without blocking.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// An address of a node shard, as registered: `unix:/path` or `tcp:ip:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Same host.
    Unix(PathBuf),
    /// Anywhere.
    Tcp(SocketAddr),
}

/// Text that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no node address (unix:/path or tcp:ip:port)")]
pub struct AddressError(String);

impl std::str::FromStr for Address {
    type Err = AddressError;
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => address.parse().map(Self::Tcp).map_err(|_| error()),
            _ => Err(error()),
        }
    }
}

/// A socket on its way.
#[derive(Debug)]
pub struct Connecting {
    /// Nonblocking until [`finish`].
    pub socket: OwnedFd,
    /// Connected at once: no need to wait for it to become writable.
    pub done: bool,
}

impl Address {
    /// Begins to connect.
    pub fn connect(&self) -> io::Result<Connecting> {
        let (socket, result) = match self {
            Self::Unix(path) => {
                let socket = socket(libc::AF_UNIX)?;
                let (address, len) = unix_address(path)?;
                (socket, (address, len))
            }
            Self::Tcp(address) => {
                let family = if address.is_ipv4() {
                    libc::AF_INET
                } else {
                    libc::AF_INET6
                };
                let socket = socket(family)?;
                set_nodelay(socket.as_raw_fd())?;
                set_keepalive(socket.as_raw_fd())?;
                (socket, tcp_address(address))
            }
        };
        let (storage, len) = result;
        // SAFETY: `storage` holds an address of `len` bytes of the socket's family.
        let rc = unsafe { libc::connect(socket.as_raw_fd(), (&raw const storage).cast(), len) };
        if rc == 0 {
            return Ok(Connecting { socket, done: true });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EINPROGRESS) {
            return Ok(Connecting {
                socket,
                done: false,
            });
        }
        Err(error)
    }
}

/// The socket has become writable: did it connect? Makes it blocking if `blocking` (a ring waits by
/// itself only for sockets that are).
pub fn finish(socket: RawFd, blocking: bool) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    #[allow(clippy::cast_possible_truncation)] // four
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `error` is writable and `len` tells its size.
    let rc = unsafe {
        let value = (&raw mut error).cast();
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            value,
            &raw mut len,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    if blocking {
        set_blocking(socket)
    } else {
        Ok(())
    }
}

/// Clears O_NONBLOCK.
pub fn set_blocking(socket: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with integer arguments.
    let rc = unsafe {
        let flags = libc::fcntl(socket, libc::F_GETFL);
        libc::fcntl(socket, libc::F_SETFL, flags & !libc::O_NONBLOCK)
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Small frames must not wait for acknowledgements of earlier ones.
pub fn set_nodelay(socket: RawFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// A connection to a host that lost its power ends: half a minute idle, three questions ten seconds
/// apart; a minute if something is owed. Nodes that answer nothing are given up much earlier, by
/// control; this is for connections on which nobody waits.
fn set_keepalive(socket: RawFd) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 30)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 10)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 3)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 60_000)
}

fn set_option(
    socket: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    #[allow(clippy::cast_possible_truncation)] // four
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is readable and has the size told.
    let rc = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket, level, name, value, len)
    };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Ends every operation on the socket, in the kernel too; it stays open.
pub fn shutdown(socket: RawFd) {
    // SAFETY: no pointers. Failure means that it was not connected: nothing to end.
    let _ = unsafe { libc::shutdown(socket, libc::SHUT_RDWR) };
}

fn socket(family: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

type RawAddress = (libc::sockaddr_storage, libc::socklen_t);

fn zeroed() -> libc::sockaddr_storage {
    // SAFETY: plain integers; all zeros is a valid value.
    unsafe { std::mem::zeroed() }
}

#[allow(clippy::cast_possible_truncation)] // sizes and families of socket addresses are small
fn unix_address(path: &Path) -> io::Result<RawAddress> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: plain integers; all zeros is a valid value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if bytes.len() >= address.sun_path.len() {
        let text = format!(
            "socket path {} is longer than the kernel allows",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed() as libc::c_char;
    }
    let mut storage = zeroed();
    // SAFETY: a sockaddr_storage is large and aligned enough for every socket address.
    unsafe {
        (&raw mut storage)
            .cast::<libc::sockaddr_un>()
            .write(address);
    }
    Ok((storage, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

#[allow(clippy::cast_possible_truncation)] // sizes and families of socket addresses are small
fn tcp_address(address: &SocketAddr) -> RawAddress {
    let mut storage = zeroed();
    let len = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*v4.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: as above.
            unsafe {
                (&raw mut storage).cast::<libc::sockaddr_in>().write(raw);
            }
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe {
                (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw);
            }
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_and_refuses_junk() {
        assert_eq!("unix:/run/x".parse(), Ok(Address::Unix("/run/x".into())));
        assert!(matches!("tcp:127.0.0.1:7001".parse(), Ok(Address::Tcp(_))));
        assert!(matches!("tcp:[::1]:7001".parse(), Ok(Address::Tcp(_))));
        for junk in ["", "unix:x", "tcp:7001", "udp:1.2.3.4:5", "/run/x"] {
            assert!(junk.parse::<Address>().is_err(), "{junk}");
        }
    }

    #[test]
    fn connects_to_both_kinds_and_reports_a_refusal() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Tcp(tcp.local_addr().unwrap());
        let connecting = address.connect().unwrap();
        tcp.accept().unwrap();
        finish(connecting.socket.as_raw_fd(), true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(Address::Unix(path.clone()).connect().is_err());
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(Address::Unix(path).connect().unwrap().done);
        unix.accept().unwrap();
    }
}
