//! Metadata at scale: large volumes are cheap, and heavy scattering obeys every limit.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

use ukai_meta::memory::{MemoryCluster, MemoryStore};
use ukai_meta::store::{TXN_BYTES_MAX, TXN_WRITES_MAX, VALUE_BYTES_MAX};
use ukai_meta::transition::{self as tr, Change, HEAD_BYTES_MAX, NewVolume, TransitionError};
use ukai_meta::{Durability, PlaceRule, ReplicaState, VolumeMap, catalog, key};
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, NodeId, VolumeId};

const SHARD_BYTES_MAX: usize = (256 << 10) + 64;
const TIB: u64 = 1 << 40;

fn node(n: usize) -> NodeId {
    let mut id = [0x5a; 16];
    id[..8].copy_from_slice(&(n as u64).to_be_bytes());
    NodeId(id)
}

fn volume(size_bytes: u64, chunk_bytes: u64, copies: u8, nodes: usize) -> NewVolume {
    NewVolume {
        volume: VolumeId([9; 16]),
        name: "a-volume-with-a-name-of-64-characters-which-is-the-longest-there".into(),
        size_bytes,
        chunk_bytes,
        durability: Durability::Cache,
        place: vec![PlaceRule {
            site: "site-a".into(),
            copies,
        }],
        nodes: vec![(0..nodes).map(node).collect()],
    }
}

/// A generator good enough to scatter, the same on every run.
struct Scatter(u64);

impl Scatter {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from((self.0 >> 33) % n as u64).unwrap()
    }
}

fn check_limits(store: &ukai_meta::memory::MemoryCluster) {
    for (key, bytes) in store.dump() {
        let max = if key.ends_with("/head") {
            HEAD_BYTES_MAX
        } else {
            SHARD_BYTES_MAX
        };
        assert!(
            bytes.len() <= max && max <= VALUE_BYTES_MAX,
            "{key}: {}",
            bytes.len()
        );
    }
}

#[test]
fn a_fresh_16_tib_volume_takes_less_than_1_kib() {
    for (copies, nodes) in [(1, 1), (3, 3), (2, 16), (3, 24)] {
        let update = tr::create(&volume(16 * TIB, 4 << 20, copies, nodes)).unwrap();
        let bytes: usize = update.writes.iter().map(|write| write.bytes().len()).sum();
        assert!(bytes < 1024, "{bytes} bytes with {nodes} nodes");
        let parts = usize::from(update.next.runs().count() > 1);
        assert_eq!(parts, usize::from(nodes > usize::from(copies)));
    }
}

#[test]
fn more_nodes_than_copies_are_all_used() {
    let map = tr::create(&volume(16 * TIB, 4 << 20, 2, 6)).unwrap().next;
    assert_eq!(map.nodes().len(), 6);
    for (_, set) in map.runs() {
        assert_eq!(map.set(set).len(), 2);
    }
}

/// Chunk, from, to.
type Move = (u32, NodeId, NodeId);
type Step<'a> = dyn Fn(&Move) -> Vec<Change> + 'a;

/// Moves one replica of each chunk to another node, all three steps, in transactions as large as they
/// may be.
fn relocate(store: &MemoryStore, mut map: VolumeMap, moves: &[Move]) -> VolumeMap {
    let one = |chunk: u32| ChunkRange {
        start: ChunkIndex(chunk),
        count: 1,
    };
    let steps: [&Step<'_>; 3] = [
        &|(chunk, _, to)| {
            vec![Change::AddLocation {
                range: one(*chunk),
                node: *to,
            }]
        },
        &|(chunk, from, to)| {
            vec![
                Change::Promote {
                    range: one(*chunk),
                    node: *to,
                },
                Change::RemoveLocation {
                    range: one(*chunk),
                    node: *from,
                    min_copies: 2,
                },
            ]
        },
        &|(chunk, from, _)| {
            vec![Change::DropLeaving {
                range: one(*chunk),
                node: *from,
            }]
        },
    ];
    for step in steps {
        let mut left = moves;
        let mut size = left.len();
        while !left.is_empty() {
            let changes: Vec<Change> = left[..size].iter().flat_map(step).collect();
            match tr::apply(&map, &changes) {
                Ok(update) => {
                    let bytes: usize = update.writes.iter().map(|w| w.bytes().len()).sum();
                    assert!(bytes <= TXN_BYTES_MAX && update.writes.len() <= TXN_WRITES_MAX);
                    map = catalog::commit_update(store, update).unwrap();
                    left = &left[size..];
                    size = left.len();
                }
                Err(TransitionError::TooLarge(_)) => size = size.div_ceil(2),
                Err(other) => panic!("{other}"),
            }
        }
    }
    map
}

fn scatter(
    cluster: &MemoryCluster,
    new: &NewVolume,
    moves: usize,
    batch: usize,
    nodes: usize,
) -> VolumeMap {
    let store = cluster.session();
    let mut map = catalog::create_volume(&store, new).unwrap();
    let mut random = Scatter(1);
    let mut made = 0;
    while made < moves {
        let mut chunks: Vec<u32> = (0..batch)
            .map(|_| u32::try_from(random.below(map.chunk_count() as usize)).unwrap())
            .collect();
        chunks.sort_unstable();
        chunks.dedup();
        let moves: Vec<_> = chunks
            .iter()
            .map(|chunk| {
                let held = map.replicas(ChunkIndex(*chunk));
                let from = held[random.below(held.len())].node;
                let to = loop {
                    let to = node(random.below(nodes));
                    if held.on(to).is_none() {
                        break to;
                    }
                };
                (*chunk, from, to)
            })
            .collect();
        map = relocate(&store, map, &moves);
        made += moves.len();
    }
    let loaded = catalog::load_volume(&store, map.head.volume).unwrap();
    assert_eq!(loaded, map);
    for (_, set) in map.runs() {
        assert_eq!(map.set(set).len(), 2);
        assert!(map.set(set).iter().all(|r| r.state == ReplicaState::InSync));
    }
    check_limits(cluster);
    map
}

#[test]
fn a_hundred_thousand_scattered_moves_on_16_tib_obey_every_limit() {
    let cluster = MemoryCluster::new();
    let map = scatter(
        &cluster,
        &volume(16 * TIB, 4 << 20, 2, 2),
        100_000,
        5_000,
        40,
    );
    assert!(map.runs().count() > 150_000, "{} runs", map.runs().count());
    // 40 nodes, two copies: no more sets than there are pairs, whatever was in between.
    assert!(map.sets_in_use().count() <= 40 * 39 / 2);
}

#[test]
fn a_hundred_thousand_scattered_moves_in_one_shard_obey_every_limit() {
    // 64 Ki chunks: nearly every chunk becomes a run of its own.
    let cluster = MemoryCluster::new();
    let map = scatter(
        &cluster,
        &volume(64 << 30, 1 << 20, 2, 2),
        100_000,
        5_000,
        40,
    );
    assert!(map.runs().count() > 50_000, "{} runs", map.runs().count());
    let shard = &cluster.dump()[&key::shard(map.head.volume, 0)];
    assert!(shard.len() > 200_000, "{} bytes", shard.len());
}

#[test]
fn a_full_table_of_sets_is_an_error_and_changes_nothing() {
    let store = MemoryCluster::new().session();
    let mut map = catalog::create_volume(&store, &volume(64 << 30, 1 << 20, 1, 1)).unwrap();
    // Pairs of 130 nodes are 8385 different sets, more than the table holds.
    let mut chunk = 0;
    let mut changes = Vec::new();
    for a in 1..130 {
        for b in a + 1..131 {
            for n in [a, b] {
                changes.push(Change::AddLocation {
                    range: tr::one_chunk(ChunkIndex(chunk)),
                    node: node(n),
                });
            }
            chunk += 1;
        }
    }
    let first = changes.len() - 2000;
    let update = tr::apply(&map, &changes[..first]).unwrap();
    map = catalog::commit_update(&store, update).unwrap();
    assert!(matches!(
        tr::apply(&map, &changes[first..]),
        Err(TransitionError::TooManySets)
    ));
    // Going back to few sets makes room again.
    let cancel: Vec<Change> = changes[..first]
        .iter()
        .map(|change| Change::CancelJoin {
            range: change.range(),
            node: change.node(),
        })
        .collect();
    map = catalog::commit_update(&store, tr::apply(&map, &cancel).unwrap()).unwrap();
    let drop: Vec<Change> = (1..131)
        .map(|n| Change::DropLeaving {
            range: map.all(),
            node: node(n),
        })
        .collect();
    map = catalog::commit_update(&store, tr::apply(&map, &drop).unwrap()).unwrap();
    assert_eq!(map.sets_in_use().count(), 1);
    assert_eq!(map.runs().count(), 1);
    assert!(tr::apply(&map, &changes[first..]).is_ok());
}

#[test]
fn whole_volume_changes_of_a_scattered_map_fit_in_batches() {
    let cluster = MemoryCluster::new();
    let mut map = scatter(&cluster, &volume(4 * TIB, 1 << 20, 2, 2), 60_000, 20_000, 6);
    let store = cluster.session();
    let all = map.all();
    let batches = map.batches(all);
    assert_eq!(
        batches.iter().map(|range| range.count).sum::<u32>(),
        map.chunk_count()
    );
    for range in batches {
        let update = tr::add_location(&map, range, node(99)).unwrap();
        map = catalog::commit_update(&store, update).unwrap();
    }
    assert_eq!(map.ranges_of(node(99), ReplicaState::Joining), [all]);
    check_limits(&cluster);
}

#[test]
fn growth_follows_the_last_chunk() {
    let store = MemoryCluster::new().session();
    let map = catalog::create_volume(&store, &volume(1 << 30, 1 << 20, 2, 2)).unwrap();
    let last = tr::one_chunk(ChunkIndex(1023));
    let map =
        catalog::commit_update(&store, tr::add_location(&map, last, node(7)).unwrap()).unwrap();
    let map = catalog::commit_update(&store, tr::promote(&map, last, node(7)).unwrap()).unwrap();
    assert!(matches!(
        tr::resize(&map, 1 << 29),
        Err(TransitionError::Shrink { .. })
    ));
    assert!(matches!(
        tr::resize(&map, (1 << 30) + 1),
        Err(TransitionError::Invalid(_))
    ));
    assert!(matches!(
        tr::resize(&map, 1 << 30),
        Err(TransitionError::NoChange)
    ));
    let map = catalog::commit_update(&store, tr::resize(&map, 16 * TIB).unwrap()).unwrap();
    assert_eq!(catalog::load_volume(&store, map.head.volume).unwrap(), map);
    assert_eq!(map.chunk_count(), 16 << 20);
    for chunk in [1023, 1024, 65_535, 65_536, (16 << 20) - 1] {
        assert!(map.is_in_sync(ChunkIndex(chunk), node(7)), "chunk {chunk}");
    }
    assert!(!map.is_in_sync(ChunkIndex(1022), node(7)));
}

#[test]
fn bad_volumes_are_refused() {
    let good = volume(1 << 30, 1 << 20, 2, 2);
    let bad: [&dyn Fn(&mut NewVolume); 10] = [
        &|v| v.name = "a/b".into(),
        &|v| v.name = String::new(),
        &|v| v.size_bytes = 0,
        &|v| v.size_bytes = 4097,
        &|v| v.size_bytes = 2 << 50,
        &|v| v.chunk_bytes = 3 << 20,
        &|v| v.chunk_bytes = 128 << 20,
        &|v| v.place[0].copies = 3,
        &|v| v.place.clear(),
        &|v| v.nodes[0][1] = v.nodes[0][0],
    ];
    assert!(tr::create(&good).is_ok());
    for (at, change) in bad.iter().enumerate() {
        let mut new = good.clone();
        change(&mut new);
        assert!(
            matches!(tr::create(&new), Err(TransitionError::Invalid(_))),
            "bad volume {at} was accepted"
        );
    }
}
