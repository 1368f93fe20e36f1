//! The page of a slot: who owns it and what is known of its 256 sectors, in one 4 KiB block.
//!
//! ```text
//! 0  magic u32 | crc u32 of the page | node 16 | shard u16 | kind u8 | index in chunk u8 | page u32
//! 32 position in the log u64 | volume 16 | chunk u32 | generation u32 | zeros to 256
//! 256  256 x { token u32, seq u48, crc u32, flags u8 }
//! ```
//! All zeros (as formatted) is a free slot.

use super::codec::{Put, Reader, STATE_BYTES, state_bytes, state_from};
use super::hole::SlotKey;
use super::layout::{BLOCK_BYTES, PageIndex, ShardPlace};
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SLOT_SECTORS;
use ukai_proto::message::SectorState;
use ukai_proto::{ChunkIndex, Generation, VolumeId};

const MAGIC: [u8; 4] = *b"UKpg";
const CRC_AT: usize = 4;
const INDEX_AT: usize = 27;
const VOLUME_AT: usize = 40;
const CHUNK_AT: usize = 56;
const GENERATION_AT: usize = 60;
const STATES_AT: usize = 256;

const _: () = assert!(STATES_AT + SLOT_SECTORS * STATE_BYTES == BLOCK_BYTES);

/// The slot is free.
pub(super) const KIND_FREE: u8 = 1;
/// The slot holds data.
pub(super) const KIND_SLOT: u8 = 2;
/// The page describes holes.
pub(super) const KIND_HOLES: u8 = 3;

/// The part that all pages begin with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PageHead {
    pub(super) page: PageIndex,
    pub(super) kind: u8,
    /// Every record in blocks up to this one is contained.
    pub(super) lsn: u64,
}

/// What 4 KiB of the page table are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PageCheck {
    /// Never written since the format.
    Blank,
    /// Valid.
    Valid(PageHead),
    /// Neither.
    Damaged,
}

pub(super) fn put_head(out: &mut Vec<u8>, place: &ShardPlace, page: PageIndex, lsn: u64, kind: u8) {
    out.put(&MAGIC);
    out.put_u32(0);
    out.put(&place.node.0);
    out.put_u16(place.shard.0);
    out.put_u8(kind);
    out.put_u8(0);
    out.put_u32(page.0);
    out.put_u64(lsn);
}

/// Writes the checksum into a complete image.
pub(super) fn seal(image: &mut [u8]) {
    assert_eq!(image.len(), BLOCK_BYTES, "a page image is one block");
    image[CRC_AT..CRC_AT + 4].fill(0);
    let crc = crc32c(image);
    image[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

/// Checksum of a sealed image, as PAGES records repeat it.
pub(super) fn sealed_crc(image: &[u8]) -> u32 {
    u32::from_le_bytes([image[4], image[5], image[6], image[7]])
}

/// Judges an image read from the table or the log.
pub(super) fn check(image: &[u8], place: &ShardPlace, page: PageIndex) -> PageCheck {
    if image.len() != BLOCK_BYTES {
        return PageCheck::Damaged;
    }
    if image.iter().all(|byte| *byte == 0) {
        return PageCheck::Blank;
    }
    let mut copy = [0; BLOCK_BYTES];
    copy.copy_from_slice(image);
    copy[CRC_AT..CRC_AT + 4].fill(0);
    let mut reader = Reader(image);
    let head = (|| {
        let magic: [u8; 4] = reader.array()?;
        let crc = reader.u32()?;
        let node: [u8; 16] = reader.array()?;
        let shard = reader.u16()?;
        let kind = reader.u8()?;
        reader.u8()?;
        let number = reader.u32()?;
        let lsn = reader.u64()?;
        let ours = magic == MAGIC
            && crc == crc32c(&copy)
            && node == place.node.0
            && shard == place.shard.0
            && number == page.0
            && (KIND_FREE..=KIND_HOLES).contains(&kind);
        ours.then_some(PageHead { page, kind, lsn })
    })();
    head.map_or(PageCheck::Damaged, PageCheck::Valid)
}

/// Page of a slot in memory, in the layout of the disk; the head is filled in when an image is made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Page(Box<[u8; BLOCK_BYTES]>);

impl Page {
    /// A newly allocated slot.
    pub(super) fn allocated(
        key: &SlotKey,
        generation: Generation,
        states: impl Iterator<Item = SectorState>,
    ) -> Self {
        let mut page = Self(Box::new([0; BLOCK_BYTES]));
        page.0[INDEX_AT] = key.index;
        page.0[VOLUME_AT..VOLUME_AT + 16].copy_from_slice(&key.volume.0);
        page.0[CHUNK_AT..CHUNK_AT + 4].copy_from_slice(&key.chunk.0.to_le_bytes());
        page.set_generation(generation);
        for (sector, state) in (0..=u8::MAX).zip(states) {
            page.set_state(sector, &state);
        }
        page
    }

    /// From an image that [`check`] found to be a slot's.
    pub(super) fn from_image(image: &[u8]) -> Self {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        bytes.copy_from_slice(image);
        Self(bytes)
    }

    pub(super) fn key(&self) -> SlotKey {
        let mut volume = [0; 16];
        volume.copy_from_slice(&self.0[VOLUME_AT..VOLUME_AT + 16]);
        SlotKey {
            volume: VolumeId(volume),
            chunk: ChunkIndex(self.word(CHUNK_AT)),
            index: self.0[INDEX_AT],
        }
    }

    pub(super) fn generation(&self) -> Generation {
        Generation(self.word(GENERATION_AT))
    }

    pub(super) fn set_generation(&mut self, generation: Generation) {
        self.0[GENERATION_AT..GENERATION_AT + 4].copy_from_slice(&generation.0.to_le_bytes());
    }

    pub(super) fn state(&self, sector: u8) -> SectorState {
        let at = STATES_AT + usize::from(sector) * STATE_BYTES;
        let mut bytes = [0; STATE_BYTES];
        bytes.copy_from_slice(&self.0[at..at + STATE_BYTES]);
        state_from(&bytes)
    }

    pub(super) fn set_state(&mut self, sector: u8, state: &SectorState) {
        let at = STATES_AT + usize::from(sector) * STATE_BYTES;
        self.0[at..at + STATE_BYTES].copy_from_slice(&state_bytes(state));
    }

    pub(super) fn states(&self) -> impl Iterator<Item = SectorState> + '_ {
        (0..=u8::MAX).map(|sector| self.state(sector))
    }

    /// The image for log and table.
    pub(super) fn image(&self, place: &ShardPlace, page: PageIndex, lsn: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK_BYTES);
        put_head(&mut out, place, page, lsn, KIND_SLOT);
        out[INDEX_AT] = self.0[INDEX_AT];
        out.put(&self.0[VOLUME_AT..]);
        seal(&mut out);
        out
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

/// Image of a free slot's page.
pub(super) fn free_image(place: &ShardPlace, page: PageIndex, lsn: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    put_head(&mut out, place, page, lsn, KIND_FREE);
    out.resize(BLOCK_BYTES, 0);
    seal(&mut out);
    out
}
