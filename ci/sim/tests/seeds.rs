//! The simulator itself: seeds pass and repeat exactly.
#![allow(clippy::unwrap_used)] // in a test a panic is the report

use ukai_sim::{Options, describe, run, run_once};

#[test]
fn a_few_seeds_pass_and_repeat_exactly() {
    for seed in 1..=12 {
        let outcome = run(seed, Options::default());
        assert_eq!(outcome.failure, None, "seed {seed}: {}", describe(seed));
        assert!(
            outcome.requests > 0 && outcome.events > 0,
            "seed {seed} did nothing"
        );
    }
}

#[test]
fn seeds_differ() {
    let first = run_once(1, Options::default());
    let second = run_once(2, Options::default());
    assert_ne!(first.hash, second.hash);
}
