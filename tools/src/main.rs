//! `ukai-tools`: the administrator's side of UKAI.

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

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
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
