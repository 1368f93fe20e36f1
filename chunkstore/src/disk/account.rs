//! What a crash may have lost of a chunk, on record: so that a replica which was away is compared.
//!
//! Records of writes that were not flushed may be lost here while another replica has the writes, or the
//! other way round. The attach after the crash makes the replicas equal that it can reach. One that is
//! away then has, perhaps, something else, and no generation on record tells so: the records that would
//! have are those that were lost. So a chunk that a recovery found open is named by WRITTEN_SINCE
//! whatever is asked, and before its intent closes, everything in it is put under the generation that
//! the attach has recorded, which is above any since which a replica can be stale.

use super::api::StoreAction;
use super::directory::Entry;
use super::hole::{Hole, SlotKey};
use super::layout::SlotIndex;
use super::record::{Record, Run};
use super::room::Need;
use super::store::Store;
use std::borrow::Cow;
use ukai_proto::limits::SLOT_SECTORS;
use ukai_proto::message::SectorState;
use ukai_proto::{Buffer, ChunkIndex, Generation, VolumeId};

/// Chunks looked at in a turn, when requests are in flight and when none is or some wait for this.
const LOOKS_MAX: usize = 2;
const IDLE_LOOKS_MAX: usize = 32;

/// How far a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Account {
    Done,
    /// A page is being read, or the log must have room first.
    Later,
}

impl<B: Buffer> Store<B> {
    /// Some more chunks, in the background.
    pub(super) fn account_recovered(&mut self, out: &mut Vec<StoreAction<B>>) {
        self.review_doubts(out);
        let urgent = self.ops.len() == 0 || !self.wait_intent_room.is_empty();
        let looks = if urgent { IDLE_LOOKS_MAX } else { LOOKS_MAX };
        for (volume, chunk) in self.intents.next_recovered(looks) {
            if self.accountable_chunk(volume, chunk)
                && self.account(volume, chunk, out) == Account::Done
            {
                self.intents.accounted(volume, chunk);
                self.intent_room_moved = true;
                self.comes_to_rest(volume);
            }
        }
    }

    /// Will the background make a recovered intent closable?
    pub(super) fn accountable(&self) -> bool {
        self.intents
            .all_recovered()
            .any(|(volume, chunk)| self.accountable_chunk(volume, chunk))
    }

    /// Everything of the chunk is settled, here and among the replicas.
    fn accountable_chunk(&self, volume: VolumeId, chunk: ChunkIndex) -> bool {
        let settled = self.directory.volumes.get(&volume).map(|held| held.settled);
        let intent = self.intents.get(volume, chunk);
        let known = intent
            .zip(settled)
            .is_some_and(|(intent, settled)| intent.last_version <= settled);
        known
            && !self.is_chunk_doubted(volume, chunk)
            && !self.chunk_suspect(volume, chunk)
            && self.directory.pieces(volume, chunk).all(
                |(_, entry)| !matches!(entry, Entry::Slot(slot, _) if self.is_unreadable(slot)),
            )
    }

    /// Puts everything in the chunk under the volume's generation.
    fn account(
        &mut self,
        volume: VolumeId,
        chunk: ChunkIndex,
        out: &mut Vec<StoreAction<B>>,
    ) -> Account {
        let generation = self.directory.fence(volume).unwrap_or_default().generation;
        let pieces: Vec<(SlotKey, Entry)> = self.directory.pieces(volume, chunk).collect();
        let mut account = Account::Done;
        if pieces.is_empty() {
            // Zeros that were never written keep the generation. If there is no hole to spare for that
            // nothing does: holes are for discards first.
            let piece = SlotKey {
                volume,
                chunk,
                index: 0,
            };
            let never = std::iter::repeat_n(SectorState::UNWRITTEN, SLOT_SECTORS);
            let hole = Hole::from_states(never, generation).expect("one run");
            if let Some(index) = self.spare_hole()
                && !self.log_hole(&piece, index, hole)
            {
                account = Account::Later;
            }
        }
        for (piece, entry) in pieces {
            if self.directory.generation(entry) >= generation {
                continue;
            }
            let done = match entry {
                Entry::Hole(index) => {
                    let mut hole = self.directory.holes[&index].hole;
                    hole.generation = generation;
                    self.log_hole(&piece, index, hole)
                }
                Entry::Slot(slot, _) => {
                    self.page_ready(slot, None, out)
                        && self.log_generation(&piece, slot, generation)
                }
            };
            if !done {
                account = Account::Later;
            }
        }
        account
    }

    fn log_generation(&mut self, piece: &SlotKey, slot: SlotIndex, generation: Generation) -> bool {
        // One sector, as it is: what counts is the record's generation.
        let state = self.page(slot).state(0);
        let record = Record::States {
            run: Run {
                slot,
                first: 0,
                count: 1,
            },
            generation,
            states: Cow::Owned(vec![state]),
        };
        let mut need = Need {
            pages: usize::from(!self.cache.is_pinned(slot)),
            ..Need::default()
        };
        need.record(&record);
        if !self.has_room(&need) {
            return false;
        }
        self.log.append(&record);
        self.page(slot).set_generation(generation);
        self.cache.mark_dirty(slot);
        self.directory.set(piece, Entry::Slot(slot, generation));
        true
    }
}
