//! The next step of a job, read from the map alone.
//!
//! | a chunk of a goal | step |
//! |-|-|
//! | a target has no replica | add it there, if no batch is being filled and the node is usable |
//! | a target joining | wait: the front copies and promotes |
//! | a target still leaving, stale or away | wait |
//! | all targets in sync, sources there | remove the sources, if enough in-sync copies stay |
//! | all targets in sync, no source there | done |
//!
//! A batch is begun when the former one is filled; its sources are removed in the transaction that
//! begins the next. Cancelled: what is joining is given up, and what has moved wholly loses its sources.

use super::{GoalSet, JobRecord, JobState};
use crate::map::{VolumeMap, chunk_range};
use crate::record::{NodeHealth, ReplicaState};
use crate::sets::{ReplicaList, SetIndex};
use crate::transition::Change;
use std::collections::HashMap;
use ukai_proto::NodeId;
use ukai_proto::limits::REPLICAS_MAX;
use ukai_proto::message::ChunkRange;

/// How much one step may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Chunks that begin to be filled.
    pub chunks_max: u32,
    /// Changes of one transaction.
    pub changes_max: usize,
}

/// What is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// These, in one transaction.
    Changes(Vec<Change>),
    /// Nothing now.
    Wait(Wait),
    /// Every goal holds (of a cancelled job: nothing of it is under way).
    Done,
    /// It cannot go on: why.
    Stuck(String),
}

/// For what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Targets are being filled.
    Copies,
    /// What an earlier life left on a target has to be deleted first.
    Release(NodeId),
    /// The node is stale, rejoining or away.
    Node(NodeId),
    /// Everything is copied; the old copies are kept for a while.
    Held,
    /// An administrator paused it.
    Paused,
}

/// The next step, and how far the job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlook {
    /// What is due.
    pub next: Next,
    /// Chunks of all goals.
    pub chunks_total: u64,
    /// Chunks whose targets all are in sync.
    pub chunks_copied: u64,
    /// Chunks whose goal holds.
    pub chunks_done: u64,
    /// Replicas that are being filled.
    pub joining: u64,
}

/// What one chunk needs, by its replica set and goal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    Add(Vec<NodeId>),
    Filling(u32),
    Release(NodeId),
    Node(NodeId),
    Remove(Vec<NodeId>),
    Nothing,
    Stuck(String),
}

/// The next step of `job`.
///
/// `usable`: may the node get replicas now (registered, connected)? `hold_old`: sources stay for now.
/// A job that has ended is [`Next::Done`].
#[must_use]
pub fn next(
    map: &VolumeMap,
    job: &JobRecord,
    batch: Batch,
    usable: impl Fn(NodeId) -> bool,
    hold_old: bool,
) -> Outlook {
    let mut walk = Walk::new(batch, hold_old);
    let cancelling = job.state == JobState::Cancelling;
    let runs = Runs::of(map);
    let mut known: HashMap<(SetIndex, u16), Need> = HashMap::new();
    for (start, count, at) in &job.goals {
        let Some(goal) = job.sets.get(usize::from(*at)) else {
            walk.stuck = Some(format!("the job's record is damaged: no goal set {at}"));
            break;
        };
        let end = start.saturating_add(*count).min(map.chunk_count());
        walk.outlook.chunks_total += u64::from(end.saturating_sub(*start));
        for (range, set) in runs.within(*start, end) {
            let stored = map.sets.get(set);
            if cancelling {
                walk.cancel(range, stored, goal);
            }
            let need = known
                .entry((set, *at))
                .or_insert_with(|| need(stored, &map.head.health, goal, &usable));
            walk.take(range, need, goal, cancelling);
        }
    }
    walk.end(job)
}

/// Runs of the whole map, for many look-ups.
struct Runs(Vec<(u32, SetIndex)>, u32);

impl Runs {
    fn of(map: &VolumeMap) -> Self {
        let starts = map.runs().map(|(run, set)| (run.start.0, set));
        Self(starts.collect(), map.chunk_count())
    }

    fn within(&self, start: u32, end: u32) -> impl Iterator<Item = (ChunkRange, SetIndex)> + '_ {
        let first = self.0.partition_point(|(at, _)| *at <= start).max(1) - 1;
        let rest = &self.0[first.min(self.0.len())..];
        rest.iter()
            .enumerate()
            .take_while(move |(_, (at, _))| *at < end)
            .filter_map(move |(i, (at, set))| {
                let next = rest.get(i + 1).map_or(self.1, |(next, _)| *next);
                // A damaged record may name chunks that the volume does not have.
                let (from, to) = ((*at).max(start), next.min(end));
                (from < to).then(|| (chunk_range(from..to), *set))
            })
    }
}

fn health_of(health: &[(NodeId, NodeHealth)], node: NodeId) -> Option<NodeHealth> {
    let found = health.iter().find(|(n, _)| *n == node);
    found.map(|(_, health)| *health)
}

fn need(
    stored: &ReplicaList,
    health: &[(NodeId, NodeHealth)],
    goal: &GoalSet,
    usable: impl Fn(NodeId) -> bool,
) -> Need {
    use ReplicaState::{InSync, Joining, Leaving, Stale};
    let whole = |node| health_of(health, node).is_none();
    let (mut missing, mut filling, mut waits) = (Vec::new(), 0, None);
    for node in &goal.add {
        match stored.on(*node) {
            Some(Stale) => unreachable!("stale is a node's health, never stored in a set"),
            None if whole(*node) && usable(*node) => missing.push(*node),
            Some(Joining) if whole(*node) => filling += 1,
            Some(InSync) if whole(*node) => {}
            Some(Leaving) => waits = Some(Need::Release(*node)),
            None | Some(Joining | InSync) => waits = Some(Need::Node(*node)),
        }
    }
    if filling > 0 {
        return Need::Filling(filling);
    }
    if !missing.is_empty() {
        let leaving = stored.in_state(Leaving).next();
        return match (stored.len() + missing.len() > REPLICAS_MAX, leaving) {
            (false, _) => Need::Add(missing),
            (true, Some(node)) => Need::Release(node),
            (true, None) => Need::Stuck(format!(
                "a chunk has {} replicas and would get {} more; {REPLICAS_MAX} are possible: remove some \
                 with `ukai-tools volume remove-location`",
                stored.len(),
                missing.len()
            )),
        };
    }
    if let Some(waits) = waits {
        return waits;
    }
    let sources = goal.remove.iter().copied();
    let sources: Vec<NodeId> = sources
        // A damaged record that also wants it would be moved to and fro for ever.
        .filter(|node| !goal.add.contains(node))
        .filter(|node| matches!(stored.on(*node), Some(InSync | Joining)))
        .collect();
    if sources.is_empty() {
        return Need::Nothing;
    }
    let stays = || stored.in_sync().filter(|node| !sources.contains(node));
    let copies = usize::from(goal.copies.max(1));
    if stays().filter(|node| whole(*node)).count() >= copies {
        return Need::Remove(sources);
    }
    match stays().find(|node| !whole(*node)) {
        Some(node) => Need::Node(node),
        None => Need::Stuck(format!(
            "a chunk would keep {} in-sync copies, {copies} are to stay: its map was changed meanwhile; \
             plan again",
            stays().count()
        )),
    }
}

struct Walk {
    batch: Batch,
    hold_old: bool,
    adds: Vec<Change>,
    chunks_added: u32,
    removes: Vec<Change>,
    cancels: Vec<Change>,
    waits: Option<Wait>,
    held: bool,
    stuck: Option<String>,
    outlook: Outlook,
}

impl Walk {
    fn new(batch: Batch, hold_old: bool) -> Self {
        Self {
            batch,
            hold_old,
            adds: Vec::new(),
            chunks_added: 0,
            removes: Vec::new(),
            cancels: Vec::new(),
            waits: None,
            held: false,
            stuck: None,
            outlook: Outlook {
                next: Next::Done,
                chunks_total: 0,
                chunks_copied: 0,
                chunks_done: 0,
                joining: 0,
            },
        }
    }

    fn cancel(&mut self, range: ChunkRange, stored: &ReplicaList, goal: &GoalSet) {
        let joining = |node: &&NodeId| stored.on(**node) == Some(ReplicaState::Joining);
        for node in goal.add.iter().filter(joining) {
            if self.cancels.len() < self.batch.changes_max {
                let node = *node;
                self.cancels.push(Change::CancelJoin { range, node });
            }
        }
    }

    fn take(&mut self, range: ChunkRange, need: &Need, goal: &GoalSet, cancelling: bool) {
        let count = u64::from(range.count);
        match need {
            Need::Add(nodes) if !cancelling => self.add(range, nodes),
            Need::Filling(nodes) => self.outlook.joining += count * u64::from(*nodes),
            Need::Release(node) => self.wait(Wait::Release(*node)),
            Need::Node(node) => self.wait(Wait::Node(*node)),
            Need::Remove(nodes) => {
                self.outlook.chunks_copied += count;
                if self.hold_old {
                    self.held = true;
                } else if self.removes.len() + nodes.len() <= self.batch.changes_max {
                    let min_copies = goal.copies.max(1);
                    let change = |node: &NodeId| Change::RemoveLocation {
                        range,
                        node: *node,
                        min_copies,
                    };
                    self.removes.extend(nodes.iter().map(change));
                }
            }
            Need::Nothing => {
                self.outlook.chunks_copied += count;
                self.outlook.chunks_done += count;
            }
            Need::Stuck(why) if !cancelling => {
                let at = range.start;
                self.stuck
                    .get_or_insert_with(|| format!("from chunk {at} on: {why}"));
            }
            Need::Add(_) | Need::Stuck(_) => {}
        }
    }

    fn add(&mut self, range: ChunkRange, nodes: &[NodeId]) {
        let left = self.batch.chunks_max.max(1) - self.chunks_added.min(self.batch.chunks_max);
        let count = range.count.min(left);
        if count == 0 || self.adds.len() + nodes.len() > self.batch.changes_max {
            return;
        }
        self.chunks_added += count;
        let range = chunk_range(range.start.0..range.start.0 + count);
        let change = |node: &NodeId| Change::AddLocation { range, node: *node };
        self.adds.extend(nodes.iter().map(change));
    }

    fn wait(&mut self, wait: Wait) {
        // A node that is away is worth telling before one that only has to delete something.
        match (self.waits, wait) {
            (None, _) | (Some(Wait::Release(_)), Wait::Node(_)) => self.waits = Some(wait),
            _ => {}
        }
    }

    fn end(mut self, job: &JobRecord) -> Outlook {
        let mut changes = std::mem::take(&mut self.removes);
        self.outlook.next = match &job.state {
            JobState::Done | JobState::Cancelled | JobState::Failed { .. } => Next::Done,
            JobState::Paused => Next::Wait(Wait::Paused),
            JobState::Cancelling => {
                let mut all = std::mem::take(&mut self.cancels);
                let left = self.batch.changes_max - all.len();
                changes.truncate(left);
                all.append(&mut changes);
                if all.is_empty() {
                    Next::Done
                } else {
                    Next::Changes(all)
                }
            }
            JobState::Running if self.outlook.joining > 0 => Next::Wait(Wait::Copies),
            JobState::Running => {
                changes.append(&mut self.adds);
                // What can be done is done before the job is given up.
                match (changes.is_empty(), self.stuck, self.waits) {
                    (false, ..) => Next::Changes(changes),
                    (true, Some(why), _) => Next::Stuck(why),
                    (true, None, Some(wait)) => Next::Wait(wait),
                    (true, None, None) if self.held => Next::Wait(Wait::Held),
                    (true, None, None) => Next::Done,
                }
            }
        };
        self.outlook
    }
}
