//! `ukai-delay`: a link with a latency between two network namespaces.
//!
//! Tests with two sites need a distance between them, and not every kernel has netem. This program is
//! the other end of a TUN interface in each of two namespaces, and carries packets between them: each
//! `delay` later than it came, in order, at most at `rate`, dropped when too many are on the way. All
//! processes of the sites use it without knowing. It needs root.

mod carry;
mod check;
mod line;
mod link;
mod space;
mod tun;
mod units;

use clap::{Args, Parser, Subcommand};
use link::{End, Link, LinkSetting};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write as _;
use std::num::NonZeroU64;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::Duration;

/// A link with a latency between two network namespaces.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Joins two namespaces until SIGTERM or SIGINT; prints "ready", and what it carried at the end.
    Join {
        /// One end: NETNS=ADDRESS, a namespace of `ip netns` and the address it gets.
        #[arg(long, value_parser = link::end)]
        left: End,
        /// The other end.
        #[arg(long, value_parser = link::end)]
        right: End,
        #[command(flatten)]
        setting: Setting,
    },
    /// Measures a link in namespaces of its own, and prints what was set beside what TCP saw.
    Check {
        #[command(flatten)]
        setting: Setting,
        /// Round trips to measure.
        #[arg(long, default_value_t = 500)]
        pings: u32,
        /// Bytes to send in one stream.
        #[arg(long, value_parser = units::bytes, default_value = "64MiB")]
        bulk: u64,
        /// Fail if the median round trip is longer by more than this than what was set.
        #[arg(long, value_parser = units::time)]
        within: Option<Duration>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Setting {
    /// From one end to the other; a round trip takes twice as long.
    #[arg(long, value_parser = units::time)]
    delay: Duration,
    /// Each packet is late by up to this, at random; the order is kept.
    #[arg(long, value_parser = units::time, default_value = "0")]
    jitter: Duration,
    /// Bytes per second in each direction, for example 100MiB/s; without, as fast as it goes.
    #[arg(long, value_parser = units::bytes)]
    rate: Option<u64>,
    /// What is on the way or waits for the rate, in each direction; what comes beyond is dropped.
    #[arg(long, value_parser = units::bytes, default_value = "32MiB")]
    queue: u64,
    /// Of the interfaces.
    #[arg(long, default_value_t = 1500)]
    mtu: u16,
    /// Name of the interface, in both namespaces.
    #[arg(long, default_value = "wan0")]
    interface: String,
    /// Of the jitter.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Packets held at once in a direction: with the smallest of packets, some 10 MiB of memory.
const HELD_PACKETS_MAX: usize = 1 << 17;

impl Setting {
    fn link(self) -> Result<LinkSetting, String> {
        Ok(LinkSetting {
            line: line::LineSetting {
                delay: self.delay,
                rate_bytes_per_s: self.rate.and_then(NonZeroU64::new),
                held_bytes_max: usize::try_from(self.queue).map_err(|e| e.to_string())?,
                held_packets_max: HELD_PACKETS_MAX,
            },
            jitter: self.jitter,
            mtu: self.mtu,
            interface: self.interface,
            seed: self.seed,
        })
    }
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), String> {
    match command.what {
        What::Join {
            left,
            right,
            setting,
        } => join(&left, &right, &setting.link()?),
        What::Check {
            setting,
            pings,
            bulk,
            within,
            json,
        } => {
            let checked = check::check(&setting.link()?, pings, bulk)?;
            if json {
                println!("{}", checked.json());
            } else {
                println!("{}", checked.text());
            }
            if checked.early() {
                return Err("a round trip was shorter than what was set".into());
            }
            match within {
                Some(most) if checked.added() > most => Err(format!(
                    "the median round trip is {:?} longer than set, more than {most:?}",
                    checked.added()
                )),
                _ => Ok(()),
            }
        }
    }
}

fn join(left: &End, right: &End, setting: &LinkSetting) -> Result<(), String> {
    // Before the threads begin, so that none of them takes a signal by its default action.
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("signals: {e}"))?;
    let (ended, end) = channel();
    let link = Link::start(left, right, setting, &ended)?;
    let signalled = move || {
        signals.forever().next();
        // Nobody listens if a direction ended at the same time.
        let _ = ended.send(());
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(signalled)
        .map_err(|e| format!("thread: {e}"))?;
    println!("ready {} {}", left.address, right.address);
    std::io::stdout().flush().map_err(|e| e.to_string())?;
    // Either the end is wanted, or a direction cannot go on; an error if every sender is gone means the same.
    let _ = end.recv();
    let carried = link.stop()?;
    println!("{}", link::report(&carried));
    Ok(())
}
