//! Everything there is in a run, and the loop that lets it happen.

use crate::atlas::Damage;
use crate::fault::FaultKind;
use crate::front::{Conn, Front};
use crate::guest::Guest;
use crate::job::Jobs;
use crate::meta::MetaRequest;
use crate::moving::{Move, NextFront};
use crate::net::{Link, LinkId};
use crate::node::Node;
use crate::outage::Block;
use crate::queue::{Queue, SECOND};
use crate::script::Step;
use crate::seam::{Claimed, Marks};
use crate::swarm::Swarm;
use crate::tally::Tally;
use crate::trace::Trace;
use crate::verify::Phase;
use crate::{Failure, Options, Outcome};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::rc::Rc;
use ublk_front::core::api::{
    GuestTag, LaneId, LaneOrder, LaneReport, MetaId, MetaOutcome, PeerIndex,
};
use ukai_meta::map::VolumeMap;
use ukai_meta::memory::{MemoryCluster, MemoryStore};
use ukai_proto::message::PullMode;
use ukai_proto::{ChunkIndex, ClusterId, Frame, NodeId, VolumeId};

/// The cluster of every run.
pub(crate) const CLUSTER: ClusterId = ClusterId([0xc1; 16]);
/// The volume of every run.
pub(crate) const VOLUME: VolumeId = VolumeId([0x77; 16]);
/// Events of one run: a run that needs more is going round in circles.
const EVENTS_MAX: u64 = 3_000_000;

/// Index of a node.
pub(crate) type NodeIndex = usize;
/// Index of a front process; never reused.
pub(crate) type FrontIndex = usize;

/// What is to happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// A frame arrives.
    Frame {
        link: LinkId,
        to_node: bool,
        frame: Box<Frame<Vec<u8>>>,
    },
    /// One end learns that the connection is gone.
    LinkClosed { link: LinkId, to_node: bool },
    /// A front tries to connect.
    Connect {
        front: FrontIndex,
        conn: Conn,
        peer: PeerIndex,
    },
    /// A node's copy engine tries to connect.
    PeerConnect {
        node: NodeIndex,
        epoch: u64,
        shard: u16,
        peer: u64,
        addresses: Vec<String>,
    },
    /// A device operation completes.
    DiskDone { node: NodeIndex, epoch: u64 },
    /// A shard's batch ends.
    NodeTurn {
        node: NodeIndex,
        epoch: u64,
        shard: u16,
    },
    /// A second passed for a node.
    NodeTick { node: NodeIndex, epoch: u64 },
    /// A shard's copies may go on.
    ShardWake {
        node: NodeIndex,
        epoch: u64,
        shard: u16,
    },
    /// A node's process starts.
    NodeStart { node: NodeIndex },
    /// Control's order reaches a lane.
    Order {
        front: FrontIndex,
        lane: LaneId,
        order: LaneOrder,
    },
    /// A lane's report reaches control.
    Report {
        front: FrontIndex,
        lane: LaneId,
        report: LaneReport,
    },
    /// 50 ms passed for a front.
    FrontTick { front: FrontIndex },
    /// A front's request reaches the metadata store.
    MetaArrive {
        front: FrontIndex,
        id: MetaId,
        request: MetaRequest,
    },
    /// The answer reaches the front.
    MetaAnswer {
        front: FrontIndex,
        id: MetaId,
        outcome: MetaOutcome,
    },
    /// The watch fires.
    MapChanged { front: FrontIndex },
    /// The watch on the relocation job fires.
    JobChanged { front: FrontIndex },
    /// An administrator does something about relocation jobs.
    JobStep,
    /// A front process starts on a host.
    FrontStart { host: usize, force: bool },
    /// A front gets a new metadata session after it lost one.
    FrontSession { front: FrontIndex },
    /// A node's metadata server has caught up, or the front's.
    MetaCaughtUp { front: FrontIndex },
    /// A node renews its membership with a new session.
    NodeSession { node: NodeIndex, epoch: u64 },
    /// A connection that was made while the node stood still.
    ConnOpened {
        node: NodeIndex,
        epoch: u64,
        shard: u16,
        link: LinkId,
    },
    /// An operator starts a node's process again.
    NodeRestart { node: NodeIndex },
    /// Damage is looked for.
    Scrub,
    /// An operator puts a new node in the place of a wiped one.
    Replace { old: NodeId, new: NodeId },
    /// The guest is ready for its next request in this slot.
    GuestNext {
        front: FrontIndex,
        lane: LaneId,
        tag: GuestTag,
    },
    /// A fault of this kind may happen.
    Fault(FaultKind),
    /// The metadata store is reachable again for a front.
    MetaHeal,
    /// A node's process is started anew in the right version of the protocol.
    RightVersion { node: NodeIndex },
    /// A front of another version of the protocol is ended.
    RightFront { front: FrontIndex },
    /// A host reaches the metadata store again.
    HostHeal { front: FrontIndex },
    /// The next step of what an administrator moves.
    MoveStep,
    /// `synchronize` is killed, or gives up.
    SynchronizeEnds { front: FrontIndex, killed: bool },
    /// Of a scenario.
    Step(Step),
    /// A replica is read directly, again.
    Inspect { node: NodeIndex, slot: u64 },
    /// Look at the phase.
    Check,
}

/// The world.
pub(crate) struct World {
    pub(crate) queue: Queue<Event>,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) swarm: Swarm,
    pub(crate) options: Options,
    pub(crate) trace: Trace,
    pub(crate) nodes: Vec<Node>,
    pub(crate) fronts: Vec<Front>,
    pub(crate) links: BTreeMap<LinkId, Link>,
    pub(crate) next_link: u64,
    pub(crate) meta: MemoryCluster,
    pub(crate) operator: MemoryStore,
    pub(crate) meta_down: bool,
    pub(crate) guest: Guest,
    pub(crate) phase: Phase,
    /// Faults done, by kind.
    pub(crate) faults: Tally,
    pub(crate) marks: Marks,
    pub(crate) claimed: Claimed,
    /// Copies ordered and not answered, by connection and tag.
    pub(crate) pulls: BTreeMap<(LinkId, u64), PullMode>,
    /// The newest map.
    pub(crate) map: Option<Rc<VolumeMap>>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) damage: Vec<Damage>,
    /// Written over; not known to be durable.
    pub(crate) damage_covered: Vec<Damage>,
    /// Nodes that were wiped: they never come back.
    pub(crate) gone: Vec<NodeId>,
    /// When a node last refused a change of a chunk for want of room.
    pub(crate) full: BTreeMap<(NodeIndex, ChunkIndex), u64>,
    /// The same of what a reconcile wanted to copy to it.
    pub(crate) no_room: BTreeMap<(NodeIndex, ChunkIndex), u64>,
    /// What the next front is.
    pub(crate) next_front: NextFront,
    pub(crate) moving: Option<Move>,
    /// Of runs with relocation jobs.
    pub(crate) jobs: Option<Jobs>,
    /// So many transactions will land, but be answered with "unknown".
    pub(crate) answers_lost: u32,
    pub(crate) failure: Option<Failure>,
    /// Ended by a double fault.
    pub(crate) given_up: bool,
}

impl World {
    pub(crate) fn new(rng: ChaCha8Rng, swarm: Swarm, jobs: Option<Jobs>, options: Options) -> Self {
        let meta = MemoryCluster::new();
        let operator = meta.session();
        let guest = Guest::new(&swarm);
        let mut world = Self {
            queue: Queue::new(),
            rng,
            swarm,
            options,
            trace: Trace::new(options.verbose),
            nodes: Vec::new(),
            fronts: Vec::new(),
            links: BTreeMap::new(),
            next_link: 1,
            meta,
            operator,
            meta_down: false,
            guest,
            phase: Phase::Safety,
            faults: Tally::default(),
            marks: Marks::default(),
            claimed: Claimed::default(),
            pulls: BTreeMap::new(),
            map: None,
            blocks: Vec::new(),
            damage: Vec::new(),
            damage_covered: Vec::new(),
            gone: Vec::new(),
            full: BTreeMap::new(),
            no_room: BTreeMap::new(),
            next_front: NextFront::default(),
            moving: None,
            jobs,
            answers_lost: 0,
            failure: None,
            given_up: false,
        };
        world.make_cluster();
        world.choose_hot_sectors();
        world.queue.push(
            0,
            Event::FrontStart {
                host: 0,
                force: true,
            },
        );
        world.schedule_faults();
        world.schedule_jobs();
        world.queue.push(SECOND / 10, Event::Check);
        world
    }

    /// Runs to the end.
    pub(crate) fn run(mut self) -> Outcome {
        while self.failure.is_none() && self.phase != Phase::Done {
            let Some(event) = self.queue.pop() else {
                self.failure = Some(Failure::Liveness("nothing more will happen".into()));
                break;
            };
            self.trace.events += 1;
            if self.trace.events > EVENTS_MAX {
                self.failure = Some(Failure::Liveness(
                    "too many events: something goes round in circles".into(),
                ));
                break;
            }
            self.dispatch(event);
        }
        let (requests, acked_writes) = (self.guest.completed, self.guest.acked_writes);
        if self.failure.is_none() {
            self.failure = self.judge();
        }
        Outcome {
            hash: self.trace.hash(),
            events: self.trace.events,
            requests,
            acked_writes,
            faults: self.faults,
            marks: self.marks.take(),
            given_up: self.given_up,
            failure: self.failure,
        }
    }

    fn dispatch(&mut self, event: Event) {
        let now = self.queue.now();
        self.trace.mix(now);
        if let Some(until) = self.paused_until(&event) {
            self.queue.push(until, event);
            return;
        }
        match event {
            Event::Frame {
                link,
                to_node,
                frame,
            } => self.frame_arrives(link, to_node, *frame),
            Event::LinkClosed { link, to_node } => self.link_closed(link, to_node),
            Event::Connect { front, conn, peer } => self.front_connects(front, conn, peer),
            Event::PeerConnect {
                node,
                epoch,
                shard,
                peer,
                addresses,
            } => {
                self.node_connects(node, epoch, shard, peer, &addresses);
            }
            Event::DiskDone { node, epoch } => self.disk_done(node, epoch),
            Event::NodeTurn { node, epoch, shard } => self.node_turn(node, epoch, shard),
            Event::NodeTick { node, epoch } => self.node_tick(node, epoch),
            Event::ShardWake { node, epoch, shard } => self.shard_wake(node, epoch, shard),
            Event::NodeStart { node } => self.start_node(node),
            Event::Order { front, lane, order } => self.order_arrives(front, lane, order),
            Event::Report {
                front,
                lane,
                report,
            } => self.report_arrives(front, lane, report),
            Event::FrontTick { front } => self.front_tick(front),
            Event::MetaArrive { front, id, request } => self.meta_arrives(front, id, request),
            Event::MetaAnswer { front, id, outcome } => self.meta_answers(front, id, outcome),
            Event::MapChanged { front } => self.map_changed(front),
            Event::JobChanged { front } => self.job_told(front),
            Event::JobStep => self.job_step(),
            Event::FrontStart { host, force } => self.start_front(host, force),
            Event::FrontSession { front } => self.front_session(front),
            Event::MetaCaughtUp { front } => self.fronts[front].meta.catch_up(),
            Event::NodeSession { node, epoch } => self.node_session(node, epoch),
            Event::ConnOpened {
                node,
                epoch,
                shard,
                link,
            } => {
                if self.nodes[node].epoch == epoch {
                    self.conn_opened(node, shard, link);
                }
            }
            Event::NodeRestart { node } => self.restart_node(node),
            Event::Scrub => self.scrub(),
            Event::Replace { old, new } => self.replace_node(old, new),
            Event::GuestNext { front, lane, tag } => self.guest_next(front, lane, tag),
            Event::Fault(kind) => self.fault(kind),
            Event::MetaHeal => self.meta_heals(),
            Event::RightVersion { node } => self.right_version(node),
            Event::RightFront { front } => self.right_front(front),
            Event::HostHeal { front } => {
                let down = self.meta_down;
                self.fronts[front].meta.set_unavailable(down);
            }
            Event::MoveStep => self.move_step(),
            Event::Step(step) => self.step(step),
            Event::SynchronizeEnds { front, killed } => self.synchronize_ends(front, killed),
            Event::Inspect { node, slot } => self.inspect(node, slot),
            Event::Check => self.check(),
        }
    }

    /// Uniform in `0..=limit`.
    pub(crate) fn up_to(&mut self, limit: u64) -> u64 {
        self.rng.random_range(0..=limit)
    }

    /// True in so many of 256 cases.
    pub(crate) fn in_256(&mut self, chance: u32) -> bool {
        self.rng.random_range(0..256u32) < chance
    }

    pub(crate) fn say(&self, text: impl FnOnce() -> String) {
        self.trace.say(self.queue.now(), text);
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        self.say(|| failure.to_string());
        self.failure.get_or_insert(failure);
    }
}
