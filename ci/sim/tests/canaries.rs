//! Planted bugs: each must be caught within 10,000 seeds. A simulator that lets one through would let a
//! real one through.
#![allow(clippy::unwrap_used)] // in a test a panic is the report

use ukai_sim::{Canary, Failure, Options, run_once};

/// The first seed that fails, and how; a few dozen seeds are normal.
fn caught(canary: Canary) -> Failure {
    let options = Options {
        canary: Some(canary),
        ..Options::default()
    };
    let found = (1..=10_000).find_map(|seed| Some((seed, run_once(seed, options).failure?)));
    let (seed, failure) = found.unwrap_or_else(|| panic!("{canary:?} was not caught"));
    println!("{canary:?}: seed {seed}: {failure}");
    failure
}

#[test]
fn an_early_ack_is_caught() {
    assert!(matches!(caught(Canary::EarlyAck), Failure::Correctness(_)));
}

#[test]
fn a_node_that_skips_the_fence_is_caught() {
    assert!(matches!(caught(Canary::SkipFence), Failure::Correctness(_)));
}

#[test]
fn intents_that_are_not_told_are_caught() {
    assert!(matches!(caught(Canary::NoIntent), Failure::Correctness(_)));
}

#[test]
fn a_copy_over_a_newer_write_is_caught() {
    assert!(matches!(
        caught(Canary::CopyOverNewer),
        Failure::Correctness(_)
    ));
}

#[test]
fn a_power_cut_taken_for_a_crash_is_caught() {
    assert!(matches!(
        caught(Canary::ForgetFlush),
        Failure::Correctness(_)
    ));
}

#[test]
fn a_resync_of_newer_sectors_only_is_caught() {
    assert!(matches!(
        caught(Canary::NewerThanResync),
        Failure::Correctness(_)
    ));
}
