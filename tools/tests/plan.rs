//! `plan` and `whatif` against fake nodes: what is printed, and how it ends.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a failure is the test's result

mod common;

use common::{World, node_id};
use serde_json::Value;
use ukai_meta::job::{
    JOB_FORMAT, JobLimits, JobPrediction, JobRecord, JobState, Percentiles, Tail,
};
use ukai_meta::{HostLatency, LatencyPoints, NodeLatency, catalog, transition};
use ukai_proto::heat::{ChunkHeat, HeatPage};
use ukai_proto::message::{ChunkRange, SectorState};
use ukai_proto::{ChunkIndex, Seq, Token, Version};

/// Half of the requests take `us`, all take at most twice as long.
fn points(us: f64) -> Option<LatencyPoints> {
    LatencyPoints::from_quantiles(1000, |q| us * (0.75 + q / 2.0))
}

fn latency(n: u8, us: f64) -> NodeLatency {
    NodeLatency {
        read: points(us),
        write: points(us * 1.5),
        ..NodeLatency::of(node_id(n))
    }
}

/// Measured from host hv: nodes 1 and 2 at 10 ms, 3 and 4 at 0.2 ms.
fn measured(world: &World, nodes: &[u8]) {
    let record = HostLatency {
        host: "hv".into(),
        at_unix_s: 1_790_000_000,
        by: "probe".into(),
        nodes: nodes
            .iter()
            .map(|n| latency(*n, if *n < 3 { 10_000.0 } else { 200.0 }))
            .collect(),
    };
    catalog::put_host_latency(&*world.store, &record).unwrap();
}

/// A volume of 64 chunks on n1 and n2, of which the first 32 hold data.
fn volume(world: &World) {
    world.ok(&[
        "volume", "create", "v", "--size", "256MiB", "--place", "site-a:2",
    ]);
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
}

/// What a front on `host` tells: chunks 8 to 11 get nearly all reads, all of the first 32 are written alike.
fn front(world: &World, host: &str) {
    front_since(world, host, 60);
}

/// The same, of what the guest saw in so many seconds.
fn front_since(world: &World, host: &str, over_s: u64) {
    let now_s = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    let guest = |us: f64| serde_json::json!({ "latency": points(us), "front": points(100.0), "ops_per_s": 100.0, "bytes_per_s": 409_600.0 });
    let report = serde_json::json!({
        "host": host, "token": 1, "nodes": [],
        "at_unix_s": now_s, "since_unix_s": now_s - over_s,
        "guest": { "read": guest(10_100.0), "write": guest(15_700.0), "flush": { "ops_per_s": 0.0, "bytes_per_s": 0.0 } },
    });
    let chunks = (0u8..32).map(|chunk| {
        ChunkHeat::from_rates(
            if (8..12).contains(&chunk) {
                2000.0
            } else {
                0.1
            },
            1.0,
            4096.0,
        )
    });
    let page = HeatPage {
        age_s: 100,
        half_life_s: 600,
        chunks: chunks.collect(),
    };
    world.held(1, |held| {
        held.reports.insert((1, 0), report.to_string().into_bytes());
        held.reports.insert((2, 0), page.encode());
    });
}

fn about(value: &Value, us: f64) -> bool {
    (value.as_f64().unwrap() / us - 1.0).abs() < 0.05
}

#[test]
fn the_hot_part_is_found_and_everything_is_said() {
    let world = World::new();
    volume(&world);
    measured(&world, &[1, 2, 3, 4]);
    front(&world, "hv");
    let before = world.dump();
    let args = [
        "plan",
        "v",
        "--host",
        "hv",
        "--target",
        "p99-read<=2ms",
        "--rate",
        "8MiB/s",
        "--curve",
    ];
    let plan = world.json(&args);
    assert_eq!(world.dump(), before, "a plan changes nothing");
    assert_eq!(plan["chunks_moved"], 4, "{plan}");
    assert_eq!(plan["bytes_moved"], 16 << 20);
    assert_eq!(plan["wan_bytes"], 16 << 20);
    assert_eq!(
        (plan["chunks_total"].as_u64(), plan["eta_s"].as_u64()),
        (Some(64), Some(2))
    );
    assert_eq!(plan["moves"][0]["add"], serde_json::json!(["n3"]));
    assert_eq!(plan["goals"]["ranges"], serde_json::json!([[8, 4, 0]]));
    // The front takes 100 us of a read.
    assert!(
        about(&plan["overhead_us"]["read"], 100.0),
        "{}",
        plan["overhead_us"]
    );
    assert!(
        about(&plan["now"]["read"]["p50_us"], 10_100.0)
            && about(&plan["after"]["read"]["p50_us"], 300.0),
        "{plan}"
    );
    assert!(plan["after"]["read"]["p99_us"].as_f64() <= Some(2000.0));
    assert!(plan["curve"].as_array().unwrap().len() > 3);
    assert!(plan["heat_known"]["read"].as_bool().unwrap());

    let text = world.ok(&args);
    for words in [
        "volume v, used from host hv",
        "p99-read<=2ms",
        "met",
        "n3@site-b",
        "moves 16MiB in 4 of 64 chunks, 16MiB between sites",
        "takes about 2s at 8MiB/s",
        "a margin is kept",
        "site-b 99.9",
        "####",
        "assumed:",
        "the guest waits",
        "32MiB-",
    ] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
    // Without what the front told: by what holds data alone.
    world.held(1, |held| held.reports.clear());
    let blind = world.json(&args[..6]);
    assert_eq!(blind["chunks_moved"], 32, "{blind}");
    let text = world.ok(&args[..6]);
    assert!(
        text.contains("how much each chunk is used is not known")
            && text.contains("the front's own time is not known"),
        "{text}"
    );
    assert!(text.contains("no --rate given"), "{text}");
    // Met already: nothing to do.
    let met = world.ok(&["plan", "v", "--host", "hv", "--target", "p99<=50ms"]);
    assert!(
        met.contains("nothing is to be moved: every target is met already"),
        "{met}"
    );
}

#[test]
fn the_impossible_ends_with_1_and_says_why() {
    let world = World::new();
    volume(&world);
    measured(&world, &[1, 2, 3, 4]);
    let ran = world.run(&["plan", "v", "--host", "hv", "--target", "p99-write<=2ms"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let args = [
        "plan",
        "v",
        "--host",
        "hv",
        "--target",
        "p99-write<=2ms",
        "--copies",
        "site-a:1",
    ];
    let ran = world.run(&args);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stdout
            .contains("because: the rule --copies site-a:1 forbids it"),
        "{ran:?}"
    );
    assert!(
        ran.stdout.contains("the best that can be had is 1") && ran.stderr.contains("impossible"),
        "{ran:?}"
    );
    let ran = world.run(&[&args[..], &["--json"]].concat());
    let value: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(ran.code, 1);
    assert!(
        about(&value["impossible"]["best"][0]["best_us"], 18_000.0),
        "{value}"
    );
    world.ok(&["node", "drain", "n3"]);
    world.kill_node(4);
    let ran = world.run(&["plan", "v", "--host", "hv", "--target", "p99-read<=2ms"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stdout.contains("node n3 in site-b is draining")
            || ran.stdout.contains("node n4 in site-b is not alive"),
        "{ran:?}"
    );
}

#[test]
fn what_is_not_known_is_refused_or_assumed() {
    let world = World::new();
    volume(&world);
    let target = ["plan", "v", "--target", "p99-read<=2ms"];
    let with = |more: &[&'static str]| [&target[..], more].concat();
    world.refused(&target, 2, &["nobody has volume v attached", "--host"]);
    world.refused(
        &with(&["--host", "hv"]),
        1,
        &[
            "between host hv and node n1, n2 was never measured",
            "ukai-tools probe",
            "--assume n1=2ms",
        ],
    );
    measured(&world, &[1, 3]);
    world.refused(&with(&["--host", "hv"]), 1, &["node n2 was never measured"]);
    let text = world.ok(&with(&["--host", "hv", "--assume", "site-a=5ms"]));
    assert!(
        text.contains("n2: nothing was measured: as told by --assume"),
        "{text}"
    );
    assert!(
        text.contains("n4: never measured from hv, so not considered"),
        "{text}"
    );
    assert!(!text.contains("n4@site-b"), "{text}");
    // Without a target, nothing needs to be known.
    let text = world.ok(&["plan", "v"]);
    assert!(
        text.contains("no host is given") && text.contains("nothing is to be moved"),
        "{text}"
    );
    world.refused(
        &with(&["--copies", "site-x:1"]),
        4,
        &[
            "no node belongs to site \"site-x\"",
            "sites are: site-a, site-b",
        ],
    );
    world.refused(
        &with(&["--assume", "n9=1ms"]),
        4,
        &["no node and no site is called so"],
    );
    world.refused(
        &with(&["--copies", "site-a:1,site-a:1"]),
        2,
        &["named twice"],
    );
    world.refused(&with(&["--copies", "site-a:3,site-b:2"]), 2, &["at most 4"]);
    world.refused(
        &with(&["--evacuate", "n9"]),
        4,
        &["there is no node \"n9\""],
    );
    world.refused(&["plan", "w"], 4, &["there is no volume w"]);
    world.refused(&["plan", "v", "--target", "p99<2ms"], 2, &["is no target"]);
    world.refused(&["plan", "v", "--range", "0-3MiB"], 2, &["chunk bound"]);
}

#[test]
fn moves_by_rule() {
    let world = World::new();
    volume(&world);
    let off = world.json(&["plan", "v", "--evacuate", "n1"]);
    // Half of the volume holds data; a node of another site takes it, there is none here.
    assert_eq!(
        (off["chunks_moved"].as_u64(), off["bytes_moved"].as_u64()),
        (Some(64), Some(128 << 20)),
        "{off}"
    );
    assert_eq!(off["moves"][0]["remove"], serde_json::json!(["n1"]));
    let to = world.json(&["plan", "v", "--to-site", "site-b", "--range", "0-64MiB"]);
    assert_eq!(
        (to["chunks_moved"].as_u64(), to["bytes_moved"].as_u64()),
        (Some(16), Some(128 << 20)),
        "{to}"
    );
    let one = world.json(&["plan", "v", "--copies", "site-b:1"]);
    assert_eq!(
        (
            one["moves"][0]["add"].clone(),
            one["moves"][0]["copies"].clone()
        ),
        (serde_json::json!(["n3"]), 2.into()),
        "{one}"
    );
    world.add_node(5, "site-a");
    let near = world.json(&["plan", "v", "--evacuate", "n1"]);
    assert_eq!(
        (near["moves"][0]["add"].clone(), near["wan_bytes"].clone()),
        (serde_json::json!(["n5"]), 0.into()),
        "nearer than the WAN"
    );
}

#[test]
fn what_would_be_lost() {
    let world = World::new();
    world.ok(&[
        "volume", "create", "a", "--size", "64MiB", "--place", "site-a:2",
    ]);
    world.ok(&[
        "volume",
        "create",
        "b",
        "--size",
        "64MiB",
        "--place",
        "site-a:1,site-b:1",
    ]);
    measured(&world, &[1, 2, 3, 4]);
    let lose = |names: &str, json: bool| {
        let mut args = vec!["whatif", "--lose", names];
        args.extend(json.then_some("--json"));
        world.run(&args)
    };
    let ran = lose("site-a", false);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("unreadable of a: 0B-64MiB"), "{ran:?}");
    assert!(ran.stderr.contains("without site-a, 1 volumes could not be read in whole or in part, and 1 would have fewer copies"), "{ran:?}");
    let value: Value = serde_json::from_str(&lose("site-a", true).stdout).unwrap();
    assert_eq!(
        (
            value["volumes"][0]["unreadable"].as_u64(),
            value["volumes"][1]["fewer_copies"].as_u64()
        ),
        (Some(16), Some(16))
    );
    let none = lose("n4", false);
    assert!(
        none.code == 0 && none.stdout.contains("nothing would be lost"),
        "{none:?}"
    );
    assert_eq!(lose("n1,n2,n3,n4", false).code, 1);
    world.refused(
        &["whatif", "--lose", "site-x"],
        4,
        &[
            "no site and no node is called \"site-x\"",
            "n1, n2, n3, n4, site-a, site-b",
        ],
    );
    // Latency where it is attached: reads of b would come from far away.
    world.transition("b", |map| {
        let by = ukai_meta::Attach {
            host: "hv".into(),
            boot: ukai_proto::BootId([9; 16]),
            front: [1; 16],
        };
        transition::attach(map, by, false)
    });
    let value: Value = serde_json::from_str(&lose("site-b", true).stdout).unwrap();
    let b = &value["volumes"][1];
    assert!(
        about(&b["now"]["read"]["p50_us"], 200.0) && about(&b["after"]["read"]["p50_us"], 10_000.0),
        "{b}"
    );
}

#[test]
fn the_score_compares_prediction_and_measurement() {
    let world = World::new();
    volume(&world);
    world.refused(&["plan", "--score", "v"], 4, &["was never relocated"]);
    let map = world.map("v");
    let tail = |us: f64| Tail {
        p50_us: us,
        p99_us: us * 1.5,
        p999_us: us * 1.5,
    };
    let range = ChunkRange {
        start: ChunkIndex(0),
        count: 1,
    };
    let job = JobRecord {
        format: JOB_FORMAT,
        volume: map.head.volume,
        name: "v".into(),
        created_unix_s: 1,
        asked: "relocate v --host hv".into(),
        state: JobState::Done,
        copied_unix_s: Some(2),
        ended_unix_s: Some(2),
        limits: JobLimits::default(),
        sets: vec![ukai_meta::job::GoalSet {
            add: vec![node_id(3)],
            remove: vec![node_id(1)],
            copies: 2,
        }],
        goals: vec![(range.start.0, range.count, 0)],
        prediction: Some(JobPrediction {
            host: "hv".into(),
            before: Percentiles {
                read: tail(20_000.0),
                write: tail(30_000.0),
            },
            after: Percentiles {
                read: tail(10_000.0),
                write: tail(15_700.0),
            },
        }),
        score: None,
    };
    catalog::create_job(&*world.store, &job).unwrap();
    let text = world.ok(&["plan", "--score", "v"]);
    assert!(text.contains("nothing measured yet"), "{text}");
    front(&world, "elsewhere");
    assert!(
        world
            .ok(&["plan", "--score", "v"])
            .contains("the volume is used from host elsewhere")
    );
    // Half of this minute was before the move.
    let ended = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs()
        - 30;
    catalog::update_job(&*world.store, map.head.volume, "v", |job| {
        job.ended_unix_s = Some(ended);
        Ok(true)
    })
    .unwrap();
    front(&world, "hv");
    let score = world.json(&["plan", "--score", "v"]);
    assert!(
        score["measured"].is_null() && score["again_in_s"].as_u64() >= Some(1),
        "{score}"
    );
    let text = world.ok(&["plan", "--score", "v"]);
    assert!(
        text.contains("not measured yet") && text.contains("ask again in"),
        "{text}"
    );
    front_since(&world, "hv", 25);
    let score = world.json(&["plan", "--score", "v"]);
    assert!(
        about(&score["ratio"]["read"]["p50"], 1.01) && about(&score["ratio"]["write"]["p50"], 1.0),
        "{score}"
    );
    let text = world.ok(&["plan", "--score", "v"]);
    assert!(
        text.contains("measured against predicted")
            && text.contains("+1 %")
            && text.contains("done"),
        "{text}"
    );
    // It stays with the job when no front tells anything any more.
    world.held(1, |held| held.reports.clear());
    let kept = world.json(&["plan", "--score", "v"]);
    assert_eq!(
        (&kept["measured"], &kept["measured_at_unix_s"]),
        (&score["measured"], &score["measured_at_unix_s"])
    );
    world.refused(
        &["plan", "--score", "v", "--host", "hv"],
        2,
        &["cannot be used with"],
    );
}
