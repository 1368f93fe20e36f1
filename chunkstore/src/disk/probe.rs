//! Each structure of the disk by itself, for fuzzers: bytes in, and, if they are accepted, the bytes that
//! this program would write for what it read.

use super::format::{NodeError, NodeSuperblock};
use super::hole;
use super::layout::{BLOCK_BYTES, PageIndex, ShardPlace};
use super::log::{LogBuffer, read_block};
use super::page::{self, Page, PageCheck};
use super::store::OpenError;
use super::superblock::ShardSuperblock;

/// A node superblock.
pub fn node_superblock(bytes: &[u8; BLOCK_BYTES]) -> Result<Vec<u8>, NodeError> {
    NodeSuperblock::decode(bytes).map(|block| block.encode())
}

/// A shard superblock; `None`: not this shard's.
pub fn shard_superblock(
    bytes: &[u8; BLOCK_BYTES],
    place: &ShardPlace,
) -> Result<Option<Vec<u8>>, OpenError> {
    Ok(ShardSuperblock::decode(bytes, place)?.map(|block| block.encode(place)))
}

/// A block of the log with records.
#[must_use]
pub fn log_block(
    bytes: &[u8; BLOCK_BYTES],
    place: &ShardPlace,
    epoch: u64,
    number: u64,
) -> Option<Vec<u8>> {
    let block = read_block(bytes, place, epoch, number)?;
    let mut buffer = LogBuffer::new(number);
    buffer.touch();
    for record in &block.records {
        buffer.append(record);
    }
    Some(buffer.seal(place, epoch, block.marks).0)
}

/// A page of a slot, free or not, or of holes.
#[must_use]
pub fn page(bytes: &[u8; BLOCK_BYTES], place: &ShardPlace, page: PageIndex) -> Option<Vec<u8>> {
    let PageCheck::Valid(head) = page::check(bytes, place, page) else {
        return None;
    };
    match head.kind {
        page::KIND_SLOT => Some(Page::from_image(bytes).image(place, page, head.lsn)),
        page::KIND_FREE => Some(page::free_image(place, page, head.lsn)),
        _ => {
            let holes = hole::decode_page(bytes, &head)?;
            let entries = holes.iter().map(Option::as_ref);
            Some(hole::encode_page(place, page, head.lsn, entries))
        }
    }
}
