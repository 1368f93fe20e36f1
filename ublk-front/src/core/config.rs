//! One configuration as lanes use it: the map, compiled for the hot path.

use super::api::{Now, Peer, PeerIndex};
use super::heat::HeatTable;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use ukai_meta::map::VolumeMap;
use ukai_meta::{Durability, ReplicaState};
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::route::shard_of;
use ukai_proto::{ChunkIndex, Generation, Incarnation, NodeId, Token, VolumeId};

/// A node in [`LaneConfig::nodes`]; stays the same for the life of a front.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeSlot(pub u16);

/// A node that the configuration refers to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeEntry {
    /// Identity.
    pub node: NodeId,
    /// Peer of its shard 0; the other shards follow.
    pub first_peer: PeerIndex,
    /// Shards.
    pub shard_count: u16,
    /// The run that control fenced. A lane uses no connection to another run: it may have lost
    /// writes with a power cut, and must be recorded stale first (I10).
    pub incarnation: Option<Incarnation>,
    /// When it last admitted our token.
    pub heard: Heard,
}

/// When a node was last asked something that it answered under our token: written by control,
/// read by lanes. Nanoseconds of their common clock.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<AtomicU64>);

impl Heard {
    /// A question of this time was answered.
    pub fn answered(&self, asked: Now) {
        self.0.fetch_max(asked.0, Ordering::Relaxed);
    }

    /// The time of the latest one.
    #[must_use]
    pub fn asked(&self) -> Now {
        Now(self.0.load(Ordering::Relaxed))
    }
}

impl PartialEq for Heard {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Heard {}

/// A front answers reads only while every node that its configuration writes the chunk to has
/// admitted its token so recently. A front that takes a volume over by force, and cannot fence all
/// nodes, waits so long before it serves: by then its predecessor cannot read any more from the ones
/// that it could not fence. See `docs/protocol.md`, "Read lease".
pub const READ_LEASE: Duration = Duration::from_secs(6);

/// Replicas of one set, compiled.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CompiledSet {
    /// In-sync and joining: get every write and must answer it.
    pub write: Vec<NodeSlot>,
    /// In-sync, best first.
    pub read: Vec<NodeSlot>,
}

/// A configuration.
#[derive(Debug)]
pub struct LaneConfig {
    /// Volume.
    pub volume: VolumeId,
    /// Token of this attach.
    pub token: Token,
    /// Generation of the map.
    pub generation: Generation,
    /// Sectors of the volume.
    pub size_sectors: u64,
    /// Sectors of a chunk.
    pub chunk_sectors: u32,
    /// Acknowledge only durable writes.
    pub through: bool,
    /// The map it was compiled from.
    pub map: Arc<VolumeMap>,
    /// All shards of all nodes, by [`PeerIndex`].
    pub peers: Arc<Vec<Peer>>,
    /// By [`NodeSlot`].
    pub nodes: Vec<NodeEntry>,
    /// Chunks whose replicas may differ by what earlier fronts wrote: not to be touched before
    /// [`super::api::LaneOrder::Reconciled`].
    pub unreconciled: BTreeSet<ChunkIndex>,
    /// Nodes that failed requests and that control cannot do without: those requests end with the error.
    /// What others failed waits, until control has recorded them stale.
    pub helpless: BTreeSet<NodeId>,
    /// Nodes that had no room and that control cannot do without. They are asked first: what they refuse must not be
    /// on other replicas, as it could not be made equal.
    pub full: BTreeSet<NodeId>,
    /// Where lanes count the use of chunks.
    pub heat: Arc<HeatTable>,
    sets: BTreeMap<u16, CompiledSet>,
}

impl LaneConfig {
    /// Compiles `map`. `preference` names nodes best first for reads; nodes it lacks come last.
    #[must_use]
    pub fn new(
        map: Arc<VolumeMap>,
        peers: Arc<Vec<Peer>>,
        nodes: Vec<NodeEntry>,
        preference: &[NodeId],
    ) -> Self {
        let slot_of = |node: NodeId| {
            let index = nodes.iter().position(|entry| entry.node == node);
            let index = index.unwrap_or_else(|| panic!("node {node} of the map has no entry"));
            #[allow(clippy::cast_possible_truncation)] // a map names far fewer nodes
            NodeSlot(index as u16)
        };
        let rank = |slot: &NodeSlot| {
            let node = nodes[usize::from(slot.0)].node;
            (
                preference
                    .iter()
                    .position(|n| *n == node)
                    .unwrap_or(usize::MAX),
                *slot,
            )
        };
        let mut sets = BTreeMap::new();
        for (_, set) in map.runs() {
            sets.entry(set.0).or_insert_with(|| {
                let mut compiled = CompiledSet::default();
                for replica in map.set(set) {
                    let slot = slot_of(replica.node);
                    match replica.state {
                        ReplicaState::InSync => {
                            compiled.write.push(slot);
                            compiled.read.push(slot);
                        }
                        ReplicaState::Joining => compiled.write.push(slot),
                        ReplicaState::Stale | ReplicaState::Leaving => {}
                    }
                }
                assert!(
                    !compiled.read.is_empty(),
                    "a set without an in-sync replica (I1)"
                );
                compiled.read.sort_by_key(rank);
                compiled
            });
        }
        let head = &map.head;
        #[allow(clippy::cast_possible_truncation)] // at most 16384
        Self {
            volume: head.volume,
            token: head.token,
            generation: head.generation,
            size_sectors: head.size_bytes / SECTOR_BYTES as u64,
            chunk_sectors: (head.chunk_bytes / SECTOR_BYTES as u64) as u32,
            through: head.durability == Durability::Through,
            peers,
            nodes,
            unreconciled: BTreeSet::new(),
            helpless: BTreeSet::new(),
            full: BTreeSet::new(),
            heat: Arc::default(),
            sets,
            map,
        }
    }

    /// May what a replica of the chunk says be told to the guest? One replica alone speaks for itself:
    /// nobody could have taken the volume without fencing it.
    #[must_use]
    pub fn may_read(&self, now: Now, chunk: ChunkIndex) -> bool {
        let write = &self.set_of(chunk).write;
        let heard = |slot: &NodeSlot| {
            let asked = self.nodes[usize::from(slot.0)].heard.asked();
            now.since(asked) <= READ_LEASE
        };
        write.len() == 1 || write.iter().all(heard)
    }

    /// Replicas of a chunk.
    #[must_use]
    pub fn set_of(&self, chunk: ChunkIndex) -> &CompiledSet {
        let set = self.map.set_of(chunk);
        self.sets
            .get(&set.0)
            .unwrap_or_else(|| panic!("chunk {chunk} has uncompiled set {}", set.0))
    }

    /// The shard of a node that owns a chunk.
    #[must_use]
    pub fn peer_of(&self, slot: NodeSlot, chunk: ChunkIndex) -> PeerIndex {
        let entry = &self.nodes[usize::from(slot.0)];
        let shard = shard_of(self.volume, chunk, entry.shard_count);
        PeerIndex(entry.first_peer.0 + u32::from(shard.0))
    }

    /// Every shard of every node that gets writes: where a flush must go.
    pub fn flush_peers(&self) -> impl Iterator<Item = (NodeSlot, PeerIndex)> + '_ {
        let mut slots: Vec<NodeSlot> = self
            .sets
            .values()
            .flat_map(|set| set.write.iter().copied())
            .collect();
        slots.sort_unstable();
        slots.dedup();
        slots.into_iter().flat_map(move |slot| {
            let entry = &self.nodes[usize::from(slot.0)];
            (0..u32::from(entry.shard_count))
                .map(move |i| (slot, PeerIndex(entry.first_peer.0 + i)))
        })
    }

    /// Does this node get writes anywhere?
    #[must_use]
    pub fn writes_to(&self, slot: NodeSlot) -> bool {
        self.sets.values().any(|set| set.write.contains(&slot))
    }

    /// Node of a peer.
    #[must_use]
    pub fn slot_of_peer(&self, peer: PeerIndex) -> Option<NodeSlot> {
        let index = self.nodes.iter().position(|entry| {
            (entry.first_peer.0..entry.first_peer.0 + u32::from(entry.shard_count))
                .contains(&peer.0)
        })?;
        #[allow(clippy::cast_possible_truncation)] // few nodes
        Some(NodeSlot(index as u16))
    }
}
