//! The way to the metadata store and back, and what happens to requests on it.

use crate::queue::MS;
use crate::queue::SECOND;
use crate::tally::Mark;
use crate::world::{Event, FrontIndex, VOLUME, World};
use chunkstore::core::ShardEvent;
use rand::RngExt;
use std::rc::Rc;
use ublk_front::core::api::{ControlEvent, MetaId, MetaOutcome};
use ukai_meta::catalog::{self, CatalogError, JobGuard};
use ukai_meta::map::VolumeMap;
use ukai_meta::memory::CommitFault;
use ukai_meta::transition::MapUpdate;
use ukai_meta::{CommitError, JobRecord, MetaError, NodeHealth, NodeLive, ReplicaState};
use ukai_proto::{ChunkIndex, Generation};

/// What a front asks of the store.
#[derive(Debug)]
pub(crate) enum MetaRequest {
    Load,
    Commit(Box<MapUpdate>),
    JobLoad,
    JobStore(Box<JobRecord>, JobGuard),
}

fn failed(error: CatalogError) -> MetaOutcome {
    match error {
        CatalogError::NoVolume(_) | CatalogError::Deleting(_) => MetaOutcome::NoVolume,
        CatalogError::Store(error) => MetaOutcome::Failed(CommitError::Store(error)),
        CatalogError::Commit(error) => MetaOutcome::Failed(error),
        other => MetaOutcome::Failed(CommitError::Store(MetaError::Backend(other.to_string()))),
    }
}

impl World {
    fn meta_delay(&mut self) -> u64 {
        MS / 5 + self.up_to(self.swarm.meta_delay_ns)
    }

    pub(crate) fn ask_meta(&mut self, front: FrontIndex, id: MetaId, request: MetaRequest) {
        let at = self.queue.now() + self.meta_delay();
        self.queue
            .push(at, Event::MetaArrive { front, id, request });
    }

    /// The servers carry it out, also if the one who asked has died meanwhile.
    pub(crate) fn meta_arrives(&mut self, front: FrontIndex, id: MetaId, request: MetaRequest) {
        let outcome = match request {
            MetaRequest::Load => {
                let store = &self.fronts[front].meta;
                let loaded = catalog::load_volume(store, VOLUME)
                    .and_then(|map| Ok((map, catalog::list_nodes(store)?)));
                match loaded {
                    Ok(loaded) => {
                        self.map_read(front, &loaded.0);
                        MetaOutcome::Loaded(Box::new(loaded))
                    }
                    Err(error) => failed(error),
                }
            }
            MetaRequest::Commit(update) => self.commit(front, *update),
            MetaRequest::JobLoad => match catalog::job(&self.fronts[front].meta, VOLUME) {
                Ok(job) => {
                    self.job_read(front, job.as_ref().map(|(job, _)| job));
                    MetaOutcome::Job {
                        job: job.map(Box::new),
                        unix_s: self.queue.now() / SECOND,
                    }
                }
                Err(error) => failed(error),
            },
            MetaRequest::JobStore(job, guard) => {
                match catalog::store_job(&self.fronts[front].meta, &job, guard) {
                    Ok(version) => {
                        self.job_ended(front, &job);
                        MetaOutcome::JobStored(version)
                    }
                    Err(error) => MetaOutcome::Failed(error),
                }
            }
        };
        let at = self.queue.now() + self.meta_delay();
        self.queue
            .push(at, Event::MetaAnswer { front, id, outcome });
    }

    fn commit(&mut self, front: FrontIndex, update: MapUpdate) -> MetaOutcome {
        if self.answers_lost > 0 {
            self.answers_lost -= 1;
            self.fronts[front].meta.inject(CommitFault::UnknownLanded);
        } else if self.in_256(self.swarm.meta_unknown_in_256) {
            let landed = self.rng.random_range(0..2u32) == 0;
            self.fronts[front].meta.inject(if landed {
                CommitFault::UnknownLanded
            } else {
                CommitFault::UnknownLost
            });
        }
        let before = self.map.as_ref().map(|map| map.head.generation);
        let result = catalog::commit_update(&self.fronts[front].meta, update);
        if matches!(result, Ok(_) | Err(CommitError::Unknown)) {
            self.head_changed();
        }
        match &result {
            Err(CommitError::Conflict { .. }) => self.mark(Mark::CasLost),
            Err(CommitError::Unknown) => {
                let landed = before != self.map.as_ref().map(|map| map.head.generation);
                self.mark(if landed {
                    Mark::UnknownLanded
                } else {
                    Mark::UnknownLost
                });
                self.fronts[front].outcome_unknown = true;
            }
            _ => {}
        }
        match result {
            Ok(map) => MetaOutcome::Committed(Box::new(map)),
            Err(error) => MetaOutcome::Failed(error),
        }
    }

    /// Watches fire, sooner or later.
    pub(crate) fn head_changed(&mut self) {
        let now = self.queue.now();
        for front in 0..self.fronts.len() {
            if self.fronts[front].alive {
                let mut at = now + MS + self.up_to(5 * self.swarm.meta_delay_ns);
                if self.in_256(self.swarm.lost_watch_in_256) {
                    // The front reads the head now and then, whatever its watch says.
                    at += self.up_to(10 * SECOND);
                }
                self.queue.push(at, Event::MapChanged { front });
            }
        }
        let before = self.map.take();
        self.map = self.load_map().map(Rc::new);
        if let Some(map) = self.map.clone() {
            if let Some(before) = before {
                self.compare_maps(&before, &map);
            }
            self.trace.mix(u64::from(map.head.generation.0));
            for node in &mut self.nodes {
                if map.health(node.id).is_some() {
                    node.suspect_since = None;
                    node.refused = None;
                    node.back_for = None;
                }
            }
            self.say(|| {
                let health: Vec<String> = map
                    .head
                    .health
                    .iter()
                    .map(|(node, health)| format!("{} {health:?}", self.node_name(*node)))
                    .collect();
                format!(
                    "map: token {}, generation {}, {}",
                    map.head.token,
                    map.head.generation,
                    health.join(", ")
                )
            });
        }
        if self.is_beyond_help() {
            self.give_up("only replicas that lost power are in sync");
        }
    }

    pub(crate) fn meta_answers(&mut self, front: FrontIndex, id: MetaId, outcome: MetaOutcome) {
        self.control(front, ControlEvent::Meta(id, outcome));
    }

    pub(crate) fn map_changed(&mut self, front: FrontIndex) {
        // The server that tells of a change has seen it.
        self.fronts[front].meta.catch_up();
        self.control(front, ControlEvent::MapChanged);
    }

    fn map_read(&mut self, front: FrontIndex, map: &VolumeMap) {
        if std::mem::take(&mut self.fronts[front].outcome_unknown) {
            self.mark(Mark::UnknownResolved);
        }
        let newest = self.map.as_ref().map(|newest| newest.head.generation);
        if newest.is_some_and(|newest| newest > map.head.generation) {
            self.mark(Mark::StaleMapRead);
        }
    }

    /// Marks what a change of the map tells.
    fn compare_maps(&mut self, before: &VolumeMap, after: &VolumeMap) {
        let now = self.queue.now();
        self.note_sole_replicas(before);
        self.note_sole_replicas(after);
        self.mark_full(before, after);
        for index in 0..self.nodes.len() {
            let id = self.nodes[index].id;
            let grown = |chunk| after.is_in_sync(chunk, id) && !before.is_in_sync(chunk, id);
            if (0..after.chunk_count()).map(ChunkIndex).any(grown) {
                // Fronts do not read from it yet.
                self.troubled(index, now);
            }
        }
        for (node, health) in &before.head.health {
            if let NodeHealth::Rejoining { since } = health
                && *since > Generation(0)
                && after.health(*node).is_none()
            {
                self.mark(Mark::RejoinDifferential);
            }
        }
        for chunk in (0..after.chunk_count()).map(ChunkIndex) {
            let (old, new) = (before.replicas(chunk), after.replicas(chunk));
            for node in before.nodes() {
                match (old.on(node), new.on(node)) {
                    (Some(ReplicaState::Joining), Some(ReplicaState::InSync))
                        if before.health(node).is_none() =>
                    {
                        self.mark(Mark::JoiningPromoted);
                    }
                    (Some(ReplicaState::Leaving), None) => self.mark(Mark::LeavingDropped),
                    (Some(ReplicaState::Joining), Some(ReplicaState::Leaving)) => {
                        self.mark(Mark::JoinCancelled);
                    }
                    _ => {}
                }
            }
        }
    }

    /// The servers end the session of the front, or of a node.
    pub(crate) fn expire_a_session(&mut self) -> bool {
        let now = self.queue.now();
        if self.in_256(128) {
            let Some(front) = self.newest_front() else {
                return false;
            };
            self.fronts[front].meta.expire();
            let at = now + MS + self.up_to(2 * SECOND);
            self.queue.push(at, Event::FrontSession { front });
            return true;
        }
        let Some(node) = self.any_running_node() else {
            return false;
        };
        if self.swarm.isolated_refuse && !self.may_be_away(node) {
            return false;
        }
        let epoch = self.nodes[node].epoch;
        if let Some(process) = &self.nodes[node].process {
            process.session.expire();
        }
        let at = now + MS + self.up_to(3 * SECOND);
        if self.swarm.isolated_refuse {
            self.troubled(node, at);
            for shard in 0..self.swarm.shards {
                self.shard_event(node, shard, ShardEvent::LeaseLost);
            }
        }
        self.queue.push(at, Event::NodeSession { node, epoch });
        true
    }

    pub(crate) fn front_session(&mut self, front: FrontIndex) {
        let session = self.meta.session();
        session.set_unavailable(self.meta_down);
        self.fronts[front].meta = session;
    }

    /// A node whose session had expired registers again.
    pub(crate) fn node_session(&mut self, node: usize, epoch: u64) {
        let session = self.meta.session();
        if self.nodes[node].epoch != epoch {
            return;
        }
        let record = self.nodes[node].record.clone();
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let live = NodeLive {
            incarnation: process.incarnation,
            used_bytes: 0,
        };
        let registered = catalog::register_node(&session, &record, &live);
        assert!(registered.is_ok(), "a node registers again: {registered:?}");
        process.session = session;
        for shard in 0..self.swarm.shards {
            self.shard_event(node, shard, ShardEvent::LeaseHeld);
        }
    }

    /// The server that the front talks to falls behind for a while.
    pub(crate) fn lag_reads(&mut self) -> bool {
        let Some(front) = self.newest_front() else {
            return false;
        };
        self.fronts[front].meta.lag();
        let at = self.queue.now() + self.up_to(3 * SECOND);
        self.queue.push(at, Event::MetaCaughtUp { front });
        true
    }

    /// The map as it is.
    pub(crate) fn load_map(&self) -> Option<VolumeMap> {
        catalog::load_volume(&self.operator, VOLUME).ok()
    }

    pub(crate) fn meta_outage(&mut self, for_ns: u64) {
        self.say(|| format!("metadata store unreachable for {} ms", for_ns / MS));
        self.meta_down = true;
        for front in &self.fronts {
            front.meta.set_unavailable(true);
        }
        let at = self.queue.now() + for_ns;
        self.queue.push(at, Event::MetaHeal);
    }

    pub(crate) fn meta_heals(&mut self) {
        self.meta_down = false;
        for front in &self.fronts {
            front.meta.set_unavailable(false);
        }
        self.head_changed();
    }
}
