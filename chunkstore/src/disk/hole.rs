//! A slot's worth of zeros that takes no slot: what a discard leaves behind.
//!
//! Discards and write-zeroes are versioned writes (I6): a late copy of older data must not come back. A
//! hole keeps the versions of 256 zeroed or never written sectors as at most [`RUNS_MAX`] runs; what
//! does not fit keeps its slot.

use super::codec::{Put, Reader};
use super::layout::{BLOCK_BYTES, HOLES_PER_PAGE, PageIndex, ShardPlace};
use super::page::{self, PageHead};
use ukai_proto::crc::ZERO_SECTOR_CRC;
use ukai_proto::limits::SLOT_SECTORS;
use ukai_proto::message::SectorState;
use ukai_proto::{ChunkIndex, Generation, Version, VolumeId};

/// Runs of one hole: never written, zeroed, never written is the usual shape of a partial discard.
pub(super) const RUNS_MAX: usize = 3;
/// Bytes of a hole in its page.
const HOLE_BYTES: usize = 72;
const HEAD_BYTES: usize = 64;

const _: () = assert!(HEAD_BYTES + HOLE_BYTES * HOLES_PER_PAGE as usize <= BLOCK_BYTES);

/// Which slot-sized piece of which chunk of which volume.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct SlotKey {
    pub(super) volume: VolumeId,
    pub(super) chunk: ChunkIndex,
    /// Slot-sized piece of the chunk: sector in chunk / 256.
    pub(super) index: u8,
}

/// A hole of the shard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct HoleIndex(pub(super) u32);

impl HoleIndex {
    /// The page that describes it, after the `slots` pages of the slots.
    pub(super) fn page(self, slots: u32) -> PageIndex {
        PageIndex(slots + self.0 / HOLES_PER_PAGE)
    }
}

/// Versions of 256 sectors of zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hole {
    pub(super) generation: Generation,
    /// (first sector, version), ascending, the first at sector 0; only `run_count` count.
    runs: [(u8, Version); RUNS_MAX],
    run_count: u8,
}

impl Hole {
    /// The hole that has these states, if it can be one: zeros only, few runs.
    pub(super) fn from_states(
        states: impl Iterator<Item = SectorState>,
        generation: Generation,
    ) -> Option<Self> {
        let mut hole = Self {
            generation,
            runs: [(0, Version::ZERO); RUNS_MAX],
            run_count: 0,
        };
        let mut last = None;
        for (sector, state) in (0u16..).zip(states) {
            if state.flags & SectorState::ZERO == 0 {
                return None;
            }
            if last != Some(state.version) {
                let run = hole.runs.get_mut(usize::from(hole.run_count))?;
                *run = (u8::try_from(sector).ok()?, state.version);
                hole.run_count += 1;
                last = Some(state.version);
            }
        }
        (hole.run_count > 0).then_some(hole)
    }

    /// State of a sector of it.
    pub(super) fn state(&self, sector: u8) -> SectorState {
        let version = self.runs[..usize::from(self.run_count)]
            .iter()
            .take_while(|(first, _)| *first <= sector)
            .last()
            .map_or(Version::ZERO, |(_, version)| *version);
        SectorState {
            version,
            crc: ZERO_SECTOR_CRC,
            flags: SectorState::ZERO,
        }
    }

    /// All states.
    pub(super) fn states(&self) -> impl Iterator<Item = SectorState> + '_ {
        (0..=u8::MAX).map(|sector| self.state(sector))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.generation.0);
        out.put_u8(self.run_count);
        for (first, version) in &self.runs[..usize::from(self.run_count)] {
            out.put_u8(*first);
            out.put_version(*version);
        }
    }

    pub(super) fn encoded_len(&self) -> usize {
        5 + 11 * usize::from(self.run_count)
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let generation = reader.generation()?;
        let run_count = reader.u8()?;
        let mut runs = [(0, Version::ZERO); RUNS_MAX];
        for index in 0..usize::from(run_count) {
            let first = reader.u8()?;
            let version = reader.version()?;
            let ascending = match index {
                0 => first == 0,
                _ => runs.get(index - 1)?.0 < first,
            };
            if !ascending {
                return None;
            }
            *runs.get_mut(index)? = (first, version);
        }
        (run_count > 0).then_some(Self {
            generation,
            runs,
            run_count,
        })
    }
}

/// A hole in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HoleEntry {
    pub(super) key: SlotKey,
    pub(super) hole: Hole,
    /// Block of the record that made it: tells whether a tombstone is newer.
    pub(super) block: u64,
}

const _: () = assert!(
    SLOT_SECTORS == 256,
    "hole runs and sector numbers inside a slot are u8"
);

/// One page's image.
pub(super) fn encode_page<'a>(
    place: &ShardPlace,
    page: PageIndex,
    lsn: u64,
    entries: impl Iterator<Item = Option<&'a HoleEntry>>,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    page::put_head(&mut out, place, page, lsn, page::KIND_HOLES);
    out.resize(HEAD_BYTES, 0);
    for (number, entry) in (1..).zip(entries) {
        if let Some(entry) = entry {
            out.put_u64(entry.block);
            out.put(&entry.key.volume.0);
            out.put_u32(entry.key.chunk.0);
            out.put_u8(entry.key.index);
            entry.hole.encode(&mut out);
        }
        out.resize(HEAD_BYTES + number * HOLE_BYTES, 0);
    }
    out.resize(BLOCK_BYTES, 0);
    page::seal(&mut out);
    out
}

/// The holes of a page whose head and checksum were found right. `None`: nonsense inside.
pub(super) fn decode_page(bytes: &[u8], head: &PageHead) -> Option<Vec<Option<HoleEntry>>> {
    assert_eq!(
        head.kind,
        page::KIND_HOLES,
        "page {:?} describes no holes",
        head.page
    );
    bytes
        .get(HEAD_BYTES..)?
        .chunks_exact(HOLE_BYTES)
        .take(HOLES_PER_PAGE as usize)
        .map(|bytes| {
            let mut reader = Reader(bytes);
            let block = reader.u64()?;
            if block == 0 {
                return Some(None);
            }
            let volume = reader.volume()?;
            let chunk = reader.chunk()?;
            let index = reader.u8()?;
            let hole = Hole::decode(&mut reader)?;
            Some(Some(HoleEntry {
                key: SlotKey {
                    volume,
                    chunk,
                    index,
                },
                hole,
                block,
            }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_proto::{Seq, Token};

    fn zero(seq: u64) -> SectorState {
        SectorState {
            version: Version::new(Token(1), Seq(seq)),
            ..SectorState::UNWRITTEN
        }
    }

    #[test]
    fn holes_keep_versions_in_few_runs_and_refuse_what_does_not_fit() {
        let mut states = vec![SectorState::UNWRITTEN; SLOT_SECTORS];
        states[10..20].fill(zero(7));
        let hole = Hole::from_states(states.iter().copied(), Generation(3)).expect("three runs");
        assert!(hole.states().eq(states.iter().copied()));
        let mut bytes = Vec::new();
        hole.encode(&mut bytes);
        assert_eq!(bytes.len(), hole.encoded_len());
        assert_eq!(Hole::decode(&mut Reader(&bytes)), Some(hole));
        states[30] = zero(8);
        assert_eq!(
            Hole::from_states(states.iter().copied(), Generation(3)),
            None
        );
        states[30] = SectorState {
            flags: 0,
            ..zero(8)
        };
        assert_eq!(
            Hole::from_states(states.iter().copied(), Generation(3)),
            None
        );
    }
}
