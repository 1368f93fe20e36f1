//! `ukai-cores CASE COUNT`: COUNT requests of 4 KiB, one after another, through one core and nothing else: no socket, no
//! device, no clock. `perf/instructions` runs it under valgrind; the difference of two counts is the price of a request.
#![forbid(unsafe_code)]

mod frame;
mod lane;
mod node;

use std::process::ExitCode;

/// So many requests.
type Case = fn(u32);

const CASES: [(&str, Case); 6] = [
    ("frame", frame::both_ways),
    ("lane-write", lane::writes),
    ("lane-read", lane::reads),
    ("node-write", node::writes),
    ("node-write-fua", node::durable_writes),
    ("node-read", node::reads),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let case = arguments.next();
    if case.as_deref() == Some("--list") {
        CASES.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    let count = arguments.next().and_then(|count| count.parse().ok());
    let run = CASES.iter().find(|(name, _)| case.as_deref() == Some(name));
    let (Some(count), Some((_, run))) = (count, run) else {
        eprintln!("usage: ukai-cores CASE COUNT, or --list for the cases");
        return ExitCode::from(2);
    };
    run(count);
    ExitCode::SUCCESS
}
