//! A device in memory that loses what was not flushed: the fake of tests and simulators.
//!
//! Fault model. A write is *volatile* from its submission until a dsync of its own or a sync that began
//! after its completion has completed. Reads see every completed write. At a power cut each 4 KiB sector
//! of each volatile write is decided by itself: old, new, or trash; completed or not makes no difference,
//! and neither does the order of submission. What was synced stays. At a process crash completed
//! operations stay, and each submitted one happens whole or not at all.

use super::api::{Disk, DiskError, DiskOp, DiskResult, IoId, WriteData};
use super::layout::{BLOCK, BLOCK_BYTES};
use std::collections::BTreeMap;
use std::rc::Rc;

/// EIO.
pub const EIO: i32 = 5;
/// ENOSPC.
pub const ENOSPC: i32 = 28;

type Sector = Rc<[u8; BLOCK_BYTES]>;

/// What becomes of one sector of a volatile write at a power cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The write did not reach the medium.
    Old,
    /// It did.
    New,
    /// Noise is there now (a device without the atomicity that the store assumes).
    Trash,
}

/// One sector of a volatile write, offered to the choice of a power cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pending {
    /// Order of submission among all writes of the device.
    pub write: u64,
    /// Position of the sector.
    pub position: u64,
    /// The operation had completed.
    pub completed: bool,
}

/// Which calls fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FailPlan {
    /// Counts down with every read, write and sync; the call that finds 0 fails with EIO.
    pub after: Option<u64>,
    /// All later calls fail too.
    pub persistent: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    InFlight,
    Completed,
    /// Reported as failed; may have reached the medium in part.
    Failed,
}

#[derive(Debug, Clone)]
struct Write {
    serial: u64,
    position: u64,
    /// `None`: superseded by a later write that is durable.
    sectors: Vec<Option<Sector>>,
    progress: Progress,
}

impl Write {
    fn sectors(&self) -> impl Iterator<Item = (u64, &Sector)> {
        (self.position / BLOCK..)
            .zip(&self.sectors)
            .filter_map(|(sector, content)| Some((sector, content.as_ref()?)))
    }
}

/// A submitted operation.
#[derive(Debug)]
enum Submitted {
    Read { io: IoId, position: u64, bytes: u32 },
    Write { io: IoId, serial: u64, dsync: bool },
    Sync { io: IoId, covers: Vec<u64> },
    Punch { io: IoId },
}

/// What kind of operation is pending, for schedulers that treat them differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpKind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A sync.
    Sync,
    /// A punch.
    Punch,
}

/// The device.
#[derive(Debug, Default)]
pub struct MemDisk {
    bytes: u64,
    /// What survives a cut, by sector number; absent: zeros.
    durable: BTreeMap<u64, Sector>,
    /// What reads see where it differs from `durable`.
    cached: BTreeMap<u64, Sector>,
    /// Writes not yet known durable, by serial.
    volatile: BTreeMap<u64, Write>,
    submitted: Vec<Submitted>,
    serial: u64,
    /// Calls seen (reads, writes, syncs).
    pub calls: u64,
    /// Injected failures.
    pub fail: FailPlan,
    /// Sectors that cannot be read.
    pub unreadable: std::collections::BTreeSet<u64>,
    /// Sectors that the next read of them brings with other content: it lies there as it was written, the read went wrong.
    pub misread: std::collections::BTreeSet<u64>,
}

impl MemDisk {
    /// A device of zeros.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        assert!(
            bytes.is_multiple_of(BLOCK),
            "{bytes} bytes is no whole number of sectors"
        );
        Self {
            bytes,
            ..Self::default()
        }
    }

    /// Fail the call that comes after `after` others, and all later ones if `persistent`.
    pub fn fail_after(&mut self, after: u64, persistent: bool) {
        self.fail = FailPlan {
            after: Some(after),
            persistent,
        };
    }

    /// No more injected failures.
    pub fn heal(&mut self) {
        self.fail = FailPlan::default();
        self.unreadable.clear();
    }

    /// Did the planned failure happen?
    #[must_use]
    pub fn failure_fired(&self) -> bool {
        self.fail.after.is_none() || self.fail.after == Some(0) && self.fail.persistent
    }

    fn call(&mut self) -> Result<(), DiskError> {
        self.calls += 1;
        match &mut self.fail.after {
            None => Ok(()),
            Some(0) => {
                if !self.fail.persistent {
                    self.fail.after = None;
                }
                Err(DiskError(EIO))
            }
            Some(after) => {
                *after -= 1;
                Ok(())
            }
        }
    }

    fn check(&self, position: u64, bytes: u64) {
        assert!(
            position.is_multiple_of(BLOCK) && bytes.is_multiple_of(BLOCK),
            "unaligned I/O at {position}, {bytes} bytes"
        );
        assert!(
            position
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes),
            "I/O at {position}, {bytes} bytes, on a device of {}",
            self.bytes
        );
    }

    fn load(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError> {
        let first = position / BLOCK;
        for (sector, chunk) in (first..).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
            if self.unreadable.contains(&sector) {
                return Err(DiskError(EIO));
            }
            match self
                .cached
                .get(&sector)
                .or_else(|| self.durable.get(&sector))
            {
                Some(content) => chunk.copy_from_slice(&content[..]),
                None => chunk.fill(0),
            }
            if self.misread.remove(&sector) {
                chunk.iter_mut().for_each(|byte| *byte = !*byte);
            }
        }
        Ok(())
    }

    fn begin_write(&mut self, position: u64, data: &[u8]) -> u64 {
        self.check(position, data.len() as u64);
        self.serial += 1;
        let sectors = data
            .chunks_exact(BLOCK_BYTES)
            .map(|chunk| {
                let mut sector = [0; BLOCK_BYTES];
                sector.copy_from_slice(chunk);
                Some(Rc::new(sector))
            })
            .collect();
        let write = Write {
            serial: self.serial,
            position,
            sectors,
            progress: Progress::InFlight,
        };
        self.volatile.insert(self.serial, write);
        self.serial
    }

    fn complete_write(&mut self, serial: u64) {
        let write = self.volatile.get_mut(&serial).expect("submitted");
        write.progress = Progress::Completed;
        for (sector, content) in write.sectors() {
            self.cached.insert(sector, content.clone());
            // The device puts another sector in its place.
            self.unreadable.remove(&sector);
        }
        self.supersede(serial, &[Progress::Failed]);
    }

    /// Sectors of `serial` can no longer be overtaken by older writes of the given kinds.
    fn supersede(&mut self, serial: u64, kinds: &[Progress]) {
        if self.volatile.range(..serial).next().is_none() {
            return;
        }
        let write = &self.volatile[&serial];
        let (from, to) = (
            write.position / BLOCK,
            write.position / BLOCK + write.sectors.len() as u64,
        );
        for (_, older) in self.volatile.range_mut(..serial) {
            if kinds.contains(&older.progress) {
                let first = older.position / BLOCK;
                for (sector, content) in (first..).zip(&mut older.sectors) {
                    if (from..to).contains(&sector) {
                        *content = None;
                    }
                }
            }
        }
    }

    fn harden(&mut self, serial: u64) {
        if !self.volatile.contains_key(&serial) {
            return;
        }
        self.supersede(serial, &[Progress::Failed, Progress::Completed]);
        let write = self.volatile.remove(&serial).expect("looked up above");
        assert_eq!(
            write.progress,
            Progress::Completed,
            "only completed writes become durable"
        );
        for (sector, content) in write.sectors() {
            // A later completed write of the same sector may still be volatile: reads keep seeing it.
            if self
                .cached
                .get(&sector)
                .is_some_and(|seen| Rc::ptr_eq(seen, content))
            {
                self.cached.remove(&sector);
            }
            self.durable.insert(sector, content.clone());
        }
    }

    fn completed_writes(&self) -> Vec<u64> {
        self.volatile
            .values()
            .filter(|write| write.progress == Progress::Completed)
            .map(|write| write.serial)
            .collect()
    }

    /// Give an operation to the device. Nothing happens until [`MemDisk::complete`].
    pub fn submit(&mut self, op: DiskOp<Vec<u8>>) {
        let submitted = match op {
            DiskOp::Read {
                io,
                position,
                bytes,
            } => {
                self.check(position, bytes.into());
                Submitted::Read {
                    io,
                    position,
                    bytes,
                }
            }
            DiskOp::Write {
                io,
                position,
                data,
                dsync,
            } => {
                let (WriteData::Payload(data) | WriteData::Owned(data)) = data;
                let serial = self.begin_write(position, &data);
                Submitted::Write { io, serial, dsync }
            }
            DiskOp::Sync { io } => Submitted::Sync {
                io,
                covers: self.completed_writes(),
            },
            DiskOp::Punch {
                io,
                position,
                bytes,
            } => {
                self.check(position, bytes);
                Submitted::Punch { io }
            }
        };
        self.submitted.push(submitted);
    }

    /// Operations submitted and not completed.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.submitted.len()
    }

    /// Kind of a pending operation.
    #[must_use]
    pub fn pending_kind(&self, index: usize) -> OpKind {
        match self.submitted[index] {
            Submitted::Read { .. } => OpKind::Read,
            Submitted::Write { .. } => OpKind::Write,
            Submitted::Sync { .. } => OpKind::Sync,
            Submitted::Punch { .. } => OpKind::Punch,
        }
    }

    /// Complete the pending operation at `index` (any order is legal), or fail it as planned.
    pub fn complete(&mut self, index: usize) -> (IoId, DiskResult<Vec<u8>>) {
        let submitted = self.submitted.remove(index);
        let fails = match submitted {
            Submitted::Punch { .. } => Ok(()),
            _ => self.call(),
        };
        let fails = fails.map_err(|error| error.0);
        match submitted {
            Submitted::Read {
                io,
                position,
                bytes,
            } => {
                let mut out = vec![0; bytes as usize];
                match fails.and_then(|()| self.load(position, &mut out).map_err(|e| e.0)) {
                    Ok(()) => (io, DiskResult::Read(out)),
                    Err(errno) => (io, DiskResult::Failed(errno)),
                }
            }
            // A failed write may have reached the medium in part: it stays a candidate of a cut.
            Submitted::Write { io, serial, dsync } => match fails {
                Ok(()) => {
                    self.complete_write(serial);
                    if dsync {
                        self.harden(serial);
                    }
                    (io, DiskResult::Done)
                }
                Err(errno) => {
                    self.fail_write(serial);
                    (io, DiskResult::Failed(errno))
                }
            },
            Submitted::Sync { io, covers } => match fails {
                Ok(()) => {
                    covers.into_iter().for_each(|serial| self.harden(serial));
                    (io, DiskResult::Done)
                }
                Err(errno) => (io, DiskResult::Failed(errno)),
            },
            Submitted::Punch { io } => (io, DiskResult::Done),
        }
    }

    /// Fail the pending write at `index` with this errno.
    pub fn fail(&mut self, index: usize, errno: i32) -> (IoId, DiskResult<Vec<u8>>) {
        let Submitted::Write { io, serial, .. } = self.submitted.remove(index) else {
            panic!("only writes fail for want of room")
        };
        self.fail_write(serial);
        (io, DiskResult::Failed(errno))
    }

    /// Is the pending operation a write to where nothing was ever written?
    #[must_use]
    pub fn needs_room(&self, index: usize) -> bool {
        let Submitted::Write { serial, .. } = self.submitted[index] else {
            return false;
        };
        let mut sectors = self.volatile[&serial].sectors();
        sectors.any(|(sector, _)| self.sector(sector * BLOCK).is_none())
    }

    fn fail_write(&mut self, serial: u64) {
        self.volatile.get_mut(&serial).expect("submitted").progress = Progress::Failed;
    }

    /// Sectors of volatile writes, in order of submission: what a cut would ask about.
    #[must_use]
    pub fn volatile_sectors(&self) -> Vec<Pending> {
        self.volatile
            .values()
            .flat_map(|write| {
                write.sectors().map(|(sector, _)| Pending {
                    write: write.serial,
                    position: sector * BLOCK,
                    completed: write.progress == Progress::Completed,
                })
            })
            .collect()
    }

    /// The power fails: `choose` decides each sector of each volatile write, in order of submission;
    /// submitted operations are gone.
    pub fn cut(&mut self, choose: &mut impl FnMut(Pending) -> Fate) {
        self.submitted.clear();
        self.cached.clear();
        for (serial, write) in std::mem::take(&mut self.volatile) {
            let completed = write.progress == Progress::Completed;
            for (sector, content) in write.sectors() {
                match choose(Pending {
                    write: serial,
                    position: sector * BLOCK,
                    completed,
                }) {
                    Fate::Old => {}
                    Fate::New => {
                        self.durable.insert(sector, content.clone());
                    }
                    Fate::Trash => {
                        let mut noise = **content;
                        noise.iter_mut().step_by(7).for_each(|byte| *byte ^= 0xa5);
                        self.durable.insert(sector, Rc::new(noise));
                    }
                }
            }
        }
    }

    /// The process dies, the kernel lives: completed operations stay, each submitted write happens
    /// whole if `happens` says so, and nothing more will complete. Caches stay volatile.
    pub fn crash_process(&mut self, happens: &mut impl FnMut() -> bool) {
        for submitted in std::mem::take(&mut self.submitted) {
            if let Submitted::Write { serial, .. } = submitted {
                if happens() {
                    self.complete_write(serial);
                } else {
                    self.volatile.remove(&serial);
                }
            }
        }
        // Writes that failed earlier are neither submitted nor completed: they never happened.
        self.volatile
            .retain(|_, write| write.progress == Progress::Completed);
    }

    /// Damage a sector at rest: flips bits of what is there.
    pub fn rot(&mut self, position: u64) {
        self.check(position, BLOCK);
        let sector = position / BLOCK;
        let mut content = [0; BLOCK_BYTES];
        let held = self
            .cached
            .get(&sector)
            .or_else(|| self.durable.get(&sector));
        if let Some(held) = held {
            content = **held;
        }
        // Not the first bytes: rot that looks like "nothing of ours" is another matter.
        content
            .iter_mut()
            .skip(20)
            .step_by(64)
            .for_each(|byte| *byte ^= 0x10);
        self.cached.remove(&sector);
        self.durable.insert(sector, Rc::new(content));
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Nothing is volatile: a cut would change nothing.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.volatile.is_empty() && self.submitted.is_empty()
    }

    /// What reads of a sector see; `None`: it was never written.
    #[must_use]
    pub fn sector(&self, position: u64) -> Option<Rc<[u8; BLOCK_BYTES]>> {
        let sector = position / BLOCK;
        let held = self.cached.get(&sector);
        held.or_else(|| self.durable.get(&sector)).cloned()
    }

    /// What a cut now would leave of it at worst.
    #[must_use]
    pub fn durable_sector(&self, position: u64) -> Option<Rc<[u8; BLOCK_BYTES]>> {
        self.durable.get(&(position / BLOCK)).cloned()
    }

    /// The first sector at or after `position` that was ever written.
    #[must_use]
    pub fn next_held(&self, position: u64) -> Option<u64> {
        let from = position.div_ceil(BLOCK);
        let first = |held: &BTreeMap<u64, Sector>| held.range(from..).next().map(|(s, _)| *s);
        let (cached, durable) = (first(&self.cached), first(&self.durable));
        let sector = match (cached, durable) {
            (Some(one), Some(other)) => one.min(other),
            (one, other) => one.or(other)?,
        };
        Some(sector * BLOCK)
    }

    /// Changes a sector at rest behind everyone's back.
    pub fn place(&mut self, position: u64, content: &[u8; BLOCK_BYTES]) {
        self.check(position, BLOCK);
        let sector = position / BLOCK;
        self.cached.remove(&sector);
        self.durable.insert(sector, Rc::new(*content));
    }

    /// A copy of what would survive a cut in which no volatile write reached the medium.
    #[must_use]
    pub fn durable_copy(&self) -> Self {
        Self {
            bytes: self.bytes,
            durable: self.durable.clone(),
            ..Self::default()
        }
    }

    /// A copy with every volatile write, completed or not, still open (but nothing submitted): a state
    /// from which several cuts can be tried.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        Self {
            bytes: self.bytes,
            durable: self.durable.clone(),
            cached: self.cached.clone(),
            volatile: self.volatile.clone(),
            serial: self.serial,
            ..Self::default()
        }
    }
}

impl Disk for MemDisk {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError> {
        self.check(position, out.len() as u64);
        self.call()?;
        self.load(position, out)
    }

    fn write(&mut self, position: u64, data: &[u8]) -> Result<(), DiskError> {
        let serial = self.begin_write(position, data);
        match self.call() {
            Ok(()) => self.complete_write(serial),
            Err(error) => {
                self.fail_write(serial);
                return Err(error);
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.call()?;
        self.completed_writes()
            .into_iter()
            .for_each(|serial| self.harden(serial));
        Ok(())
    }

    fn punch(&mut self, position: u64, bytes: u64) -> Result<(), DiskError> {
        self.check(position, bytes);
        Ok(())
    }
}
