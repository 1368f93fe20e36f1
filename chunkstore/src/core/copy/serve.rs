//! What this shard gives to copies of other nodes: the source's side of the copy rate.
//!
//! Pieces wait in the order in which they were asked for, so that a near target does not take everything before a far one. They
//! wait for a second at most, well below the time after which a peer is given up; what would wait longer is refused and asked
//! for again.

use std::collections::VecDeque;
use ukai_proto::bucket::{Bucket, burst_bytes};

/// Pieces (at most 1 MiB of memory each) that are read for peers at a time: two targets' worth.
const SERVED_MAX: usize = 16;
/// Pieces that wait.
const WAITING_MAX: usize = 64;
/// How long the rate may make one wait.
const WAIT_MAX_NS: u64 = 1_000_000_000;
/// When to ask again what was refused: the queue is shorter by then.
const AGAIN_NS: u64 = WAIT_MAX_NS / 4;

#[derive(Debug)]
struct Waiting<T> {
    item: T,
    bytes: u64,
    asked_at: u64,
    /// It wanted tokens that were not there.
    for_tokens: bool,
}

/// Pieces asked for by peers, and when each may be read.
#[derive(Debug)]
pub(in crate::core) struct Serving<T> {
    rate: Option<Bucket>,
    waiting: VecDeque<Waiting<T>>,
    waiting_bytes: u64,
    in_flight: usize,
}

impl<T> Default for Serving<T> {
    fn default() -> Self {
        Self {
            rate: None,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: 0,
        }
    }
}

impl<T> Serving<T> {
    /// Bytes per second; `None`: any.
    pub(in crate::core) fn set_rate(&mut self, now: u64, rate: Option<u64>) {
        self.rate = rate.map(|rate| Bucket::new(now, rate, burst_bytes(rate)));
    }

    /// Takes a piece in, or tells in how many nanoseconds to ask for it again.
    pub(in crate::core) fn ask(&mut self, now: u64, bytes: u64, item: T) -> Result<(), u64> {
        let all = self.waiting_bytes + bytes;
        let late = |bucket: &Bucket| !bucket.comes_within(now, all, WAIT_MAX_NS);
        // Alone it waits however long its tokens take: else it would never be served.
        let is_late = !self.waiting.is_empty() && self.rate.as_ref().is_some_and(late);
        if self.waiting.len() >= WAITING_MAX || is_late {
            return Err(AGAIN_NS);
        }
        self.waiting_bytes = all;
        self.waiting.push_back(Waiting {
            item,
            bytes,
            asked_at: now,
            for_tokens: false,
        });
        Ok(())
    }

    /// The next one to be read now, and how many nanoseconds the rate held it back. Say [`Serving::served`] when it is over.
    pub(in crate::core) fn next(&mut self, now: u64) -> Option<(T, u64)> {
        if self.in_flight >= SERVED_MAX {
            return None;
        }
        let first = self.waiting.front_mut()?;
        if let Some(bucket) = &mut self.rate
            && !bucket.take(now, first.bytes)
        {
            // Those behind wait for it.
            let waiting = self.waiting.iter_mut();
            waiting.for_each(|waiting| waiting.for_tokens = true);
            return None;
        }
        let first = self.waiting.pop_front()?;
        self.waiting_bytes -= first.bytes;
        self.in_flight += 1;
        let waited = now.saturating_sub(first.asked_at);
        Some((first.item, if first.for_tokens { waited } else { 0 }))
    }

    pub(in crate::core) fn served(&mut self) {
        assert!(self.in_flight > 0, "more pieces served than begun");
        self.in_flight -= 1;
    }

    /// It was not read after all.
    pub(in crate::core) fn give_back(&mut self, bytes: u64) {
        self.rate.iter_mut().for_each(|rate| rate.give_back(bytes));
    }

    /// Call [`Serving::next`] then at the latest.
    pub(in crate::core) fn wake_at(&self) -> Option<u64> {
        let first = self.waiting.front()?;
        let bucket = self.rate.as_ref()?;
        (self.in_flight < SERVED_MAX).then(|| bucket.ready_at(first.bytes))
    }

    /// All that wait; nothing of them will be read.
    pub(in crate::core) fn clear(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.waiting)
            .into_iter()
            .map(|w| w.item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn without_a_rate_only_the_number_is_bounded() {
        let mut serving = Serving::default();
        for n in 0..SERVED_MAX + WAITING_MAX {
            serving.ask(0, MIB, n).expect("room");
            if n < SERVED_MAX {
                assert_eq!(serving.next(0), Some((n, 0)));
            }
        }
        assert_eq!(serving.next(0), None);
        assert_eq!(serving.ask(0, MIB, 999), Err(AGAIN_NS));
        serving.served();
        assert_eq!(
            serving.next(7),
            Some((SERVED_MAX, 0)),
            "no rate held it back"
        );
    }

    #[test]
    fn what_would_wait_too_long_is_refused_and_a_large_one_alone_is_not() {
        let mut serving = Serving::default();
        serving.set_rate(0, Some(MIB / 4));
        assert_eq!(serving.ask(0, MIB, 'a'), Ok(()));
        assert_eq!(serving.next(0), None);
        assert_eq!(serving.ask(0, MIB, 'b'), Err(AGAIN_NS));
        let at = serving.wake_at().expect("a time");
        assert_eq!(at, 4_000_000_000);
        assert_eq!(serving.next(at), Some(('a', at)));
    }

    proptest! {
        /// Tokens are rate * t + burst over every window; first come, first served; nothing is lost.
        #[test]
        fn the_rate_is_kept_over_every_window(
            rate in MIB..64 * MIB,
            steps in prop::collection::vec((0u64..300_000_000, 1u64..=MIB), 1..200),
        ) {
            let mut serving = Serving::default();
            serving.set_rate(0, Some(rate));
            let (mut now, mut asked, mut begun) = (0, Vec::new(), Vec::new());
            let mut take = |serving: &mut Serving<(usize, u64)>, now| {
                while let Some(((n, bytes), held)) = serving.next(now) {
                    begun.push((now, n, bytes, held));
                    serving.served();
                }
            };
            for (n, (pause, bytes)) in steps.into_iter().enumerate() {
                now += pause;
                if serving.ask(now, bytes, (n, bytes)).is_ok() {
                    asked.push((n, now));
                }
                take(&mut serving, now);
            }
            while let Some(at) = serving.wake_at() {
                now = now.max(at);
                take(&mut serving, now);
            }
            let order: Vec<usize> = begun.iter().map(|b| b.1).collect();
            prop_assert_eq!(order, asked.iter().map(|a| a.0).collect::<Vec<_>>());
            for (first, from) in begun.iter().enumerate() {
                let mut sum = 0;
                for to in &begun[first..] {
                    sum += u128::from(to.2);
                    let span = u128::from(to.0 - from.0);
                    let may = span * u128::from(rate) / 1_000_000_000 + u128::from(burst_bytes(rate));
                    prop_assert!(sum <= may, "{} bytes in {} ns, {} allowed", sum, span, may);
                }
            }
        }
    }
}
