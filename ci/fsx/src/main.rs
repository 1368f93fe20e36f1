//! `ukai-fsx`: exercises a block device with stamped sectors.
//!
//! Each sector written says which write it was ([`ukai_checker::stamp`]); a model in memory knows which one a
//! sector must hold. So a wrong sector names the write that is there and the one that is missing.

mod device;
mod failure;
mod journal;
mod run;
mod verify;
mod worker;

use clap::{Args, Parser, Subcommand};
use failure::Failure;
use journal::Journal;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exercises a block device: random reads, writes, FUA writes, flushes, discards, write-zeroes and
/// re-attaches, compared with a model.
///
/// Exit status: 0 all is right, 1 it is not, 2 usage. A failure shows the last operations and the command
/// that repeats them.
#[derive(Debug, Parser)]
#[command(name = "ukai-fsx", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Exercise. What the device holds at the beginning is taken as right.
    Run(RunArgs),
    /// After a reset of everything: does the device hold what a completed flush or FUA covered?
    /// Adds what it read to the history.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Block device.
    device: PathBuf,
    /// Its name in stamps and in the history.
    #[arg(long, default_value = "volume")]
    volume: String,
    /// Determines the operations of each thread. Each write is named by it: runs on one volume need different
    /// ones.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    seed: u16,
    /// Operations of each thread.
    #[arg(long, default_value_t = 1000)]
    operations: u64,
    /// Threads, each on its own part of the device.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..))]
    threads: u8,
    /// Append what is done to this history.
    #[arg(long)]
    history: Option<PathBuf>,
    /// Now and then close the device, run this, and open it again, or the path in the last line printed.
    #[arg(long, value_name = "COMMAND")]
    reattach: Option<String>,
    /// Run this after each flush, with its number as an argument.
    #[arg(long, value_name = "COMMAND")]
    on_flush: Option<String>,
    /// End early, and well, when this exists.
    #[arg(long, value_name = "PATH")]
    stop_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Block device.
    device: PathBuf,
    /// Its name in stamps and in the history.
    #[arg(long, default_value = "volume")]
    volume: String,
    /// What was done to it.
    #[arg(long)]
    history: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Run(args) => exercise(args),
        Command::Verify(args) => judge(&args),
    };
    match result {
        Ok(text) => {
            println!("ukai-fsx: {text}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("ukai-fsx: {failure}");
            let again: Vec<String> = std::env::args().collect();
            eprintln!("again: {}", again.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn exercise(args: RunArgs) -> Result<String, Failure> {
    let past = match &args.history {
        Some(path) if path.exists() => verify::read(path)?,
        _ => verify::Past::default(),
    };
    let journal = Journal::append(args.history.as_deref(), past.t, past.op)?;
    let shared = run::Shared::new(run::Options {
        device: &args.device,
        seed: args.seed,
        operations: args.operations,
        volume: args.volume,
        journal,
        reattach: args.reattach,
        on_flush: args.on_flush,
        stop_file: args.stop_file,
    })?;
    println!("ukai-fsx: seed {}", args.seed);
    run::run(&shared, args.threads)
}

fn judge(args: &VerifyArgs) -> Result<String, Failure> {
    let report = verify::verify(&args.device, &args.volume, &args.history)?;
    for violation in &report.violations {
        eprintln!("{:?}: {violation}", violation.kind);
    }
    if !report.is_good() {
        return Err(Failure::Illegal(report.violation_count));
    }
    Ok(format!(
        "{} sector writes and {} sector reads are legal",
        report.writes, report.reads
    ))
}
