//! Runs simulation seeds. See the library.
#![forbid(unsafe_code)]

use clap::{Parser, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use ukai_sim::tally::{Mark, Tally};
use ukai_sim::{Canary, Failure, Options, describe, fault_kinds, run};

/// Runs whole simulated UKAI systems, one per seed, each twice.
///
/// Exit status: 0 all seeds passed, 1 correctness, 2 usage, 3 liveness, 4 two runs of a seed
/// differed, 5 all passed but a mark was not reached. The last two lines of a failure are the command
/// that repeats it and the seed.
#[derive(Parser)]
#[command(name = "ukai-sim", version)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Plant a bug; the run must then fail.
    #[arg(long)]
    canary: Option<Canary>,
    /// A kind of fault that does not happen, or a rare branch that is not reached, is an error.
    #[arg(long)]
    require_marks: bool,
    /// Also write what was counted to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Go on after a failing seed.
    #[arg(long)]
    keep_going: bool,
    /// Tell the story of each run on standard error.
    #[arg(long)]
    verbose: bool,
}

/// What all runs showed together.
#[derive(Default, Serialize)]
struct Sum {
    seeds: u64,
    failed: Vec<u64>,
    given_up: u64,
    events: u64,
    requests: u64,
    acked_writes: u64,
    faults: Tally,
    marks: Tally,
}

impl Sum {
    fn print(&self) {
        println!("faults injected:");
        for name in fault_kinds() {
            println!("  {:>9}  {name}", self.faults.get(name));
        }
        println!("marks reached:");
        for mark in Mark::ALL {
            println!("  {:>9}  {}", self.marks.get(mark.name()), mark.name());
        }
        println!(
            "{} seeds, each run twice: {} guest requests, {} acknowledged writes checked, {} faults, \
             {} events, {} ended early by double faults, {} failed",
            self.seeds,
            self.requests,
            self.acked_writes,
            self.faults.total(),
            self.events,
            self.given_up,
            self.failed.len(),
        );
    }

    fn missing(&self) -> Vec<&'static str> {
        let faults = fault_kinds().filter(|name| self.faults.get(name) == 0);
        let marks = Mark::ALL.iter().map(|mark| mark.name());
        faults
            .chain(marks.filter(|name| self.marks.get(name) == 0))
            .collect()
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options {
        canary: args.canary,
        verbose: args.verbose,
    };
    let mut sum = Sum::default();
    let mut status = 0;
    for seed in args.first..args.first.saturating_add(args.seeds) {
        let outcome = run(seed, options);
        sum.seeds += 1;
        sum.events += outcome.events;
        sum.requests += outcome.requests;
        sum.acked_writes += outcome.acked_writes;
        sum.given_up += u64::from(outcome.given_up);
        sum.faults.merge(&outcome.faults);
        sum.marks.merge(&outcome.marks);
        if let Some(failure) = outcome.failure {
            sum.failed.push(seed);
            tell(seed, &args, &failure);
            status = match failure {
                Failure::Correctness(_) | Failure::Panic(_) => 1,
                Failure::Liveness(_) => 3,
                Failure::Determinism { .. } => 4,
            };
            if !args.keep_going {
                break;
            }
        }
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&sum).unwrap_or_default();
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("error: write {}: {error}", path.display());
            return ExitCode::from(2);
        }
    }
    if status != 0 && !args.keep_going {
        return ExitCode::from(status);
    }
    sum.print();
    let missing = sum.missing();
    if args.require_marks && !missing.is_empty() {
        println!("not reached: {}", missing.join(", "));
        status = status.max(5);
    }
    if let Some(seed) = sum.failed.last() {
        println!("failed: seed {seed}");
    }
    ExitCode::from(status)
}

/// What failed, and how to see it again; the seed comes last.
fn tell(seed: u64, args: &Args, failure: &Failure) {
    let canary = args.canary.and_then(|canary| canary.to_possible_value());
    let canary = canary.map_or_else(String::new, |value| {
        format!(" --canary {}", value.get_name())
    });
    println!("{}", describe(seed));
    println!("{failure}");
    println!(
        "again: cargo run --release --manifest-path ci/sim/Cargo.toml -- --seeds 1 --first {seed}{canary} --verbose"
    );
    println!("failed: seed {seed}");
}
