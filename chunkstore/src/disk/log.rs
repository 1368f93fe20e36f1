//! Blocks of the metadata log: building them at runtime, judging them in a replay.
//!
//! ```text
//! 0  magic u32 | crc u32 of the block | node 16 | shard u16 | bytes used u16 | zeros u32
//! 32 epoch u64 | number u64 | flushed u64 | written u64: everything up to these blocks was durable, or
//!    at least written, records and data, when this block was made
//! 64 records
//! ```
//! After a block with a PAGES record come the page images, raw, each with the checksum that the record
//! announces; they take block numbers like any other block.

use super::codec::{Put, Reader};
use super::layout::{BLOCK_BYTES, PageIndex, ShardPlace};
use super::page;
use super::record::{PAGES_MAX, Record};
use std::borrow::Cow;
use ukai_proto::crc::crc32c;

const MAGIC: [u8; 4] = *b"UKlg";
const CRC_AT: usize = 4;
const USED_AT: usize = 26;
const HEAD_BYTES: usize = 64;
/// Bytes for records in a block.
pub(super) const BLOCK_ROOM: usize = BLOCK_BYTES - HEAD_BYTES;

/// What was certain when a block was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Marks {
    /// Records and data of blocks up to this one survive a power cut.
    pub(super) flushed: u64,
    /// Records and data of blocks up to this one survive the death of the process.
    pub(super) written: u64,
}

/// The blocks of one log write, as they grow.
#[derive(Debug)]
pub(super) struct LogBuffer {
    /// Number of the first block.
    first: u64,
    bytes: Vec<u8>,
    /// Start of the block that records are appended to; `None`: the next record opens one.
    open: Option<usize>,
    /// Which blocks are raw page images.
    raw: Vec<std::ops::Range<usize>>,
}

impl LogBuffer {
    pub(super) fn new(first: u64) -> Self {
        assert!(first > 0, "block 0 means none");
        Self {
            first,
            bytes: Vec::new(),
            open: None,
            raw: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Blocks so far.
    pub(super) fn blocks(&self) -> u64 {
        self.bytes.len().div_ceil(BLOCK_BYTES) as u64
    }

    /// Number that the block after this buffer will have.
    pub(super) fn next(&self) -> u64 {
        self.first + self.blocks()
    }

    fn open_block(&mut self) -> usize {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        let start = self.bytes.len();
        // One allocation for the usual turn: a block at a time.
        self.bytes.reserve(BLOCK_BYTES);
        self.bytes.resize(start + HEAD_BYTES, 0);
        self.open = Some(start);
        start
    }

    /// Adds a record; tells the number of the block it is in.
    pub(super) fn append(&mut self, record: &Record<'_>) -> u64 {
        let need = record.encoded_len();
        let start = match self.open {
            Some(open) if self.bytes.len() - open + need <= BLOCK_BYTES => open,
            _ => self.open_block(),
        };
        record.encode(&mut self.bytes);
        assert!(
            self.bytes.len() - start <= BLOCK_BYTES,
            "records overran their block"
        );
        self.first + (start / BLOCK_BYTES) as u64
    }

    /// An empty block, whose head alone matters.
    pub(super) fn touch(&mut self) {
        if self.open.is_none() {
            self.open_block();
        }
    }

    /// Adds page images, with the records that announce them.
    pub(super) fn append_pages(&mut self, lsn: u64, images: &[(PageIndex, Vec<u8>)]) {
        for images in images.chunks(PAGES_MAX) {
            let pages = images
                .iter()
                .map(|(page, image)| (*page, page::sealed_crc(image)))
                .collect();
            self.open_block();
            self.append(&Record::Pages {
                lsn,
                pages: Cow::Owned(pages),
            });
            self.open = None;
            self.bytes
                .resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
            let start = self.bytes.len();
            for (_, image) in images {
                self.bytes.put(image);
            }
            self.raw.push(start..self.bytes.len());
        }
    }

    /// Fills in heads and checksums. The blocks, and the number of the last one.
    pub(super) fn seal(
        mut self,
        place: &ShardPlace,
        epoch: u64,
        Marks { flushed, written }: Marks,
    ) -> (Vec<u8>, u64) {
        assert!(!self.bytes.is_empty(), "an empty log write");
        let end = self.bytes.len();
        self.bytes.resize(end.next_multiple_of(BLOCK_BYTES), 0);
        let mut number = self.first;
        for at in (0..self.bytes.len()).step_by(BLOCK_BYTES) {
            if !self.raw.iter().any(|raw| raw.contains(&at)) {
                let block = &mut self.bytes[at..at + BLOCK_BYTES];
                let used = used_bytes(block);
                let mut head = Vec::with_capacity(HEAD_BYTES);
                head.put(&MAGIC);
                head.put_u32(0);
                head.put(&place.node.0);
                head.put_u16(place.shard.0);
                head.put_u16(used);
                head.put_u32(0);
                head.put_u64(epoch);
                head.put_u64(number);
                head.put_u64(flushed);
                head.put_u64(written);
                assert_eq!(head.len(), HEAD_BYTES, "the head of a block");
                block[..HEAD_BYTES].copy_from_slice(&head);
                let crc = crc32c(block);
                block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
            }
            number += 1;
        }
        (self.bytes, number - 1)
    }
}

/// Walks over the records of a block under construction: a record's type is never 0, padding is.
fn used_bytes(block: &[u8]) -> u16 {
    let mut at = HEAD_BYTES;
    while at + 3 <= BLOCK_BYTES && block[at] != 0 {
        at += 3 + usize::from(u16::from_le_bytes([block[at + 1], block[at + 2]]));
    }
    assert!(at <= BLOCK_BYTES, "records end at {at}");
    u16::try_from(at).expect("inside a block")
}

/// A block that a replay accepted.
#[derive(Debug)]
pub(super) struct LogBlock {
    pub(super) marks: Marks,
    pub(super) records: Vec<Record<'static>>,
}

/// Judges a block: is it block `number` of `epoch`, whole and sensible?
pub(super) fn read_block(
    bytes: &[u8],
    place: &ShardPlace,
    epoch: u64,
    number: u64,
) -> Option<LogBlock> {
    if bytes.len() != BLOCK_BYTES {
        return None;
    }
    let mut reader = Reader(bytes);
    let magic: [u8; 4] = reader.array()?;
    let crc = reader.u32()?;
    let node: [u8; 16] = reader.array()?;
    let shard = reader.u16()?;
    let used = usize::from(reader.u16()?);
    reader.u32()?;
    let ours = magic == MAGIC
        && node == place.node.0
        && shard == place.shard.0
        && reader.u64()? == epoch
        && reader.u64()? == number;
    if !ours {
        return None;
    }
    let marks = Marks {
        flushed: reader.u64()?,
        written: reader.u64()?,
    };
    let mut copy = [0; BLOCK_BYTES];
    copy.copy_from_slice(bytes);
    copy[CRC_AT..CRC_AT + 4].fill(0);
    if crc != crc32c(&copy) {
        return None;
    }
    let mut body = Reader(bytes.get(HEAD_BYTES..used)?);
    let mut records = Vec::new();
    while !body.0.is_empty() {
        records.push(Record::decode(&mut body)?);
    }
    Some(LogBlock { marks, records })
}

const _: () = assert!(USED_AT + 2 == 28 && HEAD_BYTES == 64);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ukai_proto::message::ChunkRange;
    use ukai_proto::{ChunkIndex, Generation, NodeId, ShardIndex, VolumeId};

    const PLACE: ShardPlace = ShardPlace {
        node: NodeId([6; 16]),
        shard: ShardIndex(1),
        start: 0,
        bytes: 0,
    };

    fn record(count: u32) -> Record<'static> {
        let range = ChunkRange {
            start: ChunkIndex(1),
            count,
        };
        let volume = VolumeId([2; 16]);
        Record::Tombstone {
            volume,
            range,
            generation: Generation(1),
            origin: 0,
        }
    }

    #[test]
    fn blocks_carry_their_records_in_order_and_only_their_own_number_passes() {
        let mut buffer = LogBuffer::new(10);
        let numbers: Vec<u64> = (0..300).map(|i| buffer.append(&record(i))).collect();
        let blocks = buffer.blocks();
        assert_eq!(buffer.next(), 10 + blocks);
        let (bytes, last) = buffer.seal(
            &PLACE,
            4,
            Marks {
                flushed: 7,
                written: 8,
            },
        );
        assert_eq!(
            (last, bytes.len() as u64),
            (9 + blocks, blocks * BLOCK_BYTES as u64)
        );
        let mut seen = 0;
        for (number, block) in (10..).zip(bytes.chunks_exact(BLOCK_BYTES)) {
            let read = read_block(block, &PLACE, 4, number).expect("valid");
            assert_eq!(
                read.marks,
                Marks {
                    flushed: 7,
                    written: 8
                }
            );
            for got in read.records {
                assert_eq!((got, number), (record(seen), numbers[seen as usize]));
                seen += 1;
            }
            assert!(read_block(block, &PLACE, 4, number + 1).is_none());
            assert!(read_block(block, &PLACE, 5, number).is_none());
        }
        assert_eq!(seen, 300);
    }

    proptest! {
        #[test]
        fn any_damage_is_found(at in 0..BLOCK_BYTES, bit in 0u8..8) {
            let mut buffer = LogBuffer::new(3);
            buffer.append(&record(5));
            let (mut bytes, _) = buffer.seal(&PLACE, 1, Marks::default());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(read_block(&bytes, &PLACE, 1, 3).is_none());
        }
    }
}
