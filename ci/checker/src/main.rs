//! `ukai-check`: is this history of a volume strictly linearizable?
#![forbid(unsafe_code)]

use clap::Parser;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use ukai_checker::{Event, History, Mode, Report};

/// Checks a history (JSON lines, see the library's documentation): every sector a register, strictly
/// linearizable.
///
/// Exit status: 0 the history is good, 1 it is not (the explanation names sector, writes and
/// operations), 2 the file is no history.
#[derive(Parser)]
#[command(name = "ukai-check", version)]
struct Args {
    /// The history; `-` is standard input.
    file: PathBuf,
    /// Power cuts may lose what no completed FLUSH or FUA covered.
    #[arg(long)]
    flush_mode: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match check(&args) {
        Ok(report) => {
            print_report(&report, args.json);
            ExitCode::from(u8::from(!report.is_good()))
        }
        Err(message) => {
            eprintln!("ukai-check: {message}");
            ExitCode::from(2)
        }
    }
}

/// One line of a history; longer ones are no history, and would only eat memory.
const LINE_BYTES_MAX: u64 = 16 << 20;

fn check(args: &Args) -> Result<Report, String> {
    let input: Box<dyn Read> = if args.file.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(
            File::open(&args.file)
                .map_err(|error| format!("open {}: {error}", args.file.display()))?,
        )
    };
    let mut input = BufReader::new(input);
    let mut history = History::new(if args.flush_mode {
        Mode::Flush
    } else {
        Mode::Strict
    });
    let mut line = String::new();
    for number in 1u64.. {
        line.clear();
        let read = input.by_ref().take(LINE_BYTES_MAX).read_line(&mut line);
        match read.map_err(|error| format!("read line {number}: {error}"))? {
            0 => break,
            _ if line.trim().is_empty() => continue,
            _ => {}
        }
        let event: Event = serde_json::from_str(&line)
            .map_err(|error| format!("line {number} is no event: {error}"))?;
        history
            .push(event)
            .map_err(|error| format!("line {number}: {error}"))?;
    }
    Ok(history.check())
}

fn print_report(report: &Report, json: bool) {
    if json {
        match serde_json::to_string(report) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("ukai-check: render the report: {error}"),
        }
        return;
    }
    for violation in &report.violations {
        println!("{:?}: {violation}", violation.kind);
    }
    println!(
        "{}: {} sectors, {} sector writes, {} sector reads, {} violations, {} undecided",
        if report.is_good() { "good" } else { "BAD" },
        report.sectors,
        report.writes,
        report.reads,
        report.violation_count,
        report.undecided
    );
}
