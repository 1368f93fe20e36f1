//! `scrub` against nodes with canned sector states.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failure is the test's result

mod common;

use common::{World, node_id};
use serde_json::{Value, json};
use ukai_meta::transition;
use ukai_proto::message::{PullMode, SectorState};
use ukai_proto::{Seq, Status, Token, Version};

fn state(seq: u64, crc: u32, flags: u16) -> SectorState {
    SectorState {
        version: Version::new(Token(1), Seq(seq)),
        crc,
        flags,
    }
}

const BAD: u16 = SectorState::BAD;

/// Volume v on n1 and n3, once attached, with sector 5 of chunk 2 the same on both.
fn world() -> World {
    let world = World::new();
    world.ok(&[
        "volume", "create", "v", "--size", "64MiB", "--node", "n1,n3",
    ]);
    world.attach("v");
    world.transition("v", transition::detach);
    for n in [1, 3] {
        world.held(n, |held| held.states.insert((2, 5), state(4, 1, 0)));
    }
    world
}

/// A run with its exit code and report.
fn scrub(world: &World, more: &[&str]) -> (i32, Value) {
    let mut args = vec!["scrub", "v", "--json"];
    args.extend(more);
    let ran = world.run(&args);
    let report = serde_json::from_str(&ran.stdout);
    (ran.code, report.unwrap_or_else(|_| panic!("{ran:?}")))
}

fn count(found: u64, repaired: u64) -> Value {
    json!({ "found": found, "repaired": repaired, "left": found - repaired })
}

#[test]
fn a_clean_volume_has_nothing_to_repair() {
    let world = world();
    let (code, report) = scrub(&world, &[]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(
        (&report["bad"], &report["different"]),
        (&count(0, 0), &count(0, 0))
    );
    assert_eq!(
        (&report["chunks"], &report["sectors"]),
        (&json!(1), &json!(1024))
    );
    assert_eq!(report["bytes_read"], 2 << 20, "one slot on each node");
    assert_eq!(report["complete"], true);
    for n in [1, 3] {
        world.held(n, |held| {
            assert_eq!((held.verified, held.pulls.len()), (1, 0));
        });
    }
    let text = world.ok(&["scrub", "v", "--range", "chunks:3-"]);
    assert!(text.contains("0 chunks, 0 sectors compared"), "{text}");
}

#[test]
fn a_volume_that_was_never_attached_is_clean() {
    let world = World::new();
    world.ok(&["volume", "create", "v", "--size", "64MiB", "--node", "n1"]);
    let (code, report) = scrub(&world, &[]);
    assert_eq!((code, &report["chunks"]), (0, &json!(0)));
}

#[test]
fn rot_is_repaired_from_the_good_replica_and_flushed() {
    let world = world();
    world.held(3, |held| {
        held.states.insert((2, 5), state(4, 1, BAD));
        held.heals.insert((2, 5), state(4, 1, 0));
    });
    let (code, report) = scrub(&world, &["--no-repair"]);
    assert_eq!((code, &report["bad"]), (6, &count(1, 0)), "{report}");
    assert_eq!(report["left"][0]["node"], "n3");
    assert_eq!(report["left"][0]["byte"], (2 * 1024 + 5) * 4096);
    world.held(3, |held| {
        assert_eq!((held.pulls.len(), held.flushes), (0, 0));
    });

    let (code, report) = scrub(&world, &[]);
    assert_eq!((code, &report["bad"]), (0, &count(1, 1)), "{report}");
    world.held(3, |held| {
        let [(2, 5, 1, pull)] = &held.pulls[..] else {
            panic!("{:?}", held.pulls)
        };
        assert_eq!((pull.source, pull.mode), (node_id(1), PullMode::Repair));
        assert_eq!(held.flushes, 2, "both shards");
    });
    assert_eq!(scrub(&world, &[]).1["bad"], count(0, 0));
}

#[test]
fn a_difference_is_rolled_forward() {
    let world = world();
    world.held(3, |held| held.states.insert((2, 5), state(9, 3, 0)));
    world.held(1, |held| held.heals.insert((2, 5), state(9, 3, 0)));
    let (code, report) = scrub(&world, &[]);
    assert_eq!((code, &report["different"]), (0, &count(1, 1)), "{report}");
    world.held(1, |held| assert_eq!(held.pulls[0].3.source, node_id(3)));
    world.held(3, |held| assert!(held.pulls.is_empty()));
}

#[test]
fn a_repair_that_does_not_help_is_tried_a_few_times_and_told() {
    let world = world();
    world.held(3, |held| held.states.insert((2, 5), state(4, 1, BAD)));
    let ran = world.run(&["scrub", "v"]);
    assert_eq!(ran.code, 6, "{ran:?}");
    assert!(ran.stdout.contains("left: chunk 2 sector 5"), "{ran:?}");
    world.held(3, |held| assert_eq!(held.pulls.len(), 3));
}

#[test]
fn what_is_bad_everywhere_or_only_older_elsewhere_is_left() {
    let world = world();
    world.held(1, |held| held.states.insert((2, 6), state(4, 1, BAD)));
    world.held(3, |held| {
        held.states.insert((2, 6), state(4, 1, BAD));
        held.states.insert((2, 5), state(7, 1, BAD));
    });
    let (code, report) = scrub(&world, &[]);
    assert_eq!((code, &report["bad"]), (6, &count(3, 0)), "{report}");
    world.held(3, |held| assert!(held.pulls.is_empty()));
}

#[test]
fn a_write_under_way_is_no_difference() {
    let world = world();
    world.attach("v"); // token 2, which writes
    let newer = SectorState {
        version: Version::new(Token(2), Seq(9)),
        ..state(9, 3, 0)
    };
    world.held(3, |held| held.states.insert((2, 5), newer));
    for n in [1, 3] {
        world.held(n, |held| held.settled = 8);
    }
    let (code, report) = scrub(&world, &[]);
    assert_eq!((code, &report["different"]), (0, &count(0, 0)), "{report}");
    assert_eq!(report["unsettled"], 1);
    // Told to be everywhere, and it is not.
    world.held(1, |held| {
        held.settled = 9;
        held.heals.insert((2, 5), newer);
    });
    let (code, report) = scrub(&world, &[]);
    assert_eq!((code, &report["different"]), (0, &count(1, 1)), "{report}");
}

#[test]
fn a_node_that_does_not_know_the_token_is_told() {
    let world = world();
    world.held(3, |held| held.refuse = Some(Status::NotFenced));
    let ran = world.run(&["scrub", "v"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stdout
            .contains("n3: refuses: this node has not been fenced"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("ublk-front settle v"), "{ran:?}");
}

#[test]
fn an_old_map_is_read_again_and_a_silent_node_is_told() {
    let world = world();
    world.held(1, |held| held.stale_lists = 2);
    let (code, report) = scrub(&world, &[]);
    assert_eq!((code, &report["complete"]), (0, &json!(true)), "{report}");
    world.kill_node(3);
    let (code, report) = scrub(&world, &["--rate", "1GiB/s"]);
    assert_eq!((code, &report["complete"]), (1, &json!(false)), "{report}");
    let nodes = report["nodes"].as_array().unwrap();
    let silent = nodes.iter().find(|node| node["node"] == "n3").unwrap();
    assert!(
        silent["problem"]
            .as_str()
            .unwrap()
            .contains("does not answer")
    );
    // A replica that is stale is not looked at, and not missed.
    world.transition("v", |map| transition::mark_stale(map, &[node_id(3)]));
    assert_eq!(scrub(&world, &[]).0, 0);
}
