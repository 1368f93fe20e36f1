//! Relocation jobs in control, on the world of `control_test`.

use super::api::*;
use super::control_test::World;
use super::fixture::*;
use super::window::LaneWindow;
use std::time::Duration;
use ukai_meta::job::{GoalSet, JOB_FORMAT, JobLimits, JobRecord, JobState, Protect};
use ukai_meta::{KvVersion, NodeHealth, ReplicaState, transition};
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, NodeId, Opcode, Status};

use ReplicaState::{InSync, Joining};

const MS: Duration = Duration::from_millis(1);
const CHUNK_SECTORS: u32 = 1024;

/// Chunks 0..16 from B to C.
fn job() -> JobRecord {
    JobRecord {
        format: JOB_FORMAT,
        volume: VOLUME,
        name: "v".into(),
        created_unix_s: 5,
        asked: "relocate v".into(),
        state: JobState::Running,
        copied_unix_s: None,
        ended_unix_s: None,
        limits: JobLimits::default(),
        sets: vec![GoalSet {
            add: vec![C],
            remove: vec![B],
            copies: 2,
        }],
        goals: vec![(8, 8, 0), (0, 8, 0)],
        prediction: None,
        score: None,
    }
}

fn world() -> World {
    let mut world = World::serving();
    world.up.insert(PEER_C);
    for chunk in 0..16 {
        world
            .written
            .entry(PEER_A)
            .or_default()
            .push(ChunkIndex(chunk));
    }
    world.whole = true;
    world
}

impl World {
    /// Tools write the record.
    fn steer(&mut self, edit: impl FnOnce(&mut JobRecord)) {
        let (job, version) = self.job.as_mut().unwrap();
        edit(job);
        version.0 += 1;
        self.event(ControlEvent::JobChanged);
    }

    fn begin(&mut self, job: JobRecord) {
        self.job = Some((job, KvVersion(1)));
        self.event(ControlEvent::JobChanged);
    }

    fn job_state(&self) -> JobState {
        self.job.as_ref().unwrap().0.state.clone()
    }

    fn states(&self, node: NodeId) -> Vec<Option<ReplicaState>> {
        let chunks = (0..16).map(ChunkIndex);
        chunks.map(|c| self.map.replicas(c).on(node)).collect()
    }

    fn count_in(&self, node: NodeId, state: ReplicaState) -> usize {
        let states = self.states(node);
        states.iter().filter(|s| **s == Some(state)).count()
    }

    /// Until the job has ended, or so much time has passed.
    fn until_ended(&mut self, seconds: u64) {
        for _ in 0..seconds * 20 {
            if self.job_state().is_ended() {
                return;
            }
            self.pass(50 * MS);
        }
    }

    fn is_moved(&self) -> bool {
        self.states(C) == [Some(InSync); 16] && self.states(B) == [None; 16]
    }

    fn copied_sectors(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.4)).sum()
    }

    fn limited_by(&self) -> String {
        self.core.job_progress().unwrap().limited_by
    }
}

#[test]
fn without_a_job_its_record_is_read_only_when_told() {
    let mut world = world();
    world.pass(Duration::from_secs(60));
    assert_eq!(world.job_loads, 0);
    world.event(ControlEvent::JobChanged);
    world.pass(Duration::from_secs(60));
    assert_eq!(world.job_loads, 1);
    assert_eq!(world.core.job_progress(), None);
}

/// Of a map that the front has not read: what the job removes does not lie there yet.
#[test]
fn a_job_made_from_a_newer_map_is_not_done_by_the_older_one() {
    let mut world = world();
    let chunks = ChunkRange {
        start: ChunkIndex(0),
        count: 16,
    };
    world.map = committed(transition::add_location(&world.map, chunks, C).unwrap());
    let mut job = job();
    job.sets = vec![GoalSet {
        add: vec![A],
        remove: vec![C],
        copies: 2,
    }];
    world.begin(job);
    world.until_ended(10);
    assert_eq!(world.job_state(), JobState::Done);
    assert_eq!(world.count_in(C, Joining) + world.count_in(C, InSync), 0);
}

#[test]
fn a_job_moves_everything_and_says_so() {
    let mut world = world();
    world.begin(job());
    world.until_ended(10);
    assert_eq!(world.job_state(), JobState::Done);
    assert!(world.job.as_ref().unwrap().0.ended_unix_s.is_some());
    assert!(world.is_moved(), "{:?}", world.map);
    assert!(world.core.status().settled);
    let progress = world.core.job_progress().unwrap();
    assert_eq!(
        (progress.moved_chunks, progress.total_chunks),
        (16, 16),
        "{progress:?}"
    );
    // Each chunk in pieces of 1 MiB at most, each made equal and looked at again.
    assert!(world.parts.iter().all(|part| part.4 <= 256));
    assert!(world.copied_sectors() >= 16 * u64::from(CHUNK_SECTORS));
    // Twice is once.
    world.seen.clear();
    let mut again = job();
    again.created_unix_s += 1;
    world.begin(again);
    world.until_ended(1);
    assert_eq!(world.job_state(), JobState::Done);
    assert_eq!(world.count(Opcode::Pull), 0);
}

#[test]
fn batches_follow_the_rate_and_the_order() {
    let mut world = world();
    let mut slow = job();
    // Two chunks of 4 MiB in eight seconds.
    slow.limits.rate_bytes_per_s = Some(1 << 20);
    world.begin(slow);
    assert_eq!(world.count_in(C, Joining), 2);
    assert_eq!(world.map.replicas(ChunkIndex(8)).on(C), Some(Joining));
    let begun = world.now;
    for _ in 0..40 {
        world.pass(50 * MS);
    }
    let seconds = world.now.since(begun).as_secs();
    let copied = world.core.job_progress().unwrap().copied_bytes;
    // What the bucket holds, and what there was before the first tick.
    let burst = 2 << 20;
    assert!(
        (1 << 20..=(seconds << 20) + burst).contains(&copied),
        "{copied} in {seconds} s"
    );
    assert_eq!(world.limited_by(), "rate");
    world.until_ended(600);
    assert!(world.is_moved());
    let mut chunks: Vec<u32> = world.parts.iter().map(|part| part.2.0).collect();
    chunks.dedup();
    assert_eq!(chunks.first(), Some(&8), "hottest first");
}

#[test]
fn the_node_whose_copy_rate_binds_is_named() {
    let mut world = world();
    world.held_back = Some((PEER_C, Status::Busy));
    world.begin(job());
    world.pass(Duration::from_secs(30));
    // Given again with each tick, and no failure, however often.
    assert_eq!(world.limited_by(), "copy rate of node a");
    assert_eq!(world.count_in(C, InSync), 0);
    assert_eq!(world.copied_sectors(), 0);
    assert!(world.core.status().sync.is_some(), "it has not stopped");
    world.held_back = Some((PEER_C, Status::Ok));
    for _ in 0..100 {
        world.pass(50 * MS);
        if world.job_state().is_ended() {
            break;
        }
        assert_eq!(world.limited_by(), "copy rate of node a");
    }
    assert!(world.is_moved());

    let mut limited = job();
    limited.limits.rate_bytes_per_s = Some(1 << 20);
    let mut world = self::world();
    world.held_back = Some((PEER_C, Status::Ok));
    world.begin(limited);
    world.pass(300 * MS);
    world.pass(300 * MS);
    assert_eq!(world.limited_by(), "rate", "the job's own");
}

#[test]
fn a_pause_stands_still_and_a_cancellation_gives_up_what_joins() {
    let mut world = world();
    world.pulls_answered = false;
    world.begin(job());
    let joining = world.count_in(C, Joining);
    assert!(joining > 0);
    world.steer(|job| {
        job.pause().unwrap();
    });
    world.pulls_answered = true;
    world.pulls.clear();
    world.pass(Duration::from_secs(60));
    assert_eq!(world.limited_by(), "paused");
    assert_eq!(
        (world.count_in(C, Joining), world.pulls.len()),
        (joining, 0)
    );
    assert!(world.core.status().sync.is_none());
    world.steer(|job| {
        job.cancel().unwrap();
    });
    world.until_ended(10);
    assert_eq!(world.job_state(), JobState::Cancelled);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.states(C), [None; 16]);
    assert_eq!(world.states(B), [Some(InSync); 16]);
    assert!(world.core.status().settled);
}

#[test]
fn resumed_it_goes_on() {
    let mut world = world();
    world.begin(job());
    world.steer(|job| job.state = JobState::Running);
    let mut paused = job();
    paused.created_unix_s = 9;
    paused.state = JobState::Paused;
    let mut world = self::world();
    world.begin(paused);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.count(Opcode::Pull), 0);
    assert_eq!(world.states(C), [None; 16]);
    world.steer(|job| {
        job.resume().unwrap();
    });
    world.until_ended(10);
    assert!(world.is_moved());
}

#[test]
fn the_next_front_goes_on_where_the_map_says() {
    let mut world = world();
    let mut slow = job();
    slow.limits.rate_bytes_per_s = Some(1 << 20);
    world.begin(slow);
    world.pass(3000 * MS);
    let joining = world.states(C);
    assert!(joining.contains(&Some(Joining)));
    // The process is killed; another one on the same host takes over.
    world.restart();
    world.event(ControlEvent::JobChanged);
    world.until_ended(600);
    assert_eq!(world.job_state(), JobState::Done);
    assert!(world.is_moved());
}

#[test]
fn a_job_is_not_settled_before_its_end() {
    let mut world = world();
    world.up.remove(&PEER_C);
    assert!(world.core.status().settled);
    world.begin(job());
    world.pass(Duration::from_secs(3));
    assert!(!world.core.status().settled);
    // Its target never came: the replicas there are stale, and nothing hangs on them.
    assert_eq!(world.limited_by(), "waits for node c");
    assert!(matches!(
        world.map.health(C),
        Some(NodeHealth::Stale { .. })
    ));
    assert_eq!(world.states(B), [Some(InSync); 16]);
    world.restore(PEER_C, 1);
    world.until_ended(60);
    assert_eq!(world.job_state(), JobState::Done);
    assert!(world.is_moved());
}

#[test]
fn a_node_that_missed_writes_goes_first() {
    let mut world = world();
    let mut slow = job();
    slow.limits.rate_bytes_per_s = Some(1 << 20);
    world.begin(slow);
    world.pass(1000 * MS);
    world.lose(PEER_B);
    world.pass(2000 * MS);
    assert!(matches!(
        world.map.health(B),
        Some(NodeHealth::Stale { .. })
    ));
    world.pulls_answered = false;
    world.written.insert(PEER_A, vec![ChunkIndex(3)]);
    world.restore(PEER_B, 2);
    world.pass(2000 * MS);
    assert_eq!(world.limited_by(), "resync of node b");
    world.pulls_answered = true;
    world.pass(Duration::from_secs(21)); // the unanswered one is given up
    world.until_ended(600);
    assert!(world.is_moved());
}

#[test]
fn a_node_that_cannot_be_recorded_stale_does_not_interrupt_the_copy_for_ever() {
    let mut world = world();
    let mut slow = job();
    slow.limits.rate_bytes_per_s = Some(1 << 20);
    world.begin(slow);
    world.pass(1000 * MS);
    assert!(world.count_in(C, Joining) > 0);
    world.lose(PEER_B);
    world.pass(2000 * MS);
    world.pulls_answered = false;
    world.restore(PEER_B, 2);
    world.pass(2000 * MS);
    assert!(matches!(
        world.map.health(B),
        Some(NodeHealth::Rejoining { .. })
    ));
    // It reboots before it is whole, and the metadata store is away: it cannot be filled now.
    world.meta_down = true;
    let lists = world.count(Opcode::WrittenSince);
    world.lose(PEER_B);
    world.restore(PEER_B, 103);
    world.pulls_answered = true;
    for _ in 0..100 {
        world.pass(100 * MS);
    }
    let lists = world.count(Opcode::WrittenSince) - lists;
    assert!(lists <= 20, "{lists} times asked for the same lists");
    world.meta_down = false;
    world.until_ended(600);
    assert!(world.is_moved());
}

/// Simulation seed 14942: nobody records a node stale that has nothing more of the volume.
#[test]
fn a_target_that_failed_and_was_taken_away_does_not_hold_the_job_up() {
    let mut world = world();
    let mut slow = job();
    slow.limits.rate_bytes_per_s = Some(1 << 20);
    world.begin(slow);
    assert_eq!(world.count_in(C, Joining), 2);
    // All is copied, and cannot be made in-sync.
    world.meta_down = true;
    for _ in 0..300 {
        world.pass(100 * MS);
    }
    let sync = world.core.status().sync.unwrap();
    assert_eq!((sync.chunks_done, sync.chunks_total), (2, 2));
    let status = Status::NoLease;
    let failed = LaneReport::ReplicaFailed { node: C, status };
    world.event(ControlEvent::Lane(LaneId(0), failed));
    for range in world.map.ranges_of(C, Joining) {
        world.map = committed(transition::cancel_join(&world.map, range, C).unwrap());
    }
    world.meta_down = false;
    world.until_ended(600);
    assert!(world.is_moved(), "{:?}", world.core.status());
}

#[test]
fn a_source_that_must_stay_is_waited_for() {
    // A lost: the copy on C alone would be one copy less than before.
    let mut world = world();
    world.pulls_answered = false;
    world.begin(job());
    world.lose(PEER_A);
    world.pass(2000 * MS);
    assert!(matches!(
        world.map.health(A),
        Some(NodeHealth::Stale { .. })
    ));
    world.pulls_answered = true;
    for chunk in 0..16 {
        world
            .written
            .entry(PEER_B)
            .or_default()
            .push(ChunkIndex(chunk));
    }
    for _ in 0..1000 {
        world.pass(50 * MS);
        assert!(world.count_in(B, InSync) == 16, "two copies stay");
    }
    assert_eq!(world.limited_by(), "waits for node a");
    world.restore(PEER_A, 2);
    world.until_ended(60);
    assert!(world.is_moved());
}

#[test]
fn old_copies_stay_for_as_long_as_asked() {
    let mut world = world();
    let mut kept = job();
    kept.limits.detach_old_after_s = 600;
    world.begin(kept);
    for _ in 0..40 {
        world.pass(50 * MS);
    }
    assert_eq!(world.states(C), [Some(InSync); 16]);
    assert_eq!(world.states(B), [Some(InSync); 16]);
    assert_eq!(world.limited_by(), "old copies are kept for a while");
    let copied = world.job.as_ref().unwrap().0.copied_unix_s;
    assert!(copied.is_some());
    // The next front knows since when.
    world.pass(Duration::from_secs(300));
    world.restart();
    world.event(ControlEvent::JobChanged);
    world.pass(Duration::from_secs(200));
    assert_eq!(world.job.as_ref().unwrap().0.copied_unix_s, copied);
    assert_eq!(world.states(B), [Some(InSync); 16]);
    world.pass(Duration::from_secs(110));
    world.until_ended(60);
    assert!(world.is_moved());
}

#[test]
fn nothing_happens_without_the_metadata_store() {
    let mut world = world();
    world.meta_down = true;
    world.begin(job());
    world.pass(Duration::from_secs(5));
    assert_eq!(world.states(C), [None; 16]);
    world.meta_down = false;
    world.pass(Duration::from_secs(2));
    world.until_ended(20);
    assert!(world.is_moved());
}

#[test]
fn an_end_that_others_overtook_is_decided_again() {
    let mut world = world();
    world.begin(job());
    // While the front writes "done", somebody has cancelled.
    let mut other = world.job.clone().unwrap();
    other.0.state = JobState::Cancelling;
    other.1 = KvVersion(77);
    world.job = Some(other);
    world.until_ended(10);
    world.pass(Duration::from_secs(2));
    assert!(world.job_state().is_ended());
}

#[test]
fn a_target_that_nobody_knows_fails_the_job() {
    let mut world = world();
    let mut unknown = job();
    unknown.sets[0].add = vec![NodeId([0xd; 16])];
    world.begin(unknown);
    world.until_ended(20);
    match world.job_state() {
        JobState::Failed { why } => assert!(why.contains("plan again"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.states(B), [Some(InSync); 16]);
}

fn window(p99: Duration) -> Box<LaneWindow> {
    let mut window = LaneWindow::default();
    for _ in 0..200 {
        let ns = u64::try_from(p99.as_nanos()).unwrap();
        window.read.saturating_record(ns);
    }
    Box::new(window)
}

#[test]
fn the_guest_is_measured_first_and_protected_then() {
    let mut world = world();
    let mut gentle = job();
    gentle.limits.protect = Some(Protect {
        over_base_percent: Some(50),
        ..Protect::default()
    });
    world.begin(gentle);
    for _ in 0..10 {
        world.event(ControlEvent::Window(LaneId(0), window(MS)));
        world.pass(250 * MS);
    }
    assert_eq!(world.count(Opcode::Pull), 0, "nothing is copied meanwhile");
    assert_eq!(world.limited_by(), "measuring the guest's latency first");
    for _ in 0..8 {
        world.event(ControlEvent::Window(LaneId(0), window(MS)));
        world.pass(250 * MS);
    }
    let (record, _) = world.job.clone().unwrap();
    let base = record.limits.protect.unwrap().base_us.unwrap();
    assert!((990..=1010).contains(&base), "{base}");
    assert!(world.count(Opcode::Pull) > 0);
    let progress = world.core.job_progress().unwrap();
    assert_eq!(progress.budget_us, Some(base * 3 / 2));
}
