//! The fixed 64-byte frame header.
//!
//! | bytes | field | |
//! |-|-|-|
//! | 0..2 | magic | `UK` |
//! | 2 | protocol | version of the protocol, 1 |
//! | 3 | opcode | [`Opcode`] |
//! | 4 | flags | [`Flags`] |
//! | 5 | status | [`Status`] in replies, 0 in requests |
//! | 6..8 | aux units | length of the auxiliary section in units of 64 bytes |
//! | 8..16 | tag | chosen by the requester, echoed in the reply |
//! | 16..32 | volume | [`VolumeId`] |
//! | 32..36 | chunk | [`ChunkIndex`] |
//! | 36..38 | sector | first sector inside the chunk |
//! | 38..40 | count | sectors of the range |
//! | 40..44 | token | [`Token`] |
//! | 44..48 | generation | [`Generation`] |
//! | 48..56 | seq | [`Seq`] of a write; in its reply the node's service time, ns |
//! | 56..60 | aux crc | CRC-32C of the auxiliary section (0 if none) |
//! | 60..64 | header crc | CRC-32C of bytes 0..60 |
//!
//! All integers are little-endian. A frame is header, auxiliary section, then, if
//! [`Flags::DATA`] is set, `count` sectors of payload. Payload is covered by the per-sector
//! checksums in the auxiliary section.

use crate::crc::crc32c;
use crate::ids::{ChunkIndex, Generation, SectorInChunk, Seq, Token, Version, VolumeId};
use crate::limits::{
    AUX_BYTES_MAX, FRAME_SECTORS_MAX, HEADER_BYTES, SECTOR_BYTES, SEQ_MAX, WIRE_UNIT_BYTES,
};
use crate::status::Status;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

#[allow(clippy::cast_possible_truncation)] // 64
const WIRE_UNIT_BYTES_U32: u32 = WIRE_UNIT_BYTES as u32;

/// First two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"UK";
/// The protocol version that this code speaks.
pub const PROTOCOL: u8 = 1;

/// What a frame asks for. Replies carry the opcode of the request and [`Flags::REPLY`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Opcode {
    /// First frame of a connection, both ways: see [`crate::message::Hello`].
    Hello = 0x01,
    /// Stop lower tokens, drain, record durably; the reply lists open intents.
    Fence = 0x02,
    /// Record (token, generation) durably; older generations are refused from then on.
    Adopt = 0x03,
    /// Read a range.
    Read = 0x04,
    /// Write a range: aux is [`crate::message::write_aux`], then the data.
    Write = 0x05,
    /// Make every write completed before it durable, on this shard.
    Flush = 0x06,
    /// Versioned zeroes without payload; with [`Flags::UNMAP`] space is given back.
    Zero = 0x07,
    /// (version, crc) of each sector of a range.
    List = 0x08,
    /// Read a range with versions, for copies.
    ReadVersioned = 0x09,
    /// Order to a node: fetch a range from another node ([`crate::message::Pull`]).
    Pull = 0x0a,
    /// Chunks written in the header's generation or later, from the header's chunk on.
    WrittenSince = 0x0b,
    /// Record the generation durably, then delete the listed chunk ranges.
    Release = 0x0c,
    /// Every replica has every write up to (token, seq): open intents up to it may be closed.
    Settled = 0x0d,
    /// Counters of the shard.
    Stats = 0x0e,
    /// Are you there? Echoed.
    Ping = 0x0f,
    /// Volumes that have chunks here: [`crate::message::InventoryEntry`] each.
    Inventory = 0x10,
    /// Delete every chunk of the volume on this shard; needs the current token.
    DeleteVolume = 0x11,
    /// Keep a report in memory: [`crate::message::Report`].
    PutReport = 0x12,
    /// A report that was put, or the shard's own.
    GetReport = 0x13,
}

impl Opcode {
    /// From the wire.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        use Opcode::*;
        const ALL: [Opcode; 19] = [
            Hello,
            Fence,
            Adopt,
            Read,
            Write,
            Flush,
            Zero,
            List,
            ReadVersioned,
            Pull,
            WrittenSince,
            Release,
            Settled,
            Stats,
            Ping,
            Inventory,
            DeleteVolume,
            PutReport,
            GetReport,
        ];
        ALL.get(usize::from(byte).wrapping_sub(1)).copied()
    }

    /// Requests that carry `count` sectors of payload after the auxiliary section.
    #[must_use]
    pub fn request_has_data(self) -> bool {
        self == Opcode::Write
    }
}

/// Bits of the header's flags byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Flags(pub u8);

impl Flags {
    /// No bit.
    pub const NONE: Flags = Flags(0);
    /// A reply.
    pub const REPLY: Flags = Flags(1);
    /// `count` sectors of payload follow the auxiliary section.
    pub const DATA: Flags = Flags(2);
    /// Durable before it is acknowledged (write, zero).
    pub const FUA: Flags = Flags(4);
    /// Give the space back (zero).
    pub const UNMAP: Flags = Flags(8);
    /// The whole range reads as zeros; no payload (read replies).
    pub const ZEROES: Flags = Flags(16);
    /// The list goes on; ask again from the last entry + 1 (list replies).
    pub const MORE: Flags = Flags(32);
    /// Read the data and compare it with its checksums before the states are told (LIST).
    pub const VERIFY: Flags = Flags(64);
    const KNOWN: u8 = 127;

    /// Is every bit of `other` set?
    #[must_use]
    pub fn has(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub fn with(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// The header, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// What is asked.
    pub opcode: Opcode,
    /// Bits.
    pub flags: Flags,
    /// Outcome (replies).
    pub status: Status,
    /// Auxiliary section, bytes, a multiple of 64. Set by [`Header::encode`]'s caller through
    /// [`crate::frame::Frame`].
    pub aux_bytes: u32,
    /// Chosen by the requester.
    pub tag: u64,
    /// The volume, or nil where the operation has none.
    pub volume: VolumeId,
    /// The chunk.
    pub chunk: ChunkIndex,
    /// First sector inside the chunk.
    pub sector: SectorInChunk,
    /// Sectors.
    pub count: u16,
    /// The sender's token.
    pub token: Token,
    /// The sender's generation.
    pub generation: Generation,
    /// Write counter.
    pub seq: Seq,
    /// Checksum of the auxiliary section.
    pub aux_crc: u32,
}

/// A header that is not one. The connection is closed: nothing after it can be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// Not our protocol at all.
    #[error("no UKAI frame: magic {0:02x?}")]
    Magic([u8; 2]),
    /// Damaged on the way.
    #[error("header checksum {actual:#010x}, computed {computed:#010x}")]
    Crc {
        /// As received.
        actual: u32,
        /// Of the received bytes.
        computed: u32,
    },
    /// A version this code does not speak.
    #[error("protocol version {0}, this side speaks {PROTOCOL}")]
    Protocol(u8),
    /// An operation this code does not know.
    #[error("unknown opcode {0:#04x}")]
    Opcode(u8),
    /// A flag or status this code does not know.
    #[error("unknown flags {flags:#04x} or status {status}")]
    Bits {
        /// As received.
        flags: u8,
        /// As received.
        status: u8,
    },
    /// More than the limits allow, or data where none belongs.
    #[error("{what} of {value} is above the limit of {limit}")]
    Length {
        /// Which length.
        what: &'static str,
        /// As received.
        value: u64,
        /// The limit.
        limit: u64,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: [u8; 2],
    protocol: u8,
    opcode: u8,
    flags: u8,
    status: u8,
    aux_units: zerocopy::little_endian::U16,
    tag: zerocopy::little_endian::U64,
    volume: [u8; 16],
    chunk: zerocopy::little_endian::U32,
    sector: zerocopy::little_endian::U16,
    count: zerocopy::little_endian::U16,
    token: zerocopy::little_endian::U32,
    generation: zerocopy::little_endian::U32,
    seq: zerocopy::little_endian::U64,
    aux_crc: zerocopy::little_endian::U32,
    header_crc: zerocopy::little_endian::U32,
}
const _: () = assert!(size_of::<Raw>() == HEADER_BYTES);

impl Header {
    /// A request with everything else zero.
    #[must_use]
    pub fn request(opcode: Opcode, tag: u64) -> Self {
        Self {
            opcode,
            flags: Flags::NONE,
            status: Status::Ok,
            aux_bytes: 0,
            tag,
            volume: VolumeId::NIL,
            chunk: ChunkIndex(0),
            sector: SectorInChunk(0),
            count: 0,
            token: Token(0),
            generation: Generation(0),
            seq: Seq(0),
            aux_crc: 0,
        }
    }

    /// The reply to `self`: same opcode, tag, volume and range; no data, no aux.
    #[must_use]
    pub fn reply(&self, status: Status) -> Self {
        Self {
            flags: Flags::REPLY,
            status,
            aux_bytes: 0,
            aux_crc: 0,
            ..*self
        }
    }

    /// Token and sequence as a version.
    #[must_use]
    pub fn version(&self) -> Version {
        Version {
            token: self.token,
            seq: self.seq,
        }
    }

    /// Bytes of payload after the auxiliary section.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        if self.flags.has(Flags::DATA) {
            usize::from(self.count) * SECTOR_BYTES
        } else {
            0
        }
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.aux_bytes as usize + self.data_bytes()
    }

    /// Write it; computes the header checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        assert!(
            (self.aux_bytes as usize).is_multiple_of(WIRE_UNIT_BYTES),
            "aux {}",
            self.aux_bytes
        );
        assert!(
            self.aux_bytes as usize <= AUX_BYTES_MAX,
            "aux {}",
            self.aux_bytes
        );
        assert!(self.seq.0 <= SEQ_MAX, "seq {}", self.seq);
        #[allow(clippy::cast_possible_truncation)] // bounded by AUX_BYTES_MAX / 64
        let aux_units = (self.aux_bytes as usize / WIRE_UNIT_BYTES) as u16;
        let mut raw = Raw {
            magic: MAGIC,
            protocol: PROTOCOL,
            opcode: self.opcode as u8,
            flags: self.flags.0,
            status: self.status as u8,
            aux_units: aux_units.into(),
            tag: self.tag.into(),
            volume: self.volume.0,
            chunk: self.chunk.0.into(),
            sector: self.sector.0.into(),
            count: self.count.into(),
            token: self.token.0.into(),
            generation: self.generation.0.into(),
            seq: self.seq.0.into(),
            aux_crc: self.aux_crc.into(),
            header_crc: 0.into(),
        };
        raw.header_crc = crc32c(&raw.as_bytes()[..HEADER_BYTES - 4]).into();
        let mut out = [0; HEADER_BYTES];
        out.copy_from_slice(raw.as_bytes());
        out
    }

    /// Read it. Checks magic and checksum first, then every field against its limit, so that a
    /// caller may allocate [`Header::frame_bytes`] without further thought.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let Ok(raw) = Raw::read_from_bytes(bytes.as_slice()) else {
            unreachable!("the array has the size of the header")
        };
        if raw.magic != MAGIC {
            return Err(HeaderError::Magic(raw.magic));
        }
        let computed = crc32c(&bytes[..HEADER_BYTES - 4]);
        if raw.header_crc.get() != computed {
            return Err(HeaderError::Crc {
                actual: raw.header_crc.get(),
                computed,
            });
        }
        if raw.protocol != PROTOCOL {
            return Err(HeaderError::Protocol(raw.protocol));
        }
        let opcode = Opcode::from_byte(raw.opcode).ok_or(HeaderError::Opcode(raw.opcode))?;
        let bits = HeaderError::Bits {
            flags: raw.flags,
            status: raw.status,
        };
        let status = Status::from_byte(raw.status).ok_or(bits)?;
        let flags = Flags(raw.flags);
        let is_reply = flags.has(Flags::REPLY);
        if raw.flags & !Flags::KNOWN != 0 || (!is_reply && status != Status::Ok) {
            return Err(bits);
        }
        if flags.has(Flags::DATA) && !is_reply && !opcode.request_has_data() {
            return Err(bits);
        }
        let check = |what, value: u64, limit: u64| {
            if value > limit {
                Err(HeaderError::Length { what, value, limit })
            } else {
                Ok(())
            }
        };
        let aux_bytes = u32::from(raw.aux_units.get()) * WIRE_UNIT_BYTES_U32;
        check("auxiliary section", aux_bytes.into(), AUX_BYTES_MAX as u64)?;
        if flags.has(Flags::DATA) {
            check(
                "sector count",
                raw.count.get().into(),
                FRAME_SECTORS_MAX as u64,
            )?;
        }
        check("sequence", raw.seq.get(), SEQ_MAX)?;
        Ok(Self {
            opcode,
            flags,
            status,
            aux_bytes,
            tag: raw.tag.get(),
            volume: VolumeId(raw.volume),
            chunk: ChunkIndex(raw.chunk.get()),
            sector: SectorInChunk(raw.sector.get()),
            count: raw.count.get(),
            token: Token(raw.token.get()),
            generation: Generation(raw.generation.get()),
            seq: Seq(raw.seq.get()),
            aux_crc: raw.aux_crc.get(),
        })
    }
}
