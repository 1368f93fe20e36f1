//! Contents of the auxiliary sections, one type per message, encoded to and from bytes.
//!
//! Readers check every length before use and never allocate more than the section itself holds.

use crate::ids::{
    BootId, ChunkIndex, ClusterId, Incarnation, NodeId, Seq, ShardIndex, Token, Version, VolumeId,
};
use crate::limits::{CHUNK_LIST_MAX, SEQ_MAX};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An auxiliary section too short or with a value out of range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed {0} message")]
pub struct MessageError(pub &'static str);

/// Who is at the other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Role {
    /// A front's lane: data requests.
    Lane = 1,
    /// A front's control connection.
    Control = 2,
    /// Another node, copying.
    Peer = 3,
    /// `ukai-tools`.
    Tools = 4,
    /// The node itself (in replies).
    Node = 5,
}

/// First message both ways. The requester names the cluster, node and shard it wants to reach; the
/// node answers with what it is. A mismatch is answered by a status and the connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node that is meant (request) or that answers (reply).
    pub node: NodeId,
    /// Who speaks.
    pub role: Role,
    /// The shard that is meant or that answers.
    pub shard: ShardIndex,
    /// Shards of the node (reply).
    pub shard_count: u16,
    /// The node's run (reply); zero in requests.
    pub incarnation: Incarnation,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    cluster: [u8; 16],
    node: [u8; 16],
    boot: [u8; 16],
    start: U64,
    shard: U16,
    shard_count: U16,
    role: u8,
    pad: [u8; 3],
}

impl Hello {
    /// To an auxiliary section.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        RawHello {
            cluster: self.cluster.0,
            node: self.node.0,
            boot: self.incarnation.boot.0,
            start: self.incarnation.start.into(),
            shard: self.shard.0.into(),
            shard_count: self.shard_count.into(),
            role: self.role as u8,
            pad: [0; 3],
        }
        .as_bytes()
        .to_vec()
    }

    /// From an auxiliary section.
    pub fn decode(aux: &[u8]) -> Result<Self, MessageError> {
        let (raw, _) = RawHello::read_from_prefix(aux).map_err(|_| MessageError("HELLO"))?;
        let role = match raw.role {
            1 => Role::Lane,
            2 => Role::Control,
            3 => Role::Peer,
            4 => Role::Tools,
            5 => Role::Node,
            _ => return Err(MessageError("HELLO")),
        };
        Ok(Self {
            cluster: ClusterId(raw.cluster),
            node: NodeId(raw.node),
            role,
            shard: ShardIndex(raw.shard.get()),
            shard_count: raw.shard_count.get(),
            incarnation: Incarnation {
                boot: BootId(raw.boot),
                start: raw.start.get(),
            },
        })
    }
}

/// Prefix and checksum table of WRITE requests and READ replies: one `u64`, then a CRC-32C per
/// sector. In a WRITE the prefix is the front's settled sequence: every in-sync replica has every
/// write up to it. In a READ reply it is the node's service time in nanoseconds.
#[must_use]
pub fn crc_table(prefix: u64, crcs: impl Iterator<Item = u32>) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&prefix.to_le_bytes());
    crcs.for_each(|crc| out.extend_from_slice(&crc.to_le_bytes()));
    out
}

/// Reads what [`crc_table`] wrote: the prefix and `count` checksums.
pub fn read_crc_table(
    aux: &[u8],
    count: u16,
) -> Result<(u64, impl ExactSizeIterator<Item = u32> + Clone + '_), MessageError> {
    let error = MessageError("checksum table");
    let (prefix, rest) = U64::ref_from_prefix(aux).map_err(|_| error)?;
    let (crcs, _) = <[U32]>::ref_from_prefix_with_elems(rest, count.into()).map_err(|_| error)?;
    Ok((prefix.get(), crcs.iter().map(|crc| crc.get())))
}

/// The prefix of a READ reply alone: the node's service time in nanoseconds.
#[must_use]
pub fn read_service_ns(aux: &[u8]) -> Option<u64> {
    let (prefix, _) = U64::ref_from_prefix(aux).ok()?;
    Some(prefix.get())
}

/// READ reply of several sectors, after its checksum table: the sequence number of each, for those that
/// the request's token wrote (0 for the others).
pub fn append_seqs(aux: &mut Vec<u8>, seqs: impl Iterator<Item = Seq>) {
    seqs.for_each(|seq| aux.extend_from_slice(&seq.0.to_le_bytes()));
}

/// Reads what [`append_seqs`] wrote. `None`: it is not there, so none of them is in flight.
#[must_use]
pub fn read_seqs(aux: &[u8], count: u16) -> Option<impl Iterator<Item = Seq> + '_> {
    let after = 8 + usize::from(count) * 4;
    let raw = aux.get(after..)?.get(..usize::from(count) * 8)?;
    let (words, _) = raw.as_chunks::<8>();
    Some(words.iter().map(|word| Seq(u64::from_le_bytes(*word))))
}

/// What a node knows of one sector: 16 bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SectorState {
    /// Version of the last write; zero if never written.
    pub version: Version,
    /// CRC-32C of the content ([`crate::crc::ZERO_SECTOR_CRC`] if unwritten or zeroed).
    pub crc: u32,
    /// See the constants.
    pub flags: u16,
}

impl SectorState {
    /// The content is zeros, by WRITE_ZEROES, discard, or for want of any write; no data is kept.
    pub const ZERO: u16 = 1;
    /// The content does not match its checksum; a peer must repair it.
    pub const BAD: u16 = 2;
    /// After a crash the log record of an un-acknowledged write was lost but its data was found:
    /// the checksum was taken from the content. Ranks below any logged write of the same version.
    pub const ADOPTED: u16 = 4;
    /// Only on the wire, with BAD and ADOPTED: the content was adopted under the front that is served still, and
    /// may be rot. Good enough to be reconciled, not to be read or copied otherwise.
    pub const DOUBTED: u16 = 8;

    /// Never written.
    pub const UNWRITTEN: Self = Self {
        version: Version::ZERO,
        crc: crate::crc::ZERO_SECTOR_CRC,
        flags: Self::ZERO,
    };

    /// As a reconcile sees it: what is only doubted counts as adopted content.
    #[must_use]
    pub fn undoubted(self) -> Self {
        let doubt = if self.flags & Self::DOUBTED == 0 {
            0
        } else {
            Self::DOUBTED | Self::BAD
        };
        Self {
            flags: self.flags & !doubt,
            ..self
        }
    }

    /// Same content and same history?
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.version == other.version
            && self.crc == other.crc
            && (self.flags | other.flags) & Self::BAD == 0
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSectorState {
    token: U32,
    crc: U32,
    seq_and_flags: U64,
}

/// Bytes of one [`SectorState`].
pub const SECTOR_STATE_BYTES: usize = size_of::<RawSectorState>();

/// Prefix (node service time, nanoseconds) and states of LIST and READ_VERSIONED replies.
#[must_use]
pub fn sector_states(prefix: u64, states: impl Iterator<Item = SectorState>) -> Vec<u8> {
    let mut out = prefix.to_le_bytes().to_vec();
    for state in states {
        let raw = RawSectorState {
            token: state.version.token.0.into(),
            crc: state.crc.into(),
            seq_and_flags: (state.version.seq.0 | u64::from(state.flags) << 48).into(),
        };
        out.extend_from_slice(raw.as_bytes());
    }
    out
}

/// Reads what [`sector_states`] wrote.
pub fn read_sector_states(
    aux: &[u8],
    count: u16,
) -> Result<(u64, impl ExactSizeIterator<Item = SectorState> + Clone + '_), MessageError> {
    let error = MessageError("sector state");
    let (prefix, rest) = U64::ref_from_prefix(aux).map_err(|_| error)?;
    let (raws, _) =
        <[RawSectorState]>::ref_from_prefix_with_elems(rest, count.into()).map_err(|_| error)?;
    let states = raws.iter().map(|raw| {
        let both = raw.seq_and_flags.get();
        #[allow(clippy::cast_possible_truncation)] // the high 16 bits
        let flags = (both >> 48) as u16;
        SectorState {
            version: Version {
                token: Token(raw.token.get()),
                seq: Seq(both & SEQ_MAX),
            },
            crc: raw.crc.get(),
            flags,
        }
    });
    Ok((prefix.get(), states))
}

/// How a PULL decides between what the target holds and what the source has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PullMode {
    /// Take only what is newer at the source (reconcile after a front's crash, run both ways), or
    /// what is bad here and good there.
    Newer = 1,
    /// Become equal to the source: every sector that differs is taken, also where this node holds a
    /// *newer* version, unless that version is above the ceiling (written since the join began).
    Mirror = 2,
    /// Take what is newer at the source, and what is bad here and good there, but for a bad sector
    /// never anything *older*: the write that went bad may not have reached the source yet. For use
    /// while a front writes (read repair, scrub).
    Repair = 3,
    /// As [`PullMode::Mirror`], and what is bad at the source becomes bad here too: version, checksum and
    /// whatever is found there in place of the content. For what is bad on every in-sync replica, so that the
    /// rest of its chunk can lie elsewhere.
    MirrorBad = 4,
}

impl PullMode {
    /// Does the target become equal to the source?
    #[must_use]
    pub fn is_mirror(self) -> bool {
        matches!(self, Self::Mirror | Self::MirrorBad)
    }
}

/// Order to a node: fetch the header's range of the chunk (whole chunk allowed: no payload is
/// carried) from another node, compare (version, crc) lists, copy only sectors that differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pull {
    /// Where to fetch from.
    pub source: NodeId,
    /// The boot under which the source counts as in-sync: after another one it may have lost what was
    /// not flushed, and must not be copied from.
    pub source_boot: BootId,
    /// Shards of the source (its chunk routing).
    pub source_shard_count: u16,
    /// Which sectors to take.
    pub mode: PullMode,
    /// See [`PullMode::Mirror`].
    pub ceiling: Version,
    /// Addresses of the source's shard that owns the chunk, best first, as in the node's record
    /// (`unix:/path`, `tcp:host:port`), at most 4 of at most 200 bytes.
    pub addresses: Vec<String>,
}

/// Addresses in one PULL.
pub const PULL_ADDRESSES_MAX: usize = 4;
/// Bytes of one address in a PULL: a path of a Unix socket has at most 108, a host name 253 in theory.
pub const PULL_ADDRESS_BYTES_MAX: usize = 200;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPull {
    source: [u8; 16],
    source_boot: [u8; 16],
    ceiling_seq: U64,
    ceiling_token: U32,
    source_shard_count: U16,
    mode: u8,
    address_count: u8,
}

impl Pull {
    /// To an auxiliary section.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.addresses.len() <= PULL_ADDRESSES_MAX);
        #[allow(clippy::cast_possible_truncation)] // asserted
        let address_count = self.addresses.len() as u8;
        let mut out = RawPull {
            source: self.source.0,
            source_boot: self.source_boot.0,
            ceiling_seq: self.ceiling.seq.0.into(),
            ceiling_token: self.ceiling.token.0.into(),
            source_shard_count: self.source_shard_count.into(),
            mode: self.mode as u8,
            address_count,
        }
        .as_bytes()
        .to_vec();
        for address in &self.addresses {
            assert!(address.len() <= PULL_ADDRESS_BYTES_MAX, "address {address}");
            #[allow(clippy::cast_possible_truncation)] // asserted
            out.push(address.len() as u8);
            out.extend_from_slice(address.as_bytes());
        }
        out
    }

    /// From an auxiliary section.
    pub fn decode(aux: &[u8]) -> Result<Self, MessageError> {
        let error = MessageError("PULL");
        let (raw, mut rest) = RawPull::read_from_prefix(aux).map_err(|_| error)?;
        let mode = match raw.mode {
            1 => PullMode::Newer,
            2 => PullMode::Mirror,
            3 => PullMode::Repair,
            4 => PullMode::MirrorBad,
            _ => return Err(error),
        };
        let count = usize::from(raw.address_count);
        if count > PULL_ADDRESSES_MAX
            || raw.source_shard_count.get() == 0
            || raw.ceiling_seq.get() > SEQ_MAX
        {
            return Err(error);
        }
        let mut addresses = Vec::with_capacity(count);
        for _ in 0..count {
            let (&len, tail) = rest.split_first().ok_or(error)?;
            let (text, tail) = tail.split_at_checked(len.into()).ok_or(error)?;
            if text.len() > PULL_ADDRESS_BYTES_MAX {
                return Err(error);
            }
            addresses.push(std::str::from_utf8(text).map_err(|_| error)?.to_owned());
            rest = tail;
        }
        Ok(Self {
            source: NodeId(raw.source),
            source_boot: BootId(raw.source_boot),
            source_shard_count: raw.source_shard_count.get(),
            mode,
            ceiling: Version::new(Token(raw.ceiling_token.get()), Seq(raw.ceiling_seq.get())),
            addresses,
        })
    }
}

/// Reply to a PULL that succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pulled {
    /// Sectors whose states were compared.
    pub sectors_compared: u32,
    /// Sectors taken from the source.
    pub sectors_copied: u32,
    /// Sectors that are bad on both sides: nothing could be done.
    pub sectors_bad: u32,
}

impl Pulled {
    /// To an auxiliary section.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        [self.sectors_compared, self.sectors_copied, self.sectors_bad]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect()
    }

    /// From an auxiliary section.
    pub fn decode(aux: &[u8]) -> Result<Self, MessageError> {
        let (raw, _) = <[U32; 3]>::read_from_prefix(aux).map_err(|_| MessageError("PULL reply"))?;
        let [sectors_compared, sectors_copied, sectors_bad] = raw.map(|n| n.get());
        Ok(Self {
            sectors_compared,
            sectors_copied,
            sectors_bad,
        })
    }
}

/// How long a PULL stood back for the copy rates of the nodes: the `seq` of its reply, also of a reply
/// [`crate::Status::Busy`], which then says that the order is to be given again. Zero from nodes that
/// know no such rate. Milliseconds, at most [`HeldBack::MAX_MS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeldBack {
    /// For the rate of the target.
    pub at_target_ms: u32,
    /// For that of the source.
    pub at_source_ms: u32,
}

impl HeldBack {
    const BITS: u32 = 24;
    /// The longest time that can be told: 4.6 hours.
    pub const MAX_MS: u32 = (1 << Self::BITS) - 1;

    /// As sent.
    #[must_use]
    pub fn to_seq(self) -> Seq {
        let [target, source] =
            [self.at_target_ms, self.at_source_ms].map(|ms| u64::from(ms.min(Self::MAX_MS)));
        Seq(source << Self::BITS | target)
    }

    /// As received.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // 24 bits each
    pub fn from_seq(seq: Seq) -> Self {
        Self {
            at_target_ms: seq.0 as u32 & Self::MAX_MS,
            at_source_ms: (seq.0 >> Self::BITS) as u32 & Self::MAX_MS,
        }
    }

    /// Was it held back at all?
    #[must_use]
    pub fn is_any(self) -> bool {
        self != Self::default()
    }
}

/// A list of chunk numbers: open intents in FENCE replies, WRITTEN_SINCE replies.
#[must_use]
pub fn chunk_list(chunks: &[ChunkIndex]) -> Vec<u8> {
    assert!(
        chunks.len() <= CHUNK_LIST_MAX,
        "{} chunks in one list",
        chunks.len()
    );
    #[allow(clippy::cast_possible_truncation)] // asserted
    let mut out = (chunks.len() as u32).to_le_bytes().to_vec();
    chunks
        .iter()
        .for_each(|chunk| out.extend_from_slice(&chunk.0.to_le_bytes()));
    out
}

/// Reads what [`chunk_list`] wrote. An empty section is an empty list.
pub fn read_chunk_list(aux: &[u8]) -> Result<Vec<ChunkIndex>, MessageError> {
    if aux.is_empty() {
        return Ok(Vec::new());
    }
    let error = MessageError("chunk list");
    let (count, rest) = U32::read_from_prefix(aux).map_err(|_| error)?;
    let (list, _) =
        <[U32]>::ref_from_prefix_with_elems(rest, count.get() as usize).map_err(|_| error)?;
    Ok(list.iter().map(|chunk| ChunkIndex(chunk.get())).collect())
}

/// A range of chunks, in RELEASE requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkRange {
    /// First chunk.
    pub start: ChunkIndex,
    /// How many.
    pub count: u32,
}

/// Ranges in one RELEASE.
pub const CHUNK_RANGES_MAX: usize = 1024;

/// Ranges to an auxiliary section.
#[must_use]
pub fn chunk_ranges(ranges: &[ChunkRange]) -> Vec<u8> {
    assert!(ranges.len() <= CHUNK_RANGES_MAX, "{} ranges", ranges.len());
    #[allow(clippy::cast_possible_truncation)] // asserted
    let mut out = (ranges.len() as u32).to_le_bytes().to_vec();
    for range in ranges {
        out.extend_from_slice(&range.start.0.to_le_bytes());
        out.extend_from_slice(&range.count.to_le_bytes());
    }
    out
}

/// Reads what [`chunk_ranges`] wrote.
pub fn read_chunk_ranges(aux: &[u8]) -> Result<Vec<ChunkRange>, MessageError> {
    let error = MessageError("chunk ranges");
    let (count, rest) = U32::read_from_prefix(aux).map_err(|_| error)?;
    if count.get() as usize > CHUNK_RANGES_MAX {
        return Err(error);
    }
    let (list, _) =
        <[[U32; 2]]>::ref_from_prefix_with_elems(rest, count.get() as usize).map_err(|_| error)?;
    list.iter()
        .map(|[start, count]| {
            let range = ChunkRange {
                start: ChunkIndex(start.get()),
                count: count.get(),
            };
            range
                .start
                .0
                .checked_add(range.count)
                .map(|_| range)
                .ok_or(error)
        })
        .collect()
}

/// One volume that has chunks on a shard, in INVENTORY replies (MORE: ask again from the last
/// volume, given in the request's volume field, exclusive).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InventoryEntry {
    /// The volume.
    pub volume: VolumeId,
    /// Slots in use by it.
    pub slots: u64,
    /// Its fence on this shard.
    pub token: Token,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawInventoryEntry {
    volume: [u8; 16],
    slots: U64,
    token: U32,
    pad: U32,
}

/// Entries in one INVENTORY reply.
pub const INVENTORY_MAX: usize = 1024;

/// Entries to an auxiliary section.
#[must_use]
pub fn inventory(entries: &[InventoryEntry]) -> Vec<u8> {
    assert!(entries.len() <= INVENTORY_MAX, "{} entries", entries.len());
    #[allow(clippy::cast_possible_truncation)] // asserted
    let mut out = (entries.len() as u32).to_le_bytes().to_vec();
    for entry in entries {
        let raw = RawInventoryEntry {
            volume: entry.volume.0,
            slots: entry.slots.into(),
            token: entry.token.0.into(),
            pad: 0.into(),
        };
        out.extend_from_slice(raw.as_bytes());
    }
    out
}

/// Reads what [`inventory`] wrote.
pub fn read_inventory(aux: &[u8]) -> Result<Vec<InventoryEntry>, MessageError> {
    let error = MessageError("inventory");
    let (count, rest) = U32::read_from_prefix(aux).map_err(|_| error)?;
    if count.get() as usize > INVENTORY_MAX {
        return Err(error);
    }
    let (list, _) = <[RawInventoryEntry]>::ref_from_prefix_with_elems(rest, count.get() as usize)
        .map_err(|_| error)?;
    let entry = |raw: &RawInventoryEntry| InventoryEntry {
        volume: VolumeId(raw.volume),
        slots: raw.slots.get(),
        token: Token(raw.token.get()),
    };
    Ok(list.iter().map(entry).collect())
}

/// What a report is about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ReportKind(pub u16);

impl ReportKind {
    /// A front's latencies and progress: JSON (`ukai_meta::report::FrontReport`), page 0.
    pub const FRONT: Self = Self(1);
    /// A page of a volume's heat: [`crate::heat::HeatPage`].
    pub const HEAT: Self = Self(2);
    /// The shard's own service times: JSON (`ukai_meta::report::ServiceReport`), nil volume, page 0.
    pub const SERVICE: Self = Self(3);
}

/// A report about a volume that a front leaves with nodes for whoever asks (PUT_REPORT), or what is
/// asked for (GET_REPORT: without a body) and answered. Kept in memory, the oldest dropped first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// About what.
    pub kind: ReportKind,
    /// Which part of it.
    pub page: u32,
    /// Content; at most [`REPORT_BYTES_MAX`].
    pub body: Vec<u8>,
}

/// Bytes of one report: fills an auxiliary section but for its head.
pub const REPORT_BYTES_MAX: usize = 60 << 10;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawReport {
    kind: U16,
    pad: U16,
    page: U32,
    bytes: U32,
    pad2: U32,
}

impl Report {
    /// To an auxiliary section.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let bytes = self.body.len();
        assert!(bytes <= REPORT_BYTES_MAX, "a report of {bytes} bytes");
        #[allow(clippy::cast_possible_truncation)] // asserted
        let raw = RawReport {
            kind: self.kind.0.into(),
            pad: 0.into(),
            page: self.page.into(),
            bytes: (bytes as u32).into(),
            pad2: 0.into(),
        };
        let mut out = raw.as_bytes().to_vec();
        out.extend_from_slice(&self.body);
        out
    }

    /// From an auxiliary section.
    pub fn decode(aux: &[u8]) -> Result<Self, MessageError> {
        let error = MessageError("report");
        let (raw, rest) = RawReport::ref_from_prefix(aux).map_err(|_| error)?;
        let bytes = raw.bytes.get() as usize;
        if bytes > REPORT_BYTES_MAX {
            return Err(error);
        }
        Ok(Self {
            kind: ReportKind(raw.kind.get()),
            page: raw.page.get(),
            body: rest.get(..bytes).ok_or(error)?.to_vec(),
        })
    }
}

const _: () = assert!(size_of::<RawReport>() + REPORT_BYTES_MAX <= crate::limits::AUX_BYTES_MAX);

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
        pub struct $name { $($(#[$field_doc])* pub $field: u64),+ }

        impl $name {
            /// To an auxiliary section.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                [$(self.$field),+].iter().flat_map(|n: &u64| n.to_le_bytes()).collect()
            }
            /// From an auxiliary section; counters that an older node lacks read as 0.
            #[must_use]
            pub fn decode(aux: &[u8]) -> Self {
                let mut words = aux.chunks_exact(8).map(|b| {
                    let mut word = [0; 8];
                    word.copy_from_slice(b);
                    u64::from_le_bytes(word)
                });
                Self { $($field: words.next().unwrap_or(0)),+ }
            }
            /// Add another shard's.
            pub fn add(&mut self, other: &Self) {
                $(self.$field = self.$field.saturating_add(other.$field);)+
            }
        }
    };
}

counters!(
    /// Counters of a shard since its start, and its space.
    ShardStats {
        /// READ requests answered.
        reads,
        /// WRITE requests answered.
        writes,
        /// ZERO requests answered.
        zeroes,
        /// FLUSH requests answered.
        flushes,
        /// Bytes read for clients.
        read_bytes,
        /// Bytes written for clients.
        write_bytes,
        /// Sectors taken from peers by PULL.
        pulled_sectors,
        /// Requests refused by the fence (token or generation).
        refused,
        /// Sectors found not to match their checksum.
        bad_sectors,
        /// Slots in use.
        slots_used,
        /// Slots there are.
        slots_total,
        /// Chunks with an open intent.
        intents_open,
        /// Metadata log bytes written.
        log_bytes,
        /// Checkpoints completed.
        checkpoints,
        /// Of the sectors taken from peers, those that are zeros and moved no data.
        pulled_zeroes,
        /// Sectors whose data was read to verify it (LIST with VERIFY).
        verified_sectors,
    }
);

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // small numbers of a test
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hello_round_trips() {
        let hello = Hello {
            cluster: ClusterId([1; 16]),
            node: NodeId([2; 16]),
            role: Role::Control,
            shard: ShardIndex(3),
            shard_count: 4,
            incarnation: Incarnation {
                boot: BootId([5; 16]),
                start: 6,
            },
        };
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
    }

    #[test]
    fn pull_round_trips() {
        let pull = Pull {
            source: NodeId([2; 16]),
            source_boot: BootId([9; 16]),
            source_shard_count: 2,
            mode: PullMode::Mirror,
            ceiling: Version::new(Token(4), Seq(77)),
            addresses: vec!["unix:/run/n0/0".into(), "tcp:127.0.0.1:9000".into()],
        };
        assert_eq!(Pull::decode(&pull.encode()), Ok(pull));
    }

    #[test]
    fn reports_round_trip_up_to_their_limit() {
        for bytes in [0, 1, REPORT_BYTES_MAX] {
            let report = Report {
                kind: ReportKind::HEAT,
                page: 7,
                body: vec![3; bytes],
            };
            let mut aux = report.encode();
            assert_eq!(Report::decode(&aux), Ok(report));
            assert!(Report::decode(&aux[..15]).is_err());
            aux[8..12].copy_from_slice(&(bytes as u32 + 1).to_le_bytes());
            assert!(Report::decode(&aux).is_err());
        }
    }

    #[test]
    fn a_pull_that_could_not_be_sent_on_is_refused() {
        let mut aux = Pull {
            source: NodeId([2; 16]),
            source_boot: BootId([9; 16]),
            source_shard_count: 2,
            mode: PullMode::Mirror,
            ceiling: Version::ZERO,
            addresses: vec!["a".repeat(PULL_ADDRESS_BYTES_MAX)],
        }
        .encode();
        assert!(Pull::decode(&aux).is_ok());
        let len_at = aux.len() - PULL_ADDRESS_BYTES_MAX - 1;
        aux[len_at] += 1;
        aux.push(b'a');
        assert_eq!(Pull::decode(&aux), Err(MessageError("PULL")));
    }

    proptest! {
        #[test]
        fn sector_states_round_trip(raw in prop::collection::vec(
            (any::<u32>(), 0..=SEQ_MAX, any::<u32>(), any::<u16>()), 0..256,
        )) {
            let states: Vec<_> = raw.iter().map(|&(token, seq, crc, flags)| SectorState {
                version: Version::new(Token(token), Seq(seq)), crc, flags,
            }).collect();
            let aux = sector_states(9, states.iter().copied());
            let (prefix, got) = read_sector_states(&aux, states.len() as u16).unwrap();
            prop_assert_eq!(prefix, 9);
            prop_assert_eq!(got.collect::<Vec<_>>(), states);
        }

        #[test]
        fn arbitrary_sections_never_panic(aux in prop::collection::vec(any::<u8>(), 0..512), n in any::<u16>()) {
            let _ = Hello::decode(&aux);
            let _ = Pull::decode(&aux);
            let _ = Pulled::decode(&aux);
            let _ = read_chunk_list(&aux);
            let _ = read_chunk_ranges(&aux);
            let _ = read_inventory(&aux);
            let _ = Report::decode(&aux);
            let _ = read_crc_table(&aux, n).map(|(_, crcs)| crcs.count());
            let _ = read_sector_states(&aux, n).map(|(_, states)| states.count());
            let _ = ShardStats::decode(&aux);
        }
    }
}
