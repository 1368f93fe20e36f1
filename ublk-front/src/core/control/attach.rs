//! Attach: take the token, fence every node, make chunks with open intents equal.

use super::change::Purpose;
use super::request::Want;
use super::{ControlCore, Phase};
use crate::core::api::{ControlAction, ControlError, Now, Presented};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use ukai_meta::transition::{self, TransitionError};
use ukai_proto::message::Pulled;
use ukai_proto::{ChunkIndex, NodeId, SectorInChunk, Seq, Status, Version};

/// Chunks reconciled at a time: enough to keep disks busy, few enough to keep nodes responsive.
const RECONCILE_WINDOW: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Reconcile {
    /// Answers still missing, by chunk, and whether one of them failed.
    out: BTreeMap<ChunkIndex, (usize, bool)>,
}

impl ControlCore {
    pub(super) fn change_attach(&mut self, _now: Now, out: &mut Vec<ControlAction>) {
        let Some(map) = self.map.clone() else { return };
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
        let active = self.active_nodes();
        for node in &active {
            self.fence_node(now, *node, out);
        }
        let missing: Vec<NodeId> = active
            .iter()
            .copied()
            .filter(|node| self.all_fenced(*node).is_none())
            .collect();
        if missing.is_empty() {
            let stale_pending = self.meta.is_some();
            if !stale_pending {
                self.phase = Phase::Reconciling;
                self.drive_reconcile(now, out);
            }
            return;
        }
        if now.since(since) <= self.config.fence_max
            || self.meta.is_some()
            || now < self.meta_retry_at
        {
            return;
        }
        for node in &missing {
            if self.mark_stale(&[*node], out) {
                return;
            }
        }
        if now.since(since) > self.config.attach_max {
            self.end(Err(ControlError::Unreachable(self.names(missing))), out);
        }
    }

    pub(super) fn fenced_intents(&mut self, node: NodeId, chunks: Vec<ChunkIndex>) {
        self.seen.entry(node).or_default().intents.extend(&chunks);
        if matches!(self.phase, Phase::Fencing { .. }) {
            let count = self.map().chunk_count();
            self.intents
                .extend(chunks.into_iter().filter(|chunk| chunk.0 < count));
        }
    }

    pub(super) fn drive_reconcile(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        while self.reconcile.out.len() < RECONCILE_WINDOW {
            let busy = &self.reconcile.out;
            let next = self
                .intents
                .iter()
                .copied()
                .find(|chunk| !busy.contains_key(chunk));
            let Some(chunk) = next else { break };
            let replicas: Vec<NodeId> = self.map().in_sync(chunk).collect();
            if replicas.len() < 2 {
                self.intents.remove(&chunk);
                continue;
            }
            if let Some(node) = replicas
                .iter()
                .find(|node| self.all_fenced(**node).is_none())
            {
                self.note(
                    format!("node {} was lost while reconciling", self.name(*node)),
                    out,
                );
                self.reconcile.out.clear();
                self.phase = Phase::Fencing { since: now };
                return;
            }
            let mut asked = 0;
            let count = self.map().chunk_sectors();
            for target in &replicas {
                for source in replicas.iter().filter(|source| *source != target) {
                    let peer = self.peer_of(*target, chunk);
                    let (Some(peer), Some(pull)) = (peer, self.pull_from(*source, chunk, false))
                    else {
                        continue;
                    };
                    let range = (SectorInChunk(0), u16::try_from(count).unwrap_or(u16::MAX));
                    self.ask_pull(
                        now,
                        peer,
                        chunk,
                        range,
                        &pull,
                        Want::Reconcile { chunk },
                        out,
                    );
                    asked += 1;
                }
            }
            self.reconcile.out.insert(chunk, (asked, false));
        }
        if self.intents.is_empty() && self.reconcile.out.is_empty() {
            self.serve(now, out);
        } else if now.since(self.started) > self.config.attach_max * 20 {
            self.end(Err(ControlError::Reconcile("no end in sight".into())), out);
        }
    }

    pub(super) fn reconciled(
        &mut self,
        chunk: ChunkIndex,
        result: Result<&[u8], Status>,
        out: &mut Vec<ControlAction>,
    ) {
        let Some((left, failed)) = self.reconcile.out.get_mut(&chunk) else {
            return;
        };
        *left -= 1;
        match result.map(Pulled::decode) {
            Ok(Ok(pulled)) => {
                self.copied.sectors_copied += pulled.sectors_copied;
                self.copied.sectors_compared = self
                    .copied
                    .sectors_compared
                    .saturating_add(pulled.sectors_compared);
            }
            Ok(Err(_)) => *failed = true,
            Err(status) => {
                *failed = true;
                self.note(
                    format!("reconcile of chunk {chunk}: {status}; trying again"),
                    out,
                );
            }
        }
        if let Some((0, failed)) = self.reconcile.out.get(&chunk).copied() {
            self.reconcile.out.remove(&chunk);
            if !failed {
                self.intents.remove(&chunk);
            }
        }
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
        self.install(now, out);
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
