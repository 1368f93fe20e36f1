//! A whole UKAI system on one thread, from one seed.
//!
//! Real cores (the node's shards on their store over a device in memory, the front's lanes and
//! control, the metadata catalog on its memory store) run under a virtual clock. The simulator plays
//! everything around them: connections, disks, the metadata servers, guests, and faults. A seed decides
//! everything, so a failure is repeated by its number; each seed is run twice and both runs must
//! give the same hash of all events.
//!
//! A run has a *safety* phase (the guest works, faults happen) and a *liveness* phase (faults are off:
//! every guest request must complete, every replica must return in sync). Then every sector is read from
//! every in-sync replica, and `ukai-checker` judges the guest's history.
//!
//! | module | plays |
//! |-|-|
//! | `queue` | virtual time |
//! | `swarm` | what the seed decides in advance |
//! | `net` | connections: ordered, delayed, clogged, cut |
//! | `node` | node processes and their disks |
//! | `front` | front processes: lanes, control, their connections |
//! | `meta` | the way to the metadata store and back |
//! | `guest` | workload and history |
//! | `canary` | planted bugs |
//! | `seam` | the store as the core sees it, watched |
//! | `fault` | kinds of faults, and when they come |
//! | `atlas` | which copies are good, and so what may still be hit: never the last good copy |
//! | `outage`, `device`, `operator`, `job` | how faults are done: of networks and processes, of devices, by people |
//! | `full` | nodes and devices without room, and how room is given |
//! | `version` | processes that speak another version of the protocol |
//! | `moving` | what an administrator does in several steps |
//! | `script` | faults at given moments: bugs that were found once |
//! | `tally` | what happened, by kind, and rare branches that were reached |
//! | `verify` | phases, and the comparison at the end |
#![forbid(unsafe_code)]

mod atlas;
mod canary;
mod device;
mod fault;
mod front;
mod full;
mod guest;
mod job;
mod meta;
mod moving;
mod net;
mod node;
mod operator;
mod outage;
mod queue;
pub mod script;
mod seam;
mod swarm;
pub mod tally;
mod trace;
mod verify;
mod version;
mod world;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tally::Tally;

/// A planted bug, to see that the checks catch it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Canary {
    /// The guest is answered when the first replica has answered.
    EarlyAck,
    /// Nodes do the I/O of fronts whose token is too low.
    SkipFence,
    /// Nodes do not say which chunks have open intents.
    NoIntent,
    /// A copy is stored whatever is there.
    CopyOverNewer,
    /// A machine that lost power comes back as if only the process had died.
    ForgetFlush,
    /// Resynchronisation takes what is newer at the source, not what differs.
    NewerThanResync,
}

/// How to run a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A planted bug.
    pub canary: Option<Canary>,
    /// Tell the story on standard error.
    pub verbose: bool,
}

/// What a run showed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Hash of all events.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Guest requests completed.
    pub requests: u64,
    /// Writes, discards and zeroes that were acknowledged, and so checked.
    pub acked_writes: u64,
    /// Faults that happened, by kind.
    pub faults: Tally,
    /// Rare branches that were reached.
    pub marks: Tally,
    /// Ended early by a double fault (all in-sync replicas of a chunk lost power one after the other,
    /// before that could be recorded); what the guest saw until then was judged.
    pub given_up: bool,
    /// `None`: all is well.
    pub failure: Option<Failure>,
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The guest saw something that a disk must not do, or replicas differ.
    #[error("correctness: {0}")]
    Correctness(String),
    /// Something did not come to its end although all faults were over.
    #[error("liveness: {0}")]
    Liveness(String),
    /// An assertion failed.
    #[error("panic: {0}")]
    Panic(String),
    /// Two runs of the seed differed.
    #[error("determinism: first run {first:#018x}, second run {second:#018x}")]
    Determinism {
        /// Hash.
        first: u64,
        /// Hash.
        second: u64,
    },
}

/// Runs a seed once.
#[must_use]
pub fn run_once(seed: u64, options: Options) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut swarm = swarm::Swarm::draw(&mut rng, &mut later(seed));
    let jobs = job::Jobs::draw(seed, &mut swarm);
    run_world(rng, swarm, jobs, options, &[])
}

fn run_world(
    rng: ChaCha8Rng,
    swarm: swarm::Swarm,
    jobs: Option<job::Jobs>,
    options: Options,
    steps: &[(u64, script::Step)],
) -> Outcome {
    let run = std::panic::AssertUnwindSafe(|| {
        let mut world = world::World::new(rng, swarm, jobs, options);
        world.schedule_steps(steps);
        world.run()
    });
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Outcome {
            failure: Some(Failure::Panic(text.unwrap_or_default())),
            ..Outcome::default()
        }
    })
}

/// The stream of what was added to the simulator later, so that what a seed stood for before stays the same.
fn later(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed ^ (4 << 48))
}

/// Runs a seed twice and compares.
#[must_use]
pub fn run(seed: u64, options: Options) -> Outcome {
    let first = run_once(seed, options);
    let second = run_once(
        seed,
        Options {
            verbose: false,
            ..options
        },
    );
    if first.hash != second.hash {
        let failure = Failure::Determinism {
            first: first.hash,
            second: second.hash,
        };
        return Outcome {
            failure: Some(failure),
            ..first
        };
    }
    first
}

/// The options that a seed stands for, for people.
#[must_use]
pub fn describe(seed: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut swarm = swarm::Swarm::draw(&mut rng, &mut later(seed));
    let jobs = job::Jobs::draw(seed, &mut swarm);
    format!("{swarm:?}, {jobs:?}")
}

/// Names of all kinds of faults.
pub fn fault_kinds() -> impl Iterator<Item = &'static str> {
    fault::FaultKind::ALL.iter().map(|kind| kind.name())
}
