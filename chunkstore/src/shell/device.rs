//! The device of an executor: two O_DIRECT descriptors, one of them O_DSYNC.

use super::buffer::{NodeBuf, for_device};
use crate::disk::api::{DiskOp, DiskResult, IoId};
use glommio::GlommioError;
use glommio::io::{DmaFile, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Runs device operations.
#[derive(Debug)]
pub(crate) struct Device {
    plain: DmaFile,
    /// Writes through this descriptor are durable when they complete: one operation instead of a
    /// write and a flush, and no flush of what others wrote.
    dsync: DmaFile,
}

impl Device {
    /// Open the device. `probe` is a small file on the same file system with written, synced content
    /// (none for block devices): the runtime decides once per device and thread whether completions
    /// can be polled, by reading the first block of the first file it opens; on a preallocated but
    /// never written block that read never reaches the device, the answer would be a false yes, and
    /// every later read would fail.
    pub(crate) async fn open(path: &Path, probe: Option<&Path>) -> Result<Self, GlommioError<()>> {
        if let Some(probe) = probe {
            OpenOptions::new()
                .read(true)
                .dma_open(probe)
                .await?
                .close()
                .await?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let plain = options.dma_open(path).await?;
        let dsync = options.custom_flags(libc::O_DSYNC).dma_open(path).await?;
        for file in [&plain, &dsync] {
            direct(file)?;
            super::fence::mark(file)?;
        }
        Ok(Self { plain, dsync })
    }

    /// Run one operation to its end.
    pub(crate) async fn run(&self, op: DiskOp<NodeBuf>) -> (IoId, DiskResult<NodeBuf>) {
        match op {
            DiskOp::Read {
                io,
                position,
                bytes,
            } => {
                let result = self.plain.read_at_aligned(position, bytes as usize).await;
                let result = match result {
                    Ok(data) if data.len() == bytes as usize => {
                        DiskResult::Read(NodeBuf::Read(data))
                    }
                    // Beyond the end of the file: it was cut since it was opened.
                    Ok(_) => DiskResult::Failed(libc::EIO),
                    Err(error) => DiskResult::Failed(errno(&error)),
                };
                (io, result)
            }
            DiskOp::Write {
                io,
                position,
                data,
                dsync,
            } => {
                let buffer = for_device(data);
                let bytes = buffer.len();
                let file = if dsync { &self.dsync } else { &self.plain };
                let result = match file.write_at(buffer, position).await {
                    Ok(written) if written == bytes => DiskResult::Done,
                    // The file system under a sparse file is full.
                    Ok(_) => DiskResult::Failed(libc::ENOSPC),
                    Err(error) => DiskResult::Failed(errno(&error)),
                };
                (io, result)
            }
            DiskOp::Sync { io } => (io, done(self.plain.fdatasync().await)),
            DiskOp::Punch {
                io,
                position,
                bytes,
            } => (io, done(self.plain.deallocate(position, bytes).await)),
        }
    }
}

/// The runtime leaves O_DIRECT out on tmpfs, and takes every block device for a file on tmpfs: it asks for the
/// file system of the name, and `/dev` is one. Through the page cache a write that the device refuses would
/// be answered as done.
fn direct(file: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: passes no memory; the descriptor is the file's.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn done(result: Result<(), GlommioError<()>>) -> DiskResult<NodeBuf> {
    match result {
        Ok(()) => DiskResult::Done,
        Err(error) => DiskResult::Failed(errno(&error)),
    }
}

fn errno(error: &GlommioError<()>) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
