//! Random requests in any number, completed in any order, against the oracle.

use super::rig::*;
use crate::disk::api::*;
use rand::RngExt;
use std::collections::BTreeMap;
use std::ops::Range;
use ukai_proto::message::{ChunkRange, SectorState};
use ukai_proto::{ChunkIndex, Generation, Seq, Status, Token};

#[derive(Clone, Debug)]
pub(super) enum Sent {
    Change {
        chunk: u32,
        sectors: Range<u16>,
        value: u64,
        stamp: u64,
        fua: bool,
    },
    Read {
        chunk: u32,
        sectors: Range<u16>,
        floors: Vec<u64>,
    },
    Release {
        chunk: u32,
        stamp: u64,
    },
    Flush {
        began: Vec<((u32, u16), u64)>,
    },
}

/// A workload on a rig, with what it knows.
pub(super) struct Workload {
    pub(super) rig: Rig,
    pub(super) oracle: Oracle,
    pub(super) sent: BTreeMap<OpId, Sent>,
    pub(super) token: u32,
    stamp: u64,
    pub(super) chunks: u32,
    /// Failures were injected: I/O errors and poison are legal answers.
    pub(super) faulty: bool,
    pub(super) answered: u64,
}

/// Sectors of a slot that the workload uses.
const SECTORS: u16 = 8;

impl Workload {
    pub(super) fn new(rig: Rig, chunks: u32) -> Self {
        let (oracle, sent) = (Oracle::default(), BTreeMap::new());
        Self {
            rig,
            oracle,
            sent,
            token: 1,
            stamp: 0,
            chunks,
            faulty: false,
            answered: 0,
        }
    }

    pub(super) fn send(&mut self, request: StoreRequest<Vec<u8>>, sent: Sent) {
        if let Sent::Change {
            chunk,
            sectors,
            stamp,
            value,
            ..
        } = &sent
        {
            self.oracle.wrote(*chunk, sectors.clone(), *stamp, *value);
        }
        let op = self.rig.submit(request);
        self.sent.insert(op, sent);
        self.collect();
    }

    fn next_version(&mut self) -> ukai_proto::Version {
        self.stamp += 1;
        version(self.token, self.stamp)
    }

    pub(super) fn write(&mut self, chunk: u32, sectors: Range<u16>, fua: bool) {
        let version = self.next_version();
        let (value, count) = (self.stamp, sectors.end - sectors.start);
        let request = write_as(chunk, sectors.start, count, version, value, fua);
        self.send(
            request,
            Sent::Change {
                chunk,
                sectors,
                value,
                stamp: self.stamp,
                fua,
            },
        );
    }

    /// A write with the content of an earlier one: what a guest does that toggles a flag.
    pub(super) fn write_value(&mut self, chunk: u32, sectors: Range<u16>, value: u64) {
        let version = self.next_version();
        let count = sectors.end - sectors.start;
        let request = write_as(chunk, sectors.start, count, version, value, false);
        self.send(
            request,
            Sent::Change {
                chunk,
                sectors,
                value,
                stamp: self.stamp,
                fua: false,
            },
        );
    }

    /// Zeros over the sectors, or over the whole slot if `unmap`.
    pub(super) fn zero(&mut self, chunk: u32, sectors: Range<u16>, unmap: bool, fua: bool) {
        let version = self.next_version();
        let base = sectors.start / 256 * 256;
        let (start, count) = if unmap {
            (base, 256)
        } else {
            (sectors.start, sectors.end - sectors.start)
        };
        let request = StoreRequest::Zero {
            range: range(chunk, start, count),
            version,
            generation: Generation(self.token),
            unmap,
            fua,
        };
        let sectors = if unmap { base..base + SECTORS } else { sectors };
        self.send(
            request,
            Sent::Change {
                chunk,
                sectors,
                value: 0,
                stamp: self.stamp,
                fua,
            },
        );
    }

    /// A copy newer than everything held: data, or zeros without data.
    pub(super) fn put(&mut self, chunk: u32, sectors: Range<u16>, zeros: bool) {
        let version = self.next_version();
        let count = sectors.end - sectors.start;
        let value = if zeros { 0 } else { self.stamp };
        let data = content(value, count);
        let states = ukai_proto::crc::sector_crcs(&data)
            .map(|crc| {
                let flags = if zeros { SectorState::ZERO } else { 0 };
                SectorState {
                    version,
                    crc,
                    flags,
                }
            })
            .collect();
        let request = StoreRequest::Put {
            range: range(chunk, sectors.start, count),
            states,
            data: (!zeros).then_some(data),
            generation: Generation(self.token),
            admit: PutRule::Newer,
        };
        self.send(
            request,
            Sent::Change {
                chunk,
                sectors,
                value,
                stamp: self.stamp,
                fua: false,
            },
        );
    }

    /// The chunk is deleted: zeros, durably, whatever was sent before.
    pub(super) fn release(&mut self, chunk: u32) {
        self.stamp += 1;
        let stamp = self.stamp;
        for base in [0, 256] {
            self.oracle.wrote(chunk, base..base + SECTORS, stamp, 0);
        }
        let op = self.rig.submit(StoreRequest::Release {
            volume: VOLUME,
            token: Token(self.token),
            generation: Generation(self.token),
            ranges: vec![ChunkRange {
                start: ChunkIndex(chunk),
                count: 1,
            }],
        });
        self.sent.insert(op, Sent::Release { chunk, stamp });
        self.collect();
    }

    pub(super) fn flush(&mut self) {
        let began = self.oracle.flush_begins();
        self.send(StoreRequest::Flush, Sent::Flush { began });
    }

    pub(super) fn read(&mut self, chunk: u32, sectors: Range<u16>) {
        let floors = sectors
            .clone()
            .map(|sector| self.oracle.floor((chunk, sector)))
            .collect();
        let count = sectors.end - sectors.start;
        let request = StoreRequest::Read(range(chunk, sectors.start, count));
        self.send(
            request,
            Sent::Read {
                chunk,
                sectors,
                floors,
            },
        );
    }

    /// Takes replies and checks them.
    pub(super) fn collect(&mut self) {
        let replies = std::mem::take(&mut self.rig.replies);
        for (op, reply) in replies {
            let sent = self.sent.remove(&op).expect("asked before");
            self.answered += 1;
            match (sent, reply) {
                (
                    Sent::Change {
                        chunk,
                        sectors,
                        stamp,
                        fua,
                        ..
                    },
                    StoreReply::Done { .. },
                ) => {
                    self.oracle.answered(chunk, sectors, stamp, fua);
                }
                (
                    Sent::Change {
                        chunk,
                        sectors,
                        stamp,
                        ..
                    },
                    StoreReply::Failed {
                        status: Status::NoSpace | Status::Busy,
                        ..
                    },
                ) => self.oracle.refused(chunk, sectors, stamp),
                (Sent::Change { chunk, sectors, .. }, StoreReply::Failed { status, .. })
                    if self.faulty && matches!(status, Status::IoError | Status::Poisoned) =>
                {
                    self.oracle.failed(chunk, sectors);
                }
                (Sent::Release { chunk, stamp }, StoreReply::Done { .. }) => {
                    for base in [0, 256] {
                        self.oracle
                            .answered(chunk, base..base + SECTORS, stamp, true);
                    }
                }
                (
                    Sent::Release { chunk, stamp },
                    StoreReply::Failed {
                        status: Status::Busy,
                        ..
                    },
                ) => {
                    for base in [0, 256] {
                        self.oracle.refused(chunk, base..base + SECTORS, stamp);
                    }
                }
                (Sent::Flush { began }, StoreReply::Done { .. }) => self.oracle.flush_ends(&began),
                (
                    Sent::Read {
                        chunk,
                        sectors,
                        floors,
                    },
                    StoreReply::Read { data, .. },
                ) => {
                    let count = sectors.end - sectors.start;
                    let seen = values(&data, count);
                    for ((sector, value), floor) in sectors.zip(seen).zip(floors) {
                        let allowed = self.oracle.allowed((chunk, sector), floor);
                        assert!(
                            allowed.contains(&value),
                            "{chunk}/{sector} reads {value}, allowed {allowed:?}"
                        );
                    }
                }
                (Sent::Read { chunk, sectors, .. }, StoreReply::Failed { status, .. })
                    if status == Status::IoError && self.faulty
                        || self.oracle.may_be_bad(chunk, &sectors) => {}
                (Sent::Flush { .. }, StoreReply::Failed { .. }) if self.faulty => {}
                (sent, reply) => panic!("{sent:?}: {reply:?}"),
            }
        }
    }

    /// One random thing.
    pub(super) fn step(&mut self) {
        let chunk = self.rig.rng.random_range(0..self.chunks);
        let base = if self.rig.rng.random_bool(0.3) {
            256
        } else {
            0
        };
        let start = base + self.rig.rng.random_range(0..SECTORS);
        let end = self.rig.rng.random_range(start..base + SECTORS) + 1;
        match self.rig.rng.random_range(0..100) {
            0..30 => self.write(chunk, start..end, false),
            30..35 => self.write(chunk, start..end, true),
            35..40 => {
                let value = self.rig.rng.random_range(0..=self.stamp.min(3));
                self.write_value(chunk, start..end, value);
            }
            40..43 => self.zero(chunk, start..end, false, false),
            43..45 => self.zero(chunk, start..end, false, true),
            45..47 => self.zero(chunk, start..end, true, false),
            47 => match self.rig.rng.random_range(0..8) {
                0 => self.release(chunk),
                way => self.put(chunk, start..end, way == 1),
            },
            48..51 => self.flush(),
            51..58 => self.read(chunk, start..end),
            58..60 => {
                let settled = Seq(self.rig.rng.random_range(0..=self.stamp));
                self.rig.store.settled(VOLUME, Token(self.token), settled);
                self.rig.background();
            }
            60..75 => {
                if self.rig.rng.random_bool(0.5) {
                    self.rig.background();
                }
                self.rig.turn();
            }
            _ => {
                self.rig.complete_any();
            }
        }
        self.collect();
    }

    pub(super) fn settle(&mut self) {
        self.rig.settle();
        self.collect();
        assert!(self.sent.is_empty(), "unanswered at rest: {:?}", self.sent);
    }

    /// Starts again after a stop, checks everything, and goes on under a new token.
    pub(super) fn restart(&mut self, power: bool) {
        self.sent.clear();
        self.rig.reopen();
        self.oracle.check_restart(&mut self.rig, power);
        self.token += 1;
    }
}

/// Runs a seeded test over many seeds; a failure names its seed and how to run it alone. `UKAI_SEED`
/// runs one, `UKAI_SEEDS` another number of them.
pub(super) fn seeds(name: &str, count: u64, test: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|value: String| value.parse().ok())
    };
    let one = number("UKAI_SEED");
    let count = number("UKAI_SEEDS").unwrap_or(super::twin::seeds(count));
    let range = one.map_or(0..count, |seed: u64| seed..seed + 1);
    for seed in range {
        if let Err(panic) = std::panic::catch_unwind(|| test(seed)) {
            eprintln!(
                "seed {seed} failed; alone: UKAI_SEED={seed} cargo test -p chunkstore --lib {name}"
            );
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
pub(super) fn random_requests_against_the_oracle_with_clean_stops() {
    seeds(
        "random_requests_against_the_oracle_with_clean_stops",
        60,
        |seed| {
            let mut work = Workload::new(Rig::new(5, seed), 4);
            for _ in 0..3 {
                for _ in 0..200 {
                    work.step();
                }
                work.settle();
                work.rig.close();
                work.restart(false);
                assert!(work.rig.report.clean);
            }
            assert!(work.answered > 100, "{} answered", work.answered);
        },
    );
}

#[test]
fn many_slots_press_on_the_cache_and_the_log() {
    seeds("many_slots_press_on_the_cache_and_the_log", 3, |seed| {
        let mut work = Workload::new(Rig::new(150, seed), 100);
        for round in 0..3 {
            for _ in 0..1500 {
                work.step();
            }
            work.settle();
            if round == 1 {
                work.rig.close();
                work.restart(false);
            } else {
                work.rig.cut();
                work.restart(true);
            }
        }
    });
}

#[test]
fn a_long_run_goes_around_the_log_many_times() {
    let mut work = Workload::new(Rig::new(12, 1), 8);
    for _ in 0..6000 {
        work.step();
    }
    work.settle();
    let stats = work.rig.store.stats();
    assert!(
        stats.checkpoints > 10 && stats.log_bytes > 5 * LOG_BLOCKS * 4096,
        "{stats:?}"
    );
    work.rig.cut();
    work.restart(true);
}
