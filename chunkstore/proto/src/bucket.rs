//! A token bucket: how many bytes may be copied now, at a node or for a job.

/// No bucket holds less: a copy of the largest piece must fit.
const BURST_BYTES_MIN: u64 = 1 << 20;
const BURST_BYTES_MAX: u64 = 32 << 20;
const BURST_PER_SECOND: u64 = 8;
const NANOS: u128 = 1_000_000_000;

/// What may come at once at a rate of so many bytes per second: an eighth of a second's worth, for ticks that come late.
#[must_use]
pub fn burst_bytes(rate: u64) -> u64 {
    (rate / BURST_PER_SECOND).clamp(BURST_BYTES_MIN, BURST_BYTES_MAX)
}

/// Tokens are bytes: those taken in any span of time are at most `rate * span + burst`, and what
/// was given back in it. Times are nanoseconds of any monotonic clock.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: u64,
    burst: u64,
    /// Bytes times nanoseconds per second: exact, whatever the ticks.
    level: u128,
    at: u64,
}

impl Bucket {
    /// Empty. `rate` in bytes per second, `burst` in bytes.
    #[must_use]
    pub fn new(now_ns: u64, rate: u64, burst: u64) -> Self {
        Self {
            rate,
            burst,
            level: 0,
            at: now_ns,
        }
    }

    fn full(&self) -> u128 {
        u128::from(self.burst) * NANOS
    }

    fn refill(&mut self, now_ns: u64) {
        let came = u128::from(now_ns.saturating_sub(self.at)) * u128::from(self.rate);
        self.level = self.level.saturating_add(came).min(self.full());
        self.at = self.at.max(now_ns);
    }

    /// Another rate and burst; what is above the burst is lost.
    pub fn set(&mut self, now_ns: u64, rate: u64, burst: u64) {
        self.refill(now_ns);
        (self.rate, self.burst) = (rate, burst);
        self.level = self.level.min(self.full());
    }

    /// Takes all of `bytes`, or nothing.
    pub fn take(&mut self, now_ns: u64, bytes: u64) -> bool {
        self.refill(now_ns);
        let wanted = u128::from(bytes) * NANOS;
        let there = self.level >= wanted;
        if there {
            self.level -= wanted;
        }
        there
    }

    /// It was not needed.
    pub fn give_back(&mut self, bytes: u64) {
        self.level = (self.level + u128::from(bytes) * NANOS).min(self.full());
    }

    /// When `bytes` will be there if nobody takes any; never for more than the burst, or without a rate.
    #[must_use]
    pub fn ready_at(&self, bytes: u64) -> u64 {
        let missing = (u128::from(bytes) * NANOS).saturating_sub(self.level);
        if bytes > self.burst || (self.rate == 0 && missing > 0) {
            return u64::MAX;
        }
        let wait = missing.div_ceil(u128::from(self.rate.max(1)));
        self.at
            .saturating_add(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// Will `bytes`, also more than the burst if taken one after the other, have come in `span_ns`?
    #[must_use]
    pub fn comes_within(&self, now_ns: u64, bytes: u64, span_ns: u64) -> bool {
        let span = u128::from(now_ns.saturating_sub(self.at)) + u128::from(span_ns);
        self.level.saturating_add(span * u128::from(self.rate)) >= u128::from(bytes) * NANOS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    proptest! {
        /// Over every window, whatever was asked for and however often the rate changed below the cap.
        #[test]
        fn never_more_than_rate_and_burst(
            cap in 1u64..1 << 30,
            burst in 1u64..1 << 24,
            steps in prop::collection::vec((0u64..200_000_000, 0u64..1 << 22, 0u64..4), 1..200),
        ) {
            let mut bucket = Bucket::new(0, cap, burst);
            let (mut now, mut taken) = (0, Vec::new());
            for (pause, bytes, slower) in steps {
                now += pause;
                bucket.set(now, cap >> slower, burst);
                if bucket.take(now, bytes) {
                    taken.push((now, bytes));
                }
            }
            for first in 0..taken.len() {
                let mut sum = 0u128;
                for (at, bytes) in &taken[first..] {
                    sum += u128::from(*bytes);
                    let span = u128::from(at - taken[first].0);
                    let may = span * u128::from(cap) / NANOS + u128::from(burst);
                    prop_assert!(sum <= may, "{} in {} ns, {} allowed", sum, span, may);
                }
            }
        }

        #[test]
        fn what_is_given_back_fills_no_more_than_the_burst(
            steps in prop::collection::vec((0u64..50_000_000, 1u64..1 << 20), 1..100),
        ) {
            let mut bucket = Bucket::new(0, 1 << 20, 1 << 20);
            let mut now = 0;
            for (pause, bytes) in steps {
                now += pause;
                if bucket.take(now, bytes) {
                    bucket.give_back(bytes);
                }
                prop_assert!(bucket.level <= bucket.full());
            }
        }
    }

    #[test]
    fn a_late_tick_loses_nothing() {
        let mut bucket = Bucket::new(0, 100 * MIB, 100 * MIB / 8);
        let (mut now, mut bytes) = (0, 0);
        while now < 10_000_000_000 {
            now += 60_000_000;
            while bucket.take(now, MIB) {
                bytes += MIB;
            }
        }
        assert!((980 * MIB..=1013 * MIB).contains(&bytes), "{bytes}");
    }

    proptest! {
        #[test]
        fn it_is_ready_when_it_says_and_not_before(
            rate in 1u64..1 << 32,
            steps in prop::collection::vec((0u64..50_000_000, 1u64..1 << 20), 1..50),
        ) {
            let mut bucket = Bucket::new(0, rate, burst_bytes(rate));
            let mut now = 0;
            for (pause, bytes) in steps {
                now += pause;
                if bucket.clone().take(now, bytes) {
                    prop_assert!(bucket.take(now, bytes));
                    continue;
                }
                bucket.refill(now);
                let at = bucket.ready_at(bytes);
                prop_assert!(at > now);
                prop_assert!(!bucket.clone().take(at - 1, bytes));
                now = at;
                prop_assert!(bucket.take(now, bytes));
            }
        }
    }
}
