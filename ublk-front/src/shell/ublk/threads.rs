//! The queues' threads: prepared first, then given the device.

use super::error::DeviceError;
use super::lane::Lane;
use super::queue::Prepared;
use crate::shell::wake::EventFd;
use libublk::ctrl::UblkCtrl;
use libublk::io::UblkDev;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Why the first queue that failed did.
type Failure = Arc<Mutex<Option<DeviceError>>>;

/// What a thread says when it is prepared: its queue and thread id, or why it cannot serve.
type Ready = Result<(u16, libc::pid_t), DeviceError>;

/// The threads of a device's queues.
pub(super) struct QueueThreads {
    handles: Vec<JoinHandle<()>>,
    /// Queue and thread id.
    ids: Vec<(u16, libc::pid_t)>,
    /// One each, until the device is handed out.
    waiting: Vec<flume::Sender<Arc<UblkDev>>>,
    failure: Failure,
    closed: Arc<EventFd>,
}

impl QueueThreads {
    /// Starts `count` threads, and returns when each has its lane, ring and buffers.
    pub(super) fn prepare<L, M>(
        count: u16,
        depth: u16,
        io_bytes: u32,
        make_lane: M,
    ) -> Result<Self, DeviceError>
    where
        L: Lane + 'static,
        M: Fn(u16) -> Result<L, String> + Send + Sync + 'static,
    {
        let make_lane = Arc::new(make_lane);
        let closed = EventFd::new(false).map_err(DeviceError::io("create an eventfd"))?;
        let mut this = Self {
            handles: Vec::new(),
            ids: Vec::new(),
            waiting: Vec::new(),
            failure: Failure::default(),
            closed: Arc::new(closed),
        };
        let (ready, prepared) = flume::bounded::<Ready>(usize::from(count));
        for queue in 0..count {
            let (give, device) = flume::bounded::<Arc<UblkDev>>(1);
            let (make_lane, ready) = (Arc::clone(&make_lane), ready.clone());
            let (failure, closed) = (this.failure.clone(), this.closed.clone());
            let thread = std::thread::Builder::new().name(format!("queue-{queue}"));
            let handle = thread.spawn(move || {
                let guard = AbortOnPanic;
                if let Some(prepared) = prepare(queue, depth, io_bytes, &*make_lane, &ready) {
                    // Nothing comes if the device could not be made.
                    if let Ok(device) = device.recv() {
                        serve(queue, prepared, &device, &failure);
                        closed.wake();
                    }
                }
                std::mem::forget(guard);
            });
            this.handles
                .push(handle.map_err(DeviceError::io("start a queue's thread"))?);
            this.waiting.push(give);
        }
        drop(ready);
        // Ends early, with an error, if one thread cannot; `this` then lets go of the others.
        for ready in prepared.iter().take(usize::from(count)) {
            this.ids.push(ready?);
        }
        Ok(this)
    }

    /// Queue and thread id of each.
    pub(super) fn ids(&self) -> &[(u16, libc::pid_t)] {
        &self.ids
    }

    /// Lets go of all but the first `count`: the kernel gives no more queues than there are CPUs.
    pub(super) fn keep(&mut self, count: u16) {
        self.waiting.truncate(usize::from(count));
        self.ids.retain(|(queue, _)| *queue < count);
    }

    /// Hands out the device: the queues join it.
    pub(super) fn give(&mut self, device: &Arc<UblkDev>) {
        for thread in self.waiting.drain(..) {
            // A thread that is gone has left its reason behind.
            let _ = thread.send(Arc::clone(device));
        }
    }

    /// Why a queue could not join.
    pub(super) fn failure(&self) -> Option<DeviceError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Fires when a queue that had the device has ended. Nonblocking.
    pub(super) fn closed(&self) -> &Arc<EventFd> {
        &self.closed
    }

    /// Have all ended?
    pub(super) fn ended(&self) -> bool {
        self.handles.iter().all(JoinHandle::is_finished)
    }

    /// Waits until all have ended.
    pub(super) fn wait(&mut self) {
        self.waiting.clear();
        for handle in self.handles.drain(..) {
            // A queue that panics aborts the process.
            let _ = handle.join();
        }
    }
}

fn prepare<L: Lane>(
    queue: u16,
    depth: u16,
    io_bytes: u32,
    make_lane: &impl Fn(u16) -> Result<L, String>,
    ready: &flume::Sender<Ready>,
) -> Option<Prepared<L>> {
    let thread = UblkCtrl::init_queue_thread();
    let prepared = make_lane(queue)
        .and_then(|lane| Prepared::new(depth, io_bytes, lane).map_err(|error| error.to_string()));
    match prepared {
        Ok(prepared) => {
            let _ = ready.send(Ok((queue, thread)));
            Some(prepared)
        }
        Err(why) => {
            let _ = ready.send(Err(DeviceError::Queue { queue, why }));
            None
        }
    }
}

/// To the end of the device.
fn serve<L: Lane>(id: u16, prepared: Prepared<L>, device: &UblkDev, failure: &Failure) {
    match prepared.join(id, device) {
        Ok(queue) => {
            if let Err(error) = queue.run() {
                // Requests of this queue would hang for ever in a front that goes on.
                tracing::error!(queue = id, %error, "queue failed; the front ends at once");
                std::process::abort();
            }
        }
        Err(error) => {
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(DeviceError::Queue {
                queue: id,
                why: error.to_string(),
            });
            // Wakes the thread that waits to start the device; libublk has no other word for it.
            device.notify_buffer_registration_complete(true);
        }
    }
}

/// A queue that panics takes the whole front with it, so that the device gets a successor instead
/// of hanging with one queue missing.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}
