//! Bugs that were found once and that nothing else would find again: each test fails without its cure, which was tried.
//! `docs/correctness.md` has the table.

use super::api::*;
use super::config::LaneConfig;
use super::control_test::{ALL, World};
use super::fixture::*;
use super::lane_test::Bench;
use super::{ControlConfig, ControlCore, SharedSeq};
use std::sync::Arc;
use std::time::Duration;
use ukai_meta::transition;
use ukai_meta::{NodeHealth, ReplicaState};
use ukai_proto::message::{ChunkRange, Pull, PullMode, Pulled, read_chunk_ranges, read_crc_table};
use ukai_proto::{
    BootId, ChunkIndex, Header, Incarnation, NodeId, Opcode, SectorInChunk, Seq, Status,
};

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(100);

/// A front whose sequence numbers the test hands out.
fn serving_with(seq: &Arc<SharedSeq>) -> World {
    let mut world = World::new(fresh());
    world.core = ControlCore::new(ControlConfig::new(VOLUME, holder()), Arc::clone(seq));
    world.event(ControlEvent::Start);
    world.event(ControlEvent::LaneAdded(LaneId(0)));
    world
}

/// An administrator adds a location on C, which is reachable.
fn add_c(world: &mut World) {
    world.up.insert(PEER_C);
    world.map = committed(transition::add_location(&world.map, ALL, C).unwrap());
    world.event(ControlEvent::MapChanged);
}

/// Another generation, which changes nothing else.
fn grow(world: &mut World) {
    let larger = world.map.head.size_bytes * 2;
    world.map = committed(transition::resize(&world.map, larger).unwrap());
    world.event(ControlEvent::MapChanged);
}

fn sent_to(world: &World, peer: PeerIndex, opcode: Opcode) -> Vec<(Header, Vec<u8>)> {
    let sent = world.sent.iter();
    sent.filter(|(to, header, _)| (*to, header.opcode) == (peer, opcode))
        .map(|(_, header, aux)| (*header, aux.clone()))
        .collect()
}

fn installed(world: &World) -> Arc<LaneConfig> {
    let installed = world.orders.iter().rev().find_map(|order| match order {
        LaneOrder::Install { config, .. } => Some(Arc::clone(config)),
        _ => None,
    });
    installed.expect("an installation")
}

/// Where lanes read the first chunk.
fn read_from(world: &World) -> NodeId {
    let config = installed(world);
    let slot = config.set_of(ChunkIndex(0)).read[0];
    config.nodes[usize::from(slot.0)].node
}

/// The guest's earlier flushes cover what was copied: a power cut after the promotion must not take it back.
#[test]
fn a_filled_replica_is_flushed_before_it_is_promoted() {
    let mut world = World::serving();
    world.mute.push((PEER_C, Opcode::Flush));
    add_c(&mut world);
    world.pass(SECOND);
    assert_eq!(world.state(C), Some(ReplicaState::Joining));
    assert_eq!(sent_to(&world, PEER_C, Opcode::Flush).len(), 1);
    world.mute.clear();
    world.pass(Duration::from_secs(21)); // given up, and asked again
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(C), Some(ReplicaState::InSync));
}

/// Seed 4188: a copy from a node that had refused a write took it away at the target again.
#[test]
fn a_source_that_lacks_a_write_is_copied_from_after_another_barrier() {
    let mut world = World::serving();
    assert_eq!(read_from(&world), A);
    world.behind = vec![A];
    world.mute.push((PEER_A, Opcode::WrittenSince));
    world.orders.clear();
    add_c(&mut world);
    let prepares = |order: &&LaneOrder| matches!(order, LaneOrder::Prepare { .. });
    assert_eq!(world.orders.iter().filter(prepares).count(), 2);
    assert_eq!(world.count(Opcode::WrittenSince), 3, "then it begins");
}

/// The same seed: the node was lost then, and counted as having everything before the barrier.
#[test]
fn a_node_that_lacks_a_write_is_not_read_and_stale_since_before_the_barrier() {
    for (node, peer, other) in [(A, PEER_A, B), (B, PEER_B, A)] {
        let mut world = World::serving();
        let since = world.map.head.generation;
        world.behind = vec![node];
        grow(&mut world);
        assert!(installed(&world).generation > since);
        assert_eq!(read_from(&world), other);
        world.lose(peer);
        world.pass(SECOND);
        assert_eq!(world.map.health(node), Some(NodeHealth::Stale { since }));
    }
}

/// It blocked every barrier, and with it every other change.
#[test]
fn a_node_that_refuses_to_be_fenced_is_left_out() {
    let mut world = World::serving();
    world.fence_refused.insert(PEER_B, Status::IoError);
    world.lose(PEER_B);
    world.restore(PEER_B, 2);
    world.pass(MOMENT);
    assert_eq!(world.state(B), Some(ReplicaState::Stale));
    assert_eq!(installed(&world).generation, world.map.head.generation);

    let mut world = World::serving();
    world.fence_refused.insert(PEER_C, Status::NoSpace);
    add_c(&mut world);
    world.pass(MOMENT);
    assert!(matches!(
        world.map.health(C),
        Some(NodeHealth::Stale { .. })
    ));
    assert_eq!(installed(&world).generation, world.map.head.generation);
}

/// With the map's, which they do not have yet, the node would refuse all that they send.
#[test]
fn a_node_is_fenced_under_the_generation_that_lanes_run_under() {
    let mut world = World::serving();
    let runs_under = installed(&world).generation;
    world.lane_stuck = true;
    grow(&mut world);
    world.sent.clear();
    world.lose(PEER_B);
    world.restore(PEER_B, 2);
    let fences = sent_to(&world, PEER_B, Opcode::Fence);
    assert_eq!(fences.len(), 1);
    assert_eq!(fences[0].0.generation, runs_under);
    assert!(world.map.head.generation > runs_under);
}

/// Chunks that were added to what leaves were forgotten without being deleted.
#[test]
fn an_answer_to_an_earlier_release_does_not_count_for_other_chunks() {
    let half = |start| ChunkRange {
        start: ChunkIndex(start),
        count: 8,
    };
    let mut world = World::serving();
    world.mute.push((PEER_B, Opcode::Release));
    for start in [8, 0] {
        world.map = committed(transition::remove_location(&world.map, half(start), B, 1).unwrap());
        world.event(ControlEvent::MapChanged);
    }
    let (header, aux) = sent_to(&world, PEER_B, Opcode::Release)[0].clone();
    assert_eq!(read_chunk_ranges(&aux).unwrap(), [half(8)]);
    let (peer, header, aux) = (PEER_B, header.reply(Status::Ok), Vec::new());
    world.event(ControlEvent::PeerFrame { peer, header, aux });
    assert_eq!(world.state(B), Some(ReplicaState::Leaving));
    let (_, aux) = sent_to(&world, PEER_B, Opcode::Release)[1].clone();
    assert_eq!(read_chunk_ranges(&aux).unwrap(), [ALL]);
}

/// Its open intents tell what must be compared, should this front die.
#[test]
fn a_node_that_is_being_filled_is_told_nothing_as_settled() {
    let seq = Arc::new(SharedSeq::default());
    let mut world = serving_with(&seq);
    world.lose(PEER_B);
    world.pass(SECOND);
    let write = seq.take(LaneId(0), None);
    seq.ended(LaneId(0), write, None);
    world.lists_kept = Some(Vec::new());
    world.restore(PEER_B, 2);
    world.pass(Duration::from_secs(2));
    assert!(matches!(
        world.map.health(B),
        Some(NodeHealth::Rejoining { .. })
    ));
    world.sent.clear();
    for _ in 0..10 {
        world.pass(SECOND);
    }
    let told = |peer| sent_to(&world, peer, Opcode::Settled);
    assert!(told(PEER_A).iter().any(|(header, _)| header.seq >= write));
    assert!(!told(PEER_B).is_empty());
    assert!(told(PEER_B).iter().all(|(header, _)| header.seq == Seq(0)));
}

/// The same, of what writes carry.
#[test]
fn writes_to_a_node_that_is_being_filled_tell_it_nothing_as_settled() {
    let mut bench = Bench::new();
    bench.write(0, 8);
    for sent in bench.sent() {
        bench.answer(&sent, Status::Ok);
    }
    let stale = committed(transition::mark_stale(&attached(), &[B]).unwrap());
    let rejoining = committed(transition::begin_rejoin(&stale, B).unwrap());
    let config = config(rejoining);
    bench.order(LaneOrder::Install { epoch: 2, config });
    bench.out.clear();
    bench.write(1, 8);
    let told: Vec<(PeerIndex, u64)> = bench
        .out
        .iter()
        .filter_map(|action| match action {
            LaneAction::Send {
                peer, header, aux, ..
            } => Some((*peer, read_crc_table(aux, header.count).unwrap().0)),
            _ => None,
        })
        .collect();
    assert_eq!(told, [(PEER_A, 1), (PEER_B, 0)]);
}

/// A source that lost power has lost its records too: its list does not name what it lacks.
#[test]
fn what_a_source_had_open_is_compared_as_well() {
    let mut world = World::new(fresh());
    world.up.remove(&PEER_B);
    world.intents.insert(PEER_A, vec![ChunkIndex(7)]);
    world.event(ControlEvent::Start);
    world.pass(Duration::from_secs(5));
    assert!(world.ready);
    world.event(ControlEvent::LaneAdded(LaneId(0)));
    assert_eq!(world.state(B), Some(ReplicaState::Stale));
    world.restore(PEER_B, 2);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(B), Some(ReplicaState::InSync));
    let copied: Vec<_> = world.pulls.iter().map(|pull| (pull.0, pull.1.0)).collect();
    assert_eq!(copied, [(PEER_B, 7)]);
}

/// The guest's buffer would wait for as long as a stopped node stays stopped.
#[test]
fn a_connection_with_unanswered_frames_to_a_replica_that_does_not_count_is_closed() {
    let mut bench = Bench::new();
    bench.write(0, 8);
    let sent = bench.sent();
    bench.answer(&sent[0], Status::Ok);
    let without = committed(transition::mark_stale(&attached(), &[B]).unwrap());
    let config = config(without);
    bench.order(LaneOrder::Install { epoch: 2, config });
    assert_eq!(bench.completed(), [(0, Ok(()))]);
    let closed = |action: &LaneAction| matches!(action, LaneAction::Disconnect { peer, .. } if *peer == PEER_B);
    assert!(bench.out.iter().any(closed));
}

/// The one that is only away has everything; the other may lack what was not flushed.
#[test]
fn of_two_lost_nodes_the_one_that_lost_power_is_recorded_stale() {
    for (away, cut, cut_peer) in [(A, B, PEER_B), (B, A, PEER_A)] {
        let away_peer = if away == A { PEER_A } else { PEER_B };
        let mut world = World::serving();
        world.meta_down = true;
        world.lose(away_peer);
        world.lose(cut_peer);
        world.up.insert(cut_peer);
        let (peer, boot, start) = (cut_peer, BootId([9; 16]), 1);
        let incarnation = Incarnation { boot, start };
        world.event(ControlEvent::PeerUp { peer, incarnation });
        world.pass(SECOND);
        world.meta_down = false;
        world.pass(Duration::from_secs(2));
        assert_eq!(world.state(cut), Some(ReplicaState::Stale));
        assert_eq!(world.state(away), Some(ReplicaState::InSync));
    }
}

/// The same transaction was sent again and again, and the map never read.
#[test]
fn after_a_conflict_while_fencing_the_map_is_read() {
    let mut world = World::new(fresh());
    world.up.remove(&PEER_B);
    world.event(ControlEvent::Start);
    world.map_moved = true;
    world.pass(Duration::from_secs(5));
    assert!(!world.map_moved, "the map was read");
    assert_eq!(world.state(B), Some(ReplicaState::Stale));
    assert!(world.ready);
}

/// Chunks were promoted by a job that had begun before they were removed and added again.
#[test]
fn chunks_removed_and_added_again_are_not_promoted_by_the_job_before() {
    let mut world = World::serving();
    world.lists_kept = Some(Vec::new());
    add_c(&mut world);
    world.pass(SECOND);
    let lists = world.lists_kept.replace(Vec::new()).unwrap();
    assert_eq!(lists.len(), 3);
    world.map = committed(transition::remove_location(&world.map, ALL, C, 1).unwrap());
    world.event(ControlEvent::MapChanged);
    world.pass(MOMENT);
    if world.state(C).is_some() {
        world.map = committed(transition::drop_leaving(&world.map, ALL, C).unwrap());
        world.event(ControlEvent::MapChanged);
    }
    assert_eq!(world.state(C), None);
    add_c(&mut world);
    for event in lists {
        world.event(event);
    }
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(C), Some(ReplicaState::Joining));
    for event in world.lists_kept.take().unwrap() {
        world.event(event);
    }
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(C), Some(ReplicaState::InSync));
}

/// Only the barrier that the job waited for says what every source has.
#[test]
fn the_ceiling_of_a_copy_job_does_not_move_with_later_barriers() {
    let seq = Arc::new(SharedSeq::default());
    let mut world = serving_with(&seq);
    world
        .written
        .insert(PEER_A, (0..8).map(ChunkIndex).collect());
    world.mute.push((PEER_C, Opcode::Pull));
    add_c(&mut world);
    world.pass(MOMENT);
    let first = sent_to(&world, PEER_C, Opcode::Pull);
    assert!(!first.is_empty() && first.len() < 8);
    let write = seq.take(LaneId(0), None);
    seq.ended(LaneId(0), write, None);
    grow(&mut world);
    assert_eq!(installed(&world).generation, world.map.head.generation);
    world.mute.clear();
    for (header, _) in first {
        let (peer, header) = (PEER_C, header.reply(Status::Ok));
        let aux = Pulled::default().encode();
        world.event(ControlEvent::PeerFrame { peer, header, aux });
    }
    let ceilings: Vec<_> = sent_to(&world, PEER_C, Opcode::Pull)
        .iter()
        .map(|(_, aux)| ukai_proto::message::Pull::decode(aux).unwrap().ceiling)
        .collect();
    assert_eq!(ceilings.len(), 8);
    assert!(ceilings.iter().all(|ceiling| *ceiling == ceilings[0]));
}

/// Simulation seed 300800: a replica that was added while its node was away was taken into sync although nothing of it
/// had been filled, because the answer that said that the node's resync was over got lost.
#[test]
fn a_resync_whose_last_answer_is_lost_promotes_nothing_else() {
    let chunk = ChunkIndex(5);
    let range = ChunkRange {
        start: chunk,
        count: 1,
    };
    let mut world = World::serving();
    world.map = committed(transition::remove_location(&world.map, range, B, 1).unwrap());
    world.event(ControlEvent::MapChanged);
    world.pass(SECOND);
    world.lose(PEER_B);
    world.pass(SECOND);
    assert_eq!(world.state(B), Some(ReplicaState::Stale));
    world.map = committed(transition::add_location(&world.map, range, B).unwrap());
    world.event(ControlEvent::MapChanged);
    world.written.insert(PEER_A, vec![ChunkIndex(1)]);
    world.written_long_ago = vec![chunk];
    world.whole_lost = true;
    world.restore(PEER_B, 2);
    for _ in 0..20 {
        world.pass(SECOND);
    }
    assert!(!world.whole_lost, "the node came back");
    assert_eq!(world.map.head.health, []);
    assert_eq!(world.map.replicas(chunk).on(B), Some(ReplicaState::InSync));
    let filled = |(peer, of, _): &&(PeerIndex, ChunkIndex, _)| (*peer, *of) == (PEER_B, chunk);
    assert!(
        world.pulls.iter().filter(filled).count() > 0,
        "in sync without a look at what it has: {:?}",
        world.pulls
    );
}

/// Simulation seed 81913: it was on one replica only for the next loss of power, and gave way to what the other had had.
#[test]
fn what_a_reconcile_copied_is_flushed_before_it_is_read() {
    let mut world = World::new(fresh());
    world.intents.insert(PEER_B, vec![ChunkIndex(3)]);
    world.differ.insert(ChunkIndex(3));
    world.event(ControlEvent::Start);
    world.event(ControlEvent::LaneAdded(LaneId(0)));
    world.pass(Duration::from_secs(1));
    assert!(world.core.is_reconciled());
    let asked: Vec<_> = world.seen.iter().map(|(_, opcode, _)| *opcode).collect();
    let flush = asked.iter().position(|opcode| *opcode == Opcode::Flush);
    let pull = asked.iter().rposition(|opcode| *opcode == Opcode::Pull);
    assert!(flush > pull && pull.is_some(), "{asked:?}");
}

/// The front that copied it may have died before it was durable: the next one finds nothing to copy.
#[test]
fn what_an_earlier_front_made_equal_is_flushed_as_well() {
    let mut world = World::new(fresh());
    world.intents.insert(PEER_B, vec![ChunkIndex(3)]);
    world.event(ControlEvent::Start);
    world.event(ControlEvent::LaneAdded(LaneId(0)));
    world.pass(Duration::from_secs(1));
    assert!(world.core.is_reconciled());
    let flushed = |peer| {
        world
            .seen
            .iter()
            .any(|(to, opcode, _)| (*to, *opcode) == (peer, Opcode::Flush))
    };
    assert!(flushed(PEER_A) && flushed(PEER_B), "{:?}", world.seen);
}

/// Simulation seed 28421: two of three replicas were to be repaired from each other, and one of them stayed bad.
#[test]
fn what_is_bad_on_two_replicas_is_repaired_from_the_third_on_both() {
    let mut world = World::serving();
    world.up.insert(PEER_C);
    let chunk = ChunkIndex(3);
    world.map = committed(transition::add_location(&world.map, ALL, C).unwrap());
    world.event(ControlEvent::MapChanged);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(C), Some(ReplicaState::InSync));
    world.bad = [(A, chunk), (B, chunk)].into();
    let sector = SectorInChunk(5);
    let report = LaneReport::BadSector {
        node: B,
        chunk,
        sector,
    };
    world.event(ControlEvent::Lane(LaneId(0), report));
    world.pass(Duration::from_secs(1));
    for target in [PEER_A, PEER_B] {
        let repaired = |(peer, of, pull): &(PeerIndex, ChunkIndex, Pull)| {
            (*peer, *of, pull.mode, pull.source) == (target, chunk, PullMode::Repair, C)
        };
        assert!(world.pulls.iter().any(repaired), "{:?}", world.pulls);
    }
}
