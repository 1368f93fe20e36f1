//! `ukai-null-node`: a storage node whose disk is memory that answers at once, for `perf/echo`. All else is as in
//! `chunkstore run`. A program of its own, which makes the file that it runs on and deletes it: no node that holds data can
//! be started without its disk by mistake.
#![forbid(unsafe_code)]

use chunkstore::shell::control::Isolation;
use chunkstore::shell::{format, prepare_process, run};
use clap::Parser;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use ukai_meta::MetaUrl;

/// A storage node without a disk: nothing written to it is kept.
#[derive(Debug, Parser)]
#[command(name = "ukai-null-node")]
struct Cli {
    /// File that is made, is copied into memory, and is deleted in the end; on a disk.
    path: PathBuf,
    /// Metadata store; a cluster is begun there if it holds none.
    #[arg(long, value_name = "URL")]
    meta: MetaUrl,
    /// Size of the node.
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(32..=1024))]
    mib: u64,
    /// Data centre.
    #[arg(long)]
    site: String,
    /// Short name, unique in the cluster.
    #[arg(long)]
    name: String,
    /// Loopback address, over TCP only.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// CPU to use.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// As of `chunkstore run`.
    #[arg(long, default_value_t = 0, value_name = "US", value_parser = clap::value_parser!(u64).range(..=1000))]
    poll_us: u64,
}

/// Deletes its file when it goes.
struct Scratch<'a>(&'a Path);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

fn main() -> ExitCode {
    prepare_process();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    match serve(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("ukai-null-node: {text}");
            ExitCode::FAILURE
        }
    }
}

fn serve(cli: Cli) -> Result<(), String> {
    // Whatever is there is somebody's: a file of a killed run is deleted by who started that.
    if cli.path.exists() {
        return Err(format!("{} exists", cli.path.display()));
    }
    let scratch = Scratch(&cli.path);
    format::format(&format::Options {
        path: cli.path.clone(),
        size_bytes: Some(cli.mib << 20),
        site: cli.site,
        name: cli.name,
        labels: Vec::new(),
        shards: 1,
        meta: cli.meta.clone(),
        cluster_init: true,
        force: false,
    })
    .map_err(text)?;
    let ended = run::run_without_disk(&run::Options {
        path: cli.path.clone(),
        meta: cli.meta,
        listen: cli.listen,
        advertise: None,
        unix_dir: None,
        cores: vec![cli.core],
        insecure_plaintext: false,
        host: None,
        isolation: Isolation::Serve,
        copy_rate: None,
        poll: Duration::from_micros(cli.poll_us),
    });
    drop(scratch);
    ended.map_err(text)
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
