//! Room in the log ring: nothing is admitted that could leave too little for a checkpoint, now or
//! after a crash.
//!
//! A checkpoint needs blocks for what it logs again (fences, tombstones, intents) and for the images of
//! dirty pages. A crash in the middle of one leaves its blocks in the ring and a recovery that must
//! write them once more. So twice that is always kept free. Frees and flushes need no more than other
//! requests, and wait like them for the checkpoint that makes room.

use super::log::BLOCK_ROOM;
use super::record::{PAGES_MAX, Record};
use super::store::Store;
use ukai_proto::Buffer;

/// Blocks beyond the reckoning: data writes that failed, blocks that records do not fill.
const MARGIN_BLOCKS: u64 = 8;
/// Logged-again records are at most this long, and so leave less than that unused in a block.
const RELOGGED_BYTES_MAX: u64 = 48;
/// Fewest cached pages: requests of a few slots at once must find room beside dirty ones.
const CACHE_PAGES_MIN: usize = 64;

/// Bounds that follow from the log size and the memory limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bounds {
    pub(super) cache_pages: usize,
    /// Dirty pages, of slots and holes, and pages in a checkpoint.
    pub(super) dirty_pages: usize,
    /// Each is logged again by every checkpoint: a 32nd of the log for each kind.
    pub(super) fences: usize,
    pub(super) intents: usize,
    pub(super) tombstones: usize,
}

impl Bounds {
    pub(super) fn new(log_blocks: u64, cache_pages: usize) -> Self {
        let cache_pages = cache_pages.max(CACHE_PAGES_MIN);
        let share = |max: usize| {
            let records = log_blocks / 32 * (BLOCK_ROOM as u64 / RELOGGED_BYTES_MAX);
            usize::try_from(records).unwrap_or(max).min(max)
        };
        // Images of all dirty pages must fit the log three times (see above), beside everything else.
        let dirty = usize::try_from(log_blocks / 6).expect("the log is bounded");
        Self {
            cache_pages,
            dirty_pages: (cache_pages / 4 * 3).min(dirty),
            fences: share(32 << 10),
            intents: share(64 << 10),
            tombstones: share(4 << 10),
        }
    }
}

/// What a request is about to add.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Need {
    /// Bytes of records, and the number of records.
    pub(super) bytes: usize,
    pub(super) records: usize,
    pub(super) longest: usize,
    /// Pages that become dirty.
    pub(super) pages: usize,
    /// Records that checkpoints will log again.
    pub(super) relogged: usize,
}

impl Need {
    pub(super) fn record(&mut self, record: &Record<'_>) {
        self.bytes += record.encoded_len();
        self.records += 1;
        self.longest = self.longest.max(record.encoded_len());
    }

    /// Blocks that it may take. A block is left when the next record does not fit: at least all but the
    /// longest's length of it is used, and it has at least one record.
    fn blocks(&self) -> u64 {
        let filled = BLOCK_ROOM + 1 - self.longest.min(BLOCK_ROOM);
        1 + self.bytes.div_ceil(filled).min(self.records) as u64
    }
}

/// Blocks for images of pages.
pub(super) fn page_blocks(pages: usize) -> u64 {
    pages as u64 + pages.div_ceil(PAGES_MAX) as u64
}

/// Blocks for records that are logged again.
pub(super) fn relog_blocks(records: usize) -> u64 {
    (records as u64 * RELOGGED_BYTES_MAX).div_ceil(BLOCK_ROOM as u64 - RELOGGED_BYTES_MAX) + 1
}

impl<B: Buffer> Store<B> {
    /// Pages that differ from the table or are being written.
    pub(super) fn dirty_pages(&self) -> usize {
        self.cache.pinned() + self.dirty_hole_pages.len() + self.checkpoint.hole_pages()
    }

    fn relogged(&self) -> usize {
        self.directory.fences() + self.intents.len() + self.space.tombstones.len()
    }

    /// Blocks of the ring in use, the pending ones included.
    pub(super) fn log_used(&self) -> u64 {
        self.log.next() - self.tail
    }

    /// Blocks that may still be used with `pages` more dirty pages and `relogged` more records to carry.
    pub(super) fn log_room(&self, pages: usize, relogged: usize) -> u64 {
        self.log_room_beside(pages, relogged, MARGIN_BLOCKS)
    }

    fn log_room_beside(&self, pages: usize, relogged: usize, margin: u64) -> u64 {
        let kept = 2
            * (page_blocks(self.dirty_pages() + pages) + relog_blocks(self.relogged() + relogged))
            + margin;
        (self.geometry.log_blocks - self.log_used()).saturating_sub(kept)
    }

    /// Is there room for what cannot wait for a checkpoint, because a checkpoint would wait for it?
    pub(super) fn has_margin(&self, need: &Need) -> bool {
        self.dirty_pages() + need.pages <= self.bounds.dirty_pages
            && self.log_room_beside(need.pages, need.relogged, 0) >= need.blocks()
    }

    /// Blocks in use, and those that a recovery after a crash at this moment writes.
    #[cfg(test)]
    pub(super) fn recovery_blocks(&self) -> (u64, u64) {
        let needed = page_blocks(self.dirty_pages()) + relog_blocks(self.relogged());
        (self.log_used(), needed)
    }

    /// Is there room? If not, the request is parked until a checkpoint has made some.
    pub(super) fn room(&mut self, need: &Need, waiter: u64) -> bool {
        let roomy = self.has_room(need);
        if !roomy {
            self.stalled.push(waiter);
        }
        roomy
    }

    pub(super) fn has_room(&self, need: &Need) -> bool {
        self.dirty_pages() + need.pages <= self.bounds.dirty_pages
            && self.log_room(need.pages, need.relogged) >= need.blocks()
    }

    /// Is it time for a checkpoint? Tombstones alone can wait for a quiet moment.
    pub(super) fn checkpoint_due(&self) -> bool {
        let tombstones = self.space.tombstones.len();
        !self.stalled.is_empty()
            || self.marker_stalled
            || self.log_used() >= self.geometry.log_blocks / 2
            || self.dirty_pages() > self.bounds.dirty_pages / 4 * 3
            || (tombstones > 0 && self.ops.len() == 0)
            || tombstones > self.bounds.tombstones / 2
    }
}
