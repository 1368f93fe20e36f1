//! Adopted content that is not to be read.
//!
//! After the death of a process its recovery cannot tell a sector whose record was lost from rot: both
//! match nothing. If a new front attaches, it makes replicas equal before it reads, and a whole one wins. But
//! a front that lives on has nothing to reconcile: it sends again what was not answered, so that in the end
//! nothing of its own is left adopted. What is may be rot, and is *doubted*: READ and copies take it for
//! bad, and another replica serves it and repairs it. That ends with the sector's next write, with its repair,
//! or with a FENCE of a higher token, whose front reconciles the chunk (`docs/protocol.md`, "Adopted
//! sectors"). Until then the chunk's intent stays open and recovered, so that the next recovery doubts too.

use super::api::StoreAction;
use super::directory::Entry;
use super::hole::SlotKey;
use super::page::Page;
use super::store::Store;
use ukai_proto::message::SectorState;
use ukai_proto::{Buffer, ChunkIndex, VolumeId};

fn is_adopted(state: &SectorState) -> bool {
    state.flags & (SectorState::ADOPTED | SectorState::BAD) == SectorState::ADOPTED
}

impl<B: Buffer> Store<B> {
    /// A slot was settled: is something in it to be doubted?
    pub(super) fn doubt(&mut self, key: &SlotKey, page: &Page) {
        // Without a fence there is no front that could live on.
        let held = self.directory.volumes.get(&key.volume);
        let refenced = held.is_none_or(|held| held.refenced || held.fence.is_none());
        if !refenced && (0..=u8::MAX).any(|sector| is_adopted(&page.state(sector))) {
            self.sweep.doubted.insert(*key);
        }
    }

    /// A higher token was fenced: its front reconciles what is open before it reads it.
    pub(super) fn refenced(&mut self, volume: VolumeId) {
        self.directory.volumes.entry(volume).or_default().refenced = true;
        self.sweep.doubted.retain(|key| key.volume != volume);
    }

    /// Is a sector in this state, of this piece, not to be read?
    pub(super) fn is_doubted(&self, key: &SlotKey, state: &SectorState) -> bool {
        is_adopted(state) && self.sweep.doubted.contains(key)
    }

    /// States as others are told them.
    pub(super) fn told(&self, key: &SlotKey, mut states: Vec<SectorState>) -> Vec<SectorState> {
        for state in &mut states {
            if self.is_doubted(key, state) {
                state.flags |= SectorState::BAD | SectorState::DOUBTED;
            }
        }
        states
    }

    pub(super) fn is_chunk_doubted(&self, volume: VolumeId, chunk: ChunkIndex) -> bool {
        let piece = |index| SlotKey {
            volume,
            chunk,
            index,
        };
        let mut doubted = self.sweep.doubted.range(piece(0)..=piece(u8::MAX));
        doubted.next().is_some()
    }

    /// Forgets pieces of which nothing is adopted any more.
    pub(super) fn review_doubts(&mut self, out: &mut Vec<StoreAction<B>>) {
        // Few: sectors that were being written when a process died, or are rot.
        for key in self.sweep.doubted.clone() {
            if let Some(Entry::Slot(slot, _)) = self.directory.entry(&key) {
                if self.is_unreadable(slot) || !self.page_ready(slot, None, out) {
                    continue;
                }
                let page = self.page(slot);
                if (0..=u8::MAX).any(|sector| is_adopted(&page.state(sector))) {
                    continue;
                }
            }
            self.sweep.doubted.remove(&key);
        }
    }
}
