//! The block device: O_DIRECT reads and writes, FUA, flush, discard, write-zeroes.

use crate::failure::Failure;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use ukai_checker::stamp::SECTOR_BYTES;

/// `_IO(0x12, 119)`, from linux/fs.h.
const BLKDISCARD: libc::c_ulong = 0x1277;
/// `_IO(0x12, 127)`.
const BLKZEROOUT: libc::c_ulong = 0x127f;
/// `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// Memory for O_DIRECT: whole sectors at an address that is a multiple of one.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub(crate) fn new(sectors: u32) -> Self {
        let memory = vec![0; (sectors as usize + 1) * SECTOR_BYTES];
        let start = memory.as_ptr().align_offset(SECTOR_BYTES);
        assert!(start < SECTOR_BYTES, "no aligned byte in the buffer");
        Self { memory, start }
    }

    /// The first `sectors` of it.
    pub(crate) fn sectors(&mut self, sectors: u32) -> &mut [u8] {
        let bytes = sectors as usize * SECTOR_BYTES;
        &mut self.memory[self.start..self.start + bytes]
    }
}

/// An open device. Files are taken as well, for tests of this program.
#[derive(Debug)]
pub(crate) struct Device {
    path: PathBuf,
    file: File,
    is_block: bool,
    sectors: u64,
}

impl Device {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let failure = |source| Failure::Open {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .map_err(failure)?;
        let meta = file.metadata().map_err(failure)?;
        let is_block = meta.file_type().is_block_device();
        let mut bytes = meta.len();
        if is_block {
            // SAFETY: the ioctl writes one u64 to the given place, which lives until it returns.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) };
            if result != 0 {
                return Err(failure(io::Error::last_os_error()));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            is_block,
            sectors: bytes / SECTOR_BYTES as u64,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whole sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(crate) fn read(&self, sector: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, sector * SECTOR_BYTES as u64)
    }

    /// Durable on return with `fua`.
    pub(crate) fn write(&self, sector: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let position = sector * SECTOR_BYTES as u64;
        if !fua {
            return self.file.write_all_at(data, position);
        }
        let vector = libc::iovec {
            iov_base: data.as_ptr().cast_mut().cast(),
            iov_len: data.len(),
        };
        let offset = i64::try_from(position).map_err(io::Error::other)?;
        // SAFETY: one vector, over memory borrowed for the whole call, which only reads it.
        let written = unsafe {
            libc::pwritev2(
                self.file.as_raw_fd(),
                &raw const vector,
                1,
                offset,
                libc::RWF_DSYNC,
            )
        };
        match usize::try_from(written) {
            Ok(bytes) if bytes == data.len() => Ok(()),
            Ok(bytes) => Err(io::Error::other(format!(
                "{bytes} of {} bytes written",
                data.len()
            ))),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(crate) fn discard(&self, sector: u64, count: u32) -> io::Result<()> {
        self.zero_with(BLKDISCARD, sector, count)
    }

    pub(crate) fn zeroes(&self, sector: u64, count: u32) -> io::Result<()> {
        self.zero_with(BLKZEROOUT, sector, count)
    }

    fn zero_with(&self, request: libc::c_ulong, sector: u64, count: u32) -> io::Result<()> {
        if !self.is_block {
            let mut zeros = Buffer::new(count);
            return self.write(sector, zeros.sectors(count), false);
        }
        let range = [sector, u64::from(count)].map(|sectors| sectors * SECTOR_BYTES as u64);
        // SAFETY: both ioctls read two u64, which live until they return.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), request, range.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
