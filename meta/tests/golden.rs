//! Archives: the bytes of each format version stay readable, and damaged ones are told from good ones.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

use proptest::prelude::*;
use std::collections::HashMap;
use ukai_meta::archive::{assemble, decode_head, decode_shard};
use ukai_meta::memory::MemoryCluster;
use ukai_meta::transition::{self as tr, NewVolume};
use ukai_meta::{
    Attach, Durability, KvVersion, MetaError, MetaStore, PlaceRule, VolumeMap, catalog, key,
};
use ukai_proto::crc::crc32c;
use ukai_proto::message::ChunkRange;
use ukai_proto::{BootId, ChunkIndex, NodeId, VolumeId};

const VOLUME: VolumeId = VolumeId([0x76; 16]);

type Step<'a> = dyn Fn(&VolumeMap) -> Result<tr::MapUpdate, tr::TransitionError> + 'a;

/// A volume with a bit of everything: two sites, a stale node, joining and leaving replicas, shards
/// with and without runs, attached.
fn sample() -> (VolumeMap, Vec<u8>, Vec<u8>) {
    let node = |n: u8| NodeId([n; 16]);
    let rule = |site: &str, copies| PlaceRule {
        site: site.into(),
        copies,
    };
    let store = MemoryCluster::new().session();
    let new = NewVolume {
        volume: VOLUME,
        name: "golden.1".into(),
        size_bytes: (200_000 << 20) + 4096,
        chunk_bytes: 1 << 20,
        durability: Durability::Through,
        place: vec![rule("tokyo", 2), rule("osaka", 1)],
        nodes: vec![vec![node(1), node(2)], vec![node(3), node(4)]],
    };
    let range = |start, count| ChunkRange {
        start: ChunkIndex(start),
        count,
    };
    let by = Attach {
        host: "hv1".into(),
        boot: BootId([0xb0; 16]),
        front: [0xf0; 16],
    };
    let mut map = catalog::create_volume(&store, &new).unwrap();
    let steps: [&Step<'_>; 4] = [
        &|map| tr::attach(map, by.clone(), false),
        &|map| tr::add_location(map, range(70_000, 9), node(9)),
        &|map| tr::remove_location(map, range(70_003, 2), node(1), 1),
        &|map| tr::mark_stale(map, &[node(2)]),
    ];
    for step in steps {
        map = catalog::commit_update(&store, step(&map).unwrap()).unwrap();
    }
    let bytes = |key: &str| store.get(key).unwrap().unwrap().bytes;
    let (head, shard) = (bytes(&key::head(VOLUME)), bytes(&key::shard(VOLUME, 1)));
    (map, head, shard)
}

fn decode(head: &[u8], shard: &[u8]) -> Result<VolumeMap, MetaError> {
    let parts = decode_head(VOLUME, head)?;
    let shards: Vec<usize> = parts.mixed_shards().collect();
    assert!(shards.len() <= 1 << 14, "{} shards", shards.len());
    let mut read = HashMap::new();
    for index in shards {
        read.insert(index, decode_shard(VOLUME, index, shard, KvVersion(0))?);
    }
    assemble(parts, KvVersion(0), read)
}

#[test]
fn version_1_is_written_and_read_as_ever() {
    let (map, head, shard) = sample();
    let file = |name: &str| format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let (head_file, shard_file) = (file("head-v1.bin"), file("shard-v1.bin"));
    // To be set once, after a new format version was made.
    if std::env::var_os("UKAI_WRITE_GOLDEN").is_some() {
        std::fs::write(&head_file, &head).unwrap();
        std::fs::write(&shard_file, &shard).unwrap();
    }
    let golden_head = std::fs::read(head_file).unwrap();
    let golden_shard = std::fs::read(shard_file).unwrap();
    let read = decode(&golden_head, &golden_shard).unwrap();
    assert!(read.same_configuration(&map), "{read:#?}\n{map:#?}");
    assert_eq!(
        head, golden_head,
        "the layout changed: make a new format version"
    );
    assert_eq!(
        shard, golden_shard,
        "the layout changed: make a new format version"
    );
}

#[test]
fn every_flipped_bit_and_every_cut_is_found() {
    let (_, head, shard) = sample();
    for (good, is_head) in [(&head, true), (&shard, false)] {
        let check = |bad: &[u8]| {
            let result = if is_head {
                decode(bad, &shard)
            } else {
                decode(&head, bad)
            };
            let expected = if is_head {
                key::head(VOLUME)
            } else {
                key::shard(VOLUME, 1)
            };
            match result {
                Err(MetaError::Corrupt { key, problem }) => {
                    assert_eq!(key, expected);
                    let advice = ["restore this key", "use a newer release"];
                    assert!(
                        advice.iter().any(|text| problem.contains(text)),
                        "{problem}"
                    );
                }
                other => panic!("damage went unnoticed: {other:?}"),
            }
        };
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            check(&bad);
        }
        for len in 0..good.len() {
            check(&good[..len]);
        }
    }
}

#[test]
fn a_missing_or_foreign_shard_is_found() {
    let (_, head, shard) = sample();
    let missing = assemble(
        decode_head(VOLUME, &head).unwrap(),
        KvVersion(0),
        HashMap::new(),
    );
    assert!(matches!(missing, Err(MetaError::Corrupt { key, .. }) if key == key::shard(VOLUME, 1)));
    assert!(decode_shard(VOLUME, 2, &shard, KvVersion(0)).is_err());
    assert!(decode_shard(VolumeId([1; 16]), 1, &shard, KvVersion(0)).is_err());
    assert!(decode_head(VolumeId([1; 16]), &head).is_err());
    let mut newer = head.clone();
    newer[4] = 2;
    let error = decode_head(VOLUME, &newer).unwrap_err().to_string();
    assert!(error.contains("newer release"), "{error}");
}

/// Gives the envelope a length and checksum that fit, so that what is inside gets its turn.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() >= 16 {
        let len = u32::try_from(bytes.len() - 16).unwrap();
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        let covered = [&bytes[..12], &bytes[16..]].concat();
        bytes[12..16].copy_from_slice(&crc32c(&covered).to_le_bytes());
    }
    bytes
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode(&bytes, &bytes);
        let mut head = [b"UKMH\x01\0\0\0".as_slice(), &[0; 8], &bytes].concat();
        head = sealed(head);
        let _ = decode(&head, &bytes);
        let shard = sealed([b"UKMS\x01\0\0\0".as_slice(), &[0; 8], &bytes].concat());
        let _ = decode_shard(VOLUME, 0, &shard, KvVersion(0));
    }

    /// Good archives with a few bytes changed and a checksum that fits: whatever is accepted obeys
    /// every invariant, so a lookup of any chunk works.
    #[test]
    fn forged_archives_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_head in any::<bool>(),
    ) {
        let (_, mut head, mut shard) = sample();
        let target = if in_head { &mut head } else { &mut shard };
        for (at, byte) in changes {
            let at = 16 + at.index(target.len() - 16);
            target[at] = byte;
        }
        let (head, shard) = (sealed(head), sealed(shard));
        if let Ok(map) = decode(&head, &shard) {
            for (run, set) in map.runs() {
                prop_assert!(map.set(set).len() <= 8);
                prop_assert!(map.replicas(run.start).in_sync_count() > 0);
                prop_assert!(run.start.0 + run.count <= map.chunk_count());
            }
            let _ = tr::mark_stale(&map, &map.nodes());
            let _ = tr::drop_leaving(&map, map.all(), NodeId([1; 16]));
        }
    }
}
