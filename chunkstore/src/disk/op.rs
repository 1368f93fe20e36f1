//! A request inside the store.

use super::api::{Fence, OpId, PutRule, SectorRange, StoreRequest};
use super::hole::SlotKey;
use super::layout::{BLOCK_BYTES_U32, SLOT_SECTORS_U16};
use ukai_proto::limits::SEQ_MAX;
use ukai_proto::message::{CHUNK_RANGES_MAX, ChunkRange, SectorState};
use ukai_proto::{Buffer, Generation, SectorInChunk, Status, Version, VolumeId};

/// Sectors inside one slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) key: SlotKey,
    pub(super) first: u8,
    /// 1..=256, not beyond the slot.
    pub(super) count: u16,
}

impl Span {
    fn new(range: &SectorRange) -> Option<Self> {
        let first = range.sector.0 % SLOT_SECTORS_U16;
        let inside = range.count > 0 && first + range.count.min(512) <= SLOT_SECTORS_U16;
        inside.then(|| Self {
            key: SlotKey {
                volume: range.volume,
                chunk: range.chunk,
                index: u8::try_from(range.sector.0 / SLOT_SECTORS_U16).expect("u16 / 256"),
            },
            first: u8::try_from(first).expect("below 256"),
            count: range.count,
        })
    }

    pub(super) fn last(&self) -> u8 {
        u8::try_from(u16::from(self.first) + self.count - 1).expect("inside the slot")
    }

    pub(super) fn sectors(&self) -> std::ops::RangeInclusive<u8> {
        self.first..=self.last()
    }

    pub(super) fn bytes(&self) -> u32 {
        u32::from(self.count) * BLOCK_BYTES_U32
    }

    /// The sector's number inside the chunk.
    pub(super) fn in_chunk(&self, sector: u8) -> SectorInChunk {
        SectorInChunk(u16::from(self.key.index) * SLOT_SECTORS_U16 + u16::from(sector))
    }
}

/// A read of which sectors are read again, one by one: it failed, or they did not match.
#[derive(Debug)]
pub(super) struct Again {
    /// What was found, sector by sector.
    pub(super) data: Vec<u8>,
    /// The answer, if there is no better one.
    pub(super) status: Status,
    /// Sectors that did not match again.
    pub(super) bad: Vec<u8>,
}

impl Again {
    pub(super) fn new(data: Vec<u8>, status: Status) -> Self {
        let bad = Vec::new();
        Self { data, status, bad }
    }
}

/// What a request wants.
#[derive(Debug)]
pub(super) enum Kind<B> {
    Read {
        span: Span,
        versioned: bool,
        /// The states are all that is wanted, and nobody is in a hurry.
        verify: bool,
        states: Vec<SectorState>,
        again: Option<Again>,
    },
    List {
        span: Span,
    },
    Write {
        span: Span,
        version: Version,
        generation: Generation,
        crcs: Vec<u32>,
        data: Option<B>,
        fua: bool,
    },
    Zero {
        span: Span,
        version: Version,
        generation: Generation,
        unmap: bool,
        fua: bool,
    },
    Put {
        span: Span,
        states: Vec<SectorState>,
        data: Option<B>,
        generation: Generation,
        rule: PutRule,
    },
    Flush,
    Fence {
        volume: VolumeId,
        fence: Fence,
    },
    Adopt {
        volume: VolumeId,
        fence: Fence,
    },
    Release {
        volume: VolumeId,
        fence: Option<Fence>,
        ranges: Vec<ChunkRange>,
    },
}

impl<B: Buffer> Kind<B> {
    /// Checks a request. `None`: it makes no sense.
    pub(super) fn new(request: StoreRequest<B>) -> Option<Self> {
        Some(match request {
            StoreRequest::Read(range) | StoreRequest::ReadVersioned(range)
                if Span::new(&range).is_none() =>
            {
                return None;
            }
            StoreRequest::Read(range) => Self::Read {
                span: Span::new(&range)?,
                versioned: false,
                verify: false,
                states: Vec::new(),
                again: None,
            },
            StoreRequest::ReadVersioned(range) => Self::Read {
                span: Span::new(&range)?,
                versioned: true,
                verify: false,
                states: Vec::new(),
                again: None,
            },
            StoreRequest::Verify(range) => Self::Read {
                span: Span::new(&range)?,
                versioned: true,
                verify: true,
                states: Vec::new(),
                again: None,
            },
            StoreRequest::List(range) => Self::List {
                span: Span::new(&range)?,
            },
            StoreRequest::Write {
                range,
                version,
                generation,
                crcs,
                data,
                fua,
            } => {
                let span = Span::new(&range)?;
                let sane = crcs.len() == usize::from(span.count)
                    && data.as_slice().len() == span.bytes() as usize
                    && sane_version(version);
                sane.then_some(Self::Write {
                    span,
                    version,
                    generation,
                    crcs,
                    data: Some(data),
                    fua,
                })?
            }
            StoreRequest::Zero {
                range,
                version,
                generation,
                unmap,
                fua,
            } => {
                let span = Span::new(&range)?;
                sane_version(version).then_some(Self::Zero {
                    span,
                    version,
                    generation,
                    unmap,
                    fua,
                })?
            }
            StoreRequest::Put {
                range,
                states,
                data,
                generation,
                admit,
            } => {
                let span = Span::new(&range)?;
                let all_zero = states
                    .iter()
                    .all(|state| state.flags & SectorState::ZERO != 0);
                let bytes = data.as_ref().map_or(0, |data| data.as_slice().len());
                let sane = states.len() == usize::from(span.count)
                    && (bytes == span.bytes() as usize || (data.is_none() && all_zero))
                    && states.iter().all(|state| state.version.seq.0 <= SEQ_MAX);
                sane.then_some(Self::Put {
                    span,
                    states,
                    data,
                    generation,
                    rule: admit,
                })?
            }
            StoreRequest::Flush => Self::Flush,
            StoreRequest::Fence {
                volume,
                token,
                generation,
            } => Self::Fence {
                volume,
                fence: Fence { token, generation },
            },
            StoreRequest::Adopt {
                volume,
                token,
                generation,
            } => Self::Adopt {
                volume,
                fence: Fence { token, generation },
            },
            StoreRequest::Release {
                volume,
                token,
                generation,
                ranges,
            } => {
                let fence = Some(Fence { token, generation });
                (ranges.len() <= CHUNK_RANGES_MAX).then_some(Self::Release {
                    volume,
                    fence,
                    ranges,
                })?
            }
            StoreRequest::DeleteVolume { volume } => {
                let all = ChunkRange {
                    start: ukai_proto::ChunkIndex(0),
                    count: u32::MAX,
                };
                Self::Release {
                    volume,
                    fence: None,
                    ranges: vec![all],
                }
            }
        })
    }
}

impl<B> Kind<B> {
    pub(super) fn span(&self) -> Option<Span> {
        match self {
            Self::Read { span, .. }
            | Self::List { span }
            | Self::Write { span, .. }
            | Self::Zero { span, .. }
            | Self::Put { span, .. } => Some(*span),
            _ => None,
        }
    }

    /// Does it change anything?
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::List { .. })
    }

    /// The volume whose order it keeps, and whether it runs alone there.
    pub(super) fn gate(&self) -> Option<(VolumeId, bool)> {
        match self {
            Self::Fence { volume, .. } | Self::Release { volume, .. } => Some((*volume, true)),
            Self::Flush | Self::Adopt { .. } => None,
            _ => self.span().map(|span| (span.key.volume, false)),
        }
    }
}

fn sane_version(version: Version) -> bool {
    version.seq.0 <= SEQ_MAX && version > Version::ZERO
}

/// See the marker rule in `marker.rs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Needs {
    /// The groups between which the sectors were first written over zeros; (0, 0): they were not.
    pub(super) fresh: (u64, u64),
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Op<B> {
    pub(super) id: OpId,
    pub(super) kind: Kind<B>,
    /// It passed its volume's gate.
    pub(super) entered: bool,
    /// It waits for, or holds, its sectors.
    pub(super) claimed: bool,
    /// It holds its sectors.
    pub(super) started: bool,
    /// Its effect is made: what remains is waiting.
    pub(super) executed: bool,
    /// Marks of the log that must be told before it may overwrite what it found: set once, because the
    /// sectors it holds cannot change any more while others of the slot do.
    pub(super) needs: Option<Needs>,
    /// Device operations under way for it.
    pub(super) ios: u32,
    /// Its records are as safe as it asked.
    pub(super) log_ok: bool,
    pub(super) applied: u16,
    pub(super) failure: Option<(Status, SectorInChunk)>,
}

impl<B> Op<B> {
    pub(super) fn new(id: OpId, kind: Kind<B>) -> Self {
        Self {
            id,
            kind,
            entered: false,
            claimed: false,
            started: false,
            executed: false,
            needs: None,
            ios: 0,
            log_ok: false,
            applied: 0,
            failure: None,
        }
    }
}

/// A device operation under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Io {
    /// Blocks of a group.
    Log {
        group: u64,
    },
    /// Data of a request.
    Data {
        op: u64,
        group: u64,
        first: u8,
        count: u16,
    },
    /// What a read asked for.
    Read {
        op: u64,
    },
    /// One sector of a read whose whole failed.
    ReadSector {
        op: u64,
        sector: u8,
    },
    /// A page of the table.
    Page {
        slot: super::layout::SlotIndex,
    },
    Sync,
    /// Pages of the checkpoint.
    InPlace,
    Superblock,
    /// The superblock of a poisoned shard.
    Disown,
    Punch {
        slot: super::layout::SlotIndex,
    },
    /// A whole slot to be settled.
    Settle {
        key: SlotKey,
    },
    SettleSector {
        key: SlotKey,
        sector: u8,
    },
}

/// Who waits for a mark of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiter {
    /// A request whose effect is made.
    Op(u64),
    /// Requests waiting for an intent.
    Intent(VolumeId, ukai_proto::ChunkIndex),
    Checkpoint,
}
