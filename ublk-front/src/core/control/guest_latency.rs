//! Latency of the guest's requests over the last moments: windows of all lanes, merged.

use crate::core::api::Now;
use crate::core::window::{LaneWindow, WINDOW};
use std::collections::VecDeque;
use std::time::Duration;
use ukai_meta::LatencyPoints;

/// Windows are kept so long.
pub const KEEP_MAX: Duration = Duration::from_secs(60);

/// Which requests are meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes.
    Flush,
    /// Reads and writes together.
    ReadWrite,
}

/// Latencies and how often each, ascending: few values of a histogram's many are in use.
type Counts = Vec<(u64, u64)>;

#[derive(Debug, Default)]
struct Kind {
    counts: Counts,
    bytes: u64,
}

/// What all lanes told in one quarter of a second.
#[derive(Debug, Default)]
struct Slot {
    /// Its number: time by [`WINDOW`].
    number: u64,
    read: Kind,
    write: Kind,
    flush: Kind,
    oldest: Option<Duration>,
}

/// Requests and bytes per second.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct GuestRate {
    /// Requests per second.
    pub ops_per_s: f64,
    /// Bytes per second.
    pub bytes_per_s: f64,
}

/// See the module docs. Bounded: [`KEEP_MAX`] by [`WINDOW`] slots of some hundred bytes each.
#[derive(Debug, Default)]
pub struct GuestLatency {
    slots: VecDeque<Slot>,
    /// What is told begins after this slot.
    begun: Option<u64>,
}

fn number(now: Now) -> u64 {
    let window = u64::try_from(WINDOW.as_nanos()).unwrap_or(u64::MAX);
    now.0 / window
}

/// Slots that a span covers, the present one included.
fn slots_in(over: Duration) -> u64 {
    let slots = over.as_nanos().div_ceil(WINDOW.as_nanos()).max(1);
    u64::try_from(slots).unwrap_or(u64::MAX)
}

impl GuestLatency {
    /// A lane told its window.
    pub fn add(&mut self, now: Now, window: &LaneWindow) {
        let number = number(now);
        self.begun.get_or_insert(number.saturating_sub(1));
        while self
            .slots
            .front()
            .is_some_and(|slot| slot.number + slots_in(KEEP_MAX) <= number)
        {
            self.slots.pop_front();
        }
        if self.slots.back().is_none_or(|slot| slot.number < number) {
            self.slots.push_back(Slot {
                number,
                ..Slot::default()
            });
        }
        let Some(slot) = self.slots.back_mut() else {
            return;
        };
        let counts = |histogram: &hdrhistogram::Histogram<u64>| -> Counts {
            let recorded = histogram.iter_recorded();
            recorded
                .map(|at| (at.value_iterated_to(), at.count_at_value()))
                .collect()
        };
        slot.read.add(counts(&window.read), window.read_bytes);
        slot.write.add(counts(&window.write), window.write_bytes);
        slot.flush.add(counts(&window.flush), 0);
        slot.oldest = slot.oldest.max(window.oldest);
    }

    /// From here on the guest's latency is another one, since data has moved: what is told of it begins now. What
    /// watches the guest still sees everything.
    pub fn begin_anew(&mut self, now: Now) {
        // What lanes tell in the next slot may have been measured in this one.
        self.begun = Some(number(now) + 1);
    }

    /// How far back what is told may go: to the first window or to where it began anew, [`KEEP_MAX`] at most.
    /// `None`: there is nothing yet.
    #[must_use]
    pub fn told_span(&self, now: Now) -> Option<Duration> {
        let slots = number(now)
            .checked_sub(self.begun?)
            .filter(|slots| *slots > 0)?;
        let slots = slots.min(slots_in(KEEP_MAX));
        Some(WINDOW * u32::try_from(slots).unwrap_or(u32::MAX))
    }

    /// The latency that 99 % of the reads and writes stayed below, in the last `over` (at most
    /// [`KEEP_MAX`], in steps of [`WINDOW`]), and of how many; `None` if there were none.
    #[must_use]
    pub fn p99(&self, now: Now, over: Duration) -> Option<(Duration, u64)> {
        self.quantile(now, over, GuestKind::ReadWrite, 0.99)
    }

    /// The same for any probability and kind.
    #[must_use]
    pub fn quantile(
        &self,
        now: Now,
        over: Duration,
        kind: GuestKind,
        probability: f64,
    ) -> Option<(Duration, u64)> {
        let (counts, total) = self.counts(now, over, kind);
        let at = at_quantile(&counts, total, probability)?;
        Some((Duration::from_nanos(at), total))
    }

    /// The distribution.
    #[must_use]
    pub fn points(&self, now: Now, over: Duration, kind: GuestKind) -> Option<LatencyPoints> {
        let (counts, total) = self.counts(now, over, kind);
        #[allow(clippy::cast_precision_loss)] // latencies of minutes at most
        LatencyPoints::from_quantiles(total, |probability| {
            at_quantile(&counts, total, probability).unwrap_or(0) as f64 / 1000.0
        })
    }

    /// Requests and bytes per second, averaged over `over`.
    #[must_use]
    pub fn rate(&self, now: Now, over: Duration, kind: GuestKind) -> GuestRate {
        let (mut ops, mut bytes) = (0, 0);
        for part in self.recent(now, over).flat_map(|slot| slot.parts(kind)) {
            ops += part.counts.iter().map(|(_, count)| count).sum::<u64>();
            bytes += part.bytes;
        }
        #[allow(clippy::cast_precision_loss)] // rates for people
        let per_s = |n: u64| n as f64 / over.max(WINDOW).as_secs_f64();
        GuestRate {
            ops_per_s: per_s(ops),
            bytes_per_s: per_s(bytes),
        }
    }

    /// How long the oldest request in flight has waited, as lanes last told it.
    #[must_use]
    pub fn oldest(&self, now: Now) -> Option<Duration> {
        // A lane tells it every window; two, because lanes and slots are not in step.
        self.recent(now, WINDOW * 2)
            .filter_map(|slot| slot.oldest)
            .max()
    }

    fn recent(&self, now: Now, over: Duration) -> impl Iterator<Item = &Slot> {
        let (present, span) = (number(now), slots_in(over.min(KEEP_MAX)));
        let first = self
            .slots
            .partition_point(|slot| slot.number + span <= present);
        self.slots.range(first..)
    }

    fn counts(&self, now: Now, over: Duration, kind: GuestKind) -> (Counts, u64) {
        let mut all: Counts = self
            .recent(now, over)
            .flat_map(|slot| slot.parts(kind))
            .flat_map(|part| part.counts.iter().copied())
            .collect();
        all.sort_unstable();
        let total = all.iter().map(|(_, count)| count).sum();
        (all, total)
    }
}

impl Slot {
    fn parts(&self, kind: GuestKind) -> impl Iterator<Item = &Kind> {
        let (first, second) = match kind {
            GuestKind::Read => (&self.read, None),
            GuestKind::Write => (&self.write, None),
            GuestKind::Flush => (&self.flush, None),
            GuestKind::ReadWrite => (&self.read, Some(&self.write)),
        };
        std::iter::once(first).chain(second)
    }
}

impl Kind {
    /// Lanes' histograms have the same bounds, so their values meet.
    fn add(&mut self, counts: Counts, bytes: u64) {
        self.bytes += bytes;
        if self.counts.is_empty() {
            self.counts = counts;
            return;
        }
        self.counts.extend(counts);
        self.counts.sort_unstable_by_key(|(value, _)| *value);
        self.counts.dedup_by(|later, kept| {
            let same = later.0 == kept.0;
            if same {
                kept.1 += later.1;
            }
            same
        });
    }
}

/// The least value with at least this share of all at or below it.
fn at_quantile(counts: &Counts, total: u64, probability: f64) -> Option<u64> {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )] // between 0 and the total
    let wanted = ((total as f64 * probability).ceil() as u64).clamp(1, total.max(1));
    let mut below = 0;
    for (value, count) in counts {
        below += count;
        if below >= wanted {
            return Some(*value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Now {
        Now(ms * 1_000_000)
    }

    fn window(reads_us: &[u64], writes_us: &[u64]) -> LaneWindow {
        let mut window = LaneWindow::default();
        for us in reads_us {
            window.read.saturating_record(us * 1000);
            window.read_bytes += 4096;
        }
        for us in writes_us {
            window.write.saturating_record(us * 1000);
            window.write_bytes += 8192;
        }
        window
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn reads_and_writes_are_told_together_and_apart() {
        let mut guest = GuestLatency::default();
        assert_eq!(guest.p99(at(0), SECOND), None);
        guest.add(at(1000), &window(&[100; 98], &[200]));
        guest.add(at(1010), &window(&[], &[5000]));
        let (both, samples) = guest.p99(at(1100), SECOND).expect("samples");
        assert_eq!(samples, 100);
        assert!((200..203).contains(&both.as_micros()), "{both:?}");
        let of = |kind, p| guest.quantile(at(1100), SECOND, kind, p).expect("samples");
        assert!(of(GuestKind::Read, 1.0).0.as_micros() < 102);
        assert!(of(GuestKind::Write, 0.99).0.as_micros() >= 5000);
        assert_eq!(of(GuestKind::Write, 0.99).1, 2);
        assert_eq!(
            guest.quantile(at(1100), SECOND, GuestKind::Flush, 0.5),
            None
        );
        let rate = guest.rate(at(1100), SECOND, GuestKind::ReadWrite);
        assert_eq!(
            (rate.ops_per_s, rate.bytes_per_s),
            (100.0, 98.0 * 4096.0 + 2.0 * 8192.0)
        );
        let points = guest
            .points(at(1100), SECOND, GuestKind::Read)
            .expect("samples");
        assert_eq!(points.count, 98);
    }

    #[test]
    fn old_windows_leave_the_span_and_then_the_memory() {
        let mut guest = GuestLatency::default();
        for ms in (0..200_000).step_by(250) {
            guest.add(at(ms), &window(&[ms / 1000 + 1], &[]));
        }
        let now = at(199_750);
        assert_eq!(guest.p99(now, SECOND).expect("samples").1, 4);
        assert_eq!(
            guest.p99(now, Duration::from_millis(1)).expect("samples").1,
            1
        );
        assert_eq!(
            guest.p99(now, Duration::from_secs(900)).expect("samples").1,
            240
        );
        assert_eq!(guest.slots.len(), 240);
        // A guest that is quiet has no latency, however long ago it was not.
        assert_eq!(guest.p99(at(260_000), SECOND), None);
    }

    #[test]
    fn nothing_of_before_is_told_after_it_began_anew() {
        let mut guest = GuestLatency::default();
        assert_eq!(guest.told_span(at(0)), None);
        for ms in (10_000..20_000).step_by(250) {
            guest.add(at(ms), &window(&[10_000], &[]));
        }
        assert_eq!(guest.told_span(at(19_750)), Some(SECOND * 10));
        guest.begin_anew(at(19_800));
        assert_eq!(guest.told_span(at(19_900)), None);
        // A lane had begun to measure this one before.
        guest.add(at(20_000), &window(&[10_000], &[]));
        assert_eq!(guest.told_span(at(20_100)), None);
        guest.add(at(20_250), &window(&[300], &[]));
        guest.add(at(20_500), &window(&[300], &[]));
        let span = guest.told_span(at(20_600)).expect("two windows");
        assert_eq!(span, WINDOW * 2);
        let points = guest
            .points(at(20_600), span, GuestKind::Read)
            .expect("samples");
        assert_eq!(points.count, 2);
        assert!(points.quantile(1.0) < 310.0, "{points:?}");
        // Who watches the guest sees the rest as well.
        assert_eq!(guest.p99(at(20_600), SECOND * 5).expect("samples").1, 20);
        assert_eq!(guest.told_span(at(900_000)), Some(KEEP_MAX));
    }

    #[test]
    fn a_request_that_hangs_is_seen() {
        let mut guest = GuestLatency::default();
        let mut hanging = LaneWindow {
            oldest: Some(SECOND),
            ..LaneWindow::default()
        };
        guest.add(at(1000), &hanging);
        hanging.oldest = Some(SECOND * 3);
        guest.add(at(3000), &hanging);
        assert_eq!(guest.oldest(at(3100)), Some(SECOND * 3));
        assert_eq!(guest.oldest(at(9000)), None);
        assert_eq!(guest.p99(at(3100), SECOND), None);
    }

    proptest! {
        /// As one histogram of everything would say, whatever lanes and slots it came by.
        #[test]
        fn quantiles_are_those_of_all_samples(
            windows in prop::collection::vec(prop::collection::vec(1u64..60_000_000, 0..30), 1..20),
            probability in 0.0f64..=1.0,
        ) {
            let mut guest = GuestLatency::default();
            let mut all = Vec::new();
            for (index, samples) in windows.iter().enumerate() {
                guest.add(at(index as u64 * 100), &window(samples, &[]));
                all.extend(samples.iter().map(|us| us * 1000));
            }
            all.sort_unstable();
            let now = at(windows.len() as u64 * 100);
            match guest.quantile(now, KEEP_MAX, GuestKind::ReadWrite, probability) {
                None => prop_assert!(all.is_empty()),
                Some((got, samples)) => {
                    prop_assert_eq!(samples, all.len() as u64);
                    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
                    let wanted = ((all.len() as f64 * probability).ceil() as usize).max(1);
                    let exact = all[wanted - 1] as f64;
                    let got = got.as_nanos() as f64;
                    prop_assert!(got >= exact && got <= exact * 1.01 + 1000.0, "{got} for {exact}");
                }
            }
        }
    }
}
