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
//! | `fault` | who is hit by what, and when; never the last good copy |
//! | `verify` | phases, and the comparison at the end |
#![forbid(unsafe_code)]

mod canary;
mod fault;
mod front;
mod guest;
mod meta;
mod net;
mod node;
mod queue;
mod swarm;
mod trace;
mod verify;
mod world;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// A planted bug, to see that the checks catch it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Canary {
    /// The guest is answered when the first replica has answered.
    EarlyAck,
}

/// How to run a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A planted bug.
    pub canary: Option<Canary>,
    /// The guest also reads what it is still writing. The front does not hold I7 for such reads yet: it
    /// answers them before every replica has the write, and if that replica is lost with the front (or
    /// while another connection is down) the old value comes back. About one seed in a thousand finds it (1260, 2308).
    pub read_in_flight: bool,
    /// Tell the story on standard error.
    pub verbose: bool,
}

/// What a run showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Hash of all events.
    pub hash: u64,
    /// Events.
    pub events: u64,
    /// Guest requests completed.
    pub requests: u64,
    /// Faults that happened.
    pub faults: u64,
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
    let swarm = swarm::Swarm::draw(&mut rng);
    world::World::new(rng, swarm, options).run()
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
    format!("{:?}", swarm::Swarm::draw(&mut rng))
}
