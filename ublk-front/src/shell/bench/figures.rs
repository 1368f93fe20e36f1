//! What was measured.

use crate::core::api::Now;
use hdrhistogram::Histogram;
use std::time::Duration;

/// Longest latency told apart: beyond what a lane holds a request for.
const LATENCY_NS_MAX: u64 = 130_000_000_000;

/// Latencies in nanoseconds, to a thousandth: the histograms of one lane take half a megabyte.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3)
        .unwrap_or_else(|error| panic!("constant bounds: {error}"))
}

/// Reads, or writes.
#[derive(Clone, Debug)]
pub struct BenchSide {
    /// Those that ended well: nanoseconds.
    pub latency: Histogram<u64>,
    /// Those that did not.
    pub errors: u64,
}

impl BenchSide {
    fn new() -> Self {
        Self {
            latency: histogram(),
            errors: 0,
        }
    }

    fn add(&mut self, other: &Self) {
        let added = self.latency.add(&other.latency);
        added.unwrap_or_else(|error| panic!("histograms of the same bounds: {error}"));
        self.errors += other.errors;
    }

    /// Both together.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        sum.add(other);
        sum
    }
}

/// Of one lane.
#[derive(Debug)]
pub(super) struct LaneFigures {
    read: BenchSide,
    write: BenchSide,
    begin: Now,
    /// When the last request ended.
    end: Now,
    /// Of the process, then and in the end.
    cpu_begin: Duration,
    pub(super) cpu_end: Duration,
}

impl LaneFigures {
    pub(super) fn new(begin: Now, cpu: Duration) -> Self {
        Self {
            read: BenchSide::new(),
            write: BenchSide::new(),
            begin,
            end: begin,
            cpu_begin: cpu,
            cpu_end: cpu,
        }
    }

    pub(super) fn ended(&mut self, write: bool, begin: Now, now: Now, well: bool) {
        self.end = now;
        let side = if write {
            &mut self.write
        } else {
            &mut self.read
        };
        if well {
            // Less than 584 years.
            let nanos = u64::try_from(now.since(begin).as_nanos()).unwrap_or(u64::MAX);
            side.latency.saturating_record(nanos);
        } else {
            side.errors += 1;
        }
    }
}

/// Of all lanes.
#[derive(Clone, Debug)]
pub struct BenchFigures {
    /// Reads.
    pub read: BenchSide,
    /// Writes, each with its flush if one was asked for.
    pub write: BenchSide,
    /// Ended by an order, before its time.
    pub interrupted: bool,
    /// First begin and last end, of the clock and of the process's CPU time.
    span: Option<(Now, Now, Duration, Duration)>,
}

impl BenchFigures {
    pub(super) fn new(interrupted: bool) -> Self {
        Self {
            read: BenchSide::new(),
            write: BenchSide::new(),
            interrupted,
            span: None,
        }
    }

    pub(super) fn add(&mut self, lane: &LaneFigures) {
        self.read.add(&lane.read);
        self.write.add(&lane.write);
        let (begin, end, cpu_begin, cpu_end) =
            self.span
                .unwrap_or((lane.begin, lane.end, lane.cpu_begin, lane.cpu_end));
        self.span = Some((
            begin.min(lane.begin),
            end.max(lane.end),
            cpu_begin.min(lane.cpu_begin),
            cpu_end.max(lane.cpu_end),
        ));
    }

    /// From the first request to the end of the last.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.span
            .map_or(Duration::ZERO, |(begin, end, ..)| end.since(begin))
    }

    /// CPU time of this process meanwhile, its control thread's included.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.span.map_or(Duration::ZERO, |(_, _, begin, end)| {
            end.saturating_sub(begin)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_add_up_and_errors_have_no_latency() {
        let cpu = Duration::from_millis;
        let mut a = LaneFigures::new(Now(100), cpu(5));
        a.ended(true, Now(200), Now(5_200), true);
        a.ended(false, Now(5_200), Now(9_000), false);
        a.cpu_end = cpu(7);
        let mut b = LaneFigures::new(Now(50), cpu(4));
        b.ended(true, Now(50), Now(10_050), true);
        b.cpu_end = cpu(6);
        let mut all = BenchFigures::new(false);
        all.add(&a);
        all.add(&b);
        assert_eq!((all.write.latency.len(), all.read.latency.len()), (2, 0));
        assert_eq!((all.write.errors, all.read.errors), (0, 1));
        assert_eq!(all.read.with(&all.write).errors, 1);
        assert_eq!(all.elapsed(), Duration::from_nanos(10_000));
        assert_eq!(all.cpu(), cpu(3));
        assert!(all.write.latency.max() >= 10_000);
    }
}
