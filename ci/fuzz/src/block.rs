//! `block`: each structure of the disk by itself, with a checksum that fits, so that what is inside gets
//! its turn. What is accepted is written again as something that is accepted and means the same.

use crate::alloc::measured;
use crate::input::Input;
use chunkstore::disk::layout::{BLOCK_BYTES, PageIndex, ShardPlace};
use chunkstore::disk::probe;
use ukai_proto::crc::crc32c;
use ukai_proto::{NodeId, ShardIndex};

type Block = [u8; BLOCK_BYTES];

const PLACE: ShardPlace = ShardPlace {
    node: NodeId([2; 16]),
    shard: ShardIndex(1),
    start: 1 << 20,
    bytes: 64 << 20,
};
const EPOCH: u64 = 3;
const NUMBER: u64 = 77;
const PAGE: PageIndex = PageIndex(5);

/// Where the checksum is.
pub(crate) const CRC_AT_SUPERBLOCK: usize = 12;
/// The same, in log blocks and pages.
pub(crate) const CRC_AT_BLOCK: usize = 4;

/// Makes the checksum fit.
pub(crate) fn seal(block: &mut [u8], crc_at: usize) {
    block[crc_at..crc_at + 4].fill(0);
    let crc = crc32c(block);
    block[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Patches: (position, bytes) over zeros.
fn patched(input: &mut Input<'_>) -> Block {
    let mut block = [0; BLOCK_BYTES];
    while !input.is_empty() {
        let at = usize::from(input.u16()) % BLOCK_BYTES;
        let part = input.short();
        let end = BLOCK_BYTES.min(at + part.len());
        block[at..end].copy_from_slice(&part[..end - at]);
    }
    block
}

fn check(block: &Block, read: impl Fn(&Block) -> Option<Vec<u8>>) {
    let (first, used) = measured(|| read(block));
    // The smallest record has 11 bytes on disk and 150 in memory, in a vector that doubles.
    assert!(used.total <= 256 << 10, "{used:?}");
    let Some(first) = first else { return };
    let first: &Block = first.as_slice().try_into().expect("one block");
    let second = read(first).expect("written by this program");
    assert_eq!(second, first, "it means something else the second time");
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (kind, raw) = (input.below(4), input.rarely(8));
    let mut block = patched(&mut input);
    let head = |block: &mut Block, parts: &[(usize, &[u8])]| {
        for (at, bytes) in parts {
            block[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
    };
    let node: &[u8] = &PLACE.node.0;
    let shard: &[u8] = &PLACE.shard.0.to_le_bytes();
    let version: &[u8] = &1u32.to_le_bytes();
    match kind {
        0 => {
            if !raw {
                head(&mut block, &[(0, b"UKAInode"), (8, version)]);
                seal(&mut block, CRC_AT_SUPERBLOCK);
            }
            check(&block, |block| match probe::node_superblock(block) {
                Ok(bytes) => Some(bytes),
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    None
                }
            });
        }
        1 => {
            if !raw {
                head(
                    &mut block,
                    &[(0, b"UKAIshrd"), (8, version), (16, node), (32, shard)],
                );
                let bytes: &[u8] = &PLACE.bytes.to_le_bytes();
                head(&mut block, &[(40, bytes)]);
                seal(&mut block, CRC_AT_SUPERBLOCK);
            }
            check(&block, |block| {
                match probe::shard_superblock(block, &PLACE) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        assert!(!error.to_string().is_empty());
                        None
                    }
                }
            });
        }
        2 => {
            if !raw {
                let (epoch, number) = (EPOCH.to_le_bytes(), NUMBER.to_le_bytes());
                head(&mut block, &[(0, b"UKlg"), (8, node), (24, shard)]);
                head(&mut block, &[(32, &epoch), (40, &number)]);
                seal(&mut block, CRC_AT_BLOCK);
            }
            check(&block, |block| {
                probe::log_block(block, &PLACE, EPOCH, NUMBER)
            });
        }
        _ => {
            if !raw {
                let page = PAGE.0.to_le_bytes();
                head(
                    &mut block,
                    &[(0, b"UKpg"), (8, node), (24, shard), (28, &page)],
                );
                seal(&mut block, CRC_AT_BLOCK);
            }
            check(&block, |block| probe::page(block, &PLACE, PAGE));
        }
    }
}
