//! FLUSH, FENCE, ADOPT, RELEASE, DELETE_VOLUME, and the closing of intents.

use super::directory::Entry;
use super::hole::SlotKey;
use super::op::{Kind, Op, Waiter};
use super::record::Record;
use super::room::Need;
use super::space::Tombstone;
use super::store::{Step, Stop, Store};
use ukai_proto::limits::SEQ_MAX;
use ukai_proto::{Buffer, ChunkIndex, SectorInChunk, Seq, Status, Token, Version, VolumeId};

/// CLOSE records at a time: they are never urgent.
const CLOSES_MAX: usize = 64;
/// Open chunks looked at in one turn: it is the price of every turn.
const LOOKS_MAX: usize = 2;
/// A chunk not written for so many ticks (5 s) is unlikely to be written by the next request.
const QUIET_TICKS: u64 = 20;
/// The chunks of a volume nothing of which was written for so many ticks (1 s) are closed together. Not at once: with one
/// request at a time a volume is at rest after each, and every write would open its chunk again, with a flush.
const REST_TICKS: u64 = 4;

/// A volume whose last write is known everywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    volume: VolumeId,
    /// Tick at which that was seen.
    since: u64,
    /// That write.
    version: Version,
}

impl<B: Buffer> Store<B> {
    pub(super) fn advance_flush(&mut self, key: u64, op: &mut Op<B>) -> Step<B> {
        self.wait_flushed(key, op)
    }

    /// The request's last record must be durable.
    fn wait_durable(&mut self, key: u64, op: &mut Op<B>) -> Step<B> {
        op.executed = true;
        self.commit.durable_wanted = true;
        self.on_log_durable
            .push_back((self.commit.pending(), Waiter::Op(key)));
        Step::Wait
    }

    pub(super) fn advance_fence(&mut self, key: u64, op: &mut Op<B>) -> Step<B> {
        let (Kind::Fence { volume, fence } | Kind::Adopt { volume, fence }) = op.kind else {
            panic!("called for fences");
        };
        let new = self.directory.fence(volume).is_none();
        if new && self.directory.fences() >= self.bounds.fences {
            return Step::fail(Status::NoSpace, SectorInChunk(0));
        }
        let mut need = Need {
            relogged: usize::from(new),
            ..Need::default()
        };
        let super::api::Fence { token, generation } = fence;
        need.record(&Record::Fence {
            volume,
            token,
            generation,
        });
        if !self.room(&need, key) {
            return Step::Wait;
        }
        let before = self.directory.fence(volume).map(|fence| fence.token);
        let super::api::Fence { token, generation } = self.directory.raise(volume, fence);
        if before != Some(token) {
            self.refenced(volume);
        }
        self.log.append(&Record::Fence {
            volume,
            token,
            generation,
        });
        self.wait_durable(key, op)
    }

    /// The generation and the tombstones become durable before the reply; the slots are reused only
    /// after that. A recovery that finds the tombstones deletes once more.
    pub(super) fn advance_release(&mut self, key: u64, op: &mut Op<B>) -> Step<B> {
        let Kind::Release {
            volume,
            fence,
            ranges,
        } = &op.kind
        else {
            panic!("called for releases");
        };
        let (volume, fence) = (*volume, *fence);
        let generation = fence.unwrap_or_default().generation;
        let ranges: Vec<_> = ranges
            .iter()
            .copied()
            .filter(|range| {
                let end = u64::from(range.start.0) + u64::from(range.count);
                let open = self.intents.of(volume, range.start).next();
                self.directory.any_in(volume, *range)
                    || open.is_some_and(|chunk| u64::from(chunk.0) < end)
            })
            .collect();
        if self.space.tombstones.len() + ranges.len() > self.bounds.tombstones {
            // A checkpoint clears them; `turn_end` sees to one.
            return Step::fail(Status::Busy, SectorInChunk(0));
        }
        let new = fence.is_some() && self.directory.fence(volume).is_none();
        let mut need = Need {
            relogged: ranges.len() + usize::from(new),
            ..Need::default()
        };
        let tombstone = |range| Record::Tombstone {
            volume,
            range,
            generation,
            origin: 0,
        };
        ranges
            .iter()
            .for_each(|range| need.record(&tombstone(*range)));
        if fence.is_some() {
            need.record(&Record::Fence {
                volume,
                token: Token(0),
                generation,
            });
        }
        if !self.room(&need, key) {
            return Step::Wait;
        }
        if let Some(fence) = fence {
            let super::api::Fence { token, generation } = self.directory.raise(volume, fence);
            self.log.append(&Record::Fence {
                volume,
                token,
                generation,
            });
        }
        if ranges.is_empty() && fence.is_none() {
            return Step::Reply(super::api::StoreReply::Done { applied: 0 });
        }
        for range in ranges {
            let origin = self.log.append(&tombstone(range));
            self.space.tombstones.push(Tombstone {
                volume,
                range,
                generation,
                origin,
            });
            for (piece, entry) in self.directory.take_range(volume, range) {
                self.sweep.suspects.remove(&piece);
                self.sweep.doubted.remove(&piece);
                match entry {
                    Entry::Slot(slot, _) => {
                        self.reading.remove(&slot);
                        self.cache.forget(slot);
                        self.space.stale_slots.insert(slot);
                        self.space.freed(self.commit.pending(), slot);
                    }
                    Entry::Hole(index) => {
                        self.directory.drop_hole(index);
                        self.space
                            .stale_hole_pages
                            .insert(index.page(self.geometry.slots));
                    }
                }
            }
            self.intents.remove_range(volume, range);
        }
        self.wait_durable(key, op)
    }

    fn closable(&self, volume: VolumeId, chunk: ChunkIndex) -> bool {
        let Some(intent) = self.intents.get(volume, chunk) else {
            return false;
        };
        let settled = self
            .directory
            .volumes
            .get(&volume)
            .map_or(Version::ZERO, |v| v.settled);
        intent.opening.is_none()
            && intent.last_group <= self.commit.flushed
            && intent.last_version <= settled
            && self.intents.recovered(volume, chunk).is_none()
            && !self.chunk_suspect(volume, chunk)
    }

    /// Parts of the chunk are still to be settled.
    pub(super) fn chunk_suspect(&self, volume: VolumeId, chunk: ChunkIndex) -> bool {
        let piece = |index| SlotKey {
            volume,
            chunk,
            index,
        };
        self.sweep
            .suspects
            .range(piece(0)..=piece(u8::MAX))
            .next()
            .is_some()
    }

    /// Closes chunks whose writes are flushed here and known everywhere. How many.
    pub(super) fn close_intents(&mut self) -> usize {
        let closable: Vec<_> = self
            .intents
            .iter()
            .map(|(volume, chunk, _)| (volume, chunk))
            .filter(|(volume, chunk)| self.closable(*volume, *chunk))
            .take(CLOSES_MAX)
            .collect();
        self.close_these(&closable)
    }

    /// As [`Store::close_intents`], for the background: leaves alone what is likely to be written again
    /// soon, because opening a chunk again costs a flush. That is, closes chunks not written for a while
    /// (looking at a few, in turn), and all of a volume that has been at rest for a while.
    pub(super) fn close_quiet_intents(&mut self) {
        let ticks = self.ticks;
        let old: Vec<_> = self
            .intents
            .next_few(LOOKS_MAX)
            .into_iter()
            .filter(|(volume, chunk)| {
                let intent = self.intents.get(*volume, *chunk);
                intent.is_some_and(|intent| intent.last_tick + QUIET_TICKS <= ticks)
                    && self.closable(*volume, *chunk)
            })
            .collect();
        self.close_these(&old);
        if self.ops.len() > 0 {
            return;
        }
        while let Some(rest) = self.at_rest.front().copied() {
            if rest.since + REST_TICKS > ticks {
                return;
            }
            let volume = rest.volume;
            let held = self.directory.volumes.get(&volume);
            let still = held.is_some_and(|held| held.last_version == rest.version);
            let all: Vec<_> = self
                .intents
                .of(volume, ChunkIndex(0))
                .map(|chunk| (volume, chunk))
                .filter(|(volume, chunk)| still && self.closable(*volume, *chunk))
                .take(CLOSES_MAX)
                .collect();
            if !all.is_empty() {
                // The end of their log write is a turn of its own, which looks for more.
                self.close_these(&all);
                return;
            }
            self.at_rest.pop_front();
            self.resting.remove(&volume);
            if !still {
                self.comes_to_rest(volume);
            }
        }
    }

    fn close_these(&mut self, chunks: &[(VolumeId, ChunkIndex)]) -> usize {
        let mut closed = 0;
        for (volume, chunk) in chunks.iter().copied() {
            let record = Record::Close { volume, chunk };
            let mut need = Need::default();
            need.record(&record);
            if !self.has_room(&need) {
                break;
            }
            self.log.append(&record);
            self.intents.remove(volume, chunk);
            closed += 1;
        }
        closed
    }

    /// At the limit of open chunks: close some, after a flush if that helps.
    pub(super) fn wait_for_intent_room(&mut self, key: u64) -> Stop {
        if self.close_intents() > 0 {
            self.ready.push_back(key);
            return Stop::Parked;
        }
        let flushed = self.commit.flushed;
        let unflushed = self
            .intents
            .iter()
            .filter(|(volume, chunk, intent)| {
                let volume_settled = self.directory.volumes.get(volume).map(|held| held.settled);
                volume_settled.is_some_and(|settled| intent.last_version <= settled)
                    && intent.last_group > flushed
                    && self.intents.recovered(*volume, *chunk).is_none()
                    && !self.chunk_suspect(*volume, *chunk)
            })
            .map(|(_, _, intent)| intent.last_group)
            .min();
        match unflushed {
            Some(group) => {
                self.commit.request(group);
                self.wait_intent_room.push(key);
                Stop::Parked
            }
            None if self.accountable() => {
                // The background is at it.
                self.wait_intent_room.push(key);
                Stop::Parked
            }
            None => Stop::Refused(Status::Busy),
        }
    }

    /// Whatever may have made room for intents: requests that wait for it look again, and ask for
    /// another flush if what they waited for was written to meanwhile.
    pub(super) fn wake_intent_room(&mut self) {
        let flushed = self.commit.flushed;
        let moved = std::mem::take(&mut self.intent_room_moved)
            || std::mem::replace(&mut self.intent_room_flushed, flushed) != flushed;
        if moved || self.intents.len() < self.bounds.intents {
            self.ready.extend(self.wait_intent_room.drain(..));
        }
    }
}

impl<B> Store<B> {
    /// The volume's last write may be known everywhere; if so, its chunks are closed later unless it is written
    /// before.
    pub(super) fn comes_to_rest(&mut self, volume: VolumeId) {
        let Some(held) = self.directory.volumes.get(&volume) else {
            return;
        };
        if held.settled >= held.last_version && self.resting.insert(volume) {
            self.at_rest.push_back(Rest {
                volume,
                since: self.ticks,
                version: held.last_version,
            });
        }
    }
}

/// Last version of an intent that a recovery found: writes whose records were lost may have had any.
pub(super) fn unknown_version(token: Token) -> Version {
    Version::new(token, Seq(SEQ_MAX))
}
