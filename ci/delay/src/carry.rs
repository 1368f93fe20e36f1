//! One direction at work: a thread that reads packets at one end, holds them, writes them at the other.

use crate::line::{Line, LineCounts, LineSetting};
use crate::tun::{PACKET_BYTES_MAX, VNET_HEADER_BYTES};
use hdrhistogram::Histogram;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, write};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Packets read before those that are due are looked at again: few enough that none gets late.
const READ_BATCH: usize = 32;
/// Later than this is the same as this, in the histogram.
const LATE_US_MAX: u64 = 10_000_000;

/// What a direction did.
pub(crate) struct Carried {
    pub counts: LineCounts,
    /// Packets that the other end did not take.
    pub refused_packets: u64,
    /// By how much packets left later than they were due, microseconds.
    pub late_us: Histogram<u64>,
}

/// Carries until `stop` is readable.
///
/// # Errors
/// Text: of polling or reading; the link is of no use any more then.
pub(crate) fn carry(
    (from, to, stop): (&OwnedFd, &OwnedFd, &OwnedFd),
    setting: LineSetting,
    jitter: Duration,
    seed: u64,
) -> Result<Carried, String> {
    // Without this the kernel may wake the thread 50 microseconds late to save power.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))
        .map_err(|e| format!("timer slack: {e}"))?;
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let mut line: Line<Box<[u8]>> = Line::new(setting);
    let mut refused_packets = 0;
    let mut late_us = Histogram::new_with_bounds(1, LATE_US_MAX, 2).map_err(|e| e.to_string())?;
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    let begin = now();
    loop {
        while let Some((packet, late)) = line.pop_due(begin.elapsed()) {
            late_us.saturating_record(u64::try_from(late.as_micros()).unwrap_or(LATE_US_MAX));
            // Like a wire: whoever cannot take a packet has lost it.
            if write(to, &packet).is_err() {
                refused_packets += 1;
            }
        }
        let wait = line
            .next_due()
            .map(|due| timespec(due.saturating_sub(begin.elapsed())));
        let mut wanted = [
            PollFd::new(from, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut wanted, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(format!("poll: {e}")),
        }
        if !wanted[1].revents().is_empty() {
            return Ok(Carried {
                counts: line.counts(),
                refused_packets,
                late_us,
            });
        }
        for _ in 0..READ_BATCH {
            let length = match read(from, &mut *buffer) {
                Ok(length) => length,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(format!("read from the interface: {e}")),
            };
            let late = match jitter {
                Duration::ZERO => Duration::ZERO,
                most => chance.random_range(Duration::ZERO..=most),
            };
            let bytes = length.saturating_sub(VNET_HEADER_BYTES);
            line.take(begin.elapsed(), late, bytes, buffer[..length].into());
        }
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        // Longer waits only wake earlier.
        tv_sec: i64::from(u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

#[allow(clippy::disallowed_methods)] // the link is a shell: it owns the clock
pub(crate) fn now() -> Instant {
    Instant::now()
}
