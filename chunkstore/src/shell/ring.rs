//! The executor's own ring: what its shards ask of devices and sockets, one kernel entry for all of a turn.
//!
//! The runtime has rings of its own, enters three of them for every turn of its loop, and starts one task per
//! operation. With one request at a time that is all the cost there is (docs/performance.md), so the hot path
//! does without: see [`super::pump`].
//!
//! Memory that the kernel reads or writes is owned by the operation's entry in a table until its completion has been
//! taken, whatever becomes of those who asked.

use super::buffer::NodeBuf;
use super::conn::Conn;
use crate::disk::api::{DiskResult, IoId};
use crate::disk::slab::Slab;
use glommio::io::DmaBuffer;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, squeue};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Operations handed over by one entry; more wait for the next.
const SUBMISSIONS: u32 = 256;
/// Completions that the kernel keeps in the ring; beyond, it keeps a list.
const COMPLETIONS: u32 = 4096;

/// Memory of a device operation.
#[derive(Debug)]
pub(super) enum Transfer {
    /// To be filled.
    Read(DmaBuffer),
    /// To be written.
    Write(DmaBuffer),
    /// None.
    Nothing,
}

/// What is in the kernel.
#[derive(Debug)]
enum Op {
    Disk {
        shard: usize,
        io: IoId,
        transfer: Transfer,
    },
    Receive(Rc<Conn>),
    Writable(Rc<Conn>),
}

/// What came back from it.
#[derive(Debug)]
pub(crate) enum Completed {
    /// A device operation of a shard (by its place on the executor).
    Disk {
        /// Whose.
        shard: usize,
        /// Which.
        io: IoId,
        /// How.
        result: DiskResult<NodeBuf>,
    },
    /// A receive: bytes, or a negative errno.
    Receive(Rc<Conn>, i32),
    /// The socket takes bytes again, or is broken.
    Writable(Rc<Conn>),
}

/// See the module docs.
pub(crate) struct Ring {
    ring: RefCell<IoUring>,
    /// Beyond what one entry takes.
    queued: RefCell<VecDeque<squeue::Entry>>,
    ops: RefCell<Slab<Op>>,
    in_kernel: std::cell::Cell<usize>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ring {{ in kernel: {} }}", self.in_kernel.get())
    }
}

impl Ring {
    /// To be made by the thread that uses it.
    pub(crate) fn create() -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS);
        // Completions are made when this thread asks for them, and not by interrupting it (Linux 6.1).
        let ring = builder
            .clone()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(SUBMISSIONS)
            .or_else(|_| builder.build(SUBMISSIONS))?;
        Ok(Self {
            ring: RefCell::new(ring),
            queued: RefCell::default(),
            ops: RefCell::default(),
            in_kernel: std::cell::Cell::default(),
        })
    }

    /// Is nothing in the kernel or on its way there?
    pub(crate) fn is_idle(&self) -> bool {
        self.in_kernel.get() == 0
    }

    fn push(&self, op: Op, entry: squeue::Entry) {
        let key = self.ops.borrow_mut().insert(op);
        self.in_kernel.set(self.in_kernel.get() + 1);
        self.queued.borrow_mut().push_back(entry.user_data(key));
    }

    /// A device operation; `entry` refers to the memory of `transfer` and to nothing else.
    pub(super) fn disk(&self, shard: usize, io: IoId, transfer: Transfer, entry: squeue::Entry) {
        let op = Op::Disk {
            shard,
            io,
            transfer,
        };
        self.push(op, entry);
    }

    /// The next receive of a connection, if it wants one.
    pub(super) fn receive(&self, conn: &Rc<Conn>) {
        if let Some(entry) = conn.next_receive() {
            self.push(Op::Receive(conn.clone()), entry);
        }
    }

    /// Wait for a blocked connection to take bytes, if it does not already.
    pub(super) fn writable(&self, conn: &Rc<Conn>) {
        if let Some(entry) = conn.next_poll() {
            self.push(Op::Writable(conn.clone()), entry);
        }
    }

    /// Moves what waits into the ring's queue; `true`: all of it.
    fn fill(&self, ring: &mut IoUring) -> bool {
        let mut queued = self.queued.borrow_mut();
        let mut submission = ring.submission();
        while let Some(entry) = queued.front() {
            // SAFETY: what the entry refers to is owned by its place in `ops` until its completion is
            // taken (`push`), and that is the only way out of `ops`.
            if unsafe { submission.push(entry) }.is_err() {
                return false;
            }
            queued.pop_front();
        }
        true
    }

    /// Hand over what is queued and let the kernel post what has completed, without waiting. No kernel entry if
    /// there is nothing of either.
    pub(crate) fn look(&self) -> io::Result<()> {
        let mut ring = self.ring.borrow_mut();
        let all = self.fill(&mut ring);
        let submission = ring.submission();
        let nothing = submission.is_empty() && !submission.taskrun();
        drop(submission);
        if all && nothing {
            return Ok(());
        }
        match ring.submit() {
            Ok(_) => Ok(()),
            Err(error) => passing(error),
        }
    }

    /// Hand over what is queued and wait for a completion, but not for longer than `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<()> {
        let mut ring = self.ring.borrow_mut();
        while !self.fill(&mut ring) {
            match ring.submit() {
                Ok(_) => {}
                Err(error) => return passing(error),
            }
        }
        let time = Timespec::from(limit);
        match ring
            .submitter()
            .submit_with_args(1, &SubmitArgs::new().timespec(&time))
        {
            Ok(_) => Ok(()),
            Err(error) => passing(error),
        }
    }

    /// What has completed.
    pub(crate) fn reap(&self, out: &mut Vec<Completed>) {
        let mut ring = self.ring.borrow_mut();
        let mut ops = self.ops.borrow_mut();
        for completion in ring.completion() {
            let op = ops.remove(completion.user_data());
            let op = op.expect("the kernel completes what it was given, once");
            self.in_kernel.set(self.in_kernel.get() - 1);
            let result = completion.result();
            out.push(match op {
                Op::Disk {
                    shard,
                    io,
                    transfer,
                } => Completed::Disk {
                    shard,
                    io,
                    result: transferred(transfer, result),
                },
                Op::Receive(conn) => Completed::Receive(conn, result),
                Op::Writable(conn) => Completed::Writable(conn),
            });
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Buffers would be freed under the kernel's hands.
        assert!(self.is_idle(), "a ring was given up with operations in it");
    }
}

/// Nothing went wrong: the time was over, a signal came, or completions must be taken first.
fn passing(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
        _ => Err(error),
    }
}

fn transferred(transfer: Transfer, result: i32) -> DiskResult<NodeBuf> {
    let Ok(bytes) = usize::try_from(result) else {
        return DiskResult::Failed(-result);
    };
    match transfer {
        Transfer::Read(buffer) if buffer.len() == bytes => DiskResult::Read(NodeBuf(buffer)),
        // Beyond the end of the file: it was cut since it was opened.
        Transfer::Read(_) => DiskResult::Failed(libc::EIO),
        Transfer::Write(buffer) if buffer.len() == bytes => DiskResult::Done,
        // The file system under a sparse file is full.
        Transfer::Write(_) => DiskResult::Failed(libc::ENOSPC),
        Transfer::Nothing => DiskResult::Done,
    }
}
