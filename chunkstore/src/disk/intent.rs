//! Open intents: chunks that may have data on disk, or on other replicas, that the log does not know.

use super::commit::GroupId;
use super::control::unknown_version;
use std::collections::BTreeMap;
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, Seq, Token, Version, VolumeId};

/// One open chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Intent {
    /// Highest token that wrote since it was opened.
    pub(super) token: Token,
    /// The OPEN record is on its way to the disk, with this group.
    pub(super) opening: Option<GroupId>,
    /// Requests that wait for it.
    pub(super) waiting: Vec<u64>,
    /// Group of the last write.
    pub(super) last_group: GroupId,
    /// Tick of the last write.
    pub(super) last_tick: u64,
    /// Highest version written.
    pub(super) last_version: Version,
}

/// All open chunks; bounded because each is logged again by every checkpoint.
#[derive(Debug, Default)]
pub(super) struct Intents {
    map: BTreeMap<(VolumeId, ChunkIndex), Intent>,
    /// Those that a recovery found, with their token then: records may have been lost, and other
    /// replicas may have what they told.
    recovered: BTreeMap<(VolumeId, ChunkIndex), Token>,
    /// Where [`Intents::next_recovered`] left off.
    recovered_cursor: Option<(VolumeId, ChunkIndex)>,
    /// Where [`Intents::next_few`] left off.
    cursor: Option<(VolumeId, ChunkIndex)>,
}

impl Intents {
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn get(&self, volume: VolumeId, chunk: ChunkIndex) -> Option<&Intent> {
        self.map.get(&(volume, chunk))
    }

    pub(super) fn get_mut(&mut self, volume: VolumeId, chunk: ChunkIndex) -> Option<&mut Intent> {
        self.map.get_mut(&(volume, chunk))
    }

    pub(super) fn open(&mut self, volume: VolumeId, chunk: ChunkIndex) -> &mut Intent {
        self.map.entry((volume, chunk)).or_default()
    }

    pub(super) fn remove(&mut self, volume: VolumeId, chunk: ChunkIndex) {
        self.map.remove(&(volume, chunk));
        self.recovered.remove(&(volume, chunk));
    }

    /// The chunk was open at the last, clean stop.
    pub(super) fn reopen(&mut self, volume: VolumeId, chunk: ChunkIndex, token: Token) {
        let intent = self.open(volume, chunk);
        intent.token = token;
        intent.last_version = unknown_version(token);
    }

    /// A recovery found the chunk open.
    pub(super) fn recover(&mut self, volume: VolumeId, chunk: ChunkIndex, token: Token) {
        self.reopen(volume, chunk, token);
        self.recovered.insert((volume, chunk), token);
    }

    /// The token under which records may have been lost, if any may.
    pub(super) fn recovered(&self, volume: VolumeId, chunk: ChunkIndex) -> Option<Token> {
        self.recovered.get(&(volume, chunk)).copied()
    }

    /// What may have been lost of the chunk is on record now.
    pub(super) fn accounted(&mut self, volume: VolumeId, chunk: ChunkIndex) {
        self.recovered.remove(&(volume, chunk));
    }

    /// The next few chunks that a recovery found open, going round and round.
    pub(super) fn next_recovered(&mut self, count: usize) -> Vec<(VolumeId, ChunkIndex)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = self.recovered_cursor.map_or(Unbounded, Excluded);
        let few: Vec<_> = self
            .recovered
            .range((from, Unbounded))
            .map(|(at, _)| *at)
            .take(count)
            .collect();
        self.recovered_cursor = few.last().copied().filter(|_| few.len() == count);
        few
    }

    /// All of them.
    pub(super) fn all_recovered(&self) -> impl Iterator<Item = (VolumeId, ChunkIndex)> + '_ {
        self.recovered.keys().copied()
    }

    /// Those of a volume, from `start` on.
    pub(super) fn recovered_of(
        &self,
        volume: VolumeId,
        start: ChunkIndex,
    ) -> impl Iterator<Item = ChunkIndex> + '_ {
        self.recovered
            .range((volume, start)..=(volume, ChunkIndex(u32::MAX)))
            .map(|((_, chunk), _)| *chunk)
    }

    pub(super) fn remove_range(&mut self, volume: VolumeId, range: ChunkRange) {
        let end = u64::from(range.start.0) + u64::from(range.count);
        let stays = |(of, chunk): &(VolumeId, ChunkIndex)| {
            *of != volume || *chunk < range.start || u64::from(chunk.0) >= end
        };
        self.map.retain(|at, _| stays(at));
        self.recovered.retain(|at, _| stays(at));
    }

    /// What a recovery could not know of the intents of `token`: their last write was at most `seq`.
    pub(super) fn resumed(&mut self, volume: VolumeId, token: Token, seq: Seq) {
        let range = (volume, ChunkIndex(0))..=(volume, ChunkIndex(u32::MAX));
        for (_, intent) in self.map.range_mut(range) {
            if intent.last_version == unknown_version(token) {
                intent.last_version = Version::new(token, seq);
            }
        }
    }

    /// The next few open chunks, going round and round.
    pub(super) fn next_few(&mut self, count: usize) -> Vec<(VolumeId, ChunkIndex)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = self.cursor.map_or(Unbounded, Excluded);
        let few: Vec<_> = self
            .map
            .range((from, Unbounded))
            .map(|(at, _)| *at)
            .take(count)
            .collect();
        self.cursor = few.last().copied().filter(|_| few.len() == count);
        few
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (VolumeId, ChunkIndex, &Intent)> {
        self.map
            .iter()
            .map(|((volume, chunk), intent)| (*volume, *chunk, intent))
    }

    /// Open chunks of a volume from `start` on.
    pub(super) fn of(
        &self,
        volume: VolumeId,
        start: ChunkIndex,
    ) -> impl Iterator<Item = ChunkIndex> + '_ {
        self.map
            .range((volume, start)..=(volume, ChunkIndex(u32::MAX)))
            .map(|((_, chunk), _)| *chunk)
    }
}
