//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use ublk_front::shell::attach::{AttachError, Presentation};
use ublk_front::shell::context::POLL_US_MAX;
use ukai_meta::MetaUrl;

/// Presents UKAI volumes on this machine.
#[derive(Debug, Parser)]
#[command(
    name = "ublk-front",
    version,
    after_help = "Exit codes: 0 done; 1 failed; 2 bad command line; 3 metadata store unreachable; \
                  4 no such volume, or not attached here; 5 refused (attached elsewhere, in use, \
                  being deleted); 6 another front has taken the volume.\n\
                  Log: standard error; UKAI_LOG=debug shows more."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Attach a volume and serve it until detached (SIGTERM, SIGINT or `detach`).
    Attach(AttachArgs),
    /// Detach a volume that is attached on this machine; returns when all is durable and given back.
    Detach(DetachArgs),
    /// List attached volumes and where they are.
    List(ListArgs),
    /// Show what the front of a volume is doing.
    Status(StatusArgs),
    /// Attach a volume without a device until every replica is in sync, then detach.
    Settle(SettleArgs),
}

#[derive(Debug, Args)]
pub(crate) struct MetaArgs {
    /// Metadata store: `sqlite:/path/meta.db` or `zk:host:port,host:port/chroot` [env: UKAI_META]
    #[arg(long, value_name = "URL")]
    meta: Option<MetaUrl>,
}

impl MetaArgs {
    /// `--meta`, else `UKAI_META`.
    pub(crate) fn url(&self) -> Result<MetaUrl, AttachError> {
        if let Some(url) = &self.meta {
            return Ok(url.clone());
        }
        let text = std::env::var("UKAI_META")
            .map_err(|_| AttachError::Usage("say --meta URL, or set UKAI_META".to_owned()))?;
        text.parse()
            .map_err(|error| AttachError::Usage(format!("UKAI_META: {error}")))
    }
}

#[derive(Debug, Args)]
pub(crate) struct RunDirArgs {
    /// Directory of control sockets.
    #[arg(long, default_value = "/run/ukai", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Frontend {
    /// ublk if the kernel has it, else NBD.
    Auto,
    /// A block device, /dev/ublkbN.
    Ublk,
    /// An NBD export.
    Nbd,
}

impl From<Frontend> for Presentation {
    fn from(frontend: Frontend) -> Self {
        match frontend {
            Frontend::Auto => Self::Auto,
            Frontend::Ublk => Self::Ublk,
            Frontend::Nbd => Self::Nbd,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The volume's name.
    pub(crate) volume: String,
    /// How to present it.
    #[arg(long, value_enum, default_value_t = Frontend::Auto)]
    pub(crate) frontend: Frontend,
    /// ublk queues, one thread each; as many as processors, at most 4, if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(crate) queues: Option<u16>,
    /// Requests in flight per ublk queue.
    #[arg(long, value_name = "N", default_value_t = 128,
          value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) depth: u16,
    /// Unix socket of the NBD export; RUN_DIR/VOLUME.nbd if neither it nor --nbd-tcp is given.
    #[arg(long, value_name = "PATH")]
    pub(crate) nbd_unix: Option<PathBuf>,
    /// TCP address of the NBD export; loopback only, because NBD is not encrypted here.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) nbd_tcp: Option<SocketAddr>,
    /// Allow an NBD address that is not loopback.
    #[arg(long)]
    pub(crate) insecure_plaintext: bool,
    /// Microseconds for which the thread of an NBD client looks for more to do, after it had something, before it sleeps:
    /// saves the wakes of threads, and keeps a CPU busy while requests come. For CPUs that nobody else uses.
    #[arg(long, default_value_t = 0, value_name = "US", value_parser = clap::value_parser!(u64).range(..=POLL_US_MAX))]
    pub(crate) poll_us: u64,
    /// This hypervisor's name in the metadata; the machine's host name if not given.
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Go to the background once attached; the log goes to RUN_DIR/VOLUME.log.
    #[arg(long)]
    pub(crate) daemon: bool,
    /// Take the volume from another front, which is fenced: its guest's I/O fails from then on.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) run_dir: RunDirArgs,
    #[command(flatten)]
    pub(crate) meta: MetaArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// The volume's name.
    pub(crate) volume: String,
    /// Also if the device is in use: its users get I/O errors.
    #[arg(long)]
    pub(crate) force: bool,
    /// This hypervisor's name, to give back what a front that died here still holds.
    #[arg(long)]
    pub(crate) host: Option<String>,
    #[command(flatten)]
    pub(crate) run_dir: RunDirArgs,
    /// Needed only if the front has died.
    #[command(flatten)]
    pub(crate) meta: MetaArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) meta: MetaArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The volume's name.
    pub(crate) volume: String,
    /// As JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) run_dir: RunDirArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SettleArgs {
    /// The volume's name.
    pub(crate) volume: String,
    /// This host's name in the metadata; the machine's host name if not given.
    #[arg(long)]
    pub(crate) host: Option<String>,
    #[command(flatten)]
    pub(crate) run_dir: RunDirArgs,
    #[command(flatten)]
    pub(crate) meta: MetaArgs,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_values_are_refused() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("ublk-front attach v --meta sqlite:/m").is_ok());
        assert!(parse("ublk-front attach v --meta nonsense").is_err());
        assert!(parse("ublk-front attach v --meta sqlite:/m --depth 257").is_err());
        assert!(parse("ublk-front attach v --meta sqlite:/m --queues 0").is_err());
        assert!(parse("ublk-front attach v --meta sqlite:/m --nbd-tcp host").is_err());
    }
}
