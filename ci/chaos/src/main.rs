//! `ukai-chaos`: real processes, real kernels' sockets and signals, and faults drawn from a seed.
//!
//! Three storage nodes, three ZooKeeper servers and two hosts, each in a network namespace of its own;
//! a volume of two copies attached over NBD; guests whose every sector names its write. Round after
//! round something is done to them under load ([`scenario`]), then everything must get whole by itself, every
//! replica is read straight from its node and compared, and at the end the register checker judges the whole
//! history. The same seed draws the same faults and requests; what they meet depends on the machine.
#![forbid(unsafe_code)]

mod fault;
mod front;
mod guest;
mod inspect;
mod meta;
mod nbd;
mod net;
mod nodes;
mod process;
mod recorder;
mod scenario;
mod story;
mod tally;
mod wait;
mod world;
mod zookeeper;

use clap::Parser;
use scenario::{FIRST, Scenario};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use story::Story;
use wait::{Failure, Outcome, interrupted, now, setup};
use world::World;

/// Breaks real UKAI processes for a while and checks that nothing is lost.
///
/// Needs root, Linux network namespaces, nftables, Java and ZooKeeper (ci/setup). Exit status: 0 all was
/// well, 1 something was lost or stuck, 2 wrong command line, 3 it cannot run here.
#[derive(Parser)]
#[command(name = "ukai-chaos", version)]
struct Args {
    /// For how long.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Decides faults, targets and workload; drawn if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these, in turn.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Folder of chunkstore, ublk-front and ukai-tools; else UKAI_BIN, else this program's own.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Where logs and history are left after a failure.
    #[arg(long, default_value = "target/ci")]
    keep: PathBuf,
}

/// A disk.
const SCRATCH: &str = "/var/tmp";
/// Of the scratch folders in it; the process id follows.
const PREFIX: &str = "ukai-chaos-";
/// A history takes memory as long as it lasts.
const VOLUME_MAX: Duration = Duration::from_secs(20 * 60);

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    // A scratch folder on a disk: nodes refuse file systems in memory.
    remove_leftovers();
    let scratch = Path::new(SCRATCH).join(format!("{PREFIX}{}", std::process::id()));
    let result = prepare(&scratch).and_then(|story| run(&args, seed, &scratch, story));
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            println!("{failure}");
            keep_logs(&scratch, &args.keep.join(format!("chaos-{seed}")));
            let only = only_argument(&args.only);
            println!("failed: seed {seed}");
            println!(
                "again: cargo run --release -p ukai-chaos -- --minutes {} --seed {seed}{only}",
                args.minutes
            );
            match failure {
                Failure::Setup(_) => ExitCode::from(3),
                Failure::Broken(_) | Failure::Interrupted => ExitCode::FAILURE,
            }
        }
    };
    // Everything that uses it has ended with `run`.
    let _ = std::fs::remove_dir_all(&scratch);
    code
}

/// Folders of runs that were killed.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(SCRATCH) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Somebody else may be at it.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn only_argument(only: &[Scenario]) -> String {
    use clap::ValueEnum as _;
    let names: Vec<String> = only
        .iter()
        .filter_map(|scenario| scenario.to_possible_value())
        .map(|value| value.get_name().to_owned())
        .collect();
    if names.is_empty() {
        String::new()
    } else {
        format!(" --only {}", names.join(","))
    }
}

fn prepare(scratch: &Path) -> Outcome<Story> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, std::sync::Arc::clone(interrupted()))
            .map_err(setup("watch signals"))?;
    }
    let log = scratch.join("log");
    std::fs::create_dir_all(&log).map_err(setup("create the scratch folder"))?;
    Story::new(&log.join("story.log"))
}

fn run(args: &Args, seed: u64, scratch: &Path, story: Story) -> Outcome {
    let bin = match &args.bin {
        Some(bin) => bin.clone(),
        None => match std::env::var_os("UKAI_BIN") {
            Some(bin) => bin.into(),
            None => own_folder()?,
        },
    };
    let mut world = World::new(seed, &bin, scratch, story)?;
    let result = rounds(args, &mut world);
    if let Err(failure) = &result {
        world.tell(&format!("failed: {failure}"));
        world.tell_states();
        world.tally.unfinished(&world.recorder.sums());
        // The history as far as it goes; the failure is what matters.
        let _ = world.recorder.flush();
    }
    println!("{}", world.tally);
    result
}

fn rounds(args: &Args, world: &mut World) -> Outcome {
    let end = now() + Duration::from_secs(args.minutes * 60);
    let mut turn = 0;
    while now() < end {
        world.new_volume()?;
        let begun = now();
        while now() < end && begun.elapsed() < VOLUME_MAX {
            let asked = args.only.get(turn % args.only.len().max(1));
            let scenario = match asked.or(FIRST.get(turn)) {
                Some(scenario) => *scenario,
                None => Scenario::draw(world),
            };
            turn += 1;
            world.tell(&format!("round {turn}: {scenario:?}"));
            world.expect_progress(50, "before a fault")?;
            scenario.run(world)?;
            world.end_round()?;
            world.start_guests()?;
        }
        world.end_volume()?;
    }
    Ok(())
}

fn own_folder() -> Outcome<PathBuf> {
    let own = std::env::current_exe().map_err(setup("find this program"))?;
    Ok(own.parent().unwrap_or(Path::new(".")).to_owned())
}

fn keep_logs(scratch: &Path, kept: &Path) {
    // Of an earlier run with the same seed.
    let _ = std::fs::remove_dir_all(kept);
    let copied = std::fs::create_dir_all(kept).and_then(|()| {
        for entry in std::fs::read_dir(scratch.join("log"))? {
            let entry = entry?;
            std::fs::copy(entry.path(), kept.join(entry.file_name()))?;
        }
        Ok(())
    });
    match copied {
        Ok(()) => println!("logs and history: {}", kept.display()),
        Err(error) => println!("logs cannot be kept in {}: {error}", kept.display()),
    }
}
