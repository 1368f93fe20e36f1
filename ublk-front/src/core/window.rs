//! What a lane measured in the last quarter of a second, for control.
//!
//! Nothing is counted twice on the way of a request: a window is the difference of the lane's
//! histograms since the window before.

use super::stats::{LaneStats, histogram};
use hdrhistogram::Histogram;
use std::time::Duration;

/// Shells ask a lane for its window so often.
pub const WINDOW: Duration = Duration::from_millis(250);

/// Guest requests that ended since the window before, and how long the oldest waits.
#[derive(Clone, PartialEq, Debug)]
pub struct LaneWindow {
    /// Latencies of reads, nanoseconds.
    pub read: Histogram<u64>,
    /// Latencies of writes, nanoseconds.
    pub write: Histogram<u64>,
    /// Latencies of flushes, nanoseconds.
    pub flush: Histogram<u64>,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Age of the oldest request that has not ended: a guest that waits for one request shows in no
    /// histogram.
    pub oldest: Option<Duration>,
}

impl Default for LaneWindow {
    fn default() -> Self {
        Self {
            read: histogram(),
            write: histogram(),
            flush: histogram(),
            read_bytes: 0,
            write_bytes: 0,
            oldest: None,
        }
    }
}

/// What was told in windows so far.
#[derive(Debug, Default)]
pub(super) struct Told(LaneWindow);

impl Told {
    /// What is new since the last call; `None` if nothing is, and nothing is in flight.
    pub(super) fn window(
        &mut self,
        stats: &LaneStats,
        oldest: Option<Duration>,
    ) -> Option<Box<LaneWindow>> {
        let told = &mut self.0;
        let quiet = stats.read.len() == told.read.len()
            && stats.write.len() == told.write.len()
            && stats.flush.len() == told.flush.len();
        if quiet && oldest.is_none() {
            return None;
        }
        let window = LaneWindow {
            read: since(&stats.read, &mut told.read),
            write: since(&stats.write, &mut told.write),
            flush: since(&stats.flush, &mut told.flush),
            read_bytes: stats.read_bytes - told.read_bytes,
            write_bytes: stats.write_bytes - told.write_bytes,
            oldest,
        };
        (told.read_bytes, told.write_bytes) = (stats.read_bytes, stats.write_bytes);
        Some(Box::new(window))
    }
}

/// The samples of `now` that `told` has not; it has them then.
fn since(now: &Histogram<u64>, told: &mut Histogram<u64>) -> Histogram<u64> {
    if now.len() == told.len() {
        return histogram();
    }
    let mut new = now.clone();
    new.subtract(&*told)
        .unwrap_or_else(|error| panic!("histograms only grow: {error}"));
    told.clone_from(now);
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Windows together are what was recorded, each sample in the window that followed it.
        #[test]
        fn windows_split_what_was_recorded(
            rounds in prop::collection::vec(
                (prop::collection::vec(1_000u64..50_000_000_000, 0..20), any::<bool>()), 1..12,
            ),
        ) {
            let (mut stats, mut told) = (LaneStats::default(), Told::default());
            for (samples, is_read) in rounds {
                let mut expected = histogram();
                for sample in &samples {
                    expected.saturating_record(*sample);
                    let (all, bytes) = if is_read {
                        (&mut stats.read, &mut stats.read_bytes)
                    } else {
                        (&mut stats.write, &mut stats.write_bytes)
                    };
                    all.saturating_record(*sample);
                    *bytes += 4096;
                }
                match told.window(&stats, None) {
                    None => prop_assert!(samples.is_empty()),
                    Some(window) => {
                        let empty = histogram();
                        let (read, write) = if is_read { (&expected, &empty) } else { (&empty, &expected) };
                        prop_assert_eq!((&window.read, &window.write), (read, write));
                        let bytes = samples.len() as u64 * 4096;
                        prop_assert_eq!(window.read_bytes + window.write_bytes, bytes);
                    }
                }
            }
            prop_assert!(told.window(&stats, None).is_none());
            let waits = Some(Duration::from_secs(3));
            prop_assert_eq!(told.window(&stats, waits).expect("waits").oldest, waits);
        }
    }
}
