//! Barriers: draining, installing a configuration, ending for good.

use super::{Gate, LaneCore, READ_ROUNDS_MAX};
use crate::core::api::{GuestError, GuestTag, LaneAction, LaneReport, Now};
use crate::core::config::{LaneConfig, NodeSlot};
use crate::core::piece::{Kind, Target, TargetState};
use std::collections::BTreeSet;
use std::sync::Arc;
use ukai_proto::{ChunkIndex, NodeId, Status};

impl LaneCore {
    /// Tells control once that everything in flight has ended or waits only for lost nodes.
    pub(super) fn check_prepared(&mut self, out: &mut Vec<LaneAction>) {
        let Gate::Preparing {
            epoch,
            lost,
            reported: false,
        } = &self.gate
        else {
            return;
        };
        let epoch = *epoch;
        let config = self.config.as_deref();
        let is_lost = |slot: NodeSlot| {
            config.is_some_and(|config| lost.contains(&config.nodes[usize::from(slot.0)].node))
        };
        let drained = self.pieces.live().all(|piece| {
            let mut targets = piece.targets.iter().enumerate();
            targets.all(|(index, target)| match target.state {
                TargetState::Acked
                | TargetState::Failed(_)
                | TargetState::Parked
                | TargetState::Unsettled(_) => true,
                // A read that may not be told yet, a chunk that may not be touched yet, or a write for which another
                // replica had no room, waits for what this barrier may be about.
                TargetState::Unsent => {
                    piece.asked_again > 0
                        || is_lost(target.slot)
                        || config.is_some_and(|config| Self::waits_for_room(piece, index, config))
                        || (piece.kind != Kind::Flush
                            && self.unreconciled.contains_key(&piece.part.chunk))
                }
                TargetState::Sent { .. } => is_lost(target.slot),
            })
        });
        if drained {
            let behind = self.behind();
            if let Gate::Preparing { reported, .. } = &mut self.gate {
                *reported = true;
            }
            out.push(LaneAction::Report(LaneReport::Prepared { epoch, behind }));
        }
    }

    /// Nodes that have not answered every write.
    fn behind(&self) -> Vec<NodeId> {
        let Some(config) = &self.config else {
            return Vec::new();
        };
        let writes = self.pieces.live().filter(|p| p.kind.is_versioned());
        let targets = writes.flat_map(|piece| &piece.targets);
        let behind: BTreeSet<NodeId> = targets
            .filter(|target| target.state != TargetState::Acked)
            .map(|target| config.nodes[usize::from(target.slot.0)].node)
            .collect();
        behind.into_iter().collect()
    }

    pub(super) fn install(&mut self, now: Now, config: Arc<LaneConfig>, out: &mut Vec<LaneAction>) {
        if let Some(old) = self.config.clone() {
            assert_eq!(old.volume, config.volume, "a lane serves one volume");
            assert!(old.generation <= config.generation, "generations only grow");
            if old.token != config.token {
                self.begin_again(out);
            }
        }
        self.config = Some(Arc::clone(&config));
        self.gate = Gate::Open;
        let unreconciled = config.unreconciled.iter().map(|chunk| (*chunk, false));
        self.unreconciled = unreconciled.collect();
        let mut dropped = BTreeSet::new();
        for index in self.pieces.indices() {
            let piece = self.pieces.get_mut(index);
            if !piece.live {
                continue; // a read that waited for a write that ended just now
            }
            for target in &mut piece.targets {
                if target.state == TargetState::Parked {
                    target.state = TargetState::Unsent;
                }
            }
            let tried = std::mem::take(&mut piece.tried);
            let before: Vec<Target> = piece.targets.clone();
            Self::aim(piece, &config, &tried);
            piece.tried = tried;
            let gone = |before: &&Target| !piece.targets.iter().any(|t| t.peer == before.peer);
            let gone: Vec<&Target> = before.iter().filter(gone).collect();
            // A read's payload may be on its way into the guest's buffer, a write's on its way out of it.
            let sent = gone
                .iter()
                .filter(|t| matches!(t.state, TargetState::Sent { .. }));
            dropped.extend(sent.map(|target| target.peer));
            if piece.kind == Kind::Read && !gone.is_empty() {
                self.pieces.renew(index);
            }
            let piece = self.pieces.get(index);
            // Control could not do without a replica that failed. (One that it has not judged yet, as this
            // installation was due to something else, is waited for.)
            let failed = piece.targets.iter().find_map(|t| match t.state {
                TargetState::Failed(status) => {
                    let node = config.nodes[usize::from(t.slot.0)].node;
                    config.helpless.contains(&node).then_some(status)
                }
                _ => None,
            });
            if let Some(status) = failed
                && !self.failed_in_passing(index, status)
            {
                let full = status == Status::NoSpace;
                let error = if full {
                    GuestError::NoSpace
                } else {
                    GuestError::Io
                };
                self.end_piece(now, index, Err(error), out);
                continue;
            }
            let piece = self.pieces.get_mut(index);
            if piece.targets.is_empty() && piece.kind == Kind::Read {
                // The one that could have served it is gone. What was bad on the others may have been repaired.
                piece.tried.clear();
                piece.retries += 1;
                if piece.retries > READ_ROUNDS_MAX {
                    self.end_piece(now, index, Err(GuestError::Io), out);
                    continue;
                }
                Self::aim(piece, &config, &[]);
            }
            self.send_all(now, index, out);
            self.check_piece(now, index, out);
        }
        for peer in dropped {
            let why = "it does not count any more and has not answered";
            out.push(LaneAction::Disconnect { peer, why });
        }
        for index in 0..self.ops.len() {
            let unfinished = self.ops[index]
                .as_ref()
                .filter(|op| op.issued > 0)
                .map(|op| op.io.tag);
            if let Some(tag) = unfinished {
                self.issue(now, tag, out);
            }
        }
        for tag in std::mem::take(&mut self.held) {
            self.start(now, tag, out);
        }
    }

    /// Under a new token everything unfinished is sent to every replica again: what was sent under the
    /// old one is refused, and replicas that answered then would hold another version than the rest.
    fn begin_again(&mut self, out: &mut Vec<LaneAction>) {
        let mut peers = BTreeSet::new();
        for index in self.pieces.indices() {
            self.pieces.renew(index);
            for target in &mut self.pieces.get_mut(index).targets {
                if let TargetState::Sent { .. } = target.state {
                    peers.insert(target.peer);
                }
                target.state = TargetState::Unsent;
            }
        }
        for peer in peers {
            let why = "what it has not answered was sent under the former token";
            out.push(LaneAction::Disconnect { peer, why });
        }
    }

    /// Chunks may be touched from now on.
    pub(super) fn reconciled(
        &mut self,
        now: Now,
        chunks: &[ChunkIndex],
        out: &mut Vec<LaneAction>,
    ) {
        for chunk in chunks {
            self.unreconciled.remove(chunk);
            for (index, target) in self.pieces.unsent_of(*chunk) {
                self.send(now, index, target, out);
            }
        }
    }

    pub(super) fn fenced(&mut self, now: Now, out: &mut Vec<LaneAction>) {
        if self.gate != Gate::Failed {
            out.push(LaneAction::Report(LaneReport::Fenced));
            self.fail(now, out);
        }
    }

    pub(super) fn fail(&mut self, now: Now, out: &mut Vec<LaneAction>) {
        self.gate = Gate::Failed;
        let tags: Vec<GuestTag> = self.ops.iter().flatten().map(|op| op.io.tag).collect();
        for tag in tags {
            self.pieces.drop_of(tag);
            self.complete(now, tag, Err(GuestError::Fenced), out);
        }
    }
}
