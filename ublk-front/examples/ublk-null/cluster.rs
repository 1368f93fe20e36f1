//! What a lane needs around it: a volume of one copy on one node, and a control that installs that
//! once and then listens to nothing.

use std::error::Error;
use std::sync::Arc;
use ublk_front::core::SharedSeq;
use ublk_front::core::api::{LaneOrder, Peer, PeerIndex};
use ublk_front::core::config::{Heard, LaneConfig, NodeEntry};
use ublk_front::shell::context::{ControlInput, ControlPort, FrontendError, LaneMail, LaneSeat};
use ukai_meta::transition::{self, MapUpdate, NewVolume};
use ukai_meta::{Attach, Durability, KvVersion, PlaceRule, VolumeMap};
use ukai_proto::{BootId, ClusterId, Incarnation, NodeId, ShardIndex, VolumeId};

pub(crate) const CHUNK_BYTES: u64 = 4 << 20;
const NODE: NodeId = NodeId([10; 16]);
/// The run of the node that control fenced, and that the replica says it is.
pub(crate) const RUN: Incarnation = Incarnation {
    boot: BootId([1; 16]),
    start: 1,
};

/// Installs the configuration on every new lane.
pub(crate) struct Control(ControlPort);

impl Control {
    pub(crate) fn start(size_bytes: u64) -> Result<Self, Box<dyn Error>> {
        let config = config(size_bytes)?;
        let (port, inputs) = ControlPort::new(Arc::new(SharedSeq::default()), ClusterId([4; 16]))?;
        std::thread::spawn(move || {
            while let Some(input) = inputs.recv() {
                if let ControlInput::LaneAdded(_, lane) = input {
                    lane.send(LaneMail::Order(LaneOrder::Install {
                        epoch: 1,
                        config: config.clone(),
                    }));
                }
            }
        });
        Ok(Self(port))
    }

    pub(crate) fn add_lane(&self) -> Result<LaneSeat, FrontendError> {
        self.0.add_lane()
    }
}

fn committed(update: MapUpdate) -> VolumeMap {
    let versions = vec![KvVersion(1); update.writes.len()];
    update.committed(&versions)
}

fn config(size_bytes: u64) -> Result<Arc<LaneConfig>, Box<dyn Error>> {
    let map = committed(transition::create(&NewVolume {
        volume: VolumeId([2; 16]),
        name: "null".into(),
        size_bytes,
        chunk_bytes: CHUNK_BYTES,
        durability: Durability::Cache,
        place: vec![PlaceRule {
            site: "a".into(),
            copies: 1,
        }],
        nodes: vec![vec![NODE]],
    })?);
    let holder = Attach {
        host: "h".into(),
        boot: RUN.boot,
        front: [3; 16],
    };
    let map = committed(transition::attach(&map, holder, false)?);
    let peer = Peer {
        node: NODE,
        shard: ShardIndex(0),
        shard_count: 1,
        addresses: Vec::new(),
    };
    let node = NodeEntry {
        node: NODE,
        heard: Heard::default(),
        first_peer: PeerIndex(0),
        shard_count: 1,
        incarnation: Some(RUN),
    };
    let config = LaneConfig::new(Arc::new(map), Arc::new(vec![peer]), vec![node], &[NODE]);
    Ok(Arc::new(config))
}
