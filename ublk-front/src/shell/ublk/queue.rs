//! The loop of one queue: the driver's requests to the lane, the lane's answers to the driver, and
//! everything else on the ring back to whoever put it there.
//!
//! The ring is libublk's, thread-local, made here before libublk would make its own: with room for
//! the lane's entries, and with task work deferred to our own waiting. A turn is one
//! `io_uring_enter`: it submits what the last turn produced (answers, sends, receives) and waits
//! for at least one completion.

use super::buffers::QueueBuffers;
use super::error::plain;
use super::lane::Lane;
use super::request::Descriptor;
use crate::core::api::GuestTag;
use crate::shell::lane::Completion;
use io_uring::{IoUring, cqueue, squeue};
use libublk::io::{BufDesc, BufDescList, UblkDev, UblkQueue, with_task_io_ring_mut};
use libublk::uring_async::ublk_reap_io_events_with_update_queue;
use libublk::{UblkError, UblkIORes, UblkUringData, sys};
use std::cell::RefCell;
use std::io;

/// Submission entries at least: commands of all tags are pushed per turn besides the lane's own
/// sends and receives. A fuller queue is flushed early, never lost.
const SUBMISSIONS_MIN: u32 = 256;

/// A queue could not be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum QueueError {
    /// Ring or queue could not be made.
    #[error("{doing}: {source}")]
    Setup {
        /// A verb phrase.
        doing: &'static str,
        /// The answer.
        source: io::Error,
    },
    /// `io_uring_enter` failed for good.
    #[error("wait on the ring: {0}")]
    Enter(io::Error),
    /// The driver refused a command, which it never does to a correct server.
    #[error("the driver answered {code} to the command of tag {tag}")]
    Command {
        /// The tag.
        tag: u32,
        /// Negative errno.
        code: i32,
    },
}

/// Makes this thread's ring. Must come before [`UblkQueue::new`].
fn make_ring(depth: u16) -> Result<(), QueueError> {
    let submissions = (2 * u32::from(depth)).max(SUBMISSIONS_MIN);
    let deferred = || {
        let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
        builder
            .setup_cqsize(4 * submissions)
            .setup_single_issuer()
            .setup_defer_taskrun();
        builder.build(submissions)
    };
    // Kernel 6.0 has ublk but no deferred task work.
    let cooperative = || {
        let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
        builder.setup_cqsize(4 * submissions).setup_coop_taskrun();
        builder.build(submissions)
    };
    libublk::ublk_init_task_ring(|cell| {
        let ring = deferred()
            .or_else(|_| cooperative())
            .map_err(UblkError::IOError)?;
        cell.set(RefCell::new(ring))
            .map_err(|_| UblkError::OtherError(-libc::EEXIST))
    })
    .map_err(|error| QueueError::Setup {
        doing: "make the ring",
        source: plain(error),
    })
}

/// Puts an entry on this thread's ring, flushing it if it is full.
fn push(entry: squeue::Entry) {
    with_task_io_ring_mut(|ring| {
        loop {
            // SAFETY: what the entry points to stays valid until its completion, by the contract
            // of `Lane::turn`.
            if unsafe { ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // EBUSY and EAGAIN pass once completions have been reaped, but nothing is reaped
            // here; the kernel keeps overflowing completions aside, so this makes progress.
            let _ = ring.submit();
        }
    });
}

/// Submits, and waits for at least one completion.
fn enter() -> Result<(), QueueError> {
    match with_task_io_ring_mut(|ring| ring.submit_and_wait(1)) {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            // A signal; or completions must be reaped first, which is what comes next.
            Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(QueueError::Enter(error)),
        },
    }
}

/// Where the commands of a queue are.
struct Commands {
    /// Held by the driver: each will come back with a request, or aborted.
    fetching: u32,
    /// Given to the lane and not answered yet.
    serving: u32,
}

/// Everything a queue needs besides the device, made on its thread beforehand: what can fail fails
/// before there is a device, and a device that is taken over is without queues for a moment only.
pub(super) struct Prepared<L> {
    buffers: QueueBuffers,
    lane: L,
}

impl<L: Lane> Prepared<L> {
    /// Makes this thread's ring and its buffers.
    pub(super) fn new(depth: u16, io_bytes: u32, lane: L) -> Result<Self, QueueError> {
        make_ring(depth)?;
        Ok(Self {
            buffers: QueueBuffers::new(depth, io_bytes),
            lane,
        })
    }

    /// Puts the queue's commands on the ring; [`Queue::run`] gives them to the driver. The device
    /// can start when all its queues have done so.
    pub(super) fn join(self, id: u16, device: &UblkDev) -> Result<Queue<'_, L>, QueueError> {
        let Self { buffers, lane } = self;
        let setup = |doing| {
            move |error| QueueError::Setup {
                doing,
                source: plain(error),
            }
        };
        let queue = UblkQueue::new(id, device)
            .map_err(setup("map the queue"))?
            .submit_fetch_commands_unified(BufDescList::Slices(Some(buffers.all())))
            .map_err(setup("fetch requests"))?;
        let depth = device.dev_info.queue_depth;
        let empty = Descriptor {
            op_flags: 0,
            units: 0,
            first_unit: 0,
        };
        Ok(Queue {
            queue,
            buffers,
            lane,
            descriptors: vec![empty; usize::from(depth)],
            commands: Commands {
                fetching: depth.into(),
                serving: 0,
            },
            completions: Vec::new(),
            answers: Vec::new(),
        })
    }
}

/// A queue whose commands are with the driver.
pub(super) struct Queue<'a, L> {
    queue: UblkQueue<'a>,
    buffers: QueueBuffers,
    lane: L,
    descriptors: Vec<Descriptor>,
    commands: Commands,
    /// Kept between turns for their capacity.
    completions: Vec<cqueue::Entry>,
    answers: Vec<Completion>,
}

impl<L: Lane> Queue<'_, L> {
    /// Serves until the device is gone and the lane has stopped.
    pub(super) fn run(mut self) -> Result<(), QueueError> {
        let mut closed = false;
        loop {
            self.turn();
            let Commands { fetching, serving } = self.commands;
            if !closed && self.queue.is_stopping() && fetching == 0 && serving == 0 {
                closed = true;
                self.lane.close();
                continue;
            }
            if closed && self.lane.is_quiet() {
                return Ok(());
            }
            enter()?;
            self.reap()?;
        }
    }

    /// Lets the lane go on. Its answers go to the driver together with the commands to fetch the
    /// next requests; all of it is submitted by the next enter.
    fn turn(&mut self) {
        let mut answers = std::mem::take(&mut self.answers);
        self.lane.turn(&self.buffers, &mut push, &mut answers);
        for (tag, result) in answers.drain(..) {
            let descriptor = self.descriptors[tag.0 as usize];
            self.commit(tag, descriptor.answer(result));
        }
        self.answers = answers;
    }

    fn reap(&mut self) -> Result<(), QueueError> {
        // The ring is borrowed inside the closure: only collect there.
        let completions = &mut self.completions;
        let reaped = ublk_reap_io_events_with_update_queue(&self.queue, false, None, |entry| {
            completions.push(entry.clone());
        });
        reaped.map_err(|error| QueueError::Enter(plain(error)))?;
        let mut completions = std::mem::take(&mut self.completions);
        for entry in completions.drain(..) {
            if entry.user_data() & UblkUringData::Target as u64 != 0 {
                self.lane
                    .completed(entry.user_data(), entry.result(), &self.buffers);
            } else {
                self.command(&entry)?;
            }
        }
        self.completions = completions;
        Ok(())
    }

    /// A command has come back from the driver.
    fn command(&mut self, entry: &cqueue::Entry) -> Result<(), QueueError> {
        assert!(
            self.commands.fetching > 0,
            "more commands come back than were given"
        );
        self.commands.fetching -= 1;
        #[allow(clippy::cast_possible_truncation)] // libublk keeps the tag in the low 16 bits
        let tag = entry.user_data() as u16;
        match entry.result() {
            0 => self.request(tag),
            // The device is being removed.
            sys::UBLK_IO_RES_ABORT => {}
            code => {
                return Err(QueueError::Command {
                    tag: tag.into(),
                    code,
                });
            }
        }
        Ok(())
    }

    fn request(&mut self, tag: u16) {
        let descriptor = Descriptor::from(self.queue.get_iod(tag));
        self.descriptors[usize::from(tag)] = descriptor;
        self.commands.serving += 1;
        let guest_tag = GuestTag(tag.into());
        match descriptor.request(guest_tag) {
            Ok(io) => self.lane.guest(io, &self.buffers),
            Err(error) => self.commit(guest_tag, descriptor.answer(Err(error))),
        }
    }

    fn commit(&mut self, tag: GuestTag, code: i32) {
        assert!(self.commands.serving > 0, "tag {} is answered twice", tag.0);
        self.commands.serving -= 1;
        // While the device goes away libublk drops the command, and nothing comes back.
        if !self.queue.is_stopping() {
            self.commands.fetching += 1;
        }
        #[allow(clippy::cast_possible_truncation)] // tags of a queue are 16 bits
        let id = tag.0 as u16;
        let buffer = self.buffers.all()[usize::from(id)].as_slice();
        let done = self.queue.complete_io_cmd_unified(
            id,
            BufDesc::Slice(buffer),
            Ok(UblkIORes::Result(code)),
        );
        assert!(
            done.is_ok(),
            "libublk takes slices on a device in copy mode: {done:?}"
        );
    }
}
