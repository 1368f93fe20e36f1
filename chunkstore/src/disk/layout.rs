//! Where things lie inside a shard region, as plain arithmetic.

use ukai_proto::limits::{SECTOR_BYTES, SLOT_BYTES, SLOT_SECTORS};
use ukai_proto::{NodeId, ShardIndex};

/// Unit of every position and of every log block and page.
pub const BLOCK_BYTES: usize = 4096;
/// [`BLOCK_BYTES`] for position arithmetic.
pub const BLOCK: u64 = BLOCK_BYTES as u64;
/// [`BLOCK_BYTES`] for lengths of device operations.
#[allow(clippy::cast_possible_truncation)] // 4096
pub(super) const BLOCK_BYTES_U32: u32 = BLOCK_BYTES as u32;
/// Sectors of a slot as sector numbers count them.
#[allow(clippy::cast_possible_truncation)] // asserted to be 256
pub(super) const SLOT_SECTORS_U16: u16 = SLOT_SECTORS as u16;
/// Bytes before the first shard region: two node superblocks, padding.
pub const NODE_HEAD_BYTES: u64 = 1 << 20;
/// Bytes before the log of a region: two shard superblocks, padding.
pub const SHARD_HEAD_BYTES: u64 = 64 << 10;
/// Holes there can be for each slot: a discard of a thin volume that is larger than the node leaves
/// one for each piece of it. 0.03 % of the space; RAM (about 100 bytes a hole) only for those in use.
pub const HOLES_PER_SLOT: u32 = 4;
/// Holes described by one page.
pub const HOLES_PER_PAGE: u32 = 56;
/// Fewest log blocks: below it one checkpoint's own blocks would not leave room for requests.
pub const LOG_BLOCKS_MIN: u64 = 64;
/// Most log blocks (64 MiB): bounds the time of a replay.
pub const LOG_BLOCKS_MAX: u64 = 16 << 10;
/// Most slots kept free for [`Geometry::reserve_slots`].
const RESERVE_SLOTS_MAX: u32 = 64;
/// Most slots of a shard (64 TiB): keeps slot numbers and page numbers inside `u32` together.
pub const SLOTS_MAX: u64 = 1 << 26;

const _: () = assert!(SECTOR_BYTES == BLOCK_BYTES);
const _: () = assert!(SLOT_SECTORS == 256);

/// Where a shard lies on the node's file or device, and whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardPlace {
    /// The node; part of every structure on disk, so that leftovers of another format never pass.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardIndex,
    /// First byte of the region.
    pub start: u64,
    /// Size of the region.
    pub bytes: u64,
}

/// A slot of a shard: 1 MiB of data with one page of sector states.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SlotIndex(pub u32);

impl SlotIndex {
    /// Its page.
    #[must_use]
    pub fn page(self) -> PageIndex {
        PageIndex(self.0)
    }
}

/// A page of the page table: first one per slot, then those that describe holes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PageIndex(pub u32);

/// The geometry of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// First byte of the region.
    pub start: u64,
    /// Blocks of the log ring.
    pub log_blocks: u64,
    /// Slots.
    pub slots: u32,
    /// Pages that describe holes.
    pub hole_pages: u32,
}

impl Geometry {
    /// Fits as many slots as possible into `bytes` at `start`; `None` if not even one fits.
    #[must_use]
    pub fn fit(start: u64, bytes: u64, log_blocks: u64) -> Option<Self> {
        let room = bytes.checked_sub(
            log_blocks
                .checked_mul(BLOCK)?
                .checked_add(SHARD_HEAD_BYTES)?,
        )?;
        // Generous first guess, then give slots up until the pages fit too (a handful of rounds).
        let mut slots = (room / (SLOT_BYTES as u64 + BLOCK)).min(SLOTS_MAX);
        loop {
            if slots == 0 {
                return None;
            }
            let hole_pages =
                (slots * u64::from(HOLES_PER_SLOT)).div_ceil(u64::from(HOLES_PER_PAGE));
            let need = slots * (SLOT_BYTES as u64 + BLOCK) + hole_pages * BLOCK;
            if need <= room {
                return Some(Self {
                    start,
                    log_blocks,
                    slots: u32::try_from(slots).ok()?,
                    hole_pages: u32::try_from(hole_pages).ok()?,
                });
            }
            slots -= (need - room)
                .div_ceil(SLOT_BYTES as u64 + 2 * BLOCK)
                .min(slots);
        }
    }

    /// Log blocks for a region that does not say otherwise: a 64th of it, 1 to 64 MiB.
    #[must_use]
    pub fn default_log_blocks(region_bytes: u64) -> u64 {
        (region_bytes / 64 / BLOCK).clamp(256, LOG_BLOCKS_MAX)
    }

    /// Does this geometry lie inside `bytes`?
    #[must_use]
    pub fn fits(&self, bytes: u64) -> bool {
        (LOG_BLOCKS_MIN..=LOG_BLOCKS_MAX).contains(&self.log_blocks)
            && u64::from(self.slots) <= SLOTS_MAX
            && self.slots > 0
            && self.hole_pages == self.holes().div_ceil(HOLES_PER_PAGE)
            && self.slot_position(SlotIndex(self.slots)) - self.start <= bytes
    }

    /// Position of a log block by its number.
    #[must_use]
    pub fn log_position(&self, block: u64) -> u64 {
        self.start + SHARD_HEAD_BYTES + block % self.log_blocks * BLOCK
    }

    /// Pages in the table.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.slots + self.hole_pages
    }

    /// Position of a page.
    #[must_use]
    pub fn page_position(&self, page: PageIndex) -> u64 {
        self.start + SHARD_HEAD_BYTES + (self.log_blocks + u64::from(page.0)) * BLOCK
    }

    /// Position of a slot's data.
    #[must_use]
    pub fn slot_position(&self, slot: SlotIndex) -> u64 {
        self.page_position(PageIndex(self.pages())) + u64::from(slot.0) * SLOT_BYTES as u64
    }

    /// Slots that guests' writes and copies leave free. When a node is full, writes in flight are on other replicas
    /// already: their chunks can be made equal only if this one takes them. As many as a volume's requests in flight
    /// are likely to touch; a 16th of a small node. (Ceph keeps such a rest too: its "full" and "failsafe full" ratios.)
    #[must_use]
    pub fn reserve_slots(&self) -> usize {
        (self.slots / 16).min(RESERVE_SLOTS_MAX) as usize
    }

    /// Holes there can be.
    #[must_use]
    pub fn holes(&self) -> u32 {
        self.slots * HOLES_PER_SLOT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_and_wastes_less_than_a_few_slots() {
        for bytes in [3u64 << 20, 10 << 20, 123_456 << 12, 1 << 30, 1 << 40] {
            let geometry = Geometry::fit(1 << 20, bytes, 256).expect("fits");
            assert!(geometry.fits(bytes), "{geometry:?}");
            let end = geometry.slot_position(SlotIndex(geometry.slots)) - geometry.start;
            assert!(bytes - end < 3 << 20, "{bytes}: {geometry:?}");
        }
        assert_eq!(Geometry::fit(0, 2 << 20, 256), None);
        assert_eq!(Geometry::fit(0, 100, 256), None);
    }
}
