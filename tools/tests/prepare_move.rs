//! `prepare-move`, `relocate --drop-surplus` and `relocate --follow` against fake nodes: the jobs that are made, and
//! what is said.

#![allow(clippy::unwrap_used)] // a failure is the test's result

mod common;

use common::{World, command, node_id};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use ukai_meta::job::{Batch, GoalSet, JobRecord, JobState, Next};
use ukai_meta::transition::Change;
use ukai_meta::{HostLatency, LatencyPoints, NodeLatency, catalog, job, transition};
use ukai_proto::heat::{ChunkHeat, HeatPage};
use ukai_proto::message::{ChunkRange, SectorState};
use ukai_proto::{ChunkIndex, Seq, Token, Version};

fn points(us: f64) -> Option<LatencyPoints> {
    LatencyPoints::from_quantiles(1000, |q| us * (0.75 + q / 2.0))
}

/// Reads and writes of these nodes as measured from a host.
fn measured(world: &World, host: &str, us: &[(u8, f64)]) {
    let record = HostLatency {
        host: host.into(),
        at_unix_s: 1_790_000_000,
        by: "probe".into(),
        nodes: us
            .iter()
            .map(|(n, us)| NodeLatency {
                read: points(*us),
                write: points(*us),
                ..NodeLatency::of(node_id(*n))
            })
            .collect(),
    };
    catalog::put_host_latency(&*world.store, &record).unwrap();
}

/// A volume of 64 chunks on n1 and n2, attached on `elsewhere`, which is near them; hv2 is near n3 and n4.
/// Chunks 8 to 11 get nearly all reads.
fn world() -> World {
    let world = World::new();
    world.ok(&[
        "volume", "create", "v", "--size", "256MiB", "--place", "site-a:2",
    ]);
    world.attach("v");
    measured(
        &world,
        "elsewhere",
        &[(1, 200.0), (2, 220.0), (3, 9e3), (4, 1e4)],
    );
    measured(&world, "hv2", &[(1, 9e3), (2, 1e4), (3, 200.0), (4, 220.0)]);
    for n in [1, 2] {
        world.held(n, |held| {
            for chunk in 0..32 {
                let state = SectorState {
                    version: Version::new(Token(1), Seq(1)),
                    ..SectorState::UNWRITTEN
                };
                held.states.insert((chunk, 0), state);
            }
        });
    }
    let rate = |chunk: u8| {
        if (8..12).contains(&chunk) {
            2000.0
        } else {
            0.1
        }
    };
    let page = HeatPage {
        age_s: 100,
        half_life_s: 600,
        chunks: (0..32)
            .map(|chunk| ChunkHeat::from_rates(rate(chunk), 1.0, 4096.0))
            .collect(),
    };
    world.tell_front(1, 1, 1_790_000_000);
    world.tell_heat(1, 0, &page);
    world
}

fn record(world: &World) -> Option<JobRecord> {
    let volume = world.map("v").head.volume;
    catalog::job(&*world.store, volume)
        .unwrap()
        .map(|(job, _)| job)
}

const PREPARE: [&str; 6] = [
    "prepare-move",
    "v",
    "--host",
    "hv2",
    "--target",
    "p99-read<=2ms",
];

fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, more].concat()
}

#[test]
fn the_hot_part_gets_a_copy_and_nothing_is_taken_away() {
    let world = world();
    let dry = world.ok(&with(&PREPARE, &["--dry-run"]));
    assert_eq!(record(&world), None, "a dry run made a job");
    for words in [
        "used from host hv2",
        "n3@site-b",
        "wait for the new copies too",
        "where the volume is used. There:",
        "with the copies",
        "--host hv2 --drop-surplus",
        "--host elsewhere --drop-surplus",
    ] {
        assert!(dry.contains(words), "no {words:?} in\n{dry}");
    }
    let told = world.json(&with(&PREPARE, &["--dry-run", "--rate", "8MiB/s"]));
    assert_eq!(told["state"], "would-copy");
    assert!(
        told["after"]["read"]["p99_us"].as_f64() <= Some(2000.0),
        "{told}"
    );
    // Where it is used now, writes of the hot chunks come to wait for the far copy.
    let write = |when: &str| told["present"][when]["write"]["p99_us"].as_f64().unwrap();
    assert!(write("now") < 500.0 && write("after") > 5000.0, "{told}");
    assert_eq!(told["present"]["host"], "elsewhere");

    world.ok(&with(&PREPARE, &["--no-wait", "--rate", "8MiB/s"]));
    let made = record(&world).unwrap();
    let set = GoalSet {
        add: vec![node_id(3)],
        remove: vec![],
        copies: 2,
    };
    assert_eq!((&made.sets, &made.goals), (&vec![set], &vec![(8, 4, 0)]));
    assert_eq!(made.limits.rate_bytes_per_s, Some(8 << 20));
    assert_eq!(made.prediction.unwrap().host, "hv2");
    let words = ["has a relocation job already"];
    world.refused(&with(&PREPARE, &["--no-wait"]), 5, &words);
}

#[test]
fn a_share_is_meant_as_it_is_said() {
    let world = world();
    let args = [
        "prepare-move",
        "v",
        "--host",
        "hv2",
        "--share",
        "49%",
        "--dry-run",
    ];
    let told = world.json(&args);
    assert_eq!(told["chunks_moved"], 2, "{told}");
    // All of it has a copy there already.
    for range in [8, 9, 10, 11] {
        let range = ChunkRange {
            start: ChunkIndex(range),
            count: 1,
        };
        world.transition("v", |map| transition::add_location(map, range, node_id(3)));
        world.transition("v", |map| transition::promote(map, range, node_id(3)));
    }
    let told = world.json(&args);
    assert_eq!(told["state"], "prepared", "{told}");
    let text = world.ok(&PREPARE);
    assert!(text.contains("nothing is copied"), "{text}");
    assert_eq!(record(&world), None);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let world = world();
    let of = |more: &[&'static str]| with(&["prepare-move", "v"], more);
    world.refused(
        &of(&["--host", "hv2", "--target", "p99-write<=2ms"]),
        2,
        &["no write faster"],
    );
    world.refused(
        &of(&["--host", "hv2", "--target", "p99<=2ms"]),
        2,
        &["reads"],
    );
    world.refused(
        &of(&["--host", "elsewhere", "--share", "0.9"]),
        1,
        &["attached on elsewhere already"],
    );
    world.refused(&of(&["--host", "hv2"]), 2, &["--target"]);
    world.refused(&of(&["--host", "hv2", "--share", "2"]), 2, &["no share"]);
    world.refused(
        &of(&["--host", "hv9", "--share", "0.9"]),
        1,
        &["never measured", "probe"],
    );
}

#[test]
fn chunks_with_all_the_replicas_there_can_be_are_named() {
    let world = world();
    let all = world.map("v").all();
    for n in 5..=10 {
        world.add_node(n, "site-c");
        world.transition("v", |map| transition::add_location(map, all, node_id(n)));
        world.transition("v", |map| transition::promote(map, all, node_id(n)));
    }
    let far: Vec<(u8, f64)> = [1, 2, 5, 6, 7, 8, 9, 10].map(|n| (n, 9e3)).to_vec();
    measured(&world, "hv2", &far);
    let ran = world.fails(&PREPARE);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stdout
            .contains("32 chunks have 8 replicas already, the most that are possible"),
        "{ran:?}"
    );
    assert_eq!(record(&world), None);
}

#[test]
fn surplus_copies_go_by_a_job_too() {
    let world = world();
    let range = ChunkRange {
        start: ChunkIndex(8),
        count: 4,
    };
    let none = world.ok(&["relocate", "v", "--drop-surplus", "--no-wait"]);
    assert!(none.contains("nothing moves"), "{none}");
    world.transition("v", |map| transition::add_location(map, range, node_id(3)));
    world.transition("v", |map| transition::promote(map, range, node_id(3)));
    let said = world.ok(&[
        "relocate",
        "v",
        "--host",
        "hv2",
        "--drop-surplus",
        "--no-wait",
    ]);
    assert!(said.contains("4 chunks of volume v lose copies"), "{said}");
    let made = record(&world).unwrap();
    let set = GoalSet {
        add: vec![],
        remove: vec![node_id(2)],
        copies: 2,
    };
    assert_eq!((&made.sets, &made.goals), (&vec![set], &vec![(8, 4, 0)]));
    assert_eq!(made.state, JobState::Running);
    // What the front will do with it.
    let batch = Batch {
        chunks_max: 100,
        changes_max: 16,
    };
    let step = job::next(&world.map("v"), &made, batch, |_| true, false).next;
    let change = Change::RemoveLocation {
        range,
        node: node_id(2),
        min_copies: 2,
    };
    assert_eq!(step, Next::Changes(vec![change]));
}

const FOLLOW: [&str; 5] = ["relocate", "v", "--follow", "--target", "p99-read<=2ms"];

/// The volume is now used from where n1 and n2 are far.
fn break_the_target(world: &World) {
    let us = [(1, 9e3), (2, 1e4), (3, 200.0), (4, 220.0)];
    measured(world, "elsewhere", &us);
}

#[test]
fn one_look_moves_what_is_too_slow_and_never_twice() {
    let world = world();
    let once = with(&FOLLOW, &["--once", "--rate", "8MiB/s"]);
    let met = world.ok(&once);
    assert!(met.contains("v: the targets are met"), "{met}");
    break_the_target(&world);
    // An hour that is half a day away.
    let hour = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / 3600 % 24;
    let hours = format!("{:02}:00-{:02}:00", (hour + 12) % 24, (hour + 13) % 24);
    let later = world.ok(&with(&once, &["--quiet-hours", &hours]));
    assert!(later.contains("not the time"), "{later}");
    let dry = world.ok(&with(&once, &["--dry-run"]));
    assert!(
        dry.contains("4 chunks would be moved towards host elsewhere"),
        "{dry}"
    );
    assert_eq!(record(&world), None);
    let moved = world.ok(&once);
    assert!(
        moved.contains("4 chunks are moved towards host elsewhere"),
        "{moved}"
    );
    let made = record(&world).unwrap();
    assert_eq!(made.sets[0].add, [node_id(3)]);
    assert_eq!((made.sets[0].copies, made.sets[0].remove.len()), (2, 1));
    assert_eq!(made.limits.rate_bytes_per_s, Some(8 << 20));
    assert!(made.asked.contains("--follow"), "{}", made.asked);
    let again = world.ok(&once);
    assert!(again.contains("a job is there"), "{again}");
    // Cancelled: whoever did it had a reason.
    let volume = made.volume;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    catalog::update_job(&*world.store, volume, "v", |job| {
        (job.state, job.ended_unix_s) = (JobState::Cancelled, Some(now));
        Ok(true)
    })
    .unwrap();
    let all = [
        "relocate",
        "--all",
        "--follow",
        "--target",
        "p99-read<=2ms",
        "--once",
    ];
    let gave_up = world.json(&all);
    assert!(
        gave_up["said"].as_str().unwrap().contains("cancelled"),
        "{gave_up}"
    );
    world.refused(&["relocate", "v", "--follow"], 2, &["--target"]);
    world.refused(&["relocate", "v", "--every", "5s"], 2, &["--follow"]);
    world.refused(&with(&once, &["--quiet-hours", "late"]), 2, &["no hours"]);
    world.refused(
        &[
            "relocate",
            "w",
            "--follow",
            "--target",
            "p99-read<=2ms",
            "--once",
        ],
        4,
        &["no volume w"],
    );
}

#[test]
fn the_loop_looks_twice_and_leaves_the_job_alone_when_it_is_told_to_end() {
    let world = world();
    break_the_target(&world);
    let mut child = command()
        .args(FOLLOW)
        .args(["--every", "1s", "--meta", &world.url])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    assert_eq!(line(), "v: a target is broken; one more look");
    assert_eq!(record(&world), None, "one look is not enough");
    assert_eq!(line(), "v: 4 chunks are moved towards host elsewhere");
    assert_eq!(line(), "v: a job is there");
    let killed = Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(record(&world).unwrap().state, JobState::Running);
}
