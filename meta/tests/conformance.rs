//! One suite for all backends of the metadata store. The real ZooKeeper server is started by
//! `ci/zk/zk.sh`, or is the one that `UKAI_TEST_ZK=host:port` names.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

mod support;

use std::time::{Duration, Instant};
use support::Backend;
use ukai_meta::catalog;
use ukai_meta::job::{GOALS_MAX, GoalSet, JOB_FORMAT, JobLimits, JobRecord, JobState};
use ukai_meta::store::{TXN_BYTES_MAX, TXN_WRITES_MAX, VALUE_BYTES_MAX};
use ukai_meta::transition::{self, NewVolume, one_chunk};
use ukai_meta::{CommitError, Durability, KvVersion, MetaError, MetaStore, PlaceRule, Write};
use ukai_proto::{ChunkIndex, NodeId, VolumeId};

/// Long enough for a busy machine; only a failing test waits for it.
const SOON: Duration = Duration::from_secs(20);

fn create(key: &str, bytes: &[u8]) -> Write {
    Write::Create {
        key: key.into(),
        bytes: bytes.into(),
        ephemeral: false,
    }
}

fn ephemeral(key: &str, bytes: &[u8]) -> Write {
    Write::Create {
        key: key.into(),
        bytes: bytes.into(),
        ephemeral: true,
    }
}

fn set(key: &str, bytes: &[u8], expected: KvVersion) -> Write {
    Write::Set {
        key: key.into(),
        bytes: bytes.into(),
        expected,
    }
}

fn delete(key: &str, expected: KvVersion) -> Write {
    Write::Delete {
        key: key.into(),
        expected,
    }
}

fn check(key: &str, expected: KvVersion) -> Write {
    Write::Check {
        key: key.into(),
        expected,
    }
}

fn bytes(store: &dyn MetaStore, key: &str) -> Option<Vec<u8>> {
    store.get(key).unwrap().map(|value| value.bytes)
}

fn conflict(result: Result<Vec<KvVersion>, CommitError>, expected: &str) {
    match result {
        Err(CommitError::Conflict { key }) => assert_eq!(key, expected),
        other => panic!("a conflict on {expected} was expected: {other:?}"),
    }
}

/// Waits for something that another session does, without a limit that a slow machine could break.
#[allow(clippy::disallowed_methods)] // a test that watches a real server
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < SOON, "{what} did not happen");
        std::thread::yield_now();
    }
}

fn reads_what_was_written(backend: &dyn Backend) {
    let store = backend.open();
    assert_eq!(store.get("a/b").unwrap(), None);
    assert_eq!(store.list("a").unwrap(), Vec::<String>::new());
    let first = store.commit(&[create("a/b", b"one")]).unwrap()[0];
    let value = store.get("a/b").unwrap().unwrap();
    assert_eq!(
        (value.bytes.as_slice(), value.version),
        (&b"one"[..], first)
    );
    let second = store.commit(&[set("a/b", b"two", first)]).unwrap()[0];
    assert!(second > first);
    // What one session committed, another reads at once.
    let other = backend.open();
    let value = other.get("a/b").unwrap().unwrap();
    assert_eq!(
        (value.bytes.as_slice(), value.version),
        (&b"two"[..], second)
    );
    // A parent is no key, an empty value is one.
    assert_eq!(other.get("a").unwrap(), None);
    store.commit(&[create("a/empty", b"")]).unwrap();
    assert_eq!(bytes(&*other, "a/empty"), Some(Vec::new()));
    store.commit(&[delete("a/b", second)]).unwrap();
    assert_eq!(other.get("a/b").unwrap(), None);
    store.commit(&[create("a/b", b"again")]).unwrap();
    assert_eq!(bytes(&*other, "a/b"), Some(b"again".to_vec()));
}

fn lists_direct_children_sorted(backend: &dyn Backend) {
    let store = backend.open();
    for key in ["l/c", "l/a/x", "l/a/y", "l/b/deep/er", "la", "k/z"] {
        store.commit(&[create(key, b"")]).unwrap();
    }
    assert_eq!(store.list("l").unwrap(), ["a", "b", "c"]);
    assert_eq!(store.list("l/a").unwrap(), ["x", "y"]);
    assert_eq!(store.list("l/b").unwrap(), ["deep"]);
    assert!(store.list("nothing/here").unwrap().is_empty());
    // The last child takes its parents with it.
    let version = store.get("l/b/deep/er").unwrap().unwrap().version;
    store.commit(&[delete("l/b/deep/er", version)]).unwrap();
    assert_eq!(store.list("l").unwrap(), ["a", "c"]);
}

fn a_conflict_rolls_everything_back(backend: &dyn Backend) {
    let store = backend.open();
    let versions = store
        .commit(&[
            create("t/a", b"1"),
            create("t/b", b"1"),
            create("t/c", b"1"),
        ])
        .unwrap();
    let (a, b, c) = (versions[0], versions[1], versions[2]);
    store.commit(&[set("t/b", b"2", b)]).unwrap();
    let members = [
        (check("t/b", b), "t/b"),
        (set("t/b", b"9", b), "t/b"),
        (delete("t/b", b), "t/b"),
        (create("t/b", b"9"), "t/b"),
        (check("t/none", a), "t/none"),
        (set("t/none", b"9", a), "t/none"),
        (delete("t/none", a), "t/none"),
        (set("t/a", b"9", KvVersion(-1)), "t/a"),
        (check("t/a", KvVersion(i64::MAX)), "t/a"),
    ];
    for (bad, key) in members {
        let writes = [
            set("t/c", b"9", c),
            create("t/new/deep", b"9"),
            bad,
            create("t/new/other", b"9"),
        ];
        conflict(store.commit(&writes), key);
        assert_eq!(bytes(&*store, "t/a"), Some(b"1".to_vec()));
        assert_eq!(bytes(&*store, "t/b"), Some(b"2".to_vec()));
        assert_eq!(bytes(&*store, "t/c"), Some(b"1".to_vec()));
        assert_eq!(store.get("t/c").unwrap().unwrap().version, c);
        assert_eq!(store.get("t/new/deep").unwrap(), None);
    }
}

fn members_see_the_ones_before_them(backend: &dyn Backend) {
    let store = backend.open();
    let first = store.commit(&[create("m/a", b"1")]).unwrap()[0];
    let versions = store
        .commit(&[
            delete("m/a", first),
            create("m/a", b"2"),
            create("m/b", b"3"),
        ])
        .unwrap();
    assert_eq!(bytes(&*store, "m/a"), Some(b"2".to_vec()));
    let now = store.get("m/a").unwrap().unwrap().version;
    assert_eq!(now, versions[1]);
    conflict(
        store.commit(&[create("m/x", b""), create("m/x", b"")]),
        "m/x",
    );
    assert_eq!(store.get("m/x").unwrap(), None);
    // A check alone changes nothing.
    assert_eq!(store.commit(&[check("m/a", now)]).unwrap(), [now]);
    assert_eq!(store.get("m/a").unwrap().unwrap().version, now);
}

fn limits_are_kept_before_anything_is_sent(backend: &dyn Backend) {
    let store = backend.open();
    let refused = |writes: &[Write]| {
        let result = store.commit(writes);
        assert!(
            matches!(result, Err(CommitError::TooLarge(_))),
            "{result:?}"
        );
    };
    refused(&[]);
    refused(&[create("s/a", &vec![1; VALUE_BYTES_MAX + 1])]);
    let third = vec![1; TXN_BYTES_MAX / 3 + 1];
    refused(&[
        create("s/a", &third),
        create("s/b", &third),
        create("s/c", &third),
    ]);
    let many = |n: usize| -> Vec<Write> {
        (0..n)
            .map(|n| create(&format!("s/many/{n}"), b"x"))
            .collect()
    };
    refused(&many(TXN_WRITES_MAX + 1));
    for bad in [
        "", "/s", "s/", "s//a", "s/./a", "s/../a", "s/a b", "s/\u{e9}",
    ] {
        refused(&[create(bad, b"")]);
    }
    assert!(store.list("s").unwrap().is_empty());
    // What is within them works, and the session is as good as before.
    let half = vec![7; TXN_BYTES_MAX / 2];
    store
        .commit(&[create("s/a", &half), create("s/b", &half)])
        .unwrap();
    store
        .commit(&[create("s/max", &vec![8; VALUE_BYTES_MAX])])
        .unwrap();
    store.commit(&many(TXN_WRITES_MAX)).unwrap();
    assert_eq!(store.list("s/many").unwrap().len(), TXN_WRITES_MAX);
    assert_eq!(bytes(&*store, "s/a"), Some(half));
    assert_eq!(bytes(&*store, "s/max").unwrap().len(), VALUE_BYTES_MAX);
}

fn ephemeral_keys_vanish_with_their_session(backend: &dyn Backend) {
    let observer = backend.open();
    let mut watch = observer.watch("live/n").unwrap();
    let holder = backend.open();
    holder
        .commit(&[ephemeral("live/n", b"1"), create("stays", b"2")])
        .unwrap();
    let version = observer.get("live/n").unwrap().unwrap().version;
    // Another session may change and delete it, and it stays the first one's.
    observer.commit(&[set("live/n", b"3", version)]).unwrap();
    conflict(observer.commit(&[create("live/n", b"4")]), "live/n");
    holder.renew().unwrap();
    assert!(holder.lease() >= Duration::from_secs(1));
    assert_eq!(observer.list("live").unwrap(), ["n"]);
    assert!(watch.wait(SOON).unwrap());
    drop(holder);
    eventually("the end of the session", || {
        observer.get("live/n").unwrap().is_none()
    });
    assert!(watch.wait(SOON).unwrap());
    assert!(observer.list("live").unwrap().is_empty());
    assert_eq!(bytes(&*observer, "stays"), Some(b"2".to_vec()));
    // The name is free for the next one.
    observer.commit(&[ephemeral("live/n", b"5")]).unwrap();
}

fn watches_fire_on_every_kind_of_change(backend: &dyn Backend) {
    let store = backend.open();
    let watcher = backend.open();
    let mut watch = watcher.watch("w/key").unwrap();
    let mut version = store.commit(&[create("w/key", b"1")]).unwrap()[0];
    assert!(watch.wait(SOON).unwrap(), "creation");
    for n in 0..3 {
        version = store.commit(&[set("w/key", &[n], version)]).unwrap()[0];
        assert!(watch.wait(SOON).unwrap(), "change {n}");
    }
    // Several changes may come as one.
    for n in 0..10 {
        version = store.commit(&[set("w/key", &[n], version)]).unwrap()[0];
    }
    assert!(watch.wait(SOON).unwrap());
    store.commit(&[delete("w/key", version)]).unwrap();
    let mut gone = false;
    while !gone {
        assert!(watch.wait(SOON).unwrap(), "deletion");
        gone = watcher.get("w/key").unwrap().is_none();
    }
    store.commit(&[create("w/other", b"")]).unwrap();
    // Late events of the key itself may still come, then nothing.
    while watch.wait(Duration::from_millis(100)).unwrap() {}
    // One's own changes count, too.
    watcher.commit(&[create("w/key", b"2")]).unwrap();
    assert!(watch.wait(SOON).unwrap(), "own change");
}

/// Many sessions add to one counter; every answered commit counts once.
fn racing_sessions_lose_nothing(backend: &dyn Backend) {
    const SESSIONS: usize = 4;
    const EACH: usize = 15;
    backend.open().commit(&[create("race/n", b"0")]).unwrap();
    let number = |store: &dyn MetaStore| {
        let value = store.get("race/n").unwrap().unwrap();
        let n: usize = String::from_utf8(value.bytes).unwrap().parse().unwrap();
        (n, value.version)
    };
    let conflicts: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..SESSIONS)
            .map(|racer| {
                let store = backend.open();
                scope.spawn(move || {
                    let (mut done, mut conflicts) = (0, 0);
                    while done < EACH {
                        let (n, version) = number(&*store);
                        let next = (n + 1).to_string();
                        let mark = format!("race/{racer}-{done}");
                        let writes = [set("race/n", next.as_bytes(), version), create(&mark, b"")];
                        match store.commit(&writes) {
                            Ok(_) => done += 1,
                            Err(CommitError::Conflict { .. }) => conflicts += 1,
                            Err(other) => panic!("{other}"),
                        }
                    }
                    conflicts
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    let store = backend.open();
    assert_eq!(number(&*store).0, SESSIONS * EACH, "{conflicts} conflicts");
    assert_eq!(store.list("race").unwrap().len(), SESSIONS * EACH + 1);
}

fn jobs_are_kept_and_watched(backend: &dyn Backend) {
    let (tools, front) = (backend.open(), backend.open());
    let volume = VolumeId([9; 16]);
    let node = |n: u8| NodeId([n; 16]);
    let new = NewVolume {
        volume,
        name: "jobs".into(),
        size_bytes: 1 << 30,
        chunk_bytes: 1 << 20,
        durability: Durability::Cache,
        place: vec![PlaceRule {
            site: "a".into(),
            copies: 1,
        }],
        nodes: vec![vec![node(1)]],
    };
    catalog::create_volume(&*tools, &new).unwrap();
    // As large as a job may be.
    let count = u32::try_from(GOALS_MAX).unwrap();
    let set = GoalSet {
        add: vec![node(2)],
        remove: vec![node(1)],
        copies: 1,
    };
    let job = JobRecord {
        format: JOB_FORMAT,
        volume,
        name: "jobs".into(),
        created_unix_s: 1,
        asked: String::new(),
        state: JobState::Running,
        copied_unix_s: None,
        ended_unix_s: None,
        limits: JobLimits::default(),
        sets: vec![set],
        goals: (0..count).map(|n| (4_000_000 + n, 1, 0)).collect(),
        prediction: None,
        score: None,
    };
    let mut watch = catalog::watch_job(&*front, volume).unwrap();
    let version = catalog::create_job(&*tools, &job).unwrap();
    assert_eq!(watch.wait(SOON), Ok(true));
    assert_eq!(
        catalog::job(&*front, volume),
        Ok(Some((job.clone(), version)))
    );
    catalog::update_job(&*tools, volume, "jobs", JobRecord::pause).unwrap();
    let head = catalog::load_volume(&*front, volume)
        .unwrap()
        .head_version();
    let guard = |job| catalog::JobGuard { job, head };
    let late = catalog::store_job(&*front, &job, guard(version));
    assert!(
        matches!(late, Err(CommitError::Conflict { .. })),
        "{late:?}"
    );
    let (_, version) = catalog::job(&*front, volume).unwrap().unwrap();
    let version = catalog::store_job(&*front, &job, guard(version)).unwrap();
    // Judged by a map that is another one by now.
    let map = catalog::load_volume(&*tools, volume).unwrap();
    let moved = transition::add_location(&map, one_chunk(ChunkIndex(0)), node(2)).unwrap();
    catalog::commit_update(&*tools, moved).unwrap();
    let blind = catalog::store_job(&*front, &job, guard(version));
    assert!(
        matches!(blind, Err(CommitError::Conflict { .. })),
        "{blind:?}"
    );
    assert_eq!(catalog::list_jobs(&*tools).unwrap().len(), 1);
}

fn the_whole_suite(backend: &dyn Backend) {
    jobs_are_kept_and_watched(backend);
    reads_what_was_written(backend);
    lists_direct_children_sorted(backend);
    a_conflict_rolls_everything_back(backend);
    members_see_the_ones_before_them(backend);
    limits_are_kept_before_anything_is_sent(backend);
    ephemeral_keys_vanish_with_their_session(backend);
    watches_fire_on_every_kind_of_change(backend);
    racing_sessions_lose_nothing(backend);
}

#[test]
fn memory_conforms() {
    the_whole_suite(&support::Memory::default());
}

#[test]
fn sqlite_conforms() {
    the_whole_suite(&support::Sqlite::new());
}

#[test]
fn zookeeper_conforms() {
    the_whole_suite(&support::Zookeeper::start(1));
}

#[test]
fn zookeeper_says_what_to_do_when_no_server_answers() {
    // Nothing listens on the discard port of loopback.
    let url = "zk:127.0.0.1:9".parse().unwrap();
    match ukai_meta::open(&url) {
        Err(MetaError::Unavailable(text)) => {
            assert!(text.contains("check that they run"), "{text}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("there is no server"),
    }
}

#[test]
fn sqlite_says_what_is_wrong_with_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |name: &str, expected: &str| {
        let url = ukai_meta::MetaUrl::Sqlite(dir.path().join(name));
        match ukai_meta::open(&url).map(|_| ()) {
            Err(MetaError::Backend(text)) => assert!(text.contains(expected), "{text}"),
            other => panic!("{other:?}"),
        }
    };
    fails("no/such/directory.db", "directory must exist");
    std::fs::write(
        dir.path().join("text"),
        "not a database at all, ".repeat(100),
    )
    .unwrap();
    fails("text", "of a UKAI metadata file");
    let foreign = rusqlite_file(&dir.path().join("foreign.db"));
    assert!(foreign.exists());
    fails("foreign.db", "another program");
}

fn rusqlite_file(path: &std::path::Path) -> std::path::PathBuf {
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch("CREATE TABLE other (x)").unwrap();
    path.to_owned()
}
