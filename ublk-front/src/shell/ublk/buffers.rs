//! The buffers of one queue: one per tag, for as long as the queue lives.

use crate::core::api::GuestTag;
use crate::shell::buffers::GuestBuffers;
use libublk::helpers::IoBuf;
use std::ptr::NonNull;

/// One buffer per tag. The driver copies the data of writes in before it delivers the request, and
/// the data of reads out when the request is answered; between the two they belong to the lane.
pub struct QueueBuffers {
    buffers: Vec<IoBuf<u8>>,
}

impl QueueBuffers {
    /// `depth` buffers of `bytes` each, touched and (as far as the process may) locked, so that
    /// serving I/O never has to wait for memory that may have to be written back through us, and
    /// so that the driver always finds their pages present.
    pub(super) fn new(depth: u16, bytes: u32) -> Self {
        let buffers = (0..depth).map(|_| {
            let mut buffer = IoBuf::<u8>::new(bytes as usize);
            // Writing is what makes the pages ours; fresh ones could all be the one zero page.
            buffer.zero_buf();
            let _ = buffer.mlock();
            buffer
        });
        Self {
            buffers: buffers.collect(),
        }
    }

    /// For libublk.
    pub(super) fn all(&self) -> &Vec<IoBuf<u8>> {
        &self.buffers
    }

    /// Start of a tag's buffer, and its length.
    pub(super) fn raw(&self, tag: GuestTag) -> (NonNull<u8>, usize) {
        let buffer = &self.buffers[tag.0 as usize];
        let start = NonNull::new(buffer.as_mut_ptr());
        (
            start.unwrap_or_else(|| panic!("tag {} has no buffer", tag.0)),
            buffer.len(),
        )
    }
}

// SAFETY: a tag's buffer is allocated before the first request and freed after the lane has
// stopped; the driver leaves it alone between delivering a request and taking its answer.
unsafe impl GuestBuffers for QueueBuffers {
    fn buffer(&self, tag: GuestTag) -> (NonNull<u8>, usize) {
        self.raw(tag)
    }
}
