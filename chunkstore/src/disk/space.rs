//! Slots without an owner, on their way from one to the next.
//!
//! A freed slot is reused only after a flush has covered the record that freed it (a cut could show one
//! chunk's data under another's name), and after the hole punched in it is done (a late punch would
//! destroy the next owner's data).

use super::commit::GroupId;
use super::layout::{PageIndex, SlotIndex};
use std::collections::{BTreeSet, VecDeque};
use ukai_proto::message::ChunkRange;
use ukai_proto::{Generation, VolumeId};

/// Punches under way at once: background work that must not crowd the device.
pub(super) const PUNCHES_MAX: usize = 16;

/// Chunks deleted by a record whose slots' pages still name the old owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tombstone {
    pub(super) volume: VolumeId,
    pub(super) range: ChunkRange,
    pub(super) generation: Generation,
    /// Block of the record that deleted them.
    pub(super) origin: u64,
}

/// Free and freed slots.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Ready for use.
    pub(super) free: Vec<SlotIndex>,
    /// Freed by a record of the group.
    freed: VecDeque<(GroupId, SlotIndex)>,
    /// To be punched.
    to_punch: VecDeque<SlotIndex>,
    punching: usize,
    /// There is one more since [`Space::take_gained`].
    gained: bool,
    /// Tombstones that a recovery would need.
    pub(super) tombstones: Vec<Tombstone>,
    /// Free slots whose pages on disk name an owner that a tombstone has removed.
    pub(super) stale_slots: BTreeSet<SlotIndex>,
    /// Pages on disk with holes that a tombstone has removed.
    pub(super) stale_hole_pages: BTreeSet<PageIndex>,
}

impl Space {
    pub(super) fn freed(&mut self, group: GroupId, slot: SlotIndex) {
        self.freed.push_back((group, slot));
    }

    /// A slot will become free without anybody's doing but a flush's.
    pub(super) fn soon(&self) -> Option<GroupId> {
        let punching = self.punching > 0 || !self.to_punch.is_empty();
        self.freed
            .back()
            .map(|(group, _)| *group)
            .or(punching.then_some(0))
    }

    /// Everything up to the group is flushed.
    pub(super) fn flushed(&mut self, group: GroupId) {
        while self.freed.front().is_some_and(|(freed, _)| *freed <= group) {
            let (_, slot) = self.freed.pop_front().expect("looked at");
            self.to_punch.push_back(slot);
        }
    }

    /// The next slot to punch.
    pub(super) fn punch(&mut self) -> Option<SlotIndex> {
        if self.punching >= PUNCHES_MAX {
            return None;
        }
        let slot = self.to_punch.pop_front()?;
        self.punching += 1;
        Some(slot)
    }

    pub(super) fn punched(&mut self, slot: SlotIndex) {
        self.punching -= 1;
        self.free.push(slot);
        self.gained = true;
    }

    /// Has a slot become free since this was last asked?
    pub(super) fn take_gained(&mut self) -> bool {
        std::mem::take(&mut self.gained)
    }

    /// The next free slot, if there are more than `kept`.
    pub(super) fn next_free(&self, kept: usize) -> Option<SlotIndex> {
        let free = self.free.last().copied();
        free.filter(|_| self.free.len() > kept)
    }
}
