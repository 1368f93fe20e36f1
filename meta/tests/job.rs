//! Relocation jobs: the step function against random maps, goals and mishaps, and their records.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

use proptest::prelude::*;
use std::time::Duration;
use ukai_meta::catalog::{self, CatalogError};
use ukai_meta::job::{
    Batch, GoalSet, JOB_FORMAT, JobError, JobLimits, JobRecord, JobState, Next, Protect, Wait, next,
};
use ukai_meta::memory::{CommitFault, MemoryCluster};
use ukai_meta::transition::{self as tr, Change, NewVolume, one_chunk};
use ukai_meta::{CommitError, Durability, NodeHealth, PlaceRule, ReplicaState, VolumeMap};
use ukai_proto::{ChunkIndex, NodeId, VolumeId};

use ReplicaState::{InSync, Joining, Leaving};

const NODES: u8 = 6;
const CHUNKS: u32 = 12;

fn node(n: u8) -> NodeId {
    NodeId([n + 1; 16])
}

fn nodes_of(bits: u8) -> Vec<NodeId> {
    (0..NODES)
        .filter(|n| bits & (1 << n) != 0)
        .map(node)
        .collect()
}

fn new_volume() -> NewVolume {
    NewVolume {
        volume: VolumeId([7; 16]),
        name: "v".into(),
        size_bytes: u64::from(CHUNKS) << 20,
        chunk_bytes: 1 << 20,
        durability: Durability::Cache,
        place: vec![PlaceRule {
            site: "a".into(),
            copies: 1,
        }],
        nodes: vec![vec![node(0)]],
    }
}

fn changed(map: &VolumeMap, changes: &[Change]) -> VolumeMap {
    tr::apply(map, changes).map_or_else(|_| map.clone(), |update| update.next)
}

/// A map whose chunks lie on the nodes given, all in sync.
fn map_of(places: &[u8]) -> VolumeMap {
    let mut map = tr::create(&new_volume()).unwrap().next;
    for (chunk, bits) in (0..).zip(places) {
        let range = one_chunk(ChunkIndex(chunk));
        let wanted = nodes_of(*bits);
        for node in wanted.iter().filter(|n| **n != node(0)) {
            let node = *node;
            map = changed(&map, &[Change::AddLocation { range, node }]);
            map = changed(&map, &[Change::Promote { range, node }]);
        }
        if !wanted.contains(&node(0)) {
            let node = node(0);
            let min_copies = 1;
            let remove = Change::RemoveLocation {
                range,
                node,
                min_copies,
            };
            map = changed(&map, &[remove]);
            map = changed(&map, &[Change::DropLeaving { range, node }]);
        }
    }
    map
}

fn job_of(sets: Vec<GoalSet>, goals: Vec<(u32, u32, u16)>) -> JobRecord {
    JobRecord {
        format: JOB_FORMAT,
        volume: VolumeId([7; 16]),
        name: "v".into(),
        created_unix_s: 1_700_000_000,
        asked: "relocate v".into(),
        state: JobState::Running,
        copied_unix_s: None,
        ended_unix_s: None,
        limits: JobLimits::default(),
        sets,
        goals,
        prediction: None,
        score: None,
    }
}

/// What happens between two steps of the job.
#[derive(Clone, Debug)]
enum World {
    /// A chunk's joining replica was proven equal.
    Promote(u32, u8),
    /// All that is joining was.
    PromoteAll,
    /// What leaves is deleted.
    DropAll,
    Lose(u8),
    Rejoin(u8),
    Return(u8),
    /// An administrator at work.
    Add(u32, u8),
    Remove(u32, u8),
    /// The job's front does its next step.
    Step,
}

fn world() -> impl Strategy<Value = World> {
    let place = || (0..CHUNKS, 0..NODES);
    prop_oneof![
        4 => place().prop_map(|(c, n)| World::Promote(c, n)),
        2 => Just(World::PromoteAll),
        2 => Just(World::DropAll),
        2 => (0..NODES).prop_map(World::Lose),
        2 => (0..NODES).prop_map(World::Rejoin),
        2 => (0..NODES).prop_map(World::Return),
        1 => place().prop_map(|(c, n)| World::Add(c, n)),
        1 => place().prop_map(|(c, n)| World::Remove(c, n)),
        12 => Just(World::Step),
    ]
}

fn with_all(
    map: &VolumeMap,
    state: ReplicaState,
    change: impl Fn(ChunkIndex, NodeId) -> Change,
) -> VolumeMap {
    let mut map = map.clone();
    for chunk in (0..CHUNKS).map(ChunkIndex) {
        let stored = map.stored_replicas(chunk);
        for node in stored.in_state(state).collect::<Vec<_>>() {
            map = changed(&map, &[change(chunk, node)]);
        }
    }
    map
}

fn promote_all(map: &VolumeMap) -> VolumeMap {
    with_all(map, Joining, |chunk, node| Change::Promote {
        range: one_chunk(chunk),
        node,
    })
}

fn drop_all(map: &VolumeMap) -> VolumeMap {
    with_all(map, Leaving, |chunk, node| Change::DropLeaving {
        range: one_chunk(chunk),
        node,
    })
}

fn happen(map: &VolumeMap, event: &World) -> VolumeMap {
    let or_same = |result: Result<ukai_meta::MapUpdate, _>| {
        result.map_or_else(|_: tr::TransitionError| map.clone(), |update| update.next)
    };
    match *event {
        World::Promote(chunk, n) => {
            let range = one_chunk(ChunkIndex(chunk));
            or_same(tr::promote(map, range, node(n)))
        }
        World::PromoteAll => promote_all(map),
        World::DropAll => drop_all(map),
        World::Lose(n) => or_same(tr::mark_stale(map, &[node(n)])),
        World::Rejoin(n) => or_same(tr::begin_rejoin(map, node(n))),
        World::Return(n) => or_same(tr::finish_rejoin(map, node(n))),
        World::Add(chunk, n) => {
            let range = one_chunk(ChunkIndex(chunk));
            or_same(tr::add_location(map, range, node(n)))
        }
        World::Remove(chunk, n) => {
            let range = one_chunk(ChunkIndex(chunk));
            or_same(tr::remove_location(map, range, node(n), 2))
        }
        World::Step => map.clone(),
    }
}

fn copies(map: &VolumeMap) -> Vec<usize> {
    let chunks = (0..CHUNKS).map(ChunkIndex);
    chunks.map(|chunk| map.in_sync(chunk).count()).collect()
}

/// One step; each change must be legal, and keep every chunk's copies.
fn step(map: &VolumeMap, job: &JobRecord, batch: Batch) -> (VolumeMap, Next) {
    let outlook = next(map, job, batch, |_| true, false);
    // A front that dies and another one in its place decide the same.
    assert_eq!(outlook, next(map, job, batch, |_| true, false));
    assert!(outlook.chunks_done <= outlook.chunks_copied);
    assert!(outlook.chunks_copied <= outlook.chunks_total);
    let Next::Changes(changes) = &outlook.next else {
        return (map.clone(), outlook.next);
    };
    assert!(changes.len() <= 2 * batch.changes_max, "{changes:?}");
    let adding = changes.iter().filter_map(|change| match change {
        Change::AddLocation { range, node } => Some((range.start, range.count, node)),
        _ => None,
    });
    let mut chunks: Vec<_> = adding.map(|(start, count, _)| (start, count)).collect();
    chunks.dedup();
    let begun: u32 = chunks.iter().map(|(_, count)| count).sum();
    assert!(begun <= batch.chunks_max, "{changes:?}");
    let after = tr::apply(map, changes).unwrap_or_else(|error| panic!("{changes:?}: {error}"));
    let kept = |chunk: u32| {
        let goal = job.goals.iter().find(|g| (g.0..g.0 + g.1).contains(&chunk));
        goal.map_or(usize::MAX, |goal| {
            usize::from(job.sets[usize::from(goal.2)].copies)
        })
    };
    for (chunk, (before, now)) in (0..).zip(copies(map).into_iter().zip(copies(&after.next))) {
        assert!(
            now >= before.min(kept(chunk)).max(1),
            "chunk {chunk}: {before} copies, then {now}: {changes:?}"
        );
    }
    (after.next, outlook.next)
}

fn holds(map: &VolumeMap, job: &JobRecord) -> bool {
    job.goals.iter().all(|(start, count, set)| {
        let goal = &job.sets[usize::from(*set)];
        (*start..start + count).all(|chunk| {
            let replicas = map.replicas(ChunkIndex(chunk));
            let stored = map.stored_replicas(ChunkIndex(chunk));
            goal.add
                .iter()
                .all(|node| replicas.on(*node) == Some(InSync))
                && goal
                    .remove
                    .iter()
                    .all(|node| matches!(stored.on(*node), None | Some(Leaving)))
        })
    })
}

/// All nodes return, copies succeed, what leaves is deleted: how the job ends.
fn to_its_end(mut map: VolumeMap, job: &JobRecord, batch: Batch) -> (VolumeMap, Next) {
    for n in 0..NODES {
        map = happen(&map, &World::Rejoin(n));
        map = happen(&map, &World::Return(n));
    }
    // Each chunk begins at most twice (others may have taken a part away), in batches of one or more.
    for _ in 0..16 * CHUNKS {
        let (after, next) = step(&map, job, batch);
        match next {
            Next::Done | Next::Stuck(_) => return (after, next),
            Next::Changes(_) | Next::Wait(_) => map = drop_all(&promote_all(&after)),
        }
    }
    panic!("the job does not end: {job:?}\n{map:?}");
}

/// A map, and goals that it allows: `copies` is what each chunk has.
fn scenario() -> impl Strategy<Value = (Vec<u8>, JobRecord)> {
    let places = prop::collection::vec(1u8..1 << NODES, CHUNKS as usize);
    let wanted = prop::collection::vec(
        (0u8..1 << NODES, 0u8..1 << NODES, any::<bool>()),
        CHUNKS as usize,
    );
    (places, wanted, any::<prop::sample::Index>()).prop_map(|(places, wanted, turn)| {
        let (mut sets, mut goals) = (Vec::new(), Vec::new());
        for (chunk, (has, (add, remove, skip))) in (0..).zip(places.iter().zip(wanted)) {
            let add: Vec<NodeId> = nodes_of(add).into_iter().take(4).collect();
            let remove = nodes_of(remove).into_iter().filter(|n| !add.contains(n));
            let remove: Vec<NodeId> = remove.collect();
            let has = nodes_of(*has);
            let stays = has
                .iter()
                .filter(|n| !remove.contains(n) && !add.contains(n));
            let after = stays.count() + add.len();
            if skip || after == 0 || add.len() + remove.len() == 0 {
                continue;
            }
            let set = GoalSet {
                add,
                remove,
                copies: u8::try_from(after.min(has.len())).unwrap(),
            };
            goals.push((chunk, 1, u16::try_from(sets.len()).unwrap()));
            sets.push(set);
        }
        if goals.is_empty() {
            goals.push((0, 1, 0));
            let copies = 1;
            let (add, remove) = (vec![node(1)], Vec::new());
            sets.push(GoalSet {
                add,
                remove,
                copies,
            });
        }
        let at = turn.index(goals.len());
        goals.rotate_left(at);
        (places, job_of(sets, goals))
    })
}

fn batches() -> impl Strategy<Value = Batch> {
    // A goal has up to eleven changes; what does not fit would never be begun.
    (1u32..6, 12usize..40).prop_map(|(chunks_max, changes_max)| Batch {
        chunks_max,
        changes_max,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_job_ends_with_its_goals((places, job) in scenario(), batch in batches()) {
        let map = map_of(&places);
        job.check(&map).unwrap();
        let (after, end) = to_its_end(map, &job, batch);
        prop_assert_eq!(end, Next::Done);
        prop_assert!(holds(&after, &job));
        for (now, chunk) in copies(&after).into_iter().zip(0..) {
            let goal = job.goals.iter().find(|goal| goal.0 == chunk);
            let kept = goal.map_or(1, |goal| job.sets[usize::from(goal.2)].copies);
            prop_assert!(now >= usize::from(kept));
        }
        // Once more: nothing is left to do.
        prop_assert_eq!(step(&after, &job, batch).1, Next::Done);
    }

    #[test]
    fn mishaps_never_cost_a_copy(
        (places, job) in scenario(),
        batch in batches(),
        events in prop::collection::vec(world(), 0..60),
    ) {
        let mut map = map_of(&places);
        for event in &events {
            map = happen(&map, event);
            if matches!(event, World::Step) {
                map = step(&map, &job, batch).0;
            }
        }
        let (after, end) = to_its_end(map, &job, batch);
        match end {
            Next::Done => prop_assert!(holds(&after, &job)),
            // Administrators may have taken away what was to stay, or filled a chunk's list.
            end => prop_assert!(matches!(end, Next::Stuck(_)), "{:?}", end),
        }
    }

    #[test]
    fn cancelled_at_any_step_nothing_is_left_halfway(
        (places, mut job) in scenario(),
        batch in batches(),
        events in prop::collection::vec(world(), 0..40),
    ) {
        let mut map = map_of(&places);
        for event in &events {
            map = happen(&map, event);
            if matches!(event, World::Step) {
                map = step(&map, &job, batch).0;
            }
        }
        prop_assert!(job.cancel().unwrap());
        let mut steps = 0;
        loop {
            let (after, next) = step(&map, &job, batch);
            match next {
                Next::Done => break,
                Next::Changes(changes) => prop_assert!(
                    !changes.iter().any(|c| matches!(c, Change::AddLocation { .. })),
                    "{:?}", changes
                ),
                other => prop_assert!(false, "{:?}", other),
            }
            map = after;
            steps += 1;
            prop_assert!(steps < 64, "cancelling does not end");
        }
        for (start, count, set) in &job.goals {
            for chunk in *start..start + count {
                let stored = map.stored_replicas(ChunkIndex(chunk));
                for node in &job.sets[usize::from(*set)].add {
                    prop_assert_ne!(stored.on(*node), Some(Joining));
                }
            }
        }
    }
}

/// Chunks 0..4 from node 0 to node 1, one copy.
fn plain() -> (VolumeMap, JobRecord) {
    let set = GoalSet {
        add: vec![node(1)],
        remove: vec![node(0)],
        copies: 1,
    };
    (
        map_of(&[1; CHUNKS as usize]),
        job_of(vec![set], vec![(2, 2, 0), (0, 2, 0)]),
    )
}

const BATCH: Batch = Batch {
    chunks_max: 2,
    changes_max: 16,
};

fn outlook(map: &VolumeMap, job: &JobRecord) -> ukai_meta::job::Outlook {
    next(map, job, BATCH, |_| true, false)
}

#[test]
fn batches_follow_the_order_of_the_goals() {
    let (map, job) = plain();
    let range = |start| ukai_proto::message::ChunkRange {
        start: ChunkIndex(start),
        count: 2,
    };
    let add = |start| Change::AddLocation {
        range: range(start),
        node: node(1),
    };
    assert_eq!(outlook(&map, &job).next, Next::Changes(vec![add(2)]));
    let map = changed(&map, &[add(2)]);
    let seen = outlook(&map, &job);
    assert_eq!((seen.next, seen.joining), (Next::Wait(Wait::Copies), 2));
    let map = promote_all(&map);
    let remove = Change::RemoveLocation {
        range: range(2),
        node: node(0),
        min_copies: 1,
    };
    let seen = outlook(&map, &job);
    assert_eq!(seen.next, Next::Changes(vec![remove, add(0)]));
    assert_eq!(
        (seen.chunks_copied, seen.chunks_done, seen.chunks_total),
        (2, 0, 4)
    );
}

#[test]
fn what_a_job_waits_for_is_said() {
    let (map, mut job) = plain();
    let away = next(&map, &job, BATCH, |_| false, false);
    assert_eq!(away.next, Next::Wait(Wait::Node(node(1))));
    // A target that leaves must be gone first.
    let all = map.all();
    let target = node(1);
    let map = changed(
        &map,
        &[Change::AddLocation {
            range: all,
            node: target,
        }],
    );
    let leaving = changed(
        &map,
        &[Change::CancelJoin {
            range: all,
            node: target,
        }],
    );
    assert_eq!(
        outlook(&leaving, &job).next,
        Next::Wait(Wait::Release(target))
    );
    // Lost while it is filled.
    let lost = tr::mark_stale(&map, &[target]).unwrap().next;
    assert_eq!(outlook(&lost, &job).next, Next::Wait(Wait::Node(target)));
    assert!(matches!(
        lost.health(target),
        Some(NodeHealth::Stale { .. })
    ));
    // Copied, and the old copies are kept.
    let copied = promote_all(&map);
    let held = next(&copied, &job, BATCH, |_| true, true);
    assert_eq!(held.next, Next::Wait(Wait::Held));
    assert_eq!((held.chunks_copied, held.chunks_done), (4, 0));
    assert!(job.pause().unwrap());
    assert_eq!(outlook(&copied, &job).next, Next::Wait(Wait::Paused));
}

#[test]
fn copies_that_others_took_away_stop_the_job() {
    let set = GoalSet {
        add: vec![node(1)],
        remove: vec![node(0)],
        copies: 2,
    };
    let map = map_of(&[0b101; CHUNKS as usize]);
    let job = job_of(vec![set], vec![(0, 1, 0)]);
    job.check(&map).unwrap();
    let map = promote_all(&step(&map, &job, BATCH).0);
    let map = happen(&map, &World::Remove(0, 2));
    match outlook(&map, &job).next {
        Next::Stuck(why) => assert!(why.contains("plan again"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn goals_beyond_the_end_are_passed_over() {
    let (map, mut job) = plain();
    job.goals = vec![(CHUNKS, 5, 0), (u32::MAX, 7, 0), (CHUNKS - 1, 9, 0)];
    let seen = outlook(&map, &job);
    assert_eq!(seen.chunks_total, 1);
    match seen.next {
        Next::Changes(changes) => {
            assert_eq!(changes.len(), 1);
            assert_eq!(changes[0].range(), one_chunk(ChunkIndex(CHUNKS - 1)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_node_both_wanted_and_forbidden_is_kept() {
    let (map, mut job) = plain();
    job.sets[0].remove.push(node(1));
    let (after, end) = to_its_end(map, &job, BATCH);
    assert_eq!(end, Next::Done);
    assert!(after.is_in_sync(ChunkIndex(0), node(1)));
}

#[test]
fn impossible_jobs_are_refused() {
    let (map, good) = plain();
    good.check(&map).unwrap();
    let refused = |edit: fn(&mut JobRecord), words: &str| {
        let mut job = good.clone();
        edit(&mut job);
        match job.check(&map) {
            Err(JobError::Invalid(text)) => assert!(text.contains(words), "{text}"),
            other => panic!("{words}: {other:?}"),
        }
    };
    refused(|job| job.goals.clear(), "nothing");
    refused(|job| job.goals.push((3, 1, 0)), "two goals");
    refused(|job| job.goals.push((CHUNKS, 1, 0)), "the volume has 12");
    refused(|job| job.goals.push((5, 0, 0)), "0 chunks");
    refused(|job| job.goals.push((5, u32::MAX, 0)), "the volume has 12");
    refused(|job| job.goals.push((5, 1, 9)), "goal set 9");
    refused(|job| job.sets[0].copies = 2, "would keep 1 copies");
    refused(|job| job.sets[0].copies = 0, "keeps no copy");
    refused(|job| job.sets[0].add.clear(), "would keep 0 copies");
    refused(|job| job.sets[0].remove.push(node(1)), "wants and forbids");
    refused(|job| job.sets[0].add.push(node(1)), "twice");
    refused(|job| job.limits.rate_bytes_per_s = Some(0), "pause the job");
    refused(|job| job.format = 2, "format 2");
}

#[test]
fn the_smaller_budget_holds() {
    let protect = |max, percent, base| Protect {
        p99_us_max: max,
        over_base_percent: percent,
        base_us: base,
    };
    assert_eq!(protect(Some(3000), None, None).budget_us(None), Some(3000));
    assert_eq!(protect(None, Some(20), None).budget_us(None), None);
    assert_eq!(
        protect(None, Some(20), None).budget_us(Some(1000)),
        Some(1200)
    );
    assert_eq!(
        protect(Some(3000), Some(20), Some(2000)).budget_us(Some(9)),
        Some(2400)
    );
    assert_eq!(
        protect(Some(2000), Some(50), Some(2000)).budget_us(None),
        Some(2000)
    );
}

const FAULTS: [CommitFault; 2] = [CommitFault::UnknownLanded, CommitFault::UnknownLost];

#[test]
fn one_job_at_a_time() {
    for fault in FAULTS {
        let store = MemoryCluster::new().session();
        let (_, job) = plain();
        let missing = catalog::create_job(&store, &job);
        assert_eq!(missing, Err(CatalogError::NoVolume("v".into())));
        let map = catalog::create_volume(&store, &new_volume()).unwrap();
        store.inject(fault);
        let version = catalog::create_job(&store, &job).unwrap();
        let volume = map.head.volume;
        assert_eq!(
            catalog::job(&store, volume),
            Ok(Some((job.clone(), version)))
        );
        // The same again is the same; another one has to wait.
        assert_eq!(catalog::create_job(&store, &job), Ok(version));
        let mut other = job.clone();
        other.asked = "relocate v --to-site b".into();
        let refused = catalog::create_job(&store, &other);
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("job cancel v"), "{text}");
        assert_eq!(
            catalog::list_jobs(&store).unwrap(),
            std::slice::from_ref(&job)
        );
        // Its front ends it, if nobody steered it meanwhile.
        let mut done = job.clone();
        done.state = JobState::Done;
        done.ended_unix_s = Some(1_700_000_100);
        store.inject(fault);
        let paused = catalog::update_job(&store, volume, "v", JobRecord::pause).unwrap();
        assert_eq!(paused.state, JobState::Paused);
        let head = map.head_version();
        let guard = |job| catalog::JobGuard { job, head };
        let late = catalog::store_job(&store, &done, guard(version));
        assert!(
            matches!(late, Err(CommitError::Conflict { .. })),
            "{late:?}"
        );
        let (_, version) = catalog::job(&store, volume).unwrap().unwrap();
        // Nor if the map is not the one by which it judged.
        let moved = tr::add_location(&map, one_chunk(ChunkIndex(0)), node(3)).unwrap();
        let map = catalog::commit_update(&store, moved).unwrap();
        let blind = catalog::store_job(&store, &done, guard(version));
        assert!(
            matches!(blind, Err(CommitError::Conflict { .. })),
            "{blind:?}"
        );
        let head = map.head_version();
        let guard = catalog::JobGuard { job: version, head };
        catalog::store_job(&store, &done, guard).unwrap();
        let steered = catalog::update_job(&store, volume, "v", JobRecord::cancel);
        let text = steered.unwrap_err().to_string();
        assert!(text.contains("it is done"), "{text}");
        catalog::create_job(&store, &other).unwrap();
        // A volume takes its job with it.
        let update = tr::begin_delete(&map).unwrap();
        catalog::commit_update(&store, update).unwrap();
        let deleting = catalog::create_job(&store, &job);
        assert_eq!(deleting, Err(CatalogError::Deleting(volume)));
        catalog::delete_volume(&store, volume).unwrap();
        assert_eq!(catalog::job(&store, volume), Ok(None));
        let gone = catalog::update_job(&store, volume, "v", JobRecord::pause);
        assert_eq!(gone, Err(CatalogError::NoJob("v".into())));
    }
}

#[test]
fn steering_a_job() {
    let (_, mut job) = plain();
    assert_eq!(job.resume(), Ok(false));
    assert_eq!(job.pause(), Ok(true));
    assert_eq!(job.pause(), Ok(false));
    assert_eq!(job.resume(), Ok(true));
    job.state = JobState::Failed { why: "x".into() };
    job.ended_unix_s = Some(1);
    assert_eq!(job.resume(), Ok(true));
    assert_eq!(job.ended_unix_s, None);
    assert_eq!(job.cancel(), Ok(true));
    assert_eq!(job.cancel(), Ok(false));
    assert!(job.pause().is_err() && job.resume().is_err());
}

#[test]
fn a_watch_tells_of_the_job() {
    let cluster = MemoryCluster::new();
    let (front, tools) = (cluster.session(), cluster.session());
    let (_, job) = plain();
    catalog::create_volume(&tools, &new_volume()).unwrap();
    let mut watch = catalog::watch_job(&front, job.volume).unwrap();
    catalog::create_job(&tools, &job).unwrap();
    assert_eq!(watch.wait(Duration::from_secs(20)), Ok(true));
    catalog::update_job(&tools, job.volume, "v", JobRecord::pause).unwrap();
    assert_eq!(watch.wait(Duration::from_secs(20)), Ok(true));
}

/// Written by this release, to be read by all later ones.
#[test]
fn the_record_stays_readable() {
    let text = include_str!("golden/job-v1.json");
    let (_, mut job) = plain();
    job.limits = JobLimits {
        rate_bytes_per_s: Some(200 << 20),
        protect: Some(Protect {
            p99_us_max: Some(3000),
            over_base_percent: Some(20),
            base_us: None,
        }),
        deadline_unix_s: None,
        detach_old_after_s: 600,
    };
    job.state = JobState::Failed {
        why: "a node is gone".into(),
    };
    assert_eq!(serde_json::from_str::<JobRecord>(text).unwrap(), job);
    let written: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_value(&job).unwrap(), written);
}
