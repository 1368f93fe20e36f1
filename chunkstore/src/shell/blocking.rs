//! The file or device through blocking O_DIRECT calls: format, recovery, superblocks.

use crate::disk::api::{Disk, DiskError};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Alignment of memory, positions and lengths.
const ALIGN: usize = 4096;
/// Longer transfers are cut: bounds the aligned memory kept.
const PIECE_BYTES: usize = 1 << 20;

/// An aligned piece of memory inside a vector.
#[derive(Debug)]
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(bytes: usize) -> Self {
        let memory = vec![0u8; bytes + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        assert!(start < ALIGN, "no aligned byte in {} bytes", memory.len());
        Self { memory, start }
    }

    fn slice(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.memory[self.start..self.start + bytes]
    }
}

/// A file or block device opened with O_DIRECT.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    bytes: u64,
    is_block: bool,
    buffer: Aligned,
}

/// How to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Look only.
    Read,
    /// Read and write.
    Write,
    /// Read and write, and nobody else may: a block device that is mounted or part of something
    /// else is refused, and so is a second daemon.
    Exclusive,
}

impl FileDisk {
    /// Open what exists.
    pub fn open(path: &Path, access: Access) -> io::Result<Self> {
        let is_block = std::fs::metadata(path)?.file_type().is_block_device();
        let mut flags = libc::O_DIRECT;
        if access == Access::Exclusive && is_block {
            flags |= libc::O_EXCL;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(access != Access::Read)
            .custom_flags(flags)
            .open(path)?;
        if access == Access::Exclusive {
            match file.try_lock() {
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) => {
                    return Err(io::Error::from_raw_os_error(libc::EBUSY));
                }
                Err(std::fs::TryLockError::Error(error)) => return Err(error),
            }
        }
        let bytes = if is_block {
            block_device_bytes(&file)?
        } else {
            file.metadata()?.len()
        };
        Ok(Self {
            file,
            bytes: bytes - bytes % ALIGN as u64,
            is_block,
            buffer: Aligned::new(PIECE_BYTES),
        })
    }

    /// Wait for the last I/O of a run that was killed; see [`super::fence`].
    pub(super) fn wait_for_former_run(&self) -> io::Result<()> {
        super::fence::wait(&self.file)
    }

    /// A block device, not a file?
    pub fn is_block(&self) -> bool {
        self.is_block
    }
}

fn block_device_bytes(file: &File) -> io::Result<u64> {
    /// `_IOR(0x12, 114, size_t)`, from linux/fs.h.
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut bytes = 0u64;
    // SAFETY: the ioctl writes one u64 to the given place, which lives until it returns.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) };
    if result == 0 {
        Ok(bytes)
    } else {
        Err(io::Error::last_os_error())
    }
}

fn failed(error: &io::Error) -> DiskError {
    DiskError(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Where each piece of a transfer starts and ends.
fn pieces(bytes: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..bytes)
        .step_by(PIECE_BYTES)
        .map(move |start| start..bytes.min(start + PIECE_BYTES))
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self, position: u64, out: &mut [u8]) -> Result<(), DiskError> {
        for piece in pieces(out.len()) {
            let at = position + piece.start as u64;
            let aligned = self.buffer.slice(piece.len());
            self.file
                .read_exact_at(aligned, at)
                .map_err(|error| failed(&error))?;
            out[piece].copy_from_slice(aligned);
        }
        Ok(())
    }

    fn write(&mut self, position: u64, data: &[u8]) -> Result<(), DiskError> {
        for piece in pieces(data.len()) {
            let at = position + piece.start as u64;
            let aligned = self.buffer.slice(piece.len());
            aligned.copy_from_slice(&data[piece]);
            self.file
                .write_all_at(aligned, at)
                .map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|error| failed(&error))
    }

    fn punch(&mut self, position: u64, bytes: u64) -> Result<(), DiskError> {
        let (Ok(offset), Ok(length)) = (i64::try_from(position), i64::try_from(bytes)) else {
            return Err(DiskError(libc::EINVAL));
        };
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no memory is passed; the descriptor is this file's.
        let result = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) };
        // Advisory: a device without discard keeps its old content, which nothing reads.
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            _ if result == 0 => Ok(()),
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV) => Ok(()),
            _ => Err(failed(&error)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // test data is small
mod tests {
    use super::*;

    #[test]
    fn round_trips_across_pieces_and_refuses_a_second_owner() {
        // The build directory, not /tmp: that may be memory.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temporary directory");
        let path = dir.path().join("disk");
        let file = File::create(&path).expect("create");
        file.set_len(4 << 20).expect("size");
        drop(file);
        let mut disk = FileDisk::open(&path, Access::Exclusive).expect("open");
        assert_eq!((disk.size(), disk.is_block()), (4 << 20, false));
        let data: Vec<u8> = (0..PIECE_BYTES + 8192).map(|i| (i / 4096) as u8).collect();
        disk.write(4096, &data).expect("write");
        disk.sync().expect("sync");
        let mut back = vec![0; data.len()];
        disk.read(4096, &mut back).expect("read");
        assert!(back == data);
        let second = FileDisk::open(&path, Access::Exclusive).map(|_| ());
        let errno = second.expect_err("locked").raw_os_error();
        assert_eq!(errno, Some(libc::EBUSY));
    }
}
