//! How much a volume's chunks are used, as a front publishes it: decayed rates, three bytes a chunk.
//!
//! A page covers [`HEAT_PAGE_CHUNKS`] chunks:
//!
//! | bytes | field | |
//! |-|-|-|
//! | 0 | version | 1 |
//! | 1..4 | | 0 |
//! | 4..8 | age | seconds for which the rates have been measured |
//! | 8..12 | half-life | seconds after which a use counts half |
//! | 12..16 | chunks | chunks of the volume in this page |
//! | 16..32 | groups | bit g: group g of 64 chunks is there; the others are all zero |
//! | 32.. | | per group: 64 levels of reads, 64 of writes, 64 of bytes |
//!
//! A level is a logarithmic number of one byte: 0 is nothing, else `unit * 2^e * (1 + m/8)` with
//! `e = (level - 1) / 8` and `m = (level - 1) % 8`; a step is 6 to 12.5 %. It grows with the rate.

use crate::message::MessageError;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Chunks of one page: 32 GiB of a volume with 4 MiB chunks, at most 24 KiB on the wire.
pub const HEAT_PAGE_CHUNKS: u32 = 8192;
/// Chunks of one group.
const GROUP: usize = 64;
const GROUPS: usize = HEAT_PAGE_CHUNKS as usize / GROUP;
const LEVELS_PER_DOUBLING: u32 = 8;

/// Reads and writes per second at level 1: one request, ten minutes' half-life.
const OPS_UNIT: f64 = 1.0 / 1024.0;
/// Bytes per second at level 1: the 4 KiB of such a request.
const BYTES_UNIT: f64 = 4.0;

/// Use of one chunk, as levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChunkHeat {
    /// Level of the reads per second.
    pub reads: u8,
    /// Level of the writes per second.
    pub writes: u8,
    /// Level of the bytes per second, read and written.
    pub bytes: u8,
}

impl ChunkHeat {
    /// From rates per second.
    #[must_use]
    pub fn from_rates(reads: f64, writes: f64, bytes: f64) -> Self {
        Self {
            reads: level(reads / OPS_UNIT),
            writes: level(writes / OPS_UNIT),
            bytes: level(bytes / BYTES_UNIT),
        }
    }

    /// Nothing.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// Reads per second, within 6 %.
    #[must_use]
    pub fn reads_per_s(self) -> f64 {
        value(self.reads) * OPS_UNIT
    }

    /// Writes per second, within 6 %.
    #[must_use]
    pub fn writes_per_s(self) -> f64 {
        value(self.writes) * OPS_UNIT
    }

    /// Bytes per second, read and written, within 6 %.
    #[must_use]
    pub fn bytes_per_s(self) -> f64 {
        value(self.bytes) * BYTES_UNIT
    }
}

/// The level of a multiple of the unit.
fn level(value: f64) -> u8 {
    if value.is_nan() || value < 1.0 {
        return 0;
    }
    // Exponent and the first three bits of the mantissa, as they stand in the number.
    let bits = value.to_bits();
    let exponent = (bits >> 52) - 1023;
    let level = 1 + exponent * u64::from(LEVELS_PER_DOUBLING) + (bits >> 49 & 7);
    u8::try_from(level).unwrap_or(u8::MAX)
}

/// The middle of what a level covers.
fn value(level: u8) -> f64 {
    let Some(step) = level.checked_sub(1) else {
        return 0.0;
    };
    let (exponent, mantissa) = (
        u32::from(step) / LEVELS_PER_DOUBLING,
        u32::from(step) % LEVELS_PER_DOUBLING,
    );
    f64::from(1u32 << exponent)
        * (1.0 + (f64::from(mantissa) + 0.5) / f64::from(LEVELS_PER_DOUBLING))
}

/// One page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HeatPage {
    /// Seconds for which the rates have been measured, by this front and those before.
    pub age_s: u32,
    /// Seconds after which a use counts half.
    pub half_life_s: u32,
    /// From the page's first chunk on; at most [`HEAT_PAGE_CHUNKS`].
    pub chunks: Vec<ChunkHeat>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawPage {
    version: u8,
    pad: [u8; 3],
    age_s: U32,
    half_life_s: U32,
    chunks: U32,
    groups: [u8; GROUPS / 8],
}

impl HeatPage {
    /// To the body of a report.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(
            self.chunks.len() <= HEAT_PAGE_CHUNKS as usize,
            "{} chunks in a page",
            self.chunks.len()
        );
        #[allow(clippy::cast_possible_truncation)] // asserted
        let mut raw = RawPage {
            version: 1,
            pad: [0; 3],
            age_s: self.age_s.into(),
            half_life_s: self.half_life_s.into(),
            chunks: (self.chunks.len() as u32).into(),
            groups: [0; GROUPS / 8],
        };
        let mut body = Vec::new();
        for (index, group) in self.chunks.chunks(GROUP).enumerate() {
            if group.iter().all(|heat| heat.is_zero()) {
                continue;
            }
            raw.groups[index / 8] |= 1 << (index % 8);
            let columns: [fn(&ChunkHeat) -> u8; 3] = [|h| h.reads, |h| h.writes, |h| h.bytes];
            for column in columns {
                let levels = group.iter().map(column);
                body.extend(levels.chain(std::iter::repeat(0)).take(GROUP));
            }
        }
        let mut out = raw.as_bytes().to_vec();
        out.append(&mut body);
        out
    }

    /// From the body of a report.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let error = MessageError("heat page");
        let (raw, mut rest) = RawPage::ref_from_prefix(bytes).map_err(|_| error)?;
        if raw.version != 1 || raw.chunks.get() > HEAT_PAGE_CHUNKS {
            return Err(error);
        }
        let mut chunks = vec![ChunkHeat::default(); raw.chunks.get() as usize];
        for index in 0..GROUPS {
            if raw.groups[index / 8] & 1 << (index % 8) == 0 {
                continue;
            }
            let (levels, tail) = rest.split_at_checked(3 * GROUP).ok_or(error)?;
            rest = tail;
            let group = chunks.iter_mut().skip(index * GROUP).take(GROUP);
            for (at, heat) in group.enumerate() {
                heat.reads = levels[at];
                heat.writes = levels[GROUP + at];
                heat.bytes = levels[2 * GROUP + at];
            }
        }
        Ok(Self {
            age_s: raw.age_s.get(),
            half_life_s: raw.half_life_s.get(),
            chunks,
        })
    }

    /// Is no chunk of it used?
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.chunks.iter().all(|heat| heat.is_zero())
    }
}

const _: () = assert!(GROUPS.is_multiple_of(8));
const _: () = assert!(
    size_of::<RawPage>() + 3 * HEAT_PAGE_CHUNKS as usize <= crate::message::REPORT_BYTES_MAX
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn levels_are_what_they_stand_for() {
        for level_given in 0..=u8::MAX {
            assert_eq!(level(value(level_given)), level_given);
        }
        assert_eq!((level(0.999), level(1.0), level(2.0)), (0, 1, 9));
        assert_eq!(
            (level(f64::NAN), level(-5.0), level(f64::INFINITY)),
            (0, 0, 255)
        );
        // A single read under the half-life of fronts is seen, and so are its bytes.
        let one = std::f64::consts::LN_2 / 600.0;
        let heat = ChunkHeat::from_rates(one, 0.0, one * 4096.0);
        assert!(heat.reads > 0 && heat.writes == 0 && heat.bytes > 0);
        assert!(
            ChunkHeat {
                bytes: u8::MAX,
                ..heat
            }
            .bytes_per_s()
                > 10e9
        );
    }

    proptest! {
        #[test]
        fn levels_grow_with_the_rate_and_are_near(a in 1.0f64..4e9, b in 1.0f64..4e9) {
            let (low, high) = if a < b { (a, b) } else { (b, a) };
            prop_assert!(level(low) <= level(high));
            let back = value(level(a));
            prop_assert!((back / a - 1.0).abs() <= 0.0626, "{back} for {a}");
        }

        #[test]
        fn pages_round_trip(
            used in prop::collection::vec((0usize..8192, any::<[u8; 3]>()), 0..40),
            len in 0usize..=8192, age_s in any::<u32>(),
        ) {
            let mut chunks = vec![ChunkHeat::default(); len];
            for (at, [reads, writes, bytes]) in used {
                if let Some(heat) = chunks.get_mut(at) {
                    *heat = ChunkHeat { reads, writes, bytes };
                }
            }
            let page = HeatPage { age_s, half_life_s: 600, chunks };
            let bytes = page.encode();
            prop_assert!(!page.is_zero() || bytes.len() == size_of::<RawPage>());
            prop_assert_eq!(HeatPage::decode(&bytes), Ok(page));
            prop_assert!(HeatPage::decode(&bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn arbitrary_pages_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(page) = HeatPage::decode(&bytes) {
                prop_assert_eq!(HeatPage::decode(&page.encode()), Ok(page));
            }
        }
    }
}
