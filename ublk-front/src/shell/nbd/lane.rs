//! The thread of one NBD connection: a ring, the client, a lane.

use super::client::Client;
use super::slots::Slots;
use crate::core::LaneLimits;
use crate::shell::context::LaneSeat;
use crate::shell::lane::{Completion, LaneDriver};
use crate::shell::user_data::{Kind, unpack};
use io_uring::{IoUring, squeue};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Submission entries: a receive and a send per connection; fewer would only mean an extra entry
/// into the kernel now and then.
const SQ_ENTRIES: u32 = 256;
/// Completions: at most three per connection wait at a time; should there be hundreds of shards, the
/// kernel keeps what does not fit and hands it out at the next entry.
const CQ_ENTRIES: u32 = 1024;

/// A ring that is only ever used by the thread that makes it.
fn ring() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_cqsize(CQ_ENTRIES)
        .setup_single_issuer()
        .setup_defer_taskrun();
    builder.build(SQ_ENTRIES).or_else(|error| {
        // Kernels before 6.1 lack these two; everything works without them.
        tracing::debug!("ring without deferred task work: {error}");
        IoUring::builder()
            .setup_cqsize(CQ_ENTRIES)
            .build(SQ_ENTRIES)
    })
}

fn push(ring: &mut IoUring, entry: &squeue::Entry) {
    loop {
        // SAFETY: what the entry refers to is owned by the lane or the client, and both are kept
        // until the kernel has returned every operation (`is_quiet`, `is_done`).
        if unsafe { ring.submission().push(entry) }.is_ok() {
            return;
        }
        if let Err(error) = ring.submit() {
            // EBUSY and EINTR pass by themselves; anything else shows at the next wait as well.
            tracing::debug!("submit: {error}");
        }
    }
}

/// Serves the client until it goes or is told to.
pub(super) fn run(
    socket: Arc<OwnedFd>,
    name: &str,
    size_bytes: Arc<AtomicU64>,
    seat: LaneSeat,
    limits: LaneLimits,
) -> io::Result<()> {
    let mut slots = Slots::new();
    let mut lane = LaneDriver::new(seat, limits);
    let mut client = Client::new(socket, name, size_bytes);
    // Declared last, so that it is dropped first should anything fail.
    let mut ring = ring()?;
    let mut arrived: Vec<(u64, i32)> = Vec::new();
    let mut finished: Vec<Completion> = Vec::new();
    loop {
        loop {
            client.parse(&mut lane, &mut slots);
            finished.extend(lane.turn(&slots, &mut |entry| push(&mut ring, &entry)));
            if finished.is_empty() {
                break;
            }
            for (tag, result) in finished.drain(..) {
                client.answered(tag, result, &mut slots);
            }
            if !client.is_stalled() {
                break;
            }
        }
        client.submit(&mut slots, &mut |entry| push(&mut ring, &entry));
        if client.is_done() && lane.in_flight() == 0 {
            lane.close();
            if lane.is_quiet() {
                return Ok(());
            }
        }
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY)) => {}
            // The kernel may still hold our memory: nothing can be cleaned up safely.
            Err(error) => panic!("io_uring_enter of an NBD lane: {error}"),
        }
        arrived.extend(ring.completion().map(|cqe| (cqe.user_data(), cqe.result())));
        for (user_data, result) in arrived.drain(..) {
            match unpack(user_data) {
                Some((kind @ (Kind::ClientReceive | Kind::ClientSend), _)) => {
                    client.completed(kind, result, &mut slots);
                }
                Some(_) => lane.completed(user_data, result, &slots),
                None => tracing::error!("completion {user_data:#x} belongs to nobody"),
            }
        }
    }
}
