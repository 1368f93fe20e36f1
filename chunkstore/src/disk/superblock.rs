//! The superblock of a shard: two copies, written in turn; the higher valid sequence wins.

use super::api::{Disk, DiskError};
use super::codec::{Put, Reader};
use super::layout::{BLOCK, BLOCK_BYTES, Geometry, ShardPlace};
use super::store::OpenError;
use ukai_proto::BootId;
use ukai_proto::crc::crc32c;

/// Version of the format of a shard region and of the node superblock.
pub(super) const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"UKAIshrd";
/// Counters of blocks, epochs and writes stay below it for longer than any device lives; a higher one was
/// not written by this program.
pub(super) const COUNTER_MAX: u64 = 1 << 62;

/// Position of the checksum: after magic and version, before everything it covers.
const CRC_AT: usize = 12;

/// What a shard must know before it can read its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ShardSuperblock {
    /// Counts writes of the superblock; its lowest bit names the copy.
    pub(super) sequence: u64,
    /// Blocks of the log ring.
    pub(super) log_blocks: u64,
    /// Oldest block that a replay needs.
    pub(super) tail: u64,
    /// Epoch of the blocks from the tail on.
    pub(super) epoch: u64,
    /// Highest epoch that any block may carry: a recovery takes the next one, durably, before it writes
    /// its first block, so that leftovers of a recovery that was cut can never be joined to another's.
    pub(super) epoch_used: u64,
    /// Everything up to this block, records and data, is durable.
    pub(super) flushed: u64,
    /// Boot of the machine under which the blocks of the epoch were written.
    pub(super) boot: BootId,
    /// Stopped cleanly: every record is in the pages, nothing is suspect beyond what OPEN records say.
    pub(super) clean: bool,
}

impl ShardSuperblock {
    pub(super) fn encode(&self, place: &ShardPlace) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.put(&MAGIC);
        out.put_u32(FORMAT_VERSION);
        out.put_u32(0);
        out.put(&place.node.0);
        out.put_u16(place.shard.0);
        out.put_u16(u16::from(self.clean));
        out.put_u32(0);
        out.put_u64(place.bytes);
        for word in [
            self.sequence,
            self.log_blocks,
            self.tail,
            self.epoch,
            self.epoch_used,
            self.flushed,
        ] {
            out.put_u64(word);
        }
        out.put(&self.boot.0);
        // What a program with another idea of the layout must not overlook.
        let geometry = Geometry::fit(place.start, place.bytes, self.log_blocks);
        let geometry = geometry.expect("a shard that exists has a geometry");
        out.put_u32(geometry.slots);
        out.put_u32(geometry.hole_pages);
        out.resize(BLOCK_BYTES, 0);
        let crc = crc32c(&out);
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `Ok(None)`: not this shard's, or torn.
    pub(super) fn decode(
        bytes: &[u8; BLOCK_BYTES],
        place: &ShardPlace,
    ) -> Result<Option<Self>, OpenError> {
        if bytes[..8] != MAGIC {
            return Ok(None);
        }
        let mut copy = *bytes;
        copy[CRC_AT..CRC_AT + 4].fill(0);
        let mut reader = Reader(&bytes[8..]);
        let parsed = (|| {
            let version = reader.u32()?;
            let crc = reader.u32()?;
            let node: [u8; 16] = reader.array()?;
            let shard = reader.u16()?;
            let clean = reader.u16()?;
            reader.u32()?;
            let bytes = reader.u64()?;
            let mut words = [0u64; 6];
            for word in &mut words {
                *word = reader.u64()?;
            }
            let boot = BootId(reader.array()?);
            let counts = (reader.u32()?, reader.u32()?);
            Some((version, crc, node, shard, clean, bytes, words, boot, counts))
        })();
        let Some((version, crc, node, shard, clean, bytes, words, boot, counts)) = parsed else {
            return Ok(None);
        };
        if crc != crc32c(&copy) || node != place.node.0 || shard != place.shard.0 {
            return Ok(None);
        }
        if version != FORMAT_VERSION {
            return Err(OpenError::WrongVersion {
                found: version,
                expected: FORMAT_VERSION,
            });
        }
        let [sequence, log_blocks, tail, epoch, epoch_used, flushed] = words;
        let clean = clean == 1;
        let block = Self {
            sequence,
            log_blocks,
            tail,
            epoch,
            epoch_used,
            flushed,
            boot,
            clean,
        };
        let sane = words.iter().all(|word| *word < COUNTER_MAX) && tail > 0 && epoch <= epoch_used;
        if !sane {
            return Err(OpenError::Damaged {
                what: "a counter in the shard superblock is",
                position: place.start,
            });
        }
        let geometry = Geometry::fit(place.start, place.bytes, log_blocks);
        if bytes == place.bytes && geometry.is_none_or(|fit| (fit.slots, fit.hole_pages) != counts)
        {
            let position = place.start;
            return Err(OpenError::Damaged {
                what: "the geometry in the shard superblock is",
                position,
            });
        }
        Ok((bytes == place.bytes).then_some(block))
    }

    /// Position of the copy that this sequence number is written to.
    pub(super) fn position(&self, place: &ShardPlace) -> u64 {
        place.start + self.sequence % 2 * BLOCK
    }

    /// The newest valid copy, and the geometry it says.
    pub(super) fn read(
        disk: &mut dyn Disk,
        place: &ShardPlace,
    ) -> Result<(Self, Geometry), OpenError> {
        let mut newest: Option<Self> = None;
        let mut problem = OpenError::NotFormatted;
        for copy in 0..2 {
            let mut bytes = [0u8; BLOCK_BYTES];
            match disk.read(place.start + copy * BLOCK, &mut bytes) {
                // One copy that cannot be read is what the other is for.
                Err(error) => problem = error.into(),
                Ok(()) => match Self::decode(&bytes, place) {
                    Ok(Some(block)) if newest.is_none_or(|n| n.sequence < block.sequence) => {
                        newest = Some(block);
                    }
                    Ok(_) => {}
                    Err(error) => problem = error,
                },
            }
        }
        let block = newest.ok_or(problem)?;
        let geometry = Geometry::fit(place.start, place.bytes, block.log_blocks)
            .filter(|geometry| geometry.fits(place.bytes))
            .ok_or(OpenError::Damaged {
                what: "the shard superblock is",
                position: place.start,
            })?;
        Ok((block, geometry))
    }

    /// Writes it to its copy, durably. The caller has advanced the sequence.
    pub(super) fn write(&self, disk: &mut dyn Disk, place: &ShardPlace) -> Result<(), DiskError> {
        disk.write(self.position(place), &self.encode(place))?;
        disk.sync()
    }
}
