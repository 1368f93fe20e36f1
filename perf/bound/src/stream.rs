//! One stream socket on a ring: what was received and not yet taken, and what is to be sent.

use crate::batch::Batch;
use crate::block::Block;
use crate::ring::{Memory, Ring};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// As in a lane: room for a burst.
const INBOX_BYTES: usize = 256 << 10;
/// A payload with at least so much missing is received straight into its block, as in a lane.
const DIRECT_BYTES_MIN: usize = 32 << 10;

#[derive(Debug)]
pub(crate) struct Stream {
    socket: OwnedFd,
    /// Empty while the kernel fills it. Received and not taken: `start..end`
    inbox: Vec<u8>,
    start: usize,
    end: usize,
    /// A payload, and how much of it is there.
    payload: Option<(Block, usize)>,
    receiving: bool,
    /// Where the payload that the kernel fills begins to be missing.
    direct: Option<usize>,
    queued: VecDeque<Batch>,
    idle: Vec<Batch>,
    sending: bool,
}

impl Stream {
    /// `socket`: connected, blocking.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            inbox: vec![0; INBOX_BYTES],
            start: 0,
            end: 0,
            payload: None,
            receiving: false,
            direct: None,
            queued: VecDeque::new(),
            idle: Vec::new(),
            sending: false,
        }
    }

    /// Received and not taken.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.inbox.get(self.start..self.end).unwrap_or_default()
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        assert!(self.start <= self.end, "took more than was received");
    }

    /// A payload of so many bytes comes next; see [`Stream::take_payload`].
    pub(crate) fn expect(&mut self, bytes: usize) {
        assert!(self.payload.is_none(), "one payload at a time");
        self.payload = Some((Block::new(bytes), 0));
        self.copy_payload();
    }

    fn copy_payload(&mut self) {
        if let Some((block, there)) = &mut self.payload {
            let here = self.inbox.get(self.start..self.end).unwrap_or_default();
            let out = &mut block.bytes_mut()[*there..];
            let bytes = out.len().min(here.len());
            out[..bytes].copy_from_slice(&here[..bytes]);
            *there += bytes;
            self.start += bytes;
        }
    }

    /// The payload, when all of it has come.
    pub(crate) fn take_payload(&mut self) -> Option<Block> {
        let whole = |(block, there): &mut (Block, usize)| *there == block.bytes().len();
        self.payload.take_if(whole).map(|(block, _)| block)
    }

    /// To be sent at the end of the turn.
    pub(crate) fn put(&mut self, head: &[u8], payload: Option<Block>) {
        if self.queued.back().is_none_or(|batch| batch.is_full()) {
            self.queued.push_back(self.idle.pop().unwrap_or_default());
        }
        if let Some(batch) = self.queued.back_mut() {
            batch.head(head);
            if let Some(block) = payload {
                batch.payload(block);
            }
        }
    }

    /// Is nothing of it in the kernel?
    pub(crate) fn is_quiet(&self) -> bool {
        !self.receiving && !self.sending
    }

    /// The end of a turn: one SENDMSG and one RECV at most are under way.
    pub(crate) fn submit<T>(&mut self, ring: &mut Ring<T>, receive: T, send: T) {
        let fd = self.socket.as_raw_fd();
        if !self.sending
            && let Some(batch) = self.queued.pop_front()
        {
            self.sending = true;
            ring.send(send, fd, batch);
        }
        if self.receiving {
            return;
        }
        match self.payload.take() {
            Some((block, there)) if block.bytes().len() - there >= DIRECT_BYTES_MIN => {
                self.receiving = true;
                self.direct = Some(there);
                ring.receive_block(receive, fd, block, there);
            }
            partial => {
                self.payload = partial;
                self.inbox.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
                // Full: whoever parses it has to answer first.
                if self.end < self.inbox.len() {
                    self.receiving = true;
                    ring.receive(receive, fd, std::mem::take(&mut self.inbox), self.end);
                }
            }
        }
    }

    /// The RECV has ended. `false`: the other end is gone.
    pub(crate) fn received(
        &mut self,
        result: Result<usize, i32>,
        memory: Memory,
    ) -> io::Result<bool> {
        self.receiving = false;
        let bytes = result.as_ref().copied().unwrap_or(0);
        match memory {
            Memory::Inbox(inbox) => {
                self.inbox = inbox;
                self.end += bytes;
                self.copy_payload();
            }
            Memory::Block(block) => {
                let there = self.direct.take().unwrap_or(0);
                self.payload = Some((block, there + bytes));
            }
            other => panic!("a receive came back with {other:?}"),
        }
        match result {
            Ok(bytes) => Ok(bytes > 0),
            Err(libc::EINTR | libc::EAGAIN) => Ok(true),
            Err(code) => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// The SENDMSG has ended.
    pub(crate) fn sent(&mut self, result: Result<usize, i32>, memory: Memory) -> io::Result<()> {
        self.sending = false;
        let Memory::Batch(mut batch) = memory else {
            panic!("a send came back with {memory:?}");
        };
        let whole = batch.bytes();
        batch.clear();
        self.idle.push(batch);
        match result {
            Ok(bytes) if bytes == whole => Ok(()),
            // The ring sends all of it, unless the other end goes meanwhile.
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(code) => Err(io::Error::from_raw_os_error(code)),
        }
    }
}
