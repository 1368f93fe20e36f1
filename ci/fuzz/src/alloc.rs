//! Counts what the code under test allocates, so that a target can say "nothing before the checksum",
//! or "not more than this for an input of that size".

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What a call allocated, on this thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Allocated {
    /// Bytes of all allocations together.
    pub(crate) total: usize,
    /// Bytes of the largest one.
    pub(crate) largest: usize,
    /// Most bytes alive at a time, above those at the beginning.
    pub(crate) peak: usize,
}

#[derive(Clone, Copy)]
struct Counts {
    total: usize,
    largest: usize,
    live: isize,
    peak: isize,
}

thread_local! {
    static COUNTS: Cell<Counts> = const { Cell::new(Counts { total: 0, largest: 0, live: 0, peak: 0 }) };
}

fn count(got: usize, given_back: usize) {
    // A thread that is ending has no counts any more, and nobody who asks for them.
    let _ = COUNTS.try_with(|cell| {
        let mut counts = cell.get();
        counts.total += got;
        counts.largest = counts.largest.max(got);
        counts.live += got.cast_signed() - given_back.cast_signed();
        counts.peak = counts.peak.max(counts.live);
        cell.set(counts);
    });
}

/// Runs `work` and tells what it allocated.
pub(crate) fn measured<R>(work: impl FnOnce() -> R) -> (R, Allocated) {
    let before = COUNTS.get();
    COUNTS.set(Counts {
        total: 0,
        largest: 0,
        live: 0,
        peak: 0,
    });
    let result = work();
    let during = COUNTS.get();
    COUNTS.set(Counts {
        total: before.total + during.total,
        largest: before.largest.max(during.largest),
        live: before.live + during.live,
        peak: before.peak.max(before.live + during.peak),
    });
    let allocated = Allocated {
        total: during.total,
        largest: during.largest,
        peak: during.peak.cast_unsigned(),
    };
    (result, allocated)
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator unchanged; the counts are plain numbers of the
// calling thread, and reading or writing them allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes, layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.realloc(at, layout, bytes) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_counted() {
        let ((), none) = measured(|| ());
        assert_eq!(none, Allocated::default());
        let (kept, some) = measured(|| {
            drop(vec![0u8; 1000]);
            vec![0u8; 3000]
        });
        assert_eq!(kept.len(), 3000);
        assert_eq!((some.total, some.largest, some.peak), (4000, 3000, 3000));
    }
}
