//! One direction of the link: which packets it holds, and when each is due. Pure: time is what has
//! passed since the link began, and is told; so is chance.
//!
//! A packet waits until the wire is free, takes `bytes / rate` to pass onto it, and comes out `delay`
//! (and its jitter) later. Packets keep their order, as on one fibre: TCP takes reordering for loss.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::Duration;

/// How a direction behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LineSetting {
    /// From one end to the other.
    pub delay: Duration,
    /// Bytes that get onto the wire per second; without, any number.
    pub rate_bytes_per_s: Option<NonZeroU64>,
    /// Held at once, in bytes and in packets; what comes beyond is dropped, as by a full router.
    pub held_bytes_max: usize,
    /// See `held_bytes_max`: memory is also taken by small packets.
    pub held_packets_max: usize,
}

/// What a direction has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LineCounts {
    pub taken_packets: u64,
    pub taken_bytes: u64,
    pub dropped_packets: u64,
    /// Most bytes held at once.
    pub held_bytes_most: usize,
}

struct Held<P> {
    due: Duration,
    bytes: usize,
    packet: P,
}

/// The packets of one direction.
pub(crate) struct Line<P> {
    setting: LineSetting,
    held: VecDeque<Held<P>>,
    held_bytes: usize,
    /// When the last packet is wholly on the wire.
    wire_free: Duration,
    counts: LineCounts,
}

impl<P> Line<P> {
    #[must_use]
    pub(crate) fn new(setting: LineSetting) -> Self {
        Self {
            setting,
            held: VecDeque::new(),
            held_bytes: 0,
            wire_free: Duration::ZERO,
            counts: LineCounts::default(),
        }
    }

    /// A packet has come, and shall be late by `jitter`. False if it was dropped.
    pub(crate) fn take(
        &mut self,
        now: Duration,
        jitter: Duration,
        bytes: usize,
        packet: P,
    ) -> bool {
        let full = self.held_bytes.saturating_add(bytes) > self.setting.held_bytes_max
            || self.held.len() >= self.setting.held_packets_max;
        if full {
            self.counts.dropped_packets += 1;
            return false;
        }
        self.wire_free = self.wire_free.max(now) + self.passing(bytes);
        let due = self.wire_free + self.setting.delay + jitter;
        // A packet with little jitter behind one with much waits for it.
        let due = self.held.back().map_or(due, |last| due.max(last.due));
        self.held.push_back(Held { due, bytes, packet });
        self.held_bytes += bytes;
        self.counts.taken_packets += 1;
        self.counts.taken_bytes += bytes as u64;
        self.counts.held_bytes_most = self.counts.held_bytes_most.max(self.held_bytes);
        true
    }

    /// The next packet that is due, with how late it is.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<(P, Duration)> {
        let late = now.checked_sub(self.held.front()?.due)?;
        let held = self.held.pop_front()?;
        self.held_bytes -= held.bytes;
        Some((held.packet, late))
    }

    /// When to call [`Self::pop_due`] next.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.held.front().map(|held| held.due)
    }

    #[must_use]
    pub(crate) fn counts(&self) -> LineCounts {
        self.counts
    }

    fn passing(&self, bytes: usize) -> Duration {
        let Some(rate) = self.setting.rate_bytes_per_s else {
            return Duration::ZERO;
        };
        let ns = bytes as u128 * 1_000_000_000 / u128::from(rate.get());
        // A packet has at most 64 KiB: only an absurd rate exceeds this, and then for ever is right.
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX >> 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn setting(delay: Duration, rate: u64) -> LineSetting {
        LineSetting {
            delay,
            rate_bytes_per_s: NonZeroU64::new(rate),
            held_bytes_max: 10_000,
            held_packets_max: 100,
        }
    }

    #[test]
    fn each_packet_comes_out_after_the_delay_and_not_before() {
        let mut line = Line::new(setting(5 * MS, 0));
        assert!(line.take(MS, Duration::ZERO, 100, 'a'));
        assert!(line.take(2 * MS, Duration::ZERO, 100, 'b'));
        assert_eq!(line.next_due(), Some(6 * MS));
        assert_eq!(line.pop_due(6 * MS - Duration::from_nanos(1)), None);
        assert_eq!(line.pop_due(6 * MS), Some(('a', Duration::ZERO)));
        assert_eq!(line.pop_due(6 * MS), None);
        assert_eq!(line.pop_due(9 * MS), Some(('b', 2 * MS)));
        assert_eq!(line.next_due(), None);
    }

    #[test]
    fn a_full_line_drops_and_takes_again_when_something_left() {
        let mut line = Line::new(setting(5 * MS, 0));
        for n in 0..10 {
            assert!(line.take(Duration::ZERO, Duration::ZERO, 1000, n));
        }
        assert!(!line.take(Duration::ZERO, Duration::ZERO, 1, 10));
        assert!(line.pop_due(5 * MS).is_some());
        assert!(line.take(5 * MS, Duration::ZERO, 1000, 11));
        let counts = line.counts();
        assert_eq!((counts.taken_packets, counts.dropped_packets), (11, 1));
        assert_eq!(counts.held_bytes_most, 10_000);
    }

    #[test]
    fn small_packets_are_bounded_in_number() {
        let mut line = Line::new(setting(5 * MS, 0));
        let taken = (0..200).filter(|n| line.take(Duration::ZERO, Duration::ZERO, 1, *n));
        assert_eq!(taken.count(), 100);
    }

    #[test]
    fn an_idle_wire_saves_nothing_up() {
        // 1 byte per microsecond
        let mut line = Line::new(setting(Duration::ZERO, 1_000_000));
        assert!(line.take(1000 * MS, Duration::ZERO, 1000, ()));
        assert!(line.take(1000 * MS, Duration::ZERO, 1000, ()));
        assert_eq!(line.next_due(), Some(1001 * MS));
        assert!(line.pop_due(1001 * MS).is_some());
        assert_eq!(line.next_due(), Some(1002 * MS));
    }

    proptest! {
        /// Whatever comes: order is kept, nobody is early, nobody is later than the packets before it on the
        /// wire explain, and no window lets more through than the rate.
        #[test]
        fn order_delay_and_rate_hold(
            delay_us in 0u64..20_000,
            rate in prop_oneof![Just(0u64), 100_000u64..10_000_000],
            packets in prop::collection::vec((0u64..3000, 0u64..2000, 1usize..1500), 1..80),
        ) {
            let delay = Duration::from_micros(delay_us);
            let mut line = Line::new(LineSetting {
                held_bytes_max: usize::MAX, held_packets_max: usize::MAX, ..setting(delay, rate)
            });
            let mut now = Duration::ZERO;
            let mut came = Vec::new();
            for (number, (gap, jitter, bytes)) in packets.iter().enumerate() {
                now += Duration::from_micros(*gap);
                let jitter = Duration::from_micros(*jitter);
                prop_assert!(line.take(now, jitter, *bytes, number));
                came.push((now, jitter, *bytes));
            }
            let mut out = Vec::new();
            while let Some(due) = line.next_due() {
                let (number, late) = line.pop_due(due).unwrap();
                prop_assert_eq!(late, Duration::ZERO);
                prop_assert_eq!(number, out.len());
                out.push(due);
            }
            prop_assert_eq!(out.len(), came.len());
            for (number, (at, jitter, bytes)) in came.iter().enumerate() {
                prop_assert!(out[number] >= *at + delay + *jitter);
                if rate == 0 {
                    let latest = came[..=number].iter().map(|(at, jitter, _)| *at + delay + *jitter).max();
                    prop_assert_eq!(Some(out[number]), latest);
                    continue;
                }
                // From any earlier arrival to this departure the wire had time for all between.
                for first in 0..=number {
                    let sum: usize = came[first..number].iter().map(|c| c.2).sum::<usize>() + bytes;
                    let least = sum as f64 / rate as f64;
                    let had = (out[number] - delay).saturating_sub(came[first].0).as_secs_f64();
                    prop_assert!(had >= least - 1e-6, "{number} from {first}: {had} s for {least} s");
                }
            }
        }
    }
}
