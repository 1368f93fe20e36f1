//! The command line: parsing only.

use chunkstore::shell::control::Isolation;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use ukai_meta::MetaUrl;

/// The UKAI storage node.
#[derive(Debug, Parser)]
#[command(name = "chunkstore", version, about, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or stopped cleanly
  1  something failed (I/O, metadata store, socket)
  2  wrong command line
  3  refused: the path holds or is something else, another cluster, name or node has it, or
     plaintext beyond this host was not allowed
  4  stopped, but not cleanly: the next start recovers as after a crash

Logs go to standard error; UKAI_LOG sets the filter (default: info).";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a file or block device a node of a cluster.
    Format(FormatArgs),
    /// Serve.
    Run(RunArgs),
    /// Tell what a formatted file or device is.
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// File (created and preallocated) or block device.
    pub(crate) path: PathBuf,
    /// Size of the file: 10GiB, 500MiB, 1TB... Devices are used whole.
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Data centre that the node stands in.
    #[arg(long)]
    pub(crate) site: String,
    /// Short name, unique in the cluster.
    #[arg(long)]
    pub(crate) name: String,
    /// Free label, such as rack=3; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub(crate) labels: Vec<String>,
    /// Independent stores on the node, each served by one core.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) shards: u16,
    #[command(flatten)]
    pub(crate) meta: MetaArg,
    /// Begin a new cluster if the metadata store holds none.
    #[arg(long)]
    pub(crate) cluster_init: bool,
    /// Destroy the data that is there.
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MetaArg {
    /// Metadata store: sqlite:/path/meta.db or zk:host:2181,host2:2181/chroot [env: UKAI_META]
    #[arg(long, value_name = "URL")]
    meta: Option<MetaUrl>,
}

impl MetaArg {
    /// The option, else the environment.
    pub(crate) fn url(&self) -> Result<MetaUrl, String> {
        if let Some(url) = &self.meta {
            return Ok(url.clone());
        }
        let text =
            std::env::var("UKAI_META").map_err(|_| "say --meta URL or set UKAI_META".to_owned())?;
        text.parse().map_err(|error| format!("UKAI_META: {error}"))
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Formatted file or block device.
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) meta: MetaArg,
    /// Address of shard 0; shard i listens on port + i; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
    pub(crate) listen: SocketAddr,
    /// Host name or address that others reach the node by, if it is not the one listened on.
    #[arg(long, value_name = "HOST")]
    pub(crate) advertise: Option<String>,
    /// Also listen on Unix sockets in this directory, for fronts on this host.
    #[arg(long, value_name = "DIR")]
    pub(crate) unix_dir: Option<PathBuf>,
    /// CPUs to use, such as 0,1; shards are spread over them (default: one for each shard, from 0 on).
    #[arg(long, value_delimiter = ',')]
    pub(crate) cores: Vec<usize>,
    /// Allow an address that other machines reach, although nothing is encrypted or authenticated.
    #[arg(long)]
    pub(crate) insecure_plaintext: bool,
    /// Name of this machine (default: its machine id); Unix sockets are used by fronts of the same
    /// name only.
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Option<String>,
    /// What to do with requests while the metadata store cannot be reached for a whole lease.
    #[arg(long, value_enum, default_value = "serve")]
    pub(crate) isolated: Isolated,
    /// What copies by relocations and resyncs of all volumes may fetch from other nodes, and other nodes from this one:
    /// 200MiB/s for each of the two, shared out evenly among the shards (default: any rate)
    #[arg(long, value_parser = parse_rate, value_name = "RATE")]
    pub(crate) copy_rate: Option<u64>,
    /// Microseconds for which a shard's thread looks for more to do, after it had something, before it sleeps: saves the
    /// wakes of threads, and keeps its CPU busy while requests come. For CPUs that nobody else uses.
    #[arg(long, default_value_t = 0, value_name = "US", value_parser = clap::value_parser!(u64).range(..=POLL_US_MAX))]
    pub(crate) poll_us: u64,
}

/// A sleeping thread is back within a fraction of this.
const POLL_US_MAX: u64 = 1000;

/// See [`Isolation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Isolated {
    /// Answer "no lease": nobody reads old data from a node that the others believe dead.
    Refuse,
    /// Go on: virtual machines outlive a metadata store that is down for everybody.
    Serve,
}

impl From<Isolated> for Isolation {
    fn from(choice: Isolated) -> Self {
        match choice {
            Isolated::Refuse => Self::Refuse,
            Isolated::Serve => Self::Serve,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Formatted file or block device.
    pub(crate) path: PathBuf,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn parse_label(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err("a label has the form KEY=VALUE".into()),
    }
}

/// A number with a unit: KiB, MiB, GiB, TiB (1024), KB, MB, GB, TB (1000), or bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} does not begin with a whole number"))?;
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        other => return Err(format!("unknown unit {other:?}; use KiB, MiB, GiB or TiB")),
    };
    number
        .checked_mul(factor)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("{text} is out of range"))
}

/// Slower, a piece of 1 MiB would wait so long that its order is given up.
const COPY_RATE_MIN: u64 = 1 << 20;

/// `200MiB/s`; `/s` may be left out.
fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = parse_size(text.strip_suffix("/s").unwrap_or(text))?;
    if rate < COPY_RATE_MIN {
        return Err("at least 1MiB/s".into());
    }
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("10GiB"), Ok(10 << 30));
        assert_eq!(parse_size("3 MB"), Ok(3_000_000));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_rate("200MiB/s"), Ok(200 << 20));
        assert_eq!(parse_rate("1GiB"), Ok(1 << 30));
        assert!(parse_rate("500KiB/s").is_err());
        for bad in ["", "GiB", "0", "-1", "1 parsec", "99999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
