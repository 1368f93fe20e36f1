//! What is under the shards of an executor: a device, or memory in its place.

use super::blocking::{Access, FileDisk};
use super::buffer::NodeBuf;
use super::device::Device;
use super::ring::Ring;
use crate::disk::api::{Disk, DiskError, DiskOp, DiskResult, IoId, WriteData};
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use ukai_proto::Buffer;

/// Which of the two a node gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BackingKind {
    Device,
    Memory,
}

/// See the module docs.
#[derive(Debug)]
pub(super) enum Backing {
    Device(Device),
    Memory(Memory),
}

impl Backing {
    /// Open what is there, or copy it.
    pub(super) fn open(kind: BackingKind, path: &Path) -> io::Result<Self> {
        Ok(match kind {
            BackingKind::Device => Self::Device(Device::open(path)?),
            BackingKind::Memory => {
                let mut disk = FileDisk::open(path, Access::Read)?;
                Self::Memory(Memory::copy_of(&mut disk).map_err(errno)?)
            }
        })
    }

    /// The same for recovery, which waits for each operation.
    pub(super) fn blocking(&self, path: &Path) -> io::Result<Box<dyn Disk>> {
        Ok(match self {
            Self::Device(_) => Box::new(FileDisk::open(path, Access::Write)?),
            Self::Memory(memory) => Box::new(memory.clone()),
        })
    }

    /// Hand an operation over, for the shard at this place of the executor. `None`: the ring tells of its end.
    pub(super) fn begin(
        &self,
        ring: &Ring,
        shard: usize,
        op: DiskOp<NodeBuf>,
    ) -> Option<(IoId, DiskResult<NodeBuf>)> {
        match self {
            Self::Device(device) => {
                device.begin(ring, shard, op);
                None
            }
            Self::Memory(memory) => Some(memory.carry_out(op)),
        }
    }
}

fn errno(error: DiskError) -> io::Error {
    io::Error::from_raw_os_error(error.0)
}

/// Largest image kept in memory: it is all touched, and a measurement needs a small volume.
const IMAGE_BYTES_MAX: u64 = 1 << 30;

/// A copy of a formatted device, for a node without a disk: every operation is done at once, without the kernel. Reads give
/// what was written, so that all that is checked on the way is really checked. Nothing is kept when the node ends.
#[derive(Clone)]
pub(super) struct Memory(Rc<RefCell<Box<[u8]>>>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory {{ bytes: {} }}", self.0.borrow().len())
    }
}

impl Memory {
    /// A copy of all that is there.
    pub(super) fn copy_of(disk: &mut FileDisk) -> Result<Self, DiskError> {
        if disk.size() > IMAGE_BYTES_MAX {
            return Err(DiskError(libc::EFBIG));
        }
        let bytes = usize::try_from(disk.size()).map_err(|_| DiskError(libc::EFBIG))?;
        let mut image = vec![0; bytes].into_boxed_slice();
        disk.read(0, &mut image)?;
        Ok(Self(Rc::new(RefCell::new(image))))
    }

    fn carry_out(&self, op: DiskOp<NodeBuf>) -> (IoId, DiskResult<NodeBuf>) {
        match op {
            DiskOp::Read {
                io,
                position,
                bytes,
            } => {
                let mut buffer = glommio::allocate_dma_buffer(bytes as usize);
                match self.load(position, buffer.as_bytes_mut()) {
                    Ok(()) => (io, DiskResult::Read(NodeBuf(buffer))),
                    Err(error) => (io, DiskResult::Failed(error.0)),
                }
            }
            DiskOp::Write {
                io, position, data, ..
            } => {
                let stored = match &data {
                    WriteData::Payload(buffer) => self.store(position, buffer.as_slice()),
                    WriteData::Owned(bytes) => self.store(position, bytes),
                };
                match stored {
                    Ok(()) => (io, DiskResult::Done),
                    Err(error) => (io, DiskResult::Failed(error.0)),
                }
            }
            // What was punched may read as anything.
            DiskOp::Sync { io } | DiskOp::Punch { io, .. } => (io, DiskResult::Done),
        }
    }

    fn load(&self, position: u64, out: &mut [u8]) -> Result<(), DiskError> {
        let image = self.0.borrow();
        let held = at(image.len(), position, out.len()).ok_or(DiskError(libc::EIO))?;
        out.copy_from_slice(&image[held]);
        Ok(())
    }

    fn store(&self, position: u64, data: &[u8]) -> Result<(), DiskError> {
        let mut image = self.0.borrow_mut();
        let held = at(image.len(), position, data.len()).ok_or(DiskError(libc::ENOSPC))?;
        image[held].copy_from_slice(data);
        Ok(())
    }
}

impl Disk for Memory {
    fn size(&self) -> u64 {
        self.0.borrow().len() as u64
    }

    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError> {
        self.load(position, out)
    }

    fn write(&mut self, position: u64, data: &[u8]) -> Result<(), DiskError> {
        self.store(position, data)
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn punch(&mut self, _position: u64, _bytes: u64) -> Result<(), DiskError> {
        Ok(())
    }
}

/// The range in an image of `len` bytes, if it lies inside.
fn at(len: usize, position: u64, bytes: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(position).ok()?;
    let end = start.checked_add(bytes)?;
    (end <= len).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use glommio::{LocalExecutorBuilder, Placement};

    #[test]
    fn memory_gives_back_what_was_written_or_was_there_and_leaves_the_file_alone() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder on a disk");
        let path = dir.path().join("disk");
        std::fs::write(&path, [3; 4 * 4096]).expect("writes");
        let file = path.clone();
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .io_memory(1 << 20)
            .spawn(move || async move {
                let backing = Backing::open(BackingKind::Memory, &file).expect("small");
                let Backing::Memory(memory) = &backing else {
                    panic!("{backing:?}");
                };
                let write = |position, byte| DiskOp::Write {
                    io: IoId(1),
                    position,
                    data: WriteData::Owned(vec![byte; 4096]),
                    dsync: true,
                };
                let read = |position, bytes| {
                    let io = IoId(2);
                    memory.carry_out(DiskOp::Read {
                        io,
                        position,
                        bytes,
                    })
                };
                let (io, result) = memory.carry_out(write(4096, 7));
                assert!(io == IoId(1) && matches!(result, DiskResult::Done));
                let (io, result) = read(0, 3 * 4096);
                let DiskResult::Read(back) = result else {
                    panic!("{result:?}");
                };
                let back = back.as_slice();
                assert_eq!((io, back.len()), (IoId(2), 3 * 4096));
                assert!(back[..4096].iter().all(|byte| *byte == 3));
                assert!(back[4096..8192].iter().all(|byte| *byte == 7));
                assert!(back[8192..].iter().all(|byte| *byte == 3));
                // Beyond the end, and beyond any end.
                for position in [4 * 4096, u64::MAX - 4095] {
                    let beyond = memory.carry_out(write(position, 1)).1;
                    assert!(matches!(beyond, DiskResult::Failed(libc::ENOSPC)));
                    let beyond = read(position, 4096).1;
                    assert!(matches!(beyond, DiskResult::Failed(libc::EIO)));
                }
                // Recovery sees the same.
                let mut blocking = backing.blocking(&file).expect("memory");
                assert_eq!(blocking.size(), 4 * 4096);
                blocking.write(4096, &[9; 4096]).expect("inside");
                let DiskResult::Read(back) = read(4096, 4096).1 else {
                    panic!("inside");
                };
                assert!(back.as_slice() == [9; 4096]);
            })
            .expect("an executor");
        executor.join().expect("ends well");
        assert!(std::fs::read(&path).expect("reads") == [3; 4 * 4096]);
    }
}
