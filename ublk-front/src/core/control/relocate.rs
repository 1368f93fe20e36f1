//! The volume's relocation job: loaded when it changed, stepped by what the map says, paced, ended.
//!
//! The record in the metadata store says what is wanted, the map what is done; in between there is only the
//! batch that is being filled, which is read from the map as well. So a front that dies leaves nothing behind
//! that the next one could miss. Filling is `sync`'s work, as after an outage; resyncs after outages go first.

use super::change::Purpose;
use super::pace::{self, Limit, Pace, Seen};
use super::{ControlCore, sync};
use crate::core::api::{ControlAction, Now};
use std::collections::VecDeque;
use std::time::Duration;
use ukai_meta::KvVersion;
use ukai_meta::catalog::JobGuard;
use ukai_meta::job::{self, Batch, JobProgress, JobRecord, JobState, Next, Outlook, Wait};
use ukai_meta::transition::{self, Change, TransitionError};
use ukai_proto::limits::SECTOR_BYTES;
use ukai_proto::{Generation, NodeId};

/// A batch shall take about so long: short enough that little is undone by a cancellation, long enough that
/// its three generations are no load.
const BATCH_TIME: Duration = Duration::from_secs(8);
/// Chunks of the first batch of a job without a rate.
const CHUNKS_FIRST: u32 = 64;
/// Of any batch: mostly empty chunks cost nothing but their names in lists.
const CHUNKS_MAX: u32 = 16_384;
/// Changes of one transaction; each may cut runs of the map.
const CHANGES_MAX: usize = 128;
/// Less than that does not hold what one chunk may need.
const CHANGES_MIN: usize = 16;
/// The map is looked at again after so long, whatever happens: nodes come and go.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// While the job waits for a node, the nodes' records are read so often.
const NODES_EVERY: Duration = Duration::from_secs(5);
/// How long the guest's own latency is measured before copies begin, if the budget is relative to it.
const BASE_TIME: Duration = Duration::from_secs(3);
/// That a node's copy rate held a copy back is told for so long, or as long as it did: answers are rarer then.
const HELD_TOLD: Duration = Duration::from_secs(2);
/// The rate that is told is that of the last so many evaluations, 4 s.
const METER_LEN: usize = 17;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Base {
    /// Not asked for, or known.
    Settled,
    /// No copy is asked for meanwhile.
    Measuring(Now),
    /// The guest does nothing that could be measured.
    Quiet,
}

#[derive(Debug)]
pub(super) struct Relocation {
    /// The record may have changed.
    reload: bool,
    job: Option<(JobRecord, KvVersion)>,
    /// To be written.
    store: Option<JobRecord>,
    /// Seconds since 1970 at that moment.
    clock: (u64, Now),
    outlook: Option<Outlook>,
    /// What the outlook was made of: generation, and whether a copy was under way.
    looked: Option<(Generation, bool)>,
    look_at: Now,
    chunks_max: u32,
    changes_max: usize,
    batch_since: Option<Now>,
    /// The nodes' records were read after the job's.
    nodes_fresh: bool,
    nodes_at: Now,
    pace: Pace,
    base: Base,
    guest: Seen,
    copied_bytes: u64,
    /// Chunks that had been copied before this front began.
    copied_before: Option<u64>,
    meter: VecDeque<(Now, u64)>,
    /// Whose copy rate held copies back, and until when that is worth telling.
    held_by: Option<(NodeId, Now)>,
}

impl Default for Relocation {
    fn default() -> Self {
        Self {
            reload: false,
            job: None,
            store: None,
            clock: (0, Now(0)),
            outlook: None,
            looked: None,
            look_at: Now(0),
            chunks_max: CHUNKS_FIRST,
            changes_max: CHANGES_MAX,
            batch_since: None,
            nodes_fresh: false,
            nodes_at: Now(0),
            pace: Pace::new(Now(0)),
            base: Base::Settled,
            guest: None,
            copied_bytes: 0,
            copied_before: None,
            meter: VecDeque::new(),
            held_by: None,
        }
    }
}

impl Relocation {
    pub(super) fn changed(&mut self) {
        self.reload = true;
    }

    /// The node list was read.
    pub(super) fn nodes_read(&mut self) {
        self.nodes_fresh = true;
        self.looked = None;
    }

    /// The job, unless it has ended.
    fn active(&self) -> Option<&JobRecord> {
        let job = self.job.as_ref().map(|(job, _)| job);
        job.filter(|job| !job.state.is_ended())
    }

    pub(super) fn is_active(&self) -> bool {
        self.active().is_some()
    }

    /// Something is left to do, or may be.
    pub(super) fn is_busy(&self) -> bool {
        let busy = |job: &JobRecord| job.state != JobState::Paused;
        self.reload || self.store.is_some() || self.active().is_some_and(busy)
    }

    /// Is what joins on this node the job's?
    pub(super) fn moves_to(&self, node: NodeId) -> bool {
        let mut sets = self.active().into_iter().flat_map(|job| &job.sets);
        sets.any(|set| set.add.contains(&node))
    }

    /// The job's copies stand still.
    pub(super) fn is_halted(&self) -> bool {
        self.active()
            .is_some_and(|job| job.state != JobState::Running)
    }

    fn unix_s(&self, now: Now) -> u64 {
        self.clock.0 + now.since(self.clock.1).as_secs()
    }

    fn holds_old(&self, now: Now) -> bool {
        self.active().is_some_and(|job| {
            let keep = job.limits.detach_old_after_s;
            let over = |at: u64| self.unix_s(now) >= at.saturating_add(keep);
            keep > 0 && !job.copied_unix_s.is_some_and(over)
        })
    }

    /// The record with a change, to be written.
    fn write(&mut self, edit: impl FnOnce(&mut JobRecord)) {
        if let Some((job, _)) = &self.job {
            let mut next = self.store.take().unwrap_or_else(|| job.clone());
            edit(&mut next);
            self.store = Some(next);
        }
    }

    fn end(&mut self, now: Now, state: JobState) {
        let at = self.unix_s(now);
        self.write(|job| {
            job.state = state;
            job.ended_unix_s = Some(at);
        });
    }

    /// Chunks still to be copied, in bytes as far as one can tell.
    fn bytes_left(&self, chunk_bytes: u64) -> u64 {
        let Some(outlook) = &self.outlook else {
            return 0;
        };
        let left = outlook.chunks_total - outlook.chunks_copied;
        let here = outlook
            .chunks_copied
            .saturating_sub(self.copied_before.unwrap_or(0));
        // What was copied tells how full chunks are.
        let each = self.copied_bytes.checked_div(here).unwrap_or(chunk_bytes);
        left.saturating_mul(each.min(chunk_bytes))
    }

    fn rate_seen(&self) -> u64 {
        let (Some((from, start)), Some((to, end))) = (self.meter.front(), self.meter.back()) else {
            return 0;
        };
        let span_ms = u64::try_from(to.since(*from).as_millis()).unwrap_or(u64::MAX);
        (end.saturating_sub(*start).saturating_mul(1000))
            .checked_div(span_ms)
            .unwrap_or(0)
    }

    /// May a copy of so many bytes be asked for now?
    pub(super) fn may_copy(&mut self, now: Now, bytes: u64) -> bool {
        !self.is_halted() && !matches!(self.base, Base::Measuring(_)) && self.pace.take(now, bytes)
    }

    pub(super) fn piece_sectors(&self) -> u16 {
        let sectors = self.pace.piece_bytes() / SECTOR_BYTES as u64;
        u16::try_from(sectors).unwrap_or(u16::MAX)
    }

    /// A copy has ended that waited so many milliseconds for the copy rates of its nodes.
    pub(super) fn held_back(&mut self, now: Now, waits: [(NodeId, u32); 2]) {
        let longest = waits.into_iter().max_by_key(|(_, ms)| *ms);
        if let Some((node, ms)) = longest.filter(|(_, ms)| *ms > 0) {
            let telling = HELD_TOLD.max(Duration::from_millis(ms.into()));
            self.held_by = Some((node, now.after(telling)));
        }
    }

    /// A copy that was asked for has ended.
    pub(super) fn copied(&mut self, asked: u64, copied: u64) {
        self.copied_bytes += copied;
        self.pace.give_back(asked.saturating_sub(copied));
    }
}

impl ControlCore {
    /// A job's record came.
    pub(super) fn job_loaded(
        &mut self,
        now: Now,
        loaded: Option<(JobRecord, KvVersion)>,
        unix_s: u64,
        out: &mut Vec<ControlAction>,
    ) {
        let known = self.relocation.job.take();
        let same = |job: &JobRecord| {
            let known = known.as_ref().map(|(known, _)| known);
            known.is_some_and(|k| k.created_unix_s == job.created_unix_s && k.goals == job.goals)
        };
        let is_new = !loaded.as_ref().is_some_and(|(job, _)| same(job));
        if is_new {
            self.relocation = Relocation {
                reload: self.relocation.reload,
                ..Relocation::default()
            };
            self.relocation.pace = Pace::new(now);
        }
        let chunk_bytes = self.map().head.chunk_bytes;
        let relocation = &mut self.relocation;
        relocation.clock = (unix_s, now);
        relocation.store = None;
        relocation.looked = None;
        relocation.job = loaded;
        let state = relocation.active().map(|job| job.state.clone());
        if let (Some(job), true) = (relocation.active(), is_new) {
            let (chunks, word) = (job.chunks_total(), job.state.word());
            let first = job.limits.rate_bytes_per_s.map_or(CHUNKS_FIRST, |rate| {
                let chunks = rate.saturating_mul(BATCH_TIME.as_secs()) / chunk_bytes;
                u32::try_from(chunks).unwrap_or(CHUNKS_MAX)
            });
            relocation.chunks_max = first.clamp(1, CHUNKS_MAX);
            let text = format!("relocation of {chunks} chunks: {word}");
            out.push(ControlAction::Note(text));
        }
        // A pause holds what is being filled, a cancellation gives it up.
        let halted = state.is_some_and(|state| state != JobState::Running);
        if halted && self.sync.as_ref().is_some_and(sync::Sync::is_paced) {
            self.sync = None;
        }
        self.limit_pace(now);
    }

    pub(super) fn job_stored(
        &mut self,
        now: Now,
        version: KvVersion,
        out: &mut Vec<ControlAction>,
    ) {
        let relocation = &mut self.relocation;
        relocation.looked = None;
        if let Some(job) = relocation.store.take() {
            match &job.state {
                JobState::Failed { why } => {
                    out.push(ControlAction::Note(format!("relocation failed: {why}")));
                }
                state if state.is_ended() => {
                    let text = format!("relocation {}", state.word());
                    out.push(ControlAction::Note(text));
                }
                _ => {}
            }
            if job.state.is_ended() {
                self.guest_latency.begin_anew(now);
            }
            relocation.job = Some((job, version));
        }
    }

    /// Loads or writes the record if that is due.
    pub(super) fn change_job_record(&mut self, out: &mut Vec<ControlAction>) -> bool {
        if std::mem::take(&mut self.relocation.reload) {
            let id = self.meta_id(Purpose::JobLoad);
            out.push(ControlAction::JobLoad(id));
            return true;
        }
        let (Some(job), Some((_, version))) = (&self.relocation.store, &self.relocation.job) else {
            return false;
        };
        let (job, version) = (Box::new(job.clone()), *version);
        let guard = JobGuard {
            job: version,
            head: self.map().head_version(),
        };
        let id = self.meta_id(Purpose::JobStore);
        out.push(ControlAction::JobStore(id, job, guard));
        true
    }

    /// The next step, if one is due and nothing more urgent is under way.
    pub(super) fn change_job(&mut self, now: Now, out: &mut Vec<ControlAction>) -> bool {
        let relocation = &self.relocation;
        if relocation.store.is_some() || !relocation.is_active() {
            return false;
        }
        let key = (self.map().head.generation, self.sync.is_some());
        if relocation.looked == Some(key) && now < relocation.look_at {
            return false;
        }
        let Some(job) = relocation.active() else {
            return false;
        };
        let batch = Batch {
            chunks_max: relocation.chunks_max,
            changes_max: relocation.changes_max,
        };
        let map = self.map().clone();
        let usable = |node| self.is_usable(node);
        let outlook = job::next(&map, job, batch, usable, relocation.holds_old(now));
        let cancelling = job.state == JobState::Cancelling;
        let (next, filling) = (outlook.next.clone(), outlook.joining > 0);
        let relocation = &mut self.relocation;
        relocation.looked = Some(key);
        relocation.look_at = now.after(LOOK_EVERY);
        relocation
            .copied_before
            .get_or_insert(outlook.chunks_copied);
        relocation.outlook = Some(outlook);
        if !filling {
            self.batch_over(now);
        }
        match next {
            Next::Changes(changes) => {
                let resync = self.sync.is_some() || self.next_resync(now).is_some();
                let busy = resync || !self.intents.is_empty();
                (cancelling || !busy) && self.step_job(now, &changes, out)
            }
            Next::Wait(wait) => {
                self.job_waits(now, wait, out);
                false
            }
            Next::Done if cancelling => {
                self.relocation.end(now, JobState::Cancelled);
                self.change_job_record(out)
            }
            Next::Done => {
                self.relocation.end(now, JobState::Done);
                self.change_job_record(out)
            }
            Next::Stuck(why) => {
                self.relocation.end(now, JobState::Failed { why });
                self.change_job_record(out)
            }
        }
    }

    fn step_job(&mut self, now: Now, changes: &[Change], out: &mut Vec<ControlAction>) -> bool {
        match transition::apply(self.map(), changes) {
            Ok(update) => {
                let adds = |change: &&Change| matches!(change, Change::AddLocation { .. });
                let begun: u32 = changes.iter().filter(adds).map(|c| c.range().count).sum();
                if begun > 0 {
                    self.relocation.batch_since = Some(now);
                    let text = format!("relocation: a batch of {begun} copies begins");
                    out.push(ControlAction::Note(text));
                }
                self.commit(Purpose::JobStep, Ok(update), out)
            }
            Err(TransitionError::NoChange) => false,
            Err(TransitionError::TooLarge(_)) if self.relocation.changes_max > CHANGES_MIN => {
                let relocation = &mut self.relocation;
                relocation.changes_max = (relocation.changes_max / 2).max(CHANGES_MIN);
                relocation.chunks_max = (relocation.chunks_max / 2).max(1);
                relocation.looked = None;
                false
            }
            Err(error) => {
                let why = error.to_string();
                self.relocation.end(now, JobState::Failed { why });
                self.change_job_record(out)
            }
        }
    }

    /// Batches grow or shrink until one takes about [`BATCH_TIME`].
    fn batch_over(&mut self, now: Now) {
        let relocation = &mut self.relocation;
        let Some(since) = relocation.batch_since.take() else {
            return;
        };
        let took = now.since(since);
        if took < BATCH_TIME / 2 {
            relocation.chunks_max = (relocation.chunks_max * 2).min(CHUNKS_MAX);
        } else if took > BATCH_TIME * 2 {
            relocation.chunks_max = (relocation.chunks_max / 2).max(1);
        }
    }

    fn job_waits(&mut self, now: Now, wait: Wait, out: &mut Vec<ControlAction>) {
        match wait {
            Wait::Held => {
                let at = self.relocation.unix_s(now);
                let job = self.relocation.active();
                if job.is_some_and(|job| job.copied_unix_s.is_none()) {
                    self.relocation.write(|job| job.copied_unix_s = Some(at));
                }
            }
            Wait::Node(node) => {
                if self.relocation.nodes_fresh && !self.records.contains_key(&node) {
                    let why =
                        format!("node {node} is not registered (any more): plan again without it");
                    self.relocation.end(now, JobState::Failed { why });
                    return;
                }
                if now >= self.relocation.nodes_at {
                    self.relocation.nodes_at = now.after(NODES_EVERY);
                    self.reload_wanted = true;
                }
                let text = format!("relocation waits for node {}", self.name(node));
                self.note(text, out);
            }
            Wait::Copies | Wait::Release(_) | Wait::Paused => {}
        }
    }

    /// May the node get replicas?
    fn is_usable(&self, node: NodeId) -> bool {
        let known = self.records.get(&node);
        let connected = self.nodes.iter().any(|entry| entry.node == node);
        known.is_some_and(|record| !record.draining)
            && if connected {
                self.all_up(node).is_some()
            } else {
                self.alive.contains(&node)
            }
    }

    fn limit_pace(&mut self, now: Now) {
        let relocation = &self.relocation;
        let Some(job) = relocation.active() else {
            return;
        };
        let protect = job.limits.protect;
        let budget = protect.and_then(|protect| protect.budget_us(None));
        let floor = job.limits.deadline_unix_s.map_or(0, |deadline| {
            let left_s = deadline.saturating_sub(relocation.unix_s(now)).max(1);
            relocation.bytes_left(self.map().head.chunk_bytes) / left_s
        });
        let cap = job.limits.rate_bytes_per_s;
        let wants_base =
            protect.is_some_and(|p| p.over_base_percent.is_some() && p.base_us.is_none());
        let relocation = &mut self.relocation;
        relocation
            .pace
            .limit(now, cap, budget.map(Duration::from_micros), floor);
        match (wants_base, relocation.base) {
            (true, Base::Settled) => relocation.base = Base::Measuring(now),
            (false, _) => relocation.base = Base::Settled,
            (true, _) => {}
        }
    }

    /// Watches the guest and sets the rate, four times a second.
    pub(super) fn drive_pace(&mut self, now: Now) {
        if !self.relocation.is_active() || !self.relocation.pace.is_due(now) {
            return;
        }
        self.measure_base(now);
        self.limit_pace(now);
        let latency = &self.guest_latency;
        let seen = self.relocation.pace.look(now, |back| {
            let stuck = || {
                latency
                    .oldest(now)
                    .map(|oldest| (oldest, pace::SAMPLES_MIN))
            };
            let p99 = latency.p99(now, back);
            // Requests that do not end at all are in no histogram.
            p99.filter(|(_, n)| *n >= pace::SAMPLES_MIN).or_else(stuck)
        });
        let relocation = &mut self.relocation;
        relocation.guest = seen;
        relocation.pace.evaluate(now, seen);
        relocation.held_by = relocation.held_by.filter(|(_, until)| now < *until);
        relocation.meter.push_back((now, relocation.copied_bytes));
        if relocation.meter.len() > METER_LEN {
            relocation.meter.pop_front();
        }
    }

    fn measure_base(&mut self, now: Now) {
        let enough = |seen: Seen, samples: u64| seen.filter(|(_, n)| *n >= samples);
        match self.relocation.base {
            Base::Settled => {}
            Base::Measuring(since) if now.since(since) >= BASE_TIME => {
                let seen = enough(self.guest_latency.p99(now, BASE_TIME), pace::SAMPLES_MIN);
                self.relocation.base = Base::Quiet;
                if let Some((p99, _)) = seen {
                    let us = u64::try_from(p99.as_micros()).unwrap_or(u64::MAX);
                    let set = |job: &mut JobRecord| {
                        let protect = job.limits.protect.as_mut();
                        protect.into_iter().for_each(|p| p.base_us = Some(us));
                    };
                    // From here on, whether or not it can be written at once.
                    self.relocation.write(set);
                    if let Some((job, _)) = &mut self.relocation.job {
                        set(job);
                    }
                    self.relocation.base = Base::Settled;
                }
            }
            Base::Measuring(_) => {}
            Base::Quiet => {
                let back = Duration::from_secs(1);
                if enough(self.guest_latency.p99(now, back), pace::SAMPLES_ENOUGH).is_some() {
                    self.relocation.base = Base::Measuring(now);
                }
            }
        }
    }

    /// How the job goes.
    #[must_use]
    pub fn job_progress(&self) -> Option<JobProgress> {
        let relocation = &self.relocation;
        let (job, _) = relocation.job.as_ref()?;
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let outlook = relocation.outlook.as_ref();
        let rate = relocation.rate_seen();
        let left = self
            .map
            .as_ref()
            .map_or(0, |map| relocation.bytes_left(map.head.chunk_bytes));
        let budget = job.limits.protect.and_then(|p| p.budget_us(None));
        Some(JobProgress {
            state: job.state.word().into(),
            copied_chunks: outlook.map_or(0, |o| o.chunks_copied),
            moved_chunks: outlook.map_or(0, |o| o.chunks_done),
            total_chunks: job.chunks_total(),
            copied_bytes: relocation.copied_bytes,
            rate_bytes_per_s: rate,
            eta_s: left.checked_div(rate).filter(|_| !job.state.is_ended()),
            limited_by: self.job_limited_by(job),
            guest_p99_us: relocation.guest.map(|(p99, _)| us(p99)),
            budget_us: budget,
            created_unix_s: Some(job.created_unix_s),
        })
    }

    fn job_limited_by(&self, job: &JobRecord) -> String {
        let relocation = &self.relocation;
        if job.state != JobState::Running {
            return job.state.word().into();
        }
        if let Some(sync) = self.sync.as_ref().filter(|sync| !sync.is_paced()) {
            return format!("resync of node {}", self.name(sync.node));
        }
        match relocation.outlook.as_ref().map(|outlook| &outlook.next) {
            Some(Next::Wait(Wait::Node(node))) => format!("waits for node {}", self.name(*node)),
            Some(Next::Wait(Wait::Release(node))) => {
                format!("waits for node {} to delete", self.name(*node))
            }
            Some(Next::Wait(Wait::Held)) => "old copies are kept for a while".into(),
            _ if matches!(relocation.base, Base::Measuring(_)) => {
                "measuring the guest's latency first".into()
            }
            _ => match (relocation.pace.limit_that_binds(), relocation.held_by) {
                (Limit::Nodes, Some((node, _))) => format!("copy rate of node {}", self.name(node)),
                (limit, _) => limit.text().into(),
            },
        }
    }
}
