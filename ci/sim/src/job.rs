//! Relocation jobs: made, paused, resumed, cancelled, made twice; their front is killed, or becomes a zombie, or
//! loses nodes, as in any run.
//!
//! Which seeds have jobs, and what they ask for, comes from a stream of its own: other seeds mean what they did.
//! Runs with jobs have no damage of data at rest: the front removes sources by itself, and what is the last good
//! copy of a rotten sector is known to the simulation only.

use crate::Failure;
use crate::fault::FaultKind;
use crate::queue::{MS, SECOND};
use crate::swarm::Swarm;
use crate::tally::Mark;
use crate::world::{Event, FrontIndex, VOLUME, World};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use ublk_front::core::api::ControlEvent;
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::job::{self, Batch, GoalSet, JOB_FORMAT, JobLimits, JobRecord, JobState, Next};
use ukai_meta::map::VolumeMap;
use ukai_proto::NodeId;

/// Seeds with jobs.
const PERCENT: u32 = 15;

/// What a run with jobs keeps of them.
#[derive(Debug)]
pub(crate) struct Jobs {
    rng: ChaCha8Rng,
    every: u64,
    made: u64,
    /// The front that began the present one.
    begun_by: Option<FrontIndex>,
}

impl Jobs {
    /// The stream of a seed, and whether it has jobs.
    pub(crate) fn draw(seed: u64, swarm: &mut Swarm) -> Option<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (5 << 48));
        if rng.random_range(0..100) >= PERCENT {
            return None;
        }
        for kind in [
            FaultKind::Rot,
            FaultKind::BadSector,
            FaultKind::MisdirectedWrite,
            FaultKind::FlushError,
            FaultKind::Wipe,
            FaultKind::DeviceFull,
        ] {
            swarm.faults.remove(&kind);
        }
        swarm.small.clear();
        let every = rng.random_range(200..3000) * MS;
        Some(Self {
            rng,
            every,
            made: 0,
            begun_by: None,
        })
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// Goals for some chunks of the map.
    fn make(&mut self, map: &VolumeMap, nodes: &[NodeId]) -> JobRecord {
        let (mut sets, mut goals) = (Vec::new(), Vec::new());
        for (run, set) in map.runs() {
            for chunk in run.start.0..run.start.0 + run.count {
                if self.chance(40) {
                    continue;
                }
                let has: Vec<NodeId> = map.set(set).iter().map(|replica| replica.node).collect();
                let copies = map.in_sync(ukai_proto::ChunkIndex(chunk)).count().max(1);
                let mut add = Vec::new();
                for _ in 0..copies {
                    let node = nodes[self.rng.random_range(0..nodes.len())];
                    if !add.contains(&node) {
                        add.push(node);
                    }
                }
                let mut remove = has;
                remove.retain(|node| !add.contains(node));
                let stay = self.rng.random_range(0..=remove.len());
                remove.truncate(remove.len() - stay);
                goals.push((chunk, 1, u16::try_from(sets.len()).unwrap_or(u16::MAX)));
                sets.push(GoalSet {
                    add,
                    remove,
                    copies: u8::try_from(copies).unwrap_or(u8::MAX),
                });
            }
        }
        self.made += 1;
        let rates = [None, Some(1 << 20), Some(16 << 20)];
        JobRecord {
            format: JOB_FORMAT,
            volume: VOLUME,
            name: "v".into(),
            created_unix_s: self.made,
            asked: String::new(),
            state: JobState::Running,
            copied_unix_s: None,
            ended_unix_s: None,
            limits: JobLimits {
                rate_bytes_per_s: rates[self.rng.random_range(0..rates.len())],
                detach_old_after_s: if self.chance(20) { 5 } else { 0 },
                ..JobLimits::default()
            },
            sets,
            goals,
            prediction: None,
            score: None,
        }
    }
}

impl World {
    pub(crate) fn schedule_jobs(&mut self) {
        if let Some(jobs) = &mut self.jobs {
            let at = self.queue.now() + jobs.rng.random_range(1..=2 * jobs.every);
            self.queue.push(at, Event::JobStep);
        }
    }

    fn present_job(&self) -> Option<JobRecord> {
        catalog::job(&self.operator, VOLUME)
            .ok()
            .flatten()
            .map(|(job, _)| job)
    }

    /// The administrator does something about the job.
    pub(crate) fn job_step(&mut self) {
        if !self.phase.has_faults() {
            return;
        }
        self.schedule_jobs();
        let Some(mut jobs) = self.jobs.take() else {
            return;
        };
        let present = self.present_job().filter(|job| !job.state.is_ended());
        match present {
            None => self.make_job(&mut jobs),
            Some(job) => self.steer_job(&mut jobs, &job),
        }
        self.jobs = Some(jobs);
    }

    fn make_job(&mut self, jobs: &mut Jobs) {
        let registered = self.nodes.iter().filter(|node| node.has_run);
        let nodes: Vec<NodeId> = registered.map(|node| node.id).collect();
        let Some(map) = self.map.clone().filter(|_| !nodes.is_empty()) else {
            return;
        };
        let job = jobs.make(&map, &nodes);
        if job.check(&map).is_err() {
            return; // fewer copies than there are, as tools would say
        }
        if catalog::create_job(&self.operator, &job).is_ok() {
            self.say(|| {
                format!(
                    "relocation {} begins: {:?} {:?}",
                    job.created_unix_s, job.sets, job.goals
                )
            });
            self.faults.hit("relocation job");
            jobs.begun_by = None;
            self.job_changed();
        }
    }

    fn steer_job(&mut self, jobs: &mut Jobs, job: &JobRecord) {
        let steer = |world: &mut Self, edit: fn(&mut JobRecord) -> _| {
            if catalog::update_job(&world.operator, VOLUME, "v", edit).is_ok() {
                world.job_changed();
            }
        };
        match jobs.rng.random_range(0..100u32) {
            0..20 => steer(self, JobRecord::pause),
            20..50 => steer(self, JobRecord::resume),
            50..60 => steer(self, JobRecord::cancel),
            60..70 => {
                // Somebody runs the same command again.
                let mut again = job.clone();
                again.created_unix_s += 1000;
                let refused = catalog::create_job(&self.operator, &again);
                if !matches!(
                    refused,
                    Err(CatalogError::JobExists { .. } | CatalogError::Store(_))
                ) {
                    let what = format!("a second job at the same time: {refused:?}");
                    self.fail(Failure::Correctness(what));
                }
            }
            70..85 if self.crash_the_front() => self.faults.hit("front crash in a relocation"),
            _ => {}
        }
    }

    /// The watches on the job's record fire, sooner or later.
    pub(crate) fn job_changed(&mut self) {
        for front in 0..self.fronts.len() {
            if self.fronts[front].alive {
                self.tell_job(front);
            }
        }
    }

    fn tell_job(&mut self, front: FrontIndex) {
        let mut at = self.queue.now() + MS + self.up_to(5 * self.swarm.meta_delay_ns);
        if self.in_256(self.swarm.lost_watch_in_256) {
            at += self.up_to(10 * SECOND);
        }
        self.queue.push(at, Event::JobChanged { front });
    }

    /// A front has started: it reads the job like the map.
    pub(crate) fn front_learns_of_jobs(&mut self, front: FrontIndex) {
        if self.jobs.is_some() {
            self.tell_job(front);
        }
    }

    pub(crate) fn job_told(&mut self, front: FrontIndex) {
        self.fronts[front].meta.catch_up();
        self.control(front, ControlEvent::JobChanged);
    }

    /// A front read the job.
    pub(crate) fn job_read(&mut self, front: FrontIndex, job: Option<&JobRecord>) {
        let runs = job.is_some_and(|job| !job.state.is_ended());
        if let Some(jobs) = self.jobs.as_mut().filter(|_| runs) {
            jobs.begun_by.get_or_insert(front);
        }
    }

    /// A front wrote what became of the job.
    pub(crate) fn job_ended(&mut self, front: FrontIndex, job: &JobRecord) {
        self.say(|| {
            format!(
                "front f{front}: relocation {} is {:?}",
                job.created_unix_s, job.state
            )
        });
        match &job.state {
            JobState::Cancelled => self.mark(Mark::JobCancelled),
            JobState::Done => {
                self.mark(Mark::JobFinished);
                let begun_by = self.jobs.as_ref().and_then(|jobs| jobs.begun_by);
                if begun_by.is_some_and(|begun| begun != front) {
                    self.mark(Mark::JobResumed);
                }
                // While administrators change the map, it may be another one by now.
                if !self.phase.has_faults()
                    && let Some(what) = self.unreached(job)
                {
                    self.fail(Failure::Correctness(what));
                }
            }
            _ => {}
        }
        self.job_changed();
    }

    fn unreached(&self, job: &JobRecord) -> Option<String> {
        let map = self.map.as_ref()?;
        let running = JobRecord {
            state: JobState::Running,
            ..job.clone()
        };
        let batch = Batch {
            chunks_max: 1,
            changes_max: 16,
        };
        let outlook = job::next(map, &running, batch, |_| true, false);
        (outlook.next != Next::Done)
            .then(|| format!("a relocation is said to be done: {outlook:?}"))
    }

    /// Faults are over: what is paused goes on.
    pub(crate) fn resume_job(&mut self) {
        if self.jobs.is_some()
            && catalog::update_job(&self.operator, VOLUME, "v", JobRecord::resume).is_ok()
        {
            self.job_changed();
        }
    }

    /// A job that has not ended although nothing is in its way.
    pub(crate) fn unended_job(&self) -> Option<String> {
        self.jobs.as_ref()?;
        let job = self.present_job().filter(|job| !job.state.is_ended())?;
        Some(format!("a relocation is still {:?}", job.state))
    }
}
