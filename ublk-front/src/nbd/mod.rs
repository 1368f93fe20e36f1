//! Server side of the NBD protocol, sans I/O.
//!
//! Bytes in, replies and requests out; no socket, clock or payload here. Written from the protocol's
//! specification (`doc/proto.md` of the NBD project): fixed newstyle negotiation, simple and
//! structured replies. Not offered: TLS, metadata contexts, extended headers, resize.

pub mod handshake;
pub mod reply;
pub mod request;
pub mod session;

/// Largest payload of one request, as the specification asks servers to take.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// Smallest unit of writes: the sector.
pub const BLOCK_BYTES: u32 = 4096;

/// What is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Export {
    /// Its name; the empty name leads to it too.
    pub name: String,
    /// Size; a multiple of [`BLOCK_BYTES`].
    pub size_bytes: u64,
}

/// What client and server agreed upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Negotiated {
    /// READ is answered by structured replies.
    pub structured: bool,
}

/// Error numbers of replies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[repr(u32)]
pub enum NbdError {
    /// Failed for good.
    #[error("input/output error")]
    Io = 5,
    /// Out of range, not aligned, unknown flags.
    #[error("invalid request")]
    Invalid = 22,
    /// The storage nodes are full.
    #[error("no space left")]
    NoSpace = 28,
    /// Not offered.
    #[error("not supported")]
    Unsupported = 95,
    /// The server stops.
    #[error("server is shutting down")]
    Shutdown = 108,
}
