//! Heads and map shards as bytes: an envelope around an rkyv archive.
//!
//! | bytes | field | |
//! |-|-|-|
//! | 0..4 | magic | `UKMH` head, `UKMS` map shard |
//! | 4 | version | of the archive's layout, 1 |
//! | 5..8 | zero | |
//! | 8..12 | length | of the archive, little-endian |
//! | 12..16 | crc | CRC-32C of bytes 0..12 and the archive |
//! | 16.. | archive | little-endian rkyv |
//!
//! Nothing read is trusted: envelope, then rkyv's own check of the archive, then every number against
//! what it refers to. Any change of the structs below is a new version byte; `tests/golden.rs` keeps
//! the bytes of each version.

use crate::key;
use crate::map::{VolumeMap, chunk_count, shard_count, shard_len};
use crate::record::{Attach, Durability, NodeHealth, PlaceRule, ReplicaState, VolumeHead};
use crate::sets::{ReplicaList, SETS_MAX, SetIndex, SetTable, VOLUME_NODES_MAX};
use crate::shard::{Run, SHARD_CHUNKS, Shard};
use crate::store::{KvVersion, MetaError, VALUE_BYTES_MAX};
use rkyv::util::AlignedVec;
use std::collections::HashMap;
use std::sync::Arc;
use ukai_proto::crc::crc32c;
use ukai_proto::limits::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, SECTOR_BYTES, VOLUME_BYTES_MAX};
use ukai_proto::{BootId, Generation, NodeId, Token, VolumeId};

const HEAD_MAGIC: [u8; 4] = *b"UKMH";
const SHARD_MAGIC: [u8; 4] = *b"UKMS";
/// Layout that this code writes, and the newest it reads.
pub const FORMAT: u8 = 1;
const ENVELOPE_BYTES: usize = 16;
const NEWER: &str = "use a newer release";

/// In `base`: the shard has a key of its own.
const MIXED: u16 = u16::MAX;
const _: () = assert!(SETS_MAX < MIXED as usize);

/// Bits of a set's member below the state.
const NODE_BITS: u32 = 12;
const _: () = assert!(VOLUME_NODES_MAX <= 1 << NODE_BITS);

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct HeadV1 {
    volume: [u8; 16],
    name: String,
    size_bytes: u64,
    chunk_bytes: u64,
    /// 0 cache, 1 through.
    durability: u8,
    deleting: bool,
    token: u32,
    generation: u32,
    place: Vec<PlaceV1>,
    attach: Option<AttachV1>,
    health: Vec<HealthV1>,
    /// Nodes that sets name, ascending.
    nodes: Vec<[u8; 16]>,
    /// Number of members of each set; 0: the number is free.
    set_lens: Vec<u8>,
    /// Members of all sets, one after the other: node number | state << 12.
    members: Vec<u16>,
    /// Runs of shards: their common set, or [`MIXED`].
    base: Vec<RunV1>,
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct PlaceV1 {
    site: String,
    copies: u8,
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct AttachV1 {
    host: String,
    boot: [u8; 16],
    front: [u8; 16],
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct HealthV1 {
    node: [u8; 16],
    since: u32,
    /// 0 stale, 1 rejoining.
    state: u8,
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct RunV1 {
    start: u16,
    set: u16,
}

#[derive(rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
struct ShardV1 {
    volume: [u8; 16],
    shard: u16,
    runs: Vec<RunV1>,
}

fn state_number(state: ReplicaState) -> u16 {
    match state {
        ReplicaState::InSync => 0,
        ReplicaState::Joining => 1,
        ReplicaState::Leaving => 2,
        ReplicaState::Stale => unreachable!("stale is a node's health, never stored in a set"),
    }
}

fn state_of(number: u16) -> Option<ReplicaState> {
    match number {
        0 => Some(ReplicaState::InSync),
        1 => Some(ReplicaState::Joining),
        2 => Some(ReplicaState::Leaving),
        _ => None,
    }
}

fn seal(magic: [u8; 4], archive: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + archive.len());
    out.extend_from_slice(&magic);
    out.extend_from_slice(&[FORMAT, 0, 0, 0]);
    #[allow(clippy::cast_possible_truncation)] // heads and shards are far below 4 GiB
    out.extend_from_slice(&(archive.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(archive);
    let crc = envelope_crc(&out);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Of everything but the crc field itself.
fn envelope_crc(bytes: &[u8]) -> u32 {
    let mut covered = Vec::with_capacity(bytes.len() - 4);
    covered.extend_from_slice(&bytes[..12]);
    covered.extend_from_slice(&bytes[ENVELOPE_BYTES..]);
    crc32c(&covered)
}

/// The archive inside an envelope, aligned as rkyv needs it.
fn open(magic: [u8; 4], bytes: &[u8]) -> Result<AlignedVec, String> {
    if bytes.len() < ENVELOPE_BYTES || bytes.len() > VALUE_BYTES_MAX {
        return Err(format!("{} bytes long", bytes.len()));
    }
    if bytes[..4] != magic {
        return Err("it begins with another magic number".into());
    }
    if bytes[4] != FORMAT {
        return Err(format!(
            "its format is {}, this program reads {FORMAT}; {NEWER}",
            bytes[4]
        ));
    }
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if word(8) as usize != bytes.len() - ENVELOPE_BYTES || bytes[5..8] != [0; 3] {
        return Err("its length field does not fit".into());
    }
    let computed = envelope_crc(bytes);
    if word(12) != computed {
        return Err(format!(
            "checksum {:#010x}, computed {computed:#010x}",
            word(12)
        ));
    }
    let mut aligned = AlignedVec::with_capacity(bytes.len() - ENVELOPE_BYTES);
    aligned.extend_from_slice(&bytes[ENVELOPE_BYTES..]);
    Ok(aligned)
}

/// What to do about a damaged key, once, for all of them.
fn corrupt(key: &str, problem: &str) -> MetaError {
    let advice = if problem.contains(NEWER) {
        ""
    } else {
        "; restore this key from a backup of the metadata store"
    };
    MetaError::Corrupt {
        key: key.to_owned(),
        problem: format!("{problem}{advice}"),
    }
}

/// The head of a map.
pub(crate) fn encode_head(map: &VolumeMap) -> Vec<u8> {
    let head = &map.head;
    let nodes = map.nodes();
    let numbers: HashMap<NodeId, u16> = nodes.iter().copied().zip(0u16..).collect();
    let mut set_lens = Vec::with_capacity(map.sets.sets().len());
    let mut members = Vec::new();
    for set in map.sets.sets() {
        #[allow(clippy::cast_possible_truncation)] // at most REPLICAS_MAX
        set_lens.push(set.len() as u8);
        for replica in set.iter() {
            members.push(numbers[&replica.node] | state_number(replica.state) << NODE_BITS);
        }
    }
    let mut base: Vec<RunV1> = Vec::new();
    for (start, shard) in (0u16..).zip(&map.shards) {
        let set = match shard {
            Shard::Uniform(set) => set.0,
            Shard::Mixed { .. } => MIXED,
        };
        if base.last().is_none_or(|last| last.set != set) {
            base.push(RunV1 { start, set });
        }
    }
    let archive = HeadV1 {
        volume: head.volume.0,
        name: head.name.clone(),
        size_bytes: head.size_bytes,
        chunk_bytes: head.chunk_bytes,
        durability: match head.durability {
            Durability::Cache => 0,
            Durability::Through => 1,
        },
        deleting: head.deleting,
        token: head.token.0,
        generation: head.generation.0,
        place: head
            .place
            .iter()
            .map(|rule| PlaceV1 {
                site: rule.site.clone(),
                copies: rule.copies,
            })
            .collect(),
        attach: head.attach.as_ref().map(|attach| AttachV1 {
            host: attach.host.clone(),
            boot: attach.boot.0,
            front: attach.front,
        }),
        health: head
            .health
            .iter()
            .map(|(node, health)| HealthV1 {
                node: node.0,
                since: health.since().0,
                state: match health {
                    NodeHealth::Stale { .. } => 0,
                    NodeHealth::Rejoining { .. } => 1,
                },
            })
            .collect(),
        nodes: nodes.iter().map(|node| node.0).collect(),
        set_lens,
        members,
        base,
    };
    let bytes =
        rkyv::to_bytes::<rkyv::rancor::Error>(&archive).expect("plain structs archive into memory");
    seal(HEAD_MAGIC, &bytes)
}

/// One shard of a map.
pub(crate) fn encode_shard(volume: VolumeId, shard: usize, runs: &[Run]) -> Vec<u8> {
    let archive = ShardV1 {
        volume: volume.0,
        #[allow(clippy::cast_possible_truncation)] // at most 2^30 chunks / 2^16
        shard: shard as u16,
        runs: runs
            .iter()
            .map(|run| RunV1 {
                start: run.start,
                set: run.set.0,
            })
            .collect(),
    };
    let bytes =
        rkyv::to_bytes::<rkyv::rancor::Error>(&archive).expect("plain structs archive into memory");
    seal(SHARD_MAGIC, &bytes)
}

/// A head as read, without the shards that have keys of their own.
#[derive(Debug)]
pub struct HeadParts {
    /// The head.
    pub head: VolumeHead,
    sets: SetTable,
    /// Per shard its set, or `None` if it has a key.
    base: Vec<Option<SetIndex>>,
}

impl HeadParts {
    /// Shards that have to be read as well.
    pub fn mixed_shards(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.base.len()).filter(|shard| self.base[*shard].is_none())
    }
}

/// Reads a head. Everything inside it is checked; what refers to shards, by [`assemble`].
pub fn decode_head(volume: VolumeId, bytes: &[u8]) -> Result<HeadParts, MetaError> {
    let key = key::head(volume);
    read_head(volume, bytes).map_err(|problem| corrupt(&key, &problem))
}

fn read_head(volume: VolumeId, bytes: &[u8]) -> Result<HeadParts, String> {
    let archive = open(HEAD_MAGIC, bytes)?;
    let raw: HeadV1 = rkyv::from_bytes::<HeadV1, rkyv::rancor::Error>(&archive)
        .map_err(|_| "its archive is malformed".to_owned())?;
    check_head(volume, &raw)?;
    let sets = read_sets(&raw)?;
    let shards = shard_count(chunk_count(raw.size_bytes, raw.chunk_bytes));
    let base = read_base(&raw.base, shards, &sets)?;
    let mut health = Vec::with_capacity(raw.health.len());
    for entry in &raw.health {
        let since = Generation(entry.since);
        let state = match entry.state {
            0 => NodeHealth::Stale { since },
            1 => NodeHealth::Rejoining { since },
            other => return Err(format!("node health {other}")),
        };
        health.push((NodeId(entry.node), state));
    }
    if !health.is_sorted_by(|a, b| a.0 < b.0) {
        return Err("node health out of order".into());
    }
    Ok(HeadParts {
        head: VolumeHead {
            volume,
            name: raw.name,
            size_bytes: raw.size_bytes,
            chunk_bytes: raw.chunk_bytes,
            durability: match raw.durability {
                0 => Durability::Cache,
                1 => Durability::Through,
                other => return Err(format!("durability {other}")),
            },
            place: raw
                .place
                .into_iter()
                .map(|rule| PlaceRule {
                    site: rule.site,
                    copies: rule.copies,
                })
                .collect(),
            token: Token(raw.token),
            generation: Generation(raw.generation),
            attach: raw.attach.map(|attach| Attach {
                host: attach.host,
                boot: BootId(attach.boot),
                front: attach.front,
            }),
            deleting: raw.deleting,
            health,
        },
        sets,
        base,
    })
}

fn check_head(volume: VolumeId, raw: &HeadV1) -> Result<(), String> {
    if raw.volume != volume.0 {
        return Err(format!("it belongs to volume {}", VolumeId(raw.volume)));
    }
    let size = raw.size_bytes;
    if size == 0 || size > VOLUME_BYTES_MAX || !size.is_multiple_of(SECTOR_BYTES as u64) {
        return Err(format!("volume size {size}"));
    }
    let chunk = raw.chunk_bytes;
    if !chunk.is_power_of_two() || !(CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk) {
        return Err(format!("chunk size {chunk}"));
    }
    if !key::valid_name(&raw.name) {
        return Err(format!("volume name {:?}", raw.name));
    }
    Ok(())
}

fn read_sets(raw: &HeadV1) -> Result<SetTable, String> {
    if raw.set_lens.len() > SETS_MAX || raw.nodes.len() > VOLUME_NODES_MAX {
        return Err(format!(
            "{} sets of {} nodes",
            raw.set_lens.len(),
            raw.nodes.len()
        ));
    }
    if !raw.nodes.is_sorted_by(|a, b| a < b) {
        return Err("nodes out of order".into());
    }
    let mut members = raw.members.iter();
    let mut sets = Vec::with_capacity(raw.set_lens.len());
    for len in &raw.set_lens {
        let mut list = ReplicaList::EMPTY;
        for _ in 0..*len {
            let member = *members.next().ok_or("a set has members missing")?;
            let node = raw
                .nodes
                .get(usize::from(member & ((1 << NODE_BITS) - 1)))
                .map(|node| NodeId(*node))
                .ok_or("a set names a node that is not there")?;
            let state = state_of(member >> NODE_BITS).ok_or("a replica state is unknown")?;
            if list.last().is_some_and(|last| last.node >= node) || !list.put(node, state) {
                return Err("a set's nodes are out of order or too many".into());
            }
        }
        sets.push(list);
    }
    if members.next().is_some() {
        return Err("members without a set".into());
    }
    Ok(SetTable::from_sets(sets))
}

fn read_base(
    raw: &[RunV1],
    shards: usize,
    sets: &SetTable,
) -> Result<Vec<Option<SetIndex>>, String> {
    let starts_well = raw.first().is_some_and(|run| run.start == 0);
    let ends_well = raw
        .last()
        .is_some_and(|run| usize::from(run.start) < shards);
    if !starts_well || !ends_well || !raw.is_sorted_by(|a, b| a.start < b.start) {
        return Err("runs of shards out of order".into());
    }
    let mut base = Vec::with_capacity(shards);
    for (at, run) in raw.iter().enumerate() {
        let end = raw
            .get(at + 1)
            .map_or(shards, |next| usize::from(next.start));
        let set = (run.set != MIXED).then_some(SetIndex(run.set));
        if set.is_some_and(|set| !sets.contains(set)) {
            return Err(format!("replica set {} is not there", run.set));
        }
        base.resize(end, set);
    }
    Ok(base)
}

/// Runs of one shard as read; sets are checked by [`assemble`].
#[derive(Debug)]
pub struct ShardParts {
    runs: Vec<Run>,
    version: KvVersion,
}

/// Reads a map shard.
pub fn decode_shard(
    volume: VolumeId,
    shard: usize,
    bytes: &[u8],
    version: KvVersion,
) -> Result<ShardParts, MetaError> {
    read_shard(volume, shard, bytes)
        .map(|runs| ShardParts { runs, version })
        .map_err(|problem| corrupt(&key::shard(volume, shard), &problem))
}

fn read_shard(volume: VolumeId, shard: usize, bytes: &[u8]) -> Result<Vec<Run>, String> {
    let archive = open(SHARD_MAGIC, bytes)?;
    let raw: ShardV1 = rkyv::from_bytes::<ShardV1, rkyv::rancor::Error>(&archive)
        .map_err(|_| "its archive is malformed".to_owned())?;
    if raw.volume != volume.0 || usize::from(raw.shard) != shard {
        return Err(format!(
            "it is shard {} of volume {}",
            raw.shard,
            VolumeId(raw.volume)
        ));
    }
    let starts_well = raw.runs.first().is_some_and(|run| run.start == 0);
    if !starts_well || raw.runs.len() < 2 || !raw.runs.is_sorted_by(|a, b| a.start < b.start) {
        return Err("runs out of order".into());
    }
    let run = |run: &RunV1| Run {
        start: run.start,
        set: SetIndex(run.set),
    };
    Ok(raw.runs.iter().map(run).collect())
}

/// Puts a map together from its head and shards, and checks what each says about the other.
pub fn assemble(
    parts: HeadParts,
    head_version: KvVersion,
    mut shards: HashMap<usize, ShardParts>,
) -> Result<VolumeMap, MetaError> {
    let HeadParts { head, sets, base } = parts;
    let volume = head.volume;
    let chunks = chunk_count(head.size_bytes, head.chunk_bytes);
    let mut map = VolumeMap {
        head,
        head_version,
        sets,
        effective: Vec::new(),
        shards: Vec::with_capacity(base.len()),
    };
    for (index, set) in base.into_iter().enumerate() {
        let shard = match set {
            Some(set) => Shard::Uniform(set),
            None => {
                let key = key::shard(volume, index);
                let Some(parts) = shards.remove(&index) else {
                    return Err(corrupt(&key, "it is missing"));
                };
                let end = shard_len(chunks, index).min(SHARD_CHUNKS);
                if parts.runs.iter().any(|run| u32::from(run.start) >= end) {
                    return Err(corrupt(&key, "runs beyond the end of the volume"));
                }
                if let Some(run) = parts.runs.iter().find(|run| !map.sets.contains(run.set)) {
                    let problem = format!("replica set {} is not there", run.set.0);
                    return Err(corrupt(&key, &problem));
                }
                Shard::Mixed {
                    runs: Arc::new(parts.runs),
                    version: Some(parts.version),
                }
            }
        };
        for set in shard.references() {
            map.sets.add(set);
        }
        map.shards.push(shard);
    }
    map.sets.collect_garbage();
    map.refresh();
    for set in map.sets.live() {
        if map.effective[usize::from(set.0)].in_sync_count() == 0 {
            let problem = format!("replica set {} has no in-sync replica", set.0);
            return Err(corrupt(&key::head(volume), &problem));
        }
    }
    Ok(map)
}
