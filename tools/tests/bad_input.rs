//! Every kind of bad input: its exit code, its message, and that nothing was changed.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failure is the test's result

mod common;

use common::{CLUSTER, Ran, World, command, node_id};
use ukai_meta::{Write, transition};
use ukai_proto::{ClusterId, Status};

fn with_volume() -> World {
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
    world
}

#[test]
fn sizes() {
    let world = World::new();
    let create = |size: &str, code, words: &[&str]| {
        let args = [
            "volume", "create", "v", "--size", size, "--place", "site-a:1",
        ];
        world.refused(&args, code, words);
    };
    create("10000", 2, &["not a multiple of 4KiB", "8KiB and 12KiB"]);
    create("0", 2, &["size is 0"]);
    create("2PiB", 2, &["above the largest, 1PiB"]);
    create("99999999999999999999", 2, &["larger than any size"]);
    create("10GB", 2, &["write 10GiB"]);
    create("ten", 2, &["no size"]);
    create("-1GiB", 2, &[]);
    for (chunk, nearest) in [
        ("3MiB", "2MiB and 4MiB"),
        ("64KiB", "1MiB"),
        ("128MiB", "64MiB"),
    ] {
        let args = [
            "volume", "create", "v", "--size", "1GiB", "--place", "site-a:1", "--chunk", chunk,
        ];
        world.refused(&args, 2, &["chunk size", nearest]);
    }
}

#[test]
fn placements() {
    let world = World::new();
    world.ok(&["node", "drain", "n2"]);
    let create = |rest: &[&str], code, words: &[&str]| {
        let args = [&["volume", "create", "v", "--size", "1GiB"], rest].concat();
        world.refused(&args, code, words);
    };
    create(&[], 2, &["--place", "next:"]);
    create(&["--place", "site-a"], 2, &["SITE:COPIES"]);
    create(&["--place", "site-a:0"], 2, &["0 copies"]);
    create(&["--place", "mars:1"], 4, &["sites are: site-a, site-b"]);
    create(&["--place", "site-a:1,site-a:1"], 2, &["named twice"]);
    create(&["--place", "site-a:5"], 2, &["at most 4"]);
    create(
        &["--place", "site-a:2"],
        1,
        &["1 usable nodes", "n2 is draining"],
    );
    create(&["--node", "n9"], 4, &["nodes are: n1, n2, n3, n4"]);
    create(&["--node", "n2"], 1, &["n2 is draining"]);
    create(&["--node", "n1,n1"], 2, &["named twice"]);
    create(
        &["--node", "n1", "--place", "site-b:1"],
        2,
        &["--place asks for"],
    );
    world.kill_node(4);
    create(&["--place", "site-b:2"], 1, &["n4 is not alive"]);
    create(&["--node", "n4"], 1, &["n4 is not alive"]);
}

#[test]
fn names() {
    let world = with_volume();
    let place = ["--size", "1GiB", "--place", "site-a:1"];
    let create = |name: &str, code, words: &[&str]| {
        world.refused(
            &[&["volume", "create", name][..], &place].concat(),
            code,
            words,
        );
    };
    create("v", 5, &["exists already", "next:"]);
    create("a/b", 2, &["no volume name", "letters"]);
    create("", 2, &["no volume name"]);
    create("..", 2, &["no volume name"]);
    create(&"x".repeat(65), 2, &["no volume name"]);
    for args in [
        &["volume", "show", "nope"][..],
        &["volume", "map", "nope"],
        &["volume", "resize", "nope", "--size", "1GiB"],
        &["volume", "delete", "nope", "--yes"],
        &["volume", "add-location", "nope", "--node", "n1"],
        &["volume", "remove-location", "nope", "--node", "n1"],
        &["volume", "synchronize", "nope"],
        &["volume", "export", "nope", "/nonexistent/x"],
        &["stats", "nope"],
    ] {
        world.refused(args, 4, &["there is no volume nope", "volume list"]);
    }
    for args in [
        &["volume", "add-location", "v", "--node", "n9"][..],
        &["volume", "remove-location", "v", "--node", "n9"],
        &["node", "show", "n9"],
        &["node", "drain", "n9"],
        &["node", "undrain", "n9"],
        &["node", "drain-check", "n9"],
        &["node", "ping", "n9"],
    ] {
        world.refused(args, 4, &["there is no node \"n9\"", "n1, n2, n3, n4"]);
    }
}

#[test]
fn ranges() {
    let world = with_volume();
    let add = |range: &str, words: &[&str]| {
        world.refused(
            &[
                "volume",
                "add-location",
                "v",
                "--node",
                "n2",
                "--range",
                range,
            ],
            2,
            words,
        );
    };
    add("0-6MiB", &["not on a chunk bound", "4MiB and 8MiB"]);
    add("0-1GiB", &["beyond the volume", "64MiB"]);
    add("chunks:0-16", &["its last chunk is 15"]);
    add("chunks:9-3", &["ends before"]);
    add("8MiB-8MiB", &["empty"]);
    add("everything", &["is no range"]);
    world.refused(
        &["volume", "map", "v", "--range", "64MiB-"],
        2,
        &["beyond the volume"],
    );
}

#[test]
fn locations_that_are_not_possible() {
    let world = with_volume();
    world.refused(
        &["volume", "remove-location", "v", "--node", "n1"],
        1,
        &[
            "1 in-sync copies without node n1",
            "2 are asked for",
            "--force-below-copies",
        ],
    );
    world.refused(
        &["volume", "remove-location", "v", "--node", "n4"],
        4,
        &["holds nothing"],
    );
    world.transition("v", |map| transition::mark_stale(map, &[node_id(3)]));
    world.refused(
        &[
            "volume",
            "remove-location",
            "v",
            "--node",
            "n1",
            "--force-below-copies",
        ],
        1,
        &["last in-sync replica, on node n1"],
    );
    world.ok(&["node", "drain", "n2"]);
    world.refused(
        &["volume", "add-location", "v", "--node", "n2"],
        1,
        &["draining"],
    );
    world.kill_node(4);
    world.refused(
        &["volume", "add-location", "v", "--node", "n4"],
        1,
        &["not alive"],
    );
    // A part of the range that is refused keeps the other part from being changed.
    world.ok(&["node", "undrain", "n2"]);
    world.ok(&[
        "volume",
        "add-location",
        "v",
        "--node",
        "n2",
        "--range",
        "chunks:0-3",
    ]);
    world.transition("v", |map| {
        transition::cancel_join(map, map.all(), node_id(2))
    });
    world.refused(
        &["volume", "add-location", "v", "--node", "n2"],
        5,
        &["not deleted yet", "n2"],
    );
}

#[test]
fn sizes_of_existing_volumes() {
    let world = with_volume();
    world.refused(
        &["volume", "resize", "v", "--size", "32MiB"],
        1,
        &["cannot shrink"],
    );
    world.refused(
        &["volume", "resize", "v", "--size", "100MB"],
        2,
        &["write 100MiB"],
    );
    world.refused(
        &["volume", "resize", "v", "--size", "67108865"],
        2,
        &["multiple of 4KiB"],
    );
}

#[test]
fn attached_volumes() {
    let world = with_volume();
    world.attach("v");
    let target = world.path("out.img");
    std::fs::write(world.path("in.img"), vec![0; 4096]).unwrap();
    world.refused(
        &["volume", "delete", "v", "--yes"],
        5,
        &["attached on host elsewhere"],
    );
    world.refused(
        &["volume", "export", "v", &target],
        5,
        &["attached on host elsewhere"],
    );
    world.refused(
        &["volume", "import", "v", &world.path("in.img")],
        5,
        &["attached on host elsewhere"],
    );
    world.transition("v", |map| transition::mark_stale(map, &[node_id(3)]));
    world.refused(
        &["volume", "synchronize", "v", "--wait"],
        5,
        &["its front does not answer"],
    );
    world.announce_front("v", &world.path("no.sock"));
    world.refused(&["stats", "v"], 1, &["run this on host elsewhere"]);
    assert!(!std::path::Path::new(&target).exists());
}

#[test]
fn deletion_that_cannot_be_finished_is_not_begun() {
    let world = with_volume();
    world.refused(&["volume", "delete", "v"], 2, &["--yes"]);
    world.held(3, |held| held.other_cluster = Some(ClusterId([0xee; 16])));
    world.refused(
        &["volume", "delete", "v", "--yes"],
        1,
        &["n3", "another cluster", "nothing was changed"],
    );
    world.kill_node(3);
    world.refused(
        &["volume", "delete", "v", "--yes"],
        1,
        &["do not answer", "n3", "--abandon-unreachable"],
    );
}

#[test]
fn images() {
    let world = with_volume();
    let (image, junk) = (world.path("in.img"), world.path("junk.qcow2"));
    std::fs::write(&image, vec![1; 8192]).unwrap();
    std::fs::write(&junk, b"no image").unwrap();
    world.refused(
        &["volume", "import", "v", &world.path("gone.img")],
        4,
        &["is no file"],
    );
    world.refused(
        &["volume", "import", "w", &image],
        4,
        &["there is no volume w", "--place"],
    );
    world.refused(
        &["volume", "import", "v", &image],
        1,
        &["the image only 8KiB", "--allow-larger"],
    );
    world.refused(
        &["volume", "import", "v", &junk, "--format", "qcow2"],
        1,
        &["no image"],
    );
    let large = world.path("large.img");
    std::fs::File::create(&large)
        .unwrap()
        .set_len(128 << 20)
        .unwrap();
    world.refused(
        &["volume", "import", "v", &large],
        1,
        &["needs 128MiB", "volume resize v"],
    );
    world.refused(
        &["volume", "import", "v", &large, "--place", "site-a:1"],
        5,
        &["exists already"],
    );
    std::fs::write(world.path("there.img"), b"x").unwrap();
    world.refused(
        &["volume", "export", "v", &world.path("there.img")],
        1,
        &["exists already", "--overwrite"],
    );
    world.refused(
        &["volume", "export", "v", &world.path("no/x.img")],
        4,
        &["no folder"],
    );
    assert_eq!(std::fs::read(world.path("there.img")).unwrap(), b"x");
}

#[test]
fn a_missing_qemu_img_is_said() {
    let world = with_volume();
    std::fs::write(world.path("in.img"), vec![0; 4096]).unwrap();
    let before = world.dump();
    for args in [
        ["volume", "import", "v", "in.img"],
        ["volume", "export", "v", "out.img"],
    ] {
        let ran = world.run_with(&args, &[("PATH", "/nonexistent")]);
        assert_eq!(ran.code, 4, "{ran:?}");
        assert!(ran.stderr.contains("apt-get install qemu-utils"), "{ran:?}");
    }
    assert_eq!(world.dump(), before);
}

#[test]
fn metadata_stores_that_are_none() {
    let run = |args: &[&str], meta: Option<&str>| {
        let mut command = command();
        command.args(args);
        if let Some(meta) = meta {
            command.env("UKAI_META", meta);
        }
        Ran::new(args, command.output().unwrap())
    };
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("meta.db");
    let url = format!("sqlite:{}", path.display());
    let none = run(&["volume", "list"], None);
    assert!(none.code == 2 && none.stderr.contains("--meta"), "{none:?}");
    let junk = run(&["volume", "list"], Some("etcd:localhost"));
    assert!(
        junk.code == 2 && junk.stderr.contains("names no metadata store"),
        "{junk:?}"
    );
    let absent = run(&["volume", "list"], Some(&url));
    assert!(
        absent.code == 3 && absent.stderr.contains("cluster init"),
        "{absent:?}"
    );
    assert!(!path.exists(), "a look made a file");
    // Nobody listens on port 1.
    let zk = run(&["volume", "list"], Some("zk:127.0.0.1:1"));
    assert!(zk.code == 3 && zk.stderr.contains("next:"), "{zk:?}");
    drop(ukai_meta::open(&url.parse().unwrap()).unwrap());
    for args in [
        &["volume", "list"][..],
        &["node", "list"],
        &["cluster", "show"],
        &["volume", "show", "v"],
    ] {
        let empty = run(args, Some(&url));
        assert!(
            empty.code == 4 && empty.stderr.contains("holds no cluster yet"),
            "{empty:?}"
        );
    }
    std::fs::write(&path, b"this is no database, and it is long enough to have a header of 100 bytes, which it has not, or has it?").unwrap();
    let damaged = run(&["volume", "list"], Some(&url));
    assert!(
        damaged.code == 1 && damaged.stderr.contains("next:"),
        "{damaged:?}"
    );
}

#[test]
fn errors_are_json_when_asked_for() {
    let world = World::new();
    let ran = world.run(&["volume", "show", "nope", "--json"]);
    let error: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["error"]["code"], 4);
    assert_eq!(error["error"]["kind"], "not-found");
    assert_eq!(error["error"]["message"], "there is no volume nope");
}

#[test]
fn a_damaged_volume_does_not_hide_the_others() {
    let world = with_volume();
    world.ok(&[
        "volume", "create", "w", "--size", "1GiB", "--place", "site-b:1",
    ]);
    let key = format!("volumes/{}/head", world.map("v").head.volume);
    let value = world.store.get(&key).unwrap().unwrap();
    let mut bytes = value.bytes.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world
        .store
        .commit(&[Write::Set {
            key,
            bytes,
            expected: value.version,
        }])
        .unwrap();
    let ran = world.run(&["volume", "list"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stdout.contains("unreadable") && ran.stdout.contains('w'),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("volume v") && ran.stderr.contains("damaged"),
        "{ran:?}"
    );
    for args in [
        &["volume", "map", "v"][..],
        &["volume", "add-location", "v", "--node", "n2"],
        &["volume", "delete", "v", "--yes"],
    ] {
        world.refused(args, 1, &["volume v", "damaged"]);
    }
}

#[test]
fn nodes_that_refuse_or_lie() {
    let world = with_volume();
    world.held(1, |held| held.refuse = Some(Status::NoLease));
    let ran = world.run(&["node", "ping", "n1"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("membership lease"),
        "{ran:?}"
    );
    world.held(1, |held| held.refuse = Some(Status::Busy));
    let ran = world.run(&["node", "ping", "n1", "--count", "1"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("too much in flight"),
        "{ran:?}"
    );
    world.held(2, |held| held.other_cluster = Some(ClusterId([1; 16])));
    let ran = world.run(&["node", "ping", "n2"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("another cluster"),
        "{ran:?}"
    );
    assert_ne!(CLUSTER, ClusterId([1; 16]));
    world.kill_node(3);
    let ran = world.run(&["node", "ping", "n3"]);
    assert!(
        ran.code == 1 && ran.stderr.contains("no address answers"),
        "{ran:?}"
    );
    assert!(world.store.get("cluster").unwrap().is_some());
}
