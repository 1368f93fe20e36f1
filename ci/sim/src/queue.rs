//! Virtual time and what is to happen: one queue, ordered by time, then by order of scheduling.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// One millisecond of virtual time.
pub(crate) const MS: u64 = 1_000_000;
/// One second of virtual time.
pub(crate) const SECOND: u64 = 1_000 * MS;

#[derive(Debug)]
struct Entry<E> {
    at: u64,
    serial: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}
impl<E> Eq for Entry<E> {}
impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.serial).cmp(&(other.at, other.serial))
    }
}

/// The event queue and its clock.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    now: u64,
    serial: u64,
    heap: BinaryHeap<Reverse<Entry<E>>>,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self {
            now: 0,
            serial: 0,
            heap: BinaryHeap::new(),
        }
    }

    /// Nanoseconds since the beginning.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn push(&mut self, at: u64, event: E) {
        assert!(
            at >= self.now,
            "an event at {at} in the past of {}",
            self.now
        );
        self.serial += 1;
        self.heap.push(Reverse(Entry {
            at,
            serial: self.serial,
            event,
        }));
    }

    /// The next event; time moves to it.
    pub(crate) fn pop(&mut self) -> Option<E> {
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_time_then_by_scheduling() {
        let mut queue = Queue::new();
        queue.push(5, 'c');
        queue.push(3, 'a');
        queue.push(5, 'd');
        queue.push(3, 'b');
        let order: String = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!((order.as_str(), queue.now()), ("abcd", 5));
    }
}
