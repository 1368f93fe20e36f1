//! A guest range as pieces: each inside one slot of one chunk, so that a node maps it to one I/O.

use ukai_proto::limits::SLOT_SECTORS;
use ukai_proto::{ChunkIndex, SectorInChunk};

/// Part of a guest range inside one slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    /// Chunk.
    pub(super) chunk: ChunkIndex,
    /// First sector inside the chunk.
    pub(super) sector: SectorInChunk,
    /// 1..=256.
    pub(super) count: u16,
    /// Sectors of the guest range before this part.
    pub(super) skipped: u64,
}

/// The part of `[sector, sector + count)` that starts `skipped` sectors in. `None` at its end.
#[must_use]
pub(super) fn part_at(sector: u64, count: u64, skipped: u64, chunk_sectors: u32) -> Option<Part> {
    if skipped >= count {
        return None;
    }
    let at = sector + skipped;
    let chunk = at / u64::from(chunk_sectors);
    let inside = at % u64::from(chunk_sectors);
    let to_slot_end = SLOT_SECTORS as u64 - inside % SLOT_SECTORS as u64;
    let n = to_slot_end.min(count - skipped);
    #[allow(clippy::cast_possible_truncation)] // volume and chunk limits: u32 chunks, u16 sectors
    Some(Part {
        chunk: ChunkIndex(chunk as u32),
        sector: SectorInChunk(inside as u16),
        count: n as u16,
        skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_cover_the_range_sector_by_sector(
            sector in 0u64..100_000, count in 1u64..3_000, shift in 0u32..6,
        ) {
            let chunk_sectors = 256u32 << shift;
            let mut covered = Vec::new();
            let mut skipped = 0;
            while let Some(part) = part_at(sector, count, skipped, chunk_sectors) {
                prop_assert!(part.count >= 1 && part.count <= 256);
                let (first, last) = (part.sector.0, part.sector.0 + part.count - 1);
                prop_assert_eq!(first / 256, last / 256, "crosses a slot");
                for i in 0..u64::from(part.count) {
                    covered.push(u64::from(part.chunk.0) * u64::from(chunk_sectors) + u64::from(first) + i);
                }
                skipped += u64::from(part.count);
            }
            prop_assert_eq!(covered, (sector..sector + count).collect::<Vec<_>>());
        }
    }
}
