//! ZERO: versioned zeros. Whole pieces of zeros need no slot.

use super::api::StoreAction;
use super::change::{Purpose, Target, is_newer, runs};
use super::directory::Entry;
use super::hole::{Hole, HoleEntry, HoleIndex, SlotKey};
use super::layout::SlotIndex;
use super::op::{Kind, Op};
use super::record::{Record, Run};
use super::room::Need;
use super::store::{Step, Stop, Store};
use ukai_proto::limits::SLOT_SECTORS;
use ukai_proto::message::SectorState;
use ukai_proto::{Buffer, Generation};

impl<B: Buffer> Store<B> {
    pub(super) fn advance_zero(
        &mut self,
        key: u64,
        op: &mut Op<B>,
        out: &mut Vec<StoreAction<B>>,
    ) -> Step<B> {
        let Kind::Zero {
            span,
            version,
            generation,
            unmap,
            fua,
        } = &op.kind
        else {
            panic!("called for zeros");
        };
        let (span, version, generation, unmap, fua) = (*span, *version, *generation, *unmap, *fua);
        let Some(target) = self.target(key, &span.key, out) else {
            return Step::Wait;
        };
        let runs = runs(&span, |sector| {
            is_newer(version, &target.state(self, sector))
        });
        if runs.is_empty() {
            return self.nothing_to_do(key, op, fua);
        }
        if let Some(stop) = self.intent(key, &span.key, version.token) {
            return stop.step();
        }
        let mut after = self.states_of(&target);
        for (first, count) in &runs {
            after[usize::from(*first)..][..usize::from(*count)].fill(SectorState {
                version,
                ..SectorState::UNWRITTEN
            });
        }
        let done = match &target {
            Target::None(_) => self.make_hole(key, &span.key, &target, &after, generation),
            Target::Slot(slot) if unmap => {
                self.free_slot(key, &span.key, *slot, &after, generation)
            }
            Target::Slot(_) => Ok(false),
        };
        match done {
            Err(stop) => return stop.step(),
            Ok(true) => self.touched_chunk(&span.key, version),
            // All holes are in use, and nothing was ever written here: it reads as zeros anyway. What
            // is given up is only the order against a write that the guest has in flight over the
            // same sectors at this moment; taking a slot to keep it could fill the node.
            Ok(false) if unmap && matches!(target, Target::None(None)) => {
                return self.nothing_to_do(key, op, fua);
            }
            Ok(false) => {
                let records = |slot: SlotIndex| {
                    runs.iter().map(move |(first, count)| {
                        let run = Run {
                            slot,
                            first: *first,
                            count: *count,
                        };
                        Record::Zero {
                            run,
                            version,
                            generation,
                        }
                    })
                };
                let mut need = Need::default();
                records(SlotIndex(0)).for_each(|record| need.record(&record));
                let slot =
                    match self.slot_for(key, &span.key, &target, generation, need, Purpose::Data) {
                        Ok(slot) => slot,
                        Err(stop) => return stop.step(),
                    };
                for record in records(slot) {
                    self.log.append(&record);
                }
                let page = self.page(slot);
                for (sector, state) in (0..=u8::MAX).zip(&after) {
                    page.set_state(sector, state);
                }
                self.touched(&span.key, slot, generation, version);
            }
        }
        op.executed = true;
        op.applied = runs.iter().map(|(_, count)| count).sum();
        self.durability(key, fua);
        Step::Wait
    }

    /// States of all sectors of a piece.
    pub(super) fn states_of(&mut self, target: &Target) -> Vec<SectorState> {
        match target {
            Target::Slot(slot) => self.page(*slot).states().collect(),
            Target::None(Some((_, hole))) => hole.states().collect(),
            Target::None(None) => vec![SectorState::UNWRITTEN; SLOT_SECTORS],
        }
    }

    /// A piece without a slot gets these states without needing one, if they allow it.
    pub(super) fn make_hole(
        &mut self,
        key: u64,
        piece: &SlotKey,
        target: &Target,
        after: &[SectorState],
        generation: Generation,
    ) -> Result<bool, Stop> {
        let (held, generation) = match target {
            Target::None(Some((index, hole))) => (Some(*index), generation.max(hole.generation)),
            _ => (None, generation),
        };
        let Some(hole) = Hole::from_states(after.iter().copied(), generation) else {
            return Ok(false);
        };
        let Some(index) = held.or_else(|| self.spare_hole()) else {
            return Ok(false);
        };
        if !self.log_hole(piece, index, hole) {
            self.stalled.push(key);
            return Err(Stop::Parked);
        }
        Ok(true)
    }

    /// A new hole for a piece that has no slot: such holes leave enough for every slot to be given back.
    pub(super) fn spare_hole(&self) -> Option<HoleIndex> {
        let spare = self.directory.holes_left() > self.geometry.slots as usize;
        self.directory.next_hole().filter(|_| spare)
    }

    /// Makes or replaces the hole of a piece without a slot. `false`: there is no room.
    pub(super) fn log_hole(&mut self, piece: &SlotKey, index: HoleIndex, hole: Hole) -> bool {
        let record = Record::Hole {
            index,
            key: *piece,
            hole,
        };
        let mut need = Need {
            pages: 1,
            ..Need::default()
        };
        need.record(&record);
        if !self.has_room(&need) {
            return false;
        }
        let block = self.log.append(&record);
        self.set_hole(piece, index, hole, block);
        true
    }

    /// A slot full of zeros is given up, if its versions fit a hole.
    pub(super) fn free_slot(
        &mut self,
        key: u64,
        piece: &SlotKey,
        slot: SlotIndex,
        after: &[SectorState],
        generation: Generation,
    ) -> Result<bool, Stop> {
        let generation = generation.max(self.page(slot).generation());
        let Some(hole) = Hole::from_states(after.iter().copied(), generation) else {
            return Ok(false);
        };
        let Some(index) = self.directory.next_hole() else {
            return Ok(false);
        };
        let record = Record::Free {
            slot,
            hole: Some((index, *piece, hole)),
        };
        let mut need = Need {
            pages: 2,
            ..Need::default()
        };
        need.record(&record);
        if !self.room(&need, key) {
            return Err(Stop::Parked);
        }
        let block = self.log.append(&record);
        self.cache.insert(slot, None);
        self.cache.mark_dirty(slot);
        self.space.freed(self.commit.pending(), slot);
        self.set_hole(piece, index, hole, block);
        Ok(true)
    }

    fn set_hole(&mut self, piece: &SlotKey, index: HoleIndex, hole: Hole, block: u64) {
        self.directory.set_hole(
            index,
            HoleEntry {
                key: *piece,
                hole,
                block,
            },
        );
        self.directory.set(piece, Entry::Hole(index));
        self.dirty_hole_pages
            .insert(index.page(self.geometry.slots));
    }
}
