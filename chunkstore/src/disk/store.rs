//! The store of one shard as a state machine.

use super::api::{Disk, DiskError, DiskResult, Fence, IoId, OpId, StoreAction, StoreReply, StoreRequest, StoreView};
use super::layout::ShardPlace;
use std::marker::PhantomData;
use ukai_proto::message::InventoryEntry;
use ukai_proto::{Buffer, ChunkIndex, Generation, SectorInChunk, Seq, Status, Token, VolumeId};

/// Bounds of a store's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreLimits {
    /// Bytes of cached pages (each covers one slot of 1 MiB): 16 MiB keep the states of 4 GiB at hand.
    pub page_cache_bytes: usize,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { page_cache_bytes: 16 << 20 }
    }
}

/// What opening a shard found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecoveryReport {
    /// The shard was stopped cleanly.
    pub clean: bool,
    /// Log blocks replayed.
    pub blocks_replayed: u64,
    /// Log records replayed.
    pub records_replayed: u64,
    /// Chunks with open intents.
    pub intents_open: u64,
    /// Slots that will be settled on first touch.
    pub slots_suspect: u64,
    /// Sectors whose newest record's data was lost with the power: an older version is the truth.
    pub sectors_reverted: u64,
    /// Sectors whose record was lost: their content was adopted.
    pub sectors_adopted: u64,
    /// Sectors that could not be read.
    pub sectors_bad: u64,
}

/// Why a shard cannot be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// The device failed.
    #[error("read or write the shard: {0}")]
    Device(#[from] DiskError),
    /// No valid superblock: not formatted, or another node's.
    #[error("no valid superblock of this node's shard: format the node, or check the path")]
    NotFormatted,
    /// Formatted by another version.
    #[error("disk format version {found}, this program reads version {expected}")]
    WrongVersion {
        /// On disk.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// A structure is damaged in a way that a crash cannot explain.
    #[error("{what} is damaged at byte {position}: the device returned wrong data; format the node again and let it resynchronise")]
    Damaged {
        /// Which structure.
        what: &'static str,
        /// Where.
        position: u64,
    },
    /// The device is smaller than the shard.
    #[error("the device has {actual} bytes, the shard needs {needed}")]
    TooSmall {
        /// Needed.
        needed: u64,
        /// There.
        actual: u64,
    },
}

/// Counters and gauges of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreStats {
    /// Chunks with an open intent.
    pub intents_open: u64,
    /// Metadata log bytes written.
    pub log_bytes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Sectors found not to match their checksum, or unreadable.
    pub bad_sectors: u64,
    /// Slots waiting to be settled.
    pub slots_suspect: u64,
    /// Requests in flight.
    pub requests: u64,
}

/// The store.
#[derive(Debug)]
pub struct Store<B> {
    _b: PhantomData<B>,
}

impl<B: Buffer> Store<B> {
    /// Recover the shard and make it ready.
    pub fn open(_disk: &mut dyn Disk, _place: &ShardPlace, _limits: StoreLimits) -> Result<(Self, RecoveryReport), OpenError> {
        Err(OpenError::NotFormatted)
    }

    /// A request. Replies may be emitted at once or by a later call.
    pub fn submit(&mut self, op: OpId, _request: StoreRequest<B>, out: &mut Vec<StoreAction<B>>) {
        out.push(StoreAction::Reply(op, StoreReply::Failed { status: Status::Stopping, sector: SectorInChunk(0) }));
    }

    /// A device operation ended.
    pub fn disk_done(&mut self, _io: IoId, _result: DiskResult<B>, _out: &mut Vec<StoreAction<B>>) {}

    /// After a batch of events: emits the group-committed log write, starts checkpoints.
    pub fn turn_end(&mut self, _out: &mut Vec<StoreAction<B>>) {}

    /// When idle: one step of sweeping suspect slots. `true` if there is more to do.
    pub fn background(&mut self, _out: &mut Vec<StoreAction<B>>) -> bool {
        false
    }

    /// Clean stop: new requests are refused with Stopping, those in flight finish, then a checkpoint.
    /// [`Store::closed`] tells when all is on disk. Call `turn_end` after it as after any event.
    pub fn close(&mut self, _out: &mut Vec<StoreAction<B>>) {}

    /// The clean stop is complete (or the store is poisoned and nothing is in flight).
    #[must_use]
    pub fn closed(&self) -> bool {
        true
    }

    /// A log write or flush failed; every later write and flush is refused.
    #[must_use]
    pub fn poisoned(&self) -> bool {
        false
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats::default()
    }
}

impl<B> StoreView for Store<B> {
    fn fence(&self, _volume: VolumeId) -> Option<Fence> {
        None
    }
    fn open_intents(&self, _volume: VolumeId, _start: ChunkIndex, _limit: usize) -> (Vec<ChunkIndex>, bool) {
        (Vec::new(), false)
    }
    fn written_since(&self, _volume: VolumeId, _since: Generation, _start: ChunkIndex, _limit: usize) -> (Vec<ChunkIndex>, bool) {
        (Vec::new(), false)
    }
    fn inventory(&self, _after: VolumeId, _limit: usize) -> (Vec<InventoryEntry>, bool) {
        (Vec::new(), false)
    }
    fn settled(&mut self, _volume: VolumeId, _token: Token, _seq: Seq) {}
    fn slots(&self) -> (u64, u64) {
        (0, 0)
    }
}
