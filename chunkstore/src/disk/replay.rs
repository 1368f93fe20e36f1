//! Reading a shard back: the page table, and the records of the log applied to it.

use super::api::Disk;
use super::hole::{self, HoleEntry, HoleIndex, SlotKey};
use super::layout::{BLOCK_BYTES, Geometry, PageIndex, ShardPlace, SlotIndex};
use super::page::{self, Page, PageCheck};
use super::record::{Record, Run};
use super::scan::{BATCH_BLOCKS, LogScan};
use super::store::OpenError;
use std::collections::{BTreeMap, BTreeSet};
use ukai_proto::message::SectorState;
use ukai_proto::{ChunkIndex, Generation, Token, VolumeId};

/// Owner of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) key: SlotKey,
    pub(super) generation: Generation,
    /// Every record up to this block is contained.
    pub(super) lsn: u64,
}

/// The page table as found, pages that replay changes, and what else the log says.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) owners: BTreeMap<SlotIndex, Owner>,
    /// Position in the log of free slots' pages that have one.
    free_lsn: BTreeMap<SlotIndex, u64>,
    /// Pages in memory; `None`: free.
    pub(super) pages: BTreeMap<SlotIndex, Option<Page>>,
    pub(super) dirty: BTreeSet<PageIndex>,
    pub(super) holes: BTreeMap<HoleIndex, HoleEntry>,
    hole_lsn: BTreeMap<PageIndex, u64>,
    pub(super) fences: BTreeMap<VolumeId, super::api::Fence>,
    /// Token, and whether an earlier crash was not settled yet at a clean stop.
    pub(super) open: BTreeMap<(VolumeId, ChunkIndex), (Token, bool)>,
    pub(super) tombstones: Vec<super::space::Tombstone>,
    /// Earlier states of sectors that changed after the last flush known, oldest first.
    pub(super) chains: BTreeMap<(SlotIndex, u8), Vec<SectorState>>,
    /// Free slots and holes whose pages on disk name owners that tombstones have removed.
    pub(super) stale_slots: BTreeSet<SlotIndex>,
    pub(super) stale_holes: BTreeSet<HoleIndex>,
    /// Everything up to this block was flushed for certain.
    pub(super) flushed: u64,
    pub(super) records: u64,
}

fn damaged(what: &'static str, position: u64) -> OpenError {
    OpenError::Damaged { what, position }
}

impl Replay {
    /// Reads the page table. Pages that fail take their image from the log: only a checkpoint that was
    /// cut while it wrote them explains that.
    pub(super) fn scan_pages(
        &mut self,
        disk: &mut dyn Disk,
        place: &ShardPlace,
        geometry: &Geometry,
        log: &LogScan,
    ) -> Result<(), OpenError> {
        let mut bytes = Vec::new();
        let mut torn = Vec::new();
        let mut unreadable = Vec::new();
        let mut first = 0;
        while first < geometry.pages() {
            let count = (geometry.pages() - first).min(u32::try_from(BATCH_BLOCKS).expect("small"));
            bytes.resize(count as usize * BLOCK_BYTES, 0);
            if disk
                .read(geometry.page_position(PageIndex(first)), &mut bytes)
                .is_err()
            {
                for (number, image) in (first..).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
                    let page = PageIndex(number);
                    if let Err(error) = disk.read(geometry.page_position(page), image) {
                        image.fill(0);
                        unreadable.push((page, error));
                    }
                }
            }
            for (number, image) in (first..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
                let page = PageIndex(number);
                match page::check(image, place, page) {
                    PageCheck::Blank => {}
                    PageCheck::Damaged => torn.push(page),
                    PageCheck::Valid(head) => {
                        self.flushed = self.flushed.max(head.lsn);
                        self.load_image(geometry, page, image, head.lsn)?;
                    }
                }
            }
            first += count;
        }
        for page in torn {
            let newest = log
                .images
                .iter()
                .filter(|image| image.page == page)
                .max_by_key(|i| i.lsn);
            let Some(image) = newest else {
                return Err(damaged("a page is", geometry.page_position(page)));
            };
            // It was being written in place, so its checkpoint's blocks had been flushed.
            self.flushed = self.flushed.max(image.block);
            self.load_image(geometry, page, &image.bytes, image.lsn)?;
            self.dirty.insert(page);
        }
        for (page, error) in unreadable {
            // Unlike a torn page it proves nothing about its image.
            let newest = log
                .images
                .iter()
                .filter(|image| image.page == page && image.block <= self.flushed)
                .max_by_key(|image| image.lsn);
            let image = newest.ok_or(error)?;
            self.load_image(geometry, page, &image.bytes, image.lsn)?;
            self.dirty.insert(page);
        }
        Ok(())
    }

    /// Images of a checkpoint that was certainly flushed stand for their pages.
    pub(super) fn apply_images(
        &mut self,
        geometry: &Geometry,
        log: &LogScan,
    ) -> Result<(), OpenError> {
        for image in &log.images {
            let page = image.page;
            if page.0 >= geometry.pages() {
                return Err(damaged("the log is", geometry.log_position(image.block)));
            }
            if image.block <= self.flushed && image.lsn >= self.page_lsn(geometry, page) {
                self.load_image(geometry, page, &image.bytes, image.lsn)?;
                self.dirty.insert(page);
            }
        }
        Ok(())
    }

    fn page_lsn(&self, geometry: &Geometry, page: PageIndex) -> u64 {
        if page.0 >= geometry.slots {
            return self.hole_lsn.get(&page).copied().unwrap_or(0);
        }
        let slot = SlotIndex(page.0);
        let free = self.free_lsn.get(&slot).copied().unwrap_or(0);
        self.owners.get(&slot).map_or(free, |owner| owner.lsn)
    }

    fn load_image(
        &mut self,
        geometry: &Geometry,
        page: PageIndex,
        image: &[u8],
        lsn: u64,
    ) -> Result<(), OpenError> {
        let position = geometry.page_position(page);
        let kind = image[26];
        if page.0 < geometry.slots {
            let slot = SlotIndex(page.0);
            self.owners.remove(&slot);
            self.free_lsn.remove(&slot);
            self.pages.remove(&slot);
            match kind {
                page::KIND_SLOT => {
                    let content = Page::from_image(image);
                    let owner = Owner {
                        key: content.key(),
                        generation: content.generation(),
                        lsn,
                    };
                    self.owners.insert(slot, owner);
                }
                page::KIND_FREE => {
                    self.free_lsn.insert(slot, lsn);
                }
                _ => return Err(damaged("a page is", position)),
            }
            return Ok(());
        }
        if kind != page::KIND_HOLES {
            return Err(damaged("a page is", position));
        }
        let head = page::PageHead { page, kind, lsn };
        let first = (page.0 - geometry.slots) * super::layout::HOLES_PER_PAGE;
        let holes =
            hole::decode_page(image, &head).ok_or_else(|| damaged("a page is", position))?;
        self.hole_lsn.insert(page, lsn);
        for (index, entry) in (first..).zip(holes) {
            match entry {
                Some(entry) => {
                    self.holes.insert(HoleIndex(index), entry);
                }
                None => {
                    self.holes.remove(&HoleIndex(index));
                }
            }
        }
        Ok(())
    }

    /// The page of a slot in memory; `None`: the slot is free.
    pub(super) fn page(
        &mut self,
        disk: &mut dyn Disk,
        geometry: &Geometry,
        log: &LogScan,
        slot: SlotIndex,
    ) -> Result<&mut Option<Page>, OpenError> {
        if !self.pages.contains_key(&slot) {
            let content = match self.owners.get(&slot) {
                None => None,
                Some(owner) => Some(read_page(disk, geometry, log, slot, owner.lsn)?),
            };
            self.pages.insert(slot, content);
        }
        Ok(self.pages.get_mut(&slot).expect("inserted above"))
    }

    /// Applies one record of block `block`.
    pub(super) fn apply(
        &mut self,
        disk: &mut dyn Disk,
        geometry: &Geometry,
        log: &LogScan,
        block: u64,
        record: &Record<'static>,
    ) -> Result<(), OpenError> {
        self.records += 1;
        let position = geometry.log_position(block);
        match record {
            Record::Write {
                run,
                version,
                generation,
                crcs,
            } => {
                let states: Vec<SectorState> = crcs
                    .iter()
                    .map(|crc| SectorState {
                        version: *version,
                        crc: *crc,
                        flags: 0,
                    })
                    .collect();
                self.set(disk, geometry, log, block, *run, *generation, |at, _| {
                    states[at]
                })?;
            }
            Record::Zero {
                run,
                version,
                generation,
            } => {
                let state = SectorState {
                    version: *version,
                    ..SectorState::UNWRITTEN
                };
                self.set(disk, geometry, log, block, *run, *generation, |_, _| state)?;
            }
            Record::States {
                run,
                generation,
                states,
            } => {
                self.set(disk, geometry, log, block, *run, *generation, |at, _| {
                    states[at]
                })?;
            }
            Record::Bad { run } => {
                self.set(disk, geometry, log, block, *run, Generation(0), |_, old| {
                    SectorState {
                        flags: old.flags | SectorState::BAD,
                        ..old
                    }
                })?;
            }
            Record::Alloc {
                slot,
                key,
                generation,
                hole,
            } => {
                if let Some((index, _)) = hole {
                    self.change_hole(geometry, block, *index, None)?;
                }
                if self.newer(geometry, block, *slot)? {
                    let states = (0..=u8::MAX)
                        .map(|s| hole.map_or(SectorState::UNWRITTEN, |(_, hole)| hole.state(s)));
                    let page = Page::allocated(key, *generation, states);
                    self.own(*slot, Some(page), block);
                    let owner = Owner {
                        key: *key,
                        generation: *generation,
                        lsn: block,
                    };
                    self.owners.insert(*slot, owner);
                }
            }
            Record::Free { slot, hole } => {
                if let Some((index, key, hole)) = hole {
                    let entry = HoleEntry {
                        key: *key,
                        hole: *hole,
                        block,
                    };
                    self.change_hole(geometry, block, *index, Some(entry))?;
                }
                if self.newer(geometry, block, *slot)? {
                    self.own(*slot, None, block);
                }
            }
            Record::Hole { index, key, hole } => {
                let entry = HoleEntry {
                    key: *key,
                    hole: *hole,
                    block,
                };
                self.change_hole(geometry, block, *index, Some(entry))?;
            }
            Record::Open {
                volume,
                chunk,
                token,
                suspect,
            } => {
                let open = self.open.entry((*volume, *chunk)).or_default();
                *open = (open.0.max(*token), *suspect);
            }
            Record::Close { volume, chunk } => {
                self.open.remove(&(*volume, *chunk));
            }
            Record::Fence {
                volume,
                token,
                generation,
            } => {
                let fence = self.fences.entry(*volume).or_default();
                fence.token = fence.token.max(*token);
                fence.generation = fence.generation.max(*generation);
            }
            Record::Tombstone {
                volume,
                range,
                generation,
                origin,
            } => {
                let end = u64::from(range.start.0) + u64::from(range.count);
                if *origin == 0 {
                    self.open.retain(|(of, chunk), _| {
                        of != volume || *chunk < range.start || u64::from(chunk.0) >= end
                    });
                }
                let origin = if *origin == 0 { block } else { *origin };
                let tombstone = super::space::Tombstone {
                    volume: *volume,
                    range: *range,
                    generation: *generation,
                    origin,
                };
                if !self.tombstones.contains(&tombstone) {
                    self.tombstones.push(tombstone);
                }
            }
            Record::Pages { pages, .. } => {
                if pages.iter().any(|(page, _)| page.0 >= geometry.pages()) {
                    return Err(damaged("the log is", position));
                }
            }
        }
        Ok(())
    }

    /// Is the record of `block` news for the slot's page?
    fn newer(&self, geometry: &Geometry, block: u64, slot: SlotIndex) -> Result<bool, OpenError> {
        if slot.0 >= geometry.slots {
            return Err(damaged("the log is", geometry.log_position(block)));
        }
        // Equal: a record of the same block came before, in this replay. Images end at block borders,
        // and those of a block found contained are told apart by `contained`.
        let lsn = self.page_lsn(geometry, slot.page());
        Ok(block > lsn
            || (block == lsn
                && self.pages.contains_key(&slot)
                && self.dirty.contains(&slot.page())))
    }

    fn own(&mut self, slot: SlotIndex, page: Option<Page>, block: u64) {
        let mut later = self.chains.split_off(&(slot, 0));
        later.retain(|(of, _), _| *of != slot);
        self.chains.append(&mut later);
        self.owners.remove(&slot);
        self.free_lsn.insert(slot, block);
        self.pages.insert(slot, page);
        self.dirty.insert(slot.page());
    }

    fn change_hole(
        &mut self,
        geometry: &Geometry,
        block: u64,
        index: HoleIndex,
        entry: Option<HoleEntry>,
    ) -> Result<(), OpenError> {
        if index.0 >= geometry.holes() {
            return Err(damaged("the log is", geometry.log_position(block)));
        }
        let page = index.page(geometry.slots);
        let lsn = self.hole_lsn.get(&page).copied().unwrap_or(0);
        if block <= lsn {
            return Ok(());
        }
        // The page's position stays: unlike a slot's page it is never looked at again by block.
        self.dirty.insert(page);
        match entry {
            Some(entry) => self.holes.insert(index, entry),
            None => self.holes.remove(&index),
        };
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // one internal caller per kind of record
    fn set(
        &mut self,
        disk: &mut dyn Disk,
        geometry: &Geometry,
        log: &LogScan,
        block: u64,
        run: Run,
        generation: Generation,
        state: impl Fn(usize, SectorState) -> SectorState,
    ) -> Result<(), OpenError> {
        if !self.newer(geometry, block, run.slot)? {
            return Ok(());
        }
        let after_flush = block > self.flushed;
        let position = geometry.log_position(block);
        let page = self.page(disk, geometry, log, run.slot)?;
        let Some(page) = page else {
            return Err(damaged("the log is", position));
        };
        page.set_generation(generation.max(page.generation()));
        let generation = page.generation();
        let mut history = Vec::new();
        for (at, sector) in run.sectors().enumerate() {
            let old = page.state(sector);
            let new = state(at, old);
            page.set_state(sector, &new);
            if after_flush && old != new {
                history.push((sector, old));
            }
        }
        for (sector, old) in history {
            self.chains.entry((run.slot, sector)).or_default().push(old);
        }
        let owner = self
            .owners
            .get_mut(&run.slot)
            .expect("its page has an owner");
        owner.generation = generation;
        owner.lsn = block;
        self.dirty.insert(run.slot.page());
        Ok(())
    }
}

/// Reads the page of an allocated slot whose position in the log is known: from the table, or, if it is
/// older there or torn, from the image in the log.
fn read_page(
    disk: &mut dyn Disk,
    geometry: &Geometry,
    log: &LogScan,
    slot: SlotIndex,
    lsn: u64,
) -> Result<Page, OpenError> {
    let image = log
        .images
        .iter()
        .rev()
        .find(|image| image.page == slot.page() && image.lsn == lsn);
    if let Some(image) = image {
        return Ok(Page::from_image(&image.bytes));
    }
    let mut bytes = [0u8; BLOCK_BYTES];
    disk.read(geometry.page_position(slot.page()), &mut bytes)?;
    Ok(Page::from_image(&bytes))
}
