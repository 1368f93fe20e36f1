//! The one clock of the process: nanoseconds since its start, monotonic.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// Now. Never 0, so that 0 can mean "never".
#[allow(clippy::disallowed_methods)] // the shell owns the clock; cores get this number
pub(super) fn now_ns() -> u64 {
    let since = START.get_or_init(Instant::now).elapsed();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// A duration in the unit of [`now_ns`].
pub(super) fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// For what happens outside the process and tells nobody: a lease that runs out, the sockets of a
/// process that was killed.
#[allow(clippy::disallowed_methods)] // there is no event to wait for
pub(super) fn pause(time: Duration) {
    std::thread::sleep(time);
}
