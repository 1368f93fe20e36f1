//! Settling suspect slots at runtime, on first touch or in the background: see `settle.rs`.

use super::api::StoreAction;
use super::directory::Entry;
use super::hole::SlotKey;
use super::layout::{BLOCK_BYTES_U32, SLOT_SECTORS_U16, SlotIndex};
use super::op::Io;
use super::page::Page;
use super::record::{Record, Run};
use super::room::Need;
use super::settle::{Lost, Verdict, decide};
use super::store::Store;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use ukai_proto::Buffer;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::{SECTOR_BYTES, SLOT_BYTES};
use ukai_proto::message::SectorState;

/// A slot as one read.
const SLOT_READ_BYTES: u32 = SLOT_SECTORS_U16 as u32 * BLOCK_BYTES_U32;
/// Slots settled at once: each needs a buffer of 1 MiB.
const SETTLES_MAX: usize = 8;

#[derive(Debug)]
struct Job {
    slot: SlotIndex,
    /// As it was when the job began; nobody changes a suspect slot.
    page: Page,
    waiting: Vec<u64>,
    /// Checksums found by sector; `None` is unreadable.
    found: BTreeMap<u8, Option<u32>>,
    ios: u32,
}

/// What is to be settled and what is being.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    pub(super) suspects: BTreeSet<SlotKey>,
    lost: Option<Lost>,
    /// Settled ones with content that is not to be read: see `doubt.rs`.
    pub(super) doubted: BTreeSet<SlotKey>,
    jobs: BTreeMap<SlotKey, Job>,
    /// Requests whose slot waits for its turn.
    waiting: Vec<u64>,
    /// Where the background left off.
    cursor: Option<SlotKey>,
    /// Slots whose pages could not be read: left to whoever touches them.
    unreadable: BTreeSet<SlotIndex>,
}

impl Sweep {
    /// `lost`: what the log lacks of suspects.
    pub(super) fn new(suspects: BTreeSet<SlotKey>, lost: Lost) -> Self {
        Self {
            suspects,
            lost: Some(lost),
            ..Self::default()
        }
    }

    pub(super) fn idle(&self) -> bool {
        self.jobs.is_empty()
    }
}

impl<B: Buffer> Store<B> {
    /// Begins to settle a slot whose page is at hand, or joins who waits for it.
    pub(super) fn settle(
        &mut self,
        key: &SlotKey,
        slot: SlotIndex,
        waiter: Option<u64>,
        out: &mut Vec<StoreAction<B>>,
    ) {
        if let Some(job) = self.sweep.jobs.get_mut(key) {
            job.waiting.extend(waiter);
            return;
        }
        if self.sweep.jobs.len() >= SETTLES_MAX {
            self.sweep.waiting.extend(waiter);
            return;
        }
        let job = Job {
            slot,
            page: self.page(slot).clone(),
            waiting: waiter.into_iter().collect(),
            found: BTreeMap::new(),
            ios: 0,
        };
        self.sweep.jobs.insert(*key, job);
        self.read_data(Io::Settle { key: *key }, slot, 0, SLOT_READ_BYTES, out);
    }

    /// A suspect slot was read, or could not be.
    pub(super) fn slot_read(
        &mut self,
        key: SlotKey,
        read: Option<B>,
        out: &mut Vec<StoreAction<B>>,
    ) {
        let job = self
            .sweep
            .jobs
            .get_mut(&key)
            .expect("the slot is being settled");
        if let Some(data) = read.filter(|data| data.as_slice().len() == SLOT_BYTES) {
            job.found = (0..=u8::MAX)
                .zip(data.as_slice().chunks_exact(SECTOR_BYTES))
                .filter(|(sector, _)| job.page.state(*sector).flags & SectorState::ZERO == 0)
                .map(|(sector, content)| (sector, Some(crc32c(content))))
                .collect();
        }
        // What does not match is adopted, or bad from then on: not for one read that went wrong on its way.
        let differs = |sector: &u8| {
            let state = job.page.state(*sector);
            let found = job.found.get(sector).copied().flatten();
            state.flags & SectorState::ZERO == 0 && found != Some(state.crc)
        };
        let sectors: Vec<u8> = (0..=u8::MAX).filter(differs).collect();
        let slot = job.slot;
        job.ios = u32::try_from(sectors.len()).expect("at most 256");
        if sectors.is_empty() {
            self.slot_settled(key);
        }
        for sector in sectors {
            self.read_data(
                Io::SettleSector { key, sector },
                slot,
                sector,
                BLOCK_BYTES_U32,
                out,
            );
        }
    }

    pub(super) fn settle_sector_read(
        &mut self,
        key: SlotKey,
        sector: u8,
        read: Option<B>,
        _out: &mut Vec<StoreAction<B>>,
    ) {
        let job = self
            .sweep
            .jobs
            .get_mut(&key)
            .expect("the slot is being settled");
        job.ios -= 1;
        let content = read.filter(|data| data.as_slice().len() == SECTOR_BYTES);
        job.found
            .insert(sector, content.map(|data| crc32c(data.as_slice())));
        if job.ios == 0 {
            self.slot_settled(key);
        }
    }

    /// All that can be known of the slot is: decide, and log what changes.
    fn slot_settled(&mut self, key: SlotKey) {
        let job = self
            .sweep
            .jobs
            .remove(&key)
            .expect("the slot is being settled");
        self.ready.extend(self.sweep.waiting.drain(..));
        let owner = self.directory.entry(&key);
        if !matches!(owner, Some(Entry::Slot(slot, _)) if slot == job.slot)
            || !self.sweep.suspects.contains(&key)
        {
            // Released meanwhile.
            self.ready.extend(job.waiting);
            return;
        }
        let recovered = self.intents.recovered(key.volume, key.chunk).is_some();
        let lost = self.sweep.lost.filter(|_| recovered);
        let lost = lost.unwrap_or(Lost::Nothing);
        let mut changed: Vec<(u8, SectorState)> = Vec::new();
        let mut bad = 0;
        for (sector, content) in &job.found {
            let state = job.page.state(*sector);
            match decide(std::iter::once(state), *content, lost) {
                Verdict::Keep => {}
                Verdict::Revert(state) | Verdict::Adopt(state) => changed.push((*sector, state)),
                Verdict::Bad => {
                    bad += 1;
                    let flags = state.flags | SectorState::BAD;
                    changed.push((*sector, SectorState { flags, ..state }));
                }
            }
        }
        let mut page = job.page;
        for (sector, state) in &changed {
            page.set_state(*sector, state);
        }
        let settled = recovered.then(|| page.clone());
        if let (Some((first, _)), Some((last, _))) = (changed.first(), changed.last()) {
            // What is found here may be newer than any generation on record.
            let fence = self.directory.fence(key.volume).unwrap_or_default();
            let generation = page.generation().max(fence.generation);
            page.set_generation(generation);
            let states: Vec<SectorState> =
                (*first..=*last).map(|sector| page.state(sector)).collect();
            let count = u16::from(*last) - u16::from(*first) + 1;
            let record = Record::States {
                run: Run {
                    slot: job.slot,
                    first: *first,
                    count,
                },
                generation,
                states: Cow::Owned(states),
            };
            let mut need = Need {
                pages: 1,
                ..Need::default()
            };
            need.record(&record);
            if !self.poisoned && !self.has_room(&need) {
                // Once more after a checkpoint. Without anybody waiting, the background comes back.
                self.stalled.extend(job.waiting);
                return;
            }
            self.cache.insert(job.slot, Some(page));
            if !self.poisoned {
                self.log.append(&record);
                self.cache.mark_dirty(job.slot);
                let entry = Entry::Slot(job.slot, generation);
                self.directory.set(&key, entry);
                self.touched_chunk(&key, ukai_proto::Version::ZERO);
            }
            self.stats.bad_sectors += bad;
        }
        if let Some(page) = settled {
            self.doubt(&key, &page);
        }
        self.sweep.suspects.remove(&key);
        self.ready.extend(job.waiting);
    }

    /// One more suspect slot, in the background. `true` if there are more.
    pub(super) fn sweep_step(&mut self, out: &mut Vec<StoreAction<B>>) -> bool {
        if !self.sweep.jobs.is_empty() {
            return false;
        }
        let next = match self.sweep.cursor {
            Some(cursor) => {
                let after = (
                    std::ops::Bound::Excluded(cursor),
                    std::ops::Bound::Unbounded,
                );
                self.sweep.suspects.range(after).next().copied()
            }
            None => self.sweep.suspects.first().copied(),
        };
        let Some(key) = next else {
            self.sweep.cursor = None;
            return false;
        };
        let Some(Entry::Slot(slot, _)) = self.directory.entry(&key) else {
            self.sweep.suspects.remove(&key);
            return true;
        };
        if self.sweep.unreadable.contains(&slot) {
            self.sweep.cursor = Some(key);
        } else if self.page_ready(slot, None, out) {
            self.sweep.cursor = Some(key);
            self.settle(&key, slot, None, out);
        } else {
            // The end of the page's read is a turn of its own.
            return false;
        }
        true
    }

    /// Could the page of a slot not be read?
    pub(super) fn is_unreadable(&self, slot: SlotIndex) -> bool {
        self.sweep.unreadable.contains(&slot)
    }

    /// The page of a slot could not be read.
    pub(super) fn sweep_skips(&mut self, slot: SlotIndex) {
        self.sweep.unreadable.insert(slot);
    }
}
