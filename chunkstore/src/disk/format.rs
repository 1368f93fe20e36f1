//! Making a node's file or device, and reading what was made: the node superblock.
//!
//! Two copies of 4 KiB at bytes 0 and 4096, written in turn with a sequence number; the higher valid
//! one wins, so that a torn write of one leaves the other.

use super::api::{Disk, DiskError};
use super::codec::{Put, Reader};
use super::layout::{
    BLOCK, BLOCK_BYTES, Geometry, LOG_BLOCKS_MAX, LOG_BLOCKS_MIN, NODE_HEAD_BYTES, PageIndex,
    ShardPlace,
};
use super::superblock::{COUNTER_MAX, FORMAT_VERSION, ShardSuperblock};
use ukai_proto::crc::crc32c;
use ukai_proto::limits::{SHARDS_MAX, SLOT_BYTES};
use ukai_proto::{BootId, ClusterId, NodeId, ShardIndex};

const MAGIC: [u8; 8] = *b"UKAInode";
const CRC_AT: usize = 12;
/// Longest name or site; as in the metadata store.
pub const NAME_BYTES_MAX: usize = 64;
/// All labels together: they share one 4 KiB block with the rest.
pub const LABELS_BYTES_MAX: usize = 2048;
/// Zeros are written in pieces of this size while formatting.
const WIPE_BYTES: usize = 1 << 20;

/// What a node is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeFormat {
    /// The cluster it joins.
    pub cluster: ClusterId,
    /// Its identity, new for each format.
    pub node: NodeId,
    /// Short name.
    pub name: String,
    /// Data centre.
    pub site: String,
    /// Free labels.
    pub labels: Vec<String>,
    /// Shards.
    pub shard_count: u16,
    /// Log bytes of each shard; `None`: a 64th of the region, 1 to 64 MiB.
    pub log_bytes: Option<u64>,
}

/// The superblock of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSuperblock {
    /// The cluster.
    pub cluster: ClusterId,
    /// Identity.
    pub node: NodeId,
    /// Short name.
    pub name: String,
    /// Data centre.
    pub site: String,
    /// Free labels.
    pub labels: Vec<String>,
    /// Shards.
    pub shard_count: u16,
    /// Bytes of each shard's region.
    pub region_bytes: u64,
    /// Slots of all shards.
    pub slots: u64,
    /// Starts and clean stops so far: copies made before the last of them are old.
    pub start: u64,
    sequence: u64,
}

/// Why a node cannot be formatted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// The device failed.
    #[error("write the format: {0}")]
    Device(#[from] DiskError),
    /// There is a node already.
    #[error(
        "already formatted as node {name} ({node}) of site {site}: say --force to destroy its data"
    )]
    Formatted {
        /// Its identity.
        node: NodeId,
        /// Its name.
        name: String,
        /// Its site.
        site: String,
    },
    /// There is, or was, a node that this program cannot read.
    #[error("holds a node that cannot be read ({0}): say --force to destroy its data")]
    Unreadable(NodeError),
    /// No room.
    #[error("{actual} bytes are too few for {shards} shards, at least {needed} are needed")]
    TooSmall {
        /// Size of the device.
        actual: u64,
        /// Shards asked for.
        shards: u16,
        /// Size at which it would do.
        needed: u64,
    },
    /// A value out of range.
    #[error("{what} must be {must}")]
    Invalid {
        /// Which.
        what: &'static str,
        /// Allowed values.
        must: &'static str,
    },
}

/// Why a node superblock cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NodeError {
    /// The device failed.
    #[error("read or write the node superblock: {0}")]
    Device(#[from] DiskError),
    /// Nothing of ours is there.
    #[error("not formatted as a chunkstore node")]
    NotFormatted,
    /// Formatted by another version.
    #[error("disk format version {found}, this program reads version {expected}")]
    WrongVersion {
        /// On disk.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// Both copies are damaged.
    #[error("both copies of the node superblock are damaged")]
    Damaged,
    /// The device shrank.
    #[error("formatted with {needed} bytes, but the device has {actual}")]
    OtherSize {
        /// As formatted.
        needed: u64,
        /// Now.
        actual: u64,
    },
}

/// Makes a node of the device: writes every shard's structures, the node superblock last.
pub fn format(
    disk: &mut dyn Disk,
    format: &NodeFormat,
    overwrite: bool,
) -> Result<NodeSuperblock, FormatError> {
    check(format)?;
    if !overwrite {
        match NodeSuperblock::read(disk) {
            Err(NodeError::NotFormatted) => {}
            Err(NodeError::Device(error)) => return Err(error.into()),
            Ok(old) => {
                let NodeSuperblock {
                    node, name, site, ..
                } = old;
                return Err(FormatError::Formatted { node, name, site });
            }
            Err(error) => return Err(FormatError::Unreadable(error)),
        }
    }
    let shards = u64::from(format.shard_count);
    let region = disk.size().saturating_sub(NODE_HEAD_BYTES) / shards;
    let region_bytes = region - region % BLOCK;
    let log_blocks = match format.log_bytes {
        Some(bytes) => bytes / BLOCK,
        None => Geometry::default_log_blocks(region_bytes),
    };
    let fit = |shard: u64| {
        Geometry::fit(
            NODE_HEAD_BYTES + shard * region_bytes,
            region_bytes,
            log_blocks,
        )
    };
    if fit(0).is_none() {
        return Err(FormatError::TooSmall {
            actual: disk.size(),
            shards: format.shard_count,
            needed: NODE_HEAD_BYTES + shards * (log_blocks * BLOCK + 2 * SLOT_BYTES as u64),
        });
    }

    // The old superblocks go first: a format that is cut leaves "not formatted", never a mixture.
    wipe(disk, 0, NODE_HEAD_BYTES)?;
    disk.sync()?;
    let mut slots = 0;
    for index in 0..format.shard_count {
        let geometry = fit(index.into()).expect("all regions have the same size");
        slots += u64::from(geometry.slots);
        let log = geometry.log_position(0);
        let pages_end = geometry.page_position(PageIndex(geometry.pages()));
        disk.punch(pages_end, u64::from(geometry.slots) * SLOT_BYTES as u64)?;
        wipe(disk, geometry.start, log - geometry.start)?;
        wipe(disk, log, pages_end - log)?;
        let place = ShardPlace {
            node: format.node,
            shard: ShardIndex(index),
            start: geometry.start,
            bytes: region_bytes,
        };
        // The log starts at block 1, so that "flushed up to block 0" can mean "nothing".
        ShardSuperblock {
            sequence: 1,
            log_blocks,
            tail: 1,
            epoch: 1,
            epoch_used: 1,
            flushed: 0,
            boot: BootId::NIL,
            clean: true,
        }
        .write(disk, &place)?;
    }
    let mut block = NodeSuperblock {
        cluster: format.cluster,
        node: format.node,
        name: format.name.clone(),
        site: format.site.clone(),
        labels: format.labels.clone(),
        shard_count: format.shard_count,
        region_bytes,
        slots,
        start: 0,
        sequence: 0,
    };
    block.write_next(disk)?;
    block.write_next(disk)?;
    Ok(block)
}

fn check(format: &NodeFormat) -> Result<(), FormatError> {
    let invalid = |what, must| Err(FormatError::Invalid { what, must });
    if format.shard_count == 0 || usize::from(format.shard_count) > SHARDS_MAX {
        return invalid("shards", "1 to 256");
    }
    if format.name.is_empty() || format.name.len() > NAME_BYTES_MAX {
        return invalid("name", "1 to 64 bytes long");
    }
    if format.site.is_empty() || format.site.len() > NAME_BYTES_MAX {
        return invalid("site", "1 to 64 bytes long");
    }
    if format
        .labels
        .iter()
        .map(|label| label.len() + 2)
        .sum::<usize>()
        > LABELS_BYTES_MAX
    {
        return invalid("labels", "at most 2 KiB together");
    }
    let log_range = LOG_BLOCKS_MIN * BLOCK..=LOG_BLOCKS_MAX * BLOCK;
    if format
        .log_bytes
        .is_some_and(|bytes| !log_range.contains(&bytes))
    {
        return invalid("log size", "256 KiB to 64 MiB");
    }
    Ok(())
}

fn wipe(disk: &mut dyn Disk, start: u64, bytes: u64) -> Result<(), DiskError> {
    let zeros = vec![0u8; WIPE_BYTES];
    let mut done = 0;
    while done < bytes {
        let piece = usize::try_from(bytes - done)
            .unwrap_or(WIPE_BYTES)
            .min(WIPE_BYTES);
        disk.write(start + done, &zeros[..piece])?;
        done += piece as u64;
    }
    Ok(())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u16(u16::try_from(text.len()).expect("checked before"));
    out.put(text.as_bytes());
}

fn text(reader: &mut Reader<'_>) -> Option<String> {
    let length = reader.u16()?;
    Some(
        std::str::from_utf8(reader.bytes(length.into())?)
            .ok()?
            .to_owned(),
    )
}

impl NodeSuperblock {
    /// The newest valid copy.
    pub fn read(disk: &mut dyn Disk) -> Result<Self, NodeError> {
        let size = disk.size();
        if size < 2 * BLOCK {
            return Err(NodeError::NotFormatted);
        }
        let mut newest: Option<Self> = None;
        let mut problem = NodeError::NotFormatted;
        for copy in 0..2 {
            let mut bytes = [0u8; BLOCK_BYTES];
            match disk.read(copy * BLOCK, &mut bytes) {
                Err(error) => problem = error.into(),
                Ok(()) => match Self::decode(&bytes) {
                    Ok(block) => {
                        if newest
                            .as_ref()
                            .is_none_or(|old| old.sequence < block.sequence)
                        {
                            newest = Some(block);
                        }
                    }
                    Err(NodeError::NotFormatted) => {}
                    Err(error) => problem = error,
                },
            }
        }
        let block = newest.ok_or(problem)?;
        let needed = NODE_HEAD_BYTES + u64::from(block.shard_count) * block.region_bytes;
        if size < needed {
            return Err(NodeError::OtherSize {
                needed,
                actual: size,
            });
        }
        Ok(block)
    }

    /// Counts a start (part of the incarnation) or a clean stop, durably.
    pub fn bump_start(&mut self, disk: &mut dyn Disk) -> Result<(), NodeError> {
        self.start += 1;
        Ok(self.write_next(disk)?)
    }

    /// Where a shard lies.
    #[must_use]
    pub fn shard_place(&self, shard: ShardIndex) -> ShardPlace {
        assert!(
            shard.0 < self.shard_count,
            "shard {shard} of {}",
            self.shard_count
        );
        ShardPlace {
            node: self.node,
            shard,
            start: NODE_HEAD_BYTES + u64::from(shard.0) * self.region_bytes,
            bytes: self.region_bytes,
        }
    }

    /// Usable bytes: slots of all shards.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.slots * SLOT_BYTES as u64
    }

    fn write_next(&mut self, disk: &mut dyn Disk) -> Result<(), DiskError> {
        self.sequence += 1;
        disk.write(self.sequence % 2 * BLOCK, &self.encode())?;
        disk.sync()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        out.put(&MAGIC);
        out.put_u32(FORMAT_VERSION);
        out.put_u32(0);
        out.put(&self.cluster.0);
        out.put(&self.node.0);
        for word in [self.sequence, self.start, self.region_bytes, self.slots] {
            out.put_u64(word);
        }
        out.put_u16(self.shard_count);
        put_text(&mut out, &self.name);
        put_text(&mut out, &self.site);
        out.put_u16(u16::try_from(self.labels.len()).expect("checked before"));
        self.labels
            .iter()
            .for_each(|label| put_text(&mut out, label));
        assert!(
            out.len() <= BLOCK_BYTES,
            "node superblock of {} bytes",
            out.len()
        );
        out.resize(BLOCK_BYTES, 0);
        let crc = crc32c(&out);
        out[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8; BLOCK_BYTES]) -> Result<Self, NodeError> {
        if bytes[..8] != MAGIC {
            return Err(NodeError::NotFormatted);
        }
        let mut reader = Reader(&bytes[8..]);
        let version = reader.u32().ok_or(NodeError::Damaged)?;
        let crc = reader.u32().ok_or(NodeError::Damaged)?;
        let mut copy = *bytes;
        copy[CRC_AT..CRC_AT + 4].fill(0);
        if crc != crc32c(&copy) {
            return Err(NodeError::Damaged);
        }
        if version != FORMAT_VERSION {
            return Err(NodeError::WrongVersion {
                found: version,
                expected: FORMAT_VERSION,
            });
        }
        (|| {
            let cluster = ClusterId(reader.array()?);
            let node = NodeId(reader.array()?);
            let sequence = reader.u64()?;
            let start = reader.u64()?;
            let region_bytes = reader.u64()?;
            let slots = reader.u64()?;
            let shard_count = reader.u16()?;
            let name = text(&mut reader)?;
            let site = text(&mut reader)?;
            let count = reader.u16()?;
            let labels = (0..count)
                .map(|_| text(&mut reader))
                .collect::<Option<Vec<_>>>()?;
            let block = Self {
                cluster,
                node,
                name,
                site,
                labels,
                shard_count,
                region_bytes,
                slots,
                start,
                sequence,
            };
            let sane = (1..=SHARDS_MAX).contains(&usize::from(shard_count))
                && region_bytes < u64::MAX / (SHARDS_MAX as u64 * 2)
                && region_bytes.is_multiple_of(BLOCK)
                && slots < u64::MAX / SLOT_BYTES as u64
                && start < COUNTER_MAX
                && sequence < COUNTER_MAX;
            sane.then_some(block)
        })()
        .ok_or(NodeError::Damaged)
    }
}
