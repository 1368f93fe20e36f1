//! Buffers of guest requests, and an aligned allocation for them.

use crate::core::api::{BufferPart, GuestTag};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use ukai_proto::limits::SECTOR_BYTES;

/// Where the buffers of a lane's guest requests are.
///
/// # Safety
/// For every tag that has been given to [`super::lane::LaneDriver::guest`] and whose completion has
/// not been taken yet, `buffer` returns the same pointer and length each time, valid for reads and
/// writes of that length, and nobody else touches the bytes meanwhile.
pub unsafe trait GuestBuffers {
    /// Start and length of the buffer.
    fn buffer(&self, tag: GuestTag) -> (NonNull<u8>, usize);

    /// Start of a part. Asserts that it lies inside the buffer.
    fn part(&self, part: BufferPart) -> NonNull<u8> {
        let (start, len) = self.buffer(part.tag);
        let end = u64::from(part.offset_bytes) + u64::from(part.bytes);
        assert!(
            end <= len as u64,
            "part ends at {end} of a guest buffer of {len} bytes"
        );
        // SAFETY: the offset was just checked to lie inside the allocation.
        unsafe { start.add(part.offset_bytes as usize) }
    }
}

/// Zeroed memory aligned to sectors.
#[derive(Debug)]
pub struct AlignedBuffer {
    start: NonNull<u8>,
    len: usize,
}

impl AlignedBuffer {
    /// `len` bytes, at least one sector.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let len = len.max(SECTOR_BYTES);
        let layout = Self::layout(len);
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, len }
    }

    /// Start and length.
    #[must_use]
    pub fn raw(&self) -> (NonNull<u8>, usize) {
        (self.start, self.len)
    }

    fn layout(len: usize) -> Layout {
        let layout = Layout::from_size_align(len, SECTOR_BYTES);
        layout.unwrap_or_else(|_| panic!("no layout for a buffer of {len} bytes"))
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
    }
}

/// Counts, per tag, who in the kernel or in a queue still refers to its buffer. A guest request is
/// answered only when nobody does, because the guest (or the next request) owns the bytes then.
#[derive(Debug, Default)]
pub struct Holds(Vec<u32>);

impl Holds {
    /// One more.
    pub fn take(&mut self, tag: GuestTag) {
        let index = tag.0 as usize;
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        self.0[index] += 1;
    }

    /// One less.
    pub fn release(&mut self, tag: GuestTag) {
        let count = &mut self.0[tag.0 as usize];
        assert!(*count > 0, "buffer of tag {} released twice", tag.0);
        *count -= 1;
    }

    /// Does nobody refer to it?
    #[must_use]
    pub fn free(&self, tag: GuestTag) -> bool {
        self.0.get(tag.0 as usize).is_none_or(|count| *count == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(AlignedBuffer);

    // SAFETY: the buffer lives as long as the test.
    unsafe impl GuestBuffers for One {
        fn buffer(&self, _tag: GuestTag) -> (NonNull<u8>, usize) {
            self.0.raw()
        }
    }

    #[test]
    fn buffers_are_aligned_and_parts_lie_inside() {
        let one = One(AlignedBuffer::new(10));
        let (start, len) = one.0.raw();
        assert_eq!(
            (start.as_ptr() as usize % SECTOR_BYTES, len),
            (0, SECTOR_BYTES)
        );
        let part = BufferPart {
            tag: GuestTag(0),
            offset_bytes: 4000,
            bytes: 96,
        };
        assert_eq!(
            one.part(part).as_ptr() as usize,
            start.as_ptr() as usize + 4000
        );
    }

    #[test]
    #[should_panic(expected = "of a guest buffer of 4096 bytes")]
    fn a_part_beyond_its_buffer_is_a_bug() {
        let part = BufferPart {
            tag: GuestTag(0),
            offset_bytes: 4000,
            bytes: 97,
        };
        One(AlignedBuffer::new(10)).part(part);
    }

    #[test]
    fn holds_count() {
        let (mut holds, tag) = (Holds::default(), GuestTag(7));
        assert!(holds.free(tag));
        holds.take(tag);
        holds.take(tag);
        holds.release(tag);
        assert!(!holds.free(tag));
        holds.release(tag);
        assert!(holds.free(tag));
    }
}
