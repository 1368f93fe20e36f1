//! Chunks that earlier fronts had open: their replicas are made equal, on the guest's first touch or in turn.
//!
//! Lanes hold requests to such chunks. All pairs of in-sync replicas take what is newer from each other, so
//! that what is written halfway is everywhere or nowhere before anybody reads it (I7), and flush: what a guest reads
//! after a loss of power must outlive the next one, on whichever replica that leaves. Meanwhile nothing
//! counts as settled, nodes keep their intents open, and no copy begins: a crash of this front, or a node
//! lost now, finds every difference again.

use super::ControlCore;
use super::request::Want;
use crate::core::api::{ControlAction, LaneOrder, Now, PeerIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use ukai_meta::transition;
use ukai_proto::message::{PullMode, Pulled};
use ukai_proto::{ChunkIndex, Generation, NodeId, Opcode, SectorInChunk, Status};

/// Chunks reconciled at a time: enough to keep disks busy, few enough to keep nodes responsive.
const RECONCILE_WINDOW: usize = 8;
/// Pause after one that failed.
const RECONCILE_RETRY: Duration = Duration::from_millis(200);

/// A chunk that is being reconciled.
#[derive(Debug, Default)]
struct Round {
    /// Answers still missing.
    left: usize,
    /// One of them was no good one.
    failed: bool,
    /// All have taken what is newer; they are making it durable.
    flushing: bool,
}

#[derive(Debug, Default)]
pub(super) struct Reconcile {
    out: BTreeMap<ChunkIndex, Round>,
    /// Wanted by the guest: before all others.
    touched: BTreeSet<ChunkIndex>,
    retry_at: Now,
}

impl ControlCore {
    pub(super) fn touched(&mut self, chunk: ChunkIndex) {
        if self.intents.contains(&chunk) {
            self.reconcile.touched.insert(chunk);
        }
    }

    pub(super) fn drive_reconcile(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        if self.intents.is_empty() || now < self.reconcile.retry_at {
            return;
        }
        let first = self.reconcile.touched.iter();
        let due: Vec<ChunkIndex> = first
            .chain(&self.intents)
            .copied()
            .filter(|chunk| !self.reconcile.out.contains_key(chunk))
            .collect();
        for chunk in due {
            if self.reconcile.out.len() >= RECONCILE_WINDOW {
                break;
            }
            if self.reconcile.out.contains_key(&chunk) {
                continue; // touched, and seen again in turn
            }
            let replicas: Vec<NodeId> = self.map().in_sync(chunk).collect();
            if replicas.iter().all(|node| self.is_taken_on(*node)) {
                if replicas.len() < 2 {
                    self.flush_chunk(now, chunk, &replicas, out);
                } else {
                    self.reconcile_chunk(now, chunk, &replicas, out);
                }
            }
            // Else: its node comes back, or is recorded stale.
        }
    }

    /// Fenced by us, and the run that lanes use.
    fn is_taken_on(&self, node: NodeId) -> bool {
        let entry = self.nodes.iter().find(|entry| entry.node == node);
        let run = self.all_fenced(node);
        run.is_some() && entry.is_some_and(|entry| entry.incarnation == run)
    }

    fn reconcile_chunk(
        &mut self,
        now: Now,
        chunk: ChunkIndex,
        replicas: &[NodeId],
        out: &mut Vec<ControlAction>,
    ) {
        let mut asked = 0;
        let count = self.map().chunk_sectors();
        let range = (SectorInChunk(0), u16::try_from(count).unwrap_or(u16::MAX));
        for target in replicas {
            for source in replicas.iter().filter(|source| *source != target) {
                let peer = self.peer_of(*target, chunk);
                let pull = self.pull_from(*source, chunk, (PullMode::Newer, self.ceiling));
                if let (Some(peer), Some(pull)) = (peer, pull) {
                    let want = Want::Reconcile { chunk };
                    self.ask_pull(now, peer, chunk, range, &pull, want, out);
                    asked += 1;
                }
            }
        }
        assert_eq!(
            asked,
            replicas.len() * (replicas.len() - 1),
            "nodes that are up have peers"
        );
        let round = Round {
            left: asked,
            ..Round::default()
        };
        self.reconcile.out.insert(chunk, round);
    }

    /// A replica took what is newer, or made durable what it has; or could not.
    pub(super) fn reconciled(
        &mut self,
        now: Now,
        peer: PeerIndex,
        chunk: ChunkIndex,
        result: Result<&[u8], Status>,
        out: &mut Vec<ControlAction>,
    ) {
        let Some(round) = self.reconcile.out.get_mut(&chunk) else {
            return;
        };
        match result {
            Ok(_) if round.flushing => {}
            Ok(aux) => match Pulled::decode(aux) {
                Ok(pulled) => {
                    let copied = self.copied.sectors_copied;
                    self.copied.sectors_copied = copied.saturating_add(pulled.sectors_copied);
                    let compared = self.copied.sectors_compared;
                    self.copied.sectors_compared = compared.saturating_add(pulled.sectors_compared);
                }
                Err(_) => round.failed = true,
            },
            Err(status) => {
                round.failed = true;
                let hopeless = if round.flushing {
                    Status::Poisoned
                } else {
                    Status::NoSpace
                };
                let text = format!("reconcile of chunk {chunk}: {status}; trying again");
                self.note(text, out);
                if status == hopeless {
                    self.refuses(self.node_of(peer), status);
                }
            }
        }
        self.reconcile_answered(now, chunk, out);
    }

    fn reconcile_answered(&mut self, now: Now, chunk: ChunkIndex, out: &mut Vec<ControlAction>) {
        let Some(round) = self.reconcile.out.get_mut(&chunk) else {
            return;
        };
        round.left -= 1;
        if round.left > 0 {
            return;
        }
        if round.failed {
            self.reconcile.out.remove(&chunk);
            self.reconcile.retry_at = now.after(RECONCILE_RETRY);
            return;
        }
        if round.flushing {
            self.reconcile.out.remove(&chunk);
            self.equal(vec![chunk], out);
            return;
        }
        // Not only what this round copied: the front before may have got as far and died.
        let replicas: Vec<NodeId> = self.map().in_sync(chunk).collect();
        self.flush_chunk(now, chunk, &replicas, out);
    }

    fn flush_chunk(
        &mut self,
        now: Now,
        chunk: ChunkIndex,
        replicas: &[NodeId],
        out: &mut Vec<ControlAction>,
    ) {
        let peers = replicas
            .iter()
            .filter_map(|node| self.peer_of(*node, chunk));
        let peers: Vec<PeerIndex> = peers.collect();
        assert!(!peers.is_empty(), "a chunk has a last in-sync replica");
        let round = Round {
            left: peers.len(),
            flushing: true,
            ..Round::default()
        };
        self.reconcile.out.insert(chunk, round);
        for peer in peers {
            let want = Want::Reconcile { chunk };
            self.ask_plain(now, peer, Opcode::Flush, want, out);
        }
    }

    /// The node cannot take what another one has, or make it durable, now or ever: as with a write that it refuses, it is given
    /// up if it can be spared, and the guest goes on. Else it is asked again.
    fn refuses(&mut self, node: NodeId, status: Status) {
        let spared = transition::mark_stale_since(self.map(), &[(node, Generation(0))]);
        if self.is_active(node) && spared.is_ok() {
            self.seen.entry(node).or_default().failed = Some(status);
        }
    }

    /// The replicas of these chunks are equal: lanes may touch them.
    fn equal(&mut self, chunks: Vec<ChunkIndex>, out: &mut Vec<ControlAction>) {
        if chunks.is_empty() {
            return;
        }
        for chunk in &chunks {
            self.intents.remove(chunk);
            self.reconcile.touched.remove(chunk);
        }
        for lane in self.lanes.keys() {
            let chunks = chunks.clone();
            out.push(ControlAction::Order(
                *lane,
                LaneOrder::Reconciled { chunks },
            ));
        }
        if self.intents.is_empty() {
            // Even if nothing is ever written, a settled number above all earlier tokens' must exist, or the
            // intents would stay open.
            self.seq.skip();
            self.seq.set_doubted(false);
            // From the next barrier on every node is known to have everything before it.
            self.reinstall = true;
        }
    }
}
