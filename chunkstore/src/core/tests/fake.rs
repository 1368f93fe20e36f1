//! A store that is a map: same rules, no device. Replies come at once, or when the test says so.

use crate::core::Storage;
use crate::disk::api::*;
use std::collections::BTreeMap;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::{InventoryEntry, SectorState, ShardStats};
use ukai_proto::{crc, *};

type Key = (VolumeId, ChunkIndex, u16);

#[derive(Debug, Default)]
pub(in crate::core) struct FakeStore {
    pub(super) sectors: BTreeMap<Key, (SectorState, Vec<u8>)>,
    pub(super) fences: BTreeMap<VolumeId, Fence>,
    pub(super) intents: Vec<ChunkIndex>,
    pub(super) settled: Option<(Token, Seq)>,
    pub(super) resumed: Option<(Token, Seq)>,
    pub(super) tombstones: Vec<(Generation, u32)>,
    /// Requests wait in `held` instead of being answered.
    pub(super) hold: bool,
    pub(super) held: Vec<(OpId, StoreRequest<Vec<u8>>)>,
    /// Answer every Put with this.
    pub(super) fail_puts: Option<Status>,
    /// Calls of `background`.
    pub(super) backgrounds: u64,
    submitted_since_turn_end: bool,
    closed: bool,
}

impl FakeStore {
    pub(super) fn state(&self, sector: u16) -> SectorState {
        let key = (super::VOLUME, super::CHUNK, sector);
        let held = self.sectors.get(&key);
        held.map_or(SectorState::UNWRITTEN, |(state, _)| *state)
    }

    /// Put a sector there, whatever is held.
    pub(super) fn plant(&mut self, sector: u16, token: u32, seq: u64, fill: u8, flags: u16) {
        let data = vec![fill; SECTOR_BYTES];
        let state = SectorState {
            version: Version::new(Token(token), Seq(seq)),
            crc: crc::crc32c(&data),
            flags,
        };
        let key = (super::VOLUME, super::CHUNK, sector);
        self.sectors.insert(key, (state, data));
    }

    /// Answer what was held.
    pub(super) fn release(&mut self, out: &mut Vec<StoreAction<Vec<u8>>>) {
        for (op, request) in std::mem::take(&mut self.held) {
            let reply = self.run(request);
            out.push(StoreAction::Reply(op, reply));
        }
    }

    fn keys(range: &SectorRange) -> impl Iterator<Item = Key> + use<> {
        let (volume, chunk) = (range.volume, range.chunk);
        let first = range.sector.0;
        (first..first + range.count).map(move |sector| (volume, chunk, sector))
    }

    fn read(&self, range: &SectorRange) -> (Vec<SectorState>, ReadData<Vec<u8>>) {
        let zero = (SectorState::UNWRITTEN, vec![0; SECTOR_BYTES]);
        let found: Vec<_> = Self::keys(range)
            .map(|key| self.sectors.get(&key).unwrap_or(&zero).clone())
            .collect();
        let states: Vec<SectorState> = found.iter().map(|(state, _)| *state).collect();
        let all_zero = states.iter().all(|s| s.flags & SectorState::ZERO != 0);
        let bytes = found.into_iter().flat_map(|(_, data)| data).collect();
        let data = if all_zero {
            ReadData::Zeroes
        } else {
            ReadData::Buffer(bytes)
        };
        (states, data)
    }

    fn run(&mut self, request: StoreRequest<Vec<u8>>) -> StoreReply<Vec<u8>> {
        let mut applied = 0;
        match request {
            StoreRequest::Read(range) => {
                let (states, data) = self.read(&range);
                let bad = states.iter().position(|s| s.flags & SectorState::BAD != 0);
                if let Some(at) = bad {
                    return StoreReply::Failed {
                        status: Status::BadCrc,
                        sector: SectorInChunk(range.sector.0 + at as u16),
                    };
                }
                let crcs = states.iter().map(|state| state.crc).collect();
                let versions = states.iter().map(|state| state.version).collect();
                return StoreReply::Read {
                    versions,
                    crcs,
                    data,
                };
            }
            StoreRequest::ReadVersioned(range) => {
                let (states, data) = self.read(&range);
                return StoreReply::ReadVersioned { states, data };
            }
            StoreRequest::List(range) | StoreRequest::Verify(range) => {
                let held = |key| self.sectors.get(&key).map(|(state, _)| *state);
                let states =
                    Self::keys(&range).map(|key| held(key).unwrap_or(SectorState::UNWRITTEN));
                return StoreReply::List(states.collect());
            }
            StoreRequest::Write {
                range,
                version,
                crcs,
                data,
                ..
            } => {
                for ((key, crc), bytes) in
                    Self::keys(&range).zip(crcs).zip(data.chunks(SECTOR_BYTES))
                {
                    let held = self.sectors.get(&key).map(|(state, _)| state.version);
                    if held.is_none_or(|held| held < version) {
                        let flags = 0;
                        let state = SectorState {
                            version,
                            crc,
                            flags,
                        };
                        self.sectors.insert(key, (state, bytes.to_vec()));
                        applied += 1;
                    }
                }
            }
            StoreRequest::Zero { range, version, .. } => {
                for key in Self::keys(&range) {
                    let state = SectorState {
                        version,
                        ..SectorState::UNWRITTEN
                    };
                    self.sectors.insert(key, (state, vec![0; SECTOR_BYTES]));
                    applied += 1;
                }
            }
            StoreRequest::Put {
                range,
                states,
                data,
                admit,
                ..
            } => {
                if let Some(status) = self.fail_puts {
                    let sector = range.sector;
                    return StoreReply::Failed { status, sector };
                }
                assert_eq!(states.len(), usize::from(range.count));
                for (at, (key, new)) in Self::keys(&range).zip(&states).enumerate() {
                    let may_be_bad = matches!(admit, PutRule::MirrorBad(_));
                    let is_bad = new.flags & SectorState::BAD != 0;
                    assert!(may_be_bad || !is_bad, "a bad sector was put");
                    let held = self.sectors.get(&key).map(|(state, _)| *state);
                    let held = held.unwrap_or(SectorState::UNWRITTEN);
                    let bad = held.flags & SectorState::BAD != 0;
                    let adopted = held.flags & SectorState::ADOPTED != 0;
                    let wins = match admit {
                        PutRule::Newer => {
                            new.version > held.version
                                || bad
                                || (adopted && new.version == held.version)
                        }
                        PutRule::Repair => {
                            new.version > held.version
                                || ((bad || adopted) && new.version == held.version)
                        }
                        PutRule::MirrorBad(ceiling) if new.flags & SectorState::BAD != 0 => {
                            held.version <= ceiling && held.version != new.version
                        }
                        PutRule::Mirror(ceiling) | PutRule::MirrorBad(ceiling) => {
                            held.version <= ceiling && !held.same(new)
                        }
                    };
                    if wins {
                        let bytes = match &data {
                            Some(data) if new.flags & SectorState::ZERO == 0 => {
                                data[at * SECTOR_BYTES..][..SECTOR_BYTES].to_vec()
                            }
                            _ => {
                                assert_ne!(new.flags & SectorState::ZERO, 0, "no data");
                                vec![0; SECTOR_BYTES]
                            }
                        };
                        self.sectors.insert(key, (*new, bytes));
                        applied += 1;
                    }
                }
            }
            StoreRequest::Fence {
                volume,
                token,
                generation,
            }
            | StoreRequest::Adopt {
                volume,
                token,
                generation,
            } => self.record(volume, token, generation),
            StoreRequest::Release {
                volume,
                token,
                generation,
                ranges,
            } => {
                self.record(volume, token, generation);
                for range in ranges {
                    self.tombstones.push((generation, range.start.0));
                    let gone = range.start.0..range.start.0 + range.count;
                    self.sectors
                        .retain(|(v, chunk, _), _| *v != volume || !gone.contains(&chunk.0));
                }
            }
            StoreRequest::DeleteVolume { volume } => {
                self.sectors.retain(|(v, _, _), _| *v != volume);
            }
            StoreRequest::Flush => {}
        }
        StoreReply::Done { applied }
    }

    fn record(&mut self, volume: VolumeId, token: Token, generation: Generation) {
        let fence = self.fences.entry(volume).or_default();
        fence.token = fence.token.max(token);
        fence.generation = fence.generation.max(generation);
    }
}

impl StoreView for FakeStore {
    fn fence(&self, volume: VolumeId) -> Option<Fence> {
        self.fences.get(&volume).copied()
    }

    fn open_intents(
        &self,
        _: VolumeId,
        start: ChunkIndex,
        limit: usize,
    ) -> (Vec<ChunkIndex>, bool) {
        let all = self.intents.iter().copied().filter(|chunk| *chunk >= start);
        let list: Vec<_> = all.clone().take(limit).collect();
        let more = all.count() > list.len();
        (list, more)
    }

    fn written_since(
        &self,
        _: VolumeId,
        since: Generation,
        start: ChunkIndex,
        _: usize,
    ) -> (Vec<ChunkIndex>, bool) {
        (vec![ChunkIndex(start.0 + since.0)], false)
    }

    fn inventory(&self, after: VolumeId, _: usize) -> (Vec<InventoryEntry>, bool) {
        let entry = InventoryEntry {
            volume: super::VOLUME,
            slots: 1,
            token: Token(1),
        };
        let found = (after < super::VOLUME).then_some(entry);
        (found.into_iter().collect(), false)
    }

    fn settled(&mut self, _: VolumeId, token: Token, seq: Seq) {
        self.settled = Some((token, seq));
    }

    fn settled_up_to(&self, _: VolumeId) -> Version {
        self.settled
            .map_or(Version::ZERO, |(token, seq)| Version::new(token, seq))
    }

    fn resumed(&mut self, _: VolumeId, token: Token, seq: Seq) {
        self.resumed = Some((token, seq));
    }

    fn slots(&self) -> (u64, u64) {
        (1, 2)
    }
}

impl Storage<Vec<u8>> for FakeStore {
    fn tick(&mut self) {}

    fn submit(
        &mut self,
        op: OpId,
        request: StoreRequest<Vec<u8>>,
        out: &mut Vec<StoreAction<Vec<u8>>>,
    ) {
        self.submitted_since_turn_end = true;
        if self.hold {
            self.held.push((op, request));
        } else {
            let reply = self.run(request);
            out.push(StoreAction::Reply(op, reply));
        }
    }

    fn disk_done(&mut self, _: IoId, _: DiskResult<Vec<u8>>, out: &mut Vec<StoreAction<Vec<u8>>>) {
        // Tests release what is held by a device completion.
        self.hold = false;
        self.release(out);
    }

    fn turn_end(&mut self, _: &mut Vec<StoreAction<Vec<u8>>>) {
        self.submitted_since_turn_end = false;
    }

    fn background(&mut self, _: &mut Vec<StoreAction<Vec<u8>>>) {
        self.backgrounds += 1;
    }

    fn close(&mut self, _: &mut Vec<StoreAction<Vec<u8>>>) {
        assert!(
            !self.submitted_since_turn_end,
            "a request was never committed"
        );
        assert!(self.held.is_empty(), "closed with requests in flight");
        self.closed = true;
    }

    fn closed(&self) -> Option<bool> {
        self.closed.then_some(true)
    }

    fn add_stats(&self, stats: &mut ShardStats) {
        (stats.slots_used, stats.slots_total) = self.slots();
    }
}
