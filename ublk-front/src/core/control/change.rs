//! Metadata transactions: which one is due, and what its outcome means.

use super::{ControlCore, Phase, detach, sync};
use crate::core::api::{ControlAction, ControlError, MetaId, MetaOutcome, Now};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use ukai_meta::map::VolumeMap;
use ukai_meta::transition::{self, Change, MapUpdate, TransitionError};
use ukai_meta::{CommitError, NodeHealth, NodeState, ReplicaState};
use ukai_proto::message::ChunkRange;
use ukai_proto::{Generation, NodeId, Status};

/// Lanes ask a full node before the others for so long after it refused something: each write then takes two round
/// trips. To find out that it has room again costs it a slot of its reserve if it has not.
const FULL_FOR: Duration = Duration::from_secs(300);
/// A node that went stale again within this time of its return waits longer and longer.
const FLAP_WINDOW: Duration = Duration::from_secs(300);

/// Ranges that are deleted on a node and forgotten together.
const RELEASED_MAX: usize = 128;

/// Why a metadata request was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Load,
    Attach,
    MarkStale(Vec<NodeId>),
    Renew,
    Sync(NodeId),
    DropLeaving(NodeId),
    DropHealth(NodeId),
    /// A step of the relocation job.
    JobStep,
    JobLoad,
    JobStore,
    Detach,
}

impl ControlCore {
    pub(super) fn drive_change(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        if self.meta.is_some() || now < self.meta_retry_at {
            return;
        }
        if self.reload_wanted {
            let id = self.meta_id(Purpose::Load);
            self.reload_wanted = false;
            out.push(ControlAction::MetaLoad(id));
            return;
        }
        match self.phase {
            Phase::Attaching => self.change_attach(now, out),
            Phase::Serving => self.change_serving(now, out),
            Phase::Detaching {
                step: detach::Step::Commit,
                ..
            } => {
                let update = transition::detach(self.map());
                self.commit(Purpose::Detach, update, out);
            }
            _ => {}
        }
    }

    pub(super) fn meta_id(&mut self, purpose: Purpose) -> MetaId {
        let id = MetaId(self.meta_next);
        self.meta_next += 1;
        self.meta = Some((id, purpose));
        id
    }

    /// Starts the transaction; `false` if the transition is not legal (the reason is noted).
    pub(super) fn commit(
        &mut self,
        purpose: Purpose,
        update: Result<MapUpdate, TransitionError>,
        out: &mut Vec<ControlAction>,
    ) -> bool {
        match update {
            Ok(update) => {
                let id = self.meta_id(purpose);
                out.push(ControlAction::MetaCommit(id, Box::new(update)));
                true
            }
            Err(TransitionError::NoChange) => false,
            Err(error) => {
                self.note(format!("{purpose:?} is not possible: {error}"), out);
                false
            }
        }
    }

    fn change_serving(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let full = self.full.len();
        self.full.retain(|_, until| now < *until);
        self.reinstall |= self.full.len() < full;
        let mut lost: Vec<NodeId> = self
            .lost(now)
            .into_iter()
            .filter(|node| self.is_active(*node))
            .collect();
        // The last in-sync replica stays: rather one that is only away than one that lost power.
        lost.sort_by_key(|node| !self.is_rebooted(*node));
        for node in lost {
            if self.mark_stale(now, &[node], out) {
                return;
            }
        }
        if self.change_job_record(out) || !self.is_installed() {
            return;
        }
        if self.change_token(now, out)
            || self.change_sync(now, out)
            || self.change_leaving(now, out)
            || self.change_job(now, out)
        {
            return;
        }
        let map = Arc::clone(self.map());
        let gone = map
            .head
            .health
            .iter()
            .find(|(node, _)| !map.nodes().contains(node));
        if let Some((node, _)) = gone {
            self.commit(
                Purpose::DropHealth(*node),
                transition::drop_health(&map, *node),
                out,
            );
        }
    }

    /// Does the node get writes?
    pub(super) fn is_active(&self, node: NodeId) -> bool {
        let map = self.map();
        map.sets_in_use().any(|set| {
            map.set(set).iter().any(|replica| {
                replica.node == node
                    && matches!(replica.state, ReplicaState::InSync | ReplicaState::Joining)
            })
        })
    }

    /// Records nodes stale (I1). The first generation whose writes they may lack is that of the last
    /// installation whose barrier waited for them: later ones let writes pass that they had not
    /// answered, and others keep those under the generation they were sent in.
    pub(super) fn mark_stale(
        &mut self,
        now: Now,
        nodes: &[NodeId],
        out: &mut Vec<ControlAction>,
    ) -> bool {
        // Before this front served, an earlier one may have run under any older generation.
        let since = |node| self.whole_since.get(node).copied().unwrap_or(Generation(0));
        let pairs: Vec<_> = nodes.iter().map(|node| (*node, since(node))).collect();
        let update = transition::mark_stale_since(self.map(), &pairs);
        if let Err(TransitionError::LastInSync { range, node }) = &update {
            // Requests that it failed end with its error at the next installation, rather than wait.
            let failed = self.seen.entry(nodes[0]).or_default().failed.take();
            let refused = failed.filter(|status| !status.is_passing());
            if refused.is_some() {
                self.helpless.insert(nodes[0]);
                self.reinstall = true;
            }
            if refused == Some(Status::NoSpace) {
                self.full.insert(nodes[0], now.after(FULL_FOR));
            }
            let consequence = match refused {
                Some(_) => "what it refuses is refused to the guest",
                None => "their I/O waits for it",
            };
            let text = format!(
                "node {} is lost, and chunks {}..{} have no other in-sync replica: {consequence}",
                self.name(*node),
                range.start,
                u64::from(range.start.0) + u64::from(range.count),
            );
            self.note(text, out);
            return false;
        }
        self.commit(Purpose::MarkStale(nodes.to_vec()), update, out)
    }

    /// Deletes replicas that leave, then forgets them.
    fn change_leaving(&mut self, now: Now, out: &mut Vec<ControlAction>) -> bool {
        // A relocation leaves many ranges, each of which would cost a generation.
        let ranges_max = if self.relocation.is_active() {
            RELEASED_MAX
        } else {
            1
        };
        for node in self.map().nodes() {
            // One transaction's worth.
            let first = |range: ChunkRange| self.map().batches(range).into_iter().next();
            let leaving = self.map().stored_ranges_of(node, ReplicaState::Leaving);
            let leaving = leaving.into_iter().take(ranges_max);
            let ranges: Vec<ChunkRange> = leaving.filter_map(first).collect();
            if ranges.is_empty() || self.all_up(node).is_none() {
                continue;
            }
            if self.all_fenced(node).is_none() {
                self.fence_node(now, node, out);
                continue;
            }
            let released = self.seen.entry(node).or_default().released.clone();
            let left: Vec<_> = self
                .peers_of(node)
                .filter(|peer| released.get(peer) != Some(&ranges))
                .collect();
            if left.is_empty() {
                let drop = |range: &ChunkRange| Change::DropLeaving {
                    range: *range,
                    node,
                };
                let changes: Vec<Change> = ranges.iter().map(drop).collect();
                let update = match transition::apply(self.map(), &changes) {
                    Err(TransitionError::TooLarge(_)) => {
                        transition::drop_leaving(self.map(), ranges[0], node)
                    }
                    update => update,
                };
                return self.commit(Purpose::DropLeaving(node), update, out);
            }
            for peer in left {
                let asked = self.requests.on_peer(peer, |want| {
                    matches!(want, super::request::Want::Release(..))
                });
                if !asked {
                    self.ask_release(now, peer, ranges.clone(), out);
                }
            }
        }
        false
    }

    pub(super) fn meta_done(
        &mut self,
        now: Now,
        id: MetaId,
        outcome: MetaOutcome,
        out: &mut Vec<ControlAction>,
    ) {
        let Some((expected, purpose)) = self.meta.take() else {
            return;
        };
        if expected != id {
            self.meta = Some((expected, purpose));
            return;
        }
        match outcome {
            MetaOutcome::Loaded(loaded) => {
                let (map, nodes) = *loaded;
                self.loaded(now, map, nodes, out);
            }
            MetaOutcome::Committed(map) => {
                self.map = Some(Arc::new(*map));
                self.trim_sync();
                self.committed(now, purpose, out);
            }
            MetaOutcome::Job { job, unix_s } => {
                self.job_loaded(now, job.map(|job| *job), unix_s, out);
            }
            MetaOutcome::JobStored(version) => self.job_stored(now, version, out),
            // The job's record, unlike the map, is read again only if something is known of it.
            MetaOutcome::Failed(error)
                if matches!(purpose, Purpose::JobLoad | Purpose::JobStore) =>
            {
                self.relocation.changed();
                // The job may have been made from a newer map than this one.
                self.reload_wanted |= matches!(error, CommitError::Conflict { .. });
                if !matches!(error, CommitError::Conflict { .. } | CommitError::Unknown) {
                    self.note(format!("metadata: {error}; the relocation waits"), out);
                    self.meta_retry_at = now.after(self.config.retry);
                }
            }
            MetaOutcome::NoVolume => self.end(Err(ControlError::NoVolume), out),
            MetaOutcome::Failed(CommitError::Conflict { .. } | CommitError::Unknown) => {
                self.reload_wanted = true;
            }
            MetaOutcome::Failed(error) => {
                self.note(
                    format!("metadata: {error}; configuration changes wait"),
                    out,
                );
                self.meta_retry_at = now.after(self.config.retry);
                self.reload_wanted = true;
                let too_long = now.since(self.started) > self.config.attach_max;
                if self.phase == Phase::Attaching && too_long {
                    self.end(Err(ControlError::Meta(error.to_string())), out);
                }
            }
        }
    }

    fn loaded(
        &mut self,
        now: Now,
        map: VolumeMap,
        nodes: Vec<NodeState>,
        out: &mut Vec<ControlAction>,
    ) {
        let alive = nodes.iter().filter(|state| state.live.is_some());
        self.alive = alive.map(|state| state.record.node).collect();
        self.relocation.nodes_read();
        self.records = nodes
            .into_iter()
            .map(|state| (state.record.node, state.record))
            .collect();
        let ours = map.head.attach.as_ref() == Some(&self.config.attach);
        let attached = !matches!(self.phase, Phase::Attaching);
        let mut renewed = false;
        if let (true, Some(old)) = (attached, &self.map) {
            // Only the holder renews: an unknown outcome of ours that did land.
            renewed = ours && map.head.token > old.head.token && self.phase == Phase::Serving;
            if map.head.token != old.head.token && !renewed {
                let detaching = matches!(self.phase, Phase::Detaching { .. });
                let result = if detaching {
                    Ok(())
                } else {
                    Err(ControlError::Fenced)
                };
                self.end(result, out);
                return;
            }
            if !ours && matches!(self.phase, Phase::Detaching { .. }) {
                self.end(Ok(()), out); // an unknown outcome that did land
                return;
            }
            assert!(
                map.head.generation >= old.head.generation,
                "the store went back in time"
            );
        }
        if self.names_unknown_nodes(now, &map, out) {
            return;
        }
        self.map = Some(Arc::new(map));
        self.trim_sync();
        if attached {
            if renewed {
                self.token_renewed(now, out);
            }
            self.learn_nodes(now, out);
        } else if ours {
            self.attached(now, out); // likewise
        }
    }

    /// A map with nodes that nobody has registered cannot be used: an attach fails, a front that serves
    /// stays with the map that it has.
    fn names_unknown_nodes(
        &mut self,
        now: Now,
        map: &VolumeMap,
        out: &mut Vec<ControlAction>,
    ) -> bool {
        let is_known = |node: &NodeId| {
            self.records.contains_key(node) || self.nodes.iter().any(|entry| entry.node == *node)
        };
        let unknown: Vec<String> = map
            .nodes()
            .iter()
            .filter(|node| !is_known(node))
            .map(NodeId::to_string)
            .collect();
        if unknown.is_empty() {
            return false;
        }
        let text = format!(
            "the volume's map names nodes without a record, {}: the metadata store is damaged, or was changed by hand",
            unknown.join(", ")
        );
        let too_long = now.since(self.started) > self.config.attach_max;
        if self.phase == Phase::Attaching && too_long {
            self.end(Err(ControlError::Meta(text)), out);
            return true;
        }
        self.note(text, out);
        self.meta_retry_at = now.after(self.config.retry);
        self.reload_wanted = true;
        true
    }

    fn committed(&mut self, now: Now, purpose: Purpose, out: &mut Vec<ControlAction>) {
        match purpose {
            Purpose::Attach => self.attached(now, out),
            Purpose::MarkStale(nodes) => {
                for node in nodes {
                    self.note(format!("node {} is recorded stale", self.name(node)), out);
                    self.stale_recorded(now, node);
                }
            }
            Purpose::Renew => self.token_renewed(now, out),
            Purpose::Sync(node) => self.sync_committed(now, node, out),
            Purpose::DropLeaving(node) => {
                self.seen.entry(node).or_default().released.clear();
                self.note(
                    format!("replicas on node {} are deleted", self.name(node)),
                    out,
                );
            }
            Purpose::Detach => self.end(Ok(()), out),
            // Targets may be nodes that hold nothing yet.
            Purpose::JobStep => self.learn_nodes(now, out),
            Purpose::Load | Purpose::JobLoad | Purpose::JobStore | Purpose::DropHealth(_) => {}
        }
    }

    /// Flap damping: the pause before the next rejoin doubles with each loss soon after a return.
    pub(super) fn stale_recorded(&mut self, now: Now, node: NodeId) {
        if self.sync.as_ref().is_some_and(|sync| sync.node == node) {
            self.sync = None;
        }
        let retry = self.config.retry;
        let seen = self.seen.entry(node).or_default();
        seen.failed = None;
        let soon = seen
            .in_sync_at
            .is_some_and(|at| now.since(at) < FLAP_WINDOW);
        seen.flaps = if soon { (seen.flaps + 1).min(6) } else { 0 };
        let pause = retry * (1 << seen.flaps);
        self.sync_retry_at.insert(node, now.after(pause));
    }

    /// Health of every node that is not whole, for status.
    pub(super) fn unhealthy(&self) -> BTreeMap<NodeId, NodeHealth> {
        self.map.as_ref().map_or_else(BTreeMap::new, |map| {
            map.head.health.iter().copied().collect()
        })
    }

    fn change_sync(&mut self, now: Now, out: &mut Vec<ControlAction>) -> bool {
        let Some(sync) = &self.sync else { return false };
        let (node, map) = (sync.node, Arc::clone(self.map()));
        let update = match &sync.stage {
            sync::Stage::Begin => transition::begin_rejoin(&map, node),
            // All that was joining was taken away: nobody waits for the node any more, in whatever state it is.
            sync::Stage::Finish if !self.is_active(node) => {
                self.sync = None;
                return false;
            }
            sync::Stage::Finish if self.is_doubtful(node) => return false,
            sync::Stage::Finish => match map.health(node) {
                Some(NodeHealth::Rejoining { .. }) => transition::finish_rejoin(&map, node),
                Some(NodeHealth::Stale { .. }) => {
                    self.sync = None;
                    return false;
                }
                None => match self.promotion() {
                    Some(update) => update,
                    None => {
                        self.sync_over(now, out);
                        return false;
                    }
                },
            },
            _ => return false,
        };
        let started = self.commit(Purpose::Sync(node), update, out);
        if !started {
            self.sync_failed(now, out);
        }
        started
    }
}
