//! Scripted scenarios of control, against nodes that answer by themselves and a one-map store.
#![allow(clippy::cast_possible_truncation)] // small numbers of a test

use super::api::*;
use super::config::READ_LEASE;
use super::fixture::*;
use super::{ControlConfig, ControlCore, SharedSeq};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use ukai_meta::catalog::JobGuard;
use ukai_meta::map::VolumeMap;
use ukai_meta::transition;
use ukai_meta::{CommitError, JobRecord, KvVersion, MetaError, NodeHealth, ReplicaState};
use ukai_proto::message::{ChunkRange, HeldBack, Pull, PullMode, Pulled, Report, chunk_list};
use ukai_proto::{ChunkIndex, Frame, Generation, Header, NodeId, Opcode, Status};

/// What the fakes hold and have seen.
pub(super) struct World {
    pub(super) core: ControlCore,
    pub(super) now: Now,
    pub(super) map: VolumeMap,
    pub(super) up: BTreeSet<PeerIndex>,
    pub(super) run_start: BTreeMap<PeerIndex, u64>,
    pub(super) intents: BTreeMap<PeerIndex, Vec<ChunkIndex>>,
    pub(super) written: BTreeMap<PeerIndex, Vec<ChunkIndex>>,
    /// Chunks whose next copy finds a difference.
    pub(super) differ: BTreeSet<ChunkIndex>,
    pub(super) seen: Vec<(PeerIndex, Opcode, ChunkIndex)>,
    /// The same, whole.
    pub(super) sent: Vec<(PeerIndex, Header, Vec<u8>)>,
    /// Requests that a peer does not answer.
    pub(super) mute: Vec<(PeerIndex, Opcode)>,
    /// FENCE is refused with this.
    pub(super) fence_refused: BTreeMap<PeerIndex, Status>,
    /// Nodes that the lane names when it drains the next time.
    pub(super) behind: Vec<NodeId>,
    /// Somebody else has changed the map: transactions fail until it is read.
    pub(super) map_moved: bool,
    pub(super) pulls: Vec<(PeerIndex, ChunkIndex, Pull)>,
    pub(super) pulls_answered: bool,
    /// Answers copies so, as held back by its copy rate.
    pub(super) held_back: Option<(PeerIndex, Status)>,
    /// Has no room for what is copied to it.
    full: Option<PeerIndex>,
    /// Sources with a bad sector in a chunk.
    pub(super) bad: BTreeSet<(NodeId, ChunkIndex)>,
    /// Answers to WRITTEN_SINCE are kept here.
    pub(super) lists_kept: Option<Vec<ControlEvent>>,
    pub(super) hung: BTreeSet<PeerIndex>,
    /// Says nothing; what it was asked last.
    pub(super) silent: Option<PeerIndex>,
    pub(super) unanswered: BTreeMap<PeerIndex, Header>,
    /// Copies tell numbers that no chunk has.
    pub(super) absurd: bool,
    pub(super) meta_down: bool,
    /// What nodes know of the heat's first page.
    pub(super) heat: Option<Vec<u8>>,
    /// The next transaction lands, but nobody is told.
    outcome_lost: bool,
    /// The answer to the transaction that says that all nodes are whole again gets lost.
    pub(super) whole_lost: bool,
    /// Chunks that WRITTEN_SINCE names only from the beginning on.
    pub(super) written_long_ago: Vec<ChunkIndex>,
    /// The volume's records are gone.
    pub(super) deleted: bool,
    /// Every sector differs the first time that it is copied, and not only one of a chunk.
    pub(super) whole: bool,
    pub(super) job: Option<(JobRecord, KvVersion)>,
    pub(super) job_loads: usize,
    /// By target and source, what copies were asked for: chunk, sector, count, when.
    pub(super) parts: Vec<(PeerIndex, NodeId, ChunkIndex, u16, u16, Now)>,
    pub(super) orders: Vec<LaneOrder>,
    /// The one lane answers orders at once unless told not to.
    pub(super) lane_stuck: bool,
    pub(super) ready: bool,
    pub(super) ended: Option<Result<(), ControlError>>,
}

fn whole(map: &VolumeMap) -> bool {
    map.head.health.is_empty()
}

/// What [`World::held_back`] tells: the source is the slow one.
const HELD: HeldBack = HeldBack {
    at_target_ms: 5,
    at_source_ms: 3000,
};

impl World {
    pub(super) fn new(map: VolumeMap) -> Self {
        let config = ControlConfig::new(VOLUME, holder());
        let core = ControlCore::new(config, Arc::new(SharedSeq::default()));
        Self {
            core,
            now: Now(1),
            map,
            up: [PEER_A, PEER_B].into(),
            run_start: [(PEER_A, 1), (PEER_B, 1), (PEER_C, 1)].into(),
            intents: BTreeMap::new(),
            written: BTreeMap::new(),
            differ: BTreeSet::new(),
            seen: Vec::new(),
            sent: Vec::new(),
            mute: Vec::new(),
            fence_refused: BTreeMap::new(),
            behind: Vec::new(),
            map_moved: false,
            pulls: Vec::new(),
            pulls_answered: true,
            held_back: None,
            full: None,
            bad: BTreeSet::new(),
            lists_kept: None,
            hung: BTreeSet::new(),
            silent: None,
            unanswered: BTreeMap::new(),
            absurd: false,
            meta_down: false,
            heat: None,
            outcome_lost: false,
            whole_lost: false,
            written_long_ago: Vec::new(),
            deleted: false,
            whole: false,
            job: None,
            job_loads: 0,
            parts: Vec::new(),
            orders: Vec::new(),
            lane_stuck: false,
            ready: false,
            ended: None,
        }
    }

    /// Before the start.
    fn config_mut(&mut self, edit: impl FnOnce(&mut ControlConfig)) {
        let mut config = ControlConfig::new(VOLUME, holder());
        edit(&mut config);
        self.core = ControlCore::new(config, Arc::new(SharedSeq::default()));
    }

    pub(super) fn serving() -> Self {
        let mut world = Self::new(fresh());
        world.event(ControlEvent::Start);
        assert!(world.ready);
        world.event(ControlEvent::LaneAdded(LaneId(0)));
        world.seen.clear();
        world
    }

    /// Feeds an event and everything that follows from it.
    pub(super) fn event(&mut self, event: ControlEvent) {
        let mut events = std::collections::VecDeque::from([event]);
        let mut steps = 0;
        while let Some(event) = events.pop_front() {
            steps += 1;
            assert!(steps < 10_000, "no end: {event:?}");
            let mut out = Vec::new();
            self.core.handle(self.now, event, &mut out);
            for action in out {
                self.act(action, &mut events);
            }
        }
    }

    fn act(
        &mut self,
        action: ControlAction,
        events: &mut std::collections::VecDeque<ControlEvent>,
    ) {
        match action {
            ControlAction::Peers(peers) => {
                for index in 0..peers.len() {
                    let peer = PeerIndex(index as u32);
                    if self.up.contains(&peer) {
                        let incarnation = run(self.run_start[&peer]);
                        events.push_back(ControlEvent::PeerUp { peer, incarnation });
                    }
                }
            }
            ControlAction::MetaLoad(id) => {
                self.map_moved &= self.meta_down;
                let nodes = vec![record(A, "a"), record(B, "b"), record(C, "c")];
                let outcome = if self.deleted {
                    MetaOutcome::NoVolume
                } else if self.meta_down {
                    MetaOutcome::Failed(MetaError::Unavailable("down".into()).into())
                } else {
                    MetaOutcome::Loaded(Box::new((self.map.clone(), nodes)))
                };
                events.push_back(ControlEvent::Meta(id, outcome));
            }
            ControlAction::MetaCommit(id, update) => {
                let outcome = if self.meta_down {
                    MetaOutcome::Failed(CommitError::Unknown)
                } else if self.map_moved {
                    let key = "head".into();
                    MetaOutcome::Failed(CommitError::Conflict { key })
                } else if self.whole_lost && whole(&update.next) && !whole(&self.map) {
                    self.whole_lost = false;
                    self.map = committed(*update);
                    MetaOutcome::Failed(CommitError::Unknown)
                } else if std::mem::take(&mut self.outcome_lost) {
                    self.map = committed(*update);
                    MetaOutcome::Failed(CommitError::Unknown)
                } else {
                    self.map = committed(*update);
                    MetaOutcome::Committed(Box::new(self.map.clone()))
                };
                events.push_back(ControlEvent::Meta(id, outcome));
            }
            ControlAction::JobLoad(id) => {
                self.job_loads += 1;
                let outcome = if self.meta_down {
                    MetaOutcome::Failed(MetaError::Unavailable("down".into()).into())
                } else {
                    MetaOutcome::Job {
                        job: self.job.clone().map(Box::new),
                        unix_s: self.now.0 / 1_000_000_000,
                    }
                };
                events.push_back(ControlEvent::Meta(id, outcome));
            }
            ControlAction::JobStore(id, job, guard) => {
                let there = self.job.as_ref().map(|(_, version)| JobGuard {
                    job: *version,
                    head: self.map.head_version(),
                });
                let outcome = if self.meta_down {
                    MetaOutcome::Failed(CommitError::Unknown)
                } else if there == Some(guard) {
                    let version = KvVersion(guard.job.0 + 1);
                    self.job = Some((*job, version));
                    MetaOutcome::JobStored(version)
                } else {
                    let key = "jobs".into();
                    MetaOutcome::Failed(CommitError::Conflict { key })
                };
                events.push_back(ControlEvent::Meta(id, outcome));
            }
            ControlAction::Send { peer, header, aux } => {
                self.seen.push((peer, header.opcode, header.chunk));
                self.sent.push((peer, header, aux.clone()));
                if self.up.contains(&peer)
                    && let Some(reply) = self.answer(peer, &header, &aux)
                {
                    let (header, aux) = (reply.header, reply.aux);
                    let event = ControlEvent::PeerFrame { peer, header, aux };
                    match &mut self.lists_kept {
                        Some(kept) if header.opcode == Opcode::WrittenSince => kept.push(event),
                        _ => events.push_back(event),
                    }
                }
            }
            ControlAction::Order(lane, order) => {
                let report = match &order {
                    LaneOrder::Prepare { epoch, .. } => Some(LaneReport::Prepared {
                        epoch: *epoch,
                        behind: std::mem::take(&mut self.behind),
                    }),
                    LaneOrder::Install { epoch, .. } => {
                        Some(LaneReport::Installed { epoch: *epoch })
                    }
                    LaneOrder::Reconciled { .. } | LaneOrder::Fail => None,
                };
                self.orders.push(order);
                if let Some(report) = report.filter(|_| !self.lane_stuck) {
                    events.push_back(ControlEvent::Lane(lane, report));
                }
            }
            ControlAction::Ready(_) => self.ready = true,
            ControlAction::Ended(result) => self.ended = Some(result),
            ControlAction::Resized { .. } | ControlAction::Note(_) => {}
        }
    }

    fn answer(&mut self, peer: PeerIndex, header: &Header, aux: &[u8]) -> Option<Frame<Vec<u8>>> {
        if self.silent == Some(peer) {
            self.unanswered.insert(peer, *header);
            return None;
        }
        if self.mute.contains(&(peer, header.opcode)) {
            return None;
        }
        let list = match header.opcode {
            Opcode::Fence if self.fence_refused.contains_key(&peer) => {
                let reply = header.reply(self.fence_refused[&peer]);
                return Some(Frame::new(reply, Vec::new(), None));
            }
            Opcode::Fence => chunk_list(&self.intents.get(&peer).cloned().unwrap_or_default()),
            Opcode::WrittenSince => {
                let mut written = self.written.get(&peer).cloned().unwrap_or_default();
                if header.generation == Generation(0) {
                    written.extend(&self.written_long_ago);
                }
                chunk_list(&written)
            }
            Opcode::Pull if !self.pulls_answered => {
                self.pulls
                    .push((peer, header.chunk, Pull::decode(aux).unwrap()));
                return None;
            }
            Opcode::GetReport => {
                let asked = Report::decode(aux).unwrap();
                let Some(body) = self.heat.clone().filter(|_| asked.page == 0) else {
                    return Some(Frame::bare(header.reply(Status::NotFound)));
                };
                Report { body, ..asked }.encode()
            }
            Opcode::Pull if self.full == Some(peer) => {
                return Some(Frame::new(header.reply(Status::NoSpace), Vec::new(), None));
            }
            Opcode::Pull if self.held_back == Some((peer, Status::Busy)) => {
                let mut reply = header.reply(Status::Busy);
                reply.seq = HELD.to_seq();
                return Some(Frame::new(reply, Vec::new(), None));
            }
            // Hung: connected, and silent.
            Opcode::Settled if self.hung.contains(&peer) => return None,
            Opcode::Pull => {
                let from = Pull::decode(aux).unwrap().source;
                let (sector, count) = (header.sector.0, header.count);
                let mut seen = self.parts.iter();
                let is_new = !seen.any(|part| part.2 == header.chunk && part.3 == sector);
                self.parts
                    .push((peer, from, header.chunk, sector, count, self.now));
                self.pulls
                    .push((peer, header.chunk, Pull::decode(aux).unwrap()));
                let mut sectors_copied = u32::from(self.differ.remove(&header.chunk));
                if self.whole {
                    sectors_copied = if is_new { u32::from(count) } else { 0 };
                }
                if self.absurd {
                    sectors_copied = u32::MAX;
                }
                let pull = Pull::decode(aux).unwrap();
                let bad = self.bad.contains(&(pull.source, header.chunk))
                    && pull.mode != PullMode::MirrorBad;
                Pulled {
                    sectors_compared: 1024,
                    sectors_copied,
                    sectors_bad: u32::from(bad),
                }
                .encode()
            }
            _ => Vec::new(),
        };
        let mut reply = header.reply(Status::Ok);
        if header.opcode == Opcode::Pull && self.held_back == Some((peer, Status::Ok)) {
            reply.seq = HELD.to_seq();
        }
        Some(Frame::new(reply, list, None))
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.event(ControlEvent::Tick);
    }

    pub(super) fn lose(&mut self, peer: PeerIndex) {
        self.up.remove(&peer);
        self.event(ControlEvent::PeerDown { peer });
        self.event(ControlEvent::Lane(LaneId(0), LaneReport::PeerDown { peer }));
    }

    pub(super) fn restore(&mut self, peer: PeerIndex, start: u64) {
        self.up.insert(peer);
        self.run_start.insert(peer, start);
        let incarnation = run(start);
        self.event(ControlEvent::PeerUp { peer, incarnation });
        self.event(ControlEvent::Lane(
            LaneId(0),
            LaneReport::PeerUp { peer, incarnation },
        ));
    }

    /// The front is killed; another one on its host takes over.
    pub(super) fn restart(&mut self) {
        let mut attach = holder();
        attach.front[0] ^= 1;
        let mut config = ControlConfig::new(VOLUME, attach);
        config.force = true;
        config.former_is_dead = true;
        self.core = ControlCore::new(config, Arc::new(SharedSeq::default()));
        self.ready = false;
        self.event(ControlEvent::Start);
        assert!(self.ready);
        self.event(ControlEvent::LaneAdded(LaneId(0)));
    }

    pub(super) fn state(&self, node: NodeId) -> Option<ReplicaState> {
        self.map.replicas(ChunkIndex(0)).on(node)
    }

    /// What the latest installation kept lanes from touching.
    fn unreconciled(&self) -> Vec<ChunkIndex> {
        let installed = self.orders.iter().rev().find_map(|order| match order {
            LaneOrder::Install { config, .. } => Some(config),
            _ => None,
        });
        installed.unwrap().unreconciled.iter().copied().collect()
    }

    pub(super) fn count(&self, opcode: Opcode) -> usize {
        self.seen
            .iter()
            .filter(|(_, seen, _)| *seen == opcode)
            .count()
    }
}

pub(super) const ALL: ChunkRange = ChunkRange {
    start: ChunkIndex(0),
    count: 16,
};

#[test]
fn attach_takes_a_token_and_fences_every_node() {
    let mut world = World::new(fresh());
    world.event(ControlEvent::Start);
    assert!(world.ready);
    assert_eq!(world.count(Opcode::Fence), 2);
    assert_eq!(world.map.head.token.0, 1);
    assert_eq!(
        world.count(Opcode::Pull),
        0,
        "no intents, nothing to reconcile"
    );
}

#[test]
fn open_intents_are_reconciled_both_ways_and_attach_does_not_wait() {
    let mut world = World::new(fresh());
    world
        .intents
        .insert(PEER_B, vec![ChunkIndex(3), ChunkIndex(99)]);
    world.pulls_answered = false;
    world.event(ControlEvent::Start);
    assert!(world.ready && !world.core.is_reconciled());
    world.event(ControlEvent::LaneAdded(LaneId(0)));
    assert_eq!(
        world.unreconciled(),
        [ChunkIndex(3)],
        "lanes do not touch it"
    );
    // A copy of what is not equal yet could take the wrong side of it.
    world.map = committed(transition::add_location(&world.map, ALL, C).unwrap());
    world.up.insert(PEER_C);
    world.event(ControlEvent::MapChanged);
    assert!(
        world
            .pulls
            .iter()
            .all(|(_, _, pull)| pull.mode == PullMode::Newer)
    );
    world.pulls_answered = true;
    world.pass(Duration::from_secs(21)); // the unanswered ones are given up and asked again
    world.pass(Duration::from_secs(1));
    assert!(world.core.is_reconciled());
    let told = |order: &LaneOrder| match order {
        LaneOrder::Reconciled { chunks } => chunks.as_slice() == [ChunkIndex(3)],
        _ => false,
    };
    assert_eq!(world.orders.iter().filter(|order| told(order)).count(), 1);
    world.pulls.truncate(2);
    let mut pulls: Vec<_> = world
        .pulls
        .iter()
        .map(|(p, c, pull)| (*p, *c, pull.mode))
        .collect();
    pulls.sort_by_key(|(peer, ..)| *peer);
    let newer = PullMode::Newer;
    assert_eq!(
        pulls,
        [
            (PEER_A, ChunkIndex(3), newer),
            (PEER_B, ChunkIndex(3), newer)
        ]
    );
}

#[test]
fn a_node_without_room_for_what_is_reconciled_is_given_up_if_it_can_be_spared() {
    let mut world = World::new(fresh());
    world.intents.insert(PEER_A, vec![ChunkIndex(3)]);
    world.full = Some(PEER_B);
    world.event(ControlEvent::Start);
    world.event(ControlEvent::LaneAdded(LaneId(0)));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state(B), Some(ReplicaState::Stale));
    assert!(world.core.is_reconciled());
    // It has the only replica of another chunk: it stays, and is asked again.
    let only = transition::one_chunk(ChunkIndex(0));
    let map = committed(transition::remove_location(&fresh(), only, A, 1).unwrap());
    let mut world = World::new(map);
    world.intents.insert(PEER_A, vec![ChunkIndex(3)]);
    world.full = Some(PEER_B);
    world.event(ControlEvent::Start);
    world.event(ControlEvent::LaneAdded(LaneId(0)));
    world.pass(Duration::from_secs(1));
    assert!(world.map.is_in_sync(ChunkIndex(3), B) && !world.core.is_reconciled());
    world.full = None;
    world.pass(Duration::from_secs(1));
    assert!(world.core.is_reconciled());
}

#[test]
fn a_node_missing_at_attach_is_recorded_stale_and_the_last_one_is_waited_for() {
    let mut world = World::new(fresh());
    world.up.remove(&PEER_B);
    world.event(ControlEvent::Start);
    assert!(!world.ready);
    world.pass(Duration::from_secs(5));
    assert!(world.ready);
    assert_eq!(world.state(B), Some(ReplicaState::Stale));

    let mut world = World::new(fresh());
    world.up.clear();
    world.event(ControlEvent::Start);
    for _ in 0..10 {
        world.pass(Duration::from_secs(5));
    }
    assert!(!world.ready);
    assert!(
        matches!(world.ended, Some(Err(ControlError::Unreachable(_)))),
        "{:?}",
        world.ended
    );
}

/// Simulation seed 7546: the other one was gone for good.
#[test]
fn of_two_nodes_missing_at_attach_the_first_that_comes_back_serves() {
    for (back, away) in [((PEER_A, A), B), ((PEER_B, B), A)] {
        let mut world = World::new(fresh());
        world.up.clear();
        world.event(ControlEvent::Start);
        world.pass(Duration::from_secs(5));
        world.pass(Duration::from_secs(5));
        assert_eq!(world.state(away), Some(ReplicaState::InSync));
        world.restore(back.0, 2);
        world.pass(Duration::from_millis(100));
        assert!(world.ready);
        assert_eq!(world.state(away), Some(ReplicaState::Stale));
        assert_eq!(world.state(back.1), Some(ReplicaState::InSync));
    }
}

#[test]
fn an_attached_volume_is_refused_without_force() {
    let other = ukai_meta::Attach {
        front: [9; 16],
        ..holder()
    };
    let map = committed(transition::attach(&fresh(), other, false).unwrap());
    let mut world = World::new(map);
    world.event(ControlEvent::Start);
    assert!(matches!(world.ended, Some(Err(ControlError::Refused(_)))));
}

#[test]
fn a_lost_node_goes_stale_after_the_grace_and_comes_back_by_resync_of_what_was_written() {
    let mut world = World::serving();
    let generation = world.map.head.generation;
    world.lose(PEER_B);
    world.pass(Duration::from_millis(100));
    assert_eq!(
        world.state(B),
        Some(ReplicaState::InSync),
        "within the grace"
    );
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state(B), Some(ReplicaState::Stale));
    let stale = Some(NodeHealth::Stale { since: generation });
    assert_eq!(
        world.map.health(B),
        stale,
        "since the generation that lanes ran under"
    );

    world
        .written
        .insert(PEER_A, vec![ChunkIndex(1), ChunkIndex(5)]);
    world.differ.insert(ChunkIndex(5));
    world.restore(PEER_B, 2);
    world.pass(Duration::from_secs(2));
    world.pass(Duration::from_millis(100));
    assert_eq!(world.state(B), Some(ReplicaState::InSync));
    let copies: Vec<_> = world
        .pulls
        .iter()
        .map(|(peer, chunk, _)| (*peer, chunk.0))
        .collect();
    assert_eq!(
        copies,
        [(PEER_B, 1), (PEER_B, 5), (PEER_B, 5)],
        "5 again, until it is equal"
    );
    assert!(
        world
            .pulls
            .iter()
            .all(|(_, _, p)| p.mode == PullMode::Mirror && p.source == A)
    );
}

#[test]
fn what_a_dead_front_left_only_on_the_stale_node_is_compared_too() {
    let mut world = World::serving();
    world.lose(PEER_B);
    world.pass(Duration::from_secs(1));
    world.intents.insert(PEER_B, vec![ChunkIndex(7)]);
    world.restore(PEER_B, 2);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.pulls.iter().map(|p| p.1.0).collect::<Vec<_>>(), [7]);
}

#[test]
fn a_node_restarted_on_the_same_boot_within_the_grace_is_taken_on_without_resync() {
    let mut world = World::serving();
    let generation = world.map.head.generation;
    world.lose(PEER_B);
    world.restore(PEER_B, 2);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.map.head.generation, generation);
    let LaneOrder::Install { config, .. } = world.orders.last().unwrap() else {
        panic!("no installation: {:?}", world.orders.last())
    };
    assert_eq!(config.nodes[1].incarnation, Some(run(2)));
}

/// How long a node that was recorded stale, and answers again at once, is left alone.
fn pause_before_rejoin(world: &mut World, start: u64) -> Duration {
    world.lose(PEER_B);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state(B), Some(ReplicaState::Stale));
    let stale_at = world.now;
    world.restore(PEER_B, start);
    while world.state(B) != Some(ReplicaState::InSync) {
        let waited = world.now.since(stale_at);
        assert!(waited < Duration::from_secs(100), "it never came back");
        world.pass(Duration::from_millis(100));
    }
    world.now.since(stale_at)
}

#[test]
fn a_node_that_flaps_is_left_alone_longer_and_longer_until_it_has_stayed_for_a_while() {
    let mut world = World::serving();
    for (start, seconds) in (2..).zip([2, 4, 8, 16, 32, 64, 64]) {
        let pause = pause_before_rejoin(&mut world, start);
        let expected = Duration::from_secs(seconds);
        let late = expected + Duration::from_millis(500);
        assert!(expected <= pause && pause < late, "{seconds} s: {pause:?}");
    }
    world.pass(Duration::from_secs(301));
    let pause = pause_before_rejoin(&mut world, 99);
    assert!(pause < Duration::from_millis(1500), "{pause:?}");
}

#[test]
fn without_metadata_a_lost_node_is_not_left_out() {
    let mut world = World::serving();
    world.meta_down = true;
    world.orders.clear();
    world.lose(PEER_B);
    world.pass(Duration::from_secs(1));
    world.pass(Duration::from_secs(3));
    assert!(
        world.orders.is_empty(),
        "acks wait (I1): {:?}",
        world.orders
    );
    world.meta_down = false;
    world.pass(Duration::from_secs(3));
    assert_eq!(world.state(B), Some(ReplicaState::Stale));
    assert!(matches!(
        world.orders.last(),
        Some(LaneOrder::Install { .. })
    ));
}

#[test]
fn the_last_in_sync_node_is_never_recorded_stale() {
    let mut world = World::serving();
    world.lose(PEER_A);
    world.pass(Duration::from_secs(1));
    world.lose(PEER_B);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.state(A), Some(ReplicaState::Stale));
    assert_eq!(world.state(B), Some(ReplicaState::InSync));
    assert_eq!(world.ended, None);
}

/// Lanes ask it first, until it may have room again.
#[test]
fn the_last_in_sync_node_is_known_to_be_full_for_a_while() {
    let full = |world: &World| {
        let mut orders = world.orders.iter().rev();
        let installed = orders.find_map(|order| match order {
            LaneOrder::Install { config, .. } => Some(Arc::clone(config)),
            _ => None,
        });
        installed.expect("an installation").full.clone()
    };
    let mut world = World::serving();
    world.lose(PEER_A);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state(A), Some(ReplicaState::Stale));
    let (node, status) = (B, Status::NoSpace);
    world.event(ControlEvent::Lane(
        LaneId(0),
        LaneReport::ReplicaFailed { node, status },
    ));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state(B), Some(ReplicaState::InSync));
    assert_eq!(full(&world), [B].into());
    for _ in 0..310 {
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(full(&world), BTreeSet::new());
}

#[test]
fn a_removed_location_is_deleted_on_its_node_before_it_is_forgotten() {
    let mut world = World::serving();
    world.map = committed(transition::remove_location(&world.map, ALL, B, 1).unwrap());
    world.event(ControlEvent::MapChanged);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.count(Opcode::Release), 1);
    assert_eq!(world.state(B), None);
}

#[test]
fn an_added_location_is_filled_and_promoted() {
    let mut world = World::serving();
    let removed = committed(transition::remove_location(&world.map, ALL, B, 1).unwrap());
    let gone = committed(transition::drop_leaving(&removed, ALL, B).unwrap());
    world.map = committed(transition::add_location(&gone, ALL, B).unwrap());
    world.written.insert(PEER_A, vec![ChunkIndex(2)]);
    world.event(ControlEvent::MapChanged);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.state(B), Some(ReplicaState::InSync));
    assert_eq!(world.pulls.len(), 1);
}

#[test]
fn what_an_earlier_life_left_on_the_joining_node_is_compared_too() {
    let mut world = World::serving();
    world.written.insert(PEER_C, vec![ChunkIndex(9)]);
    world.map = committed(transition::add_location(&world.map, ALL, C).unwrap());
    world.event(ControlEvent::MapChanged);
    world.restore(PEER_C, 1);
    world.pass(Duration::from_millis(100));
    assert_eq!(
        world
            .pulls
            .iter()
            .map(|(_, chunk, _)| chunk.0)
            .collect::<Vec<_>>(),
        [9]
    );
}

#[test]
fn a_location_on_an_unknown_node_is_fenced_before_lanes_write_to_it() {
    let mut world = World::serving();
    world.map = committed(transition::add_location(&world.map, ALL, C).unwrap());
    world.orders.clear();
    world.event(ControlEvent::MapChanged);
    assert!(
        world.orders.is_empty(),
        "C is not fenced yet: {:?}",
        world.orders
    );
    world.restore(PEER_C, 1);
    world.pass(Duration::from_millis(100));
    assert!(world.seen.contains(&(PEER_C, Opcode::Fence, ChunkIndex(0))));
    assert_eq!(world.state(C), Some(ReplicaState::InSync));
    assert_eq!(world.map.head.health, []);
}

#[test]
fn a_map_that_names_a_node_without_a_record_is_refused_or_left_alone() {
    let unknown = NodeId([0xd; 16]);
    let damaged = |map: &VolumeMap| committed(transition::add_location(map, ALL, unknown).unwrap());
    let mut world = World::serving();
    world.map = damaged(&world.map);
    world.orders.clear();
    world.event(ControlEvent::MapChanged);
    for _ in 0..100 {
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.ended, None, "it serves on under the map that it has");
    assert!(world.orders.is_empty(), "{:?}", world.orders);

    let mut world = World::new(damaged(&fresh()));
    world.event(ControlEvent::Start);
    for _ in 0..40 {
        world.pass(Duration::from_secs(1));
    }
    let Some(Err(ControlError::Meta(text))) = &world.ended else {
        panic!("{:?}", world.ended);
    };
    assert!(text.contains(&unknown.to_string()), "{text}");
}

#[test]
fn a_new_token_in_the_map_stops_this_front() {
    let mut world = World::serving();
    let other = ukai_meta::Attach {
        front: [9; 16],
        ..holder()
    };
    world.map = committed(transition::attach(&world.map, other, true).unwrap());
    world.event(ControlEvent::MapChanged);
    assert_eq!(world.ended, Some(Err(ControlError::Fenced)));
    assert!(matches!(world.orders.last(), Some(LaneOrder::Fail)));
}

#[test]
fn a_lane_that_ends_says_nothing_about_nodes() {
    let mut world = World::serving();
    world.event(ControlEvent::Lane(
        LaneId(0),
        LaneReport::PeerDown { peer: PEER_B },
    ));
    world.event(ControlEvent::LaneRemoved(LaneId(0)));
    world.event(ControlEvent::Lane(
        LaneId(0),
        LaneReport::PeerDown { peer: PEER_A },
    ));
    world.pass(Duration::from_secs(2));
    assert_eq!(
        (world.state(A), world.state(B)),
        (Some(ReplicaState::InSync), Some(ReplicaState::InSync))
    );
}

#[test]
fn a_volume_deleted_while_attached_stops_this_front() {
    let mut world = World::serving();
    world.deleted = true;
    world.event(ControlEvent::MapChanged);
    assert_eq!(world.ended, Some(Err(ControlError::NoVolume)));
    assert!(matches!(world.orders.last(), Some(LaneOrder::Fail)));
}

#[test]
fn a_barrier_waits_for_every_lane() {
    let mut world = World::serving();
    world.lane_stuck = true;
    world.lose(PEER_B);
    world.pass(Duration::from_secs(1));
    let last = world.orders.last().cloned();
    let Some(LaneOrder::Prepare { epoch, lost }) = last else {
        panic!("{last:?}")
    };
    assert_eq!(lost, [B]);
    world.lane_stuck = false;
    world.event(ControlEvent::Lane(
        LaneId(0),
        LaneReport::Prepared {
            epoch,
            behind: Vec::new(),
        },
    ));
    let last = world.orders.last().cloned();
    let Some(LaneOrder::Install { config, .. }) = last else {
        panic!("{last:?}")
    };
    assert!(config.generation > Generation(2));
}

#[test]
fn detach_flushes_settles_and_gives_back() {
    let mut world = World::serving();
    world.event(ControlEvent::LaneRemoved(LaneId(0)));
    world.event(ControlEvent::Detach);
    world.pass(Duration::from_millis(100));
    assert_eq!(
        (world.count(Opcode::Flush), world.count(Opcode::Settled)),
        (2, 2)
    );
    assert_eq!(world.ended, Some(Ok(())));
    assert_eq!(world.map.head.attach, None);
}

/// The one corner where a take-over waits: a node that cannot be fenced may serve the former front's
/// reads until that front has not heard from the fenced ones for as long as its lease.
#[test]
fn a_forced_attach_waits_for_the_read_lease_if_a_node_cannot_be_fenced() {
    let other = ukai_meta::Attach {
        host: "h2".into(),
        ..holder()
    };
    let held = committed(transition::attach(&fresh(), other, false).unwrap());
    for (former_is_dead, waits) in [(false, true), (true, false)] {
        let mut world = World::new(held.clone());
        world.config_mut(|config| {
            config.force = true;
            config.former_is_dead = former_is_dead;
        });
        world.up.remove(&PEER_B);
        world.event(ControlEvent::Start);
        world.pass(Duration::from_secs(5));
        assert_eq!(world.state(B), Some(ReplicaState::Stale));
        assert_eq!(world.ready, !waits);
        world.pass(READ_LEASE);
        world.pass(Duration::from_millis(100));
        assert!(world.ready);
    }
    // All fenced: no reason to wait.
    let mut world = World::new(held);
    world.config_mut(|config| config.force = true);
    world.event(ControlEvent::Start);
    assert!(world.ready);
}

#[test]
fn a_node_that_hangs_is_recorded_stale_before_the_read_lease_ends() {
    let mut world = World::serving();
    world.pass(Duration::from_secs(1));
    world.hung.insert(PEER_B);
    let begin = world.now;
    while world.state(B) == Some(ReplicaState::InSync) {
        world.pass(Duration::from_millis(100));
        assert!(world.now.since(begin) < READ_LEASE, "reads would stop");
    }
}

#[test]
fn a_write_that_failed_halfway_gets_a_new_token_and_its_chunk_reconciled() {
    let mut world = World::serving();
    let chunk = ChunkIndex(5);
    world.pulls_answered = false;
    world.event(ControlEvent::Lane(
        LaneId(0),
        LaneReport::Abandoned { chunk },
    ));
    world.pass(Duration::from_millis(100));
    assert_eq!(world.map.head.token.0, 2);
    // Lanes drained before the nodes were fenced, and run under the new token after it.
    assert_eq!(world.count(Opcode::Fence), 2);
    assert_eq!(world.unreconciled(), [chunk]);
    let installed = world.orders.iter().rev().find_map(|order| match order {
        LaneOrder::Install { config, .. } => Some(config.token.0),
        _ => None,
    });
    assert_eq!(installed, Some(2));
    world.pulls_answered = true;
    world.pass(Duration::from_secs(21));
    world.pass(Duration::from_secs(1));
    assert!(world.core.is_reconciled());
    assert!(world.pulls.iter().all(|(_, pulled, _)| *pulled == chunk));
}

/// The answers of a job that was given up came late: they must not fill another one.
/// Under the next token a node reads what its recovery adopted: so that is reconciled first.
#[test]
fn a_new_token_reconciles_what_was_open_on_a_node_whose_process_died() {
    let mut world = World::serving();
    let (open, doubted) = (ChunkIndex(3), ChunkIndex(5));
    world.intents.insert(PEER_A, vec![open]);
    world.lose(PEER_A);
    world.restore(PEER_A, 2);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.state(A), Some(ReplicaState::InSync));
    assert!(
        world.unreconciled().is_empty(),
        "this front has lost nothing"
    );
    world.pulls_answered = false;
    world.event(ControlEvent::Lane(
        LaneId(0),
        LaneReport::Doubted { chunk: doubted },
    ));
    world.pass(Duration::from_millis(100));
    assert_eq!(world.map.head.token.0, 2);
    assert_eq!(world.unreconciled(), [open, doubted]);
}

/// When the process of the only source died.
#[derive(PartialEq, Debug)]
enum Death {
    Serving,
    /// After it was fenced.
    Attaching,
    /// After it was fenced, before it could say so.
    AttachingUnheard,
    /// The same, and again when it was fenced anew.
    RenewingUnheard,
}

/// A replica of which the only other one doubts a sector cannot be filled from it before that one was fenced anew.
#[test]
fn what_only_a_doubting_source_has_is_copied_under_a_new_token() {
    use Death::{Attaching, AttachingUnheard, RenewingUnheard, Serving};
    for death in [Serving, Attaching, AttachingUnheard, RenewingUnheard] {
        let chunk = ChunkIndex(3);
        let mut world = World::new(fresh());
        world.intents.insert(PEER_A, vec![chunk]);
        let die = |world: &mut World, start| {
            world.mute.clear();
            world.event(ControlEvent::PeerDown { peer: PEER_A });
            world.run_start.insert(PEER_A, start);
            world.event(ControlEvent::PeerUp {
                peer: PEER_A,
                incarnation: run(start),
            });
        };
        if death == Serving {
            world.event(ControlEvent::Start);
            world.event(ControlEvent::LaneAdded(LaneId(0)));
            world.lose(PEER_B);
            world.pass(Duration::from_secs(5));
            world.lose(PEER_A);
            world.restore(PEER_A, 2);
            world.pass(Duration::from_secs(1));
        } else {
            // It dies and comes back before the other one is waited for no longer.
            world.up.remove(&PEER_B);
            if death != Attaching {
                world.mute.push((PEER_A, Opcode::Fence));
            }
            world.event(ControlEvent::Start);
            die(&mut world, 2);
            world.pass(Duration::from_secs(20));
            assert!(world.ready);
            world.event(ControlEvent::LaneAdded(LaneId(0)));
        }
        let token = world.map.head.token.0;
        let mut renewals = 1;
        world.bad = [(A, chunk)].into();
        world.written.insert(PEER_A, vec![chunk]);
        if death == RenewingUnheard {
            renewals = 2;
            world.mute.push((PEER_A, Opcode::Fence));
        }
        world.restore(PEER_B, 2);
        for _ in 0..100 {
            world.pass(Duration::from_secs(1));
            if !world.mute.is_empty() && world.map.head.token.0 > token {
                world.pass(Duration::from_secs(1)); // now it is asked
                die(&mut world, 3);
            }
            if world.map.head.token.0 == token + renewals {
                world.bad.clear();
            }
        }
        assert_eq!(world.map.head.token.0, token + renewals, "{death:?}");
        assert_eq!(world.state(B), Some(ReplicaState::InSync), "{death:?}");
    }
}

#[test]
fn answers_to_an_earlier_copy_job_do_not_count_for_the_next() {
    let mut world = World::serving();
    world.up.insert(PEER_C);
    world.lists_kept = Some(Vec::new());
    world.map = committed(transition::add_location(&world.map, ALL, C).unwrap());
    world.event(ControlEvent::MapChanged);
    world.pass(Duration::from_millis(100));
    let late = world.lists_kept.replace(Vec::new()).unwrap();
    assert!(!late.is_empty(), "the first job asked for lists");
    world.event(ControlEvent::PeerDown { peer: PEER_C });
    world.restore(PEER_C, 1);
    world.pass(Duration::from_secs(2));
    assert!(
        !world.lists_kept.as_ref().unwrap().is_empty(),
        "so did the second"
    );
    for _ in 0..3 {
        for event in &late {
            let ControlEvent::PeerFrame { peer, header, aux } = event else {
                unreachable!()
            };
            let (peer, header, aux) = (*peer, *header, aux.clone());
            world.event(ControlEvent::PeerFrame { peer, header, aux });
        }
    }
    // As many answers as the second job waits for, but not all of them to its own questions.
    let own = world.lists_kept.take().unwrap();
    let of_target = |event: &ControlEvent| matches!(event, ControlEvent::PeerFrame { peer, .. } if *peer == PEER_C);
    let (target, sources): (Vec<_>, Vec<_>) = own.into_iter().partition(of_target);
    assert_eq!((target.len(), sources.len()), (1, 2));
    for event in target {
        world.event(event);
    }
    world.pass(Duration::from_millis(100));
    assert_eq!(world.state(C), Some(ReplicaState::Joining));
    for event in sources {
        world.event(event);
    }
    world.pass(Duration::from_millis(100));
    assert_eq!(world.state(C), Some(ReplicaState::InSync));
}

/// A bad sector at the source is not copied; the target without it is not equal to what is good elsewhere.
#[test]
fn a_job_whose_node_was_recorded_stale_by_a_lost_answer_begins_anew() {
    let mut world = World::serving();
    world.lose(PEER_B);
    world.pass(Duration::from_secs(1));
    world.lists_kept = Some(Vec::new());
    world.restore(PEER_B, 2);
    world.pass(Duration::from_secs(2));
    let lists = world.lists_kept.take().unwrap();
    assert!(!lists.is_empty(), "the job has begun");
    world.outcome_lost = true;
    let (node, status) = (B, Status::NoSpace);
    world.event(ControlEvent::Lane(
        LaneId(0),
        LaneReport::ReplicaFailed { node, status },
    ));
    world.pass(Duration::from_millis(100));
    assert!(!world.outcome_lost, "the node was recorded stale");
    for event in lists {
        world.event(event);
    }
    for _ in 0..20 {
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.state(B), Some(ReplicaState::InSync));
}

#[test]
fn a_chunk_that_is_bad_at_one_source_is_copied_from_another_and_repaired() {
    let mut world = World::serving();
    world.up.insert(PEER_C);
    let chunk = ChunkIndex(2);
    world.written.insert(PEER_A, vec![chunk]);
    world.written.insert(PEER_B, vec![chunk]);
    world.bad = [(A, chunk), (B, chunk)].into();
    world.map = committed(transition::add_location(&world.map, ALL, C).unwrap());
    world.event(ControlEvent::MapChanged);
    world.pass(Duration::from_secs(2));
    assert_eq!(
        world.state(C),
        Some(ReplicaState::Joining),
        "bad everywhere"
    );
    world.bad = [(A, chunk)].into();
    world.pass(Duration::from_secs(2));
    assert_eq!(world.state(C), Some(ReplicaState::InSync));
    let repaired = |(peer, pulled, pull): &(PeerIndex, ChunkIndex, Pull)| {
        (*peer, *pulled, pull.mode, pull.source) == (PEER_A, chunk, PullMode::Repair, B)
    };
    assert!(world.pulls.iter().any(repaired));
}

#[test]
fn what_stays_bad_on_every_replica_is_taken_over_as_bad_only_when_all_of_them_are_there() {
    let mut world = World::serving();
    world.up.insert(PEER_C);
    let chunk = ChunkIndex(2);
    world.written.insert(PEER_A, vec![chunk]);
    world.bad = [(A, chunk), (B, chunk)].into();
    world.map = committed(transition::add_location(&world.map, ALL, C).unwrap());
    world.event(ControlEvent::MapChanged);
    let taken = |world: &World| {
        let is_taken = |(_, of, pull): &&(PeerIndex, ChunkIndex, Pull)| {
            *of == chunk && pull.mode == PullMode::MirrorBad
        };
        world.pulls.iter().filter(is_taken).count()
    };
    world.pass(Duration::from_secs(2));
    assert_eq!(taken(&world), 0, "repairs come first");
    // One that is away may have it whole.
    world.lose(PEER_B);
    for _ in 0..3 {
        world.pass(Duration::from_millis(100));
    }
    assert_eq!(taken(&world), 0);
    world.restore(PEER_B, 1);
    for _ in 0..10 {
        world.pass(Duration::from_secs(2));
    }
    assert!(taken(&world) > 0);
    assert_eq!(world.state(C), Some(ReplicaState::InSync));
}

/// What the source got after the ceiling is not copied: it must have reached the target by itself before
/// that one counts as in-sync, or the target has neither it nor what it replaces.
#[test]
fn a_filled_replica_is_promoted_only_when_writes_under_way_have_ended() {
    let seq = Arc::new(SharedSeq::default());
    let mut world = World::new(fresh());
    world.core = ControlCore::new(ControlConfig::new(VOLUME, holder()), Arc::clone(&seq));
    world.event(ControlEvent::Start);
    world.event(ControlEvent::LaneAdded(LaneId(0)));
    world.up.insert(PEER_C);
    let write = seq.take(LaneId(0), None);
    world.map = committed(transition::add_location(&world.map, ALL, C).unwrap());
    world.event(ControlEvent::MapChanged);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.state(C), Some(ReplicaState::Joining));
    seq.ended(LaneId(0), write, None);
    world.pass(Duration::from_millis(100));
    assert_eq!(world.state(C), Some(ReplicaState::InSync));
}

/// A reply as a bad node makes it up, to a request that went to `asked`.
fn made_up(world: &World, asked: PeerIndex, aux: Vec<u8>) -> (Header, Vec<u8>) {
    let request = &world.unanswered[&asked];
    let frame = Frame::<Vec<u8>>::new(request.reply(Status::Ok), aux, None);
    (frame.header, frame.aux)
}

#[test]
fn an_answer_from_a_node_that_was_not_asked_changes_nothing() {
    let mut world = World::new(fresh());
    world.silent = Some(PEER_A);
    world.event(ControlEvent::Start);
    assert!(!world.ready, "A has not answered its FENCE");
    let (header, aux) = made_up(&world, PEER_A, chunk_list(&[]));
    let foreign = ControlEvent::PeerFrame {
        peer: PEER_B,
        header,
        aux: aux.clone(),
    };
    world.event(foreign);
    assert!(!world.ready, "B cannot say that A is fenced");
    let own = ControlEvent::PeerFrame {
        peer: PEER_A,
        header,
        aux,
    };
    world.event(own);
    assert!(world.ready, "A's own answer still counts");
}

#[test]
fn absurd_counts_of_a_copy_and_chunks_beyond_the_end_are_survived() {
    let mut world = World::new(fresh());
    world.absurd = true;
    let all = [
        ChunkIndex(1),
        ChunkIndex(2),
        ChunkIndex(16),
        ChunkIndex(u32::MAX),
    ];
    world.intents.insert(PEER_B, all.to_vec());
    world.event(ControlEvent::Start);
    assert!(world.ready);
    assert_eq!(
        world.pulls.len(),
        4,
        "both chunks that there are, both ways"
    );
}

#[test]
fn windows_of_all_lanes_are_one_latency() {
    let mut world = World::serving();
    for (lane, us) in [(0, 100), (1, 900)] {
        let mut window = Box::new(super::window::LaneWindow::default());
        window.read.saturating_record(us * 1000);
        world.event(ControlEvent::Window(LaneId(lane), window));
    }
    let (p99, samples) = world
        .core
        .guest_latency()
        .p99(world.now, Duration::from_secs(1))
        .expect("samples");
    assert_eq!(samples, 2);
    assert!((900..910).contains(&p99.as_micros()), "{p99:?}");
}

/// The heat that lanes were given with the latest installation.
fn heat_of(world: &World) -> Arc<super::heat::HeatTable> {
    let installed = world.orders.iter().rev().find_map(|order| match order {
        LaneOrder::Install { config, .. } => Some(Arc::clone(&config.heat)),
        _ => None,
    });
    installed.unwrap()
}

#[test]
fn heat_is_told_to_all_nodes_when_it_changed() {
    let mut world = World::serving();
    for _ in 0..8 {
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.count(Opcode::PutReport), 0, "nothing was used");
    let heat = heat_of(&world);
    assert_eq!(heat.chunk_count(), 16);
    heat.write(ChunkIndex(3), 256);
    world.pass(Duration::from_secs(6));
    assert_eq!(world.count(Opcode::PutReport), 2);
    let to: BTreeSet<PeerIndex> = world
        .seen
        .iter()
        .filter(|(_, opcode, _)| *opcode == Opcode::PutReport)
        .map(|(peer, ..)| *peer)
        .collect();
    assert_eq!(to, [PEER_A, PEER_B].into());
    // It only fades: once its age says little more, it is told again when a level has changed.
    for _ in 0..300 {
        world.pass(Duration::from_secs(6));
    }
    world.seen.clear();
    for _ in 0..40 {
        world.pass(Duration::from_secs(6));
    }
    let fading = world.count(Opcode::PutReport);
    assert!((2..=24).contains(&fading), "{fading}");
    // A node that comes back has lost its memory, perhaps.
    world.lose(PEER_B);
    world.restore(PEER_B, 2);
    world.seen.clear();
    world.pass(Duration::from_secs(6));
    assert_eq!(world.count(Opcode::PutReport), 2);
}

#[test]
fn what_the_shell_tells_goes_to_all_nodes_until_they_hang() {
    let mut world = World::serving();
    world.event(ControlEvent::Publish(b"{}".to_vec()));
    assert_eq!(world.count(Opcode::PutReport), 2);
    world.event(ControlEvent::Publish(vec![0; 61 << 10]));
    assert_eq!(world.count(Opcode::PutReport), 2, "too long");
    world.silent = Some(PEER_B);
    world.seen.clear();
    for _ in 0..20 {
        world.event(ControlEvent::Publish(b"{}".to_vec()));
    }
    assert_eq!(world.count(Opcode::PutReport), 20 + 4);
}

#[test]
fn a_front_asks_what_earlier_ones_knew_of_the_heat() {
    let mut world = World::new(fresh());
    let mut chunks = vec![ukai_proto::heat::ChunkHeat::default(); 16];
    chunks[5] = ukai_proto::heat::ChunkHeat::from_rates(100.0, 0.0, 409_600.0);
    let page = ukai_proto::heat::HeatPage {
        age_s: 3000,
        half_life_s: 600,
        chunks,
    };
    world.heat = Some(page.encode());
    world.event(ControlEvent::Start);
    world.pass(Duration::from_millis(50));
    assert_eq!(world.count(Opcode::GetReport), 1);
    world.event(ControlEvent::LaneAdded(LaneId(0)));
    let told = heat_of(&world).page(0, Duration::from_secs(3000));
    assert!(
        (told.chunks[5].reads_per_s() / 100.0 - 1.0).abs() < 0.15,
        "{:?}",
        told.chunks[5]
    );
    assert_eq!(told.chunks.iter().filter(|heat| !heat.is_zero()).count(), 1);
    // The others get it from this front.
    world.pass(Duration::from_secs(6));
    assert_eq!(world.count(Opcode::PutReport), 2);
}

#[test]
fn settled_questions_tell_the_network() {
    let mut world = World::serving();
    assert_eq!(world.core.network(C), None);
    for _ in 0..4 {
        world.pass(Duration::from_millis(600));
    }
    assert!(
        world
            .core
            .network(B)
            .is_some_and(|points| points.count >= 3)
    );
}
