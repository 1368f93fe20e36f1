//! `ukai-powercut`: what would a power cut have left of a node's disk?
//!
//! Takes the log of everything that a real node wrote to a real block device (the device mapper's log-writes
//! target) and the history of the guest that used it. At each flush and FUA write of the log, and with
//! any part of what was written since, the node's store is opened as after a power cut, the volume is read,
//! and the history must allow what is there.
#![forbid(unsafe_code)]

mod log;
mod medium;
mod past;
mod reopen;

use chunkstore::disk::mem::{Fate, MemDisk};
use clap::Parser;
use log::{Action, Entry, Log};
use medium::Medium;
use past::Past;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reopen::{Volume, read_volume};
use std::path::PathBuf;
use std::process::ExitCode;
use ukai_checker::stamp::SECTOR_BYTES;
use ukai_proto::VolumeId;

/// Replays a log of dm-log-writes up to each flush and FUA write, opens the node's store there, and checks
/// what it holds against the history of the guest.
///
/// Exit status: 0 all is right, 1 it is not, 2 usage.
#[derive(Debug, Parser)]
#[command(name = "ukai-powercut", version)]
struct Args {
    /// The log device, or a copy of it.
    log: PathBuf,
    /// Size of the device that was logged.
    #[arg(long)]
    device_bytes: u64,
    /// What the guest did, as `ukai-fsx --history` wrote it.
    #[arg(long)]
    history: PathBuf,
    /// Name of the volume in stamps and history.
    #[arg(long, default_value = "volume")]
    volume: String,
    /// Id of the volume.
    #[arg(long)]
    volume_id: VolumeId,
    /// Size of the volume.
    #[arg(long)]
    volume_bytes: u64,
    /// Size of its chunks.
    #[arg(long)]
    chunk_bytes: u64,
    /// Chooses the moments and what a cut takes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// About how many flushes and FUA writes to cut after, and before.
    #[arg(long, default_value_t = 200)]
    moments: u64,
    /// Only after this entry of the log.
    #[arg(long)]
    entry: Option<u64>,
    /// A disk that loses part of what it was told to flush: must be found out.
    #[arg(long)]
    canary: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match replay(&args) {
        Ok(text) => {
            println!("ukai-powercut: {text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("ukai-powercut: {text}");
            ExitCode::FAILURE
        }
    }
}

/// First what is common to all moments, then the moments.
fn replay(args: &Args) -> Result<String, String> {
    let past = Past::read(&args.history, &args.volume)?;
    let (marks, moments) = marks(args)?;
    let volume = Volume {
        id: args.volume_id,
        stamp: stamp_name(&args.volume),
        sectors: args.volume_bytes / SECTOR_BYTES as u64,
        chunk_sectors: args.chunk_bytes / SECTOR_BYTES as u64,
    };
    let mut replay = Replay {
        args,
        past,
        marks,
        moments,
        volume,
        rng: ChaCha8Rng::seed_from_u64(args.seed),
        judged: 0,
        partial: 0,
        again: 0,
    };
    replay.run()
}

/// Entry and history lines of each mark, and how many entries make something durable after the first one.
fn marks(args: &Args) -> Result<(Vec<(u64, usize)>, u64), String> {
    let mut log = Log::open(&args.log).map_err(|error| error.to_string())?;
    let (mut marks, mut moments) = (Vec::new(), 0);
    for index in 1.. {
        match log.next().map_err(|error| error.to_string())? {
            None => break,
            Some(Entry {
                action: Action::Mark(text),
                ..
            }) => {
                if let Some(lines) = text.strip_prefix("lines=") {
                    let lines = lines
                        .parse()
                        .map_err(|_| format!("entry {index}: mark {text:?}"))?;
                    marks.push((index, lines));
                }
            }
            Some(entry) => moments += u64::from(!marks.is_empty() && entry.hardens()),
        }
    }
    if marks.len() < 3 {
        return Err(format!("only {} marks in the log", marks.len()));
    }
    Ok((marks, moments))
}

/// As `ukai-fsx` names a volume in its stamps.
fn stamp_name(name: &str) -> [u8; 16] {
    let mut out = [0; 16];
    for (out, byte) in out.iter_mut().zip(name.bytes()) {
        *out = byte;
    }
    out
}

struct Replay<'a> {
    args: &'a Args,
    past: Past,
    marks: Vec<(u64, usize)>,
    moments: u64,
    volume: Volume,
    rng: ChaCha8Rng,
    judged: u64,
    partial: u64,
    again: u64,
}

impl Replay<'_> {
    fn run(&mut self) -> Result<String, String> {
        let mut log = Log::open(&self.args.log).map_err(|error| error.to_string())?;
        let mut medium = Medium::new(self.args.device_bytes, self.args.canary);
        let entries = log.entries();
        let begin = self.marks[0].0;
        let chance = (self.args.moments as f64 / self.moments.max(1) as f64).min(1.0);
        let (mut flushes, mut forced, mut discards) = (0u64, 0u64, 0u64);
        for index in 1..=entries {
            let entry = log
                .next()
                .map_err(|error| error.to_string())?
                .ok_or("the log ends early")?;
            let chosen = match self.args.entry {
                Some(only) => only == index,
                None => entry.hardens() && self.rng.random_bool(chance),
            };
            let looks = index > begin && chosen;
            if looks && entry.flush && medium.loose() > 0 {
                // The cut comes before this flush completes.
                let mut rng = ChaCha8Rng::seed_from_u64(self.args.seed ^ index);
                let disk = medium
                    .with_some(&mut rng)
                    .map_err(|error| error.to_string())?;
                self.judge(disk, index, "a part of what was written before its flush")?;
                self.partial += 1;
            }
            flushes += u64::from(entry.flush);
            forced += u64::from(matches!(entry.action, Action::Write { fua: true, .. }));
            discards += u64::from(matches!(entry.action, Action::Discard { .. }));
            medium
                .apply(&entry)
                .map_err(|error| format!("entry {index}: {error}"))?;
            if looks {
                self.judge(medium.without(), index, "all that is durable after it")?;
            }
        }
        if self.judged == 0 {
            return Err("the log holds no moment to look at".into());
        }
        Ok(format!(
            "{entries} entries, {flushes} flushes, {forced} FUA writes, {discards} discards, {} marks; {} cuts \
             judged, {} of them with a part of the writes in flight, {} recovered twice",
            self.marks.len(),
            self.judged,
            self.partial,
            self.again
        ))
    }

    fn judge(&mut self, mut disk: MemDisk, index: u64, what: &str) -> Result<(), String> {
        let failure = |text: String| {
            format!(
                "cut at entry {index}, {what}: {text}\nagain: the same command with --seed {} --entry {index}",
                self.args.seed
            )
        };
        let at = self.marks.partition_point(|(mark, _)| *mark <= index);
        let sure = self.marks[at.max(1) - 1].1;
        let possible = self
            .marks
            .get(at + 1)
            .map_or(self.past.lines(), |(_, lines)| *lines);
        let values = read_volume(&mut disk, &self.volume, 200)
            .map_err(|error| failure(error.to_string()))?;
        let report = self.past.judge(sure, possible, &values).map_err(&failure)?;
        if let Some(violation) = report.violations.first() {
            return Err(failure(format!(
                "{} violations, the first: {:?}: {violation}",
                report.violation_count, violation.kind
            )));
        }
        self.judged += 1;
        // What the recovery found stays, also if the power fails right after it.
        if self.judged.is_multiple_of(4) {
            disk.cut(&mut |_| Fate::Old);
            let again = read_volume(&mut disk, &self.volume, 201)
                .map_err(|error| failure(error.to_string()))?;
            if let Some(sector) = values.iter().zip(&again).position(|(a, b)| a != b) {
                return Err(failure(format!(
                    "the second recovery changes sector {sector} from {:?} to {:?}",
                    values[sector], again[sector]
                )));
            }
            self.again += 1;
        }
        Ok(())
    }
}
