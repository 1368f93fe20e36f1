//! Sector contents that name their write.
//!
//! A stamped sector is 64 units of 64 bytes, each with magic, volume, sector, write id, the unit's
//! place and a checksum. So any part of a sector tells where it comes from: a mix of two writes, a
//! misdirected write and damage are told apart.

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 4096;
const UNIT_BYTES: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"UKAIstmp");

/// Names one sector of one write.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stamp {
    /// The volume.
    pub volume: [u8; 16],
    /// Sector on the volume.
    pub sector: u64,
    /// Which write; not 0.
    pub write_id: u64,
}

/// What a sector holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Zeros.
    Zero,
    /// One stamp throughout.
    Whole(Stamp),
    /// Anything else: the runs of units found, `None` for units that are no stamp (zeros included).
    Torn(Vec<(Option<Stamp>, usize)>),
}

impl Stamp {
    /// The sector's content.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; SECTOR_BYTES];
        self.write_to(&mut out);
        out
    }

    /// Fill a sector.
    ///
    /// # Panics
    /// If `out` is not one sector long, or the write id is 0.
    pub fn write_to(&self, out: &mut [u8]) {
        assert_eq!(out.len(), SECTOR_BYTES, "length of a sector");
        assert_ne!(self.write_id, 0, "write id 0 stands for zeros");
        for (index, unit) in out.chunks_exact_mut(UNIT_BYTES).enumerate() {
            let words = self.words(index as u64);
            for (place, word) in unit
                .chunks_exact_mut(8)
                .zip(words.iter().chain([&sum(&words)]))
            {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }
    }

    fn words(&self, index: u64) -> [u64; 7] {
        let (low, high) = self.volume.split_at(8);
        [
            MAGIC,
            word(low),
            word(high),
            self.sector,
            self.write_id,
            index,
            !self.write_id,
        ]
    }
}

fn word(bytes: &[u8]) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(bytes);
    u64::from_le_bytes(out)
}

/// Multiply and rotate, word by word: damage detection, not cryptography.
fn sum(words: &[u64; 7]) -> u64 {
    words
        .iter()
        .fold(0x243f_6a88_85a3_08d3, |state: u64, word| {
            (state ^ word)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
        })
}

fn read_unit(unit: &[u8], index: usize) -> Option<Stamp> {
    let mut words = [0; 7];
    for (out, bytes) in words.iter_mut().zip(unit.chunks_exact(8)) {
        *out = word(bytes);
    }
    if words[0] != MAGIC || sum(&words) != word(&unit[56..]) || words[5] != index as u64 {
        return None;
    }
    let mut volume = [0; 16];
    volume.copy_from_slice(&unit[8..24]);
    Some(Stamp {
        volume,
        sector: words[3],
        write_id: words[4],
    })
}

impl Content {
    /// What is in this sector?
    ///
    /// # Panics
    /// If `bytes` is not one sector long.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), SECTOR_BYTES, "length of a sector");
        let mut runs: Vec<(Option<Stamp>, usize)> = Vec::new();
        for (index, unit) in bytes.chunks_exact(UNIT_BYTES).enumerate() {
            let found = read_unit(unit, index);
            match runs.last_mut() {
                Some((last, count)) if *last == found => *count += 1,
                _ => runs.push((found, 1)),
            }
        }
        match runs.as_slice() {
            [(Some(stamp), _)] => Self::Whole(*stamp),
            [(None, _)] if bytes.iter().all(|byte| *byte == 0) => Self::Zero,
            _ => Self::Torn(runs),
        }
    }

    /// As a value of the history, for the sector it was read from: content that belongs elsewhere
    /// counts as torn, with a text that says where it belongs.
    #[must_use]
    pub fn value(&self, volume: [u8; 16], sector: u64) -> crate::SectorValue {
        match self {
            Content::Zero => crate::SectorValue::Write(0),
            Content::Whole(stamp) if stamp.volume == volume && stamp.sector == sector => {
                crate::SectorValue::Write(stamp.write_id)
            }
            Content::Whole(stamp) => crate::SectorValue::Torn {
                torn: format!(
                    "write {} of sector {} in a wrong place",
                    stamp.write_id, stamp.sector
                ),
            },
            Content::Torn(runs) => {
                let parts: Vec<_> = runs
                    .iter()
                    .take(8)
                    .map(|(stamp, units)| match stamp {
                        Some(stamp) => format!("{units} units of write {}", stamp.write_id),
                        None => format!("{units} units of no write"),
                    })
                    .collect();
                crate::SectorValue::Torn {
                    torn: parts.join(", "),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SectorValue;

    const STAMP: Stamp = Stamp {
        volume: [7; 16],
        sector: 99,
        write_id: 1234,
    };

    #[test]
    fn stamps_and_zeros_round_trip() {
        assert_eq!(Content::read(&STAMP.bytes()), Content::Whole(STAMP));
        assert_eq!(Content::read(&[0; SECTOR_BYTES]), Content::Zero);
    }

    #[test]
    fn a_mix_of_two_writes_is_torn_wherever_the_cut() {
        // Up to byte 32 the two are the same.
        let other = Stamp {
            write_id: 1235,
            ..STAMP
        };
        for cut in [33, 63, 64, 512, 2048, 4090] {
            let mut bytes = STAMP.bytes();
            bytes[cut..].copy_from_slice(&other.bytes()[cut..]);
            let content = Content::read(&bytes);
            assert!(
                matches!(content, Content::Torn(_)),
                "cut at {cut}: {content:?}"
            );
        }
    }

    #[test]
    fn one_flipped_bit_and_a_half_zeroed_sector_are_torn() {
        for bit in (0..SECTOR_BYTES * 8).step_by(797) {
            let mut bytes = STAMP.bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                matches!(Content::read(&bytes), Content::Torn(_)),
                "bit {bit}"
            );
        }
        let mut bytes = STAMP.bytes();
        bytes[2048..].fill(0);
        assert!(matches!(Content::read(&bytes), Content::Torn(_)));
    }

    #[test]
    fn content_of_another_sector_or_volume_is_no_value() {
        let content = Content::read(&STAMP.bytes());
        assert_eq!(content.value([7; 16], 99), SectorValue::Write(1234));
        assert!(matches!(
            content.value([7; 16], 98),
            SectorValue::Torn { .. }
        ));
        assert!(matches!(
            content.value([8; 16], 99),
            SectorValue::Torn { .. }
        ));
    }
}
