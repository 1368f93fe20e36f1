//! How long reads and writes of at most [`SMALL_SECTORS_MAX`] take inside the shard, from admission to the reply: the last
//! minute or two. Larger ones would say more of the disk's bandwidth than of how long a request waits.

use hdrhistogram::Histogram;
use ukai_meta::LatencyPoints;
use ukai_meta::latency::SMALL_SECTORS_MAX;
use ukai_meta::report::ServiceReport;

/// Samples are told for one to two such spans, so that a report shows the node as it is now.
const SPAN_NS: u64 = 60_000_000_000;
/// Longest time told apart.
const SERVICE_NS_MAX: u64 = 120_000_000_000;

#[derive(Debug)]
struct Recent {
    now: Histogram<u32>,
    before: Histogram<u32>,
}

fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1_000, SERVICE_NS_MAX, 2)
        .unwrap_or_else(|error| panic!("constant bounds: {error}"))
}

impl Recent {
    fn new() -> Self {
        Self {
            now: histogram(),
            before: histogram(),
        }
    }

    fn turn(&mut self) {
        // Without samples the older ones stay: better than nothing.
        if !self.now.is_empty() {
            std::mem::swap(&mut self.now, &mut self.before);
            self.now.reset();
        }
    }

    fn points(&self) -> Option<LatencyPoints> {
        let mut all = self.before.clone();
        // Same bounds and precision, so adding cannot fail.
        let _ = all.add(&self.now);
        #[allow(clippy::cast_precision_loss)] // at most minutes
        LatencyPoints::from_quantiles(all.len(), |quantile| {
            all.value_at_quantile(quantile) as f64 / 1000.0
        })
    }
}

/// See the module docs. Four histograms of about 10 KiB.
#[derive(Debug)]
pub(super) struct ServiceTimes {
    read: Recent,
    write: Recent,
    turned_at: u64,
}

impl Default for ServiceTimes {
    fn default() -> Self {
        Self {
            read: Recent::new(),
            write: Recent::new(),
            turned_at: 0,
        }
    }
}

impl ServiceTimes {
    pub(super) fn read(&mut self, sectors: u16, service_ns: u64) {
        if sectors <= SMALL_SECTORS_MAX {
            self.read.now.saturating_record(service_ns);
        }
    }

    pub(super) fn write(&mut self, sectors: u16, service_ns: u64) {
        if sectors <= SMALL_SECTORS_MAX {
            self.write.now.saturating_record(service_ns);
        }
    }

    /// Time passes.
    pub(super) fn tick(&mut self, now: u64) {
        if now.saturating_sub(self.turned_at) >= SPAN_NS {
            self.turned_at = now;
            self.read.turn();
            self.write.turn();
        }
    }

    pub(super) fn report(&self) -> ServiceReport {
        ServiceReport {
            read: self.read.points(),
            write: self.write.points(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_samples_go_when_new_ones_have_come() {
        let mut times = ServiceTimes::default();
        assert_eq!(times.report(), ServiceReport::default());
        times.read(1, 50_000);
        times.tick(SPAN_NS);
        times.tick(2 * SPAN_NS);
        let read = times.report().read.expect("kept, for want of others");
        assert_eq!(read.count, 1);
        assert!((50.0..51.0).contains(&read.quantile(0.5)), "{read:?}");
        times.read(SMALL_SECTORS_MAX, 900_000);
        assert_eq!(times.report().read.map(|read| read.count), Some(2));
        times.tick(3 * SPAN_NS);
        let read = times.report().read.expect("the new one");
        assert_eq!(read.count, 1);
        assert!(read.quantile(0.5) >= 900.0, "{read:?}");
        assert_eq!(times.report().write, None);
    }

    #[test]
    fn large_requests_do_not_count() {
        let mut times = ServiceTimes::default();
        times.read(SMALL_SECTORS_MAX + 1, 50_000_000);
        times.write(64, 90_000_000);
        assert_eq!(times.report(), ServiceReport::default());
    }
}
