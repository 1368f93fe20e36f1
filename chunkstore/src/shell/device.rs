//! The device of an executor: an O_DIRECT descriptor, and what operations on it look like on the ring.

use super::buffer::{NodeBuf, for_device};
use super::ring::{Ring, Transfer};
use crate::disk::api::{DiskOp, IoId};
use io_uring::{opcode, squeue, types};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Makes device operations.
#[derive(Debug)]
pub(crate) struct Device {
    file: File,
}

impl Device {
    /// Open the device.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        super::fence::mark(&file)?;
        Ok(Self { file })
    }

    /// Hand an operation to the ring, for the shard at this place of the executor.
    pub(crate) fn begin(&self, ring: &Ring, shard: usize, op: DiskOp<NodeBuf>) {
        let (io, transfer, entry) = self.entry(op);
        ring.disk(shard, io, transfer, entry);
    }

    /// What it looks like, and the memory that it refers to.
    fn entry(&self, op: DiskOp<NodeBuf>) -> (IoId, Transfer, squeue::Entry) {
        let fd = types::Fd(self.file.as_raw_fd());
        match op {
            DiskOp::Read {
                io,
                position,
                bytes,
            } => {
                let mut buffer = glommio::allocate_dma_buffer(bytes as usize);
                let entry = opcode::Read::new(fd, buffer.as_bytes_mut().as_mut_ptr(), bytes)
                    .offset(position)
                    .build();
                (io, Transfer::Read(buffer), entry)
            }
            DiskOp::Write {
                io,
                position,
                data,
                dsync,
            } => {
                let buffer = for_device(data);
                let bytes = u32::try_from(buffer.len()).expect("writes are a few MiB at most");
                // Durable when it completes: one operation instead of a write and a flush, and no flush of
                // what others wrote.
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                let entry = opcode::Write::new(fd, buffer.as_bytes().as_ptr(), bytes)
                    .offset(position)
                    .rw_flags(flags)
                    .build();
                (io, Transfer::Write(buffer), entry)
            }
            DiskOp::Sync { io } => {
                let entry = opcode::Fsync::new(fd)
                    .flags(types::FsyncFlags::DATASYNC)
                    .build();
                (io, Transfer::Nothing, entry)
            }
            DiskOp::Punch {
                io,
                position,
                bytes,
            } => {
                let entry = opcode::Fallocate::new(fd, bytes)
                    .offset(position)
                    .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                    .build();
                (io, Transfer::Nothing, entry)
            }
        }
    }
}
