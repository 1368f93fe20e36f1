//! The program with real namespaces and TUN devices. Nothing here depends on how fast the machine is: a
//! packet may be late, never early; what goes in comes out, or is counted as dropped.

use std::process::{Command, Output};

fn delay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ukai-delay"))
        .args(arguments)
        .output()
        .expect("the program runs")
}

/// The document that `check --json` prints.
fn checked(arguments: &[&str]) -> serde_json::Value {
    let output = delay(&[&["check", "--json"], arguments].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{said} (needs root and /dev/net/tun)"
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_link_carries_tcp_and_nothing_is_early() {
    let d = checked(&["--delay", "3ms", "--pings", "50", "--bulk", "8MiB"]);
    assert_eq!(d["set_round_trip_us"], 6000);
    assert_eq!(d["round_trip_us"]["count"], 50);
    // The program itself fails if one is early; this shows that it measured.
    assert!(
        d["round_trip_us"]["min"]
            .as_u64()
            .is_some_and(|us| us >= 5990),
        "{d}"
    );
    let bytes = d["link"]["left_to_right"]["bytes"].as_u64();
    assert!(bytes.is_some_and(|b| b > 8 << 20), "{d}");
}

#[test]
fn jitter_and_a_small_queue_lose_packets_but_no_data() {
    // The queue holds less than a stream wants on the way: TCP must live with what is dropped.
    let d = checked(&[
        "--delay", "2ms", "--jitter", "1ms", "--rate", "20MiB/s", "--queue", "128KiB", "--pings",
        "20", "--bulk", "4MiB",
    ]);
    let there = &d["link"]["left_to_right"];
    assert!(
        there["dropped_packets"].as_u64().is_some_and(|n| n > 0),
        "{d}"
    );
    assert!(
        there["held_bytes_most"]
            .as_u64()
            .is_some_and(|n| n <= 128 << 10),
        "{d}"
    );
    // The rate is a bound: 4 MiB at 20 MiB/s, and what was dropped went again.
    assert!(
        d["bulk_bytes_per_s"]
            .as_f64()
            .is_some_and(|r| r <= 20.5 * 1048576.0),
        "{d}"
    );
}

#[test]
fn what_cannot_be_joined_is_said() {
    let none = delay(&[
        "join",
        "--left",
        "ukai-delay-none=10.0.0.1",
        "--right",
        "ukai-delay-none=10.0.0.2",
        "--delay",
        "1ms",
    ]);
    assert!(!none.status.success());
    let said = String::from_utf8_lossy(&none.stderr);
    assert!(said.contains("/run/netns/ukai-delay-none"), "{said}");
}
