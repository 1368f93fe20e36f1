//! The write counter that all lanes of a front share, and what it tells about settled writes.
//!
//! Atomics, because lanes are threads; in the simulator they are plain numbers.

use super::api::{LANES_MAX, LaneId};
use std::sync::atomic::{AtomicU64, Ordering};
use ukai_proto::Seq;
use ukai_proto::limits::SEQ_MAX;

/// "Nothing in flight" in a lane's cell.
const IDLE: u64 = u64::MAX;

/// Hands out sequence numbers and knows the lowest one still in flight.
#[derive(Debug)]
pub struct SharedSeq {
    next: AtomicU64,
    oldest: [AtomicU64; LANES_MAX],
}

impl Default for SharedSeq {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            oldest: [const { AtomicU64::new(IDLE) }; LANES_MAX],
        }
    }
}

impl SharedSeq {
    /// A number for a new write of this lane, whose oldest write in flight is `oldest`.
    pub fn take(&self, lane: LaneId, oldest: Option<Seq>) -> Seq {
        if oldest.is_none() {
            // Publish a lower bound before the number exists, so that `settled` never runs ahead.
            let bound = self.next.load(Ordering::SeqCst);
            self.cell(lane).store(bound, Ordering::SeqCst);
        }
        let seq = self.next.fetch_add(1, Ordering::SeqCst);
        assert!(
            seq < SEQ_MAX,
            "sequence numbers of this token are used up; attach again"
        );
        Seq(seq)
    }

    /// A write of this lane ended; `oldest` is the lowest one left.
    pub fn ended(&self, lane: LaneId, oldest: Option<Seq>) {
        self.cell(lane)
            .store(oldest.map_or(IDLE, |seq| seq.0), Ordering::SeqCst);
    }

    /// Every write up to it has ended on every replica it was meant for.
    #[must_use]
    pub fn settled(&self) -> Seq {
        // `next` first: a number taken after this load is above it anyway.
        let next = self.next.load(Ordering::SeqCst);
        let oldest = self
            .oldest
            .iter()
            .map(|cell| cell.load(Ordering::SeqCst))
            .min();
        Seq(oldest.unwrap_or(IDLE).min(next).saturating_sub(1))
    }

    /// The highest number handed out: the ceiling of copies that start now.
    #[must_use]
    pub fn last(&self) -> Seq {
        Seq(self.next.load(Ordering::SeqCst).saturating_sub(1))
    }

    fn cell(&self, lane: LaneId) -> &AtomicU64 {
        &self.oldest[lane.0 as usize % LANES_MAX]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_stays_below_the_oldest_write_of_any_lane() {
        let shared = SharedSeq::default();
        assert_eq!(shared.settled(), Seq(0));
        let first = shared.take(LaneId(0), None);
        let second = shared.take(LaneId(1), None);
        let third = shared.take(LaneId(1), Some(second));
        assert_eq!((first, second, third), (Seq(1), Seq(2), Seq(3)));
        assert_eq!(shared.settled(), Seq(0));
        shared.ended(LaneId(0), None);
        assert_eq!(shared.settled(), Seq(1));
        shared.ended(LaneId(1), Some(third));
        assert_eq!(shared.settled(), Seq(2));
        shared.ended(LaneId(1), None);
        assert_eq!(shared.settled(), Seq(3));
        assert_eq!(shared.last(), Seq(3));
    }
}
