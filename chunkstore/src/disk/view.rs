//! What the store knows without asking the device.

use super::api::{Fence, StoreView};
use super::store::Store;
use std::collections::BTreeSet;
use ukai_proto::message::InventoryEntry;
use ukai_proto::{ChunkIndex, Generation, Seq, Token, Version, VolumeId};

impl<B> StoreView for Store<B> {
    fn fence(&self, volume: VolumeId) -> Option<Fence> {
        self.directory.fence(volume)
    }

    fn open_intents(
        &self,
        volume: VolumeId,
        start: ChunkIndex,
        limit: usize,
    ) -> (Vec<ChunkIndex>, bool) {
        page_of(self.intents.of(volume, start), limit)
    }

    fn written_since(
        &self,
        volume: VolumeId,
        since: Generation,
        start: ChunkIndex,
        limit: usize,
    ) -> (Vec<ChunkIndex>, bool) {
        let Some(held) = self.directory.volumes.get(&volume) else {
            return (Vec::new(), false);
        };
        let mut last = None;
        let written = held
            .entries
            .range((start, 0)..)
            .filter(|(_, entry)| self.directory.generation(**entry) >= since)
            .map(|((chunk, _), _)| *chunk)
            .filter(move |chunk| last.replace(*chunk) != Some(*chunk));
        // Of chunks that a recovery found open, records of any generation may have been lost.
        let lost = self.intents.recovered_of(volume, start);
        let (some, all) = (limit.saturating_add(1), limit);
        let chunks: BTreeSet<ChunkIndex> = written.take(some).chain(lost.take(some)).collect();
        page_of(chunks.into_iter(), all)
    }

    fn inventory(&self, after: VolumeId, limit: usize) -> (Vec<InventoryEntry>, bool) {
        let range = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        let entries = self
            .directory
            .volumes
            .range(range)
            .filter(|(_, held)| held.fence.is_some() || !held.entries.is_empty())
            .map(|(volume, held)| InventoryEntry {
                volume: *volume,
                slots: held.slots,
                token: held.fence.unwrap_or_default().token,
            });
        page_of(entries, limit)
    }

    fn settled(&mut self, volume: VolumeId, token: Token, seq: Seq) {
        let Some(held) = self.directory.volumes.get_mut(&volume) else {
            return;
        };
        held.settled = held.settled.max(Version { token, seq });
        self.intent_room_moved = true;
        self.comes_to_rest(volume);
    }

    fn settled_up_to(&self, volume: VolumeId) -> Version {
        let held = self.directory.volumes.get(&volume);
        held.map_or(Version::ZERO, |held| held.settled)
    }

    fn resumed(&mut self, volume: VolumeId, token: Token, seq: Seq) {
        self.intents.resumed(volume, token, seq);
    }

    fn slots(&self) -> (u64, u64) {
        let used = self.directory.volumes.values().map(|held| held.slots).sum();
        (used, self.geometry.slots.into())
    }
}

fn page_of<T>(mut items: impl Iterator<Item = T>, limit: usize) -> (Vec<T>, bool) {
    let page: Vec<T> = items.by_ref().take(limit).collect();
    let more = items.next().is_some();
    (page, more)
}
