//! The records of the metadata log: type u8, length u16, body. None is larger than a block holds.

use super::codec::{Put, Reader, STATE_BYTES};
use super::hole::{Hole, HoleIndex, SlotKey};
use super::layout::{PageIndex, SlotIndex};
use super::log::BLOCK_ROOM;
use std::borrow::Cow;
use ukai_proto::limits::{SEQ_MAX, SLOT_SECTORS};
use ukai_proto::message::{ChunkRange, SectorState};
use ukai_proto::{ChunkIndex, Generation, Token, Version, VolumeId};

/// Type and length.
const HEAD_BYTES: usize = 3;
/// Pages that one PAGES record announces: 8 bytes each, and it shares its block with nothing.
pub(super) const PAGES_MAX: usize = 480;
const NO_HOLE: u32 = u32::MAX;

/// Sectors of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub(super) slot: SlotIndex,
    pub(super) first: u8,
    /// 1..=256, not beyond the slot.
    pub(super) count: u16,
}

impl Run {
    pub(super) fn sectors(&self) -> impl Iterator<Item = u8> + use<> {
        // `first + count <= 256` was checked when the run was made or decoded.
        (usize::from(self.first)..usize::from(self.first) + usize::from(self.count))
            .map(|sector| u8::try_from(sector).expect("a run ends inside its slot"))
    }

    fn sane(self) -> Option<Self> {
        let end = usize::from(self.first) + usize::from(self.count);
        (self.count > 0 && end <= SLOT_SECTORS).then_some(self)
    }
}

/// One record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Record<'a> {
    /// Data written in place.
    Write {
        run: Run,
        version: Version,
        generation: Generation,
        crcs: Cow<'a, [u32]>,
    },
    /// Versioned zeros in an allocated slot.
    Zero {
        run: Run,
        version: Version,
        generation: Generation,
    },
    /// Sectors with states of their own: copies, settled sectors.
    States {
        run: Run,
        generation: Generation,
        states: Cow<'a, [SectorState]>,
    },
    /// Sectors that cannot be used.
    Bad { run: Run },
    /// A slot gets an owner; its sectors start as the hole says, which is gone.
    Alloc {
        slot: SlotIndex,
        key: SlotKey,
        generation: Generation,
        hole: Option<(HoleIndex, Hole)>,
    },
    /// A slot loses its owner, leaving a hole or nothing.
    Free {
        slot: SlotIndex,
        hole: Option<(HoleIndex, SlotKey, Hole)>,
    },
    /// A hole is made or replaced.
    Hole {
        index: HoleIndex,
        key: SlotKey,
        hole: Hole,
    },
    /// A chunk may have data on disk that the log does not know. `suspect`: a crash
    /// before a clean stop may have lost records of it, and that is not settled yet.
    Open {
        volume: VolumeId,
        chunk: ChunkIndex,
        token: Token,
        suspect: bool,
    },
    /// No longer.
    Close { volume: VolumeId, chunk: ChunkIndex },
    /// A fence.
    Fence {
        volume: VolumeId,
        token: Token,
        generation: Generation,
    },
    /// Everything that the volume had in these chunks in blocks up to `origin` is deleted (0: the
    /// record's own block).
    Tombstone {
        volume: VolumeId,
        range: ChunkRange,
        generation: Generation,
        origin: u64,
    },
    /// The blocks after this one are images of these pages, which contain every record up to `lsn`.
    Pages {
        lsn: u64,
        pages: Cow<'a, [(PageIndex, u32)]>,
    },
}

impl Record<'_> {
    fn body_len(&self) -> usize {
        match self {
            Self::Write { crcs, .. } => 8 + 14 + crcs.len() * 4,
            Self::Zero { .. } => 8 + 14,
            Self::States { states, .. } => 8 + 4 + states.len() * STATE_BYTES,
            Self::Bad { .. } => 8,
            Self::Alloc { hole, .. } => {
                33 + hole.as_ref().map_or(0, |(_, hole)| hole.encoded_len())
            }
            Self::Free { hole, .. } => {
                8 + hole
                    .as_ref()
                    .map_or(0, |(_, _, hole)| 21 + hole.encoded_len())
            }
            Self::Hole { hole, .. } => 25 + hole.encoded_len(),
            Self::Open { .. } => 25,
            Self::Close { .. } => 20,
            Self::Fence { .. } => 24,
            Self::Tombstone { .. } => 36,
            Self::Pages { pages, .. } => 10 + pages.len() * 8,
        }
    }

    /// Bytes in the log.
    pub(super) fn encoded_len(&self) -> usize {
        HEAD_BYTES + self.body_len()
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Write { .. } => 1,
            Self::Zero { .. } => 2,
            Self::States { .. } => 3,
            Self::Bad { .. } => 4,
            Self::Alloc { .. } => 5,
            Self::Free { .. } => 6,
            Self::Hole { .. } => 7,
            Self::Open { .. } => 8,
            Self::Close { .. } => 9,
            Self::Fence { .. } => 10,
            Self::Tombstone { .. } => 11,
            Self::Pages { .. } => 12,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u8(self.kind());
        out.put_u16(u16::try_from(self.body_len()).expect("a record fits a block"));
        match self {
            Self::Write {
                run,
                version,
                generation,
                crcs,
            } => {
                put_run(out, run);
                out.put_version(*version);
                out.put_u32(generation.0);
                crcs.iter().for_each(|crc| out.put_u32(*crc));
            }
            Self::Zero {
                run,
                version,
                generation,
            } => {
                put_run(out, run);
                out.put_version(*version);
                out.put_u32(generation.0);
            }
            Self::States {
                run,
                generation,
                states,
            } => {
                put_run(out, run);
                out.put_u32(generation.0);
                states.iter().for_each(|state| out.put_state(state));
            }
            Self::Bad { run } => put_run(out, run),
            Self::Alloc {
                slot,
                key,
                generation,
                hole,
            } => {
                out.put_u32(slot.0);
                put_key(out, key);
                out.put_u32(generation.0);
                out.put_u32(hole.map_or(NO_HOLE, |(index, _)| index.0));
                if let Some((_, hole)) = hole {
                    hole.encode(out);
                }
            }
            Self::Free { slot, hole } => {
                out.put_u32(slot.0);
                out.put_u32(hole.map_or(NO_HOLE, |(index, ..)| index.0));
                if let Some((_, key, hole)) = hole {
                    put_key(out, key);
                    hole.encode(out);
                }
            }
            Self::Hole { index, key, hole } => {
                out.put_u32(index.0);
                put_key(out, key);
                hole.encode(out);
            }
            Self::Open {
                volume,
                chunk,
                token,
                suspect,
            } => {
                out.put(&volume.0);
                out.put_u32(chunk.0);
                out.put_u32(token.0);
                out.put_u8(u8::from(*suspect));
            }
            Self::Close { volume, chunk } => {
                out.put(&volume.0);
                out.put_u32(chunk.0);
            }
            Self::Fence {
                volume,
                token,
                generation,
            } => {
                out.put(&volume.0);
                out.put_u32(token.0);
                out.put_u32(generation.0);
            }
            Self::Tombstone {
                volume,
                range,
                generation,
                origin,
            } => {
                out.put(&volume.0);
                out.put_u32(range.start.0);
                out.put_u32(range.count);
                out.put_u32(generation.0);
                out.put_u64(*origin);
            }
            Self::Pages { lsn, pages } => {
                out.put_u64(*lsn);
                out.put_u16(u16::try_from(pages.len()).expect("at most PAGES_MAX"));
                for (page, crc) in pages.iter() {
                    out.put_u32(page.0);
                    out.put_u32(*crc);
                }
            }
        }
        let written = out.len() - start;
        assert_eq!(
            written,
            self.encoded_len(),
            "length of record kind {}",
            self.kind()
        );
        assert!(
            written <= BLOCK_ROOM,
            "record of {written} bytes does not fit a block"
        );
    }

    /// Takes one record off the reader. `None`: nonsense.
    pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Record<'static>> {
        let kind = reader.u8()?;
        let length = reader.u16()?;
        let mut body = Reader(reader.bytes(length.into())?);
        let record = Self::decode_body(kind, &mut body)?;
        body.0.is_empty().then_some(record)
    }

    fn decode_body(kind: u8, body: &mut Reader<'_>) -> Option<Record<'static>> {
        Some(match kind {
            1 => {
                let run = run(body)?;
                let version = body.version()?;
                let generation = body.generation()?;
                let crcs = (0..run.count).map(|_| body.u32()).collect::<Option<_>>()?;
                Record::Write {
                    run,
                    version,
                    generation,
                    crcs: Cow::Owned(crcs),
                }
            }
            2 => Record::Zero {
                run: run(body)?,
                version: body.version()?,
                generation: body.generation()?,
            },
            3 => {
                let run = run(body)?;
                let generation = body.generation()?;
                let states = (0..run.count)
                    .map(|_| body.state())
                    .collect::<Option<_>>()?;
                Record::States {
                    run,
                    generation,
                    states: Cow::Owned(states),
                }
            }
            4 => Record::Bad { run: run(body)? },
            5 => {
                let slot = SlotIndex(body.u32()?);
                let key = key(body)?;
                let generation = body.generation()?;
                let hole = match body.u32()? {
                    NO_HOLE => None,
                    index => Some((HoleIndex(index), Hole::decode(body)?)),
                };
                Record::Alloc {
                    slot,
                    key,
                    generation,
                    hole,
                }
            }
            6 => {
                let slot = SlotIndex(body.u32()?);
                let hole = match body.u32()? {
                    NO_HOLE => None,
                    index => Some((HoleIndex(index), key(body)?, Hole::decode(body)?)),
                };
                Record::Free { slot, hole }
            }
            7 => {
                let index = HoleIndex(body.u32()?);
                Record::Hole {
                    index,
                    key: key(body)?,
                    hole: Hole::decode(body)?,
                }
            }
            8 => Record::Open {
                volume: body.volume()?,
                chunk: body.chunk()?,
                token: Token(body.u32()?),
                suspect: body.u8()? != 0,
            },
            9 => Record::Close {
                volume: body.volume()?,
                chunk: body.chunk()?,
            },
            10 => Record::Fence {
                volume: body.volume()?,
                token: Token(body.u32()?),
                generation: body.generation()?,
            },
            11 => Record::Tombstone {
                volume: body.volume()?,
                range: ChunkRange {
                    start: body.chunk()?,
                    count: body.u32()?,
                },
                generation: body.generation()?,
                origin: body.u64()?,
            },
            12 => {
                let lsn = body.u64()?;
                let count = body.u16()?;
                let pages = (0..count)
                    .map(|_| Some((PageIndex(body.u32()?), body.u32()?)))
                    .collect::<Option<_>>()?;
                Record::Pages {
                    lsn,
                    pages: Cow::Owned(pages),
                }
            }
            _ => return None,
        })
    }
}

fn put_run(out: &mut Vec<u8>, run: &Run) {
    out.put_u32(run.slot.0);
    out.put_u16(run.first.into());
    out.put_u16(run.count);
}

fn run(body: &mut Reader<'_>) -> Option<Run> {
    let slot = SlotIndex(body.u32()?);
    let first = u8::try_from(body.u16()?).ok()?;
    let count = body.u16()?;
    Run { slot, first, count }.sane()
}

fn put_key(out: &mut Vec<u8>, key: &SlotKey) {
    out.put(&key.volume.0);
    out.put_u32(key.chunk.0);
    out.put_u8(key.index);
}

fn key(body: &mut Reader<'_>) -> Option<SlotKey> {
    Some(SlotKey {
        volume: body.volume()?,
        chunk: body.chunk()?,
        index: body.u8()?,
    })
}

const _: () = assert!(HEAD_BYTES + 12 + SLOT_SECTORS * STATE_BYTES <= BLOCK_ROOM);
const _: () = assert!(HEAD_BYTES + 22 + SLOT_SECTORS * 4 <= BLOCK_ROOM);
const _: () = assert!(HEAD_BYTES + 10 + PAGES_MAX * 8 <= BLOCK_ROOM);
const _: () = assert!(SEQ_MAX == (1 << 48) - 1);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ukai_proto::Seq;

    fn samples() -> Vec<Record<'static>> {
        let run = Run {
            slot: SlotIndex(9),
            first: 250,
            count: 6,
        };
        let version = Version::new(Token(4), Seq(77));
        let key = SlotKey {
            volume: VolumeId([3; 16]),
            chunk: ChunkIndex(8),
            index: 2,
        };
        let generation = Generation(5);
        let zero = SectorState {
            version,
            ..SectorState::UNWRITTEN
        };
        let hole = Hole::from_states(std::iter::repeat_n(zero, 256), generation).expect("one run");
        let (volume, chunk, token) = (key.volume, key.chunk, version.token);
        vec![
            Record::Write {
                run,
                version,
                generation,
                crcs: Cow::Owned(vec![1, 2, 3, 4, 5, 6]),
            },
            Record::Zero {
                run,
                version,
                generation,
            },
            Record::States {
                run,
                generation,
                states: Cow::Owned(vec![zero; 6]),
            },
            Record::Bad { run },
            Record::Alloc {
                slot: run.slot,
                key,
                generation,
                hole: None,
            },
            Record::Alloc {
                slot: run.slot,
                key,
                generation,
                hole: Some((HoleIndex(3), hole)),
            },
            Record::Free {
                slot: run.slot,
                hole: None,
            },
            Record::Free {
                slot: run.slot,
                hole: Some((HoleIndex(3), key, hole)),
            },
            Record::Hole {
                index: HoleIndex(7),
                key,
                hole,
            },
            Record::Open {
                volume,
                chunk,
                token,
                suspect: true,
            },
            Record::Close { volume, chunk },
            Record::Fence {
                volume,
                token,
                generation,
            },
            Record::Tombstone {
                volume,
                range: ChunkRange {
                    start: chunk,
                    count: 3,
                },
                generation,
                origin: 12,
            },
            Record::Pages {
                lsn: 99,
                pages: Cow::Owned(vec![(PageIndex(4), 0xabcd)]),
            },
        ]
    }

    #[test]
    fn records_round_trip_and_short_ones_are_refused() {
        for record in samples() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let mut reader = Reader(&bytes);
            assert_eq!(Record::decode(&mut reader), Some(record.clone()));
            assert!(reader.0.is_empty());
            for length in 0..bytes.len() {
                assert_eq!(
                    Record::decode(&mut Reader(&bytes[..length])),
                    None,
                    "{record:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in 0u8..14, body: Vec<u8>) {
            let mut bytes = vec![kind];
            bytes.put_u16(u16::try_from(body.len()).expect("short"));
            bytes.extend_from_slice(&body);
            if let Some(record) = Record::decode(&mut Reader(&bytes)) {
                let mut again = Vec::new();
                record.encode(&mut again);
                prop_assert_eq!(again.len(), bytes.len());
            }
        }
    }
}
