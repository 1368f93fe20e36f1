//! One volume's control: attach, fence, reconcile; lost, restarted and returning nodes; copies;
//! every change of the replica configuration.
//!
//! Level-triggered: events only record what is seen (connections, reports, replies, a changed
//! map); then [`ControlCore::drive`] compares what is seen with the map and starts the next step, one
//! metadata transaction and one lane barrier at a time. A step that was lost (a conflict, an unknown
//! outcome, a crash of this process) is found again from the map, never from memory.
//!
//! | file | what it decides |
//! |-|-|
//! | `attach` | load, take the token, fence all nodes, wait for a predecessor's read lease |
//! | `publish` | what nodes are told of heat and latencies, for tools |
//! | `reconcile` | making chunks with open intents equal, on first touch or in turn |
//! | `renew` | a new token after writes that failed halfway |
//! | `change` | the next metadata transaction, and what its outcome means |
//! | `barrier` | prepare and install over all lanes |
//! | `sync` | filling joining replicas (after an outage, or a new location) |
//! | `guest_latency` | latency of the guest over the last moments |
//! | `relocate` | the steps of the volume's relocation job |
//! | `pace` | how fast it copies |
//! | `health` | which nodes are down, lost, restarted; read preference |
//! | `detach` | flush, settle, give the volume back |
//! | `request` | requests to nodes and their replies |

mod attach;
mod barrier;
mod change;
mod detach;
pub mod guest_latency;
mod health;
mod pace;
mod publish;
mod reconcile;
mod relocate;
mod renew;
mod request;
mod status;
mod sync;

use super::api::{
    ControlAction, ControlError, ControlEvent, LaneId, LaneOrder, LaneReport, MetaId, Now, Peer,
    PeerIndex,
};
use super::config::{LaneConfig, NodeEntry};
use super::seq::SharedSeq;
use barrier::{Barrier, LaneState};
use change::Purpose;
use guest_latency::GuestLatency;
use health::NodeSeen;
use request::Requests;
pub use status::{ControlStatus, NodeStatus, SyncStatus};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use ukai_meta::map::VolumeMap;
use ukai_meta::{Attach, NodeRecord};
use ukai_proto::message::Pulled;
use ukai_proto::{ChunkIndex, Generation, NodeId, SectorInChunk, Version, VolumeId};

/// Sectors waiting for repair; more are found again by the next read or scrub.
const REPAIRS_MAX: usize = 1024;

/// What to attach, and how patient to be.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// The volume.
    pub volume: VolumeId,
    /// Who attaches; `attach.front` is random per process.
    pub attach: Attach,
    /// Take the volume even if it is attached elsewhere (the other front is fenced).
    pub force: bool,
    /// The front that holds the volume is known to be dead: nobody reads under its token any more.
    pub former_is_dead: bool,
    /// A node that cannot be fenced in this time is recorded stale (attach), if others suffice.
    pub fence_max: Duration,
    /// Attach gives up after this if needed nodes do not answer.
    pub attach_max: Duration,
    /// A connection may be gone this long before its node counts as lost: the guest's writes wait meanwhile. Long enough to
    /// make a broken connection again, and for the process of a small node to be started again.
    pub node_grace: Duration,
    /// Pause before a failed metadata request, rejoin or copy is tried again.
    pub retry: Duration,
    /// Tell nodes of heat and latencies, for tools. Simulations leave it out in most runs.
    pub reports: bool,
}

impl ControlConfig {
    /// With the default times.
    #[must_use]
    pub fn new(volume: VolumeId, attach: Attach) -> Self {
        Self {
            volume,
            attach,
            force: false,
            former_is_dead: false,
            fence_max: Duration::from_secs(4),
            attach_max: Duration::from_secs(30),
            node_grace: Duration::from_millis(350),
            retry: Duration::from_secs(1),
            reports: true,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    /// Before [`ControlEvent::Start`].
    Idle,
    /// Map not loaded, or not ours yet.
    Attaching,
    /// FENCE sent or to be sent; who has answered is in `seen`.
    Fencing { since: Now },
    /// Lanes run.
    Serving,
    /// Flushing, settling, giving back.
    Detaching { since: Now, step: detach::Step },
    /// Nothing more happens.
    Ended,
}

/// The state machine. See the module docs.
#[derive(Debug)]
pub struct ControlCore {
    config: ControlConfig,
    seq: Arc<SharedSeq>,
    phase: Phase,
    started: Now,
    map: Option<Arc<VolumeMap>>,
    records: BTreeMap<NodeId, NodeRecord>,
    /// Those that had their lease when the records were read.
    alive: BTreeSet<NodeId>,
    peers: Arc<Vec<Peer>>,
    nodes: Vec<NodeEntry>,
    seen: BTreeMap<NodeId, NodeSeen>,
    requests: Requests,
    meta_next: u64,
    meta: Option<(MetaId, Purpose)>,
    meta_retry_at: Now,
    reload_wanted: bool,
    lanes: BTreeMap<LaneId, LaneState>,
    epoch: u64,
    barrier: Option<Barrier>,
    /// What lanes run under.
    installed: Option<Arc<LaneConfig>>,
    /// Another installation is due although the map has not changed.
    reinstall: bool,
    /// Failed, and the last in sync of something: lanes are to end what it failed.
    helpless: BTreeSet<NodeId>,
    /// Of these, those that had no room, and until when lanes ask them first.
    full: BTreeMap<NodeId, Now>,
    /// Writes at or below it had ended everywhere at the last barrier.
    ceiling: Version,
    /// That is so: no in-sync replica was lost at that barrier.
    ceiling_is_whole: bool,
    /// By node, the generation of the last installation that waited for it: it has all writes sent
    /// under earlier ones.
    whole_since: BTreeMap<NodeId, Generation>,
    /// Chunks that earlier fronts had open: lanes do not touch them before their replicas were made
    /// equal.
    intents: BTreeSet<ChunkIndex>,
    /// Chunks that were open on nodes whose process died under this front. What their recoveries adopted is not
    /// read under this token; under the next one it would be, so they are reconciled then.
    recovered: BTreeSet<ChunkIndex>,
    reconcile: reconcile::Reconcile,
    renewal: renew::Renewal,
    /// A predecessor may live and read from nodes that could not be fenced.
    predecessor_may_read: bool,
    /// Since when all nodes that count are fenced.
    fenced_since: Option<Now>,
    sync: Option<sync::Sync>,
    syncs: u64,
    relocation: relocate::Relocation,
    sync_retry_at: BTreeMap<NodeId, Now>,
    repairs: VecDeque<(NodeId, ChunkIndex, SectorInChunk)>,
    repairs_out: usize,
    /// Times that copies of a chunk found bad sectors on every in-sync replica.
    bad_everywhere: BTreeMap<ChunkIndex, u32>,
    preference: Vec<NodeId>,
    preference_at: Now,
    lease_at: Now,
    leases_asked: u64,
    copied: Pulled,
    guest_latency: GuestLatency,
    publish: publish::Publish,
    notes_given: BTreeSet<String>,
}

impl ControlCore {
    /// Idle until [`ControlEvent::Start`].
    #[must_use]
    pub fn new(config: ControlConfig, seq: Arc<SharedSeq>) -> Self {
        Self {
            config,
            seq,
            phase: Phase::Idle,
            started: Now(0),
            map: None,
            records: BTreeMap::new(),
            alive: BTreeSet::new(),
            peers: Arc::new(Vec::new()),
            nodes: Vec::new(),
            seen: BTreeMap::new(),
            requests: Requests::default(),
            meta_next: 1,
            meta: None,
            meta_retry_at: Now(0),
            reload_wanted: false,
            lanes: BTreeMap::new(),
            epoch: 0,
            barrier: None,
            installed: None,
            reinstall: false,
            helpless: BTreeSet::new(),
            full: BTreeMap::new(),
            ceiling: Version::ZERO,
            ceiling_is_whole: true,
            whole_since: BTreeMap::new(),
            intents: BTreeSet::new(),
            recovered: BTreeSet::new(),
            reconcile: reconcile::Reconcile::default(),
            renewal: renew::Renewal::default(),
            predecessor_may_read: false,
            fenced_since: None,
            sync: None,
            syncs: 0,
            relocation: relocate::Relocation::default(),
            sync_retry_at: BTreeMap::new(),
            repairs: VecDeque::new(),
            repairs_out: 0,
            bad_everywhere: BTreeMap::new(),
            preference: Vec::new(),
            preference_at: Now(0),
            lease_at: Now(0),
            leases_asked: 0,
            copied: Pulled::default(),
            guest_latency: GuestLatency::default(),
            publish: publish::Publish::default(),
            notes_given: BTreeSet::new(),
        }
    }

    /// Something happened.
    pub fn handle(&mut self, now: Now, event: ControlEvent, out: &mut Vec<ControlAction>) {
        if self.phase == Phase::Ended {
            if let ControlEvent::LaneAdded(lane) = event {
                out.push(ControlAction::Order(lane, LaneOrder::Fail));
            }
            return;
        }
        match event {
            ControlEvent::Start => {
                assert_eq!(self.phase, Phase::Idle, "started twice");
                self.phase = Phase::Attaching;
                self.started = now;
                self.reload_wanted = true;
            }
            ControlEvent::Meta(id, outcome) => self.meta_done(now, id, outcome, out),
            ControlEvent::PeerUp { peer, incarnation } => self.peer_up(now, peer, incarnation),
            ControlEvent::PeerDown { peer } => self.peer_down(now, peer, out),
            ControlEvent::PeerFrame { peer, header, aux } => {
                self.peer_frame(now, peer, &header, &aux, out);
            }
            ControlEvent::LaneAdded(lane) => self.lane_added(lane, out),
            ControlEvent::LaneRemoved(lane) => {
                self.lanes.remove(&lane);
                self.forget_lane(now, lane);
            }
            ControlEvent::Lane(lane, report) => self.lane_report(now, lane, report, out),
            ControlEvent::Window(_, window) => self.guest_latency.add(now, &window),
            ControlEvent::MapChanged => self.reload_wanted = true,
            ControlEvent::JobChanged => self.relocation.changed(),
            ControlEvent::Publish(body) => self.publish(now, &body, out),
            ControlEvent::Tick => {
                self.expire_requests(now, out);
                self.drive_publish(now, out);
            }
            ControlEvent::Detach => self.begin_detach(now, out),
        }
        self.drive(now, out);
    }

    /// Latency of the guest over the last moments.
    #[must_use]
    pub fn guest_latency(&self) -> &GuestLatency {
        &self.guest_latency
    }

    fn lane_report(
        &mut self,
        now: Now,
        lane: LaneId,
        report: LaneReport,
        out: &mut Vec<ControlAction>,
    ) {
        match report {
            LaneReport::PeerDown { peer } => self.lane_peer(now, lane, peer, false),
            // Which run it is, control sees on its own connections.
            LaneReport::PeerUp { peer, .. } => self.lane_peer(now, lane, peer, true),
            LaneReport::ReplicaFailed { node, status } => {
                self.note(
                    format!("node {} cannot take part: {status}", self.name(node)),
                    out,
                );
                self.seen.entry(node).or_default().failed = Some(status);
            }
            LaneReport::BadSector {
                node,
                chunk,
                sector,
            } => {
                let repair = (node, chunk, sector);
                if self.repairs.len() < REPAIRS_MAX && !self.repairs.contains(&repair) {
                    self.repairs.push_back(repair);
                }
            }
            LaneReport::Touched { chunk } => self.touched(chunk),
            LaneReport::Doubted { chunk } => {
                let text =
                    format!("chunk {chunk}: no replica has a sector for certain; reconciling it");
                self.note(text, out);
                self.abandoned(chunk);
            }
            LaneReport::Abandoned { chunk } => self.abandoned(chunk),
            LaneReport::StaleMap => self.reload_wanted = true,
            LaneReport::Fenced => self.end(Err(ControlError::Fenced), out),
            LaneReport::Prepared { epoch, behind } => self.lane_prepared(lane, epoch, behind),
            LaneReport::Installed { epoch } => {
                if let Some(state) = self.lanes.get_mut(&lane) {
                    state.installed = epoch;
                }
            }
        }
    }

    /// Compares what is seen with the map and starts what is due.
    fn drive(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        match self.phase {
            Phase::Idle | Phase::Ended => return,
            Phase::Attaching => {}
            Phase::Fencing { since } => self.drive_fencing(now, since, out),
            Phase::Serving => {
                self.drive_health(now, out);
                self.drive_barrier(now, out);
                self.drive_reconcile(now, out);
                self.drive_pace(now);
                self.drive_sync(now, out);
                self.drive_repairs(now, out);
            }
            Phase::Detaching { since, step } => self.drive_detach(now, since, step, out),
        }
        if self.phase != Phase::Ended {
            self.drive_change(now, out);
        }
    }

    fn map(&self) -> &Arc<VolumeMap> {
        self.map
            .as_ref()
            .unwrap_or_else(|| panic!("{:?} without a map", self.phase))
    }

    fn end(&mut self, result: Result<(), ControlError>, out: &mut Vec<ControlAction>) {
        if self.phase == Phase::Ended {
            return;
        }
        self.phase = Phase::Ended;
        for lane in self.lanes.keys() {
            out.push(ControlAction::Order(*lane, LaneOrder::Fail));
        }
        out.push(ControlAction::Ended(result));
    }

    /// Tells the operator, once per text until [`ControlCore::forget_note`].
    fn note(&mut self, text: String, out: &mut Vec<ControlAction>) {
        // Bounded: an operator who needs more than this reads the metrics.
        if self.notes_given.len() > 1024 {
            self.notes_given.clear();
        }
        if self.notes_given.insert(text.clone()) {
            out.push(ControlAction::Note(text));
        }
    }

    fn forget_notes_about(&mut self, node: NodeId) {
        let name = self.name(node);
        self.notes_given.retain(|note| !note.contains(&name));
    }

    fn name(&self, node: NodeId) -> String {
        self.records
            .get(&node)
            .map_or_else(|| node.to_string(), |record| record.name.clone())
    }

    fn names(&self, nodes: impl IntoIterator<Item = NodeId>) -> String {
        let names: Vec<String> = nodes.into_iter().map(|node| self.name(node)).collect();
        names.join(", ")
    }

    fn peer_of(&self, node: NodeId, chunk: ChunkIndex) -> Option<PeerIndex> {
        let entry = self.nodes.iter().find(|entry| entry.node == node)?;
        let shard = ukai_proto::route::shard_of(self.config.volume, chunk, entry.shard_count);
        Some(PeerIndex(entry.first_peer.0 + u32::from(shard.0)))
    }

    fn node_of(&self, peer: PeerIndex) -> NodeId {
        self.peers[peer.0 as usize].node
    }

    /// All shards of a node; empty if its record is missing.
    fn peers_of(&self, node: NodeId) -> impl Iterator<Item = PeerIndex> + use<> {
        let entry = self.nodes.iter().find(|entry| entry.node == node);
        let (first, count) = entry.map_or((0, 0), |entry| {
            (entry.first_peer.0, u32::from(entry.shard_count))
        });
        (first..first + count).map(PeerIndex)
    }
}
