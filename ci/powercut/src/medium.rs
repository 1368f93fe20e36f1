//! The disk as it was at each moment of the log.

use crate::log::{Action, Entry};
use chunkstore::disk::api::{Disk, DiskError};
use chunkstore::disk::layout::{BLOCK, BLOCK_BYTES};
use chunkstore::disk::mem::MemDisk;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;

/// The log shows what it cannot, or what the replay cannot order.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MediumError {
    /// The node writes whole sectors of 4 KiB.
    #[error("a write of {bytes} bytes at {position} is not made of whole sectors")]
    Unaligned {
        /// Where.
        position: u64,
        /// How much.
        bytes: u64,
    },
    /// The log does not tell which of the two came last.
    #[error("sector at {position} was written with FUA and without since one flush")]
    Unordered {
        /// Where.
        position: u64,
    },
    /// Memory never fails.
    #[error("{0}")]
    Device(#[from] DiskError),
}

/// What is durable, and what was written since and may not be.
#[derive(Debug)]
pub(crate) struct Medium {
    durable: MemDisk,
    loose: Vec<(u64, Vec<u8>)>,
    forced: BTreeSet<u64>,
    lying: bool,
}

impl Medium {
    /// Zeros. A lying one loses every fifth sector that it was told to flush.
    pub(crate) fn new(bytes: u64, lying: bool) -> Self {
        Self {
            durable: MemDisk::new(bytes),
            loose: Vec::new(),
            forced: BTreeSet::new(),
            lying,
        }
    }

    /// Applies an entry, a flush before its own data.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Result<(), MediumError> {
        if entry.flush {
            for (position, data) in std::mem::take(&mut self.loose) {
                if !self.lying || !(position / BLOCK).is_multiple_of(5) {
                    self.durable.write(position, &data)?;
                }
            }
            self.forced.clear();
        }
        match &entry.action {
            Action::Write { data, fua } => {
                let (position, bytes) = (entry.position, data.len() as u64);
                if !position.is_multiple_of(BLOCK) || !bytes.is_multiple_of(BLOCK) {
                    return Err(MediumError::Unaligned { position, bytes });
                }
                let sectors = (position..position + bytes).step_by(BLOCK_BYTES);
                if *fua {
                    self.durable.write(position, data)?;
                    self.forced.extend(sectors);
                } else {
                    for position in sectors.clone() {
                        if self.forced.contains(&position) {
                            return Err(MediumError::Unordered { position });
                        }
                    }
                    let pieces = sectors.zip(data.chunks_exact(BLOCK_BYTES));
                    self.loose
                        .extend(pieces.map(|(position, piece)| (position, piece.to_vec())));
                }
            }
            // Nobody relies on what is there any more: noise is as good as anything.
            Action::Discard { bytes } => {
                let noise = vec![0xa5; BLOCK_BYTES];
                let end = entry.position + bytes;
                let mut position = entry.position.next_multiple_of(BLOCK);
                while position + BLOCK <= end {
                    self.loose.push((position, noise.clone()));
                    position += BLOCK;
                }
            }
            Action::Mark(_) | Action::Nothing => {}
        }
        self.durable.sync()?;
        Ok(())
    }

    /// Sectors that a cut could lose.
    pub(crate) fn loose(&self) -> usize {
        self.loose.len()
    }

    /// What a cut leaves that takes everything loose.
    pub(crate) fn without(&self) -> MemDisk {
        self.durable.durable_copy()
    }

    /// What a cut leaves that takes each loose sector by chance.
    pub(crate) fn with_some(&self, rng: &mut ChaCha8Rng) -> Result<MemDisk, MediumError> {
        let mut disk = self.durable.durable_copy();
        for (position, data) in &self.loose {
            if rng.random_bool(0.5) {
                disk.write(*position, data)?;
            }
        }
        disk.sync()?;
        Ok(disk)
    }
}
