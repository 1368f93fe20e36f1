//! How fast a job copies: a token bucket under a hard cap, and an outer loop that watches the guest.
//!
//! The loop is AIMD on the guest's 99th percentile, every 250 ms: above the budget the rate is halved at once, well
//! below it grows by a step. What was seen before the last cut says nothing about the rate after it and does
//! not count. A guest without I/O has nothing to be protected from.

use crate::core::api::Now;
use std::time::Duration;
use ukai_proto::bucket::{Bucket, burst_bytes};

/// Between evaluations.
pub(super) const EVERY: Duration = Duration::from_millis(250);
/// Fewer requests than this say nothing about a 99th percentile.
pub(super) const SAMPLES_MIN: u64 = 20;
/// As many say enough: no need to look further back.
pub(super) const SAMPLES_ENOUGH: u64 = 100;
/// How far back the guest's latency is looked at, at most.
const LOOK_BACK: [Duration; 4] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

const MIB: u64 = 1 << 20;
/// The loop never goes below: a job that must end, at a cost that no guest notices.
const RATE_MIN: u64 = MIB;
/// Where the loop starts.
const RATE_START: u64 = 16 * MIB;
/// Per evaluation without a cap; with one a fortieth of it: from nothing to the cap in ten seconds.
const STEP_UNCAPPED: u64 = 4 * MIB;
const STEPS_TO_CAP: u64 = 40;
/// Above so many percent of the budget the rate stays.
const COMFORT_PERCENT: u64 = 85;
/// One PULL of a job: more would stand before too many of the guest's requests.
pub(super) const PIECE_BYTES_MAX: u64 = MIB;
const PIECE_BYTES_MIN: u64 = 128 << 10;
/// The loop's rate without a limit of any kind.
const UNLIMITED: u64 = u64::MAX / (1 << 20);

/// What keeps copies from going faster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limit {
    /// The job's own cap.
    Rate,
    /// The guest's latency.
    Guest,
    /// Source and target, or the network between them.
    Nodes,
}

impl Limit {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Guest => "guest p99",
            Self::Nodes => "source or target",
        }
    }
}

/// The guest's latency over a while, and of how many requests.
pub(super) type Seen = Option<(Duration, u64)>;

/// The pace of one job.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    cap: Option<u64>,
    budget: Option<Duration>,
    floor: u64,
    rate: u64,
    bucket: Bucket,
    evaluate_at: Now,
    counts_from: Now,
    /// The bucket was empty when more could have been asked for.
    starved: bool,
    /// That was so before the latest evaluation.
    was_starved: bool,
}

impl Pace {
    pub(super) fn new(now: Now) -> Self {
        let mut this = Self {
            cap: None,
            budget: None,
            floor: RATE_MIN,
            rate: UNLIMITED,
            bucket: Bucket::new(now.0, 0, 0),
            evaluate_at: now,
            counts_from: now,
            starved: false,
            was_starved: false,
        };
        this.open(now);
        this
    }

    /// `budget`: what the guest's p99 may be. `floor`: bytes per second that a deadline needs, whatever
    /// the guest sees; never above the cap.
    pub(super) fn limit(
        &mut self,
        now: Now,
        cap: Option<u64>,
        budget: Option<Duration>,
        floor: u64,
    ) {
        if self.budget.is_none() && budget.is_some() {
            self.rate = RATE_START;
            self.counts_from = now;
        }
        (self.cap, self.budget, self.floor) = (cap, budget, floor);
        if budget.is_none() {
            self.rate = UNLIMITED;
        }
        self.open(now);
    }

    /// Within floor and cap, the cap above all.
    fn bounded(&self, rate: u64) -> u64 {
        rate.max(self.floor)
            .max(RATE_MIN)
            .min(self.cap.unwrap_or(UNLIMITED))
    }

    fn open(&mut self, now: Now) {
        self.rate = self.bounded(self.rate);
        self.bucket.set(now.0, self.rate, burst_bytes(self.rate));
    }

    #[cfg(test)]
    fn rate(&self) -> u64 {
        self.rate
    }

    pub(super) fn is_due(&self, now: Now) -> bool {
        now >= self.evaluate_at
    }

    /// The guest's p99 from what `over` tells of the last so much time: of as short a time as has requests
    /// enough.
    pub(super) fn look(&self, now: Now, over: impl Fn(Duration) -> Seen) -> Seen {
        let since = now.since(self.counts_from);
        let mut seen = None;
        for back in LOOK_BACK {
            seen = over(back.min(since)).filter(|(_, samples)| *samples >= SAMPLES_MIN);
            if back >= since || seen.is_some_and(|(_, samples)| samples >= SAMPLES_ENOUGH) {
                break;
            }
        }
        seen
    }

    /// Once per [`EVERY`].
    pub(super) fn evaluate(&mut self, now: Now, p99: Seen) {
        self.evaluate_at = now.after(EVERY);
        self.was_starved = std::mem::take(&mut self.starved);
        let Some(budget) = self.budget else { return };
        if now.since(self.counts_from) < EVERY {
            return; // what the last cut did is not seen yet
        }
        let step = self
            .cap
            .map_or(STEP_UNCAPPED, |cap| (cap / STEPS_TO_CAP).max(MIB / 4));
        match p99 {
            Some((p99, _)) if p99 > budget => {
                self.rate /= 2;
                // Lanes tell what was a quarter of a second ago.
                self.counts_from = now.after(EVERY);
            }
            Some((p99, _))
                if p99.as_nanos() * 100 > budget.as_nanos() * u128::from(COMFORT_PERCENT) => {}
            // Only a rate that is used is known to be good.
            _ if self.was_starved => self.rate = self.rate.saturating_add(step),
            _ => {}
        }
        self.open(now);
    }

    /// Bytes of the next PULL: short ones at low rates, so that they stay apart.
    pub(super) fn piece_bytes(&self) -> u64 {
        (self.rate / 64)
            .clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
            .next_power_of_two()
            .min(PIECE_BYTES_MAX)
    }

    pub(super) fn take(&mut self, now: Now, bytes: u64) -> bool {
        let there = self.bucket.take(now.0, bytes);
        self.starved |= !there;
        there
    }

    /// It was not needed: the target had it already.
    pub(super) fn give_back(&mut self, bytes: u64) {
        self.bucket.give_back(bytes);
    }

    pub(super) fn limit_that_binds(&self) -> Limit {
        let free = self.rate < self.cap.unwrap_or(UNLIMITED);
        match (self.was_starved, self.budget.is_some() && free) {
            (true, true) => Limit::Guest,
            (true, false) if self.cap.is_some() => Limit::Rate,
            _ => Limit::Nodes,
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)] // a model
mod tests {
    use super::*;

    /// A device that guest and copies share, as an M/M/1 queue: p99 = ln(100) * service / (1 - load).
    struct Shared {
        capacity: f64,
        guest: f64,
        service_us: f64,
    }

    impl Shared {
        fn p99(&self, copy: u64) -> Duration {
            let load = (self.guest + copy as f64) / self.capacity;
            let us = 4.605 * self.service_us / (1.0 - load).max(0.001);
            Duration::from_micros(us as u64)
        }

        /// The rate at which the budget is just met.
        fn fair(&self, budget: Duration) -> f64 {
            let room = 1.0 - 4.605 * self.service_us / (budget.as_micros() as f64);
            room * self.capacity - self.guest
        }
    }

    /// What evaluations decide: the mean rate of the last half, and how many saw the budget broken.
    fn run(pace: &mut Pace, now: &mut Now, shared: &Shared, budget: Duration) -> (f64, usize) {
        let (mut sum, mut broken) = (0.0, 0);
        for n in 0..400 {
            *now = now.after(EVERY);
            while pace.take(*now, MIB) {}
            let p99 = shared.p99(pace.rate());
            let seen = pace.look(*now, |_| Some((p99, 500)));
            broken += usize::from(p99 > budget && n >= 200);
            assert!(pace.is_due(*now));
            pace.evaluate(*now, seen);
            if n >= 200 {
                sum += pace.rate() as f64 / 200.0;
            }
        }
        (sum, broken)
    }

    #[test]
    fn the_rate_converges_below_the_budget_and_follows_the_guest() {
        let budget = Duration::from_millis(3);
        let mut shared = Shared {
            capacity: 400.0 * MIB as f64,
            guest: 80.0 * MIB as f64,
            service_us: 250.0,
        };
        let (mut now, mut pace) = (Now(0), Pace::new(Now(0)));
        pace.limit(now, Some(1 << 30), Some(budget), 0);
        for guest in [80, 200, 20, 140] {
            shared.guest = (guest * MIB) as f64;
            let (mean, broken) = run(&mut pace, &mut now, &shared, budget);
            let fair = shared.fair(budget);
            assert!(
                (0.45 * fair..=fair).contains(&mean),
                "guest {guest}: {mean} of {fair}"
            );
            assert!(broken <= 50, "guest {guest}: {broken} of 200 evaluations");
        }
    }

    #[test]
    fn a_cut_comes_at_once_and_only_once_per_news() {
        let budget = Duration::from_millis(2);
        let mut pace = Pace::new(Now(0));
        pace.limit(Now(0), Some(64 * MIB), Some(budget), 0);
        let start = pace.rate();
        let now = Now(0).after(EVERY);
        pace.evaluate(now, Some((budget * 2, 1000)));
        assert_eq!(pace.rate(), start / 2);
        // What was seen before the cut is not looked at again.
        let news = now.after(EVERY);
        pace.evaluate(news, pace.look(news, |_| Some((budget * 2, 1000))));
        assert_eq!(pace.rate(), start / 2);
        let later = news.after(EVERY);
        let seen = pace.look(later, |back| Some((back, 1000)));
        assert_eq!(seen, Some((EVERY, 1000)));
        pace.evaluate(later, Some((budget * 2, 1000)));
        assert_eq!(pace.rate(), start / 4);
    }

    #[test]
    fn the_cap_holds_whatever_the_deadline_and_the_guest_say() {
        let mut pace = Pace::new(Now(0));
        pace.limit(
            Now(0),
            Some(10 * MIB),
            Some(Duration::from_millis(1)),
            500 * MIB,
        );
        assert_eq!(pace.rate(), 10 * MIB);
        let mut now = Now(0);
        for _ in 0..200 {
            now = now.after(EVERY);
            while pace.take(now, MIB) {}
            pace.evaluate(now, None);
            assert_eq!(pace.rate(), 10 * MIB);
        }
        // Below the cap the deadline's floor holds against the guest.
        pace.limit(
            now,
            Some(100 * MIB),
            Some(Duration::from_millis(1)),
            40 * MIB,
        );
        for _ in 0..20 {
            now = now.after(EVERY);
            pace.evaluate(now, Some((Duration::from_secs(1), 100)));
        }
        assert_eq!(pace.rate(), 40 * MIB);
        assert_eq!(pace.piece_bytes(), MIB);
    }

    #[test]
    fn the_limit_that_binds_is_named() {
        let mut pace = Pace::new(Now(0));
        let mut now = Now(0).after(EVERY);
        pace.evaluate(now, None);
        assert_eq!(pace.limit_that_binds(), Limit::Nodes);
        pace.limit(now, Some(8 * MIB), None, 0);
        while pace.take(now, MIB) {}
        now = now.after(EVERY);
        pace.evaluate(now, None);
        assert_eq!(pace.limit_that_binds(), Limit::Rate);
        pace.limit(now, Some(800 * MIB), Some(Duration::from_millis(1)), 0);
        while pace.take(now, MIB) {}
        now = now.after(EVERY);
        pace.evaluate(now, Some((Duration::from_millis(2), 100)));
        assert_eq!(pace.limit_that_binds(), Limit::Guest);
        assert_eq!(pace.piece_bytes(), 128 << 10);
    }
}
