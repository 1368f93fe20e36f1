//! The shell's clock: the only place of the front that reads time.

use crate::core::api::Now;
use std::sync::OnceLock;
use std::time::Instant;

static ORIGIN: OnceLock<Instant> = OnceLock::new();

/// Monotonic time; its zero is the first call in this process.
#[must_use]
#[allow(clippy::disallowed_methods)] // shells own the clock
pub fn now() -> Now {
    let now = Instant::now();
    let elapsed = now.saturating_duration_since(*ORIGIN.get_or_init(|| now));
    // 584 years fit.
    Now(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
}

/// A moment later by `time`.
#[must_use]
pub fn after(now: Now, time: std::time::Duration) -> Now {
    Now(now
        .0
        .saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
}

/// The time of day, seconds since 1970: for records that people and other machines read.
#[must_use]
pub fn unix_s() -> u64 {
    unix_s_before(std::time::Duration::ZERO)
}

/// What it was so long ago.
#[must_use]
#[allow(clippy::disallowed_methods)] // shells own the clock
pub fn unix_s_before(ago: std::time::Duration) -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.saturating_sub(ago).as_secs())
}
