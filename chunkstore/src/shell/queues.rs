//! Task queues of an executor: guests' requests before copies.

use glommio::{Latency, Shares, TaskQueueHandle, executor};
use std::time::Duration;

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
                Latency::Matters(Duration::from_millis(1)),
                "data",
            ),
            copy: executor().create_task_queue(Shares::Static(50), Latency::NotImportant, "copy"),
        }
    }
}
