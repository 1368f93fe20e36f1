//! The log as found: blocks from the tail to the first gap.

use super::api::Disk;
use super::layout::{BLOCK_BYTES, Geometry, PageIndex, ShardPlace};
use super::log::{LogBlock, Marks, read_block};
use super::page::{self, PageCheck};
use super::record::Record;
use super::store::OpenError;
use super::superblock::ShardSuperblock;

/// Blocks read at once.
pub(super) const BATCH_BLOCKS: u64 = 256;

/// A page image in the log.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) page: PageIndex,
    pub(super) lsn: u64,
    /// The block it is in.
    pub(super) block: u64,
    pub(super) bytes: Vec<u8>,
}

/// The log from the tail to its first gap.
#[derive(Debug, Default)]
pub(super) struct LogScan {
    pub(super) blocks: Vec<(u64, LogBlock)>,
    pub(super) images: Vec<Image>,
    /// First block that is missing.
    pub(super) end: u64,
    /// The highest marks that some block tells.
    pub(super) marks: Marks,
}

/// Sequential reader of ring blocks.
struct Ring<'a> {
    disk: &'a mut dyn Disk,
    geometry: Geometry,
    first: u64,
    bytes: Vec<u8>,
}

impl Ring<'_> {
    fn block(&mut self, number: u64) -> Result<&[u8], OpenError> {
        let held = (self.bytes.len() / BLOCK_BYTES) as u64;
        if number < self.first || number >= self.first + held {
            let to_wrap = self.geometry.log_blocks - number % self.geometry.log_blocks;
            let blocks = usize::try_from(to_wrap.min(BATCH_BLOCKS)).expect("bounded");
            self.bytes.resize(blocks * BLOCK_BYTES, 0);
            self.first = number;
            let position = self.geometry.log_position(number);
            if self.disk.read(position, &mut self.bytes).is_err() {
                // What cannot be read may lie beyond what is needed.
                self.bytes.truncate(BLOCK_BYTES);
                self.disk.read(position, &mut self.bytes)?;
            }
        }
        let at = usize::try_from(number - self.first).expect("bounded") * BLOCK_BYTES;
        Ok(&self.bytes[at..at + BLOCK_BYTES])
    }
}

/// Reads the log until a block is missing.
pub(super) fn scan_log(
    disk: &mut dyn Disk,
    place: &ShardPlace,
    geometry: Geometry,
    superblock: &ShardSuperblock,
) -> Result<LogScan, OpenError> {
    let mut ring = Ring {
        disk,
        geometry,
        first: 0,
        bytes: Vec::new(),
    };
    let mut scan = LogScan {
        end: superblock.tail,
        ..LogScan::default()
    };
    let limit = superblock.tail + geometry.log_blocks;
    while scan.end < limit {
        let number = scan.end;
        let Some(block) = read_block(ring.block(number)?, place, superblock.epoch, number) else {
            break;
        };
        let mut end = number + 1;
        let mut images = Vec::new();
        if let [Record::Pages { lsn, pages }] = block.records.as_slice() {
            for (page, crc) in pages.iter() {
                if end >= limit {
                    break;
                }
                let bytes = ring.block(end)?;
                let whole = matches!(page::check(bytes, place, *page), PageCheck::Valid(_))
                    && page::sealed_crc(bytes) == *crc;
                if !whole {
                    break;
                }
                images.push(Image {
                    page: *page,
                    lsn: *lsn,
                    block: end,
                    bytes: bytes.to_vec(),
                });
                end += 1;
            }
            if images.len() < pages.len() {
                // The gap is inside the images. Those before it count, as any block before a gap.
                scan.images.append(&mut images);
                scan.end = end;
                break;
            }
        }
        scan.images.append(&mut images);
        scan.marks.flushed = scan.marks.flushed.max(block.marks.flushed);
        scan.marks.written = scan.marks.written.max(block.marks.written);
        scan.blocks.push((number, block));
        scan.end = end;
    }
    Ok(scan)
}
