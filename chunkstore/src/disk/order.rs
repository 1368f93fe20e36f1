//! Order among requests: overlapping ones of a slot run one after the other, barriers of a volume alone.

use super::hole::SlotKey;
use std::collections::{BTreeMap, VecDeque};
use ukai_proto::VolumeId;

/// A claim on sectors of a slot.
#[derive(Clone, Copy, Debug)]
struct Claim {
    request: u64,
    first: u8,
    last: u8,
    exclusive: bool,
}

impl Claim {
    fn conflicts(&self, other: &Self) -> bool {
        (self.exclusive || other.exclusive) && self.first <= other.last && other.first <= self.last
    }
}

#[derive(Debug, Default)]
struct Slot {
    active: Vec<Claim>,
    waiting: VecDeque<Claim>,
}

#[derive(Debug, Default)]
struct Gate {
    inside: u32,
    /// A barrier is inside, alone.
    barrier: bool,
    queue: VecDeque<(u64, bool)>,
}

/// Who runs and who waits. Bounded by the requests in flight, which the node bounds per connection.
#[derive(Debug, Default)]
pub(super) struct Order {
    slots: BTreeMap<SlotKey, Slot>,
    gates: BTreeMap<VolumeId, Gate>,
}

impl Order {
    /// A request of a volume arrives; `false`: it waits for a barrier (or is one and waits).
    pub(super) fn enter(&mut self, volume: VolumeId, request: u64, barrier: bool) -> bool {
        let gate = self.gates.entry(volume).or_default();
        if gate.barrier || !gate.queue.is_empty() || (barrier && gate.inside > 0) {
            gate.queue.push_back((request, barrier));
            return false;
        }
        gate.inside += 1;
        gate.barrier = barrier;
        true
    }

    /// A request that entered is done; adds those that enter now to `started`.
    pub(super) fn leave(&mut self, volume: VolumeId, started: &mut VecDeque<u64>) {
        let gate = self.gates.get_mut(&volume).expect("entered before");
        gate.inside -= 1;
        gate.barrier = false;
        while let Some((request, barrier)) = gate.queue.front().copied() {
            if barrier && gate.inside > 0 {
                break;
            }
            gate.queue.pop_front();
            gate.inside += 1;
            started.push_back(request);
            if barrier {
                gate.barrier = true;
                break;
            }
        }
        if gate.inside == 0 {
            self.gates.remove(&volume);
        }
    }

    /// Claims sectors; `false`: the request waits for an earlier one.
    pub(super) fn acquire(
        &mut self,
        key: SlotKey,
        request: u64,
        (first, last): (u8, u8),
        exclusive: bool,
    ) -> bool {
        let claim = Claim {
            request,
            first,
            last,
            exclusive,
        };
        let slot = self.slots.entry(key).or_default();
        if slot
            .active
            .iter()
            .chain(&slot.waiting)
            .any(|other| other.conflicts(&claim))
        {
            slot.waiting.push_back(claim);
            return false;
        }
        slot.active.push(claim);
        true
    }

    /// Gives up what `request` holds; adds those that hold their sectors now to `started`.
    pub(super) fn release(&mut self, key: SlotKey, request: u64, started: &mut VecDeque<u64>) {
        let slot = self.slots.get_mut(&key).expect("acquired before");
        let held = slot
            .active
            .iter()
            .position(|claim| claim.request == request);
        slot.active.swap_remove(held.expect("acquired before"));
        let mut index = 0;
        while index < slot.waiting.len() {
            let claim = slot.waiting[index];
            let earlier = slot.waiting.iter().take(index);
            if slot
                .active
                .iter()
                .chain(earlier)
                .any(|other| other.conflicts(&claim))
            {
                index += 1;
            } else {
                slot.waiting.remove(index);
                slot.active.push(claim);
                started.push_back(claim.request);
            }
        }
        if slot.active.is_empty() {
            assert!(slot.waiting.is_empty(), "somebody waits for nobody");
            self.slots.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_proto::ChunkIndex;

    const KEY: SlotKey = SlotKey {
        volume: VolumeId([1; 16]),
        chunk: ChunkIndex(0),
        index: 0,
    };

    #[test]
    fn overlapping_requests_run_in_order_and_others_pass() {
        let mut order = Order::default();
        assert!(order.acquire(KEY, 1, (0, 9), true));
        assert!(!order.acquire(KEY, 2, (5, 20), false));
        assert!(
            !order.acquire(KEY, 3, (15, 15), true),
            "behind the read that waits"
        );
        assert!(order.acquire(KEY, 4, (30, 30), true));
        let mut started = VecDeque::new();
        order.release(KEY, 1, &mut started);
        assert_eq!(started, [2]);
        order.release(KEY, 2, &mut started);
        assert_eq!(started, [2, 3]);
        order.release(KEY, 3, &mut started);
        order.release(KEY, 4, &mut started);
        assert!(order.slots.is_empty());
    }

    #[test]
    fn barriers_run_alone() {
        let (mut order, volume) = (Order::default(), VolumeId([1; 16]));
        assert!(order.enter(volume, 1, false));
        assert!(!order.enter(volume, 2, true));
        assert!(!order.enter(volume, 3, false));
        let mut started = VecDeque::new();
        order.leave(volume, &mut started);
        assert_eq!(started, [2]);
        order.leave(volume, &mut started);
        assert_eq!(started, [2, 3]);
        order.leave(volume, &mut started);
        assert!(order.gates.is_empty());
    }
}
