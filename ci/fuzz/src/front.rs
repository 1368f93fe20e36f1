//! A two-copy volume on nodes A and B, with C to spare, for both targets of the front.

use std::sync::Arc;
use ublk_front::core::api::{Peer, PeerIndex};
use ublk_front::core::config::{Heard, LaneConfig, NodeEntry};
use ukai_meta::transition::{self, MapUpdate, NewVolume};
use ukai_meta::{
    Attach, Durability, KvVersion, NodeLive, NodeRecord, NodeState, PlaceRule, VolumeMap,
};
use ukai_proto::{BootId, Incarnation, NodeId, ShardIndex, VolumeId};

pub(crate) const VOLUME: VolumeId = VolumeId([7; 16]);
/// In the order of their peers: one shard each.
pub(crate) const NODES: [NodeId; 3] = [NodeId([10; 16]), NodeId([11; 16]), NodeId([12; 16])];

pub(crate) fn run_of(start: u64) -> Incarnation {
    Incarnation {
        boot: BootId([1; 16]),
        start,
    }
}

pub(crate) fn committed(update: MapUpdate) -> VolumeMap {
    let versions = vec![KvVersion(1); update.writes.len()];
    update.committed(&versions)
}

pub(crate) fn holder() -> Attach {
    Attach {
        host: "h1".into(),
        boot: BootId([1; 16]),
        front: [3; 16],
    }
}

/// 32 MiB in chunks of 2 MiB, copies on A and B.
pub(crate) fn fresh() -> VolumeMap {
    let rule = |site: &str| PlaceRule {
        site: site.into(),
        copies: 1,
    };
    let new = NewVolume {
        volume: VOLUME,
        name: "v".into(),
        size_bytes: 32 << 20,
        chunk_bytes: 2 << 20,
        durability: Durability::Cache,
        place: vec![rule("a"), rule("b")],
        nodes: vec![vec![NODES[0]], vec![NODES[1]]],
    };
    committed(transition::create(&new).expect("a legal volume"))
}

fn name(node: usize) -> String {
    format!("n{node}")
}

pub(crate) fn records() -> Vec<NodeState> {
    let record = |(index, node): (usize, &NodeId)| NodeState {
        record: NodeRecord {
            node: *node,
            name: name(index),
            site: name(index),
            labels: Vec::new(),
            shard_count: 1,
            shard_addresses: vec![vec![format!("unix:/{}", name(index))]],
            host: name(index),
            capacity_bytes: 1 << 30,
            draining: false,
        },
        live: Some(NodeLive {
            incarnation: run_of(1),
            used_bytes: 0,
        }),
    };
    NODES.iter().enumerate().map(record).collect()
}

/// Lanes' view of a map, A preferred.
pub(crate) fn config(map: VolumeMap, heard: &[Heard; 3]) -> Arc<LaneConfig> {
    let peers = NODES.iter().enumerate().map(|(index, node)| Peer {
        node: *node,
        shard: ShardIndex(0),
        shard_count: 1,
        addresses: vec![format!("unix:/{}", name(index))],
    });
    let nodes = (0..)
        .zip(NODES)
        .zip(heard)
        .map(|((index, node), heard)| NodeEntry {
            node,
            heard: heard.clone(),
            first_peer: PeerIndex(index),
            shard_count: 1,
            incarnation: Some(run_of(1)),
        });
    let peers = Arc::new(peers.collect());
    Arc::new(LaneConfig::new(
        Arc::new(map),
        peers,
        nodes.collect(),
        &NODES,
    ))
}
