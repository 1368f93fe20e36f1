//! The client: keeps requests in flight on its own thread, as a lane of `ukai-tools bench` does. Each block of 4 KiB begins
//! with its position (inverted: zeros are no block's), so that what is read is known to be what was written.

use crate::BoundError;
use crate::block::{ALIGN, BLOCK_BYTES_MAX, Block, Random};
use crate::frame::{self, Header, Kind, Line};
use crate::ring::{Ring, Sends};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use std::io;
use std::time::{Duration, Instant};

/// Longest latency told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 130_000_000_000;
const FILL_DEPTH: usize = 8;
/// So many headers, each sent by itself, fit a socket.
const DEPTH_MAX: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Load {
    Randread,
    Randwrite,
    Read,
    Write,
}

/// Drive nodes, and print what they did as `ukai-tools bench` prints it
#[derive(Args, Debug)]
pub(crate) struct DriveArgs {
    /// Sockets of nodes, by commas: all get the writes, the first the reads
    #[arg(long, value_delimiter = ',', required = true)]
    unix: Vec<String>,
    /// What is done
    #[arg(long, value_enum, default_value = "randread")]
    rw: Load,
    /// Bytes of a request: a multiple of 4096, 1 MiB at most
    #[arg(long, default_value_t = 4096)]
    bs: usize,
    /// Requests in flight
    #[arg(long, default_value_t = 1)]
    depth: usize,
    /// How long requests are begun
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Not more requests than this
    #[arg(long)]
    ios: Option<u64>,
    /// A flush after each write; its time is the write's
    #[arg(long)]
    fsync: bool,
    /// Write everything once before
    #[arg(long)]
    fill: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Receive(usize),
    Send(usize),
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Slot {
    begin: Instant,
    position: u64,
    /// Answers that are to come.
    waits: usize,
    flushing: bool,
    failed: bool,
}

/// What is to be done, and what came of it.
struct Phase {
    load: Load,
    bs: usize,
    depth: usize,
    fsync: bool,
    until: Option<Instant>,
    ios_max: u64,
    begun: u64,
    errors: u64,
    latency: Histogram<u64>,
    random: Random,
}

struct Drive {
    ring: Ring<Token>,
    lines: Vec<Line>,
    size_bytes: u64,
}

#[allow(clippy::disallowed_methods)] // this is the shell that has the clock
fn now() -> Instant {
    Instant::now()
}

pub(crate) fn run(args: &DriveArgs) -> Result<(), BoundError> {
    let wrong = |what: &str| Err(BoundError::Wrong(what.to_owned()));
    if args.bs == 0 || !args.bs.is_multiple_of(ALIGN) || args.bs > BLOCK_BYTES_MAX {
        return wrong("--bs takes multiples of 4096 up to 1 MiB");
    }
    if args.depth == 0 || args.depth > DEPTH_MAX {
        return wrong("--depth takes 1 to 256");
    }
    let Ok(seconds) = Duration::try_from_secs_f64(args.seconds) else {
        return wrong("--seconds takes a number of seconds");
    };
    let (mut lines, mut size_bytes) = (Vec::new(), u64::MAX);
    for path in &args.unix {
        let connected = frame::connect(path);
        let (line, bytes) =
            connected.map_err(|error| BoundError::io(format!("connect to {path}"), error))?;
        lines.push(line);
        size_bytes = size_bytes.min(bytes);
    }
    if size_bytes < args.bs as u64 {
        return wrong("the nodes have no room for one request");
    }
    let failed = |error| BoundError::io("drive the nodes".to_owned(), error);
    // It reads or writes and never both, so one direction has nothing but headers.
    let ring = Ring::create(Sends::Awaited).map_err(failed)?;
    let mut drive = Drive {
        ring,
        lines,
        size_bytes,
    };
    if args.fill {
        let mut fill = Phase::new(Load::Write, fill_bytes(size_bytes), FILL_DEPTH)?;
        fill.ios_max = size_bytes / fill.bs as u64;
        drive.run(&mut fill).map_err(failed)?;
        if fill.errors > 0 {
            return Err(BoundError::Wrong(format!(
                "{} writes of the fill failed",
                fill.errors
            )));
        }
    }
    let mut phase = Phase::new(args.rw, args.bs, args.depth)?;
    phase.fsync = args.fsync;
    phase.ios_max = args.ios.unwrap_or(u64::MAX);
    let begin = now();
    phase.until = Some(begin + seconds);
    drive.run(&mut phase).map_err(failed)?;
    let elapsed = now().duration_since(begin).as_secs_f64();
    println!("{}", phase.outcome(elapsed));
    Ok(())
}

/// The largest request that divides so many bytes.
fn fill_bytes(size_bytes: u64) -> usize {
    let mut bytes = BLOCK_BYTES_MAX;
    while !size_bytes.is_multiple_of(bytes as u64) && bytes > ALIGN {
        bytes /= 2;
    }
    bytes
}

impl Phase {
    fn new(load: Load, bs: usize, depth: usize) -> Result<Self, BoundError> {
        let latency = Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3);
        Ok(Self {
            load,
            bs,
            depth,
            fsync: false,
            until: None,
            ios_max: u64::MAX,
            begun: 0,
            errors: 0,
            latency: latency.map_err(|error| BoundError::Wrong(error.to_string()))?,
            random: Random(0x9e37_79b9_7f4a_7c15),
        })
    }

    fn is_read(&self) -> bool {
        matches!(self.load, Load::Randread | Load::Read)
    }

    /// Where the next one goes, if there is one.
    fn next(&mut self, now: Instant, size_bytes: u64) -> Option<u64> {
        if self.begun == self.ios_max || self.until.is_some_and(|until| now >= until) {
            return None;
        }
        let bs = self.bs as u64;
        let number = match self.load {
            Load::Randread | Load::Randwrite => self.random.next(),
            Load::Read | Load::Write => self.begun,
        };
        self.begun += 1;
        Some(number % (size_bytes / bs) * bs)
    }

    #[allow(clippy::cast_precision_loss)] // counts and nanoseconds below 2^53
    fn outcome(&self, elapsed: f64) -> serde_json::Value {
        let us = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        serde_json::json!({
            "ios": self.latency.len(), "errors": self.errors, "iops": self.latency.len() as f64 / elapsed,
            "p50_us": us(0.5), "p99_us": us(0.99), "p999_us": us(0.999), "seconds": elapsed,
        })
    }
}

impl Drive {
    /// Until there are no more requests, and all have been answered.
    fn run(&mut self, phase: &mut Phase) -> io::Result<()> {
        let mut slots: Vec<Option<Slot>> = vec![None; phase.depth];
        let mut idle: Vec<usize> = (0..phase.depth).rev().collect();
        let (mut done, mut turn) = (Vec::new(), now());
        loop {
            while let Some(at) = idle.pop() {
                let Some(position) = phase.next(turn, self.size_bytes) else {
                    idle.push(at);
                    break;
                };
                slots[at] = Some(self.begin(phase, at, position, turn));
            }
            if idle.len() == slots.len() {
                return Ok(());
            }
            for (at, line) in self.lines.iter_mut().enumerate() {
                line.stream
                    .submit(&mut self.ring, Token::Receive(at), Token::Send(at));
            }
            self.ring.enter(&mut done)?;
            turn = now();
            for done in done.drain(..) {
                match done.token {
                    Token::Send(at) => self.lines[at].stream.sent(done.result, done.memory)?,
                    Token::Receive(at) => {
                        if !self.lines[at].stream.received(done.result, done.memory)? {
                            return Err(io::Error::other("a node is gone"));
                        }
                    }
                }
            }
            for line in 0..self.lines.len() {
                while let Some((header, payload)) = self.lines[line].next()? {
                    let at = usize::try_from(header.key).unwrap_or(usize::MAX);
                    let Some(slot) = slots.get_mut(at).and_then(Option::as_mut) else {
                        return Err(io::Error::other("a node answered what it was not asked"));
                    };
                    let right = payload.is_none_or(|block| has_stamps(&block, slot.position));
                    slot.failed |= header.error != 0 || !right;
                    slot.waits -= 1;
                    if slot.waits > 0 {
                        continue;
                    }
                    if phase.fsync && !phase.is_read() && !slot.flushing {
                        (slot.flushing, slot.waits) = (true, self.lines.len());
                        let header = Header::request(Kind::Flush, at, 0, 0);
                        self.lines
                            .iter_mut()
                            .for_each(|line| line.put(&header, None));
                        continue;
                    }
                    if slot.failed {
                        phase.errors += 1;
                    } else {
                        let nanos = turn.duration_since(slot.begin).as_nanos();
                        phase
                            .latency
                            .saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
                    }
                    slots[at] = None;
                    idle.push(at);
                }
            }
        }
    }

    fn begin(&mut self, phase: &Phase, at: usize, position: u64, begin: Instant) -> Slot {
        let waits = if phase.is_read() {
            let header = Header::request(Kind::Read, at, position, phase.bs);
            self.lines[0].put(&header, None);
            1
        } else {
            let header = Header::request(Kind::Write, at, position, phase.bs);
            let mut block = Block::new(phase.bs);
            stamp(&mut block, position);
            self.lines
                .iter_mut()
                .for_each(|line| line.put(&header, Some(block.clone())));
            self.lines.len()
        };
        Slot {
            begin,
            position,
            waits,
            flushing: false,
            failed: false,
        }
    }
}

fn stamp(block: &mut Block, position: u64) {
    for (part, at) in block
        .bytes_mut()
        .chunks_mut(ALIGN)
        .zip((position..).step_by(ALIGN))
    {
        part[..8].copy_from_slice(&(!at).to_le_bytes());
    }
}

fn has_stamps(block: &Block, position: u64) -> bool {
    let mut parts = block.bytes().chunks(ALIGN).zip((position..).step_by(ALIGN));
    parts.all(|(part, at)| part[..8] == (!at).to_le_bytes())
}
