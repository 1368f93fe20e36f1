//! Buffers of one NBD connection: a fixed number of slots, memory taken as requests need it.

use crate::core::api::{GUEST_SECTORS_MAX, GuestTag};
use crate::shell::buffers::{AlignedBuffer, GuestBuffers};
use std::ptr::NonNull;
use ukai_proto::limits::SECTOR_BYTES;

/// Guest requests in flight per connection: twice what fio and qemu keep in flight.
pub(super) const SLOTS: u32 = 128;
/// Bytes in one slot: the largest guest request.
pub(super) const SLOT_BYTES_MAX: usize = GUEST_SECTORS_MAX as usize * SECTOR_BYTES;
/// Buffer memory per connection: the largest NBD request (32 MiB, in up to 33 slots) and as much
/// again, so that two of them can overlap.
const MEMORY_MAX: usize = 66 * SLOT_BYTES_MAX;
/// Sizes are powers of two from a sector to [`SLOT_BYTES_MAX`].
const CLASSES: usize = (SLOT_BYTES_MAX / SECTOR_BYTES).ilog2() as usize + 1;

/// See the module docs.
#[derive(Debug)]
pub(super) struct Slots {
    buffers: Vec<Option<AlignedBuffer>>,
    /// Free slots that have a buffer, by class.
    free: [Vec<u32>; CLASSES],
    /// Free slots that have none.
    empty: Vec<u32>,
    memory: usize,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            buffers: (0..SLOTS).map(|_| None).collect(),
            free: Default::default(),
            empty: (0..SLOTS).rev().collect(),
            memory: 0,
        }
    }

    /// A slot with room for `bytes`; `None`: wait until others are given back.
    pub(super) fn take(&mut self, bytes: usize) -> Option<GuestTag> {
        assert!(bytes <= SLOT_BYTES_MAX, "a piece of {bytes} bytes");
        let class = class_of(bytes);
        if let Some(slot) = self.free[class].pop() {
            return Some(GuestTag(slot));
        }
        let size = SECTOR_BYTES << class;
        while self.empty.is_empty() || self.memory + size > MEMORY_MAX {
            // Give up the largest idle buffer of another class.
            let slot = self.free.iter_mut().rev().find_map(Vec::pop)?;
            self.drop_buffer(slot);
            self.empty.push(slot);
        }
        let slot = self.empty.pop()?;
        self.buffers[slot as usize] = Some(AlignedBuffer::new(size));
        self.memory += size;
        Some(GuestTag(slot))
    }

    /// A slot for a request without data.
    pub(super) fn take_bare(&mut self) -> Option<GuestTag> {
        let slot = self
            .empty
            .pop()
            .or_else(|| self.free.iter_mut().find_map(Vec::pop))?;
        Some(GuestTag(slot))
    }

    /// Nobody uses the slot any more.
    pub(super) fn give_back(&mut self, tag: GuestTag) {
        match &self.buffers[tag.0 as usize] {
            Some(buffer) => self.free[class_of(buffer.raw().1)].push(tag.0),
            None => self.empty.push(tag.0),
        }
    }

    fn drop_buffer(&mut self, slot: u32) {
        if let Some(buffer) = self.buffers[slot as usize].take() {
            self.memory -= buffer.raw().1;
        }
    }
}

/// The smallest class with room for `bytes`.
fn class_of(bytes: usize) -> usize {
    bytes
        .div_ceil(SECTOR_BYTES)
        .max(1)
        .next_power_of_two()
        .ilog2() as usize
}

// SAFETY: a slot's buffer is replaced or dropped only while the slot is free; the connection gives a
// slot back only after the lane's completion has been taken and its reply has been sent.
unsafe impl GuestBuffers for Slots {
    fn buffer(&self, tag: GuestTag) -> (NonNull<u8>, usize) {
        match &self.buffers[tag.0 as usize] {
            Some(buffer) => buffer.raw(),
            None => (NonNull::dangling(), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn memory_and_slots_stay_bounded_and_nothing_is_handed_out_twice(
            steps in prop::collection::vec((0usize..=SLOT_BYTES_MAX, any::<bool>(), any::<u8>()), 0..400),
        ) {
            let mut slots = Slots::new();
            let mut held: Vec<GuestTag> = Vec::new();
            for (bytes, give, pick) in steps {
                if give && !held.is_empty() {
                    slots.give_back(held.swap_remove(usize::from(pick) % held.len()));
                } else if let Some(tag) = slots.take(bytes) {
                    prop_assert!(!held.contains(&tag));
                    prop_assert!(slots.buffer(tag).1 >= bytes);
                    held.push(tag);
                }
                prop_assert!(slots.memory <= MEMORY_MAX);
                prop_assert!(held.len() <= SLOTS as usize);
            }
        }
    }

    #[test]
    fn the_largest_request_always_fits_into_idle_slots() {
        let mut slots = Slots::new();
        let small: Vec<_> = (0..SLOTS).map(|_| slots.take(1).unwrap()).collect();
        assert_eq!(slots.take(1), None);
        small.into_iter().for_each(|tag| slots.give_back(tag));
        assert!((0..33).all(|_| slots.take(SLOT_BYTES_MAX).is_some()));
        assert!(slots.take_bare().is_some());
    }
}
