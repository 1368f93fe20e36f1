//! The disk as it was at each moment of the log.

use crate::log::{Action, Entry};
use chunkstore::disk::api::{Disk, DiskError};
use chunkstore::disk::layout::{BLOCK, BLOCK_BYTES};
use chunkstore::disk::mem::MemDisk;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use ukai_checker::stamp::Content;

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

/// The number of the guest's write whose content this is.
fn guest_write(sector: &[u8]) -> Option<u64> {
    match Content::read(sector) {
        Content::Whole(stamp) => Some(stamp.write_id),
        Content::Zero | Content::Torn(_) => None,
    }
}

/// What is durable, and what was written since and may not be.
#[derive(Debug)]
pub(crate) struct Medium {
    durable: MemDisk,
    loose: Vec<(u64, Vec<u8>)>,
    /// Written with FUA since the last flush, and the write of the guest that it was, if it was one.
    forced: BTreeMap<u64, Option<u64>>,
    lying: bool,
}

impl Medium {
    /// Zeros. A lying one loses every fifth sector that it was told to flush.
    pub(crate) fn new(bytes: u64, lying: bool) -> Self {
        Self {
            durable: MemDisk::new(bytes),
            loose: Vec::new(),
            forced: BTreeMap::new(),
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
                    let writes = data.chunks_exact(BLOCK_BYTES).map(guest_write);
                    self.forced.extend(sectors.zip(writes));
                } else {
                    for (position, piece) in sectors.zip(data.chunks_exact(BLOCK_BYTES)) {
                        if self.is_later(position, piece)? {
                            self.loose.push((position, piece.to_vec()));
                        }
                    }
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

    /// Did the guest write it after what is there by force? The log tells a write without FUA only with the flush that
    /// follows it, and so after one with FUA that followed it too. The guest numbers its writes, and never has two of
    /// one sector under way.
    fn is_later(&self, position: u64, piece: &[u8]) -> Result<bool, MediumError> {
        match self.forced.get(&position) {
            None => Ok(true),
            Some(forced) => match (forced, guest_write(piece)) {
                (Some(forced), Some(loose)) => Ok(loose > *forced),
                _ => Err(MediumError::Unordered { position }),
            },
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use ukai_checker::stamp::Stamp;

    fn write(write_id: u64, fua: bool) -> Entry {
        let stamp = Stamp {
            volume: [1; 16],
            sector: 0,
            write_id,
        };
        Entry {
            position: BLOCK,
            flush: false,
            action: Action::Write {
                data: stamp.bytes(),
                fua,
            },
        }
    }

    /// The log has it after the second, as it became durable with the next flush only.
    #[test]
    fn a_write_before_one_with_fua_does_not_undo_it() {
        let mut medium = Medium::new(1 << 20, false);
        medium.apply(&write(2, true)).expect("a sector");
        medium.apply(&write(1, false)).expect("the guest's order");
        assert_eq!(medium.loose(), 0);
        medium.apply(&write(3, false)).expect("the guest's order");
        assert_eq!(medium.loose(), 1);
    }

    #[test]
    fn what_is_no_write_of_the_guest_has_no_order() {
        let mut medium = Medium::new(1 << 20, false);
        medium.apply(&write(2, true)).expect("a sector");
        let mut unknown = write(1, false);
        if let Action::Write { data, .. } = &mut unknown.action {
            data[0] ^= 1;
        }
        assert!(matches!(
            medium.apply(&unknown),
            Err(MediumError::Unordered { position: BLOCK })
        ));
    }
}
