//! A two-copy volume on two nodes of one shard each, and helpers, for the tests of both cores.

use super::api::{Peer, PeerIndex};
use super::config::{Heard, LaneConfig, NodeEntry};
use std::sync::Arc;
use ukai_meta::map::VolumeMap;
use ukai_meta::transition::{self, MapUpdate, NewVolume};
use ukai_meta::{Attach, Durability, KvVersion, NodeLive, NodeRecord, NodeState, PlaceRule};
use ukai_proto::{BootId, Incarnation, NodeId, ShardIndex, VolumeId};

pub(super) const VOLUME: VolumeId = VolumeId([7; 16]);
pub(super) const A: NodeId = NodeId([0xa; 16]);
pub(super) const B: NodeId = NodeId([0xb; 16]);
pub(super) const C: NodeId = NodeId([0xc; 16]);
pub(super) const PEER_A: PeerIndex = PeerIndex(0);
pub(super) const PEER_B: PeerIndex = PeerIndex(1);
pub(super) const PEER_C: PeerIndex = PeerIndex(2);

/// A hundred starts per boot.
pub(super) fn run(start: u64) -> Incarnation {
    let boot = u8::try_from(1 + start / 100).unwrap();
    Incarnation {
        boot: BootId([boot; 16]),
        start,
    }
}

pub(super) fn committed(update: MapUpdate) -> VolumeMap {
    let version = KvVersion(update.next.head_version().0 + 1);
    let versions = vec![version; update.writes.len()];
    update.committed(&versions)
}

pub(super) fn holder() -> Attach {
    Attach {
        host: "h1".into(),
        boot: BootId([1; 16]),
        front: [3; 16],
    }
}

/// 64 MiB in 4 MiB chunks, copies on A and B.
pub(super) fn fresh() -> VolumeMap {
    let rule = |site: &str| PlaceRule {
        site: site.into(),
        copies: 1,
    };
    let new = NewVolume {
        volume: VOLUME,
        name: "v".into(),
        size_bytes: 64 << 20,
        chunk_bytes: 4 << 20,
        durability: Durability::Cache,
        place: vec![rule("a"), rule("b")],
        nodes: vec![vec![A], vec![B]],
    };
    committed(transition::create(&new).unwrap())
}

pub(super) fn attached() -> VolumeMap {
    committed(transition::attach(&fresh(), holder(), false).unwrap())
}

pub(super) fn record(node: NodeId, name: &str) -> NodeState {
    NodeState {
        record: NodeRecord {
            node,
            name: name.into(),
            site: name.into(),
            labels: Vec::new(),
            shard_count: 1,
            shard_addresses: vec![vec![format!("unix:/{name}")]],
            host: name.into(),
            capacity_bytes: 1 << 30,
            draining: false,
        },
        live: Some(NodeLive {
            incarnation: run(1),
            used_bytes: 0,
        }),
    }
}

/// Lanes' view of a map, A preferred.
pub(super) fn config(map: VolumeMap) -> Arc<LaneConfig> {
    Arc::new(compiled(map))
}

/// The same, and a node has failed that control cannot do without.
pub(super) fn helpless(map: VolumeMap, node: NodeId) -> Arc<LaneConfig> {
    let mut config = compiled(map);
    config.helpless.insert(node);
    Arc::new(config)
}

/// The same, because it was full.
pub(super) fn full(map: VolumeMap, node: NodeId) -> Arc<LaneConfig> {
    let mut config = compiled(map);
    config.helpless.insert(node);
    config.full.insert(node);
    Arc::new(config)
}

fn compiled(map: VolumeMap) -> LaneConfig {
    let peer = |node, name: &str| Peer {
        node,
        shard: ShardIndex(0),
        shard_count: 1,
        addresses: vec![format!("unix:/{name}")],
    };
    let entry = |node, first_peer| NodeEntry {
        node,
        first_peer,
        shard_count: 1,
        incarnation: Some(run(1)),
        heard: Heard::default(),
    };
    let peers = Arc::new(vec![peer(A, "a"), peer(B, "b")]);
    let nodes = vec![entry(A, PEER_A), entry(B, PEER_B)];
    LaneConfig::new(Arc::new(map), peers, nodes, &[A, B])
}
