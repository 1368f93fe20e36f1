//! What the shard core asks of its store and what the store asks of the device.
//!
//! [`super::store::Store`] is a plain state machine: requests and device completions in, replies and device
//! operations out. Only format and recovery, which run before anything is served, use the blocking
//! [`Disk`] seam.

use ukai_proto::message::{ChunkRange, InventoryEntry, SectorState};
use ukai_proto::{ChunkIndex, Generation, SectorInChunk, Seq, Status, Token, Version, VolumeId};

/// Names a request at the store; chosen by the caller, unique while in flight.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct OpId(pub u64);

/// Names a device operation; chosen by the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct IoId(pub u64);

/// A range of sectors inside one slot of a chunk (LIST and the copy engine split longer ones).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SectorRange {
    /// Volume.
    pub volume: VolumeId,
    /// Chunk.
    pub chunk: ChunkIndex,
    /// First sector inside the chunk.
    pub sector: SectorInChunk,
    /// 1..=256, not crossing a slot.
    pub count: u16,
}

/// A request. The fence gate, admission and routing are the caller's.
#[derive(Debug)]
pub enum StoreRequest<B> {
    /// Read and verify.
    Read(SectorRange),
    /// Read with states; bad sectors are returned flagged, not refused.
    ReadVersioned(SectorRange),
    /// States only.
    List(SectorRange),
    /// Read, verify, and tell the states alone. In the background: see [`super::store::Store::in_background`].
    Verify(SectorRange),
    /// Put `data` if `version` is newer, sector by sector.
    Write {
        /// Where.
        range: SectorRange,
        /// (T, s).
        version: Version,
        /// For WRITTEN_SINCE.
        generation: Generation,
        /// Already verified against the data by the caller.
        crcs: Vec<u32>,
        /// `range.count` sectors.
        data: B,
        /// Durable before the reply.
        fua: bool,
    },
    /// Versioned zeros.
    Zero {
        /// Where.
        range: SectorRange,
        /// (T, s).
        version: Version,
        /// For WRITTEN_SINCE.
        generation: Generation,
        /// Give the space back.
        unmap: bool,
        /// Durable before the reply.
        fua: bool,
    },
    /// Put copied sectors with their source's states. Sector i is stored if `admit` lets it, judged
    /// at the moment of application against the state then held.
    Put {
        /// Where.
        range: SectorRange,
        /// The source's states, one per sector; ZERO flagged ones take no data.
        states: Vec<SectorState>,
        /// `range.count` sectors (content of ZERO flagged ones ignored); `None` if all are ZERO.
        data: Option<B>,
        /// Generation of the copy.
        generation: Generation,
        /// Which wins.
        admit: PutRule,
    },
    /// Everything of every volume completed before becomes durable.
    Flush,
    /// Wait for submitted disk writes of the volume's lower tokens, then record durably.
    Fence {
        /// Volume.
        volume: VolumeId,
        /// New token.
        token: Token,
        /// Generation.
        generation: Generation,
    },
    /// Record (token, generation) durably: ADOPT.
    Adopt {
        /// Volume.
        volume: VolumeId,
        /// Token.
        token: Token,
        /// Generation.
        generation: Generation,
    },
    /// Record the generation and tombstones durably, then delete: RELEASE.
    Release {
        /// Volume.
        volume: VolumeId,
        /// Token.
        token: Token,
        /// Generation without these replicas.
        generation: Generation,
        /// What to delete.
        ranges: Vec<ChunkRange>,
    },
    /// Delete all chunks of the volume; its fence record stays.
    DeleteVolume {
        /// Volume.
        volume: VolumeId,
    },
}

/// When a copied sector replaces the one held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutRule {
    /// The copy's version is higher, or the held one is BAD (or ADOPTED with the same version).
    Newer,
    /// The copy's version is higher, or the same and the held one is BAD (or ADOPTED).
    Repair,
    /// The held version is at or below the ceiling and differs.
    Mirror(Version),
    /// The same, and a copy that is bad makes this one bad.
    MirrorBad(Version),
}

impl PutRule {
    pub(super) fn is_mirror(self) -> bool {
        matches!(self, Self::Mirror(_) | Self::MirrorBad(_))
    }
}

/// Payload of a read reply.
#[derive(Debug)]
pub enum ReadData<B> {
    /// All zeros; nothing was read.
    Zeroes,
    /// As read from the device: exactly the range.
    Buffer(B),
    /// Assembled (partly unwritten ranges): exactly the range.
    Owned(Vec<u8>),
}

/// Outcome of a request.
#[derive(Debug)]
pub enum StoreReply<B> {
    /// READ.
    Read {
        /// Version of each sector; the last one of its token where the record was lost.
        versions: Vec<Version>,
        /// Checksum of each sector.
        crcs: Vec<u32>,
        /// Content.
        data: ReadData<B>,
    },
    /// READ_VERSIONED.
    ReadVersioned {
        /// State of each sector.
        states: Vec<SectorState>,
        /// Content.
        data: ReadData<B>,
    },
    /// LIST, and Verify.
    List(Vec<SectorState>),
    /// READ of content that was adopted and may be rot: not served as long as another replica can.
    Doubted {
        /// The first such sector.
        sector: SectorInChunk,
    },
    /// Everything else that went well. For `Put`: sectors that were applied.
    Done {
        /// Sectors applied (writes: newer ones; others 0).
        applied: u16,
    },
    /// It went wrong.
    Failed {
        /// Why.
        status: Status,
        /// First sector concerned (BadCrc, IoError).
        sector: SectorInChunk,
    },
}

/// Content of a device write.
#[derive(Debug)]
pub enum WriteData<B> {
    /// A whole payload buffer, as it came.
    Payload(B),
    /// Log blocks, pages, partial payloads: a multiple of 4096 bytes.
    Owned(Vec<u8>),
}

/// A device operation. Order among operations is only what completions impose.
#[derive(Debug)]
pub enum DiskOp<B> {
    /// Read `bytes` at `position` (both multiples of 4096, absolute in the file).
    Read {
        /// Id.
        io: IoId,
        /// Absolute position.
        position: u64,
        /// Length.
        bytes: u32,
    },
    /// Write at `position`. With `dsync` it is durable when it completes (RWF_DSYNC / O_DSYNC).
    Write {
        /// Id.
        io: IoId,
        /// Absolute position.
        position: u64,
        /// Content.
        data: WriteData<B>,
        /// Durable on completion.
        dsync: bool,
    },
    /// fdatasync: everything completed before is durable when it completes.
    Sync {
        /// Id.
        io: IoId,
    },
    /// Punch a hole / discard; advisory, result ignored by correctness.
    Punch {
        /// Id.
        io: IoId,
        /// Absolute position.
        position: u64,
        /// Length.
        bytes: u64,
    },
}

/// How a device operation ended.
#[derive(Debug)]
pub enum DiskResult<B> {
    /// A read of exactly the bytes asked for.
    Read(B),
    /// A write, sync or punch.
    Done,
    /// errno.
    Failed(i32),
}

/// What the store wants done.
#[derive(Debug)]
pub enum StoreAction<B> {
    /// Give to the device.
    Disk(DiskOp<B>),
    /// The request is finished.
    Reply(OpId, StoreReply<B>),
}

/// The blocking device seam of format and recovery. Five calls, positions absolute.
pub trait Disk {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Read exactly.
    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError>;
    /// Write exactly.
    fn write(&mut self, position: u64, data: &[u8]) -> Result<(), DiskError>;
    /// Everything written before is durable.
    fn sync(&mut self) -> Result<(), DiskError>;
    /// The range reads as anything; space may be given back.
    fn punch(&mut self, position: u64, bytes: u64) -> Result<(), DiskError>;
}

/// A device error: errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("device error {0}")]
pub struct DiskError(pub i32);

/// A volume's fence on a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fence {
    /// Highest token fenced; lower ones are refused.
    pub token: Token,
    /// Highest generation recorded; older ones are refused.
    pub generation: Generation,
}

/// Questions that the store answers from memory, without device I/O.
pub trait StoreView {
    /// The fence of a volume, if one was ever recorded.
    fn fence(&self, volume: VolumeId) -> Option<Fence>;
    /// Chunks of the volume with open intents, ascending, from `start` on, at most `limit`;
    /// `true` if there are more.
    fn open_intents(
        &self,
        volume: VolumeId,
        start: ChunkIndex,
        limit: usize,
    ) -> (Vec<ChunkIndex>, bool);
    /// Chunks last written under `since` or later, ascending, from `start` on, at most `limit`.
    fn written_since(
        &self,
        volume: VolumeId,
        since: Generation,
        start: ChunkIndex,
        limit: usize,
    ) -> (Vec<ChunkIndex>, bool);
    /// Volumes with chunks or fences here, ascending by id, after `after`.
    fn inventory(&self, after: VolumeId, limit: usize) -> (Vec<InventoryEntry>, bool);
    /// The front said that every replica has every write up to (token, seq).
    fn settled(&mut self, volume: VolumeId, token: Token, seq: Seq);
    /// Up to where that was said last.
    fn settled_up_to(&self, volume: VolumeId) -> Version;
    /// The front of `token` has fenced this run: all that it sent to earlier runs is at or below `seq`.
    fn resumed(&mut self, volume: VolumeId, token: Token, seq: Seq);
    /// (used, total) slots.
    fn slots(&self) -> (u64, u64);
}
