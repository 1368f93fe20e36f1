//! Faults: who is hit by what, and when.
//!
//! The last good copy of a sector is never destroyed: a single node loses power only if every chunk has
//! an in-sync replica on another node that did not (whether it runs or not). When all lose power at
//! once (a blackout), what was flushed must survive, and the history is judged by that.

use crate::queue::{MS, SECOND};
use crate::world::{Event, NodeIndex, World};
use rand::RngExt;
use ukai_checker::Event as Line;
use ukai_meta::catalog;
use ukai_meta::transition;
use ukai_proto::ChunkIndex;
use ukai_proto::message::ChunkRange;

/// Kinds of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FaultKind {
    CutLink,
    Clog,
    CrashNode,
    PowerCutNode,
    CrashFront,
    Steal,
    Blackout,
    MetaOutage,
    Relocate,
}

const KINDS: [FaultKind; 9] = [
    FaultKind::CutLink,
    FaultKind::Clog,
    FaultKind::CrashNode,
    FaultKind::PowerCutNode,
    FaultKind::CrashFront,
    FaultKind::Steal,
    FaultKind::Blackout,
    FaultKind::MetaOutage,
    FaultKind::Relocate,
];

impl World {
    fn mean(&self, kind: FaultKind) -> Option<u64> {
        let swarm = &self.swarm;
        match kind {
            FaultKind::CutLink => swarm.cut_link,
            FaultKind::Clog => swarm.clog,
            FaultKind::CrashNode => swarm.crash_node,
            FaultKind::PowerCutNode => swarm.power_cut_node,
            FaultKind::CrashFront => swarm.crash_front,
            FaultKind::Steal => swarm.steal,
            FaultKind::Blackout => swarm.blackout,
            FaultKind::MetaOutage => swarm.meta_outage,
            FaultKind::Relocate => swarm.relocate,
        }
    }

    pub(crate) fn schedule_faults(&mut self) {
        for kind in KINDS {
            self.schedule_fault(kind);
        }
    }

    fn schedule_fault(&mut self, kind: FaultKind) {
        if let Some(mean) = self.mean(kind) {
            let at = self.queue.now() + 1 + self.up_to(2 * mean);
            self.queue.push(at, Event::Fault(kind));
        }
    }

    pub(crate) fn fault(&mut self, kind: FaultKind) {
        if !self.phase.has_faults() {
            return;
        }
        self.schedule_fault(kind);
        self.faults += 1;
        match kind {
            FaultKind::CutLink => {
                if let Some(link) = self.any_link() {
                    self.cut_link(link);
                }
            }
            FaultKind::Clog => {
                if let Some(link) = self.any_link() {
                    let to_node = self.in_256(128);
                    let long = if self.in_256(64) { 8000 } else { 800 };
                    let for_ns = self.up_to(long * MS);
                    self.clog_link(link, to_node, for_ns);
                }
            }
            FaultKind::CrashNode => {
                let away = MS + self.up_to(self.swarm.node_away_ns);
                self.crash_any_node(away);
            }
            FaultKind::PowerCutNode => {
                if let Some(node) = self.any_running_node()
                    && self.may_lose_power(node)
                {
                    self.power_cut_node(node);
                    self.restart_later(node);
                }
            }
            FaultKind::CrashFront => self.crash_the_front(),
            FaultKind::Steal => {
                if let Some(front) = self.newest_front()
                    && self.fronts[front].ready
                {
                    let host = self.fronts[front].host + 1;
                    self.queue
                        .push(self.queue.now(), Event::FrontStart { host });
                }
            }
            FaultKind::Blackout => self.blackout(),
            FaultKind::MetaOutage => {
                if !self.meta_down {
                    let for_ns = self.up_to(6000 * MS);
                    self.meta_outage(for_ns);
                }
            }
            FaultKind::Relocate => self.relocate(),
        }
    }

    fn any_link(&mut self) -> Option<u64> {
        let count = self.links.len();
        let index = self.rng.random_range(0..count.max(1));
        self.links.keys().nth(index).copied()
    }

    fn any_running_node(&mut self) -> Option<NodeIndex> {
        let index = self.rng.random_range(0..self.nodes.len());
        self.nodes[index].process.is_some().then_some(index)
    }

    /// Is every chunk safe without this node?
    fn may_lose_power(&self, node: NodeIndex) -> bool {
        let Some(map) = self.load_map() else {
            return false;
        };
        (0..map.chunk_count()).map(ChunkIndex).all(|chunk| {
            let holders: Vec<_> = map.in_sync(chunk).collect();
            !holders.contains(&self.nodes[node].id)
                || self.nodes.iter().enumerate().any(|(other, state)| {
                    other != node && holders.contains(&state.id) && state.suspect_since.is_none()
                })
        })
    }

    /// Only replicas that lost power before anyone recorded it are left in sync: a double fault that
    /// nothing can make good. The front had not noticed the first when the second took the others.
    pub(crate) fn is_beyond_help(&self) -> bool {
        let Some(map) = self.load_map() else {
            return false;
        };
        (0..map.chunk_count()).map(ChunkIndex).any(|chunk| {
            let suspect = |id| {
                let node = self.nodes.iter().find(|node| node.id == id);
                node.is_some_and(|node| node.suspect_since.is_some())
            };
            map.in_sync(chunk).all(suspect)
        })
    }

    fn crash_the_front(&mut self) {
        let Some(front) = self.newest_front() else {
            return;
        };
        self.crash_front(front);
        let stays = self.swarm.reissue && self.fronts[front].ready;
        self.guest_left_alone(front, stays);
        let host = self.fronts[front].host;
        let host = if stays || self.in_256(128) {
            host
        } else {
            host + 1
        };
        self.replace_front(host);
        // Rarely does one thing fail alone: what the front was doing is on some nodes only, and the next
        // front has to go on without one of them.
        if self.swarm.crash_node.is_some() && self.in_256(128) {
            let away = 6 * SECOND + self.up_to(6 * SECOND);
            self.crash_any_node(away);
        }
    }

    /// Crashes a node, unless it has what another one lost with its power.
    fn crash_any_node(&mut self, away_ns: u64) {
        let Some(node) = self.any_running_node() else {
            return;
        };
        let id = self.nodes[node].id;
        let Some(map) = self.load_map() else { return };
        let is_needed = (0..map.chunk_count()).map(ChunkIndex).any(|chunk| {
            let holders: Vec<_> = map.in_sync(chunk).collect();
            let mut others = self
                .nodes
                .iter()
                .filter(|other| other.id != id && holders.contains(&other.id));
            holders.contains(&id) && others.any(|other| other.suspect_since.is_some())
        });
        if !is_needed {
            self.crash_node(node);
            let at = self.queue.now() + away_ns;
            self.queue.push(at, Event::NodeStart { node });
        }
    }

    fn blackout(&mut self) {
        self.say(|| "blackout".into());
        for front in 0..self.fronts.len() {
            if self.fronts[front].alive {
                self.crash_front(front);
                self.guest_left_alone(front, false);
            }
        }
        self.forget_orphans();
        self.guest.record(|t| Line::PowerCut { t });
        for node in 0..self.nodes.len() {
            self.power_cut_node(node);
            self.restart_later(node);
            // What is lost now may be lost: the history says so.
            self.nodes[node].suspect_since = None;
        }
        let host = self.fronts.len();
        self.replace_front(host);
    }

    /// An administrator moves something.
    fn relocate(&mut self) {
        let Some(map) = self.load_map() else { return };
        let start = self.rng.random_range(0..map.chunk_count());
        let count = self.rng.random_range(1..=map.chunk_count() - start);
        let range = ChunkRange {
            start: ChunkIndex(start),
            count,
        };
        let index = self.rng.random_range(0..self.nodes.len());
        let node = self.nodes[index].id;
        let update = if self.in_256(128) {
            transition::add_location(&map, range, node)
        } else {
            transition::remove_location(&map, range, node, self.swarm.copies)
        };
        if let Ok(update) = update
            && catalog::commit_update(&self.operator, update).is_ok()
        {
            self.head_changed();
        }
    }
}
