//! The administrator's side of UKAI, as the program `ukai-tools` and as what measures it sees it.

mod bench;
mod cli;
mod client;
mod commands;
mod context;
mod error;
mod front;
mod heat;
mod image;
mod jobs;
mod picture;
mod place;
mod progress;
mod range;
mod relocate;
mod report;
mod scrub;
mod table;
mod units;

pub use relocate::trial;

use clap::Parser;
use std::process::ExitCode;

/// The program `ukai-tools`: reads the command line, and ends with what the command came to.
#[must_use]
pub fn run() -> ExitCode {
    let cli = cli::Cli::parse();
    let json = cli.json;
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json {
                eprintln!("{}", error.to_json());
            } else {
                eprintln!("{error}");
            }
            ExitCode::from(error.code())
        }
    }
}
