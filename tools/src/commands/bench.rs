//! `bench`: a load of our own on a volume, through the lanes of the front, in this process.

use crate::bench::args::Bench;
use crate::bench::load::Mix;
use crate::bench::outcome::Outcome;
use crate::context::Context;
use crate::error::{Result, ToolError};
use crate::units::ByteSize;
use std::io::IsTerminal;
use std::time::Duration;
use ublk_front::shell::attach::{AttachError, AttachOptions, attach_with};
use ublk_front::shell::bench::{self as lanes, BenchFigures, BenchOptions};
use ublk_front::shell::context::FrontSettings;
use ublk_front::shell::process;
use ukai_meta::MetaUrl;
use ukai_proto::limits::SECTOR_BYTES;

/// Before anything else, while there is one thread: this process will be a front.
pub(super) fn prepare() {
    process::prepare();
    let filter = tracing_subscriber::EnvFilter::try_from_env("UKAI_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,zookeeper_client=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}

pub(super) fn bench(context: &Context, args: &Bench) -> Result<()> {
    let options = args.options()?;
    let head = context.volume(&args.volume)?.head;
    if head.size_bytes < args.block_size.0 {
        let text = format!(
            "volume {} has {}, less than a block",
            args.volume,
            ByteSize(head.size_bytes)
        );
        return Err(ToolError::usage(text).next("use a smaller --block-size"));
    }
    let seed = match args.seed {
        Some(seed) => seed,
        None => {
            let id = context.random_id()?;
            u64::from(u32::from_le_bytes([id[0], id[1], id[2], id[3]]))
        }
    };
    let figures = measure(context, args, &options, seed)?;
    let outcome = Outcome::new(args, seed, &figures);
    if outcome.all.ios + outcome.all.errors == 0 {
        return Err(
            ToolError::refused("interrupted before anything was measured")
                .next("the volume is detached; run the command again"),
        );
    }
    context.output.show(&outcome, || outcome.human());
    if outcome.all.errors > 0 {
        let text = format!("{} requests failed", outcome.all.errors);
        return Err(ToolError::refused(text).next(format!(
            "`ukai-tools volume show {}` and `ukai-tools node list` tell what is missing",
            args.volume
        )));
    }
    Ok(())
}

/// Attaches the volume as a front does, puts the load on it, detaches it.
fn measure(
    context: &Context,
    args: &Bench,
    options: &BenchOptions,
    seed: u64,
) -> Result<BenchFigures> {
    let meta: MetaUrl = context
        .meta
        .parse()
        .map_err(|error| ToolError::usage(format!("{error}")))?;
    let attach = AttachOptions {
        meta,
        host: args.host.clone(),
        force: false,
        settings: FrontSettings {
            volume: args.volume.clone(),
            queues: 1,
            depth: 1,
            run_dir: args.run_dir.clone(),
            nbd_unix: None,
            nbd_tcp: None,
            insecure_plaintext: false,
            poll: Duration::from_micros(args.poll_us),
        },
    };
    let mut figures = None;
    attach_with(&attach, true, |front| {
        let sectors = front.presented.size_bytes / SECTOR_BYTES as u64;
        let blocks = sectors / u64::from(options.block_sectors);
        let loads = Mix::of_lanes(seed, args.pattern, args.read_percent, blocks, args.lanes);
        figures = Some(lanes::serve(&front, options, loads)?);
        Ok(())
    })
    .map_err(ToolError::from)?;
    figures.ok_or_else(|| {
        ToolError::refused("interrupted before the volume was attached")
            .next("run the command again")
    })
}

impl From<AttachError> for ToolError {
    fn from(error: AttachError) -> Self {
        let text = error.to_string();
        match error {
            AttachError::Meta(_) => Self::unreachable(text)
                .next("check that the servers named by --meta (or UKAI_META) run and answer"),
            AttachError::Usage(_) => Self::usage(text),
            AttachError::NoVolume(_) | AttachError::NotAttached(_) => Self::not_found(text),
            AttachError::Refused(_) => {
                Self::busy(text).next("a benchmark needs the volume for itself")
            }
            AttachError::Fenced => Self::busy(text)
                .next("nothing was measured; a benchmark needs the volume for itself"),
            AttachError::Failed(_) => Self::refused(text).next(
                "`ukai-tools node list` tells which nodes are alive; UKAI_LOG=info shows more",
            ),
        }
    }
}
