//! What a store tells about itself: its opening, its failures to open, its counters.

use super::api::DiskError;

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
    #[error(
        "{what} damaged at byte {position}, which no crash explains: the device returned wrong data; \
         format the node again and let it resynchronise"
    )]
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
