//! Checkpoints: the log's news into the page table, so that the log can be reused.
//!
//! In order: what must be carried on is logged again, with images of all dirty pages; a flush; the pages
//! in place; a flush; a superblock with the new tail. Requests go on meanwhile. An image contains every
//! record of blocks before the checkpoint's own, and none of later ones. A page found in place therefore
//! proves that everything up to its position in the log was flushed.

use super::api::{DiskOp, StoreAction, WriteData};
use super::commit::GroupId;
use super::hole;
use super::layout::{BLOCK, BLOCK_BYTES, PageIndex, SlotIndex};
use super::log::LogBuffer;
use super::op::{Io, Waiter};
use super::page;
use super::record::Record;
use super::room::page_blocks;
use super::store::Store;
use super::superblock::ShardSuperblock;
use std::collections::VecDeque;
use ukai_proto::message::ChunkRange;
use ukai_proto::{BootId, Buffer};

/// Page writes under way at once, so that requests find the device free.
const WRITES_MAX: u32 = 16;
/// Bytes of one page write or log write.
const WRITE_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Phase {
    #[default]
    Idle,
    /// Waiting for the flush of its blocks.
    Logging,
    /// Writing pages.
    InPlace,
    /// Waiting for the sync with this number.
    Syncing(u64),
    /// Writing the superblock, which tells that this group was flushed.
    Superblock(GroupId),
}

/// The checkpoint under way.
#[derive(Debug, Default)]
pub(super) struct Checkpoint {
    phase: Phase,
    /// First block of its own: the new tail.
    start: u64,
    images: VecDeque<(PageIndex, Vec<u8>)>,
    ios: u32,
    hole_pages: usize,
    /// This many tombstones are done with when it is complete.
    tombstones: usize,
    /// The last one before a clean stop.
    last: bool,
}

impl Checkpoint {
    pub(super) fn running(&self) -> bool {
        self.phase != Phase::Idle
    }

    pub(super) fn hole_pages(&self) -> usize {
        self.hole_pages
    }

    pub(super) fn superblock_under_way(&self) -> bool {
        matches!(self.phase, Phase::Superblock(_))
    }
}

impl<B: Buffer> Store<B> {
    /// Sends the pending group to the log.
    pub(super) fn seal(&mut self, out: &mut Vec<StoreAction<B>>) {
        if self.log.is_empty() {
            return;
        }
        let next = self.log.next();
        assert!(
            next - self.tail <= self.geometry.log_blocks,
            "log blocks {} to {next} overrun a ring of {}",
            self.tail,
            self.geometry.log_blocks
        );
        let log = std::mem::replace(&mut self.log, LogBuffer::new(next));
        let (mut bytes, last) = log.seal(&self.place, self.epoch, self.commit.marks());
        self.stats.log_bytes += bytes.len() as u64;
        let mut number = last + 1 - (bytes.len() / BLOCK_BYTES) as u64;
        let mut pieces = Vec::with_capacity(1);
        while !bytes.is_empty() {
            let to_wrap = (self.geometry.log_blocks - number % self.geometry.log_blocks) * BLOCK;
            let piece = WRITE_BYTES_MAX.min(usize::try_from(to_wrap).unwrap_or(WRITE_BYTES_MAX));
            let rest = if bytes.len() > piece {
                bytes.split_off(piece)
            } else {
                Vec::new()
            };
            let blocks = (bytes.len() / BLOCK_BYTES) as u64;
            pieces.push((self.geometry.log_position(number), bytes));
            number += blocks;
            bytes = rest;
        }
        let ios = u32::try_from(pieces.len()).expect("few pieces");
        let (group, dsync) = self.commit.seal(last, ios);
        for (position, bytes) in pieces {
            let io = self.io(Io::Log { group });
            let data = WriteData::Owned(bytes);
            out.push(StoreAction::Disk(DiskOp::Write {
                io,
                position,
                data,
                dsync,
            }));
        }
    }

    /// Starts a checkpoint if it is time for one. The pending group has been sealed.
    pub(super) fn maybe_checkpoint(&mut self, out: &mut Vec<StoreAction<B>>) {
        if self.checkpoint.running() || self.closed {
            return;
        }
        let last = self.closing
            && self.ops.len() == 0
            && self.sweep.idle()
            && self.reading.is_empty()
            && self.log.is_empty();
        if last {
            // Everything flushed first: intents that may close then need not be carried on.
            let target = self.commit.pending() - 1;
            if self.commit.flushed < target {
                self.commit.request(target);
                return;
            }
        } else if !self.checkpoint_due() {
            return;
        }
        assert!(
            self.log.is_empty(),
            "images contain exactly the records of sealed blocks"
        );
        self.checkpoint.last = last;
        self.checkpoint.start = self.log.next();
        if last {
            self.close_intents_silently();
        }
        let room = self.log_room(0, 0);
        self.log_again();
        let images = self.images(room);
        self.log.append_pages(self.checkpoint.start - 1, &images);
        let group = self.commit.pending();
        self.commit.request(group);
        self.on_flushed.push_back((group, Waiter::Checkpoint));
        self.checkpoint.images = images.into();
        self.checkpoint.phase = Phase::Logging;
        self.seal(out);
    }

    /// An intent that is not logged again is closed when the tail passes it.
    fn close_intents_silently(&mut self) {
        loop {
            let before = self.log.next();
            if self.close_intents() == 0 {
                break;
            }
            assert!(self.log.next() >= before, "blocks only grow");
        }
    }

    /// Fences, tombstones and intents, in blocks that the new tail keeps.
    fn log_again(&mut self) {
        for (id, volume) in &self.directory.volumes {
            if let Some(fence) = volume.fence {
                let super::api::Fence { token, generation } = fence;
                self.log.append(&Record::Fence {
                    volume: *id,
                    token,
                    generation,
                });
            }
        }
        for tombstone in &self.space.tombstones {
            let super::space::Tombstone {
                volume,
                range,
                generation,
                origin,
            } = *tombstone;
            let range = ChunkRange {
                start: range.start,
                count: range.count,
            };
            self.log.append(&Record::Tombstone {
                volume,
                range,
                generation,
                origin,
            });
        }
        let open: Vec<_> = self
            .intents
            .iter()
            .map(|(volume, chunk, intent)| (volume, chunk, intent.token))
            .collect();
        for (volume, chunk, token) in open {
            let suspect = self.intents.recovered(volume, chunk).is_some();
            self.log.append(&Record::Open {
                volume,
                chunk,
                token,
                suspect,
            });
        }
        // Something, so that the checkpoint has a block even on an empty shard.
        self.log.touch();
    }

    /// Images of all dirty pages, and of some that tombstones left behind.
    fn images(&mut self, room: u64) -> Vec<(PageIndex, Vec<u8>)> {
        let lsn = self.checkpoint.start - 1;
        let (place, geometry) = (self.place, self.geometry);
        let mut spare = self.bounds.dirty_pages.saturating_sub(self.dirty_pages());
        // A third of what is left: the images themselves, and twice for a crash in the middle.
        while spare > 0 && page_blocks(spare) > room / 3 {
            spare /= 2;
        }
        let mut images: Vec<(PageIndex, Vec<u8>)> = Vec::new();
        for (slot, page) in self.cache.take_dirty() {
            self.space.stale_slots.remove(&slot);
            let image = match page {
                Some(page) => page.image(&place, slot.page(), lsn),
                None => page::free_image(&place, slot.page(), lsn),
            };
            images.push((slot.page(), image));
        }
        let mut pages = std::mem::take(&mut self.dirty_hole_pages);
        for page in &pages {
            self.space.stale_hole_pages.remove(page);
        }
        while spare > 0
            && let Some(page) = self.space.stale_hole_pages.pop_first()
        {
            spare -= 1;
            pages.insert(page);
        }
        while spare > 0
            && let Some(slot) = self.pop_stale_slot()
        {
            spare -= 1;
            images.push((slot.page(), page::free_image(&place, slot.page(), lsn)));
        }
        for page in &pages {
            let number = page.0 - geometry.slots;
            let image = hole::encode_page(&place, *page, lsn, self.directory.hole_page(number));
            images.push((*page, image));
        }
        images.sort_unstable_by_key(|(page, _)| *page);
        let done = self.space.stale_slots.is_empty() && self.space.stale_hole_pages.is_empty();
        self.checkpoint.tombstones = if done { self.space.tombstones.len() } else { 0 };
        self.checkpoint.hole_pages = pages.len();
        images
    }

    /// A slot whose page names an owner that is gone. One that has a new owner is dirty, and its image
    /// was made, or will be by the next checkpoint.
    fn pop_stale_slot(&mut self) -> Option<SlotIndex> {
        let slot = self.space.stale_slots.pop_first()?;
        assert!(
            !self.cache.contains_page(slot),
            "{slot:?} has an owner and a stale page"
        );
        Some(slot)
    }

    /// The checkpoint's blocks are flushed.
    pub(super) fn checkpoint_logged(&mut self, out: &mut Vec<StoreAction<B>>) {
        assert_eq!(
            self.checkpoint.phase,
            Phase::Logging,
            "one checkpoint at a time"
        );
        self.checkpoint.phase = Phase::InPlace;
        self.write_pages(out);
    }

    fn write_pages(&mut self, out: &mut Vec<StoreAction<B>>) {
        while self.checkpoint.ios < WRITES_MAX
            && let Some((first, mut bytes)) = self.checkpoint.images.pop_front()
        {
            let mut next = first.0 + 1;
            while bytes.len() < WRITE_BYTES_MAX
                && let Some((page, _)) = self.checkpoint.images.front()
                && page.0 == next
            {
                let (_, image) = self.checkpoint.images.pop_front().expect("looked at");
                bytes.extend_from_slice(&image);
                next += 1;
            }
            self.checkpoint.ios += 1;
            let io = self.io(Io::InPlace);
            let position = self.geometry.page_position(first);
            let data = WriteData::Owned(bytes);
            out.push(StoreAction::Disk(DiskOp::Write {
                io,
                position,
                data,
                dsync: false,
            }));
        }
        if self.checkpoint.ios == 0 {
            self.checkpoint.phase = Phase::Syncing(self.commit.request_next());
        }
    }

    pub(super) fn page_written(&mut self, out: &mut Vec<StoreAction<B>>) {
        self.checkpoint.ios -= 1;
        if !self.poisoned {
            self.write_pages(out);
        }
    }

    /// The pages are in place and durable: the superblock is next.
    pub(super) fn checkpoint_progress(&mut self, out: &mut Vec<StoreAction<B>>) {
        let Phase::Syncing(number) = self.checkpoint.phase else {
            return;
        };
        if self.commit.syncs_ended < number {
            return;
        }
        self.checkpoint.phase = Phase::Superblock(self.commit.flushed);
        let (tail, boot, clean) = (self.checkpoint.start, self.boot, self.checkpoint.last);
        self.write_superblock(Io::Superblock, tail, boot, clean, out);
    }

    fn write_superblock(
        &mut self,
        io: Io,
        tail: u64,
        boot: BootId,
        clean: bool,
        out: &mut Vec<StoreAction<B>>,
    ) {
        self.superblock_sequence += 1;
        let superblock = ShardSuperblock {
            sequence: self.superblock_sequence,
            log_blocks: self.geometry.log_blocks,
            tail,
            epoch: self.epoch,
            epoch_used: self.epoch,
            flushed: self.commit.flushed_block,
            boot,
            clean,
        };
        let io = self.io(io);
        let position = superblock.position(&self.place);
        let data = WriteData::Owned(superblock.encode(&self.place));
        out.push(StoreAction::Disk(DiskOp::Write {
            io,
            position,
            data,
            dsync: true,
        }));
    }

    /// The superblock was not written, or the shard was poisoned meanwhile, so that its tail stays.
    pub(super) fn superblock_failed(&mut self, failed: bool) {
        self.checkpoint.phase = Phase::Idle;
        // A copy that is neither old nor new any more is the one to write next.
        self.superblock_sequence += u64::from(failed);
    }

    /// After a failed flush or log write, what was *written* is not known to be there, even on the same
    /// boot of the machine. The superblock says so, by naming none: the next recovery then trusts only
    /// what was flushed, as after a power cut.
    pub(super) fn disown(&mut self, out: &mut Vec<StoreAction<B>>) {
        if !self.disowning {
            return;
        }
        self.write_superblock(Io::Disown, self.tail, BootId::NIL, false, out);
    }

    pub(super) fn superblock_written(&mut self, _out: &mut Vec<StoreAction<B>>) {
        let Phase::Superblock(flushed) = self.checkpoint.phase else {
            panic!("only checkpoints write superblocks");
        };
        let done = std::mem::take(&mut self.checkpoint);
        self.tail = done.start;
        self.cache.checkpointed();
        self.commit.marker_written(flushed);
        self.space.tombstones.drain(..done.tombstones);
        self.stats.checkpoints += 1;
        self.ready.extend(self.stalled.drain(..));
        self.marker_stalled = false;
        if done.last {
            assert!(
                self.commit.idle() && self.log.is_empty(),
                "a clean stop leaves nothing behind"
            );
            self.closed = true;
        }
    }
}
