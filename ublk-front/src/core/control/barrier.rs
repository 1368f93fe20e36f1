//! Prepare and install: the barrier that every configuration passes before lanes use it.

use super::request::Want;
use super::{ControlCore, Phase};
use crate::core::api::{ControlAction, LaneId, LaneOrder, Now};
use crate::core::config::LaneConfig;
use std::collections::BTreeSet;
use std::sync::Arc;
use ukai_meta::ReplicaState;
use ukai_proto::{NodeId, Opcode, Version};

#[derive(Debug, Default)]
pub(super) struct LaneState {
    /// Latest barrier that it has drained for.
    pub(super) prepared: u64,
    /// Latest barrier whose configuration it runs under.
    pub(super) installed: u64,
}

#[derive(Debug)]
pub(super) struct Barrier {
    epoch: u64,
    /// Nodes whose answers lanes were told not to wait for.
    lost: BTreeSet<NodeId>,
    /// Nodes that do not have every write sent before it.
    behind: BTreeSet<NodeId>,
}

impl ControlCore {
    pub(super) fn lane_added(&mut self, lane: LaneId, out: &mut Vec<ControlAction>) {
        // A lane without configuration admits nothing: as good as drained for a barrier under way.
        let prepared = self.barrier.as_ref().map_or(0, |barrier| barrier.epoch);
        self.lanes.insert(
            lane,
            LaneState {
                prepared,
                installed: 0,
            },
        );
        if let (Some(config), None) = (&self.installed, &self.barrier) {
            let order = LaneOrder::Install {
                epoch: self.epoch,
                config: Arc::clone(config),
            };
            out.push(ControlAction::Order(lane, order));
        }
    }

    pub(super) fn lane_prepared(&mut self, lane: LaneId, epoch: u64, behind: Vec<NodeId>) {
        if let Some(barrier) = self.barrier.as_mut().filter(|b| b.epoch == epoch) {
            barrier.behind.extend(behind);
        }
        if let Some(state) = self.lanes.get_mut(&lane) {
            state.prepared = state.prepared.max(epoch);
        }
    }

    /// Lanes run under the present map.
    pub(super) fn is_installed(&self) -> bool {
        let generation = self.installed.as_ref().map(|config| config.generation);
        self.barrier.is_none() && generation == Some(self.map().head.generation)
    }

    pub(super) fn drive_barrier(&mut self, now: Now, out: &mut Vec<ControlAction>) {
        let due = !self.is_installed() || self.reinstall;
        let may_begin = self.is_renewing() || !self.awaits_fence(now);
        if self.barrier.is_none() && due && may_begin {
            self.reinstall = false;
            self.epoch += 1;
            self.barrier = Some(Barrier {
                epoch: self.epoch,
                lost: self.unreachable_for_lanes(),
                behind: BTreeSet::new(),
            });
            self.order_prepare(out);
        }
        // While nodes fence the next token of this front, lanes count on none; they have drained before.
        let lost = if self.is_fencing_anew() {
            BTreeSet::new()
        } else {
            self.unreachable_for_lanes()
        };
        let Some(barrier) = &mut self.barrier else {
            return;
        };
        if !lost.is_subset(&barrier.lost) {
            barrier.lost.extend(lost);
            self.order_prepare(out);
        }
        let epoch = self.epoch;
        let drained = self.lanes.values().all(|lane| lane.prepared == epoch);
        if drained && self.renewal_is_over(now) {
            let barrier = self.barrier.take();
            let lost: BTreeSet<NodeId> = barrier
                .into_iter()
                .flat_map(|barrier| barrier.lost.into_iter().chain(barrier.behind))
                .collect();
            self.install(now, &lost, out);
            self.ceiling_is_whole = !lost.iter().any(|node| self.is_source(*node));
            self.note_whole(&lost);
        }
    }

    /// Nodes whose answers lanes cannot get before the next installation: the doubtful ones, and
    /// restarted ones that control has taken on, whose new run lanes do not know yet.
    fn unreachable_for_lanes(&self) -> BTreeSet<NodeId> {
        let mut nodes = self.doubtful();
        if let Some(installed) = &self.installed {
            let taken_on = self.nodes.iter().filter(|entry| {
                let mut known = installed.nodes.iter();
                known.any(|k| k.node == entry.node && k.incarnation != entry.incarnation)
            });
            nodes.extend(taken_on.map(|entry| entry.node));
        }
        nodes
    }

    /// Every write before this installation has ended on all nodes but the lost ones. What earlier
    /// fronts wrote is on all of them only when the last chunk is reconciled.
    pub(super) fn note_whole(&mut self, lost: &BTreeSet<NodeId>) {
        if !self.intents.is_empty() {
            return;
        }
        let generation = self.map().head.generation;
        for entry in self
            .nodes
            .iter()
            .filter(|entry| !lost.contains(&entry.node))
        {
            self.whole_since.insert(entry.node, generation);
        }
    }

    /// Does the node hold in-sync replicas?
    fn is_source(&self, node: NodeId) -> bool {
        let map = self.map();
        map.sets_in_use().any(|set| {
            let mut replicas = map.set(set).iter();
            replicas.any(|r| r.node == node && r.state == ReplicaState::InSync)
        })
    }

    /// Before a copy: at the last barrier every write had reached all sources. A write that waited
    /// for a lost one may be on the target and not on the source: mirrored away there, it would be
    /// acknowledged later and gone. If not, another barrier is due once no source is doubtful.
    pub(super) fn ceiling_holds(&mut self) -> bool {
        if !self.ceiling_is_whole && !self.doubtful().iter().any(|node| self.is_source(*node)) {
            self.reinstall = true;
        }
        self.ceiling_is_whole
    }

    fn order_prepare(&self, out: &mut Vec<ControlAction>) {
        let Some(barrier) = &self.barrier else { return };
        for lane in self.lanes.keys() {
            let lost = barrier.lost.iter().copied().collect();
            let order = LaneOrder::Prepare {
                epoch: barrier.epoch,
                lost,
            };
            out.push(ControlAction::Order(*lane, order));
        }
    }

    /// All lanes are drained: everything in flight has ended on every node that is not lost.
    pub(super) fn install(
        &mut self,
        now: Now,
        lost: &BTreeSet<NodeId>,
        out: &mut Vec<ControlAction>,
    ) {
        self.learn_nodes(now, out);
        self.preference = self.preferred(lost);
        let mut config = LaneConfig::new(
            Arc::clone(self.map()),
            Arc::clone(&self.peers),
            self.nodes.clone(),
            &self.preference,
        );
        config.unreconciled.clone_from(&self.intents);
        config.heat = self.heat_table(now);
        config.helpless = std::mem::take(&mut self.helpless);
        config.full = self.full.keys().copied().collect();
        let config = Arc::new(config);
        self.ceiling = Version::new(config.token, self.seq.last());
        let before = self.installed.replace(Arc::clone(&config));
        for lane in self.lanes.keys() {
            let config = Arc::clone(&config);
            out.push(ControlAction::Order(
                *lane,
                LaneOrder::Install {
                    epoch: self.epoch,
                    config,
                },
            ));
        }
        if before.is_some_and(|before| before.size_sectors != config.size_sectors) {
            out.push(ControlAction::Resized {
                size_bytes: self.map().head.size_bytes,
            });
        }
        // Older maps are refused from here on. Nobody waits for it: a zombie has an older token, and
        // RELEASE records the generation itself before anything is deleted (I4).
        if self.phase == Phase::Serving {
            for node in self.map().nodes() {
                if self.all_fenced(node).is_some() {
                    for peer in self.peers_of(node) {
                        self.ask_plain(now, peer, Opcode::Adopt, Want::Adopt, out);
                    }
                }
            }
        }
    }
}
