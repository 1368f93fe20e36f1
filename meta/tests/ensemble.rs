//! Three real ZooKeeper servers, and the leader is killed while commits are on their way.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use support::{Backend, Zookeeper};
use ukai_meta::transition::{self as tr, NewVolume};
use ukai_meta::{
    CommitError, Durability, KvVersion, MetaError, MetaStore, PlaceRule, Write, catalog,
};
use ukai_proto::{NodeId, VolumeId};

const WRITERS: usize = 4;
/// Commits that must be answered before each kill, and after the last one.
const BETWEEN_KILLS: usize = 60;
const KILLS: usize = 2;

/// One writer counts up in its key, and leaves a mark for each number.
struct Writer {
    store: Box<dyn MetaStore>,
    id: usize,
    n: usize,
    version: KvVersion,
    /// Numbers whose commit was answered with Ok.
    answered: Vec<usize>,
    unknown: usize,
}

impl Writer {
    fn key(&self) -> String {
        format!("count/{}", self.id)
    }

    fn mark(id: usize, n: usize) -> String {
        format!("marks/{id}-{n}")
    }

    fn start(store: Box<dyn MetaStore>, id: usize) -> Self {
        let create = Write::Create {
            key: format!("count/{id}"),
            bytes: b"0".to_vec(),
            ephemeral: false,
        };
        let version = store.commit(&[create]).unwrap()[0];
        Self {
            store,
            id,
            n: 0,
            version,
            answered: Vec::new(),
            unknown: 0,
        }
    }

    /// Commits the next number, through whatever happens.
    fn step(&mut self) {
        let next = self.n + 1;
        let writes = [
            Write::Set {
                key: self.key(),
                bytes: next.to_string().into_bytes(),
                expected: self.version,
            },
            Write::Create {
                key: Self::mark(self.id, next),
                bytes: Vec::new(),
                ephemeral: false,
            },
        ];
        match self.store.commit(&writes) {
            Ok(versions) => {
                self.answered.push(next);
                (self.n, self.version) = (next, versions[0]);
            }
            // A conflict can only come from an own commit that was given up as unknown and landed
            // after the re-read: the same question, the same answer.
            Err(CommitError::Unknown | CommitError::Conflict { .. }) => {
                self.unknown += 1;
                self.reread(next);
            }
            Err(CommitError::Store(MetaError::Unavailable(_))) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn reread(&mut self, attempted: usize) {
        loop {
            match self.store.get(&self.key()) {
                Ok(value) => {
                    let value = value.expect("the key was committed");
                    let n: usize = String::from_utf8(value.bytes).unwrap().parse().unwrap();
                    assert!(n == self.n || n == attempted, "{n} after {}", self.n);
                    (self.n, self.version) = (n, value.version);
                    return;
                }
                Err(MetaError::Unavailable(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn killing_the_leader_loses_no_answered_commit() {
    let zookeeper = Zookeeper::start(3);
    let total = AtomicUsize::new(0);
    let phase = AtomicUsize::new(0);
    let (progress, reached) = mpsc::channel();
    let store = zookeeper.open();
    let mut watch = store.watch("count/0").unwrap();
    let writers: Vec<Writer> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..WRITERS)
            .map(|id| {
                let mut writer = Writer::start(zookeeper.open(), id);
                let (total, phase, progress) = (&total, &phase, progress.clone());
                scope.spawn(move || {
                    while phase.load(Ordering::Acquire) <= KILLS {
                        let before = writer.answered.len();
                        writer.step();
                        if writer.answered.len() > before
                            && (total.fetch_add(1, Ordering::AcqRel) + 1)
                                .is_multiple_of(BETWEEN_KILLS)
                        {
                            progress.send(()).unwrap();
                        }
                    }
                    writer
                })
            })
            .collect();
        for _ in 0..KILLS {
            reached.recv().unwrap();
            // Right into the stream of commits.
            let leader = zookeeper.script("leader", &[]);
            zookeeper.script("kill", &[&leader]);
            // What was on its way may still be answered by the old leader's followers; what
            // comes after that needs the new one.
            for _ in 0..2 {
                reached.recv().unwrap();
            }
            zookeeper.script("run", &[&leader]);
            zookeeper.script("wait", &[]);
            phase.fetch_add(1, Ordering::AcqRel);
        }
        reached.recv().unwrap();
        phase.fetch_add(1, Ordering::AcqRel);
        running
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect()
    });
    // A session that saw none of it looks.
    let fresh = zookeeper.open();
    let marks = fresh.list("marks").unwrap();
    for writer in &writers {
        assert!(writer.answered.len() > 5, "writer {} starved", writer.id);
        for n in &writer.answered {
            let mark = format!("{}-{n}", writer.id);
            assert!(
                marks.contains(&mark),
                "commit {mark} was answered and is lost"
            );
        }
        let value = fresh.get(&writer.key()).unwrap().unwrap();
        assert_eq!(value.bytes, writer.n.to_string().into_bytes());
        assert_eq!(value.version, writer.version);
        // Each number once and in order, whether answered or found out later.
        let own = marks
            .iter()
            .filter(|m| m.starts_with(&format!("{}-", writer.id)));
        assert_eq!(own.count(), writer.n);
    }
    let unknown: usize = writers.iter().map(|writer| writer.unknown).sum();
    println!("{} commits, {unknown} of unknown outcome", marks.len());
    // The sessions survived both elections, and the watch with them.
    store.renew().unwrap();
    assert!(watch.wait(Duration::from_secs(20)).unwrap());
}

/// The typed layer on top of it: a configuration change during the loss of the leader is settled.
#[test]
fn a_transition_during_an_election_is_settled() {
    let zookeeper = Zookeeper::start(3);
    let store = zookeeper.open();
    let node = |n: u8| NodeId([n; 16]);
    let new = NewVolume {
        volume: VolumeId([1; 16]),
        name: "v".into(),
        size_bytes: 1 << 30,
        chunk_bytes: 1 << 20,
        durability: Durability::Cache,
        place: vec![PlaceRule {
            site: "a".into(),
            copies: 2,
        }],
        nodes: vec![vec![node(1), node(2)]],
    };
    let mut map = catalog::create_volume(&*store, &new).unwrap();
    let leader = zookeeper.script("leader", &[]);
    zookeeper.script("kill", &[&leader]);
    let mut changes = 0;
    // Stale, rejoining, whole, and again, while the servers elect a new leader.
    while changes < 12 {
        let update = match map.health(node(2)) {
            None => tr::mark_stale(&map, &[node(2)]),
            Some(ukai_meta::NodeHealth::Stale { .. }) => tr::begin_rejoin(&map, node(2)),
            Some(_) => tr::finish_rejoin(&map, node(2)),
        }
        .unwrap();
        let attempted = update.next.clone();
        match catalog::commit_update(&*store, update) {
            Ok(next) => {
                map = next;
                changes += 1;
            }
            Err(CommitError::Unknown | CommitError::Conflict { .. }) => {
                match catalog::settle_unknown(&*store, &attempted) {
                    Ok(catalog::Settled::Landed(now)) => {
                        map = *now;
                        changes += 1;
                    }
                    Ok(catalog::Settled::Other(now)) => map = *now,
                    Err(catalog::CatalogError::Store(MetaError::Unavailable(_))) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            Err(CommitError::Store(MetaError::Unavailable(_))) => {}
            Err(other) => panic!("{other}"),
        }
    }
    let fresh = zookeeper.open();
    assert_eq!(catalog::load_volume(&*fresh, map.head.volume).unwrap(), map);
    assert_eq!(map.head.generation.0, 1 + changes);
}
