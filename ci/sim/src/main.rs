//! Runs simulation seeds. See the library.
#![forbid(unsafe_code)]

use clap::Parser;
use std::process::ExitCode;
use ukai_sim::{Canary, Failure, Options, describe, run};

/// Runs whole simulated UKAI systems, one per seed, each twice.
///
/// Exit status: 0 all seeds passed, 1 correctness, 2 usage, 3 liveness, 4 two runs of a seed
/// differed. The last two lines of a failure are the seed and the command that repeats it.
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
    /// Guests also read what they are still writing: known to fail, see the library's Options.
    #[arg(long)]
    read_in_flight: bool,
    /// Tell the story of each run on standard error.
    #[arg(long)]
    verbose: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = Options {
        canary: args.canary,
        read_in_flight: args.read_in_flight,
        verbose: args.verbose,
    };
    let (mut events, mut requests, mut faults, mut given_up) = (0, 0, 0, 0);
    for seed in args.first..args.first.saturating_add(args.seeds) {
        let outcome = run(seed, options);
        events += outcome.events;
        requests += outcome.requests;
        faults += outcome.faults;
        given_up += u64::from(outcome.given_up);
        if let Some(failure) = outcome.failure {
            let canary = match args.canary {
                Some(Canary::EarlyAck) => " --canary early-ack",
                None => "",
            };
            let reads = if args.read_in_flight {
                " --read-in-flight"
            } else {
                ""
            };
            println!("{}", describe(seed));
            println!("{failure}");
            println!("failed: seed {seed}");
            println!(
                "again: cargo run --release --manifest-path ci/sim/Cargo.toml -- --seeds 1 --first {seed}{canary}{reads} --verbose"
            );
            return ExitCode::from(match failure {
                Failure::Correctness(_) => 1,
                Failure::Liveness(_) => 3,
                Failure::Determinism { .. } => 4,
            });
        }
    }
    println!(
        "{} seeds passed, each run twice: {requests} guest requests, {faults} faults, {events} events, \
         {given_up} ended early by double faults",
        args.seeds
    );
    ExitCode::SUCCESS
}
