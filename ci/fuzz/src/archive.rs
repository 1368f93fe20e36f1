//! `archive`: what the metadata store holds. Heads and map shards as bytes, with and without an envelope
//! that fits, or good ones with bytes changed and sealed again; and the records kept as text.
//!
//! Whatever is accepted obeys every invariant of a map, can be changed by transitions, and is read back
//! as what it was.

use crate::alloc::measured;
use crate::input::Input;
use std::collections::HashMap;
use std::sync::OnceLock;
use ukai_meta::archive::{FORMAT, assemble, decode_head, decode_shard};
use ukai_meta::memory::{MemoryCluster, MemoryStore};
use ukai_meta::transition::{self, MapUpdate, NewVolume, TransitionError};
use ukai_meta::{
    Attach, Durability, KvVersion, MetaError, MetaStore, PlaceRule, VolumeMap, Write, catalog, key,
};
use ukai_proto::crc::crc32c;
use ukai_proto::limits::REPLICAS_MAX;
use ukai_proto::message::ChunkRange;
use ukai_proto::{BootId, ChunkIndex, NodeId, VolumeId};

const VOLUME: VolumeId = VolumeId([0x76; 16]);
const NAME: &str = "v";
const ENVELOPE_BYTES: usize = 16;
/// Map shards that one input is read for; the same bytes serve each.
const SHARDS_READ_MAX: usize = 8;

struct Sample {
    head: Vec<u8>,
    shard: Vec<u8>,
}

fn node(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn chunks(start: u32, count: u32) -> ChunkRange {
    ChunkRange {
        start: ChunkIndex(start),
        count,
    }
}

fn holder() -> Attach {
    Attach {
        host: "hv1".into(),
        boot: BootId([0xb0; 16]),
        front: [0xf0; 16],
    }
}

/// Two shards, several sets, a stale node, joining and leaving replicas.
fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let store = MemoryCluster::new().session();
        let rule = |site: &str, copies| PlaceRule {
            site: site.into(),
            copies,
        };
        let new = NewVolume {
            volume: VOLUME,
            name: NAME.into(),
            size_bytes: (70_000 << 20) + 4096,
            chunk_bytes: 1 << 20,
            durability: Durability::Cache,
            place: vec![rule("tokyo", 2), rule("osaka", 1)],
            nodes: vec![vec![node(1), node(2)], vec![node(3), node(4)]],
        };
        let mut map = catalog::create_volume(&store, &new).expect("a legal volume");
        type Step = fn(&VolumeMap) -> Result<MapUpdate, TransitionError>;
        let steps: [Step; 4] = [
            |map| transition::attach(map, holder(), false),
            |map| transition::add_location(map, chunks(66_000, 9), node(9)),
            |map| transition::remove_location(map, chunks(66_003, 2), node(1), 1),
            |map| transition::mark_stale(map, &[node(2)]),
        ];
        for step in steps {
            let update = step(&map).expect("a legal change");
            map = catalog::commit_update(&store, update).expect("committed");
        }
        let bytes = |key: &str| store.get(key).expect("reads").expect("is there").bytes;
        Sample {
            head: bytes(&key::head(VOLUME)),
            shard: bytes(&key::shard(VOLUME, 1)),
        }
    })
}

/// Magic, version, length and checksum that fit what follows.
fn seal(magic: &[u8; 4], bytes: &mut [u8]) {
    let Some(len) = bytes.len().checked_sub(ENVELOPE_BYTES) else {
        return;
    };
    bytes[..4].copy_from_slice(magic);
    bytes[4..8].copy_from_slice(&[FORMAT, 0, 0, 0]);
    let len = u32::try_from(len).expect("a small input");
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    let covered = [&bytes[..12], &bytes[ENVELOPE_BYTES..]].concat();
    bytes[12..16].copy_from_slice(&crc32c(&covered).to_le_bytes());
}

/// A value as the script wants it: its own bytes, sealed or not, or a good one with changes.
fn value(input: &mut Input<'_>, magic: &[u8; 4], good: &[u8]) -> Vec<u8> {
    let how = input.below(4);
    if how < 2 {
        let len = usize::from(input.u16() % 1024);
        let mut bytes = input.bytes(len).to_vec();
        if how == 1 {
            bytes.splice(..0, [0; ENVELOPE_BYTES]);
            seal(magic, &mut bytes);
        }
        return bytes;
    }
    let mut bytes = good.to_vec();
    for _ in 0..input.below(8) {
        let at = usize::from(input.u16()) % bytes.len();
        match input.below(4) {
            0 => bytes.truncate(at.max(ENVELOPE_BYTES)),
            1 => bytes.insert(at, input.u8()),
            2 => {
                for (byte, new) in bytes[at..].iter_mut().zip(input.array::<4>()) {
                    *byte = new;
                }
            }
            _ => bytes[at] = input.u8(),
        }
    }
    if how == 3 {
        seal(magic, &mut bytes);
    }
    bytes
}

fn decode(head: &[u8], shard: &[u8]) -> Result<VolumeMap, MetaError> {
    let (parts, used) = measured(|| decode_head(VOLUME, head));
    // A set takes 140 bytes of memory for one byte of its length; 64 KiB are runs of map shards.
    let limit = (1 << 20) + 512 * head.len();
    assert!(used.total <= limit, "{used:?} for {} bytes", head.len());
    let parts = parts?;
    let mixed: Vec<usize> = parts.mixed_shards().take(SHARDS_READ_MAX + 1).collect();
    let mut read = HashMap::new();
    if mixed.len() <= SHARDS_READ_MAX {
        for index in mixed {
            let (shard, used) = measured(|| decode_shard(VOLUME, index, shard, KvVersion(1)));
            assert!(used.total <= 4096 + 64 * head.len().max(4096), "{used:?}");
            read.insert(index, shard?);
        }
    }
    assemble(parts, KvVersion(1), read)
}

fn check_map(map: &VolumeMap) {
    let mut next = 0;
    for (run, set) in map.runs() {
        assert_eq!(run.start.0, next, "runs follow each other");
        assert!(run.count > 0);
        next = run.start.0 + run.count;
        assert!((1..=REPLICAS_MAX).contains(&map.set(set).len()));
        for chunk in [run.start.0, next - 1] {
            let replicas = map.replicas(ChunkIndex(chunk));
            assert!(
                replicas.in_sync_count() > 0,
                "chunk {chunk} is nowhere (I1)"
            );
            assert_eq!(replicas.as_slice(), map.set(set));
        }
    }
    assert_eq!(next, map.chunk_count());
}

/// Writes what a transition made and reads it back.
fn check_update(map: &VolumeMap, result: Result<MapUpdate, TransitionError>) {
    let Ok(update) = result else { return };
    check_map(&update.next);
    let versions = vec![KvVersion(2); update.writes.len()];
    let mut head = None;
    let mut shards = HashMap::new();
    for write in &update.writes {
        if write.key() == key::head(VOLUME) {
            head = Some(write.bytes().to_vec());
        }
        for index in 0..SHARDS_READ_MAX {
            if write.key() == key::shard(VOLUME, index) && !write.bytes().is_empty() {
                let parts = decode_shard(VOLUME, index, write.bytes(), KvVersion(2));
                shards.insert(index, parts.expect("as written"));
            }
        }
    }
    let next = update.committed(&versions);
    let head = head.expect("every change writes the head");
    let parts = decode_head(VOLUME, &head).expect("as written");
    // Shards that were not written are not at hand here.
    if parts
        .mixed_shards()
        .all(|index| shards.contains_key(&index))
    {
        let again = assemble(parts, KvVersion(2), shards).expect("as written");
        assert!(again.same_configuration(&next), "{again:#?}\n{next:#?}");
    }
    assert!(next.head.generation > map.head.generation);
}

fn change(map: &VolumeMap, input: &mut Input<'_>) {
    check_map(map);
    let nodes = map.nodes();
    let some = if nodes.is_empty() {
        node(1)
    } else {
        nodes[usize::from(input.u8()) % nodes.len()]
    };
    let count = map.chunk_count();
    let start = input.u32() % count;
    let range = chunks(start, 1 + input.u32() % (count - start));
    let result = match input.below(10) {
        0 => transition::attach(map, holder(), true),
        1 => transition::detach(map),
        2 => transition::mark_stale(map, &[some]),
        3 => transition::begin_rejoin(map, some),
        4 => transition::finish_rejoin(map, some),
        5 => transition::add_location(map, range, node(200)),
        6 => transition::remove_location(map, range, some, 1),
        7 => transition::promote(map, range, some),
        8 => transition::drop_leaving(map, range, some),
        _ => transition::resize(map, map.head.size_bytes.saturating_add(1 << 22)),
    };
    check_update(map, result);
}

fn put(store: &MemoryStore, key: String, bytes: &[u8]) {
    let write = Write::Create {
        key,
        bytes: bytes.to_vec(),
        ephemeral: false,
    };
    // Two records of one script may have the same key.
    let _ = store.commit(&[write]);
}

/// Records and names, as daemons and tools read them.
fn records(mut input: Input<'_>) {
    let store = MemoryCluster::new().session();
    let id = node(1);
    while !input.is_empty() {
        let key = match input.below(8) {
            0 => key::CLUSTER.to_owned(),
            1 => key::node(id),
            2 => key::live(id),
            3 => key::node_name("n0"),
            4 => key::name(NAME),
            5 => key::front(VOLUME),
            6 => key::head(VOLUME),
            _ => format!("{}/x{}", key::NODES, input.below(4)),
        };
        let len = usize::from(input.u16() % 512);
        put(&store, key, input.bytes(len));
    }
    // Errors are answers; each must say something.
    let mut told = Vec::new();
    told.extend(catalog::cluster(&store).err().map(|e| e.to_string()));
    told.extend(catalog::list_nodes(&store).err().map(|e| e.to_string()));
    told.extend(catalog::node(&store, id).err().map(|e| e.to_string()));
    let found = catalog::node_by_name(&store, "n0");
    told.extend(found.err().map(|e| e.to_string()));
    told.extend(
        catalog::set_draining(&store, id, true)
            .err()
            .map(|e| e.to_string()),
    );
    told.extend(catalog::list_volumes(&store).err().map(|e| e.to_string()));
    told.extend(
        catalog::volume_id(&store, NAME)
            .err()
            .map(|e| e.to_string()),
    );
    told.extend(
        catalog::load_head(&store, VOLUME)
            .err()
            .map(|e| e.to_string()),
    );
    told.extend(
        catalog::load_volume(&store, VOLUME)
            .err()
            .map(|e| e.to_string()),
    );
    told.extend(catalog::front(&store, VOLUME).err().map(|e| e.to_string()));
    told.extend(
        catalog::delete_volume(&store, VOLUME)
            .err()
            .map(|e| e.to_string()),
    );
    assert!(told.iter().all(|text| !text.is_empty()));
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.below(4) == 0 {
        records(input);
        return;
    }
    let sample = sample();
    let head = value(&mut input, b"UKMH", &sample.head);
    let shard = value(&mut input, b"UKMS", &sample.shard);
    match decode(&head, &shard) {
        Ok(map) => change(&map, &mut input),
        Err(error) => {
            let MetaError::Corrupt { key, problem } = error else {
                panic!("{error:?} of bytes")
            };
            assert!(!key.is_empty() && !problem.is_empty());
        }
    }
}
