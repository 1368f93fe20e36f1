//! Relocation jobs: where chunks of a volume shall lie, and how fast they may move.
//!
//! One job per volume at a time, kept in `jobs/<volume>`. Like everything that a front does it is
//! level-triggered: what is done is read from the map, never from a cursor, so whoever runs the job may
//! die at any step, and running it twice does nothing new. `next` is the pure step function. Tools
//! write the record and watch; the front that has the volume attached runs it and writes its end.

mod check;
mod next;

pub use check::JobError;
pub use next::{Batch, Next, Outlook, Wait, next};

use serde::{Deserialize, Serialize};
use ukai_proto::{NodeId, VolumeId};

/// Ranges of one job: with their sets they stay below what one key of the metadata store may hold.
pub const GOALS_MAX: usize = 16_384;
/// Distinct goal sets of one job: each combination of sites and nodes that a plan makes is one.
pub const GOAL_SETS_MAX: usize = 512;
/// Version of the record.
pub const JOB_FORMAT: u32 = 1;

/// A relocation of one volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// [`JOB_FORMAT`].
    pub format: u32,
    /// What moves.
    pub volume: VolumeId,
    /// Its name when the job was made.
    pub name: String,
    /// When, seconds since 1970.
    pub created_unix_s: u64,
    /// The command line, for people.
    pub asked: String,
    /// How far it is.
    pub state: JobState,
    /// When every target had its data; old copies are kept for
    /// [`JobLimits::detach_old_after_s`] from then on.
    #[serde(default)]
    pub copied_unix_s: Option<u64>,
    /// When it ended.
    #[serde(default)]
    pub ended_unix_s: Option<u64>,
    /// How fast it may go.
    pub limits: JobLimits,
    /// What `goals` refer to.
    pub sets: Vec<GoalSet>,
    /// (first chunk, chunks, index into `sets`), in the order in which they are to move: hottest first.
    pub goals: Vec<(u32, u32, u16)>,
    /// What the planner expects.
    #[serde(default)]
    pub prediction: Option<JobPrediction>,
    /// What was measured afterwards.
    #[serde(default)]
    pub score: Option<JobScore>,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// The volume's front works on it.
    Running,
    /// Nothing is begun or copied; what is being filled stays so.
    Paused,
    /// What is being filled is given up; what has moved stays moved.
    Cancelling,
    /// Every goal holds.
    Done,
    /// Cancelled, and nothing of it is under way any more.
    Cancelled,
    /// It cannot go on.
    Failed {
        /// Why, and what to do.
        why: String,
    },
}

/// Limits of a job; may be changed while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobLimits {
    /// Bytes per second that are copied at most.
    #[serde(default)]
    pub rate_bytes_per_s: Option<u64>,
    /// The guest's latency is kept below this.
    #[serde(default)]
    pub protect: Option<Protect>,
    /// The guest's latency no longer counts once the job could not end by then any more.
    #[serde(default)]
    pub deadline_unix_s: Option<u64>,
    /// How long old copies are kept once everything is copied.
    #[serde(default)]
    pub detach_old_after_s: u64,
}

/// What the guest's 99th percentile may become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protect {
    /// Never above this, microseconds.
    #[serde(default)]
    pub p99_us_max: Option<u64>,
    /// Never more than this above the base.
    #[serde(default)]
    pub over_base_percent: Option<u32>,
    /// The base: p99 before the move, microseconds. The front measures it first if it is not given.
    #[serde(default)]
    pub base_us: Option<u64>,
}

impl Protect {
    /// The 99th percentile that the guest may see, microseconds; the smaller of the two. `base_us` is
    /// what was measured, for a record that does not know it.
    #[must_use]
    pub fn budget_us(&self, base_us: Option<u64>) -> Option<u64> {
        let base = self.base_us.or(base_us);
        let relative = self
            .over_base_percent
            .zip(base)
            .map(|(percent, base)| base.saturating_mul(100 + u64::from(percent)) / 100);
        match (self.p99_us_max, relative) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }
}

/// Where chunks of some goals shall be, and where no longer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GoalSet {
    /// Nodes that shall hold an in-sync replica.
    pub add: Vec<NodeId>,
    /// Nodes that shall hold none, once all of `add` do.
    pub remove: Vec<NodeId>,
    /// In-sync replicas that each chunk keeps when `remove` are taken away: what it had before, or what
    /// its rules ask for. 1 at least.
    pub copies: u8,
}

/// Latency that a plan predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPrediction {
    /// Seen from there.
    pub host: String,
    /// As it was.
    pub before: Percentiles,
    /// As it will be.
    pub after: Percentiles,
}

/// Latency that was measured after the move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobScore {
    /// Seen from there.
    pub host: String,
    /// When, seconds since 1970.
    pub at_unix_s: u64,
    /// What was seen.
    pub measured: Percentiles,
}

/// How a job goes, as the front that runs it tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobProgress {
    /// [`JobState::word`].
    pub state: String,
    /// Chunks whose targets have their data.
    pub copied_chunks: u64,
    /// Chunks whose goal holds.
    pub moved_chunks: u64,
    /// Chunks of all goals.
    pub total_chunks: u64,
    /// Bytes that this front has copied for it.
    pub copied_bytes: u64,
    /// Over the last seconds.
    pub rate_bytes_per_s: u64,
    /// Until everything is copied, at the present pace.
    pub eta_s: Option<u64>,
    /// What keeps it from going faster: `rate`, `guest p99`, `target`, `nothing`, or for what it waits.
    pub limited_by: String,
    /// The guest's 99th percentile over the last seconds.
    pub guest_p99_us: Option<u64>,
    /// What it may become.
    pub budget_us: Option<u64>,
    /// [`JobRecord::created_unix_s`] of the job that it is about; not told by older fronts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_unix_s: Option<u64>,
}

impl JobProgress {
    /// Whether it may be about this job: a front speaks of the job before until it has read the new one.
    #[must_use]
    pub fn is_of(&self, job: &JobRecord) -> bool {
        self.created_unix_s
            .is_none_or(|created| created == job.created_unix_s)
    }
}

/// Percentiles of a volume's reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Reads.
    pub read: Tail,
    /// Writes.
    pub write: Tail,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tail {
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
}

impl JobState {
    /// Nothing more will happen by itself.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed { .. })
    }

    /// One word, for tables.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed { .. } => "failed",
        }
    }
}

impl JobRecord {
    /// `job pause`. `false`: it is paused already.
    pub fn pause(&mut self) -> Result<bool, JobError> {
        match self.state {
            JobState::Paused => Ok(false),
            JobState::Running => self.become_state(JobState::Paused),
            _ => Err(self.refused("pause")),
        }
    }

    /// `job resume`: also of one that failed, once the reason is gone. `false`: it runs already.
    pub fn resume(&mut self) -> Result<bool, JobError> {
        match self.state {
            JobState::Running => Ok(false),
            JobState::Paused | JobState::Failed { .. } => {
                self.ended_unix_s = None;
                self.become_state(JobState::Running)
            }
            _ => Err(self.refused("resume")),
        }
    }

    /// `job cancel`. `false`: it is being cancelled already, or was.
    pub fn cancel(&mut self) -> Result<bool, JobError> {
        match self.state {
            JobState::Cancelling | JobState::Cancelled => Ok(false),
            JobState::Running | JobState::Paused | JobState::Failed { .. } => {
                self.ended_unix_s = None;
                self.become_state(JobState::Cancelling)
            }
            JobState::Done => Err(self.refused("cancel")),
        }
    }

    #[allow(clippy::unnecessary_wraps)] // reads as the other arms do
    fn become_state(&mut self, state: JobState) -> Result<bool, JobError> {
        self.state = state;
        Ok(true)
    }

    fn refused(&self, what: &'static str) -> JobError {
        JobError::State {
            name: self.name.clone(),
            what,
            state: self.state.word(),
        }
    }

    /// Chunks that the goals name.
    #[must_use]
    pub fn chunks_total(&self) -> u64 {
        self.goals.iter().map(|goal| u64::from(goal.1)).sum()
    }
}
