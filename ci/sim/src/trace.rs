//! A hash over everything that happens: two runs of one seed must agree.

/// Rolling hash, and optionally the story in words.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    pub(crate) events: u64,
    pub(crate) verbose: bool,
}

impl Trace {
    pub(crate) fn new(verbose: bool) -> Self {
        Self {
            hash: 0x243f_6a88_85a3_08d3,
            events: 0,
            verbose,
        }
    }

    pub(crate) fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    /// What happened, for people.
    pub(crate) fn say(&self, now: u64, text: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{:>14.6} ms  {}", now as f64 / 1e6, text());
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}
