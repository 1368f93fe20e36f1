//! What serves a queue.

use super::buffers::QueueBuffers;
use crate::core::api::GuestIo;
use crate::shell::lane::{Completion, LaneDriver};
use crate::shell::peers::Peers;
use io_uring::squeue;

/// Serves the requests of one queue on the queue's own thread and ring: the lane of a volume, or a
/// RAM disk where only the queue itself is to be tried.
///
/// In each turn of the queue the lane first hears everything that has happened ([`Lane::guest`],
/// [`Lane::completed`]); then [`Lane::turn`] is called once.
pub trait Lane {
    /// A request has come. Its buffer belongs to the lane until the request is answered; that of a
    /// write holds the data.
    fn guest(&mut self, io: GuestIo, buffers: &QueueBuffers);

    /// An entry that the lane pushed has completed.
    fn completed(&mut self, user_data: u64, result: i32, buffers: &QueueBuffers);

    /// Everything that happened has been told: push what it takes to go on (submitted when the turn
    /// ends), and answer what is finished, whose buffers nothing may refer to any more.
    ///
    /// What a pushed entry points to must stay valid until it has completed. Its `user_data` has
    /// bit 63 set and bits 16..48 zero ([`crate::shell::user_data`]).
    fn turn(
        &mut self,
        buffers: &QueueBuffers,
        push: &mut dyn FnMut(squeue::Entry),
        answers: &mut Vec<Completion>,
    );

    /// The device is gone and every request has been answered: take everything off the ring.
    fn close(&mut self);

    /// After [`Lane::close`]: is nothing of the lane's on the ring any more?
    fn is_quiet(&self) -> bool;
}

impl<P: Peers> Lane for LaneDriver<P> {
    fn guest(&mut self, io: GuestIo, buffers: &QueueBuffers) {
        Self::guest(self, io, buffers);
    }

    fn completed(&mut self, user_data: u64, result: i32, buffers: &QueueBuffers) {
        assert!(
            LaneDriver::owns(user_data),
            "completion {user_data:#x} is nobody's"
        );
        Self::completed(self, user_data, result, buffers);
    }

    fn turn(
        &mut self,
        buffers: &QueueBuffers,
        push: &mut dyn FnMut(squeue::Entry),
        answers: &mut Vec<Completion>,
    ) {
        answers.extend(Self::turn(self, buffers, push));
    }

    fn close(&mut self) {
        Self::close(self);
    }

    fn is_quiet(&self) -> bool {
        Self::is_quiet(self)
    }
}
