//! Whether a job is one that can be run on a volume's map.

use super::{GOAL_SETS_MAX, GOALS_MAX, GoalSet, JOB_FORMAT, JobRecord};
use crate::map::{VolumeMap, chunk_range};
use crate::record::ReplicaState;
use crate::sets::ReplicaList;
use crate::store::VALUE_BYTES_MAX;
use std::collections::BTreeSet;
use ukai_proto::NodeId;
use ukai_proto::limits::REPLICAS_MAX;

/// A job that is not possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// Malformed.
    #[error("the relocation is not possible: {0}")]
    Invalid(String),
    /// The state does not allow it.
    #[error("cannot {what} the job of volume {name}: it is {state}")]
    State {
        /// The volume.
        name: String,
        /// Of what was asked.
        what: &'static str,
        /// In which state.
        state: &'static str,
    },
}

fn invalid<T>(text: String) -> Result<T, JobError> {
    Err(JobError::Invalid(text))
}

impl GoalSet {
    fn check(&self, at: usize) -> Result<(), JobError> {
        let add: BTreeSet<NodeId> = self.add.iter().copied().collect();
        let remove: BTreeSet<NodeId> = self.remove.iter().copied().collect();
        if add.is_empty() && remove.is_empty() {
            return invalid(format!("goal set {at} asks for nothing"));
        }
        if add.len() != self.add.len() || remove.len() != self.remove.len() {
            return invalid(format!("goal set {at} names a node twice"));
        }
        if let Some(node) = add.intersection(&remove).next() {
            return invalid(format!("goal set {at} both wants and forbids node {node}"));
        }
        if add.len() > REPLICAS_MAX / 2 {
            return invalid(format!(
                "goal set {at} wants {} copies, {} are possible",
                add.len(),
                REPLICAS_MAX / 2
            ));
        }
        if self.copies == 0 {
            return invalid(format!("goal set {at} keeps no copy"));
        }
        Ok(())
    }

    /// In-sync replicas that a chunk has when the goal holds and all its nodes are whole.
    pub(super) fn copies_after(&self, stored: &ReplicaList) -> usize {
        let stays = stored.iter().filter(|replica| {
            replica.state == ReplicaState::InSync
                && !self.remove.contains(&replica.node)
                && !self.add.contains(&replica.node)
        });
        stays.count() + self.add.len()
    }
}

impl JobRecord {
    /// Checks it against the volume's map: limits, ranges inside the volume and apart from each other,
    /// and no chunk left with fewer copies than its goal says.
    pub fn check(&self, map: &VolumeMap) -> Result<(), JobError> {
        if self.format != JOB_FORMAT {
            return invalid(format!(
                "its record has format {}, this program knows {JOB_FORMAT}",
                self.format
            ));
        }
        if self.volume != map.head.volume {
            return invalid(format!("it is for volume {}", self.volume));
        }
        if self.goals.is_empty() {
            return invalid("it moves nothing".into());
        }
        if self.goals.len() > GOALS_MAX || self.sets.len() > GOAL_SETS_MAX {
            return invalid(format!(
                "{} ranges and {} sets of nodes; {GOALS_MAX} and {GOAL_SETS_MAX} are possible: move the \
                 volume in parts",
                self.goals.len(),
                self.sets.len()
            ));
        }
        for (at, set) in self.sets.iter().enumerate() {
            set.check(at)?;
        }
        self.check_ranges(map)?;
        if self.limits.rate_bytes_per_s == Some(0) {
            return invalid("a rate of 0 moves nothing; pause the job instead".into());
        }
        let bytes = serde_json::to_vec(self).map_or(usize::MAX, |bytes| bytes.len());
        if bytes > VALUE_BYTES_MAX {
            return invalid(format!(
                "its record has {bytes} bytes, {VALUE_BYTES_MAX} are possible: move the volume in parts"
            ));
        }
        Ok(())
    }

    fn check_ranges(&self, map: &VolumeMap) -> Result<(), JobError> {
        let mut ranges: Vec<(u32, u32)> = Vec::with_capacity(self.goals.len());
        for (start, count, set) in &self.goals {
            let end = start.checked_add(*count).filter(|_| *count > 0);
            let Some(end) = end.filter(|end| *end <= map.chunk_count()) else {
                return invalid(format!(
                    "{count} chunks from chunk {start}, the volume has {}",
                    map.chunk_count()
                ));
            };
            let Some(goal) = self.sets.get(usize::from(*set)) else {
                return invalid(format!("goal set {set} of {}", self.sets.len()));
            };
            ranges.push((*start, end));
            for (run, index) in map.runs_in(chunk_range(*start..end)) {
                let after = goal.copies_after(map.sets.get(index));
                if after < usize::from(goal.copies) {
                    return invalid(format!(
                        "chunks {}..{} would keep {after} copies, {} are to stay",
                        run.start,
                        run.start.0 + run.count,
                        goal.copies
                    ));
                }
            }
        }
        ranges.sort_unstable();
        // A chunk with two goals could be moved to and fro for ever.
        match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            Some(pair) => invalid(format!("chunk {} has two goals", pair[1].0)),
            None => Ok(()),
        }
    }
}
