//! The receive buffer of a stream socket on a ring: one standing RECV fills it, the parser consumes.

use io_uring::{opcode, squeue, types};
use std::os::fd::RawFd;

/// Room for a burst of replies or requests, so that one receive serves many of them.
pub const INBOX_BYTES: usize = 256 << 10;

/// Bytes received and not yet consumed are `buf[start..end]`.
#[derive(Debug)]
pub struct Inbox {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            buf: vec![0; INBOX_BYTES],
            start: 0,
            end: 0,
        }
    }
}

impl Inbox {
    /// What is there.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// The parser is done with the first `n` bytes.
    pub fn consume(&mut self, n: usize) {
        assert!(
            n <= self.end - self.start,
            "consumed more than was received"
        );
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// A receive of [`Inbox::receive`] has brought `n` bytes.
    pub fn filled(&mut self, n: usize) {
        assert!(
            n <= self.buf.len() - self.end,
            "received more than there was room for"
        );
        self.end += n;
    }

    /// Forget everything: a new connection.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// A RECV into the free part. What is left is moved to the front first; parsers leave less
    /// than one frame head (64 KiB and a bit), so there is always room.
    ///
    /// The caller must not touch the inbox until the completion has been passed to
    /// [`Inbox::filled`] (or the receive has failed), and must keep it alive until then.
    pub fn receive(&mut self, fd: RawFd) -> squeue::Entry {
        self.buf.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = &mut self.buf[self.end..];
        assert!(!room.is_empty(), "parser left the inbox full");
        #[allow(clippy::cast_possible_truncation)] // at most INBOX_BYTES
        let len = room.len() as u32;
        opcode::Recv::new(types::Fd(fd), room.as_mut_ptr(), len).build()
    }
}
