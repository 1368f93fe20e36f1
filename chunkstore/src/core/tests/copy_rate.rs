//! What all copies together may fetch to a node, and from it.

use super::copy::{fenced, order, pull_header};
use super::*;
use proptest::prelude::*;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::{HeldBack, PullMode};

const MIB: u64 = 1 << 20;
const SECOND: u64 = 1_000_000_000;

impl Pair {
    fn limit(&mut self, target: Option<u64>, source: Option<u64>) {
        let now = self.target.now;
        self.target.core.set_copy_rate(now, target);
        self.source.core.set_copy_rate(now, source);
    }

    /// Move on to the next moment that either waits for.
    fn step(&mut self) {
        let (target, source) = (self.target.core.wake_at(), self.source.core.wake_at());
        let next = target.into_iter().chain(source).min();
        let tick = self.target.now + SECOND / 4;
        let now = next.map_or(tick, |at| at.clamp(self.target.now + 1, tick));
        (self.target.now, self.source.now) = (now, now);
        for node in [&mut self.target, &mut self.source] {
            node.event(ShardEvent::Tick);
        }
        self.pump();
    }

    fn run(&mut self, tag: u64) -> OutFrame<Vec<u8>> {
        self.pump();
        for _ in 0..10_000 {
            if let Some(reply) = self.target.reply(tag) {
                return reply;
            }
            self.step();
        }
        panic!("the order is not answered");
    }

    fn order(&mut self, sector: u16, count: u16, mode: PullMode) -> u64 {
        let body = order(mode, 10);
        self.target.send(pull_header(sector, count), body, None)
    }

    /// The target takes so many MiB that it lacks: how long that took, and what it stood back for.
    fn mirror_all(&mut self, mib: u16) -> (u64, HeldBack) {
        let begun = self.target.now;
        let tag = self.order(0, mib * 256, PullMode::Mirror);
        let reply = self.run(tag);
        assert_eq!(reply.header.status, Status::Ok);
        assert_eq!(self.copied_bytes(), u64::from(mib) * MIB);
        let took = self.target.now - begun;
        (took, HeldBack::from_seq(reply.header.seq))
    }

    fn copied_bytes(&self) -> u64 {
        (self.target.core.store.sectors.len() * SECTOR_BYTES) as u64
    }
}

/// So many MiB that only the source has.
fn filled(mib: u16) -> Pair {
    let mut pair = fenced();
    for sector in 0..mib * 256 {
        pair.source.core.store.plant(sector, 1, 2, 1, 0);
    }
    pair
}

#[test]
fn the_target_fetches_at_its_rate_and_says_that_it_did_not_more() {
    let mut pair = filled(8);
    pair.limit(Some(4 * MIB), None);
    // From an empty bucket: no burst on top.
    let (took, held) = pair.mirror_all(8);
    assert!(
        (2 * SECOND..2 * SECOND + SECOND / 100).contains(&took),
        "{took}"
    );
    assert!(held.at_target_ms >= 1900, "{held:?}");
    assert_eq!(held.at_source_ms, 0);
}

#[test]
fn the_source_gives_at_its_rate_and_the_target_knows() {
    let mut pair = filled(8);
    pair.limit(None, Some(4 * MIB));
    let (took, held) = pair.mirror_all(8);
    // What was refused is asked for again a little later.
    assert!(
        (2 * SECOND..2 * SECOND + SECOND / 2).contains(&took),
        "{took}"
    );
    assert_eq!(held.at_target_ms, 0);
    assert!(held.at_source_ms >= 900, "{held:?}");
}

#[test]
fn what_is_equal_costs_nothing_and_no_rate_tells_of_no_wait() {
    let mut pair = filled(2);
    for sector in 0..2 * 256 {
        pair.target.core.store.plant(sector, 1, 2, 1, 0);
    }
    pair.limit(Some(MIB), Some(MIB));
    let begun = pair.target.now;
    let tag = pair.order(0, 2 * 256, PullMode::Mirror);
    let reply = pair.run(tag);
    assert_eq!(pair.target.now, begun);
    assert_eq!(HeldBack::from_seq(reply.header.seq), HeldBack::default());
    let mut pair = filled(2);
    let tag = pair.order(0, 2 * 256, PullMode::Mirror);
    let reply = pair.run(tag);
    assert_eq!(HeldBack::from_seq(reply.header.seq), HeldBack::default());
}

/// Guests wait for reconciles and repairs.
#[test]
fn neither_reconcile_nor_repair_waits_behind_mirrors() {
    let mut pair = filled(16);
    pair.limit(Some(MIB), Some(MIB));
    let begun = pair.target.now;
    let mirrors: Vec<u64> = (0..64)
        .map(|n| pair.order(256 * (n % 8), 256, PullMode::Mirror))
        .collect();
    pair.pump();
    for (at, mode) in [(12, PullMode::Newer), (13, PullMode::Repair)] {
        let tag = pair.order(256 * at, 256, mode);
        pair.pump();
        let reply = pair.target.reply(tag).expect("at once");
        assert_eq!(reply.header.status, Status::Ok);
        assert_eq!(HeldBack::from_seq(reply.header.seq), HeldBack::default());
    }
    assert_eq!(pair.target.now, begun);
    let early = mirrors
        .iter()
        .filter(|tag| pair.target.reply(**tag).is_some());
    assert_eq!(early.count(), 0);
}

/// Fronts give up what is not answered: an order that waits too long is answered, with what it got, and given again.
#[test]
fn what_waits_too_long_is_answered_busy_and_nothing_is_lost() {
    let mut pair = filled(16);
    pair.limit(Some(MIB), None);
    let mut tags: Vec<(u64, u16)> = (0..16)
        .map(|n| (pair.order(256 * n, 256, PullMode::Mirror), n))
        .collect();
    tags.push((pair.order(0, 16 * 256, PullMode::Mirror), 99));
    let begun = pair.target.now;
    let mut busy = 0;
    while let Some((tag, n)) = tags.pop() {
        let asked = pair.target.now;
        let reply = pair.run(tag);
        assert!(pair.target.now - asked < 12 * SECOND);
        let held = HeldBack::from_seq(reply.header.seq);
        match reply.header.status {
            Status::Ok => {}
            Status::Busy => {
                assert!(held.at_target_ms > 1000, "{held:?}");
                busy += 1;
                let (sector, count) = if n == 99 {
                    (0, 16 * 256)
                } else {
                    (256 * n, 256)
                };
                tags.insert(0, (pair.order(sector, count, PullMode::Mirror), n));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(busy > 0);
    assert_eq!(pair.copied_bytes(), 16 * MIB);
    let took = pair.target.now - begun;
    assert!(took >= 16 * SECOND, "{took}");
}

#[test]
fn what_waits_at_a_source_ends_with_its_lease_and_with_the_node() {
    for stops in [false, true] {
        let mut pair = filled(2);
        pair.limit(None, Some(MIB));
        let tag = pair.order(0, 2 * 256, PullMode::Mirror);
        pair.pump();
        assert!(pair.source.core.wake_at().is_some());
        let (event, in_flight) = if stops {
            (ShardEvent::Stop, 0)
        } else {
            (ShardEvent::LeaseLost, 0)
        };
        pair.source.event(event);
        assert_eq!(pair.source.core.wake_at(), None);
        assert_eq!(pair.source.core.in_flight(), in_flight);
        if stops {
            // The shell would end here.
            let stopped = |action: &ShardAction<_>| matches!(action, ShardAction::Stopped { .. });
            assert!(pair.source.out.iter().any(stopped));
            pair.source.out.clear();
        }
        pair.pump();
        let reply = pair.target.reply(tag).expect("ended");
        assert_eq!(reply.header.status, Status::PeerFailed);
    }
}

/// A fence that comes while a piece waits is honoured when its turn comes.
#[test]
fn a_piece_that_waited_is_judged_again() {
    let mut pair = filled(1);
    pair.limit(None, Some(MIB));
    let tag = pair.order(0, 256, PullMode::Mirror);
    pair.pump();
    pair.source.fence(2, 2);
    let reply = pair.run(tag);
    assert_eq!(reply.header.status, Status::PeerFailed);
    assert_eq!(pair.copied_bytes(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever is ordered when: what is stored in any window is at most rate * t + burst, and what was in flight.
    #[test]
    fn the_rate_is_kept_over_every_window(
        rate in 2u64..16,
        at_source in any::<bool>(),
        orders in prop::collection::vec((0u16..16, 1u16..3, 0u64..400), 1..20),
    ) {
        let mut pair = filled(16);
        let rate = rate * MIB;
        pair.limit((!at_source).then_some(rate), at_source.then_some(rate));
        let mut seen = vec![(pair.target.now, 0)];
        let mut tags = Vec::new();
        for (first, mib, pause_ms) in orders {
            let mib = mib.min(16 - first);
            tags.push(pair.order(first * 256, mib * 256, PullMode::Mirror));
            pair.pump();
            let until = pair.target.now + pause_ms * 1_000_000;
            while pair.target.now < until {
                pair.step();
                seen.push((pair.target.now, pair.copied_bytes()));
            }
        }
        for _ in 0..60 {
            pair.step();
            seen.push((pair.target.now, pair.copied_bytes()));
        }
        for (first, (from, before)) in seen.iter().enumerate() {
            for (to, after) in &seen[first..] {
                let span = u128::from(to - from);
                let may = span * u128::from(rate) / u128::from(SECOND) + 2 * u128::from(MIB);
                let copied = u128::from(after - before);
                prop_assert!(copied <= may, "{} in {} ns, {} allowed", copied, span, may);
            }
        }
    }
}
