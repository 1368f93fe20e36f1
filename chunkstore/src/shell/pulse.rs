//! Wakes an executor now and then from outside.
//!
//! glommio 0.9 may go to sleep with tasks that are ready to run. Its loop arms the preemption timer,
//! then runs task queues until that timer has fired; if the thread loses its CPU in between for longer
//! than the timer (20 ms for our data queue, see `queues.rs`), no queue runs at all, the loop takes that for "nothing to
//! do" and parks (`run_task_queues` returns false in both cases). Whatever woke the tasks has been
//! consumed by then, so nothing ends the sleep: on a busy machine a node said `ready` and never accepted
//! a connection. A wake from another thread always ends it, and the loop then finds its queues.

use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Longest such sleep. Twenty wake-ups a second cost less than a thousandth of a core.
const PULSE: Duration = Duration::from_millis(50);

/// Goes on while this lives.
#[derive(Debug)]
pub(super) struct Pulse {
    _stop: flume::Sender<()>,
}

impl Pulse {
    /// Begin to wake the current task, and with it its executor. To be held for as long as the
    /// executor has work.
    pub(super) async fn start() -> std::io::Result<Self> {
        let waker: Waker = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
        let (stop, stopped) = flume::bounded::<()>(1);
        let beat = move || {
            while let Err(flume::RecvTimeoutError::Timeout) = stopped.recv_timeout(PULSE) {
                waker.wake_by_ref();
            }
        };
        std::thread::Builder::new()
            .name("pulse".into())
            .spawn(beat)?;
        Ok(Self { _stop: stop })
    }
}
