//! What `format`, `run` and `show` refuse, in which words and with which exit code.
#![allow(clippy::cast_possible_truncation)] // test data is small

mod client;

use client::{BINARY, Cluster, text};
use std::fs;
use std::process::{Command, Output};

const FAILED: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const REFUSED: Option<i32> = Some(3);

#[track_caller]
fn refused(output: &Output, code: Option<i32>, words: &[&str]) {
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), code, "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is missing in: {message}");
    }
}

#[test]
fn a_formatted_path_is_not_formatted_again_unless_told() {
    let cluster = Cluster::new();
    assert!(cluster.format("n0", &["--size", "64MiB"]).status.success());
    let path = cluster.path("n0");
    let path = path.to_str().expect("utf-8");
    let before = fs::read(path).expect("read");
    let again = [
        "format", path, "--site", "s", "--name", "n1", "--size", "32MiB",
    ];
    refused(
        &cluster.run(&again),
        REFUSED,
        &["already formatted", "n0", "--force"],
    );
    assert!(
        fs::read(path).expect("read") == before,
        "a refusal changes nothing"
    );
    let forced: Vec<&str> = again.iter().copied().chain(["--force"]).collect();
    assert!(cluster.run(&forced).status.success());
    let shown = cluster.run(&["show", path]);
    assert!(text(&shown.stdout).contains("n1"), "{shown:?}");
}

#[test]
fn other_data_is_not_overwritten_unless_told() {
    let cluster = Cluster::new();
    fs::write(cluster.path("n0"), vec![b'x'; 1 << 20]).expect("write");
    let output = cluster.format("n0", &["--size", "64MiB"]);
    refused(&output, REFUSED, &["holds data", "--force"]);
    assert_eq!(
        fs::metadata(cluster.path("n0")).expect("file").len(),
        1 << 20
    );
    let path = cluster.path("n0");
    let shown = cluster.run(&["show", path.to_str().expect("utf-8")]);
    refused(&shown, REFUSED, &["not formatted"]);
}

#[test]
fn formats_that_cannot_be() {
    let cluster = Cluster::new();
    refused(&cluster.format("n0", &[]), REFUSED, &["--size"]);
    refused(
        &cluster.format("n0", &["--size", "1MiB"]),
        REFUSED,
        &["too few"],
    );
    assert!(
        !cluster.path("n0").exists(),
        "nothing is left of a failed format"
    );
    refused(
        &cluster.format("n0", &["--size", "64 parsec"]),
        USAGE,
        &["parsec"],
    );
    refused(
        &cluster.format("a b", &["--size", "64MiB"]),
        REFUSED,
        &["a b", "characters"],
    );
    let output = cluster.format("n0", &["--size", "64MiB", "--label", "rack"]);
    refused(&output, USAGE, &["KEY=VALUE"]);
    let output = cluster.format("n0", &["--size", "64MiB", "--shards", "0"]);
    refused(&output, USAGE, &["shards"]);
}

#[test]
fn memory_is_no_medium() {
    let cluster = Cluster::new();
    let path = format!("/dev/shm/chunkstore-test-{}", std::process::id());
    let args = [
        "format", &path, "--site", "s", "--name", "n", "--size", "64MiB",
    ];
    refused(&cluster.run(&args), REFUSED, &["tmpfs"]);
    assert!(!fs::exists(&path).expect("look"));
}

#[test]
fn the_cluster_must_exist_and_names_are_unique() {
    let cluster = Cluster::new();
    let path = |name| cluster.path(name).to_str().expect("utf-8").to_owned();
    let (first, second) = (path("n0"), path("n1"));
    let args = [
        "format", &first, "--site", "s", "--name", "n0", "--size", "64MiB",
    ];
    refused(&cluster.run(&args), REFUSED, &["--cluster-init"]);
    let node = cluster.node("n0");
    let args = [
        "format", &second, "--site", "s", "--name", "n0", "--size", "64MiB",
    ];
    refused(&cluster.run(&args), REFUSED, &["n0", &node.id.to_string()]);
    // Without a metadata store at all.
    let output = Command::new(BINARY)
        .args(args)
        .env_remove("UKAI_META")
        .output();
    refused(&output.expect("run"), USAGE, &["--meta", "UKAI_META"]);
}

#[test]
fn plaintext_stays_on_this_host_unless_told() {
    let cluster = Cluster::new();
    assert!(cluster.format("n0", &["--size", "64MiB"]).status.success());
    let path = cluster.path("n0");
    let path = path.to_str().expect("utf-8");
    let output = cluster.run(&["run", path, "--listen", "192.0.2.1:7000"]);
    refused(
        &output,
        REFUSED,
        &["192.0.2.1:7000", "--insecure-plaintext"],
    );
    let any = ["run", path, "--listen", "0.0.0.0:0", "--insecure-plaintext"];
    refused(&cluster.run(&any), REFUSED, &["--advertise"]);
    let node = cluster.start(
        "n0",
        &[
            "--listen",
            "0.0.0.0:0",
            "--insecure-plaintext",
            "--advertise",
            "127.0.0.1",
        ],
    );
    let log = fs::read_to_string(cluster.path("n0.log")).expect("log");
    assert!(log.contains("INSECURE"), "{log}");
    drop(node.client());
    assert!(node.stop().success());
}

#[test]
fn a_path_serves_one_process() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let path = cluster.path("n0");
    let path = path.to_str().expect("utf-8");
    refused(&cluster.run(&["run", path]), REFUSED, &["in use"]);
    let again = ["format", path, "--site", "s", "--name", "n1", "--force"];
    refused(&cluster.run(&again), REFUSED, &["in use"]);
    drop(node.client());
}

#[test]
fn a_copy_of_a_node_is_told_where_the_original_runs() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    fs::copy(cluster.path("n0"), cluster.path("copy")).expect("copy");
    let copy = cluster.path("copy");
    let output = cluster.run(&["run", copy.to_str().expect("utf-8")]);
    let id = node.id.to_string();
    refused(&output, REFUSED, &["already running", &id, "same uuid"]);
    // The original is not disturbed, and its lease is still its own.
    drop(node.client());
    assert!(node.stop().success());
    // Now the copy is the only one that runs, but it lacks what the original wrote since.
    refuses_older_copy(&cluster, "copy", &id);
    let node = cluster.start("n0", &[]);
    assert_eq!(node.id.to_string(), id);
}

#[track_caller]
fn refuses_older_copy(cluster: &Cluster, name: &str, id: &str) {
    let path = cluster.path(name);
    let output = cluster.run(&["run", path.to_str().expect("utf-8")]);
    refused(
        &output,
        REFUSED,
        &["older copy", id, "node forget", "format --force"],
    );
}

#[test]
fn a_node_restored_from_a_backup_never_serves() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let id = node.id.to_string();
    assert!(node.stop().success());
    fs::copy(cluster.path("n0"), cluster.path("backup")).expect("copy");
    // It runs once more, and its machine dies without a word.
    let node = cluster.start("n0", &[]);
    let mut client = node.client();
    assert_eq!(client.fence(1, 1), ukai_proto::Status::Ok);
    node.kill();
    fs::copy(cluster.path("backup"), cluster.path("n0")).expect("restore");
    for _ in 0..2 {
        refuses_older_copy(&cluster, "n0", &id);
    }
    // As told: a new node of it, with an identity of its own.
    let path = cluster.path("n0");
    let path = path.to_str().expect("utf-8");
    let again = ["format", path, "--site", "s", "--name", "n1", "--force"];
    assert!(cluster.run(&again).status.success());
    let node = cluster.start("n0", &[]);
    assert_ne!(node.id.to_string(), id);
    let mut client = node.client();
    assert_eq!(client.read(0, 0, 1), Err(ukai_proto::Status::NotFenced));
}

/// A stopped node that has fences and data, with some of its bytes changed; it must not start.
#[track_caller]
fn damaged(change: impl Fn(&mut [u8]), words: &[&str]) {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    let mut client = node.client();
    assert_eq!(client.fence(3, 4), ukai_proto::Status::Ok);
    assert_eq!(
        client.write(0, 0, 1, client::pattern(1, 4)),
        ukai_proto::Status::Ok
    );
    assert!(node.stop().success());
    let path = cluster.path("n0");
    let mut bytes = fs::read(&path).expect("read");
    change(&mut bytes);
    fs::write(&path, bytes).expect("write");
    for _ in 0..2 {
        let output = cluster.run(&["run", path.to_str().expect("utf-8")]);
        refused(&output, FAILED, words);
    }
}

const REGION: usize = 1 << 20;

#[test]
fn a_node_that_lost_both_shard_superblocks_never_serves() {
    let change = |bytes: &mut [u8]| bytes[REGION..REGION + 8192].fill(0);
    damaged(change, &["shard 0", "superblock"]);
    let change = |bytes: &mut [u8]| {
        bytes[REGION + 200] ^= 1;
        bytes[REGION + 4096 + 200] ^= 1;
    };
    damaged(change, &["shard 0"]);
}

#[test]
fn a_node_that_lost_its_log_and_so_its_fences_never_serves() {
    let log = REGION + (64 << 10);
    damaged(
        |bytes| bytes[log..log + (1 << 20)].fill(0),
        &["shard 0", "damaged"],
    );
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    assert!(ours.format("n0", &["--size", "64MiB"]).status.success());
    assert!(theirs.format("n0", &["--size", "64MiB"]).status.success());
    let path = ours.path("n0");
    let output = theirs.run(&["run", path.to_str().expect("utf-8")]);
    refused(&output, REFUSED, &["cluster", "--meta"]);
}

#[test]
fn a_damaged_superblock_is_refused() {
    let cluster = Cluster::new();
    assert!(cluster.format("n0", &["--size", "64MiB"]).status.success());
    let mut bytes = fs::read(cluster.path("n0")).expect("read");
    bytes[100] ^= 1;
    bytes[4096 + 100] ^= 1;
    fs::write(cluster.path("n0"), bytes).expect("write");
    let path = cluster.path("n0");
    let output = cluster.run(&["run", path.to_str().expect("utf-8")]);
    refused(&output, REFUSED, &["superblock", "damaged"]);
}

#[test]
fn an_address_in_use_is_a_failure() {
    let cluster = Cluster::new();
    let node = cluster.node("n0");
    assert!(cluster.format("n1", &["--size", "64MiB"]).status.success());
    let taken = node.shards[0][0].strip_prefix("tcp:").expect("tcp");
    let path = cluster.path("n1");
    let output = cluster.run(&["run", path.to_str().expect("utf-8"), "--listen", taken]);
    refused(&output, FAILED, &["listen on", taken]);
}
