//! The typed layer: names, nodes, volumes; with lost answers, damage and interruption.
#![allow(clippy::unwrap_used)] // a test fails by panicking, in its helpers as well

use std::time::Duration;
use ukai_meta::catalog::{self, CatalogError, Settled};
use ukai_meta::memory::{CommitFault, MemoryCluster};
use ukai_meta::transition::{self as tr, NewVolume};
use ukai_meta::{
    Attach, CommitError, Durability, FrontRecord, MetaError, MetaStore, NodeLive, NodeRecord,
    PlaceRule, TransitionError, VolumeMap, Write, key,
};
use ukai_proto::{BootId, ChunkIndex, ClusterId, Incarnation, NodeId, VolumeId};

fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn record(n: u8, name: &str) -> NodeRecord {
    NodeRecord {
        node: id(n),
        name: name.into(),
        site: "a".into(),
        labels: vec!["rack=1".into()],
        shard_count: 1,
        shard_addresses: vec![vec!["tcp:127.0.0.1:1".into()]],
        host: "h".into(),
        capacity_bytes: 1 << 40,
        draining: false,
    }
}

fn live(boot: u8, start: u64) -> NodeLive {
    NodeLive {
        incarnation: Incarnation {
            boot: BootId([boot; 16]),
            start,
        },
        used_bytes: 0,
    }
}

fn volume(n: u8, name: &str) -> NewVolume {
    NewVolume {
        volume: VolumeId([n; 16]),
        name: name.into(),
        size_bytes: 1 << 30,
        chunk_bytes: 1 << 20,
        durability: Durability::Cache,
        place: vec![PlaceRule {
            site: "a".into(),
            copies: 2,
        }],
        nodes: vec![vec![id(1), id(2)]],
    }
}

fn attach(front: u8) -> Attach {
    Attach {
        host: "hv".into(),
        boot: BootId([3; 16]),
        front: [front; 16],
    }
}

const FAULTS: [CommitFault; 2] = [CommitFault::UnknownLanded, CommitFault::UnknownLost];

#[test]
fn a_cluster_is_made_once() {
    let cluster = MemoryCluster::new();
    let (a, b) = (cluster.session(), cluster.session());
    assert_eq!(catalog::cluster(&a), Err(CatalogError::NoCluster));
    let text = CatalogError::NoCluster.to_string();
    assert!(text.contains("cluster init"), "{text}");
    a.inject(CommitFault::UnknownLanded);
    let first = catalog::init_cluster(&a, ClusterId([1; 16])).unwrap();
    let second = catalog::init_cluster(&b, ClusterId([2; 16])).unwrap();
    assert_eq!(first.cluster, ClusterId([1; 16]));
    assert_eq!(second, first);
    assert_eq!(catalog::cluster(&b), Ok(first));
}

#[test]
fn two_nodes_with_one_uuid_or_one_name_are_refused() {
    let cluster = MemoryCluster::new();
    let (a, b) = (cluster.session(), cluster.session());
    catalog::register_node(&a, &record(1, "n0"), &live(1, 1)).unwrap();
    // Another daemon with a copy of the superblock.
    let error = catalog::register_node(&b, &record(1, "n0"), &live(2, 1)).unwrap_err();
    assert!(matches!(error, CatalogError::AlreadyLive { .. }));
    assert!(error.to_string().contains("same uuid"), "{error}");
    let error = catalog::register_node(&b, &record(2, "n0"), &live(1, 1)).unwrap_err();
    assert_eq!(
        error,
        CatalogError::NodeNameTaken {
            name: "n0".into(),
            by: id(1)
        }
    );
    for bad in ["", "a/b", "..", "a b", &"x".repeat(65)] {
        let error = catalog::register_node(&b, &record(2, bad), &live(1, 1)).unwrap_err();
        assert!(matches!(error, CatalogError::BadName { .. }));
    }
    assert_eq!(catalog::list_nodes(&b).unwrap().len(), 1);
    // After the first one's end its next run may come, under another name as well.
    drop(a);
    catalog::register_node(&b, &record(1, "n1"), &live(2, 2)).unwrap();
    assert!(catalog::node_by_name(&b, "n0").unwrap().is_none());
    let node = catalog::node_by_name(&b, "n1").unwrap().unwrap();
    assert_eq!(node.live, Some(live(2, 2)));
    let c = cluster.session();
    catalog::register_node(&c, &record(2, "n0"), &live(1, 1)).unwrap();
    let names: Vec<_> = catalog::list_nodes(&c)
        .unwrap()
        .into_iter()
        .map(|node| node.record.name)
        .collect();
    assert_eq!(names, ["n0", "n1"]);
}

#[test]
fn registration_survives_lost_answers_and_expiry() {
    for fault in FAULTS {
        let cluster = MemoryCluster::new();
        let store = cluster.session();
        store.inject(fault);
        catalog::register_node(&store, &record(1, "n0"), &live(1, 1)).unwrap();
        assert_eq!(
            catalog::node(&store, id(1)).unwrap().unwrap().live,
            Some(live(1, 1))
        );
        catalog::set_draining(&store, id(1), true).unwrap();
        store.inject(fault);
        let used = NodeLive {
            used_bytes: 5,
            ..live(1, 1)
        };
        catalog::update_live(&store, id(1), &used).unwrap();
        // The session ends: every call says so, and a new session registers again.
        store.expire();
        assert_eq!(store.renew(), Err(MetaError::SessionExpired));
        let error = catalog::register_node(&store, &record(1, "n0"), &live(1, 1)).unwrap_err();
        assert_eq!(error, CatalogError::Store(MetaError::SessionExpired));
        let again = cluster.session();
        assert_eq!(catalog::node(&again, id(1)).unwrap().unwrap().live, None);
        catalog::register_node(&again, &record(1, "n0"), &live(1, 1)).unwrap();
        let node = catalog::node(&again, id(1)).unwrap().unwrap();
        assert!(node.record.draining, "the administrator's mark is kept");
        assert_eq!(node.live, Some(live(1, 1)));
        again.inject(fault);
        catalog::deregister_live(&again, id(1), &live(1, 1)).unwrap();
        assert_eq!(catalog::node(&again, id(1)).unwrap().unwrap().live, None);
    }
}

#[test]
fn an_older_copy_of_a_node_is_refused() {
    for fault in FAULTS.map(Some).into_iter().chain([None]) {
        let cluster = MemoryCluster::new();
        let store = cluster.session();
        assert_eq!(catalog::check_start(&store, id(1), 0), Ok(()));
        catalog::register_node(&store, &record(1, "n0"), &live(1, 5)).unwrap();
        assert_eq!(catalog::check_start(&store, id(1), 5), Ok(()));
        let error = catalog::check_start(&store, id(1), 4).unwrap_err();
        let text = error.to_string();
        for words in ["older copy", "n0", "node forget", "format --force"] {
            assert!(text.contains(words), "{text}");
        }
        catalog::deregister_live(&store, id(1), &live(1, 5)).unwrap();
        if let Some(fault) = fault {
            store.inject(fault);
        }
        catalog::raise_start(&store, id(1), 6).unwrap();
        catalog::raise_start(&store, id(1), 3).unwrap();
        catalog::set_draining(&store, id(1), true).unwrap();
        // One that was started from a copy of run 5, at the same time as another.
        let error = catalog::register_node(&store, &record(1, "n0"), &live(2, 5)).unwrap_err();
        assert!(matches!(
            error,
            CatalogError::OlderCopy {
                known: 6,
                start: 5,
                ..
            }
        ));
        assert_eq!(catalog::node(&store, id(1)).unwrap().unwrap().live, None);
        catalog::register_node(&store, &record(1, "n0"), &live(2, 7)).unwrap();
    }
}

#[test]
fn a_forgotten_node_frees_its_name_and_never_comes_back() {
    for fault in FAULTS.map(Some).into_iter().chain([None]) {
        let cluster = MemoryCluster::new();
        let store = cluster.session();
        let error = catalog::forget_node(&store, id(1)).unwrap_err();
        assert!(matches!(error, CatalogError::NoNode(_)));
        catalog::register_node(&store, &record(1, "n0"), &live(1, 1)).unwrap();
        let error = catalog::forget_node(&store, id(1)).unwrap_err();
        assert!(matches!(error, CatalogError::AlreadyLive { .. }));
        catalog::deregister_live(&store, id(1), &live(1, 1)).unwrap();
        if let Some(fault) = fault {
            store.inject(fault);
        }
        catalog::forget_node(&store, id(1)).unwrap();
        assert_eq!(catalog::list_nodes(&store), Ok(Vec::new()));
        let error = catalog::check_start(&store, id(1), 9).unwrap_err();
        assert!(error.to_string().contains("format --force"), "{error}");
        let error = catalog::register_node(&store, &record(1, "n0"), &live(1, 9)).unwrap_err();
        assert!(matches!(error, CatalogError::Forgotten { .. }));
        catalog::register_node(&store, &record(2, "n0"), &live(1, 1)).unwrap();
    }
}

#[test]
fn the_same_run_takes_its_own_lease_over() {
    let cluster = MemoryCluster::new();
    // The old session is not over for the servers yet; the daemon has opened a new one.
    let (old, new) = (cluster.session(), cluster.session());
    catalog::register_node(&old, &record(1, "n0"), &live(1, 1)).unwrap();
    catalog::register_node(&new, &record(1, "n0"), &live(1, 1)).unwrap();
    drop(old);
    assert_eq!(
        catalog::node(&new, id(1)).unwrap().unwrap().live,
        Some(live(1, 1))
    );
}

#[test]
fn volumes_have_unique_names() {
    for fault in FAULTS.map(Some).into_iter().chain([None]) {
        let store = MemoryCluster::new().session();
        catalog::create_volume(&store, &volume(1, "b")).unwrap();
        let error = catalog::create_volume(&store, &volume(2, "b")).unwrap_err();
        assert_eq!(error, CatalogError::NameTaken("b".into()));
        if let Some(fault) = fault {
            store.inject(fault);
        }
        match catalog::create_volume(&store, &volume(3, "a")) {
            Ok(map) => assert_eq!(catalog::load_volume(&store, map.head.volume), Ok(map)),
            Err(error) => {
                assert_eq!(fault, Some(CommitFault::UnknownLost));
                assert_eq!(error, CatalogError::Commit(CommitError::Unknown));
                catalog::create_volume(&store, &volume(3, "a")).unwrap();
            }
        }
        let names: Vec<_> = catalog::list_volumes(&store)
            .unwrap()
            .into_iter()
            .map(|volume| (volume.name, volume.volume))
            .collect();
        assert_eq!(
            names,
            [
                ("a".to_owned(), VolumeId([3; 16])),
                ("b".to_owned(), VolumeId([1; 16]))
            ]
        );
        assert_eq!(catalog::volume_id(&store, "a"), Ok(Some(VolumeId([3; 16]))));
        assert_eq!(catalog::volume_id(&store, "../a"), Ok(None));
    }
}

#[test]
fn of_two_writers_one_gets_a_conflict() {
    let cluster = MemoryCluster::new();
    let (a, b) = (cluster.session(), cluster.session());
    let map = catalog::create_volume(&a, &volume(1, "v")).unwrap();
    let same = catalog::load_volume(&b, map.head.volume).unwrap();
    let first = tr::attach(&map, attach(1), false).unwrap();
    let second = tr::attach(&same, attach(2), false).unwrap();
    let map = catalog::commit_update(&a, first).unwrap();
    let error = catalog::commit_update(&b, second).unwrap_err();
    assert_eq!(
        error,
        CommitError::Conflict {
            key: key::head(map.head.volume)
        }
    );
    let now = catalog::load_volume(&b, map.head.volume).unwrap();
    let error = tr::attach(&now, attach(2), false).unwrap_err();
    assert_eq!(error, TransitionError::Attached { host: "hv".into() });
    assert!(error.to_string().contains("--force"), "{error}");
    // The same host after a reboot, and force, take it with a higher token.
    let rebooted = Attach {
        boot: BootId([4; 16]),
        ..attach(2)
    };
    let next = tr::attach(&now, rebooted, false).unwrap().next;
    assert_eq!(next.head.token.0, now.head.token.0 + 1);
    assert!(tr::attach(&now, attach(2), true).is_ok());
    assert_eq!(
        tr::attach(&now, attach(1), true).unwrap_err(),
        TransitionError::NoChange
    );
}

#[test]
fn unknown_outcomes_are_settled_by_reading_again() {
    for fault in FAULTS {
        let store = MemoryCluster::new().session();
        let map = catalog::create_volume(&store, &volume(1, "v")).unwrap();
        let update = tr::mark_stale(&map, &[id(2)]).unwrap();
        let attempted = update.next.clone();
        store.inject(fault);
        let error = catalog::commit_update(&store, update).unwrap_err();
        assert_eq!(error, CommitError::Unknown);
        match catalog::settle_unknown(&store, &attempted).unwrap() {
            Settled::Landed(now) => {
                assert_eq!(fault, CommitFault::UnknownLanded);
                assert!(now.head_version() > map.head_version());
                // It can be built upon.
                let update = tr::begin_rejoin(&now, id(2)).unwrap();
                catalog::commit_update(&store, update).unwrap();
            }
            Settled::Other(now) => {
                assert_eq!(fault, CommitFault::UnknownLost);
                assert_eq!(*now, map);
            }
        }
    }
}

#[test]
fn the_last_in_sync_replica_is_named() {
    let store = MemoryCluster::new().session();
    let map = catalog::create_volume(&store, &volume(1, "v")).unwrap();
    let one = tr::one_chunk(ChunkIndex(5));
    let map = tr::remove_location(&map, one, id(1), 1).unwrap().next;
    let error = tr::mark_stale(&map, &[id(2)]).unwrap_err();
    assert_eq!(
        error,
        TransitionError::LastInSync {
            range: one,
            node: id(2)
        }
    );
    assert!(
        error.to_string().starts_with("chunk 5 would lose"),
        "{error}"
    );
    let error = tr::remove_location(&map, map.all(), id(2), 0).unwrap_err();
    assert!(matches!(error, TransitionError::LastInSync { range, .. } if range == one));
    let error = tr::remove_location(&map, tr::one_chunk(ChunkIndex(4)), id(2), 2).unwrap_err();
    assert!(matches!(
        error,
        TransitionError::TooFewCopies { left: 1, .. }
    ));
    let beyond = tr::one_chunk(ChunkIndex(map.chunk_count()));
    let error = tr::add_location(&map, beyond, id(3)).unwrap_err();
    assert!(matches!(error, TransitionError::OutOfRange { .. }));
}

/// A map with runs of its own in shard 0.
fn with_a_shard(store: &dyn MetaStore) -> VolumeMap {
    let map = catalog::create_volume(store, &volume(1, "v")).unwrap();
    let update = tr::add_location(&map, tr::one_chunk(ChunkIndex(5)), id(3)).unwrap();
    catalog::commit_update(store, update).unwrap()
}

#[test]
fn damaged_keys_are_named_with_advice() {
    let cluster = MemoryCluster::new();
    let store = cluster.session();
    let map = with_a_shard(&store);
    for key in [key::shard(map.head.volume, 0), key::head(map.head.volume)] {
        cluster.damage(&key, |bytes| bytes[40] ^= 1);
        let error = catalog::load_volume(&store, map.head.volume).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&key) && text.contains("restore this key"),
            "{text}"
        );
    }
    store
        .commit(&[Write::Create {
            key: key::node(id(1)),
            bytes: b"{".to_vec(),
            ephemeral: false,
        }])
        .unwrap();
    let error = catalog::list_nodes(&store).unwrap_err();
    assert!(
        matches!(error, CatalogError::Store(MetaError::Corrupt { .. })),
        "{error}"
    );
}

#[test]
fn deletion_is_resumed_where_it_was_interrupted() {
    // Its first and its second transaction are lost in turn, in both ways.
    for (skip, fault) in [0, 1]
        .into_iter()
        .flat_map(|n| FAULTS.map(|fault| (n, fault)))
    {
        let cluster = MemoryCluster::new();
        let store = cluster.session();
        let map = with_a_shard(&store);
        let id = map.head.volume;
        assert_eq!(
            catalog::delete_volume(&store, id),
            Err(CatalogError::NotDeleting(id))
        );
        let map = catalog::commit_update(&store, tr::begin_delete(&map).unwrap()).unwrap();
        assert!(matches!(
            tr::attach(&map, attach(1), true),
            Err(TransitionError::Deleting)
        ));
        if skip == 1 {
            let shard = key::shard(id, 0);
            let expected = store.get(&shard).unwrap().unwrap().version;
            store
                .commit(&[Write::Delete {
                    key: shard,
                    expected,
                }])
                .unwrap();
            assert_eq!(
                catalog::load_volume(&store, id),
                Err(CatalogError::Deleting(id))
            );
        }
        store.inject(fault);
        assert_eq!(
            catalog::delete_volume(&store, id),
            Err(CatalogError::Commit(CommitError::Unknown))
        );
        catalog::delete_volume(&store, id).unwrap();
        assert!(cluster.dump().is_empty(), "{:?}", cluster.dump().keys());
        assert_eq!(
            catalog::load_volume(&store, id),
            Err(CatalogError::NoVolume(id.to_string()))
        );
        catalog::create_volume(&store, &volume(2, "v")).unwrap();
    }
}

#[test]
fn fronts_are_announced_and_taken_back() {
    let cluster = MemoryCluster::new();
    let (a, b) = (cluster.session(), cluster.session());
    let front = |pid| FrontRecord {
        host: "hv".into(),
        control: "/run/ukai/v.sock".into(),
        device: "/dev/ublkb0".into(),
        pid,
    };
    let volume = VolumeId([1; 16]);
    assert_eq!(catalog::front(&a, volume), Ok(None));
    catalog::set_front(&a, volume, &front(1)).unwrap();
    assert_eq!(catalog::front(&b, volume), Ok(Some(front(1))));
    // A successor announces itself; the former one's end does not take that away.
    catalog::set_front(&b, volume, &front(2)).unwrap();
    catalog::clear_front(&a, volume, &front(1)).unwrap();
    drop(a);
    assert_eq!(catalog::front(&b, volume), Ok(Some(front(2))));
    catalog::clear_front(&b, volume, &front(2)).unwrap();
    assert_eq!(catalog::front(&b, volume), Ok(None));
    catalog::set_front(&b, volume, &front(2)).unwrap();
    drop(b);
    assert_eq!(catalog::front(&cluster.session(), volume), Ok(None));
}

#[test]
fn watches_may_be_held_lost_and_woken_by_the_connection() {
    let cluster = MemoryCluster::new();
    let (a, b) = (cluster.session(), cluster.session());
    let now = Duration::ZERO;
    let map = catalog::create_volume(&a, &volume(1, "v")).unwrap();
    let mut watch = catalog::watch_volume(&b, map.head.volume).unwrap();
    assert_eq!(watch.wait(now), Ok(false));
    cluster.hold_watches();
    let map = catalog::commit_update(&a, tr::attach(&map, attach(1), false).unwrap()).unwrap();
    assert_eq!(watch.wait(now), Ok(false));
    cluster.release_watches();
    assert_eq!(watch.wait(now), Ok(true));
    assert_eq!(watch.wait(now), Ok(false));
    cluster.hold_watches();
    let map = catalog::commit_update(&a, tr::detach(&map).unwrap()).unwrap();
    cluster.lose_watches();
    assert_eq!(watch.wait(now), Ok(false));
    // Loss and return of the connection count as a change, and changes meanwhile are not lost.
    b.set_unavailable(true);
    assert!(matches!(b.get("x"), Err(MetaError::Unavailable(_))));
    let map = catalog::commit_update(&a, tr::attach(&map, attach(1), false).unwrap()).unwrap();
    assert_eq!(watch.wait(now), Ok(false));
    b.set_unavailable(false);
    assert_eq!(watch.wait(now), Ok(true));
    assert_eq!(watch.wait(now), Ok(false));
    catalog::commit_update(&a, tr::detach(&map).unwrap()).unwrap();
    assert_eq!(watch.wait(now), Ok(true));
    b.expire();
    assert_eq!(watch.wait(now), Err(MetaError::SessionExpired));
}
