//! The front's lane on a volume of two copies: a guest's request to frames, replies to its completion.

use std::sync::Arc;
use ublk_front::core::api::{
    GuestIo, GuestOp, GuestTag, LaneAction, LaneId, LaneOrder, Now, Peer, PeerIndex,
};
use ublk_front::core::config::{Heard, LaneConfig, NodeEntry};
use ublk_front::core::{LaneCore, LaneLimits, SharedSeq};
use ukai_meta::transition::{self, MapUpdate, NewVolume};
use ukai_meta::{Attach, Durability, KvVersion, PlaceRule, VolumeMap};
use ukai_proto::crc::crc32c;
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::message::crc_table;
use ukai_proto::{BootId, Flags, Header, Incarnation, NodeId, ShardIndex, Status, VolumeId};

const NODES: [NodeId; 2] = [NodeId([10; 16]), NodeId([11; 16])];
const VOLUME_BYTES: u64 = 1 << 30;
const BOOT: BootId = BootId([1; 16]);

fn committed(update: MapUpdate) -> VolumeMap {
    let versions = vec![KvVersion(1); update.writes.len()];
    update.committed(&versions)
}

/// 1 GiB in chunks of 4 MiB, copies on both nodes.
fn config() -> Arc<LaneConfig> {
    let place = |site: &str| PlaceRule {
        site: site.into(),
        copies: 1,
    };
    let new = NewVolume {
        volume: VolumeId([7; 16]),
        name: "v".into(),
        size_bytes: VOLUME_BYTES,
        chunk_bytes: 4 << 20,
        durability: Durability::Cache,
        place: vec![place("a"), place("b")],
        nodes: NODES.map(|node| vec![node]).to_vec(),
    };
    let holder = Attach {
        host: "h".into(),
        boot: BOOT,
        front: [3; 16],
    };
    let map = committed(transition::create(&new).expect("a legal volume"));
    let map = committed(transition::attach(&map, holder, false).expect("nobody has it"));
    let peers = NODES.map(|node| Peer {
        node,
        shard: ShardIndex(0),
        shard_count: 1,
        addresses: vec!["unix:/n".into()],
    });
    let nodes = (0..).zip(NODES).map(|(index, node)| NodeEntry {
        node,
        heard: Heard::default(),
        first_peer: PeerIndex(index),
        shard_count: 1,
        incarnation: Some(run()),
    });
    let (map, peers) = (Arc::new(map), Arc::new(peers.to_vec()));
    Arc::new(LaneConfig::new(map, peers, nodes.collect(), &NODES))
}

fn run() -> Incarnation {
    Incarnation {
        boot: BOOT,
        start: 1,
    }
}

fn serving(out: &mut Vec<LaneAction>) -> LaneCore {
    let seq = Arc::new(SharedSeq::default());
    let mut lane = LaneCore::new(LaneId(0), seq, LaneLimits::default());
    for peer in 0..2 {
        lane.peer_up(Now(1), PeerIndex(peer), run(), out);
    }
    let order = LaneOrder::Install {
        epoch: 1,
        config: config(),
    };
    lane.order(Now(1), order, out);
    out.clear();
    lane
}

pub(crate) fn writes(count: u32) {
    requests(count, GuestOp::Write { fua: false });
}

pub(crate) fn reads(count: u32) {
    requests(count, GuestOp::Read);
}

/// At random places, of an own generator: the same on every run.
fn requests(count: u32, op: GuestOp) {
    let mut out = Vec::new();
    let mut lane = serving(&mut out);
    let data = vec![7; SECTOR_BYTES];
    let crc = crc32c(&data);
    let sectors = VOLUME_BYTES / SECTOR_BYTES as u64;
    let mut place = 1u64;
    for index in 0..count {
        place = place
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let now = Now(u64::from(index) * 1000 + 2);
        let io = GuestIo {
            tag: GuestTag(index % 64),
            op,
            sector: (place >> 20) % sectors,
            count: 1,
        };
        lane.guest(now, io, &data, &mut out);
        let mut asked: [Option<(PeerIndex, Header)>; 2] = [None; 2];
        let mut slots = asked.iter_mut();
        for action in out.drain(..) {
            if let LaneAction::Send { peer, header, .. } = action {
                *slots.next().expect("two replicas") = Some((peer, header));
            }
        }
        for (peer, header) in asked.into_iter().flatten() {
            let mut reply = header.reply(Status::Ok);
            if op == GuestOp::Read {
                reply.flags = reply.flags.with(Flags::DATA);
                assert!(lane.read_target(peer, &reply).is_some());
                let aux = crc_table(0, std::iter::once(crc));
                lane.peer_frame(now, peer, &reply, &aux, &data, &mut out);
            } else {
                lane.peer_frame(now, peer, &reply, &[], &[], &mut out);
            }
        }
        let done =
            |action: LaneAction| matches!(action, LaneAction::Complete { result: Ok(()), .. });
        assert_eq!(
            out.drain(..).filter_map(|a| done(a).then_some(())).count(),
            1
        );
    }
}
