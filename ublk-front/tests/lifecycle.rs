//! Attach, detach, and everything that may be wrong with either.

#![allow(clippy::unwrap_used)] // helpers of tests too

mod common;

use common::nbd::NbdClient;
use common::{Cluster, Front, pattern};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

fn ask(cluster: &Cluster, request: &str) -> Value {
    let mut stream = UnixStream::connect(cluster.run_dir().join("vol.sock")).unwrap();
    stream.write_all(format!("{request}\n").as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn status_stats_and_list_tell_what_is_there() {
    let cluster = Cluster::new(2);
    let front = cluster.attach(&["--host", "hv1"]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    client.write(0, &pattern(1, 8192));
    client.read(0, 4096);
    let status = ask(&cluster, r#"{"cmd":"status"}"#);
    assert_eq!(status["control"]["phase"], "serving");
    assert_eq!(status["control"]["lanes"], 1);
    assert_eq!(status["host"], "hv1");
    let stats = ask(&cluster, r#"{"cmd":"stats"}"#);
    assert_eq!(
        (&stats["write"]["count"], &stats["read"]["count"]),
        (&1.into(), &1.into())
    );
    assert_eq!(stats["write_bytes"], 8192);
    assert_eq!(stats["nodes"].as_array().unwrap().len(), 2);
    client.disconnect();
    // Counters outlive the connection.
    assert_eq!(ask(&cluster, r#"{"cmd":"stats"}"#)["write"]["count"], 1);
    assert_eq!(ask(&cluster, r#"{"cmd":"explode"}"#)["ok"], false);
    assert_eq!(ask(&cluster, "no json")["ok"], false);
    let shown = text(&cluster.output(&["status", "vol"]));
    assert!(
        shown.contains("serving") && shown.contains("n0") && shown.contains("n1"),
        "{shown}"
    );
    let listed = text(&cluster.output(&["list"]));
    assert!(listed.contains("vol") && listed.contains("hv1"), "{listed}");
    let json: Value = serde_json::from_str(&text(&cluster.output(&["list", "--json"]))).unwrap();
    assert_eq!(json[0]["host"], "hv1");
}

#[test]
fn detach_is_refused_while_a_client_is_connected_unless_forced() {
    let cluster = Cluster::new(1);
    let mut front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    client.write(0, &pattern(1, 4096));
    let output = cluster.output(&["detach", "vol"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(text(&output).contains("connected"), "{}", text(&output));
    assert_eq!(client.read(0, 4096), pattern(1, 4096));
    assert!(
        cluster
            .output(&["detach", "vol", "--force"])
            .status
            .success()
    );
    assert_eq!(front.exit_code(), Some(0));
    let output = cluster.output(&["detach", "vol"]);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output));
    assert_eq!(cluster.output(&["status", "vol"]).status.code(), Some(4));
    let head = ukai_meta::catalog::load_head(cluster.store(), cluster.volume).unwrap();
    assert_eq!(head.attach, None);
}

#[test]
fn a_signal_detaches() {
    let cluster = Cluster::new(1);
    for signal in ["-TERM", "-INT"] {
        let mut front = cluster.attach(&[]);
        front.signal(signal);
        assert_eq!(front.exit_code(), Some(0));
    }
    let head = ukai_meta::catalog::load_head(cluster.store(), cluster.volume).unwrap();
    assert_eq!(head.attach, None);
    assert_eq!(
        ukai_meta::catalog::front(cluster.store(), cluster.volume).unwrap(),
        None
    );
}

#[test]
fn a_second_front_on_the_host_is_refused_and_a_dead_one_is_succeeded() {
    let cluster = Cluster::new(1);
    let mut front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    client.write(0, &pattern(1, 4096));
    drop(client);
    // In the same run directory and in another one.
    for run_dir in ["run", "other"] {
        let run_dir = cluster.dir.path().join(run_dir);
        let mut command = cluster.command_in(&run_dir, &["attach", "vol", "--frontend", "nbd"]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    }
    front.signal("-KILL");
    assert_eq!(front.exit_code(), None);
    let front = cluster.attach(&[]);
    let mut client = NbdClient::connect(&front.socket(), true).unwrap();
    assert_eq!(client.read(0, 4096), pattern(1, 4096));
}

#[test]
fn what_a_dead_front_holds_can_be_given_back() {
    let cluster = Cluster::new(1);
    let mut front = cluster.attach(&[]);
    front.signal("-KILL");
    front.exit_code();
    let output = cluster.output(&["detach", "vol"]);
    assert!(output.status.success(), "{}", text(&output));
    let head = ukai_meta::catalog::load_head(cluster.store(), cluster.volume).unwrap();
    assert_eq!(head.attach, None);
}

#[test]
fn a_front_elsewhere_keeps_the_volume_until_it_is_taken_by_force_and_then_it_ends() {
    let cluster = Cluster::new(2);
    let mut first = cluster.attach(&["--host", "hv1"]);
    let mut client = NbdClient::connect(&first.socket(), true).unwrap();
    client.write(0, &pattern(1, 4096));
    let other = cluster.dir.path().join("other");
    let arguments = ["attach", "vol", "--frontend", "nbd", "--host", "hv2"];
    let output = cluster.command_in(&other, &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(text(&output).contains("hv1"), "{}", text(&output));
    let forced = [&arguments[..], &["--force"]].concat();
    let second = Front::spawn(cluster.command_in(&other, &forced));
    // The first one is told by its watch or by the nodes, whichever comes first.
    assert_eq!(first.exit_code(), Some(6));
    let mut client = NbdClient::connect(&second.socket(), true).unwrap();
    assert_eq!(client.read(0, 4096), pattern(1, 4096));
}

#[test]
fn settle_ends_by_itself() {
    let cluster = Cluster::new(2);
    let output = cluster.output(&["settle", "vol"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("settled vol"), "{}", text(&output));
}

#[test]
fn a_daemon_goes_to_the_background_and_failures_are_told() {
    let cluster = Cluster::new(1);
    let attach = ["attach", "vol", "--frontend", "nbd", "--daemon"];
    let output = cluster.output(&attach);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("attached vol nbd+unix:///vol?socket="),
        "{}",
        text(&output)
    );
    let output = cluster.output(&attach);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output));
    assert!(text(&output).contains("already"), "{}", text(&output));
    assert!(cluster.output(&["detach", "vol"]).status.success());
}

#[test]
fn bad_input_is_told_apart_by_exit_codes() {
    let cluster = Cluster::new(1);
    let code = |arguments: &[&str]| {
        let output = cluster.output(arguments);
        (output.status.code(), text(&output))
    };
    let (exit, said) = code(&["attach", "nosuch", "--frontend", "nbd"]);
    assert!(
        exit == Some(4) && said.contains("nosuch"),
        "{exit:?} {said}"
    );
    let (exit, said) = code(&["attach", "vol", "--meta", "nonsense"]);
    assert!(
        exit == Some(2) && said.contains("sqlite:"),
        "{exit:?} {said}"
    );
    let (exit, said) = code(&[
        "attach",
        "vol",
        "--frontend",
        "nbd",
        "--nbd-tcp",
        "0.0.0.0:0",
    ]);
    assert!(
        exit == Some(1) && said.contains("--insecure-plaintext"),
        "{exit:?} {said}"
    );
    let (exit, said) = code(&["attach", "vol", "--meta", "sqlite:/nonexistent/dir/meta.db"]);
    assert!(exit == Some(3), "{exit:?} {said}");
    let mut command = cluster.command(&["attach", "vol"]);
    let output = command.env_remove("UKAI_META").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}
