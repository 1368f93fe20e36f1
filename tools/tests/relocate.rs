//! `relocate` and `job`: what is written, what is refused, and how it is told. No front runs here.

#![allow(clippy::unwrap_used)] // a failure is the test's result

mod common;

use common::{World, node_id};
use ukai_meta::catalog;
use ukai_meta::job::{GoalSet, JobProgress, JobRecord, JobState};

fn world() -> World {
    let world = World::new();
    world.ok(&[
        "volume", "create", "v", "--size", "64MiB", "--node", "n1,n3",
    ]);
    world.attach("v");
    world
}

fn job(world: &World) -> JobRecord {
    let volume = world.map("v").head.volume;
    catalog::job(&*world.store, volume).unwrap().unwrap().0
}

const MOVE: [&str; 5] = ["relocate", "v", "--node", "n1,n4", "--no-wait"];

#[test]
fn a_job_is_written_as_asked() {
    let world = world();
    let before = world.dump();
    let dry = world.ok(&[
        "relocate",
        "v",
        "--node",
        "n1,n4",
        "--dry-run",
        "--rate",
        "8MiB/s",
    ]);
    assert!(
        dry.contains("would move 16 chunks in 1 ranges, at most 64MiB, at 8MiB/s no more than 8s"),
        "{dry}"
    );
    assert_eq!(world.dump(), before, "a dry run changed something");
    let extra = [
        "--rate",
        "200MiB/s",
        "--protect",
        "p99<=3ms|+20%",
        "--detach-old-after",
        "10m",
        "--deadline",
        "2h",
    ];
    let said = world.ok(&[&MOVE[..], &extra[..]].concat());
    assert!(said.contains("job watch v"), "{said}");
    let job = job(&world);
    let set = GoalSet {
        add: vec![node_id(1), node_id(4)],
        remove: vec![node_id(3)],
        copies: 2,
    };
    assert_eq!((&job.sets, &job.goals), (&vec![set], &vec![(0, 16, 0)]));
    assert_eq!(job.state, JobState::Running);
    assert_eq!(job.limits.rate_bytes_per_s, Some(200 << 20));
    assert_eq!(job.limits.detach_old_after_s, 600);
    assert_eq!(job.limits.deadline_unix_s, Some(job.created_unix_s + 7200));
    let protect = job.limits.protect.unwrap();
    assert_eq!(
        (protect.p99_us_max, protect.over_base_percent),
        (Some(3000), Some(20))
    );
    assert!(
        job.asked.starts_with("relocate v --node n1,n4"),
        "{}",
        job.asked
    );
}

#[test]
fn a_job_is_listed_shown_and_steered() {
    let world = world();
    assert_eq!(world.json(&["job", "list"]), serde_json::json!([]));
    world.ok(&MOVE);
    let list = world.ok(&["job", "list"]);
    assert!(
        list.lines()
            .nth(1)
            .is_some_and(|line| line.starts_with("v ") && line.contains("running")),
        "{list}"
    );
    let shown = world.json(&["job", "show", "v"]);
    assert_eq!(shown["progress"]["total_chunks"], 16);
    assert_eq!(shown["job"]["goals"], 1);
    let text = world.ok(&["job", "show", "v"]);
    assert!(text.contains("to n1,n4, from n3"), "{text}");
    world.ok(&["job", "pause", "v"]);
    assert_eq!(job(&world).state, JobState::Paused);
    world.ok(&["job", "set-rate", "v", "5MiB/s"]);
    world.ok(&["job", "set-protect", "v", "p99<=2ms"]);
    assert_eq!(job(&world).limits.rate_bytes_per_s, Some(5 << 20));
    assert_eq!(job(&world).limits.protect.unwrap().p99_us_max, Some(2000));
    world.ok(&["job", "set-rate", "v", "none"]);
    world.ok(&["job", "set-protect", "v", "none"]);
    assert_eq!(
        (
            job(&world).limits.rate_bytes_per_s,
            job(&world).limits.protect
        ),
        (None, None)
    );
    world.ok(&["job", "resume", "v"]);
    world.ok(&["job", "cancel", "v"]);
    assert_eq!(job(&world).state, JobState::Cancelling);
    world.refused(&["job", "resume", "v"], 1, &["cannot resume", "cancelling"]);
}

#[test]
fn another_host_reads_the_progress_from_a_node() {
    let world = world();
    world.ok(&MOVE);
    let blind = world.json(&["job", "show", "v"]);
    assert_eq!(blind["told_by_front"], false);
    let now = job(&world).created_unix_s;
    let progress = JobProgress {
        copied_bytes: 7 << 20,
        rate_bytes_per_s: 3 << 20,
        eta_s: Some(19),
        limited_by: "guest p99".into(),
        guest_p99_us: Some(2500),
        budget_us: Some(3000),
        ..JobProgress::default()
    };
    let tell = |host: &str, at: u64| world.tell_job(3, host, at, progress.clone());
    // Told of another job, by another front, or long ago: of no use.
    for (host, at) in [
        ("elsewhere", now - 1),
        ("hv7", now),
        ("elsewhere", now + 3600),
    ] {
        tell(host, at);
        let shown = world.json(&["job", "show", "v"]);
        assert_eq!(shown["told_by_front"], false, "{host} {at}: {shown}");
    }
    // By the right front, still of the job before.
    let before = JobProgress {
        created_unix_s: Some(now - 7),
        ..progress.clone()
    };
    world.tell_job(3, "elsewhere", now, before);
    let shown = world.json(&["job", "show", "v"]);
    assert_eq!(shown["told_by_front"], false, "{shown}");
    tell("elsewhere", now);
    let shown = world.json(&["job", "show", "v"]);
    assert_eq!(shown["told_by_front"], true, "{shown}");
    assert!(shown["told_s_ago"].is_u64(), "{shown}");
    assert_eq!(shown["progress"]["rate_bytes_per_s"], 3 << 20);
    // Counts come from the map, which is newer.
    assert_eq!(shown["progress"]["total_chunks"], 16);
    assert_eq!(shown["progress"]["state"], "running");
    let text = world.ok(&["job", "show", "v"]);
    for words in [
        "guest p99 2.5ms of 3ms",
        "3MiB/s",
        "19s",
        "on another host",
        "limited by",
    ] {
        assert!(text.contains(words), "no {words:?} in\n{text}");
    }
    let list = world.ok(&["job", "list"]);
    assert!(
        list.contains("guest p99") && list.contains("3MiB/s"),
        "{list}"
    );
}

#[test]
fn what_is_not_possible_says_what_to_do() {
    let world = world();
    world.refused(
        &["relocate", "v", "--node", "n1"],
        1,
        &["2 copies", "as many nodes"],
    );
    world.refused(
        &["relocate", "v", "--node", "n9,n1"],
        4,
        &["no node \"n9\"", "n1, n2"],
    );
    world.refused(&["relocate", "w", "--node", "n1,n2"], 4, &["no volume w"]);
    world.refused(
        &["relocate", "v", "--node", "n1,n2", "--protect", "fast"],
        2,
        &["p99<=3ms"],
    );
    world.refused(
        &["relocate", "v", "--node", "n1,n2", "--rate", "0"],
        2,
        &["rate of 0"],
    );
    world.refused(
        &["relocate", "v", "--node", "n1,n2", "--deadline", "soon"],
        2,
        &["10m"],
    );
    world.refused(&["job", "show", "v"], 4, &["no relocation job"]);
    world.ok(&["node", "drain", "n2"]);
    world.refused(
        &["relocate", "v", "--node", "n1,n2"],
        1,
        &["n2 is draining", "undrain"],
    );
    let same = world.ok(&["relocate", "v", "--node", "n3,n1"]);
    assert!(same.contains("nothing moves"), "{same}");
    world.ok(&MOVE);
    let other = [&MOVE[..], &["--rate", "1MiB/s"]].concat();
    let words = ["has a relocation job already", "job cancel v"];
    world.refused(&other, 5, &words);
}

#[test]
fn how_a_job_ended_is_the_exit_code() {
    let world = world();
    world.ok(&MOVE);
    let volume = world.map("v").head.volume;
    let end = |state: JobState| {
        let set = |job: &mut JobRecord| {
            job.state = state.clone();
            Ok(true)
        };
        catalog::update_job(&*world.store, volume, "v", set).unwrap();
    };
    end(JobState::Done);
    world.ok(&["job", "watch", "v"]);
    assert_eq!(world.json(&["job", "list"]), serde_json::json!([]));
    let all = world.ok(&["job", "list", "--all"]);
    assert!(all.contains("done"), "{all}");
    end(JobState::Failed {
        why: "n4 is gone".into(),
    });
    world.refused(&["job", "watch", "v"], 1, &["n4 is gone", "job resume v"]);
    end(JobState::Cancelled);
    world.refused(&["job", "watch", "v"], 1, &["cancelled"]);
}
