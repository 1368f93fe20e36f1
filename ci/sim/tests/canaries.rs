//! Planted bugs: each must be caught within 10,000 seeds. A simulator that lets one through would let a
//! real one through.

use ukai_sim::{Canary, Failure, Options, run_once};

/// Some seed sees what a disk must not do. (Others only notice that something does not end.)
fn is_caught(canary: Canary) {
    let options = Options {
        canary: Some(canary),
        ..Options::default()
    };
    let found = (1..=10_000).find(|seed| {
        let failure = run_once(*seed, options).failure;
        matches!(failure, Some(Failure::Correctness(_)))
    });
    assert!(found.is_some(), "{canary:?} was not caught");
}

#[test]
fn an_early_ack_is_caught() {
    is_caught(Canary::EarlyAck);
}

#[test]
fn a_node_that_skips_the_fence_is_caught() {
    is_caught(Canary::SkipFence);
}

#[test]
fn intents_that_are_not_told_are_caught() {
    is_caught(Canary::NoIntent);
}

#[test]
fn a_copy_over_a_newer_write_is_caught() {
    is_caught(Canary::CopyOverNewer);
}

#[test]
fn a_power_cut_taken_for_a_crash_is_caught() {
    is_caught(Canary::ForgetFlush);
}

#[test]
fn a_resync_of_newer_sectors_only_is_caught() {
    is_caught(Canary::NewerThanResync);
}
