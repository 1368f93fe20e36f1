//! Pages in memory: bounded, dirty ones stay until a checkpoint has written them.

use super::commit::GroupId;
use super::layout::SlotIndex;
use super::page::Page;
use std::collections::BTreeMap;

/// A page in memory.
#[derive(Debug)]
pub(super) struct Cached {
    slot: SlotIndex,
    /// `None`: the slot is free and its page must say so.
    pub(super) page: Option<Page>,
    dirty: bool,
    in_checkpoint: bool,
    referenced: bool,
    /// Sectors whose data was written over zeros in groups `fresh_first` to `fresh_group`: until a
    /// recovery is sure to know that those were flushed, what was there before is garbage to it.
    fresh: [u64; 4],
    pub(super) fresh_first: GroupId,
    pub(super) fresh_group: GroupId,
}

impl Cached {
    pub(super) fn set_fresh(&mut self, sector: u8, group: GroupId) {
        if self.fresh == [0; 4] {
            self.fresh_first = group;
        }
        self.fresh[usize::from(sector / 64)] |= 1 << (sector % 64);
        self.fresh_group = group;
    }

    pub(super) fn is_fresh(&self, sector: u8) -> bool {
        self.fresh[usize::from(sector / 64)] & 1 << (sector % 64) != 0
    }

    pub(super) fn clear_fresh(&mut self) {
        self.fresh = [0; 4];
        self.fresh_group = 0;
    }
}

/// The cache.
#[derive(Debug)]
pub(super) struct Cache {
    capacity: usize,
    places: Vec<Cached>,
    index: BTreeMap<SlotIndex, usize>,
    hand: usize,
    /// Pages that are dirty or in a checkpoint.
    pinned: usize,
}

impl Cache {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            places: Vec::new(),
            index: BTreeMap::new(),
            hand: 0,
            pinned: 0,
        }
    }

    /// Pages that must be kept: dirty, or being written.
    pub(super) fn pinned(&self) -> usize {
        self.pinned
    }

    pub(super) fn is_pinned(&self, slot: SlotIndex) -> bool {
        self.index.get(&slot).is_some_and(|place| {
            let cached = &self.places[*place];
            cached.dirty || cached.in_checkpoint
        })
    }

    /// Is the page of an allocated slot here?
    pub(super) fn contains_page(&self, slot: SlotIndex) -> bool {
        self.index
            .get(&slot)
            .is_some_and(|place| self.places[*place].page.is_some())
    }

    /// The page of an allocated slot, if it is here.
    pub(super) fn get(&mut self, slot: SlotIndex) -> Option<&mut Cached> {
        let cached = &mut self.places[*self.index.get(&slot)?];
        cached.referenced = true;
        cached.page.is_some().then_some(cached)
    }

    /// Adds or replaces a page, clean.
    pub(super) fn insert(&mut self, slot: SlotIndex, page: Option<Page>) {
        if let Some(place) = self.index.get(&slot) {
            let cached = &mut self.places[*place];
            cached.page = page;
            cached.referenced = true;
            cached.clear_fresh();
            return;
        }
        let fresh = Cached {
            slot,
            page,
            dirty: false,
            in_checkpoint: false,
            referenced: true,
            fresh: [0; 4],
            fresh_first: 0,
            fresh_group: 0,
        };
        if self.places.len() < self.capacity {
            self.index.insert(slot, self.places.len());
            self.places.push(fresh);
            return;
        }
        let place = self.victim();
        self.index.remove(&self.places[place].slot);
        self.index.insert(slot, place);
        self.places[place] = fresh;
    }

    /// Second chance. Dirty pages are at most three quarters of the capacity, so two rounds find one.
    fn victim(&mut self) -> usize {
        for _ in 0..self.places.len() * 2 + 1 {
            self.hand = (self.hand + 1) % self.places.len();
            let cached = &mut self.places[self.hand];
            if cached.dirty || cached.in_checkpoint {
                continue;
            }
            if std::mem::take(&mut cached.referenced) {
                continue;
            }
            return self.hand;
        }
        panic!(
            "{} of {} cached pages are pinned",
            self.pinned, self.capacity
        );
    }

    /// The slot has no owner any more. A clean page on disk names the one that a tombstone has just
    /// removed. A dirty one may name an owner before that, which no tombstone overrules once the log
    /// has gone on: it stays dirty, and the next checkpoint writes that the slot is free.
    pub(super) fn forget(&mut self, slot: SlotIndex) {
        if let Some(place) = self.index.get(&slot) {
            let cached = &mut self.places[*place];
            cached.page = None;
            cached.clear_fresh();
        }
    }

    /// The page differs from the table.
    pub(super) fn mark_dirty(&mut self, slot: SlotIndex) {
        let cached = &mut self.places[self.index[&slot]];
        if !cached.dirty && !cached.in_checkpoint {
            self.pinned += 1;
        }
        cached.dirty = true;
    }

    /// All dirty pages, in table order; they are clean but pinned until [`Cache::checkpointed`].
    pub(super) fn take_dirty(&mut self) -> Vec<(SlotIndex, Option<&Page>)> {
        let mut taken = Vec::new();
        for cached in &mut self.places {
            if std::mem::take(&mut cached.dirty) {
                assert!(!cached.in_checkpoint, "one checkpoint at a time");
                cached.in_checkpoint = true;
                taken.push((cached.slot, cached.page.as_ref()));
            }
        }
        taken.sort_unstable_by_key(|(slot, _)| *slot);
        taken
    }

    /// The checkpoint has written what it took.
    pub(super) fn checkpointed(&mut self) {
        for cached in &mut self.places {
            if std::mem::take(&mut cached.in_checkpoint) && !cached.dirty {
                self.pinned -= 1;
            }
        }
    }
}
