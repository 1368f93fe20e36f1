//! `control`: a volume's control between a metadata store that fails now and then, lanes, and nodes that
//! answer anything.
//!
//! Whatever the nodes say: what is asked of them is well-formed and bounded; every transaction leaves each
//! chunk an in-sync replica; the end comes once. When everybody turns honest, the front serves or has
//! said why not.

use crate::frames::status;
use crate::front::{NODES, VOLUME, committed, fresh, holder, records, run_of};
use crate::input::Input;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use ublk_front::core::api::{
    ControlAction, ControlEvent, LaneId, LaneOrder, LaneReport, MetaId, MetaOutcome, Now, PeerIndex,
};
use ublk_front::core::{ControlConfig, ControlCore, SharedSeq};
use ukai_meta::job::{GoalSet, JOB_FORMAT, JobLimits, JobRecord, JobState};
use ukai_meta::transition::{self, MapUpdate};
use ukai_meta::{CommitError, KvVersion, MetaError, VolumeMap};
use ukai_proto::limits::{AUX_BYTES_MAX, WIRE_UNIT_BYTES};
use ukai_proto::message::{Pull, Pulled, chunk_list, read_chunk_ranges};
use ukai_proto::{ChunkIndex, Flags, Header, NodeId, Opcode, SectorInChunk, Status};

const LANES: u8 = 2;
const STEPS_MAX: usize = 400;
/// What one event may lead to: a request to each of three nodes for each of 16 chunks, and to spare.
const ACTIONS_MAX: usize = 1000;
/// Requests that wait for an answer.
const ASKED_MAX: usize = 1000;

enum Meta {
    Load(MetaId),
    Commit(MetaId, Box<MapUpdate>),
    JobLoad(MetaId),
    JobStore(MetaId, Box<JobRecord>),
}

struct World {
    core: ControlCore,
    now: Now,
    map: VolumeMap,
    job: Option<JobRecord>,
    meta: VecDeque<Meta>,
    asked: Vec<(PeerIndex, Header, Vec<u8>)>,
    orders: VecDeque<(LaneId, LaneOrder)>,
    lanes: BTreeMap<LaneId, bool>,
    peers: usize,
    up: [bool; 3],
    ready: bool,
    ended: bool,
}

impl World {
    fn new() -> Self {
        let config = ControlConfig::new(VOLUME, holder());
        Self {
            core: ControlCore::new(config, Arc::new(SharedSeq::default())),
            now: Now(1),
            map: fresh(),
            job: None,
            meta: VecDeque::new(),
            asked: Vec::new(),
            orders: VecDeque::new(),
            lanes: BTreeMap::new(),
            peers: 0,
            up: [false; 3],
            ready: false,
            ended: false,
        }
    }

    fn event(&mut self, event: ControlEvent) {
        let mut out = Vec::new();
        self.core.handle(self.now, event, &mut out);
        assert!(out.len() <= ACTIONS_MAX, "{} actions at once", out.len());
        for action in out {
            self.act(action);
        }
        assert!(self.asked.len() <= ASKED_MAX, "asks without end");
    }

    fn act(&mut self, action: ControlAction) {
        let after_end = self.ended;
        match action {
            ControlAction::Order(lane, order) => {
                assert!(!after_end || matches!(order, LaneOrder::Fail));
                self.orders.push_back((lane, order));
            }
            _ if after_end => panic!("{action:?} after the end"),
            ControlAction::Peers(peers) => {
                assert!(peers.len() >= self.peers && peers.len() <= NODES.len());
                self.peers = peers.len();
            }
            ControlAction::MetaLoad(id) => self.meta.push_back(Meta::Load(id)),
            ControlAction::MetaCommit(id, update) => {
                self.meta.push_back(Meta::Commit(id, update));
            }
            ControlAction::JobLoad(id) => self.meta.push_back(Meta::JobLoad(id)),
            ControlAction::JobStore(id, job, _) => self.meta.push_back(Meta::JobStore(id, job)),
            ControlAction::Send { peer, header, aux } => {
                Header::decode(&header.encode()).expect("control sends no nonsense");
                assert_eq!(header.aux_bytes as usize, aux.len());
                assert!((peer.0 as usize) < self.peers);
                match header.opcode {
                    Opcode::Pull => drop(Pull::decode(&aux).expect("a good order")),
                    Opcode::Release => drop(read_chunk_ranges(&aux).expect("good ranges")),
                    _ => {}
                }
                self.asked.push((peer, header, aux));
            }
            ControlAction::Ready(_) => {
                assert!(!self.ready, "ready twice");
                self.ready = true;
            }
            ControlAction::Ended(result) => {
                self.ended = true;
                if let Err(error) = result {
                    assert!(!error.to_string().is_empty());
                }
            }
            ControlAction::Resized { .. } => {}
            ControlAction::Note(text) => assert!(!text.is_empty()),
        }
        assert!(self.meta.len() <= 1, "one metadata request at a time");
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let index = input.below(3);
        let peer = PeerIndex(index.into());
        match input.below(16) {
            0..6 => self.bad_answer(input),
            6 => self.answer_all(),
            7 => self.bad_meta(input),
            8 => self.meta_done(),
            9 => {
                let known = usize::from(index) < self.peers;
                let up = !self.up[usize::from(index)];
                if known && up {
                    self.raise(usize::from(index), 1 + u64::from(input.below(3)));
                } else if known {
                    self.lose(peer);
                }
            }
            10 => self.pass(Duration::from_millis(u64::from(input.u16()))),
            11 => self.lane_does(input, peer),
            12 => self.obey(),
            13 => {
                let lane = LaneId(u32::from(index % LANES));
                if self.lanes.remove(&lane).is_some() {
                    self.orders.retain(|(to, _)| *to != lane);
                    self.event(ControlEvent::LaneRemoved(lane));
                } else {
                    self.lanes.insert(lane, true);
                    self.event(ControlEvent::LaneAdded(lane));
                }
            }
            14 => self.operator(input, NODES[usize::from(index)]),
            _ if input.rarely(16) => self.event(ControlEvent::Detach),
            _ => self.event(ControlEvent::MapChanged),
        }
    }

    fn raise(&mut self, index: usize, start: u64) {
        self.up[index] = true;
        let peer = PeerIndex(u32::try_from(index).expect("one of three"));
        let incarnation = run_of(start);
        self.event(ControlEvent::PeerUp { peer, incarnation });
        for lane in self.lanes.keys().copied().collect::<Vec<_>>() {
            let report = LaneReport::PeerUp { peer, incarnation };
            self.event(ControlEvent::Lane(lane, report));
        }
    }

    fn lose(&mut self, peer: PeerIndex) {
        self.up[peer.0 as usize] = false;
        self.asked.retain(|(to, ..)| *to != peer);
        self.event(ControlEvent::PeerDown { peer });
        for lane in self.lanes.keys().copied().collect::<Vec<_>>() {
            self.event(ControlEvent::Lane(lane, LaneReport::PeerDown { peer }));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.event(ControlEvent::Tick);
    }

    fn reply(&mut self, peer: PeerIndex, mut header: Header, mut aux: Vec<u8>) {
        aux.resize(
            aux.len()
                .next_multiple_of(WIRE_UNIT_BYTES)
                .min(AUX_BYTES_MAX),
            0,
        );
        header.aux_bytes = u32::try_from(aux.len()).expect("bounded above");
        self.event(ControlEvent::PeerFrame { peer, header, aux });
    }

    /// Every request on a connection that stands gets an honest answer.
    fn answer_all(&mut self) {
        for (peer, request, _) in std::mem::take(&mut self.asked) {
            if self.up[peer.0 as usize] {
                self.reply(peer, request.reply(Status::Ok), honest(&request));
            }
        }
    }

    fn bad_answer(&mut self, input: &mut Input<'_>) {
        if self.asked.is_empty() {
            return;
        }
        let index = usize::from(input.u8()) % self.asked.len();
        let (mut peer, request, _) = self.asked.swap_remove(index);
        if !self.up[peer.0 as usize] {
            return;
        }
        let mut header = request.reply(Status::Ok);
        let mut aux = honest(&request);
        for _ in 0..input.below(4) {
            match input.below(10) {
                // A node that says "fenced" ends everything: not too often.
                0 => header.status = status(input),
                1 => header.flags = Flags(input.u8() & 63),
                2 => header.flags = header.flags.with(Flags::MORE),
                3 => header.tag ^= 1 << (input.u8() % 64),
                4 => header.opcode = crate::frames::opcode(input),
                5 => peer = PeerIndex(u32::from(input.below(3)).min(self.last_peer())),
                6 => aux = input.short().to_vec(),
                7 => {
                    let chunks: Vec<_> = (0..input.below(20))
                        .map(|_| {
                            ChunkIndex(if input.bool() {
                                input.u32()
                            } else {
                                input.below(20).into()
                            })
                        })
                        .collect();
                    aux = chunk_list(&chunks);
                }
                8 => {
                    let word = |input: &mut Input<'_>| if input.bool() { input.u32() } else { 1 };
                    let pulled = Pulled {
                        sectors_compared: word(input),
                        sectors_copied: word(input),
                        sectors_bad: word(input),
                    };
                    aux = pulled.encode();
                }
                _ => header.sector = SectorInChunk(input.u16()),
            }
        }
        self.reply(peer, header, aux);
    }

    fn last_peer(&self) -> u32 {
        u32::try_from(self.peers.saturating_sub(1)).expect("at most three")
    }

    fn meta_done(&mut self) {
        match self.meta.pop_front() {
            Some(Meta::Load(id)) => {
                let loaded = MetaOutcome::Loaded(Box::new((self.map.clone(), records())));
                self.event(ControlEvent::Meta(id, loaded));
            }
            Some(Meta::Commit(id, update)) => {
                let outcome = self.commit(*update);
                self.event(ControlEvent::Meta(id, outcome));
            }
            Some(Meta::JobLoad(id)) => {
                let job = self.job.clone().map(|job| Box::new((job, KvVersion(1))));
                let loaded = MetaOutcome::Job { job, unix_s: 1 };
                self.event(ControlEvent::Meta(id, loaded));
            }
            Some(Meta::JobStore(id, job)) => {
                self.job = Some(*job);
                let stored = MetaOutcome::JobStored(KvVersion(1));
                self.event(ControlEvent::Meta(id, stored));
            }
            None => {}
        }
    }

    fn commit(&mut self, update: MapUpdate) -> MetaOutcome {
        // The head's version guards the transaction (I5); here the generation stands for it.
        if update.next.head.generation.0 != self.map.head.generation.0 + 1 {
            let key = "head".into();
            return MetaOutcome::Failed(CommitError::Conflict { key });
        }
        self.map = committed(update);
        for set in self.map.sets_in_use() {
            let replicas = self.map.set(set).iter();
            let in_sync = replicas.filter(|r| r.state == ukai_meta::ReplicaState::InSync);
            assert!(in_sync.count() > 0, "a set without an in-sync replica (I1)");
        }
        MetaOutcome::Committed(Box::new(self.map.clone()))
    }

    fn bad_meta(&mut self, input: &mut Input<'_>) {
        let Some(request) = self.meta.pop_front() else {
            return;
        };
        let failed = match input.below(4) {
            0 => CommitError::Unknown,
            1 => MetaError::Unavailable("down".into()).into(),
            2 => MetaError::SessionExpired.into(),
            _ => CommitError::Conflict { key: "head".into() },
        };
        let id = match request {
            Meta::Load(id) | Meta::JobLoad(id) | Meta::JobStore(id, _) => id,
            Meta::Commit(id, update) => {
                // "Unknown" means that it may have happened.
                if failed == CommitError::Unknown && input.bool() {
                    let _ = self.commit(*update);
                }
                id
            }
        };
        self.event(ControlEvent::Meta(id, MetaOutcome::Failed(failed)));
    }

    /// Lanes report what their nodes said, which may be anything.
    fn lane_does(&mut self, input: &mut Input<'_>, peer: PeerIndex) {
        let lane = LaneId(u32::from(input.below(LANES)));
        if !self.lanes.contains_key(&lane) || peer.0 as usize >= self.peers || !self.ready {
            return;
        }
        let node = NODES[peer.0 as usize];
        let report = match input.below(10) {
            8 => LaneReport::Abandoned {
                chunk: ChunkIndex(input.below(16).into()),
            },
            9 => LaneReport::Touched {
                chunk: ChunkIndex(input.below(16).into()),
            },
            0 => LaneReport::PeerDown { peer },
            1 => LaneReport::PeerUp {
                peer,
                incarnation: run_of(input.below(3).into()),
            },
            2 | 3 => LaneReport::ReplicaFailed {
                node,
                status: status(input),
            },
            4..=6 => LaneReport::BadSector {
                node,
                // The lane's own chunk number; the sector is what the node said.
                chunk: ChunkIndex(input.below(16).into()),
                sector: SectorInChunk(input.u16()),
            },
            _ => LaneReport::StaleMap,
        };
        self.event(ControlEvent::Lane(lane, report));
    }

    /// Lanes carry out their orders.
    fn obey(&mut self) {
        while let Some((lane, order)) = self.orders.pop_front() {
            let report = match order {
                LaneOrder::Prepare { epoch, .. } => LaneReport::Prepared {
                    epoch,
                    behind: Default::default(),
                },
                LaneOrder::Install { epoch, .. } => LaneReport::Installed { epoch },
                LaneOrder::Reconciled { .. } | LaneOrder::Fail => continue,
            };
            if self.lanes.contains_key(&lane) {
                self.event(ControlEvent::Lane(lane, report));
            }
        }
    }

    /// An administrator changes the map behind the front's back.
    fn operator(&mut self, input: &mut Input<'_>, node: NodeId) {
        let map = &self.map;
        let what = input.below(6);
        if what > 3 {
            self.steer(input, node);
            return;
        }
        let update = match what {
            0 => transition::add_location(map, map.all(), node),
            1 => transition::remove_location(map, map.all(), node, 1),
            2 => transition::resize(map, map.head.size_bytes + (2 << 20)),
            _ => transition::cancel_join(map, map.all(), node),
        };
        if let Ok(update) = update
            && update.next.head.size_bytes < 1 << 30
        {
            self.map = committed(update);
            self.event(ControlEvent::MapChanged);
        }
    }

    /// A relocation begins, or is paused, resumed or cancelled; or its record says what it likes.
    fn steer(&mut self, input: &mut Input<'_>, node: NodeId) {
        let start = u32::from(input.below(20));
        let count = u32::from(input.below(20));
        let others = || NODES.into_iter().filter(move |n| *n != node);
        let fresh = JobRecord {
            format: JOB_FORMAT,
            volume: VOLUME,
            name: "v".into(),
            created_unix_s: u64::from(input.u8()),
            asked: String::new(),
            state: JobState::Running,
            copied_unix_s: None,
            ended_unix_s: None,
            limits: JobLimits {
                rate_bytes_per_s: input.bool().then_some(1 << 20),
                detach_old_after_s: u64::from(input.below(3)),
                ..JobLimits::default()
            },
            sets: vec![GoalSet {
                add: vec![node],
                remove: others().take(usize::from(input.below(3))).collect(),
                copies: input.below(3),
            }],
            goals: vec![(start, count, u16::from(input.below(2)))],
            prediction: None,
            score: None,
        };
        let job = self.job.get_or_insert(fresh.clone());
        let steered = match input.below(4) {
            0 => job.pause(),
            1 => job.resume(),
            2 => job.cancel(),
            _ => {
                *job = fresh;
                Ok(true)
            }
        };
        // What the state does not allow is refused, as the tools would be.
        if steered.is_ok() {
            self.event(ControlEvent::JobChanged);
        }
    }

    /// Everybody does what he should.
    fn honest_round(&mut self) {
        self.obey();
        self.meta_done();
        for index in 0..self.peers {
            if !self.up[index] {
                self.raise(index, 3);
            } else {
                // Also the lanes that came later have their connections.
                let peer = PeerIndex(u32::try_from(index).expect("of three"));
                for lane in self.lanes.keys().copied().collect::<Vec<_>>() {
                    let incarnation = run_of(3);
                    let report = LaneReport::PeerUp { peer, incarnation };
                    self.event(ControlEvent::Lane(lane, report));
                }
            }
        }
        self.answer_all();
        self.pass(Duration::from_millis(200));
    }
}

fn honest(request: &Header) -> Vec<u8> {
    match request.opcode {
        Opcode::Fence | Opcode::WrittenSince => chunk_list(&[]),
        Opcode::Pull => Pulled {
            sectors_compared: 512,
            sectors_copied: 0,
            sectors_bad: 0,
        }
        .encode(),
        _ => Vec::new(),
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new();
    world.event(ControlEvent::Start);
    if input.below(4) > 0 {
        for _ in 0..8 {
            world.honest_round();
        }
        assert!(world.ready, "an honest world lets a front attach");
    }
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    // Long enough for every pause and every patience (nodes that flapped wait for minutes).
    for _ in 0..400 {
        if world.ended || world.ready {
            break;
        }
        world.honest_round();
    }
    assert!(
        world.ended || world.ready,
        "neither serves nor says why not"
    );
    world.event(ControlEvent::Detach);
    for _ in 0..400 {
        if world.ended {
            break;
        }
        world.honest_round();
    }
    assert!(world.ended, "a detach ends");
}
