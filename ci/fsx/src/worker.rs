//! One thread: random operations on its own part of the device, each read compared with a model.

use crate::device::{Buffer, Device};
use crate::failure::Failure;
use crate::run::Shared;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;
use std::ops::Range;
use ukai_checker::stamp::SECTOR_BYTES;
use ukai_checker::{Content, Kind, SectorValue, Stamp};

/// Longest operation: more than one slot of 1 MiB, so that some span two slots and two chunks.
const SECTORS_MAX: u32 = 300;
/// Most operations are short.
const SECTORS_USUAL: u32 = 24;
/// Operations shown when something is wrong.
const RECENT_MAX: usize = 24;

/// Of the device, owned by one thread.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    shared: &'a Shared,
    /// Names the thread, from 1 on.
    number: u8,
    range: Range<u64>,
    /// Write id of each sector of the range; 0 for zeros.
    model: Vec<u64>,
    rng: ChaCha8Rng,
    buffer: Buffer,
    writes: u64,
    recent: VecDeque<String>,
    pub(crate) done: u64,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(shared: &'a Shared, number: u8, range: Range<u64>) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(shared.seed.into());
        rng.set_stream(number.into());
        Self {
            shared,
            number,
            model: Vec::new(),
            range,
            rng,
            buffer: Buffer::new(SECTORS_MAX),
            writes: 0,
            recent: VecDeque::new(),
            done: 0,
        }
    }

    /// Learns what is there: zeros and whole stamps of this volume, or it is a failure.
    pub(crate) fn learn(&mut self) -> Result<(), Failure> {
        let mut model = Vec::new();
        self.scan("first look", |_, _, value| {
            if let SectorValue::Write(id) = value {
                model.push(id);
                return Ok(());
            }
            Err("zeros or one write".to_owned())
        })?;
        self.model = model;
        Ok(())
    }

    /// Compares the whole range with the model.
    pub(crate) fn compare(&mut self) -> Result<(), Failure> {
        self.scan("last look", |worker, at, value| {
            let expected = worker.model[at];
            if value == SectorValue::Write(expected) {
                return Ok(());
            }
            Err(name(expected))
        })
    }

    /// Operations until the count is reached, the run is to stop, or something is wrong.
    pub(crate) fn work(&mut self) -> Result<(), Failure> {
        while self.done < self.shared.operations && !self.shared.stopping() {
            self.step()?;
            self.done += 1;
        }
        Ok(())
    }

    /// The last operations, oldest first.
    pub(crate) fn recent(&self) -> impl Iterator<Item = &str> {
        self.recent.iter().map(String::as_str)
    }

    fn step(&mut self) -> Result<(), Failure> {
        let (sector, count) = self.choose_range();
        match self.rng.random_range(0..100) {
            0..34 => self.read(sector, count),
            34..68 => self.write(sector, count, false),
            68..78 => self.write(sector, count, true),
            78..83 => self.flush(),
            83..91 => self.zero("discard", sector, count, Device::discard),
            91..99 => self.zero("zeroes", sector, count, Device::zeroes),
            _ if self.number == 1 && self.shared.reattaches() => {
                self.note("re-attach".into());
                self.shared.reattach()
            }
            _ => self.flush(),
        }
    }

    fn choose_range(&mut self) -> (u64, u32) {
        let longest = if self.rng.random_bool(0.12) {
            SECTORS_MAX
        } else {
            SECTORS_USUAL
        };
        let length = self.range.end - self.range.start;
        let longest = u32::try_from(length).map_or(longest, |length| length.min(longest));
        let count = self.rng.random_range(1..=longest);
        let first = self
            .rng
            .random_range(self.range.start..=self.range.end - u64::from(count));
        (first, count)
    }

    fn note(&mut self, operation: String) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(format!(
            "thread {} operation {}: {operation}",
            self.number, self.done
        ));
    }

    /// A name for messages; also kept as one of the recent ones.
    fn begin(&mut self, what: &str, sector: u64, count: u32) -> String {
        let operation = format!("{what} sector {sector} count {count}");
        self.note(operation.clone());
        operation
    }

    fn indices(&self, sector: u64, count: u32) -> Range<usize> {
        let first = usize::try_from(sector - self.range.start).unwrap_or(usize::MAX);
        first..first + count as usize
    }

    fn read(&mut self, sector: u64, count: u32) -> Result<(), Failure> {
        let operation = self.begin("read", sector, count);
        let values = self.values(&operation, sector, count)?;
        let expected = &self.model[self.indices(sector, count)];
        for ((sector, value), expected) in (sector..).zip(values).zip(expected) {
            if value != SectorValue::Write(*expected) {
                return Err(content(&operation, sector, &value, &name(*expected)));
            }
        }
        Ok(())
    }

    fn values(
        &mut self,
        operation: &str,
        sector: u64,
        count: u32,
    ) -> Result<Vec<SectorValue>, Failure> {
        let data = self.buffer.sectors(count);
        self.shared
            .with_device(|device| device.read(sector, data))
            .map_err(|source| Failure::Io {
                operation: operation.to_owned(),
                source,
            })?;
        Ok(values(data, self.shared.volume_bytes, sector))
    }

    fn write(&mut self, sector: u64, count: u32, fua: bool) -> Result<(), Failure> {
        self.writes += 1;
        // Seed, thread and number: unique over all runs of different seeds on one volume.
        let write_id =
            u64::from(self.shared.seed) << 48 | u64::from(self.number) << 40 | self.writes;
        let what = if fua { "fua write" } else { "write" };
        let operation = self.begin(&format!("{what} {write_id:#x}"), sector, count);
        let data = self.buffer.sectors(count);
        for (sector, out) in (sector..).zip(data.chunks_exact_mut(SECTOR_BYTES)) {
            let volume = self.shared.volume_bytes;
            Stamp {
                volume,
                sector,
                write_id,
            }
            .write_to(out);
        }
        let begun = self.shared.journal.begin(|| Kind::Write {
            volume: self.shared.volume.clone(),
            sector,
            count,
            write: write_id,
            token: 0,
            fua,
        })?;
        self.shared
            .with_device(|device| device.write(sector, data, fua))
            .map_err(|source| Failure::Io { operation, source })?;
        self.shared.journal.ok(begun)?;
        let indices = self.indices(sector, count);
        self.model[indices].fill(write_id);
        Ok(())
    }

    fn zero(
        &mut self,
        what: &str,
        sector: u64,
        count: u32,
        act: impl FnOnce(&Device, u64, u32) -> std::io::Result<()>,
    ) -> Result<(), Failure> {
        let operation = self.begin(what, sector, count);
        let begun = self.shared.journal.begin(|| Kind::Zero {
            volume: self.shared.volume.clone(),
            sector,
            count,
            token: 0,
            fua: false,
        })?;
        self.shared
            .with_device(|device| act(device, sector, count))
            .map_err(|source| Failure::Io { operation, source })?;
        self.shared.journal.ok(begun)?;
        let indices = self.indices(sector, count);
        self.model[indices].fill(0);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.note("flush".into());
        let begun = self.shared.journal.begin(|| Kind::Flush {
            volume: self.shared.volume.clone(),
        })?;
        self.shared
            .with_device(Device::flush)
            .map_err(|source| Failure::Io {
                operation: "flush".into(),
                source,
            })?;
        self.shared.journal.ok(begun)?;
        self.shared.flushed()
    }

    /// Reads the whole range; `check` gets each sector's index and value, and says what else it
    /// should be.
    fn scan(
        &mut self,
        what: &str,
        mut check: impl FnMut(&Self, usize, SectorValue) -> Result<(), String>,
    ) -> Result<(), Failure> {
        let mut sector = self.range.start;
        while sector < self.range.end {
            let left = self.range.end - sector;
            let count = u32::try_from(left).map_or(SECTORS_MAX, |left| left.min(SECTORS_MAX));
            let operation = format!("{what} at sector {sector} count {count}");
            let values = self.values(&operation, sector, count)?;
            for (at, value) in self.indices(sector, count).zip(values) {
                let found = value.clone();
                check(self, at, value).map_err(|expected| {
                    content(&operation, self.range.start + at as u64, &found, &expected)
                })?;
            }
            sector += u64::from(count);
        }
        Ok(())
    }
}

/// What the sectors of `data` hold.
pub(crate) fn values(data: &[u8], volume: [u8; 16], sector: u64) -> Vec<SectorValue> {
    (sector..)
        .zip(data.chunks_exact(SECTOR_BYTES))
        .map(|(sector, bytes)| Content::read(bytes).value(volume, sector))
        .collect()
}

fn content(operation: &str, sector: u64, found: &SectorValue, expected: &str) -> Failure {
    Failure::Content {
        operation: operation.to_owned(),
        sector,
        found: match found {
            SectorValue::Write(id) => name(*id),
            SectorValue::Torn { torn } => torn.clone(),
        },
        expected: expected.to_owned(),
    }
}

fn name(id: u64) -> String {
    match id {
        0 => "zeros".into(),
        id => format!(
            "write {id:#x} (of seed {}, thread {}, write {} of it)",
            id >> 48,
            id >> 40 & 0xff,
            id & 0xff_ffff_ffff
        ),
    }
}
