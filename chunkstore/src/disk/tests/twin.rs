//! A second device that does what the fake does, and is compared with it.
//!
//! In the conformance arm every operation goes to both; the store gets the second device's results, and what it
//! reads must be what the fake would have said. A power cut is the fake's: the second device is then given
//! the sectors that the fake kept. What reads in a punched range is the real device's affair, and the fake
//! follows it.

use crate::disk::api::{Disk, DiskOp, DiskResult, IoId, WriteData};
use crate::disk::layout::{BLOCK, BLOCK_BYTES};
use crate::disk::mem::MemDisk;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The device's own side: operations in any number at once.
pub(super) trait Backend {
    /// Begin.
    fn submit(&mut self, op: DiskOp<Vec<u8>>);
    /// Wait for the end.
    fn wait(&mut self, io: IoId) -> DiskResult<Vec<u8>>;
}

type Maker = Box<dyn Fn(u64) -> (Box<dyn Backend>, Box<dyn Disk>)>;

thread_local! {
    static MAKER: RefCell<Option<Maker>> = const { RefCell::new(None) };
}

/// Runs a test body with a second device for each rig that it makes.
pub(super) fn with_twins(maker: Maker, body: impl FnOnce()) {
    MAKER.set(Some(maker));
    body();
    MAKER.set(None);
}

/// A second device of this size, if this thread runs a conformance test.
pub(super) fn wanted(bytes: u64) -> Option<Twin> {
    MAKER.with_borrow(|maker| maker.as_ref().map(|make| Twin::new(make(bytes))))
}

/// A real device takes its time: fewer seeds.
pub(super) fn seeds(count: u64) -> u64 {
    match MAKER.with_borrow(Option::is_some) {
        true => count.min(4),
        false => count,
    }
}

enum Pending {
    Read(Range<u64>),
    Write(Range<u64>),
    Punch(Range<u64>),
    Sync,
}

/// The second device.
pub(super) struct Twin {
    backend: Box<dyn Backend>,
    pub(super) blocking: Blocking,
    pending: BTreeMap<IoId, Pending>,
    /// Sectors of reads under way that a write under way overlaps: old or new may be read.
    racing: BTreeSet<u64>,
}

/// Its blocking side.
pub(super) struct Blocking(Box<dyn Disk>);

impl Disk for Blocking {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), crate::disk::api::DiskError> {
        self.0.read(position, out)
    }
    fn write(&mut self, position: u64, data: &[u8]) -> Result<(), crate::disk::api::DiskError> {
        self.0.write(position, data)
    }
    fn sync(&mut self) -> Result<(), crate::disk::api::DiskError> {
        self.0.sync()
    }
    fn punch(&mut self, position: u64, bytes: u64) -> Result<(), crate::disk::api::DiskError> {
        self.0.punch(position, bytes)
    }
}

fn sectors(position: u64, bytes: u64) -> Range<u64> {
    position / BLOCK..(position + bytes) / BLOCK
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    a.start.max(b.start)..a.end.min(b.end)
}

impl Twin {
    fn new((backend, blocking): (Box<dyn Backend>, Box<dyn Disk>)) -> Self {
        Self {
            backend,
            blocking: Blocking(blocking),
            pending: BTreeMap::new(),
            racing: BTreeSet::new(),
        }
    }

    pub(super) fn submit(&mut self, op: &DiskOp<Vec<u8>>) {
        let (io, pending, op) = match op {
            DiskOp::Read {
                io,
                position,
                bytes,
            } => {
                let (io, position, bytes) = (*io, *position, *bytes);
                let range = sectors(position, bytes.into());
                let op = DiskOp::Read {
                    io,
                    position,
                    bytes,
                };
                (io, Pending::Read(range), op)
            }
            DiskOp::Write {
                io,
                position,
                data,
                dsync,
            } => {
                let (io, position, dsync) = (*io, *position, *dsync);
                let (WriteData::Payload(bytes) | WriteData::Owned(bytes)) = data;
                let data = WriteData::Owned(bytes.clone());
                let range = sectors(position, bytes.len() as u64);
                let op = DiskOp::Write {
                    io,
                    position,
                    data,
                    dsync,
                };
                (io, Pending::Write(range), op)
            }
            DiskOp::Sync { io } => (*io, Pending::Sync, DiskOp::Sync { io: *io }),
            DiskOp::Punch {
                io,
                position,
                bytes,
            } => {
                let (io, position, bytes) = (*io, *position, *bytes);
                let op = DiskOp::Punch {
                    io,
                    position,
                    bytes,
                };
                (io, Pending::Punch(sectors(position, bytes)), op)
            }
        };
        for other in self.pending.values() {
            match (&pending, other) {
                (Pending::Read(a), Pending::Write(b) | Pending::Punch(b))
                | (Pending::Write(a) | Pending::Punch(a), Pending::Read(b)) => {
                    self.racing.extend(overlap(a, b));
                }
                (Pending::Write(a) | Pending::Punch(a), Pending::Write(b) | Pending::Punch(b)) => {
                    let both = overlap(a, b);
                    assert!(both.is_empty(), "two writes under way of sectors {both:?}");
                }
                _ => {}
            }
        }
        self.pending.insert(io, pending);
        self.backend.submit(op);
    }

    /// The fake's result is in: the real one must be one that the fake could have given.
    pub(super) fn complete(
        &mut self,
        io: IoId,
        fake: DiskResult<Vec<u8>>,
        disk: &mut MemDisk,
    ) -> DiskResult<Vec<u8>> {
        let real = self.backend.wait(io);
        let pending = self.pending.remove(&io).expect("submitted");
        match (&pending, &fake, &real) {
            (Pending::Read(range), DiskResult::Read(fake), DiskResult::Read(real)) => {
                let pieces = fake
                    .chunks_exact(BLOCK_BYTES)
                    .zip(real.chunks_exact(BLOCK_BYTES));
                assert_eq!(fake.len(), real.len());
                for (sector, (fake, real)) in range.clone().zip(pieces) {
                    assert!(
                        fake == real || self.racing.contains(&sector),
                        "sector {sector}: the real device reads what the fake does not allow"
                    );
                }
            }
            (Pending::Write(_) | Pending::Sync, DiskResult::Done, DiskResult::Done) => {}
            (Pending::Punch(range), _, _) => {
                let mut bytes = vec![0; BLOCK_BYTES];
                for sector in range.clone() {
                    self.blocking
                        .read(sector * BLOCK, &mut bytes)
                        .expect("reads");
                    disk.write(sector * BLOCK, &bytes).expect("memory");
                }
            }
            _ => panic!("the fake says {fake:?}, the real device {real:?}"),
        }
        if self.pending.is_empty() {
            self.racing.clear();
        }
        real
    }

    /// After a cut: the real device gets what the fake has kept, of the recovery's writes as well.
    pub(super) fn follow(&mut self, disk: &mut MemDisk) {
        for io in std::mem::take(&mut self.pending).into_keys() {
            self.backend.wait(io);
        }
        self.racing.clear();
        for (position, kept) in self.differing(disk) {
            self.blocking.write(position, &kept).expect("writes");
        }
        self.blocking.sync().expect("syncs");
    }

    /// Both hold the same, everywhere.
    pub(super) fn compare(&mut self, disk: &mut MemDisk) {
        if let Some((position, _)) = self.differing(disk).first() {
            panic!("the devices differ at {position} or after");
        }
    }

    /// Pieces that differ, and what the fake holds there.
    fn differing(&mut self, disk: &mut MemDisk) -> Vec<(u64, Vec<u8>)> {
        let piece = 64 * BLOCK;
        let mut out = Vec::new();
        for position in (0..disk.size()).step_by(64 * BLOCK_BYTES) {
            let bytes = usize::try_from(piece.min(disk.size() - position)).expect("small");
            let (mut fake, mut real) = (vec![0; bytes], vec![0; bytes]);
            disk.read(position, &mut fake).expect("memory");
            self.blocking.read(position, &mut real).expect("reads");
            if fake != real {
                out.push((position, fake));
            }
        }
        out
    }
}
