//! What an administrator may want to know of a front.

use super::{ControlCore, Phase};
use serde::Serialize;
use std::collections::BTreeMap;
use ukai_meta::NodeHealth;
use ukai_meta::job::JobProgress;
use ukai_proto::{Generation, NodeId, Token};

/// Status of one attached volume.
#[derive(Clone, Debug, Serialize)]
pub struct ControlStatus {
    /// `attaching`, `fencing`, `serving`, `detaching`, `ended`.
    pub phase: &'static str,
    /// Token of this attach.
    pub token: Token,
    /// Generation of the map.
    pub generation: Generation,
    /// Generation that lanes run under.
    pub installed: Option<Generation>,
    /// Lanes.
    pub lanes: usize,
    /// Chunks that an earlier front had open and whose replicas are not yet known to be equal.
    pub unreconciled: usize,
    /// Nodes that hold replicas.
    pub nodes: Vec<NodeStatus>,
    /// The copy under way.
    pub sync: Option<SyncStatus>,
    /// The relocation job, if there is one.
    pub job: Option<JobProgress>,
    /// Anything left to copy, delete, move or record? `settle` ends when not.
    pub settled: bool,
}

/// A node as this front sees it.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Identity.
    pub node: NodeId,
    /// Name.
    pub name: String,
    /// Site.
    pub site: String,
    /// Control is connected to all its shards.
    pub connected: bool,
    /// Missed writes, if any.
    pub health: Option<NodeHealth>,
    /// Smoothed round trip, microseconds.
    pub round_trip_us: Option<u64>,
    /// Reads go here where it has a replica (lower is better).
    pub read_rank: Option<usize>,
}

/// A copy under way.
#[derive(Clone, Debug, Serialize)]
pub struct SyncStatus {
    /// The node that is filled.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Chunks to compare.
    pub chunks_total: u64,
    /// Chunks compared.
    pub chunks_done: u64,
    /// Sectors copied so far.
    pub sectors_copied: u64,
}

impl ControlCore {
    /// A snapshot.
    #[must_use]
    pub fn status(&self) -> ControlStatus {
        let phase = match self.phase {
            Phase::Idle | Phase::Attaching => "attaching",
            Phase::Fencing { .. } => "fencing",
            Phase::Serving => "serving",
            Phase::Detaching { .. } => "detaching",
            Phase::Ended => "ended",
        };
        let health: BTreeMap<NodeId, NodeHealth> = self.unhealthy();
        let nodes = self.map.as_ref().map(|map| map.nodes()).unwrap_or_default();
        let nodes = nodes
            .into_iter()
            .map(|node| NodeStatus {
                node,
                name: self.name(node),
                site: self
                    .records
                    .get(&node)
                    .map(|r| r.site.clone())
                    .unwrap_or_default(),
                connected: self.all_up(node).is_some(),
                health: health.get(&node).copied(),
                round_trip_us: self
                    .seen
                    .get(&node)
                    .and_then(|seen| seen.round_trip)
                    .map(|d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX)),
                read_rank: self.preference.iter().position(|n| *n == node),
            })
            .collect();
        ControlStatus {
            phase,
            token: self
                .map
                .as_ref()
                .map(|map| map.head.token)
                .unwrap_or_default(),
            generation: self
                .map
                .as_ref()
                .map(|map| map.head.generation)
                .unwrap_or_default(),
            installed: self.installed.as_ref().map(|config| config.generation),
            lanes: self.lanes.len(),
            unreconciled: self.intents.len(),
            nodes,
            sync: self.sync.as_ref().map(|sync| SyncStatus {
                node: sync.node,
                name: self.name(sync.node),
                chunks_total: sync.chunks_total,
                chunks_done: sync.chunks_done,
                sectors_copied: sync.sectors_copied,
            }),
            job: self.job_progress(),
            settled: self.is_settled(),
        }
    }

    /// Attached, and the replicas of every chunk that earlier fronts had open are equal.
    #[must_use]
    pub fn is_reconciled(&self) -> bool {
        self.is_serving() && self.intents.is_empty()
    }

    /// Nothing joining, stale or leaving, nothing in progress.
    fn is_settled(&self) -> bool {
        use ukai_meta::ReplicaState::InSync;
        let Some(map) = &self.map else { return false };
        self.is_serving()
            && self.is_installed()
            && self.sync.is_none()
            && self.intents.is_empty()
            && self.meta.is_none()
            && !self.reload_wanted
            && !self.relocation.is_busy()
            && map.head.health.is_empty()
            && map
                .sets_in_use()
                .all(|set| map.set(set).iter().all(|r| r.state == InSync))
    }
}
