//! What may be asked for.

use super::pattern::Pattern;
use crate::error::{Result, ToolError};
use crate::jobs::args::SpanArg;
use crate::units::ByteSize;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;
use ublk_front::core::api::{GUEST_SECTORS_MAX, LANE_DEPTH_MAX};
use ublk_front::shell::bench::BenchOptions;
use ublk_front::shell::context::POLL_US_MAX;
use ukai_proto::limits::SECTOR_BYTES;

/// Memory of all requests in flight: it is locked, and more would be no test of a disk.
const BUFFERS_BYTES_MAX: u64 = 1 << 30;

/// Lanes at most: a thread each, and a connection of each to every shard.
const LANES_MAX: i64 = 16;

#[derive(Args, Clone, Debug)]
pub(crate) struct Bench {
    /// The volume's name; it must not be attached
    #[arg(long, value_name = "VOLUME")]
    pub(crate) volume: String,
    /// Requests in flight on each lane
    #[arg(long, default_value_t = 32, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(LANE_DEPTH_MAX)))]
    pub(crate) depth: u32,
    /// Lanes, a thread each, as the queues of a device
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=LANES_MAX))]
    pub(crate) lanes: u16,
    /// Microseconds for which a lane looks for an answer before it sleeps, as `ublk-front attach --poll-us`
    #[arg(long, default_value_t = 0, value_name = "US", value_parser = clap::value_parser!(u64).range(..=POLL_US_MAX))]
    pub(crate) poll_us: u64,
    /// Bytes of a request: a multiple of 4KiB, at most 1MiB
    #[arg(long, default_value = "4KiB", value_name = "SIZE")]
    pub(crate) block_size: ByteSize,
    /// Reads among the requests; less than 100 needs --overwrite-data
    #[arg(long, default_value_t = 100, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) read_percent: u8,
    /// Order of the blocks: random, sequential, or zipf[:THETA], where few blocks get most requests (the larger THETA,
    /// the fewer; 0.99 if not given)
    #[arg(long, default_value = "random", value_name = "PATTERN")]
    pub(crate) pattern: Pattern,
    /// For how long (10s, 5m)
    #[arg(long, default_value = "10s", value_name = "TIME")]
    pub(crate) duration: SpanArg,
    /// End after so many requests, if the time is not over before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) ios: Option<u64>,
    /// A flush after each write; its time is counted with the write's
    #[arg(long)]
    pub(crate) fsync: bool,
    /// Write the whole volume once before, unmeasured: what was never written is read without any disk. Needs
    /// --overwrite-data
    #[arg(long)]
    pub(crate) fill: bool,
    /// The same number gives the same requests (default: another each time)
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,
    /// The volume's data may be destroyed
    #[arg(long)]
    pub(crate) overwrite_data: bool,
    /// This host's name in the metadata (default: the machine's host name)
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Directory of control sockets, as of `ublk-front`
    #[arg(long, default_value = "/run/ukai", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,
}

impl Bench {
    pub(crate) fn writes(&self) -> bool {
        self.read_percent < 100
    }

    /// What the front is to do, if all of it makes sense.
    pub(crate) fn options(&self) -> Result<BenchOptions> {
        let sector = ByteSize(SECTOR_BYTES as u64);
        let most = ByteSize(u64::from(GUEST_SECTORS_MAX) * sector.0);
        self.block_size
            .check("block size", sector, most)
            .map_err(ToolError::usage)?;
        let buffers = self.block_size.0 * u64::from(self.depth) * u64::from(self.lanes);
        if buffers > BUFFERS_BYTES_MAX {
            let text = format!(
                "{} of requests in flight; more than {} are refused",
                ByteSize(buffers),
                ByteSize(BUFFERS_BYTES_MAX)
            );
            return Err(
                ToolError::usage(text).next("use a smaller --block-size, --depth or fewer --lanes")
            );
        }
        if self.fsync && !self.writes() {
            return Err(ToolError::usage("--fsync, but there are only reads")
                .next("say how many requests are to be writes: --read-percent 0"));
        }
        if self.duration.seconds == 0 {
            return Err(ToolError::usage("a run of no time measures nothing")
                .next("--duration 1s is the shortest"));
        }
        if (self.writes() || self.fill) && !self.overwrite_data {
            let what = if self.fill {
                "--fill"
            } else {
                "a run with writes"
            };
            let text = format!("{what} destroys what is on volume {}", self.volume);
            return Err(ToolError::refused(text).next(
                "add --overwrite-data if nobody needs it, or only read: --read-percent 100 without --fill",
            ));
        }
        #[allow(clippy::cast_possible_truncation)] // at most GUEST_SECTORS_MAX
        let block_sectors = (self.block_size.0 / sector.0) as u32;
        Ok(BenchOptions {
            lanes: usize::from(self.lanes),
            depth: self.depth,
            block_sectors,
            flush_writes: self.fsync,
            duration: Duration::from_secs(self.duration.seconds),
            ios_max: self.ios,
            fill: self.fill,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Noun};
    use crate::error::Kind;
    use clap::Parser;

    fn parse(line: &str) -> std::result::Result<Bench, String> {
        let words = "ukai-tools bench --volume v".split(' ');
        let cli = Cli::try_parse_from(words.chain(line.split_whitespace()));
        match cli.map_err(|error| error.to_string())?.noun {
            Noun::Bench(args) => Ok(*args),
            other => panic!("parsed as {other:?}"),
        }
    }

    fn refused(line: &str) -> ToolError {
        parse(line).unwrap().options().unwrap_err()
    }

    #[test]
    fn reads_need_nothing_but_the_volume() {
        let args = parse("").unwrap();
        let options = args.options().unwrap();
        assert_eq!(
            (options.lanes, options.depth, options.block_sectors),
            (1, 32, 1)
        );
        assert_eq!(options.duration, Duration::from_secs(10));
        assert!(!args.writes() && !options.fill && !options.flush_writes);
    }

    #[test]
    fn what_destroys_data_is_refused_unless_it_is_wanted() {
        for line in ["--read-percent 0", "--read-percent 99", "--fill"] {
            let error = refused(line);
            assert_eq!(error.kind, Kind::Refused, "{line}");
            assert!(
                error.what.contains("destroys what is on volume v"),
                "{error}"
            );
            assert!(error.next.unwrap().contains("--overwrite-data"), "{line}");
            assert!(
                parse(&format!("{line} --overwrite-data"))
                    .unwrap()
                    .options()
                    .is_ok()
            );
        }
    }

    #[test]
    fn limits() {
        for line in [
            "--depth 0",
            "--depth 257",
            "--lanes 0",
            "--lanes 17",
            "--read-percent 101",
            "--pattern spiral",
            "--pattern zipf:0",
            "--pattern zipf:-1",
            "--block-size 4KB",
            "--duration soon",
            "--ios 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for (line, word) in [
            ("--block-size 6KiB", "4KiB and 8KiB"),
            ("--block-size 2MiB", "above the largest, 1MiB"),
            ("--block-size 0", "block size is 0"),
            ("--fsync", "only reads"),
            ("--duration 0s", "no time"),
            ("--block-size 1MiB --depth 256 --lanes 5", "in flight"),
        ] {
            let error = refused(line);
            assert_eq!(error.kind, Kind::Usage, "{line}");
            assert!(error.what.contains(word), "{line}: {error}");
        }
        assert!(
            parse("--block-size 1MiB --depth 256 --lanes 4")
                .unwrap()
                .options()
                .is_ok()
        );
        assert_eq!(
            parse("--block-size 64KiB")
                .unwrap()
                .options()
                .unwrap()
                .block_sectors,
            16
        );
    }
}
