//! Sockets of either kind as the runtime's TCP types.
//!
//! The runtime's Unix socket types do not tell their descriptor, which gathered sends need. Its TCP
//! types do, and call nothing on it but accept, recv, send, poll and shutdown, which mean the same
//! for any stream socket. So both kinds are made by the standard library and adopted here.

use glommio::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

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
