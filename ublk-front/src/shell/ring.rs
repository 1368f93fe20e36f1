//! The ring of a thread that serves one lane and nothing else of libublk's.

use super::clock;
use io_uring::{IoUring, squeue};
use std::io;
use std::time::Duration;

/// Submission entries: a receive and a send per connection; fewer would only mean an extra entry
/// into the kernel now and then.
const SQ_ENTRIES: u32 = 256;
/// Completions: at most three per connection wait at a time; should there be hundreds of shards, the
/// kernel keeps what does not fit and hands it out at the next entry.
const CQ_ENTRIES: u32 = 1024;

/// A ring that is only ever used by the thread that makes it. Drop it before what its entries refer to.
pub(super) struct LaneRing {
    ring: IoUring,
    /// How long it looks before it sleeps.
    poll: Duration,
}

impl LaneRing {
    /// `poll`: how long it looks for a completion before it sleeps.
    pub(super) fn new(poll: Duration) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder
            .setup_cqsize(CQ_ENTRIES)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag();
        let ring = builder.build(SQ_ENTRIES).or_else(|error| {
            // Kernels before 6.1 lack these two; everything works without them.
            tracing::debug!("ring without deferred task work: {error}");
            IoUring::builder()
                .setup_cqsize(CQ_ENTRIES)
                .build(SQ_ENTRIES)
        });
        ring.map(|ring| Self { ring, poll })
    }

    /// Takes an entry for the next [`LaneRing::enter`].
    pub(super) fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: what the entry refers to is owned by the lane, its guest buffers or the client, and all
            // are kept until the kernel has returned every operation (`is_quiet`, `is_done`).
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            if let Err(error) = self.ring.submit() {
                // EBUSY and EINTR pass by themselves; anything else shows at the next wait as well.
                tracing::debug!("submit: {error}");
            }
        }
    }

    /// Submits, waits for `want` completions at least, and appends all that are there: `user_data` and result.
    pub(super) fn enter(&mut self, want: usize, arrived: &mut Vec<(u64, i32)>) {
        // A sleep costs the wake of a thread, most of a request's time when there is one at a time (docs/performance.md).
        let want = if want > 0 && !self.poll.is_zero() && self.look() {
            0
        } else {
            want
        };
        match self.ring.submit_and_wait(want) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
            // The kernel may still hold our memory: nothing can be cleaned up safely.
            Err(error) => panic!("io_uring_enter of a lane: {error}"),
        }
        arrived.extend(
            self.ring
                .completion()
                .map(|entry| (entry.user_data(), entry.result())),
        );
    }

    /// Submits, and looks until something has completed; `false`: nothing did.
    fn look(&mut self) -> bool {
        if let Err(error) = self.ring.submit() {
            tracing::debug!("submit: {error}"); // shows at the wait as well
        }
        let until = clock::after(clock::now(), self.poll);
        loop {
            // What has completed is posted when the kernel is entered: the flag says that there is something.
            if !self.ring.completion().is_empty() || self.ring.submission().taskrun() {
                return true;
            }
            if clock::now() >= until {
                return false;
            }
            std::hint::spin_loop();
        }
    }
}
