//! The write counter that all lanes of a front share, and what it tells about settled writes.
//!
//! Atomics, because lanes are threads; in the simulator they are plain numbers.

use super::api::{LANES_MAX, LaneId};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use ukai_proto::Seq;
use ukai_proto::limits::SEQ_MAX;

/// "Nothing in flight" in a lane's cell.
const IDLE: u64 = u64::MAX;

/// Counters of writes in flight, by sequence number modulo this. Two writes in flight share a counter
/// only if they are so far apart; then a read of the younger may be held for the older.
const RESIDUES: usize = 1 << 16;

/// Hands out sequence numbers and knows which ones are still in flight.
#[derive(Debug)]
pub struct SharedSeq {
    next: AtomicU64,
    oldest: [AtomicU64; LANES_MAX],
    in_flight: Box<[AtomicU16]>,
    /// Replicas may still differ by what earlier fronts wrote: nothing counts as settled.
    doubted: AtomicBool,
    /// Writes that failed although some replica may have them, or get them yet: in flight until the
    /// next token, which refuses what is still under way and has their chunks reconciled.
    abandoned: Mutex<Vec<Seq>>,
    /// The lowest of them.
    abandoned_oldest: AtomicU64,
}

/// Writes that may fail so under one token. A front that cannot renew its token while so many fail has
/// lost its volume for good.
const ABANDONED_MAX: usize = 1 << 16;

impl Default for SharedSeq {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            oldest: [const { AtomicU64::new(IDLE) }; LANES_MAX],
            in_flight: (0..RESIDUES).map(|_| AtomicU16::new(0)).collect(),
            doubted: AtomicBool::new(false),
            abandoned: Mutex::new(Vec::new()),
            abandoned_oldest: AtomicU64::new(IDLE),
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
        let before = self.residue(Seq(seq)).fetch_add(1, Ordering::SeqCst);
        // At most LANES_MAX lanes x pieces of a lane, spread over consecutive numbers.
        assert!(before < u16::MAX, "writes in flight of one residue");
        Seq(seq)
    }

    /// Uses up a number that belongs to no write.
    pub fn skip(&self) {
        self.next.fetch_add(1, Ordering::SeqCst);
    }

    /// The write `seq` of this lane ended; `oldest` is the lowest one left.
    pub fn ended(&self, lane: LaneId, seq: Seq, oldest: Option<Seq>) {
        self.cell(lane)
            .store(oldest.map_or(IDLE, |seq| seq.0), Ordering::SeqCst);
        let before = self.residue(seq).fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "write {seq} ended but was not in flight");
    }

    /// The write `seq` of this lane failed, and replicas may differ by it. `false`: too many have.
    #[must_use]
    pub fn abandon(&self, lane: LaneId, seq: Seq, oldest: Option<Seq>) -> bool {
        let mut abandoned = self.abandoned();
        if abandoned.len() >= ABANDONED_MAX {
            return false;
        }
        abandoned.push(seq);
        self.abandoned_oldest.fetch_min(seq.0, Ordering::SeqCst);
        self.cell(lane)
            .store(oldest.map_or(IDLE, |seq| seq.0), Ordering::SeqCst);
        true
    }

    /// Have writes been abandoned under this token?
    #[must_use]
    pub fn has_abandoned(&self) -> bool {
        self.abandoned_oldest.load(Ordering::SeqCst) != IDLE
    }

    /// A new token: nothing of the former one is under way any more.
    pub fn renewed(&self) {
        let mut abandoned = self.abandoned();
        for seq in abandoned.drain(..) {
            self.residue(seq).fetch_sub(1, Ordering::SeqCst);
        }
        self.abandoned_oldest.store(IDLE, Ordering::SeqCst);
    }

    fn abandoned(&self) -> std::sync::MutexGuard<'_, Vec<Seq>> {
        // A list of numbers is whole whoever panicked.
        let held = self.abandoned.lock();
        held.unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// May the write still be missing on some replica? Never wrong if it says no.
    #[must_use]
    pub fn is_in_flight(&self, seq: Seq) -> bool {
        seq.0 > 0 && self.residue(seq).load(Ordering::SeqCst) > 0
    }

    /// Replicas may differ by what earlier fronts wrote (or do not any more).
    pub fn set_doubted(&self, doubted: bool) {
        self.doubted.store(doubted, Ordering::SeqCst);
    }

    /// What nodes may be told to be settled: their intents up to it close.
    #[must_use]
    pub fn announced(&self) -> Seq {
        if self.doubted.load(Ordering::SeqCst) {
            return Seq(0);
        }
        self.settled()
    }

    /// Every write up to it has ended on every replica it was meant for.
    #[must_use]
    pub fn settled(&self) -> Seq {
        // `next` first: a number taken after this load is above it anyway.
        let next = self.next.load(Ordering::SeqCst);
        let cells = self.oldest.iter().chain([&self.abandoned_oldest]);
        let oldest = cells.map(|cell| cell.load(Ordering::SeqCst)).min();
        Seq(oldest.unwrap_or(IDLE).min(next).saturating_sub(1))
    }

    /// The highest number handed out: the ceiling of copies that start now.
    #[must_use]
    pub fn last(&self) -> Seq {
        Seq(self.next.load(Ordering::SeqCst).saturating_sub(1))
    }

    #[allow(clippy::cast_possible_truncation)] // the residue is what is wanted
    fn residue(&self, seq: Seq) -> &AtomicU16 {
        &self.in_flight[seq.0 as usize % RESIDUES]
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
        shared.ended(LaneId(0), first, None);
        assert_eq!(shared.settled(), Seq(1));
        assert!(!shared.is_in_flight(first) && shared.is_in_flight(third));
        shared.ended(LaneId(1), second, Some(third));
        assert_eq!(shared.settled(), Seq(2));
        shared.ended(LaneId(1), third, None);
        assert_eq!(shared.settled(), Seq(3));
        assert_eq!(shared.last(), Seq(3));
        assert!(!shared.is_in_flight(third) && !shared.is_in_flight(Seq(0)));
        assert_eq!(shared.announced(), Seq(3));
        shared.set_doubted(true);
        assert_eq!((shared.announced(), shared.settled()), (Seq(0), Seq(3)));
    }

    #[test]
    fn an_abandoned_write_is_in_flight_until_the_token_is_renewed() {
        let shared = SharedSeq::default();
        let failed = shared.take(LaneId(0), None);
        let other = shared.take(LaneId(0), Some(failed));
        assert!(shared.abandon(LaneId(0), failed, Some(other)));
        shared.ended(LaneId(0), other, None);
        assert!(shared.is_in_flight(failed) && shared.has_abandoned());
        assert_eq!(shared.settled(), Seq(0));
        shared.renewed();
        assert!(!shared.is_in_flight(failed) && !shared.has_abandoned());
        assert_eq!(shared.settled(), Seq(2));
    }
}
