//! Memory for O_DIRECT: aligned, shared by those that send it, and used again.

use std::cell::RefCell;
use std::rc::Rc;

/// Alignment of memory, positions and lengths.
pub(crate) const ALIGN: usize = 4096;
/// Largest piece of data that is moved at once.
pub(crate) const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Idle ones that a thread keeps: more than are in flight at depth 128.
const FREE_MAX: usize = 1024;

thread_local! {
    static FREE: RefCell<Vec<Aligned>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

/// So many bytes at an aligned place.
#[derive(Clone, Debug)]
pub(crate) struct Block(Rc<Held>);

/// Goes back to the idle ones when nobody refers to it any more.
#[derive(Debug)]
struct Held(Option<Aligned>);

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(aligned) = self.0.take() {
            // Not when the thread ends.
            let _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() < FREE_MAX {
                    free.push(aligned);
                }
            });
        }
    }
}

impl Block {
    /// With whatever was in it; never zeros, which a device may treat apart.
    pub(crate) fn new(bytes: usize) -> Self {
        let idle = FREE.with_borrow_mut(|free| free.pop_if(|idle| idle.bytes == bytes));
        Self(Rc::new(Held(Some(idle.unwrap_or_else(|| fresh(bytes))))))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let held = self.0.0.as_ref();
        held.map_or(&[], |held| {
            &held.memory[held.start..held.start + held.bytes]
        })
    }

    /// Only while nobody else refers to it.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let held = Rc::get_mut(&mut self.0).expect("a block is filled before it is shared");
        let held = held.0.as_mut();
        held.map_or(&mut [], |held| {
            &mut held.memory[held.start..held.start + held.bytes]
        })
    }
}

fn fresh(bytes: usize) -> Aligned {
    let mut memory = vec![0; bytes + ALIGN];
    let start = memory.as_ptr().align_offset(ALIGN);
    assert!(start < ALIGN, "no aligned byte in {bytes} bytes");
    let mut random = Random(bytes as u64 + 1);
    for word in memory.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    Aligned {
        memory,
        start,
        bytes,
    }
}

/// Marsaglia's xorshift: quick, and good enough to spread blocks. The seed must not be 0.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
