//! Which shard of a node owns a chunk. Fronts and peers connect to that shard directly.

use crate::{ChunkIndex, ShardIndex, VolumeId};

/// Owner of (volume, chunk) on a node of `shard_count` shards.
///
/// Fibonacci hashing of the chunk number, offset by the volume: neighbouring chunks land on
/// different shards, so sequential load spreads too. Part of the disk format: never change it.
#[must_use]
pub fn shard_of(volume: VolumeId, chunk: ChunkIndex, shard_count: u16) -> ShardIndex {
    assert!(shard_count > 0, "a node has at least one shard");
    let mut low = [0u8; 8];
    low.copy_from_slice(&volume.0[8..]);
    let mixed = (u64::from_le_bytes(low) ^ u64::from(chunk.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    #[allow(clippy::cast_possible_truncation)] // below shard_count
    let shard = (((mixed >> 32) * u64::from(shard_count)) >> 32) as u16;
    ShardIndex(shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_neighbours_and_stays_in_range() {
        let mut counts = [0u32; 7];
        for chunk in 0..7_000 {
            counts[usize::from(shard_of(VolumeId([9; 16]), ChunkIndex(chunk), 7).0)] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }
}
