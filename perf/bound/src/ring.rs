//! The ring of a thread: everything of one turn in one kernel entry. Memory that the kernel reads or writes is the ring's
//! until the operation has completed.

use crate::batch::Batch;
use crate::block::Block;
use crate::slab::Slab;
use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Operations handed over by one entry, and completions kept, as of a node.
const SUBMISSIONS: u32 = 256;
const COMPLETIONS: u32 = 4096;
/// A batch of so many bytes fits a socket that is read from, and has been sent when the kernel is entered: see [`Sends`].
const AT_ONCE_BYTES_MAX: usize = 64 << 10;

/// Whether the end of small sends is waited for together with the next event, so that it takes no entry of its own. Without a
/// time limit: arming a timer costs more here than the entry (a virtual machine leaves its CPU for it). So both ends of a
/// connection may wait only if one of them never has so much to send that it could be stuck: they would wait for each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sends {
    Awaited,
    Apart,
}

/// What an operation refers to.
#[derive(Debug)]
pub(crate) enum Memory {
    Nothing,
    Block(Block),
    Inbox(Vec<u8>),
    Batch(Batch),
    /// Of an accept that succeeded.
    Socket(OwnedFd),
}

/// An operation that has completed.
#[derive(Debug)]
pub(crate) struct Done<T> {
    /// As it was given.
    pub(crate) token: T,
    /// Bytes, or the errno.
    pub(crate) result: Result<usize, i32>,
    pub(crate) memory: Memory,
}

#[derive(Debug)]
struct Op<T> {
    token: T,
    memory: Memory,
    is_accept: bool,
}

/// `T` tells operations apart.
pub(crate) struct Ring<T> {
    ring: IoUring,
    ops: Slab<Op<T>>,
    sends: Sends,
    /// Batches of this turn that are sent at once.
    at_once: usize,
}

impl<T> Ring<T> {
    /// To be made by the thread that uses it.
    pub(crate) fn create(sends: Sends) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(SUBMISSIONS)?;
        Ok(Self {
            ring,
            ops: Slab::default(),
            sends,
            at_once: 0,
        })
    }

    /// The file of reads, writes and syncs.
    pub(crate) fn set_file(&self, file: &File) -> io::Result<()> {
        self.ring.submitter().register_files(&[file.as_raw_fd()])
    }

    fn push(&mut self, token: T, memory: Memory, is_accept: bool, entry: squeue::Entry) {
        let op = Op {
            token,
            memory,
            is_accept,
        };
        let entry = entry.user_data(self.ops.insert(op) as u64);
        // SAFETY: `entry` refers to `memory` and a descriptor only. The memory stays where it is (a heap allocation) and is
        // owned by `ops` until the completion is taken; what is left in `ops` at the end is leaked.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            if let Err(error) = self.ring.submit() {
                assert!(passes(&error), "io_uring_enter: {error}");
            }
        }
    }

    pub(crate) fn read(&mut self, token: T, mut block: Block, position: u64) {
        let out = block.bytes_mut();
        let entry = opcode::Read::new(Fixed(0), out.as_mut_ptr(), as_u32(out.len()));
        let entry = entry.offset(position).build();
        self.push(token, Memory::Block(block), false, entry);
    }

    pub(crate) fn write(&mut self, token: T, block: Block, position: u64) {
        let data = block.bytes();
        let entry = opcode::Write::new(Fixed(0), data.as_ptr(), as_u32(data.len()));
        let entry = entry.offset(position).build();
        self.push(token, Memory::Block(block), false, entry);
    }

    /// `fdatasync`
    pub(crate) fn sync(&mut self, token: T) {
        let entry = opcode::Fsync::new(Fixed(0)).flags(FsyncFlags::DATASYNC);
        self.push(token, Memory::Nothing, false, entry.build());
    }

    pub(crate) fn accept(&mut self, token: T, listener: RawFd) {
        let null = std::ptr::null_mut();
        let entry = opcode::Accept::new(Fd(listener), null, std::ptr::null_mut());
        let entry = entry.flags(libc::SOCK_CLOEXEC).build();
        self.push(token, Memory::Nothing, true, entry);
    }

    /// Into `inbox` from `from` on.
    pub(crate) fn receive(&mut self, token: T, socket: RawFd, mut inbox: Vec<u8>, from: usize) {
        let out = &mut inbox[from..];
        let entry = opcode::Recv::new(Fd(socket), out.as_mut_ptr(), as_u32(out.len())).build();
        self.push(token, Memory::Inbox(inbox), false, entry);
    }

    /// Into a block, all of it from `from` on.
    pub(crate) fn receive_block(&mut self, token: T, socket: RawFd, mut block: Block, from: usize) {
        let out = &mut block.bytes_mut()[from..];
        let entry = opcode::Recv::new(Fd(socket), out.as_mut_ptr(), as_u32(out.len()))
            .flags(libc::MSG_WAITALL)
            .build();
        self.push(token, Memory::Block(block), false, entry);
    }

    pub(crate) fn send(&mut self, token: T, socket: RawFd, mut batch: Batch) {
        let at_once = self.sends == Sends::Awaited && batch.bytes() <= AT_ONCE_BYTES_MAX;
        self.at_once += usize::from(at_once);
        #[allow(clippy::cast_sign_loss)] // flag bits
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
        let entry = opcode::SendMsg::new(Fd(socket), batch.message()).flags(flags);
        self.push(token, Memory::Batch(batch), false, entry.build());
    }

    /// Hands over what was pushed, waits for something, and takes what has completed.
    pub(crate) fn enter(&mut self, out: &mut Vec<Done<T>>) -> io::Result<()> {
        let want = 1 + std::mem::take(&mut self.at_once);
        match self.ring.submit_and_wait(want) {
            Ok(_) => {}
            Err(error) if passes(&error) => {}
            Err(error) => return Err(error),
        }
        for completion in self.ring.completion() {
            let at = usize::try_from(completion.user_data()).expect("a place in `ops`");
            let op = self
                .ops
                .remove(at)
                .expect("one completion for each operation");
            let result = completion.result();
            let memory = if op.is_accept && result >= 0 {
                // SAFETY: the descriptor that the accept has just made, which nobody else knows of.
                Memory::Socket(unsafe { OwnedFd::from_raw_fd(result) })
            } else {
                op.memory
            };
            out.push(Done {
                token: op.token,
                result: usize::try_from(result).map_err(|_| -result),
                memory,
            });
        }
        Ok(())
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        if self.ops.len() > 0 {
            // The kernel may use their memory for a while yet.
            std::mem::forget(std::mem::take(&mut self.ops));
        }
    }
}

/// A signal, or completions must be taken first.
fn passes(error: &io::Error) -> bool {
    let passing = [libc::EINTR, libc::EBUSY, libc::EAGAIN];
    error
        .raw_os_error()
        .is_some_and(|code| passing.contains(&code))
}

fn as_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a few MiB at most")
}
