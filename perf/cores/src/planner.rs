//! `ukai-planner CHUNKS NODES TARGET...`: makes one plan for a made-up volume and prints, as one line of JSON, how long that
//! took and what it came to, and the memory of the process before the volume, before the plan, and at its most. For
//! `perf/scale`, which calls it once for each round, so that no round finds the memory of another.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Instant;
use ukai_tools::trial::Trial;

fn main() -> ExitCode {
    match measure() {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("ukai-planner: {text}");
            ExitCode::from(2)
        }
    }
}

#[allow(clippy::disallowed_methods)] // it is what is measured
fn measure() -> Result<String, String> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: ukai-planner CHUNKS NODES TARGET...";
    let (chunks, nodes) = arguments.next().zip(arguments.next()).ok_or(usage)?;
    let chunks = chunks.parse().map_err(|_| usage)?;
    let nodes = nodes.parse().map_err(|_| usage)?;
    let targets: Vec<String> = arguments.collect();
    let empty_kib = status_kib("VmHWM")?;
    let trial = Trial::new(chunks, nodes);
    let (volume_kib, most_before_kib) = (status_kib("VmRSS")?, status_kib("VmHWM")?);
    let began = Instant::now();
    let outcome = trial.plan(&targets)?;
    let seconds = began.elapsed().as_secs_f64();
    let most_kib = status_kib("VmHWM")?;
    if most_kib <= most_before_kib {
        return Err(
            "making the volume took more memory than the plan; the plan's is not known".into(),
        );
    }
    Ok(format!(
        "{{\"seconds\": {seconds:.4}, \"is_met\": {}, \"chunks_moved\": {}, \"ranges\": {}, \
         \"empty_kib\": {empty_kib}, \"volume_kib\": {volume_kib}, \"most_kib\": {most_kib}}}",
        outcome.is_met, outcome.chunks_moved, outcome.ranges
    ))
}

/// A figure of `/proc/self/status`.
fn status_kib(name: &str) -> Result<u64, String> {
    let text = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let figure = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    figure.ok_or_else(|| format!("no {name} in /proc/self/status"))
}
