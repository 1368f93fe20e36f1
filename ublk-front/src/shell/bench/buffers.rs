//! Memory of the requests of one lane: one buffer per tag.

use crate::core::api::GuestTag;
use crate::shell::buffers::{AlignedBuffer, GuestBuffers};
use std::fs::File;
use std::io::{self, Read};
use std::ptr::NonNull;
use ukai_proto::limits::SECTOR_BYTES;

/// Filled once with what cannot be compressed.
pub(super) struct BenchBuffers(Vec<AlignedBuffer>);

impl BenchBuffers {
    pub(super) fn new(depth: u32, sectors: u32) -> io::Result<Self> {
        let bytes = sectors as usize * SECTOR_BYTES;
        let mut random = File::open("/dev/urandom")?;
        let mut content = vec![0; bytes];
        let buffers = (0..depth).map(|_| {
            random.read_exact(&mut content)?;
            let buffer = AlignedBuffer::new(bytes);
            // SAFETY: the buffer was just made with so many bytes, and is no one else's.
            unsafe {
                std::ptr::copy_nonoverlapping(content.as_ptr(), buffer.raw().0.as_ptr(), bytes);
            }
            Ok(buffer)
        });
        Ok(Self(buffers.collect::<io::Result<_>>()?))
    }

    /// Writes a number into each sector of an idle buffer, so that no two writes are alike, and none is zeros.
    pub(super) fn stamp(&self, tag: GuestTag, sectors: u32, number: u64) {
        let (start, bytes) = self.0[tag.0 as usize].raw();
        let end = sectors as usize * SECTOR_BYTES;
        assert!(end <= bytes, "{end} bytes in a buffer of {bytes}");
        for at in (0..end).step_by(SECTOR_BYTES) {
            let stamp = number.wrapping_add(at as u64).to_le_bytes();
            // SAFETY: eight bytes inside the buffer, which nobody uses while its tag is idle.
            unsafe {
                std::ptr::copy_nonoverlapping(stamp.as_ptr(), start.as_ptr().add(at), stamp.len());
            }
        }
    }
}

// SAFETY: buffers live until every request has been answered and its completion taken (`Driver::drive`
// returns only then), and only `stamp` touches them, while the tag is idle.
unsafe impl GuestBuffers for BenchBuffers {
    fn buffer(&self, tag: GuestTag) -> (NonNull<u8>, usize) {
        self.0[tag.0 as usize].raw()
    }
}
