//! Volumes from creation to deletion, against fake nodes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failure is the test's result

mod common;

use common::{World, node_id};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use ukai_meta::{Durability, ReplicaState, catalog, transition};
use ukai_proto::{Generation, Opcode, Token};

#[test]
fn create_show_list_resize() {
    let world = World::new();
    let create = [
        "volume",
        "create",
        "v",
        "--size",
        "10GiB",
        "--place",
        "site-a:2,site-b:1",
    ];
    let before = world.dump();
    let dry = world.ok(&[&create[..], &["--dry-run"]].concat());
    assert!(dry.starts_with("would create volume v: 10GiB"), "{dry}");
    assert_eq!(world.dump(), before, "a dry run changed something");
    let text = world.ok(&create);
    assert_eq!(
        text.trim(),
        "created volume v: 10GiB, chunks of 4MiB, place site-a:2,site-b:1, on n1@site-a, n2@site-a, n3@site-b"
    );
    let map = world.map("v");
    // n3 has more free space than n4.
    assert_eq!(map.nodes(), [node_id(1), node_id(2), node_id(3)]);
    assert_eq!(map.head.durability, Durability::Cache);

    world.ok(&[
        "volume",
        "create",
        "w",
        "--size",
        "4KiB",
        "--node",
        "n4",
        "--chunk",
        "1MiB",
        "--durability",
        "through",
    ]);
    assert_eq!(world.map("w").head.durability, Durability::Through);
    let list = world.json(&["volume", "list"]);
    assert_eq!(list[0]["name"], "v");
    assert_eq!(list[1]["chunk_bytes"], 1 << 20);
    assert_eq!(list[1]["state"], "in sync");
    let table = world.ok(&["volume", "list"]);
    assert_eq!(table.lines().count(), 3, "{table}");

    let shown = world.json(&["volume", "show", "v"]);
    assert_eq!(shown["chunks"]["chunks"], 2560);
    assert_eq!(shown["nodes"][0]["in_sync"], 2560);
    let text = world.ok(&["volume", "show", "v"]);
    assert!(
        text.contains("10GiB (10737418240 bytes)") && text.contains("attached    no"),
        "{text}"
    );

    let resize = ["volume", "resize", "v", "--size", "20GiB"];
    assert!(
        world
            .ok(&[&resize[..], &["--dry-run"]].concat())
            .contains("would resize")
    );
    assert_eq!(world.map("v").head.size_bytes, 10 << 30);
    assert_eq!(
        world.ok(&resize).trim(),
        "resized volume v from 10GiB to 20GiB"
    );
    assert_eq!(world.map("v").head.size_bytes, 20 << 30);
    assert!(world.ok(&resize).contains("already"));
}

#[test]
fn map_and_locations() {
    let world = World::new();
    world.ok(&[
        "volume",
        "create",
        "v",
        "--size",
        "65540KiB",
        "--place",
        "site-a:1,site-b:1",
    ]);
    let add = [
        "volume",
        "add-location",
        "v",
        "--node",
        "n2",
        "--range",
        "0-32MiB",
    ];
    let dry = world.ok(&[&add[..], &["--dry-run"]].concat());
    assert_eq!(
        dry.trim(),
        "8 chunks of v would join on node n2 (at most 32MiB to copy)"
    );
    assert_eq!(world.map("v").head.generation, Generation(1));
    let text = world.ok(&add);
    assert!(
        text.contains("8 chunks of v join now on node n2") && text.contains("volume synchronize v"),
        "{text}"
    );
    assert!(world.ok(&add).starts_with("nothing to do"));

    let table = world.ok(&["volume", "map", "v"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[1].starts_with("0-7     0B-32MiB"), "{table}");
    assert!(
        lines[1].ends_with("n1@site-a in-sync, n2@site-a joining, n3@site-b in-sync"),
        "{table}"
    );
    assert!(lines[2].starts_with("8-16    32MiB-65540KiB"), "{table}");
    let part = world.json(&["volume", "map", "v", "--range", "chunks:7-8"]);
    assert_eq!(part["runs"][0]["first_chunk"], 7);
    assert_eq!(part["runs"][0]["chunks"], 1);
    assert_eq!(
        part["runs"][0]["replicas"][1],
        json!({ "node": "n2", "id": node_id(2), "site": "site-a", "state": "joining" })
    );
    assert_eq!(part["runs"][1]["start_byte"], 32 << 20);

    world.transition("v", |map| transition::promote(map, map.all(), node_id(2)));
    let remove = [
        "volume",
        "remove-location",
        "v",
        "--node",
        "n1",
        "--range",
        "0-32MiB",
    ];
    assert!(
        world
            .ok(&[&remove[..], &["--dry-run"]].concat())
            .contains("would leave")
    );
    let text = world.ok(&remove);
    assert!(
        text.contains("8 chunks of v are leaving on node n1"),
        "{text}"
    );
    let leaving = world.map("v").ranges_of(node_id(1), ReplicaState::Leaving);
    assert_eq!((leaving[0].start.0, leaving[0].count), (0, 8));
    // Fewer copies than asked for, but allowed by name.
    world.ok(&[
        "volume",
        "remove-location",
        "v",
        "--node",
        "n3",
        "--force-below-copies",
    ]);
    let list = world.json(&["volume", "list"]);
    assert_eq!(list[0]["state"], "few copies");
}

#[test]
fn synchronize_tells_what_is_left() {
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
    assert!(
        world
            .ok(&["volume", "synchronize", "v"])
            .contains("every replica of v is in sync")
    );
    world.ok(&[
        "volume",
        "add-location",
        "v",
        "--node",
        "n2",
        "--range",
        "chunks:0-3",
    ]);
    world.transition("v", |map| transition::mark_stale(map, &[node_id(3)]));
    let dry = world.json(&["volume", "synchronize", "v", "--dry-run"]);
    assert_eq!(dry["outcome"], "would-synchronize");
    assert_eq!(
        dry["work"],
        json!([
            { "node": "n2", "site": "site-a", "alive": true, "state": "joining", "chunks": 4 },
            { "node": "n3", "site": "site-b", "alive": true, "state": "stale", "chunks": 16 },
        ])
    );
    // Attached, with a front that is at work.
    world.attach("v");
    world.announce_front("v", &world.path("front.sock"));
    let at_work = world.ok(&["volume", "synchronize", "v"]);
    assert!(
        at_work.contains("the front on elsewhere is at work"),
        "{at_work}"
    );
    let ran = world.run(&["volume", "synchronize", "v", "--wait", "--timeout", "0"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("16 chunks stale on n3"),
        "{ran:?}"
    );
}

#[test]
fn synchronize_waits_for_the_front() {
    let world = World::new();
    world.ok(&[
        "volume", "create", "v", "--size", "64MiB", "--place", "site-a:1",
    ]);
    world.ok(&["volume", "add-location", "v", "--node", "n2"]);
    world.attach("v");
    world.announce_front("v", &world.path("front.sock"));
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| world.ok(&["volume", "synchronize", "v", "--wait", "--timeout", "60"]));
        world.transition("v", |map| transition::promote(map, map.all(), node_id(2)));
        assert!(
            waiting
                .join()
                .unwrap()
                .contains("every replica of v is in sync")
        );
    });
}

#[test]
fn delete_fences_then_deletes_on_every_shard() {
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
    let id = world.map("v").head.volume;
    let before = world.dump();
    let dry = world.ok(&["volume", "delete", "v", "--dry-run"]);
    assert_eq!(dry.trim(), "would delete volume v and its data on n1, n3");
    assert_eq!(world.dump(), before);
    assert_eq!(
        world.ok(&["volume", "delete", "v", "--yes"]).trim(),
        "deleted volume v"
    );
    for n in [1, 3] {
        let orders = world.held(n, |held| held.orders.clone());
        let expected: Vec<_> = (0..2)
            .flat_map(|shard| [(shard, Opcode::Fence), (shard, Opcode::DeleteVolume)])
            .map(|(shard, what)| (shard, what, id, Token(1), Generation(2)))
            .collect();
        assert_eq!(orders, expected);
    }
    assert_eq!(world.held(2, |held| held.orders.len()), 0);
    assert_eq!(catalog::volume_id(&*world.store, "v").unwrap(), None);
    assert!(
        world
            .dump()
            .iter()
            .all(|(key, _)| !key.contains(&id.to_string()))
    );
}

#[test]
fn an_interrupted_deletion_is_finished_by_the_same_command() {
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
    // The node fails after the deletion was begun.
    world.held(3, |held| held.refuse = Some(ukai_proto::Status::IoError));
    let ran = world.run(&["volume", "delete", "v", "--yes"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("repeat the command to finish"),
        "{ran:?}"
    );
    assert_eq!(world.json(&["volume", "list"])[0]["state"], "deleting");
    world.refused(
        &["volume", "add-location", "v", "--node", "n2"],
        5,
        &["being deleted"],
    );
    world.refused(
        &["volume", "resize", "v", "--size", "1GiB"],
        5,
        &["being deleted"],
    );
    world.refused(
        &["volume", "export", "v", &world.path("x")],
        5,
        &["being deleted"],
    );
    world.kill_node(3);
    let ran = world.run(&["volume", "delete", "v", "--yes", "--abandon-unreachable"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stderr.contains("stays behind on n3"), "{ran:?}");
    assert_eq!(catalog::volume_id(&*world.store, "v").unwrap(), None);
}

#[test]
fn stats_of_front_and_nodes() {
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
    let text = world.ok(&["stats", "v"]);
    assert!(text.contains("not attached"), "{text}");
    world.attach("v");
    let socket = world.path("front.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    world.announce_front("v", &socket);
    let value = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut line)
                .unwrap();
            assert_eq!(line.trim(), r#"{"cmd":"stats"}"#);
            stream.write_all(b"{\"reads\":7}\n").unwrap();
        });
        world.json(&["stats", "v"])
    });
    assert_eq!(value["front"]["reads"], 7);
    // Two shards of ten reads each.
    assert_eq!(value["nodes"][0]["node"], "n1");
    assert_eq!(value["nodes"][0]["reads"], 20);
    assert_eq!(value["nodes"][1]["node"], "n3");
}

/// Two pages: a hot range in each, a cold one, and nothing else.
fn heat_pages() -> Vec<(u32, ukai_proto::heat::HeatPage)> {
    use ukai_proto::heat::{ChunkHeat, HEAT_PAGE_CHUNKS, HeatPage};
    let page = |used: &[(std::ops::Range<usize>, f64)]| {
        let mut chunks = vec![ChunkHeat::default(); HEAT_PAGE_CHUNKS as usize];
        for (range, reads) in used {
            let heat = ChunkHeat::from_rates(*reads, 0.0, reads * 4096.0);
            chunks[range.clone()].fill(heat);
        }
        HeatPage {
            age_s: 900,
            half_life_s: 600,
            chunks,
        }
    };
    vec![
        (0, page(&[(4..8, 100.0), (100..101, 1.0)])),
        (1, page(&[(0..2, 30.0)])),
    ]
}

#[test]
fn heat_is_read_from_the_node_that_heard_of_it_last() {
    let world = World::new();
    world.ok(&[
        "volume", "create", "v", "--size", "64GiB", "--node", "n1,n3",
    ]);
    let ran = world.fails(&["volume", "heat", "v"]);
    assert!(
        ran.code == 4 && ran.stderr.contains("no node knows"),
        "{ran:?}"
    );
    // n1 has an older report of a former front; n3 the present one.
    world.tell_front(1, 1, 500);
    world.tell_front(3, 2, 400);
    for (number, page) in heat_pages() {
        world.tell_heat(3, number, &page);
    }
    let heat = world.json(&["volume", "heat", "v", "--limit", "2"]);
    assert_eq!(heat["measured_s"], 900);
    assert_eq!(heat["ranges_total"], 3);
    let ranges = heat["ranges"].as_array().unwrap();
    assert_eq!(ranges.len(), 2);
    assert_eq!(
        (&ranges[0]["first_chunk"], &ranges[0]["chunks"]),
        (&json!(4), &json!(4))
    );
    assert_eq!(ranges[0]["start_byte"], 16 << 20);
    assert_eq!(ranges[1]["first_chunk"], 8192);
    let share = |row: usize, field: &str| ranges[row][field].as_f64().unwrap();
    assert!(
        (share(0, "share_percent") - 400.0 / 461.0 * 100.0).abs() < 2.0,
        "{heat}"
    );
    assert!(share(1, "share_with_those_above_percent") > 99.0, "{heat}");
    let text = world.ok(&["volume", "heat", "v"]);
    assert!(text.contains("16 MiB") || text.contains("16MiB"), "{text}");
    assert!(text.lines().count() >= 5, "{text}");
}

#[test]
fn stats_of_a_front_elsewhere_are_what_it_told_the_nodes() {
    let world = World::new();
    world.ok(&[
        "volume", "create", "v", "--size", "64MiB", "--node", "n1,n3",
    ]);
    world.attach("v");
    world.announce_front("v", "/nowhere/control.sock");
    let ran = world.fails(&["stats", "v"]);
    assert!(ran.stderr.contains("control socket"), "{ran:?}");
    world.tell_front(3, 1, 500);
    let stats = world.json(&["stats", "v"]);
    assert_eq!(stats["front"]["read"]["count"], 7, "{stats}");
    let text = world.ok(&["stats", "v"]);
    assert!(
        text.contains("network to n1") && text.contains("host hv7"),
        "{text}"
    );
}
