//! `ublk-front`: see `cli` for what it can do, and the library for how.

mod cli;
mod daemon;
mod show;

use clap::Parser;
use cli::{AttachArgs, Cli, Command, DetachArgs, SettleArgs};
use serde_json::json;
use std::io::{ErrorKind, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;
use ublk_front::shell::attach::{
    AttachError, AttachOptions, Presentation, attach, control_path, find_volume,
};
use ublk_front::shell::context::FrontSettings;
use ublk_front::shell::{control, process, ublk};
use ukai_meta::catalog;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("UKAI_LOG").unwrap_or_else(|_| {
                tracing_subscriber::EnvFilter::new("info,libublk=warn,zookeeper_client=warn")
            }),
        )
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let result = match cli.command {
        Command::Attach(args) if args.daemon => return daemon::start(&args),
        Command::Attach(args) => run_attach(args),
        Command::Detach(args) => detach(args),
        Command::List(args) => show::list(&args),
        Command::Status(args) => show::status(&args),
        Command::Settle(args) => settle(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ublk-front: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// More queues than this only help devices far faster than a network.
const QUEUES_DEFAULT_MAX: u16 = 4;

fn run_attach(args: AttachArgs) -> Result<(), AttachError> {
    process::prepare();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let processors = u16::try_from(processors).unwrap_or(u16::MAX);
    let options = AttachOptions {
        meta: args.meta.url()?,
        host: args.host,
        force: args.force,
        settings: FrontSettings {
            volume: args.volume,
            queues: args.queues.unwrap_or(processors.min(QUEUES_DEFAULT_MAX)),
            depth: args.depth,
            run_dir: args.run_dir.run_dir,
            nbd_unix: args.nbd_unix,
            nbd_tcp: args.nbd_tcp,
            insecure_plaintext: args.insecure_plaintext,
            poll: Duration::from_micros(args.poll_us),
        },
    };
    attach(&options, args.frontend.into())
}

/// Options of an attach that presents nothing.
fn bare(
    volume: &str,
    host: Option<String>,
    run_dir: std::path::PathBuf,
    meta: ukai_meta::MetaUrl,
) -> AttachOptions {
    AttachOptions {
        meta,
        host,
        force: false,
        settings: FrontSettings {
            volume: volume.to_owned(),
            queues: 1,
            depth: 1,
            run_dir,
            nbd_unix: None,
            nbd_tcp: None,
            insecure_plaintext: false,
            poll: Duration::ZERO,
        },
    }
}

fn settle(args: SettleArgs) -> Result<(), AttachError> {
    process::prepare();
    let (run_dir, meta) = (args.run_dir.run_dir, args.meta.url()?);
    let options = bare(&args.volume, args.host, run_dir, meta);
    attach(&options, Presentation::Settle)
}

fn detach(args: DetachArgs) -> Result<(), AttachError> {
    let path = control_path(&args.run_dir.run_dir, &args.volume);
    let request = json!({ "cmd": "detach", "force": args.force });
    // No time limit: everything in flight is finished and made durable first.
    match control::ask(&path, &request, None) {
        Ok(answer) if answer["ok"] == true => Ok(()),
        Ok(answer) => {
            let why = answer["error"]
                .as_str()
                .unwrap_or("the front gave no reason");
            Err(AttachError::Refused(format!(
                "{} is not detached: {why}",
                args.volume
            )))
        }
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            release(args)
        }
        Err(error) => Err(AttachError::Failed(format!(
            "ask {}: {error}",
            path.display()
        ))),
    }
}

/// No front runs: clear up after one that died.
fn release(args: DetachArgs) -> Result<(), AttachError> {
    let nothing = || {
        let text = format!(
            "{} (no front answers in {})",
            args.volume,
            args.run_dir.run_dir.display()
        );
        AttachError::NotAttached(text)
    };
    let Ok(meta) = args.meta.url() else {
        return Err(nothing());
    };
    let (store, _, volume) = find_volume(&meta, &args.volume)?;
    let removed = ublk::remove_leftover(volume);
    let removed = removed.map_err(|error| AttachError::Refused(error.to_string()))?;
    if let Some(device) = &removed {
        eprintln!("ublk-front: removed {device}, which a dead front had left");
    }
    let host = match &args.host {
        Some(host) => host.clone(),
        None => process::host_name().map_err(|error| AttachError::Failed(error.to_string()))?,
    };
    let head = catalog::load_head(&*store, volume)?;
    match head.attach {
        Some(holder) if holder.host == host => {
            process::prepare();
            let run_dir = args.run_dir.run_dir;
            let options = bare(&args.volume, args.host, run_dir, meta);
            attach(&options, Presentation::Release)
        }
        Some(holder) => Err(AttachError::Refused(format!(
            "{} is attached on host {}; detach it there",
            args.volume, holder.host
        ))),
        None if removed.is_some() => Ok(()),
        None => Err(nothing()),
    }
}
