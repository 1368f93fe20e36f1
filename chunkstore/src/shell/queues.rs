//! Task queues of an executor: guests' requests before copies.

use glommio::{Latency, Shares, TaskQueueHandle, executor};
use std::time::Duration;

/// When the runtime looks whether another queue should run. Completions end a task's turn earlier. Not
/// 1 ms: the runtime arms a timer of this length, enters the kernel twice, and runs nothing at all if the
/// timer has fired by then (see `pulse.rs`). On a busy machine two system calls may take that long every
/// time, and then nothing is ever accepted.
const PREEMPT: Duration = Duration::from_millis(20);

/// The queues.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queues {
    /// Connections of fronts, turns, device operations.
    pub(super) data: TaskQueueHandle,
    /// Connections to and from peers that copy, reads of a scrub: a twentieth of the core when it is contended.
    pub(super) copy: TaskQueueHandle,
}

impl Queues {
    /// Make them on the current executor.
    pub(super) fn create() -> Self {
        Self {
            data: executor().create_task_queue(
                Shares::Static(1000),
                Latency::Matters(PREEMPT),
                "data",
            ),
            copy: executor().create_task_queue(Shares::Static(50), Latency::NotImportant, "copy"),
        }
    }
}
