//! The pointer map of a volume: which nodes hold each chunk, in which state.
//!
//! A map is the head, a table of replica sets, and per shard of 64 Ki chunks either one set (kept in
//! the head) or sorted runs (a key of their own). So a fresh volume, or one that was moved as a
//! whole, is its head alone, whatever its size; and lookups are one index and one short binary
//! search, without allocation, because lanes make one for each guest I/O.
//!
//! Maps are values: a transition gives a new one, which shares the untouched shards.

use crate::record::{NodeHealth, Replica, ReplicaState, VolumeHead};
use crate::sets::{ReplicaList, SetIndex, SetTable};
use crate::shard::{SHARD_CHUNKS, Shard};
use crate::store::KvVersion;
use std::ops::Range;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, NodeId};

/// A volume's configuration: head, replica sets and runs, with the store versions it was loaded at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMap {
    /// Everything but the pointers. Changed by transitions only.
    pub head: VolumeHead,
    pub(crate) head_version: KvVersion,
    pub(crate) sets: SetTable,
    /// `sets` with the health in the head taken into account; same numbers.
    pub(crate) effective: Vec<ReplicaList>,
    pub(crate) shards: Vec<Shard>,
}

impl VolumeMap {
    /// Number of chunks; the last one may be partial.
    #[must_use]
    pub fn chunk_count(&self) -> u32 {
        chunk_count(self.head.size_bytes, self.head.chunk_bytes)
    }

    /// Sectors in a (whole) chunk.
    #[must_use]
    pub fn chunk_sectors(&self) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // at most 64 MiB / 4 KiB
        let sectors = (self.head.chunk_bytes / SECTOR_BYTES as u64) as u32;
        sectors
    }

    /// All chunks.
    #[must_use]
    pub fn all(&self) -> ChunkRange {
        ChunkRange {
            start: ChunkIndex(0),
            count: self.chunk_count(),
        }
    }

    /// Version of the head's key, which guards every change.
    #[must_use]
    pub fn head_version(&self) -> KvVersion {
        self.head_version
    }

    /// Number of the chunk's replica set. Panics on a chunk beyond the end of the volume.
    #[must_use]
    pub fn set_of(&self, chunk: ChunkIndex) -> SetIndex {
        assert!(
            chunk.0 < self.chunk_count(),
            "chunk {chunk} of {}",
            self.chunk_count()
        );
        #[allow(clippy::cast_possible_truncation)] // the low half is wanted
        let at = chunk.0 as u16;
        self.shards[(chunk.0 / SHARD_CHUNKS) as usize].set_of(at)
    }

    /// Replicas of a set, in effective states, sorted by node.
    #[must_use]
    pub fn set(&self, set: SetIndex) -> &[Replica] {
        &self.effective[usize::from(set.0)]
    }

    /// Replicas of a chunk, in effective states, sorted by node.
    #[must_use]
    pub fn replicas(&self, chunk: ChunkIndex) -> ReplicaList {
        self.effective[usize::from(self.set_of(chunk).0)]
    }

    /// Replicas of a chunk as stored: states before the nodes' health is taken into account.
    #[must_use]
    pub fn stored_replicas(&self, chunk: ChunkIndex) -> ReplicaList {
        *self.sets.get(self.set_of(chunk))
    }

    /// Nodes that have every acknowledged write of the chunk.
    pub fn in_sync(&self, chunk: ChunkIndex) -> impl Iterator<Item = NodeId> + use<> {
        self.replicas(chunk)
            .list()
            .filter(|r| r.state == ReplicaState::InSync)
            .map(|r| r.node)
    }

    /// Whether the node's replica of the chunk has every acknowledged write.
    #[must_use]
    pub fn is_in_sync(&self, chunk: ChunkIndex, node: NodeId) -> bool {
        self.replicas(chunk).on(node) == Some(ReplicaState::InSync)
    }

    /// What the node missed, if anything.
    #[must_use]
    pub fn health(&self, node: NodeId) -> Option<NodeHealth> {
        self.head
            .health
            .iter()
            .find(|(n, _)| *n == node)
            .map(|(_, health)| *health)
    }

    /// The whole volume as maximal runs of chunks with one set.
    pub fn runs(&self) -> impl Iterator<Item = (ChunkRange, SetIndex)> + '_ {
        self.runs_in(self.all())
    }

    /// A part of the volume as maximal runs of chunks with one set; chunks beyond the end are left
    /// out.
    pub fn runs_in(&self, range: ChunkRange) -> impl Iterator<Item = (ChunkRange, SetIndex)> + '_ {
        let end = self
            .chunk_count()
            .min(range.start.0.saturating_add(range.count));
        let wanted = range.start.0..end;
        let mut pieces = shard_pieces(wanted).flat_map(move |(shard, positions)| {
            let base = shard_base(shard);
            self.shards[shard]
                .runs(self.shard_len(shard))
                .filter_map(move |(run, set)| {
                    let start = run.start.max(positions.start);
                    let end = run.end.min(positions.end);
                    (start < end).then_some((base + start..base + end, set))
                })
        });
        // Neighbouring shards may continue one run.
        let mut held: Option<(Range<u32>, SetIndex)> = None;
        std::iter::from_fn(move || {
            for (run, set) in pieces.by_ref() {
                match &mut held {
                    Some((range, last)) if *last == set => range.end = run.end,
                    _ => {
                        if let Some(done) = held.replace((run, set)) {
                            return Some(done);
                        }
                    }
                }
            }
            held.take()
        })
        .map(|(run, set)| (chunk_range(run), set))
    }

    /// Chunks whose replica on `node` is in this effective state, as maximal ranges.
    #[must_use]
    pub fn ranges_of(&self, node: NodeId, state: ReplicaState) -> Vec<ChunkRange> {
        self.ranges_where(|set| self.effective[usize::from(set.0)].on(node) == Some(state))
    }

    /// Chunks whose replica on `node` is stored in this state, whatever the node's health: what
    /// [`crate::transition::promote`] and its kin look at.
    #[must_use]
    pub fn stored_ranges_of(&self, node: NodeId, state: ReplicaState) -> Vec<ChunkRange> {
        self.ranges_where(|set| self.sets.get(set).on(node) == Some(state))
    }

    fn ranges_where(&self, wanted: impl Fn(SetIndex) -> bool) -> Vec<ChunkRange> {
        let mut out: Vec<ChunkRange> = Vec::new();
        for (run, set) in self.runs() {
            if !wanted(set) {
                continue;
            }
            match out.last_mut() {
                Some(last) if last.start.0 + last.count == run.start.0 => last.count += run.count,
                _ => out.push(run),
            }
        }
        out
    }

    /// Nodes that hold a replica in any state, sorted.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self
            .sets
            .live()
            .flat_map(|set| self.sets.get(set).iter())
            .map(|replica| replica.node)
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// The numbers of all sets in use.
    pub fn sets_in_use(&self) -> impl Iterator<Item = SetIndex> + '_ {
        self.sets.live()
    }

    /// Whether both say the same about the volume, whatever the versions in the store.
    #[must_use]
    pub fn same_configuration(&self, other: &Self) -> bool {
        self.head == other.head
            && self.runs().count() == other.runs().count()
            && self
                .runs()
                .zip(other.runs())
                .all(|(a, b)| a.0 == b.0 && self.sets.get(a.1) == other.sets.get(b.1))
    }

    /// First run of chunks that have this set.
    pub(crate) fn first_run_of(&self, set: SetIndex) -> ChunkRange {
        self.runs()
            .find(|(_, s)| *s == set)
            .map(|(range, _)| range)
            .unwrap_or(chunk_range(0..0))
    }

    /// Chunks of one shard.
    pub(crate) fn shard_len(&self, shard: usize) -> u32 {
        shard_len(self.chunk_count(), shard)
    }

    /// Recomputes what depends on sets and health. Called at the end of each transition.
    pub(crate) fn refresh(&mut self) {
        self.effective = self
            .sets
            .sets()
            .iter()
            .map(|set| set.with_health(&self.head.health))
            .collect();
    }
}

impl ReplicaList {
    fn list(self) -> impl Iterator<Item = Replica> {
        (0..self.len()).map(move |at| self[at])
    }
}

/// Chunks of a volume of this size.
#[must_use]
pub fn chunk_count(size_bytes: u64, chunk_bytes: u64) -> u32 {
    #[allow(clippy::cast_possible_truncation)] // VOLUME_BYTES_MAX / CHUNK_BYTES_MIN fits u32
    let count = size_bytes.div_ceil(chunk_bytes) as u32;
    count
}

pub(crate) fn shard_count(chunk_count: u32) -> usize {
    chunk_count.div_ceil(SHARD_CHUNKS) as usize
}

pub(crate) fn shard_len(chunk_count: u32, shard: usize) -> u32 {
    (chunk_count - shard_base(shard)).min(SHARD_CHUNKS)
}

/// First chunk of a shard.
pub(crate) fn shard_base(shard: usize) -> u32 {
    #[allow(clippy::cast_possible_truncation)] // chunk numbers fit u32, so shard numbers fit u16
    let shard = shard as u32;
    shard * SHARD_CHUNKS
}

pub(crate) fn chunk_range(range: Range<u32>) -> ChunkRange {
    ChunkRange {
        start: ChunkIndex(range.start),
        count: range.end - range.start,
    }
}

/// Cuts a range of chunks at shard borders: (shard, positions in it).
pub(crate) fn shard_pieces(range: Range<u32>) -> impl Iterator<Item = (usize, Range<u32>)> {
    let first = range.start / SHARD_CHUNKS;
    let last = range.end.div_ceil(SHARD_CHUNKS);
    (first..last).map(move |shard| {
        let base = shard * SHARD_CHUNKS;
        let start = range.start.max(base) - base;
        let end = (range.end - base).min(SHARD_CHUNKS);
        (shard as usize, start..end)
    })
}
