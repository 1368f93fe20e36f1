//! Every size and bound that both ends of the wire agree on, each with its reason.

/// The unit of checksum, version and atomicity, and the logical block size of a volume.
pub const SECTOR_BYTES: usize = 4096;
/// The unit of space allocation on a node: one page of sector metadata (4 KiB) describes one slot.
pub const SLOT_BYTES: usize = 1 << 20;
/// Sectors in a slot.
pub const SLOT_SECTORS: usize = SLOT_BYTES / SECTOR_BYTES;
/// Smallest chunk: one slot.
pub const CHUNK_BYTES_MIN: u64 = 1 << 20;
/// Largest chunk: keeps a chunk's sector index inside 16 bits with room to spare.
pub const CHUNK_BYTES_MAX: u64 = 64 << 20;
/// Chunk size of a volume that does not say otherwise.
pub const CHUNK_BYTES_DEFAULT: u64 = 4 << 20;
/// Sectors in one data frame. A data frame never crosses a slot, so a node maps it to one disk I/O.
pub const FRAME_SECTORS_MAX: usize = SLOT_SECTORS;
/// Bytes of payload in one data frame.
pub const FRAME_DATA_BYTES_MAX: usize = FRAME_SECTORS_MAX * SECTOR_BYTES;
/// Everything on the wire is a multiple of this, which keeps payloads and tables aligned in buffers.
pub const WIRE_UNIT_BYTES: usize = 64;
/// Size of the fixed header.
pub const HEADER_BYTES: usize = 64;
/// Largest auxiliary section: 16 Ki chunk numbers or 4 Ki sector states fit; bounds a peer's allocation.
pub const AUX_BYTES_MAX: usize = 64 << 10;
/// Chunk numbers in one list reply (`WRITTEN_SINCE`, open intents); longer lists are paged.
pub const CHUNK_LIST_MAX: usize = (AUX_BYTES_MAX - 64) / 4;
/// Largest frame a peer may send.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + AUX_BYTES_MAX + FRAME_DATA_BYTES_MAX;
/// Requests a front keeps in flight on one connection; a node answers `Busy` above it.
/// 4 x the deepest queue (256) of a lane, so that pieces of split requests fit.
pub const CONN_REQUESTS_MAX: usize = 1024;
/// Payload bytes in flight on one connection, in either direction (admission at the node).
pub const CONN_BYTES_MAX: usize = 64 << 20;
/// Largest value of a sequence number: versions keep 48 bits of it on disk.
/// At one million writes per second one token lasts nine years.
pub const SEQ_MAX: u64 = (1 << 48) - 1;
/// Replicas of one chunk (all states together): three copies and one on the move, doubled.
pub const REPLICAS_MAX: usize = 8;
/// Shards of one node.
pub const SHARDS_MAX: usize = 256;
/// Largest volume: 2^26 chunks would fit the map; 1 PiB keeps every index inside `u32`.
pub const VOLUME_BYTES_MAX: u64 = 1 << 50;

const _: () = assert!(SLOT_BYTES.is_multiple_of(SECTOR_BYTES));
const _: () = assert!(CHUNK_BYTES_MIN == SLOT_BYTES as u64);
const _: () = assert!(CHUNK_BYTES_MAX / SECTOR_BYTES as u64 <= u16::MAX as u64);
const _: () = assert!(AUX_BYTES_MAX.is_multiple_of(WIRE_UNIT_BYTES));
const _: () = assert!(AUX_BYTES_MAX / WIRE_UNIT_BYTES <= u16::MAX as usize);
const _: () = assert!(FRAME_SECTORS_MAX <= u16::MAX as usize);
const _: () = assert!(VOLUME_BYTES_MAX / CHUNK_BYTES_MIN <= u32::MAX as u64);
const _: () = assert!(8 + FRAME_SECTORS_MAX * 4 <= AUX_BYTES_MAX);
const _: () = assert!(8 + FRAME_SECTORS_MAX * 16 <= AUX_BYTES_MAX);
