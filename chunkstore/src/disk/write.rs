//! WRITE, and what all changing requests share: intents, slots, the marker rule, durability.
//!
//! The marker rule. A sector written over zeros lies on garbage until its data has reached the medium.
//! If its record survives a crash and its data does not, recovery must answer zeros, which is legal
//! while the write was not answered (if the process dies) or not flushed (if the power fails). If it
//! *was*, and was then overwritten by a write whose record is lost, the content matches nothing either,
//! but zeros would be wrong. So the overwriting waits until a block is written that tells that the first
//! write was; and, if a flush of it was asked for, until a block (or superblock) is durable that tells
//! of that flush. Blocks tell both all the time, so only a second write on the heels of the first waits.

use super::api::{DiskOp, StoreAction, WriteData};
use super::directory::Entry;
use super::hole::{Hole, HoleIndex, SlotKey};
use super::layout::SlotIndex;
use super::op::{Io, Kind, Needs, Op, Span, Waiter};
use super::page::Page;
use super::record::{Record, Run};
use super::room::Need;
use super::store::{Step, Stop, Store};
use std::borrow::Cow;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::SectorState;
use ukai_proto::{Buffer, Generation, Status, Token, Version};

/// ENOSPC.
const ENOSPC: i32 = 28;

/// Does a write of `version` replace what is held? Adopted content ranks below a logged write of the
/// same version, and a sector that went bad in a write is healed by sending it again.
pub(super) fn is_newer(version: Version, held: &SectorState) -> bool {
    let weak = held.flags & (SectorState::ADOPTED | SectorState::BAD) != 0;
    version > held.version || (weak && version == held.version)
}

/// Where changes of a piece of a chunk go.
pub(super) enum Target {
    /// It has a slot, whose page is at hand.
    Slot(SlotIndex),
    /// It has none; its sectors are these zeros.
    None(Option<(HoleIndex, Hole)>),
}

impl Target {
    /// State of a sector before the change.
    pub(super) fn state<B: Buffer>(&self, store: &mut Store<B>, sector: u8) -> SectorState {
        match self {
            Self::Slot(slot) => store.page(*slot).state(sector),
            Self::None(Some((_, hole))) => hole.state(sector),
            Self::None(None) => SectorState::UNWRITTEN,
        }
    }
}

/// Sectors as runs: `pick` says which sectors belong.
pub(super) fn runs(span: &Span, mut pick: impl FnMut(u8) -> bool) -> Vec<(u8, u16)> {
    let mut runs: Vec<(u8, u16)> = Vec::new();
    let mut open = false;
    for sector in span.sectors() {
        if !pick(sector) {
            open = false;
        } else if open {
            runs.last_mut().expect("an open run").1 += 1;
        } else {
            runs.push((sector, 1));
            open = true;
        }
    }
    runs
}

impl<B: Buffer> Store<B> {
    pub(super) fn page(&mut self, slot: SlotIndex) -> &mut Page {
        let cached = self.cache.get(slot).expect("the page is at hand");
        cached.page.as_mut().expect("the slot has an owner")
    }

    pub(super) fn advance_write(
        &mut self,
        key: u64,
        op: &mut Op<B>,
        out: &mut Vec<StoreAction<B>>,
    ) -> Step<B> {
        let Kind::Write {
            span,
            version,
            generation,
            fua,
            ..
        } = &op.kind
        else {
            panic!("called for writes");
        };
        let (span, version, generation, fua) = (*span, *version, *generation, *fua);
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
        if let Err(needs) = self.may_overwrite(key, op.needs, &target, &runs) {
            op.needs = Some(needs);
            return Step::Wait;
        }
        let Kind::Write { crcs, data, .. } = &mut op.kind else {
            panic!("called for writes");
        };
        let crcs = std::mem::take(crcs);
        let first = usize::from(span.first);
        let records = |slot: SlotIndex| {
            let crcs = &crcs;
            runs.iter().map(move |(at, count)| Record::Write {
                run: Run {
                    slot,
                    first: *at,
                    count: *count,
                },
                version,
                generation,
                crcs: Cow::Borrowed(&crcs[usize::from(*at) - first..][..usize::from(*count)]),
            })
        };
        let mut need = Need::default();
        records(SlotIndex(0)).for_each(|record| need.record(&record));
        let slot = match self.slot_for(key, &span.key, &target, generation, need) {
            Ok(slot) => slot,
            Err(stop) => {
                let Kind::Write { crcs: place, .. } = &mut op.kind else {
                    panic!("called for writes");
                };
                *place = crcs;
                return stop.step();
            }
        };
        records(slot).for_each(|record| {
            self.log.append(&record);
        });
        let group = self.commit.pending();
        let cached = self.cache.get(slot).expect("the page is at hand");
        for sector in runs.iter().flat_map(|(at, count)| {
            (Run {
                slot,
                first: *at,
                count: *count,
            })
            .sectors()
        }) {
            let page = cached.page.as_mut().expect("the slot has an owner");
            let over_zeros = page.state(sector).flags & SectorState::ZERO != 0;
            let crc = crcs[usize::from(sector) - first];
            page.set_state(
                sector,
                &SectorState {
                    version,
                    crc,
                    flags: 0,
                },
            );
            if over_zeros {
                cached.set_fresh(sector, group);
            }
        }
        self.touched(&span.key, slot, generation, version);
        let dsync = self.durability(key, fua);
        let data = data.take().expect("executed once");
        op.executed = true;
        op.applied = runs.iter().map(|(_, count)| count).sum();
        op.ios = u32::try_from(runs.len()).expect("at most 256 runs");
        if op.applied == span.count {
            self.write_data(
                key,
                slot,
                (span.first, span.count),
                WriteData::Payload(data),
                dsync,
                out,
            );
        } else {
            for (at, count) in runs {
                let start = (usize::from(at) - first) * SECTOR_BYTES;
                let bytes = &data.as_slice()[start..][..usize::from(count) * SECTOR_BYTES];
                let owned = WriteData::Owned(bytes.to_vec());
                self.write_data(key, slot, (at, count), owned, dsync, out);
            }
        }
        Step::Wait
    }

    /// Where the change goes; `None`: parked until the page is read or the slot settled.
    pub(super) fn target(
        &mut self,
        key: u64,
        piece: &SlotKey,
        out: &mut Vec<StoreAction<B>>,
    ) -> Option<Target> {
        match self.directory.entry(piece) {
            None => Some(Target::None(None)),
            Some(Entry::Hole(index)) => Some(Target::None(Some((
                index,
                self.directory.holes[&index].hole,
            )))),
            Some(Entry::Slot(slot, _)) => {
                let ready = self.page_ready(slot, Some(key), out)
                    && self.settled_ready(piece, slot, key, out);
                ready.then_some(Target::Slot(slot))
            }
        }
    }

    /// Everything was older than what is held: done, once that is as durable as asked.
    pub(super) fn nothing_to_do(&mut self, key: u64, op: &mut Op<B>, fua: bool) -> Step<B> {
        if fua {
            return self.wait_flushed(key, op);
        }
        Step::Reply(super::api::StoreReply::Done { applied: 0 })
    }

    /// Waits until everything so far is durable.
    pub(super) fn wait_flushed(&mut self, key: u64, op: &mut Op<B>) -> Step<B> {
        let pending = self.commit.pending();
        let target = if self.log.is_empty() {
            pending - 1
        } else {
            pending
        };
        self.commit.claim = self.commit.claim.max(target);
        if target <= self.commit.flushed {
            return Step::Reply(super::api::StoreReply::Done {
                applied: op.applied,
            });
        }
        self.commit.request(target);
        self.on_flushed.push_back((target, Waiter::Op(key)));
        op.executed = true;
        Step::Wait
    }

    /// The chunk must be open, durably, before its data changes. `None`: it is.
    pub(super) fn intent(&mut self, key: u64, piece: &SlotKey, token: Token) -> Option<Stop> {
        let (volume, chunk) = (piece.volume, piece.chunk);
        let held = self.intents.get_mut(volume, chunk);
        let new = held.is_none();
        if let Some(intent) = held {
            if intent.opening.is_some() {
                intent.waiting.push(key);
                return Some(Stop::Parked);
            }
            if intent.token >= token {
                return None;
            }
        }
        if new && self.intents.len() >= self.bounds.intents {
            return Some(self.wait_for_intent_room(key));
        }
        let record = Record::Open {
            volume,
            chunk,
            token,
            suspect: false,
        };
        let mut need = Need {
            relogged: usize::from(new),
            ..Need::default()
        };
        need.record(&record);
        if !self.room(&need, key) {
            return Some(Stop::Parked);
        }
        self.log.append(&record);
        self.commit.durable_wanted = true;
        let group = self.commit.pending();
        let intent = self.intents.open(volume, chunk);
        intent.token = intent.token.max(token);
        intent.opening = Some(group);
        intent.waiting.push(key);
        intent.last_group = intent.last_group.max(group);
        self.on_log_durable
            .push_back((group, Waiter::Intent(volume, chunk)));
        Some(Stop::Parked)
    }

    /// The marker rule (see above). `false`: parked.
    pub(super) fn may_overwrite(
        &mut self,
        key: u64,
        held: Option<Needs>,
        target: &Target,
        runs: &[(u8, u16)],
    ) -> Result<(), Needs> {
        let Target::Slot(slot) = *target else {
            return Ok(());
        };
        let needs = match held {
            Some(needs) => needs,
            None => self.needs(slot, runs),
        };
        // Of the power, only what was promised to be durable matters: a flush may have been asked for
        // since the request was looked at last.
        let (first, last) = needs.fresh;
        let flushed = if first <= self.commit.claim {
            last.min(self.commit.claim)
        } else {
            0
        };
        if flushed <= self.commit.marker
            && last <= self.commit.written_marker.max(self.commit.marker)
        {
            return Ok(());
        }
        self.marker_wanted = self.marker_wanted.max(flushed);
        self.written_marker_wanted = self.written_marker_wanted.max(last);
        self.wait_marker.push(key);
        Err(needs)
    }

    fn needs(&mut self, slot: SlotIndex, runs: &[(u8, u16)]) -> Needs {
        let marker = self.commit.marker;
        let cached = self.cache.get(slot).expect("the page is at hand");
        if cached.fresh_group <= marker {
            cached.clear_fresh();
            return Needs::default();
        }
        let page = cached.page.as_ref().expect("the slot has an owner");
        let risky = runs
            .iter()
            .flat_map(|(at, count)| {
                (Run {
                    slot,
                    first: *at,
                    count: *count,
                })
                .sectors()
            })
            .any(|sector| {
                cached.is_fresh(sector) && page.state(sector).flags & SectorState::ZERO == 0
            });
        let fresh = if risky {
            (cached.fresh_first, cached.fresh_group)
        } else {
            (0, 0)
        };
        Needs { fresh }
    }

    /// Admits `need`, allocates a slot if there is none.
    pub(super) fn slot_for(
        &mut self,
        key: u64,
        piece: &SlotKey,
        target: &Target,
        generation: Generation,
        mut need: Need,
    ) -> Result<SlotIndex, Stop> {
        let hole = match target {
            Target::Slot(slot) => {
                need.pages += usize::from(!self.cache.is_pinned(*slot));
                let roomy = self.room(&need, key);
                return if roomy { Ok(*slot) } else { Err(Stop::Parked) };
            }
            Target::None(hole) => *hole,
        };
        let Some(slot) = self.space.free.last().copied() else {
            return Err(self.wait_for_slot(key));
        };
        let record = Record::Alloc {
            slot,
            key: *piece,
            generation,
            hole,
        };
        need.record(&record);
        need.pages += 2;
        if !self.room(&need, key) {
            return Err(Stop::Parked);
        }
        self.space.free.pop();
        self.log.append(&record);
        let states = (0..=u8::MAX)
            .map(|sector| hole.map_or(SectorState::UNWRITTEN, |(_, hole)| hole.state(sector)));
        self.cache
            .insert(slot, Some(Page::allocated(piece, generation, states)));
        self.reading.remove(&slot);
        if let Some((index, _)) = hole {
            self.directory.drop_hole(index);
            self.dirty_hole_pages
                .insert(index.page(self.geometry.slots));
        }
        self.directory.set(piece, Entry::Slot(slot, generation));
        Ok(slot)
    }

    fn wait_for_slot(&mut self, key: u64) -> Stop {
        match self.space.soon() {
            None => Stop::Refused(Status::NoSpace),
            Some(group) => {
                self.commit.request(group);
                self.wait_slot.push(key);
                Stop::Parked
            }
        }
    }

    pub(super) fn wake_slots(&mut self) {
        if !self.space.free.is_empty() || self.space.soon().is_none() {
            self.ready.extend(self.wait_slot.drain(..));
        }
    }

    /// Notes a change of a slot whose records are in the log.
    pub(super) fn touched(
        &mut self,
        piece: &SlotKey,
        slot: SlotIndex,
        generation: Generation,
        version: Version,
    ) {
        let page = self.page(slot);
        let generation = generation.max(page.generation());
        page.set_generation(generation);
        self.cache.mark_dirty(slot);
        self.directory.set(piece, Entry::Slot(slot, generation));
        self.touched_chunk(piece, version);
    }

    /// Notes a change of an open chunk.
    pub(super) fn touched_chunk(&mut self, piece: &SlotKey, version: Version) {
        let group = self.commit.pending();
        let intent = self.intents.open(piece.volume, piece.chunk);
        intent.last_group = group;
        intent.last_version = intent.last_version.max(version);
    }

    /// Registers the request for the durability it asked for; with dsync for its data?
    pub(super) fn durability(&mut self, key: u64, fua: bool) -> bool {
        let group = self.commit.pending();
        if !fua {
            self.commit.wait_log(key);
            return false;
        }
        self.commit.claim = self.commit.claim.max(group);
        if self.commit.can_dsync() {
            self.commit.durable_wanted = true;
            self.on_log_durable.push_back((group, Waiter::Op(key)));
            return true;
        }
        self.commit.request(group);
        self.on_flushed.push_back((group, Waiter::Op(key)));
        false
    }

    pub(super) fn write_data(
        &mut self,
        key: u64,
        slot: SlotIndex,
        (first, count): (u8, u16),
        data: WriteData<B>,
        dsync: bool,
        out: &mut Vec<StoreAction<B>>,
    ) {
        let group = self.commit.data_begins(dsync);
        let io = self.io(Io::Data {
            op: key,
            group,
            first,
            count,
        });
        let position = self.geometry.slot_position(slot) + u64::from(first) * SECTOR_BYTES as u64;
        out.push(StoreAction::Disk(DiskOp::Write {
            io,
            position,
            data,
            dsync,
        }));
    }

    /// A data write ended. If it failed, nobody knows what is there now.
    pub(super) fn data_written(
        &mut self,
        key: u64,
        first: u8,
        count: u16,
        error: Option<i32>,
        out: &mut Vec<StoreAction<B>>,
    ) {
        let op = self
            .ops
            .get_mut(key)
            .expect("the request waits for its data");
        op.ios -= 1;
        if let Some(errno) = error {
            let span = op.kind.span().expect("only ranges have data");
            let status = if errno == ENOSPC {
                Status::NoSpace
            } else {
                Status::IoError
            };
            op.failure = Some((status, span.in_chunk(first)));
            let failed = Span {
                first,
                count,
                ..span
            };
            self.mark_bad(&failed, &failed.sectors().collect::<Vec<u8>>());
        }
        self.settle_up(key, out);
    }

    /// Before sealing: a block that tells the marks, if one is wanted and they can be told.
    pub(super) fn want_marker(&mut self) {
        let wanted = self.written_marker_wanted;
        if wanted > self.commit.written_marker_coming() && wanted <= self.commit.complete() {
            self.log.touch();
        }
        if self.marker_wanted <= self.commit.marker || self.marker_group.is_some() {
            return;
        }
        if self.commit.flushed < self.marker_wanted {
            self.commit.request(self.marker_wanted);
            return;
        }
        self.log.touch();
        self.commit.durable_wanted = true;
        self.marker_group = Some(self.commit.pending());
    }

    pub(super) fn marker_progress(&mut self) {
        if self
            .marker_group
            .is_some_and(|group| group <= self.commit.log_durable())
        {
            self.marker_group = None;
        }
        // Few wait, and each knows its own needs.
        self.ready.extend(self.wait_marker.drain(..));
    }
}

impl Stop {
    pub(super) fn step<B>(self) -> Step<B> {
        match self {
            Self::Parked => Step::Wait,
            Self::Refused(status) => Step::fail(status, ukai_proto::SectorInChunk(0)),
        }
    }
}
