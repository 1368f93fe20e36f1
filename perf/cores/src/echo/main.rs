//! `ukai-echo serve` and `ukai-echo load`: requests and answers of the sizes of UKAI's over one TCP connection, and nothing
//! else: no checksum, no decision, no store. What `perf/echo` compares a node with.
//!
//! What one call to receive brings is answered by one call to send, and the programs copy no payload.
#![forbid(unsafe_code)]

mod frames;
mod load;
mod serve;
mod socket;

use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

/// Bytes to and fro.
#[derive(Debug, Parser)]
#[command(name = "ukai-echo")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Look so long for more before sleeping, as `chunkstore run`.
    #[arg(long, global = true, default_value_t = 0, value_name = "US", value_parser = clap::value_parser!(u64).range(..=1000))]
    poll_us: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer one connection after the other.
    Serve {
        /// Where.
        #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
        listen: SocketAddr,
    },
    /// Ask, and print figures as one line of JSON.
    Load(Load),
}

#[derive(Debug, Args)]
struct Load {
    /// Whom.
    #[arg(long, value_name = "IP:PORT")]
    address: SocketAddr,
    /// Send the payload in place of asking for it.
    #[arg(long)]
    write: bool,
    /// Requests in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=256))]
    depth: u32,
    /// Payload of a request.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(..=i64::from(frames::PAYLOAD_BYTES_MAX)))]
    block_size: u32,
    /// For how long.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// End after so many requests, if the time is not over before.
    #[arg(long)]
    ios: Option<u64>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let poll = Duration::from_micros(cli.poll_us);
    let ended = match cli.command {
        Command::Serve { listen } => serve::serve(listen, poll),
        Command::Load(load) => load::load(&load, poll).map(|line| println!("{line}")),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ukai-echo: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::net::TcpListener;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_request_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("bound");
        let server = std::thread::spawn(move || {
            for poll_us in [0, 50] {
                let (stream, _) = listener.accept().expect("a client");
                serve::answer(&stream, Duration::from_micros(poll_us)).expect("answers");
            }
        });
        for (poll_us, write) in [(0, true), (50, false)] {
            let load = Load {
                address,
                write,
                depth: 7,
                block_size: 4096,
                seconds: 3600,
                ios: Some(10_000),
            };
            let line = load::load(&load, Duration::from_micros(poll_us)).expect("answered");
            assert!(line.starts_with("{\"ios\": 10000, "), "{line}");
        }
        server.join().expect("ends well");
    }
}
