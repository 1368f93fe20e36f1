//! Sockets of either kind as the runtime's TCP types.
//!
//! The runtime's Unix socket types do not tell their descriptor, which gathered sends need. Its TCP
//! types do, and call nothing on it but accept, recv, send, poll and shutdown, which mean the same
//! for any stream socket. So both kinds are made by the standard library and adopted here.

use glommio::net::{TcpListener, TcpStream};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// A peer that says nothing for so long is asked whether it lives,
const KEEPALIVE_IDLE_S: libc::c_int = 30;
/// again after so long,
const KEEPALIVE_INTERVAL_S: libc::c_int = 10;
/// and is taken for dead after so many questions without an answer: a host that lost its power would
/// otherwise hold its place among the connections for ever.
const KEEPALIVE_PROBES: libc::c_int = 3;
/// The same for one that is owed something: as long as the questions take.
const UNACKED_MS: libc::c_int = 60_000;

/// A connected stream socket.
pub(super) fn adopt_stream(socket: impl Into<OwnedFd>) -> TcpStream {
    // SAFETY: the descriptor is open, a stream socket, and owned by nobody else from here on.
    unsafe { TcpStream::from_raw_fd(socket.into().into_raw_fd()) }
}

/// A listening stream socket.
pub(super) fn adopt_listener(socket: impl Into<OwnedFd>) -> TcpListener {
    // SAFETY: the descriptor is open, a listening stream socket, and owned by nobody else from here
    // on.
    unsafe { TcpListener::from_raw_fd(socket.into().into_raw_fd()) }
}

/// The socket of a stream, for the executor's own ring. In blocking mode: there is no other way to tell the ring
/// to wait for what comes. The runtime must not use the stream any more.
pub(super) fn taken_over(stream: &TcpStream) -> io::Result<OwnedFd> {
    // SAFETY: open as long as the stream lives, which is longer than this call.
    let socket = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }.try_clone_to_owned()?;
    // SAFETY: passes no memory; the descriptor is ours.
    let flags = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    match unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_option(
    stream: &TcpStream,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    #[allow(clippy::cast_possible_truncation)] // four
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is readable and has the size told.
    let result = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(stream.as_raw_fd(), level, name, value, len)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets what every connection wants: small frames go out at once (they are gathered per turn already),
/// and one to a dead host ends. Unix sockets know no such options and need none.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    // A Unix socket has no such address.
    if stream.local_addr().is_err() {
        return Ok(());
    }
    stream.set_nodelay(true)?;
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, UNACKED_MS),
    ];
    for (level, name, value) in options {
        set_option(stream, level, name, value)?;
    }
    Ok(())
}
