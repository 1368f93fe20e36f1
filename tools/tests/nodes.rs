//! Cluster and nodes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failure is the test's result

mod common;

use common::{Ran, World, command, node_id};
use serde_json::json;
use ukai_meta::{NodeLive, catalog, transition};
use ukai_proto::message::ChunkRange;
use ukai_proto::{ChunkIndex, Incarnation, VolumeId};

#[test]
fn a_cluster_is_made_once() {
    let folder = tempfile::TempDir::new().unwrap();
    let url = format!("sqlite:{}", folder.path().join("meta.db").display());
    let run = |args: &[&str]| {
        let output = command()
            .args(["--meta", &url, "--json"])
            .args(args)
            .output()
            .unwrap();
        let ran = Ran::new(args, output);
        assert_eq!(ran.code, 0, "{ran:?}");
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()
    };
    let first = run(&["cluster", "init"]);
    assert_eq!(first["created"], true);
    let second = run(&["cluster", "init"]);
    assert_eq!(second["created"], false);
    assert_eq!(second["cluster"], first["cluster"]);
    assert_eq!(run(&["cluster", "show"])["cluster"], first["cluster"]);
    assert_eq!(run(&["node", "list"]), json!([]));
    assert_eq!(run(&["volume", "list"]), json!([]));
}

#[test]
fn nodes_are_shown() {
    let world = World::new();
    world.ok(&[
        "volume",
        "create",
        "v",
        "--size",
        "64MiB",
        "--place",
        "site-a:1,site-b:1",
    ]);
    world.kill_node(4);
    world.ok(&["node", "drain", "n2"]);
    let table = world.ok(&["node", "list"]);
    assert!(
        table.contains("draining") && table.contains("not alive"),
        "{table}"
    );
    let shown = world.json(&["node", "show", "n1"]);
    assert_eq!(
        shown["volumes"][0],
        json!({ "volume": "v", "in_sync": 16, "joining": 0, "stale": 0, "leaving": 0 })
    );
    assert_eq!(shown["counters"]["reads"], 20);
    let dead = world.ok(&["node", "show", "n4"]);
    assert!(dead.contains("not alive"), "{dead}");
    let by_uuid = world.json(&["node", "show", "04040404-0404-0404-0404-040404040404"]);
    assert_eq!(by_uuid["record"]["name"], "n4");
    let show = world.json(&["cluster", "show"]);
    assert_eq!(show["sites"]["site-b"]["alive"], 1);
    assert_eq!(show["volumes"], 1);
    let text = world.ok(&["cluster", "show"]);
    assert!(text.contains("1 of 2"), "{text}");
}

#[test]
fn drain_is_a_mark() {
    let world = World::new();
    assert!(
        world
            .ok(&["node", "drain", "n1"])
            .contains("takes no new chunks")
    );
    assert!(world.ok(&["node", "drain", "n1"]).contains("already"));
    assert_eq!(world.json(&["node", "show", "n1"])["state"], "draining");
    assert!(world.ok(&["node", "undrain", "n1"]).contains("again"));
    assert_eq!(world.json(&["node", "show", "n1"])["state"], "alive");
}

#[test]
fn drain_check_says_what_would_be_lost() {
    let world = World::new();
    world.ok(&[
        "volume",
        "create",
        "two",
        "--size",
        "64MiB",
        "--place",
        "site-a:1,site-b:1",
    ]);
    world.ok(&["volume", "create", "one", "--size", "8MiB", "--node", "n1"]);
    let ran = world.run(&["node", "drain-check", "n1", "--json"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(found["safe"], false);
    assert_eq!(
        found["volumes"],
        json!([
            { "volume": "one", "chunks": 2, "unavailable": 2, "below_copies": 0 },
            { "volume": "two", "chunks": 16, "unavailable": 0, "below_copies": 16 },
        ])
    );
    let text = world.run(&["node", "drain-check", "n3"]);
    assert!(
        text.code == 1
            && text.stdout.contains("not safe")
            && text.stderr.contains("16 would have too few"),
        "{text:?}"
    );
    assert!(
        world
            .ok(&["node", "drain-check", "n2"])
            .contains("safe: nothing would be lost")
    );
}

#[test]
fn drain_check_finds_what_no_map_mentions() {
    let world = World::new();
    world.ok(&[
        "volume", "create", "v", "--size", "64MiB", "--place", "site-b:1",
    ]);
    world.ok(&[
        "volume", "create", "here", "--size", "64MiB", "--node", "n1",
    ]);
    let (v, here) = (world.map("v").head.volume, world.map("here").head.volume);
    let unknown = VolumeId([0xab; 16]);
    world.held(1, |held| {
        held.slots = vec![(v, 3), (here, 7), (unknown, 2)];
        held.inventory_page = 1;
    });
    let found: serde_json::Value =
        serde_json::from_str(&world.run(&["node", "drain-check", "n1", "--json"]).stdout).unwrap();
    let mut left: Vec<_> = found["leftovers"].as_array().unwrap().clone();
    left.sort_by_key(|item| item["bytes"].as_u64());
    assert_eq!(
        left,
        [
            json!({ "volume": unknown, "name": null, "bytes": 2 << 20 }),
            json!({ "volume": v, "name": "v", "bytes": 3 << 20 }),
        ]
    );
}

#[test]
fn a_node_that_never_comes_back_is_forgotten() {
    let world = World::new();
    let all = ChunkRange {
        start: ChunkIndex(0),
        count: 16,
    };
    for (name, nodes) in [("stale", "n1,n3"), ("in-sync", "n2,n3"), ("other", "n1,n2")] {
        world.ok(&["volume", "create", name, "--size", "64MiB", "--node", nodes]);
    }
    world.ok(&[
        "volume", "create", "leaving", "--size", "64MiB", "--node", "n1,n3",
    ]);
    world.transition("stale", |map| transition::mark_stale(map, &[node_id(3)]));
    world.transition("leaving", |map| {
        transition::remove_location(map, all, node_id(3), 1)
    });
    world.ok(&[
        "volume", "create", "joining", "--size", "64MiB", "--node", "n1",
    ]);
    world.transition("joining", |map| {
        transition::add_location(map, all, node_id(3))
    });

    world.refused(&["node", "forget", "n3"], 1, &["is alive", "node drain n3"]);
    world.kill_node(3);
    let before = world.dump();
    let dry = world.json(&["node", "forget", "n3", "--dry-run"]);
    assert_eq!(world.dump(), before, "a dry run changes nothing");
    let count = |volume: &str, what: &str| {
        let volumes = dry["volumes"].as_array().unwrap();
        let found = volumes.iter().find(|loss| loss["volume"] == volume);
        found.unwrap()[what].clone()
    };
    assert_eq!(dry["volumes"].as_array().unwrap().len(), 4);
    for (volume, what) in [
        ("stale", "stale"),
        ("in-sync", "in_sync"),
        ("leaving", "leaving"),
        ("joining", "joining"),
    ] {
        assert_eq!(count(volume, what), 16, "{dry}");
    }

    let text = world.ok(&["node", "forget", "n3"]);
    assert!(
        text.contains("too few copies now") && text.contains("is forgotten"),
        "{text}"
    );
    for name in ["stale", "in-sync", "leaving", "joining", "other"] {
        let map = world.map(name);
        assert!(!map.nodes().contains(&node_id(3)), "{name}");
        assert_eq!(map.head.health, [], "{name}");
        world.ok(&["volume", "synchronize", name]);
    }
    world.refused(&["node", "show", "n3"], 4, &["no node"]);
    // Its name is free for a new node, its uuid is not.
    let live = NodeLive {
        incarnation: Incarnation::default(),
        used_bytes: 0,
    };
    let error = catalog::register_node(&*world.store, &world.record(3, "site-b"), &live);
    assert!(error.unwrap_err().to_string().contains("node forget"));
    let mut new = world.record(5, "site-b");
    new.name = "n3".into();
    catalog::register_node(&*world.store, &new, &live).unwrap();
}

#[test]
fn a_node_with_the_last_copy_is_not_forgotten() {
    let world = World::new();
    world.ok(&[
        "volume", "create", "two", "--size", "64MiB", "--node", "n1,n3",
    ]);
    world.ok(&[
        "volume", "create", "zlast", "--size", "64MiB", "--node", "n1,n3",
    ]);
    world.transition("zlast", |map| transition::mark_stale(map, &[node_id(1)]));
    world.kill_node(3);
    let words = ["zlast", "last in-sync", "n3", "--abandon-unreachable"];
    world.refused(&["node", "forget", "n3"], 1, &words);
    world.refused(&["node", "forget", "n3", "--dry-run"], 1, &words);
}

#[test]
fn a_volume_in_use_loses_a_forgotten_node_too() {
    let world = World::new();
    world.ok(&[
        "volume", "create", "v", "--size", "64MiB", "--node", "n1,n3",
    ]);
    world.attach("v");
    world.transition("v", |map| transition::mark_stale(map, &[node_id(3)]));
    let before = world.map("v").head;
    world.kill_node(3);
    world.ok(&["node", "forget", "n3"]);
    let after = world.map("v").head;
    assert_eq!((after.token, &after.attach), (before.token, &before.attach));
    assert!(after.generation > before.generation);
}

#[test]
fn ping_measures_every_shard() {
    let world = World::new();
    let rows = world.json(&["node", "ping", "n1", "--count", "25"]);
    assert_eq!(rows.as_array().unwrap().len(), 2);
    for row in rows.as_array().unwrap() {
        assert_eq!(row["count"], 25);
        assert!(row["max_us"].as_f64() >= row["p50_us"].as_f64(), "{row}");
    }
    assert!(world.ok(&["node", "ping", "n1"]).contains("P99 US"));
}

#[test]
fn probe_measures_and_keeps_what_it_measured() {
    let world = World::new();
    world.kill_node(4);
    let dry = world.json(&["probe", "--host", "hv9", "--count", "20", "--dry-run"]);
    assert_eq!(dry["written"], false);
    assert_eq!(catalog::host_latencies(&*world.store).unwrap(), []);
    world.serve(1);
    let shown = world.ok(&["probe", "--host", "hv9", "--count", "21", "--node", "n1,n3"]);
    assert!(shown.contains("site-b") && shown.contains("hv9"), "{shown}");
    let kept = catalog::host_latency(&*world.store, "hv9")
        .unwrap()
        .unwrap();
    assert_eq!((kept.by.as_str(), kept.nodes.len()), ("probe", 2));
    let known = kept.node(node_id(1)).unwrap();
    // Two shards, 11 round trips each.
    assert_eq!(known.network.unwrap().count, 22);
    assert_eq!(known.read_service.unwrap().count, 10);
    assert!((known.read_service.unwrap().quantile(0.5) - 80.0).abs() < 0.5);
    assert_eq!((known.write_service, known.read), (None, None));
    // The others are added, what was known stays.
    world.ok(&["probe", "--host", "hv9", "--count", "20"]);
    let kept = catalog::host_latency(&*world.store, "hv9")
        .unwrap()
        .unwrap();
    assert_eq!(kept.nodes.len(), 3, "n4 is not alive");
}

#[test]
fn probes_that_cannot_be_are_refused() {
    let world = World::new();
    let ran = world.fails(&["probe", "--host", "a/b"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    let ran = world.fails(&["probe", "--node", "n9"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    for n in 1..=4 {
        world.kill_node(n);
    }
    let ran = world.fails(&["probe", "--node", "n1"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("no node answers"),
        "{ran:?}"
    );
}
