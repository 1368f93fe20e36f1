//! The `chunkstore` command.

mod cli;

use chunkstore::shell::{format, run, show};
use clap::Parser;
use cli::{Cli, Command, FormatArgs, RunArgs, ShowArgs};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

/// How a command ended, when not well. The codes are in the help text.
struct Failure {
    message: String,
    code: u8,
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const REFUSED: u8 = 3;
const UNCLEAN: u8 = 4;

impl Failure {
    fn usage(message: String) -> Self {
        let code = USAGE;
        Self { message, code }
    }

    fn new(error: &dyn std::error::Error, refused: bool) -> Self {
        Self {
            message: error.to_string(),
            code: if refused { REFUSED } else { FAILED },
        }
    }
}

fn main() -> ExitCode {
    chunkstore::shell::prepare_process();
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("UKAI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let result = match cli.command {
        Command::Format(args) => format_command(args),
        Command::Run(args) => run_command(args),
        Command::Show(args) => show_command(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { message, code }) => {
            eprintln!("chunkstore: {message}");
            ExitCode::from(code)
        }
    }
}

fn format_command(args: FormatArgs) -> Result<(), Failure> {
    let options = format::Options {
        meta: args.meta.url().map_err(Failure::usage)?,
        path: args.path,
        size_bytes: args.size,
        site: args.site,
        name: args.name,
        labels: args.labels,
        shards: args.shards,
        cluster_init: args.cluster_init,
        force: args.force,
    };
    let block =
        format::format(&options).map_err(|error| Failure::new(&error, error.is_refusal()))?;
    println!(
        "formatted {} node={} name={} site={} shards={} capacity={}",
        options.path.display(),
        block.node,
        block.name,
        block.site,
        block.shard_count,
        block.capacity_bytes()
    );
    Ok(())
}

fn run_command(args: RunArgs) -> Result<(), Failure> {
    let options = run::Options {
        meta: args.meta.url().map_err(Failure::usage)?,
        path: args.path,
        listen: args.listen,
        advertise: args.advertise,
        unix_dir: args.unix_dir,
        cores: args.cores,
        insecure_plaintext: args.insecure_plaintext,
        host: args.host,
        isolation: args.isolated.into(),
        copy_rate: args.copy_rate,
        poll: Duration::from_micros(args.poll_us),
    };
    run::run(&options).map_err(|error| match error {
        run::Error::Unclean(_) => Failure {
            message: error.to_string(),
            code: UNCLEAN,
        },
        _ => Failure::new(&error, error.is_refusal()),
    })
}

fn show_command(args: &ShowArgs) -> Result<(), Failure> {
    let shown = show::show(&args.path, args.json);
    let text =
        shown.map_err(|error| Failure::new(&error, matches!(error, show::ShowError::Node(_))))?;
    println!("{text}");
    Ok(())
}
