//! What all changing requests share: where they go, intents, slots, durability.

use super::api::{DiskOp, StoreAction, WriteData};
use super::commit::GroupId;
use super::directory::Entry;
use super::hole::{Hole, HoleIndex, SlotKey};
use super::layout::SlotIndex;
use super::op::{Io, Op, Span, Waiter};
use super::page::Page;
use super::record::Record;
use super::room::Need;
use super::store::{Step, Stop, Store};
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

/// What a slot is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// More data. The last free slots are not for it ([`super::layout::Geometry::reserve_slots`]).
    Data,
    /// What another replica has of a write that did not reach all of them: without it the chunk cannot be touched.
    Equal,
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
        let ticks = self.ticks;
        let intent = self.intents.open(volume, chunk);
        intent.token = intent.token.max(token);
        intent.opening = Some(group);
        intent.waiting.push(key);
        intent.last_group = intent.last_group.max(group);
        intent.last_tick = ticks;
        self.on_log_durable
            .push_back((group, Waiter::Intent(volume, chunk)));
        Some(Stop::Parked)
    }

    /// Admits `need`, allocates a slot if there is none.
    pub(super) fn slot_for(
        &mut self,
        key: u64,
        piece: &SlotKey,
        target: &Target,
        generation: Generation,
        mut need: Need,
        purpose: Purpose,
    ) -> Result<SlotIndex, Stop> {
        let hole = match target {
            Target::Slot(slot) => {
                need.pages += usize::from(!self.cache.is_pinned(*slot));
                let roomy = self.room(&need, key);
                return if roomy { Ok(*slot) } else { Err(Stop::Parked) };
            }
            Target::None(hole) => *hole,
        };
        // A late write of an older generation must not hide the discard that it falls into.
        let generation = hole.map_or(generation, |(_, hole)| generation.max(hole.generation));
        let kept = match purpose {
            Purpose::Equal => 0,
            Purpose::Data => self.geometry.reserve_slots(),
        };
        let Some(slot) = self.space.next_free(kept) else {
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
        if self.space.take_gained() || self.space.soon().is_none() {
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
        let ticks = self.ticks;
        let intent = self.intents.open(piece.volume, piece.chunk);
        intent.last_group = group;
        intent.last_tick = ticks;
        intent.last_version = intent.last_version.max(version);
        let held = self.directory.volumes.entry(piece.volume).or_default();
        held.last_version = held.last_version.max(version);
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
        group: GroupId,
        (first, count): (u8, u16),
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
            if self.data_is_bad(&failed) {
                self.commit.data_fails(group);
            } else {
                // What the log says of these sectors is wrong and cannot be put right.
                self.commit.data_ends(group);
                self.poison(out);
            }
        } else {
            self.commit.data_ends(group);
        }
        self.settle_up(key, out);
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
