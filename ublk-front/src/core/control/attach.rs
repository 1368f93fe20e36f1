//! Attach: take the token, fence every node, begin to serve.

use super::change::Purpose;
use super::{ControlCore, Phase};
use crate::core::api::{ControlAction, ControlError, Now, Presented};
use crate::core::config::READ_LEASE;
use std::collections::BTreeSet;
use std::sync::Arc;
use ukai_meta::transition::{self, TransitionError};
use ukai_meta::{Attach, Replica, ReplicaState};
use ukai_proto::{ChunkIndex, NodeId, Seq, Version};

impl ControlCore {
    pub(super) fn change_attach(&mut self, _now: Now, out: &mut Vec<ControlAction>) {
        let Some(map) = self.map.clone() else { return };
        let ours = &self.config.attach;
        let lives = |former: &Attach| {
            let rebooted = former.host == ours.host && former.boot != ours.boot;
            former != ours && !rebooted && !self.config.former_is_dead
        };
        self.predecessor_may_read |= map.head.attach.as_ref().is_some_and(lives);
        let update = transition::attach(&map, self.config.attach.clone(), self.config.force);
        match update {
            Err(TransitionError::NoChange) => self.reload_wanted = true,
            Err(error) => self.end(Err(ControlError::Refused(error.to_string())), out),
            Ok(_) => {
                self.commit(Purpose::Attach, update, out);
            }
        }
    }

    pub(super) fn attached(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        self.phase = Phase::Fencing { since: now };
        self.ceiling = Version::new(self.map().head.token, Seq(0));
        self.learn_nodes(now, out);
    }

    fn active_nodes(&self) -> Vec<NodeId> {
        self.map()
            .nodes()
            .into_iter()
            .filter(|node| self.is_active(*node))
            .collect()
    }

    pub(super) fn drive_fencing(&mut self, now: Now, since: Now, out: &mut Vec<ControlAction>) {
        // Those that do not count as well, if they can be reached: a predecessor may not know yet.
        for node in self.map().nodes() {
            self.fence_node(now, node, out);
        }
        let active = self.active_nodes();
        let missing: Vec<NodeId> = active
            .iter()
            .copied()
            .filter(|node| self.all_fenced(*node).is_none())
            .collect();
        if missing.is_empty() {
            let fenced_since = *self.fenced_since.get_or_insert(now);
            let stale_pending = self.meta.is_some();
            let read_ended = now.since(fenced_since) > READ_LEASE || !self.is_read_elsewhere();
            if !stale_pending && read_ended {
                self.serve(now, out);
            } else if !read_ended {
                let text = "nodes that could not be fenced may still serve reads of the former front; \
                            waiting until its read lease has ended";
                self.note(text.into(), out);
            }
            return;
        }
        self.fenced_since = None;
        if now.since(since) <= self.config.fence_max
            || self.meta.is_some()
            // After a conflict the map is read first: the same transaction would only fail again.
            || self.reload_wanted
            || now < self.meta_retry_at
        {
            return;
        }
        for node in &missing {
            if self.is_covered(*node, &missing) && self.mark_stale(now, &[*node], out) {
                return;
            }
        }
        if now.since(since) > self.config.attach_max {
            self.end(Err(ControlError::Unreachable(self.names(missing))), out);
        }
    }

    /// Do nodes that are fenced have in sync whatever this one has? To record it stale while the others are
    /// away too would bind the volume to one of several that have everything; whichever comes back first
    /// will do.
    fn is_covered(&self, node: NodeId, missing: &[NodeId]) -> bool {
        let map = self.map();
        let in_sync = |r: &Replica| r.state == ReplicaState::InSync;
        map.sets_in_use().map(|set| map.set(set)).all(|set| {
            let held = set.iter().any(|r| r.node == node && in_sync(r));
            !held || set.iter().any(|r| in_sync(r) && !missing.contains(&r.node))
        })
    }

    /// May the former front still tell its guest what a node says? Only nodes that are not fenced admit
    /// it, and only as long as its read lease from the fenced ones lasts.
    fn is_read_elsewhere(&self) -> bool {
        let nodes = self.map().nodes();
        let mut unfenced = nodes
            .iter()
            .filter(|node| self.all_fenced(**node).is_none());
        self.predecessor_may_read && unfenced.next().is_some()
    }

    pub(super) fn fenced_intents(&mut self, node: NodeId, mut chunks: Vec<ChunkIndex>) {
        // A node may name anything; what the volume does not have takes no memory here.
        let count = self.map().chunk_count();
        chunks.retain(|chunk| chunk.0 < count);
        self.seen.entry(node).or_default().intents.extend(&chunks);
        let attaching = matches!(self.phase, Phase::Fencing { .. });
        if self.may_doubt(node) || (!attaching && self.is_another_run(node)) {
            self.recovered.extend(&chunks);
        }
        if attaching {
            self.intents.extend(chunks);
        }
    }

    /// Does the node's run perhaps know this token from its former run's log? Then it doubts what it adopted.
    fn may_doubt(&self, node: NodeId) -> bool {
        let Some(seen) = self.seen.get(&node) else {
            return false;
        };
        let token = self.map().head.token;
        let asked = seen.asked.filter(|(under, _)| *under == token);
        asked.is_some_and(|(_, first)| seen.up.values().any(|run| *run != first))
    }

    /// Chunks of which a node may doubt something under this token.
    pub(super) fn doubted_chunks(&self) -> BTreeSet<ChunkIndex> {
        let nodes = self.seen.iter().filter(|(node, _)| self.may_doubt(**node));
        nodes.flat_map(|(_, seen)| &seen.intents).copied().collect()
    }

    /// Has the node started again since lanes were told of it?
    fn is_another_run(&self, node: NodeId) -> bool {
        let installed = self.installed.as_ref();
        let mut known = installed.into_iter().flat_map(|config| &config.nodes);
        let known = known.find(|entry| entry.node == node);
        known.and_then(|entry| entry.incarnation) != self.all_up(node)
    }

    fn serve(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        self.phase = Phase::Serving;
        for node in self.active_nodes() {
            let run = self.all_fenced(node);
            for entry in self.nodes.iter_mut().filter(|entry| entry.node == node) {
                entry.incarnation = run;
            }
        }
        self.epoch += 1;
        for seen in self.seen.values_mut() {
            seen.in_sync_at = Some(now);
        }
        self.seq.set_doubted(!self.intents.is_empty());
        self.install(now, &BTreeSet::new(), out);
        self.note_whole(&BTreeSet::new());
        let head = &Arc::clone(self.map()).head;
        out.push(ControlAction::Ready(Presented {
            volume: head.volume,
            name: head.name.clone(),
            size_bytes: head.size_bytes,
            chunk_bytes: head.chunk_bytes,
            durability: head.durability,
            token: head.token,
            generation: head.generation,
        }));
    }
}
