//! `ukai-bound`: the raw prototype of UKAI's data path. The processes, sockets, message sizes, device operations and their
//! durability are UKAI's; checksums, versions, fencing, state and the content of the log are left out, and so is everything
//! that can be left out of a turn. What it takes is what no implementation of this path can take less of: the bound beside
//! a target in `perf/compare`.

mod batch;
mod block;
mod drive;
mod frame;
mod lane;
mod node;
mod ring;
mod slab;
mod stream;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The raw prototype of UKAI's data path, for perf/compare. It keeps no data safe.
#[derive(Parser, Debug)]
#[command(name = "ukai-bound", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand, Debug)]
enum Role {
    Node(node::NodeArgs),
    Lane(lane::LaneArgs),
    Drive(drive::DriveArgs),
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
enum BoundError {
    #[error("{what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },
    #[error("{0}")]
    Wrong(String),
}

impl BoundError {
    fn io(what: String, source: std::io::Error) -> Self {
        Self::Io { what, source }
    }
}

fn main() -> ExitCode {
    let ended = match Cli::parse().role {
        Role::Node(args) => node::run(&args),
        Role::Lane(args) => lane::run(&args),
        Role::Drive(args) => drive::run(&args),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ukai-bound: {error}");
            ExitCode::FAILURE
        }
    }
}
